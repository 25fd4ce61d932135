/* SPDX-License-Identifier: Apache-2.0 */
/* Watches: each is one streaming request. It is ended and begun again every few seconds at the next revision, wherever
 * the best endpoint then is: a hung server costs that long, and nothing is lost or told twice. */
#include "meta-etcd.h"

#include "core/base/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define STREAM_MS 10000
#define HEAR_MS 1000 /* a stream that has not begun by then is another endpoint's */
#define RETRY_MS 200
#define IDLE_MS 1000
#define CREATE_MS 5000 /* a watch that begins now waits for so long to know when that is */
#define MAX_MESSAGE ((size_t)16 << 20)

/* ---- what comes in --------------------------------------------------------------------------- */

static void deliver(struct watch *w, const struct watched *in)
{
    if (in->created && w->next == 0)
        w->next = in->revision + 1;
    if (in->compacted) { /* what lay before it is gone for good */
        w->next = in->compacted;
        w->event(w->arg, CAIRN_E_NOT_FOUND, NULL);
    }
    for (size_t i = 0; i < in->events.n; i++) {
        const struct cairn_kv *kv = &in->events.kvs[i];
        if (w->next && kv->mod_revision < w->next)
            continue; /* told before the stream was begun again */
        w->event(w->arg, 0, kv);
    }
    if (in->events.n > 0 && in->events.kvs[in->events.n - 1].mod_revision >= w->next)
        w->next = in->events.kvs[in->events.n - 1].mod_revision + 1;
}

static bool message(struct watch *w, const char *text, size_t len)
{
    struct cairn_meta *m = w->meta;
    struct watched in;

    int r = answer_watch(text, len, &m->names, &in, NULL);
    pthread_mutex_lock(&m->watch_lock);
    if (r == 0 && !w->dead) {
        deliver(w, &in);
        w->created |= in.created;
        w->heard |= in.created;
        pthread_cond_broadcast(&m->watch_changed);
    }
    pthread_mutex_unlock(&m->watch_lock);
    bool go_on = r == 0 && !in.canceled;
    watched_free(&in);
    return go_on;
}

/* One JSON object a line. */
static size_t on_stream(char *data, size_t size, size_t n, void *arg)
{
    struct watch *w = arg;
    size_t at = 0;
    bool go_on = true;

    (void)size;
    bytes_put(&w->in, data, n);
    if (w->in.bad || w->in.len > MAX_MESSAGE)
        return 0;
    for (char *end; go_on && (end = memchr(w->in.data + at, '\n', w->in.len - at));
         at = (size_t)(end + 1 - (char *)w->in.data))
        go_on = message(w, (char *)w->in.data + at, (size_t)(end - ((char *)w->in.data + at)));
    memmove(w->in.data, w->in.data + at, w->in.len - at);
    w->in.len -= at;
    return go_on ? n : 0;
}

/* ---- streams: the engine's thread ------------------------------------------------------------ */

static void stream_end(struct cairn_meta *m, struct watch *w)
{
    if (!w->easy)
        return;
    curl_multi_remove_handle(m->multi, w->easy);
    curl_easy_cleanup(w->easy);
    w->easy = NULL;
    w->in.len = 0;
}

static void stream_begin(struct cairn_meta *m, struct watch *w)
{
    w->heard = false;
    w->begun_ns = etcd_now_ns();
    w->endpoint = engine_best_endpoint(m);
    w->easy = curl_easy_init();
    bytes_free(&w->body);
    struct attempt a = {.endpoint = w->endpoint,
                        .path = "/v3/watch",
                        .body = &w->body,
                        .timeout_ms = STREAM_MS,
                        .on_data = on_stream,
                        .arg = w};
    if (!w->easy || body_watch(&w->body, w->prefix, w->next) < 0 || engine_send(m, w->easy, &a) < 0) {
        curl_easy_cleanup(w->easy);
        w->easy = NULL;
        w->retry_ns = etcd_now_ns() + RETRY_MS * 1000000ull;
    }
}

