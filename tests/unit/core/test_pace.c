/* SPDX-License-Identifier: Apache-2.0 */
/* How fast a flush may go: rates that hold, plans that end in time, reasons for full speed. */
#include "core/model/pace.h"

#include "tests/unit/core/support.h"

#define MIB ((uint64_t)1 << 20)
#define MS ((uint64_t)1000000)
#define S (1000 * MS)
#define START (7 * S) /* of the test's clock */

/* ---- buckets --------------------------------------------------------------------------------- */

static void test_bucket_no_bound(void **state)
{
    struct cairn_bucket b;
    (void)state;

    cairn_bucket_init(&b, 0, 0);
    for (unsigned i = 0; i < 10; i++) {
        assert_int_equal(cairn_bucket_wait_ns(&b, UINT64_MAX, START), 0);
        cairn_bucket_charge(&b, UINT64_MAX, START);
    }
}

/* Catches a burst that is not given, and one that is given twice. */
static void test_bucket_burst_then_rate(void **state)
{
    struct cairn_bucket b;
    unsigned n = 0;
    (void)state;

    cairn_bucket_init(&b, 10 * MIB, 4 * MIB);
    while (cairn_bucket_wait_ns(&b, 0, START) == 0) {
        cairn_bucket_charge(&b, MIB, START);
        n++;
    }
    assert_in_range(n, 4, 5);
    uint64_t wait = cairn_bucket_wait_ns(&b, 0, START);
    assert_in_range(wait, 1, 100 * MS + 5); /* one MiB's time at most */
    assert_int_equal(cairn_bucket_wait_ns(&b, 0, START + wait), 0);
}

/* Catches pieces that are being encoded and that nobody counts. */
static void test_bucket_reserved(void **state)
{
    struct cairn_bucket b;
    (void)state;

    cairn_bucket_init(&b, 10 * MIB, 4 * MIB);
    assert_int_equal(cairn_bucket_wait_ns(&b, 3 * MIB, START), 0);
    assert_in_range(cairn_bucket_wait_ns(&b, 5 * MIB, START), 90 * MS, 110 * MS);
}

/* Catches time saved up while nothing went: after any pause there is one burst, no more. */
static void test_bucket_pause(void **state)
{
    struct cairn_bucket b;
    uint64_t went = 0;
    (void)state;

    cairn_bucket_init(&b, 10 * MIB, 4 * MIB);
    cairn_bucket_charge(&b, 64 * MIB, START);
    while (cairn_bucket_wait_ns(&b, 0, START + 3600 * S) == 0) {
        cairn_bucket_charge(&b, MIB, START + 3600 * S);
        went += MIB;
    }
    assert_true(went <= 5 * MIB);
}

struct event {
    uint64_t at_ns, bytes;
};

/* Over every window: no more than the rate gives, a burst and the last piece. Quadratic, so the events are few. */
static void check_windows(const struct event *e, unsigned n, uint64_t rate, uint64_t burst, uint64_t piece)
{
    for (unsigned i = 0; i < n; i++) {
        uint64_t bytes = 0;
        for (unsigned j = i; j < n; j++) {
            bytes += e[j].bytes;
            double may = (double)rate * (double)(e[j].at_ns - e[i].at_ns) / 1e9 + (double)(burst + piece);
            assert_true((double)bytes <= may * 1.000001 + 1);
        }
    }
}

/* Catches every way to get more than the rate: rounding, pauses, large pieces, asking often. */
static void test_bucket_random(void **state)
{
    uint64_t seed = 11;
    (void)state;

    for (unsigned round = 0; round < 60; round++) {
        uint64_t rate = 1 + (next_random(&seed) >> below(&seed, 60)) % ((uint64_t)1 << 36);
        uint64_t burst = below(&seed, 16 * MIB), piece = 1 + below(&seed, 8 * MIB), now = START;
        struct cairn_bucket b;
        struct event e[200];
        unsigned n = 0;
        cairn_bucket_init(&b, rate, burst);
        while (n < 200) {
            uint64_t wait = cairn_bucket_wait_ns(&b, 0, now);
            if (wait) {
                assert_true(below(&seed, 8) || cairn_bucket_wait_ns(&b, 0, now + wait) == 0);
                now += below(&seed, 2) ? wait : 1 + below(&seed, wait);
                continue;
            }
            e[n] = (struct event){now, 1 + below(&seed, piece)};
            cairn_bucket_charge(&b, e[n].bytes, now);
            now += below(&seed, 3) ? 0 : below(&seed, S);
            n++;
        }
        check_windows(e, n, rate, burst, piece);
    }
}

