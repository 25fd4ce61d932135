/* SPDX-License-Identifier: Apache-2.0 */
/* Opening a committed checkpoint:
 *
 *     records read -> a step, or an observer's latest ------------------------------> load -> done
 *                  -> a member's latest: the pin (core/checkpoint/pin.h)
 *                        WAIT   until a run of this job is decided, then read again
 *                        TRY    load -> survey of its fragments -> pin by a transaction -> done (refused or unknown:
 *                               read again)
 *                        FOLLOW load -> done
 *
 * Before it is loaded a checkpoint is held (job_hold.c), so that nobody deletes it until its reader has ended.
 *
 * Peers that are only just starting look like lost ones: what cannot be reached is tried again for half of the
 * request's time before an older checkpoint is taken. The request may be answered (late, its session gone) while
 * something of the opening is still under way: then request is NULL and the object ends with it. */
#include "daemon/node/job_internal.h"

#include "core/checkpoint/pin.h"
#include "core/model/name.h"
#include "daemon/io/log.h"
#include "daemon/node/survey.h"

#include <stdio.h>
#include <string.h>

#define OPEN_PAUSE_MS 200
#define OPEN_MAX_BAD 1000 /* unreadable checkpoints that one opening steps over: a lost base takes many with it */

enum open_phase { OPEN_READING, OPEN_WAITING, OPEN_PAUSED, OPEN_LOADING, OPEN_PINNING, OPEN_HOLDING, OPEN_SURVEYING };
struct opening {
    struct jobs *jobs;
    struct list link;
    struct open_request *request; /* NULL: answered already */
    int phase;                    /* enum open_phase */
    uint64_t started_ns;
    uint32_t timeout_ms;
    struct meta_req req;
    struct load_waiter waiter;
    struct survey survey;
    struct hold *hold; /* on the one being read: nobody deletes it */
    struct hold_waiter hold_waiter;
    struct loop_timer pause;
    struct view view;
    struct known bad[OPEN_MAX_BAD];
    unsigned nbad;
    struct cairn_error load_err; /* of the newest that could not be read */
    struct pin_move move;        /* of a member's latest */
    bool pinning;                /* the loaded one is to be pinned */
    size_t at;                   /* in view: what is being read, aborted or pinned */
    struct record_pin pin;       /* being written */
    struct checkpoint *checkpoint;
};

static void opening_read(struct opening *o);
static void opening_next(struct opening *o);

/* ---- the end --------------------------------------------------------------------------------- */

static bool opening_busy(const struct opening *o)
{
    return o->phase == OPEN_READING || o->phase == OPEN_PINNING;
}

static void opening_free(struct opening *o)
{
    struct jobs *jobs = o->jobs;

    loop_timer_cancel(jobs->deps.loop, &o->pause);
    list_remove(&o->waiter.link);
    list_remove(&o->hold_waiter.link);
    survey_cancel(&o->survey);
    hold_release(o->hold);
    list_remove(&o->link);
    view_free(&o->view);
    checkpoint_unref(o->checkpoint);
    free(o);
    jobs_maybe_stopped(jobs);
}

/* Takes the request away from the opening. */
static struct open_request *opening_take(struct opening *o)
{
    struct open_request *r = o->request;

    o->request = NULL;
    loop_timer_cancel(o->jobs->deps.loop, &r->own.deadline);
    return r;
}

static void opening_fail(struct opening *o, int code, struct cairn_error *err)
{
    struct open_request *r = opening_take(o);

    opening_free(o);
    r->done(r, code, err, NULL);
}

static void opening_done(struct opening *o, uint64_t step, uint64_t incarnation)
{
    struct open_request *r = opening_take(o);
    struct checkpoint *c = r->resolve_only ? NULL : TAKE_PTR(o->checkpoint);

    r->ret_step = step;
    r->ret_incarnation = incarnation;
    r->ret_hold = c ? TAKE_PTR(o->hold) : NULL;
    opening_free(o);
    r->done(r, 0, NULL, c);
}

static void open_posted(struct loop_post *post)
{
    struct open_request *r = post->arg;
    struct jobs *jobs = r->own.jobs;
    struct cairn_error err = r->own.err; /* r may be gone during done */

    jobs->posts--;
    r->done(r, r->own.code, &err, NULL);
    jobs_maybe_stopped(jobs);
}

static void open_fail_later(struct open_request *r, int code, const struct cairn_error *err)
{
    r->own.code = code;
    cairn_error_copy(&r->own.err, err);
    r->own.jobs->posts++;
    loop_defer(r->own.jobs->deps.loop, &r->own.post);
}

