/* SPDX-License-Identifier: Apache-2.0 */
/* Retention. Jobs are looked at one by one, after a commit and every [retention] interval_s:
 *
 *     records read --> tombstones that are there: peers are told again (FORGET)
 *                  --> what no rule keeps is buried (job_bury.c), if this daemon coordinates the job or nobody does
 *
 *     FORGOTTEN of every peer that the tombstone names and of every peer that is registered
 *                  --> the checkpoint's records go, in one transaction
 *
 * Nothing here must be remembered over a restart: the tombstone says all. Jobs that nobody coordinates are looked after
 * by the sweeper: the one daemon that holds cairn/v1/sweeper under its lease. */
#include "daemon/node/job_internal.h"

#include "core/base/cleanup.h"
#include "daemon/io/log.h"

#include <stdio.h>
#include <string.h>

struct grave { /* a tombstone whose checkpoint's files may still be there */
    struct list link;
    struct retainer *retainer;
    char job[CAIRN_MAX_NAME + 1];
    uint64_t step, incarnation;
    uint64_t revision; /* of the tombstone */
    bool seen;         /* in the last reading of the job's records */
    char (*peers)[CAIRN_MAX_NAME + 1];
    uint32_t npeers;
    char (*answered)[CAIRN_MAX_NAME + 1];
    uint32_t nanswered;
    bool removing; /* the transaction is in flight */
    struct meta_req req;
};
struct kept_job {
    struct list link;
    char name[CAIRN_MAX_NAME + 1];
    bool wanted;
    bool told; /* that everything is kept */
};
enum pass_phase { PASS_IDLE, PASS_READING, PASS_BURYING };
enum sweep_phase { SWEEP_IDLE, SWEEP_ASKING, SWEEP_CLAIMING, SWEEP_LISTING };

struct retainer {
    struct jobs *jobs;
    struct list graves;
    struct list kept_jobs;
    struct loop_timer timer;
    struct loop_post post;
    bool posted;
    int phase; /* enum pass_phase */
    struct kept_job *job;
    struct meta_req req;
    struct view view;
    bool *chosen; /* beside view.known */
    size_t at;
    struct burial burial;
    int sweep; /* enum sweep_phase */
    struct meta_req sweep_req;
};

static void retainer_kick(struct retainer *t);

/* ---- graves ---------------------------------------------------------------------------------- */

static struct grave *grave_find(struct retainer *t, const char *job, uint64_t step, uint64_t incarnation)
{
    list_for_each (it, &t->graves) {
        struct grave *g = container_of(it, struct grave, link);
        if (g->step == step && g->incarnation == incarnation && strcmp(g->job, job) == 0)
            return g;
    }
    return NULL;
}

static void grave_free(struct grave *g)
{
    list_remove(&g->link);
    free(g->peers);
    free(g->answered);
    free(g);
}

static bool grave_heard(const struct grave *g, const char *peer)
{
    for (uint32_t i = 0; i < g->nanswered; i++)
        if (strcmp(g->answered[i], peer) == 0)
            return true;
    return false;
}

struct grave_check {
    const struct grave *grave;
    bool any, all;
};

static void grave_check_peer(void *arg, const char *peer, bool registered)
{
    struct grave_check *c = arg;

    if (!registered)
        return;
    c->any = true;
    c->all &= grave_heard(c->grave, peer);
}

/* Whether every peer that could answer has. A daemon that knows no peer yet has heard nobody. */
static bool grave_all_here_answered(const struct grave *g)
{
    struct grave_check c = {.grave = g, .all = true};

    links_each_peer(g->retainer->jobs->deps.links, grave_check_peer, &c);
    return c.any && c.all;
}

static bool grave_is_empty(const struct grave *g)
{
    for (uint32_t i = 0; i < g->npeers; i++)
        if (!grave_heard(g, g->peers[i]))
            return false;
    return grave_all_here_answered(g);
}

static void grave_removed(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct grave *g = req->arg;
    struct jobs *jobs = g->retainer->jobs;

    g->removing = false;
    if (result->code == 0) { /* refused: another daemon was first */
        if (result->succeeded)
            log_line(LOG_DETAIL, "job %s: nothing is left of step %llu of incarnation %llu", g->job,
                     (unsigned long long)g->step, (unsigned long long)g->incarnation);
        grave_free(g);
    }
    jobs_maybe_stopped(jobs);
}

