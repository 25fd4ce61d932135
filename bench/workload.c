/* SPDX-License-Identifier: Apache-2.0 */
/* bench-workload: one rank with a workload's tensors (bench/table.h), which does what it is told line by line and
 * answers each line with one JSON object, so that bench/run can take turns between it and other programs.
 *
 *     save       begin, add, seal: {"stall_s", "cpu_s", "copied": the share of the bytes that were copied, "step"}
 *     commit     waits for the saves so far: {"commit_s": of each since its begin}
 *     copy K T   the state into mapped memory by a loop of floor_copy.c (pages, lines, memcpy, read; best: the fastest
 *                that copies) with T threads: {"s", "loop"}
 *     back T     from there to the tensors, by the fastest loop: {"s", "loop"}
 *     touch F    changes a byte in the share F of all pages: {"pages", "s"}
 *     restore    the latest checkpoint into the tensors' memory: {"restore_s", "equal": to what it was filled with}
 *     quit
 *
 * Without --socket there is no session: copy and touch only. */
#include "bench/clock.h"
#include "bench/floor_copy.h"
#include "bench/table.h"

#include <cairn/cairn.h>

#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_PENDING 64
#define MIB ((uint64_t)1 << 20)

struct options {
    const char *socket, *job, *table, *data, *start_id;
    uint64_t max_bytes;
    double snapshots; /* that the arena holds, besides a quarter of one */
    unsigned threads, rank, world;
    bool observer, track;
};

struct pending {
    struct cairn_save *save;
    double begin;
};

struct rank {
    struct options o;
    struct table table;
    struct cairn_session *session;
    struct floor_piece *pieces; /* from the tensors to the landing */
    char *landing;
    signed char best_there[FLOOR_MAX_THREADS + 1]; /* 1 + the fastest loop for so many threads; 0: not known yet */
    signed char best_back[FLOOR_MAX_THREADS + 1];
    uint64_t step, touches;
    struct pending pending[MAX_PENDING];
    unsigned npending;
};

static int fail(const char *what, const struct cairn_error *err)
{
    fprintf(stderr, "bench-workload: %s: %s\n", what, err ? err->message : "failed");
    return -1;
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* Shared memory as an arena is: mapped, faulted in, in huge pages where the kernel gives them. */
static char *landing_make(size_t bytes)
{
    int fd = memfd_create("bench-landing", MFD_CLOEXEC);
    char *p = MAP_FAILED;

    if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0)
        p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd >= 0)
        close(fd);
    if (p == MAP_FAILED)
        return NULL;
    (void)madvise(p, bytes, MADV_HUGEPAGE);
    memset(p, 1, bytes);
    return p;
}

static int pieces_make(struct rank *r)
{
    r->landing = landing_make(r->table.mapped);
    r->pieces = calloc(r->table.n, sizeof *r->pieces);
    if (!r->landing || !r->pieces)
        return fail("no memory to copy to", NULL);
    for (size_t i = 0; i < r->table.n; i++) {
        struct table_tensor *t = &r->table.t[i];
        r->pieces[i] = (struct floor_piece){r->landing + (t->data - r->table.memory), t->data, t->bytes};
    }
    return 0;
}

/* The fastest loop for these pieces and so many threads, found out once. */
static enum floor_kind best_of(const struct rank *r, signed char *known, const struct floor_piece *pieces,
                               unsigned threads)
{
    if (threads > FLOOR_MAX_THREADS)
        return FLOOR_PAGES; /* floor_run refuses it */
    if (known[threads] == 0)
        known[threads] = (signed char)(1 + floor_best(pieces, r->table.n, threads));
    return (enum floor_kind)(known[threads] - 1);
}

static int do_copy(struct rank *r, const char *name, unsigned threads)
{
    if (!r->landing && pieces_make(r) < 0)
        return -1;
    enum floor_kind kind = FLOOR_PAGES;
    if (strcmp(name, "best") == 0)
        kind = best_of(r, r->best_there, r->pieces, threads);
    else
        while (kind < FLOOR_READ && strcmp(floor_name(kind), name) != 0)
            kind++;
    double used = cpu(), s = floor_run(kind, r->pieces, r->table.n, threads);
    if (s < 0)
        return fail("copy best|pages|lines|memcpy|read THREADS", NULL);
    printf("{\"s\": %.9f, \"cpu_s\": %.6f, \"loop\": \"%s\"}\n", s, cpu() - used, floor_name(kind));
    return 0;
}

/* What a restore from memory cannot beat. The landing first gets what the tensors have. */
static int do_back(struct rank *r, unsigned threads)
{
    if (!r->landing && pieces_make(r) < 0)
        return -1;
    struct floor_piece *back = calloc(r->table.n, sizeof *back);
    if (!back)
        return fail("no memory for the pieces", NULL);
    for (size_t i = 0; i < r->table.n; i++)
        back[i] = (struct floor_piece){r->table.t[i].data, r->pieces[i].to, r->pieces[i].len};
    memcpy(r->landing, r->table.memory, r->table.mapped);
    enum floor_kind kind = best_of(r, r->best_back, back, threads);
    double s = floor_run(kind, back, r->table.n, threads);
    free(back);
    if (s < 0)
        return fail("back THREADS", NULL);
    printf("{\"s\": %.9f, \"loop\": \"%s\"}\n", s, floor_name(kind));
    return 0;
}

