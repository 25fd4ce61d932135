/* SPDX-License-Identifier: Apache-2.0 */
#include "client/tool/files_stored.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the document ---------------------------------------------------------------------------- */

static bool is_whole_bytes(const struct cairn_tensor *t)
{
    return t->dtype == CAIRN_BYTES && t->ndim == 1 && t->offset[0] == 0 && t->length[0] == t->shape[0];
}

static int find_document(struct cairn_restore *restore, uint32_t rank, uint64_t *ret_index, uint64_t *ret_bytes,
                         struct cairn_error *err)
{
    struct cairn_checkpoint_info info = {.size = sizeof info};
    char name[64];
    int r = cairn_restore_info(restore, &info);

    snprintf(name, sizeof name, FILES_DOCUMENT "%u", rank);
    for (uint64_t i = 0; i < info.slices && r == 0; i++) {
        struct cairn_tensor t = {.size = sizeof t};
        uint32_t owner = 0;
        r = cairn_restore_slice(restore, i, &owner, &t);
        if (r < 0 || owner != rank || strcmp(t.name, name) != 0)
            continue;
        if (!is_whole_bytes(&t) || t.length[0] > FILES_MAX_DOCUMENT)
            return cairn_fail(err, CAIRN_E_CORRUPT, "%s is no document of files", name);
        *ret_index = i;
        *ret_bytes = t.length[0];
        return 0;
    }
    if (r < 0)
        return cairn_fail(err, r, "look through the slices of step %llu", (unsigned long long)info.step);
    return cairn_fail(err, CAIRN_E_NOT_FOUND, "rank %u has no files in step %llu: \"cairn watch\" did not save it",
                      rank, (unsigned long long)info.step);
}

int files_stored(struct cairn_restore *restore, uint32_t rank, uint32_t timeout_ms, struct files *ret,
                 struct cairn_error *err)
{
    uint64_t index = 0, bytes = 0; /* set where r is 0, which gcc -O2 does not see */
    int r = find_document(restore, rank, &index, &bytes, err);

    if (r < 0)
        return r;
    _cleanup_free_ char *text = malloc(bytes + 1);
    if (!text)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the document of rank %u", rank);
    r = cairn_restore_add_slice(restore, index, text, err);
    if (r == 0)
        r = cairn_restore_run(restore, timeout_ms, NULL, NULL, err);
    if (r == 0)
        r = files_decode(ret, text, bytes, err);
    if (r < 0)
        return cairn_wrap(err, r == CAIRN_E_INVAL ? CAIRN_E_CORRUPT : r, "files of rank %u", rank);
    for (uint32_t i = 0; i < ret->count; i++)
        ret->entries[i].rank = rank;
    return 0;
}

/* ---- the files' bytes ------------------------------------------------------------------------ */

static int by_rank_and_path(const void *a, const void *b)
{
    const struct files_slice *x = a, *y = b;

    if (x->rank != y->rank)
        return x->rank < y->rank ? -1 : 1;
    return strcmp(x->path, y->path);
}

int files_slices(struct cairn_restore *restore, struct files_slices *ret, struct cairn_error *err)
{
    struct cairn_checkpoint_info info = {.size = sizeof info};
    int r = cairn_restore_info(restore, &info);

    *ret = (struct files_slices){.list = calloc(info.slices + 1, sizeof *ret->list)};
    if (r < 0 || !ret->list)
        return cairn_fail(err, r < 0 ? r : CAIRN_E_NOMEM, "make a table of %llu slices",
                          (unsigned long long)info.slices);
    for (uint64_t i = 0; i < info.slices && r == 0; i++) {
        struct files_slice *s = &ret->list[ret->count];
        struct cairn_tensor t = {.size = sizeof t};
        r = cairn_restore_slice(restore, i, &s->rank, &t);
        if (r < 0 || strncmp(t.name, FILES_TENSOR, strlen(FILES_TENSOR)) != 0 || !is_whole_bytes(&t))
            continue;
        s->path = t.name + strlen(FILES_TENSOR);
        s->index = i;
        s->bytes = t.length[0];
        ret->count++;
    }
    qsort(ret->list, ret->count, sizeof *ret->list, by_rank_and_path);
    return r < 0 ? cairn_fail(err, r, "look through the slices") : 0;
}

void files_slices_free(struct files_slices *s)
{
    free(s->list);
    *s = (struct files_slices){0};
}

int files_slice_of(const struct files_slices *s, const struct files_entry *e, const struct files_slice **ret,
                   struct cairn_error *err)
{
    struct files_slice key = {.path = e->path, .rank = e->rank};
    const struct files_slice *found = s->count ? bsearch(&key, s->list, s->count, sizeof key, by_rank_and_path) : NULL;

    if (!found || found->bytes < e->size)
        return cairn_fail(err, CAIRN_E_CORRUPT,
                          "rank %u: the document has a file of %llu bytes that is not there: %.200s", e->rank,
                          (unsigned long long)e->size, e->path);
    *ret = found;
    return 0;
}
