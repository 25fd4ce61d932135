/* SPDX-License-Identifier: Apache-2.0 */
/* Coordination of the job by one node, in the order of daemon/node/jobs.c: read the records, claim the key on a lease,
 * read again, adopt or abort what was left undecided, take joins. What was read before the key was claimed may be older
 * than the last decision of whoever held it: leftovers come from the second reading. */
#include "tests/sim/sim.h"

#include "core/base/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t now_ms(const struct sim *s)
{
    return (uint32_t)(s->now / MS);
}

static bool node_coordinates(const struct node *n, unsigned actor)
{
    return n->valid && n->held && n->coordinator == actor + 1;
}

bool job_ready(const struct node *n)
{
    return n->valid && n->held && n->leftovers == 0;
}

static bool member_lives(const struct sim *s, const struct node *n, const struct known_member *k)
{
    return k->used && k->incarnation == n->inc.incarnation && s->now < k->heard + MEMBER_MS * MS;
}

static bool job_alive(const struct sim *s, const struct node *n)
{
    for (unsigned p = 0; p < SIM_PROCS; p++)
        if (member_lives(s, n, &n->known[p]))
            return true;
    return false;
}

static bool job_wanted(const struct sim *s, const struct node *n)
{
    if (n->held && job_alive(s, n))
        return true; /* of ranks on other nodes */
    for (unsigned p = 0; p < SIM_PROCS; p++)
        if ((n->member[p].used && !n->member[p].fenced) || n->opening[p].used)
            return true;
    for (unsigned i = 0; i < SIM_SAVES; i++)
        if (n->save[i].used)
            return true;
    for (unsigned i = 0; i < SIM_RUNS; i++)
        if (n->run[i].used)
            return true;
    return false;
}

/* ---- learning -------------------------------------------------------------------------------- */

static void job_fence(struct sim *s, unsigned actor)
{
    struct node *n = sim_node(s, actor);

    for (unsigned i = 0; i < SIM_RUNS; i++) {
        struct commit_event e = {.type = COMMIT_ON_FENCED, .reason = "a newer start took over"};
        if (n->run[i].used && !n->run[i].over && !n->run[i].unheard && n->run[i].incarnation < n->inc.incarnation)
            run_feed(s, actor, &n->run[i], &e);
    }
}

void job_learn(struct sim *s, unsigned actor, const struct view *v)
{
    struct node *n = sim_node(s, actor);
    bool newer = v->inc.incarnation > n->inc.incarnation;

    for (unsigned c = 0; c < v->nckpts && c < 64; c++) { /* one bit each */
        n->committed |= (uint64_t)(v->ckpt[c].decision == FATE_COMMIT) << c;
        n->aborted |= (uint64_t)(v->ckpt[c].decision == FATE_ABORT) << c;
    }
    if (v->pin.revision > n->pin.revision)
        n->pin = v->pin;
    if (s->config.chain && v->revision > n->bases.revision)
        n->bases = *v;
    if (v->inc.revision < n->inc.revision)
        return;
    n->inc = v->inc;
    if (newer)
        job_fence(s, actor);
}

/* Another node coordinates: it has adopted what was on its way here. */
static void job_lost(struct sim *s, unsigned actor)
{
    struct node *n = sim_node(s, actor);

    SAY(s, actor, "coordinates no more");
    n->held = n->valid = false;
    for (unsigned i = 0; i < SIM_RUNS; i++)
        if (n->run[i].used)
            run_drop(s, actor, &n->run[i]);
    memset(n->known, 0, sizeof n->known);
}

static void job_retry_later(struct sim *s, unsigned actor)
{
    struct node *n = sim_node(s, actor);

    n->retrying = true;
    n->retry_token = net_timer_ms(s, actor, T_RETRY, 0, MAX_PAUSE_MS);
}

static void job_read_done(struct sim *s, unsigned actor, const struct view *v)
{
    struct node *n = sim_node(s, actor);

    if (!v) {
        job_retry_later(s, actor);
        return;
    }
    job_learn(s, actor, v);
    bool others = v->coordinator.revision && v->coordinator.node != actor;
    if (others) {
        job_lost(s, actor);
        n->valid = true;
        n->coordinator = v->coordinator.node + 1;
        n->heard = s->now;
        return;
    }
    n->coordinator_revision = v->coordinator.revision;
    n->held = v->coordinator.revision && v->coordinator.epoch == s->actor[actor].epoch && n->lease &&
              v->coordinator.lease == n->lease;
    n->valid = true;
    n->coordinator = n->held ? actor + 1 : 0;
    n->leftovers = 0;
    for (unsigned c = 0; c < v->nckpts; c++)
        if (v->ckpt[c].intent && v->ckpt[c].decision == FATE_NONE && !run_works_on(n, c))
            n->leftovers |= 1ull << c;
#ifdef CAIRN_BUG_FORGETS_INTENTS
    n->leftovers = 0;
#endif
}

