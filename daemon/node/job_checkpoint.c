/* SPDX-License-Identifier: Apache-2.0 */
/* The driver of one checkpoint's machine (core/checkpoint/commit.h): its effects become requests to the metadata,
 * drains and blobs, and their answers its events. At most one request to the metadata is in flight; a repeated one
 * waits a growing pause. A transaction that was refused or has no answer is followed by a reading of the job's records,
 * which also renews the revisions that the next try compares. The object lives until its machine ended and nothing of
 * it is under way. */
#include "daemon/node/job_internal.h"

#include "core/base/cleanup.h"
#include "core/model/stripe.h"
#include "daemon/io/log.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static void run_event(struct run *run, int type)
{
    run_feed(run, &(struct commit_event){.type = type});
}

static void run_event_because(struct run *run, int type, int code, const char *reason)
{
    run_feed(run, &(struct commit_event){.type = type, .code = code, .reason = reason});
}

static uint64_t unix_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* ---- transactions ---------------------------------------------------------------------------- */

static void run_answered(struct meta_req *req, const struct cairn_meta_result *result);

/* Keys of what a transaction of this checkpoint compares. */
struct run_keys {
    char intent[RECORD_KEY_MAX];
    char decision[RECORD_KEY_MAX];
    char incarnation[RECORD_KEY_MAX];
    char pin[RECORD_KEY_MAX];
    char coordinator[RECORD_KEY_MAX];
};

static void run_keys_fill(struct run_keys *k, const struct run *run)
{
    const char *job = run->job->name;

    record_key_ckpt(k->intent, job, run->step, run->incarnation, "intent");
    record_key_ckpt(k->decision, job, run->step, run->incarnation, "decision");
    record_key_job(k->incarnation, job, "incarnation");
    record_key_job(k->pin, job, "pin");
    record_key_job(k->coordinator, job, "coordinator");
}

static void run_txn(struct run *run, const struct cairn_compare *compares, size_t ncompares, const char *key,
                    const struct bytes *value)
{
    struct cairn_put put = {key, value->data, value->len, 0};
    struct cairn_txn txn = {.compares = compares, .ncompares = ncompares, .puts = &put, .nputs = 1};

    meta_txn(run->job->jobs->deps.meta, &txn, run->job->jobs->config.meta_ms, &run->req);
}

static int run_send_intent(struct run *run, struct cairn_error *err)
{
    struct job *job = run->job;
    struct record_intent intent = {
        .world_size = run->machine.world_size, .nodes = 1, .deadline_ms = job->jobs->config.checkpoint_ms};
    struct bytes value = {0};
    struct run_keys k;

    snprintf(intent.node, sizeof intent.node, "%s", job->jobs->node);
    run_keys_fill(&k, run);
    int r = record_intent_encode(&intent, &value, err);
    if (r == 0) {
        struct cairn_compare c[] = {{k.decision, 0},
                                    {k.incarnation, job->inc_revision},
                                    {k.pin, job->pin_revision},
                                    {k.coordinator, job->coordinator_revision}};
        run_txn(run, c, 4, k.intent, &value);
    }
    bytes_free(&value);
    return r;
}

static int run_send_commit(struct run *run, struct cairn_error *err)
{
    struct job *job = run->job;
    struct record_decision d = {.commit = true,
                                .root = run->root_ref,
                                .world_size = run->machine.world_size,
                                .created_unix_ms = run->root.created_unix_ms};
    struct bytes value = {0};
    struct run_keys k;

    snprintf(d.node, sizeof d.node, "%s", job->jobs->node);
    for (uint32_t i = 0; i < run->machine.world_size; i++) {
        d.plain_bytes += run->root.shards[i].plain_bytes;
        d.stored_bytes += run->root.shards[i].stored_bytes;
    }
    run_keys_fill(&k, run);
    int r = record_decision_encode(&d, &value, err);
    if (r == 0) {
        struct cairn_compare c[] = {{k.decision, 0}, {k.incarnation, job->inc_revision}, {k.pin, job->pin_revision}};
        run_txn(run, c, 3, k.decision, &value);
    }
    bytes_free(&value);
    return r;
}

