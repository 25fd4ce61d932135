/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/node/drain_chunk.h"

#include "core/base/error.h"
#include "core/model/hash.h"
#include "daemon/node/codecs.h"
#include "daemon/node/pacer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct chunk *chunk_new(struct drain *d, uint32_t first_part, unsigned k, unsigned m, uint32_t attempt)
{
    struct chunk *c = calloc(1, sizeof *c + (k + m) * sizeof c->frag[0]);

    if (!c)
        return NULL;
    c->drain = d;
    c->first_part = first_part;
    c->attempt = attempt;
    c->k = (uint8_t)k;
    c->m = (uint8_t)m;
    list_init(&c->link);
    list_init(&c->unchecked);
    chunk_move(c, CHUNK_TODO);
    return c;
}

void chunk_move(struct chunk *c, enum chunk_state state)
{
    struct drain *d = c->drain;
    struct list *lists[] = {&d->todo, &d->encoding, &d->going, &d->safe, &d->full};

    list_remove(&c->link);
    c->state = state;
    list_push_back(lists[state], &c->link);
}

void chunk_release(struct chunk *c)
{
    if (c->released)
        return;
    c->released = true;
    c->drain->spec.durable(c->drain->spec.arg, c->first_part, c->k);
}

/* ---- counting -------------------------------------------------------------------------------- */

static enum frag_state frag_state(const struct frag *f)
{
    return f->at[0].state > f->at[1].state ? f->at[0].state : f->at[1].state;
}

unsigned chunk_count(const struct chunk *c, enum frag_state state)
{
    unsigned n = 0;

    for (unsigned i = 0; i < chunk_fragments(c); i++)
        n += frag_state(&c->frag[i]) >= state;
    return n;
}

unsigned chunk_enough(const struct chunk *c)
{
    return c->same ? 0 : c->k + cairn_margin_for(c->m, links_config_of(c->drain->links)->margin);
}

void chunk_check_links(struct chunk *c)
{
    for (unsigned i = 0; i < 2 * chunk_fragments(c); i++) {
        struct place *at = &c->frag[i / 2].at[i % 2];
        if (at->state != FRAG_STORED)
            continue;
        if (link_epoch(at->link) != at->epoch)
            at->state = FRAG_NEEDED;
        else if (link_synced_to(at->link, &c->drain->stream) >= at->stored_at)
            at->state = FRAG_DURABLE; /* on its disk: a link that fails later takes nothing back */
    }
}

struct link *chunk_place(const struct chunk *c, unsigned index)
{
    const struct place *at = c->frag[index].at;
    const struct place *best = at[1].state > at[0].state || !at[0].link ? &at[1] : &at[0];

    for (unsigned i = 0; !best->link; i++) /* it was never sent: some other's, a hint must name somebody */
        best = &c->frag[i].at[0];
    return best->link;
}

/* ---- targets --------------------------------------------------------------------------------- */

static bool holds_some(const struct chunk *c, const struct link *l)
{
    for (unsigned i = 0; i < 2 * chunk_fragments(c); i++) {
        const struct place *at = &c->frag[i / 2].at[i % 2];
        if (at->state != FRAG_NEEDED && at->link == l)
            return true;
    }
    return false;
}

/* The peers in the stripe's order that can take a fragment of this chunk now. */
static unsigned targets(struct chunk *c, struct link *ret[CAIRN_GROUP_MAX])
{
    struct drain *d = c->drain;
    struct link *takers[CAIRN_GROUP_MAX];
    struct {
        uint64_t step, incarnation, job;
        uint32_t rank, first_part;
    } identity = {d->spec.step, d->spec.incarnation, cairn_hash64(d->job, strlen(d->job), 0), d->spec.rank,
                  c->first_part};
    unsigned all = links_takers(d->links, cairn_hash64(&identity, sizeof identity, 0), &d->stream, takers), n = 0;

    for (unsigned i = 0; i < all; i++)
        if (!holds_some(c, takers[i]))
            ret[n++] = takers[i];
    return n;
}

