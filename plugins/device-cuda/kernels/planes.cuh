/* SPDX-License-Identifier: Apache-2.0 */
/* What packing and unpacking have in common: plugins/codec-float's format, for a block of threads. docs/codec-float.md
 * says what the bytes are; the names are those of plugins/codec-float. */
#ifndef CAIRN_DEVICE_CUDA_PLANES_CUH
#define CAIRN_DEVICE_CUDA_PLANES_CUH

#include "bytes.cuh"
#include "plugins/codec-float/choice.h"

#define PACK_WARPS (GPU_PACK_THREADS / WARP)
#define WORD_BYTES 8u /* of a bit of a whole block */
#define BLOCK_ELEMENTS ((uint32_t)BLOCK)
#define COUNT_SIZE 2u /* bytes */

/* What a block of threads has in common while it is at a strip. */
struct strip_work {
    uint8_t bytes[2][STRIP];     /* from level to level */
    uint8_t code[256];           /* of a value, in the level that is at work */
    uint32_t others[PACK_WARPS]; /* bytes without a code, of each warp */
    uint32_t stays[STRIP_BLOCKS / 32];
    struct plane plane[MAX_WIDTH];
    uint32_t bad;
};

DEVICE int is_raw(const struct plane *pl)
{
    return !pl->keep && !pl->sparse && !pl->nlevels;
}

DEVICE int has_codes(const struct plane *pl)
{
    return pl->nlevels && !pl->sparse;
}

DEVICE uint32_t kept_bytes(const struct plane *pl) /* of a block */
{
    return WORD_BYTES * (uint32_t)__popc(pl->keep);
}

DEVICE uint32_t fixed_bytes(const struct plane *pl) /* of a block */
{
    if (is_raw(pl))
        return BLOCK_ELEMENTS;
    return kept_bytes(pl) + (has_codes(pl) ? WORD_BYTES * pl->level[0].bits : 0);
}

DEVICE uint32_t nvalues(const struct level *l)
{
    return (1u << l->bits) - 1;
}

DEVICE uint32_t code_bytes(const struct level *l, uint32_t n)
{
    return l->bits * (n / BLOCK_ELEMENTS * WORD_BYTES + (n % BLOCK_ELEMENTS + 7) / 8);
}

/* Where the words of a strip's blocks are: side by side, or in its groups. */
struct place {
    uint32_t at;     /* of the first block's words, but for `before` */
    uint32_t step;   /* from a group to the next, were all groups whole: so much for each block */
    uint32_t before; /* of each block of the group, what lies before these words in it */
    uint32_t each;   /* bytes of a block's words */
    uint32_t nblocks;
};

DEVICE uint32_t place_of(const struct place *p, uint32_t block)
{
    uint32_t first = block / GROUP_BLOCKS * GROUP_BLOCKS, left = p->nblocks - first;

    return p->at + first * p->step + (left < GROUP_BLOCKS ? left : (uint32_t)GROUP_BLOCKS) * p->before +
           (block - first) * p->each;
}

/* The words of n bytes that lie side by side. */
DEVICE struct place side_by_side(uint32_t at, uint32_t each, uint32_t n)
{
    struct place p = {at, each, 0, each, (n + BLOCK_ELEMENTS - 1) / BLOCK_ELEMENTS};

    return p;
}

/* Bytes of a word of block b, of n bytes. */
DEVICE uint32_t word_bytes(uint32_t n, uint32_t b)
{
    uint32_t left = n - b * BLOCK_ELEMENTS;

    return left < BLOCK_ELEMENTS ? (left + 7) / 8 : WORD_BYTES;
}

/* The blocks of a warp: neighbours, so that what they leave over is in order. */
DEVICE uint32_t first_block(uint32_t nblocks, uint32_t warp)
{
    return nblocks * warp / PACK_WARPS;
}

/* How many bytes without a code the warps before this one have; all: how many there are. */
DEVICE uint32_t others_before(const struct strip_work *w, uint32_t *all)
{
    uint32_t before = 0, sum = 0;

    for (uint32_t i = 0; i < PACK_WARPS; i++) {
        before += i < threadIdx.x / WARP ? w->others[i] : 0;
        sum += w->others[i];
    }
    *all = sum;
    return before;
}

DEVICE uint32_t lanes_before(uint32_t which)
{
    return (uint32_t)__popc(which & ((1u << threadIdx.x % WARP) - 1));
}

/* Which blocks are there, of a sparse plane: how many before this one. */
DEVICE uint32_t stays_before(const struct strip_work *w, uint32_t block)
{
    uint32_t n = (uint32_t)__popc(w->stays[block / 32] & ((1u << block % 32) - 1));

    for (uint32_t i = 0; i < block / 32; i++)
        n += (uint32_t)__popc(w->stays[i]);
    return n;
}

DEVICE uint32_t all_stays(const struct strip_work *w)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < STRIP_BLOCKS / 32; i++)
        n += (uint32_t)__popc(w->stays[i]);
    return n;
}

#endif
