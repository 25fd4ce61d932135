/* SPDX-License-Identifier: Apache-2.0 */
/* Gather: the plain bytes of one chunk from its fragments. Reads the wanted data fragments from the hinted peers, then
 * the stripe's order, then all; what is late, missing or corrupt is rebuilt from parity (late reads are hedged with a
 * bounded number of others). Every fragment is checked
 * against the manifest (identity, lengths, checksum); when all parts of a chunk were decoded its entry checksum is
 * checked too. */
#ifndef CAIRN_DAEMON_NODE_GATHER_H
#define CAIRN_DAEMON_NODE_GATHER_H

#include "core/proto/manifest.h"
#include "daemon/node/links.h"

struct gather {                      /* a request, owned by the caller until done() */
    const struct manifest *manifest; /* borrowed */
    uint32_t chunk;
    uint32_t part_mask; /* bit i: part i of the chunk; not 0 */
    char *target;       /* part i goes to target + i MiB */
    uint32_t timeout_ms;
    void (*done)(struct gather *g, int code, const struct cairn_error *err); /* never from within gather_start */
    void *arg;
    uint32_t rebuilt; /* filled: fragments that had to be rebuilt */
    void *state;      /* gather's */
};
void gather_start(struct links *links, struct gather *g);
/* done() follows with CAIRN_E_ABORTED; target is not written after it. */
void gather_cancel(struct links *links, struct gather *g);

/* What chunk c's fragments are called, but for their index. */
void gather_key(const struct manifest *m, const struct chunk_record *c, struct fragment_key *key);
/* Who is to blame for what is still missing, for the message of whoever waits no longer. */
#define GATHER_WHY 400
void gather_why(const struct gather *g, char ret[GATHER_WHY]);

/* Asks the peer that should have it, then the others, to read and verify one fragment in place. */
struct gather_check {
    const struct manifest *manifest;
    uint32_t chunk;
    uint32_t fragment; /* 0 .. k+m-1 */
    uint32_t timeout_ms;
    void (*done)(struct gather_check *c, int code, const struct cairn_error *err);
    void *arg;
    void *state;
};
void gather_check_start(struct links *links, struct gather_check *c);

#endif
