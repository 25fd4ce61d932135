/* SPDX-License-Identifier: Apache-2.0 */
/* The fast checksums: XXH3, by the widest vectors that the processor has; the values do not depend on it. */
#ifndef CAIRN_CORE_MODEL_HASH_H
#define CAIRN_CORE_MODEL_HASH_H

#include <stddef.h>
#include <stdint.h>

struct hash128 {
    uint64_t low;
    uint64_t high;
};
struct hash128 cairn_hash128(const void *data, size_t len);
uint64_t cairn_hash64(const void *data, size_t len, uint64_t seed);

/* XXH3-128 over pieces: the same value as over their concatenation. */
struct hash_stream; /* opaque, from hash_stream_new */
struct hash_stream *hash_stream_new(void);
void hash_stream_free(struct hash_stream *h);
void hash_stream_reset(struct hash_stream *h);
void hash_stream_add(struct hash_stream *h, const void *data, size_t len);
struct hash128 hash_stream_end(const struct hash_stream *h);
/* XXH3-64 of the same bytes, seed 0. */
uint64_t hash_stream_end64(const struct hash_stream *h);

#endif
