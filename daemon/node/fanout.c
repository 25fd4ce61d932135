/* SPDX-License-Identifier: Apache-2.0 */
/* An entry is a chunk, some of whose parts are there:
 *
 *                 a reader's parts are missing             they are there
 *     IDLE ---------------------------------> GATHERING -----------------> COPYING --all copied--> IDLE, to be evicted
 *                                                 |  ^                         |
 *                              the gather failed  |  '- readers want others ---'
 *                                                 '--> all its readers have failed with its reason -> IDLE, empty
 *
 * A gather that rebuilds writes to every part of the chunk: so an entry gathers or copies, never both.
 *
 * A reader's deadline is its own: one that is over does not end the gather that others wait for, and a gather that ran
 * into its deadline is begun again for those who have time left. Memory comes from idle entries, the least recently
 * used first; readers that find none wait in line, for a while: then each gathers for itself, as if it were alone. An
 * entry holds its checkpoint, since whoever started its gather may be gone before that ends. */
#include "daemon/node/fanout.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/units.h"
#include "daemon/node/link.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define BUCKETS 256
#define FORGET_AFTER_MS 5000 /* of ranks that restore one after the other */

struct fanout_entry {
    struct fanout *fanout;
    struct list link; /* in its bucket */
    struct list idle; /* in fanout.idle, newest last; in none while it is in use */
    struct checkpoint *checkpoint;
    const struct manifest *manifest;
    const struct chunk_record *chunk;
    char *plain;    /* k parts */
    uint32_t parts; /* that plain has room for */
    uint32_t have;  /* bit i: part i is there */
    struct list readers;
    unsigned ncopying;
    struct gather gather;
    bool gathering, cancelled;
    struct loop_post step;
    bool stepping;
};

struct fanout {
    struct links *links;
    struct loop *loop; /* theirs; it outlives them */
    uint64_t max_bytes, used_bytes;
    uint32_t patience_ms; /* of readers in line */
    struct list bucket[BUCKETS];
    struct list idle;
    struct list queue; /* readers that wait for memory */
    struct loop_post pump;
    bool pumping;
    bool forgetful; /* nobody restores: what is not in use is not kept */
    struct loop_timer forget;
    unsigned nbusy; /* entries in use */
    struct fanout_counts counts;
};

static void step_soon(struct fanout_entry *e);

/* ---- entries --------------------------------------------------------------------------------- */

static struct list *bucket_of(struct fanout *f, const struct manifest *m, const struct chunk_record *c)
{
    uint64_t x = m->step * 0x9e3779b97f4a7c15ull ^ (uint64_t)m->rank << 32 ^ c->first_part;

    return &f->bucket[(x * 0xbf58476d1ce4e5b9ull) >> 56];
}

static bool is_of(const struct fanout_entry *e, const struct manifest *m, const struct chunk_record *c)
{
    return e->chunk->first_part == c->first_part && e->manifest->rank == m->rank && e->manifest->step == m->step &&
           e->manifest->incarnation == m->incarnation && e->chunk->attempt == c->attempt && e->chunk->k == c->k &&
           e->chunk->entry.low == c->entry.low && e->chunk->entry.high == c->entry.high &&
           strcmp(e->manifest->job, m->job) == 0;
}

static struct fanout_entry *entry_find(struct fanout *f, const struct manifest *m, const struct chunk_record *c)
{
    list_for_each (it, bucket_of(f, m, c)) {
        struct fanout_entry *e = container_of(it, struct fanout_entry, link);
        if (is_of(e, m, c))
            return e;
    }
    return NULL;
}

static void entry_free(struct fanout_entry *e)
{
    struct fanout *f = e->fanout;

    list_remove(&e->link);
    list_remove(&e->idle);
    checkpoint_unref(e->checkpoint);
    if (e->plain) {
        munmap(e->plain, (size_t)e->parts * CAIRN_PART);
        f->used_bytes -= (uint64_t)e->parts * CAIRN_PART;
    }
    free(e);
}

