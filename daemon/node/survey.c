/* SPDX-License-Identifier: Apache-2.0 */
/* A survey takes some stripes at once. Of each it asks for one fragment after the other, first the peer that should
 * have it, then all others, until k are found; the first stripe that has fewer ends it. */
#include "daemon/node/survey.h"

#include "core/base/error.h"
#include "daemon/io/log.h"
#include "daemon/node/link.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define AT_ONCE 16

struct unit { /* a stripe */
    struct survey_run *run;
    const struct manifest *manifest;
    const struct chunk_record *chunk; /* NULL: none */
    unsigned fragment, present, away;
    bool hint_asked, hint_away;
    unsigned next; /* of all links */
    bool busy;
    struct link *link;
    struct link_read read;
};
struct survey_run {
    struct links *links;
    struct survey *s;      /* NULL: cancelled */
    uint32_t shard, chunk; /* the next one */
    unsigned level;        /* how many bases below the shard */
    struct link *all[LINKS_MAX];
    unsigned nall;
    struct unit unit[AT_ONCE];
    struct loop_post step;
    bool posted;
    struct loop_timer deadline;
    bool over; /* the deadline */
    int code;
    struct cairn_error err;
};

static void step_soon(struct survey_run *r);

/* ---- the end --------------------------------------------------------------------------------- */

/* What was posted cannot be taken back: its step frees the run then. */
static void run_free(struct survey_run *r)
{
    loop_timer_cancel(links_loop(r->links), &r->deadline);
    for (unsigned i = 0; i < AT_ONCE; i++)
        if (r->unit[i].busy)
            link_read_cancel(r->unit[i].link, &r->unit[i].read);
    r->s->state = NULL;
    r->s = NULL;
    if (!r->posted)
        free(r);
}

void survey_cancel(struct survey *s)
{
    if (s->state)
        run_free(s->state);
}

static void finish(struct survey_run *r)
{
    struct survey *s = r->s;
    struct cairn_error err = r->err;
    int code = r->code;

    run_free(r);
    s->done(s, code, code < 0 ? &err : NULL);
}

/* ---- one fragment ---------------------------------------------------------------------------- */

static bool can_ask(const struct link *l)
{
    return l && link_usable(l, NULL) && link_state_of(l) == LINK_UP;
}

static struct link *next_link(struct unit *u)
{
    struct survey_run *r = u->run;
    struct link *hinted = links_find(r->links, u->manifest->peers[u->chunk->peer[u->fragment]]);

    if (!u->hint_asked) {
        u->hint_asked = true;
        u->hint_away = !can_ask(hinted);
        if (!u->hint_away)
            return hinted;
    }
    while (u->next < r->nall) {
        struct link *l = r->all[u->next++];
        if (l != hinted && can_ask(l))
            return l;
    }
    return NULL;
}

static void next_fragment(struct unit *u)
{
    u->fragment++;
    u->next = 0;
    u->hint_asked = u->hint_away = false;
}

static void asked(struct link_read *read, int code, const struct cairn_error *err, const char *record)
{
    struct unit *u = read->arg;

    (void)err;
    (void)record;
    u->busy = false;
    if (code == 0) {
        u->present++;
        next_fragment(u);
    }
    step_soon(u->run);
}

/* False when there is nobody left to ask for this fragment. */
static bool ask(struct unit *u)
{
    const struct manifest *m = u->manifest;

    for (struct link *l; (l = next_link(u));) {
        u->read = (struct link_read){.done = asked, .arg = u, .check = true, .present = true};
        u->read.key = (struct fragment_key){.step = m->step,
                                            .incarnation = m->incarnation,
                                            .kind = FRAGMENT_DATA,
                                            .rank = m->rank,
                                            .first_part = u->chunk->first_part,
                                            .attempt = u->chunk->attempt,
                                            .index = u->fragment};
        snprintf(u->read.key.job, sizeof u->read.key.job, "%s", m->job);
        snprintf(u->read.key.node, sizeof u->read.key.node, "%s", m->node);
        if (link_read(l, &u->read, NULL) < 0)
            continue;
        u->link = l;
        u->busy = true;
        return true;
    }
    return false;
}

/* ---- stripes --------------------------------------------------------------------------------- */

/* The next one that the checkpoint needs; false when all were begun. */
static bool next_stripe(struct survey_run *r, struct unit *u)
{
    while (r->shard < r->s->nmanifests) {
        const struct manifest *top = &r->s->manifests[r->shard], *m = top;
        for (unsigned i = 0; i < r->level; i++)
            m = m->under;
        if (r->chunk == m->nchunks) {
            r->level = m->under ? r->level + 1 : 0;
            r->shard += !m->under;
            r->chunk = 0;
            continue;
        }
        const struct chunk_record *c = &m->chunks[r->chunk++];
        if (c->same || !manifest_needs(top, r->level, c))
            continue;
        *u = (struct unit){.run = r, .manifest = m, .chunk = c};
        return true;
    }
    return false;
}

static void stripe_is_short(struct survey_run *r, const struct unit *u)
{
    int code = u->present + u->away >= u->chunk->k ? CAIRN_E_UNAVAILABLE : CAIRN_E_CORRUPT;

    r->code = cairn_fail(&r->err, code,
                         "the chunk at part %u of rank %u in step %llu has %u fragments, it needs %u; peers that are "
                         "away should have %u more",
                         u->chunk->first_part, u->manifest->rank, (unsigned long long)u->manifest->step, u->present,
                         u->chunk->k, u->away);
}

static void unit_go(struct survey_run *r, struct unit *u)
{
    while (!u->busy && r->code == 0 && (u->chunk || next_stripe(r, u))) {
        if (u->present == u->chunk->k) {
            u->chunk = NULL;
        } else if (u->fragment == (unsigned)u->chunk->k + u->chunk->m) {
            stripe_is_short(r, u);
        } else if (!ask(u)) {
            u->away += u->hint_away;
            next_fragment(u);
        }
    }
}

static void step(struct loop_post *post)
{
    struct survey_run *r = post->arg;
    bool busy = false;

    r->posted = false;
    if (!r->s) {
        free(r);
        return;
    }
    for (unsigned i = 0; i < AT_ONCE && !r->over && r->code == 0; i++) {
        unit_go(r, &r->unit[i]);
        busy |= r->unit[i].busy;
    }
    if (!busy || r->over || r->code < 0)
        finish(r);
}

static void step_soon(struct survey_run *r)
{
    if (r->posted)
        return;
    r->posted = true;
    r->step = (struct loop_post){.run = step, .arg = r};
    loop_defer(links_loop(r->links), &r->step);
}

static void too_late(struct loop_timer *t)
{
    struct survey_run *r = t->arg;

    log_line(LOG_NOTICE, "not all fragments of job %s step %llu were looked for within %u ms: reading will tell",
             r->s->manifests[0].job, (unsigned long long)r->s->manifests[0].step, r->s->timeout_ms);
    r->over = true;
    step_soon(r);
}

int survey_start(struct links *links, struct survey *s, struct cairn_error *err)
{
    struct survey_run *r = calloc(1, sizeof *r);

    if (!r)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a survey");
    r->links = links;
    r->s = s;
    r->err = (struct cairn_error)CAIRN_ERROR_INIT;
    r->nall = links_all(links, r->all, LINKS_MAX);
    r->deadline = (struct loop_timer){.fire = too_late, .arg = r};
    loop_timer_after(links_loop(links), &r->deadline, s->timeout_ms ? s->timeout_ms : 1);
    s->state = r;
    step_soon(r);
    return 0;
}
