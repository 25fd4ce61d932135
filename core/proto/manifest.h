/* SPDX-License-Identifier: Apache-2.0 */
/* A shard's manifest as plain data; encoded as manifest.proto says. */
#ifndef CAIRN_CORE_PROTO_MANIFEST_H
#define CAIRN_CORE_PROTO_MANIFEST_H

#include "core/model/catalog.h"
#include "core/model/digest.h"
#include "core/model/stripe.h"

#define SHA256_LEN 32
#define MANIFEST_MAX_PEERS 255
#define MANIFEST_MAX ((size_t)1 << 30) /* bytes of a shard's or a root manifest */

/* A blob on the peers: a shard's manifest, or a root. */
struct blob_ref {
    uint64_t len;
    uint8_t sha256[SHA256_LEN];
    uint32_t npeers;
    char peer[CAIRN_MAX_M + 1][CAIRN_MAX_NAME + 1]; /* where copies lie; a hint */
};

struct chunk_record {
    uint32_t first_part;
    uint32_t attempt;
    uint8_t k, m;
    struct hash128 entry; /* XXH3-128 of the plain bytes of its k parts */
    struct cairn_part_code part[CAIRN_MAX_K];
    uint8_t peer[CAIRN_MAX_FRAGS]; /* index into manifest.peers */
    struct cairn_delta delta;      /* its base: that of the manifest, or none */
    bool same;                     /* it is what its base is: no fragments of its own, m is 0, parts say lengths only */
};
/* Fragments of its own. */
static inline unsigned chunk_record_fragments(const struct chunk_record *c)
{
    return c->same ? 0 : (unsigned)c->k + c->m;
}

/* The checkpoint whose chunks are the bases of another's. Records and the root name it, so that it is kept as long. */
struct ckpt_base {
    bool is_set;
    uint64_t step, incarnation;
};

/* The one older checkpoint that chunks of a shard are deltas against, or the same as: the same rank's manifest of it.
 */
struct manifest_base {
    bool is_set;
    uint64_t step, incarnation;
    char node[CAIRN_MAX_NAME + 1]; /* whose stream files hold it */
    struct blob_ref manifest;
};

struct manifest {
    char job[CAIRN_MAX_NAME + 1];
    char node[CAIRN_MAX_NAME + 1];
    uint64_t step;
    uint64_t incarnation;
    uint32_t rank;
    uint32_t world_size;
    char (*peers)[CAIRN_MAX_NAME + 1];
    uint32_t npeers;
    struct cairn_layout layout;
    struct cairn_numerics *numerics; /* of each of its slices, or NULL: nothing is known */
    struct chunk_record *chunks;     /* ordered by first_part, cover all parts of the layout */
    uint32_t nchunks;
    struct manifest_base base;
    struct manifest *under; /* the base's manifest, once somebody has read it; owned */
};
/* Every base is: so no chain is a circle. */
bool ckpt_base_is_older(uint64_t step, uint64_t incarnation, uint64_t than_step, uint64_t than_incarnation);
void manifest_init(struct manifest *m);
void manifest_free(struct manifest *m);
int manifest_encode(const struct manifest *m, struct bytes *out, struct cairn_error *err);
/* Untrusted bytes; checks that chunks cover the layout, that lengths fit, that peers exist. On failure m is as after
 * init. */
int manifest_decode(struct manifest *m, const void *data, size_t len, struct cairn_error *err);
/* Takes base over (it is empty then) as what m's chunks are deltas against, when it is what m names: the same job, rank
 * and layout, and each chunk's base is there with its checksum, one step nearer to the end of its chain. */
int manifest_put_under(struct manifest *m, struct manifest *base, struct cairn_error *err);
/* Whether m's chunks need chunk c of the manifest that lies so many levels below it; level 0 is m itself. */
bool manifest_needs(const struct manifest *m, unsigned level, const struct chunk_record *c);
/* The chunk that is XORed into chunk c of m, or is the same: in m->under, which is there. NULL: c is full. */
const struct chunk_record *manifest_base_chunk(const struct manifest *m, const struct chunk_record *c);
/* The chunk that has c's bytes, and the manifest that it is in: c and m themselves, but for one that is the same as its
 * base. NULL: that is not there. */
const struct chunk_record *manifest_chunk_of(const struct manifest **m, const struct chunk_record *c);

#endif
