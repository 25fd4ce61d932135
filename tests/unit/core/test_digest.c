/* SPDX-License-Identifier: Apache-2.0 */
#include "core/model/digest.h"

#include "core/model/digest_internal.h"
#include "core/model/dtype.h"
#include "tests/unit/core/support.h"

#include <math.h>

#define ROOM 40000

static uint8_t *random_bytes(uint64_t seed, size_t len)
{
    uint8_t *data = malloc(len);

    assert_non_null(data);
    for (size_t i = 0; i < len; i++)
        data[i] = (uint8_t)next_random(&seed);
    return data;
}

/* ---- counting -------------------------------------------------------------------------------- */

/* What the dtypes' own definitions say, a value at a time. */
static void classify_small(int dtype, unsigned v, struct cairn_nonfinite *add)
{
    switch (dtype) {
    case CAIRN_F8_E4M3:
        add->nan += v == 0x7f || v == 0xff;
        break;
    case CAIRN_F8_E5M2: /* five bits of exponent behind the sign, two of mantissa */
        add->nan += (v >> 2 & 31) == 31 && (v & 3);
        add->inf += (v >> 2 & 31) == 31 && !(v & 3);
        break;
    case CAIRN_F8_E8M0:
        add->nan += v == 0xff;
        break;
    case CAIRN_F8_E4M3FNUZ:
    case CAIRN_F8_E5M2FNUZ:
        add->nan += v == 0x80;
        break;
    case CAIRN_F16:
        add->nan += (v >> 10 & 31) == 31 && (v & 1023);
        add->inf += (v >> 10 & 31) == 31 && !(v & 1023);
        break;
    case CAIRN_BF16:
        add->nan += (v >> 7 & 255) == 255 && (v & 127);
        add->inf += (v >> 7 & 255) == 255 && !(v & 127);
        break;
    }
}

static void classify_float(int dtype, const void *at, struct cairn_nonfinite *add)
{
    float f;
    double d;

    if (dtype == CAIRN_F64) {
        memcpy(&d, at, sizeof d);
        add->nan += isnan(d) != 0;
        add->inf += isinf(d) != 0;
        return;
    }
    for (unsigned i = 0; i < (dtype == CAIRN_C64 ? 2u : 1u); i++) {
        memcpy(&f, (const char *)at + i * sizeof f, sizeof f);
        add->nan += isnan(f) != 0;
        add->inf += isinf(f) != 0;
    }
}

static struct cairn_nonfinite reference(int dtype, const uint8_t *data, size_t len)
{
    struct cairn_nonfinite n = {0};
    size_t size = cairn_dtype_size(dtype);

    for (size_t at = 0; cairn_has_nonfinite(dtype) && at < len; at += size)
        if (size <= 2)
            classify_small(dtype, data[at] | (size == 2 ? (unsigned)data[at + 1] << 8 : 0), &n);
        else
            classify_float(dtype, data + at, &n);
    return n;
}

/* Random bytes are seldom special: some elements become so. */
static void plant(int dtype, uint8_t *data, size_t len, uint64_t *seed)
{
    static const uint8_t tops[] = {0x7f, 0xff, 0x7c, 0xfc, 0x80, 0xf8, 0x78, 0};
    size_t size = cairn_dtype_size(dtype);

    for (size_t at = 0; at < len; at += size) {
        if (below(seed, 5))
            continue;
        if (below(seed, 2))
            memset(data + at, 0, size);
        data[at + size - 1] = tops[below(seed, sizeof tops)];
        if (size > 1)
            data[at + size - 2] = (uint8_t[]){0x80, 0xf0, 0x00, 0xff}[below(seed, 4)];
    }
}

/* Bytes have no NaN: of them there is the digest alone. */
static void add_bytes(struct cairn_digest *d, uint64_t stripe, const uint8_t *data, size_t len)
{
    struct cairn_nonfinite none = {0};

    cairn_numerics_add(d, &none, CAIRN_BYTES, stripe, data, len);
    assert_true(none.nan == 0 && none.inf == 0);
}

/* The one pass that does both. */
static void check_both(int dtype, const uint8_t *data, size_t len, struct cairn_nonfinite want)
{
    struct cairn_digest d = {0}, alone = {0};
    struct cairn_nonfinite n = {0};

    add_bytes(&alone, 5, data, len);
    cairn_numerics_add(&d, &n, dtype, 5, data, len);
    assert_int_equal(n.nan, want.nan);
    assert_int_equal(n.inf, want.inf);
    assert_memory_equal(&d, &alone, sizeof d);
}

/* Catches a wrong bit pattern of a dtype, a tail that is forgotten, a lane that overflows, an alignment that is
 * assumed. */
