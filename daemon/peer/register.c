/* SPDX-License-Identifier: Apache-2.0 */
/* The peer in the metadata: its record under a lease, refreshed with the free space; and the lookup of decisions and
 * tombstones before anything is deleted. Absent records delete nothing. */
#include "daemon/peer/internal.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "daemon/io/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define META_MS 5000
#define FORGET_AT_ONCE 256 /* asked for by nodes */
#define FORGET_ROUND 32    /* of the peer's own */

static void register_again_in(struct peer *p, uint32_t delay_ms);

static int make_record(struct peer *p, struct cairn_error *err)
{
    struct record_peer rec = {.start = p->start};
    struct cairn_space space = {0};

    store_space(p->deps.store, &space, NULL); /* a store that cannot say has no room to offer */
    p->status.free_bytes = rec.free_bytes = space.free_bytes;
    p->status.total_bytes = rec.total_bytes = space.total_bytes;
    snprintf(rec.id, sizeof rec.id, "%s", p->id);
    snprintf(rec.domain, sizeof rec.domain, "%s", p->domain);
    snprintf(rec.provider, sizeof rec.provider, "%s", p->provider);
    endpoint_address(p->ep, rec.address, &rec.address_len);
    bytes_free(&p->record);
    return record_peer_encode(&rec, &p->record, err);
}

static void lost_registration(struct peer *p, const char *what, const struct cairn_meta_result *r)
{
    if (!p->complained)
        log_line(LOG_WARNING, "peer %s is not registered: %s: %s", p->id, what, r->err ? r->err->message : "refused");
    p->complained = true;
    p->status.registered = false;
    p->lease = 0;
    register_again_in(p, 1000);
}

static void recorded(struct meta_req *req, const struct cairn_meta_result *r)
{
    struct peer *p = req->arg;

    p->registering = false;
    if (p->stopping) {
        peer_unregister(p);
        return;
    }
    if (r->code < 0 || !r->succeeded) {
        lost_registration(p, "put its record", r);
        return;
    }
    if (!p->status.registered)
        log_line(LOG_NOTICE, "peer %s is registered with %llu MiB free", p->id,
                 (unsigned long long)(p->status.free_bytes >> 20));
    p->status.registered = true;
    p->complained = false;
    register_again_in(p, p->config.lease_ms / 3);
}

static void put_record(struct peer *p)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    int r = make_record(p, &err);
    struct cairn_put put = {p->record_key, p->record.data, p->record.len, p->lease};
    struct cairn_txn txn = {.puts = &put, .nputs = 1};

    if (r < 0) {
        struct cairn_meta_result failed = {.code = r, .err = &err};
        recorded(&p->meta_req, &failed);
        return;
    }
    p->meta_req.done = recorded;
    meta_txn(p->deps.meta, &txn, META_MS, &p->meta_req);
}

static void leased(struct meta_req *req, const struct cairn_meta_result *r)
{
    struct peer *p = req->arg;

    if (r->code < 0 || p->stopping) {
        p->registering = false;
        if (p->stopping)
            peer_unregister(p);
        else
            lost_registration(p, "keep its lease", r);
        return;
    }
    if (p->lease == 0)
        p->lease = r->lease;
    put_record(p);
}

void peer_register(struct peer *p)
{
    if (p->registering || p->stopping)
        return;
    p->registering = true;
    p->meta_req.done = leased;
    p->meta_req.arg = p;
    if (p->lease)
        meta_lease_keep(p->deps.meta, p->lease, META_MS, &p->meta_req);
    else
        meta_lease_grant(p->deps.meta, p->config.lease_ms, META_MS, &p->meta_req);
}

static void refresh(struct loop_timer *t)
{
    peer_register(t->arg);
}

static void register_again_in(struct peer *p, uint32_t delay_ms)
{
    p->refresh = (struct loop_timer){.fire = refresh, .arg = p, .heap_index = p->refresh.heap_index};
    loop_timer_after(p->deps.loop, &p->refresh, delay_ms);
}

static void unregistered(struct meta_req *req, const struct cairn_meta_result *r)
{
    struct peer *p = req->arg;

    (void)r; /* when it failed, the lease ends by itself */
    p->registering = false;
    p->lease = 0;
    peer_maybe_stopped(p);
}

void peer_unregister(struct peer *p)
{
    loop_timer_cancel(p->deps.loop, &p->refresh);
    if (p->registering)
        return; /* what is under way calls again */
    if (!p->lease) {
        peer_maybe_stopped(p);
        return;
    }
    p->registering = true;
    p->meta_req.done = unregistered;
    p->meta_req.arg = p;
    meta_lease_revoke(p->deps.meta, p->lease, META_MS, &p->meta_req);
}

/* ---- checkpoints that were aborted or deleted ------------------------------------------------ */

struct forget {
    struct meta_req req;
    struct peer *peer;
    struct peer_node *node; /* that asked and is answered; NULL: the peer's own round */
    char job[CAIRN_MAX_NAME + 1];
    uint64_t step, incarnation;
};

