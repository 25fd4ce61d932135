/* SPDX-License-Identifier: Apache-2.0 */
/* The invariants. Each is one function with its name; a violation ends the schedule. */
#include "tests/sim/sim.h"

#include <string.h>

static const char *frag_state(const struct frag *f)
{
    static const char *const names[] = {"removed", "written", "synced", "lost", "torn", "rotten"};

    return names[f->state];
}

/* ---- what a committed checkpoint survives ---------------------------------------------------- */

struct standing {           /* of a stripe */
    unsigned good, damaged; /* fragments on peers that count; peers hit by what no daemon can prevent */
    uint8_t on[SIM_PEERS];  /* good fragments by peer */
};

static void stripe_standing(const struct sim *s, const struct place *p, struct standing *ret)
{
    *ret = (struct standing){0};
    for (unsigned f = 0; f < (unsigned)p->k + p->m; f++) {
        if (p->slot[f] == NO_SLOT)
            continue;
        const struct frag *g = &s->peer[p->peer[f]].frag[p->slot[f]];
        bool same = g->ckpt == p->ckpt && g->kind == p->kind && g->rank == p->rank && g->chunk == p->chunk &&
                    g->attempt == p->attempt && g->index == f && g->content == p->content;
        if (g->damaged && same) {
            ret->damaged++;
        } else if (g->state == FRAG_SYNCED && same && !g->hidden) {
            ret->good++;
            ret->on[p->peer[f]]++;
        }
    }
}

/* Takes away the peers that hold most of what is left. */
static bool stripe_survives(const struct sim *s, const struct place *p, unsigned losses)
{
    struct standing st;

    stripe_standing(s, p, &st);
    if (st.damaged > losses)
        return true; /* more was lost than was promised */
    for (losses -= st.damaged; losses > 0; losses--) {
        unsigned worst = 0;
        for (unsigned q = 1; q < SIM_PEERS; q++)
            if (st.on[q] > st.on[worst])
                worst = q;
        st.good -= st.on[worst];
        st.on[worst] = 0;
    }
    return p->k > 0 && st.good >= p->k;
}

static void check_stripe(struct sim *s, const struct place *p, const char *what)
{
    unsigned margin = p->m > 1 ? p->m - 1u : p->m;

    if (!stripe_survives(s, p, margin))
        sim_violate(s, "committed_survives_the_margin", "%s of step %u.%u rank %u chunk %u (%u+%u) does not", what,
                    s->ckpt[p->ckpt].step, s->ckpt[p->ckpt].incarnation, p->rank, p->chunk, p->k, p->m);
    else if (p->full && !stripe_survives(s, p, p->m))
        sim_violate(s, "full_survives_m", "%s of step %u.%u rank %u chunk %u (%u+%u) does not", what,
                    s->ckpt[p->ckpt].step, s->ckpt[p->ckpt].incarnation, p->rank, p->chunk, p->k, p->m);
}

/* And what it is stored against, as far as its chunks need it. */
static void check_chunks(struct sim *s, const struct shard *sh)
{
    check_stripe(s, &sh->self, "the manifest");
    for (unsigned c = 0; c < sh->nchunks; c++)
        for (const struct shard *b = sh;; b = &s->shard[b->base]) {
            check_stripe(s, &b->chunk[c], b == sh ? "a chunk" : "a base");
            if (!b->chunk[c].delta)
                break;
        }
    for (const struct shard *b = sh; b->depth > 0; b = &s->shard[b->base])
        check_stripe(s, &s->shard[b->base].self, "a base's manifest");
}

static void check_shard(struct sim *s, const struct root_image *root, unsigned rank)
{
    const struct shard *sh = &s->shard[root->shard[rank]];

    if (sh->ckpt != root->ckpt || sh->rank != rank) {
        sim_violate(s, "every_rank_is_in", "step %u.%u is committed without the shard of rank %u",
                    s->ckpt[root->ckpt].step, s->ckpt[root->ckpt].incarnation, rank);
        return;
    }
    check_chunks(s, sh);
}

