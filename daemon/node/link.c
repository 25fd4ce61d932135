/* SPDX-License-Identifier: Apache-2.0 */
/* A put's way: its stream is opened on the peer (once per checkpoint), it waits for a slot, is sealed with the stream
 * file's generation, written by RMA, and answered by Stored. Deadlines begin when something was sent, so that a hung
 * peer costs its deadline once, however long the queue behind it is. */
#include "daemon/node/link.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/units.h"
#include "core/proto/wire.h"
#include "daemon/io/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#define TICK_MS 20
#define PING_IDLE_MS 5000
#define BACKOFF_MAX_MS 30000
#define MESSAGES 32

enum stream_state { STREAM_OPENING, STREAM_OPEN, STREAM_REFUSED };

struct stream {
    struct list link; /* in the link */
    struct stream_key key;
    uint32_t number;
    enum stream_state state;
    struct cairn_error refusal;
    uint64_t generation;
    uint64_t deadline_ns; /* of the open, then of the sync under way */
    struct list waiting;  /* puts, until it is open */
    uint64_t stored;      /* puts answered, counted */
    uint64_t syncing_to, synced_to, sequence;
    bool syncing, sync_wanted;
};

struct slot {
    struct link_put *put; /* NULL: free */
    uint16_t generation;
};

struct link {
    struct links *links;
    struct record_peer record;
    bool registered;
    enum link_state state;
    uint32_t epoch;
    struct endpoint *ep;
    uint64_t to;
    bool failing; /* its tear-down is posted */
    struct loop_post tear_down;
    struct loop_timer tick;
    uint64_t hello_deadline_ns;
    uint64_t heard_ns, ping_deadline_ns;
    /* from Welcome */
    uint64_t session, slots_key, slots_base, slot_bytes;
    uint32_t first_slot, nslots;
    struct slot slots[LINK_MAX_SLOTS];
    unsigned nfree;
    struct list early; /* puts from before the welcome */
    struct list queue; /* puts that wait for a slot */
    struct list streams;
    uint32_t next_stream;
    /* reads */
    struct list reads_queued, reads_sent;
    char *read_memory;
    struct fabric_mem *read_mem;
    bool read_busy[LINK_READ_BUFFERS];
    uint64_t next_request;
    /* failures */
    uint64_t avoided_until_ns;
    uint32_t backoff_ms;
    char last_error[WIRE_TEXT];
    uint64_t fragments_sent, fragments_read, failures;
};

static void link_pump(struct link *l);

/* ---- looking --------------------------------------------------------------------------------- */

const char *link_id(const struct link *l)
{
    return l->record.id;
}

uint32_t link_epoch(const struct link *l)
{
    return l->epoch;
}

enum link_state link_state_of(const struct link *l)
{
    return l->state;
}

const char *link_last_error(const struct link *l)
{
    return l->last_error[0] ? l->last_error : "no error";
}

bool link_registered(const struct link *l)
{
    return l->registered;
}

const struct record_peer *link_record(const struct link *l)
{
    return &l->record;
}

static uint64_t now_ns(const struct link *l)
{
    return loop_now_ns(links_loop(l->links));
}

static bool avoided(const struct link *l)
{
    return l->avoided_until_ns > now_ns(l);
}

static struct stream *find_stream(const struct link *l, const char *job, uint64_t step, uint64_t incarnation)
{
    list_for_each (it, &l->streams) {
        struct stream *st = container_of(it, struct stream, link);
        if (st->key.step == step && st->key.incarnation == incarnation && strcmp(st->key.job, job) == 0)
            return st;
    }
    return NULL;
}

bool link_usable(const struct link *l, const struct stream_key *key)
{
    const struct stream *st = key ? find_stream(l, key->job, key->step, key->incarnation) : NULL;

    return l->registered && l->state != LINK_DOWN && !l->failing && !avoided(l) && !(st && st->state == STREAM_REFUSED);
}

uint64_t link_synced_to(const struct link *l, const struct stream_key *key)
{
    const struct stream *st = find_stream(l, key->job, key->step, key->incarnation);

    return st ? st->synced_to : 0;
}

