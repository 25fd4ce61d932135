/* SPDX-License-Identifier: Apache-2.0 */
/* The coordinator's driver of one checkpoint's machine (core/checkpoint/commit.h): ranks' reports become its events,
 * its effects requests to the metadata, the root's blob and verdicts, their answers events again. At most one request
 * to the metadata is in flight; a repeated one waits a growing pause. A transaction that was refused or has no answer
 * is followed by a reading of the job's records, which also renews the revisions that the next try compares. Intents
 * and commits compare the coordinator's key: whoever claims it has cut off those before. The object lives until its
 * machine ended and nothing of it is under way. */
#include "daemon/node/job_internal.h"

#include "core/base/error.h"
#include "daemon/io/log.h"
#include "daemon/node/decision_copy.h"

#include <stdio.h>
#include <string.h>

static void decide_feed(struct decider *d, const struct commit_event *event);

static void decide_event(struct decider *d, int type)
{
    decide_feed(d, &(struct commit_event){.type = type});
}

static void decide_event_because(struct decider *d, int type, int code, const char *reason)
{
    decide_feed(d, &(struct commit_event){.type = type, .code = code, .reason = reason});
}

/* ---- requests to the metadata ----------------------------------------------------------------- */

static void decide_answered(struct meta_req *req, const struct cairn_meta_result *result);

static void decide_send_read(struct decider *d)
{
    char prefix[RECORD_KEY_MAX];

    record_key_job(prefix, d->job->name, "");
    meta_list(d->job->jobs->deps.meta, prefix, d->job->jobs->config.meta_ms, &d->req);
}

/* What is known here need not be asked: the compares would even hold, with the newer revisions that we know. */
static bool decide_outdated(struct decider *d, int what)
{
    const struct job *job = d->job;

    if (what == COMMIT_WRITE_INTENT && !job->held) /* first: who does not hold the job cannot say that nobody commits */
        decide_event(d, COMMIT_ON_INTENT_UNKNOWN); /* the lease is being renewed: in a while */
    else if (what == COMMIT_WRITE_INTENT && d->incarnation != job->inc.incarnation)
        decide_event_because(d, COMMIT_ON_INTENT_REFUSED, CAIRN_E_FENCED, "a newer start of the job took over");
    else if (what == COMMIT_PUT_COMMIT && (!job->held || (job->pin_revision && job->pin.incarnation > d->incarnation)))
        decide_event(d, COMMIT_ON_REFUSED); /* the reading that follows says more */
    else
        return false;
    return true;
}

static void decide_send(struct decider *d, int what)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    bool intent = what == COMMIT_WRITE_INTENT;
    int r = 0;

    if (decide_outdated(d, what))
        return;
    d->sent = what;
    d->req = (struct meta_req){.done = decide_answered, .arg = d};
    if (intent)
        r = decider_put_intent(d, &err);
    else if (what == COMMIT_PUT_COMMIT)
        r = decider_put_commit(d, &err);
    else if (what == COMMIT_PUT_ABORT)
        r = view_send_abort(d->job->jobs, d->job->name, d->step, d->incarnation, d->machine.reason, &d->req, &err);
    else
        decide_send_read(d);
    if (r == 0)
        return;
    log_line(LOG_ERROR, "job %s step %llu: %s", d->job->name, (unsigned long long)d->step, err.message);
    d->sent = 0;
    decide_event_because(d, intent ? COMMIT_ON_INTENT_REFUSED : COMMIT_ON_UNKNOWN, r, err.message);
}

static void decide_paused(struct loop_timer *timer)
{
    struct decider *d = timer->arg;
    int what = d->paused;

    d->paused = 0;
    decide_send(d, what);
    decider_maybe_free(d);
}

