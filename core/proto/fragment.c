/* SPDX-License-Identifier: Apache-2.0 */
/* The header block of a fragment, little-endian:
 *
 *     offset  bytes  field
 *     0       8      magic "CRNFRAG1"
 *     8       4      version: 1, or 2 when the chunk has a base
 *     12      4      required features: bits that a reader must know, 0 today
 *     16      8      generation of the stream file
 *     24      8      step
 *     32      8      incarnation
 *     40      1      kind
 *     41      1+1    k, m
 *     43      1      dtype of the chunk
 *     44      4      rank
 *     48      4      first part of the chunk, or a blob's piece
 *     52      4      attempt
 *     56      4      index in the stripe
 *     60      4      bytes of the payload
 *     64      8      XXH3-64 of the payload
 *     72      16     XXH3-128 of the chunk's plain bytes, low half first
 *     88      8      bytes of the whole blob
 *     96      32     SHA-256 of the whole blob
 *     128     4+4+4  key id, tenant, tier: reserved, 0
 *     140     4      reserved, 0
 *     144     132    job, zero-terminated and zero-filled
 *     276     132    node, likewise
 *     408     12*16  parts of the stripe: codec (2), params (2), plain bytes (4), coded bytes (4)
 *     600     8      XXH3-64 of bytes 0 to 599
 *     608     3488   zero
 *
 * Version 2 has the base behind the parts, and its checksum behind that; whoever knows version 1 only refuses it,
 * rather than take a delta for the bytes themselves:
 *
 *     600     8      step of the base
 *     608     8      incarnation of the base
 *     616     16     XXH3-128 of the base's plain bytes, low half first
 *     632     4      how many bases are read before this chunk, 1 to 4
 *     636     4      zero
 *     640     8      XXH3-64 of bytes 0 to 639
 *     648     3448   zero
 */
#include "core/proto/fragment.h"

#include "core/base/error.h"
#include "core/model/name.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define MAGIC 0x31474152464e5243ull /* "CRNFRAG1" */
#define VERSION 1
#define VERSION_DELTA 2
#define NAME_ROOM 132
#define SUMMED 600
#define SUMMED_DELTA 640
#define SUM_LEN 8
#define RESERVED 128 /* key id, tenant, tier and what follows them */
#define RESERVED_LEN 16

bool fragment_key_equal(const struct fragment_key *a, const struct fragment_key *b)
{
    return a->kind == b->kind && a->step == b->step && a->incarnation == b->incarnation && a->rank == b->rank &&
           a->first_part == b->first_part && a->attempt == b->attempt && a->index == b->index &&
           strcmp(a->job, b->job) == 0 && strcmp(a->node, b->node) == 0;
}

size_t fragment_record_len(uint32_t payload_len)
{
    return FRAGMENT_HEADER + round_up_u64(payload_len, CAIRN_BLOCK);
}

/* ---- writing --------------------------------------------------------------------------------- */

struct writer {
    uint8_t *at;
};

static void put(struct writer *w, uint64_t v, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        *w->at++ = (uint8_t)(v >> (8 * i));
}

static void put_name(struct writer *w, const char name[CAIRN_MAX_NAME + 1])
{
    size_t len = strnlen(name, CAIRN_MAX_NAME);

    memcpy(w->at, name, len);
    memset(w->at + len, 0, NAME_ROOM - len);
    w->at += NAME_ROOM;
}

static void put_delta(struct writer *w, const struct cairn_delta *d)
{
    put(w, d->step, 8);
    put(w, d->incarnation, 8);
    put(w, d->entry.low, 8);
    put(w, d->entry.high, 8);
    put(w, d->depth, 4);
    put(w, 0, 4);
}

