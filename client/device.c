/* SPDX-License-Identifier: Apache-2.0 */
#include "client/device.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/arena.h"
#include "client/device_plugin.h"
#include "core/base/cleanup.h"
#include "core/base/error.h"

#define PLUGIN "device-cuda" /* for all numbers that there are */
#define STAGING_BYTES ((uint64_t)256 << 20)

/* ---- numbers --------------------------------------------------------------------------------- */

bool device_is_number(uint32_t number)
{
    return number >= CAIRN_CUDA(0) && number < CAIRN_CUDA(DEVICES_MAX);
}

void device_write_name(uint32_t number, char *ret_name, size_t room)
{
    (void)snprintf(ret_name, room, "cuda:%u", number - CAIRN_CUDA(0));
}

/* ---- what comes back ------------------------------------------------------------------------- */

/* A failure of the plugin in the words of the door; a code that is none is its fault. */
static int failed(const char *name, int r, struct cairn_error *why, struct cairn_error *err)
{
    if (r > 0 || r < CAIRN_E_INTR)
        r = cairn_fail(why, CAIRN_E_PROTOCOL, "its plugin returned %d", r);
    why->code = r;
    cairn_error_copy(err, why);
    return cairn_wrap(err, r, "%s", name);
}

static int returned_nothing(const struct device *d, const char *what, struct cairn_error *err)
{
    return cairn_fail(err, CAIRN_E_PROTOCOL, "%s: its plugin made no %s and said that it had", d->name, what);
}

static int device_check(struct device *d, const void *data, uint64_t bytes, struct cairn_error *err)
{
    struct cairn_error why = CAIRN_ERROR_INIT;
    int r = d->all->ops.check(d->handle, data, bytes, &why);

    return r ? failed(d->name, r, &why, err) : 0;
}

/* From its lowest byte to its highest. */
static const void *extent(const struct cairn_slice *slice, const int64_t *stride, const void *data, uint64_t *ret_bytes)
{
    int64_t low = 0, high = 0;

    for (uint32_t d = 0; stride && d < slice->box.ndim; d++) {
        int64_t last = (int64_t)(slice->box.length[d] - 1) * stride[d];
        low += last < 0 ? last : 0;
        high += last > 0 ? last : 0;
    }
    *ret_bytes = stride ? (uint64_t)(high - low) + cairn_dtype_size(slice->dtype) : slice->bytes;
    return (const char *)data + low;
}

int device_check_slice(struct device *d, const struct cairn_slice *slice, const int64_t *stride, const void *data,
                       struct cairn_error *err)
{
    uint64_t bytes;
    const void *low = extent(slice, stride, data, &bytes);
    int r = device_check(d, low, bytes, err);

    return r < 0 ? cairn_wrap(err, r, "tensor \"%.200s\"", slice->name) : 0;
}

int device_plan(struct device *d, const struct cairn_device_layout *layout, struct cairn_device_plan **ret_plan,
                struct cairn_error *err)
{
    struct cairn_error why = CAIRN_ERROR_INIT;
    struct cairn_device_plan *plan = NULL;
    int r = d->all->ops.plan(d->handle, layout, &plan, &why);

    if (r)
        return failed(d->name, r, &why, err);
    if (!plan)
        return returned_nothing(d, "plan", err);
    *ret_plan = plan;
    return 0;
}

void device_plan_free(struct device *d, struct cairn_device_plan *plan)
{
    if (plan)
        d->all->ops.plan_free(plan);
}

int device_save(struct device *d, struct cairn_device_plan *plan, const struct cairn_device_save *save,
                struct cairn_device_copy **ret_copy, struct cairn_error *err)
{
    struct cairn_error why = CAIRN_ERROR_INIT;
    struct cairn_device_copy *copy = NULL;
    int r = d->all->ops.save(plan, save, &copy, &why);

    if (r)
        return failed(d->name, r, &why, err);
    if (!copy)
        return returned_nothing(d, "copy", err);
    *ret_copy = copy;
    return 0;
}

int device_fence(struct device *d, void *stream, struct cairn_error *err)
{
    struct cairn_error why = CAIRN_ERROR_INIT;
    int r = d->all->ops.fence(d->handle, stream, &why);

    return r ? failed(d->name, r, &why, err) : 0;
}

int device_progress(struct device *d, struct cairn_device_copy *copy, uint32_t nparts,
                    struct cairn_device_progress *ret_progress, struct cairn_error *err)
{
    struct cairn_error why = CAIRN_ERROR_INIT;
    struct cairn_device_progress p = {.size = sizeof(p)};
    int r = d->all->ops.progress(copy, &p, &why);

    if (p.parts > nparts || (r == 0 && p.ended && p.parts != nparts)) {
        r = cairn_fail(&why, CAIRN_E_PROTOCOL, "its plugin says that %u of %u parts are in place%s", p.parts, nparts,
                       p.ended ? " at the end" : "");
        p.parts = 0;
    }
    *ret_progress = p;
    return r ? failed(d->name, r, &why, err) : 0;
}

void device_copy_free(struct device *d, struct cairn_device_copy *copy)
{
    if (copy)
        d->all->ops.copy_free(copy);
}

int device_loader(struct device *d, struct cairn_device_loader **ret_loader, struct cairn_error *err)
{
    struct cairn_error why = CAIRN_ERROR_INIT;
    struct cairn_device_loader *loader = NULL;
    int r = d->all->ops.loader(d->handle, &loader, &why);

    if (r)
        return failed(d->name, r, &why, err);
    if (!loader)
        return returned_nothing(d, "loader", err);
    *ret_loader = loader;
    return 0;
}

