/* SPDX-License-Identifier: Apache-2.0 */
/* xoshiro256** (Blackman and Vigna), seeded by splitmix64: the same schedule on every machine. */
#ifndef CAIRN_TESTS_SIM_RNG_H
#define CAIRN_TESTS_SIM_RNG_H

#include <stdbool.h>
#include <stdint.h>

struct rng {
    uint64_t s[4];
};

static inline uint64_t rng_mix(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static inline void rng_seed(struct rng *r, uint64_t seed)
{
    for (int i = 0; i < 4; i++)
        r->s[i] = rng_mix(&seed);
}

static inline uint64_t rng_next(struct rng *r)
{
    uint64_t x = r->s[1] * 5, t = r->s[1] << 17;
    uint64_t result = ((x << 7) | (x >> 57)) * 9;

    r->s[2] ^= r->s[0];
    r->s[3] ^= r->s[1];
    r->s[1] ^= r->s[2];
    r->s[0] ^= r->s[3];
    r->s[2] ^= t;
    r->s[3] = (r->s[3] << 45) | (r->s[3] >> 19);
    return result;
}

/* 0 .. below - 1; below > 0. */
static inline uint32_t rng_below(struct rng *r, uint32_t below)
{
    return (uint32_t)(((rng_next(r) >> 32) * below) >> 32);
}

/* from .. to, both included. */
static inline uint32_t rng_range(struct rng *r, uint32_t from, uint32_t to)
{
    return from + rng_below(r, to - from + 1);
}

static inline bool rng_permille(struct rng *r, uint32_t permille)
{
    return permille > 0 && rng_below(r, 1000) < permille;
}

#endif
