/* SPDX-License-Identifier: Apache-2.0 */
/* The metadata engine: etcd as seen from outside. Transactions are atomic and durable, compares are by revision, keys
 * on a lease go with it. Its own consensus is not simulated; that an answer gets lost, or that a request is applied
 * long after its sender gave it up, is the network's. */
#include "tests/sim/sim.h"

#include <string.h>

void view_release(struct sim *s, unsigned view)
{
    s->views_used &= ~(1ull << (view - 1));
}

static unsigned view_take(struct sim *s)
{
    if (~s->views_used == 0) {
        s->full_up = true;
        return 0;
    }
    unsigned i = (unsigned)__builtin_ctzll(~s->views_used);
    s->views_used |= 1ull << i;
    s->view[i] = s->meta.now;
    return i + 1;
}

static uint32_t meta_revision(const struct sim *s, const struct compare *c)
{
    const struct meta *m = &s->meta;

    switch (c->key) {
    case KEY_INC:
        return m->now.inc.revision;
    case KEY_COORDINATOR:
        return m->now.coordinator.revision;
    case KEY_PIN:
        return m->now.pin.revision;
    case KEY_INTENT:
        return m->intent_revision[c->ckpt];
    case KEY_HOLDS:
        return m->now.ckpt[c->ckpt].holds;
    case KEY_TOMBSTONE:
        return m->now.ckpt[c->ckpt].tombstone;
    default:
        return m->decision_revision[c->ckpt];
    }
}

static struct meta_ckpt *meta_ckpt(struct sim *s, unsigned ckpt)
{
    struct view *v = &s->meta.now;

    for (; v->nckpts <= ckpt; v->nckpts++)
        v->ckpt[v->nckpts] = (struct meta_ckpt){0};
    return &v->ckpt[ckpt];
}

static void meta_put_ckpt(struct sim *s, const struct txn *t, unsigned from, unsigned epoch, uint32_t revision)
{
    struct meta_ckpt *c = meta_ckpt(s, t->ckpt);

    if (t->put == KEY_INTENT) {
        check_intent(s, t->ckpt, from, epoch);
        c->intent = true;
        c->world = t->intent.world;
        c->intent_base = t->intent.intent_base;
        SAY(s, ACTOR_META, "intent of %u.%u, base %u", s->ckpt[t->ckpt].step, s->ckpt[t->ckpt].incarnation,
            c->intent_base ? s->ckpt[c->intent_base - 1].step : 0);
        if (c->intent_base) {
            check_base(s, t->ckpt, c->intent_base - 1u);
            s->meta.now.ckpt[c->intent_base - 1].holds = revision;
        }
        s->meta.intent_revision[t->ckpt] = revision;
        return;
    }
    if (t->put == KEY_TOMBSTONE) {
        SAY(s, ACTOR_META, "%u.%u is deleted", s->ckpt[t->ckpt].step, s->ckpt[t->ckpt].incarnation);
        check_tombstone(s, t->ckpt);
        c->tombstone = true;
        return;
    }
    check_decision(s, t->ckpt, t->decision.decision);
    c->decision = t->decision.decision;
    c->base = t->decision.base;
    c->decided = revision;
    c->root = t->decision.root;
    c->world = t->decision.world;
    s->meta.decision_revision[t->ckpt] = revision;
    SAY(s, ACTOR_META, "decision of %u.%u: %s", s->ckpt[t->ckpt].step, s->ckpt[t->ckpt].incarnation,
        c->decision == FATE_COMMIT ? "commit" : "abort");
}

static void meta_put(struct sim *s, const struct msg *m)
{
    const struct txn *t = &m->txn;
    struct view *v = &s->meta.now;
    uint32_t revision = ++v->revision;

    s->dirty |= DIRTY_META;
    if (t->put == KEY_COORDINATOR) {
        v->coordinator = t->coordinator;
        v->coordinator.revision = t->erase ? 0 : revision;
    } else if (t->put == KEY_INC) {
        v->inc = t->inc;
        v->inc.revision = revision;
    } else if (t->put == KEY_PIN) {
        check_pin(s, &t->pin, m->content);
        v->pin = t->pin;
        v->pin.revision = revision;
    } else {
        meta_put_ckpt(s, t, m->from, m->from_epoch, revision);
    }
}

