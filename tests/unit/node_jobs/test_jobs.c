/* SPDX-License-Identifier: Apache-2.0 */
/* Saves through jobs. Catches: a commit told that is not in the metadata, a rank that hangs on one that skips, dies or
 * is late, a save that ends while a drain still reads its pages, a step that is saved twice. */
#include "fixture.h"

#include "tests.h"

#include <string.h>

static void two_ranks_commit(void **state)
{
    struct fixture *f = *state;
    struct machine *m = &f->a;
    struct member *r[2];
    struct save s;
    struct checkpoint *c;
    uint64_t step, inc;
    struct job_status st[2];

    machine_start(f, m, "n0", 1, 10000);
    assert_int_equal(join(f, m, "j", "a", 0, 2, false, &r[0]), 0);
    assert_int_equal(join(f, m, "j", "a", 1, 2, false, &r[1]), 0);
    commit_step_of(f, m, r, 2, 40);
    assert_int_equal(begin(f, m, r[0], 40, &s), CAIRN_E_EXISTS); /* also while its decision is being copied */
    assert_string_equal(fate(f, m, "j", 40, 1), "committed");
    for (int i = 0; i < 100 && m->links.ended == 0; i++)
        turn_for(m, 10); /* the decision's copy is the last that goes into the streams */
    assert_int_equal(m->links.ended, 1);
    assert_int_equal(m->links.ended_aborted, 0);

    assert_int_equal(open_step(f, m, NULL, CAIRN_LATEST, 5000, &step, &inc, &c), 0);
    assert_int_equal(step, 40);
    assert_int_equal(inc, 1);
    assert_int_equal(c->root.world_size, 2);
    assert_int_equal(c->manifests[1].rank, 1);
    assert_int_equal(c->decision.plain_bytes, 128);
    checkpoint_unref(c);
    assert_int_equal(open_step(f, m, NULL, 41, 5000, &step, &inc, &c), CAIRN_E_NOT_FOUND);
    assert_non_null(strstr(f->err.message, "41"));

    assert_int_equal(begin(f, m, r[0], 40, &s), CAIRN_E_EXISTS);
    assert_int_equal(begin(f, m, r[0], 30, &s), CAIRN_E_EXISTS);
    assert_int_equal(begin(f, m, r[0], CAIRN_LATEST, &s), CAIRN_E_INVAL);
    assert_int_equal(jobs_status(m->jobs, st, 2), 1);
    assert_int_equal(st[0].committed, 1);
    assert_int_equal(st[0].last_committed_step, 40);
    assert_int_equal(st[0].members, 2);
    uint64_t before = database_revision(f);
    commit_step_of(f, m, r, 2, 41);
    assert_int_equal(database_revision(f) - before, 2); /* the intent and the decision, whatever the number of ranks */
    member_leave(r[0]);
    member_leave(r[1]);
}

static void a_drop_frees_the_other(void **state)
{
    struct fixture *f = *state;
    struct machine *m = &f->a;
    struct member *r[2];
    struct save s0, s1, again;

    machine_start(f, m, "n0", 1, 10000);
    m->links.hold_drains = true;
    assert_int_equal(join(f, m, "j", "a", 0, 2, false, &r[0]), 0);
    assert_int_equal(join(f, m, "j", "a", 1, 2, false, &r[1]), 0);
    assert_int_equal(begin(f, m, r[0], 40, &s0), 0);
    assert_int_equal(begin(f, m, r[0], 40, &again), CAIRN_E_EXISTS);
    fill(f, &s0);
    assert_int_equal(begin(f, m, r[1], 40, &s1), 0);
    save_drop(s1.save, "no room");
    assert_false(s1.outcome);
    turn_until(m, &s0.ended);
    turn_until(m, &s1.ended);
    assert_int_equal(s0.code, CAIRN_E_ABORTED);
    assert_string_equal(s0.message, "rank 1 gave up step 40: no room");
    assert_int_equal(begin(f, m, r[1], 40, &s1), CAIRN_E_ABORTED);
    assert_non_null(strstr(f->err.message, "no room"));
    m->links.hold_drains = false;
    commit_step_of(f, m, r, 2, 41);
    assert_string_equal(fate(f, m, "j", 40, 1), "aborted");
    assert_non_null(strstr(f->err.message, "no room"));
    member_leave(r[0]);
    member_leave(r[1]);
}

