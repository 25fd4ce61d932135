/* SPDX-License-Identifier: Apache-2.0 */
/* Commands that say what is kept: pin, unpin, delete, retain. */
#include "client/tool/tool.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int command(const struct tool *t, int kind, const char *job, uint64_t step, const char *argument,
                   json_t **ret_answer)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_session *session;
    _cleanup_free_ char *text = NULL;
    json_error_t why;

    *ret_answer = NULL;
    if (tool_open(t, job, &session, &err) < 0)
        return tool_fail_open(t, &err);
    int r = cairn_command(session, kind, job, step, argument, tool_timeout(t, TOOL_SHORT_MS), &text, &err);
    cairn_session_close(session);
    if (r < 0)
        return tool_fail(t, t->argv[0], &err);
    *ret_answer = json_loads(text, JSON_REJECT_DUPLICATES, &why);
    if (t->json)
        puts(text);
    if (*ret_answer)
        return EXIT_OK;
    fprintf(stderr, "cairn: the daemon's answer is no JSON: %s\n", why.text);
    return EXIT_FAILED;
}

static int change_step(struct tool *t, int kind, bool labelled, const char *says)
{
    uint64_t step;
    json_t *a;

    if (t->argc < 3 || t->argc > (labelled ? 4 : 3) || tool_parse_step(t->argv[2], &step) < 0)
        return EXIT_USAGE;
    if (step == CAIRN_LATEST_FINITE && kind != CAIRN_COMMAND_PIN) { /* what it means changes with the next save */
        fprintf(stderr, "cairn: latest-finite is not taken here: give the step that cairn ls or cairn show names\n");
        return EXIT_USAGE;
    }
    int r = command(t, kind, t->argv[1], step, t->argc > 3 ? t->argv[3] : NULL, &a);
    if (r == EXIT_OK && !t->json)
        printf("job %s, step %lld, incarnation %lld: %s%s%s\n", tool_text(a, "job"), (long long)tool_number(a, "step"),
               (long long)tool_number(a, "incarnation"), says, labelled ? " " : "",
               labelled ? tool_text(a, "label") : "");
    json_decref(a);
    return r;
}

int cmd_pin(struct tool *t)
{
    return change_step(t, CAIRN_COMMAND_PIN, true, "held by");
}

int cmd_unpin(struct tool *t)
{
    return change_step(t, CAIRN_COMMAND_UNPIN, true, "not held any more by");
}

int cmd_delete(struct tool *t)
{
    return change_step(t, CAIRN_COMMAND_DELETE, false, "deleted; its files go now");
}

/* "last=3 every=1000" may come as one word or as several. */
int cmd_retain(struct tool *t)
{
    char rule[CAIRN_COMMAND_TEXT] = "";
    json_t *a;

    if (t->argc < 3)
        return EXIT_USAGE;
    for (int i = 2; i < t->argc; i++) {
        size_t at = strlen(rule);
        if (snprintf(rule + at, sizeof rule - at, "%s%s", at ? " " : "", t->argv[i]) >= (int)(sizeof rule - at)) {
            fprintf(stderr, "cairn: a rule of more than %zu bytes\n", sizeof rule - 1);
            return EXIT_USAGE;
        }
    }
    int r = command(t, CAIRN_COMMAND_RETAIN, t->argv[1], 0, rule, &a);
    if (r == EXIT_OK && !t->json)
        printf("job %s keeps %s\n", tool_text(a, "job"), tool_text(a, "retention"));
    json_decref(a);
    return r;
}
