/* SPDX-License-Identifier: Apache-2.0 */
/* Answers of the gateway. Members with their default value are left out by it: an absent number is 0, an absent list is
 * empty. Nothing else is taken on trust: types, base64, ranges and the namespace are checked. */
#include "meta-etcd.h"

#include "core/base/error.h"

#include <jansson.h>
#include <openssl/evp.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void rows_free(struct rows *r)
{
    for (size_t i = 0; i < r->n; i++) {
        free((void *)(uintptr_t)r->kvs[i].key);
        free((void *)(uintptr_t)r->kvs[i].value);
    }
    free(r->kvs);
    free(r->last_key);
    *r = (struct rows){0};
}

void watched_free(struct watched *w)
{
    rows_free(&w->events);
}

static int wrong(struct cairn_error *err, const char *what)
{
    return cairn_fail(err, CAIRN_E_PROTOCOL, "etcd's answer has %s", what);
}

static json_t *parse(const char *text, size_t len, struct cairn_error *err)
{
    json_error_t why;
    json_t *o = json_loadb(text, len, JSON_REJECT_DUPLICATES, &why);

    if (json_is_object(o))
        return o;
    cairn_fail(err, CAIRN_E_PROTOCOL, "etcd's answer of %zu bytes is no JSON object", len);
    json_decref(o);
    return NULL;
}

/* 64-bit numbers come as strings; an absent one is 0. */
static int number(json_t *o, const char *name, uint64_t *ret, struct cairn_error *err)
{
    json_t *v = json_object_get(o, name);
    const char *s = json_string_value(v);
    char *end = NULL;

    *ret = 0;
    if (!v)
        return 0;
    if (json_is_integer(v) && json_integer_value(v) >= 0) {
        *ret = (uint64_t)json_integer_value(v);
        return 0;
    }
    errno = 0;
    uint64_t n = s && s[0] >= '0' && s[0] <= '9' ? strtoull(s, &end, 10) : 0;
    if (!end || *end || errno)
        return wrong(err, "a number that is none");
    *ret = n;
    return 0;
}

static int header_revision(json_t *o, uint64_t *ret, struct cairn_error *err)
{
    json_t *h = json_object_get(o, "header");

    if (!json_is_object(h))
        return wrong(err, "no header");
    return number(h, "revision", ret, err);
}

/* An absent one is empty. The caller frees; a zero byte stands behind it. */
static int data(json_t *o, const char *name, char **ret, size_t *ret_len, struct cairn_error *err)
{
    const char *s = json_object_get(o, name) ? json_string_value(json_object_get(o, name)) : "";
    size_t len = s ? strlen(s) : 1, pad = 0;

    if (!s || len % 4 != 0)
        return wrong(err, "data that is no base64");
    while (pad < 2 && pad < len && s[len - 1 - pad] == '=')
        pad++;
    char *out = malloc(len / 4 * 3 + 1);
    if (!out)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate %zu bytes of etcd's answer", len);
    int n = len ? EVP_DecodeBlock((unsigned char *)out, (const unsigned char *)s, (int)len) : 0;
    if (n < 0) {
        free(out);
        return wrong(err, "data that is no base64");
    }
    *ret_len = (size_t)n - pad;
    out[*ret_len] = 0;
    *ret = out;
    return 0;
}

static struct cairn_kv *rows_add(struct rows *r)
{
    if (r->n == r->room) {
        size_t room = r->room ? r->room * 2 : 16;
        struct cairn_kv *more = realloc(r->kvs, room * sizeof *more);
        if (!more)
            return NULL;
        r->kvs = more;
        r->room = room;
    }
    r->kvs[r->n] = (struct cairn_kv){0};
    return &r->kvs[r->n++];
}

/* The key as it is in etcd; the row gets it without the namespace. */
static int row_key(struct cairn_kv *kv, const struct names *names, struct rows *rows, char *full, size_t len,
                   struct cairn_error *err)
{
    if (strlen(full) != len || strncmp(full, names->prefix, names->len) != 0 || len == names->len)
        return wrong(err, "a key that was not asked for");
    kv->key = strdup(full + names->len);
    free(rows->last_key);
    rows->last_key = strdup(full);
    return kv->key && rows->last_key ? 0 : cairn_fail(err, CAIRN_E_NOMEM, "allocate a key of etcd's answer");
}

static int row(json_t *o, const struct names *names, bool deleted, struct rows *rows, struct cairn_error *err)
{
    struct cairn_kv *kv = rows_add(rows);
    char *full = NULL, *value = NULL;
    size_t len;

    if (!kv)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a row of etcd's answer");
    if (!json_is_object(o))
        return wrong(err, "a row that is none");
    int r = data(o, "key", &full, &len, err);
    if (r == 0)
        r = row_key(kv, names, rows, full, len, err);
    free(full);
    if (r == 0)
        r = number(o, "mod_revision", &kv->mod_revision, err);
    if (r == 0 && !deleted)
        r = data(o, "value", &value, &kv->value_len, err);
    kv->value = value;
    return r;
}

static int rows_read(json_t *list, const struct names *names, struct rows *rows, struct cairn_error *err)
{
    int r = 0;

    if (list && !json_is_array(list))
        return wrong(err, "rows that are no list");
    for (size_t i = 0; r == 0 && i < json_array_size(list); i++)
        r = row(json_array_get(list, i), names, false, rows, err);
    return r;
}

