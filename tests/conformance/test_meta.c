/* SPDX-License-Identifier: Apache-2.0 */
/* What every metadata engine owes, asked of each real one: order, atomic guarded transactions between processes,
 * leases, watches. Without arguments it asks SQLite; CAIRN_TEST_ETCD=http://... names the endpoints of an etcd to ask.
 * Watches are asked of the plugin's own table, because the daemon's door has no call for them yet. */
#include "core/base/error.h"
#include "daemon/io/plugins.h"

#include <dlfcn.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

/* Deadline of a request; shorter where all are to be refused. */
static uint32_t request_ms(void)
{
    const char *ms = getenv("CAIRN_TEST_MS");

    return ms ? (uint32_t)atoi(ms) : 5000;
}
#define MS request_ms()

struct world {
    struct loop *loop;
    struct plugins *plugins;
    struct meta *meta;
    char dir[64], path[128];
    struct cairn_param params[8];
    char prefix[96];
};

/* NULL: SQLite is asked. */
static const char *etcd_endpoints(void)
{
    return getenv("CAIRN_TEST_ETCD");
}

static const char *engine_name(void)
{
    return etcd_endpoints() ? "etcd" : "sqlite";
}

struct answer {
    struct meta_req req;
    bool done;
    int code, succeeded;
    uint64_t revision, mod_revision;
    int64_t lease;
    size_t nkvs;
    char keys[512], value[128];
    struct cairn_error err;
};

static void answered(struct meta_req *req, const struct cairn_meta_result *r)
{
    struct answer *a = req->arg;

    a->done = true;
    a->code = r->code;
    a->succeeded = r->succeeded;
    a->revision = r->revision;
    a->lease = r->lease;
    a->nkvs = r->nkvs;
    cairn_error_copy(&a->err, r->err);
    for (size_t i = 0; i < r->nkvs; i++)
        snprintf(a->keys + strlen(a->keys), sizeof a->keys - strlen(a->keys), "%s ", r->kvs[i].key);
    if (r->nkvs == 1) {
        a->mod_revision = r->kvs[0].mod_revision;
        snprintf(a->value, sizeof a->value, "%.*s", (int)(r->kvs[0].value_len < 100 ? r->kvs[0].value_len : 100),
                 (const char *)r->kvs[0].value);
    }
}

static struct answer *fresh(struct answer *a)
{
    *a = (struct answer){.req = {.done = answered, .arg = a}};
    a->err.size = sizeof a->err;
    return a;
}

static int wait_for(struct world *w, struct answer *a)
{
    for (int turns = 0; !a->done && turns < 3000; turns++)
        assert_int_equal(loop_turn(w->loop, 10, NULL), 0);
    assert_true(a->done);
    return a->code;
}

static int get(struct world *w, const char *key, struct answer *a)
{
    meta_get(w->meta, key, MS, &fresh(a)->req);
    return wait_for(w, a);
}

static int put_if(struct world *w, const char *key, uint64_t revision, const char *value, int64_t lease,
                  struct answer *a);

/* No answer to a put, as when a leader dies: what is there says whether it was applied, for values are not put twice.
 */
static int resolve(struct world *w, const struct cairn_put *put, uint64_t revision, struct answer *a)
{
    int r = CAIRN_E_UNAVAILABLE;

    for (int i = 0; i < 5 && r == CAIRN_E_UNAVAILABLE; i++)
        r = get(w, put->key, a);
    if (r < 0)
        return r;
    uint64_t now = a->nkvs ? a->mod_revision : 0;
    if (now == revision)
        return put_if(w, put->key, revision, put->value, put->lease, a);
    a->succeeded = a->nkvs && strncmp(a->value, put->value, strlen(put->value) < 100 ? strlen(put->value) : 100) == 0;
    a->revision = now;
    return 0;
}

/* Of puts and deletes that may be applied twice. */
static int txn_surely(struct world *w, const struct cairn_txn *txn, struct answer *a)
{
    int r = CAIRN_E_UNAVAILABLE;

    for (int i = 0; i < 5 && r == CAIRN_E_UNAVAILABLE; i++) {
        meta_txn(w->meta, txn, MS, &fresh(a)->req);
        r = wait_for(w, a);
    }
    return r;
}

