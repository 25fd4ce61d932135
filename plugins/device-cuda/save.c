/* SPDX-License-Identifier: Apache-2.0 */
/* A save: everything is put into streams and nothing is waited for.
 *
 *   tables:             what kernels read ─ [tables_there]
 *   producer's stream:  ... wait tails, tables ─ volatile slices aside ─ [ready] ...         the loop goes on at once
 *   lane 0:             wait ready, tables ─ batch 0 ─ [0] ─ batch 2 ─ [2] ... ─ [tail]
 *   lane 1:             wait ready, tables ─ batch 1 ─ [1] ─ batch 3 ─ [3] ... ─ [tail]
 *   fence:              the caller's stream waits for both tails
 *
 * A batch: gather into the lane's block, sums of its parts, then copies of slices and of the block's spans to their
 * pages; or, where parts that are held are skipped, a kernel that copies the others; or one that packs parts and sends
 * what it has packed.
 *
 * What fails before a copy is in a lane is the save's error; what fails later, progress tells, once what is in the
 * lanes has ended: until then it still writes to the pages. */
#include "plugins/device-cuda/device.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <string.h>

#define CALLS 64 /* of the copy engine: more go many at a time */

/* ---- before anything is in a stream; the device's lock is held from here on ---------------------- */

static int take_events(struct cairn_device_copy *copy, struct cairn_error *err)
{
    const struct variant *v = copy->variant;

    for (uint32_t i = 0; i < v->nbatches; i++) {
        int r = events_take(v->plan->device, &v->plan->device->events, &copy->events[i], err);
        if (r < 0)
            return r;
        copy->ntaken++;
    }
    return 0;
}

/* A capture would record these calls instead of making them; asking does not disturb one. */
static int check_stream(struct cairn_device *d, cuda_stream stream, struct cairn_error *err)
{
    cuda_capture_status status = CUDA_CAPTURE_NONE;
    cuda_error e = d->cuda.stream_capturing(stream, &status);

    if (e)
        return device_fail(d, err, e, "look at the save's stream");
    if (status != CUDA_CAPTURE_NONE)
        return cairn_fail(err, CAIRN_E_INVAL,
                          "the save's stream is being captured into a graph: save before or after it");
    return 0;
}

static void zero_gaps(const struct variant *v, void *const *page)
{
    for (uint32_t i = 0; i < v->ngaps; i++)
        memset((char *)page[v->gaps[i].at / PART] + v->gaps[i].at % PART, 0, v->gaps[i].bytes);
}

/* Scattered spans, cut where their pages end. */
static void fill_runs(const struct variant *v, uint32_t k, void *const *mapped, struct gpu_run *runs)
{
    const struct batch *b = &v->batches[k];
    const char *block = v->plan->device->lanes[k % LANES].block;
    uint32_t n = 0, tiles = 0;

    for (uint32_t i = b->span; i < b->span + b->nspans; i++) {
        const struct span *s = &v->spans[i];
        for (uint64_t at = s->at, len; s->scattered && at < s->at + s->bytes; at += len) {
            uint64_t room = PART - at % PART, left = s->at + s->bytes - at;
            len = room < left ? room : left;
            runs[b->run + n++] = (struct gpu_run){.from = block + s->block_at + (at - s->at),
                                                  .to = (char *)mapped[at / PART] + at % PART,
                                                  .count = 1,
                                                  .elem = (uint32_t)len,
                                                  .tile = tiles};
            tiles += gpu_run_tiles(1, (uint32_t)len);
        }
    }
}

static void fill_base(const struct cairn_device_plan *plan, const struct cairn_device_save *save, const void **base)
{
    memcpy(base, save->data, plan->nslices * sizeof *base);
    base[SOURCE_ASIDE(plan)] = plan->device->aside;
    for (uint32_t i = 0; i < LANES; i++)
        base[SOURCE_LANE(plan, i)] = plan->device->lanes[i].block;
}

/* Everything that kernels read in this save. */
static int fill_table(struct cairn_device_copy *copy, const struct cairn_device_save *save, struct cairn_error *err)
{
    const struct variant *v = copy->variant;
    const struct cairn_device_plan *plan = v->plan;
    const struct table_places at = table_places(v);
    char *host = copy->table->host;
    _cleanup_free_ void **mapped = calloc(plan->nparts, sizeof *mapped);

    if (!mapped)
        return cairn_fail(err, CAIRN_E_NOMEM, "save: no memory");
    bool all = pins_map(plan->device, save->page, plan->nparts, mapped);
    if (!all && v->nruns > 0)
        return cairn_fail(err, CAIRN_E_INVAL, "a page of the arena is not pinned, or not mapped for the device");
    copy->skip = copy->skip && all;
    copy->pack = copy->pack && all;
    fill_base(plan, save, (const void **)(void *)(host + at.base));
    for (uint32_t k = 0; k < v->nbatches && v->nruns > 0; k++)
        fill_runs(v, k, mapped, (struct gpu_run *)(void *)(host + at.runs));
    if (v->way == WAY_PLAIN)
        return 0;
    memcpy(host + at.page, mapped, plan->nparts * sizeof *mapped);
    if (copy->skip)
        memcpy(host + at.held, save->held, plan->nparts * sizeof *save->held);
    memset(host + at.ret_sums, 0, plan->nparts * sizeof(struct cairn_device_sum));
    if (v->way == WAY_SUMMED)
        memset(host + at.ret_skipped, 0, plan->nparts);
    else
        memset(host + at.ret_packed, 0, plan->nparts * sizeof(uint32_t));
    return 0;
}

