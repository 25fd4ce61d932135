/* SPDX-License-Identifier: Apache-2.0 */
/* What to do with each plane of a part, from a sample of it: plugins/codec-float/plan.c by a block of threads. Every
 * thread comes to the same decisions from what they have in common. */
#include "planes.cuh"

#define VALUES 256u /* and threads: each has one */

struct plan_work {
    uint32_t count[VALUES];   /* of the plane's sample */
    uint32_t left[VALUES];    /* of it without the bits that are kept, or the blocks that are left out */
    uint32_t ranked[RANKS];   /* the counts of value[] */
    uint32_t rest[RANKS + 1]; /* rest[i]: how many bytes are none of the first i */
    uint32_t cost[2][RANKS + 1];
    uint8_t value[RANKS];
    uint8_t bits[MAX_LEVELS + 1][RANKS + 1]; /* of the next level; 0: none */
    struct plane tried, sparse;
    uint32_t squares;
};

static __constant__ uint8_t kept_masks[] = {KEPT_MASKS};

/* Byte `plane` of element e, rotated left by one bit. */
DEVICE uint32_t plane_byte(const uint8_t *src, uint64_t e, uint32_t width, uint32_t plane)
{
    const uint8_t *p = src + e * width;

    return (uint32_t)(p[plane] << 1 | p[plane ? plane - 1 : width - 1] >> 7) & 255;
}

DEVICE void take_sample(uint8_t *sample, const uint8_t *src, uint32_t nblocks, uint32_t n, uint32_t width,
                        uint32_t plane)
{
    __syncthreads(); /* who is still at the one before */
    for (uint32_t i = threadIdx.x; i < n * BLOCK_ELEMENTS; i += GPU_PACK_THREADS) {
        uint64_t block = (uint64_t)nblocks * (i / BLOCK_ELEMENTS) / n;
        sample[i] = (uint8_t)plane_byte(src, block * BLOCK_ELEMENTS + i % BLOCK_ELEMENTS, width, plane);
    }
    __syncthreads();
}

DEVICE void count_blocks(const uint8_t *sample, uint32_t nblocks, uint32_t step, uint32_t *count)
{
    count[threadIdx.x] = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < nblocks * BLOCK_ELEMENTS; i += GPU_PACK_THREADS)
        if (i / BLOCK_ELEMENTS % step == 0)
            atomicAdd(&count[sample[i]], 1u);
    __syncthreads();
}

DEVICE int is_even(struct plan_work *p, const uint8_t *sample, uint32_t nblocks)
{
    uint32_t n = (nblocks + EVEN_OF - 1) / EVEN_OF * BLOCK_ELEMENTS;

    count_blocks(sample, nblocks, EVEN_OF, p->count);
    if (threadIdx.x == 0)
        p->squares = 0;
    __syncthreads();
    atomicAdd(&p->squares, p->count[threadIdx.x] * p->count[threadIdx.x]);
    __syncthreads();
    return EVEN(p->squares, n);
}

/* By count, then by value. A thread finds the place of its value among all. */
DEVICE void rank_left(struct plan_work *p)
{
    uint32_t mine = p->left[threadIdx.x] << 8 | (255 - threadIdx.x), place = 0, all = 0;

    for (uint32_t v = 0; v < VALUES; v++) {
        place += (p->left[v] << 8 | (255 - v)) > mine;
        all += p->left[v];
    }
    if (place < RANKS) {
        p->value[place] = (uint8_t)threadIdx.x;
        p->ranked[place] = p->left[threadIdx.x];
    }
    __syncthreads();
    for (uint32_t i = 0; i < threadIdx.x && threadIdx.x <= RANKS; i++)
        all -= p->ranked[i];
    if (threadIdx.x <= RANKS)
        p->rest[threadIdx.x] = all;
    __syncthreads();
}

