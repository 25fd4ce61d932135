/* SPDX-License-Identifier: Apache-2.0 */
/* Kernels that are wrong, and one that is right, to see whether the emulator tells them apart. */
#include "tests/unit/kernels/faulty.h"

#include "tests/shim/emulate/emulate.h"

#define THREADS 96

/* Each thread takes what another one of the block has put down. */
template <int barrier> static void turn_round(void **args)
{
    __shared__ uint32_t all[THREADS];
    uint32_t *to = *(uint32_t **)args[0] + blockIdx.x * THREADS, me = threadIdx.x;

    all[me] = blockIdx.x * THREADS + me;
    if (barrier)
        __syncthreads();
    to[me] = all[THREADS - 1 - me];
}

static void warp_sum(void **args)
{
    uint32_t *to = *(uint32_t **)args[0] + blockIdx.x * THREADS, x = threadIdx.x;

    for (unsigned flip = 16; flip > 0; flip /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, (int)flip);
    to[threadIdx.x] = x + __ballot_sync(0xffffffffu, threadIdx.x % 3 == 0);
}

static void not_all_come(void **args)
{
    (void)args;
    if (threadIdx.x != 70)
        __syncthreads();
}

static void two_barriers(void **args)
{
    (void)args;
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
}

static void lanes_apart(void **args)
{
    (void)args;
    if (threadIdx.x % 2)
        __syncwarp();
    else
        (void)__ballot_sync(0xffffffffu, 1);
}

extern "C" void faulty_run(enum faulty which, uint32_t *out, uint32_t nblocks)
{
    static void (*const kernels[])(void **) = {turn_round<1>, turn_round<0>, warp_sum,
                                               not_all_come,  two_barriers,  lanes_apart};
    const uint32_t grid[3] = {nblocks, 1, 1}, block[3] = {THREADS, 1, 1};
    void *args[1] = {&out};

    emulate_grid("faulty", kernels[which], grid, block, args);
}
