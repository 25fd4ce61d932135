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
