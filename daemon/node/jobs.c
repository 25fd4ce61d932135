/* SPDX-License-Identifier: Apache-2.0 */
/* The object, and each job's way on this node:
 *
 *     IDLE --wanted--> READING --> nobody coordinates: LEASING --> CLAIMING --> READING
 *      ^                  |  \--this node does: what was left undecided is adopted
 *      |                  \--another one does: it is greeted (job_crew.c)
 *      |         joins: RAISING (the incarnation), ENLISTING (this node's key), members
 *      +--nothing left: ENLISTING (the key goes), RELEASING (the coordinator's too), and the job is forgotten
 *
 * READING takes one snapshot of the job's records. CLAIMING writes the coordinator's key under the lease, comparing
 * what was read; a key of this very node under another start is a dead daemon's, for the socket's lock lets only one
 * live. What is adopted was read after the claim: commits compare the coordinator's key, so that from the claim on no
 * other coordinator's can come. Every answer that is unknown leads back to READING. One lease carries all keys. */
#include "daemon/node/job_internal.h"

#include "core/base/cleanup.h"
#include "daemon/io/log.h"
#include "daemon/node/mesh.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

/* ---- one job --------------------------------------------------------------------------------- */

struct job *jobs_find(struct jobs *jobs, const char *name)
{
    list_for_each (it, &jobs->jobs) {
        struct job *job = container_of(it, struct job, link);
        if (strcmp(job->name, name) == 0)
            return job;
    }
    return NULL;
}

static void job_run_post(struct loop_post *post)
{
    struct job *job = post->arg;

    job->posted = false;
    job_tick(job);
}

static void job_retry(struct loop_timer *timer)
{
    struct job *job = timer->arg;

    job->retrying = job->waiting = false;
    job_tick(job);
}

struct job *jobs_find_or_add(struct jobs *jobs, const char *name)
{
    struct job *job = jobs_find(jobs, name);

    if (job)
        return job;
    job = calloc(1, sizeof *job);
    if (!job)
        return NULL;
    job->jobs = jobs;
    snprintf(job->name, sizeof job->name, "%s", name);
    list_init(&job->members);
    list_init(&job->joins);
    list_init(&job->enlisting);
    list_init(&job->runs);
    list_init(&job->noted);
    list_init(&job->children);
    list_init(&job->crew);
    list_init(&job->deciders);
    job->retry = (struct loop_timer){.fire = job_retry, .arg = job};
    job->post = (struct loop_post){.run = job_run_post, .arg = job};
    list_push_back(&jobs->jobs, &job->link);
    return job;
}

void job_free(struct job *job)
{
    struct jobs *jobs = job->jobs;

    assert(list_empty(&job->runs) && list_empty(&job->joins) && list_empty(&job->deciders) && !job->posted);
    loop_timer_cancel(jobs->deps.loop, &job->retry);
    job_crew_stop(job);
    list_for_each_safe (it, &job->members)
        free(container_of(it, struct member, link));
    list_remove(&job->link);
    delta_forget(job);
    free(job->others);
    free(job);
}

void job_post(struct job *job)
{
    if (job->posted)
        return;
    job->posted = true;
    loop_defer(job->jobs->deps.loop, &job->post);
}

void job_remember(struct job *job, uint64_t step, uint64_t incarnation, int code, const char *reason)
{
    struct remembered *m = &job->remembered[job->nremembered++ % JOB_REMEMBERED];

    *m = (struct remembered){.step = step, .incarnation = incarnation, .committed = code == 0, .code = code};
    snprintf(m->reason, sizeof m->reason, "%s", reason);
    if (incarnation == job->inc.incarnation && (!job->decided || step > job->last_decided)) {
        job->decided = true;
        job->last_decided = step;
    }
}

