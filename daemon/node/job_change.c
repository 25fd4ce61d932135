/* SPDX-License-Identifier: Apache-2.0 */
/* Pins, deletions and rules, as people ask for them: the job's records are read, the change is checked against them and
 * made by a transaction that compares what was read. When that was refused or has no answer the records are read again,
 * for as long as the request lasts. Any daemon may do it. */
#include "daemon/node/job_internal.h"

#include "core/base/cleanup.h"
#include "core/model/name.h"
#include "daemon/io/log.h"

#include <stdio.h>
#include <string.h>

struct change {
    struct jobs *jobs;
    struct change_request *request;
    uint64_t started_ns;
    uint32_t timeout_ms;
    struct meta_req req;
    struct loop_timer pause;
    struct view view;
    size_t at; /* in view: the checkpoint */
    bool pin_there;
    struct burial burial;
};

static void change_read(struct change *c);

static void change_end(struct change *c, int code, const struct cairn_error *err)
{
    struct jobs *jobs = c->jobs;
    struct change_request *r = c->request;

    loop_timer_cancel(jobs->deps.loop, &c->pause);
    view_free(&c->view);
    free(c);
    jobs->posts--;
    r->done(r, code, err);
    jobs_maybe_stopped(jobs);
}

static void change_again(struct loop_timer *timer)
{
    change_read(timer->arg);
}

/* Refused or unknown: read before speaking, unless the time is up. */
static void change_retry(struct change *c, int code, struct cairn_error *err)
{
    uint64_t gone_ms = (loop_now_ns(c->jobs->deps.loop) - c->started_ns) / 1000000;

    if (c->jobs->stopping || gone_ms + JOB_PAUSE_MS >= c->timeout_ms)
        change_end(c, code, err);
    else
        loop_timer_after(c->jobs->deps.loop, &c->pause, JOB_PAUSE_MS);
}

static void change_answered(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct change *c = req->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (result->code == 0 && result->succeeded) {
        if (c->request->kind == CHANGE_RETAIN)
            retainer_want(c->jobs, c->request->job);
        change_end(c, 0, NULL);
        return;
    }
    int r = result->code < 0 ? meta_failed(result, &err, "change the job's records")
                             : cairn_fail(&err, CAIRN_E_BUSY, "job %s changes all the time", c->request->job);
    change_retry(c, r, &err);
}

static void change_send(struct change *c, const struct cairn_txn *txn)
{
    c->req = (struct meta_req){.done = change_answered, .arg = c};
    meta_txn(c->jobs->deps.meta, txn, c->jobs->config.meta_ms, &c->req);
}

/* ---- pins ------------------------------------------------------------------------------------ */

static void pin_what(const struct change_request *r, char what[CAIRN_MAX_NAME + 64])
{
    snprintf(what, CAIRN_MAX_NAME + 64, RECORD_HOLD_PIN "%.*s", CAIRN_MAX_NAME, r->argument);
}

static int change_pin(struct change *c, struct cairn_error *err)
{
    const struct change_request *r = c->request;
    const struct known *k = &c->view.known[c->at];
    char pin[RECORD_KEY_MAX], holds[RECORD_KEY_MAX], decision[RECORD_KEY_MAX], tombstone[RECORD_KEY_MAX];
    char what[CAIRN_MAX_NAME + 64];
    struct bytes value = {0};

    pin_what(r, what);
    record_key_ckpt(pin, r->job, k->step, k->incarnation, what);
    record_key_ckpt(holds, r->job, k->step, k->incarnation, "holds");
    record_key_ckpt(decision, r->job, k->step, k->incarnation, "decision");
    record_key_ckpt(tombstone, r->job, k->step, k->incarnation, "tombstone");
    int code = jobs_hold_record(c->jobs, &value, err);
    if (code == 0) {
        struct cairn_compare seen[] = {{decision, c->view.keeping[c->at].decision_revision}, {tombstone, 0}};
        struct cairn_put put[] = {{holds, value.data, value.len, 0}, {pin, value.data, value.len, 0}};
        struct cairn_txn txn = {.compares = seen, .ncompares = 2, .puts = put, .nputs = 2};
        change_send(c, &txn);
    }
    bytes_free(&value);
    return code;
}