/* Puts when the key's revision is the given one. */
static int put_if(struct world *w, const char *key, uint64_t revision, const char *value, int64_t lease,
                  struct answer *a)
{
    struct cairn_compare compare = {key, revision};
    struct cairn_put put = {key, value, strlen(value), lease};
    struct cairn_txn txn = {&compare, 1, &put, 1, NULL, 0};

    meta_txn(w->meta, &txn, MS, &fresh(a)->req);
    int r = wait_for(w, a);
    return r == CAIRN_E_UNAVAILABLE && etcd_endpoints() ? resolve(w, &put, revision, a) : r;
}

static struct meta *open_meta(struct world *w)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct meta *m = NULL;

    if (plugins_meta_open(w->plugins, w->loop, engine_name(), w->params, &m, &err) < 0)
        fail_msg("%s", err.message);
    return m;
}

/* Of TLS and of the user, when the etcd asks for them. */
static void more_params(struct cairn_param *to)
{
    static const char *const names[][2] = {{"CAIRN_TEST_ETCD_CA", "ca"},
                                           {"CAIRN_TEST_ETCD_CERT", "cert"},
                                           {"CAIRN_TEST_ETCD_KEY", "key"},
                                           {"CAIRN_TEST_ETCD_USER", "user"},
                                           {"CAIRN_TEST_ETCD_PASSWORD_FILE", "password_file"}};

    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++)
        if (getenv(names[i][0]))
            *to++ = (struct cairn_param){names[i][1], getenv(names[i][0])};
}

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof *w);

    snprintf(w->dir, sizeof w->dir, "meta-XXXXXX");
    if (!mkdtemp(w->dir) || loop_new(64, &w->loop, NULL) < 0 || plugins_new(PLUGIN_DIR, &w->plugins, NULL) < 0)
        return -1;
    snprintf(w->path, sizeof w->path, "%s/meta.db", w->dir);
    w->params[0] = (struct cairn_param){"path", w->path};
    if (etcd_endpoints()) {
        snprintf(w->prefix, sizeof w->prefix, "test-%d-%s/", getpid(), w->dir);
        w->params[0] = (struct cairn_param){"endpoints", etcd_endpoints()};
        w->params[1] = (struct cairn_param){"prefix", w->prefix};
        more_params(&w->params[2]);
    }
    w->meta = open_meta(w);
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;
    char command[128];

    meta_close(w->meta);
    plugins_free(w->plugins);
    loop_free(w->loop);
    snprintf(command, sizeof command, "rm -rf %s", w->dir);
    int r = system(command);
    free(w);
    return r;
}

static void test_lists_are_in_order(void **state)
{
    struct world *w = *state;
    struct answer a;

    assert_int_equal(put_if(w, "a/2", 0, "two", 0, &a), 0);
    assert_int_equal(put_if(w, "a/1", 0, "one", 0, &a), 0);
    assert_int_equal(put_if(w, "b", 0, "b", 0, &a), 0);
    meta_list(w->meta, "a/", MS, &fresh(&a)->req);
    assert_int_equal(wait_for(w, &a), 0);
    assert_string_equal(a.keys, "a/1 a/2 ");
    assert_int_equal(get(w, "a/1", &a), 0);
    assert_string_equal(a.value, "one");
    assert_int_equal(get(w, "absent", &a), 0);
    assert_int_equal(a.nkvs, 0);
}

static void test_a_guard_that_fails_changes_nothing(void **state)
{
    struct world *w = *state;
    struct answer a;

    assert_int_equal(put_if(w, "k", 0, "first", 0, &a), 0);
    assert_true(a.succeeded);
    uint64_t revision = a.revision;
    assert_int_equal(put_if(w, "k", 0, "second", 0, &a), 0);
    assert_false(a.succeeded);
    assert_int_equal(get(w, "k", &a), 0);
    assert_string_equal(a.value, "first");
    assert_true(a.mod_revision == revision);
    assert_int_equal(put_if(w, "k", revision, "third", 0, &a), 0);
    assert_true(a.succeeded && a.revision > revision);
}

