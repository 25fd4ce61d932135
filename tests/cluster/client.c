/* SPDX-License-Identifier: Apache-2.0 */
/* cluster-client: one rank whose state is a function of (seed, step, rank), so that whoever restores a step can say
 * whether every byte is right. With an even seed a step changes one page in 29, a tensor moves now and then, and the
 * session tracks writes. Prints one line for each thing that happened; the tests read them.
 *
 *     save      saves steps first..last: "committed STEP" (unless --no-wait), "failed STEP CODE WHY"
 *
 *     verify    restores --step (or latest) as --world ranks saved it and compares: "verified STEP BYTES"
 *
 *     hot       saves one step as a rank, "committed STEP", and once it reads a byte restores it from its own arena
 *
 *     status, list, check    the daemon's JSON
 *
 *     bad       sends the tensor table of --case and expects its refusal: "refused MESSAGE"
 *
 *     --stops     stops in the middle of each copy or restore, prints "copying STEP" and goes on when it reads a byte
 *
 *     --waits     a restore prints "ready STEP" before it begins, and begins when it reads a byte
 *
 *     --rounds N  waits so many times for a commit before it gives up
 *
 *     --replicated    every rank saves one whole tensor under one name, each with bytes of its own
 *
 *     --as-rank   verifies as rank --rank of start --start-id, not as an observer of all ranks
 *
 *     --lingers   waits for its last save only, once it reads a byte
 *
 *     --staged    saves in two steps: every second tensor is written where it lies, by turns. Between the two prints
 *                 "staged STEP" and reads bytes: 'l' asks for the latest step ("asked STEP CODE"), 'g' goes on */
#include "bench/random.h"

#include <cairn/cairn.h>

#include <getopt.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct options {
    const char *job, *start_id, *bad_case;
    uint32_t rank, world;
    uint64_t bytes, first, last, seed, step, arena_mib;
    bool no_wait, take_over, stops, lingers, waits, staged, replicated, as_rank;
    unsigned rounds;               /* waits for a commit */
    uint32_t timeout_ms, pause_ms; /* pause_ms: between two saves */
    unsigned tiny;                 /* so many tensors of a few bytes instead */
    bool empty;                    /* no tensor at all */
};

/* Memory whose first touch waits for the test: a copy stops in it. One at a time, for a signal handler has no argument.
 */
static struct {
    char *memory;
    size_t len;
    uint64_t step;
} trap;

static void trapped(int signal_number, siginfo_t *info, void *context)
{
    char text[40], byte;

    (void)context;
    if ((char *)info->si_addr < trap.memory || (char *)info->si_addr >= trap.memory + trap.len) {
        signal(signal_number, SIG_DFL); /* a real one: again, and to the end */
        return;
    }
    int n = snprintf(text, sizeof text, "copying %llu\n", (unsigned long long)trap.step);
    if (write(STDOUT_FILENO, text, (size_t)n) != n || read(STDIN_FILENO, &byte, 1) != 1)
        _exit(3);
    mprotect(trap.memory, trap.len, PROT_READ | PROT_WRITE);
}

static char *trap_alloc(size_t len)
{
    struct sigaction action = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO};

    trap.len = (len + 8 + 4095) / 4096 * 4096;
    trap.memory = mmap(NULL, trap.len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (trap.memory == MAP_FAILED || sigaction(SIGSEGV, &action, NULL) < 0)
        exit(3);
    return trap.memory;
}

static const int dtypes[] = {CAIRN_BF16, CAIRN_F32, CAIRN_I64, CAIRN_BOOL, CAIRN_F8_E4M3, CAIRN_C64, CAIRN_BYTES};
#define NTENSORS (sizeof dtypes / sizeof dtypes[0])

struct tensor {
    char name[64];
    int dtype;
    uint32_t ndim;
    uint64_t shape[2], offset[2], length[2];
    uint64_t bytes; /* of the slice */
    char *data;
    bool replica;
    uint32_t owner; /* of a replica: whose bytes */
};
struct state {
    unsigned n;
    struct tensor *t;
    uint64_t bytes;
};

