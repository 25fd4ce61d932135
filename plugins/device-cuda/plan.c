/* SPDX-License-Identifier: Apache-2.0 */
/* What a layout needs, once: shapes, the places of volatile slices, and the ways that its bytes go (variant.c). */
#include "plugins/device-cuda/device.h"

#include "core/base/bytes.h"
#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <string.h>

static void drop_memory(struct cairn_device_plan *p)
{
    struct cairn_device *d = p->device;
    struct scope s = {0};

    (void)scope_enter(&s, d, NULL); /* a lost context has taken along what the calls below would free */
    pthread_mutex_lock(&d->lock);
    variant_free(p->plain);
    variant_free(p->summed);
    variant_free(p->packed);
    if (p->block_bytes)
        d->block_plans--;
    pthread_mutex_unlock(&d->lock);
    scope_leave(&s);
}

void plan_free(struct cairn_device_plan *plan)
{
    if (!plan)
        return;
    drop_memory(plan);
    free(plan->slices);
    free(plan->loops);
    free(plan->part_len);
    free(plan->alone);
    free(plan->width);
    free(plan);
}
CAIRN_DEFINE_CLEANUP(struct cairn_device_plan *, plan_free, free_plan)

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
    s->loop = p->nloops;
    p->nloops += s->shape.ndims;
    p->bytes += from->bytes;
    if (s->is_volatile) {
        s->aside_at = p->aside_bytes;
        p->aside_bytes = round_up_u64(p->aside_bytes + from->bytes, STAGE_ALIGN);
        p->nvolatile++;
    }
    return 0;
}

/* As kernels want them: the outermost first. */
static void make_loops(struct cairn_device_plan *p)
{
    for (uint32_t i = 0; i < p->nslices; i++) {
        const struct slice *s = &p->slices[i];
        for (uint32_t k = 0; k < s->shape.ndims; k++) {
            const struct shape_dim *dim = &s->shape.dims[s->shape.ndims - 1 - k];
            p->loops[s->loop + k] = (struct gpu_loop){.count = dim->count, .stride = dim->stride};
        }
    }
}

static void *copy_array(const void *from, uint64_t count, size_t each)
{
    void *to = calloc(count ? count : 1, each);

    if (to && count && from)
        memcpy(to, from, count * each);
    return to;
}

/* Only what can be packed has a width afterwards. */
static int take_widths(struct cairn_device_plan *p, const struct cairn_device_layout *layout, struct cairn_error *err)
{
    bool any = false;

    if (layout->size < offsetof(struct cairn_device_layout, width) + sizeof layout->width || !layout->width)
        return 0;
    p->width = copy_array(layout->width, p->nparts, sizeof *p->width);
    if (!p->width)
        return cairn_fail(err, CAIRN_E_NOMEM, "plan %u slices: no memory", p->nslices);
    for (uint32_t i = 0; i < p->nparts; i++) {
        if (p->width[i] > 8 || (p->width[i] & (p->width[i] - 1)))
            return cairn_fail(err, CAIRN_E_INVAL, "part %u of the layout: no element has %u bytes", i, p->width[i]);
        if (!p->alone[i])
            p->width[i] = 0;
        any = any || p->width[i];
    }
    if (!any) {
        free(p->width);
        p->width = NULL;
    }
    return 0;
}

static int take_layout(struct cairn_device_plan *p, const struct cairn_device_layout *layout, struct cairn_error *err)
{
    p->nslices = layout->nslices;
    p->nparts = layout->nparts;
    p->slices = copy_array(NULL, p->nslices, sizeof *p->slices);
    p->part_len = copy_array(layout->part_len, p->nparts, sizeof *p->part_len);
    p->alone = copy_array(layout->alone, p->nparts, sizeof *p->alone);
    for (uint32_t i = 0; i < p->nslices && p->slices; i++) {
        int r = take_slice(p, layout, i, err);
        if (r < 0)
            return r;
    }
    p->loops = copy_array(NULL, p->nloops, sizeof *p->loops);
    if (!p->slices || !p->part_len || !p->alone || !p->loops)
        return cairn_fail(err, CAIRN_E_NOMEM, "plan %u slices: no memory", p->nslices);
    make_loops(p);
    return take_widths(p, layout, err);
}

/* Memory is taken here rather than in the first save, which has less time. */
static int make_ways(struct cairn_device_plan *p, struct cairn_error *err)
{
    struct cairn_device *d = p->device;
    int r;

    p->block_bytes = p->nslices ? stage_lanes(d, p->aside_bytes, p->width != NULL) : 0;
    if (p->block_bytes)
        d->block_plans++;
    r = variant_make(p, WAY_PLAIN, &p->plain, err);
    if (r == 0 && p->block_bytes)
        r = variant_make(p, WAY_SUMMED, &p->summed, err);
    return r;
}

int device_plan(struct cairn_device *d, const struct cairn_device_layout *layout, struct cairn_device_plan **ret_plan,
                struct cairn_error *err)
{
    CAIRN_CLEANUP(free_plan) struct cairn_device_plan *p = NULL;
    struct scope s = {0};
    int r = device_usable(d, err);

    if (r < 0)
        return r;
    p = calloc(1, sizeof *p);
    if (!p)
        return cairn_fail(err, CAIRN_E_NOMEM, "plan %u slices: no memory", layout->nslices);
    p->device = d;
    r = take_layout(p, layout, err);
    if (r == 0)
        r = scope_enter(&s, d, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&d->lock);
    r = make_ways(p, err);
    pthread_mutex_unlock(&d->lock);
    scope_leave(&s);
    if (r < 0)
        return r;
    *ret_plan = TAKE_PTR(p);
    return 0;
}
