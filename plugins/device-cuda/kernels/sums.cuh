/* SPDX-License-Identifier: Apache-2.0 */
/* cairn_sums: XXH3-128 at the speed of memory.
 *
 * XXH3 takes stripes of 64 bytes into eight accumulators of 64 bits, 16 stripes a block of 1024 bytes, each stripe of a
 * block with a secret of its own; behind each block the accumulators are scrambled. Within a block a stripe only adds,
 * so the sums of all blocks can be had at once; what has to go one after the other are the scrambles: six instructions
 * for 1024 bytes of a part.
 *
 * A block of threads takes a part, 64 KiB at a time. Eight warps add: a warp has eight blocks, a thread two times 16
 * bytes of each, always of the same two stripes, so that its secrets stay in registers; all 16 loads are under way at
 * once. The lanes' sums are added by shuffles, halving what there is to add at each step. The ninth warp scrambles
 * meanwhile what came before.
 */
#include "bytes.cuh"

#define STRIPE 64u
#define SUM_BLOCK 1024u /* plain bytes */
#define LANES 8u        /* accumulators */
#define ADDERS 8u       /* warps */
#define EACH 8u         /* blocks that a warp has at once */
#define TILE_BLOCKS (ADDERS * EACH)
#define SHORT_MOST 240u
#define PRIME32_1 0x9e3779b1ull
#define PRIME32_2 0x85ebca77ull
#define PRIME32_3 0xc2b2ae3dull
#define PRIME64_1 0x9e3779b185ebca87ull
#define PRIME64_2 0xc2b2ae3d27d4eb4full
#define PRIME64_3 0x165667b19e3779f9ull
#define PRIME64_4 0x85ebca77c2b2ae63ull
#define PRIME64_5 0x27d4eb2f165667c5ull
/* Where in the secret, in bytes. */
#define SECRET_SCRAMBLE 128u
#define SECRET_LAST 121u
#define SECRET_LOW 11u
#define SECRET_HIGH 117u

static __constant__ uint64_t sum_secret[24] = {
    0xbe4ba423396cfeb8ull, 0x1cad21f72c81017cull, 0xdb979083e96dd4deull, 0x1f67b3b7a4a44072ull, 0x78e5c0cc4ee679cbull,
    0x2172ffcc7dd05a82ull, 0x8e2443f7744608b8ull, 0x4c263a81e69035e0ull, 0xcb00c391bb52283cull, 0xa32e531b8b65d088ull,
    0x4ef90da297486471ull, 0xd8acdea946ef1938ull, 0x3f349ce33f76faa8ull, 0x1d4f0bc7c7bbdcf9ull, 0x3159b4cd4be0518aull,
    0x647378d9c97e9fc8ull, 0xc3ebd33483acc5eaull, 0xeb6313faffa081c5ull, 0x49daf0b751dd0d17ull, 0x9e68d429265516d3ull,
    0xfca1477d58be162bull, 0xce31d07ad1b8f88full, 0x280416958f3acb45ull, 0x7e404bbbcafbd7afull,
};

static __constant__ uint64_t sum_start[LANES] = {PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3,
                                                 PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1};

DEVICE uint64_t secret_word(unsigned i, uint64_t seed)
{
    return i % 2 ? sum_secret[i] - seed : sum_secret[i] + seed;
}

/* Eight bytes of the secret that comes from the seed; seed 0: of the secret itself. */
DEVICE uint64_t secret_at(unsigned at, uint64_t seed)
{
    uint64_t low = secret_word(at / 8, seed);

    return at % 8 ? low >> 8 * (at % 8) | secret_word(at / 8 + 1, seed) << (64 - 8 * (at % 8)) : low;
}

DEVICE uint64_t fold(uint64_t a, uint64_t b)
{
    return (a * b) ^ __umul64hi(a, b);
}

DEVICE uint64_t avalanche(uint64_t x)
{
    x ^= x >> 37;
    x *= 0x165667919e3779f9ull;
    return x ^ x >> 32;
}

DEVICE uint64_t low_by_high(uint64_t x)
{
    return (uint64_t)(uint32_t)x * (uint32_t)(x >> 32);
}

/* ---- at most 240 bytes: one thread ----------------------------------------------------------- */

DEVICE uint64_t avalanche64(uint64_t x)
{
    x ^= x >> 33;
    x *= PRIME64_2;
    x ^= x >> 29;
    x *= PRIME64_3;
    return x ^ x >> 32;
}

