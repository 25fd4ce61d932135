/* SPDX-License-Identifier: Apache-2.0 */
/* The job's nodes among themselves (core/proto/crew.proto). A node greets the coordinator three times a lease and
 * learns its parent in the reporting tree; reports go up through it, verdicts come down. Whatever is repeated goes
 * straight to the coordinator, so that a silent parent costs one repeat.
 *
 * A report names the coordinator it is meant for, and a verdict the one that speaks: a node listens to one coordinator
 * at a time, and one that was succeeded is heard by nobody who reported to its successor. */
#include "daemon/node/job_internal.h"

#include "daemon/io/log.h"
#include "daemon/node/mesh.h"

#include <stdio.h>
#include <string.h>

#define CREW_READ_MS 300 /* one that disclaims the job may still be named by the key: it is not read in a circle */

static uint64_t crew_now_ns(const struct job *job)
{
    return loop_now_ns(job->jobs->deps.loop);
}

static uint64_t silent_ms(const struct job *job, uint64_t since_ns)
{
    return (crew_now_ns(job) - since_ns) / 1000000;
}

static void crew_send(struct job *job, const struct crew_address *to, struct crew_letter *l)
{
    snprintf(l->job, sizeof l->job, "%s", job->name);
    mesh_send(job->jobs->deps.mesh, to, l);
}

/* ---- a node's side: greeting ----------------------------------------------------------------- */

static void greet_add(struct crew_letter *l, uint32_t rank)
{
    for (uint32_t i = 0; i < l->greet.nranks; i++)
        if (l->greet.ranks[i] == rank)
            return;
    if (l->greet.nranks < CREW_MAX_RANKS)
        l->greet.ranks[l->greet.nranks++] = rank;
}

/* Whose state this node holds: living ranks, and those whose snapshots are still on their way. */
static void greet_fill(const struct job *job, struct crew_letter *l)
{
    l->greet.incarnation = job->inc.incarnation;
    list_for_each (it, &job->members)
        greet_add(l, container_of(it, struct member, link)->rank);
    list_for_each (it, &job->runs) {
        const struct run *run = container_of(it, struct run, link);
        list_for_each (at, &run->saves)
            greet_add(l, container_of(at, struct rank_save, of_run)->rank);
    }
}

static void crew_greet(struct job *job)
{
    struct crew_letter *l = calloc(1, sizeof *l);

    if (!l)
        return;
    l->type = CREW_GREET;
    greet_fill(job, l);
    if (l->greet.nranks > 0)
        crew_send(job, &job->coordinator, l);
    free(l);
}

static void crew_place(struct job *job, const struct crew_letter *l)
{
    if (job->held || l->from.start != job->coordinator.start)
        return;
    if (l->place.coordinates) {
        job->answered_ns = crew_now_ns(job);
        job->parent = l->place.parent;
    }
    if (l->place.incarnation > job->inc.incarnation ||
        (!l->place.coordinates && silent_ms(job, job->read_ns) > CREW_READ_MS))
        job_stale(job);
}

/* ---- the coordinator's side: the crew -------------------------------------------------------- */

static struct crew_node *crew_find(const struct job *job, const char *node)
{
    list_for_each (it, &job->crew) {
        struct crew_node *n = container_of(it, struct crew_node, link);
        if (strcmp(n->address.node, node) == 0)
            return n;
    }
    return NULL;
}

static const struct crew_node *crew_in_slot(const struct job *job, uint32_t slot)
{
    list_for_each (it, &job->crew) {
        const struct crew_node *n = container_of(it, struct crew_node, link);
        if (n->slot == slot)
            return n;
    }
    return NULL;
}

/* The list is kept in the order of the slots: the first gap is taken. */
static struct crew_node *crew_add(struct job *job)
{
    struct crew_node *n = calloc(1, sizeof *n);
    struct list *at = job->crew.next;

    if (!n)
        return NULL;
    for (; at != &job->crew && container_of(at, struct crew_node, link)->slot == n->slot; at = at->next)
        n->slot++;
    list_push_back(at, &n->link);
    job->ncrew++;
    return n;
}

static void crew_remove(struct job *job, struct crew_node *n)
{
    list_remove(&n->link);
    job->ncrew--;
    free(n);
}

static void crew_answer(struct job *job, const struct crew_node *n)
{
    struct crew_letter l = {.type = CREW_PLACE};
    uint32_t parent = report_parent(n->slot);
    const struct crew_node *p = parent == REPORT_COORDINATOR ? NULL : crew_in_slot(job, parent);

    l.place.coordinates = true;
    l.place.incarnation = job->inc.incarnation;
    if (p)
        l.place.parent = p->address;
    crew_send(job, &n->address, &l);
}

