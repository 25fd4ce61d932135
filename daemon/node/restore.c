/* SPDX-License-Identifier: Apache-2.0 */
/* A session's restores: a committed checkpoint, a catalog of it for the client, and a window of slots that verified
 * chunks are put into.
 *
 *     READ --the arena still has the chunk--> copied by a worker, entry checksum over the copy --ok--> READ_DONE
 *                  \--no, or damaged--> gather from the peers, straight into the slot ----------ok--> READ_DONE
 *                                  \--others of this node may want it too: fan-out, and copied --ok--> READ_DONE
 */
#include "daemon/node/gather.h"
#include "daemon/node/internal.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/catalog.h"
#include "core/model/units.h"
#include "daemon/io/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct restore_read { /* one slot */
    struct restore *restore;
    bool busy;
    uint32_t id; /* of the request */
    uint32_t slot;
    uint32_t timeout_ms;
    uint32_t part_mask;
    const struct manifest *manifest;
    uint32_t chunk;
    char *target;
    struct gather gather;
    struct fanout_read fanned;
    bool gathering, fanning;
    struct worker_job job; /* the copy from the arena */
    struct arena *arena;   /* referenced during it */
    uint32_t pages[CAIRN_MAX_K];
    bool copy_ok;
};

struct restore {
    struct list link; /* in session */
    struct session *session;
    struct checkpoint *checkpoint;
    struct hold *hold; /* on the checkpoint, until the restore is over */
    uint64_t id;
    int window_fd;
    char *window;
    size_t window_bytes;
    uint32_t slots, slot_parts;
    unsigned nreading;
    bool places_told; /* of its rank's own shard */
    bool closed;
    struct restore_read reads[];
};

/* ---- LATEST ---------------------------------------------------------------------------------- */

struct opening_read { /* an open_request on its way, for LATEST and RESTORE_OPEN */
    struct open_request request;
    struct session *session;
    uint32_t id;
};

static struct opening_read *opening_new(struct session *s, uint32_t id, const char *job, uint64_t step,
                                        uint32_t timeout_ms)
{
    struct opening_read *o = calloc(1, sizeof *o);

    if (!o)
        return NULL;
    o->session = s;
    o->id = id;
    snprintf(o->request.job, sizeof o->request.job, "%s", job);
    o->request.step = step;
    o->request.member = s->member;
    o->request.timeout_ms = timeout_ms;
    o->request.arg = o;
    s->pending++;
    return o;
}

static void opening_free(struct opening_read *o)
{
    struct session *s = o->session;

    free(o);
    session_pending_end(s);
}

static void latest_known(struct open_request *r, int code, const struct cairn_error *err, struct checkpoint *checkpoint)
{
    struct opening_read *o = r->arg;
    struct local_latest_is m = {.step = r->ret_step, .incarnation = r->ret_incarnation};

    if (checkpoint)
        checkpoint_unref(checkpoint);
    local_header_init(&m.h, LOCAL_LATEST_IS, sizeof m, o->id);
    if (code < 0)
        session_answer_error(o->session, o->id, code, err);
    else
        session_send(o->session, &m, sizeof m, NULL, 0);
    opening_free(o);
}

void session_on_latest(struct session *s, const struct local_latest *m)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct opening_read *o = opening_new(s, m->h.id, s->job, CAIRN_LATEST, m->timeout_ms);

    if (!o) {
        cairn_fail(&err, CAIRN_E_NOMEM, "allocate a request");
        session_answer_error(s, m->h.id, CAIRN_E_NOMEM, &err);
        return;
    }
    o->request.resolve_only = true;
    o->request.done = latest_known;
    jobs_open(s->node->jobs, &o->request);
}

/* ---- RESTORE_OPEN ---------------------------------------------------------------------------- */