DEVICE uint32_t swap32(uint32_t x)
{
    return x << 24 | (x << 8 & 0xff0000) | (x >> 8 & 0xff00) | x >> 24;
}

DEVICE uint64_t swap64(uint64_t x)
{
    return (uint64_t)swap32((uint32_t)x) << 32 | swap32((uint32_t)(x >> 32));
}

static __device__ struct cairn_device_sum sum_to_3(const uint8_t *p, uint32_t len, uint64_t seed)
{
    struct cairn_device_sum s;
    uint64_t flip_low = secret_at(64, 0) ^ secret_at(72, 0), flip_high = secret_at(80, 0) ^ secret_at(88, 0);

    if (len == 0) {
        s.low = avalanche64(seed ^ flip_low);
        s.high = avalanche64(seed ^ flip_high);
        return s;
    }
    uint32_t low = (uint32_t)p[0] << 16 | (uint32_t)p[len >> 1] << 24 | p[len - 1] | len << 8;
    uint32_t high = swap32(low) << 13 | swap32(low) >> 19;
    flip_low = (uint32_t)secret_at(0, 0) ^ (uint32_t)secret_at(4, 0);
    flip_high = (uint32_t)secret_at(8, 0) ^ (uint32_t)secret_at(12, 0);
    s.low = avalanche64(low ^ (flip_low + seed));
    s.high = avalanche64(high ^ (flip_high - seed));
    return s;
}

static __device__ struct cairn_device_sum sum_to_8(const uint8_t *p, uint32_t len, uint64_t seed)
{
    struct cairn_device_sum s;

    seed ^= (uint64_t)swap32((uint32_t)seed) << 32;
    uint64_t x = load32(p) + ((uint64_t)load32(p + len - 4) << 32);
    x ^= (secret_at(16, 0) ^ secret_at(24, 0)) + seed;
    uint64_t by = PRIME64_1 + ((uint64_t)len << 2);
    s.low = x * by;
    s.high = __umul64hi(x, by) + (s.low << 1);
    s.low ^= s.high >> 3;
    s.low ^= s.low >> 35;
    s.low *= 0x9fb21c651e98df25ull;
    s.low ^= s.low >> 28;
    s.high = avalanche(s.high);
    return s;
}

static __device__ struct cairn_device_sum sum_to_16(const uint8_t *p, uint32_t len, uint64_t seed)
{
    struct cairn_device_sum s;
    uint64_t flip_low = (secret_at(32, 0) ^ secret_at(40, 0)) - seed;
    uint64_t flip_high = (secret_at(48, 0) ^ secret_at(56, 0)) + seed;
    uint64_t low = load64(p), high = load64(p + len - 8);
    uint64_t x = low ^ high ^ flip_low;

    low = x * PRIME64_1 + ((uint64_t)(len - 1) << 54);
    x = __umul64hi(x, PRIME64_1);
    high ^= flip_high;
    high = x + high + (uint64_t)(uint32_t)high * (PRIME32_2 - 1);
    low ^= swap64(high);
    s.low = avalanche(low * PRIME64_2);
    s.high = avalanche(__umul64hi(low, PRIME64_2) + high * PRIME64_2);
    return s;
}

DEVICE uint64_t mix16(const uint8_t *p, unsigned secret, uint64_t seed)
{
    return fold(load64(p) ^ (secret_at(secret, 0) + seed), load64(p + 8) ^ (secret_at(secret + 8, 0) - seed));
}

static __device__ void mix32(struct cairn_device_sum *s, const uint8_t *p, const uint8_t *q, unsigned secret,
                             uint64_t seed)
{
    s->low += mix16(p, secret, seed);
    s->low ^= load64(q) + load64(q + 8);
    s->high += mix16(q, secret + 16, seed);
    s->high ^= load64(p) + load64(p + 8);
}

static __device__ struct cairn_device_sum sum_to_240(const uint8_t *p, uint32_t len, uint64_t seed)
{
    struct cairn_device_sum s, mixed = {len * PRIME64_1, 0};

    if (len <= 128) {
        for (unsigned i = (len - 1) / 32 + 1; i-- > 0;)
            mix32(&mixed, p + 16 * i, p + len - 16 * (i + 1), 32 * i, seed);
    } else {
        for (unsigned i = 0; i < len / 32; i++) {
            if (i == 4) {
                mixed.low = avalanche(mixed.low);
                mixed.high = avalanche(mixed.high);
            }
            mix32(&mixed, p + 32 * i, p + 32 * i + 16, i < 4 ? 32 * i : 3 + 32 * (i - 4), seed);
        }
        if (len / 32 == 4) {
            mixed.low = avalanche(mixed.low);
            mixed.high = avalanche(mixed.high);
        }
        mix32(&mixed, p + len - 16, p + len - 32, 136 - 17 - 16, 0 - seed);
    }
    s.low = avalanche(mixed.low + mixed.high);
    s.high = 0 - avalanche(mixed.low * PRIME64_1 + mixed.high * PRIME64_4 + (len - seed) * PRIME64_2);
    return s;
}

