/* SPDX-License-Identifier: Apache-2.0 */
/* A restore from this process's own arena: one copy, straight from its pages to the tensors.
 *
 *     PLACES --> for each chunk: a few KiB from memory through the checksum, then from cache to the target, ...
 *                the chunk's checksum is right --> done
 *                it is not                     --> the daemon reads it from the peers and overwrites the target
 *     PLACES again: a chunk that is not where it was may have been overwritten between checksum and copy --> the same
 *
 * To a device the page itself is copied, which is pinned, while this thread makes the checksum. PLACES is asked again,
 * and the daemon overwrites what was wrong, when all such copies have ended.
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
    pthread_mutex_t lock;
    struct cairn_error failure; /* the first of a device, with a code; under the lock */
};

/* One thread of the crew. */
struct worker {
    struct hot *hot;
    struct hash_stream *sum;
    struct device_loads loads;
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

static bool is_for_host(const struct hot *h, const struct touch *t, const struct hot_part *p)
{
    return t->mask & p->bit && !piece_device(h->run->restore, &h->run->restore->pieces[t->piece]);
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
        if (is_for_host(h, &t[i], p) &&
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
            if (!is_for_host(h, &t[i], p))
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

/* What goes to devices is on its way when this returns. */
static int load_part(struct worker *w, const struct job *job, const struct hot_part *p, struct cairn_error *err)
{
    struct cairn_restore *r = w->hot->run->restore;
    const struct touch *t = &w->hot->run->touches[job->first];
    int code = 0;

    for (size_t i = 0; i < job->n && code == 0; i++) {
        const struct restore_piece *piece = &r->pieces[t[i].piece];
        struct device *device = piece_device(r, piece);
        if (!(t[i].mask & p->bit) || !device)
            continue;
        struct cairn_box_copy c = piece_copy(r, piece);
        code = device_loads_put(&w->loads, device, &c, p->page, p->image, p->len, err);
    }
    return code;
}

static int read_part(struct worker *w, const struct job *job, const struct local_place *place, uint32_t part,
                     struct cairn_error *err)
{
    const struct hot *h = w->hot;
    const struct touch *t = &h->run->touches[job->first];
    const struct cairn_chunk_range *c = &h->run->restore->catalog.shards[h->shard].chunks[t->chunk];
    struct hot_part p = {.page = arena_page(h->arena, place->page[part]),
                         .len = place->len[part],
                         .bit = 1u << part,
                         .image = ((uint64_t)c->first_part + part) * CAIRN_PART};
    int code = load_part(w, job, &p, err);

    if (code == 0 && !read_dense(h, job, &p, w->sum))
        read_any(h, job, &p, w->sum);
    return code;
}

/* 1: it is what it should be; 0: the daemon has to read it; negative: a device failed. */
static int read_chunk(struct worker *w, const struct job *job, struct cairn_error *err)
{
    const struct hot *h = w->hot;
    uint32_t chunk = h->run->touches[job->first].chunk;
    const struct local_place *p = &h->places.place[chunk];
    int code = 0;

    if (!place_is_good(h, p, chunk))
        return 0;
    hash_stream_reset(w->sum);
    for (uint32_t i = 0; i < p->nparts && code == 0; i++)
        code = read_part(w, job, p, i, err);
    if (code < 0)
        return code;
    struct hash128 is = hash_stream_end(w->sum);
    return is.low == p->entry_low && is.high == p->entry_high;
}

/* ---- the crew -------------------------------------------------------------------------------- */

static uint64_t job_bytes(const struct run *run, const struct job *job)
{
    const struct touch *t = &run->touches[job->first];
    const struct cairn_catalog_shard *s = &run->restore->catalog.shards[t->shard];

    return (uint64_t)s->chunks[t->chunk].nparts * CAIRN_PART;
}

static void note_failure(struct hot *h, const struct cairn_error *why)
{
    pthread_mutex_lock(&h->lock);
    if (h->failure.code == 0)
        cairn_error_copy(&h->failure, why);
    pthread_mutex_unlock(&h->lock);
    __atomic_store_n(&h->next_job, h->run->njobs, __ATOMIC_RELAXED); /* nobody takes another */
}

/* The next job of the shard; NULL: no more. */
static struct job *take_job(struct hot *h)
{
    struct run *run = h->run;

    for (;;) {
        uint64_t i = __atomic_fetch_add(&h->next_job, 1, __ATOMIC_RELAXED);
        if (i >= run->njobs || clock_now_ns() > run->deadline_ns || __atomic_load_n(&run->stopped, __ATOMIC_RELAXED))
            return NULL;
        if (run->touches[run->jobs[i].first].shard == h->shard)
            return &run->jobs[i];
    }
}

static int read_chunks(struct worker *w, struct cairn_error *err)
{
    struct hot *h = w->hot;
    struct job *job;

    while ((job = take_job(h))) {
        int r = read_chunk(w, job, err);
        if (r < 0)
            return r;
        job->done = r;
        uint64_t bytes = __atomic_add_fetch(&h->copied_bytes, job_bytes(h->run, job), __ATOMIC_RELAXED);
        if (pthread_equal(pthread_self(), h->reporter))
            run_report(h->run, bytes, false);
    }
    return device_loads_finish(&w->loads, err);
}

static void *hot_work(void *arg)
{
    struct worker w = {.hot = arg, .sum = hash_stream_new()};
    struct cairn_error why = CAIRN_ERROR_INIT;

    device_loads_init(&w.loads, w.hot->run->latest_ns);
    if (w.sum && read_chunks(&w, &why) < 0)
        note_failure(w.hot, &why);
    copy_fence();
    device_loads_free(&w.loads);
    hash_stream_free(w.sum);
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

static int hot_shard(struct run *run, const struct arena *arena, uint32_t shard, uint64_t njobs,
                     struct cairn_error *ret_err)
{
    struct hot h = {.run = run,
                    .arena = arena,
                    .pages = arena->page_bytes / CAIRN_PART,
                    .shard = shard,
                    .path = copy_best(),
                    .reporter = pthread_self(),
                    .lock = PTHREAD_MUTEX_INITIALIZER,
                    .failure = CAIRN_ERROR_INIT};
    CAIRN_CLEANUP(places_free) struct places now = {0};
    struct cairn_error err = CAIRN_ERROR_INIT;
    unsigned threads = run->restore->session->copy_threads;

    if (ask_places(run, shard, &h.places, &err) < 0)
        return 0;
    crew_run(hot_work, &h, njobs / JOBS_PER_THREAD < threads ? (unsigned)(njobs / JOBS_PER_THREAD) : threads);
    (void)ask_places(run, shard, &now, &err); /* without an answer nothing counts */
    doubt_moved(&h, &now);
    places_free(&h.places);
    pthread_mutex_destroy(&h.lock);
    if (h.failure.code == 0)
        return 0;
    cairn_error_copy(ret_err, &h.failure);
    return cairn_wrap(ret_err, h.failure.code, "restore from this process's own arena");
}

/* Without it the plugin copies through memory of its own. */
static void pin_for_targets(const struct cairn_restore *r, struct arena *arena)
{
    const struct device *last = NULL;

    for (uint32_t i = 0; i < r->ntargets; i++) {
        if (r->targets[i].device && r->targets[i].device != last)
            (void)device_pin_arena(r->targets[i].device, arena, NULL);
        last = r->targets[i].device;
    }
}

int run_hot(struct run *run, struct cairn_error *err)
{
    struct cairn_session *s = run->restore->session;
    struct arena *arena = NULL;
    int r = 0;

    if (s->open.flags & CAIRN_OBSERVER || run->njobs == 0 ||
        session_hold_arena(s, run->restore->attachment, &arena, NULL) < 0)
        return 0;
    pin_for_targets(run->restore, arena);
    for (uint64_t i = 0; i < run->njobs && r == 0;) { /* jobs are ordered by shard */
        uint32_t shard = run->touches[run->jobs[i].first].shard;
        uint64_t first = i;
        while (i < run->njobs && run->touches[run->jobs[i].first].shard == shard)
            i++;
        if (run->restore->catalog.shards[shard].rank == s->open.rank)
            r = hot_shard(run, arena, shard, i - first, err);
    }
    session_release_arena(s, arena);
    return r;
}
