/* SPDX-License-Identifier: Apache-2.0 */
/* Layouts at their limits: empty, full, overlapping, many. */
#include "core/model/layout.h"

#include "core/model/units.h"
#include "tests/unit/core/support.h"

static int fresh(void **state)
{
    static struct cairn_layout l;

    cairn_layout_init(&l);
    *state = &l;
    return 0;
}

static int drop(void **state)
{
    cairn_layout_free(*state);
    return 0;
}

/* Catches place that forgets what it did before: more may be added after it. */
static void test_place_again(void **state)
{
    struct cairn_layout *l = *state;

    assert_int_equal(add(l, "a", CAIRN_U8, 1, DIMS(100), NULL, NULL, NULL), 0);
    assert_int_equal(cairn_layout_place(l, NULL), 0);
    assert_int_equal(add(l, "b", CAIRN_U8, 1, DIMS(100), NULL, NULL, NULL), 0);
    assert_int_equal(cairn_layout_place(l, NULL), 0);
    assert_int_equal(l->ngroups, 1);
    assert_int_equal(l->slices[1].image_offset, 128);
    assert_int_equal(add(l, "b", CAIRN_U8, 1, DIMS(100), NULL, NULL, NULL), 0);
    assert_int_equal(cairn_layout_place(l, NULL), CAIRN_E_INVAL);
    assert_int_equal(l->groups[0].bytes, 228); /* as it was */
}

/* Catches a reader of an image without a byte that expects a part. */
static void test_only_empty_tensors(void **state)
{
    struct cairn_layout *l = *state;

    assert_int_equal(cairn_layout_place(l, NULL), 0);
    assert_int_equal(l->nparts, 0);
    assert_int_equal(add(l, "a", CAIRN_F32, 1, DIMS(0), NULL, NULL, NULL), 0);
    assert_int_equal(add(l, "b", CAIRN_F32, 3, DIMS(5, 0, 7), DIMS(1, 0, 2), DIMS(2, 0, 5), NULL), 0);
    assert_int_equal(cairn_layout_place(l, NULL), 0);
    assert_int_equal(l->ngroups, 0);
    assert_int_equal(l->nparts, 0);
    assert_int_equal(cairn_layout_part_len(l, 0), 0);
}

/* Catches a tensor that is out of range, wraps a product, or has nothing behind a pointer. */
static void test_bad_tensors(void **state)
{
    struct cairn_layout *l = *state;
    struct cairn_error err = CAIRN_ERROR_INIT;
    uint64_t many[CAIRN_MAX_DIMS + 1] = {0};

    assert_int_equal(add(l, "a", 0, 0, NULL, NULL, NULL, NULL), CAIRN_E_INVAL);
    assert_int_equal(add(l, "a", 77, 0, NULL, NULL, NULL, NULL), CAIRN_E_INVAL);
    assert_int_equal(add(l, NULL, CAIRN_U8, 0, NULL, NULL, NULL, NULL), CAIRN_E_INVAL);
    assert_int_equal(add(l, "", CAIRN_U8, 0, NULL, NULL, NULL, NULL), CAIRN_E_INVAL);
    assert_int_equal(add(l, "a", CAIRN_U8, CAIRN_MAX_DIMS + 1, many, NULL, NULL, NULL), CAIRN_E_INVAL);
    assert_int_equal(add(l, "a", CAIRN_U8, 1, NULL, NULL, NULL, NULL), CAIRN_E_INVAL);
    assert_int_equal(add(l, "w", CAIRN_U8, 1, DIMS(8), DIMS(4), DIMS(5), &err), CAIRN_E_INVAL);
    assert_non_null(strstr(err.message, "\"w\""));
    assert_int_equal(add(l, "a", CAIRN_U8, 1, DIMS(8), DIMS(9), DIMS(0), NULL), CAIRN_E_INVAL);
    assert_int_equal(add(l, "a", CAIRN_U8, 1, DIMS(8), DIMS(UINT64_MAX), DIMS(2), NULL), CAIRN_E_INVAL);
    assert_int_equal(add(l, "a", CAIRN_U8, 1, DIMS(8), DIMS(2), NULL, NULL), CAIRN_E_INVAL);
    assert_int_equal(add(l, "a", CAIRN_U8, 1, DIMS(8), NULL, DIMS(0), NULL), CAIRN_E_INVAL);
    assert_int_equal(add(l, "a", CAIRN_F32, 2, DIMS(1ull << 32, 1ull << 32), NULL, DIMS(1, 1), NULL), CAIRN_E_INVAL);
    assert_int_equal(add(l, "a", CAIRN_F64, 1, DIMS(UINT64_MAX / 8 + 2), NULL, DIMS(1), NULL), CAIRN_E_INVAL);
    assert_int_equal(add(l, "a", CAIRN_U8, 3, DIMS(0, 1ull << 62, 1ull << 62), NULL, NULL, NULL), CAIRN_E_INVAL);
    assert_int_equal(add(l, "a", CAIRN_U8, 1, DIMS(CAIRN_MAX_IMAGE + 1), NULL, NULL, NULL), CAIRN_E_TOO_LARGE);
    assert_int_equal(l->nslices, 0);
    /* A shard may hold a small slice of a tensor that is larger than any shard. */
    assert_int_equal(add(l, "a", CAIRN_U8, 1, DIMS(1ull << 60), DIMS(7), DIMS(1), NULL), 0);
}

