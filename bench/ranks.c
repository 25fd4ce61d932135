/* SPDX-License-Identifier: Apache-2.0 */
/* Many ranks in one process: sessions with a small state each, saved together.
 *
 *     bench-ranks --world N --steps S --threads T SOCKET...    ranks are spread over the sockets' nodes
 *
 * Real sessions, arenas and commits; only that they share a process is made up. Prints "opened MS", then for each step
 * the latencies from the last seal to when each rank knows that the checkpoint is committed: "step S p50 p99 max" in
 * ms. */
#include <cairn/cairn.h>

#include <getopt.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#define TIMEOUT_MS 120000
#define FLOATS 1024 /* of each rank */

struct bench {
    unsigned world, steps, threads, nsockets;
    char **sockets;
    const char *job;
    pthread_barrier_t barrier;
    struct cairn_session **sessions;
    struct cairn_save **saves;
    double *committed_ms; /* of each rank, when it knew */
    double sealed_ms;     /* the last one */
    bool failed;
};
struct thread {
    pthread_t id;
    struct bench *b;
    unsigned number;
};

static double now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static void failed(struct bench *b, const char *what, unsigned rank, const struct cairn_error *err)
{
    fprintf(stderr, "rank %u: %s: %s\n", rank, what, err->message);
    b->failed = true;
}

static void open_one(struct bench *b, unsigned rank)
{
    struct cairn_error err = {.size = sizeof err};
    struct cairn_session_options o = {.size = sizeof o,
                                      .job = b->job,
                                      .rank = rank,
                                      .world_size = b->world,
                                      .arena_bytes = 1 << 20,
                                      .start_id = "bench",
                                      .socket_path = b->sockets[rank % b->nsockets],
                                      .timeout_ms = TIMEOUT_MS};

    if (cairn_session_open(&o, &b->sessions[rank], &err) < 0)
        failed(b, "open", rank, &err);
}

static void seal_one(struct bench *b, unsigned rank, unsigned step)
{
    static float values[FLOATS];
    char name[32];
    uint64_t shape[] = {FLOATS};
    struct cairn_error err = {.size = sizeof err};
    struct cairn_save_options o = {
        .size = sizeof o, .step = step, .on_busy = CAIRN_BUSY_WAIT, .timeout_ms = TIMEOUT_MS};
    struct cairn_tensor t = {
        .size = sizeof t, .name = name, .dtype = CAIRN_F32, .ndim = 1, .shape = shape, .data = values};

    snprintf(name, sizeof name, "rank.%u", rank);
    int r = cairn_save_begin(b->sessions[rank], &o, &b->saves[rank], &err);
    if (r == 0)
        r = cairn_save_add(b->saves[rank], &t, &err);
    if (r == 0)
        r = cairn_save_seal(b->saves[rank], &err);
    if (r < 0)
        failed(b, "save", rank, &err);
}

static void await_one(struct bench *b, unsigned rank)
{
    struct cairn_error err = {.size = sizeof err};

    if (b->saves[rank] && cairn_save_wait(b->saves[rank], CAIRN_COMMITTED, TIMEOUT_MS, &err) < 0)
        failed(b, "commit", rank, &err);
    b->committed_ms[rank] = now_ms();
    cairn_save_free(b->saves[rank]);
    b->saves[rank] = NULL;
}

static int by_value(const void *a, const void *c)
{
    double x = *(const double *)a, y = *(const double *)c;

    return x < y ? -1 : x > y;
}

static void report(struct bench *b, unsigned step)
{
    qsort(b->committed_ms, b->world, sizeof b->committed_ms[0], by_value);
    printf("step %u %.1f %.1f %.1f\n", step, b->committed_ms[b->world / 2] - b->sealed_ms,
           b->committed_ms[b->world - 1 - b->world / 100] - b->sealed_ms, b->committed_ms[b->world - 1] - b->sealed_ms);
    fflush(stdout);
}

/* Every thread has its own ranks; one of them reports. */
static void *run(void *arg)
{
    struct thread *t = arg;
    struct bench *b = t->b;
    double begin = now_ms();

    for (unsigned r = t->number; r < b->world && !b->failed; r += b->threads)
        open_one(b, r);
    if (pthread_barrier_wait(&b->barrier) == PTHREAD_BARRIER_SERIAL_THREAD) {
        printf("opened %.0f\n", now_ms() - begin);
        fflush(stdout);
    }
    for (unsigned step = 1; step <= b->steps; step++) {
        for (unsigned r = t->number; r < b->world && !b->failed; r += b->threads)
            seal_one(b, r, step);
        if (pthread_barrier_wait(&b->barrier) == PTHREAD_BARRIER_SERIAL_THREAD)
            b->sealed_ms = now_ms();
        pthread_barrier_wait(&b->barrier);
        for (unsigned r = t->number; r < b->world; r += b->threads)
            await_one(b, r);
        if (pthread_barrier_wait(&b->barrier) == PTHREAD_BARRIER_SERIAL_THREAD)
            report(b, step);
        pthread_barrier_wait(&b->barrier);
    }
    for (unsigned r = t->number; r < b->world; r += b->threads)
        cairn_session_close(b->sessions[r]);
    return NULL;
}

static int start(struct bench *b)
{
    struct thread *threads = calloc(b->threads, sizeof *threads);

    b->sessions = calloc(b->world, sizeof *b->sessions);
    b->saves = calloc(b->world, sizeof *b->saves);
    b->committed_ms = calloc(b->world, sizeof *b->committed_ms);
    if (!threads || !b->sessions || !b->saves || !b->committed_ms)
        return 1;
    pthread_barrier_init(&b->barrier, NULL, b->threads);
    for (unsigned i = 0; i < b->threads; i++) {
        threads[i] = (struct thread){.b = b, .number = i};
        if (pthread_create(&threads[i].id, NULL, run, &threads[i]) != 0)
            return 1; /* the others wait for it: the process ends */
    }
    for (unsigned i = 0; i < b->threads; i++)
        pthread_join(threads[i].id, NULL);
    free(threads);
    return b->failed;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"world", 1, NULL, 'w'},
                                            {"steps", 1, NULL, 's'},
                                            {"threads", 1, NULL, 't'},
                                            {"job", 1, NULL, 'j'},
                                            {NULL, 0, NULL, 0}};
    struct bench b = {.world = 100, .steps = 10, .threads = 32, .job = "many"};
    struct rlimit files;
    int c;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c == 'w')
            b.world = (unsigned)atoi(optarg);
        else if (c == 's')
            b.steps = (unsigned)atoi(optarg);
        else if (c == 't')
            b.threads = (unsigned)atoi(optarg);
        else if (c == 'j')
            b.job = optarg;
        else
            return 2;
    }
    b.sockets = argv + optind;
    b.nsockets = (unsigned)(argc - optind);
    if (b.nsockets == 0 || b.world == 0 || b.threads == 0 || b.threads > b.world)
        return 2;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files); /* what is too few shows itself */
    }
    return start(&b);
}