static int change_unpin(struct change *c, struct cairn_error *err)
{
    const struct change_request *r = c->request;
    const struct known *k = &c->view.known[c->at];
    char pin[RECORD_KEY_MAX], what[CAIRN_MAX_NAME + 64];
    const char *keys[] = {pin};
    struct cairn_txn txn = {.deletes = keys, .ndeletes = 1};

    if (!c->pin_there)
        return cairn_fail(err, CAIRN_E_NOT_FOUND, "step %llu of job %s has no pin \"%s\"", (unsigned long long)k->step,
                          r->job, r->argument);
    pin_what(r, what);
    record_key_ckpt(pin, r->job, k->step, k->incarnation, what);
    change_send(c, &txn);
    return 0;
}

/* ---- deletion -------------------------------------------------------------------------------- */

static void change_buried(struct burial *b, int code, const struct cairn_error *err)
{
    struct change *c = b->arg;
    struct cairn_error e = CAIRN_ERROR_INIT;

    cairn_error_copy(&e, err);
    if (code < 0)
        change_retry(c, code, &e);
    else
        change_end(c, 0, NULL);
}

static int change_delete(struct change *c, struct cairn_error *err)
{
    int r = view_check_deletable(&c->view, c->request->job, c->at, err);

    if (r < 0)
        return r;
    if (retainer_needs(c->jobs, c->request->job, &c->view, c->at))
        return cairn_fail(err, CAIRN_E_BUSY, "step %llu of job %s stays until a newer one is full: try again later",
                          (unsigned long long)c->request->ret_step, c->request->job);
    c->burial = (struct burial){.done = change_buried, .arg = c};
    return burial_start(c->jobs, &c->burial, c->request->job, &c->view, c->at, "asked for", err);
}

/* ---- the rule -------------------------------------------------------------------------------- */

static int change_retain(struct change *c, struct cairn_error *err)
{
    struct change_request *r = c->request;
    struct record_settings s = c->view.settings;
    struct bytes value = {0};
    char key[RECORD_KEY_MAX];

    if (c->view.n == 0 && !c->view.inc_revision && !c->view.settings_revision)
        return cairn_fail(err, CAIRN_E_NOT_FOUND, "there is no job %s", r->job);
    snprintf(s.retention, sizeof s.retention, "%s", r->ret_rule);
    if (!s.owner[0])
        memcpy(s.owner, r->owner, sizeof s.owner);
    if (!s.retention[0])
        retention_print(&c->jobs->config.retention, r->ret_rule);
    record_key_job(key, r->job, "settings");
    int code = record_settings_encode(&s, &value, err);
    if (code == 0) {
        struct cairn_compare seen = {key, c->view.settings_revision};
        struct cairn_put put = {key, value.data, value.len, 0};
        struct cairn_txn txn = {.compares = &seen, .ncompares = 1, .puts = &put, .nputs = 1};
        change_send(c, &txn);
    }
    bytes_free(&value);
    return code;
}

/* ---- reading --------------------------------------------------------------------------------- */

static int change_find(struct change *c, struct cairn_error *err)
{
    struct change_request *r = c->request;
    const struct view *v = &c->view;
    ptrdiff_t at = view_pick(v, r->step);

    if (at < 0)
        return view_not_found(v, r->job, r->step, err);
    c->at = (size_t)at;
    r->ret_step = v->known[at].step;
    r->ret_incarnation = v->known[at].incarnation;
    return 0;
}

static bool has_pin(const struct change *c, const struct cairn_meta_result *result)
{
    const struct change_request *r = c->request;
    char pin[RECORD_KEY_MAX], what[CAIRN_MAX_NAME + 64];

    pin_what(r, what);
    record_key_ckpt(pin, r->job, r->ret_step, r->ret_incarnation, what);
    for (size_t i = 0; i < result->nkvs; i++)
        if (strcmp(result->kvs[i].key, pin) == 0)
            return true;
    return false;
}