static int send_table(struct cairn_device_copy *copy, struct cairn_error *err)
{
    struct cairn_device *d = copy->variant->plan->device;
    const struct table_places at = table_places(copy->variant);
    struct table *t = copy->table;
    uint64_t bytes = t->loaded ? at.save_end : at.both_end;
    cuda_error e = d->cuda.copy(t->device, t->host, bytes, CUDA_HOST_TO_DEVICE, d->tables);

    copy->aside = true; /* it may be read from now on */
    if (!e)
        e = d->cuda.event_record(d->tables_there, d->tables);
    if (e)
        return device_fail(d, err, e, "send the kernels' tables");
    t->loaded = true;
    return 0;
}

/* ---- in the producer's stream --------------------------------------------------------------------- */

static int gather_aside(struct cairn_device_copy *copy, cuda_stream stream, struct cairn_error *err)
{
    const struct cairn_device_plan *plan = copy->variant->plan;
    struct cairn_device *d = plan->device;
    const struct table_places at = table_places(copy->variant);
    char *table = copy->table->device;
    struct gpu_gather args = {.pieces = (const void *)(table + at.pieces),
                              .loops = (const void *)(table + at.loops),
                              .base = (const void *)(table + at.base),
                              .block = d->aside,
                              .len = plan->aside_bytes,
                              .npieces = plan->nvolatile};

    cuda_error e = d->cuda.stream_wait(stream, d->tables_there, 0);
    if (e)
        return device_fail(d, err, e, "wait for the kernels' tables");
    return kernels_launch(d, KERNEL_GATHER, gpu_gather_blocks(args.len), GPU_GATHER_THREADS, &args, stream, err);
}

static int copy_aside(const struct cairn_device_plan *plan, const struct cairn_device_save *save,
                      struct cairn_error *err)
{
    struct cairn_device *d = plan->device;
    int r = 0;

    for (uint32_t i = 0; i < plan->nslices && r == 0; i++) {
        const struct slice *s = &plan->slices[i];
        struct emit to = {.device = d, .stream = save->stream, .kind = CUDA_DEVICE_TO_DEVICE, .at = s->at};
        to.to = (struct target){.flat = (char *)d->aside + s->aside_at, .flat_at = s->at};
        if (s->is_volatile)
            r = emit_range(&to, &s->shape, save->data[i], 0, s->shape.bytes, err);
    }
    return r;
}

/* In the producer's own order: what it does next may change them. What reads them of the save before comes first. */
static int put_aside(struct cairn_device_copy *copy, const struct cairn_device_save *save, struct cairn_error *err)
{
    const struct cairn_device_plan *plan = copy->variant->plan;
    struct cairn_device *d = plan->device;
    cuda_error e = CUDA_OK;

    for (int i = 0; i < LANES && !e; i++)
        e = d->cuda.stream_wait(save->stream, d->lanes[i].tail, 0);
    if (e)
        return device_fail(d, err, e, "wait for the staging memory");
    return copy->table ? gather_aside(copy, save->stream, err) : copy_aside(plan, save, err);
}

static int start_lanes(struct cairn_device_copy *copy, cuda_stream producer, struct cairn_error *err)
{
    struct cairn_device *d = copy->variant->plan->device;
    cuda_error e = d->cuda.event_record(d->ready, producer);

    for (int i = 0; i < LANES && !e; i++) {
        e = d->cuda.stream_wait(d->lanes[i].stream, d->ready, 0);
        if (!e && copy->table)
            e = d->cuda.stream_wait(d->lanes[i].stream, d->tables_there, 0);
    }
    return e ? device_fail(d, err, e, "wait for the save's stream") : 0;
}

/* ---- a save ---------------------------------------------------------------------------------------- */

static int prepare(struct cairn_device_copy *copy, const struct cairn_device_save *save, struct cairn_error *err)
{
    struct cairn_device_plan *plan = copy->variant->plan;
    int r = check_stream(plan->device, save->stream, err);

    if (r == 0)
        r = take_events(copy, err);
    if (r == 0 && plan->nvolatile > 0)
        r = stage_aside(plan->device, plan->aside_bytes, err);
    copy->pack = copy->pack && plan->device->nslots > 0; /* volatile slices come first */
    if (r < 0 || !plan->block_bytes)
        return r;
    r = table_take(copy->variant, &copy->table, err);
    if (r == 0)
        r = fill_table(copy, save, err);
    return r == 0 ? send_table(copy, err) : r;
}