/* ---- cadence --------------------------------------------------------------------------------- */

static void begin_every(struct cairn_cadence *c, uint64_t *now, unsigned n, uint64_t interval_ns)
{
    for (unsigned i = 0; i < n; i++) {
        *now += interval_ns;
        cairn_cadence_add(c, *now);
    }
}

/* Catches a guess from nothing, and from a first interval that may hold a compilation. */
static void test_cadence_needs_history(void **state)
{
    struct cairn_cadence c = {0};
    uint64_t now = START;
    (void)state;

    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(cairn_cadence_expected_ns(&c), 0);
        begin_every(&c, &now, 1, i == 1 ? 20 * S : 10 * S);
    }
    assert_int_equal(cairn_cadence_expected_ns(&c), 10 * S);
}

/* Catches a mean: the next save may be as early as the earliest was. */
static void test_cadence_is_careful(void **state)
{
    struct cairn_cadence c = {0};
    uint64_t now = START;
    (void)state;

    begin_every(&c, &now, 5, 10 * S);
    begin_every(&c, &now, 1, 6 * S);
    begin_every(&c, &now, 4, 10 * S);
    assert_int_equal(cairn_cadence_expected_ns(&c), 6 * S);
    begin_every(&c, &now, CAIRN_CADENCE_KEPT, 10 * S); /* and forgets it */
    assert_int_equal(cairn_cadence_expected_ns(&c), 10 * S);
}

/* Catches a pause of the training that is taken for a cadence, and an old cadence that outlives one. */
static void test_cadence_gap(void **state)
{
    struct cairn_cadence c = {0};
    uint64_t now = START;
    (void)state;

    begin_every(&c, &now, 6, 10 * S);
    begin_every(&c, &now, 1, 100 * S);
    assert_int_equal(cairn_cadence_expected_ns(&c), 0);
    begin_every(&c, &now, 2, 60 * S);
    assert_int_equal(cairn_cadence_expected_ns(&c), 60 * S);
    cairn_cadence_add(&c, now - S); /* a clock that goes back is not believed */
    assert_int_equal(c.last_ns, now);
}

/* ---- paces ----------------------------------------------------------------------------------- */

static struct cairn_cadence every(uint64_t interval_ns, uint64_t *now)
{
    struct cairn_cadence c = {0};

    begin_every(&c, now, 4, interval_ns);
    return c;
}

static void test_pace_spreads(void **state)
{
    uint64_t now = START;
    struct cairn_cadence c = every(10 * S, &now);
    struct cairn_pace p;
    (void)state;

    cairn_pace_plan(&p, &c, 100 * MIB, now, now, 600000);
    assert_int_equal(p.why, CAIRN_PACED);
    assert_int_equal(p.end_ns, now + 7 * S);
    assert_int_equal(cairn_pace_wait_ns(&p, now), 0);
    cairn_pace_take(&p, 50 * MIB);
    assert_int_equal(cairn_pace_wait_ns(&p, now), 3500 * MS);
    assert_int_equal(cairn_pace_ahead_ns(&p, now + S), 2500 * (int64_t)MS);
    assert_int_equal(cairn_pace_wait_ns(&p, now + 3500 * MS), 0);
    assert_int_equal(cairn_pace_ahead_ns(&p, now + 5 * S), -1500 * (int64_t)MS); /* behind: it does not wait */
    assert_int_equal(cairn_pace_wait_ns(&p, now + 5 * S), 0);
}

/* Catches a plan that the daemon's own deadline would abort. */
static void test_pace_keeps_the_deadline(void **state)
{
    uint64_t now = START;
    struct cairn_cadence c = every(3600 * S, &now);
    struct cairn_pace p;
    (void)state;

    cairn_pace_plan(&p, &c, 100 * MIB, now, now, 60000);
    assert_int_equal(p.end_ns, now + 30 * S);
}

