/* SPDX-License-Identifier: Apache-2.0 */
#include "core/proto/numerics.h"

Cairn__Manifest__V1__Numerics *numerics_fill(Cairn__Manifest__V1__Numerics *to, const struct shard_numerics *n)
{
    if (!n->known)
        return NULL;
    cairn__manifest__v1__numerics__init(to);
    to->nan = n->bad.nan;
    to->inf = n->bad.inf;
    to->common = n->common;
    to->set_low = n->set.low;
    to->set_high = n->set.high;
    to->sums_low = n->sums.low;
    to->sums_high = n->sums.high;
    return to;
}

void numerics_decode(struct shard_numerics *to, const Cairn__Manifest__V1__Numerics *n)
{
    if (!n)
        return;
    to->known = true;
    to->bad = (struct cairn_nonfinite){n->nan, n->inf};
    to->common = n->common;
    to->set = (struct hash128){n->set_low, n->set_high};
    to->sums = (struct hash128){n->sums_low, n->sums_high};
}
