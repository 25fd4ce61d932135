/* SPDX-License-Identifier: Apache-2.0 */
/* Catches: a commit without every shard, ranks told before the metadata was read, a message that does not name who was
 * late. */
#include "core/checkpoint/commit.h"

#include <cairn/cairn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static struct commit c;
static struct commit_effects fx;
static uint8_t ranks[8];

static void begin(uint32_t world)
{
    memset(ranks, 0, sizeof ranks);
    commit_init(&c, 40, world, 60000, ranks, &fx);
    assert_int_equal(fx.n, 1);
    assert_int_equal(fx.what[0], COMMIT_WRITE_INTENT);
}

static void on(int type)
{
    commit_step(&c, &(struct commit_event){.type = type, .code = CAIRN_E_FENCED, .reason = "why"}, &fx);
}

static void on_rank(int type, uint32_t rank)
{
    commit_step(&c, &(struct commit_event){.type = type, .rank = rank, .reason = "why"}, &fx);
}

/* The effects of the last step, ended by 0. */
static void expect(int state, ...)
{
    va_list ap;
    unsigned i = 0;

    va_start(ap, state);
    for (int what = va_arg(ap, int); what; what = va_arg(ap, int), i++) {
        assert_true(i < fx.n);
        assert_int_equal(fx.what[i], what);
    }
    va_end(ap);
    assert_int_equal(fx.n, i);
    assert_string_equal(commit_state_name(c.state), commit_state_name(state));
}

static void to_deciding(void)
{
    begin(2);
    for (uint32_t i = 0; i < 2; i++) {
        on_rank(COMMIT_ON_BEGUN, i);
        on_rank(COMMIT_ON_FILLED, i);
    }
    expect(COMMIT_INTENDING, 0);
    on(COMMIT_ON_INTENT_WRITTEN);
    expect(COMMIT_DRAINING, COMMIT_START_DRAINS, 0);
    on_rank(COMMIT_ON_DURABLE, 1);
    expect(COMMIT_DRAINING, 0);
    on_rank(COMMIT_ON_DURABLE, 0);
    expect(COMMIT_ROOTING, COMMIT_STORE_ROOT, 0);
    on(COMMIT_ON_ROOT_STORED);
    expect(COMMIT_DECIDING, COMMIT_PUT_COMMIT, 0);
}

static void commits(void **state)
{
    (void)state;
    to_deciding();
    on(COMMIT_ON_APPLIED);
    expect(COMMIT_COMMITTED, COMMIT_TELL, COMMIT_END, 0);
    assert_int_equal(c.code, 0);
    on(COMMIT_ON_DEADLINE);
    expect(COMMIT_COMMITTED, 0);
}

static void drains_wait_for_the_intent(void **state)
{
    (void)state;
    begin(2);
    on(COMMIT_ON_INTENT_WRITTEN);
    expect(COMMIT_FILLING, 0);
    on_rank(COMMIT_ON_BEGUN, 0);
    on_rank(COMMIT_ON_FILLED, 0);
    expect(COMMIT_FILLING, COMMIT_START_DRAINS, 0);
    on_rank(COMMIT_ON_FILLED, 1); /* never begun: nothing to fill */
    expect(COMMIT_FILLING, 0);
    on_rank(COMMIT_ON_DURABLE, 0);
    expect(COMMIT_FILLING, 0);
}

static void a_drop_frees_the_others_once_it_is_decided(void **state)
{
    (void)state;
    begin(2);
    on(COMMIT_ON_INTENT_WRITTEN);
    on_rank(COMMIT_ON_BEGUN, 1);
    on_rank(COMMIT_ON_DROPPED, 1);
    expect(COMMIT_ABORTING, COMMIT_STOP_DRAINS, COMMIT_PUT_ABORT, 0);
    assert_string_equal(c.reason, "rank 1 gave up step 40: why");
    on(COMMIT_ON_UNKNOWN);
    expect(COMMIT_ABORTING, COMMIT_READ, 0);
    assert_true(fx.again);
    on(COMMIT_ON_READ_ABSENT);
    expect(COMMIT_ABORTING, COMMIT_PUT_ABORT, 0);
    on(COMMIT_ON_APPLIED);
    expect(COMMIT_ABORTED, COMMIT_TELL, COMMIT_END, 0);
}

