/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/node/repair_stripe.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROOM ((uint64_t)16 << 20) /* a peer with less is full */

static unsigned count_of(const struct stripe_repair *s)
{
    return (unsigned)s->c->k + s->c->m;
}

static void step_soon(struct stripe_repair *s);

/* ---- survey ---------------------------------------------------------------------------------- */

static bool can_ask(const struct link *l)
{
    return link_usable(l, NULL) && link_state_of(l) == LINK_UP;
}

static void ask(struct stripe_frag *f);

static void asked(struct link_read *read, int code, const struct cairn_error *err, const char *record)
{
    struct stripe_frag *f = read->arg;
    struct stripe_repair *s = f->owner;

    (void)err;
    (void)record;
    f->asking = false;
    s->busy--;
    if (code == 0)
        s->holder[f->index] = (int)f->next;
    else if (code == CAIRN_E_CORRUPT)
        f->corrupt = true;
    if (code < 0) {
        f->next++;
        ask(f);
    }
    step_soon(s);
}

/* The peer that the manifest names, then all others. */
static void ask(struct stripe_frag *f)
{
    struct stripe_repair *s = f->owner;
    struct cairn_error err = CAIRN_ERROR_INIT;

    for (; !f->asking && f->next < s->nall; f->next++) {
        struct link *l = s->all[f->next];
        bool is_hint = strcmp(link_id(l), s->manifest->peers[s->c->peer[f->index]]) == 0;
        if (is_hint == f->hint_asked || !can_ask(l))
            continue;
        f->read = (struct link_read){.done = asked, .arg = f, .key = s->key, .check = true, .present = s->quick};
        f->read.key.index = f->index;
        if (link_read(l, &f->read, &err) < 0)
            continue;
        f->asking = true;
        s->busy++;
        return;
    }
    if (f->asking || f->hint_asked || s->holder[f->index] != REPAIR_NOWHERE)
        return;
    f->hint_asked = true; /* now all others */
    f->next = 0;
    ask(f);
}

static void survey_end(struct stripe_repair *s)
{
    struct repair_peer peers[REPAIR_MAX_PEERS + 1] = {{.domain = ""}};

    for (unsigned i = 0; i < s->nall; i++) {
        const struct record_peer *r = link_record(s->all[i]);
        bool well = link_usable(s->all[i], &s->stream) && link_state_of(s->all[i]) == LINK_UP;
        peers[i] = (struct repair_peer){r->domain, well && r->free_bytes > ROOM};
    }
    peers[s->nall] = (struct repair_peer){"", false}; /* all that are away */
    for (unsigned i = 0; i < count_of(s); i++) {
        if (s->holder[i] != REPAIR_NOWHERE)
            continue;
        if (s->frags[i].away) {
            s->holder[i] = (int)s->nall;
            s->away++;
        } else if (s->frags[i].corrupt) {
            s->corrupt++;
        } else {
            s->missing++;
        }
    }
    s->verdict = repair_plan(s->c->k, s->c->m, s->holder, peers, s->nall + 1, &s->plan);
    s->done(s);
}

/* ---- mending: reading k of them -------------------------------------------------------------- */

static int take_record(struct stripe_frag *f, const char *record, struct cairn_error *err)
{
    const struct chunk_record *c = f->owner->c;
    struct fragment r;
    int code = fragment_parse(record, &r, err);

    if (code == 0 &&
        (!fragment_key_equal(&r.key, &f->read.key) || r.k != c->k || r.m != c->m || r.entry.low != c->entry.low ||
         r.entry.high != c->entry.high || !cairn_delta_equal(&r.delta, &c->delta) ||
         memcmp(r.part, c->part, c->k * sizeof c->part[0]) != 0 ||
         (f->index < c->k && r.payload_len != c->part[f->index].coded_len)))
        code = cairn_fail(err, CAIRN_E_CORRUPT, "a fragment that is not the manifest's");
    if (code == 0)
        code = fragment_check_payload(&r, record + FRAGMENT_HEADER, err);
    if (code == 0 && !(f->payload = calloc(1, CAIRN_PART)))
        code = cairn_fail(err, CAIRN_E_NOMEM, "allocate a payload");
    if (code == 0)
        memcpy(f->payload, record + FRAGMENT_HEADER, r.payload_len);
    return code;
}

