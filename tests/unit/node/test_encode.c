/* SPDX-License-Identifier: Apache-2.0 */
/* Encoding and rebuilding a chunk: any m of k+m fragments may be lost, whatever the codecs made of the parts.
 * Catches: a wrong row of the code, parts of different coded lengths in one stripe, padding that is not zero. */
#include "core/base/bytes.h"
#include "core/model/units.h"
#include "daemon/node/codecs.h"
#include "daemon/node/decode.h"
#include "daemon/node/delta.h"
#include "daemon/node/encode.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct world {
    struct plugins *plugins;
    struct codec *raw, *lz4;
    char *plain[CAIRN_MAX_K];
    char *record[CAIRN_MAX_FRAGS], *again[CAIRN_MAX_FRAGS];
    char *target, *scratch;
};

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof *w);

    assert_int_equal(plugins_new(PLUGIN_DIR, &w->plugins, NULL), 0);
    assert_int_equal(plugins_codec(w->plugins, "raw", &w->raw, NULL), 0);
    assert_int_equal(plugins_codec(w->plugins, "lz4", &w->lz4, NULL), 0);
    for (unsigned i = 0; i < 8; i++) {
        w->plain[i] = malloc(CAIRN_PART);
        uint64_t r = i + 1;
        for (size_t b = 0; b < CAIRN_PART; b++) { /* every other part repeats, so that codecs differ within a stripe */
            r = r * 6364136223846793005ull + 1442695040888963407ull;
            w->plain[i][b] = i % 2 ? (char)(b / 64) : (char)(r >> 56);
        }
    }
    for (unsigned i = 0; i < CAIRN_MAX_FRAGS; i++) {
        w->record[i] = malloc(FRAGMENT_MAX_RECORD);
        w->again[i] = malloc(FRAGMENT_MAX_RECORD);
    }
    w->target = malloc(8 * CAIRN_PART);
    w->scratch = malloc(8 * CAIRN_PART);
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;

    for (unsigned i = 0; i < 8; i++)
        free(w->plain[i]);
    for (unsigned i = 0; i < CAIRN_MAX_FRAGS; i++) {
        free(w->record[i]);
        free(w->again[i]);
    }
    free(w->target);
    free(w->scratch);
    plugins_free(w->plugins);
    free(w);
    return 0;
}

static struct encode encode(struct world *w, unsigned k, unsigned m, size_t last_len, char **record)
{
    struct encode e = {
        .k = k, .m = m, .dtype = CAIRN_U8, .ncodecs = 2, .before = CAIRN_CHOICES, .path = {.k = k, .m = m}};

    e.codec[0].speed = e.codec[1].speed = 1ull << 40; /* the smaller one is taken */
    e.codec[1].codec = w->lz4;

    for (unsigned i = 0; i < k; i++) {
        e.plain[i] = w->plain[i];
        e.plain_len[i] = (uint32_t)(i + 1 == k ? last_len : CAIRN_PART);
    }
    for (unsigned i = 0; i < k + m; i++)
        e.record[i] = record[i];
    encode_chunk(&e);
    assert_int_equal(e.code, 0);
    return e;
}

static void decode_without(struct world *w, const struct encode *e, uint32_t lost, uint32_t mask, int expect)
{
    struct decode d = {.k = e->k,
                       .m = e->m,
                       .dtype = e->dtype,
                       .entry = e->entry,
                       .part_mask = mask,
                       .target = w->target,
                       .scratch = w->scratch};
    char *copies[CAIRN_MAX_FRAGS] = {NULL};

    memcpy(d.part, e->part, sizeof d.part);
    memset(w->target, 0xee, 8 * CAIRN_PART);
    for (unsigned i = 0; i < e->k + e->m; i++) {
        if (i < e->k)
            d.codecs[i] = e->part[i].codec == CAIRN_CODEC_LZ4 ? w->lz4 : w->raw;
        if (lost & 1u << i)
            continue;
        d.payload[i] = copies[i] = calloc(1, CAIRN_PART);
        memcpy(copies[i], e->record[i] + FRAGMENT_HEADER, e->payload_len[i]);
    }
    decode_chunk(&d);
    assert_int_equal(d.code, expect);
    for (unsigned i = 0; i < e->k && expect == 0; i++)
        if (mask & 1u << i)
            assert_memory_equal(w->target + i * CAIRN_PART, w->plain[i], e->plain_len[i]);
    for (unsigned i = 0; i < e->k + e->m; i++)
        free(copies[i]);
}