/* Answers the request from elsewhere; the opening follows when nothing of it is under way. */
static void opening_abandon(struct opening *o, int code, const struct cairn_error *err)
{
    struct open_request *r = opening_take(o);

    open_fail_later(r, code, err);
    if (!opening_busy(o))
        opening_free(o);
}

static void opening_late(struct loop_timer *timer)
{
    static const char *const doing[] = {
        [OPEN_READING] = "the metadata engine does not answer",
        [OPEN_WAITING] = "older saves of the job are not decided yet",
        [OPEN_PAUSED] = "the peers that hold it cannot be reached",
        [OPEN_LOADING] = "its manifests are being read",
        [OPEN_PINNING] = "the metadata engine does not answer",
        [OPEN_HOLDING] = "the metadata engine does not answer",
        [OPEN_SURVEYING] = "its fragments are being looked for",
    };
    struct opening *o = timer->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;
    const char *more = o->load_err.message;
    int r = cairn_fail(&err, CAIRN_E_TIMEOUT, "open a checkpoint of job %s: %s after %u ms%s%s", o->request->job,
                       doing[o->phase], o->timeout_ms, more[0] ? ": " : "", more);

    opening_abandon(o, r, &err);
}

/* ---- loading --------------------------------------------------------------------------------- */

static uint32_t opening_left_ms(const struct opening *o)
{
    uint64_t gone_ms = (loop_now_ns(o->jobs->deps.loop) - o->started_ns) / 1000000;

    return gone_ms >= o->timeout_ms ? 1 : o->timeout_ms - (uint32_t)gone_ms;
}

static void opening_again(struct loop_timer *timer)
{
    opening_read(timer->arg);
}

static void opening_pause(struct opening *o, int phase, uint32_t ms)
{
    o->phase = phase;
    o->pause = (struct loop_timer){.fire = opening_again, .arg = o, .heap_index = o->pause.heap_index};
    loop_timer_after(o->jobs->deps.loop, &o->pause, ms);
}

static void opening_pin(struct opening *o, const struct known *k);

/* What is found unreadable, or has a base that may be what cannot be read, gets no more checkpoints that need it. */
static void opening_distrust(struct opening *o, const struct known *k)
{
    const struct ckpt_base *base = &o->view.decisions[o->at].base;

    jobs_distrust(o->jobs, o->request->job, k->step, k->incarnation);
    if (base->is_set)
        jobs_distrust(o->jobs, o->request->job, base->step, base->incarnation);
}

static void opening_load_failed(struct opening *o, int code, const struct cairn_error *err)
{
    const struct known *k = &o->view.known[o->at];
    bool away = code == CAIRN_E_UNAVAILABLE || code == CAIRN_E_TIMEOUT;
    struct cairn_error e = CAIRN_ERROR_INIT;
    bool member = o->request->member && o->request->step == CAIRN_LATEST;

    cairn_error_copy(&e, err);
    if (o->nbad == 0)
        cairn_error_copy(&o->load_err, &e);
    if (away && opening_left_ms(o) > o->timeout_ms / 2) {
        opening_pause(o, OPEN_PAUSED, OPEN_PAUSE_MS);
        return;
    }
    if (!away && code != CAIRN_E_NOMEM)
        opening_distrust(o, k);
    if (!member || code == CAIRN_E_NOMEM || o->nbad == OPEN_MAX_BAD) {
        opening_fail(o, cairn_wrap(&e, code, "job %s", o->request->job), &e);
        return;
    }
    log_line(LOG_WARNING, "job %s: step %llu of incarnation %llu cannot be resumed from, looking for an older one: %s",
             o->request->job, (unsigned long long)k->step, (unsigned long long)k->incarnation, e.message);
    o->bad[o->nbad++] = *k;
    o->view.known[o->at].unreadable = true;
    opening_next(o);
}

static void opening_surveyed(struct survey *s, int code, const struct cairn_error *err)
{
    struct opening *o = s->arg;
    const struct known k = o->view.known[o->at];

    if (code < 0)
        opening_load_failed(o, code, err);
    else
        opening_pin(o, &k);
}

/* All ranks will read what is pinned: not only its manifests must be there. */
static void opening_survey(struct opening *o)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    o->phase = OPEN_SURVEYING;
    o->survey = (struct survey){.manifests = o->checkpoint->manifests,
                                .nmanifests = o->checkpoint->root.world_size,
                                .timeout_ms = opening_left_ms(o) / 4,
                                .done = opening_surveyed,
                                .arg = o};
    int r = survey_start(o->jobs->deps.links, &o->survey, &err);
    if (r < 0)
        opening_fail(o, r, &err);
}

