/* SPDX-License-Identifier: Apache-2.0 */
/* device-cuda: what its files share. scope.c is a thread's state in the runtime, device.c the device, pin.c pinned host
 * memory, shape.c strides, plan.c what is to be copied, emit.c one range of it, save.c a save, load.c restores. */
#ifndef CAIRN_PLUGINS_DEVICE_CUDA_DEVICE_H
#define CAIRN_PLUGINS_DEVICE_CUDA_DEVICE_H

#include "plugins/device-cuda/runtime.h"

#include <cairn/plugin.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>

#define PART ((uint64_t)1 << 20) /* the arena's page */
#define LANES 2                  /* copy streams of a device: while one copies, the other gathers */
#define STAGE_ALIGN 256          /* of what lies in staging memory */

struct pinned { /* pieces of piece bytes were registered one by one: no copy may cross from one to the next */
    char *base;
    uint64_t bytes;
    uint8_t *ours; /* of each piece: 1 when it was registered here */
};

struct events { /* of the device, kept for the next save */
    cuda_event *idle;
    size_t n, room;
};

struct lane {
    cuda_stream stream;
    cuda_event tail; /* behind the last save's last copy; fences wait for it */
};

struct cairn_device {
    struct cuda cuda;
    int ordinal;
    cuda_context context; /* NULL without the driver's functions */
    uint64_t max_pitch;
    uint64_t staging_bytes;

    pthread_mutex_t lock; /* streams, events and staging, while a save is put into streams */
    struct lane lanes[LANES];
    cuda_event ready;      /* in the producer's stream: what copies wait for */
    void *aside;           /* volatile slices of the save under way, on the device */
    uint64_t aside_bytes;  /* allocated */
    cuda_event aside_read; /* the last copy out of it: the next producer's stream waits for it */
    struct events events;

    pthread_mutex_t pins_lock; /* pins, and: */
    bool broken;               /* the runtime said something that does not go away */
    struct cairn_error why;
    struct pinned *pins;
    size_t npins;
};

/* ---- scope.c --------------------------------------------------------------------------------- */
/* While one is open the thread's current device is ours and its calls disturb nobody's stream capture. Everything is
 * put back when it ends, and errors of ours are not left behind for others to find. */
struct scope {
    const struct cairn_device *device; /* NULL: not entered */
    int previous;                      /* device to go back to, -1: none */
    bool pushed;
    cuda_capture_mode mode;
    cuda_error pending; /* that the caller had */
};
int scope_enter(struct scope *s, const struct cairn_device *device, struct cairn_error *err);
void scope_leave(struct scope *s);
#define _cleanup_scope_ __attribute__((cleanup(scope_leave)))

/* ---- device.c -------------------------------------------------------------------------------- */
/* The context is lost, or the process is ending: every later call says the same. */
bool cuda_is_final(cuda_error code);
/* Fills err with what was tried and the runtime's words; remembers a final error. Returns a code. */
int device_fail(struct cairn_device *d, struct cairn_error *err, cuda_error code, const char *what);
int device_usable(struct cairn_device *d, struct cairn_error *err);
int device_open(const struct cairn_device_options *options, struct cairn_device **ret_device, struct cairn_error *err);
void device_close(struct cairn_device *d);
void device_describe(struct cairn_device *d, char *text, size_t room);
int device_check(struct cairn_device *d, const void *data, uint64_t bytes, struct cairn_error *err);
/* An event of the device's own; lock is held. */
int events_take(struct cairn_device *d, cuda_event *ret_event, struct cairn_error *err);
void events_give(struct cairn_device *d, cuda_event event);

/* ---- pin.c ----------------------------------------------------------------------------------- */
int device_pin(struct cairn_device *d, void *base, uint64_t bytes, struct cairn_error *err);
void device_unpin(struct cairn_device *d, void *base, uint64_t bytes);
void pins_free(struct cairn_device *d);
/* Bytes from p to the end of the piece it lies in; 0 when it is not pinned. */
uint64_t pin_room(struct cairn_device *d, const void *p);

/* ---- shape.c --------------------------------------------------------------------------------- */
struct shape_dim {
    uint64_t count;
    int64_t stride; /* bytes */
};
struct shape { /* bytes that are strided in memory, in their dense order: rows of width, by dims from the innermost */
    uint64_t bytes;
    uint64_t width;
    uint32_t ndims; /* 0: dense */
    struct shape_dim dims[CAIRN_MAX_DIMS];
};
/* elem 0: no such dtype. */
int shape_make(struct shape *ret_shape, const struct cairn_device_slice *slice, struct cairn_error *err);
/* Where row lies, from the first element on. */
int64_t shape_row(const struct shape *s, uint64_t row);

/* ---- plan.c ---------------------------------------------------------------------------------- */
struct slice {
    struct shape shape;
    uint64_t at; /* in the image */
    bool is_volatile;
    uint64_t aside_at; /* in staging */
};
struct piece { /* bytes from .. from + bytes of a slice */
    uint32_t slice;
    uint64_t from, bytes;
};
struct batch { /* pieces that are put into one stream, with an event behind them */
    uint32_t first, npieces;
    uint32_t parts; /* all parts before this one are in place behind it */
    uint64_t bytes;
};
struct gap { /* bytes between slices that are this device's to zero */
    uint64_t at;
    uint32_t bytes;
};
struct cairn_device_plan {
    struct cairn_device *device;
    uint32_t nslices, nparts, npieces, nbatches, ngaps, nvolatile;
    struct slice *slices;
    struct piece *pieces;
    struct batch *batches; /* the first is that of volatile slices, which may be empty */
    struct gap *gaps;
    uint64_t bytes, aside_bytes;
};
int device_plan(struct cairn_device *d, const struct cairn_device_layout *layout, struct cairn_device_plan **ret_plan,
                struct cairn_error *err);
void plan_free(struct cairn_device_plan *plan);

/* ---- emit.c ---------------------------------------------------------------------------------- */
/* Where a range of the image goes: pages of the arena, or one stretch of device memory. */
struct target {
    void *const *page; /* of each part; NULL: */
    char *flat;        /* where flat_at of the image lies */
    uint64_t flat_at;
};
struct emit {
    struct cairn_device *device;
    cuda_stream stream;
    cuda_copy_kind kind;
    struct target to;
    uint64_t at; /* in the image, of the slice */
    uint64_t calls;
};
/* Puts bytes from .. from + bytes of a slice, whose first element is at data, into the stream. */
int emit_range(struct emit *e, const struct shape *shape, const char *data, uint64_t from, uint64_t bytes,
               struct cairn_error *err);

/* ---- save.c ---------------------------------------------------------------------------------- */
int device_save(struct cairn_device_plan *plan, const struct cairn_device_save *save,
                struct cairn_device_copy **ret_copy, struct cairn_error *err);
int device_fence(struct cairn_device *d, void *stream, struct cairn_error *err);
int copy_progress(struct cairn_device_copy *copy, struct cairn_device_progress *ret_progress, struct cairn_error *err);
void copy_free(struct cairn_device_copy *copy);

/* ---- load.c ---------------------------------------------------------------------------------- */
int device_loader(struct cairn_device *d, struct cairn_device_loader **ret_loader, struct cairn_error *err);
void loader_free(struct cairn_device_loader *l);
int loader_load(struct cairn_device_loader *l, const struct cairn_device_run *runs, uint32_t n, uint64_t *ret_ticket,
                struct cairn_error *err);
int loader_loaded(struct cairn_device_loader *l, uint64_t ticket, struct cairn_error *err);

#endif
