/* SPDX-License-Identifier: Apache-2.0 */
/* Copies between an image and strided memory, compared with a loop over elements. */
#include "core/model/box.h"

#include "tests/unit/core/support.h"

enum { MAX_DIMS = 4, MEMORY = 1 << 16 };

struct fixture {
    struct cairn_box_copy c;
    uint64_t image_len;
    uint8_t image[MEMORY];
    uint8_t memory[MEMORY]; /* target points into it */
    uint8_t expected[MEMORY];
};

static int64_t random_stride(uint64_t *seed, int64_t dense)
{
    return below(seed, 2) ? dense : dense + (int64_t)below(seed, 9);
}

/* Target strides as of a permuted, padded, partly reversed array; target_origin may lie outside the box. */
static void random_target(struct fixture *f, uint64_t *seed)
{
    struct cairn_box_copy *c = &f->c;
    uint32_t order[MAX_DIMS], n = c->box.ndim;
    int64_t stride = (int64_t)c->elem_size, low = 0;

    for (uint32_t i = 0; i < n; i++)
        order[i] = i;
    for (uint32_t i = n; i > 1 && below(seed, 2); i--) {
        uint32_t j = (uint32_t)below(seed, i), t = order[j];
        order[j] = order[i - 1];
        order[i - 1] = t;
    }
    for (uint32_t i = n; i-- > 0;) {
        uint32_t d = order[i];
        bool reversed = below(seed, 4) == 0;
        stride = random_stride(seed, stride);
        c->target_stride[d] = reversed ? -stride : stride;
        c->target_origin[d] = below(seed, 2) ? c->box.offset[d] : below(seed, 12);
        int64_t first = ((int64_t)c->box.offset[d] - (int64_t)c->target_origin[d]) * c->target_stride[d];
        int64_t last = first + ((int64_t)c->box.length[d] - 1) * c->target_stride[d];
        low += first < last ? first : last;
        stride *= (int64_t)(c->box.length[d] ? c->box.length[d] : 1);
    }
    c->target = (char *)f->memory + 8 - low; /* the lowest byte touched is memory[8] */
}

static void random_copy(struct fixture *f, uint64_t *seed)
{
    static const size_t sizes[] = {1, 2, 4, 8, 3, 16};
    struct cairn_box_copy *c = &f->c;
    uint32_t ndim = (uint32_t)below(seed, MAX_DIMS + 1);

    *c = (struct cairn_box_copy){.elem_size = sizes[below(seed, 6)], .image_offset = below(seed, 100)};
    c->source.ndim = c->box.ndim = ndim;
    uint64_t elements = 1;
    for (uint32_t d = 0; d < ndim; d++) {
        c->source.offset[d] = below(seed, 5);
        c->source.length[d] = 1 + below(seed, 6);
        c->box.offset[d] = c->source.offset[d];
        c->box.length[d] = c->source.length[d];
        if (below(seed, 2)) {
            uint64_t skip = below(seed, c->source.length[d]);
            c->box.offset[d] += skip;
            c->box.length[d] = below(seed, 40) ? 1 + below(seed, c->source.length[d] - skip) : 0;
        }
        elements *= c->source.length[d];
    }
    f->image_len = c->image_offset + elements * c->elem_size + below(seed, 50);
    random_target(f, seed);
}

/* The definition: element by element. each() gets the place in the image and in memory. */
static void for_each_element(struct fixture *f, void (*each)(struct fixture *f, uint64_t image, char *target))
{
    const struct cairn_box_copy *c = &f->c;

    for (uint64_t i = 0, n = cairn_box_elements(&c->box); i < n; i++) {
        uint64_t rest = i, at = 0, stride = 1;
        char *target = c->target;

        for (uint32_t d = c->box.ndim; d-- > 0;) {
            uint64_t x = c->box.offset[d] + rest % c->box.length[d];
            rest /= c->box.length[d];
            at += (x - c->source.offset[d]) * stride;
            stride *= c->source.length[d];
            target += ((int64_t)x - (int64_t)c->target_origin[d]) * c->target_stride[d];
        }
        each(f, c->image_offset + at * c->elem_size, target);
    }
}

