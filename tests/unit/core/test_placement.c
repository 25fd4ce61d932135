/* SPDX-License-Identifier: Apache-2.0 */
/* Placement: the same set gives the same order, failure domains come first, and a peer that goes moves only what it
 * must. */
#include "core/model/placement.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define N 12

static void fill(struct cairn_candidate *c, char ids[N][8], bool domains)
{
    static const char *const racks[] = {"r0", "r1", "r2", "r3"};

    for (unsigned i = 0; i < N; i++) {
        snprintf(ids[i], 8, "p%u", i);
        c[i] = (struct cairn_candidate){ids[i], domains ? racks[i % 4] : "", 1};
    }
}

static void test_the_input_order_does_not_matter(void **state)
{
    struct cairn_candidate c[N], turned[N];
    unsigned a[N], b[N];
    char ids[N][8];

    (void)state;
    fill(c, ids, true);
    for (unsigned i = 0; i < N; i++)
        turned[i] = c[N - 1 - i];
    for (uint64_t key = 0; key < 200; key++) {
        cairn_place(c, N, key, a);
        cairn_place(turned, N, key, b);
        for (unsigned i = 0; i < N; i++)
            assert_string_equal(c[a[i]].id, turned[b[i]].id);
    }
}

static void test_every_peer_once_and_domains_first(void **state)
{
    struct cairn_candidate c[N];
    unsigned order[N];
    char ids[N][8];

    (void)state;
    fill(c, ids, true);
    for (uint64_t key = 0; key < 200; key++) {
        unsigned seen = 0, racks = 0;
        cairn_place(c, N, key, order);
        for (unsigned i = 0; i < N; i++) {
            seen |= 1u << order[i];
            if (i < 4)
                racks |= 1u << order[i] % 4;
        }
        assert_int_equal(seen, (1u << N) - 1);
        assert_int_equal(racks, 15);
    }
}

static void test_a_peer_that_goes_moves_only_its_own(void **state)
{
    struct cairn_candidate c[N], without[N];
    unsigned a[N], b[N];
    char ids[N][8];

    (void)state;
    fill(c, ids, false);
    memcpy(without, c, sizeof c);
    memmove(&without[5], &without[6], (N - 6) * sizeof c[0]);
    for (uint64_t key = 0; key < 500; key++) {
        cairn_place(c, N, key, a);
        cairn_place(without, N - 1, key, b);
        for (unsigned i = 0, j = 0; i < N; i++) {
            if (a[i] == 5)
                continue;
            assert_string_equal(c[a[i]].id, without[b[j++]].id);
        }
    }
}

static void test_weights_count(void **state)
{
    struct cairn_candidate c[N];
    unsigned order[N], heavy = 0;
    char ids[N][8];

    (void)state;
    fill(c, ids, false);
    c[3].weight = 11; /* as much as all others together */
    for (uint64_t key = 0; key < 4000; key++) {
        cairn_place(c, N, key * 0x9e3779b97f4a7c15ull, order);
        heavy += order[0] == 3;
    }
    assert_in_range(heavy, 1800, 2200);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_input_order_does_not_matter),
        cmocka_unit_test(test_every_peer_once_and_domains_first),
        cmocka_unit_test(test_a_peer_that_goes_moves_only_its_own),
        cmocka_unit_test(test_weights_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
