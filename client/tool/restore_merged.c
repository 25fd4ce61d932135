/* SPDX-License-Identifier: Apache-2.0 */
/* Whole tensors, put together from the ranks' slices: model.safetensors, or with --shard-size
 *
 *     model-00001-of-00003.safetensors ... and model.safetensors.index.json, which says which tensor is in which
 *
 * as Hugging Face names and reads them. The index comes last: without it there is no checkpoint there. */
#include "client/tool/restore.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SINGLE "model.safetensors"
#define INDEX "model.safetensors.index.json"

struct whole {
    const char *name;      /* in the file */
    struct cairn_tensor t; /* as it was saved */
    uint64_t bytes, at;    /* at: in its file */
    uint32_t shard;
};

struct wholes {
    struct whole *v;
    uint64_t n, bytes;
    uint32_t nshards;
};

static int same_tensor(const struct whole *w, const struct cairn_tensor *t, struct cairn_error *err)
{
    bool shape = w->t.ndim == t->ndim && memcmp(w->t.shape, t->shape, t->ndim * sizeof *t->shape) == 0;

    if (strcmp(w->t.name, t->name) != 0)
        return cairn_fail(err, CAIRN_E_EXISTS, "%s and %s would both be called %s: --strip something else", w->t.name,
                          t->name, w->name);
    if (shape && w->t.dtype == t->dtype)
        return 0;
    return cairn_fail(err, CAIRN_E_EXISTS, "ranks saved different tensors as %s: restore without --merge", t->name);
}

/* Every name once. What ranks call alike must be slices of one tensor. */
static int take_slice(const struct job *j, struct wholes *all, json_t *names, const struct cairn_tensor *t,
                      struct cairn_error *err)
{
    const char *name = job_name_out(j, t->name);
    const json_t *there = json_object_get(names, name);

    if (!job_wants(j, t->name) || (job_is_document(t->name) && !j->t->documents))
        return 0;
    if (there)
        return same_tensor(&all->v[json_integer_value(there)], t, err);
    if (json_object_set_new(names, name, json_integer((json_int_t)all->n)) < 0)
        return cairn_fail(err, CAIRN_E_NOMEM, "note tensor %s", name);
    uint64_t bytes = job_bytes_of(t->dtype, t->ndim, t->shape);
    all->v[all->n++] = (struct whole){.name = name, .t = *t, .bytes = bytes};
    all->bytes += bytes;
    return 0;
}

/* In the order in which they were saved, a file is full when the next tensor would make it larger than asked for. */
static void cut_into_shards(struct wholes *all, uint64_t shard_bytes)
{
    uint64_t in_shard = 0;

    all->nshards = 1;
    for (uint64_t i = 0; i < all->n; i++) {
        if (shard_bytes && in_shard > 0 && in_shard + all->v[i].bytes > shard_bytes) {
            all->nshards++;
            in_shard = 0;
        }
        all->v[i].shard = all->nshards - 1;
        in_shard += all->v[i].bytes;
    }
}

static int find_wholes(struct job *j, struct wholes *all, struct cairn_error *err)
{
    json_t *names = json_object();
    int r = 0;

    all->v = calloc(j->info.slices + 1, sizeof *all->v);
    if (!all->v || !names)
        r = cairn_fail(err, CAIRN_E_NOMEM, "allocate a table of %" PRIu64 " slices", j->info.slices);
    for (uint64_t i = 0; i < j->info.slices && r == 0; i++) {
        struct cairn_tensor t = {.size = sizeof t};
        uint32_t owner;
        r = cairn_restore_slice(j->restore, i, &owner, &t);
        if (r == 0)
            r = take_slice(j, all, names, &t, err);
    }
    json_decref(names);
    if (r == 0 && all->n == 0)
        r = cairn_fail(err, CAIRN_E_NOT_FOUND, "no tensor of job %s begins with \"%s\"", j->name,
                       j->t->only ? j->t->only : "");
    cut_into_shards(all, j->t->shard_bytes);
    return r;
}

/* ---- one file -------------------------------------------------------------------------------- */

