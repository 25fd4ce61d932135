/* SPDX-License-Identifier: Apache-2.0 */
/* What a drain does at every pump, in this order: what became durable is told, what was lost goes back to be encoded
 * again, what is late goes to spare peers too, new chunks are cut and encoded while buffers are free, what is missing
 * from chunks that count is mended, syncs are asked for, and when all parts count the manifest is stored. What is still
 * on its way then ends behind done().
 *
 * Back-pressure is the pool of buffers. A slow peer holds some until it stores them or its deadline fails its link;
 * when others wait for buffers, fragments that only queue for it are dropped from chunks that count without them. */
#include "daemon/node/drain_chunk.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "daemon/io/log.h"
#include "daemon/node/blob.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SHORT_OF_BUFFERS 16 /* free ones: then late fragments give theirs */
/* Stored and not synced, then a sync is asked for: a quarter of what is saved, as arenas have a window of a quarter;
 * but no less than what makes a flush of the device worth it, and no more than what a peer takes in a blink. */
#define SYNC_BYTES_MIN ((uint64_t)32 << 20)
#define SYNC_BYTES_MAX ((uint64_t)128 << 20)

static uint64_t now_ns(const struct drain *d)
{
    return loop_now_ns(links_loop(d->links));
}

/* ---- the end --------------------------------------------------------------------------------- */

static void free_chunks(struct list *chunks)
{
    list_for_each_safe (it, chunks) {
        list_remove(it);
        free(container_of(it, struct chunk, link));
    }
}

/* Fragments that a shard which counts goes without. */
static unsigned count_left(struct drain *d)
{
    unsigned left = 0;

    list_for_each (it, &d->safe) {
        const struct chunk *c = container_of(it, struct chunk, link);
        left += chunk_fragments(c) - chunk_count(c, FRAG_DURABLE);
    }
    if (left && d->code == 0)
        log_line(LOG_NOTICE, "job %s step %llu rank %u: %u fragments are left to repair%s%s", d->job,
                 (unsigned long long)d->spec.step, d->spec.rank, left, d->last_error[0] ? ": " : "", d->last_error);
    links_counts(d->links)->fragments_left += left;
    return left;
}

static void drain_finish(struct drain *d)
{
    struct drain_spec spec = d->spec;

    links_pump_remove(&d->pump);
    loop_timer_cancel(links_loop(d->links), &d->deadline);
    unsigned left = d->told ? count_left(d) : 0;
    if (!d->told)
        spec.done(spec.arg, d->code, &d->err, NULL, NULL);
    struct list *lists[] = {&d->todo, &d->encoding, &d->going, &d->safe, &d->full};
    for (unsigned i = 0; i < sizeof lists / sizeof lists[0]; i++)
        free_chunks(lists[i]);
    cairn_layout_init(&d->manifest.layout); /* it was lent */
    manifest_free(&d->manifest);
    bytes_free(&d->manifest_bytes);
    numerics_free(d->numerics);
    free(d);
    spec.ended(spec.arg, left);
}

void drain_fail(struct drain *d, int code, const struct cairn_error *err)
{
    if (d->code < 0)
        return;
    d->code = code;
    cairn_error_copy(&d->err, err);
    links_kick(d->links);
}

static void drain_too_late(struct loop_timer *t)
{
    struct drain *d = t->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;
    char why[400];

    drain_why(d, why, sizeof why);
    drain_fail(d,
               cairn_fail(&err, CAIRN_E_TIMEOUT, "rank %u was not durable within %u ms: %s", d->spec.rank,
                          d->spec.deadline_ms, why),
               &err);
}

void drain_cancel(struct drain *d)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    drain_fail(d, cairn_fail(&err, CAIRN_E_ABORTED, "the drain of rank %u was cancelled", d->spec.rank), &err);
}

/* ---- geometry -------------------------------------------------------------------------------- */

static unsigned live_peers(struct drain *d, bool of_stream)
{
    struct link *takers[CAIRN_GROUP_MAX];

    return links_takers(d->links, 0, of_stream ? &d->stream : NULL, takers);
}

/* No peer at all may pass; peers that all refuse this checkpoint will not change their minds. With few of those that
 * are registered, which says that this node is cut off or has just started, a stripe would be narrower than the cluster
 * allows: it waits, for the registrations of the dead expire. */
