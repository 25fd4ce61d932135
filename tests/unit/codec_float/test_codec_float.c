/* SPDX-License-Identifier: Apache-2.0 */
/* codec-float and codec-dense: every kernel gives the same bytes, every input comes back, golden bytes stay. */
#include "part.h"

#include "kinds.h"

#include <cairn/plugin.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define GUARD 64

static const struct kernel *kernels[3];
static unsigned nkernels;

static void round_trip(const uint8_t *plain, size_t len, int dtype, int codes)
{
    uint8_t *first = malloc(len + GUARD), *coded = malloc(len + GUARD), *back = malloc(len + GUARD);
    int64_t n0 = -1;

    for (unsigned k = 0; k < nkernels; k++) {
        memset(coded, 0xa5, len + GUARD);
        int64_t n = part_encode(kernels[k], plain, len, dtype, codes, coded, len);
        assert_in_range(n, 0, len);
        for (unsigned i = 0; i < GUARD; i++)
            assert_int_equal(coded[len + i], 0xa5);
        if (k == 0)
            memcpy(first, coded, len);
        n0 = k == 0 ? n : n0;
        assert_int_equal(n, n0);
        if (n == 0)
            continue;
        assert_memory_equal(coded, first, (size_t)n);
        memset(back, 0xa5, len + GUARD);
        assert_int_equal(part_decode(kernels[k], coded, (size_t)n, dtype, back, len), 0);
        assert_memory_equal(back, plain, len);
        for (unsigned i = 0; i < GUARD; i++)
            assert_int_equal(back[len + i], 0xa5);
        assert_true(part_decode(kernels[k], coded, (size_t)n - 1, dtype, back, len) < 0);
        assert_true(part_decode(kernels[k], coded, (size_t)n, dtype, back, len + 1) < 0);
    }
    free(first);
    free(coded);
    free(back);
}

/* Catches any difference of a kernel from the reference, and any length whose blocks or tail are cut wrongly. */
static void test_round_trips(void **state)
{
    static const int dtypes[] = {CAIRN_U8, CAIRN_F8_E4M3, CAIRN_BF16, CAIRN_F16, CAIRN_F32, CAIRN_F64, CAIRN_C64};
    uint8_t *plain = malloc(70000);

    (void)state;
    for (unsigned d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++)
        for (int kind = 0; kind < KINDS; kind++)
            for (int codes = 0; codes < 2; codes++) {
                for (size_t len = 1; len <= 1200; len += len < 300 ? 1 : 61) {
                    fill(plain, len, part_width(dtypes[d]), kind, len + 1);
                    round_trip(plain, len, dtypes[d], codes);
                }
                fill(plain, 70000, part_width(dtypes[d]), kind, 5);
                round_trip(plain, 65536, dtypes[d], codes);
                round_trip(plain + 1, 69997, dtypes[d], codes); /* unaligned, with a tail */
            }
    free(plain);
}

/* Catches a packer that keeps its bytes but saves too little: weights and differences must shrink as promised. */
static void test_sizes(void **state)
{
    size_t len = 1 << 20;
    uint8_t *plain = malloc(len), *coded = malloc(len);

    (void)state;
    fill(plain, len, 2, WEIGHTS, 1);
    int64_t packed = part_encode(kernel_best(), plain, len, CAIRN_BF16, 0, coded, len);
    int64_t dense = part_encode(kernel_best(), plain, len, CAIRN_BF16, 1, coded, len);
    assert_in_range(packed, 1, len * 68 / 100);
    assert_in_range(dense, 1, len * 67 / 100);
    size_t guess = part_estimate(plain, len, CAIRN_BF16, 0);
    assert_in_range(guess, (size_t)packed * 95 / 100, (size_t)packed * 105 / 100);
    guess = part_estimate(plain, len, CAIRN_BF16, 1);
    assert_in_range(guess, (size_t)dense * 95 / 100, (size_t)dense * 105 / 100);
    fill(plain, len, 4, WEIGHTS, 1);
    int64_t with_sign = part_encode(kernel_best(), plain, len, CAIRN_F32, 0, coded, len);
    fill(plain, len, 4, POSITIVES, 1);
    assert_in_range(part_encode(kernel_best(), plain, len, CAIRN_F32, 0, coded, len), 1,
                    (size_t)with_sign - len / 32 * 9 / 10); /* a bit of 32 less, nearly */
    fill(plain, len, 2, HALVES, 1);
    assert_in_range(part_encode(kernel_best(), plain, len, CAIRN_F16, 0, coded, len), 1, len * 83 / 100);
    fill(plain, len, 2, RARE, 1);
    assert_in_range(part_encode(kernel_best(), plain, len, CAIRN_BF16, 0, coded, len), 1, len / 10);
    fill(plain, len, 2, ZEROS, 1);
    assert_in_range(part_encode(kernel_best(), plain, len, CAIRN_BF16, 0, coded, len), 1, len / 200);
    fill(plain, len, 4, NOISE, 1);
    assert_in_range(part_estimate(plain, len, CAIRN_F32, 1), len, len + 100);
    assert_int_equal(part_encode(kernel_best(), plain, len, CAIRN_F32, 0, coded, len), 0);
    assert_int_equal(part_encode(kernel_best(), plain, len, CAIRN_F32, 1, coded, len), 0);
    free(plain);
    free(coded);
}

