/* SPDX-License-Identifier: Apache-2.0 */
/* Decoding a chunk, rebuilding what is missing of it, and making fragments again: what workers do, on nothing but what
 * is in the struct. */
#ifndef CAIRN_DAEMON_NODE_DECODE_H
#define CAIRN_DAEMON_NODE_DECODE_H

#include "core/model/hash.h"
#include "core/proto/fragment.h"
#include "core/proto/manifest.h"
#include "daemon/io/plugins.h"

/* One fragment, out of the memory that its peer wrote it to and may write to again: what is checked is our copy. */
struct take {
    const char *record;
    const struct fragment_key *key; /* what it should be: the peer is trusted with nothing */
    const struct chunk_record *chunk;
    unsigned index;
    int dtype;
    const struct codec *codec; /* of the part; not needed for parity */
    char *payload;             /* CAIRN_PART bytes, for the payload; the same as target when the part is raw */
    char *target;              /* CAIRN_PART bytes, for the part decoded; NULL: it is not wanted */
    struct hash_stream *entry; /* NULL, or what has the bytes of all parts before this one: gets this one's too */
    /* results */
    uint32_t payload_len;
    int code; /* when it is negative what is in payload, target and entry is not known */
    struct cairn_error err;
};
void take_fragment(struct take *t);

struct decode {
    unsigned k, m;
    int dtype;
    struct cairn_part_code part[CAIRN_MAX_K];
    struct hash128 entry;
    uint32_t part_mask;                      /* parts wanted in target */
    char *payload[CAIRN_MAX_FRAGS];          /* CAIRN_PART bytes each; NULL: not there */
    char *target;                            /* part i goes to target + i MiB */
    const struct codec *codecs[CAIRN_MAX_K]; /* of each part */
    char *scratch;                           /* k times CAIRN_PART bytes, for payloads that are rebuilt */
    uint32_t decoded;                        /* parts that are in target already, deltas as deltas */
    struct hash_stream *hash;                /* NULL, or what has the first hashed parts of target */
    unsigned hashed;
    const char *base; /* plain parts of the base, like target; NULL: no part is a delta */
    bool undressed;   /* deltas stay deltas: there is no base, and no checksum to compare with */
    int code;
    struct cairn_error err;
};
/* Rebuilds wanted parts that are missing from any k payloads, decodes them, and checks the entry checksum when all
 * parts are known. The target's bytes are defined only when code is 0. */
void decode_chunk(struct decode *d);

/* Fragments made again from any k: byte for byte what encode_chunk gave. */
struct remake {
    struct decode decode;          /* part_mask: all; its payloads are what was read */
    uint32_t wanted;               /* bit i: fragment i, data or parity */
    char *record[CAIRN_MAX_FRAGS]; /* of the wanted ones; the payload goes behind the header block */
    /* results */
    uint32_t payload_len[CAIRN_MAX_FRAGS];
    uint64_t payload_sum[CAIRN_MAX_FRAGS];
};
/* Nothing is made when the chunk's plain bytes do not have their entry checksum: see decode.code. Of a chunk with a
 * base only what its codecs give back is looked at: a repair does not need the base, and fragments have checksums. */
void remake_fragments(struct remake *r);

#endif
