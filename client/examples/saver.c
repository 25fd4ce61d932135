/* SPDX-License-Identifier: Apache-2.0 */
#include "saver.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define SAVER_PENDING 4        /* saves whose fate is still asked for */
#define SAVER_END_MS 60000     /* at the end, how long the last saves may take to commit */
#define SAVER_RESTORE_MS 60000 /* for everything that is read back */

struct pending {
    struct cairn_save *save;
    int64_t step;
    double sealed_at;
};
struct saver {
    struct trainer *trainer;
    struct cairn_session *session;
    struct pending pending[SAVER_PENDING]; /* oldest first; save NULL: free */
};

/* ---- what a checkpoint holds ----------------------------------------------------------------- */

typedef int (*tensor_fn)(void *handle, const struct cairn_tensor *tensor, struct cairn_error *err);

static int on_save(void *handle, const struct cairn_tensor *tensor, struct cairn_error *err)
{
    return cairn_save_add(handle, tensor, err);
}

static int on_restore(void *handle, const struct cairn_tensor *tensor, struct cairn_error *err)
{
    return cairn_restore_add(handle, tensor, err);
}

/* This rank's rows of one parameter, out of an array with an element of `size` bytes for every parameter. */
static int each_slice(struct trainer *t, const struct model_param *p, const char *kind, int dtype, void *array,
                      tensor_fn fn, void *handle, struct cairn_error *err)
{
    size_t first, rows = trainer_rows(t, p, &first), cols = p->cols ? p->cols : 1;
    uint64_t shape[2] = {p->rows, p->cols}, offset[2] = {first, 0}, length[2] = {rows, p->cols};
    char name[96];
    struct cairn_tensor tensor = {.size = sizeof tensor,
                                  .name = name,
                                  .dtype = dtype,
                                  .ndim = p->cols ? 2 : 1,
                                  .shape = shape,
                                  .offset = offset,
                                  .length = length,
                                  .data = (char *)array + (p->at + first * cols) * cairn_dtype_size(dtype)};

    snprintf(name, sizeof name, "%s.%s", kind, p->name);
    return rows ? fn(handle, &tensor, err) : 0; /* fewer rows than ranks: this rank has none */
}

static int each_whole(const char *name, int dtype, uint32_t ndim, uint64_t n, void *data, tensor_fn fn, void *handle,
                      struct cairn_error *err)
{
    struct cairn_tensor tensor = {
        .size = sizeof tensor, .name = name, .dtype = dtype, .ndim = ndim, .shape = &n, .data = data};

    return fn(handle, &tensor, err);
}

static int each_progress(struct progress *p, tensor_fn fn, void *handle, struct cairn_error *err)
{
    int r = each_whole("progress.step", CAIRN_I64, 0, 0, &p->step, fn, handle, err);

    if (r == 0)
        r = each_whole("progress.rng", CAIRN_U64, 1, 4, p->rng, fn, handle, err);
    if (r == 0)
        r = each_whole("progress.loss", CAIRN_F32, 1, TRAINER_HISTORY, p->history, fn, handle, err);
    return r;
}

/* Whatever world saved it: rows are asked for by their place in the whole tensor. */
static int each_tensor(struct trainer *t, tensor_fn fn, void *handle, struct cairn_error *err)
{
    int r = 0;

    for (int i = 0; i < MODEL_PARAMS && r == 0; i++) {
        const struct model_param *p = &t->model.params[i];
        r = each_slice(t, p, "model", CAIRN_F32, t->weights, fn, handle, err);
        if (r == 0)
            r = each_slice(t, p, "adam.mean", CAIRN_F32, t->mean, fn, handle, err);
        if (r == 0)
            r = each_slice(t, p, "adam.variance", CAIRN_F32, t->variance, fn, handle, err);
        if (r == 0)
            r = each_slice(t, p, "model_bf16", CAIRN_BF16, t->half, fn, handle, err);
    }
    if (r == 0 && (fn == on_restore || t->rank == 0)) /* saved once, read by all */
        r = each_progress(&t->progress, fn, handle, err);
    return r;
}

/* ---- opening and resuming -------------------------------------------------------------------- */

/* --socket PATH,PATH...: one for each node, and the ranks are dealt over them in blocks. */
static const char *rank_socket(const struct trainer *t, char *buf, size_t len)
{
    const char *at = t->options->socket;
    uint32_t nodes = 1, node;

    if (!at)
        return NULL;
    for (const char *p = at; *p; p++)
        nodes += *p == ',';
    node = (uint32_t)((uint64_t)t->rank * nodes / t->crew->ranks);
    for (; node > 0; node--)
        at = strchr(at, ',') + 1;
    snprintf(buf, len, "%.*s", (int)strcspn(at, ","), at);
    return buf;
}

