/* SPDX-License-Identifier: Apache-2.0 */
#include "client/pack.h"

#define BETTER 0.95 /* of the plain way's time: less is not worth what else it costs */

/* What was faster is believed at once, what was slower only by and by: most of what disturbs a copy makes it slower. */
static void add(struct pack_way *w, double sample)
{
    w->ns_per_byte =
        w->samples == 0 || sample < w->ns_per_byte ? sample : w->ns_per_byte + (sample - w->ns_per_byte) / 4;
    w->samples++;
}

bool pack_next(const struct pack *p)
{
    if (p->plain.samples < PACK_TRIES)
        return p->packed.samples < p->plain.samples;
    if (p->packed.samples < PACK_TRIES)
        return true;
    bool better = p->packed.ns_per_byte < p->plain.ns_per_byte * BETTER;
    return (p->saves % PACK_AGAIN == 0) != better;
}

void pack_note(struct pack *p, bool packed, uint64_t bytes, uint64_t ns)
{
    if (bytes == 0 || ns == 0)
        return;
    add(packed ? &p->packed : &p->plain, (double)ns / (double)bytes);
    p->saves++;
}
