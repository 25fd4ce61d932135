/* SPDX-License-Identifier: Apache-2.0 */
/* Commands that ask the daemon and print its answer: status, ls, show, verify. */
#include "client/tool/tool.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define EACH(array_, o_) \
    size_t i_;           \
    json_t *o_;          \
    json_array_foreach(array_, i_, o_)

/* ---- status ---------------------------------------------------------------------------------- */

static void print_peers(const json_t *peers)
{
    char total[32], left[32];

    if (json_array_size(peers) == 0) {
        puts("no storage peer is registered");
        return;
    }
    printf("%-16s %-10s %12s %12s %10s %8s  %s\n", "PEER", "STATE", "FREE", "SIZE", "SENT", "FAILED", "LAST ERROR");
    EACH(peers, p)
    {
        printf("%-16s %-10s %12s %12s %10lld %8lld  %s\n", tool_text(p, "peer"), tool_text(p, "state"),
               tool_size(tool_number(p, "free_bytes"), left), tool_size(tool_number(p, "total_bytes"), total),
               (long long)tool_number(p, "fragments_sent"), (long long)tool_number(p, "failures"),
               tool_text(p, "last_error"));
    }
}

static void print_jobs(const json_t *jobs)
{
    if (json_array_size(jobs) == 0)
        return;
    printf("\n%-24s %12s %8s %8s %8s %10s %8s %12s\n", "JOB", "INCARNATION", "WORLD", "RANKS", "OPEN", "COMMITTED",
           "ABORTED", "LAST STEP");
    EACH(jobs, j)
    {
        printf("%-24s %12lld %8lld %8lld %8lld %10lld %8lld %12lld\n", tool_text(j, "job"),
               (long long)tool_number(j, "incarnation"), (long long)tool_number(j, "world_size"),
               (long long)tool_number(j, "members"), (long long)tool_number(j, "checkpoints_open"),
               (long long)tool_number(j, "committed"), (long long)tool_number(j, "aborted"),
               (long long)tool_number(j, "last_committed_step"));
    }
}

/* What goes nowhere, and what went before the snapshot was complete; empty for most. */
static const char *flush_notes(const json_t *f, char *buf, size_t len)
{
    long long shared = (long long)tool_number(f, "shared_parts"), early = (long long)tool_number(f, "early_parts");
    int n = 0;

    buf[0] = 0;
    if (shared)
        n = snprintf(buf, len, "; %lld MiB did not change", shared);
    if (early)
        snprintf(buf + n, len - (size_t)n, "; %lld MiB while it was copied", early);
    return buf;
}

/* A flush that takes its time says so: nobody should take it for one that is stuck. */
static void print_flushes(const json_t *flushes)
{
    char pace[128], notes[96];

    if (json_array_size(flushes) == 0)
        return;
    printf("\n%-24s %12s %8s %10s  %s\n", "SAVING", "STEP", "RANK", "DURABLE", "PACE");
    EACH(flushes, f)
    {
        double plan_s = (double)tool_number(f, "plan_ms") / 1e3, ahead_s = (double)tool_number(f, "ahead_ms") / 1e3;
        long long parts = (long long)tool_number(f, "parts");
        if (json_is_true(json_object_get(f, "paced")))
            snprintf(pace, sizeof pace, "paced: %.0f%% of %.1f s, %.1f s %s of plan",
                     plan_s > 0 ? (double)tool_number(f, "elapsed_ms") / 10 / plan_s : 100, plan_s,
                     ahead_s < 0 ? -ahead_s : ahead_s, ahead_s < 0 ? "behind" : "ahead");
        else
            snprintf(pace, sizeof pace, "full speed: %s", tool_text(f, "full_speed_because"));
        printf("%-24s %12lld %8lld %9lld%%  %s%s\n", tool_text(f, "job"), (long long)tool_number(f, "step"),
               (long long)tool_number(f, "rank"),
               parts ? 100 * (long long)tool_number(f, "durable_parts") / parts : 100, pace,
               flush_notes(f, notes, sizeof notes));
    }
}

