/* SPDX-License-Identifier: Apache-2.0 */
#include "client/tool/watch_internal.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <stdlib.h>
#include <string.h>

#define ASK_MS 10000

CAIRN_DEFINE_CLEANUP(json_t *, json_decref, drop_json)
#define _cleanup_json_ CAIRN_CLEANUP(drop_json)

static int ask(const struct watch *w, json_t **ret_answer, struct cairn_error *err)
{
    _cleanup_free_ char *text = NULL;
    struct cairn_session *session;
    struct tool t = w->o->tool;
    json_error_t why;

    t.timeout_ms = ASK_MS;
    int r = tool_open(&t, w->o->job, &session, err);
    if (r < 0)
        return r;
    r = cairn_query(session, CAIRN_QUERY_LIST, w->o->job, 0, ASK_MS, &text, err);
    cairn_session_close(session);
    if (r < 0)
        return r;
    *ret_answer = json_loads(text, JSON_REJECT_DUPLICATES, &why);
    return *ret_answer ? 0 : cairn_fail(err, CAIRN_E_PROTOCOL, "the daemon's list is no JSON: %s", why.text);
}

static enum watch_record_state state_of(const json_t *o)
{
    const char *text = json_string_value(json_object_get(o, "state"));

    if (text && strcmp(text, "committed") == 0)
        return WATCH_RECORD_COMMITTED;
    return text && strcmp(text, "aborted") == 0 ? WATCH_RECORD_ABORTED : WATCH_RECORD_UNDECIDED;
}

static int read_records(struct watch *w, const json_t *list, struct cairn_error *err)
{
    size_t n = json_array_size(list);
    struct watch_record *records = calloc(n + 1, sizeof *records);

    if (!records)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a list of %zu checkpoints", n);
    for (size_t i = 0; i < n; i++) {
        const json_t *o = json_array_get(list, i);
        records[i] = (struct watch_record){.step = (uint64_t)tool_number(o, "step"),
                                           .incarnation = (uint64_t)tool_number(o, "incarnation"),
                                           .state = state_of(o)};
    }
    free(w->records);
    w->records = records;
    w->nrecords = n;
    return 0;
}

/* What is told once about a step that is not saved. */
static void tell(struct watch *w, struct watch_step *s)
{
    if (s->told || !s->marked || s->fate == WATCH_PENDING)
        return;
    s->told = true;
    if (s->fate == WATCH_COMMITTED)
        watch_log(w, "known",
                  json_pack("{s:I, s:s, s:s}", "step", (json_int_t)s->step, "directory", s->name, "because",
                            "the job has this step"));
    else if (s->fate == WATCH_PASSED)
        watch_log(w, "passed",
                  json_pack("{s:I, s:s, s:s, s:I}", "step", (json_int_t)s->step, "directory", s->name, "because",
                            "a later step is committed", "latest", (json_int_t)w->latest));
    else
        watch_log(w, "elsewhere",
                  json_pack("{s:I, s:s, s:s}", "step", (json_int_t)s->step, "directory", s->name, "because",
                            "another start of the job saves this step"));
}

int watch_list(struct watch *w, struct cairn_error *err)
{
    _cleanup_json_ json_t *answer = NULL;
    int r = ask(w, &answer, err);

    if (r == CAIRN_E_NOT_FOUND) { /* the job has never saved */
        w->nrecords = 0;
        w->latest = CAIRN_LATEST;
    } else {
        if (r == 0)
            r = read_records(w, json_object_get(answer, "checkpoints"), err);
        if (r < 0)
            return r;
        const json_t *latest = json_object_get(answer, "latest");
        w->latest = json_is_integer(latest) ? (uint64_t)json_integer_value(latest) : CAIRN_LATEST;
    }
    uint64_t ours = taker_incarnation(&w->taker);
    if (ours == 0 && w->o->world > 1)
        ours = WATCH_ANY;
    for (size_t i = 0; i < w->nsteps; i++) {
        struct watch_step *s = &w->steps[i];
        enum watch_fate before = s->fate;
        s->fate = watch_fate_of(s->step, w->records, w->nrecords, w->latest, ours);
        s->told &= s->fate == before;
        tell(w, s);
    }
    return 0;
}