static int catalog_of(const struct checkpoint *c, struct bytes *out, struct cairn_error *err)
{
    struct cairn_catalog cat = {.step = c->root.step,
                                .incarnation = c->root.incarnation,
                                .world_size = c->root.world_size,
                                .nshards = c->root.world_size};
    int r = 0;

    cat.shards = calloc(cat.nshards, sizeof *cat.shards);
    if (!cat.shards)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a catalog of %u shards", cat.nshards);
    for (uint32_t i = 0; i < cat.nshards && r == 0; i++) {
        const struct manifest *m = &c->manifests[i];
        struct cairn_catalog_shard *s = &cat.shards[i];
        *s = (struct cairn_catalog_shard){
            .rank = m->rank, .layout = m->layout, .nchunks = m->nchunks}; /* layout borrowed */
        s->chunks = calloc(m->nchunks ? m->nchunks : 1, sizeof *s->chunks);
        if (!s->chunks)
            r = cairn_fail(err, CAIRN_E_NOMEM, "allocate a catalog of %u chunks", m->nchunks);
        for (uint32_t j = 0; r == 0 && j < m->nchunks; j++)
            s->chunks[j] = (struct cairn_chunk_range){m->chunks[j].first_part, m->chunks[j].k};
    }
    if (r == 0)
        r = cairn_catalog_encode(&cat, out, err);
    for (uint32_t i = 0; i < cat.nshards; i++)
        free(cat.shards[i].chunks);
    free(cat.shards);
    return r;
}

/* A memfd with these bytes that nobody can change any more. */
int sealed_memfd(const char *name, const void *data, size_t len, int *ret_fd, struct cairn_error *err)
{
    _cleanup_close_ int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0)
        return cairn_fail_errno(err, errno, "create a memfd");
    for (size_t at = 0; at < len;) {
        ssize_t n = write(fd, (const char *)data + at, len - at);
        if (n < 0)
            return cairn_fail_errno(err, errno, "fill a memfd of %zu bytes", len);
        at += (size_t)n;
    }
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) < 0)
        return cairn_fail_errno(err, errno, "seal a memfd");
    *ret_fd = TAKE_FD(fd);
    return 0;
}

static void restore_free(struct restore *rs)
{
    struct node *node = rs->session->node;

    if (rs->window)
        munmap(rs->window, rs->window_bytes);
    if (rs->window_fd >= 0)
        close(rs->window_fd);
    node->windows_used_bytes -= rs->window_bytes;
    checkpoint_unref(rs->checkpoint);
    hold_release(rs->hold);
    free(rs);
    if (--node->nrestores == 0)
        fanout_forget(node->fanout);
}

