/* SPDX-License-Identifier: Apache-2.0 */
/* A node's daemon towards its processes: sessions, saves, what is reported to the job's coordinator and repeated until
 * it answers. What the coordinator itself does is job.c. */
#include "tests/sim/sim.h"

#include <string.h>

void node_start(struct sim *s, unsigned actor)
{
    struct node *n = sim_node(s, actor);

    memset(n, 0, sizeof *n); /* nothing survives: arenas and sessions are gone */
    links_start(s, actor);
}

/* The sockets of its processes break. */
void node_crash(struct sim *s, unsigned actor)
{
    for (unsigned p = 0; p < SIM_PROCS; p++) {
        struct msg m = {.type = N_GONE, .from = (uint8_t)actor, .to = (uint8_t)(ACTOR_PROC + p)};
        if (s->actor[m.to].up && s->proc[p].node == actor)
            net_local(s, &m);
    }
}

/* ---- the metadata ---------------------------------------------------------------------------- */

void node_ask(struct sim *s, unsigned actor, unsigned slot, struct msg *m)
{
    struct node *n = sim_node(s, actor);

    m->from = (uint8_t)actor;
    m->to = ACTOR_META;
    m->slot = (uint16_t)slot;
    m->token = n->ask[slot] = net_timer_ms(s, actor, T_META_LATE, slot, META_MS);
    net_send(s, m);
}

static void node_answered(struct sim *s, const struct msg *m)
{
    struct node *n = sim_node(s, m->to);
    struct msg a = *m;

    if (n->ask[m->slot] != m->token)
        return;
    n->ask[m->slot] = 0;
    if (m->type == T_META_LATE)
        a.code = CAIRN_E_UNAVAILABLE;
    if (m->slot >= ASK_OPEN)
        opening_answer(s, m->to, m->slot - ASK_OPEN, &a);
    else if (m->slot >= ASK_RUN)
        run_answer(s, m->to, m->slot - ASK_RUN, &a);
    else if (m->slot == ASK_RETAIN)
        retain_answer(s, m->to, &a);
    else
        job_answer(s, m->to, m->slot, &a);
}

/* ---- towards the coordinator ----------------------------------------------------------------- */

void node_to_coordinator(struct sim *s, unsigned actor, struct msg *m)
{
    const struct node *n = sim_node(s, actor);

    m->from = (uint8_t)actor;
    if (n->valid && n->coordinator) {
        m->to = (uint8_t)(n->coordinator - 1);
        net_send(s, m);
    }
}

static void node_say_join(struct sim *s, unsigned actor, unsigned proc)
{
    const struct member *b = &sim_node(s, actor)->member[proc];
    struct msg m = {.type = C_JOIN,
                    .proc = (uint8_t)proc,
                    .rank = b->rank,
                    .world = b->world,
                    .start_id = b->start_id,
                    .flag = b->take_over,
                    .slot = b->proc_epoch};

    node_to_coordinator(s, actor, &m);
}

static void node_say_open(struct sim *s, unsigned actor, unsigned proc)
{
    const struct member *b = &sim_node(s, actor)->member[proc];
    struct msg m = {.type = C_OPEN, .proc = (uint8_t)proc, .incarnation = b->incarnation, .slot = b->proc_epoch};

    node_to_coordinator(s, actor, &m);
}

void save_changed(struct sim *s, unsigned actor, unsigned save)
{
    const struct save *v = &sim_node(s, actor)->save[save];
    struct msg m = {.type = C_REPORT,
                    .ckpt = v->ckpt,
                    .rank = v->rank,
                    .state = v->state,
                    .stripe = v->manifest,
                    .incarnation = s->ckpt[v->ckpt].incarnation};

    node_to_coordinator(s, actor, &m);
}

static bool node_wanted(const struct node *n)
{
    for (unsigned p = 0; p < SIM_PROCS; p++)
        if (n->member[p].used)
            return true;
    for (unsigned i = 0; i < SIM_SAVES; i++)
        if (n->save[i].used)
            return true;
    return false;
}

