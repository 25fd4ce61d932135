/* SPDX-License-Identifier: Apache-2.0 */
/* A node's session on this peer, and a fragment's way through a slot:
 *
 *     written(data) -> header parsed from a copy, matched with its stream -> payload checked (worker) -> appended ->
 * Stored
 *
 * A slot belongs to the node until its bytes arrive and to the peer until Stored leaves. A fragment that does not
 * verify is answered with the reason and never stored; the slot is free again either way.
 *
 * Completion data has 32 bits for a slot and its generation; with several nodes on one endpoint the upper half is the
 * node's first slot number plus the slot, so that slots of all nodes share one numbering. */
#include "daemon/peer/internal.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/name.h"
#include "daemon/io/log.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

void peer_answer(struct peer_node *n, const struct wire_message *m)
{
    struct wire_message out = *m;
    uint8_t buf[WIRE_MAX];
    struct cairn_error err = CAIRN_ERROR_INIT;

    out.session = n->session;
    int len = n->ended ? CAIRN_E_ABORTED : wire_encode(&out, buf, &err);
    if (len < 0)
        return;
    peer_send(n, buf, (size_t)len);
}

/* ---- the end of a session -------------------------------------------------------------------- */

static void node_free(struct peer_node *n)
{
    struct peer *p = n->peer;

    /* A stop lets its bye leave first; a write that is half-way in must not go on into what is unmapped. */
    if (!n->cut && p->ep)
        endpoint_forget(p->ep, n->to);
    if (n->memory)
        munmap(n->memory, n->memory_len);
    list_remove(&n->link);
    free(n);
    peer_maybe_stopped(p);
}

void peer_node_pending_end(struct peer_node *n)
{
    if (--n->pending == 0 && n->ended)
        node_free(n);
}

static void stream_free(struct node_stream *st)
{
    keep_end_writing(st->kept);
    list_remove(&st->link);
    free(st);
}

void peer_node_end(struct peer_node *n, const char *reason)
{
    struct wire_message bye = {.type = WIRE_BYE};

    if (n->ended)
        return;
    if (n->peer->stopping) {
        snprintf(bye.bye.reason, sizeof bye.bye.reason, "%s", reason);
        peer_answer(n, &bye);
    }
    n->ended = true;
    n->pending++;
    n->peer->status.nodes = --n->peer->nnodes;
    peer_drop_reads(n);
    /* First the connection, then the key: a write that is half-way in goes on after its key is gone. */
    if (!n->peer->stopping) {
        n->cut = true;
        endpoint_forget(n->peer->ep, n->to);
    }
    fabric_mem_free(TAKE_PTR(n->mem));
    list_for_each_safe (it, &n->streams) {
        struct node_stream *st = container_of(it, struct node_stream, link);
        st->closing = true;
        if (!st->syncing)
            stream_free(st);
    }
    peer_node_pending_end(n);
}

/* ---- hello ----------------------------------------------------------------------------------- */

/* A free range of slot numbers: completion data has 16 bits for them. */
static int find_first_slot(const struct peer *p, uint32_t nslots, uint32_t *ret_first)
{
    uint32_t first = 0;

    for (bool again = true; again;) {
        again = false;
        list_for_each (it, &p->nodes) {
            const struct peer_node *n = container_of(it, struct peer_node, link);
            if (first < n->first_slot + n->nslots && n->first_slot < first + nslots) {
                first = n->first_slot + n->nslots;
                again = true;
            }
        }
    }
    *ret_first = first;
    return first + nslots <= 1 << 16 ? 0 : CAIRN_E_BUSY;
}

