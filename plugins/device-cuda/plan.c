/* SPDX-License-Identifier: Apache-2.0 */
/* What a layout needs, once: slices are cut into pieces, and pieces follow each other in batches, volatile ones first
 * and the others as they lie in the image, so that parts are complete one after another. */
#include "plugins/device-cuda/device.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#define BATCH ((uint64_t)64 << 20) /* progress is told by batches */
#define BATCHES 64                 /* of a save, about */

CAIRN_DEFINE_CLEANUP(struct cairn_device_plan *, plan_free, free_plan)

void plan_free(struct cairn_device_plan *plan)
{
    if (!plan)
        return;
    free(plan->slices);
    free(plan->pieces);
    free(plan->batches);
    free(plan->gaps);
    free(plan);
}

static int take_slice(struct cairn_device_plan *p, const struct cairn_device_layout *layout, uint32_t i,
                      struct cairn_error *err)
{
    const struct cairn_device_slice *from = &layout->slices[i];
    struct slice *s = &p->slices[i];
    uint64_t end, before = i ? p->slices[i - 1].at + p->slices[i - 1].shape.bytes : 0;
    int r = shape_make(&s->shape, from, err);

    if (r < 0)
        return r;
    if (__builtin_add_overflow(from->image_offset, from->bytes, &end) || from->image_offset < before ||
        end > (uint64_t)layout->nparts * PART)
        return cairn_fail(err, CAIRN_E_INVAL,
                          "slice %u of the layout: %llu bytes at %llu overlap or lie outside of %u parts", i,
                          (unsigned long long)from->bytes, (unsigned long long)from->image_offset, layout->nparts);
    s->at = from->image_offset;
    s->is_volatile = (from->flags & CAIRN_TENSOR_VOLATILE) != 0;
    p->bytes += from->bytes;
    if (s->is_volatile) {
        s->aside_at = p->aside_bytes;
        p->aside_bytes += (from->bytes + STAGE_ALIGN - 1) / STAGE_ALIGN * STAGE_ALIGN;
        p->nvolatile++;
    }
    return 0;
}

