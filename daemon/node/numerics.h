/* SPDX-License-Identifier: Apache-2.0 */
/* The numerics watch of one drain: what is not finite, and a digest, of every slice (core/model/digest.h).
 *
 * Workers look at a part while they encode it; a part may hold many small slices, and a slice may span many parts:
 *
 *     part 0 |  slice a   | slice b ..|.. slice b ..|.. b | slice c |
 *              whole        tail        head          head  whole
 *
 * What a worker found is assigned to its part, never added: a part that is encoded twice, or cut again under a higher
 * attempt, counts once. Slices are summed up at the end. */
#ifndef CAIRN_DAEMON_NODE_NUMERICS_H
#define CAIRN_DAEMON_NODE_NUMERICS_H

#include "core/model/digest.h"
#include "core/model/layout.h"

struct numerics_budget {
    uint64_t used, max; /* bytes, of everybody's together */
};
struct numerics;
/* layout and budget are borrowed until numerics_free. NO_SPACE: it does not fit the budget. */
int numerics_new(const struct cairn_layout *layout, struct numerics_budget *budget, struct numerics **ret,
                 struct cairn_error *err);
void numerics_free(struct numerics *n); /* NULL allowed */
/* A worker's, before all that follows: with a million slices it takes a tenth of a second, as numerics_end does. */
void numerics_index(struct numerics *n);

/* A worker's: of one part, whose bytes are added in order. n is only read. */
struct numerics_part;
struct numerics_part *numerics_part_new(const struct numerics *n, uint32_t part);
void numerics_part_free(struct numerics_part *p);
/* Bytes [at, at + len) of the part; at is a multiple of 64, and so is len but at the part's end. */
void numerics_part_add(struct numerics_part *p, const char *bytes, size_t at, size_t len);

/* On the drain's thread: this is what the part holds. Takes p. */
void numerics_take(struct numerics *n, struct numerics_part *p);
/* A worker's again. Of each slice, for the caller to free; known: all of its parts were taken. NULL: no memory. */
struct cairn_numerics *numerics_end(const struct numerics *n);

#endif