static void a_rank_that_goes_on_gives_up(void **state)
{
    struct fixture *f = *state;
    struct machine *m = &f->a;
    struct member *r[2];
    struct save s0, s1, late;

    machine_start(f, m, "n0", 1, 60000);
    assert_int_equal(join(f, m, "j", "a", 0, 2, false, &r[0]), 0);
    assert_int_equal(join(f, m, "j", "a", 1, 2, false, &r[1]), 0);
    assert_int_equal(begin(f, m, r[0], 40, &s0), 0);
    fill(f, &s0);
    turn_for(m, 50);
    assert_false(s0.outcome);
    assert_int_equal(begin(f, m, r[1], 41, &s1), 0); /* its daemon was away when 40 began */
    turn_until(m, &s0.ended);
    assert_int_equal(s0.code, CAIRN_E_ABORTED);
    assert_string_equal(s0.message, "rank 1 gave up step 40: it went on to step 41");
    /* One that has begun both is slow with the first, and no more. */
    assert_int_equal(begin(f, m, r[0], 41, &s0), 0);
    assert_int_equal(begin(f, m, r[0], 42, &late), 0);
    fill(f, &s0);
    fill(f, &s1);
    turn_until(m, &s0.ended);
    turn_until(m, &s1.ended);
    assert_int_equal(s0.code, 0);
    save_drop(late.save, "enough");
    turn_until(m, &late.ended);
    member_leave(r[0]);
    member_leave(r[1]);
}

static void a_death_before_filled_aborts(void **state)
{
    struct fixture *f = *state;
    struct machine *m = &f->a;
    struct member *r[2];
    struct save s0, s1;

    machine_start(f, m, "n0", 1, 10000);
    assert_int_equal(join(f, m, "j", "a", 0, 2, false, &r[0]), 0);
    assert_int_equal(join(f, m, "j", "a", 1, 2, false, &r[1]), 0);
    assert_int_equal(begin(f, m, r[0], 40, &s0), 0);
    assert_int_equal(begin(f, m, r[1], 40, &s1), 0);
    fill(f, &s0);
    turn_for(m, 50);
    member_leave(r[1]);
    turn_until(m, &s0.ended);
    turn_until(m, &s1.ended);
    assert_non_null(strstr(s0.message, "rank 1 gave up step 40: its session ended"));

    /* After filled the snapshot is the daemon's. The rank is free again. */
    assert_int_equal(join(f, m, "j", "a", 1, 2, false, &r[1]), 0);
    m->links.hold_drains = true;
    assert_int_equal(begin(f, m, r[0], 50, &s0), 0);
    assert_int_equal(begin(f, m, r[1], 50, &s1), 0);
    fill(f, &s0);
    fill(f, &s1);
    member_leave(r[0]);
    member_leave(r[1]);
    turn_for(m, 50);
    assert_false(s0.outcome || s0.ended);
    double_let_go(&m->links);
    turn_until(m, &s0.ended);
    turn_until(m, &s1.ended);
    assert_int_equal(s0.code, 0);
    assert_string_equal(fate(f, m, "j", 50, 1), "committed");
}