/* This coordinator has lost its lease without noticing, and gives the checkpoint up; its successor adopted it and
 * committed. Nobody may have been told of an abort. */
static void a_successors_commit_is_told(void **state)
{
    (void)state;
    begin(2);
    on(COMMIT_ON_INTENT_WRITTEN);
    on_rank(COMMIT_ON_BEGUN, 0);
    on_rank(COMMIT_ON_FILLED, 0);
    commit_step(&c, &(struct commit_event){.type = COMMIT_ON_DEADLINE}, &fx);
    expect(COMMIT_ABORTING, COMMIT_STOP_DRAINS, COMMIT_PUT_ABORT, 0);
    assert_false(c.told);
    on(COMMIT_ON_REFUSED);
    expect(COMMIT_ABORTING, COMMIT_READ, 0);
    on(COMMIT_ON_READ_COMMIT);
    expect(COMMIT_COMMITTED, COMMIT_TELL, COMMIT_END, 0);
    assert_int_equal(c.code, 0);

    begin(2); /* the same while its intent was on its way, and was refused for that */
    on(COMMIT_ON_READ_COMMIT);
    expect(COMMIT_COMMITTED, COMMIT_TELL, COMMIT_END, 0);
    assert_int_equal(c.code, 0);

    begin(2); /* and where the metadata stays silent, it is not known */
    on(COMMIT_ON_INTENT_WRITTEN);
    commit_step(&c, &(struct commit_event){.type = COMMIT_ON_DEADLINE}, &fx);
    for (int i = 0; i < 10 && !commit_ended(&c); i++)
        on(c.asked == COMMIT_READ ? COMMIT_ON_READ_FAILED : COMMIT_ON_UNKNOWN);
    assert_int_equal(c.state, COMMIT_UNDECIDED);
    assert_int_equal(c.code, CAIRN_E_UNAVAILABLE);
}

static void an_intent_that_never_was_needs_no_decision(void **state)
{
    (void)state;
    begin(1);
    on_rank(COMMIT_ON_BEGUN, 0);
    on_rank(COMMIT_ON_DROPPED, 0);
    expect(COMMIT_ABORTING, COMMIT_STOP_DRAINS, 0);
    on(COMMIT_ON_INTENT_REFUSED);
    expect(COMMIT_ABORTED, COMMIT_TELL, COMMIT_END, 0);

    begin(1);
    on(COMMIT_ON_INTENT_REFUSED);
    expect(COMMIT_ABORTED, COMMIT_TELL, COMMIT_END, 0);
    assert_int_equal(c.code, CAIRN_E_FENCED);

    begin(1);
    on(COMMIT_ON_INTENT_UNKNOWN);
    expect(COMMIT_INTENDING, COMMIT_WRITE_INTENT, 0);
    on(COMMIT_ON_INTENT_REFUSED); /* the first one may be there */
    expect(COMMIT_ABORTING, COMMIT_STOP_DRAINS, COMMIT_PUT_ABORT, 0);
}

static void unknown_is_read_before_anybody_is_told(void **state)
{
    (void)state;
    to_deciding();
    on(COMMIT_ON_UNKNOWN);
    expect(COMMIT_DECIDING, COMMIT_READ, 0);
    on(COMMIT_ON_READ_FAILED);
    expect(COMMIT_DECIDING, COMMIT_READ, 0);
    on(COMMIT_ON_READ_ABSENT);
    expect(COMMIT_DECIDING, COMMIT_PUT_COMMIT, 0);
    on(COMMIT_ON_UNKNOWN);
    on(COMMIT_ON_READ_COMMIT);
    expect(COMMIT_COMMITTED, COMMIT_TELL, COMMIT_END, 0);

    to_deciding();
    on(COMMIT_ON_REFUSED);
    on(COMMIT_ON_READ_ABORT);
    expect(COMMIT_ABORTED, COMMIT_TELL, COMMIT_END, 0);
    assert_string_equal(c.reason, "why");
    assert_int_equal(c.code, CAIRN_E_ABORTED);
}

