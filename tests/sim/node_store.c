/* SPDX-License-Identifier: Apache-2.0 */
/* What a node does to make stripes durable: links to the peers, credits and buffers, spares, a new attempt where no
 * spare lives. A link fails as a whole: what was not durable on it is sent to another peer. */
#include "tests/sim/sim.h"

#include "core/model/hash.h"

#include <stdio.h>
#include <string.h>

unsigned links_up(const struct node *n)
{
    unsigned up = 0;

    for (unsigned p = 0; p < SIM_PEERS; p++)
        up += n->link[p].state == LINK_UP;
    return up;
}

/* ---- links ----------------------------------------------------------------------------------- */

static void link_greet(struct sim *s, unsigned actor, unsigned peer)
{
    struct link *l = &sim_node(s, actor)->link[peer];
    struct msg m = {
        .type = S_HELLO, .from = (uint8_t)actor, .to = (uint8_t)(ACTOR_PEER + peer), .slot = (uint16_t)peer};

    l->state = LINK_GREETING;
    l->token = net_timer_ms(s, actor, T_LINK, peer, l->backoff_ms);
    m.token = l->token;
    l->backoff_ms = l->backoff_ms * 2 > 1000 ? 1000 : l->backoff_ms * 2;
    net_send(s, &m);
}

void links_start(struct sim *s, unsigned actor)
{
    for (unsigned p = 0; p < s->config.peers; p++) {
        sim_node(s, actor)->link[p] = (struct link){.backoff_ms = PEER_MS / 2};
        link_greet(s, actor, p);
    }
}

static bool link_busy(const struct link *l)
{
    return l->credits > 0 || l->syncing;
}

static void link_watch(struct sim *s, unsigned actor, unsigned peer)
{
    struct link *l = &sim_node(s, actor)->link[peer];

    if (!link_busy(l) || l->watched)
        return;
    l->watched = true;
    uint64_t until = l->busy_since + PEER_MS * MS;
    struct msg m = {.type = T_LINK_LATE, .slot = (uint16_t)peer};
    net_timer(s, actor, &m, until > s->now ? until - s->now : 1);
}

static void piece_lost(struct sim *s, unsigned actor, struct stripe *st, struct piece *pc);

static void piece_unsend(struct node *n, struct piece *pc)
{
    if (pc->state != PIECE_SENT)
        return;
#ifndef CAIRN_BUG_CREDIT_LEAK
    n->buffers--;
#endif
    n->link[pc->peer].credits--;
}

static void link_fail(struct sim *s, unsigned actor, unsigned peer, const char *why)
{
    struct node *n = sim_node(s, actor);
    struct link *l = &n->link[peer];

    if (l->state != LINK_UP)
        return;
    SAY(s, actor, "link to peer%u fails: %s", peer, why);
    l->state = LINK_DOWN;
    l->syncing = 0;
    l->token = net_timer_ms(s, actor, T_LINK, peer, l->backoff_ms);
    for (unsigned i = 0; i < n->nstripes; i++) {
        struct stripe *st = &n->stripe[i];
        for (unsigned f = 0; st->used && f < (unsigned)st->k + st->m; f++) {
            struct piece *pc = &st->piece[f];
            if (pc->peer != peer || (pc->state != PIECE_SENT && pc->state != PIECE_STORED && pc->state != PIECE_TODO))
                continue;
            piece_unsend(n, pc);
            piece_lost(s, actor, st, pc);
        }
    }
    store_pump(s, actor);
}

static void link_welcome(struct sim *s, const struct msg *m)
{
    struct node *n = sim_node(s, m->to);
    unsigned peer = m->from - ACTOR_PEER;
    struct link *l = &n->link[peer];

    if (l->state != LINK_GREETING || m->token != l->token)
        return;
    l->state = LINK_UP;
    l->session = m->token;
    l->peer_epoch = m->from_epoch;
    l->credits = 0;
    l->backoff_ms = PEER_MS / 2;
    l->busy_since = s->now;
    store_pump(s, m->to);
}

static void link_timer(struct sim *s, const struct msg *m)
{
    struct link *l = &sim_node(s, m->to)->link[m->slot];

    if (m->token == l->token && l->state != LINK_UP && !s->launcher.finished)
        link_greet(s, m->to, m->slot);
}

