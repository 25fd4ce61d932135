/* SPDX-License-Identifier: Apache-2.0 */
/* A gather:
 *
 *     the wanted data fragments from the peers that the manifest names
 *         one is late, by the measure of its link and the group -> as many others of the stripe are asked for
 *         one fails -> all fragments of the stripe are asked for; any k will do
 *             too few come -> the missing ones are looked for on every other peer
 *     enough -> a worker rebuilds, decodes, checks -> done
 *
 * A chunk of deltas gathers its base at the same time, within the same deadline, and decodes when it has both. The base
 * is gathered whole, so that its own checksum vouches for it; it may have a base in turn.
 *
 * Payloads are copied out of the links' read buffers at once, so that no gather holds what another waits for. */
#include "daemon/node/gather.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/units.h"
#include "daemon/node/decode.h"
#include "daemon/node/link.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEDGE_EVERY_MS 20 /* how often a gather looks for late reads */
#define HEDGES_MAX 32     /* fragments read at once because others were late, of all gathers */

enum got { NOT_ASKED, READING, GOT, FAILED };

struct want { /* one fragment */
    struct gather_run *run;
    enum got state;
    unsigned index;
    struct link *link;  /* being read from */
    unsigned next_peer; /* of all, once the hinted one failed */
    bool hint_tried;
    struct link_read read;
    char *payload; /* CAIRN_PART bytes, zero-filled */
};

struct base_part { /* the gather of a chunk's base */
    struct gather gather;
    char *plain; /* k times CAIRN_PART bytes; NULL: the chunk has no base */
    bool running;
};

struct gather_run {
    struct links *links;
    struct gather *g; /* NULL once it was completed */
    const struct chunk_record *chunk;
    struct fragment_key key;
    unsigned n; /* fragments of the stripe */
    struct want want[CAIRN_MAX_FRAGS];
    bool all_wanted; /* parity too */
    bool everywhere; /* not only the hinted peers */
    unsigned hedges; /* fragments asked for because others were late */
    struct loop_timer hedge, deadline;
    struct loop_post step;
    bool stepping;
    struct worker_job job;
    struct decode decode;
    bool decoding;
    bool cancelled;
    struct base_part base;
    int base_code; /* negative: there are no bytes of the base */
    struct cairn_error base_err;
    bool ending; /* with end_code, as soon as the base's gather has ended */
    int end_code;
    struct cairn_error end_err;
    struct link *all[LINKS_MAX];
    unsigned nall;
    char errors[GATHER_WHY];
};

static void step_soon(struct gather_run *r);

static void run_free(struct gather_run *r)
{
    for (unsigned i = 0; i < r->n; i++)
        free(r->want[i].payload);
    free(r->decode.scratch);
    free(r->base.plain);
    free(r);
}

static void finish_end(struct gather_run *r)
{
    struct gather *g = r->g;
    struct cairn_error err = r->end_err;
    int code = r->end_code;

    run_free(r);
    g->state = NULL;
    g->done(g, code, code < 0 ? &err : NULL);
}

/* The base's gather reads the caller's manifest: the caller is told when that has ended too. */
static void finish(struct gather_run *r, int code, const struct cairn_error *err)
{
    r->ending = true;
    r->end_code = code;
    cairn_error_copy(&r->end_err, err);
    loop_timer_cancel(links_loop(r->links), &r->hedge);
    loop_timer_cancel(links_loop(r->links), &r->deadline);
    for (unsigned i = 0; i < r->n; i++)
        if (r->want[i].state == READING) {
            link_read_cancel(r->want[i].link, &r->want[i].read);
            r->want[i].state = FAILED;
        }
    links_counts(r->links)->hedging -= r->hedges;
    r->hedges = 0;
    if (r->base.running)
        gather_cancel(r->links, &r->base.gather);
    else
        finish_end(r);
}

static void note_error(struct gather_run *r, const char *peer, const struct cairn_error *err)
{
    size_t at = strlen(r->errors);

    snprintf(r->errors + at, sizeof r->errors - at, "%s%s: %s", at ? "; " : "", peer, err->message);
}

/* ---- reading --------------------------------------------------------------------------------- */

/* The record against the manifest: the peer is trusted with nothing. The payload's checksum was checked by the peer and
 * is checked here again, behind the wire. */
