/* SPDX-License-Identifier: Apache-2.0 */
/* Which metadata engine this peer belongs to. The engine has an id (cairn/v1/engine, put by whoever finds none); the
 * peer keeps the first one it sees in a file beside its store. Another one, say after the database was lost, knows
 * nothing of what is stored here: nothing is deleted and nothing new is taken until `cairn rebuild` has written the
 * catalog again and says so.
 *
 *     start -> look at the key -> absent: put a random id, look again -> remember, or compare
 *           -> the incarnation of each job that is stored here -> register; again every minute
 *
 * An engine that knows a lower incarnation of a job than is stored here was put back from an old copy: it is as
 * strange. */
#include "daemon/peer/internal.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/name.h"
#include "daemon/io/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define META_MS 5000
#define RETRY_MS 1000

/* ---- the file -------------------------------------------------------------------------------- */

static int read_file(struct peer *p, struct cairn_error *err)
{
    char text[CAIRN_MAX_NAME + 3] = "";
    _cleanup_close_ int fd = open(p->engine_path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

    if (fd < 0)
        return errno == ENOENT ? 0 : cairn_fail_errno(err, errno, "open %s", p->engine_path);
    ssize_t n = read(fd, text, sizeof text - 1);
    if (n < 0)
        return cairn_fail_errno(err, errno, "read %s", p->engine_path);
    text[strcspn(text, "\n")] = 0;
    if (cairn_name_check("engine", text, err) < 0)
        return cairn_wrap(err, CAIRN_E_CORRUPT, "%s", p->engine_path);
    snprintf(p->engine, sizeof p->engine, "%.*s", CAIRN_MAX_NAME, text);
    return 0;
}

static int sync_directory_of(const char *path, struct cairn_error *err)
{
    char dir[4096];

    snprintf(dir, sizeof dir, "%s", path);
    char *slash = strrchr(dir, '/');
    if (slash)
        *slash = 0;
    _cleanup_close_ int fd = open(slash ? dir : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0)
        return cairn_fail_errno(err, errno, "sync the directory %s", slash ? dir : ".");
    return 0;
}

/* Whole or not at all, and durable. It blocks for two small syncs, once in the life of a store and after a rebuild. */
static int write_file(struct peer *p, const char *engine, struct cairn_error *err)
{
    char fresh[4096], text[CAIRN_MAX_NAME + 2];
    int len = snprintf(text, sizeof text, "%s\n", engine);

    snprintf(fresh, sizeof fresh, "%s.new", p->engine_path);
    _cleanup_close_ int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0640);
    if (fd < 0 || write(fd, text, (size_t)len) != len || fsync(fd) < 0)
        return cairn_fail_errno(err, errno, "write %s", fresh);
    if (rename(fresh, p->engine_path) < 0)
        return cairn_fail_errno(err, errno, "rename %s to %s", fresh, p->engine_path);
    int r = sync_directory_of(p->engine_path, err);
    if (r == 0)
        snprintf(p->engine, sizeof p->engine, "%s", engine);
    return r;
}

/* ---- judging --------------------------------------------------------------------------------- */

int peer_check_engine(const struct peer *p, struct cairn_error *err)
{
    if (p->engine_behind[0])
        return cairn_fail(err, CAIRN_E_UNAVAILABLE,
                          "peer %s stores a higher incarnation of job %s than the metadata knows: nothing is stored or "
                          "deleted before `cairn rebuild` has written the catalog again",
                          p->id, p->engine_behind);
    if (p->engine_seen[0] && strcmp(p->engine, p->engine_seen) == 0)
        return 0;
    return cairn_fail(err, CAIRN_E_UNAVAILABLE,
                      "peer %s belongs to metadata engine %s, this one is %s: nothing is stored or deleted before "
                      "`cairn rebuild` has written the catalog again",
                      p->id, p->engine[0] ? p->engine : "(none)", p->engine_seen[0] ? p->engine_seen : "(not known)");
}

static void judged(struct peer *p)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    bool was_accepted = p->status.engine_accepted || !p->engine_looked;

    p->status.engine_accepted = peer_check_engine(p, &err) == 0;
    if (!p->status.engine_accepted && was_accepted)
        log_line(LOG_ERROR, "%s", err.message);
}

static void seen(struct peer *p, const char *id)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    snprintf(p->engine_seen, sizeof p->engine_seen, "%s", id);
    if (!p->engine[0] && write_file(p, id, &err) < 0)
        log_line(LOG_ERROR, "the metadata engine's id cannot be kept: %s", err.message);
}