static void link_late(struct sim *s, const struct msg *m)
{
    struct link *l = &sim_node(s, m->to)->link[m->slot];

    l->watched = false;
    if (l->state == LINK_UP && link_busy(l) && s->now >= l->busy_since + PEER_MS * MS)
        link_fail(s, m->to, m->slot, "no answer");
    else
        link_watch(s, m->to, m->slot);
}

/* ---- stripes --------------------------------------------------------------------------------- */

static void stripe_end(struct node *n, struct stripe *st)
{
    for (unsigned f = 0; f < (unsigned)st->k + st->m; f++)
        piece_unsend(n, &st->piece[f]);
    st->used = false;
    while (n->nstripes > 0 && !n->stripe[n->nstripes - 1].used)
        n->nstripes--;
}

/* Geometry and placement among the peers that live, by production's rules. */
static void stripe_cut(struct sim *s, unsigned actor, struct stripe *st)
{
    static const char *const ids[SIM_PEERS] = {"p0", "p1", "p2", "p3", "p4", "p5"};
    struct node *n = sim_node(s, actor);
    struct cairn_candidate c[SIM_PEERS];
    unsigned order[SIM_PEERS], live[SIM_PEERS], nlive = 0;
    uint32_t identity[5] = {st->ckpt, st->kind, st->rank, st->chunk, actor};

    for (unsigned p = 0; p < s->config.peers; p++)
        if (n->link[p].state == LINK_UP) {
            c[nlive] = (struct cairn_candidate){.id = ids[p], .domain = "", .weight = 1};
            live[nlive++] = p;
        }
    struct cairn_geometry g = cairn_geometry_for(nlive);
    st->k = nlive && st->kind != KIND_DATA ? 1 : g.k;
    st->m = g.m;
    st->stuck = nlive == 0;
    st->norder = (uint8_t)nlive;
    st->next = (uint8_t)(st->k + st->m);
    if (nlive == 0)
        return;
    cairn_place(c, nlive, cairn_hash64(identity, sizeof identity, 0), order);
    for (unsigned i = 0; i < nlive; i++)
        st->order[i] = (uint8_t)live[order[i]];
    st->codec = (uint8_t)codec_choose(s, actor, st);
    for (unsigned f = 0; f < (unsigned)st->k + st->m; f++)
        st->piece[f] = (struct piece){.state = PIECE_TODO, .peer = st->order[f], .slot = NO_SLOT};
}

struct stripe *store_add(struct sim *s, unsigned actor, const struct stripe *like)
{
    struct node *n = sim_node(s, actor);
    unsigned i = 0;

    while (i < n->nstripes && n->stripe[i].used)
        i++;
    if (i == SIM_STRIPES) {
        s->full_up = true;
        return NULL;
    }
    if (i == n->nstripes)
        n->nstripes++;
    n->stripe[i] = *like;
    n->stripe[i].used = true;
#ifndef CAIRN_BUG_ATTEMPTS_MIXED
    n->stripe[i].attempt = (uint8_t)(s->actor[actor].epoch << 4); /* a dead daemon's fragments are not this one's */
#endif
    stripe_cut(s, actor, &n->stripe[i]);
    return &n->stripe[i];
}

void store_drop(struct sim *s, unsigned actor, unsigned ckpt, unsigned rank)
{
    struct node *n = sim_node(s, actor);

    for (unsigned i = 0; i < n->nstripes; i++) {
        struct stripe *st = &n->stripe[i];
        unsigned of = st->kind == KIND_ROOT ? STORE_ROOT : st->rank;
        if (st->used && st->ckpt == ckpt && of == rank)
            stripe_end(n, st);
    }
}

void store_end_ckpt(struct sim *s, unsigned actor, unsigned ckpt)
{
    for (unsigned p = 0; p < s->config.peers; p++) {
        struct msg m = {.type = S_END, .from = (uint8_t)actor, .to = (uint8_t)(ACTOR_PEER + p), .ckpt = (uint8_t)ckpt};
        net_send(s, &m);
    }
}