/* What is made again is byte for byte what was lost, parity too. */
static void remake_without(struct world *w, const struct encode *e, uint32_t lost, int expect)
{
    struct remake r = {.wanted = lost};
    struct decode *d = &r.decode;
    char *copies[CAIRN_MAX_FRAGS] = {NULL};

    *d = (struct decode){
        .k = e->k, .m = e->m, .dtype = e->dtype, .entry = e->entry, .target = w->target, .scratch = w->scratch};
    memcpy(d->part, e->part, sizeof d->part);
    for (unsigned i = 0; i < e->k + e->m; i++) {
        if (i < e->k)
            d->codecs[i] = e->part[i].codec == CAIRN_CODEC_LZ4 ? w->lz4 : w->raw;
        r.record[i] = w->again[i];
        memset(w->again[i], 0xee, FRAGMENT_MAX_RECORD);
        if (lost & 1u << i)
            continue;
        d->payload[i] = copies[i] = calloc(1, CAIRN_PART);
        memcpy(copies[i], e->record[i] + FRAGMENT_HEADER, e->payload_len[i]);
    }
    remake_fragments(&r);
    assert_int_equal(d->code, expect);
    for (unsigned i = 0; i < e->k + e->m && expect == 0; i++) {
        if (!(lost & 1u << i))
            continue;
        assert_int_equal(r.payload_len[i], e->payload_len[i]);
        assert_true(r.payload_sum[i] == e->payload_sum[i]);
        size_t padded = fragment_record_len(e->payload_len[i]) - FRAGMENT_HEADER;
        assert_memory_equal(r.record[i] + FRAGMENT_HEADER, e->record[i] + FRAGMENT_HEADER, padded);
    }
    for (unsigned i = 0; i < e->k + e->m; i++)
        free(copies[i]);
}

static void test_remake(void **state)
{
    static const struct {
        unsigned k, m;
    } shapes[] = {{1, 1}, {1, 2}, {2, 2}, {3, 2}, {4, 2}};
    struct world *w = *state;

    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        unsigned n = shapes[s].k + shapes[s].m;
        struct encode e = encode(w, shapes[s].k, shapes[s].m, 12345, w->record);
        for (uint32_t lost = 1; lost < 1u << n; lost++)
            if ((unsigned)__builtin_popcount(lost) <= shapes[s].m)
                remake_without(w, &e, lost, 0);
        remake_without(w, &e, (1u << (shapes[s].m + 1)) - 1, CAIRN_E_CORRUPT);
    }
    struct encode e =
        encode(w, 2, 2, 12345, w->record); /* a fragment that is not the chunk's: nothing is made from it */
    w->record[1][FRAGMENT_HEADER] ^= 1;
    remake_without(w, &e, 1, CAIRN_E_CORRUPT);
}

static void test_every_loss_up_to_m(void **state)
{
    static const struct {
        unsigned k, m;
    } shapes[] = {{1, 0}, {1, 1}, {1, 2}, {2, 1}, {2, 2}, {3, 2}, {4, 2}};
    struct world *w = *state;

    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        unsigned n = shapes[s].k + shapes[s].m;
        struct encode e = encode(w, shapes[s].k, shapes[s].m, 12345, w->record);
        for (uint32_t lost = 0; lost < 1u << n; lost++) {
            unsigned count = (unsigned)__builtin_popcount(lost);
            bool hurts = lost & ((1u << shapes[s].k) - 1);
            if (count <= shapes[s].m)
                decode_without(w, &e, lost, (1u << shapes[s].k) - 1, 0);
            else if (hurts && count == shapes[s].m + 1)
                decode_without(w, &e, lost, (1u << shapes[s].k) - 1, CAIRN_E_CORRUPT);
        }
    }
}