/* ---- the lease ------------------------------------------------------------------------------- */

static void job_lease_answer(struct sim *s, unsigned actor, const struct msg *m)
{
    struct node *n = sim_node(s, actor);
    bool granted = n->phase == JOB_LEASING;

    if (m->code == 0) {
        n->lease = granted ? m->seq : n->lease;
        n->lease_kept_ms = n->lease_sent_ms;
        net_timer_ms(s, actor, T_LEASE, n->lease & 0xffff, LEASE_MS / 3);
    } else if (!granted && m->code == CAIRN_E_UNAVAILABLE && now_ms(s) - n->lease_kept_ms < LEASE_MS) {
        net_timer_ms(s, actor, T_LEASE, n->lease & 0xffff, LEASE_MS / 10);
    } else if (!granted) {
        SAY(s, actor, "its lease is lost");
        n->lease = 0;
        n->held = n->valid = false; /* claimed again, if nobody else took it */
    }
    if (granted) {
        n->phase = JOB_IDLE;
        if (m->code < 0) {
            n->valid = false;
            job_retry_later(s, actor);
        }
    }
}

static void job_lease_due(struct sim *s, const struct msg *m)
{
    struct node *n = sim_node(s, m->to);
    struct msg keep = {.type = M_KEEP, .seq = n->lease};

    if (!n->lease || m->slot != (n->lease & 0xffff) || n->ask[ASK_LEASE])
        return;
    if (!n->held && !job_wanted(s, n)) {
        n->lease = 0; /* runs out by itself */
        return;
    }
    if (n->held)
        job_tick(s, m->to); /* nobody may need it any more */
    retain_tick(s, m->to);
    n->lease_sent_ms = now_ms(s);
    node_ask(s, m->to, ASK_LEASE, &keep);
}

/* ---- requests -------------------------------------------------------------------------------- */

static void job_read(struct sim *s, unsigned actor)
{
    struct msg m = {.type = M_LIST};

    sim_node(s, actor)->phase = JOB_READING;
    node_ask(s, actor, ASK_JOB, &m);
}

static void job_claim(struct sim *s, unsigned actor)
{
    struct node *n = sim_node(s, actor);
    struct msg m = {.type = n->lease ? M_TXN : M_GRANT};

    n->phase = n->lease ? JOB_CLAIMING : JOB_LEASING;
    if (!n->lease) {
        n->lease_sent_ms = now_ms(s);
        node_ask(s, actor, ASK_LEASE, &m);
        return;
    }
    m.txn = (struct txn){.put = KEY_COORDINATOR,
                         .ncompares = 1,
                         .compare = {{KEY_COORDINATOR, 0, n->coordinator_revision}},
                         .coordinator = {.node = (uint8_t)actor, .epoch = s->actor[actor].epoch, .lease = n->lease}};
    node_ask(s, actor, ASK_JOB, &m);
}

static void job_release(struct sim *s, unsigned actor)
{
    struct node *n = sim_node(s, actor);
    struct msg m = {.type = M_TXN};

    n->phase = JOB_RELEASING;
    m.txn = (struct txn){.put = KEY_COORDINATOR,
                         .erase = true,
                         .ncompares = 1,
                         .compare = {{KEY_COORDINATOR, 0, n->coordinator_revision}}};
    node_ask(s, actor, ASK_JOB, &m);
}

void job_abort_txn(struct msg *m, unsigned ckpt)
{
    m->type = M_TXN;
    m->txn = (struct txn){.put = KEY_DECISION,
                          .ckpt = (uint8_t)ckpt,
                          .ncompares = 1,
                          .compare = {{KEY_DECISION, (uint8_t)ckpt, 0}},
                          .decision = {.decision = FATE_ABORT}};
#ifdef CAIRN_BUG_DECIDES_WITHOUT_COMPARE
    m->txn.ncompares = 0;
#endif
}

