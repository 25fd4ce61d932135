/* SPDX-License-Identifier: Apache-2.0 */
/* The root manifest of a checkpoint as plain data; encoded as manifest.proto says. */
#ifndef CAIRN_CORE_PROTO_ROOT_H
#define CAIRN_CORE_PROTO_ROOT_H

#include "core/proto/manifest.h"

/* Of a shard's tensors together. */
struct shard_numerics {
    bool known; /* of every one of them */
    struct cairn_nonfinite bad;
    uint32_t common;          /* slices that other ranks hold too, by their flag; 0: no set and no sums */
    struct hash128 set, sums; /* which they are; their digests */
};
struct shard_ref {
    uint32_t rank;
    char node[CAIRN_MAX_NAME + 1];
    struct blob_ref manifest;
    uint64_t plain_bytes;
    uint64_t stored_bytes;
    struct shard_numerics numerics;
};
struct root {
    char job[CAIRN_MAX_NAME + 1];
    char node[CAIRN_MAX_NAME + 1];
    uint64_t step;
    uint64_t incarnation;
    uint32_t world_size;
    struct shard_ref *shards; /* world_size of them, by rank */
    uint64_t created_unix_ms;
    struct ckpt_base base; /* of the shards that have one */
};
void root_init(struct root *r);
void root_free(struct root *r);
int root_encode(const struct root *r, struct bytes *out, struct cairn_error *err);
/* Whether the counts of all shards are known, and then how many NaN and Inf there are; at most INT64_MAX. */
bool root_nonfinite(const struct root *r, uint64_t *ret_count);
int root_decode(struct root *r, const void *data, size_t len, struct cairn_error *err);

#endif