/* Each rank has its rows of every tensor; one is empty, one a scalar that rank 0 saves. */
static void state_make(struct state *s, const struct options *o)
{
    s->n = o->empty ? 0 : o->tiny ? o->tiny : NTENSORS + 2 + o->replicated;
    s->t = calloc(s->n + 1, sizeof *s->t);
    s->bytes = 0;
    for (unsigned i = 0; i < s->n; i++) {
        struct tensor *t = &s->t[i];
        uint64_t size, rows;
        snprintf(t->name, sizeof t->name, "layer.%u.weight", i);
        t->dtype = dtypes[i % NTENSORS];
        size = cairn_dtype_size(t->dtype);
        rows = o->tiny ? 1 : o->bytes / NTENSORS / size / 16 + 1;
        t->ndim = 2;
        t->shape[0] = rows * o->world;
        t->shape[1] = o->tiny ? 1 + i % 3 : 16;
        t->offset[0] = rows * o->rank;
        t->length[0] = rows;
        t->length[1] = t->shape[1];
        if (!o->tiny && i == NTENSORS) {
            t->shape[0] = t->offset[0] = t->length[0] = 0;
        } else if (!o->tiny && i == NTENSORS + 1) {
            t->ndim = 0;
            snprintf(t->name, sizeof t->name, "scalar.%u", o->rank);
        } else if (!o->tiny && i == NTENSORS + 2) {
            t->offset[0] = 0;
            t->length[0] = t->shape[0];
            t->replica = true;
            t->owner = o->rank;
        }
        t->bytes = size;
        for (unsigned d = 0; d < t->ndim; d++)
            t->bytes *= t->length[d];
        t->data = i == 0 && o->stops ? trap_alloc(t->bytes) : calloc(1, t->bytes + 8);
        s->bytes += t->bytes;
    }
}

static void state_free(struct state *s)
{
    for (unsigned i = 0; i < s->n; i++)
        if (s->t[i].data != trap.memory)
            free(s->t[i].data);
    free(s->t);
}

static bool is_sparse(const struct options *o)
{
    return o->seed % 2 == 0;
}

/* The step that wrote a page of the tensor last. */
static uint64_t last_write(uint64_t step, uint64_t page)
{
    uint64_t ago = (step + 29 - page % 29) % 29;

    return step > ago ? step - ago : 0;
}

static uint64_t word(const struct options *o, uint64_t step, const struct tensor *t, unsigned i, uint64_t at)
{
    uint64_t base = t->ndim ? t->offset[0] * t->length[1] * cairn_dtype_size(t->dtype) : 0;

    if (is_sparse(o))
        step = last_write(step, i + (base + at) / 4096);
    if (t->replica)
        return mix(o->seed ^ step << 32 ^ at) ^ t->owner;
    if (i % 3 == 2) /* repeats, so that a codec pays */
        return (base + at) / 512;
    if (i % 3 == 1) /* a bit of each byte changes from step to step, so that a delta pays */
        return mix(o->seed ^ (uint64_t)i << 56 ^ (base + at)) ^
               (mix(o->seed ^ step << 32 ^ (base + at)) & 0x0101010101010101ull);
    return mix(o->seed ^ step << 32 ^ (uint64_t)i << 56 ^ (base + at) ^ (t->ndim ? 0 : o->rank));
}

/* The tensor's memory is another one from now on. */
static void move(struct tensor *t)
{
    char *to = malloc(t->bytes + 8);

    if (!to)
        exit(3);
    memcpy(to, t->data, t->bytes);
    free(t->data);
    t->data = to;
}

/* Writes only what changes. */
static void state_fill(struct state *s, const struct options *o, uint64_t step)
{
    if (s->n && is_sparse(o) && step % 37 == 0)
        move(&s->t[step % s->n]);
    for (unsigned i = 0; i < s->n; i++) {
        char *data = s->t[i].data;
        for (uint64_t at = 0; at < s->t[i].bytes; at++) {
            char b = (char)(word(o, step, &s->t[i], i, at & ~7ull) >> (at & 7) * 8);
            if (data[at] != b)
                data[at] = b;
        }
    }
}

static struct cairn_tensor describe(struct tensor *t)
{
    return (struct cairn_tensor){.size = sizeof(struct cairn_tensor),
                                 .name = t->name,
                                 .dtype = t->dtype,
                                 .ndim = t->ndim,
                                 .shape = t->shape,
                                 .offset = t->offset,
                                 .length = t->length,
                                 .data = t->data};
}