static int do_touch(struct rank *r, double share)
{
    double begin = now();
    size_t pages = table_touch(&r->table, share, ++r->touches);

    printf("{\"pages\": %zu, \"s\": %.9f}\n", pages, now() - begin);
    return 0;
}

/* ---- saves ----------------------------------------------------------------------------------- */

static int open_session(struct rank *r)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    double room = (double)r->table.mapped * (r->o.snapshots + 0.25);
    struct cairn_session_options so = {.size = sizeof so,
                                       .job = r->o.job,
                                       .rank = r->o.rank,
                                       .world_size = r->o.world,
                                       .start_id = r->o.start_id,
                                       .arena_bytes = (uint64_t)room / MIB * MIB + 32 * MIB,
                                       .socket_path = r->o.socket,
                                       .timeout_ms = 120000,
                                       .copy_threads = r->o.threads,
                                       .flags = (r->o.observer ? CAIRN_OBSERVER : 0) | (r->o.track ? CAIRN_TRACK : 0)};

    return cairn_session_open(&so, &r->session, &err) < 0 ? fail("open a session", &err) : 0;
}

static struct cairn_tensor describe(const struct table_tensor *t)
{
    return (struct cairn_tensor){.size = sizeof(struct cairn_tensor),
                                 .name = t->name,
                                 .dtype = t->dtype,
                                 .ndim = t->ndim,
                                 .shape = t->shape,
                                 .data = t->data};
}

/* What seal copied, of what was to be saved; all of it where nothing is tracked. */
static double copied_share(const struct cairn_save *save)
{
    struct cairn_save_info info = {.size = sizeof info};

    if (cairn_save_info(save, &info) == 0 && info.bytes > 0)
        return (double)info.copied_bytes / (double)info.bytes;
    return 1;
}

static int do_save(struct rank *r)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_save_options so = {
        .size = sizeof so, .step = r->step + 1, .on_busy = CAIRN_BUSY_WAIT, .timeout_ms = 120000};
    struct pending *p = &r->pending[r->npending];

    if (r->npending == MAX_PENDING)
        return fail("too many saves without a commit", NULL);
    double used = cpu();
    p->begin = now();
    if (cairn_save_begin(r->session, &so, &p->save, &err) < 0)
        return fail("begin a save", &err);
    r->npending++;
    for (size_t i = 0; i < r->table.n; i++) {
        struct cairn_tensor t = describe(&r->table.t[i]);
        if (cairn_save_add(p->save, &t, &err) < 0)
            return fail("add a tensor", &err);
    }
    if (cairn_save_seal(p->save, &err) < 0)
        return fail("seal", &err);
    double stall = now() - p->begin;
    used = cpu() - used;
    printf("{\"stall_s\": %.9f, \"cpu_s\": %.6f, \"copied\": %.6f, \"step\": %llu}\n", stall, used,
           copied_share(p->save), (unsigned long long)++r->step);
    return 0;
}

static int do_commit(struct rank *r)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    double used = cpu();
    int code = 0;

    printf("{\"commit_s\": [");
    for (unsigned i = 0; i < r->npending; i++) {
        if (code == 0 && cairn_save_wait(r->pending[i].save, CAIRN_COMMITTED, 300000, &err) < 0)
            code = fail("wait for the commit", &err);
        printf("%s%.9f", i ? ", " : "", now() - r->pending[i].begin);
        cairn_save_free(r->pending[i].save);
    }
    r->npending = 0;
    printf("], \"cpu_s\": %.6f}\n", cpu() - used);
    return code;
}

/* ---- restore --------------------------------------------------------------------------------- */

static bool equal(const struct rank *r, const char *wanted)
{
    for (size_t i = 0; i < r->table.n; i++) {
        const struct table_tensor *t = &r->table.t[i];
        if (memcmp(t->data, wanted + (t->data - r->table.memory), t->bytes) != 0)
            return false;
    }
    return true;
}

static int restore_into(struct rank *r, double *ret_s)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_restore *restore;
    double begin = now();
    int code = 0;

    if (cairn_restore_open(r->session, CAIRN_LATEST, 60000, &restore, &err) < 0)
        return fail("open the checkpoint", &err);
    for (size_t i = 0; i < r->table.n && code == 0; i++) {
        struct cairn_tensor t = describe(&r->table.t[i]);
        if (cairn_restore_add(restore, &t, &err) < 0)
            code = fail("ask for a tensor", &err);
    }
    if (code == 0 && cairn_restore_run(restore, 300000, NULL, NULL, &err) < 0)
        code = fail("restore", &err);
    *ret_s = now() - begin;
    cairn_restore_free(restore);
    return code;
}