/* Memory for so many parts: an idle entry's as it is, where there is one of the same size (fresh pages are slow). */
static char *memory_take(struct fanout *f, uint32_t parts)
{
    uint64_t bytes = (uint64_t)parts * CAIRN_PART;

    while (f->used_bytes + bytes > f->max_bytes && !list_empty(&f->idle)) {
        struct fanout_entry *oldest = list_first(&f->idle, struct fanout_entry, idle);
        char *plain = oldest->parts == parts ? TAKE_PTR(oldest->plain) : NULL;
        entry_free(oldest);
        if (plain)
            return plain; /* used_bytes has it already */
    }
    if (f->used_bytes + bytes > f->max_bytes)
        return NULL;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    (void)madvise(p, bytes, MADV_HUGEPAGE); /* advice: a kernel without them is slower, not wrong */
    f->used_bytes += bytes;
    return p;
}

static struct fanout_entry *entry_new(struct fanout *f, const struct fanout_read *r, const struct chunk_record *c)
{
    struct fanout_entry *e = calloc(1, sizeof *e);

    if (!e)
        return NULL;
    e->fanout = f;
    list_init(&e->idle);
    list_init(&e->link);
    list_init(&e->readers);
    e->plain = memory_take(f, c->k);
    if (!e->plain) {
        free(e);
        return NULL;
    }
    e->parts = c->k;
    e->checkpoint = r->checkpoint;
    e->checkpoint->refs++;
    e->manifest = r->manifest;
    e->chunk = c;
    list_push_back(bucket_of(f, r->manifest, c), &e->link);
    f->nbusy++;
    return e;
}

static void pump(struct loop_post *post);

static void pump_soon(struct fanout *f)
{
    if (f->pumping || list_empty(&f->queue))
        return;
    f->pumping = true;
    f->pump = (struct loop_post){.run = pump, .arg = f};
    loop_defer(f->loop, &f->pump);
}

static void entry_rest(struct fanout_entry *e)
{
    struct fanout *f = e->fanout;

    f->nbusy--;
    list_push_back(&f->idle, &e->idle);
    if (!e->have || f->forgetful)
        entry_free(e);
    pump_soon(f);
}

/* ---- readers --------------------------------------------------------------------------------- */

static void reader_end(struct fanout_read *r, int code, const struct cairn_error *err)
{
    list_remove(&r->link);
    r->entry = NULL;
    loop_timer_cancel(r->fanout->loop, &r->timer);
    r->done(r, code, err);
}

static void copy_run(struct worker_job *job)
{
    struct fanout_read *r = job->arg;
    const struct fanout_entry *e = r->entry;

    for (unsigned i = 0; i < e->chunk->k; i++)
        if (r->part_mask & 1u << i)
            memcpy(r->target + i * CAIRN_PART, e->plain + i * CAIRN_PART, e->chunk->part[i].plain_len);
}

static uint64_t bytes_of(const struct chunk_record *c, uint32_t mask)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < c->k; i++)
        bytes += mask & 1u << i ? c->part[i].plain_len : 0;
    return bytes;
}

static void copied(struct worker_job *job)
{
    struct fanout_read *r = job->arg;
    struct fanout_entry *e = r->entry;
    struct cairn_error err = CAIRN_ERROR_INIT;

    e->ncopying--;
    r->copying = false;
    r->shared = !r->started_it;
    if (r->shared && !r->left) {
        e->fanout->counts.shared_chunks++;
        e->fanout->counts.shared_bytes += bytes_of(e->chunk, r->part_mask);
    }
    step_soon(e);
    if (r->left)
        reader_end(r, cairn_fail(&err, CAIRN_E_ABORTED, "the read was cancelled"), &err);
    else
        reader_end(r, 0, NULL);
}

static void copy_start(struct fanout_read *r)
{
    struct fanout_entry *e = r->entry;

    e->ncopying++;
    r->copying = true;
    r->copy = (struct worker_job){.run = copy_run, .done = copied, .arg = r};
    workers_submit(links_workers(e->fanout->links), &r->copy);
}

static uint32_t ms_left(const struct fanout_read *r)
{
    uint64_t now = loop_now_ns(r->fanout->loop);

    return r->deadline_ns > now ? (uint32_t)((r->deadline_ns - now) / 1000000) + 1 : 0;
}

static void gathered_alone(struct gather *g, int code, const struct cairn_error *err)
{
    struct fanout_read *r = g->arg;

    r->gathering = false;
    reader_end(r, code, err);
}

static void gather_alone(struct fanout_read *r)
{
    list_remove(&r->link);
    r->alone = (struct gather){.manifest = r->manifest,
                               .chunk = r->chunk,
                               .part_mask = r->part_mask,
                               .target = r->target,
                               .timeout_ms = ms_left(r),
                               .done = gathered_alone,
                               .arg = r};
    r->gathering = true;
    gather_start(r->fanout->links, &r->alone);
}

