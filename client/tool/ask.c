/* SPDX-License-Identifier: Apache-2.0 */
/* status, ls, show, verify: a question to the daemon, its JSON answer, tables of it. docs/json.md has the keys. */
#include "client/tool/text.h"
#include "client/tool/tool.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <stdio.h>
#include <string.h>

CAIRN_DEFINE_CLEANUP(json_t *, json_decref, answer_free)
#define _cleanup_answer_ CAIRN_CLEANUP(answer_free)
CAIRN_DEFINE_CLEANUP(struct table *, table_free, cleanup_table)
#define _cleanup_table_ CAIRN_CLEANUP(cleanup_table)

static int no_memory(const struct tool *t)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    cairn_fail(&err, CAIRN_E_NOMEM, "out of memory");
    return tool_fail(t, &err);
}

/* ---- status ---------------------------------------------------------------------------------- */

static void print_daemon(const json_t *a)
{
    const json_t *arena = json_object_get(a, "arena"), *peer = json_object_get(a, "peer"), *role;
    size_t i;

    printf("node %s, cairnd %s, up %s, roles", member_text(a, "node"), member_text(a, "version"),
           figure_ms(member_number(a, "uptime_ms")).text);
    json_array_foreach(json_object_get(a, "roles"), i, role) printf(" %s", json_string_value(role));
    printf("\narenas %s, %s not yet durable, at most %s\n", figure_bytes(member_number(arena, "bytes")).text,
           figure_bytes(member_number(arena, "used_bytes")).text,
           figure_bytes(member_number(arena, "limit_bytes")).text);
    if (json_is_object(peer))
        printf("peer %s, %s, %llu fragments (%s) stored, %llu read, %llu bad, %s free\n", member_text(peer, "id"),
               json_is_true(json_object_get(peer, "registered")) ? "registered" : "not registered",
               (unsigned long long)member_number(peer, "fragments_stored"),
               figure_bytes(member_number(peer, "bytes_stored")).text,
               (unsigned long long)member_number(peer, "fragments_read"),
               (unsigned long long)member_number(peer, "bad_fragments"),
               figure_bytes(member_number(peer, "free_bytes")).text);
}

static bool print_peers(const json_t *peers)
{
    _cleanup_table_ struct table *t = table_new("PEER STATE >FREE >TOTAL >SENT >READ >FAILURES LAST-ERROR");
    json_t *p;
    size_t i;

    if (!t)
        return false;
    json_array_foreach(peers, i, p)
    {
        uint64_t avoided = member_number(p, "avoided_ms");
        table_cell(t, "%s", member_text(p, "peer"));
        if (avoided)
            table_cell(t, "%s for %s", member_text(p, "state"), figure_ms(avoided).text);
        else
            table_cell(t, "%s", member_text(p, "state"));
        table_cell(t, "%s", figure_bytes(member_number(p, "free_bytes")).text);
        table_cell(t, "%s", figure_bytes(member_number(p, "total_bytes")).text);
        table_cell(t, "%llu", (unsigned long long)member_number(p, "fragments_sent"));
        table_cell(t, "%llu", (unsigned long long)member_number(p, "fragments_read"));
        table_cell(t, "%llu", (unsigned long long)member_number(p, "failures"));
        table_cell(t, "%s", member_text(p, "last_error"));
    }
    putchar('\n');
    table_print(t);
    return true;
}

static bool print_jobs(const json_t *jobs)
{
    _cleanup_table_ struct table *t = table_new("JOB >INC >RANKS >HERE >OPEN >COMMITTED >ABORTED >LATEST");
    json_t *j;
    size_t i;

    if (!t)
        return false;
    json_array_foreach(jobs, i, j)
    {
        table_cell(t, "%s", member_text(j, "job"));
        table_cell(t, "%llu", (unsigned long long)member_number(j, "incarnation"));
        table_cell(t, "%llu", (unsigned long long)member_number(j, "world_size"));
        table_cell(t, "%llu", (unsigned long long)member_number(j, "members"));
        table_cell(t, "%llu", (unsigned long long)member_number(j, "checkpoints_open"));
        table_cell(t, "%llu", (unsigned long long)member_number(j, "committed"));
        table_cell(t, "%llu", (unsigned long long)member_number(j, "aborted"));
        table_cell(t, "%llu", (unsigned long long)member_number(j, "last_committed_step"));
    }
    putchar('\n');
    table_print(t);
    return true;
}

