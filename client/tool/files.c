/* SPDX-License-Identifier: Apache-2.0 */
#include "client/tool/files.h"

#include "core/base/bytes.h"
#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/name.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void files_init(struct files *f)
{
    *f = (struct files){.mode = 0755};
}

static void entry_free(struct files_entry *e)
{
    free(e->path);
    free(e->target);
}

void files_free(struct files *f)
{
    for (uint32_t i = 0; i < f->count; i++)
        entry_free(&f->entries[i]);
    free(f->entries);
    free(f->name);
    free(f->tracker);
    free(f->tracker_text);
    files_init(f);
}

/* ---- names ----------------------------------------------------------------------------------- */

/* For messages: what others named must not steer the terminal. */
static const char *printable(const char *name, char buf[160])
{
    size_t n = 0;

    for (; name[n] && n < 120; n++)
        buf[n] = (char)((unsigned char)name[n] < ' ' || name[n] == 0x7f ? '?' : name[n]);
    snprintf(buf + n, 160 - n, "%s", name[n] ? "..." : "");
    if (cairn_tensor_name_check(buf, strlen(buf), NULL) == 0)
        return buf;
    for (size_t i = 0; buf[i]; i++) /* cut in the middle of a character, or no UTF-8 at all */
        buf[i] = (char)((unsigned char)buf[i] >= 0x80 ? '?' : buf[i]);
    return buf;
}

static int component_check(const char *path, const char *name, size_t len, struct cairn_error *err)
{
    char buf[160];

    if (len == 0 || (len == 1 && name[0] == '.') || (len == 2 && name[0] == '.' && name[1] == '.'))
        return cairn_fail(err, CAIRN_E_INVAL, "\"%s\" is no path within a tree", printable(path, buf));
    if (len > FILES_MAX_NAME)
        return cairn_fail(err, CAIRN_E_INVAL, "\"%s\": a name has %zu bytes, %d are possible", printable(path, buf),
                          len, FILES_MAX_NAME);
    if (cairn_tensor_name_check(name, len, NULL) < 0)
        return cairn_fail(err, CAIRN_E_INVAL, "\"%s\": the name is no UTF-8 or has control characters: rename it",
                          printable(path, buf));
    return 0;
}

int files_name_check(const char *name, struct cairn_error *err)
{
    char buf[160];

    if (!name)
        return cairn_fail(err, CAIRN_E_INVAL, "a file has no name");
    if (strchr(name, '/'))
        return cairn_fail(err, CAIRN_E_INVAL, "\"%s\" is a path, a name is wanted", printable(name, buf));
    return component_check(name, name, strlen(name), err);
}

int files_path_check(const char *path, struct cairn_error *err)
{
    unsigned depth = 0;
    char buf[160];

    if (!path)
        return cairn_fail(err, CAIRN_E_INVAL, "a file has no path");
    if (strlen(path) > FILES_MAX_PATH)
        return cairn_fail(err, CAIRN_E_INVAL, "\"%s\": the path has %zu bytes, %zu are possible", printable(path, buf),
                          strlen(path), FILES_MAX_PATH);
    for (const char *at = path;; depth++) {
        size_t len = strcspn(at, "/");
        int r = component_check(path, at, len, err);
        if (r < 0)
            return r;
        if (depth > FILES_MAX_DEPTH)
            return cairn_fail(err, CAIRN_E_INVAL, "\"%s\": more than %d directories deep", printable(path, buf),
                              FILES_MAX_DEPTH);
        if (!at[len])
            return 0;
        at += len + 1;
    }
}

int files_target_check(const char *path, const char *target, struct cairn_error *err)
{
    unsigned depth = 0;
    char a[160], b[160];

    for (const char *c = path; *c; c++)
        depth += *c == '/';
    const char *at = target ? target : "";
    for (; strncmp(at, "../", 3) == 0 && depth > 0; depth--)
        at += 3;
    if (strcmp(at, "..") == 0 && depth > 0)
        return 0; /* a directory of the tree, or its root */
    if (files_path_check(at, NULL) == 0)
        return 0;
    return cairn_fail(err, CAIRN_E_INVAL, "the link \"%s\" leads to \"%s\": only links within the tree are kept",
                      printable(path, a), printable(target ? target : "", b));
}

/* ---- a tree ---------------------------------------------------------------------------------- */