void link_status_of(const struct link *l, struct link_status *ret)
{
    uint64_t now = now_ns(l);

    *ret = (struct link_status){.total_bytes = l->record.total_bytes,
                                .free_bytes = l->record.free_bytes,
                                .fragments_sent = l->fragments_sent,
                                .fragments_read = l->fragments_read,
                                .failures = l->failures};
    snprintf(ret->peer, sizeof ret->peer, "%s", l->record.id);
    snprintf(ret->last_error, sizeof ret->last_error, "%s", l->last_error);
    ret->avoided_ms = l->avoided_until_ns > now ? (uint32_t)((l->avoided_until_ns - now) / 1000000) : 0;
    ret->state = !l->registered                ? "gone"
                 : ret->avoided_ms             ? "avoided"
                 : l->state == LINK_UP         ? "up"
                 : l->state == LINK_CONNECTING ? "connecting"
                                               : "down";
}

/* ---- sending --------------------------------------------------------------------------------- */

struct sending {
    struct fabric_op op;
    struct link *link;
    uint32_t epoch;
};

static void link_fail(struct link *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void sent(struct fabric_op *op, int code)
{
    struct sending *s = op->arg;
    struct link *l = s->link;
    bool current = s->epoch == l->epoch;

    free(s);
    if (code < 0 && code != CAIRN_E_ABORTED && current)
        link_fail(l, "a message could not be sent: %s", cairn_code_name(code));
}

static void link_say(struct link *l, struct wire_message *m)
{
    uint8_t buf[WIRE_MAX];
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct sending *s = calloc(1, sizeof *s);

    m->session = l->session;
    int len = s ? wire_encode(m, buf, &err) : CAIRN_E_NOMEM;
    if (len < 0) {
        free(s);
        link_fail(l, "%s could not be written: %s", wire_type_name(m->type), err.message);
        return;
    }
    *s = (struct sending){.op = {.done = sent, .arg = s}, .link = l, .epoch = l->epoch};
    endpoint_send(l->ep, &s->op, l->to, buf, (size_t)len);
}

static uint64_t deadline(const struct link *l, uint32_t ms)
{
    return now_ns(l) + (uint64_t)ms * 1000000;
}

/* ---- failing --------------------------------------------------------------------------------- */

static void complete_puts(struct list *puts, const struct cairn_error *err)
{
    while (!list_empty(puts)) {
        struct link_put *p = list_first(puts, struct link_put, link);
        list_remove(&p->link);
        p->done(p, CAIRN_E_UNAVAILABLE, err);
    }
}

static void complete_reads(struct list *reads, const struct cairn_error *err)
{
    while (!list_empty(reads)) {
        struct link_read *r = list_first(reads, struct link_read, link);
        list_remove(&r->link);
        r->done(r, CAIRN_E_UNAVAILABLE, err, NULL);
    }
}

static void move_all(struct list *from, struct list *to)
{
    while (!list_empty(from)) {
        struct list *it = from->next;
        list_remove(it);
        list_push_back(to, it);
    }
}

static void release_read_memory(struct link *l)
{
    fabric_mem_free(TAKE_PTR(l->read_mem));
    if (l->read_memory)
        munmap(TAKE_PTR(l->read_memory), LINK_READ_BUFFERS * FRAGMENT_MAX_RECORD);
    memset(l->read_busy, 0, sizeof l->read_busy);
}

/* Everything that hangs on the connection, gathered first: what completes may start something new on this link. */
static void drop_requests(struct link *l, const struct cairn_error *err)
{
    struct list puts = LIST_INIT(puts), reads = LIST_INIT(reads);

    for (unsigned i = 0; i < l->nslots; i++)
        if (l->slots[i].put)
            list_push_back(&puts, &TAKE_PTR(l->slots[i].put)->link);
    move_all(&l->early, &puts);
    move_all(&l->queue, &puts);
    list_for_each_safe (it, &l->streams) {
        struct stream *st = container_of(it, struct stream, link);
        move_all(&st->waiting, &puts);
        list_remove(it);
        free(st);
    }
    move_all(&l->reads_sent, &reads);
    move_all(&l->reads_queued, &reads);
    l->nslots = l->nfree = 0;
    complete_puts(&puts, err);
    complete_reads(&reads, err);
}

/* The endpoint goes first: after it nothing of this link touches memory any more. */
static void tear_down(struct loop_post *post)
{
    struct link *l = post->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;

    l->epoch++;
    endpoint_free(TAKE_PTR(l->ep));
    release_read_memory(l);
    l->state = LINK_DOWN;
    l->session = 0;
    l->failing = false;
    cairn_fail(&err, CAIRN_E_UNAVAILABLE, "peer %s: %s", l->record.id, l->last_error);
    drop_requests(l, &err);
    links_kick(l->links);
}

static void link_drop(struct link *l)
{
    loop_timer_cancel(links_loop(l->links), &l->tick);
    l->failing = true;
    l->tear_down = (struct loop_post){.run = tear_down, .arg = l};
    loop_defer(links_loop(l->links), &l->tear_down);
}

static void link_fail(struct link *l, const char *fmt, ...)
{
    va_list ap;

    if (l->failing || l->state == LINK_DOWN)
        return;
    va_start(ap, fmt);
    vsnprintf(l->last_error, sizeof l->last_error, fmt, ap);
    va_end(ap);
    l->failures++;
    l->backoff_ms = l->backoff_ms ? l->backoff_ms * 2 : links_config_of(l->links)->backoff_ms;
    if (l->backoff_ms > BACKOFF_MAX_MS)
        l->backoff_ms = BACKOFF_MAX_MS;
    l->avoided_until_ns = deadline(l, l->backoff_ms);
    log_line(LOG_WARNING, "peer %s is avoided for %u ms: %s", l->record.id, l->backoff_ms, l->last_error);
    link_drop(l);
}

/* ---- streams --------------------------------------------------------------------------------- */

static struct stream *open_stream(struct link *l, const struct stream_key *key)
{
    struct wire_message m = {.type = WIRE_STREAM_OPEN};
    struct stream *st = calloc(1, sizeof *st);

    if (!st)
        return NULL;
    st->key = *key;
    st->number = ++l->next_stream;
    st->deadline_ns = deadline(l, links_config_of(l->links)->sync_late_ms);
    list_init(&st->waiting);
    list_push_back(&l->streams, &st->link);
    m.stream_open.stream = st->number;
    m.stream_open.step = key->step;
    m.stream_open.incarnation = key->incarnation;
    m.stream_open.reserve_bytes = key->reserve_bytes;
    m.stream_open.fence_incarnation = key->fence_incarnation;
    snprintf(m.stream_open.job, sizeof m.stream_open.job, "%s", key->job);
    snprintf(m.stream_open.node, sizeof m.stream_open.node, "%s", links_config_of(l->links)->node);
    link_say(l, &m);
    return st;
}

static struct stream *stream_by_number(struct link *l, uint32_t number)
{
    list_for_each (it, &l->streams) {
        struct stream *st = container_of(it, struct stream, link);
        if (st->number == number)
            return st;
    }
    return NULL;
}

static void on_stream_opened(struct link *l, const struct wire_message *m)
{
    struct stream *st = stream_by_number(l, m->stream_opened.stream);
    const struct wire_status *status = &m->stream_opened.status;
    struct list puts = LIST_INIT(puts);

    if (!st || st->state != STREAM_OPENING)
        return;
    st->state = status->code < 0 ? STREAM_REFUSED : STREAM_OPEN;
    st->generation = m->stream_opened.generation;
    st->deadline_ns = 0;
    move_all(&st->waiting, &puts);
    if (status->code < 0) {
        cairn_fail(&st->refusal, status->code, "peer %s: %s", l->record.id, status->message);
        snprintf(l->last_error, sizeof l->last_error, "%s", status->message);
        log_line(LOG_WARNING, "peer %s takes nothing of job %s step %llu: %s", l->record.id, st->key.job,
                 (unsigned long long)st->key.step, status->message);
        struct cairn_error err = st->refusal;
        while (!list_empty(&puts)) {
            struct link_put *p = list_first(&puts, struct link_put, link);
            list_remove(&p->link);
            p->done(p, err.code, &err);
        }
    }
    move_all(&puts, &l->queue);
    link_pump(l);
    links_kick(l->links);
}

static void stream_send_sync(struct link *l, struct stream *st)
{
    struct wire_message m = {.type = WIRE_SYNC};

    st->sync_wanted = false;
    st->syncing = true;
    st->syncing_to = st->stored;
    st->deadline_ns = deadline(l, links_config_of(l->links)->sync_late_ms);
    m.sync.stream = st->number;
    m.sync.sequence = ++st->sequence;
    link_say(l, &m);
}

void link_sync(struct link *l, const struct stream_key *key)
{
    struct stream *st = find_stream(l, key->job, key->step, key->incarnation);

    if (!st || st->state != STREAM_OPEN || st->synced_to == st->stored)
        return;
    if (st->syncing)
        st->sync_wanted |= st->syncing_to < st->stored;
    else if (l->state == LINK_UP && !l->failing)
        stream_send_sync(l, st);
}

static void on_synced(struct link *l, const struct wire_message *m)
{
    struct stream *st = stream_by_number(l, m->synced.stream);

    if (!st || !st->syncing || m->synced.sequence != st->sequence)
        return;
    if (m->synced.status.code < 0) { /* all that was stored in it is lost: so is this epoch */
        link_fail(l, "sync of job %s step %llu: %s", st->key.job, (unsigned long long)st->key.step,
                  m->synced.status.message);
        return;
    }
    st->syncing = false;
    st->deadline_ns = 0;
    st->synced_to = st->syncing_to;
    if (st->sync_wanted)
        stream_send_sync(l, st);
    links_kick(l->links);
}

void link_end_stream(struct link *l, const char *job, uint64_t step, uint64_t incarnation, bool aborted)
{
    struct stream *st = find_stream(l, job, step, incarnation);
    struct wire_message close_it = {.type = WIRE_STREAM_CLOSE}, forget = {.type = WIRE_FORGET};

    if (l->state == LINK_UP && !l->failing) {
        if (st) {
            close_it.stream_close.stream = st->number;
            link_say(l, &close_it);
        }
        if (aborted) {
            snprintf(forget.forget.job, sizeof forget.forget.job, "%s", job);
            forget.forget.step = step;
            forget.forget.incarnation = incarnation;
            link_say(l, &forget);
        }
    }
    if (!st || l->failing)
        return;
    struct cairn_error err = CAIRN_ERROR_INIT;
    cairn_fail(&err, CAIRN_E_ABORTED, "its checkpoint was decided");
    complete_puts(&st->waiting, &err);
    list_remove(&st->link);
    free(st);
}

/* ---- puts
 * ------------------------------------------------------------------------------------------------------------------------
 */

static void put_maybe_done(struct link *l, struct link_put *p)
{
    if (p->op_busy || !p->answered)
        return;
    for (unsigned i = 0; i < l->nslots; i++)
        if (l->slots[i].put == p) {
            l->slots[i].put = NULL;
            l->slots[i].generation++;
            l->nfree++;
        }
    p->done(p, p->code, &p->err);
    link_pump(l);
}

static void put_written(struct fabric_op *op, int code)
{
    struct link_put *p = op->arg;
    struct link *l = p->owner;

    p->op_busy = false;
    if (code == CAIRN_E_ABORTED)
        return; /* the endpoint closes: the tear-down completes it */
    if (code < 0)
        link_fail(l, "a fragment could not be written: %s", cairn_code_name(code));
    else
        put_maybe_done(l, p);
}

static void put_start(struct link *l, struct link_put *p, uint32_t slot)
{
    struct stream *st = find_stream(l, p->stream.job, p->stream.step, p->stream.incarnation);
    uint32_t data = (l->first_slot + slot) << 16 | l->slots[slot].generation;

    p->slot = slot;
    p->op_busy = true;
    p->answered = false;
    p->deadline_ns = deadline(l, links_config_of(l->links)->fragment_late_ms);
    l->slots[slot].put = p;
    l->nfree--;
    p->fragment->generation = st->generation;
    fragment_seal(p->fragment, p->record);
    p->op = (struct fabric_op){.done = put_written, .arg = p};
    p->owner = l;
    endpoint_write(l->ep, &p->op, l->to, p->record, p->record_len, links_mem(l->links),
                   l->slots_base + slot * l->slot_bytes, l->slots_key, data);
}

static int free_slot(const struct link *l)
{
    for (unsigned i = 0; i < l->nslots; i++)
        if (!l->slots[i].put)
            return (int)i;
    return -1;
}

static void on_stored(struct link *l, const struct wire_message *m)
{
    uint32_t slot = m->stored.slot - l->first_slot;
    struct link_put *p = slot < l->nslots ? l->slots[slot].put : NULL;
    const struct wire_status *status = &m->stored.status;

    if (!p || p->answered || (uint16_t)m->stored.generation != l->slots[slot].generation)
        return;
    p->answered = true;
    p->code = status->code;
    p->epoch = l->epoch;
    struct stream *st = find_stream(l, p->stream.job, p->stream.step, p->stream.incarnation);
    if (status->code == 0 && st) {
        p->stored_at = ++st->stored;
        l->fragments_sent++;
        l->backoff_ms = 0; /* it proved well */
    } else if (status->code == 0) {
        p->code = cairn_fail(&p->err, CAIRN_E_ABORTED, "peer %s: its stream was closed", l->record.id);
    } else {
        cairn_fail(&p->err, status->code, "peer %s: %s", l->record.id, status->message);
        if (st &&
            status->code != CAIRN_E_CORRUPT) { /* full, or its file is given up: no more of this checkpoint here */
            st->state = STREAM_REFUSED;
            st->refusal = p->err;
        }
    }
    put_maybe_done(l, p);
    links_kick(l->links);
}

static void link_pump_puts(struct link *l)
{
    while (l->nfree > 0 && !list_empty(&l->queue) && !l->failing) {
        struct link_put *p = list_first(&l->queue, struct link_put, link);
        struct stream *st = find_stream(l, p->stream.job, p->stream.step, p->stream.incarnation);
        int slot = free_slot(l);
        list_remove(&p->link);
        if (st && st->state == STREAM_OPEN && slot >= 0) {
            put_start(l, p, (uint32_t)slot);
            continue;
        }
        struct cairn_error err = CAIRN_ERROR_INIT;
        cairn_fail(&err, CAIRN_E_UNAVAILABLE, "peer %s takes no more of this checkpoint: %s", l->record.id,
                   st ? st->refusal.message : "its stream was closed");
        p->done(p, err.code, &err);
    }
}

int link_put(struct link *l, struct link_put *p, struct cairn_error *err)
{
    struct stream *st = find_stream(l, p->stream.job, p->stream.step, p->stream.incarnation);

    list_init(&p->link);
    p->err = (struct cairn_error)CAIRN_ERROR_INIT;
    if (!link_usable(l, NULL) || l->state == LINK_DOWN)
        return cairn_fail(err, CAIRN_E_UNAVAILABLE, "peer %s: %s", l->record.id, link_last_error(l));
    if (!st && l->state == LINK_UP && !(st = open_stream(l, &p->stream)))
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a stream");
    if (st && st->state == STREAM_REFUSED) {
        cairn_error_copy(err, &st->refusal);
        return st->refusal.code;
    }
    if (!st || st->state == STREAM_OPENING)
        list_push_back(st ? &st->waiting : &l->early, &p->link);
    else
        list_push_back(&l->queue, &p->link);
    link_pump(l);
    return 0;
}

/* ---- reads
 * -------------------------------------------------------------------------------------------------------------------------
 */

static int free_read_buffer(const struct link *l)
{
    for (int i = 0; i < LINK_READ_BUFFERS; i++)
        if (!l->read_busy[i])
            return i;
    return -1;
}

static void read_send(struct link *l, struct link_read *r, int buffer)
{
    struct wire_message m = {.type = WIRE_READ};

    r->request = ++l->next_request;
    r->buffer = buffer;
    r->deadline_ns = deadline(l, links_config_of(l->links)->fragment_late_ms);
    list_push_back(&l->reads_sent, &r->link);
    m.read.request = r->request;
    m.read.key = r->key;
    m.read.check = r->check;
    if (buffer >= 0) {
        l->read_busy[buffer] = true;
        /* The last read's header must not pass for this one's. */
        memset(l->read_memory + (size_t)buffer * FRAGMENT_MAX_RECORD, 0, 8);
        m.read.address = fabric_mem_remote_base(l->read_mem) + (size_t)buffer * FRAGMENT_MAX_RECORD;
        m.read.remote_key = fabric_mem_key(l->read_mem);
        m.read.room = FRAGMENT_MAX_RECORD;
        m.read.data = (uint32_t)r->request;
    }
    link_say(l, &m);
}

static void link_pump_reads(struct link *l)
{
    list_for_each_safe (it, &l->reads_queued) {
        struct link_read *r = container_of(it, struct link_read, link);
        int buffer = r->check ? -1 : free_read_buffer(l);
        if (l->failing || (!r->check && buffer < 0))
            return;
        list_remove(it);
        read_send(l, r, buffer);
    }
}

static void read_end(struct link *l, struct link_read *r, int code, const struct cairn_error *err)
{
    const char *record = r->buffer >= 0 && code == 0 ? l->read_memory + (size_t)r->buffer * FRAGMENT_MAX_RECORD : NULL;
    int buffer = r->buffer;

    list_remove(&r->link);
    l->fragments_read += code == 0;
    if (code == 0)
        l->backoff_ms = 0;
    r->done(r, code, err, record);
    if (buffer >= 0)
        l->read_busy[buffer] = false;
    link_pump(l);
}

static void on_written(void *arg, uint32_t data)
{
    struct link *l = arg;

    l->heard_ns = now_ns(l);
    list_for_each (it, &l->reads_sent) {
        struct link_read *r = container_of(it, struct link_read, link);
        if ((uint32_t)r->request == data && !r->check) {
            read_end(l, r, 0, NULL);
            return;
        }
    }
}

static void on_read_done(struct link *l, const struct wire_message *m)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    const struct wire_status *status = &m->read_done.status;

    list_for_each (it, &l->reads_sent) {
        struct link_read *r = container_of(it, struct link_read, link);
        if (r->request != m->read_done.request || (status->code == 0 && !r->check))
            continue;
        if (status->code < 0)
            cairn_fail(&err, status->code, "peer %s: %s", l->record.id, status->message);
        read_end(l, r, status->code, &err);
        return;
    }
}

