/* SPDX-License-Identifier: Apache-2.0 */
/* Joining and leaving. Joins of a job are taken one by one, once its records were read:
 *
 *     join -> the start is current: adopt it -> the rank is free -> this node's key names it -> a member
 *          -> unseen: raise the incarnation by a transaction, older members are fenced -> as above
 *          -> replaced, or another start lives here, or the rank is taken here: refused
 *          -> another start lives, or the rank is taken, on another node: its key may be a dead node's, that expires:
 *             read again until the request's deadline, then refused
 *
 * The key is written before the member is one: whoever asks whether a start is alive must not miss it. */
#include "daemon/node/job_internal.h"

#include "core/checkpoint/start.h"
#include "core/model/name.h"
#include "core/model/units.h"
#include "daemon/io/log.h"

#include <stdio.h>
#include <string.h>

#define JOIN_PAUSE_MS 300

/* ---- the end of a request: always from the top of the stack ---------------------------------- */

static void join_finish(struct join_request *r, int code, const struct cairn_error *err, struct member *member)
{
    struct jobs *jobs = r->own.jobs;

    list_remove(&r->own.link);
    loop_timer_cancel(jobs->deps.loop, &r->own.deadline);
    r->done(r, code, err, member);
}

/* Its member was never named by this node's key. */
static void join_undo(struct join_request *r)
{
    struct member *m = TAKE_PTR(r->own.member);

    r->own.named = false;
    if (!m)
        return;
    m->job->roster_changed = true;
    list_remove(&m->link);
    free(m);
}

static void join_posted(struct loop_post *post)
{
    struct join_request *r = post->arg;
    struct jobs *jobs = r->own.jobs;
    struct cairn_error err = r->own.err; /* r may be gone during done */

    jobs->posts--;
    join_finish(r, r->own.code, &err, NULL);
    jobs_maybe_stopped(jobs);
}

static void join_fail_later(struct join_request *r, int code, const struct cairn_error *err)
{
    r->own.code = code;
    cairn_error_copy(&r->own.err, err);
    join_undo(r);
    list_remove(&r->own.link);
    loop_timer_cancel(r->own.jobs->deps.loop, &r->own.deadline);
    r->own.jobs->posts++;
    loop_defer(r->own.jobs->deps.loop, &r->own.post);
}

void job_fail_joins(struct job *job, int code, const struct cairn_error *err)
{
    while (!list_empty(&job->joins))
        join_fail_later(container_of(job->joins.next, struct join_request, own.link), code, err);
    while (!list_empty(&job->enlisting))
        join_fail_later(container_of(job->enlisting.next, struct join_request, own.link), code, err);
}

static void join_late(struct loop_timer *timer)
{
    static const char *const doing[] = {
        [JOB_IDLE] = "other ranks are joining",
        [JOB_READING] = "the metadata engine does not answer",
        [JOB_LEASING] = "the metadata engine does not grant a lease",
        [JOB_CLAIMING] = "the metadata engine does not answer",
        [JOB_RAISING] = "the metadata engine does not answer",
        [JOB_ENLISTING] = "the metadata engine does not answer",
        [JOB_RELEASING] = "the metadata engine does not answer",
    };
    struct join_request *r = timer->arg;
    struct job *job = jobs_find(r->own.jobs, r->job);
    struct cairn_error err = CAIRN_ERROR_INIT;
    int code = r->own.code; /* why it waits */

    cairn_error_copy(&err, &r->own.err);
    if (code == 0)
        code = cairn_fail(&err, CAIRN_E_TIMEOUT, "join job %s as rank %u: %s", r->job, r->rank,
                          doing[job ? job->phase : JOB_IDLE]);
    join_undo(r);
    join_finish(r, code, &err, NULL);
}

/* ---- joining --------------------------------------------------------------------------------- */

