/* SPDX-License-Identifier: Apache-2.0 */
/* The digest's stripes and the counting, compiled for one instruction set: digest_base.c, digest_avx2.c and
 * digest_avx512.c are this file under three names and three sets of compiler options. The values are the same. */
#include "core/model/digest_internal.h"

#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

/* ---- stripes: V is a vector of 64-bit words ---------------------------------------------------- */

#if defined(__AVX512F__)
typedef __m512i V;
#define LOAD(p_) _mm512_loadu_si512(p_)
#define STORE(p_, v_) _mm512_storeu_si512(p_, v_)
#define ALL(w_) _mm512_set1_epi64((long long)(w_))
#define ADD(a_, b_) _mm512_add_epi64(a_, b_)
#define HALVES(a_, b_) _mm512_add_epi32(a_, b_)
#define FOLD(x_) _mm512_mul_epu32(x_, _mm512_srli_epi64(x_, 32))
#define SWAP(x_) _mm512_shuffle_epi32(x_, 0x4e)
#define AND(a_, b_) _mm512_and_si512(a_, b_)
#define OR(a_, b_) _mm512_or_si512(a_, b_)
#elif defined(__AVX2__)
typedef __m256i V;
#define LOAD(p_) _mm256_loadu_si256((const void *)(p_))
#define STORE(p_, v_) _mm256_storeu_si256((void *)(p_), v_)
#define ALL(w_) _mm256_set1_epi64x((long long)(w_))
#define ADD(a_, b_) _mm256_add_epi64(a_, b_)
#define HALVES(a_, b_) _mm256_add_epi32(a_, b_)
#define FOLD(x_) _mm256_mul_epu32(x_, _mm256_srli_epi64(x_, 32))
#define SWAP(x_) _mm256_shuffle_epi32(x_, 0x4e)
#define AND(a_, b_) _mm256_and_si256(a_, b_)
#define OR(a_, b_) _mm256_or_si256(a_, b_)
#elif defined(__SSE2__)
typedef __m128i V;
#define LOAD(p_) _mm_loadu_si128((const void *)(p_))
#define STORE(p_, v_) _mm_storeu_si128((void *)(p_), v_)
#define ALL(w_) _mm_set1_epi64x((long long)(w_))
#define ADD(a_, b_) _mm_add_epi64(a_, b_)
#define HALVES(a_, b_) _mm_add_epi32(a_, b_)
#define FOLD(x_) _mm_mul_epu32(x_, _mm_srli_epi64(x_, 32))
#define SWAP(x_) _mm_shuffle_epi32(x_, 0x4e)
#define AND(a_, b_) _mm_and_si128(a_, b_)
#define OR(a_, b_) _mm_or_si128(a_, b_)
#endif

#if defined(__SSE2__)
#define LANES (sizeof(V) / 8)

/* The lanes of one vector at a time, over all stripes: sums and keys stay in registers. The bytes are in cache. */
static inline uint64_t lanes_of(struct cairn_digest *d, const struct digest_keys *k, const char *data, size_t n,
                                const struct digest_look *look, size_t j)
{
    V a = LOAD(k->a + j), b = LOAD(k->b + j), step_a = ALL(DIGEST_STEP_A), step_b = ALL(DIGEST_STEP_B);
    V s = LOAD(d->sum + j), t = LOAD(d->sum + DIGEST_LANES + j);
    V mask = ALL(look->mask), unit = ALL(look->unit), seen = ALL(0);
    uint64_t words[LANES], any = 0;

    for (size_t i = 0; i < n; i++) {
        V w = LOAD(data + i * CAIRN_DIGEST_STRIPE + j * 8);
        V x = HALVES(w, a), y = HALVES(w, b);

        s = ADD(s, FOLD(x));
        t = ADD(t, ADD(FOLD(y), SWAP(w)));
        seen = OR(seen, ADD(AND(w, mask), unit));
        a = ADD(a, step_a);
        b = ADD(b, step_b);
    }
    STORE(d->sum + j, s);
    STORE(d->sum + DIGEST_LANES + j, t);
    STORE(words, seen);
    for (size_t i = 0; i < LANES; i++)
        any |= words[i];
    return any;
}

