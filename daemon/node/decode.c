/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/node/decode.h"

#include "core/base/bytes.h"
#include "core/base/error.h"
#include "core/model/hash.h"
#include "core/model/units.h"
#include "daemon/node/delta.h"
#include "daemon/node/parity.h"

#include <isa-l/erasure_code.h>

#include <string.h>

#define BLOCK_BYTES ((uint32_t)16 << 10) /* stays in the nearest cache while it is hashed */

/* ---- take ------------------------------------------------------------------------------------ */

static int take_check(const struct take *t, struct fragment *f, struct cairn_error *err)
{
    const struct chunk_record *c = t->chunk;
    int code = fragment_parse(t->record, f, err);

    if (code < 0)
        return code;
    if (!fragment_key_equal(&f->key, t->key) || f->k != c->k || f->m != c->m || f->entry.low != c->entry.low ||
        f->entry.high != c->entry.high || !cairn_delta_equal(&f->delta, &c->delta) ||
        memcmp(f->part, c->part, c->k * sizeof c->part[0]) != 0)
        return cairn_fail(err, CAIRN_E_CORRUPT, "a fragment that is not the manifest's");
    if (t->index < c->k && f->payload_len != c->part[t->index].coded_len)
        return cairn_fail(err, CAIRN_E_CORRUPT, "a fragment of a wrong length");
    return 0;
}

/* Copies and hashes block by block. One stream is enough for a part that begins its chunk: it makes both sums. */
static int take_payload(struct take *t, const struct fragment *f)
{
    bool raw = t->payload == t->target;
    struct hash_stream *entry = raw ? t->entry : NULL;
    struct hash_stream *own = entry && t->index == 0 ? NULL : hash_stream_new();
    const char *from = t->record + FRAGMENT_HEADER;

    if (!own && !(entry && t->index == 0))
        return cairn_fail(&t->err, CAIRN_E_NOMEM, "allocate a checksum");
    for (uint32_t at = 0; at < f->payload_len; at += BLOCK_BYTES) {
        uint32_t len = f->payload_len - at < BLOCK_BYTES ? f->payload_len - at : BLOCK_BYTES;
        memcpy(t->payload + at, from + at, len);
        if (own)
            hash_stream_add(own, t->payload + at, len);
        if (entry)
            hash_stream_add(entry, t->payload + at, len);
    }
    uint64_t sum = hash_stream_end64(own ? own : entry);
    hash_stream_free(own);
    return sum == f->payload_sum ? 0 : fragment_payload_wrong(f, sum, &t->err);
}

void take_fragment(struct take *t)
{
    struct fragment f;

    t->err = (struct cairn_error)CAIRN_ERROR_INIT;
    t->code = take_check(t, &f, &t->err);
    if (t->code == 0)
        t->code = take_payload(t, &f);
    if (t->code < 0)
        return;
    t->payload_len = f.payload_len;
    if (!t->target || t->target == t->payload)
        return;
    uint32_t plain_len = t->chunk->part[t->index].plain_len;
    if (codec_decode(t->codec, t->payload, f.payload_len, t->dtype, t->target, plain_len) != 0)
        t->code = cairn_fail(&t->err, CAIRN_E_CORRUPT, "part %u of a chunk does not decode", t->index);
    else if (t->entry)
        hash_stream_add(t->entry, t->target, plain_len);
}

/* ---- decode ---------------------------------------------------------------------------------- */

/* Computes the data fragments that are missing from the first k that are there. */
static int rebuild(struct decode *d)
{
    unsigned char matrix[CAIRN_MAX_FRAGS * CAIRN_MAX_K], rows[CAIRN_MAX_K * CAIRN_MAX_K],
        inverse[CAIRN_MAX_K * CAIRN_MAX_K];
    unsigned char wanted[CAIRN_MAX_K * CAIRN_MAX_K], tables[CAIRN_MAX_K * CAIRN_MAX_K * 32];
    unsigned char *have[CAIRN_MAX_K], *make[CAIRN_MAX_K];
    unsigned n = 0, missing = 0;
    uint32_t len = parity_len(d->part, d->k);

    parity_matrix(d->k, d->m, matrix);
    for (unsigned i = 0; i < d->k + d->m && n < d->k; i++) {
        if (!d->payload[i])
            continue;
        if (i < d->k) /* parity was made of it with zeros behind it */
            memset(d->payload[i] + d->part[i].coded_len, 0, len - d->part[i].coded_len);
        memcpy(rows + n * d->k, matrix + i * d->k, d->k);
        have[n++] = (unsigned char *)d->payload[i];
    }
    if (n < d->k)
        return cairn_fail(&d->err, CAIRN_E_CORRUPT, "%u of %u fragments are there, %u are needed", n, d->k + d->m,
                          d->k);
    if (gf_invert_matrix(rows, inverse, (int)d->k) < 0)
        return cairn_fail(&d->err, CAIRN_E_CORRUPT, "the stripe %u+%u cannot be solved", d->k, d->m);
    char *spare = d->scratch;
    for (unsigned i = 0; i < d->k; i++) {
        if (d->payload[i])
            continue;
        memcpy(wanted + missing * d->k, inverse + i * d->k, d->k);
        d->payload[i] = spare;
        make[missing++] = (unsigned char *)spare;
        spare += CAIRN_PART;
    }
    ec_init_tables((int)d->k, (int)missing, wanted, tables);
    ec_encode_data((int)len, (int)d->k, (int)missing, tables, have, make);
    return 0;
}

