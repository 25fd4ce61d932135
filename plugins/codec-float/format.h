/* SPDX-License-Identifier: Apache-2.0 */
/* The bytes of an encoded part; docs/codec-float.md is the specification.
 *
 *     header 16 | the planes' descriptors | tail | strips of 128 blocks, one after the other
 *
 * An element is a little-endian integer of width bytes, rotated left by one bit: the exponent of a float then fills its
 * highest byte and the sign is its lowest bit. Byte i of all elements is plane i. Elements come in blocks of 64; what
 * is left behind the last whole block is the tail, as it is.
 *
 * What a descriptor asks of a plane is done strip by strip, each step on what the one before it has left:
 *
 *     keep     the bits of a mask are taken out of each byte and stored as they are
 *     sparse   blocks that are all base are taken out; a bit for each block
 *     ladder   levels of few bits a byte: the commonest values have codes, the others go on to the next level
 *     rest     what no level had a code for, as it is
 *
 * A plane of which nothing is asked is raw. What takes the same room in every block comes first, group by group, so
 * that a part is read and written from its beginning to its end.
 */
#ifndef CAIRN_CODEC_FLOAT_FORMAT_H
#define CAIRN_CODEC_FLOAT_FORMAT_H

#include <stddef.h>
#include <stdint.h>

#define FORMAT_VERSION 2
#define FORMAT_HEADER ((size_t)16)
#define FORMAT_DESCRIPTOR ((size_t)4) /* and its levels */
#define FORMAT_SPARSE 1               /* a flag */
#define BLOCK 64                      /* elements */
#define GROUP_BLOCKS ((size_t)8)
#define STRIP_BLOCKS ((size_t)128) /* whole groups */
#define GROUP (GROUP_BLOCKS * BLOCK)
#define STRIP (STRIP_BLOCKS * BLOCK)
#define MAX_WIDTH 8
#define MAX_LEVELS 6
#define MAX_BITS 4                        /* of a level */
#define MAX_VALUES ((1u << MAX_BITS) - 1) /* of a level */
#define PART_MOST ((size_t)1 << 24)       /* bytes of a part that this codec takes */

/* The code of value[i] is i; all bits set: the byte is none of them. */
struct level {
    uint8_t bits;
    uint8_t value[MAX_VALUES]; /* 2^bits - 1 */
};

struct plane {
    uint8_t keep;   /* mask */
    uint8_t sparse; /* whether */
    uint8_t base;   /* sparse: all bytes of a block without a bit */
    uint8_t nlevels;
    struct level level[MAX_LEVELS];
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

static inline int plane_is_raw(const struct plane *pl)
{
    return !pl->keep && !pl->sparse && !pl->nlevels;
}

/* Whether its first level has codes for all bytes, in the groups. */
static inline int plane_has_codes(const struct plane *pl)
{
    return pl->nlevels && !pl->sparse;
}

/* Bytes of a block in its group. */
static inline size_t plane_fixed(const struct plane *pl)
{
    if (plane_is_raw(pl))
        return BLOCK;
    return 8 * ((size_t)__builtin_popcount(pl->keep) + (plane_has_codes(pl) ? pl->level[0].bits : 0));
}

static inline unsigned level_values(const struct level *l)
{
    return (1u << l->bits) - 1;
}

/* Bytes of the codes of n bytes: whole blocks in words of 64 bits, of the last one only the bytes that have some. */
static inline size_t level_bytes(const struct level *l, size_t n)
{
    return l->bits * (n / BLOCK * 8 + (n % BLOCK + 7) / 8);
}

#endif
