/* SPDX-License-Identifier: Apache-2.0 */
/* Restores: bytes of the host to the device, on a stream of the loader's own. What lies in pinned memory is copied from
 * there; the rest goes through a ring of pinned memory, from which it has its room back when its ticket has ended. */
#include "plugins/device-cuda/device.h"

#include "core/base/bytes.h"
#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <string.h>

#define RING ((uint64_t)16 << 20)
#define TICKETS 64
#define RING_ALIGN 64

struct ticket {
    cuda_event event;
    uint64_t ring_end; /* the ring is free up to here when it has ended */
};
struct cairn_device_loader {
    struct cairn_device *device;
    cuda_stream stream;
    char *ring;
    uint64_t ring_head, ring_tail; /* bytes ever given out and taken back */
    uint64_t issued, ended;        /* tickets; the n-th lies at n % TICKETS */
    struct ticket tickets[TICKETS];
    bool failed;
    struct cairn_error why;
};

static void loader_drop(struct cairn_device_loader *l)
{
    const struct cuda *c = &l->device->cuda;

    for (int i = 0; i < TICKETS; i++)
        if (l->tickets[i].event)
            (void)c->event_destroy(l->tickets[i].event);
    if (l->stream) {
        (void)c->stream_sync(l->stream);
        (void)c->stream_destroy(l->stream);
    }
    if (l->ring)
        (void)c->host_free(l->ring);
}

void loader_free(struct cairn_device_loader *l)
{
    struct scope s = {0};

    if (!l)
        return;
    if (scope_enter(&s, l->device, NULL) == 0)
        loader_drop(l);
    scope_leave(&s);
    free(l);
}

int device_loader(struct cairn_device *d, struct cairn_device_loader **ret_loader, struct cairn_error *err)
{
    struct cairn_device_loader *l;
    _cleanup_scope_ struct scope s = {0};
    void *ring = NULL;
    int r = device_usable(d, err);

    if (r == 0)
        r = scope_enter(&s, d, err);
    if (r < 0)
        return r;
    l = calloc(1, sizeof *l);
    if (!l)
        return cairn_fail(err, CAIRN_E_NOMEM, "restore: no memory");
    l->device = d;
    l->why = (struct cairn_error)CAIRN_ERROR_INIT;
    cuda_error e = d->cuda.stream_create(&l->stream, CUDA_STREAM_NON_BLOCKING, 0);
    if (!e)
        e = d->cuda.host_alloc(&ring, RING, CUDA_HOST_PORTABLE | CUDA_HOST_MAPPED);
    l->ring = ring;
    for (int i = 0; i < TICKETS && !e; i++)
        e = d->cuda.event_create(&l->tickets[i].event, CUDA_EVENT_DISABLE_TIMING);
    if (e) {
        loader_drop(l);
        free(l);
        return device_fail(d, err, e, "prepare a restore");
    }
    *ret_loader = l;
    return 0;
}

/* ---- what is under way ------------------------------------------------------------------------- */

static int fail_loader(struct cairn_device_loader *l, cuda_error e, const char *what, struct cairn_error *err)
{
    int r = device_fail(l->device, err, e, what);

    l->failed = true;
    if (err)
        l->why = *err;
    return r;
}

/* Takes back what has ended. */
static int reap(struct cairn_device_loader *l, struct cairn_error *err)
{
    while (l->ended < l->issued) {
        struct ticket *t = &l->tickets[(l->ended + 1) % TICKETS];
        cuda_error e = l->device->cuda.event_query(t->event);
        if (e == CUDA_E_NOT_READY)
            return 0;
        if (e)
            return fail_loader(l, e, "ask for a copy to the device", err);
        l->ring_tail = t->ring_end;
        l->ended++;
    }
    return 0;
}

static uint64_t run_bytes(const struct cairn_device_run *run)
{
    return run->count * run->elem;
}

/* All of it in one registration of ours? */
static bool is_pinned(struct cairn_device *d, const void *p, uint64_t bytes)
{
    for (uint64_t done = 0, room; done < bytes; done += room) {
        room = pin_room(d, (const char *)p + done);
        if (room == 0)
            return false;
    }
    return true;
}

/* Room of the ring for a load, in one stretch. BUSY: later. NULL without an error: more than the ring ever has. */
static int take_ring(struct cairn_device_loader *l, uint64_t bytes, char **ret_at, struct cairn_error *err)
{
    uint64_t at = l->ring_head % RING, skip = at + bytes > RING ? RING - at : 0;

    *ret_at = NULL;
    if (bytes == 0 || bytes > RING)
        return 0;
    if (l->ring_tail == l->ring_head) /* nothing is under way: begin anew */
        skip = at ? RING - at : 0, l->ring_tail = l->ring_head += skip, skip = 0, at = 0;
    if (l->ring_head + skip + bytes - l->ring_tail > RING)
        return cairn_fail(err, CAIRN_E_BUSY, "load %llu bytes: too much is under way", (unsigned long long)bytes);
    l->ring_head += skip + bytes;
    *ret_at = l->ring + (l->ring_head - bytes) % RING;
    return 0;
}

