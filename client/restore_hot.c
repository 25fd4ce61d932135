/* SPDX-License-Identifier: Apache-2.0 */
/* A restore from this process's own arena: one copy, straight from its pages to the tensors.
 *
 *     PLACES --> for each chunk: a few KiB from memory through the checksum, then from cache to the target, ...
 *                the chunk's checksum is right --> done
 *                it is not                     --> the daemon reads it from the peers and overwrites the target
 *     PLACES again: a chunk that is not where it was may have been overwritten between checksum and copy --> the same
 *
 * Only this process writes to its arena: a later save, which the second answer shows, or a stray write, which the
 * checksum shows unless it comes within the microseconds between a block's checksum and its copy; then it is as if it
 * had gone to the tensor itself.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/copy.h"
#include "client/crew.h"
#include "client/restore_run.h"
#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/hash.h"
#include "core/model/units.h"

#define BLOCK_BYTES ((uint32_t)64 << 10)
#define MANY_TOUCHES \
    8 /* pieces of one chunk: more are copied part by part, to look for them costs more than the cache */
#define JOBS_PER_THREAD 4

struct places {
    struct local_place *place; /* of each chunk */
    uint64_t n;
};

struct hot { /* one shard, read by a crew */
    struct run *run;
    const struct arena *arena;
    uint64_t pages; /* of the arena */
    uint32_t shard;
    struct places places;
    enum copy_path path;
    uint64_t next_job;     /* atomic: who takes a job adds one */
    uint64_t copied_bytes; /* atomic */
    pthread_t reporter;    /* who calls the progress function */
};

/* ---- where ----------------------------------------------------------------------------------- */

static void places_free(struct places *p)
{
    free(p->place);
}

static int read_places(int fd, struct places *p, uint64_t n, struct cairn_error *err)
{
    struct view v = {0};
    int r = view_map(&v, fd, n * sizeof *p->place, F_SEAL_WRITE | F_SEAL_SHRINK, "places", err);

    if (r < 0)
        return r;
    p->place = malloc(n * sizeof *p->place);
    if (p->place) {
        memcpy(p->place, v.base, n * sizeof *p->place);
        p->n = n;
    }
    view_unmap(&v, false);
    return p->place ? 0 : cairn_fail(err, CAIRN_E_NOMEM, "allocate the places of %llu chunks", (unsigned long long)n);
}

static int ask_places(struct run *run, uint32_t shard, struct places *ret, struct cairn_error *err)
{
    struct cairn_restore *r = run->restore;
    struct local_places m = {.restore = r->id, .shard = shard};
    struct local_places_are answer;
    struct channel_request q = {.expect = LOCAL_PLACES_ARE, .answer = &answer, .room = sizeof answer};
    uint32_t nchunks = r->catalog.shards[shard].nchunks;

    if (!(r->attachment->knows & LOCAL_KNOWS_PLACES))
        return cairn_fail(err, CAIRN_E_UNSUPPORTED, "the daemon does not say where a shard lies");
    local_header_init(&m.h, LOCAL_PLACES, sizeof m, 0);
    int code = channel_call(r->attachment->channel, &m.h, -1, &q, run->deadline_ns, err);
    if (code == 0 && (answer.nchunks != nchunks || q.nfds != 1))
        code = channel_break(r->attachment->channel, err, "PLACES_ARE of another number of chunks");
    if (code == 0)
        code = read_places(q.fds[0], ret, nchunks, err);
    channel_request_close(&q);
    return code;
}

/* The daemon's word is checked: pages outside of our mapping would end this process. */
static bool place_is_good(const struct hot *h, const struct local_place *p, uint32_t chunk)
{
    const struct cairn_catalog_shard *s = &h->run->restore->catalog.shards[h->shard];
    const struct cairn_chunk_range *c = &s->chunks[chunk];

    if (p->nparts == 0 || p->nparts != c->nparts || p->nparts > CAIRN_MAX_K)
        return false;
    for (uint32_t i = 0; i < p->nparts; i++)
        if (p->page[i] >= h->pages || p->len[i] != cairn_layout_part_len(&s->layout, c->first_part + i))
            return false;
    return true;
}

/* ---- one chunk ------------------------------------------------------------------------------- */

