/* SPDX-License-Identifier: Apache-2.0 */
#include "plugins/device-cuda/device.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <stdio.h>

bool cuda_is_final(cuda_error code)
{
    switch ((int)code) {
    case CUDA_E_INITIALIZATION:
    case CUDA_E_UNLOADING:
    case CUDA_E_NO_DEVICE:
    case CUDA_E_ECC:
    case CUDA_E_NVLINK:
    case CUDA_E_CONTAINED:
    case CUDA_E_ILLEGAL_ADDRESS:
    case CUDA_E_LAUNCH_TIMEOUT:
    case CUDA_E_CONTEXT_DESTROYED:
    case CUDA_E_ASSERT:
    case CUDA_E_UNKNOWN:
        return true;
    default:
        return (int)code >= CUDA_E_HARDWARE_STACK && (int)code <= CUDA_E_LAUNCH_FAILURE;
    }
}

int device_fail(struct cairn_device *d, struct cairn_error *err, cuda_error code, const char *what)
{
    struct cairn_error said = CAIRN_ERROR_INIT;
    int r = cairn_fail(&said, code == CUDA_E_MEMORY_ALLOCATION ? CAIRN_E_NOMEM : CAIRN_E_IO,
                       "%s on CUDA device %d: %s (%d)", what, d->ordinal, d->cuda.error_string(code), (int)code);

    if (cuda_is_final(code)) {
        pthread_mutex_lock(&d->why_lock);
        if (!d->broken)
            cairn_error_copy(&d->why, &said);
        d->broken = true;
        pthread_mutex_unlock(&d->why_lock);
    }
    cairn_error_copy(err, &said);
    return r;
}

int device_usable(struct cairn_device *d, struct cairn_error *err)
{
    int r = 0;

    pthread_mutex_lock(&d->why_lock);
    if (d->broken)
        r = cairn_fail(err, CAIRN_E_IO, "CUDA device %d is lost to this process, start it anew: %s", d->ordinal,
                       d->why.message);
    pthread_mutex_unlock(&d->why_lock);
    return r;
}

int events_take(struct cairn_device *d, struct events *events, cuda_event *ret_event, struct cairn_error *err)
{
    if (events->n > 0) {
        *ret_event = events->idle[--events->n];
        return 0;
    }
    cuda_error e = d->cuda.event_create(ret_event, events->flags);
    return e ? device_fail(d, err, e, "make an event") : 0;
}

void events_give(struct cairn_device *d, struct events *v, cuda_event event)
{
    if (v->n == v->room) {
        size_t room = v->room ? 2 * v->room : 64;
        cuda_event *more = realloc(v->idle, room * sizeof *more);
        if (!more) {
            (void)d->cuda.event_destroy(event);
            return;
        }
        v->idle = more;
        v->room = room;
    }
    v->idle[v->n++] = event;
}

/* Without a device the runtime's own words name what is missing (no device, or a driver that is too old for it). */
static int find_device(struct cairn_device *d, struct cairn_error *err)
{
    struct cuda *c = &d->cuda;
    int n = 0;
    cuda_error e = c->device_count(&n);

    if (e != CUDA_OK) {
        (void)c->take_error();
        return cairn_fail(err, CAIRN_E_UNSUPPORTED,
                          "no CUDA device: %s (%d), asked of %s; look at nvidia-smi, at the driver's "
                          "version and at CUDA_VISIBLE_DEVICES",
                          c->error_string(e), (int)e, c->path);
    }
    if (d->ordinal < 0 || d->ordinal >= n)
        return cairn_fail(err, CAIRN_E_UNSUPPORTED,
                          "no CUDA device %d: this process sees %d, numbered from 0 "
                          "(CUDA_VISIBLE_DEVICES)",
                          d->ordinal, n);
    cuda_load_driver(c);
    return 0;
}

static int hold_context(struct cairn_device *d, struct cairn_error *err)
{
    if (!d->cuda.context_retain)
        return 0;
    cuda_driver_error e = d->cuda.driver_device(&d->driver_device, d->ordinal);
    if (e == 0)
        e = d->cuda.context_retain(&d->context, d->driver_device);
    return e ? cairn_fail(err, CAIRN_E_IO, "use CUDA device %d: driver's error %d", d->ordinal, (int)e) : 0;
}

static int make_lanes(struct cairn_device *d, struct cairn_error *err)
{
    struct cuda *c = &d->cuda;
    int least = 0, greatest = 0, pitch = 0;
    cuda_error e = c->priorities(&least, &greatest);

    /* Copies take no multiprocessors from training, gathers only for moments: what waits at the fence goes first. */
    for (int i = 0; i < LANES && !e; i++) {
        e = c->stream_create(&d->lanes[i].stream, CUDA_STREAM_NON_BLOCKING, greatest);
        if (!e)
            e = c->event_create(&d->lanes[i].tail, CUDA_EVENT_DISABLE_TIMING);
    }
    if (!e)
        e = c->event_create(&d->ready, CUDA_EVENT_DISABLE_TIMING);
    if (!e)
        e = c->event_create(&d->tables_there, CUDA_EVENT_DISABLE_TIMING);
    if (!e)
        e = c->stream_create(&d->tables, CUDA_STREAM_NON_BLOCKING, greatest);
    if (!e)
        e = c->attribute(&pitch, CUDA_ATTRIBUTE_MAX_PITCH, d->ordinal);
    d->max_pitch = (uint64_t)pitch;
    return e ? device_fail(d, err, e, "make streams") : 0;
}

