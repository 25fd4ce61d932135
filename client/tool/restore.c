/* SPDX-License-Identifier: Apache-2.0 */
/* cairn restore: safetensors files, one for each rank, or with --merge one of whole tensors. The tensors are restored
 * straight into the mapped file: memory does not grow with the checkpoint. */
#include "client/tool/restore_files.h"
#include "client/tool/safetensors.h"
#include "client/tool/tool.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct job {
    struct tool *t;
    struct cairn_restore *restore;
    struct cairn_checkpoint_info info;
    const char *name;
    json_t *files;
    bool terminal;
    struct timespec begin;
};

/* ---- progress -------------------------------------------------------------------------------- */

static int progress(void *arg, uint64_t done, uint64_t total)
{
    struct job *j = arg;
    struct timespec now;
    char bar[31];
    double part = total ? (double)done / (double)total : 1;

    if (!j->terminal)
        return 0;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double seconds = (double)(now.tv_sec - j->begin.tv_sec) + (double)(now.tv_nsec - j->begin.tv_nsec) * 1e-9;
    double rate = seconds > 0 ? (double)done / seconds : 0;
    for (int i = 0; i < 30; i++)
        bar[i] = i < part * 30 ? '#' : '.';
    bar[30] = 0;
    fprintf(stderr, "\r[%s] %3.0f%%  %.0f MiB/s  %.0f s left ", bar, part * 100, rate / (1 << 20),
            rate > 0 ? (double)(total - done) / rate : 0);
    return 0;
}

static int run(struct job *j, struct cairn_error *err)
{
    clock_gettime(CLOCK_MONOTONIC, &j->begin);
    int r = cairn_restore_run(j->restore, tool_timeout(j->t, TOOL_LONG_MS), progress, j, err);
    if (j->terminal)
        fputs("\r\033[K", stderr);
    return r;
}

/* ---- files ----------------------------------------------------------------------------------- */

static int file_new(struct job *j, const char *name, struct safetensors *ret, struct cairn_error *err)
{
    _cleanup_free_ char *path = NULL;
    char text[32];

    if (asprintf(&path, "%s/%s", j->t->to, name) < 0) {
        path = NULL;
        return cairn_fail(err, CAIRN_E_NOMEM, "name a file");
    }
    int r = safetensors_new(path, ret, err);
    if (r < 0)
        return r;
    safetensors_note(ret, "format", "pt");
    safetensors_note(ret, "cairn.job", j->name);
    snprintf(text, sizeof text, "%" PRIu64, j->info.step);
    safetensors_note(ret, "cairn.step", text);
    snprintf(text, sizeof text, "%" PRIu64, j->info.incarnation);
    safetensors_note(ret, "cairn.incarnation", text);
    return 0;
}

static int file_end(struct job *j, struct safetensors *s, int r, struct cairn_error *err)
{
    if (r == 0)
        r = run(j, err);
    if (r == 0)
        r = safetensors_finish(s, err);
    if (r == 0) {
        json_array_append_new(j->files, json_pack("{s:s, s:I}", "path", s->path, "bytes", (json_int_t)s->map_len));
        if (!j->t->json)
            printf("%s\n", s->path);
    }
    safetensors_free(s);
    return r;
}

static uint64_t bytes_of(int dtype, uint32_t ndim, const uint64_t *length)
{
    uint64_t bytes = cairn_dtype_size(dtype);

    for (uint32_t i = 0; i < ndim; i++)
        bytes *= length[i];
    return bytes;
}

/* ---- one file a rank ------------------------------------------------------------------------- */

static bool is_slice(const struct cairn_tensor *t)
{
    for (uint32_t i = 0; i < t->ndim; i++)
        if (t->length[i] != t->shape[i])
            return true;
    return false;
}

static json_t *numbers(const uint64_t *v, uint32_t n)
{
    json_t *a = json_array();

    for (uint32_t i = 0; i < n; i++)
        json_array_append_new(a, json_integer((json_int_t)v[i]));
    return a;
}

