/* SPDX-License-Identifier: Apache-2.0 */
/* When an answer is late: from how long answers of the same kind took lately. Time comes in as an argument. */
#ifndef CAIRN_CORE_MODEL_LATENESS_H
#define CAIRN_CORE_MODEL_LATENESS_H

#include <stdbool.h>
#include <stdint.h>

/* What one peer's answers took: a smoothed mean and mean deviation, as TCP keeps of its round trips (RFC 6298). */
struct cairn_latency {
    uint32_t n; /* answers seen, saturating */
    double mean_us;
    double dev_us;
};
void cairn_latency_add(struct cairn_latency *l, uint64_t took_us);
/* Mean and six deviations: nearly every answer comes within it. 0 while too few were seen. */
uint64_t cairn_latency_usual_us(const struct cairn_latency *l);

struct cairn_late_limits {
    uint64_t floor_us;   /* never late before it: a scheduler's hiccup is no reason */
    uint64_t ceiling_us; /* always late after it, and after a quarter of it while nothing is known */
};
/* After how long an answer of the peer `own` is late, among the n peers of its group (own may be one of them): what is
 * usual for the group's median peer, or for the peer itself, which may be up to three times slower than that. */
uint64_t cairn_late_after_us(const struct cairn_latency *own, const struct cairn_latency *const *group, unsigned n,
                             const struct cairn_late_limits *limits);
/* How many of n peers may be held late at once: when more of them are slow, it is not theirs. */
unsigned cairn_late_most(unsigned n);

#endif