bool chunk_has_targets(struct chunk *c)
{
    struct link *t[CAIRN_GROUP_MAX];

    return targets(c, t) >= chunk_fragments(c) - chunk_count(c, FRAG_SENDING);
}

uint64_t chunk_record_bytes(const struct chunk *c)
{
    uint32_t most = 0;
    uint64_t bytes = 0;

    if (c->same)
        return 0;
    for (unsigned i = 0; i < c->k; i++) {
        bytes += fragment_record_len(c->part[i].coded_len);
        if (c->part[i].coded_len > most)
            most = c->part[i].coded_len;
    }
    return bytes + c->m * (uint64_t)fragment_record_len(most);
}

/* ---- sending: one fragment in a buffer, with its header -------------------------------------- */

struct sending {
    struct link_put put;
    struct fragment fragment;
    struct chunk *chunk;
    struct place *place; /* in the chunk */
};

static void send_end(struct sending *s, int code, const struct cairn_error *err)
{
    struct chunk *c = s->chunk;
    struct drain *d = c->drain;
    struct place *at = s->place;

    at->sending = NULL;
    if (code == 0) {
        at->state = FRAG_STORED;
        at->epoch = s->put.epoch;
        at->stored_at = s->put.stored_at;
        d->unsynced_bytes += s->put.record_len;
    } else {
        at->state = FRAG_NEEDED;
        snprintf(d->last_error, sizeof d->last_error, "%.*s", (int)sizeof d->last_error - 1, err->message);
    }
    c->sending--;
    d->busy--;
    links_buffer_give(d->links, s->put.record);
    links_kick(d->links);
    free(s);
}

static void sent(struct link_put *p, int code, const struct cairn_error *err)
{
    send_end(p->arg, code, err);
}

static void fill_header(struct sending *s, const struct encode *e, unsigned index)
{
    struct chunk *c = s->chunk;
    struct drain *d = c->drain;
    struct fragment *f = &s->fragment;

    snprintf(f->key.job, sizeof f->key.job, "%s", d->job);
    snprintf(f->key.node, sizeof f->key.node, "%s", links_config_of(d->links)->node);
    f->key.step = d->spec.step;
    f->key.incarnation = d->spec.incarnation;
    f->key.kind = FRAGMENT_DATA;
    f->key.rank = d->spec.rank;
    f->key.first_part = c->first_part;
    f->key.attempt = c->attempt;
    f->key.index = index;
    f->k = c->k;
    f->m = c->m;
    f->dtype = e->dtype;
    f->payload_len = e->payload_len[index];
    f->payload_sum = e->payload_sum[index];
    f->entry = e->entry;
    f->delta = e->delta;
    memcpy(f->part, e->part, sizeof f->part);
}

/* The buffer is the sending's from here on. */
static void send_to(struct sending *s, struct place *at, struct link *to)
{
    struct drain *d = s->chunk->drain;
    struct cairn_error err = CAIRN_ERROR_INIT;

    s->place = at;
    s->put.done = sent;
    s->put.arg = s;
    s->put.stream = d->stream;
    s->put.fragment = &s->fragment;
    at->state = FRAG_SENDING;
    at->link = to;
    at->sending = s;
    s->chunk->sending++;
    d->busy++;
    int r = link_put(to, &s->put, &err);
    if (r < 0)
        send_end(s, r, &err);
}

static void send_fragment(struct chunk *c, const struct encode *e, unsigned index, struct link *to)
{
    struct sending *s = calloc(1, sizeof *s);

    if (!s) {
        links_buffer_give(c->drain->links, e->record[index]);
        return; /* it stays needed */
    }
    s->chunk = c;
    fill_header(s, e, index);
    s->put.record = e->record[index];
    s->put.record_len = fragment_record_len(e->payload_len[index]);
    s->put.payload = index < e->k && e->in_place[index] ? e->plain[index] : NULL;
    send_to(s, &c->frag[index].at[0], to);
}

