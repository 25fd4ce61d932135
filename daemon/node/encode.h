/* SPDX-License-Identifier: Apache-2.0 */
/* Encoding a chunk: what a worker does, on nothing but what is in the struct. */
#ifndef CAIRN_DAEMON_NODE_ENCODE_H
#define CAIRN_DAEMON_NODE_ENCODE_H

#include "core/proto/fragment.h"
#include "daemon/io/plugins.h"

struct encode {
    unsigned k, m;
    int dtype;
    const char *plain[CAIRN_MAX_K]; /* each part in the arena; its client may write to it at any time */
    uint32_t plain_len[CAIRN_MAX_K];
    char *record[CAIRN_MAX_FRAGS]; /* fragment buffers; the payload goes behind the header block */
    const struct codec *codec;     /* tried for each part; NULL: all raw */
    /* results */
    struct hash128 entry; /* of the bytes that were encoded */
    struct cairn_part_code part[CAIRN_MAX_K];
    uint32_t payload_len[CAIRN_MAX_FRAGS];
    uint64_t payload_sum[CAIRN_MAX_FRAGS];
    int code;
};
/* Fills payloads, zero-filled to 4 KiB, and results. Deterministic for the same plain bytes. */
void encode_chunk(struct encode *e);

#endif