static void test_one_part_of_many(void **state)
{
    struct world *w = *state;
    struct encode e = encode(w, 4, 2, 777, w->record);

    decode_without(w, &e, 0x2e, 1, 0); /* only its own fragment is needed */
    decode_without(w, &e, 0x03, 2, 0); /* its own is lost: rebuilt, checked, given */
}

/* A fragment is encoded again from the arena for a spare peer: it must be the same bytes. */
static void test_encoding_again_gives_the_same(void **state)
{
    struct world *w = *state;
    struct encode a = encode(w, 4, 2, 5000, w->record), b = encode(w, 4, 2, 5000, w->again);

    assert_memory_equal(&a.entry, &b.entry, sizeof a.entry);
    assert_memory_equal(a.part, b.part, 4 * sizeof a.part[0]);
    assert_int_equal(a.part[0].codec, CAIRN_CODEC_RAW);
    assert_int_equal(a.part[1].codec, CAIRN_CODEC_LZ4);
    assert_int_equal(a.copied, 3 * CAIRN_PART + 5000); /* raw parts to be sent, the others to be encoded */
    for (unsigned i = 0; i < 6; i++) {
        size_t padded = round_up_u64(a.payload_len[i], CAIRN_BLOCK);
        assert_int_equal(a.payload_len[i], b.payload_len[i]);
        assert_memory_equal(w->record[i] + FRAGMENT_HEADER, w->again[i] + FRAGMENT_HEADER, padded);
        for (size_t at = a.payload_len[i]; at < padded; at++)
            assert_int_equal(w->record[i][FRAGMENT_HEADER + at], 0);
    }
}

/* The fragments are right and the manifest's checksum is not: no byte may pass as verified. */
static void test_the_entry_checksum_has_the_last_word(void **state)
{
    struct world *w = *state;
    struct encode e = encode(w, 2, 1, 4096, w->record);

    e.entry.low ^= 1;
    decode_without(w, &e, 0, 3, CAIRN_E_CORRUPT);
}

