/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512 with VBMI and VBMI2: planes by byte permutes of two registers, bits by tests into masks, escapes by
 * compress. */
#include "kernel.h"

#include <immintrin.h>
#include <string.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vbmi,avx512vbmi2,popcnt")))
#define INLINE TARGET static inline __attribute__((always_inline))

typedef __m512i vec;

/* Tables of 64 indices into the bytes of two registers: f(i) for byte i of the result. */
#define EIGHT(f, i) f(i), f(i + 1), f(i + 2), f(i + 3), f(i + 4), f(i + 5), f(i + 6), f(i + 7)
#define TABLE(f)                                                                                                     \
    {                                                                                                                \
        EIGHT(f, 0), EIGHT(f, 8), EIGHT(f, 16), EIGHT(f, 24), EIGHT(f, 32), EIGHT(f, 40), EIGHT(f, 48), EIGHT(f, 56) \
    }
typedef const uint8_t table[BLOCK];

#define SPLIT2(i) 2 * (i)                                        /* the low bytes of 64 elements */
#define MERGE2(i) ((i)&1) * 64 + (i) / 2                         /* elements 0 .. 31 of two planes */
#define SPLIT4(i) 4 * ((i)&31) + ((i) >> 5)                      /* planes 0 and 1 of 32 elements */
#define MERGE4(i) (((i) >> 1 & 1) * 64 + ((i)&1) * 32 + (i) / 4) /* 16 elements of planes 0, 1 and 2, 3 */
#define SPLIT8(i) 8 * ((i)&15) + ((i) >> 4)                      /* planes 0 .. 3 of 16 elements */
#define MERGE8(i) (((i) >> 2 & 1) * 64 + ((i)&3) * 16 + (i) / 8) /* 8 elements of planes 0 .. 3 and 4 .. 7 */
static table split2 = TABLE(SPLIT2), merge2 = TABLE(MERGE2), split4 = TABLE(SPLIT4), merge4 = TABLE(MERGE4),
             split8 = TABLE(SPLIT8), merge8 = TABLE(MERGE8);

INLINE vec vec_load(const void *p)
{
    return _mm512_loadu_si512(p);
}

INLINE void vec_store(void *p, vec v)
{
    _mm512_storeu_si512(p, v);
}

INLINE vec vec_fill(uint8_t byte)
{
    return _mm512_set1_epi8((char)byte);
}

INLINE int vec_all(vec v, uint8_t byte)
{
    return _mm512_cmpneq_epi8_mask(v, vec_fill(byte)) == 0;
}

/* Bytes of a and b by a table, each index so much higher. */
INLINE vec pick(table t, uint8_t more, vec a, vec b)
{
    return _mm512_permutex2var_epi8(a, _mm512_add_epi8(vec_load(t), vec_fill(more)), b);
}

INLINE vec rotate(unsigned width, vec v, unsigned by)
{
    switch (width) {
    case 1: {
        vec left = _mm512_and_si512(_mm512_slli_epi16(v, by), _mm512_set1_epi8((char)(0xff << by)));
        return _mm512_or_si512(
            left, _mm512_and_si512(_mm512_srli_epi16(v, 8 - by), _mm512_set1_epi8((char)(0xff >> (8 - by)))));
    }
    case 2:
        return _mm512_or_si512(_mm512_slli_epi16(v, by), _mm512_srli_epi16(v, 16 - by));
    case 4:
        return _mm512_rolv_epi32(v, _mm512_set1_epi32((int)by));
    default:
        return _mm512_rolv_epi64(v, _mm512_set1_epi64((long long)by));
    }
}

/* Lanes of 16 bytes: row i of the result is lane i of each. */
INLINE void transpose_lanes(const vec in[4], vec out[4])
{
    vec a = _mm512_shuffle_i32x4(in[0], in[1], 0x44), b = _mm512_shuffle_i32x4(in[2], in[3], 0x44);
    vec c = _mm512_shuffle_i32x4(in[0], in[1], 0xee), d = _mm512_shuffle_i32x4(in[2], in[3], 0xee);

    out[0] = _mm512_shuffle_i32x4(a, b, 0x88);
    out[1] = _mm512_shuffle_i32x4(a, b, 0xdd);
    out[2] = _mm512_shuffle_i32x4(c, d, 0x88);
    out[3] = _mm512_shuffle_i32x4(c, d, 0xdd);
}

INLINE void vec_split(unsigned width, const uint8_t *src, vec *planes)
{
    vec v[MAX_WIDTH], t[4];

    for (unsigned i = 0; i < width; i++)
        v[i] = rotate(width, vec_load(src + i * BLOCK), 1);
    if (width == 1) {
        planes[0] = v[0];
    } else if (width == 2) {
        planes[0] = pick(split2, 0, v[0], v[1]);
        planes[1] = pick(split2, 1, v[0], v[1]);
    } else if (width == 4) {
        for (unsigned i = 0; i < 4; i += 2) {
            vec low = pick(split4, (uint8_t)i, v[0], v[1]), high = pick(split4, (uint8_t)i, v[2], v[3]);
            planes[i] = _mm512_shuffle_i32x4(low, high, 0x44);
            planes[i + 1] = _mm512_shuffle_i32x4(low, high, 0xee);
        }
    } else {
        for (unsigned i = 0; i < 8; i += 4) {
            for (unsigned j = 0; j < 4; j++)
                t[j] = pick(split8, (uint8_t)i, v[2 * j], v[2 * j + 1]);
            transpose_lanes(t, planes + i);
        }
    }
}