int link_read(struct link *l, struct link_read *r, struct cairn_error *err)
{
    list_init(&r->link);
    r->buffer = -1;
    if (!link_usable(l, NULL) || l->state == LINK_DOWN)
        return cairn_fail(err, CAIRN_E_UNAVAILABLE, "peer %s: %s", l->record.id, link_last_error(l));
    list_push_back(&l->reads_queued, &r->link);
    link_pump(l);
    return 0;
}

static void cancelled_done(struct link_read *r, int code, const struct cairn_error *err, const char *record)
{
    (void)code;
    (void)err;
    (void)record;
    free(r);
}

/* One that was sent leaves a stand-in behind: its buffer is in use until the answer or the deadline. */
void link_read_cancel(struct link *l, struct link_read *r)
{
    struct link_read *stand_in;

    if (list_empty(&r->link))
        return;
    if (r->deadline_ns == 0) {
        list_remove(&r->link);
        return;
    }
    stand_in = malloc(sizeof *stand_in);
    if (!stand_in) {
        list_remove(&r->link); /* the buffer stays taken until the link ends: less room, never a wrong byte */
        return;
    }
    *stand_in = *r;
    stand_in->done = cancelled_done;
    list_push_back(&r->link, &stand_in->link);
    list_remove(&r->link);
    (void)l;
}

