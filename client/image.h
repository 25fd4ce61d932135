/* SPDX-License-Identifier: Apache-2.0 */
/* The copy of a save: from the tensors into the pages of the grant, part by part, by one or several threads. */
#ifndef CAIRN_CLIENT_IMAGE_H
#define CAIRN_CLIENT_IMAGE_H

#include "client/arena.h"
#include "client/copy.h"
#include "client/tracker.h"

struct image_copy {
    const struct plan *plan;
    const struct image_source *sources; /* of each slice */
    const struct arena *arena;
    const uint32_t *pages; /* of each part */
    const uint32_t *parts; /* those that have bytes of the host's, or gaps for it to zero; NULL: all */
    uint32_t nparts;       /* of them */
    enum copy_path path;
    bool open;               /* some slices have no data: their bytes stay as they are */
    struct tracked *tracked; /* NULL: copy all */
};

/* Copies what the pages do not hold already, with so many threads at most; on return all bytes are ordered before later
 * stores. Returns how many bytes of tensors were copied. Cannot fail: a thread that cannot be made is done without. */
uint64_t image_copy_run(const struct image_copy *c, unsigned threads);

#endif
