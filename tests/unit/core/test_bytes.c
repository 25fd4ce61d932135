/* SPDX-License-Identifier: Apache-2.0 */
#include "core/base/bytes.h"

#include "tests/unit/core/support.h"

/* Catches the machine's byte order in a format. */
static void test_little_endian(void **state)
{
    static const uint8_t expected[] = {1, 3, 2, 7, 6, 5, 4, 15, 14, 13, 12, 11, 10, 9, 8, 'x'};
    struct bytes b = {0};
    (void)state;

    bytes_put_u8(&b, 1);
    bytes_put_u16(&b, 0x0203);
    bytes_put_u32(&b, 0x04050607);
    bytes_put_u64(&b, 0x08090a0b0c0d0e0full);
    bytes_put(&b, "x", 1);
    assert_false(b.bad);
    assert_int_equal(b.len, sizeof(expected));
    assert_memory_equal(b.data, expected, sizeof(expected));

    struct bytes_reader r = {.data = b.data, .len = b.len};
    assert_int_equal(bytes_get_u8(&r), 1);
    assert_int_equal(bytes_get_u16(&r), 0x0203);
    assert_int_equal(bytes_get_u32(&r), 0x04050607);
    assert_int_equal(bytes_get_u64(&r), 0x08090a0b0c0d0e0full);
    assert_memory_equal(bytes_get(&r, 1), "x", 1);
    assert_false(r.bad);
    bytes_free(&b);
    assert_null(b.data);
    bytes_free(&b);
    bytes_free(NULL);
}

/* Catches a reader that goes on after its first failure. */
static void test_short_input(void **state)
{
    static const uint8_t data[] = {1, 2, 3};
    struct bytes_reader r = {.data = data, .len = sizeof(data)};
    (void)state;

    assert_int_equal(bytes_get_u16(&r), 0x0201);
    assert_int_equal(bytes_get_u16(&r), 0);
    assert_true(r.bad);
    assert_int_equal(bytes_get_u8(&r), 0); /* a byte is left, but not for a reader that failed */
    assert_null(bytes_get(&r, 0));

    r = (struct bytes_reader){.data = data, .len = sizeof(data)};
    assert_null(bytes_get(&r, SIZE_MAX));
    assert_true(r.bad);
    r = (struct bytes_reader){0};
    assert_non_null(bytes_get(&r, 0));
    assert_null(bytes_get(&r, 1));
}

/* Catches lost bytes when the buffer grows. */
static void test_grows(void **state)
{
    struct bytes b = {0};
    (void)state;

    bytes_put(&b, NULL, 0);
    for (uint32_t i = 0; i < 100000; i++)
        bytes_put_u32(&b, i);
    assert_int_equal(b.len, 400000);
    struct bytes_reader r = {.data = b.data, .len = b.len};
    for (uint32_t i = 0; i < 100000; i++)
        assert_int_equal(bytes_get_u32(&r), i);
    bytes_free(&b);
}

/* Catches a length that wraps: a failed put leaves what was there and refuses what follows. */
static void test_impossible_length(void **state)
{
    struct bytes b = {0};
    (void)state;

    bytes_put_u8(&b, 7);
    volatile size_t huge = SIZE_MAX; /* volatile: the compiler would warn of it */
    bytes_put(&b, "x", huge);
    assert_true(b.bad);
    bytes_put_u8(&b, 8);
    assert_int_equal(b.len, 1);
    assert_int_equal(b.data[0], 7);
    bytes_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_little_endian),
        cmocka_unit_test(test_short_input),
        cmocka_unit_test(test_grows),
        cmocka_unit_test(test_impossible_length),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