/* ---- connection
 * -------------------------------------------------------------------------------------------------------------------------
 */

static void link_pump(struct link *l)
{
    if (l->state != LINK_UP || l->failing)
        return;
    while (!list_empty(&l->early) && !l->failing) { /* puts from before the welcome: now their streams are opened */
        struct link_put *p = list_first(&l->early, struct link_put, link);
        struct cairn_error err = CAIRN_ERROR_INIT;
        list_remove(&p->link);
        int r = link_put(l, p, &err);
        if (r < 0)
            p->done(p, r, &err);
    }
    link_pump_puts(l);
    link_pump_reads(l);
}

static void on_welcome(struct link *l, const struct wire_message *m)
{
    if (l->state != LINK_CONNECTING)
        return;
    if (m->welcome.status.code < 0) {
        link_fail(l, "it refused us: %s", m->welcome.status.message);
        return;
    }
    if (strcmp(m->welcome.peer, l->record.id) != 0) {
        link_fail(l, "peer %s answers at its address", m->welcome.peer);
        return;
    }
    l->state = LINK_UP;
    l->session = m->session;
    l->slots_key = m->welcome.key;
    l->slots_base = m->welcome.base;
    l->slot_bytes = m->welcome.slot_bytes;
    l->first_slot = m->welcome.first_slot;
    l->nslots = m->welcome.slots < LINK_MAX_SLOTS ? m->welcome.slots : LINK_MAX_SLOTS;
    l->nfree = l->nslots;
    for (unsigned i = 0; i < l->nslots; i++)
        l->slots[i] = (struct slot){.put = NULL};
    log_line(LOG_DETAIL, "peer %s is up with %u slots", l->record.id, l->nslots);
    link_pump(l);
    links_kick(l->links);
}

