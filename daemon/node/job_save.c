/* SPDX-License-Identifier: Apache-2.0 */
/* One rank's part of a checkpoint: begun, filled, drained. What its owner is told comes from the top of the stack only,
 * in this order: DURABLE if it got so far, the outcome, and ended() once no drain reads its pages. */
#include "daemon/node/job_internal.h"

#include <stdio.h>
#include <string.h>

static void save_deliver(struct loop_post *post)
{
    struct rank_save *save = post->arg;
    struct run *run = save->run;

    save->posted = false;
    if (save->durable && !save->durable_told && !save->told) {
        save->durable_told = true;
        save->events.state(save->arg, CAIRN_DURABLE, 0, NULL);
    }
    if (run->told && !save->told) {
        save->told = true;
        save->events.state(save->arg, run->code == 0 ? CAIRN_COMMITTED : 0, run->code,
                           run->code < 0 ? &run->err : NULL);
    }
    if (!save->told || save->draining || save->posted) /* posted: again, by what the calls above led to */
        return;
    save->events.ended(save->arg);
    list_remove(&save->link);
    run->saves[save->rank] = NULL;
    run->nsaves--;
    free(save);
    run_maybe_free(run);
}

static void save_post(struct rank_save *save)
{
    if (save->posted)
        return;
    save->posted = true;
    loop_defer(save->run->job->jobs->deps.loop, &save->post);
}

void run_tell(struct run *run, int code, const char *reason)
{
    if (run->told)
        return;
    run->told = true;
    run->code = code;
    if (code < 0)
        cairn_fail(&run->err, code, "%s", reason);
    for (uint32_t i = 0; i < run->machine.world_size; i++)
        if (run->saves[i])
            save_post(run->saves[i]);
}

/* ---- drains ---------------------------------------------------------------------------------- */

static void save_parts_durable(void *arg, uint32_t first_part, uint32_t nparts)
{
    struct rank_save *save = arg;

    save->events.durable(save->arg, first_part, nparts);
}

static void save_drain_done(void *arg, int code, const struct cairn_error *err, const struct shard_ref *ref,
                            const struct manifest *manifest)
{
    struct rank_save *save = arg;
    struct run *run = save->run;
    struct commit_event e = {.type = COMMIT_ON_DURABLE, .rank = save->rank};

    (void)manifest;
    save->draining = false;
    save->drain = NULL;
    run->ndrains--;
    if (code == 0 && commit_open(&run->machine) && !run->over) {
        run->root.shards[save->rank] = *ref;
        save->durable = true;
    } else if (code < 0) {
        e = (struct commit_event){.type = COMMIT_ON_FAILED,
                                  .rank = save->rank,
                                  .code = code,
                                  .reason = err && err->message[0] ? err->message : cairn_code_name(code)};
    }
    save_post(save);
    run_feed(run, &e);
    run_maybe_free(run);
}

static void save_start_drain(struct rank_save *save)
{
    struct run *run = save->run;
    struct job *job = run->job;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct drain_spec spec = {.job = job->name,
                              .step = run->step,
                              .incarnation = run->incarnation,
                              .fence_incarnation = job->pin_revision ? job->pin.incarnation : 0,
                              .rank = save->rank,
                              .world_size = run->machine.world_size,
                              .layout = save->layout,
                              .arena = save->arena,
                              .pages = save->pages,
                              .attempt = save->attempt,
                              .deadline_ms = job->jobs->config.checkpoint_ms,
                              .arg = save,
                              .durable = save_parts_durable,
                              .done = save_drain_done};

    int r = drain_start(job->jobs->deps.links, &spec, &save->drain, &err);
    if (r == 0) {
        save->draining = true;
        run->ndrains++;
        return;
    }
    run_feed(run,
             &(struct commit_event){.type = COMMIT_ON_FAILED, .rank = save->rank, .code = r, .reason = err.message});
}

