/* SPDX-License-Identifier: Apache-2.0 */
/* The plan of a repair. Catches: two fragments of a stripe on one peer, one on a peer that is sick, a stripe called
 * lost that has k left or repairable that has not, domains that are not spread. */
#include "core/checkpoint/repair.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#define NONE REPAIR_NOWHERE

static void test_whole(void **state)
{
    const struct repair_peer peers[3] = {{"", true}, {"", true}, {"", true}};
    const int holder[3] = {2, 0, 1};
    struct repair_plan plan;

    (void)state;
    assert_int_equal(repair_plan(2, 1, holder, peers, 3, &plan), REPAIR_WHOLE);
    assert_int_equal(plan.missing, 0);
    assert_int_equal(plan.target[0], NONE);
}

static void test_lost(void **state)
{
    const struct repair_peer peers[4] = {{"", true}, {"", true}, {"", true}, {"", true}};
    const int exactly_k[4] = {NONE, 1, NONE, 2}, too_few[4] = {NONE, 1, NONE, NONE};
    struct repair_plan plan;

    (void)state;
    assert_int_equal(repair_plan(2, 2, exactly_k, peers, 4, &plan), REPAIR_POSSIBLE);
    assert_int_equal(repair_plan(2, 2, too_few, peers, 4, &plan), REPAIR_LOST);
    assert_int_equal(plan.missing, 3);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(plan.target[i], NONE);
    const int without_parity[1] = {NONE};
    assert_int_equal(repair_plan(1, 0, without_parity, peers, 4, &plan), REPAIR_LOST);
}

/* The peer whose fragment was damaged may take it again; one that holds another, or is sick, may not. */
static void test_room(void **state)
{
    const struct repair_peer peers[3] = {{"", true}, {"", false}, {"", true}};
    const int holder[3] = {0, NONE, NONE};
    struct repair_plan plan;

    (void)state;
    assert_int_equal(repair_plan(1, 2, holder, peers, 3, &plan), REPAIR_POSSIBLE);
    assert_int_equal(plan.target[1], 2);
    assert_int_equal(plan.target[2], NONE);
    assert_int_equal(plan.homeless, 1);
    assert_int_equal(plan.missing, 2);
}

static void test_domains(void **state)
{
    const struct repair_peer peers[5] = {{"a", true}, {"a", true}, {"b", true}, {"b", true}, {"", true}};
    const int holder[4] = {0, NONE, NONE, NONE};
    struct repair_plan plan;

    (void)state;
    assert_int_equal(repair_plan(1, 3, holder, peers, 5, &plan), REPAIR_POSSIBLE);
    assert_int_equal(plan.target[1], 2); /* b before a's second */
    assert_int_equal(plan.target[2], 4); /* alone in its own */
    assert_int_equal(plan.target[3], 1); /* a and b have one each: the order decides */
}

/* Whatever is asked: the rules hold. */
static void test_random(void **state)
{
    static const char *const domains[] = {"", "a", "b", "c"};
    uint64_t seed = 12345;

    (void)state;
    for (unsigned round = 0; round < 20000; round++) {
        struct repair_peer peers[12];
        struct repair_plan plan;
        int holder[CAIRN_MAX_FRAGS];
        unsigned n = 1 + round % 12, k = 1 + round % 4, m = round % 3, free_peers = 0, missing = 0;
        bool used[12] = {false};

        for (unsigned p = 0; p < n; p++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            peers[p] = (struct repair_peer){domains[seed >> 62], seed >> 40 & 3};
        }
        for (unsigned i = 0; i < k + m; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            unsigned p = (unsigned)(seed >> 33) % n;
            holder[i] = used[p] ? NONE : (int)p;
            used[p] = true;
            missing += holder[i] == NONE;
        }
        for (unsigned p = 0; p < n; p++)
            free_peers += peers[p].healthy && !used[p];
        enum repair_verdict v = repair_plan(k, m, holder, peers, n, &plan);
        assert_int_equal(plan.missing, missing);
        assert_int_equal(v, missing == 0 ? REPAIR_WHOLE : missing > m ? REPAIR_LOST : REPAIR_POSSIBLE);
        unsigned placed = 0;
        for (unsigned i = 0; i < k + m; i++) {
            int t = plan.target[i];
            if (t == NONE)
                continue;
            assert_int_equal(holder[i], NONE);
            assert_true(peers[t].healthy && !used[t]);
            used[t] = true;
            placed++;
        }
        if (v == REPAIR_POSSIBLE) {
            assert_int_equal(placed, missing < free_peers ? missing : free_peers);
            assert_int_equal(plan.homeless, missing - placed);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole),   cmocka_unit_test(test_lost),   cmocka_unit_test(test_room),
        cmocka_unit_test(test_domains), cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