static uint64_t sum_of(const uint8_t *p, size_t n)
{
    uint64_t sum = 0xcbf29ce484222325ull;

    for (size_t i = 0; i < n; i++)
        sum = (sum ^ p[i]) * 0x100000001b3ull;
    return sum;
}

/* Catches an encoder that drifts: a fragment that is encoded again must come out the same. The sums are of the encoded
 * bytes. CAIRN_PRINT_GOLDEN=1 prints them. */
static void test_golden(void **state)
{
    static const struct {
        int dtype, kind, codes;
        uint64_t sum;
    } golden[] = {
/* dtype, kind, codes, sum */
#include "golden.h"
    };
    uint8_t plain[20001], coded[20001];
    bool print = getenv("CAIRN_PRINT_GOLDEN") != NULL;
    static const int dtypes[] = {CAIRN_U8, CAIRN_BF16, CAIRN_F32, CAIRN_F64};
    unsigned at = 0;

    (void)state;
    for (unsigned d = 0; d < 4; d++)
        for (int kind = WEIGHTS; kind < KINDS; kind++)
            for (int codes = 0; codes < 2; codes++, at++) {
                fill(plain, sizeof plain, part_width(dtypes[d]), kind, 11);
                int64_t n = part_encode(kernel_best(), plain, sizeof plain, dtypes[d], codes, coded, sizeof coded);
                uint64_t sum = sum_of(coded, (size_t)n);
                if (print) {
                    printf("        {%d, %d, %d, 0x%016llxull},\n", dtypes[d], kind, codes, (unsigned long long)sum);
                    continue;
                }
                assert_true(at < sizeof golden / sizeof golden[0]);
                assert_int_equal(golden[at].dtype, dtypes[d]);
                assert_int_equal(golden[at].sum, sum);
            }
}

static const struct stored {
    int dtype, kind, dense;
    size_t plain_len;
    uint64_t sum; /* of the plain bytes */
    size_t len;
    uint8_t bytes[2048];
} stored[] = {
/* as struct stored has them */
#include "stored.h"
};

/* Every step of the format, more than one strip, a tail, a last block that is not whole. */
static void print_stored(void)
{
    static const struct {
        int dtype, kind, dense;
        size_t len;
    } wanted[] = {{CAIRN_U8, RARE, 0, 20001},      {CAIRN_BF16, WEIGHTS, 0, 2001}, {CAIRN_BF16, WEIGHTS, 1, 1925},
                  {CAIRN_BF16, POSITIVES, 1, 900}, {CAIRN_F16, HALVES, 0, 2002},   {CAIRN_F32, WEIGHTS, 1, 1031},
                  {CAIRN_F32, POSITIVES, 0, 1800}, {CAIRN_F64, STEPS, 1, 20001},   {CAIRN_F64, RARE, 0, 1999}};
    uint8_t plain[20001], coded[20001];

    for (unsigned i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        size_t len = wanted[i].len;
        fill(plain, len, part_width(wanted[i].dtype), wanted[i].kind, i + 1);
        int64_t n = part_encode(kernel_best(), plain, len, wanted[i].dtype, wanted[i].dense, coded, sizeof coded);
        assert_in_range(n, 1, sizeof stored[0].bytes);
        printf("{%d, %d, %d, %zu, 0x%016llxull, %d, {", wanted[i].dtype, wanted[i].kind, wanted[i].dense, len,
               (unsigned long long)sum_of(plain, len), (int)n);
        for (int64_t b = 0; b < n; b++)
            printf("%s%u,", b % 24 ? "" : "\n", coded[b]);
        printf("}},\n");
    }
}

/* Catches a decoder that no longer reads what an earlier build has written, whatever today's encoder writes.
 * CAIRN_PRINT_STORED=1 prints them anew: for a new version of the format, beside those of the old one. */
static void test_stored(void **state)
{
    uint8_t back[20001];

    (void)state;
    if (getenv("CAIRN_PRINT_STORED")) {
        print_stored();
        return;
    }
    assert_int_equal(sizeof stored / sizeof stored[0], 9);
    for (unsigned i = 0; i < sizeof stored / sizeof stored[0]; i++)
        for (unsigned k = 0; k < nkernels; k++) {
            const struct stored *s = &stored[i];
            memset(back, 0xa5, sizeof back);
            assert_int_equal(part_decode(kernels[k], s->bytes, s->len, s->dtype, back, s->plain_len), 0);
            assert_true(sum_of(back, s->plain_len) == s->sum);
        }
}

/* Every level of every number of bits, at lengths around whole blocks: catches codes that a kernel numbers differently,
 * and a last block of which too much or too little is kept. */
