/* SPDX-License-Identifier: Apache-2.0 */
#include "core/model/layout.h"

#include "core/model/units.h"
#include "tests/unit/core/support.h"

static struct bytes encoded(void)
{
    struct cairn_layout l;
    struct bytes b = {0};

    cairn_layout_init(&l);
    assert_int_equal(add(&l, "w", CAIRN_BF16, 2, DIMS(1024, 1024), DIMS(512, 0), DIMS(256, 1024), NULL), 0);
    assert_int_equal(add(&l, "\xc3\xa4", CAIRN_F32, 1, DIMS(7), NULL, NULL, NULL), 0);
    assert_int_equal(add(&l, "w", CAIRN_BF16, 2, DIMS(1024, 1024), DIMS(0, 0), DIMS(512, 1024), NULL), 0);
    assert_int_equal(add(&l, "none", CAIRN_I64, 1, DIMS(0), NULL, NULL, NULL), 0);
    assert_int_equal(add(&l, "step", CAIRN_I64, 0, NULL, NULL, NULL, NULL), 0);
    assert_int_equal(cairn_layout_place(&l, NULL), 0);
    assert_int_equal(cairn_layout_encode(&l, &b, NULL), 0);
    cairn_layout_free(&l);
    return b;
}

static int decode(const void *data, size_t len)
{
    static const struct cairn_layout empty;
    struct cairn_layout l;
    uint8_t *exact = malloc(len ? len : 1); /* a sanitizer sees a read past the end */

    assert_non_null(exact);
    if (len)
        memcpy(exact, data, len);
    cairn_layout_init(&l);
    int r = cairn_layout_decode(&l, exact, len, NULL);
    if (r < 0)
        assert_memory_equal(&l, &empty, sizeof(l));
    cairn_layout_free(&l);
    free(exact);
    return r;
}

/* Catches a field that is lost on the way. */
static void test_round_trip(void **state)
{
    struct bytes b = encoded(), again = {0};
    struct cairn_layout l;
    (void)state;

    cairn_layout_init(&l);
    assert_int_equal(cairn_layout_decode(&l, b.data, b.len, NULL), 0);
    assert_int_equal(l.nslices, 5);
    assert_string_equal(l.slices[1].name, "\xc3\xa4");
    assert_int_equal(l.slices[0].box.offset[0], 512);
    assert_int_equal(l.slices[2].image_offset, 256 * 1024 * 2);
    assert_int_equal(l.slices[1].image_offset, 2 << 20);
    assert_int_equal(l.nparts, 4);
    bytes_put(&again, "x", 1); /* encode appends */
    assert_int_equal(cairn_layout_encode(&l, &again, NULL), 0);
    assert_int_equal(again.len, b.len + 1);
    assert_memory_equal(again.data + 1, b.data, b.len);
    struct hash128 d = cairn_layout_digest(b.data, b.len), e = cairn_hash128(b.data, b.len);
    assert_memory_equal(&d, &e, sizeof(d));
    cairn_layout_free(&l);
    bytes_free(&again);
    bytes_free(&b);
}

/* Catches a change of the format, which stored checkpoints would not survive. */
static void test_golden(void **state)
{
    static const uint8_t golden[] = {
        'C', 'R', 'N',      'L', 'A', 'Y', 'T', '1', 1, 0, 0, 0, 1,
        0,   0,   0,        1,   0,   0,   0,   1,   0, 0, 0,         /* header */
        1,   0,   CAIRN_U8, 1,   0,   0,   0,   0,   0, 0, 0, 0, 'w', /* slice */
        9,   0,   0,        0,   0,   0,   0,   0,   3, 0, 0, 0, 0,
        0,   0,   0,        5,   0,   0,   0,   0,   0, 0, 0, /* its dimension */
    };
    struct cairn_layout l;
    struct bytes b = {0};
    (void)state;

    cairn_layout_init(&l);
    assert_int_equal(add(&l, "w", CAIRN_U8, 1, DIMS(9), DIMS(3), DIMS(5), NULL), 0);
    assert_int_equal(cairn_layout_place(&l, NULL), 0);
    assert_int_equal(cairn_layout_encode(&l, &b, NULL), 0);
    assert_int_equal(b.len, sizeof(golden));
    assert_memory_equal(b.data, golden, sizeof(golden));
    cairn_layout_free(&l);
    bytes_free(&b);
}

/* Catches a reader that believes a cut or longer input. */
static void test_lengths(void **state)
{
    struct bytes b = encoded();
    (void)state;

    for (size_t len = 0; len < b.len; len++)
        assert_true(decode(b.data, len) < 0);
    assert_int_equal(decode(b.data, b.len), 0);
    bytes_put_u8(&b, 0);
    assert_int_equal(decode(b.data, b.len), CAIRN_E_CORRUPT);
    assert_int_equal(decode(NULL, 0), CAIRN_E_CORRUPT);
    bytes_free(&b);
}

static int decode_with(size_t at, uint8_t value)
{
    struct bytes b = encoded();

    b.data[at] = value;
    int r = decode(b.data, b.len);
    bytes_free(&b);
    return r;
}

