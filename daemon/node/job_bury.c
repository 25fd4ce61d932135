/* SPDX-License-Identifier: Apache-2.0 */
/* A burial puts a checkpoint's tombstone:
 *
 *     its manifests say which peers may have files of it
 *         --> one transaction: the tombstone, if the decision is there, nobody holds it, nobody came to hold it since,
 *             and the job's resume step has not moved
 *
 * From then on the checkpoint is committed no more; its files and records go when they can (job_retain.c). Manifests
 * that cannot be read do not keep a checkpoint: then the peers that are known must do. */
#include "daemon/node/job_internal.h"

#include "core/base/cleanup.h"
#include "daemon/io/log.h"

#include <stdio.h>
#include <string.h>

static void note_peer(struct record_tombstone *t, const char *peer)
{
    for (uint32_t i = 0; i < t->npeers; i++)
        if (strcmp(t->peers[i], peer) == 0)
            return;
    if (t->npeers < RECORD_TOMBSTONE_PEERS) /* of more, those that are registered are asked all the same */
        snprintf(t->peers[t->npeers++], sizeof t->peers[0], "%s", peer);
}

static void note_blob(struct record_tombstone *t, const struct blob_ref *b)
{
    for (uint32_t i = 0; i < b->npeers; i++)
        note_peer(t, b->peer[i]);
}

static void note_known(void *arg, const char *peer, bool registered)
{
    if (registered)
        note_peer(arg, peer);
}

static void note_away(void *arg, const char *peer, bool registered)
{
    if (!registered)
        note_peer(arg, peer);
}

static void note_checkpoint(struct record_tombstone *t, const struct checkpoint *c)
{
    for (uint32_t r = 0; r < c->root.world_size; r++) {
        note_blob(t, &c->root.shards[r].manifest);
        for (uint32_t p = 0; p < c->manifests[r].npeers; p++)
            note_peer(t, c->manifests[r].peers[p]);
    }
}

static void burial_end(struct burial *b, int code, const struct cairn_error *err)
{
    free(TAKE_PTR(b->tombstone));
    b->done(b, code, err);
}

static void burial_answered(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct burial *b = req->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;
    int r = 0;

    if (result->code < 0)
        r = meta_failed(result, &err, "delete a checkpoint");
    else if (!result->succeeded)
        r = cairn_fail(&err, CAIRN_E_BUSY, "step %llu of job %s changed meanwhile", (unsigned long long)b->step,
                       b->job);
    if (r < 0) {
        burial_end(b, r, &err);
        return;
    }
    log_line(LOG_NOTICE, "job %s: step %llu of incarnation %llu is deleted: %s", b->job, (unsigned long long)b->step,
             (unsigned long long)b->incarnation, b->tombstone->reason);
    retainer_buried(b->jobs, b, result->revision);
    burial_end(b, 0, NULL);
}

static int burial_send(struct burial *b, struct cairn_error *err)
{
    struct jobs *jobs = b->jobs;
    char decision[RECORD_KEY_MAX], holds[RECORD_KEY_MAX], tombstone[RECORD_KEY_MAX], pin[RECORD_KEY_MAX];
    struct bytes value = {0};

    record_key_ckpt(decision, b->job, b->step, b->incarnation, "decision");
    record_key_ckpt(holds, b->job, b->step, b->incarnation, "holds");
    record_key_ckpt(tombstone, b->job, b->step, b->incarnation, "tombstone");
    record_key_job(pin, b->job, "pin");
    int r = record_tombstone_encode(b->tombstone, &value, err);
    if (r == 0) {
        struct cairn_compare c[] = {
            {decision, b->decision_revision}, {holds, b->holds_revision}, {tombstone, 0}, {pin, b->pin_revision}};
        struct cairn_put put = {tombstone, value.data, value.len, 0};
        struct cairn_txn txn = {.compares = c, .ncompares = 4, .puts = &put, .nputs = 1};
        b->req = (struct meta_req){.done = burial_answered, .arg = b};
        meta_txn(jobs->deps.meta, &txn, jobs->config.meta_ms, &b->req);
    }
    bytes_free(&value);
    return r;
}

/* c: NULL when it cannot be read. */
static int burial_put(struct burial *b, const struct checkpoint *c, struct cairn_error *err)
{
    struct links *links = b->jobs->deps.links;

    note_blob(b->tombstone, &b->decision.root);
    if (c)
        note_checkpoint(b->tombstone, c);
    else
        links_each_peer(links, note_away, b->tombstone);
    links_each_peer(links, note_known, b->tombstone);
    if (b->jobs->stopping)
        return cairn_fail(err, CAIRN_E_ABORTED, "cairnd on node %s is stopping", b->jobs->node);
    return burial_send(b, err);
}

static void burial_loaded(struct load_waiter *w, int code, const struct cairn_error *err, struct checkpoint *c)
{
    struct burial *b = container_of(w, struct burial, waiter);

    if (code < 0)
        log_line(LOG_DETAIL, "job %s: step %llu is deleted though it cannot be read: %s", b->job,
                 (unsigned long long)b->step, err->message);
    struct cairn_error e = CAIRN_ERROR_INIT;
    int r = burial_put(b, code < 0 ? NULL : c, &e);
    if (r < 0)
        burial_end(b, r, &e);
}

int burial_start(struct jobs *jobs, struct burial *b, const char *job, const struct view *v, size_t at,
                 const char *reason, struct cairn_error *err)
{
    const struct known *k = &v->known[at];
    struct load_key key = {b->job, k->step, k->incarnation};

    b->jobs = jobs;
    b->step = k->step;
    b->incarnation = k->incarnation;
    b->decision = v->decisions[at];
    b->decision_revision = v->keeping[at].decision_revision;
    b->holds_revision = v->keeping[at].holds_revision;
    b->pin_revision = v->pin_revision;
    snprintf(b->job, sizeof b->job, "%s", job);
    b->tombstone = calloc(1, sizeof *b->tombstone);
    if (!b->tombstone)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a tombstone");
    snprintf(b->tombstone->node, sizeof b->tombstone->node, "%s", jobs->node);
    snprintf(b->tombstone->reason, sizeof b->tombstone->reason, "%s", reason);
    b->tombstone->created_unix_ms = jobs_unix_ms();
    b->waiter.done = burial_loaded;
    list_init(&b->waiter.link);
    const struct checkpoint *c = load_cached(jobs, &key);
    int r = c ? burial_put(b, c, err) : load_start(jobs, &key, &b->decision, jobs->config.meta_ms, &b->waiter, err);
    if (r < 0)
        free(TAKE_PTR(b->tombstone));
    return r;
}
