/* SPDX-License-Identifier: Apache-2.0 */
/* Holds: while this daemon reads a checkpoint nobody deletes it. One key for each checkpoint, however many read it,
 * under the jobs' lease, so that a dead daemon holds nothing.
 *
 *     NONE --put--> PUTTING --applied--> THERE --nobody reads any more--> DELETING --> gone
 *      ^               |  \--refused: it was deleted--> REFUSED
 *      +--no answer----+        THERE --the lease is lost--> NONE
 *
 * Putting compares that there is no tombstone and that the decision is the one that was read, and changes "holds",
 * whose revision a tombstone compares: of a hold and a tombstone only one is ever applied. */
#include "daemon/node/job_internal.h"

#include "core/base/cleanup.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum hold_state { HOLD_NONE, HOLD_PUTTING, HOLD_THERE, HOLD_DELETING, HOLD_REFUSED };
struct hold {
    struct jobs *jobs; /* NULL: they have ended, the lease with them */
    struct list link;
    char job[CAIRN_MAX_NAME + 1];
    uint64_t step, incarnation;
    uint64_t decision_revision;
    unsigned refs;
    int state;           /* enum hold_state */
    bool maybe;          /* the key may be there */
    int64_t lease;       /* that it was put under */
    struct list waiters; /* struct hold_waiter */
    struct meta_req req;
    struct loop_timer retry;
};

static void hold_tick(struct hold *h);

static bool hold_busy(const struct hold *h)
{
    return h->state == HOLD_PUTTING || h->state == HOLD_DELETING;
}

static void hold_free(struct hold *h)
{
    if (h->jobs)
        loop_timer_cancel(h->jobs->deps.loop, &h->retry);
    list_remove(&h->link);
    free(h);
}

static void hold_retry(struct loop_timer *timer)
{
    hold_tick(timer->arg);
}

static void hold_later(struct hold *h)
{
    loop_timer_after(h->jobs->deps.loop, &h->retry, JOB_MAX_PAUSE_MS);
}

static void hold_key(const struct hold *h, char key[RECORD_KEY_MAX])
{
    char what[CAIRN_MAX_NAME + 64];

    snprintf(what, sizeof what, RECORD_HOLD_READ "%s-%016" PRIx64, h->jobs->node, h->jobs->config.start);
    record_key_ckpt(key, h->job, h->step, h->incarnation, what);
}

/* Those who wait may release it. */
static void hold_tell(struct hold *h, int code, const struct cairn_error *err)
{
    h->refs++;
    while (!list_empty(&h->waiters)) {
        struct hold_waiter *w = list_first(&h->waiters, struct hold_waiter, link);
        list_remove(&w->link);
        w->done(w, code, err);
    }
    h->refs--;
}

/* ---- putting --------------------------------------------------------------------------------- */

static void hold_put_done(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct hold *h = req->arg;
    struct jobs *jobs = h->jobs;
    struct cairn_error err = CAIRN_ERROR_INIT;

    h->state = HOLD_NONE;
    h->maybe |= result->code < 0 || result->succeeded;
    if (result->code == 0 && !result->succeeded) {
        h->state = HOLD_REFUSED;
        hold_tell(h, cairn_fail(&err, CAIRN_E_NOT_FOUND, "step %llu was deleted", (unsigned long long)h->step), &err);
    } else if (result->code == 0 && h->lease == jobs->lease) {
        h->state = HOLD_THERE;
        hold_tell(h, 0, NULL);
    } else if (result->code < 0) {
        bool lost = result->code == CAIRN_E_NOT_FOUND || result->code == CAIRN_E_INVAL;
        if (lost && h->lease == jobs->lease)
            jobs_lease_lost(jobs, "a restore's hold was refused under it");
        hold_tell(h, meta_failed(result, &err, "hold the checkpoint"), &err);
        hold_later(h);
        if (h->refs > 0)
            return;
    }
    hold_tick(h);
}

static void hold_put(struct hold *h)
{
    struct jobs *jobs = h->jobs;
    char key[RECORD_KEY_MAX], holds[RECORD_KEY_MAX], decision[RECORD_KEY_MAX], tombstone[RECORD_KEY_MAX];
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct bytes value = {0};

    hold_key(h, key);
    record_key_ckpt(holds, h->job, h->step, h->incarnation, "holds");
    record_key_ckpt(decision, h->job, h->step, h->incarnation, "decision");
    record_key_ckpt(tombstone, h->job, h->step, h->incarnation, "tombstone");
    if (jobs_hold_record(jobs, &value, &err) < 0) {
        bytes_free(&value);
        hold_later(h);
        return;
    }
    struct cairn_compare c[] = {{decision, h->decision_revision}, {tombstone, 0}};
    struct cairn_put put[] = {{holds, value.data, value.len, 0}, {key, value.data, value.len, jobs->lease}};
    struct cairn_txn txn = {.compares = c, .ncompares = 2, .puts = put, .nputs = 2};
    h->state = HOLD_PUTTING;
    h->lease = jobs->lease;
    h->req = (struct meta_req){.done = hold_put_done, .arg = h};
    meta_txn(jobs->deps.meta, &txn, jobs->config.meta_ms, &h->req);
    bytes_free(&value);
}