/* What was left undecided: taken over, or aborted where there is no room for it. */
static void job_take_leftover(struct sim *s, unsigned actor)
{
    struct node *n = sim_node(s, actor);
    unsigned ckpt = (unsigned)__builtin_ctzll(n->leftovers);
    struct msg m = {0};

    if (run_adopt(s, actor, ckpt)) {
        n->leftovers &= ~(1ull << ckpt);
        job_tick(s, actor);
        return;
    }
    n->phase = JOB_SWEEPING;
    n->sweeping = (uint8_t)ckpt;
    job_abort_txn(&m, ckpt);
    node_ask(s, actor, ASK_JOB, &m);
}

void job_tick(struct sim *s, unsigned actor)
{
    struct node *n = sim_node(s, actor);

    if (n->phase != JOB_IDLE)
        return;
    if (!job_wanted(s, n)) {
        if (n->held)
            job_release(s, actor);
        else
            n->valid = false;
    } else if (n->retrying) {
        return;
    } else if (!n->valid) {
        job_read(s, actor);
    } else if (!n->held && n->coordinator == 0) {
        job_claim(s, actor);
    } else if (n->held && n->leftovers) {
        job_take_leftover(s, actor);
    }
}

/* ---- answers --------------------------------------------------------------------------------- */

static void job_broadcast_incarnation(struct sim *s, unsigned actor)
{
    struct msg m = {.type = C_BEATEN, .from = (uint8_t)actor, .incarnation = sim_node(s, actor)->inc.incarnation};

    for (unsigned i = 0; i < s->config.nodes; i++) {
        m.to = (uint8_t)(ACTOR_NODE + i);
        net_send(s, &m);
    }
}

static void job_raised(struct sim *s, unsigned actor, const struct msg *m)
{
    struct node *n = sim_node(s, actor);

    if (m->code < 0 || !m->flag) {
        n->valid = false;
        return;
    }
    SAY(s, actor, "start %u is incarnation %u", n->next.start_id, n->next.incarnation);
    n->inc = n->next;
    n->inc.revision = m->seq;
    job_fence(s, actor);
    job_broadcast_incarnation(s, actor);
}

static void job_swept(struct sim *s, unsigned actor, const struct msg *m)
{
    struct node *n = sim_node(s, actor);

    if (m->code < 0 || !m->flag) {
        n->valid = false;
        return;
    }
    n->leftovers &= ~(1ull << n->sweeping);
    n->aborted |= 1ull << n->sweeping;
    store_end_ckpt(s, actor, n->sweeping);
}

void job_answer(struct sim *s, unsigned actor, unsigned slot, const struct msg *m)
{
    struct node *n = sim_node(s, actor);
    int phase = n->phase;

    if (slot == ASK_LEASE) {
        job_lease_answer(s, actor, m);
        job_tick(s, actor);
        return;
    }
    n->phase = JOB_IDLE;
    if (phase == JOB_READING)
        job_read_done(s, actor, m->view ? &s->view[m->view - 1] : NULL);
    else if (phase == JOB_RAISING)
        job_raised(s, actor, m);
    else if (phase == JOB_SWEEPING)
        job_swept(s, actor, m);
    else
        n->valid = false; /* claimed or not, released or not: reading says */
    if (phase == JOB_RELEASING) {
        n->held = false;
        n->lease = 0; /* runs out by itself */
    }
    if (phase == JOB_CLAIMING && m->code == CAIRN_E_NOT_FOUND)
        n->lease = 0;
    job_tick(s, actor);
}

/* ---- members --------------------------------------------------------------------------------- */

static void start_name(char *buf, unsigned id)
{
    snprintf(buf, CAIRN_MAX_NAME + 1, "s%u", id);
}

/* Asks core/checkpoint/start.h; the records here hold numbers for the start ids. */
static int job_decide_start(struct sim *s, const struct node *n, const struct msg *m, struct meta_inc *ret_next)
{
    struct record_incarnation now = {.incarnation = n->inc.incarnation, .world_size = n->inc.world}, next;
    struct start_request r = {"job", "", m->world, m->flag, job_alive(s, n)};
    char id[CAIRN_MAX_NAME + 1];

    start_name(now.start_id, n->inc.start_id);
    start_name(id, m->start_id);
    r.start_id = id;
    now.nseen = n->inc.nseen;
    for (unsigned i = 0; i < n->inc.nseen; i++)
        start_name(now.seen[i], n->inc.seen[i]);
    int v = start_decide(&now, &r, &next, NULL);
    if (v != START_RAISE)
        return v;
    *ret_next = (struct meta_inc){.incarnation = (uint32_t)next.incarnation,
                                  .start_id = (uint8_t)strtoul(next.start_id + 1, NULL, 10),
                                  .world = (uint8_t)next.world_size,
                                  .nseen = (uint8_t)next.nseen};
    for (unsigned i = 0; i < next.nseen && i < SIM_STARTS; i++)
        ret_next->seen[i] = (uint8_t)strtoul(next.seen[i] + 1, NULL, 10);
    return v;
}

