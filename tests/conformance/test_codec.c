/* SPDX-License-Identifier: Apache-2.0 */
/* What every codec owes, asked of each real one through the door: lossless, deterministic, within its room, deaf to
 * damage. */
#include "core/base/error.h"
#include "core/model/units.h"
#include "daemon/io/plugins.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *const names[] = {"raw", "lz4", "float", "dense"};
#define GUARD 64

static uint64_t next_random(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    return *s ^= *s << 17;
}

/* 0 zeros, 1 noise, 2 repeating numbers, 3 noise with runs */
static void fill(unsigned char *p, size_t len, unsigned how, uint64_t seed)
{
    for (size_t i = 0; i < len; i++) {
        uint64_t r = next_random(&seed);
        p[i] = how == 0   ? 0
               : how == 1 ? (unsigned char)r
               : how == 2 ? (unsigned char)(i / 8 % 97)
                          : (unsigned char)(i % 512 < 300 ? 7 : r);
    }
}

static struct codec *load(struct plugins *p, const char *name)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct codec *c = NULL;

    if (plugins_codec(p, name, &c, &err) < 0)
        fail_msg("%s", err.message);
    return c;
}

static void round_trip(const struct codec *c, size_t len, int dtype, unsigned how)
{
    unsigned char *plain = malloc(len), *coded = malloc(len + GUARD), *again = malloc(len + GUARD),
                  *back = malloc(len + GUARD);

    fill(plain, len, how, len * 31 + how + 1);
    memset(coded, 0xa5, len + GUARD);
    memset(back, 0xa5, len + GUARD);
    int64_t n = codec_encode(c, plain, len, dtype, coded, len);
    assert_true(n >= 0 && n <= (int64_t)len);
    for (size_t i = 0; i < GUARD; i++)
        assert_int_equal(coded[len + i], 0xa5);
    if (n > 0) {
        assert_int_equal(codec_encode(c, plain, len, dtype, again, len), n);
        assert_memory_equal(coded, again, (size_t)n); /* a fragment must be encoded again byte for byte */
        assert_int_equal(codec_decode(c, coded, (size_t)n, dtype, back, len), 0);
        assert_memory_equal(plain, back, len);
        for (size_t i = 0; i < GUARD; i++)
            assert_int_equal(back[len + i], 0xa5);
    }
    free(plain);
    free(coded);
    free(again);
    free(back);
}

static void test_round_trips(void **state)
{
    static const size_t lens[] = {1, 2, 7, 63, 64, 65, 255, 4096, 65537, CAIRN_PART - 1, CAIRN_PART};
    struct plugins *p = *state;

    for (size_t k = 0; k < sizeof names / sizeof names[0]; k++)
        for (int dtype = CAIRN_BYTES; dtype <= CAIRN_C64; dtype += dtype == CAIRN_BYTES ? 15 : 1)
            for (size_t i = 0; i < sizeof lens / sizeof lens[0]; i++)
                for (unsigned how = 0; how < 4; how++)
                    round_trip(load(p, names[k]), lens[i], dtype, how);
}

static void test_damage_is_refused_or_harmless(void **state)
{
    struct plugins *p = *state;
    size_t len = 20000;
    unsigned char plain[20000], coded[20000], bad[20000], *back = malloc(len + GUARD);
    uint64_t seed = 99;

    fill(plain, len, 3, 5);
    for (size_t k = 0; k < sizeof names / sizeof names[0]; k++) {
        const struct codec *c = load(p, names[k]);
        int64_t n = codec_encode(c, plain, len, CAIRN_U8, coded, len);
        assert_true(n > 0);
        for (int round = 0; round < 2000; round++) {
            size_t cut = round % 3 == 0 ? next_random(&seed) % (size_t)n + 1 : (size_t)n;
            memcpy(bad, coded, cut);
            for (int flips = 0; flips < 3; flips++)
                bad[next_random(&seed) % cut] ^= (unsigned char)next_random(&seed);
            memset(back, 0xa5, len + GUARD);
            (void)codec_decode(c, bad, cut, CAIRN_U8, back,
                               len); /* it need not notice: checksums do; it must stay within */
            for (size_t i = 0; i < GUARD; i++)
                assert_int_equal(back[len + i], 0xa5);
        }
        assert_int_equal(codec_decode(c, coded, (size_t)n, CAIRN_U8, back, len - 1), CAIRN_E_CORRUPT);
    }
    free(back);
}

