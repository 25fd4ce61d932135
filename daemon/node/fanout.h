/* SPDX-License-Identifier: Apache-2.0 */
/* Fan-out: what several sessions of this node read of one checkpoint comes from the peers once. A chunk is gathered by
 * one gather at a time, into memory of a fixed budget, and copied from there to everybody who asked meanwhile, and to
 * those who ask while it is still there. */
#ifndef CAIRN_DAEMON_NODE_FANOUT_H
#define CAIRN_DAEMON_NODE_FANOUT_H

#include "daemon/node/gather.h"
#include "daemon/node/jobs.h"

struct fanout;
struct fanout_entry;

struct fanout_read { /* owned by the caller until done() */
    struct checkpoint *checkpoint;
    const struct manifest *manifest; /* of a rank of it */
    uint32_t chunk;
    uint32_t part_mask; /* bit i: part i of the chunk; not 0 */
    char *target;       /* part i goes to target + i MiB */
    uint32_t timeout_ms;
    void (*done)(struct fanout_read *r, int code, const struct cairn_error *err); /* never from within fanout_start */
    void *arg;
    bool shared; /* filled: its bytes had been gathered for another read */
    /* fanout's */
    struct fanout *fanout;
    struct list link; /* in the entry, or in the queue for memory */
    struct fanout_entry *entry;
    struct loop_timer timer; /* its deadline; in the queue, the end of its patience */
    uint64_t deadline_ns;
    struct gather alone; /* what it does without memory */
    struct worker_job copy;
    struct loop_post post;
    bool copying, left, started_it, gathering;
};

struct fanout_counts { /* since the start */
    uint64_t shared_chunks, shared_bytes;
};

#define FANOUT_PATIENCE_MS 300

/* Whoever finds no memory for so long gathers for itself: another job's hung peers are not its own. */
int fanout_new(struct links *links, uint64_t max_bytes, uint32_t patience_ms, struct fanout **ret_fanout,
               struct cairn_error *err);
/* Nothing may be under way. NULL allowed. */
void fanout_free(struct fanout *f);
/* Whether a chunk of so many parts can be shared at all: else its reader gathers it for itself. */
bool fanout_has_room(const struct fanout *f, uint32_t parts);
/* Whether the chunk is there, or about to be. */
bool fanout_knows(struct fanout *f, const struct manifest *m, uint32_t chunk);
void fanout_start(struct fanout *f, struct fanout_read *r);
/* done() follows with CAIRN_E_ABORTED; target is not written after it. Others who read the same do not notice. */
void fanout_cancel(struct fanout_read *r);
/* Nobody restores any more: what was decoded is given up soon, unless somebody comes after all. */
void fanout_forget(struct fanout *f);
/* A gather or a copy is under way. */
bool fanout_busy(const struct fanout *f);
const struct fanout_counts *fanout_counts(const struct fanout *f);
void fanout_usage(const struct fanout *f, uint64_t *ret_bytes, uint64_t *ret_limit);

#endif
