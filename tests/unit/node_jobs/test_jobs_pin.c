/* SPDX-License-Identifier: Apache-2.0 */
/* Take-overs and pins. Catches: ranks that resume from two steps, a resume step fixed while an older save may still
 * commit, a job that starts from scratch while its peers are away. */
#include "fixture.h"

#include "core/base/error.h"
#include "tests.h"

#include <string.h>

struct later {
    struct open_request r;
    bool done;
    int code;
    uint64_t step;
};

static void later_done(struct open_request *r, int code, const struct cairn_error *err, struct checkpoint *c)
{
    struct later *l = r->arg;

    if (code < 0)
        print_message("%s\n", err->message);
    l->done = true;
    l->code = code;
    l->step = r->ret_step;
    checkpoint_unref(c);
    hold_release(r->ret_hold);
}

static void open_later(struct machine *m, struct member *member, struct later *l)
{
    *l = (struct later){
        .r = {.step = CAIRN_LATEST, .member = member, .timeout_ms = 10000, .done = later_done, .arg = l}};
    strcpy(l->r.job, "j");
    jobs_open(m->jobs, &l->r);
}

void a_take_over_fences(void **state)
{
    struct fixture *f = *state;
    struct machine *m = &f->a;
    struct member *old[2], *new;
    struct save filled[2], begun, x;
    struct later l;

    machine_start(f, m, "n0", 1, 10000);
    m->links.hold_drains = true;
    assert_int_equal(join(f, m, "j", "a", 0, 2, false, &old[0]), 0);
    assert_int_equal(join(f, m, "j", "a", 1, 2, false, &old[1]), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(begin(f, m, old[i], 50, &filled[i]), 0);
        fill(f, &filled[i]);
    }
    assert_int_equal(begin(f, m, old[0], 60, &begun), 0);
    turn_for(m, 100);
    assert_int_equal(join(f, m, "j", "b", 0, 1, true, &new), 0);
    assert_int_equal(member_incarnation(new), 2);
    assert_int_equal(member_check(old[0], &f->err), CAIRN_E_FENCED);
    assert_non_null(strstr(f->err.message, "start b"));
    assert_int_equal(member_check(new, &f->err), 0);
    turn_until(m, &begun.ended);
    assert_int_equal(begun.code, CAIRN_E_FENCED);
    assert_int_equal(begin(f, m, old[1], 70, &x), CAIRN_E_FENCED);

    open_later(m, new, &l);
    turn_for(m, 300);
    assert_false(l.done || filled[0].outcome);
    double_let_go(&m->links);
    turn_until(m, &filled[0].ended);
    turn_until(m, &filled[1].ended);
    assert_int_equal(filled[0].code, 0);
    turn_until(m, &l.done);
    assert_int_equal(l.code, 0);
    assert_int_equal(l.step, 50);
    member_leave(old[0]);
    member_leave(old[1]);
    commit_step_of(f, m, &new, 1, 51);
    member_leave(new);
}

void all_ranks_follow_one_pin(void **state)
{
    struct fixture *f = *state;
    struct machine *m = &f->a;
    struct member *r[2], *one;
    struct checkpoint *c;
    uint64_t step, inc;

    machine_start(f, m, "n0", 1, 10000);
    assert_int_equal(join(f, m, "j", "a", 0, 1, false, &one), 0);
    assert_int_equal(open_step(f, m, one, CAIRN_LATEST, 5000, &step, &inc, &c), CAIRN_E_NOT_FOUND);
    assert_int_equal(open_step(f, m, one, CAIRN_LATEST, 5000, &step, &inc, NULL), CAIRN_E_NOT_FOUND);
    commit_step_of(f, m, &one, 1, 40);
    member_leave(one);
    assert_int_equal(join(f, m, "j", "b", 0, 2, false, &r[0]), 0);
    assert_int_equal(join(f, m, "j", "b", 1, 2, false, &r[1]), 0);
    struct later l[2];
    open_later(m, r[0], &l[0]);
    open_later(m, r[1], &l[1]);
    turn_until(m, &l[0].done);
    turn_until(m, &l[1].done);
    assert_int_equal(l[0].step, 40);
    assert_int_equal(l[1].step, 40);
    commit_step_of(f, m, r, 2, 41);
    /* What this run saved since does not move its resume step, but an observer sees it. */
    assert_int_equal(open_step(f, m, r[1], CAIRN_LATEST, 5000, &step, &inc, &c), 0);
    assert_int_equal(step, 40);
    checkpoint_unref(c);
    assert_int_equal(open_step(f, m, NULL, CAIRN_LATEST, 5000, &step, &inc, NULL), 0);
    assert_int_equal(step, 41);
    assert_int_equal(inc, 2);
    member_leave(r[0]);
    member_leave(r[1]);
}