static void run_send_read(struct run *run)
{
    char prefix[RECORD_KEY_MAX];

    record_key_job(prefix, run->job->name, "");
    meta_list(run->job->jobs->deps.meta, prefix, run->job->jobs->config.meta_ms, &run->req);
}

/* What is known here need not be asked: the compares would even hold, with the newer revisions that we know. */
static bool run_outdated(struct run *run, int what)
{
    const struct job *job = run->job;

    if (what == COMMIT_WRITE_INTENT && run->incarnation != job->inc.incarnation)
        run_event_because(run, COMMIT_ON_INTENT_REFUSED, CAIRN_E_FENCED, "a newer start of the job took over");
    else if (what == COMMIT_WRITE_INTENT && !job->held)
        run_event(run, COMMIT_ON_INTENT_UNKNOWN); /* the lease is being renewed: in a while */
    else if (what == COMMIT_PUT_COMMIT && job->pin_revision && job->pin.incarnation > run->incarnation)
        run_event(run, COMMIT_ON_REFUSED);
    else
        return false;
    return true;
}

static void run_send(struct run *run, int what)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    bool intent = what == COMMIT_WRITE_INTENT;
    int r = 0;

    if (run_outdated(run, what))
        return;
    run->sent = what;
    run->req = (struct meta_req){.done = run_answered, .arg = run};
    if (intent)
        r = run_send_intent(run, &err);
    else if (what == COMMIT_PUT_COMMIT)
        r = run_send_commit(run, &err);
    else if (what == COMMIT_PUT_ABORT)
        r = view_send_abort(run->job->jobs, run->job->name, run->step, run->incarnation, run->machine.reason, &run->req,
                            &err);
    else
        run_send_read(run);
    if (r == 0)
        return;
    log_line(LOG_ERROR, "job %s step %llu: %s", run->job->name, (unsigned long long)run->step, err.message);
    run->sent = 0;
    run_event_because(run, intent ? COMMIT_ON_INTENT_REFUSED : COMMIT_ON_UNKNOWN, r, err.message);
}

static void run_paused(struct loop_timer *timer)
{
    struct run *run = timer->arg;
    int what = run->paused;

    run->paused = 0;
    run_send(run, what);
    run_maybe_free(run);
}

static void run_ask(struct run *run, int what, bool again)
{
    if (!again) {
        run_send(run, what);
        return;
    }
    run->paused = what;
    loop_timer_after(run->job->jobs->deps.loop, &run->pause, run->pause_ms);
    run->pause_ms = run->pause_ms * 2 > JOB_MAX_PAUSE_MS ? JOB_MAX_PAUSE_MS : run->pause_ms * 2;
}

/* ---- answers --------------------------------------------------------------------------------- */

/* Why an intent was refused: for good, or only because a revision that it compared has moved. */
static void run_intent_refused(struct run *run, const struct view *v)
{
    ptrdiff_t at = view_find(v, run->step, run->incarnation);
    char why[WIRE_TEXT];

    if (v->inc.incarnation != run->incarnation) {
        snprintf(why, sizeof why, "start %s (incarnation %llu) took over", v->inc.start_id,
                 (unsigned long long)v->inc.incarnation);
        run_event_because(run, COMMIT_ON_INTENT_REFUSED, CAIRN_E_FENCED, why);
    } else if (at >= 0 && v->known[at].fate != KNOWN_UNDECIDED) {
        snprintf(why, sizeof why, "step %llu of incarnation %llu is %s already", (unsigned long long)run->step,
                 (unsigned long long)run->incarnation, known_fate_name(v->known[at].fate));
        run_event_because(run, COMMIT_ON_INTENT_REFUSED, CAIRN_E_EXISTS, why);
    } else {
        run_event(run, COMMIT_ON_INTENT_UNKNOWN);
    }
}

