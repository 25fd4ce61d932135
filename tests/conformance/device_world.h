/* SPDX-License-Identifier: Apache-2.0 */
/* What tests of device plugins need: the plugin by its file, the runtime beneath it (the shim, or the real one), and
 * random layouts in device memory with the bytes that a save of them has to make of the arena. */
#ifndef CAIRN_TESTS_CONFORMANCE_DEVICE_WORLD_H
#define CAIRN_TESTS_CONFORMANCE_DEVICE_WORLD_H

#include "plugins/device-cuda/runtime.h"
#include "tests/shim/shim.h"

#include <cairn/plugin.h>
#include <stdbool.h>

#define MIB ((uint64_t)1 << 20)
#define MAX_SLICES 64
#define MAX_PARTS 40
#define MAX_PAGES (2 * MAX_PARTS)

struct rig {
    const struct cairn_device_ops *ops;
    struct cuda cuda; /* for what a training loop does */
    bool shim;        /* the runtime is ours, and these are there: */
    void (*hold)(void *stream);
    void (*release)(void *stream);
    void (*hold_to_host)(int hold);
    void (*delay)(uint64_t ns, uint64_t seed);
    void (*work)(void *stream, void (*run)(void *arg), void *arg);
    void (*drain)(void);
    void (*fail_call)(const char *function, uint64_t nth, int code);
    void (*fail_work)(uint64_t nth, int code);
    void (*reset)(void);
    uint64_t (*calls)(const char *function);
    void (*left)(struct shim_left *ret_left);
    uint64_t (*unpinned_copies)(void);
    int (*context_active)(int device);
    void (*memory)(int device, uint64_t bytes);
};
/* Opens the plugin and the runtime; exits with 77 where there is no device. */
void rig_open(struct rig *rig, const char *plugin);
void rig_close(struct rig *rig);
/* A function of the runtime by its name. */
bool rig_find(const struct rig *rig, const char *name, void *ret);

enum world_kinds { /* of slices, as a mask */
                   WORLD_DENSE = 1,
                   WORLD_TINY = 2,
                   WORLD_STRIDED = 4,
                   WORLD_VOLATILE = 8,
                   WORLD_FOREIGN = 16, /* other bytes in between: parts that are not alone */
                   WORLD_ALL = 31,
};
struct world {
    const struct rig *rig;
    int ordinal;
    uint64_t seed;
    struct cairn_device_slice slices[MAX_SLICES];
    uint64_t length[MAX_SLICES][CAIRN_MAX_DIMS];
    int64_t stride[MAX_SLICES][CAIRN_MAX_DIMS];
    struct buffer { /* of the device, with a slice somewhere in it */
        char *memory, *first;
        uint64_t bytes, first_at;
        unsigned char *host; /* what it holds */
    } buffers[MAX_SLICES];
    uint32_t part_len[MAX_PARTS];
    uint8_t alone[MAX_PARTS];
    uint8_t foreign[MAX_PARTS];
    struct cairn_device_layout layout;
    uint64_t volatile_bytes;

    unsigned char *arena, *expect; /* MAX_PAGES pages */
    uint64_t used[2];              /* pages of each half that may be something else than they have to be */
    void *page[MAX_PARTS];
    const void *data[MAX_SLICES];
    cuda_stream stream; /* the producer's */
    const struct cairn_device_sum *held;
    uint64_t sum_seed;
    struct cairn_device *device;
    struct cairn_device_plan *plan;
};
uint64_t world_random(struct world *w);
/* A layout of n slices, device memory full of random bytes, an opened device and a plan. */
void world_make(struct world *w, const struct rig *rig, int ordinal, uint64_t seed, unsigned kinds, unsigned n);
void world_free(struct world *w);
/* The two halves of it: without the plugin, and device and plan. */
void world_lay_out(struct world *w, const struct rig *rig, int ordinal, uint64_t seed, unsigned kinds, unsigned n);
int world_pin(struct world *w, struct cairn_error *err);
int world_open(struct world *w, struct cairn_error *err);
void world_close(struct world *w);
void world_clear(struct world *w);
/* Other bytes in device memory, put there in the order of the producer's stream. */
void world_change(struct world *w);
/* Other pages, some side by side, full of junk, all of one half of the arena (0 or 1); expect is what they have to be
 * behind a save. */
void world_pages(struct world *w, int half);
int world_save(struct world *w, uint32_t flags, struct cairn_device_copy **ret_copy, struct cairn_error *err);
/* Waits for the end; the code that progress gave. */
int world_wait(const struct world *w, struct cairn_device_copy *copy, struct cairn_device_progress *ret_progress,
               struct cairn_error *err);
/* The bytes are there? */
bool world_is_there(const struct world *w);
/* Fails the test with the first byte that differs. */
void world_check(const struct world *w);
/* Of a part, as it has to be. */
struct cairn_device_sum world_sum(const struct world *w, uint32_t part);

#endif