static bool needs_rebuild(const struct decode *d)
{
    for (unsigned i = 0; i < d->k; i++)
        if ((d->part_mask & 1u << i) && !d->payload[i])
            return true;
    return false;
}

static int decode_part(struct decode *d, unsigned i)
{
    const struct cairn_part_code *p = &d->part[i];
    bool delta = (p->params & CAIRN_PART_DELTA) && !d->undressed;
    char *to = d->target + i * CAIRN_PART;

    if (delta && !d->base)
        return cairn_fail(&d->err, CAIRN_E_CORRUPT, "part %u of a chunk is a delta, and its base is not there", i);
    if (!(d->decoded & 1u << i) &&
        codec_decode(d->codecs[i], d->payload[i], p->coded_len, d->dtype, to, p->plain_len) != 0)
        return cairn_fail(&d->err, CAIRN_E_CORRUPT, "part %u of a chunk does not decode", i);
    if (delta)
        delta_xor(to, d->base + i * CAIRN_PART, p->plain_len);
    return 0;
}

static int check_entry(struct decode *d)
{
    struct hash_stream *own = d->hash ? NULL : hash_stream_new(), *h = d->hash ? d->hash : own;
    struct hash128 sum;

    if (!h)
        return cairn_fail(&d->err, CAIRN_E_NOMEM, "allocate a checksum");
    for (unsigned i = d->hash ? d->hashed : 0; i < d->k; i++)
        hash_stream_add(h, d->target + i * CAIRN_PART, d->part[i].plain_len);
    sum = hash_stream_end(h);
    hash_stream_free(own);
    if (sum.low == d->entry.low && sum.high == d->entry.high)
        return 0;
    return cairn_fail(&d->err, CAIRN_E_CORRUPT, "the chunk's bytes do not have the checksum that its manifest says");
}

/* A rebuilt chunk is decoded whole, wanted or not: only then can its entry checksum vouch for what parity gave. */
void decode_chunk(struct decode *d)
{
    uint32_t all = (1u << d->k) - 1, decoded = d->part_mask;

    d->err = (struct cairn_error)CAIRN_ERROR_INIT;
    d->code = 0;
    if (needs_rebuild(d)) {
        d->code = rebuild(d);
        decoded = all;
    }
    for (unsigned i = 0; i < d->k && d->code == 0; i++)
        if (decoded & 1u << i)
            d->code = decode_part(d, i);
    if (d->code == 0 && decoded == all && !d->undressed)
        d->code = check_entry(d);
}

/* ---- remake ---------------------------------------------------------------------------------- */

static void remake_parity(struct remake *r, unsigned index, uint32_t len)
{
    unsigned char matrix[CAIRN_MAX_FRAGS * CAIRN_MAX_K], tables[CAIRN_MAX_K * 32];
    unsigned char *data[CAIRN_MAX_K], *parity = (unsigned char *)r->record[index] + FRAGMENT_HEADER;
    unsigned k = r->decode.k;

    for (unsigned i = 0; i < k; i++)
        data[i] = (unsigned char *)r->decode.payload[i];
    parity_matrix(k, r->decode.m, matrix);
    ec_init_tables((int)k, 1, matrix + index * k, tables);
    ec_encode_data((int)len, (int)k, 1, tables, data, &parity);
}

void remake_fragments(struct remake *r)
{
    struct decode *d = &r->decode;
    uint32_t whole = parity_len(d->part, d->k);

    /* Data fragments that are missing appear in d->payload, which is zero behind each payload's end. */
    d->part_mask = (1u << d->k) - 1;
    d->undressed = cairn_any_delta(d->part, d->k);
    decode_chunk(d);
    for (unsigned i = 0; i < d->k + d->m && d->code == 0; i++) {
        if (!(r->wanted & 1u << i))
            continue;
        char *payload = r->record[i] + FRAGMENT_HEADER;
        uint32_t len = i < d->k ? d->part[i].coded_len : whole;
        if (i < d->k)
            memcpy(payload, d->payload[i], len);
        else
            remake_parity(r, i, whole);
        memset(payload + len, 0, round_up_u64(len, CAIRN_BLOCK) - len);
        r->payload_len[i] = len;
        r->payload_sum[i] = cairn_hash64(payload, len, 0);
    }
}
