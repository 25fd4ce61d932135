/* SPDX-License-Identifier: Apache-2.0 */
/* REBUILD: the records of the catalog from what peers store, after the metadata engine was lost.
 *
 *     inventory of all peers -> job by job: its records are read
 *         -> an incarnation above the highest seen
 *         -> each checkpoint that is not committed: a copy of its decision is read, checked against its root, and put
 *     -> peers accept the engine, when all jobs were gone through
 *
 * Everything is put by transactions that compare, and nothing is deleted: it may be run again, and beside jobs that
 * save. */
#include "daemon/node/command_internal.h"
#include "daemon/node/rebuild.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/hash.h"
#include "daemon/io/log.h"
#include "daemon/node/blob.h"
#include "daemon/node/job_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define READ_MS 5000
#define START_ID "cairn-rebuild" /* of the incarnation that is put: any start takes a higher one */

struct rebuild {
    struct node_work work;
    struct query *q;
    struct node *node;
    struct inventory inv;
    size_t at;                    /* of inv.items: the first of the checkpoint that is looked at */
    size_t end;                   /* behind its last */
    size_t try;                   /* whose copy of the decision is being read */
    char job[CAIRN_MAX_NAME + 1]; /* that view is of; "": none */
    struct view view;
    uint64_t highest; /* incarnation of that job, on any peer */
    struct meta_req req;
    struct link_read read;
    struct record_decision decision; /* that is being checked */
    char why[WIRE_TEXT];             /* the last copy was not taken */
    uint64_t written, present, undecided;
    json_t *jobs, *checkpoints;
    unsigned peer, accepted;
    struct link_call call;
    struct loop_timer deadline;
    bool late;
};

static void next_checkpoint(struct rebuild *r);

/* ---- the end --------------------------------------------------------------------------------- */

static void rebuild_free(struct rebuild *r)
{
    list_remove(&r->work.link);
    loop_timer_cancel(r->node->deps.loop, &r->deadline);
    view_free(&r->view);
    inventory_free(&r->inv);
    json_decref(r->jobs);
    json_decref(r->checkpoints);
    free(r);
}

static void rebuild_fail(struct rebuild *r, int code, const struct cairn_error *err)
{
    query_fail(r->q, code, err);
    rebuild_free(r);
}

static void rebuild_end(struct rebuild *r)
{
    json_t *o = json_object();

    query_set(o, "v", json_integer(1));
    query_set(o, "engine", r->inv.engine[0] ? json_string(r->inv.engine) : json_null());
    query_set(o, "complete", json_boolean(r->inv.complete));
    query_set(o, "accepted", json_integer(r->accepted));
    query_set(o, "written", json_integer((json_int_t)r->written));
    query_set(o, "present", json_integer((json_int_t)r->present));
    query_set(o, "undecided", json_integer((json_int_t)r->undecided));
    query_set(o, "jobs", json_incref(r->jobs));
    query_set(o, "checkpoints", json_incref(r->checkpoints));
    query_set(o, "peers", json_incref(r->inv.peers));
    log_line(LOG_NOTICE, "rebuild: %llu decisions were written, %llu were there, %llu checkpoints are undecided",
             (unsigned long long)r->written, (unsigned long long)r->present, (unsigned long long)r->undecided);
    query_answer(r->q, o);
    rebuild_free(r);
}

/* True when it ended because of that. */
static bool rebuild_stopped(struct rebuild *r)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (r->inv.stop)
        rebuild_fail(r, cairn_fail(&err, CAIRN_E_ABORTED, "cairnd is stopping"), &err);
    else if (r->late)
        rebuild_fail(
            r,
            cairn_fail(&err, CAIRN_E_TIMEOUT, "the catalog was not rebuilt in %u ms; run it again", r->q->timeout_ms),
            &err);
    else
        return false;
    return true;
}

/* ---- peers accept the engine ----------------------------------------------------------------- */

static void accept_next(struct rebuild *r);

static void accepted(struct link_call *call, int code, const struct cairn_error *err, const struct wire_message *m)
{
    struct rebuild *r = call->arg;

    if (code == 0 && m->type == WIRE_ENGINE_ACCEPTED && m->engine_accepted.status.code == 0)
        r->accepted++;
    else
        log_line(LOG_WARNING, "peer %s does not accept the metadata engine: %s", link_id(call->owner),
                 code < 0 ? err->message : m->engine_accepted.status.message);
    r->peer++;
    accept_next(r);
}

static void accept_next(struct rebuild *r)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    for (; r->peer < r->inv.nall; r->peer++) {
        struct wire_message m = {.type = WIRE_ACCEPT_ENGINE};
        snprintf(m.accept_engine.engine, sizeof m.accept_engine.engine, "%s", r->inv.engine);
        r->call = (struct link_call){.done = accepted, .arg = r};
        if (link_call(r->inv.all[r->peer], &r->call, &m, READ_MS, &err) == 0)
            return;
    }
    rebuild_end(r);
}

