/* SPDX-License-Identifier: Apache-2.0 */
/* A repair goes through a job's committed checkpoints, the newest first, and makes whole what peers have lost:
 *
 *     list -> load a checkpoint -> its stripes, some at a time -> copies of its manifests, root and decision
 *              ^-- the next one ---------------------------------------------------------------------'
 *
 * What it reads and writes is paced ([node] repair_mib_s); a few chunks are in memory at a time. A peer that comes back
 * with fragments that were made again elsewhere has duplicates: they are equal, and harmless. */
#ifndef CAIRN_DAEMON_NODE_REPAIR_H
#define CAIRN_DAEMON_NODE_REPAIR_H

#include "daemon/node/internal.h"
#include "daemon/node/repair_blob.h"
#include "daemon/node/repair_stripe.h"

struct repair_request { /* copied */
    char job[CAIRN_MAX_NAME + 1];
    bool one; /* only the newest committed one of this step (CAIRN_LATEST: of all) */
    uint64_t step;
    bool quick;             /* ask peers for what they know, read nothing to find out */
    repair_is_away is_away; /* NULL: nobody is */
    void *is_away_arg;
    bool (*skip)(void *arg, const struct listed *l);      /* NULL: none */
    void (*was_whole)(void *arg, const struct listed *l); /* nothing of it is missing; NULL */
    void *skip_arg;
    uint32_t timeout_ms; /* 0: none */
    /* report is the caller's, also on failure, when it may be NULL. Never from within repair_start. */
    void (*done)(void *arg, int code, const struct cairn_error *err, json_t *report);
    void *arg;
};
/* A stop of the node ends it with ABORTED. BUSY: one of this job is under way; when that is a quick one it ends soon.
 */
int repair_start(struct node *node, const struct repair_request *request, struct cairn_error *err);

#endif
