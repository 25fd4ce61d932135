/* SPDX-License-Identifier: Apache-2.0 */
/* The copies of one save from its devices to the pages of its grant: put into streams by the thread that seals, then
 * looked after by the completion thread until no device touches the pages any more. */
#ifndef CAIRN_CLIENT_DEVICE_COPY_H
#define CAIRN_CLIENT_DEVICE_COPY_H

#include "client/shares.h"

struct device_copies;

/* What came of them, once they have ended. */
struct device_outcome {
    int code; /* negative: a copy has failed */
    struct cairn_error error;
    struct hash128 *sums; /* of each part, 0 where there is none; NULL: none are known. Owned by the copies */
    uint64_t skipped_bytes, staged_bytes;
    uint64_t packed_bytes; /* plain, of parts that lie packed in their pages */
    bool packs;            /* some device could pack, whatever came of it */
    uint64_t device_ns;    /* the slowest device's; 0: not known */
};

/* Puts the copies of all shares into streams. *ret_copies is set when some are under way, also on failure. */
int device_copies_start(struct cairn_save *s, struct device_copies **ret_copies, struct cairn_error *err);
/* True when all have ended. Tells the daemon of parts that are in place. */
bool device_copies_look(struct device_copies *c);
/* The first so many parts of the image are in place. */
uint32_t device_copies_parts(const struct device_copies *c);
const struct device_outcome *device_copies_outcome(const struct device_copies *c);
/* They have ended well: the daemon hears how the parts lie of which it was not told yet, and has answered. */
int device_copies_tell_rest(struct device_copies *c, int64_t deadline_ns, struct cairn_error *err);
/* They have ended. In a forked child nothing of the plugin's is touched. NULL is allowed. */
void device_copies_free(struct device_copies *c, bool forked);

/* The arena's pages hold what the copies have brought there. */
void device_copies_note_sums(struct cairn_save *s, const struct device_outcome *outcome);
/* Those that no device will fill are written to: nobody knows what they hold. */
void device_forget_sums(struct cairn_save *s);

#endif
