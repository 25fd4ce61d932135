/* SPDX-License-Identifier: Apache-2.0 */
/* Starts of a job and of daemons. Catches: two starts that save side by side, two nodes that both coordinate, intents
 * of a dead daemon that stay undecided for ever. */
#include "fixture.h"

#include "daemon/node/job_internal.h"
#include "tests.h"

#include <stdio.h>
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

struct many { /* joins on their way */
    struct join_request r;
    unsigned *done;
    int code;
    char message[512];
    struct member *member;
};

static void many_joined(struct join_request *r, int code, const struct cairn_error *err, struct member *member)
{
    struct many *j = r->arg;

    ++*j->done;
    j->code = code;
    j->member = member;
    if (code < 0)
        snprintf(j->message, sizeof j->message, "%s", err->message);
}

static void join_many(struct machine *m, struct many *j, uint32_t rank, unsigned *done)
{
    *j = (struct many){
        .r = {.rank = rank, .world_size = RECORD_MAX_RANKS + 1, .timeout_ms = 10000, .done = many_joined, .arg = j},
        .done = done};
    strcpy(j->r.job, "j");
    strcpy(j->r.start_id, "a");
    jobs_join(m->jobs, &j->r);
}

/* What a node's key can name is all that it takes (catches: a rank that nobody hears of, a key that is written past its
 * end). A place that becomes free is taken again. */
void a_node_takes_so_many_ranks(void **state)
{
    struct fixture *f = *state;
    static struct many j[RECORD_MAX_RANKS + 1];
    unsigned done = 0, refused = 0;

    machine_start(f, &f->a, "n0", 1, 10000);
    for (uint32_t i = 0; i <= RECORD_MAX_RANKS; i++)
        join_many(&f->a, &j[i], i, &done);
    for (unsigned i = 0; i < 1000 && done <= RECORD_MAX_RANKS; i++)
        turn_for(&f->a, 10);
    assert_int_equal(done, RECORD_MAX_RANKS + 1);
    for (uint32_t i = 0; i <= RECORD_MAX_RANKS; i++) {
        if (j[i].code == 0)
            continue;
        refused++;
        assert_int_equal(j[i].code, CAIRN_E_TOO_LARGE);
        assert_non_null(strstr(j[i].message, "job j has 256 ranks on node n0 already"));
        member_leave(j[(i + 1) % RECORD_MAX_RANKS].member);
        j[(i + 1) % RECORD_MAX_RANKS].member = NULL;
        assert_int_equal(join(f, &f->a, "j", "a", i, RECORD_MAX_RANKS + 1, false, &j[i].member), 0);
    }
    assert_int_equal(refused, 1);
    for (uint32_t i = 0; i <= RECORD_MAX_RANKS; i++)
        if (j[i].member)
            member_leave(j[i].member);
}

void two_nodes_commit_together(void **state)
{
    struct fixture *f = *state;
    struct member *r0, *r1, *x = NULL;
    struct save s0, s1;

    machine_start(f, &f->a, "n0", 1, 10000);
    machine_start(f, &f->b, "n1", 2, 10000);
    turn_together(f);
    assert_int_equal(join(f, &f->a, "j", "a", 0, 2, false, &r0), 0);
    assert_int_equal(join(f, &f->b, "j", "a", 1, 2, false, &r1), 0);
    assert_int_equal(member_incarnation(r1), 1);
    assert_int_equal(join(f, &f->b, "j", "a", 0, 2, false, &x), CAIRN_E_EXISTS);
    assert_non_null(strstr(f->err.message, "node n0"));
    for (uint64_t step = 40; step < 44; step++) {
        assert_int_equal(begin(f, &f->b, r1, step, &s1), 0);
        assert_int_equal(begin(f, &f->a, r0, step, &s0), 0);
        fill(f, &s1);
        turn_for(&f->a, 20);
        assert_false(s1.outcome);
        fill(f, &s0);
        turn_until(&f->a, &s0.ended);
        turn_until(&f->b, &s1.ended);
        assert_int_equal(s0.code, 0);
        assert_int_equal(s1.code, 0);
        assert_string_equal(fate(f, &f->b, "j", step, 1), "committed");
    }
    /* A drop on one node frees the other at once. */
    assert_int_equal(begin(f, &f->a, r0, 50, &s0), 0);
    assert_int_equal(begin(f, &f->b, r1, 50, &s1), 0);
    fill(f, &s0);
    turn_for(&f->a, 50);
    save_drop(s1.save, "its loop skips it");
    turn_until(&f->b, &s1.ended);
    turn_until(&f->a, &s0.ended);
    assert_int_equal(s0.code, CAIRN_E_ABORTED);
    assert_string_equal(s0.message, "rank 1 gave up step 50: its loop skips it");
    turn_for(&f->a, 50);
    assert_string_equal(fate(f, &f->a, "j", 50, 1), "aborted");
    member_leave(r0);
    member_leave(r1);
}

