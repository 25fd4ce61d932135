/* SPDX-License-Identifier: Apache-2.0 */
/* Every daemon must come to the same order, whatever its machine's math library: the logarithm is in integers, and the
 * one division that follows is exact to the last bit everywhere (IEEE 754). */
#include "core/model/placement.h"

#include "core/model/hash.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define FRACTION_BITS 57 /* 6 bits of whole part fit above them */

/* -log2(h / 2^64), at least the smallest value above 0; h is not 0. */
static uint64_t minus_log2(uint64_t h)
{
    unsigned top = 63u - (unsigned)__builtin_clzll(h);
    uint64_t x = h << (63 - top); /* in [1, 2) as 1.63 fixed point */
    uint64_t log = top;

    for (int i = 0; i < FRACTION_BITS; i++) {
        unsigned __int128 square = (unsigned __int128)x * x; /* in [1, 4) as 2.126 */
        unsigned two = (unsigned)(square >> 127);

        x = (uint64_t)(square >> (63 + two));
        log = log << 1 | two;
    }
    uint64_t minus = ((uint64_t)64 << FRACTION_BITS) - log; /* 2^63 at most */
    return minus ? minus : 1;
}

static double score(const struct cairn_candidate *c, uint64_t key)
{
    uint64_t h = cairn_hash64(c->id, strlen(c->id), key);

    return c->weight / (double)minus_log2(h ? h : 1);
}

/* A candidate on its way to its place. */
struct entry {
    const struct cairn_candidate *c;
    double score;
    unsigned round; /* how many of its domain have a better score */
};

static int by_score(const struct entry *a, const struct entry *b)
{
    if (a->score != b->score)
        return a->score > b->score ? -1 : 1;
    return strcmp(a->c->id, b->c->id);
}

static bool is_self(const struct entry *e)
{
    return e->c->nearness == CAIRN_OWN_PEER;
}

/* Domains together, each best first, the node itself behind: it takes no other's round. */
static int by_domain(const void *x, const void *y)
{
    const struct entry *a = x, *b = y;
    int r = strcmp(a->c->domain, b->c->domain);

    if (r == 0)
        r = is_self(a) - is_self(b);
    return r ? r : by_score(a, b);
}

static int by_place(const void *x, const void *y)
{
    const struct entry *a = x, *b = y;

    if (is_self(a) != is_self(b))
        return is_self(a) ? 1 : -1;
    if (a->round != b->round)
        return a->round > b->round ? 1 : -1;
    if (a->c->nearness != b->c->nearness)
        return a->c->nearness > b->c->nearness ? 1 : -1;
    return by_score(a, b);
}

unsigned cairn_place(const struct cairn_candidate *c, unsigned n, uint64_t key, unsigned *ret_order)
{
    struct entry e[CAIRN_PLACE_MAX];
    unsigned placed = 0;

    assert(n <= CAIRN_PLACE_MAX);
    for (unsigned i = 0; i < n; i++)
        if (c[i].weight > 0)
            e[placed++] = (struct entry){.c = &c[i], .score = score(&c[i], key)};
    qsort(e, placed, sizeof e[0], by_domain);
    for (unsigned i = 1; i < placed; i++)
        if (e[i].c->domain[0] && strcmp(e[i].c->domain, e[i - 1].c->domain) == 0)
            e[i].round = e[i - 1].round + 1;
    qsort(e, placed, sizeof e[0], by_place);
    for (unsigned i = 0; i < placed; i++)
        ret_order[i] = (unsigned)(e[i].c - c);
#ifdef CAIRN_BUG_PLACED_TWICE
    if (placed > 1)
        ret_order[1] = ret_order[0];
#endif
    return placed;
}