/* The next peer in the stripe's order that lives; where none does, the stripe is cut again for those that live. */
static void piece_lost(struct sim *s, unsigned actor, struct stripe *st, struct piece *pc)
{
    struct node *n = sim_node(s, actor);

    while (!st->prepared && st->next < st->norder) {
        unsigned peer = st->order[st->next++];
        if (n->link[peer].state != LINK_UP)
            continue;
        *pc = (struct piece){.state = PIECE_TODO, .peer = (uint8_t)peer, .slot = NO_SLOT};
        return;
    }
    pc->state = PIECE_GIVEN_UP;
    st->stuck |= !st->prepared;
}

static void stripe_cut_again(struct sim *s, unsigned actor, struct stripe *st)
{
    struct node *n = sim_node(s, actor);

    for (unsigned f = 0; f < (unsigned)st->k + st->m; f++) {
        piece_unsend(n, &st->piece[f]);
        st->piece[f].state = PIECE_GIVEN_UP;
    }
#ifndef CAIRN_BUG_ATTEMPTS_MIXED
    st->attempt++;
#endif
    stripe_cut(s, actor, st);
}

static void piece_send(struct sim *s, unsigned actor, struct stripe *st, unsigned f)
{
    struct node *n = sim_node(s, actor);
    struct piece *pc = &st->piece[f];
    struct link *l = &n->link[pc->peer];
    struct msg m = {.type = S_PUT, .from = (uint8_t)actor, .to = (uint8_t)(ACTOR_PEER + pc->peer)};

    if (n->buffers >= BUFFERS || l->credits >= CREDITS)
        return;
    if (!link_busy(l))
        l->busy_since = s->now;
    n->buffers++;
    l->credits++;
    pc->state = PIECE_SENT;
    m.to_epoch = l->peer_epoch;
    m.token = l->session;
    m.kind = st->kind;
    m.ckpt = st->ckpt;
    m.rank = st->rank;
    m.chunk = st->chunk;
    m.attempt = st->attempt;
    m.index = (uint8_t)f;
    m.content = st->content ^ codec_mark(st->codec);
#ifdef CAIRN_BUG_ENCODED_OTHERWISE
    for (unsigned i = 0; i < (unsigned)st->k + st->m; i++) /* encoded again: others are stored already */
        if (st->piece[i].state == PIECE_STORED || st->piece[i].state == PIECE_DURABLE)
            m.content = st->content ^ codec_mark(codec_choose(s, actor, st));
#endif
    m.stripe = (uint16_t)(st - n->stripe);
    m.incarnation = n->pin.revision ? n->pin.incarnation : 0; /* peers refuse what is older than the pin */
    net_send(s, &m);
    link_watch(s, actor, pc->peer);
}

static void link_sync(struct sim *s, unsigned actor, unsigned peer)
{
    struct node *n = sim_node(s, actor);
    struct link *l = &n->link[peer];

    if (l->state != LINK_UP || l->syncing)
        return;
    for (unsigned i = 0; i < n->nstripes && !l->syncing; i++) {
        struct stripe *st = &n->stripe[i];
        for (unsigned f = 0; st->used && f < (unsigned)st->k + st->m; f++) {
            if (st->piece[f].state != PIECE_STORED || st->piece[f].peer != peer)
                continue;
            if (!link_busy(l))
                l->busy_since = s->now;
            l->syncing = ++s->tokens;
            l->sync_stream = st->piece[f].stream;
            break;
        }
    }
    if (!l->syncing)
        return;
    struct msg m = {.type = S_SYNC, .from = (uint8_t)actor, .to = (uint8_t)(ACTOR_PEER + peer)};
    m.to_epoch = l->peer_epoch;
    m.stream = l->sync_stream;
    m.token = l->syncing;
    net_send(s, &m);
    link_watch(s, actor, peer);
}

void store_pump(struct sim *s, unsigned actor)
{
    struct node *n = sim_node(s, actor);

    for (unsigned i = 0; i < n->nstripes; i++) {
        struct stripe *st = &n->stripe[i];
        if (!st->used)
            continue;
        if (st->stuck && links_up(n) > 0)
            stripe_cut_again(s, actor, st);
        for (unsigned f = 0; f < (unsigned)st->k + st->m; f++) {
            if (st->piece[f].state != PIECE_TODO)
                continue;
            if (n->link[st->piece[f].peer].state == LINK_UP)
                piece_send(s, actor, st, f);
            else
                piece_lost(s, actor, st, &st->piece[f]);
        }
        if (st->place)
            store_settle(s, actor, st);
    }
}