static int node_make_memory(struct peer_node *n, struct cairn_error *err)
{
    uint64_t key;

    n->memory_len = n->nslots * FRAGMENT_MAX_RECORD;
    void *map = mmap(NULL, n->memory_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (map == MAP_FAILED)
        return cairn_fail_errno(err, errno, "map %u slots", n->nslots);
    n->memory = map;
    if (getrandom(&key, sizeof key, 0) != sizeof key ||
        (!n->session && getrandom(&n->session, sizeof n->session, 0) != sizeof n->session))
        return cairn_fail_errno(err, errno, "draw a key");
    return fabric_mem_register(n->peer->deps.fabric, n->memory, n->memory_len, FABRIC_REMOTE_WRITE, key, &n->mem, err);
}

static int node_new(struct peer *p, const struct wire_message *m, uint64_t session, struct peer_node **ret_node,
                    struct cairn_error *err)
{
    uint32_t nslots = m->hello.slots < p->config.slots_per_node ? m->hello.slots : p->config.slots_per_node, first;
    unsigned sessions = 0; /* with those that ended and wait for their last request */

    list_for_each (it, &p->nodes)
        sessions++;
    if (nslots == 0)
        return cairn_fail(err, CAIRN_E_INVAL, "node %s asks for no slots", m->hello.node);
    if (p->nnodes >= p->config.max_nodes || sessions >= 2 * p->config.max_nodes ||
        find_first_slot(p, nslots, &first) < 0)
        return cairn_fail(err, CAIRN_E_BUSY, "peer %s serves %u nodes already ([peer] max_nodes)", p->id, p->nnodes);
    struct peer_node *n = calloc(1, sizeof *n + nslots * sizeof n->slots[0]);
    if (!n)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a session for node %s", m->hello.node);
    n->peer = p;
    n->session = session;
    n->nslots = nslots;
    n->first_slot = first;
    n->start = m->hello.start;
    n->heard_ns = loop_now_ns(p->deps.loop);
    snprintf(n->id, sizeof n->id, "%s", m->hello.node);
    list_init(&n->streams);
    list_init(&n->link);
    int r = node_make_memory(n, err);
    if (r == 0)
        r = endpoint_resolve(p->ep, m->hello.address, m->hello.address_len, &n->to, err);
    if (r < 0) {
        fabric_mem_free(n->mem);
        if (n->memory)
            munmap(n->memory, n->memory_len);
        free(n);
        return r;
    }
    for (uint32_t i = 0; i < nslots; i++) {
        n->slots[i].node = n;
        n->slots[i].number = first + i;
        n->slots[i].memory = n->memory + i * FRAGMENT_MAX_RECORD;
    }
    list_push_back(&p->nodes, &n->link);
    p->status.nodes = ++p->nnodes;
    *ret_node = n;
    return 0;
}

static void welcome(struct peer_node *n)
{
    struct wire_message m = {.type = WIRE_WELCOME};

    snprintf(m.welcome.peer, sizeof m.welcome.peer, "%s", n->peer->id);
    m.welcome.start = n->peer->start;
    m.welcome.slots = n->nslots;
    m.welcome.slot_bytes = FRAGMENT_MAX_RECORD;
    m.welcome.first_slot = n->first_slot;
    m.welcome.key = fabric_mem_key(n->mem);
    m.welcome.base = fabric_mem_remote_base(n->mem);
    peer_answer(n, &m);
}

int peer_admit(struct peer *p, const struct wire_message *m, uint64_t session, struct cairn_error *err)
{
    struct peer_node *n = NULL;

    list_for_each_safe (it, &p->nodes) {
        struct peer_node *old = container_of(it, struct peer_node, link);
        if (!old->ended && strcmp(old->id, m->hello.node) == 0)
            peer_node_end(old, NULL); /* its daemon started again, or gave the link up */
    }
    int r = node_new(p, m, session, &n, err);
    if (r == 0)
        welcome(n);
    return r;
}

/* ---- streams --------------------------------------------------------------------------------- */

static struct node_stream *find_stream(struct peer_node *n, uint32_t number)
{
    list_for_each (it, &n->streams) {
        struct node_stream *st = container_of(it, struct node_stream, link);
        if (st->number == number && !st->closing)
            return st;
    }
    return NULL;
}

static struct fence *find_fence(struct peer *p, const char *job)
{
    for (unsigned i = 0; i < p->nfences; i++)
        if (strcmp(p->fences[i].job, job) == 0)
            return &p->fences[i];
    return NULL;
}

/* The fence of a job only rises. A peer that restarted has forgotten it and learns it again from the next stream; the
 * decision's transaction holds without it. */
static void raise_fence(struct peer *p, const char *job, uint64_t incarnation)
{
    struct fence *f = find_fence(p, job);

    if (incarnation == 0)
        return;
    if (!f && p->nfences < PEER_MAX_FENCES) {
        struct fence *more = realloc(p->fences, (p->nfences + 1) * sizeof *more);
        if (!more)
            return;
        p->fences = more;
        f = &p->fences[p->nfences++];
        *f = (struct fence){.incarnation = 0};
        snprintf(f->job, sizeof f->job, "%s", job);
    }
    if (f && f->incarnation < incarnation)
        f->incarnation = incarnation;
}

static int check_fence(struct peer *p, const char *job, uint64_t incarnation, struct cairn_error *err)
{
    const struct fence *f = find_fence(p, job);

    if (!f || incarnation >= f->incarnation)
        return 0;
    return cairn_fail(err, CAIRN_E_FENCED, "incarnation %llu of job %s is fenced by %llu",
                      (unsigned long long)incarnation, job, (unsigned long long)f->incarnation);
}

/* A newer incarnation resumed, or the checkpoint is gone: what comes late would stay for good. Repairs are past the
 * fence. */
static int check_write(struct peer *p, const char *job, uint64_t step, uint64_t incarnation, bool repair,
                       struct cairn_error *err)
{
    if (peer_has_forgotten(p, job, step, incarnation))
        return cairn_fail(err, CAIRN_E_ABORTED, "step %llu of incarnation %llu of job %s was deleted",
                          (unsigned long long)step, (unsigned long long)incarnation, job);
    return repair ? 0 : check_fence(p, job, incarnation, err);
}

static int stream_open(struct peer_node *n, const struct wire_message *m, struct node_stream **ret_stream,
                       struct cairn_error *err)
{
    struct cairn_stream_id id = {.step = m->stream_open.step, .incarnation = m->stream_open.incarnation};
    unsigned open = 0;
    int r;

    snprintf(id.job, sizeof id.job, "%s", m->stream_open.job);
    snprintf(id.node, sizeof id.node, "%s", m->stream_open.node);
    list_for_each (it, &n->streams)
        open++;
    if (open >= PEER_MAX_STREAMS)
        return cairn_fail(err, CAIRN_E_BUSY, "node %s has %u streams open", n->id, open);
    if (find_stream(n, m->stream_open.stream))
        return cairn_fail(err, CAIRN_E_EXISTS, "stream %u is open already", m->stream_open.stream);
    raise_fence(n->peer, id.job, m->stream_open.fence_incarnation);
    r = check_write(n->peer, id.job, id.step, id.incarnation, m->stream_open.repair, err);
    if (r == 0)
        r = peer_check_engine(n->peer, err);
    if (r < 0)
        return r;
    struct node_stream *st = calloc(1, sizeof *st);
    if (!st)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a stream");
    r = keep_create(n->peer->keep, &id, m->stream_open.reserve_bytes, &st->kept, err);
    if (r < 0) {
        free(st);
        return r;
    }
    st->node = n;
    st->number = m->stream_open.stream;
    st->repair = m->stream_open.repair;
    list_push_back(&n->streams, &st->link);
    *ret_stream = st;
    return 0;
}

void peer_stream_open(struct peer_node *n, const struct wire_message *m, int code, struct cairn_error *err)
{
    struct node_stream *st = NULL;
    struct wire_message out = {.type = WIRE_STREAM_OPENED};
    int r = code < 0 ? code : stream_open(n, m, &st, err);

    out.stream_opened.stream = m->stream_open.stream;
    wire_status_set(&out.stream_opened.status, r, err);
    if (r == 0)
        out.stream_opened.generation = kept_generation(st->kept);
    else
        log_line(LOG_WARNING, "a stream of node %s for %s step %llu is refused: %s", n->id, m->stream_open.job,
                 (unsigned long long)m->stream_open.step, err->message);
    n->peer->status.streams_open = keep_open_streams(n->peer->keep);
    peer_answer(n, &out);
}

void peer_on_stream_open(struct peer_node *n, const struct wire_message *m)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (m->stream_open.repair)
        peer_open_for_repair(n, m);
    else
        peer_stream_open(n, m, 0, &err);
}

