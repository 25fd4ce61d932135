/* SPDX-License-Identifier: Apache-2.0 */
/* The device's memory that is taken: a block for each lane, to gather in, and one place for volatile slices. All of it
 * together stays within the budget. */
#include "plugins/device-cuda/device.h"

#include "core/base/error.h"

#define BLOCK_MOST ((uint64_t)64 << 20)
#define BLOCK_LEAST ((uint64_t)16 << 20) /* when the device has no memory; the budget may be smaller */
#define BLOCK_USEFUL (4 * PART)
#define SLOTS_MOST 256u /* more than any device works on at once, with two lanes */
#define SLOTS_LEAST 4u
#define SLOTS_LATER 64 /* saves, when the device had no memory: asking takes time */

static void free_slots(struct cairn_device *d)
{
    for (int i = 0; i < LANES; i++) {
        if (d->lanes[i].slots)
            (void)d->cuda.free(d->lanes[i].slots); /* waits for its readers */
        d->lanes[i].slots = NULL;
    }
    d->nslots = 0;
}

static void free_blocks(struct cairn_device *d)
{
    for (int i = 0; i < LANES; i++) {
        if (d->lanes[i].block)
            (void)d->cuda.free(d->lanes[i].block);
        d->lanes[i].block = NULL;
    }
    d->block_bytes = 0;
    free_slots(d); /* what they leave is counted anew */
}

static bool take_blocks(struct cairn_device *d, uint64_t bytes)
{
    for (int i = 0; i < LANES; i++)
        if (d->cuda.malloc(&d->lanes[i].block, bytes) != CUDA_OK) {
            d->lanes[i].block = NULL;
            free_blocks(d);
            return false;
        }
    d->block_bytes = bytes;
    return true;
}

uint64_t stage_lanes(struct cairn_device *d, uint64_t aside_bytes, bool packs)
{
    uint64_t left = d->staging_bytes > aside_bytes ? d->staging_bytes - aside_bytes : 0;

    if (packs && left / 2 / LANES >= BLOCK_USEFUL)
        left /= 2; /* the other half is for slots */
    uint64_t bytes = left / LANES / PART * PART;

    if (!d->kernels.usable)
        return 0;
    if (d->block_plans == 0 && d->block_bytes > bytes)
        free_blocks(d); /* of plans that are gone, with fewer volatile slices */
    if (d->block_bytes > 0)
        return d->block_bytes;
    bytes = bytes < BLOCK_MOST ? bytes : BLOCK_MOST;
    uint64_t least = bytes < BLOCK_LEAST ? bytes : BLOCK_LEAST;
    for (; bytes >= least && bytes >= BLOCK_USEFUL; bytes /= 2)
        if (take_blocks(d, bytes / PART * PART))
            return d->block_bytes;
    return 0;
}

static bool take_slots(struct cairn_device *d, uint32_t n)
{
    for (int i = 0; i < LANES; i++)
        if (d->cuda.malloc(&d->lanes[i].slots, n * SLOT) != CUDA_OK) {
            d->lanes[i].slots = NULL;
            free_slots(d);
            return false;
        }
    d->nslots = n;
    return true;
}

uint32_t stage_slots(struct cairn_device *d, uint64_t aside_bytes)
{
    uint64_t aside = aside_bytes > d->aside_bytes ? aside_bytes : d->aside_bytes,
             taken = LANES * d->block_bytes + aside;
    uint64_t n = d->staging_bytes > taken ? (d->staging_bytes - taken) / LANES / SLOT : 0;

    if (d->nslots > 0 && d->nslots <= n)
        return d->nslots;
    free_slots(d); /* none, or more than there is room for beside so many volatile slices */
    if (d->slots_later > 0) {
        d->slots_later--;
        return 0;
    }
    for (n = n < SLOTS_MOST ? n : SLOTS_MOST; n >= SLOTS_LEAST; n /= 2)
        if (take_slots(d, (uint32_t)n))
            return d->nslots;
    d->slots_later = SLOTS_LATER;
    return 0;
}

int stage_aside(struct cairn_device *d, uint64_t bytes, struct cairn_error *err)
{
    uint64_t blocks = d->block_plans ? LANES * d->block_bytes : 0;
    uint64_t all = (bytes > d->aside_bytes ? bytes : d->aside_bytes) + blocks;

    if (all + LANES * d->nslots * SLOT > d->staging_bytes)
        free_slots(d); /* packing can be done without */
    if (bytes + blocks > d->staging_bytes)
        return cairn_fail(err, CAIRN_E_TOO_LARGE,
                          "volatile tensors of CUDA device %d: %llu bytes, and of device_staging_bytes %llu are left "
                          "(of %llu); raise it, or flag fewer tensors as volatile",
                          d->ordinal, (unsigned long long)bytes,
                          (unsigned long long)(d->staging_bytes > blocks ? d->staging_bytes - blocks : 0),
                          (unsigned long long)d->staging_bytes);
    if (bytes <= d->aside_bytes)
        return 0;
    if (d->aside)
        (void)d->cuda.free(d->aside); /* waits for its readers */
    d->aside = NULL;
    d->aside_bytes = 0;
    cuda_error e = d->cuda.malloc(&d->aside, bytes);
    if (e == CUDA_E_MEMORY_ALLOCATION && d->nslots > 0) {
        free_slots(d);
        e = d->cuda.malloc(&d->aside, bytes);
    }
    if (e) {
        d->aside = NULL;
        return device_fail(d, err, e, "take device memory for volatile tensors");
    }
    d->aside_bytes = bytes;
    return 0;
}

void stage_free(struct cairn_device *d)
{
    free_blocks(d);
    if (d->aside)
        (void)d->cuda.free(d->aside);
    d->aside = NULL;
}