int answer_range(const char *text, size_t len, const struct names *names, struct rows *rows, struct cairn_error *err)
{
    json_t *o = parse(text, len, err);
    int r = o ? header_revision(o, &rows->revision, err) : CAIRN_E_PROTOCOL;

    if (r == 0)
        r = rows_read(json_object_get(o, "kvs"), names, rows, err);
    rows->more = r == 0 && json_is_true(json_object_get(o, "more"));
    json_decref(o);
    return r;
}

int answer_txn(const char *text, size_t len, int *ret_succeeded, uint64_t *ret_revision, struct cairn_error *err)
{
    json_t *o = parse(text, len, err);
    int r = o ? header_revision(o, ret_revision, err) : CAIRN_E_PROTOCOL;

    *ret_succeeded = r == 0 && json_is_true(json_object_get(o, "succeeded"));
    json_decref(o);
    return r;
}

int answer_grant(const char *text, size_t len, int64_t *ret_lease, struct cairn_error *err)
{
    json_t *o = parse(text, len, err);
    uint64_t id = 0;
    int r = o ? number(o, "ID", &id, err) : CAIRN_E_PROTOCOL;

    if (r == 0 && (id == 0 || id > INT64_MAX))
        r = wrong(err, "no lease");
    *ret_lease = (int64_t)id;
    json_decref(o);
    return r;
}

int answer_keep(const char *text, size_t len, struct cairn_error *err)
{
    json_t *o = parse(text, len, err), *result = json_object_get(o, "result");
    uint64_t ttl = 0, id = 0;
    int r = o ? 0 : CAIRN_E_PROTOCOL;

    if (r == 0 && !json_is_object(result))
        r = wrong(err, "no result");
    if (r == 0)
        r = number(result, "TTL", &ttl, err);
    if (r == 0)
        r = number(result, "ID", &id, err);
    if (r == 0 && ttl == 0)
        r = cairn_fail(err, CAIRN_E_NOT_FOUND, "lease %llu has expired", (unsigned long long)id);
    json_decref(o);
    return r;
}

int answer_login(const char *text, size_t len, char token[ETCD_MAX_TOKEN], struct cairn_error *err)
{
    json_t *o = parse(text, len, err);
    const char *s = json_string_value(json_object_get(o, "token"));
    int r = o ? 0 : CAIRN_E_PROTOCOL;

    if (r == 0 && (!s || !s[0] || strlen(s) >= ETCD_MAX_TOKEN || strpbrk(s, "\r\n")))
        r = wrong(err, "no token");
    if (r == 0)
        snprintf(token, ETCD_MAX_TOKEN, "%s", s);
    json_decref(o);
    return r;
}

struct refusal answer_refusal(const char *text, size_t len, long http_status, struct cairn_error *err)
{
    json_t *o = json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL);
    json_t *said = json_object_get(o, "error");
    const char *s = json_string_value(said);
    struct refusal f = {.code = CAIRN_E_UNAVAILABLE, .elsewhere = http_status >= 500};

    if (!s)
        s = json_string_value(json_object_get(said, "message")); /* of a stream */
    if (!s)
        s = "no reason given";
    f.login =
        strstr(s, "invalid auth token") || strstr(s, "auth token is not provided") || strstr(s, "user name is empty");
    if (strstr(s, "lease not found"))
        f = (struct refusal){.code = CAIRN_E_NOT_FOUND};
    else if (f.login || strstr(s, "permission denied") || strstr(s, "authentication failed"))
        f.code = CAIRN_E_DENIED;
    else if (http_status >= 400 && http_status < 500 && http_status != 408 && http_status != 429)
        f.code = CAIRN_E_INVAL;
    cairn_fail(err, f.code, "etcd refused it: %.200s (HTTP %ld)", s, http_status);
    json_decref(o);
    return f;
}

static int watched_events(json_t *list, const struct names *names, struct rows *rows, struct cairn_error *err)
{
    int r = 0;

    if (list && !json_is_array(list))
        return wrong(err, "events that are no list");
    for (size_t i = 0; r == 0 && i < json_array_size(list); i++) {
        json_t *e = json_array_get(list, i);
        const char *type = json_string_value(json_object_get(e, "type"));
        r = row(json_object_get(e, "kv"), names, type && strcmp(type, "DELETE") == 0, rows, err);
    }
    return r;
}

int answer_watch(const char *text, size_t len, const struct names *names, struct watched *ret, struct cairn_error *err)
{
    json_t *o = parse(text, len, err), *result = json_object_get(o, "result");
    int r = o ? 0 : CAIRN_E_PROTOCOL;

    *ret = (struct watched){.created = false};
    if (r == 0 && !json_is_object(result))
        r = answer_refusal(text, len, 0, err).code;
    if (r == 0)
        r = header_revision(result, &ret->revision, err);
    if (r == 0)
        r = number(result, "compact_revision", &ret->compacted, err);
    if (r == 0)
        r = watched_events(json_object_get(result, "events"), names, &ret->events, err);
    ret->created = r == 0 && json_is_true(json_object_get(result, "created"));
    ret->canceled = r == 0 && json_is_true(json_object_get(result, "canceled"));
    json_decref(o);
    return r;
}
