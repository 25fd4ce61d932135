/* SPDX-License-Identifier: Apache-2.0 */
/* A shard's manifest as plain data; encoded as manifest.proto says. */
#ifndef CAIRN_CORE_PROTO_MANIFEST_H
#define CAIRN_CORE_PROTO_MANIFEST_H

#include "core/model/catalog.h"
#include "core/model/stripe.h"

#define SHA256_LEN 32
#define MANIFEST_MAX_PEERS 255
#define MANIFEST_MAX ((size_t)1 << 30) /* bytes of a shard's or a root manifest */

struct chunk_record {
    uint32_t first_part;
    uint32_t attempt;
    uint8_t k, m;
    struct hash128 entry; /* XXH3-128 of the plain bytes of its k parts */
    struct cairn_part_code part[CAIRN_MAX_K];
    uint8_t peer[CAIRN_MAX_FRAGS]; /* index into manifest.peers */
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
    struct chunk_record *chunks; /* ordered by first_part, cover all parts of the layout */
    uint32_t nchunks;
};
void manifest_init(struct manifest *m);
void manifest_free(struct manifest *m);
int manifest_encode(const struct manifest *m, struct bytes *out, struct cairn_error *err);
/* Untrusted bytes; checks that chunks cover the layout, that lengths fit, that peers exist. On failure m is as after
 * init. */
int manifest_decode(struct manifest *m, const void *data, size_t len, struct cairn_error *err);

#endif
