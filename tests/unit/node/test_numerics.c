/* SPDX-License-Identifier: Apache-2.0 */
/* What parts say, put together to what slices hold: against one look at each slice's bytes. */
#include "daemon/node/numerics.h"

#include "core/model/units.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define BLOCK 16384

static uint64_t next_random(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    return *s ^= *s << 17;
}

struct world {
    struct cairn_layout layout;
    char *image;
};

static void add(struct world *w, int dtype, uint64_t elements)
{
    char name[32];
    struct cairn_tensor t = {.size = sizeof t, .name = name, .dtype = dtype, .ndim = 1, .shape = &elements};

    sprintf(name, "t%u", w->layout.nslices);
    assert_int_equal(cairn_layout_add(&w->layout, &t, NULL), 0);
}

/* Slices within a part, up to its very end, over two and over many, of several dtypes in turn, and empty ones. */
static void setup_world(struct world *w, uint64_t *seed)
{
    static const uint64_t sizes[] = {1, 16, 17, 1000, 262144 - 64, 262144, 262145, 700000, 0, 3, 1 << 19};
    static const int dtypes[] = {CAIRN_F32, CAIRN_BF16, CAIRN_U8, CAIRN_F8_E4M3};

    cairn_layout_init(&w->layout);
    add(w, CAIRN_I64, CAIRN_PART / 8); /* exactly a part, alone */
    for (unsigned i = 0; i < 60; i++)
        add(w, dtypes[next_random(seed) % 4], sizes[next_random(seed) % (sizeof sizes / sizeof sizes[0])]);
    assert_int_equal(cairn_layout_place(&w->layout, NULL), 0);
    w->image = malloc((size_t)w->layout.nparts * CAIRN_PART);
    assert_non_null(w->image);
    for (size_t i = 0; i < (size_t)w->layout.nparts * CAIRN_PART; i += 8) { /* the gaps too: nobody should read them */
        uint64_t r = next_random(seed);
        memcpy(w->image + i, &r, 8);
    }
}

static struct numerics_part *look(const struct world *w, const struct numerics *n, uint32_t part, char damage)
{
    size_t len = cairn_layout_part_len(&w->layout, part);
    struct numerics_part *p = numerics_part_new(n, part);
    char block[BLOCK];

    assert_non_null(p);
    for (size_t at = 0; at < len; at += BLOCK) {
        size_t bytes = len - at < BLOCK ? len - at : BLOCK;
        memcpy(block, w->image + (size_t)part * CAIRN_PART + at, bytes);
        block[0] ^= damage;
        numerics_part_add(p, block, at, bytes);
    }
    return p;
}

static void check(const struct world *w, const struct numerics *n, uint32_t missing)
{
    struct cairn_numerics *got = numerics_end(n);
    uint32_t unknown = 0;

    assert_non_null(got);
    for (uint32_t i = 0; i < w->layout.nslices; i++) {
        const struct cairn_slice *s = &w->layout.slices[i];
        struct cairn_nonfinite bad = {0}, none = {0};
        struct cairn_digest d = {0};
        bool reaches = s->bytes && s->image_offset / CAIRN_PART <= missing &&
                       (s->image_offset + s->bytes - 1) / CAIRN_PART >= missing;
        assert_int_equal(got[i].known, !reaches);
        unknown += reaches;
        if (reaches)
            continue;
        cairn_numerics_add(&d, &none, CAIRN_BYTES, 0, w->image + s->image_offset, s->bytes);
        cairn_count_nonfinite(s->dtype, w->image + s->image_offset, s->bytes, &bad);
        struct hash128 want = cairn_digest_end(&d, s->bytes, s->dtype);
        assert_true(got[i].digest.low == want.low && got[i].digest.high == want.high);
        assert_int_equal(got[i].bad.nan, bad.nan);
        assert_int_equal(got[i].bad.inf, bad.inf);
    }
    assert_int_equal(unknown > 0, missing != UINT32_MAX);
    free(got);
}

/* Catches a slice that is cut wrong at a part's end, a piece that is lost or counts twice, an order that matters, and a
 * gap's bytes that are taken for a tensor's. */
static void test_any_order(void **state)
{
    uint64_t seed = 77;

    (void)state;
    for (int round = 0; round < 4; round++) {
        struct world w;
        setup_world(&w, &seed);
        uint32_t nparts = w.layout.nparts, *order = malloc(nparts * sizeof *order);
        struct numerics_budget budget = {.max = UINT64_MAX};
        struct numerics *n = NULL;
        assert_int_equal(numerics_new(&w.layout, &budget, &n, NULL), 0);
        numerics_index(n);
        assert_non_null(order);
        for (uint32_t i = 0; i < nparts; i++) {
            uint32_t j = (uint32_t)(next_random(&seed) % (i + 1));
            order[i] = order[j];
            order[j] = i;
        }
        for (uint32_t i = 0; i < nparts; i++) {
            if (i % 3 == 0) /* encoded before, from other bytes even: what is taken last is what counts */
                numerics_take(n, look(&w, n, order[i], 0x55));
            if (i % 5 == 0) /* given up */
                numerics_part_free(look(&w, n, order[i], 0x33));
            numerics_take(n, look(&w, n, order[i], 0));
            if (i % 4 == 0)
                numerics_take(n, look(&w, n, order[i], 0));
            if (i + 2 == nparts)
                check(&w, n, order[i + 1]);
        }
        check(&w, n, UINT32_MAX);
        numerics_free(n);
        free(order);
        free(w.image);
        cairn_layout_free(&w.layout);
    }
}

static void test_nothing(void **state)
{
    struct cairn_layout l;
    struct numerics_budget budget = {.max = 1000};
    struct numerics *n = NULL, *more = NULL;

    (void)state;
    cairn_layout_init(&l);
    assert_int_equal(cairn_layout_place(&l, NULL), 0);
    assert_int_equal(numerics_new(&l, &budget, &n, NULL), 0);
    budget.max = 2 * budget.used - 1;
    assert_int_equal(numerics_new(&l, &budget, &more, NULL), CAIRN_E_NO_SPACE);
    assert_null(more);
    numerics_index(n);
    free(numerics_end(n));
    numerics_free(n);
    assert_int_equal(budget.used, 0);
    numerics_free(NULL);
    numerics_part_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_order),
        cmocka_unit_test(test_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
