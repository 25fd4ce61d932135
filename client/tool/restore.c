/* SPDX-License-Identifier: Apache-2.0 */
/* cairn restore: safetensors files, one for each rank (restore_ranks.c) or of whole tensors (restore_merged.c). The
 * tensors are restored straight into the mapped file: memory does not grow with the checkpoint. Other formats are made
 * in Python (convert.c). */
#include "client/tool/restore.h"

#include "client/tool/convert.h"
#include "client/tool/restore_files.h"
#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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

int job_file_new(struct job *j, const char *name, struct safetensors *ret, struct cairn_error *err)
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

void job_note_file(struct job *j, const char *path, uint64_t bytes)
{
    json_array_append_new(j->files, json_pack("{s:s, s:I}", "path", path, "bytes", (json_int_t)bytes));
    if (!j->t->json)
        printf("%s\n", path);
}

int job_file_end(struct job *j, struct safetensors *s, int r, struct cairn_error *err)
{
    if (r == 0)
        r = run(j, err);
    if (r == 0)
        r = safetensors_finish(s, err);
    if (r == 0)
        job_note_file(j, s->path, s->map_len);
    safetensors_free(s);
    return r;
}

/* ---- names ----------------------------------------------------------------------------------- */

uint64_t job_bytes_of(int dtype, uint32_t ndim, const uint64_t *length)
{
    uint64_t bytes = cairn_dtype_size(dtype);

    for (uint32_t i = 0; i < ndim; i++)
        bytes *= length[i];
    return bytes;
}

bool job_wants(const struct job *j, const char *name)
{
    return !j->t->only || strncmp(name, j->t->only, strlen(j->t->only)) == 0;
}

const char *job_name_out(const struct job *j, const char *name)
{
    size_t len = j->t->strip ? strlen(j->t->strip) : 0;
    bool begins = len && strncmp(name, j->t->strip, len) == 0;

    if (begins && name[len] == '.')
        len++;
    return begins && name[len] ? name + len : name;
}

bool job_is_document(const char *name)
{
    return strncmp(name, ".cairn/", strlen(".cairn/")) == 0;
}

/* ---- the command ----------------------------------------------------------------------------- */

static int restore_all(struct job *j, struct cairn_error *err)
{
    if (j->t->rank >= (int64_t)j->info.world_size)
        return cairn_fail(err, CAIRN_E_NOT_FOUND, "there is no rank %lld: %u ranks saved it", (long long)j->t->rank,
                          j->info.world_size);
    return j->t->merge ? restore_merged(j, err) : restore_ranks(j, err);
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

static int restore_safetensors(struct tool *t, uint64_t step)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_session *session;
    struct job j = {
        .t = t, .info = {.size = sizeof j.info}, .name = t->argv[1], .terminal = isatty(STDERR_FILENO) && !t->json};

    if (mkdir(t->to, 0755) < 0 && errno != EEXIST) {
        cairn_fail_errno(&err, errno, "create the directory %s", t->to);
        return tool_fail(t, "restore", &err);
    }
    if (tool_open(t, j.name, &session, &err) < 0)
        return tool_fail_open(t, &err);
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

int cmd_restore(struct tool *t)
{
    uint64_t step = CAIRN_LATEST;
    const char *format = t->format ? t->format : "safetensors";

    if (t->argc < 2 || t->argc > 3 || !t->to || (t->merge && t->rank >= 0) || (t->shard_bytes && !t->merge) ||
        (t->argc == 3 && tool_parse_step(t->argv[2], &step) < 0))
        return EXIT_USAGE;
    if (strcmp(format, "safetensors") == 0)
        return restore_safetensors(t, step);
    if (strcmp(format, "torch") == 0 || strcmp(format, "dcp") == 0)
        return convert_export(t, format, step);
    if (strcmp(format, "files") == 0)
        return t->merge ? EXIT_USAGE : restore_files(t, step);
    fprintf(stderr, "cairn: --format %s: safetensors, torch, dcp or files is wanted\n", format);
    return EXIT_USAGE;
}
