/* SPDX-License-Identifier: Apache-2.0 */
/* What a job's next checkpoint may be stored against:
 *
 *     a rank's shard is durable --> what it is made of is noted here, for as long as this daemon runs
 *     its checkpoint is committed by this coordinator --> the next intent names it as its base, in the transaction that
 *         also touches the base's "holds": from then on the base is not deleted before the checkpoint is
 *     intent written --> every node is told its base with it: drains take as base what they find noted on their node,
 * if the base's snapshot is still in the arena
 *
 * Nobody keeps a base's pages from being taken by a later save: whoever encodes copies them first and compares the copy
 * with the base's checksum, so that a page that was taken, or written to by its process, only makes a full chunk.
 *
 * With share_unchanged the intent names the same base again and again (core/checkpoint/share.h), one that has all of
 * its chunks itself. A chunk that has the base's entry checksum is the base's: nothing of it is stored, and the base's
 * bytes need not lie anywhere near. */
#include "daemon/node/job_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NOTED_PER_RANK 3 /* the base, and what may become one: those that were made or used last */

struct noted { /* what a rank's shard is made of */
    struct list link;
    uint64_t step, incarnation;
    uint32_t rank;
    struct blob_ref manifest;
    struct hash128 digest; /* of its layout */
    struct chunk_record *chunks;
    bool *changed; /* of each: a later save had other bytes there */
    uint32_t nchunks;
};

static void noted_free(struct noted *n)
{
    list_remove(&n->link);
    free(n->chunks);
    free(n->changed);
    free(n);
}

void delta_forget(struct job *job)
{
    list_for_each_safe (it, &job->noted)
        noted_free(container_of(it, struct noted, link));
}

/* Those that were made or used last come first. */
static void drop_older(struct job *job, uint32_t rank)
{
    unsigned n = 0;

    list_for_each_safe (it, &job->noted) {
        struct noted *old = container_of(it, struct noted, link);
        if (old->rank == rank && ++n > NOTED_PER_RANK)
            noted_free(old);
    }
}

void delta_note(struct rank_save *save, const struct shard_ref *ref, const struct manifest *manifest)
{
    struct job *job = save->run->job;
    const struct jobs_config *config = &job->jobs->config;
    struct noted *n = config->delta_chain || config->share_unchanged ? calloc(1, sizeof *n) : NULL;

    if (!n)
        return; /* then it is no base */
    list_init(&n->link);
    n->chunks = calloc(manifest->nchunks ? manifest->nchunks : 1, sizeof *n->chunks);
    n->changed = calloc(manifest->nchunks ? manifest->nchunks : 1, sizeof *n->changed);
    if (!n->chunks || !n->changed) {
        noted_free(n);
        return;
    }
    memcpy(n->chunks, manifest->chunks, manifest->nchunks * sizeof *n->chunks);
    n->nchunks = manifest->nchunks;
    n->step = manifest->step;
    n->incarnation = manifest->incarnation;
    n->rank = manifest->rank;
    n->manifest = ref->manifest;
    n->digest = save->image.digest;
    list_push_front(&job->noted, &n->link);
    drop_older(job, n->rank);
}

static struct noted *find(struct job *job, const struct ckpt_base *base, uint32_t rank)
{
    list_for_each (it, &job->noted) {
        struct noted *n = container_of(it, struct noted, link);
        if (n->rank == rank && n->step == base->step && n->incarnation == base->incarnation)
            return n;
    }
    return NULL;
}

void delta_choose(struct rank_save *save, struct manifest_base *ret)
{
    struct run *run = save->run;
    const struct decider *d = job_find_decider(run->job, run->step, run->incarnation);
    /* Only what is known to be in the intent's record: what this coordinator has written or adopted, or another said.
     */
    const struct ckpt_base *base = d ? (d->machine.intent ? &d->root.base : NULL) : run->intent ? &run->base : NULL;
    struct noted *n = base && base->is_set && save->events.base ? find(run->job, base, save->rank) : NULL;

    *ret = (struct manifest_base){.is_set = n != NULL};
    if (!n)
        return;
    list_remove(&n->link);
    list_push_front(&run->job->noted, &n->link);
    ret->step = n->step;
    ret->incarnation = n->incarnation;
    ret->manifest = n->manifest;
    snprintf(ret->node, sizeof ret->node, "%s", run->job->jobs->node);
}

/* The index of the base's chunk that begins there; -1: none does. */
static ptrdiff_t chunk_from(const struct noted *n, uint32_t first_part)
{
    uint32_t low = 0, high = n ? n->nchunks : 0;

    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (n->chunks[mid].first_part == first_part)
            return mid;
        if (n->chunks[mid].first_part < first_part)
            low = mid + 1;
        else
            high = mid;
    }
    return -1;
}

/* The base's chunk of the same parts; NULL: none. */
static const struct chunk_record *chunk_at(const struct noted *n, uint32_t first_part, unsigned k)
{
    ptrdiff_t i = chunk_from(n, first_part);

    return i >= 0 && n->chunks[i].k == k ? &n->chunks[i] : NULL;
}

static struct noted *find_base(struct rank_save *save, const struct manifest_base *base)
{
    return find(save->run->job, &(struct ckpt_base){true, base->step, base->incarnation}, save->rank);
}

