/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes at any address, and a warp's search: what several kernels need. */
#ifndef CAIRN_DEVICE_CUDA_BYTES_CUH
#define CAIRN_DEVICE_CUDA_BYTES_CUH

#include <stddef.h>
#include <stdint.h>

#define WARP 32u
#define WHOLE_WARP 0xffffffffu
#define UNIT 16u /* bytes of the widest access */
#define DEVICE static __device__ __forceinline__

struct alignas(16) pair64 {
    uint64_t a, b; /* bytes 0 to 7 and 8 to 15 */
};

DEVICE uint64_t address_of(const void *p)
{
    return (uint64_t)p;
}

/* Sixteen bytes that are aligned, and that this kernel does not write: one access, to memory that is not shared, which
 * the compiler cannot know of an address that comes from a table. */
DEVICE struct pair64 load_unit(const uint8_t *p)
{
    ulonglong2 x = __ldg((const ulonglong2 *)p);
    struct pair64 unit = {x.x, x.y};

    return unit;
}

DEVICE void store_unit(void *p, struct pair64 unit)
{
    ulonglong2 x = {unit.a, unit.b};

    *(ulonglong2 *)p = x;
}

/* The bytes one after the other in words of this type. */
template <typename T> DEVICE uint64_t load64_by(const uint8_t *p)
{
    uint64_t x = 0;

#pragma unroll
    for (unsigned i = 0; i < 8; i += (unsigned)sizeof(T))
        x |= (uint64_t) * (const T *)(p + i) << 8 * i;
    return x;
}

/* Eight bytes that are aligned to nothing. Not inlined: it is called from many places that are in no hurry. */
static __device__ __noinline__ uint64_t load64(const uint8_t *p)
{
    uint64_t at = address_of(p);

    if (at % 8 == 0)
        return *(const uint64_t *)p;
    if (at % 4 == 0)
        return load64_by<uint32_t>(p);
    if (at % 2 == 0)
        return load64_by<uint16_t>(p);
    return load64_by<uint8_t>(p);
}

DEVICE uint32_t load32(const uint8_t *p)
{
    uint32_t x = 0;

    for (unsigned i = 0; i < 4; i++)
        x |= (uint32_t)p[i] << 8 * i;
    return x;
}

/* Sixteen bytes, in accesses as wide as Word: what the address is a multiple of. */
template <typename Word> DEVICE struct pair64 load_unit_by(const uint8_t *p)
{
    struct pair64 x = {load64_by<Word>(p), load64_by<Word>(p + 8)};

    return x;
}

template <> __device__ __forceinline__ struct pair64 load_unit_by<struct pair64>(const uint8_t *p) {
    return load_unit(p);
}

/* CALL<Word>(...) with the widest of three Words for the address: others are not worth their code. */
#define BY_ALIGNMENT(address, call, ...)       \
    do {                                       \
        if (address_of(address) % UNIT == 0)   \
            call<struct pair64>(__VA_ARGS__);  \
        else if (address_of(address) % 4 == 0) \
            call<uint32_t>(__VA_ARGS__);       \
        else                                   \
            call<uint8_t>(__VA_ARGS__);        \
    } while (0)

DEVICE struct pair64
load128(const uint8_t *p)
{
    struct pair64 x;

    if (address_of(p) % UNIT == 0)
        return load_unit(p);
    x.a = load64(p);
    x.b = load64(p + 8);
    return x;
}

/* n of them, at most 8; the others are 0. */
DEVICE uint64_t load_some(const uint8_t *p, unsigned n)
{
    uint64_t at = address_of(p), x = 0;

    if (n == 8)
        return load64(p);
    if (n == 4 && at % 4 == 0)
        return *(const uint32_t *)p;
    if (n == 2 && at % 2 == 0)
        return *(const uint16_t *)p;
    for (unsigned i = 0; i < n; i++)
        x |= (uint64_t)p[i] << 8 * i;
    return x;
}

/* n bytes, at most 16. to is aligned to 16 when all are stored. */
DEVICE void store_some(uint8_t *to, struct pair64 x, unsigned n)
{
    if (n == UNIT) {
        store_unit(to, x);
        return;
    }
    for (unsigned i = 0; i < n; i++)
        to[i] = (uint8_t)((i < 8 ? x.a : x.b) >> 8 * (i % 8));
}

/* Division of 64 bits takes about a hundred instructions, of 32 about twenty. */
DEVICE uint64_t divide(uint64_t x, uint64_t by, uint64_t *ret_rest)
{
    if ((x | by) >> 32 == 0) {
        uint32_t q = (uint32_t)x / (uint32_t)by;
        *ret_rest = (uint32_t)x - q * (uint32_t)by;
        return q;
    }
    uint64_t q = x / by;
    *ret_rest = x - q * by;
    return q;
}

/* How many of n things, in the order of their keys, have a key of at most `at`. The whole warp looks, at 32 things at
 * once: 10,000 take three reads one after the other. key(i) is asked for i < n only. */
template <typename Key> DEVICE uint32_t count_up_to(uint32_t n, uint64_t at, Key key)
{
    uint32_t lane = threadIdx.x % WARP, low = 0;

    while (n > 0) { /* all before low are; none from low + n on is */
        uint32_t step = (n + WARP - 1) / WARP;
        uint64_t last = (uint64_t)(lane + 1) * step - 1; /* of this lane's share */
        int is = last < n && key(low + (uint32_t)last) <= at;
        uint32_t shares = (uint32_t)__popc(__ballot_sync(WHOLE_WARP, is));
        low += shares * step;
        n -= shares * step;
        if (n >= step) /* the next share is whole, and its last is not */
            n = step - 1;
    }
    return low;
}

#endif
