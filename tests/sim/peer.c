/* SPDX-License-Identifier: Apache-2.0 */
/* A storage peer and its disk. What is written and not yet synced is lost, torn or there after a crash, as chance has
 * it; after a failed fdatasync it is nowhere and the stream is given up. A write goes to the start of the daemon that
 * granted its slot, or nowhere. */
#include "tests/sim/sim.h"

#include <string.h>

static void peer_reply(struct sim *s, const struct msg *m, int type, const struct msg *more)
{
    struct msg r = *more;

    r.type = (uint8_t)type;
    r.from = m->to;
    r.to = m->from;
    r.to_epoch = m->from_epoch;
    r.token = m->token;
    net_send(s, &r);
}

void peer_start(struct sim *s, unsigned actor)
{
    struct peer *p = sim_peer(s, actor);

    p->first_stream = p->nstreams; /* of an older start nothing is appended to */
    p->token = 0;
}

/* What the page cache held and the disk did not. */
static void peer_lose_unsynced(struct sim *s, struct peer *p, unsigned stream, bool all)
{
    for (unsigned i = 0; i < p->nfrags; i++) {
        struct frag *f = &p->frag[i];
        if (f->state != FRAG_WRITTEN || (!all && f->stream != stream))
            continue;
        uint32_t luck = rng_below(&s->rng, 3);
        f->state = luck == 0 ? FRAG_LOST : luck == 1 ? FRAG_TORN : FRAG_WRITTEN;
        if (all && f->state == FRAG_WRITTEN)
            f->state = FRAG_SYNCED; /* it had reached the disk; nobody was told */
        s->dirty |= DIRTY_DISK;
    }
}

void peer_crash(struct sim *s, unsigned actor)
{
    struct peer *p = sim_peer(s, actor);

    peer_lose_unsynced(s, p, 0, true);
    p->fence = 0;
    p->ended = p->dead = 0;
    memset(p->session, 0, sizeof p->session);
}

/* ---- writing --------------------------------------------------------------------------------- */

static unsigned peer_stream(struct sim *s, struct peer *p, const struct msg *m)
{
    unsigned i = p->first_stream;

    while (i < p->nstreams && (p->stream[i].given_up || p->stream[i].ckpt != m->ckpt || p->stream[i].node != m->from ||
                               p->stream[i].node_epoch != m->from_epoch))
        i++;
    if (i == SIM_STREAMS) {
        s->full_up = true;
        return 0;
    }
    if (i == p->nstreams)
        p->stream[p->nstreams++] =
            (struct stream){.ckpt = m->ckpt, .node = m->from, .node_epoch = m->from_epoch, .peer_epoch = m->to_epoch};
    return i;
}

static bool frag_is(const struct frag *f, const struct msg *m)
{
    return f->ckpt == m->ckpt && f->kind == m->kind && f->rank == m->rank && f->chunk == m->chunk &&
           f->attempt == m->attempt && f->index == m->index;
}

/* The place of a fragment whose message came twice, or NO_SLOT. */
static unsigned peer_find(const struct peer *p, const struct msg *m, unsigned stream)
{
    for (unsigned i = p->nfrags; i-- > 0;)
        if (p->frag[i].stream == stream && p->frag[i].state != FRAG_FREE && p->frag[i].content == m->content &&
            frag_is(&p->frag[i], m))
            return i;
    return NO_SLOT;
}

/* A later fragment of the same name is what a reader gets from now on. */
static void peer_hide(struct sim *s, struct peer *p, unsigned later)
{
    const struct frag *l = &p->frag[later];
    struct msg name = {.ckpt = l->ckpt, .kind = l->kind, .rank = l->rank, .chunk = l->chunk};

    name.attempt = l->attempt;
    name.index = l->index;
    for (unsigned i = 0; i < later; i++)
        if (frag_is(&p->frag[i], &name) && p->frag[i].content != l->content) {
            p->frag[i].hidden = true;
            s->dirty |= DIRTY_DISK;
        }
}

