/* SPDX-License-Identifier: Apache-2.0 */
#include "client/tool/watch_rules.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/name.h"

#include <errno.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Who writes what last, by the frameworks' own code:
 * - transformers: rank 0 writes trainer_state.json behind everything else that it writes; other ranks may still be
 *   writing their rng_state_N.pth then, for which nobody waits: hence the settling.
 * - DeepSpeed: global rank 0 writes "latest" behind its own files, before it waits for the other ranks.
 * - Megatron: rank 0 writes the tracker when all ranks are done.
 * - Orbax: a directory 500.orbax-checkpoint-tmp-N is renamed to 500.
 * - torch.distributed.checkpoint: .metadata is renamed into its place when every rank has written. */
static const struct watch_rule presets[] = {
    {"hf", "checkpoint-*", WATCH_FILE, "trainer_state.json", "global_step", 2000},
    {"deepspeed", "global_step*", WATCH_TRACKER, "latest", NULL, 5000},
    {"megatron", "iter_*", WATCH_TRACKER, "latest_checkpointed_iteration.txt", NULL, 0},
    {"orbax", "*", WATCH_RENAME, NULL, NULL, 0},
    {"dcp", "**", WATCH_FILE, ".metadata", NULL, 0},
};
#define NPRESETS (sizeof presets / sizeof presets[0])

const struct watch_rule *watch_preset(const char *like)
{
    for (size_t i = 0; i < NPRESETS; i++)
        if (strcmp(presets[i].like, like) == 0)
            return &presets[i];
    return NULL;
}

const char *watch_presets(void)
{
    return "hf, deepspeed, megatron, orbax or dcp";
}

/* ---- names ----------------------------------------------------------------------------------- */

#define MAX_DIGITS 20

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

int watch_pattern_check(const char *pattern, struct cairn_error *err)
{
    if (!strchr(pattern, '*'))
        return cairn_fail(err, CAIRN_E_INVAL, "the pattern \"%s\" has no \"*\": the last one stands for the step",
                          pattern);
    if (strchr(pattern, '/') || strlen(pattern) > 255)
        return cairn_fail(err, CAIRN_E_INVAL,
                          "the pattern \"%s\" is of names in the directory: no \"/\", at most 255 bytes", pattern);
    return 0;
}

/* The digits from begin to end are the step; before and behind them the rest of the pattern. */
static bool matches_around(const char *pattern, const char *star, const char *name, size_t begin, size_t end)
{
    char before[256], head[256];

    snprintf(before, sizeof before, "%.*s", (int)(star - pattern), pattern);
    snprintf(head, sizeof head, "%.*s", (int)begin, name);
    return fnmatch(before, head, FNM_PERIOD) == 0 && fnmatch(star + 1, name + end, 0) == 0;
}

static bool read_step(const char *digits, size_t len, uint64_t *ret_step)
{
    char text[MAX_DIGITS + 1];

    if (len == 0 || len > MAX_DIGITS)
        return false;
    memcpy(text, digits, len);
    text[len] = '\0';
    errno = 0;
    uint64_t step = strtoull(text, NULL, 10);
    if (errno || step == CAIRN_LATEST)
        return false;
    *ret_step = step;
    return true;
}

bool watch_step_of(const char *pattern, const char *name, uint64_t *ret_step)
{
    const char *star = strrchr(pattern, '*');
    size_t len = strlen(name);

    if (!star || len > 255 || strlen(pattern) > 255)
        return false;
    for (size_t end = len; end > 0; end--) { /* the rightmost run of digits that fits */
        size_t begin = end;
        if (!is_digit(name[end - 1]) || is_digit(name[end]))
            continue;
        while (begin > 0 && is_digit(name[begin - 1]))
            begin--;
        if (matches_around(pattern, star, name, begin, end) && read_step(name + begin, end - begin, ret_step))
            return true;
    }
    return false;
}

/* ---- markers --------------------------------------------------------------------------------- */

/* A tracker has the directory's name or the step's number; text that is still being written is another one. */
static bool tracker_says(const char *text, size_t len, const char *name, uint64_t step)
{
    uint64_t number;

    while (len > 0 && (text[len - 1] == '\n' || text[len - 1] == '\r' || text[len - 1] == ' '))
        len--;
    if (len == strlen(name) && memcmp(text, name, len) == 0)
        return true;
    for (size_t i = 0; i < len; i++)
        if (!is_digit(text[i]))
            return false;
    return read_step(text, len, &number) && number == step;
}

/* Where a string of JSON that begins at text[at] ends: behind its quote, or at len. */
static size_t skip_string(const char *text, size_t len, size_t at)
{
    for (at++; at < len && text[at] != '"'; at++)
        at += text[at] == '\\';
    return at < len ? at + 1 : len;
}

static size_t skip_space(const char *text, size_t len, size_t at)
{
    while (at < len && strchr(" \n\r\t", text[at]) && text[at])
        at++;
    return at;
}

/* The member's number, when the string that ends at text[at] is its name. */
static bool member_says(const char *text, size_t len, size_t at, uint64_t step)
{
    uint64_t number;
    size_t begin = skip_space(text, len, at), end;

    if (begin >= len || text[begin] != ':')
        return false;
    begin = end = skip_space(text, len, begin + 1);
    while (end < len && is_digit(text[end]))
        end++;
    if (end >= len || !strchr(",} \n\r\t", text[end]) || !text[end])
        return false;
    return read_step(text + begin, end - begin, &number) && number == step;
}

