/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/node/repair.h"

#include "core/base/error.h"
#include "daemon/io/log.h"
#include "daemon/node/job_internal.h"
#include "daemon/node/query_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define AT_ONCE 3 /* stripes: each may hold 2k + m parts */
#define LOAD_MS 60000

enum unit_state { UNIT_FREE, UNIT_SURVEY, UNIT_PACED, UNIT_MENDING };
struct unit {
    enum unit_state state;
    struct repair *repair;
    struct stripe_repair stripe;
};

struct counts {
    uint64_t fragments, missing, corrupt, away, repaired, unplaced, lost_chunks;
    uint64_t copies_added, copies_missing, bytes;
};

struct repair {
    struct node_work work;
    struct node *node;
    struct repair_request q;
    bool stopping, listing, holding, loading, copying;
    struct list_request list;
    struct listed *items; /* committed ones, the newest first */
    size_t nitems, next;
    struct hold *hold; /* on the one being repaired: it is not deleted meanwhile */
    struct hold_waiter hold_waiter;
    struct load_waiter load;
    struct checkpoint *c; /* being repaired; referenced */
    uint32_t shard, chunk;
    uint32_t copies; /* of which blob: manifests by rank, the root, the decision */
    struct blob_repair blob;
    struct blob_ref decision_ref;
    struct bytes decision;
    struct unit units[AT_ONCE];
    struct loop_timer pace, deadline;
    uint64_t next_ns; /* when the next stripe may be mended */
    struct counts now, all;
    char why[WIRE_TEXT]; /* the first thing of this checkpoint that could not be done */
    json_t *checkpoints, *peers;
    int code;
    struct cairn_error err;
    struct loop_post post;
    bool posted;
};

static void step_soon(struct repair *r);

static struct loop *loop_of(struct repair *r)
{
    return r->node->deps.loop;
}

/* ---- the report ------------------------------------------------------------------------------ */

static void report_counts(json_t *o, const struct counts *n)
{
    query_set(o, "fragments", json_integer((json_int_t)n->fragments));
    query_set(o, "missing", json_integer((json_int_t)n->missing));
    query_set(o, "corrupt", json_integer((json_int_t)n->corrupt));
    query_set(o, "repaired", json_integer((json_int_t)n->repaired));
    query_set(o, "unplaced", json_integer((json_int_t)n->unplaced));
    query_set(o, "lost_chunks", json_integer((json_int_t)n->lost_chunks));
    query_set(o, "copies_added", json_integer((json_int_t)n->copies_added));
    query_set(o, "copies_missing", json_integer((json_int_t)n->copies_missing));
    query_set(o, "bytes", json_integer((json_int_t)n->bytes));
}

static void add_counts(struct counts *to, const struct counts *n)
{
    to->fragments += n->fragments;
    to->missing += n->missing;
    to->corrupt += n->corrupt;
    to->away += n->away;
    to->repaired += n->repaired;
    to->unplaced += n->unplaced;
    to->lost_chunks += n->lost_chunks;
    to->copies_added += n->copies_added;
    to->copies_missing += n->copies_missing;
    to->bytes += n->bytes;
}

static void report_peer(struct repair *r, const char *peer, uint64_t bytes)
{
    json_t *o = json_object_get(r->peers, peer);

    if (!o) {
        json_object_set_new(r->peers, peer, json_object());
        o = json_object_get(r->peers, peer);
    }
    query_set(o, "fragments", json_integer(json_integer_value(json_object_get(o, "fragments")) + 1));
    query_set(o, "bytes", json_integer(json_integer_value(json_object_get(o, "bytes")) + (json_int_t)bytes));
}

static void note_why(struct repair *r, const struct cairn_error *err)
{
    if (!r->why[0])
        snprintf(r->why, sizeof r->why, "%.*s", WIRE_TEXT - 1, err->message);
}

