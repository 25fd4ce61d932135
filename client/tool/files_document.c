/* SPDX-License-Identifier: Apache-2.0 */
/* The document of a tree (files.h), to and from JSON. */
#include "client/tool/files.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MODES 0777u /* no set-user-ID, set-group-ID or sticky bit comes back */

CAIRN_DEFINE_CLEANUP(json_t *, json_decref, drop_json)
#define _cleanup_json_ CAIRN_CLEANUP(drop_json)

static const char *const kinds[] = {[FILES_FILE] = "file", [FILES_DIRECTORY] = "dir", [FILES_LINK] = "link"};

/* ---- encode ---------------------------------------------------------------------------------- */

static json_t *entry_to_json(const struct files_entry *e)
{
    char sum[40];

    snprintf(sum, sizeof sum, "%016" PRIx64 "%016" PRIx64, e->sum.high, e->sum.low);
    if (e->kind == FILES_LINK)
        return json_pack("{s:s, s:s, s:I, s:s}", "path", e->path, "kind", kinds[e->kind], "mtime_ns",
                         (json_int_t)e->mtime_ns, "target", e->target);
    json_t *o = json_pack("{s:s, s:s, s:i, s:I}", "path", e->path, "kind", kinds[e->kind], "mode",
                          (int)(e->mode & MODES), "mtime_ns", (json_int_t)e->mtime_ns);
    if (o && e->kind == FILES_FILE &&
        (json_object_set_new(o, "size", json_integer((json_int_t)e->size)) < 0 ||
         json_object_set_new(o, "xxh3", json_string(sum)) < 0)) {
        json_decref(o);
        return NULL;
    }
    return o;
}

static json_t *tree_to_json(const struct files *f)
{
    json_t *o = json_pack("{s:i, s:s, s:i, s:I, s:[]}", "v", 1, "name", f->name, "mode", (int)(f->mode & MODES),
                          "mtime_ns", (json_int_t)f->mtime_ns, "entries");
    json_t *entries = json_object_get(o, "entries");
    bool ok = o;

    if (ok && f->tracker)
        ok = json_object_set_new(o, "tracker", json_pack("{s:s, s:s}", "name", f->tracker, "text", f->tracker_text)) ==
             0;
    for (uint32_t i = 0; i < f->count && ok; i++)
        ok = json_array_append_new(entries, entry_to_json(&f->entries[i])) == 0;
    if (ok)
        return o;
    json_decref(o);
    return NULL;
}

int files_encode(const struct files *f, char **ret_text, size_t *ret_len, struct cairn_error *err)
{
    _cleanup_json_ json_t *o = tree_to_json(f);
    _cleanup_free_ char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;

    if (!text)
        return cairn_fail(err, CAIRN_E_NOMEM, "write the document of %u files", f->count);
    if (strlen(text) > FILES_MAX_DOCUMENT)
        return cairn_fail(err, CAIRN_E_TOO_LARGE, "the document of %u files has %zu bytes", f->count, strlen(text));
    *ret_len = strlen(text);
    *ret_text = TAKE_PTR(text);
    return 0;
}

/* ---- decode ---------------------------------------------------------------------------------- */

static int bad(struct cairn_error *err, const char *what)
{
    return cairn_fail(err, CAIRN_E_CORRUPT, "the document of the files is damaged: %s", what);
}

static int read_integer(const json_t *o, const char *key, json_int_t low, json_int_t high, json_int_t *ret,
                        struct cairn_error *err)
{
    const json_t *v = json_object_get(o, key);

    if (!json_is_integer(v) || json_integer_value(v) < low || json_integer_value(v) > high)
        return bad(err, key);
    *ret = json_integer_value(v);
    return 0;
}

