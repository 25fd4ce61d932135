/* SPDX-License-Identifier: Apache-2.0 */
/* One schedule from its beginning to its end: events in order, each to the actor it is meant for, the invariants after
 * each. A hung actor's events wait; those of a start that is over are dropped. */
#include "tests/sim/sim.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define HEAL_MS 5000
#define END_MS 120000 /* a schedule that goes on for so long never ends */

const char *msg_name(int type)
{
#define NAME(n_) [n_] = #n_
    static const char *const names[MSG_TYPES] = {
        NAME(P_JOIN),        NAME(P_OPEN),        NAME(P_BEGIN),     NAME(P_FILLED),        NAME(P_LEAVE),
        NAME(P_GONE),        NAME(N_JOINED),      NAME(N_OPENED),    NAME(N_TOLD),          NAME(N_GONE),
        NAME(C_JOIN),        NAME(C_BEAT),        NAME(C_REPORT),    NAME(C_OPEN),          NAME(C_LEAVE),
        NAME(C_JOINED),      NAME(C_BEATEN),      NAME(C_DRAIN),     NAME(C_VERDICT),       NAME(C_OPENED),
        NAME(S_HELLO),       NAME(S_PUT),         NAME(S_SYNC),      NAME(S_READ),          NAME(S_END),
        NAME(S_WELCOME),     NAME(S_STORED),      NAME(S_REFUSED),   NAME(S_SYNCED),        NAME(S_SYNC_FAILED),
        NAME(S_DATA),        NAME(S_MISSING),     NAME(M_LIST),      NAME(M_TXN),           NAME(M_GRANT),
        NAME(M_KEEP),        NAME(M_REVOKE),      NAME(M_ANSWER),    NAME(T_META_LATE),     NAME(T_LEASE),
        NAME(T_RETRY),       NAME(T_BEAT),        NAME(T_RUN_PAUSE), NAME(T_RUN_LATE),      NAME(T_OPEN_PAUSE),
        NAME(T_OPEN_LATE),   NAME(T_LINK),        NAME(T_LINK_LATE), NAME(T_SAVE_LATE),     NAME(T_FETCH_LATE),
        NAME(T_FETCH_PAUSE), NAME(T_DISK_WRITE),  NAME(T_DISK_SYNC), NAME(T_LEASE_EXPIRES), NAME(T_PROC_STEP),
        NAME(T_PROC_FILL),   NAME(T_PROC_LATE),   NAME(T_LAUNCH),    NAME(T_FAULT),         NAME(T_HEAL),
        NAME(T_REBOOT),      NAME(T_RUN_UNHEARD), NAME(T_PROC_JOIN),
    };
#undef NAME

    return type > 0 && type < MSG_TYPES && names[type] ? names[type] : "?";
}

void sim_actor_name(unsigned actor, char buf[16])
{
    if (actor < ACTOR_PEER)
        snprintf(buf, 16, "node%u", actor);
    else if (actor < ACTOR_META)
        snprintf(buf, 16, "peer%u", actor - ACTOR_PEER);
    else if (actor == ACTOR_META)
        snprintf(buf, 16, "meta");
    else if (actor < ACTOR_LAUNCHER)
        snprintf(buf, 16, "proc%u", actor - ACTOR_PROC);
    else
        snprintf(buf, 16, "world");
}

void sim_say(struct sim *s, unsigned actor, const char *fmt, ...)
{
    char name[16];
    va_list ap;

    sim_actor_name(actor, name);
    printf("%10.3f ms  %-7s ", (double)s->now / 1000, name);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    putchar('\n');
}

void sim_violate(struct sim *s, const char *invariant, const char *fmt, ...)
{
    va_list ap;

    if (s->violation)
        return;
    s->violation = invariant;
    va_start(ap, fmt);
    vsnprintf(s->detail, sizeof s->detail, fmt, ap);
    va_end(ap);
    SAY(s, ACTOR_LAUNCHER, "VIOLATION %s: %s", invariant, s->detail);
}

unsigned sim_ckpt(struct sim *s, uint32_t step, uint32_t incarnation)
{
    for (unsigned i = 0; i < s->nckpts; i++)
        if (s->ckpt[i].step == step && s->ckpt[i].incarnation == incarnation)
            return i;
    if (s->nckpts == SIM_CKPTS) {
        s->full_up = true;
        return 0;
    }
    s->ckpt[s->nckpts] = (struct ckpt){.step = step, .incarnation = incarnation};
    return s->nckpts++;
}

/* ---- actors ---------------------------------------------------------------------------------- */

void sim_start_actor(struct sim *s, unsigned actor)
{
    struct actor *a = &s->actor[actor];

    a->up = true;
    a->epoch++;
    a->hung_until = 0;
    a->disturbed = s->now;
    SAY(s, actor, "starts");
    if (actor < ACTOR_PEER)
        node_start(s, actor);
    else if (actor < ACTOR_META)
        peer_start(s, actor);
}

void sim_crash_actor(struct sim *s, unsigned actor)
{
    SAY(s, actor, "crashes");
    s->actor[actor].up = false;
    s->actor[actor].hung_until = 0;
    if (actor < ACTOR_PEER)
        node_crash(s, actor);
    else if (actor < ACTOR_META)
        peer_crash(s, actor);
}

/* ---- events ---------------------------------------------------------------------------------- */

