/* SPDX-License-Identifier: Apache-2.0 */
/* The tensors of a session whose writes are watched, so that a save copies only what changed (core/model/track.h).
 *
 * A tensor is tracked by its whole pages; what it has of the first and last page, which others may share, is always
 * copied. It is not tracked while it is small, strided, said to be written by a device, overlaps a tracked one, moves
 * from save to save, lies in memory that others can write to, changes too much, or the kernel refuses. Then all of it
 * is copied: tracking never decides whether a byte is saved, only whether the arena has it already.
 *
 * Each save also compares some pages that it leaves out with what the arena holds. One that differs was written behind
 * the kernel's back: everything is copied, and the session tracks nothing any more.
 *
 * One save at a time, from tracker_begin to tracker_end. */
#ifndef CAIRN_CLIENT_TRACKER_H
#define CAIRN_CLIENT_TRACKER_H

#include "client/plan.h"
#include "core/model/track.h"

/* Where a slice lies in the trainer's memory. */
struct image_source {
    const char *data;      /* NULL: it is not copied from the host's memory */
    const void *on_device; /* of a device; else, without data, the caller writes the slice where it lies in the arena */
    int64_t *stride;       /* owned; NULL when dense and row-major */
    uint32_t device;       /* cairn_tensor.device */
    bool is_volatile;      /* on a device */
    bool by_device;        /* writes are not seen */
};

struct tracker;

/* Never fails for what the kernel lacks: then it tracks nothing and says why. */
int tracker_new(struct tracker **ret_tracker, struct cairn_error *err);
void tracker_free(struct tracker *t, bool forked); /* NULL is allowed */

/* What a save needs of it. */
struct tracked {
    struct tracker *tracker;
    uint32_t epoch; /* of this save; 0: nothing is tracked, copy all */
};
/* Scans the tensors of a save, whose plan is placed. */
void tracker_begin(struct tracker *t, const struct plan *plan, const struct image_source *sources,
                   struct tracked *ret_tracked);
void tracker_end(struct tracked *tracked);

/* A slice's whole pages and where the first begins, in bytes from the slice's first; NULL: it is not tracked. */
const struct cairn_track *tracked_pages(const struct tracked *tracked, uint32_t slice, uint64_t *ret_first);
size_t tracked_page_bytes(const struct tracked *tracked);
/* A page that was to be left out is not what the arena holds. */
void tracked_is_wrong(struct tracked *tracked, const char *tensor);

/* "on", or why nothing is tracked; and how many bytes are. text has room for TRACKER_TEXT. */
#define TRACKER_TEXT 256
void tracker_describe(struct tracker *t, char *ret_text, uint64_t *ret_bytes);

#endif