/* Whether a JSON object is there to its end and has the member at its top. Python writes NaN and Infinity, which are no
 * JSON and which a strict parser would wait for to go away: so brackets are counted, no more. */
static bool object_says(const char *text, size_t len, const char *member, uint64_t step)
{
    size_t at = skip_space(text, len, 0), depth = 0, name_len = strlen(member);
    bool says = false;

    if (at >= len || text[at] != '{')
        return false;
    while (at < len) {
        size_t begin = at;
        char c = text[at++];
        depth += c == '{' || c == '[';
        depth -= c == '}' || c == ']';
        if (c == '"') {
            at = skip_string(text, len, begin);
            if (depth == 1 && at - begin == name_len + 2 && memcmp(text + begin + 1, member, name_len) == 0)
                says |= member_says(text, len, at, step);
        }
        if (depth == 0)
            return says && skip_space(text, len, at) == len;
    }
    return false;
}

bool watch_marker_says(const struct watch_rule *rule, const char *text, size_t len, const char *name, uint64_t step)
{
    if (rule->marker == WATCH_TRACKER)
        return tracker_says(text, len, name, step);
    return !rule->step_in || object_says(text, len, rule->step_in, step);
}

/* ---- fates ----------------------------------------------------------------------------------- */

bool watch_is_settled(const struct watch_rule *rule, const struct watch_step *s, int64_t now_ms)
{
    return now_ms - s->same_since_ms >= rule->settle_ms;
}

bool watch_is_ready(const struct watch_rule *rule, const struct watch_step *s, int64_t now_ms)
{
    return s->there && s->marked && watch_is_settled(rule, s, now_ms);
}

enum watch_fate watch_fate_of(uint64_t step, const struct watch_record *records, size_t n, uint64_t latest,
                              uint64_t ours)
{
    enum watch_fate fate = WATCH_PENDING;

    for (size_t i = 0; i < n; i++) {
        if (records[i].step != step)
            continue;
        if (records[i].state == WATCH_RECORD_COMMITTED)
            return WATCH_COMMITTED;
        if (records[i].state == WATCH_RECORD_UNDECIDED && ours != WATCH_ANY && records[i].incarnation != ours)
            fate = WATCH_ELSEWHERE;
    }
    return latest != CAIRN_LATEST && latest > step ? WATCH_PASSED : fate;
}

int watch_start_id(const char *base, const struct watch_record *records, size_t n, char ret_id[CAIRN_MAX_NAME + 1],
                   struct cairn_error *err)
{
    uint64_t given_up = 0;
    int len;

    for (size_t i = 0; i < n; i++)
        if (records[i].state == WATCH_RECORD_ABORTED && records[i].incarnation > given_up)
            given_up = records[i].incarnation;
    len = given_up ? snprintf(ret_id, CAIRN_MAX_NAME + 1, "%s-%" PRIu64, base, given_up)
                   : snprintf(ret_id, CAIRN_MAX_NAME + 1, "%s", base);
    if (len > CAIRN_MAX_NAME)
        return cairn_fail(err, CAIRN_E_INVAL, "the start id \"%s\" is too long: at most %d bytes are good", base,
                          CAIRN_MAX_NAME - 21);
    return cairn_name_check("start id", ret_id, err);
}

/* ---- what next ------------------------------------------------------------------------------- */

static void wake_at(struct watch_next *next, int64_t at_ms)
{
    if (at_ms < next->wake_ms)
        next->wake_ms = at_ms;
}

struct watch_next watch_choose(const struct watch_rule *rule, const struct watch_step *steps, size_t n, int64_t now_ms)
{
    struct watch_next next = {.take = -1, .wake_ms = INT64_MAX, .idle = true};

    for (size_t i = 0; i < n; i++) {
        const struct watch_step *s = &steps[i];
        if (!s->there || s->fate == WATCH_COMMITTED || s->fate == WATCH_PASSED || !s->marked || s->given_up)
            continue;
        if (!watch_is_settled(rule, s, now_ms)) {
            wake_at(&next, s->same_since_ms + rule->settle_ms);
            next.idle = false;
            return next; /* the ones behind it wait */
        }
        if (s->fate == WATCH_ELSEWHERE || now_ms < s->not_before_ms) {
            wake_at(&next, s->fate == WATCH_ELSEWHERE ? now_ms + watch_backoff_ms(1) : s->not_before_ms);
            next.idle = false;
            if (s->failures < WATCH_PATIENCE)
                return next;
            continue;
        }
        next.take = (int)i;
        next.idle = false;
        return next;
    }
    return next;
}

int64_t watch_backoff_ms(unsigned tries)
{
    return tries >= 7 ? 60000 : 500LL << tries; /* 1 s, 2, 4 ... 32, then every minute */
}

int watch_expired(const struct watch_step *steps, size_t n, uint64_t keep)
{
    uint64_t committed = 0;
    int oldest = -1;

    for (size_t i = n; i-- > 0 && keep > 0;) {
        if (!steps[i].there || steps[i].fate != WATCH_COMMITTED)
            continue;
        committed++;
        if (committed > keep && !steps[i].stays)
            oldest = (int)i;
    }
    return oldest;
}