static void reader_timer(struct loop_timer *t)
{
    struct fanout_read *r = t->arg;
    struct fanout_entry *e = r->entry;
    struct cairn_error err = CAIRN_ERROR_INIT;
    char why[GATHER_WHY] = "no memory for it became free, see [node] fanout_mib";

    if (r->copying)
        return; /* it is there: a copy does not wait for anybody */
    if (!e && ms_left(r) > 1) {
        gather_alone(r);
        return;
    }
    if (e)
        gather_why(&e->gather, why);
    cairn_fail(&err, CAIRN_E_TIMEOUT, "the chunk at part %u of rank %u was not read within %u ms: %s",
               r->manifest->chunks[r->chunk].first_part, r->manifest->rank, r->timeout_ms, why);
    if (e)
        step_soon(e);
    reader_end(r, CAIRN_E_TIMEOUT, &err);
}

/* ---- an entry's turn ------------------------------------------------------------------------- */

/* A gather's failure is that of all who wait, but for a deadline that was not theirs. */
static void fail_readers(struct fanout_entry *e, int code, const struct cairn_error *err)
{
    struct list readers = LIST_INIT(readers);

    while (!list_empty(&e->readers)) {
        struct list *it = e->readers.next;
        list_remove(it);
        list_push_back(&readers, it);
    }
    while (!list_empty(&readers)) {
        struct fanout_read *r = list_first(&readers, struct fanout_read, link);
        list_remove(&r->link);
        if (e->cancelled || (code == CAIRN_E_TIMEOUT && ms_left(r) > 1))
            list_push_back(&e->readers, &r->link);
        else
            reader_end(r, code, err);
    }
}

static void gathered(struct gather *g, int code, const struct cairn_error *err)
{
    struct fanout_entry *e = g->arg;

    e->gathering = false;
    if (code == 0)
        e->have |= g->part_mask;
    else
        e->have = 0; /* what a rebuilding gather has written to is not known */
    step_soon(e);
    if (code < 0)
        fail_readers(e, code, err);
    e->cancelled = false;
}

static void gather_begin(struct fanout_entry *e)
{
    uint32_t mask = 0, timeout_ms = 1;

    list_for_each (it, &e->readers) {
        struct fanout_read *r = container_of(it, struct fanout_read, link);
        if (mask == 0)
            r->started_it = true;
        mask |= r->part_mask & ~e->have;
        timeout_ms = ms_left(r) > timeout_ms ? ms_left(r) : timeout_ms;
    }
    /* A base is read whole for any part: so all of them are decoded while it is there. */
    if (e->chunk->delta.depth > e->chunk->same)
        mask = (1u << e->chunk->k) - 1;
    e->gather = (struct gather){.manifest = e->manifest,
                                .chunk = (uint32_t)(e->chunk - e->manifest->chunks),
                                .part_mask = mask,
                                .target = e->plain,
                                .timeout_ms = timeout_ms,
                                .done = gathered,
                                .arg = e};
    e->gathering = true;
    gather_start(e->fanout->links, &e->gather);
}

static void step(struct loop_post *post)
{
    struct fanout_entry *e = post->arg;

    e->stepping = false;
    if (e->gathering) {
        if (list_empty(&e->readers) && !e->cancelled) {
            e->cancelled = true;
            gather_cancel(e->fanout->links, &e->gather);
        }
        return;
    }
    list_for_each (it, &e->readers) {
        struct fanout_read *r = container_of(it, struct fanout_read, link);
        if (!r->copying && !(r->part_mask & ~e->have))
            copy_start(r);
    }
    if (e->ncopying)
        return; /* its end goes on here */
    if (list_empty(&e->readers))
        entry_rest(e);
    else
        gather_begin(e);
}

static void step_soon(struct fanout_entry *e)
{
    if (e->stepping)
        return;
    e->stepping = true;
    e->step = (struct loop_post){.run = step, .arg = e};
    loop_defer(e->fanout->loop, &e->step);
}

/* ---- the interface --------------------------------------------------------------------------- */

