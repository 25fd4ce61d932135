/* SPDX-License-Identifier: Apache-2.0 */
/* Before the root is stored: whether ranks hold the same bytes of what they have in common (core/checkpoint/common.h).
 * The reports say who disagrees; only then two manifests are read, to say on what. When they cannot be read in time, it
 * is said without. */
#include "daemon/node/job_internal.h"

#include "core/checkpoint/common.h"
#include "daemon/io/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct comparison {
    struct decider *d;
    struct common_split split;
    struct side {
        struct comparison *of;
        struct manifest manifest;
        bool read;
    } side[2];
    unsigned in_flight;
};

static void comparison_end(struct comparison *c)
{
    struct decider *d = c->d;
    struct common_tensors t = {.n = 0};
    char text[COMMIT_REASON];

    if (c->side[0].read && c->side[1].read)
        common_differ(&c->side[0].manifest, &c->side[1].manifest, &t, NULL);
    common_text(&c->split, &t, text, sizeof text);
    for (unsigned i = 0; i < 2; i++)
        manifest_free(&c->side[i].manifest);
    free(c);
    d->comparing = false;
    decider_compared(d, text);
    decider_maybe_free(d);
}

static void comparison_read(void *arg, int code, const struct cairn_error *err, const void *data, size_t len)
{
    struct side *side = arg;
    struct comparison *c = side->of;
    struct cairn_error e = CAIRN_ERROR_INIT;

    cairn_error_copy(&e, err);
    if (code == 0)
        code = manifest_decode(&side->manifest, data, len, &e);
    side->read = code == 0;
    if (code < 0)
        log_line(LOG_WARNING, "job %s step %llu: a manifest to be compared cannot be read: %s", c->d->job->name,
                 (unsigned long long)c->d->step, e.message);
    if (--c->in_flight == 0)
        comparison_end(c);
}

static void comparison_start(struct comparison *c, unsigned which)
{
    struct decider *d = c->d;
    const struct shard_ref *shard = &d->root.shards[c->split.witness[which]];
    struct fragment_key key = {
        .step = d->step, .incarnation = d->incarnation, .kind = FRAGMENT_MANIFEST, .rank = shard->rank};

    snprintf(key.job, sizeof key.job, "%s", d->job->name);
    snprintf(key.node, sizeof key.node, "%s", shard->node);
    c->side[which].of = c;
    manifest_init(&c->side[which].manifest);
    blob_get(d->job->jobs->deps.links, &key, &shard->manifest, d->job->jobs->config.meta_ms, comparison_read,
             &c->side[which]);
}

void decider_compare(struct decider *d)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct common_split split = {.sets = 0};
    struct comparison *c = NULL;

    if (common_compare(d->root.shards, d->root.world_size, &split, &err) < 0)
        log_line(LOG_WARNING, "job %s step %llu: ranks are not compared: %s", d->job->name, (unsigned long long)d->step,
                 err.message);
    if (split.sets > 0)
        c = calloc(1, sizeof *c);
    if (!c) {
        char text[COMMIT_REASON];
        common_text(&split, NULL, text, sizeof text);
        decider_compared(d, split.sets > 0 ? text : NULL);
        return;
    }
    c->d = d;
    c->split = split;
    c->in_flight = 2;
    d->comparing = true;
    comparison_start(c, 0);
    comparison_start(c, 1);
}