static void watch_free(struct watch *w)
{
    list_remove(&w->link);
    bytes_free(&w->body);
    bytes_free(&w->in);
    free(w);
}

int watches_tend(struct cairn_meta *m)
{
    uint64_t now = etcd_now_ns();
    int due_ms = IDLE_MS;

    pthread_mutex_lock(&m->watch_lock);
    list_for_each_safe (it, &m->watches) {
        struct watch *w = container_of(it, struct watch, link);
        if (w->easy && !w->heard && now - w->begun_ns > HEAR_MS * 1000000ull) {
            engine_endpoint_failed(m, w->endpoint);
            stream_end(m, w);
        }
        if (w->easy && !w->heard)
            due_ms = HEAR_MS / 4;
        if (w->dead) {
            stream_end(m, w);
            watch_free(w);
        } else if (!w->easy && w->retry_ns <= now && engine_logged_in(m)) {
            stream_begin(m, w);
        } else if (!w->easy) {
            due_ms = RETRY_MS / 4;
        }
    }
    pthread_mutex_unlock(&m->watch_lock);
    return due_ms;
}

bool watches_ended(struct cairn_meta *m, CURL *easy, CURLcode result)
{
    struct watch *found = NULL;

    pthread_mutex_lock(&m->watch_lock);
    list_for_each (it, &m->watches) {
        struct watch *w = container_of(it, struct watch, link);
        if (w->easy == easy)
            found = w;
    }
    if (found) {
        bool due = result == CURLE_OPERATION_TIMEDOUT && found->created;
        if (!due && result != CURLE_WRITE_ERROR)
            engine_endpoint_failed(m, found->endpoint);
        if (!due && !found->heard)
            m->token[0] = 0; /* it may be an old one that was refused */
        stream_end(m, found);
        found->retry_ns = due ? 0 : etcd_now_ns() + RETRY_MS * 1000000ull;
    }
    pthread_mutex_unlock(&m->watch_lock);
    return found != NULL;
}

void watches_close(struct cairn_meta *m)
{
    list_for_each_safe (it, &m->watches) {
        struct watch *w = container_of(it, struct watch, link);
        stream_end(m, w);
        watch_free(w);
    }
}

/* ---- the plugin's functions ------------------------------------------------------------------ */

/* "From now on" must have begun before the caller changes anything. */
static bool watch_await(struct cairn_meta *m, const struct watch *w)
{
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += CREATE_MS / 1000;
    while (!w->created)
        if (pthread_cond_timedwait(&m->watch_changed, &m->watch_lock, &until) != 0)
            return false;
    return true;
}

int64_t etcd_watch(struct cairn_meta *m, const char *prefix, uint64_t since, cairn_watch_event event, void *arg)
{
    struct watch *w = calloc(1, sizeof *w);

    if (!w)
        return CAIRN_E_NOMEM;
    w->meta = m;
    w->event = event;
    w->arg = arg;
    w->next = since ? since + 1 : 0;
    if (snprintf(w->prefix, sizeof w->prefix, "%s%s", m->names.prefix, prefix) >= (int)sizeof w->prefix) {
        free(w);
        return CAIRN_E_INVAL;
    }
    pthread_mutex_lock(&m->watch_lock);
    int64_t id = w->id = m->next_watch++;
    list_push_back(&m->watches, &w->link);
    curl_multi_wakeup(m->multi);
    if (since == 0 && !watch_await(m, w)) {
        w->dead = true;
        id = CAIRN_E_UNAVAILABLE;
    }
    pthread_mutex_unlock(&m->watch_lock);
    return id;
}

void etcd_unwatch(struct cairn_meta *m, int64_t id)
{
    pthread_mutex_lock(&m->watch_lock);
    list_for_each (it, &m->watches) {
        struct watch *w = container_of(it, struct watch, link);
        if (w->id == id)
            w->dead = true;
    }
    pthread_mutex_unlock(&m->watch_lock);
    curl_multi_wakeup(m->multi);
}