static bool check_peers(struct drain *d, unsigned live)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    char why[400];

    if (live > 0) {
        d->no_peer_since_ns = 0;
        return !links_few(d->links);
    }
    if (d->filling)
        return false; /* there is time */
    if (live_peers(d, false) > 0) {
        drain_fail(d, cairn_fail(&err, CAIRN_E_NO_SPACE, "no peer takes this checkpoint: %s", d->last_error), &err);
        return false;
    }
    if (d->no_peer_since_ns == 0)
        d->no_peer_since_ns = now_ns(d);
    links_why(d->links, why, sizeof why);
    if (links_full(d->links)) {
        drain_fail(d, cairn_fail(&err, CAIRN_E_NO_SPACE, "every storage peer is full: %s", why), &err);
        return false;
    }
    if (now_ns(d) - d->no_peer_since_ns > (uint64_t)links_config_of(d->links)->sync_late_ms * 1000000)
        drain_fail(d, cairn_fail(&err, CAIRN_E_UNAVAILABLE, "no storage peer can be reached: %s", why), &err);
    return false;
}

/* Cuts the next parts into a chunk with the geometry of the peers that live now. False when nothing can be cut. */
static bool cut_next(struct drain *d)
{
    unsigned live = live_peers(d, true);
    struct cairn_geometry g = cairn_geometry_for(live);

    if (!check_peers(d, live))
        return false;
    uint32_t k = cairn_chunk_parts(d->spec.layout, d->next_part, g.k);
    if (d->next_part + k > d->in_place)
        return false;
    if (!chunk_new(d, d->next_part, k, g.m, d->spec.attempt))
        return false;
    d->next_part += k;
    d->early_parts += d->filling ? k : 0;
    return true;
}

/* A chunk whose lost fragments find no peer is cut again for those that live, under a higher attempt. */
static void restripe(struct chunk *c)
{
    struct drain *d = c->drain;
    unsigned live = live_peers(d, true);
    struct cairn_geometry g = cairn_geometry_for(live);
    uint32_t end = c->first_part + c->k;

    if (!check_peers(d, live))
        return;
    for (uint32_t p = c->first_part, k; p < end; p += k) {
        k = end - p < g.k ? end - p : g.k;
        if (!chunk_new(d, p, k, g.m, c->attempt + 1)) {
            struct cairn_error err = CAIRN_ERROR_INIT;
            drain_fail(d, cairn_fail(&err, CAIRN_E_NOMEM, "allocate a chunk"), &err);
            return;
        }
    }
    list_remove(&c->link);
    list_remove(&c->unchecked);
    free(c);
    links_kick(d->links); /* its successors are behind whoever walks the list now */
}

/* ---- the pump -------------------------------------------------------------------------------- */

static void settle_going(struct drain *d)
{
    list_for_each_safe (it, &d->going) {
        struct chunk *c = container_of(it, struct chunk, link);
        chunk_check_links(c);
        if (chunk_count(c, FRAG_DURABLE) >= chunk_enough(c)) {
            c->counted = true;
            d->durable_parts += c->k;
            chunk_move(c, CHUNK_SAFE);
        } else if (chunk_count(c, FRAG_SENDING) < chunk_enough(c)) {
            chunk_move(c, CHUNK_TODO);
        }
    }
}

/* A chunk that counts and misses a fragment which some peer could take. */
static bool can_mend(const struct drain *d, struct chunk *c)
{
    return !c->released && !c->spoilt && !d->over && chunk_count(c, FRAG_SENDING) < chunk_fragments(c) &&
           chunk_has_targets(c);
}

/* Chunks that were full before pages could be given back. */
static void release_held(struct drain *d)
{
    if (d->held == 0 || !drain_is_settled(d))
        return;
    d->held = 0;
    list_for_each (it, &d->full)
        chunk_release(container_of(it, struct chunk, link));
}

/* Pages stay until the chunk is full, or until nothing more can be made of them behind done(); and as long as a
 * fragment is on its way: what is raw is sent from its page. */
static void settle_safe(struct drain *d)
{
    bool settled = drain_is_settled(d);

    release_held(d);
    list_for_each_safe (it, &d->safe) {
        struct chunk *c = container_of(it, struct chunk, link);
        chunk_check_links(c);
        if (c->sending > 0)
            continue;
        if (chunk_count(c, FRAG_DURABLE) == chunk_fragments(c))
            chunk_move(c, CHUNK_FULL);
        if (!settled)
            d->held += c->state == CHUNK_FULL;
        else if (c->state == CHUNK_FULL || c->spoilt || (d->told && !can_mend(d, c)))
            chunk_release(c);
    }
}

static void spare_late(struct drain *d)
{
    if (!links_any_late(d->links))
        return;
    list_for_each (it, &d->going)
        chunk_spare_late(container_of(it, struct chunk, link));
    list_for_each (it, &d->safe)
        chunk_spare_late(container_of(it, struct chunk, link));
}