static void check_committed(struct sim *s)
{
    const struct view *v = &s->meta.now;

    for (unsigned c = 0; c < v->nckpts && !s->violation; c++) {
        if (v->ckpt[c].decision != FATE_COMMIT || v->ckpt[c].tombstone)
            continue;
        const struct root_image *root = &s->root[v->ckpt[c].root];
        if (v->ckpt[c].root >= s->nroots || root->ckpt != c || root->world != v->ckpt[c].world) {
            sim_violate(s, "the_root_is_this_ones", "step %u.%u", s->ckpt[c].step, s->ckpt[c].incarnation);
            return;
        }
        check_stripe(s, &root->self, "the root");
        for (unsigned r = 0; r < root->world; r++)
            check_shard(s, root, r);
    }
}

static bool stripe_readable(const struct sim *s, const struct place *p)
{
    struct standing st;

    stripe_standing(s, p, &st);
    return p->k > 0 && st.good >= p->k;
}

static bool shard_readable(const struct sim *s, const struct shard *sh)
{
    bool good = stripe_readable(s, &sh->self);

    for (unsigned i = 0; i < sh->nchunks; i++)
        good = good && stripe_readable(s, &sh->chunk[i]);
    return good && (sh->depth == 0 || shard_readable(s, &s->shard[sh->base]));
}

/* Whether faults that no daemon can prevent have taken a committed checkpoint: the job may stand still for it. */
bool check_one_is_lost(const struct sim *s)
{
    const struct view *v = &s->meta.now;
    unsigned committed = 0, readable = 0;

    for (unsigned c = 0; c < v->nckpts; c++) {
        if (v->ckpt[c].decision != FATE_COMMIT || v->ckpt[c].tombstone)
            continue;
        const struct root_image *root = &s->root[v->ckpt[c].root];
        bool good = stripe_readable(s, &root->self);
        for (unsigned r = 0; r < root->world; r++)
            good = good && shard_readable(s, &s->shard[root->shard[r]]);
        committed++;
        readable += good;
    }
    return committed > 0 && readable < committed;
}

/* ---- decisions ------------------------------------------------------------------------------- */

static void check_one_decision(struct sim *s, unsigned ckpt)
{
    if ((s->seen.committed | s->seen.aborted) >> ckpt & 1)
        sim_violate(s, "one_decision", "step %u.%u is decided again", s->ckpt[ckpt].step, s->ckpt[ckpt].incarnation);
}

static void check_pin_fences(struct sim *s, unsigned ckpt, int fate)
{
    if (fate == FATE_COMMIT && s->meta.now.pin.revision && s->ckpt[ckpt].incarnation < s->meta.now.pin.incarnation)
        sim_violate(s, "no_commit_behind_the_pin", "step %u.%u is committed after incarnation %u pinned",
                    s->ckpt[ckpt].step, s->ckpt[ckpt].incarnation, s->meta.now.pin.incarnation);
}

static void check_abort_was_final(struct sim *s, unsigned ckpt, int fate)
{
    if (fate == FATE_COMMIT && s->ckpt[ckpt].abort_told)
        sim_violate(s, "what_was_told_is_true", "step %u.%u is committed after an abort was told", s->ckpt[ckpt].step,
                    s->ckpt[ckpt].incarnation);
}

static void check_was_intended(struct sim *s, unsigned ckpt)
{
    if (!s->meta.now.ckpt[ckpt].intent)
        sim_violate(s, "decisions_have_an_intent", "step %u.%u", s->ckpt[ckpt].step, s->ckpt[ckpt].incarnation);
}

void check_decision(struct sim *s, unsigned ckpt, int fate)
{
    check_one_decision(s, ckpt);
    check_pin_fences(s, ckpt, fate);
    check_abort_was_final(s, ckpt, fate);
    if (fate == FATE_COMMIT)
        check_was_intended(s, ckpt);
    if (fate == FATE_COMMIT)
        s->seen.committed |= 1ull << ckpt;
    else
        s->seen.aborted |= 1ull << ckpt;
}

/* Only who holds the key on a living lease writes intents. */
void check_intent(struct sim *s, unsigned ckpt, unsigned node, unsigned epoch)
{
    const struct meta_coordinator *c = &s->meta.now.coordinator;

    if (!c->revision || c->node != node || c->epoch != epoch)
        sim_violate(s, "only_the_holder_intends", "node%u writes the intent of step %u.%u", node, s->ckpt[ckpt].step,
                    s->ckpt[ckpt].incarnation);
}

