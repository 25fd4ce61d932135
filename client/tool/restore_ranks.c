/* SPDX-License-Identifier: Apache-2.0 */
/* One safetensors file for each rank, of what that rank saved. */
#include "client/tool/restore.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

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
static void note_slice(const struct job *j, struct safetensors *s, const char *name, const struct cairn_tensor *t)
{
    json_t *place = json_pack("{s:s, s:o, s:o}", "tensor", job_name_out(j, t->name), "shape",
                              numbers(t->shape, t->ndim), "offset", numbers(t->offset, t->ndim));
    char *text = json_dumps(place, JSON_COMPACT), *key = NULL;

    if (text && asprintf(&key, "cairn.slice.%s", name) > 0)
        safetensors_note(s, key, text);
    free(key);
    free(text);
    json_decref(place);
}

/* A rank may have several slices of one tensor: the second is called NAME@1. */
static int add_slice(struct job *j, struct safetensors *s, const struct cairn_tensor *t, uint64_t *at,
                     struct cairn_error *err)
{
    const char *base = job_name_out(j, t->name);
    _cleanup_free_ char *name = strdup(base);

    for (unsigned n = 1; name && json_object_get(s->header, name); n++) {
        free(name);
        if (asprintf(&name, "%s@%u", base, n) < 0)
            name = NULL;
    }
    if (!name)
        return cairn_fail(err, CAIRN_E_NOMEM, "name a tensor");
    if (is_slice(t) || strcmp(name, base) != 0)
        note_slice(j, s, name, t);
    return safetensors_add(s, name, t->dtype, t->ndim, t->length, job_bytes_of(t->dtype, t->ndim, t->length), at, err);
}

/* The places of a rank's slices, the widest elements first: so every tensor is aligned in the file, which readers that
 * map it need. */
static int add_slices(struct job *j, struct safetensors *s, uint32_t rank, uint64_t *at, struct cairn_error *err)
{
    int r = 0;

    for (size_t width = 8; width > 0; width /= 2) {
        for (uint64_t i = 0; i < j->info.slices && r == 0; i++) {
            struct cairn_tensor t = {.size = sizeof t};
            uint32_t owner;
            r = cairn_restore_slice(j->restore, i, &owner, &t);
            if (r == 0 && owner == rank && cairn_dtype_size(t.dtype) == width && job_wants(j, t.name))
                r = add_slice(j, s, &t, &at[i], err);
        }
    }
    return r;
}

#define NOT_HERE UINT64_MAX

/* First the header, then, in the mapped file, the places that the slices are restored to. */
static int fill(struct job *j, struct safetensors *s, uint32_t rank, struct cairn_error *err)
{
    _cleanup_free_ uint64_t *at = malloc((j->info.slices + 1) * sizeof *at);
    int r = at ? 0 : cairn_fail(err, CAIRN_E_NOMEM, "allocate a table of %" PRIu64 " slices", j->info.slices);

    for (uint64_t i = 0; i < j->info.slices && r == 0; i++)
        at[i] = NOT_HERE;
    if (r == 0)
        r = add_slices(j, s, rank, at, err);
    if (r == 0)
        r = safetensors_map(s, j->t->force, err);
    for (uint64_t i = 0; i < j->info.slices && r == 0; i++)
        if (at[i] != NOT_HERE)
            r = cairn_restore_add_slice(j->restore, i, s->data + at[i], err);
    return r;
}

static int restore_rank(struct job *j, uint32_t rank, struct cairn_error *err)
{
    struct safetensors s;
    char name[64], text[16];

    snprintf(name, sizeof name, "rank-%05u.safetensors", rank);
    int r = job_file_new(j, name, &s, err);
    if (r < 0)
        return r;
    snprintf(text, sizeof text, "%u", rank);
    safetensors_note(&s, "cairn.rank", text);
    return job_file_end(j, &s, fill(j, &s, rank, err), err);
}

int restore_ranks(struct job *j, struct cairn_error *err)
{
    int r = 0;

    for (uint32_t rank = 0; rank < j->info.world_size && r == 0; rank++)
        if (j->t->rank < 0 || rank == j->t->rank)
            r = restore_rank(j, rank, err);
    return r;
}