int cmd_status(struct tool *t)
{
    char used[32], bytes[32], limit[32];
    json_t *a;

    if (t->argc != 1)
        return EXIT_USAGE;
    int r = tool_query(t, CAIRN_QUERY_STATUS, NULL, 0, &a);
    if (r == EXIT_OK && !t->json) {
        const json_t *arena = json_object_get(a, "arena");
        printf("cairnd %s on node %s, up %lld s; arenas %s (%s in use) of %s\n\n", tool_text(a, "version"),
               tool_text(a, "node"), (long long)tool_number(a, "uptime_ms") / 1000,
               tool_size(tool_number(arena, "bytes"), bytes), tool_size(tool_number(arena, "used_bytes"), used),
               tool_size(tool_number(arena, "limit_bytes"), limit));
        print_peers(json_object_get(a, "peers"));
        print_jobs(json_object_get(a, "jobs"));
        print_flushes(json_object_get(a, "flushes"));
    }
    json_decref(a);
    return r;
}

/* ---- ls -------------------------------------------------------------------------------------- */

static void print_checkpoint(json_t *k)
{
    time_t when = (time_t)(tool_number(k, "created_unix_ms") / 1000);
    char plain[32], stored[32], at[32] = "-", held[48] = "-";
    long long pins = tool_number(k, "pins"), readers = tool_number(k, "readers");
    bool resume = json_is_true(json_object_get(k, "resume"));

    if (pins || readers || resume)
        snprintf(held, sizeof held, "%s%s%s", pins ? "P" : "", readers ? "R" : "", resume ? "S" : "");

    if (when)
        strftime(at, sizeof at, "%Y-%m-%d %H:%M:%S", localtime(&when));
    printf("%12lld %12lld %-10s %6lld %12s %12s  %-19s %-4s  %s\n", (long long)tool_number(k, "step"),
           (long long)tool_number(k, "incarnation"), tool_text(k, "state"), (long long)tool_number(k, "world_size"),
           tool_size(tool_number(k, "plain_bytes"), plain), tool_size(tool_number(k, "stored_bytes"), stored), at, held,
           tool_text(k, "reason"));
}

static void print_keeping(json_t *a)
{
    printf("\nkeeps %s", tool_text(a, "retention"));
    if (json_array_size(json_object_get(a, "deleting")) > 0)
        printf("; files of %zu deleted checkpoints still go", json_array_size(json_object_get(a, "deleting")));
    puts("");
}

int cmd_ls(struct tool *t)
{
    const char *job = t->argc > 1 ? t->argv[1] : NULL;
    json_t *a;

    if (t->argc > 2)
        return EXIT_USAGE;
    int r = tool_query(t, CAIRN_QUERY_LIST, job, 0, &a);
    bool none = r == EXIT_OK && job && json_array_size(json_object_get(a, "checkpoints")) == 0;
    if (r == EXIT_OK && !t->json && !job) {
        EACH(json_object_get(a, "jobs"), name)
        {
            puts(json_string_value(name));
        }
    } else if (r == EXIT_OK && !t->json && !none) {
        printf("%12s %12s %-10s %6s %12s %12s  %-19s %-4s  %s\n", "STEP", "INCARNATION", "STATE", "WORLD", "SIZE",
               "STORED", "COMMITTED AT", "HELD", "REASON");
        EACH(json_object_get(a, "checkpoints"), k)
        {
            print_checkpoint(k);
        }
        print_keeping(a);
    }
    if (none) {
        fprintf(stderr, "cairn: ls: no checkpoint of a job %s is known: \"cairn ls\" names the jobs\n", job);
        r = EXIT_NOT_FOUND;
    }
    json_decref(a);
    return r;
}

/* ---- show ------------------------------------------------------------------------------------ */

static void print_shards(const json_t *shards)
{
    char plain[32], stored[32];

    printf("%6s %-16s %12s %12s %8s %8s %9s  %s\n", "RANK", "NODE", "SIZE", "STORED", "TENSORS", "CHUNKS", "GEOMETRY",
           "FRAGMENTS ON PEERS");
    EACH(shards, s)
    {
        const char *peer;
        json_t *n;
        printf("%6lld %-16s %12s %12s %8lld %8lld %9s ", (long long)tool_number(s, "rank"), tool_text(s, "node"),
               tool_size(tool_number(s, "plain_bytes"), plain), tool_size(tool_number(s, "stored_bytes"), stored),
               (long long)tool_number(s, "tensors"), (long long)tool_number(s, "chunks"), tool_text(s, "geometry"));
        json_object_foreach(json_object_get(s, "peers"), peer, n)
            printf(" %s:%lld", peer, (long long)json_integer_value(n));
        puts("");
        json_int_t shared = tool_number(json_object_get(s, "coding"), "shared_bytes");
        if (shared > 0)
            printf("%6s %s did not change since step %lld, and lies there\n", "", tool_size(shared, plain),
                   (long long)tool_number(json_object_get(s, "base"), "step"));
    }
}