static void report_checkpoint(struct repair *r, const struct listed *l)
{
    const struct counts *n = &r->now;
    json_t *o = json_object();

    query_set(o, "step", json_integer((json_int_t)l->step));
    query_set(o, "incarnation", json_integer((json_int_t)l->incarnation));
    report_counts(o, n);
    query_set(o, "error", r->why[0] ? json_string(r->why) : json_null());
    json_array_append_new(r->checkpoints, o);
    if (n->repaired || n->copies_added || n->lost_chunks || n->unplaced)
        log_line(
            n->lost_chunks ? LOG_ERROR : LOG_NOTICE,
            "repair of %s step %llu: %llu fragments made again, %llu copies added, %llu without a place, %llu chunks "
            "lost",
            r->q.job, (unsigned long long)l->step, (unsigned long long)n->repaired, (unsigned long long)n->copies_added,
            (unsigned long long)n->unplaced, (unsigned long long)n->lost_chunks);
    if (n->lost_chunks || r->why[0]) /* also when its manifests cannot be read: whoever refers to it needs them */
        jobs_distrust(r->node->jobs, r->q.job, l->step, l->incarnation);
    add_counts(&r->all, n);
}

static void finish(struct repair *r)
{
    json_t *o = json_object();

    query_set(o, "v", json_integer(1));
    query_set(o, "job", json_string(r->q.job));
    report_counts(o, &r->all);
    query_set(o, "checkpoints", r->checkpoints);
    query_set(o, "peers", r->peers);
    loop_timer_cancel(loop_of(r), &r->pace);
    loop_timer_cancel(loop_of(r), &r->deadline);
    list_remove(&r->work.link);
    free(r->items);
    bytes_free(&r->decision);
    r->q.done(r->q.arg, r->code, &r->err, o);
    free(r);
}

static void fail(struct repair *r, int code, const struct cairn_error *err)
{
    if (r->code == 0)
        cairn_error_copy(&r->err, err);
    r->code = r->code ? r->code : code;
    r->stopping = true;
    step_soon(r);
}

/* ---- stripes --------------------------------------------------------------------------------- */

static void stripe_done(struct stripe_repair *s)
{
    struct unit *u = s->arg;
    struct repair *r = u->repair;
    struct cairn_error err = CAIRN_ERROR_INIT;
    unsigned wanted = s->plan.missing - s->plan.homeless;

    if (u->state == UNIT_SURVEY) {
        r->now.fragments += (unsigned)s->c->k + s->c->m;
        r->now.missing += s->missing;
        r->now.corrupt += s->corrupt;
        r->now.away += s->away;
        r->now.unplaced += s->verdict == REPAIR_POSSIBLE ? s->plan.homeless : 0;
        if (s->verdict == REPAIR_LOST) {
            r->now.lost_chunks++;
            cairn_fail(&err, CAIRN_E_CORRUPT, "the chunk at part %u of rank %u has %u fragments left, it needs %u",
                       s->c->first_part, s->manifest->rank, s->c->k + s->c->m - s->plan.missing, s->c->k);
            note_why(r, &err);
        }
        u->state = s->verdict == REPAIR_POSSIBLE && wanted > 0 ? UNIT_PACED : UNIT_FREE;
        step_soon(r);
        return;
    }
    r->now.repaired += s->repaired;
    r->now.bytes += s->bytes;
    r->now.unplaced += wanted - s->repaired;
    for (unsigned i = 0; i < (unsigned)s->c->k + s->c->m; i++)
        if (stripe_went_to(s, i))
            report_peer(r, stripe_went_to(s, i), s->frags[i].put.record_len);
    if (s->code < 0)
        note_why(r, &s->err);
    u->state = UNIT_FREE;
    step_soon(r);
}

/* The next chunk of the checkpoint; false when all were begun. */
static bool next_chunk(struct repair *r, const struct manifest **ret_manifest, uint32_t *ret_chunk)
{
    for (; r->shard < r->c->root.world_size; r->shard++, r->chunk = 0) {
        const struct manifest *m = &r->c->manifests[r->shard];
        while (r->chunk < m->nchunks &&
               m->chunks[r->chunk].same) /* its fragments are its base's, which is repaired too */
            r->chunk++;
        if (r->chunk >= m->nchunks)
            continue;
        *ret_manifest = m;
        *ret_chunk = r->chunk++;
        return true;
    }
    return false;
}

static void paced(struct loop_timer *t)
{
    step_soon(t->arg);
}

static void unit_mend(struct repair *r, struct unit *u)
{
    uint64_t now = loop_now_ns(loop_of(r)), rate = (uint64_t)r->node->config.repair_mib_s << 20;

    if (now < r->next_ns) {
        loop_timer_set(loop_of(r), &r->pace, r->next_ns);
        return;
    }
    r->next_ns = now + stripe_cost(&u->stripe) * 1000000000u / rate;
    u->state = UNIT_MENDING;
    stripe_mend(&u->stripe);
}

