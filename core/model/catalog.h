/* SPDX-License-Identifier: Apache-2.0 */
/* A catalog: what a reader needs to know of a committed checkpoint, handed by the daemon to a client as one sealed
 * blob: each rank's layout and how its image is cut into chunks. Fragments and peers are not its business. */
#ifndef CAIRN_CORE_MODEL_CATALOG_H
#define CAIRN_CORE_MODEL_CATALOG_H

#include "core/model/layout.h"

struct cairn_chunk_range { /* of parts of one shard's image; chunks are in order and cover all parts */
    uint32_t first_part;
    uint32_t nparts;
};

struct cairn_catalog_shard {
    uint32_t rank;
    struct cairn_layout layout;
    struct cairn_chunk_range *chunks;
    uint32_t nchunks;
};

struct cairn_catalog {
    uint64_t step;
    uint64_t incarnation;
    uint32_t world_size;
    uint32_t nshards; /* == world_size; ordered by rank */
    struct cairn_catalog_shard *shards;
};

void cairn_catalog_init(struct cairn_catalog *c);
void cairn_catalog_free(struct cairn_catalog *c);
int cairn_catalog_encode(const struct cairn_catalog *c, struct bytes *out, struct cairn_error *err);
/* Untrusted bytes into an initialised catalog; on failure it is as after init. */
int cairn_catalog_decode(struct cairn_catalog *c, const void *data, size_t len, struct cairn_error *err);
/* The index of the chunk that holds a part. */
uint32_t cairn_catalog_chunk_of(const struct cairn_catalog_shard *s, uint32_t part);

#endif
