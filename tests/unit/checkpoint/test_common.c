/* SPDX-License-Identifier: Apache-2.0 */
#include "core/checkpoint/common.h"

#include "core/base/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- shards ---------------------------------------------------------------------------------- */

/* Tensors t0 .. t(n-1), from first on and around: another order, and the same set. Every third is no common one. */
static void fill(struct manifest *m, unsigned n, unsigned first)
{
    manifest_init(m);
    m->numerics = calloc(n, sizeof *m->numerics);
    for (unsigned i = 0; i < n; i++) {
        unsigned which = (first + i) % n;
        uint64_t shape = 10 + which;
        char name[16];
        struct cairn_tensor t = {.size = sizeof t, .name = name, .dtype = CAIRN_F32, .ndim = 1, .shape = &shape};
        sprintf(name, "t%u", which);
        t.flags = which % 3 ? CAIRN_TENSOR_COMMON : 0;
        assert_int_equal(cairn_layout_add(&m->layout, &t, NULL), 0);
        m->numerics[i] = (struct cairn_numerics){true, {which, 1}, {which * 7, which}};
    }
    assert_int_equal(cairn_layout_place(&m->layout, NULL), 0);
}

static struct shard_numerics sum_of(const struct manifest *m)
{
    struct shard_numerics s;

    assert_int_equal(common_sum_up(&m->layout, m->numerics, &s, NULL), 0);
    return s;
}

static bool same(struct hash128 a, struct hash128 b)
{
    return a.low == b.low && a.high == b.high;
}

/* Catches a set that depends on the layout's order, a digest that is left out, one of a tensor that is nobody else's,
 * and numbers that are said to be known because some are. */
static void test_sum_up(void **state)
{
    struct manifest a, b;
    struct shard_numerics x, y;

    (void)state;
    fill(&a, 9, 0);
    fill(&b, 9, 4);
    x = sum_of(&a);
    y = sum_of(&b);
    assert_true(x.known);
    assert_int_equal(x.bad.nan, 36);
    assert_int_equal(x.bad.inf, 9);
    assert_int_equal(x.common, 6);
    assert_true(same(x.set, y.set) && same(x.sums, y.sums));
    a.numerics[1].digest.high ^= 1;
    y = sum_of(&a);
    assert_true(same(x.set, y.set) && !same(x.sums, y.sums));
    a.numerics[1].digest.high ^= 1;
    a.numerics[3].digest.high ^= 1; /* t3 is not held in common */
    y = sum_of(&a);
    assert_true(same(x.sums, y.sums));
    a.layout.slices[1].box.length[0] = 5;
    y = sum_of(&a);
    assert_false(same(x.set, y.set));
    a.layout.slices[1].common = false;
    y = sum_of(&a);
    assert_int_equal(y.common, 5);
    a.numerics[8].known = false;
    assert_false(sum_of(&a).known);
    assert_int_equal(common_sum_up(&a.layout, NULL, &y, NULL), 0);
    assert_false(y.known);
    manifest_free(&a);
    manifest_free(&b);
}

/* ---- comparing ------------------------------------------------------------------------------- */

/* A rank a word: the letter is its set, the digit its digests; '-': nothing is known; '0': it holds nothing. */
static struct common_split compare(const char *ranks)
{
    struct shard_ref shards[64] = {0};
    struct common_split s;
    uint32_t n = 0;

    for (const char *c = ranks; *c; c += 2 + (c[2] == ' '), n++) {
        struct shard_numerics *to = &shards[n].numerics;
        shards[n].rank = n;
        to->known = c[0] != '-';
        to->common = c[0] > '0';
        to->set = (struct hash128){(uint64_t)c[0], 0};
        to->sums = (struct hash128){0, (uint64_t)c[1]};
    }
    assert_int_equal(common_compare(shards, n, &s, NULL), 0);
    return s;
}

static void check(const char *ranks, uint32_t sets, bool undecided, const char *odd)
{
    struct common_split s = compare(ranks);
    char text[64] = "";

    for (uint32_t i = 0; i < s.nodd && i < COMMON_NAMED; i++)
        sprintf(text + strlen(text), "%s%u", i ? " " : "", s.odd[i]);
    assert_int_equal(s.sets, sets);
    assert_string_equal(text, odd);
    assert_int_equal(s.undecided, undecided);
    if (sets) { /* two of one set that differ */
        const char *a = ranks + (size_t)3 * s.witness[0], *b = ranks + (size_t)3 * s.witness[1];
        assert_true(a[0] == b[0] && a[1] != b[1]);
    }
}