static void decide_ask(struct decider *d, int what, bool again)
{
    if (!again) {
        decide_send(d, what);
        return;
    }
    d->paused = what;
    loop_timer_after(d->job->jobs->deps.loop, &d->pause, d->pause_ms);
    d->pause_ms = d->pause_ms * 2 > JOB_MAX_PAUSE_MS ? JOB_MAX_PAUSE_MS : d->pause_ms * 2;
}

/* ---- answers --------------------------------------------------------------------------------- */

/* Why an intent was refused: for good, or only because a revision that it compared has moved. Another coordinator may
 * have intended the checkpoint, or decided it, before this one noticed that its lease is gone. */
static void decide_intent_refused(struct decider *d, const struct view *v)
{
    ptrdiff_t at = view_find(v, d->step, d->incarnation);
    char why[WIRE_TEXT];

    if (at >= 0 && v->known[at].fate == KNOWN_COMMITTED) {
        decide_event(d, COMMIT_ON_READ_COMMIT);
    } else if (at >= 0 && v->known[at].fate == KNOWN_ABORTED) {
        decide_event_because(d, COMMIT_ON_READ_ABORT, 0, v->decisions[at].reason);
    } else if (at < 0 && v->inc.incarnation != d->incarnation) {
        snprintf(why, sizeof why, "start %s (incarnation %llu) took over", v->inc.start_id,
                 (unsigned long long)v->inc.incarnation);
        decide_event_because(d, COMMIT_ON_INTENT_REFUSED, CAIRN_E_FENCED, why);
    } else {
        decide_event(d, COMMIT_ON_INTENT_UNKNOWN);
    }
}

static void decide_was_read(struct decider *d, const struct view *v)
{
    ptrdiff_t at = view_find(v, d->step, d->incarnation);
    int fate = at < 0 ? KNOWN_UNDECIDED : v->known[at].fate;

    if (fate == KNOWN_COMMITTED || fate == KNOWN_DELETED) /* it was, and is not needed any more */
        decide_event(d, COMMIT_ON_READ_COMMIT);
    else if (fate == KNOWN_ABORTED)
        decide_event_because(d, COMMIT_ON_READ_ABORT, 0, v->decisions[at].reason);
    else
        decide_event(d, v->pin_revision && v->pin.incarnation > d->incarnation ? COMMIT_ON_READ_FENCED
                                                                               : COMMIT_ON_READ_ABSENT);
}

static void decide_read_done(struct decider *d, const struct cairn_meta_result *result)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    bool refused = d->refused;
    struct view v;

    d->refused = false;
    int r = view_read(&v, d->job->name, result, &err);
    if (r < 0) {
        decide_event(d, refused ? COMMIT_ON_INTENT_UNKNOWN : COMMIT_ON_READ_FAILED);
        return;
    }
    job_learn(d->job, &v);
    if (d->job->held && v.coordinator_revision != d->job->coordinator_revision) {
        d->job->held = false;
        job_stale(d->job);
    }
    if (refused)
        decide_intent_refused(d, &v);
    else
        decide_was_read(d, &v);
    view_free(&v);
}

static void decide_intent_done(struct decider *d, const struct cairn_meta_result *result)
{
    if (result->code < 0) {
        decide_event(d, COMMIT_ON_INTENT_UNKNOWN);
    } else if (result->succeeded) {
        decide_event(d, COMMIT_ON_INTENT_WRITTEN);
    } else { /* also when the base was deleted or found lost meanwhile: no drain has begun, so it can go without */
        share_refused(&d->job->share, &d->root.base);
        d->root.base = (struct ckpt_base){.is_set = false};
        d->chain = 0;
        d->no_base = true;
        d->refused = true;
        d->sent = COMMIT_READ;
        decide_send_read(d);
    }
}

