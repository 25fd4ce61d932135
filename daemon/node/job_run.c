/* SPDX-License-Identifier: Apache-2.0 */
/* A checkpoint on its way, as a node with ranks of it sees it:
 *
 *     a rank began ----> reported to the coordinator
 *     intent known ----> drains of what is filled start
 *     a rank is filled, durable, dropped or failed ----> reported
 *     verdict ----> ranks are told; drains end
 *
 * Reports are repeated until the verdict, straight to the coordinator. What a rank of this node makes impossible is
 * told to the others here at once: no coordinator can commit without it. The object lives until there is a verdict, or
 * none came in time, and nothing of it is under way. */
#include "daemon/node/job_internal.h"

#include "daemon/io/log.h"

#include <stdio.h>
#include <string.h>

#define RUN_SLACK_MS 10000 /* beyond the checkpoint's deadline: a coordinator that dies is succeeded within it */

static struct loop *run_loop(const struct run *run)
{
    return run->job->jobs->deps.loop;
}

/* ---- reports --------------------------------------------------------------------------------- */

static void entry_of(const struct rank_save *save, struct crew_entry *e)
{
    *e = (struct crew_entry){.rank = save->rank, .state = save->state, .pin_number = save->pin_number};
    e->shard = save->ref;
    e->shard.rank = save->rank;
    snprintf(e->shard.node, sizeof e->shard.node, "%s", save->run->job->jobs->node);
}

static void run_send(struct run *run, struct crew_letter *l, bool again)
{
    l->type = CREW_REPORT;
    l->report.step = run->step;
    l->report.incarnation = run->incarnation;
    l->report.hurry = run->waited;
    if (l->report.nentries > 0)
        job_report(run->job, l, again);
    l->report.nentries = 0;
}

void run_report(struct run *run, bool all)
{
    struct crew_letter *l = calloc(1, sizeof *l);

    if (!l)
        return; /* the repeat comes */
    if (run->given_up)
        l->report.entries[l->report.nentries++] = run->given_up_by;
    list_for_each (it, &run->saves) {
        struct rank_save *save = container_of(it, struct rank_save, of_run);
        if (run->given_up || (!all && !save->unreported))
            continue;
        save->unreported = false;
        entry_of(save, &l->report.entries[l->report.nentries++]);
        if (l->report.nentries == CREW_MAX_ENTRIES)
            run_send(run, l, all);
        if (run->over) /* this node coordinates, and the verdict is here */
            break;
    }
    if (!run->over)
        run_send(run, l, all);
    free(l);
}

static void run_repeat(struct loop_timer *timer)
{
    struct run *run = timer->arg;

    loop_timer_after(run_loop(run), timer, run->job->jobs->config.lease_ms / 3 + 1);
    run_report(run, true);
}

/* ---- what the coordinator says, or does not -------------------------------------------------- */

static void run_reap(struct loop_post *post)
{
    struct run *run = post->arg;

    run->reaping = false;
    run_maybe_free(run);
}

/* Whoever led here may still use it: it goes from the top of the stack. */
static void run_end(struct run *run)
{
    if (!run->over) {
        run->reaping = true;
        run->reap = (struct loop_post){.run = run_reap, .arg = run};
        loop_defer(run_loop(run), &run->reap);
    }
    run->over = true;
    loop_timer_cancel(run_loop(run), &run->repeat);
    loop_timer_cancel(run_loop(run), &run->deadline);
    jobs_wake_openings(run->job->jobs, run->job->name);
}

static void run_set_deadline(struct run *run)
{
    const struct jobs_config *config = &run->job->jobs->config;

    loop_timer_after(run_loop(run), &run->deadline, config->checkpoint_ms + RUN_SLACK_MS + config->lease_ms);
}

void run_verdict(struct run *run, int verdict, int code, const char *reason)
{
    if (run->over)
        return;
    if (verdict == VERDICT_INTENT) {
        run->intent = true;
        run_set_deadline(run); /* the coordinator is there, and has a deadline of its own */
        run_start_drains(run);
        return;
    }
    run->aborted = verdict == VERDICT_ABORTED;
    if (run->aborted)
        run_stop_drains(run);
    run_tell(run, code, reason);
    run_end(run);
}

