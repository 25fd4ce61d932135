/* SPDX-License-Identifier: Apache-2.0 */
/* bench-probe-durable: what wire and direct disk do together, and nothing else: the limit of a raw durable save. A
 * sender writes pieces of 1 MiB from shared memory into the slots of its receivers (processes of their own) over
 * libfabric, as cairnd asks for it; they write each through io_uring past the page cache and sync at the end. No
 * checksums, headers or decisions, and nobody else works.
 *
 *     bench-probe-durable --directory DIR [--mib N] [--runs N] [--receivers N] [--stored R] [--slots N]
 *                         [--files new|recycled] [--provider NAME] [--keep] [--serve] --json
 *
 * Files that are new and files of the last time that are written over take turns. --stored: bytes that reach the disks
 * for each byte of state, with parity for example. The rates are of bytes of state. --serve: once ready and then for
 * each line on stdin one JSON object, so that a run may take turns with others; its files are removed at the end. */
#include "bench/clock.h"
#include "bench/probe_receiver.h"
#include "bench/random.h"

#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define SOURCE_MIB 256 /* past every cache */
#define MAX_RUNS 64
#define RUN_S 60.0 /* a run that takes longer is given up */

struct slot {
    struct fi_context2 context;
    bool sending, taken; /* not completed here; not written there */
};
struct lane {
    pid_t pid;
    int ready; /* a socket: each side tells the other that its address is there */
    unsigned peer, share, sent;
    bool ended, durable;
    struct slot slots[PROBE_MAX_SLOTS];
};
struct sender {
    const struct probe_options *o;
    struct probe_shared *shared;
    struct wire wire;
    char *source;
    struct lane lanes[WIRE_PEERS];
    unsigned pieces, started; /* receivers that were started */
    uint64_t next;            /* piece of the source */
    unsigned done;            /* answers to what was asked of all */
};

static int fail(const char *what)
{
    fprintf(stderr, "bench-probe-durable: %s: %s\n", what, strerror(errno));
    return -1;
}

/* ---- a run ----------------------------------------------------------------------------------- */

static int heard(struct sender *s, const struct wire_event *e)
{
    struct lane *lane = &s->lanes[probe_who(e->word) < s->o->receivers ? probe_who(e->word) : 0];

    if (e->written) {
        struct slot *slot = (struct slot *)((char *)e->written - offsetof(struct slot, context));
        slot->sending = false;
    } else if (probe_kind(e->word) == PROBE_SLOT_FREE && probe_value(e->word) < PROBE_MAX_SLOTS) {
        lane->slots[probe_value(e->word)].taken = false;
    } else if (probe_kind(e->word) == PROBE_DURABLE) {
        lane->durable = true;
    } else if (probe_kind(e->word) == PROBE_DONE) {
        s->done++;
    } else {
        errno = EPROTO;
        return fail("a word that makes no sense");
    }
    return 0;
}

/* As many pieces as there are free slots, then the end. Returns how many, or -1. */
static int feed(struct sender *s, unsigned index)
{
    struct lane *l = &s->lanes[index];
    int fed = 0, r;

    for (unsigned i = 0; i < s->o->slots && l->sent < l->share; i++) {
        struct slot *slot = &l->slots[i];
        if (slot->sending || slot->taken)
            continue;
        r = wire_write(&s->wire, l->peer, s->source + s->next % SOURCE_MIB * PROBE_PIECE, PROBE_PIECE, i * PROBE_PIECE,
                       probe_word(PROBE_PIECE_IN, 0, i), &slot->context);
        if (r != 0)
            return r < 0 ? r : fed;
        slot->sending = slot->taken = true;
        s->next++;
        l->sent++;
        fed++;
    }
    if (l->sent == l->share && !l->ended) {
        r = wire_tell(&s->wire, l->peer, probe_word(PROBE_END, 0, l->share));
        if (r < 0)
            return r;
        l->ended = r == 0;
    }
    return fed;
}

