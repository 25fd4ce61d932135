/* SPDX-License-Identifier: Apache-2.0 */
/* The one lease that all coordinator keys of this node hang on: granted when the first job needs it, kept alive every
 * third of its time, revoked at the end. When it is lost each job claims its key again, if nobody else took it. */
#include "daemon/node/job_internal.h"

#include "daemon/io/log.h"

static void jobs_post_all(struct jobs *jobs)
{
    list_for_each (it, &jobs->jobs)
        job_post(container_of(it, struct job, link));
}

void jobs_lease_lost(struct jobs *jobs, const char *why)
{
    log_line(LOG_WARNING, "the coordinator's lease of node %s is lost: %s", jobs->node, why);
    jobs->lease = 0;
    list_for_each (it, &jobs->jobs) {
        struct job *job = container_of(it, struct job, link);
        job->held = job->valid = job->enlisted = false;
        job->roster_changed = true;
    }
    holds_lease_lost(jobs);
    jobs_post_all(jobs);
}

static void lease_granted(struct jobs *jobs, const struct cairn_meta_result *result)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (result->code == 0) {
        jobs->lease = result->lease;
        jobs->lease_kept_ns = jobs->lease_sent_ns;
        loop_timer_after(jobs->deps.loop, &jobs->lease_timer, jobs->config.lease_ms / 3);
    }
    int r = result->code < 0 ? meta_failed(result, &err, "grant the coordinator's lease") : 0;
    list_for_each (it, &jobs->jobs) {
        struct job *job = container_of(it, struct job, link);
        if (job->phase != JOB_LEASING)
            continue;
        job->phase = JOB_IDLE;
        if (r < 0) {
            job_fail_joins(job, r, &err);
            job->valid = false;
            job->retrying = true;
            loop_timer_after(jobs->deps.loop, &job->retry, JOB_MAX_PAUSE_MS);
        }
        job_post(job);
    }
    holds_lease_granted(jobs, r == 0);
}

/* Silence is no loss before the lease could have expired, counted from when the last good keep-alive was sent. */
static void lease_kept(struct jobs *jobs, const struct cairn_meta_result *result)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    uint64_t age_ms = (loop_now_ns(jobs->deps.loop) - jobs->lease_kept_ns) / 1000000;
    bool silent = result->code == CAIRN_E_UNAVAILABLE || result->code == CAIRN_E_TIMEOUT;

    if (result->code == 0) {
        jobs->lease_kept_ns = jobs->lease_sent_ns;
        loop_timer_after(jobs->deps.loop, &jobs->lease_timer, jobs->config.lease_ms / 3);
    } else if (silent && age_ms < jobs->config.lease_ms) {
        loop_timer_after(jobs->deps.loop, &jobs->lease_timer, jobs->config.lease_ms / 10);
    } else {
        meta_failed(result, &err, "keep it alive");
        jobs_lease_lost(jobs, err.message);
    }
}

static void lease_done(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct jobs *jobs = req->arg;
    int op = jobs->lease_op;

    jobs->lease_op = LEASE_IDLE;
    if (jobs->stopping) {
        if (op == LEASE_GRANT && result->code == 0)
            jobs->lease = result->lease;
        if (op == LEASE_REVOKE)
            jobs->lease = 0; /* without an answer it expires by itself */
        jobs_maybe_stopped(jobs);
    } else if (op == LEASE_GRANT) {
        lease_granted(jobs, result);
    } else {
        lease_kept(jobs, result);
    }
}

void jobs_lease_start(struct jobs *jobs, int op)
{
    jobs->lease_op = op;
    jobs->lease_sent_ns = loop_now_ns(jobs->deps.loop);
    jobs->lease_req = (struct meta_req){.done = lease_done, .arg = jobs};
    if (op == LEASE_GRANT)
        meta_lease_grant(jobs->deps.meta, jobs->config.lease_ms, jobs->config.meta_ms, &jobs->lease_req);
    else if (op == LEASE_KEEP)
        meta_lease_keep(jobs->deps.meta, jobs->lease, jobs->config.meta_ms, &jobs->lease_req);
    else
        meta_lease_revoke(jobs->deps.meta, jobs->lease, jobs->config.meta_ms, &jobs->lease_req);
}

void jobs_lease_due(struct loop_timer *timer)
{
    struct jobs *jobs = timer->arg;

    if (jobs->lease && jobs->lease_op == LEASE_IDLE)
        jobs_lease_start(jobs, LEASE_KEEP);
}

void jobs_want_lease(struct jobs *jobs)
{
    if (jobs->lease_op == LEASE_IDLE)
        jobs_lease_start(jobs, LEASE_GRANT);
}
