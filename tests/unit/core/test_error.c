/* SPDX-License-Identifier: Apache-2.0 */
#include "core/base/error.h"

#include <errno.h>
#include "tests/unit/core/support.h"

/* Catches a wrap that loses the cause, or puts the context behind it. */
static void test_wrap_goes_outward(void **state)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    (void)state;

    assert_int_equal(cairn_fail_errno(&err, ENOENT, "open %s", "/x"), CAIRN_E_NOT_FOUND);
    assert_int_equal(err.sys_errno, ENOENT);
    assert_int_equal(cairn_wrap(&err, CAIRN_E_UNAVAILABLE, "start peer %s", "p1"), CAIRN_E_UNAVAILABLE);
    assert_string_equal(err.message, "start peer p1: open /x: No such file or directory");
    assert_int_equal(err.code, CAIRN_E_UNAVAILABLE);
    assert_int_equal(err.sys_errno, ENOENT);
    assert_int_equal(cairn_fail(&err, CAIRN_E_INVAL, "new"), CAIRN_E_INVAL);
    assert_int_equal(err.sys_errno, 0);
    assert_string_equal(err.message, "new");
}

/* Catches a call that needs the optional error. */
static void test_without_error(void **state)
{
    (void)state;
    assert_int_equal(cairn_fail(NULL, CAIRN_E_BUSY, "x"), CAIRN_E_BUSY);
    assert_int_equal(cairn_fail_errno(NULL, ENOSPC, "x"), CAIRN_E_NO_SPACE);
    assert_int_equal(cairn_wrap(NULL, CAIRN_E_IO, "x"), CAIRN_E_IO);
    cairn_error_copy(NULL, NULL);
}

/* Catches formatting into the message while reading an argument from it. */
static void test_argument_is_the_message(void **state)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    (void)state;

    cairn_fail(&err, CAIRN_E_IO, "disk");
    cairn_fail(&err, CAIRN_E_IO, "again: %s", err.message);
    assert_string_equal(err.message, "again: disk");
    cairn_wrap(&err, CAIRN_E_IO, "<%s>", err.message);
    assert_string_equal(err.message, "<again: disk>: again: disk");
}

/* Catches a message that is not terminated, overflows, or ends inside a character. */
static void test_long_messages_are_cut(void **state)
{
    struct {
        struct cairn_error err;
        char guard[8];
    } s = {.err = CAIRN_ERROR_INIT, .guard = "guarded"};
    char text[1000];
    (void)state;

    memset(text, 'a', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    for (size_t at = 480; at < 500; at++) {
        memcpy(text + at, "\xe2\x82\xac", 3);
        cairn_fail(&s.err, CAIRN_E_IO, "%s", text);
        size_t len = strlen(s.err.message);
        assert_in_range(len, sizeof(s.err.message) - 3, sizeof(s.err.message) - 1);
        assert_memory_equal(s.err.message, text, len);
        /* Either the whole character or nothing of it. */
        assert_true(len <= at || len >= at + 3);
        memset(text + at, 'a', 3);
    }
    for (int i = 0; i < 100; i++)
        cairn_wrap(&s.err, CAIRN_E_IO, "layer %d", i);
    assert_int_equal(strlen(s.err.message), sizeof(s.err.message) - 1);
    assert_string_equal(s.guard, "guarded");
}

/* Catches writing past an older caller's shorter struct. */
static void test_short_struct(void **state)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_error from = CAIRN_ERROR_INIT;
    (void)state;

    memset(err.message, '#', sizeof(err.message));
    err.size = offsetof(struct cairn_error, message) + 5;
    cairn_fail(&err, CAIRN_E_IO, "123456789");
    assert_string_equal(err.message, "1234");
    assert_int_equal(err.message[5], '#');
    cairn_fail(&from, CAIRN_E_BUSY, "abcdefgh");
    cairn_error_copy(&err, &from);
    assert_string_equal(err.message, "abcd");
    assert_int_equal(err.code, CAIRN_E_BUSY);
    assert_int_equal(err.size, offsetof(struct cairn_error, message) + 5);
    err.size = 4;
    cairn_fail(&err, CAIRN_E_IO, "nothing fits");
    assert_string_equal(err.message, "abcd");
}

/* Catches a code without a name, and a lookup outside the table. */
static void test_code_names(void **state)
{
    (void)state;
    for (int code = CAIRN_OK; code >= CAIRN_E_INTR; code--)
        assert_string_not_equal(cairn_code_name(code), "unknown");
    assert_string_equal(cairn_code_name(CAIRN_OK), "ok");
    assert_string_equal(cairn_code_name(CAIRN_E_TIMEOUT), "timeout");
    assert_string_equal(cairn_code_name(CAIRN_E_STALE_PIN), "stale_pin");
    assert_string_equal(cairn_code_name(CAIRN_E_INTR), "intr");
    assert_string_equal(cairn_code_name(1), "unknown");
    assert_string_equal(cairn_code_name(CAIRN_E_INTR - 1), "unknown");
    assert_string_equal(cairn_code_name(INT32_MIN), "unknown");
}

static void test_errnos(void **state)
{
    (void)state;
    assert_int_equal(cairn_code_of_errno(ENOMEM), CAIRN_E_NOMEM);
    assert_int_equal(cairn_code_of_errno(EDQUOT), CAIRN_E_NO_SPACE);
    assert_int_equal(cairn_code_of_errno(EACCES), CAIRN_E_DENIED);
    assert_int_equal(cairn_code_of_errno(ECONNREFUSED), CAIRN_E_UNAVAILABLE);
    assert_int_equal(cairn_code_of_errno(EINTR), CAIRN_E_INTR);
    assert_int_equal(cairn_code_of_errno(EIO), CAIRN_E_IO);
    assert_int_equal(cairn_code_of_errno(99999), CAIRN_E_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wrap_goes_outward),
        cmocka_unit_test(test_without_error),
        cmocka_unit_test(test_argument_is_the_message),
        cmocka_unit_test(test_long_messages_are_cut),
        cmocka_unit_test(test_short_struct),
        cmocka_unit_test(test_code_names),
        cmocka_unit_test(test_errnos),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