static void run_was_read(struct run *run, const struct view *v)
{
    ptrdiff_t at = view_find(v, run->step, run->incarnation);
    int fate = at < 0 ? KNOWN_UNDECIDED : v->known[at].fate;

    if (fate == KNOWN_COMMITTED)
        run_event(run, COMMIT_ON_READ_COMMIT);
    else if (fate == KNOWN_ABORTED)
        run_event_because(run, COMMIT_ON_READ_ABORT, 0, v->decisions[at].reason);
    else
        run_event(run, v->pin_revision && v->pin.incarnation > run->incarnation ? COMMIT_ON_READ_FENCED
                                                                                : COMMIT_ON_READ_ABSENT);
}

static void run_read_done(struct run *run, const struct cairn_meta_result *result)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    bool refused = run->refused;
    struct view v;

    run->refused = false;
    int r = view_read(&v, run->job->name, result, &err);
    if (r < 0) {
        run_event(run, refused ? COMMIT_ON_INTENT_UNKNOWN : COMMIT_ON_READ_FAILED);
        return;
    }
    job_learn(run->job, &v);
    if (run->job->held && v.coordinator_revision != run->job->coordinator_revision) {
        run->job->held = run->job->valid = false;
        job_post(run->job);
    }
    if (refused)
        run_intent_refused(run, &v);
    else
        run_was_read(run, &v);
    view_free(&v);
}

static void run_intent_done(struct run *run, const struct cairn_meta_result *result)
{
    if (result->code < 0) {
        run_event(run, COMMIT_ON_INTENT_UNKNOWN);
    } else if (result->succeeded) {
        run_event(run, COMMIT_ON_INTENT_WRITTEN);
    } else {
        run->refused = true;
        run->sent = COMMIT_READ;
        run_send_read(run);
    }
}

static void run_answered(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct run *run = req->arg;
    int sent = run->sent;

    run->sent = 0;
    if (run->over)
        ; /* the daemon stops */
    else if (sent == COMMIT_WRITE_INTENT)
        run_intent_done(run, result);
    else if (sent == COMMIT_READ)
        run_read_done(run, result);
    else
        run_event(run, result->code < 0    ? COMMIT_ON_UNKNOWN
                       : result->succeeded ? COMMIT_ON_APPLIED
                                           : COMMIT_ON_REFUSED);
    run_maybe_free(run);
}

/* ---- the root -------------------------------------------------------------------------------- */

static void run_root_done(void *arg, int code, const struct cairn_error *err, const struct blob_ref *ref)
{
    struct run *run = arg;

    run->rooting = false;
    if (code == 0)
        run->root_ref = *ref;
    if (!run->over)
        run_event_because(run, code < 0 ? COMMIT_ON_ROOT_FAILED : COMMIT_ON_ROOT_STORED, code,
                          code < 0 && err ? err->message : "");
    run_maybe_free(run);
}

static void run_store_root(struct run *run)
{
    struct jobs *jobs = run->job->jobs;
    struct fragment_key key = {.step = run->step, .incarnation = run->incarnation, .kind = FRAGMENT_ROOT};
    struct cairn_error err = CAIRN_ERROR_INIT;
    unsigned copies = cairn_geometry_for(links_live(jobs->deps.links)).m + 1u;

    snprintf(key.job, sizeof key.job, "%s", run->job->name);
    snprintf(key.node, sizeof key.node, "%s", jobs->node);
    run->root.created_unix_ms = unix_ms();
    int r = root_encode(&run->root, &run->root_bytes, &err);
    if (r < 0) {
        run_event_because(run, COMMIT_ON_ROOT_FAILED, r, err.message);
        return;
    }
    run->rooting = true;
    blob_put(jobs->deps.links, &key, run->job->pin_revision ? run->job->pin.incarnation : 0, run->root_bytes.data,
             run->root_bytes.len, copies, jobs->config.checkpoint_ms, run_root_done, run);
}

/* ---- the end --------------------------------------------------------------------------------- */

