/* SPDX-License-Identifier: Apache-2.0 */
/* train: teaches a small transformer to predict the next byte of the licences on this machine, with Adam, on some
 * ranks, and saves its state through Cairn every few steps. After any failure the same command goes on from the latest
 * committed step.
 *
 * Each rank computes the gradient of its own sequences; a barrier; each rank updates its rows of every tensor with all
 * ranks' gradients; a barrier. Between two updates nothing changes the state, so that is when it is saved. The
 * arithmetic has a fixed order: a run that was interrupted ends with the same bits as one that was not. */
#include "saver.h"
#include "text.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define BARRIER_MS 120000 /* longer than any step or save; a rank that ended is seen at once */

struct run {
    const struct train_options *options;
    struct trainer trainer; /* each rank has its copy */
    struct text text;
};

/* ---- the log of losses ----------------------------------------------------------------------- */

/* Keeps the lines of steps up to `step`: what a killed run did after its last commit is done again. */
static FILE *loss_log_open(const char *path, int64_t step)
{
    FILE *f = fopen(path, "a+");
    char line[128];
    long keep = 0;

    if (!f)
        return NULL;
    rewind(f);
    while (fgets(line, sizeof line, f) && strchr(line, '\n') && strtoll(line, NULL, 10) <= step)
        keep = ftell(f);
    if (keep < 0 || ftruncate(fileno(f), keep) < 0) {
        fclose(f);
        return NULL;
    }
    setvbuf(f, NULL, _IOLBF, 0); /* a line is there even after SIGKILL */
    return f;
}

/* ---- one step -------------------------------------------------------------------------------- */

/* All ranks draw the places of all sequences, so that their random numbers stay the same. */
static const uint8_t *draw_sequence(struct run *run)
{
    struct trainer *t = &run->trainer;
    const uint8_t *mine = NULL;

    for (uint32_t r = 0; r < t->crew->ranks; r++) {
        uint64_t at = rng_next(t->progress.rng) % (run->text.n - MODEL_CONTEXT);
        if (r == t->rank)
            mine = run->text.bytes + at;
    }
    return mine;
}

static int train_step(struct run *run, struct model_pass *pass)
{
    struct trainer *t = &run->trainer;
    float *gradient = t->gradients[t->rank], loss = 0;

    memset(gradient, 0, t->model.n * sizeof *gradient);
    t->crew->loss[t->rank] = model_learn(pass, &t->model, t->weights, gradient, draw_sequence(run));
    if (crew_barrier(t->crew, BARRIER_MS) < 0)
        return -1;
    for (uint32_t r = 0; r < t->crew->ranks; r++)
        loss += t->crew->loss[r];
    t->progress.step++;
    t->progress.history[(t->progress.step - 1) % TRAINER_HISTORY] = loss / (float)t->crew->ranks;
    trainer_update(t);
    return crew_barrier(t->crew, BARRIER_MS);
}

static bool save_is_due(const struct trainer *t)
{
    const struct train_options *o = t->options;

    return t->progress.step % o->save_every == 0 || t->progress.step == o->steps;
}

static int train_steps(struct run *run, struct saver *saver, struct model_pass *pass, FILE *loss_log)
{
    struct trainer *t = &run->trainer;

    while (t->progress.step < run->options->steps) {
        if (train_step(run, pass) < 0) {
            fprintf(stderr, "train: rank %u: another rank is lost or late at step %" PRId64 "\n", t->rank,
                    t->progress.step);
            return -1;
        }
        float loss = t->progress.history[(t->progress.step - 1) % TRAINER_HISTORY];
        if (loss_log)
            fprintf(loss_log, "%" PRId64 " %a\n", t->progress.step, (double)loss);
        if (saver && save_is_due(t) && saver_save(saver) < 0)
            return -1;
        if (saver)
            saver_poll(saver);
    }
    return 0;
}

/* ---- one rank -------------------------------------------------------------------------------- */

static uint64_t hash(const void *data, size_t n)
{
    const unsigned char *p = data;
    uint64_t h = 0xcbf29ce484222325ull; /* FNV-1a */

    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 0x100000001b3ull;
    return h;
}

