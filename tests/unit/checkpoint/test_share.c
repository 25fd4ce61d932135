/* SPDX-License-Identifier: Apache-2.0 */
/* Catches: chains that grow, a base that is named though it was refused or is not older, one that serves for ever, one
 * that is kept though nothing is shared, a job without anything unchanged that is compared all the time. */
#include "core/checkpoint/share.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static struct share s;

/* Saves a step of which so many of 800 bytes are stored when it shares; returns the step it shares with, 0: it is
 * whole. */
static uint64_t save(uint64_t step, uint64_t stored, unsigned limit)
{
    struct ckpt_base self = {true, step, 1}, base = share_choose(&s, step, 1);

    share_committed(&s, &self, &base, step * 10, base.is_set ? stored : 800, limit);
    if (base.is_set) {
        assert_int_equal(base.incarnation, 1);
        return base.step;
    }
    return 0;
}

static void test_one_base_for_all(void **state)
{
    (void)state;
    s = (struct share){.used = 0};
    assert_int_equal(save(1, 400, 3), 0);
    assert_int_equal(s.revision, 10);
    for (uint64_t step = 2; step <= 4; step++)
        assert_int_equal(save(step, 400, 3), 1);
    assert_int_equal(save(5, 400, 3), 0); /* it has served */
    assert_int_equal(save(6, 400, 3), 5);
}

static void test_off(void **state)
{
    (void)state;
    s = (struct share){.used = 0};
    for (uint64_t step = 1; step < 5; step++)
        assert_int_equal(save(step, 0, 0), 0);
}

static void test_less_and_less(void **state)
{
    (void)state;
    s = (struct share){.used = 0};
    assert_int_equal(save(1, 0, 100), 0);
    assert_int_equal(save(2, 100, 100), 1);
    assert_int_equal(save(3, 700, 100), 1); /* an eighth, just enough */
    assert_int_equal(save(4, 701, 100), 1);
    assert_int_equal(save(5, 0, 100), 0); /* at once, without a pause */
    assert_int_equal(save(6, 0, 100), 5);
}

static void test_nothing_stays(void **state)
{
    unsigned tried = 0;

    (void)state;
    s = (struct share){.used = 0};
    for (uint64_t step = 1; step <= 1000; step++)
        tried += save(step, 800, 100) > 0;
    assert_true(tried >= 10 && tried <= 25);
    while (save(2000, 100, 100) == 0) /* something stays from now on: that is found out */
        ;
    assert_int_equal(s.next_pause, 0);
}

static void test_refused(void **state)
{
    struct ckpt_base other = {true, 9, 1}, self = {true, 30, 1};

    (void)state;
    s = (struct share){.used = 0};
    assert_int_equal(save(10, 0, 100), 0);
    share_refused(&s, &other);
    assert_int_equal(share_choose(&s, 11, 1).step, 10);
    assert_false(share_choose(&s, 10, 1).is_set);
    assert_false(share_choose(&s, 9, 1).is_set);
    assert_true(share_choose(&s, 9, 2).is_set);    /* a later start, from an older step */
    share_committed(&s, &self, &other, 1, 0, 100); /* with one from before */
    assert_int_equal(s.used, 0);
    share_refused(&s, &(struct ckpt_base){true, 10, 1});
    assert_int_equal(save(12, 0, 100), 0);
    assert_int_equal(save(13, 0, 100), 12);
}

/* Two on their way share with one that has served when the second is committed (catches: a base that has one itself).
 */
static void test_two_on_their_way(void **state)
{
    struct ckpt_base first = {true, 2, 1}, second = {true, 3, 1}, base;

    (void)state;
    s = (struct share){.used = 0};
    assert_int_equal(save(1, 0, 1), 0);
    base = share_choose(&s, 2, 1);
    share_committed(&s, &first, &base, 20, 400, 1);
    share_committed(&s, &second, &base, 30, 400, 1);
    assert_int_equal(save(4, 0, 1), 0);
    assert_int_equal(save(5, 0, 1), 4);
}

/* A start that took up an older checkpoint may have found this one unreadable (catches: later ones that need it). */
static void test_left_behind(void **state)
{
    struct ckpt_base b = {true, 50, 2}, none = {.is_set = false};
    struct record_pin pin = {.incarnation = 3, .step = 50, .ckpt_incarnation = 2};

    (void)state;
    assert_false(share_left_behind(&b, &pin)); /* it is what was resumed from */
    pin.step = 60;
    assert_false(share_left_behind(&b, &pin));
    pin.step = 49;
    assert_true(share_left_behind(&b, &pin));
    assert_false(share_left_behind(&none, &pin));
    pin = (struct record_pin){.incarnation = 3, .step = 70, .ckpt_incarnation = 1};
    assert_true(share_left_behind(&b, &pin));
    pin.none = true;
    assert_true(share_left_behind(&b, &pin));
    pin.incarnation = 2; /* saved by the start that was pinned */
    assert_false(share_left_behind(&b, &pin));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_base_for_all), cmocka_unit_test(test_off),
        cmocka_unit_test(test_less_and_less),    cmocka_unit_test(test_nothing_stays),
        cmocka_unit_test(test_refused),          cmocka_unit_test(test_two_on_their_way),
        cmocka_unit_test(test_left_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
