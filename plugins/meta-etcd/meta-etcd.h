/* SPDX-License-Identifier: Apache-2.0 */
/* meta-etcd over etcd's v3 JSON gateway:
 *
 *     meta-etcd.c   the plugin's functions: a call becomes a request and returns
 *     engine.c      the thread: requests and watches over libcurl, endpoints, deadlines
 *     watch.c       watches: what came in pieces becomes events
 *     body.c        what is sent
 *     answer.c      what came back: untrusted
 */
#ifndef CAIRN_PLUGINS_META_ETCD_H
#define CAIRN_PLUGINS_META_ETCD_H

#include <cairn/plugin.h>

#include "core/base/bytes.h"
#include "core/base/list.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdbool.h>

#define ETCD_MAX_ENDPOINTS 16
#define ETCD_MAX_ANSWER ((size_t)64 << 20)
#define ETCD_PAGE 256    /* keys of one range request */
#define ETCD_MAX_OPS 128 /* of a transaction, as etcd's own default */
#define ETCD_MAX_TOKEN 1024

/* ---- body.c: each appends a JSON object to out ----------------------------------------------- */
struct names { /* the namespace that stands before every key */
    char prefix[256];
    size_t len;
};
/* Keys from to end (NULL: only this key) at a revision (0: the newest). */
int body_range(struct bytes *out, const char *key, const char *end, uint64_t revision);
int body_txn(struct bytes *out, const struct names *names, const struct cairn_txn *txn);
int body_grant(struct bytes *out, uint32_t ttl_ms);
int body_lease(struct bytes *out, int64_t lease);
int body_login(struct bytes *out, const char *user, const char *password);
/* Changes under prefix from revision start on; 0: from now on. */
int body_watch(struct bytes *out, const char *prefix, uint64_t start);
/* The first key after every one with this prefix, in buf of len + 1 bytes; empty: there is none. */
void body_prefix_end(const char *prefix, char *buf);

/* ---- answer.c -------------------------------------------------------------------------------- */
struct rows {
    struct cairn_kv *kvs; /* keys without the namespace; each row owns its key and value */
    size_t n, room;
    bool more;         /* the page was full */
    uint64_t revision; /* of the store */
    char *last_key;    /* with the namespace, of the last row */
};
void rows_free(struct rows *r);
int answer_range(const char *text, size_t len, const struct names *names, struct rows *rows, struct cairn_error *err);
int answer_txn(const char *text, size_t len, int *ret_succeeded, uint64_t *ret_revision, struct cairn_error *err);
int answer_grant(const char *text, size_t len, int64_t *ret_lease, struct cairn_error *err);
/* NOT_FOUND: the lease is gone. */
int answer_keep(const char *text, size_t len, struct cairn_error *err);
int answer_login(const char *text, size_t len, char token[ETCD_MAX_TOKEN], struct cairn_error *err);
/* What etcd says that went wrong: a code, and whether another endpoint, or a new token, may do better. */
struct refusal {
    int code; /* enum cairn_code */
    bool elsewhere;
    bool login;
};
struct refusal answer_refusal(const char *text, size_t len, long http_status, struct cairn_error *err);

/* One message of a watch's stream. */
struct watched {
    bool created;
    bool canceled;
    uint64_t compacted; /* the history before it is gone */
    uint64_t revision;
    struct rows events; /* value NULL: deleted */
};
int answer_watch(const char *text, size_t len, const struct names *names, struct watched *ret, struct cairn_error *err);
void watched_free(struct watched *w);

/* ---- engine.c -------------------------------------------------------------------------------- */
enum what { ETCD_GET, ETCD_LIST, ETCD_TXN, ETCD_GRANT, ETCD_KEEP, ETCD_REVOKE, ETCD_LOGIN };

struct endpoint {
    char url[256];
    uint64_t bad_until_ns;
    uint32_t backoff_ms;
};
struct request {
    struct list link;
    enum what what;
    uint64_t deadline_ns;
    cairn_meta_done done;
    void *arg;
    char key[1400], end[1400]; /* of a range, with the namespace */
    struct bytes body;
    struct rows rows;
    uint64_t at_revision; /* of the pages after the first */
    /* the attempt under way */
    CURL *easy;
    unsigned endpoint;
    unsigned attempts;
    uint64_t retry_ns;
    bool logged_in; /* after a login: one more is no use */
    struct bytes in;
};
struct watch {
    struct list link;
    struct cairn_meta *meta;
    int64_t id;
    char prefix[1400]; /* with the namespace */
    uint64_t next;     /* the first revision that is not delivered; 0: not known yet */
    cairn_watch_event event;
    void *arg;
    bool created, dead;
    bool heard; /* this stream began */
    uint64_t begun_ns;
    CURL *easy;
    unsigned endpoint;
    uint64_t retry_ns;
    struct bytes body, in;
};
struct cairn_meta {
    pthread_t thread;
    pthread_mutex_t lock; /* of queue and quit */
    struct list queue;    /* not seen by the thread yet */
    bool quit;
    pthread_mutex_t watch_lock; /* of watches; held while events are delivered, so that unwatch means it */
    pthread_cond_t watch_changed;
    struct list watches;
    int64_t next_watch;
    CURLM *multi;
    struct list active; /* requests under way; the thread's */
    struct list later;  /* those that wait for their next attempt; the thread's */
    struct list parked; /* those that wait for the login; the thread's */
    struct request *login;
    char token[ETCD_MAX_TOKEN];
    struct endpoint endpoints[ETCD_MAX_ENDPOINTS];
    unsigned nendpoints, current;
    struct names names;
    char ca[512], cert[512], key[512], user[256], password[256];
    struct curl_slist *headers; /* with the token of the moment */
};
uint64_t etcd_now_ns(void);
void *engine_run(void *arg);
/* Takes the request; answered on the engine's thread. */
void engine_submit(struct cairn_meta *m, struct request *q);
struct attempt { /* one request at one endpoint */
    unsigned endpoint;
    const char *path;
    const struct bytes *body; /* borrowed until its end */
    long timeout_ms;
    bool fresh; /* over a connection of its own */
    size_t (*on_data)(char *data, size_t size, size_t n, void *arg);
    void *arg;
};
/* Sets up what every connection of ours has in common and begins. */
int engine_send(struct cairn_meta *m, CURL *easy, const struct attempt *a);
/* Whether there is a token, or none is needed; else a login is under way now. */
bool engine_logged_in(struct cairn_meta *m);
unsigned engine_best_endpoint(struct cairn_meta *m);
void engine_endpoint_failed(struct cairn_meta *m, unsigned endpoint);

/* ---- watch.c --------------------------------------------------------------------------------- */
int64_t etcd_watch(struct cairn_meta *m, const char *prefix, uint64_t since, cairn_watch_event event, void *arg);
void etcd_unwatch(struct cairn_meta *m, int64_t id);
/* Starts and ends streams as they are due; when the next one is due, in ms. */
int watches_tend(struct cairn_meta *m);
/* A stream of ours ended; false: it is none of the watches'. */
bool watches_ended(struct cairn_meta *m, CURL *easy, CURLcode result);
void watches_close(struct cairn_meta *m);

#endif
