/* SPDX-License-Identifier: Apache-2.0 */
#include "core/model/stripe.h"

struct cairn_geometry cairn_geometry_for(unsigned live_peers)
{
    static const struct cairn_geometry by_peers[] = {{0, 0}, {1, 0}, {1, 1}, {2, 1}, {2, 2}, {3, 2}, {4, 2}};
    unsigned most = sizeof(by_peers) / sizeof(by_peers[0]) - 1;

    return by_peers[live_peers < most ? live_peers : most];
}

unsigned cairn_margin_for(unsigned m, unsigned asked)
{
    unsigned margin = asked ? asked : m > 2 ? m - 1 : 1;

#ifdef CAIRN_BUG_MARGIN_IGNORED
    margin = 0;
#endif
    return margin < m ? margin : m;
}

uint32_t cairn_chunk_parts(const struct cairn_layout *l, uint32_t first_part, unsigned k)
{
    for (uint32_t i = 0; i < l->ngroups; i++) {
        const struct cairn_group *g = &l->groups[i];

        if (first_part < g->first_part || first_part - g->first_part >= g->nparts)
            continue;
        uint32_t left = g->nparts - (first_part - g->first_part);
        return left < k ? left : k;
    }
    return 0;
}

/* ---- deltas ---------------------------------------------------------------------------------- */

bool cairn_any_delta(const struct cairn_part_code *parts, unsigned k)
{
    for (unsigned i = 0; i < k; i++)
        if (parts[i].params & CAIRN_PART_DELTA)
            return true;
    return false;
}

bool cairn_delta_equal(const struct cairn_delta *a, const struct cairn_delta *b)
{
    return a->step == b->step && a->incarnation == b->incarnation && a->depth == b->depth &&
           a->entry.low == b->entry.low && a->entry.high == b->entry.high;
}

const char *cairn_same_wrong(const struct cairn_delta *d, const struct hash128 *entry,
                             const struct cairn_part_code *parts, unsigned k, uint64_t step, uint64_t incarnation)
{
    if (d->depth == 0)
        return "the bytes of a base that is not named";
    if (d->depth > CAIRN_MAX_CHAIN)
        return "a chain of bases that is too long";
    if (cairn_any_delta(parts, k))
        return "a difference from a base that it is the same as";
    if (d->entry.low != entry->low || d->entry.high != entry->high)
        return "the bytes of a base that has others";
    if (d->incarnation > incarnation || (d->incarnation == incarnation && d->step >= step))
        return "a base that is not older";
    return NULL;
}

const char *cairn_delta_wrong(const struct cairn_delta *d, const struct cairn_part_code *parts, unsigned k,
                              uint64_t step, uint64_t incarnation)
{
    static const struct cairn_delta none = {.depth = 0};
    bool any = cairn_any_delta(parts, k);

    if (d->depth == 0) {
        if (any)
            return "a delta without a base";
        return cairn_delta_equal(d, &none) ? NULL : "a base and no chain";
    }
    if (d->depth > CAIRN_MAX_CHAIN)
        return "a chain of bases that is too long";
    if (!any)
        return "a base that no part needs";
    if (d->incarnation > incarnation || (d->incarnation == incarnation && d->step >= step))
        return "a base that is not older";
    return NULL;
}