static bool peer_refuses(struct sim *s, struct peer *p, const struct msg *m)
{
    if (m->incarnation > p->fence)
        p->fence = m->incarnation;
    return s->ckpt[m->ckpt].incarnation < p->fence || (p->dead >> m->ckpt & 1) || s->now < p->full_until ||
           p->nfrags == SIM_DISK;
}

static void peer_put(struct sim *s, const struct msg *m)
{
    struct peer *p = sim_peer(s, m->to);
    struct msg w = *m;

    if (m->token != p->session[m->from])
        return; /* a link that its writer gave up: its key is closed */
    if (peer_refuses(s, p, m)) {
        peer_reply(s, m, S_REFUSED, m);
        return;
    }
    w.type = T_DISK_WRITE;
    w.slot = m->from; /* from is the timer's */
    w.state = (uint8_t)(m->from_epoch & 0xff);
    w.seq = m->from_epoch;
    net_timer(s, m->to, &w, rng_range(&s->rng, 50, 800));
}

static void peer_written(struct sim *s, const struct msg *m)
{
    struct peer *p = sim_peer(s, m->to);
    struct msg from = *m;

    from.from = (uint8_t)m->slot;
    from.from_epoch = (uint16_t)m->seq;
    unsigned stream = peer_stream(s, p, &from);
    if (s->full_up)
        return;
    if (p->fail_writes > 0 || p->nfrags == SIM_DISK) {
        p->fail_writes -= p->fail_writes > 0;
        p->stream[stream].given_up = true;
        peer_reply(s, &from, S_REFUSED, &from);
        return;
    }
    unsigned at = peer_find(p, &from, stream);
    if (at == NO_SLOT) {
        at = p->nfrags++;
        p->frag[at] = (struct frag){.kind = m->kind,
                                    .ckpt = m->ckpt,
                                    .rank = m->rank,
                                    .chunk = m->chunk,
                                    .attempt = m->attempt,
                                    .index = m->index,
                                    .state = FRAG_WRITTEN,
                                    .stream = (uint16_t)stream,
                                    .seq = ++p->stream[stream].appended,
                                    .content = m->content};
        peer_hide(s, p, at);
    }
    from.slot = (uint16_t)at;
    from.stream = (uint16_t)stream;
    from.seq = p->frag[at].seq;
    peer_reply(s, &from, S_STORED, &from);
#ifdef CAIRN_BUG_ACK_BEFORE_SYNC
    from.seq = p->stream[stream].appended;
    peer_reply(s, &from, S_SYNCED, &from);
#endif
}

/* ---- syncing --------------------------------------------------------------------------------- */

static void peer_sync(struct sim *s, const struct msg *m)
{
    struct peer *p = sim_peer(s, m->to);
    struct msg w = *m;

    if (m->stream < p->first_stream || m->stream >= p->nstreams || p->stream[m->stream].given_up) {
        peer_reply(s, m, S_SYNC_FAILED, m);
        return;
    }
    w.type = T_DISK_SYNC;
    w.slot = m->from;
    w.incarnation = m->from_epoch;
    w.seq = p->stream[m->stream].appended; /* what comes later is not covered */
    net_timer(s, m->to, &w, rng_range(&s->rng, 200, 4000));
}

static bool peer_sync_fails(struct sim *s, struct peer *p, unsigned stream)
{
    if (p->fail_syncs == 0)
        return false;
    p->fail_syncs--;
    peer_lose_unsynced(s, p, stream, false);
#ifdef CAIRN_BUG_SYNC_RETRIED
    return false; /* tried again, and the kernel says yes: it has forgotten the pages */
#endif
    p->stream[stream].given_up = true;
    return true;
}

static void peer_synced(struct sim *s, const struct msg *m)
{
    struct peer *p = sim_peer(s, m->to);
    struct msg from = *m;

    from.from = (uint8_t)m->slot;
    from.from_epoch = (uint16_t)m->incarnation;
    if (p->stream[m->stream].given_up || peer_sync_fails(s, p, m->stream)) {
        peer_reply(s, &from, S_SYNC_FAILED, &from);
        return;
    }
    for (unsigned i = 0; i < p->nfrags; i++)
        if (p->frag[i].state == FRAG_WRITTEN && p->frag[i].stream == m->stream && p->frag[i].seq <= m->seq)
            p->frag[i].state = FRAG_SYNCED;
    peer_reply(s, &from, S_SYNCED, &from);
}

