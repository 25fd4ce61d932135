/* SPDX-License-Identifier: Apache-2.0 */
/* The engine: one thread that owns the database, a bounded queue of requests with deadlines, and watches fed from the
 * log. */
#include "plugins/meta-sqlite/meta-sqlite.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/base/list.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#define MAX_QUEUE 4096
#define WATCH_POLL_MS 50

enum request_kind { REQ_GET, REQ_LIST, REQ_TXN, REQ_GRANT, REQ_KEEP, REQ_REVOKE };

struct request {
    struct list link;
    enum request_kind kind;
    int64_t deadline_ms; /* CLOCK_MONOTONIC */
    cairn_meta_done done;
    void *arg;
    char *key;            /* of get and list */
    struct cairn_txn txn; /* a deep copy, in one block */
    void *block;
    int64_t lease;
    uint32_t ttl_ms;
};

struct watch {
    struct list link;
    int64_t id;
    char *prefix;
    uint64_t since;
    cairn_watch_event event;
    void *arg;
    bool failed; /* told that changes were lost */
};

struct cairn_meta {
    struct tables *tables;
    pthread_t thread;
    pthread_mutex_t lock; /* of queue, nqueued, quit, refused */
    pthread_cond_t more;
    struct list queue;
    unsigned nqueued;
    bool quit;
    pthread_mutex_t watch_lock; /* of the watches; held while events are delivered, so that unwatch means it */
    struct list watches;
    int64_t next_watch;
    uint64_t seen_version;
    bool changed; /* by ourselves: data_version does not show it */
};

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void request_free(struct request *q)
{
    free(q->key);
    free(q->block);
    free(q);
}

static void complete_failed(struct request *q, int code, const struct cairn_error *err)
{
    struct cairn_meta_result result = {.code = code, .err = err};

    q->done(q->arg, &result);
    request_free(q);
}

/* ---- running requests ------------------------------------------------------------------------ */

static int run_read(struct cairn_meta *m, struct request *q, uint32_t left_ms, struct rows *rows,
                    struct cairn_error *err)
{
    if (q->kind == REQ_GET)
        return tables_get(m->tables, q->key, left_ms, rows, err);
    return tables_list(m->tables, q->key, left_ms, rows, err);
}

static int run_change(struct cairn_meta *m, struct request *q, uint32_t left_ms, struct cairn_meta_result *result,
                      struct cairn_error *err)
{
    m->changed = true;
    switch (q->kind) {
    case REQ_TXN:
        return tables_txn(m->tables, &q->txn, left_ms, &result->succeeded, &result->revision, err);
    case REQ_GRANT:
        return tables_lease_grant(m->tables, q->ttl_ms, left_ms, &result->lease, err);
    case REQ_KEEP:
        result->lease = q->lease;
        return tables_lease_keep(m->tables, q->lease, left_ms, err);
    default:
        return tables_lease_revoke(m->tables, q->lease, left_ms, err);
    }
}

static void run_request(struct cairn_meta *m, struct request *q)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_meta_result result = {.code = 0};
    struct rows rows = {.kvs = NULL};
    int64_t left_ms = q->deadline_ms - now_ms();

    if (left_ms <= 0) {
        complete_failed(
            q, cairn_fail(&err, CAIRN_E_TIMEOUT, "the metadata engine was too busy to come to a request in time"),
            &err);
        return;
    }
    if (q->kind == REQ_GET || q->kind == REQ_LIST)
        result.code = run_read(m, q, (uint32_t)left_ms, &rows, &err);
    else
        result.code = run_change(m, q, (uint32_t)left_ms, &result, &err);
    result.err = result.code < 0 ? &err : NULL;
    result.kvs = rows.kvs;
    result.nkvs = rows.n;
    if (rows.kvs || q->kind == REQ_GET || q->kind == REQ_LIST)
        result.revision = rows.revision;
    q->done(q->arg, &result);
    rows_free(&rows);
    request_free(q);
}

/* ---- watches --------------------------------------------------------------------------------- */

static void deliver(struct cairn_meta *m, struct watch *w)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct rows rows = {.kvs = NULL};
    int r = tables_log(m->tables, w->prefix, w->since, &rows, &err);

    if (r == CAIRN_E_NOT_FOUND && !w->failed) {
        w->failed = true;
        w->event(w->arg, r, NULL);
    }
    if (r < 0)
        return; /* anything else passes: the next poll tries again */
    for (size_t i = 0; i < rows.n; i++)
        w->event(w->arg, 0, &rows.kvs[i]);
    w->since = rows.revision;
    rows_free(&rows);
}