static void node_beat(struct sim *s, unsigned actor)
{
    struct node *n = sim_node(s, actor);

    n->beating = node_wanted(n);
    if (!n->beating) {
        job_tick(s, actor);
        return;
    }
    net_timer_ms(s, actor, T_BEAT, 0, BEAT_MS);
    if (n->valid && n->coordinator && s->now > n->heard + SILENT_MS * MS)
        n->valid = n->held && n->coordinator == actor + 1; /* looked up again */
    for (unsigned p = 0; p < SIM_PROCS; p++) {
        const struct member *b = &n->member[p];
        struct msg m = {.type = C_BEAT, .proc = (uint8_t)p, .rank = b->rank, .incarnation = b->incarnation};
        m.slot = b->proc_epoch;
        if (b->used && b->joined && !b->fenced)
            node_to_coordinator(s, actor, &m);
        if (b->used && b->join_token)
            node_say_join(s, actor, p);
        if (b->used && b->open_token && !n->fetch[p].used)
            node_say_open(s, actor, p);
    }
    for (unsigned i = 0; i < SIM_SAVES; i++)
        if (n->save[i].used)
            save_changed(s, actor, i);
    job_tick(s, actor);
}

static void node_want(struct sim *s, unsigned actor)
{
    struct node *n = sim_node(s, actor);

    if (!n->beating) {
        n->beating = true;
        net_timer_ms(s, actor, T_BEAT, 0, BEAT_MS);
    }
    job_tick(s, actor);
}

/* ---- sessions -------------------------------------------------------------------------------- */

static void node_tell(struct sim *s, unsigned actor, unsigned proc, int type, int code, const struct msg *more)
{
    struct msg m = *more;

    m.type = (uint8_t)type;
    m.from = (uint8_t)actor;
    m.to = (uint8_t)(ACTOR_PROC + proc);
    m.to_epoch = sim_node(s, actor)->member[proc].proc_epoch;
    m.code = (int16_t)code;
    net_local(s, &m);
}

static void node_join(struct sim *s, const struct msg *m)
{
    struct node *n = sim_node(s, m->to);
    unsigned proc = m->from - ACTOR_PROC;

    n->member[proc] = (struct member){.used = true,
                                      .rank = m->rank,
                                      .world = m->world,
                                      .start_id = m->start_id,
                                      .take_over = m->flag,
                                      .proc_epoch = m->from_epoch,
                                      .join_token = ++s->tokens};
#ifndef CAIRN_BUG_NO_DEADLINE
    n->member[proc].join_token = net_timer_ms(s, m->to, T_OPEN_LATE, proc, JOIN_MS);
#endif
    node_want(s, m->to);
    node_say_join(s, m->to, proc);
}

static void node_joined(struct sim *s, const struct msg *m)
{
    struct node *n = sim_node(s, m->to);
    struct member *b = &n->member[m->proc];

    n->heard = s->now;
    if (!b->used || !b->join_token || b->proc_epoch != m->slot)
        return;
    b->join_token = 0;
    b->joined = m->code == 0;
    b->incarnation = m->incarnation;
    node_tell(s, m->to, m->proc, N_JOINED, m->code, m);
    b->used = b->joined;
}

static void node_open(struct sim *s, const struct msg *m)
{
    struct member *b = &sim_node(s, m->to)->member[m->from - ACTOR_PROC];

    if (!b->used)
        return;
    b->open_token = net_timer_ms(s, m->to, T_OPEN_LATE, m->from - ACTOR_PROC, 2 * OPEN_MS);
    node_say_open(s, m->to, m->from - ACTOR_PROC);
}

/* The coordinator says what is pinned: now this rank reads it. */
static void node_opened(struct sim *s, const struct msg *m)
{
    struct node *n = sim_node(s, m->to);
    struct member *b = &n->member[m->proc];
    struct fetch *f = &n->fetch[m->proc];

    n->heard = s->now;
    if (!b->used || !b->open_token || b->proc_epoch != m->slot || f->used)
        return;
    b->pin_number = m->seq;
    if (m->code < 0 || m->flag) { /* flag: there is nothing to resume from */
        b->open_token = 0;
        node_tell(s, m->to, m->proc, N_OPENED, m->code, m);
        return;
    }
    *f = (struct fetch){.ckpt = m->ckpt, .rank = b->rank, .world = b->world, .proc = m->proc, .root = m->root};
    f->until = s->now + OPEN_MS / 2 * MS;
    fetch_start(s, m->to, f);
}

void fetch_done(struct sim *s, unsigned actor, struct fetch *f, bool good)
{
    struct member *b = &sim_node(s, actor)->member[f->proc];
    struct msg m = {.ckpt = f->ckpt};

    if (f->load) {
        opening_loaded(s, actor, f->proc, good);
        return;
    }
    if (!b->used || !b->open_token)
        return;
    b->open_token = 0;
    node_tell(s, actor, f->proc, N_OPENED, good ? 0 : CAIRN_E_UNAVAILABLE, &m);
}

