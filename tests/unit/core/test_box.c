/* SPDX-License-Identifier: Apache-2.0 */
/* Boxes against a naive model that looks at every element: resharding is nothing more than this.
 * Catches: a window's edge that loses or doubles bytes, a stride with the wrong sign, a subtraction that overlaps. */
#include "core/model/box.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint64_t state_ = 42;

static uint64_t below(uint64_t n)
{
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_ % n;
}

static struct cairn_box random_box(uint32_t ndim, uint64_t shape)
{
    struct cairn_box b = {.ndim = ndim};

    for (uint32_t d = 0; d < ndim; d++) {
        b.offset[d] = below(shape);
        b.length[d] = 1 + below(shape - b.offset[d]);
    }
    return b;
}

static bool holds(const struct cairn_box *b, const uint64_t *at)
{
    for (uint32_t d = 0; d < b->ndim; d++)
        if (at[d] < b->offset[d] || at[d] >= b->offset[d] + b->length[d])
            return false;
    return true;
}

/* The next coordinates within [0, shape)^ndim; false after the last. */
static bool next(uint64_t *at, uint32_t ndim, uint64_t shape)
{
    for (uint32_t d = ndim; d-- > 0;) {
        if (++at[d] < shape)
            return true;
        at[d] = 0;
    }
    return false;
}

static void test_subtract_covers_exactly_once(void **state)
{
    (void)state;
    for (int round = 0; round < 3000; round++) {
        uint32_t ndim = 1 + (uint32_t)below(3);
        struct cairn_box a = random_box(ndim, 6), b = random_box(ndim, 6), rest[2 * CAIRN_MAX_DIMS], common;
        unsigned n = cairn_box_subtract(&a, &b, rest);
        bool shares = cairn_box_intersect(&a, &b, &common);
        uint64_t at[CAIRN_MAX_DIMS] = {0};
        do {
            unsigned in = 0;
            for (unsigned i = 0; i < n; i++)
                in += holds(&rest[i], at);
            assert_int_equal(in, holds(&a, at) && !holds(&b, at));
            assert_int_equal(shares && holds(&common, at), holds(&a, at) && holds(&b, at));
        } while (next(at, ndim, 6));
    }
}

static void test_scalars(void **state)
{
    struct cairn_box s = {.ndim = 0}, rest[2 * CAIRN_MAX_DIMS], common;

    (void)state;
    assert_int_equal(cairn_box_elements(&s), 1);
    assert_true(cairn_box_intersect(&s, &s, &common));
    assert_int_equal(cairn_box_subtract(&s, &s, rest), 0);
}

#define SHAPE 5
#define IMAGE 8192
#define TARGET 65536

/* A slice in an image, a part of it, and a target with strides of any sign. */
static struct cairn_box_copy random_copy(char *target)
{
    uint32_t ndim = (uint32_t)below(4);
    struct cairn_box_copy c = {
        .source = random_box(ndim, SHAPE), .elem_size = 1u << below(4), .image_offset = below(64)};
    int64_t stride = (int64_t)c.elem_size;

    c.box = c.source;
    for (uint32_t d = 0; d < ndim; d++) {
        uint64_t skip = below(c.source.length[d]);
        c.box.offset[d] += skip;
        c.box.length[d] = 1 + below(c.source.length[d] - skip);
    }
    c.target = target + TARGET / 2;
    for (uint32_t d = ndim; d-- > 0;) {
        c.target_origin[d] = c.box.offset[d];
        c.target_stride[d] = below(3) ? stride : -stride;
        stride *= (int64_t)(c.box.length[d] + below(2));
    }
    return c;
}

static uint64_t image_at(const struct cairn_box_copy *c, const uint64_t *at)
{
    uint64_t index = 0;

    for (uint32_t d = 0; d < c->source.ndim; d++)
        index = index * c->source.length[d] + at[d] - c->source.offset[d];
    return c->image_offset + index * c->elem_size;
}

static char *target_at(const struct cairn_box_copy *c, const uint64_t *at)
{
    char *p = c->target;

    for (uint32_t d = 0; d < c->box.ndim; d++)
        p += (int64_t)(at[d] - c->target_origin[d]) * c->target_stride[d];
    return p;
}

