/* SPDX-License-Identifier: Apache-2.0 */
#include "client/tool/watch_rules.h"

#include "tests/unit/core/support.h"

#include <stdio.h>

/* Catches a temporary directory that is taken for a step, and a number that is read wrong. */
static void test_step_of(void **state)
{
    static const struct {
        const char *pattern, *name;
        int64_t step; /* -1: it is none */
    } cases[] = {
        {"checkpoint-*", "checkpoint-500", 500},
        {"checkpoint-*", "checkpoint-0", 0},
        {"checkpoint-*", "checkpoint-500.tmp", -1},
        {"checkpoint-*", "tmp-checkpoint-500", -1},
        {"checkpoint-*", "checkpoint-", -1},
        {"checkpoint-*", "checkpoint--5", -1},
        {"checkpoint-*", "checkpoint-5 ", -1},
        {"global_step*", "global_step12", 12},
        {"global_step*", "global_step12_universal", -1},
        {"iter_*", "iter_0000500", 500},
        {"iter_*", "latest_checkpointed_iteration.txt", -1},
        {"*", "500", 500},
        {"*", "500.orbax-checkpoint-tmp-1700000000", -1},
        {"*", "step_500", -1},
        {"*", ".500", -1},
        {"*", "", -1},
        {"**", "step-500", 500},
        {"**", "500", 500},
        {"**", "run2-step7", 7},
        {"**", ".hidden-7", -1},
        {"**", "step-x", -1},
        {"epoch=*-step=*", "epoch=1-step=300", 300},
        {"epoch=*-step=*", "epoch=1", -1},
        {"v*-final", "v12-final", 12},
        {"step?*", "step_9", 9},
        {"[a-c]*", "b7", 7},
        {"*", "18446744073709551615", -1}, /* CAIRN_LATEST */
        {"*", "99999999999999999999", -1},
        {"*", "000000000000000000000000001", -1},
        {"nostar", "nostar", -1},
    };
    (void)state;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint64_t step = 4711;
        bool is = watch_step_of(cases[i].pattern, cases[i].name, &step);
        if (is != (cases[i].step >= 0) || (is && step != (uint64_t)cases[i].step))
            fail_msg("%s of %s: %d, step %llu", cases[i].name, cases[i].pattern, is, (unsigned long long)step);
    }
    assert_int_equal(watch_pattern_check("checkpoint", NULL), CAIRN_E_INVAL);
    assert_int_equal(watch_pattern_check("a/*", NULL), CAIRN_E_INVAL);
    assert_int_equal(watch_pattern_check("a*", NULL), 0);
}

static bool says(const char *like, const char *text, const char *name, uint64_t step)
{
    return watch_marker_says(watch_preset(like), text, strlen(text), name, step);
}

/* Catches a marker that is believed before it is written to its end, or of another step. */
static void test_markers(void **state)
{
    (void)state;
    assert_true(says("hf", "{\n \"epoch\": 1.0, \"global_step\": 500\n}\n", "checkpoint-500", 500));
    assert_false(says("hf", "{\n \"epoch\": 1.0, \"global_step\": 500\n", "checkpoint-500", 500));
    assert_false(says("hf", "{\"global_step\": 400}", "checkpoint-500", 500));
    assert_false(says("hf", "{\"global_step\": \"500\"}", "checkpoint-500", 500));
    assert_false(says("hf", "{\"global_step\": -1}", "checkpoint-500", UINT64_MAX));
    assert_true(
        says("hf", "{\"a\": {\"global_step\": 4}, \"s\": \"}\\\"{\", \"loss\": NaN, \"global_step\":500}", "n", 500));
    assert_false(says("hf", "{\"a\": {\"global_step\": 500}, \"global_step\": 4}", "n", 500));
    assert_false(says("hf", "{\"a\": \"global_step\", \"b\": 500}", "n", 500));
    assert_false(says("hf", "{\"global_step\": 5000}", "n", 500));
    assert_false(says("hf", "{\"global_step\": 500.5}", "n", 500));
    assert_false(says("hf", "{\"global_step\": 500, \"a\": \"}", "n", 500));
    assert_false(says("hf", "{\"global_step\": 500} {", "n", 500));
    assert_false(says("hf", "{\"global_step\": 500", "n", 500));
    assert_false(says("hf", "[500]", "checkpoint-500", 500));
    assert_false(says("hf", "", "checkpoint-500", 500));
    assert_true(says("deepspeed", "global_step500", "global_step500", 500));
    assert_false(says("deepspeed", "global_step50", "global_step500", 500));
    assert_false(says("deepspeed", "global_step5000", "global_step500", 500));
    assert_true(says("megatron", "500\n", "iter_0000500", 500));
    assert_false(says("megatron", "50", "iter_0000500", 500));
    assert_false(says("megatron", "release", "iter_0000500", 500));
    assert_false(says("megatron", "", "iter_0000500", 0));
    assert_true(says("dcp", "anything", "step-5", 5));
    assert_null(watch_preset("tensorflow"));
}