void check_told(struct sim *s, unsigned ckpt, int code)
{
    int fate = ckpt < s->meta.now.nckpts ? s->meta.now.ckpt[ckpt].decision : FATE_NONE;

    if (code == 0 && fate != FATE_COMMIT)
        sim_violate(s, "what_was_told_is_true", "step %u.%u: committed was told", s->ckpt[ckpt].step,
                    s->ckpt[ckpt].incarnation);
    if (code < 0 && code != CAIRN_E_UNAVAILABLE && fate == FATE_COMMIT)
        sim_violate(s, "what_was_told_is_true", "step %u.%u: an abort was told of a commit", s->ckpt[ckpt].step,
                    s->ckpt[ckpt].incarnation);
    if (code < 0 && code != CAIRN_E_UNAVAILABLE)
        s->ckpt[ckpt].abort_told = 1;
}

/* ---- the pin --------------------------------------------------------------------------------- */

static void check_pin_moves(struct sim *s, const struct meta_pin *pin)
{
    const struct meta_pin *old = &s->meta.now.pin;

    if (old->revision && (pin->number <= old->number || pin->incarnation < old->incarnation))
        sim_violate(s, "the_pins_number_rises", "from %u of incarnation %u to %u of %u", old->number, old->incarnation,
                    pin->number, pin->incarnation);
}

static void check_pin_decided(struct sim *s, const struct meta_pin *pin)
{
    const struct view *v = &s->meta.now;

    for (unsigned c = 0; c < v->nckpts; c++)
        if (v->ckpt[c].intent && v->ckpt[c].decision == FATE_NONE && s->ckpt[c].incarnation < pin->incarnation)
            sim_violate(s, "the_pin_finds_all_decided", "step %u.%u is not", s->ckpt[c].step, s->ckpt[c].incarnation);
}

/* The newest committed one that could be read. */
static void check_pin_newest(struct sim *s, const struct meta_pin *pin, uint64_t bad)
{
    const struct view *v = &s->meta.now;
    const struct meta_pin *old = &v->pin;
    bool moved = old->revision && old->incarnation == pin->incarnation;
    const struct ckpt *to = &s->ckpt[pin->ckpt];

    if (!pin->none && (v->ckpt[pin->ckpt].decision != FATE_COMMIT || v->ckpt[pin->ckpt].tombstone))
        sim_violate(s, "the_pin_is_committed", "step %u.%u", to->step, to->incarnation);
    for (unsigned c = 0; c < v->nckpts && !moved; c++) {
        const struct ckpt *k = &s->ckpt[c];
        bool newer =
            pin->none || k->incarnation > to->incarnation || (k->incarnation == to->incarnation && k->step > to->step);
        bool there = v->ckpt[c].decision == FATE_COMMIT && !v->ckpt[c].tombstone;
        if (there && newer && k->incarnation < pin->incarnation && !(bad >> c & 1))
            sim_violate(s, "the_pin_is_the_newest", "step %u.%u is newer and was not tried", k->step, k->incarnation);
    }
}

void check_pin(struct sim *s, const struct meta_pin *pin, uint64_t bad)
{
    check_pin_moves(s, pin);
    check_pin_decided(s, pin);
    check_pin_newest(s, pin, bad);
}

/* ---- what is deleted, what others are stored against ------------------------------------------ */

bool ckpt_lives(const struct view *v, unsigned ckpt)
{
    const struct meta_ckpt *c = &v->ckpt[ckpt];

    return c->decision == FATE_COMMIT ? !c->tombstone : c->decision == FATE_NONE && c->intent;
}

unsigned ckpt_base_of(const struct view *v, unsigned ckpt)
{
    return v->ckpt[ckpt].decision == FATE_COMMIT ? v->ckpt[ckpt].base : v->ckpt[ckpt].intent_base;
}

static bool is_newer(const struct ckpt *a, const struct ckpt *b)
{
    return a->incarnation > b->incarnation || (a->incarnation == b->incarnation && a->step > b->step);
}

static void check_newest_stays(struct sim *s, unsigned ckpt)
{
    const struct view *v = &s->meta.now;
    const struct ckpt *k = &s->ckpt[ckpt];

    for (unsigned c = 0; c < v->nckpts; c++)
        if (v->ckpt[c].decision == FATE_COMMIT && !v->ckpt[c].tombstone && is_newer(&s->ckpt[c], k))
            return;
    sim_violate(s, "the_newest_is_kept", "step %u.%u is deleted", k->step, k->incarnation);
}

