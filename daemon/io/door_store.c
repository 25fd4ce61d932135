/* SPDX-License-Identifier: Apache-2.0 */
/* The door to stores. Completions come on the loop's thread, because a store's I/O is the loop's. */
#include "daemon/io/door_internal.h"

#include "core/base/error.h"
#include "core/model/name.h"
#include "core/model/units.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct store {
    struct loop *loop;
    struct cairn_store_ops ops;
    void *dso;
    struct cairn_store *impl;
    unsigned streams;
    char name[64];
};
struct store_stream {
    struct store *store;
    struct cairn_store_stream *impl;
};

static int check_ops(const struct cairn_store_ops *o, const char *name, struct cairn_error *err)
{
    if (o->open && o->close && o->space && o->create && o->append && o->sync && o->open_stream && o->name && o->read &&
        o->close_stream && o->list && o->remove)
        return 0;
    return cairn_fail(err, CAIRN_E_UNSUPPORTED, "store %s lacks a required function", name);
}

int plugins_store_open(struct plugins *p, struct loop *loop, const char *name, const struct cairn_param *params,
                       struct store **ret_store, struct cairn_error *err)
{
    struct store *s = calloc(1, sizeof *s);
    struct cairn_error own = CAIRN_ERROR_INIT;
    char full[64];

    if (!s)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a store");
    s->loop = loop;
    snprintf(s->name, sizeof s->name, "%s", name);
    snprintf(full, sizeof full, "store-%s", name);
    int r = door_load(p, full, CAIRN_PLUGIN_STORE, &s->ops, sizeof s->ops, sizeof s->ops, &s->dso, &own);
    if (r == 0)
        r = check_ops(&s->ops, name, &own);
    if (r == 0)
        r = s->ops.open(loop_host(loop), params, &s->impl, &own);
    if (r == 0 && !s->impl)
        r = cairn_fail(&own, CAIRN_E_UNSUPPORTED, "store %s opened nothing", name);
    if (r < 0) {
        door_unload(s->dso);
        free(s);
        cairn_error_copy(err, &own);
        return r;
    }
    *ret_store = s;
    return 0;
}

void store_close(struct store *s)
{
    if (!s)
        return;
    assert(s->streams == 0);
    s->ops.close(s->impl);
    door_unload(s->dso);
    free(s);
}

int store_space(struct store *s, struct cairn_space *ret_space, struct cairn_error *err)
{
    struct cairn_error own = CAIRN_ERROR_INIT;
    struct cairn_space space = {0};
    int r = s->ops.space(s->impl, &space, &own);

    if (r < 0) {
        cairn_error_copy(err, &own);
        return r;
    }
    if (space.free_bytes > space.total_bytes)
        space.free_bytes = space.total_bytes;
    *ret_space = space;
    return 0;
}

static int wrap_stream(struct store *s, struct cairn_store_stream *impl, struct store_stream **ret_stream,
                       struct cairn_error *err)
{
    struct store_stream *st = calloc(1, sizeof *st);

    if (!st || !impl) {
        if (impl)
            s->ops.close_stream(impl);
        free(st);
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a stream of store %s", s->name);
    }
    st->store = s;
    st->impl = impl;
    s->streams++;
    *ret_stream = st;
    return 0;
}

int store_create(struct store *s, const struct cairn_stream_id *id, uint64_t reserve_bytes,
                 struct store_stream **ret_stream, uint64_t *ret_generation, struct cairn_error *err)
{
    struct cairn_error own = CAIRN_ERROR_INIT;
    struct cairn_store_stream *impl = NULL;
    uint64_t generation = 0;
    int r = cairn_name_check("job", id->job, &own);

    if (r == 0)
        r = cairn_name_check("node", id->node, &own);
    if (r == 0)
        r = s->ops.create(s->impl, id, reserve_bytes, &impl, &generation, &own);
    if (r == 0)
        r = wrap_stream(s, impl, ret_stream, &own);
    if (r < 0) {
        cairn_error_copy(err, &own);
        return r;
    }
    *ret_generation = generation;
    return 0;
}

int store_open_stream(struct store *s, const char *name, struct store_stream **ret_stream,
                      struct cairn_stream_id *ret_id, uint64_t *ret_generation, uint64_t *ret_end,
                      struct cairn_error *err)
{
    struct cairn_error own = CAIRN_ERROR_INIT;
    struct cairn_store_stream *impl = NULL;
    int r = s->ops.open_stream(s->impl, name, &impl, ret_id, ret_generation, ret_end, &own);

    if (r == 0)
        r = wrap_stream(s, impl, ret_stream, &own);
    if (r < 0)
        cairn_error_copy(err, &own);
    return r;
}

const char *store_stream_name(struct store_stream *st)
{
    return st->store->ops.name(st->impl);
}

/* Alignment is the caller's duty, not input: a violation is our own bug. */
static void check_request(const void *buf, size_t len)
{
    assert((uintptr_t)buf % CAIRN_BLOCK == 0 && len % CAIRN_BLOCK == 0 && len > 0);
    (void)buf;
    (void)len;
}

static void prepare(struct cairn_store_req *req)
{
    req->err = (struct cairn_error)CAIRN_ERROR_INIT;
    memset(&req->io, 0, sizeof req->io);
    memset(req->reserved, 0, sizeof req->reserved);
}

void store_append(struct store_stream *st, const void *buf, size_t len, struct cairn_store_req *req)
{
    loop_assert_here(st->store->loop);
    check_request(buf, len);
    prepare(req);
    st->store->ops.append(st->impl, buf, len, req);
}

void store_sync(struct store_stream *st, struct cairn_store_req *req)
{
    loop_assert_here(st->store->loop);
    prepare(req);
    st->store->ops.sync(st->impl, req);
}

void store_read(struct store_stream *st, uint64_t offset, void *buf, size_t len, struct cairn_store_req *req)
{
    loop_assert_here(st->store->loop);
    check_request(buf, len);
    assert(offset % CAIRN_BLOCK == 0);
    prepare(req);
    st->store->ops.read(st->impl, offset, buf, len, req);
}

void store_close_stream(struct store_stream *st)
{
    if (!st)
        return;
    st->store->ops.close_stream(st->impl);
    st->store->streams--;
    free(st);
}

int store_list(struct store *s, int (*each)(void *arg, const char *name), void *arg, struct cairn_error *err)
{
    struct cairn_error own = CAIRN_ERROR_INIT;
    int r = s->ops.list(s->impl, each, arg, &own);

    if (r < 0)
        cairn_error_copy(err, &own);
    return r;
}

int store_remove(struct store *s, const char *name, struct cairn_error *err)
{
    struct cairn_error own = CAIRN_ERROR_INIT;
    int r = s->ops.remove(s->impl, name, &own);

    if (r < 0)
        cairn_error_copy(err, &own);
    return r;
}