static void grave_remove(struct grave *g)
{
    static const char *const what[] = {"intent", "decision", "holds", "lost", "tombstone"};
    struct jobs *jobs = g->retainer->jobs;
    char keys[5][RECORD_KEY_MAX];
    const char *deletes[5];

    for (unsigned i = 0; i < 5; i++) {
        record_key_ckpt(keys[i], g->job, g->step, g->incarnation, what[i]);
        deletes[i] = keys[i];
    }
    struct cairn_compare seen = {keys[4], g->revision};
    struct cairn_txn txn = {.compares = &seen, .ncompares = 1, .deletes = deletes, .ndeletes = 5};
    g->removing = true;
    g->req = (struct meta_req){.done = grave_removed, .arg = g};
    meta_txn(jobs->deps.meta, &txn, jobs->config.meta_ms, &g->req);
}

static void grave_tick(struct grave *g)
{
    if (!g->removing && !g->retainer->jobs->stopping && grave_is_empty(g))
        grave_remove(g);
}

static void retainer_forgotten(void *arg, const char *peer, const char *job, uint64_t step, uint64_t incarnation)
{
    struct grave *g = grave_find(arg, job, step, incarnation);

    if (!g)
        return; /* of an aborted one, or of another daemon's: its records tell */
    if (!grave_heard(g, peer)) {
        void *more = reallocarray(g->answered, g->nanswered + 1, sizeof *g->answered);
        if (!more)
            return; /* it is asked again */
        g->answered = more;
        snprintf(g->answered[g->nanswered++], sizeof *g->answered, "%s", peer);
    }
    grave_tick(g);
}

/* Tells the peers, again when the grave is known. */
static void grave_dig(struct retainer *t, const char *job, uint64_t step, uint64_t incarnation, uint64_t revision,
                      const struct record_tombstone *tombstone)
{
    struct grave *g = grave_find(t, job, step, incarnation);

    if (!g) {
        g = calloc(1, sizeof *g);
        if (!g)
            return; /* the next reading finds it */
        g->retainer = t;
        list_init(&g->link);
        snprintf(g->job, sizeof g->job, "%s", job);
        g->step = step;
        g->incarnation = incarnation;
        g->npeers = tombstone->npeers;
        g->peers = calloc(g->npeers ? g->npeers : 1, sizeof *g->peers);
        if (!g->peers) {
            grave_free(g);
            return;
        }
        memcpy(g->peers, tombstone->peers, g->npeers * sizeof *g->peers);
        list_push_back(&t->graves, &g->link);
    }
    g->revision = revision;
    g->seen = true;
    if (!grave_all_here_answered(g)) /* else it waits for one that is away */
        links_end_checkpoint(t->jobs->deps.links, job, step, incarnation, true);
    grave_tick(g);
}

void retainer_buried(struct jobs *jobs, const struct burial *b, uint64_t revision)
{
    grave_dig(jobs->retainer, b->job, b->step, b->incarnation, revision, b->tombstone);
}

/* ---- one pass over one job ------------------------------------------------------------------- */

static void pass_end(struct retainer *t)
{
    view_free(&t->view);
    free(TAKE_PTR(t->chosen));
    t->job = NULL;
    t->phase = PASS_IDLE;
    retainer_kick(t);
    jobs_maybe_stopped(t->jobs);
}

static void pass_dig(struct retainer *t, uint64_t read_revision)
{
    const struct view *v = &t->view;

    list_for_each (it, &t->graves)
        container_of(it, struct grave, link)->seen = false;
    for (size_t i = 0; i < v->n; i++)
        if (v->keeping[i].tombstone)
            grave_dig(t, t->job->name, v->known[i].step, v->known[i].incarnation, v->keeping[i].tombstone_revision,
                      v->keeping[i].tombstone);
    list_for_each_safe (it, &t->graves) { /* another daemon has finished them */
        struct grave *g = container_of(it, struct grave, link);
        bool older = g->revision <= read_revision; /* not one that was put since */
        if (!g->seen && older && !g->removing && strcmp(g->job, t->job->name) == 0)
            grave_free(g);
    }
}

