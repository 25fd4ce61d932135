/* SPDX-License-Identifier: Apache-2.0 */
/* A fragment as it lies in a slot, on the wire and in a stream file: one header block of 4 KiB, then the payload,
 * zero-filled to 4 KiB. It describes itself: a catalog can be rebuilt from fragments alone. fragment.c has the table of
 * the header's bytes.
 *
 * Two checksums: payload_sum covers the payload; the header's own covers everything before it, payload_sum and identity
 * included. So the second one vouches for identity and bytes together, and a header can be stamped for another file
 * without reading the payload again.
 */
#ifndef CAIRN_CORE_PROTO_FRAGMENT_H
#define CAIRN_CORE_PROTO_FRAGMENT_H

#include "core/model/stripe.h"

#define FRAGMENT_HEADER CAIRN_BLOCK
#define FRAGMENT_MAX_RECORD (FRAGMENT_HEADER + CAIRN_PART) /* coded parts are never larger than plain ones */

enum fragment_kind { FRAGMENT_DATA = 1, FRAGMENT_MANIFEST = 2, FRAGMENT_ROOT = 3, FRAGMENT_DECISION = 4 };

struct fragment_key {
    char job[CAIRN_MAX_NAME + 1];
    char node[CAIRN_MAX_NAME + 1];
    uint64_t step;
    uint64_t incarnation;
    int kind;            /* enum fragment_kind */
    uint32_t rank;       /* 0 for a root or a decision */
    uint32_t first_part; /* of the chunk; of a blob: the piece's number */
    uint32_t attempt;    /* which striping of the chunk; of a blob: the first bytes of its SHA-256 */
    uint32_t index;      /* 0 .. k-1 data, k .. k+m-1 parity; of a blob: 0 */
};
bool fragment_key_equal(const struct fragment_key *a, const struct fragment_key *b);

struct fragment {
    struct fragment_key key;
    uint64_t generation;                      /* of the stream file it is written to */
    uint8_t k, m;                             /* of its stripe; a blob's piece has 1, 0 */
    uint8_t tier;                             /* reserved, 0 */
    uint32_t key_id;                          /* reserved, 0 */
    uint32_t tenant;                          /* reserved, 0 */
    int dtype;                                /* of the chunk; CAIRN_BYTES for a blob */
    uint32_t payload_len;                     /* exact; what follows up to 4 KiB is zero */
    uint64_t payload_sum;                     /* XXH3-64 of the payload */
    struct hash128 entry;                     /* of the chunk's plain bytes; 0 for a blob */
    struct cairn_part_code part[CAIRN_MAX_K]; /* of the whole stripe; a blob has none */
    struct cairn_delta delta;                 /* the base of the chunk; of a full one and of a blob all 0 */
    uint64_t blob_len;                        /* of the whole blob; 0 for data */
    uint8_t blob_sha256[32];
};

/* Bytes of the record with its padding. */
size_t fragment_record_len(uint32_t payload_len);
/* Writes the 4 KiB header block. payload_sum must be filled. */
void fragment_seal(const struct fragment *f, void *block);
/* Reads and verifies an untrusted header block: CAIRN_E_CORRUPT, or CAIRN_E_UNSUPPORTED for what a later version wrote,
 * with the version that was seen. */
int fragment_parse(const void *block, struct fragment *ret, struct cairn_error *err);
/* Whether the payload is the one the header promises. */
int fragment_check_payload(const struct fragment *f, const void *payload, struct cairn_error *err);
/* The error for a payload that has this checksum, which is not the one the header promises. */
int fragment_payload_wrong(const struct fragment *f, uint64_t sum, struct cairn_error *err);
/* "job/step.inc node n0 rank 3 part 12 attempt 0 fragment 2" for messages. */
void fragment_describe(const struct fragment_key *key, char *buf, size_t len);

#endif