static void drop_lanes(struct cairn_device *d)
{
    struct cuda *c = &d->cuda;
    struct scope s = {0};

    (void)scope_enter(&s, d, NULL); /* handles know their context; one that is gone has taken all of it along */
    for (int i = 0; i < LANES; i++) {
        if (d->lanes[i].stream) {
            (void)c->stream_sync(d->lanes[i].stream);
            (void)c->stream_destroy(d->lanes[i].stream);
        }
        if (d->lanes[i].tail && !d->in_graphs)
            (void)c->event_destroy(d->lanes[i].tail);
    }
    for (size_t i = 0; i < d->events.n; i++)
        (void)c->event_destroy(d->events.idle[i]);
    for (size_t i = 0; i < d->timers.n; i++)
        (void)c->event_destroy(d->timers.idle[i]);
    if (d->ready)
        (void)c->event_destroy(d->ready);
    if (d->tables_there)
        (void)c->event_destroy(d->tables_there);
    if (d->tables)
        (void)c->stream_destroy(d->tables);
    stage_free(d);
    kernels_unload(d);
    scope_leave(&s);
}

void device_close(struct cairn_device *d)
{
    if (!d)
        return;
    if (d->cuda.runtime) {
        pins_free(d);
        drop_lanes(d);
        if (d->context)
            (void)d->cuda.context_release(d->driver_device);
        cuda_unload(&d->cuda);
    }
    free(d->events.idle);
    free(d->timers.idle);
    pthread_mutex_destroy(&d->lock);
    pthread_mutex_destroy(&d->pins_lock);
    pthread_mutex_destroy(&d->why_lock);
    free(d);
}
CAIRN_DEFINE_CLEANUP(struct cairn_device *, device_close, close_device)

int device_open(const struct cairn_device_options *options, struct cairn_device **ret_device, struct cairn_error *err)
{
    CAIRN_CLEANUP(close_device) struct cairn_device *d = calloc(1, sizeof *d);
    int r;

    if (!d)
        return cairn_fail(err, CAIRN_E_NOMEM, "open CUDA device %u: no memory", options->ordinal);
    pthread_mutex_init(&d->lock, NULL);
    pthread_mutex_init(&d->pins_lock, NULL);
    pthread_mutex_init(&d->why_lock, NULL);
    d->why = (struct cairn_error)CAIRN_ERROR_INIT;
    d->ordinal = options->ordinal > INT32_MAX ? -1 : (int)options->ordinal;
    d->staging_bytes = options->staging_bytes;
    d->events.flags = CUDA_EVENT_DISABLE_TIMING;
    r = cuda_load(&d->cuda, err);
    if (r == 0)
        r = find_device(d, err);
    if (r == 0)
        r = hold_context(d, err);
    if (r < 0)
        return r;
    _cleanup_scope_ struct scope s = {0};
    r = scope_enter(&s, d, err);
    if (r == 0)
        r = make_lanes(d, err);
    if (r < 0)
        return r;
    kernels_load(d);
    *ret_device = TAKE_PTR(d);
    return 0;
}

void device_describe(struct cairn_device *d, char *text, size_t room)
{
    struct cuda *c = &d->cuda;
    char name[128] = "CUDA device", bus[32] = "?";
    int runtime = 0, version = 0;
    struct scope s = {0};

    if (scope_enter(&s, d, NULL) == 0) {
        (void)c->bus_id(bus, sizeof bus, d->ordinal);
        (void)c->runtime_version(&runtime);
        (void)c->driver_version(&version);
        if (d->context)
            (void)c->driver_name(name, sizeof name, d->driver_device);
    }
    scope_leave(&s);
    snprintf(text, room, "%s (cuda:%d, %s), runtime %d.%d (%s), driver %d.%d; kernels: %s", name, d->ordinal, bus,
             runtime / 1000, runtime % 1000 / 10, c->path, version / 1000, version % 1000 / 10,
             d->kernels.usable ? "yes" : d->kernels.why_not);
}

int device_check(struct cairn_device *d, const void *data, uint64_t bytes, struct cairn_error *err)
{
    static const char *const kinds[] = {"memory that CUDA does not know", "pinned host memory", "device memory",
                                        "managed memory"};
    const char *ends[2] = {data, (const char *)data + (bytes ? bytes - 1 : 0)};
    _cleanup_scope_ struct scope s = {0};
    int r = device_usable(d, err);

    if (r == 0)
        r = scope_enter(&s, d, err);
    for (int i = 0; i < 2 && r == 0; i++) {
        cuda_pointer p = {0};
        cuda_error e = d->cuda.pointer(&p, ends[i]);
        if (e)
            return device_fail(d, err, e, "ask what memory it is");
        if (p.type != CUDA_MEMORY_DEVICE)
            r = cairn_fail(err, CAIRN_E_INVAL, "%llu bytes at %p: %s, not of CUDA device %d", (unsigned long long)bytes,
                           data, kinds[p.type & 3], d->ordinal);
        else if (p.device != d->ordinal)
            r = cairn_fail(err, CAIRN_E_INVAL, "%llu bytes at %p: memory of CUDA device %d, not of %d",
                           (unsigned long long)bytes, data, p.device, d->ordinal);
    }
    return r;
}
