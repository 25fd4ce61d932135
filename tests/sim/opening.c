/* SPDX-License-Identifier: Apache-2.0 */
/* What a rank resumes from: core/checkpoint/pin.h driven as daemon/node/job_open.c does. */
#include "tests/sim/sim.h"

static void opening_read(struct sim *s, unsigned actor, unsigned proc)
{
    struct msg m = {.type = M_LIST};

    sim_node(s, actor)->opening[proc].phase = OPEN_READING;
    node_ask(s, actor, ASK_OPEN + proc, &m);
}

static void opening_pause(struct sim *s, unsigned actor, unsigned proc, uint32_t ms)
{
    struct opening *o = &sim_node(s, actor)->opening[proc];

    o->phase = OPEN_PAUSED;
    o->token = net_timer_ms(s, actor, T_OPEN_PAUSE, proc, ms);
}

static void opening_end(struct sim *s, unsigned actor, unsigned proc, int code, const struct meta_pin *pin)
{
    struct opening *o = &sim_node(s, actor)->opening[proc];
    struct msg m = {.type = C_OPENED,
                    .from = (uint8_t)actor,
                    .to = o->node,
                    .to_epoch = o->node_epoch,
                    .proc = (uint8_t)proc,
                    .slot = o->proc_epoch,
                    .code = (int16_t)code};

    if (pin) {
        m.ckpt = pin->ckpt;
        m.root = o->root;
        m.flag = pin->none;
        m.seq = pin->number;
    }
    o->used = false;
    net_send(s, &m);
    job_tick(s, actor);
}

void opening_request(struct sim *s, const struct msg *m)
{
    struct node *n = sim_node(s, m->to);
    struct opening *o = &n->opening[m->proc];

    if (!job_ready(n))
        return;
    if (o->used && o->node == m->from && o->node_epoch == m->from_epoch && o->proc_epoch == m->slot)
        return; /* a repeat */
    n->load[m->proc].used = false;
    *o = (struct opening){.used = true,
                          .node = m->from,
                          .node_epoch = m->from_epoch,
                          .proc_epoch = m->slot,
                          .incarnation = m->incarnation,
                          .until = s->now + OPEN_MS * MS};
    opening_read(s, m->to, m->proc);
}

/* ---- moves ----------------------------------------------------------------------------------- */

static void opening_load(struct sim *s, unsigned actor, unsigned proc, const struct view *v, unsigned ckpt)
{
    struct node *n = sim_node(s, actor);
    struct opening *o = &n->opening[proc];
    struct fetch *f = &n->load[proc];

    o->phase = OPEN_LOADING;
    o->at = (uint8_t)ckpt;
    o->root = v->ckpt[ckpt].root;
    o->seen = v->pin;
    o->inc_revision = v->inc.revision;
    *f = (struct fetch){.load = true, .ckpt = (uint8_t)ckpt, .proc = (uint8_t)proc, .root = o->root};
    f->until = s->now + (o->until - s->now) / 2;
    fetch_start(s, actor, f);
}

static void opening_pin(struct sim *s, unsigned actor, unsigned proc, const struct known *tried, unsigned ckpt)
{
    struct opening *o = &sim_node(s, actor)->opening[proc];
    struct record_pin old = {.number = o->seen.number, .incarnation = o->seen.incarnation};
    struct record_pin r = pin_record(o->seen.revision ? &old : NULL, o->incarnation, tried);
    struct msg m = {.type = M_TXN};

    o->phase = OPEN_PINNING;
    o->pin = (struct meta_pin){
        .number = (uint32_t)r.number, .incarnation = (uint32_t)r.incarnation, .none = r.none, .ckpt = (uint8_t)ckpt};
    m.txn = (struct txn){.put = KEY_PIN,
                         .ncompares = 2,
                         .compare = {{KEY_PIN, 0, o->seen.revision}, {KEY_INC, 0, o->inc_revision}},
                         .pin = o->pin};
    if (tried) /* it may have been deleted since it was read */
        m.txn.compare[m.txn.ncompares++] = (struct compare){KEY_TOMBSTONE, (uint8_t)ckpt, 0};
    m.content = o->bad; /* for the invariants: what could not be read */
    node_ask(s, actor, ASK_OPEN + proc, &m);
}

static void opening_abort(struct sim *s, unsigned actor, unsigned proc, unsigned ckpt)
{
    struct opening *o = &sim_node(s, actor)->opening[proc];
    struct msg m = {0};

    o->phase = OPEN_ABORTING;
    o->at = (uint8_t)ckpt;
    job_abort_txn(&m, ckpt);
    node_ask(s, actor, ASK_OPEN + proc, &m);
}