/* The job's own rule, or the daemon's. One that cannot be read keeps everything. */
static struct retention pass_rule(struct retainer *t)
{
    const struct record_settings *s = &t->view.settings;
    struct retention rule = t->jobs->config.retention;
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (s->retention[0] && retention_parse(s->retention, &rule, &err) < 0) {
        log_line(LOG_WARNING, "job %s: everything is kept: %s", t->job->name, err.message);
        return (struct retention){.last = 0};
    }
    if (!s->retention[0] && retention_keeps_all(&rule) && !t->job->told) {
        t->job->told = true;
        log_line(LOG_NOTICE,
                 "job %s: every checkpoint is kept, until the storage is full: set [retention] rule, or \"cairn retain "
                 "%s last=3\"",
                 t->job->name, t->job->name);
    }
    return rule;
}

/* This node has something of it under way: its last fragments behind the commit, or the decision's copies. */
static bool is_under_way(const struct jobs *jobs, const char *name, const struct known *k)
{
    const struct job *job = NULL;

    list_for_each (it, &jobs->jobs)
        if (strcmp(container_of(it, struct job, link)->name, name) == 0)
            job = container_of(it, struct job, link);
    return job && (job_find_run(job, k->step, k->incarnation) || job_find_decider(job, k->step, k->incarnation));
}

bool retainer_needs(const struct jobs *jobs, const char *job, const struct view *v, size_t at)
{
    const struct known *next = NULL;

    for (size_t i = 0; i < v->n; i++)
        if (v->known[i].fate == KNOWN_COMMITTED && known_compare(&v->known[i], &v->known[at]) > 0 &&
            (!next || known_compare(&v->known[i], next) < 0))
            next = &v->known[i];
    return is_under_way(jobs, job, &v->known[at]) || (next && is_under_way(jobs, job, next));
}

static int pass_choose(struct retainer *t, struct cairn_error *err)
{
    const struct view *v = &t->view;
    _cleanup_free_ struct retention_item *items = calloc(v->n + 1, sizeof *items);
    struct retention rule = pass_rule(t);

    t->chosen = calloc(v->n + 1, sizeof *t->chosen);
    if (!items || !t->chosen)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate %zu checkpoints", v->n);
    view_items(v, items);
    for (size_t i = 0; i < v->n; i++) {
        bool under_way = is_under_way(t->jobs, t->job->name, &v->known[i]);
        items[i].held |= under_way;
        items[i].full = !under_way;
    }
    retention_choose(&rule, items, v->n, jobs_unix_ms(), t->chosen);
    return 0;
}

static void pass_bury(struct retainer *t);

static void pass_buried(struct burial *b, int code, const struct cairn_error *err)
{
    struct retainer *t = b->arg;

    if (code < 0) /* refused for a hold that came, or no answer: the next pass looks again */
        log_line(LOG_DETAIL, "job %s: %s", b->job, err->message);
    else if (b->decision.base.is_set) /* its base may go now, if nothing else keeps that */
        t->job->wanted = true;
    t->at++;
    pass_bury(t);
}

/* The next chosen one. */
static void pass_bury(struct retainer *t)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    char reason[WIRE_TEXT], rule[RETENTION_TEXT];

    while (t->at < t->view.n && !t->chosen[t->at])
        t->at++;
    if (t->at >= t->view.n || t->jobs->stopping) {
        pass_end(t);
        return;
    }
    struct retention r = pass_rule(t);
    retention_print(&r, rule);
    snprintf(reason, sizeof reason, "the job keeps %s", rule);
    t->phase = PASS_BURYING;
    t->burial = (struct burial){.done = pass_buried, .arg = t};
    if (burial_start(t->jobs, &t->burial, t->job->name, &t->view, t->at, reason, &err) < 0) {
        log_line(LOG_WARNING, "job %s: %s", t->job->name, err.message);
        pass_end(t);
    }
}

static void pass_read(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct retainer *t = req->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;

    int r = view_read(&t->view, t->job->name, result, &err);
    if (r == 0 && !t->jobs->stopping) {
        bool others = t->view.coordinator_revision && strcmp(t->view.coordinator.node, t->jobs->node) != 0;
        pass_dig(t, result->revision);
        if (!others)
            r = pass_choose(t, &err);
    }
    if (r < 0)
        log_line(LOG_WARNING, "job %s: look for old checkpoints: %s", t->job->name, err.message);
    t->at = 0;
    if (r < 0 || !t->chosen)
        pass_end(t);
    else
        pass_bury(t);
}

