/* SPDX-License-Identifier: Apache-2.0 */
/* When an answer is late, and when a stripe counts. */
#include "core/model/lateness.h"
#include "core/model/stripe.h"

#include "tests/unit/core/support.h"

enum { N = 6 };
static const struct cairn_late_limits limits = {100000, 1000000};

/* So many answers around a time, deterministic. */
static void answers(struct cairn_latency *l, unsigned n, uint64_t us)
{
    *l = (struct cairn_latency){0};
    for (unsigned i = 0; i < n; i++)
        cairn_latency_add(l, us - us / 4 + us / 2 * (i % 2));
}

static uint64_t after(const struct cairn_latency *l, unsigned own)
{
    const struct cairn_latency *group[N];

    for (unsigned i = 0; i < N; i++)
        group[i] = &l[i];
    return cairn_late_after_us(&l[own], group, N, &limits);
}

/* Catches a deadline made of nothing: an unknown group has a share of the ceiling. */
static void test_nothing_known(void **state)
{
    struct cairn_latency l[N] = {0};
    (void)state;

    assert_int_equal(after(l, 0), limits.ceiling_us / 4);
    answers(&l[0], 7, 1000);
    assert_int_equal(after(l, 0), limits.ceiling_us / 4);
    answers(&l[0], 8, 1000);
    assert_int_equal(after(l, 0), limits.floor_us);
    assert_int_equal(after(l, 1), limits.floor_us); /* what the group knows counts for a new peer too */
}

/* Catches a deadline within what the peer usually takes, and one that does not follow a slow device. */
static void test_follows_the_group(void **state)
{
    struct cairn_latency l[N];
    (void)state;

    for (uint64_t us = 30000; us < 200000; us += 10000) {
        for (unsigned i = 0; i < N; i++)
            answers(&l[i], 100, us);
        uint64_t got = after(l, 2);
        assert_true(got > us + us / 4 && got <= limits.ceiling_us);
        assert_true(got >= limits.floor_us);
        assert_true(got <= us * 4 || got == limits.floor_us);
    }
}

/* Catches one slow peer that raises everybody's deadline, and one that is punished for being a little slower. */
static void test_one_slow_peer(void **state)
{
    struct cairn_latency l[N];
    (void)state;

    for (unsigned i = 0; i < N; i++)
        answers(&l[i], 100, 60000);
    uint64_t usual = after(l, 0);
    answers(&l[5], 100, 120000);
    assert_int_equal(after(l, 0), usual);
    assert_true(after(l, 5) > 120000 + 30000); /* its own pace */
    answers(&l[5], 100, 600000);
    assert_true(after(l, 5) <= 3 * usual); /* beyond three times the group's, it is late */
}

/* Catches a record that never forgets: after a bad time the deadline comes down again. */
static void test_forgets(void **state)
{
    struct cairn_latency l[N];
    (void)state;

    for (unsigned i = 0; i < N; i++) {
        answers(&l[i], 50, 500000);
        for (unsigned j = 0; j < 60; j++)
            cairn_latency_add(&l[i], 5000);
    }
    assert_int_equal(after(l, 0), limits.floor_us);
}

/* Catches sums that overflow: absurd times stay within the ceiling. */
static void test_bounds(void **state)
{
    struct cairn_latency l[N];
    uint64_t seed = 3;
    (void)state;

    for (unsigned round = 0; round < 2000; round++) {
        for (unsigned i = 0; i < N; i++) {
            l[i] = (struct cairn_latency){0};
            for (uint64_t j = below(&seed, 20); j > 0; j--)
                cairn_latency_add(&l[i], next_random(&seed) >> below(&seed, 64));
        }
        uint64_t got = after(l, (unsigned)below(&seed, N));
        assert_in_range(got, limits.floor_us, limits.ceiling_us);
    }
}

/* Catches a group of which everybody is late: then nobody is. */
static void test_late_most(void **state)
{
    (void)state;
    assert_int_equal(cairn_late_most(0), 0);
    assert_int_equal(cairn_late_most(2), 0);
    assert_int_equal(cairn_late_most(3), 1);
    assert_int_equal(cairn_late_most(6), 2);
}

/* Catches a stripe that counts with fewer than its margin, and one that waits for more than it has. */
static void test_margin(void **state)
{
    (void)state;
    assert_int_equal(cairn_margin_for(0, 0), 0);
    assert_int_equal(cairn_margin_for(1, 0), 1);
    assert_int_equal(cairn_margin_for(2, 0), 1);
    assert_int_equal(cairn_margin_for(3, 0), 2);
    assert_int_equal(cairn_margin_for(8, 0), 7);
    assert_int_equal(cairn_margin_for(2, 2), 2);
    assert_int_equal(cairn_margin_for(2, 8), 2);
    assert_int_equal(cairn_margin_for(0, 3), 0);
    assert_int_equal(cairn_margin_for(4, 1), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_known), cmocka_unit_test(test_follows_the_group),
        cmocka_unit_test(test_one_slow_peer), cmocka_unit_test(test_forgets),
        cmocka_unit_test(test_bounds),        cmocka_unit_test(test_late_most),
        cmocka_unit_test(test_margin),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
