/* SPDX-License-Identifier: Apache-2.0 */
/* cairn_put: parts whose sum is not the one that their page has go there, over the bus. Who has put what, the host
 * learns from its own memory. */
#include "pages.cuh"

#define PUT_STEP (GPU_PUT_BLOCKS * GPU_PUT_THREADS)

DEVICE int is_held(const struct gpu_put *g, uint32_t index)
{
    if (!g->sums || !g->held)
        return 0;
    struct cairn_device_sum sum = g->sums[index], held = g->held[index];
    return (held.low | held.high) != 0 && sum.low == held.low && sum.high == held.high;
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
    uint32_t thread = blockIdx.x % GPU_PUT_BLOCKS * GPU_PUT_THREADS + threadIdx.x;
    BY_ALIGNMENT(from, to_page, from, to, part.len, thread, PUT_STEP);
}
