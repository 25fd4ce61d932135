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
        c[i] = (struct cairn_candidate){ids[i], domains ? racks[i % 4] : "", 1, CAIRN_ELSEWHERE};
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

/* Catches rounds that are counted anew when a domain shrinks: whoever stays keeps its turn before its equals. With
 * domains a peer that goes moves up its domain's later ones by a round; nobody else changes places with anybody. */
static void test_a_peer_that_goes_moves_only_its_domain(void **state)
{
    struct cairn_candidate c[N], without[N];
    unsigned a[N], b[N];
    char ids[N][8];

    (void)state;
    fill(c, ids, true);
    memcpy(without, c, sizeof c);
    memmove(&without[5], &without[6], (N - 6) * sizeof c[0]);
    for (uint64_t key = 0; key < 500; key++) {
        const char *others[2][N];
        unsigned n[2] = {0, 0};
        assert_int_equal(cairn_place(c, N, key, a), N);
        assert_int_equal(cairn_place(without, N - 1, key, b), N - 1);
        for (unsigned i = 0; i < N; i++)
            if (strcmp(c[a[i]].domain, c[5].domain) != 0)
                others[0][n[0]++] = c[a[i]].id;
        for (unsigned i = 0; i < N - 1; i++)
            if (strcmp(without[b[i]].domain, c[5].domain) != 0)
                others[1][n[1]++] = without[b[i]].id;
        assert_int_equal(n[0], n[1]);
        for (unsigned i = 0; i < n[0]; i++)
            assert_string_equal(others[0][i], others[1][i]);
    }
}

/* Catches a peer without room that is chosen all the same. */
static void test_a_full_peer_is_not_chosen(void **state)
{
    struct cairn_candidate c[N];
    unsigned order[N];
    char ids[N][8];

    (void)state;
    fill(c, ids, true);
    c[7].weight = 0;
    for (uint64_t key = 0; key < 200; key++) {
        assert_int_equal(cairn_place(c, N, key, order), N - 1);
        for (unsigned i = 0; i < N - 1; i++)
            assert_int_not_equal(order[i], 7);
    }
    for (unsigned i = 0; i < N; i++)
        c[i].weight = 0;
    assert_int_equal(cairn_place(c, N, 1, order), 0);
}

/* Catches a fragment on the node that made it while others can take it, and one domain that gets more than its share
 * only because the own one is shunned. */
static void test_the_own_ones_come_last(void **state)
{
    struct cairn_candidate c[N];
    unsigned order[N];
    char ids[N][8];

    (void)state;
    fill(c, ids, true);
    for (unsigned i = 0; i < N; i += 4)
        c[i].nearness = CAIRN_OWN_DOMAIN;
    c[4].nearness = CAIRN_OWN_PEER;
    for (uint64_t key = 0; key < 200; key++) {
        assert_int_equal(cairn_place(c, N, key, order), N);
        assert_int_equal(order[N - 1], 4); /* itself */
        for (unsigned i = 0; i < 8; i++)   /* two rounds: four domains each, the own one last */
            assert_int_equal(order[i] % 4 == 0, i % 4 == 3);
    }
}

/* Catches a sort that is quadratic in the peers of a domain: the largest cluster, many keys, within the test's time. */
static void test_the_largest_cluster(void **state)
{
    static struct cairn_candidate c[CAIRN_PLACE_MAX];
    static char ids[CAIRN_PLACE_MAX][8];
    unsigned order[CAIRN_PLACE_MAX];

    (void)state;
    for (unsigned i = 0; i < CAIRN_PLACE_MAX; i++) {
        snprintf(ids[i], sizeof ids[i], "p%u", i);
        c[i] = (struct cairn_candidate){ids[i], i % 2 ? "a" : "b", 1 + i % 3, CAIRN_ELSEWHERE};
    }
    for (uint64_t key = 0; key < 20; key++) {
        assert_int_equal(cairn_place(c, CAIRN_PLACE_MAX, key, order), CAIRN_PLACE_MAX);
        for (unsigned i = 0; i + 1 < CAIRN_PLACE_MAX; i += 2)
            assert_int_not_equal(order[i] % 2, order[i + 1] % 2);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_input_order_does_not_matter),
        cmocka_unit_test(test_every_peer_once_and_domains_first),
        cmocka_unit_test(test_a_peer_that_goes_moves_only_its_own),
        cmocka_unit_test(test_weights_count),
        cmocka_unit_test(test_a_peer_that_goes_moves_only_its_domain),
        cmocka_unit_test(test_a_full_peer_is_not_chosen),
        cmocka_unit_test(test_the_own_ones_come_last),
        cmocka_unit_test(test_the_largest_cluster),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