static bool is_whole_and_dense(const struct cairn_box_copy *c)
{
    int64_t expect = (int64_t)c->elem_size;

    for (uint32_t d = c->source.ndim; d-- > 0;) {
        if (c->box.offset[d] != c->source.offset[d] || c->box.length[d] != c->source.length[d] ||
            (c->box.length[d] > 1 && c->target_stride[d] != expect))
            return false;
        expect *= (int64_t)c->box.length[d];
    }
    return true;
}

/* Image bytes that go to memory as they are. */
struct stretch {
    uint64_t from, to;
    char *target; /* of byte from */
};

/* The piece's bytes in [begin, end) of the image; false: they do not lie side by side in the target. */
static bool stretch_of(const struct hot *h, const struct restore_piece *p, uint64_t begin, uint64_t end,
                       struct stretch *ret)
{
    struct cairn_box_copy c = piece_copy(h->run->restore, p);
    uint64_t first = c.image_offset, last = first + piece_slice(h->run->restore, p)->bytes;

    if (!is_whole_and_dense(&c))
        return false;
    char *target = c.target; /* of the element at the target's origin, which is before or at the slice's */
    for (uint32_t d = 0; d < c.source.ndim; d++)
        target += (int64_t)(c.source.offset[d] - c.target_origin[d]) * c.target_stride[d];
    ret->from = first > begin ? first : begin;
    ret->to = last < end ? last : end;
    if (ret->to < ret->from)
        ret->to = ret->from;
    ret->target = target + (ret->from - first);
    return true;
}

/* A part of a chunk, and what it lies in the arena as. */
struct hot_part {
    const char *page;
    uint32_t len;
    uint32_t bit;   /* in masks */
    uint64_t image; /* where it begins */
};

static void copy_stretch(const struct hot *h, const struct stretch *s, const struct hot_part *p, uint32_t at,
                         uint32_t len)
{
    uint64_t begin = p->image + at, end = begin + len;
    uint64_t from = s->from > begin ? s->from : begin, to = s->to < end ? s->to : end;

    if (from < to)
        copy_stream(h->path, s->target + (from - s->from), p->page + (from - p->image), to - from);
}

/* A few KiB at a time; what comes is asked for while they pass. False: some piece is not dense, nothing was read. */
static bool read_dense(const struct hot *h, const struct job *job, const struct hot_part *p, struct hash_stream *sum)
{
    const struct touch *t = &h->run->touches[job->first];
    struct stretch stretches[MANY_TOUCHES];
    uint32_t step = (uint32_t)copy_cached_bytes(h->path), ahead = (uint32_t)copy_cached_ahead(h->path);
    unsigned n = 0;

    if (job->n > MANY_TOUCHES)
        return false;
    for (size_t i = 0; i < job->n; i++)
        if (t[i].mask & p->bit &&
            !stretch_of(h, &h->run->restore->pieces[t[i].piece], p->image, p->image + p->len, &stretches[n++]))
            return false;
    for (uint32_t at = 0; at < p->len; at += step) {
        uint32_t len = p->len - at < step ? p->len - at : step;
        if (ahead && p->len - at > ahead)
            copy_prefetch(p->page + at + ahead, p->len - at - ahead < step ? p->len - at - ahead : step);
        hash_stream_add(sum, p->page + at, len);
        for (unsigned i = 0; i < n; i++)
            copy_stretch(h, &stretches[i], p, at, len);
    }
    return true;
}

/* Pieces of any form. */
static void read_any(const struct hot *h, const struct job *job, const struct hot_part *p, struct hash_stream *sum)
{
    const struct touch *t = &h->run->touches[job->first];
    uint32_t step = job->n > MANY_TOUCHES ? p->len : BLOCK_BYTES;

    for (uint32_t at = 0; at < p->len; at += step) {
        uint32_t len = p->len - at < step ? p->len - at : step;
        hash_stream_add(sum, p->page + at, len);
        for (size_t i = 0; i < job->n; i++) {
            const struct restore_piece *piece = &h->run->restore->pieces[t[i].piece];
            struct stretch s;
            if (!(t[i].mask & p->bit))
                continue;
            if (stretch_of(h, piece, p->image + at, p->image + at + len, &s)) {
                copy_stretch(h, &s, p, at, len);
            } else {
                struct cairn_box_copy c = piece_copy(h->run->restore, piece);
                cairn_box_copy_window(&c, p->page + at, p->image + at, len);
            }
        }
    }
}

