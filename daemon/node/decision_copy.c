/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/node/decision_copy.h"

#include "core/model/stripe.h"
#include "daemon/io/log.h"
#include "daemon/node/job_internal.h"

#include <stdio.h>
#include <stdlib.h>

#define COPY_MS 5000 /* a stop does not wait longer */

struct copying {
    struct jobs *jobs;
    struct fragment_key key;
    struct bytes data;
    void (*done)(void *arg);
    void *arg;
};

static void copied(void *arg, int code, const struct cairn_error *err, const struct blob_ref *ref)
{
    struct copying *c = arg;
    struct jobs *jobs = c->jobs;

    (void)ref;
    if (code < 0)
        log_line(LOG_WARNING, "the decision of %s step %llu has no copy on the peers yet: %s", c->key.job,
                 (unsigned long long)c->key.step, err->message);
    c->done(c->arg);
    bytes_free(&c->data);
    free(c);
    jobs->posts--;
    jobs_maybe_stopped(jobs);
}

/* The same record that was put into the metadata. */
static int encode(const struct root *root, const struct blob_ref *ref, struct bytes *out, struct cairn_error *err)
{
    struct record_decision d = {.commit = true,
                                .root = *ref,
                                .world_size = root->world_size,
                                .created_unix_ms = root->created_unix_ms,
                                .base = root->base};

    snprintf(d.node, sizeof d.node, "%s", root->node);
    for (uint32_t i = 0; i < root->world_size; i++) {
        d.plain_bytes += root->shards[i].plain_bytes;
        d.stored_bytes += root->shards[i].stored_bytes;
    }
    d.counted = root_nonfinite(root, &d.nonfinite);
    return record_decision_encode(&d, out, err);
}

bool decision_copy(struct jobs *jobs, const struct root *root, const struct blob_ref *ref, void (*done)(void *arg),
                   void *arg)
{
    struct copying *c = jobs->stopping ? NULL : calloc(1, sizeof *c);
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (!c || ref->len == 0) { /* the commit of another coordinator, learned by reading */
        free(c);
        return false;
    }
    if (encode(root, ref, &c->data, &err) < 0) {
        log_line(LOG_WARNING, "the decision of %s step %llu is not copied: %s", root->job,
                 (unsigned long long)root->step, err.message);
        bytes_free(&c->data);
        free(c);
        return false;
    }
    c->jobs = jobs;
    c->done = done;
    c->arg = arg;
    c->key = (struct fragment_key){.step = root->step, .incarnation = root->incarnation, .kind = FRAGMENT_DECISION};
    snprintf(c->key.job, sizeof c->key.job, "%s", root->job);
    snprintf(c->key.node, sizeof c->key.node, "%s", root->node);
    jobs->posts++;
    unsigned copies = cairn_geometry_for(links_live(jobs->deps.links)).m + 1u;
    blob_put(jobs->deps.links, &c->key, 0, c->data.data, c->data.len, copies, COPY_MS, copied, c);
    return true;
}
