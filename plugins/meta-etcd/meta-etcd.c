/* SPDX-License-Identifier: Apache-2.0 */
#include "meta-etcd.h"

#include "core/base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- requests -------------------------------------------------------------------------------- */

static struct request *request_new(enum what what, uint32_t timeout_ms, cairn_meta_done done, void *arg)
{
    struct request *q = calloc(1, sizeof *q);

    if (!q)
        abort(); /* a request that can neither complete nor fail */
    q->what = what;
    q->deadline_ns = etcd_now_ns() + (uint64_t)timeout_ms * 1000000;
    q->done = done;
    q->arg = arg;
    list_init(&q->link);
    return q;
}

static void submit(struct cairn_meta *m, struct request *q, int prepared)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_meta_result result = {.code = prepared, .err = &err};

    if (prepared == 0) {
        engine_submit(m, q);
        return;
    }
    cairn_fail(&err, prepared, "etcd: the request is too large, or memory is short");
    q->done(q->arg, &result);
    bytes_free(&q->body);
    free(q);
}

static int full_key(const struct cairn_meta *m, const char *key, char to[1400])
{
    return snprintf(to, 1400, "%s%s", m->names.prefix, key) < 1390 ? 0 : CAIRN_E_INVAL;
}

static void etcd_get(struct cairn_meta *m, const char *key, uint32_t timeout_ms, cairn_meta_done done, void *arg)
{
    struct request *q = request_new(ETCD_GET, timeout_ms, done, arg);

    submit(m, q, full_key(m, key, q->key));
}

static void etcd_list(struct cairn_meta *m, const char *prefix, uint32_t timeout_ms, cairn_meta_done done, void *arg)
{
    struct request *q = request_new(ETCD_LIST, timeout_ms, done, arg);
    int r = full_key(m, prefix, q->key);

    if (r == 0)
        body_prefix_end(q->key, q->end);
    submit(m, q, r);
}

static void etcd_txn(struct cairn_meta *m, const struct cairn_txn *txn, uint32_t timeout_ms, cairn_meta_done done,
                     void *arg)
{
    struct request *q = request_new(ETCD_TXN, timeout_ms, done, arg);

    submit(m, q,
           txn->ncompares > ETCD_MAX_OPS || txn->nputs + txn->ndeletes > ETCD_MAX_OPS
               ? CAIRN_E_INVAL
               : body_txn(&q->body, &m->names, txn));
}

static void etcd_lease_grant(struct cairn_meta *m, uint32_t ttl_ms, uint32_t timeout_ms, cairn_meta_done done,
                             void *arg)
{
    struct request *q = request_new(ETCD_GRANT, timeout_ms, done, arg);

    submit(m, q, body_grant(&q->body, ttl_ms));
}

static void etcd_lease_keep(struct cairn_meta *m, int64_t lease, uint32_t timeout_ms, cairn_meta_done done, void *arg)
{
    struct request *q = request_new(ETCD_KEEP, timeout_ms, done, arg);

    submit(m, q, body_lease(&q->body, lease));
}

static void etcd_lease_revoke(struct cairn_meta *m, int64_t lease, uint32_t timeout_ms, cairn_meta_done done, void *arg)
{
    struct request *q = request_new(ETCD_REVOKE, timeout_ms, done, arg);

    submit(m, q, body_lease(&q->body, lease));
}

/* ---- parameters ------------------------------------------------------------------------------ */

static const char *param(const struct cairn_param *params, const char *key)
{
    for (; params && params->key; params++)
        if (strcmp(params->key, key) == 0)
            return params->value;
    return "";
}

static int add_endpoint(struct cairn_meta *m, const char *text, size_t len, struct cairn_error *err)
{
    struct endpoint *e = &m->endpoints[m->nendpoints];
    bool http = len > 7 && strncmp(text, "http://", 7) == 0, https = len > 8 && strncmp(text, "https://", 8) == 0;

    while (len > 0 && text[len - 1] == '/')
        len--;
    if (m->nendpoints == ETCD_MAX_ENDPOINTS)
        return cairn_fail(err, CAIRN_E_INVAL, "[meta] endpoints: more than %d", ETCD_MAX_ENDPOINTS);
    if ((!http && !https) || len >= sizeof e->url)
        return cairn_fail(err, CAIRN_E_INVAL,
                          "[meta] endpoints: \"%.*s\" is no address: http://HOST:PORT or https://HOST:PORT is wanted",
                          (int)(len > 200 ? 200 : len), text);
    memcpy(e->url, text, len);
    m->nendpoints++;
    return 0;
}

static int read_endpoints(struct cairn_meta *m, const char *list, struct cairn_error *err)
{
    int r = 0;

    while (r == 0 && *list) {
        list += strspn(list, ", ");
        size_t len = strcspn(list, ", ");
        if (len > 0)
            r = add_endpoint(m, list, len, err);
        list += len;
    }
    if (r == 0 && m->nendpoints == 0)
        r = cairn_fail(err, CAIRN_E_INVAL, "meta-etcd needs [meta] endpoints = http://HOST:2379, ...");
    m->current = m->nendpoints ? (unsigned)getpid() % m->nendpoints : 0; /* daemons spread over the members */
    return r;
}

