/* SPDX-License-Identifier: Apache-2.0 */
#include "core/checkpoint/retention.h"

#include "core/base/error.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* ---- the text -------------------------------------------------------------------------------- */

struct unit {
    char name;
    uint64_t ms;
};
static const struct unit units[] = {
    {'w', 7 * 86400000ull}, {'d', 86400000ull}, {'h', 3600000ull}, {'m', 60000ull}, {'s', 1000ull}}; /* largest first */
#define NUNITS (sizeof units / sizeof units[0])

/* Digits at the start of s, from 1 up to max; 0 when there are none or too many. */
static uint64_t take_number(const char **s, uint64_t max)
{
    uint64_t v = 0;

    for (; **s >= '0' && **s <= '9'; (*s)++) {
        if (v > (max - (uint64_t)(**s - '0')) / 10)
            return 0;
        v = v * 10 + (uint64_t)(**s - '0');
    }
    return v;
}

static uint64_t take_unit(const char **s)
{
    for (size_t i = 0; i < NUNITS; i++)
        if (**s == units[i].name) {
            (*s)++;
            return units[i].ms;
        }
    return 0;
}

static bool is_end(const char *s)
{
    return !*s || *s == ' ';
}

/* One word; *s stands behind it when it is right. */
static bool take_word(const char **s, struct retention *r, bool *all)
{
    const char *at = *s;

    if (strncmp(at, "all", 3) == 0 && is_end(at + 3)) {
        *s = at + 3;
        *all = true;
        return true;
    }
    if (strncmp(at, "last=", 5) == 0 && !r->last) {
        *s = at + 5;
        r->last = (uint32_t)take_number(s, UINT32_MAX);
        return r->last && is_end(*s);
    }
    if (strncmp(at, "every=", 6) == 0 && !r->every) {
        *s = at + 6;
        r->every = take_number(s, INT64_MAX);
        return r->every && is_end(*s);
    }
    if (strncmp(at, "for=", 4) == 0 && !r->for_ms) {
        *s = at + 4;
        uint64_t v = take_number(s, 1000000000); /* times a week stays within 64 bits */
        r->for_ms = v * take_unit(s);
        return r->for_ms && is_end(*s);
    }
    return false;
}

int retention_parse(const char *text, struct retention *ret, struct cairn_error *err)
{
    struct retention r = {.last = 0};
    const char *s = text;
    bool all = false;
    int len = 0;

    if (strlen(text) >= RETENTION_TEXT)
        return cairn_fail(err, CAIRN_E_INVAL, "a retention rule of %zu bytes: at most %d are allowed", strlen(text),
                          RETENTION_TEXT - 1);
    for (; *s; s += *s == ' ') {
        const char *word = s;
        if (*s == ' ' || take_word(&s, &r, &all))
            continue;
        for (len = 0; !is_end(word + len);)
            len++;
        return cairn_fail(err, CAIRN_E_INVAL,
                          "\"%.*s\" in a retention rule: last=N, every=STEPS, for=TIME (90s, 30m, 24h, 7d, 2w), each "
                          "once, or all are wanted",
                          len, word);
    }
    if (all && !retention_keeps_all(&r))
        return cairn_fail(err, CAIRN_E_INVAL, "a retention rule says all and something else");
    *ret = r;
    return 0;
}

bool retention_keeps_all(const struct retention *r)
{
    return !r->last && !r->every && !r->for_ms;
}

static void print_for(uint64_t ms, char *buf, size_t room)
{
    for (size_t i = 0; i < NUNITS; i++)
        if (ms % units[i].ms == 0) {
            snprintf(buf, room, "for=%" PRIu64 "%c", ms / units[i].ms, units[i].name);
            return;
        }
}

void retention_print(const struct retention *r, char buf[RETENTION_TEXT])
{
    char last[32] = "", every[32] = "", time[32] = "";

    if (r->last)
        snprintf(last, sizeof last, "last=%" PRIu32, r->last);
    if (r->every)
        snprintf(every, sizeof every, "every=%" PRIu64, r->every);
    if (r->for_ms)
        print_for(r->for_ms, time, sizeof time);
    snprintf(buf, RETENTION_TEXT, "%s%s%s%s%s", last, last[0] && every[0] ? " " : "", every,
             (last[0] || every[0]) && time[0] ? " " : "", time);
    if (!buf[0])
        snprintf(buf, RETENTION_TEXT, "all");
}

/* ---- the choice ------------------------------------------------------------------------------ */

static bool is_newer(const struct retention_item *a, const struct retention_item *b)
{
    return a->incarnation != b->incarnation ? a->incarnation > b->incarnation : a->step > b->step;
}

/* How many committed ones are newer, counted up to enough; and the next newer one. */
static size_t count_newer(const struct retention_item *items, size_t n, size_t at, size_t enough,
                          const struct retention_item **ret_next)
{
    const struct retention_item *next = NULL;
    size_t newer = 0;

    for (size_t i = 0; i < n; i++) {
        if (!items[i].committed || !is_newer(&items[i], &items[at]))
            continue;
        newer += newer < enough;
        if (!next || is_newer(next, &items[i]))
            next = &items[i];
    }
    *ret_next = next;
    return newer;
}

static bool is_young(const struct retention *r, const struct retention_item *item, uint64_t now_unix_ms)
{
    return r->for_ms && (item->created_unix_ms > now_unix_ms || now_unix_ms - item->created_unix_ms < r->for_ms);
}

static bool is_kept(const struct retention *r, const struct retention_item *items, size_t n, size_t at,
                    uint64_t now_unix_ms)
{
    const struct retention_item *item = &items[at], *next;

    if (!item->committed || item->held || is_young(r, item, now_unix_ms))
        return true;
    if (r->every && item->step % r->every == 0)
        return true;
    size_t newer = count_newer(items, n, at, r->last ? r->last : 1, &next);
    return newer == 0 || newer < r->last || !next->full;
}

bool retention_is_base(const struct retention_item *items, size_t n, size_t at, size_t *ret_of)
{
#ifdef CAIRN_BUG_DELETES_BASE
    n = 0;
#endif
    for (size_t i = 0; i < n; i++)
        if (items[i].lives && items[i].has_base && items[i].base_step == items[at].step &&
            items[i].base_incarnation == items[at].incarnation) {
            *ret_of = i;
            return true;
        }
    return false;
}

size_t retention_choose(const struct retention *r, const struct retention_item *items, size_t n, uint64_t now_unix_ms,
                        bool *ret_delete)
{
    size_t chosen = 0;

    for (size_t i = 0; i < n; i++) {
        size_t of;
        ret_delete[i] =
            !retention_keeps_all(r) && !is_kept(r, items, n, i, now_unix_ms) && !retention_is_base(items, n, i, &of);
        chosen += ret_delete[i];
    }
    return chosen;
}
