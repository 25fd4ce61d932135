/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/node/encode.h"

#include "core/base/bytes.h"
#include "core/base/error.h"
#include "core/model/hash.h"
#include "core/model/units.h"
#include "daemon/node/delta.h"
#include "daemon/node/parity.h"

#include <isa-l/erasure_code.h>

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define WORTH_NUM 19 /* a codec must save a twentieth: less is not worth a decode */
#define WORTH_DEN 20
#define BLOCK_BYTES ((size_t)16 << 10) /* read once from the arena, then from L1 */

struct pass { /* over one chunk */
    struct encode *e;
    struct hash_stream *entry;   /* of all parts */
    struct hash_stream *payload; /* of one */
    struct hash_stream *source;  /* of one, as its source is summed; NULL: nobody asks */
    struct numerics_part *found; /* of the part that is being encoded; NULL: nobody asks */
    char *unpacked;              /* parts that came packed; NULL: none did */
    char *copy;                  /* a part that is encoded */
    char *base;                  /* the base's parts, checked; NULL: none */
    char *diff;                  /* copy XOR base */
    const char *stable;          /* the part that is being encoded, where nobody else can change it; NULL: not yet */
    unsigned char tables[CAIRN_MAX_K * CAIRN_MAX_M * 32];
};

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static char *payload_of(const struct encode *e, unsigned fragment)
{
    return e->record[fragment] + FRAGMENT_HEADER;
}

/* ---- parity ---------------------------------------------------------------------------------- */

static void parity_begin(struct pass *p)
{
    struct encode *e = p->e;
    unsigned char matrix[CAIRN_MAX_FRAGS * CAIRN_MAX_K];

    if (e->m == 0)
        return;
    parity_matrix(e->k, e->m, matrix);
    ec_init_tables((int)e->k, (int)e->m, matrix + e->k * e->k, p->tables);
    uint32_t most = 0;
    for (unsigned i = 0; i < e->k; i++)
        most = e->plain_len[i] > most ? e->plain_len[i] : most;
    for (unsigned i = 0; i < e->m; i++)
        memset(payload_of(e, e->k + i), 0, round_up_u64(most, CAIRN_BLOCK));
}

/* Adds bytes [at, at + len) of a data fragment while they are in cache. What a fragment is shorter than others counts
 * as zero. */
static void parity_add(struct pass *p, unsigned part, const char *bytes, size_t at, size_t len)
{
    struct encode *e = p->e;
    unsigned char *parity[CAIRN_MAX_M];

    if (e->m == 0)
        return;
    for (unsigned i = 0; i < e->m; i++)
        parity[i] = (unsigned char *)payload_of(e, e->k + i) + at;
    ec_encode_data_update((int)len, (int)e->k, (int)e->m, (int)part, p->tables, (unsigned char *)bytes, parity);
}

static void parity_end(struct pass *p)
{
    struct encode *e = p->e;
    uint32_t len = parity_len(e->part, e->k);

    for (unsigned i = e->k; i < e->k + e->m; i++) {
        e->payload_len[i] = len;
        e->payload_sum[i] = cairn_hash64(payload_of(e, i), len, 0);
    }
}

/* ---- raw parts ------------------------------------------------------------------------------- */

/* Everything reads the block, which nobody else can change; to: where the bytes are wanted too, or NULL. */
static void raw_block(struct pass *p, unsigned part, const char *from, size_t at, size_t len, char *to)
{
    char block[BLOCK_BYTES];
    size_t padded = round_up_u64(len, 64);

    memcpy(block, from + at, len);
    memset(block + len, 0, padded - len);
    hash_stream_add(p->entry, block, len);
    hash_stream_add(p->payload, block, len);
    if (p->source)
        hash_stream_add(p->source, block, len);
    if (p->found)
        numerics_part_add(p->found, block, at, len);
    parity_add(p, part, block, at, padded);
    if (to)
        memcpy(to + at, block, len);
}

/* The last part of a shard may end within a block of the disk: what follows it in the arena is not zero, so it is sent
 * from a copy. */
static void raw_part(struct pass *p, unsigned i)
{
    struct encode *e = p->e;
    size_t len = e->plain_len[i];
    char *to;

    e->in_place[i] = e->can_send_plain && len % CAIRN_BLOCK == 0;
    to = e->in_place[i] ? NULL : payload_of(e, i);
    hash_stream_reset(p->payload);
    for (size_t at = 0; at < len; at += BLOCK_BYTES)
        raw_block(p, i, e->from[i], at, len - at < BLOCK_BYTES ? len - at : BLOCK_BYTES, to);
    e->payload_sum[i] = hash_stream_end64(p->payload);
    e->copied += to ? len : 0;
    if (to)
        memset(to + len, 0, round_up_u64(len, CAIRN_BLOCK) - len);
}

/* ---- encoded parts --------------------------------------------------------------------------- */

static void take_copy(struct pass *p, unsigned i)
{
    struct encode *e = p->e;

    if (p->stable)
        return;
    memcpy(p->copy, e->from[i], e->plain_len[i]);
    e->copied += e->plain_len[i];
    p->stable = p->copy;
}

