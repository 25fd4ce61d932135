/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/peer/keep_internal.h"

#include "core/base/error.h"
#include "core/model/units.h"

#include <stdio.h>
#include <string.h>

#define MAX_IDLE_STREAMS 64                               /* indexed though nobody writes them */
#define RESYNC_BLOCKS (FRAGMENT_MAX_RECORD / CAIRN_BLOCK) /* looked through for the record behind a damaged header */

/* ---- streams --------------------------------------------------------------------------------- */

static void stream_close_file(struct kept_stream *s)
{
    store_close_stream(TAKE_PTR(s->file));
    free(TAKE_PTR(s->index));
    free(TAKE_PTR(s->scan_block));
    s->nbuckets = s->nentries = 0;
    s->state = STREAM_CLOSED;
}

static void stream_free(struct kept_stream *s)
{
    stream_close_file(s);
    list_remove(&s->link);
    free(s->bad);
    free(s->name);
    free(s);
}

static struct kept_stream *stream_new(struct keep *k, const char *name)
{
    struct kept_stream *s = calloc(1, sizeof *s);

    if (!s)
        return NULL;
    s->keep = k;
    list_init(&s->link);
    s->name = strdup(name);
    if (!s->name) {
        free(s);
        return NULL;
    }
    s->state = STREAM_CLOSED;
    list_push_front(&k->streams, &s->link);
    return s;
}

/* Closes files that were only opened to read, least recently used first, beyond the bound. */
static void keep_trim(struct keep *k)
{
    unsigned open = 0;

    list_for_each (it, &k->streams)
        open += container_of(it, struct kept_stream, link)->state == STREAM_INDEXED;
    for (struct list *it = k->streams.prev; it != &k->streams && open > MAX_IDLE_STREAMS; it = it->prev) {
        struct kept_stream *s = container_of(it, struct kept_stream, link);
        if (s->state != STREAM_INDEXED || s->in_flight)
            continue;
        stream_close_file(s);
        open--;
    }
}

static void stream_used(struct kept_stream *s)
{
    list_remove(&s->link);
    list_push_front(&s->keep->streams, &s->link);
}

static void stream_release(struct kept_stream *s)
{
    s->in_flight--;
    s->keep->busy--;
    if (s->ended && s->in_flight == 0) {
        s->ended = false;
        stream_close_file(s); /* gives the unused reservation back; a read opens it again */
    }
}

static void stream_hold(struct kept_stream *s)
{
    s->in_flight++;
    s->keep->busy++;
}

/* ---- writing --------------------------------------------------------------------------------- */

int keep_create(struct keep *k, const struct cairn_stream_id *id, uint64_t reserve_bytes,
                struct kept_stream **ret_stream, struct cairn_error *err)
{
    struct store_stream *file;
    uint64_t generation;
    int r = store_create(k->store, id, reserve_bytes, &file, &generation, err);

    if (r < 0)
        return r;
    struct kept_stream *s = stream_new(k, store_stream_name(file));
    if (!s) {
        store_close_stream(file);
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a stream");
    }
    s->id = *id;
    s->file = file;
    s->generation = generation;
    s->state = STREAM_WRITING;
    *ret_stream = s;
    return 0;
}

uint64_t kept_generation(const struct kept_stream *s)
{
    return s->generation;
}

const struct cairn_stream_id *kept_id(const struct kept_stream *s)
{
    return &s->id;
}

static void appended(struct cairn_store_req *req, int code)
{
    struct keep_append *a = req->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;

    cairn_error_copy(&err, &req->err);
    if (code == 0 && !index_put(a->stream, &a->key, req->offset, a->record_len))
        code = cairn_fail(&err, CAIRN_E_NOMEM, "grow the index of %s", a->stream->name);
    stream_release(a->stream);
    a->done(a, code, &err);
}