static void test_counts(void **state)
{
    uint64_t seed = 11, special = 0;
    uint8_t *data = random_bytes(5, ROOM);

    (void)state;
    for (int dtype = CAIRN_BYTES; dtype <= CAIRN_C64; dtype++) {
        size_t size = cairn_dtype_size(dtype);
        for (int round = 0; round < 60; round++) {
            size_t at = below(&seed, 64), len = below(&seed, round < 50 ? 300 : (ROOM - 64) / size) * size;
            if (len > ROOM - at)
                continue;
            plant(dtype, data + at, len, &seed);
            struct cairn_nonfinite want = reference(dtype, data + at, len), got = {.nan = 3, .inf = 4};
            cairn_count_nonfinite(dtype, data + at, len, &got);
            assert_int_equal(got.nan, want.nan + 3);
            assert_int_equal(got.inf, want.inf + 4);
            check_both(dtype, data + at, len, want);
            special += want.nan + want.inf;
        }
    }
    assert_true(special > 100000);
    memset(data, 0xff, ROOM); /* all of them: every lane counts at every step */
    struct cairn_nonfinite all = {0};
    cairn_count_nonfinite(CAIRN_F8_E4M3, data, ROOM, &all);
    assert_int_equal(all.nan, ROOM);
    free(data);
}

/* Every value of the small types, once. */
static void test_every_small_value(void **state)
{
    static const struct {
        int dtype;
        uint64_t nan, inf;
    } want[] = {{CAIRN_F8_E4M3, 2, 0},     {CAIRN_F8_E5M2, 6, 2},     {CAIRN_F8_E8M0, 1, 0},
                {CAIRN_F8_E4M3FNUZ, 1, 0}, {CAIRN_F8_E5M2FNUZ, 1, 0}, {CAIRN_F16, 2046, 2},
                {CAIRN_BF16, 254, 2},      {CAIRN_U8, 0, 0},          {CAIRN_BYTES, 0, 0}};
    uint16_t *values = malloc(65536 * sizeof *values);

    (void)state;
    assert_non_null(values);
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++) {
        bool small = cairn_dtype_size(want[i].dtype) == 1;
        struct cairn_nonfinite n = {0};
        for (unsigned v = 0; v < (small ? 256u : 65536u); v++)
            small ? (((uint8_t *)values)[v] = (uint8_t)v) : (values[v] = (uint16_t)v);
        cairn_count_nonfinite(want[i].dtype, values, small ? 256 : 65536 * 2, &n);
        assert_int_equal(n.nan, want[i].nan);
        assert_int_equal(n.inf, want[i].inf);
    }
    free(values);
}

/* ---- the digest ------------------------------------------------------------------------------ */

/* As digest.h says it, a word at a time; keys of version 1 are SplitMix64's first sixteen numbers. */
static uint64_t splitmix(uint64_t *s)
{
    uint64_t z = *s += 0x9e3779b97f4a7c15ull;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

static uint64_t product(uint64_t w, uint64_t key)
{
    uint32_t low = (uint32_t)w + (uint32_t)key, high = (uint32_t)(w >> 32) + (uint32_t)(key >> 32);

    return (uint64_t)low * high;
}

static struct hash128 plain_digest(const uint8_t *data, size_t len, int dtype)
{
    uint64_t keys[16], s = 0, words[19] = {0};

    for (int i = 0; i < 16; i++)
        keys[i] = splitmix(&s);
    for (uint64_t i = 0; i * 64 < len; i++) {
        uint64_t w[8] = {0};
        memcpy(w, data + i * 64, len - i * 64 < 64 ? len - i * 64 : 64);
        for (int j = 0; j < 8; j++) {
            words[j] += product(w[j], keys[j] + i * 0x9e3779b97f4a7c15ull);
            words[8 + j] += product(w[j], keys[8 + j] + i * 0x6a09e667f3bcc909ull) + w[j ^ 1];
        }
    }
    words[16] = len;
    words[17] = (uint64_t)dtype;
    words[18] = 1;
    return cairn_hash128(words, sizeof words);
}

static struct hash128 digest_of(const uint8_t *data, size_t len, int dtype)
{
    struct cairn_digest d = {0};

    add_bytes(&d, 0, data, len);
    return cairn_digest_end(&d, len, dtype);
}

static bool same(struct hash128 a, struct hash128 b)
{
    return a.low == b.low && a.high == b.high;
}

/* Catches a digest that changed: these values are in stored manifests, and other versions compare with them. */
static void test_golden(void **state)
{
    uint8_t data[1000];

    (void)state;
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 7 + i / 256);
    struct hash128 none = digest_of(data, 0, CAIRN_F32), some = digest_of(data, 1000, CAIRN_BF16);
    assert_int_equal(none.low, 0xe0bb5ca8aefa90fb);
    assert_int_equal(none.high, 0x1f38774f0e820db8);
    assert_int_equal(some.low, 0x878962ac4b1b518c);
    assert_int_equal(some.high, 0x86e8133c464db79f);
}

