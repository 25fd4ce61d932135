/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/node/encode.h"

#include "core/base/bytes.h"
#include "core/base/error.h"
#include "core/model/hash.h"
#include "core/model/units.h"
#include "daemon/node/parity.h"

#include <isa-l/erasure_code.h>

#include <stdlib.h>
#include <string.h>

#define WORTH_NUM 19 /* a codec must save a twentieth: less is not worth a decode */
#define WORTH_DEN 20

/* ---- parity ---------------------------------------------------------------------------------- */

/* Parity covers the data fragments zero-extended to the longest one's blocks. */
static void encode_parity(struct encode *e)
{
    unsigned char matrix[CAIRN_MAX_FRAGS * CAIRN_MAX_K], tables[CAIRN_MAX_K * CAIRN_MAX_M * 32];
    unsigned char *data[CAIRN_MAX_K], *parity[CAIRN_MAX_M];
    uint32_t len = parity_len(e->part, e->k);

    if (e->m == 0)
        return;
    for (unsigned i = 0; i < e->k; i++) {
        data[i] = (unsigned char *)e->record[i] + FRAGMENT_HEADER;
        memset(data[i] + e->part[i].coded_len, 0, len - e->part[i].coded_len);
    }
    for (unsigned i = 0; i < e->m; i++)
        parity[i] = (unsigned char *)e->record[e->k + i] + FRAGMENT_HEADER;
    parity_matrix(e->k, e->m, matrix);
    ec_init_tables((int)e->k, (int)e->m, matrix + e->k * e->k, tables);
    ec_encode_data((int)len, (int)e->k, (int)e->m, tables, data, parity);
    for (unsigned i = 0; i < e->m; i++)
        e->payload_len[e->k + i] = len;
}

/* ---- encode ---------------------------------------------------------------------------------- */

/* The plain bytes are copied first and everything is made from the copy: a client that writes meanwhile spoils its own
 * save, but checksum and bytes agree. */
static int encode_part(struct encode *e, unsigned i, char *copy)
{
    char *payload = e->record[i] + FRAGMENT_HEADER;
    size_t len = e->plain_len[i], worth = len * WORTH_NUM / WORTH_DEN;

    memcpy(copy, e->plain[i], len);
    e->part[i] = (struct cairn_part_code){CODEC_RAW, 0, (uint32_t)len, (uint32_t)len};
    if (e->codec && worth > 0 && codec_estimate(e->codec, copy, len, e->dtype) < worth) {
        int64_t n = codec_encode(e->codec, copy, len, e->dtype, payload, worth);
        if (n < 0)
            return (int)n;
        if (n > 0) {
            e->part[i].codec = codec_id(e->codec);
            e->part[i].coded_len = (uint32_t)n;
            return 0;
        }
    }
    memcpy(payload, copy, len);
    return 0;
}

void encode_chunk(struct encode *e)
{
    struct hash_stream *h = hash_stream_new();
    /* One part's copy stays in cache between checksum and codec. The last parity record is not used before
     * encode_parity; without parity the copy goes to a buffer of its own. */
    char *own = e->m ? NULL : malloc(CAIRN_PART);
    char *copy = e->m ? e->record[e->k + e->m - 1] + FRAGMENT_HEADER : own;

    e->code = h && copy ? 0 : CAIRN_E_NOMEM;
    for (unsigned i = 0; i < e->k && e->code == 0; i++) {
        e->code = encode_part(e, i, copy);
        if (e->code == 0)
            hash_stream_add(h, copy, e->plain_len[i]);
    }
    if (e->code == 0) {
        e->entry = hash_stream_end(h);
        for (unsigned i = 0; i < e->k; i++)
            e->payload_len[i] = e->part[i].coded_len;
        encode_parity(e);
    }
    for (unsigned i = 0; i < e->k + e->m && e->code == 0; i++) {
        char *payload = e->record[i] + FRAGMENT_HEADER;
        size_t padded = round_up_u64(e->payload_len[i], CAIRN_BLOCK);
        memset(payload + e->payload_len[i], 0, padded - e->payload_len[i]);
        e->payload_sum[i] = cairn_hash64(payload, e->payload_len[i], 0);
    }
    hash_stream_free(h);
    free(own);
}