static void decide_answered(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct decider *d = req->arg;
    int sent = d->sent;

    d->sent = 0;
    if (d->over)
        ; /* the daemon stops */
    else if (sent == COMMIT_WRITE_INTENT)
        decide_intent_done(d, result);
    else if (sent == COMMIT_READ)
        decide_read_done(d, result);
    else {
        if (sent == COMMIT_PUT_COMMIT && result->code == 0 && result->succeeded)
            decider_applied(d, result->revision);
        decide_event(d, result->code < 0    ? COMMIT_ON_UNKNOWN
                        : result->succeeded ? COMMIT_ON_APPLIED
                                            : COMMIT_ON_REFUSED);
    }
    decider_maybe_free(d);
}

/* ---- the root -------------------------------------------------------------------------------- */

static void decide_root_done(void *arg, int code, const struct cairn_error *err, const struct blob_ref *ref)
{
    struct decider *d = arg;

    d->rooting = false;
    if (code == 0)
        d->root_ref = *ref;
    if (!d->over)
        decide_event_because(d, code < 0 ? COMMIT_ON_ROOT_FAILED : COMMIT_ON_ROOT_STORED, code,
                             code < 0 && err ? err->message : "");
    decider_maybe_free(d);
}

static void decide_store_root(struct decider *d)
{
    struct jobs *jobs = d->job->jobs;
    struct fragment_key key = {.step = d->step, .incarnation = d->incarnation, .kind = FRAGMENT_ROOT};
    struct cairn_error err = CAIRN_ERROR_INIT;
    unsigned copies = cairn_geometry_for(links_live(jobs->deps.links)).m + 1u;

    snprintf(key.job, sizeof key.job, "%s", d->job->name);
    snprintf(key.node, sizeof key.node, "%s", jobs->node);
    d->root.created_unix_ms = jobs_unix_ms();
    int r = root_encode(&d->root, &d->root_bytes, &err);
    if (r < 0) {
        decide_event_because(d, COMMIT_ON_ROOT_FAILED, r, err.message);
        return;
    }
    d->rooting = true;
    blob_put(jobs->deps.links, &key, d->job->pin_revision ? d->job->pin.incarnation : 0, d->root_bytes.data,
             d->root_bytes.len, copies, jobs->config.checkpoint_ms, decide_root_done, d);
}

/* What is told by policy; then, unless something else ended it meanwhile, the root. */
void decider_compared(struct decider *d, const char *mismatch)
{
    const struct jobs *jobs = d->job->jobs;
    bool waits = !d->over && d->machine.state == COMMIT_ROOTING, fails = jobs->config.common_fails;
    static const char by[] = "; [node] common_mismatch = fail";
    char reason[COMMIT_REASON] = "";

    if (waits && mismatch) {
        d->job->mismatches++;
        size_t len = strlen(mismatch), room = sizeof reason - sizeof by;
        if (len > room)
            len = cairn_whole_characters(mismatch, room);
        snprintf(reason, sizeof reason, "%.*s%s", (int)len, mismatch, by);
        if (!fails)
            log_line(LOG_WARNING, "job %s: step %llu is committed although %s", d->job->name,
                     (unsigned long long)d->step, mismatch);
    }
    if (waits && mismatch && fails)
        decide_event_because(d, COMMIT_ON_REJECTED, CAIRN_E_ABORTED, reason);
    else if (waits)
        decide_store_root(d);
}

/* ---- the end --------------------------------------------------------------------------------- */

static void decide_copied(void *arg)
{
    struct decider *d = arg;

    d->copying = false;
    decider_maybe_free(d);
}

