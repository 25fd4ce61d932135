/* SPDX-License-Identifier: Apache-2.0 */
/* The fragment's header: what is written is read, byte for byte where the table says; damage anywhere is found, and a
 * header that a broken daemon sealed is refused although its checksum holds. */
#include "core/proto/fragment.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SUM_AT 600

static struct fragment data_fragment(void)
{
    struct fragment f = {.generation = 0x1122334455667788,
                         .k = 2,
                         .m = 1,
                         .dtype = CAIRN_BF16,
                         .payload_len = 5000,
                         .payload_sum = 0xa1a2a3a4a5a6a7a8,
                         .entry = {0xb1b2b3b4b5b6b7b8, 0xc1c2c3c4c5c6c7c8}};

    f.key = (struct fragment_key){.job = "llama-7b",
                                  .node = "node.12",
                                  .step = 1000,
                                  .incarnation = 7,
                                  .kind = FRAGMENT_DATA,
                                  .rank = 3,
                                  .first_part = 12,
                                  .attempt = 1,
                                  .index = 1};
    f.part[0] = (struct cairn_part_code){1, 0, 1 << 20, 9000};
    f.part[1] = (struct cairn_part_code){0, 0, 5000, 5000};
    return f;
}

static struct fragment root_fragment(void)
{
    struct fragment f = {
        .generation = 9, .k = 1, .dtype = CAIRN_BYTES, .payload_len = 100, .blob_len = (1 << 20) + 100};

    f.key = (struct fragment_key){
        .job = "j", .node = "n", .step = 1, .incarnation = 1, .kind = FRAGMENT_ROOT, .first_part = 1};
    memset(f.blob_sha256, 0x5a, sizeof f.blob_sha256);
    return f;
}

static void assert_same(const struct fragment *a, const struct fragment *b)
{
    assert_true(fragment_key_equal(&a->key, &b->key));
    assert_int_equal(a->generation, b->generation);
    assert_int_equal(a->k, b->k);
    assert_int_equal(a->m, b->m);
    assert_int_equal(a->dtype, b->dtype);
    assert_int_equal(a->payload_len, b->payload_len);
    assert_int_equal(a->payload_sum, b->payload_sum);
    assert_memory_equal(&a->entry, &b->entry, sizeof a->entry);
    assert_memory_equal(a->part, b->part, sizeof a->part);
    assert_int_equal(a->blob_len, b->blob_len);
    assert_memory_equal(a->blob_sha256, b->blob_sha256, sizeof a->blob_sha256);
}

static void test_round_trip(void **state)
{
    const struct fragment in[] = {data_fragment(), root_fragment()};
    char block[FRAGMENT_HEADER];

    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        struct fragment out;
        fragment_seal(&in[i], block);
        assert_int_equal(fragment_parse(block, &out, NULL), 0);
        assert_same(&in[i], &out);
    }
    assert_int_equal(fragment_record_len(1), 8192);
    assert_int_equal(fragment_record_len(4096), 8192);
    assert_int_equal(fragment_record_len(CAIRN_PART), FRAGMENT_MAX_RECORD);
}

static uint64_t le(const uint8_t *at, unsigned bytes)
{
    uint64_t v = 0;

    for (unsigned i = 0; i < bytes; i++)
        v |= (uint64_t)at[i] << (8 * i);
    return v;
}

