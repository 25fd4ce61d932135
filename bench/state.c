/* SPDX-License-Identifier: Apache-2.0 */
/* bench-state: one rank with a training state of any size. "save" makes it, measures this machine's memcpy into shared
 * memory, saves it some times and prints what each save cost (--changed PERCENT: so much of each tensor changes before
 * each save but the first, the rest is frozen); "restore" reads it back and compares every byte with what
 * "save" made. One JSON object on stdout; bench/save-restore drives it and the daemons around it. "hot" restores from
 * the arena beside a plain copy, --saves times. "step" saves once for each line on stdin and prints "sealed" and
 * "committed SECONDS", for bench/hung-peer. */
#include "bench/clock.h"
#include "bench/random.h"

#include <cairn/cairn.h>

#include <getopt.h>
#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct options {
    const char *socket;
    uint64_t state_bytes;
    unsigned saves;
    unsigned threads;
    unsigned changed; /* percent */
    uint64_t seed;
};

/* A model's state in the proportions of mixed-precision training with Adam, and the small things beside it. */
static const struct kind {
    const char *name;
    int dtype;
    double share; /* of the bytes */
} kinds[] = {
    {"model.weight", CAIRN_BF16, 0.14},   {"master.weight", CAIRN_F32, 0.28}, {"adam.exp_avg", CAIRN_F32, 0.28},
    {"adam.exp_avg_sq", CAIRN_F32, 0.27}, {"data.tokens", CAIRN_I64, 0.02},   {"data.mask", CAIRN_BOOL, 0.005},
    {"rng", CAIRN_BYTES, 0.005},
};
#define NKINDS (sizeof kinds / sizeof kinds[0])

struct tensor {
    char name[64];
    int dtype;
    uint64_t n; /* elements */
    char *data;
    uint64_t bytes;
};
struct state {
    struct tensor t[NKINDS];
    uint64_t bytes;
};

static void die(const char *what, const struct cairn_error *err)
{
    fprintf(stderr, "bench-state: %s: %s\n", what, err ? err->message : "failed");
    exit(1);
}

static void fill_floats(struct tensor *t, uint64_t seed, float scale, bool square)
{
    for (uint64_t i = 0; i < t->n; i++) {
        float v = normal(mix(seed + i)) * scale;
        uint32_t u;
        v = square ? v * v : v;
        memcpy(&u, &v, 4);
        if (t->dtype == CAIRN_F32) {
            memcpy(t->data + i * 4, &u, 4);
        } else {
            uint16_t b = (uint16_t)(u >> 16);
            memcpy(t->data + i * 2, &b, 2);
        }
    }
}

static void fill(struct tensor *t, unsigned kind, uint64_t seed)
{
    seed = mix(seed ^ kind << 20);
    if (kind <= 3) {
        static const float scales[] = {0.02f, 0.02f, 1e-4f, 1e-4f};
        fill_floats(t, seed, scales[kind], kind == 3);
        return;
    }
    for (uint64_t i = 0; i < t->bytes; i++) {
        uint64_t r = mix(seed + i / 8);
        uint64_t token = r % 50257;
        if (kind == 4)
            t->data[i] = (char)(token >> (i % 8 * 8));
        else
            t->data[i] = kind == 5 ? (char)(i % 4096 < 3000) : (char)(r >> (i % 8 * 8));
    }
}

static void *map(uint64_t bytes, int flags)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

    if (p == MAP_FAILED)
        die("no memory for the state", NULL);
    return p;
}

static void state_make(struct state *s, const struct options *o, bool filled)
{
    s->bytes = 0;
    for (unsigned i = 0; i < NKINDS; i++) {
        struct tensor *t = &s->t[i];
        snprintf(t->name, sizeof t->name, "%s", kinds[i].name);
        t->dtype = kinds[i].dtype;
        t->n = (uint64_t)((double)o->state_bytes * kinds[i].share) / cairn_dtype_size(t->dtype) + 1;
        t->bytes = t->n * cairn_dtype_size(t->dtype);
        t->data = map(t->bytes, MAP_PRIVATE);
        s->bytes += t->bytes;
        if (filled)
            fill(t, i, o->seed);
    }
}

static struct cairn_tensor describe(struct tensor *t)
{
    return (struct cairn_tensor){.size = sizeof(struct cairn_tensor),
                                 .name = t->name,
                                 .dtype = t->dtype,
                                 .ndim = 1,
                                 .shape = &t->n,
                                 .data = t->data};
}

/* Best of three: what one memcpy of the whole state into mapped shared memory reaches here, now. */
static double memcpy_rate(const struct state *s)
{
    char *to = map(s->bytes, MAP_SHARED);
    double best = 0;

    for (int round = 0; round < 3; round++) {
        uint64_t at = 0;
        double begin = now();
        for (unsigned i = 0; i < NKINDS; i++) {
            memcpy(to + at, s->t[i].data, s->t[i].bytes);
            at += s->t[i].bytes;
        }
        best = fmax(best, (double)s->bytes / (now() - begin));
    }
    munmap(to, s->bytes);
    return best;
}