static void the_deadline_names_the_rank(void **state)
{
    struct fixture *f = *state;
    struct machine *m = &f->a;
    struct member *r[2];
    struct save s;
    char why[256];

    machine_start(f, m, "n0", 1, 400);
    assert_int_equal(join(f, m, "j", "a", 0, 2, false, &r[0]), 0);
    assert_int_equal(join(f, m, "j", "a", 1, 2, false, &r[1]), 0);
    m->links.hold_drains = true;
    assert_int_equal(begin(f, m, r[0], 40, &s), 0);
    fill(f, &s);
    turn_for(m, 50);
    save_why(s.save, why, sizeof why);
    assert_string_equal(why, "step 40, rank 0 is filled: FILLING: rank 1 did not fill; 0 of 1 parts durable");
    turn_until(m, &s.ended);
    assert_string_equal(s.message, "rank 1 did not fill step 40 within 400 ms");
    assert_int_equal(m->links.cancelled, 1);
    turn_for(m, 100);
    assert_string_equal(fate(f, m, "j", 40, 1), "aborted");
    assert_int_equal(m->links.ended_aborted, 1);
    member_leave(r[0]);
    member_leave(r[1]);
}

/* The ranks of an import: together they take longer than the deadline. Catches one that counts from the first. */
static void ranks_come_one_after_another(void **state)
{
    struct fixture *f = *state;
    struct machine *m = &f->a;
    struct member *r[3];
    struct save s[3];

    machine_start(f, m, "n0", 1, 1000);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(join(f, m, "j", "a", i, 3, false, &r[i]), 0);
        assert_int_equal(begin(f, m, r[i], 40, &s[i]), 0);
        fill(f, &s[i]);
        turn_for(m, i < 2 ? 600 : 0);
    }
    turn_until(m, &s[0].ended);
    assert_int_equal(s[0].code, 0);
    for (uint32_t i = 0; i < 3; i++) {
        turn_until(m, &s[i].ended);
        member_leave(r[i]);
    }
}

/* The commit does not wait for what is late; pages, streams and the save do (catches: a save that is freed under its
 * drain, a stream that is closed while late fragments are on their way). */
static void a_tail_outlives_the_commit(void **state)
{
    struct fixture *f = *state;
    struct machine *m = &f->a;
    struct member *r;
    struct save s;

    machine_start(f, m, "n0", 1, 10000);
    m->links.hold_tails = true;
    assert_int_equal(join(f, m, "j", "a", 0, 1, false, &r), 0);
    assert_int_equal(begin(f, m, r, 40, &s), 0);
    fill(f, &s);
    turn_until(m, &s.outcome);
    assert_int_equal(s.code, 0);
    assert_string_equal(fate(f, m, "j", 40, 1), "committed");
    turn_for(m, 50);
    assert_false(s.ended);
    assert_int_equal(m->links.ended, 0);
    double_let_go(&m->links);
    turn_until(m, &s.ended);
    assert_int_equal(m->links.ended, 1);
    m->links.hold_tails = true; /* and one that the daemon's stop cancels */
    assert_int_equal(begin(f, m, r, 41, &s), 0);
    fill(f, &s);
    turn_until(m, &s.outcome);
    member_leave(r);
    machine_stop(m);
    assert_true(s.ended);
}

/* Parts are stored before their snapshot is filled, and count for nothing until then (catches: a rank that is reported
 * filled or durable too early, a drain that is begun twice, pages that a dropped save gives back while they are read).
 */
