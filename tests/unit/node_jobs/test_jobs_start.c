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
    assert_string_equal(fate(f, &f->b, "j", 40, 1), "undecided"); /* its rank may come back for it */
    for (unsigned i = 0; i < 200 && strcmp(fate(f, &f->b, "j", 40, 1), "undecided") == 0; i++)
        turn_for(&f->b, 100);
    assert_string_equal(fate(f, &f->b, "j", 40, 1), "aborted");
    assert_string_equal(f->err.message,
                        "cairnd on node n0 restarted before it was durable, and its ranks did not come back");
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

/* A daemon that was killed while its ranks had filled the step; its successor on f->b has been joined by all. */
static void killed_while_draining(struct fixture *f, uint32_t world, struct member **ranks)
{
    static struct save old[2]; /* they end with the fixture, after the test */
    struct member *before[2];

    machine_start(f, &f->a, "n0", 1, 10000);
    f->a.links.hold_drains = true;
    for (uint32_t i = 0; i < world; i++)
        assert_int_equal(join(f, &f->a, "j", "a", i, world, false, &before[i]), 0);
    for (uint32_t i = 0; i < world; i++)
        assert_int_equal(begin(f, &f->a, before[i], 40, &old[i]), 0);
    for (uint32_t i = 0; i < world; i++)
        fill(f, &old[i]);
    turn_for(&f->a, 200);
    assert_string_equal(fate(f, &f->a, "j", 40, 1), "undecided");
    machine_start(f, &f->b, "n0", 2, 10000);
    for (uint32_t i = 0; i < world; i++)
        assert_int_equal(join(f, &f->b, "j", "a", i, world, false, &ranks[i]), 0);
}

/* Catches: an intent that is there already and refused as EXISTS, a checkpoint that is swept under its ranks. */
void ranks_go_on_under_a_restarted_daemon(void **state)
{
    struct fixture *f = *state;
    struct member *r[2];
    struct save s[2], third;

    killed_while_draining(f, 2, r);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(resume(f, r[i], 40, &s[i]), 0);
    assert_int_equal(resume(f, r[0], 40, &third), CAIRN_E_EXISTS); /* once is enough */
    for (unsigned i = 0; i < 2; i++)
        fill(f, &s[i]);
    for (unsigned i = 0; i < 2; i++)
        turn_until(&f->b, &s[i].ended);
    assert_int_equal(s[0].code, 0);
    assert_string_equal(fate(f, &f->b, "j", 40, 1), "committed");
    assert_int_equal(f->b.links.started, 2);
    assert_int_equal(resume(f, r[0], 40, &third), 1);
    /* What was begun before its intent was written is begun anew. */
    assert_int_equal(resume(f, r[0], 50, &s[0]), 0);
    assert_int_equal(resume(f, r[1], 50, &s[1]), 0);
    fill(f, &s[0]);
    fill(f, &s[1]);
    turn_until(&f->b, &s[0].ended);
    turn_until(&f->b, &s[1].ended);
    assert_string_equal(fate(f, &f->b, "j", 50, 1), "committed");
    member_leave(r[0]);
    member_leave(r[1]);
}

void a_rank_that_does_not_come_back_is_named(void **state)
{
    struct fixture *f = *state;
    struct member *r[2];
    struct save s;

    killed_while_draining(f, 2, r);
    assert_int_equal(resume(f, r[0], 40, &s), 0);
    fill(f, &s);
    turn_until(&f->b, &s.ended);
    assert_int_equal(s.code, CAIRN_E_ABORTED);
    assert_non_null(strstr(s.message, "rank 1"));
    assert_non_null(strstr(s.message, "hand its snapshot back"));
    turn_for(&f->b, 200);
    assert_string_equal(fate(f, &f->b, "j", 40, 1), "aborted");
    member_leave(r[0]);
    member_leave(r[1]);
}

/* The daemon died between its decision and its ranks' hearing of it. */
void what_was_decided_is_said_to_who_comes_back(void **state)
{
    struct fixture *f = *state;
    struct member *before, *r;
    struct save s;

    machine_start(f, &f->a, "n0", 1, 10000);
    assert_int_equal(join(f, &f->a, "j", "a", 0, 1, false, &before), 0);
    commit_step_of(f, &f->a, &before, 1, 30);
    assert_int_equal(begin(f, &f->a, before, 40, &s), 0);
    save_drop(s.save, "why not");
    turn_until(&f->a, &s.ended);
    turn_for(&f->a, 200);
    machine_start(f, &f->b, "n0", 2, 10000);
    assert_int_equal(join(f, &f->b, "j", "a", 0, 1, false, &r), 0);
    assert_int_equal(resume(f, r, 30, &s), 1);
    assert_int_equal(resume(f, r, 40, &s), CAIRN_E_ABORTED);
    assert_non_null(strstr(f->err.message, "why not"));
    assert_int_equal(save_fate(r, 35, &f->err), CAIRN_E_NOT_FOUND);
    member_leave(r);
}

/* Catches: a trainer that restarts with its daemon and is made to wait for ranks that cannot come. */
void a_new_start_waits_for_no_leftovers(void **state)
{
    struct fixture *f = *state;
    struct member *r, *next;
    struct save s;

    killed_while_draining(f, 1, &r);
    member_leave(r);
    assert_int_equal(join(f, &f->b, "j", "b", 0, 1, true, &next), 0);
    assert_int_equal(member_incarnation(next), 2);
    turn_for(&f->b, 300);
    assert_string_equal(fate(f, &f->b, "j", 40, 1), "aborted");
    assert_int_equal(resume(f, next, 40, &s), 0); /* another incarnation's step 40 is another checkpoint */
    fill(f, &s);
    turn_until(&f->b, &s.ended);
    member_leave(next);
}

/* Catches: an ordered stop that decides for ranks which will go on under the next daemon. */
void a_stop_gives_nothing_up(void **state)
{
    struct fixture *f = *state;
    struct member *r, *r2;
    struct save s;

    machine_start(f, &f->a, "n0", 1, 10000);
    assert_int_equal(join(f, &f->a, "j", "a", 0, 1, false, &r), 0);
    assert_int_equal(begin(f, &f->a, r, 40, &s), 0);
    turn_for(&f->a, 200);
    jobs_leave(f->a.jobs);
    member_leave(r);
    turn_for(&f->a, 200);
    assert_string_equal(fate(f, &f->a, "j", 40, 1), "undecided");
    machine_stop(&f->a);
    machine_start(f, &f->b, "n0", 2, 10000);
    assert_int_equal(join(f, &f->b, "j", "a", 0, 1, false, &r2), 0);
    assert_int_equal(resume(f, r2, 40, &s), 0);
    fill(f, &s);
    turn_until(&f->b, &s.ended);
    assert_string_equal(fate(f, &f->b, "j", 40, 1), "committed");
    member_leave(r2);
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