static void shed(struct drain *d, bool all)
{
    list_for_each (it, &d->going)
        chunk_shed(container_of(it, struct chunk, link), all);
    list_for_each (it, &d->safe)
        chunk_shed(container_of(it, struct chunk, link), all);
}

static bool room_for(struct drain *d, const struct chunk *c)
{
    if (!drain_in_rate(d))
        return false;
    if (links_buffers_available(d->links) < chunk_fragments(c))
        shed(d, false);
    return links_buffers_available(d->links) >= chunk_fragments(c);
}

static void encode_more(struct drain *d)
{
    list_for_each_safe (it, &d->todo) { /* what was lost comes first: its pages are the oldest */
        struct chunk *c = container_of(it, struct chunk, link);
        if (chunk_has_targets(c) && !c->base_lost) {
            if (room_for(d, c))
                chunk_encode(c);
        } else if (c->sending == 0 && !c->checking) {
            restripe(c);
        }
    }
    while (d->code == 0 && list_empty(&d->todo) && d->next_part < d->spec.layout->nparts && !d->indexing &&
           drain_in_pace(d) && cut_next(d)) {
        struct chunk *c = list_first(&d->todo, struct chunk, link);
        if (chunk_has_targets(c) && room_for(d, c))
            chunk_encode(c);
    }
}

/* Once everything has been encoded, what is missing from chunks that count is encoded again while its pages last. */
static void mend(struct drain *d)
{
    if (d->next_part < d->spec.layout->nparts || !list_empty(&d->todo))
        return;
    list_for_each_safe (it, &d->safe) {
        struct chunk *c = container_of(it, struct chunk, link);
        if (can_mend(d, c) && room_for(d, c))
            chunk_encode(c);
    }
}

static void sync_all(struct drain *d)
{
    struct link *all[LINKS_MAX]; /* also those that left the group since they stored something */
    unsigned n = links_all(d->links, all, LINKS_MAX);

    for (unsigned i = 0; i < n; i++)
        link_sync(all[i], &d->stream);
    d->unsynced_bytes = 0;
}

static bool waits_for_sync(const struct list *chunks)
{
    list_for_each (it, chunks) {
        const struct chunk *c = container_of(it, struct chunk, link);
        if (chunk_count(c, FRAG_STORED) > chunk_count(c, FRAG_DURABLE))
            return true;
    }
    return false;
}

/* Everything is cut, and every chunk would count if it were synced. */
static bool all_stored(const struct drain *d)
{
    if (d->next_part < d->spec.layout->nparts || !list_empty(&d->todo))
        return false;
    list_for_each (it, &d->encoding)
        if (!container_of(it, struct chunk, link)->counted)
            return false;
    list_for_each (it, &d->going) {
        const struct chunk *c = container_of(it, struct chunk, link);
        if (chunk_count(c, FRAG_STORED) < chunk_enough(c))
            return false;
    }
    return true;
}

/* ---- the manifest ---------------------------------------------------------------------------- */

static void time_is_over(struct loop_timer *t)
{
    struct drain *d = t->arg;

    d->over = true;
    links_kick(d->links);
}

/* The shard counts. What is late goes on behind this, but no longer than a peer needs to be found hung and its
 * fragments to be stored elsewhere. */
static void tell_done(struct drain *d)
{
    d->told = true;
    loop_timer_cancel(links_loop(d->links), &d->deadline);
    d->deadline = (struct loop_timer){.fire = time_is_over, .arg = d};
    loop_timer_after(links_loop(d->links), &d->deadline, links_config_of(d->links)->fragment_late_ms * 2);
    d->spec.done(d->spec.arg, 0, &d->err, &d->ref, &d->manifest);
}

static void manifest_stored(void *arg, int code, const struct cairn_error *err, const struct blob_ref *blob)
{
    struct drain *d = arg;

    d->busy--;
    if (code < 0) {
        drain_fail(d, code, err);
    } else if (d->code == 0) {
        d->ref.rank = d->spec.rank;
        snprintf(d->ref.node, sizeof d->ref.node, "%s", links_config_of(d->links)->node);
        d->ref.manifest = *blob;
        tell_done(d);
    }
    links_kick(d->links);
}

void drain_store_manifest(struct drain *d)
{
    struct fragment_key key = {
        .step = d->spec.step, .incarnation = d->spec.incarnation, .kind = FRAGMENT_MANIFEST, .rank = d->spec.rank};

    snprintf(key.job, sizeof key.job, "%s", d->job);
    snprintf(key.node, sizeof key.node, "%s", links_config_of(d->links)->node);
    d->busy++;
    blob_put(d->links, &key, d->spec.fence_incarnation, d->manifest_bytes.data, d->manifest_bytes.len,
             cairn_geometry_for(live_peers(d, true)).m + 1u, links_config_of(d->links)->sync_late_ms * 3,
             manifest_stored, d);
}

