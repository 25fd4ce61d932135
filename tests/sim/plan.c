/* SPDX-License-Identifier: Apache-2.0 */
/* What a seed means: the size of the world, its weather, its faults. */
#include "tests/sim/sim.h"

#include <stdio.h>
#include <string.h>

#define PLAN_MS 4000 /* faults begin before that */

static const char *const fault_names[FAULTS] = {
    [FAULT_CRASH] = "crash",
    [FAULT_CRASH_ON] = "crash at a message",
    [FAULT_KILL_RANK] = "kill a rank",
    [FAULT_HANG] = "hang",
    [FAULT_CUT] = "cut",
    [FAULT_ISOLATE] = "isolate",
    [FAULT_LEASE] = "leases expire",
    [FAULT_SYNC] = "fdatasync fails",
    [FAULT_WRITE] = "write fails",
    [FAULT_FULL] = "disk is full",
    [FAULT_ROT] = "bit rot",
    [FAULT_DESTROY] = "disk is lost",
    [FAULT_CLOCK] = "wall clock jumps",
    [FAULT_RESTART] = "elastic restart",
    [FAULT_ZOMBIE] = "take-over while the old ranks live",
    [FAULT_OLD_START] = "a rank of an old start",
    [FAULT_ANSWERS] = "the metadata's answers are lost",
};

/* Messages around which the order of things matters most. */
static const uint8_t moments[] = {S_PUT,       S_STORED,    S_SYNC,   S_SYNCED, C_REPORT, C_DRAIN,
                                  C_VERDICT,   C_OPENED,    C_JOINED, M_ANSWER, M_ANSWER, T_DISK_WRITE,
                                  T_DISK_SYNC, T_RUN_PAUSE, P_FILLED, C_BEAT};

static uint8_t plan_daemon(const struct config *c, struct rng *r)
{
    return (uint8_t)(rng_below(r, 2) ? ACTOR_NODE + rng_below(r, c->nodes) : ACTOR_PEER + rng_below(r, c->peers));
}

static void plan_fault(const struct config *c, struct rng *r, struct fault *f)
{
    static const uint8_t types[] = {FAULT_CRASH,     FAULT_CRASH,  FAULT_CRASH_ON, FAULT_CRASH_ON,  FAULT_CRASH_ON,
                                    FAULT_KILL_RANK, FAULT_HANG,   FAULT_HANG,     FAULT_CUT,       FAULT_CUT,
                                    FAULT_ISOLATE,   FAULT_LEASE,  FAULT_SYNC,     FAULT_SYNC,      FAULT_WRITE,
                                    FAULT_FULL,      FAULT_ROT,    FAULT_DESTROY,  FAULT_CLOCK,     FAULT_RESTART,
                                    FAULT_RESTART,   FAULT_ZOMBIE, FAULT_ZOMBIE,   FAULT_OLD_START, FAULT_ANSWERS};

    *f = (struct fault){.type = types[rng_below(r, sizeof types)], .a = plan_daemon(c, r)};
    f->at_ms = rng_below(r, 3) ? rng_below(r, 400) : rng_below(r, PLAN_MS);
    f->for_ms = rng_below(r, 3) ? rng_range(r, 20, 500) : rng_range(r, 500, 3000);
    switch (f->type) {
    case FAULT_CRASH_ON:
        f->b = moments[rng_below(r, sizeof moments)];
        f->a = f->b >= S_PUT && f->b != S_STORED && f->b != S_SYNCED && (f->b == S_PUT || f->b == S_SYNC)
                   ? (uint8_t)(ACTOR_PEER + rng_below(r, c->peers))
               : f->b == T_DISK_WRITE || f->b == T_DISK_SYNC ? (uint8_t)(ACTOR_PEER + rng_below(r, c->peers))
                                                             : (uint8_t)(ACTOR_NODE + rng_below(r, c->nodes));
        break;
    case FAULT_KILL_RANK:
        f->a = (uint8_t)rng_below(r, (uint32_t)c->nodes * c->per_node);
        break;
    case FAULT_CUT:
        f->a = (uint8_t)(ACTOR_NODE + rng_below(r, c->nodes));
        f->b = rng_below(r, 2) ? ACTOR_META : plan_daemon(c, r);
        break;
    case FAULT_SYNC:
    case FAULT_WRITE:
    case FAULT_FULL:
    case FAULT_ROT:
    case FAULT_DESTROY:
        f->a = (uint8_t)(ACTOR_PEER + rng_below(r, c->peers));
        f->b = (uint8_t)rng_range(r, 1, 3);
        break;
    default:
        break;
    }
}