static int fail(const char *what, const struct cairn_error *err)
{
    printf("error %s %s %s\n", what, cairn_code_name(err->code), err->message);
    return 1;
}

static int open_session(const struct options *o, uint32_t flags, const struct state *s, struct cairn_session **ret,
                        struct cairn_error *err)
{
    struct cairn_session_options so = {
        .size = sizeof so,
        .job = o->job,
        .rank = o->rank,
        .world_size = o->world,
        .start_id = o->start_id,
        .arena_bytes = o->arena_mib ? o->arena_mib << 20 : s->bytes * 5 / 2 + (24u << 20),
        .timeout_ms = o->timeout_ms,
        .flags = flags | (o->take_over ? CAIRN_TAKE_OVER : 0u) | (is_sparse(o) ? CAIRN_TRACK : 0u)};

    return cairn_session_open(&so, ret, err);
}

static bool is_placed(const struct options *o, uint64_t step, unsigned i)
{
    return o->staged && (step + i) % 2 == 0;
}

static int add_all(struct cairn_save *save, struct state *s, const struct options *o, uint64_t step,
                   struct cairn_error *err)
{
    int r = 0;

    for (unsigned i = 0; i < s->n && r == 0; i++) {
        struct cairn_tensor t = describe(&s->t[i]);
        if (is_placed(o, step, i))
            t.data = NULL;
        r = cairn_save_add(save, &t, err);
    }
    return r;
}

/* Stages, does what it is told to, and writes what was not copied. */
static int stage(struct cairn_session *session, struct cairn_save *save, struct state *s, const struct options *o,
                 uint64_t step, struct cairn_error *err)
{
    struct cairn_error ignored = CAIRN_ERROR_INIT;
    int r = cairn_save_stage(save, err), c;
    uint64_t latest;

    if (r < 0)
        return r;
    printf("staged %llu\n", (unsigned long long)step);
    while ((c = getchar()) == 'l')
        printf("asked %llu %s\n", (unsigned long long)step, cairn_code_name(cairn_latest(session, &latest, &ignored)));
    for (unsigned i = 0; i < s->n && r == 0; i++) {
        void *place;
        r = cairn_save_place(save, i, &place, err);
        if (r == 0 && is_placed(o, step, i))
            memcpy(place, s->t[i].data, s->t[i].bytes);
    }
    return r;
}

static int linger(struct cairn_save *save, const struct options *o, uint64_t step, struct cairn_error *err)
{
    char byte;

    if (read(STDIN_FILENO, &byte, 1) != 1)
        return cairn_save_wait(save, CAIRN_SNAPSHOT, 0, err);
    int r = cairn_save_wait(save, CAIRN_COMMITTED, o->timeout_ms, err);
    if (r == 0)
        printf("committed %llu\n", (unsigned long long)step);
    return r;
}

static void save_step(struct cairn_session *session, struct state *s, const struct options *o, uint64_t step, bool last)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_save_options so = {
        .size = sizeof so, .step = step, .on_busy = CAIRN_BUSY_WAIT, .timeout_ms = o->timeout_ms};
    struct cairn_save *save = NULL;
    int r;

    state_fill(s, o, step);
    if (o->stops) {
        trap.step = step;
        mprotect(trap.memory, trap.len, PROT_NONE);
    }
    r = cairn_save_begin(session, &so, &save, &err);
    if (r == 0)
        r = add_all(save, s, o, step, &err);
    if (r == 0 && o->staged)
        r = stage(session, save, s, o, step, &err);
    if (r == 0)
        r = cairn_save_seal(save, &err);
    if (r == 0) {
        printf("sealed %llu\n", (unsigned long long)step);
        if (last && o->lingers)
            r = linger(save, o, step, &err);
        for (unsigned n = 0; !o->no_wait && n < o->rounds; n++) {
            r = cairn_save_wait(save, CAIRN_COMMITTED, o->timeout_ms, &err);
            if (r == 0 || n + 1 == o->rounds)
                break;
            printf("waiting %llu %s %s\n", (unsigned long long)step, cairn_code_name(r), err.message);
        }
    }
    if (r < 0) {
        printf("failed %llu %s %s\n", (unsigned long long)step, cairn_code_name(r), err.message);
        nanosleep(&(struct timespec){.tv_nsec = 20 * 1000000},
                  NULL); /* a training step; a loop of failures would only burn */
    } else if (!o->no_wait) {
        printf("committed %llu\n", (unsigned long long)step);
    }
    if (save)
        cairn_save_free(save);
}

