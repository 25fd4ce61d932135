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
/* What such a copy moves, run by run in the order of the image: count stretches of bytes each, one image_stride behind
 * the other in the image and target_stride in the target; of a single stretch both are bytes. */
struct cairn_box_run {
    uint64_t image; /* where the first begins */
    char *target;   /* the same */
    uint64_t bytes;
    uint64_t count;
    uint64_t image_stride;
    int64_t target_stride;
};
struct cairn_box_runs {
    struct cairn_box_walk {
        struct cairn_box_loop {
            uint64_t count;
            uint64_t image_stride; /* bytes; more than all inner loops span */
            int64_t target_stride; /* bytes, any */
        } loops[CAIRN_MAX_DIMS];   /* outer first */
        unsigned nloops;
        uint64_t run;   /* contiguous bytes on both sides; 0: nothing to copy */
        uint64_t image; /* where the first run begins in the image */
        uint64_t span;  /* bytes in the image from there to the last run's end */
        char *target;   /* of the first run */
    } walk;
    struct cairn_box_position { /* one index per loop, and what they add up to on both sides */
        uint64_t index[CAIRN_MAX_DIMS];
        uint64_t image; /* bytes from the walk's first run */
        char *target;
    } at;
    uint64_t begin, end; /* of the window, from the walk's first run */
    bool more;
};
void cairn_box_runs_begin(struct cairn_box_runs *r, const struct cairn_box_copy *c, uint64_t begin, size_t len);
/* False when there are no more. */
bool cairn_box_runs_next(struct cairn_box_runs *r, struct cairn_box_run *ret_run);
/* The other direction, for saves: fills dst with the image's window from target. Bytes of the window outside the box
 * are not touched. */
void cairn_box_fill_window(const struct cairn_box_copy *c, void *dst, uint64_t begin, size_t len);

#endif
