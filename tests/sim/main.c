/* SPDX-License-Identifier: Apache-2.0 */
/* sim: runs schedules from seeds, shortens and shows those that violate an invariant. docs/simulator.md. */
#include "tests/sim/sim.h"

#include <errno.h>
#include <getopt.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct options {
    uint64_t first, count;
    unsigned jobs;
    bool one, trace, quiet;
    bool expect; /* a violation is expected */
};

/* assert() of the code under test takes no context: it has to be found by itself. */
static struct sim *running;
static jmp_buf asserted;

_Noreturn void __assert_fail(const char *expr, const char *file, unsigned line, const char *function);
_Noreturn void __assert_fail(const char *expr, const char *file, unsigned line, const char *function)
{
    if (!running) {
        fprintf(stderr, "%s:%u: %s: %s\n", file, line, function, expr);
        abort();
    }
    sim_violate(running, "asserts_hold", "%s:%u: %s: %s", file, line, function, expr);
    longjmp(asserted, 1);
}

static bool run_one(struct sim *s, uint64_t seed, const struct config *c, bool trace)
{
    running = s;
    if (setjmp(asserted) == 0)
        sim_run(s, seed, c, trace);
    running = NULL;
    return s->violation == NULL;
}

/* ---- shortening ------------------------------------------------------------------------------ */

static bool still_fails(struct sim *s, uint64_t seed, const struct config *c, const char *violation)
{
    return !run_one(s, seed, c, false) && strcmp(s->violation, violation) == 0;
}

/* Tries one change; keeps it when the schedule still violates the same invariant. */
#define TRY(change_)                                                             \
    do {                                                                         \
        struct config t = *c;                                                    \
        change_;                                                                 \
        if (memcmp(&t, c, sizeof t) != 0 && still_fails(s, seed, &t, violation)) \
            *c = t;                                                              \
    } while (0)

static void shorten(struct sim *s, uint64_t seed, struct config *c)
{
    const char *violation = s->violation;

    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < c->nfaults; i++)
            TRY(t.fault[i].skip = true);
        TRY(t.loss = 0);
        TRY(t.dup = 0);
        TRY(t.straggle = 0);
        TRY(t.chunks = 1);
        TRY(t.saves = 1);
        TRY(t.last = 0);
        TRY(t.chain = 0);
        TRY(t.deadline_ms = CHECKPOINT_MS);
        TRY(t.per_node = 1);
        TRY(t.nodes = t.nodes > 1 ? t.nodes - 1 : 1);
        TRY(t.peers = t.peers > 1 ? t.peers - 1 : 1);
    }
}

static void show_failure(struct sim *s, uint64_t seed, bool trace)
{
    struct config c;

    plan_make(&c, seed);
    if (run_one(s, seed, &c, false))
        return;
    printf("seed %llu violates %s: %s\n", (unsigned long long)seed, s->violation, s->detail);
    shorten(s, seed, &c);
    printf("shortened to:\n");
    plan_print(&c);
    run_one(s, seed, &c, trace);
    printf("%lu events, %.0f ms: %s: %s\n", s->events, (double)s->now / 1000, s->violation, s->detail);
}

/* ---- schedules ------------------------------------------------------------------------------- */

struct tally {
    uint64_t schedules, events, full_up, commits, failed_seed;
    bool failed;
};

static void run_share(struct sim *s, const struct options *o, unsigned job, struct tally *t)
{
    struct config c;

    for (uint64_t i = job; i < o->count && !t->failed; i += o->jobs) {
        plan_make(&c, o->first + i);
        bool good = run_one(s, o->first + i, &c, false);
        t->schedules++;
        t->events += s->events;
        t->full_up += s->full_up;
        t->commits += (uint64_t)__builtin_popcountll(s->seen.committed);
        if (good)
            continue;
        t->failed = true;
        t->failed_seed = o->first + i;
    }
}

static struct sim *sim_new(void)
{
    struct sim *s = calloc(1, sizeof *s);

    if (s)
        s->queue.pool = calloc(QUEUE_EVENTS, sizeof *s->queue.pool);
    if (s && s->queue.pool)
        return s;
    fprintf(stderr, "no memory\n");
    exit(2);
}