bool peer_has_forgotten(const struct peer *p, const char *job, uint64_t step, uint64_t incarnation)
{
    for (unsigned i = 0; i < PEER_MAX_FORGOTTEN && i < p->nforgotten; i++) {
        const struct forgotten *f = &p->forgotten[i];
        if (f->step == step && f->incarnation == incarnation && strcmp(f->job, job) == 0)
            return true;
    }
    return false;
}

/* Late writes of it are refused from now on, by this start of the peer: the oldest is overwritten. */
static void remember_forgotten(struct peer *p, const struct forget *f)
{
    if (peer_has_forgotten(p, f->job, f->step, f->incarnation))
        return;
    struct forgotten *to = &p->forgotten[p->nforgotten++ % PEER_MAX_FORGOTTEN];
    to->step = f->step;
    to->incarnation = f->incarnation;
    memcpy(to->job, f->job, sizeof to->job);
}

/* Only what is written there says that it may go: that the records are not there is no reason. */
static bool records_allow(const struct forget *f, const struct cairn_meta_result *r)
{
    char job[CAIRN_MAX_NAME + 1];
    uint64_t step, incarnation;
    const char *what;
    struct record_decision d;
    bool allowed = false;

    for (size_t i = 0; r->code == 0 && i < r->nkvs; i++) {
        const struct cairn_kv *kv = &r->kvs[i];
        if (record_parse_ckpt(kv->key, job, &step, &incarnation, &what, NULL) < 0 || strcmp(job, f->job) != 0 ||
            step != f->step || incarnation != f->incarnation)
            continue;
        if (strcmp(what, "tombstone") == 0) {
            _cleanup_free_ struct record_tombstone *t = malloc(sizeof *t);
            allowed |= t && record_tombstone_decode(t, kv->value, kv->value_len, NULL) == 0;
        } else if (strcmp(what, "decision") == 0) {
            allowed |= record_decision_decode(&d, kv->value, kv->value_len, NULL) == 0 && !d.commit;
        }
    }
    return allowed;
}

static void forget_answer(const struct forget *f)
{
    struct wire_message m = {.type = WIRE_FORGOTTEN};

    if (!f->node || f->node->ended)
        return;
    memcpy(m.forget.job, f->job, sizeof m.forget.job);
    m.forget.step = f->step;
    m.forget.incarnation = f->incarnation;
    peer_answer(f->node, &m);
}

static void forget_now(const struct forget *f)
{
    struct peer *p = f->peer;
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (peer_check_engine(p, &err) < 0) {
        log_line(LOG_WARNING, "%s step %llu is not deleted: %s", f->job, (unsigned long long)f->step, err.message);
        return;
    }
    remember_forgotten(p, f);
    int n = keep_forget(p->keep, f->job, f->step, f->incarnation, &err);
    if (n < 0)
        log_line(LOG_WARNING, "cannot delete checkpoint %s step %llu: %s", f->job, (unsigned long long)f->step,
                 err.message);
    else if (n > 0)
        log_line(LOG_DETAIL, "deleted %d files of checkpoint %s step %llu", n, f->job, (unsigned long long)f->step);
    if (n >= 0 && !keep_has(p->keep, f->job, f->step, f->incarnation))
        forget_answer(f);
}

static void records_read(struct meta_req *req, const struct cairn_meta_result *r)
{
    struct forget *f = req->arg;
    struct peer *p = f->peer;
    struct peer_node *node = f->node;

    p->forgetting--;
    if (!p->stopping && records_allow(f, r))
        forget_now(f);
    free(f);
    if (node)
        peer_node_pending_end(node);
    peer_maybe_stopped(p);
}

static void forget_start(struct peer *p, struct peer_node *node, const char *job, uint64_t step, uint64_t incarnation)
{
    char prefix[RECORD_KEY_MAX];
    struct forget *f = p->forgetting < FORGET_AT_ONCE && !p->stopping ? calloc(1, sizeof *f) : NULL;

    if (!f)
        return; /* the next round comes to it */
    f->peer = p;
    f->node = node;
    f->step = step;
    f->incarnation = incarnation;
    snprintf(f->job, sizeof f->job, "%s", job);
    f->req.done = records_read;
    f->req.arg = f;
    p->forgetting++;
    if (node)
        node->pending++;
    record_key_ckpt(prefix, job, step, incarnation, "");
    meta_list(p->deps.meta, prefix, META_MS, &f->req);
}

void peer_on_forget(struct peer_node *n, const struct wire_message *m)
{
    forget_start(n->peer, n, m->forget.job, m->forget.step, m->forget.incarnation);
}

static void forget_idle(void *arg, const struct cairn_stream_id *id)
{
    forget_start(arg, NULL, id->job, id->step, id->incarnation);
}

void peer_forget_some(struct peer *p)
{
    keep_each_idle(p->keep, FORGET_ROUND, forget_idle, p, NULL);
}