static void node_late(struct sim *s, const struct msg *m)
{
    struct node *n = sim_node(s, m->to);
    struct member *b = &n->member[m->slot];
    struct msg none = {0};

    if (b->used && b->join_token == m->token) {
        node_tell(s, m->to, m->slot, N_JOINED, CAIRN_E_TIMEOUT, &none);
        b->used = false;
    } else if (b->used && b->open_token == m->token) {
        b->open_token = 0;
        n->fetch[m->slot].used = false;
        node_tell(s, m->to, m->slot, N_OPENED, CAIRN_E_TIMEOUT, &none);
    }
}

/* ---- saves ----------------------------------------------------------------------------------- */

static void save_end(struct sim *s, unsigned actor, unsigned save, int code)
{
    struct node *n = sim_node(s, actor);
    struct save *v = &n->save[save];
    struct msg m = {.ckpt = v->ckpt};

    v->used = false;
    if (code < 0 || v->state < SAVE_DURABLE)
        store_drop(s, actor, v->ckpt, v->rank);
    check_told(s, v->ckpt, code);
    if (n->member[v->proc].used && n->member[v->proc].proc_epoch == v->proc_epoch)
        node_tell(s, actor, v->proc, N_TOLD, code, &m);
}

static struct save *save_find(struct node *n, unsigned ckpt, unsigned rank)
{
    for (unsigned i = 0; i < SIM_SAVES; i++)
        if (n->save[i].used && n->save[i].ckpt == ckpt && n->save[i].rank == rank)
            return &n->save[i];
    return NULL;
}

static struct save *save_new(struct node *n)
{
    for (unsigned i = 0; i < SIM_SAVES; i++)
        if (!n->save[i].used)
            return &n->save[i];
    return NULL;
}

static void node_begin(struct sim *s, const struct msg *m)
{
    struct node *n = sim_node(s, m->to);
    unsigned proc = m->from - ACTOR_PROC;
    struct member *b = &n->member[proc];
    struct msg none = {0};

    if (!b->used || b->proc_epoch != m->from_epoch)
        return;
    unsigned ckpt = sim_ckpt(s, m->seq, b->incarnation);
    struct save *v = save_find(n, ckpt, b->rank) ? NULL : save_new(n);
    if (b->fenced || !v) {
        node_tell(s, m->to, proc, N_TOLD, b->fenced ? CAIRN_E_FENCED : CAIRN_E_BUSY, &none);
        return;
    }
    *v = (struct save){.used = true,
                       .ckpt = (uint8_t)ckpt,
                       .rank = b->rank,
                       .proc = (uint8_t)proc,
                       .state = SAVE_BEGUN,
                       .proc_epoch = b->proc_epoch,
                       .content = m->content};
#ifndef CAIRN_BUG_NO_DEADLINE
    v->token = net_timer_ms(s, m->to, T_SAVE_LATE, (unsigned)(v - n->save), SAVE_MS);
#endif
    save_changed(s, m->to, (unsigned)(v - n->save));
}

static struct save *save_of(struct node *n, const struct msg *m)
{
    for (unsigned i = 0; i < SIM_SAVES; i++)
        if (n->save[i].used && n->save[i].proc == m->from - ACTOR_PROC && n->save[i].proc_epoch == m->from_epoch &&
            n->save[i].state == SAVE_BEGUN)
            return &n->save[i];
    return NULL;
}

static void node_filled(struct sim *s, const struct msg *m)
{
    struct node *n = sim_node(s, m->to);
    struct save *v = save_of(n, m);

    if (!v)
        return;
    v->state = SAVE_FILLED;
    s->ckpt[v->ckpt].content[v->rank] = v->content;
    save_changed(s, m->to, (unsigned)(v - n->save));
    if (v->drain)
        drain_start(s, m->to, (unsigned)(v - n->save));
}

/* A session ended: what is not filled is dropped, what is filled is the daemon's. */
static void node_leave(struct sim *s, const struct msg *m)
{
    struct node *n = sim_node(s, m->to);
    unsigned proc = m->from - ACTOR_PROC;
    struct member *b = &n->member[proc];
    struct msg leave = {.type = C_LEAVE, .proc = (uint8_t)proc, .slot = m->from_epoch};
    struct save *v = save_of(n, m);

    if (!b->used || b->proc_epoch != m->from_epoch)
        return;
    if (v) {
        v->state = SAVE_DROPPED;
        save_changed(s, m->to, (unsigned)(v - n->save));
    }
    b->used = false;
    n->fetch[proc].used = false;
    node_to_coordinator(s, m->to, &leave);
}