void keep_append(struct kept_stream *s, const void *record, struct keep_append *a)
{
    a->stream = s;
    a->req = (struct cairn_store_req){.done = appended, .arg = a};
    stream_hold(s);
    store_append(s->file, record, a->record_len, &a->req);
}

static void synced(struct cairn_store_req *req, int code)
{
    struct keep_sync *sync = req->arg;

    stream_release(sync->stream);
    sync->done(sync, code, &req->err);
}

void keep_sync(struct kept_stream *s, struct keep_sync *sync)
{
    sync->stream = s;
    sync->req = (struct cairn_store_req){.done = synced, .arg = sync};
    stream_hold(s);
    store_sync(s->file, &sync->req);
}

void keep_end_writing(struct kept_stream *s)
{
    stream_hold(s);
    s->ended = true;
    stream_release(s);
}

/* ---- scanning: header blocks one after the other --------------------------------------------- */

static void keep_rescan(struct keep *k);

static void scan_end(struct kept_stream *s)
{
    s->state = STREAM_INDEXED;
    s->scanned_at = ++s->keep->clock;
    free(TAKE_PTR(s->scan_block));
    keep_rescan(s->keep);
}

static void scan_next(struct kept_stream *s);

static bool same_stream(const struct cairn_stream_id *id, const struct fragment_key *key)
{
    return id->step == key->step && id->incarnation == key->incarnation && strcmp(id->job, key->job) == 0 &&
           strcmp(id->node, key->node) == 0;
}

/* A block that is not the header of a record of this file's generation was damaged, or nothing was written there: the
 * next record begins within the length of the longest one, or there is none. */
static void scanned(struct cairn_store_req *req, int code)
{
    struct kept_stream *s = req->arg;
    struct fragment f;

    stream_release(s);
    if (code < 0 || fragment_parse(s->scan_block, &f, NULL) < 0 || f.generation != s->generation ||
        !same_stream(&s->id, &f.key)) {
        s->scan_at += CAIRN_BLOCK;
        if (++s->scan_lost > RESYNC_BLOCKS)
            scan_end(s);
        else
            scan_next(s);
        return;
    }
    s->scan_lost = 0;
    size_t len = fragment_record_len(f.payload_len);
    index_put(s, &f.key, s->scan_at, (uint32_t)len); /* one that the file's end cuts off reads as CORRUPT */
    s->scan_at += len;
    scan_next(s);
}

static void scan_next(struct kept_stream *s)
{
    if (s->scan_at + FRAGMENT_HEADER > s->end) {
        scan_end(s);
        return;
    }
    s->scan_req = (struct cairn_store_req){.done = scanned, .arg = s};
    stream_hold(s);
    store_read(s->file, s->scan_at, s->scan_block, FRAGMENT_HEADER, &s->scan_req);
}

static void scan_begin(struct kept_stream *s)
{
    struct cairn_stream_id id;

    int r = store_open_stream(s->keep->store, s->name, &s->file, &id, &s->generation, &s->end, NULL);
    if (r < 0) { /* its reads say NOT_FOUND; verify names the fragments that are missing */
        s->broken = r == CAIRN_E_CORRUPT || r == CAIRN_E_UNSUPPORTED;
        return; /* else, say without a descriptor, a later read tries again */
    }
    s->scan_block = aligned_alloc(CAIRN_BLOCK, FRAGMENT_HEADER);
    if (!s->scan_block) {
        stream_close_file(s);
        return;
    }
    s->state = STREAM_SCANNING;
    s->scan_at = CAIRN_STORE_FIRST;
    s->scan_lost = 0;
    scan_next(s);
}

/* ---- reading --------------------------------------------------------------------------------- */

static void read_done(struct cairn_store_req *req, int code)
{
    struct keep_read *r = req->arg;
    struct kept_stream *s = r->stream;

    stream_release(s);
    r->done(r, code, &req->err, r->record_len);
}

