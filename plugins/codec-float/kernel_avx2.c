/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2: a block is two registers; eight-byte elements go through plain C. */
#include "kernel.h"

#include <immintrin.h>
#include <string.h>

#define TARGET __attribute__((target("avx2,popcnt")))
#define INLINE TARGET static inline __attribute__((always_inline))

typedef struct {
    __m256i half[2];
} vec;

INLINE __m256i load(const void *p)
{
    return _mm256_loadu_si256(p);
}

INLINE vec vec_load(const uint8_t *p)
{
    return (vec){{load(p), load(p + 32)}};
}

INLINE void vec_store(uint8_t *p, vec v)
{
    _mm256_storeu_si256((void *)p, v.half[0]);
    _mm256_storeu_si256((void *)(p + 32), v.half[1]);
}

INLINE vec vec_fill(uint8_t byte)
{
    __m256i x = _mm256_set1_epi8((char)byte);

    return (vec){{x, x}};
}

INLINE uint64_t mask_of(__m256i low, __m256i high)
{
    return (uint32_t)_mm256_movemask_epi8(low) | (uint64_t)(uint32_t)_mm256_movemask_epi8(high) << 32;
}

INLINE uint64_t equal_mask(vec a, __m256i b)
{
    return mask_of(_mm256_cmpeq_epi8(a.half[0], b), _mm256_cmpeq_epi8(a.half[1], b));
}

INLINE int vec_all(vec v, uint8_t byte)
{
    return equal_mask(v, _mm256_set1_epi8((char)byte)) == UINT64_MAX;
}

/* ---- planes ---------------------------------------------------------------------------------- */

/* Per lane: byte j of four elements beside each other; its own inverse. */
INLINE __m256i transpose_bytes(__m256i v)
{
    return _mm256_shuffle_epi8(v, _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0, 4, 8, 12, 1,
                                                   5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
}

/* Per lane: dword j of each of four; its own inverse. */
INLINE void transpose_dwords(const __m256i in[4], __m256i out[4])
{
    __m256i a = _mm256_unpacklo_epi32(in[0], in[1]), b = _mm256_unpacklo_epi32(in[2], in[3]);
    __m256i c = _mm256_unpackhi_epi32(in[0], in[1]), d = _mm256_unpackhi_epi32(in[2], in[3]);

    out[0] = _mm256_unpacklo_epi64(a, b);
    out[1] = _mm256_unpackhi_epi64(a, b);
    out[2] = _mm256_unpacklo_epi64(c, d);
    out[3] = _mm256_unpackhi_epi64(c, d);
}

INLINE void split2(const uint8_t *src, vec *planes)
{
    __m256i low = _mm256_set1_epi16(0xff);

    for (unsigned h = 0; h < 2; h++) {
        __m256i a = load(src + 64 * h), b = load(src + 64 * h + 32);
        a = _mm256_or_si256(_mm256_slli_epi16(a, 1), _mm256_srli_epi16(a, 15));
        b = _mm256_or_si256(_mm256_slli_epi16(b, 1), _mm256_srli_epi16(b, 15));
        __m256i p0 = _mm256_packus_epi16(_mm256_and_si256(a, low), _mm256_and_si256(b, low));
        __m256i p1 = _mm256_packus_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));
        planes[0].half[h] = _mm256_permute4x64_epi64(p0, 0xd8);
        planes[1].half[h] = _mm256_permute4x64_epi64(p1, 0xd8);
    }
}

INLINE void merge2(const vec *planes, uint8_t *dst)
{
    for (unsigned h = 0; h < 2; h++) {
        __m256i p0 = _mm256_permute4x64_epi64(planes[0].half[h], 0xd8);
        __m256i p1 = _mm256_permute4x64_epi64(planes[1].half[h], 0xd8);
        __m256i a = _mm256_unpacklo_epi8(p0, p1), b = _mm256_unpackhi_epi8(p0, p1);
        a = _mm256_or_si256(_mm256_srli_epi16(a, 1), _mm256_slli_epi16(a, 15));
        b = _mm256_or_si256(_mm256_srli_epi16(b, 1), _mm256_slli_epi16(b, 15));
        _mm256_storeu_si256((void *)(dst + 64 * h), a);
        _mm256_storeu_si256((void *)(dst + 64 * h + 32), b);
    }
}

INLINE void split4(const uint8_t *src, vec *planes)
{
    __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7), r[4], p[4];

    for (unsigned h = 0; h < 2; h++) {
        for (unsigned i = 0; i < 4; i++) {
            __m256i v = load(src + 128 * h + 32 * i);
            r[i] = transpose_bytes(_mm256_or_si256(_mm256_slli_epi32(v, 1), _mm256_srli_epi32(v, 31)));
        }
        transpose_dwords(r, p);
        for (unsigned i = 0; i < 4; i++)
            planes[i].half[h] = _mm256_permutevar8x32_epi32(p[i], order);
    }
}

