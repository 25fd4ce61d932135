/* SPDX-License-Identifier: Apache-2.0 */
#include "core/model/name.h"

#include "core/base/error.h"

#include <stdbool.h>
#include <string.h>

/* Written out: isalnum() follows the trainer's locale. */
static bool name_byte_ok(char c)
{
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           c == '-';
}

int cairn_name_check(const char *what, const char *name, struct cairn_error *err)
{
    if (!name || !*name)
        return cairn_fail(err, CAIRN_E_INVAL, "the %s is empty", what);
    size_t len = strnlen(name, CAIRN_MAX_NAME + 1);
    if (len > CAIRN_MAX_NAME)
        return cairn_fail(err, CAIRN_E_INVAL, "the %s is longer than %d bytes", what, CAIRN_MAX_NAME);
    /* Only what passed is shown: the rest could be anything. */
    for (size_t i = 0; i < len; i++)
        if (!name_byte_ok(name[i]))
            return cairn_fail(err, CAIRN_E_INVAL,
                              "the %s \"%.*s...\" has byte 0x%02x at %zu; allowed are [A-Za-z0-9._-]", what, (int)i,
                              name, (unsigned char)name[i], i);
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return cairn_fail(err, CAIRN_E_INVAL, "the %s may not be \"%s\"", what, name);
    return 0;
}

static uint32_t continuation_bits(const unsigned char *s, size_t n)
{
    uint32_t bits = 0;

    for (size_t i = 0; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return UINT32_MAX;
        bits = bits << 6 | (s[i] & 0x3f);
    }
    return bits;
}

/* Bytes of the well-formed character at s, 0 when there is none. */
static size_t utf8_character(const unsigned char *s, size_t len, uint32_t *ret_point)
{
    static const uint32_t smallest[] = {0, 0x80, 0x800, 0x10000}; /* shorter ones are overlong */
    size_t more = s[0] < 0x80 ? 0 : s[0] < 0xc2 ? 4 : s[0] < 0xe0 ? 1 : s[0] < 0xf0 ? 2 : s[0] < 0xf5 ? 3 : 4;

    if (more > 3 || more >= len)
        return 0;
    if (more == 0) {
        *ret_point = s[0];
        return 1;
    }
    uint32_t bits = continuation_bits(s + 1, more);
    if (bits == UINT32_MAX)
        return 0;
    uint32_t point = (uint32_t)(s[0] & (0x3f >> more)) << (6 * more) | bits;
    if (point < smallest[more] || point > 0x10ffff || (point >= 0xd800 && point < 0xe000))
        return 0;
    *ret_point = point;
    return more + 1;
}

int cairn_tensor_name_check(const char *name, size_t len, struct cairn_error *err)
{
    const unsigned char *s = (const unsigned char *)name;

    if (!name || !len)
        return cairn_fail(err, CAIRN_E_INVAL, "a tensor's name is empty");
    if (len > CAIRN_MAX_TENSOR_NAME)
        return cairn_fail(err, CAIRN_E_INVAL, "a tensor's name is longer than %d bytes", CAIRN_MAX_TENSOR_NAME);
    for (size_t at = 0, step; at < len; at += step) {
        uint32_t point = 0;
        int shown = at > 128 ? 0 : (int)at;

        step = utf8_character(s + at, len - at, &point);
        if (!step)
            return cairn_fail(err, CAIRN_E_INVAL, "a tensor's name \"%.*s...\" is not UTF-8 at byte %zu", shown, name,
                              at);
        if (point < 0x20 || (point >= 0x7f && point < 0xa0))
            return cairn_fail(err, CAIRN_E_INVAL, "a tensor's name \"%.*s...\" has a control character at byte %zu",
                              shown, name, at);
    }
    return 0;
}
