/* SPDX-License-Identifier: Apache-2.0 */
/* The variants of hash.c, one for each instruction set. */
#ifndef CAIRN_CORE_MODEL_HASH_INTERNAL_H
#define CAIRN_CORE_MODEL_HASH_INTERNAL_H

#include "core/model/hash.h"

struct hash_ops {
    struct hash128 (*hash128)(const void *data, size_t len);
    uint64_t (*hash64)(const void *data, size_t len, uint64_t seed);
    struct hash128 (*hash128_seeded)(const void *data, size_t len, uint64_t seed);
    void (*add)(struct hash_stream *h, const void *data, size_t len);
    struct hash128 (*end)(const struct hash_stream *h);
    uint64_t (*end64)(const struct hash_stream *h);
    struct hash_stream *(*stream_new)(void); /* these four: any variant's will do for all */
    void (*stream_free)(struct hash_stream *h);
    void (*stream_reset)(struct hash_stream *h);
    void (*stream_reset_seeded)(struct hash_stream *h, uint64_t seed);
};
extern const struct hash_ops hash_base; /* what every processor of the architecture has */
#if defined(__x86_64__)
extern const struct hash_ops hash_avx2, hash_avx512;
#endif

#endif