INLINE void merge4(const vec *planes, uint8_t *dst)
{
    __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7), r[4], p[4];

    for (unsigned h = 0; h < 2; h++) {
        for (unsigned i = 0; i < 4; i++)
            p[i] = _mm256_permutevar8x32_epi32(planes[i].half[h], order);
        transpose_dwords(p, r);
        for (unsigned i = 0; i < 4; i++) {
            __m256i v = transpose_bytes(r[i]);
            v = _mm256_or_si256(_mm256_srli_epi32(v, 1), _mm256_slli_epi32(v, 31));
            _mm256_storeu_si256((void *)(dst + 128 * h + 32 * i), v);
        }
    }
}

INLINE void split8(const uint8_t *src, vec *planes)
{
    uint8_t byte[8][BLOCK];

    for (unsigned e = 0; e < BLOCK; e++) {
        uint64_t x;
        memcpy(&x, src + 8 * e, sizeof x);
        x = x << 1 | x >> 63;
        for (unsigned i = 0; i < 8; i++)
            byte[i][e] = (uint8_t)(x >> 8 * i);
    }
    for (unsigned i = 0; i < 8; i++)
        planes[i] = vec_load(byte[i]);
}

INLINE void merge8(const vec *planes, uint8_t *dst)
{
    uint8_t byte[8][BLOCK];

    for (unsigned i = 0; i < 8; i++)
        vec_store(byte[i], planes[i]);
    for (unsigned e = 0; e < BLOCK; e++) {
        uint64_t x = 0;
        for (unsigned i = 0; i < 8; i++)
            x |= (uint64_t)byte[i][e] << 8 * i;
        x = x >> 1 | x << 63;
        memcpy(dst + 8 * e, &x, sizeof x);
    }
}

INLINE __m256i rotate1(__m256i v, int left) /* bytes, by one */
{
    __m256i one = _mm256_set1_epi8(1), high = _mm256_set1_epi8((char)0x80);

    return left ? _mm256_or_si256(_mm256_add_epi8(v, v), _mm256_and_si256(_mm256_srli_epi16(v, 7), one))
                : _mm256_or_si256(_mm256_andnot_si256(high, _mm256_srli_epi16(v, 1)),
                                  _mm256_and_si256(_mm256_slli_epi16(v, 7), high));
}

INLINE void vec_split(unsigned width, const uint8_t *src, vec *planes)
{
    if (width == 1)
        planes[0] = (vec){{rotate1(load(src), 1), rotate1(load(src + 32), 1)}};
    else if (width == 2)
        split2(src, planes);
    else if (width == 4)
        split4(src, planes);
    else
        split8(src, planes);
}

INLINE void vec_merge(unsigned width, const vec *planes, uint8_t *dst)
{
    if (width == 1)
        vec_store(dst, (vec){{rotate1(planes[0].half[0], 0), rotate1(planes[0].half[1], 0)}});
    else if (width == 2)
        merge2(planes, dst);
    else if (width == 4)
        merge4(planes, dst);
    else
        merge8(planes, dst);
}

/* ---- bits and codes -------------------------------------------------------------------------- */

INLINE uint64_t vec_word(vec v, unsigned bit)
{
    __m128i up = _mm_cvtsi32_si128((int)(7 - bit));

    return mask_of(_mm256_sll_epi16(v.half[0], up), _mm256_sll_epi16(v.half[1], up));
}

/* 32 bits become 32 bytes, 0 or this. */
INLINE __m256i spread(uint32_t bits, __m256i value)
{
    __m256i which = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3,
                                     3, 3, 3, 3);
    __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201ull);
    __m256i x = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32((int)bits), which), bit);

    return _mm256_and_si256(_mm256_cmpeq_epi8(x, bit), value);
}

INLINE vec vec_add_bit(vec v, uint64_t word, unsigned bit)
{
    __m256i value = _mm256_set1_epi8((char)(1u << bit));

    v.half[0] = _mm256_or_si256(v.half[0], spread((uint32_t)word, value));
    v.half[1] = _mm256_or_si256(v.half[1], spread((uint32_t)(word >> 32), value));
    return v;
}

INLINE vec vec_clear(vec v, uint8_t mask)
{
    __m256i m = _mm256_set1_epi8((char)mask);

    return (vec){{_mm256_andnot_si256(m, v.half[0]), _mm256_andnot_si256(m, v.half[1])}};
}

struct coder {
    __m256i value[MAX_VALUES]; /* to compare with; the way back: the first is a table of them */
};

INLINE struct coder coder_init(unsigned bits, const struct level *l)
{
    struct coder c;

    for (unsigned i = 0; i < (1u << bits) - 1; i++)
        c.value[i] = _mm256_set1_epi8((char)l->value[i]);
    return c;
}

INLINE struct coder decoder_init(unsigned bits, const struct level *l)
{
    uint8_t value[16] = {0};
    struct coder c;

    memcpy(value, l->value, (1u << bits) - 1);
    c.value[0] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)value));
    return c;
}