static void pause_then_save(struct cairn_session *session, struct state *s, const struct options *o, uint64_t step,
                            bool last)
{
    nanosleep(&(struct timespec){.tv_sec = o->pause_ms / 1000, .tv_nsec = o->pause_ms % 1000 * 1000000L}, NULL);
    save_step(session, s, o, step, last);
}

static int cmd_save(const struct options *o)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_session *session;
    struct state s;
    uint64_t latest = 0;

    state_make(&s, o);
    if (open_session(o, 0, &s, &session, &err) < 0) {
        state_free(&s);
        return fail("open", &err);
    }
    int r = cairn_latest(session, &latest, &err);
    if (r < 0 && r != CAIRN_E_NOT_FOUND) {
        cairn_session_close(session);
        state_free(&s);
        return fail("latest", &err);
    }
    printf("opened %llu latest %lld\n", (unsigned long long)cairn_session_incarnation(session),
           r < 0 ? -1ll : (long long)latest);
    for (uint64_t step = o->first ? o->first : r < 0 ? 1 : latest + 1, n = 0; n < o->last; step++, n++)
        pause_then_save(session, &s, o, step, n + 1 == o->last);
    cairn_session_close(session);
    state_free(&s);
    return 0;
}

static int restore_state(struct cairn_restore *restore, struct state *got, const struct options *o,
                         struct cairn_error *err)
{
    int r = 0;

    for (unsigned i = 0; i < got->n && r == 0; i++) {
        struct cairn_tensor t = describe(&got->t[i]);
        memset(got->t[i].data, 0x5a, got->t[i].bytes);
        r = cairn_restore_add(restore, &t, err);
    }
    if (o->stops) {
        trap.step = o->step;
        mprotect(trap.memory, trap.len, PROT_NONE);
    }
    return r < 0 ? r : cairn_restore_run(restore, o->timeout_ms, NULL, NULL, err);
}

static int compare(const struct state *want, const struct state *got, uint64_t step)
{
    for (unsigned i = 0; i < got->n; i++) {
        if (memcmp(want->t[i].data, got->t[i].data, want->t[i].bytes) == 0)
            continue;
        printf("differs step %llu tensor %s\n", (unsigned long long)step, want->t[i].name);
        return 1;
    }
    return 0;
}

static bool read_byte(void)
{
    char byte;

    return read(STDIN_FILENO, &byte, 1) == 1;
}

static int verify_rank(struct cairn_session *session, const struct options *o, uint64_t *ret_step)
{
    struct options untrapped = *o;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_restore *restore = NULL;
    struct cairn_checkpoint_info info = {.size = sizeof info};
    struct state want, got;
    int r = cairn_restore_open(session, o->step, o->timeout_ms, &restore, &err);

    if (r < 0)
        return fail("restore_open", &err);
    untrapped.stops = false;
    state_make(&want, &untrapped);
    state_make(&got, o);
    for (unsigned i = 0; i < want.n; i++)
        want.t[i].owner = o->as_rank ? o->rank : 0; /* an observer reads the lowest rank's */
    cairn_restore_info(restore, &info);
    if (o->waits) {
        printf("ready %llu\n", (unsigned long long)info.step);
        if (!read_byte())
            exit(3);
    }
    r = restore_state(restore, &got, o, &err);
    cairn_restore_free(restore);
    if (r < 0) {
        r = fail("restore", &err);
    } else {
        state_fill(&want, o, info.step);
        r = compare(&want, &got, info.step);
    }
    state_free(&want);
    state_free(&got);
    *ret_step = info.step;
    return r;
}

