/* SPDX-License-Identifier: Apache-2.0 */
/* What is kept and what is stored against what: core/checkpoint/retention.h driven as daemon/node/job_retain.c and
 * job_bury.c do, bases as job_decide.c and job_delta.c choose them, codecs as core/model/choice.h does.
 *
 * The world is harsher than production in one thing: any of the newest checkpoints that this coordinator has read of
 * may become a base, not only its own last one, so that more intents and deletions meet. */
#include "tests/sim/sim.h"

#include <string.h>

/* ---- retention ------------------------------------------------------------------------------- */

static bool is_under_way(const struct node *n, unsigned ckpt)
{
    if (run_works_on(n, ckpt))
        return true;
    for (unsigned i = 0; i < n->nstripes; i++)
        if (n->stripe[i].used && n->stripe[i].ckpt == ckpt)
            return true;
    return false;
}

static void fill_items(const struct sim *s, const struct node *n, struct retention_item *items)
{
    const struct view *v = &n->kept;

    for (unsigned c = 0; c < v->nckpts; c++) {
        bool under_way = is_under_way(n, c), pinned = v->pin.revision && !v->pin.none && v->pin.ckpt == c;
        unsigned base = ckpt_base_of(v, c);
        items[c] = (struct retention_item){.step = s->ckpt[c].step,
                                           .incarnation = s->ckpt[c].incarnation,
                                           .committed = v->ckpt[c].decision == FATE_COMMIT && !v->ckpt[c].tombstone,
                                           .held = pinned || under_way,
                                           .full = !under_way,
                                           .lives = ckpt_lives(v, c),
                                           .has_base = base > 0};
        if (base > 0) {
            items[c].base_step = s->ckpt[base - 1].step;
            items[c].base_incarnation = s->ckpt[base - 1].incarnation;
        }
    }
}

static void retain_choose(struct sim *s, struct node *n)
{
    const struct retention rule = {.last = s->config.last};
    struct retention_item items[SIM_CKPTS];
    bool bury[SIM_CKPTS];

    fill_items(s, n, items);
    retention_choose(&rule, items, n->kept.nckpts, 0, bury);
    n->chosen = 0;
    for (unsigned c = 0; c < n->kept.nckpts; c++)
        n->chosen |= (uint64_t)bury[c] << c;
}

/* The next of those that were chosen, by what was known then: whatever has moved since refuses it. */
static void retain_next(struct sim *s, unsigned actor)
{
    struct node *n = sim_node(s, actor);
    struct msg m = {.type = M_TXN};

    n->retain = RETAIN_IDLE;
    if (!n->chosen || !job_ready(n))
        return;
    unsigned c = (unsigned)__builtin_ctzll(n->chosen);
    n->chosen &= n->chosen - 1;
    n->retain = RETAIN_BURYING;
    n->burying = (uint8_t)c;
    m.txn = (struct txn){.put = KEY_TOMBSTONE,
                         .ckpt = (uint8_t)c,
                         .ncompares = 4,
                         .compare = {{KEY_DECISION, (uint8_t)c, n->kept.ckpt[c].decided},
                                     {KEY_TOMBSTONE, (uint8_t)c, 0},
                                     {KEY_PIN, 0, n->kept.pin.revision},
                                     {KEY_HOLDS, (uint8_t)c, n->kept.ckpt[c].holds}}};
#ifdef CAIRN_BUG_HOLDS_UNCHECKED
    m.txn.ncompares = 3;
#endif
    node_ask(s, actor, ASK_RETAIN, &m);
}

void retain_tick(struct sim *s, unsigned actor)
{
    struct node *n = sim_node(s, actor);
    struct msg m = {.type = M_LIST};

    if (!s->config.last || n->retain != RETAIN_IDLE || n->ask[ASK_RETAIN] || !job_ready(n))
        return;
    n->retain = RETAIN_READING;
    node_ask(s, actor, ASK_RETAIN, &m);
}

void retain_answer(struct sim *s, unsigned actor, const struct msg *m)
{
    struct node *n = sim_node(s, actor);
    int phase = n->retain;

    n->retain = RETAIN_IDLE;
    if (m->code < 0)
        return; /* unknown: the next pass reads what became of it */
    if (phase == RETAIN_READING && m->view) {
        n->kept = s->view[m->view - 1];
        retain_choose(s, n);
    } else if (phase == RETAIN_BURYING && m->flag) {
        store_end_ckpt(s, actor, n->burying); /* peers look for the tombstone themselves */
    }
    retain_next(s, actor);
}

/* ---- bases ----------------------------------------------------------------------------------- */

/* Chance that takes nothing from the schedule's. */
static uint64_t luck(const struct sim *s, uint64_t a, uint64_t b)
{
    uint64_t state = s->seed ^ a << 40 ^ b << 20 ^ s->now;

    return rng_mix(&state) >> 8;
}

static unsigned chain_of(const struct view *v, unsigned ckpt)
{
    unsigned n = 0;

    for (unsigned b = ckpt_base_of(v, ckpt); b; b = ckpt_base_of(v, b - 1))
        n++;
    return n;
}

static bool can_be_base(const struct sim *s, const struct view *v, unsigned ckpt, unsigned of)
{
    const struct ckpt *b = &s->ckpt[ckpt], *k = &s->ckpt[of];
    bool older = b->incarnation < k->incarnation || (b->incarnation == k->incarnation && b->step < k->step);

    return older && v->ckpt[ckpt].decision == FATE_COMMIT && !v->ckpt[ckpt].tombstone &&
           chain_of(v, ckpt) < s->config.chain;
}

unsigned base_choose(const struct sim *s, unsigned actor, unsigned ckpt)
{
    const struct view *v = &s->node[actor - ACTOR_NODE].bases;
    uint64_t skip = luck(s, actor, ckpt) % 4;

    if (!s->config.chain || skip == 3)
        return 0;
    for (unsigned c = v->nckpts; c-- > 0;)
        if (can_be_base(s, v, c, ckpt) && skip-- == 0)
            return c + 1;
    return 0;
}

void base_note(struct sim *s, unsigned actor, unsigned rank, const struct noted *n)
{
    struct noted *of = sim_node(s, actor)->noted[rank];

    memmove(&of[1], &of[0], (SIM_NOTED - 1) * sizeof *of);
    of[0] = *n;
}

const struct noted *base_of(struct sim *s, unsigned actor, const struct save *v)
{
    const struct node *n = sim_node(s, actor);

    for (unsigned i = 0; i < SIM_NOTED && v->named; i++) {
        const struct noted *k = &n->noted[v->rank][i];
        if (k->used && k->ckpt == v->named - 1 && k->depth < s->config.chain && luck(s, v->ckpt, v->rank) % 8)
            return k;
    }
    return NULL;
}

/* ---- codecs ---------------------------------------------------------------------------------- */

unsigned codec_choose(const struct sim *s, unsigned actor, const struct stripe *st)
{
    static const struct cairn_offer offers[] = {
        {1 << 20, 8000000000}, {950000, 500000000}, {740000, 3000000000}, {690000, 800000000}};
    struct cairn_path path = {
        .rate = (1 + luck(s, actor, st->ckpt) % 4096) << 20, .workers = 2, .k = st->k, .m = st->m};

    return st->kind == KIND_DATA && s->config.chain ? cairn_choose(offers, 4, 1 << 20, &path, 4) : 0;
}

uint64_t codec_mark(unsigned codec)
{
    return (uint64_t)codec << 4;
}