/* Leaves job j with committed steps 40 and 50 of incarnation 1, and a fresh daemon without a cache in f->b. */
static void two_steps(struct fixture *f)
{
    struct member *r;

    machine_start(f, &f->a, "n0", 1, 10000);
    assert_int_equal(join(f, &f->a, "j", "a", 0, 1, false, &r), 0);
    commit_step_of(f, &f->a, &r, 1, 40);
    commit_step_of(f, &f->a, &r, 1, 50);
    member_leave(r);
    machine_start(f, &f->b, "n0", 2, 10000);
    double_move_blobs(&f->a.links, &f->b.links);
    machine_stop(&f->a);
}

void the_pin_falls_back(void **state)
{
    struct fixture *f = *state;
    struct member *r;
    struct checkpoint *c;
    uint64_t step, inc;

    two_steps(f);
    f->b.links.corrupt_step = 50;
    assert_int_equal(open_step(f, &f->b, NULL, CAIRN_LATEST, 5000, &step, &inc, &c), CAIRN_E_CORRUPT);
    assert_non_null(strstr(f->err.message, "j/50.1"));
    assert_int_equal(join(f, &f->b, "j", "b", 0, 1, false, &r), 0);
    assert_int_equal(open_step(f, &f->b, r, CAIRN_LATEST, 5000, &step, &inc, &c), 0);
    assert_int_equal(step, 40);
    checkpoint_unref(c);
    f->b.links.corrupt_step = 0; /* readable again: the pin stays */
    assert_int_equal(open_step(f, &f->b, r, CAIRN_LATEST, 5000, &step, &inc, &c), 0);
    assert_int_equal(step, 40);
    checkpoint_unref(c);
    member_leave(r);
}

/* A checkpoint that nobody could resume from must not become what later ones consist of (catches: a base that outlives
 * the pin that passed it over). */
void what_a_start_left_behind_is_no_base(void **state)
{
    struct fixture *f = *state;
    struct machine *m = &f->a;
    struct member *old, *r;
    struct checkpoint *c;
    uint64_t step;

    f->share_unchanged = 1;
    machine_start(f, m, "n0", 1, 10000);
    assert_int_equal(join(f, m, "j", "a", 0, 1, false, &old), 0);
    commit_step_of(f, m, &old, 1, 30);
    commit_step_of(f, m, &old, 1, 31); /* refers to 30, to no use: the next one is whole, and no base */
    commit_step_of(f, m, &old, 1, 32);
    commit_step_of(f, m, &old, 1, 40);
    assert_int_equal(change(f, m, CHANGE_DELETE, 30, ""), CAIRN_E_DENIED);
    m->links.short_step = 40;
    m->links.short_code = CAIRN_E_CORRUPT;
    assert_int_equal(join(f, m, "j", "b", 0, 1, true, &r), 0);
    assert_int_equal(open_step(f, m, r, CAIRN_LATEST, 5000, &step, NULL, &c), 0);
    assert_int_equal(step, 32);
    checkpoint_unref(c);
    commit_step_of(f, m, &r, 1, 41);
    assert_int_equal(change(f, m, CHANGE_DELETE, 40, ""), 0); /* 41 does not need it */
    member_leave(r);
    member_leave(old);
}

/* The same when another node coordinated in between, and the start after that resumed from what it committed (catches:
 * a base that is remembered from before). */