static __device__ struct cairn_device_sum sum_short(const uint8_t *p, uint32_t len, uint64_t seed)
{
    if (len <= 3)
        return sum_to_3(p, len, seed);
    if (len <= 8)
        return sum_to_8(p, len, seed);
    if (len <= 16)
        return sum_to_16(p, len, seed);
    return sum_to_240(p, len, seed);
}

/* ---- more: a block of threads ---------------------------------------------------------------- */

/* Two neighbours of a stripe's eight words: each goes into the other's accumulator, too. */
DEVICE void add_words(struct pair64 *acc, struct pair64 data, struct pair64 key)
{
    acc->a += data.b + low_by_high(data.a ^ key.a);
    acc->b += data.a + low_by_high(data.b ^ key.b);
}

DEVICE struct pair64 from_lane(struct pair64 x, unsigned flip)
{
    x.a = __shfl_xor_sync(WHOLE_WARP, x.a, (int)flip);
    x.b = __shfl_xor_sync(WHOLE_WARP, x.b, (int)flip);
    return x;
}

/* *mine is the one of the two that this lane goes on with: both lanes' sums of it. */
DEVICE void add_half(struct pair64 *mine, struct pair64 other, unsigned flip)
{
    int second = (threadIdx.x & flip) != 0;
    struct pair64 keep = second ? other : *mine, got = from_lane(second ? *mine : other, flip);

    mine->a = keep.a + got.a;
    mine->b = keep.b + got.b;
}

/* The sums of eight blocks at from, or of as many as there are, to eight lines of ret. Lane l has words 2 * (l % 4) and
 * the next of stripes l / 4 and 8 + l / 4. */
template <typename Word>
DEVICE void add_blocks(const uint8_t *from, uint32_t n, const struct pair64 key[2], uint64_t (*ret)[LANES])
{
    unsigned lane = threadIdx.x % WARP;
    struct pair64 data[EACH][2], acc[EACH];

#pragma unroll
    for (unsigned i = 0; i < EACH * 2; i++) { /* all loads are on their way before the first is needed */
        const uint8_t *p = from + i * SUM_BLOCK / 2 + lane * UNIT;
        data[i / 2][i % 2].a = data[i / 2][i % 2].b = 0;
        if (i / 2 < n)
            data[i / 2][i % 2] = load_unit_by<Word>(p);
    }
#pragma unroll
    for (unsigned i = 0; i < EACH; i++) {
        acc[i].a = acc[i].b = 0;
        add_words(&acc[i], data[i][0], key[0]);
        add_words(&acc[i], data[i][1], key[1]);
    }
#pragma unroll
    for (unsigned flip = 16, half = EACH / 2; half > 0; flip /= 2, half /= 2)
#pragma unroll
        for (unsigned i = 0; i < half; i++)
            add_half(&acc[i], acc[i + half], flip);
    store_unit(&ret[lane / 4][lane % 4 * 2], acc[0]); /* the flips that were made are the block's number */
}

/* Lane l has accumulator l % 8. */
DEVICE uint64_t scramble(uint64_t acc, const uint64_t (*sums)[LANES], uint32_t n, uint64_t key)
{
    unsigned lane = threadIdx.x % LANES;

#pragma unroll 8
    for (uint32_t i = 0; i < n; i++) {
        acc += sums[i][lane];
        acc = (acc ^ acc >> 47 ^ key) * PRIME32_1;
    }
    return acc;
}

DEVICE uint64_t add_stripe(const uint8_t *p, unsigned secret, uint64_t seed)
{
    unsigned lane = threadIdx.x % LANES;
    uint64_t data = load64(p + 8 * lane);

    return __shfl_xor_sync(WHOLE_WARP, data, 1) + low_by_high(data ^ secret_at(secret + 8 * lane, seed));
}

