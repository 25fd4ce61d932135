/* SPDX-License-Identifier: Apache-2.0 */
/* The variants of digest.c, one for each instruction set. */
#ifndef CAIRN_CORE_MODEL_DIGEST_INTERNAL_H
#define CAIRN_CORE_MODEL_DIGEST_INTERNAL_H

#include "core/model/digest.h"

#define DIGEST_LANES 8

struct digest_keys { /* of one stripe, advanced by the steps from stripe to stripe */
    uint64_t a[DIGEST_LANES], b[DIGEST_LANES];
};
#define DIGEST_STEP_A 0x9e3779b97f4a7c15ull /* odd; the golden ratio's, and sqrt(2)'s fraction */
#define DIGEST_STEP_B 0x6a09e667f3bcc909ull

/* Where and how a dtype keeps what is not finite. */
struct nonfinite_bits {
    uint8_t size;      /* bytes of a word: 1, 2, 4 or 8; 0: the dtype has none */
    bool has_inf;      /* else all of them are NaN */
    uint64_t mask;     /* word & mask == value: it is not finite */
    uint64_t value;    /* */
    uint64_t inf_mask; /* word & inf_mask == value: it is Inf */
    uint64_t unit;     /* (word & mask) + unit has the word's top bit just where it is not finite; 0: no such number */
};

/* (w & mask) + unit of every 64-bit word, or-ed together: a look for words that are not finite, on the way. */
struct digest_look {
    uint64_t mask, unit;
};
struct digest_ops {
    /* n whole stripes; keys are those of the first one. Returns what the look has seen. */
    uint64_t (*stripes)(struct cairn_digest *d, const struct digest_keys *keys, const void *data, size_t n,
                        const struct digest_look *look);
    /* Words of len bytes, a multiple of size, that match. */
    uint64_t (*matches)(unsigned size, uint64_t mask, uint64_t value, const void *data, size_t len);
};
extern const struct digest_ops digest_base; /* what every processor of the architecture has */
#if defined(__x86_64__)
extern const struct digest_ops digest_avx2, digest_avx512;
#endif

#endif
