/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes to a page of the arena, over the bus: a warp stores 512 bytes at a time, whole lines, and nothing is read back.
 */
#ifndef CAIRN_DEVICE_CUDA_PAGES_CUH
#define CAIRN_DEVICE_CUDA_PAGES_CUH

#include "bytes.cuh"

#define PAGE_EACH 4u /* units that a thread has under way */

/* Sixteen bytes that are aligned, and that this kernel may have written itself. */
struct own_unit {
};
template <> __device__ __forceinline__ struct pair64 load_unit_by<struct own_unit>(const uint8_t *p) {
    ulonglong2 x = *(const ulonglong2 *)p;
    struct pair64 unit = {x.x, x.y};

    return unit;
}

/* By so many threads, of which this is one. to is aligned to 16. */
template <typename Word>
DEVICE void to_page(const uint8_t *from, uint8_t *to, uint32_t len, uint32_t thread, uint32_t threads)
{
    uint32_t n = len / UNIT;

    for (uint32_t u = thread; u < n; u += PAGE_EACH * threads) {
        struct pair64 unit[PAGE_EACH];
#pragma unroll
        for (unsigned i = 0; i < PAGE_EACH; i++)
            if (u + i * threads < n)
                unit[i] = load_unit_by<Word>(from + (uint64_t)(u + i * threads) * UNIT);
#pragma unroll
        for (unsigned i = 0; i < PAGE_EACH; i++)
            if (u + i * threads < n)
                store_unit(to + (uint64_t)(u + i * threads) * UNIT, unit[i]);
    }
    if (thread < len % UNIT)
        to[n * UNIT + thread] = from[n * UNIT + thread];
}

#endif