static int read_text(const struct cairn_param *params, const char *key, char *to, size_t room, struct cairn_error *err)
{
    if (snprintf(to, room, "%s", param(params, key)) >= (int)room)
        return cairn_fail(err, CAIRN_E_INVAL, "[meta] %s: longer than %zu bytes", key, room - 1);
    return 0;
}

static int read_file(const struct cairn_param *params, const char *key, char to[512], struct cairn_error *err)
{
    int r = read_text(params, key, to, 512, err);

    if (r == 0 && to[0] && access(to, R_OK) < 0)
        r = cairn_fail_errno(err, errno, "[meta] %s: read %s", key, to);
    return r;
}

/* Its first line; nobody else may read it. */
static int read_password(struct cairn_meta *m, const char *path, struct cairn_error *err)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int r = 0;

    if (fd < 0)
        return cairn_fail_errno(err, errno, "[meta] password_file: open %s", path);
    ssize_t n = read(fd, m->password, sizeof m->password - 1);
    if (n < 0 || fstat(fd, &st) < 0)
        r = cairn_fail_errno(err, errno, "[meta] password_file: read %s", path);
    else if (st.st_mode & 077)
        r = cairn_fail(err, CAIRN_E_DENIED, "[meta] password_file %s may be read by others (mode %o): chmod 600 it",
                       path, st.st_mode & 0777);
    close(fd);
    m->password[strcspn(m->password, "\r\n")] = 0;
    return r;
}

static int read_params(struct cairn_meta *m, const struct cairn_param *params, struct cairn_error *err)
{
    int r = read_endpoints(m, param(params, "endpoints"), err);

    if (r == 0)
        r = read_text(params, "prefix", m->names.prefix, sizeof m->names.prefix, err);
    m->names.len = strlen(m->names.prefix);
    if (r == 0)
        r = read_file(params, "ca", m->ca, err);
    if (r == 0)
        r = read_file(params, "cert", m->cert, err);
    if (r == 0)
        r = read_file(params, "key", m->key, err);
    if (r == 0)
        r = read_text(params, "user", m->user, sizeof m->user, err);
    if (r == 0 && (m->cert[0] != 0) != (m->key[0] != 0))
        r = cairn_fail(err, CAIRN_E_INVAL, "[meta] cert and key belong together: one of them is missing");
    if (r == 0 && m->user[0])
        r = read_password(m, param(params, "password_file"), err);
    return r;
}

/* ---- the object ------------------------------------------------------------------------------ */

static void meta_free(struct cairn_meta *m)
{
    curl_slist_free_all(m->headers);
    if (m->multi)
        curl_multi_cleanup(m->multi);
    pthread_cond_destroy(&m->watch_changed);
    pthread_mutex_destroy(&m->watch_lock);
    pthread_mutex_destroy(&m->lock);
    explicit_bzero(m->password, sizeof m->password);
    free(m);
}

static void etcd_close(struct cairn_meta *m)
{
    pthread_mutex_lock(&m->lock);
    m->quit = true;
    pthread_mutex_unlock(&m->lock);
    curl_multi_wakeup(m->multi);
    pthread_join(m->thread, NULL);
    meta_free(m);
}

static void init_locks(struct cairn_meta *m)
{
    pthread_condattr_t attr;

    pthread_mutex_init(&m->lock, NULL);
    pthread_mutex_init(&m->watch_lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&m->watch_changed, &attr);
    pthread_condattr_destroy(&attr);
}

static int etcd_open(const struct cairn_param *params, struct cairn_meta **ret_meta, struct cairn_error *err)
{
    struct cairn_meta *m = calloc(1, sizeof *m);

    if (!m)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a metadata engine");
    list_init(&m->queue);
    list_init(&m->active);
    list_init(&m->later);
    list_init(&m->parked);
    list_init(&m->watches);
    m->next_watch = 1;
    init_locks(m);
    int r = read_params(m, params, err);
    if (r == 0 && (curl_global_init(CURL_GLOBAL_DEFAULT) != 0 || !(m->multi = curl_multi_init())))
        r = cairn_fail(err, CAIRN_E_NOMEM, "start libcurl");
    if (r == 0 && (r = pthread_create(&m->thread, NULL, engine_run, m)) != 0)
        r = cairn_fail_errno(err, r, "start the metadata engine's thread");
    if (r < 0) {
        meta_free(m);
        return r;
    }
    *ret_meta = m;
    return 0;
}

static const struct cairn_meta_ops ops = {
    .size = sizeof ops,
    .open = etcd_open,
    .close = etcd_close,
    .get = etcd_get,
    .list = etcd_list,
    .txn = etcd_txn,
    .lease_grant = etcd_lease_grant,
    .lease_keep = etcd_lease_keep,
    .lease_revoke = etcd_lease_revoke,
    .watch = etcd_watch,
    .unwatch = etcd_unwatch,
};

static const struct cairn_plugin plugin = {
    .abi = CAIRN_PLUGIN_ABI,
    .kind = CAIRN_PLUGIN_META,
    .size = sizeof ops,
    .name = "meta-etcd",
    .version = "1",
    .ops = &ops,
};

CAIRN_REGISTER_PLUGIN(plugin)