static void on_message(void *arg, const void *data, size_t len)
{
    struct link *l = arg;
    struct wire_message m;
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (l->failing)
        return;
    if (wire_decode(data, len, &m, &err) < 0) {
        link_fail(l, "it sent %s", err.message);
        return;
    }
    if (m.type != WIRE_WELCOME && m.session != l->session)
        return;
    l->heard_ns = now_ns(l);
    l->ping_deadline_ns = 0;
    if (m.type == WIRE_WELCOME)
        on_welcome(l, &m);
    else if (m.type == WIRE_STREAM_OPENED)
        on_stream_opened(l, &m);
    else if (m.type == WIRE_STORED)
        on_stored(l, &m);
    else if (m.type == WIRE_SYNCED)
        on_synced(l, &m);
    else if (m.type == WIRE_READ_DONE)
        on_read_done(l, &m);
    else if (m.type == WIRE_BYE)
        link_fail(l, "it said goodbye: %s", m.bye.reason);
}

static const struct endpoint_events events = {on_message, on_written};

static const char *overdue_stream(const struct link *l, uint64_t now)
{
    list_for_each (it, &l->streams) {
        const struct stream *st = container_of(it, struct stream, link);
        if (st->deadline_ns && now > st->deadline_ns)
            return st->state == STREAM_OPENING ? "it did not open a stream in time" : "it did not sync in time";
    }
    return NULL;
}