static void crew_greeted(struct job *job, const struct crew_letter *l)
{
    struct crew_node *n = crew_find(job, l->from.node);
    bool known = n != NULL;

    if (!n)
        n = crew_add(job);
    if (!n)
        return; /* it greets again */
    if (!known)
        log_line(LOG_DETAIL, "job %s: node %s greets with %u ranks", job->name, l->from.node, l->greet.nranks);
    n->address = l->from;
    n->heard_ns = crew_now_ns(job);
    n->incarnation = l->greet.incarnation;
    n->nranks = l->greet.nranks;
    memcpy(n->ranks, l->greet.ranks, sizeof n->ranks);
    crew_answer(job, n);
    if (n->incarnation > job->inc.incarnation)
        job_stale(job);
}

/* A greeting that came to a node that does not coordinate. */
static void crew_disclaim(struct jobs *jobs, const struct crew_letter *greeting)
{
    struct crew_letter l = {.type = CREW_PLACE};

    memcpy(l.job, greeting->job, sizeof l.job);
    mesh_send(jobs->deps.mesh, &greeting->from, &l);
}

void job_crew_dismiss(struct job *job)
{
    struct crew_letter l = {.type = CREW_PLACE};

    list_for_each_safe (it, &job->crew) {
        struct crew_node *n = container_of(it, struct crew_node, link);
        crew_send(job, &n->address, &l);
        crew_remove(job, n);
    }
}

static void crew_expire(struct job *job)
{
    uint32_t lease_ms = job->jobs->config.lease_ms;

    list_for_each_safe (it, &job->crew) {
        struct crew_node *n = container_of(it, struct crew_node, link);
        if (silent_ms(job, n->heard_ns) <= lease_ms)
            continue;
        log_line(LOG_WARNING, "job %s: node %s was silent for %u ms: its ranks are taken for lost", job->name,
                 n->address.node, lease_ms);
        job_crew_lost(job, n);
        crew_remove(job, n);
    }
    if (list_empty(&job->crew))
        job_post(job); /* nothing is left, perhaps */
}

/* ---- reports up ------------------------------------------------------------------------------ */

static void report_take(struct job *job, const struct crew_letter *l)
{
    for (uint32_t i = 0; i < l->report.nentries; i++)
        job_decide(job, l->report.step, l->report.incarnation, &l->report.entries[i]);
    if (l->report.hurry)
        job_decide_hurry(job, l->report.step, l->report.incarnation);
}

static void report_up(struct job *job, const struct crew_letter *report, bool straight)
{
    struct crew_letter *l = job->coordinator.node[0] ? malloc(sizeof *l) : NULL;

    if (!l)
        return; /* nobody coordinates now: it is said again */
    *l = *report;
    l->report.coordinator = job->coordinator.start;
    crew_send(job, straight || !job->parent.node[0] ? &job->coordinator : &job->parent, l);
    free(l);
}

void job_report(struct job *job, const struct crew_letter *report, bool again)
{
    if (job->held)
        report_take(job, report);
    else
        report_up(job, report, again);
}

static void child_heard(struct job *job, const struct crew_address *from)
{
    struct child *c = NULL;

    list_for_each (it, &job->children) {
        struct child *known = container_of(it, struct child, link);
        if (strcmp(known->address.node, from->node) == 0)
            c = known;
    }
    if (!c) {
        c = job->nchildren < JOB_MAX_CHILDREN ? calloc(1, sizeof *c) : NULL;
        if (!c)
            return; /* its repeats go to the coordinator, who answers */
        list_push_back(&job->children, &c->link);
        job->nchildren++;
    }
    c->address = *from;
    c->heard_ns = crew_now_ns(job);
}

static void crew_report(struct job *job, const struct crew_letter *l)
{
    if (job->held) {
        if (l->report.coordinator == job->jobs->config.start)
            report_take(job, l);
        return;
    }
    if (l->report.coordinator != job->coordinator.start || l->report.hops >= CREW_MAX_HOPS)
        return; /* it listens to another coordinator: it will say so again, to that one */
    child_heard(job, &l->from);
    struct crew_letter *up = malloc(sizeof *up);
    if (!up)
        return;
    *up = *l;
    up->report.hops++;
    report_up(job, up, false);
    free(up);
}

/* ---- verdicts down --------------------------------------------------------------------------- */

static void verdict_fill(const struct job *job, struct crew_letter *l, uint64_t step, uint64_t incarnation, int verdict,
                         int code, const char *reason)
{
    const struct decider *d = job_find_decider(job, step, incarnation);

    *l = (struct crew_letter){.type = CREW_VERDICT};
    l->verdict.step = step;
    l->verdict.incarnation = incarnation;
    l->verdict.coordinator = job->jobs->config.start;
    l->verdict.verdict = verdict;
    l->verdict.hurry = d && d->hurry;
    if (d && verdict == VERDICT_INTENT)
        l->verdict.base = d->root.base;
    l->verdict.status.code = code;
    snprintf(l->verdict.status.message, sizeof l->verdict.status.message, "%s", reason ? reason : "");
}