static bool feed_watches(struct cairn_meta *m)
{
    uint64_t version = m->seen_version;
    bool any;

    pthread_mutex_lock(&m->watch_lock);
    any = !list_empty(&m->watches);
    if (any && (tables_version(m->tables, &version, NULL) < 0 || version != m->seen_version || m->changed)) {
        m->seen_version = version;
        m->changed = false;
        list_for_each (it, &m->watches) {
            struct watch *w = container_of(it, struct watch, link);
            if (!w->failed)
                deliver(m, w);
        }
    }
    pthread_mutex_unlock(&m->watch_lock);
    return any;
}

/* ---- the thread ------------------------------------------------------------------------------ */

/* The next request; NULL when it is time to look at the watches, or to quit. */
static struct request *next_request(struct cairn_meta *m, bool watching, bool *ret_quit)
{
    struct request *q = NULL;
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += WATCH_POLL_MS * 1000000l;
    if (until.tv_nsec >= 1000000000l) {
        until.tv_nsec -= 1000000000l;
        until.tv_sec++;
    }
    pthread_mutex_lock(&m->lock);
    int rc = 0;
    while (list_empty(&m->queue) && !m->quit && rc == 0)
        rc = watching ? pthread_cond_timedwait(&m->more, &m->lock, &until) : pthread_cond_wait(&m->more, &m->lock);
    if (!list_empty(&m->queue)) {
        q = list_first(&m->queue, struct request, link);
        list_remove(&q->link);
        m->nqueued--;
    }
    *ret_quit = m->quit;
    pthread_mutex_unlock(&m->lock);
    return q;
}

static void *engine(void *arg)
{
    struct cairn_meta *m = arg;
    struct cairn_error err = CAIRN_ERROR_INIT;
    bool quit = false, watching = false;

    for (;;) {
        struct request *q = next_request(m, watching, &quit);
        if (q && quit)
            complete_failed(q, cairn_fail(&err, CAIRN_E_ABORTED, "the metadata engine stops"), &err);
        else if (q)
            run_request(m, q);
        else if (quit)
            return NULL;
        watching = feed_watches(m);
    }
}

/* ---- the interface --------------------------------------------------------------------------- */

static void submit(struct cairn_meta *m, struct request *q, uint32_t timeout_ms, cairn_meta_done done, void *arg)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_meta_result failed = {.err = &err};

    if (!q) {
        failed.code = cairn_fail(&err, CAIRN_E_NOMEM, "allocate a metadata request");
        done(arg, &failed);
        return;
    }
    q->deadline_ms = now_ms() + timeout_ms;
    q->done = done;
    q->arg = arg;
    pthread_mutex_lock(&m->lock);
    bool taken = m->nqueued < MAX_QUEUE && !m->quit;
    if (taken) {
        list_push_back(&m->queue, &q->link);
        m->nqueued++;
        pthread_cond_signal(&m->more);
    }
    pthread_mutex_unlock(&m->lock);
    if (!taken)
        complete_failed(q, cairn_fail(&err, CAIRN_E_BUSY, "%d metadata requests wait already", MAX_QUEUE), &err);
}

static struct request *request_new(enum request_kind kind, const char *key)
{
    struct request *q = calloc(1, sizeof *q);

    if (!q)
        return NULL;
    q->kind = kind;
    q->key = key ? strdup(key) : NULL;
    if (key && !q->key) {
        free(q);
        return NULL;
    }
    return q;
}

static void sqlite_get(struct cairn_meta *m, const char *key, uint32_t timeout_ms, cairn_meta_done done, void *arg)
{
    submit(m, request_new(REQ_GET, key), timeout_ms, done, arg);
}

static void sqlite_list(struct cairn_meta *m, const char *prefix, uint32_t timeout_ms, cairn_meta_done done, void *arg)
{
    submit(m, request_new(REQ_LIST, prefix), timeout_ms, done, arg);
}

static char *copy_bytes(char **at, const void *data, size_t len)
{
    char *to = *at;

    if (len)
        memcpy(to, data, len);
    *at += len;
    return to;
}