/* Encodes the copy, or its delta; 0: it does not shrink enough. */
static int64_t encode_copy(struct pass *p, unsigned i, const struct codec *codec, bool delta)
{
    struct encode *e = p->e;
    size_t len = e->plain_len[i];

    take_copy(p, i);
    return codec_encode(codec, delta ? p->diff : p->stable, len, e->dtype, payload_of(e, i),
                        len * WORTH_NUM / WORTH_DEN);
}

/* A block at a time, as raw parts go through: each is gone through more than once. */
static void watch_copy(struct pass *p, size_t len)
{
    for (size_t at = 0; p->found && at < len; at += BLOCK_BYTES)
        numerics_part_add(p->found, p->stable + at, at, len - at < BLOCK_BYTES ? len - at : BLOCK_BYTES);
}

static void encoded_part(struct pass *p, unsigned i, size_t coded)
{
    struct encode *e = p->e;
    char *payload = payload_of(e, i);
    size_t padded = round_up_u64(coded, CAIRN_BLOCK);

    hash_stream_add(p->entry, p->stable, e->plain_len[i]);
    if (p->source)
        hash_stream_add(p->source, p->stable, e->plain_len[i]);
    watch_copy(p, e->plain_len[i]);
    memset(payload + coded, 0, padded - coded);
    e->payload_sum[i] = cairn_hash64(payload, coded, 0);
    parity_add(p, i, payload, 0, padded);
}

/* ---- the choice ------------------------------------------------------------------------------ */

/* Index of the codec; the arena's bytes may change under the sample: a wrong guess costs time only. */
static unsigned choose(const struct encode *e, unsigned i, const char *bytes)
{
    struct cairn_offer offers[CAIRN_CHOICES];
    uint32_t len = e->plain_len[i];

    for (unsigned c = 0; c < e->ncodecs; c++) {
        const struct codec *codec = e->codec[c].codec;
        bool suits = codec && cairn_codec_suits(codec_id(codec), e->dtype);
        size_t coded = suits ? codec_estimate(codec, bytes, len, e->dtype) : len;
        offers[c] = (struct cairn_offer){.coded = (uint32_t)coded, .speed = e->codec[c].speed};
        if (c > 0 && coded >= (uint64_t)len * WORTH_NUM / WORTH_DEN)
            offers[c] = (struct cairn_offer){.coded = UINT32_MAX, .speed = 1}; /* nobody takes it */
    }
    return cairn_choose(offers, e->ncodecs, len, &e->path, e->before);
}

static unsigned index_of(const struct encode *e, const struct codec *codec)
{
    for (unsigned c = 1; codec && c < e->ncodecs; c++)
        if (e->codec[c].codec == codec)
            return c;
    return 0;
}

/* What came packed is in the payload already, as the packer encodes it: nothing is encoded again, unless a delta of it
 * is smaller. The packer, when that is so; else 0. */
static unsigned as_it_came(const struct encode *e, unsigned i, bool delta)
{
    bool worth = e->came[i] && e->came[i] <= (uint64_t)e->plain_len[i] * WORTH_NUM / WORTH_DEN;

    return worth && !delta && !e->as_recorded ? index_of(e, e->packer) : 0;
}

static unsigned recorded(const struct encode *e, unsigned i)
{
    for (unsigned c = 1; c < e->ncodecs; c++)
        if (codec_id(e->codec[c].codec) == e->as_recorded[i].codec)
            return c;
    return 0;
}

/* ---- deltas ---------------------------------------------------------------------------------- */

#define BETTER_NUM 9 /* a delta must be expected to save a tenth of what is stored without: it costs reads */
#define BETTER_DEN 10

/* What the codecs expect at best. */
static size_t estimate(const struct encode *e, const char *bytes, size_t len)
{
    size_t best = len;

    for (unsigned c = 1; c < e->ncodecs; c++) {
        const struct codec *codec = e->codec[c].codec;
        if (!codec || !cairn_codec_suits(codec_id(codec), e->dtype))
            continue;
        size_t coded = codec_estimate(codec, bytes, len, e->dtype);
        best = coded < best ? coded : best;
    }
    return best;
}

/* Copies the base's parts and compares them with the base's checksum: their pages may have been given to another save,
 * or written to. What is compared is what is used. */
static int base_take(struct pass *p)
{
    struct encode *e = p->e;
    bool needed = e->as_recorded && cairn_any_delta(e->as_recorded, e->k);
    struct hash128 sum = {0};

    if (e->delta.depth && e->ncodecs > 1 && (needed || !e->as_recorded)) {
        p->base = malloc((e->k + 1) * CAIRN_PART);
        if (!p->base)
            return CAIRN_E_NOMEM;
        p->diff = p->base + e->k * CAIRN_PART;
        hash_stream_reset(p->payload);
        for (unsigned i = 0; i < e->k; i++) {
            memcpy(p->base + i * CAIRN_PART, e->base[i], e->plain_len[i]);
            e->copied += e->plain_len[i];
            hash_stream_add(p->payload, p->base + i * CAIRN_PART, e->plain_len[i]);
        }
        sum = hash_stream_end(p->payload);
    }
    if (p->base && sum.low == e->delta.entry.low && sum.high == e->delta.entry.high)
        return 0;
    free(p->base);
    p->base = p->diff = NULL;
    e->delta = (struct cairn_delta){.depth = 0};
    e->base_gone = needed;
    return needed ? CAIRN_E_NOT_FOUND : 0;
}

