/* SPDX-License-Identifier: Apache-2.0 */
/* What shards say of their tensors' numbers. Catches: ranks that are not compared because their reports came from
 * another node, a checkpoint that is committed although it was to be refused, one that never ends because a manifest
 * cannot be read, a checkpoint with NaN that is taken for finite. */
#include "fixture.h"

#include "tests.h"

#include <string.h>

static uint64_t mismatches(struct machine *m)
{
    struct job_status st[2];

    assert_int_equal(jobs_status(m->jobs, st, 2), 1);
    return st[0].common_mismatches;
}

static void join_all(struct fixture *f, unsigned n, struct member **r)
{
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(join(f, &f->a, "j", "a", i, n, false, &r[i]), 0);
}

static void leave_all(unsigned n, struct member **r)
{
    for (unsigned i = 0; i < n; i++)
        member_leave(r[i]);
}

void ranks_that_disagree_are_named(void **state)
{
    struct fixture *f = *state;
    struct machine *m = &f->a;
    struct member *r[3];

    machine_start(f, m, "n0", 1, 10000);
    join_all(f, 3, r);
    m->links.flipped = 1u << 2; /* nobody looks, or not at what is held in common */
    commit_step_of(f, m, r, 3, 40);
    m->links.watched = true;
    commit_step_of(f, m, r, 3, 41);
    assert_int_equal(mismatches(m), 0);
    f->layout.slices[0].common = true;
    commit_step_of(f, m, r, 3, 42);
    assert_int_equal(mismatches(m), 1);
    assert_string_equal(fate(f, m, "j", 42, 1), "committed");
    m->links.flipped = 0;
    commit_step_of(f, m, r, 3, 43);
    assert_int_equal(mismatches(m), 1);
    m->links.flipped = 7; /* all of them: the same bytes */
    commit_step_of(f, m, r, 3, 44);
    assert_int_equal(mismatches(m), 1);
    leave_all(3, r);
}

/* Two ranks on the coordinator's node, the odd one on another, whose manifest cannot be read from here. */
void by_policy_they_commit_nothing(void **state)
{
    struct fixture *f = *state;
    struct member *r[3];
    struct save s[3];

    f->common_fails = true;
    f->layout.slices[0].common = true;
    machine_start(f, &f->a, "n0", 1, 10000);
    machine_start(f, &f->b, "n1", 2, 10000);
    turn_together(f);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(join(f, i == 2 ? &f->b : &f->a, "j", "a", i, 3, false, &r[i]), 0);
    f->a.links.watched = f->b.links.watched = true;
    f->b.links.flipped = 1u << 2;
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(begin(f, i == 2 ? &f->b : &f->a, r[i], 40, &s[i]), 0);
        fill(f, &s[i]);
    }
    for (unsigned i = 0; i < 3; i++) {
        turn_until(i == 2 ? &f->b : &f->a, &s[i].ended);
        assert_int_equal(s[i].code, CAIRN_E_ABORTED);
        assert_non_null(strstr(s[i].message, "rank 2 holds other bytes than 2 other ranks"));
    }
    turn_for(&f->a, 50);
    assert_string_equal(fate(f, &f->a, "j", 40, 1), "aborted");
    assert_int_equal(mismatches(&f->a), 1);
    /* With both manifests at hand the tensor is named too. */
    f->a.links.flipped = 1;
    f->b.links.flipped = 0;
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(begin(f, i == 2 ? &f->b : &f->a, r[i], 41, &s[i]), 0);
        fill(f, &s[i]);
    }
    for (unsigned i = 0; i < 3; i++)
        turn_until(i == 2 ? &f->b : &f->a, &s[i].ended);
    assert_string_equal(s[1].message,
                        "rank 0 holds other bytes than 2 other ranks of tensors that they have in common: \"w\"; "
                        "[node] common_mismatch = fail");
    leave_all(3, r);
}

void a_comparison_ends_with_the_deadline(void **state)
{
    struct fixture *f = *state;
    struct machine *m = &f->a;
    struct member *r[2];
    struct save s[2];

    f->layout.slices[0].common = true;
    machine_start(f, m, "n0", 1, 500);
    join_all(f, 2, r);
    m->links.watched = m->links.hold_blobs = true;
    m->links.flipped = 1;
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(begin(f, m, r[i], 40, &s[i]), 0);
        fill(f, &s[i]);
    }
    for (unsigned i = 0; i < 2; i++)
        turn_until(m, &s[i].ended);
    assert_int_equal(s[0].code, CAIRN_E_ABORTED);
    double_let_go(&m->links); /* it is still there, and tells nobody any more */
    turn_for(m, 50);
    assert_int_equal(mismatches(m), 0);
    assert_string_equal(fate(f, m, "j", 40, 1), "aborted");
    leave_all(2, r);
}

void latest_finite_is_the_newest_that_is(void **state)
{
    struct fixture *f = *state;
    struct machine *m = &f->a;
    struct member *r[2];
    struct checkpoint *c;
    struct save s;
    uint64_t step, inc;

    machine_start(f, m, "n0", 1, 10000);
    join_all(f, 2, r);
    assert_int_equal(open_step(f, m, NULL, CAIRN_LATEST_FINITE, 5000, &step, &inc, &c), CAIRN_E_NOT_FOUND);
    assert_non_null(strstr(f->err.message, "no committed checkpoint"));
    commit_step_of(f, m, r, 2, 39);
    assert_int_equal(open_step(f, m, NULL, CAIRN_LATEST_FINITE, 5000, &step, &inc, &c), CAIRN_E_NOT_FOUND);
    assert_non_null(strstr(f->err.message, "numerics = 0"));
    m->links.watched = true;
    m->links.nan = 3;
    commit_step_of(f, m, r, 2, 40);
    assert_int_equal(open_step(f, m, NULL, CAIRN_LATEST_FINITE, 5000, &step, &inc, &c), CAIRN_E_NOT_FOUND);
    assert_non_null(strstr(f->err.message, "each of the 1 committed"));
    m->links.nan = 0;
    commit_step_of(f, m, r, 2, 41);
    m->links.nan = 1;
    commit_step_of(f, m, r, 2, 42);
    m->links.watched = false;
    commit_step_of(f, m, r, 2, 43);
    for (unsigned i = 0; i < 2; i++) { /* a rank may ask too */
        assert_int_equal(open_step(f, m, i ? r[0] : NULL, CAIRN_LATEST_FINITE, 5000, &step, &inc, &c), 0);
        assert_int_equal(step, 41);
        assert_true(c->decision.counted && c->root.shards[1].numerics.known && c->manifests[0].numerics[0].known);
        checkpoint_unref(c);
    }
    assert_int_equal(begin(f, m, r[0], CAIRN_LATEST_FINITE, &s), CAIRN_E_INVAL);
    leave_all(2, r);
}