/* A letter as the coordinator would send it. */
static void place(struct machine *from, struct machine *to, const struct machine *parent)
{
    static struct crew_letter l;

    l = (struct crew_letter){.type = CREW_PLACE, .from = *mesh_address(from->mesh), .job = "j"};
    l.place.coordinates = true;
    l.place.incarnation = 1;
    l.place.parent = *mesh_address(parent->mesh);
    jobs_hear(to->jobs, &l);
}

/* Catches: a relay that keeps a report to itself, one that loses the way back, and ranks that wait for a dead parent.
 */
void reports_go_through_a_parent(void **state)
{
    struct fixture *f = *state;
    struct member *r0, *r1, *r2;
    struct mesh_status before, after;
    struct save s0, s1, s2;

    machine_start(f, &f->a, "n0", 1, 60000);
    machine_start(f, &f->b, "n1", 2, 60000);
    machine_start(f, &f->c, "n2", 3, 60000);
    f->a.beside = &f->b;
    f->b.beside = &f->c;
    f->c.beside = &f->a;
    assert_int_equal(join(f, &f->a, "j", "a", 0, 3, false, &r0), 0);
    assert_int_equal(join(f, &f->b, "j", "a", 1, 3, false, &r1), 0);
    assert_int_equal(join(f, &f->c, "j", "a", 2, 3, false, &r2), 0);
    turn_for(&f->a, 100);
    for (uint64_t step = 40; step < 42; step++) {
        place(&f->a, &f->c, &f->b); /* until the next greeting */
        mesh_status_of(f->b.mesh, &before);
        assert_int_equal(begin(f, &f->c, r2, step, &s2), 0);
        assert_int_equal(begin(f, &f->a, r0, step, &s0), 0);
        assert_int_equal(begin(f, &f->b, r1, step, &s1), 0);
        fill(f, &s0);
        fill(f, &s1);
        fill(f, &s2);
        if (step == 41) /* the parent dies, its own rank durable before: repeats go straight to the coordinator */
            for (int i = 0; i < 100 && !s1.durable; i++)
                turn_for(&f->a, 20);
        if (step == 41)
            f->a.beside = &f->c;
        turn_until(&f->a, &s0.ended);
        turn_until(&f->c, &s2.ended);
        assert_int_equal(s0.code, 0);
        assert_int_equal(s2.code, 0);
        mesh_status_of(f->b.mesh, &after);
        assert_true(after.received > before.received && after.sent > before.sent);
    }
    f->a.beside = &f->b;
    turn_until(&f->b, &s1.ended);
    assert_int_equal(s1.code, 0);
    member_leave(r0);
    member_leave(r1);
    member_leave(r2);
}

/* The coordinator dies with the other node's shard durable and its own filled nowhere else: the other node succeeds it.
 */