/* Behind it nothing is left. rest only falls. */
DEVICE uint32_t last_rank(const uint32_t *rest)
{
    uint32_t low = 0, high = RANKS;

    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (rest[middle])
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

DEVICE uint32_t after(uint32_t i, uint32_t bits, uint32_t last)
{
    i += (1u << bits) - 1;
    return i < last ? i : last;
}

/* The cheapest next level behind the first i values, by what those behind it cost. */
DEVICE void choose_bits(struct plan_work *p, uint32_t l, uint32_t i, uint32_t last)
{
    uint32_t best = 8 * p->rest[i], bits = 0;

    for (uint32_t b = 1; b <= MAX_BITS && i < LADDER_VALUES && p->rest[i]; b++) {
        uint32_t c = b * p->rest[i] + LEVEL_COST + p->cost[(l - 1) % 2][after(i, b, last)];
        if (c < best) {
            best = c;
            bits = b;
        }
    }
    p->cost[l % 2][i] = best;
    p->bits[l][i] = (uint8_t)bits;
}

/* The cheapest levels. Returns the bits of all, the rest's, too. */
DEVICE uint32_t best_ladder(struct plan_work *p, uint32_t nlevels, struct plane *ret)
{
    uint32_t last = last_rank(p->rest), i = threadIdx.x;

    if (i <= last)
        p->cost[0][i] = 8 * p->rest[i];
    __syncthreads();
    for (uint32_t l = 1; l <= nlevels; l++) {
        if (i <= last)
            choose_bits(p, l, i, last);
        __syncthreads();
    }
    if (i == 0) {
        uint32_t at = 0;
        ret->nlevels = 0;
        for (uint32_t l = nlevels; l > 0 && p->bits[l][at]; l--) {
            struct level *to = &ret->level[ret->nlevels++];
            to->bits = p->bits[l][at];
            for (uint32_t k = 0; k < nvalues(to); k++)
                to->value[k] = p->value[at + k];
            at = after(at, to->bits, last);
        }
    }
    uint32_t cost = p->cost[nlevels % 2][0];
    __syncthreads(); /* the ladder is there, and its costs have been read */
    return cost;
}

/* Blocks of one value cost a bit each; the ladder is for the others. */
DEVICE uint32_t sparse_cost(struct plan_work *p, const uint8_t *sample, uint32_t nblocks, uint32_t nlevels)
{
    uint32_t lane = threadIdx.x % WARP, other = (uint8_t)~p->sparse.keep, base = p->sparse.base;

    p->left[threadIdx.x] = 0;
    __syncthreads();
    for (uint32_t b = threadIdx.x / WARP; b < nblocks; b += PACK_WARPS) {
        uint32_t x = sample[b * BLOCK_ELEMENTS + lane], y = sample[b * BLOCK_ELEMENTS + WARP + lane];
        if (!__any_sync(WHOLE_WARP, (((x ^ base) | (y ^ base)) & other) != 0))
            continue;
        atomicAdd(&p->left[x & other], 1u);
        atomicAdd(&p->left[y & other], 1u);
    }
    __syncthreads();
    rank_left(p);
    return nblocks + best_ladder(p, nlevels, &p->sparse);
}

/* With these bits kept: the better way is in tried. */
DEVICE uint32_t plane_cost(struct plan_work *p, const uint8_t *sample, uint32_t nblocks, uint32_t mask,
                           uint32_t nlevels)
{
    uint32_t n = nblocks * BLOCK_ELEMENTS;

    p->left[threadIdx.x] = 0;
    __syncthreads();
    atomicAdd(&p->left[threadIdx.x & ~mask], p->count[threadIdx.x]);
    __syncthreads();
    rank_left(p);
    if (threadIdx.x == 0) {
        p->tried.keep = p->sparse.keep = (uint8_t)mask;
        p->tried.sparse = p->tried.base = 0;
        p->sparse.sparse = 1;
        p->sparse.base = p->value[0];
    }
    uint32_t cost = best_ladder(p, nlevels, &p->tried);
    if (n - p->rest[1] > n / 2) {
        uint32_t c = sparse_cost(p, sample, nblocks, nlevels);
        if (c < cost) {
            cost = c;
            if (threadIdx.x == 0)
                p->tried = p->sparse;
        }
    }
    __syncthreads();
    return (uint32_t)__popc(mask) * n + cost;
}

/* pl: all 0. */
DEVICE void plan_plane(struct plan_work *p, struct plane *pl, const uint8_t *sample, uint32_t nblocks, uint32_t nlevels)
{
    uint32_t n = nblocks * BLOCK_ELEMENTS, best = WORTH(n);

    if (is_even(p, sample, nblocks))
        return;
    count_blocks(sample, nblocks, 1, p->count);
    uint32_t cost = plane_cost(p, sample, nblocks, 0, nlevels);
    for (uint32_t i = 0, keep = 0;; i++) {
        if (cost < best) {
            best = cost;
            keep = p->tried.keep;
            if (threadIdx.x == 0)
                *pl = p->tried;
            __syncthreads();
        }
        if (i == sizeof kept_masks || best < PEAKED(n) || keep == kept_masks[0])
            break;
        cost = plane_cost(p, sample, nblocks, kept_masks[i], nlevels);
    }
}

/* bytes: room for a sample. */
DEVICE void make_plan(struct plan_work *p, struct plane *planes, uint8_t *bytes, const uint8_t *src, uint32_t nblocks,
                      uint32_t width, uint32_t dense)
{
    uint32_t n = nblocks < SAMPLES ? nblocks : (uint32_t)SAMPLES;

    for (uint32_t i = threadIdx.x; i < sizeof *planes * MAX_WIDTH; i += GPU_PACK_THREADS)
        ((uint8_t *)planes)[i] = 0;
    for (uint32_t i = 0; i < width; i++) {
        take_sample(bytes, src, nblocks, n, width, i);
        plan_plane(p, &planes[i], bytes, n, dense ? MAX_LEVELS : FLOAT_LEVELS);
    }
    __syncthreads();
}
