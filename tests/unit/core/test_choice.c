/* SPDX-License-Identifier: Apache-2.0 */
/* Which codec is chosen when. */
#include "core/model/choice.h"

#include <cairn/plugin.h>

#include "tests/unit/core/support.h"

#define MIB (1u << 20)
#define GB 1000000000ull

enum { RAW, FLOAT, DENSE, N };

static unsigned choose(uint64_t rate, unsigned workers, unsigned before)
{
    const struct cairn_offer offers[N] = {
        [RAW] = {MIB, 10 * GB}, [FLOAT] = {MIB / 10 * 7, 4 * GB}, [DENSE] = {MIB / 100 * 66, GB / 2}};
    struct cairn_path path = {.rate = rate, .workers = workers, .k = 1, .m = 0};

    return cairn_choose(offers, N, MIB, &path, before);
}

/* Catches: a choice by size alone, or by speed alone. */
static void test_by_the_path(void **state)
{
    (void)state;
    assert_int_equal(choose(GB / 10, 1, N), DENSE); /* a slow link */
    assert_int_equal(choose(2 * GB, 1, N), FLOAT);  /* a disk */
    assert_int_equal(choose(40 * GB, 1, N), RAW);   /* nothing to gain */
    assert_int_equal(choose(2 * GB, 16, N), DENSE); /* workers enough for the dense one */
    assert_int_equal(choose(0, 1, N), FLOAT);       /* nothing is known yet */
    assert_int_equal(choose(GB / 10, 0, N), DENSE);
}

/* Parity is sent too. Catches: a path that is taken for faster than it is. */
static void test_parity_counts(void **state)
{
    const struct cairn_offer offers[2] = {{MIB, 10 * GB}, {MIB / 2, 3 * GB}};
    struct cairn_path thin = {.rate = 4 * GB, .workers = 1, .k = 1, .m = 1},
                      wide = {.rate = 4 * GB, .workers = 1, .k = 1};

    (void)state;
    assert_int_equal(cairn_choose(offers, 2, MIB, &thin, 2), 1); /* 0.33 ns a byte against 0.50 */
    assert_int_equal(cairn_choose(offers, 2, MIB, &wide, 2), 0); /* 0.33 against 0.25 */
}

/* Catches: flapping between two that cost about the same. */
static void test_it_stays(void **state)
{
    (void)state;
    unsigned at = choose(2 * GB, 1, N);
    for (uint64_t rate = 2 * GB; rate < 3 * GB; rate += GB / 50)
        at = choose(rate, 1, at) == at ? at : N;
    assert_int_equal(at, FLOAT);
    assert_int_equal(choose(40 * GB, 1, FLOAT), RAW); /* but not for ever */
}

/* Whatever comes in, what is chosen is one of the offers, and no other would be much sooner. */
static void test_random(void **state)
{
    uint64_t seed = 5;

    (void)state;
    for (int round = 0; round < 100000; round++) {
        struct cairn_offer o[CAIRN_CHOICES];
        unsigned n = 1 + below(&seed, CAIRN_CHOICES);
        struct cairn_path path = {.rate = next_random(&seed) >> below(&seed, 64),
                                  .workers = below(&seed, 9),
                                  .k = below(&seed, 9),
                                  .m = below(&seed, 4)};
        for (unsigned i = 0; i < n; i++)
            o[i] = (struct cairn_offer){below(&seed, MIB + 1), next_random(&seed) >> (20 + below(&seed, 44))};
        unsigned got = cairn_choose(o, n, MIB, &path, below(&seed, CAIRN_CHOICES + 1));
        assert_in_range(got, 0, n - 1);
        assert_int_equal(got, cairn_choose(o, n, MIB, &path, got)); /* asked again it stays */
    }
}

static void test_rate(void **state)
{
    struct cairn_rate r = {0};

    (void)state;
    cairn_rate_add(&r, 0, 100);
    cairn_rate_add(&r, 100, 0);
    assert_int_equal(r.bytes_per_s, 0);
    cairn_rate_add(&r, MIB, 1000000);
    assert_in_range(r.bytes_per_s, 1048000000, 1049000000);
    for (int i = 0; i < 100; i++)
        cairn_rate_add(&r, MIB, 2000000);
    assert_in_range(r.bytes_per_s, 520000000, 530000000);
}

static void test_suits(void **state)
{
    (void)state;
    assert_false(cairn_codec_suits(CAIRN_CODEC_LZ4, CAIRN_BF16));
    assert_false(cairn_codec_suits(CAIRN_CODEC_LZ4, CAIRN_F8_E4M3));
    assert_true(cairn_codec_suits(CAIRN_CODEC_LZ4, CAIRN_I64));
    assert_true(cairn_codec_suits(CAIRN_CODEC_LZ4, CAIRN_BYTES));
    assert_true(cairn_codec_suits(CAIRN_CODEC_FLOAT, CAIRN_BF16));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_the_path), cmocka_unit_test(test_parity_counts), cmocka_unit_test(test_it_stays),
        cmocka_unit_test(test_random),      cmocka_unit_test(test_rate),          cmocka_unit_test(test_suits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