static int replace(char **to, const char *text, struct cairn_error *err)
{
    char *copy = strdup(text);

    if (!copy)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a name");
    free(*to);
    *to = copy;
    return 0;
}

int files_set_name(struct files *f, const char *name, struct cairn_error *err)
{
    int r = files_name_check(name, err);

    return r < 0 ? r : replace(&f->name, name, err);
}

/* Restore writes this file beside the tree, so nothing else may pass for it. */
static bool is_tracker(const char *name)
{
    return strcmp(name, "latest") == 0 || strcmp(name, "latest_checkpointed_iteration.txt") == 0;
}

int files_set_tracker(struct files *f, const char *name, const char *text, struct cairn_error *err)
{
    char buf[160];

    if (!is_tracker(name))
        return cairn_fail(err, CAIRN_E_INVAL, "\"%s\" is no tracker's name", printable(name, buf));
    if (!f->name || (strcmp(text, f->name) != 0 && (strspn(text, "0123456789") != strlen(text) || strlen(text) > 20)))
        return cairn_fail(err, CAIRN_E_INVAL, "the tracker says \"%s\", which is not its step", printable(text, buf));
    int r = replace(&f->tracker, name, err);
    return r < 0 ? r : replace(&f->tracker_text, text, err);
}

static int reserve(struct files *f, struct cairn_error *err)
{
    if (f->count < f->allocated)
        return 0;
    if (f->count >= FILES_MAX_ENTRIES)
        return cairn_fail(err, CAIRN_E_TOO_LARGE, "the tree has more than %u files and directories", FILES_MAX_ENTRIES);
    uint32_t n = f->allocated ? 2 * f->allocated : 64;
    struct files_entry *more = realloc(f->entries, n * sizeof *more);
    if (!more)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate %u entries", n);
    f->entries = more;
    f->allocated = n;
    return 0;
}

int files_add(struct files *f, const struct files_entry *e, struct cairn_error *err)
{
    int r = files_path_check(e->path, err);

    if (r == 0 && e->kind == FILES_LINK)
        r = files_target_check(e->path, e->target, err);
    if (r == 0)
        r = reserve(f, err);
    if (r < 0)
        return r;
    struct files_entry copy = *e;
    copy.path = strdup(e->path);
    copy.target = e->kind == FILES_LINK ? strdup(e->target) : NULL;
    if (!copy.path || (e->kind == FILES_LINK && !copy.target)) {
        entry_free(&copy);
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate an entry");
    }
    f->entries[f->count++] = copy;
    return 0;
}

static int by_path(const void *a, const void *b)
{
    return strcmp(((const struct files_entry *)a)->path, ((const struct files_entry *)b)->path);
}

struct files_entry *files_find(const struct files *f, const char *path)
{
    struct files_entry key = {.path = (char *)path};

    return f->count ? bsearch(&key, f->entries, f->count, sizeof key, by_path) : NULL;
}

static int parent_check(const struct files *f, const char *path, struct cairn_error *err)
{
    const char *slash = strrchr(path, '/');
    char buf[160];

    if (!slash)
        return 0;
    _cleanup_free_ char *parent = strndup(path, (size_t)(slash - path));
    if (!parent)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a path");
    const struct files_entry *e = files_find(f, parent);
    if (e && e->kind == FILES_DIRECTORY)
        return 0;
    return cairn_fail(err, CAIRN_E_INVAL, "\"%s\" lies below what is no directory of the tree", printable(path, buf));
}