/* The client only reads: the daemon's mapping stays the one writable. */
static int restore_make_window(struct restore *rs, struct cairn_error *err)
{
    rs->window_fd = memfd_create("cairn-window", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (rs->window_fd < 0)
        return cairn_fail_errno(err, errno, "create a restore window");
    if (ftruncate(rs->window_fd, (off_t)rs->window_bytes) < 0)
        return cairn_fail_errno(err, errno, "size a restore window to %zu bytes", rs->window_bytes);
    void *map = mmap(NULL, rs->window_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, rs->window_fd, 0);
    if (map == MAP_FAILED)
        return cairn_fail_errno(err, errno, "map a restore window of %zu bytes", rs->window_bytes);
    rs->window = map;
    if (fcntl(rs->window_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) < 0)
        return cairn_fail_errno(err, errno, "seal a restore window");
    return 0;
}

static uint32_t largest_chunk(const struct checkpoint *c)
{
    uint32_t most = 1;

    for (uint32_t i = 0; i < c->root.world_size; i++)
        for (uint32_t j = 0; j < c->manifests[i].nchunks; j++)
            if (c->manifests[i].chunks[j].k > most)
                most = c->manifests[i].chunks[j].k;
    return most;
}

/* Windows share a budget: the first restores get a whole one, later ones a share of what is left. */
static int restore_new(struct session *s, struct checkpoint *c, struct restore **ret_restore, struct cairn_error *err)
{
    struct node *node = s->node;
    uint64_t left = node->config.windows_max_bytes - node->windows_used_bytes;
    uint64_t bytes = node->config.window_bytes < left / 4 ? node->config.window_bytes : left / 4;
    uint32_t slot_parts = largest_chunk(c), slots = (uint32_t)(bytes / (slot_parts * CAIRN_PART));

    if (s->nrestores >= SESSION_MAX_RESTORES)
        return cairn_fail(err, CAIRN_E_BUSY, "%u restores are open in this session: close one", s->nrestores);
    if (slots == 0)
        return cairn_fail(err, CAIRN_E_BUSY, "all %llu MiB for restores are in use on this node: try again later",
                          (unsigned long long)(node->config.windows_max_bytes >> 20));
    struct restore *rs = calloc(1, sizeof *rs + slots * sizeof rs->reads[0]);
    if (!rs)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a restore with %u slots", slots);
    rs->session = s;
    rs->window_fd = -1;
    rs->slots = slots;
    rs->slot_parts = slot_parts;
    rs->window_bytes = (size_t)slots * slot_parts * CAIRN_PART;
    node->windows_used_bytes += rs->window_bytes;
    node->nrestores++;
    rs->checkpoint = c;
    c->refs++;
    int r = restore_make_window(rs, err);
    if (r < 0) {
        restore_free(rs);
        return r;
    }
    rs->id = node->next_id++;
    snprintf(s->reads_job, sizeof s->reads_job, "%s", c->root.job);
    list_push_back(&s->restores, &rs->link);
    s->nrestores++;
    s->pending++;
    *ret_restore = rs;
    return 0;
}

static void restore_end_if_idle(struct restore *rs)
{
    struct session *s = rs->session;

    if (!rs->closed || rs->nreading > 0)
        return;
    restore_free(rs);
    session_pending_end(s);
}

static void restore_close(struct restore *rs)
{
    rs->closed = true;
    list_remove(&rs->link);
    rs->session->nrestores--;
    for (uint32_t i = 0; i < rs->slots; i++) {
        if (rs->reads[i].gathering)
            gather_cancel(rs->session->node->links, &rs->reads[i].gather);
        if (rs->reads[i].fanning)
            fanout_cancel(&rs->reads[i].fanned);
    }
    restore_end_if_idle(rs);
}

/* Takes the hold over when it succeeds. */
static int restore_answer(struct session *s, uint32_t id, struct checkpoint *c, struct hold **hold,
                          struct cairn_error *err)
{
    struct local_restore_opened m = {0};
    struct bytes catalog = {0};
    struct restore *rs = NULL;
    int fds[2] = {-1, -1};
    int r = catalog_of(c, &catalog, err);

    if (r == 0)
        r = sealed_memfd("cairn-catalog", catalog.data, catalog.len, &fds[0], err);
    if (r == 0)
        r = restore_new(s, c, &rs, err);
    if (r == 0 && (fds[1] = dup(rs->window_fd)) < 0)
        r = cairn_fail_errno(err, errno, "duplicate the restore window's descriptor");
    if (r < 0) {
        if (rs)
            restore_close(rs);
        if (fds[0] >= 0)
            close(fds[0]);
    } else {
        rs->hold = TAKE_PTR(*hold);
        m.restore = rs->id;
        m.catalog_bytes = catalog.len;
        m.slots = rs->slots;
        m.slot_parts = rs->slot_parts;
        local_header_init(&m.h, LOCAL_RESTORE_OPENED, sizeof m, id);
        session_send(s, &m, sizeof m, fds, 2);
    }
    bytes_free(&catalog);
    return r;
}

static void restore_opened(struct open_request *r, int code, const struct cairn_error *open_err, struct checkpoint *c)
{
    struct opening_read *o = r->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;

    cairn_error_copy(&err, open_err);
    if (code == 0 && !o->session->closed)
        code = restore_answer(o->session, o->id, c, &r->ret_hold, &err);
    if (code < 0)
        session_answer_error(o->session, o->id, code, &err);
    if (c)
        checkpoint_unref(c);
    hold_release(r->ret_hold);
    opening_free(o);
}

void session_on_restore_open(struct session *s, const struct local_restore_open *m)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct opening_read *o;

    if (!s->observer && strcmp(m->job, s->job) != 0) {
        cairn_fail(&err, CAIRN_E_DENIED, "a rank of job %s cannot read job %s: use an observer session", s->job,
                   m->job);
        session_answer_error(s, m->h.id, CAIRN_E_DENIED, &err);
        return;
    }
    o = opening_new(s, m->h.id, m->job, m->step, m->timeout_ms);
    if (!o) {
        cairn_fail(&err, CAIRN_E_NOMEM, "allocate a request");
        session_answer_error(s, m->h.id, CAIRN_E_NOMEM, &err);
        return;
    }
    o->request.done = restore_opened;
    jobs_open(s->node->jobs, &o->request);
}