static const char *overdue(const struct link *l, uint64_t now)
{
    if (l->state == LINK_CONNECTING)
        return now > l->hello_deadline_ns ? "it did not answer our greeting in time" : NULL;
    for (unsigned i = 0; i < l->nslots; i++)
        if (l->slots[i].put && now > l->slots[i].put->deadline_ns)
            return "it did not store a fragment in time";
    list_for_each (it, &l->reads_sent)
        if (now > container_of(it, struct link_read, link)->deadline_ns)
            return "it did not send a fragment in time";
    if (l->ping_deadline_ns && now > l->ping_deadline_ns)
        return "it did not answer a ping in time";
    return overdue_stream(l, now);
}

static void tick(struct loop_timer *t)
{
    struct link *l = t->arg;
    uint64_t now = now_ns(l);
    const char *late = overdue(l, now);

    if (late) {
        link_fail(l, "%s", late);
        return;
    }
    if (l->state == LINK_UP && !l->ping_deadline_ns && now - l->heard_ns > (uint64_t)PING_IDLE_MS * 1000000) {
        struct wire_message m = {.type = WIRE_PING};
        l->ping_deadline_ns = deadline(l, links_config_of(l->links)->sync_late_ms);
        link_say(l, &m);
    }
    loop_timer_after(links_loop(l->links), t, TICK_MS);
}