static int turn(struct sender *s)
{
    struct wire_event events[16];
    int work = wire_poll(&s->wire, events, 16);

    for (int i = 0; i < work; i++)
        if (heard(s, &events[i]) < 0)
            return -1;
    return work;
}

/* A turn, and sleep when nothing happens. */
static int pass(struct sender *s, int fed, double *worked)
{
    int work = turn(s);

    if (work < 0)
        return -1;
    if (work > 0 || fed > 0) {
        *worked = now();
    } else if (now() - *worked > PROBE_SPIN_S && wire_may_sleep(&s->wire)) {
        struct pollfd p = {.fd = s->wire.fd, .events = POLLIN};
        if (poll(&p, 1, 20) < 0 && errno != EINTR)
            return fail("wait for the wire");
    }
    if (now() - *worked > RUN_S) {
        errno = ETIMEDOUT;
        return fail("nothing moved");
    }
    return 0;
}

static int tell_all(struct sender *s, enum probe_word kind)
{
    for (unsigned i = 0; i < s->o->receivers; i++) {
        double worked = now();
        int r;
        while ((r = wire_tell(&s->wire, s->lanes[i].peer, probe_word(kind, 0, s->lanes[i].share))) > 0)
            if (pass(s, 0, &worked) < 0)
                return -1;
        if (r < 0)
            return -1;
    }
    return 0;
}

static bool all_durable(const struct sender *s)
{
    for (unsigned i = 0; i < s->o->receivers; i++)
        if (!s->lanes[i].durable)
            return false;
    return true;
}

/* Greets everybody, or has the new files removed: apart from what is timed. */
static int ask_all(struct sender *s, enum probe_word kind)
{
    double worked = now();

    s->done = 0;
    if (tell_all(s, kind) < 0)
        return -1;
    while (s->done < s->o->receivers)
        if (pass(s, 0, &worked) < 0)
            return -1;
    return 0;
}

/* From the first word to the last receiver's: seconds, or a negative number. */
static double run(struct sender *s, bool fresh)
{
    double begin = now(), worked = begin;

    for (unsigned i = 0; i < s->o->receivers; i++) {
        struct lane *l = &s->lanes[i];
        l->share = s->pieces / s->o->receivers + (i < s->pieces % s->o->receivers);
        l->sent = 0;
        l->ended = l->durable = false;
    }
    if (tell_all(s, fresh ? PROBE_GO_NEW : PROBE_GO_RECYCLED) < 0)
        return -1;
    while (!all_durable(s)) {
        int fed = 0;
        for (unsigned i = 0; i < s->o->receivers; i++) {
            int r = feed(s, i);
            if (r < 0)
                return -1;
            fed += r;
        }
        if (pass(s, fed, &worked) < 0)
            return -1;
    }
    double took = now() - begin;
    return fresh && ask_all(s, PROBE_CLEAN) < 0 ? -1 : took;
}

/* ---- what is printed ------------------------------------------------------------------------- */

static double all_cpu(const struct sender *s)
{
    double sum = cpu();

    for (unsigned i = 0; i < s->o->receivers; i++)
        sum += s->shared->cpu_s[i];
    return sum;
}