/* ---- looking --------------------------------------------------------------------------------- */

static void look(struct peer *p);

static void look_ended(struct peer *p, uint32_t again_ms)
{
    p->engine_looking = false;
    if (p->stopping)
        peer_maybe_stopped(p);
    else if (again_ms)
        loop_timer_after(p->deps.loop, &p->engine_timer, again_ms);
    else if (!p->engine_looked) {
        p->engine_looked = true;
        peer_register(p);
    }
}

static void was_put(struct meta_req *req, const struct cairn_meta_result *r)
{
    struct peer *p = req->arg;

    if (r->code < 0 || p->stopping)
        look_ended(p, RETRY_MS);
    else
        look(p); /* ours, or the one of who was first */
}

static void put_id(struct peer *p)
{
    struct record_engine rec;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct bytes value = {.data = NULL};
    uint64_t random[2];
    char key[RECORD_KEY_MAX];

    record_key_engine(key);
    if (getrandom(random, sizeof random, 0) != sizeof random) {
        look_ended(p, RETRY_MS);
        return;
    }
    snprintf(rec.id, sizeof rec.id, "%016llx%016llx", (unsigned long long)random[0], (unsigned long long)random[1]);
    if (record_engine_encode(&rec, &value, &err) < 0) {
        look_ended(p, RETRY_MS);
        return;
    }
    struct cairn_compare absent = {key, 0};
    struct cairn_put put = {key, value.data, value.len, 0};
    struct cairn_txn txn = {.compares = &absent, .ncompares = 1, .puts = &put, .nputs = 1};
    p->engine_req.done = was_put;
    meta_txn(p->deps.meta, &txn, META_MS, &p->engine_req);
    bytes_free(&value);
}

static void compare_next(struct peer *p);

/* Every stream was opened by an incarnation that the engine had given out, and it never gives back. */
static void compared(struct meta_req *req, const struct cairn_meta_result *r)
{
    struct peer *p = req->arg;
    struct record_incarnation inc = {.incarnation = 0};
    struct cairn_error err = CAIRN_ERROR_INIT;
    int code = r->code;

    if (code == 0 && r->nkvs > 0)
        code = record_incarnation_decode(&inc, r->kvs[0].value, r->kvs[0].value_len, &err);
    if (code < 0 || p->stopping) {
        look_ended(p, p->engine_looked ? 0 : RETRY_MS);
        return;
    }
    if (inc.incarnation < p->engine_highest) {
        memcpy(p->engine_behind, p->engine_job, sizeof p->engine_behind);
        judged(p);
        look_ended(p, 0);
        return;
    }
    compare_next(p);
}

static void compare_next(struct peer *p)
{
    char key[RECORD_KEY_MAX];

    if (!keep_next_job(p->keep, p->engine_job, p->engine_job, &p->engine_highest)) {
        p->engine_behind[0] = 0;
        judged(p);
        look_ended(p, 0);
        return;
    }
    record_key_job(key, p->engine_job, "incarnation");
    p->engine_req = (struct meta_req){.done = compared, .arg = p};
    meta_get(p->deps.meta, key, META_MS, &p->engine_req);
}

static void looked(struct meta_req *req, const struct cairn_meta_result *r)
{
    struct peer *p = req->arg;
    struct record_engine rec;
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (r->code == 0 && r->nkvs == 0 && !p->stopping) {
        put_id(p);
        return;
    }
    int code = r->code < 0 || r->nkvs == 0 ? CAIRN_E_UNAVAILABLE
                                           : record_engine_decode(&rec, r->kvs[0].value, r->kvs[0].value_len, &err);
    if (code == 0)
        seen(p, rec.id);
    else if (code == CAIRN_E_UNAVAILABLE && !p->complained)
        log_line(LOG_WARNING, "peer %s is not registered: the metadata cannot be read: %s", p->id,
                 r->err ? r->err->message : "no answer");
    else if (code != CAIRN_E_UNAVAILABLE)
        log_line(LOG_ERROR, "the metadata engine's id does not read: %s", err.message);
    p->complained |= code < 0;
    if (code == 0 && strcmp(p->engine, p->engine_seen) == 0 && !p->stopping) {
        p->engine_job[0] = 0;
        compare_next(p);
        return;
    }
    if (code == 0)
        judged(p);
    look_ended(p, code < 0 && !p->engine_looked ? RETRY_MS : 0);
}

static void look(struct peer *p)
{
    char key[RECORD_KEY_MAX];

    record_key_engine(key);
    p->engine_looking = true;
    p->engine_req = (struct meta_req){.done = looked, .arg = p};
    meta_get(p->deps.meta, key, META_MS, &p->engine_req);
}

