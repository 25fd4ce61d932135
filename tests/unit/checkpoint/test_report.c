/* SPDX-License-Identifier: Apache-2.0 */
/* Catches: a report that is believed twice or taken for another rank's, a lost one that holds up what follows, an
 * adopted checkpoint that is announced again, a tree with a loop or with more than its fan-in. */
#include "core/checkpoint/report.h"

#include <cairn/cairn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static struct commit c;
static uint8_t ranks[4];
static unsigned neffects, roots, drains;

static void adopt(uint32_t world)
{
    memset(ranks, 0, sizeof ranks);
    neffects = roots = drains = 0;
    commit_adopt(&c, 40, world, 60000, ranks);
}

static void hear(uint32_t rank, int state)
{
    struct report r = {rank, state, "why"};
    struct commit_event events[REPORT_MAX_EVENTS];
    struct commit_effects fx;
    unsigned n = report_events(&c, &r, events);

    assert_true(n <= REPORT_MAX_EVENTS);
    for (unsigned i = 0; i < n; i++) {
        commit_step(&c, &events[i], &fx);
        for (unsigned f = 0; f < fx.n; f++) {
            roots += fx.what[f] == COMMIT_STORE_ROOT;
            drains += fx.what[f] == COMMIT_START_DRAINS;
        }
        neffects += fx.n;
    }
}

static void a_lost_report_is_made_up_for(void **state)
{
    (void)state;
    adopt(2);
    hear(0, REPORT_DURABLE);
    assert_int_equal(c.rank[0], COMMIT_DURABLE);
    assert_int_equal(c.rank[1], COMMIT_ABSENT);
    hear(1, REPORT_FILLED);
    assert_int_equal(roots, 0);
    hear(1, REPORT_DURABLE);
    assert_int_equal(roots, 1);
    assert_int_equal(c.state, COMMIT_ROOTING);
}

static void repeats_change_nothing(void **state)
{
    (void)state;
    adopt(2);
    for (int i = 0; i < 5; i++) {
        hear(0, REPORT_DURABLE);
        hear(0, REPORT_BEGUN);
        hear(0, REPORT_FILLED);
        hear(0, REPORT_DROPPED); /* one that was overtaken */
        hear(7, REPORT_DURABLE); /* no such rank */
    }
    assert_int_equal(c.ndurable, 1);
    assert_int_equal(c.nbegun, 1);
    assert_int_equal(roots, 0);
    assert_int_equal(c.state, COMMIT_FILLING);
}

static void a_drop_and_a_failure_abort(void **state)
{
    struct commit_effects fx;

    (void)state;
    adopt(2);
    hear(1, REPORT_DROPPED);
    assert_int_equal(c.state, COMMIT_ABORTING);
    assert_int_equal(report_verdict(&c), VERDICT_NONE); /* chosen: a successor may have decided otherwise */
    commit_step(&c, &(struct commit_event){.type = COMMIT_ON_APPLIED}, &fx);
    assert_int_equal(report_verdict(&c), VERDICT_ABORTED);
    assert_non_null(strstr(c.reason, "rank 1 gave up"));
    adopt(2);
    hear(1, REPORT_FAILED);
    assert_int_equal(c.state, COMMIT_ABORTING);
    assert_non_null(strstr(c.reason, "rank 1 could not store"));
}

static void a_rank_is_lost_only_before_it_is_durable(void **state)
{
    struct commit_effects fx;

    (void)state;
    adopt(2);
    hear(0, REPORT_DURABLE);
    commit_step(&c, &(struct commit_event){.type = COMMIT_ON_GONE, .rank = 0, .reason = "node n1"}, &fx);
    assert_int_equal(c.state, COMMIT_FILLING);
    commit_step(&c, &(struct commit_event){.type = COMMIT_ON_GONE, .rank = 1, .reason = "node n2"}, &fx);
    assert_int_equal(c.state, COMMIT_ABORTING);
    assert_non_null(strstr(c.reason, "rank 1 is lost with step 40: node n2"));
}

static void verdicts(void **state)
{
    struct commit_effects fx;

    (void)state;
    memset(ranks, 0, sizeof ranks);
    commit_init(&c, 40, 1, 60000, ranks, &fx);
    assert_int_equal(report_verdict(&c), VERDICT_NONE);
    commit_step(&c, &(struct commit_event){.type = COMMIT_ON_INTENT_WRITTEN}, &fx);
    assert_int_equal(report_verdict(&c), VERDICT_INTENT);
    hear(0, REPORT_DURABLE);
    commit_step(&c, &(struct commit_event){.type = COMMIT_ON_ROOT_STORED}, &fx);
    assert_int_equal(report_verdict(&c), VERDICT_INTENT); /* sent, not known */
    commit_step(&c, &(struct commit_event){.type = COMMIT_ON_APPLIED}, &fx);
    assert_int_equal(report_verdict(&c), VERDICT_COMMITTED);
}

static void the_tree(void **state)
{
    static unsigned children[10000];
    unsigned roots_children = 0;

    (void)state;
    for (uint32_t s = 0; s < 10000; s++) {
        uint32_t p = report_parent(s);
        if (p == REPORT_COORDINATOR) {
            roots_children++;
            continue;
        }
        assert_true(p < s); /* no loop, and a parent has greeted before */
        children[p]++;
    }
    assert_int_equal(roots_children, REPORT_FAN_IN);
    for (uint32_t s = 0; s < 10000; s++)
        assert_true(children[s] <= REPORT_FAN_IN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_lost_report_is_made_up_for),
        cmocka_unit_test(repeats_change_nothing),
        cmocka_unit_test(a_drop_and_a_failure_abort),
        cmocka_unit_test(a_rank_is_lost_only_before_it_is_durable),
        cmocka_unit_test(verdicts),
        cmocka_unit_test(the_tree),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