static int make_read_memory(struct link *l, struct cairn_error *err)
{
    size_t len = LINK_READ_BUFFERS * FRAGMENT_MAX_RECORD;
    uint64_t key;
    void *map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (map == MAP_FAILED)
        return cairn_fail_errno(err, errno, "map %zu bytes", len);
    l->read_memory = map;
    if (getrandom(&key, sizeof key, 0) != sizeof key)
        return cairn_fail_errno(err, errno, "draw a key");
    return fabric_mem_register(links_fabric(l->links), map, len, FABRIC_REMOTE_WRITE, key, &l->read_mem, err);
}

static int greet(struct link *l, struct cairn_error *err)
{
    const struct links_config *c = links_config_of(l->links);
    struct wire_message m = {.type = WIRE_HELLO};
    int r = make_read_memory(l, err);

    if (r == 0)
        r = endpoint_open(links_fabric(l->links), 0, MESSAGES, &events, l, &l->ep, err);
    if (r == 0)
        r = endpoint_resolve(l->ep, l->record.address, l->record.address_len, &l->to, err);
    if (r < 0)
        return r;
    snprintf(m.hello.node, sizeof m.hello.node, "%s", c->node);
    m.hello.start = c->start;
    m.hello.slots = c->slots;
    endpoint_address(l->ep, m.hello.address, &m.hello.address_len);
    link_say(l, &m);
    return 0;
}

