/* SPDX-License-Identifier: Apache-2.0 */
#include "core/model/catalog.h"

#include "core/model/stripe.h"
#include "core/model/units.h"
#include "tests/unit/core/support.h"

static void cut_into_chunks(struct cairn_catalog_shard *s, unsigned k)
{
    s->chunks = calloc(s->layout.nparts + 1u, sizeof(*s->chunks));
    assert_non_null(s->chunks);
    for (uint32_t part = 0, n; part < s->layout.nparts; part += n) {
        n = cairn_chunk_parts(&s->layout, part, k);
        s->chunks[s->nchunks++] = (struct cairn_chunk_range){part, n};
    }
}

/* Three ranks: 10 parts of one dtype and 1 of another, an empty one, and one part. */
static struct cairn_catalog sample(void)
{
    struct cairn_catalog c = {.step = 7, .incarnation = 3, .world_size = 3, .nshards = 3};

    c.shards = calloc(3, sizeof(*c.shards));
    assert_non_null(c.shards);
    for (uint32_t i = 0; i < 3; i++)
        c.shards[i].rank = i;
    assert_int_equal(add(&c.shards[0].layout, "w", CAIRN_U8, 1, DIMS(10 * CAIRN_PART - 5), NULL, NULL, NULL), 0);
    assert_int_equal(add(&c.shards[0].layout, "s", CAIRN_I64, 0, NULL, NULL, NULL, NULL), 0);
    assert_int_equal(add(&c.shards[2].layout, "s", CAIRN_I64, 0, NULL, NULL, NULL, NULL), 0);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(cairn_layout_place(&c.shards[i].layout, NULL), 0);
        cut_into_chunks(&c.shards[i], 4);
    }
    return c;
}

static struct bytes encoded(void)
{
    struct cairn_catalog c = sample();
    struct bytes b = {0};

    assert_int_equal(cairn_catalog_encode(&c, &b, NULL), 0);
    cairn_catalog_free(&c);
    return b;
}

static int decode(const void *data, size_t len)
{
    static const struct cairn_catalog empty;
    struct cairn_catalog c;
    uint8_t *exact = malloc(len ? len : 1);

    assert_non_null(exact);
    if (len)
        memcpy(exact, data, len);
    cairn_catalog_init(&c);
    int r = cairn_catalog_decode(&c, exact, len, NULL);
    if (r < 0)
        assert_memory_equal(&c, &empty, sizeof(c));
    cairn_catalog_free(&c);
    free(exact);
    return r;
}

/* Catches a field that is lost on the way. */
static void test_round_trip(void **state)
{
    struct bytes b = encoded(), again = {0};
    struct cairn_catalog c;
    (void)state;

    cairn_catalog_init(&c);
    assert_int_equal(cairn_catalog_decode(&c, b.data, b.len, NULL), 0);
    assert_int_equal(c.step, 7);
    assert_int_equal(c.incarnation, 3);
    assert_int_equal(c.nshards, 3);
    assert_int_equal(c.shards[0].nchunks, 4); /* 4 + 4 + 2 parts, and one of the other dtype */
    assert_int_equal(c.shards[0].chunks[2].nparts, 2);
    assert_int_equal(c.shards[1].nchunks, 0);
    assert_string_equal(c.shards[2].layout.slices[0].name, "s");
    assert_int_equal(cairn_catalog_encode(&c, &again, NULL), 0);
    assert_int_equal(again.len, b.len);
    assert_memory_equal(again.data, b.data, b.len);
    cairn_catalog_free(&c);
    bytes_free(&again);
    bytes_free(&b);
}

static void test_chunk_of(void **state)
{
    struct cairn_catalog c = sample();
    static const uint32_t expected[] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3};
    (void)state;

    for (uint32_t p = 0; p < 11; p++)
        assert_int_equal(cairn_catalog_chunk_of(&c.shards[0], p), expected[p]);
    assert_int_equal(cairn_catalog_chunk_of(&c.shards[0], 11), 4); /* no such part */
    assert_int_equal(cairn_catalog_chunk_of(&c.shards[1], 0), 0);
    cairn_catalog_free(&c);
}

/* Catches a reader that believes a cut, longer or wrong input. */
static void test_damage(void **state)
{
    struct bytes b = encoded();
    (void)state;

    for (size_t len = 0; len < b.len; len++)
        assert_true(decode(b.data, len) < 0);
    b.data[0] ^= 1;
    assert_int_equal(decode(b.data, b.len), CAIRN_E_CORRUPT);
    b.data[0] ^= 1;
    b.data[8] = 2;
    assert_int_equal(decode(b.data, b.len), CAIRN_E_PROTOCOL);
    b.data[8] = 1;
    static const uint32_t worlds[] = {0, 2, 4, CAIRN_MAX_WORLD, UINT32_MAX};
    for (size_t i = 0; i < sizeof(worlds) / sizeof(worlds[0]); i++) {
        memcpy(b.data + 12, &worlds[i], 4);
        assert_int_equal(decode(b.data, b.len), CAIRN_E_CORRUPT);
    }
    memcpy(b.data + 12, &(uint32_t){3}, 4);
    b.data[32] = 1; /* rank 1 in place 0 */
    assert_int_equal(decode(b.data, b.len), CAIRN_E_CORRUPT);
    b.data[32] = 0;
    memset(b.data + 36, 0xff, 4); /* chunks without end */
    assert_int_equal(decode(b.data, b.len), CAIRN_E_CORRUPT);
    bytes_put_u8(&b, 0);
    assert_int_equal(decode(b.data, b.len), CAIRN_E_CORRUPT);
    bytes_free(&b);
}

static int encode_with(uint32_t chunk, struct cairn_chunk_range r, uint32_t nchunks)
{
    struct cairn_catalog c = sample();
    struct bytes b = {0};

    c.shards[0].chunks[chunk] = r;
    c.shards[0].nchunks = nchunks;
    int e = cairn_catalog_encode(&c, &b, NULL);
    assert_int_equal(b.len, 0);
    bytes_free(&b);
    cairn_catalog_free(&c);
    return e;
}

/* Catches chunks with gaps, overlaps, too many parts, or over a group's end: a reader would find the wrong fragments.
 */
static void test_chunks(void **state)
{
    (void)state;
    assert_int_equal(encode_with(1, (struct cairn_chunk_range){5, 3}, 4), CAIRN_E_INVAL);
    assert_int_equal(encode_with(1, (struct cairn_chunk_range){4, 5}, 4), CAIRN_E_INVAL);
    assert_int_equal(encode_with(1, (struct cairn_chunk_range){4, 0}, 4), CAIRN_E_INVAL);
    assert_int_equal(encode_with(2, (struct cairn_chunk_range){8, 3}, 3), CAIRN_E_INVAL);
    assert_int_equal(encode_with(3, (struct cairn_chunk_range){10, 1}, 3), CAIRN_E_INVAL);
    assert_int_equal(encode_with(3, (struct cairn_chunk_range){10, UINT32_MAX}, 4), CAIRN_E_INVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_chunk_of),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_chunks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