static void fail(struct stripe_repair *s, int code, const struct cairn_error *err)
{
    if (s->code == 0)
        cairn_error_copy(&s->err, err);
    s->code = s->code ? s->code : code;
}

static void was_read(struct link_read *read, int code, const struct cairn_error *err, const char *record)
{
    struct stripe_frag *f = read->arg;
    struct stripe_repair *s = f->owner;
    struct cairn_error own = CAIRN_ERROR_INIT;

    cairn_error_copy(&own, err);
    f->asking = false;
    s->busy--;
    if (code == 0)
        code = take_record(f, record, &own);
    if (code < 0)
        cairn_error_copy(&s->err, &own); /* told only when too few are left */
    step_soon(s);
}

/* True while some are on their way. */
static bool read_some(struct stripe_repair *s)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    unsigned have = 0;

    for (unsigned i = 0; i < count_of(s); i++)
        have += s->frags[i].asking || s->frags[i].payload;
    for (unsigned i = 0; i < count_of(s) && have < s->c->k; i++) {
        struct stripe_frag *f = &s->frags[i];
        if (s->holder[i] == REPAIR_NOWHERE || s->holder[i] == (int)s->nall || f->tried)
            continue;
        f->tried = true;
        f->read = (struct link_read){.done = was_read, .arg = f, .key = s->key};
        f->read.key.index = i;
        if (link_read(s->all[s->holder[i]], &f->read, &err) < 0)
            continue;
        f->asking = true;
        s->busy++;
        have++;
    }
    return s->busy > 0;
}

static unsigned payloads(const struct stripe_repair *s)
{
    unsigned n = 0;

    for (unsigned i = 0; i < count_of(s); i++)
        n += s->frags[i].payload != NULL;
    return n;
}

/* ---- mending: a worker ----------------------------------------------------------------------- */

static void remake_run(struct worker_job *job)
{
    struct stripe_repair *s = job->arg;

    remake_fragments(&s->remake);
}

static void remade(struct worker_job *job)
{
    struct stripe_repair *s = job->arg;

    s->decoding = false;
    s->decoded = true;
    if (s->remake.decode.code < 0)
        fail(s, s->remake.decode.code, &s->remake.decode.err);
    step_soon(s);
}

static unsigned targets(const struct stripe_repair *s)
{
    unsigned n = 0;

    for (unsigned i = 0; i < count_of(s); i++)
        n += s->plan.target[i] != REPAIR_NOWHERE;
    return n;
}

static int fill_decode(struct stripe_repair *s, struct cairn_error *err)
{
    struct decode *d = &s->remake.decode;
    const struct chunk_record *c = s->c;

    *d = (struct decode){.k = c->k, .m = c->m, .entry = c->entry};
    d->dtype = cairn_layout_part_dtype(&s->manifest->layout, c->first_part);
    memcpy(d->part, c->part, sizeof d->part);
    for (unsigned i = 0; i < count_of(s); i++)
        d->payload[i] = s->frags[i].payload;
    for (unsigned i = 0; i < c->k; i++)
        if (!(d->codecs[i] = plugins_codec_by_id(links_plugins(s->links), c->part[i].codec)))
            return cairn_fail(err, CAIRN_E_UNSUPPORTED, "codec %u is not loaded", c->part[i].codec);
    d->target = malloc(c->k * CAIRN_PART);
    d->scratch = malloc(c->k * CAIRN_PART);
    return d->target && d->scratch ? 0 : cairn_fail(err, CAIRN_E_NOMEM, "allocate room to make a chunk again");
}

/* False: there are no buffers for the new fragments now. */
static bool start_remake(struct stripe_repair *s)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (links_buffers_available(s->links) < targets(s))
        return false;
    int r = fill_decode(s, &err);
    if (r < 0) {
        fail(s, r, &err);
        return true;
    }
    for (unsigned i = 0; i < count_of(s); i++)
        if (s->plan.target[i] != REPAIR_NOWHERE) {
            s->remake.wanted |= 1u << i;
            s->remake.record[i] = links_buffer_take(s->links);
        }
    s->decoding = true;
    s->job = (struct worker_job){.run = remake_run, .done = remade, .arg = s};
    workers_submit(links_workers(s->links), &s->job);
    return true;
}

