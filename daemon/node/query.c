/* SPDX-License-Identifier: Apache-2.0 */
/* Answers to CAIRN_QUERY_*: JSON as docs/json.md describes it, handed over in a memfd so that no message bounds it. */
#include "daemon/node/codecs.h"
#include "daemon/node/query_internal.h"

#include "core/base/error.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct query *query_new(struct session *s, uint32_t id, int kind, const char *job, uint64_t step, uint32_t timeout_ms)
{
    struct query *q = calloc(1, sizeof *q);

    if (!q)
        return NULL;
    q->session = s;
    q->id = id;
    q->kind = kind;
    q->step = step;
    q->timeout_ms = timeout_ms ? timeout_ms : 30000;
    snprintf(q->job, sizeof q->job, "%s", job);
    q->started_ns = loop_now_ns(s->node->deps.loop);
    s->pending++;
    s->nqueries++;
    return q;
}

static void query_free(struct query *q)
{
    struct session *s = q->session;

    if (q->checkpoint)
        checkpoint_unref(q->checkpoint);
    hold_release(q->open.ret_hold);
    if (q->bad)
        json_decref(q->bad);
    free(q->checks);
    free(q);
    s->nqueries--;
    session_pending_end(s);
}

void query_fail(struct query *q, int code, const struct cairn_error *err)
{
    session_answer_error(q->session, q->id, code, err);
    query_free(q);
}

void query_answer(struct query *q, json_t *object)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct local_answer m = {0};
    char *text = object ? json_dumps(object, JSON_COMPACT) : NULL;
    int fd = -1;
    int r = text ? sealed_memfd("cairn-answer", text, strlen(text), &fd, &err)
                 : cairn_fail(&err, CAIRN_E_NOMEM, "write the answer as JSON");

    json_decref(object);
    if (r < 0) {
        free(text);
        query_fail(q, r, &err);
        return;
    }
    m.len = strlen(text);
    free(text);
    local_header_init(&m.h, LOCAL_ANSWER, sizeof m, q->id);
    session_send(q->session, &m, sizeof m, &fd, 1);
    query_free(q);
}

void query_set(json_t *object, const char *key, json_t *value)
{
    json_object_set_new(object, key, value ? value : json_null());
}

/* ---- STATUS ---------------------------------------------------------------------------------- */