static int compare(const void *a, const void *b)
{
    const double *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

/* Returns the median. */
static double print_rates(const char *name, double *rates, unsigned n)
{
    printf("\"%s\": {\"bytes_per_s\": [", name);
    for (unsigned i = 0; i < n; i++)
        printf("%s%.0f", i ? ", " : "", rates[i]);
    printf("]}, ");
    qsort(rates, n, sizeof *rates, compare);
    return n ? rates[n / 2] : 0;
}

/* Whether the files of the last time are there and long enough; else one run lays them out. */
static bool laid_out(const struct sender *s)
{
    for (unsigned i = 0; i < s->o->receivers; i++) {
        char path[4096];
        struct stat st;
        probe_path(s->o, i, false, path);
        if (stat(path, &st) < 0 || (uint64_t)st.st_size < (s->pieces / s->o->receivers + 1) * PROBE_PIECE)
            return false;
    }
    return true;
}

static int measure(struct sender *s)
{
    double rates[2][MAX_RUNS], state = (double)s->o->mib * (double)PROBE_PIECE;
    bool wanted[2] = {!s->o->only_new, !s->o->only_recycled}; /* recycled, new */
    double used = 0;

    if (wanted[0] && !laid_out(s)) {
        s->pieces += s->o->receivers; /* so that laid_out() finds one piece more than is needed */
        double first = run(s, false);
        s->pieces -= s->o->receivers;
        if (first < 0)
            return -1;
    }
    for (unsigned i = 0; i < s->o->runs; i++)
        for (int fresh = 0; fresh < 2; fresh++) {
            double before = all_cpu(s), took = wanted[fresh] ? run(s, fresh) : 0;
            if (took < 0)
                return -1;
            rates[fresh][i] = took > 0 ? state / took : 0;
            used += all_cpu(s) - before;
        }
    printf("{\"mib\": %u, \"receivers\": %u, \"stored\": %.3f, \"slots\": %u, \"provider\": \"%s\", ", s->o->mib,
           s->o->receivers, s->o->stored, s->o->slots, s->o->provider);
    double recycled = print_rates("recycled", rates[0], wanted[0] ? s->o->runs : 0);
    double made = print_rates("new", rates[1], wanted[1] ? s->o->runs : 0);
    printf("\"cpu_s_per_gb\": %.4f, \"bytes_per_s\": %.0f}\n",
           used / (state / 1e9 * s->o->runs * (wanted[0] + wanted[1])), recycled > made ? recycled : made);
    return 0;
}

static int serve(struct sender *s)
{
    char line[64];
    int code = 0;

    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("{\"ready\": true}");
    while (code == 0 && fgets(line, sizeof line, stdin) && strcmp(line, "quit\n") != 0)
        code = measure(s);
    return code;
}

/* ---- processes ------------------------------------------------------------------------------- */

static int start_receiver(struct sender *s, unsigned index)
{
    int pair[2];
    pid_t parent = getpid();

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return fail("make a socket");
    pid_t pid = fork();
    if (pid < 0)
        return fail("start a receiver");
    if (pid == 0) {
        close(pair[0]);
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent)
            _exit(1);
        _exit(probe_receive(s->o, index, s->shared, pair[1]));
    }
    close(pair[1]);
    s->lanes[index].pid = pid;
    s->lanes[index].ready = pair[0];
    s->started++;
    return 0;
}

/* The source is shared memory, as an arena is. */
static int open_sender(struct sender *s)
{
    size_t len = SOURCE_MIB * PROBE_PIECE;
    char byte;

    s->source = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (s->source == MAP_FAILED)
        return fail("no memory for the source");
    for (size_t i = 0; i < len; i += sizeof(uint64_t)) {
        uint64_t word = mix(i);
        memcpy(s->source + i, &word, sizeof word);
    }
    if (wire_open(&s->wire, s->o->provider, s->source, len) < 0 || wire_address(&s->wire, &s->shared->sender) < 0)
        return -1;
    for (unsigned i = 0; i < s->o->receivers; i++) {
        struct pollfd p = {.fd = s->lanes[i].ready, .events = POLLIN};
        if (poll(&p, 1, 20000) != 1 || read(p.fd, &byte, 1) != 1 ||
            wire_connect(&s->wire, &s->shared->receivers[i], &s->lanes[i].peer) < 0 || write(p.fd, &byte, 1) != 1)
            return fail("a receiver did not start");
    }
    return 0;
}

