/* SPDX-License-Identifier: Apache-2.0 */
/* What to make again of a stripe, and where to put it. */
#ifndef CAIRN_CORE_CHECKPOINT_REPAIR_H
#define CAIRN_CORE_CHECKPOINT_REPAIR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/model/units.h"

#define REPAIR_NOWHERE (-1)

struct repair_peer {
    const char *domain; /* "": its own */
    bool healthy;       /* it may take a fragment */
};
enum repair_verdict {
    REPAIR_WHOLE,    /* nothing is missing */
    REPAIR_POSSIBLE, /* target says what to make again, as far as there is room */
    REPAIR_LOST,     /* fewer than k are left */
};
struct repair_plan {
    int target[CAIRN_MAX_FRAGS]; /* index of the peer that the fragment goes to; REPAIR_NOWHERE */
    unsigned missing;
    unsigned homeless; /* missing, and no healthy peer is without a fragment of this stripe */
};
/* holder[k + m]: index of the peer that has a good one, or REPAIR_NOWHERE. peers[n] are in the order of preference.
 * Never two fragments of a stripe on one peer; a failure domain with fewer fragments of the stripe comes first. */
enum repair_verdict repair_plan(unsigned k, unsigned m, const int *holder, const struct repair_peer *peers, unsigned n,
                                struct repair_plan *ret);

#endif