/* The same chunk as XOR with a base, which is scratch's neighbour here: a delta in a part, the other as it is. */
static void test_a_delta_needs_its_base(void **state)
{
    struct world *w = *state;
    char *plain[2] = {w->plain[0], w->plain[1]}, *base = malloc(2 * CAIRN_PART), *diff = malloc(CAIRN_PART);
    struct encode e;
    struct decode d;

    assert_non_null(base);
    assert_non_null(diff);
    for (size_t i = 0; i < 2 * CAIRN_PART; i++)
        base[i] = (char)(i * 7 + i / 4099);
    memcpy(diff, plain[1], CAIRN_PART);
    delta_xor(diff, base + CAIRN_PART, 12345);
    for (size_t i = 0; i < 12345; i++) /* vector and tail */
        assert_int_equal(diff[i], (char)(plain[1][i] ^ base[CAIRN_PART + i]));
    w->plain[1] = diff; /* what the codec is given */
    e = encode(w, 2, 1, 12345, w->record);
    w->plain[1] = plain[1];
    struct hash_stream *h = hash_stream_new();
    hash_stream_add(h, plain[0], CAIRN_PART);
    hash_stream_add(h, plain[1], 12345);
    e.entry = hash_stream_end(h);
    hash_stream_free(h);
    e.part[1].params = CAIRN_PART_DELTA;
    for (unsigned lost = 0; lost < 3; lost++) { /* none, the first, the delta */
        d = (struct decode){.k = 2,
                            .m = 1,
                            .dtype = e.dtype,
                            .entry = e.entry,
                            .part_mask = 3,
                            .target = w->target,
                            .scratch = w->scratch,
                            .base = base};
        memcpy(d.part, e.part, sizeof d.part);
        for (unsigned i = 0; i < 2; i++)
            d.codecs[i] = e.part[i].codec == CAIRN_CODEC_LZ4 ? w->lz4 : w->raw;
        char *copies[3];
        for (unsigned i = 0; i < 3; i++) {
            copies[i] = calloc(1, CAIRN_PART);
            memcpy(copies[i], e.record[i] + FRAGMENT_HEADER, e.payload_len[i]);
            d.payload[i] = lost == i + 1 ? NULL : copies[i];
        }
        struct decode bare = d, other = d;
        decode_chunk(&d);
        assert_int_equal(d.code, 0);
        assert_memory_equal(w->target, plain[0], CAIRN_PART);
        assert_memory_equal(w->target + CAIRN_PART, plain[1], 12345);
        base[CAIRN_PART] ^= 1; /* not the base that it was made against */
        decode_chunk(&other);
        assert_int_equal(other.code, CAIRN_E_CORRUPT);
        base[CAIRN_PART] ^= 1;
        bare.base = NULL;
        decode_chunk(&bare);
        assert_int_equal(bare.code, CAIRN_E_CORRUPT);
        for (unsigned i = 0; i < 3; i++)
            free(copies[i]);
    }
    for (uint32_t lost = 1; lost <= 4; lost *= 2) /* fragments are made again without the base */
        remake_without(w, &e, lost, 0);
    free(base);
    free(diff);
}

static struct encode encode_against(struct world *w, char *const *base, struct hash128 entry,
                                    const struct cairn_part_code *as)
{
    struct encode e = {.k = 2,
                       .m = 1,
                       .dtype = CAIRN_U8,
                       .ncodecs = 2,
                       .before = CAIRN_CHOICES,
                       .path = {.k = 2, .m = 1},
                       .as_recorded = as,
                       .delta = {.step = 1, .incarnation = 1, .entry = entry, .depth = 1}};

    e.codec[0].speed = e.codec[1].speed = 1ull << 40;
    e.codec[1].codec = w->lz4;
    for (unsigned i = 0; i < 2; i++) {
        e.plain[i] = w->plain[i];
        e.plain_len[i] = i ? 12345 : CAIRN_PART;
        e.base[i] = base[i];
    }
    for (unsigned i = 0; i < 3; i++)
        e.record[i] = w->record[i];
    encode_chunk(&e);
    return e;
}

/* Catches: a base that is used although its bytes are not what was committed, a delta that cannot be made again. */
static void test_a_base_that_changed_is_none(void **state)
{
    struct world *w = *state;
    char *base[2] = {malloc(CAIRN_PART), malloc(CAIRN_PART)};
    struct hash_stream *h = hash_stream_new();

    for (unsigned i = 0; i < 2; i++) { /* little has changed since: its XOR is nearly all zero */
        memcpy(base[i], w->plain[i], CAIRN_PART);
        for (size_t at = 0; at < CAIRN_PART; at += 1000)
            base[i][at] ^= 0x55;
        hash_stream_add(h, base[i], i ? 12345 : CAIRN_PART);
    }
    struct hash128 entry = hash_stream_end(h);
    hash_stream_free(h);
    struct encode e = encode_against(w, base, entry, NULL);
    assert_int_equal(e.code, 0);
    assert_int_equal(e.part[0].params, CAIRN_PART_DELTA);
    assert_int_equal(e.delta.depth, 1);
    struct encode again = encode_against(w, base, entry, e.part);
    assert_int_equal(again.code, 0);
    assert_memory_equal(again.part, e.part, sizeof e.part);
    assert_memory_equal(again.payload_sum, e.payload_sum, 3 * sizeof e.payload_sum[0]);
    base[1][77] ^= 1; /* its process wrote to the page */
    again = encode_against(w, base, entry, e.part);
    assert_true(again.base_gone && again.code < 0);
    again = encode_against(w, base, entry, NULL);
    assert_int_equal(again.code, 0);
    assert_int_equal(again.delta.depth, 0);
    assert_int_equal(again.part[0].params | again.part[1].params, 0);
    assert_memory_equal(&again.entry, &e.entry, sizeof e.entry);
    free(base[0]);
    free(base[1]);
}