static void send_needed(struct chunk *c, const struct encode *e)
{
    struct link *to[CAIRN_GROUP_MAX];
    unsigned n = targets(c, to), next = 0;

    for (unsigned i = 0; i < chunk_fragments(c); i++) {
        if (frag_state(&c->frag[i]) != FRAG_NEEDED || next == n) {
            links_buffer_give(c->drain->links, e->record[i]);
            continue;
        }
        send_fragment(c, e, i, to[next++]);
    }
}

/* ---- late fragments -------------------------------------------------------------------------- */

/* Takes a fragment off its link if it still waits there. */
static bool take_back(struct place *at)
{
    struct sending *s = at->sending;

    if (!link_put_cancel(&s->put))
        return false;
    at->state = FRAG_NEEDED;
    at->sending = NULL;
    s->chunk->sending--;
    s->chunk->drain->busy--;
    return true;
}

static void drop(struct sending *s)
{
    links_counts(s->chunk->drain->links)->fragments_dropped++;
    links_buffer_give(s->chunk->drain->links, s->put.record);
    free(s);
}

/* The link may be reading the late one's buffer: the other peer gets a copy, with a header of its own. */
static bool send_copy(const struct sending *late, struct place *at, struct link *to)
{
    struct links *links = late->chunk->drain->links;
    char *record = links_buffer_take(links);
    struct sending *s = record ? calloc(1, sizeof *s) : NULL;

    if (!s) {
        if (record)
            links_buffer_give(links, record);
        return false; /* buffers are short: it is waited for, or the chunk counts without it */
    }
    s->chunk = late->chunk;
    s->fragment = late->fragment;
    s->put.record = record;
    s->put.record_len = late->put.record_len;
    s->put.payload = late->put.payload;
    memcpy(record, late->put.record, s->put.payload ? FRAGMENT_HEADER : s->put.record_len);
    send_to(s, at, to);
    return true;
}

static void spare_one(struct chunk *c, struct place *going, struct place *other)
{
    struct links_counts *counts = links_counts(c->drain->links);
    struct sending *s = going->sending;
    struct link *to[CAIRN_GROUP_MAX];

    if (targets(c, to) == 0)
        return; /* the margin carries it; it may still be stored, as long as nobody needs its buffer */
    if (take_back(going)) {
        counts->fragments_spared++;
        send_to(s, going, to[0]);
    } else {
        counts->fragments_spared += send_copy(s, other, to[0]);
    }
}

void chunk_spare_late(struct chunk *c)
{
    for (unsigned i = 0; i < chunk_fragments(c) && c->sending > 0; i++) {
        struct place *at = c->frag[i].at;
        unsigned going = at[0].state != FRAG_SENDING;
        if (frag_state(&c->frag[i]) == FRAG_SENDING && at[!going].state == FRAG_NEEDED && link_late(at[going].link))
            spare_one(c, &at[going], &at[!going]);
    }
}

void chunk_shed(struct chunk *c, bool all)
{
    if (c->sending == 0 || (!all && chunk_count(c, FRAG_STORED) < chunk_enough(c)))
        return;
    for (unsigned i = 0; i < 2 * chunk_fragments(c); i++) {
        struct place *at = &c->frag[i / 2].at[i % 2];
        struct sending *s = at->sending;
        if (s && (all || link_put_is_late(at->link, &s->put)) && take_back(at))
            drop(s);
    }
}

/* ---- encoding -------------------------------------------------------------------------------- */

struct encoding {
    struct worker_job job;
    struct chunk *chunk;
    struct encode encode;
};

static void give_all(struct encoding *en)
{
    for (unsigned i = 0; i < en->encode.k + en->encode.m; i++)
        links_buffer_give(en->chunk->drain->links, en->encode.record[i]);
}

static bool same_plain_as_before(const struct chunk *c, const struct encode *e)
{
    return !c->known || (c->entry.low == e->entry.low && c->entry.high == e->entry.high);
}

