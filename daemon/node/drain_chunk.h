/* SPDX-License-Identifier: Apache-2.0 */
/* A chunk on its way and the drain it belongs to: shared by drain.c, which decides, and drain_chunk.c, which encodes
 * and sends. */
#ifndef CAIRN_DAEMON_NODE_DRAIN_CHUNK_H
#define CAIRN_DAEMON_NODE_DRAIN_CHUNK_H

#include "daemon/node/drain.h"
#include "daemon/node/encode.h"
#include "daemon/node/link.h"

enum frag_state { FRAG_NEEDED, FRAG_SENDING, FRAG_STORED };

struct frag {
    enum frag_state state;
    struct link *link; /* where it is, or is going */
    uint32_t epoch;    /* of the link when it was stored */
    uint64_t stored_at;
};

/*     TODO --buffers--> ENCODING --> SENDING --all stored--> STORED --all synced--> DURABLE
 *       ^                               |  a fragment was refused or lost  |
 *       +-------------------------------+----------------------------------+       */
enum chunk_state { CHUNK_TODO, CHUNK_ENCODING, CHUNK_SENDING, CHUNK_STORED, CHUNK_DURABLE };

struct chunk {
    struct list link; /* in the drain's list of its state */
    struct drain *drain;
    enum chunk_state state;
    uint32_t first_part, attempt;
    uint8_t k, m;
    bool known; /* encoded before: entry and part are what it must give again */
    struct hash128 entry;
    struct cairn_part_code part[CAIRN_MAX_K];
    unsigned sending;
    struct frag frag[]; /* k + m */
};

struct drain {
    struct links *links;
    struct drain_spec spec;
    char job[CAIRN_MAX_NAME + 1];
    struct stream_key stream;
    struct pump pump;
    struct loop_timer deadline;
    struct list todo, encoding, sending, stored, durable; /* of struct chunk */
    uint32_t next_part;                                   /* the first that is in no chunk yet */
    uint32_t durable_parts;
    uint64_t unsynced_bytes;
    uint64_t no_peer_since_ns; /* 0: there is one */
    unsigned busy;             /* encodes, sends, the manifest: done() waits for them */
    bool manifest_going;
    struct manifest manifest;
    struct bytes manifest_bytes;
    struct shard_ref ref;
    int code; /* negative: it has failed and waits for busy */
    struct cairn_error err;
    bool finished;
    char last_error[WIRE_TEXT];
};

struct chunk *chunk_new(struct drain *d, uint32_t first_part, unsigned k, unsigned m, uint32_t attempt);
void chunk_move(struct chunk *c, enum chunk_state state);
/* Takes buffers and gives the chunk to a worker. The caller has seen that k + m buffers are free. */
void chunk_encode(struct chunk *c);
/* Fragments whose link failed since are needed again. */
void chunk_check_links(struct chunk *c);
bool chunk_needs_sending(const struct chunk *c);
/* Whether every needed fragment has a peer that holds none of this chunk. */
bool chunk_has_targets(struct chunk *c);
/* After an encode: the needed fragments go out. Buffers of the others are given back. */
uint64_t chunk_record_bytes(const struct chunk *c);
void drain_fail(struct drain *d, int code, const struct cairn_error *err);

#endif
