/* SPDX-License-Identifier: Apache-2.0 */
/* The thread: libcurl's multi interface carries all requests and watches, one connection each.
 *
 *     queue --> active: an attempt at the best endpoint --answer--> done
 *                  |  refused, silent, 5xx: the endpoint is avoided for a while (100 ms, doubling to 5 s)
 *                  |     a read, a lease: another attempt, until the deadline
 *                  |     a transaction: another only when it certainly was not sent; else UNAVAILABLE: unknown
 *                  \--the token is missing or old: parked until a login ended
 *
 * An attempt has at most ATTEMPT_MS while there are other endpoints, so that a hung one costs that once. libcurl sends
 * a request again by itself when a kept connection closes before any byte of an answer: transactions go over new ones.
 */
#include "meta-etcd.h"

#include "core/base/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ATTEMPT_MS 1500
#define CONNECT_MS 500
#define RETRY_MS 40
#define LOGIN_MS 5000 /* for a watch that needs one */
#define BACKOFF_MS 100
#define BACKOFF_MAX_MS 5000

static const char *const paths[] = {
    [ETCD_GET] = "/v3/kv/range",
    [ETCD_LIST] = "/v3/kv/range",
    [ETCD_TXN] = "/v3/kv/txn",
    [ETCD_GRANT] = "/v3/lease/grant",
    [ETCD_KEEP] = "/v3/lease/keepalive",
    [ETCD_REVOKE] = "/v3/lease/revoke",
    [ETCD_LOGIN] = "/v3/auth/authenticate",
};
static const char *const doing[] = {
    [ETCD_GET] = "get a key",       [ETCD_LIST] = "list keys",          [ETCD_TXN] = "commit a transaction",
    [ETCD_GRANT] = "grant a lease", [ETCD_KEEP] = "keep a lease alive", [ETCD_REVOKE] = "revoke a lease",
    [ETCD_LOGIN] = "log in",
};

uint64_t etcd_now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* ---- endpoints ------------------------------------------------------------------------------- */

unsigned engine_best_endpoint(struct cairn_meta *m)
{
    uint64_t now = etcd_now_ns();
    unsigned best = m->current;

    if (m->endpoints[best].bad_until_ns <= now)
        return best;
    for (unsigned i = 0; i < m->nendpoints; i++)
        if (m->endpoints[i].bad_until_ns < m->endpoints[best].bad_until_ns)
            best = i;
    m->current = best;
    return best;
}

void engine_endpoint_failed(struct cairn_meta *m, unsigned endpoint)
{
    struct endpoint *e = &m->endpoints[endpoint];

    e->backoff_ms = e->backoff_ms ? e->backoff_ms * 2 : BACKOFF_MS;
    if (e->backoff_ms > BACKOFF_MAX_MS)
        e->backoff_ms = BACKOFF_MAX_MS;
    e->bad_until_ns = etcd_now_ns() + (uint64_t)e->backoff_ms * 1000000;
}

static void endpoint_worked(struct cairn_meta *m, unsigned endpoint)
{
    m->endpoints[endpoint].backoff_ms = 0;
    m->endpoints[endpoint].bad_until_ns = 0;
}

/* ---- the end of a request -------------------------------------------------------------------- */

static void request_free(struct request *q)
{
    rows_free(&q->rows);
    bytes_free(&q->body);
    bytes_free(&q->in);
    free(q);
}

static void request_detach(struct cairn_meta *m, struct request *q)
{
    if (!q->easy)
        return;
    curl_multi_remove_handle(m->multi, q->easy);
    curl_easy_cleanup(q->easy);
    q->easy = NULL;
}

static void request_done(struct cairn_meta *m, struct request *q, struct cairn_meta_result *result)
{
    request_detach(m, q);
    list_remove(&q->link);
    if (q->done)
        q->done(q->arg, result);
    request_free(q);
}

static void login_failed(struct cairn_meta *m, int code, const struct cairn_error *err);

static void request_fail(struct cairn_meta *m, struct request *q, int code, struct cairn_error *err)
{
    struct cairn_meta_result result = {.code = code, .err = err};
    bool login = q == m->login;

    cairn_wrap(err, code, "etcd: %s", doing[q->what]);
    if (login)
        m->login = NULL;
    request_done(m, q, &result);
    if (login)
        login_failed(m, code, err);
}

/* ---- attempts -------------------------------------------------------------------------------- */

static size_t on_data(char *data, size_t size, size_t n, void *arg)
{
    struct request *q = arg;

    (void)size;
    if (q->in.len + n > ETCD_MAX_ANSWER)
        return 0;
    bytes_put(&q->in, data, n);
    return q->in.bad ? 0 : n;
}