/* ---- copies ------------------------------------------------------------------------------------ */

static cuda_error put_dense(struct cairn_device_loader *l, char *to, const char *from, uint64_t bytes, bool pinned)
{
    cuda_error e = CUDA_OK;

    for (uint64_t done = 0, n; done < bytes && !e; done += n) {
        uint64_t room = pinned ? pin_room(l->device, from + done) : bytes;
        n = bytes - done < room ? bytes - done : room;
        e = l->device->cuda.copy(to + done, from + done, n, CUDA_HOST_TO_DEVICE, l->stream);
    }
    return e;
}

static cuda_error put_rows(struct cairn_device_loader *l, const struct cairn_device_run *run, const char *from,
                           bool pinned)
{
    const struct cuda *c = &l->device->cuda;
    bool pitched = run->stride_bytes >= (int64_t)run->elem && (uint64_t)run->stride_bytes <= l->device->max_pitch;
    cuda_error e = CUDA_OK;

    for (uint64_t i = 0, n; i < run->count && !e; i += n) {
        const char *source = from + i * run->elem;
        char *to = (char *)run->to + (int64_t)i * run->stride_bytes;
        uint64_t rows = pitched ? (pinned ? pin_room(l->device, source) / run->elem : run->count) : 1;
        n = rows < run->count - i ? rows : run->count - i;
        if (n <= 1) {
            n = 1;
            e = put_dense(l, to, source, run->elem, pinned);
        } else {
            e = c->copy_2d(to, (size_t)run->stride_bytes, source, run->elem, run->elem, n, CUDA_HOST_TO_DEVICE,
                           l->stream);
        }
    }
    return e;
}

static cuda_error put_run(struct cairn_device_loader *l, const struct cairn_device_run *run, char **ring)
{
    bool pinned = is_pinned(l->device, run->from, run_bytes(run));
    const char *from = run->from;

    if (!pinned && *ring) {
        from = memcpy(*ring, run->from, run_bytes(run));
        *ring += round_up_u64(run_bytes(run), RING_ALIGN);
    }
    if (run->count == 1 || run->stride_bytes == (int64_t)run->elem)
        return put_dense(l, run->to, from, run_bytes(run), pinned);
    return put_rows(l, run, from, pinned);
}

static int put_runs(struct cairn_device_loader *l, const struct cairn_device_run *runs, uint32_t n, char *ring,
                    struct cairn_error *err)
{
    const struct cuda *c = &l->device->cuda;
    struct ticket *t = &l->tickets[(l->issued + 1) % TICKETS];
    cuda_error e = CUDA_OK;

    for (uint32_t i = 0; i < n && !e; i++)
        e = put_run(l, &runs[i], &ring);
    if (!e)
        e = c->event_record(t->event, l->stream);
    if (e) {
        (void)c->stream_sync(l->stream); /* the caller's memory is still read by what was put there */
        return fail_loader(l, e, "copy to the device", err);
    }
    t->ring_end = l->ring_head;
    l->issued++;
    return 0;
}

static uint64_t ring_bytes(struct cairn_device_loader *l, const struct cairn_device_run *runs, uint32_t n)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < n; i++)
        if (!is_pinned(l->device, runs[i].from, run_bytes(&runs[i])))
            bytes += round_up_u64(run_bytes(&runs[i]), RING_ALIGN);
    return bytes;
}

static int usable(struct cairn_device_loader *l, struct cairn_error *err)
{
    if (l->failed) {
        cairn_error_copy(err, &l->why);
        return l->why.code ? l->why.code : CAIRN_E_IO;
    }
    return device_usable(l->device, err);
}

int loader_load(struct cairn_device_loader *l, const struct cairn_device_run *runs, uint32_t n, uint64_t *ret_ticket,
                struct cairn_error *err)
{
    _cleanup_scope_ struct scope s = {0};
    char *ring = NULL;
    int r = usable(l, err);

    if (r == 0)
        r = scope_enter(&s, l->device, err);
    if (r == 0)
        r = reap(l, err);
    if (r < 0)
        return r;
    if (l->issued - l->ended == TICKETS)
        return cairn_fail(err, CAIRN_E_BUSY, "load: %d loads are under way", TICKETS);
    r = take_ring(l, ring_bytes(l, runs, n), &ring, err);
    if (r == 0)
        r = put_runs(l, runs, n, ring, err);
    if (r == 0)
        *ret_ticket = l->issued;
    return r;
}

int loader_loaded(struct cairn_device_loader *l, uint64_t ticket, struct cairn_error *err)
{
    _cleanup_scope_ struct scope s = {0};
    int r = usable(l, err);

    if (r == 0 && ticket > l->ended) {
        r = scope_enter(&s, l->device, err);
        if (r == 0)
            r = reap(l, err);
    }
    return r < 0 ? r : ticket <= l->ended;
}