static void retainer_next(struct loop_post *post)
{
    struct retainer *t = post->arg;
    char prefix[RECORD_KEY_MAX];

    t->posted = false;
    if (t->jobs->stopping)
        jobs_maybe_stopped(t->jobs);
    if (t->jobs->stopping || t->phase != PASS_IDLE)
        return;
    list_for_each (it, &t->kept_jobs) {
        struct kept_job *k = container_of(it, struct kept_job, link);
        if (!k->wanted)
            continue;
        k->wanted = false;
        t->job = k;
        t->phase = PASS_READING;
        t->req = (struct meta_req){.done = pass_read, .arg = t};
        record_key_job(prefix, k->name, "");
        meta_list(t->jobs->deps.meta, prefix, t->jobs->config.meta_ms, &t->req);
        return;
    }
}

static void retainer_kick(struct retainer *t)
{
    if (t->posted)
        return;
    t->posted = true;
    loop_defer(t->jobs->deps.loop, &t->post);
}

void retainer_want(struct jobs *jobs, const char *job)
{
    struct retainer *t = jobs->retainer;
    struct kept_job *k = NULL;

    list_for_each (it, &t->kept_jobs)
        if (strcmp(container_of(it, struct kept_job, link)->name, job) == 0)
            k = container_of(it, struct kept_job, link);
    if (!k) {
        k = calloc(1, sizeof *k);
        if (!k)
            return; /* the next commit, or the next round */
        snprintf(k->name, sizeof k->name, "%s", job);
        list_push_back(&t->kept_jobs, &k->link);
    }
    k->wanted = true;
    retainer_kick(t);
}

/* ---- the sweeper: jobs that nobody coordinates ----------------------------------------------- */

static void sweep_end(struct retainer *t)
{
    t->sweep = SWEEP_IDLE;
    jobs_maybe_stopped(t->jobs);
}

/* Wanted when nobody coordinates it and there may be something to do. */
static void sweep_job(struct retainer *t, const char *job, bool held, bool worth)
{
    if (job[0] && !held && (worth || !retention_keeps_all(&t->jobs->config.retention)))
        retainer_want(t->jobs, job);
}

static void sweep_listed(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct retainer *t = req->arg;
    char prefix[RECORD_KEY_MAX], job[CAIRN_MAX_NAME + 1] = "";
    bool held = false, worth = false;

    record_prefix_jobs(prefix);
    size_t len = strlen(prefix);
    for (size_t i = 0; result->code == 0 && i < result->nkvs && !t->jobs->stopping; i++) {
        const char *name = result->kvs[i].key + len;
        const char *end = strncmp(result->kvs[i].key, prefix, len) == 0 ? strchr(name, '/') : NULL;
        size_t name_len = end ? (size_t)(end - name) : 0;
        if (name_len == 0 || name_len > CAIRN_MAX_NAME)
            continue;
        if (strlen(job) != name_len || memcmp(job, name, name_len) != 0) {
            sweep_job(t, job, held, worth);
            held = worth = false;
            memcpy(job, name, name_len);
            job[name_len] = 0;
        }
        held |= strcmp(end, "/coordinator") == 0;
        worth |= strcmp(end, "/settings") == 0 || strcmp(strrchr(end, '/'), "/tombstone") == 0;
    }
    if (!t->jobs->stopping)
        sweep_job(t, job, held, worth);
    sweep_end(t);
}

static void sweep_list(struct retainer *t)
{
    char prefix[RECORD_KEY_MAX];

    record_prefix_jobs(prefix);
    t->sweep = SWEEP_LISTING;
    t->sweep_req = (struct meta_req){.done = sweep_listed, .arg = t};
    meta_list(t->jobs->deps.meta, prefix, t->jobs->config.meta_ms, &t->sweep_req);
}

static void sweep_claimed(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct retainer *t = req->arg;

    if (result->code == 0 && result->succeeded && !t->jobs->stopping)
        sweep_list(t);
    else
        sweep_end(t); /* another one was first, or the lease is gone: the next round asks again */
}

