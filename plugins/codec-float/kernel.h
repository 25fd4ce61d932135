/* SPDX-License-Identifier: Apache-2.0 */
/* The loops over blocks, for each instruction set; their results are the same bytes. Whatever holds bytes of a plane
 * can be read and written up to 64 bytes behind them, what is part of the format only as far as it goes. */
#ifndef CAIRN_CODEC_FLOAT_KERNEL_H
#define CAIRN_CODEC_FLOAT_KERNEL_H

#include "format.h"

#define KERNEL_BAD SIZE_MAX

struct kernel {
    const char *name;
    /* Blocks to their planes and back. */
    void (*split)(unsigned width, const uint8_t *src, size_t nblocks, uint8_t *const *planes);
    void (*merge)(unsigned width, const uint8_t *const *planes, size_t nblocks, uint8_t *dst);
    /* The bits of mask: a word for each, block by block; they are 0 in the plane then. */
    void (*keep)(uint8_t mask, uint8_t *plane, size_t nblocks, uint8_t *words);
    void (*give_back)(uint8_t mask, uint8_t *plane, size_t nblocks, const uint8_t *words);
    /* Moves the blocks that are not all base together, to the front; a zeroed bitmap says which. How many there are. */
    size_t (*close_up)(uint8_t base, uint8_t *plane, size_t nblocks, uint8_t *bitmap);
    /* The codes of n bytes, and those bytes that have none. How many these are. The bytes up to a whole block are the
     * kernel's to change. */
    size_t (*pack)(const struct level *l, uint8_t *src, size_t n, uint8_t *codes, uint8_t *others);
    /* The way back. How many others were taken; KERNEL_BAD: there are codes behind the last one. */
    size_t (*unpack)(const struct level *l, const uint8_t *codes, size_t n, const uint8_t *others, uint8_t *dst);
};
extern const struct kernel kernel_portable;
#if defined(__x86_64__)
extern const struct kernel kernel_avx2, kernel_avx512;
#endif

/* The best that this processor has. */
const struct kernel *kernel_best(void);
/* By name, for tests; NULL: not on this processor. */
const struct kernel *kernel_named(const char *name);

#endif
