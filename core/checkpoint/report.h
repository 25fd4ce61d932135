/* SPDX-License-Identifier: Apache-2.0 */
/* Reports: what a node says of its ranks to the job's coordinator, and the tree they travel in. A report is a set of
 * (rank, state): states only grow, so that repeats, reorderings and other ways through the tree change nothing. */
#ifndef CAIRN_CORE_CHECKPOINT_REPORT_H
#define CAIRN_CORE_CHECKPOINT_REPORT_H

#include "core/checkpoint/commit.h"
#include "core/proto/crew.h"

#define REPORT_FAN_IN 64

struct report {
    uint32_t rank;
    int state;          /* enum report_state */
    const char *reason; /* of DROPPED and FAILED */
};
/* The events that bring the machine to what the report says: earlier reports of the rank may have been lost. Returns
 * how many; the reason of ret_events is the report's. */
#define REPORT_MAX_EVENTS 3
unsigned report_events(const struct commit *c, const struct report *r,
                       struct commit_event ret_events[REPORT_MAX_EVENTS]);

/* The verdict that a machine in this state gives to whoever asks. */
int report_verdict(const struct commit *c);

/* Nodes have slots in the order of their greeting. The parent of slot s: another slot, or REPORT_COORDINATOR. */
#define REPORT_COORDINATOR UINT32_MAX
uint32_t report_parent(uint32_t slot);

#endif
