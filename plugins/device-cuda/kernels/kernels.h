/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels' names, arguments and launch shapes: for whoever launches them, and for the kernels themselves.
 *
 * Each takes one struct by value. A kernel is launched with GPU_..._THREADS threads a block in x, as many blocks in x
 * as its gpu_..._blocks() says (0: there is nothing to do, and a grid of 0 blocks is an error: do not launch), no
 * dynamic shared memory. Every pointer is one that the device can follow: its own memory, or pinned and mapped host
 * memory. Tables that are read (pieces, loops, parts, base, held, page, runs) are best copied to the device's memory
 * first: a read across the bus takes a microsecond and more, and kernels make chains of them.
 *
 * Where bytes are is written as base[source] + offset. base is a table of addresses, made anew for every save: those of
 * the slices, which change from save to save, and behind them whatever else is read from, like blocks that were
 * gathered before. All other tables are of the layout and stay as they are.
 *
 * One block with a struct that is all 0 does nothing: a first launch, by which the driver loads a kernel's code before
 * there is other work (loading it later may wait for the whole device).
 *
 * Only what is said here is read or written: not a byte behind a piece, a part or a block, wherever they begin.
 */
#ifndef CAIRN_DEVICE_CUDA_KERNELS_H
#define CAIRN_DEVICE_CUDA_KERNELS_H

#include <cairn/plugin.h>

#include <stdint.h>

#define GPU_GATHER "cairn_gather"
#define GPU_SCATTER "cairn_scatter"
#define GPU_SUMS "cairn_sums"
#define GPU_PUT "cairn_put"
#define GPU_PACK "cairn_pack"
#define GPU_UNPACK "cairn_unpack"

static inline uint32_t gpu_tiles(uint64_t bytes, uint64_t tile)
{
    return (uint32_t)((bytes + tile - 1) / tile);
}

/* ---- cairn_gather: boxes of tensors into a block, dense -------------------------------------- */

struct gpu_loop {
    uint64_t count;
    int64_t stride; /* bytes between neighbours in the source; any */
};

/* Bytes [first, first + len) of a box's dense, row-major bytes. The box: runs of bytes that lie side by side in the
 * source, within nloops loops. Dense inner dimensions belong into the run, neighbouring loops that step alike into one;
 * one that is not merged costs time only. A dense box is one run without loops. */
struct gpu_piece {
    uint64_t to;     /* in the block. Pieces are ordered by it and do not overlap */
    uint64_t len;    /* at least 1 */
    uint64_t first;  /* where in the box's dense bytes */
    uint64_t run;    /* bytes; at least 1 */
    uint64_t offset; /* of the box's first run from base[source] */
    uint32_t source;
    uint32_t loop; /* loops[loop] is its outermost */
    uint32_t nloops;
    uint32_t pad;
};

/* What no piece covers of the block's len bytes becomes 0. */
struct gpu_gather {
    const struct gpu_piece *pieces; /* of this block */
    const struct gpu_loop *loops;
    const void *const *base;
    void *block;  /* aligned to 16 */
    uint64_t len; /* of the block; all pieces end before or at it */
    uint32_t npieces;
    uint32_t pad;
};
#define GPU_GATHER_THREADS 256
#define GPU_GATHER_TILE 16384 /* bytes of the block that one block of threads makes */

static inline uint32_t gpu_gather_blocks(uint64_t len)
{
    return gpu_tiles(len, GPU_GATHER_TILE);
}

/* ---- cairn_scatter: runs of dense bytes to where they belong --------------------------------- */

/* As cairn_device_run: count elements of elem bytes each, side by side at from, stride bytes apart at to. */
struct gpu_run {
    const void *from;
    void *to;
    uint64_t count; /* at least 1 */
    int64_t stride; /* any; not looked at when count is 1 */
    uint32_t elem;  /* at least 1 */
    uint32_t tile;  /* tiles of all runs before it, gpu_run_tiles() each */
};
struct gpu_scatter {
    const struct gpu_run *runs; /* no two of one launch write the same byte */
    uint32_t nruns;
    uint32_t ntiles; /* of all runs */
};
#define GPU_SCATTER_THREADS 256
#define GPU_SCATTER_TILE 2048 /* bytes that a warp moves */

static inline uint32_t gpu_run_tiles(uint64_t count, uint32_t elem)
{
    return gpu_tiles(count * elem, GPU_SCATTER_TILE);
}

static inline uint32_t gpu_scatter_blocks(uint32_t ntiles)
{
    return (ntiles + GPU_SCATTER_THREADS / 32 - 1) / (GPU_SCATTER_THREADS / 32);
}