static uint64_t variant_stripes(struct cairn_digest *d, const struct digest_keys *k, const void *data, size_t n,
                                const struct digest_look *look)
{
    uint64_t any = 0;

    for (size_t j = 0; j < DIGEST_LANES; j += LANES)
        any |= lanes_of(d, k, data, n, look, j);
    return any;
}
#else
static inline uint64_t fold(uint64_t w, uint64_t key)
{
    return (uint64_t)(uint32_t)(w + key) * (uint32_t)((w >> 32) + (key >> 32));
}

static uint64_t variant_stripes(struct cairn_digest *d, const struct digest_keys *k, const void *data, size_t n,
                                const struct digest_look *look)
{
    uint64_t any = 0;

    for (size_t i = 0; i < n; i++) {
        uint64_t w[DIGEST_LANES];

        memcpy(w, (const char *)data + i * CAIRN_DIGEST_STRIPE, sizeof w);
        for (size_t j = 0; j < DIGEST_LANES; j++) {
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
            w[j] = __builtin_bswap64(w[j]);
#endif
            any |= (w[j] & look->mask) + look->unit;
        }
        for (size_t j = 0; j < DIGEST_LANES; j++) {
            d->sum[j] += fold(w[j], k->a[j] + i * DIGEST_STEP_A);
            d->sum[DIGEST_LANES + j] += fold(w[j], k->b[j] + i * DIGEST_STEP_B) + w[j ^ 1];
        }
    }
    return any;
}
#endif

/* ---- counting: lanes of the word's own width, added up before the narrowest could overflow ------- */

#if defined(__AVX2__)
#define COUNT_BYTES 32
#else
#define COUNT_BYTES 16
#endif
#define COUNT_RUN 255 /* vectors */

#define MATCHES(name_, word_)                                                          \
    static uint64_t name_(uint64_t mask, uint64_t value, const char *data, size_t len) \
    {                                                                                  \
        typedef word_ vec __attribute__((vector_size(COUNT_BYTES)));                   \
        const vec masks = (vec){0} + (word_)mask, values = (vec){0} + (word_)value;    \
        uint64_t found = 0;                                                            \
                                                                                       \
        while (len >= COUNT_BYTES) {                                                   \
            size_t n = len / COUNT_BYTES < COUNT_RUN ? len / COUNT_BYTES : COUNT_RUN;  \
            vec sums = {0};                                                            \
            for (size_t i = 0; i < n; i++) {                                           \
                vec v;                                                                 \
                memcpy(&v, data + i * COUNT_BYTES, sizeof v);                          \
                sums -= (vec)((v & masks) == values);                                  \
            }                                                                          \
            for (size_t i = 0; i < COUNT_BYTES / sizeof(word_); i++)                   \
                found += sums[i];                                                      \
            data += n * COUNT_BYTES;                                                   \
            len -= n * COUNT_BYTES;                                                    \
        }                                                                              \
        for (size_t i = 0; i + sizeof(word_) <= len; i += sizeof(word_)) {             \
            word_ w;                                                                   \
            memcpy(&w, data + i, sizeof w);                                            \
            found += (w & (word_)mask) == (word_)value;                                \
        }                                                                              \
        return found;                                                                  \
    }
MATCHES(matches_8, uint8_t)
MATCHES(matches_16, uint16_t)
MATCHES(matches_32, uint32_t)
MATCHES(matches_64, uint64_t)

static uint64_t variant_matches(unsigned size, uint64_t mask, uint64_t value, const void *data, size_t len)
{
    switch (size) {
    case 1:
        return matches_8(mask, value, data, len);
    case 2:
        return matches_16(mask, value, data, len);
    case 4:
        return matches_32(mask, value, data, len);
    default:
        return matches_64(mask, value, data, len);
    }
}

#define DIGEST_VARIANT(name_) const struct digest_ops name_ = {.stripes = variant_stripes, .matches = variant_matches}