int engine_send(struct cairn_meta *m, CURL *easy, const struct attempt *a)
{
    char url[512];
    bool bad = !m->headers; /* without memory for the token a request would only be refused */

    snprintf(url, sizeof url, "%s%s", m->endpoints[a->endpoint].url, a->path);
    bad |= curl_easy_setopt(easy, CURLOPT_URL, url) != CURLE_OK;
    bad |= curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L) != CURLE_OK;
    bad |= curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https") != CURLE_OK;
    bad |= curl_easy_setopt(easy, CURLOPT_PROXY, "") != CURLE_OK;
    bad |= curl_easy_setopt(easy, CURLOPT_HTTPHEADER, m->headers) != CURLE_OK;
    bad |= curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)a->body->len) != CURLE_OK;
    bad |= curl_easy_setopt(easy, CURLOPT_POSTFIELDS, a->body->data) != CURLE_OK;
    bad |= curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, (long)CONNECT_MS) != CURLE_OK;
    bad |= curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L) != CURLE_OK;
    bad |= m->ca[0] && curl_easy_setopt(easy, CURLOPT_CAINFO, m->ca) != CURLE_OK;
    bad |= m->cert[0] && curl_easy_setopt(easy, CURLOPT_SSLCERT, m->cert) != CURLE_OK;
    bad |= m->key[0] && curl_easy_setopt(easy, CURLOPT_SSLKEY, m->key) != CURLE_OK;
    bad |= curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, a->timeout_ms) != CURLE_OK;
    bad |= curl_easy_setopt(easy, CURLOPT_FRESH_CONNECT, a->fresh ? 1L : 0L) != CURLE_OK;
    bad |= curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, a->on_data) != CURLE_OK;
    bad |= curl_easy_setopt(easy, CURLOPT_WRITEDATA, a->arg) != CURLE_OK;
    bad |= curl_easy_setopt(easy, CURLOPT_PRIVATE, a->arg) != CURLE_OK;
    return bad || curl_multi_add_handle(m->multi, easy) != CURLM_OK ? CAIRN_E_NOMEM : 0;
}

static long left_ms(const struct request *q)
{
    uint64_t now = etcd_now_ns();

    return now >= q->deadline_ns ? 0 : (long)((q->deadline_ns - now) / 1000000);
}

static int request_body(struct request *q)
{
    if (q->what != ETCD_GET && q->what != ETCD_LIST)
        return 0;
    bytes_free(&q->body);
    return body_range(&q->body, q->key, q->what == ETCD_LIST ? q->end : NULL, q->at_revision);
}

static void request_start(struct cairn_meta *m, struct request *q)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    long left = left_ms(q);

    list_remove(&q->link);
    list_push_back(&m->active, &q->link);
    if (left <= 0) {
        request_fail(
            m, q, CAIRN_E_UNAVAILABLE,
            (cairn_fail(&err, CAIRN_E_UNAVAILABLE, "no answer within its deadline after %u attempts", q->attempts),
             &err));
        return;
    }
    q->endpoint = engine_best_endpoint(m);
    q->attempts++;
    q->in.len = 0;
    q->easy = curl_easy_init();
    int r = q->easy ? request_body(q) : CAIRN_E_NOMEM;
    struct attempt a = {.endpoint = q->endpoint,
                        .path = paths[q->what],
                        .body = &q->body,
                        .timeout_ms = m->nendpoints > 1 && left > ATTEMPT_MS ? ATTEMPT_MS : left,
                        .fresh = q->what == ETCD_TXN,
                        .on_data = on_data,
                        .arg = q};
    if (r == 0)
        r = engine_send(m, q->easy, &a);
    if (r < 0) {
        cairn_fail(&err, r, "prepare a request");
        request_fail(m, q, r, &err);
    }
}

static void request_again(struct cairn_meta *m, struct request *q)
{
    request_detach(m, q);
    request_start(m, q);
}

/* At once where another endpoint is well; else with a little patience at the least bad one. */
static void request_later(struct cairn_meta *m, struct request *q)
{
    if (m->endpoints[engine_best_endpoint(m)].bad_until_ns <= etcd_now_ns()) {
        request_again(m, q);
        return;
    }
    request_detach(m, q);
    q->retry_ns = etcd_now_ns() + RETRY_MS * 1000000ull;
    list_remove(&q->link);
    list_push_back(&m->later, &q->link);
}

static int start_due(struct cairn_meta *m)
{
    uint64_t now = etcd_now_ns();

    list_for_each_safe (it, &m->later) {
        struct request *q = container_of(it, struct request, link);
        if (q->retry_ns <= now)
            request_start(m, q);
    }
    return list_empty(&m->later) ? 1000 : RETRY_MS / 2;
}

/* ---- login ----------------------------------------------------------------------------------- */