/* ---- parts: cairn_sums, cairn_put ------------------------------------------------------------ */

/* A launch takes any parts, in any order: what it reads and writes of a part's is at [index] of the other tables. */
struct gpu_part {
    uint64_t offset; /* from base[source]; fast where base[source] + offset is aligned to 16 */
    uint32_t source;
    uint32_t len;   /* bytes; may be 0 */
    uint32_t index; /* of the part in sums, page, held, ret_... */
    uint32_t pad;
};

/* XXH3-128 with the seed of each part's bytes, as XXH3_128bits_withSeed. */
struct gpu_sums {
    const struct gpu_part *parts;
    const void *const *base;
    struct cairn_device_sum *sums; /* [index] is written */
    uint64_t seed;
    uint32_t nparts;
    uint32_t pad;
};
#define GPU_SUMS_THREADS 288

static inline uint32_t gpu_sums_blocks(uint32_t nparts)
{
    return nparts;
}

/* Copies the bytes of each part to its page, but of those whose sum is that of held. */
struct gpu_put {
    const struct gpu_part *parts;
    const void *const *base;
    void *const *page;                   /* aligned to 16; part len bytes are written */
    const struct cairn_device_sum *sums; /* what cairn_sums has written; NULL: all parts are copied */
    const struct cairn_device_sum *held; /* both 0: nobody knows; NULL: all parts are copied */
    struct cairn_device_sum *ret_sums;   /* sums, where the host sees them; NULL: not wanted. Not sums itself */
    uint8_t *ret_skipped;                /* 1: was not copied, 0: was; NULL: not wanted */
    uint32_t nparts;
    uint32_t pad;
};
#define GPU_PUT_THREADS 256
#define GPU_PUT_BLOCKS 4 /* for each part */

static inline uint32_t gpu_put_blocks(uint32_t nparts)
{
    return nparts * GPU_PUT_BLOCKS;
}

/* ---- cairn_pack, cairn_unpack: codec-float --------------------------------------------------- */

/* What plugins/codec-float makes of a part of one dtype, byte for byte.
 *
 * With page NULL each part stays in out, at its own place, with its own room.
 *
 * With page, as saves launch it, each goes on to its page (pinned and mapped): the encoded bytes, or the plain ones
 * where they do not fit into GPU_PACK_ROOM(len). Each block of threads has a slot of out to itself and takes one part
 * after the other, so that out does not have to hold all of them: it may be launched with as many blocks as out has
 * slots.
 */
struct gpu_pack {
    const struct gpu_part *parts; /* of at most 16 MiB */
    const void *const *base;
    const uint8_t *width; /* [index]: of an element: 1, 2, 4 or 8; 0: not coded */
    const uint64_t *to;   /* [index]: in out; with page not looked at */
    const uint32_t *room; /* [index]: bytes at to; with page not looked at */
    void *out;            /* with page aligned to 16 */
    uint32_t *ret_len;    /* [index]: encoded bytes; 0: they do not fit, or it is not coded */
    uint32_t dense;       /* 0: codec-float, 1: codec-dense */
    uint32_t nparts;
    void *const *page; /* [index]: aligned to 16. NULL: nothing goes on */
    uint64_t slot;     /* bytes: a multiple of 16, at least GPU_PACK_ROOM of the longest part */
};
/* Less than a twentieth saved is not worth a decode: as daemon/node/encode.c has it. */
#define GPU_PACK_ROOM(len_) ((uint32_t)((uint64_t)(len_)*19 / 20))
#define GPU_PACK_THREADS 256

static inline uint32_t gpu_pack_blocks(uint32_t nparts)
{
    return nparts;
}

/* The way back. Restores do not launch it: the daemon gives them plain bytes. Tests and bench/gpu_kernels.c do, to see
 * that what was packed is all there.
 *
 * base[source] + offset and len are those of the encoded bytes. They are not trusted. */
struct gpu_unpack {
    const struct gpu_part *parts;
    const void *const *base;
    const uint8_t *width;  /* [index] */
    const uint64_t *to;    /* [index]: in out */
    const uint32_t *plain; /* [index]: bytes at to, all of which are written */
    void *out;
    uint32_t *ret_bad; /* [index]: 0: all is well; 1: these are no encoded bytes of that many, and what is at to is not
                          defined */
    uint32_t nparts;
    uint32_t pad;
};
#define GPU_UNPACK_THREADS 256

static inline uint32_t gpu_unpack_blocks(uint32_t nparts)
{
    return nparts;
}

#endif
