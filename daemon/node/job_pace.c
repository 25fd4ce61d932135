/* SPDX-License-Identifier: Apache-2.0 */
/* How fast a job's checkpoints are drained: over most of the time until its next save is expected, by when its saves
 * began on this node (core/model/pace.h), and at full speed as soon as somebody waits. */
#include "daemon/node/job_internal.h"

#include "daemon/io/log.h"

#include <stdio.h>
#include <string.h>

void run_hurry(struct run *run, int why)
{
    if (!run->hurry)
        run->hurry = why;
    list_for_each (it, &run->saves) {
        struct rank_save *save = container_of(it, struct rank_save, of_run);
        if (save->draining)
            drain_hurry(save->drain, why);
    }
}

/* The first of this node's ranks counts. Where the job is faster than its cadence, what is left of earlier saves is not
 * what the next one should wait for. */
void run_begun(struct run *run)
{
    struct job *job = run->job;

    if (run->begun_ns)
        return;
    run->begun_ns = loop_now_ns(job->jobs->deps.loop);
    cairn_cadence_add(&job->cadence, run->begun_ns);
    list_for_each (it, &job->runs) {
        struct run *other = container_of(it, struct run, link);
        if (other != run)
            run_hurry(other, CAIRN_PACE_OLDER);
    }
}

/* One that goes on after a restart of the daemon has no history here: it is not begun, it is resumed. */
struct cairn_pace run_pace(const struct run *run, uint32_t nparts)
{
    const struct jobs *jobs = run->job->jobs;
    struct cairn_pace p;

    cairn_pace_full(&p, nparts, jobs->config.spread ? run->hurry : CAIRN_PACE_OFF);
    if (jobs->config.spread && !run->hurry)
        cairn_pace_plan(&p, &run->job->cadence, nparts, run->begun_ns, loop_now_ns(jobs->deps.loop),
                        jobs->config.checkpoint_ms);
    return p;
}

/* So that nobody has to wonder later what is usual. */
void save_measured(const struct rank_save *save)
{
    struct job *job = save->run->job;
    uint64_t now = loop_now_ns(job->jobs->deps.loop);
    double flush_s = (double)(now - save->filled_ns) / 1e9;

    if (job->measured)
        return;
    job->measured = true;
    log_line(
        LOG_NOTICE,
        "job %s rank %u: its first save had %u MiB, from the grant of that memory to the end of its copy in %.3f s; "
        "it was durable %.2f s later (%.0f MiB/s)%s",
        job->name, save->rank, save->image.layout->nparts, (double)(save->filled_ns - save->begun_ns) / 1e9, flush_s,
        flush_s > 0 ? save->image.layout->nparts / flush_s : 0,
        job->jobs->config.spread ? "; from the third one on that may be spread over the time until the next" : "");
}

static void flush_describe(const struct rank_save *save, struct flush_status *ret)
{
    *ret = (struct flush_status){.step = save->run->step, .rank = save->rank, .durable = save->state == REPORT_DURABLE};
    snprintf(ret->job, sizeof ret->job, "%s", save->run->job->name);
    drain_status_of(save->drain, &ret->drain);
}

static unsigned job_flushes(const struct job *job, struct flush_status *ret, unsigned room)
{
    unsigned n = 0;

    list_for_each (ir, &job->runs) {
        const struct run *run = container_of(ir, struct run, link);
        list_for_each (is, &run->saves) {
            const struct rank_save *save = container_of(is, struct rank_save, of_run);
            if (save->draining && n < room)
                flush_describe(save, &ret[n++]);
        }
    }
    return n;
}

unsigned jobs_flushes(const struct jobs *jobs, struct flush_status *ret, unsigned room)
{
    unsigned n = 0;

    list_for_each (it, &jobs->jobs)
        n += job_flushes(container_of(it, struct job, link), ret + n, room - n);
    return n;
}
