/* SPDX-License-Identifier: Apache-2.0 */
/* Tables that kernels read: one part is the plan's and goes to the device once, the other is made anew for each save
 * (addresses, sums, runs). A save has a table to itself until its copy is freed, so that nothing under way is written
 * over; two saves under way take two. */
#include "plugins/device-cuda/device.h"

#include "core/base/bytes.h"
#include "core/base/error.h"

#include <string.h>

static uint64_t place(uint64_t *at, uint64_t count, uint64_t each)
{
    uint64_t here = *at;

    *at = round_up_u64(here + count * each, STAGE_ALIGN);
    return here;
}

struct table_places table_places(const struct variant *v)
{
    struct table_places t = {0};
    uint64_t at = 0, host;
    uint32_t summed = v->way == WAY_PLAIN ? 0 : v->plan->nparts, skipped = v->way == WAY_SUMMED ? v->plan->nparts : 0;
    uint32_t packed = v->way == WAY_PACKED ? v->plan->nparts : 0;

    t.base = place(&at, SOURCES(v->plan), sizeof(void *));
    t.page = place(&at, summed, sizeof(void *));
    t.held = place(&at, skipped, sizeof(struct cairn_device_sum));
    t.runs = place(&at, v->nruns, sizeof(struct gpu_run));
    t.save_end = at;
    t.pieces = place(&at, v->ngathers, sizeof(struct gpu_piece));
    t.loops = place(&at, v->plan->nloops, sizeof(struct gpu_loop));
    t.parts = place(&at, v->nparts, sizeof(struct gpu_part));
    t.packs = place(&at, v->npacks, sizeof(struct gpu_part));
    t.width = place(&at, packed, 1);
    t.both_end = host = at;
    t.sums = place(&at, skipped, sizeof(struct cairn_device_sum));
    t.device_end = at;
    t.ret_sums = place(&host, summed, sizeof(struct cairn_device_sum));
    t.ret_skipped = place(&host, skipped, 1);
    t.ret_packed = place(&host, packed, sizeof(uint32_t));
    t.host_end = host;
    return t;
}

static void put_array(char *to, const void *from, uint64_t count, uint64_t each)
{
    if (count > 0)
        memcpy(to, from, count * each);
}

static void table_drop(struct cairn_device *d, struct table *t)
{
    if (t->host)
        (void)d->cuda.host_free(t->host);
    if (t->device)
        (void)d->cuda.free(t->device);
    free(t);
}

static int table_make(struct variant *v, struct table **ret_table, struct cairn_error *err)
{
    struct cairn_device *d = v->plan->device;
    struct table_places p = table_places(v);
    struct table *t = calloc(1, sizeof *t);
    void *host = NULL, *mapped = NULL, *device = NULL;

    if (!t)
        return cairn_fail(err, CAIRN_E_NOMEM, "save: no memory");
    cuda_error e = d->cuda.host_alloc(&host, p.host_end, CUDA_HOST_PORTABLE | CUDA_HOST_MAPPED);
    t->host = e ? NULL : host;
    if (!e)
        e = d->cuda.host_pointer(&mapped, host, 0);
    t->mapped = mapped;
    if (!e)
        e = d->cuda.malloc(&device, p.device_end);
    t->device = e ? NULL : device;
    if (e) {
        table_drop(d, t);
        return device_fail(d, err, e, "take memory for the kernels' tables");
    }
    put_array(t->host + p.pieces, v->gathers, v->ngathers, sizeof *v->gathers);
    put_array(t->host + p.loops, v->plan->loops, v->plan->nloops, sizeof *v->plan->loops);
    put_array(t->host + p.parts, v->parts, v->nparts, sizeof *v->parts);
    put_array(t->host + p.packs, v->packs, v->npacks, sizeof *v->packs);
    if (v->way == WAY_PACKED)
        put_array(t->host + p.width, v->plan->width, v->plan->nparts, 1);
    *ret_table = t;
    return 0;
}

int table_take(struct variant *v, struct table **ret_table, struct cairn_error *err)
{
    if (!v->idle)
        return table_make(v, ret_table, err);
    *ret_table = v->idle;
    v->idle = v->idle->next;
    return 0;
}

void table_give(struct variant *v, struct table *t)
{
    if (!t)
        return;
    t->next = v->idle;
    v->idle = t;
}

void table_spoil(struct variant *v, struct table *t)
{
    if (!t)
        return;
    t->next = v->spoiled;
    v->spoiled = t;
}

static void free_list(struct cairn_device *d, struct table *t)
{
    for (struct table *next; t; t = next) {
        next = t->next;
        table_drop(d, t);
    }
}

void tables_free(struct variant *v)
{
    free_list(v->plan->device, v->idle);
    free_list(v->plan->device, v->spoiled);
    v->idle = v->spoiled = NULL;
}
