/* SPDX-License-Identifier: Apache-2.0 */
/* Reading: the pieces are noted at every chunk that they touch; what lies in our own arena is copied from there
 * (restore_hot.c); the other chunks are read in order, as many at once as the window
 * has slots, and each is copied out as it comes.
 *
 *     slot: free --READ--> busy --READ_DONE, copied out--> free
 *                            \--the run failed meanwhile--> busy, until the next run or free has seen its answer
 *
 * The last line is why a slot outlives its run: the daemon may still write to its part of the window.
 */
#include <stdlib.h>
#include <string.h>

#include "client/restore_run.h"
#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/units.h"

#define PROGRESS_NS ((int64_t)100 * 1000000)

/* ---- the plan -------------------------------------------------------------------------------- */

static int push_touch(struct run *run, const struct touch *t, struct cairn_error *err)
{
    if (run->ntouches == run->touches_room) {
        size_t room = run->touches_room ? 2 * run->touches_room : 256;
        struct touch *more = realloc(run->touches, room * sizeof(*more));
        if (!more)
            return cairn_fail(err, CAIRN_E_NOMEM, "allocate %zu places", room);
        run->touches = more;
        run->touches_room = room;
    }
    run->touches[run->ntouches++] = *t;
    return 0;
}

/* The bits of the chunk's parts among [first, last]. */
static uint32_t parts_mask(struct cairn_chunk_range c, uint32_t first, uint32_t last)
{
    uint32_t mask = 0;

    for (uint32_t i = 0; i < c.nparts; i++)
        if (c.first_part + i >= first && c.first_part + i <= last)
            mask |= 1u << i;
    return mask;
}

static int touch_chunks(struct run *run, size_t piece, struct cairn_error *err)
{
    struct restore_piece *p = &run->restore->pieces[piece];
    const struct cairn_catalog_shard *shard = &run->restore->catalog.shards[p->shard];
    struct cairn_box_copy copy = piece_copy(run->restore, p);
    uint64_t begin, end;
    int r = 0;

    cairn_box_copy_span(&copy, &begin, &end);
    p->chunks = p->chunks_done = 0;
    if (begin == end)
        return 0;
    uint32_t first = (uint32_t)(begin / CAIRN_PART), last = (uint32_t)((end - 1) / CAIRN_PART);
    for (uint32_t c = cairn_catalog_chunk_of(shard, first);
         r == 0 && c < shard->nchunks && shard->chunks[c].first_part <= last; c++) {
        struct touch t = {p->shard, c, parts_mask(shard->chunks[c], first, last), piece};
        r = push_touch(run, &t, err);
        p->chunks++;
    }
    return r;
}

static int compare_touches(const void *a, const void *b)
{
    const struct touch *x = a, *y = b;

    if (x->shard != y->shard)
        return x->shard < y->shard ? -1 : 1;
    if (x->chunk != y->chunk)
        return x->chunk < y->chunk ? -1 : 1;
    return x->piece < y->piece ? -1 : x->piece > y->piece;
}

static bool same_chunk(const struct touch *a, const struct touch *b)
{
    return a->shard == b->shard && a->chunk == b->chunk;
}

static int make_plan(struct run *run, struct cairn_error *err)
{
    struct cairn_restore *r = run->restore;
    int code = 0;

    for (size_t i = 0; i < r->npieces && code == 0; i++) {
        run->total_bytes += r->pieces[i].bytes;
        code = touch_chunks(run, i, err);
    }
    if (code < 0 || run->ntouches == 0)
        return code;
    qsort(run->touches, run->ntouches, sizeof(*run->touches), compare_touches);
    run->jobs = malloc(run->ntouches * sizeof(*run->jobs));
    if (!run->jobs)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate %zu reads", run->ntouches);
    for (size_t i = 0; i < run->ntouches; i++) {
        if (i == 0 || !same_chunk(&run->touches[i - 1], &run->touches[i]))
            run->jobs[run->njobs++] = (struct job){.first = i};
        run->jobs[run->njobs - 1].n++;
        run->jobs[run->njobs - 1].mask |= run->touches[i].mask;
    }
    return 0;
}

/* ---- one chunk ------------------------------------------------------------------------------- */

static int wrap_read(const struct run *run, uint64_t job, int code, struct cairn_error *err)
{
    const struct cairn_restore *r = run->restore;
    const struct touch *t = &run->touches[run->jobs[job].first];
    const struct cairn_slice *s = piece_slice(r, &r->pieces[t->piece]);

    return cairn_wrap(err, code, "restore tensor \"%.200s\" from chunk %u of rank %u", s->name, t->chunk,
                      r->catalog.shards[t->shard].rank);
}

