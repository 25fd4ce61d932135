/* SPDX-License-Identifier: Apache-2.0 */
/* The copy of a save: from the tensors into the pages of the grant, part by part, by one or several threads. */
#ifndef CAIRN_CLIENT_IMAGE_H
#define CAIRN_CLIENT_IMAGE_H

#include "client/arena.h"
#include "client/copy.h"
#include "client/plan.h"

/* Where a slice lies in the trainer's memory. */
struct image_source {
    const char *data;
    int64_t *stride; /* owned; NULL when dense and row-major */
};

struct image_copy {
    const struct plan *plan;
    const struct image_source *sources; /* of each slice */
    const struct arena *arena;
    const uint32_t *pages; /* of each part */
    enum copy_path path;
};

/* Copies everything, with so many threads at most; on return all bytes are ordered before later stores. Cannot fail: a
 * thread that cannot be made is done without. */
void image_copy_run(const struct image_copy *c, unsigned threads);

#endif
