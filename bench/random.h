/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers that are a function of where they stand: whoever knows the seed can make them again. */
#ifndef CAIRN_BENCH_RANDOM_H
#define CAIRN_BENCH_RANDOM_H

#include <stdint.h>

static inline uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9ull;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

/* The sum of four uniform numbers is near enough to a normal one for the statistics of exponents. */
static inline float normal(uint64_t r)
{
    float s = (float)(r & 0xffff) + (float)(r >> 16 & 0xffff) + (float)(r >> 32 & 0xffff) + (float)(r >> 48);

    return (s - 131070.0f) / 37837.0f;
}

#endif