static int ask(struct run *run, uint32_t slot, struct cairn_error *err)
{
    struct cairn_restore *r = run->restore;
    struct restore_slot *s = &r->slots[slot];
    const struct job *job = &run->jobs[run->next_job];
    const struct touch *t = &run->touches[job->first];
    struct local_read m = {.restore = r->id,
                           .shard = t->shard,
                           .chunk = t->chunk,
                           .part_mask = job->mask,
                           .slot = slot,
                           .timeout_ms = deadline_left_ms(run->deadline_ns)};

    local_header_init(&m.h, LOCAL_READ, sizeof(m), 0);
    s->request = (struct channel_request){.expect = LOCAL_READ_DONE, .answer = &s->answer, .room = sizeof(s->answer)};
    int code = channel_send(r->attachment->channel, &s->request, &m.h, -1, run->deadline_ns, err);
    if (code < 0)
        return wrap_read(run, run->next_job, code, err);
    s->busy = true;
    s->job = run->next_job++;
    run->nbusy++;
    return 0;
}

static int ask_for_more(struct run *run, struct cairn_error *err)
{
    int code = 0;

    for (uint32_t i = 0; i < run->restore->nslots && run->next_job < run->njobs && code == 0; i++)
        if (!run->restore->slots[i].busy)
            code = ask(run, i, err);
    return code;
}

/* Copies what arrived in neighbouring parts [first, first + n) of the slot. The window is no pinned memory: what goes
 * to a device has been read when this returns, too, and the slot is free. */
static int copy_parts(struct run *run, uint32_t slot, uint32_t first, uint32_t n, struct cairn_error *err)
{
    struct cairn_restore *r = run->restore;
    const struct job *job = &run->jobs[r->slots[slot].job];
    const struct touch *t = &run->touches[job->first];
    const struct cairn_chunk_range *chunk = &r->catalog.shards[t->shard].chunks[t->chunk];
    const char *src = r->window.base + ((uint64_t)slot * r->slot_parts + first) * CAIRN_PART;
    uint64_t begin = ((uint64_t)chunk->first_part + first) * CAIRN_PART;
    int code = 0;

    for (size_t i = 0; i < job->n && code == 0; i++) {
        const struct restore_piece *piece = &r->pieces[t[i].piece];
        struct cairn_box_copy copy = piece_copy(r, piece);
        struct device *device = piece_device(r, piece);
        if (device)
            code = device_loads_put(&run->loads, device, &copy, src, begin, n * CAIRN_PART, err);
        else
            cairn_box_copy_window(&copy, src, begin, n * CAIRN_PART);
    }
    return code;
}

static int copy_chunk(struct run *run, uint32_t slot, struct cairn_error *err)
{
    uint32_t mask = run->jobs[run->restore->slots[slot].job].mask;
    int code = 0;

    for (uint32_t first = 0; mask >> first && code == 0;) {
        uint32_t n = 0;
        while (first + n < 32 && (mask >> (first + n) & 1))
            n++;
        if (n)
            code = copy_parts(run, slot, first, n, err);
        first += n + 1; /* the next bit is clear, if there is one */
        if (first >= 32)
            break;
    }
    return code;
}

/* A piece's bytes count evenly over the chunks that it needs. */
static void count_done(struct run *run, const struct job *job)
{
    for (size_t i = job->first; i < job->first + job->n; i++) {
        struct restore_piece *p = &run->restore->pieces[run->touches[i].piece];
        uint64_t share = p->bytes / p->chunks;
        p->chunks_done++;
        run->done_bytes += p->chunks_done < p->chunks ? share : p->bytes - share * (p->chunks - 1);
    }
}

static int take(struct run *run, uint32_t slot, struct cairn_error *err)
{
    struct restore_slot *s = &run->restore->slots[slot];

    s->busy = false;
    run->nbusy--;
    if (s->request.code < 0) {
        cairn_error_copy(err, &s->request.error);
        return wrap_read(run, s->job, s->request.code, err);
    }
    if (s->answer.slot != slot)
        return channel_break(run->restore->attachment->channel, err, "READ_DONE for another slot");
    int code = copy_chunk(run, slot, err);
    if (code < 0)
        return wrap_read(run, s->job, code, err);
    count_done(run, &run->jobs[s->job]);
    return 0;
}

/* ---- all of them ----------------------------------------------------------------------------- */

static bool any_done(const void *arg)
{
    const struct cairn_restore *r = arg;

    for (uint32_t i = 0; i < r->nslots; i++)
        if (r->slots[i].busy && r->slots[i].request.done)
            return true;
    return false;
}