static void decide_end(struct decider *d)
{
    struct job *job = d->job;
    bool committed = d->machine.state == COMMIT_COMMITTED;
    unsigned long long step = d->step;

    d->over = true;
    if (!d->known) /* the engine was silent: what it may hold is adopted when it answers */
        job_stale(job);
    loop_timer_cancel(job->jobs->deps.loop, &d->deadline);
    loop_timer_cancel(job->jobs->deps.loop, &d->grace);
    job_remember(job, d->step, d->incarnation, committed ? 0 : d->machine.code, d->machine.reason);
    job->committed += committed;
    job->aborted += !committed;
    d->copying = committed && d->machine.root && decision_copy(job->jobs, &d->root, &d->root_ref, decide_copied, d);
    if (committed) {
        job->any_committed = true;
        job->last_committed = d->step;
        log_line(LOG_NOTICE, "job %s: step %llu of incarnation %llu is committed", job->name, step,
                 (unsigned long long)d->incarnation);
    } else {
        log_line(LOG_WARNING, "job %s: step %llu is %s: %s", job->name, step,
                 d->machine.state == COMMIT_ABORTED ? "aborted" : "undecided", d->machine.reason);
    }
    jobs_wake_openings(job->jobs, job->name);
}

static void decide_tell(struct decider *d, int verdict)
{
    bool intent = verdict == VERDICT_INTENT;

    if (intent && d->announced) { /* another rank of this node has filled: the others ask for themselves */
        struct run *run = job_find_run(d->job, d->step, d->incarnation);
        if (run)
            run_verdict(run, verdict, 0, "");
        return;
    }
    d->announced |= intent;
    job_announce(d->job, d->step, d->incarnation, verdict, intent ? 0 : d->machine.code,
                 intent ? "" : d->machine.reason);
}

static void decide_effect(struct decider *d, int what, bool again)
{
    switch (what) {
    case COMMIT_START_DRAINS:
        decide_tell(d, VERDICT_INTENT);
        break;
    case COMMIT_STOP_DRAINS:
        break; /* the verdict does */
    case COMMIT_STORE_ROOT:
        decider_compare(d);
        break;
    case COMMIT_TELL:
        decide_tell(d, report_verdict(&d->machine));
        break;
    case COMMIT_END:
        decide_end(d);
        break;
    default:
        decide_ask(d, what, again);
    }
}

static void decide_feed(struct decider *d, const struct commit_event *event)
{
    struct commit_effects fx;

    if (d->over)
        return;
    d->known = event->type == COMMIT_ON_APPLIED || event->type == COMMIT_ON_INTENT_REFUSED ||
               event->type == COMMIT_ON_READ_COMMIT || event->type == COMMIT_ON_READ_ABORT;
    commit_step(&d->machine, event, &fx);
    for (unsigned i = 0; i < fx.n; i++)
        decide_effect(d, fx.what[i], fx.again);
}

/* ---- time ------------------------------------------------------------------------------------ */

void decider_why(const struct decider *d, char *buf, size_t len)
{
    uint32_t rank = commit_first_missing(&d->machine);
    char missing[COMMIT_REASON / 2] = "nobody is missing";
    const char *node = rank < d->machine.world_size ? d->root.shards[rank].node : "";

    if (commit_open(&d->machine))
        commit_missing(&d->machine, missing, sizeof missing);
    snprintf(buf, len, "%s: %s%s%s", commit_state_name(d->machine.state), missing, node[0] ? "; it is on node " : "",
             node);
}

static void decide_late(struct loop_timer *timer)
{
    struct decider *d = timer->arg;
    uint32_t rank = commit_first_missing(&d->machine);
    const char *node = rank < d->machine.world_size ? d->root.shards[rank].node : "";
    struct run *run = job_find_run(d->job, d->step, d->incarnation);
    char why[WIRE_TEXT] = "", drain[WIRE_TEXT / 2] = "";

    if (run)
        run_why(run, rank, drain, sizeof drain);
    if (node[0] && strcmp(node, d->job->jobs->node) != 0)
        snprintf(why, sizeof why, "rank %u is on node %s", rank, node);
    else if (rank < d->machine.world_size && !node[0] && d->machine.world_size > 1 && d->job->ncrew > 0)
        snprintf(why, sizeof why, "no node has reported rank %u", rank);
    decide_event_because(d, COMMIT_ON_DEADLINE, CAIRN_E_TIMEOUT, why[0] ? why : drain);
    decider_maybe_free(d);
}