static void login_start(struct cairn_meta *m, uint64_t deadline_ns)
{
    struct request *q = calloc(1, sizeof *q);

    if (!q || body_login(&q->body, m->user, m->password) < 0)
        abort(); /* requests would wait for ever */
    q->what = ETCD_LOGIN;
    q->deadline_ns = deadline_ns;
    list_init(&q->link);
    m->login = q;
    request_start(m, q);
}

static void park(struct cairn_meta *m, struct request *q)
{
    request_detach(m, q);
    q->logged_in = true;
    list_remove(&q->link);
    list_push_back(&m->parked, &q->link);
    if (!m->login)
        login_start(m, q->deadline_ns);
}

bool engine_logged_in(struct cairn_meta *m)
{
    if (!m->user[0] || m->token[0])
        return true;
    if (!m->login)
        login_start(m, etcd_now_ns() + LOGIN_MS * 1000000ull);
    return false;
}

static void login_failed(struct cairn_meta *m, int code, const struct cairn_error *err)
{
    while (!list_empty(&m->parked)) {
        struct request *q = list_first(&m->parked, struct request, link);
        struct cairn_error own = CAIRN_ERROR_INIT;
        cairn_error_copy(&own, err);
        request_fail(m, q, code, &own);
    }
}

/* Without memory there are no headers: the next request is refused, and says so. */
static void set_token(struct cairn_meta *m, const char *token)
{
    char line[ETCD_MAX_TOKEN + 32];
    struct curl_slist *more;

    curl_slist_free_all(m->headers);
    m->headers = NULL;
    more = curl_slist_append(NULL, "Content-Type: application/json");
    m->headers = more;
    more = more ? curl_slist_append(more, "Expect:") : NULL;
    if (more && token[0]) {
        snprintf(line, sizeof line, "Authorization: %s", token);
        more = curl_slist_append(more, line);
    }
    if (more)
        return;
    curl_slist_free_all(m->headers); /* a part of them is no use */
    m->headers = NULL;
}

/* ---- answers --------------------------------------------------------------------------------- */

static void page_done(struct cairn_meta *m, struct request *q)
{
    size_t len = strlen(q->rows.last_key ? q->rows.last_key : "");

    if (q->what == ETCD_LIST && q->rows.more && len > 0 && len + 2 < sizeof q->key) {
        q->at_revision = q->rows.revision;
        snprintf(q->key, sizeof q->key, "%s\x01", q->rows.last_key); /* no key of ours has a byte below it */
        request_again(m, q);
        return;
    }
    struct cairn_meta_result result = {.kvs = q->rows.kvs, .nkvs = q->rows.n, .revision = q->rows.revision};
    if (q->at_revision)
        result.revision = q->at_revision;
    request_done(m, q, &result);
}

static void logged_in(struct cairn_meta *m, struct request *q, const char *token)
{
    struct cairn_meta_result result = {.code = 0};

    snprintf(m->token, sizeof m->token, "%s", token);
    set_token(m, token);
    m->login = NULL;
    request_done(m, q, &result);
    while (!list_empty(&m->parked))
        request_start(m, list_first(&m->parked, struct request, link));
}

static void request_answered(struct cairn_meta *m, struct request *q)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_meta_result result = {.code = 0};
    const char *text = q->in.data ? (const char *)q->in.data : "";
    char token[ETCD_MAX_TOKEN];
    int r = 0;

    switch (q->what) {
    case ETCD_GET:
    case ETCD_LIST:
        r = answer_range(text, q->in.len, &m->names, &q->rows, &err);
        break;
    case ETCD_TXN:
        r = answer_txn(text, q->in.len, &result.succeeded, &result.revision, &err);
        break;
    case ETCD_GRANT:
        r = answer_grant(text, q->in.len, &result.lease, &err);
        break;
    case ETCD_KEEP:
        r = answer_keep(text, q->in.len, &err);
        break;
    case ETCD_REVOKE:
        break;
    case ETCD_LOGIN:
        r = answer_login(text, q->in.len, token, &err);
        break;
    }
    if (r < 0)
        request_fail(m, q, r, &err);
    else if (q->what == ETCD_GET || q->what == ETCD_LIST)
        page_done(m, q);
    else if (q->what == ETCD_LOGIN)
        logged_in(m, q, token);
    else
        request_done(m, q, &result);
}

/* Nothing of it can have reached the server. */
static bool not_sent(CURL *easy, CURLcode result)
{
    long sent = 0;

    bool known = curl_easy_getinfo(easy, CURLINFO_REQUEST_SIZE, &sent) == CURLE_OK;
    return result == CURLE_COULDNT_CONNECT || result == CURLE_COULDNT_RESOLVE_HOST || (known && sent == 0);
}

