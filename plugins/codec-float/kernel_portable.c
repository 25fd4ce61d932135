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

INLINE uint64_t eight_at(vec v, unsigned at)
{
    uint64_t eight;

    memcpy(&eight, v.b + at, sizeof eight);
    return eight;
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

INLINE uint64_t vec_word(vec v, unsigned bit)
{
    uint64_t word = 0;

    for (unsigned at = 0; at < BLOCK; at += 8)
        word |= gather_bits(eight_at(v, at), bit) << at;
    return word;
}

INLINE vec vec_add_bit(vec v, uint64_t word, unsigned bit)
{
    for (unsigned at = 0; at < BLOCK; at += 8) {
        uint64_t eight = eight_at(v, at) | scatter_bits(word >> at & 255) << bit;
        memcpy(v.b + at, &eight, sizeof eight);
    }
    return v;
}

INLINE vec vec_clear(vec v, uint8_t mask)
{
    for (unsigned i = 0; i < BLOCK; i++)
        v.b[i] = (uint8_t)(v.b[i] & ~mask);
    return v;
}

/* ---- codes ----------------------------------------------------------------------------------- */

struct coder {
    uint8_t to[256]; /* the code of a byte, or the value of a code */
};

INLINE struct coder coder_init(unsigned bits, const struct level *l)
{
    struct coder c;

    memset(c.to, (1 << bits) - 1, sizeof c.to);
    for (unsigned i = level_values(l); i-- > 0;) /* were a value there twice, its first code would count */
        c.to[l->value[i]] = (uint8_t)i;
    return c;
}

INLINE struct coder decoder_init(unsigned bits, const struct level *l)
{
    struct coder c = {{0}};

    memcpy(c.to, l->value, (1u << bits) - 1);
    return c;
}

INLINE uint64_t vec_code(const struct coder *c, unsigned bits, vec v, uint64_t *words)
{
    uint64_t none = UINT64_MAX;

    for (unsigned i = 0; i < BLOCK; i++)
        v.b[i] = c->to[v.b[i]];
    for (unsigned k = 0; k < bits; k++) {
        words[k] = vec_word(v, k);
        none &= words[k];
    }
    return none;
}

INLINE vec vec_value(const struct coder *c, unsigned bits, const uint64_t *words)
{
    vec v;

    for (unsigned at = 0; at < BLOCK; at += 8) {
        uint64_t eight = 0;
        for (unsigned k = 0; k < bits; k++)
            eight |= scatter_bits(words[k] >> at & 255) << k;
        for (unsigned i = 0; i < 8; i++)
            v.b[at + i] = c->to[eight >> 8 * i & 255];
    }
    return v;
}

INLINE uint8_t *vec_compress(vec v, uint64_t which, uint8_t *to)
{
    for (; which; which &= which - 1)
        *to++ = v.b[__builtin_ctzll(which)];
    return to;
}

INLINE vec vec_expand(vec v, uint64_t which, const uint8_t *from)
{
    for (; which; which &= which - 1)
        v.b[__builtin_ctzll(which)] = *from++;
    return v;
}

#include "kernel_body.h"

const struct kernel kernel_portable = KERNEL("portable");