static int check_record(const struct want *w, const char *record, struct fragment *f, struct cairn_error *err)
{
    const struct gather_run *r = w->run;
    const struct chunk_record *c = r->chunk;
    int code = fragment_parse(record, f, err);

    if (code < 0)
        return code;
    if (!fragment_key_equal(&f->key, &w->read.key) || f->k != c->k || f->m != c->m || f->entry.low != c->entry.low ||
        f->entry.high != c->entry.high || !cairn_delta_equal(&f->delta, &c->delta) ||
        memcmp(f->part, c->part, c->k * sizeof c->part[0]) != 0)
        return cairn_fail(err, CAIRN_E_CORRUPT, "a fragment that is not the manifest's");
    if (w->index < c->k && f->payload_len != c->part[w->index].coded_len)
        return cairn_fail(err, CAIRN_E_CORRUPT, "a fragment of a wrong length");
    return fragment_check_payload(f, record + FRAGMENT_HEADER, err);
}

static void was_read(struct link_read *read, int code, const struct cairn_error *err, const char *record)
{
    struct want *w = read->arg;
    struct gather_run *r = w->run;
    struct cairn_error own = CAIRN_ERROR_INIT;
    struct fragment f;

    cairn_error_copy(&own, err);
    if (code == 0)
        code = check_record(w, record, &f, &own);
    if (code == 0 && !w->payload && !(w->payload = calloc(1, CAIRN_PART)))
        code = cairn_fail(&own, CAIRN_E_NOMEM, "allocate a payload");
    if (code == 0) {
        memcpy(w->payload, record + FRAGMENT_HEADER, f.payload_len);
        links_counts(r->links)->read_bytes += fragment_record_len(f.payload_len);
    } else {
        note_error(r, link_id(w->link), &own);
    }
    w->state = code == 0 ? GOT : FAILED;
    step_soon(r);
}

/* The next peer to ask for this fragment: the hinted one, then, when everywhere is allowed, the others. */
static struct link *next_peer(struct want *w)
{
    struct gather_run *r = w->run;
    const char *hint = r->g->manifest->peers[r->chunk->peer[w->index]];
    struct link *hinted = links_find(r->links, hint);

    if (!w->hint_tried) {
        w->hint_tried = true;
        if (hinted && link_usable(hinted, NULL) && link_state_of(hinted) == LINK_UP)
            return hinted;
        struct cairn_error err = CAIRN_ERROR_INIT;
        cairn_fail(&err, CAIRN_E_UNAVAILABLE, "%s", hinted ? link_last_error(hinted) : "not known here");
        note_error(r, hint, &err);
    }
    while (r->everywhere && w->next_peer < r->nall) {
        struct link *l = r->all[w->next_peer++];
        if (l != hinted && link_usable(l, NULL) && link_state_of(l) == LINK_UP)
            return l;
    }
    return NULL;
}

static void ask(struct want *w)
{
    struct gather_run *r = w->run;
    struct cairn_error err = CAIRN_ERROR_INIT;

    w->state = FAILED;
    for (struct link *l; w->state == FAILED && (l = next_peer(w));) {
        w->link = l;
        w->read = (struct link_read){.done = was_read, .arg = w, .key = r->key};
        w->read.key.index = w->index;
        w->state = READING;
        if (link_read(l, &w->read, &err) < 0)
            w->state = FAILED;
    }
}

/* ---- deciding -------------------------------------------------------------------------------- */

static bool is_wanted(const struct gather_run *r, unsigned i)
{
    return r->all_wanted || (i < r->chunk->k && (r->g->part_mask & 1u << i));
}

static unsigned count(const struct gather_run *r, enum got state, bool wanted_only)
{
    unsigned n = 0;

    for (unsigned i = 0; i < r->n; i++)
        n += r->want[i].state == state && (!wanted_only || is_wanted(r, i));
    return n;
}

static bool have_wanted_data(const struct gather_run *r)
{
    for (unsigned i = 0; i < r->chunk->k; i++)
        if ((r->g->part_mask & 1u << i) && r->want[i].state != GOT)
            return false;
    return true;
}

static void ask_wanted(struct gather_run *r)
{
    for (unsigned i = 0; i < r->n; i++)
        if (is_wanted(r, i) && r->want[i].state == NOT_ASKED)
            ask(&r->want[i]);
}

static void ask_failed_again(struct gather_run *r)
{
    for (unsigned i = 0; i < r->n; i++)
        if (r->want[i].state == FAILED)
            ask(&r->want[i]);
}

