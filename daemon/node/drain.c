/* SPDX-License-Identifier: Apache-2.0 */
/* What a drain does at every pump, in this order: what became durable is told, what was lost goes back to be encoded
 * again, new chunks are cut and encoded while buffers are free, syncs are asked for, and at the end the manifest is
 * stored. Back-pressure is the pool of buffers: a slow peer holds some until it stores them or its deadline fails its
 * link. */
#include "daemon/node/drain_chunk.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "daemon/io/log.h"
#include "daemon/node/blob.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SYNC_BYTES ((uint64_t)32 << 20) /* stored and not synced: then a sync is asked for */

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

static void drain_finish(struct drain *d)
{
    struct drain_spec spec = d->spec;

    d->finished = true;
    links_pump_remove(&d->pump);
    loop_timer_cancel(links_loop(d->links), &d->deadline);
    spec.done(spec.arg, d->code, &d->err, d->code == 0 ? &d->ref : NULL, d->code == 0 ? &d->manifest : NULL);
    struct list *lists[] = {&d->todo, &d->encoding, &d->sending, &d->stored, &d->durable};
    for (unsigned i = 0; i < sizeof lists / sizeof lists[0]; i++)
        free_chunks(lists[i]);
    cairn_layout_init(&d->manifest.layout); /* it was lent */
    manifest_free(&d->manifest);
    bytes_free(&d->manifest_bytes);
    free(d);
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
    struct link *order[CAIRN_GROUP_MAX];
    unsigned all = links_order(d->links, 0, order), n = 0;

    for (unsigned i = 0; i < all; i++)
        n += link_usable(order[i], of_stream ? &d->stream : NULL);
    return n;
}

/* No peer at all may pass; peers that all refuse this checkpoint will not change their minds. */
static bool check_peers(struct drain *d, unsigned live)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    char why[400];

    if (live > 0) {
        d->no_peer_since_ns = 0;
        return true;
    }
    if (live_peers(d, false) > 0) {
        drain_fail(d, cairn_fail(&err, CAIRN_E_NO_SPACE, "no peer takes this checkpoint: %s", d->last_error), &err);
        return false;
    }
    if (d->no_peer_since_ns == 0)
        d->no_peer_since_ns = now_ns(d);
    links_why(d->links, why, sizeof why);
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
    if (!chunk_new(d, d->next_part, k, g.m, d->spec.attempt))
        return false;
    d->next_part += k;
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
    free(c);
}

/* ---- the pump
 * -------------------------------------------------------------------------------------------------------------------
 */

static bool is_durable(const struct chunk *c)
{
    for (unsigned i = 0; i < (unsigned)c->k + c->m; i++)
        if (link_synced_to(c->frag[i].link, &c->drain->stream) < c->frag[i].stored_at)
            return false;
    return true;
}

static void settle_stored(struct drain *d)
{
    list_for_each_safe (it, &d->stored) {
        struct chunk *c = container_of(it, struct chunk, link);
        chunk_check_links(c);
        if (chunk_needs_sending(c)) {
            chunk_move(c, CHUNK_TODO);
        } else if (is_durable(c)) {
            chunk_move(c, CHUNK_DURABLE);
            d->durable_parts += c->k;
            d->spec.durable(d->spec.arg, c->first_part, c->k);
        }
    }
}

static void settle_sending(struct drain *d)
{
    list_for_each_safe (it, &d->sending) {
        struct chunk *c = container_of(it, struct chunk, link);
        if (c->sending > 0)
            continue;
        chunk_check_links(c);
        chunk_move(c, chunk_needs_sending(c) ? CHUNK_TODO : CHUNK_STORED);
    }
}

static bool room_for(const struct drain *d, const struct chunk *c)
{
    return links_buffers_available(d->links) >= (unsigned)c->k + c->m;
}

