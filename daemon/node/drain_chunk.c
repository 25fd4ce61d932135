/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/node/drain_chunk.h"

#include "core/base/error.h"
#include "core/model/hash.h"

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
    chunk_move(c, CHUNK_TODO);
    return c;
}

void chunk_move(struct chunk *c, enum chunk_state state)
{
    struct drain *d = c->drain;
    struct list *lists[] = {&d->todo, &d->encoding, &d->sending, &d->stored, &d->durable};

    list_remove(&c->link);
    c->state = state;
    list_push_back(lists[state], &c->link);
}

/* ---- targets --------------------------------------------------------------------------------- */

static bool holds_some(const struct chunk *c, const struct link *l)
{
    for (unsigned i = 0; i < (unsigned)c->k + c->m; i++)
        if (c->frag[i].state != FRAG_NEEDED && c->frag[i].link == l)
            return true;
    return false;
}

/* The peers in the stripe's order that can take a fragment of this chunk now. */
static unsigned targets(struct chunk *c, struct link *ret[CAIRN_GROUP_MAX])
{
    struct drain *d = c->drain;
    struct link *order[CAIRN_GROUP_MAX];
    struct {
        uint64_t step, incarnation, job;
        uint32_t rank, first_part;
    } identity = {d->spec.step, d->spec.incarnation, cairn_hash64(d->job, strlen(d->job), 0), d->spec.rank,
                  c->first_part};
    unsigned all = links_order(d->links, cairn_hash64(&identity, sizeof identity, 0), order), n = 0;

    for (unsigned i = 0; i < all; i++)
        if (link_usable(order[i], &d->stream) && !holds_some(c, order[i]))
            ret[n++] = order[i];
    return n;
}

static unsigned needed(const struct chunk *c)
{
    unsigned n = 0;

    for (unsigned i = 0; i < (unsigned)c->k + c->m; i++)
        n += c->frag[i].state == FRAG_NEEDED;
    return n;
}

bool chunk_needs_sending(const struct chunk *c)
{
    return needed(c) > 0;
}

bool chunk_has_targets(struct chunk *c)
{
    struct link *t[CAIRN_GROUP_MAX];

    return targets(c, t) >= needed(c);
}

void chunk_check_links(struct chunk *c)
{
    for (unsigned i = 0; i < (unsigned)c->k + c->m; i++)
        if (c->frag[i].state == FRAG_STORED && link_epoch(c->frag[i].link) != c->frag[i].epoch)
            c->frag[i].state = FRAG_NEEDED;
}

uint64_t chunk_record_bytes(const struct chunk *c)
{
    uint32_t most = 0;
    uint64_t bytes = 0;

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
    unsigned index;
};

static void send_end(struct sending *s, int code, const struct cairn_error *err)
{
    struct chunk *c = s->chunk;
    struct drain *d = c->drain;
    struct frag *f = &c->frag[s->index];

    if (code == 0) {
        f->state = FRAG_STORED;
        f->epoch = s->put.epoch;
        f->stored_at = s->put.stored_at;
        d->unsynced_bytes += s->put.record_len;
    } else {
        f->state = FRAG_NEEDED;
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

static void fill_header(struct sending *s, const struct encode *e)
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
    f->key.index = s->index;
    f->k = c->k;
    f->m = c->m;
    f->dtype = e->dtype;
    f->payload_len = e->payload_len[s->index];
    f->payload_sum = e->payload_sum[s->index];
    f->entry = e->entry;
    memcpy(f->part, e->part, sizeof f->part);
}

static void send_fragment(struct chunk *c, const struct encode *e, unsigned index, struct link *to)
{
    struct drain *d = c->drain;
    struct sending *s = calloc(1, sizeof *s);
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (!s) {
        links_buffer_give(d->links, e->record[index]);
        return; /* it stays needed */
    }
    s->chunk = c;
    s->index = index;
    fill_header(s, e);
    s->put.done = sent;
    s->put.arg = s;
    s->put.stream = d->stream;
    s->put.fragment = &s->fragment;
    s->put.record = e->record[index];
    s->put.record_len = fragment_record_len(e->payload_len[index]);
    c->frag[index].state = FRAG_SENDING;
    c->frag[index].link = to;
    c->sending++;
    d->busy++;
    int r = link_put(to, &s->put, &err);
    if (r < 0)
        send_end(s, r, &err);
}

static void send_needed(struct chunk *c, const struct encode *e)
{
    struct link *to[CAIRN_GROUP_MAX];
    unsigned n = targets(c, to), next = 0;

    for (unsigned i = 0; i < (unsigned)c->k + c->m; i++) {
        if (c->frag[i].state != FRAG_NEEDED || next == n) {
            links_buffer_give(c->drain->links, e->record[i]);
            continue;
        }
        send_fragment(c, e, i, to[next++]);
    }
}

/* ---- encoding
 * ----------------------------------------------------------------------------------------------------------------------
 */

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

static bool same_as_before(const struct chunk *c, const struct encode *e)
{
    return !c->known || (c->entry.low == e->entry.low && c->entry.high == e->entry.high &&
                         memcmp(c->part, e->part, c->k * sizeof c->part[0]) == 0);
}

static void encoded(struct worker_job *job)
{
    struct encoding *en = job->arg;
    struct chunk *c = en->chunk;
    struct drain *d = c->drain;
    struct encode *e = &en->encode;
    struct cairn_error err = CAIRN_ERROR_INIT;

    d->busy--;
    if (e->code == 0 && !same_as_before(c, e))
        e->code = cairn_fail(
            &err, CAIRN_E_CORRUPT,
            "the snapshot of job %s step %llu rank %u changed while it was saved: its process writes to the arena",
            d->job, (unsigned long long)d->spec.step, d->spec.rank);
    else if (e->code < 0)
        cairn_fail(&err, e->code, "encode part %u of rank %u", c->first_part, d->spec.rank);
    if (e->code < 0 || d->code < 0) {
        give_all(en);
        chunk_move(c, CHUNK_TODO);
        if (d->code == 0)
            drain_fail(d, e->code, &err);
    } else {
        c->known = true;
        c->entry = e->entry;
        memcpy(c->part, e->part, sizeof c->part);
        chunk_move(c, CHUNK_SENDING);
        send_needed(c, e);
    }
    free(en);
    links_kick(d->links);
}

static void encode_run(struct worker_job *job)
{
    struct encoding *en = job->arg;

    encode_chunk(&en->encode);
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
    e->codec = links_lz4(d->links);
    for (unsigned i = 0; i < c->k; i++) {
        e->plain[i] = d->spec.arena + (size_t)d->spec.pages[c->first_part + i] * CAIRN_PART;
        e->plain_len[i] = (uint32_t)cairn_layout_part_len(d->spec.layout, c->first_part + i);
    }
    for (unsigned i = 0; i < e->k + e->m; i++)
        e->record[i] = links_buffer_take(d->links);
    en->job = (struct worker_job){.run = encode_run, .done = encoded, .arg = en};
    d->busy++;
    chunk_move(c, CHUNK_ENCODING);
    workers_submit(links_workers(d->links), &en->job);
}
