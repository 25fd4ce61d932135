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

INLINE uint8_t *vec_pack(vec v, unsigned bits, uint8_t base, uint8_t *to)
{
    vec limit = vec_fill((uint8_t)((1u << bits) - 1)), x = _mm512_sub_epi8(v, vec_fill(base));
    __mmask64 escapes = _mm512_cmpge_epu8_mask(x, limit);

    x = _mm512_min_epu8(x, limit);
    for (unsigned k = 0; k < bits; k++) {
        uint64_t plane = _mm512_test_epi8_mask(x, vec_fill((uint8_t)(1u << k)));
        memcpy(to + 8 * k, &plane, sizeof plane);
    }
    to += 8 * bits;
    vec_store(to, _mm512_maskz_compress_epi8(escapes, v));
    return to + _mm_popcnt_u64(escapes);
}

INLINE const uint8_t *vec_unpack(vec *ret, unsigned bits, uint8_t base, const uint8_t *from, const uint8_t *end)
{
    vec x = _mm512_setzero_si512(), limit = vec_fill((uint8_t)((1u << bits) - 1));

    if ((size_t)(end - from) < 8 * bits)
        return NULL;
    for (unsigned k = 0; k < bits; k++) {
        uint64_t plane;
        memcpy(&plane, from + 8 * k, sizeof plane);
        x = _mm512_or_si512(x, _mm512_maskz_set1_epi8(plane, (char)(1u << k)));
    }
    from += 8 * bits;
    __mmask64 escapes = _mm512_cmpeq_epi8_mask(x, limit);
    size_t n = (size_t)_mm_popcnt_u64(escapes), left = (size_t)(end - from);
    if (n > left)
        return NULL;
    vec bytes = left >= BLOCK ? vec_load(from) : _mm512_maskz_loadu_epi8(((__mmask64)1 << left) - 1, from);
    *ret = _mm512_mask_expand_epi8(_mm512_add_epi8(x, vec_fill(base)), escapes, bytes);
    return from + n;
}

/* ---- codes ----------------------------------------------------------------------------------- */

/* 64 looks into a table of 256 bytes. */
INLINE vec look_up(const vec table256[4], vec index)
{
    vec low = _mm512_permutex2var_epi8(table256[0], index, table256[1]);
    vec high = _mm512_permutex2var_epi8(table256[2], index, table256[3]);

    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high);
}

INLINE void load_table(vec ret[4], const uint8_t bytes[256])
{
    for (unsigned i = 0; i < 4; i++)
        ret[i] = vec_load(bytes + 64 * i);
}

static TARGET uint64_t kernel_code_bits(const struct code_table *t, const uint8_t *src, size_t n)
{
    vec length[4], sum = _mm512_setzero_si512();
    uint64_t bits;
    size_t at = 0;

    load_table(length, t->length);
    for (; n - at >= GROUP; at += GROUP)
        sum = _mm512_add_epi64(sum, _mm512_sad_epu8(look_up(length, vec_load(src + at)), _mm512_setzero_si512()));
    bits = (uint64_t)_mm512_reduce_add_epi64(sum);
    for (; at < n; at++)
        bits += t->length[src[at]];
    return bits;
}

/* Byte i of each dword, at the bottom. */
INLINE vec byte_of(vec v, unsigned i)
{
    return _mm512_and_si512(_mm512_srli_epi32(v, 8 * i), _mm512_set1_epi32(0xff));
}

INLINE vec code_of(vec low, vec high, unsigned i)
{
    return _mm512_or_si512(byte_of(low, i), _mm512_slli_epi32(byte_of(high, i), 8));
}

/* A dword holds four bytes in a row: two pairs of at most 22 bits, which a qword joins. */
static TARGET void kernel_code_quads(const struct code_table *t, const uint8_t *src, struct quads *ret)
{
    vec tables[3][4], index = vec_load(src), even = _mm512_set1_epi64(0xffffffff);

    load_table(tables[0], t->low);
    load_table(tables[1], t->high);
    load_table(tables[2], t->length);
    vec low = look_up(tables[0], index), high = look_up(tables[1], index), len = look_up(tables[2], index);
    vec l0 = byte_of(len, 0), l2 = byte_of(len, 2);
    vec l01 = _mm512_add_epi32(l0, byte_of(len, 1)), l23 = _mm512_add_epi32(l2, byte_of(len, 3));
    vec c01 = _mm512_or_si512(code_of(low, high, 0), _mm512_sllv_epi32(code_of(low, high, 1), l0));
    vec c23 = _mm512_or_si512(code_of(low, high, 2), _mm512_sllv_epi32(code_of(low, high, 3), l2));
    vec first = _mm512_or_si512(_mm512_and_si512(c01, even),
                                _mm512_sllv_epi64(_mm512_and_si512(c23, even), _mm512_and_si512(l01, even)));
    vec second = _mm512_or_si512(_mm512_srli_epi64(c01, 32),
                                 _mm512_sllv_epi64(_mm512_srli_epi64(c23, 32), _mm512_srli_epi64(l01, 32)));
    vec order0 = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), order1 = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
    vec_store(ret->bits, _mm512_permutex2var_epi64(first, order0, second));
    vec_store(ret->bits + 8, _mm512_permutex2var_epi64(first, order1, second));
    vec_store(ret->length, _mm512_add_epi32(l01, l23));
}

#define HAS_CODES
#include "kernel_body.h"

const struct kernel kernel_avx512 = {.name = "avx512",
                                     .split = kernel_split,
                                     .encode = kernel_encode,
                                     .decode = kernel_decode,
                                     .code_bits = kernel_code_bits,
                                     .code_quads = kernel_code_quads};
