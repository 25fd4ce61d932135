/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors that ranks hold in common (CAIRN_TENSOR_COMMON): what a shard says of its own, and which ranks disagree.
 *
 * A shard's reference has the digest of its common slices' names and boxes, their set, and one of their digests. Ranks
 * with equal sets should have equal digests; so a coordinator compares thousands of them without a manifest. Where they
 * differ the manifests of two ranks say which tensors. Ranks whose sets differ are not compared. */
#ifndef CAIRN_CORE_CHECKPOINT_COMMON_H
#define CAIRN_CORE_CHECKPOINT_COMMON_H

#include "core/proto/root.h"

#define COMMON_NAMED 4 /* ranks and tensors that a message names */

/* Of a shard's slices together; numerics: of each of them, or NULL. */
int common_sum_up(const struct cairn_layout *l, const struct cairn_numerics *numerics, struct shard_numerics *ret,
                  struct cairn_error *err);

struct common_split {           /* what disagrees */
    uint32_t sets;              /* so many sets of tensors; 0: nothing does */
    uint32_t odd[COMMON_NAMED]; /* ranks in the minority, lowest first; of a set without a majority all of them */
    uint32_t nodd;              /* how many there are in all, over all sets */
    uint32_t ranks;             /* that hold those sets */
    bool undecided;             /* some set has no majority: any of its ranks may be the one */
    uint32_t witness[2];        /* two ranks whose manifests say which tensors: an odd one, and one of the others */
};
/* O(n log n). Shards whose numerics are not known are not compared. */
int common_compare(const struct shard_ref *shards, uint32_t n, struct common_split *ret, struct cairn_error *err);

struct common_tensors { /* in which two shards differ */
    const char *name[COMMON_NAMED];
    uint64_t n; /* in all */
};
/* Names point into a. */
int common_differ(const struct manifest *a, const struct manifest *b, struct common_tensors *ret,
                  struct cairn_error *err);
/* "rank 2 holds other bytes than 2 other ranks of tensors they have in common: "w.0", "w.1" and 3 more". t: NULL, or
 * with n 0, when it is not known which. What does not fit is cut at a whole character. len > 0. */
void common_text(const struct common_split *s, const struct common_tensors *t, char *buf, size_t len);

#endif