static bool meta_lease_lives(const struct sim *s, uint32_t lease)
{
    for (unsigned i = 0; i < 8; i++)
        if (s->meta.lease[i].id == lease && lease)
            return true;
    return false;
}

static void meta_txn(struct sim *s, const struct msg *m, struct msg *answer)
{
    const struct txn *t = &m->txn;

    answer->flag = true;
    for (unsigned i = 0; i < t->ncompares; i++)
        answer->flag &= meta_revision(s, &t->compare[i]) == t->compare[i].revision;
    if (t->put == KEY_COORDINATOR && !t->erase && !meta_lease_lives(s, t->coordinator.lease)) {
        answer->flag = false;
        answer->code = CAIRN_E_NOT_FOUND;
    }
    if (answer->flag)
        meta_put(s, m);
    answer->seq = s->meta.now.revision;
    SAY(s, ACTOR_META, "transaction of %u %s", m->from, answer->flag ? "applied" : "refused");
}

static void meta_lease(struct sim *s, unsigned i, uint32_t ms)
{
    struct msg m = {.type = T_LEASE_EXPIRES, .slot = (uint16_t)i, .token = s->meta.lease[i].id};

    s->meta.lease[i].until = s->now + (uint64_t)ms * MS;
    net_timer(s, ACTOR_META, &m, (uint64_t)ms * MS);
}

static void meta_grant(struct sim *s, struct msg *answer)
{
    unsigned i = 0;

    while (i < 7 && s->meta.lease[i].id)
        i++;
    if (s->meta.lease[i].id)
        meta_expire(s, i);
    s->meta.lease[i].id = ++s->meta.nleases;
    answer->seq = s->meta.lease[i].id;
    meta_lease(s, i, LEASE_MS);
}

static void meta_keep(struct sim *s, const struct msg *m, struct msg *answer)
{
    answer->code = CAIRN_E_NOT_FOUND;
    for (unsigned i = 0; i < 8; i++)
        if (s->meta.lease[i].id == m->seq && m->seq && m->type == M_KEEP) {
            s->meta.lease[i].until = s->now + (uint64_t)LEASE_MS * MS;
            answer->code = 0;
        } else if (s->meta.lease[i].id == m->seq && m->seq) {
            meta_expire(s, i);
            answer->code = 0;
        }
}

void meta_expire(struct sim *s, unsigned i)
{
    struct view *v = &s->meta.now;
    uint32_t id = s->meta.lease[i].id;

    s->meta.lease[i].id = 0;
    if (!v->coordinator.revision || v->coordinator.lease != id || !id)
        return;
    SAY(s, ACTOR_META, "lease %u expires", id);
    v->revision++;
    v->coordinator = (struct meta_coordinator){0};
}

static void meta_expires(struct sim *s, const struct msg *m)
{
    uint64_t until = s->meta.lease[m->slot].until;

    if (s->meta.lease[m->slot].id != m->token)
        return;
    if (until <= s->now)
        meta_expire(s, m->slot);
    else
        net_timer(s, ACTOR_META, m, until - s->now);
}

void meta_handle(struct sim *s, const struct msg *m)
{
    struct msg answer = {.type = M_ANSWER, .from = ACTOR_META, .to = m->from, .to_epoch = m->from_epoch};

    answer.slot = m->slot;
    answer.token = m->token;
    switch (m->type) {
    case M_LIST:
        answer.view = (uint8_t)view_take(s);
        break;
    case M_TXN:
        meta_txn(s, m, &answer);
        break;
    case M_GRANT:
        meta_grant(s, &answer);
        break;
    case M_KEEP:
    case M_REVOKE:
        meta_keep(s, m, &answer);
        break;
    case T_LEASE_EXPIRES:
        meta_expires(s, m);
        return;
    default:
        return;
    }
    if (!s->full_up)
        net_send(s, &answer);
}
