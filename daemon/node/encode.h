/* SPDX-License-Identifier: Apache-2.0 */
/* Encoding a chunk: what a worker does, on nothing but what is in the struct.
 *
 *     arena page --+- raw, in place:  16 KiB at a time through a block in L1: entry, payload and parity read the block;
 *                  |                  what is sent is the page itself
 *                  +- encoded, or raw without a page to send from: copied once, and everything is made of the copy
 *                  \- packed by its device: unpacked into a copy first, and the page with it (encode_packed.c)
 *
 * The client can write to its arena at any time. Checksums and parity are made of the same bytes, read once; a page
 * that is sent and has changed since does not have the payload's checksum, and the peer refuses it. So what is stored
 * is what was hashed. */
#ifndef CAIRN_DAEMON_NODE_ENCODE_H
#define CAIRN_DAEMON_NODE_ENCODE_H

#include "core/model/choice.h"
#include "core/proto/fragment.h"
#include "daemon/io/plugins.h"
#include "daemon/node/numerics.h"

struct encode_codec {
    const struct codec *codec;
    uint64_t speed; /* plain bytes a second, as measured or supposed */
};

struct encode_cost { /* what one chunk took, by the index of its codec; 0 is raw */
    uint64_t plain, coded, ns;
};

struct encode {
    unsigned k, m;
    int dtype;
    const char *plain[CAIRN_MAX_K]; /* each part in the arena; its client may write to it at any time */
    uint32_t plain_len[CAIRN_MAX_K];
    char *record[CAIRN_MAX_FRAGS];             /* fragment buffers; the payload goes behind the header block */
    bool can_send_plain;                       /* raw parts may be sent from where they are */
    struct encode_codec codec[CAIRN_CHOICES];  /* offers; [0] is raw, its codec NULL */
    unsigned ncodecs;                          /* at least 1 */
    unsigned before;                           /* index of the codec that was chosen last for this dtype */
    struct cairn_path path;                    /* what the choice is by */
    const struct cairn_part_code *as_recorded; /* NULL: choose. Else of each part: made the same way again */
    const char *base[CAIRN_MAX_K];             /* of each part, as plain; not read when there is no delta */
    struct cairn_delta delta;                  /* the base; depth 0: none. As a result: what parts are deltas against */
    struct cairn_delta maybe;                  /* the base that it may be the same as; depth 0: none */
    const struct hash128 *sums;                /* of each part at its source, with the seed; NULL: not compared */
    uint64_t sums_seed;
    uint32_t packed[CAIRN_MAX_K]; /* of each: bytes in its page that the packer decodes; 0: its plain bytes are there,
                                     as they are once they were unpacked, also with a code */
    char *page[CAIRN_MAX_K];      /* plain, to write to; of packed parts */
    const struct codec *packer;   /* what devices pack as; NULL: they do not */
    const struct numerics *numerics; /* NULL: nobody asks what the parts' numbers are */
    uint32_t first_part;             /* for them: of the image */
    /* results */
    bool same;                                /* it is: nothing was encoded, delta is maybe */
    unsigned undecoded;                       /* with code: the part, from 1 on, that cannot be unpacked */
    unsigned differs;                         /* with code: the part, from 1 on, that does not have its sum */
    struct numerics_part *found[CAIRN_MAX_K]; /* with numerics, of each part; the caller's, also with a code */
    bool base_gone;       /* with code: as_recorded has deltas, and the base's bytes are not there any more */
    struct hash128 entry; /* of the bytes that were encoded */
    struct cairn_part_code part[CAIRN_MAX_K];
    bool in_place[CAIRN_MAX_K]; /* the payload is the page: record has room for the header only */
    uint32_t payload_len[CAIRN_MAX_FRAGS];
    uint64_t payload_sum[CAIRN_MAX_FRAGS];
    struct encode_cost cost[CAIRN_CHOICES];
    uint64_t copied; /* bytes of raw parts that were copied to be sent, of parts and their bases copied to be encoded */
    const char *from[CAIRN_MAX_K]; /* the encoder's: where its plain bytes are read, as plain or unpacked */
    uint32_t came[CAIRN_MAX_K];    /* of each: bytes that it was packed in when it came; 0: it was not */
    uint64_t kept;                 /* plain bytes of parts that are stored as they came packed */
    int code;
};
/* Sets from and came. Unpacks packed parts into memory that it allocates and into their pages; what came of a part is
 * in its payload then. */
int encode_unpack(struct encode *e, char **ret_plain);
/* Whether the chunk is what maybe says: 1, 0, or a code; before anything is encoded. Fills entry, part, delta. */
int encode_same(struct encode *e);
/* Fills payloads, zero-filled to 4 KiB, and results. Deterministic for the same plain bytes and choices. */
void encode_chunk(struct encode *e);

#endif
