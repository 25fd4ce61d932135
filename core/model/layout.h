/* SPDX-License-Identifier: Apache-2.0 */
/* A layout: the tensor table of a shard and where each slice lies in the shard's image.
 *
 * The image is the byte sequence that a snapshot holds. Slices are packed by dtype in order of first appearance; each
 * dtype's group begins at a part (1 MiB), each slice at a multiple of 64 bytes; gaps are zero. So a part has one dtype:
 *
 *     | group 0: BF16 .............. | group 1: F32 ......... |
 *     | part 0 | part 1 | part 2 (short) | part 3 | part 4 (short) |
 *
 * Client and daemon both place, and the daemon refuses a layout that was placed differently.
 */
#ifndef CAIRN_CORE_MODEL_LAYOUT_H
#define CAIRN_CORE_MODEL_LAYOUT_H

#include "core/base/bytes.h"
#include "core/model/box.h"
#include "core/model/hash.h"

struct cairn_slice {
    char *name; /* owned by the layout */
    uint32_t name_len;
    int dtype;
    bool common;                    /* CAIRN_TENSOR_COMMON: other ranks hold the same bytes */
    uint64_t shape[CAIRN_MAX_DIMS]; /* global */
    struct cairn_box box;           /* this rank's part of it; box.ndim is the tensor's */
    uint64_t image_offset;          /* bytes */
    uint64_t bytes;                 /* of the slice, dense */
};

struct cairn_group {
    int dtype;
    uint32_t first_part;
    uint32_t nparts;
    uint64_t bytes; /* from the group's first byte to its last slice's end */
};

struct cairn_layout {
    struct cairn_slice *slices;
    uint32_t nslices;
    uint32_t room; /* allocated slices */
    struct cairn_group *groups;
    uint32_t ngroups;
    uint32_t nparts; /* of the image: its length in MiB */
};

void cairn_layout_init(struct cairn_layout *l);
void cairn_layout_free(struct cairn_layout *l); /* leaves it as after init */

/* Checks one tensor (name, dtype, dims, overflow, range) and appends its slice. The tensor's data and strides are
 * ignored, and its flags but CAIRN_TENSOR_COMMON. */
int cairn_layout_add(struct cairn_layout *l, const struct cairn_tensor *t, struct cairn_error *err);
/* The first n slices of another layout, into an empty one that is not placed yet. */
int cairn_layout_copy(struct cairn_layout *l, const struct cairn_layout *from, uint32_t n, struct cairn_error *err);
/* Checks that no two slices of one tensor overlap and that equal names agree in dtype and shape, in O(n log n) for
 * distinct names; gives every slice its image offset and fills groups and nparts. */
int cairn_layout_place(struct cairn_layout *l, struct cairn_error *err);

/* Bytes of part p that carry data: CAIRN_PART but for the last part of a group. */
size_t cairn_layout_part_len(const struct cairn_layout *l, uint32_t part);
int cairn_layout_part_dtype(const struct cairn_layout *l, uint32_t part);

/* The layout's bytes: magic "CRNLAYT1", version, counts, then slices with image offsets (layout_codec.c has the
 * table). Appends to out. */
int cairn_layout_encode(const struct cairn_layout *l, struct bytes *out, struct cairn_error *err);
/* The same without what only a save has use for: readers of any version understand it. */
int cairn_layout_encode_plain(const struct cairn_layout *l, struct bytes *out, struct cairn_error *err);
/* The encoded slices follow the header one after the other. */
#define CAIRN_LAYOUT_HEADER_LEN 24
size_t cairn_layout_slice_len(const struct cairn_slice *s);
/* Whether the tensor is the one of an encoded slice, whose bytes are trusted. The tensor has a name and, with
 * dimensions, a shape. */
bool cairn_layout_slice_is(const void *encoded_slice, size_t len, const struct cairn_tensor *t);
/* Reads untrusted bytes into an initialised layout, checks everything add and place check, places it, and refuses
 * stored image offsets that differ. On failure l is as after init. */
int cairn_layout_decode(struct cairn_layout *l, const void *data, size_t len, struct cairn_error *err);
/* Names the layout: XXH3-128 of its bytes. */
struct hash128 cairn_layout_digest(const void *encoded, size_t len);

#endif