static json_t *status_peers(struct links *links)
{
    struct link_status st[256];
    unsigned n = links_status(links, st, 256);
    json_t *list = json_array();

    for (unsigned i = 0; i < n && i < 256; i++) {
        json_t *o = json_object();
        query_set(o, "peer", json_string(st[i].peer));
        query_set(o, "state", json_string(st[i].state));
        query_set(o, "total_bytes", json_integer((json_int_t)st[i].total_bytes));
        query_set(o, "free_bytes", json_integer((json_int_t)st[i].free_bytes));
        query_set(o, "fragments_sent", json_integer((json_int_t)st[i].fragments_sent));
        query_set(o, "fragments_read", json_integer((json_int_t)st[i].fragments_read));
        query_set(o, "failures", json_integer((json_int_t)st[i].failures));
        query_set(o, "avoided_ms", json_integer(st[i].avoided_ms));
        query_set(o, "late", json_boolean(st[i].late));
        query_set(o, "store_late_ms", json_integer(st[i].store_late_ms));
        query_set(o, "read_late_ms", json_integer(st[i].read_late_ms));
        query_set(o, "last_error", json_string(st[i].last_error));
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *status_transfer(struct links *links)
{
    const struct links_counts *c = links_counts(links);
    json_t *o = json_object();

    query_set(o, "fragments_spared", json_integer((json_int_t)c->fragments_spared));
    query_set(o, "fragments_dropped", json_integer((json_int_t)c->fragments_dropped));
    query_set(o, "fragments_left", json_integer((json_int_t)c->fragments_left));
    query_set(o, "reads_hedged", json_integer((json_int_t)c->reads_hedged));
    return o;
}

static json_t *status_restore(struct node *node)
{
    const struct links_counts *l = links_counts(node->links);
    const struct fanout_counts *f = fanout_counts(node->fanout);
    const struct restore_counts *r = &node->restored;
    uint64_t bytes, limit;
    json_t *o = json_object();

    fanout_usage(node->fanout, &bytes, &limit);
    query_set(o, "open", json_integer(node->nrestores));
    query_set(o, "reads", json_integer((json_int_t)r->reads));
    query_set(o, "read_bytes", json_integer((json_int_t)l->read_bytes));
    query_set(o, "decoded_bytes", json_integer((json_int_t)l->decoded_bytes));
    query_set(o, "parts_rebuilt", json_integer((json_int_t)l->parts_rebuilt));
    query_set(o, "delivered_bytes", json_integer((json_int_t)r->delivered_bytes));
    query_set(o, "shared_chunks", json_integer((json_int_t)f->shared_chunks));
    query_set(o, "shared_bytes", json_integer((json_int_t)f->shared_bytes));
    query_set(o, "hot_bytes", json_integer((json_int_t)r->hot_bytes));
    query_set(o, "in_place_bytes", json_integer((json_int_t)r->in_place_bytes));
    query_set(o, "fanout_bytes", json_integer((json_int_t)bytes));
    query_set(o, "fanout_limit_bytes", json_integer((json_int_t)limit));
    return o;
}

static json_t *status_codec(const struct codec_status *c)
{
    json_t *o = json_object();

    query_set(o, "codec", json_string(c->name));
    query_set(o, "allowed", json_boolean(c->allowed));
    query_set(o, "plain_bytes", json_integer((json_int_t)c->plain));
    query_set(o, "coded_bytes", json_integer((json_int_t)c->coded));
    query_set(o, "seconds", json_real((double)c->ns * 1e-9));
    return o;
}

static json_t *status_encode(struct links *links)
{
    const struct links_counts *c = links_counts(links);
    struct codecs_status st;
    json_t *o = json_object(), *list = json_array();

    codecs_status(links_codecs(links), &st);
    for (unsigned i = 0; i < st.n; i++)
        json_array_append_new(list, status_codec(&st.codec[i]));
    query_set(o, "codecs", list);
    query_set(o, "path_bytes_per_s", st.path_rate ? json_integer((json_int_t)st.path_rate) : json_null());
    query_set(o, "hashed_bytes", json_integer((json_int_t)st.hashed));
    query_set(o, "copied_bytes", json_integer((json_int_t)st.copied));
    query_set(o, "parity_bytes", json_integer((json_int_t)st.parity));
    query_set(o, "sent_in_place_bytes", json_integer((json_int_t)st.sent_in_place));
    query_set(o, "sent_from_buffer_bytes", json_integer((json_int_t)st.sent_of_buffer));
    query_set(o, "early_bytes", json_integer((json_int_t)c->early_bytes));
    query_set(o, "shared_bytes", json_integer((json_int_t)c->shared_bytes));
    query_set(o, "compared_bytes", json_integer((json_int_t)c->compared_bytes));
    query_set(o, "packed_bytes", json_integer((json_int_t)c->packed_bytes));
    query_set(o, "packed_plain_bytes", json_integer((json_int_t)c->packed_plain_bytes));
    return o;
}

static json_t *milliseconds(int64_t ns)
{
    return json_integer((json_int_t)(ns / 1000000));
}

/* One that is paced says how far its plan is, and how far it is ahead of that; any other why it is not paced. */
static json_t *status_flush(const struct flush_status *f)
{
    const struct drain_status *d = &f->drain;
    const struct cairn_pace *p = &d->pace;
    bool paced = p->why == CAIRN_PACED, planned = p->end_ns > 0;
    json_t *o = json_object();

    query_set(o, "job", json_string(f->job));
    query_set(o, "step", json_integer((json_int_t)f->step));
    query_set(o, "rank", json_integer(f->rank));
    query_set(o, "parts", json_integer(d->parts));
    query_set(o, "taken_parts", json_integer(d->taken_parts));
    query_set(o, "shared_parts", json_integer(d->shared_parts));
    query_set(o, "in_place_parts", json_integer(d->in_place_parts));
    query_set(o, "early_parts", json_integer(d->early_parts));
    query_set(o, "durable_parts", json_integer(d->durable_parts));
    query_set(o, "durable", json_boolean(f->durable));
    query_set(o, "paced", json_boolean(paced));
    query_set(o, "full_speed_because", paced ? json_null() : json_string(cairn_pace_why_text(p->why)));
    query_set(o, "plan_ms", planned ? milliseconds((int64_t)(p->end_ns - p->begin_ns)) : json_null());
    query_set(o, "elapsed_ms", planned ? milliseconds((int64_t)(d->now_ns - p->begin_ns)) : json_null());
    query_set(o, "ahead_ms", paced ? milliseconds(cairn_pace_ahead_ns(p, d->now_ns)) : json_null());
    return o;
}

static json_t *status_pace(const struct node_config *c)
{
    json_t *o = json_object();

    query_set(o, "rate_bytes_s", json_integer((json_int_t)c->rate));
    query_set(o, "peer_rate_bytes_s", json_integer((json_int_t)c->peer_rate));
    query_set(o, "spread", json_boolean(c->spread));
    return o;
}

static json_t *status_flushes(struct jobs *jobs)
{
    struct flush_status st[256];
    unsigned n = jobs_flushes(jobs, st, 256);
    json_t *list = json_array();

    for (unsigned i = 0; i < n; i++)
        json_array_append_new(list, status_flush(&st[i]));
    return list;
}

static json_t *status_jobs(struct jobs *jobs)
{
    struct job_status st[256];
    unsigned n = jobs_status(jobs, st, 256);
    json_t *list = json_array();

    for (unsigned i = 0; i < n && i < 256; i++) {
        json_t *o = json_object();
        query_set(o, "job", json_string(st[i].job));
        query_set(o, "incarnation", json_integer((json_int_t)st[i].incarnation));
        query_set(o, "world_size", json_integer(st[i].world_size));
        query_set(o, "members", json_integer(st[i].members));
        query_set(o, "coordinator", st[i].coordinator[0] ? json_string(st[i].coordinator) : json_null());
        query_set(o, "nodes", json_integer(st[i].nodes));
        query_set(o, "checkpoints_open", json_integer(st[i].checkpoints_open));
        query_set(o, "committed", json_integer((json_int_t)st[i].committed));
        query_set(o, "aborted", json_integer((json_int_t)st[i].aborted));
        query_set(o, "common_mismatches", json_integer((json_int_t)st[i].common_mismatches));
        query_set(o, "last_committed_step", json_integer((json_int_t)st[i].last_committed_step));
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *status_sessions(struct node *node)
{
    json_t *list = json_array();

    list_for_each (it, &node->sessions) {
        const struct session *s = container_of(it, struct session, link);
        if (s->closed || !s->opened || s->observer)
            continue;
        json_t *o = json_object();
        query_set(o, "job", json_string(s->job));
        query_set(o, "rank", json_integer(s->rank));
        query_set(o, "pid", json_integer(s->pid));
        query_set(o, "incarnation", json_integer((json_int_t)(s->member ? member_incarnation(s->member) : 0)));
        query_set(o, "arena_bytes", json_integer((json_int_t)(s->arena ? s->arena->bytes : 0)));
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *status_arena(struct node *node)
{
    uint64_t bytes, limit, used_pages = 0;
    json_t *o = json_object();

    arenas_usage(node->arenas, &bytes, &limit);
    list_for_each (it, arenas_list(node->arenas)) {
        const struct arena *a = container_of(it, struct arena, link);
        used_pages += a->npages - a->nfree - a->nkept;
    }
    query_set(o, "bytes", json_integer((json_int_t)bytes));
    query_set(o, "used_bytes", json_integer((json_int_t)(used_pages << 20)));
    query_set(o, "limit_bytes", json_integer((json_int_t)limit));
    return o;
}

static void query_status(struct query *q)
{
    struct node *node = q->session->node;
    json_t *o = json_object();

    query_set(o, "v", json_integer(1));
    query_set(o, "node", json_string(node->id));
    if (node->describe)
        node->describe(node->describe_arg, o);
    query_set(o, "arena", status_arena(node));
    query_set(o, "sessions", status_sessions(node));
    query_set(o, "jobs", status_jobs(node->jobs));
    query_set(o, "pace", status_pace(&node->config));
    query_set(o, "flushes", status_flushes(node->jobs));
    query_set(o, "peers", status_peers(node->links));
    query_set(o, "transfer", status_transfer(node->links));
    query_set(o, "restore", status_restore(node));
    query_set(o, "encode", status_encode(node->links));
    query_answer(q, o);
}

/* ---- LIST ------------------------------------------------------------------------------------ */

static json_t *list_checkpoint(const struct listed *l)
{
    json_t *o = json_object();
    const struct record_decision *d = &l->decision;

    query_set(o, "step", json_integer((json_int_t)l->step));
    query_set(o, "incarnation", json_integer((json_int_t)l->incarnation));
    query_set(o, "state", json_string(l->state));
    query_set(o, "world_size", json_integer(d->world_size));
    query_set(o, "plain_bytes", json_integer((json_int_t)d->plain_bytes));
    query_set(o, "stored_bytes", json_integer((json_int_t)d->stored_bytes));
    query_set(o, "created_unix_ms", json_integer((json_int_t)d->created_unix_ms));
    query_set(o, "nonfinite", d->counted ? json_integer((json_int_t)d->nonfinite) : json_null());
    query_set(o, "reason", d->reason[0] ? json_string(d->reason) : json_null());
    query_set(o, "pins", json_integer(l->pins));
    query_set(o, "readers", json_integer(l->readers));
    query_set(o, "resume", json_boolean(l->resume));
    return o;
}

/* One that has a tombstone, while files of it may still be there. */
static json_t *list_deleted(const struct listed *l)
{
    json_t *o = json_object();

    query_set(o, "step", json_integer((json_int_t)l->step));
    query_set(o, "incarnation", json_integer((json_int_t)l->incarnation));
    query_set(o, "deleted_unix_ms", json_integer((json_int_t)l->deleted_unix_ms));
    return o;
}

static void list_finish(struct query *q, json_t *o, json_t *list, json_t *deleting, const struct listed *latest)
{
    if (q->job[0]) {
        query_set(o, "job", json_string(q->job));
        query_set(o, "latest", latest ? json_integer((json_int_t)latest->step) : json_null());
        query_set(o, "retention", json_string(q->list.ret_rule));
        query_set(o, "checkpoints", list);
        query_set(o, "deleting", deleting);
    } else {
        query_set(o, "jobs", list);
        json_decref(deleting);
    }
    query_answer(q, o);
}

static void query_listed(struct list_request *r, int code, const struct cairn_error *err, const struct listed *items,
                         size_t n)
{
    struct query *q = r->arg;
    json_t *o, *list, *deleting;
    const struct listed *latest = NULL;

    if (code < 0) {
        query_fail(q, code, err);
        return;
    }
    o = json_object();
    list = json_array();
    deleting = json_array();
    query_set(o, "v", json_integer(1));
    for (size_t i = 0; i < n; i++) {
        bool newer = !latest || items[i].incarnation > latest->incarnation ||
                     (items[i].incarnation == latest->incarnation && items[i].step > latest->step);
        if (q->job[0] && newer && strcmp(items[i].state, "committed") == 0)
            latest = &items[i];
        if (!q->job[0])
            json_array_append_new(list, json_string(items[i].job));
        else if (items[i].deleted_unix_ms)
            json_array_append_new(deleting, list_deleted(&items[i]));
        else
            json_array_append_new(list, list_checkpoint(&items[i]));
    }
    list_finish(q, o, list, deleting, latest);
}

static void query_list(struct query *q)
{
    snprintf(q->list.job, sizeof q->list.job, "%s", q->job);
    q->list.timeout_ms = q->timeout_ms;
    q->list.done = query_listed;
    q->list.arg = q;
    jobs_list(q->session->node->jobs, &q->list);
}

/* ---- SHOW and VERIFY begin alike ------------------------------------------------------------- */

static void query_opened(struct open_request *r, int code, const struct cairn_error *err, struct checkpoint *c)
{
    struct query *q = r->arg;

    if (code < 0) {
        query_fail(q, code, err);
        return;
    }
    q->checkpoint = c;
    if (q->kind == CAIRN_QUERY_SHOW)
        query_answer(q, query_describe_checkpoint(c));
    else
        query_verify(q);
}

static void query_open(struct query *q)
{
    snprintf(q->open.job, sizeof q->open.job, "%s", q->job);
    q->open.step = q->step;
    q->open.timeout_ms = q->timeout_ms;
    q->open.done = query_opened;
    q->open.arg = q;
    jobs_open(q->session->node->jobs, &q->open);
}

void session_on_query(struct session *s, const struct local_query *m)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct query *q = NULL;
    int r = 0;

    if (m->kind < CAIRN_QUERY_STATUS || m->kind > CAIRN_QUERY_VERIFY)
        r = cairn_fail(&err, CAIRN_E_UNSUPPORTED, "query of kind %u: this cairnd knows 1 to %d", m->kind,
                       CAIRN_QUERY_VERIFY);
    else if (m->kind >= CAIRN_QUERY_SHOW && !m->job[0])
        r = cairn_fail(&err, CAIRN_E_INVAL, "this query needs a job");
    else if (s->nqueries >= SESSION_MAX_QUERIES)
        r = cairn_fail(&err, CAIRN_E_BUSY, "%u queries of this session are under way", s->nqueries);
    else if (!(q = query_new(s, m->h.id, (int)m->kind, m->job, m->step, m->timeout_ms)))
        r = cairn_fail(&err, CAIRN_E_NOMEM, "allocate a query");
    if (r < 0)
        session_answer_error(s, m->h.id, r, &err);
    else if (m->kind == CAIRN_QUERY_STATUS)
        query_status(q);
    else if (m->kind == CAIRN_QUERY_LIST)
        query_list(q);
    else
        query_open(q);
}