static int start_job(const struct options *o, unsigned job, int to)
{
    struct tally t = {0};

    pid_t pid = fork();
    if (pid != 0)
        return pid < 0 ? -1 : 0;
    run_share(sim_new(), o, job, &t);
    _exit(write(to, &t, sizeof t) == (ssize_t)sizeof t ? 0 : 2);
}

static bool run_jobs(const struct options *o, struct tally *sum)
{
    int fds[2];
    bool good = pipe(fds) == 0;

    for (unsigned j = 0; good && j < o->jobs; j++)
        good = start_job(o, j, fds[1]) == 0;
    for (unsigned j = 0; good && j < o->jobs; j++) {
        struct tally t;
        good = read(fds[0], &t, sizeof t) == (ssize_t)sizeof t;
        sum->schedules += t.schedules;
        sum->events += t.events;
        sum->full_up += t.full_up;
        sum->commits += t.commits;
        if (t.failed && (!sum->failed || t.failed_seed < sum->failed_seed))
            sum->failed_seed = t.failed_seed;
        sum->failed |= t.failed;
    }
    while (wait(NULL) > 0 || errno == EINTR)
        ;
    return good;
}

static int run_many(const struct options *o)
{
    struct tally t = {0};
    struct timespec from, to;

    clock_gettime(CLOCK_MONOTONIC, &from);
    if (!run_jobs(o, &t)) {
        perror("sim: its jobs");
        return 2;
    }
    clock_gettime(CLOCK_MONOTONIC, &to);
    double secs = (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9;
    printf("%llu schedules, %llu events, %llu commits in %.1f s: %.0f schedules/s; %llu outgrew the simulator\n",
           (unsigned long long)t.schedules, (unsigned long long)t.events, (unsigned long long)t.commits, secs,
           (double)t.schedules / secs, (unsigned long long)t.full_up);
    if (!t.failed)
        return 0;
    show_failure(sim_new(), t.failed_seed, !o->quiet);
    printf("replay: %s --seed %llu --trace\n", program_invocation_name, (unsigned long long)t.failed_seed);
    return 1;
}

static int run_seed(const struct options *o)
{
    struct sim *s = sim_new();
    struct config c;

    plan_make(&c, o->first);
    plan_print(&c);
    bool good = run_one(s, o->first, &c, o->trace);
    printf("seed %llu: %s%s%s, %lu events, %.0f ms, %d commits\n", (unsigned long long)o->first,
           good ? "no violation" : s->violation, good ? "" : ": ", s->detail, s->events, (double)s->now / 1000,
           __builtin_popcountll(s->seen.committed));
    if (!good)
        show_failure(s, o->first, false);
    return good ? 0 : 1;
}

static int usage(void)
{
    fprintf(stderr, "usage: sim --schedules N [--first-seed S] [--jobs J] [--quiet] [--expect-violation]\n"
                    "       sim --seed N [--trace]\n");
    return 2;
}

static bool parse(int argc, char **argv, struct options *o)
{
    static const struct option longs[] = {
        {"seed", 1, 0, 's'},  {"schedules", 1, 0, 'n'}, {"first-seed", 1, 0, 'f'},       {"jobs", 1, 0, 'j'},
        {"trace", 0, 0, 't'}, {"quiet", 0, 0, 'q'},     {"expect-violation", 0, 0, 'e'}, {0}};
    int c;

    while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        if (c == 's' || c == 'f')
            o->first = strtoull(optarg, NULL, 0);
        else if (c == 'n')
            o->count = strtoull(optarg, NULL, 0);
        else if (c == 'j')
            o->jobs = (unsigned)strtoul(optarg, NULL, 0);
        o->one |= c == 's';
        o->trace |= c == 't';
        o->quiet |= c == 'q';
        o->expect |= c == 'e';
        if (c == '?')
            return false;
    }
    return optind == argc && o->jobs > 0 && (o->one || o->count > 0);
}

int main(int argc, char **argv)
{
    struct options o = {.first = 1, .jobs = 1};

    if (!parse(argc, argv, &o))
        return usage();
    if (o.one)
        return run_seed(&o);
    int r = run_many(&o);
    return o.expect && r < 2 ? !r : r;
}