/* ---- taking fragments one by one, as a gather does ------------------------------------------- */

static void seal(struct world *w, const struct encode *e, const struct fragment_key *key, struct chunk_record *c)
{
    *c =
        (struct chunk_record){.first_part = key->first_part, .k = (uint8_t)e->k, .m = (uint8_t)e->m, .entry = e->entry};
    memcpy(c->part, e->part, sizeof c->part);
    for (unsigned i = 0; i < e->k + e->m; i++) {
        struct fragment f = {.key = *key,
                             .generation = 1,
                             .k = c->k,
                             .m = c->m,
                             .dtype = e->dtype,
                             .payload_len = e->payload_len[i],
                             .payload_sum = e->payload_sum[i],
                             .entry = e->entry};
        f.key.index = i;
        memcpy(f.part, e->part, sizeof f.part);
        fragment_seal(&f, w->record[i]);
    }
}

static struct take take_of(struct world *w, const struct chunk_record *c, const struct fragment_key *key, char *payload)
{
    unsigned i = key->index;
    bool data = i < c->k, raw = data && c->part[i].codec == CAIRN_CODEC_RAW;
    char *target = data ? w->target + i * CAIRN_PART : NULL;

    return (struct take){.record = w->record[i],
                         .key = key,
                         .chunk = c,
                         .index = i,
                         .dtype = CAIRN_U8,
                         .codec = raw ? w->raw : w->lz4,
                         .payload = raw ? target : payload,
                         .target = target};
}

/* Takes what is not lost, in this order, and decodes what is missing then. */
static void take_without(struct world *w, const struct encode *e, const struct chunk_record *c, uint32_t lost,
                         bool reverse)
{
    struct fragment_key key[CAIRN_MAX_FRAGS];
    char *copies[CAIRN_MAX_FRAGS] = {NULL};
    struct decode d = {.k = e->k, .m = e->m, .dtype = e->dtype, .entry = e->entry, .part_mask = (1u << e->k) - 1};

    d.target = w->target;
    d.scratch = w->scratch;
    d.hash = hash_stream_new();
    memcpy(d.part, e->part, sizeof d.part);
    memset(w->target, 0xee, 8 * CAIRN_PART);
    for (unsigned n = 0; n < e->k + e->m; n++) {
        unsigned i = reverse ? e->k + e->m - 1 - n : n;
        if (i < e->k)
            d.codecs[i] = e->part[i].codec == CAIRN_CODEC_LZ4 ? w->lz4 : w->raw;
        if (lost & 1u << i)
            continue;
        key[i] = (struct fragment_key){.job = "j", .node = "n", .kind = FRAGMENT_DATA, .step = 1, .index = i};
        copies[i] = malloc(CAIRN_PART);
        memset(copies[i], 0xee, CAIRN_PART); /* behind the payload there is anything */
        struct take t = take_of(w, c, &key[i], copies[i]);
        t.entry = i == d.hashed && i < e->k ? d.hash : NULL;
        take_fragment(&t);
        assert_int_equal(t.code, 0);
        d.hashed += t.entry != NULL;
        d.payload[i] = t.payload;
        d.decoded |= i < e->k ? 1u << i : 0;
    }
    struct decode wrong = d;
    wrong.entry.low ^= 1;
    if (!(lost & d.part_mask)) {
        decode_chunk(&wrong);
        assert_int_equal(wrong.code, CAIRN_E_CORRUPT);
        d.hashed = e->k; /* it has them all now */
    }
    decode_chunk(&d);
    assert_int_equal(d.code, 0);
    for (unsigned i = 0; i < e->k; i++)
        assert_memory_equal(w->target + i * CAIRN_PART, w->plain[i], e->plain_len[i]);
    for (unsigned i = 0; i < e->k + e->m; i++)
        free(copies[i]);
    hash_stream_free(d.hash);
}