static int cmd_verify(const struct options *o)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_session *session;
    struct options rank = *o;
    struct state s = {.bytes = 0};
    uint64_t step = 0;

    if (open_session(o, o->as_rank ? 0 : CAIRN_OBSERVER, &s, &session, &err) < 0)
        return fail("open", &err);
    int r = o->as_rank ? verify_rank(session, o, &step) : 0;
    for (rank.rank = o->as_rank ? o->world : 0; rank.rank < o->world && r == 0; rank.rank++)
        r = verify_rank(session, &rank, &step);
    if (r == 0)
        printf("verified %llu\n", (unsigned long long)step);
    cairn_session_close(session);
    return r;
}

static int cmd_hot(const struct options *o)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct options saver = *o;
    struct cairn_session *session;
    struct state s;
    uint64_t step;
    int r;

    saver.stops = false;
    state_make(&s, &saver);
    if (open_session(o, 0, &s, &session, &err) < 0) {
        state_free(&s);
        return fail("open", &err);
    }
    save_step(session, &s, &saver, o->first, false);
    r = read_byte() ? verify_rank(session, o, &step) : 3;
    if (r == 0)
        printf("verified %llu\n", (unsigned long long)step);
    cairn_session_close(session);
    state_free(&s);
    return r;
}

/* Has a checkpoint open until its input ends. */
static int cmd_hold(const struct options *o)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_checkpoint_info info = {.size = sizeof info};
    struct cairn_session *session;
    struct cairn_restore *restore;
    struct state s = {.bytes = 0};

    if (open_session(o, CAIRN_OBSERVER, &s, &session, &err) < 0)
        return fail("open", &err);
    if (cairn_restore_open(session, o->step, o->timeout_ms, &restore, &err) < 0) {
        cairn_session_close(session);
        return fail("restore_open", &err);
    }
    cairn_restore_info(restore, &info);
    printf("holding %llu\n", (unsigned long long)info.step);
    while (getchar() != EOF)
        ;
    cairn_restore_free(restore);
    cairn_session_close(session);
    return 0;
}

static int cmd_query(const struct options *o, int kind)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_session *session;
    struct state s = {.bytes = 0};
    char *json;

    if (open_session(o, CAIRN_OBSERVER, &s, &session, &err) < 0)
        return fail("open", &err);
    if (cairn_query(session, kind, kind == CAIRN_QUERY_STATUS ? NULL : o->job, o->step, o->timeout_ms, &json, &err) < 0)
        return fail("query", &err);
    printf("%s\n", json);
    free(json);
    cairn_session_close(session);
    return 0;
}

/* ---- bad tensor tables ----------------------------------------------------------------------- */

static int bad_table(struct cairn_save *save, const char *name, struct cairn_error *err)
{
    static char data[4096], long_name[65 * 1024];
    uint64_t shape[2] = {8, 8}, offset[2] = {0, 0}, length[2] = {8, 8};
    struct cairn_tensor t = {.size = sizeof t,
                             .name = "w",
                             .dtype = CAIRN_F32,
                             .ndim = 2,
                             .shape = shape,
                             .offset = offset,
                             .length = length,
                             .data = data};

    memset(long_name, 'x', sizeof long_name - 1);
    if (strcmp(name, "overlap") == 0 && cairn_save_add(save, &t, err) == 0)
        offset[0] = 4, length[0] = 4;
    else if (strcmp(name, "range") == 0)
        offset[1] = 4;
    else if (strcmp(name, "zero") == 0)
        length[0] = 0;
    else if (strcmp(name, "overflow") == 0)
        shape[0] = shape[1] = length[0] = length[1] = (uint64_t)1 << 40;
    else if (strcmp(name, "offset-overflow") == 0)
        offset[0] = UINT64_MAX - 2;
    else if (strcmp(name, "no-name") == 0)
        t.name = "";
    else if (strcmp(name, "long-name") == 0)
        t.name = long_name;
    else if (strcmp(name, "dtype") == 0)
        t.dtype = 99;
    int r = cairn_save_add(save, &t, err);
    return r < 0 ? r : cairn_save_seal(save, err);
}

