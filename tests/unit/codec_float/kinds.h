/* SPDX-License-Identifier: Apache-2.0 */
/* Data as there is in states, and at the edges of what a codec does with it. */
#ifndef CAIRN_TESTS_UNIT_CODEC_FLOAT_KINDS_H
#define CAIRN_TESTS_UNIT_CODEC_FLOAT_KINDS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint64_t kinds_random(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    return *s ^= *s << 17;
}

/* About normal, without libm: what weights look like. */
static inline float bell(uint64_t *s)
{
    float sum = 0;

    for (int i = 0; i < 4; i++)
        sum += (float)(int32_t)(uint32_t)kinds_random(s) / 2147483648.0f;
    return sum * 0.02f;
}

enum kind { ZEROS, NOISE, WEIGHTS, STEPS, RARE, EDGES, POSITIVES, HALVES, KINDS };

/* len bytes of elements of this dtype's width. */
static inline void fill(uint8_t *p, size_t len, unsigned width, int kind, uint64_t seed)
{
    for (size_t at = 0; at < len; at += width) {
        uint64_t r = kinds_random(&seed), x = 0;
        float f = bell(&seed);
        uint32_t u;
        memcpy(&u, &f, sizeof u);
        switch (kind) {
        case NOISE:
            x = r;
            break;
        case WEIGHTS: /* the highest bytes of a float */
            x = width == 2 ? u >> 16 : width == 4 ? u : width == 8 ? (uint64_t)u << 32 | (uint32_t)r : u >> 23;
            break;
        case STEPS:
            x = at / 5000;
            break;
        case RARE: /* a difference of two saves: nearly all zero */
            x = r % 300 == 0 ? kinds_random(&seed) : 0;
            break;
        case EDGES: /* exponents around 0 and 255, NaN payloads, denormals */
            x = r & 1 ? ~(r >> 60) : r >> 60;
            break;
        case POSITIVES: /* second moments: the lowest bit of the lowest plane is always 0 */
            x = (width == 4 ? u : width == 8 ? (uint64_t)u << 32 | (uint32_t)r : u >> 16) << 1;
            x = (width == 1 ? x & 255 : width == 2 ? x & 0xffff : width == 4 ? x & UINT32_MAX : x) >> 1;
            break;
        case HALVES: /* F16: three bits of noise below the exponent */
            x = (r & 0x83ff) | (uint64_t)(15 - __builtin_ctzll(r >> 16 | 1 << 9)) << 10;
            break;
        default:
            break;
        }
        memcpy(p + at, &x, len - at < width ? len - at : width);
    }
}

#endif