/* Catches: a raw part that is rebuilt from with what lies behind it, a checksum over parts in the wrong order or twice,
 * a part that is decoded over one that was taken. */
static void test_fragments_are_taken_one_by_one(void **state)
{
    static const struct {
        unsigned k, m;
    } shapes[] = {{1, 0}, {1, 1}, {2, 1}, {3, 2}, {4, 2}};
    struct fragment_key key = {.job = "j", .node = "n", .kind = FRAGMENT_DATA, .step = 1};
    struct world *w = *state;

    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        struct encode e = encode(w, shapes[s].k, shapes[s].m, 12345, w->record);
        struct chunk_record c;
        seal(w, &e, &key, &c);
        for (uint32_t lost = 0; lost < 1u << (e.k + e.m); lost++)
            for (int reverse = 0; reverse < 2 && (unsigned)__builtin_popcount(lost) <= e.m; reverse++)
                take_without(w, &e, &c, lost, reverse);
    }
}

/* Catches: bytes that are used before their checksum is known, another chunk's fragment in this one's place. */
static void test_a_wrong_fragment_is_not_taken(void **state)
{
    struct fragment_key key = {.job = "j", .node = "n", .kind = FRAGMENT_DATA, .step = 1};
    struct world *w = *state;
    struct encode e = encode(w, 2, 1, 12345, w->record);
    char *payload = malloc(CAIRN_PART);
    struct chunk_record c;

    seal(w, &e, &key, &c);
    for (key.index = 0; key.index < 3; key.index++) {
        uint32_t len = e.payload_len[key.index];
        for (unsigned at = 0; at < 2; at++) { /* its first byte, its last */
            char *bad = w->record[key.index] + FRAGMENT_HEADER + (at ? len - 1 : 0);
            struct take t = take_of(w, &c, &key, payload);
            *bad ^= 1;
            take_fragment(&t);
            assert_int_equal(t.code, CAIRN_E_CORRUPT);
            assert_non_null(strstr(t.err.message, "checksum"));
            *bad ^= 1;
        }
        struct fragment_key other = key;
        other.step = 2;
        struct take t = take_of(w, &c, &other, payload);
        take_fragment(&t);
        assert_int_equal(t.code, CAIRN_E_CORRUPT);
    }
    key.index = 0;
    struct chunk_record longer = c;
    longer.entry.high ^= 1;
    struct take t = take_of(w, &longer, &key, payload);
    take_fragment(&t);
    assert_int_equal(t.code, CAIRN_E_CORRUPT);
    w->record[0][17] ^= 1; /* the header */
    t = take_of(w, &c, &key, payload);
    take_fragment(&t);
    assert_int_equal(t.code, CAIRN_E_CORRUPT);
    free(payload);
}

static uint64_t path_rate(const struct codecs *c)
{
    struct codecs_status st;

    codecs_status(c, &st);
    return st.path_rate;
}

/* Stores so many bytes each millisecond for so long. */
static void feed(struct codecs *c, uint64_t *now_ns, unsigned ms, uint64_t bytes, bool waiting)
{
    for (unsigned i = 0; i < ms; i++)
        codecs_stored(c, bytes, *now_ns += 1000000, waiting);
}