/* ---- answers --------------------------------------------------------------------------------- */

/* A stripe whose place is written down ends when nothing of it is open. */
void store_settle(struct sim *s, unsigned actor, struct stripe *st)
{
    for (unsigned f = 0; f < (unsigned)st->k + st->m; f++)
        if (st->piece[f].state < PIECE_DURABLE)
            return;
    stripe_end(sim_node(s, actor), st);
}

static void stripe_progress(struct sim *s, unsigned actor, struct stripe *st)
{
    unsigned durable = 0, n = (unsigned)st->k + st->m;

    for (unsigned f = 0; f < n; f++)
        durable += st->piece[f].state == PIECE_DURABLE;
    unsigned need = st->k + cairn_margin_for(st->m, 0);
    if (!st->prepared && durable >= need) {
        st->prepared = true;
        drain_prepared(s, actor, st);
    }
    if (durable == n && st->place)
        st->place->full = true;
    if (st->used && st->place)
        store_settle(s, actor, st);
}

static bool stored_here(const struct stripe *st, const struct msg *m)
{
    return st->used && st->kind == m->kind && st->ckpt == m->ckpt && st->rank == m->rank && st->chunk == m->chunk &&
           st->attempt == m->attempt && m->index < st->k + st->m && st->piece[m->index].peer == m->from - ACTOR_PEER &&
           st->piece[m->index].state == PIECE_SENT;
}

static void store_stored(struct sim *s, const struct msg *m)
{
    struct node *n = sim_node(s, m->to);
    struct link *l = &n->link[m->from - ACTOR_PEER];
    struct stripe *st = &n->stripe[m->stripe];

    if (l->state != LINK_UP || l->peer_epoch != m->from_epoch)
        return;
    l->busy_since = s->now;
    if (stored_here(st, m)) {
        struct piece *pc = &st->piece[m->index];
        piece_unsend(n, pc);
        pc->state = PIECE_STORED;
        pc->slot = m->slot;
        pc->stream = m->stream;
        pc->seq = m->seq;
        link_sync(s, m->to, pc->peer);
    }
    store_pump(s, m->to);
}

static void store_synced(struct sim *s, const struct msg *m)
{
    struct node *n = sim_node(s, m->to);
    unsigned peer = m->from - ACTOR_PEER;
    struct link *l = &n->link[peer];

    if (l->state != LINK_UP || l->peer_epoch != m->from_epoch)
        return;
    l->busy_since = s->now;
    if (m->token == l->syncing)
        l->syncing = 0;
    for (unsigned i = 0; i < n->nstripes; i++) {
        struct stripe *st = &n->stripe[i];
        bool any = false;
        for (unsigned f = 0; st->used && f < (unsigned)st->k + st->m; f++) {
            struct piece *pc = &st->piece[f];
            if (pc->state != PIECE_STORED || pc->peer != peer || pc->stream != m->stream || pc->seq > m->seq)
                continue;
            pc->state = PIECE_DURABLE;
            any = true;
            check_durable(s, st, f);
            if (st->place)
                st->place->slot[f] = pc->slot;
        }
        if (any)
            stripe_progress(s, m->to, st);
    }
    link_sync(s, m->to, peer);
}

static void store_refused(struct sim *s, const struct msg *m)
{
    struct link *l = &sim_node(s, m->to)->link[m->from - ACTOR_PEER];

    if (l->peer_epoch == m->from_epoch)
        link_fail(s, m->to, m->from - ACTOR_PEER, m->type == S_REFUSED ? "refused" : "its fdatasync failed");
}

void store_handle(struct sim *s, const struct msg *m)
{
    static void (*const handlers[MSG_TYPES])(struct sim *, const struct msg *) = {
        [S_WELCOME] = link_welcome, [S_STORED] = store_stored,       [S_REFUSED] = store_refused,
        [S_SYNCED] = store_synced,  [S_SYNC_FAILED] = store_refused, [T_LINK] = link_timer,
        [T_LINK_LATE] = link_late,
    };

    handlers[m->type](s, m);
}