/* Where a slice belongs in its tensor, for whoever puts ranks' files together. */
static void note_slice(struct safetensors *s, const char *name, const struct cairn_tensor *t)
{
    json_t *place = json_pack("{s:s, s:o, s:o}", "tensor", t->name, "shape", numbers(t->shape, t->ndim), "offset",
                              numbers(t->offset, t->ndim));
    char *text = json_dumps(place, JSON_COMPACT), *key = NULL;

    if (text && asprintf(&key, "cairn.slice.%s", name) > 0)
        safetensors_note(s, key, text);
    free(key);
    free(text);
    json_decref(place);
}

/* A rank may have several slices of one tensor: the second is called NAME@1. */
static int add_slice(struct job *j, struct safetensors *s, uint64_t i, const struct cairn_tensor *t, uint64_t *at,
                     struct cairn_error *err)
{
    _cleanup_free_ char *name = strdup(t->name);

    (void)j;
    (void)i;
    for (unsigned n = 1; name && json_object_get(s->header, name); n++) {
        free(name);
        if (asprintf(&name, "%s@%u", t->name, n) < 0)
            name = NULL;
    }
    if (!name)
        return cairn_fail(err, CAIRN_E_NOMEM, "name a tensor");
    if (is_slice(t) || strcmp(name, t->name) != 0)
        note_slice(s, name, t);
    return safetensors_add(s, name, t->dtype, t->ndim, t->length, bytes_of(t->dtype, t->ndim, t->length), at, err);
}

/* Tells every slice of a rank (ANY_RANK: of all) to fn, the widest elements first: so every tensor is aligned in the
 * file, which readers that map it need. */
#define ANY_RANK UINT32_MAX
typedef int (*slice_fn)(struct job *j, struct safetensors *s, uint64_t i, const struct cairn_tensor *t, uint64_t *at,
                        struct cairn_error *err);

static int each_slice(struct job *j, struct safetensors *s, uint32_t rank, slice_fn fn, uint64_t *at,
                      struct cairn_error *err)
{
    int r = 0;

    for (size_t width = 8; width > 0; width /= 2) {
        for (uint64_t i = 0; i < j->info.slices && r == 0; i++) {
            struct cairn_tensor t = {.size = sizeof t};
            uint32_t owner;
            r = cairn_restore_slice(j->restore, i, &owner, &t);
            if (r == 0 && (rank == ANY_RANK || owner == rank) && cairn_dtype_size(t.dtype) == width)
                r = fn(j, s, i, &t, &at[i], err);
        }
    }
    return r;
}

/* First the header, then, in the mapped file, the places that the tensors are restored to. */
static int fill(struct job *j, struct safetensors *s, uint32_t rank, slice_fn note, slice_fn read,
                struct cairn_error *err)
{
    _cleanup_free_ uint64_t *at = calloc(j->info.slices + 1, sizeof *at);
    int r = at ? 0 : cairn_fail(err, CAIRN_E_NOMEM, "allocate a table of %" PRIu64 " slices", j->info.slices);

    if (r == 0)
        r = each_slice(j, s, rank, note, at, err);
    if (r == 0)
        r = safetensors_map(s, j->t->force, err);
    if (r == 0)
        r = each_slice(j, s, rank, read, at, err);
    return r;
}

static int read_slice(struct job *j, struct safetensors *s, uint64_t i, const struct cairn_tensor *t, uint64_t *at,
                      struct cairn_error *err)
{
    (void)t;
    return cairn_restore_add_slice(j->restore, i, s->data + *at, err);
}

static int restore_rank(struct job *j, uint32_t rank, struct cairn_error *err)
{
    struct safetensors s;
    char name[64], text[16];

    snprintf(name, sizeof name, "rank-%05u.safetensors", rank);
    int r = file_new(j, name, &s, err);
    if (r < 0)
        return r;
    snprintf(text, sizeof text, "%u", rank);
    safetensors_note(&s, "cairn.rank", text);
    return file_end(j, &s, fill(j, &s, rank, add_slice, read_slice, err), err);
}

/* ---- one file of whole tensors --------------------------------------------------------------- */