int files_finish(struct files *f, struct cairn_error *err)
{
    char buf[160];

    if (!f->name)
        return cairn_fail(err, CAIRN_E_INVAL, "the tree has no name");
    if (f->count)
        qsort(f->entries, f->count, sizeof *f->entries, by_path);
    for (uint32_t i = 0; i < f->count; i++) {
        if (i > 0 && strcmp(f->entries[i - 1].path, f->entries[i].path) == 0)
            return cairn_fail(err, CAIRN_E_INVAL, "\"%s\" is there twice", printable(f->entries[i].path, buf));
        int r = parent_check(f, f->entries[i].path, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* ---- comparing ------------------------------------------------------------------------------- */

static bool same_bytes(const struct files_entry *a, const struct files_entry *b)
{
    return a->kind == b->kind && a->size == b->size && (a->kind == FILES_DIRECTORY || a->mtime_ns == b->mtime_ns) &&
           (a->kind != FILES_LINK || strcmp(a->target, b->target) == 0);
}

static bool same_inode(const struct files_entry *a, const struct files_entry *b)
{
    return a->device == b->device && a->inode == b->inode &&
           (a->kind == FILES_DIRECTORY || (a->ctime_ns == b->ctime_ns && a->mode == b->mode));
}

const char *files_changed(const struct files *before, const struct files *now)
{
    uint32_t i = 0, j = 0;

    while (i < before->count && j < now->count) {
        const struct files_entry *a = &before->entries[i], *b = &now->entries[j];
        int order = strcmp(a->path, b->path);
        if (order != 0)
            return order < 0 ? a->path : b->path;
        if (!same_bytes(a, b) || !same_inode(a, b))
            return b->path;
        i++;
        j++;
    }
    return i < before->count ? before->entries[i].path : j < now->count ? now->entries[j].path : NULL;
}

const char *files_added(const struct files *before, const struct files *now)
{
    for (uint32_t i = 0; i < now->count; i++) {
        const struct files_entry *there = files_find(before, now->entries[i].path);
        if (now->entries[i].kind != FILES_DIRECTORY && (!there || !same_bytes(there, &now->entries[i])))
            return now->entries[i].path;
    }
    return NULL;
}

bool files_describe(const struct files *stored, const struct files *scanned)
{
    if (stored->count != scanned->count || !stored->name || !scanned->name || strcmp(stored->name, scanned->name) != 0)
        return false;
    for (uint32_t i = 0; i < stored->count; i++)
        if (strcmp(stored->entries[i].path, scanned->entries[i].path) != 0 ||
            !same_bytes(&stored->entries[i], &scanned->entries[i]))
            return false;
    return true;
}

int files_merge(struct files *into, const struct files *from, uint32_t rank, struct cairn_error *err)
{
    uint32_t before = into->count;
    char buf[160];
    int r = 0;

    if (strcmp(into->name, from->name) != 0)
        return cairn_fail(err, CAIRN_E_EXISTS, "rank %u calls its directory \"%s\": restore each with --rank", rank,
                          printable(from->name, buf));
    for (uint32_t i = 0; i < from->count && r == 0; i++) {
        const struct files_entry *e = &from->entries[i];
        struct files_entry key = {.path = e->path};
        const struct files_entry *there = before ? bsearch(&key, into->entries, before, sizeof key, by_path) : NULL;
        if (!there)
            r = files_add(into, e, err);
        else if (there->kind != e->kind || (e->kind == FILES_LINK && strcmp(there->target, e->target) != 0) ||
                 (e->kind == FILES_FILE &&
                  (there->size != e->size || there->sum.low != e->sum.low || there->sum.high != e->sum.high)))
            r = cairn_fail(err, CAIRN_E_EXISTS,
                           "rank %u has another \"%s\" than the ranks before it: restore each with --rank", rank,
                           printable(e->path, buf));
    }
    return r < 0 ? r : files_finish(into, err);
}

/* ---- room ------------------------------------------------------------------------------------ */

#define SMALL ((uint64_t)1 << 20)
#define LARGE ((uint64_t)16 << 20)

uint64_t files_room(uint64_t size, uint64_t before)
{
    uint64_t want;

    if (size < SMALL)
        want = round_up_u64(size + size / 4 + 1, 4096);
    else
        want = round_up_u64(size, size < LARGE ? 65536 : SMALL);
    return before > 0 && before >= size && before <= 2 * want ? before : want;
}

static int class_of(const struct files_entry *e)
{
    return e->room >= LARGE ? 0 : e->room >= SMALL ? 1 : 2;
}

uint32_t files_arrange(struct files *f, const struct files *before, uint32_t *order)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < f->count; i++) {
        struct files_entry *e = &f->entries[i];
        const struct files_entry *old = before ? files_find(before, e->path) : NULL;
        if (e->kind == FILES_FILE)
            e->room = files_room(e->size, old && old->kind == FILES_FILE ? old->room : 0);
    }
    for (int class = 0; class < 3; class ++)
        for (uint32_t i = 0; i < f->count; i++)
            if (f->entries[i].kind == FILES_FILE && class_of(&f->entries[i]) == class)
                order[n++] = i;
    return n;
}
