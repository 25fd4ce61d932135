/* SPDX-License-Identifier: Apache-2.0 */
/* Joining and leaving. Joins of a job are taken one by one, once this node holds the job:
 *
 *     join -> the start is current: adopt it -> the rank is free: a member
 *          -> unseen: raise the incarnation by a transaction, older members are fenced -> as above
 *          -> replaced, or another start lives, or the rank is taken: refused */
#include "daemon/node/job_internal.h"

#include "core/checkpoint/start.h"
#include "core/model/name.h"
#include "core/model/units.h"
#include "daemon/io/log.h"

#include <stdio.h>
#include <string.h>

/* ---- the end of a request: always from the top of the stack ---------------------------------- */

static void join_finish(struct join_request *r, int code, const struct cairn_error *err, struct member *member)
{
    struct jobs *jobs = r->own.jobs;

    list_remove(&r->own.link);
    loop_timer_cancel(jobs->deps.loop, &r->own.deadline);
    r->done(r, code, err, member);
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
    list_remove(&r->own.link);
    loop_timer_cancel(r->own.jobs->deps.loop, &r->own.deadline);
    r->own.jobs->posts++;
    loop_defer(r->own.jobs->deps.loop, &r->own.post);
}

void job_fail_joins(struct job *job, int code, const struct cairn_error *err)
{
    while (!list_empty(&job->joins))
        join_fail_later(container_of(job->joins.next, struct join_request, own.link), code, err);
}

static void join_late(struct loop_timer *timer)
{
    static const char *const doing[] = {
        [JOB_IDLE] = "other ranks are joining",
        [JOB_READING] = "the metadata engine does not answer",
        [JOB_LEASING] = "the metadata engine does not grant a lease",
        [JOB_CLAIMING] = "the metadata engine does not answer",
        [JOB_SWEEPING] = "what a dead daemon left is being aborted",
        [JOB_RAISING] = "the metadata engine does not answer",
        [JOB_RELEASING] = "the metadata engine does not answer",
    };
    struct join_request *r = timer->arg;
    struct job *job = jobs_find(r->own.jobs, r->job);
    struct cairn_error err = CAIRN_ERROR_INIT;

    join_finish(r,
                cairn_fail(&err, CAIRN_E_TIMEOUT, "join job %s as rank %u: %s", r->job, r->rank,
                           doing[job ? job->phase : JOB_IDLE]),
                &err, NULL);
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

    r->own = (struct jobs_request){.jobs = jobs, .err = CAIRN_ERROR_INIT};
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

static bool job_alive(const struct job *job)
{
    list_for_each (it, &job->members) {
        const struct member *m = container_of(it, struct member, link);
        if (!m->fenced && m->incarnation == job->inc.incarnation)
            return true;
    }
    return false;
}

static int join_new_member(struct job *job, const struct join_request *r, struct member **ret, struct cairn_error *err)
{
    list_for_each (it, &job->members) {
        struct member *m = container_of(it, struct member, link);
        if (!m->fenced && m->incarnation == job->inc.incarnation && m->rank == r->rank)
            return cairn_fail(err, CAIRN_E_EXISTS, "rank %u of job %s is taken by a living session of start %s",
                              r->rank, job->name, m->start_id);
    }
    struct member *m = calloc(1, sizeof *m);
    if (!m)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate rank %u of job %s", r->rank, job->name);
    m->job = job;
    m->incarnation = job->inc.incarnation;
    m->rank = r->rank;
    memcpy(m->start_id, r->start_id, sizeof m->start_id);
    list_init(&m->saves);
    list_push_back(&job->members, &m->link);
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
    char inc[RECORD_KEY_MAX], coordinator[RECORD_KEY_MAX];

    record_key_job(inc, job->name, "incarnation");
    record_key_job(coordinator, job->name, "coordinator");
    int r = record_incarnation_encode(&job->next, &value, err);
    if (r == 0) {
        struct cairn_compare seen[] = {{inc, job->inc_revision}, {coordinator, job->coordinator_revision}};
        struct cairn_put put = {inc, value.data, value.len, 0};
        struct cairn_txn txn = {.compares = seen, .ncompares = 2, .puts = &put, .nputs = 1};
        job->phase = JOB_RAISING;
        job->req = (struct meta_req){.done = job_raise_done, .arg = job};
        meta_txn(jobs->deps.meta, &txn, jobs->config.meta_ms, &job->req);
    }
    bytes_free(&value);
    return r;
}

void job_join_next(struct job *job)
{
    struct join_request *r = container_of(job->joins.next, struct join_request, own.link);
    struct start_request s = {job->name, r->start_id, r->world_size, r->take_over, job_alive(job)};
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct member *member = NULL;

    int v = start_decide(&job->inc, &s, &job->next, &err);
    if (v == START_RAISE)
        v = job_raise(job, &err);
    else if (v == START_ADOPT)
        v = join_new_member(job, r, &member, &err);
    if (v == 0 && !member)
        return;    /* being raised */
    job_post(job); /* for the next one */
    join_finish(r, v, &err, member);
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
        if (!save->filled && !job->jobs->leaving)
            rank_save_dropped(save, "its session ended before its snapshot was complete");
    }
    list_remove(&member->link);
    free(member);
    job_post(job);
}