static struct cairn_session *open_session(const struct options *o, uint32_t flags, const struct state *s)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_session *session;
    struct cairn_session_options so = {.size = sizeof so,
                                       .job = "bench",
                                       .world_size = 1,
                                       .arena_bytes = s->bytes + s->bytes / 4 + ((uint64_t)16 << 20),
                                       .socket_path = o->socket,
                                       .timeout_ms = 120000,
                                       .copy_threads = o->threads,
                                       .flags = flags};

    if (cairn_session_open(&so, &session, &err) < 0)
        die("open a session", &err);
    return session;
}

static void save_once(struct cairn_session *session, struct state *s, uint64_t step, bool say, double *ret_stall,
                      double *ret_commit)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_save_options so = {.size = sizeof so, .step = step, .on_busy = CAIRN_BUSY_WAIT, .timeout_ms = 300000};
    struct cairn_save *save;
    double begin = now();

    if (cairn_save_begin(session, &so, &save, &err) < 0)
        die("begin a save", &err);
    for (unsigned i = 0; i < NKINDS; i++) {
        struct cairn_tensor t = describe(&s->t[i]);
        if (cairn_save_add(save, &t, &err) < 0)
            die("add a tensor", &err);
    }
    if (cairn_save_seal(save, &err) < 0)
        die("seal", &err);
    *ret_stall = now() - begin;
    if (say)
        puts("sealed");
    if (cairn_save_wait(save, CAIRN_COMMITTED, 600000, &err) < 0)
        die("wait for the commit", &err);
    *ret_commit = now() - begin;
    cairn_save_free(save);
}

/* The end of each tensor, a byte in each page of it. */
static void change(struct state *s, unsigned percent)
{
    for (unsigned i = 0; i < NKINDS; i++)
        for (uint64_t at = s->t[i].bytes / 100 * (100 - percent); percent && at < s->t[i].bytes; at += 4096)
            s->t[i].data[at] ^= 1;
}

static int cmd_save(const struct options *o)
{
    struct state s;

    state_make(&s, o, true);
    double copy = memcpy_rate(&s), opened = now();
    struct cairn_session *session = open_session(o, 0, &s);
    printf("{\"bytes\": %llu, \"memcpy_bytes_per_s\": %.0f, \"open_s\": %.3f, \"saves\": [",
           (unsigned long long)s.bytes, copy, now() - opened);
    for (unsigned i = 0; i < o->saves; i++) {
        double stall, commit;
        change(&s, i ? o->changed : 0);
        save_once(session, &s, i + 1, false, &stall, &commit);
        printf("%s{\"stall_s\": %.4f, \"commit_s\": %.4f}", i ? ", " : "", stall, commit);
    }
    printf("]}\n");
    cairn_session_close(session);
    return 0;
}

static int cmd_step(const struct options *o)
{
    char line[16];
    struct state s;
    double stall, commit;

    setvbuf(stdout, NULL, _IOLBF, 0);
    state_make(&s, o, true);
    struct cairn_session *session = open_session(o, 0, &s);
    puts("opened");
    for (uint64_t step = 1; fgets(line, sizeof line, stdin); step++) {
        save_once(session, &s, step, true, &stall, &commit);
        printf("committed %.6f\n", commit);
    }
    cairn_session_close(session);
    return 0;
}

/* ---- hot ------------------------------------------------------------------------------------- */

struct half { /* of every tensor, or all of it */
    const struct state *to;
    const char *from;
    unsigned index, of;
};

static void *copy_half(void *arg)
{
    const struct half *h = arg;
    uint64_t at = 0;

    for (unsigned i = 0; i < NKINDS; i++) {
        const struct tensor *t = &h->to->t[i];
        uint64_t first = t->bytes * h->index / h->of, end = t->bytes * (h->index + 1) / h->of;
        memcpy(t->data + first, h->from + at + first, end - first);
        at += t->bytes;
    }
    return NULL;
}

/* What a restore from memory cannot beat: the same bytes from mapped shared memory to the same tensors. */
static double copy_back(const struct state *to, const char *from, unsigned threads)
{
    struct half halves[64];
    pthread_t others[64];
    double begin = now();

    threads = threads > 64 ? 64 : threads ? threads : 1;
    for (unsigned i = 0; i < threads; i++) {
        halves[i] = (struct half){to, from, i, threads};
        if (i && pthread_create(&others[i], NULL, copy_half, &halves[i]) != 0)
            die("start a thread", NULL);
    }
    copy_half(&halves[0]);
    for (unsigned i = 1; i < threads; i++)
        pthread_join(others[i], NULL);
    return now() - begin;
}