/* ---- one checkpoint -------------------------------------------------------------------------- */

static void checkpoint_done(struct rebuild *r, const char *state)
{
    const struct wire_stream *s = &r->inv.items[r->at].stream;
    json_t *o = json_object();
    bool undecided = strcmp(state, "undecided") == 0;

    query_set(o, "job", json_string(s->job));
    query_set(o, "step", json_integer((json_int_t)s->step));
    query_set(o, "incarnation", json_integer((json_int_t)s->incarnation));
    query_set(o, "state", json_string(state));
    query_set(o, "error", undecided && r->why[0] ? json_string(r->why) : json_null());
    json_array_append_new(r->checkpoints, o);
    r->written += strcmp(state, "written") == 0;
    r->present += strcmp(state, "present") == 0;
    r->undecided += undecided;
    r->at = r->end;
    next_checkpoint(r);
}

static void decision_put(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct rebuild *r = req->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (result->code < 0)
        rebuild_fail(r, meta_failed(result, &err, "write a decision"), &err); /* unknown: another run finds out */
    else
        checkpoint_done(r, result->succeeded ? "written" : "present");
}

static int view_find_fate(const struct rebuild *r)
{
    const struct wire_stream *s = &r->inv.items[r->at].stream;
    ptrdiff_t at = view_find(&r->view, s->step, s->incarnation);

    return at < 0 ? KNOWN_UNDECIDED : r->view.known[at].fate;
}

static void put_decision(struct rebuild *r, uint64_t revision)
{
    const struct wire_stream *s = &r->inv.items[r->at].stream;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct bytes value = {.data = NULL};
    char key[RECORD_KEY_MAX];
    int code = record_decision_encode(&r->decision, &value, &err);

    if (code < 0) {
        bytes_free(&value);
        rebuild_fail(r, code, &err);
        return;
    }
    record_key_ckpt(key, s->job, s->step, s->incarnation, "decision");
    struct cairn_compare same = {key, revision};
    struct cairn_put put = {key, value.data, value.len, 0};
    struct cairn_txn txn = {.compares = &same, .ncompares = 1, .puts = &put, .nputs = 1};
    r->req = (struct meta_req){.done = decision_put, .arg = r};
    meta_txn(r->node->deps.meta, &txn, r->node->config.meta_ms, &r->req);
    bytes_free(&value);
}

/* An abort that stands beside a copy of a commit was decided after the engine was lost, by a start that took the
 * numbers of the old one: the commit was first. What was aborted before has no copy. */
static void abort_read(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct rebuild *r = req->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct record_decision d = {.commit = false};
    int code = result->code < 0 ? meta_failed(result, &err, "read a decision") : 0;

    if (code == 0 && result->nkvs > 0)
        code = record_decision_decode(&d, result->kvs[0].value, result->kvs[0].value_len, &err);
    if (code < 0)
        rebuild_fail(r, code, &err);
    else if (d.commit)
        checkpoint_done(r, "present");
    else
        put_decision(r, result->nkvs > 0 ? result->kvs[0].mod_revision : 0);
}

static void decide(struct rebuild *r)
{
    const struct wire_stream *s = &r->inv.items[r->at].stream;
    char key[RECORD_KEY_MAX];

    if (view_find_fate(r) == KNOWN_UNDECIDED) {
        put_decision(r, 0);
        return;
    }
    record_key_ckpt(key, s->job, s->step, s->incarnation, "decision");
    r->req = (struct meta_req){.done = abort_read, .arg = r};
    meta_get(r->node->deps.meta, key, r->node->config.meta_ms, &r->req);
}

static void try_next(struct rebuild *r);

static void try_failed(struct rebuild *r, const struct cairn_error *err)
{
    if (err->code != CAIRN_E_NOT_FOUND)
        snprintf(r->why, sizeof r->why, "%.*s", WIRE_TEXT - 1, err->message);
    r->try++;
    try_next(r);
}

/* The decision names the root's digest: it is believed when that root is there and says it is this checkpoint's. */
static void root_read(void *arg, int code, const struct cairn_error *err, const void *data, size_t len)
{
    struct rebuild *r = arg;
    const struct wire_stream *s = &r->inv.items[r->at].stream;
    struct cairn_error own = CAIRN_ERROR_INIT;
    struct root root;

    cairn_error_copy(&own, err);
    root_init(&root);
    if (code == 0)
        code = root_decode(&root, data, len, &own);
    if (code == 0 && (strcmp(root.job, s->job) != 0 || root.step != s->step || root.incarnation != s->incarnation ||
                      root.world_size != r->decision.world_size))
        code = cairn_fail(&own, CAIRN_E_CORRUPT, "its root is another checkpoint's");
    root_free(&root);
    if (code < 0)
        try_failed(r, &own);
    else
        decide(r);
}

