/* SPDX-License-Identifier: Apache-2.0 */
/* The transactions of a checkpoint on its coordinator: its intent, with the base that it is stored against, and its
 * commit; and what the next ones may be stored against once it is there. */
#include "daemon/node/job_internal.h"

#include <stdio.h>
#include <string.h>

/* What the next ones may be stored against. */
void decider_applied(const struct decider *d, uint64_t revision)
{
    struct job *job = d->job;
    const struct jobs_config *config = &job->jobs->config;
    struct ckpt_base self = {true, d->step, d->incarnation};
    uint64_t stored_bytes = 0;

    delta_committed(job, d->step, d->incarnation);
    job->newest = self;
    job->newest_revision = revision;
    job->newest_chain = d->chain;
    for (uint32_t i = 0; i < d->machine.world_size; i++)
        stored_bytes += d->root.shards[i].stored_bytes;
    share_committed(&job->share, &self, &d->root.base, revision, stored_bytes,
                    config->delta_chain ? 0 : config->share_unchanged);
}

/* Keys of what a transaction of this checkpoint compares. */
struct decide_keys {
    char intent[RECORD_KEY_MAX];
    char decision[RECORD_KEY_MAX];
    char incarnation[RECORD_KEY_MAX];
    char pin[RECORD_KEY_MAX];
    char coordinator[RECORD_KEY_MAX];
};

static void keys_fill(struct decide_keys *k, const struct decider *d)
{
    const char *job = d->job->name;

    record_key_ckpt(k->intent, job, d->step, d->incarnation, "intent");
    record_key_ckpt(k->decision, job, d->step, d->incarnation, "decision");
    record_key_job(k->incarnation, job, "incarnation");
    record_key_job(k->pin, job, "pin");
    record_key_job(k->coordinator, job, "coordinator");
}

static void decide_txn(struct decider *d, const struct cairn_compare *compares, size_t ncompares, const char *key,
                       const struct bytes *value)
{
    struct cairn_put put = {key, value->data, value->len, 0};
    struct cairn_txn txn = {.compares = compares, .ncompares = ncompares, .puts = &put, .nputs = 1};

    meta_txn(d->job->jobs->deps.meta, &txn, d->job->jobs->config.meta_ms, &d->req);
}

/* The base is committed, not deleted and not known to be lost while the intent is put, and whoever deletes it has not
 * read the intent: holds change with it. */
static void decide_txn_with_base(struct decider *d, const struct cairn_compare *seen, size_t nseen, const char *key,
                                 const struct bytes *value, const struct bytes *hold)
{
    const struct ckpt_base *b = &d->root.base;
    char decision[RECORD_KEY_MAX], tombstone[RECORD_KEY_MAX], holds[RECORD_KEY_MAX], lost[RECORD_KEY_MAX];
    struct cairn_compare c[8];

    record_key_ckpt(decision, d->job->name, b->step, b->incarnation, "decision");
    record_key_ckpt(tombstone, d->job->name, b->step, b->incarnation, "tombstone");
    record_key_ckpt(holds, d->job->name, b->step, b->incarnation, "holds");
    record_key_ckpt(lost, d->job->name, b->step, b->incarnation, "lost");
    memcpy(c, seen, nseen * sizeof *c);
    c[nseen] = (struct cairn_compare){decision, d->base_revision};
    c[nseen + 1] = (struct cairn_compare){tombstone, 0};
    c[nseen + 2] = (struct cairn_compare){lost, 0};
    struct cairn_put put[] = {{key, value->data, value->len, 0}, {holds, hold->data, hold->len, 0}};
    struct cairn_txn txn = {.compares = c, .ncompares = nseen + 3, .puts = put, .nputs = 2};
    meta_txn(d->job->jobs->deps.meta, &txn, d->job->jobs->config.meta_ms, &d->req);
}

/* Once, for the first try: were a later one to name a base, the first, applied late, would take the name from the
 * record again, and the base could be deleted under the checkpoint. Chains are counted by checkpoints, not only by
 * chunks: what one checkpoint keeps from being deleted has an end. */
static void decide_choose_base(struct decider *d)
{
    struct job *job = d->job;
    const struct jobs_config *config = &job->jobs->config;

    if (d->root.base.is_set || d->no_base)
        return;
    d->no_base = true;
    delta_pinned(job); /* the transaction compares the pin: by one that is not known here it is refused */
    if (!config->delta_chain && config->share_unchanged) {
        d->root.base = share_choose(&job->share, d->step, d->incarnation);
        d->chain = d->root.base.is_set;
        d->base_revision = job->share.revision;
        return;
    }
    if (!config->delta_chain || !job->newest.is_set || job->newest_chain >= config->delta_chain ||
        !ckpt_base_is_older(job->newest.step, job->newest.incarnation, d->step, d->incarnation))
        return;
    d->root.base = job->newest;
    d->chain = job->newest_chain + 1;
    d->base_revision = job->newest_revision;
}

int decider_put_intent(struct decider *d, struct cairn_error *err)
{
    decide_choose_base(d);

    struct job *job = d->job;
    struct record_intent intent = {.world_size = d->machine.world_size,
                                   .nodes = job->ncrew + 1,
                                   .deadline_ms = job->jobs->config.checkpoint_ms,
                                   .base = d->root.base};
    struct bytes value = {0}, hold = {0};
    struct decide_keys k;

    snprintf(intent.node, sizeof intent.node, "%s", job->jobs->node);
    keys_fill(&k, d);
    int r = record_intent_encode(&intent, &value, err);
    if (r == 0 && d->root.base.is_set)
        r = jobs_hold_record(job->jobs, &hold, err);
    if (r == 0) {
        struct cairn_compare c[] = {{k.decision, 0},
                                    {k.incarnation, job->inc_revision},
                                    {k.pin, job->pin_revision},
                                    {k.coordinator, job->coordinator_revision}};
        if (d->root.base.is_set)
            decide_txn_with_base(d, c, 4, k.intent, &value, &hold);
        else
            decide_txn(d, c, 4, k.intent, &value);
    }
    bytes_free(&hold);
    bytes_free(&value);
    return r;
}

int decider_put_commit(struct decider *d, struct cairn_error *err)
{
    struct job *job = d->job;
    struct record_decision decision = {.commit = true,
                                       .root = d->root_ref,
                                       .world_size = d->machine.world_size,
                                       .created_unix_ms = d->root.created_unix_ms,
                                       .base = d->root.base};
    struct bytes value = {0};
    struct decide_keys k;

    snprintf(decision.node, sizeof decision.node, "%s", job->jobs->node);
    for (uint32_t i = 0; i < d->machine.world_size; i++) {
        decision.plain_bytes += d->root.shards[i].plain_bytes;
        decision.stored_bytes += d->root.shards[i].stored_bytes;
    }
    decision.counted = root_nonfinite(&d->root, &decision.nonfinite);
    keys_fill(&k, d);
    int r = record_decision_encode(&decision, &value, err);
    if (r == 0) {
        struct cairn_compare c[] = {{k.decision, 0},
                                    {k.incarnation, job->inc_revision},
                                    {k.pin, job->pin_revision},
                                    {k.coordinator, job->coordinator_revision}};
        decide_txn(d, c, 4, k.decision, &value);
    }
    bytes_free(&value);
    return r;
}