static int take_slices(struct cairn_device_plan *p, const struct cairn_device_layout *layout, struct cairn_error *err)
{
    p->nslices = layout->nslices;
    p->nparts = layout->nparts;
    p->slices = calloc(p->nslices ? p->nslices : 1, sizeof *p->slices);
    if (!p->slices)
        return cairn_fail(err, CAIRN_E_NOMEM, "plan %u slices: no memory", p->nslices);
    for (uint32_t i = 0; i < p->nslices; i++) {
        int r = take_slice(p, layout, i, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Gaps of part k from byte at of the image up to end that belong to this device alone. */
static int add_gap(struct cairn_device_plan *p, const struct cairn_device_layout *layout, uint64_t at, uint64_t end,
                   size_t *room)
{
    while (at < end) {
        uint64_t part = at / PART, stop = (part + 1) * PART < end ? (part + 1) * PART : end;
        uint64_t used = part * PART + layout->part_len[part], upto = stop < used ? stop : used;
        if (layout->alone[part] && at < upto) {
            if (p->ngaps == *room) {
                size_t more = *room ? 2 * *room : 64;
                struct gap *gaps = realloc(p->gaps, more * sizeof *gaps);
                if (!gaps)
                    return CAIRN_E_NOMEM;
                p->gaps = gaps;
                *room = more;
            }
            p->gaps[p->ngaps++] = (struct gap){.at = at, .bytes = (uint32_t)(upto - at)};
        }
        at = stop;
    }
    return 0;
}

static int find_gaps(struct cairn_device_plan *p, const struct cairn_device_layout *layout, struct cairn_error *err)
{
    uint64_t at = 0;
    size_t room = 0;
    int r = 0;

    for (uint32_t i = 0; i < p->nslices && r == 0; i++) {
        r = add_gap(p, layout, at, p->slices[i].at, &room);
        at = p->slices[i].at + p->slices[i].shape.bytes;
    }
    if (r == 0)
        r = add_gap(p, layout, at, (uint64_t)p->nparts * PART, &room);
    return r < 0 ? cairn_fail(err, r, "plan %u slices: no memory", p->nslices) : 0;
}

struct cutter {
    struct cairn_device_plan *plan;
    uint64_t step; /* bytes of a batch */
    size_t room, batch_room;
    struct batch open;
};

static int close_batch(struct cutter *c)
{
    struct cairn_device_plan *p = c->plan;

    if (p->nbatches == c->batch_room) {
        size_t room = c->batch_room ? 2 * c->batch_room : 32;
        struct batch *more = realloc(p->batches, room * sizeof *more);
        if (!more)
            return CAIRN_E_NOMEM;
        p->batches = more;
        c->batch_room = room;
    }
    c->open.npieces = p->npieces - c->open.first;
    p->batches[p->nbatches++] = c->open;
    c->open = (struct batch){.first = p->npieces};
    return 0;
}

static int add_piece(struct cutter *c, uint32_t slice, uint64_t from, uint64_t bytes)
{
    struct cairn_device_plan *p = c->plan;

    if (p->npieces == c->room) {
        size_t room = c->room ? 2 * c->room : 256;
        struct piece *more = realloc(p->pieces, room * sizeof *more);
        if (!more)
            return CAIRN_E_NOMEM;
        p->pieces = more;
        c->room = room;
    }
    p->pieces[p->npieces++] = (struct piece){.slice = slice, .from = from, .bytes = bytes};
    c->open.bytes += bytes;
    return 0;
}

/* A slice is cut where its batch is full, at the end of a part. */
static int cut_slice(struct cutter *c, uint32_t i)
{
    const struct slice *s = &c->plan->slices[i];
    int r = 0;

    for (uint64_t from = 0, bytes; from < s->shape.bytes && r == 0; from += bytes) {
        uint64_t left = s->shape.bytes - from, fit = c->step - c->open.bytes;
        bytes = left;
        if (left > fit) {
            bytes = (s->at + from + fit + PART - 1) / PART * PART - (s->at + from);
            bytes = bytes < left ? bytes : left;
        }
        r = add_piece(c, i, from, bytes);
        if (r == 0 && c->open.bytes >= c->step)
            r = close_batch(c);
    }
    return r;
}

/* Behind batch k all parts before the first byte of the next are complete. */
static void count_parts(struct cairn_device_plan *p)
{
    for (uint32_t k = 0; k < p->nbatches; k++) {
        uint32_t next = p->batches[k].first + p->batches[k].npieces;
        const struct piece *piece = &p->pieces[next];
        p->batches[k].parts =
            next == p->npieces ? p->nparts : (uint32_t)((p->slices[piece->slice].at + piece->from) / PART);
    }
}

static int cut(struct cairn_device_plan *p, struct cairn_error *err)
{
    uint64_t step = (p->bytes / BATCHES + PART - 1) / PART * PART;
    struct cutter c = {.plan = p, .step = UINT64_MAX};
    int r = 0;

    for (uint32_t i = 0; i < p->nslices && r == 0; i++)
        if (p->slices[i].is_volatile)
            r = cut_slice(&c, i);
    if (r == 0)
        r = close_batch(&c);
    c.step = step > BATCH ? step : BATCH;
    for (uint32_t i = 0; i < p->nslices && r == 0; i++)
        if (!p->slices[i].is_volatile)
            r = cut_slice(&c, i);
    if (r == 0 && p->npieces > c.open.first)
        r = close_batch(&c);
    if (r < 0)
        return cairn_fail(err, r, "plan %u slices: no memory", p->nslices);
    count_parts(p);
    return 0;
}

int device_plan(struct cairn_device *d, const struct cairn_device_layout *layout, struct cairn_device_plan **ret_plan,
                struct cairn_error *err)
{
    CAIRN_CLEANUP(free_plan) struct cairn_device_plan *p = calloc(1, sizeof *p);
    int r;

    if (!p)
        return cairn_fail(err, CAIRN_E_NOMEM, "plan %u slices: no memory", layout->nslices);
    p->device = d;
    r = take_slices(p, layout, err);
    if (r == 0)
        r = find_gaps(p, layout, err);
    if (r == 0)
        r = cut(p, err);
    if (r < 0)
        return r;
    *ret_plan = TAKE_PTR(p);
    return 0;
}
