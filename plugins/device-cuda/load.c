/* SPDX-License-Identifier: Apache-2.0 */
/* Restores: bytes of the host to the device, on a stream of the loader's own.
 *
 *   large and dense:  from pinned memory to where it belongs; what is not pinned goes through a ring of pinned memory
 *   small, strided:   side by side into the ring, with a table; to a ring on the device; from there by a kernel
 *
 * Both rings are given out alike, and have their room back when its ticket has ended. */
#include "plugins/device-cuda/device.h"

#include "core/base/bytes.h"
#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <string.h>

#define RING ((uint64_t)16 << 20)
#define TICKETS 64
#define RING_ALIGN 64
#define LARGE ((uint64_t)64 << 10) /* worth a call of the copy engine */

struct ticket {
    cuda_event event;
    uint64_t ring_end; /* the ring is free up to here when it has ended */
};
struct cairn_device_loader {
    struct cairn_device *device;
    cuda_stream stream;
    char *ring, *far;              /* of the host; of the device, where there are kernels; made when first wanted */
    bool scatters;                 /* kernels put small and strided runs where they belong */
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
    if (l->far)
        (void)c->free(l->far);
}

void loader_free(struct cairn_device_loader *l)
{
    struct scope s = {0};

    if (!l)
        return;
    (void)scope_enter(&s, l->device, NULL);
    loader_drop(l);
    scope_leave(&s);
    free(l);
}