const struct remembered *job_recall(const struct job *job, uint64_t step, uint64_t incarnation)
{
    for (unsigned i = 0; i < JOB_REMEMBERED && i < job->nremembered; i++)
        if (job->remembered[i].step == step && job->remembered[i].incarnation == incarnation)
            return &job->remembered[i];
    return NULL;
}

void job_set_pin(struct job *job, const struct record_pin *pin, uint64_t revision)
{
    if (revision < job->pin_revision)
        return; /* read before what is known was written */
    job->pin = *pin;
    job->pin_revision = revision;
}

void job_fence(struct job *job)
{
    char why[CAIRN_MAX_NAME + 128];

    list_for_each (it, &job->members) {
        struct member *m = container_of(it, struct member, link);
        if (m->fenced || m->incarnation >= job->inc.incarnation)
            continue;
        m->fenced = true;
        snprintf(m->fenced_by, sizeof m->fenced_by, "start %s (incarnation %llu) took over", job->inc.start_id,
                 (unsigned long long)job->inc.incarnation);
    }
    snprintf(why, sizeof why, "start %s (incarnation %llu) of the job took over", job->inc.start_id,
             (unsigned long long)job->inc.incarnation);
    job_decide_fence(job, why);
    list_for_each_safe (it, &job->runs) {
        struct run *run = container_of(it, struct run, link);
        if (run->incarnation >= job->inc.incarnation)
            continue;
        run_hurry(run, CAIRN_PACE_ENDING); /* the new start may wait for what it resumes from */
        run_fence(run, why);
    }
}

void job_learn(struct job *job, const struct view *v)
{
    bool newer = v->inc.incarnation > job->inc.incarnation;

    job_set_pin(job, &v->pin, v->pin_revision);
    if (v->inc_revision < job->inc_revision)
        return;
    job->inc = v->inc;
    job->inc_revision = v->inc_revision;
    if (newer) {
        job->decided = known_last_decided(v->known, v->n, v->inc.incarnation, &job->last_decided);
        job_fence(job);
    }
}

/* ---- reading --------------------------------------------------------------------------------- */

static bool view_held_here(const struct jobs *jobs, const struct view *v)
{
    return v->coordinator_revision && strcmp(v->coordinator.node, jobs->node) == 0 &&
           v->coordinator.start == jobs->config.start && jobs->lease;
}

/* The other nodes' keys, for joins to look at. */
static void job_learn_others(struct job *job, struct view *v)
{
    free(job->others);
    job->others = v->crew;
    job->nothers = v->ncrew;
    v->crew = NULL;
    v->ncrew = 0;
}

/* Another node coordinates, or nobody does. */
static void job_learn_coordinator(struct job *job, const struct view *v)
{
    bool remote = v->coordinator_revision && strcmp(v->coordinator.node, job->jobs->node) != 0;
    struct crew_address was = job->coordinator;

    job->coordinator_revision = v->coordinator_revision;
    if (remote)
        job_drop_deciders(job);
    job->held = view_held_here(job->jobs, v);
    job->coordinator = (struct crew_address){.start = v->coordinator.start, .len = v->coordinator.address_len};
    if (!remote) {
        job->coordinator = (struct crew_address){.len = 0};
        return;
    }
    snprintf(job->coordinator.node, sizeof job->coordinator.node, "%s", v->coordinator.node);
    memcpy(job->coordinator.bytes, v->coordinator.address, v->coordinator.address_len);
    if (was.start != job->coordinator.start) {
        log_line(LOG_DETAIL, "job %s is coordinated by node %s", job->name, job->coordinator.node);
        job->parent = (struct crew_address){.len = 0};
        job->answered_ns = loop_now_ns(job->jobs->deps.loop);
    }
}

static void job_read_failed(struct job *job, int code, struct cairn_error *err)
{
    code = cairn_wrap(err, code, "job %s", job->name);
    if (list_empty(&job->joins))
        log_line(LOG_WARNING, "%s; trying again", err->message);
    job_fail_joins(job, code, err);
    job->retrying = true;
    loop_timer_after(job->jobs->deps.loop, &job->retry, JOB_MAX_PAUSE_MS);
}