/* Catches somebody who waits for a flush that takes its time. */
static void test_pace_full_speed(void **state)
{
    struct cairn_cadence none = {0};
    uint64_t now = START;
    struct cairn_cadence c = every(10 * S, &now);
    struct cairn_pace p;
    (void)state;

    cairn_pace_plan(&p, &none, MIB, now, now, 600000);
    assert_int_equal(p.why, CAIRN_PACE_FIRST);
    assert_int_equal(cairn_pace_wait_ns(&p, now), 0);
    cairn_pace_plan(&p, &c, MIB, now, now + 7 * S, 600000); /* its intent came late */
    assert_int_equal(p.why, CAIRN_PACE_SHORT);
    assert_int_equal(cairn_pace_wait_ns(&p, now), 0);
    for (int why = CAIRN_PACE_WAITED; why <= CAIRN_PACE_ENDING; why++) {
        cairn_pace_plan(&p, &c, 100 * MIB, now, now, 600000);
        cairn_pace_take(&p, 90 * MIB);
        assert_true(cairn_pace_wait_ns(&p, now) > 0);
        assert_true(cairn_pace_hurry(&p, why));
        assert_false(cairn_pace_hurry(&p, CAIRN_PACE_OFF));
        assert_int_equal(p.why, why);
        assert_int_equal(cairn_pace_wait_ns(&p, now), 0);
        assert_true(cairn_pace_why_text(why)[0] != 0);
    }
    assert_string_equal(cairn_pace_why_text(99), "");
}

/* A flush in pieces, over a path of some rate, as a drain does it: a piece begins when the pace allows it and the path
 * has room for it. Returns when the last piece began. */
static uint64_t flush(struct cairn_pace *p, uint64_t now, uint64_t piece, uint64_t path_rate, unsigned depth,
                      uint64_t *seed)
{
    uint64_t busy_ns = now;

    while (p->taken < p->total) {
        uint64_t bytes = p->total - p->taken < piece ? p->total - p->taken : piece;
        uint64_t took = (uint64_t)((double)bytes * 1e9 / (double)path_rate) + 1;
        uint64_t wait = cairn_pace_wait_ns(p, now);
        if (busy_ns > now + took * depth)
            wait = wait > busy_ns - now - took * depth ? wait : busy_ns - now - took * depth;
        if (wait) {
            now += wait;
            continue;
        }
        cairn_pace_take(p, bytes);
        busy_ns = (busy_ns > now ? busy_ns : now) + took;
        now += below(seed, 4) ? 0 : below(seed, MS);
    }
    return now;
}

/* Whatever the cadence and the sizes: a plan that the path can carry ends in time, and well before the next save; one
 * that it cannot carry is not made longer by the plan. */
static void test_pace_random(void **state)
{
    uint64_t seed = 5;
    (void)state;

    for (unsigned round = 0; round < 3000; round++) {
        uint64_t interval = 10 * MS + below(&seed, 1000 * S), begun = START;
        uint64_t total = 1 + below(&seed, 2048 * MIB), piece = 1 + total / (1 + below(&seed, 200));
        struct cairn_cadence c = every(interval, &begun);
        struct cairn_pace p;
        uint64_t now = begun + below(&seed, interval / 2);
        cairn_pace_plan(&p, &c, total, begun, now, 600000);
        assert_int_equal(p.why, CAIRN_PACED);
        assert_true(p.end_ns <= begun + interval * 7 / 10 && p.end_ns > now);
        uint64_t planned = p.end_ns - now, end = p.end_ns;
        double share = 0.1 + (double)below(&seed, 40) / 10; /* of what the plan needs */
        double path = (double)total * 1e9 / (double)planned * share + 1;
        uint64_t last = flush(&p, now, piece, (uint64_t)path + 1, 2, &seed);
        uint64_t alone = (uint64_t)((double)total * 1e9 / path),
                 slack = (uint64_t)((double)piece * 4e9 / path) + 3 * MS;
        if (share >= 1.2)
            assert_true(last <= end + slack);
        assert_true(last - now <=
                    (planned > alone ? planned : alone) + slack + (planned > alone ? alone : planned) / 5);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bucket_no_bound),    cmocka_unit_test(test_bucket_burst_then_rate),
        cmocka_unit_test(test_bucket_reserved),    cmocka_unit_test(test_bucket_pause),
        cmocka_unit_test(test_bucket_random),      cmocka_unit_test(test_cadence_needs_history),
        cmocka_unit_test(test_cadence_is_careful), cmocka_unit_test(test_cadence_gap),
        cmocka_unit_test(test_pace_spreads),       cmocka_unit_test(test_pace_keeps_the_deadline),
        cmocka_unit_test(test_pace_full_speed),    cmocka_unit_test(test_pace_random),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
