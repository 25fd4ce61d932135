/* SPDX-License-Identifier: Apache-2.0 */
/* Requests as JSON: keys and values in base64, 64-bit numbers as strings, as the gateway wants them. Everything that is
 * put in is base64 or a number, but for a user's name and password. */
#include "meta-etcd.h"

#include <openssl/evp.h>

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void put_text(struct bytes *out, const char *s)
{
    bytes_put(out, s, strlen(s));
}

static void put_base64(struct bytes *out, const void *data, size_t len)
{
    unsigned char *text = malloc(4 * ((len + 2) / 3) + 1);

    if (!text) {
        out->bad = true;
        return;
    }
    int n = EVP_EncodeBlock(text, data, (int)len);
    bytes_put(out, text, (size_t)n);
    free(text);
}

/* "name":"base64" */
static void put_data(struct bytes *out, const char *name, const void *data, size_t len)
{
    put_text(out, "\"");
    put_text(out, name);
    put_text(out, "\":\"");
    put_base64(out, data, len);
    put_text(out, "\"");
}

static void put_key(struct bytes *out, const struct names *names, const char *key)
{
    char full[1400];

    snprintf(full, sizeof full, "%s%s", names->prefix, key);
    put_data(out, "key", full, strlen(full));
}

static void put_number(struct bytes *out, const char *name, uint64_t v)
{
    char text[96];

    snprintf(text, sizeof text, "\"%s\":\"%" PRIu64 "\"", name, v);
    put_text(out, text);
}

static int done(const struct bytes *out)
{
    return out->bad ? CAIRN_E_NOMEM : 0;
}

void body_prefix_end(const char *prefix, char *buf)
{
    size_t len = strlen(prefix);

    memcpy(buf, prefix, len + 1);
    while (len > 0 && (unsigned char)buf[len - 1] == 0xff)
        len--;
    buf[len] = 0;
    if (len > 0)
        buf[len - 1]++;
}

int body_range(struct bytes *out, const char *key, const char *end, uint64_t revision)
{
    put_text(out, "{");
    put_data(out, "key", key, strlen(key));
    if (end) {
        put_text(out, ",");
        put_data(out, "range_end", end, strlen(end) ? strlen(end) : 1); /* a zero byte: to the last key */
        put_text(out, ",");
        put_number(out, "limit", ETCD_PAGE);
    }
    if (revision) {
        put_text(out, ",");
        put_number(out, "revision", revision);
    }
    put_text(out, "}");
    return done(out);
}

static void put_compare(struct bytes *out, const struct names *names, const struct cairn_compare *c)
{
    put_text(out, "{\"target\":\"MOD\",\"result\":\"EQUAL\",");
    put_key(out, names, c->key);
    put_text(out, ",");
    put_number(out, "mod_revision", c->mod_revision);
    put_text(out, "}");
}

static void put_put(struct bytes *out, const struct names *names, const struct cairn_put *p)
{
    put_text(out, "{\"requestPut\":{");
    put_key(out, names, p->key);
    put_text(out, ",");
    put_data(out, "value", p->value, p->value_len);
    if (p->lease) {
        put_text(out, ",");
        put_number(out, "lease", (uint64_t)p->lease);
    }
    put_text(out, "}}");
}

static void put_delete(struct bytes *out, const struct names *names, const char *key)
{
    put_text(out, "{\"requestDeleteRange\":{");
    put_key(out, names, key);
    put_text(out, "}}");
}

int body_txn(struct bytes *out, const struct names *names, const struct cairn_txn *txn)
{
    put_text(out, "{\"compare\":[");
    for (size_t i = 0; i < txn->ncompares; i++) {
        put_text(out, i ? "," : "");
        put_compare(out, names, &txn->compares[i]);
    }
    put_text(out, "],\"success\":[");
    for (size_t i = 0; i < txn->nputs; i++) {
        put_text(out, i ? "," : "");
        put_put(out, names, &txn->puts[i]);
    }
    for (size_t i = 0; i < txn->ndeletes; i++) {
        put_text(out, i || txn->nputs ? "," : "");
        put_delete(out, names, txn->deletes[i]);
    }
    put_text(out, "]}");
    return done(out);
}

int body_grant(struct bytes *out, uint32_t ttl_ms)
{
    put_text(out, "{");
    put_number(out, "TTL", (ttl_ms + 999) / 1000); /* whole seconds */
    put_text(out, "}");
    return done(out);
}

int body_lease(struct bytes *out, int64_t lease)
{
    put_text(out, "{");
    put_number(out, "ID", (uint64_t)lease);
    put_text(out, "}");
    return done(out);
}

int body_login(struct bytes *out, const char *user, const char *password)
{
    json_t *o = json_pack("{s:s, s:s}", "name", user, "password", password);
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;

    if (text)
        put_text(out, text);
    else
        out->bad = true;
    free(text);
    json_decref(o);
    return done(out);
}

int body_watch(struct bytes *out, const char *prefix, uint64_t start)
{
    char end[1400];

    body_prefix_end(prefix, end);
    put_text(out, "{\"create_request\":{");
    put_data(out, "key", prefix, strlen(prefix));
    put_text(out, ",");
    put_data(out, "range_end", end, strlen(end) ? strlen(end) : 1);
    if (start) {
        put_text(out, ",");
        put_number(out, "start_revision", start);
    }
    put_text(out, "}}");
    return done(out);
}
