/* SPDX-License-Identifier: Apache-2.0 */
/* Retention. Catches: a deletion of what somebody reads or has pinned, a reader that begins on what is being deleted, a
 * deletion that nobody finishes after a crash, records that go while a peer still has files. */
#include "fixture.h"

#include "core/base/error.h"
#include "tests.h"

#include <stdio.h>
#include <string.h>

/* A job j with these steps committed by start a, two registered peers. */
static struct member *with_steps(struct fixture *f, struct machine *m, const uint64_t *steps)
{
    struct member *r;

    machine_start(f, m, "n0", 1, 10000);
    m->links.npeers = m->links.nregistered = 2;
    assert_int_equal(join(f, m, "j", "a", 0, 1, false, &r), 0);
    for (; *steps; steps++)
        commit_step_of(f, m, &r, 1, *steps);
    return r;
}

/* Turns until the step is that; the last look says what it is instead. */
static void wait_fate(struct fixture *f, struct machine *m, uint64_t step, const char *want)
{
    for (unsigned i = 0; i < 500 && strcmp(fate(f, m, "j", step, 1), want) != 0; i++)
        turn_for(m, 10);
    assert_string_equal(fate(f, m, "j", step, 1), want);
}

static int open_of(struct fixture *f, struct machine *m, uint64_t step, uint64_t *ret_step)
{
    struct checkpoint *c = NULL;

    int r = open_step(f, m, NULL, step, 3000, ret_step, NULL, &c);
    checkpoint_unref(c);
    return r;
}

void a_rule_deletes_and_peers_are_waited_for(void **state)
{
    struct fixture *f = *state;
    struct machine *m = &f->a;
    struct save s;
    uint64_t step = 0;

    f->rule = "last=2";
    struct member *r = with_steps(f, m, (uint64_t[]){10, 20, 30, 0});
    wait_fate(f, m, 10, "deleted");
    assert_string_equal(fate(f, m, "j", 20, 1), "committed");
    assert_int_equal(m->links.ended_aborted, 1); /* peers were told */
    assert_int_equal(open_of(f, m, 10, &step), CAIRN_E_NOT_FOUND);
    assert_non_null(strstr(f->err.message, "was deleted: the job keeps last=2"));
    assert_int_equal(open_of(f, m, CAIRN_LATEST, &step), 0);
    assert_int_equal(step, 30);

    double_forgotten(&m->links, "p0", 10);
    double_forgotten(&m->links, "p0", 10);
    double_forgotten(&m->links, "p1", 20); /* of one that is there: means nothing */
    turn_for(m, 100);
    assert_string_equal(fate(f, m, "j", 10, 1), "deleted"); /* p1 may have files of it */
    double_forgotten(&m->links, "p1", 10);
    wait_fate(f, m, 10, "absent");
    assert_string_equal(fate(f, m, "j", 20, 1), "committed");
    assert_int_equal(begin(f, m, r, 10, &s), CAIRN_E_EXISTS);
    commit_step_of(f, m, &r, 1, 40);
    wait_fate(f, m, 20, "deleted");
    member_leave(r);
}

