/* SPDX-License-Identifier: Apache-2.0 */
/* What workers do for a gather: one job for each fragment that came, and one for what is left when all have come. Raw
 * parts go straight to where they are wanted; of coded ones the payload is kept until the end, for what must be
 * rebuilt.
 */
#include "daemon/node/gather_internal.h"

#include "core/base/error.h"
#include "core/model/units.h"

#include <stdlib.h>
#include <string.h>

/* ---- one fragment ---------------------------------------------------------------------------- */

bool gather_wants_part(const struct gather_run *r, unsigned i)
{
    return i < r->chunk->k && (r->g->part_mask & 1u << i);
}

static bool is_raw(const struct cairn_part_code *p)
{
    return p->codec == CAIRN_CODEC_RAW && p->coded_len == p->plain_len;
}

/* A fragment that did not verify may have left anything in the stream. */
static void hash_back(struct gather_run *r, int code)
{
    r->hashing = false;
    r->hashed++;
    if (code == 0)
        return;
    hash_stream_free(r->hash);
    r->hash = NULL;
}

static void taken(struct worker_job *job)
{
    struct want *w = job->arg;
    struct gather_run *r = w->run;

    link_read_release(w->link, &w->read);
    r->ntaking--;
    if (w->take.entry)
        hash_back(r, w->take.code);
    w->state = w->take.code == 0 ? GOT : FAILED;
    if (w->take.code < 0)
        gather_note_error(r, link_id(w->link), &w->take.err);
    else
        links_counts(r->links)->read_bytes += fragment_record_len(w->take.payload_len);
    if (r->ending)
        gather_finish_end(r);
    else
        gather_step_soon(r);
}

static void take_run(struct worker_job *job)
{
    struct want *w = job->arg;

    take_fragment(&w->take);
}

int gather_take(struct want *w, const char *record, struct cairn_error *err)
{
    struct gather_run *r = w->run;
    bool wanted = gather_wants_part(r, w->index), straight = wanted && is_raw(&r->chunk->part[w->index]);
    bool next = r->hash && !r->hashing && wanted && w->index == r->hashed;

    if (!straight && !w->payload && !(w->payload = links_payload_take(r->links)))
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a payload");
    w->take =
        (struct take){.record = record, .key = &w->read.key, .chunk = r->chunk, .index = w->index, .dtype = r->dtype};
    w->take.target = wanted ? r->g->target + w->index * CAIRN_PART : NULL;
    w->take.payload = straight ? w->take.target : w->payload;
    w->take.codec = w->index < r->chunk->k ? r->codecs[w->index] : NULL;
    w->take.entry = next ? r->hash : NULL;
    r->hashing |= next;
    r->ntaking++;
    link_read_keep(&w->read);
    w->job = (struct worker_job){.run = take_run, .done = taken, .arg = w};
    workers_submit(links_workers(r->links), &w->job);
    return 0;
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
    gather_finish(r, code, &err);
}

/* Whether nothing is left to do: no part was coded against a base or rebuilt, and the chunk's checksum is known, or
 * cannot be, since not all of its parts are wanted. */
static bool is_complete(const struct gather_run *r)
{
    bool whole = r->g->part_mask == (1u << r->chunk->k) - 1;

    return r->g->rebuilt == 0 && !r->base.plain && (!whole || (r->hash && r->hashed == r->chunk->k));
}

int gather_decode(struct gather_run *r, struct cairn_error *err)
{
    struct decode *d = &r->decode;
    const struct chunk_record *c = r->chunk;

    *d = (struct decode){.k = c->k,
                         .m = c->m,
                         .dtype = r->dtype,
                         .entry = c->entry,
                         .part_mask = r->g->part_mask,
                         .target = r->g->target,
                         .hash = r->hash,
                         .hashed = r->hashed,
                         .base = r->base.plain};
    memcpy(d->part, c->part, sizeof d->part);
    memcpy(d->codecs, r->codecs, sizeof d->codecs);
    r->g->rebuilt = 0;
    for (unsigned i = 0; i < r->n; i++) {
        bool got = r->want[i].state == GOT, wanted = gather_wants_part(r, i);
        d->payload[i] = !got ? NULL : r->want[i].payload ? r->want[i].payload : d->target + i * CAIRN_PART;
        d->decoded |= got && wanted ? 1u << i : 0;
        r->g->rebuilt += wanted && !got;
    }
    if (r->g->rebuilt && !(d->scratch = malloc((size_t)c->k * CAIRN_PART)))
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate room to rebuild a chunk");
    r->decoding = true;
    r->job = (struct worker_job){.run = decode_run, .done = decoded, .arg = r};
    if (is_complete(r)) { /* a checksum to compare at most */
        decode_run(&r->job);
        decoded(&r->job);
    } else {
        workers_submit(links_workers(r->links), &r->job);
    }
    return 0;
}
