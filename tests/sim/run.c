/* SPDX-License-Identifier: Apache-2.0 */
/* The driver of one checkpoint's machine (core/checkpoint/commit.h) at the coordinator, in the order of daemon/node's:
 * effects become requests, drains and a root; their answers, and the nodes' reports, its events. */
#include "tests/sim/sim.h"

#include "core/checkpoint/report.h"

#include <string.h>

static void run_event(struct sim *s, unsigned actor, struct run *r, int type)
{
    struct commit_event e = {.type = type, .reason = "simulated"};

    run_feed(s, actor, r, &e);
}

static unsigned run_index(struct sim *s, unsigned actor, const struct run *r)
{
    return (unsigned)(r - sim_node(s, actor)->run);
}

bool run_works_on(const struct node *n, unsigned ckpt)
{
    for (unsigned i = 0; i < SIM_RUNS; i++)
        if (n->run[i].used && !n->run[i].over && n->run[i].ckpt == ckpt)
            return true;
    return false;
}

/* ---- transactions ---------------------------------------------------------------------------- */

/* The base is committed, and neither deleted nor being deleted while the intent is put: its holds change with it. */
static void run_compare_base(const struct node *n, const struct run *r, struct txn *t)
{
    uint8_t base = (uint8_t)(r->base - 1);

    t->intent.intent_base = r->base;
    t->compare[t->ncompares++] = (struct compare){KEY_DECISION, base, n->bases.ckpt[base].decided};
    t->compare[t->ncompares++] = (struct compare){KEY_TOMBSTONE, base, 0};
#ifdef CAIRN_BUG_BASE_UNCHECKED
    t->ncompares -= 2;
#endif
}

static void run_intent_txn(const struct node *n, const struct run *r, struct msg *m)
{
    m->type = M_TXN;
    m->txn = (struct txn){.put = KEY_INTENT,
                          .ckpt = r->ckpt,
                          .ncompares = 4,
                          .compare = {{KEY_DECISION, r->ckpt, 0},
                                      {KEY_INC, 0, n->inc.revision},
                                      {KEY_PIN, 0, n->pin.revision},
                                      {KEY_COORDINATOR, 0, n->coordinator_revision}},
                          .intent = {.world = (uint8_t)r->machine.world_size}};
#ifdef CAIRN_BUG_NOT_FENCED
    m->txn.compare[1] = m->txn.compare[2] = m->txn.compare[3];
#endif
#ifdef CAIRN_BUG_LEASE_UNCHECKED
    m->txn.ncompares = 3;
#endif
    if (r->base)
        run_compare_base(n, r, &m->txn);
}

static void run_commit_txn(const struct node *n, const struct run *r, struct msg *m)
{
    m->type = M_TXN;
    m->txn = (struct txn){.put = KEY_DECISION,
                          .ckpt = r->ckpt,
                          .ncompares = 4,
                          .compare = {{KEY_DECISION, r->ckpt, 0},
                                      {KEY_INC, 0, n->inc.revision},
                                      {KEY_PIN, 0, n->pin.revision},
                                      {KEY_COORDINATOR, 0, n->coordinator_revision}},
                          .decision = {.decision = FATE_COMMIT,
                                       .root = (uint8_t)r->root,
                                       .world = (uint8_t)r->machine.world_size,
                                       .base = r->base}};
#ifdef CAIRN_BUG_DECIDES_WITHOUT_COMPARE
    m->txn.compare[0] = m->txn.compare[1];
#endif
#ifdef CAIRN_BUG_NOT_FENCED
    m->txn.compare[1] = m->txn.compare[2] = m->txn.compare[3];
#endif
}

/* What is known here need not be asked: the compares would even hold, with the newer revisions that we know. */
static bool run_outdated(struct sim *s, unsigned actor, struct run *r, int what)
{
    const struct node *n = sim_node(s, actor);
    struct commit_event fenced = {.type = COMMIT_ON_INTENT_REFUSED, .code = CAIRN_E_FENCED, .reason = "fenced"};

    bool restarted = r->incarnation != n->inc.incarnation;
    bool pinned = n->pin.revision && n->pin.incarnation > r->incarnation;

#ifdef CAIRN_BUG_NOT_FENCED
    restarted = pinned = false;
#endif
    if (what == COMMIT_WRITE_INTENT && !n->held)
        run_event(s, actor, r, COMMIT_ON_INTENT_UNKNOWN);
    else if (what == COMMIT_WRITE_INTENT && restarted)
        run_feed(s, actor, r, &fenced);
    else if (what == COMMIT_PUT_COMMIT && (!n->held || pinned))
        run_event(s, actor, r, COMMIT_ON_REFUSED); /* the reading that follows says more */
    else
        return false;
    return true;
}

