/* SPDX-License-Identifier: Apache-2.0 */
/* Starts of a job and of daemons. Catches: two starts that save side by side, two nodes that both coordinate, intents
 * of a dead daemon that stay undecided for ever. */
#include "fixture.h"

#include "tests.h"

#include <string.h>

void starts_are_adopted_raised_or_refused(void **state)
{
    struct fixture *f = *state;
    struct machine *m = &f->a;
    struct member *r0, *r1, *x = NULL;

    machine_start(f, m, "n0", 1, 10000);
    assert_int_equal(join(f, m, "j", "a", 0, 2, false, &r0), 0);
    assert_int_equal(join(f, m, "j", "a", 1, 2, false, &r1), 0);
    assert_int_equal(member_incarnation(r0), 1);
    assert_int_equal(member_incarnation(r1), 1);
    assert_int_equal(join(f, m, "j", "a", 2, 2, false, &x), CAIRN_E_INVAL);
    assert_int_equal(join(f, m, "j", "a", 0, 3, false, &x), CAIRN_E_INVAL);
    assert_int_equal(join(f, m, "../j", "a", 0, 1, false, &x), CAIRN_E_INVAL);
    assert_int_equal(join(f, m, "j", "a", 1, 2, false, &x), CAIRN_E_EXISTS);
    assert_non_null(strstr(f->err.message, "rank 1"));
    assert_int_equal(join(f, m, "j", "b", 0, 2, false, &x), CAIRN_E_BUSY);
    member_leave(r1);
    assert_int_equal(join(f, m, "j", "a", 1, 2, false, &r1), 0);
    member_leave(r0);
    member_leave(r1);
    assert_int_equal(join(f, m, "j", "b", 0, 1, false, &r0), 0);
    assert_int_equal(member_incarnation(r0), 2);
    assert_int_equal(join(f, m, "j", "a", 0, 2, false, &x), CAIRN_E_FENCED);
    member_leave(r0);
}

void another_node_holds_the_job(void **state)
{
    struct fixture *f = *state;
    struct member *r, *x = NULL;

    machine_start(f, &f->a, "n0", 1, 10000);
    machine_start(f, &f->b, "n1", 2, 10000);
    assert_int_equal(join(f, &f->a, "j", "a", 0, 1, false, &r), 0);
    assert_int_equal(join(f, &f->b, "j", "b", 0, 1, true, &x), CAIRN_E_BUSY);
    assert_non_null(strstr(f->err.message, "node n0"));
    member_leave(r);
    turn_for(&f->a, 200); /* gives the key back */
    assert_int_equal(join(f, &f->b, "j", "b", 0, 1, false, &x), 0);
    assert_int_equal(member_incarnation(x), 2);
    member_leave(x);
}

void a_restarted_daemon_aborts_leftovers(void **state)
{
    struct fixture *f = *state;
    struct member *r, *r2;
    struct save s;

    machine_start(f, &f->a, "n0", 1, 10000);
    assert_int_equal(join(f, &f->a, "j", "a", 0, 1, false, &r), 0);
    commit_step_of(f, &f->a, &r, 1, 30);
    f->a.links.hold_drains = true;
    assert_int_equal(begin(f, &f->a, r, 40, &s), 0);
    fill(f, &s);
    turn_for(&f->a, 200);
    assert_string_equal(fate(f, &f->a, "j", 40, 1), "undecided");
    /* a is dead from here on, its lease is not over; n0 comes back. */
    machine_start(f, &f->b, "n0", 2, 10000);
    assert_int_equal(join(f, &f->b, "j", "a", 0, 1, false, &r2), 0);
    assert_int_equal(member_incarnation(r2), 1);
    assert_string_equal(fate(f, &f->b, "j", 40, 1), "aborted");
    assert_string_equal(f->err.message, "cairnd on node n0 restarted before it was durable");
    assert_string_equal(fate(f, &f->b, "j", 30, 1), "committed");
    assert_int_equal(f->b.links.ended_aborted, 1);
    struct save again;
    assert_int_equal(begin(f, &f->b, r2, 40, &again), CAIRN_E_ABORTED);
    assert_int_equal(begin(f, &f->b, r2, 30, &again), CAIRN_E_EXISTS);
    commit_step_of(f, &f->b, &r2, 1, 50);
    member_leave(r2);

    /* A hung daemon that wakes up must see that it was replaced: its decision is refused. */
    double_let_go(&f->a.links);
    turn_until(&f->a, &s.ended);
    assert_int_equal(s.code, CAIRN_E_ABORTED);
    member_leave(r);
}

void a_lost_lease_is_taken_again(void **state)
{
    struct fixture *f = *state;
    struct machine *m = &f->a;
    struct member *r;

    machine_start(f, m, "n0", 1, 10000);
    assert_int_equal(join(f, m, "j", "a", 0, 1, false, &r), 0);
    expire_leases(f);
    turn_for(m, 1500); /* the next keep-alive tells */
    assert_int_equal(member_check(r, &f->err), 0);
    commit_step_of(f, m, &r, 1, 40);
    machine_start(f, &f->b, "n1", 2, 10000);
    struct member *x = NULL;
    assert_int_equal(join(f, &f->b, "j", "b", 0, 1, true, &x), CAIRN_E_BUSY);
    member_leave(r);
}

void a_job_lost_to_another_node(void **state)
{
    struct fixture *f = *state;
    struct member *r, *x;
    struct save s;

    machine_start(f, &f->a, "n0", 1, 10000);
    machine_start(f, &f->b, "n1", 2, 10000);
    f->a.links.hold_drains = true;
    assert_int_equal(join(f, &f->a, "j", "a", 0, 1, false, &r), 0);
    assert_int_equal(begin(f, &f->a, r, 40, &s), 0);
    fill(f, &s);
    turn_for(&f->a, 100);
    expire_leases(f); /* n0 was cut off for a while */
    assert_int_equal(join(f, &f->b, "j", "b", 0, 1, false, &x), 0);
    assert_string_equal(fate(f, &f->b, "j", 40, 1), "aborted");
    turn_until(&f->a, &s.ended);
    assert_int_equal(s.code, CAIRN_E_ABORTED);
    assert_non_null(strstr(s.message, "node n1 coordinates the job now"));
    assert_int_equal(member_check(r, &f->err), CAIRN_E_FENCED);
    assert_int_equal(begin(f, &f->a, r, 50, &s), CAIRN_E_FENCED);
    commit_step_of(f, &f->b, &x, 1, 50);
    member_leave(r);
    member_leave(x);
}