static void run_end(struct run *run)
{
    struct job *job = run->job;
    bool committed = run->machine.state == COMMIT_COMMITTED;
    unsigned long long step = run->step;

    run->over = true;
    if (!run->known) { /* the engine was silent: what it may hold is swept when it answers */
        job->valid = false;
        job_post(job);
    }
    loop_timer_cancel(job->jobs->deps.loop, &run->deadline);
    job_remember(job, run->step, run->incarnation, committed, run->machine.reason);
    job->committed += committed;
    job->aborted += !committed;
    if (committed) {
        job->any_committed = true;
        job->last_committed = run->step;
        log_line(LOG_NOTICE, "job %s: step %llu of incarnation %llu is committed", job->name, step,
                 (unsigned long long)run->incarnation);
    } else {
        log_line(LOG_WARNING, "job %s: step %llu is %s: %s", job->name, step,
                 run->machine.state == COMMIT_ABORTED ? "aborted" : "undecided", run->machine.reason);
    }
    jobs_wake_openings(job->jobs, job->name);
}

static void run_effect(struct run *run, int what, bool again)
{
    switch (what) {
    case COMMIT_START_DRAINS:
        run_start_drains(run);
        break;
    case COMMIT_STOP_DRAINS:
        run_stop_drains(run);
        break;
    case COMMIT_STORE_ROOT:
        run_store_root(run);
        break;
    case COMMIT_TELL:
        run_tell(run, run->machine.code, run->machine.reason);
        break;
    case COMMIT_END:
        run_end(run);
        break;
    default:
        run_ask(run, what, again);
    }
}

void run_feed(struct run *run, const struct commit_event *event)
{
    struct commit_effects fx;

    if (run->over)
        return;
    run->known = event->type == COMMIT_ON_APPLIED || event->type == COMMIT_ON_INTENT_REFUSED ||
                 event->type == COMMIT_ON_READ_COMMIT || event->type == COMMIT_ON_READ_ABORT;
    commit_step(&run->machine, event, &fx);
    for (unsigned i = 0; i < fx.n; i++)
        run_effect(run, fx.what[i], fx.again);
}

/* Who has handed its snapshot back by now has the usual time; who has not is not waited for. */
static void run_grace_over(struct run *run)
{
    const struct jobs *jobs = run->job->jobs;
    char why[128];

    run->adopted = false;
    snprintf(why, sizeof why, "it did not hand its snapshot back within %u ms of the restart of cairnd",
             jobs->config.lease_ms * JOB_GRACE_LEASES);
    for (uint32_t i = 0; i < run->machine.world_size; i++) {
        if (run->machine.rank[i] != COMMIT_ABSENT)
            continue;
        run_feed(run, &(struct commit_event){.type = COMMIT_ON_DROPPED, .rank = i, .reason = why});
        break;
    }
    if (!run->over)
        loop_timer_after(jobs->deps.loop, &run->deadline, jobs->config.checkpoint_ms);
    run_maybe_free(run);
}

static void run_late(struct loop_timer *timer)
{
    struct run *run = timer->arg;
    uint32_t rank = commit_first_missing(&run->machine);
    struct rank_save *save = rank < run->machine.world_size ? run->saves[rank] : NULL;
    char why[WIRE_TEXT / 2] = "";

    if (run->adopted) {
        run_grace_over(run);
        return;
    }
    if (save && save->draining)
        drain_why(save->drain, why, sizeof why);
    run_event_because(run, COMMIT_ON_DEADLINE, CAIRN_E_TIMEOUT, why);
    run_maybe_free(run);
}

/* The daemon stops: nothing is decided here any more. */
void run_stop(struct run *run)
{
    char why[CAIRN_MAX_NAME + 64];

    run->over = true;
    loop_timer_cancel(run->job->jobs->deps.loop, &run->deadline);
    loop_timer_cancel(run->job->jobs->deps.loop, &run->pause);
    run->paused = 0;
    run_stop_drains(run);
    snprintf(why, sizeof why, "cairnd on node %s is stopping", run->job->jobs->node);
    run_tell(run, CAIRN_E_ABORTED, why);
    run_maybe_free(run);
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

    return run && !run->over;
}

