/* SPDX-License-Identifier: Apache-2.0 */
#include "core/model/lateness.h"

#include "core/model/units.h"

#include <stddef.h>

#define ENOUGH 8     /* answers before a record says anything */
#define SLOWER 3     /* times the group's usual that a peer may be slow on its own account */
#define MEAN_SHARE 8 /* a new answer's share of the mean is one of so many */
#define DEV_SHARE 4
#define DEVIATIONS 6
#define UNKNOWN_SHARE 4 /* of the ceiling, while nothing is known */

void cairn_latency_add(struct cairn_latency *l, uint64_t took_us)
{
    double took = (double)took_us;
    double off = took > l->mean_us ? took - l->mean_us : l->mean_us - took;

    if (l->n == 0) {
        l->mean_us = took;
        l->dev_us = took / 2;
    } else {
        l->dev_us += (off - l->dev_us) / DEV_SHARE;
        l->mean_us += (took - l->mean_us) / MEAN_SHARE;
    }
    if (l->n < UINT32_MAX)
        l->n++;
}

uint64_t cairn_latency_usual_us(const struct cairn_latency *l)
{
    double usual = l->mean_us + DEVIATIONS * l->dev_us;

    if (l->n < ENOUGH)
        return 0;
    return usual < 1e15 ? (uint64_t)usual + 1 : (uint64_t)1e15;
}

/* The lower median of what is known; 0 when nothing is. */
static uint64_t median_us(const struct cairn_latency *const *group, unsigned n)
{
    uint64_t sorted[CAIRN_GROUP_MAX];
    unsigned known = 0;

    for (unsigned i = 0; i < n && known < CAIRN_GROUP_MAX; i++) {
        uint64_t us = cairn_latency_usual_us(group[i]);
        unsigned at = known;
        if (us == 0)
            continue;
        for (; at > 0 && sorted[at - 1] > us; at--)
            sorted[at] = sorted[at - 1];
        sorted[at] = us;
        known++;
    }
    return known ? sorted[(known - 1) / 2] : 0;
}

uint64_t cairn_late_after_us(const struct cairn_latency *own, const struct cairn_latency *const *group, unsigned n,
                             const struct cairn_late_limits *limits)
{
    uint64_t median = median_us(group, n);
    uint64_t self = cairn_latency_usual_us(own);
    uint64_t after = median;

    if (median == 0)
        after = limits->ceiling_us / UNKNOWN_SHARE;
    else if (self > after)
        after = self < median * SLOWER ? self : median * SLOWER;
    if (after < limits->floor_us)
        after = limits->floor_us;
    return after < limits->ceiling_us ? after : limits->ceiling_us;
}

unsigned cairn_late_most(unsigned n)
{
    return n / 3;
}
