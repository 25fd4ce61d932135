/* SPDX-License-Identifier: Apache-2.0 */
/* bench-neighbour: a training loop that takes every processor it is given, and saves its state as it goes. Each step is
 * a fixed amount of work (small matrix products in cache, then an optimizer's pass over a part of the state in memory),
 * about 20 ms; with --traffic its threads also exchange bytes over loopback TCP, as an all-reduce over the link that
 * saves take too. Blocks of steps alone and blocks with a save every --every steps take turns in one process, so that
 * what is compared was measured within seconds; each block with saves has two, and lies between two without.
 *
 * "mark NAME" on stdout begins each block; one JSON object ends it. bench/neighbour drives it and the daemons around
 * it. Without --socket nothing is saved; --calibrate prints the work that makes a step of --step-ms. */
#include "bench/clock.h"
#include "bench/random.h"

#include <cairn/cairn.h>

#include <arpa/inet.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define SIDE 64                /* of the small matrices */
#define PASS ((size_t)2 << 20) /* elements of each moment that a step changes */
#define MAX_THREADS 64
#define MAX_PENDING 64
#define PIECE ((size_t)64 << 10)
#define BLOCK_SAVES 2
#define WARM_SAVES 2 /* the daemon learns the cadence: the third save is the first that is paced. Not counted */

struct options {
    const char *socket;
    unsigned threads, copy_threads;
    unsigned cycles, every; /* blocks with saves; steps from one save to the next */
    uint64_t state_bytes, traffic;
    uint64_t work;
    double step_ms;
    double changed; /* the share of the state that steps change: the rest is frozen */
    bool calibrate, track;
};

enum { WEIGHT, MASTER, AVG, AVG_SQ, NTENSORS };
struct state {
    uint64_t n[NTENSORS]; /* elements */
    void *data[NTENSORS];
    uint64_t bytes;
};
static const struct {
    const char *name;
    int dtype;
    double share;
} kinds[NTENSORS] = {{"model.weight", CAIRN_BF16, 0.1428},
                     {"master.weight", CAIRN_F32, 0.2857},
                     {"adam.exp_avg", CAIRN_F32, 0.2857},
                     {"adam.exp_avg_sq", CAIRN_F32, 0.2857}};

struct trainer {
    const struct options *o;
    struct state state;
    uint64_t work, step;
    bool over;
    pthread_barrier_t begin, end;
    int to[MAX_THREADS], from[MAX_THREADS]; /* sockets of a ring */
};
struct thread {
    struct trainer *t;
    unsigned index;
    float a[SIDE * SIDE], b[SIDE * SIDE], c[SIDE * SIDE];
    char out[PIECE], in[PIECE];
};

static void die(const char *what, const struct cairn_error *err)
{
    fprintf(stderr, "bench-neighbour: %s: %s\n", what, err ? err->message : "failed");
    exit(1);
}