/* Whoever still has a snapshot of an adopted checkpoint has said so by now. */
static void decide_unheard(struct loop_timer *timer)
{
    struct decider *d = timer->arg;
    char why[WIRE_TEXT];

    snprintf(why, sizeof why, "no node has its snapshot since node %s took the job over", d->job->jobs->node);
    for (uint32_t i = 0; i < d->machine.world_size && commit_open(&d->machine); i++)
        if (d->ranks[i] == COMMIT_ABSENT)
            decide_feed(d, &(struct commit_event){.type = COMMIT_ON_GONE, .rank = i, .reason = why});
    decider_maybe_free(d);
}

/* ---- the object ------------------------------------------------------------------------------ */

struct decider *job_find_decider(const struct job *job, uint64_t step, uint64_t incarnation)
{
    list_for_each (it, &job->deciders) {
        struct decider *d = container_of(it, struct decider, link);
        if (d->step == step && d->incarnation == incarnation)
            return d;
    }
    return NULL;
}

static void decide_free(struct decider *d)
{
    root_free(&d->root);
    bytes_free(&d->root_bytes);
    free(d->ranks);
    free(d->heard_ns);
    free(d);
}

void decider_maybe_free(struct decider *d)
{
    struct job *job = d->job;
    struct loop *loop = job->jobs->deps.loop;

    if (!d->over || d->rooting || d->copying || d->comparing || d->sent || d->feeding)
        return;
    loop_timer_cancel(loop, &d->deadline);
    loop_timer_cancel(loop, &d->pause);
    loop_timer_cancel(loop, &d->grace);
    list_remove(&d->link);
    job->ndeciders--;
    struct run *run = job_find_run(job, d->step, d->incarnation);
    if (run)
        run_maybe_free(run);
    else
        links_end_checkpoint(job->jobs->deps.links, job->name, d->step, d->incarnation,
                             d->machine.state == COMMIT_ABORTED);
    if (d->machine.state == COMMIT_COMMITTED && !job->jobs->stopping)
        retainer_want(job->jobs, job->name);
    decide_free(d);
    job_post(job);
}

static struct decider *decide_new(struct job *job, uint64_t step, uint64_t incarnation, uint32_t world)
{
    struct decider *d = calloc(1, sizeof *d);

    if (!d)
        return NULL;
    root_init(&d->root);
    d->ranks = calloc(world, sizeof *d->ranks);
    d->heard_ns = calloc(world, sizeof *d->heard_ns);
    d->root.shards = calloc(world, sizeof *d->root.shards);
    if (!d->ranks || !d->heard_ns || !d->root.shards) {
        decide_free(d);
        return NULL;
    }
    d->root.world_size = world;
    d->root.step = step;
    d->root.incarnation = incarnation;
    snprintf(d->root.job, sizeof d->root.job, "%s", job->name);
    snprintf(d->root.node, sizeof d->root.node, "%s", job->jobs->node);
    d->job = job;
    d->step = step;
    d->incarnation = incarnation;
    d->pause_ms = JOB_PAUSE_MS;
    d->pause = (struct loop_timer){.fire = decide_paused, .arg = d};
    d->deadline = (struct loop_timer){.fire = decide_late, .arg = d};
    d->grace = (struct loop_timer){.fire = decide_unheard, .arg = d};
    list_push_back(&job->deciders, &d->link);
    job->ndeciders++;
    return d;
}

static struct decider *decide_begin(struct job *job, uint64_t step)
{
    uint32_t deadline_ms = job->jobs->config.checkpoint_ms;
    struct decider *d = decide_new(job, step, job->inc.incarnation, job->inc.world_size);
    struct commit_effects fx;

    if (!d)
        return NULL;
    loop_timer_after(job->jobs->deps.loop, &d->deadline, deadline_ms);
    commit_init(&d->machine, step, job->inc.world_size, deadline_ms, d->ranks, &fx);
    for (unsigned i = 0; i < fx.n; i++)
        decide_effect(d, fx.what[i], fx.again);
    return d;
}

