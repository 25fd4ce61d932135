/* SPDX-License-Identifier: Apache-2.0 */
/* Layouts: every lie of a tensor table is refused with the tensor's name; the image is packed as the header says; bytes
 * from outside decode to something consistent or not at all. */
#include "core/model/catalog.h"
#include "core/model/dtype.h"
#include "core/model/name.h"
#include "core/model/stripe.h"
#include "core/model/units.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct cairn_layout l;
static struct cairn_error err;

static int setup(void **state)
{
    (void)state;
    err = (struct cairn_error)CAIRN_ERROR_INIT;
    cairn_layout_init(&l);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    cairn_layout_free(&l);
    return 0;
}

static int add(const char *name, int dtype, uint32_t ndim, const uint64_t *shape, const uint64_t *offset,
               const uint64_t *length)
{
    struct cairn_tensor t = {.size = sizeof t,
                             .name = name,
                             .dtype = dtype,
                             .ndim = ndim,
                             .shape = shape,
                             .offset = offset,
                             .length = length};

    return cairn_layout_add(&l, &t, &err);
}

static int add1(const char *name, int dtype, uint64_t shape, uint64_t offset, uint64_t length)
{
    return add(name, dtype, 1, &shape, &offset, &length);
}

static void test_lies_are_refused(void **state)
{
    uint64_t huge[2] = {(uint64_t)1 << 40, (uint64_t)1 << 40};
    static char long_name[CAIRN_MAX_TENSOR_NAME + 2];

    (void)state;
    memset(long_name, 'x', sizeof long_name - 1);
    assert_int_equal(add1("w", CAIRN_F32, 8, 4, 5), CAIRN_E_INVAL);
    assert_non_null(strstr(err.message, "\"w\""));
    assert_int_equal(add1("w", CAIRN_F32, 8, UINT64_MAX, 2), CAIRN_E_INVAL);
    assert_int_equal(add1("w", CAIRN_F32, 8, 0, 0), CAIRN_E_INVAL);
    assert_int_equal(add1("w", 0, 8, 0, 8), CAIRN_E_INVAL);
    assert_int_equal(add1("w", 999, 8, 0, 8), CAIRN_E_INVAL);
    assert_int_equal(add("w", CAIRN_F32, 2, huge, NULL, NULL), CAIRN_E_INVAL);
    assert_int_equal(add("w", CAIRN_F32, CAIRN_MAX_DIMS + 1, huge, NULL, NULL), CAIRN_E_INVAL);
    assert_int_equal(add1("", CAIRN_F32, 8, 0, 8), CAIRN_E_INVAL);
    assert_int_equal(add1(NULL, CAIRN_F32, 8, 0, 8), CAIRN_E_INVAL);
    assert_int_equal(add1(long_name, CAIRN_F32, 8, 0, 8), CAIRN_E_INVAL);
    assert_int_equal(add1("a\nb", CAIRN_F32, 8, 0, 8), CAIRN_E_INVAL);
    assert_int_equal(add1("\xff\xfe", CAIRN_F32, 8, 0, 8), CAIRN_E_INVAL);
    assert_int_equal(l.nslices, 0);
}

static void test_slices_of_one_tensor(void **state)
{
    (void)state;
    assert_int_equal(add1("w", CAIRN_F32, 8, 0, 4), 0);
    assert_int_equal(add1("w", CAIRN_F32, 8, 4, 4), 0);
    assert_int_equal(cairn_layout_place(&l, &err), 0);
    assert_int_equal(add1("w", CAIRN_F32, 8, 3, 2), 0);
    assert_int_equal(cairn_layout_place(&l, &err), CAIRN_E_INVAL);
    assert_non_null(strstr(err.message, "overlap"));
    cairn_layout_free(&l);
    add1("w", CAIRN_F32, 8, 0, 4);
    add1("w", CAIRN_BF16, 8, 4, 4);
    assert_int_equal(cairn_layout_place(&l, &err), CAIRN_E_INVAL);
    cairn_layout_free(&l);
    add1("w", CAIRN_F32, 8, 0, 4);
    add1("w", CAIRN_F32, 9, 4, 4);
    assert_int_equal(cairn_layout_place(&l, &err), CAIRN_E_INVAL);
    cairn_layout_free(&l);
    add1("e", CAIRN_F32, 0, 0, 0);
    add1("e", CAIRN_F32, 0, 0, 0);
    assert_int_equal(cairn_layout_place(&l, &err), CAIRN_E_INVAL);
}