static void naive_copy(struct fixture *f, uint64_t image, char *target)
{
    memcpy(f->expected + ((uint8_t *)target - f->memory), f->image + image, f->c.elem_size);
}

static void naive_fill(struct fixture *f, uint64_t image, char *target)
{
    memcpy(f->expected + image, target, f->c.elem_size);
}

/* Runs a copy over a random partition of the image; each window is memory of its own, so that a sanitizer sees every
 * byte that is touched outside it. */
static void by_windows(struct fixture *f, uint64_t *seed, bool fill)
{
    uint64_t most = 1 + below(seed, below(seed, 2) ? 9 : 2000);

    for (uint64_t at = 0, len; at < f->image_len; at += len) {
        len = below(seed, most + 1);
        len = len > f->image_len - at ? f->image_len - at : len;
        uint8_t *window = malloc(len ? len : 1);
        assert_non_null(window);
        memcpy(window, f->image + at, len);
        if (fill)
            cairn_box_fill_window(&f->c, window, at, len);
        else
            cairn_box_copy_window(&f->c, window, at, len);
        memcpy(f->image + at, window, len);
        free(window);
    }
}

/* Catches any byte that goes to the wrong place, twice, or not at all. */
static void test_copy_equals_loop(void **state)
{
    static struct fixture f;
    uint64_t seed = 7;
    (void)state;

    for (int round = 0; round < 5000; round++) {
        random_copy(&f, &seed);
        for (size_t i = 0; i < f.image_len; i++)
            f.image[i] = (uint8_t)next_random(&seed);
        memset(f.memory, 0xee, sizeof(f.memory));
        memset(f.expected, 0xee, sizeof(f.expected));
        for_each_element(&f, naive_copy);
        by_windows(&f, &seed, false);
        assert_memory_equal(f.memory, f.expected, sizeof(f.memory));
    }
}

/* Catches the same on the way into the image, and bytes of a window written outside the box. */
static void test_fill_equals_loop(void **state)
{
    static struct fixture f;
    uint64_t seed = 8;
    (void)state;

    for (int round = 0; round < 5000; round++) {
        random_copy(&f, &seed);
        for (size_t i = 0; i < sizeof(f.memory); i++)
            f.memory[i] = (uint8_t)next_random(&seed);
        memset(f.image, 0xee, sizeof(f.image));
        memset(f.expected, 0xee, sizeof(f.expected));
        for_each_element(&f, naive_fill);
        by_windows(&f, &seed, true);
        assert_memory_equal(f.image, f.expected, sizeof(f.image));
    }
}

static uint64_t span_begin, span_end;
static void naive_span(struct fixture *f, uint64_t image, char *target)
{
    (void)target;
    span_begin = image < span_begin ? image : span_begin;
    span_end = image + f->c.elem_size > span_end ? image + f->c.elem_size : span_end;
}

/* Catches a span that leaves bytes out or asks for more than needed: it decides which chunks are read. */
static void test_span(void **state)
{
    static struct fixture f;
    uint64_t seed = 9;
    (void)state;

    for (int round = 0; round < 5000; round++) {
        uint64_t begin, end;

        random_copy(&f, &seed);
        span_begin = UINT64_MAX;
        span_end = 0;
        for_each_element(&f, naive_span);
        f.c.target = NULL; /* is not needed for it */
        cairn_box_copy_span(&f.c, &begin, &end);
        if (!cairn_box_elements(&f.c.box)) {
            assert_int_equal(begin, end);
            continue;
        }
        assert_int_equal(begin, span_begin);
        assert_int_equal(end, span_end);
    }
}