/* The table at the top of fragment.c, read by other code than fragment.c's: a field that moves breaks every file. */
static void test_golden(void **state)
{
    static const struct {
        unsigned at, bytes;
        uint64_t value;
    } table[] = {{8, 4, 1},
                 {12, 4, 0},
                 {16, 8, 0x1122334455667788},
                 {24, 8, 1000},
                 {32, 8, 7},
                 {40, 1, 1},
                 {41, 1, 2},
                 {42, 1, 1},
                 {43, 1, CAIRN_BF16},
                 {44, 4, 3},
                 {48, 4, 12},
                 {52, 4, 1},
                 {56, 4, 1},
                 {60, 4, 5000},
                 {64, 8, 0xa1a2a3a4a5a6a7a8},
                 {72, 8, 0xb1b2b3b4b5b6b7b8},
                 {80, 8, 0xc1c2c3c4c5c6c7c8},
                 {88, 8, 0},
                 {128, 8, 0},
                 {136, 8, 0},
                 {408, 2, 1},
                 {412, 4, 1 << 20},
                 {416, 4, 9000},
                 {420, 2, 0},
                 {424, 4, 5000},
                 {428, 4, 5000},
                 {432, 8, 0}};
    struct fragment f = data_fragment();
    uint8_t block[FRAGMENT_HEADER];

    (void)state;
    fragment_seal(&f, block);
    assert_memory_equal(block, "CRNFRAG1", 8);
    for (unsigned i = 0; i < sizeof table / sizeof table[0]; i++)
        assert_int_equal(le(block + table[i].at, table[i].bytes), table[i].value);
    assert_string_equal((char *)block + 144, "llama-7b");
    assert_string_equal((char *)block + 276, "node.12");
    assert_int_equal(le(block + SUM_AT, 8), cairn_hash64(block, SUM_AT, 0));
    struct hash128 sum = cairn_hash128(block, sizeof block);
    assert_int_equal(sum.low, 0xaf57ee6da39c4629);
    assert_int_equal(sum.high, 0x562f4448ca81e6f8);
}

/* Every bit of the header block counts, the zeros behind the checksum too. */
static void test_damaged_header(void **state)
{
    struct fragment f = data_fragment(), out = {.k = 0};
    uint8_t block[FRAGMENT_HEADER];

    (void)state;
    fragment_seal(&f, block);
    for (unsigned bit = 0; bit < 8 * sizeof block; bit++) {
        block[bit / 8] ^= (uint8_t)(1u << bit % 8);
        int r = fragment_parse(block, &out, NULL);
        if (r != CAIRN_E_CORRUPT && r != CAIRN_E_UNSUPPORTED)
            fail_msg("bit %u flipped: %d", bit, r);
        block[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    assert_int_equal(out.k, 0); /* a failed parse leaves it alone */
    assert_int_equal(fragment_parse(block, &out, NULL), 0);
}

static void test_damaged_payload(void **state)
{
    struct fragment f = data_fragment();
    uint8_t payload[5000];
    struct cairn_error err = CAIRN_ERROR_INIT;

    (void)state;
    for (unsigned i = 0; i < sizeof payload; i++)
        payload[i] = (uint8_t)(i * 31);
    f.payload_sum = cairn_hash64(payload, sizeof payload, 0);
    assert_int_equal(fragment_check_payload(&f, payload, &err), 0);
    for (unsigned i = 0; i < sizeof payload; i++) {
        payload[i] ^= 1;
        assert_int_equal(fragment_check_payload(&f, payload, &err), CAIRN_E_CORRUPT);
        payload[i] ^= 1;
    }
    /* The message says which fragment it is. */
    assert_non_null(strstr(err.message, "llama-7b step 1000.7 node node.12 rank 3 part 12 attempt 1 fragment 1"));
}

static void test_version(void **state)
{
    struct fragment f = data_fragment(), out;
    uint8_t block[FRAGMENT_HEADER];
    struct cairn_error err = CAIRN_ERROR_INIT;

    (void)state;
    fragment_seal(&f, block);
    block[8] = 3;
    assert_int_equal(fragment_parse(block, &out, &err), CAIRN_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "version 3"));
    block[8] = 1;
    block[12] = 4; /* a required feature */
    assert_int_equal(fragment_parse(block, &out, &err), CAIRN_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "0x4"));
}

/* Seals f with one byte changed and the checksum made to fit. */
static int parse_forged(const struct fragment *f, unsigned at, uint8_t value)
{
    struct fragment out;
    uint8_t block[FRAGMENT_HEADER];

    fragment_seal(f, block);
    block[at] = value;
    uint64_t sum = cairn_hash64(block, SUM_AT, 0);
    for (unsigned i = 0; i < 8; i++)
        block[SUM_AT + i] = (uint8_t)(sum >> (8 * i));
    return fragment_parse(block, &out, NULL);
}