void fragment_seal(const struct fragment *f, void *block)
{
    struct writer w = {block};

    memset(block, 0, FRAGMENT_HEADER);
    put(&w, MAGIC, 8);
    put(&w, f->delta.depth ? VERSION_DELTA : VERSION, 4);
    put(&w, 0, 4);
    put(&w, f->generation, 8);
    put(&w, f->key.step, 8);
    put(&w, f->key.incarnation, 8);
    put(&w, (uint64_t)f->key.kind, 1);
    put(&w, f->k, 1);
    put(&w, f->m, 1);
    put(&w, (uint64_t)f->dtype, 1);
    put(&w, f->key.rank, 4);
    put(&w, f->key.first_part, 4);
    put(&w, f->key.attempt, 4);
    put(&w, f->key.index, 4);
    put(&w, f->payload_len, 4);
    put(&w, f->payload_sum, 8);
    put(&w, f->entry.low, 8);
    put(&w, f->entry.high, 8);
    put(&w, f->blob_len, 8);
    memcpy(w.at, f->blob_sha256, sizeof f->blob_sha256);
    w.at += sizeof f->blob_sha256;
    put(&w, f->key_id, 4);
    put(&w, f->tenant, 4);
    put(&w, f->tier, 4);
    put(&w, 0, 4);
    put_name(&w, f->key.job);
    put_name(&w, f->key.node);
    for (unsigned i = 0; i < CAIRN_MAX_K; i++) {
        put(&w, f->part[i].codec, 2);
        put(&w, f->part[i].params, 2);
        put(&w, f->part[i].plain_len, 4);
        put(&w, f->part[i].coded_len, 4);
    }
    if (f->delta.depth)
        put_delta(&w, &f->delta);
    put(&w, cairn_hash64(block, f->delta.depth ? SUMMED_DELTA : SUMMED, 0), SUM_LEN);
}

/* ---- reading --------------------------------------------------------------------------------- */

static bool all_zero(const char *at, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (at[i])
            return false;
    return true;
}

/* A name that is not terminated and zero-filled reads as the empty one, which no check lets pass. */
static void get_name(struct bytes_reader *r, char ret[CAIRN_MAX_NAME + 1])
{
    const char *from = bytes_get(r, NAME_ROOM);
    size_t len = strnlen(from, CAIRN_MAX_NAME);

    memset(ret, 0, CAIRN_MAX_NAME + 1);
    if (all_zero(from + len, NAME_ROOM - len))
        memcpy(ret, from, len);
}

static int check_front(struct bytes_reader *r, const void *block, bool *ret_delta, struct cairn_error *err)
{
    uint64_t magic = bytes_get_u64(r), sum;
    uint32_t version = bytes_get_u32(r), features = bytes_get_u32(r);
    size_t summed = version == VERSION_DELTA ? SUMMED_DELTA : SUMMED, used = summed + SUM_LEN;
    struct bytes_reader end = {.data = block, .len = FRAGMENT_HEADER, .at = summed};

    sum = bytes_get_u64(&end);
    if (magic != MAGIC)
        return cairn_fail(err, CAIRN_E_CORRUPT, "it is no fragment (magic %016" PRIx64 ")", magic);
    if ((version != VERSION && version != VERSION_DELTA) || features != 0)
        return cairn_fail(err, CAIRN_E_UNSUPPORTED,
                          "a fragment of version %u with features 0x%x: this reader knows versions %d and %d", version,
                          features, VERSION, VERSION_DELTA);
    if (sum != cairn_hash64(block, summed, 0))
        return cairn_fail(err, CAIRN_E_CORRUPT, "the checksum of a fragment's header does not match");
    if (!all_zero((const char *)block + used, FRAGMENT_HEADER - used))
        return cairn_fail(err, CAIRN_E_CORRUPT, "the block of a fragment's header is not zero behind it");
    *ret_delta = version == VERSION_DELTA;
    return 0;
}

static int check_part(const struct cairn_part_code *p, struct cairn_error *err)
{
    if (p->plain_len >= 1 && p->plain_len <= CAIRN_PART && p->coded_len >= 1 && p->coded_len <= p->plain_len)
        return 0;
    return cairn_fail(err, CAIRN_E_CORRUPT, "a stripe with a part of %u bytes coded in %u", p->plain_len, p->coded_len);
}

