/* SPDX-License-Identifier: Apache-2.0 */
/* The bytes of an encoded part; docs/codec-float.md is the specification.
 *
 *     header 16 | width plane descriptors of 4 | tail | fixed regions of planes 0 .. width-1 | packed stream | codes
 *
 * An element is a little-endian integer of width bytes, rotated left by one bit: the exponent of a float then fills its
 * highest byte and the sign is its lowest bit. Byte i of all elements is plane i. Elements come in blocks of 64; what
 * is left behind the last whole block is the tail, as it is.
 */
#ifndef CAIRN_CODEC_FLOAT_FORMAT_H
#define CAIRN_CODEC_FLOAT_FORMAT_H

#include <stddef.h>
#include <stdint.h>

#define FORMAT_VERSION 1
#define FORMAT_HEADER ((size_t)16)
#define FORMAT_DESCRIPTOR ((size_t)4)
#define BLOCK 64 /* elements */
#define MAX_WIDTH 8
#define MAX_PACK 7                  /* bits of a packed value */
#define PACKED_MOST 128             /* bytes that one block of one plane can take in the stream, and some */
#define PART_MOST ((size_t)1 << 24) /* bytes of a part that this codec takes */

enum plane_mode {
    PLANE_RAW = 0,    /* fixed region: its bytes */
    PLANE_PACKED = 1, /* stream: bits of the value less base, escapes behind them */
    PLANE_SPARSE = 2, /* fixed region: a bit for each block; stream: as packed, only of blocks whose bit is 1 */
    PLANE_CODED = 3,  /* codes: Huffman */
};

struct plane {
    uint8_t mode; /* enum plane_mode */
    uint8_t bits; /* PACKED and SPARSE: 1 .. MAX_PACK, escapes are values of 2^bits - 1 and more */
    uint8_t base; /* PACKED and SPARSE: what is subtracted; SPARSE: all bytes of a block without a bit */
    /* where, in memory */
    uint8_t *raw;    /* RAW: fixed region; CODED: its bytes on their way */
    uint8_t *bitmap; /* SPARSE */
};

struct part {
    unsigned width;
    size_t len;     /* plain bytes */
    size_t nblocks; /* whole ones */
    struct plane plane[MAX_WIDTH];
};

static inline size_t part_packed(const struct part *p) /* plain bytes in blocks */
{
    return p->nblocks * BLOCK * p->width;
}

static inline size_t part_tail(const struct part *p)
{
    return p->len - part_packed(p);
}

static inline size_t plane_bytes(const struct part *p) /* of one plane */
{
    return p->nblocks * BLOCK;
}

static inline size_t plane_fixed(const struct part *p, const struct plane *pl)
{
    if (pl->mode == PLANE_RAW)
        return plane_bytes(p);
    return pl->mode == PLANE_SPARSE ? (p->nblocks + 7) / 8 : 0;
}

#endif