static size_t txn_size(const struct cairn_txn *t)
{
    size_t bytes = t->ncompares * sizeof *t->compares + t->nputs * sizeof *t->puts + t->ndeletes * sizeof *t->deletes;

    for (size_t i = 0; i < t->ncompares; i++)
        bytes += strlen(t->compares[i].key) + 1;
    for (size_t i = 0; i < t->nputs; i++)
        bytes += strlen(t->puts[i].key) + 1 + t->puts[i].value_len;
    for (size_t i = 0; i < t->ndeletes; i++)
        bytes += strlen(t->deletes[i]) + 1;
    return bytes;
}

/* Everything the transaction points to, in one block: the arrays first, for their alignment, then the bytes. */
static bool txn_copy(struct request *q, const struct cairn_txn *t)
{
    q->block = malloc(txn_size(t) + 1);
    if (!q->block)
        return false;
    struct cairn_compare *compares = q->block;
    struct cairn_put *puts = (void *)(compares + t->ncompares);
    const char **deletes = (void *)(puts + t->nputs);
    char *at = (char *)(deletes + t->ndeletes);

    for (size_t i = 0; i < t->ncompares; i++) {
        compares[i] = t->compares[i];
        compares[i].key = copy_bytes(&at, t->compares[i].key, strlen(t->compares[i].key) + 1);
    }
    for (size_t i = 0; i < t->nputs; i++) {
        puts[i] = t->puts[i];
        puts[i].key = copy_bytes(&at, t->puts[i].key, strlen(t->puts[i].key) + 1);
        puts[i].value = copy_bytes(&at, t->puts[i].value, t->puts[i].value_len);
    }
    for (size_t i = 0; i < t->ndeletes; i++)
        deletes[i] = copy_bytes(&at, t->deletes[i], strlen(t->deletes[i]) + 1);
    q->txn = (struct cairn_txn){compares, t->ncompares, puts, t->nputs, deletes, t->ndeletes};
    return true;
}

static void sqlite_txn(struct cairn_meta *m, const struct cairn_txn *txn, uint32_t timeout_ms, cairn_meta_done done,
                       void *arg)
{
    struct request *q = request_new(REQ_TXN, NULL);

    if (q && !txn_copy(q, txn)) {
        request_free(q);
        q = NULL;
    }
    submit(m, q, timeout_ms, done, arg);
}

static void sqlite_lease_grant(struct cairn_meta *m, uint32_t ttl_ms, uint32_t timeout_ms, cairn_meta_done done,
                               void *arg)
{
    struct request *q = request_new(REQ_GRANT, NULL);

    if (q)
        q->ttl_ms = ttl_ms;
    submit(m, q, timeout_ms, done, arg);
}

static void lease_request(struct cairn_meta *m, enum request_kind kind, int64_t lease, uint32_t timeout_ms,
                          cairn_meta_done done, void *arg)
{
    struct request *q = request_new(kind, NULL);

    if (q)
        q->lease = lease;
    submit(m, q, timeout_ms, done, arg);
}

static void sqlite_lease_keep(struct cairn_meta *m, int64_t lease, uint32_t timeout_ms, cairn_meta_done done, void *arg)
{
    lease_request(m, REQ_KEEP, lease, timeout_ms, done, arg);
}

static void sqlite_lease_revoke(struct cairn_meta *m, int64_t lease, uint32_t timeout_ms, cairn_meta_done done,
                                void *arg)
{
    lease_request(m, REQ_REVOKE, lease, timeout_ms, done, arg);
}

/* "From now on" is fixed by a read on the engine's thread: SQLite's connection is that thread's. */
struct start_of_watch {
    pthread_mutex_t lock;
    pthread_cond_t known;
    bool done;
    int code;
    uint64_t revision;
};

static void start_known(void *arg, const struct cairn_meta_result *r)
{
    struct start_of_watch *s = arg;

    pthread_mutex_lock(&s->lock);
    s->code = r->code;
    s->revision = r->revision;
    s->done = true;
    pthread_cond_signal(&s->known);
    pthread_mutex_unlock(&s->lock);
}