static bool tail_ended(const struct drain *d)
{
    if (d->busy > 0)
        return false;
    if (d->over)
        return true;
    list_for_each (it, &d->safe)
        if (can_mend(d, container_of(it, struct chunk, link)))
            return false;
    return !waits_for_sync(&d->safe);
}

static void drain_pump(struct pump *p)
{
    struct drain *d = p->arg;

    if (d->code < 0) {
        shed(d, true);
        if (d->busy == 0)
            drain_finish(d);
        return;
    }
    settle_going(d);
    settle_safe(d);
    if (d->over) {
        shed(d, true);
    } else {
        spare_late(d);
        if (links_buffers_available(d->links) < SHORT_OF_BUFFERS) /* for other drains too */
            shed(d, false);
        encode_more(d);
        mend(d);
    }
    if (d->unsynced_bytes >= d->sync_bytes ||
        (all_stored(d) && (waits_for_sync(&d->going) || waits_for_sync(&d->safe))))
        sync_all(d);
    drain_check_more(d);
    if (d->durable_parts == d->spec.layout->nparts && drain_is_settled(d) && !d->indexing && !d->manifest_going &&
        d->code == 0)
        drain_make_manifest(d);
    if (d->told && tail_ended(d))
        drain_finish(d);
}

/* ---- the object ------------------------------------------------------------------------------ */

int drain_start(struct links *links, const struct drain_spec *spec, struct drain **ret_drain, struct cairn_error *err)
{
    struct drain *d = calloc(1, sizeof *d);
    unsigned live = links_live(links);

    if (!d)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a drain");
    d->links = links;
    d->spec = *spec;
    d->pace = spec->pace;
    snprintf(d->job, sizeof d->job, "%s", spec->job);
    d->spec.job = d->job;
    d->err = (struct cairn_error)CAIRN_ERROR_INIT;
    list_init(&d->todo);
    list_init(&d->encoding);
    list_init(&d->going);
    list_init(&d->safe);
    list_init(&d->full);
    list_init(&d->unchecked);
    manifest_init(&d->manifest);
    snprintf(d->stream.job, sizeof d->stream.job, "%s", spec->job);
    d->stream.step = spec->step;
    d->stream.incarnation = spec->incarnation;
    d->stream.fence_incarnation = spec->fence_incarnation;
    /* This rank's share of the stream, parity and headers included; appends beyond it are allowed as far as the device
     * goes. */
    struct cairn_geometry g = cairn_geometry_for(live);
    uint64_t bytes = (uint64_t)spec->layout->nparts * (CAIRN_PART + FRAGMENT_HEADER);
    d->sync_bytes = bytes / 4 < SYNC_BYTES_MIN   ? SYNC_BYTES_MIN
                    : bytes / 4 > SYNC_BYTES_MAX ? SYNC_BYTES_MAX
                                                 : bytes / 4;
    d->stream.reserve_bytes =
        g.k ? bytes / g.k * (g.k + g.m) / (live < CAIRN_GROUP_MAX ? live : CAIRN_GROUP_MAX) : bytes;
    d->deadline = (struct loop_timer){.fire = drain_too_late, .arg = d};
    d->filling = spec->filling;
    d->in_place = spec->filling ? spec->in_place : spec->layout->nparts;
    if (!d->filling)
        loop_timer_after(links_loop(links), &d->deadline, spec->deadline_ms);
    d->pump = (struct pump){.run = drain_pump, .arg = d};
    links_pump_add(links, &d->pump);
    drain_watch_numbers(d);
    *ret_drain = d;
    return 0;
}

void drain_filled(struct drain *d)
{
    if (!d->filling || d->code < 0)
        return;
    d->filling = false;
    d->in_place = d->spec.layout->nparts;
    loop_timer_after(links_loop(d->links), &d->deadline, d->spec.deadline_ms);
    links_kick(d->links);
}

void drain_why(const struct drain *d, char *buf, size_t len)
{
    char peers[300], pace[64], filling[64] = "";

    links_why(d->links, peers, sizeof peers);
    drain_pace_text(d, pace, sizeof pace);
    if (d->filling)
        snprintf(filling, sizeof filling, ", %u in place so far", d->in_place);
    snprintf(buf, len, "%u of %u parts durable%s%s%s%s%s%s", d->durable_parts, d->spec.layout->nparts, filling, pace,
             peers[0] ? "; " : "", peers, d->last_error[0] ? "; last failure: " : "", d->last_error);
}