static void run_send(struct sim *s, unsigned actor, struct run *r, int what)
{
    struct node *n = sim_node(s, actor);
    struct msg m = {0};

    if (run_outdated(s, actor, r, what))
        return;
    if (what == COMMIT_WRITE_INTENT && !r->base && !r->no_base)
        r->base = (uint8_t)base_choose(s, actor, r->ckpt);
#ifndef CAIRN_BUG_BASE_CHOSEN_AGAIN
    if (what == COMMIT_WRITE_INTENT) /* once: an earlier intent that is applied late has to name the same */
        r->no_base = true;
#endif
    if (what == COMMIT_WRITE_INTENT)
        run_intent_txn(n, r, &m);
    else if (what == COMMIT_PUT_COMMIT)
        run_commit_txn(n, r, &m);
    else if (what == COMMIT_PUT_ABORT)
        job_abort_txn(&m, r->ckpt);
    else
        m.type = M_LIST;
    r->sent = (uint8_t)what;
    node_ask(s, actor, ASK_RUN + run_index(s, actor, r), &m);
}

static void run_ask(struct sim *s, unsigned actor, struct run *r, int what, bool again)
{
    if (!again) {
        run_send(s, actor, r, what);
        return;
    }
    r->paused = true;
    r->what = (uint8_t)what;
    r->token = net_timer_ms(s, actor, T_RUN_PAUSE, run_index(s, actor, r), r->pause_ms);
    r->pause_ms = r->pause_ms * 2 > MAX_PAUSE_MS ? MAX_PAUSE_MS : r->pause_ms * 2;
}

/* ---- answers --------------------------------------------------------------------------------- */

static void run_intent_refused(struct sim *s, unsigned actor, struct run *r, const struct view *v)
{
    struct commit_event e = {.type = COMMIT_ON_INTENT_UNKNOWN, .code = CAIRN_E_FENCED, .reason = "refused"};
    bool there = r->ckpt < v->nckpts;
    int fate = there ? v->ckpt[r->ckpt].decision : FATE_NONE;

#ifdef CAIRN_BUG_REFUSED_INTENT_IS_ABORT
    if (fate != FATE_NONE)
        e.type = COMMIT_ON_INTENT_REFUSED;
    else
#endif
        if (fate != FATE_NONE)
        e.type = fate == FATE_COMMIT ? COMMIT_ON_READ_COMMIT : COMMIT_ON_READ_ABORT;
    else if (!(there && v->ckpt[r->ckpt].intent) && v->inc.incarnation != r->incarnation)
        e.type = COMMIT_ON_INTENT_REFUSED;
    run_feed(s, actor, r, &e);
}

static void run_was_read(struct sim *s, unsigned actor, struct run *r, const struct view *v)
{
    int fate = r->ckpt < v->nckpts ? v->ckpt[r->ckpt].decision : FATE_NONE;

    if (fate == FATE_COMMIT)
        run_event(s, actor, r, COMMIT_ON_READ_COMMIT);
    else if (fate == FATE_ABORT)
        run_event(s, actor, r, COMMIT_ON_READ_ABORT);
    else
        run_event(s, actor, r,
                  v->pin.revision && v->pin.incarnation > r->incarnation ? COMMIT_ON_READ_FENCED
                                                                         : COMMIT_ON_READ_ABSENT);
}