void what_is_held_stays(void **state)
{
    struct fixture *f = *state;
    struct machine *m = &f->a;
    struct member *r = with_steps(f, m, (uint64_t[]){10, 20, 30, 40, 0}), *next;
    uint64_t step;

    assert_int_equal(change(f, m, CHANGE_DELETE, 40, ""), CAIRN_E_DENIED);
    assert_non_null(strstr(f->err.message, "newest"));
    assert_int_equal(change(f, m, CHANGE_DELETE, CAIRN_LATEST, ""), CAIRN_E_DENIED);
    assert_int_equal(change(f, m, CHANGE_DELETE, 11, ""), CAIRN_E_NOT_FOUND);
    assert_int_equal(change(f, m, CHANGE_PIN, 10, "paper"), 0);
    assert_int_equal(change(f, m, CHANGE_PIN, 10, "paper"), 0);
    assert_int_equal(change(f, m, CHANGE_PIN, 10, "best"), 0);
    assert_int_equal(change(f, m, CHANGE_PIN, 10, "no/label"), CAIRN_E_INVAL);
    assert_int_equal(change(f, m, CHANGE_PIN, 11, "paper"), CAIRN_E_NOT_FOUND);
    assert_int_equal(change(f, m, CHANGE_UNPIN, 10, "other"), CAIRN_E_NOT_FOUND);
    assert_int_equal(change(f, m, CHANGE_UNPIN, 10, "paper"), 0);
    assert_int_equal(change(f, m, CHANGE_DELETE, 10, ""), CAIRN_E_DENIED);
    assert_non_null(strstr(f->err.message, "pin \"best\""));

    /* A rule neither takes the pinned one nor the one that the job resumes from. */
    member_leave(r);
    assert_int_equal(join(f, m, "j", "b", 0, 1, false, &next), 0);
    assert_int_equal(open_step(f, m, next, CAIRN_LATEST, 5000, &step, NULL, NULL), 0);
    assert_int_equal(step, 40);
    commit_step_of(f, m, &next, 1, 50);
    assert_int_equal(change(f, m, CHANGE_DELETE, 40, ""), CAIRN_E_DENIED);
    assert_non_null(strstr(f->err.message, "resumes"));
    assert_int_equal(change(f, m, CHANGE_RETAIN, 0, "last=1"), 0);
    wait_fate(f, m, 20, "deleted");
    wait_fate(f, m, 30, "deleted");
    commit_step_of(f, m, &next, 1, 60);
    assert_string_equal(fate(f, m, "j", 10, 1), "committed");
    assert_string_equal(fate(f, m, "j", 40, 1), "committed");
    assert_int_equal(change(f, m, CHANGE_UNPIN, 10, "best"), 0);
    assert_int_equal(change(f, m, CHANGE_DELETE, 10, ""), 0);
    assert_string_equal(fate(f, m, "j", 10, 1), "deleted");
    assert_int_equal(change(f, m, CHANGE_DELETE, 10, ""), CAIRN_E_NOT_FOUND);
    assert_int_equal(change(f, m, CHANGE_PIN, 10, "late"), CAIRN_E_NOT_FOUND);
    member_leave(next);
}

/* Until its hold is given back, or its daemon's lease ends. */
void a_restore_holds_until_it_ends(void **state)
{
    struct fixture *f = *state;
    struct member *r = with_steps(f, &f->a, (uint64_t[]){10, 20, 30, 0});
    uint64_t step;

    f->keep_hold = true;
    assert_int_equal(open_of(f, &f->a, 10, &step), 0);
    struct hold *first = f->kept_hold;
    assert_int_equal(open_of(f, &f->a, 10, &step), 0);
    assert_ptr_equal(first, f->kept_hold); /* one key for both */
    assert_int_equal(change(f, &f->a, CHANGE_DELETE, 10, ""), CAIRN_E_BUSY);
    assert_non_null(strstr(f->err.message, "a restore or repair on node n0"));
    hold_release(first);
    assert_int_equal(change(f, &f->a, CHANGE_DELETE, 10, ""), CAIRN_E_BUSY);
    hold_release(f->kept_hold);
    turn_for(&f->a, 100);
    assert_int_equal(change(f, &f->a, CHANGE_DELETE, 10, ""), 0);

    assert_int_equal(open_of(f, &f->a, 20, &step), 0);
    member_leave(r);
    turn_for(&f->a, 100);
    /* a is dead from here on; its reader died with it. */
    machine_start(f, &f->b, "n1", 2, 10000);
    f->b.links.npeers = f->b.links.nregistered = 2;
    double_move_blobs(&f->a.links, &f->b.links);
    assert_int_equal(change(f, &f->b, CHANGE_DELETE, 20, ""), CAIRN_E_BUSY);
    expire_leases(f);
    assert_int_equal(change(f, &f->b, CHANGE_DELETE, 20, ""), 0);
    double_move_blobs(&f->b.links, &f->a.links);
    machine_stop(&f->a); /* a hold that outlives its jobs */
    hold_release(f->kept_hold);
}