void what_others_left_behind_is_no_base(void **state)
{
    struct fixture *f = *state;
    struct member *r;
    struct checkpoint *c;
    uint64_t step;

    f->share_unchanged = 1;
    machine_start(f, &f->a, "n0", 1, 10000);
    machine_start(f, &f->b, "n1", 2, 10000);
    turn_together(f);
    assert_int_equal(join(f, &f->a, "j", "a", 0, 1, false, &r), 0);
    commit_step_of(f, &f->a, &r, 1, 30);
    commit_step_of(f, &f->a, &r, 1, 31); /* refers to 30, to no use: the next one is whole, and no base */
    commit_step_of(f, &f->a, &r, 1, 32);
    commit_step_of(f, &f->a, &r, 1, 40);
    member_leave(r);
    turn_for(&f->a, 100);
    double_move_blobs(&f->a.links, &f->b.links);
    f->b.links.short_step = 40;
    f->b.links.short_code = CAIRN_E_CORRUPT;
    assert_int_equal(join(f, &f->b, "j", "b", 0, 1, false, &r), 0);
    assert_int_equal(open_step(f, &f->b, r, CAIRN_LATEST, 5000, &step, NULL, &c), 0);
    assert_int_equal(step, 32);
    checkpoint_unref(c);
    commit_step_of(f, &f->b, &r, 1, 41);
    member_leave(r);
    turn_for(&f->b, 100);
    double_move_blobs(&f->b.links, &f->a.links);
    assert_int_equal(join(f, &f->a, "j", "c", 0, 1, false, &r), 0);
    assert_int_equal(open_step(f, &f->a, r, CAIRN_LATEST, 5000, &step, NULL, &c), 0);
    assert_int_equal(step, 41);
    checkpoint_unref(c);
    commit_step_of(f, &f->a, &r, 1, 42);
    assert_int_equal(change(f, &f->a, CHANGE_DELETE, 40, ""), 0); /* 42 does not need it */
    member_leave(r);
}

/* Catches a node's knowledge that does not get to the coordinator. */
void what_others_found_lost_is_no_base(void **state)
{
    struct fixture *f = *state;
    struct member *r;
    struct checkpoint *c;
    uint64_t step;

    f->share_unchanged = 8;
    machine_start(f, &f->a, "n0", 1, 10000);
    machine_start(f, &f->b, "n1", 2, 10000);
    turn_together(f);
    assert_int_equal(join(f, &f->a, "j", "a", 0, 1, false, &r), 0);
    commit_step_of(f, &f->a, &r, 1, 30);
    f->b.links.corrupt_step = 30;
    assert_int_equal(open_step(f, &f->b, NULL, 30, 5000, &step, NULL, &c), CAIRN_E_CORRUPT);
    turn_for(&f->b, 50);
    commit_step_of(f, &f->a, &r, 1, 40);
    assert_int_equal(change(f, &f->a, CHANGE_DELETE, 30, ""), 0); /* 40 does not need it */
    member_leave(r);
}

/* Manifests are there and fragments are not (catches: a resume step that nobody can read); who asks for a step by its
 * number, or observes, is not asked to wait for that. */
void the_pin_counts_fragments(void **state)
{
    struct fixture *f = *state;
    struct member *r;
    struct checkpoint *c;
    uint64_t step, inc;
    struct later l;

    two_steps(f);
    f->b.links.short_step = 50;
    f->b.links.short_code = CAIRN_E_UNAVAILABLE;
    assert_int_equal(open_step(f, &f->b, NULL, CAIRN_LATEST, 5000, &step, &inc, &c), 0);
    assert_int_equal(step, 50);
    assert_int_equal(f->b.links.surveys, 0);
    checkpoint_unref(c);
    assert_int_equal(join(f, &f->b, "j", "b", 0, 1, false, &r), 0);
    open_later(&f->b, r, &l);
    turn_for(&f->b, 500);
    assert_false(l.done); /* its peers may come back */
    assert_true(f->b.links.surveys > 1);
    f->b.links.short_code = CAIRN_E_CORRUPT; /* they have, without it */
    turn_until(&f->b, &l.done);
    assert_int_equal(l.code, 0);
    assert_int_equal(l.step, 40);
    member_leave(r);
}