void the_coordinator_dies(void **state)
{
    struct fixture *f = *state;
    struct member *r0, *r1, *again;
    struct save s0, s1;

    machine_start(f, &f->a, "n0", 1, 10000);
    machine_start(f, &f->b, "n1", 2, 10000);
    turn_together(f);
    assert_int_equal(join(f, &f->a, "j", "a", 0, 2, false, &r0), 0);
    assert_int_equal(join(f, &f->b, "j", "a", 1, 2, false, &r1), 0);
    f->a.links.hold_drains = true;
    assert_int_equal(begin(f, &f->a, r0, 40, &s0), 0);
    assert_int_equal(begin(f, &f->b, r1, 40, &s1), 0);
    fill(f, &s0);
    fill(f, &s1);
    for (int i = 0; i < 100 && !s1.durable; i++)
        turn_for(&f->a, 20);
    assert_true(s1.durable && !s1.outcome);
    f->b.beside = NULL; /* n0 is dead from here on */
    turn_until(&f->b, &s1.ended);
    assert_int_equal(s1.code, CAIRN_E_ABORTED);
    assert_non_null(strstr(s1.message, "rank 0 is lost with step 40"));
    turn_for(&f->b, 100);
    assert_string_equal(fate(f, &f->b, "j", 40, 1), "aborted");
    /* The rank comes back on the node that is left. */
    assert_int_equal(join(f, &f->b, "j", "a", 0, 2, false, &again), 0);
    struct member *both[] = {again, r1};
    commit_step_of(f, &f->b, both, 2, 50);
    member_leave(again);
    member_leave(r1);

    /* The dead one was only cut off: its decision is refused, and it follows. */
    f->a.beside = &f->b;
    double_let_go(&f->a.links);
    turn_until(&f->a, &s0.ended);
    assert_int_equal(s0.code, CAIRN_E_ABORTED);
    member_leave(r0);
}

/* The daemon of a node that does not coordinate is restarted within its lease: what it had in memory is lost, and the
 * others must not wait for it until the deadline. */