static int take_decision(struct rebuild *r, const char *record, struct cairn_error *err)
{
    struct fragment f;
    uint8_t digest[SHA256_LEN];
    const char *payload = record + FRAGMENT_HEADER;
    int code = fragment_parse(record, &f, err);

    if (code == 0 && (!fragment_key_equal(&f.key, &r->read.key) || f.blob_len != f.payload_len))
        code = cairn_fail(err, CAIRN_E_CORRUPT, "another fragment came than was asked for");
    if (code == 0)
        code = fragment_check_payload(&f, payload, err);
    if (code < 0)
        return code;
    sha256(payload, f.payload_len, digest);
    if (memcmp(digest, f.blob_sha256, SHA256_LEN) != 0)
        return cairn_fail(err, CAIRN_E_CORRUPT, "a copy of a decision does not have its SHA-256");
    code = record_decision_decode(&r->decision, payload, f.payload_len, err);
    if (code == 0 && (!r->decision.commit || strcmp(r->decision.node, r->read.key.node) != 0))
        code = cairn_fail(err, CAIRN_E_CORRUPT, "a copy of a decision says something else than where it lies");
    return code;
}

static void decision_read(struct link_read *read, int code, const struct cairn_error *err, const char *record)
{
    struct rebuild *r = read->arg;
    struct fragment_key key = {.kind = FRAGMENT_ROOT};
    struct cairn_error own = CAIRN_ERROR_INIT;

    cairn_error_copy(&own, err);
    if (code == 0)
        code = take_decision(r, record, &own);
    if (code < 0) {
        try_failed(r, &own);
        return;
    }
    memcpy(key.job, read->key.job, sizeof key.job);
    memcpy(key.node, read->key.node, sizeof key.node);
    key.step = read->key.step;
    key.incarnation = read->key.incarnation;
    blob_get(r->node->links, &key, &r->decision.root, READ_MS, root_read, r);
}

static void try_next(struct rebuild *r)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (rebuild_stopped(r))
        return;
    for (; r->try < r->end; r->try++) {
        const struct stored *s = &r->inv.items[r->try];
        struct fragment_key key = {
            .step = s->stream.step, .incarnation = s->stream.incarnation, .kind = FRAGMENT_DECISION};
        memcpy(key.job, s->stream.job, sizeof key.job);
        memcpy(key.node, s->stream.node, sizeof key.node);
        r->read = (struct link_read){.done = decision_read, .arg = r, .key = key};
        if (link_read(s->link, &r->read, &err) == 0)
            return;
        snprintf(r->why, sizeof r->why, "%.*s", WIRE_TEXT - 1, err.message);
    }
    checkpoint_done(r, view_find_fate(r) == KNOWN_ABORTED ? "present" : "undecided");
}

/* ---- one job --------------------------------------------------------------------------------- */

static void job_known(struct rebuild *r)
{
    json_t *o = json_object();

    query_set(o, "job", json_string(r->job));
    query_set(o, "incarnation", json_integer((json_int_t)r->view.inc.incarnation));
    json_array_append_new(r->jobs, o);
    next_checkpoint(r);
}

static void incarnation_put(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct rebuild *r = req->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (result->code < 0)
        rebuild_fail(r, meta_failed(result, &err, "write an incarnation"), &err);
    else if (!result->succeeded)
        rebuild_fail(r, cairn_fail(&err, CAIRN_E_BUSY, "job %s was started meanwhile: run it again", r->job), &err);
    else {
        r->view.inc.incarnation = r->highest + 1;
        job_known(r);
    }
}

/* Seen start ids stay seen, where the engine still knows them. */
static void raise_incarnation(struct rebuild *r)
{
    struct record_incarnation inc = r->view.inc;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct bytes value = {.data = NULL};
    char key[RECORD_KEY_MAX];

    inc.incarnation = r->highest + 1;
    inc.world_size = inc.world_size ? inc.world_size : 1;
    snprintf(inc.start_id, sizeof inc.start_id, "%s", START_ID);
    int code = record_incarnation_encode(&inc, &value, &err);
    if (code < 0) {
        bytes_free(&value);
        rebuild_fail(r, code, &err);
        return;
    }
    record_key_job(key, r->job, "incarnation");
    struct cairn_compare same = {key, r->view.inc_revision};
    struct cairn_put put = {key, value.data, value.len, 0};
    struct cairn_txn txn = {.compares = &same, .ncompares = 1, .puts = &put, .nputs = 1};
    r->req = (struct meta_req){.done = incarnation_put, .arg = r};
    meta_txn(r->node->deps.meta, &txn, r->node->config.meta_ms, &r->req);
    bytes_free(&value);
}