void device_loader_free(struct device *d, struct cairn_device_loader *loader)
{
    if (loader)
        d->all->ops.loader_free(loader);
}

int device_load(struct device *d, struct cairn_device_loader *loader, const struct cairn_device_run *runs, uint32_t n,
                uint64_t *ret_ticket, struct cairn_error *err)
{
    struct cairn_error why = CAIRN_ERROR_INIT;
    uint64_t ticket = 0;
    int r = d->all->ops.load(loader, runs, n, &ticket, &why);

    if (r)
        return failed(d->name, r, &why, err);
    *ret_ticket = ticket;
    return 0;
}

int device_loaded(struct device *d, struct cairn_device_loader *loader, uint64_t ticket, struct cairn_error *err)
{
    struct cairn_error why = CAIRN_ERROR_INIT;
    int r = d->all->ops.loaded(loader, ticket, &why);

    return r == 0 || r == 1 ? r : failed(d->name, r, &why, err);
}

/* ---- open and close -------------------------------------------------------------------------- */

int devices_init(struct devices *all, const char *plugin_path, uint64_t staging_bytes)
{
    all->staging_bytes = staging_bytes ? staging_bytes : STAGING_BYTES;
    if (plugin_path && !(all->plugin_path = strdup(plugin_path)))
        return ENOMEM;
    int e = pthread_mutex_init(&all->lock, NULL);
    if (e) {
        free(all->plugin_path);
        all->plugin_path = NULL;
    }
    return e;
}

static void device_close(struct device *d)
{
    if (!d)
        return;
    d->all->ops.close(d->handle);
    free(d);
}

void devices_free(struct devices *all, bool forked)
{
    if (!forked && !__atomic_load_n(&all->kept, __ATOMIC_RELAXED)) {
        for (unsigned i = 0; i < DEVICES_MAX; i++)
            device_close(all->open[i]);
        device_plugin_unload(all->dso);
    }
    if (!forked)
        pthread_mutex_destroy(&all->lock);
    free(all->plugin_path);
}

struct device *devices_find(struct devices *all, uint32_t number)
{
    return device_is_number(number) ? __atomic_load_n(&all->open[number - CAIRN_CUDA(0)], __ATOMIC_ACQUIRE) : NULL;
}

static int open_handle(struct device *d, struct cairn_error *err)
{
    struct cairn_device_options options = {
        .size = sizeof(options), .ordinal = d->ordinal, .staging_bytes = d->all->staging_bytes};
    struct cairn_error why = CAIRN_ERROR_INIT;
    int r = d->all->ops.open(&options, &d->handle, &why);

    if (r)
        return failed(d->name, r, &why, err);
    return d->handle ? 0 : returned_nothing(d, "device", err);
}

static int open_device(struct devices *all, uint32_t number, struct device **ret_device, struct cairn_error *err)
{
    _cleanup_free_ struct device *d = calloc(1, sizeof(*d));

    if (!d)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a device");
    *d = (struct device){.all = all, .number = number, .ordinal = number - CAIRN_CUDA(0)};
    device_write_name(number, d->name, sizeof(d->name));
    int r = 0;
    if (!all->dso) {
        r = device_plugin_load(all->plugin_path, PLUGIN, &all->ops, &all->dso, err);
        if (r < 0)
            return cairn_wrap(err, r, "%s", d->name);
    }
    if (r == 0)
        r = open_handle(d, err);
    if (r < 0)
        return r;
    __atomic_store_n(&all->open[d->ordinal], d, __ATOMIC_RELEASE);
    *ret_device = TAKE_PTR(d);
    return 0;
}

int devices_use(struct devices *all, uint32_t number, struct device **ret_device, struct cairn_error *err)
{
    int r = 0;

    if (!device_is_number(number))
        return cairn_fail(err, CAIRN_E_INVAL, "%#x is no device: use CAIRN_CUDA(0) to CAIRN_CUDA(%d)", number,
                          DEVICES_MAX - 1);
    *ret_device = devices_find(all, number);
    if (*ret_device)
        return 0;
    pthread_mutex_lock(&all->lock);
    *ret_device = devices_find(all, number); /* another thread may have opened it */
    if (!*ret_device)
        r = open_device(all, number, ret_device, err);
    pthread_mutex_unlock(&all->lock);
    return r;
}

/* ---- pinned arenas --------------------------------------------------------------------------- */

int device_pin_arena(struct device *d, struct arena *a, struct cairn_error *err)
{
    struct cairn_error why = CAIRN_ERROR_INIT;
    uint64_t bit = 1ull << d->ordinal;
    int r = 0;

    pthread_mutex_lock(&d->all->lock);
    if (!(a->pinned & bit)) {
        r = d->all->ops.pin(d->handle, arena_page(a, 0), a->page_bytes, &why);
        a->devices = d->all;
        a->pinned |= r == 0 ? bit : 0;
    }
    pthread_mutex_unlock(&d->all->lock);
    if (r == 0)
        return 0;
    r = failed(d->name, r, &why, err);
    return cairn_wrap(err, r, "pin the arena");
}

bool devices_unpin_arena(struct arena *a)
{
    if (a->pinned && __atomic_load_n(&a->devices->kept, __ATOMIC_RELAXED))
        return false;
    for (unsigned i = 0; i < DEVICES_MAX && a->pinned; i++)
        if (a->pinned >> i & 1)
            a->devices->ops.unpin(a->devices->open[i]->handle, arena_page(a, 0), a->page_bytes);
    a->pinned = 0;
    return true;
}