static void unit_survey(struct repair *r, struct unit *u)
{
    const struct manifest *m;
    uint32_t chunk;

    if (!next_chunk(r, &m, &chunk))
        return;
    u->state = UNIT_SURVEY;
    u->stripe = (struct stripe_repair){.links = r->node->links,
                                       .manifest = m,
                                       .chunk = chunk,
                                       .quick = r->q.quick,
                                       .is_away = r->q.is_away,
                                       .is_away_arg = r->q.is_away_arg,
                                       .done = stripe_done,
                                       .arg = u};
    stripe_survey(&u->stripe);
}

/* False when nothing of any stripe is under way or left. */
static bool stripes_step(struct repair *r)
{
    bool busy = false;

    for (unsigned i = 0; i < AT_ONCE; i++) {
        struct unit *u = &r->units[i];
        if (u->state == UNIT_PACED && r->stopping)
            u->state = UNIT_FREE;
        else if (u->state == UNIT_PACED)
            unit_mend(r, u);
        if (u->state == UNIT_FREE && !r->stopping)
            unit_survey(r, u);
        busy |= u->state != UNIT_FREE;
    }
    return busy;
}

/* ---- copies of manifests, root and decision -------------------------------------------------- */

static void copies_done(struct blob_repair *b)
{
    struct repair *r = b->arg;

    r->copying = false;
    r->now.copies_added += b->added;
    r->now.copies_missing += b->wanted > b->found + b->added ? b->wanted - b->found - b->added : 0;
    for (unsigned i = 0; i < b->added; i++)
        report_peer(r, b->placed.peer[i], b->ref->len);
    r->now.bytes += b->added * b->ref->len;
    if (b->code < 0)
        note_why(r, &b->err);
    step_soon(r);
}

/* A copy of the decision is its record as it lies in the metadata. */
static const void *decision_bytes(struct repair *r)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    bytes_free(&r->decision);
    if (record_decision_encode(&r->c->decision, &r->decision, &err) < 0) {
        note_why(r, &err);
        return NULL;
    }
    r->decision_ref = (struct blob_ref){.len = r->decision.len};
    sha256(r->decision.data, r->decision.len, r->decision_ref.sha256);
    return r->decision.data;
}

/* False when all were begun. */
static bool copies_step(struct repair *r)
{
    uint32_t world = r->c->root.world_size, at = r->copies;
    struct blob_repair *b = &r->blob;
    const char *node = r->c->decision.node;

    if (at > world + 1 || r->stopping)
        return false;
    r->copies++;
    *b = (struct blob_repair){.links = r->node->links,
                              .key = {.step = r->c->root.step, .incarnation = r->c->root.incarnation},
                              .quick = r->q.quick,
                              .is_away = r->q.is_away,
                              .is_away_arg = r->q.is_away_arg,
                              .done = copies_done,
                              .arg = r};
    if (at < world) {
        b->key.kind = FRAGMENT_MANIFEST;
        b->key.rank = at;
        b->ref = &r->c->root.shards[at].manifest;
        node = r->c->root.shards[at].node;
    } else if (at == world) {
        b->key.kind = FRAGMENT_ROOT;
        b->ref = &r->c->decision.root;
    } else {
        b->key.kind = FRAGMENT_DECISION;
        b->ref = &r->decision_ref;
        b->data = decision_bytes(r);
        if (!b->data)
            return copies_step(r);
    }
    if (b->key.kind != FRAGMENT_DECISION)
        b->key.attempt = blob_attempt(b->ref->sha256);
    snprintf(b->key.job, sizeof b->key.job, "%s", r->c->root.job);
    snprintf(b->key.node, sizeof b->key.node, "%s", node);
    r->copying = true;
    blob_repair_start(b);
    return true;
}

/* ---- one checkpoint -------------------------------------------------------------------------- */

static void end_streams_of(struct repair *r, const char *node)
{
    struct stream_key key = {.step = r->c->root.step, .incarnation = r->c->root.incarnation};
    struct link *all[LINKS_MAX];
    unsigned n = links_all(r->node->links, all, LINKS_MAX);

    snprintf(key.job, sizeof key.job, "%s", r->c->root.job);
    snprintf(key.repaired, sizeof key.repaired, "%s", node);
    for (unsigned i = 0; i < n; i++)
        link_end_repair(all[i], &key);
}