int device_loader(struct cairn_device *d, struct cairn_device_loader **ret_loader, struct cairn_error *err)
{
    struct cairn_device_loader *l;
    _cleanup_scope_ struct scope s = {0};
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
    l->scatters = d->kernels.usable;
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

/* Large runs from pinned memory need none, and pinned memory takes longer to make than they to copy. */
static int make_rings(struct cairn_device_loader *l, struct cairn_error *err)
{
    struct cairn_device *d = l->device;
    void *ring = NULL, *far = NULL;
    cuda_error e = d->cuda.host_alloc(&ring, RING, CUDA_HOST_PORTABLE | CUDA_HOST_MAPPED);

    if (e)
        return device_fail(d, err, e, "prepare a restore");
    l->ring = ring;
    if (l->scatters && d->cuda.malloc(&far, RING) == CUDA_OK)
        l->far = far;
    l->scatters = l->far; /* without room for it every run is a call */
    return 0;
}

/* ---- what is under way ------------------------------------------------------------------------- */

static int usable(struct cairn_device_loader *l, struct cairn_error *err)
{
    if (l->failed) {
        cairn_error_copy(err, &l->why);
        return l->why.code ? l->why.code : CAIRN_E_IO;
    }
    return device_usable(l->device, err);
}

/* Takes back what has ended. */
static int reap(struct cairn_device_loader *l, struct cairn_error *err)
{
    while (l->ended < l->issued) {
        struct ticket *t = &l->tickets[(l->ended + 1) % TICKETS];
        cuda_error e = l->device->cuda.event_query(t->event);
        if (e == CUDA_E_NOT_READY)
            return 0;
        if (e) {
            device_fail(l->device, &l->why, e, "ask for a copy to the device");
            l->failed = true;
            return usable(l, err);
        }
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
    if (l->ring_tail == l->ring_head) { /* nothing is under way: begin anew */
        l->ring_tail = l->ring_head = round_up_u64(l->ring_head, RING);
        skip = 0;
    }
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

static bool is_side_by_side(const struct cairn_device_run *run)
{
    return run->count == 1 || run->stride_bytes == (int64_t)run->elem;
}

/* A kernel puts it where it belongs. */
static bool is_scattered(const struct cairn_device_loader *l, const struct cairn_device_run *run)
{
    return l->scatters && !(is_side_by_side(run) && run_bytes(run) >= LARGE);
}

struct load {
    const struct cairn_device_run *runs;
    uint32_t n, nscattered, ntiles;
    char *ring;      /* what this load has of it; NULL: nothing, or more than there is */
    uint64_t table;  /* bytes of the scattered runs' table, which is first */
    uint64_t packed; /* bytes from the beginning on that go to the device's ring */
    uint64_t bytes;  /* of the ring */
};

static void measure(struct cairn_device_loader *l, struct load *load)
{
    load->bytes = load->nscattered = 0;
    for (uint32_t i = 0; i < load->n; i++) {
        const struct cairn_device_run *run = &load->runs[i];
        bool scattered = is_scattered(l, run);
        load->nscattered += scattered;
        if (scattered || !is_pinned(l->device, run->from, run_bytes(run)))
            load->bytes += round_up_u64(run_bytes(run), RING_ALIGN);
    }
    load->table = round_up_u64(load->nscattered * sizeof(struct gpu_run), RING_ALIGN);
    load->bytes += load->table;
}

/* Scattered runs side by side, behind their table. Large ones from pinned memory go straight to the device's ring;
 * their room is behind the others'. */
static cuda_error put_scattered(struct cairn_device_loader *l, struct load *load, uint64_t *at, bool straight)
{
    struct gpu_run *table = (struct gpu_run *)(void *)load->ring;
    char *far = l->far + (load->ring - l->ring);
    cuda_error e = CUDA_OK;

    for (uint32_t i = 0; i < load->n && !e; i++) {
        const struct cairn_device_run *run = &load->runs[i];
        uint64_t bytes = run_bytes(run);
        if (!is_scattered(l, run) || straight != (bytes >= LARGE && is_pinned(l->device, run->from, bytes)))
            continue;
        if (straight)
            e = put_dense(l, far + *at, run->from, bytes, true);
        else
            memcpy(load->ring + *at, run->from, bytes);
        table[load->nscattered++] = (struct gpu_run){.from = far + *at,
                                                     .to = run->to,
                                                     .count = run->count,
                                                     .stride = run->stride_bytes,
                                                     .elem = run->elem,
                                                     .tile = load->ntiles};
        load->ntiles += gpu_run_tiles(run->count, run->elem);
        *at += round_up_u64(bytes, RING_ALIGN);
    }
    return e;
}

static int scatter(struct cairn_device_loader *l, struct load *load, uint64_t *at, struct cairn_error *err)
{
    char *far = l->far + (load->ring - l->ring);
    struct gpu_scatter args = {.runs = (const struct gpu_run *)(void *)far};

    load->nscattered = 0;
    *at = load->table;
    cuda_error e = put_scattered(l, load, at, false);
    load->packed = *at;
    if (!e)
        e = put_scattered(l, load, at, true);
    if (!e)
        e = put_dense(l, far, load->ring, load->packed, false);
    if (e)
        return device_fail(l->device, err, e, "copy to the device");
    args.nruns = load->nscattered;
    args.ntiles = load->ntiles;
    return kernels_launch(l->device, KERNEL_SCATTER, gpu_scatter_blocks(args.ntiles), GPU_SCATTER_THREADS, &args,
                          l->stream, err);
}

static cuda_error put_run(struct cairn_device_loader *l, const struct cairn_device_run *run, char **ring)
{
    bool pinned = is_pinned(l->device, run->from, run_bytes(run));
    const char *from = run->from;

    if (!pinned && *ring) {
        from = memcpy(*ring, run->from, run_bytes(run));
        *ring += round_up_u64(run_bytes(run), RING_ALIGN);
    }
    if (is_side_by_side(run))
        return put_dense(l, run->to, from, run_bytes(run), pinned);
    return put_rows(l, run, from, pinned);
}

static int put_all(struct cairn_device_loader *l, struct load *load, struct cairn_error *err)
{
    bool by_kernel = load->ring && load->nscattered > 0;
    uint64_t at = 0;
    int r = by_kernel ? scatter(l, load, &at, err) : 0;
    char *ring = load->ring ? load->ring + at : NULL;
    cuda_error e = CUDA_OK;

    for (uint32_t i = 0; i < load->n && r == 0 && !e; i++)
        if (!by_kernel || !is_scattered(l, &load->runs[i]))
            e = put_run(l, &load->runs[i], &ring);
    return e ? device_fail(l->device, err, e, "copy to the device") : r;
}

static int put_load(struct cairn_device_loader *l, struct load *load, struct cairn_error *err)
{
    struct ticket *t = &l->tickets[(l->issued + 1) % TICKETS];
    struct cairn_error said = CAIRN_ERROR_INIT;
    int r = put_all(l, load, &said);
    cuda_error e = r < 0 ? CUDA_OK : l->device->cuda.event_record(t->event, l->stream);

    if (e)
        r = device_fail(l->device, &said, e, "record an event");
    if (r < 0) {
        (void)l->device->cuda.stream_sync(l->stream); /* the caller's memory is still read by what was put there */
        l->failed = true;
        l->why = said;
        cairn_error_copy(err, &said);
        return r;
    }
    t->ring_end = l->ring_head;
    l->issued++;
    return 0;
}

int loader_load(struct cairn_device_loader *l, const struct cairn_device_run *runs, uint32_t n, uint64_t *ret_ticket,
                struct cairn_error *err)
{
    _cleanup_scope_ struct scope s = {0};
    struct load load = {.runs = runs, .n = n};
    int r = usable(l, err);

    if (r == 0)
        r = scope_enter(&s, l->device, err);
    if (r == 0)
        r = reap(l, err);
    if (r < 0)
        return r;
    if (l->issued - l->ended == TICKETS)
        return cairn_fail(err, CAIRN_E_BUSY, "load: %d loads are under way", TICKETS);
    measure(l, &load);
    if (load.bytes > 0 && !l->ring) {
        r = make_rings(l, err);
        if (r < 0)
            return r;
        measure(l, &load); /* there may be no room for kernels' */
    }
    r = take_ring(l, load.bytes, &load.ring, err);
    if (r == 0)
        r = put_load(l, &load, err);
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