static void job_read_done(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct job *job = req->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct view v;

    job->phase = JOB_IDLE;
    int r = view_read(&v, job->name, result, &err);
    if (r < 0) {
        job_read_failed(job, r, &err);
    } else {
        job->read_ns = loop_now_ns(job->jobs->deps.loop);
        job_learn(job, &v);
        job->decided = known_last_decided(v.known, v.n, v.inc.incarnation, &job->last_decided);
        job_remember_decisions(job, &v);
        job_learn_coordinator(job, &v);
        job->valid = true;
        if (job->held)
            job_adopt(job, &v);
        job_learn_others(job, &v);
        job_crew_start(job);
    }
    view_free(&v);
    job_tick(job);
}

static void job_read(struct job *job)
{
    char prefix[RECORD_KEY_MAX];

    job->phase = JOB_READING;
    job->req = (struct meta_req){.done = job_read_done, .arg = job};
    record_key_job(prefix, job->name, "");
    meta_list(job->jobs->deps.meta, prefix, job->jobs->config.meta_ms, &job->req);
}

/* Changed meanwhile or without an answer: read before speaking. Anything else is an error to whoever waits. */
void job_not_applied(struct job *job, const struct cairn_meta_result *result)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    int code = result->code;

    job->valid = false;
    if (code == 0 || code == CAIRN_E_UNAVAILABLE || code == CAIRN_E_TIMEOUT)
        return;
    job_read_failed(job, meta_failed(result, &err, "write the job's records"), &err);
}

/* ---- claiming, releasing --------------------------------------------------------------------- */

static void job_claim_done(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct job *job = req->arg;

    job->phase = JOB_IDLE;
    if (result->code == 0 && result->succeeded) {
        job->valid = false; /* what is adopted is read after the claim */
    } else {
        if (result->code == CAIRN_E_NOT_FOUND || result->code == CAIRN_E_INVAL)
            jobs_lease_lost(job->jobs, "the coordinator's key was refused under it");
        job_not_applied(job, result);
    }
    job_tick(job);
}

static void job_claim(struct job *job)
{
    struct jobs *jobs = job->jobs;
    struct record_coordinator c = {.start = jobs->config.start};
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct bytes value = {0};
    char key[RECORD_KEY_MAX];

    if (jobs->lease == 0) {
        job->phase = JOB_LEASING;
        jobs_want_lease(jobs);
        return;
    }
    snprintf(c.node, sizeof c.node, "%s", jobs->node);
    c.address_len = mesh_address(jobs->deps.mesh)->len;
    memcpy(c.address, mesh_address(jobs->deps.mesh)->bytes, c.address_len);
    record_key_job(key, job->name, "coordinator");
    int r = record_coordinator_encode(&c, &value, &err);
    if (r < 0) {
        job_read_failed(job, r, &err);
    } else {
        struct cairn_compare seen = {key, job->coordinator_revision};
        struct cairn_put put = {key, value.data, value.len, jobs->lease};
        struct cairn_txn txn = {.compares = &seen, .ncompares = 1, .puts = &put, .nputs = 1};
        job->phase = JOB_CLAIMING;
        job->req = (struct meta_req){.done = job_claim_done, .arg = job};
        meta_txn(jobs->deps.meta, &txn, jobs->config.meta_ms, &job->req);
    }
    bytes_free(&value);
}

static void job_release_done(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct job *job = req->arg;

    (void)result; /* a key that stayed is ours by node: the next claim takes it over, or it expires */
    job->phase = JOB_IDLE;
    job->held = job->valid = false;
    job_crew_dismiss(job);
    job_tick(job);
}

