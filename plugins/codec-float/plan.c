/* SPDX-License-Identifier: Apache-2.0 */
#include "plan.h"

#include "choice.h"

#include <string.h>

struct sample {
    unsigned nblocks;
    uint8_t plane[MAX_WIDTH][SAMPLES * BLOCK];
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
    uint8_t *to[MAX_WIDTH];

    s->nblocks = (unsigned)(p->nblocks < SAMPLES ? p->nblocks : SAMPLES);
    for (unsigned i = 0; i < s->nblocks; i++) {
        for (unsigned j = 0; j < p->width; j++)
            to[j] = s->plane[j] + i * BLOCK;
        k->split(p->width, src + p->nblocks * i / s->nblocks * BLOCK * p->width, 1, to);
    }
}

/* Four at a time: exponents are much alike, and a count that is raised twice in a row waits for itself. */
static void count_blocks(const uint8_t *plane, unsigned nblocks, unsigned step, uint32_t count[256])
{
    uint16_t part[4][256] = {{0}};

    for (unsigned i = 0; i < nblocks; i += step)
        for (unsigned e = 0; e < BLOCK; e += 4)
            for (unsigned j = 0; j < 4; j++)
                part[j][plane[i * BLOCK + e + j]]++;
    for (unsigned i = 0; i < 256; i++)
        count[i] = (uint32_t)part[0][i] + part[1][i] + part[2][i] + part[3][i];
}

static int is_even(const uint8_t *plane, unsigned nblocks)
{
    uint32_t count[256];
    uint64_t squares = 0, n = 0;

    count_blocks(plane, nblocks, EVEN_OF, count);
    for (unsigned i = 0; i < 256; i++) {
        squares += (uint64_t)count[i] * count[i];
        n += count[i];
    }
    return EVEN(squares, n);
}

/* ---- the ladder ------------------------------------------------------------------------------ */

struct ranked {
    uint8_t value[RANKS];
    uint32_t rest[RANKS + 1]; /* rest[i]: how many bytes are none of the first i */
};

/* By count, then by value: an order that does not depend on the sort. Values that do not occur come last. */
static void rank(const uint32_t count[256], struct ranked *r)
{
    uint32_t key[RANKS + 1], all = 0;
    unsigned n = 0;

    for (unsigned v = 0; v < 256; v++) {
        uint32_t x = count[v] << 8 | (255 - v);
        all += count[v];
        if (!count[v] || (n == RANKS && x < key[n - 1]))
            continue;
        unsigned i = n < RANKS ? n++ : n - 1;
        for (; i > 0 && key[i - 1] < x; i--)
            key[i] = key[i - 1];
        key[i] = x;
    }
    for (unsigned v = 0; n < RANKS; v++)
        if (!count[v])
            key[n++] = 255 - v;
    r->rest[0] = all;
    for (unsigned i = 0; i < RANKS; i++) {
        r->value[i] = (uint8_t)(255 - (key[i] & 255));
        r->rest[i + 1] = r->rest[i] - (key[i] >> 8);
    }
}

static unsigned after(unsigned i, unsigned bits, unsigned last)
{
    i += (1u << bits) - 1;
    return i < last ? i : last;
}

/* The cheapest levels, by the costs of what each may leave to the next. Returns the bits of all, the rest's, too. */
static uint32_t best_ladder(const struct ranked *r, unsigned nlevels, struct plane *ret)
{
    uint32_t cost[MAX_LEVELS + 1][RANKS + 1];
    uint8_t bits[MAX_LEVELS + 1][RANKS + 1]; /* of the next level; 0: none */
    unsigned at = 0, last = 0;

    while (last < RANKS && r->rest[last]) /* behind it nothing is left */
        last++;
    for (unsigned i = 0; i <= last; i++)
        cost[0][i] = 8 * r->rest[i];
    for (unsigned l = 1; l <= nlevels; l++)
        for (unsigned i = 0; i <= last; i++) {
            cost[l][i] = 8 * r->rest[i];
            bits[l][i] = 0;
            for (unsigned b = 1; b <= MAX_BITS && i < LADDER_VALUES && r->rest[i]; b++) {
                uint32_t c = b * r->rest[i] + LEVEL_COST + cost[l - 1][after(i, b, last)];
                if (c < cost[l][i]) {
                    cost[l][i] = c;
                    bits[l][i] = (uint8_t)b;
                }
            }
        }
    ret->nlevels = 0;
    for (unsigned l = nlevels; l > 0 && bits[l][at]; l--) {
        struct level *to = &ret->level[ret->nlevels++];
        to->bits = bits[l][at];
        memcpy(to->value, r->value + at, level_values(to));
        at = after(at, to->bits, last);
    }
    return cost[nlevels][0];
}