static void run_late(struct loop_timer *timer)
{
    struct run *run = timer->arg;
    const struct job *job = run->job;
    char why[WIRE_TEXT];

    snprintf(why, sizeof why, "whether step %llu is committed is not known: %s%s did not say so in time",
             (unsigned long long)run->step,
             job->coordinator.node[0] ? "the job's coordinator on node " : "no coordinator", job->coordinator.node);
    log_line(LOG_WARNING, "job %s: %s", job->name, why);
    run_stop_drains(run);
    run_tell(run, CAIRN_E_UNAVAILABLE, why);
    run_end(run);
}

void run_why(const struct run *run, uint32_t rank, char *buf, size_t len)
{
    list_for_each (it, &run->saves) {
        const struct rank_save *save = container_of(it, struct rank_save, of_run);
        if (save->rank == rank && save->draining)
            drain_why(save->drain, buf, len);
    }
}

void run_give_up(struct run *run, uint32_t rank, int state, int code, const char *why)
{
    struct crew_entry *e = &run->given_up_by;
    char text[COMMIT_REASON];

    if (run->over || run->given_up)
        return;
    run->given_up = true;
    *e = (struct crew_entry){.rank = rank, .state = state, .shard.rank = rank};
    snprintf(e->reason, sizeof e->reason, "%s", why);
    snprintf(e->shard.node, sizeof e->shard.node, "%s", run->job->jobs->node);
    run_report(run, false);
    if (run->told)
        return;
    snprintf(text, sizeof text, "rank %u %s step %llu: %s", rank,
             state == REPORT_DROPPED ? "gave up" : "could not store its shard of", (unsigned long long)run->step, why);
    run_stop_drains(run);
    run_tell(run, code, text);
}

void run_fence(struct run *run, const char *why)
{
    list_for_each (it, &run->saves) {
        const struct rank_save *save = container_of(it, struct rank_save, of_run);
        if (save->state != REPORT_BEGUN)
            continue;
        run_give_up(run, save->rank, REPORT_DROPPED, CAIRN_E_FENCED, why);
        return;
    }
}

/* The daemon stops: nothing is decided here any more. */
void run_stop(struct run *run)
{
    char why[CAIRN_MAX_NAME + 64];

    run_stop_drains(run);
    snprintf(why, sizeof why, "cairnd on node %s is stopping", run->job->jobs->node);
    run_tell(run, CAIRN_E_ABORTED, why);
    run_end(run);
}

/* ---- the object ------------------------------------------------------------------------------ */

struct run *job_find_run(const struct job *job, uint64_t step, uint64_t incarnation)
{
    list_for_each (it, &job->runs) {
        struct run *run = container_of(it, struct run, link);
        if (run->step == step && run->incarnation == incarnation)
            return run;
    }
    return NULL;
}

bool job_works_on(const struct job *job, uint64_t step, uint64_t incarnation)
{
    const struct run *run = job_find_run(job, step, incarnation);
    const struct decider *d = job_find_decider(job, step, incarnation);

    return (run && !run->over) || (d && !d->over);
}

void run_maybe_free(struct run *run)
{
    struct job *job = run->job;

    /* With the coordinator's side gone too, no root is being written any more into the streams that end here. */
    if (!run->over || run->ndrains > 0 || job_find_decider(job, run->step, run->incarnation))
        return;
    if (!run->links_ended) { /* the drains' last fragments have gone by now */
        run->links_ended = true;
        links_end_checkpoint(job->jobs->deps.links, job->name, run->step, run->incarnation, run->aborted);
    }
    if (run->nsaves > 0 || run->reaping)
        return;
    list_remove(&run->link);
    job->nruns--;
    if (!run->aborted && !job->jobs->stopping)
        retainer_want(job->jobs, job->name);
    free(run);
    job_post(job);
}

int run_new(struct job *job, uint64_t step, struct run **ret_run, struct cairn_error *err)
{
    const struct jobs_config *config = &job->jobs->config;
    struct run *run = calloc(1, sizeof *run);

    if (!run)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the checkpoint of step %llu", (unsigned long long)step);
    run->job = job;
    run->step = step;
    run->incarnation = job->inc.incarnation;
    run->world_size = job->inc.world_size;
    run->err = (struct cairn_error)CAIRN_ERROR_INIT;
    list_init(&run->saves);
    run->repeat = (struct loop_timer){.fire = run_repeat, .arg = run};
    run->deadline = (struct loop_timer){.fire = run_late, .arg = run};
    list_push_back(&job->runs, &run->link);
    job->nruns++;
    loop_timer_after(job->jobs->deps.loop, &run->repeat, config->lease_ms / 3 + 1);
    run_set_deadline(run);
    *ret_run = run;
    return 0;
}
