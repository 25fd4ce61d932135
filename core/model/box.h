/* SPDX-License-Identifier: Apache-2.0 */
/* Boxes: n-dimensional slices in global element coordinates, what they share and what is left of them, and the bytes
 * of a box inside a dense row-major slice. Resharding is nothing more than this. */
#ifndef CAIRN_CORE_MODEL_BOX_H
#define CAIRN_CORE_MODEL_BOX_H

#include <cairn/cairn.h>
#include <stdbool.h>

struct cairn_box {
    uint32_t ndim; /* 0: a scalar, one element */
    uint64_t offset[CAIRN_MAX_DIMS];
    uint64_t length[CAIRN_MAX_DIMS];
};

/* Elements in the box; a scalar has 1. The caller knows that it does not overflow (validated tensors). */
uint64_t cairn_box_elements(const struct cairn_box *b);
/* True and the common box when a and b (of equal ndim) share at least one element. */
bool cairn_box_intersect(const struct cairn_box *a, const struct cairn_box *b, struct cairn_box *ret_common);
/* Writes the at most 2*ndim boxes that cover a without b into ret_rest[2 * CAIRN_MAX_DIMS]; returns how many. */
unsigned cairn_box_subtract(const struct cairn_box *a, const struct cairn_box *b, struct cairn_box *ret_rest);

/* A box of elements inside a slice that lies dense and row-major at image_offset of a shard's image, and where it goes.
 */
struct cairn_box_copy {
    struct cairn_box source; /* the whole slice in the image */
    struct cairn_box box;    /* the part of it that is wanted; within source */
    uint64_t image_offset;   /* of the slice's first byte */
    size_t elem_size;
    char *target;                           /* memory of the element at target_origin */
    uint64_t target_origin[CAIRN_MAX_DIMS]; /* global coordinates of the element that target points to */
    int64_t target_stride[CAIRN_MAX_DIMS];  /* bytes between neighbours per dimension */
};
/* The first and one past the last image byte that the copy reads; equal when it reads nothing. */
void cairn_box_copy_span(const struct cairn_box_copy *c, uint64_t *ret_begin, uint64_t *ret_end);
/* Copies the bytes of the box that lie in the image's window [begin, begin + len), whose bytes are at src. Calling it
 * once for each window of a partition of the image copies everything exactly once. An element may straddle two windows.
 */
void cairn_box_copy_window(const struct cairn_box_copy *c, const void *src, uint64_t begin, size_t len);
/* The other direction, for saves: fills dst with the image's window from target. Bytes of the window outside the box
 * are not touched. */
void cairn_box_fill_window(const struct cairn_box_copy *c, void *dst, uint64_t begin, size_t len);

#endif
