/* SPDX-License-Identifier: Apache-2.0 */
/*
 *     INTENDING --intent--> FILLING --all filled--> DRAINING --all durable--> ROOTING --root--> DECIDING
 *         |                    |                        |                        |              |  |  |
 *         +--- a drop, a failure, the deadline, a newer incarnation -------------+              |  |  |
 *         |                    |                                          absent when read, late|  |  |
 *         |                    v                                                 or fenced      |  |  |
 *         |                ABORTING <-----------------------------------------------------------+  |  |
 *         v                    |  \--no answer after the deadline-----------------------+          |  |
 *      ABORTED <---------------+                                                        v          |  |
 *         ^                                                                         UNDECIDED <----+  |
 *         +-----------------------decided otherwise, read back------------------------ COMMITTED <----+
 *
 * A coordinator that adopts a dead one's checkpoint begins in FILLING.
 *
 * The ranks are told what the metadata says, and nothing before it is known: from the intent on another coordinator may
 * have taken the checkpoint over and committed it, without this one having noticed that its lease is gone. */
#include "core/checkpoint/commit.h"

#include <assert.h>
#include <cairn/cairn.h>
#include <stdio.h>
#include <string.h>

#define COMMIT_GRACE 4 /* answers after the deadline: a decision, its reading, an abort, its reading */

#define MOVE(s_) (1u << COMMIT_##s_)
static const unsigned commit_moves[COMMIT_STATES] = {
    /* COMMITTED: the intent was refused, for another coordinator has done all of it meanwhile */
    [COMMIT_INTENDING] = MOVE(FILLING) | MOVE(ABORTING) | MOVE(ABORTED) | MOVE(COMMITTED),
    [COMMIT_FILLING] = MOVE(DRAINING) | MOVE(ABORTING),
    [COMMIT_DRAINING] = MOVE(ROOTING) | MOVE(ABORTING),
    [COMMIT_ROOTING] = MOVE(DECIDING) | MOVE(ABORTING),
    [COMMIT_DECIDING] = MOVE(COMMITTED) | MOVE(ABORTED) | MOVE(ABORTING) | MOVE(UNDECIDED),
    /* COMMITTED: another coordinator's decision was read back */
    [COMMIT_ABORTING] = MOVE(ABORTED) | MOVE(COMMITTED) | MOVE(UNDECIDED),
};

bool commit_ended(const struct commit *c)
{
    return c->state == COMMIT_COMMITTED || c->state == COMMIT_ABORTED || c->state == COMMIT_UNDECIDED;
}

bool commit_open(const struct commit *c)
{
    return c->state <= COMMIT_ROOTING;
}

const char *commit_state_name(int state)
{
    static const char *const names[COMMIT_STATES] = {
        [COMMIT_INTENDING] = "INTENDING", [COMMIT_FILLING] = "FILLING",   [COMMIT_DRAINING] = "DRAINING",
        [COMMIT_ROOTING] = "ROOTING",     [COMMIT_DECIDING] = "DECIDING", [COMMIT_ABORTING] = "ABORTING",
        [COMMIT_COMMITTED] = "COMMITTED", [COMMIT_ABORTED] = "ABORTED",   [COMMIT_UNDECIDED] = "UNDECIDED",
    };
    return state >= 0 && state < COMMIT_STATES ? names[state] : "?";
}

bool commit_invariant(const struct commit *c)
{
    bool counts = c->ndurable <= c->nfilled && c->nfilled <= c->nbegun && c->nbegun <= c->world_size;
    bool intent = c->intent || c->state == COMMIT_INTENDING || c->state >= COMMIT_ABORTING;
    bool drains = c->intent || c->ndurable == 0;
    bool root = !c->root || c->ndurable == c->world_size;
    bool commit = c->commit_put ? c->root && c->intent : c->state != COMMIT_DECIDING;
    bool told = commit_ended(c) ? c->told && c->asked == 0 : !c->told;
    bool truth = !c->told || (c->code == 0) == (c->state == COMMIT_COMMITTED);

    return counts && intent && drains && root && commit && told && truth;
}

static void commit_move(struct commit *c, int state)
{
    bool legal = commit_moves[c->state] & (1u << state);

    assert(legal);
    (void)legal; /* where asserts are compiled out */
    c->state = state;
}

static void commit_do(struct commit_effects *fx, int what)
{
    assert(fx->n < COMMIT_MAX_EFFECTS);
    fx->what[fx->n++] = what;
}

static void commit_ask(struct commit *c, struct commit_effects *fx, int what)
{
    c->asked = what;
    commit_do(fx, what);
}