/* Catches slices that fit one by one and not together. */
static void test_image_limit(void **state)
{
    struct cairn_layout *l = *state;

    assert_int_equal(add(l, "a", CAIRN_U8, 1, DIMS(CAIRN_MAX_IMAGE), NULL, NULL, NULL), 0);
    assert_int_equal(cairn_layout_place(l, NULL), 0);
    assert_int_equal(l->nparts, 1u << 22);
    assert_int_equal(add(l, "b", CAIRN_I8, 1, DIMS(1), NULL, NULL, NULL), 0);
    assert_int_equal(cairn_layout_place(l, NULL), CAIRN_E_TOO_LARGE);
    for (int i = 0; i < 40; i++) {
        char name[] = {'c', (char)('0' + i), '\0'};
        assert_int_equal(add(l, name, CAIRN_U8, 1, DIMS(CAIRN_MAX_IMAGE), NULL, NULL, NULL), 0);
    }
    assert_int_equal(cairn_layout_place(l, NULL), CAIRN_E_TOO_LARGE);
}

static int place_two(uint32_t ndim, const uint64_t *shape, const uint64_t *oa, const uint64_t *la, const uint64_t *ob,
                     const uint64_t *lb)
{
    struct cairn_layout l;

    cairn_layout_init(&l);
    assert_int_equal(add(&l, "w", CAIRN_F32, ndim, shape, oa, la, NULL), 0);
    assert_int_equal(add(&l, "other", CAIRN_F32, 0, NULL, NULL, NULL, NULL), 0);
    assert_int_equal(add(&l, "w", CAIRN_F32, ndim, shape, ob, lb, NULL), 0);
    int r = cairn_layout_place(&l, NULL);
    cairn_layout_free(&l);
    return r;
}

/* Catches an overlap that is missed, and neighbours that are taken for one. */
static void test_overlap(void **state)
{
    (void)state;
    assert_int_equal(place_two(1, DIMS(8), DIMS(0), DIMS(4), DIMS(4), DIMS(4)), 0);
    assert_int_equal(place_two(1, DIMS(8), DIMS(4), DIMS(4), DIMS(0), DIMS(4)), 0);
    assert_int_equal(place_two(1, DIMS(8), DIMS(0), DIMS(5), DIMS(4), DIMS(4)), CAIRN_E_INVAL);
    assert_int_equal(place_two(1, DIMS(8), DIMS(0), DIMS(8), DIMS(3), DIMS(1)), CAIRN_E_INVAL);
    assert_int_equal(place_two(2, DIMS(8, 8), DIMS(0, 0), DIMS(8, 4), DIMS(0, 4), DIMS(8, 4)), 0);
    assert_int_equal(place_two(2, DIMS(8, 8), DIMS(0, 0), DIMS(5, 5), DIMS(4, 4), DIMS(4, 4)), CAIRN_E_INVAL);
    assert_int_equal(place_two(0, NULL, NULL, NULL, NULL, NULL), CAIRN_E_INVAL);
    assert_int_equal(place_two(2, DIMS(0, 4), NULL, NULL, NULL, NULL), CAIRN_E_INVAL);
    assert_int_equal(place_two(2, DIMS(0, 4), DIMS(0, 0), DIMS(0, 2), DIMS(0, 2), DIMS(0, 2)), CAIRN_E_INVAL);
    assert_int_equal(place_two(2, DIMS(1, 1), NULL, NULL, NULL, NULL), CAIRN_E_INVAL);
}

/* Catches a random overlap that pairwise comparison finds. */
static void test_overlap_random(void **state)
{
    uint64_t seed = 3;
    int found = 0;
    (void)state;

    for (int round = 0; round < 3000; round++) {
        struct cairn_layout l;
        bool overlap = false;
        uint32_t ndim = 1 + (uint32_t)below(&seed, 3), n = 2 + (uint32_t)below(&seed, 6);

        cairn_layout_init(&l);
        for (uint32_t i = 0; i < n; i++) {
            uint64_t offset[3], length[3];
            for (uint32_t d = 0; d < ndim; d++) {
                offset[d] = below(&seed, 12);
                length[d] = 1 + below(&seed, below(&seed, 2) ? 4 : 12 - offset[d]);
                length[d] = length[d] > 12 - offset[d] ? 12 - offset[d] : length[d];
            }
            assert_int_equal(add(&l, "w", CAIRN_U8, ndim, DIMS(12, 12, 12), offset, length, NULL), 0);
        }
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t j = 0; j < i; j++) {
                struct cairn_box common;
                overlap |= cairn_box_intersect(&l.slices[i].box, &l.slices[j].box, &common);
            }
        assert_int_equal(cairn_layout_place(&l, NULL), overlap ? CAIRN_E_INVAL : 0);
        found += overlap;
        cairn_layout_free(&l);
    }
    assert_in_range(found, 500, 2900); /* both outcomes were tried */
}