static int read_sum(const json_t *o, struct hash128 *ret, struct cairn_error *err)
{
    const char *text = json_string_value(json_object_get(o, "xxh3"));
    char half[17] = "";

    if (!text || strlen(text) != 32 || strspn(text, "0123456789abcdef") != 32)
        return bad(err, "xxh3");
    memcpy(half, text, 16);
    ret->high = strtoull(half, NULL, 16);
    ret->low = strtoull(text + 16, NULL, 16);
    return 0;
}

static int read_kind(const json_t *o, enum files_kind *ret, struct cairn_error *err)
{
    const char *text = json_string_value(json_object_get(o, "kind"));

    for (int k = FILES_FILE; text && k <= FILES_LINK; k++) {
        if (strcmp(text, kinds[k]) == 0) {
            *ret = (enum files_kind)k;
            return 0;
        }
    }
    return bad(err, "kind");
}

static int read_entry(struct files *f, const json_t *o, struct cairn_error *err)
{
    struct files_entry e = {.path = (char *)json_string_value(json_object_get(o, "path")),
                            .target = (char *)json_string_value(json_object_get(o, "target"))};
    json_int_t mode = 0, mtime = 0, size = 0;

    int r = e.path ? read_kind(o, &e.kind, err) : bad(err, "path");
    if (r == 0)
        r = read_integer(o, "mtime_ns", INT64_MIN, INT64_MAX, &mtime, err);
    if (r == 0 && e.kind != FILES_LINK)
        r = read_integer(o, "mode", 0, MODES, &mode, err);
    if (r == 0 && e.kind == FILES_FILE)
        r = read_integer(o, "size", 0, INT64_MAX, &size, err);
    if (r == 0 && e.kind == FILES_FILE)
        r = read_sum(o, &e.sum, err);
    if (r == 0 && e.kind == FILES_LINK && !e.target)
        r = bad(err, "target");
    if (r < 0)
        return r;
    e.mode = (uint32_t)mode;
    e.mtime_ns = mtime;
    e.size = (uint64_t)size;
    return files_add(f, &e, err);
}

static int read_tracker(struct files *f, const json_t *o, struct cairn_error *err)
{
    if (!o)
        return 0;
    const char *name = json_string_value(json_object_get(o, "name"));
    const char *text = json_string_value(json_object_get(o, "text"));
    return name && text ? files_set_tracker(f, name, text, err) : bad(err, "tracker");
}

static int read_tree(struct files *f, const json_t *o, struct cairn_error *err)
{
    const json_t *entries = json_object_get(o, "entries");
    json_int_t version, mode = 0, mtime = 0;

    int r = read_integer(o, "v", 1, INT64_MAX, &version, err);
    if (r == 0 && version != 1)
        return cairn_fail(err, CAIRN_E_UNSUPPORTED, "the document of the files has version %lld, this tool knows 1",
                          (long long)version);
    if (r == 0)
        r = read_integer(o, "mode", 0, MODES, &mode, err);
    if (r == 0)
        r = read_integer(o, "mtime_ns", INT64_MIN, INT64_MAX, &mtime, err);
    if (r == 0)
        r = files_set_name(f, json_string_value(json_object_get(o, "name")), err);
    if (r == 0)
        r = read_tracker(f, json_object_get(o, "tracker"), err);
    if (r == 0 && !json_is_array(entries))
        r = bad(err, "entries");
    f->mode = (uint32_t)mode;
    f->mtime_ns = mtime;
    for (size_t i = 0; r == 0 && i < json_array_size(entries); i++)
        r = read_entry(f, json_array_get(entries, i), err);
    return r < 0 ? r : files_finish(f, err);
}

int files_decode(struct files *f, const char *text, size_t len, struct cairn_error *err)
{
    json_error_t why;
    _cleanup_json_ json_t *o = len <= FILES_MAX_DOCUMENT ? json_loadb(text, len, JSON_REJECT_DUPLICATES, &why) : NULL;

    files_init(f);
    int r = json_is_object(o) ? read_tree(f, o, err) : bad(err, "it is no JSON object");
    if (r < 0)
        files_free(f);
    return r;
}
