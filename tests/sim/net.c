/* SPDX-License-Identifier: Apache-2.0 */
/* The network: between machines a message may be lost, doubled, late by far; two actors may be cut off from each other.
 * What stays on a machine (a process and its daemon, a timer) does none of that. */
#include "tests/sim/sim.h"

static void net_put(struct sim *s, uint64_t at, const struct msg *m)
{
    if (!queue_put(&s->queue, at, m)) {
        s->full_up = true;
        if (m->view)
            view_release(s, m->view);
    }
}

static bool net_stamp(struct sim *s, struct msg *m)
{
    m->from_epoch = s->actor[m->from].epoch;
    return true;
}

static uint64_t net_delay(struct sim *s)
{
    uint32_t us = rng_range(&s->rng, 50, 1500);

    if (rng_permille(&s->rng, s->config.straggle) && !s->healed)
        us += rng_below(&s->rng, 1500 * MS);
    return us;
}

static bool net_cut(const struct sim *s, unsigned a, unsigned b)
{
    return s->cut[a] >> b & 1;
}

void net_send(struct sim *s, const struct msg *from)
{
    struct msg m = *from;
    bool tcp = m.to == ACTOR_META || m.from == ACTOR_META; /* no doubles: there every request has one answer */

    net_stamp(s, &m);
    if (m.from == m.to) {
        net_put(s, s->now + 5, &m);
        return;
    }
    bool lost = net_cut(s, m.from, m.to) || (!s->healed && rng_permille(&s->rng, s->config.loss)) ||
                (m.type == M_ANSWER && s->now < s->lose_answers_until);
    if (lost) {
        SAY(s, m.from, "(%s to %u is lost)", msg_name(m.type), m.to);
        if (m.view)
            view_release(s, m.view);
        return;
    }
    net_put(s, s->now + net_delay(s), &m);
    if (!tcp && !s->healed && rng_permille(&s->rng, s->config.dup))
        net_put(s, s->now + net_delay(s) * 2, &m);
}

void net_local(struct sim *s, const struct msg *from)
{
    struct msg m = *from;

    net_stamp(s, &m);
    net_put(s, s->now + 20, &m);
}

void net_timer(struct sim *s, unsigned actor, const struct msg *from, uint64_t delay_us)
{
    struct msg m = *from;

    m.from = m.to = (uint8_t)actor;
    net_stamp(s, &m);
    m.to_epoch = m.from_epoch;
    net_put(s, s->now + delay_us, &m);
}

uint32_t net_timer_ms(struct sim *s, unsigned actor, int type, unsigned index, uint32_t ms)
{
    struct msg m = {.type = (uint8_t)type, .slot = (uint16_t)index, .token = ++s->tokens};

    net_timer(s, actor, &m, (uint64_t)ms * MS);
    return m.token;
}
