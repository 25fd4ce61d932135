/* SPDX-License-Identifier: Apache-2.0 */
/* Which saves are packed on their device, and the width that packing goes by. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "client/pack.h"
#include "core/model/dtype.h"
#include "plugins/codec-float/part.h"

#define GIB ((uint64_t)1 << 30)

/* Saves until both ways are known: as many packed ones as plain ones. */
static void learn(struct pack *p, uint64_t plain_ns, uint64_t packed_ns)
{
    unsigned packed = 0;

    for (int i = 0; i < 2 * PACK_TRIES; i++) {
        bool now = pack_next(p);
        packed += now;
        pack_note(p, now, GIB, now ? packed_ns : plain_ns);
    }
    assert_int_equal(packed, PACK_TRIES);
}

/* The same after the first plain one. */
static void learn_rest(struct pack *p, uint64_t plain_ns, uint64_t packed_ns)
{
    for (int i = 1; i < 2 * PACK_TRIES; i++) {
        bool now = pack_next(p);
        pack_note(p, now, GIB, now ? packed_ns : plain_ns);
    }
}

/* Of the next saves, those that are packed. */
static unsigned packed_of(struct pack *p, unsigned n, uint64_t plain_ns, uint64_t packed_ns)
{
    unsigned packed = 0;

    for (unsigned i = 0; i < n; i++) {
        bool now = pack_next(p);
        packed += now;
        pack_note(p, now, GIB, now ? packed_ns : plain_ns);
    }
    return packed;
}

/* Catches the slower way, one that is hardly better, and an other way that is never looked at again. */
static void test_faster_is_chosen(void **state)
{
    static const struct {
        uint64_t plain_ns, packed_ns;
        bool packed;
    } cases[] = {{1000000, 700000, true}, {1000000, 940000, true}, {1000000, 990000, false}, {1000000, 2000000, false}};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct pack p = {0};
        learn(&p, cases[i].plain_ns, cases[i].packed_ns);
        unsigned packed = packed_of(&p, 2 * PACK_AGAIN, cases[i].plain_ns, cases[i].packed_ns);
        assert_int_equal(packed, cases[i].packed ? 2 * PACK_AGAIN - 2 : 2);
    }
}

/* Catches one slow save that changes what is chosen, and a bus that got slower for good and does not. */
static void test_changes(void **state)
{
    struct pack p = {0};

    (void)state;
    learn(&p, 1000000, 700000);
    pack_note(&p, true, GIB, 1500000); /* somebody was in its way */
    assert_true(pack_next(&p));
    pack_note(&p, true, GIB, 700000);
    assert_true(packed_of(&p, 4 * PACK_AGAIN, 1000000, 3000000) < PACK_AGAIN);
}

/* Catches a device without a clock that is asked to pack, and numbers that say nothing. */
static void test_nothing_known(void **state)
{
    struct pack p = {0};

    (void)state;
    for (int i = 0; i < 10; i++) {
        assert_false(pack_next(&p));
        pack_note(&p, false, GIB, 0);
        pack_note(&p, false, 0, 5);
    }
}

/* Catches a look at the other way that goes on until it has seen something. */
static void test_a_look_that_sees_nothing(void **state)
{
    struct pack p = {0};
    unsigned plain = 0;

    (void)state;
    learn(&p, 1000000, 700000);
    for (unsigned i = 0; i < PACK_AGAIN; i++) {
        bool now = pack_next(&p);
        plain += !now;
        pack_note(&p, now, GIB, 0);
    }
    assert_int_equal(plain, 1);
}

/* Catches ways that are compared by saves of other sizes, and what is never learned anew when all have another one. */
static void test_sizes(void **state)
{
    struct pack p = {0};

    (void)state;
    for (int i = 0; i < 4 * PACK_TRIES; i++) { /* large ones and small ones in turn: those take longer a byte */
        bool now = pack_next(&p);
        pack_note(&p, now, i % 2 ? GIB / 1024 : GIB, i % 2 ? 100000 : now ? 700000 : 1000000);
    }
    assert_true(pack_next(&p));
    assert_int_equal(packed_of(&p, 10, 1000000, 700000), 10);
    for (unsigned i = 0; i <= 2 * PACK_AGAIN; i++) /* from now on small ones, which are not worth packing */
        pack_note(&p, pack_next(&p), GIB / 1024, pack_next(&p) ? 200000 : 100000);
    assert_false(pack_next(&p));
    assert_int_equal(p.bytes, GIB / 1024);
    pack_note(&p, false, GIB, 1000000);
    learn_rest(&p, 1000000, 700000);
    assert_true(pack_next(&p));
}

/* Catches a session whose every save fails because it packs, one that stops for what packing has no part in, and one
 * that goes on to ask devices that cannot. */
static void test_failures(void **state)
{
    struct pack p = {0};

    (void)state;
    learn(&p, 1000000, 700000);
    pack_failed(&p, CAIRN_E_ABORTED);
    pack_failed(&p, CAIRN_E_UNAVAILABLE);
    pack_failed(&p, 0);
    assert_true(pack_next(&p));
    pack_failed(&p, CAIRN_E_CORRUPT);
    pack_failed(&p, CAIRN_E_BUSY);
    assert_int_equal(packed_of(&p, 4 * PACK_AGAIN, 1000000, 700000), 0);
    p = (struct pack){0};
    learn(&p, 1000000, PACK_USELESS);
    assert_int_equal(packed_of(&p, 2 * PACK_AGAIN, 1000000, PACK_USELESS), 2);
    pack_note(&p, true, GIB, 700000); /* now they can */
    assert_true(pack_next(&p));
}

/* Catches a width that codec-float does not go by. */
static void test_width(void **state)
{
    (void)state;
    for (int dtype = -1; dtype < 40; dtype++)
        assert_int_equal(cairn_dtype_width(dtype), part_width(dtype));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_faster_is_chosen),
        cmocka_unit_test(test_changes),
        cmocka_unit_test(test_nothing_known),
        cmocka_unit_test(test_failures),
        cmocka_unit_test(test_width),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_a_look_that_sees_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