static void job_raise(struct sim *s, unsigned actor)
{
    struct node *n = sim_node(s, actor);
    struct msg m = {.type = M_TXN};

    n->phase = JOB_RAISING;
    m.txn = (struct txn){.put = KEY_INC,
                         .ncompares = 2,
                         .compare = {{KEY_INC, 0, n->inc.revision}, {KEY_COORDINATOR, 0, n->coordinator_revision}},
                         .inc = n->next};
    node_ask(s, actor, ASK_JOB, &m);
}

/* The rank's daemon is another start: a snapshot that it held is gone. */
static void job_member_moved(struct sim *s, unsigned actor, const struct known_member *k)
{
    struct node *n = sim_node(s, actor);

    for (unsigned i = 0; i < SIM_RUNS; i++) {
        struct commit_event e = {.type = COMMIT_ON_GONE, .rank = k->rank, .reason = "its node's daemon"};
        if (n->run[i].used && !n->run[i].over && n->run[i].incarnation == k->incarnation)
            run_feed(s, actor, &n->run[i], &e);
    }
}

static void job_know_member(struct sim *s, const struct msg *m, uint32_t incarnation)
{
    struct known_member *k = &sim_node(s, m->to)->known[m->proc];

    if (k->used && k->incarnation == incarnation && k->node_epoch != m->from_epoch && m->type == C_JOIN)
        job_member_moved(s, m->to, k);
    *k = (struct known_member){.used = true,
                               .rank = m->rank,
                               .node = m->from,
                               .proc_epoch = m->slot,
                               .node_epoch = m->from_epoch,
                               .incarnation = incarnation,
                               .heard = s->now};
}

static bool job_rank_taken(const struct sim *s, const struct node *n, const struct msg *m)
{
    for (unsigned p = 0; p < SIM_PROCS; p++)
        if (p != m->proc && n->known[p].rank == m->rank && member_lives(s, n, &n->known[p]))
            return true;
    return false;
}

static void job_join(struct sim *s, const struct msg *m)
{
    struct node *n = sim_node(s, m->to);
    struct msg r = {.type = C_JOINED, .from = m->to, .to = m->from, .to_epoch = m->from_epoch};

    if (!job_ready(n) || n->phase != JOB_IDLE)
        return; /* it is repeated */
    int v = job_decide_start(s, n, m, &n->next);
    if (v == START_RAISE) {
        job_raise(s, m->to);
        return;
    }
    if (v == START_ADOPT && job_rank_taken(s, n, m))
        v = CAIRN_E_EXISTS;
    if (v == START_ADOPT)
        job_know_member(s, m, n->inc.incarnation);
    r.proc = m->proc;
    r.slot = m->slot;
    r.code = (int16_t)v;
    r.incarnation = n->inc.incarnation;
    net_send(s, &r);
}

static void job_beat(struct sim *s, const struct msg *m)
{
    struct node *n = sim_node(s, m->to);
    struct msg r = {.type = C_BEATEN, .from = m->to, .to = m->from, .incarnation = n->inc.incarnation};

    if (!node_coordinates(n, m->to))
        return;
    if (m->incarnation == n->inc.incarnation)
        job_know_member(s, m, m->incarnation);
    net_send(s, &r);
}

static void job_leave(struct sim *s, const struct msg *m)
{
    struct known_member *k = &sim_node(s, m->to)->known[m->proc];

    if (k->proc_epoch == m->slot)
        k->used = false;
}

static void job_retry(struct sim *s, const struct msg *m)
{
    struct node *n = sim_node(s, m->to);

    if (n->retry_token != m->token)
        return;
    n->retrying = false;
    job_tick(s, m->to);
}

void job_handle(struct sim *s, const struct msg *m)
{
    switch (m->type) {
    case C_JOIN:
        job_join(s, m);
        break;
    case C_BEAT:
        job_beat(s, m);
        break;
    case C_LEAVE:
        job_leave(s, m);
        break;
    case T_LEASE:
        job_lease_due(s, m);
        break;
    default:
        job_retry(s, m);
    }
}