static void request_failed(struct cairn_meta *m, struct request *q, CURLcode result)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    bool unsent = not_sent(q->easy, result);
    const char *url = m->endpoints[q->endpoint].url;

    engine_endpoint_failed(m, q->endpoint);
    if ((unsent || q->what != ETCD_TXN) && left_ms(q) > 0) {
        request_later(m, q);
        return;
    }
    cairn_fail(&err, CAIRN_E_UNAVAILABLE, "%s: %s%s", url, curl_easy_strerror(result),
               q->what == ETCD_TXN && !unsent ? "; whether it was applied is not known" : "");
    request_fail(m, q, CAIRN_E_UNAVAILABLE, &err);
}

static void request_refused(struct cairn_meta *m, struct request *q, long status)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct refusal f = answer_refusal(q->in.data ? (const char *)q->in.data : "", q->in.len, status, &err);

    if (f.login && m->user[0] && !q->logged_in && q->what != ETCD_LOGIN) {
        park(m, q);
        return;
    }
    if (f.elsewhere && f.code == CAIRN_E_UNAVAILABLE) {
        engine_endpoint_failed(m, q->endpoint);
        if (q->what != ETCD_TXN && left_ms(q) > 0) {
            request_later(m, q);
            return;
        }
    }
    request_fail(m, q, f.code, &err);
}

static void request_ended(struct cairn_meta *m, struct request *q, CURLcode result)
{
    long status = 0;

    if (result == CURLE_OK)
        result = curl_easy_getinfo(q->easy, CURLINFO_RESPONSE_CODE, &status);
    if (result != CURLE_OK) {
        request_failed(m, q, result);
    } else if (status != 200) {
        request_refused(m, q, status);
    } else {
        endpoint_worked(m, q->endpoint);
        request_answered(m, q);
    }
}

/* ---- the thread ------------------------------------------------------------------------------ */

void engine_submit(struct cairn_meta *m, struct request *q)
{
    pthread_mutex_lock(&m->lock);
    list_push_back(&m->queue, &q->link);
    pthread_mutex_unlock(&m->lock);
    curl_multi_wakeup(m->multi);
}

static bool take_queue(struct cairn_meta *m)
{
    struct list mine = LIST_INIT(mine);

    pthread_mutex_lock(&m->lock);
    bool quit = m->quit;
    while (!list_empty(&m->queue)) {
        struct list *it = m->queue.next;
        list_remove(it);
        list_push_back(&mine, it);
    }
    pthread_mutex_unlock(&m->lock);
    while (!list_empty(&mine)) {
        struct request *q = list_first(&mine, struct request, link);
        if (m->login) { /* it would only be refused */
            list_remove(&q->link);
            list_push_back(&m->parked, &q->link);
            q->logged_in = true;
        } else {
            request_start(m, q);
        }
    }
    return quit;
}

static void take_results(struct cairn_meta *m)
{
    CURLMsg *msg;
    int rest;

    while ((msg = curl_multi_info_read(m->multi, &rest))) {
        struct request *q = NULL;
        CURLcode result = msg->data.result;
        if (msg->msg != CURLMSG_DONE || watches_ended(m, msg->easy_handle, result))
            continue;
        if (curl_easy_getinfo(msg->easy_handle, CURLINFO_PRIVATE, (char **)&q) == CURLE_OK)
            request_ended(m, q, result);
    }
}

static void abort_all(struct cairn_meta *m, struct list *requests)
{
    while (!list_empty(requests)) {
        struct request *q = list_first(requests, struct request, link);
        struct cairn_error err = CAIRN_ERROR_INIT;
        struct cairn_meta_result result = {.code = CAIRN_E_ABORTED, .err = &err};
        cairn_fail(&err, CAIRN_E_ABORTED, "the metadata engine is closed");
        request_done(m, q, &result);
    }
}

void *engine_run(void *arg)
{
    struct cairn_meta *m = arg;
    int running;

    set_token(m, "");
    while (!take_queue(m)) {
        int due_ms = watches_tend(m), later_ms = start_due(m);
        CURLMcode c = curl_multi_perform(m->multi, &running);
        take_results(m);
        if (c == CURLM_OK)
            c = curl_multi_poll(m->multi, NULL, 0, due_ms < later_ms ? due_ms : later_ms, NULL);
        if (c != CURLM_OK) /* no memory: it may pass, and must not cost a processor meanwhile */
            nanosleep(&(struct timespec){.tv_nsec = RETRY_MS * 1000000}, NULL);
    }
    watches_close(m);
    abort_all(m, &m->active);
    abort_all(m, &m->later);
    abort_all(m, &m->parked);
    abort_all(m, &m->queue);
    return NULL;
}