static int join_check(const struct join_request *r, struct cairn_error *err)
{
    int c = cairn_name_check("job", r->job, err);

    if (c == 0)
        c = cairn_name_check("start id", r->start_id, err);
    if (c == 0 && (r->world_size == 0 || r->world_size > CAIRN_MAX_WORLD))
        c = cairn_fail(err, CAIRN_E_INVAL, "job %s: a world of %u ranks: 1 to %u are allowed", r->job, r->world_size,
                       CAIRN_MAX_WORLD);
    if (c == 0 && r->rank >= r->world_size)
        c = cairn_fail(err, CAIRN_E_INVAL, "job %s: rank %u in a world of %u", r->job, r->rank, r->world_size);
    return c;
}

void jobs_join(struct jobs *jobs, struct join_request *request)
{
    struct join_request *r = request;
    uint32_t timeout_ms = r->timeout_ms ? r->timeout_ms : jobs->config.meta_ms;
    struct cairn_error err = CAIRN_ERROR_INIT;

    r->own = (struct jobs_request){.jobs = jobs, .err = CAIRN_ERROR_INIT, .arrived_ns = loop_now_ns(jobs->deps.loop)};
    list_init(&r->own.link);
    r->own.deadline = (struct loop_timer){.fire = join_late, .arg = r};
    r->own.post = (struct loop_post){.run = join_posted, .arg = r};
    int c = join_check(r, &err);
    if (c == 0 && jobs->stopping)
        c = cairn_fail(&err, CAIRN_E_ABORTED, "cairnd on node %s is stopping", jobs->node);
    struct job *job = c == 0 ? jobs_find_or_add(jobs, r->job) : NULL;
    if (c == 0 && !job)
        c = cairn_fail(&err, CAIRN_E_NOMEM, "allocate job %s", r->job);
    if (c < 0) {
        join_fail_later(r, c, &err);
        return;
    }
    list_push_back(&job->joins, &r->own.link);
    loop_timer_after(jobs->deps.loop, &r->own.deadline, timeout_ms);
    job_post(job);
}

static bool job_alive_here(const struct job *job)
{
    list_for_each (it, &job->members) {
        const struct member *m = container_of(it, struct member, link);
        if (!m->fenced && m->incarnation == job->inc.incarnation)
            return true;
    }
    return false;
}

/* Another node with living sessions of the current incarnation, of this rank when one is given; NULL. */
static const char *job_alive_there(const struct job *job, const uint32_t *rank)
{
    for (size_t i = 0; i < job->nothers; i++) {
        const struct record_crew *c = &job->others[i];
        bool it = !rank && c->nranks > 0;
        for (uint32_t k = 0; rank && k < c->nranks; k++)
            it |= c->ranks[k] == *rank;
        if (it && c->incarnation == job->inc.incarnation && strcmp(c->node, job->jobs->node) != 0)
            return c->node;
    }
    return NULL;
}

static int join_new_member(struct job *job, const struct join_request *r, struct member **ret, struct cairn_error *err)
{
    unsigned here = 0;

    list_for_each (it, &job->members) {
        struct member *m = container_of(it, struct member, link);
        here += !m->fenced && m->incarnation == job->inc.incarnation;
        if (!m->fenced && m->incarnation == job->inc.incarnation && m->rank == r->rank)
            return cairn_fail(err, CAIRN_E_EXISTS, "rank %u of job %s is taken by a living session of start %s",
                              r->rank, job->name, m->start_id);
    }
    if (here >= RECORD_MAX_RANKS) /* neither this node's key nor its greeting could name more */
        return cairn_fail(err, CAIRN_E_TOO_LARGE, "job %s has %u ranks on node %s already: no more are possible",
                          job->name, here, job->jobs->node);
    struct member *m = calloc(1, sizeof *m);
    if (!m)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate rank %u of job %s", r->rank, job->name);
    m->job = job;
    m->incarnation = job->inc.incarnation;
    m->rank = r->rank;
    memcpy(m->start_id, r->start_id, sizeof m->start_id);
    list_init(&m->saves);
    list_push_back(&job->members, &m->link);
    job->roster_changed = true;
    *ret = m;
    return 0;
}

