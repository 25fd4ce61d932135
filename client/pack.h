/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a save is packed on its device: what was faster lately, by the device's own clock. Both ways are tried twice
 * before that is known, and the slower one again every so many saves, as buses and neighbours change. A device that
 * cannot say how long it took is never asked to pack, and none any more once a save failed that may have failed by it:
 * it would again. Plain data. */
#ifndef CAIRN_CLIENT_PACK_H
#define CAIRN_CLIENT_PACK_H

#include <stdbool.h>
#include <stdint.h>

#define PACK_TRIES 2  /* of each way, before one is chosen: the first of them also takes memory, and loads code */
#define PACK_AGAIN 64 /* saves from one look at the other way to the next */

struct pack_way {
    double ns_per_byte; /* of plain bytes */
    uint32_t samples;
};
struct pack { /* zeroed */
    struct pack_way plain, packed;
    uint32_t saves; /* that have ended */
    uint64_t bytes; /* of the largest of them: what much smaller ones take a byte says nothing beside it */
    uint32_t small; /* of those, in a row */
    bool off;       /* for good */
};
#define PACK_USELESS UINT64_MAX /* ns: it was packed in vain, no device can */
/* Whether the next save is packed. */
bool pack_next(const struct pack *p);
/* What one took: bytes of the devices' tensors; ns 0: not known, and nothing is noted. Where saves have become much
 * larger or, for so many of them that it is for good, much smaller, it begins anew. */
void pack_note(struct pack *p, bool packed, uint64_t bytes, uint64_t ns);
/* One that was packed has failed with this code. */
void pack_failed(struct pack *p, int code);

#endif