/* ---- adopting -------------------------------------------------------------------------------- */

static void decide_adopt(struct job *job, const struct known *k, const struct record_intent *intent)
{
    struct decider *d = decide_new(job, k->step, k->incarnation, intent->world_size);
    uint32_t deadline_ms = intent->deadline_ms < 1000 ? 1000 : intent->deadline_ms;

    if (!d) {
        job_stale(job);
        return;
    }
    log_line(LOG_NOTICE, "job %s: step %llu of incarnation %llu was left undecided by node %s: its ranks are awaited",
             job->name, (unsigned long long)k->step, (unsigned long long)k->incarnation, intent->node);
    d->root.base = intent->base;
    d->chain = intent->base.is_set ? CAIRN_MAX_CHAIN : 0; /* not known: the next one is whole */
    commit_adopt(&d->machine, k->step, intent->world_size, deadline_ms, d->ranks);
    loop_timer_after(job->jobs->deps.loop, &d->deadline, deadline_ms);
    loop_timer_after(job->jobs->deps.loop, &d->grace, job->jobs->config.lease_ms + 500);
    struct run *run = job_find_run(job, k->step, k->incarnation);
    if (run)
        run_report(run, true);
}

/* Oldest first: the newest stay. */
void job_remember_decisions(struct job *job, const struct view *v)
{
    size_t first = v->n > JOB_REMEMBERED ? v->n - JOB_REMEMBERED : 0;

    for (size_t i = first; i < v->n; i++) {
        const struct known *k = &v->known[i];
        if (k->fate != KNOWN_UNDECIDED && !job_recall(job, k->step, k->incarnation))
            job_remember(job, k->step, k->incarnation, k->fate == KNOWN_ABORTED ? CAIRN_E_ABORTED : 0,
                         v->decisions[i].reason);
    }
}

void job_adopt(struct job *job, const struct view *v)
{
    delta_adopted(job, v);
    for (size_t i = 0; i < v->n; i++) {
        const struct known *k = &v->known[i];
        if (k->fate == KNOWN_UNDECIDED && !job_find_decider(job, k->step, k->incarnation) &&
            v->intents[i].world_size > 0)
            decide_adopt(job, k, &v->intents[i]);
    }
}

/* ---- reports --------------------------------------------------------------------------------- */

/* Why a checkpoint that is not on its way does not get on its way for this rank; 0 when it may. */
static int decide_refuse(const struct job *job, uint64_t step, uint64_t incarnation, const struct crew_entry *e,
                         char reason[COMMIT_REASON])
{
    if (incarnation < job->inc.incarnation) {
        snprintf(reason, COMMIT_REASON, "start %s (incarnation %llu) of the job took over", job->inc.start_id,
                 (unsigned long long)job->inc.incarnation);
        return CAIRN_E_FENCED;
    }
    if (e->state == REPORT_DROPPED) {
        snprintf(reason, COMMIT_REASON, "rank %u gave up step %llu: %.180s", e->rank, (unsigned long long)step,
                 e->reason);
        return CAIRN_E_ABORTED;
    }
    if (job->decided && step <= job->last_decided) {
        snprintf(reason, COMMIT_REASON, "incarnation %llu has decided step %llu already",
                 (unsigned long long)incarnation, (unsigned long long)job->last_decided);
        return CAIRN_E_EXISTS;
    }
    if (job->ndeciders >= JOB_MAX_RUNS) {
        snprintf(reason, COMMIT_REASON, "%u checkpoints are on their way already", job->ndeciders);
        return CAIRN_E_BUSY;
    }
    return 0;
}

