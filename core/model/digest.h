/* SPDX-License-Identifier: Apache-2.0 */
/* What the numerics watch makes of a tensor's bytes while they pass: how many NaN and Inf there are, and a digest that
 * does not depend on how the bytes were cut.
 *
 * The digest, version 1. A slice's dense bytes are stripes of 64 bytes, the last one filled with zeros; a stripe is
 * eight little-endian words w[0..7] and has an index i, from 0 at the slice's first byte. Of each stripe
 *
 *     x = w[j] + (A[j] + i * P)        sum[j]     += low32(x) * high32(x)
 *     y = w[j] + (B[j] + i * Q)        sum[8 + j] += low32(y) * high32(y) + w[j ^ 1]
 *
 * where a key is added to a word by halves of 32 bits, without a carry between them, and all else is modulo 2^64; A, B,
 * P and Q are in digest.c. Sums of pieces are added: in any order, of any cut at stripes. The
 * digest is XXH3-128 over 152 bytes, little-endian: the sixteen sums, the slice's length in bytes, the dtype and the
 * version, 8 bytes each.
 *
 * It is our own construction, against accidents and not against adversaries: who can choose the bytes can make two
 * slices with one digest. What an accident does not get past:
 *     - One changed word, and so one flipped bit, shows always: the plain sum of its neighbour's lane differs by less
 *       than 2^64, and XXH3-128 of different sums differs but for 2^-128.
 *     - The products are NH (of UMAC), with a key for every place: over random keys two different contents of a lane
 *       have one sum with a probability of at most 2^-32, and there are two sums with keys of their own: 2^-64, for
 *       stripes that changed places too, whose plain sums are the same. The keys here are fixed and run in two
 *       progressions: that is what to expect of bytes that know nothing of them, not a theorem.
 *     - Changes in several lanes have to hide in each of them. */
#ifndef CAIRN_CORE_MODEL_DIGEST_H
#define CAIRN_CORE_MODEL_DIGEST_H

#include "core/model/hash.h"

#include <stdbool.h>

#define CAIRN_DIGEST_VERSION 1
#define CAIRN_DIGEST_STRIPE 64
#define CAIRN_DIGEST_SUMS 16

struct cairn_digest { /* of a piece of a slice; all zero: of nothing */
    uint64_t sum[CAIRN_DIGEST_SUMS];
};
void cairn_digest_merge(struct cairn_digest *d, const struct cairn_digest *piece);
struct hash128 cairn_digest_end(const struct cairn_digest *d, uint64_t bytes, int dtype);

/* Elements that are no finite numbers; a complex one counts by its components. */
struct cairn_nonfinite {
    uint64_t nan, inf;
};
/* Whether the dtype has any: integers, bools and raw bytes have none. */
bool cairn_has_nonfinite(int dtype);
/* Adds those among len bytes of whole elements, wherever they begin in memory. */
void cairn_count_nonfinite(int dtype, const void *data, size_t len, struct cairn_nonfinite *add);
/* What is said of one slice. */
struct cairn_numerics {
    bool known;
    struct cairn_nonfinite bad;
    struct hash128 digest;
};

/* Adds len bytes of dtype that begin at this stripe of their slice to both: the digest costs most of it. len is a
 * multiple of 64 but where the slice ends. */
void cairn_numerics_add(struct cairn_digest *d, struct cairn_nonfinite *n, int dtype, uint64_t stripe, const void *data,
                        size_t len);

#endif