static bool print_sessions(const json_t *sessions)
{
    _cleanup_table_ struct table *t = table_new("JOB >RANK >PID >INC >ARENA");
    json_t *s;
    size_t i;

    if (!t)
        return false;
    json_array_foreach(sessions, i, s)
    {
        table_cell(t, "%s", member_text(s, "job"));
        table_cell(t, "%llu", (unsigned long long)member_number(s, "rank"));
        table_cell(t, "%llu", (unsigned long long)member_number(s, "pid"));
        table_cell(t, "%llu", (unsigned long long)member_number(s, "incarnation"));
        table_cell(t, "%s", figure_bytes(member_number(s, "arena_bytes")).text);
    }
    putchar('\n');
    table_print(t);
    return true;
}

int tool_status(const struct tool *t)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    _cleanup_answer_ json_t *a = NULL;

    if (tool_ask(t, CAIRN_QUERY_STATUS, NULL, 0, TOOL_TIMEOUT_MS, &a, &err) < 0)
        return tool_fail(t, &err);
    if (t->json)
        return TOOL_DONE;
    print_daemon(a);
    bool ok = print_peers(json_object_get(a, "peers"));
    if (ok && json_array_size(json_object_get(a, "jobs")))
        ok = print_jobs(json_object_get(a, "jobs"));
    if (ok && json_array_size(json_object_get(a, "sessions")))
        ok = print_sessions(json_object_get(a, "sessions"));
    return ok ? TOOL_DONE : no_memory(t);
}

/* ---- ls -------------------------------------------------------------------------------------- */

static bool print_checkpoints(const json_t *list)
{
    _cleanup_table_ struct table *t = table_new(">STEP >INC STATE >RANKS >SIZE >STORED CREATED REASON");
    json_t *c;
    size_t i;

    if (!t)
        return false;
    json_array_foreach(list, i, c)
    {
        bool known = member_number(c, "created_unix_ms") != 0;
        table_cell(t, "%llu", (unsigned long long)member_number(c, "step"));
        table_cell(t, "%llu", (unsigned long long)member_number(c, "incarnation"));
        table_cell(t, "%s", member_text(c, "state"));
        table_cell(t, "%llu", (unsigned long long)member_number(c, "world_size"));
        table_cell(t, "%s", known ? figure_bytes(member_number(c, "plain_bytes")).text : "-");
        table_cell(t, "%s", known ? figure_bytes(member_number(c, "stored_bytes")).text : "-");
        table_cell(t, "%s", figure_time((int64_t)member_number(c, "created_unix_ms")).text);
        table_cell(t, "%s", member_text(c, "reason"));
    }
    table_print(t);
    return true;
}

int tool_ls(const struct tool *t)
{
    const char *job = t->nargs ? t->args[0] : NULL;
    struct cairn_error err = CAIRN_ERROR_INIT;
    _cleanup_answer_ json_t *a = NULL;
    json_t *name;
    size_t i;

    if (tool_ask(t, CAIRN_QUERY_LIST, job, 0, TOOL_TIMEOUT_MS, &a, &err) < 0)
        return tool_fail(t, &err);
    if (t->json)
        return TOOL_DONE;
    if (job)
        return print_checkpoints(json_object_get(a, "checkpoints")) ? TOOL_DONE : no_memory(t);
    json_array_foreach(json_object_get(a, "jobs"), i, name) puts(json_string_value(name));
    return TOOL_DONE;
}

/* ---- show ------------------------------------------------------------------------------------ */

static void print_checkpoint(const json_t *a)
{
    uint64_t plain = member_number(a, "plain_bytes"), stored = member_number(a, "stored_bytes");

    printf("job %s, step %llu, incarnation %llu, %llu ranks, committed %s\n", member_text(a, "job"),
           (unsigned long long)member_number(a, "step"), (unsigned long long)member_number(a, "incarnation"),
           (unsigned long long)member_number(a, "world_size"),
           figure_time((int64_t)member_number(a, "created_unix_ms")).text);
    printf("%s of tensors, %s stored", figure_bytes(plain).text, figure_bytes(stored).text);
    if (plain)
        printf(" (%.2f times, parity included)", (double)stored / (double)plain);
    putchar('\n');
}

