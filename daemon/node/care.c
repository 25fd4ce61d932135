/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/node/care.h"

#include "core/base/error.h"
#include "core/model/hash.h"
#include "daemon/io/log.h"
#include "daemon/node/job_internal.h"
#include "daemon/node/repair.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_JOBS 256
#define MAX_WHOLE 1024
#define FRESH_MS 15000                             /* other nodes may still be storing what is late of a new one */
#define WHOLE_NS ((uint64_t)6 * 3600 * 1000000000) /* what was whole is looked at again */

struct whole { /* a checkpoint that lacked nothing */
    uint64_t id, peers, at_ns;
};
struct care {
    struct node_work work;
    struct node *node;
    struct loop_timer timer;
    bool running, stopping;
    struct job_status jobs[MAX_JOBS]; /* of this look */
    unsigned njobs, next;
    bool was_down[LINKS_MAX], is_down[LINKS_MAX]; /* peers, at the last look and at this one */
    unsigned nwas, nis;                           /* that were known then, and are */
    uint64_t looks;
    struct whole whole[MAX_WHOLE];
    unsigned next_whole;
};

/* ---- peers ----------------------------------------------------------------------------------- */

static void look_at_peers(struct care *c)
{
    struct link *all[LINKS_MAX];

    memcpy(c->was_down, c->is_down, sizeof c->was_down);
    c->nwas = c->nis;
    c->nis = links_all(c->node->links, all, LINKS_MAX); /* always in the order in which they were seen first */
    for (unsigned i = 0; i < c->nis; i++)
        c->is_down[i] = !link_registered(all[i]) || link_state_of(all[i]) != LINK_UP;
    c->looks++;
}

static bool is_away(void *arg, const char *peer)
{
    const struct care *c = arg;
    struct link *all[LINKS_MAX];
    unsigned n = links_all(c->node->links, all, LINKS_MAX);

    for (unsigned i = 0; i < n && i < c->nis; i++)
        if (strcmp(link_id(all[i]), peer) == 0)
            return c->is_down[i] && !(i < c->nwas && c->was_down[i]);
    return c->looks < 2; /* it was never seen by this daemon */
}

static uint64_t peers_hash(const struct care *c)
{
    struct link *all[LINKS_MAX];
    unsigned n = links_all(c->node->links, all, LINKS_MAX);
    uint64_t hash = 0;

    for (unsigned i = 0; i < n && i < c->nis; i++) {
        uint64_t v[2] = {link_record(all[i])->start, c->is_down[i]};
        hash = cairn_hash64(v, sizeof v, hash);
        hash = cairn_hash64(link_id(all[i]), strlen(link_id(all[i])), hash);
    }
    return hash;
}

/* ---- what was whole -------------------------------------------------------------------------- */

static uint64_t id_of(const struct listed *l)
{
    const uint64_t v[2] = {l->step, l->incarnation};

    return cairn_hash64(v, sizeof v, cairn_hash64(l->job, strlen(l->job), 0));
}

static bool skip(void *arg, const struct listed *l)
{
    const struct care *c = arg;
    uint64_t id = id_of(l), peers = peers_hash(c), now = loop_now_ns(c->node->deps.loop);

    if ((uint64_t)time(NULL) * 1000 < l->decision.created_unix_ms + FRESH_MS)
        return true;
    for (unsigned i = 0; i < MAX_WHOLE; i++)
        if (c->whole[i].id == id && c->whole[i].peers == peers && now - c->whole[i].at_ns < WHOLE_NS)
            return true;
    return false;
}

static void was_whole(void *arg, const struct listed *l)
{
    struct care *c = arg;

    c->whole[c->next_whole++ % MAX_WHOLE] = (struct whole){id_of(l), peers_hash(c), loop_now_ns(c->node->deps.loop)};
}

/* ---- a look ---------------------------------------------------------------------------------- */

static void next_job(struct care *c);

static void end(struct care *c)
{
    list_remove(&c->work.link);
    free(c);
}

static void repaired(void *arg, int code, const struct cairn_error *err, json_t *report)
{
    struct care *c = arg;

    json_decref(report);
    if (code < 0 && code != CAIRN_E_ABORTED && code != CAIRN_E_BUSY)
        log_line(LOG_WARNING, "job %s could not be looked through for what to repair: %s", c->jobs[c->next - 1].job,
                 err->message);
    next_job(c);
}

static bool is_ours(struct care *c, const char *name)
{
    const struct job *job = jobs_find(c->node->jobs, name);

    return job && job->held;
}

static void next_job(struct care *c)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    c->running = false;
    if (c->stopping) {
        end(c);
        return;
    }
    while (c->next < c->njobs) {
        const char *name = c->jobs[c->next++].job;
        struct repair_request q = {.quick = true,
                                   .is_away = is_away,
                                   .is_away_arg = c,
                                   .skip = skip,
                                   .was_whole = was_whole,
                                   .skip_arg = c,
                                   .done = repaired,
                                   .arg = c};
        snprintf(q.job, sizeof q.job, "%s", name);
        if (!is_ours(c, name))
            continue;
        if (repair_start(c->node, &q, &err) == 0) {
            c->running = true;
            return;
        }
        if (err.code != CAIRN_E_BUSY)
            log_line(LOG_WARNING, "job %s: %s", name, err.message);
    }
    loop_timer_after(c->node->deps.loop, &c->timer, (uint64_t)c->node->config.repair_every_s * 1000);
}

static void look(struct loop_timer *t)
{
    struct care *c = t->arg;

    look_at_peers(c);
    c->njobs = jobs_status(c->node->jobs, c->jobs, MAX_JOBS);
    if (c->njobs > MAX_JOBS)
        c->njobs = MAX_JOBS;
    c->next = 0;
    next_job(c);
}

/* A repair that runs is told by its own entry in the list, and ends the care when it is done. */
static void stop(struct node_work *w)
{
    struct care *c = container_of(w, struct care, work);

    c->stopping = true;
    loop_timer_cancel(c->node->deps.loop, &c->timer);
    if (!c->running)
        end(c);
}

int care_start(struct node *node, struct cairn_error *err)
{
    struct care *c = node->config.repair_every_s ? calloc(1, sizeof *c) : NULL;

    if (!c)
        return node->config.repair_every_s ? cairn_fail(err, CAIRN_E_NOMEM, "allocate the care for jobs") : 0;
    c->node = node;
    c->work.stop = stop;
    list_push_back(&node->work, &c->work.link);
    c->timer = (struct loop_timer){.fire = look, .arg = c};
    loop_timer_after(node->deps.loop, &c->timer, (uint64_t)node->config.repair_every_s * 1000);
    return 0;
}