/* Catches: a rate that grows without end while a flush is paced, one that forgets, one that never finds more. */
static void test_the_path_has_a_rate(void **state)
{
    struct world *w = *state;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct codecs *c;
    uint64_t now_ns = 1;

    assert_int_equal(codecs_new(w->plugins, "auto", 1, 0, &c, &err), 0);
    assert_int_equal(path_rate(c), 0);
    feed(c, &now_ns, 2000, 1000000, true); /* 1 GB/s, and others wait */
    assert_in_range(path_rate(c), 900000000, 1100000000);
    feed(c, &now_ns, 60000, 100000, false); /* a minute of a paced flush */
    assert_in_range(path_rate(c), 900000000, 1100000000);
    feed(c, &now_ns, 5000, 3000000, false); /* it can carry more than it was asked to */
    assert_in_range(path_rate(c), 3000000000, 6500000000);
    feed(c, &now_ns, 2000, 1000000, true);
    assert_in_range(path_rate(c), 900000000, 1500000000);
    codecs_free(c);
    assert_int_equal(codecs_new(w->plugins, "raw zip", 1, 0, &c, &err), CAIRN_E_INVAL);
    assert_non_null(strstr(err.message, "\"zip\""));
}

/* Catches bytes that are taken for the base's though one differs, and fragments that are made for nothing. */
static void test_the_same_as_before(void **state)
{
    struct world *w = *state;
    struct encode e = encode(w, 4, 2, 5000, w->record), first = e;
    struct hash128 sums[4] = {{0, 0}};

    e.maybe = (struct cairn_delta){.step = 7, .incarnation = 1, .entry = first.entry, .depth = 2};
    encode_chunk(&e);
    assert_int_equal(e.code, 0);
    assert_true(e.same && cairn_delta_equal(&e.delta, &e.maybe));
    assert_memory_equal(&e.entry, &first.entry, sizeof e.entry);
    for (unsigned i = 0; i < 4; i++)
        assert_true(e.part[i].codec == 0 && e.part[i].coded_len == e.plain_len[i] && e.part[i].params == 0);
    sums[2].low = 1;
    e.sums = sums; /* the same as before, and still not what its source was */
    encode_chunk(&e);
    assert_int_equal(e.code, CAIRN_E_CORRUPT);
    assert_int_equal(e.differs, 3);
    e.sums = NULL;
    e.maybe.entry.high++;
    e.delta = (struct cairn_delta){.depth = 0};
    encode_chunk(&e);
    assert_int_equal(e.code, 0);
    assert_false(e.same);
    assert_int_equal(e.delta.depth, 0);
    assert_memory_equal(e.part, first.part, 4 * sizeof e.part[0]);
    assert_memory_equal(e.payload_sum, first.payload_sum, 6 * sizeof e.payload_sum[0]);
}

/* Of the one tensor that the chunk is, as it was encoded. */
static struct cairn_numerics numerics_of(struct encode *e, const struct cairn_layout *l)
{
    struct numerics_budget budget = {.max = UINT64_MAX};
    struct numerics *n = NULL;

    assert_int_equal(numerics_new(l, &budget, &n, NULL), 0);
    numerics_index(n);
    e->numerics = n;
    encode_chunk(e);
    assert_int_equal(e->code, 0);
    for (unsigned i = 0; i < e->k; i++)
        numerics_take(n, e->found[i]);
    struct cairn_numerics *all = numerics_end(n), found = all[0];
    free(all);
    numerics_free(n);
    return found;
}