/* ---- deleting -------------------------------------------------------------------------------- */

static void hold_delete_done(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct hold *h = req->arg;

    h->state = HOLD_NONE;
    h->maybe = result->code < 0;
    if (h->maybe && h->refs == 0 && !h->jobs->stopping)
        hold_later(h);
    else
        hold_tick(h);
}

static void hold_delete(struct hold *h)
{
    char key[RECORD_KEY_MAX];
    const char *keys[] = {key};
    struct cairn_txn txn = {.deletes = keys, .ndeletes = 1};

    hold_key(h, key);
    h->state = HOLD_DELETING;
    h->req = (struct meta_req){.done = hold_delete_done, .arg = h};
    meta_txn(h->jobs->deps.meta, &txn, h->jobs->config.meta_ms, &h->req);
}

/* ---- the object ------------------------------------------------------------------------------ */

/* Does the next thing; may free it. */
static void hold_tick(struct hold *h)
{
    struct jobs *jobs = h->jobs;

    if (hold_busy(h))
        return;
    if (jobs->stopping) { /* the lease goes, and the keys with it */
        if (h->refs == 0)
            hold_free(h);
        jobs_maybe_stopped(jobs);
    } else if (h->refs == 0 && h->maybe) {
        hold_delete(h);
    } else if (h->refs == 0) {
        hold_free(h);
    } else if (h->state == HOLD_NONE && jobs->lease) {
        hold_put(h);
    } else if (h->state == HOLD_NONE) {
        jobs_want_lease(jobs);
    }
}

static struct hold *hold_find(struct jobs *jobs, const struct load_key *key)
{
    list_for_each (it, &jobs->holds) {
        struct hold *h = container_of(it, struct hold, link);
        if (h->step == key->step && h->incarnation == key->incarnation && h->state != HOLD_REFUSED &&
            strcmp(h->job, key->job) == 0)
            return h;
    }
    return NULL;
}

int hold_take(struct jobs *jobs, const struct load_key *key, uint64_t decision_revision, struct hold_waiter *w,
              struct hold **ret_hold, struct cairn_error *err)
{
    struct hold *h = hold_find(jobs, key);

    list_init(&w->link);
    if (!h) {
        h = calloc(1, sizeof *h);
        if (!h)
            return cairn_fail(err, CAIRN_E_NOMEM, "allocate a hold");
        h->jobs = jobs;
        h->step = key->step;
        h->incarnation = key->incarnation;
        h->retry = (struct loop_timer){.fire = hold_retry, .arg = h};
        snprintf(h->job, sizeof h->job, "%s", key->job);
        list_init(&h->waiters);
        list_push_back(&jobs->holds, &h->link);
    }
    h->decision_revision = decision_revision;
    h->refs++;
    *ret_hold = h;
    if (h->state == HOLD_THERE)
        return 1;
    list_push_back(&h->waiters, &w->link);
    hold_tick(h);
    return 0;
}

void hold_release(struct hold *hold)
{
    struct hold *h = hold;

    if (!h || --h->refs > 0)
        return;
    if (!h->jobs)
        free(h);
    else
        hold_tick(h);
}

void holds_lease_lost(struct jobs *jobs)
{
    list_for_each (it, &jobs->holds) {
        struct hold *h = container_of(it, struct hold, link);
        if (h->state != HOLD_THERE)
            continue;
        h->state = HOLD_NONE;
        hold_later(h); /* it is put again under the next lease */
    }
}

void holds_lease_granted(struct jobs *jobs, bool granted)
{
    list_for_each_safe (it, &jobs->holds) {
        struct hold *h = container_of(it, struct hold, link);
        if (!granted)
            hold_later(h);
        else if (h->state == HOLD_NONE)
            hold_tick(h);
    }
}

void holds_stop(struct jobs *jobs)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    int r = cairn_fail(&err, CAIRN_E_ABORTED, "cairnd on node %s is stopping", jobs->node);

    list_for_each_safe (it, &jobs->holds) {
        struct hold *h = container_of(it, struct hold, link);
        if (hold_busy(h))
            continue; /* its answer comes */
        hold_tell(h, r, &err);
        hold_tick(h);
    }
}

bool holds_quiet(const struct jobs *jobs)
{
    list_for_each (it, &jobs->holds)
        if (hold_busy(container_of(it, struct hold, link)))
            return false;
    return true;
}

void holds_leave(struct jobs *jobs)
{
    list_for_each_safe (it, &jobs->holds) {
        struct hold *h = container_of(it, struct hold, link);
        loop_timer_cancel(jobs->deps.loop, &h->retry);
        list_remove(&h->link);
        list_init(&h->link);
        h->jobs = NULL;
        if (h->refs == 0)
            free(h);
    }
}

int jobs_hold_record(struct jobs *jobs, struct bytes *out, struct cairn_error *err)
{
    struct record_hold r = {.start = jobs->config.start, .created_unix_ms = jobs_unix_ms()};

    snprintf(r.node, sizeof r.node, "%s", jobs->node);
    return record_hold_encode(&r, out, err);
}