/* Catches a value that depends on where it was cut, or on the order of the pieces. */
static void test_any_cut(void **state)
{
    uint8_t *data = random_bytes(9, ROOM);
    uint64_t seed = 2;

    (void)state;
    for (int round = 0; round < 200; round++) {
        size_t len = below(&seed, round < 150 ? 500 : ROOM), begins[64], n = 0;
        struct cairn_digest d = {0};
        for (size_t at = 0; at < len && n < 63; at += (1 + below(&seed, round % 2 ? 4 : 60)) * 64)
            begins[n++] = at;
        begins[n] = len;
        for (size_t i = 0; i < n; i++) { /* the pieces from both ends in turn */
            size_t p = i % 2 ? n - 1 - i / 2 : i / 2;
            struct cairn_digest piece = {0};
            add_bytes(&piece, begins[p] / 64, data + begins[p], begins[p + 1] - begins[p]);
            cairn_digest_merge(&d, &piece);
        }
        struct hash128 got = cairn_digest_end(&d, len, CAIRN_F16);
        assert_true(same(got, plain_digest(data, len, CAIRN_F16)));
        assert_true(same(got, digest_of(data, len, CAIRN_F16)));
    }
    free(data);
}

/* Catches a construction that does not see what it is for. */
static void test_accidents_show(void **state)
{
    uint8_t data[4096] = {0}, swapped[64];
    struct hash128 zero = digest_of(data, sizeof data, CAIRN_F32);
    uint64_t seed = 4;

    (void)state;
    struct cairn_nonfinite one = {0};
    for (size_t at = 0; at < sizeof data; at += 2) { /* a NaN anywhere is looked for, and no neighbour hides it */
        struct cairn_digest d = {0};
        data[at] = data[at + 1] = 0xff;
        cairn_numerics_add(&d, &one, CAIRN_BF16, 0, data, sizeof data);
        assert_int_equal(one.nan, at / 2 + 1);
        data[at] = data[at + 1] = 0;
    }
    for (size_t bit = 0; bit < sizeof data * 8; bit++) { /* any single bit */
        data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_false(same(digest_of(data, sizeof data, CAIRN_F32), zero));
        data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    assert_false(same(digest_of(data, sizeof data - 1, CAIRN_F32), zero)); /* a zero less */
    assert_false(same(digest_of(data, sizeof data, CAIRN_I32), zero));
    for (int round = 0; round < 500; round++) { /* stripes that changed places, with one bit of difference */
        size_t a = below(&seed, 63), b = a + 1 + below(&seed, 63 - a);
        memset(data, 0, sizeof data);
        data[a * 64 + below(&seed, 64)] = (uint8_t)(1 << below(&seed, 8));
        struct hash128 before = digest_of(data, sizeof data, CAIRN_F32);
        memcpy(swapped, data + a * 64, 64);
        memcpy(data + a * 64, data + b * 64, 64);
        memcpy(data + b * 64, swapped, 64);
        assert_false(same(digest_of(data, sizeof data, CAIRN_F32), before));
    }
}

/* ---- variants -------------------------------------------------------------------------------- */

#if defined(__x86_64__)
static void check_variant(const struct digest_ops *v, const uint8_t *data)
{
    uint64_t seed = 7;

    const struct digest_look look = {0x7f807f807f807f80, 0x0080008000800080};

    for (int round = 0; round < 300; round++) {
        struct cairn_digest a = {0}, b = {0};
        struct digest_keys k;
        size_t at = below(&seed, 64), n = below(&seed, round < 250 ? 20 : (ROOM - 64) / 64), size = 1u << round % 4;
        for (int j = 0; j < 8; j++) {
            k.a[j] = next_random(&seed);
            k.b[j] = next_random(&seed);
        }
        assert_int_equal(digest_base.stripes(&a, &k, data + at, n, &look), v->stripes(&b, &k, data + at, n, &look));
        assert_memory_equal(&a, &b, sizeof a);
        size_t len = (n * 64 + below(&seed, 64)) / size * size;
        if (at + len > ROOM)
            continue;
        assert_int_equal(digest_base.matches((unsigned)size, 0x7c, 0x7c, data + at, len),
                         v->matches((unsigned)size, 0x7c, 0x7c, data + at, len));
    }
}

/* Catches a variant whose values differ: ranks on different processors are compared. */
static void test_variants_agree(void **state)
{
    uint8_t *data = random_bytes(3, ROOM);

    (void)state;
    check_variant(&digest_base, data);
    if (__builtin_cpu_supports("avx2"))
        check_variant(&digest_avx2, data);
    if (__builtin_cpu_supports("avx512f"))
        check_variant(&digest_avx512, data);
    free(data);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counts),
        cmocka_unit_test(test_every_small_value),
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_any_cut),
        cmocka_unit_test(test_accidents_show),
#if defined(__x86_64__)
        cmocka_unit_test(test_variants_agree),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
