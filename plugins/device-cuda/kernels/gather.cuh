/* SPDX-License-Identifier: Apache-2.0 */
/* cairn_gather: boxes of tensors into a block.
 *
 * A warp makes 2 KiB of the block, wherever they come from: 10,000 scalars and one tensor of 1 GiB are split alike. It
 * searches for its first and last piece; where that is one dense piece it copies, else each lane finds the piece of its
 * 16 bytes and puts them together. So whatever there is, the block is written in whole lines.
 */
#include "bytes.cuh"

#define GATHER_WARP (GPU_GATHER_TILE / (GPU_GATHER_THREADS / WARP)) /* bytes that a warp makes */
#define GATHER_UNITS (GATHER_WARP / (WARP * UNIT))                  /* units that a lane makes */

DEVICE const uint8_t *piece_base(const struct gpu_gather *g, const struct gpu_piece *p)
{
    return (const uint8_t *)g->base[p->source] + p->offset;
}

/* Where byte x of the box's dense bytes is, and how many lie side by side from there. */
DEVICE const uint8_t *piece_byte(const struct gpu_gather *g, const struct gpu_piece *p, uint64_t x, uint64_t *ret_n)
{
    const uint8_t *at = piece_base(g, p);
    uint64_t rest, index;

    if (p->nloops == 0) {
        *ret_n = p->run - x;
        return at + x;
    }
    x = divide(x, p->run, &rest);
    *ret_n = p->run - rest;
    at += rest;
    for (uint32_t i = p->nloops; i-- > 0;) {
        struct gpu_loop l = g->loops[p->loop + i];
        x = divide(x, l.count, &index);
        at += index * (uint64_t)l.stride; /* as unsigned: the same bits for negative ones */
    }
    return at;
}

DEVICE void insert(struct pair64 *unit, unsigned at, uint64_t bytes)
{
    if (at < 8)
        unit->a |= bytes << 8 * at;
    else
        unit->b |= bytes << 8 * (at - 8);
    if (at > 0 && at < 8)
        unit->b |= bytes >> (64 - 8 * at);
}

/* How many of the bytes from `at` on, at most n, piece i has; 0: it ends before, *ret_gap are before the next one. */
DEVICE unsigned piece_has(const struct gpu_gather *g, uint32_t i, uint64_t at, unsigned n, unsigned *ret_gap)
{
    uint64_t next = i + 1 < g->npieces ? g->pieces[i + 1].to : g->len;

    *ret_gap = next - at < n ? (unsigned)(next - at) : n;
    if (i == UINT32_MAX) /* before the first */
        return 0;
    uint64_t end = g->pieces[i].to + g->pieces[i].len;
    return end <= at ? 0 : end - at < n ? (unsigned)(end - at) : n;
}

/* n bytes of the block from `at` on, of piece i and those that follow; i may be before the first one. */
static __device__ struct pair64 gather_unit(const struct gpu_gather *g, uint32_t i, uint64_t at, unsigned n)
{
    struct pair64 unit = {0, 0};
    unsigned gap;

    for (unsigned done = 0; done < n;) {
        while (i + 1 < g->npieces && g->pieces[i + 1].to <= at + done)
            i++;
        unsigned has = piece_has(g, i, at + done, n - done, &gap);
        if (has == 0) {
            done += gap;
            continue;
        }
        const struct gpu_piece *p = &g->pieces[i];
        uint64_t side;
        const uint8_t *from = piece_byte(g, p, p->first + (at + done - p->to), &side);
        if (has == UNIT && side >= UNIT)
            return load128(from);
        unsigned take = side < has ? (unsigned)side : has;
        take = take < 8 ? take : 8;
        insert(&unit, done, load_some(from, take));
        done += take;
    }
    return unit;
}

/* The piece of the 16 bytes at `at`: one of [first, last], where first may be one before the first of all. */
DEVICE uint32_t piece_of(const struct gpu_gather *g, uint32_t first, uint32_t last, uint64_t at)
{
    while (first != last) {
        uint32_t middle = first + (last - first + 1) / 2;
        if (g->pieces[middle].to <= at)
            first = middle;
        else
            last = middle - 1;
    }
    return first;
}

/* A tile that is a part of one dense, aligned piece: all loads are on their way before the first store. */
DEVICE void copy_tile(const uint8_t *from, uint8_t *to)
{
    unsigned at = threadIdx.x % WARP * UNIT;
    struct pair64 unit[GATHER_UNITS];

#pragma unroll
    for (unsigned i = 0; i < GATHER_UNITS; i++)
        unit[i] = load_unit(from + at + i * WARP * UNIT);
#pragma unroll
    for (unsigned i = 0; i < GATHER_UNITS; i++)
        store_unit(to + at + i * WARP * UNIT, unit[i]);
}

/* Whether piece i, alone, has the whole tile dense: where. NULL: no. */
DEVICE const uint8_t *dense_tile(const struct gpu_gather *g, uint32_t i, uint64_t begin, uint64_t end)
{
    if (i == UINT32_MAX)
        return NULL;
    const struct gpu_piece *p = &g->pieces[i];
    if (p->nloops > 0 || end - begin < GATHER_WARP || p->to + p->len < end)
        return NULL;
    const uint8_t *from = piece_base(g, p) + p->first + (begin - p->to);
    return address_of(from) % UNIT == 0 ? from : NULL;
}

extern "C" __global__ void __launch_bounds__(GPU_GATHER_THREADS) cairn_gather(const struct gpu_gather g)
{
    uint64_t begin = (uint64_t)blockIdx.x * GPU_GATHER_TILE + threadIdx.x / WARP * GATHER_WARP;
    uint64_t end = begin + GATHER_WARP < g.len ? begin + GATHER_WARP : g.len;
    auto key = [&](uint32_t i) { return g.pieces[i].to; };
    uint8_t *block = (uint8_t *)g.block;

    if (begin >= g.len)
        return;
    uint32_t first = count_up_to(g.npieces, begin, key) - 1;
    uint32_t last = count_up_to(g.npieces, end - 1, key) - 1;
    const uint8_t *from = first == last ? dense_tile(&g, first, begin, end) : NULL;
    if (from) {
        copy_tile(from, block + begin);
        return;
    }
    for (uint64_t at = begin + threadIdx.x % WARP * UNIT; at < end; at += WARP * UNIT) {
        unsigned n = end - at < UNIT ? (unsigned)(end - at) : UNIT;
        store_some(block + at, gather_unit(&g, piece_of(&g, first, last, at), at, n), n);
    }
}