static int start_decode(struct gather_run *r, struct cairn_error *err);

static void give_up(struct gather_run *r)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    char what[400];
    unsigned got = count(r, GOT, false);

    fragment_describe(&r->key, what, sizeof what);
    cairn_fail(&err, CAIRN_E_CORRUPT,
               "%u of %u fragments of the chunk at part %u of rank %u can be read, %u are needed: %s", got, r->n,
               r->chunk->first_part, r->key.rank, r->chunk->k, r->errors);
    finish(r, CAIRN_E_CORRUPT, &err);
}

static void step(struct loop_post *post)
{
    struct gather_run *r = post->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;

    r->stepping = false;
    if (r->decoding || r->ending)
        return;
    if (r->cancelled) {
        finish(r, cairn_fail(&err, CAIRN_E_ABORTED, "the read was cancelled"), &err);
        return;
    }
    if (r->base_code < 0) {
        finish(r, r->base_code, &r->base_err);
        return;
    }
    ask_wanted(r);
    if (count(r, FAILED, true) > 0 && !r->all_wanted) { /* parity takes its place */
        r->all_wanted = true;
        ask_wanted(r);
    }
    if (have_wanted_data(r) || count(r, GOT, false) >= r->chunk->k) {
        if (r->base.running)
            return; /* its end goes on here */
        int code = start_decode(r, &err);
        if (code < 0)
            finish(r, code, &err);
        return;
    }
    if (count(r, READING, false) > 0)
        return;
    if (!r->everywhere) {
        r->everywhere = true;
        r->nall = links_all(r->links, r->all, LINKS_MAX);
    }
    ask_failed_again(r);
    if (count(r, READING, false) == 0)
        give_up(r);
}

static void step_soon(struct gather_run *r)
{
    if (r->stepping || r->decoding || r->ending)
        return;
    r->stepping = true;
    r->step = (struct loop_post){.run = step, .arg = r};
    loop_defer(links_loop(r->links), &r->step);
}

/* How many of the k fragments that are needed cannot be expected in time. 0 while nothing that is wanted is late. */
static unsigned late_by(const struct gather_run *r)
{
    unsigned coming = 0, late = 0;

    for (unsigned i = 0; i < r->n; i++) {
        const struct want *w = &r->want[i];
        bool is_late = w->state == READING && link_read_is_late(w->link, &w->read);
        late += is_late && is_wanted(r, i);
        coming += w->state == GOT || (w->state == READING && !is_late);
    }
    return late > 0 && coming < r->chunk->k ? r->chunk->k - coming : 0;
}

static void hedge(struct loop_timer *t)
{
    struct gather_run *r = t->arg;
    struct links_counts *counts = links_counts(r->links);
    unsigned need = r->decoding ? 0 : late_by(r);

    for (unsigned i = 0; i < r->n && need > 0 && counts->hedging < HEDGES_MAX; i++) {
        if (r->want[i].state != NOT_ASKED)
            continue;
        ask(&r->want[i]);
        if (r->want[i].state != READING)
            continue;
        need--;
        r->hedges++;
        counts->hedging++;
        counts->reads_hedged++;
    }
    loop_timer_after(links_loop(r->links), t, HEDGE_EVERY_MS);
}

void gather_why(const struct gather *g, char ret[GATHER_WHY])
{
    const struct gather_run *r = g->state;
    size_t at = 0;

    snprintf(ret, GATHER_WHY, "%s", r && r->errors[0] ? r->errors : "peers are slow");
    if (!r || r->errors[0])
        return;
    for (unsigned i = 0; i < r->n && at < GATHER_WHY; i++)
        if (r->want[i].state == READING)
            at += (size_t)snprintf(ret + at, GATHER_WHY - at, "%s%s", at ? ", " : "no answer from ",
                                   link_id(r->want[i].link));
}

static void too_late(struct loop_timer *t)
{
    struct gather_run *r = t->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;
    char why[GATHER_WHY];

    if (r->stepping || r->decoding) {
        loop_timer_after(links_loop(r->links), t, 1);
        return;
    }
    gather_why(r->g, why);
    cairn_fail(&err, CAIRN_E_TIMEOUT, "the chunk at part %u of rank %u was not read within %u ms: %s",
               r->chunk->first_part, r->key.rank, r->g->timeout_ms, why);
    finish(r, CAIRN_E_TIMEOUT, &err);
}

/* ---- decoding -------------------------------------------------------------------------------- */