static void node_drain(struct sim *s, const struct msg *m)
{
    struct node *n = sim_node(s, m->to);

    n->heard = s->now;
    for (unsigned i = 0; i < SIM_SAVES; i++) {
        struct save *v = &n->save[i];
        if (!v->used || v->ckpt != m->ckpt)
            continue;
        v->named = v->drain ? v->named : m->root;
        v->drain = true;
        if (v->state == SAVE_FILLED)
            drain_start(s, m->to, i);
    }
}

static void node_verdict(struct sim *s, const struct msg *m)
{
    struct node *n = sim_node(s, m->to);

    n->heard = s->now;
    for (unsigned i = 0; i < SIM_SAVES; i++)
        if (n->save[i].used && n->save[i].ckpt == m->ckpt)
            save_end(s, m->to, i, m->code);
    store_pump(s, m->to);
}

static void node_save_late(struct sim *s, const struct msg *m)
{
    struct save *v = &sim_node(s, m->to)->save[m->slot];

    if (v->used && v->token == m->token)
        save_end(s, m->to, m->slot, CAIRN_E_UNAVAILABLE);
}

/* What the coordinator knows of incarnations: members of older ones are fenced. */
static void node_beaten(struct sim *s, const struct msg *m)
{
    struct node *n = sim_node(s, m->to);

    n->heard = s->now;
    for (unsigned p = 0; p < SIM_PROCS; p++) {
        struct member *b = &n->member[p];
        if (b->used && b->join_token)
            node_say_join(s, m->to, p);
        if (b->used && b->joined && b->incarnation < m->incarnation)
            b->fenced = true;
    }
    for (unsigned i = 0; i < SIM_SAVES; i++) {
        struct save *v = &n->save[i];
        if (v->used && v->state == SAVE_BEGUN && s->ckpt[v->ckpt].incarnation < m->incarnation)
            v->state = SAVE_DROPPED;
    }
}

/* ---- all ------------------------------------------------------------------------------------- */

static void node_timer_beat(struct sim *s, const struct msg *m)
{
    node_beat(s, m->to);
}

void node_handle(struct sim *s, const struct msg *m)
{
    static void (*const handlers[MSG_TYPES])(struct sim *, const struct msg *) = {
        [P_JOIN] = node_join,
        [P_OPEN] = node_open,
        [P_BEGIN] = node_begin,
        [P_FILLED] = node_filled,
        [P_LEAVE] = node_leave,
        [P_GONE] = node_leave,
        [C_JOIN] = job_handle,
        [C_BEAT] = job_handle,
        [C_LEAVE] = job_handle,
        [C_REPORT] = run_report,
        [C_OPEN] = opening_request,
        [C_JOINED] = node_joined,
        [C_BEATEN] = node_beaten,
        [C_DRAIN] = node_drain,
        [C_VERDICT] = node_verdict,
        [C_OPENED] = node_opened,
        [S_WELCOME] = store_handle,
        [S_STORED] = store_handle,
        [S_REFUSED] = store_handle,
        [S_SYNCED] = store_handle,
        [S_SYNC_FAILED] = store_handle,
        [S_DATA] = fetch_handle,
        [S_MISSING] = fetch_handle,
        [M_ANSWER] = node_answered,
        [T_META_LATE] = node_answered,
        [T_LEASE] = job_handle,
        [T_RETRY] = job_handle,
        [T_BEAT] = node_timer_beat,
        [T_RUN_PAUSE] = run_handle_timer,
        [T_RUN_LATE] = run_handle_timer,
        [T_RUN_UNHEARD] = run_handle_timer,
        [T_OPEN_PAUSE] = opening_handle_timer,
        [T_OPEN_LATE] = node_late,
        [T_LINK] = store_handle,
        [T_LINK_LATE] = store_handle,
        [T_SAVE_LATE] = node_save_late,
        [T_FETCH_LATE] = fetch_handle,
        [T_FETCH_PAUSE] = fetch_handle,
    };

    if (handlers[m->type])
        handlers[m->type](s, m);
}

/* Nothing is held that nobody waits for. */
bool node_quiet(const struct node *n)
{
    unsigned held = n->buffers + n->nstripes;

    for (unsigned p = 0; p < SIM_PEERS; p++)
        held += n->link[p].credits + (n->link[p].syncing != 0);
    for (unsigned i = 0; i < SIM_SAVES; i++)
        held += n->save[i].used;
    for (unsigned i = 0; i < SIM_RUNS; i++)
        held += n->run[i].used;
    for (unsigned i = 0; i < SIM_PROCS; i++)
        held += n->fetch[i].used + n->load[i].used + n->opening[i].used + n->member[i].used;
    for (unsigned i = 0; i < ASKS; i++)
        held += n->ask[i] != 0;
    return held == 0;
}
