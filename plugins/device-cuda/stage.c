/* SPDX-License-Identifier: Apache-2.0 */
/* The device's memory that is taken: a block for each lane, to gather in, and one place for volatile slices. All of it
 * together stays within the budget. */
#include "plugins/device-cuda/device.h"

#include "core/base/error.h"

#define BLOCK_MOST ((uint64_t)64 << 20)
#define BLOCK_LEAST ((uint64_t)16 << 20) /* when the device has no memory; the budget may be smaller */
#define BLOCK_USEFUL (4 * PART)

static void free_blocks(struct cairn_device *d)
{
    for (int i = 0; i < LANES; i++) {
        if (d->lanes[i].block)
            (void)d->cuda.free(d->lanes[i].block);
        d->lanes[i].block = NULL;
    }
    d->block_bytes = 0;
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

uint64_t stage_lanes(struct cairn_device *d, uint64_t aside_bytes)
{
    uint64_t left = d->staging_bytes > aside_bytes ? d->staging_bytes - aside_bytes : 0;
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

int stage_aside(struct cairn_device *d, uint64_t bytes, struct cairn_error *err)
{
    uint64_t blocks = d->block_plans ? LANES * d->block_bytes : 0;

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