int saver_open(struct trainer *t, struct saver **ret)
{
    const struct train_options *o = t->options;
    struct cairn_error err = CAIRN_ERROR_INIT;
    char socket[512];
    uint64_t shard = t->state_bytes / t->crew->ranks;
    struct cairn_session_options so = {
        .size = sizeof so,
        .job = o->job,
        .rank = t->rank,
        .world_size = t->crew->ranks,
        .arena_bytes = o->arena_mib ? (uint64_t)o->arena_mib << 20 : shard * 5 / 2 + (8u << 20),
        .start_id = o->start_id,
        .socket_path = rank_socket(t, socket, sizeof socket),
    };
    struct saver *s = calloc(1, sizeof *s);

    if (!s || cairn_session_open(&so, &s->session, &err) < 0) {
        fprintf(stderr, "train: rank %u: %s\n", t->rank, s ? err.message : "out of memory");
        free(s);
        return -1;
    }
    s->trainer = t;
    *ret = s;
    return 0;
}

static int read_back(struct saver *s, uint64_t step, struct cairn_error *err)
{
    struct cairn_restore *restore;
    int r = cairn_restore_open(s->session, step, SAVER_RESTORE_MS, &restore, err);

    if (r < 0)
        return r;
    r = each_tensor(s->trainer, on_restore, restore, err);
    if (r == 0)
        r = cairn_restore_run(restore, SAVER_RESTORE_MS, NULL, NULL, err);
    cairn_restore_free(restore);
    return r;
}

int saver_resume(struct saver *s)
{
    struct trainer *t = s->trainer;
    struct cairn_error err = CAIRN_ERROR_INIT;
    double begin = seconds_now();
    uint64_t step;
    int r = cairn_latest(s->session, &step, &err);

    if (r == CAIRN_E_NOT_FOUND) {
        if (t->rank == 0)
            printf("job %s has no checkpoint yet: from the beginning\n", t->options->job);
        return 0;
    }
    if (r == 0)
        r = read_back(s, step, &err);
    if (r < 0) {
        fprintf(stderr, "train: rank %u: %s\n", t->rank, err.message);
        return -1;
    }
    if (t->rank == 0)
        printf("resumes from step %" PRIu64 ": %.1f MiB in %.0f ms\n", step, (double)t->state_bytes / (1 << 20),
               (seconds_now() - begin) * 1e3);
    return 0;
}

/* ---- saving ---------------------------------------------------------------------------------- */

/* Every rank hears what became of a checkpoint; one speaks. */
static void report_end(const struct saver *s, const struct pending *p, int r, const struct cairn_error *err)
{
    if (s->trainer->rank != 0)
        return;
    if (r == 0)
        printf("step %" PRId64 ": committed %.0f ms after its copy\n", p->step, (seconds_now() - p->sealed_at) * 1e3);
    else
        printf("step %" PRId64 ": warning: not known to be committed: %s; training goes on\n", p->step, err->message);
}

static void forget(struct saver *s, unsigned i)
{
    cairn_save_free(s->pending[i].save);
    memmove(&s->pending[i], &s->pending[i + 1], (SAVER_PENDING - 1 - i) * sizeof s->pending[0]);
    s->pending[SAVER_PENDING - 1].save = NULL;
}

static void settle(struct saver *s, unsigned timeout_ms)
{
    for (unsigned i = 0; i < SAVER_PENDING && s->pending[i].save;) {
        struct cairn_error err = CAIRN_ERROR_INIT;
        int r = cairn_save_wait(s->pending[i].save, CAIRN_COMMITTED, timeout_ms, &err);
        if (timeout_ms == 0 && (r == CAIRN_E_TIMEOUT || r == CAIRN_E_INTR)) {
            i++;
            continue;
        }
        report_end(s, &s->pending[i], r, &err);
        forget(s, i);
    }
}

void saver_poll(struct saver *s)
{
    settle(s, 0);
}

static void remember(struct saver *s, struct cairn_save *save, int64_t step)
{
    unsigned i = 0;

    if (s->pending[SAVER_PENDING - 1].save)
        forget(s, 0);
    while (s->pending[i].save)
        i++;
    s->pending[i] = (struct pending){save, step, seconds_now()};
}

int saver_save(struct saver *s)
{
    struct trainer *t = s->trainer;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_save_options so = {
        .size = sizeof so, .step = (uint64_t)t->progress.step, .on_busy = t->options->on_busy};
    struct cairn_save *save = NULL;
    double begin = seconds_now();
    int r = cairn_save_begin(s->session, &so, &save, &err);

    if (r == 0)
        r = each_tensor(t, on_save, save, &err);
    if (r == 0)
        r = cairn_save_seal(save, &err);
    if (r == 0) {
        printf("step %" PRId64 ": rank %u saved %.1f MiB, stall %.1f ms\n", t->progress.step, t->rank,
               (double)t->state_bytes / t->crew->ranks / (1 << 20), (seconds_now() - begin) * 1e3);
        remember(s, save, t->progress.step);
        return 0;
    }
    printf("step %" PRId64 ": warning: rank %u not saved: %s%s\n", t->progress.step, t->rank, err.message,
           r == CAIRN_E_FENCED ? "" : "; training goes on");
    if (save)
        cairn_save_free(save);
    return r == CAIRN_E_FENCED ? -1 : 0;
}

void saver_close(struct saver *s)
{
    if (!s)
        return;
    settle(s, SAVER_END_MS);
    cairn_session_close(s->session);
    free(s);
}