/* Makes copy and diff; whether the part is stored as its delta. */
static bool is_delta(struct pass *p, unsigned i)
{
    struct encode *e = p->e;
    size_t len = e->plain_len[i];

    if (!p->base || (e->as_recorded && !(e->as_recorded[i].params & CAIRN_PART_DELTA)))
        return false;
    take_copy(p, i);
    memcpy(p->diff, p->stable, len);
    e->copied += len;
    delta_xor(p->diff, p->base + i * CAIRN_PART, len);
    return e->as_recorded || estimate(e, p->diff, len) * BETTER_DEN < estimate(e, p->stable, len) * BETTER_NUM;
}

/* ---- sums of the source ---------------------------------------------------------------------- */

static int source_compare(const struct pass *p, unsigned i)
{
    struct hash128 sum;

    if (!p->source)
        return 0;
    sum = hash_stream_end(p->source);
    if (cairn_sum_agrees(&p->e->sums[i], &sum))
        return 0;
    p->e->differs = i + 1;
    return CAIRN_E_CORRUPT;
}

/* Of what came packed there is none: it says nothing about how fast its codec encodes. */
static void count_cost(struct encode *e, unsigned i, unsigned c, uint64_t ns)
{
    if (!e->as_recorded)
        e->before = c;
    e->cost[c].plain += e->plain_len[i];
    e->cost[c].coded += e->part[i].coded_len;
    e->cost[c].ns += ns;
}

static int encode_part(struct pass *p, unsigned i)
{
    struct encode *e = p->e;
    uint64_t begun = now_ns();
    uint32_t len = e->plain_len[i];

    p->stable = e->came[i] ? e->from[i] : NULL;
    if (p->source)
        hash_stream_reset_seeded(p->source, e->sums_seed);
    if (e->numerics) {
        p->found = e->found[i] = numerics_part_new(e->numerics, e->first_part + i);
        if (!p->found)
            return CAIRN_E_NOMEM;
    }
    bool delta = is_delta(p, i);
    unsigned came = as_it_came(e, i, delta), c = came;
    if (!came)
        c = e->as_recorded ? recorded(e, i) : choose(e, i, delta ? p->diff : e->from[i]);
    int64_t coded = came ? (int64_t)e->came[i] : c ? encode_copy(p, i, e->codec[c].codec, delta) : 0;

    if (coded < 0)
        return (int)coded;
    if (coded == 0)
        c = 0;
    e->part[i] = (struct cairn_part_code){.plain_len = len, .coded_len = c ? (uint32_t)coded : len};
    e->part[i].codec = c ? codec_id(e->codec[c].codec) : CAIRN_CODEC_RAW;
    e->part[i].params = c && delta ? CAIRN_PART_DELTA : 0; /* raw is never a delta: it would not be smaller */
    e->payload_len[i] = e->part[i].coded_len;
    if (c)
        encoded_part(p, i, (size_t)coded);
    else
        raw_part(p, i);
    if (came)
        e->kept += len;
    else
        count_cost(e, i, c, now_ns() - begun);
    return source_compare(p, i);
}

/* ---- the chunk ------------------------------------------------------------------------------- */

void encode_chunk(struct encode *e)
{
    struct pass p = {.e = e, .entry = hash_stream_new(), .payload = hash_stream_new()};

    p.copy = e->ncodecs > 1 ? malloc(CAIRN_PART) : NULL;
    p.source = e->sums ? hash_stream_new() : NULL;
    e->differs = 0;
    e->same = false;
    e->code = p.entry && p.payload && (p.copy || e->ncodecs == 1) && (p.source || !e->sums) ? 0 : CAIRN_E_NOMEM;
    if (e->code == 0)
        e->code = encode_unpack(e, &p.unpacked);
    if (e->code == 0 && e->maybe.depth)
        e->code = encode_same(e);
    if (e->code == 0)
        e->code = base_take(&p);
    if (e->code == 0)
        parity_begin(&p);
    for (unsigned i = 0; i < e->k && e->code == 0; i++)
        e->code = encode_part(&p, i);
    if (e->code > 0) {
        e->code = 0;
    } else if (e->code == 0) {
        e->entry = hash_stream_end(p.entry);
        parity_end(&p);
        if (!cairn_any_delta(e->part, e->k))
            e->delta = (struct cairn_delta){.depth = 0};
    }
    free(p.base);
    free(p.unpacked);
    hash_stream_free(p.entry);
    hash_stream_free(p.payload);
    hash_stream_free(p.source);
    free(p.copy);
}