/* Catches a way through the encoder whose bytes are not looked at, or looked at as they were stored. */
static void test_numerics_of_every_way(void **state)
{
    struct world *w = *state;
    struct encode plain = encode(w, 4, 2, 5000, w->record), first = plain;
    uint64_t bytes = 3 * CAIRN_PART + 5000;
    struct cairn_tensor t = {.size = sizeof t, .name = "w", .dtype = CAIRN_F8_E5M2, .ndim = 1, .shape = &bytes};
    struct cairn_nonfinite bad = {0};
    struct cairn_digest d = {0};
    struct cairn_layout l;
    char *base[4];

    cairn_layout_init(&l);
    assert_int_equal(cairn_layout_add(&l, &t, NULL), 0);
    assert_int_equal(cairn_layout_place(&l, NULL), 0);
    for (unsigned i = 0; i < 4; i++) {
        cairn_numerics_add(&d, &bad, t.dtype, i * CAIRN_PART / 64, w->plain[i], plain.plain_len[i]);
        base[i] = memcpy(malloc(CAIRN_PART), w->plain[i], CAIRN_PART);
        base[i][i * 1000] ^= 1;
    }
    struct hash128 want = cairn_digest_end(&d, bytes, t.dtype);
    struct hash_stream *h = hash_stream_new();
    for (unsigned i = 0; i < 4; i++)
        hash_stream_add(h, base[i], plain.plain_len[i]);
    for (unsigned way = 0; way < 5; way++) {
        struct encode e = plain;
        e.can_send_plain = way == 1; /* to the codec it is U8, which lz4 takes: the tensor says what is counted */
        e.ncodecs = way < 2 ? 1 : 2; /* raw, copied and in place; with a codec; as deltas; the same as before */
        if (way == 3) {
            e.delta = (struct cairn_delta){.step = 1, .incarnation = 1, .entry = hash_stream_end(h), .depth = 1};
            memcpy(e.base, base, sizeof base);
        }
        if (way == 4)
            e.maybe = (struct cairn_delta){.step = 1, .incarnation = 1, .entry = first.entry, .depth = 1};
        struct cairn_numerics got = numerics_of(&e, &l);
        assert_int_equal(e.same, way == 4);
        assert_int_equal(e.delta.depth, way >= 3);
        assert_true(got.known && got.digest.low == want.low && got.digest.high == want.high);
        assert_true(bad.nan > 0 && got.bad.nan == bad.nan && got.bad.inf == bad.inf);
    }
    hash_stream_free(h);
    for (unsigned i = 0; i < 4; i++)
        free(base[i]);
    cairn_layout_free(&l);
}

/* Every part is compared with the sum that its source had, whatever becomes of it (catches: bytes that are encoded and
 * not summed, parts that are compared with the sum of another). */
static void test_sums_of_the_source(void **state)
{
    struct world *w = *state;
    struct hash128 sums[4];

    for (unsigned wrong = 0; wrong <= 4; wrong++) {
        struct encode e = encode(w, 4, 2, 5000, w->record);
        assert_true(e.part[0].codec == CAIRN_CODEC_RAW && e.part[1].codec == CAIRN_CODEC_LZ4);
        for (unsigned i = 0; i < 4; i++)
            sums[i] = cairn_hash128_seeded(e.plain[i], e.plain_len[i], 99);
        if (wrong < 4)
            sums[wrong].low++;
        e.sums = sums;
        e.sums_seed = 99;
        e.can_send_plain = wrong % 2;
        encode_chunk(&e);
        assert_int_equal(e.code, wrong < 4 ? CAIRN_E_CORRUPT : 0);
        assert_int_equal(e.differs, wrong < 4 ? wrong + 1 : 0);
        if (wrong < 4) {
            sums[wrong] = (struct hash128){0, 0}; /* not known */
            encode_chunk(&e);
            assert_int_equal(e.code, 0);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_loss_up_to_m),
        cmocka_unit_test(test_remake),
        cmocka_unit_test(test_one_part_of_many),
        cmocka_unit_test(test_encoding_again_gives_the_same),
        cmocka_unit_test(test_the_entry_checksum_has_the_last_word),
        cmocka_unit_test(test_the_path_has_a_rate),
        cmocka_unit_test(test_a_delta_needs_its_base),
        cmocka_unit_test(test_a_base_that_changed_is_none),
        cmocka_unit_test(test_fragments_are_taken_one_by_one),
        cmocka_unit_test(test_sums_of_the_source),
        cmocka_unit_test(test_the_same_as_before),
        cmocka_unit_test(test_numerics_of_every_way),
        cmocka_unit_test(test_a_wrong_fragment_is_not_taken),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