/* ---- mending: putting ------------------------------------------------------------------------ */

static void put_end(struct stripe_frag *f, int code, const struct cairn_error *err)
{
    struct stripe_repair *s = f->owner;

    f->sending = false;
    f->stored = code == 0;
    s->busy--;
    links_buffer_give(s->links, TAKE_PTR(s->remake.record[f->index]));
    if (code < 0)
        fail(s, code, err);
    step_soon(s);
}

static void was_put(struct link_put *p, int code, const struct cairn_error *err)
{
    put_end(p->arg, code, err);
}

static void put(struct stripe_repair *s, unsigned i)
{
    struct stripe_frag *f = &s->frags[i];
    struct cairn_error err = CAIRN_ERROR_INIT;

    f->fragment = (struct fragment){.key = s->key,
                                    .k = s->c->k,
                                    .m = s->c->m,
                                    .dtype = s->remake.decode.dtype,
                                    .payload_len = s->remake.payload_len[i],
                                    .payload_sum = s->remake.payload_sum[i],
                                    .entry = s->c->entry,
                                    .delta = s->c->delta};
    f->fragment.key.index = i;
    memcpy(f->fragment.part, s->c->part, sizeof f->fragment.part);
    f->put = (struct link_put){.done = was_put, .arg = f, .stream = s->stream, .fragment = &f->fragment};
    f->put.record = s->remake.record[i];
    f->put.record_len = fragment_record_len(f->fragment.payload_len);
    f->sending = true;
    s->busy++;
    int r = link_put(s->all[s->plan.target[i]], &f->put, &err);
    if (r < 0)
        put_end(f, r, &err);
}

/* True when every fragment that was stored is durable, or cannot become so. */
static bool all_synced(struct stripe_repair *s)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    bool all = true;

    for (unsigned i = 0; i < count_of(s); i++) {
        struct stripe_frag *f = &s->frags[i];
        struct link *l = f->stored ? s->all[s->plan.target[i]] : NULL;
        if (!l || f->durable)
            continue;
        if (s->given_up || link_epoch(l) != f->put.epoch) {
            f->stored = false;
            fail(s, cairn_fail(&err, CAIRN_E_UNAVAILABLE, "peer %s was lost before it had synced", link_id(l)), &err);
        } else if (link_synced_to(l, &s->stream) >= f->put.stored_at) {
            f->durable = true;
            s->repaired++;
            s->bytes += f->put.record_len;
        } else {
            link_sync(l, &s->stream);
            all = false;
        }
    }
    return all;
}

static void too_late(struct loop_timer *t)
{
    struct stripe_repair *s = t->arg;

    s->given_up = true;
    step_soon(s);
}

/* ---- the steps ------------------------------------------------------------------------------- */

static void mend_end(struct stripe_repair *s)
{
    if (s->posted)
        return; /* that step comes here again */
    links_pump_remove(&s->pump);
    loop_timer_cancel(links_loop(s->links), &s->late);
    for (unsigned i = 0; i < count_of(s); i++) {
        free(TAKE_PTR(s->frags[i].payload));
        if (s->remake.record[i])
            links_buffer_give(s->links, TAKE_PTR(s->remake.record[i]));
    }
    free(TAKE_PTR(s->remake.decode.target));
    free(TAKE_PTR(s->remake.decode.scratch));
    s->done(s);
}

static void mend_step(struct stripe_repair *s)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (s->decoding || (s->code < 0 && !s->putting && s->busy > 0))
        return;
    if (s->code < 0 && !s->putting) {
        mend_end(s);
        return;
    }
    if (!s->decoded) {
        if (read_some(s))
            return;
        if (payloads(s) < s->c->k)
            fail(s, cairn_fail(&err, CAIRN_E_CORRUPT, "too few fragments could be read: %s", s->err.message), &err);
        else if (!start_remake(s) && s->given_up)
            fail(s, cairn_fail(&err, CAIRN_E_BUSY, "no buffers were free in time"), &err);
        if (s->code < 0)
            step_soon(s);
        return;
    }
    if (!s->putting) {
        s->putting = true;
        for (unsigned i = 0; i < count_of(s); i++)
            if (s->plan.target[i] != REPAIR_NOWHERE)
                put(s, i);
    }
    if (s->busy == 0 && all_synced(s))
        mend_end(s);
}