/* What the tensors held goes aside first and they are wiped: what equals afterwards was restored. */
static int do_restore(struct rank *r)
{
    double s = 0, used;

    if (!r->landing && pieces_make(r) < 0)
        return -1;
    memcpy(r->landing, r->table.memory, r->table.mapped);
    memset(r->table.memory, 0x5a, r->table.mapped);
    used = cpu();
    if (restore_into(r, &s) < 0)
        return -1;
    used = cpu() - used;
    printf("{\"restore_s\": %.9f, \"cpu_s\": %.6f, \"equal\": %s}\n", s, used, equal(r, r->landing) ? "true" : "false");
    return 0;
}

/* ---- lines ----------------------------------------------------------------------------------- */

static int obey(struct rank *r, const char *line)
{
    char kind[16];
    unsigned threads;
    double share;

    if (sscanf(line, "copy %15s %u", kind, &threads) == 2)
        return do_copy(r, kind, threads);
    if (sscanf(line, "back %u", &threads) == 1)
        return do_back(r, threads);
    if (sscanf(line, "touch %lf", &share) == 1)
        return do_touch(r, share);
    if (r->session && strcmp(line, "save\n") == 0)
        return do_save(r);
    if (r->session && strcmp(line, "commit\n") == 0)
        return do_commit(r);
    if (r->session && strcmp(line, "restore\n") == 0)
        return do_restore(r);
    fprintf(stderr, "bench-workload: cannot do: %s", line);
    return -1;
}

static int serve(struct rank *r)
{
    char line[64];
    double begin = now();
    int code = 0;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (table_read(&r->table, r->o.table, r->o.max_bytes) < 0 || table_fill(&r->table, r->o.data) < 0)
        return -1;
    double filled = now();
    if (r->o.socket && open_session(r) < 0)
        return -1;
    printf("{\"bytes\": %llu, \"tensors\": %zu, \"fill_s\": %.6f, \"open_s\": %.6f, \"tracks\": %s}\n",
           (unsigned long long)r->table.bytes, r->table.n, filled - begin, now() - filled,
           r->o.track ? "true" : "false");
    while (code == 0 && fgets(line, sizeof line, stdin) && strcmp(line, "quit\n") != 0)
        code = obey(r, line);
    return code;
}

static void rank_free(struct rank *r)
{
    for (unsigned i = 0; i < r->npending; i++)
        cairn_save_free(r->pending[i].save);
    cairn_session_close(r->session);
    if (r->landing)
        munmap(r->landing, r->table.mapped);
    free(r->pieces);
    table_free(&r->table);
}

static int parse(struct options *o, int argc, char **argv)
{
    static const struct option long_options[] = {{"socket", required_argument, NULL, 's'},
                                                 {"job", required_argument, NULL, 'j'},
                                                 {"table", required_argument, NULL, 't'},
                                                 {"data", required_argument, NULL, 'd'},
                                                 {"bytes", required_argument, NULL, 'b'},
                                                 {"snapshots", required_argument, NULL, 'n'},
                                                 {"threads", required_argument, NULL, 'c'},
                                                 {"rank", required_argument, NULL, 'r'},
                                                 {"world", required_argument, NULL, 'w'},
                                                 {"start-id", required_argument, NULL, 'i'},
                                                 {"observer", no_argument, NULL, 'o'},
                                                 {"track", no_argument, NULL, 'k'},
                                                 {NULL, 0, NULL, 0}};
    int c;

    while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        const char **text = c == 's'   ? &o->socket
                            : c == 'j' ? &o->job
                            : c == 't' ? &o->table
                            : c == 'd' ? &o->data
                            : c == 'i' ? &o->start_id
                                       : NULL;
        unsigned *number = c == 'c' ? &o->threads : c == 'r' ? &o->rank : c == 'w' ? &o->world : NULL;
        if (text)
            *text = optarg;
        else if (number)
            *number = (unsigned)strtoul(optarg, NULL, 10);
        else if (c == 'b')
            o->max_bytes = strtoull(optarg, NULL, 10);
        else if (c == 'n')
            o->snapshots = strtod(optarg, NULL);
        else if (c == 'o')
            o->observer = true;
        else if (c == 'k')
            o->track = true;
        else
            return -1;
    }
    return optind == argc && o->table && o->snapshots > 0 && o->snapshots < 16 ? 0 : -1;
}

int main(int argc, char **argv)
{
    struct rank r = {.o = {.job = "bench", .snapshots = 1, .threads = 1, .world = 1}};

    if (parse(&r.o, argc, argv) < 0) {
        fprintf(stderr,
                "usage: bench-workload --table FILE [--data FILE] [--bytes N] [--socket PATH] [--job NAME]\n"
                "           [--snapshots N] [--threads N] [--rank N --world N --start-id ID] [--observer] [--track]\n");
        return 2;
    }
    int code = serve(&r);
    rank_free(&r);
    return code < 0;
}