static void checkpoint_end(struct repair *r)
{
    const struct listed *l = &r->items[r->next++];
    const struct counts *n = &r->now;

    for (uint32_t i = 0; i < r->c->root.world_size; i++)
        if (i == 0 || strcmp(r->c->root.shards[i].node, r->c->root.shards[i - 1].node) != 0)
            end_streams_of(r, r->c->root.shards[i].node);
    end_streams_of(r, r->c->decision.node);
    checkpoint_unref(r->c);
    r->c = NULL;
    hold_release(TAKE_PTR(r->hold));
    report_checkpoint(r, l);
    if (!r->stopping && r->q.was_whole && !n->missing && !n->corrupt && !n->away && !n->copies_missing && !r->why[0])
        r->q.was_whole(r->q.skip_arg, l);
}

static void loaded(struct load_waiter *w, int code, const struct cairn_error *err, struct checkpoint *c)
{
    struct repair *r = container_of(w, struct repair, load);

    r->loading = false;
    if (code == 0) {
        r->c = checkpoint_ref(c);
    } else { /* its manifests are lost, or not reachable now: the older ones may be better off */
        note_why(r, err);
        hold_release(TAKE_PTR(r->hold));
        report_checkpoint(r, &r->items[r->next++]);
    }
    step_soon(r);
}

static void checkpoint_load(struct repair *r)
{
    const struct listed *l = &r->items[r->next];
    struct load_key key = {l->job, l->step, l->incarnation};
    struct cairn_error err = CAIRN_ERROR_INIT;

    r->load.done = loaded;
    r->loading = true;
    struct checkpoint *cached = load_cached(r->node->jobs, &key);
    if (cached)
        loaded(&r->load, 0, NULL, cached);
    else if (load_start(r->node->jobs, &key, &l->decision, LOAD_MS, &r->load, &err) < 0)
        loaded(&r->load, err.code, &err, NULL);
}

static void held(struct hold_waiter *w, int code, const struct cairn_error *err)
{
    struct repair *r = container_of(w, struct repair, hold_waiter);

    r->holding = false;
    if (code == 0) {
        checkpoint_load(r);
        return;
    }
    hold_release(TAKE_PTR(r->hold));
    if (code == CAIRN_E_NOT_FOUND) { /* deleted since it was listed */
        r->next++;
        step_soon(r);
    } else {
        r->loading = true;
        loaded(&r->load, code, err, NULL);
    }
}

/* Also one that is committed, and whose late fragments are still being stored. */
static bool under_way(struct repair *r, const struct listed *l)
{
    const struct job *job = jobs_find(r->node->jobs, l->job);

    return job && (job_find_run(job, l->step, l->incarnation) || job_find_decider(job, l->step, l->incarnation));
}

/* False when there is none left. */
static bool checkpoint_begin(struct repair *r)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (r->stopping)
        return false; /* the jobs may be gone already */
    while (r->next < r->nitems &&
           (under_way(r, &r->items[r->next]) || (r->q.skip && r->q.skip(r->q.skip_arg, &r->items[r->next]))))
        r->next++;
    if (r->next == r->nitems)
        return false;
    const struct listed *l = &r->items[r->next];
    struct load_key key = {l->job, l->step, l->incarnation};
    r->shard = r->chunk = r->copies = 0;
    r->now = (struct counts){.fragments = 0};
    r->why[0] = 0;
    r->hold_waiter.done = held;
    r->holding = true;
    int code = hold_take(r->node->jobs, &key, l->decision_revision, &r->hold_waiter, &r->hold, &err);
    if (code != 0)
        held(&r->hold_waiter, code < 0 ? code : 0, &err);
    return true;
}

static void step(struct loop_post *post)
{
    struct repair *r = post->arg;

    r->posted = false;
    if (r->listing || r->holding || r->loading || r->copying)
        return;
    if (r->c) {
        if (stripes_step(r) || copies_step(r))
            return;
        checkpoint_end(r);
    }
    if (!checkpoint_begin(r))
        finish(r);
}