static void test_the_image_is_packed_by_dtype(void **state)
{
    (void)state;
    add1("a", CAIRN_BF16, CAIRN_PART / 2 + 5, 0, CAIRN_PART / 2 + 5); /* one part and ten bytes */
    add1("b", CAIRN_F32, 3, 0, 3);
    add1("c", CAIRN_BF16, 1, 0, 1);
    add("scalar", CAIRN_F32, 0, NULL, NULL, NULL);
    add1("empty", CAIRN_I8, 0, 0, 0);
    assert_int_equal(cairn_layout_place(&l, &err), 0);
    assert_int_equal(l.ngroups, 2);
    assert_int_equal(l.nparts, 3);
    assert_int_equal(l.slices[2].image_offset, CAIRN_PART + 64); /* behind "a", at the next 64 bytes */
    assert_int_equal(l.slices[1].image_offset, 2 * CAIRN_PART);
    assert_int_equal(l.slices[3].image_offset, 2 * CAIRN_PART + 64);
    assert_int_equal(cairn_layout_part_len(&l, 0), CAIRN_PART);
    assert_int_equal(cairn_layout_part_len(&l, 1), 66);
    assert_int_equal(cairn_layout_part_len(&l, 2), 68);
    assert_int_equal(cairn_layout_part_dtype(&l, 1), CAIRN_BF16);
    assert_int_equal(cairn_layout_part_dtype(&l, 2), CAIRN_F32);
    assert_int_equal(cairn_chunk_parts(&l, 0, 4), 2); /* never across a group */
    assert_int_equal(cairn_chunk_parts(&l, 2, 4), 1);
    assert_int_equal(cairn_chunk_parts(&l, 0, 1), 1);
}

static void test_nothing_at_all(void **state)
{
    (void)state;
    assert_int_equal(cairn_layout_place(&l, &err), 0);
    assert_int_equal(l.nparts, 0);
}

static void test_many_slices_of_one_name_are_quick(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 100000; i++)
        assert_int_equal(add1("rows", CAIRN_U8, 100000, i, 1), 0);
    assert_int_equal(cairn_layout_place(&l, &err), 0);
}

static void build(unsigned tensors)
{
    for (unsigned i = 0; i < tensors; i++) {
        char name[32];
        uint64_t shape[2] = {16, 4 + i % 3}, offset[2] = {i % 8, 0}, length[2] = {8, 4 + i % 3};
        snprintf(name, sizeof name, "layer.%u", i);
        assert_int_equal(add(name, i % 2 ? CAIRN_F32 : CAIRN_BF16, 2, shape, offset, length), 0);
    }
    assert_int_equal(cairn_layout_place(&l, &err), 0);
}

static void test_bytes_round_trip(void **state)
{
    struct bytes out = {.data = NULL}, again = {.data = NULL};
    struct cairn_layout back;

    (void)state;
    build(200);
    assert_int_equal(cairn_layout_encode(&l, &out, &err), 0);
    cairn_layout_init(&back);
    assert_int_equal(cairn_layout_decode(&back, out.data, out.len, &err), 0);
    assert_int_equal(back.nslices, l.nslices);
    assert_string_equal(back.slices[7].name, "layer.7");
    assert_int_equal(cairn_layout_encode(&back, &again, &err), 0);
    assert_int_equal(out.len, again.len);
    assert_memory_equal(out.data, again.data, out.len);
    cairn_layout_free(&back);
    bytes_free(&out);
    bytes_free(&again);
}

