/* SPDX-License-Identifier: Apache-2.0 */
/* A gather:
 *
 *     the wanted data fragments from the peers that the manifest names
 *         one is late, by the measure of its link and the group -> as many others of the stripe are asked for
 *         one fails -> all fragments of the stripe are asked for; any k will do
 *             too few come -> the missing ones are looked for on every other peer
 *     each that comes -> a worker checks it, and copies or decodes it to where its bytes go
 *     all that are wanted came -> what is left of the chunk's own checksum -> done
 *     enough others came -> a worker rebuilds, decodes, checks -> done
 *
 * A chunk of deltas gathers its base at the same time, within the same deadline, and has it XORed in when it has both.
 * The base is gathered whole, so that its own checksum vouches for it; it may have a base in turn.
 *
 * A fragment leaves its link's read buffer with the first worker that is free, whatever else the gather waits for: no
 * gather holds what another waits for. What a worker is about is waited for, at every end. */
#include "daemon/node/gather_internal.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/units.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEDGE_EVERY_MS 20 /* how often a gather looks for late reads */
#define HEDGES_MAX 32     /* fragments read at once because others were late, of all gathers */

static void run_free(struct gather_run *r)
{
    for (unsigned i = 0; i < r->n; i++)
        links_payload_give(r->links, r->want[i].payload);
    hash_stream_free(r->hash);
    free(r->decode.scratch);
    free(r->base.plain);
    free(r);
}

/* Once nobody touches the caller's memory or reads its manifest any more. */
void gather_finish_end(struct gather_run *r)
{
    struct gather *g = r->g;
    struct cairn_error err = r->end_err;
    int code = r->end_code;

    if (r->base.running || r->ntaking)
        return;
    run_free(r);
    g->state = NULL;
    g->done(g, code, code < 0 ? &err : NULL);
}

void gather_finish(struct gather_run *r, int code, const struct cairn_error *err)
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
    gather_finish_end(r);
}

void gather_note_error(struct gather_run *r, const char *peer, const struct cairn_error *err)
{
    size_t at = strlen(r->errors);

    snprintf(r->errors + at, sizeof r->errors - at, "%s%s: %s", at ? "; " : "", peer, err->message);
}

/* ---- reading --------------------------------------------------------------------------------- */

static void was_read(struct link_read *read, int code, const struct cairn_error *err, const char *record)
{
    struct want *w = read->arg;
    struct gather_run *r = w->run;
    struct cairn_error own = CAIRN_ERROR_INIT;

    w->state = FAILED;
    if (r->decoding)
        return; /* it was done without */
    cairn_error_copy(&own, err);
    if (code == 0)
        code = gather_take(w, record, &own);
    if (code == 0) {
        w->state = TAKING;
        return;
    }
    gather_note_error(r, link_id(w->link), &own);
    gather_step_soon(r);
}

/* The next peer to ask for this fragment: the hinted one, then, when everywhere is allowed, the others. */
static struct link *next_peer(struct want *w)
{
    struct gather_run *r = w->run;
    const char *hint = r->manifest->peers[r->chunk->peer[w->index]];
    struct link *hinted = links_find(r->links, hint);

    if (!w->hint_tried) {
        w->hint_tried = true;
        if (hinted && link_usable(hinted, NULL) && link_state_of(hinted) == LINK_UP)
            return hinted;
        struct cairn_error err = CAIRN_ERROR_INIT;
        cairn_fail(&err, CAIRN_E_UNAVAILABLE, "%s", hinted ? link_last_error(hinted) : "not known here");
        gather_note_error(r, hint, &err);
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
    return r->all_wanted || gather_wants_part(r, i);
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
        if (gather_wants_part(r, i) && r->want[i].state != GOT)
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

static void give_up(struct gather_run *r)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    char what[400];
    unsigned got = count(r, GOT, false);

    fragment_describe(&r->key, what, sizeof what);
    cairn_fail(&err, CAIRN_E_CORRUPT,
               "%u of %u fragments of the chunk at part %u of rank %u can be read, %u are needed: %s", got, r->n,
               r->chunk->first_part, r->key.rank, r->chunk->k, r->errors);
    gather_finish(r, CAIRN_E_CORRUPT, &err);
}

static void step(struct loop_post *post)
{
    struct gather_run *r = post->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;

    r->stepping = false;
    if (r->decoding || r->ending)
        return;
    if (r->cancelled) {
        gather_finish(r, cairn_fail(&err, CAIRN_E_ABORTED, "the read was cancelled"), &err);
        return;
    }
    if (r->bad_code < 0) {
        gather_finish(r, r->bad_code, &r->bad_err);
        return;
    }
    ask_wanted(r);
    if (count(r, FAILED, true) > 0 && !r->all_wanted) { /* parity takes its place */
        r->all_wanted = true;
        ask_wanted(r);
    }
    if (have_wanted_data(r) || count(r, GOT, false) >= r->chunk->k) {
        if (r->base.running || r->ntaking)
            return; /* their end goes on here */
        int code = gather_decode(r, &err);
        if (code < 0)
            gather_finish(r, code, &err);
        return;
    }
    if (count(r, READING, false) > 0 || r->ntaking)
        return;
    if (!r->everywhere) {
        r->everywhere = true;
        r->nall = links_all(r->links, r->all, LINKS_MAX);
    }
    ask_failed_again(r);
    if (count(r, READING, false) == 0)
        give_up(r);
}

void gather_step_soon(struct gather_run *r)
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
        coming += w->state == GOT || w->state == TAKING || (w->state == READING && !is_late);
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
    gather_finish(r, CAIRN_E_TIMEOUT, &err);
}

