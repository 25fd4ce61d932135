/* SPDX-License-Identifier: Apache-2.0 */
/* XXH3 compiled for one instruction set. hash_base.c, hash_avx2.c and hash_avx512.c are this file under three names and
 * three sets of compiler options; xxhash chooses its loops by what it is compiled for. The values are the same. */
#include "core/model/hash_internal.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

/* A hash_stream is an XXH3_state_t under another name: the same struct in every variant. */
static XXH3_state_t *state_of(struct hash_stream *h)
{
    return (XXH3_state_t *)(void *)h;
}

static struct hash128 from_xxh(XXH128_hash_t h)
{
    return (struct hash128){.low = h.low64, .high = h.high64};
}

static struct hash128 variant_hash128(const void *data, size_t len)
{
    return from_xxh(XXH3_128bits(data, len));
}

static uint64_t variant_hash64(const void *data, size_t len, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, len, seed);
}

static struct hash128 variant_hash128_seeded(const void *data, size_t len, uint64_t seed)
{
    return from_xxh(XXH3_128bits_withSeed(data, len, seed));
}

static void variant_add(struct hash_stream *h, const void *data, size_t len)
{
    XXH3_128bits_update(state_of(h), data, len); /* fails for NULL only */
}

static struct hash128 variant_end(const struct hash_stream *h)
{
    return from_xxh(XXH3_128bits_digest((const XXH3_state_t *)(const void *)h));
}

/* The state of both lengths is the same: they differ in how it is finished. */
static uint64_t variant_end64(const struct hash_stream *h)
{
    return XXH3_64bits_digest((const XXH3_state_t *)(const void *)h);
}

/* It comes aligned from xxhash's own allocator. */
static struct hash_stream *variant_new(void)
{
    XXH3_state_t *state = XXH3_createState();

    if (state)
        XXH3_128bits_reset(state);
    return (struct hash_stream *)(void *)state;
}

static void variant_free(struct hash_stream *h)
{
    XXH3_freeState(state_of(h));
}

static void variant_reset(struct hash_stream *h)
{
    XXH3_128bits_reset(state_of(h));
}

static void variant_reset_seeded(struct hash_stream *h, uint64_t seed)
{
    XXH3_128bits_reset_withSeed(state_of(h), seed);
}

#define HASH_VARIANT(name_)                                                  \
    const struct hash_ops name_ = {.hash128 = variant_hash128,               \
                                   .hash64 = variant_hash64,                 \
                                   .hash128_seeded = variant_hash128_seeded, \
                                   .add = variant_add,                       \
                                   .end = variant_end,                       \
                                   .end64 = variant_end64,                   \
                                   .stream_new = variant_new,                \
                                   .stream_free = variant_free,              \
                                   .stream_reset = variant_reset,            \
                                   .stream_reset_seeded = variant_reset_seeded}
