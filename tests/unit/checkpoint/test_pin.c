/* SPDX-License-Identifier: Apache-2.0 */
/* Catches: a pin while an older save may still commit, a job that starts from scratch because its peers were away,
 * ranks of one incarnation that resume from two steps. */
#include "core/checkpoint/pin.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define U KNOWN_UNDECIDED
#define C KNOWN_COMMITTED
#define A KNOWN_ABORTED

static void expect(struct pin_move m, int action, ptrdiff_t index)
{
    assert_int_equal(m.action, action);
    assert_int_equal(m.index, index);
}

static void older_intents_are_decided_first(void **state)
{
    struct known k[] = {{.step = 10, .incarnation = 1, .fate = C},
                        {.step = 20, .incarnation = 1, .fate = U, .under_way = true},
                        {.step = 30, .incarnation = 1, .fate = U}};

    (void)state;
    expect(pin_next(k, 3, NULL, 2), PIN_ABORT, 2);
    k[2].fate = A;
    expect(pin_next(k, 3, NULL, 2), PIN_WAIT, 1);
    k[1].fate = C;
    expect(pin_next(k, 3, NULL, 2), PIN_TRY, 1);
    k[1].unreadable = true;
    expect(pin_next(k, 3, NULL, 2), PIN_TRY, 0);
    k[0].unreadable = true;
    expect(pin_next(k, 3, NULL, 2), PIN_UNREADABLE, -1);
}

static void own_intents_do_not_hold_it_up(void **state)
{
    struct known k[] = {{.step = 10, .incarnation = 2, .fate = U, .under_way = true}};

    (void)state;
    expect(pin_next(k, 1, NULL, 2), PIN_NONE, -1);
    expect(pin_next(NULL, 0, NULL, 2), PIN_NONE, -1);
    struct record_pin p = pin_record(NULL, 2, NULL);
    assert_true(p.none);
    assert_int_equal(p.number, 1);
    expect(pin_next(k, 1, &p, 2), PIN_FOLLOW, -1);
}

static void a_pin_is_followed(void **state)
{
    struct known k[] = {{.step = 10, .incarnation = 1, .fate = C},
                        {.step = 20, .incarnation = 1, .fate = C},
                        {.step = 5, .incarnation = 2, .fate = C}};
    struct record_pin p = pin_record(NULL, 2, &k[1]);

    (void)state;
    expect(pin_next(k, 3, &p, 2), PIN_FOLLOW, 1);
    k[1].unreadable = true; /* moves to an older one, never to what this run saved since */
    expect(pin_next(k, 3, &p, 2), PIN_TRY, 0);
    struct record_pin moved = pin_record(&p, 2, &k[0]);
    assert_int_equal(moved.number, 2);
    assert_int_equal(moved.step, 10);
    k[0].unreadable = true;
    expect(pin_next(k, 3, &moved, 2), PIN_UNREADABLE, -1);
    expect(pin_next(k, 3, &moved, 1), PIN_FENCED, -1);
    expect(pin_next(k, 0, &moved, 2), PIN_LOST, -1);
    expect(pin_next(k + 2, 1, &moved, 3), PIN_TRY, 0);
}

static void latest_is_by_incarnation_then_step(void **state)
{
    struct known k[] = {{.step = 90, .incarnation = 1, .fate = C},
                        {.step = 40, .incarnation = 2, .fate = C},
                        {.step = 50, .incarnation = 2, .fate = A},
                        {.step = 40, .incarnation = 1, .fate = C}};
    uint64_t last = 7;

    (void)state;
    assert_int_equal(known_latest(k, 4), 1);
    assert_int_equal(known_step(k, 4, 40), 1);
    assert_int_equal(known_step(k, 4, 50), -1);
    assert_true(known_last_decided(k, 4, 2, &last));
    assert_int_equal(last, 50);
    assert_false(known_last_decided(k, 4, 3, &last));
    assert_int_equal(last, 50);
    k[1].unreadable = true;
    assert_int_equal(known_latest(k, 4), 0);
}

/* Catches: a checkpoint with NaN that is resumed from, and one of which nothing is known that is taken for good. */
static void latest_finite_passes_over_what_is_not(void **state)
{
    struct known k[] = {{.step = 10, .incarnation = 1, .fate = C, .numbers = KNOWN_FINITE},
                        {.step = 20, .incarnation = 1, .fate = C, .numbers = KNOWN_FINITE},
                        {.step = 5, .incarnation = 2, .fate = C, .numbers = KNOWN_NONFINITE},
                        {.step = 6, .incarnation = 2, .fate = C},
                        {.step = 7, .incarnation = 2, .fate = U, .numbers = KNOWN_FINITE}};

    (void)state;
    assert_int_equal(known_latest(k, 5), 3);
    assert_int_equal(known_latest_finite(k, 5), 1);
    k[1].unreadable = true;
    assert_int_equal(known_latest_finite(k, 5), 0);
    k[0].fate = KNOWN_DELETED;
    assert_int_equal(known_latest_finite(k, 5), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(older_intents_are_decided_first),
        cmocka_unit_test(own_intents_do_not_hold_it_up),
        cmocka_unit_test(a_pin_is_followed),
        cmocka_unit_test(latest_is_by_incarnation_then_step),
        cmocka_unit_test(latest_finite_passes_over_what_is_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