static void run_read_done(struct sim *s, unsigned actor, struct run *r, const struct msg *m)
{
    struct node *n = sim_node(s, actor);
    bool refused = r->refused;

    r->refused = false;
    if (!m->view) {
        run_event(s, actor, r, refused ? COMMIT_ON_INTENT_UNKNOWN : COMMIT_ON_READ_FAILED);
        return;
    }
    const struct view *v = &s->view[m->view - 1];
    job_learn(s, actor, v);
    if (n->held && v->coordinator.revision != n->coordinator_revision) {
        n->held = n->valid = false;
        job_tick(s, actor);
    }
    if (r->over || !r->used)
        return;
    if (refused)
        run_intent_refused(s, actor, r, v);
    else
        run_was_read(s, actor, r, v);
}

void run_answer(struct sim *s, unsigned actor, unsigned run, const struct msg *m)
{
    struct run *r = &sim_node(s, actor)->run[run];
    int sent = r->sent;

    r->sent = 0;
    if (sent == COMMIT_READ) {
        run_read_done(s, actor, r, m);
    } else if (sent == COMMIT_WRITE_INTENT && m->code == 0 && !m->flag) {
        r->refused = r->no_base = true; /* the base may be what refused it, and no drain has begun */
        r->base = 0;
        run_send(s, actor, r, COMMIT_READ);
    } else if (sent == COMMIT_WRITE_INTENT) {
        run_event(s, actor, r, m->code < 0 ? COMMIT_ON_INTENT_UNKNOWN : COMMIT_ON_INTENT_WRITTEN);
    } else {
        run_event(s, actor, r, m->code < 0 ? COMMIT_ON_UNKNOWN : m->flag ? COMMIT_ON_APPLIED : COMMIT_ON_REFUSED);
    }
}

/* ---- effects --------------------------------------------------------------------------------- */

static void run_broadcast(struct sim *s, unsigned actor, const struct run *r, int type)
{
    struct msg m = {.type = (uint8_t)type, .from = (uint8_t)actor, .ckpt = r->ckpt};

    m.code = (int16_t)r->machine.code;
    m.root = type == C_DRAIN ? r->base : 0;
    for (unsigned i = 0; i < s->config.nodes; i++) {
        m.to = (uint8_t)(ACTOR_NODE + i);
        net_send(s, &m);
    }
}

static void run_store_root(struct sim *s, unsigned actor, struct run *r)
{
    if (s->nroots == SIM_ROOTS) {
        s->full_up = true;
        return;
    }
    struct root_image *root = &s->root[s->nroots];
    *root = (struct root_image){.ckpt = r->ckpt, .world = (uint8_t)r->machine.world_size};
    memcpy(root->shard, r->shard, sizeof root->shard);
    r->root = (uint16_t)s->nroots++;
    struct stripe st = {.kind = KIND_ROOT,
                        .ckpt = r->ckpt,
                        .owner = (uint8_t)run_index(s, actor, r),
                        .chunk = (uint8_t)actor,
                        .content = sim_chunk_content(r->root, 200)};
    r->rooting = true;
#ifdef CAIRN_BUG_ROOT_NOT_AWAITED
    run_root_done(s, actor, st.owner, true);
    r->rooting = true;
#endif
    store_add(s, actor, &st);
    store_pump(s, actor);
}

void run_root_done(struct sim *s, unsigned actor, unsigned run, bool good)
{
    struct run *r = &sim_node(s, actor)->run[run];

    if (!r->used || !r->rooting)
        return;
    r->rooting = false;
    /* Of two that have no root, one was not to have any: its ranks disagree. */
    run_event(s, actor, r, good ? COMMIT_ON_ROOT_STORED : r->ckpt % 2 ? COMMIT_ON_ROOT_FAILED : COMMIT_ON_REJECTED);
}

static void run_end(struct sim *s, unsigned actor, struct run *r)
{
    struct node *n = sim_node(s, actor);
    int state = r->machine.state;

    SAY(s, actor, "run of %u.%u ends: %s", s->ckpt[r->ckpt].step, r->incarnation, commit_state_name(state));
    r->over = true;
    r->used = false;
    n->ask[ASK_RUN + run_index(s, actor, r)] = 0;
    n->committed |= (uint64_t)(state == COMMIT_COMMITTED) << r->ckpt;
    if (state != COMMIT_COMMITTED)
        store_drop(s, actor, r->ckpt, STORE_ROOT);
    if (state == COMMIT_ABORTED && r->known)
        n->aborted |= 1ull << r->ckpt;
    if (state == COMMIT_COMMITTED)
        retain_tick(s, actor);
    if (state != COMMIT_COMMITTED)
        store_end_ckpt(s, actor, r->ckpt);
    if (!r->known) { /* the engine was silent: what it may hold is found when it answers */
        n->valid = false;
        job_tick(s, actor);
    }
}

