/* SPDX-License-Identifier: Apache-2.0 */
/* The processes of the training job, one a rank, and what launches them: join, resume, train, save, again. When one
 * dies the launcher ends the others and starts all anew under another start id, perhaps with another world size. */
#include "tests/sim/sim.h"

static unsigned proc_actor(unsigned proc)
{
    return ACTOR_PROC + proc;
}

static void proc_say(struct sim *s, unsigned actor, struct msg *m)
{
    m->from = (uint8_t)actor;
    m->to = s->proc[actor - ACTOR_PROC].node;
    m->to_epoch = s->actor[m->to].epoch; /* a socket to this start of the daemon */
    net_local(s, m);
}

static void proc_wait(struct sim *s, unsigned actor, uint32_t ms)
{
    struct proc *p = &s->proc[actor - ACTOR_PROC];

    p->token = net_timer_ms(s, actor, T_PROC_LATE, 0, ms + SLACK_MS);
    p->since = s->now;
}

static void proc_exit(struct sim *s, unsigned actor, bool good)
{
    struct proc *p = &s->proc[actor - ACTOR_PROC];
    struct msg m = {.type = P_LEAVE};
    struct msg gone = {.type = T_LAUNCH, .start_id = p->start_id, .flag = good};

    SAY(s, actor, "exits%s", good ? "" : " with an error");
    proc_say(s, actor, &m);
    s->actor[actor].up = false;
    p->state = PROC_NONE;
    net_timer(s, ACTOR_LAUNCHER, &gone, 20 * MS);
}

void proc_kill(struct sim *s, unsigned proc)
{
    unsigned actor = proc_actor(proc);
    struct msg m = {.type = P_GONE};
    struct msg gone = {.type = T_LAUNCH, .start_id = s->proc[proc].start_id};

    if (!s->actor[actor].up)
        return;
    SAY(s, actor, "is killed");
    proc_say(s, actor, &m); /* the daemon's pidfd */
    s->actor[actor].up = false;
    s->proc[proc].state = PROC_NONE;
    net_timer(s, ACTOR_LAUNCHER, &gone, 20 * MS);
}

static void proc_join(struct sim *s, unsigned actor)
{
    struct proc *p = &s->proc[actor - ACTOR_PROC];
    struct msg m = {.type = P_JOIN, .rank = p->rank, .world = p->world, .start_id = p->start_id, .flag = p->take_over};

    struct msg again = {.type = T_PROC_JOIN};

    p->state = PROC_JOINING;
    if (s->actor[p->node].up) {
        proc_say(s, actor, &m);
        proc_wait(s, actor, JOIN_MS);
    } else { /* until its daemon listens */
        p->token = ++s->tokens;
        again.token = p->token;
        net_timer(s, actor, &again, 30 * MS);
    }
}

static void proc_join_again(struct sim *s, const struct msg *m)
{
    if (m->token == s->proc[m->to - ACTOR_PROC].token)
        proc_join(s, m->to);
}

static void proc_step_later(struct sim *s, unsigned actor)
{
    struct proc *p = &s->proc[actor - ACTOR_PROC];
    struct msg m = {.type = T_PROC_STEP};

    if (p->left == 0) {
        proc_exit(s, actor, true);
        return;
    }
    p->state = PROC_TRAINING;
    m.token = p->token = ++s->tokens;
    net_timer(s, actor, &m, rng_range(&s->rng, 2, 60) * MS);
}

static void proc_joined(struct sim *s, const struct msg *m)
{
    struct proc *p = &s->proc[m->to - ACTOR_PROC];
    struct msg open = {.type = P_OPEN};

    if (p->state != PROC_JOINING)
        return;
    if (m->code < 0) {
        proc_exit(s, m->to, false);
        return;
    }
    bool same = p->incarnation == m->incarnation;
    p->incarnation = m->incarnation;
    if (p->resumed && same) { /* only its daemon died meanwhile */
        proc_step_later(s, m->to);
        return;
    }
    p->state = PROC_OPENING;
    proc_say(s, m->to, &open);
    proc_wait(s, m->to, 2 * OPEN_MS);
}

