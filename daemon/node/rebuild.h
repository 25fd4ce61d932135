/* SPDX-License-Identifier: Apache-2.0 */
/* What the peers' files say is stored, for command_rebuild.c: every stream of every peer, sorted. */
#ifndef CAIRN_DAEMON_NODE_REBUILD_H
#define CAIRN_DAEMON_NODE_REBUILD_H

#include "core/proto/wire.h"
#include "daemon/node/link.h"

#include <jansson.h>

struct stored { /* a stream of one peer */
    struct wire_stream stream;
    struct link *link;
};
struct inventory { /* owned by the caller until done() */
    struct links *links;
    char job[CAIRN_MAX_NAME + 1];    /* "": of all jobs */
    char engine[CAIRN_MAX_NAME + 1]; /* the one that is there */
    void (*done)(struct inventory *inv, int code, const struct cairn_error *err);
    void *arg;
    bool stop; /* set by the caller: done() comes soon, with ABORTED */
    /* results */
    struct stored *items; /* by job, step, incarnation, node */
    size_t n;
    bool complete; /* every peer that is known answered */
    bool strange;  /* a peer belongs to another engine */
    json_t *peers; /* {"peer", "streams", "engine", "error"} each */
    /* its own */
    struct link *all[LINKS_MAX];
    unsigned nall, at;
    struct link_call call;
    struct loop_post post;
    size_t first; /* of this peer's items */
    size_t room;
    char of_peer[CAIRN_MAX_NAME + 1]; /* its engine */
};
void inventory_start(struct inventory *inv);
void inventory_free(struct inventory *inv);
/* Whether both belong to one checkpoint. */
bool stored_together(const struct stored *a, const struct stored *b);

#endif