static void opening_got(struct opening *o, struct checkpoint *c)
{
    const struct known k = o->view.known[o->at];

    checkpoint_unref(o->checkpoint);
    o->checkpoint = checkpoint_ref(c);
    if (o->pinning)
        opening_survey(o);
    else
        opening_done(o, k.step, k.incarnation);
}

static void opening_loaded(struct load_waiter *w, int code, const struct cairn_error *err, struct checkpoint *c)
{
    struct opening *o = container_of(w, struct opening, waiter);

    if (code < 0)
        opening_load_failed(o, code, err);
    else
        opening_got(o, c);
}

static void opening_load_held(struct opening *o)
{
    size_t at = o->at;
    const struct known *k = &o->view.known[at];
    struct load_key key = {o->request->job, k->step, k->incarnation};
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct checkpoint *c = load_cached(o->jobs, &key);

    if (c) {
        opening_got(o, c);
        return;
    }
    o->phase = OPEN_LOADING;
    o->waiter.done = opening_loaded;
    int r = load_start(o->jobs, &key, &o->view.decisions[at], opening_left_ms(o), &o->waiter, &err);
    if (r < 0)
        opening_fail(o, r, &err);
}

static void opening_held(struct hold_waiter *w, int code, const struct cairn_error *err)
{
    struct opening *o = container_of(w, struct opening, hold_waiter);

    (void)err;
    if (code == 0)
        opening_load_held(o);
    else if (code == CAIRN_E_NOT_FOUND)
        opening_read(o); /* deleted meanwhile: the records say what there is instead */
    else
        opening_pause(o, OPEN_PAUSED, OPEN_PAUSE_MS);
}

static void opening_load(struct opening *o, ptrdiff_t at)
{
    const struct known *k = &o->view.known[at];
    struct load_key key = {o->request->job, k->step, k->incarnation};
    struct cairn_error err = CAIRN_ERROR_INIT;

    o->at = (size_t)at;
    o->phase = OPEN_HOLDING;
    hold_release(TAKE_PTR(o->hold));
    o->hold_waiter.done = opening_held;
    int r = hold_take(o->jobs, &key, o->view.keeping[at].decision_revision, &o->hold_waiter, &o->hold, &err);
    if (r < 0)
        opening_fail(o, r, &err);
    else if (r > 0)
        opening_load_held(o);
}

/* ---- the pin --------------------------------------------------------------------------------- */

static int opening_nothing(struct opening *o, struct cairn_error *err)
{
    return cairn_fail(err, CAIRN_E_NOT_FOUND, "job %s has no committed checkpoint: start from scratch",
                      o->request->job);
}

static void opening_pinned(struct opening *o, uint64_t revision)
{
    struct member *m = o->request->member;
    struct cairn_error err = CAIRN_ERROR_INIT;
    unsigned long long inc = m->incarnation;

    job_set_pin(m->job, &o->pin, revision);
    m->pin_number = o->pin.number;
    if (o->pin.none) {
        log_line(LOG_NOTICE, "job %s: incarnation %llu starts from scratch", m->job->name, inc);
        opening_fail(o, opening_nothing(o, &err), &err);
        return;
    }
    log_line(LOG_NOTICE, "job %s: incarnation %llu resumes from step %llu of incarnation %llu", m->job->name, inc,
             (unsigned long long)o->pin.step, (unsigned long long)o->pin.ckpt_incarnation);
    opening_done(o, o->pin.step, o->pin.ckpt_incarnation);
}

static void opening_pin_done(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct opening *o = req->arg;

    if (!o->request)
        opening_free(o); /* the others read the pin, if it was put */
    else if (result->code == 0 && result->succeeded)
        opening_pinned(o, result->revision);
    else if (result->code < 0)
        opening_pause(o, OPEN_PAUSED, OPEN_PAUSE_MS); /* unknown: read it after a while */
    else
        opening_read(o);
}