static void decode_run(struct worker_job *job)
{
    struct gather_run *r = job->arg;

    decode_chunk(&r->decode);
}

static void count_decoded(struct gather_run *r)
{
    struct links_counts *counts = links_counts(r->links);

    for (unsigned i = 0; i < r->chunk->k; i++)
        if (r->g->part_mask & 1u << i)
            counts->decoded_bytes += r->chunk->part[i].plain_len;
    counts->parts_rebuilt += r->g->rebuilt;
}

static void decoded(struct worker_job *job)
{
    struct gather_run *r = job->arg;
    struct cairn_error err = r->decode.err;
    int code = r->decode.code;

    /* Payloads that decode_chunk rebuilt lie in its scratch. */
    r->decoding = false;
    if (r->cancelled)
        code = cairn_fail(&err, CAIRN_E_ABORTED, "the read was cancelled");
    else if (code < 0)
        cairn_wrap(&err, code, "chunk at part %u of rank %u", r->chunk->first_part, r->key.rank);
    if (code == 0)
        count_decoded(r);
    finish(r, code, &err);
}

static int start_decode(struct gather_run *r, struct cairn_error *err)
{
    struct decode *d = &r->decode;
    const struct chunk_record *c = r->chunk;

    *d = (struct decode){.k = c->k, .m = c->m, .entry = c->entry, .part_mask = r->g->part_mask, .target = r->g->target};
    d->dtype = cairn_layout_part_dtype(&r->g->manifest->layout, c->first_part);
    memcpy(d->part, c->part, sizeof d->part);
    for (unsigned i = 0; i < c->k; i++) {
        d->codecs[i] = plugins_codec_by_id(links_plugins(r->links), c->part[i].codec);
        if (!d->codecs[i])
            return cairn_fail(err, CAIRN_E_UNSUPPORTED,
                              "part %u of rank %u was encoded by codec %u, which is not loaded", c->first_part + i,
                              r->key.rank, c->part[i].codec);
    }
    d->base = r->base.plain;
    r->g->rebuilt = 0;
    for (unsigned i = 0; i < r->n; i++) {
        d->payload[i] = r->want[i].state == GOT ? r->want[i].payload : NULL;
        r->g->rebuilt += i < c->k && (r->g->part_mask & 1u << i) && !d->payload[i];
    }
    if (r->g->rebuilt && !(d->scratch = malloc((size_t)c->k * CAIRN_PART)))
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate room to rebuild a chunk");
    r->decoding = true;
    r->job = (struct worker_job){.run = decode_run, .done = decoded, .arg = r};
    workers_submit(links_workers(r->links), &r->job);
    return 0;
}

/* ---- the interface --------------------------------------------------------------------------- */

static void key_of(const struct manifest *m, const struct chunk_record *c, struct fragment_key *key)
{
    *key = (struct fragment_key){.step = m->step,
                                 .incarnation = m->incarnation,
                                 .kind = FRAGMENT_DATA,
                                 .rank = m->rank,
                                 .first_part = c->first_part,
                                 .attempt = c->attempt};
    snprintf(key->job, sizeof key->job, "%s", m->job);
    snprintf(key->node, sizeof key->node, "%s", m->node);
}

static void base_gathered(struct gather *base, int code, const struct cairn_error *err)
{
    struct gather_run *r = base->arg;
    struct cairn_error own = CAIRN_ERROR_INIT;

    r->base.running = false;
    if (r->ending) {
        finish_end(r);
        return;
    }
    cairn_error_copy(&own, err);
    if (code < 0)
        cairn_wrap(&own, code, "the base of the chunk at part %u of rank %u, in step %llu", r->chunk->first_part,
                   r->key.rank, (unsigned long long)r->chunk->delta.step);
    r->base_code = code;
    cairn_error_copy(&r->base_err, &own);
    step_soon(r);
}

/* Nothing is started on failure: the run ends with its first step then. */
static int base_start(struct gather_run *r, struct cairn_error *err)
{
    const struct chunk_record *b = manifest_base_chunk(r->g->manifest, r->chunk);

    if (!r->chunk->delta.depth)
        return 0;
    if (!b)
        return cairn_fail(err, CAIRN_E_CORRUPT, "the base of the chunk at part %u of rank %u is not known",
                          r->chunk->first_part, r->key.rank);
    r->base.plain = malloc((size_t)b->k * CAIRN_PART);
    if (!r->base.plain)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate room for a chunk's base");
    r->base.gather = (struct gather){.manifest = r->g->manifest->under,
                                     .chunk = (uint32_t)(b - r->g->manifest->under->chunks),
                                     .part_mask = (1u << b->k) - 1,
                                     .target = r->base.plain,
                                     .timeout_ms = r->g->timeout_ms,
                                     .done = base_gathered,
                                     .arg = r};
    r->base.running = true;
    gather_start(r->links, &r->base.gather);
    return 0;
}