/* ---- READ ------------------------------------------------------------------------------------ */

static uint64_t read_bytes(const struct restore_read *rd)
{
    const struct chunk_record *c = &rd->manifest->chunks[rd->chunk];
    uint64_t bytes = 0;

    for (unsigned i = 0; i < c->k; i++)
        bytes += rd->part_mask & 1u << i ? c->part[i].plain_len : 0;
    return bytes;
}

static void read_end(struct restore_read *rd, int code, const struct cairn_error *err)
{
    struct restore *rs = rd->restore;
    struct local_read_done m = {.slot = rd->slot};

    if (code == 0)
        rs->session->node->restored.delivered_bytes += read_bytes(rd);
    rd->busy = false;
    rs->nreading--;
    local_header_init(&m.h, LOCAL_READ_DONE, sizeof m, rd->id);
    if (code < 0)
        session_answer_error(rs->session, rd->id, code, err);
    else if (!rs->closed)
        session_send(rs->session, &m, sizeof m, NULL, 0);
    restore_end_if_idle(rs);
}

static void read_gathered(struct gather *g, int code, const struct cairn_error *err)
{
    struct restore_read *rd = g->arg;

    rd->gathering = false;
    read_end(rd, code, err);
}

static void read_fanned(struct fanout_read *r, int code, const struct cairn_error *err)
{
    struct restore_read *rd = r->arg;

    rd->fanning = false;
    read_end(rd, code, err);
}

/* Whether somebody else of this node may read the same: another rank of the job, or who has read checkpoints of it. */
static bool others_may_read(const struct restore *rs)
{
    const char *job = rs->checkpoint->root.job;

    list_for_each (it, &rs->session->node->sessions) {
        const struct session *s = container_of(it, struct session, link);
        if (s != rs->session && !s->closed &&
            ((s->member && strcmp(s->job, job) == 0) || strcmp(s->reads_job, job) == 0))
            return true;
    }
    return false;
}

static void read_fan_out(struct restore_read *rd)
{
    rd->fanned = (struct fanout_read){.checkpoint = rd->restore->checkpoint,
                                      .manifest = rd->manifest,
                                      .chunk = rd->chunk,
                                      .part_mask = rd->part_mask,
                                      .target = rd->target,
                                      .timeout_ms = rd->timeout_ms,
                                      .done = read_fanned,
                                      .arg = rd};
    rd->fanning = true;
    fanout_start(rd->restore->session->node->fanout, &rd->fanned);
}

static void read_gather(struct restore_read *rd)
{
    struct fanout *f = rd->restore->session->node->fanout;
    bool shared = others_may_read(rd->restore) && fanout_has_room(f, rd->manifest->chunks[rd->chunk].k);

    if (shared || fanout_knows(f, rd->manifest, rd->chunk)) {
        read_fan_out(rd);
        return;
    }
    rd->gather = (struct gather){.manifest = rd->manifest,
                                 .chunk = rd->chunk,
                                 .part_mask = rd->part_mask,
                                 .target = rd->target,
                                 .timeout_ms = rd->timeout_ms,
                                 .done = read_gathered,
                                 .arg = rd};
    rd->gathering = true;
    gather_start(rd->restore->session->node->links, &rd->gather);
}