static void step_soon(struct repair *r)
{
    if (r->posted)
        return;
    r->posted = true;
    r->post = (struct loop_post){.run = step, .arg = r};
    loop_defer(loop_of(r), &r->post);
}

/* ---- the beginning --------------------------------------------------------------------------- */

static int newest_first(const void *a, const void *b)
{
    const struct listed *x = a, *y = b;

    if (x->incarnation != y->incarnation)
        return x->incarnation > y->incarnation ? -1 : 1;
    return x->step > y->step ? -1 : x->step < y->step;
}

static void take_list(struct repair *r, const struct listed *items, size_t n)
{
    r->items = calloc(n + 1, sizeof *r->items);
    for (size_t i = 0; r->items && i < n; i++)
        if (strcmp(items[i].state, "committed") == 0 &&
            (!r->q.one || r->q.step == CAIRN_LATEST || items[i].step == r->q.step))
            r->items[r->nitems++] = items[i];
    if (r->nitems > 0)
        qsort(r->items, r->nitems, sizeof *r->items, newest_first);
    if (r->q.one && r->nitems > 1)
        r->nitems = 1;
}

static void listed(struct list_request *request, int code, const struct cairn_error *err, const struct listed *items,
                   size_t n)
{
    struct repair *r = request->arg;
    struct cairn_error own = CAIRN_ERROR_INIT;

    r->listing = false;
    if (code == 0)
        take_list(r, items, n);
    if (code < 0)
        fail(r, code, err);
    else if (!r->items)
        fail(r, cairn_fail(&own, CAIRN_E_NOMEM, "allocate a list of %zu checkpoints", n), &own);
    else if (r->nitems == 0 && r->q.one)
        fail(r, cairn_fail(&own, CAIRN_E_NOT_FOUND, "job %s has no such committed checkpoint", r->q.job), &own);
    step_soon(r);
}

static void too_late(struct loop_timer *t)
{
    struct repair *r = t->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;

    fail(r,
         cairn_fail(&err, CAIRN_E_TIMEOUT, "the repair of %s was not through in %u ms; %llu fragments were made again",
                    r->q.job, r->q.timeout_ms, (unsigned long long)(r->all.repaired + r->now.repaired)),
         &err);
}

static void stop_work(struct node_work *w)
{
    struct repair *r = container_of(w, struct repair, work);
    struct cairn_error err = CAIRN_ERROR_INIT;

    fail(r, cairn_fail(&err, CAIRN_E_ABORTED, "cairnd is stopping"), &err);
}

/* Two of one job would do the same things twice and end each other's streams. One that only looks gives way to one that
 * was asked for. */
static int check_alone(struct node *node, const struct repair_request *request, struct cairn_error *err)
{
    list_for_each (it, &node->work) {
        struct repair *r = container_of(container_of(it, struct node_work, link), struct repair, work);
        if (r->work.stop != stop_work || strcmp(r->q.job, request->job) != 0)
            continue;
        int code = cairn_fail(err, CAIRN_E_BUSY, "a repair of job %s is under way", request->job);
        if (r->q.quick && !request->quick && !r->stopping)
            fail(r, code, err);
        return code;
    }
    return 0;
}

int repair_start(struct node *node, const struct repair_request *request, struct cairn_error *err)
{
    int code = check_alone(node, request, err);
    struct repair *r = code < 0 ? NULL : calloc(1, sizeof *r);

    if (code < 0)
        return code;
    if (!r)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a repair");
    r->node = node;
    r->q = *request;
    r->err = (struct cairn_error)CAIRN_ERROR_INIT;
    r->checkpoints = json_array();
    r->peers = json_object();
    r->pace = (struct loop_timer){.fire = paced, .arg = r};
    r->deadline = (struct loop_timer){.fire = too_late, .arg = r};
    for (unsigned i = 0; i < AT_ONCE; i++)
        r->units[i].repair = r;
    if (r->q.timeout_ms)
        loop_timer_after(loop_of(r), &r->deadline, r->q.timeout_ms);
    r->work.stop = stop_work;
    list_push_back(&node->work, &r->work.link);
    r->listing = true;
    snprintf(r->list.job, sizeof r->list.job, "%s", r->q.job);
    r->list.done = listed;
    r->list.arg = r;
    jobs_list(node->jobs, &r->list);
    return 0;
}