void a_crew_daemon_is_restarted(void **state)
{
    struct fixture *f = *state;
    struct member *r0, *r1, *again;
    static struct save s1; /* its daemon is stopped after this function */
    struct save s0;

    machine_start(f, &f->a, "n0", 1, 60000);
    machine_start(f, &f->b, "n1", 2, 60000);
    turn_together(f);
    assert_int_equal(join(f, &f->a, "j", "a", 0, 2, false, &r0), 0);
    assert_int_equal(join(f, &f->b, "j", "a", 1, 2, false, &r1), 0);
    f->b.links.hold_drains = true;
    assert_int_equal(begin(f, &f->a, r0, 40, &s0), 0);
    assert_int_equal(begin(f, &f->b, r1, 40, &s1), 0);
    fill(f, &s0);
    fill(f, &s1);
    for (int i = 0; i < 100 && !s0.durable; i++)
        turn_for(&f->a, 20);
    f->b.beside = NULL; /* n1 is dead from here on, and comes back as another */
    f->a.beside = &f->c;
    f->c.beside = &f->a;
    machine_start(f, &f->c, "n1", 3, 60000);
    assert_int_equal(join(f, &f->c, "j", "a", 1, 2, false, &again), 0);
    turn_until(&f->a, &s0.ended);
    assert_int_equal(s0.code, CAIRN_E_ABORTED);
    assert_non_null(strstr(s0.message, "rank 1 is lost with step 40: node n1 speaks for it no more"));
    struct member *both[] = {r0, again};
    struct save x0, x1;
    assert_int_equal(begin(f, &f->a, both[0], 50, &x0), 0);
    assert_int_equal(begin(f, &f->c, both[1], 50, &x1), 0);
    fill(f, &x0);
    fill(f, &x1);
    turn_until(&f->a, &x0.ended);
    turn_until(&f->c, &x1.ended);
    assert_int_equal(x0.code, 0);
    member_leave(r0);
    member_leave(again);
    member_leave(r1);
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
    assert_string_equal(fate(f, &f->b, "j", 40, 1), "undecided"); /* its snapshot may be handed back */
    turn_for(&f->b, 4000);
    assert_string_equal(fate(f, &f->b, "j", 40, 1), "aborted");
    assert_non_null(strstr(f->err.message, "rank 0 is lost with step 40: no node has its snapshot"));
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
    assert_non_null(strstr(s.message, "no node has its snapshot"));
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

/* Catches: a trainer that restarts with its daemon and is made to wait until the deadline for ranks that cannot come.
 */
void a_new_start_waits_a_lease_for_leftovers(void **state)
{
    struct fixture *f = *state;
    struct member *r, *next;
    struct save s;

    killed_while_draining(f, 1, &r);
    member_leave(r);
    assert_int_equal(join(f, &f->b, "j", "b", 0, 1, true, &next), 0);
    assert_int_equal(member_incarnation(next), 2);
    turn_for(&f->b, 4000); /* a lease: another node might have had it */
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
    turn_together(f);
    struct member *x = NULL;
    assert_int_equal(join(f, &f->b, "j", "b", 0, 1, false, &x), CAIRN_E_BUSY); /* its key was put again */
    assert_non_null(strstr(f->err.message, "node n0 has ranks of it"));
    member_leave(r);
    assert_int_equal(join(f, &f->b, "j", "b", 0, 1, false, &x), 0);
    member_leave(x);
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
    assert_int_equal(member_incarnation(x), 2);
    assert_string_equal(fate(f, &f->b, "j", 40, 1), "undecided");
    /* It comes back in time: what it holds of the older incarnation is committed by the new coordinator. */
    turn_together(f);
    turn_for(&f->a, 1500);
    double_let_go(&f->a.links);
    turn_until(&f->a, &s.ended);
    assert_int_equal(s.code, 0);
    assert_string_equal(fate(f, &f->b, "j", 40, 1), "committed");
    assert_int_equal(member_check(r, &f->err), CAIRN_E_FENCED);
    assert_int_equal(begin(f, &f->a, r, 50, &s), CAIRN_E_FENCED);
    commit_step_of(f, &f->b, &x, 1, 50);
    member_leave(r);
    member_leave(x);
}

/* One that was cut off for longer than its lease decides before it has looked at anything again. The incarnation is the
 * same and nothing is pinned: the coordinator's key alone refuses its commit. */
void a_replaced_coordinator_commits_nothing(void **state)
{
    struct fixture *f = *state;
    struct member *r0, *r1;
    struct save s0, s1;

    machine_start(f, &f->a, "n0", 1, 10000);
    machine_start(f, &f->b, "n1", 2, 10000);
    turn_together(f);
    assert_int_equal(join(f, &f->a, "j", "a", 0, 2, false, &r0), 0);
    assert_int_equal(join(f, &f->b, "j", "a", 1, 2, false, &r1), 0);
    f->a.links.hold_drains = true;
    assert_int_equal(begin(f, &f->a, r0, 40, &s0), 0);
    assert_int_equal(begin(f, &f->b, r1, 40, &s1), 0);
    fill(f, &s0);
    fill(f, &s1);
    for (int i = 0; i < 100 && !s1.durable; i++)
        turn_for(&f->a, 20);
    turn_for(&f->a, 100); /* the report of n1 is there */
    f->a.beside = f->b.beside = NULL;
    expire_leases(f);
    turn_for(&f->b, 700); /* n1 sees it and claims the job; the rank of n0 has time until 1.5 leases */
    assert_string_equal(fate(f, &f->b, "j", 40, 1), "undecided");
    double_let_go(&f->a.links);
    turn_for(&f->a, 50);
    assert_string_equal(fate(f, &f->b, "j", 40, 1), "undecided");
    assert_false(s0.ended);
    turn_together(f); /* what n0 says again is the new coordinator's to decide */
    turn_until(&f->a, &s0.ended);
    turn_until(&f->b, &s1.ended);
    assert_int_equal(s0.code, s1.code);
    member_leave(r0);
    member_leave(r1);
}