static void job_read(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct rebuild *r = req->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;

    view_free(&r->view);
    int code = view_read(&r->view, r->job, result, &err);
    if (code < 0)
        rebuild_fail(r, code, &err);
    else if (r->view.inc.incarnation < r->highest ||
             (r->inv.strange && r->view.inc.incarnation == r->highest)) /* the same number, given twice */
        raise_incarnation(r);
    else
        job_known(r);
}

static void begin_job(struct rebuild *r, const char *job)
{
    char prefix[RECORD_KEY_MAX];

    snprintf(r->job, sizeof r->job, "%s", job);
    r->highest = 0;
    for (size_t i = r->at; i < r->inv.n && strcmp(r->inv.items[i].stream.job, job) == 0; i++)
        if (r->inv.items[i].stream.incarnation > r->highest)
            r->highest = r->inv.items[i].stream.incarnation;
    record_key_job(prefix, r->job, "");
    r->req = (struct meta_req){.done = job_read, .arg = r};
    meta_list(r->node->deps.meta, prefix, r->node->config.meta_ms, &r->req);
}

static void next_checkpoint(struct rebuild *r)
{
    if (rebuild_stopped(r))
        return;
    if (r->at == r->inv.n && r->inv.job[0]) {
        rebuild_end(r); /* other jobs are still unknown here: the peers go on refusing */
        return;
    }
    if (r->at == r->inv.n) {
        accept_next(r);
        return;
    }
    const struct stored *s = &r->inv.items[r->at];
    if (strcmp(r->job, s->stream.job) != 0) {
        begin_job(r, s->stream.job);
        return;
    }
    for (r->end = r->at; r->end < r->inv.n && stored_together(s, &r->inv.items[r->end]); r->end++)
        ;
    ptrdiff_t known = view_find(&r->view, s->stream.step, s->stream.incarnation);
    r->why[0] = 0;
    r->try = r->at;
    int fate = known >= 0 ? r->view.known[known].fate : KNOWN_UNDECIDED;
    if (fate != KNOWN_UNDECIDED && fate != KNOWN_ABORTED)
        checkpoint_done(r, "present");
    else
        try_next(r);
}

/* ---- the beginning --------------------------------------------------------------------------- */

static void inventoried(struct inventory *inv, int code, const struct cairn_error *err)
{
    struct rebuild *r = inv->arg;

    if (code < 0)
        rebuild_fail(r, code, err);
    else
        next_checkpoint(r);
}

static void engine_read(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct rebuild *r = req->arg;
    struct record_engine rec;
    struct cairn_error err = CAIRN_ERROR_INIT;
    int code = result->code < 0 ? meta_failed(result, &err, "read the engine's id") : 0;

    if (code == 0 && result->nkvs == 0)
        code = cairn_fail(&err, CAIRN_E_UNAVAILABLE, "no peer has given the metadata engine an id yet: run it again");
    if (code == 0)
        code = record_engine_decode(&rec, result->kvs[0].value, result->kvs[0].value_len, &err);
    if (code < 0) {
        rebuild_fail(r, code, &err);
        return;
    }
    snprintf(r->inv.engine, sizeof r->inv.engine, "%s", rec.id);
    inventory_start(&r->inv);
}

static void read_engine(struct rebuild *r)
{
    char key[RECORD_KEY_MAX];

    record_key_engine(key);
    r->req = (struct meta_req){.done = engine_read, .arg = r};
    meta_get(r->node->deps.meta, key, r->node->config.meta_ms, &r->req);
}

static void rebuild_stop(struct node_work *w)
{
    container_of(w, struct rebuild, work)->inv.stop = true;
}

static void too_late(struct loop_timer *t)
{
    ((struct rebuild *)t->arg)->late = true;
}

void command_rebuild(struct query *q)
{
    struct rebuild *r = calloc(1, sizeof *r);
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (!r) {
        query_fail(q, cairn_fail(&err, CAIRN_E_NOMEM, "allocate a rebuild"), &err);
        return;
    }
    r->q = q;
    r->node = q->session->node;
    r->jobs = json_array();
    r->checkpoints = json_array();
    r->inv.links = r->node->links;
    snprintf(r->inv.job, sizeof r->inv.job, "%s", q->job);
    r->inv.done = inventoried;
    r->inv.arg = r;
    r->work.stop = rebuild_stop;
    list_push_back(&r->node->work, &r->work.link);
    r->deadline = (struct loop_timer){.fire = too_late, .arg = r};
    loop_timer_after(r->node->deps.loop, &r->deadline, q->timeout_ms);
    read_engine(r);
}