/* Copies first and checks the copy: the client of the arena may write to it at any time. */
static void read_copy_run(struct worker_job *job)
{
    struct restore_read *rd = job->arg;
    const struct chunk_record *c = &rd->manifest->chunks[rd->chunk];
    struct hash_stream *h = hash_stream_new();

    rd->copy_ok = false;
    if (!h)
        return;
    for (unsigned i = 0; i < c->k; i++) {
        char *to = rd->target + i * CAIRN_PART;
        memcpy(to, arena_page(rd->arena, rd->pages[i]), c->part[i].plain_len);
        hash_stream_add(h, to, c->part[i].plain_len);
    }
    struct hash128 sum = hash_stream_end(h);
    rd->copy_ok = sum.low == c->entry.low && sum.high == c->entry.high;
    hash_stream_free(h);
}

static void read_copy_done(struct worker_job *job)
{
    struct restore_read *rd = job->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;

    arena_unref(TAKE_PTR(rd->arena));
    if (rd->restore->closed)
        read_end(rd, cairn_fail(&err, CAIRN_E_ABORTED, "the restore was closed"), &err);
    else if (!rd->copy_ok)
        read_gather(rd);
    else {
        rd->restore->session->node->restored.hot_bytes += read_bytes(rd);
        read_end(rd, 0, NULL);
    }
}

static bool read_from_arena(struct restore_read *rd)
{
    struct node *node = rd->restore->session->node;
    const struct manifest *m = rd->manifest;
    const struct chunk_record *c = &m->chunks[rd->chunk];
    struct snapshot *s = arenas_find(node->arenas, m->job, m->step, m->incarnation, m->rank);

    if (!s || !snapshot_holds(s, c->first_part, c->k))
        return false;
    for (unsigned i = 0; i < c->k; i++)
        rd->pages[i] = s->pages[c->first_part + i];
    rd->arena = arena_ref(s->arena);
    rd->job = (struct worker_job){.run = read_copy_run, .done = read_copy_done, .arg = rd};
    workers_submit(node->deps.workers, &rd->job);
    return true;
}

static struct restore *session_find_restore(struct session *s, uint64_t id)
{
    list_for_each (it, &s->restores) {
        struct restore *rs = container_of(it, struct restore, link);
        if (rs->id == id)
            return rs;
    }
    return NULL;
}

static int read_check(struct restore *rs, const struct local_read *m, struct cairn_error *err)
{
    const struct checkpoint *c = rs->checkpoint;

    if (m->shard >= c->root.world_size || m->chunk >= c->manifests[m->shard].nchunks)
        return cairn_fail(err, CAIRN_E_INVAL, "read of shard %u chunk %u, which does not exist", m->shard, m->chunk);
    if (m->part_mask == 0 || m->part_mask >> c->manifests[m->shard].chunks[m->chunk].k)
        return cairn_fail(err, CAIRN_E_INVAL, "read of parts 0x%x of a chunk of %u parts", m->part_mask,
                          c->manifests[m->shard].chunks[m->chunk].k);
    if (m->slot >= rs->slots || rs->reads[m->slot].busy)
        return cairn_fail(err, CAIRN_E_INVAL, "read into slot %u, which is not free", m->slot);
    return 0;
}

void session_on_read(struct session *s, const struct local_read *m)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct restore *rs = session_find_restore(s, m->restore);
    int r = rs ? read_check(rs, m, &err)
               : cairn_fail(&err, CAIRN_E_NOT_FOUND, "restore %llu is not open", (unsigned long long)m->restore);

    if (r < 0) {
        session_answer_error(s, m->h.id, r, &err);
        return;
    }
    struct restore_read *rd = &rs->reads[m->slot];
    *rd = (struct restore_read){.restore = rs,
                                .busy = true,
                                .id = m->h.id,
                                .slot = m->slot,
                                .timeout_ms = m->timeout_ms,
                                .part_mask = m->part_mask,
                                .manifest = &rs->checkpoint->manifests[m->shard],
                                .chunk = m->chunk,
                                .target = rs->window + (size_t)m->slot * rs->slot_parts * CAIRN_PART};
    rs->nreading++;
    s->node->restored.reads++;
    if (!read_from_arena(rd))
        read_gather(rd);
}