/* Fragments of one chunk that were made at different times must go together. */
static bool same_as_before(const struct chunk *c, const struct encode *e)
{
    bool same = !c->known || (same_plain_as_before(c, e) && cairn_delta_equal(&c->delta, &e->delta) &&
                              memcmp(c->part, e->part, c->k * sizeof c->part[0]) == 0);

    for (unsigned i = 0; c->known && same && i < chunk_fragments(c); i++)
        same = c->frag[i].sum == e->payload_sum[i];
    return same;
}

/* For err: why it is not. */
static int changed_since(const struct chunk *c, const struct encode *e, struct cairn_error *err)
{
    const struct drain *d = c->drain;

    if (c->came_packed && same_plain_as_before(c, e))
        return cairn_fail(
            err, CAIRN_E_CORRUPT,
            "the snapshot of job %s step %llu rank %u was packed on its device as the codec \"float\" does "
            "not: save without CAIRN_PACK",
            d->job, (unsigned long long)d->spec.step, d->spec.rank);
    return cairn_fail(
        err, CAIRN_E_CORRUPT,
        "the snapshot of job %s step %llu rank %u changed while it was saved: its process writes to the arena", d->job,
        (unsigned long long)d->spec.step, d->spec.rank);
}

/* Of a chunk that is encoded for the first time. */
static void count_encoded(const struct drain *d, const struct encode *e)
{
    struct links_counts *counts = links_counts(d->links);
    uint64_t bytes = 0;

    for (unsigned i = 0; i < e->k; i++)
        bytes += e->plain_len[i];
    counts->early_bytes += d->filling ? bytes : 0;
    counts->shared_bytes += e->same ? bytes : 0;
    counts->compared_bytes += e->sums ? bytes : 0;
}

/* Parts that are unpacked stay so, whatever became of the chunk. */
static void take_unpacked(struct chunk *c, const struct encode *e)
{
    struct links_counts *counts = links_counts(c->drain->links);

    for (unsigned i = 0; i < e->k; i++) {
        if (!e->came[i])
            continue;
        c->drain->spec.packed[c->first_part + i] = 0;
        c->came_packed = true;
        counts->packed_bytes += e->came[i];
        counts->packed_plain_bytes += e->plain_len[i];
    }
}

static void take_same(struct chunk *c, struct encoding *en)
{
    c->same = true;
    c->drain->shared_parts += c->k;
    give_all(en);
}

/* What a chunk that was not taken has found is nobody's. */
static void take_numerics(struct encoding *en, bool taken)
{
    for (unsigned i = 0; i < en->encode.k; i++) {
        if (taken && en->encode.found[i])
            numerics_take(en->chunk->drain->numerics, en->encode.found[i]);
        else
            numerics_part_free(en->encode.found[i]);
    }
}

static void encoded(struct worker_job *job)
{
    struct encoding *en = job->arg;
    struct chunk *c = en->chunk;
    struct drain *d = c->drain;
    struct encode *e = &en->encode;
    struct cairn_error err = CAIRN_ERROR_INIT;

    d->busy--;
    pacer_release(links_pacer(d->links), chunk_fragments(c) * (uint64_t)CAIRN_PART);
    if (e->code == 0 && !e->same)
        codecs_encoded(links_codecs(d->links), e);
    take_unpacked(c, e);
    take_numerics(en, e->code == 0 && d->code == 0);
    if (e->maybe.depth && !e->same)
        d->spec.not_same(d->spec.arg, &d->spec.against, c->first_part);
    if (e->base_gone && !c->counted && d->code == 0) {
        c->base_lost = true;
        give_all(en);
        chunk_move(c, CHUNK_TODO);
        free(en);
        links_kick(d->links);
        return;
    }
    if (e->code == 0 && !same_as_before(c, e))
        e->code = changed_since(c, e, &err);
    else if (e->code < 0 && e->undecoded)
        drain_undecoded(d, c->first_part + e->undecoded - 1, &err);
    else if (e->code < 0 && e->differs)
        drain_differs(d, c->first_part + e->differs - 1, &err);
    else if (e->code < 0)
        cairn_fail(&err, e->code, "encode part %u of rank %u", c->first_part, d->spec.rank);
    if (e->code == 0 && d->code == 0) {
        if (d->spec.sums && !e->sums && !c->known) /* they came meanwhile */
            chunk_check_later(c);
        if (!c->known)
            count_encoded(d, e);
        c->known = true;
        c->entry = e->entry;
        c->delta = e->delta;
        memcpy(c->part, e->part, sizeof c->part);
        for (unsigned i = 0; i < c->k + c->m; i++)
            c->frag[i].sum = e->payload_sum[i];
        chunk_move(c, c->counted ? CHUNK_SAFE : CHUNK_GOING);
        if (e->same)
            take_same(c, en);
        else
            send_needed(c, e);
    } else if (c->counted) { /* what is durable counts; its pages go when nothing of it is on its way */
        c->spoilt = true;
        give_all(en);
        chunk_move(c, CHUNK_SAFE);
    } else {
        give_all(en);
        chunk_move(c, CHUNK_TODO);
        if (d->code == 0)
            drain_fail(d, e->code, &err);
    }
    free(en);
    links_kick(d->links);
}