static void file_name(const struct wholes *all, uint32_t shard, char buf[64])
{
    if (all->nshards == 1)
        snprintf(buf, 64, SINGLE);
    else
        snprintf(buf, 64, "model-%05u-of-%05u.safetensors", shard + 1, all->nshards);
}

/* First the header, the widest elements first (so every tensor is aligned, which readers that map the file need), then,
 * in the mapped file, the places that the tensors are restored to. */
static int fill(struct job *j, struct wholes *all, uint32_t shard, struct safetensors *s, struct cairn_error *err)
{
    int r = 0;

    for (size_t width = 8; width > 0; width /= 2) {
        for (uint64_t i = 0; i < all->n && r == 0; i++) {
            struct whole *w = &all->v[i];
            if (w->shard == shard && cairn_dtype_size(w->t.dtype) == width)
                r = safetensors_add(s, w->name, w->t.dtype, w->t.ndim, w->t.shape, w->bytes, &w->at, err);
        }
    }
    if (r == 0)
        r = safetensors_map(s, j->t->force, err);
    for (uint64_t i = 0; i < all->n && r == 0; i++) {
        const struct whole *w = &all->v[i];
        struct cairn_tensor t = w->t;
        t.offset = t.length = NULL;
        t.data = s->data + w->at;
        if (w->shard == shard)
            r = cairn_restore_add(j->restore, &t, err);
    }
    return r;
}

static int restore_shard(struct job *j, struct wholes *all, uint32_t shard, struct cairn_error *err)
{
    struct safetensors s;
    char name[64];

    file_name(all, shard, name);
    int r = job_file_new(j, name, &s, err);
    return r < 0 ? r : job_file_end(j, &s, fill(j, all, shard, &s, err), err);
}

/* ---- the index ------------------------------------------------------------------------------- */

static int index_text(const struct wholes *all, char **ret, struct cairn_error *err)
{
    json_t *map = json_object(),
           *o = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)all->bytes, "weight_map", map);
    char name[64];
    int failed = o ? 0 : -1;

    for (uint64_t i = 0; i < all->n && !failed; i++) {
        file_name(all, all->v[i].shard, name);
        failed = json_object_set_new(map, all->v[i].name, json_string(name));
    }
    *ret = failed ? NULL : json_dumps(o, JSON_INDENT(2) | JSON_SORT_KEYS);
    json_decref(o);
    return *ret ? 0 : cairn_fail(err, CAIRN_E_NOMEM, "write the index of %" PRIu64 " tensors", all->n);
}

static int write_index(struct job *j, const struct wholes *all, struct cairn_error *err)
{
    _cleanup_free_ char *text = NULL, *path = NULL;

    if (asprintf(&path, "%s/" INDEX, j->t->to) < 0) {
        path = NULL;
        return cairn_fail(err, CAIRN_E_NOMEM, "name the index");
    }
    int r = index_text(all, &text, err);
    if (r == 0)
        r = safetensors_write_text(path, text, err);
    if (r == 0)
        job_note_file(j, path, strlen(text) + 1);
    return r;
}

/* What another restore left under the other layout's name would be read instead of this one. */
static int clear_other(struct job *j, const char *name, struct cairn_error *err)
{
    _cleanup_free_ char *path = NULL;

    if (asprintf(&path, "%s/%s", j->t->to, name) < 0) {
        path = NULL;
        return cairn_fail(err, CAIRN_E_NOMEM, "name a file");
    }
    if (access(path, F_OK) < 0)
        return 0;
    if (!j->t->force)
        return cairn_fail(err, CAIRN_E_EXISTS, "%s is there already (--force removes it)", path);
    if (unlink(path) < 0)
        return cairn_fail_errno(err, errno, "remove %s", path);
    return 0;
}

int restore_merged(struct job *j, struct cairn_error *err)
{
    struct wholes all = {0};
    int r = find_wholes(j, &all, err);

    if (r == 0)
        r = clear_other(j, INDEX, err);
    if (r == 0 && all.nshards > 1)
        r = clear_other(j, SINGLE, err);
    for (uint32_t i = 0; i < all.nshards && r == 0; i++)
        r = restore_shard(j, &all, i, err);
    if (r == 0 && all.nshards > 1)
        r = write_index(j, &all, err);
    free(all.v);
    return r;
}