static int revision_now(struct cairn_meta *m, uint64_t *ret_revision)
{
    struct start_of_watch s = {.lock = PTHREAD_MUTEX_INITIALIZER, .known = PTHREAD_COND_INITIALIZER};

    sqlite_get(m, "cairn", 5000, start_known,
               &s); /* its key does not matter, its revision does; bounded by its deadline */
    pthread_mutex_lock(&s.lock);
    while (!s.done)
        pthread_cond_wait(&s.known, &s.lock);
    pthread_mutex_unlock(&s.lock);
    *ret_revision = s.revision;
    return s.code;
}

static void watch_free(struct watch *w)
{
    free(w->prefix);
    free(w);
}

static int64_t sqlite_watch(struct cairn_meta *m, const char *prefix, uint64_t since, cairn_watch_event event,
                            void *arg)
{
    struct watch *w = calloc(1, sizeof *w);
    int r = 0;

    if (!w || !(w->prefix = strdup(prefix))) {
        free(w);
        return CAIRN_E_NOMEM;
    }
    w->event = event;
    w->arg = arg;
    w->since = since;
    if (since == 0)
        r = revision_now(m, &w->since);
    if (r < 0) {
        watch_free(w);
        return r;
    }
    pthread_mutex_lock(&m->watch_lock);
    w->id = m->next_watch++;
    int64_t id = w->id;
    list_push_back(&m->watches, &w->link);
    m->seen_version = 0; /* look at the log once for the newcomer */
    pthread_mutex_unlock(&m->watch_lock);
    pthread_mutex_lock(&m->lock);
    pthread_cond_signal(&m->more);
    pthread_mutex_unlock(&m->lock);
    if (since != 0)
        (void)revision_now(m, &since); /* turns a sleeping engine round once */
    return id;
}

static void sqlite_unwatch(struct cairn_meta *m, int64_t id)
{
    pthread_mutex_lock(&m->watch_lock);
    list_for_each_safe (it, &m->watches) {
        struct watch *w = container_of(it, struct watch, link);
        if (w->id != id)
            continue;
        list_remove(it);
        watch_free(w);
        break;
    }
    pthread_mutex_unlock(&m->watch_lock);
}

static void meta_free(struct cairn_meta *m)
{
    list_for_each_safe (it, &m->watches)
        watch_free(container_of(it, struct watch, link));
    tables_close(m->tables);
    pthread_cond_destroy(&m->more);
    pthread_mutex_destroy(&m->lock);
    pthread_mutex_destroy(&m->watch_lock);
    free(m);
}

static void sqlite_close(struct cairn_meta *m)
{
    pthread_mutex_lock(&m->lock);
    m->quit = true;
    pthread_cond_signal(&m->more);
    pthread_mutex_unlock(&m->lock);
    pthread_join(m->thread, NULL);
    meta_free(m);
}

static const char *param(const struct cairn_param *params, const char *key)
{
    for (; params && params->key; params++)
        if (strcmp(params->key, key) == 0)
            return params->value;
    return NULL;
}

static int sqlite_open(const struct cairn_param *params, struct cairn_meta **ret_meta, struct cairn_error *err)
{
    const char *path = param(params, "path");
    struct cairn_meta *m;
    pthread_condattr_t attr;
    int r;

    if (!path || !path[0])
        return cairn_fail(err, CAIRN_E_INVAL, "meta-sqlite needs the path of its database ([meta] path)");
    m = calloc(1, sizeof *m);
    if (!m)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a metadata engine");
    list_init(&m->queue);
    list_init(&m->watches);
    m->next_watch = 1;
    pthread_mutex_init(&m->lock, NULL);
    pthread_mutex_init(&m->watch_lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&m->more, &attr);
    pthread_condattr_destroy(&attr);
    r = tables_open(path, &m->tables, err);
    if (r == 0 && (r = pthread_create(&m->thread, NULL, engine, m)) != 0)
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
    .open = sqlite_open,
    .close = sqlite_close,
    .get = sqlite_get,
    .list = sqlite_list,
    .txn = sqlite_txn,
    .lease_grant = sqlite_lease_grant,
    .lease_keep = sqlite_lease_keep,
    .lease_revoke = sqlite_lease_revoke,
    .watch = sqlite_watch,
    .unwatch = sqlite_unwatch,
};

static const struct cairn_plugin plugin = {
    .abi = CAIRN_PLUGIN_ABI,
    .kind = CAIRN_PLUGIN_META,
    .size = sizeof ops,
    .name = "meta-sqlite",
    .version = "1",
    .ops = &ops,
};

CAIRN_REGISTER_PLUGIN(plugin)