void job_raise_done(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct job *job = req->arg;

    job->phase = JOB_IDLE;
    if (result->code == 0 && result->succeeded) {
        job->inc = job->next;
        job->inc_revision = result->revision;
        job->decided = false;
        log_line(LOG_NOTICE, "job %s: start %s is incarnation %llu with %u ranks", job->name, job->inc.start_id,
                 (unsigned long long)job->inc.incarnation, job->inc.world_size);
        job_fence(job);
    } else {
        job_not_applied(job, result);
    }
    job_tick(job);
}

static int job_raise(struct job *job, struct cairn_error *err)
{
    struct jobs *jobs = job->jobs;
    struct bytes value = {0};
    char inc[RECORD_KEY_MAX];

    record_key_job(inc, job->name, "incarnation");
    int r = record_incarnation_encode(&job->next, &value, err);
    if (r == 0) {
        struct cairn_compare seen = {inc, job->inc_revision};
        struct cairn_put put = {inc, value.data, value.len, 0};
        struct cairn_txn txn = {.compares = &seen, .ncompares = 1, .puts = &put, .nputs = 1};
        job->phase = JOB_RAISING;
        job->req = (struct meta_req){.done = job_raise_done, .arg = job};
        meta_txn(jobs->deps.meta, &txn, jobs->config.meta_ms, &job->req);
    }
    bytes_free(&value);
    return r;
}

/* What stands in the way is on another node: it may go. */
static void join_wait(struct join_request *r, struct job *job, int code, const struct cairn_error *err)
{
    r->own.code = code;
    cairn_error_copy(&r->own.err, err);
    job->valid = false;
    job->waiting = true;
    loop_timer_after(job->jobs->deps.loop, &job->retry, JOIN_PAUSE_MS);
}

static int join_decide(struct join_request *r, struct job *job, bool *ret_there, struct cairn_error *err)
{
    const char *there = job_alive_there(job, NULL);
    bool here = job_alive_here(job);
    struct start_request s = {job->name, r->start_id, r->world_size, r->take_over, here || there};

    int v = start_decide(&job->inc, &s, &job->next, err);
    *ret_there = v == CAIRN_E_BUSY && !here;
    if (*ret_there)
        cairn_wrap(err, v, "node %s has ranks of it", there);
    if (v != START_ADOPT)
        return v;
    there = job_alive_there(job, &r->rank);
    *ret_there = there != NULL;
    if (there)
        return cairn_fail(err, CAIRN_E_EXISTS, "rank %u of job %s is taken by a living session on node %s", r->rank,
                          job->name, there);
    return START_ADOPT;
}

void job_join_next(struct job *job)
{
    struct join_request *r = container_of(job->joins.next, struct join_request, own.link);
    struct cairn_error err = CAIRN_ERROR_INIT;
    bool there = false;

    int v = join_decide(r, job, &there, &err);
    if (v != START_ADOPT && job->read_ns < r->own.arrived_ns) { /* known from before: look again first */
        job_stale(job);
        return;
    }
    if (there) {
        join_wait(r, job, v, &err);
        return;
    }
    if (v == START_RAISE) {
        v = job_raise(job, &err);
        if (v == 0)
            return; /* being raised */
    } else if (v == START_ADOPT) {
        v = join_new_member(job, r, &r->own.member, &err);
    }
    job_post(job); /* for the next one */
    if (v < 0) {
        join_finish(r, v, &err, NULL);
        return;
    }
    r->own.code = 0;
    list_remove(&r->own.link);
    list_push_back(&job->enlisting, &r->own.link);
}

/* ---- this node's key ------------------------------------------------------------------------- */

/* Those who wait for the key decide again: another start was quicker, perhaps. */
static void job_requeue(struct job *job)
{
    while (!list_empty(&job->enlisting)) {
        struct join_request *r = container_of(job->enlisting.prev, struct join_request, own.link);
        join_undo(r);
        list_remove(&r->own.link);
        list_push_front(&job->joins, &r->own.link);
    }
}

/* One whose member the key names now; NULL. */
static struct join_request *join_named(const struct job *job)
{
    list_for_each (it, &job->enlisting) {
        struct join_request *r = container_of(it, struct join_request, own.link);
        if (r->own.named)
            return r;
    }
    return NULL;
}

