/* SPDX-License-Identifier: Apache-2.0 */
#include "core/checkpoint/repair.h"

#include <string.h>

/* Where each fragment is, or will be. */
struct stripe {
    unsigned n;
    int at[CAIRN_MAX_FRAGS];
    const struct repair_peer *peers;
};

static bool holds_one(const struct stripe *s, unsigned peer)
{
    for (unsigned i = 0; i < s->n; i++)
        if (s->at[i] == (int)peer)
            return true;
    return false;
}

static unsigned in_domain_of(const struct stripe *s, unsigned peer)
{
    const char *domain = s->peers[peer].domain;
    unsigned n = 0;

    for (unsigned i = 0; i < s->n && domain[0]; i++)
        n += s->at[i] != REPAIR_NOWHERE && strcmp(s->peers[s->at[i]].domain, domain) == 0;
    return n;
}

static int choose(const struct stripe *s, unsigned npeers)
{
    int best = REPAIR_NOWHERE;
    unsigned best_crowd = 0;

    for (unsigned p = 0; p < npeers; p++) {
        if (!s->peers[p].healthy || holds_one(s, p))
            continue;
        unsigned crowd = in_domain_of(s, p);
        if (best == REPAIR_NOWHERE || crowd < best_crowd) {
            best = (int)p;
            best_crowd = crowd;
        }
    }
    return best;
}

enum repair_verdict repair_plan(unsigned k, unsigned m, const int *holder, const struct repair_peer *peers, unsigned n,
                                struct repair_plan *ret)
{
    struct stripe s = {.n = k + m, .peers = peers};

    *ret = (struct repair_plan){.missing = 0};
    for (unsigned i = 0; i < CAIRN_MAX_FRAGS; i++)
        ret->target[i] = REPAIR_NOWHERE;
    for (unsigned i = 0; i < s.n; i++) {
        s.at[i] = holder[i];
        ret->missing += holder[i] == REPAIR_NOWHERE;
    }
    if (ret->missing == 0)
        return REPAIR_WHOLE;
    if (ret->missing > m)
        return REPAIR_LOST;
    for (unsigned i = 0; i < s.n; i++) {
        if (holder[i] != REPAIR_NOWHERE)
            continue;
        s.at[i] = ret->target[i] = choose(&s, n);
        ret->homeless += s.at[i] == REPAIR_NOWHERE;
    }
    return REPAIR_POSSIBLE;
}
