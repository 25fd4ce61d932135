/* SPDX-License-Identifier: Apache-2.0 */
/* device-cuda: what its files share. scope.c is a thread's state in the runtime, device.c the device, pin.c pinned host
 * memory, shape.c strides, plan.c and variant.c what
 * is to be copied and how, stage.c and table.c memory for it, emit.c one range of it, save.c,
 * lanes.c, times.c and copy.c a save, load.c
 * restores. */
#ifndef CAIRN_PLUGINS_DEVICE_CUDA_DEVICE_H
#define CAIRN_PLUGINS_DEVICE_CUDA_DEVICE_H

#include "plugins/device-cuda/runtime.h"

#include "plugins/device-cuda/kernels/kernels.h"

#include <cairn/plugin.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#define PART ((uint64_t)1 << 20) /* the arena's page */
#define LANES 2                  /* copy streams of a device: while one copies, the other gathers */
#define STAGE_ALIGN 256          /* of what lies in staging memory */
/* What a part is packed into before it goes to its page: whatever does not fit goes as it is. */
#define SLOT (((uint64_t)GPU_PACK_ROOM(PART) + STAGE_ALIGN - 1) / STAGE_ALIGN * STAGE_ALIGN)

struct pinned { /* pieces of piece bytes were registered one by one: no copy may cross from one to the next */
    char *base;
    uint64_t bytes;
    uint8_t *ours; /* of each piece: 1 when it was registered here */
    char **mapped; /* of each piece: where kernels find it; NULL: they do not */
};

struct events { /* of the device, kept for the next save */
    unsigned flags;
    cuda_event *idle;
    size_t n, room;
};

struct lane {
    cuda_stream stream;
    cuda_event tail; /* behind the last save's last copy; fences wait for it */
    void *block;     /* what is gathered; the lane's own order guards it */
    void *slots;     /* for parts that are packed; it guards them, too */
};

enum kernel { KERNEL_GATHER, KERNEL_SCATTER, KERNEL_SUMS, KERNEL_PUT, KERNEL_PACK, KERNELS };
struct kernels {
    cuda_library library;
    cuda_kernel kernel[KERNELS];
    bool usable;
    char why_not[160];
};

struct cairn_device {
    struct cuda cuda;
    int ordinal;
    cuda_driver_device driver_device;
    cuda_context context; /* NULL without the driver's functions */
    uint64_t max_pitch;
    bool no_batches; /* the driver is too old for them, or pages have other addresses there; lock is held */
    uint64_t staging_bytes;
    struct kernels kernels;

    pthread_mutex_t lock; /* streams, events and staging, while a save is put into streams */
    struct lane lanes[LANES];
    uint64_t block_bytes; /* of each lane */
    unsigned block_plans; /* that count on it */
    uint32_t nslots;      /* of each lane; 0: none yet, or none to be had */
    unsigned slots_later; /* so many saves do without before they are asked for again */
    bool in_graphs;       /* some graph waits for the tails: it may be launched when the device is closed */
    cuda_event ready;     /* in the producer's stream: what copies wait for */
    cuda_stream tables;   /* what kernels read goes to the device on it */
    cuda_event tables_there;
    void *aside; /* volatile slices of the save under way; the lanes' tails are behind its last readers */
    uint64_t aside_bytes;
    struct events events, timers; /* timers: with timing */

    pthread_mutex_t why_lock;
    bool broken; /* the runtime said something that does not go away */
    struct cairn_error why;

