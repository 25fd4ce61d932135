/* SPDX-License-Identifier: Apache-2.0 */
/* cairn_put: parts whose sum is not the one that their page has go there, over the bus: a warp stores 512 bytes at a
 * time, whole lines, and nothing is read back. Who has put what, the host learns from its own memory. */
#include "bytes.cuh"

#define PUT_EACH 4u /* units that a thread has under way */
#define PUT_STEP (GPU_PUT_BLOCKS * GPU_PUT_THREADS)

DEVICE int is_held(const struct gpu_put *g, uint32_t index)
{
    if (!g->sums || !g->held)
        return 0;
    struct cairn_device_sum sum = g->sums[index], held = g->held[index];
    return (held.low | held.high) != 0 && sum.low == held.low && sum.high == held.high;
}

template <typename Word> DEVICE void put_part(const uint8_t *from, uint8_t *to, uint32_t len)
{
    uint32_t n = len / UNIT, thread = blockIdx.x % GPU_PUT_BLOCKS * GPU_PUT_THREADS + threadIdx.x;

    for (uint32_t u = thread; u < n; u += PUT_EACH * PUT_STEP) {
        struct pair64 unit[PUT_EACH];
#pragma unroll
        for (unsigned i = 0; i < PUT_EACH; i++)
            if (u + i * PUT_STEP < n)
                unit[i] = load_unit_by<Word>(from + (uint64_t)(u + i * PUT_STEP) * UNIT);
#pragma unroll
        for (unsigned i = 0; i < PUT_EACH; i++)
            if (u + i * PUT_STEP < n)
                store_unit(to + (uint64_t)(u + i * PUT_STEP) * UNIT, unit[i]);
    }
    if (thread < len % UNIT)
        to[n * UNIT + thread] = from[n * UNIT + thread];
}

extern "C" __global__ void __launch_bounds__(GPU_PUT_THREADS) cairn_put(const struct gpu_put g)
{
    if (blockIdx.x / GPU_PUT_BLOCKS >= g.nparts)
        return;
    struct gpu_part part = g.parts[blockIdx.x / GPU_PUT_BLOCKS];
    int held = is_held(&g, part.index);

    if (blockIdx.x % GPU_PUT_BLOCKS == 0 && threadIdx.x == 0) {
        if (g.ret_sums && g.sums)
            g.ret_sums[part.index] = g.sums[part.index];
        if (g.ret_skipped)
            g.ret_skipped[part.index] = (uint8_t)held;
    }
    if (held)
        return;
    const uint8_t *from = (const uint8_t *)g.base[part.source] + part.offset;
    uint8_t *to = (uint8_t *)g.page[part.index];
    BY_ALIGNMENT(from, put_part, from, to, part.len);
}
