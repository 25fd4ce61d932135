/* SPDX-License-Identifier: Apache-2.0 */
/* The door to metadata engines. Completions come on the engine's thread; their results are copied into one allocation
 * and posted to the loop. */
#include "daemon/io/door_internal.h"

#include "core/base/error.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_KEY 1024
#define MAX_VALUE (64u << 10)

struct meta {
    struct loop *loop;
    struct cairn_meta_ops ops;
    void *dso;
    struct cairn_meta *impl;
    unsigned pending; /* requests whose done() has not run */
};

/* One request on its way: what came back, and the post that carries it. */
struct flight {
    struct meta *meta;
    struct meta_req *req;
    struct loop_post post;
    struct cairn_meta_result result;
    struct cairn_error err;
    void *copy; /* of kvs, keys and values */
};

static void deliver(struct loop_post *post)
{
    struct flight *f = post->arg;

    f->meta->pending--;
    f->req->done(f->req, &f->result);
    free(f->copy);
    free(f);
}

static int copy_kvs(struct flight *f, const struct cairn_meta_result *r)
{
    size_t bytes = r->nkvs * sizeof(struct cairn_kv);

    for (size_t i = 0; i < r->nkvs; i++)
        bytes += strlen(r->kvs[i].key) + 1 + r->kvs[i].value_len;
    f->copy = malloc(bytes ? bytes : 1);
    if (!f->copy)
        return cairn_fail(&f->err, CAIRN_E_NOMEM, "copy %zu keys of the metadata", r->nkvs);
    struct cairn_kv *kvs = f->copy;
    char *at = (char *)(kvs + r->nkvs);
    for (size_t i = 0; i < r->nkvs; i++) {
        size_t key_len = strlen(r->kvs[i].key) + 1;
        kvs[i] = r->kvs[i];
        kvs[i].key = memcpy(at, r->kvs[i].key, key_len);
        at += key_len;
        kvs[i].value = r->kvs[i].value_len ? memcpy(at, r->kvs[i].value, r->kvs[i].value_len) : at;
        at += r->kvs[i].value_len;
    }
    f->result.kvs = kvs;
    return 0;
}

static void completed(void *arg, const struct cairn_meta_result *r)
{
    struct flight *f = arg;

    f->result = *r;
    f->result.kvs = NULL;
    if (r->code < 0) {
        cairn_error_copy(&f->err, r->err);
        if (!f->err.message[0])
            cairn_fail(&f->err, r->code, "the metadata engine failed without a reason");
        f->result.nkvs = 0;
    } else if (copy_kvs(f, r) < 0) {
        f->result.code = CAIRN_E_NOMEM;
        f->result.nkvs = 0;
    }
    f->result.err = f->result.code < 0 ? &f->err : NULL;
    f->post = (struct loop_post){.run = deliver, .arg = f};
    loop_post(f->meta->loop, &f->post);
}

static struct flight *flight_new(struct meta *m, struct meta_req *req)
{
    struct flight *f = calloc(1, sizeof *f);

    loop_assert_here(m->loop);
    if (!f)
        abort(); /* a request that can neither complete nor fail */
    f->meta = m;
    f->req = req;
    f->err.size = sizeof f->err;
    m->pending++;
    return f;
}

static void refuse(struct flight *f)
{
    struct cairn_meta_result r = {.code = CAIRN_E_INVAL, .err = &f->err};
    struct cairn_error err = f->err;

    r.err = &err;
    completed(f, &r);
}

static bool key_ok(struct flight *f, const char *key)
{
    size_t len = strlen(key);

    if (len > 0 && len <= MAX_KEY)
        return true;
    cairn_fail(&f->err, CAIRN_E_INVAL, "a metadata key of %zu bytes: 1 to %d are wanted", len, MAX_KEY);
    return false;
}

void meta_get(struct meta *m, const char *key, uint32_t timeout_ms, struct meta_req *req)
{
    struct flight *f = flight_new(m, req);

    if (key_ok(f, key))
        m->ops.get(m->impl, key, timeout_ms, completed, f);
    else
        refuse(f);
}