static void sweep_claim(struct retainer *t)
{
    struct jobs *jobs = t->jobs;
    struct record_coordinator c = {.start = jobs->config.start};
    struct bytes value = {0};
    char key[RECORD_KEY_MAX];

    if (jobs->lease == 0) {
        jobs_want_lease(jobs);
        sweep_end(t);
        return;
    }
    snprintf(c.node, sizeof c.node, "%s", jobs->node);
    record_key_sweeper(key);
    if (record_coordinator_encode(&c, &value, NULL) == 0) {
        struct cairn_compare absent = {key, 0};
        struct cairn_put put = {key, value.data, value.len, jobs->lease};
        struct cairn_txn txn = {.compares = &absent, .ncompares = 1, .puts = &put, .nputs = 1};
        t->sweep = SWEEP_CLAIMING;
        t->sweep_req = (struct meta_req){.done = sweep_claimed, .arg = t};
        meta_txn(jobs->deps.meta, &txn, jobs->config.meta_ms, &t->sweep_req);
    } else {
        sweep_end(t);
    }
    bytes_free(&value);
}

static void sweep_asked(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct retainer *t = req->arg;
    const struct jobs *jobs = t->jobs;
    struct record_coordinator c;

    if (result->code < 0 || jobs->stopping)
        sweep_end(t);
    else if (result->nkvs == 0)
        sweep_claim(t);
    else if (record_coordinator_decode(&c, result->kvs[0].value, result->kvs[0].value_len, NULL) == 0 && jobs->lease &&
             c.start == jobs->config.start && strcmp(c.node, jobs->node) == 0)
        sweep_list(t);
    else
        sweep_end(t);
}

static void sweep_start(struct retainer *t)
{
    char key[RECORD_KEY_MAX];

    if (t->sweep != SWEEP_IDLE)
        return;
    record_key_sweeper(key);
    t->sweep = SWEEP_ASKING;
    t->sweep_req = (struct meta_req){.done = sweep_asked, .arg = t};
    meta_get(t->jobs->deps.meta, key, t->jobs->config.meta_ms, &t->sweep_req);
}

/* ---- the object ------------------------------------------------------------------------------ */

static void retainer_round(struct loop_timer *timer)
{
    struct retainer *t = timer->arg;
    struct jobs *jobs = t->jobs;

    list_for_each (it, &jobs->jobs) {
        const struct job *job = container_of(it, struct job, link);
        if (job->held)
            retainer_want(jobs, job->name);
    }
    list_for_each (it, &t->graves)
        retainer_want(jobs, container_of(it, struct grave, link)->job);
    sweep_start(t);
    loop_timer_after(jobs->deps.loop, timer, jobs->config.retention_ms);
}

int retainer_new(struct jobs *jobs, struct cairn_error *err)
{
    struct retainer *t = calloc(1, sizeof *t);

    if (!t)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the retention of checkpoints");
    t->jobs = jobs;
    list_init(&t->graves);
    list_init(&t->kept_jobs);
    t->post = (struct loop_post){.run = retainer_next, .arg = t};
    t->timer = (struct loop_timer){.fire = retainer_round, .arg = t};
    if (jobs->config.retention_ms)
        loop_timer_after(jobs->deps.loop, &t->timer, jobs->config.retention_ms);
    links_on_forgotten(jobs->deps.links, retainer_forgotten, t);
    jobs->retainer = t;
    return 0;
}

void retainer_stop(struct jobs *jobs)
{
    loop_timer_cancel(jobs->deps.loop, &jobs->retainer->timer);
    links_on_forgotten(jobs->deps.links, NULL, NULL);
}

bool retainer_quiet(const struct jobs *jobs)
{
    const struct retainer *t = jobs->retainer;

    list_for_each (it, &t->graves)
        if (container_of(it, struct grave, link)->removing)
            return false;
    return t->phase == PASS_IDLE && t->sweep == SWEEP_IDLE && !t->posted;
}

void retainer_free(struct jobs *jobs)
{
    struct retainer *t = jobs->retainer;

    list_for_each_safe (it, &t->graves)
        grave_free(container_of(it, struct grave, link));
    list_for_each_safe (it, &t->kept_jobs) {
        struct kept_job *k = container_of(it, struct kept_job, link);
        list_remove(&k->link);
        free(k);
    }
    free(t);
}