/* k: NULL to pin that there is none. */
static void opening_pin(struct opening *o, const struct known *k)
{
    const struct member *m = o->request->member;
    char pin[RECORD_KEY_MAX], inc[RECORD_KEY_MAX], tombstone[RECORD_KEY_MAX] = "";
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct bytes value = {0};

    o->pin = pin_record(o->view.pin_revision ? &o->view.pin : NULL, m->incarnation, k);
    record_key_job(pin, o->request->job, "pin");
    record_key_job(inc, o->request->job, "incarnation");
    if (k) /* the hold may have gone with its lease */
        record_key_ckpt(tombstone, o->request->job, k->step, k->incarnation, "tombstone");
    int r = record_pin_encode(&o->pin, &value, &err);
    if (r < 0) {
        bytes_free(&value);
        opening_fail(o, r, &err);
        return;
    }
    struct cairn_compare seen[] = {{pin, o->view.pin_revision}, {inc, o->view.inc_revision}, {tombstone, 0}};
    struct cairn_put put = {pin, value.data, value.len, 0};
    struct cairn_txn txn = {.compares = seen, .ncompares = k ? 3 : 2, .puts = &put, .nputs = 1};
    o->phase = OPEN_PINNING;
    o->req = (struct meta_req){.done = opening_pin_done, .arg = o};
    meta_txn(o->jobs->deps.meta, &txn, o->jobs->config.meta_ms, &o->req);
    bytes_free(&value);
}

static void opening_follow(struct opening *o)
{
    struct member *m = o->request->member;
    struct cairn_error err = CAIRN_ERROR_INIT;
    const struct known *k = o->move.index < 0 ? NULL : &o->view.known[o->move.index];

    job_set_pin(m->job, &o->view.pin, o->view.pin_revision);
    m->pin_number = o->view.pin.number;
    if (!k)
        opening_fail(o, opening_nothing(o, &err), &err);
    else if (o->request->resolve_only)
        opening_done(o, k->step, k->incarnation);
    else
        opening_load(o, o->move.index);
}

static void opening_refuse(struct opening *o)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    const char *job = o->request->job;
    int r;

    if (o->move.action == PIN_FENCED)
        r = cairn_fail(&err, CAIRN_E_FENCED, "job %s: incarnation %llu resumed already", job,
                       (unsigned long long)o->view.pin.incarnation);
    else if (o->move.action == PIN_LOST)
        r = cairn_fail(&err, CAIRN_E_CORRUPT, "job %s: step %llu of incarnation %llu is pinned but not committed", job,
                       (unsigned long long)o->view.pin.step, (unsigned long long)o->view.pin.ckpt_incarnation);
    else
        r = cairn_fail(&err, o->load_err.code < 0 ? o->load_err.code : CAIRN_E_CORRUPT,
                       "job %s: no committed checkpoint can be read; the newest: %s", job, o->load_err.message);
    opening_fail(o, r, &err);
}

static void opening_next(struct opening *o)
{
    const struct member *m = o->request->member;

    o->move = pin_next(o->view.known, o->view.n, o->view.pin_revision ? &o->view.pin : NULL, m->incarnation);
    o->pinning = o->move.action == PIN_TRY;
    switch (o->move.action) {
    case PIN_WAIT:
    case PIN_ABORT: /* not here: opening_mark says that all are under way */
        opening_pause(o, OPEN_WAITING, OPEN_PAUSE_MS);
        break;
    case PIN_TRY:
        opening_load(o, o->move.index);
        break;
    case PIN_NONE:
        opening_pin(o, NULL);
        break;
    case PIN_FOLLOW:
        opening_follow(o);
        break;
    default:
        opening_refuse(o);
    }
}

/* ---- the records ----------------------------------------------------------------------------- */

static void opening_mark(struct opening *o)
{
    const struct member *m = o->request->member;

    for (size_t i = 0; i < o->view.n; i++) {
        struct known *k = &o->view.known[i];
        k->under_way = m != NULL; /* with members, a node coordinates the job: it decides what is left */
        for (unsigned b = 0; b < o->nbad; b++)
            k->unreadable |= known_compare(&o->bad[b], k) == 0;
    }
}

static void opening_resolve(struct opening *o)
{
    const struct open_request *r = o->request;
    ptrdiff_t at = view_pick(&o->view, r->step);
    struct cairn_error err = CAIRN_ERROR_INIT;
    int c;

    if (at < 0) {
        c = view_not_found(&o->view, r->job, r->step, &err);
        opening_fail(o, c, &err);
    } else if (r->resolve_only) {
        opening_done(o, o->view.known[at].step, o->view.known[at].incarnation);
    } else {
        opening_load(o, at);
    }
}