/* Catches an output that is written before the inputs it shares memory with are read. */
static void test_result_over_input(void **state)
{
    struct cairn_box a = {.ndim = 2, .offset = {0, 0}, .length = {4, 4}};
    struct cairn_box b = {.ndim = 2, .offset = {2, 3}, .length = {4, 4}};
    (void)state;

    assert_true(cairn_box_intersect(&a, &b, &a));
    assert_int_equal(a.offset[0], 2);
    assert_int_equal(a.offset[1], 3);
    assert_int_equal(a.length[0], 2);
    assert_int_equal(a.length[1], 1);
    b.offset[0] = 9;
    struct cairn_box before = a;
    assert_false(cairn_box_intersect(&a, &b, &a));
    assert_memory_equal(&a, &before, sizeof(a));
}

/* Resharding: what some ranks saved along one dimension is read by others along another. */
static void test_reshard(void **state)
{
    enum { ROWS = 24, COLS = 36, WRITERS = 4, READERS = 3 };
    uint32_t image[WRITERS][ROWS / WRITERS * COLS];
    uint32_t got[READERS][ROWS][COLS / READERS];
    (void)state;

    for (uint32_t i = 0; i < ROWS * COLS; i++)
        image[i / (ROWS / WRITERS * COLS)][i % (ROWS / WRITERS * COLS)] = i;
    memset(got, 0xff, sizeof(got));
    for (uint32_t r = 0; r < READERS; r++) {
        for (uint32_t w = 0; w < WRITERS; w++) {
            struct cairn_box want = {2, {0, r * (COLS / READERS)}, {ROWS, COLS / READERS}};
            struct cairn_box_copy c = {.source = {2, {w * (ROWS / WRITERS), 0}, {ROWS / WRITERS, COLS}},
                                       .elem_size = 4,
                                       .target = (char *)got[r],
                                       .target_origin = {0, want.offset[1]},
                                       .target_stride = {4 * (COLS / READERS), 4}};
            assert_true(cairn_box_intersect(&c.source, &want, &c.box));
            for (size_t at = 0; at < sizeof(image[w]); at += 7)
                cairn_box_copy_window(&c, (char *)image[w] + at, at,
                                      sizeof(image[w]) - at < 7 ? sizeof(image[w]) - at : 7);
        }
    }
    for (uint32_t i = 0; i < ROWS * COLS; i++)
        assert_int_equal(got[i % COLS / (COLS / READERS)][i / COLS][i % COLS % (COLS / READERS)], i);
}

/* Catches a walk over rows outside the window: 2^31 rows of which each window holds a few. Walking them all would take
 * hours; found by division they take no time. */
static void test_first_row_by_division(void **state)
{
    struct cairn_box_copy c = {.source = {3, {0, 0, 0}, {1u << 15, 1u << 16, 64}},
                               .box = {3, {0, 0, 8}, {1u << 15, 1u << 16, 4}},
                               .elem_size = 2};
    static char out[64];
    char window[4096];
    (void)state;

    c.target = out; /* every row to the same place */
    c.target_stride[2] = 2;
    c.target_origin[2] = 8;
    for (size_t i = 0; i < sizeof(window); i++)
        window[i] = (char)(i / 128);
    for (uint64_t i = 0; i < 2000; i++) {
        uint64_t begin = (i * 1048573 * 4096) % ((uint64_t)1 << 38);
        memset(out, 0, sizeof(out));
        cairn_box_copy_window(&c, window, begin, sizeof(window));
        assert_int_equal(out[0], sizeof(window) / 128 - 1);
        assert_int_equal(out[7], sizeof(window) / 128 - 1);
        assert_int_equal(out[8], 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_copy_equals_loop),
        cmocka_unit_test(test_fill_equals_loop),
        cmocka_unit_test(test_span),
        cmocka_unit_test(test_result_over_input),
        cmocka_unit_test(test_reshard),
        cmocka_unit_test(test_first_row_by_division),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
