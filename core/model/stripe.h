/* SPDX-License-Identifier: Apache-2.0 */
/* Stripes: how many data and parity fragments a chunk gets, and Reed-Solomon over them is the daemon's (ISA-L). */
#ifndef CAIRN_CORE_MODEL_STRIPE_H
#define CAIRN_CORE_MODEL_STRIPE_H

#include "core/model/hash.h"
#include "core/model/layout.h"
#include "core/model/units.h"

struct cairn_geometry {
    uint8_t k; /* data fragments, one part each */
    uint8_t m; /* parity fragments */
};

/* By live peers: 6 and more 4+2, 5 3+2, 4 2+2, 3 2+1, 2 1+1, 1 1+0; 0 peers give 0+0. */
struct cairn_geometry cairn_geometry_for(unsigned live_peers);

/* How many of a stripe's m parity fragments must be durable beside the k others before it counts: what was asked for
 * (0: one less than m, at least 1), never more than m. A committed checkpoint survives the loss of so many peers. */
unsigned cairn_margin_for(unsigned m, unsigned asked);

/* The chunk that begins at part: up to k parts of the same group. Short chunks have fewer data fragments. */
uint32_t cairn_chunk_parts(const struct cairn_layout *l, uint32_t first_part, unsigned k);

/* One encoded part as manifests and fragment headers record it. */
struct cairn_part_code {
    uint16_t codec;     /* cairn_codec_ops.id; 0 raw */
    uint16_t params;    /* bit 0: CAIRN_PART_DELTA; the others are 0 today */
    uint32_t plain_len; /* 1 .. CAIRN_PART */
    uint32_t coded_len; /* 1 .. CAIRN_PART */
};

/* What the codec gives back is the XOR of the part with the same part of the chunk's base. */
#define CAIRN_PART_DELTA 1
#define CAIRN_MAX_CHAIN 4 /* chunks that are read for one: the last of them needs no other */

/* The base of a chunk: the same chunk, by its first part and k, of an older committed checkpoint of the same job and
 * rank with the same layout. */
struct cairn_delta {
    uint64_t step, incarnation;
    struct hash128 entry; /* of the base's plain bytes */
    uint8_t depth;        /* how many bases are read before this chunk: 1 .. CAIRN_MAX_CHAIN; 0: none, all is 0 */
};
bool cairn_any_delta(const struct cairn_part_code *parts, unsigned k);
bool cairn_delta_equal(const struct cairn_delta *a, const struct cairn_delta *b);
/* What is wrong with a chunk of the checkpoint (step, incarnation) that says this of its base, whoever wrote it; NULL:
 * nothing. Bases are older, so that no chain is a circle. */
const char *cairn_delta_wrong(const struct cairn_delta *d, const struct cairn_part_code *parts, unsigned k,
                              uint64_t step, uint64_t incarnation);
/* The same of a chunk that is said to be what its base is, so that it has no fragments of its own. */
const char *cairn_same_wrong(const struct cairn_delta *d, const struct hash128 *entry,
                             const struct cairn_part_code *parts, unsigned k, uint64_t step, uint64_t incarnation);

#endif