/* ---- PLACES ---------------------------------------------------------------------------------- */

/* The shard's snapshot, if it lies in the arena that this session has mapped: then its process can copy it itself. */
static struct snapshot *own_snapshot(struct session *s, const struct manifest *m)
{
    struct snapshot *found = arenas_find(s->node->arenas, m->job, m->step, m->incarnation, m->rank);

    return found && found->arena == s->arena ? found : NULL;
}

static void fill_place(struct local_place *p, const struct snapshot *s, const struct chunk_record *c)
{
    if (!snapshot_holds(s, c->first_part, c->k))
        return;
    p->entry_low = c->entry.low;
    p->entry_high = c->entry.high;
    p->nparts = c->k;
    for (unsigned i = 0; i < c->k; i++) {
        p->page[i] = s->pages[c->first_part + i];
        p->len[i] = c->part[i].plain_len;
    }
}

/* A client asks twice, before and after it copied: what it may copy counts once. */
static void count_in_place(struct restore *rs, const struct local_place *places, uint32_t n)
{
    for (uint32_t i = 0; i < n && !rs->places_told; i++)
        for (unsigned j = 0; j < places[i].nparts; j++)
            rs->session->node->restored.in_place_bytes += places[i].len[j];
    rs->places_told = true;
}

static int places_answer(struct restore *rs, uint32_t id, const struct manifest *m, struct cairn_error *err)
{
    struct session *s = rs->session;
    struct local_places_are out = {.nchunks = m->nchunks};
    const struct snapshot *snapshot = own_snapshot(s, m);
    int fd = -1;

    if (!snapshot)
        return cairn_fail(err, CAIRN_E_NOT_FOUND, "the shard of rank %u is not in this session's arena", m->rank);
    _cleanup_free_ struct local_place *places = calloc(m->nchunks ? m->nchunks : 1, sizeof *places);
    if (!places)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the places of %u chunks", m->nchunks);
    for (uint32_t i = 0; i < m->nchunks; i++)
        fill_place(&places[i], snapshot, &m->chunks[i]);
    int r = sealed_memfd("cairn-places", places, m->nchunks * sizeof *places, &fd, err);
    if (r < 0)
        return r;
    count_in_place(rs, places, m->nchunks);
    local_header_init(&out.h, LOCAL_PLACES_ARE, sizeof out, id);
    session_send(s, &out, sizeof out, &fd, 1);
    return 0;
}

void session_on_places(struct session *s, const struct local_places *m)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct restore *rs = session_find_restore(s, m->restore);
    int r = 0;

    if (!rs)
        r = cairn_fail(&err, CAIRN_E_NOT_FOUND, "restore %llu is not open", (unsigned long long)m->restore);
    else if (m->shard >= rs->checkpoint->root.world_size)
        r = cairn_fail(&err, CAIRN_E_INVAL, "places of shard %u, which does not exist", m->shard);
    else
        r = places_answer(rs, m->h.id, &rs->checkpoint->manifests[m->shard], &err);
    if (r < 0)
        session_answer_error(s, m->h.id, r, &err);
}

void session_on_restore_close(struct session *s, const struct local_restore_close *m)
{
    struct restore *rs = session_find_restore(s, m->restore);

    if (rs)
        restore_close(rs);
    session_answer_ok(s, m->h.id);
}

void session_leave_restores(struct session *s)
{
    list_for_each_safe (it, &s->restores)
        restore_close(container_of(it, struct restore, link));
}