static void step(struct loop_post *post)
{
    struct stripe_repair *s = post->arg;

    s->posted = false;
    if (s->mending)
        mend_step(s);
    else if (s->busy == 0)
        survey_end(s);
}

static void step_soon(struct stripe_repair *s)
{
    if (s->posted)
        return;
    s->posted = true;
    s->post = (struct loop_post){.run = step, .arg = s};
    loop_defer(links_loop(s->links), &s->post);
}

static void pumped(struct pump *p)
{
    step_soon(p->arg);
}

/* ---- the interface --------------------------------------------------------------------------- */

static void fill_keys(struct stripe_repair *s)
{
    const struct manifest *m = s->manifest;

    s->key = (struct fragment_key){.step = m->step,
                                   .incarnation = m->incarnation,
                                   .kind = FRAGMENT_DATA,
                                   .rank = m->rank,
                                   .first_part = s->c->first_part,
                                   .attempt = s->c->attempt};
    snprintf(s->key.job, sizeof s->key.job, "%s", m->job);
    snprintf(s->key.node, sizeof s->key.node, "%s", m->node);
    s->stream = (struct stream_key){
        .step = m->step, .incarnation = m->incarnation, .reserve_bytes = count_of(s) * FRAGMENT_MAX_RECORD};
    snprintf(s->stream.job, sizeof s->stream.job, "%s", m->job);
    snprintf(s->stream.repaired, sizeof s->stream.repaired, "%s", m->node);
}

static bool is_hinted(const struct stripe_repair *s, const struct link *l)
{
    for (unsigned i = 0; i < count_of(s); i++)
        if (strcmp(link_id(l), s->manifest->peers[s->c->peer[i]]) == 0)
            return true;
    return false;
}

/* The manifest's peers, then the others in an order of the stripe's own, so that repairs spread as saves do. */
static void order_links(struct stripe_repair *s)
{
    struct link *all[LINKS_MAX];
    struct cairn_candidate c[LINKS_MAX];
    unsigned order[LINKS_MAX], n = links_all(s->links, all, LINKS_MAX);

    for (unsigned i = 0; i < n; i++) {
        const struct record_peer *r = link_record(all[i]);
        c[i] = (struct cairn_candidate){.id = r->id, .domain = r->domain, .weight = (double)(r->total_bytes >> 20) + 1};
    }
    n = cairn_place(c, n, s->key.step * 1000003 + s->key.first_part, order);
    s->nall = 0;
    for (unsigned others = 0; others < 2; others++)
        for (unsigned i = 0; i < n && s->nall < REPAIR_MAX_PEERS; i++)
            if (is_hinted(s, all[order[i]]) == (others == 0))
                s->all[s->nall++] = all[order[i]];
}

void stripe_survey(struct stripe_repair *s)
{
    s->c = &s->manifest->chunks[s->chunk];
    fill_keys(s);
    order_links(s);
    s->err = (struct cairn_error)CAIRN_ERROR_INIT;
    for (unsigned i = 0; i < count_of(s); i++) {
        struct stripe_frag *f = &s->frags[i];
        f->owner = s;
        f->index = i;
        f->away = s->is_away && s->is_away(s->is_away_arg, s->manifest->peers[s->c->peer[i]]);
        s->holder[i] = REPAIR_NOWHERE;
    }
    for (unsigned i = 0; i < count_of(s); i++)
        ask(&s->frags[i]);
    step_soon(s);
}

void stripe_mend(struct stripe_repair *s)
{
    s->mending = true;
    s->err = (struct cairn_error)CAIRN_ERROR_INIT;
    s->pump = (struct pump){.run = pumped, .arg = s};
    links_pump_add(s->links, &s->pump);
    s->late = (struct loop_timer){.fire = too_late, .arg = s};
    loop_timer_after(links_loop(s->links), &s->late, links_config_of(s->links)->sync_late_ms * 3);
    step_soon(s);
}

uint64_t stripe_cost(const struct stripe_repair *s)
{
    return (uint64_t)(s->c->k + targets(s)) * FRAGMENT_MAX_RECORD;
}

const char *stripe_went_to(const struct stripe_repair *s, unsigned i)
{
    return s->frags[i].durable ? link_id(s->all[s->plan.target[i]]) : NULL;
}
