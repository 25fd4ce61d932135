/* SPDX-License-Identifier: Apache-2.0 */
/* Which pages of a tensor a save may leave out, because the arena holds them already.
 *
 * Saves count epochs. Each begins with a scan that says which pages were written since the scan before; of each page
 * the newest epoch that found it written is kept. Each page of the arena remembers what it holds: which part of which
 * plan, filled in which epoch. A tensor's page that was not written after that epoch is there still:
 *
 *     epoch      1        2        3        4
 *     arena      A <- p   B <- p   A <- p            A held p as of 1
 *     written        w                               p's page, found by scan 2: 2 > 1, so it is copied in 3
 *
 * What is not known counts as written. The scan comes before the copy, so a write that comes between the two is copied
 * now and found again by the next scan. */
#ifndef CAIRN_CORE_MODEL_TRACK_H
#define CAIRN_CORE_MODEL_TRACK_H

#include <stdbool.h>
#include <stdint.h>

#include <cairn/cairn.h>

#define CAIRN_TRACK_MAX_PERCENT 25  /* of a tensor's pages changed by one step: then a copy costs less than to know */
#define CAIRN_TRACK_PAUSE 16        /* epochs until it is tried again, doubled with every time */
#define CAIRN_TRACK_MAX_PAUSES 6    /* doublings */
#define CAIRN_TRACK_LAST UINT32_MAX /* no epoch: a process that comes so far tracks nothing any more */

/* ---- a tensor's pages ------------------------------------------------------------------------ */

struct cairn_track {
    uint32_t *written; /* of each page the newest epoch that found it written; owned */
    uint32_t npages;
};
/* All count as written in this epoch. */
int cairn_track_start(struct cairn_track *t, uint32_t npages, uint32_t epoch, struct cairn_error *err);
void cairn_track_free(struct cairn_track *t); /* leaves no pages */
/* These were written; returns how many of them were not known to be in this epoch. Pages beyond the last are ignored.
 */
uint32_t cairn_track_mark(struct cairn_track *t, uint64_t first, uint64_t n, uint32_t epoch);
/* The next run of pages in [from, to) that were written after this epoch. */
bool cairn_track_next(const struct cairn_track *t, uint32_t from, uint32_t to, uint32_t since, uint32_t *ret_first,
                      uint32_t *ret_n);
/* Whether so many changed pages are worth tracking. */
bool cairn_track_is_worth(const struct cairn_track *t, uint32_t changed);
/* How many epochs a tensor stays untracked after it was not worth it for the n-th time, from 0. */
uint32_t cairn_track_pause(uint32_t n);

/* ---- a page of the arena --------------------------------------------------------------------- */

struct cairn_held {
    uint64_t plan; /* its serial */
    uint32_t part;
    uint32_t epoch; /* of its last byte; 0: what it holds is not known */
};
/* Before its first byte is written: whatever interrupts the copy, nobody believes it. */
void cairn_held_drop(struct cairn_held *h);
/* Once its last byte is in place. */
void cairn_held_set(struct cairn_held *h, uint64_t plan, uint32_t part, uint32_t epoch);
/* The epoch as of which it holds this part; 0: it does not, copy all. */
uint32_t cairn_held_since(const struct cairn_held *h, uint64_t plan, uint32_t part);

#endif