static void answer_synced(struct peer_node *n, uint32_t stream, uint64_t sequence, int code,
                          const struct cairn_error *err)
{
    struct wire_message m = {.type = WIRE_SYNCED};

    m.synced.stream = stream;
    m.synced.sequence = sequence;
    wire_status_set(&m.synced.status, code, err);
    peer_answer(n, &m);
}

static void stream_synced(struct keep_sync *sync, int code, const struct cairn_error *err)
{
    struct node_stream *st = sync->arg;
    struct peer_node *n = st->node;

    st->syncing = false;
    if (code < 0)
        log_line(LOG_ERROR, "sync of a stream of node %s failed, the stream is given up: %s", n->id, err->message);
    answer_synced(n, st->number, st->sync_sequence, code, err);
    if (st->closing)
        stream_free(st);
    peer_node_pending_end(n);
}

void peer_on_sync(struct peer_node *n, const struct wire_message *m)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct node_stream *st = find_stream(n, m->sync.stream);
    int r = 0;

    if (!st)
        r = cairn_fail(&err, CAIRN_E_NOT_FOUND, "stream %u is not open", m->sync.stream);
    else if (st->syncing)
        r = cairn_fail(&err, CAIRN_E_BUSY, "stream %u is being synced", m->sync.stream);
    if (r < 0) {
        answer_synced(n, m->sync.stream, m->sync.sequence, r, &err);
        return;
    }
    st->syncing = true;
    st->sync_sequence = m->sync.sequence;
    st->sync = (struct keep_sync){.done = stream_synced, .arg = st};
    n->pending++;
    keep_sync(st->kept, &st->sync);
}

void peer_on_stream_close(struct peer_node *n, const struct wire_message *m)
{
    struct node_stream *st = find_stream(n, m->stream_close.stream);

    if (!st)
        return;
    st->closing = true;
    if (!st->syncing)
        stream_free(st);
    n->peer->status.streams_open = keep_open_streams(n->peer->keep);
}