void check_tombstone(struct sim *s, unsigned ckpt)
{
    const struct view *v = &s->meta.now;
    const struct ckpt *k = &s->ckpt[ckpt];

    check_newest_stays(s, ckpt);
    if (v->pin.revision && !v->pin.none && v->pin.ckpt == ckpt)
        sim_violate(s, "the_pinned_is_kept", "step %u.%u is deleted", k->step, k->incarnation);
    for (unsigned c = 0; c < v->nckpts; c++)
        if (ckpt_lives(v, c) && ckpt_base_of(v, c) == ckpt + 1)
            sim_violate(s, "a_base_is_kept", "step %u.%u is deleted, step %u.%u is stored against it", k->step,
                        k->incarnation, s->ckpt[c].step, s->ckpt[c].incarnation);
}

void check_base(struct sim *s, unsigned ckpt, unsigned base)
{
    const struct view *v = &s->meta.now;
    const struct ckpt *k = &s->ckpt[ckpt], *b = &s->ckpt[base];
    unsigned chain = 1;

    if (v->ckpt[base].decision != FATE_COMMIT || v->ckpt[base].tombstone || !is_newer(k, b))
        sim_violate(s, "a_base_is_there", "step %u.%u is stored against step %u.%u", k->step, k->incarnation, b->step,
                    b->incarnation);
    for (unsigned c = base; ckpt_base_of(v, c); c = ckpt_base_of(v, c) - 1)
        chain++;
    if (chain > s->config.chain)
        sim_violate(s, "chains_end", "step %u.%u has %u bases", k->step, k->incarnation, chain);
}

/* ---- storage --------------------------------------------------------------------------------- */

/* What a node takes for durable is on a disk. */
static void check_ack_is_true(struct sim *s, const struct stripe *st, unsigned index)
{
    const struct piece *pc = &st->piece[index];
    const struct frag *f = &s->peer[pc->peer].frag[pc->slot];

    if (f->state != FRAG_SYNCED && f->state != FRAG_FREE && !f->damaged)
        sim_violate(s, "durable_is_on_disk", "step %u.%u rank %u fragment %u on peer%u is %s", s->ckpt[st->ckpt].step,
                    s->ckpt[st->ckpt].incarnation, st->rank, index, pc->peer, frag_state(f));
}

/* Never two fragments of a stripe on one peer. */
static void check_spread(struct sim *s, const struct stripe *st, unsigned index)
{
    for (unsigned f = 0; f < (unsigned)st->k + st->m; f++)
        if (f != index && st->piece[f].state == PIECE_DURABLE && st->piece[f].peer == st->piece[index].peer)
            sim_violate(s, "one_fragment_a_peer", "step %u.%u rank %u: fragments %u and %u are on peer%u",
                        s->ckpt[st->ckpt].step, s->ckpt[st->ckpt].incarnation, st->rank, f, index,
                        st->piece[index].peer);
}

/* Before the intent a reader could not know what a fragment belongs to. */
static void check_intent_first(struct sim *s, const struct stripe *st)
{
    if (!s->meta.now.ckpt[st->ckpt].intent || st->ckpt >= s->meta.now.nckpts)
        sim_violate(s, "the_intent_comes_first", "step %u.%u has fragments and no intent", s->ckpt[st->ckpt].step,
                    s->ckpt[st->ckpt].incarnation);
}

void check_durable(struct sim *s, const struct stripe *st, unsigned index)
{
    check_ack_is_true(s, st, index);
    check_spread(s, st, index);
    check_intent_first(s, st);
}

/* ---- reading --------------------------------------------------------------------------------- */

static void check_read_is_committed(struct sim *s, const struct fetch *f)
{
    if (f->ckpt >= s->meta.now.nckpts || s->meta.now.ckpt[f->ckpt].decision != FATE_COMMIT)
        sim_violate(s, "nothing_uncommitted_is_read", "step %u.%u", s->ckpt[f->ckpt].step,
                    s->ckpt[f->ckpt].incarnation);
}