static void enlisted(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct job *job = req->arg;

    job->phase = JOB_IDLE;
    if (result->code < 0 || !result->succeeded) {
        job->roster_changed = true;
        if (result->code == CAIRN_E_NOT_FOUND || result->code == CAIRN_E_INVAL)
            jobs_lease_lost(job->jobs, "a node's key was refused under it");
        job_requeue(job);
        job_not_applied(job, result);
        job_tick(job);
        return;
    }
    job_crew_start(job);
    job_post(job);
    for (struct join_request *r = join_named(job); r; r = join_named(job))
        join_finish(r, 0, NULL, TAKE_PTR(r->own.member));
}

static void job_roster(struct job *job, struct record_crew *ret)
{
    *ret = (struct record_crew){.start = job->jobs->config.start, .incarnation = job->inc.incarnation};
    snprintf(ret->node, sizeof ret->node, "%s", job->jobs->node);
    list_for_each (it, &job->members) {
        const struct member *m = container_of(it, struct member, link);
        if (!m->fenced && m->incarnation == job->inc.incarnation && ret->nranks < RECORD_MAX_RANKS)
            ret->ranks[ret->nranks++] = m->rank;
    }
}

static void job_send_roster(struct job *job, const struct record_crew *roster, const struct bytes *value)
{
    char key[RECORD_KEY_MAX], inc[RECORD_KEY_MAX];
    const char *keys[] = {key};
    struct cairn_compare seen = {inc, job->inc_revision};
    struct cairn_put put = {key, value->data, value->len, job->jobs->lease};
    struct cairn_txn txn = {0};

    record_key_crew(key, job->name, job->jobs->node);
    record_key_job(inc, job->name, "incarnation");
    job->enlisted = roster->nranks > 0;
    if (roster->nranks > 0)
        txn = (struct cairn_txn){.compares = &seen, .ncompares = 1, .puts = &put, .nputs = 1};
    else
        txn = (struct cairn_txn){.deletes = keys, .ndeletes = 1};
    job->phase = JOB_ENLISTING;
    job->req = (struct meta_req){.done = enlisted, .arg = job};
    meta_txn(job->jobs->deps.meta, &txn, job->jobs->config.meta_ms, &job->req);
}

void job_enlist(struct job *job)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct bytes value = {0};
    struct record_crew roster;

    job_roster(job, &roster);
    job->roster_changed = false;
    if (roster.nranks == 0 && !job->enlisted) {
        job_requeue(job);
        job_post(job);
        return;
    }
    if (roster.nranks > 0 && job->jobs->lease == 0) {
        job->roster_changed = true;
        job->phase = JOB_LEASING;
        jobs_want_lease(job->jobs);
        return;
    }
    list_for_each (it, &job->enlisting)
        container_of(it, struct join_request, own.link)->own.named = true;
    int r = record_crew_encode(&roster, &value, &err);
    if (r == 0)
        job_send_roster(job, &roster, &value);
    else
        job_fail_joins(job, r, &err);
    bytes_free(&value);
}

/* ---- members --------------------------------------------------------------------------------- */

uint64_t member_incarnation(const struct member *member)
{
    return member->incarnation;
}

int member_check(const struct member *member, struct cairn_error *err)
{
    if (!member->fenced)
        return 0;
    return cairn_fail(err, CAIRN_E_FENCED, "job %s, rank %u of start %s: %s", member->job->name, member->rank,
                      member->start_id, member->fenced_by);
}

void member_leave(struct member *member)
{
    struct job *job = member->job;

    jobs_member_left(job->jobs, member);
    list_for_each_safe (it, &member->saves) {
        struct rank_save *save = container_of(it, struct rank_save, link);
        list_remove(&save->link);
        save->member = NULL;
        if (save->state < REPORT_FILLED && !job->jobs->leaving)
            rank_save_dropped(save, "its session ended before its snapshot was complete");
    }
    list_remove(&member->link);
    free(member);
    job->roster_changed = true;
    job_post(job);
}
