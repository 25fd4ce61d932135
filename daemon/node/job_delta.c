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
 * with the base's checksum, so that a page that was taken, or written to by its process, only makes a full chunk. */
#include "daemon/node/job_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NOTED_PER_RANK 3 /* the base, and what may become one */

struct noted { /* what a rank's shard is made of */
    struct list link;
    uint64_t step, incarnation;
    uint32_t rank;
    struct blob_ref manifest;
    struct chunk_record *chunks;
    uint32_t nchunks;
};

static void noted_free(struct noted *n)
{
    list_remove(&n->link);
    free(n->chunks);
    free(n);
}

void delta_forget(struct job *job)
{
    list_for_each_safe (it, &job->noted)
        noted_free(container_of(it, struct noted, link));
}

/* Newest first. */
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
    struct noted *n = job->jobs->config.delta_chain ? calloc(1, sizeof *n) : NULL;

    if (!n)
        return; /* then it is no base */
    list_init(&n->link);
    n->chunks = calloc(manifest->nchunks ? manifest->nchunks : 1, sizeof *n->chunks);
    if (!n->chunks) {
        noted_free(n);
        return;
    }
    memcpy(n->chunks, manifest->chunks, manifest->nchunks * sizeof *n->chunks);
    n->nchunks = manifest->nchunks;
    n->step = manifest->step;
    n->incarnation = manifest->incarnation;
    n->rank = manifest->rank;
    n->manifest = ref->manifest;
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
    const struct noted *n = base && base->is_set && save->events.base ? find(run->job, base, save->rank) : NULL;

    *ret = (struct manifest_base){.is_set = n != NULL};
    if (!n)
        return;
    ret->step = n->step;
    ret->incarnation = n->incarnation;
    ret->manifest = n->manifest;
    snprintf(ret->node, sizeof ret->node, "%s", run->job->jobs->node);
}

bool delta_base(struct rank_save *save, const struct manifest_base *base, uint32_t first_part, unsigned k,
                struct cairn_delta *ret, const char **ret_plain)
{
    struct job *job = save->run->job;
    const struct ckpt_base id = {true, base->step, base->incarnation};
    const struct noted *n = find(job, &id, save->rank);
    const struct chunk_record *c = NULL;

    for (uint32_t i = 0; n && i < n->nchunks && !c; i++)
        if (n->chunks[i].first_part == first_part)
            c = &n->chunks[i];
    if (!c || c->k != k || c->delta.depth >= job->jobs->config.delta_chain)
        return false;
    if (!save->events.base(save->arg, base->step, base->incarnation, first_part, k, ret_plain))
        return false;
    *ret = (struct cairn_delta){.step = base->step,
                                .incarnation = base->incarnation,
                                .entry = c->entry,
                                .depth = (uint8_t)(c->delta.depth + 1)};
    return true;
}