/* ---- reading, removing ----------------------------------------------------------------------- */

static void peer_read(struct sim *s, const struct msg *m)
{
    struct peer *p = sim_peer(s, m->to);
    struct msg r = *m;
    unsigned found = NO_SLOT;

    for (unsigned i = p->nfrags; i-- > 0 && found == NO_SLOT;) { /* the newest of its name */
        const struct frag *f = &p->frag[i];
        bool there = f->state == FRAG_WRITTEN || f->state == FRAG_SYNCED;
#ifdef CAIRN_BUG_CHECKSUM_IGNORED
        there |= f->state == FRAG_ROTTEN || f->state == FRAG_TORN;
#endif
        if (there && frag_is(f, m))
            found = i;
    }
    if (found != NO_SLOT)
        r.content = p->frag[found].content ^ (p->frag[found].state >= FRAG_TORN ? 1 : 0);
    peer_reply(s, m, found == NO_SLOT ? S_MISSING : S_DATA, &r);
}

/* A node said that a checkpoint ended badly: the peer reads the decision itself before it removes anything. */
static void peer_end(struct sim *s, const struct msg *m)
{
    struct peer *p = sim_peer(s, m->to);
    struct msg list = {.type = M_LIST, .from = m->to, .to = ACTOR_META};

    p->ended |= 1ull << m->ckpt;
    if (p->token)
        return;
    list.token = p->token = ++s->tokens;
    net_send(s, &list);
    struct msg late = {.type = T_META_LATE, .token = list.token};
    net_timer(s, m->to, &late, META_MS * MS);
}

static void peer_remove(struct sim *s, struct peer *p, unsigned ckpt)
{
    p->dead |= 1ull << ckpt;
    for (unsigned i = 0; i < p->nfrags; i++)
        if (p->frag[i].ckpt == ckpt && p->frag[i].state != FRAG_FREE) {
            p->frag[i].state = FRAG_FREE;
            s->dirty |= DIRTY_DISK;
        }
}

static void peer_learn(struct sim *s, const struct msg *m)
{
    struct peer *p = sim_peer(s, m->to);
    const struct view *v = m->view ? &s->view[m->view - 1] : NULL;

    if (m->token != p->token)
        return;
    p->token = 0;
    for (unsigned c = 0; v && c < SIM_CKPTS; c++) {
        if (!(p->ended >> c & 1))
            continue;
        int fate = c < v->nckpts ? v->ckpt[c].decision : FATE_NONE;
#ifdef CAIRN_BUG_ABSENT_IS_ABORT
        if (fate == FATE_NONE)
            fate = FATE_ABORT;
#endif
        if (fate == FATE_ABORT || (c < v->nckpts && v->ckpt[c].tombstone))
            peer_remove(s, p, c);
    }
    p->ended = 0; /* what is undecided is kept: an absent key is never a reason to delete */
}

static void peer_hello(struct sim *s, const struct msg *m)
{
    struct peer *p = sim_peer(s, m->to);
    struct msg r = {0};

    if (m->token < p->session[m->from])
        return; /* an older greeting, late */
    p->session[m->from] = m->token;
    peer_reply(s, m, S_WELCOME, &r);
}

void peer_handle(struct sim *s, const struct msg *m)
{
    static void (*const handlers[MSG_TYPES])(struct sim *, const struct msg *) = {
        [S_HELLO] = peer_hello,      [S_PUT] = peer_put,      [S_SYNC] = peer_sync,
        [S_READ] = peer_read,        [S_END] = peer_end,      [T_DISK_WRITE] = peer_written,
        [T_DISK_SYNC] = peer_synced, [M_ANSWER] = peer_learn, [T_META_LATE] = peer_learn,
    };

    if (handlers[m->type])
        handlers[m->type](s, m);
}