/* A deletion without an answer was applied after all. */
static bool is_done(const struct change *c)
{
    const struct change_request *r = c->request;
    ptrdiff_t at = r->ret_incarnation ? view_find(&c->view, r->ret_step, r->ret_incarnation) : -1;

    return r->kind == CHANGE_DELETE && at >= 0 && c->view.known[at].fate == KNOWN_DELETED;
}

static void change_was_read(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct change *c = req->arg;
    struct change_request *r = c->request;
    struct cairn_error err = CAIRN_ERROR_INIT;
    int code = 0;

    view_free(&c->view);
    if (c->jobs->stopping)
        code = cairn_fail(&err, CAIRN_E_ABORTED, "cairnd on node %s is stopping", c->jobs->node);
    if (code == 0)
        code = view_read(&c->view, r->job, result, &err);
    if (code == 0 && is_done(c)) {
        change_end(c, 0, NULL);
        return;
    }
    if (code == 0 && r->kind != CHANGE_RETAIN)
        code = change_find(c, &err);
    if (code == 0) {
        c->pin_there = has_pin(c, result);
        code = r->kind == CHANGE_PIN      ? change_pin(c, &err)
               : r->kind == CHANGE_UNPIN  ? change_unpin(c, &err)
               : r->kind == CHANGE_DELETE ? change_delete(c, &err)
                                          : change_retain(c, &err);
    }
    if (code < 0)
        change_end(c, code, &err);
}

static void change_read(struct change *c)
{
    char prefix[RECORD_KEY_MAX];

    record_key_job(prefix, c->request->job, "");
    c->req = (struct meta_req){.done = change_was_read, .arg = c};
    meta_list(c->jobs->deps.meta, prefix, c->jobs->config.meta_ms, &c->req);
}

/* ---- the object ------------------------------------------------------------------------------ */

static int change_check(struct change_request *r, struct cairn_error *err)
{
    struct retention rule;

    int c = cairn_name_check("job", r->job, err);
    if (c == 0 && (r->kind == CHANGE_PIN || r->kind == CHANGE_UNPIN))
        c = cairn_name_check("label", r->argument, err);
    if (c < 0 || r->kind != CHANGE_RETAIN)
        return c;
    r->ret_rule[0] = 0;
    if (strcmp(r->argument, "default") == 0)
        return 0;
    c = retention_parse(r->argument, &rule, err);
    if (c == 0)
        retention_print(&rule, r->ret_rule);
    return c;
}

static void change_posted(struct loop_post *post)
{
    struct change_request *r = post->arg;
    struct jobs *jobs = r->own.jobs;
    struct cairn_error err = r->own.err; /* r may be gone during done */

    jobs->posts--;
    r->done(r, r->own.code, &err);
    jobs_maybe_stopped(jobs);
}

void jobs_change(struct jobs *jobs, struct change_request *request)
{
    struct change_request *r = request;

    r->own = (struct jobs_request){.jobs = jobs, .err = CAIRN_ERROR_INIT};
    r->own.post = (struct loop_post){.run = change_posted, .arg = r};
    r->ret_step = r->ret_incarnation = 0;
    jobs->posts++;
    r->own.code = change_check(r, &r->own.err);
    if (r->own.code == 0 && jobs->stopping)
        r->own.code = cairn_fail(&r->own.err, CAIRN_E_ABORTED, "cairnd on node %s is stopping", jobs->node);
    struct change *c = r->own.code == 0 ? calloc(1, sizeof *c) : NULL;
    if (r->own.code == 0 && !c)
        r->own.code = cairn_fail(&r->own.err, CAIRN_E_NOMEM, "allocate a change");
    if (!c) {
        loop_defer(jobs->deps.loop, &r->own.post);
        return;
    }
    c->jobs = jobs;
    c->request = r;
    c->started_ns = loop_now_ns(jobs->deps.loop);
    c->timeout_ms = r->timeout_ms ? r->timeout_ms : jobs->config.meta_ms;
    c->pause = (struct loop_timer){.fire = change_again, .arg = c};
    change_read(c);
}