static void sim_handle(struct sim *s, const struct msg *m)
{
    if (m->to < ACTOR_PEER)
        node_handle(s, m);
    else if (m->to < ACTOR_META)
        peer_handle(s, m);
    else if (m->to == ACTOR_META)
        meta_handle(s, m);
    else if (m->to < ACTOR_LAUNCHER)
        proc_handle(s, m);
    else
        launcher_handle(s, m);
}

static void sim_trace_event(struct sim *s, const struct msg *m)
{
    char from[16];

    if (m->type >= T_META_LATE && m->type != T_BEAT && m->type != T_RUN_LATE)
        return;
    sim_actor_name(m->from, from);
    sim_say(s, m->to, "<- %-7s %-10s %u.%u rank %u proc %u kind %u index %u state %u code %d%s", from,
            msg_name(m->type), s->ckpt[m->ckpt].step, s->ckpt[m->ckpt].incarnation, m->rank, m->proc, m->kind, m->index,
            m->state, m->code, m->flag ? " yes" : "");
}

static void sim_deliver(struct sim *s, struct msg *m)
{
    struct actor *a = &s->actor[m->to];
    bool here = a->up && (m->to_epoch == 0 || m->to_epoch == a->epoch);
    unsigned armed = here ? s->armed[m->to] : 0;
    uint32_t ms = s->armed_ms[m->to];

    if (!here)
        return;
    if (s->trace)
        sim_trace_event(s, m);
    if (armed && armed / 2 == m->type) {
        unsigned actor = m->to;
        struct msg boot = {.type = T_REBOOT, .proc = (uint8_t)actor};

        s->armed[actor] = 0;
        if (armed & 1)
            sim_handle(s, m);
        if (!a->up)
            return;
        sim_crash_actor(s, actor);
        net_timer(s, ACTOR_LAUNCHER, &boot, (uint64_t)ms * MS);
        return;
    }
    sim_handle(s, m);
}

static bool sim_awake(struct sim *s, const struct msg *m)
{
    struct actor *a = &s->actor[m->to];

    if (a->hung_until > s->now)
        return false;
    if (a->hung_until) {
        a->hung_until = 0;
        a->disturbed = s->now;
    }
    return true;
}

static void sim_step(struct sim *s)
{
    int index = queue_take(&s->queue, &s->now);
    struct msg *m = &s->queue.pool[index];

    if (!sim_awake(s, m)) {
        queue_put_back(&s->queue, s->actor[m->to].hung_until, index);
        return;
    }
    s->events++;
    sim_deliver(s, m);
    if (m->view)
        view_release(s, m->view);
    check_event(s);
    queue_release(&s->queue, index);
}

static void sim_reset(struct sim *s, uint64_t seed, const struct config *config, bool trace)
{
    struct msg *pool = s->queue.pool;

    for (unsigned i = 0; i < SIM_PEERS; i++)
        memset(&s->peer[i], 0, offsetof(struct peer, stream)); /* what lies behind counts by nfrags, nstreams */
    memset(&s->meta, 0, offsetof(struct meta, decision_revision));
    memset(s->meta.decision_revision, 0, sizeof s->meta.decision_revision);
    memset(s->meta.intent_revision, 0, sizeof s->meta.intent_revision);
    memset(s->actor, 0, sizeof s->actor);
    memset(s->proc, 0, sizeof s->proc);
    memset(&s->launcher, 0, sizeof s->launcher);
    memset(s->cut, 0, sizeof s->cut);
    memset(s->armed, 0, sizeof s->armed);
    memset(&s->seen, 0, sizeof s->seen);
    queue_reset(&s->queue);
    s->queue.pool = pool;
    s->seed = seed;
    s->config = *config;
    s->trace = trace;
    s->now = s->views_used = s->lose_answers_until = 0;
    s->nckpts = s->nshards = s->nroots = 0;
    s->tokens = 0;
    s->healed = s->full_up = false;
    s->dirty = 0;
    s->events = 0;
    s->violation = NULL;
    s->detail[0] = 0;
    s->ckpt[0] = (struct ckpt){0};
    rng_seed(&s->rng, seed);
}

void sim_run(struct sim *s, uint64_t seed, const struct config *config, bool trace)
{
    sim_reset(s, seed, config, trace);
    s->actor[ACTOR_META] = (struct actor){.up = true, .epoch = 1};
    s->actor[ACTOR_LAUNCHER] = (struct actor){.up = true, .epoch = 1};
    for (unsigned i = 0; i < config->nodes; i++)
        sim_start_actor(s, ACTOR_NODE + i);
    for (unsigned i = 0; i < config->peers; i++)
        sim_start_actor(s, ACTOR_PEER + i);
    for (unsigned i = 0; i < config->nfaults; i++) {
        struct msg m = {.type = T_FAULT, .slot = (uint16_t)i};
        if (!config->fault[i].skip)
            net_timer(s, ACTOR_LAUNCHER, &m, (uint64_t)config->fault[i].at_ms * MS);
    }
    struct msg heal = {.type = T_HEAL};
    net_timer(s, ACTOR_LAUNCHER, &heal, HEAL_MS * MS);
    launcher_begin(s);
    while (s->queue.n > 0 && !s->violation && !s->full_up) {
        sim_step(s);
        if (s->now > END_MS * (uint64_t)MS)
            sim_violate(s, "comes_to_rest", "events still come after %u s", END_MS / 1000);
    }
    if (!s->violation && !s->full_up)
        check_end(s);
}