void peers_away_are_no_reason_to_start_from_scratch(void **state)
{
    struct fixture *f = *state;
    struct member *r;
    struct checkpoint *c;
    uint64_t step, inc;
    struct later l;

    two_steps(f);
    f->b.links.blobs_away = true;
    assert_int_equal(join(f, &f->b, "j", "b", 0, 1, false, &r), 0);
    assert_int_equal(open_step(f, &f->b, r, CAIRN_LATEST, 800, &step, &inc, &c), CAIRN_E_UNAVAILABLE);
    assert_non_null(strstr(f->err.message, "no committed checkpoint can be read"));
    open_later(&f->b, r, &l);
    turn_for(&f->b, 500);
    f->b.links.blobs_away = false; /* they only were late */
    turn_until(&f->b, &l.done);
    assert_int_equal(l.code, 0);
    assert_int_equal(l.step, 50);
    member_leave(r);
}

struct names {
    struct list_request r;
    bool done;
    size_t n;
    char first[CAIRN_MAX_NAME + 1];
};

static void names_done(struct list_request *r, int code, const struct cairn_error *err, const struct listed *items,
                       size_t n)
{
    struct names *l = r->arg;

    (void)err;
    assert_int_equal(code, 0);
    l->done = true;
    l->n = n;
    if (n > 0)
        strcpy(l->first, items[0].job);
}

void damaged_records_are_named(void **state)
{
    struct fixture *f = *state;
    struct names l = {.r = {.timeout_ms = 1000, .done = names_done, .arg = &l}};
    struct member *r, *x = NULL;
    uint64_t step;

    two_steps(f);
    jobs_list(f->b.jobs, &l.r);
    turn_until(&f->b, &l.done);
    assert_int_equal(l.n, 1);
    assert_string_equal(l.first, "j");
    change_database(f, "UPDATE kv SET value = 'nonsense' WHERE key LIKE '%50%decision'");
    assert_true(open_step(f, &f->b, NULL, CAIRN_LATEST, 1000, &step, NULL, NULL) < 0);
    assert_non_null(strstr(f->err.message, "cairn/v1/jobs/j/ckpt/"));
    assert_non_null(strstr(f->err.message, "decision"));
    assert_true(join(f, &f->b, "j", "b", 0, 1, false, &x) < 0);
    assert_non_null(strstr(f->err.message, "decision"));
    assert_int_equal(join(f, &f->b, "other", "b", 0, 1, false, &r), 0);
    member_leave(r);
}

void a_moved_pin_must_be_loaded(void **state)
{
    struct fixture *f = *state;
    struct member *r[2];
    struct save s;
    uint64_t step;

    two_steps(f);
    assert_int_equal(join(f, &f->b, "j", "b", 0, 2, false, &r[0]), 0);
    assert_int_equal(join(f, &f->b, "j", "b", 1, 2, false, &r[1]), 0);
    assert_int_equal(open_step(f, &f->b, r[0], CAIRN_LATEST, 5000, &step, NULL, NULL), 0);
    assert_int_equal(step, 50);
    /* Rank 1's daemon cannot read step 50: here that takes a daemon without rank 0's cache. */
    struct member *q;
    member_leave(r[1]);
    member_leave(r[0]);
    turn_for(&f->b, 100);
    machine_start(f, &f->a, "n0", 3, 10000);
    double_move_blobs(&f->b.links, &f->a.links);
    assert_int_equal(join(f, &f->a, "j", "b", 0, 2, false, &q), 0);
    assert_int_equal(join(f, &f->a, "j", "b", 1, 2, false, &r[1]), 0);
    assert_int_equal(open_step(f, &f->a, q, CAIRN_LATEST, 5000, &step, NULL, NULL), 0);
    assert_int_equal(step, 50);
    f->a.links.corrupt_step = 50;
    struct checkpoint *c;
    assert_int_equal(open_step(f, &f->a, r[1], CAIRN_LATEST, 5000, &step, NULL, &c), 0);
    assert_int_equal(step, 40);
    checkpoint_unref(c);
    assert_int_equal(begin(f, &f->a, q, 60, &s), CAIRN_E_STALE_PIN);
    assert_int_equal(open_step(f, &f->a, q, CAIRN_LATEST, 5000, &step, NULL, &c), 0);
    checkpoint_unref(c);
    assert_int_equal(step, 40);
    struct member *both[] = {q, r[1]};
    commit_step_of(f, &f->a, both, 2, 60);
    member_leave(q);
    member_leave(r[1]);
}