/* A data fragment is its part, parity has the length of the longest part in whole blocks. */
static int check_stripe(const struct fragment *f, struct cairn_error *err)
{
    uint32_t longest = 0;
    int r = 0;

    for (unsigned i = 0; i < f->k && r == 0; i++) {
        r = check_part(&f->part[i], err);
        if (f->part[i].coded_len > longest)
            longest = f->part[i].coded_len;
    }
    if (r < 0)
        return r;
    uint64_t want = f->key.index < f->k ? f->part[f->key.index].coded_len : round_up_u64(longest, CAIRN_BLOCK);
    if (f->payload_len != want)
        return cairn_fail(err, CAIRN_E_CORRUPT, "a fragment %u of %u bytes whose stripe gives it %u", f->key.index,
                          f->payload_len, (unsigned)want);
    return 0;
}

/* Pieces of a blob are whole but for the last one. */
static int check_piece(const struct fragment *f, struct cairn_error *err)
{
    uint64_t begin = (uint64_t)f->key.first_part * CAIRN_PART;

    if (f->k == 1 && f->m == 0 && begin < f->blob_len &&
        f->payload_len == (f->blob_len - begin < CAIRN_PART ? f->blob_len - begin : CAIRN_PART))
        return 0;
    return cairn_fail(err, CAIRN_E_CORRUPT, "piece %u of %u bytes of a blob of %" PRIu64, f->key.first_part,
                      f->payload_len, f->blob_len);
}

/* The checksum proves that a daemon wrote it, not that the daemon was right. */
static int check_fields(const struct fragment *f, struct cairn_error *err)
{
    int r = cairn_name_check("job", f->key.job, err);

    if (r == 0)
        r = cairn_name_check("node", f->key.node, err);
    if (r < 0)
        return cairn_wrap(err, CAIRN_E_CORRUPT, "a fragment's header");
    if (f->key.kind < FRAGMENT_DATA || f->key.kind > FRAGMENT_DECISION)
        return cairn_fail(err, CAIRN_E_UNSUPPORTED, "a fragment of kind %d, which this reader does not know",
                          f->key.kind);
    if (f->k < 1 || f->k > CAIRN_MAX_K || f->m > CAIRN_MAX_M || f->key.index >= (uint32_t)f->k + f->m)
        return cairn_fail(err, CAIRN_E_CORRUPT, "a fragment %u of a stripe %u+%u", f->key.index, f->k, f->m);
    if (f->payload_len < 1 || f->payload_len > CAIRN_PART)
        return cairn_fail(err, CAIRN_E_CORRUPT, "a fragment of %u bytes", f->payload_len);
    if (!cairn_dtype_size(f->dtype))
        return cairn_fail(err, CAIRN_E_CORRUPT, "a fragment of dtype %d, which does not exist", f->dtype);
    return f->key.kind == FRAGMENT_DATA ? check_stripe(f, err) : check_piece(f, err);
}

/* Whatever these will mean, a reader of this version would misread the fragment. */
static int check_reserved(const void *block, struct cairn_error *err)
{
    if (all_zero((const char *)block + RESERVED, RESERVED_LEN))
        return 0;
    return cairn_fail(err, CAIRN_E_UNSUPPORTED,
                      "a fragment with a key id, a tenant or a tier, which version %d has not", VERSION);
}

static void get_fields(struct bytes_reader *r, struct fragment *f)
{
    f->generation = bytes_get_u64(r);
    f->key.step = bytes_get_u64(r);
    f->key.incarnation = bytes_get_u64(r);
    f->key.kind = bytes_get_u8(r);
    f->k = bytes_get_u8(r);
    f->m = bytes_get_u8(r);
    f->dtype = bytes_get_u8(r);
    f->key.rank = bytes_get_u32(r);
    f->key.first_part = bytes_get_u32(r);
    f->key.attempt = bytes_get_u32(r);
    f->key.index = bytes_get_u32(r);
    f->payload_len = bytes_get_u32(r);
    f->payload_sum = bytes_get_u64(r);
    f->entry.low = bytes_get_u64(r);
    f->entry.high = bytes_get_u64(r);
    f->blob_len = bytes_get_u64(r);
    memcpy(f->blob_sha256, bytes_get(r, sizeof f->blob_sha256), sizeof f->blob_sha256);
    f->key_id = bytes_get_u32(r);
    f->tenant = bytes_get_u32(r);
    f->tier = (uint8_t)bytes_get_u32(r);
    bytes_get_u32(r);
    get_name(r, f->key.job);
    get_name(r, f->key.node);
    for (unsigned i = 0; i < CAIRN_MAX_K; i++) {
        f->part[i].codec = bytes_get_u16(r);
        f->part[i].params = bytes_get_u16(r);
        f->part[i].plain_len = bytes_get_u32(r);
        f->part[i].coded_len = bytes_get_u32(r);
    }
}

