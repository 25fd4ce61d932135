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
    if (save->state == REPORT_DURABLE && !save->durable_told && !save->told) {
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
    list_remove(&save->of_run);
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
    list_for_each (it, &run->saves)
        save_post(container_of(it, struct rank_save, of_run));
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

    if (code == 0 && !run->over && !run->told) {
        delta_note(save, ref, manifest);
        save->ref = *ref;
        save->state = REPORT_DURABLE;
        save_measured(save);
        save->unreported = true;
        save_post(save);
        run_report(run, false);
    } else if (code < 0 && !run->over) {
        run_give_up(run, save->rank, REPORT_FAILED, code == CAIRN_E_CORRUPT ? code : CAIRN_E_ABORTED,
                    err && err->message[0] ? err->message : cairn_code_name(code));
    }
    save_post(save);
}

/* Behind its done(): what was late is stored too, or left to repair. */
static void save_drain_ended(void *arg, unsigned left)
{
    struct rank_save *save = arg;
    struct run *run = save->run;

    (void)left;
    save->draining = false;
    save->drain = NULL;
    run->ndrains--;
    save_post(save);
    run_maybe_free(run);
}

static bool save_base(void *arg, const struct manifest_base *base, uint32_t first_part, unsigned k,
                      struct cairn_delta *ret, const char **ret_plain)
{
    return delta_base(arg, base, first_part, k, ret, ret_plain);
}

static bool save_maybe_same(void *arg, const struct manifest_base *base, uint32_t first_part, unsigned k,
                            struct cairn_delta *ret)
{
    return delta_maybe_same(arg, base, first_part, k, ret);
}

static void save_not_same(void *arg, const struct manifest_base *base, uint32_t first_part)
{
    delta_not_same(arg, base, first_part);
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
                              .world_size = run->world_size,
                              .layout = save->image.layout,
                              .arena = save->image.arena,
                              .pages = save->image.pages,
                              .packed = save->image.packed,
                              .filling = save->state == REPORT_BEGUN,
                              .in_place = save->in_place,
                              .sums = save->sums,
                              .sums_seed = save->sums_seed,
                              .attempt = save->attempt,
                              .numerics = job->jobs->numerics.max ? &job->jobs->numerics : NULL,
                              .deadline_ms = job->jobs->config.checkpoint_ms,
                              .pace = run_pace(run, save->image.layout->nparts),
                              .arg = save,
                              .durable = save_parts_durable,
                              .done = save_drain_done,
                              .ended = save_drain_ended,
                              .base = save_base,
                              .maybe_same = save_maybe_same,
                              .not_same = save_not_same};

    delta_choose(save, &spec.against);
    int r = drain_start(job->jobs->deps.links, &spec, &save->drain, &err);
    if (r == 0) {
        save->draining = true;
        run->ndrains++;
        return;
    }
    run_give_up(run, save->rank, REPORT_FAILED, CAIRN_E_ABORTED, err.message);
}

static bool may_drain(const struct rank_save *save)
{
    return save->state == REPORT_FILLED || (save->state == REPORT_BEGUN && save->in_place > 0);
}

void run_start_drains(struct run *run)
{
    list_for_each (it, &run->saves) {
        struct rank_save *save = container_of(it, struct rank_save, of_run);
        if (run->intent && !run->told && may_drain(save) && !save->draining)
            save_start_drain(save);
    }
}

