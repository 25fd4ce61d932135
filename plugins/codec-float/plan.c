/* SPDX-License-Identifier: Apache-2.0 */
#include "plan.h"

#include <string.h>

#define SAMPLES ((size_t)64)        /* blocks looked at */
#define UNIT 256                    /* costs are in 1/256 bits */
#define WORTH (8 * UNIT - UNIT / 4) /* a plane that does not come below 7.75 bits a byte stays raw */

struct sample {
    unsigned nblocks;
    uint8_t block[SAMPLES][MAX_WIDTH][BLOCK];
};

void part_init(struct part *p, unsigned width, size_t len)
{
    memset(p, 0, sizeof *p);
    p->width = width;
    p->len = len;
    p->nblocks = len / width / BLOCK;
}

static void take_sample(const struct kernel *k, struct sample *s, const struct part *p, const uint8_t *src)
{
    s->nblocks = (unsigned)(p->nblocks < SAMPLES ? p->nblocks : SAMPLES);
    for (unsigned i = 0; i < s->nblocks; i++)
        k->split(p->width, src + p->nblocks * i / s->nblocks * BLOCK * p->width, s->block[i]);
}

/* Four at a time: exponents are much alike, and a count that is raised twice in a row waits for itself. */
static void count_plane(const struct sample *s, unsigned plane, uint32_t count[256])
{
    uint16_t part[4][256] = {{0}};

    for (unsigned i = 0; i < s->nblocks; i++)
        for (unsigned e = 0; e < BLOCK; e += 4)
            for (unsigned j = 0; j < 4; j++)
                part[j][s->block[i][plane][e + j]]++;
    for (unsigned i = 0; i < 256; i++)
        count[i] = (uint32_t)part[0][i] + part[1][i] + part[2][i] + part[3][i];
}

/* Nearly even counts, as of mantissas: nothing can be had. The sum of squares is n * n / 256 when all are alike, and
 * n more from chance. */
static int is_even(const uint32_t count[256], uint32_t n)
{
    uint64_t squares = 0;

    for (unsigned i = 0; i < 256; i++)
        squares += (uint64_t)count[i] * count[i];
    return squares < (uint64_t)n * n / 256 + 2 * (uint64_t)n;
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
    uint32_t sum[256 + 128]; /* of count, and around: a window may begin at 250 and end at 5 */

    sum[0] = 0;
    for (unsigned i = 0; i < 256 + 127; i++)
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
        if (memcmp(s->block[i][plane], same, BLOCK) == 0)
            continue;
        add_block(rest, s->block[i][plane]);
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
    uint32_t count[256], best = WORTH, n = s->nblocks * BLOCK;

    pl->mode = PLANE_RAW;
    count_plane(s, plane, count);
    if (is_even(count, n))
        return 8 * UNIT;
    struct window none = {.cost = UINT32_MAX}, packed = codes ? none : best_window(count), sparse = none;
    unsigned common = most_common(count);
    if (count[common] > n / 2)
        sparse = sparse_window(s, plane, (uint8_t)common);
    uint32_t coded = codes ? code_cost(count, n) : UINT32_MAX;
    if (packed.cost < best) {
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

size_t plan(const struct kernel *k, struct part *p, const uint8_t *src, int codes)
{
    struct sample s;
    uint64_t cost = 0;

    take_sample(k, &s, p, src);
    for (unsigned i = 0; i < p->width; i++)
        cost += s.nblocks ? plan_plane(&p->plane[i], &s, i, codes) : 8 * UNIT;
    return FORMAT_HEADER + p->width * FORMAT_DESCRIPTOR + part_tail(p) + (size_t)(plane_bytes(p) * cost / (8 * UNIT));
}
