/* SPDX-License-Identifier: Apache-2.0 */
/* Which older checkpoint a job's next one may share unchanged chunks with, so that frozen state is stored once. It is
 * the coordinator's, and forgotten with it: the next checkpoint is whole then.
 *
 *     a whole one is committed --> those that follow share with it
 *         too little is shared any more, or enough have --> the next one is whole, and takes its place
 *         nothing was shared at all --> the next ones are not even compared, for longer each time
 *
 * Nobody shares with one that shares itself: to read a chunk takes one base, however many checkpoints there were. And
 * the base stays as long as one that shares with it, so what shares little keeps much for nothing. */
#ifndef CAIRN_CORE_CHECKPOINT_SHARE_H
#define CAIRN_CORE_CHECKPOINT_SHARE_H

#include "core/proto/manifest.h"
#include "core/proto/record.h"

#define SHARE_WORTH 8      /* one part in so many of what is stored must be saved */
#define SHARE_PAUSE_MAX 64 /* checkpoints */

struct share {
    struct ckpt_base base; /* what the next one may share with; not set: it is whole */
    uint64_t revision;     /* of its decision */
    uint64_t stored_bytes; /* of all its fragments */
    unsigned used;         /* by so many */
    unsigned pause;        /* so many whole ones are not shared with */
    unsigned next_pause;
};
/* What the checkpoint may share with: is_set, or not. */
struct ckpt_base share_choose(const struct share *s, uint64_t step, uint64_t incarnation);
/* It was committed by this coordinator; base: what its intent named, not set for a whole one. limit: so many may share
 * with one, 0: none. */
void share_committed(struct share *s, const struct ckpt_base *self, const struct ckpt_base *base, uint64_t revision,
                     uint64_t stored_bytes, unsigned limit);
/* An intent that named it was refused, or it lacks what cannot be made again: it may be gone. */
void share_refused(struct share *s, const struct ckpt_base *base);
/* Whether a start resumed from an older checkpoint than b, of a start before it: b may be one that could not be read,
 * and nothing that is saved from then on may need it. */
bool share_left_behind(const struct ckpt_base *b, const struct record_pin *pin);

#endif
