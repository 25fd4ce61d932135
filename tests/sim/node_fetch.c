/* SPDX-License-Identifier: Apache-2.0 */
/* Reading a checkpoint: the root that its decision names, the manifests, for a restore the chunks. Of every stripe all
 * fragments are asked for at once and k answers are enough. */
#include "tests/sim/sim.h"

/* Of a delta also its bases, one below the other: as the manifests name them, not as their roots do. */
static const struct shard *fetch_shard(const struct sim *s, const struct fetch *f)
{
    const struct shard *sh = &s->shard[s->root[f->root].shard[f->shard]];

    for (unsigned i = 0; i < f->level; i++)
        sh = &s->shard[sh->base];
    return sh;
}

static const struct place *fetch_place(const struct sim *s, const struct fetch *f)
{
    const struct root_image *root = &s->root[f->root];

    if (!f->rooted)
        return &root->self;
    const struct shard *sh = fetch_shard(s, f);
    return f->piece == 0 ? &sh->self : &sh->chunk[f->piece - 1];
}

static void fetch_ask(struct sim *s, unsigned actor, struct fetch *f)
{
    const struct place *p = fetch_place(s, f);
    struct msg m = {.type = S_READ, .from = (uint8_t)actor, .kind = p->kind, .ckpt = p->ckpt, .rank = p->rank};

    f->good = f->bad = 0;
    f->token = net_timer_ms(s, actor, T_FETCH_LATE, f->proc, PEER_MS);
    m.chunk = p->chunk;
    m.attempt = p->attempt;
    m.proc = f->proc;
    m.flag = f->load;
    m.token = f->token;
    for (unsigned i = 0; i < (unsigned)p->k + p->m; i++) {
        m.to = (uint8_t)(ACTOR_PEER + p->peer[i]);
        m.index = (uint8_t)i;
        net_send(s, &m);
    }
}

void fetch_start(struct sim *s, unsigned actor, struct fetch *f)
{
    f->used = true;
    f->rooted = f->wrong = false;
    f->shard = f->load ? 0 : f->rank;
    f->piece = f->level = 0;
    f->plain = 0;
    fetch_ask(s, actor, f);
}

/* Below what is being read: of a manifest its base's, of a delta the same chunk of its base. */
static bool fetch_down(const struct sim *s, struct fetch *f)
{
    const struct shard *sh = fetch_shard(s, f);
    bool down = f->piece == 0 ? sh->depth > 0 : sh->chunk[f->piece - 1].delta;

    f->level = (uint8_t)(down ? f->level + 1 : 0);
    return down;
}

/* Onwards. A rank of another world size reads every world-th shard. */
static bool fetch_next(const struct sim *s, struct fetch *f)
{
    const struct root_image *root = &s->root[f->root];

    if (!f->rooted) {
        f->rooted = true;
        return f->shard < root->world;
    }
    if (fetch_down(s, f))
        return true;
    f->plain = 0;
    if (!f->load && f->piece < s->shard[root->shard[f->shard]].nchunks) {
        f->piece++;
        return true;
    }
    f->piece = 0;
    f->shard = (uint8_t)(f->shard + (f->load ? 1 : f->world));
    return f->shard < root->world;
}

static void fetch_end(struct sim *s, unsigned actor, struct fetch *f, bool good)
{
    f->used = false;
    f->token = 0;
    if (good)
        check_read(s, f);
    fetch_done(s, actor, f, good);
}

static void fetch_short(struct sim *s, unsigned actor, struct fetch *f)
{
    if (s->now + 150 * MS < f->until)
        f->token = net_timer_ms(s, actor, T_FETCH_PAUSE, f->proc, 150);
    else
        fetch_end(s, actor, f, false);
}

static struct fetch *fetch_find(struct sim *s, const struct msg *m)
{
    struct node *n = sim_node(s, m->to);
    unsigned proc = m->type == T_FETCH_LATE || m->type == T_FETCH_PAUSE ? m->slot : m->proc;

    if (n->fetch[proc].used && n->fetch[proc].token == m->token)
        return &n->fetch[proc];
    if (n->load[proc].used && n->load[proc].token == m->token)
        return &n->load[proc];
    return NULL;
}

static void fetch_bad(struct sim *s, const struct msg *m, struct fetch *f)
{
    f->bad |= (uint8_t)(1u << m->index);
    if (__builtin_popcount(f->bad) > fetch_place(s, f)->m)
        fetch_short(s, m->to, f);
}

/* A chunk is the sum of its deltas and of the base below them. */
static void fetch_decode(const struct sim *s, struct fetch *f, const struct place *p, uint64_t stored)
{
    const struct root_image *root = &s->root[f->root];

    f->plain ^= stored ^ codec_mark(p->codec);
    if (!p->delta)
        f->wrong |= f->plain != sim_chunk_content(s->ckpt[root->ckpt].content[p->rank], p->chunk);
}

static void fetch_got(struct sim *s, const struct msg *m, struct fetch *f)
{
    const struct place *p = fetch_place(s, f);

#ifndef CAIRN_BUG_CHECKSUM_IGNORED
    if (m->content != p->content) { /* the manifest's checksums say what it has to be */
        fetch_bad(s, m, f);
        return;
    }
#endif
    f->wrong |= m->content != p->content;
    f->good |= (uint8_t)(1u << m->index);
    if ((unsigned)__builtin_popcount(f->good) < p->k)
        return;
    if (f->rooted && f->piece > 0)
        fetch_decode(s, f, p, m->content);
    if (fetch_next(s, f))
        fetch_ask(s, m->to, f);
    else
        fetch_end(s, m->to, f, true);
}

void fetch_handle(struct sim *s, const struct msg *m)
{
    struct fetch *f = fetch_find(s, m);

    if (!f)
        return;
    if (m->type == T_FETCH_PAUSE) {
        fetch_ask(s, m->to, f);
    } else if (m->type == T_FETCH_LATE) {
        fetch_short(s, m->to, f);
    } else if (m->type == S_DATA) {
        fetch_got(s, m, f);
    } else {
        fetch_bad(s, m, f);
    }
}
