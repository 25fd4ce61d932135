/* SPDX-License-Identifier: Apache-2.0 */
/* The fast checksums: XXH3, by the widest vectors that the processor has; the values do not depend on it. */
#ifndef CAIRN_CORE_MODEL_HASH_H
#define CAIRN_CORE_MODEL_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct hash128 {
    uint64_t low;
    uint64_t high;
};
struct hash128 cairn_hash128(const void *data, size_t len);
struct hash128 cairn_hash128_seeded(const void *data, size_t len, uint64_t seed); /* seed 0: the same as without */
uint64_t cairn_hash64(const void *data, size_t len, uint64_t seed);
/* Whether what was found is what was said; nothing was said where both halves are 0. */
bool cairn_sum_agrees(const struct hash128 *said, const struct hash128 *found);

/* XXH3-128 over pieces: the same value as over their concatenation. */
struct hash_stream; /* opaque, from hash_stream_new */
struct hash_stream *hash_stream_new(void);
void hash_stream_free(struct hash_stream *h);
void hash_stream_reset(struct hash_stream *h);
void hash_stream_reset_seeded(struct hash_stream *h, uint64_t seed); /* what is added next, until the next reset */
void hash_stream_add(struct hash_stream *h, const void *data, size_t len);
struct hash128 hash_stream_end(const struct hash_stream *h);
/* XXH3-64 of the same bytes, seed 0. */
uint64_t hash_stream_end64(const struct hash_stream *h);

#endif
