/* SPDX-License-Identifier: Apache-2.0 */
#include "core/model/placement.h"

#include "tests/unit/core/support.h"

enum { N = 12, KEYS = 4000 };

static void peers(struct cairn_candidate *c, char (*names)[16], unsigned n, unsigned domains)
{
    static const char *const domain[] = {"rack-a", "rack-b", "rack-c", "rack-d"};

    for (unsigned i = 0; i < n; i++) {
        snprintf(names[i], sizeof(names[i]), "peer-%u", i);
        c[i] = (struct cairn_candidate){names[i], domains ? domain[i % domains] : "", 1, CAIRN_ELSEWHERE};
    }
}

/* Catches an order that depends on the input's, or names a peer twice. */
static void test_order_of_input_does_not_matter(void **state)
{
    struct cairn_candidate c[100], shuffled[100];
    char names[100][16];
    uint64_t seed = 5;
    (void)state;

    for (unsigned n = 0; n <= 100; n += n < 20 ? 1 : 40) {
        peers(c, names, n, n % 5);
        memcpy(shuffled, c, sizeof(c));
        for (uint64_t key = 0; key < 20; key++) {
            unsigned order[100], other[100];
            bool seen[100] = {0};

            for (unsigned i = n; i > 1; i--) {
                unsigned j = (unsigned)below(&seed, i);
                struct cairn_candidate t = shuffled[j];
                shuffled[j] = shuffled[i - 1];
                shuffled[i - 1] = t;
            }
            cairn_place(c, n, key, order);
            cairn_place(shuffled, n, key, other);
            for (unsigned i = 0; i < n; i++) {
                assert_ptr_equal(c[order[i]].id, shuffled[other[i]].id);
                assert_false(seen[order[i]]);
                seen[order[i]] = true;
            }
        }
    }
}

/* Catches shares that do not follow the weights. */
static void test_weights(void **state)
{
    struct cairn_candidate c[N];
    char names[N][16];
    unsigned first[N] = {0}, order[N];
    (void)state;

    peers(c, names, N, 0);
    c[3].weight = 3;
    c[5].weight = 0; /* left out */
    for (uint64_t key = 0; key < KEYS; key++) {
        assert_int_equal(cairn_place(c, N, key * 0x9e3779b97f4a7c15ull, order), N - 1);
        first[order[0]]++;
    }
    for (unsigned i = 0; i < N; i++) {
        double expected = KEYS * c[i].weight / (N - 2 + 3);
        assert_in_range(first[i], (uint64_t)(expected * 0.8), (uint64_t)(expected * 1.2));
    }
}

/* Catches a second peer of a domain before every domain has its first, in each round. */
static void test_domains(void **state)
{
    struct cairn_candidate c[N];
    char names[N][16];
    unsigned order[N];
    (void)state;

    peers(c, names, N, 4);
    for (uint64_t key = 0; key < 200; key++) {
        cairn_place(c, N, key, order);
        for (unsigned round = 0; round < N; round += 4) {
            unsigned seen = 0;
            for (unsigned i = 0; i < 4; i++)
                seen |= 1u << (order[round + i] % 4);
            assert_int_equal(seen, 15);
        }
    }
    for (unsigned i = 0; i < N - 2; i++) /* one large domain and two small ones: 10, 1, 1 */
        c[i].domain = "big";
    c[N - 2].domain = "x";
    c[N - 1].domain = "";
    for (uint64_t key = 0; key < 200; key++) {
        cairn_place(c, N, key, order);
        unsigned big = 0;
        for (unsigned i = 0; i < 3; i++)
            big += order[i] < N - 2;
        assert_int_equal(big, 1);
    }
}

/* Catches a change of the hash or the logarithm: all daemons of a cluster must agree, of any version. */
static void test_golden(void **state)
{
    struct cairn_candidate c[N];
    char names[N][16];
    unsigned order[N];
    static const unsigned golden[N] = {2, 4, 9, 11, 1, 6, 7, 8, 0, 5, 10, 3};
    (void)state;

    peers(c, names, N, 3);
    c[2].weight = 2.5;
    cairn_place(c, N, 12345, order);
    for (unsigned i = 0; i < N; i++)
        assert_int_equal(order[i], golden[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_of_input_does_not_matter),
        cmocka_unit_test(test_weights),
        cmocka_unit_test(test_domains),
        cmocka_unit_test(test_golden),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
