/* SPDX-License-Identifier: Apache-2.0 */
/*
 *                      coordinator
 *           slot 0   slot 1   ...   slot 63
 *        64 .. 127  128 .. 191 ...            each slot has REPORT_FAN_IN children
 *
 * A report goes up the tree once; what gets no verdict is repeated straight to the coordinator, so that a silent parent
 * costs one repeat's time and nothing else. */
#include "core/checkpoint/report.h"

static void report_add(struct commit_event *events, unsigned *n, const struct report *r, int type)
{
    events[(*n)++] = (struct commit_event){.type = type, .rank = r->rank, .reason = r->reason};
}

unsigned report_events(const struct commit *c, const struct report *r,
                       struct commit_event ret_events[REPORT_MAX_EVENTS])
{
    unsigned n = 0;

    if (r->rank >= c->world_size)
        return 0;
    int was = c->rank[r->rank];
    if (r->state == REPORT_DROPPED) {
        report_add(ret_events, &n, r, COMMIT_ON_DROPPED);
        return n;
    }
    if (was < COMMIT_BEGUN)
        report_add(ret_events, &n, r, COMMIT_ON_BEGUN);
    if (r->state >= REPORT_FILLED && was < COMMIT_FILLED)
        report_add(ret_events, &n, r, COMMIT_ON_FILLED);
#ifdef CAIRN_BUG_FILLED_IS_DURABLE
    if (r->state == REPORT_FILLED)
        report_add(ret_events, &n, r, COMMIT_ON_DURABLE);
#endif
    if (r->state == REPORT_DURABLE)
        report_add(ret_events, &n, r, COMMIT_ON_DURABLE);
    else if (r->state == REPORT_FAILED)
        report_add(ret_events, &n, r, COMMIT_ON_FAILED);
    return n;
}

int report_verdict(const struct commit *c)
{
    if (c->state == COMMIT_UNDECIDED)
        return VERDICT_UNDECIDED;
    if (c->told)
        return c->code == 0 ? VERDICT_COMMITTED : VERDICT_ABORTED;
    /* An abort that is chosen and not decided: nobody need begin to drain, and nothing is to be told yet. */
    return c->intent && c->state != COMMIT_ABORTING ? VERDICT_INTENT : VERDICT_NONE;
}

uint32_t report_parent(uint32_t slot)
{
    return slot < REPORT_FAN_IN ? REPORT_COORDINATOR : slot / REPORT_FAN_IN - 1;
}