static int opening_check_member(const struct opening *o, struct cairn_error *err)
{
    const struct member *m = o->request->member;

    int r = member_check(m, err);
    if (r == 0 && o->view.inc.incarnation != m->incarnation)
        r = cairn_fail(err, CAIRN_E_FENCED, "start %s (incarnation %llu) took over", o->view.inc.start_id,
                       (unsigned long long)o->view.inc.incarnation);
    return r;
}

static void opening_read_done(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct opening *o = req->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (!o->request) {
        opening_free(o);
        return;
    }
    int r = view_read(&o->view, o->request->job, result, &err);
    if (r == 0 && o->request->member && o->request->step == CAIRN_LATEST)
        r = opening_check_member(o, &err);
    if (r < 0) {
        opening_fail(o, cairn_wrap(&err, r, "job %s", o->request->job), &err);
        return;
    }
    opening_mark(o);
    if (o->request->member && o->request->step == CAIRN_LATEST)
        opening_next(o);
    else
        opening_resolve(o);
}

static void opening_read(struct opening *o)
{
    uint32_t left_ms = opening_left_ms(o), meta_ms = o->jobs->config.meta_ms;
    char prefix[RECORD_KEY_MAX];

    loop_timer_cancel(o->jobs->deps.loop, &o->pause);
    view_free(&o->view);
    o->phase = OPEN_READING;
    o->req = (struct meta_req){.done = opening_read_done, .arg = o};
    record_key_job(prefix, o->request->job, "");
    meta_list(o->jobs->deps.meta, prefix, left_ms < meta_ms ? left_ms : meta_ms, &o->req);
}

/* ---- the object ------------------------------------------------------------------------------ */

static int open_check(struct jobs *jobs, const struct open_request *r, struct cairn_error *err)
{
    int c = cairn_name_check("job", r->job, err);

    if (c == 0 && r->member && strcmp(r->member->job->name, r->job) != 0)
        c = cairn_fail(err, CAIRN_E_INVAL, "a rank of job %s asks for job %s", r->member->job->name, r->job);
    if (c == 0 && jobs->stopping)
        c = cairn_fail(err, CAIRN_E_ABORTED, "cairnd on node %s is stopping", jobs->node);
    return c;
}

void jobs_open(struct jobs *jobs, struct open_request *request)
{
    struct open_request *r = request;
    struct cairn_error err = CAIRN_ERROR_INIT;

    r->own = (struct jobs_request){.jobs = jobs, .err = CAIRN_ERROR_INIT};
    list_init(&r->own.link);
    r->own.post = (struct loop_post){.run = open_posted, .arg = r};
    r->ret_hold = NULL;
    int c = open_check(jobs, r, &err);
    struct opening *o = c == 0 ? calloc(1, sizeof *o) : NULL;
    if (c == 0 && !o)
        c = cairn_fail(&err, CAIRN_E_NOMEM, "allocate an opening");
    if (c < 0) {
        open_fail_later(r, c, &err);
        return;
    }
    o->jobs = jobs;
    o->request = r;
    o->started_ns = loop_now_ns(jobs->deps.loop);
    o->timeout_ms = r->timeout_ms ? r->timeout_ms : jobs->config.meta_ms;
    o->load_err = (struct cairn_error)CAIRN_ERROR_INIT;
    list_init(&o->waiter.link);
    list_init(&o->hold_waiter.link);
    list_push_back(&jobs->openings, &o->link);
    r->own.deadline = (struct loop_timer){.fire = opening_late, .arg = o};
    loop_timer_after(jobs->deps.loop, &r->own.deadline, o->timeout_ms);
    opening_read(o);
}

void jobs_wake_openings(struct jobs *jobs, const char *job)
{
    list_for_each (it, &jobs->openings) {
        struct opening *o = container_of(it, struct opening, link);
        if (o->request && o->phase == OPEN_WAITING && strcmp(o->request->job, job) == 0)
            opening_read(o);
    }
}

void jobs_member_left(struct jobs *jobs, const struct member *member)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    int r = cairn_fail(&err, CAIRN_E_ABORTED, "the session ended");

    list_for_each_safe (it, &jobs->openings) {
        struct opening *o = container_of(it, struct opening, link);
        if (o->request && o->request->member == member)
            opening_abandon(o, r, &err);
    }
}

void jobs_stop_openings(struct jobs *jobs)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    int r = cairn_fail(&err, CAIRN_E_ABORTED, "cairnd on node %s is stopping", jobs->node);

    list_for_each_safe (it, &jobs->openings) {
        struct opening *o = container_of(it, struct opening, link);
        if (o->request)
            opening_abandon(o, r, &err);
    }
}