static double restore_once(struct cairn_session *session, struct state *to)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_restore *restore;
    double begin = now();

    if (cairn_restore_open(session, CAIRN_LATEST, 60000, &restore, &err) < 0)
        die("open the checkpoint", &err);
    for (unsigned i = 0; i < NKINDS; i++) {
        struct cairn_tensor t = describe(&to->t[i]);
        if (cairn_restore_add(restore, &t, &err) < 0)
            die("ask for a tensor", &err);
    }
    if (cairn_restore_run(restore, 600000, NULL, NULL, &err) < 0)
        die("restore", &err);
    cairn_restore_free(restore);
    return now() - begin;
}

/* Saves once, then restores from the arena and copies the same bytes from other shared memory, in turns. */
static int cmd_hot(const struct options *o)
{
    struct state want, got;
    double stall, commit;
    bool equal = true;

    state_make(&want, o, true);
    state_make(&got, o, false);
    struct cairn_session *session = open_session(o, 0, &want);
    save_once(session, &want, 1, false, &stall, &commit);
    char *from = map(want.bytes, MAP_SHARED);
    memset(from, 1, want.bytes);
    memset(got.t[0].data, 0, got.t[0].bytes);
    restore_once(session, &got); /* the first one faults its pages in */
    for (unsigned i = 0; i < NKINDS; i++)
        equal &= memcmp(want.t[i].data, got.t[i].data, want.t[i].bytes) == 0;
    printf("{\"bytes\": %llu, \"threads\": %u, \"equal\": %s, \"pairs\": [", (unsigned long long)want.bytes, o->threads,
           equal ? "true" : "false");
    for (unsigned i = 0; i < o->saves; i++) {
        double copy = copy_back(&got, from, o->threads), restore = restore_once(session, &got);
        printf("%s{\"copy_s\": %.5f, \"restore_s\": %.5f}", i ? ", " : "", copy, restore);
    }
    printf("]}\n");
    cairn_session_close(session);
    return equal ? 0 : 1;
}

static int cmd_restore(const struct options *o)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_restore *restore;
    struct state want, got;
    bool equal = true;

    state_make(&want, o, true);
    state_make(&got, o, false);
    struct cairn_session *session = open_session(o, CAIRN_OBSERVER, &got);
    double begin = now();
    if (cairn_restore_open(session, CAIRN_LATEST, 60000, &restore, &err) < 0)
        die("open the checkpoint", &err);
    for (unsigned i = 0; i < NKINDS; i++) {
        struct cairn_tensor t = describe(&got.t[i]);
        if (cairn_restore_add(restore, &t, &err) < 0)
            die("ask for a tensor", &err);
    }
    if (cairn_restore_run(restore, 600000, NULL, NULL, &err) < 0)
        die("restore", &err);
    double took = now() - begin;
    for (unsigned i = 0; i < NKINDS; i++)
        equal &= memcmp(want.t[i].data, got.t[i].data, want.t[i].bytes) == 0;
    printf("{\"bytes\": %llu, \"restore_s\": %.4f, \"equal\": %s}\n", (unsigned long long)got.bytes, took,
           equal ? "true" : "false");
    cairn_restore_free(restore);
    cairn_session_close(session);
    return equal ? 0 : 1;
}

int main(int argc, char **argv)
{
    static const struct option long_options[] = {
        {"socket", required_argument, NULL, 's'},  {"mib", required_argument, NULL, 'm'},
        {"saves", required_argument, NULL, 'n'},   {"threads", required_argument, NULL, 't'},
        {"changed", required_argument, NULL, 'c'}, {NULL, 0, NULL, 0}};
    struct options o = {.state_bytes = (uint64_t)1 << 30, .saves = 3, .threads = 1, .seed = 7};
    int c;

    while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        if (c == 's')
            o.socket = optarg;
        else if (c == 'm')
            o.state_bytes = strtoull(optarg, NULL, 10) << 20;
        else if (c == 'n')
            o.saves = (unsigned)strtoul(optarg, NULL, 10);
        else if (c == 't')
            o.threads = (unsigned)strtoul(optarg, NULL, 10);
        else if (c == 'c')
            o.changed = (unsigned)strtoul(optarg, NULL, 10) % 101;
        else
            return 2;
    }
    if (optind + 1 == argc && strcmp(argv[optind], "save") == 0)
        return cmd_save(&o);
    if (optind + 1 == argc && strcmp(argv[optind], "restore") == 0)
        return cmd_restore(&o);
    if (optind + 1 == argc && strcmp(argv[optind], "hot") == 0)
        return cmd_hot(&o);
    if (optind + 1 == argc && strcmp(argv[optind], "step") == 0)
        return cmd_step(&o);
    fprintf(stderr, "usage: bench-state save|restore|hot|step --socket PATH [--mib N] [--saves N] [--threads N] "
                    "[--changed PERCENT]\n");
    return 2;
}
