/* SPDX-License-Identifier: Apache-2.0 */
/* The loops over blocks, for each instruction set; their results are the same bytes. */
#ifndef CAIRN_CODEC_FLOAT_KERNEL_H
#define CAIRN_CODEC_FLOAT_KERNEL_H

#include "format.h"

/* Codes of at most 11 bits, by the byte they stand for. */
struct code_table {
    uint8_t low[256], high[256]; /* of the code; its first bit lowest */
    uint8_t length[256];
};
#define GROUP 64          /* bytes that are looked up at once */
#define QUADS (GROUP / 4) /* four codes in a row: at most 44 bits */
struct quads {
    uint64_t bits[QUADS];
    uint32_t length[QUADS];
};

struct kernel {
    const char *name;
    /* One block to its planes. */
    void (*split)(unsigned width, const uint8_t *src, uint8_t (*planes)[BLOCK]);
    /* Splits all blocks of src into planes and packs. Returns where the stream ends, NULL: it does not fit. */
    uint8_t *(*encode)(const struct part *p, const uint8_t *src, uint8_t *stream, uint8_t *stream_end);
    /* The way back. Returns where the stream ends, NULL: it ends too early. */
    const uint8_t *(*decode)(const struct part *p, uint8_t *dst, const uint8_t *stream, const uint8_t *stream_end);
    /* Bits that the codes of n bytes take. */
    uint64_t (*code_bits)(const struct code_table *t, const uint8_t *src, size_t n);
    /* The codes of GROUP bytes. */
    void (*code_quads)(const struct code_table *t, const uint8_t *src, struct quads *ret);
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