static void encode_more(struct drain *d)
{
    list_for_each_safe (it, &d->todo) { /* what was lost comes first: its pages are the oldest */
        struct chunk *c = container_of(it, struct chunk, link);
        if (!chunk_has_targets(c))
            restripe(c);
        else if (room_for(d, c))
            chunk_encode(c);
    }
    while (d->code == 0 && list_empty(&d->todo) && d->next_part < d->spec.layout->nparts && cut_next(d)) {
        struct chunk *c = list_first(&d->todo, struct chunk, link);
        if (chunk_has_targets(c) && room_for(d, c))
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

static bool all_sent(const struct drain *d)
{
    return d->next_part == d->spec.layout->nparts && list_empty(&d->todo) && list_empty(&d->encoding) &&
           list_empty(&d->sending);
}

/* ---- the manifest ---------------------------------------------------------------------------- */

static int peer_index(struct manifest *m, const char *peer)
{
    for (uint32_t i = 0; i < m->npeers; i++)
        if (strcmp(m->peers[i], peer) == 0)
            return (int)i;
    if (m->npeers == MANIFEST_MAX_PEERS)
        return -1;
    snprintf(m->peers[m->npeers], sizeof m->peers[0], "%s", peer);
    return (int)m->npeers++;
}

static int compare_chunks(const void *a, const void *b)
{
    const struct chunk_record *x = a, *y = b;

    return (x->first_part > y->first_part) - (x->first_part < y->first_part);
}

static void add_chunk(struct manifest *m, const struct chunk *c)
{
    struct chunk_record *r = &m->chunks[m->nchunks++];

    *r = (struct chunk_record){
        .first_part = c->first_part, .attempt = c->attempt, .k = c->k, .m = c->m, .entry = c->entry};
    memcpy(r->part, c->part, sizeof r->part);
    for (unsigned i = 0; i < (unsigned)c->k + c->m; i++)
        r->peer[i] = (uint8_t)peer_index(m, link_id(c->frag[i].link));
}

/* The layout is the caller's, lent for the encoding and for done(). */
static int make_manifest(struct drain *d, struct cairn_error *err)
{
    struct manifest *m = &d->manifest;
    size_t n = 0;

    list_for_each (it, &d->durable)
        n++;
    m->peers = calloc(MANIFEST_MAX_PEERS, sizeof *m->peers);
    m->chunks = calloc(n ? n : 1, sizeof *m->chunks);
    if (!m->peers || !m->chunks)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a manifest of %zu chunks", n);
    snprintf(m->job, sizeof m->job, "%s", d->job);
    snprintf(m->node, sizeof m->node, "%s", links_config_of(d->links)->node);
    m->step = d->spec.step;
    m->incarnation = d->spec.incarnation;
    m->rank = d->spec.rank;
    m->world_size = d->spec.world_size;
    list_for_each (it, &d->durable) {
        const struct chunk *c = container_of(it, struct chunk, link);
        add_chunk(m, c);
        d->ref.stored_bytes += chunk_record_bytes(c);
    }
    qsort(m->chunks, m->nchunks, sizeof *m->chunks, compare_chunks);
    for (uint32_t i = 0; i < d->spec.layout->nslices; i++)
        d->ref.plain_bytes += d->spec.layout->slices[i].bytes;
    m->layout = *d->spec.layout;
    return manifest_encode(m, &d->manifest_bytes, err);
}

static void manifest_stored(void *arg, int code, const struct cairn_error *err, const struct blob_ref *blob)
{
    struct drain *d = arg;

    d->busy--;
    if (code < 0) {
        drain_fail(d, code, err);
    } else {
        d->ref.rank = d->spec.rank;
        snprintf(d->ref.node, sizeof d->ref.node, "%s", links_config_of(d->links)->node);
        d->ref.manifest = *blob;
        d->manifest_going = false;
        if (d->code == 0) {
            drain_finish(d);
            return;
        }
    }
    links_kick(d->links);
}

static void store_manifest(struct drain *d)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct fragment_key key = {
        .step = d->spec.step, .incarnation = d->spec.incarnation, .kind = FRAGMENT_MANIFEST, .rank = d->spec.rank};
    int r = make_manifest(d, &err);

    d->manifest_going = true;
    if (r < 0) {
        drain_fail(d, r, &err);
        return;
    }
    snprintf(key.job, sizeof key.job, "%s", d->job);
    snprintf(key.node, sizeof key.node, "%s", links_config_of(d->links)->node);
    d->busy++;
    blob_put(d->links, &key, d->spec.fence_incarnation, d->manifest_bytes.data, d->manifest_bytes.len,
             cairn_geometry_for(live_peers(d, true)).m + 1u, links_config_of(d->links)->sync_late_ms * 3,
             manifest_stored, d);
}

static void drain_pump(struct pump *p)
{
    struct drain *d = p->arg;

    if (d->code < 0) {
        if (d->busy == 0)
            drain_finish(d);
        return;
    }
    settle_sending(d);
    settle_stored(d);
    encode_more(d);
    if (d->unsynced_bytes >= SYNC_BYTES || (all_sent(d) && !list_empty(&d->stored)))
        sync_all(d);
    if (all_sent(d) && list_empty(&d->stored) && !d->manifest_going && d->code == 0)
        store_manifest(d);
}

/* ---- the object
 * -----------------------------------------------------------------------------------------------------------------------
 */

int drain_start(struct links *links, const struct drain_spec *spec, struct drain **ret_drain, struct cairn_error *err)
{
    struct drain *d = calloc(1, sizeof *d);
    unsigned live = links_live(links);

    if (!d)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a drain");
    d->links = links;
    d->spec = *spec;
    snprintf(d->job, sizeof d->job, "%s", spec->job);
    d->spec.job = d->job;
    d->err = (struct cairn_error)CAIRN_ERROR_INIT;
    list_init(&d->todo);
    list_init(&d->encoding);
    list_init(&d->sending);
    list_init(&d->stored);
    list_init(&d->durable);
    manifest_init(&d->manifest);
    snprintf(d->stream.job, sizeof d->stream.job, "%s", spec->job);
    d->stream.step = spec->step;
    d->stream.incarnation = spec->incarnation;
    d->stream.fence_incarnation = spec->fence_incarnation;
    /* This rank's share of the stream, parity and headers included; appends beyond it are allowed as far as the device
     * goes. */
    struct cairn_geometry g = cairn_geometry_for(live);
    uint64_t bytes = (uint64_t)spec->layout->nparts * (CAIRN_PART + FRAGMENT_HEADER);
    d->stream.reserve_bytes =
        g.k ? bytes / g.k * (g.k + g.m) / (live < CAIRN_GROUP_MAX ? live : CAIRN_GROUP_MAX) : bytes;
    d->deadline = (struct loop_timer){.fire = drain_too_late, .arg = d};
    loop_timer_after(links_loop(links), &d->deadline, spec->deadline_ms);
    d->pump = (struct pump){.run = drain_pump, .arg = d};
    links_pump_add(links, &d->pump);
    *ret_drain = d;
    return 0;
}

void drain_why(const struct drain *d, char *buf, size_t len)
{
    char peers[300];

    links_why(d->links, peers, sizeof peers);
    snprintf(buf, len, "%u of %u parts durable%s%s%s%s", d->durable_parts, d->spec.layout->nparts, peers[0] ? "; " : "",
             peers, d->last_error[0] ? "; last failure: " : "", d->last_error);
}
