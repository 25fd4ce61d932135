/* SPDX-License-Identifier: Apache-2.0 */
/* The reference: plain C, eight bytes at a time where that is easy. */
#include "kernel.h"

#include <string.h>

#define TARGET
#define INLINE static inline __attribute__((always_inline))
#define LOW_BITS 0x0101010101010101ull

typedef struct {
    uint8_t b[BLOCK];
} vec;

INLINE vec vec_load(const uint8_t *p)
{
    vec v;

    memcpy(v.b, p, sizeof v.b);
    return v;
}

INLINE void vec_store(uint8_t *p, vec v)
{
    memcpy(p, v.b, sizeof v.b);
}

INLINE vec vec_fill(uint8_t byte)
{
    vec v;

    memset(v.b, byte, sizeof v.b);
    return v;
}

INLINE int vec_all(vec v, uint8_t byte)
{
    vec same = vec_fill(byte);

    return memcmp(v.b, same.b, sizeof v.b) == 0;
}

INLINE uint64_t rotated(const uint8_t *p, unsigned width)
{
    uint64_t x = 0;

    for (unsigned i = 0; i < width; i++)
        x |= (uint64_t)p[i] << 8 * i;
    return x << 1 | x >> (8 * width - 1);
}

INLINE void vec_split(unsigned width, const uint8_t *src, vec *planes)
{
    for (unsigned e = 0; e < BLOCK; e++) {
        uint64_t x = rotated(src + e * width, width);
        for (unsigned i = 0; i < width; i++)
            planes[i].b[e] = (uint8_t)(x >> 8 * i);
    }
}

INLINE void vec_merge(unsigned width, const vec *planes, uint8_t *dst)
{
    for (unsigned e = 0; e < BLOCK; e++) {
        uint64_t x = 0;
        for (unsigned i = 0; i < width; i++)
            x |= (uint64_t)planes[i].b[e] << 8 * i;
        x = x >> 1 | x << (8 * width - 1);
        for (unsigned i = 0; i < width; i++)
            dst[e * width + i] = (uint8_t)(x >> 8 * i);
    }
}

/* Bit k of each of the 8 bytes, in the order of the bytes. */
INLINE uint64_t gather_bits(uint64_t bytes, unsigned k)
{
    return ((bytes >> k & LOW_BITS) * 0x0102040810204080ull) >> 56;
}

/* The way back: bit i of eight becomes byte i, 0 or 1. */
INLINE uint64_t scatter_bits(uint64_t bits)
{
    uint64_t apart = bits * LOW_BITS & 0x8040201008040201ull;

    return ((apart + 0x7f7f7f7f7f7f7f7full) | apart) >> 7 & LOW_BITS;
}

INLINE void put_u64(uint8_t *p, uint64_t x)
{
    memcpy(p, &x, sizeof x);
}

INLINE uint8_t *vec_pack(vec v, unsigned bits, uint8_t base, uint8_t *to)
{
    uint8_t limit = (uint8_t)((1u << bits) - 1), *escape = to + 8 * bits;
    uint64_t plane[MAX_PACK] = {0};

    for (unsigned at = 0; at < BLOCK; at += 8) {
        uint64_t eight = 0;
        for (unsigned i = 0; i < 8; i++) {
            uint8_t x = (uint8_t)(v.b[at + i] - base);
            if (x >= limit) {
                *escape++ = v.b[at + i];
                x = limit;
            }
            eight |= (uint64_t)x << 8 * i;
        }
        for (unsigned k = 0; k < bits; k++)
            plane[k] |= gather_bits(eight, k) << at;
    }
    for (unsigned k = 0; k < bits; k++)
        put_u64(to + 8 * k, plane[k]);
    return escape;
}

INLINE const uint8_t *vec_unpack(vec *ret, unsigned bits, uint8_t base, const uint8_t *from, const uint8_t *end)
{
    uint8_t limit = (uint8_t)((1u << bits) - 1);
    const uint8_t *escape = from + 8 * bits;

    if ((size_t)(end - from) < 8 * bits)
        return NULL;
    for (unsigned at = 0; at < BLOCK; at += 8) {
        uint64_t eight = 0;
        for (unsigned k = 0; k < bits; k++)
            eight |= scatter_bits(from[8 * k + at / 8]) << k;
        for (unsigned i = 0; i < 8; i++) {
            uint8_t x = (uint8_t)(eight >> 8 * i);
            if (x == limit && escape == end)
                return NULL;
            ret->b[at + i] = x == limit ? *escape++ : (uint8_t)(x + base);
        }
    }
    return escape;
}

#include "kernel_body.h"

const struct kernel kernel_portable = {.name = "portable",
                                       .split = kernel_split,
                                       .encode = kernel_encode,
                                       .decode = kernel_decode,
                                       .code_bits = kernel_code_bits,
                                       .code_quads = kernel_code_quads};