/* They end by themselves when they were told, and are ended when they do not. */
static void end_receivers(struct sender *s, bool told)
{
    double until = now() + (told ? 5 : 0);
    char path[4096];

    for (unsigned i = 0; i < s->started; i++) {
        while (waitpid(s->lanes[i].pid, NULL, WNOHANG) == 0) {
            if (now() > until)
                kill(s->lanes[i].pid, SIGKILL);
            (void)turn(s);
            usleep(1000);
        }
        close(s->lanes[i].ready);
        probe_path(s->o, i, true, path);
        (void)unlink(path); /* there when it was broken off */
        probe_path(s->o, i, false, path);
        if (!s->o->keep)
            (void)unlink(path);
    }
}

static int drive(const struct probe_options *o)
{
    struct sender *s = calloc(1, sizeof *s);
    int code = 0;

    if (!s)
        return fail("no memory");
    s->o = o;
    s->pieces = (unsigned)((double)o->mib * o->stored + 0.5);
    s->shared = mmap(NULL, sizeof *s->shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (s->shared == MAP_FAILED)
        code = fail("no memory");
    for (unsigned i = 0; i < o->receivers && code == 0; i++)
        code = start_receiver(s, i);
    if (code == 0)
        code = open_sender(s);
    if (code == 0)
        code = ask_all(s, PROBE_GREET); /* nobody's connection is made in what is timed */
    if (code == 0)
        code = o->serve ? serve(s) : measure(s);
    end_receivers(s, code == 0 && tell_all(s, PROBE_QUIT) == 0);
    wire_close(&s->wire);
    free(s);
    return code;
}

static int parse(struct probe_options *o, int argc, char **argv)
{
    static const struct option long_options[] = {{"directory", required_argument, NULL, 'd'},
                                                 {"mib", required_argument, NULL, 'm'},
                                                 {"runs", required_argument, NULL, 'n'},
                                                 {"receivers", required_argument, NULL, 'r'},
                                                 {"stored", required_argument, NULL, 's'},
                                                 {"slots", required_argument, NULL, 'l'},
                                                 {"files", required_argument, NULL, 'f'},
                                                 {"provider", required_argument, NULL, 'p'},
                                                 {"keep", no_argument, NULL, 'k'},
                                                 {"json", no_argument, NULL, 'j'},
                                                 {"serve", no_argument, NULL, 'v'},
                                                 {NULL, 0, NULL, 0}};
    int c;

    while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        unsigned *number = c == 'm'   ? &o->mib
                           : c == 'n' ? &o->runs
                           : c == 'r' ? &o->receivers
                           : c == 'l' ? &o->slots
                                      : NULL;
        if (number)
            *number = (unsigned)strtoul(optarg, NULL, 10);
        else if (c == 'd')
            o->directory = optarg;
        else if (c == 'p')
            o->provider = optarg;
        else if (c == 's')
            o->stored = strtod(optarg, NULL);
        else if (c == 'f')
            o->only_new = !(o->only_recycled = strcmp(optarg, "recycled") == 0);
        else if (c == 'k')
            o->keep = true;
        else if (c == 'v')
            o->serve = true;
        else if (c == '?')
            return -1;
    }
    bool sane = o->mib >= 1 && o->mib <= 65536 && o->runs >= 1 && o->runs <= MAX_RUNS && o->receivers >= 1 &&
                o->receivers <= WIRE_PEERS && o->slots >= 1 && o->slots <= PROBE_MAX_SLOTS && o->stored >= 1 &&
                o->stored <= 4;
    return optind == argc && o->directory && strlen(o->directory) < 4000 && sane ? 0 : -1;
}

int main(int argc, char **argv)
{
    struct probe_options o = {
        .provider = "tcp;ofi_rxm", .mib = 512, .runs = 3, .receivers = 1, .slots = 8, .stored = 1};

    if (parse(&o, argc, argv) < 0) {
        fprintf(stderr, "usage: bench-probe-durable --directory DIR [--mib N] [--runs N] [--receivers N] [--stored R] "
                        "[--slots N]\n           [--files new|recycled] [--provider NAME] [--keep] [--serve] --json\n");
        return 2;
    }
    return drive(&o) < 0;
}