static void naive(const struct cairn_box_copy *c, char *image, bool fill)
{
    uint64_t at[CAIRN_MAX_DIMS] = {0};

    do {
        if (!holds(&c->box, at))
            continue;
        if (fill)
            memcpy(image + image_at(c, at), target_at(c, at), c->elem_size);
        else
            memcpy(target_at(c, at), image + image_at(c, at), c->elem_size);
    } while (next(at, c->box.ndim, SHAPE));
}

static void test_windows_equal_a_naive_loop(void **state)
{
    static char image[IMAGE], want_image[IMAGE], got[TARGET], want[TARGET];

    (void)state;
    for (int round = 0; round < 4000; round++) {
        struct cairn_box_copy c = random_copy(got), w = c;
        uint64_t begin, end;
        w.target = want + (c.target - got);
        for (size_t i = 0; i < IMAGE; i++)
            image[i] = (char)below(256);
        memset(got, 0x11, sizeof got);
        memset(want, 0x11, sizeof want);
        naive(&w, image, false);
        cairn_box_copy_span(&c, &begin, &end);
        for (uint64_t at = 0; at < IMAGE;) { /* windows of any length, also within an element */
            size_t len = 1 + below(at < end ? 97 : IMAGE);
            len = len < IMAGE - at ? len : IMAGE - at;
            cairn_box_copy_window(&c, image + at, at, len);
            at += len;
        }
        assert_memory_equal(got, want, sizeof got);
        memcpy(want_image, image, IMAGE); /* and the other way */
        for (size_t i = 0; i < sizeof got; i++)
            got[i] = want[i] = (char)below(256);
        naive(&w, want_image, true);
        for (uint64_t at = 0, len; at < IMAGE; at += len) {
            len = 1 + below(211);
            len = len < IMAGE - at ? len : IMAGE - at;
            cairn_box_fill_window(&c, image + at, at, len);
        }
        assert_memory_equal(image, want_image, IMAGE);
    }
}

/* Catches a run that a window does not hold whole, one that comes twice or out of order, and strides that are said of a
 * single one: a device is given the runs as they are. */
static void test_runs_are_the_copy(void **state)
{
    static char image[IMAGE], got[TARGET], want[TARGET];

    (void)state;
    for (int round = 0; round < 4000; round++) {
        struct cairn_box_copy c = random_copy(got), w = c;
        uint64_t bytes = 0, last = 0;
        w.target = want + (c.target - got);
        for (size_t i = 0; i < IMAGE; i++)
            image[i] = (char)below(256);
        memset(got, 0x11, sizeof got);
        memset(want, 0x11, sizeof want);
        naive(&w, image, false);
        for (uint64_t at = 0, len; at < IMAGE; at += len) {
            struct cairn_box_runs runs;
            struct cairn_box_run r;
            len = 1 + below(197);
            len = len < IMAGE - at ? len : IMAGE - at;
            cairn_box_runs_begin(&runs, &c, at, len);
            while (cairn_box_runs_next(&runs, &r)) {
                assert_true(r.count > 0 && r.bytes > 0 && r.image >= last && r.image >= at);
                last = r.image + (r.count - 1) * r.image_stride + r.bytes;
                assert_true(last <= at + len);
                assert_true(r.count > 1 || (r.image_stride == r.bytes && r.target_stride == (int64_t)r.bytes));
                for (uint64_t i = 0; i < r.count; i++)
                    memcpy(r.target + (int64_t)i * r.target_stride, image + r.image + i * r.image_stride, r.bytes);
                bytes += r.count * r.bytes;
            }
        }
        assert_memory_equal(got, want, sizeof got);
        assert_int_equal(bytes, cairn_box_elements(&c.box) * c.elem_size);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_subtract_covers_exactly_once),
        cmocka_unit_test(test_scalars),
        cmocka_unit_test(test_windows_equal_a_naive_loop),
        cmocka_unit_test(test_runs_are_the_copy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
