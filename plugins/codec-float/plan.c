/* SPDX-License-Identifier: Apache-2.0 */
#include "plan.h"

#include <string.h>

#define SAMPLES ((size_t)64)        /* blocks looked at */
#define UNIT 256                    /* costs are in 1/256 bits */
#define WORTH (8 * UNIT - UNIT / 4) /* a plane that does not come below 7.75 bits a byte stays raw */

struct sample {
    unsigned nblocks;
    uint8_t plane[MAX_WIDTH][SAMPLES][BLOCK];
};

void part_init(struct part *p, unsigned width, size_t len)
{
    memset(p, 0, sizeof *p);
    p->width = width;
    p->len = len;
    p->nblocks = len / width / BLOCK;
}

static void take_block(struct sample *s, unsigned width, const uint8_t *src, unsigned at)
{
    for (unsigned e = 0; e < BLOCK; e++) {
        uint64_t x = 0;
        for (unsigned i = 0; i < width; i++)
            x |= (uint64_t)src[e * width + i] << 8 * i;
        x = x << 1 | x >> (8 * width - 1);
        for (unsigned i = 0; i < width; i++)
            s->plane[i][at][e] = (uint8_t)(x >> 8 * i);
    }
}

static void take_sample(struct sample *s, const struct part *p, const uint8_t *src)
{
    s->nblocks = (unsigned)(p->nblocks < SAMPLES ? p->nblocks : SAMPLES);
    for (unsigned i = 0; i < s->nblocks; i++)
        take_block(s, p->width, src + p->nblocks * i / s->nblocks * BLOCK * p->width, i);
}

/* ---- costs ----------------------------------------------------------------------------------- */

struct window {
    uint8_t bits, base;
    uint32_t cost; /* of a byte */
};

/* The window of 2^bits - 1 neighbouring values that holds most, for each number of bits. */
static struct window best_window(const uint32_t count[256])
{
    struct window best = {.cost = UINT32_MAX};
    uint32_t sum[512 + 1]; /* of count, twice around: a window may begin at 250 and end at 5 */

    sum[0] = 0;
    for (unsigned i = 0; i < 512; i++)
        sum[i + 1] = sum[i] + count[i & 255];
    for (unsigned bits = 1; bits <= MAX_PACK; bits++) {
        unsigned values = (1u << bits) - 1, at = 0;
        uint32_t most = 0;
        for (unsigned b = 0; b < 256; b++)
            if (sum[b + values] - sum[b] > most) {
                most = sum[b + values] - sum[b];
                at = b;
            }
        uint32_t all = sum[256], cost = bits * UNIT + (all ? (uint32_t)((uint64_t)(all - most) * 8 * UNIT / all) : 0);
        if (cost < best.cost)
            best = (struct window){.bits = (uint8_t)bits, .base = (uint8_t)at, .cost = cost};
    }
    return best;
}

/* log2 in 1/256, rounded down to what 8 bits of mantissa tell; x > 0. */
static uint32_t log2_256(uint32_t x)
{
    unsigned high = 31 - (unsigned)__builtin_clz(x);
    uint64_t m = (uint64_t)x << (31 - high); /* 1.31 fixed point, 1 <= m < 2 */
    uint32_t r = high * UNIT;

    for (unsigned bit = UNIT / 2; bit; bit /= 2) {
        m = m * m >> 31;
        if (m >> 32) {
            m >>= 1;
            r += bit;
        }
    }
    return r;
}

/* The entropy, and a little: no code has less than a bit, and lengths are whole. */
static uint32_t code_cost(const uint32_t count[256], uint32_t all)
{
    uint64_t sum = 0;

    if (!all)
        return UNIT;
    for (unsigned i = 0; i < 256; i++)
        if (count[i])
            sum += (uint64_t)count[i] * (log2_256(all) - log2_256(count[i]));
    uint32_t cost = (uint32_t)(sum / all) + UNIT / 16;
    return cost < UNIT ? UNIT : cost;
}

static void add_block(uint32_t count[256], const uint8_t block[BLOCK])
{
    for (unsigned e = 0; e < BLOCK; e++)
        count[block[e]]++;
}

static unsigned most_common(const uint32_t count[256])
{
    unsigned best = 0;

    for (unsigned i = 1; i < 256; i++)
        if (count[i] > count[best])
            best = i;
    return best;
}

/* Blocks of one value cost a bit each; the window is for the others. */
static struct window sparse_window(const struct sample *s, unsigned plane, uint8_t base)
{
    uint32_t rest[256] = {0};
    unsigned others = 0;
    uint8_t same[BLOCK];

    memset(same, base, sizeof same);
    for (unsigned i = 0; i < s->nblocks; i++) {
        if (memcmp(s->plane[plane][i], same, BLOCK) == 0)
            continue;
        add_block(rest, s->plane[plane][i]);
        others++;
    }
    /* One base serves both: the window of the others begins at the common value. */
    struct window best = {.cost = UINT32_MAX};
    for (unsigned bits = 1; bits <= MAX_PACK; bits++) {
        uint32_t in = 0, all = others * BLOCK;
        for (unsigned v = 0; v < (1u << bits) - 1; v++)
            in += rest[(base + v) & 255];
        uint32_t cost = bits * UNIT + (all ? (uint32_t)((uint64_t)(all - in) * 8 * UNIT / all) : 0);
        if (cost < best.cost)
            best = (struct window){.bits = (uint8_t)bits, .base = base, .cost = cost};
    }
    best.cost = (uint32_t)((uint64_t)best.cost * others / s->nblocks) + UNIT / BLOCK;
    return best;
}

/* ---- the plan -------------------------------------------------------------------------------- */

static uint32_t plan_plane(struct plane *pl, const struct sample *s, unsigned plane, int codes)
{
    uint32_t count[256] = {0}, best = WORTH;

    for (unsigned i = 0; i < s->nblocks; i++)
        add_block(count, s->plane[plane][i]);
    struct window packed = best_window(count), sparse = sparse_window(s, plane, (uint8_t)most_common(count));
    uint32_t coded = codes ? code_cost(count, s->nblocks * BLOCK) : UINT32_MAX;

    pl->mode = PLANE_RAW;
    if (packed.cost < best && !codes) {
        best = packed.cost;
        *pl = (struct plane){.mode = PLANE_PACKED, .bits = packed.bits, .base = packed.base};
    }
    if (coded < best) {
        best = coded;
        *pl = (struct plane){.mode = PLANE_CODED};
    }
    if (sparse.cost < best) {
        best = sparse.cost;
        *pl = (struct plane){.mode = PLANE_SPARSE, .bits = sparse.bits, .base = sparse.base};
    }
    return pl->mode == PLANE_RAW ? 8 * UNIT : best;
}

size_t plan(struct part *p, const uint8_t *src, int codes)
{
    struct sample s;
    uint64_t cost = 0;

    take_sample(&s, p, src);
    for (unsigned i = 0; i < p->width; i++)
        cost += s.nblocks ? plan_plane(&p->plane[i], &s, i, codes) : 8 * UNIT;
    return FORMAT_HEADER + p->width * FORMAT_DESCRIPTOR + part_tail(p) + (size_t)(plane_bytes(p) * cost / (8 * UNIT));
}