/* The coordinator's key changes hands while checkpoints are about to be decided. */
static void plan_contention(struct config *c, struct rng *r)
{
    static const uint8_t types[] = {FAULT_LEASE, FAULT_LEASE, FAULT_HANG,    FAULT_HANG,
                                    FAULT_CUT,   FAULT_CRASH, FAULT_ANSWERS, FAULT_RESTART};

    c->nodes = (uint8_t)rng_range(r, 2, 3);
    c->per_node = c->chunks = 1;
    c->straggle = rng_below(r, 2) ? 60 : 0;
    c->nfaults = (uint8_t)rng_range(r, 2, 5);
    for (unsigned i = 0; i < c->nfaults; i++) {
        struct fault *f = &c->fault[i];
        *f = (struct fault){.type = types[rng_below(r, sizeof types)], .a = (uint8_t)rng_below(r, c->nodes)};
        f->b = ACTOR_META;
        f->at_ms = rng_below(r, 1200);
        f->for_ms = f->type == FAULT_CRASH ? rng_range(r, 5, 200) : rng_range(r, 100, 2000);
    }
}

void plan_make(struct config *c, uint64_t seed)
{
    static const uint16_t weather[] = {0, 0, 0, 0, 5, 20, 60};
    struct rng r;

    rng_seed(&r, seed ^ 0x706c616eull); /* apart from the run's: a shortened plan leaves that alone */
    *c = (struct config){.nodes = (uint8_t)rng_range(&r, 1, 3),
                         .per_node = (uint8_t)rng_range(&r, 1, 2),
                         .peers = (uint8_t)rng_range(&r, 2, 6),
                         .chunks = (uint8_t)(1 + (rng_below(&r, 3) == 0)),
                         .saves = (uint8_t)rng_range(&r, 1, 3),
                         .nfaults = (uint8_t)rng_below(&r, 7)};
    if (rng_below(&r, 8) == 0)
        c->peers = 1;
    if (rng_below(&r, 8) == 0)
        c->nodes = SIM_NODES;
    c->loss = weather[rng_below(&r, 7)];
    c->dup = weather[rng_below(&r, 7)];
    c->straggle = weather[rng_below(&r, 7)];
    static const uint16_t deadlines[] = {CHECKPOINT_MS, CHECKPOINT_MS, CHECKPOINT_MS, 400, 120, 60};
    c->deadline_ms = deadlines[rng_below(&r, 6)];
    uint32_t keeping = rng_below(&r, 16);
    if (keeping < 5) { /* checkpoints are stored against others, and deleted */
        c->chain = (uint8_t)(1 + keeping % 3);
        c->last = (uint8_t)(1 + keeping / 3);
        c->saves += 2;
    }
    for (unsigned i = 0; i < c->nfaults; i++)
        plan_fault(c, &r, &c->fault[i]);
    if (rng_below(&r, 4) == 0)
        plan_contention(c, &r);
}

void plan_print(const struct config *c)
{
    char name[16];

    printf("  %u nodes with %u ranks each, %u peers, %u chunks a shard, %u saves a start\n", c->nodes, c->per_node,
           c->peers, c->chunks, c->saves);
    printf("  a checkpoint has %u ms\n", c->deadline_ms);
    if (c->chain || c->last)
        printf("  chains of %u bases, the last %u are kept (0: all)\n", c->chain, c->last);
    printf("  of 1000 messages %u are lost, %u come twice, %u come late\n", c->loss, c->dup, c->straggle);
    for (unsigned i = 0; i < c->nfaults; i++) {
        const struct fault *f = &c->fault[i];
        if (f->skip)
            continue;
        sim_actor_name(f->a, name);
        printf("  fault %u: at %u ms for %u ms: %s, %s, %u%s%s\n", i, f->at_ms, f->for_ms, fault_names[f->type], name,
               f->b, f->type == FAULT_CRASH_ON ? " " : "", f->type == FAULT_CRASH_ON ? msg_name(f->b) : "");
    }
}

/* ---- faults happen --------------------------------------------------------------------------- */

static void fault_reboot_later(struct sim *s, unsigned actor, uint32_t ms)
{
    struct msg m = {.type = T_REBOOT, .proc = (uint8_t)actor};

    net_timer(s, ACTOR_LAUNCHER, &m, (uint64_t)ms * MS);
}

static void fault_crash(struct sim *s, unsigned actor, uint32_t ms)
{
    if (!s->actor[actor].up)
        return;
    sim_crash_actor(s, actor);
    fault_reboot_later(s, actor, ms);
}

static void fault_cut(struct sim *s, unsigned a, unsigned b, bool cut)
{
    if (a == b)
        return;
    s->cut[a] = cut ? s->cut[a] | 1ull << b : s->cut[a] & ~(1ull << b);
    s->cut[b] = cut ? s->cut[b] | 1ull << a : s->cut[b] & ~(1ull << a);
}

static void fault_isolate(struct sim *s, unsigned a, bool cut)
{
    for (unsigned b = 0; b < ACTOR_PROC; b++)
        fault_cut(s, a, b, cut);
}

static void fault_rank(struct sim *s, unsigned rank)
{
    for (unsigned p = 0; p < SIM_PROCS; p++)
        if (s->actor[ACTOR_PROC + p].up && s->proc[p].rank == rank && s->proc[p].start_id == s->launcher.start_id)
            proc_kill(s, p);
}