static void check_read_is_given(struct sim *s, const struct fetch *f)
{
    if (f->wrong)
        sim_violate(s, "what_is_read_was_given", "step %u.%u", s->ckpt[f->ckpt].step, s->ckpt[f->ckpt].incarnation);
}

void check_read(struct sim *s, const struct fetch *f)
{
    check_read_is_committed(s, f);
    check_read_is_given(s, f);
}

/* ---- incarnations ---------------------------------------------------------------------------- */

static void check_incarnations_rise(struct sim *s)
{
    const struct meta_inc *i = &s->meta.now.inc;
    uint32_t *mine = &s->seen.start_incarnation[i->start_id % SIM_STARTS];

    if (i->incarnation < s->seen.incarnation)
        sim_violate(s, "incarnations_rise", "from %u to %u", s->seen.incarnation, i->incarnation);
    if (*mine && *mine != i->incarnation)
        sim_violate(s, "a_start_has_one_incarnation", "start %u had %u and has %u", i->start_id, *mine, i->incarnation);
    for (unsigned id = 0; id < SIM_STARTS; id++)
        if (id != i->start_id && i->incarnation && s->seen.start_incarnation[id] == i->incarnation)
            sim_violate(s, "an_incarnation_has_one_start", "starts %u and %u share %u", id, i->start_id,
                        i->incarnation);
    s->seen.incarnation = i->incarnation;
    *mine = i->incarnation;
}

/* ---- bounds ---------------------------------------------------------------------------------- */

static void check_credits(struct sim *s)
{
    for (unsigned i = 0; i < s->config.nodes; i++) {
        const struct node *n = &s->node[i];
        bool bad = n->buffers > BUFFERS;
        for (unsigned p = 0; p < s->config.peers; p++)
            bad |= n->link[p].credits > CREDITS;
        if (bad)
            sim_violate(s, "credits_are_bounded", "node%u uses %u buffers", i, n->buffers);
    }
}

/* Whoever holds the job works on every intent that was there when it claimed the key. */
static void check_intents_worked_on(struct sim *s)
{
    const struct view *v = &s->meta.now;
    const struct meta_coordinator *c = &v->coordinator;
    const struct node *n = &s->node[c->node];

    if (!c->revision || s->actor[c->node].epoch != c->epoch || !job_ready(n) || n->phase != 0 ||
        n->coordinator_revision != c->revision)
        return;
    for (unsigned i = 0; i < v->nckpts; i++)
        if (v->ckpt[i].intent && v->ckpt[i].decision == FATE_NONE && s->meta.intent_revision[i] < c->revision &&
            !run_works_on(n, i))
            sim_violate(s, "every_intent_is_worked_on", "node%u coordinates and has forgotten step %u.%u", c->node,
                        s->ckpt[i].step, s->ckpt[i].incarnation);
}

void check_event(struct sim *s)
{
    unsigned dirty = s->dirty;

    s->dirty = 0;
    if (dirty && !s->violation)
        check_committed(s);
    if (dirty & DIRTY_META)
        check_incarnations_rise(s);
    if (s->events % 16 == 0) { /* what lasts need not be looked for at once */
        check_credits(s);
        check_intents_worked_on(s);
    }
}

/* ---- at rest --------------------------------------------------------------------------------- */

static void check_all_returned(struct sim *s)
{
    for (unsigned i = 0; i < s->config.nodes; i++)
        if (!node_quiet(&s->node[i]))
            sim_violate(s, "all_is_returned_at_rest", "node%u holds %u buffers, %u stripes, or requests", i,
                        s->node[i].buffers, s->node[i].nstripes);
    if (s->views_used)
        sim_violate(s, "all_is_returned_at_rest", "answers of the metadata");
}

/* The last start lived on after the last fault: whatever was intended has been decided since. */
static void check_all_decided(struct sim *s)
{
    const struct view *v = &s->meta.now;

    for (unsigned c = 0; c < v->nckpts; c++)
        if (v->ckpt[c].intent && v->ckpt[c].decision == FATE_NONE)
            sim_violate(s, "every_intent_is_decided", "step %u.%u is not", s->ckpt[c].step, s->ckpt[c].incarnation);
}

void check_end(struct sim *s)
{
    if (!s->launcher.finished)
        sim_violate(s, "goes_on_when_all_is_well", "the job stands still");
    check_all_returned(s);
    check_all_decided(s);
}
