/* SPDX-License-Identifier: Apache-2.0 */
/* A drain: one rank's chunks, when they are prepared their manifest, when that is prepared the shard is durable. What
 * is left of the stripes goes on until they are full. */
#include "tests/sim/sim.h"

#include <string.h>

uint64_t sim_chunk_content(uint64_t content, unsigned chunk)
{
    uint64_t state = content + chunk;

    return rng_mix(&state) & ~1ull; /* an odd one is damaged */
}

void drain_start(struct sim *s, unsigned actor, unsigned save)
{
    struct save *v = &sim_node(s, actor)->save[save];

    if (v->draining)
        return;
    const struct noted *base = base_of(s, actor, v);

    if (base)
        SAY(s, actor, "rank %u of %u.%u is stored against step %u", v->rank, s->ckpt[v->ckpt].step,
            s->ckpt[v->ckpt].incarnation, s->ckpt[base->ckpt].step);
    v->draining = true;
    v->depth = base ? base->depth + 1u : 0;
    v->base = base ? base->manifest : 0;
    for (unsigned c = 0; c < s->config.chunks; c++) {
        struct stripe st = {.kind = KIND_DATA,
                            .ckpt = v->ckpt,
                            .rank = v->rank,
                            .chunk = (uint8_t)c,
                            .owner = (uint8_t)save,
                            .delta = base && (c == 0 || (v->content & 2)), /* not every chunk is worth it */
                            .content = sim_chunk_content(v->content, c)};
        if (st.delta)
            st.content ^= sim_chunk_content(base->content, c);
        if (!store_add(s, actor, &st))
            return;
    }
    store_pump(s, actor);
}

static void place_of(const struct stripe *st, struct place *ret)
{
    *ret = (struct place){.kind = st->kind,
                          .ckpt = st->ckpt,
                          .rank = st->rank,
                          .chunk = st->chunk,
                          .attempt = st->attempt,
                          .k = st->k,
                          .m = st->m,
                          .codec = st->codec,
                          .delta = st->delta,
                          .content = st->content ^ codec_mark(st->codec)};
    for (unsigned f = 0; f < SIM_FRAGS; f++) {
        bool durable = f < (unsigned)st->k + st->m && st->piece[f].state == PIECE_DURABLE;
        ret->peer[f] = st->piece[f].peer;
        ret->slot[f] = durable ? st->piece[f].slot : NO_SLOT;
    }
    ret->full = st->k > 0;
    for (unsigned f = 0; f < (unsigned)st->k + st->m; f++)
        ret->full &= ret->slot[f] != NO_SLOT;
}

/* All chunks are prepared: the manifest fixes where they lie. */
static void drain_manifest(struct sim *s, unsigned actor, unsigned save)
{
    struct node *n = sim_node(s, actor);
    struct save *v = &n->save[save];

    if (s->nshards == SIM_MANIFESTS) {
        s->full_up = true;
        return;
    }
    struct shard *sh = &s->shard[s->nshards];
    *sh = (struct shard){
        .ckpt = v->ckpt, .rank = v->rank, .nchunks = s->config.chunks, .depth = v->depth, .base = v->base};
    for (unsigned i = 0; i < n->nstripes; i++) {
        struct stripe *st = &n->stripe[i];
        if (!st->used || st->kind != KIND_DATA || st->ckpt != v->ckpt || st->rank != v->rank)
            continue;
        place_of(st, &sh->chunk[st->chunk]);
        st->place = &sh->chunk[st->chunk];
        store_settle(s, actor, st);
    }
    v->manifest = (uint16_t)s->nshards++;
    struct stripe st = {.kind = KIND_MANIFEST,
                        .ckpt = v->ckpt,
                        .rank = v->rank,
                        .owner = (uint8_t)save,
                        .content = sim_chunk_content(v->manifest, 100)};
    store_add(s, actor, &st);
    store_pump(s, actor);
}

static bool drain_all_prepared(const struct sim *s, const struct node *n, const struct save *v)
{
    unsigned prepared = 0;

    for (unsigned i = 0; i < n->nstripes; i++) {
        const struct stripe *st = &n->stripe[i];
        prepared += st->used && st->kind == KIND_DATA && st->ckpt == v->ckpt && st->rank == v->rank && st->prepared;
    }
    return prepared == s->config.chunks;
}

static void root_prepared(struct sim *s, unsigned actor, struct stripe *st)
{
    struct run *r = &sim_node(s, actor)->run[st->owner];
    struct root_image *root = &s->root[r->root];

    place_of(st, &root->self);
    st->place = &root->self;
    run_root_done(s, actor, st->owner, true);
}

void drain_prepared(struct sim *s, unsigned actor, struct stripe *st)
{
    struct node *n = sim_node(s, actor);

    if (st->kind == KIND_ROOT) {
        root_prepared(s, actor, st);
        return;
    }
    struct save *v = &n->save[st->owner];
    if (st->kind == KIND_DATA && drain_all_prepared(s, n, v)) {
        drain_manifest(s, actor, st->owner);
    } else if (st->kind == KIND_MANIFEST) {
        struct shard *sh = &s->shard[v->manifest];
        place_of(st, &sh->self);
        st->place = &sh->self;
        v->state = SAVE_DURABLE;
        struct noted note = {true, v->ckpt, v->depth, v->manifest, v->content};
        base_note(s, actor, v->rank, &note);
        save_changed(s, actor, st->owner);
    }
}