/* Catches a rank that is blamed for what another did, a set that is compared with another, and one that is passed over.
 */
static void test_compare(void **state)
{
    (void)state;
    check("", 0, false, "");
    check("a1", 0, false, "");
    check("a1 a1 a1", 0, false, "");
    check("a1 b2 a1 b2 c3", 0, false, ""); /* pipeline stages */
    check("a1 -2 02 a1", 0, false, "");    /* what is not known is not compared */
    check("a1 a2", 1, true, "0 1");        /* two: nobody knows which */
    check("a1 a1 a2", 1, false, "2");      /* the minority */
    check("a2 a1 a1", 1, false, "0");
    check("a9 b1 a1 b1 a1 b7 b1", 2, false, "0 5"); /* one in each */
    check("a1 a2 a3", 1, true, "0 1 2");
    check("a1 a1 a2 a2", 1, true, "0 1 2 3");
    check("a1 a1 a2 a3", 1, false, "2 3"); /* the most */
    check("a9 a8 a7 a6 a5 a4 a3 a1 a1", 1, false, "0 1 2 3");
    assert_int_equal(compare("a9 a8 a7 a6 a5 a4 a3 a1 a1").nodd, 7);
    assert_int_equal(compare("a9 b1 a1 b1 a1 b7 b1").ranks, 7);
}

/* Catches a tensor that is not named, and one that is named though it is nobody else's. */
static void test_differ(void **state)
{
    struct common_tensors t;
    struct manifest a, b;

    (void)state;
    fill(&a, 30, 0);
    fill(&b, 30, 11);
    assert_int_equal(common_differ(&a, &b, &t, NULL), 0);
    assert_int_equal(t.n, 0);
    a.numerics[2].digest.low ^= 1 << 20;
    a.numerics[3].digest.low ^= 1;
    assert_int_equal(common_differ(&a, &b, &t, NULL), 0);
    assert_int_equal(t.n, 1);
    assert_string_equal(t.name[0], "t2");
    for (unsigned i = 4; i < 30; i++)
        a.numerics[i].digest.high = 0;
    assert_int_equal(common_differ(&a, &b, &t, NULL), 0);
    assert_int_equal(t.n, 19);
    free(b.numerics);
    b.numerics = NULL;
    assert_int_equal(common_differ(&a, &b, &t, NULL), 0);
    assert_int_equal(t.n, 0);
    manifest_free(&a);
    manifest_free(&b);
}

static void test_text(void **state)
{
    struct common_split two = compare("a1 a2"), three = compare("a1 a1 a2"), many = compare("a9 a8 a7 a6 a5 a4 a1 a1");
    struct common_tensors t = {.name = {"w.0", "w.1", "b", "c"}, .n = 6};
    char text[256], small[20];

    (void)state;
    common_text(&three, &t, text, sizeof text);
    assert_string_equal(text,
                        "rank 2 holds other bytes than 2 other ranks of tensors that they have in common: \"w.0\", "
                        "\"w.1\", \"b\", \"c\" and 2 more");
    t.n = 1;
    common_text(&two, &t, text, sizeof text);
    assert_string_equal(text, "ranks 0, 1 do not hold the same bytes of tensors that they have in common: \"w.0\"");
    t.name[0] = "123456789012345678901234567890123456789\xc3\xa4"; /* a character over the edge */
    common_text(&two, &t, text, sizeof text);
    assert_non_null(strstr(text, ": \"123456789012345678901234567890123456789\""));
    common_text(&many, NULL, text, sizeof text);
    assert_string_equal(text, "ranks 0, 1, 2, 3 and 2 more hold other bytes than 2 other ranks of tensors that they "
                              "have in common");
    common_text(&many, &t, small, sizeof small);
    assert_int_equal(strlen(small), 19);
    for (size_t room = 2; room < sizeof text; room++) { /* at a whole character, whatever is cut */
        t.name[0] = "\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80";
        common_text(&two, &t, text, room);
        size_t n = strlen(text);
        assert_true(n < room);
        assert_int_equal(cairn_whole_characters(text, n), n);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sum_up),
        cmocka_unit_test(test_compare),
        cmocka_unit_test(test_differ),
        cmocka_unit_test(test_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
