/* SPDX-License-Identifier: Apache-2.0 */
#include "core/model/dtype.h"
#include "core/model/name.h"

#include "tests/unit/core/support.h"

/* Catches a name that would leave its folder or its key. */
static void test_names(void **state)
{
    static const char *const bad[] = {"", ".", "..", "a/b", "a b", "a\n", "\xc3\xa4", "a:b", "a%", "~"};
    static const char *const good[] = {"a", "...", ".a", "run-1_B.9", "-"};
    struct cairn_error err = CAIRN_ERROR_INIT;
    char name[CAIRN_MAX_NAME + 2];
    (void)state;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(cairn_name_check("job", bad[i], NULL), CAIRN_E_INVAL);
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        assert_int_equal(cairn_name_check("job", good[i], NULL), 0);
    assert_int_equal(cairn_name_check("job", NULL, NULL), CAIRN_E_INVAL);
    memset(name, 'a', sizeof(name));
    name[CAIRN_MAX_NAME + 1] = '\0';
    assert_int_equal(cairn_name_check("peer id", name, &err), CAIRN_E_INVAL);
    assert_non_null(strstr(err.message, "peer id"));
    name[CAIRN_MAX_NAME] = '\0';
    assert_int_equal(cairn_name_check("job", name, NULL), 0);
}

/* Catches what is no UTF-8 by Unicode's table 3-7, and control characters. */
static void test_tensor_names(void **state)
{
    static const char *const bad[] = {
        "",
        "a\nb",
        "\x7f",
        "\xc2\x80" /* C1 */,
        "\x80",
        "a\xff",
        "\xc0\xaf",
        "\xe0\x80\xaf",
        "\xed\xa0\x80",
        "\xf4\x90\x80\x80",
        "\xf5\x80\x80\x80",
        "\xe2\x82",
        "\xf0\x82\x82\xac",
        "\xc3(",
        "\xe2(\xa1",
    };
    static const char *const good[] = {"model.layers.0.weight",
                                       "a b/c",
                                       "\xc3\xa4",
                                       "\xe2\x82\xac",
                                       "\xed\x9f\xbf",
                                       "\xee\x80\x80",
                                       "\xf0\x9f\x98\x80",
                                       "\xf4\x8f\xbf\xbf",
                                       "\xc2\xa0"};
    static char name[CAIRN_MAX_TENSOR_NAME + 1];
    (void)state;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(cairn_tensor_name_check(bad[i], strlen(bad[i]), NULL), CAIRN_E_INVAL);
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        assert_int_equal(cairn_tensor_name_check(good[i], strlen(good[i]), NULL), 0);
    assert_int_equal(cairn_tensor_name_check(NULL, 3, NULL), CAIRN_E_INVAL);
    assert_int_equal(cairn_tensor_name_check("a\0b", 3, NULL), CAIRN_E_INVAL);
    /* A character that goes on behind the name's end is cut, whatever lies there. */
    assert_int_equal(cairn_tensor_name_check("\xc3\xa4", 1, NULL), CAIRN_E_INVAL);
    memset(name, 'a', sizeof(name));
    assert_int_equal(cairn_tensor_name_check(name, CAIRN_MAX_TENSOR_NAME, NULL), 0);
    assert_int_equal(cairn_tensor_name_check(name, CAIRN_MAX_TENSOR_NAME + 1, NULL), CAIRN_E_INVAL);
}

/* Catches a dtype that has a name and no size, or reads outside the table. */
static void test_dtypes(void **state)
{
    static const int wrong[] = {INT32_MIN, -1, 0, CAIRN_C64 + 1, INT32_MAX};
    (void)state;

    for (int d = CAIRN_BYTES; d <= CAIRN_C64; d++) {
        assert_in_range(cairn_dtype_size(d), 1, 8);
        assert_int_equal(cairn_dtype_parse(cairn_dtype_name(d)), d);
    }
    assert_int_equal(cairn_dtype_size(CAIRN_BF16), 2);
    assert_int_equal(cairn_dtype_size(CAIRN_C64), 8);
    assert_string_equal(cairn_dtype_name(CAIRN_F8_E4M3), "F8_E4M3");
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        assert_int_equal(cairn_dtype_size(wrong[i]), 0);
        assert_null(cairn_dtype_name(wrong[i]));
    }
    assert_int_equal(cairn_dtype_parse("bf16"), 0);
    assert_int_equal(cairn_dtype_parse(NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_tensor_names),
        cmocka_unit_test(test_dtypes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