static void state_make(struct state *s, uint64_t bytes)
{
    static const float scales[NTENSORS] = {0.02f, 0.02f, 1e-3f, 1e-3f};

    s->bytes = 0;
    for (unsigned k = 0; k < NTENSORS; k++) {
        size_t size = cairn_dtype_size(kinds[k].dtype);
        s->n[k] = (uint64_t)((double)bytes * kinds[k].share) / size;
        s->data[k] =
            mmap(NULL, s->n[k] * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (s->data[k] == MAP_FAILED)
            die("no memory for the state", NULL);
        s->bytes += s->n[k] * size;
        for (uint64_t i = 0; i < s->n[k]; i++) {
            float v = normal(mix(i + ((uint64_t)k << 40))) * scales[k];
            uint32_t u;
            v = k == AVG_SQ ? v * v : v;
            memcpy(&u, &v, 4);
            if (k == WEIGHT)
                ((uint16_t *)s->data[k])[i] = (uint16_t)(u >> 16);
            else
                ((float *)s->data[k])[i] = v;
        }
    }
}

/* ---- a step ---------------------------------------------------------------------------------- */

static void multiply(struct thread *th)
{
    for (unsigned i = 0; i < SIDE; i++)
        for (unsigned k = 0; k < SIDE; k++) {
            float a = th->a[i * SIDE + k];
            for (unsigned j = 0; j < SIDE; j++)
                th->c[i * SIDE + j] += a * th->b[k * SIDE + j];
        }
}

/* Adam over this thread's share of the part whose turn it is. */
static void optimize(struct thread *th)
{
    const struct state *s = &th->t->state;
    float *w = s->data[MASTER], *m = s->data[AVG], *v = s->data[AVG_SQ];
    uint64_t n = s->n[AVG_SQ] < s->n[AVG] ? s->n[AVG_SQ] : s->n[AVG];
    uint64_t changed = (uint64_t)((double)n * th->t->o->changed), share = PASS / th->t->o->threads;

    if (share > changed / th->t->o->threads)
        share = changed / th->t->o->threads;
    if (share == 0)
        return;
    uint64_t parts = changed / share;
    uint64_t first = (th->t->step * th->t->o->threads + th->index) % parts * share;
    for (uint64_t i = first; i < first + share; i++) {
        float g = w[i] * 0.01f + m[i] * 0.1f;
        m[i] = 0.9f * m[i] + 0.1f * g;
        v[i] = 0.999f * v[i] + 0.001f * g * g;
        w[i] -= 1e-6f * m[i];
    }
}

static void exchange(struct thread *th)
{
    uint64_t left = th->t->o->traffic / th->t->o->threads;

    while (left > 0) {
        size_t n = left < PIECE ? left : PIECE;
        if (send(th->t->to[th->index], th->out, n, MSG_NOSIGNAL) != (ssize_t)n ||
            recv(th->t->from[th->index], th->in, n, MSG_WAITALL) != (ssize_t)n)
            die("exchange bytes with the next thread", NULL);
        left -= n;
    }
}

static void run_step(struct thread *th)
{
    for (uint64_t i = 0; i < th->t->work; i++)
        multiply(th);
    optimize(th);
    if (th->t->o->traffic)
        exchange(th);
}

static void *thread_run(void *arg)
{
    struct thread *th = arg;

    for (;;) {
        pthread_barrier_wait(&th->t->begin);
        if (th->t->over)
            return NULL;
        run_step(th);
        pthread_barrier_wait(&th->t->end);
    }
}

static double timed_step(struct trainer *t, struct thread *self)
{
    double began = now();

    pthread_barrier_wait(&t->begin);
    run_step(self);
    pthread_barrier_wait(&t->end);
    t->step++;
    return now() - began;
}

/* Thread i's bytes go to thread i+1. */
static void connect_ring(struct trainer *t)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof addr;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (listener < 0 || bind(listener, (struct sockaddr *)&addr, len) < 0 || listen(listener, 16) < 0 ||
        getsockname(listener, (struct sockaddr *)&addr, &len) < 0)
        die("listen on loopback", NULL);
    for (unsigned i = 0; i < t->o->threads; i++) {
        t->to[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (t->to[i] < 0 || connect(t->to[i], (struct sockaddr *)&addr, len) < 0)
            die("connect over loopback", NULL);
        int got = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (got < 0)
            die("accept over loopback", NULL);
        t->from[(i + 1) % t->o->threads] = got;
        setsockopt(t->to[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }
    close(listener);
}

/* ---- saves ----------------------------------------------------------------------------------- */

struct saves {
    struct cairn_session *session; /* NULL: nothing is saved */
    struct cairn_save *pending[MAX_PENDING];
    double began[MAX_PENDING];
    unsigned npending;
    uint64_t step;
    unsigned n, late; /* late: not committed when the next one began */
    double stall_s[1024], commit_s[1024];
    unsigned ncommits;
    double cpu_s; /* this process's, within the calls */
};

static void open_session(struct saves *v, const struct trainer *t)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_session_options so = {.size = sizeof so,
                                       .job = "neighbour",
                                       .world_size = 1,
                                       .arena_bytes = t->state.bytes + t->state.bytes / 4 + ((uint64_t)16 << 20),
                                       .socket_path = t->o->socket,
                                       .timeout_ms = 120000,
                                       .copy_threads = t->o->copy_threads,
                                       .flags = t->o->track ? CAIRN_TRACK : 0};

    if (cairn_session_open(&so, &v->session, &err) < 0)
        die("open a session", &err);
}

/* Asks without waiting: whoever waits hurries the save, and that is not what is measured here. */
static void look_for_commits(struct saves *v)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    unsigned kept = 0;

    for (unsigned i = 0; i < v->npending; i++) {
        int r = cairn_save_wait(v->pending[i], CAIRN_COMMITTED, 0, &err);
        if (r < 0 && r != CAIRN_E_TIMEOUT)
            die("a save failed", &err);
        if (r == CAIRN_E_TIMEOUT) {
            v->pending[kept] = v->pending[i];
            v->began[kept++] = v->began[i];
            continue;
        }
        v->commit_s[v->ncommits++ % 1024] = now() - v->began[i];
        cairn_save_free(v->pending[i]);
    }
    v->npending = kept;
}

static void begin_save(struct saves *v, struct trainer *t)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_save_options so = {
        .size = sizeof so, .step = ++v->step, .on_busy = CAIRN_BUSY_WAIT, .timeout_ms = 60000};
    struct cairn_save *save;
    double began = now(), used = cpu();

    look_for_commits(v);
    v->late += v->npending > 0;
    if (v->npending == MAX_PENDING)
        die("too many saves are under way", NULL);
    if (cairn_save_begin(v->session, &so, &save, &err) < 0)
        die("begin a save", &err);
    for (unsigned k = 0; k < NTENSORS; k++) {
        struct cairn_tensor tensor = {.size = sizeof tensor,
                                      .name = kinds[k].name,
                                      .dtype = kinds[k].dtype,
                                      .ndim = 1,
                                      .shape = &t->state.n[k],
                                      .data = t->state.data[k]};
        if (cairn_save_add(save, &tensor, &err) < 0)
            die("add a tensor", &err);
    }
    if (cairn_save_seal(save, &err) < 0)
        die("seal", &err);
    v->pending[v->npending] = save;
    v->began[v->npending++] = began;
    v->cpu_s += cpu() - used;
    v->stall_s[v->n++ % 1024] = now() - began;
}