/* Without a word: another coordinator decides it. */
void run_drop(struct sim *s, unsigned actor, struct run *r)
{
    r->used = false;
    r->over = true;
    sim_node(s, actor)->ask[ASK_RUN + run_index(s, actor, r)] = 0;
    store_drop(s, actor, r->ckpt, STORE_ROOT);
    store_end_ckpt(s, actor, r->ckpt); /* peers look themselves how */
}

static void run_effect(struct sim *s, unsigned actor, struct run *r, int what, bool again)
{
    switch (what) {
    case COMMIT_START_DRAINS:
        run_broadcast(s, actor, r, C_DRAIN);
        break;
    case COMMIT_STOP_DRAINS:
        break; /* the verdict stops them */
    case COMMIT_STORE_ROOT:
        run_store_root(s, actor, r);
        break;
    case COMMIT_TELL:
        check_told(s, r->ckpt, r->machine.code);
        run_broadcast(s, actor, r, C_VERDICT);
        break;
    case COMMIT_END:
        run_end(s, actor, r);
        break;
    default:
        run_ask(s, actor, r, what, again);
    }
}

void run_feed(struct sim *s, unsigned actor, struct run *r, const struct commit_event *e)
{
    struct commit_effects fx;
    int was = r->machine.state;

    if (!r->used || r->over)
        return;
    r->known = e->type == COMMIT_ON_APPLIED || e->type == COMMIT_ON_INTENT_REFUSED ||
               e->type == COMMIT_ON_READ_COMMIT || e->type == COMMIT_ON_READ_ABORT;
    commit_step(&r->machine, e, &fx);
    if (was != r->machine.state)
        SAY(s, actor, "run of %u.%u: %s -> %s", s->ckpt[r->ckpt].step, r->incarnation, commit_state_name(was),
            commit_state_name(r->machine.state));
    for (unsigned i = 0; i < fx.n; i++)
        run_effect(s, actor, r, fx.what[i], fx.again);
}

/* Whoever still has a snapshot of an adopted checkpoint has said so by now. */
static void run_unheard(struct sim *s, unsigned actor, struct run *r)
{
    r->unheard = false;
    for (unsigned i = 0; i < r->machine.world_size && r->used && commit_open(&r->machine); i++) {
        struct commit_event e = {.type = COMMIT_ON_GONE, .rank = i, .reason = "nobody has its snapshot"};
        if (r->ranks[i] == COMMIT_ABSENT)
            run_feed(s, actor, r, &e);
    }
}

void run_handle_timer(struct sim *s, const struct msg *m)
{
    struct run *r = &sim_node(s, m->to)->run[m->slot];

    if (!r->used || r->over)
        return;
    if (m->type == T_RUN_LATE && m->token == r->late_token) {
        run_event(s, m->to, r, COMMIT_ON_DEADLINE);
    } else if (m->type == T_RUN_UNHEARD && m->token == r->grace_token) {
        run_unheard(s, m->to, r);
    } else if (m->type == T_RUN_PAUSE && r->paused && m->token == r->token) {
        r->paused = false;
        run_send(s, m->to, r, r->what);
    }
}

/* ---- the object ------------------------------------------------------------------------------ */

static uint32_t run_deadline_ms(const struct sim *s)
{
    return s->healed ? CHECKPOINT_MS : s->config.deadline_ms;
}

static struct run *run_slot(struct sim *s, unsigned actor, unsigned ckpt)
{
    struct node *n = sim_node(s, actor);
    unsigned i = 0;

    while (i < SIM_RUNS && n->run[i].used)
        i++;
    if (i == SIM_RUNS)
        return NULL;
    struct run *r = &n->run[i];
    *r = (struct run){.used = true,
                      .ckpt = (uint8_t)ckpt,
                      .incarnation = s->ckpt[ckpt].incarnation,
                      .pause_ms = PAUSE_MS,
                      .started = s->now};
    r->late_token = net_timer_ms(s, actor, T_RUN_LATE, i, run_deadline_ms(s));
    return r;
}

