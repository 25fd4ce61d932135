/* SPDX-License-Identifier: Apache-2.0 */
/* Catches: a rule that deletes the newest checkpoint, or one that is held; a count that is off by one; a larger N that
 * keeps less; a rule that prints as another. */
#include "core/checkpoint/retention.h"

#include "core/base/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MANY 40
#define HOUR 3600000ull

static struct retention rule(const char *text)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct retention r;

    if (retention_parse(text, &r, &err) < 0)
        fail_msg("%s: %s", text, err.message);
    return r;
}

/* Steps 1, 2, ... n of incarnation 1, an hour apart, all committed and full. */
static void fill(struct retention_item *items, size_t n)
{
    for (size_t i = 0; i < n; i++)
        items[i] = (struct retention_item){
            .step = i + 1, .incarnation = 1, .created_unix_ms = (i + 1) * HOUR, .committed = true, .full = true};
}

/* What is left, as text: "8 9 10". */
static void expect(const char *text, const struct retention_item *items, size_t n, uint64_t now, const char *left)
{
    struct retention r = rule(text);
    bool gone[MANY];
    char got[256] = "";

    size_t chosen = retention_choose(&r, items, n, now, gone);
    for (size_t i = 0; i < n; i++) {
        chosen -= gone[i];
        if (!gone[i])
            snprintf(got + strlen(got), sizeof got - strlen(got), "%s%llu", got[0] ? " " : "",
                     (unsigned long long)items[i].step);
    }
    assert_int_equal(chosen, 0);
    assert_string_equal(got, left);
}

static void any_rule_keeps(void **state)
{
    struct retention_item items[10];

    (void)state;
    fill(items, 10);
    expect("", items, 10, 10 * HOUR, "1 2 3 4 5 6 7 8 9 10");
    expect("all", items, 10, 10 * HOUR, "1 2 3 4 5 6 7 8 9 10");
    expect("last=1", items, 10, 10 * HOUR, "10");
    expect("last=3", items, 10, 10 * HOUR, "8 9 10");
    expect("every=4", items, 10, 10 * HOUR, "4 8 10");
    expect("for=2h", items, 10, 10 * HOUR, "9 10");
    expect("for=2h", items, 10, 100 * HOUR, "10");
    expect("for=2h", items, 10, HOUR, "1 2 3 4 5 6 7 8 9 10"); /* a clock that went back deletes nothing */
    expect("last=2 every=4 for=3h", items, 10, 10 * HOUR, "4 8 9 10");
    expect("last=100", items, 10, 10 * HOUR, "1 2 3 4 5 6 7 8 9 10");
    expect("last=1", items, 0, 0, "");
}

static void some_are_never_chosen(void **state)
{
    struct retention_item items[6];

    (void)state;
    fill(items, 6);
    items[1].held = true;
    items[2].committed = false;
    expect("last=1", items, 6, 10 * HOUR, "2 3 6");
    /* Not a full one: the one before it stays, also when it is not the newest. */
    fill(items, 6);
    items[5].full = false;
    expect("last=1", items, 6, 10 * HOUR, "5 6");
    items[4].full = false;
    expect("last=1", items, 6, 10 * HOUR, "4 5 6");
    /* What is not committed does not count as the newest, nor as one before. */
    fill(items, 6);
    items[5].committed = false;
    expect("last=1", items, 6, 10 * HOUR, "5 6");
    /* A newer incarnation at a lower step is newer. */
    fill(items, 6);
    items[0].incarnation = 2;
    expect("last=2", items, 6, 10 * HOUR, "1 6");
}

static const struct retention_item *newest(const struct retention_item *items, size_t n)
{
    const struct retention_item *best = NULL;

    for (size_t i = 0; i < n; i++)
        if (items[i].committed && (!best || items[i].incarnation > best->incarnation ||
                                   (items[i].incarnation == best->incarnation && items[i].step > best->step)))
            best = &items[i];
    return best;
}

static size_t random_items(struct retention_item *items)
{
    size_t n = (size_t)rand() % (MANY + 1);

    for (size_t i = 0; i < n; i++)
        items[i] = (struct retention_item){.step = i * 10 + (size_t)rand() % 10,
                                           .incarnation = (uint64_t)rand() % 3,
                                           .created_unix_ms = (uint64_t)rand() % 100000,
                                           .committed = rand() % 4 > 0,
                                           .held = rand() % 4 == 0,
                                           .full = rand() % 8 > 0};
    for (size_t i = n; i > 1; i--) { /* in any order */
        size_t j = (size_t)rand() % i;
        struct retention_item t = items[i - 1];
        items[i - 1] = items[j];
        items[j] = t;
    }
    return n;
}

static void random_sets(void **state)
{
    struct retention_item items[MANY];
    bool gone[MANY], more[MANY];

    (void)state;
    srand(7);
    for (unsigned round = 0; round < 20000; round++) {
        size_t n = random_items(items);
        struct retention r = {.last = (uint32_t)rand() % 5,
                              .every = (uint64_t)rand() % 3 * 10,
                              .for_ms = rand() % 2 ? (uint64_t)rand() % 100000 : 0};
        uint64_t now = (uint64_t)rand() % 200000;
        retention_choose(&r, items, n, now, gone);
        for (size_t i = 0; i < n; i++) {
            assert_false(gone[i] && (!items[i].committed || items[i].held || &items[i] == newest(items, n)));
            assert_false(gone[i] && retention_keeps_all(&r));
        }
        if (!r.last)
            continue;
        r.last++; /* a larger N keeps all that the smaller one keeps */
        retention_choose(&r, items, n, now, more);
        for (size_t i = 0; i < n; i++)
            assert_false(more[i] && !gone[i]);
    }
}

static void text_is_read_and_written(void **state)
{
    static const char *const right[][2] = {{"last=3 every=1000 for=24h", "last=3 every=1000 for=1d"},
                                           {"  for=90s  last=1 ", "last=1 for=90s"},
                                           {"for=60m", "for=1h"},
                                           {"for=14d", "for=2w"},
                                           {"every=9223372036854775807", "every=9223372036854775807"},
                                           {"all", "all"},
                                           {"", "all"}};
    static const char *const wrong[] = {
        "last",           "last=",      "last=0", "last=-1",          "last=4294967296",
        "last=3,every=2", "for=3",      "for=h",  "for=1y",           "every=9223372036854775808",
        "last=1 last=2",  "all last=1", "none",   "for=99999999999w", "last=1\n",
        "LAST=1"};
    struct cairn_error err = CAIRN_ERROR_INIT;
    char buf[RETENTION_TEXT], longest[200];
    struct retention r, again;

    (void)state;
    for (size_t i = 0; i < sizeof right / sizeof right[0]; i++) {
        r = rule(right[i][0]);
        retention_print(&r, buf);
        assert_string_equal(buf, right[i][1]);
        again = rule(buf);
        assert_memory_equal(&r, &again, sizeof r);
    }
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        if (retention_parse(wrong[i], &r, &err) != CAIRN_E_INVAL)
            fail_msg("\"%s\" was taken", wrong[i]);
        assert_true(err.message[0]);
    }
    memset(longest, ' ', sizeof longest);
    longest[sizeof longest - 1] = 0;
    assert_int_equal(retention_parse(longest, &r, &err), CAIRN_E_INVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_rule_keeps),
        cmocka_unit_test(some_are_never_chosen),
        cmocka_unit_test(random_sets),
        cmocka_unit_test(text_is_read_and_written),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
