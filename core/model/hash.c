/* SPDX-License-Identifier: Apache-2.0 */
#include "core/model/hash.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

static struct hash128 from_xxh(XXH128_hash_t h)
{
    return (struct hash128){.low = h.low64, .high = h.high64};
}

struct hash128 cairn_hash128(const void *data, size_t len)
{
    return from_xxh(XXH3_128bits(data, len));
}

uint64_t cairn_hash64(const void *data, size_t len, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, len, seed);
}

/* A hash_stream is an XXH3_state_t under another name; it comes aligned from xxhash's own allocator. */
struct hash_stream *hash_stream_new(void)
{
    XXH3_state_t *state = XXH3_createState();

    if (state)
        XXH3_128bits_reset(state);
    return (struct hash_stream *)(void *)state;
}

void hash_stream_free(struct hash_stream *h)
{
    XXH3_freeState((XXH3_state_t *)(void *)h);
}

void hash_stream_reset(struct hash_stream *h)
{
    XXH3_128bits_reset((XXH3_state_t *)(void *)h);
}

void hash_stream_add(struct hash_stream *h, const void *data, size_t len)
{
    XXH3_128bits_update((XXH3_state_t *)(void *)h, data, len);
}

struct hash128 hash_stream_end(const struct hash_stream *h)
{
    return from_xxh(XXH3_128bits_digest((const XXH3_state_t *)(const void *)h));
}