void run_stop_drains(struct run *run)
{
    list_for_each (it, &run->saves) {
        struct rank_save *save = container_of(it, struct rank_save, of_run);
        if (!save->draining || save->cancelled)
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
    if (step >= CAIRN_LATEST_FINITE)
        return cairn_fail(err, CAIRN_E_INVAL, "job %s: that step means \"latest\" and cannot be saved", job->name);
    if (job->pin_revision && job->pin.incarnation == m->incarnation && m->pin_number && m->pin_number < job->pin.number)
        return cairn_fail(err, CAIRN_E_STALE_PIN,
                          "job %s: the resume step moved to %llu; rank %u must load it before it may save", job->name,
                          (unsigned long long)job->pin.step, m->rank);
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
    list_for_each (it, &run->saves)
        if (run->over || container_of(it, struct rank_save, of_run)->rank == m->rank)
            return cairn_fail(err, CAIRN_E_EXISTS, "job %s: rank %u saves step %llu already", run->job->name, m->rank,
                              step);
    return 0;
}

/* Fragments of two starts of a daemon never have one name: a save that is made again under the same step must not be
 * mixed with what the start before left on the peers. 24 bits of the start, 256 attempts. */
static uint32_t jobs_first_attempt(const struct jobs *jobs)
{
    return (uint32_t)(jobs->config.start & 0xffffff) << 8;
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
    save->attempt = jobs_first_attempt(member->job->jobs) + attempt;
    save->pin_number = member->pin_number;
    save->begun_ns = loop_now_ns(member->job->jobs->deps.loop);
    save->events = *events;
    save->arg = arg;
    save->post = (struct loop_post){.run = save_deliver, .arg = save};
    list_push_back(&member->saves, &save->link);
    list_push_back(&run->saves, &save->of_run);
    run->nsaves++;
    save->state = REPORT_BEGUN;
    save->unreported = true;
    run_report(run, false);
    if (run->told) /* refused at once */
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
    if (run && run->told && run->code == 0) /* it lives on behind its commit until it is full */
        return cairn_fail(err, CAIRN_E_EXISTS, "job %s: step %llu is committed already", member->job->name,
                          (unsigned long long)step);
    r = run ? save_check_run(run, member, err) : save_check_new(member->job, step, err);
    if (r == 0 && !run)
        r = run_new(member->job, step, &run, err);
    if (r == 0)
        run_begun(run);
    return r < 0 ? r : save_enlist(member, run, 0, events, arg, ret_save, err);
}

int save_fate(const struct member *member, uint64_t step, struct cairn_error *err)
{
    const struct job *job = member->job;
    const struct remembered *m = job_recall(job, step, member->incarnation);
    const struct run *run = job_find_run(job, step, member->incarnation);

    if (run && run->told && (run->given_up || run->aborted)) /* its saves here were told so */
        return cairn_fail(err, CAIRN_E_ABORTED, "job %s: step %llu was given up: %s", job->name,
                          (unsigned long long)step, run->err.message);
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
    } else { /* whether its step was decided without it is the coordinator's to say */
        r = save_fate(member, step, err);
        if (r != CAIRN_E_NOT_FOUND)
            return r;
        r = run_new(job, step, &run, err);
    }
    return r < 0 ? r : save_enlist(member, run, attempt, events, arg, ret_save, err);
}

/* ---- filled, dropped, asked ------------------------------------------------------------------ */

void save_in_place(struct rank_save *save, const struct save_image *image, uint32_t parts)
{
    save->image = *image;
    save->in_place = parts;
    if (save->draining)
        drain_in_place(save->drain, parts);
    else
        run_start_drains(save->run);
}

void save_sums(struct rank_save *save, const struct hash128 *sums, uint64_t seed)
{
    save->sums = sums;
    save->sums_seed = seed;
    if (save->draining)
        drain_sums(save->drain, sums, seed);
}

void save_filled(struct rank_save *save, const struct save_image *image)
{
    struct run *run = save->run;

    save->image = *image;
    save->state = REPORT_FILLED;
    save->filled_ns = loop_now_ns(run->job->jobs->deps.loop);
    if (run->told)
        return;
    save->unreported = true;
    if (save->draining)
        drain_filled(save->drain);
    run_report(run, false);
    run_start_drains(run);
}

void rank_save_dropped(struct rank_save *save, const char *why)
{
    if (save->state == REPORT_BEGUN)
        run_give_up(save->run, save->rank, REPORT_DROPPED, CAIRN_E_ABORTED, why);
}

bool save_is_stored(const struct rank_save *save)
{
    return save->state == REPORT_DURABLE && !save->draining;
}

void save_hurry(struct rank_save *save, int why)
{
    struct run *run = save->run;

    run_hurry(run, why);
    if (why != CAIRN_PACE_WAITED || run->waited || run->told || run->over)
        return;
    run->waited = true;
    save->unreported = true; /* with its state goes that somebody waits */
    run_report(run, false);
}

void save_drop(struct rank_save *save, const char *why)
{
    rank_save_dropped(save, why);
}

static const char *state_name(int state)
{
    return state == REPORT_DURABLE ? "durable" : state == REPORT_FILLED ? "filled" : "begun";
}

void save_why(const struct rank_save *save, char *buf, size_t len)
{
    const struct run *run = save->run;
    const struct job *job = run->job;
    const struct decider *d = job_find_decider(job, run->step, run->incarnation);
    char others[256] = "", drain[256] = "";

    if (run->told) {
        snprintf(buf, len, "step %llu: %s", (unsigned long long)run->step,
                 run->code == 0 ? "committed" : run->err.message);
        return;
    }
    if (d)
        decider_why(d, others, sizeof others);
    else if (job->coordinator.node[0])
        snprintf(others, sizeof others, "%s; node %s coordinates",
                 run->intent ? "other ranks are awaited" : "its intent is awaited", job->coordinator.node);
    else
        snprintf(others, sizeof others, "no node coordinates the job");
    if (save->draining)
        drain_why(save->drain, drain, sizeof drain);
    snprintf(buf, len, "step %llu, rank %u is %s: %s%s%s", (unsigned long long)run->step, save->rank,
             state_name(save->state), others, drain[0] ? "; " : "", drain);
}