static int put_save(struct cairn_device_copy *copy, const struct cairn_device_save *save, struct cairn_error *err)
{
    struct cairn_device_plan *plan = copy->variant->plan;
    int r = prepare(copy, save, err), s;

    if (r < 0)
        return r;
    if (plan->nvolatile > 0)
        r = put_aside(copy, save, err);
    s = start_lanes(copy, save->stream, r < 0 ? NULL : err); /* also behind a failure: what reads what is aside */
    r = r < 0 ? r : s;
    if (r < 0) {
        (void)lanes_end(plan->device, NULL); /* comes before the next save's */
        return r;
    }
    zero_gaps(copy->variant, save->page);
    r = lanes_put(copy, save, &copy->why);
    if (r < 0 && !copy->started) {
        cairn_error_copy(err, &copy->why);
        return r;
    }
    copy->failed = r < 0;
    copy->aside = copy->aside && copy->failed; /* else the table is free once the batches have ended */
    return 0;
}

/* Memory for one, which is kept. */
static bool has_table(struct variant *v)
{
    struct table *t;

    if (table_take(v, &t, NULL) < 0)
        return false;
    table_give(v, t);
    return true;
}

/* NULL: there is nothing to pack, or nothing to pack it with. */
static struct variant *packed_variant(struct cairn_device_plan *plan)
{
    if (!plan->width || !plan->block_bytes || stage_slots(plan->device, plan->aside_bytes) == 0)
        return NULL;
    if (!plan->packed && variant_make(plan, WAY_PACKED, &plan->packed, NULL) < 0)
        return NULL;
    return has_table(plan->packed) ? plan->packed : NULL;
}

static struct variant *variant_of(struct cairn_device_plan *plan, uint32_t flags)
{
    struct variant *packed = flags & CAIRN_DEVICE_PACK ? packed_variant(plan) : NULL;

    if (packed)
        return packed;
    return flags & (CAIRN_DEVICE_SUMS | CAIRN_DEVICE_SKIP) && plan->summed ? plan->summed : plan->plain;
}

static int copy_make(struct cairn_device_plan *plan, const struct cairn_device_save *save,
                     struct cairn_device_copy **ret_copy, struct cairn_error *err)
{
    struct variant *v = variant_of(plan, save->flags);
    bool sums = (save->flags & (CAIRN_DEVICE_SUMS | CAIRN_DEVICE_SKIP)) && v->way != WAY_PLAIN;
    struct cairn_device_copy *copy = calloc(1, sizeof *copy);

    if (copy)
        copy->events = calloc(v->nbatches, sizeof(cuda_event));
    if (!copy || !copy->events) {
        free(copy);
        return cairn_fail(err, CAIRN_E_NOMEM, "save: no memory");
    }
    copy->variant = v;
    copy->batched = emit_has_batches(plan->device) && lanes_calls(v, save->page) > CALLS;
    copy->sums = sums;
    copy->pack = v->way == WAY_PACKED;
    copy->skip = sums && (save->flags & CAIRN_DEVICE_SKIP) && save->held;
    copy->why = (struct cairn_error)CAIRN_ERROR_INIT;
    *ret_copy = copy;
    return 0;
}
CAIRN_DEFINE_CLEANUP(struct cairn_device_copy *, copy_free, free_copy)

int device_save(struct cairn_device_plan *plan, const struct cairn_device_save *save,
                struct cairn_device_copy **ret_copy, struct cairn_error *err)
{
    CAIRN_CLEANUP(free_copy) struct cairn_device_copy *copy = NULL;
    struct cairn_device *d = plan->device;
    struct scope s = {0};
    int r = device_usable(d, err);

    if (r == 0 && (save->flags & CAIRN_DEVICE_PACK) && (save->flags & CAIRN_DEVICE_SKIP))
        r = cairn_fail(err, CAIRN_E_INVAL, "save: what is packed is not skipped: ask for one of them");
    if (r == 0)
        r = scope_enter(&s, d, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&d->lock);
    r = copy_make(plan, save, &copy, err);
    if (r == 0)
        r = put_save(copy, save, err);
    pthread_mutex_unlock(&d->lock);
    scope_leave(&s);
    if (r < 0)
        return cairn_wrap(err, r, "save");
    *ret_copy = TAKE_PTR(copy);
    return 0;
}

/* A tail that was never recorded holds nobody back. In a captured stream each launch waits for what is recorded then.
 */
int device_fence(struct cairn_device *d, void *stream, struct cairn_error *err)
{
    cuda_capture_status status = CUDA_CAPTURE_NONE;
    _cleanup_scope_ struct scope s = {0};
    int r = device_usable(d, err);

    if (r == 0)
        r = scope_enter(&s, d, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&d->lock);
    cuda_error e = d->cuda.stream_capturing(stream, &status);
    unsigned flags = status == CUDA_CAPTURE_NONE ? 0 : CUDA_EVENT_WAIT_EXTERNAL;
    for (int i = 0; i < LANES && !e; i++)
        e = d->cuda.stream_wait(stream, d->lanes[i].tail, flags);
    d->in_graphs = d->in_graphs || flags != 0;
    pthread_mutex_unlock(&d->lock);
    return e ? device_fail(d, err, e, "make a stream wait for a save") : 0;
}