void gather_start(struct links *links, struct gather *g)
{
    struct gather_run *r = calloc(1, sizeof *r);

    if (!r)
        abort(); /* a read that can neither succeed nor fail */
    r->links = links;
    r->g = g;
    r->chunk = &g->manifest->chunks[g->chunk];
    r->n = (unsigned)r->chunk->k + r->chunk->m;
    key_of(g->manifest, r->chunk, &r->key);
    for (unsigned i = 0; i < r->n; i++) {
        r->want[i].run = r;
        r->want[i].index = i;
    }
    g->state = r;
    r->hedge = (struct loop_timer){.fire = hedge, .arg = r};
    loop_timer_after(links_loop(links), &r->hedge, HEDGE_EVERY_MS);
    r->deadline = (struct loop_timer){.fire = too_late, .arg = r};
    loop_timer_after(links_loop(links), &r->deadline, g->timeout_ms ? g->timeout_ms : 30000);
    r->end_err = r->base_err = (struct cairn_error)CAIRN_ERROR_INIT;
    r->base_code = base_start(r, &r->base_err);
    step_soon(r);
}

void gather_cancel(struct links *links, struct gather *g)
{
    struct gather_run *r = g->state;

    (void)links;
    if (!r)
        return;
    r->cancelled = true;
    step_soon(r);
}

/* ---- checks ---------------------------------------------------------------------------------- */

struct check_run {
    struct links *links;
    struct gather_check *c;
    struct link_read read;
    struct link *all[LINKS_MAX];
    unsigned nall, next;
    bool hint_tried;
    int code;
    struct cairn_error err; /* the hinted peer's: it is the one that should have it */
    struct loop_post step;
};

static void check_step(struct loop_post *post);

static void check_soon(struct check_run *r)
{
    r->step = (struct loop_post){.run = check_step, .arg = r};
    loop_defer(links_loop(r->links), &r->step);
}

static void check_finish(struct check_run *r, int code)
{
    struct gather_check *c = r->c;
    struct cairn_error err = r->err;

    free(r);
    c->done(c, code, &err);
}

static void checked(struct link_read *read, int code, const struct cairn_error *err, const char *record)
{
    struct check_run *r = read->arg;

    (void)record;
    if (code == 0) {
        check_finish(r, 0);
        return;
    }
    if (r->code == 0 || r->code == CAIRN_E_NOT_FOUND) {
        r->code = code;
        cairn_error_copy(&r->err, err);
    }
    check_soon(r);
}

static void check_step(struct loop_post *post)
{
    struct check_run *r = post->arg;
    const struct manifest *m = r->c->manifest;
    const struct chunk_record *c = &m->chunks[r->c->chunk];
    struct link *hinted = links_find(r->links, m->peers[c->peer[r->c->fragment]]), *l = NULL;
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (!r->hint_tried)
        l = hinted;
    r->hint_tried = true;
    while (!l && r->next < r->nall) {
        l = r->all[r->next++];
        if (l == hinted || !link_usable(l, NULL))
            l = NULL;
    }
    if (!l) {
        if (r->code == 0)
            r->code = cairn_fail(&r->err, CAIRN_E_NOT_FOUND, "no peer has it");
        check_finish(r, r->code);
        return;
    }
    r->read = (struct link_read){.done = checked, .arg = r, .check = true};
    key_of(m, c, &r->read.key);
    r->read.key.index = r->c->fragment;
    if (link_read(l, &r->read, &err) < 0)
        checked(&r->read, err.code, &err, NULL);
}

void gather_check_start(struct links *links, struct gather_check *c)
{
    struct check_run *r = calloc(1, sizeof *r);

    if (!r)
        abort(); /* a check that can neither succeed nor fail */
    r->links = links;
    r->c = c;
    r->err = (struct cairn_error)CAIRN_ERROR_INIT;
    r->nall = links_all(links, r->all, LINKS_MAX);
    check_soon(r);
}
