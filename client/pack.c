/* SPDX-License-Identifier: Apache-2.0 */
#include "client/pack.h"

#include <cairn/cairn.h>

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
    if (p->off)
        return false;
    if (p->plain.samples < PACK_TRIES)
        return p->packed.samples < p->plain.samples;
    if (p->packed.samples < PACK_TRIES)
        return true;
    bool better = p->packed.ns_per_byte < p->plain.ns_per_byte * BETTER;
    return (p->saves % PACK_AGAIN == 0) != better;
}

/* Notes the size: whether it can be compared with those before. */
static bool take_size(struct pack *p, uint64_t bytes)
{
    if (bytes / 2 <= p->bytes && bytes >= p->bytes / 2) {
        p->small = 0;
        p->bytes = bytes > p->bytes ? bytes : p->bytes;
        return true;
    }
    if (bytes < p->bytes && ++p->small < PACK_AGAIN)
        return false;
    *p = (struct pack){.bytes = bytes, .off = p->off};
    return true;
}

void pack_note(struct pack *p, bool packed, uint64_t bytes, uint64_t ns)
{
    p->saves++; /* the other way has been looked at, whatever was seen */
    if (bytes && ns && take_size(p, bytes))
        add(packed ? &p->packed : &p->plain, (double)ns / (double)bytes);
}

/* What plain saves would have met as well says nothing: no room, another rank that did not come, a daemon that went. */
static bool may_be_why(int code)
{
    switch (code) {
    case CAIRN_E_INVAL:
    case CAIRN_E_NOMEM:
    case CAIRN_E_IO:
    case CAIRN_E_CORRUPT:
    case CAIRN_E_DENIED:
    case CAIRN_E_PROTOCOL:
    case CAIRN_E_UNSUPPORTED:
        return true;
    default:
        return false;
    }
}

void pack_failed(struct pack *p, int code)
{
    p->off = p->off || may_be_why(code);
}
