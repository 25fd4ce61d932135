/* SPDX-License-Identifier: Apache-2.0 */
/* What a save puts into the lanes, batch by batch. */
#include "plugins/device-cuda/device.h"

#include "core/base/error.h"

/* Where the pages of a range of the image do not follow each other a new call begins. */
static uint32_t calls_of(void *const *page, uint64_t at, uint64_t bytes)
{
    uint32_t n = 1;

    for (uint64_t part = at / PART; part < (at + bytes - 1) / PART; part++)
        n += (char *)page[part + 1] != (char *)page[part] + PART;
    return n;
}

uint32_t lanes_calls(const struct variant *v, void *const *page)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < v->npieces; i++)
        n += calls_of(page, v->plan->slices[v->pieces[i].slice].at + v->pieces[i].from, v->pieces[i].bytes);
    for (uint32_t i = 0; i < v->nspans; i++)
        n += v->spans[i].scattered ? 0 : calls_of(page, v->spans[i].at, v->spans[i].bytes);
    return n;
}

static int put_engine(struct cairn_device_copy *copy, struct emit *e, const struct shape *shape, const char *data,
                      uint64_t from, uint64_t bytes, struct cairn_error *err)
{
    e->copies = copy->batched ? &copy->copies : NULL;
    int r = emit_range(e, shape, data, from, bytes, err);

    copy->started = copy->started || e->calls > 0;
    return r;
}

static int put_piece(struct cairn_device_copy *copy, const struct cairn_device_save *save, const struct piece *p,
                     cuda_stream stream, struct cairn_error *err)
{
    struct cairn_device *d = copy->variant->plan->device;
    const struct slice *s = &copy->variant->plan->slices[p->slice];
    struct emit e = {.device = d, .stream = stream, .kind = CUDA_DEVICE_TO_HOST, .at = s->at, .to.page = save->page};
    struct shape dense = {.bytes = s->shape.bytes, .width = s->shape.bytes};

    if ((copy->skip && p->summed) || (copy->pack && p->packed))
        return 0;
    if (s->is_volatile)
        return put_engine(copy, &e, &dense, (char *)d->aside + s->aside_at, p->from, p->bytes, err);
    return put_engine(copy, &e, &s->shape, save->data[p->slice], p->from, p->bytes, err);
}

static int put_span(struct cairn_device_copy *copy, const struct cairn_device_save *save, const struct span *s,
                    const struct lane *lane, struct cairn_error *err)
{
    struct emit e = {.device = copy->variant->plan->device,
                     .stream = lane->stream,
                     .kind = CUDA_DEVICE_TO_HOST,
                     .at = s->at,
                     .to.page = save->page};
    struct shape dense = {.bytes = s->bytes, .width = s->bytes};

    if (s->scattered || (copy->skip && s->summed) || (copy->pack && s->packed))
        return 0;
    return put_engine(copy, &e, &dense, (char *)lane->block + s->block_at, 0, s->bytes, err);
}

static int put_gather(struct cairn_device_copy *copy, const struct batch *b, const struct lane *lane,
                      struct cairn_error *err)
{
    const struct table_places at = table_places(copy->variant);
    char *table = copy->table->device;
    struct gpu_gather args = {.pieces = (const struct gpu_piece *)(void *)(table + at.pieces) + b->gather,
                              .loops = (const void *)(table + at.loops),
                              .base = (const void *)(table + at.base),
                              .block = lane->block,
                              .len = b->block_used,
                              .npieces = b->ngathers};

    return kernels_launch(copy->variant->plan->device, KERNEL_GATHER, gpu_gather_blocks(args.len), GPU_GATHER_THREADS,
                          &args, lane->stream, err);
}

static int put_scatter(struct cairn_device_copy *copy, const struct batch *b, const struct lane *lane,
                       struct cairn_error *err)
{
    if (b->nruns == 0)
        return 0;
    const struct table_places at = table_places(copy->variant);
    const struct gpu_run *runs = (const struct gpu_run *)(void *)(copy->table->host + at.runs) + b->run;
    const struct gpu_run *last = &runs[b->nruns - 1];
    struct gpu_scatter args = {.runs = (const struct gpu_run *)(void *)(copy->table->device + at.runs) + b->run,
                               .nruns = b->nruns,
                               .ntiles = last->tile + gpu_run_tiles(1, last->elem)};

    copy->started = true;
    return kernels_launch(copy->variant->plan->device, KERNEL_SCATTER, gpu_scatter_blocks(args.ntiles),
                          GPU_SCATTER_THREADS, &args, lane->stream, err);
}