static void end_saves(struct saves *v)
{
    double end = now() + 120;

    while (v->npending > 0 && now() < end) {
        look_for_commits(v);
        usleep(2000);
    }
    if (v->npending > 0)
        die("a save was not committed within two minutes", NULL);
}

/* ---- blocks ---------------------------------------------------------------------------------- */

/* Times of steps and of whole blocks, alone and with saves. */
struct times {
    double *alone_s, *saving_s; /* of each step, the stall of a save included */
    double *within_s;           /* of the work of those with saves */
    double *alone_block_s, *saving_block_s;
    unsigned per_block; /* steps */
};

static double *doubles(unsigned n)
{
    double *d = calloc(n, sizeof *d);

    if (!d)
        die("no memory for times", NULL);
    return d;
}

static void times_make(struct times *m, const struct options *o)
{
    m->per_block = BLOCK_SAVES * o->every;
    m->alone_s = doubles((o->cycles + 1) * m->per_block);
    m->saving_s = doubles(o->cycles * m->per_block);
    m->within_s = doubles(o->cycles * m->per_block);
    m->alone_block_s = doubles(o->cycles + 1);
    m->saving_block_s = doubles(o->cycles);
}

static void times_free(struct times *m)
{
    free(m->alone_s);
    free(m->saving_s);
    free(m->within_s);
    free(m->alone_block_s);
    free(m->saving_block_s);
}

static void mark(const char *name)
{
    printf("mark %s\n", name);
    fflush(stdout);
}

/* So many steps, with saves where there are any: the seconds that all took. */
static double run_block(struct trainer *t, struct thread *self, unsigned steps, struct saves *v, double *step_s,
                        double *within_s)
{
    double began = now();

    for (unsigned i = 0; i < steps; i++) {
        double at = now(), took;
        if (v && i % t->o->every == 0)
            begin_save(v, t);
        else if (v)
            look_for_commits(v);
        took = timed_step(t, self);
        if (within_s)
            within_s[i] = took;
        if (step_s)
            step_s[i] = now() - at;
    }
    return now() - began;
}