static void look_again(struct loop_timer *t)
{
    look(t->arg);
}

int peer_engine_start(struct peer *p, struct cairn_error *err)
{
    int r = read_file(p, err);

    if (r < 0)
        return r;
    p->engine_timer = (struct loop_timer){.fire = look_again, .arg = p};
    look(p);
    return 0;
}

void peer_engine_look(struct peer *p)
{
    if (!p->engine_looking && !p->stopping && p->engine_looked)
        look(p);
}

/* ---- ACCEPT_ENGINE and INVENTORY ------------------------------------------------------------- */

struct accept {
    struct meta_req req;
    struct peer_node *node; /* pending */
    uint64_t request;
    char engine[CAIRN_MAX_NAME + 1];
};

/* The node is believed when the metadata that this peer reads says the same. */
static int judge(struct accept *a, const struct cairn_meta_result *r, struct cairn_error *err)
{
    struct record_engine rec;
    int code = r->code < 0 || r->nkvs == 0
                   ? cairn_fail(err, CAIRN_E_UNAVAILABLE, "the metadata engine's id is not there")
                   : record_engine_decode(&rec, r->kvs[0].value, r->kvs[0].value_len, err);

    if (code == 0 && strcmp(rec.id, a->engine) != 0)
        code = cairn_fail(err, CAIRN_E_INVAL, "the metadata engine here is %s, not %s", rec.id, a->engine);
    return code;
}

static void accept_judged(struct meta_req *req, const struct cairn_meta_result *r)
{
    struct accept *a = req->arg;
    struct peer_node *n = a->node;
    struct wire_message m = {.type = WIRE_ENGINE_ACCEPTED};
    struct cairn_error err = CAIRN_ERROR_INIT;
    int code = judge(a, r, &err);

    if (code == 0 && strcmp(n->peer->engine, a->engine) != 0) {
        code = write_file(n->peer, a->engine, &err);
        if (code == 0)
            log_line(LOG_NOTICE, "the catalog was rebuilt: this peer belongs to metadata engine %s now", a->engine);
    }
    if (code == 0) {
        seen(n->peer, a->engine);
        n->peer->engine_behind[0] = 0; /* the rebuild raised it; the next look sees for itself */
        judged(n->peer);
    }
    m.engine_accepted.request = a->request;
    wire_status_set(&m.engine_accepted.status, code, &err);
    peer_answer(n, &m);
    free(a);
    peer_node_pending_end(n);
}

void peer_on_accept_engine(struct peer_node *n, const struct wire_message *m)
{
    struct accept *a = calloc(1, sizeof *a);
    char key[RECORD_KEY_MAX];

    if (!a)
        return; /* the node's deadline notices */
    a->node = n;
    a->request = m->accept_engine.request;
    snprintf(a->engine, sizeof a->engine, "%s", m->accept_engine.engine);
    a->req = (struct meta_req){.done = accept_judged, .arg = a};
    n->pending++;
    record_key_engine(key);
    meta_get(n->peer->deps.meta, key, META_MS, &a->req);
}

void peer_on_inventory(struct peer_node *n, const struct wire_message *m)
{
    struct wire_message out = {.type = WIRE_INVENTORY_ITEMS};
    struct cairn_stream_id ids[WIRE_ITEMS + 1],
        after = {.step = m->inventory.after.step, .incarnation = m->inventory.after.incarnation};

    snprintf(after.job, sizeof after.job, "%s", m->inventory.after.job);
    snprintf(after.node, sizeof after.node, "%s", m->inventory.after.node);
    out.inventory_items.request = m->inventory.request;
    out.inventory_items.n =
        keep_ids(n->peer->keep, m->inventory.job, m->inventory.from_start ? NULL : &after, WIRE_ITEMS, ids);
    for (unsigned i = 0; i < out.inventory_items.n; i++) {
        struct wire_stream *to = &out.inventory_items.items[i];
        to->step = ids[i].step;
        to->incarnation = ids[i].incarnation;
        snprintf(to->job, sizeof to->job, "%.*s", CAIRN_MAX_NAME, ids[i].job);
        snprintf(to->node, sizeof to->node, "%.*s", CAIRN_MAX_NAME, ids[i].node);
    }
    out.inventory_items.last = out.inventory_items.n < WIRE_ITEMS;
    snprintf(out.inventory_items.engine, sizeof out.inventory_items.engine, "%s", n->peer->engine);
    peer_answer(n, &out);
}