static void encode_run(struct worker_job *job)
{
    struct encoding *en = job->arg;

    encode_chunk(&en->encode);
}

void chunk_plain(const struct chunk *c, const char *ret_plain[CAIRN_MAX_K], uint32_t ret_len[CAIRN_MAX_K])
{
    const struct drain_spec *spec = &c->drain->spec;

    for (unsigned i = 0; i < c->k; i++) {
        ret_plain[i] = spec->arena + (size_t)spec->pages[c->first_part + i] * CAIRN_PART;
        ret_len[i] = (uint32_t)cairn_layout_part_len(spec->layout, c->first_part + i);
    }
}

static void give_packed(const struct chunk *c, struct encode *e)
{
    const struct drain_spec *spec = &c->drain->spec;

    e->packer = codecs_packer(links_codecs(c->drain->links));
    for (unsigned i = 0; spec->packed && i < c->k; i++) {
        e->packed[i] = spec->packed[c->first_part + i];
        e->page[i] = spec->arena + (size_t)spec->pages[c->first_part + i] * CAIRN_PART;
    }
}

void chunk_encode(struct chunk *c)
{
    struct drain *d = c->drain;
    struct encoding *en = calloc(1, sizeof *en);
    struct encode *e;

    if (!en)
        return; /* the next pump tries again */
    en->chunk = c;
    e = &en->encode;
    e->k = c->k;
    e->m = c->m;
    e->dtype = cairn_layout_part_dtype(d->spec.layout, c->first_part);
    e->as_recorded = c->known ? c->part : NULL;
    e->numerics = c->known ? NULL : d->numerics; /* the same bytes again */
    e->first_part = c->first_part;
    e->can_send_plain = links_sends_anything(d->links);
    codecs_offer(links_codecs(d->links), e);
    chunk_plain(c, e->plain, e->plain_len);
    give_packed(c, e);
    e->sums = d->spec.sums ? d->spec.sums + c->first_part : NULL;
    e->sums_seed = d->spec.sums_seed;
    if (d->spec.against.is_set && !d->spec.base(d->spec.arg, &d->spec.against, c->first_part, c->k, &e->delta, e->base))
        e->delta = (struct cairn_delta){.depth = 0};
    if (d->spec.against.is_set && !c->known && d->spec.maybe_same &&
        !d->spec.maybe_same(d->spec.arg, &d->spec.against, c->first_part, c->k, &e->maybe))
        e->maybe = (struct cairn_delta){.depth = 0};
    for (unsigned i = 0; i < e->k + e->m; i++)
        e->record[i] = links_buffer_take(d->links);
    en->job = (struct worker_job){.run = encode_run, .done = encoded, .arg = en};
    d->busy++;
    pacer_reserve(links_pacer(d->links), chunk_fragments(c) * (uint64_t)CAIRN_PART);
    chunk_move(c, CHUNK_ENCODING);
    workers_submit(links_workers(d->links), &en->job);
}