static void proc_opened(struct sim *s, const struct msg *m)
{
    struct proc *p = &s->proc[m->to - ACTOR_PROC];

    if (p->state != PROC_OPENING)
        return;
    if (m->code < 0) {
        proc_exit(s, m->to, false);
        return;
    }
    p->resumed = true;
    p->step = m->flag ? 0 : s->ckpt[m->ckpt].step;
    SAY(s, m->to, "resumes from step %u", p->step);
    proc_step_later(s, m->to);
}

static void proc_step(struct sim *s, const struct msg *m)
{
    struct proc *p = &s->proc[m->to - ACTOR_PROC];
    struct msg begin = {.type = P_BEGIN, .seq = ++p->step};
    struct msg fill = {.type = T_PROC_FILL};

    if (p->state != PROC_TRAINING || m->token != p->token)
        return;
    p->state = PROC_SAVING;
    p->left--;
    begin.content = ((uint64_t)p->start_id << 40 | (uint64_t)p->step << 8 | p->rank) * 0x9e3779b97f4a7c15ull & ~1ull;
    proc_say(s, m->to, &begin);
    proc_wait(s, m->to, SAVE_MS);
    fill.token = p->token;
    net_timer(s, m->to, &fill, rng_range(&s->rng, 1, 20) * MS);
}

static void proc_fill(struct sim *s, const struct msg *m)
{
    struct proc *p = &s->proc[m->to - ACTOR_PROC];
    struct msg filled = {.type = P_FILLED};

    if (p->state == PROC_SAVING && m->token == p->token)
        proc_say(s, m->to, &filled);
}

static void proc_told(struct sim *s, const struct msg *m)
{
    struct proc *p = &s->proc[m->to - ACTOR_PROC];

    if (p->state != PROC_SAVING)
        return;
    s->launcher.commits += m->code == 0 && p->start_id == s->launcher.start_id;
    if (m->code == CAIRN_E_FENCED)
        proc_exit(s, m->to, false);
    else
        proc_step_later(s, m->to);
}

/* Its daemon died: what it waits for has failed, it connects to the next one. */
static void proc_daemon_gone(struct sim *s, const struct msg *m)
{
    struct proc *p = &s->proc[m->to - ACTOR_PROC];

    if (p->state == PROC_SAVING && rng_below(&s->rng, 2)) { /* its arena is handed back: the same step again */
        p->step--;
        p->left++;
    }
    proc_join(s, m->to);
}

static void proc_late(struct sim *s, const struct msg *m)
{
    struct proc *p = &s->proc[m->to - ACTOR_PROC];
    const struct actor *daemon = &s->actor[p->node];

    if (m->token != p->token || p->state == PROC_TRAINING)
        return;
    bool excused =
        !daemon->up || daemon->hung_until || daemon->disturbed >= p->since || s->actor[m->to].disturbed >= p->since;
    if (!excused)
        sim_violate(s, "ends_by_its_deadline", "rank %u waits for %s since %u ms", p->rank,
                    p->state == PROC_JOINING   ? "its join"
                    : p->state == PROC_OPENING ? "its restore"
                                               : "its save",
                    (unsigned)((s->now - p->since) / MS));
    proc_exit(s, m->to, false);
}

void proc_handle(struct sim *s, const struct msg *m)
{
    static void (*const handlers[MSG_TYPES])(struct sim *, const struct msg *) = {
        [N_JOINED] = proc_joined,    [N_OPENED] = proc_opened,        [N_TOLD] = proc_told,
        [N_GONE] = proc_daemon_gone, [T_PROC_STEP] = proc_step,       [T_PROC_FILL] = proc_fill,
        [T_PROC_LATE] = proc_late,   [T_PROC_JOIN] = proc_join_again,
    };

    if (handlers[m->type])
        handlers[m->type](s, m);
}

/* ---- the launcher ---------------------------------------------------------------------------- */

static unsigned launcher_free_proc(const struct sim *s)
{
    unsigned p = 0;

    while (p < SIM_PROCS && s->actor[proc_actor(p)].up)
        p++;
    return p;
}

static void launch_rank(struct sim *s, const struct proc *like)
{
    unsigned p = launcher_free_proc(s);

    if (p == SIM_PROCS) {
        s->full_up = true;
        return;
    }
    s->proc[p] = *like;
    sim_start_actor(s, proc_actor(p));
    s->actor[proc_actor(p)].hung_until = 0;
    proc_join(s, proc_actor(p));
}