struct span {
    char text[24];
};
/* The deadline in words: "60 s", "1500 ms". */
static struct span commit_span(const struct commit *c)
{
    bool whole = c->deadline_ms % 1000 == 0;
    struct span s;

    snprintf(s.text, sizeof s.text, "%u %s", whole ? c->deadline_ms / 1000 : c->deadline_ms, whole ? "s" : "ms");
    return s;
}

static void commit_set_reason(struct commit *c, int code, const char *reason)
{
    c->code = code;
    snprintf(c->reason, sizeof c->reason, "%s", reason ? reason : "");
}

static void commit_end(struct commit *c, struct commit_effects *fx, int state)
{
    commit_move(c, state);
    c->asked = 0;
    c->told = true;
    commit_do(fx, COMMIT_TELL);
    commit_do(fx, COMMIT_END);
}

static void commit_end_committed(struct commit *c, struct commit_effects *fx)
{
    commit_set_reason(c, 0, "");
    commit_end(c, fx, COMMIT_COMMITTED);
}

static void commit_end_aborted(struct commit *c, struct commit_effects *fx, const char *reason)
{
    if (reason)
        commit_set_reason(c, CAIRN_E_ABORTED, reason);
    commit_end(c, fx, COMMIT_ABORTED);
}

/* The deadline has passed and the metadata is silent. Whoever coordinates the job next finds the intent and decides. */
static void commit_give_up(struct commit *c, struct commit_effects *fx)
{
    char text[COMMIT_REASON];

    if (c->commit_put)
        snprintf(text, sizeof text,
                 "whether step %llu is committed is not known: the metadata engine did not answer within %s",
                 (unsigned long long)c->step, commit_span(c).text);
    else
        snprintf(text, sizeof text, "%.180s; the metadata engine did not answer whether it is aborted", c->reason);
#ifdef CAIRN_BUG_SILENCE_IS_ABORT
    commit_end_aborted(c, fx, text);
    return;
#endif
    commit_set_reason(c, CAIRN_E_UNAVAILABLE, text);
    commit_end(c, fx, COMMIT_UNDECIDED);
}

/* Asks once more after a pause, unless the time for it is over. */
static void commit_again(struct commit *c, struct commit_effects *fx, int what)
{
    if (c->late && c->grace-- == 0) {
        c->grace = 0;
        commit_give_up(c, fx);
        return;
    }
    fx->again = true;
    commit_ask(c, fx, what);
}

static void commit_abort(struct commit *c, struct commit_effects *fx, int code, const char *reason)
{
    commit_set_reason(c, code, reason);
    commit_move(c, COMMIT_ABORTING);
    commit_do(fx, COMMIT_STOP_DRAINS);
#ifdef CAIRN_BUG_TELLS_ABORT_EARLY
    if (!c->commit_put)
        commit_do(fx, COMMIT_TELL);
#endif
#ifdef CAIRN_BUG_TELLS_ABORT_OF_SENT_COMMIT
    if (c->commit_put)
        commit_do(fx, COMMIT_TELL);
#endif
    /* An intent on its way is awaited: a decision without an intent, followed by the intent, would look odd to a
     * reader. */
    if (c->asked != COMMIT_WRITE_INTENT)
        commit_ask(c, fx, COMMIT_PUT_ABORT);
}

