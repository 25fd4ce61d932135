/* SPDX-License-Identifier: Apache-2.0 */
/* A chunk on its way and the drain it belongs to: shared by drain.c, which decides, and drain_chunk.c, which encodes
 * and sends. */
#ifndef CAIRN_DAEMON_NODE_DRAIN_CHUNK_H
#define CAIRN_DAEMON_NODE_DRAIN_CHUNK_H

#include "daemon/node/drain.h"
#include "daemon/node/encode.h"
#include "daemon/node/link.h"

enum frag_state { FRAG_NEEDED, FRAG_SENDING, FRAG_STORED, FRAG_DURABLE };

struct sending;
struct place { /* where a fragment is, or is going */
    enum frag_state state;
    struct link *link; /* the last, also when it failed there */
    uint32_t epoch;    /* of the link when it was stored */
    uint64_t stored_at;
    struct sending *sending;
};
struct frag {
    struct place at[2]; /* the second is used while the first is late: whichever is stored first counts */
    uint64_t sum;       /* of its payload, once known */
};

/*     TODO --buffers--> ENCODING --> GOING --k + margin durable--> SAFE --all durable--> FULL
 *       ^                 ^            |                            | a fragment is missing, and nothing
 *       +---- too few -----------------+                            | else is left to be encoded
 *                         +-----------------------------------------+                               */
enum chunk_state { CHUNK_TODO, CHUNK_ENCODING, CHUNK_GOING, CHUNK_SAFE, CHUNK_FULL };

struct chunk {
    struct list link; /* in the drain's list of its state */
    struct drain *drain;
    enum chunk_state state;
    uint32_t first_part, attempt;
    uint8_t k, m;
    bool counted;     /* it has been SAFE: its parts are durable, and it is never cut again */
    bool released;    /* its pages may be taken: it cannot be encoded any more */
    bool spoilt;      /* it did not encode to the same again: what is missing is left to repair */
    bool known;       /* encoded before: entry and part are what it must give again */
    bool came_packed; /* some of its parts */
    struct hash128 entry;
    struct cairn_part_code part[CAIRN_MAX_K];
    struct cairn_delta delta;
    bool same;      /* as its base: it has no fragments of its own, and counts at once */
    bool base_lost; /* it was a delta, and its base is not there any more: its parts are cut again */
    unsigned sending;
    struct list unchecked; /* in the drain, while its parts are to be compared with sums that came later */
    bool checking;         /* a worker reads its pages for that */
    struct frag frag[];    /* k + m */
};

struct drain {
    struct links *links;
    struct drain_spec spec;
    char job[CAIRN_MAX_NAME + 1];
    struct stream_key stream;
    struct pump pump;
    struct cairn_pace pace;                        /* in parts */
    struct loop_timer deadline;                    /* for done(), then for what is left behind it */
    struct list todo, encoding, going, safe, full; /* of struct chunk */
    uint32_t next_part;                            /* the first that is in no chunk yet */
    uint32_t durable_parts, shared_parts;
    bool filling;                        /* only in_place parts are there: nothing is given back, and nothing told */
    uint32_t in_place;                   /* parts that may be cut */
    uint32_t early_parts;                /* that were, before it was filled */
    uint32_t held;                       /* full chunks whose pages could not be given back yet */
    struct list unchecked;               /* of struct chunk */
    unsigned checking;                   /* chunks that workers compare now */
    uint64_t unsynced_bytes, sync_bytes; /* with so many a sync is asked for */
    uint64_t no_peer_since_ns;           /* 0: there is one */
    unsigned busy;                       /* encodes, sends, the manifest: done() waits for them */
    bool manifest_going;
    bool told;                   /* done() was called: what is late goes on behind it */
    bool over;                   /* and has had its time */
    struct numerics *numerics;   /* NULL: not watched */
    bool indexing;               /* and it is not ready for the first chunk */
    struct worker_job table_job; /* that, and later the manifest */
    int table_code;
    struct cairn_error table_err;
    struct manifest manifest;
    struct bytes manifest_bytes;
    struct shard_ref ref;
    int code; /* negative: it has failed and waits for busy */
    struct cairn_error err;
    char last_error[WIRE_TEXT];
};

struct chunk *chunk_new(struct drain *d, uint32_t first_part, unsigned k, unsigned m, uint32_t attempt);
void chunk_move(struct chunk *c, enum chunk_state state);
/* Where its parts lie in the arena. */
void chunk_plain(const struct chunk *c, const char *ret_plain[CAIRN_MAX_K], uint32_t ret_len[CAIRN_MAX_K]);
/* Its pages are not read any more. */
void chunk_release(struct chunk *c);
/* Takes buffers and gives the chunk to a worker. The caller has seen that k + m buffers are free. */
void chunk_encode(struct chunk *c);
/* What was synced since is durable; what was only stored on a link that failed since is needed again. */
void chunk_check_links(struct chunk *c);
/* Fragments that are in this state or further. */
unsigned chunk_count(const struct chunk *c, enum frag_state state);
/* So many make it count. */
unsigned chunk_enough(const struct chunk *c);
static inline unsigned chunk_fragments(const struct chunk *c)
{
    return c->same ? 0 : (unsigned)c->k + c->m;
}
/* Whether every needed fragment has a peer that holds none of this chunk. */
bool chunk_has_targets(struct chunk *c);
/* Fragments that wait behind a late answer, or are it, go to spare peers too, as far as there are any. */
void chunk_spare_late(struct chunk *c);
/* Gives back the buffers of fragments that have waited for a slot too long, when the chunk counts without them; or of
 * all that wait. */
void chunk_shed(struct chunk *c, bool all);
/* Where a fragment most probably is. */
struct link *chunk_place(const struct chunk *c, unsigned index);
uint64_t chunk_record_bytes(const struct chunk *c);
void drain_fail(struct drain *d, int code, const struct cairn_error *err);

/* ---- drain.c --------------------------------------------------------------------------------- */
/* Its bytes are made. */
void drain_store_manifest(struct drain *d);

/* ---- drain_manifest.c ------------------------------------------------------------------------ */
/* Gets ready to look at what tensors hold, if that is asked for and there is memory for it. */
void drain_watch_numbers(struct drain *d);
/* drain_store_manifest or drain_fail follows. */
void drain_make_manifest(struct drain *d);

/* ---- drain_fill.c ---------------------------------------------------------------------------- */
/* Compares what was encoded without sums, some at a time. */
void drain_check_more(struct drain *d);
/* It was encoded without the sums that are known now. */
void chunk_check_later(struct chunk *c);
/* Nothing is being filled, and nothing is left to be compared. */
bool drain_is_settled(const struct drain *d);
/* For err: the part, from 0 on in its image, is not what its source was. */
int drain_differs(const struct drain *d, uint32_t part, struct cairn_error *err);
/* The same of what cannot be unpacked. */
int drain_undecoded(const struct drain *d, uint32_t part, struct cairn_error *err);

/* ---- drain_pace.c ---------------------------------------------------------------------------- */
/* Whether the next new chunk may be cut by the drain's plan. If not, the pumps run when it may. */
bool drain_in_pace(struct drain *d);
/* Whether this node's rates allow more to be encoded. If not, the same. */
bool drain_in_rate(struct drain *d);
/* ", paced: 40% of 12 s": how far the plan is; empty for a drain that has none. */
void drain_pace_text(const struct drain *d, char *buf, size_t len);

#endif
