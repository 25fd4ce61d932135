/* SPDX-License-Identifier: Apache-2.0 */
/* How fast a drain takes new chunks: by its plan (core/model/pace.h) and by the node's rates (pacer.h). Nothing is cut
 * or encoded before it may go, so that what waits holds no buffer and no slot. What was lost, and is encoded again, is
 * not planned: it goes at once, within the rates. */
#include "daemon/node/drain_chunk.h"
#include "daemon/node/pacer.h"

#include <stdio.h>

static uint64_t now_ns(const struct drain *d)
{
    return loop_now_ns(links_loop(d->links));
}

bool drain_in_pace(struct drain *d)
{
    d->pace.taken = d->next_part;
    uint64_t wait = cairn_pace_wait_ns(&d->pace, now_ns(d));
    if (wait)
        pacer_wake(links_pacer(d->links), wait);
    return wait == 0;
}

bool drain_in_rate(struct drain *d)
{
    struct link *to[CAIRN_GROUP_MAX];

    if (pacer_rate(links_pacer(d->links)) == 0)
        return true;
    unsigned n = links_takers(d->links, 0, &d->stream, to);

    return pacer_may(links_pacer(d->links), to, n);
}

void drain_hurry(struct drain *d, int why)
{
    if (cairn_pace_hurry(&d->pace, why))
        links_kick(d->links);
}

void drain_status_of(const struct drain *d, struct drain_status *ret)
{
    *ret = (struct drain_status){.parts = d->spec.layout->nparts,
                                 .taken_parts = d->next_part,
                                 .durable_parts = d->durable_parts,
                                 .shared_parts = d->shared_parts,
                                 .in_place_parts = d->in_place,
                                 .early_parts = d->early_parts,
                                 .pace = d->pace,
                                 .now_ns = now_ns(d)};
    ret->pace.taken = d->next_part;
}

void drain_pace_text(const struct drain *d, char *buf, size_t len)
{
    const struct cairn_pace *p = &d->pace;
    double plan_s = (double)(p->end_ns - p->begin_ns) / 1e9;

    if (p->why == CAIRN_PACED && plan_s > 0)
        snprintf(buf, len, ", paced: %.0f%% of %.1f s", (double)(now_ns(d) - p->begin_ns) / 1e7 / plan_s, plan_s);
    else if (pacer_rate(links_pacer(d->links)))
        snprintf(buf, len, ", [pace] bounds it to %.0f MiB/s", (double)pacer_rate(links_pacer(d->links)) / CAIRN_PART);
    else
        snprintf(buf, len, "%s", "");
}
