/* SPDX-License-Identifier: Apache-2.0 */
/* From which size on bytes go one way or the other: so that a save is few calls of the runtime. */
#include "plugins/device-cuda/device.h"

#include "core/base/cleanup.h"

#define CALLS 400         /* of the copy engine, about: what the host has time for in a save */
#define DIRECT_LEAST PART /* smaller slices are gathered */
#define SPANS 128         /* more than these are scattered by a kernel, the smallest ones */

bool slice_is_dense(const struct slice *s)
{
    return s->is_volatile || s->shape.ndims == 0; /* a volatile one has been gathered aside */
}

static uint64_t calls_with(const struct cairn_device_plan *p, uint64_t least)
{
    uint64_t direct = 0, gathered = 0;

    for (uint32_t i = 0; i < p->nslices; i++) {
        const struct slice *s = &p->slices[i];
        if (slice_is_dense(s) && s->shape.bytes >= least)
            direct++;
        else
            gathered += s->shape.bytes;
    }
    return direct + (gathered + p->block_bytes - 1) / p->block_bytes * 3;
}

/* The smallest size from which on slices go straight that keeps the number of calls within bounds, or the one with
 * the fewest. */
uint64_t variant_direct_least(const struct cairn_device_plan *p)
{
    uint64_t best = DIRECT_LEAST, fewest = UINT64_MAX;

    if (emit_has_batches(p->device))
        return best; /* then calls are few whatever the pieces are */
    for (uint64_t least = DIRECT_LEAST; p->block_bytes && least <= p->block_bytes; least *= 2) {
        uint64_t calls = calls_with(p, least);
        if (calls < fewest) {
            best = least;
            fewest = calls;
        }
        if (calls <= CALLS)
            break;
    }
    return best;
}

static int compare_bytes(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? 1 : x > y ? -1 : 0;
}

static void count_runs(struct variant *v)
{
    for (uint32_t k = 0; k < v->nbatches; k++) {
        struct batch *b = &v->batches[k];
        b->run = v->nruns;
        for (uint32_t i = b->span; i < b->span + b->nspans; i++) {
            const struct span *s = &v->spans[i];
            if (s->scattered)
                v->nruns += (uint32_t)((s->at + s->bytes - 1) / PART - s->at / PART + 1);
        }
        b->nruns = v->nruns - b->run;
    }
}

/* Of many spans the largest go by the copy engine, the others by a kernel. */
int variant_scatter(struct variant *v)
{
    _cleanup_free_ uint64_t *bytes = calloc(v->nspans ? v->nspans : 1, sizeof *bytes);

    if (!bytes)
        return CAIRN_E_NOMEM;
    for (uint32_t i = 0; i < v->nspans; i++)
        bytes[i] = v->spans[i].bytes;
    qsort(bytes, v->nspans, sizeof *bytes, compare_bytes);
    uint64_t least = v->nspans > SPANS ? bytes[SPANS - 1] : 0;
    for (uint32_t i = 0; i < v->nspans; i++) {
        struct span *s = &v->spans[i];
        s->scattered = !s->summed && s->bytes < least;
    }
    count_runs(v);
    return 0;
}