static void read_part(const struct hot *h, const struct job *job, const struct local_place *place, uint32_t part,
                      struct hash_stream *sum)
{
    const struct touch *t = &h->run->touches[job->first];
    const struct cairn_chunk_range *c = &h->run->restore->catalog.shards[h->shard].chunks[t->chunk];
    struct hot_part p = {.page = arena_page(h->arena, place->page[part]),
                         .len = place->len[part],
                         .bit = 1u << part,
                         .image = ((uint64_t)c->first_part + part) * CAIRN_PART};

    if (!read_dense(h, job, &p, sum))
        read_any(h, job, &p, sum);
}

static bool read_chunk(struct hot *h, const struct job *job, struct hash_stream *sum)
{
    const struct local_place *p = &h->places.place[h->run->touches[job->first].chunk];

    if (!place_is_good(h, p, h->run->touches[job->first].chunk))
        return false;
    hash_stream_reset(sum);
    for (uint32_t i = 0; i < p->nparts; i++)
        read_part(h, job, p, i, sum);
    struct hash128 is = hash_stream_end(sum);
    return is.low == p->entry_low && is.high == p->entry_high;
}

/* ---- the crew -------------------------------------------------------------------------------- */

static uint64_t job_bytes(const struct run *run, const struct job *job)
{
    const struct touch *t = &run->touches[job->first];
    const struct cairn_catalog_shard *s = &run->restore->catalog.shards[t->shard];

    return (uint64_t)s->chunks[t->chunk].nparts * CAIRN_PART;
}

static void *hot_work(void *arg)
{
    struct hot *h = arg;
    struct run *run = h->run;
    struct hash_stream *sum = hash_stream_new();

    while (sum) {
        uint64_t i = __atomic_fetch_add(&h->next_job, 1, __ATOMIC_RELAXED);
        if (i >= run->njobs || clock_now_ns() > run->deadline_ns || __atomic_load_n(&run->stopped, __ATOMIC_RELAXED))
            break;
        struct job *job = &run->jobs[i];
        if (run->touches[job->first].shard != h->shard)
            continue;
        job->done = read_chunk(h, job, sum);
        uint64_t bytes = __atomic_add_fetch(&h->copied_bytes, job_bytes(run, job), __ATOMIC_RELAXED);
        if (pthread_equal(pthread_self(), h->reporter))
            run_report(run, bytes, false);
    }
    copy_fence();
    hash_stream_free(sum);
    return NULL;
}

/* What is not where it was may have been overwritten after it was checked. */
static void doubt_moved(struct hot *h, const struct places *now)
{
    for (uint64_t i = 0; i < h->run->njobs; i++) {
        struct job *job = &h->run->jobs[i];
        const struct touch *t = &h->run->touches[job->first];
        if (t->shard == h->shard && job->done &&
            (!now->place || memcmp(&now->place[t->chunk], &h->places.place[t->chunk], sizeof *now->place) != 0))
            job->done = false;
    }
}

static void hot_shard(struct run *run, const struct arena *arena, uint32_t shard, uint64_t njobs)
{
    struct hot h = {.run = run,
                    .arena = arena,
                    .pages = arena->page_bytes / CAIRN_PART,
                    .shard = shard,
                    .path = copy_best(),
                    .reporter = pthread_self()};
    CAIRN_CLEANUP(places_free) struct places now = {0};
    struct cairn_error err = CAIRN_ERROR_INIT;
    unsigned threads = run->restore->session->copy_threads;

    if (ask_places(run, shard, &h.places, &err) < 0)
        return;
    crew_run(hot_work, &h, njobs / JOBS_PER_THREAD < threads ? (unsigned)(njobs / JOBS_PER_THREAD) : threads);
    (void)ask_places(run, shard, &now, &err); /* without an answer nothing counts */
    doubt_moved(&h, &now);
    places_free(&h.places);
}

void run_hot(struct run *run)
{
    struct cairn_session *s = run->restore->session;
    struct arena *arena = NULL;
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (s->open.flags & CAIRN_OBSERVER || run->njobs == 0 ||
        session_hold_arena(s, run->restore->attachment, &arena, &err) < 0)
        return;
    for (uint64_t i = 0; i < run->njobs;) { /* jobs are ordered by shard */
        uint32_t shard = run->touches[run->jobs[i].first].shard;
        uint64_t first = i;
        while (i < run->njobs && run->touches[run->jobs[i].first].shard == shard)
            i++;
        if (run->restore->catalog.shards[shard].rank == s->open.rank)
            hot_shard(run, arena, shard, i - first);
    }
    session_release_arena(s, arena);
}