static void parts_go_before_filled(void **state)
{
    struct fixture *f = *state;
    struct machine *m = &f->a;
    struct member *r[2];
    struct save s0, s1;
    char why[256];

    machine_start(f, m, "n0", 1, 10000);
    assert_int_equal(join(f, m, "j", "a", 0, 2, false, &r[0]), 0);
    assert_int_equal(join(f, m, "j", "a", 1, 2, false, &r[1]), 0);
    assert_int_equal(begin(f, m, r[0], 40, &s0), 0);
    put_in_place(f, &s0, 1); /* before the intent is known */
    assert_int_equal(begin(f, m, r[1], 40, &s1), 0);
    fill(f, &s1);
    turn_until(m, &s1.durable);
    assert_int_equal(m->links.started, 2);
    put_in_place(f, &s0, 1);
    assert_int_equal(m->links.in_place, 1);
    turn_for(m, 50);
    save_why(s1.save, why, sizeof why);
    assert_non_null(strstr(why, "rank 0 did not fill"));
    assert_false(s0.durable || s0.parts);
    fill(f, &s0);
    turn_until(m, &s0.ended);
    turn_until(m, &s1.ended);
    assert_int_equal(s0.code, 0);
    assert_true(s0.durable && s0.parts);
    assert_int_equal(m->links.started, 2);

    m->links.hold_drains = true;
    for (unsigned leave = 0; leave < 2; leave++) { /* it gives the step up; its process ends */
        assert_int_equal(begin(f, m, r[0], 41 + leave, &s0), 0);
        assert_int_equal(begin(f, m, r[1], 41 + leave, &s1), 0);
        put_in_place(f, &s0, 1);
        for (unsigned i = 0; i < 500 && m->links.started < 3 + leave; i++)
            turn_for(m, 10);
        assert_int_equal(m->links.started, 3 + leave);
        assert_int_equal(m->links.reading, 1);
        if (leave)
            member_leave(r[0]);
        else
            save_drop(s0.save, "the rank gave the step up");
        assert_int_equal(m->links.cancelled, 1 + leave);
        assert_false(s0.ended);
        turn_until(m, &s0.ended);
        turn_until(m, &s1.ended);
        assert_int_equal(m->links.reading, 0);
        assert_true(s0.code < 0 && s1.code < 0);
        assert_string_equal(fate(f, m, "j", 41 + leave, 1), "aborted");
    }
    member_leave(r[1]);
}

static void a_failed_drain_aborts(void **state)
{
    struct fixture *f = *state;
    struct machine *m = &f->a;
    struct member *r;
    struct save s;

    machine_start(f, m, "n0", 1, 10000);
    m->links.fail_rank = 0;
    assert_int_equal(join(f, m, "j", "a", 0, 1, false, &r), 0);
    assert_int_equal(begin(f, m, r, 40, &s), 0);
    fill(f, &s);
    turn_until(m, &s.ended);
    assert_string_equal(s.message, "rank 0 could not store its shard of step 40: peer p0 is full");
    m->links.fail_rank = -1;
    commit_step_of(f, m, &r, 1, 41);
    member_leave(r);
}

static void a_silent_engine_is_read_before_anybody_is_told(void **state)
{
    struct fixture *f = *state;
    struct machine *m = &f->a;
    struct member *r;
    struct save s;

    machine_start(f, m, "n0", 1, 15000);
    m->links.hold_drains = true;
    assert_int_equal(join(f, m, "j", "a", 0, 1, false, &r), 0);
    assert_int_equal(begin(f, m, r, 40, &s), 0);
    fill(f, &s);
    turn_for(m, 100);
    struct sqlite3 *db = lock_database(f);
    double_let_go(&m->links);
    turn_for(m, 1000); /* some tries go without an answer */
    assert_true(s.durable && !s.outcome);
    unlock_database(db);
    turn_until(m, &s.ended);
    assert_int_equal(s.code, 0);
    assert_string_equal(fate(f, m, "j", 40, 1), "committed");
    member_leave(r);
}

static void an_engine_that_stays_silent_ends_with_the_deadline(void **state)
{
    struct fixture *f = *state;
    struct machine *m = &f->a;
    struct member *r;
    struct save s, s2;

    machine_start(f, m, "n0", 1, 600);
    assert_int_equal(join(f, m, "j", "a", 0, 1, false, &r), 0);
    struct sqlite3 *db = lock_database(f);
    assert_int_equal(begin(f, m, r, 40, &s), 0);
    fill(f, &s);
    turn_until(m, &s.ended);
    assert_int_equal(s.code, CAIRN_E_UNAVAILABLE); /* it may come through late, and a successor may adopt it */
    assert_string_equal(s.message, "the intent of step 40 was not written within 600 ms; the metadata engine did not "
                                   "answer whether it is aborted");
    assert_int_equal(m->links.started, 0); /* nothing was sent that nobody could find */
    for (int i = 0; i < 150 && m->links.ended == 0; i++)
        turn_for(m, 100);
    assert_int_equal(m->links.ended, 1); /* the abort that is not answered is given up too */
    unlock_database(db);
    for (int i = 0; i < 100 && strcmp(fate(f, m, "j", 40, 1), "undecided") == 0; i++)
        turn_for(m, 100);
    assert_string_not_equal(fate(f, m, "j", 40, 1), "undecided"); /* an intent that came through late is swept */
    int c = CAIRN_E_UNAVAILABLE;                                  /* the lease ran out meanwhile: it is taken again */
    for (int i = 0; i < 100 && c == CAIRN_E_UNAVAILABLE; i++) {
        turn_for(m, 100);
        c = begin(f, m, r, 50, &s2);
    }
    assert_int_equal(c, 0);
    fill(f, &s2);
    turn_until(m, &s2.ended);
    assert_int_equal(s2.code, 0);
    member_leave(r);
}