/* ---- the interface --------------------------------------------------------------------------- */

void gather_key(const struct manifest *m, const struct chunk_record *c, struct fragment_key *key)
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
        gather_finish_end(r);
        return;
    }
    cairn_error_copy(&own, err);
    if (code < 0)
        cairn_wrap(&own, code, "the base of the chunk at part %u of rank %u, in step %llu", r->chunk->first_part,
                   r->key.rank, (unsigned long long)r->chunk->delta.step);
    r->bad_code = code;
    cairn_error_copy(&r->bad_err, &own);
    gather_step_soon(r);
}

/* Nothing is started on failure: the run ends with its first step then. */
static int base_start(struct gather_run *r, struct cairn_error *err)
{
    const struct chunk_record *b = manifest_base_chunk(r->manifest, r->chunk);

    if (!r->chunk->delta.depth)
        return 0;
    if (!b)
        return cairn_fail(err, CAIRN_E_CORRUPT, "the base of the chunk at part %u of rank %u is not known",
                          r->chunk->first_part, r->key.rank);
    r->base.plain = malloc((size_t)b->k * CAIRN_PART);
    if (!r->base.plain)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate room for a chunk's base");
    r->base.gather = (struct gather){.manifest = r->manifest->under,
                                     .chunk = (uint32_t)(b - r->manifest->under->chunks),
                                     .part_mask = (1u << b->k) - 1,
                                     .target = r->base.plain,
                                     .timeout_ms = r->g->timeout_ms,
                                     .done = base_gathered,
                                     .arg = r};
    r->base.running = true;
    gather_start(r->links, &r->base.gather);
    return 0;
}

/* A chunk that is the same as its base's is read there. */
static int find_chunk(struct gather_run *r, struct cairn_error *err)
{
    const struct chunk_record *wanted = &r->g->manifest->chunks[r->g->chunk];

    r->manifest = r->g->manifest;
    r->chunk = manifest_chunk_of(&r->manifest, wanted);
    if (r->chunk)
        return 0;
    r->manifest = r->g->manifest;
    r->chunk = wanted;
    return cairn_fail(err, CAIRN_E_CORRUPT, "the base of the chunk at part %u of rank %u is not known",
                      wanted->first_part, r->manifest->rank);
}

static int find_codecs(struct gather_run *r, struct cairn_error *err)
{
    const struct chunk_record *c = r->chunk;

    r->dtype = cairn_layout_part_dtype(&r->manifest->layout, c->first_part);
    for (unsigned i = 0; i < c->k; i++) {
        r->codecs[i] = plugins_codec_by_id(links_plugins(r->links), c->part[i].codec);
        if (!r->codecs[i])
            return cairn_fail(err, CAIRN_E_UNSUPPORTED,
                              "part %u of rank %u was encoded by codec %u, which is not loaded", c->first_part + i,
                              r->key.rank, c->part[i].codec);
    }
    return 0;
}

void gather_start(struct links *links, struct gather *g)
{
    struct gather_run *r = calloc(1, sizeof *r);

    if (!r)
        abort(); /* a read that can neither succeed nor fail */
    r->links = links;
    r->g = g;
    r->end_err = r->bad_err = (struct cairn_error)CAIRN_ERROR_INIT;
    r->bad_code = find_chunk(r, &r->bad_err);
    r->n = chunk_record_fragments(r->chunk);
    gather_key(r->manifest, r->chunk, &r->key);
    for (unsigned i = 0; i < r->n; i++) {
        r->want[i].run = r;
        r->want[i].index = i;
    }
    g->state = r;
    r->hedge = (struct loop_timer){.fire = hedge, .arg = r};
    loop_timer_after(links_loop(links), &r->hedge, HEDGE_EVERY_MS);
    r->deadline = (struct loop_timer){.fire = too_late, .arg = r};
    loop_timer_after(links_loop(links), &r->deadline, g->timeout_ms ? g->timeout_ms : 30000);
    if (r->bad_code == 0)
        r->bad_code = find_codecs(r, &r->bad_err);
    if (r->bad_code == 0)
        r->bad_code = base_start(r, &r->bad_err);
    if (!r->chunk->delta.depth && g->part_mask == (1u << r->chunk->k) - 1)
        r->hash = hash_stream_new(); /* without it the chunk is hashed at its end */
    gather_step_soon(r);
}

void gather_cancel(struct links *links, struct gather *g)
{
    struct gather_run *r = g->state;

    (void)links;
    if (!r)
        return;
    r->cancelled = true;
    gather_step_soon(r);
}