/* Sums go to the host; where they decide what is copied, to the device, and with the copies to the host. */
static int put_sums(struct cairn_device_copy *copy, const struct cairn_device_save *save, const struct batch *b,
                    const struct lane *lane, struct cairn_error *err)
{
    struct cairn_device *d = copy->variant->plan->device;
    const struct table_places at = table_places(copy->variant);
    char *table = copy->table->device, *mapped = copy->table->mapped;
    const struct gpu_part *parts = (const struct gpu_part *)(void *)(table + at.parts) + b->part;
    void *sums = copy->skip ? table + at.sums : mapped + at.ret_sums;
    struct gpu_sums args = {
        .parts = parts, .base = (const void *)(table + at.base), .sums = sums, .seed = save->seed, .nparts = b->nparts};
    struct gpu_put put = {.parts = parts,
                          .base = args.base,
                          .page = (void *)(table + at.page),
                          .sums = sums,
                          .held = (const void *)(table + at.held),
                          .ret_sums = (void *)(mapped + at.ret_sums),
                          .ret_skipped = (void *)(mapped + at.ret_skipped),
                          .nparts = b->nparts};
    int r;

    copy->started = copy->started || b->nparts > 0;
    r = kernels_launch(d, KERNEL_SUMS, gpu_sums_blocks(b->nparts), GPU_SUMS_THREADS, &args, lane->stream, err);
    if (r == 0 && copy->skip)
        r = kernels_launch(d, KERNEL_PUT, gpu_put_blocks(b->nparts), GPU_PUT_THREADS, &put, lane->stream, err);
    return r;
}

/* To their pages, as many at once as there are slots. */
static int put_packed(struct cairn_device_copy *copy, const struct batch *b, const struct lane *lane,
                      struct cairn_error *err)
{
    struct cairn_device *d = copy->variant->plan->device;
    const struct table_places at = table_places(copy->variant);
    char *table = copy->table->device;
    struct gpu_pack args = {.parts = (const struct gpu_part *)(void *)(table + at.packs) + b->pack,
                            .base = (const void *)(table + at.base),
                            .width = (const void *)(table + at.width),
                            .out = lane->slots,
                            .ret_len = (void *)(copy->table->mapped + at.ret_packed),
                            .nparts = b->npacks,
                            .page = (void *)(table + at.page),
                            .slot = SLOT};

    copy->started = copy->started || b->npacks > 0;
    return kernels_launch(d, KERNEL_PACK, b->npacks < d->nslots ? b->npacks : d->nslots, GPU_PACK_THREADS, &args,
                          lane->stream, err);
}

static int put_copies(struct cairn_device_copy *copy, const struct cairn_device_save *save, const struct batch *b,
                      const struct lane *lane, struct cairn_error *err)
{
    const struct variant *v = copy->variant;
    int r = 0;

    for (uint32_t i = b->piece; i < b->piece + b->npieces && r == 0; i++)
        r = put_piece(copy, save, &v->pieces[i], lane->stream, err);
    for (uint32_t i = b->span; i < b->span + b->nspans && r == 0; i++)
        r = put_span(copy, save, &v->spans[i], lane, err);
    if (r < 0 || copy->copies.n == 0)
        return r;
    copy->started = true;
    return emit_copies(v->plan->device, &copy->copies, CUDA_DEVICE_TO_HOST, lane->stream, err);
}

static int put_batch(struct cairn_device_copy *copy, const struct cairn_device_save *save, uint32_t k,
                     struct cairn_error *err)
{
    const struct variant *v = copy->variant;
    struct cairn_device *d = v->plan->device;
    const struct lane *lane = &d->lanes[k % LANES];
    const struct batch *b = &v->batches[k];
    int r;

    if (k < LANES)
        times_begin(copy, k);
    r = b->ngathers ? put_gather(copy, b, lane, err) : 0;
    if (r == 0 && copy->sums)
        r = put_sums(copy, save, b, lane, err);
    if (r == 0 && copy->pack)
        r = put_packed(copy, b, lane, err);
    if (r == 0)
        r = put_copies(copy, save, b, lane, err);
    if (r == 0)
        r = put_scatter(copy, b, lane, err);
    if (r < 0)
        return r;
    if (k + LANES >= v->nbatches)
        times_end(copy, k % LANES); /* before the batch's own event: it has been when that has */
    cuda_error e = d->cuda.event_record(copy->events[k], lane->stream);
    if (e)
        return device_fail(d, err, e, "record an event");
    copy->nput++;
    return 0;
}

int lanes_end(struct cairn_device *d, struct cairn_error *err)
{
    cuda_error first = CUDA_OK;

    for (int i = 0; i < LANES; i++) {
        cuda_error e = d->cuda.event_record(d->lanes[i].tail, d->lanes[i].stream);
        first = first ? first : e;
    }
    return first ? device_fail(d, err, first, "record an event") : 0;
}

int lanes_put(struct cairn_device_copy *copy, const struct cairn_device_save *save, struct cairn_error *err)
{
    int r = 0, t;

    for (uint32_t k = 0; k < copy->variant->nbatches && r == 0; k++)
        r = put_batch(copy, save, k, err);
    t = lanes_end(copy->variant->plan->device, r < 0 ? NULL : err);
    return r < 0 ? r : t;
}