static struct cairn_delta against(const struct manifest_base *base, const struct chunk_record *c)
{
    return (struct cairn_delta){.step = base->step,
                                .incarnation = base->incarnation,
                                .entry = c->entry,
                                .depth = (uint8_t)(c->delta.depth + 1)};
}

bool delta_base(struct rank_save *save, const struct manifest_base *base, uint32_t first_part, unsigned k,
                struct cairn_delta *ret, const char **ret_plain)
{
    const struct chunk_record *c = chunk_at(find_base(save, base), first_part, k);

    if (!c || c->delta.depth >= save->run->job->jobs->config.delta_chain)
        return false;
    if (!save->events.base(save->arg, base->step, base->incarnation, first_part, k, ret_plain))
        return false;
    *ret = against(base, c);
    return true;
}

bool delta_maybe_same(struct rank_save *save, const struct manifest_base *base, uint32_t first_part, unsigned k,
                      struct cairn_delta *ret)
{
    const struct noted *n = find_base(save, base);
    const struct chunk_record *c = chunk_at(n, first_part, k);
    const struct hash128 *digest = &save->image.digest;

    if (!save->run->job->jobs->config.share_unchanged || !c || n->changed[c - n->chunks] ||
        c->delta.depth >= CAIRN_MAX_CHAIN || n->digest.low != digest->low || n->digest.high != digest->high)
        return false;
    *ret = against(base, c);
    return true;
}

void delta_not_same(struct rank_save *save, const struct manifest_base *base, uint32_t first_part)
{
    struct noted *n = find_base(save, base);

    ptrdiff_t i = chunk_from(n, first_part);

    if (i >= 0)
        n->changed[i] = true;
}

void delta_pinned(struct job *job)
{
    if (share_left_behind(&job->share.base, &job->pin))
        share_refused(&job->share, &(struct ckpt_base){true, job->share.base.step, job->share.base.incarnation});
    if (share_left_behind(&job->newest, &job->pin))
        job->newest = (struct ckpt_base){.is_set = false};
}

/* By (incarnation, step). */
static bool is_after_last(const struct job *job, uint64_t step, uint64_t incarnation)
{
    const struct ckpt_base *last = &job->last;

    return !last->is_set || incarnation > last->incarnation || (incarnation == last->incarnation && step > last->step);
}

void delta_committed(struct job *job, uint64_t step, uint64_t incarnation)
{
    if (is_after_last(job, step, incarnation))
        job->last = (struct ckpt_base){true, step, incarnation};
}

/* Whoever committed since may have seen a start pass over what is remembered here: by now the pin is a newer one, and
 * no longer says so. */
void delta_adopted(struct job *job, const struct view *v)
{
    for (size_t i = 0; i < v->n; i++) {
        const struct known *k = &v->known[i];
        if ((k->fate != KNOWN_COMMITTED && k->fate != KNOWN_DELETED) || !is_after_last(job, k->step, k->incarnation))
            continue;
        job->newest = (struct ckpt_base){.is_set = false};
        job->share = (struct share){.used = 0};
        return;
    }
}

/* ---- what is lost ---------------------------------------------------------------------------- */

struct distrust {
    struct meta_req req;
    struct jobs *jobs;
};

static void distrust_told(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct distrust *t = req->arg;
    struct jobs *jobs = t->jobs;

    (void)result; /* it is there already; or, without an answer, whoever looks next tells again */
    free(t);
    jobs->posts--;
    jobs_maybe_stopped(jobs);
}

/* Another node may coordinate: an intent whose base has this key is refused. */
static void distrust_tell(struct jobs *jobs, const char *job, uint64_t step, uint64_t incarnation)
{
    char lost[RECORD_KEY_MAX], tombstone[RECORD_KEY_MAX];
    struct distrust *t = jobs->stopping ? NULL : calloc(1, sizeof *t);
    struct bytes value = {0};

    if (!t)
        return;
    if (jobs_hold_record(jobs, &value, NULL) < 0) {
        free(t);
    } else {
        record_key_ckpt(lost, job, step, incarnation, "lost");
        record_key_ckpt(tombstone, job, step, incarnation, "tombstone");
        struct cairn_compare c[] = {{lost, 0}, {tombstone, 0}};
        struct cairn_put put = {lost, value.data, value.len, 0};
        struct cairn_txn txn = {.compares = c, .ncompares = 2, .puts = &put, .nputs = 1};
        *t = (struct distrust){.req = {.done = distrust_told, .arg = t}, .jobs = jobs};
        jobs->posts++;
        meta_txn(jobs->deps.meta, &txn, jobs->config.meta_ms, &t->req);
    }
    bytes_free(&value);
}

void jobs_distrust(struct jobs *jobs, const char *name, uint64_t step, uint64_t incarnation)
{
    struct job *job = jobs_find(jobs, name);
    struct ckpt_base lost = {true, step, incarnation};

    if (!job || !job->held)
        distrust_tell(jobs, name, step, incarnation);
    if (!job)
        return;
    share_refused(&job->share, &lost);
    if (job->newest.is_set && job->newest.step == step && job->newest.incarnation == incarnation)
        job->newest = (struct ckpt_base){.is_set = false};
}