static void stopping_ends_everything(void **state)
{
    struct fixture *f = *state;
    struct machine *m = &f->a;
    struct member *r;
    struct save s;

    machine_start(f, m, "n0", 1, 10000);
    m->links.hold_drains = true;
    assert_int_equal(join(f, m, "j", "a", 0, 1, false, &r), 0);
    assert_int_equal(begin(f, m, r, 40, &s), 0);
    fill(f, &s);
    turn_for(m, 50);
    member_leave(r);
    machine_stop(m);
    assert_true(s.ended);
    assert_int_equal(s.code, CAIRN_E_ABORTED);
    assert_string_equal(s.message, "cairnd on node n0 is stopping");
}

#define T(f_) cmocka_unit_test_setup_teardown(f_, fixture_setup, fixture_teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(two_ranks_commit),
        T(a_drop_frees_the_other),
        T(a_rank_that_goes_on_gives_up),
        T(a_death_before_filled_aborts),
        T(the_deadline_names_the_rank),
        T(ranks_come_one_after_another),
        T(a_tail_outlives_the_commit),
        T(parts_go_before_filled),
        T(a_failed_drain_aborts),
        T(a_silent_engine_is_read_before_anybody_is_told),
        T(an_engine_that_stays_silent_ends_with_the_deadline),
        T(stopping_ends_everything),
        T(a_lost_lease_is_taken_again),
        T(a_job_lost_to_another_node),
        T(a_replaced_coordinator_commits_nothing),
        T(starts_are_adopted_raised_or_refused),
        T(two_nodes_commit_together),
        T(a_node_takes_so_many_ranks),
        T(reports_go_through_a_parent),
        T(the_coordinator_dies),
        T(a_crew_daemon_is_restarted),
        T(a_restarted_daemon_aborts_leftovers),
        T(ranks_go_on_under_a_restarted_daemon),
        T(a_rank_that_does_not_come_back_is_named),
        T(what_was_decided_is_said_to_who_comes_back),
        T(a_new_start_waits_a_lease_for_leftovers),
        T(a_stop_gives_nothing_up),
        T(a_take_over_fences),
        T(all_ranks_follow_one_pin),
        T(the_pin_falls_back),
        T(what_a_start_left_behind_is_no_base),
        T(what_others_left_behind_is_no_base),
        T(what_others_found_lost_is_no_base),
        T(the_pin_counts_fragments),
        T(peers_away_are_no_reason_to_start_from_scratch),
        T(a_moved_pin_must_be_loaded),
        T(damaged_records_are_named),
        T(a_rule_deletes_and_peers_are_waited_for),
        T(what_is_held_stays),
        T(a_restore_holds_until_it_ends),
        T(a_hold_and_a_tombstone_exclude_each_other),
        T(another_start_finishes_a_deletion),
        T(peers_that_are_away_keep_the_tombstone),
        T(the_one_before_stays_until_the_next_is_full),
        T(the_rule_of_a_job),
        T(ranks_that_disagree_are_named),
        T(by_policy_they_commit_nothing),
        T(a_comparison_ends_with_the_deadline),
        T(latest_finite_is_the_newest_that_is),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