bool run_adopt(struct sim *s, unsigned actor, unsigned ckpt)
{
    struct run *r = run_slot(s, actor, ckpt);

    if (!r)
        return false;
    SAY(s, actor, "adopts the intent of %u.%u", s->ckpt[ckpt].step, r->incarnation);
    commit_adopt(&r->machine, s->ckpt[ckpt].step, s->meta.now.ckpt[ckpt].world, run_deadline_ms(s), r->ranks);
    r->base = s->meta.now.ckpt[ckpt].intent_base;
    r->no_base = true;
    r->unheard = true;
    r->grace_token = net_timer_ms(s, actor, T_RUN_UNHEARD, run_index(s, actor, r), LEASE_MS + 100);
    return true;
}

static struct run *run_new(struct sim *s, unsigned actor, unsigned ckpt)
{
    struct run *r = run_slot(s, actor, ckpt);
    struct commit_effects fx;

    if (!r)
        return NULL;
    commit_init(&r->machine, s->ckpt[ckpt].step, sim_node(s, actor)->inc.world, run_deadline_ms(s), r->ranks, &fx);
    for (unsigned i = 0; i < fx.n; i++)
        run_effect(s, actor, r, fx.what[i], fx.again);
    return r;
}

static struct run *run_find(struct node *n, unsigned ckpt)
{
    for (unsigned i = 0; i < SIM_RUNS; i++)
        if (n->run[i].used && n->run[i].ckpt == ckpt)
            return &n->run[i];
    return NULL;
}

static void run_answer_report(struct sim *s, const struct msg *m, int verdict, int code, unsigned base)
{
    struct msg a = {.from = m->to, .to = m->from, .ckpt = m->ckpt, .code = (int16_t)code, .root = (uint8_t)base};

    a.type = verdict == VERDICT_INTENT ? C_DRAIN : C_VERDICT;
    if (verdict != VERDICT_NONE)
        net_send(s, &a);
}

static void run_take_report(struct sim *s, const struct msg *m, struct run *r)
{
    static const int states[] = {[SAVE_BEGUN] = REPORT_BEGUN,
                                 [SAVE_FILLED] = REPORT_FILLED,
                                 [SAVE_DURABLE] = REPORT_DURABLE,
                                 [SAVE_FAILED] = REPORT_FAILED,
                                 [SAVE_DROPPED] = REPORT_DROPPED};
    struct commit_event events[REPORT_MAX_EVENTS];
    struct report report = {.rank = m->rank, .state = states[m->state], .reason = "simulated"};

    if (m->rank >= r->machine.world_size)
        return;
    unsigned n = report_events(&r->machine, &report, events);
    if (m->state == SAVE_DURABLE && r->ranks[m->rank] != COMMIT_DURABLE)
        r->shard[m->rank] = m->stripe;
    for (unsigned i = 0; i < n; i++)
        run_feed(s, m->to, r, &events[i]);
}

/* A node's report of one rank. Who reports what nobody works on learns its fate, or begins a checkpoint. */
void run_report(struct sim *s, const struct msg *m)
{
    struct node *n = sim_node(s, m->to);
    struct run *r = run_find(n, m->ckpt);

    if (!job_ready(n))
        return;
    if (n->committed >> m->ckpt & 1) {
        run_answer_report(s, m, VERDICT_COMMITTED, 0, 0);
    } else if (n->aborted >> m->ckpt & 1) {
        run_answer_report(s, m, VERDICT_ABORTED, CAIRN_E_ABORTED, 0);
    } else if (m->incarnation > n->inc.incarnation) {
        n->valid = false; /* what is known here is old */
        job_tick(s, m->to);
    } else if (!r && (m->incarnation < n->inc.incarnation || m->state >= SAVE_FAILED)) {
        run_answer_report(s, m, VERDICT_ABORTED, CAIRN_E_ABORTED, 0);
    } else {
        r = r ? r : run_new(s, m->to, m->ckpt);
        if (!r)
            return;
        run_take_report(s, m, r);
        if (r->used)
            run_answer_report(s, m, report_verdict(&r->machine), r->machine.code, r->base);
    }
}