/* Catches an older step that overtakes a newer one, and a save that two starts make. */
static void test_fates(void **state)
{
    const struct watch_record records[] = {{100, 1, WATCH_RECORD_COMMITTED}, {200, 1, WATCH_RECORD_ABORTED},
                                           {300, 2, WATCH_RECORD_COMMITTED}, {400, 2, WATCH_RECORD_ABORTED},
                                           {400, 3, WATCH_RECORD_COMMITTED}, {500, 3, WATCH_RECORD_UNDECIDED},
                                           {600, 3, WATCH_RECORD_ABORTED}};
    char id[CAIRN_MAX_NAME + 1], base[CAIRN_MAX_NAME + 1];
    (void)state;

    assert_int_equal(watch_fate_of(100, records, 7, 400, 3), WATCH_COMMITTED);
    assert_int_equal(watch_fate_of(200, records, 7, 400, 3), WATCH_PASSED);
    assert_int_equal(watch_fate_of(250, records, 7, 400, 3), WATCH_PASSED);
    assert_int_equal(watch_fate_of(400, records, 7, 400, 3), WATCH_COMMITTED);
    assert_int_equal(watch_fate_of(500, records, 7, 400, 3), WATCH_PENDING); /* other ranks of ours */
    assert_int_equal(watch_fate_of(500, records, 7, 400, 0), WATCH_ELSEWHERE);
    assert_int_equal(watch_fate_of(500, records, 7, 400, 4), WATCH_ELSEWHERE);
    assert_int_equal(watch_fate_of(500, records, 7, 400, WATCH_ANY), WATCH_PENDING);
    assert_int_equal(watch_fate_of(600, records, 7, 400, 3), WATCH_PENDING);
    assert_int_equal(watch_fate_of(0, NULL, 0, CAIRN_LATEST, 0), WATCH_PENDING);
    assert_int_equal(watch_start_id("run", records, 0, id, NULL), 0);
    assert_string_equal(id, "run");
    assert_int_equal(watch_start_id("run", records, 7, id, NULL), 0);
    assert_string_equal(id, "run-3");
    memset(base, 'b', CAIRN_MAX_NAME);
    base[CAIRN_MAX_NAME] = '\0';
    assert_int_equal(watch_start_id(base, records, 0, id, NULL), 0);
    assert_int_equal(watch_start_id(base, records, 7, id, NULL), CAIRN_E_INVAL);
}

static struct watch_step step(uint64_t number)
{
    return (struct watch_step){.step = number, .there = true, .marked = true};
}

/* Catches a step that is taken before it settles, one that is overtaken by a later one while it waits for its next try,
 * and one that holds all later ones up for good. */
static void test_choose(void **state)
{
    const struct watch_rule *hf = watch_preset("hf"), *dcp = watch_preset("dcp");
    struct watch_step s[3] = {step(100), step(200), step(300)};
    struct watch_next next;
    (void)state;

    s[0].fate = WATCH_COMMITTED;
    s[2].marked = false;
    next = watch_choose(dcp, s, 3, 1000);
    assert_int_equal(next.take, 1);
    s[1].same_since_ms = 500;
    next = watch_choose(hf, s, 3, 1000);
    assert_int_equal(next.take, -1);
    assert_int_equal(next.wake_ms, 2500);
    assert_false(next.idle);
    assert_int_equal(watch_choose(hf, s, 3, 2500).take, 1);
    s[2].marked = true;
    s[1].not_before_ms = 9000;
    s[1].failures = 1;
    next = watch_choose(dcp, s, 3, 1000);
    assert_int_equal(next.take, -1);
    assert_int_equal(next.wake_ms, 9000);
    s[1].failures = WATCH_PATIENCE;
    assert_int_equal(watch_choose(dcp, s, 3, 1000).take, 2);
    s[1].fate = WATCH_ELSEWHERE;
    s[1].failures = 0;
    next = watch_choose(dcp, s, 3, 20000);
    assert_int_equal(next.take, -1);
    assert_false(next.idle);
    s[1].fate = WATCH_PASSED;
    s[2].fate = WATCH_COMMITTED;
    next = watch_choose(dcp, s, 3, 1000);
    assert_true(next.idle && next.take == -1 && next.wake_ms == INT64_MAX);
    s[1].there = s[2].there = s[0].there = false;
    assert_true(watch_choose(dcp, s, 3, 1000).idle);
    for (unsigned tries = 1; tries < 40; tries++)
        assert_in_range(watch_backoff_ms(tries), watch_backoff_ms(tries - 1), 60000);
}

/* Catches a directory that goes before its checkpoint exists. */
static void test_expired(void **state)
{
    struct watch_step s[4] = {step(100), step(200), step(300), step(400)};
    (void)state;

    assert_int_equal(watch_expired(s, 4, 1), -1);
    s[1].fate = s[2].fate = s[3].fate = WATCH_COMMITTED;
    assert_int_equal(watch_expired(s, 4, 0), -1);
    assert_int_equal(watch_expired(s, 4, 3), -1);
    assert_int_equal(watch_expired(s, 4, 2), 1);
    s[1].stays = true;
    assert_int_equal(watch_expired(s, 4, 2), -1);
    assert_int_equal(watch_expired(s, 4, 1), 2);
    s[1].stays = false;
    s[1].there = false;
    assert_int_equal(watch_expired(s, 4, 2), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_step_of), cmocka_unit_test(test_markers), cmocka_unit_test(test_fates),
        cmocka_unit_test(test_choose),  cmocka_unit_test(test_expired),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
