/* SPDX-License-Identifier: Apache-2.0 */
/* A drain takes one snapshot from the arena to stable storage on the peers:
 *
 *     arena pages -> encode (worker: checksum, codec per part, parity) -> fragments -> slots of the stripe's peers
 *                 -> Stored -> Sync -> Synced -> chunk durable -> ... -> manifest stored and synced -> done
 *
 * A chunk counts when k + margin of its fragments are durable; the others complete behind it, also behind done(), for
 * a bounded time. What is late goes to the next peer in the stripe's order too; what is lost is encoded again from the
 * arena. Only where too few peers are left for k + margin the chunk is cut and striped again with the geometry of those
 * that live, under a higher attempt. What does not complete in time is left to repair.
 *
 * A drain may begin while the snapshot is being filled: it cuts only what is in place, gives no page back and stores no
 * manifest before drain_filled. A save that is never filled is cancelled; what it stored is as of any aborted one.
 */
#ifndef CAIRN_DAEMON_NODE_DRAIN_H
#define CAIRN_DAEMON_NODE_DRAIN_H

#include "core/model/pace.h"
#include "core/proto/root.h"
#include "daemon/node/links.h"
#include "daemon/node/numerics.h"

struct drain;
struct drain_spec {
    const char *job;
    uint64_t step;
    uint64_t incarnation;
    uint64_t fence_incarnation; /* told to the peers */
    uint32_t rank;
    uint32_t world_size;
    const struct cairn_layout *layout; /* borrowed until done */
    char *arena;                       /* address of page 0; borrowed until done; written to where parts are packed */
    const uint32_t *pages;             /* of each part of the image; borrowed until done */
    uint32_t *packed;     /* of each part in place: bytes in its page, packed; 0: it lies there as it is, or
                             does since the drain unpacked it. NULL: all do. Borrowed until ended */
    uint32_t attempt;     /* of the first striping: lower ones may lie on peers already */
    uint32_t deadline_ms; /* until done, from when it is filled */
    bool filling;         /* until drain_filled only the first in_place parts are there */
    uint32_t in_place;
    const struct hash128 *sums; /* drain_sums; NULL: not known, or not yet */
    uint64_t sums_seed;
    struct cairn_pace pace;           /* in parts; all zero: full speed */
    struct numerics_budget *numerics; /* what tensors hold is looked at, for the manifest; NULL: it is not */
    struct manifest_base against;     /* what chunks may be deltas against; not set: they are full */
    void *arg;
    /* The base of a chunk, and where its plain parts lie, which may change at any time; false: none. */
    bool (*base)(void *arg, const struct manifest_base *against, uint32_t first_part, unsigned k,
                 struct cairn_delta *ret, const char **ret_plain);
    /* What the chunk may be the same as, by its entry checksum; false: nothing. NULL: never. */
    bool (*maybe_same)(void *arg, const struct manifest_base *against, uint32_t first_part, unsigned k,
                       struct cairn_delta *ret);
    /* It is not. */
    void (*not_same)(void *arg, const struct manifest_base *against, uint32_t first_part);
    /* These parts are durable, and their pages are not read any more. */
    void (*durable)(void *arg, uint32_t first_part, uint32_t nparts);
    /* Exactly once, never from within drain_start. code 0: the shard and its manifest are durable to the margin; ref
     * and manifest live during the call. Pages and layout are still borrowed. */
    void (*done)(void *arg, int code, const struct cairn_error *err, const struct shard_ref *ref,
                 const struct manifest *manifest);
    /* Exactly once, after done: the drain is gone and reads nothing any more. left: fragments that are not durable; 0:
     * the shard is full. */
    void (*ended)(void *arg, unsigned left);
};
int drain_start(struct links *links, const struct drain_spec *spec, struct drain **ret_drain, struct cairn_error *err);
/* done() follows with CAIRN_E_ABORTED unless it was called before, then ended(). */
void drain_cancel(struct drain *drain);
/* So many of the first parts are in place now, and will not change. */
void drain_in_place(struct drain *drain, uint32_t parts);
/* All are, and the snapshot counts. Does nothing when it does already. */
void drain_filled(struct drain *drain);
/* XXH3-128 with the seed of each part where it came from; both halves 0: not known. Borrowed until ended. The drain
 * fails with CORRUPT when a part of the arena has another; what was encoded before is compared too. Once, before
 * drain_filled. */
void drain_sums(struct drain *drain, const struct hash128 *sums, uint64_t seed);
/* What it waits for, naming peers: "412 of 1024 parts durable; peer p3: 2 fragments late 1.2 s". */
void drain_why(const struct drain *drain, char *buf, size_t len);

/* Full speed from now on (enum cairn_pace_why). */
void drain_hurry(struct drain *drain, int why);
struct drain_status { /* for status queries */
    uint32_t parts, taken_parts, durable_parts;
    uint32_t shared_parts;                /* that are the same as in the base: nothing of them is sent */
    uint32_t in_place_parts, early_parts; /* early: of them, taken before it was filled */
    struct cairn_pace pace;
    uint64_t now_ns;
};
void drain_status_of(const struct drain *drain, struct drain_status *ret);

#endif