static void test_forged(void **state)
{
    struct fragment f = data_fragment(), root = root_fragment();

    (void)state;
    assert_int_equal(parse_forged(&f, 44, 4), 0); /* the forger works: another rank is fine */
    assert_int_equal(parse_forged(&f, 40, 0), CAIRN_E_UNSUPPORTED);
    assert_int_equal(parse_forged(&f, 40, 5), CAIRN_E_UNSUPPORTED);
    assert_int_equal(parse_forged(&f, 41, 0), CAIRN_E_CORRUPT);               /* k */
    assert_int_equal(parse_forged(&f, 41, CAIRN_MAX_K + 1), CAIRN_E_CORRUPT); /* k */
    assert_int_equal(parse_forged(&f, 42, CAIRN_MAX_M + 1), CAIRN_E_CORRUPT); /* m */
    assert_int_equal(parse_forged(&f, 43, 0), CAIRN_E_CORRUPT);               /* dtype */
    assert_int_equal(parse_forged(&f, 43, 250), CAIRN_E_CORRUPT);
    assert_int_equal(parse_forged(&f, 56, 3), CAIRN_E_CORRUPT);      /* index == k + m */
    assert_int_equal(parse_forged(&f, 62, 0x11), CAIRN_E_CORRUPT);   /* payload beyond a part */
    assert_int_equal(parse_forged(&f, 60, 0), CAIRN_E_CORRUPT);      /* payload that is not the part's */
    assert_int_equal(parse_forged(&f, 56, 2), CAIRN_E_CORRUPT);      /* parity has whole blocks */
    assert_int_equal(parse_forged(&f, 128, 1), CAIRN_E_UNSUPPORTED); /* key id */
    assert_int_equal(parse_forged(&f, 132, 1), CAIRN_E_UNSUPPORTED); /* tenant */
    assert_int_equal(parse_forged(&f, 137, 1), CAIRN_E_UNSUPPORTED); /* tier */
    assert_int_equal(parse_forged(&f, 140, 1), CAIRN_E_UNSUPPORTED);
    assert_int_equal(parse_forged(&f, 144, 0), CAIRN_E_CORRUPT);   /* job: empty, then bytes */
    assert_int_equal(parse_forged(&f, 144, '/'), CAIRN_E_CORRUPT); /* a path */
    assert_int_equal(parse_forged(&f, 170, 'x'), CAIRN_E_CORRUPT); /* behind the name's end */
    assert_int_equal(parse_forged(&f, 276, 0xff), CAIRN_E_CORRUPT);
    assert_int_equal(parse_forged(&f, 407, 1), CAIRN_E_CORRUPT);    /* the last byte of the node's room */
    assert_int_equal(parse_forged(&f, 414, 0x20), CAIRN_E_CORRUPT); /* plain bytes of part 0: two parts */
    assert_int_equal(parse_forged(&f, 418, 0x20), CAIRN_E_CORRUPT); /* coded in more than plain */
    assert_int_equal(parse_forged(&root, 48, 1), 0);
    assert_int_equal(parse_forged(&root, 48, 2), CAIRN_E_CORRUPT); /* a piece beyond the blob */
    assert_int_equal(parse_forged(&root, 48, 0), CAIRN_E_CORRUPT); /* the first piece would be a whole part */
    assert_int_equal(parse_forged(&root, 42, 1), CAIRN_E_CORRUPT); /* blobs have no parity */
}

/* ---- bases ----------------------------------------------------------------------------------- */

#define DELTA_SUM_AT 640

static struct fragment delta_fragment(void)
{
    struct fragment f = data_fragment();

    f.part[0].params = CAIRN_PART_DELTA;
    f.delta = (struct cairn_delta){.step = 900, .incarnation = 6, .entry = {0xd1d2, 0xe1e2}, .depth = 4};
    return f;
}