    pthread_mutex_t pins_lock;
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
int events_take(struct cairn_device *d, struct events *events, cuda_event *ret_event, struct cairn_error *err);
void events_give(struct cairn_device *d, struct events *events, cuda_event event);

/* ---- pin.c ----------------------------------------------------------------------------------- */
int device_pin(struct cairn_device *d, void *base, uint64_t bytes, struct cairn_error *err);
void device_unpin(struct cairn_device *d, void *base, uint64_t bytes);
void pins_free(struct cairn_device *d);
/* Bytes from p to the end of the piece it lies in; 0 when it is not pinned. */
uint64_t pin_room(struct cairn_device *d, const void *p);
/* The same pages for kernels; false when one is not pinned, or not mapped. NULL stays NULL. */
bool pins_map(struct cairn_device *d, void *const *page, uint32_t n, void **ret_mapped);

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

/* ---- kernels_host.c ---------------------------------------------------------------------------- */
/* Loads them and tries one; whatever is in the way is why_not. */
void kernels_load(struct cairn_device *d);
void kernels_unload(struct cairn_device *d);
/* args is the kernel's struct; with 0 blocks nothing is launched. */
int kernels_launch(struct cairn_device *d, enum kernel kernel, uint32_t blocks, uint32_t threads, void *args,
                   cuda_stream stream, struct cairn_error *err);

/* ---- stage.c: memory of the device; lock is held ------------------------------------------------ */
/* Gives each lane a block, as large as the budget, what a plan's volatile slices leave of it and the device allow;
 * without one the lanes copy straight from the slices. What packs leaves room for slots. Returns the bytes of a block.
 */
uint64_t stage_lanes(struct cairn_device *d, uint64_t aside_bytes, bool packs);
/* Slots for packing in each lane, of what the budget, the blocks and so many bytes of volatile slices leave. Returns
 * how many; 0: there is no room for them now. */
uint32_t stage_slots(struct cairn_device *d, uint64_t aside_bytes);
/* TOO_LARGE: over the budget. */
int stage_aside(struct cairn_device *d, uint64_t bytes, struct cairn_error *err);
void stage_free(struct cairn_device *d);

/* ---- plan.c ---------------------------------------------------------------------------------- */
struct slice {
    struct shape shape;
    uint64_t at;       /* in the image */
    uint64_t aside_at; /* a volatile one's bytes, dense, in the memory for them */
    uint32_t loop;     /* of a strided one, in the plan's loops */
    bool is_volatile;
};
struct gap { /* bytes between slices that are this device's to zero */
    uint64_t at;
    uint32_t bytes;
};
struct cairn_device_plan {
    struct cairn_device *device;
    uint32_t nslices, nparts, nvolatile, nloops;
    struct slice *slices;
    struct gpu_loop *loops;
    uint32_t *part_len;
    uint8_t *alone;
    uint8_t *width; /* of each part, as codec-float packs it; 0 where it is not packed. NULL: nowhere */
    uint64_t bytes, aside_bytes, block_bytes; /* block_bytes 0: nothing is gathered */
    struct variant *plain, *summed;           /* summed: NULL without kernels */
    struct variant *packed;                   /* NULL until a save asks for it; the device's lock is held */
};
int device_plan(struct cairn_device *d, const struct cairn_device_layout *layout, struct cairn_device_plan **ret_plan,
                struct cairn_error *err);
void plan_free(struct cairn_device_plan *plan);
/* Of a table of addresses: those of the slices, then these. */
#define SOURCE_ASIDE(plan_) ((plan_)->nslices)
#define SOURCE_LANE(plan_, lane_) ((plan_)->nslices + 1 + (lane_))
#define SOURCES(plan_) ((plan_)->nslices + 1 + LANES)

/* ---- variant.c: which bytes go which way ------------------------------------------------------- */
struct piece { /* bytes from .. from + bytes of a slice, by the copy engine from where they are */
    uint32_t slice;
    bool summed; /* of parts with sums: copied by a kernel when what has not changed is skipped */
    bool packed; /* copied by the kernel that packs */
    uint64_t from, bytes;
};
struct span { /* bytes of the image that are gathered into a block first */
    uint64_t at, bytes;
    uint64_t block_at;
    bool summed, packed;
    bool scattered; /* goes to its pages by a kernel: too many are this small for the copy engine */
};
struct batch { /* what goes into one lane, with an event behind it */
    uint32_t piece, npieces;
    uint32_t span, nspans;
    uint32_t gather, ngathers; /* pieces of the kernel that gathers */
    uint32_t part, nparts;     /* of the kernel that sums */
    uint32_t pack, npacks;     /* of the one that packs */
    uint32_t run, nruns;       /* of the kernel that scatters */
    uint32_t done;             /* all parts before this one are in place behind it */
    uint64_t block_used, bytes;
    uint64_t pack_bytes; /* of bytes, what is in parts that are packed */
};
struct table;
enum way { WAY_PLAIN, WAY_SUMMED, WAY_PACKED };
struct variant {
    struct cairn_device_plan *plan;
    enum way way;
    uint32_t npieces, nspans, ngathers, nparts, npacks, nbatches, ngaps, nruns;
    struct piece *pieces;
    struct span *spans;
    struct gpu_piece *gathers;      /* the first nvolatile go to the memory aside */
    struct gpu_part *parts, *packs; /* all that are alone; those of them that are packed */
    struct batch *batches;
    struct gap *gaps;
    uint64_t staged_bytes;
    struct table *idle, *spoiled; /* free for a save; given up, as something may read it still */
};
int variant_make(struct cairn_device_plan *plan, enum way way, struct variant **ret_variant, struct cairn_error *err);
void variant_free(struct variant *v);

/* ---- variant_sizes.c ---------------------------------------------------------------------------- */
/* As its bytes are read in a save: volatile ones have been gathered aside. */
bool slice_is_dense(const struct slice *s);
/* Smaller slices are gathered. */
uint64_t variant_direct_least(const struct cairn_device_plan *p);
/* Says which spans a kernel scatters: of many the smallest. */
int variant_scatter(struct variant *v);

/* ---- table.c: what kernels read, on both sides of the bus --------------------------------------- */
struct table {
    struct table *next;
    char *host, *mapped, *device; /* pinned, the same for kernels, and the device's copy */
    bool loaded;                  /* the device has the plan's own part */
};
struct table_places { /* offsets; the save's part comes first, then the plan's, then what only one side has */
    uint64_t base, page, held, runs, save_end;
    uint64_t pieces, loops, parts, packs, width, both_end;
    uint64_t sums, device_end;                            /* the device's */
    uint64_t ret_sums, ret_skipped, ret_packed, host_end; /* the host's */
};
struct table_places table_places(const struct variant *v);
/* Lock is held. */
int table_take(struct variant *v, struct table **ret_table, struct cairn_error *err);
void table_give(struct variant *v, struct table *t);
void table_spoil(struct variant *v, struct table *t);
void tables_free(struct variant *v);

/* ---- emit.c ---------------------------------------------------------------------------------- */
/* Where a range of the image goes: pages of the arena, or one stretch of device memory. */
struct target {
    void *const *page; /* of each part; NULL: */
    char *flat;        /* where flat_at of the image lies */
    uint64_t flat_at;
};
struct copies { /* that one call puts into a stream */
    void **to;
    const void **from;
    size_t *bytes;
    uint32_t n, room;
};
struct emit {
    struct cairn_device *device;
    cuda_stream stream;
    cuda_copy_kind kind;
    struct target to;
    uint64_t at; /* in the image, of the slice */
    uint64_t calls;
    struct copies *copies; /* NULL: each is put into the stream at once */
};
/* Bytes at byte at of the image, at most want, whose pages are side by side and in one registration; 0: not pinned. */
char *target_at(struct emit *e, uint64_t at, uint64_t want, uint64_t *ret_room);
/* Puts bytes from .. from + bytes of a slice, whose first element is at data, into the stream. */
/* Many copies at once, where the runtime can do that. */
bool emit_has_batches(const struct cairn_device *d);
int emit_copies(struct cairn_device *d, struct copies *copies, cuda_copy_kind kind, cuda_stream stream,
                struct cairn_error *err);
void copies_free(struct copies *copies);
int emit_range(struct emit *e, const struct shape *shape, const char *data, uint64_t from, uint64_t bytes,
               struct cairn_error *err);

/* ---- save.c ---------------------------------------------------------------------------------- */
struct times {
    cuda_event begin[LANES], end[LANES];
    bool failed;
    uint64_t ns; /* 0: not known */
};
struct cairn_device_copy {
    struct variant *variant;
    struct table *table; /* NULL: no kernel is used */
    cuda_event *events;  /* of each batch */
    uint32_t ntaken;     /* events that were taken */
    uint32_t nput;       /* batches that are in streams, with their events */
    uint32_t ndone;
    unsigned failures; /* of asking, in a row */
    struct copies copies;
    bool batched;    /* the engine gets its copies many at a time */
    bool sums, skip; /* of alone parts are made, and those that are held are not copied */
    bool pack;       /* those with a width are packed */
    bool started;    /* something that writes to pages is in a stream */
    bool aside;      /* something outside of the lanes may read the table */
    bool failed, ended;
    uint64_t copied_bytes, skipped_bytes;
    struct times times;
    struct cairn_error why;
};
int device_save(struct cairn_device_plan *plan, const struct cairn_device_save *save,
                struct cairn_device_copy **ret_copy, struct cairn_error *err);
int device_fence(struct cairn_device *d, void *stream, struct cairn_error *err);

/* ---- times.c: how long the device takes for a save; where that cannot be had it is not known ----- */
/* Behind what the lane waits for, and behind its last work; lock is held. */
void times_begin(struct cairn_device_copy *copy, unsigned lane);
void times_end(struct cairn_device_copy *copy, unsigned lane);
/* The copy has ended well. */
void times_read(struct cairn_device_copy *copy);
void times_free(struct cairn_device_copy *copy); /* lock is held */

/* ---- lanes.c: lock is held ---------------------------------------------------------------------- */
int lanes_put(struct cairn_device_copy *copy, const struct cairn_device_save *save, struct cairn_error *err);
/* Records the events that fences wait for. */
int lanes_end(struct cairn_device *d, struct cairn_error *err);
/* Of the copy engine, for all of a save. */
uint32_t lanes_calls(const struct variant *v, void *const *page);

/* ---- copy.c --------------------------------------------------------------------------------- */
int copy_progress(struct cairn_device_copy *copy, struct cairn_device_progress *ret_progress, struct cairn_error *err);
void copy_free(struct cairn_device_copy *copy);

/* ---- load.c ---------------------------------------------------------------------------------- */
int device_loader(struct cairn_device *d, struct cairn_device_loader **ret_loader, struct cairn_error *err);
void loader_free(struct cairn_device_loader *l);
int loader_load(struct cairn_device_loader *l, const struct cairn_device_run *runs, uint32_t n, uint64_t *ret_ticket,
                struct cairn_error *err);
int loader_loaded(struct cairn_device_loader *l, uint64_t ticket, struct cairn_error *err);

#endif