/* ---- a plane --------------------------------------------------------------------------------- */

/* Blocks of one value cost a bit each; the ladder is for the others. */
static uint32_t sparse_cost(const uint8_t *plane, unsigned nblocks, uint8_t mask, unsigned nlevels, struct plane *ret)
{
    uint32_t rest[256] = {0};
    struct ranked r;

    for (unsigned i = 0; i < nblocks; i++) {
        const uint8_t *block = plane + i * BLOCK;
        uint8_t other = 0;
        for (unsigned e = 0; e < BLOCK; e++)
            other |= (uint8_t)((block[e] ^ ret->base) & ~mask);
        for (unsigned e = 0; other && e < BLOCK; e++)
            rest[block[e] & ~mask]++;
    }
    rank(rest, &r);
    return nblocks + best_ladder(&r, nlevels, ret);
}

/* With these bits kept. */
static uint32_t plane_cost(const struct sample *s, unsigned plane, const uint32_t count[256], uint8_t mask,
                           unsigned nlevels, struct plane *ret)
{
    uint32_t left[256] = {0}, n = s->nblocks * BLOCK;
    struct ranked r;

    for (unsigned i = 0; i < 256; i++)
        left[i & ~mask] += count[i];
    rank(left, &r);
    *ret = (struct plane){.keep = mask};
    uint32_t kept = (uint32_t)__builtin_popcount(mask) * n, cost = best_ladder(&r, nlevels, ret);
    if (n - r.rest[1] > n / 2) {
        struct plane sparse = {.keep = mask, .sparse = 1, .base = r.value[0]};
        uint32_t c = sparse_cost(s->plane[plane], s->nblocks, mask, nlevels, &sparse);
        if (c < cost) {
            cost = c;
            *ret = sparse;
        }
    }
    return kept + cost;
}

/* Returns bits. */
static uint32_t plan_plane(struct plane *pl, const struct sample *s, unsigned plane, unsigned nlevels)
{
    static const uint8_t masks[] = {KEPT_MASKS};
    uint32_t count[256], n = s->nblocks * BLOCK, best = WORTH(n);
    struct plane tried;

    if (is_even(s->plane[plane], s->nblocks))
        return 8 * n;
    count_blocks(s->plane[plane], s->nblocks, 1, count);
    uint32_t cost = plane_cost(s, plane, count, 0, nlevels, &tried);
    for (unsigned i = 0;; i++) {
        if (cost < best) {
            best = cost;
            *pl = tried;
        }
        if (i == sizeof masks || best < PEAKED(n) || pl->keep == masks[0])
            break;
        cost = plane_cost(s, plane, count, masks[i], nlevels, &tried);
    }
    return plane_is_raw(pl) ? 8 * n : best;
}

size_t plan(const struct kernel *k, struct part *p, const uint8_t *src, int dense)
{
    uint64_t bits = 0;
    struct sample s;

    take_sample(k, &s, p, src);
    if (s.nblocks == 0)
        return FORMAT_HEADER + p->width * FORMAT_DESCRIPTOR + p->len;
    for (unsigned i = 0; i < p->width; i++)
        bits += plan_plane(&p->plane[i], &s, i, dense ? MAX_LEVELS : FLOAT_LEVELS);
    return FORMAT_HEADER + p->width * FORMAT_DESCRIPTOR + part_tail(p) + (size_t)(p->nblocks * (bits / s.nblocks) / 8);
}