/* As far as what is there carries. */
static void commit_progress(struct commit *c, struct commit_effects *fx)
{
    if (c->state == COMMIT_INTENDING && c->intent)
        commit_move(c, COMMIT_FILLING);
    if (c->state == COMMIT_FILLING && c->nfilled == c->world_size)
        commit_move(c, COMMIT_DRAINING);
#ifdef CAIRN_BUG_COMMITS_BEFORE_ALL
    if (c->state == COMMIT_DRAINING && c->ndurable + 1 >= c->world_size) {
#else
    if (c->state == COMMIT_DRAINING && c->ndurable == c->world_size) {
#endif
        commit_move(c, COMMIT_ROOTING);
        commit_ask(c, fx, COMMIT_STORE_ROOT);
    }
}

/* ---- events of ranks ------------------------------------------------------------------------- */

static void commit_rank_to(struct commit *c, uint32_t rank, int state)
{
    uint8_t *r = &c->rank[rank];

    for (; *r < state; (*r)++) {
        c->nbegun += *r == COMMIT_ABSENT;
        c->nfilled += *r == COMMIT_BEGUN;
        c->ndurable += *r == COMMIT_FILLED;
    }
}

static void commit_rank_fails(struct commit *c, struct commit_effects *fx, const struct commit_event *e,
                              const char *verb)
{
    char text[COMMIT_REASON];

    snprintf(text, sizeof text, "rank %u %s step %llu: %s", e->rank, verb, (unsigned long long)c->step,
             e->reason ? e->reason : "no reason given");
    commit_abort(c, fx, CAIRN_E_ABORTED, text);
}

static void commit_on_rank(struct commit *c, struct commit_effects *fx, const struct commit_event *e)
{
    if (e->rank >= c->world_size || !commit_open(c))
        return;
    int was = c->rank[e->rank];

    if (e->type == COMMIT_ON_BEGUN && was == COMMIT_ABSENT) {
        commit_rank_to(c, e->rank, COMMIT_BEGUN);
    } else if (e->type == COMMIT_ON_FILLED && was == COMMIT_BEGUN) {
        commit_rank_to(c, e->rank, COMMIT_FILLED);
#ifndef CAIRN_BUG_DRAINS_BEFORE_INTENT
        if (c->intent) /* before it a reader could not know what the fragments belong to */
#endif
            commit_do(fx, COMMIT_START_DRAINS);
    } else if (e->type == COMMIT_ON_DURABLE && was == COMMIT_FILLED && c->intent) {
        commit_rank_to(c, e->rank, COMMIT_DURABLE);
#ifdef CAIRN_BUG_COUNTS_TWICE
    } else if (e->type == COMMIT_ON_DURABLE && was == COMMIT_DURABLE && c->ndurable < c->world_size) {
        c->ndurable++;
#endif
    } else if (e->type == COMMIT_ON_DROPPED && was < COMMIT_FILLED) {
        commit_rank_fails(c, fx, e, "gave up");
    } else if (e->type == COMMIT_ON_FAILED && was == COMMIT_FILLED) {
        commit_rank_fails(c, fx, e, "could not store its shard of");
    } else if (e->type == COMMIT_ON_GONE && was < COMMIT_DURABLE) {
        commit_rank_fails(c, fx, e, "is lost with");
    }
    commit_progress(c, fx);
}

/* ---- answers --------------------------------------------------------------------------------- */

static void commit_on_intent_aborting(struct commit *c, struct commit_effects *fx)
{
    if (c->intent || c->intent_maybe)
        commit_ask(c, fx, COMMIT_PUT_ABORT);
    else
        commit_end_aborted(c, fx, NULL);
}

static void commit_on_intent(struct commit *c, struct commit_effects *fx, const struct commit_event *e)
{
    if (c->asked != COMMIT_WRITE_INTENT)
        return;
    c->asked = 0;
    c->intent |= e->type == COMMIT_ON_INTENT_WRITTEN;
    c->intent_maybe |= e->type == COMMIT_ON_INTENT_UNKNOWN;
    if (c->state == COMMIT_ABORTING) {
        commit_on_intent_aborting(c, fx);
    } else if (e->type == COMMIT_ON_INTENT_WRITTEN) {
        if (c->nfilled > 0)
            commit_do(fx, COMMIT_START_DRAINS);
        commit_progress(c, fx);
    } else if (e->type == COMMIT_ON_INTENT_UNKNOWN) {
        commit_again(c, fx, COMMIT_WRITE_INTENT); /* not late here: the deadline would have moved it to ABORTING */
    } else if (c->intent_maybe) {
        commit_abort(c, fx, e->code, e->reason);
    } else {
        commit_set_reason(c, e->code, e->reason);
        commit_end(c, fx, COMMIT_ABORTED);
    }
}

static void commit_on_root(struct commit *c, struct commit_effects *fx, const struct commit_event *e)
{
    char text[COMMIT_REASON];

    if (c->state != COMMIT_ROOTING || c->asked != COMMIT_STORE_ROOT)
        return;
    c->asked = 0;
    if (e->type == COMMIT_ON_ROOT_STORED) {
        c->root = c->commit_put = true;
        commit_move(c, COMMIT_DECIDING);
        commit_ask(c, fx, COMMIT_PUT_COMMIT);
        return;
    }
    if (e->type == COMMIT_ON_REJECTED) {
        commit_abort(c, fx, CAIRN_E_ABORTED, e->reason ? e->reason : "no reason given");
        return;
    }
    snprintf(text, sizeof text, "the root of step %llu could not be stored: %s", (unsigned long long)c->step,
             e->reason ? e->reason : "no reason given");
    commit_abort(c, fx, CAIRN_E_ABORTED, text);
}

static void commit_on_decision(struct commit *c, struct commit_effects *fx, const struct commit_event *e)
{
    if (c->asked != COMMIT_PUT_COMMIT && c->asked != COMMIT_PUT_ABORT)
        return;
    bool commit = c->asked == COMMIT_PUT_COMMIT;
    c->asked = 0;
    if (e->type == COMMIT_ON_APPLIED && commit)
        commit_end_committed(c, fx);
#ifdef CAIRN_BUG_UNKNOWN_IS_APPLIED
    else if (e->type == COMMIT_ON_UNKNOWN && commit)
        commit_end_committed(c, fx);
#endif
#ifdef CAIRN_BUG_UNKNOWN_IS_FAILED
    else if (e->type == COMMIT_ON_UNKNOWN && commit)
        commit_end_aborted(c, fx, "no answer");
#endif
#ifdef CAIRN_BUG_REFUSED_IS_FINAL
    else if (e->type == COMMIT_ON_REFUSED && commit)
        commit_end_aborted(c, fx, "refused");
#endif
    else if (e->type == COMMIT_ON_APPLIED)
        commit_end_aborted(c, fx, NULL);
    else if (e->type == COMMIT_ON_REFUSED)
        commit_ask(c, fx, COMMIT_READ);
    else
        commit_again(c, fx, COMMIT_READ);
}

static void commit_on_absent(struct commit *c, struct commit_effects *fx, bool fenced)
{
    char text[COMMIT_REASON];
    unsigned long long step = c->step;

#ifdef CAIRN_BUG_ABSENT_IS_ABORTED
    if (c->state == COMMIT_DECIDING) {
        commit_end_aborted(c, fx, "not there");
        return;
    }
#endif
    if (c->state == COMMIT_ABORTING) {
        commit_again(c, fx, COMMIT_PUT_ABORT);
    } else if (fenced) {
        snprintf(text, sizeof text, "a newer incarnation of the job resumed before step %llu was committed", step);
        commit_abort(c, fx, CAIRN_E_FENCED, text);
    } else if (c->late) {
        snprintf(text, sizeof text, "step %llu could not be committed within %s: no answer from the metadata engine",
                 step, commit_span(c).text);
        commit_abort(c, fx, CAIRN_E_ABORTED, text);
    } else {
        commit_again(c, fx, COMMIT_PUT_COMMIT);
    }
}

static void commit_on_read(struct commit *c, struct commit_effects *fx, const struct commit_event *e)
{
    bool fate = e->type == COMMIT_ON_READ_COMMIT || e->type == COMMIT_ON_READ_ABORT;

    if (c->asked != COMMIT_READ && !(fate && c->asked == COMMIT_WRITE_INTENT))
        return;
    c->asked = 0;
    if (e->type == COMMIT_ON_READ_COMMIT)
        commit_end_committed(c, fx);
    else if (e->type == COMMIT_ON_READ_ABORT)
        commit_end_aborted(c, fx, e->reason);
    else if (e->type == COMMIT_ON_READ_FAILED)
        commit_again(c, fx, COMMIT_READ);
    else
        commit_on_absent(c, fx, e->type == COMMIT_ON_READ_FENCED);
}

/* ---- what comes from outside ----------------------------------------------------------------- */

static const char *commit_lacks(const struct commit *c, int *ret_wanted)
{
    *ret_wanted = c->nfilled < c->world_size ? COMMIT_FILLED : COMMIT_DURABLE;
    return *ret_wanted == COMMIT_FILLED ? "did not fill" : "did not become durable in";
}

uint32_t commit_first_missing(const struct commit *c)
{
    int wanted;

    commit_lacks(c, &wanted);
    for (uint32_t i = 0; i < c->world_size; i++)
        if (c->rank[i] < wanted)
            return i;
    return c->world_size;
}

void commit_missing(const struct commit *c, char *buf, size_t len)
{
    int wanted;
    const char *verb = commit_lacks(c, &wanted);
    uint32_t lacking = c->world_size - (wanted == COMMIT_FILLED ? c->nfilled : c->ndurable);
    uint32_t named = 0;
    size_t at = 0;

    if (lacking == 0) {
        snprintf(buf, len, "nobody is missing");
        return;
    }
    at += (size_t)snprintf(buf, len, lacking == 1 ? "rank" : "ranks");
    for (uint32_t i = 0; i < c->world_size && named < 4 && at < len; i++)
        if (c->rank[i] < wanted)
            at += (size_t)snprintf(buf + at, len - at, "%s %u", named++ ? "," : "", i);
    if (lacking > named && at < len)
        at += (size_t)snprintf(buf + at, len - at, " and %u more", lacking - named);
    if (at < len)
        snprintf(buf + at, len - at, " %s", verb);
}

static void commit_on_deadline(struct commit *c, struct commit_effects *fx, const struct commit_event *e)
{
    char missing[COMMIT_REASON / 2], text[COMMIT_REASON];
    const char *detail = e->reason && e->reason[0] ? e->reason : NULL;
    unsigned long long step = c->step;

    if (c->late)
        return;
    c->late = true;
    c->grace = COMMIT_GRACE;
    if (!commit_open(c))
        return;
    commit_missing(c, missing, sizeof missing);
    if (c->state == COMMIT_ROOTING)
        snprintf(text, sizeof text, "the root of step %llu was not stored within %s", step, commit_span(c).text);
    else if (c->nfilled == c->world_size && !c->intent)
        snprintf(text, sizeof text, "the intent of step %llu was not written within %s", step, commit_span(c).text);
    else
        snprintf(text, sizeof text, "%s step %llu within %s%s%s%s", missing, step, commit_span(c).text,
                 detail ? " (" : "", detail ? detail : "", detail ? ")" : "");
    commit_abort(c, fx, CAIRN_E_ABORTED, text);
}

static void commit_on_outside(struct commit *c, struct commit_effects *fx, const struct commit_event *e)
{
    if (e->type == COMMIT_ON_FENCED && commit_open(c) && c->nfilled < c->world_size)
        commit_abort(c, fx, CAIRN_E_FENCED, e->reason);
}

/* ---- the machine ----------------------------------------------------------------------------- */

void commit_init(struct commit *c, uint64_t step, uint32_t world_size, uint32_t deadline_ms, uint8_t *rank,
                 struct commit_effects *ret_effects)
{
    *c = (struct commit){
        .state = COMMIT_INTENDING, .step = step, .world_size = world_size, .deadline_ms = deadline_ms, .rank = rank};
    *ret_effects = (struct commit_effects){0};
    commit_ask(c, ret_effects, COMMIT_WRITE_INTENT);
    assert(commit_invariant(c));
}

void commit_adopt(struct commit *c, uint64_t step, uint32_t world_size, uint32_t deadline_ms, uint8_t *rank)
{
    *c = (struct commit){.state = COMMIT_FILLING,
                         .step = step,
                         .world_size = world_size,
                         .deadline_ms = deadline_ms,
                         .rank = rank,
                         .intent = true};
    assert(commit_invariant(c));
}

void commit_step(struct commit *c, const struct commit_event *event, struct commit_effects *ret_effects)
{
    static void (*const handlers[])(struct commit *, struct commit_effects *, const struct commit_event *) = {
        [COMMIT_ON_BEGUN] = commit_on_rank,
        [COMMIT_ON_FILLED] = commit_on_rank,
        [COMMIT_ON_DROPPED] = commit_on_rank,
        [COMMIT_ON_DURABLE] = commit_on_rank,
        [COMMIT_ON_FAILED] = commit_on_rank,
        [COMMIT_ON_GONE] = commit_on_rank,
        [COMMIT_ON_INTENT_WRITTEN] = commit_on_intent,
        [COMMIT_ON_INTENT_UNKNOWN] = commit_on_intent,
        [COMMIT_ON_INTENT_REFUSED] = commit_on_intent,
        [COMMIT_ON_ROOT_STORED] = commit_on_root,
        [COMMIT_ON_ROOT_FAILED] = commit_on_root,
        [COMMIT_ON_REJECTED] = commit_on_root,
        [COMMIT_ON_APPLIED] = commit_on_decision,
        [COMMIT_ON_REFUSED] = commit_on_decision,
        [COMMIT_ON_UNKNOWN] = commit_on_decision,
        [COMMIT_ON_READ_COMMIT] = commit_on_read,
        [COMMIT_ON_READ_ABORT] = commit_on_read,
        [COMMIT_ON_READ_ABSENT] = commit_on_read,
        [COMMIT_ON_READ_FENCED] = commit_on_read,
        [COMMIT_ON_READ_FAILED] = commit_on_read,
        [COMMIT_ON_DEADLINE] = commit_on_deadline,
        [COMMIT_ON_FENCED] = commit_on_outside,
    };

    *ret_effects = (struct commit_effects){0};
    if (commit_ended(c))
        return;
    handlers[event->type](c, ret_effects, event);
    assert(commit_invariant(c));
}
