/* SPDX-License-Identifier: Apache-2.0 */
/* What a drain says of its shard: the manifest, with what its tensors hold. Tables of a million tensors take a second
 * to make, so workers make them: where slices lie before the first chunk is encoded, and at the end the rest.
 *
 *     drain_watch_numbers -> worker: numerics_index -> chunks are cut ... every chunk counts
 *     drain_make_manifest -> worker: sums, bytes    -> drain_store_manifest */
#include "daemon/node/drain_chunk.h"

#include "core/base/error.h"
#include "core/checkpoint/common.h"
#include "daemon/io/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- before the first chunk ------------------------------------------------------------------ */

static void index_run(struct worker_job *job)
{
    struct drain *d = job->arg;

    numerics_index(d->numerics);
}

static void index_done(struct worker_job *job)
{
    struct drain *d = job->arg;

    d->indexing = false;
    d->busy--;
    links_kick(d->links);
}

void drain_watch_numbers(struct drain *d)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (!d->spec.numerics)
        return;
    if (numerics_new(d->spec.layout, d->spec.numerics, &d->numerics, &err) < 0) {
        log_line(LOG_WARNING,
                 "job %s step %llu rank %u is saved without a look at its numbers, NaN and Inf are not counted and "
                 "what ranks have in common is not compared: %s",
                 d->job, (unsigned long long)d->spec.step, d->spec.rank, err.message);
        return;
    }
    d->indexing = true;
    d->busy++;
    d->table_job = (struct worker_job){.run = index_run, .done = index_done, .arg = d};
    workers_submit(links_workers(d->links), &d->table_job);
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

    *r = (struct chunk_record){.first_part = c->first_part,
                               .attempt = c->attempt,
                               .k = c->k,
                               .m = c->same ? 0 : c->m,
                               .entry = c->entry,
                               .delta = c->delta,
                               .same = c->same};
    memcpy(r->part, c->part, sizeof r->part);
    for (unsigned i = 0; i < chunk_fragments(c); i++)
        r->peer[i] = (uint8_t)peer_index(m, link_id(chunk_place(c, i)));
}

static void add_chunks(struct drain *d, const struct list *chunks)
{
    list_for_each (it, chunks) {
        const struct chunk *c = container_of(it, struct chunk, link);
        add_chunk(&d->manifest, c);
        d->ref.stored_bytes += chunk_record_bytes(c);
    }
}

static int sum_numerics(struct drain *d, struct cairn_error *err)
{
    struct manifest *m = &d->manifest;

    if (!d->numerics)
        return 0;
    m->numerics = numerics_end(d->numerics);
    if (!m->numerics)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the numerics of %u tensors", d->spec.layout->nslices);
    return common_sum_up(d->spec.layout, m->numerics, &d->ref.numerics, err);
}

/* Nothing of it changes any more: chunks that are encoded again give what they gave, and are not looked at. */
static void manifest_run(struct worker_job *job)
{
    struct drain *d = job->arg;

    for (uint32_t i = 0; i < d->spec.layout->nslices; i++)
        d->ref.plain_bytes += d->spec.layout->slices[i].bytes;
    d->table_code = sum_numerics(d, &d->table_err);
    if (d->table_code == 0)
        d->table_code = manifest_encode(&d->manifest, &d->manifest_bytes, &d->table_err);
}

static void manifest_made(struct worker_job *job)
{
    struct drain *d = job->arg;

    d->busy--;
    if (d->table_code < 0)
        drain_fail(d, d->table_code, &d->table_err);
    else if (d->code == 0)
        drain_store_manifest(d);
    links_kick(d->links);
}

/* The layout is the caller's, lent for the encoding and for done(). Every chunk counts now, full or not. */
static int begin_manifest(struct drain *d, struct cairn_error *err)
{
    struct list *lists[] = {&d->encoding, &d->safe, &d->full};
    struct manifest *m = &d->manifest;
    size_t n = 0;

    for (unsigned i = 0; i < sizeof lists / sizeof lists[0]; i++)
        list_for_each (it, lists[i])
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
    for (unsigned i = 0; i < sizeof lists / sizeof lists[0]; i++)
        add_chunks(d, lists[i]);
    for (uint32_t i = 0; i < m->nchunks && !m->base.is_set; i++)
        if (m->chunks[i].delta.depth)
            m->base = d->spec.against;
    qsort(m->chunks, m->nchunks, sizeof *m->chunks, compare_chunks);
    m->layout = *d->spec.layout;
    return 0;
}

void drain_make_manifest(struct drain *d)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    int r = begin_manifest(d, &err);

    d->manifest_going = true;
    if (r < 0) {
        drain_fail(d, r, &err);
        return;
    }
    d->busy++;
    d->table_err = (struct cairn_error)CAIRN_ERROR_INIT;
    d->table_job = (struct worker_job){.run = manifest_run, .done = manifest_made, .arg = d};
    workers_submit(links_workers(d->links), &d->table_job);
}