void link_connect(struct link *l)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (l->state != LINK_DOWN || !l->registered || l->failing || avoided(l))
        return;
    l->state = LINK_CONNECTING;
    l->heard_ns = now_ns(l);
    l->ping_deadline_ns = 0;
    l->hello_deadline_ns = deadline(l, links_config_of(l->links)->connect_ms);
    l->tick = (struct loop_timer){.fire = tick, .arg = l};
    loop_timer_after(links_loop(l->links), &l->tick, TICK_MS);
    if (greet(l, &err) < 0)
        link_fail(l, "%s", err.message);
}

/* ---- the object
 * --------------------------------------------------------------------------------------------------------------------------------
 */

int link_new(struct links *links, const struct record_peer *record, struct link **ret_link, struct cairn_error *err)
{
    struct link *l = calloc(1, sizeof *l);

    if (!l)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a link");
    l->links = links;
    l->record = *record;
    l->registered = true;
    list_init(&l->queue);
    list_init(&l->early);
    list_init(&l->streams);
    list_init(&l->reads_queued);
    list_init(&l->reads_sent);
    *ret_link = l;
    return 0;
}

bool link_failing(const struct link *l)
{
    return l->failing;
}

void link_free(struct link *l)
{
    if (l->state != LINK_DOWN) {
        loop_timer_cancel(links_loop(l->links), &l->tick);
        snprintf(l->last_error, sizeof l->last_error, "cairnd stops");
        l->tear_down.arg = l;
        tear_down(&l->tear_down);
    }
    free(l);
}

/* A peer that started again is another one at, perhaps, another address: what the old one held in memory is gone, what
 * it stored is on its disk, and its backoff is forgiven. */
void link_update(struct link *l, const struct record_peer *record)
{
    bool restarted = record && record->start != l->record.start;

    l->registered = record != NULL;
    if (restarted && l->state != LINK_DOWN)
        link_fail(l, "it started again");
    if (restarted) {
        l->avoided_until_ns = 0;
        l->backoff_ms = 0;
    }
    if (record)
        l->record = *record;
}

void link_say_bye(struct link *l)
{
    struct wire_message m = {.type = WIRE_BYE};

    if (l->state != LINK_UP || l->failing)
        return;
    snprintf(m.bye.reason, sizeof m.bye.reason, "cairnd stops");
    link_say(l, &m);
}