static void read_start(struct keep_read *r, struct kept_stream *s, const struct index_entry *e)
{
    r->stream = s;
    r->generation = s->generation;
    r->record_len = e->record_len;
    r->offset = e->offset;
    if (r->present_only) {
        r->done(r, 0, NULL, e->record_len);
        return;
    }
    r->req = (struct cairn_store_req){.done = read_done, .arg = r};
    stream_used(s);
    stream_hold(s);
    store_read(s->file, e->offset, r->buffer, e->record_len, &r->req);
}

enum find_result { FOUND, NOT_HERE, DAMAGED, WAIT_FOR_SCAN };

static enum find_result read_find(struct keep *k, struct keep_read *r, struct kept_stream **ret_stream,
                                  const struct index_entry **ret_entry)
{
    enum find_result result = NOT_HERE;

    list_for_each_safe (it, &k->streams) {
        struct kept_stream *s = container_of(it, struct kept_stream, link);
        if (!same_stream(&s->id, &r->key) || s->broken)
            continue;
        /* One that was scanned for this read, and closed again to make room, does not have it. */
        if (s->state == STREAM_CLOSED && s->scanned_at <= r->since)
            scan_begin(s);
        const struct index_entry *e = index_get(s, &r->key);
        if (e && s->file && e->bad && result == NOT_HERE)
            result = DAMAGED; /* a repair may have put another copy into another file */
        if (e && s->file && !e->bad) {
            *ret_stream = s;
            *ret_entry = e;
            return FOUND;
        }
        if (s->state == STREAM_SCANNING)
            result = WAIT_FOR_SCAN;
    }
    return result;
}

static void read_try(struct keep *k, struct keep_read *r)
{
    struct kept_stream *s = NULL;
    const struct index_entry *e = NULL;
    struct cairn_error err = CAIRN_ERROR_INIT;

    switch (read_find(k, r, &s, &e)) {
    case FOUND:
        read_start(r, s, e);
        return;
    case WAIT_FOR_SCAN:
        list_push_back(&k->reads, &r->link);
        return;
    case DAMAGED:
        r->known_bad = true;
        cairn_fail(&err, CAIRN_E_CORRUPT, "what this peer has of it is damaged");
        r->done(r, CAIRN_E_CORRUPT, &err, 0);
        return;
    case NOT_HERE:
        cairn_fail(&err, CAIRN_E_NOT_FOUND, "this peer does not have it");
        r->done(r, CAIRN_E_NOT_FOUND, &err, 0);
    }
}

void keep_read(struct keep *k, struct keep_read *r)
{
    list_init(&r->link);
    r->since = k->clock;
    read_try(k, r);
}

static void rescan_now(struct loop_post *post)
{
    struct keep *k = post->arg;
    struct list waiting = LIST_INIT(waiting);

    k->rescan_posted = false;
    k->busy--;
    while (!list_empty(&k->reads)) {
        struct list *it = k->reads.next;
        list_remove(it);
        list_push_back(&waiting, it);
    }
    while (!list_empty(&waiting)) {
        struct keep_read *r = list_first(&waiting, struct keep_read, link);
        list_remove(&r->link);
        read_try(k, r);
    }
    keep_trim(k);
}

static void keep_rescan(struct keep *k)
{
    if (k->rescan_posted)
        return;
    k->rescan_posted = true;
    k->busy++;
    k->rescan = (struct loop_post){.run = rescan_now, .arg = k};
    loop_defer(k->loop, &k->rescan);
}

void keep_mark_bad(struct keep *k, uint64_t generation, uint64_t offset)
{
    list_for_each (it, &k->streams) {
        struct kept_stream *s = container_of(it, struct kept_stream, link);
        if (s->generation == generation)
            index_mark_bad(s, offset);
    }
}

unsigned keep_mark_lost(struct keep *k, uint64_t generation, uint64_t from, uint64_t to)
{
    unsigned n = 0;

    list_for_each (it, &k->streams) {
        struct kept_stream *s = container_of(it, struct kept_stream, link);
        if (s->generation == generation)
            n += index_mark_range(s, from, to);
    }
    return n;
}