INLINE void vec_merge(unsigned width, const vec *planes, uint8_t *dst)
{
    vec v[MAX_WIDTH], t[8];

    if (width == 1) {
        v[0] = planes[0];
    } else if (width == 2) {
        v[0] = pick(merge2, 0, planes[0], planes[1]);
        v[1] = pick(merge2, 32, planes[0], planes[1]);
    } else if (width == 4) {
        for (unsigned i = 0; i < 2; i++) {
            vec low =
                i ? _mm512_shuffle_i32x4(planes[0], planes[1], 0xee) : _mm512_shuffle_i32x4(planes[0], planes[1], 0x44);
            vec high =
                i ? _mm512_shuffle_i32x4(planes[2], planes[3], 0xee) : _mm512_shuffle_i32x4(planes[2], planes[3], 0x44);
            v[2 * i] = pick(merge4, 0, low, high);
            v[2 * i + 1] = pick(merge4, 16, low, high);
        }
    } else {
        transpose_lanes(planes, t);
        transpose_lanes(planes + 4, t + 4);
        for (unsigned j = 0; j < 4; j++) {
            v[2 * j] = pick(merge8, 0, t[j], t[4 + j]);
            v[2 * j + 1] = pick(merge8, 8, t[j], t[4 + j]);
        }
    }
    for (unsigned i = 0; i < width; i++)
        vec_store(dst + i * BLOCK, rotate(width, v[i], 8 * width - 1));
}

/* ---- bits and codes -------------------------------------------------------------------------- */

INLINE uint64_t vec_word(vec v, unsigned bit)
{
    return _mm512_test_epi8_mask(v, vec_fill((uint8_t)(1u << bit)));
}

INLINE vec vec_add_bit(vec v, uint64_t word, unsigned bit)
{
    return _mm512_or_si512(v, _mm512_maskz_set1_epi8(word, (char)(1u << bit)));
}

INLINE vec vec_clear(vec v, uint8_t mask)
{
    return _mm512_andnot_si512(vec_fill(mask), v);
}

/* Of one or two bits: the values, to compare with; of more: a table of 256 codes. The way back: a table of values. */
struct coder {
    vec v[4];
};

INLINE struct coder coder_init(unsigned bits, const struct level *l)
{
    uint8_t code[256];
    struct coder c;

    if (bits <= 2) {
        for (unsigned i = 0; i < 3; i++)
            c.v[i] = vec_fill(l->value[i]);
        return c;
    }
    memset(code, (1 << bits) - 1, sizeof code);
    for (unsigned i = level_values(l); i-- > 0;)
        code[l->value[i]] = (uint8_t)i;
    for (unsigned i = 0; i < 4; i++)
        c.v[i] = vec_load(code + 64 * i);
    return c;
}

INLINE struct coder decoder_init(unsigned bits, const struct level *l)
{
    uint8_t value[BLOCK] = {0};
    struct coder c;

    memcpy(value, l->value, (1u << bits) - 1);
    c.v[0] = vec_load(value);
    return c;
}

/* 64 looks into a table of 256 bytes. */
INLINE vec look_up(const vec table256[4], vec index)
{
    vec low = _mm512_permutex2var_epi8(table256[0], index, table256[1]);
    vec high = _mm512_permutex2var_epi8(table256[2], index, table256[3]);

    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high);
}

INLINE uint64_t vec_code(const struct coder *c, unsigned bits, vec v, uint64_t *words)
{
    uint64_t none = UINT64_MAX;

    if (bits == 1)
        return words[0] = _mm512_cmpneq_epi8_mask(v, c->v[0]);
    if (bits == 2) {
        uint64_t one = _mm512_cmpeq_epi8_mask(v, c->v[1]), two = _mm512_cmpeq_epi8_mask(v, c->v[2]);
        none = _mm512_cmpneq_epi8_mask(v, c->v[0]) & ~(one | two);
        words[0] = one | none;
        words[1] = two | none;
        return none;
    }
    vec code = look_up(c->v, v);
    for (unsigned k = 0; k < bits; k++) {
        words[k] = vec_word(code, k);
        none &= words[k];
    }
    return none;
}

INLINE vec vec_value(const struct coder *c, unsigned bits, const uint64_t *words)
{
    vec code = _mm512_maskz_set1_epi8(words[0], 1);

    for (unsigned k = 1; k < bits; k++)
        code = _mm512_mask_add_epi8(code, words[k], code, vec_fill((uint8_t)(1u << k)));
    return _mm512_permutexvar_epi8(code, c->v[0]);
}

INLINE uint8_t *vec_compress(vec v, uint64_t which, uint8_t *to)
{
    vec_store(to, _mm512_maskz_compress_epi8(which, v)); /* compressing into memory is far slower */
    return to + _mm_popcnt_u64(which);
}

INLINE vec vec_expand(vec v, uint64_t which, const uint8_t *from)
{
    vec bytes = vec_load(from);

    __asm__("" : "+v"(bytes)); /* in a register: expanding from memory is far slower */
    return _mm512_mask_expand_epi8(v, which, bytes);
}

#include "kernel_body.h"

const struct kernel kernel_avx512 = KERNEL("avx512");
