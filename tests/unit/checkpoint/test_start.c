/* SPDX-License-Identifier: Apache-2.0 */
/* Catches: a start id that was replaced comes back, two starts share a job, worlds of two sizes in one incarnation. */
#include "core/checkpoint/start.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static int decide(const struct record_incarnation *c, const char *id, uint32_t world, bool alive, bool take_over,
                  struct record_incarnation *next)
{
    struct start_request r = {"j", id, world, take_over, alive};
    struct cairn_error err = CAIRN_ERROR_INIT;
    int v = start_decide(c, &r, next, &err);

    assert_true(v >= 0 || strstr(err.message, "job j"));
    return v;
}

static void first_start_raises(void **state)
{
    struct record_incarnation none = {0}, next;

    (void)state;
    assert_int_equal(decide(&none, "a", 2, false, false, &next), START_RAISE);
    assert_int_equal(next.incarnation, 1);
    assert_string_equal(next.start_id, "a");
    assert_int_equal(next.world_size, 2);
    assert_int_equal(next.nseen, 0);
}

static void same_start_adopts(void **state)
{
    struct record_incarnation c = {.incarnation = 3, .start_id = "a", .world_size = 2}, next;

    (void)state;
    assert_int_equal(decide(&c, "a", 2, true, false, &next), START_ADOPT);
    assert_int_equal(decide(&c, "a", 2, false, true, &next), START_ADOPT);
    assert_int_equal(decide(&c, "a", 3, true, false, &next), CAIRN_E_INVAL);
}

static void unseen_start_waits_for_the_living(void **state)
{
    struct record_incarnation c = {.incarnation = 3, .start_id = "a", .world_size = 2}, next;

    (void)state;
    assert_int_equal(decide(&c, "b", 4, true, false, &next), CAIRN_E_BUSY);
    assert_int_equal(decide(&c, "b", 4, false, false, &next), START_RAISE);
    assert_int_equal(decide(&c, "b", 4, true, true, &next), START_RAISE);
    assert_int_equal(next.incarnation, 4);
    assert_int_equal(next.world_size, 4);
    assert_string_equal(next.seen[0], "a");
    assert_int_equal(decide(&next, "a", 2, false, true, &c), CAIRN_E_FENCED);
}

static void seen_is_bounded(void **state)
{
    struct record_incarnation c = {0}, next;
    char id[16];

    (void)state;
    for (int i = 0; i < 200; i++) {
        snprintf(id, sizeof id, "s%d", i);
        assert_int_equal(decide(&c, id, 1, false, false, &next), START_RAISE);
        c = next;
    }
    assert_int_equal(c.incarnation, 200);
    assert_int_equal(c.nseen, RECORD_SEEN_MAX);
    assert_string_equal(c.seen[0], "s198");
    assert_string_equal(c.seen[RECORD_SEEN_MAX - 1], "s135");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_start_raises),
        cmocka_unit_test(same_start_adopts),
        cmocka_unit_test(unseen_start_waits_for_the_living),
        cmocka_unit_test(seen_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
