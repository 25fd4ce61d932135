/* SPDX-License-Identifier: Apache-2.0 */
/* The copies of one blob (a manifest, a root, a decision): who has one, and more of them when there are too few. */
#ifndef CAIRN_DAEMON_NODE_REPAIR_BLOB_H
#define CAIRN_DAEMON_NODE_REPAIR_BLOB_H

#include "daemon/node/blob.h"
#include "daemon/node/repair_stripe.h"

struct blob_repair { /* owned by the caller until done() */
    /* given */
    struct links *links;
    struct fragment_key key;
    const struct blob_ref *ref;
    const void *data; /* its bytes, when they are known; NULL: from a copy */
    bool quick;
    repair_is_away is_away;
    void *is_away_arg;
    void (*done)(struct blob_repair *b);
    void *arg;
    /* results */
    unsigned found, wanted, added; /* copies */
    bool lost;                     /* no copy, and no data */
    int code;                      /* of what was not done */
    struct cairn_error err;
    struct blob_ref placed; /* where the new ones are */
    /* its own */
    struct link *all[REPAIR_MAX_PEERS], *have[CAIRN_MAX_M + 1];
    unsigned nall, next, nhave, away;
    uint32_t piece, pieces;
    struct link_read read;
    struct loop_post post;
    void *copy;
};
void blob_repair_start(struct blob_repair *b);

#endif