static void test_no_room_is_zero(void **state)
{
    struct plugins *p = *state;
    unsigned char plain[4096], coded[4096];

    fill(plain, sizeof plain, 1, 3);
    for (size_t k = 0; k < sizeof names / sizeof names[0]; k++)
        assert_int_equal(codec_encode(load(p, names[k]), plain, sizeof plain, CAIRN_U8, coded, 100), 0);
}

static void test_estimate_tells_noise_from_repetition(void **state)
{
    unsigned char *part = malloc(CAIRN_PART);
    const struct codec *lz4 = load(*state, "lz4");

    fill(part, CAIRN_PART, 1, 3);
    assert_true(codec_estimate(lz4, part, CAIRN_PART, CAIRN_F32) > CAIRN_PART * 9 / 10);
    fill(part, CAIRN_PART, 2, 3);
    assert_true(codec_estimate(lz4, part, CAIRN_PART, CAIRN_I64) < CAIRN_PART / 2);
    free(part);
}

/* Each bad plugin must be refused with a message that says why. */
static void test_bad_plugins_are_refused(void **state)
{
    static const struct {
        const char *name, *says;
    } bad[] = {{"abi", "ABI"},        {"kind", "is a store plugin"}, {"name", "calls itself"},
               {"size", "table has"}, {"missing", "required"},       {"nosymbol", "cairn_plugin_entry"},
               {"twin", "id"},        {"absent", "load plugin"}};
    struct plugins *p;

    (void)state;
    assert_int_equal(plugins_new(BAD_PLUGIN_DIR, &p, NULL), 0);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct cairn_error err = CAIRN_ERROR_INIT;
        struct codec *c = NULL;
        if (strcmp(bad[i].name, "twin") == 0) /* a second codec with an id that is taken */
            assert_int_equal(plugins_codec(p, "good", &c, &err), 0);
        assert_true(plugins_codec(p, bad[i].name, &c, &err) < 0);
        if (!strstr(err.message, bad[i].says))
            fail_msg("\"%s\" does not say \"%s\"", err.message, bad[i].says);
    }
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct codec *c;
    assert_int_equal(plugins_codec(p, "../evil", &c, &err), CAIRN_E_INVAL);
    plugins_free(p);
}

/* Catches a directory without plugins beside the program that hides the installed ones. */
static void test_both_directories_are_looked_at(void **state)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct plugins *p;
    struct codec *c;

    (void)state;
    unsetenv("CAIRN_PLUGIN_DIR");
    assert_int_equal(plugins_new(NULL, &p, NULL), 0);
    assert_int_equal(plugins_codec(p, "absent", &c, &err), CAIRN_E_NOT_FOUND);
    const char *beside = strstr(err.message, "conformance/../lib/cairn or ");
    if (!beside || !strstr(beside, "lib/cairn or /") || !strstr(beside, "/cairn;"))
        fail_msg("\"%s\" does not name both", err.message);
    plugins_free(p);
}

static int setup(void **state)
{
    return plugins_new(PLUGIN_DIR, (struct plugins **)state, NULL);
}

static int teardown(void **state)
{
    plugins_free(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trips),
        cmocka_unit_test(test_damage_is_refused_or_harmless),
        cmocka_unit_test(test_no_room_is_zero),
        cmocka_unit_test(test_estimate_tells_noise_from_repetition),
        cmocka_unit_test(test_bad_plugins_are_refused),
        cmocka_unit_test(test_both_directories_are_looked_at),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