/* ---- a fragment's way ------------------------------------------------------------------------ */

static void slot_answer(struct slot *s, int code, const struct cairn_error *err)
{
    struct wire_message m = {.type = WIRE_STORED};
    struct peer_node *n = s->node;

    m.stored.slot = s->number;
    m.stored.generation = s->generation;
    m.stored.stream = s->stream;
    wire_status_set(&m.stored.status, code, err);
    s->busy = false;
    s->generation++;
    if (code == 0) {
        n->peer->status.fragments_stored++;
        n->peer->status.bytes_stored += fragment_record_len(s->fragment.payload_len);
    } else if (code == CAIRN_E_CORRUPT || code == CAIRN_E_UNSUPPORTED) {
        n->peer->status.bad_fragments++;
        log_line(LOG_WARNING, "a fragment from node %s did not verify and was not stored: %s", n->id, err->message);
    }
    peer_answer(n, &m);
}

static void slot_appended(struct keep_append *a, int code, const struct cairn_error *err)
{
    struct slot *s = a->arg;
    struct peer_node *n = s->node;

    slot_answer(s, code, err);
    peer_node_pending_end(n);
}

static void slot_check_run(struct worker_job *job)
{
    struct slot *s = job->arg;

    s->err = (struct cairn_error)CAIRN_ERROR_INIT;
    s->code = fragment_check_payload(&s->fragment, s->memory + FRAGMENT_HEADER, &s->err);
}

/* The stream is the one whose file has the generation that the header repeats. */
static struct node_stream *stream_of(struct peer_node *n, const struct fragment *f)
{
    list_for_each (it, &n->streams) {
        struct node_stream *st = container_of(it, struct node_stream, link);
        const struct cairn_stream_id *id = kept_id(st->kept);
        if (!st->closing && kept_generation(st->kept) == f->generation && id->step == f->key.step &&
            id->incarnation == f->key.incarnation && strcmp(id->job, f->key.job) == 0 &&
            strcmp(id->node, f->key.node) == 0)
            return st;
    }
    return NULL;
}

static void slot_checked(struct worker_job *job)
{
    struct slot *s = job->arg;
    struct peer_node *n = s->node;
    /* Found again: its number may name another stream by now. */
    struct node_stream *st = n->ended ? NULL : stream_of(n, &s->fragment);
    int r = s->code;

    if (r == 0 && !st)
        r = cairn_fail(&s->err, CAIRN_E_ABORTED, "its stream was closed");
    if (r == 0)
        r = check_write(n->peer, s->fragment.key.job, s->fragment.key.step, s->fragment.key.incarnation, st->repair,
                        &s->err);
    if (r < 0) {
        slot_answer(s, r, &s->err);
        peer_node_pending_end(n);
        return;
    }
    s->append = (struct keep_append){.done = slot_appended,
                                     .arg = s,
                                     .key = s->fragment.key,
                                     .record_len = (uint32_t)fragment_record_len(s->fragment.payload_len)};
    keep_append(st->kept, s->memory, &s->append);
}

static void slot_filled(struct slot *s)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    char header[FRAGMENT_HEADER], what[512];
    int r;

    s->busy = true;
    s->stream = 0;
    memcpy(header, s->memory, sizeof header); /* judged once, from a copy */
    r = fragment_parse(header, &s->fragment, &err);
    struct node_stream *st = r == 0 ? stream_of(s->node, &s->fragment) : NULL;
    if (r == 0 && !st) {
        fragment_describe(&s->fragment.key, what, sizeof what);
        r = cairn_fail(&err, CAIRN_E_CORRUPT, "%s belongs to no stream that is open, or to an older file of one", what);
    }
    if (r < 0) {
        slot_answer(s, r, &err);
        return;
    }
    s->stream = st->number;
    s->check = (struct worker_job){.run = slot_check_run, .done = slot_checked, .arg = s};
    s->node->pending++;
    workers_submit(s->node->peer->deps.workers, &s->check);
}

void peer_on_written(struct peer *p, uint32_t data)
{
    uint32_t number = data >> 16;

    list_for_each (it, &p->nodes) {
        struct peer_node *n = container_of(it, struct peer_node, link);
        if (n->ended || number < n->first_slot || number >= n->first_slot + n->nslots)
            continue;
        struct slot *s = &n->slots[number - n->first_slot];
        n->heard_ns = loop_now_ns(p->deps.loop);
        if (s->busy || s->generation != (uint16_t)data)
            p->status.bad_fragments++; /* of another time: its writer has been answered, or is gone */
        else
            slot_filled(s);
        return;
    }
}
