/* SPDX-License-Identifier: Apache-2.0 */
/* Every daemon must come to the same order, whatever its machine's math library: the logarithm is in integers, and the
 * one division that follows is exact to the last bit everywhere (IEEE 754). */
#include "core/model/placement.h"

#include "core/model/hash.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define FRACTION_BITS 57 /* 6 bits of whole part fit above them */
#define CACHED 64        /* scores kept on the stack; with more candidates they are computed again */

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

    return c->weight > 0 ? c->weight / (double)minus_log2(h ? h : 1) : 0;
}

struct contest {
    const struct cairn_candidate *c;
    uint64_t key;
    const double *scores; /* by index, or NULL: computed when asked for */
};

static double score_of(const struct contest *x, unsigned i)
{
    return x->scores ? x->scores[i] : score(&x->c[i], x->key);
}

static int by_score(const void *a, const void *b, void *arg)
{
    const struct contest *x = arg;
    unsigned i = *(const unsigned *)a;
    unsigned j = *(const unsigned *)b;
    double si = score_of(x, i);
    double sj = score_of(x, j);

    if (si != sj)
        return si > sj ? -1 : 1;
    return strcmp(x->c[i].id, x->c[j].id);
}

static bool same_domain(const struct cairn_candidate *a, const struct cairn_candidate *b)
{
    return a->domain[0] && strcmp(a->domain, b->domain) == 0;
}

/* Has one of order[from..to) the domain of candidate i? */
static bool domain_used(const struct cairn_candidate *c, const unsigned *order, unsigned from, unsigned to, unsigned i)
{
    for (unsigned at = from; at < to; at++)
        if (same_domain(&c[order[at]], &c[i]))
            return true;
    return false;
}

/* Sorted by score in, rounds out: each round takes the best that is left of every domain, in the order of scores. */
static void spread_over_domains(const struct cairn_candidate *c, unsigned n, unsigned *order)
{
    unsigned round = 0;

    for (unsigned at = 0; at < n; at++) {
        unsigned next = at;

        while (next < n && domain_used(c, order, round, at, order[next]))
            next++;
        if (next == n) {
            round = at;
            continue; /* at itself opens the new round */
        }
        unsigned chosen = order[next];
        memmove(&order[at + 1], &order[at], (next - at) * sizeof(*order));
        order[at] = chosen;
    }
}

void cairn_place(const struct cairn_candidate *c, unsigned n, uint64_t key, unsigned *ret_order)
{
    double scores[CACHED];
    struct contest x = {.c = c, .key = key, .scores = n <= CACHED ? scores : NULL};

    for (unsigned i = 0; i < n; i++) {
        ret_order[i] = i;
        if (x.scores)
            scores[i] = score(&c[i], key);
    }
    qsort_r(ret_order, n, sizeof(*ret_order), by_score, &x);
    spread_over_domains(c, n, ret_order);
}