static void fault_damage(struct sim *s, const struct fault *f)
{
    struct peer *p = sim_peer(s, f->a);
    unsigned one = p->nfrags ? rng_below(&s->rng, p->nfrags) : 0;

    for (unsigned i = 0; i < p->nfrags; i++) {
        struct frag *g = &p->frag[i];
        if (g->state == FRAG_FREE || (f->type == FAULT_ROT && i != one))
            continue;
        g->damaged = true;
        g->state = f->type == FAULT_ROT ? FRAG_ROTTEN : FRAG_LOST;
    }
    s->dirty |= DIRTY_DISK;
    if (f->type != FAULT_DESTROY)
        return;
    for (unsigned i = 0; i < p->nstreams; i++)
        p->stream[i].given_up = true;
    fault_crash(s, f->a, f->for_ms);
}

/* Never shortened: what waits for the actor stays in order. */
static void fault_hang(struct sim *s, unsigned actor, uint64_t until)
{
    if (s->actor[actor].up && until > s->actor[actor].hung_until)
        s->actor[actor].hung_until = until;
}

static void fault_outside(struct sim *s, const struct fault *f)
{
    switch (f->type) {
    case FAULT_LEASE:
        for (unsigned i = 0; i < 8; i++)
            meta_expire(s, i);
        break;
    case FAULT_CLOCK:
        s->actor[f->a].wall_offset += (f->b & 1 ? 1 : -1) * (int64_t)f->for_ms * 1000000;
        break;
    case FAULT_RESTART:
        launcher_restart(s, true);
        break;
    case FAULT_ZOMBIE:
        launcher_restart(s, false);
        break;
    case FAULT_OLD_START:
        launcher_old_start(s);
        break;
    default:
        s->lose_answers_until = s->now + (uint64_t)f->for_ms * MS;
    }
}

void fault_happen(struct sim *s, unsigned index)
{
    const struct fault *f = &s->config.fault[index];
    struct msg end = {.type = T_REBOOT, .slot = (uint16_t)(index + 1)};

    if (s->healed)
        return;
    SAY(s, ACTOR_LAUNCHER, "FAULT %u: %s (%u, %u) for %u ms", index, fault_names[f->type], f->a, f->b, f->for_ms);
    switch (f->type) {
    case FAULT_CRASH:
        fault_crash(s, f->a, f->for_ms);
        break;
    case FAULT_CRASH_ON:
        s->armed[f->a] = (uint16_t)(f->b * 2 + (f->at_ms & 1));
        s->armed_ms[f->a] = f->for_ms;
        break;
    case FAULT_KILL_RANK:
        fault_rank(s, f->a);
        break;
    case FAULT_HANG:
        fault_hang(s, f->a, s->now + (uint64_t)f->for_ms * MS);
        break;
    case FAULT_CUT:
        fault_cut(s, f->a, f->b, true);
        net_timer(s, ACTOR_LAUNCHER, &end, (uint64_t)f->for_ms * MS);
        break;
    case FAULT_ISOLATE:
        fault_isolate(s, f->a, true);
        net_timer(s, ACTOR_LAUNCHER, &end, (uint64_t)f->for_ms * MS);
        break;
    case FAULT_SYNC:
        sim_peer(s, f->a)->fail_syncs = f->b;
        break;
    case FAULT_WRITE:
        sim_peer(s, f->a)->fail_writes = f->b;
        break;
    case FAULT_FULL:
        sim_peer(s, f->a)->full_until = s->now + (uint64_t)f->for_ms * MS;
        break;
    case FAULT_ROT:
    case FAULT_DESTROY:
        fault_damage(s, f);
        break;
    default:
        fault_outside(s, f);
    }
}

void fault_end(struct sim *s, const struct msg *m)
{
    const struct fault *f = m->slot ? &s->config.fault[m->slot - 1] : NULL;

    if (!f && !s->actor[m->proc].up)
        sim_start_actor(s, m->proc);
    else if (f && f->type == FAULT_CUT)
        fault_cut(s, f->a, f->b, false);
    else if (f)
        fault_isolate(s, f->a, false);
}

/* From here on nothing fails any more. */
void fault_heal(struct sim *s)
{
    SAY(s, ACTOR_LAUNCHER, "all is well from here on");
    s->healed = true;
    s->lose_answers_until = 0;
    memset(s->cut, 0, sizeof s->cut);
    memset(s->armed, 0, sizeof s->armed);
    for (unsigned a = 0; a < ACTOR_META; a++) {
        bool there = a < ACTOR_PEER ? a < s->config.nodes : a - ACTOR_PEER < s->config.peers;
        if (there && !s->actor[a].up)
            sim_start_actor(s, a);
    }
    for (unsigned p = 0; p < SIM_PEERS; p++) {
        s->peer[p].fail_syncs = s->peer[p].fail_writes = 0;
        s->peer[p].full_until = 0;
    }
    launcher_heal(s);
}