/* Each value of a byte sets the bits of its code, or it has none. */
INLINE uint64_t vec_code(const struct coder *c, unsigned bits, vec v, uint64_t *words)
{
    vec code[MAX_BITS], some = vec_fill(0);

    for (unsigned k = 0; k < bits; k++)
        code[k] = some;
    for (unsigned i = 0; i < (1u << bits) - 1; i++)
        for (unsigned h = 0; h < 2; h++) {
            __m256i is = _mm256_cmpeq_epi8(v.half[h], c->value[i]);
            some.half[h] = _mm256_or_si256(some.half[h], is);
            for (unsigned k = 0; k < bits; k++)
                if (i >> k & 1)
                    code[k].half[h] = _mm256_or_si256(code[k].half[h], is);
        }
    uint64_t none = ~mask_of(some.half[0], some.half[1]);
    for (unsigned k = 0; k < bits; k++)
        words[k] = none | mask_of(code[k].half[0], code[k].half[1]);
    return none;
}

INLINE vec vec_value(const struct coder *c, unsigned bits, const uint64_t *words)
{
    vec code = vec_fill(0);

    for (unsigned k = 0; k < bits; k++)
        code = vec_add_bit(code, words[k], k);
    return (vec){{_mm256_shuffle_epi8(c->value[0], code.half[0]), _mm256_shuffle_epi8(c->value[0], code.half[1])}};
}

/* For eight bytes, by the eight bits that say which: where the chosen ones are, and where among them each is. */
#define WITHOUT_LOWEST(m) ((m) & ((m)-1))
#define CHOSEN0(m) __builtin_ctz((m) | 256)
#define CHOSEN1(m) CHOSEN0(WITHOUT_LOWEST(m))
#define CHOSEN2(m) CHOSEN1(WITHOUT_LOWEST(m))
#define CHOSEN3(m) CHOSEN2(WITHOUT_LOWEST(m))
#define CHOSEN4(m) CHOSEN3(WITHOUT_LOWEST(m))
#define CHOSEN5(m) CHOSEN4(WITHOUT_LOWEST(m))
#define CHOSEN6(m) CHOSEN5(WITHOUT_LOWEST(m))
#define CHOSEN7(m) CHOSEN6(WITHOUT_LOWEST(m))
#define COMPRESS(m)                                                                                    \
    {                                                                                                  \
        CHOSEN0(m), CHOSEN1(m), CHOSEN2(m), CHOSEN3(m), CHOSEN4(m), CHOSEN5(m), CHOSEN6(m), CHOSEN7(m) \
    }
#define AMONG(m, i) (((m) >> (i)&1) ? __builtin_popcount((m) & ((1 << (i)) - 1)) : 0x80)
#define EXPAND(m)                                                                                              \
    {                                                                                                          \
        AMONG(m, 0), AMONG(m, 1), AMONG(m, 2), AMONG(m, 3), AMONG(m, 4), AMONG(m, 5), AMONG(m, 6), AMONG(m, 7) \
    }
#define FOUR(f, m) f(m), f(m + 1), f(m + 2), f(m + 3)
#define SIXTEEN(f, m) FOUR(f, m), FOUR(f, m + 4), FOUR(f, m + 8), FOUR(f, m + 12)
#define SIXTY_FOUR(f, m) SIXTEEN(f, m), SIXTEEN(f, m + 16), SIXTEEN(f, m + 32), SIXTEEN(f, m + 48)
#define ALL(f) SIXTY_FOUR(f, 0), SIXTY_FOUR(f, 64), SIXTY_FOUR(f, 128), SIXTY_FOUR(f, 192)
static const uint8_t compress[256][8] = {ALL(COMPRESS)}, expand[256][8] = {ALL(EXPAND)};

INLINE __m128i load8(const uint8_t *p)
{
    return _mm_loadl_epi64((const void *)p);
}

INLINE uint8_t *vec_compress(vec v, uint64_t which, uint8_t *to)
{
    uint8_t byte[BLOCK];

    vec_store(byte, v);
    for (unsigned at = 0; at < BLOCK; at += 8) {
        unsigned m = which >> at & 255;
        _mm_storel_epi64((void *)to, _mm_shuffle_epi8(load8(byte + at), load8(compress[m])));
        to += _mm_popcnt_u32(m);
    }
    return to;
}

INLINE vec vec_expand(vec v, uint64_t which, const uint8_t *from)
{
    __m128i eight[8];

    for (unsigned i = 0; i < 8; i++) {
        unsigned m = which >> 8 * i & 255;
        eight[i] = _mm_shuffle_epi8(load8(from), load8(expand[m]));
        from += _mm_popcnt_u32(m);
    }
    for (unsigned h = 0; h < 2; h++) {
        __m128i low = _mm_unpacklo_epi64(eight[4 * h], eight[4 * h + 1]);
        __m128i high = _mm_unpacklo_epi64(eight[4 * h + 2], eight[4 * h + 3]);
        v.half[h] = _mm256_or_si256(v.half[h], _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
    }
    return v;
}

#include "kernel_body.h"

const struct kernel kernel_avx2 = KERNEL("avx2");