/* The records as the pure code wants them. */
static size_t opening_known(struct sim *s, unsigned actor, const struct opening *o, const struct view *v,
                            struct known k[SIM_CKPTS], uint8_t ckpt[SIM_CKPTS])
{
    static const int fates[] = {
        [FATE_NONE] = KNOWN_UNDECIDED, [FATE_COMMIT] = KNOWN_COMMITTED, [FATE_ABORT] = KNOWN_ABORTED};
    size_t n = 0;

    for (unsigned c = 0; c < v->nckpts; c++) {
        if (!v->ckpt[c].intent && v->ckpt[c].decision == FATE_NONE)
            continue;
        ckpt[n] = (uint8_t)c;
        k[n++] = (struct known){.step = s->ckpt[c].step,
                                .incarnation = s->ckpt[c].incarnation,
                                .fate = v->ckpt[c].tombstone ? KNOWN_DELETED : fates[v->ckpt[c].decision],
                                .under_way = run_works_on(sim_node(s, actor), c),
                                .unreadable = o->bad >> c & 1};
    }
    return n;
}

static void opening_next(struct sim *s, unsigned actor, unsigned proc, const struct view *v)
{
    struct opening *o = &sim_node(s, actor)->opening[proc];
    struct known k[SIM_CKPTS];
    uint8_t ckpt[SIM_CKPTS];
    size_t n = opening_known(s, actor, o, v, k, ckpt);
    struct record_pin pin = {.number = v->pin.number, .incarnation = v->pin.incarnation, .none = v->pin.none};

    if (v->pin.revision && !v->pin.none) {
        pin.step = s->ckpt[v->pin.ckpt].step;
        pin.ckpt_incarnation = s->ckpt[v->pin.ckpt].incarnation;
    }
    struct pin_move move = pin_next(k, n, v->pin.revision ? &pin : NULL, o->incarnation);
    o->pinning = move.action == PIN_TRY;
    o->seen = v->pin;
    o->inc_revision = v->inc.revision;
    if (move.action == PIN_WAIT)
        opening_pause(s, actor, proc, 100);
    else if (move.action == PIN_ABORT)
        opening_abort(s, actor, proc, ckpt[move.index]);
    else if (move.action == PIN_NONE)
        opening_pin(s, actor, proc, NULL, 0);
    else if (move.action == PIN_FOLLOW && move.index < 0)
        opening_end(s, actor, proc, 0, &v->pin);
    else if (move.action == PIN_TRY || move.action == PIN_FOLLOW)
        opening_load(s, actor, proc, v, ckpt[move.index]);
    else
        opening_end(s, actor, proc, move.action == PIN_FENCED ? CAIRN_E_FENCED : CAIRN_E_CORRUPT, NULL);
}

void opening_loaded(struct sim *s, unsigned actor, unsigned proc, bool good)
{
    struct opening *o = &sim_node(s, actor)->opening[proc];
    struct known k = {.step = s->ckpt[o->at].step, .incarnation = s->ckpt[o->at].incarnation};

    if (!o->used || o->phase != OPEN_LOADING)
        return;
    if (good && o->pinning) {
        opening_pin(s, actor, proc, &k, o->at);
    } else if (good) {
        opening_end(s, actor, proc, 0, &o->seen);
    } else {
        o->bad |= 1ull << o->at;
        opening_read(s, actor, proc);
    }
}

void opening_answer(struct sim *s, unsigned actor, unsigned proc, const struct msg *m)
{
    struct opening *o = &sim_node(s, actor)->opening[proc];
    int phase = o->phase;

    if (!o->used)
        return;
    if (s->now >= o->until) {
        opening_end(s, actor, proc, CAIRN_E_TIMEOUT, NULL);
    } else if (m->code < 0) {
        opening_pause(s, actor, proc, 100); /* unknown: read after a while */
    } else if (phase != OPEN_READING) {
        if (phase == OPEN_ABORTING && m->flag)
            store_end_ckpt(s, actor, o->at);
        if (phase == OPEN_PINNING && m->flag) {
            o->pin.revision = m->seq;
            sim_node(s, actor)->pin = o->pin;
            opening_end(s, actor, proc, 0, &o->pin);
            return;
        }
        opening_read(s, actor, proc);
    } else {
        const struct view *v = &s->view[m->view - 1];
        job_learn(s, actor, v);
        if (v->inc.incarnation != o->incarnation)
            opening_end(s, actor, proc, CAIRN_E_FENCED, NULL);
        else
            opening_next(s, actor, proc, v);
    }
}

void opening_handle_timer(struct sim *s, const struct msg *m)
{
    struct opening *o = &sim_node(s, m->to)->opening[m->slot];

    if (!o->used || o->token != m->token || o->phase != OPEN_PAUSED)
        return;
    if (s->now >= o->until)
        opening_end(s, m->to, m->slot, CAIRN_E_TIMEOUT, NULL);
    else
        opening_read(s, m->to, m->slot);
}
