/* SPDX-License-Identifier: Apache-2.0 */
/* The root manifest of a checkpoint as plain data; encoded as manifest.proto says. */
#ifndef CAIRN_CORE_PROTO_ROOT_H
#define CAIRN_CORE_PROTO_ROOT_H

#include "core/proto/manifest.h"

struct shard_ref {
    uint32_t rank;
    char node[CAIRN_MAX_NAME + 1];
    struct blob_ref manifest;
    uint64_t plain_bytes;
    uint64_t stored_bytes;
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
int root_decode(struct root *r, const void *data, size_t len, struct cairn_error *err);

#endif
