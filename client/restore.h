/* SPDX-License-Identifier: Apache-2.0 */
/* A restore: what was asked for, cut into pieces of saved slices, and the window that chunks arrive in.
 *
 *     add: request box --minus each saved slice of that name--> pieces            restore.c
 *     run: pieces --by chunk--> reads --through the window's slots--> targets     restore_run.c
 *          to a device: --through a loader of its plugin (device_loads.h)-->
 */
#ifndef CAIRN_CLIENT_RESTORE_H
#define CAIRN_CLIENT_RESTORE_H

#include "client/index.h"
#include "client/session.h"

/* Memory that a piece is copied to. */
struct restore_target {
    char *data;                      /* of the element at origin */
    struct device *device;           /* whose memory it is; NULL: the host's */
    uint64_t origin[CAIRN_MAX_DIMS]; /* global coordinates */
    int64_t stride[CAIRN_MAX_DIMS];  /* bytes */
};

struct restore_piece {
    uint32_t target; /* in cairn_restore.targets */
    uint32_t shard;
    uint32_t slice;       /* in the shard's layout */
    uint32_t chunks;      /* that it needs bytes of */
    uint32_t chunks_done; /* in this run */
    struct cairn_box box; /* within the slice */
    uint64_t bytes;
};

/* One chunk on its way through the window. */
struct restore_slot {
    struct channel_request request;
    struct local_read_done answer;
    bool busy;    /* asked for and not taken; stays so after a failed run until the answer came */
    uint64_t job; /* in the run's plan */
};

struct cairn_restore {
    struct cairn_session *session;
    struct attachment *attachment;
    uint64_t id; /* the daemon's */
    struct cairn_catalog catalog;
    struct slice_index index;
    struct view window;
    struct restore_slot *slots;
    uint32_t nslots;
    uint32_t slot_parts;
    struct restore_target *targets;
    uint32_t ntargets, targets_room;
    struct restore_piece *pieces; /* not read yet */
    size_t npieces, pieces_room;
};

/* The slice that a piece is cut from. */
static inline const struct cairn_slice *piece_slice(const struct cairn_restore *r, const struct restore_piece *p)
{
    return &r->catalog.shards[p->shard].layout.slices[p->slice];
}

/* The copy that brings a piece from the image to its target. */
static inline struct cairn_box_copy piece_copy(const struct cairn_restore *r, const struct restore_piece *p)
{
    const struct cairn_slice *s = piece_slice(r, p);
    const struct restore_target *t = &r->targets[p->target];
    struct cairn_box_copy c = {.source = s->box,
                               .box = p->box,
                               .image_offset = s->image_offset,
                               .elem_size = cairn_dtype_size(s->dtype),
                               .target = t->data};

    for (uint32_t d = 0; d < s->box.ndim; d++) {
        c.target_origin[d] = t->origin[d];
        c.target_stride[d] = t->stride[d];
    }
    return c;
}

#endif