static void test_damaged_bytes(void **state)
{
    struct bytes out = {.data = NULL};
    struct cairn_layout back;

    (void)state;
    build(5);
    assert_int_equal(cairn_layout_encode(&l, &out, &err), 0);
    for (size_t len = 0; len < out.len; len++) { /* every truncation */
        cairn_layout_init(&back);
        assert_true(cairn_layout_decode(&back, out.data, len, NULL) < 0);
        assert_null(back.slices);
    }
    for (size_t i = 0; i < out.len * 8; i++) { /* every flipped bit: refused, or another layout that is consistent */
        out.data[i / 8] ^= (uint8_t)(1u << i % 8);
        cairn_layout_init(&back);
        if (cairn_layout_decode(&back, out.data, out.len, NULL) == 0)
            assert_int_equal(cairn_layout_place(&back, NULL), 0);
        cairn_layout_free(&back);
        out.data[i / 8] ^= (uint8_t)(1u << i % 8);
    }
    bytes_free(&out);
}

static void test_a_catalog_round_trips(void **state)
{
    struct cairn_chunk_range chunks[] = {{0, 1}, {1, 1}};
    struct cairn_catalog_shard shard = {.rank = 0, .chunks = chunks, .nchunks = 2};
    struct cairn_catalog c = {.step = 9, .incarnation = 3, .world_size = 1, .nshards = 1, .shards = &shard}, back;
    struct bytes out = {.data = NULL};

    (void)state;
    build(10);
    shard.layout = l; /* lent */
    assert_int_equal(l.nparts, 2);
    assert_int_equal(cairn_catalog_encode(&c, &out, &err), 0);
    cairn_catalog_init(&back);
    assert_int_equal(cairn_catalog_decode(&back, out.data, out.len, &err), 0);
    assert_true(back.step == 9 && back.nshards == 1 && back.shards[0].nchunks == 2);
    assert_int_equal(cairn_catalog_chunk_of(&back.shards[0], 1), 1);
    cairn_catalog_free(&back);
    for (size_t len = 0; len < out.len; len++) {
        cairn_catalog_init(&back);
        assert_true(cairn_catalog_decode(&back, out.data, len, NULL) < 0);
    }
    bytes_free(&out);
}

static void test_geometry(void **state)
{
    static const uint8_t want[][2] = {{0, 0}, {1, 0}, {1, 1}, {2, 1}, {2, 2}, {3, 2}, {4, 2}, {4, 2}};

    (void)state;
    for (unsigned n = 0; n < 8; n++) {
        struct cairn_geometry g = cairn_geometry_for(n);
        assert_int_equal(g.k, want[n][0]);
        assert_int_equal(g.m, want[n][1]);
    }
}

static void test_names_and_dtypes(void **state)
{
    static const char *const bad[] = {"", ".", "..", "a/b", "a b", "a\n", "\xc3\xa4", NULL};
    char longest[CAIRN_MAX_NAME + 2];

    (void)state;
    for (int i = 0; bad[i]; i++)
        assert_true(cairn_name_check("job", bad[i], &err) < 0);
    assert_true(cairn_name_check("job", NULL, &err) < 0);
    memset(longest, 'a', sizeof longest);
    longest[CAIRN_MAX_NAME + 1] = 0;
    assert_true(cairn_name_check("job", longest, &err) < 0);
    longest[CAIRN_MAX_NAME] = 0;
    assert_int_equal(cairn_name_check("job", longest, &err), 0);
    assert_int_equal(cairn_name_check("job", "A-b_9.x", &err), 0);
    for (int d = CAIRN_BYTES; d <= CAIRN_C64; d++) {
        assert_true(cairn_dtype_size(d) > 0);
        assert_int_equal(cairn_dtype_parse(cairn_dtype_name(d)), d);
    }
    assert_int_equal(cairn_dtype_size(0), 0);
    assert_null(cairn_dtype_name(CAIRN_C64 + 1));
    assert_int_equal(cairn_dtype_parse("float"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_lies_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_slices_of_one_tensor, setup, teardown),
        cmocka_unit_test_setup_teardown(test_the_image_is_packed_by_dtype, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nothing_at_all, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many_slices_of_one_name_are_quick, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bytes_round_trip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damaged_bytes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_catalog_round_trips, setup, teardown),
        cmocka_unit_test(test_geometry),
        cmocka_unit_test(test_names_and_dtypes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