struct two {
    struct change_request change;
    struct open_request open;
    bool changed, opened;
    int change_code, open_code;
    char why[512];
};

static void two_changed(struct change_request *r, int code, const struct cairn_error *err)
{
    struct two *t = r->arg;

    t->changed = true;
    t->change_code = code;
    snprintf(t->why, sizeof t->why, "%s", code < 0 ? err->message : "");
}

static void two_opened(struct open_request *r, int code, const struct cairn_error *err, struct checkpoint *c)
{
    struct two *t = r->arg;

    t->opened = true;
    t->open_code = code;
    snprintf(t->why, sizeof t->why, "%s", code < 0 ? err->message : "");
    checkpoint_unref(c);
    hold_release(r->ret_hold);
}

void a_hold_and_a_tombstone_exclude_each_other(void **state)
{
    struct fixture *f = *state;
    struct two t = {.change = {.kind = CHANGE_DELETE, .step = 10, .timeout_ms = 3000, .done = two_changed, .arg = &t},
                    .open = {.step = 20, .timeout_ms = 3000, .done = two_opened, .arg = &t}};
    struct member *r = with_steps(f, &f->a, (uint64_t[]){10, 20, 30, 0});
    uint64_t step;

    strcpy(t.change.job, "j");
    strcpy(t.open.job, "j");
    machine_start(f, &f->b, "n1", 2, 10000);
    f->b.links.npeers = f->b.links.nregistered = 2;
    /* b has read that nobody holds it, then a begins to read. */
    f->b.links.hold_blobs = true;
    jobs_change(f->b.jobs, &t.change);
    for (unsigned i = 0; i < 500 && list_empty(&f->b.links.calls); i++)
        turn_for(&f->b, 10);
    assert_false(list_empty(&f->b.links.calls));
    f->keep_hold = true;
    assert_int_equal(open_of(f, &f->a, 10, &step), 0);
    double_let_go(&f->b.links);
    turn_until(&f->b, &t.changed);
    assert_int_equal(t.change_code, CAIRN_E_BUSY);
    assert_non_null(strstr(t.why, "a restore or repair on node n0"));
    hold_release(f->kept_hold);

    /* a has read that it is there, then b deletes it. */
    jobs_open(f->a.jobs, &t.open);
    turn_for(&f->b, 50);
    assert_int_equal(change(f, &f->b, CHANGE_DELETE, 20, ""), 0);
    turn_until(&f->a, &t.opened);
    assert_int_equal(t.open_code, CAIRN_E_NOT_FOUND);
    assert_non_null(strstr(t.why, "was deleted: asked for"));
    member_leave(r);
}

void another_start_finishes_a_deletion(void **state)
{
    struct fixture *f = *state;
    struct member *r = with_steps(f, &f->a, (uint64_t[]){10, 20, 0});

    assert_int_equal(change(f, &f->a, CHANGE_DELETE, 10, ""), 0);
    double_forgotten(&f->a.links, "p0", 10);
    member_leave(r);
    turn_for(&f->a, 100);
    /* a is dead from here on, between the tombstone and the end; nobody joins the job again. */
    expire_leases(f);
    f->retention_ms = 20;
    machine_start(f, &f->b, "n1", 2, 10000);
    f->b.links.npeers = f->b.links.nregistered = 2;
    for (unsigned i = 0; i < 500 && !f->b.links.ended_aborted; i++)
        turn_for(&f->b, 10);
    assert_true(f->b.links.ended_aborted > 0);
    double_forgotten(&f->b.links, "p1", 10);
    turn_for(&f->b, 100);
    assert_string_equal(fate(f, &f->b, "j", 10, 1), "deleted"); /* what p0 said died with a */
    double_forgotten(&f->b.links, "p0", 10);
    wait_fate(f, &f->b, 10, "absent");
    assert_string_equal(fate(f, &f->b, "j", 20, 1), "committed");
}