static int compare(const void *a, const void *b)
{
    const double *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

static void print_times(const char *name, double *s, unsigned n)
{
    double sum = 0;

    for (unsigned i = 0; i < n; i++)
        sum += s[i];
    qsort(s, n, sizeof *s, compare);
    printf("\"%s\": {\"n\": %u, \"mean\": %.6f, \"p50\": %.6f, \"p99\": %.6f, \"max\": %.6f}", name, n, n ? sum / n : 0,
           n ? s[(n - 1) / 2] : 0, n ? s[(n * 99 + 99) / 100 - 1] : 0, n ? s[n - 1] : 0);
}

/* A save costs what its block took longer than the two around it, on average, shared by its saves. */
static void print_pairs(const struct times *m, unsigned cycles)
{
    for (int ratio = 0; ratio < 2; ratio++) {
        printf("\"%s\": [", ratio ? "mean_ratios" : "costs_s");
        for (unsigned i = 0; i < cycles; i++) {
            double alone = (m->alone_block_s[i] + m->alone_block_s[i + 1]) / 2, saving = m->saving_block_s[i];
            printf("%s%.6f", i ? ", " : "", ratio ? saving / alone : (saving - alone) / BLOCK_SAVES);
        }
        printf("], ");
    }
}

static void print_result(const struct trainer *t, struct times *m, struct saves *v, const struct saves *warm)
{
    unsigned cycles = t->o->cycles, steps = cycles * m->per_block;

    printf("{\"work\": %llu, \"state_bytes\": %llu, \"every\": %u, \"saves\": %u, \"late\": %u, \"tracks\": %s, "
           "\"trainer_cpu_s\": %.4f, ",
           (unsigned long long)t->work, (unsigned long long)t->state.bytes, t->o->every, v->n - warm->n,
           v->late - warm->late, t->o->track ? "true" : "false", v->cpu_s - warm->cpu_s);
    print_pairs(m, cycles);
    print_times("alone", m->alone_s, steps + m->per_block);
    printf(", ");
    print_times("step", m->saving_s, steps);
    printf(", ");
    print_times("work_only", m->within_s, steps);
    printf(", ");
    print_times("stall", v->stall_s + warm->n, v->n - warm->n);
    printf(", ");
    print_times("commit", v->commit_s + warm->ncommits, v->ncommits - warm->ncommits);
    printf("}\n");
}

static void train(struct trainer *t, struct thread *self)
{
    struct saves v = {0}, warm, *saves = t->o->socket ? &v : NULL;
    struct times m;

    times_make(&m, t->o);
    if (saves)
        open_session(&v, t);
    run_block(t, self, 20, NULL, NULL, NULL);
    mark("learning");
    run_block(t, self, saves ? t->o->every * WARM_SAVES : 0, saves, NULL, NULL);
    end_saves(&v);
    warm = v;
    for (unsigned i = 0; i <= t->o->cycles; i++) {
        unsigned at = i * m.per_block;
        mark("alone");
        m.alone_block_s[i] = run_block(t, self, m.per_block, NULL, m.alone_s + at, NULL);
        mark(i < t->o->cycles ? "saving" : "end");
        if (i == t->o->cycles)
            break;
        m.saving_block_s[i] = run_block(t, self, m.per_block, saves, m.saving_s + at, m.within_s + at);
        v.late += v.npending > 0; /* what it still costs is not in its block */
        end_saves(&v);
    }
    print_result(t, &m, &v, &warm);
    times_free(&m);
    if (saves)
        cairn_session_close(v.session);
}

/* How much of the work makes a step of the wanted length, alone. */
static void calibrate(struct trainer *t, struct thread *self)
{
    double best = 1e9;

    t->work = 40;
    for (unsigned i = 0; i < 100; i++) {
        double took = timed_step(t, self);
        best = i >= 20 && took < best ? took : best;
    }
    t->work = 0;
    double rest = 1e9;
    for (unsigned i = 0; i < 60; i++) {
        double took = timed_step(t, self);
        rest = took < rest ? took : rest;
    }
    double each = (best - rest) / 40, want = t->o->step_ms / 1e3 - rest;
    printf("{\"work\": %llu}\n", (unsigned long long)(want > each ? want / each : 1));
}

static void start(const struct options *o)
{
    static struct trainer t;
    pthread_t id[MAX_THREADS];
    struct thread *th = calloc(o->threads, sizeof *th);

    if (!th)
        die("no memory for threads", NULL);
    t.o = o;
    t.work = o->work;
    state_make(&t.state, o->state_bytes);
    if (o->traffic)
        connect_ring(&t);
    pthread_barrier_init(&t.begin, NULL, o->threads);
    pthread_barrier_init(&t.end, NULL, o->threads);
    for (unsigned i = 0; i < o->threads; i++) {
        th[i] = (struct thread){.t = &t, .index = i};
        for (unsigned j = 0; j < SIDE * SIDE; j++)
            th[i].a[j] = th[i].b[j] = normal(mix(j + i)) * 1e-3f;
        if (i && pthread_create(&id[i], NULL, thread_run, &th[i]) != 0)
            die("start a thread", NULL);
    }
    if (o->calibrate)
        calibrate(&t, &th[0]);
    else
        train(&t, &th[0]);
    t.over = true;
    pthread_barrier_wait(&t.begin);
    for (unsigned i = 1; i < o->threads; i++)
        pthread_join(id[i], NULL);
    free(th);
}

int main(int argc, char **argv)
{
    static const struct option long_options[] = {{"socket", required_argument, NULL, 's'},
                                                 {"mib", required_argument, NULL, 'm'},
                                                 {"cycles", required_argument, NULL, 'n'},
                                                 {"changed", required_argument, NULL, 'f'},
                                                 {"every", required_argument, NULL, 'e'},
                                                 {"threads", required_argument, NULL, 't'},
                                                 {"work", required_argument, NULL, 'w'},
                                                 {"step-ms", required_argument, NULL, 'l'},
                                                 {"traffic", required_argument, NULL, 'x'},
                                                 {"copy-threads", required_argument, NULL, 'c'},
                                                 {"calibrate", no_argument, NULL, 'k'},
                                                 {"track", no_argument, NULL, 'r'},
                                                 {NULL, 0, NULL, 0}};
    struct options o = {.state_bytes = (uint64_t)256 << 20,
                        .cycles = 15,
                        .every = 40,
                        .changed = 1,
                        .threads = 2,
                        .copy_threads = 2,
                        .work = 300,
                        .step_ms = 20};
    int c;

    while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        unsigned long long v = optarg ? strtoull(optarg, NULL, 10) : 0;
        if (c == '?')
            return 2;
        o.socket = c == 's' ? optarg : o.socket;
        o.state_bytes = c == 'm' ? v << 20 : o.state_bytes;
        o.cycles = c == 'n' ? (unsigned)v : o.cycles;
        o.changed = c == 'f' ? strtod(optarg, NULL) : o.changed;
        o.every = c == 'e' ? (unsigned)v : o.every;
        o.threads = c == 't' ? (unsigned)v : o.threads;
        o.copy_threads = c == 'c' ? (unsigned)v : o.copy_threads;
        o.work = c == 'w' ? v : o.work;
        o.step_ms = c == 'l' ? strtod(optarg, NULL) : o.step_ms;
        o.traffic = c == 'x' ? v << 10 : o.traffic;
        o.calibrate |= c == 'k';
        o.track |= c == 'r';
    }
    if (optind != argc || o.threads < 1 || o.threads > MAX_THREADS || o.every < 1 || o.state_bytes < (1u << 20) ||
        o.cycles < 1 || o.cycles > 500 || o.every > 10000 || !(o.changed > 0 && o.changed <= 1)) {
        fprintf(stderr,
                "usage: bench-neighbour [--socket PATH] [--mib N] [--cycles N] [--every N] [--threads N] [--work N] "
                "[--traffic KIB]\n           [--copy-threads N] [--changed SHARE] [--track] | --calibrate [--step-ms "
                "MS]\n");
        return 2;
    }
    start(&o);
    return 0;
}