static bool print_shards(const json_t *shards)
{
    _cleanup_table_ struct table *t = table_new(">RANK NODE >TENSORS >CHUNKS STRIPE >SIZE >ENCODED >STORED PEERS");
    json_t *s;
    size_t i;

    if (!t)
        return false;
    json_array_foreach(shards, i, s)
    {
        char peers[256] = "";
        size_t at = 0;
        const char *peer;
        json_t *n;
        table_cell(t, "%llu", (unsigned long long)member_number(s, "rank"));
        table_cell(t, "%s", member_text(s, "node"));
        table_cell(t, "%llu", (unsigned long long)member_number(s, "tensors"));
        table_cell(t, "%llu", (unsigned long long)member_number(s, "chunks"));
        table_cell(t, "%s", member_text(s, "geometry"));
        table_cell(t, "%s", figure_bytes(member_number(s, "plain_bytes")).text);
        table_cell(t, "%s", figure_bytes(member_number(json_object_get(s, "coding"), "coded_bytes")).text);
        table_cell(t, "%s", figure_bytes(member_number(s, "stored_bytes")).text);
        json_object_foreach(json_object_get(s, "peers"), peer, n)
        {
            int len = snprintf(peers + at, sizeof peers - at, "%s%s:%lld", at ? " " : "", peer,
                               (long long)json_integer_value(n));
            at = len > 0 && at + (size_t)len < sizeof peers ? at + (size_t)len : at;
        }
        table_cell(t, "%s", peers);
    }
    putchar('\n');
    table_print(t);
    return true;
}

static bool print_tensors(const json_t *tensors)
{
    _cleanup_table_ struct table *t = table_new("TENSOR DTYPE SHAPE >SLICES");
    json_t *x;
    size_t i;

    if (!t)
        return false;
    json_array_foreach(tensors, i, x)
    {
        table_cell(t, "%s", member_text(x, "name"));
        table_cell(t, "%s", member_text(x, "dtype"));
        table_cell(t, "%s", figure_dims(json_object_get(x, "shape")).text);
        table_cell(t, "%zu", json_array_size(json_object_get(x, "slices")));
    }
    putchar('\n');
    table_print(t);
    return true;
}

int tool_show(const struct tool *t)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    _cleanup_answer_ json_t *a = NULL;
    uint64_t step;

    if (tool_parse_step(t->nargs > 1 ? t->args[1] : NULL, &step, &err) < 0) {
        tool_fail(t, &err);
        return TOOL_USAGE;
    }
    if (tool_ask(t, CAIRN_QUERY_SHOW, t->args[0], step, TOOL_TIMEOUT_MS, &a, &err) < 0)
        return tool_fail(t, &err);
    if (t->json)
        return TOOL_DONE;
    print_checkpoint(a);
    bool ok = print_shards(json_object_get(a, "shards")) && print_tensors(json_object_get(a, "tensors"));
    return ok ? TOOL_DONE : no_memory(t);
}

/* ---- verify ---------------------------------------------------------------------------------- */

static bool print_bad(const json_t *bad)
{
    _cleanup_table_ struct table *t = table_new("PEER >RANK >PART >FRAGMENT ERROR");
    json_t *b;
    size_t i;

    if (!t)
        return false;
    json_array_foreach(bad, i, b)
    {
        table_cell(t, "%s", member_text(b, "peer"));
        table_cell(t, "%llu", (unsigned long long)member_number(b, "rank"));
        table_cell(t, "%llu", (unsigned long long)member_number(b, "first_part"));
        table_cell(t, "%llu", (unsigned long long)member_number(b, "fragment"));
        table_cell(t, "%s", member_text(b, "error"));
    }
    putchar('\n');
    table_print(t);
    return true;
}

static void print_verdict(const json_t *a, uint64_t bad)
{
    printf("job %s, step %llu: %llu fragments, %llu ok, %llu missing, %llu corrupt\n", member_text(a, "job"),
           (unsigned long long)member_number(a, "step"), (unsigned long long)member_number(a, "fragments"),
           (unsigned long long)member_number(a, "ok"), (unsigned long long)member_number(a, "missing"),
           (unsigned long long)member_number(a, "corrupt"));
    if (bad)
        puts(json_is_true(json_object_get(a, "repairable"))
                 ? "What is bad can be rebuilt from parity: the checkpoint can be restored."
                 : "Too much is bad: the checkpoint cannot be restored whole.");
}

int tool_verify(const struct tool *t)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    _cleanup_answer_ json_t *a = NULL;
    uint64_t step;

    if (tool_parse_step(t->nargs > 1 ? t->args[1] : NULL, &step, &err) < 0) {
        tool_fail(t, &err);
        return TOOL_USAGE;
    }
    if (tool_ask(t, CAIRN_QUERY_VERIFY, t->args[0], step, TOOL_LONG_TIMEOUT_MS, &a, &err) < 0)
        return tool_fail(t, &err);
    uint64_t bad = member_number(a, "missing") + member_number(a, "corrupt");
    if (!t->json) {
        print_verdict(a, bad);
        if (bad && !print_bad(json_object_get(a, "bad")))
            return no_memory(t);
    }
    return bad ? TOOL_CORRUPT : TOOL_DONE;
}