void run_start_drains(struct run *run)
{
    for (uint32_t i = 0; i < run->machine.world_size && commit_open(&run->machine); i++) {
        struct rank_save *save = run->saves[i];
        if (save && save->filled && !save->durable && !save->draining)
            save_start_drain(save);
    }
}

void run_stop_drains(struct run *run)
{
    for (uint32_t i = 0; i < run->machine.world_size; i++) {
        struct rank_save *save = run->saves[i];
        if (!save || !save->draining || save->cancelled)
            continue;
        save->cancelled = true;
        drain_cancel(save->drain);
    }
}

/* ---- begin ----------------------------------------------------------------------------------- */

static int save_check_member(const struct member *m, uint64_t step, struct cairn_error *err)
{
    const struct job *job = m->job;

    if (job->jobs->stopping)
        return cairn_fail(err, CAIRN_E_ABORTED, "cairnd on node %s is stopping", job->jobs->node);
    int r = member_check(m, err);
    if (r < 0)
        return r;
    if (step == CAIRN_LATEST)
        return cairn_fail(err, CAIRN_E_INVAL, "job %s: that step means \"latest\" and cannot be saved", job->name);
    if (job->pin_revision && job->pin.incarnation == m->incarnation && m->pin_number && m->pin_number < job->pin.number)
        return cairn_fail(err, CAIRN_E_STALE_PIN,
                          "job %s: the resume step moved to %llu; rank %u must load it before it may save", job->name,
                          (unsigned long long)job->pin.step, m->rank);
    if (!job->held)
        return cairn_fail(err, CAIRN_E_UNAVAILABLE, "job %s: node %s is renewing its coordinator's lease", job->name,
                          job->jobs->node);
    return 0;
}

/* The step has no checkpoint on its way: may it get one? */
static int save_check_new(const struct job *job, uint64_t step, struct cairn_error *err)
{
    const struct remembered *m = job_recall(job, step, job->inc.incarnation);
    unsigned long long s = step;

    if (m && !m->committed)
        return cairn_fail(err, CAIRN_E_ABORTED, "job %s: step %llu was given up: %s", job->name, s, m->reason);
    if (m)
        return cairn_fail(err, CAIRN_E_EXISTS, "job %s: step %llu is committed already", job->name, s);
    if (job->decided && step <= job->last_decided)
        return cairn_fail(err, CAIRN_E_EXISTS, "job %s: step %llu: incarnation %llu has decided step %llu already",
                          job->name, s, (unsigned long long)job->inc.incarnation,
                          (unsigned long long)job->last_decided);
    if (job->nruns >= JOB_MAX_RUNS)
        return cairn_fail(err, CAIRN_E_BUSY, "job %s: %u checkpoints are on their way already", job->name, job->nruns);
    return 0;
}

static int save_check_run(const struct run *run, const struct member *m, struct cairn_error *err)
{
    unsigned long long step = run->step;

    if (run->told && run->code < 0)
        return cairn_fail(err, CAIRN_E_ABORTED, "job %s: step %llu was given up: %s", run->job->name, step,
                          run->err.message);
    if (!commit_open(&run->machine) || run->ranks[m->rank] != COMMIT_ABSENT || run->saves[m->rank])
        return cairn_fail(err, CAIRN_E_EXISTS, "job %s: rank %u saves step %llu already", run->job->name, m->rank,
                          step);
    return 0;
}

static int save_enlist(struct member *member, struct run *run, uint32_t attempt, const struct save_events *events,
                       void *arg, struct rank_save **ret_save, struct cairn_error *err)
{
    struct rank_save *save = calloc(1, sizeof *save);

    if (!save)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a save");
    save->run = run;
    save->member = member;
    save->rank = member->rank;
    save->attempt = attempt;
    save->events = *events;
    save->arg = arg;
    save->post = (struct loop_post){.run = save_deliver, .arg = save};
    list_push_back(&member->saves, &save->link);
    run->saves[save->rank] = save;
    run->nsaves++;
    run_feed(run, &(struct commit_event){.type = COMMIT_ON_BEGUN, .rank = save->rank});
    if (run->told) /* the metadata could not even be asked */
        save_post(save);
    *ret_save = save;
    return 0;
}