void meta_list(struct meta *m, const char *prefix, uint32_t timeout_ms, struct meta_req *req)
{
    struct flight *f = flight_new(m, req);

    if (key_ok(f, prefix))
        m->ops.list(m->impl, prefix, timeout_ms, completed, f);
    else
        refuse(f);
}

static bool txn_ok(struct flight *f, const struct cairn_txn *t)
{
    bool ok = true;

    for (size_t i = 0; i < t->ncompares && ok; i++)
        ok = key_ok(f, t->compares[i].key);
    for (size_t i = 0; i < t->ndeletes && ok; i++)
        ok = key_ok(f, t->deletes[i]);
    for (size_t i = 0; i < t->nputs && ok; i++) {
        ok = key_ok(f, t->puts[i].key);
        if (ok && t->puts[i].value_len > MAX_VALUE) {
            cairn_fail(&f->err, CAIRN_E_INVAL, "a value of %zu bytes for %s: at most %u are allowed",
                       t->puts[i].value_len, t->puts[i].key, MAX_VALUE);
            ok = false;
        }
    }
    return ok;
}

void meta_txn(struct meta *m, const struct cairn_txn *txn, uint32_t timeout_ms, struct meta_req *req)
{
    struct flight *f = flight_new(m, req);

    if (txn_ok(f, txn))
        m->ops.txn(m->impl, txn, timeout_ms, completed, f);
    else
        refuse(f);
}

void meta_lease_grant(struct meta *m, uint32_t ttl_ms, uint32_t timeout_ms, struct meta_req *req)
{
    m->ops.lease_grant(m->impl, ttl_ms, timeout_ms, completed, flight_new(m, req));
}

void meta_lease_keep(struct meta *m, int64_t lease, uint32_t timeout_ms, struct meta_req *req)
{
    m->ops.lease_keep(m->impl, lease, timeout_ms, completed, flight_new(m, req));
}

void meta_lease_revoke(struct meta *m, int64_t lease, uint32_t timeout_ms, struct meta_req *req)
{
    m->ops.lease_revoke(m->impl, lease, timeout_ms, completed, flight_new(m, req));
}

static int check_ops(const struct cairn_meta_ops *o, const char *name, struct cairn_error *err)
{
    if (o->open && o->close && o->get && o->list && o->txn && o->lease_grant && o->lease_keep && o->lease_revoke &&
        o->watch && o->unwatch)
        return 0;
    return cairn_fail(err, CAIRN_E_UNSUPPORTED, "metadata engine %s lacks a required function", name);
}

int plugins_meta_open(struct plugins *p, struct loop *loop, const char *name, const struct cairn_param *params,
                      struct meta **ret_meta, struct cairn_error *err)
{
    struct meta *m = calloc(1, sizeof *m);
    struct cairn_error own = CAIRN_ERROR_INIT;
    char full[64];

    if (!m)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a metadata engine");
    m->loop = loop;
    snprintf(full, sizeof full, "meta-%s", name);
    int r = door_load(p, full, CAIRN_PLUGIN_META, &m->ops, sizeof m->ops, sizeof m->ops, &m->dso, &own);
    if (r == 0)
        r = check_ops(&m->ops, name, &own);
    if (r == 0)
        r = m->ops.open(params, &m->impl, &own);
    if (r == 0 && !m->impl)
        r = cairn_fail(&own, CAIRN_E_UNSUPPORTED, "metadata engine %s opened nothing", name);
    if (r < 0) {
        door_unload(m->dso);
        free(m);
        cairn_error_copy(err, &own);
        return r;
    }
    *ret_meta = m;
    return 0;
}

void meta_close(struct meta *m)
{
    if (!m)
        return;
    m->ops.close(m->impl);
    /* Everything was posted before close returned: deliver it while the object still lives. */
    for (unsigned turns = 0; m->pending && turns < 10000; turns++)
        if (loop_turn(m->loop, 1, NULL) < 0)
            break;
    door_unload(m->dso);
    free(m);
}
