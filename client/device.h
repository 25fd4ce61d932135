/* SPDX-License-Identifier: Apache-2.0 */
/* The devices of a session, and the door to their plugin: nothing else calls a function of its table. Each call checks
 * what comes back, so that a broken plugin is an error with the device's name and not a crash later.
 *
 *     (none) --first use: load the plugin, open the device--> open --session's end: close--> (none)
 *
 * A device that is open stays so until the session is closed, so that finding it takes no lock. The lock is held while
 * the plugin is loaded, a device is opened and memory is pinned: who wants a device meanwhile waits, for about as long
 * as it takes to fault an arena in. */
#ifndef CAIRN_CLIENT_DEVICE_H
#define CAIRN_CLIENT_DEVICE_H

#include <pthread.h>
#include <stdbool.h>

#include <cairn/plugin.h>

#include "core/model/layout.h"

#define DEVICES_MAX 64 /* ordinals 0 to 63; a bit of arena.pinned each */

struct devices;

struct device {
    struct devices *all;
    uint32_t number; /* CAIRN_CUDA(ordinal) */
    uint32_t ordinal;
    char name[16]; /* "cuda:0" */
    struct cairn_device *handle;
};

struct devices {
    pthread_mutex_t lock;
    char *plugin_path;      /* where to look; NULL: not said */
    uint64_t staging_bytes; /* of each */
    void *dso;              /* NULL: not loaded yet */
    struct cairn_device_ops ops;
    struct device *open[DEVICES_MAX]; /* by ordinal; atomic: set once, with release */
    bool kept;                        /* atomic: copies did not end, nothing is closed or unloaded */
};

/* Returns 0 or an errno. */
int devices_init(struct devices *all, const char *plugin_path, uint64_t staging_bytes);
/* Closes all. In a forked child the plugin and what it made are the parent's. */
void devices_free(struct devices *all, bool forked);

/* Whether a number can be a device's; CAIRN_HOST is none. */
bool device_is_number(uint32_t number);
/* "cuda:3" */
void device_write_name(uint32_t number, char *ret_name, size_t room);
/* The device if it is open; NULL. */
struct device *devices_find(struct devices *all, uint32_t number);
/* The same, opened when it is not. */
int devices_use(struct devices *all, uint32_t number, struct device **ret_device, struct cairn_error *err);

struct arena;
/* An arena's pages become pinned memory of the device, if they are not; the caller holds the arena. */
int device_pin_arena(struct device *d, struct arena *a, struct cairn_error *err);
/* Before it is unmapped, for all devices; nobody uses it any more. False when copies did not end: then it must stay. */
bool devices_unpin_arena(struct arena *a);

/* ---- the door: as in plugin.h ---------------------------------------------------------------- */

/* All memory that a slice with these strides (NULL: dense) takes up. */
int device_check_slice(struct device *d, const struct cairn_slice *slice, const int64_t *stride, const void *data,
                       struct cairn_error *err);
int device_plan(struct device *d, const struct cairn_device_layout *layout, struct cairn_device_plan **ret_plan,
                struct cairn_error *err);
void device_plan_free(struct device *d, struct cairn_device_plan *plan); /* NULL is allowed, here and below */
int device_save(struct device *d, struct cairn_device_plan *plan, const struct cairn_device_save *save,
                struct cairn_device_copy **ret_copy, struct cairn_error *err);
int device_fence(struct device *d, void *stream, struct cairn_error *err);
/* nparts: of the image. parts is at most that, and all of them once ended is reported with 0. */
int device_progress(struct device *d, struct cairn_device_copy *copy, uint32_t nparts,
                    struct cairn_device_progress *ret_progress, struct cairn_error *err);
void device_copy_free(struct device *d, struct cairn_device_copy *copy);
int device_loader(struct device *d, struct cairn_device_loader **ret_loader, struct cairn_error *err);
void device_loader_free(struct device *d, struct cairn_device_loader *loader);
int device_load(struct device *d, struct cairn_device_loader *loader, const struct cairn_device_run *runs, uint32_t n,
                uint64_t *ret_ticket, struct cairn_error *err);
int device_loaded(struct device *d, struct cairn_device_loader *loader, uint64_t ticket, struct cairn_error *err);

#endif
