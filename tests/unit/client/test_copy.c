/* SPDX-License-Identifier: Apache-2.0 */
/* The streaming copy against memcpy: every path, all alignments, lengths around each of its thresholds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client/copy.h"

#define ROOM ((size_t)160 << 10)
#define GUARD 256

static unsigned char *src, *dst;

static int setup(void **state)
{
    (void)state;
    src = malloc(ROOM + 2 * GUARD);
    dst = malloc(ROOM + 2 * GUARD);
    if (!src || !dst)
        return -1;
    uint64_t x = 88172645463325252u;
    for (size_t i = 0; i < ROOM + 2 * GUARD; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        src[i] = (unsigned char)x;
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    free(src);
    free(dst);
    return 0;
}

/* Nothing but [to, to + len) may change. */
static void check(enum copy_path path, size_t to, size_t from, size_t len)
{
    memset(dst, 0x77, GUARD + to);
    memset(dst + GUARD + to + len, 0x77, ROOM + GUARD - to - len);
    copy_stream(path, dst + GUARD + to, src + GUARD + from, len);
    copy_fence();
    assert_memory_equal(dst + GUARD + to, src + GUARD + from, len);
    for (size_t i = 0; i < GUARD + to; i++)
        assert_int_equal(dst[i], 0x77);
    for (size_t i = GUARD + to + len; i < ROOM + 2 * GUARD; i++)
        if (dst[i] != 0x77)
            fail_msg("byte %zu behind the end was written", i - GUARD - to - len);
}

static const enum copy_path paths[] = {COPY_PORTABLE, COPY_AVX2, COPY_AVX512, COPY_AVX512_LINES};

/* Catches a head, a tail or a block whose border is off by one: the small threshold, lines, blocks of four pages. */
static void test_lengths(void **state)
{
    static const size_t near[] = {0, 64, 4096, 16384, 32768, 49152, 65536, 98304};

    (void)state;
    for (size_t p = 0; p < sizeof(paths) / sizeof(paths[0]); p++) {
        if (!copy_supported(paths[p]))
            continue;
        for (size_t i = 0; i < sizeof(near) / sizeof(near[0]); i++)
            for (int d = -65; d <= 65; d += 13)
                if (d >= 0 || near[i] >= (size_t)-d)
                    check(paths[p], 3, 5, (size_t)((long)near[i] + d));
    }
}

static void test_alignments(void **state)
{
    (void)state;
    for (size_t p = 0; p < sizeof(paths) / sizeof(paths[0]); p++) {
        if (!copy_supported(paths[p]))
            continue;
        for (size_t to = 0; to < 65; to += 4)
            for (size_t from = 0; from < 65; from += 7)
                check(paths[p], to, from, 33001);
    }
}

static void test_best_is_supported(void **state)
{
    (void)state;
    assert_true(copy_supported(copy_best()));
    assert_true(copy_supported(COPY_PORTABLE));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_alignments),
        cmocka_unit_test(test_best_is_supported),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