/* Catches a check that is quadratic: in slices of one name, along any dimension or in tiles, and in names. */
static void test_many_slices(void **state)
{
    enum { N = 100000, SIDE = 500 };
    struct cairn_layout *l = *state;

    for (uint64_t i = 0; i < N; i++)
        assert_int_equal(add(l, "rows", CAIRN_U8, 2, DIMS(N, 4), DIMS(N - 1 - i, 0), DIMS(1, 4), NULL), 0);
    for (uint64_t i = 0; i < N; i++)
        assert_int_equal(add(l, "columns", CAIRN_U8, 2, DIMS(4, N), DIMS(0, i), DIMS(4, 1), NULL), 0);
    for (uint64_t i = 0; i < SIDE * SIDE; i++)
        assert_int_equal(add(l, "tiles", CAIRN_U8, 2, DIMS(SIDE, SIDE), DIMS(i / SIDE, i % SIDE), DIMS(1, 1), NULL), 0);
    for (uint64_t i = 0; i < N; i++) {
        char name[32];
        snprintf(name, sizeof(name), "layers.%llu.weight", (unsigned long long)i);
        assert_int_equal(add(l, name, CAIRN_U8, 0, NULL, NULL, NULL, NULL), 0);
    }
    assert_int_equal(cairn_layout_place(l, NULL), 0);
    assert_int_equal(add(l, "columns", CAIRN_U8, 2, DIMS(4, N), DIMS(3, N / 2), DIMS(1, 1), NULL), 0);
    assert_int_equal(cairn_layout_place(l, NULL), CAIRN_E_INVAL);
}

/* Catches minutes of comparing. Lines along all three axes that never meet: in every dimension a third of them spans
 * everything, so that every sweep would need billions of comparisons. They are refused, in seconds. */
static void test_too_many_to_compare(void **state)
{
    enum { N = 100000 };
    struct cairn_layout *l = *state;
    const uint64_t *shape = DIMS(N, N, N);

    for (uint64_t i = 0; i < N / 3; i++) {
        assert_int_equal(add(l, "w", CAIRN_U8, 3, shape, DIMS(0, 2 * i, 2 * i), DIMS(N, 1, 1), NULL), 0);
        assert_int_equal(add(l, "w", CAIRN_U8, 3, shape, DIMS(2 * i + 1, 0, 2 * i + 1), DIMS(1, N, 1), NULL), 0);
        assert_int_equal(add(l, "w", CAIRN_U8, 3, shape, DIMS(2 * i, 2 * i + 1, 0), DIMS(1, 1, N), NULL), 0);
    }
    assert_int_equal(cairn_layout_place(l, NULL), CAIRN_E_TOO_LARGE);
    cairn_layout_free(l);
    for (uint64_t i = 0; i < 1000; i++) { /* and a thousand of them are no trouble */
        assert_int_equal(add(l, "w", CAIRN_U8, 3, shape, DIMS(0, 2 * i, 2 * i), DIMS(N, 1, 1), NULL), 0);
        assert_int_equal(add(l, "w", CAIRN_U8, 3, shape, DIMS(2 * i + 1, 0, 2 * i + 1), DIMS(1, N, 1), NULL), 0);
    }
    assert_int_equal(cairn_layout_place(l, NULL), 0);
}

static void test_slice_limit(void **state)
{
    struct cairn_layout *l = *state;
    char name[16];

    for (uint32_t i = 0; i < CAIRN_MAX_TENSORS; i++) {
        snprintf(name, sizeof(name), "%u", i);
        assert_int_equal(add(l, name, CAIRN_U8, 0, NULL, NULL, NULL, NULL), 0);
    }
    assert_int_equal(add(l, "one more", CAIRN_U8, 0, NULL, NULL, NULL, NULL), CAIRN_E_TOO_LARGE);
    assert_int_equal(cairn_layout_place(l, NULL), 0);
}

int main(void)
{
#define T(f_) cmocka_unit_test_setup_teardown(f_, fresh, drop)
    const struct CMUnitTest tests[] = {
        T(test_place_again), T(test_only_empty_tensors), T(test_bad_tensors), T(test_image_limit),
        T(test_overlap),     T(test_overlap_random),     T(test_many_slices), T(test_too_many_to_compare),
        T(test_slice_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