void peers_that_are_away_keep_the_tombstone(void **state)
{
    struct fixture *f = *state;
    struct machine *m = &f->a;
    f->retention_ms = 20;
    struct member *r = with_steps(f, m, (uint64_t[]){10, 20, 30, 40, 0});

    /* Its manifests name p0 only; p1 is away. */
    m->links.nregistered = 1;
    assert_int_equal(change(f, m, CHANGE_DELETE, 10, ""), 0);
    double_forgotten(&m->links, "p0", 10);
    wait_fate(f, m, 10, "absent");
    /* They cannot be read: every peer that was ever seen may have files. */
    m->links.corrupt_step = 20;
    member_leave(r);
    machine_stop(m);
    struct member *again;
    machine_start(f, m, "n0", 2, 10000);
    m->links.npeers = 2;
    m->links.nregistered = 1;
    m->links.corrupt_step = 20;
    assert_int_equal(join(f, m, "j", "a", 0, 1, false, &again), 0);
    assert_int_equal(change(f, m, CHANGE_DELETE, 20, ""), 0);
    double_forgotten(&m->links, "p0", 20);
    turn_for(m, 200);
    assert_string_equal(fate(f, m, "j", 20, 1), "deleted");
    double_forgotten(&m->links, "p1", 20);
    wait_fate(f, m, 20, "absent");
    /* No peer is known yet: nobody could answer. */
    m->links.npeers = m->links.nregistered = 0;
    assert_int_equal(change(f, m, CHANGE_DELETE, 30, ""), 0);
    double_forgotten(&m->links, "p0", 30);
    turn_for(m, 200);
    assert_string_equal(fate(f, m, "j", 30, 1), "deleted");
    m->links.npeers = m->links.nregistered = 1;
    wait_fate(f, m, 30, "absent");
    member_leave(again);
}

/* Fragments behind the commit: until they are there, the margin of the new one is smaller. */
void the_one_before_stays_until_the_next_is_full(void **state)
{
    struct fixture *f = *state;
    struct machine *m = &f->a;
    struct save s;

    f->rule = "last=1";
    f->retention_ms = 20;
    struct member *r = with_steps(f, m, (uint64_t[]){10, 0});
    m->links.hold_tails = true;
    assert_int_equal(begin(f, m, r, 20, &s), 0);
    fill(f, &s);
    turn_until(m, &s.outcome);
    assert_int_equal(s.code, 0);
    assert_int_equal(change(f, m, CHANGE_DELETE, 10, ""), CAIRN_E_BUSY);
    assert_non_null(strstr(f->err.message, "until a newer one is full"));
    turn_for(m, 200);
    assert_string_equal(fate(f, m, "j", 10, 1), "committed");
    double_let_go(&m->links);
    turn_until(m, &s.ended);
    wait_fate(f, m, 10, "deleted");
    member_leave(r);
}

void the_rule_of_a_job(void **state)
{
    struct fixture *f = *state;
    struct machine *m = &f->a;

    machine_start(f, m, "n0", 1, 10000);
    assert_int_equal(change(f, m, CHANGE_RETAIN, 0, "last=1"), CAIRN_E_NOT_FOUND);
    machine_stop(m);
    f->rule = "last=1";
    struct member *r = with_steps(f, m, (uint64_t[]){10, 0});
    assert_int_equal(change(f, m, CHANGE_RETAIN, 0, "last=none"), CAIRN_E_INVAL);
    assert_non_null(strstr(f->err.message, "last=none"));
    assert_int_equal(change(f, m, CHANGE_RETAIN, 0, "all"), 0); /* wins over the daemon's */
    commit_step_of(f, m, &r, 1, 20);
    commit_step_of(f, m, &r, 1, 30);
    turn_for(m, 200);
    assert_string_equal(fate(f, m, "j", 10, 1), "committed");
    assert_int_equal(change(f, m, CHANGE_RETAIN, 0, "every=20 last=1"), 0);
    wait_fate(f, m, 10, "deleted");
    assert_string_equal(fate(f, m, "j", 20, 1), "committed");
    assert_int_equal(change(f, m, CHANGE_RETAIN, 0, "default"), 0);
    wait_fate(f, m, 20, "deleted");
    assert_string_equal(fate(f, m, "j", 30, 1), "committed");
    member_leave(r);
}