static void launcher_start(struct sim *s)
{
    struct launcher *l = &s->launcher;
    struct config *c = &s->config;
    unsigned nodes = l->starts == 0 ? c->nodes : rng_range(&s->rng, 1, c->nodes);
    unsigned per_node = l->starts == 0 ? c->per_node : rng_range(&s->rng, 1, c->per_node);

    l->start_id++;
    l->starts++;
    l->world = l->alive = (uint8_t)(nodes * per_node);
    l->running = true;
    l->failed = false;
    l->commits = 0;
    SAY(s, ACTOR_LAUNCHER, "start %u: %u ranks", l->start_id, l->world);
    for (unsigned r = 0; r < l->world; r++) {
        struct proc p = {.node = (uint8_t)(r / per_node),
                         .rank = (uint8_t)r,
                         .world = l->world,
                         .start_id = l->start_id,
                         .take_over = l->final || l->take_over,
                         .left = l->final ? 1 : c->saves};
        launch_rank(s, &p);
    }
    l->take_over = false;
}

static void launcher_start_later(struct sim *s)
{
    struct msg m = {.type = T_LAUNCH, .token = ++s->tokens, .state = 1};

    s->launcher.token = m.token;
    s->launcher.running = false;
    net_timer(s, ACTOR_LAUNCHER, &m, rng_range(&s->rng, 20, 300) * MS);
}

static void launcher_kill_all(struct sim *s)
{
    for (unsigned p = 0; p < SIM_PROCS; p++)
        if (s->actor[proc_actor(p)].up && (s->proc[p].start_id == s->launcher.start_id || s->healed))
            proc_kill(s, p);
}

/* kill: an elastic restart. Else the old ranks are out of reach and live on, and the new start takes over. */
void launcher_restart(struct sim *s, bool kill)
{
    struct launcher *l = &s->launcher;

    if (!l->running || l->starts >= 6 || s->healed)
        return;
    if (kill)
        launcher_kill_all(s);
    l->take_over = !kill;
    launcher_start_later(s);
}

/* A process of a start that was replaced comes late. */
void launcher_old_start(struct sim *s)
{
    struct launcher *l = &s->launcher;

    if (l->start_id < 2 || s->healed)
        return;
    struct proc p = {.node = (uint8_t)rng_below(&s->rng, s->config.nodes),
                     .world = l->world,
                     .start_id = (uint8_t)rng_range(&s->rng, 1, l->start_id - 1u),
                     .take_over = true,
                     .left = 1};
    launch_rank(s, &p);
}

/* All is well again: a last start must resume and commit. */
void launcher_heal(struct sim *s)
{
    struct launcher *l = &s->launcher;

    if (l->running && !l->failed)
        return; /* it goes on, undisturbed; the last start comes when it ended */
    launcher_kill_all(s);
    l->final = true;
    launcher_start_later(s);
}

static void launcher_over(struct sim *s)
{
    struct launcher *l = &s->launcher;

    l->running = false;
    if (l->final && (l->commits > 0 || l->starts > 9)) {
        if (l->commits == 0 && !check_one_is_lost(s))
            sim_violate(s, "goes_on_when_all_is_well", "%u starts could neither resume nor commit", l->starts);
        l->finished = true;
        launcher_kill_all(s);
        return;
    }
    if (s->healed)
        l->final = true;
    if (s->healed || l->starts < 6)
        launcher_start_later(s);
}

/* A process has ended. */
static void launcher_ended(struct sim *s, const struct msg *m)
{
    struct launcher *l = &s->launcher;

    if (m->start_id != l->start_id || !l->running)
        return;
    l->alive--;
    if (!m->flag && !l->failed) {
        l->failed = true;
        launcher_kill_all(s);
    }
    if (l->alive > 0)
        return;
    if (!l->failed && !s->healed)
        l->running = false; /* done; what follows comes with the healing */
    else
        launcher_over(s);
}

void launcher_handle(struct sim *s, const struct msg *m)
{
    if (m->type == T_FAULT)
        fault_happen(s, m->slot);
    else if (m->type == T_HEAL)
        fault_heal(s);
    else if (m->type == T_REBOOT)
        fault_end(s, m);
    else if (m->state == 0)
        launcher_ended(s, m);
    else if (m->token == s->launcher.token && !s->launcher.running)
        launcher_start(s);
}

void launcher_begin(struct sim *s)
{
    launcher_start(s);
}