static void job_release(struct job *job)
{
    char key[RECORD_KEY_MAX];
    const char *keys[] = {key};

    record_key_job(key, job->name, "coordinator");
    struct cairn_compare ours = {key, job->coordinator_revision};
    struct cairn_txn txn = {.compares = &ours, .ncompares = 1, .deletes = keys, .ndeletes = 1};
    job->phase = JOB_RELEASING;
    job->req = (struct meta_req){.done = job_release_done, .arg = job};
    meta_txn(job->jobs->deps.meta, &txn, job->jobs->config.meta_ms, &job->req);
}

/* ---- the tick -------------------------------------------------------------------------------- */

/* Until somebody joins: what is known grows old. */
static void job_rest(struct job *job)
{
    job->valid = false;
    job_crew_stop(job);
}

static void job_tick_unwanted(struct job *job)
{
    if (job->roster_changed || job->enlisted)
        job_enlist(job);
    else if (job->held)
        job_release(job);
    else if (list_empty(&job->members) && !job->posted && job->committed + job->aborted == 0)
        job_free(job); /* one that has saved is kept for its status */
    else
        job_rest(job);
}

/* Members that were fenced hold no job. */
static bool job_wanted(const struct job *job)
{
    if (!list_empty(&job->joins) || !list_empty(&job->enlisting) || !list_empty(&job->runs) ||
        !list_empty(&job->deciders) || !list_empty(&job->crew))
        return true;
    list_for_each (it, &job->members)
        if (!container_of(it, struct member, link)->fenced)
            return true;
    return false;
}

/* Nobody coordinates it, or this node's dead predecessor does. */
static bool job_unheld(const struct job *job)
{
    return !job->held && !job->coordinator.node[0];
}

void job_tick(struct job *job)
{
    if (job->jobs->stopping) {
        jobs_maybe_stopped(job->jobs);
        return;
    }
    if (job->phase != JOB_IDLE)
        return;
    if (!job_wanted(job))
        job_tick_unwanted(job);
    else if (job->retrying && list_empty(&job->joins))
        return;
    else if (job->waiting)
        return;
    else if (!job->valid)
        job_read(job);
    else if (job_unheld(job))
        job_claim(job);
    else if (!list_empty(&job->joins))
        job_join_next(job);
    else if (job->roster_changed || !list_empty(&job->enlisting))
        job_enlist(job);
}

void job_stale(struct job *job)
{
    job->valid = false;
    job_post(job);
}

/* ---- the object ------------------------------------------------------------------------------ */

int jobs_new(const struct jobs_deps *deps, const struct jobs_config *config, struct jobs **ret_jobs,
             struct cairn_error *err)
{
    if (!config->node || strlen(config->node) > CAIRN_MAX_NAME)
        return cairn_fail(err, CAIRN_E_INVAL, "a node's id has 1 to %d bytes", CAIRN_MAX_NAME);
    if (config->lease_ms < 30 || config->meta_ms == 0 || config->checkpoint_ms == 0)
        return cairn_fail(err, CAIRN_E_INVAL, "lease_ms must be at least 30, meta_ms and checkpoint_ms at least 1");
    struct jobs *jobs = calloc(1, sizeof *jobs);
    if (!jobs)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the jobs");
    jobs->deps = *deps;
    jobs->config = *config;
    snprintf(jobs->node, sizeof jobs->node, "%s", config->node);
    jobs->config.node = jobs->node;
    jobs->numerics.max = config->numerics_bytes;
    list_init(&jobs->jobs);
    list_init(&jobs->openings);
    list_init(&jobs->loads);
    list_init(&jobs->lists);
    list_init(&jobs->cache);
    mesh_listen(deps->mesh, jobs_hear, jobs);
    list_init(&jobs->holds);
    int r = retainer_new(jobs, err);
    if (r < 0) {
        free(jobs);
        return r;
    }
    jobs->lease_timer = (struct loop_timer){.fire = jobs_lease_due, .arg = jobs};
    *ret_jobs = jobs;
    return 0;
}

