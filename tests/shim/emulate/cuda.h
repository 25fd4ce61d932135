/* SPDX-License-Identifier: Apache-2.0 */
/* What of CUDA's C++ the kernels use, for the host's compiler: included before them by its command line. */
#ifndef CAIRN_TESTS_SHIM_EMULATE_CUDA_H
#define CAIRN_TESTS_SHIM_EMULATE_CUDA_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __constant__ const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static __thread /* of a block: a host thread runs one block at a time */

#define __noinline__ __attribute__((noinline))

struct alignas(16) ulonglong2 {
    unsigned long long x, y;
};

struct emulate_dim {
    uint32_t x, y, z;
};
struct emulate_self { /* a thread of the device, as the kernel sees itself */
    struct emulate_dim thread, block, block_dim, grid_dim;
};
extern __thread const struct emulate_self *emulate_self;
#define threadIdx (emulate_self->thread)
#define blockIdx (emulate_self->block)
#define blockDim (emulate_self->block_dim)
#define gridDim (emulate_self->grid_dim)

/* line: where in the source. All who meet must have come to the same one. */
void emulate_block_barrier(int line);
void emulate_warp_barrier(uint32_t mask, int line);
/* Every lane's value, once all lanes of the mask have given theirs; valid until the warp's next but one exchange. */
const uint64_t *emulate_exchange(uint32_t mask, uint64_t value, int line);

#define __syncthreads() emulate_block_barrier(__LINE__)
#define __syncwarp(...) emulate_warp_barrier(0xffffffffu, __LINE__)
#define __ballot_sync(mask, is) emulate_ballot((mask), (is), __LINE__)
#define __any_sync(mask, is) (emulate_ballot((mask), (is), __LINE__) != 0)
#define __all_sync(mask, is) (emulate_ballot((mask), !(is), __LINE__) == 0)
#define __shfl_sync(mask, value, lane) emulate_shuffle((mask), (value), (unsigned)(lane) % 32, __LINE__)
#define __shfl_xor_sync(mask, value, flip) emulate_shuffle((mask), (value), emulate_lane() ^ (unsigned)(flip), __LINE__)
#define __shfl_up_sync(mask, value, by) \
    emulate_shuffle((mask), (value), emulate_lane() < (by) ? emulate_lane() : emulate_lane() - (by), __LINE__)
#define __shfl_down_sync(mask, value, by) \
    emulate_shuffle((mask), (value), emulate_lane() + (by) > 31 ? emulate_lane() : emulate_lane() + (by), __LINE__)

static inline unsigned emulate_lane(void)
{
    return emulate_self->thread.x % 32;
}

static inline uint32_t emulate_ballot(uint32_t mask, int is, int line)
{
    const uint64_t *all = emulate_exchange(mask, is != 0, line);
    uint32_t bits = 0;

    for (unsigned i = 0; i < 32; i++)
        bits |= (mask >> i & 1 & (uint32_t)all[i]) << i;
    return bits;
}

template <typename T> static inline T emulate_shuffle(uint32_t mask, T value, unsigned lane, int line)
{
    return (T)emulate_exchange(mask, (uint64_t)value, line)[lane];
}

template <typename T> static inline T __ldg(const T *p)
{
    return *p;
}

static inline int __popc(uint32_t x)
{
    return __builtin_popcount(x);
}

static inline int __popcll(unsigned long long x)
{
    return __builtin_popcountll(x);
}

static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}

static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}

template <typename T> static inline T atomicAdd(T *at, T x)
{
    T was = *at;

    *at = was + x;
    return was;
}

template <typename T> static inline T atomicOr(T *at, T x)
{
    T was = *at;

    *at = was | x;
    return was;
}

#endif