int save_begin(struct member *member, uint64_t step, const struct save_events *events, void *arg,
               struct rank_save **ret_save, struct cairn_error *err)
{
    int r = save_check_member(member, step, err);
    if (r < 0)
        return r;
    struct run *run = job_find_run(member->job, step, member->incarnation);
    r = run ? save_check_run(run, member, err) : save_check_new(member->job, step, err);
    if (r == 0 && !run && job_take_leftover(member->job, step, member->incarnation))
        r = run_adopt(member->job, step, &run, err); /* it lost its snapshot: it may give another */
    else if (r == 0 && !run)
        r = run_new(member->job, step, &run, err);
    return r < 0 ? r : save_enlist(member, run, 0, events, arg, ret_save, err);
}

int save_fate(const struct member *member, uint64_t step, struct cairn_error *err)
{
    const struct job *job = member->job;
    const struct remembered *m = job_recall(job, step, member->incarnation);

    if (m && m->committed)
        return 1;
    if (m)
        return cairn_fail(err, CAIRN_E_ABORTED, "job %s: step %llu was given up: %s", job->name,
                          (unsigned long long)step, m->reason);
    return cairn_fail(err, CAIRN_E_NOT_FOUND, "job %s: what became of step %llu is not known here", job->name,
                      (unsigned long long)step);
}

int save_resume(struct member *member, uint64_t step, uint32_t attempt, const struct save_events *events, void *arg,
                struct rank_save **ret_save, struct cairn_error *err)
{
    struct job *job = member->job;
    struct run *run = job_find_run(job, step, member->incarnation);
    int r = save_check_member(member, step, err);

    if (r < 0)
        return r;
    if (run) {
        r = save_check_run(run, member, err);
    } else if (job_take_leftover(job, step, member->incarnation)) {
        r = run_adopt(job, step, &run, err);
    } else {
        r = save_fate(member, step, err);
        if (r != CAIRN_E_NOT_FOUND)
            return r;
        r = save_check_new(job, step, err);
        if (r == 0)
            r = run_new(job, step, &run, err);
    }
    return r < 0 ? r : save_enlist(member, run, attempt, events, arg, ret_save, err);
}

/* ---- filled, dropped, asked ------------------------------------------------------------------ */

void save_filled(struct rank_save *save, const struct cairn_layout *layout, const char *arena, const uint32_t *pages)
{
    save->layout = layout;
    save->arena = arena;
    save->pages = pages;
    save->filled = true;
    run_feed(save->run, &(struct commit_event){.type = COMMIT_ON_FILLED, .rank = save->rank});
}

void rank_save_dropped(struct rank_save *save, const char *why)
{
    run_feed(save->run, &(struct commit_event){.type = COMMIT_ON_DROPPED, .rank = save->rank, .reason = why});
}

void save_drop(struct rank_save *save, const char *why)
{
    rank_save_dropped(save, why);
}

void save_why(const struct rank_save *save, char *buf, size_t len)
{
    const struct run *run = save->run;
    char missing[256] = "", drain[256] = "";

    if (run->told) {
        snprintf(buf, len, "step %llu: %s", (unsigned long long)run->step,
                 run->code == 0 ? "committed" : run->err.message);
        return;
    }
    if (commit_open(&run->machine))
        commit_missing(&run->machine, missing, sizeof missing);
    if (save->draining)
        drain_why(save->drain, drain, sizeof drain);
    snprintf(buf, len, "step %llu is %s%s%s%s%s", (unsigned long long)run->step, commit_state_name(run->machine.state),
             missing[0] ? ": " : "", missing, drain[0] ? "; " : "", drain);
}