static int write_checksum(const struct trainer *t, const char *path)
{
    size_t n = t->model.n;
    FILE *f = fopen(path, "w");

    if (!f)
        return -1;
    fprintf(f,
            "%016" PRIx64 " weights, %016" PRIx64 " mean, %016" PRIx64 " variance, %016" PRIx64 " bf16 at step %" PRId64
            "\n",
            hash(t->weights, n * sizeof(float)), hash(t->mean, n * sizeof(float)), hash(t->variance, n * sizeof(float)),
            hash(t->half, n * sizeof(uint16_t)), t->progress.step);
    return fclose(f);
}

static int train_and_report(struct run *run, struct saver *saver, struct model_pass *pass)
{
    const struct train_options *o = run->options;
    struct trainer *t = &run->trainer;
    FILE *loss_log = NULL;
    double begin = seconds_now();
    int64_t first = t->progress.step;

    if (t->rank == 0 && o->loss_log && !(loss_log = loss_log_open(o->loss_log, first))) {
        fprintf(stderr, "train: %s: %s\n", o->loss_log, strerror(errno));
        return -1;
    }
    int r = crew_barrier(t->crew, BARRIER_MS); /* all have resumed: the shared state is whole */
    if (r == 0)
        r = train_steps(run, saver, pass, loss_log);
    if (loss_log)
        fclose(loss_log);
    if (r < 0 || t->rank != 0)
        return r;
    double seconds = seconds_now() - begin;
    int64_t steps = t->progress.step - first;
    printf("step %" PRId64 ": done, loss %.4f, %.1f ms a step\n", t->progress.step,
           (double)t->progress.history[(t->progress.step + TRAINER_HISTORY - 1) % TRAINER_HISTORY],
           steps ? seconds * 1e3 / (double)steps : 0);
    if (o->checksum && write_checksum(t, o->checksum) < 0) {
        fprintf(stderr, "train: %s: %s\n", o->checksum, strerror(errno));
        return -1;
    }
    return 0;
}

static int rank_main(struct crew *crew, uint32_t rank, void *arg)
{
    struct run *run = arg;
    struct trainer *t = &run->trainer;
    struct saver *saver = NULL;
    struct model_pass *pass = model_pass_new();
    int r = pass ? 0 : -1;

    trainer_place(t, crew);
    t->rank = rank;
    printf("rank %u: process %d\n", rank, (int)getpid());
    if (r == 0 && !run->options->no_save)
        r = saver_open(t, &saver);
    if (r == 0 && saver)
        r = saver_resume(saver);
    if (r == 0)
        r = train_and_report(run, saver, pass);
    saver_close(saver);
    model_pass_free(pass);
    return r;
}

/* ---- the launcher ---------------------------------------------------------------------------- */

static const char usage[] =
    "usage: train [--job NAME] [--ranks N] [--steps N] [--save-every N] [OPTION...]\n"
    "\n"
    "Trains a small language model on this machine's licence texts, saves it through Cairn, and goes on from the "
    "latest checkpoint.\n"
    "      --job NAME        the job that checkpoints belong to (train)\n"
    "      --ranks N         processes (2)\n"
    "      --steps N         train up to this step (200)\n"
    "      --save-every N    save after every Nth step (20) and after the last\n"
    "      --socket PATH     cairnd's socket ($CAIRN_SOCKET, /run/cairn/cairnd.sock);\n"
    "                        PATH,PATH...: of several nodes, the ranks in blocks over them\n"
    "      --start-id ID     names this start of the job; random otherwise\n"
    "      --arena-mib N     room for snapshots of each rank (two and a half)\n"
    "      --on-busy WHAT    when there is no room: wait, or skip the save (skip)\n"
    "      --loss-log FILE   append \"step loss\" for each step, exactly (as C's %a prints it)\n"
    "      --checksum FILE   write checksums of the final state\n"
    "      --text DIRECTORY  what to learn (/usr/share/common-licenses)\n"
    "      --no-save         only train\n"
    "      --help            print this\n";

static int parse_count(const char *name, const char *text, uint32_t max, uint32_t *ret)
{
    char *end;
    unsigned long v = strtoul(text, &end, 10);

    if (*end || end == text || *text == '-' || v < 1 || v > max) {
        fprintf(stderr, "train: --%s %s: a number from 1 to %u is wanted\n", name, text, max);
        return -1;
    }
    *ret = (uint32_t)v;
    return 0;
}