static void test_delta_golden(void **state)
{
    struct fragment f = delta_fragment(), out;
    uint8_t block[FRAGMENT_HEADER];

    (void)state;
    fragment_seal(&f, block);
    assert_int_equal(le(block + 8, 4), 2); /* a reader of version 1 refuses it */
    assert_int_equal(le(block + 410, 2), 1);
    assert_int_equal(le(block + 600, 8), 900);
    assert_int_equal(le(block + 608, 8), 6);
    assert_int_equal(le(block + 616, 8), 0xd1d2);
    assert_int_equal(le(block + 624, 8), 0xe1e2);
    assert_int_equal(le(block + 632, 4), 4);
    assert_int_equal(le(block + 636, 4), 0);
    assert_int_equal(le(block + DELTA_SUM_AT, 8), cairn_hash64(block, DELTA_SUM_AT, 0));
    assert_int_equal(fragment_parse(block, &out, NULL), 0);
    assert_same(&f, &out);
    assert_true(cairn_delta_equal(&f.delta, &out.delta));
    for (unsigned bit = 0; bit < 8 * sizeof block; bit++) {
        block[bit / 8] ^= (uint8_t)(1u << bit % 8);
        int r = fragment_parse(block, &out, NULL);
        if (r != CAIRN_E_CORRUPT && r != CAIRN_E_UNSUPPORTED)
            fail_msg("bit %u flipped: %d", bit, r);
        block[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

static int parse_forged_delta(unsigned at, uint8_t value)
{
    struct fragment f = delta_fragment(), out;
    uint8_t block[FRAGMENT_HEADER];

    fragment_seal(&f, block);
    block[at] = value;
    uint64_t sum = cairn_hash64(block, DELTA_SUM_AT, 0);
    for (unsigned i = 0; i < 8; i++)
        block[DELTA_SUM_AT + i] = (uint8_t)(sum >> (8 * i));
    return fragment_parse(block, &out, NULL);
}

static void test_delta_forged(void **state)
{
    struct fragment f = data_fragment();

    (void)state;
    assert_int_equal(parse_forged_delta(632, 1), 0); /* the forger works */
    assert_int_equal(parse_forged_delta(632, 0), CAIRN_E_CORRUPT);
    assert_int_equal(parse_forged_delta(632, 5), CAIRN_E_CORRUPT); /* a chain of five */
    assert_int_equal(parse_forged_delta(634, 1), CAIRN_E_CORRUPT);
    assert_int_equal(parse_forged_delta(636, 1), CAIRN_E_CORRUPT);
    assert_int_equal(parse_forged_delta(410, 0), CAIRN_E_CORRUPT); /* no part needs it */
    assert_int_equal(parse_forged_delta(608, 8), CAIRN_E_CORRUPT); /* the future */
    assert_int_equal(parse_forged_delta(40, 2), CAIRN_E_CORRUPT);  /* a manifest has no base */
    assert_int_equal(parse_forged(&f, 410, 1), CAIRN_E_CORRUPT);   /* a delta of version 1 has none */
}

static void test_longest_names(void **state)
{
    struct fragment f = data_fragment(), out;
    char block[FRAGMENT_HEADER], text[512];

    (void)state;
    memset(f.key.job, 'j', CAIRN_MAX_NAME);
    memset(f.key.node, 'n', CAIRN_MAX_NAME);
    fragment_seal(&f, block);
    assert_int_equal(fragment_parse(block, &out, NULL), 0);
    assert_same(&f, &out);
    fragment_describe(&f.key, text, sizeof text);
    assert_true(strlen(text) > 2 * CAIRN_MAX_NAME);
    fragment_describe(&f.key, text, 10); /* cut, not overrun */
    assert_int_equal(strlen(text), 9);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),     cmocka_unit_test(test_golden),
        cmocka_unit_test(test_damaged_header), cmocka_unit_test(test_damaged_payload),
        cmocka_unit_test(test_version),        cmocka_unit_test(test_forged),
        cmocka_unit_test(test_delta_golden),   cmocka_unit_test(test_delta_forged),
        cmocka_unit_test(test_longest_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