static struct decider *decide_find_or_begin(struct job *job, uint64_t step, uint64_t incarnation,
                                            const struct crew_entry *e)
{
    struct decider *d = job_find_decider(job, step, incarnation);
    const struct remembered *m = d ? NULL : job_recall(job, step, incarnation);
    char reason[COMMIT_REASON];

    if (d)
        return d;
    if (m) {
        job_answer(job, e->shard.node, step, incarnation, m->committed ? VERDICT_COMMITTED : VERDICT_ABORTED, m->code,
                   m->reason);
        return NULL;
    }
    if (incarnation > job->inc.incarnation) { /* a start that this node has not heard of: the report comes again */
        job_stale(job);
        return NULL;
    }
    int code = decide_refuse(job, step, incarnation, e, reason);
    if (code == 0)
        return decide_begin(job, step);
    if (code == CAIRN_E_ABORTED) {
        job_remember(job, step, incarnation, code, reason);
        job->aborted++;
        job_announce(job, step, incarnation, VERDICT_ABORTED, code, reason);
    } else {
        job_answer(job, e->shard.node, step, incarnation, VERDICT_ABORTED, code, reason);
    }
    return NULL;
}

/* The pin moved: a rank that loaded what was pinned before goes on from another state than the others. */
static bool decide_stale_pin(const struct decider *d, const struct crew_entry *e)
{
    const struct job *job = d->job;

    return job->pin_revision && job->pin.incarnation == d->incarnation && e->pin_number &&
           e->pin_number < job->pin.number && e->state <= REPORT_FILLED;
}

static void decide_take(struct decider *d, const struct crew_entry *e)
{
    struct report r = {e->rank, e->state, e->reason};
    struct commit_event events[REPORT_MAX_EVENTS];

    if (e->rank >= d->machine.world_size || !commit_open(&d->machine))
        return;
    if (decide_stale_pin(d, e)) {
        r.state = REPORT_DROPPED;
        r.reason = "the job's resume step moved: it must load that before it may save";
    }
    d->heard_ns[e->rank] = loop_now_ns(d->job->jobs->deps.loop);
    if (d->ranks[e->rank] < COMMIT_DURABLE)
        d->root.shards[e->rank] = e->shard;
    d->root.shards[e->rank].rank = e->rank;
    bool begins = d->ranks[e->rank] == COMMIT_ABSENT;
    unsigned n = report_events(&d->machine, &r, events);
    for (unsigned i = 0; i < n; i++)
        decide_feed(d, &events[i]);
    if (begins && commit_open(&d->machine)) /* ranks may come one after another, as those of an import do */
        loop_timer_after(d->job->jobs->deps.loop, &d->deadline, d->machine.deadline_ms);
}

/* A rank saves its steps in order: one that has begun a later step than those it is awaited for will not begin them.
 * Its daemon was away when they began, perhaps; the others must not wait until their deadline. */
static void decide_passed_over(struct job *job, uint64_t step, uint64_t incarnation, const struct crew_entry *e)
{
    char why[WIRE_TEXT];

    if (e->state == REPORT_DROPPED)
        return;
    snprintf(why, sizeof why, "it went on to step %llu", (unsigned long long)step);
    list_for_each_safe (it, &job->deciders) {
        struct decider *d = container_of(it, struct decider, link);
        if (d->incarnation != incarnation || d->step >= step || e->rank >= d->machine.world_size ||
            d->ranks[e->rank] != COMMIT_ABSENT || d->grace.heap_index)
            continue;
        decide_feed(d, &(struct commit_event){.type = COMMIT_ON_DROPPED, .rank = e->rank, .reason = why});
        decider_maybe_free(d);
    }
}

/* Before the intent is announced there is nothing to hurry: the announcement says it then. */
void job_decide_hurry(struct job *job, uint64_t step, uint64_t incarnation)
{
    struct decider *d = job_find_decider(job, step, incarnation);

    if (!d || d->over || d->hurry)
        return;
    d->hurry = true;
    if (d->announced)
        job_announce(job, step, incarnation, VERDICT_INTENT, 0, "");
}