static int parse_option(struct train_options *o, const char *name, const char *value)
{
    const struct {
        const char *name;
        const char **text;
        uint32_t *number, max;
    } table[] = {
        {"job", &o->job, NULL, 0},
        {"socket", &o->socket, NULL, 0},
        {"start-id", &o->start_id, NULL, 0},
        {"loss-log", &o->loss_log, NULL, 0},
        {"checksum", &o->checksum, NULL, 0},
        {"text", &o->text, NULL, 0},
        {"ranks", NULL, &o->ranks, CREW_MAX},
        {"steps", NULL, &o->steps, 1u << 30},
        {"save-every", NULL, &o->save_every, 1u << 30},
        {"arena-mib", NULL, &o->arena_mib, 1u << 20},
    };

    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (strcmp(table[i].name, name) != 0)
            continue;
        if (table[i].number)
            return parse_count(name, value, table[i].max, table[i].number);
        *table[i].text = value;
        return 0;
    }
    if (strcmp(name, "no-save") == 0)
        o->no_save = true;
    else if (strcmp(value, "wait") == 0)
        o->on_busy = CAIRN_BUSY_WAIT;
    else if (strcmp(value, "skip") == 0)
        o->on_busy = CAIRN_BUSY_FAIL;
    else {
        fprintf(stderr, "train: --on-busy %s: wait or skip is wanted\n", value);
        return -1;
    }
    return 0;
}

/* 0: go on; else exit with *ret_status. */
static int parse(struct train_options *o, int argc, char **argv, int *ret_status)
{
    static const struct option options[] = {
        {"job", 1, NULL, 'o'},        {"ranks", 1, NULL, 'o'},   {"steps", 1, NULL, 'o'},
        {"save-every", 1, NULL, 'o'}, {"socket", 1, NULL, 'o'},  {"start-id", 1, NULL, 'o'},
        {"arena-mib", 1, NULL, 'o'},  {"on-busy", 1, NULL, 'o'}, {"loss-log", 1, NULL, 'o'},
        {"checksum", 1, NULL, 'o'},   {"text", 1, NULL, 'o'},    {"no-save", 0, NULL, 'o'},
        {"help", 0, NULL, 'h'},       {NULL, 0, NULL, 0}};
    int c, i;

    *ret_status = 2;
    while ((c = getopt_long(argc, argv, "h", options, &i)) != -1) {
        if (c == 'h') {
            fputs(usage, stdout);
            *ret_status = 0;
            return -1;
        }
        if (c != 'o') {
            fputs(usage, stderr);
            return -1;
        }
        if (parse_option(o, options[i].name, optarg) < 0)
            return -1;
    }
    if (optind == argc)
        return 0;
    fprintf(stderr, "train: what is \"%s\"?\n", argv[optind]);
    return -1;
}

static int launch(struct run *run, struct crew *crew)
{
    struct trainer *t = &run->trainer;

    trainer_place(t, crew);
    rng_seed(t->progress.rng, 1);
    model_init(&t->model, t->weights, t->progress.rng);
    printf("%u ranks, %.1f million parameters, %.1f MiB of state, %.0f KB of text\n", crew->ranks,
           (double)t->model.n / 1e6, (double)t->state_bytes / (1 << 20), (double)run->text.n / 1e3);
    return crew_run(crew, rank_main, run);
}

int main(int argc, char **argv)
{
    struct train_options o = {
        .job = "train", .ranks = 2, .steps = 200, .save_every = 20, .text = "/usr/share/common-licenses"};
    static struct run run; /* zeroed, and too large for a stack */
    char start_id[64];
    uint64_t draw = 0;
    int status;

    if (parse(&o, argc, argv, &status) < 0)
        return status;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (text_read(&run.text, o.text) < 0 || run.text.n <= MODEL_CONTEXT) {
        fprintf(stderr, "train: %s: %s\n", o.text, run.text.n ? "too short" : strerror(errno));
        return 1;
    }
    if (!o.start_id &&
        getrandom(&draw, sizeof draw, 0) == sizeof draw) { /* equal on all ranks: drawn before they part */
        snprintf(start_id, sizeof start_id, "train-%016" PRIx64, draw);
        o.start_id = start_id;
    }
    run.options = run.trainer.options = &o;
    model_describe(&run.trainer.model);
    struct crew *crew = crew_new(o.ranks, trainer_shared_bytes(&run.trainer.model, o.ranks));
    if (!crew) {
        fprintf(stderr, "train: no memory for %u ranks\n", o.ranks);
        return 1;
    }
    status = launch(&run, crew);
    text_free(&run.text);
    return status;
}