static void test_levels(void **state)
{
    uint8_t plain[STRIP + BLOCK], back[STRIP + BLOCK], others[2][STRIP + BLOCK], codes[2][STRIP + BLOCK];
    uint64_t seed = 9;

    (void)state;
    for (unsigned bits = 1; bits <= MAX_BITS; bits++)
        for (size_t n = 1; n <= STRIP; n += n < 140 ? 1 : 531) {
            struct level l = {.bits = (uint8_t)bits};
            for (unsigned i = 0; i < level_values(&l); i++)
                l.value[i] = (uint8_t)(7 + 37 * i);
            size_t left[2], len = level_bytes(&l, n);
            for (unsigned k = 0; k < nkernels; k++) {
                for (size_t i = 0; i < n; i++) {
                    uint64_t r = kinds_random(&seed);
                    plain[i] = r >> 32 & 3 ? l.value[r % level_values(&l)] : (uint8_t)r;
                }
                memset(codes, 0xa5, sizeof codes);
                left[0] = kernels[0]->pack(&l, plain, n, codes[0], others[0]);
                left[1] = kernels[k]->pack(&l, plain, n, codes[1], others[1]);
                assert_int_equal(left[0], left[1]);
                assert_memory_equal(codes[0], codes[1], len + GUARD); /* nothing behind them, either */
                assert_memory_equal(others[0], others[1], left[0]);
                assert_int_equal(kernels[k]->unpack(&l, codes[1], n, others[1], back), left[0]);
                assert_memory_equal(back, plain, n);
                if (n % 8 == 0)
                    continue;
                codes[1][len - 1] |= 0x80; /* a code behind the last one */
                assert_true(kernels[k]->unpack(&l, codes[1], n, others[1], back) == KERNEL_BAD);
            }
        }
}

/* Catches an encoder whose bytes depend on the room that it has, or that gives up although they fit: a fragment that is
 * encoded again must come out the same. */
static void test_room(void **state)
{
    static const int dtypes[] = {CAIRN_U8, CAIRN_BF16, CAIRN_F32, CAIRN_F64};
    size_t len = 40001;
    uint8_t *plain = malloc(len), *coded = malloc(2 * len);

    (void)state;
    for (unsigned i = 0; i < 4 * KINDS * 2; i++) {
        int dtype = dtypes[i % 4], dense = (int)(i & 4);
        fill(plain, len, part_width(dtype), (int)(i / 8), i);
        int64_t n = part_encode(kernel_best(), plain, len, dtype, dense, coded, 2 * len);
        assert_true(n > 0);
        for (unsigned k = 0; k < nkernels; k++) {
            uint8_t *tight = malloc((size_t)n); /* exactly: a sanitizer sees the byte behind it */
            assert_int_equal(part_encode(kernels[k], plain, len, dtype, dense, tight, (size_t)n), n);
            assert_memory_equal(tight, coded, (size_t)n);
            assert_int_equal(part_encode(kernels[k], plain, len, dtype, dense, tight, (size_t)n - 1), 0);
            free(tight);
        }
    }
    free(plain);
    free(coded);
}

/* Catches a read or write behind an end (under a sanitizer), and a kernel that takes damage differently. */
static void test_damage(void **state)
{
    size_t len = 6000;
    uint8_t plain[6000], coded[6000], back[2][6000 + GUARD];
    uint64_t seed = 77;

    (void)state;
    for (int round = 0; round < 6000; round++) {
        int dtype = round % 3 == 0 ? CAIRN_BF16 : round % 3 == 1 ? CAIRN_F32 : CAIRN_U8;
        fill(plain, len, part_width(dtype), round % 5 ? WEIGHTS : RARE, (uint64_t)round + 1);
        int64_t n = part_encode(kernel_best(), plain, len, dtype, round & 1, coded, len);
        if (n == 0)
            continue;
        uint8_t *bad = malloc((size_t)n); /* exactly: a sanitizer sees the byte behind it */
        memcpy(bad, coded, (size_t)n);
        for (int flips = 0; flips < 2; flips++)
            bad[kinds_random(&seed) % (flips ? (size_t)n : 40)] ^= (uint8_t)kinds_random(&seed);
        size_t cut = round % 7 ? (size_t)n : kinds_random(&seed) % (size_t)n + 1;
        int first = 0;
        for (unsigned k = 0; k < nkernels; k++) {
            memset(back[k > 0], 0xa5, sizeof back[0]);
            int r = part_decode(kernels[k], bad, cut, dtype, back[k > 0], len);
            for (unsigned i = 0; i < GUARD; i++)
                assert_int_equal(back[k > 0][len + i], 0xa5);
            assert_true(k == 0 || r == first);
            if (k > 0 && r == 0)
                assert_memory_equal(back[0], back[1], len);
            first = r;
        }
        free(bad);
    }
}

int main(void)
{
    static const char *const names[] = {"portable", "avx2", "avx512"};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trips), cmocka_unit_test(test_sizes),  cmocka_unit_test(test_golden),
        cmocka_unit_test(test_stored),      cmocka_unit_test(test_levels), cmocka_unit_test(test_room),
        cmocka_unit_test(test_damage),
    };

    for (unsigned i = 0; i < 3; i++)
        if (kernel_named(names[i]))
            kernels[nkernels++] = kernel_named(names[i]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