void run_report(struct run *run, uint64_t more_bytes, bool at_end)
{
    int64_t now = clock_now_ns();
    uint64_t done = run->done_bytes + more_bytes;

    if (!run->progress || run->stopped || (!at_end && now < run->next_report_ns))
        return;
    run->next_report_ns = now + PROGRESS_NS;
    if (run->progress(run->progress_arg, done < run->total_bytes ? done : run->total_bytes, run->total_bytes) != 0)
        __atomic_store_n(&run->stopped, true, __ATOMIC_RELAXED);
}

static int check_stopped(const struct run *run, struct cairn_error *err)
{
    return run->stopped ? cairn_fail(err, CAIRN_E_INTR, "read %llu bytes: the caller ended the restore",
                                     (unsigned long long)run->total_bytes)
                        : 0;
}

static int take_done(struct run *run, struct cairn_error *err)
{
    struct cairn_restore *r = run->restore;
    int code = 0;

    for (uint32_t i = 0; i < r->nslots && code == 0; i++)
        if (r->slots[i].busy && channel_is_done(r->attachment->channel, &r->slots[i].request)) {
            code = take(run, i, err);
            run_report(run, 0, false);
        }
    return code;
}

static uint64_t oldest_job(const struct run *run)
{
    uint64_t oldest = run->njobs;

    for (uint32_t i = 0; i < run->restore->nslots; i++)
        if (run->restore->slots[i].busy && run->restore->slots[i].job < oldest)
            oldest = run->restore->slots[i].job;
    return oldest;
}

/* Waits for an answer, waking up for the progress. */
static int wait_for_one(struct run *run, struct cairn_error *err)
{
    struct cairn_restore *r = run->restore;
    bool report_first = run->progress && run->next_report_ns < run->latest_ns;
    int64_t until_ns = report_first ? run->next_report_ns : run->latest_ns;
    int code = channel_wait(r->attachment->channel, any_done, r, false, until_ns, err);

    run_report(run, 0, false);
    if (code == CAIRN_E_TIMEOUT && clock_now_ns() < run->latest_ns)
        return 0;
    return code < 0 ? wrap_read(run, oldest_job(run), code, err) : 0;
}

/* Jobs that are done leave the plan. */
static void settle_hot(struct run *run)
{
    uint64_t left = 0;

    for (uint64_t i = 0; i < run->njobs; i++) {
        if (run->jobs[i].done)
            count_done(run, &run->jobs[i]);
        else
            run->jobs[left++] = run->jobs[i];
    }
    run->njobs = left;
}

static int read_all(struct run *run, struct cairn_error *err)
{
    int code = run_hot(run, err);
    settle_hot(run);
    if (code == 0)
        code = check_stopped(run, err);
    if (code == 0)
        code = ask_for_more(run, err);

    while (code == 0 && run->nbusy) {
        code = wait_for_one(run, err);
        if (code == 0)
            code = take_done(run, err);
        if (code == 0)
            code = check_stopped(run, err);
        if (code == 0)
            code = ask_for_more(run, err);
    }
    return code == 0 ? device_loads_finish(&run->loads, err) : code;
}

static bool all_done(const void *arg)
{
    const struct cairn_restore *r = arg;

    for (uint32_t i = 0; i < r->nslots; i++)
        if (r->slots[i].busy && !r->slots[i].request.done)
            return false;
    return true;
}

/* The slots that a failed run left busy. */
static int settle(struct run *run, struct cairn_error *err)
{
    struct cairn_restore *r = run->restore;
    int code = channel_wait(r->attachment->channel, all_done, r, false, run->deadline_ns, err);

    for (uint32_t i = 0; i < r->nslots && code == 0; i++)
        r->slots[i].busy = false;
    return code < 0 ? cairn_wrap(err, code, "wait for the reads of an earlier run") : 0;
}

static void run_free(struct run *run)
{
    device_loads_free(&run->loads);
    free(run->touches);
    free(run->jobs);
}

int cairn_restore_run(struct cairn_restore *restore, uint32_t timeout_ms, cairn_progress_fn progress, void *arg,
                      struct cairn_error *err)
{
    CAIRN_CLEANUP(run_free)
    struct run run = {
        .restore = restore, .deadline_ns = deadline_in_ms(timeout_ms), .progress = progress, .progress_arg = arg};

    if (!restore)
        return cairn_fail(err, CAIRN_E_INVAL, "there is no restore");
    int r = session_check(restore->session, err);
    if (r < 0)
        return r;
    run.latest_ns = deadline_after_daemon(run.deadline_ns, timeout_ms);
    run.next_report_ns = clock_now_ns() + PROGRESS_NS;
    device_loads_init(&run.loads, run.latest_ns);
    r = settle(&run, err);
    if (r == 0)
        r = make_plan(&run, err);
    if (r == 0)
        r = read_all(&run, err);
    if (r < 0)
        return r;
    restore->npieces = 0;
    restore->ntargets = 0;
    run_report(&run, 0, true);
    return 0;
}