static void print_tensors(const json_t *tensors)
{
    printf("\n%-48s %-12s %-24s %6s\n", "TENSOR", "DTYPE", "SHAPE", "SLICES");
    EACH(tensors, x)
    {
        char *shape = json_dumps(json_object_get(x, "shape"), JSON_COMPACT);
        printf("%-48s %-12s %-24s %6zu\n", tool_text(x, "name"), tool_text(x, "dtype"), shape ? shape : "?",
               json_array_size(json_object_get(x, "slices")));
        free(shape);
    }
}

static long long sum_of(const json_t *tensor, const char *key)
{
    long long sum = 0;

    EACH(json_object_get(tensor, "slices"), s)
    {
        sum += (long long)tool_number(s, key);
    }
    return sum;
}

/* Only tensors that have any: most checkpoints have none. */
static void print_numerics(json_t *a)
{
    json_t *total = json_object_get(a, "nonfinite"), *mismatch = json_object_get(a, "common_mismatch");
    bool head = false;

    EACH(json_object_get(a, "tensors"), x)
    {
        long long nan = sum_of(x, "nan"), inf = sum_of(x, "inf");
        if (nan + inf == 0)
            continue;
        if (!head)
            printf("\n%-48s %12s %12s\n", "NOT FINITE", "NAN", "INF");
        head = true;
        printf("%-48s %12lld %12lld\n", tool_text(x, "name"), nan, inf);
    }
    if (json_is_integer(total))
        printf("\nNaN and Inf: %lld\n", (long long)json_integer_value(total));
    else
        puts("\nNaN and Inf: not counted in every tensor");
    if (json_is_object(mismatch))
        printf("SAVED ALTHOUGH %s\n", tool_text(mismatch, "text"));
}

int cmd_show(struct tool *t)
{
    uint64_t step;
    json_t *a;

    if (t->argc != 3 || tool_parse_step(t->argv[2], &step) < 0)
        return EXIT_USAGE;
    int r = tool_query(t, CAIRN_QUERY_SHOW, t->argv[1], step, &a);
    if (r == EXIT_OK && !t->json) {
        printf("job %s, step %lld, incarnation %lld, %lld ranks\n\n", tool_text(a, "job"),
               (long long)tool_number(a, "step"), (long long)tool_number(a, "incarnation"),
               (long long)tool_number(a, "world_size"));
        print_shards(json_object_get(a, "shards"));
        print_tensors(json_object_get(a, "tensors"));
        print_numerics(a);
    }
    json_decref(a);
    return r;
}

/* ---- verify ---------------------------------------------------------------------------------- */

static void print_report(json_t *a)
{
    printf("job %s, step %lld: %lld of %lld fragments are right", tool_text(a, "job"),
           (long long)tool_number(a, "step"), (long long)tool_number(a, "ok"), (long long)tool_number(a, "fragments"));
    if (json_array_size(json_object_get(a, "bad")) == 0) {
        puts("");
        return;
    }
    printf(", %lld missing, %lld corrupt; %s\n", (long long)tool_number(a, "missing"),
           (long long)tool_number(a, "corrupt"),
           json_is_true(json_object_get(a, "repairable")) ? "every byte can still be restored" : "SOME BYTES ARE LOST");
    EACH(json_object_get(a, "bad"), b)
    {
        printf("  rank %lld part %lld fragment %lld on %s: %s\n", (long long)tool_number(b, "rank"),
               (long long)tool_number(b, "first_part"), (long long)tool_number(b, "fragment"), tool_text(b, "peer"),
               tool_text(b, "error"));
    }
}

int cmd_verify(struct tool *t)
{
    uint64_t step = CAIRN_LATEST;
    json_t *a;

    if (t->argc < 2 || t->argc > 3 || (t->argc == 3 && tool_parse_step(t->argv[2], &step) < 0))
        return EXIT_USAGE;
    int r = tool_query(t, CAIRN_QUERY_VERIFY, t->argv[1], step, &a);
    if (r == EXIT_OK && !t->json)
        print_report(a);
    if (r == EXIT_OK && tool_number(a, "ok") != tool_number(a, "fragments"))
        r = EXIT_CORRUPT;
    json_decref(a);
    return r;
}