static void verdict_here(struct job *job, uint64_t step, uint64_t incarnation, int verdict, int code,
                         const char *reason)
{
    struct run *run = job_find_run(job, step, incarnation);

    if (verdict != VERDICT_INTENT && !job->held && verdict != VERDICT_UNDECIDED &&
        !job_recall(job, step, incarnation)) {
        job_remember(job, step, incarnation, code, reason);
        job->committed += code == 0;
        job->aborted += code < 0;
        job->any_committed |= code == 0;
        if (code == 0)
            job->last_committed = step;
    }
    if (run)
        run_verdict(run, verdict, code, reason);
}

static void hurry_here(struct job *job, uint64_t step, uint64_t incarnation)
{
    struct run *run = job_find_run(job, step, incarnation);

    if (run)
        run_hurry(run, CAIRN_PACE_WAITED);
}

void job_announce(struct job *job, uint64_t step, uint64_t incarnation, int verdict, int code, const char *reason)
{
    const struct decider *d = job_find_decider(job, step, incarnation);
    bool hurry = d && d->hurry;
    struct crew_letter *l = calloc(1, sizeof *l);

    list_for_each (it, &job->crew) {
        const struct crew_node *n = container_of(it, struct crew_node, link);
        if (!l || report_parent(n->slot) != REPORT_COORDINATOR)
            continue;
        verdict_fill(job, l, step, incarnation, verdict, code, reason);
        crew_send(job, &n->address, l);
    }
    free(l);
    verdict_here(job, step, incarnation, verdict, code, reason);
    if (hurry)
        hurry_here(job, step, incarnation);
}

void job_answer(struct job *job, const char *node, uint64_t step, uint64_t incarnation, int verdict, int code,
                const char *reason)
{
    const struct crew_node *n = crew_find(job, node);
    struct crew_letter l;

    if (strcmp(node, job->jobs->node) == 0) {
        verdict_here(job, step, incarnation, verdict, code, reason);
    } else if (n) {
        verdict_fill(job, &l, step, incarnation, verdict, code, reason);
        crew_send(job, &n->address, &l);
    }
}

static void crew_verdict(struct job *job, const struct crew_letter *l)
{
    if (job->held || l->verdict.coordinator != job->coordinator.start)
        return;
    list_for_each_safe (it, &job->children) {
        struct child *c = container_of(it, struct child, link);
        struct crew_letter down = *l;
        if (silent_ms(job, c->heard_ns) > 2ull * job->jobs->config.checkpoint_ms) {
            list_remove(&c->link);
            job->nchildren--;
            free(c);
        } else if (strcmp(c->address.node, l->from.node) != 0) {
            crew_send(job, &c->address, &down);
        }
    }
    struct run *run = job_find_run(job, l->verdict.step, l->verdict.incarnation);
    if (run && !run->intent)
        run->base = l->verdict.base;
    verdict_here(job, l->verdict.step, l->verdict.incarnation, l->verdict.verdict, l->verdict.status.code,
                 l->verdict.status.message);
    if (l->verdict.hurry)
        hurry_here(job, l->verdict.step, l->verdict.incarnation);
}

/* ---- what comes and what is due -------------------------------------------------------------- */

void jobs_hear(void *arg, const struct crew_letter *l)
{
    struct jobs *jobs = arg;
    struct job *job = jobs->stopping ? NULL : jobs_find(jobs, l->job);

    if (strcmp(l->from.node, jobs->node) == 0)
        return; /* its own from an earlier start, or a namesake's */
    if (l->type == CREW_GREET && (!job || !job->held))
        crew_disclaim(jobs, l);
    if (!job)
        return;
    if (l->type == CREW_GREET && job->held)
        crew_greeted(job, l);
    else if (l->type == CREW_PLACE)
        crew_place(job, l);
    else if (l->type == CREW_REPORT)
        crew_report(job, l);
    else if (l->type == CREW_VERDICT)
        crew_verdict(job, l);
}

/* A third of the lease: the crew is looked after, or the coordinator greeted. One that is silent for half of the lease
 * may have lost its key. */
static void crew_due(struct loop_timer *timer)
{
    struct job *job = timer->arg;
    uint32_t lease_ms = job->jobs->config.lease_ms;

    loop_timer_after(job->jobs->deps.loop, timer, lease_ms / 3 + 1);
    if (job->held) {
        crew_expire(job);
        job_expire_ranks(job);
    } else if (job->coordinator.node[0]) {
        crew_greet(job);
        if (silent_ms(job, job->answered_ns) > lease_ms / 2)
            job_stale(job);
    }
}

void job_crew_start(struct job *job)
{
    job->greet.fire = crew_due;
    job->greet.arg = job;
    if (!job->greet.heap_index) /* readings must not push it away for ever */
        loop_timer_after(job->jobs->deps.loop, &job->greet, job->jobs->config.lease_ms / 3 + 1);
    if (!job->held && job->coordinator.node[0])
        crew_greet(job);
}

void job_crew_stop(struct job *job)
{
    loop_timer_cancel(job->jobs->deps.loop, &job->greet);
    list_for_each_safe (it, &job->crew)
        crew_remove(job, container_of(it, struct crew_node, link));
    list_for_each_safe (it, &job->children) {
        list_remove(it);
        free(container_of(it, struct child, link));
    }
    job->nchildren = 0;
}