/* Every name once. What ranks call alike must be slices of one tensor. */
static int add_whole(struct job *j, struct safetensors *s, uint64_t i, const struct cairn_tensor *t, uint64_t *at,
                     struct cairn_error *err)
{
    const json_t *there = json_object_get(s->header, t->name);

    (void)j;
    (void)i;
    if (!there)
        return safetensors_add(s, t->name, t->dtype, t->ndim, t->shape, bytes_of(t->dtype, t->ndim, t->shape), at, err);
    *at = UINT64_MAX; /* another slice of it */
    if (safetensors_is(there, t->dtype, t->ndim, t->shape))
        return 0;
    return cairn_fail(err, CAIRN_E_EXISTS, "ranks saved different tensors as %s: restore without --merge", t->name);
}

static int read_whole(struct job *j, struct safetensors *s, uint64_t i, const struct cairn_tensor *t, uint64_t *at,
                      struct cairn_error *err)
{
    struct cairn_tensor whole = {.size = sizeof whole,
                                 .name = t->name,
                                 .dtype = t->dtype,
                                 .ndim = t->ndim,
                                 .shape = t->shape,
                                 .data = s->data + *at};

    (void)i;
    return *at == UINT64_MAX ? 0 : cairn_restore_add(j->restore, &whole, err);
}

static int restore_merged(struct job *j, struct cairn_error *err)
{
    struct safetensors s;
    int r = file_new(j, "model.safetensors", &s, err);

    return r < 0 ? r : file_end(j, &s, fill(j, &s, ANY_RANK, add_whole, read_whole, err), err);
}

/* ---- the command ----------------------------------------------------------------------------- */

static int restore_all(struct job *j, struct cairn_error *err)
{
    int r = 0;

    if (j->t->rank >= (int64_t)j->info.world_size)
        return cairn_fail(err, CAIRN_E_NOT_FOUND, "there is no rank %lld: %u ranks saved it", (long long)j->t->rank,
                          j->info.world_size);
    if (j->t->merge)
        return restore_merged(j, err);
    for (uint32_t rank = 0; rank < j->info.world_size && r == 0; rank++)
        if (j->t->rank < 0 || rank == j->t->rank)
            r = restore_rank(j, rank, err);
    return r;
}

static void print_json(const struct job *j)
{
    json_t *o = json_pack("{s:i, s:s, s:I, s:I, s:O}", "v", 1, "job", j->name, "step", (json_int_t)j->info.step,
                          "incarnation", (json_int_t)j->info.incarnation, "files", j->files);
    char *text = json_dumps(o, JSON_COMPACT);

    puts(text ? text : "{}");
    free(text);
    json_decref(o);
}

int cmd_restore(struct tool *t)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_session *session;
    struct job j = {.t = t, .info = {.size = sizeof j.info}, .terminal = isatty(STDERR_FILENO) && !t->json};
    uint64_t step = CAIRN_LATEST;

    if (t->argc < 2 || t->argc > 3 || !t->to || (t->merge && t->rank >= 0) ||
        (t->argc == 3 && tool_parse_step(t->argv[2], &step) < 0))
        return EXIT_USAGE;
    if (t->format && strcmp(t->format, "files") == 0)
        return t->merge ? EXIT_USAGE : restore_files(t, step);
    j.name = t->argv[1];
    if (mkdir(t->to, 0755) < 0 && errno != EEXIST) {
        cairn_fail_errno(&err, errno, "create the directory %s", t->to);
        return tool_fail(t, "restore", &err);
    }
    if (tool_open(t, j.name, &session, &err) < 0)
        return tool_fail(t, "connect", &err);
    int r = cairn_restore_open(session, step, tool_timeout(t, TOOL_LONG_MS), &j.restore, &err);
    if (r == 0) {
        j.files = json_array();
        cairn_restore_info(j.restore, &j.info);
        r = restore_all(&j, &err);
        if (r == 0 && t->json)
            print_json(&j);
        json_decref(j.files);
        cairn_restore_free(j.restore);
    }
    cairn_session_close(session);
    return r < 0 ? tool_fail(t, "restore", &err) : EXIT_OK;
}
