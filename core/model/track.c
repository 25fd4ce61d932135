/* SPDX-License-Identifier: Apache-2.0 */
#include "core/model/track.h"

#include "core/base/error.h"

#include <stdlib.h>

/* ---- a tensor's pages ------------------------------------------------------------------------ */

int cairn_track_start(struct cairn_track *t, uint32_t npages, uint32_t epoch, struct cairn_error *err)
{
    uint32_t *written = malloc((npages ? npages : 1) * sizeof *written);

    if (!written)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the epochs of %u pages", npages);
    for (uint32_t i = 0; i < npages; i++)
        written[i] = epoch;
    *t = (struct cairn_track){.written = written, .npages = npages};
    return 0;
}

void cairn_track_free(struct cairn_track *t)
{
    free(t->written);
    *t = (struct cairn_track){0};
}

uint32_t cairn_track_mark(struct cairn_track *t, uint64_t first, uint64_t n, uint32_t epoch)
{
    uint32_t fresh = 0;

    for (uint64_t i = first; i < t->npages && i - first < n; i++) {
        fresh += t->written[i] != epoch;
        t->written[i] = epoch;
    }
    return fresh;
}

static bool is_newer(uint32_t written, uint32_t since)
{
#ifndef CAIRN_BUG_SKIPS_AN_EPOCH
    return written > since;
#else
    return written > since + 1;
#endif
}

bool cairn_track_next(const struct cairn_track *t, uint32_t from, uint32_t to, uint32_t since, uint32_t *ret_first,
                      uint32_t *ret_n)
{
    uint32_t end = to < t->npages ? to : t->npages, i = from;

    while (i < end && !is_newer(t->written[i], since))
        i++;
    if (i >= end)
        return false;
    *ret_first = i;
    while (i < end && is_newer(t->written[i], since))
        i++;
    *ret_n = i - *ret_first;
    return true;
}

bool cairn_track_is_worth(const struct cairn_track *t, uint32_t changed)
{
    return (uint64_t)changed * 100 <= (uint64_t)t->npages * CAIRN_TRACK_MAX_PERCENT;
}

uint32_t cairn_track_pause(uint32_t n)
{
    return CAIRN_TRACK_PAUSE << (n < CAIRN_TRACK_MAX_PAUSES ? n : CAIRN_TRACK_MAX_PAUSES);
}

/* ---- a page of the arena --------------------------------------------------------------------- */

void cairn_held_drop(struct cairn_held *h)
{
#ifndef CAIRN_BUG_KEEPS_HELD
    h->epoch = 0;
#else
    (void)h;
#endif
}

void cairn_held_set(struct cairn_held *h, uint64_t plan, uint32_t part, uint32_t epoch)
{
    *h = (struct cairn_held){plan, part, epoch};
}

uint32_t cairn_held_since(const struct cairn_held *h, uint64_t plan, uint32_t part)
{
    return h->plan == plan && h->part == part ? h->epoch : 0;
}
