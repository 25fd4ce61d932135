/* SPDX-License-Identifier: Apache-2.0 */
#include "core/model/hash_internal.h"

#include "tests/unit/core/support.h"

/* Catches another variant or version of the hash: these values are in every stored checkpoint. */
static void test_known_values(void **state)
{
    (void)state;
    struct hash128 h = cairn_hash128("", 0);
    assert_int_equal(h.high, 0x99aa06d3014798d8ull); /* XXH3-128 of nothing, from xxhsum -H2 */
    assert_int_equal(h.low, 0x6001c324468d497full);
    assert_int_equal(cairn_hash64("", 0, 0), 0x2d06800538d394c2ull);
    assert_int_not_equal(cairn_hash64("abc", 3, 0), cairn_hash64("abc", 3, 1));
}

/* Catches a stream that depends on where it was cut. */
static void test_pieces(void **state)
{
    size_t len = 300000;
    uint8_t *data = malloc(len);
    uint64_t seed = 1;
    struct hash_stream *s = hash_stream_new();
    (void)state;

    assert_non_null(data);
    assert_non_null(s);
    for (size_t i = 0; i < len; i++)
        data[i] = (uint8_t)next_random(&seed);
    struct hash128 whole = cairn_hash128(data, len);
    for (int round = 0; round < 20; round++) {
        for (size_t at = 0, n; at < len; at += n) {
            n = below(&seed, round % 2 ? 100000 : 500);
            n = n > len - at ? len - at : n;
            hash_stream_add(s, data + at, n);
        }
        struct hash128 pieces = hash_stream_end(s);
        assert_int_equal(pieces.low, whole.low);
        assert_int_equal(pieces.high, whole.high);
        assert_int_equal(hash_stream_end64(s), cairn_hash64(data, len, 0));
        hash_stream_reset(s);
    }
    for (uint64_t s2 = 0; s2 < 1000; s2 += 333) {
        struct hash128 seeded = cairn_hash128_seeded(data, len, s2);
        hash_stream_reset_seeded(s, s2);
        for (size_t at = 0; at < len; at += 50000)
            hash_stream_add(s, data + at, 50000);
        struct hash128 pieces = hash_stream_end(s);
        assert_true(pieces.low == seeded.low && pieces.high == seeded.high);
        assert_true((seeded.low == whole.low) == (s2 == 0));
    }
    hash_stream_reset(s);
    struct hash128 none = cairn_hash128(NULL, 0);
    struct hash128 fresh = hash_stream_end(s);
    assert_int_equal(fresh.low, none.low);
    hash_stream_free(s);
    hash_stream_free(NULL);
    free(data);
}

#if defined(__x86_64__)
/* Catches a variant whose values differ: a checkpoint is read on other processors than it was written on. */
static void check_variant(const struct hash_ops *v, const uint8_t *data, size_t room)
{
    struct hash_stream *s = v->stream_new();
    uint64_t seed = 7;

    assert_non_null(s);
    for (int round = 0; round < 400; round++) {
        size_t at = below(&seed, 64), len = below(&seed, round < 300 ? 2000 : (uint32_t)(room - 64));
        struct hash128 a = hash_base.hash128(data + at, len), b = v->hash128(data + at, len), c;
        assert_true(a.low == b.low && a.high == b.high);
        assert_int_equal(hash_base.hash64(data + at, len, len), v->hash64(data + at, len, len));
        c = v->hash128_seeded(data + at, len, seed);
        v->stream_reset_seeded(s, seed);
        hash_base.add(s, data + at, len);
        b = v->end(s);
        assert_true(c.low == b.low && c.high == b.high);
        v->stream_reset(s);
        v->add(s, data + at, len / 3);
        hash_base.add(s, data + at + len / 3, len - len / 3); /* a stream may even change hands */
        c = v->end(s);
        assert_true(a.low == c.low && a.high == c.high);
    }
    v->stream_free(s);
}

static void test_variants_agree(void **state)
{
    size_t room = 200000;
    uint8_t *data = malloc(room);
    uint64_t seed = 3;

    (void)state;
    assert_non_null(data);
    for (size_t i = 0; i < room; i++)
        data[i] = (uint8_t)next_random(&seed);
    check_variant(&hash_base, data, room);
    if (__builtin_cpu_supports("avx2"))
        check_variant(&hash_avx2, data, room);
    if (__builtin_cpu_supports("avx512f"))
        check_variant(&hash_avx512, data, room);
    free(data);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_values),
        cmocka_unit_test(test_pieces),
#if defined(__x86_64__)
        cmocka_unit_test(test_variants_agree),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