static int cmd_bad(const struct options *o)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_save_options so = {.size = sizeof so, .step = 1};
    struct cairn_session *session;
    struct cairn_save *save;
    struct state s = {.bytes = 0};

    if (open_session(o, 0, &s, &session, &err) < 0)
        return fail("open", &err);
    if (cairn_save_begin(session, &so, &save, &err) < 0)
        return fail("begin", &err);
    int r = bad_table(save, o->bad_case, &err);
    printf("%s %s %s\n", r < 0 ? "refused" : "accepted", cairn_code_name(r), err.message);
    cairn_save_free(save);
    cairn_session_close(session);
    return r < 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    static const struct option long_options[] = {
        {"job", 1, NULL, 'j'},   {"start-id", 1, NULL, 'i'}, {"rank", 1, NULL, 'r'},       {"world", 1, NULL, 'w'},
        {"bytes", 1, NULL, 'b'}, {"first", 1, NULL, 'f'},    {"count", 1, NULL, 'n'},      {"seed", 1, NULL, 's'},
        {"step", 1, NULL, 'p'},  {"no-wait", 0, NULL, 'N'},  {"timeout", 1, NULL, 't'},    {"arena-mib", 1, NULL, 'a'},
        {"case", 1, NULL, 'c'},  {"tiny", 1, NULL, 'y'},     {"take-over", 0, NULL, 'o'},  {"empty", 0, NULL, 'e'},
        {"pause", 1, NULL, 'P'}, {"stops", 0, NULL, 'S'},    {"rounds", 1, NULL, 'R'},     {"lingers", 0, NULL, 'L'},
        {"waits", 0, NULL, 'W'}, {"staged", 0, NULL, 'G'},   {"replicated", 0, NULL, 'D'}, {"as-rank", 0, NULL, 'A'},
        {NULL, 0, NULL, 0}};
    struct options o = {.job = "test",
                        .start_id = "first",
                        .bad_case = "",
                        .world = 1,
                        .bytes = 8 << 20,
                        .last = 1,
                        .rounds = 1,
                        .seed = 1,
                        .step = CAIRN_LATEST,
                        .timeout_ms = 30000};
    int c;

    setvbuf(stdout, NULL, _IOLBF, 0);
    while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        uint64_t number = optarg ? strtoull(optarg, NULL, 10) : 0;
        if (c == 'j')
            o.job = optarg;
        else if (c == 'L')
            o.lingers = o.no_wait = true;
        else if (c == 'W')
            o.waits = true;
        else if (c == 'D')
            o.replicated = true;
        else if (c == 'A')
            o.as_rank = true;
        else if (c == 'G')
            o.staged = true;
        else if (c == 'i')
            o.start_id = optarg;
        else if (c == 'r')
            o.rank = (uint32_t)number;
        else if (c == 'w')
            o.world = (uint32_t)number;
        else if (c == 'b')
            o.bytes = number;
        else if (c == 'f')
            o.first = number;
        else if (c == 'n')
            o.last = number;
        else if (c == 's')
            o.seed = number;
        else if (c == 'p')
            o.step = number;
        else if (c == 'N')
            o.no_wait = true;
        else if (c == 'e')
            o.empty = true;
        else if (c == 'o')
            o.take_over = true;
        else if (c == 'S')
            o.stops = true;
        else if (c == 'R')
            o.rounds = (unsigned)number;
        else if (c == 't')
            o.timeout_ms = (uint32_t)number;
        else if (c == 'P')
            o.pause_ms = (uint32_t)number;
        else if (c == 'a')
            o.arena_mib = number;
        else if (c == 'c')
            o.bad_case = optarg;
        else if (c == 'y')
            o.tiny = (unsigned)number;
        else
            return 2;
    }
    if (optind + 1 != argc)
        return 2;
    if (strcmp(argv[optind], "save") == 0)
        return cmd_save(&o);
    if (strcmp(argv[optind], "verify") == 0)
        return cmd_verify(&o);
    if (strcmp(argv[optind], "hot") == 0)
        return cmd_hot(&o);
    if (strcmp(argv[optind], "hold") == 0)
        return cmd_hold(&o);
    if (strcmp(argv[optind], "status") == 0)
        return cmd_query(&o, CAIRN_QUERY_STATUS);
    if (strcmp(argv[optind], "list") == 0)
        return cmd_query(&o, CAIRN_QUERY_LIST);
    if (strcmp(argv[optind], "check") == 0)
        return cmd_query(&o, CAIRN_QUERY_VERIFY);
    if (strcmp(argv[optind], "bad") == 0)
        return cmd_bad(&o);
    return 2;
}