/* Joins the chunk's entry, or makes one. False when there is no memory for it now. */
static bool reader_join(struct fanout *f, struct fanout_read *r)
{
    const struct chunk_record *c = &r->manifest->chunks[r->chunk];
    struct fanout_entry *e = entry_find(f, r->manifest, c);

    if (!e)
        e = entry_new(f, r, c);
    else if (!list_empty(&e->idle))
        f->nbusy++;
    if (!e)
        return false;
    list_remove(&e->idle);
    r->entry = e;
    loop_timer_set(f->loop, &r->timer, r->deadline_ns);
    list_remove(&r->link);
    list_push_back(&e->readers, &r->link);
    step_soon(e);
    return true;
}

static void pump(struct loop_post *post)
{
    struct fanout *f = post->arg;

    f->pumping = false;
    while (!list_empty(&f->queue))
        if (!reader_join(f, list_first(&f->queue, struct fanout_read, link)))
            return;
}

bool fanout_has_room(const struct fanout *f, uint32_t parts)
{
    return (uint64_t)parts * CAIRN_PART <= f->max_bytes;
}

bool fanout_knows(struct fanout *f, const struct manifest *m, uint32_t chunk)
{
    return entry_find(f, m, &m->chunks[chunk]) != NULL;
}

void fanout_start(struct fanout *f, struct fanout_read *r)
{
    f->forgetful = false;
    loop_timer_cancel(f->loop, &f->forget);
    r->fanout = f;
    r->entry = NULL;
    r->copying = r->left = r->shared = r->started_it = r->gathering = false;
    r->timeout_ms = r->timeout_ms ? r->timeout_ms : 30000;
    r->deadline_ns = loop_now_ns(f->loop) + r->timeout_ms * (uint64_t)1000000;
    list_init(&r->link);
    r->timer = (struct loop_timer){.fire = reader_timer, .arg = r};
    loop_timer_set(f->loop, &r->timer, r->deadline_ns);
    if (!list_empty(&f->queue) || !reader_join(f, r)) {
        if (r->timeout_ms > f->patience_ms)
            loop_timer_after(f->loop, &r->timer, f->patience_ms);
        list_push_back(&f->queue, &r->link);
        pump_soon(f); /* idle entries may have the room already */
    }
}

static void leave(struct loop_post *post)
{
    struct fanout_read *r = post->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;

    reader_end(r, cairn_fail(&err, CAIRN_E_ABORTED, "the read was cancelled"), &err);
}

void fanout_cancel(struct fanout_read *r)
{
    if (r->left)
        return;
    r->left = true;
    loop_timer_cancel(r->fanout->loop, &r->timer);
    if (r->copying)
        return; /* its end says so */
    if (r->gathering) {
        gather_cancel(r->fanout->links, &r->alone);
        return;
    }
    list_remove(&r->link);
    if (r->entry)
        step_soon(r->entry);
    else
        pump_soon(r->fanout);
    r->entry = NULL;
    r->post = (struct loop_post){.run = leave, .arg = r};
    loop_defer(r->fanout->loop, &r->post);
}

static void forget(struct loop_timer *t)
{
    struct fanout *f = t->arg;

    f->forgetful = true;
    list_for_each_safe (it, &f->idle)
        entry_free(container_of(it, struct fanout_entry, idle));
}

void fanout_forget(struct fanout *f)
{
    loop_timer_after(f->loop, &f->forget, FORGET_AFTER_MS);
}

bool fanout_busy(const struct fanout *f)
{
    return f->nbusy > 0;
}

const struct fanout_counts *fanout_counts(const struct fanout *f)
{
    return &f->counts;
}

void fanout_usage(const struct fanout *f, uint64_t *ret_bytes, uint64_t *ret_limit)
{
    *ret_bytes = f->used_bytes;
    *ret_limit = f->max_bytes;
}

int fanout_new(struct links *links, uint64_t max_bytes, uint32_t patience_ms, struct fanout **ret_fanout,
               struct cairn_error *err)
{
    struct fanout *f = calloc(1, sizeof *f);

    if (!f)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a fan-out");
    f->links = links;
    f->loop = links_loop(links);
    f->max_bytes = max_bytes;
    f->patience_ms = patience_ms;
    f->forget = (struct loop_timer){.fire = forget, .arg = f};
    list_init(&f->idle);
    list_init(&f->queue);
    for (unsigned i = 0; i < BUCKETS; i++)
        list_init(&f->bucket[i]);
    *ret_fanout = f;
    return 0;
}

void fanout_free(struct fanout *f)
{
    if (!f)
        return;
    loop_timer_cancel(f->loop, &f->forget);
    forget(&f->forget);
    free(f);
}