/* The stripes behind the last whole block, and the last 64 bytes. A quarter of the warp takes each fourth stripe. */
DEVICE uint64_t add_end(uint64_t acc, const uint8_t *from, uint32_t len, uint64_t seed)
{
    uint32_t n = (len - 1) % SUM_BLOCK / STRIPE, at = len - 1 - (len - 1) % SUM_BLOCK;
    unsigned quarter = threadIdx.x % WARP / LANES;
    uint64_t add = 0;

    for (unsigned i = 0; i < n; i += WARP / LANES) {
        unsigned s = i + quarter; /* each lane must come along; what is behind the last counts for nothing */
        uint64_t x = add_stripe(from + at + (s < n ? s : i) * STRIPE, 8 * (s < n ? s : i), seed);
        add += s < n ? x : 0;
    }
    add += __shfl_xor_sync(WHOLE_WARP, add, 8);
    add += __shfl_xor_sync(WHOLE_WARP, add, 16);
    return acc + add + add_stripe(from + len - STRIPE, SECRET_LAST, seed);
}

/* Lanes with an even number make the lower half, the others the higher one. */
DEVICE void merge(uint64_t acc, uint32_t len, uint64_t seed, struct cairn_device_sum *ret)
{
    unsigned lane = threadIdx.x % WARP, high = lane % 2,
             secret = (high ? SECRET_HIGH : SECRET_LOW) + lane % LANES / 2 * 16;
    uint64_t other = __shfl_xor_sync(WHOLE_WARP, acc, 1);
    uint64_t a = (high ? other : acc) ^ secret_at(secret, seed), b = (high ? acc : other) ^ secret_at(secret + 8, seed);
    uint64_t x = fold(a, b);

    x += __shfl_xor_sync(WHOLE_WARP, x, 2);
    x += __shfl_xor_sync(WHOLE_WARP, x, 4);
    if (lane == 0)
        ret->low = avalanche(x + len * PRIME64_1);
    if (lane == 1)
        ret->high = avalanche(x + ~(len * PRIME64_2));
}

/* sums: of the tile that is being added, and of the one before. */
template <typename Word>
static __device__ void sum_long(const uint8_t *from, uint32_t len, uint64_t seed, uint64_t (*sums)[TILE_BLOCKS][LANES],
                                struct cairn_device_sum *ret)
{
    uint32_t nblocks = (len - 1) / SUM_BLOCK, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    uint64_t acc = sum_start[lane % LANES], scramble_key = secret_at(SECRET_SCRAMBLE + 8 * (lane % LANES), seed);
    struct pair64 key[2];

    for (unsigned i = 0; i < 2; i++) {
        key[i].a = secret_at(8 * (lane / 4 + 8 * i) + 16 * (lane % 4), seed);
        key[i].b = secret_at(8 * (lane / 4 + 8 * i) + 16 * (lane % 4) + 8, seed);
    }
    for (uint32_t t = 0; t < nblocks + TILE_BLOCKS; t += TILE_BLOCKS) {
        uint32_t at = t + warp * EACH, which = t / TILE_BLOCKS % 2;
        if (warp < ADDERS && at < nblocks)
            add_blocks<Word>(from + (uint64_t)at * SUM_BLOCK, nblocks - at, key, sums[which] + warp * EACH);
        if (warp == ADDERS && t > 0) {
            uint32_t left = nblocks - (t - TILE_BLOCKS);
            acc = scramble(acc, sums[!which], left < TILE_BLOCKS ? left : TILE_BLOCKS, scramble_key);
        }
        __syncthreads(); /* what was added is there to be scrambled, what was scrambled can be added over */
    }
    if (warp == ADDERS)
        merge(add_end(acc, from, len, seed), len, seed, ret);
}

extern "C" __global__ void __launch_bounds__(GPU_SUMS_THREADS, 2) cairn_sums(const struct gpu_sums arg)
{
    alignas(16) __shared__ uint64_t sums[2][TILE_BLOCKS][LANES];

    if (blockIdx.x >= arg.nparts)
        return;
    struct gpu_part part = arg.parts[blockIdx.x];
    const uint8_t *from = (const uint8_t *)arg.base[part.source] + part.offset;
    struct cairn_device_sum *ret = &arg.sums[part.index];

    if (part.len > SHORT_MOST)
        BY_ALIGNMENT(from, sum_long, from, part.len, arg.seed, sums, ret);
    else if (threadIdx.x == 0)
        *ret = sum_short(from, part.len, arg.seed);
}