static void test_a_transaction_is_one(void **state)
{
    struct world *w = *state;
    struct answer a;
    struct cairn_put puts[] = {{"x", "1", 1, 0}, {"y", "2", 1, 0}};
    const char *deletes[] = {"old"};
    struct cairn_txn txn = {NULL, 0, puts, 2, deletes, 1};

    assert_int_equal(put_if(w, "old", 0, "o", 0, &a), 0);
    assert_int_equal(txn_surely(w, &txn, &a), 0);
    uint64_t revision = a.revision;
    get(w, "x", &a);
    assert_true(a.mod_revision == revision);
    get(w, "y", &a);
    assert_true(a.mod_revision == revision);
    get(w, "old", &a);
    assert_int_equal(a.nkvs, 0);
}

static void count_up(struct world *w, unsigned times)
{
    struct answer a;
    char text[64];

    for (unsigned done = 0; done < times;) {
        assert_int_equal(get(w, "counter", &a), 0);
        uint64_t revision = a.nkvs ? a.mod_revision : 0;
        snprintf(text, sizeof text, "%d %d", a.nkvs ? atoi(a.value) + 1 : 1, getpid());
        assert_int_equal(put_if(w, "counter", revision, text, 0, &a), 0);
        done += a.succeeded;
    }
}

/* Four processes raise one number by guarded transactions: not one increment may be lost. */
static void test_processes_race(void **state)
{
    struct world *w = *state;
    struct answer a;
    pid_t pids[4];

    meta_close(w->meta); /* SQLite must not be carried over a fork */
    for (int i = 0; i < 4; i++) {
        pids[i] = fork();
        if (pids[i] == 0) {
            struct world child = *w;
            if (loop_new(64, &child.loop, NULL) < 0)
                _exit(1);
            child.meta = open_meta(&child);
            count_up(&child, 25);
            meta_close(child.meta);
            _exit(0);
        }
    }
    for (int i = 0; i < 4; i++) {
        int status;
        waitpid(pids[i], &status, 0);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    w->meta = open_meta(w);
    assert_int_equal(get(w, "counter", &a), 0);
    assert_int_equal(atoi(a.value), 100);
}

static bool is_gone(struct world *w, const char *key)
{
    struct answer a;

    assert_int_equal(get(w, key, &a), 0);
    return a.nkvs == 0;
}

static void test_leases_end(void **state)
{
    struct world *w = *state;
    struct answer a;

    meta_lease_grant(w->meta, 300, MS, &fresh(&a)->req);
    assert_int_equal(wait_for(w, &a), 0);
    int64_t lease = a.lease;
    assert_int_equal(put_if(w, "leased", 0, "v", lease, &a), 0);
    assert_true(a.succeeded);
    meta_lease_keep(w->meta, lease, MS, &fresh(&a)->req);
    assert_int_equal(wait_for(w, &a), 0);
    assert_false(is_gone(w, "leased"));
    for (int i = 0; i < 1000 && !is_gone(w, "leased"); i++) /* etcd's shortest lease is some seconds */
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    assert_true(is_gone(w, "leased"));
    meta_lease_keep(w->meta, lease, MS, &fresh(&a)->req);
    assert_int_equal(wait_for(w, &a), CAIRN_E_NOT_FOUND);
    assert_int_equal(put_if(w, "late", 0, "v", lease, &a), CAIRN_E_NOT_FOUND);
    meta_lease_grant(w->meta, 60000, MS, &fresh(&a)->req);
    assert_int_equal(wait_for(w, &a), 0);
    lease = a.lease;
    assert_int_equal(put_if(w, "revoked", 0, "v", lease, &a), 0);
    meta_lease_revoke(w->meta, lease, MS, &fresh(&a)->req);
    assert_int_equal(wait_for(w, &a), 0);
    assert_true(is_gone(w, "revoked"));
}

static void test_limits(void **state)
{
    struct world *w = *state;
    struct answer a;
    static char big[65 * 1024], key[1100];

    memset(big, 'x', sizeof big - 1);
    memset(key, 'k', sizeof key - 1);
    assert_int_equal(put_if(w, "big", 0, big, 0, &a), CAIRN_E_INVAL);
    big[64 * 1024] = 0;
    assert_int_equal(put_if(w, "big", 0, big, 0, &a), 0);
    assert_int_equal(get(w, key, &a), CAIRN_E_INVAL);
    assert_int_equal(get(w, "", &a), CAIRN_E_INVAL);
}

static void test_it_survives_reopening(void **state)
{
    struct world *w = *state;
    struct answer a;

    assert_int_equal(put_if(w, "kept", 0, "v", 0, &a), 0);
    uint64_t revision = a.revision;
    meta_close(w->meta);
    w->meta = open_meta(w);
    assert_int_equal(get(w, "kept", &a), 0);
    assert_true(a.mod_revision == revision);
}

static void test_a_damaged_database_is_an_error(void **state)
{
    struct world *w = *state;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct meta *m;
    char path[128];
    if (etcd_endpoints())
        return; /* it has no database of ours */
    struct cairn_param params[] = {{"path", path}, {NULL, NULL}};

    snprintf(path, sizeof path, "%s/garbage.db", w->dir);
    FILE *f = fopen(path, "w");
    for (int i = 0; i < 1000; i++)
        fputs("this is no database ", f);
    fclose(f);
    assert_int_equal(plugins_meta_open(w->plugins, w->loop, "sqlite", params, &m, &err), CAIRN_E_CORRUPT);
    assert_non_null(strstr(err.message, "garbage.db"));
    snprintf(path, sizeof path, "%s/no/such/dir.db", w->dir);
    assert_true(plugins_meta_open(w->plugins, w->loop, "sqlite", params, &m, &err) < 0);
}

/* ---- watches --------------------------------------------------------------------------------- */

struct seen {
    pthread_mutex_t lock;
    unsigned n;
    char text[512];
};

static void on_event(void *arg, int code, const struct cairn_kv *kv)
{
    struct seen *s = arg;

    pthread_mutex_lock(&s->lock);
    s->n++;
    snprintf(s->text + strlen(s->text), sizeof s->text - strlen(s->text), "%s%s%.*s ", code ? "lost" : kv->key,
             code || !kv->value ? "-" : "=", code ? 0 : (int)kv->value_len,
             code || !kv->value ? "" : (const char *)kv->value);
    pthread_mutex_unlock(&s->lock);
}

static bool saw(struct seen *s, unsigned n)
{
    bool enough = false;

    for (int i = 0; i < 500 && !enough; i++) {
        pthread_mutex_lock(&s->lock);
        enough = s->n >= n;
        pthread_mutex_unlock(&s->lock);
        if (!enough)
            nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    return enough;
}

static void test_watches_see_changes_in_order(void **state)
{
    struct world *w = *state;
    void *dso =
        dlopen(etcd_endpoints() ? PLUGIN_DIR "/cairn-meta-etcd.so" : PLUGIN_DIR "/cairn-meta-sqlite.so", RTLD_NOW);
    const struct cairn_plugin *(*entry)(void);
    struct seen now = {.lock = PTHREAD_MUTEX_INITIALIZER}, since = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_meta *m;
    struct answer a;

    assert_non_null(dso);
    *(void **)&entry = dlsym(dso, "cairn_plugin_entry");
    const struct cairn_meta_ops *ops = entry()->ops;
    assert_int_equal(put_if(w, "w/before", 0, "0", 0, &a),
                     0); /* through another connection, as another process would */
    uint64_t revision = a.revision;
    assert_int_equal(put_if(w, "w/first", 0, "1", 0, &a), 0);
    assert_int_equal(ops->open(w->params, &m, &err), 0);
    int64_t from_now = ops->watch(m, "w/", 0, on_event, &now),
            resumed = ops->watch(m, "w/", revision, on_event, &since);
    assert_true(from_now > 0 && resumed > 0);
    assert_int_equal(put_if(w, "w/second", 0, "2", 0, &a), 0);
    assert_int_equal(put_if(w, "other", 0, "3", 0, &a), 0);
    const char *deletes[] = {"w/first"};
    struct cairn_txn txn = {.deletes = deletes, .ndeletes = 1};
    assert_int_equal(txn_surely(w, &txn, &a), 0);
    assert_true(saw(&now, 2) && saw(&since, 3));
    assert_string_equal(now.text, "w/second=2 w/first- ");
    assert_string_equal(since.text, "w/first=1 w/second=2 w/first- ");
    ops->unwatch(m, from_now);
    assert_int_equal(put_if(w, "w/third", 0, "4", 0, &a), 0);
    assert_true(saw(&since, 4));
    assert_int_equal(now.n, 2);
    ops->close(m);
    dlclose(dso);
}

/* The history after the first revision was compacted before this suite began: what is gone is said to be, once, and
 * what comes is told. */
static void test_a_watch_outlives_compaction(void **state)
{
    struct world *w = *state;
    struct seen seen = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct cairn_error err = CAIRN_ERROR_INIT;
    const struct cairn_plugin *(*entry)(void);
    struct cairn_meta *m;
    struct answer a;

    if (!getenv("CAIRN_TEST_COMPACTED"))
        skip();
    void *dso = dlopen(PLUGIN_DIR "/cairn-meta-etcd.so", RTLD_NOW);
    assert_non_null(dso);
    *(void **)&entry = dlsym(dso, "cairn_plugin_entry");
    const struct cairn_meta_ops *ops = entry()->ops;
    assert_int_equal(ops->open(w->params, &m, &err), 0);
    int64_t watch = ops->watch(m, "w/", 1, on_event, &seen);
    assert_true(watch > 0);
    assert_true(saw(&seen, 1));
    assert_int_equal(put_if(w, "w/after", 0, "1", 0, &a), 0);
    assert_true(saw(&seen, 2));
    assert_string_equal(seen.text, "lost- w/after=1 ");
    ops->unwatch(m, watch);
    ops->close(m);
    dlclose(dso);
}

/* More keys than one page of any engine. */
static void test_long_lists_are_whole(void **state)
{
    struct world *w = *state;
    struct answer a;
    char keys[100][32];
    struct cairn_put puts[100];
    struct cairn_txn txn = {.puts = puts, .nputs = 100};

    for (int round = 0; round < 7; round++) {
        for (int i = 0; i < 100; i++) {
            snprintf(keys[i], sizeof keys[i], "long/%03d", round * 100 + i);
            puts[i] = (struct cairn_put){keys[i], "v", 1, 0};
        }
        assert_int_equal(txn_surely(w, &txn, &a), 0);
    }
    assert_int_equal(put_if(w, "lonf", 0, "v", 0, &a), 0);
    assert_int_equal(put_if(w, "long0", 0, "v", 0, &a), 0);
    meta_list(w->meta, "long/", MS, &fresh(&a)->req);
    assert_int_equal(wait_for(w, &a), 0);
    assert_int_equal(a.nkvs, 700);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_lists_are_in_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_long_lists_are_whole, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_guard_that_fails_changes_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_transaction_is_one, setup, teardown),
        cmocka_unit_test_setup_teardown(test_processes_race, setup, teardown),
        cmocka_unit_test_setup_teardown(test_leases_end, setup, teardown),
        cmocka_unit_test_setup_teardown(test_limits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_it_survives_reopening, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_damaged_database_is_an_error, setup, teardown),
        cmocka_unit_test_setup_teardown(test_watches_see_changes_in_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_watch_outlives_compaction, setup, teardown),
    };
    if (getenv("CAIRN_TEST_ONLY"))
        cmocka_set_test_filter(getenv("CAIRN_TEST_ONLY"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