static bool jobs_quiet(const struct jobs *jobs)
{
    list_for_each (it, &jobs->jobs) {
        struct job *job = container_of(it, struct job, link);
        bool asking = job->phase != JOB_IDLE && job->phase != JOB_LEASING;
        if (asking || job->posted || !list_empty(&job->runs) || !list_empty(&job->deciders))
            return false;
    }
    if (!holds_quiet(jobs) || !retainer_quiet(jobs))
        return false;
    return jobs->posts == 0 && list_empty(&jobs->openings) && !jobs_loading(jobs) && list_empty(&jobs->lists);
}

/* The lease goes last: what is under way may still be this coordinator's. */
static void jobs_stop_step(struct loop_post *post)
{
    struct jobs *jobs = post->arg;

    jobs->stop_posted = false;
    if (!jobs_quiet(jobs) || jobs->lease_op != LEASE_IDLE)
        return;
    if (jobs->lease) {
        jobs_lease_start(jobs, LEASE_REVOKE);
        return;
    }
    void (*stopped)(void *) = jobs->stopped;
    void *arg = jobs->stopped_arg;
    mesh_listen(jobs->deps.mesh, NULL, NULL);
    list_for_each_safe (it, &jobs->jobs)
        job_free(container_of(it, struct job, link));
    jobs_drop_cache(jobs);
    holds_leave(jobs);
    retainer_free(jobs);
    loop_timer_cancel(jobs->deps.loop, &jobs->lease_timer);
    free(jobs);
    stopped(arg);
}

void jobs_maybe_stopped(struct jobs *jobs)
{
    if (!jobs->stopping || jobs->stop_posted)
        return;
    jobs->stop_posted = true;
    loop_defer(jobs->deps.loop, &jobs->stop_post);
}

void jobs_leave(struct jobs *jobs)
{
    jobs->leaving = true;
}

void jobs_stop(struct jobs *jobs, void (*done)(void *arg), void *arg)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    int r = cairn_fail(&err, CAIRN_E_ABORTED, "cairnd on node %s is stopping", jobs->node);

    jobs->stopping = true;
    jobs->stopped = done;
    jobs->stopped_arg = arg;
    jobs->stop_post = (struct loop_post){.run = jobs_stop_step, .arg = jobs};
    loop_timer_cancel(jobs->deps.loop, &jobs->lease_timer);
    retainer_stop(jobs);
    list_for_each (it, &jobs->jobs) {
        struct job *job = container_of(it, struct job, link);
        loop_timer_cancel(jobs->deps.loop, &job->retry);
        job_fail_joins(job, r, &err);
        job_drop_deciders(job);
        job_crew_dismiss(job);
        job_crew_stop(job);
        list_for_each_safe (at, &job->runs)
            run_stop(container_of(at, struct run, link));
    }
    jobs_stop_openings(jobs);
    holds_stop(jobs);
    jobs_maybe_stopped(jobs);
}

unsigned jobs_status(const struct jobs *jobs, struct job_status *ret, unsigned room)
{
    unsigned n = 0;

    list_for_each (it, &jobs->jobs) {
        const struct job *job = container_of(it, struct job, link);
        struct job_status s = {.incarnation = job->inc.incarnation,
                               .world_size = job->inc.world_size,
                               .checkpoints_open = job->nruns > job->ndeciders ? job->nruns : job->ndeciders,
                               .committed = job->committed,
                               .aborted = job->aborted,
                               .common_mismatches = job->mismatches,
                               .last_committed_step = job->last_committed};
        memcpy(s.job, job->name, sizeof s.job);
        snprintf(s.coordinator, sizeof s.coordinator, "%s", job->held ? jobs->node : job->coordinator.node);
        s.nodes = job->ncrew;
        list_for_each (at, &job->members)
            s.members += !container_of(at, struct member, link)->fenced;
        if (n < room)
            ret[n] = s;
        n++;
    }
    return n;
}