/* Catches a field that is not looked at. */
static void test_damage(void **state)
{
    enum { SLICE = 24, NAME = SLICE + 12, DIM = NAME + 1 };
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct bytes b = encoded();
    struct cairn_layout l;
    (void)state;

    assert_int_equal(decode_with(0, 'X'), CAIRN_E_CORRUPT);
    assert_int_equal(decode_with(8, 3), CAIRN_E_PROTOCOL);
    assert_int_equal(decode_with(8, 2), CAIRN_E_CORRUPT);            /* it has no flag */
    assert_int_equal(decode_with(15, 0xff), CAIRN_E_CORRUPT);        /* 4 billion slices */
    assert_int_equal(decode_with(12, 4), CAIRN_E_CORRUPT);           /* one slice less than there are */
    assert_int_equal(decode_with(16, 9), CAIRN_E_CORRUPT);           /* groups */
    assert_int_equal(decode_with(20, 9), CAIRN_E_CORRUPT);           /* parts */
    assert_int_equal(decode_with(SLICE, 0), CAIRN_E_CORRUPT);        /* no name */
    assert_int_equal(decode_with(SLICE + 1, 0xff), CAIRN_E_CORRUPT); /* a long one */
    assert_int_equal(decode_with(SLICE + 2, 200), CAIRN_E_CORRUPT);  /* dtype */
    assert_int_equal(decode_with(SLICE + 3, 200), CAIRN_E_CORRUPT);  /* dimensions */
    assert_int_equal(decode_with(SLICE + 4, 64), CAIRN_E_CORRUPT);   /* placed elsewhere */
    assert_int_equal(decode_with(NAME, 0), CAIRN_E_CORRUPT);         /* a NUL in the name */
    assert_int_equal(decode_with(NAME, 0xff), CAIRN_E_CORRUPT);      /* no UTF-8 */
    assert_int_equal(decode_with(DIM + 7, 0xff), CAIRN_E_CORRUPT);   /* a shape that overflows */
    assert_int_equal(decode_with(DIM + 9, 1), CAIRN_E_CORRUPT);      /* offset 256: over the other slice */
    cairn_layout_init(&l);
    b.data[8] = 7;
    assert_int_equal(cairn_layout_decode(&l, b.data, b.len, &err), CAIRN_E_PROTOCOL);
    assert_non_null(strstr(err.message, "version 7"));
    bytes_free(&b);
}

/* Catches a flag that is lost, one that other layouts' bytes are changed by, and one that a reader is told of that has
 * no use for it. */
static void test_flags(void **state)
{
    struct cairn_tensor w = tensor("w", CAIRN_F32, 1, DIMS(8), NULL, NULL), v = w;
    struct bytes b = {0}, plain = {0}, without = {0};
    struct cairn_layout l, out;
    (void)state;

    cairn_layout_init(&l);
    cairn_layout_init(&out);
    w.flags = CAIRN_TENSOR_COMMON | CAIRN_TENSOR_DEVICE_WRITES;
    v.name = "v";
    assert_int_equal(cairn_layout_add(&l, &w, NULL), 0);
    assert_int_equal(cairn_layout_add(&l, &v, NULL), 0);
    assert_int_equal(cairn_layout_place(&l, NULL), 0);
    assert_int_equal(cairn_layout_encode(&l, &b, NULL), 0);
    assert_int_equal(b.data[8], 2);
    assert_int_equal(cairn_layout_decode(&out, b.data, b.len, NULL), 0);
    assert_true(out.slices[0].common && !out.slices[1].common);
    size_t len = cairn_layout_slice_len(&l.slices[0]);
    assert_true(cairn_layout_slice_is(b.data + CAIRN_LAYOUT_HEADER_LEN, len, &w));
    w.flags = 0; /* a save that drops the flag has another layout */
    assert_false(cairn_layout_slice_is(b.data + CAIRN_LAYOUT_HEADER_LEN, len, &w));
    assert_int_equal(cairn_layout_encode_plain(&l, &plain, NULL), 0);
    l.slices[0].common = false;
    assert_int_equal(cairn_layout_encode(&l, &without, NULL), 0);
    assert_int_equal(plain.len, without.len);
    assert_memory_equal(plain.data, without.data, plain.len);
    assert_int_equal(plain.data[8], 1);
    b.data[8] = 1; /* what version 1 has no flag for */
    assert_int_equal(decode(b.data, b.len), CAIRN_E_CORRUPT);
    cairn_layout_free(&l);
    cairn_layout_free(&out);
    bytes_free(&b);
    bytes_free(&plain);
    bytes_free(&without);
}

static void test_too_long(void **state)
{
    struct cairn_layout l;
    struct bytes b = {0};
    char name[CAIRN_MAX_TENSOR_NAME + 1];
    (void)state;

    cairn_layout_init(&l);
    memset(name, 'n', sizeof(name));
    name[CAIRN_MAX_TENSOR_NAME] = '\0';
    for (unsigned i = 0; i < CAIRN_MAX_LAYOUT / CAIRN_MAX_TENSOR_NAME; i++) {
        char digits[9];
        snprintf(digits, sizeof(digits), "%08x", i);
        memcpy(name, digits, 8);
        assert_int_equal(add(&l, name, CAIRN_U8, 0, NULL, NULL, NULL, NULL), 0);
    }
    assert_int_equal(cairn_layout_place(&l, NULL), 0);
    assert_int_equal(cairn_layout_encode(&l, &b, NULL), CAIRN_E_TOO_LARGE);
    assert_int_equal(b.len, 0);
    assert_int_equal(cairn_layout_decode(&(struct cairn_layout){0}, NULL, CAIRN_MAX_LAYOUT + 1, NULL),
                     CAIRN_E_TOO_LARGE);
    cairn_layout_free(&l);
    bytes_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_golden),   cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_damage),     cmocka_unit_test(test_too_long), cmocka_unit_test(test_flags),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