void job_decide(struct job *job, uint64_t step, uint64_t incarnation, const struct crew_entry *e)
{
    decide_passed_over(job, step, incarnation, e);
    struct decider *d = decide_find_or_begin(job, step, incarnation, e);

    if (!d)
        return;
    bool news = e->rank < d->machine.world_size && d->ranks[e->rank] < COMMIT_DURABLE &&
                d->ranks[e->rank] != (e->state == REPORT_DURABLE  ? COMMIT_DURABLE
                                      : e->state == REPORT_FILLED ? COMMIT_FILLED
                                                                  : COMMIT_BEGUN);
    d->feeding = true;
    decide_take(d, e);
    d->feeding = false;
    int verdict = report_verdict(&d->machine);
    if (verdict != VERDICT_NONE && (!news || verdict == VERDICT_INTENT)) /* said before, and missed perhaps */
        job_answer(job, e->shard.node, step, incarnation, verdict, verdict == VERDICT_INTENT ? 0 : d->machine.code,
                   verdict == VERDICT_INTENT ? "" : d->machine.reason);
    decider_maybe_free(d);
}

/* ---- what happens to all of them ------------------------------------------------------------- */

void job_crew_lost(struct job *job, const struct crew_node *node)
{
    char why[CAIRN_MAX_NAME + 64];

    snprintf(why, sizeof why, "node %s was silent for %u ms", node->address.node, job->jobs->config.lease_ms);
    list_for_each_safe (it, &job->deciders) {
        struct decider *d = container_of(it, struct decider, link);
        for (uint32_t i = 0; i < node->nranks; i++) {
            const char *of = node->ranks[i] < d->machine.world_size ? d->root.shards[node->ranks[i]].node : "?";
            if (!of[0] || strcmp(of, node->address.node) == 0)
                decide_feed(d, &(struct commit_event){.type = COMMIT_ON_GONE, .rank = node->ranks[i], .reason = why});
        }
        decider_maybe_free(d);
    }
}

static void decide_expire(struct decider *d, uint64_t before_ns)
{
    char why[CAIRN_MAX_NAME + 96];

    for (uint32_t i = 0; i < d->machine.world_size && commit_open(&d->machine); i++) {
        if (d->ranks[i] == COMMIT_ABSENT || d->ranks[i] == COMMIT_DURABLE || d->heard_ns[i] > before_ns)
            continue;
        snprintf(why, sizeof why, "node %s speaks for it no more: its daemon was restarted", d->root.shards[i].node);
        decide_feed(d, &(struct commit_event){.type = COMMIT_ON_GONE, .rank = i, .reason = why});
    }
}

void job_expire_ranks(struct job *job)
{
    uint64_t lease_ns = (uint64_t)job->jobs->config.lease_ms * 1000000, now = loop_now_ns(job->jobs->deps.loop);

    list_for_each_safe (it, &job->deciders) {
        struct decider *d = container_of(it, struct decider, link);
        if (now > lease_ns * 3 / 2)
            decide_expire(d, now - lease_ns * 3 / 2);
        decider_maybe_free(d);
    }
}

void job_decide_fence(struct job *job, const char *why)
{
    list_for_each_safe (it, &job->deciders) {
        struct decider *d = container_of(it, struct decider, link);
        bool unheard = d->grace.heap_index; /* adopted: its ranks' nodes drop what is not filled themselves */
        if (d->incarnation < job->inc.incarnation && !unheard)
            decide_feed(d, &(struct commit_event){.type = COMMIT_ON_FENCED, .reason = why});
        decider_maybe_free(d);
    }
}

void job_drop_deciders(struct job *job)
{
    list_for_each_safe (it, &job->deciders) {
        struct decider *d = container_of(it, struct decider, link);
        d->over = true;
        d->paused = 0;
        decider_maybe_free(d);
    }
}