static void silence_after_the_deadline_ends(void **state)
{
    (void)state;
    to_deciding();
    on(COMMIT_ON_DEADLINE);
    expect(COMMIT_DECIDING, 0);
    for (int i = 0; i < 10 && !commit_ended(&c); i++)
        on(c.asked == COMMIT_READ ? COMMIT_ON_READ_FAILED : COMMIT_ON_UNKNOWN);
    assert_int_equal(c.state, COMMIT_UNDECIDED);
    assert_int_equal(c.code, CAIRN_E_UNAVAILABLE);

    to_deciding();
    on(COMMIT_ON_UNKNOWN);
    on(COMMIT_ON_DEADLINE);
    on(COMMIT_ON_READ_ABSENT);
    expect(COMMIT_ABORTING, COMMIT_STOP_DRAINS, COMMIT_PUT_ABORT, 0);
    on(COMMIT_ON_APPLIED);
    expect(COMMIT_ABORTED, COMMIT_TELL, COMMIT_END, 0);
}

static void the_deadline_names_who_was_missing(void **state)
{
    (void)state;
    begin(8);
    on(COMMIT_ON_INTENT_WRITTEN);
    on_rank(COMMIT_ON_BEGUN, 0);
    on_rank(COMMIT_ON_FILLED, 0);
    commit_step(&c, &(struct commit_event){.type = COMMIT_ON_DEADLINE}, &fx);
    expect(COMMIT_ABORTING, COMMIT_STOP_DRAINS, COMMIT_PUT_ABORT, 0);
    assert_string_equal(c.reason, "ranks 1, 2, 3, 4 and 3 more did not fill step 40 within 60 s");

    begin(1);
    on(COMMIT_ON_INTENT_WRITTEN);
    on_rank(COMMIT_ON_BEGUN, 0);
    on_rank(COMMIT_ON_FILLED, 0);
    commit_step(&c, &(struct commit_event){.type = COMMIT_ON_DEADLINE, .reason = "peer p3 is late"}, &fx);
    assert_string_equal(c.reason, "rank 0 did not become durable in step 40 within 60 s (peer p3 is late)");
}

/* Catches: a checkpoint that is committed although it was rejected, and a rejection of one that is decided already. */
static void what_is_rejected_is_not_rooted(void **state)
{
    (void)state;
    begin(1);
    on(COMMIT_ON_INTENT_WRITTEN);
    on_rank(COMMIT_ON_BEGUN, 0);
    on_rank(COMMIT_ON_FILLED, 0);
    on_rank(COMMIT_ON_DURABLE, 0);
    expect(COMMIT_ROOTING, COMMIT_STORE_ROOT, 0);
    on(COMMIT_ON_REJECTED);
    expect(COMMIT_ABORTING, COMMIT_STOP_DRAINS, COMMIT_PUT_ABORT, 0);
    on(COMMIT_ON_ROOT_STORED); /* late */
    expect(COMMIT_ABORTING, 0);
    on(COMMIT_ON_APPLIED);
    expect(COMMIT_ABORTED, COMMIT_TELL, COMMIT_END, 0);
    assert_int_equal(c.code, CAIRN_E_ABORTED);
    assert_string_equal(c.reason, "why");

    to_deciding();
    on(COMMIT_ON_REJECTED);
    expect(COMMIT_DECIDING, 0);
}