/* Version 2 says that there is a base: a depth that is none, or does not fit the field, is damage. */
static int get_delta(struct bytes_reader *r, struct fragment *f, struct cairn_error *err)
{
    struct cairn_delta *d = &f->delta;
    uint32_t depth, zero;

    d->step = bytes_get_u64(r);
    d->incarnation = bytes_get_u64(r);
    d->entry.low = bytes_get_u64(r);
    d->entry.high = bytes_get_u64(r);
    depth = bytes_get_u32(r);
    zero = bytes_get_u32(r);
    if (depth < 1 || depth > CAIRN_MAX_CHAIN || zero || f->key.kind != FRAGMENT_DATA)
        return cairn_fail(err, CAIRN_E_CORRUPT, "a fragment of kind %d behind %u bases: at most %d are possible",
                          f->key.kind, depth, CAIRN_MAX_CHAIN);
    d->depth = (uint8_t)depth;
    return 0;
}

static int check_delta(const struct fragment *f, struct cairn_error *err)
{
    const char *wrong =
        cairn_delta_wrong(&f->delta, f->part, f->key.kind == FRAGMENT_DATA ? f->k : 0, f->key.step, f->key.incarnation);

    return wrong ? cairn_fail(err, CAIRN_E_CORRUPT, "a fragment with %s", wrong) : 0;
}

int fragment_parse(const void *block, struct fragment *ret, struct cairn_error *err)
{
    struct bytes_reader r = {.data = block, .len = FRAGMENT_HEADER};
    struct fragment f = {.k = 0};
    bool delta = false;
    int code = check_front(&r, block, &delta, err);

    if (code < 0)
        return code;
    get_fields(&r, &f);
    code = delta ? get_delta(&r, &f, err) : 0;
    if (code == 0)
        code = check_fields(&f, err);
    if (code == 0)
        code = check_delta(&f, err);
    if (code == 0)
        code = check_reserved(block, err);
    if (code == 0)
        *ret = f;
    return code;
}

int fragment_payload_wrong(const struct fragment *f, uint64_t sum, struct cairn_error *err)
{
    char what[512];

    fragment_describe(&f->key, what, sizeof what);
    return cairn_fail(err, CAIRN_E_CORRUPT,
                      "%s: the checksum of its %u bytes is %016" PRIx64 ", its header says %016" PRIx64, what,
                      f->payload_len, sum, f->payload_sum);
}

int fragment_check_payload(const struct fragment *f, const void *payload, struct cairn_error *err)
{
    uint64_t sum = cairn_hash64(payload, f->payload_len, 0);

    return sum == f->payload_sum ? 0 : fragment_payload_wrong(f, sum, err);
}

void fragment_describe(const struct fragment_key *key, char *buf, size_t len)
{
    static const char *const kinds[] = {"fragment", "fragment", "manifest", "root", "decision"};
    const char *kind = kinds[key->kind >= 0 && key->kind <= FRAGMENT_DECISION ? key->kind : 0];

    if (key->kind == FRAGMENT_DATA)
        snprintf(buf, len, "%s step %" PRIu64 ".%" PRIu64 " node %s rank %u part %u attempt %u fragment %u", key->job,
                 key->step, key->incarnation, key->node, key->rank, key->first_part, key->attempt, key->index);
    else
        snprintf(buf, len, "%s step %" PRIu64 ".%" PRIu64 " node %s %s of rank %u piece %u", key->job, key->step,
                 key->incarnation, key->node, kind, key->rank, key->first_part);
}