static void run_free(struct run *run)
{
    root_free(&run->root);
    bytes_free(&run->root_bytes);
    free(run->ranks);
    free(run->saves);
    free(run);
}

void run_maybe_free(struct run *run)
{
    struct job *job = run->job;
    struct jobs *jobs = job->jobs;

    if (!run->over || run->ndrains > 0 || run->rooting)
        return;
    if (!run->links_ended) { /* the drains' last fragments have gone by now */
        run->links_ended = true;
        links_end_checkpoint(jobs->deps.links, job->name, run->step, run->incarnation,
                             run->machine.state == COMMIT_ABORTED);
    }
    if (run->nsaves > 0 || run->sent)
        return;
    loop_timer_cancel(jobs->deps.loop, &run->deadline);
    loop_timer_cancel(jobs->deps.loop, &run->pause);
    list_remove(&run->link);
    job->nruns--;
    run_free(run);
    job_post(job);
}

static int run_alloc(struct job *job, uint64_t step, struct run **ret_run, struct cairn_error *err)
{
    uint32_t world = job->inc.world_size;
    struct run *run = calloc(1, sizeof *run);

    if (!run)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the checkpoint of step %llu", (unsigned long long)step);
    root_init(&run->root);
    run->ranks = calloc(world, sizeof *run->ranks);
    run->saves = calloc(world, sizeof(struct rank_save *));
    run->root.shards = calloc(world, sizeof *run->root.shards);
    if (!run->ranks || !run->saves || !run->root.shards) {
        run_free(run);
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate %u ranks", world);
    }
    run->root.world_size = world;
    run->root.step = step;
    run->root.incarnation = job->inc.incarnation;
    snprintf(run->root.job, sizeof run->root.job, "%s", job->name);
    snprintf(run->root.node, sizeof run->root.node, "%s", job->jobs->node);
    *ret_run = run;
    return 0;
}

static int run_enlist(struct job *job, uint64_t step, uint32_t deadline_ms, struct run **ret_run,
                      struct cairn_error *err)
{
    struct run *run = NULL;

    int r = run_alloc(job, step, &run, err);
    if (r < 0)
        return r;
    run->job = job;
    run->step = step;
    run->incarnation = job->inc.incarnation;
    run->pause_ms = JOB_PAUSE_MS;
    run->err = (struct cairn_error)CAIRN_ERROR_INIT;
    run->pause = (struct loop_timer){.fire = run_paused, .arg = run};
    run->deadline = (struct loop_timer){.fire = run_late, .arg = run};
    list_push_back(&job->runs, &run->link);
    job->nruns++;
    loop_timer_after(job->jobs->deps.loop, &run->deadline, deadline_ms);
    *ret_run = run;
    return 0;
}

int run_adopt(struct job *job, uint64_t step, struct run **ret_run, struct cairn_error *err)
{
    const struct jobs_config *config = &job->jobs->config;
    uint32_t grace_ms = config->lease_ms * JOB_GRACE_LEASES;
    struct run *run;
    int r = run_enlist(job, step, grace_ms < config->checkpoint_ms ? grace_ms : config->checkpoint_ms, &run, err);

    if (r < 0)
        return r;
    run->adopted = true;
    commit_adopt(&run->machine, step, job->inc.world_size, config->checkpoint_ms, run->ranks);
    log_line(LOG_NOTICE, "job %s: step %llu of incarnation %llu was left undecided and goes on", job->name,
             (unsigned long long)step, (unsigned long long)run->incarnation);
    *ret_run = run;
    return 0;
}

int run_new(struct job *job, uint64_t step, struct run **ret_run, struct cairn_error *err)
{
    uint32_t deadline_ms = job->jobs->config.checkpoint_ms;
    struct commit_effects fx;
    struct run *run;
    int r = run_enlist(job, step, deadline_ms, &run, err);

    if (r < 0)
        return r;
    commit_init(&run->machine, step, job->inc.world_size, deadline_ms, run->ranks, &fx);
    for (unsigned i = 0; i < fx.n; i++)
        run_effect(run, fx.what[i], fx.again);
    *ret_run = run;
    return 0;
}