static void a_newer_incarnation_drops_what_is_not_filled(void **state)
{
    (void)state;
    begin(1);
    on(COMMIT_ON_INTENT_WRITTEN);
    on(COMMIT_ON_FENCED);
    expect(COMMIT_ABORTING, COMMIT_STOP_DRAINS, COMMIT_PUT_ABORT, 0);
    assert_int_equal(c.code, CAIRN_E_FENCED);

    begin(1);
    on(COMMIT_ON_INTENT_WRITTEN);
    on_rank(COMMIT_ON_BEGUN, 0);
    on_rank(COMMIT_ON_FILLED, 0);
    on(COMMIT_ON_FENCED);
    expect(COMMIT_DRAINING, 0);

    to_deciding();
    on(COMMIT_ON_REFUSED);
    on(COMMIT_ON_READ_FENCED);
    expect(COMMIT_ABORTING, COMMIT_STOP_DRAINS, COMMIT_PUT_ABORT, 0);
    on(COMMIT_ON_APPLIED);
    assert_int_equal(c.code, CAIRN_E_FENCED);
}

/* Catches: an adopted checkpoint that writes its intent again, or that waits for it before it drains. */
static void an_adopted_one_needs_no_intent(void **state)
{
    (void)state;
    memset(ranks, 0, sizeof ranks);
    commit_adopt(&c, 40, 2, 60000, ranks);
    fx = (struct commit_effects){0};
    expect(COMMIT_FILLING, 0);
    on_rank(COMMIT_ON_BEGUN, 1);
    on_rank(COMMIT_ON_FILLED, 1);
    expect(COMMIT_FILLING, COMMIT_START_DRAINS, 0);
    on(COMMIT_ON_INTENT_WRITTEN); /* nobody asked */
    expect(COMMIT_FILLING, 0);
    on_rank(COMMIT_ON_BEGUN, 0);
    on_rank(COMMIT_ON_FILLED, 0);
    expect(COMMIT_DRAINING, COMMIT_START_DRAINS, 0);
    on_rank(COMMIT_ON_DURABLE, 0);
    on_rank(COMMIT_ON_DURABLE, 1);
    expect(COMMIT_ROOTING, COMMIT_STORE_ROOT, 0);
    on(COMMIT_ON_ROOT_STORED);
    on(COMMIT_ON_APPLIED);
    expect(COMMIT_COMMITTED, COMMIT_TELL, COMMIT_END, 0);
    assert_int_equal(c.code, 0);
}

/* Catches: an abort of an adopted checkpoint that leaves its intent undecided. */
static void an_adopted_one_is_aborted_in_the_metadata(void **state)
{
    (void)state;
    memset(ranks, 0, sizeof ranks);
    commit_adopt(&c, 40, 2, 60000, ranks);
    on_rank(COMMIT_ON_BEGUN, 0);
    on_rank(COMMIT_ON_DROPPED, 1); /* it did not come back */
    expect(COMMIT_ABORTING, COMMIT_STOP_DRAINS, COMMIT_PUT_ABORT, 0);
    on(COMMIT_ON_APPLIED);
    expect(COMMIT_ABORTED, COMMIT_TELL, COMMIT_END, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(commits),
        cmocka_unit_test(drains_wait_for_the_intent),
        cmocka_unit_test(an_adopted_one_needs_no_intent),
        cmocka_unit_test(an_adopted_one_is_aborted_in_the_metadata),
        cmocka_unit_test(a_drop_frees_the_others_once_it_is_decided),
        cmocka_unit_test(a_successors_commit_is_told),
        cmocka_unit_test(an_intent_that_never_was_needs_no_decision),
        cmocka_unit_test(unknown_is_read_before_anybody_is_told),
        cmocka_unit_test(silence_after_the_deadline_ends),
        cmocka_unit_test(the_deadline_names_who_was_missing),
        cmocka_unit_test(a_newer_incarnation_drops_what_is_not_filled),
        cmocka_unit_test(what_is_rejected_is_not_rooted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