uint64_t keep_known_end(const struct keep *k, uint64_t generation)
{
    uint64_t end = 0;

    list_for_each (it, &k->streams) {
        const struct kept_stream *s = container_of(it, struct kept_stream, link);
        if (s->generation == generation && s->known_end > end)
            end = s->known_end;
    }
    return end;
}

/* ---- the catalog of files -------------------------------------------------------------------- */

/* Names are JOB/STEP.INC.NODE.GENERATION.cairn in store-file, but a name is the store's: the id is read from the file
 * itself. */
static int note_file(void *arg, const char *name)
{
    struct keep *k = arg;
    struct kept_stream *s = stream_new(k, name);

    if (!s)
        return CAIRN_E_NOMEM;
    uint64_t end;
    if (store_open_stream(k->store, name, &s->file, &s->id, &s->generation, &end, NULL) < 0)
        s->broken = true;
    stream_close_file(s);
    return 0;
}

int keep_new(struct loop *loop, struct store *store, struct keep **ret_keep, struct cairn_error *err)
{
    struct keep *k = calloc(1, sizeof *k);

    if (!k)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a peer's catalog");
    k->loop = loop;
    k->store = store;
    list_init(&k->streams);
    list_init(&k->reads);
    int r = store_list(store, note_file, k, err);
    if (r < 0) {
        keep_free(k);
        return r;
    }
    *ret_keep = k;
    return 0;
}

bool keep_busy(const struct keep *k)
{
    return k->busy > 0;
}

void keep_free(struct keep *k)
{
    if (!k)
        return;
    list_for_each_safe (it, &k->streams)
        stream_free(container_of(it, struct kept_stream, link));
    free(k->go_round);
    free(k);
}

int keep_each_idle(struct keep *k, unsigned max, void (*each)(void *arg, const struct cairn_stream_id *id), void *arg,
                   struct cairn_error *err)
{
    struct list *it = &k->streams;

    (void)err;
    /* From behind the stream where the last round ended, or from the beginning. */
    for (struct list *at = k->streams.next; k->go_round && at != &k->streams; at = at->next)
        if (strcmp(container_of(at, struct kept_stream, link)->name, k->go_round) == 0)
            it = at;
    free(TAKE_PTR(k->go_round));
    for (it = it->next; it != &k->streams; it = it->next) {
        struct kept_stream *s = container_of(it, struct kept_stream, link);
        if (s->state == STREAM_WRITING || s->broken)
            continue;
        if (max-- == 0) {
            k->go_round = strdup(container_of(it->prev, struct kept_stream, link)->name);
            return 0;
        }
        each(arg, &s->id);
    }
    return 0;
}

int keep_forget(struct keep *k, const char *job, uint64_t step, uint64_t incarnation, struct cairn_error *err)
{
    int gone = 0;

    list_for_each_safe (it, &k->streams) {
        struct kept_stream *s = container_of(it, struct kept_stream, link);
        if (s->state == STREAM_WRITING || s->in_flight || s->broken || s->id.step != step ||
            s->id.incarnation != incarnation || strcmp(s->id.job, job) != 0)
            continue;
        stream_close_file(s);
        int r = store_remove(k->store, s->name, err);
        if (r < 0 && r != CAIRN_E_NOT_FOUND)
            return r;
        stream_free(s);
        gone++;
    }
    return gone;
}

bool keep_has(const struct keep *k, const char *job, uint64_t step, uint64_t incarnation)
{
    list_for_each (it, &k->streams) {
        const struct kept_stream *s = container_of(it, struct kept_stream, link);
        if (s->id.step == step && s->id.incarnation == incarnation && strcmp(s->id.job, job) == 0)
            return true;
    }
    return false;
}

unsigned keep_open_streams(const struct keep *k)
{
    unsigned n = 0;

    list_for_each (it, &k->streams)
        n += container_of(it, struct kept_stream, link)->state == STREAM_WRITING;
    return n;
}
