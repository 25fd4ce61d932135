/* SPDX-License-Identifier: Apache-2.0 */
/* The connection: greeting, deadlines, failure. Deadlines begin when something was sent, so that a hung peer costs its
 * deadline once, however long the queue behind it is. */
#include "daemon/node/link_internal.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "daemon/io/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define TICK_MS 20
#define PING_IDLE_MS 5000
#define BACKOFF_MAX_MS 30000
#define MESSAGES 32

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
    return !l->registered ? "it is not registered: its lease expired" : l->last_error[0] ? l->last_error : "no error";
}

bool link_registered(const struct link *l)
{
    return l->registered;
}

const struct record_peer *link_record(const struct link *l)
{
    return &l->record;
}

uint64_t link_now_ns(const struct link *l)
{
    return loop_now_ns(links_loop(l->links));
}

static bool avoided(const struct link *l)
{
    return l->avoided_until_ns > link_now_ns(l);
}

bool link_late(const struct link *l)
{
    return l->late;
}

const struct cairn_latency *link_latency(const struct link *l, bool read)
{
    return read ? &l->read_latency : &l->store_latency;
}

bool link_prompt(const struct link *l, const struct stream_key *key)
{
    return !l->late && link_usable(l, key);
}

bool link_usable(const struct link *l, const struct stream_key *key)
{
    const struct stream *st = key ? link_find_stream(l, key) : NULL;

    return l->registered && l->proven && l->state != LINK_DOWN && !l->failing && !avoided(l) &&
           !(st && st->state == STREAM_REFUSED);
}

void link_status_of(const struct link *l, struct link_status *ret)
{
    uint64_t now = link_now_ns(l);

    *ret = (struct link_status){.total_bytes = l->record.total_bytes,
                                .free_bytes = l->record.free_bytes,
                                .fragments_sent = l->fragments_sent,
                                .fragments_read = l->fragments_read,
                                .failures = l->failures};
    snprintf(ret->peer, sizeof ret->peer, "%s", l->record.id);
    snprintf(ret->last_error, sizeof ret->last_error, "%s", l->last_error);
    ret->avoided_ms = l->avoided_until_ns > now ? (uint32_t)((l->avoided_until_ns - now) / 1000000) : 0;
    ret->late = l->late;
    ret->store_late_ms = (uint32_t)(links_late_after_ns(l->links, l, false) / 1000000);
    ret->read_late_ms = (uint32_t)(links_late_after_ns(l->links, l, true) / 1000000);
    ret->state = !l->registered                     ? "gone"
                 : ret->avoided_ms                  ? "avoided"
                 : l->state == LINK_UP && l->proven ? "up"
                 : l->state != LINK_DOWN            ? "connecting"
                                                    : "down";
}

/* ---- sending --------------------------------------------------------------------------------- */

struct sending {
    struct fabric_op op;
    struct link *link;
    uint32_t epoch;
};

static void sent(struct fabric_op *op, int code)
{
    struct sending *s = op->arg;
    struct link *l = s->link;
    bool current = s->epoch == l->epoch;

    free(s);
    if (code < 0 && code != CAIRN_E_ABORTED && current)
        link_fail(l, "a message could not be sent: %s", cairn_code_name(code));
}

void link_say(struct link *l, struct wire_message *m)
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

uint64_t link_deadline(const struct link *l, uint32_t ms)
{
    return link_now_ns(l) + (uint64_t)ms * 1000000;
}

/* ---- failing --------------------------------------------------------------------------------- */

/* Everything that hangs on the connection, gathered first: what completes may start something new on this link. */
static void drop_requests(struct link *l, const struct cairn_error *err)
{
    struct list puts = LIST_INIT(puts), reads = LIST_INIT(reads);

    link_take_puts(l, &puts);
    link_move_all(&l->reads_sent, &reads);
    link_move_all(&l->reads_queued, &reads);
    link_complete_puts(&puts, err);
    link_complete_reads(&reads, err);
    link_complete_calls(l, err);
}

/* The endpoint goes first: after it nothing of this link touches memory any more. */
static void tear_down(struct loop_post *post)
{
    struct link *l = post->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;

    l->epoch++;
    endpoint_free(TAKE_PTR(l->ep));
    link_release_read_memory(l);
    l->state = LINK_DOWN;
    l->session = 0;
    l->failing = false;
    l->late = false;
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

void link_fail(struct link *l, const char *fmt, ...)
{
    va_list ap;

    if (l->failing || l->state == LINK_DOWN)
        return;
    va_start(ap, fmt);
    vsnprintf(l->last_error, sizeof l->last_error, fmt, ap);
    va_end(ap);
    l->failures++;
    l->proven = false;
    l->backoff_ms = l->backoff_ms ? l->backoff_ms * 2 : links_config_of(l->links)->backoff_ms;
    if (l->backoff_ms > BACKOFF_MAX_MS)
        l->backoff_ms = BACKOFF_MAX_MS;
    l->avoided_until_ns = link_deadline(l, l->backoff_ms);
    log_line(LOG_WARNING, "peer %s is avoided for %u ms: %s", l->record.id, l->backoff_ms, l->last_error);
    link_drop(l);
}

/* ---- connection ------------------------------------------------------------------------------ */

void link_pump(struct link *l)
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

/* ---- lateness -------------------------------------------------------------------------------- */

void link_did_well(struct link *l)
{
    uint64_t held_ns = link_now_ns(l) - l->up_since_ns;

    l->late = false;
    if (held_ns > (uint64_t)l->backoff_ms * 1000000)
        l->backoff_ms = 0;
}

/* Whether anything that was asked of it is unanswered; ret_since: what was asked for first. */
static bool waits_for_answer(const struct link *l, uint64_t *ret_since_ns)
{
    uint64_t since = UINT64_MAX;

    for (unsigned i = 0; i < l->nslots; i++)
        if (l->slots[i].put && l->slots[i].put->sent_ns < since)
            since = l->slots[i].put->sent_ns;
    list_for_each (it, &l->streams) {
        const struct stream *st = container_of(it, struct stream, link);
        if (st->state == STREAM_OPENING && !list_empty(&st->waiting) && st->opened_ns < since)
            since = st->opened_ns;
    }
    if (l->state == LINK_CONNECTING && !list_empty(&l->early))
        since = list_first(&l->early, struct link_put, link)->queued_ns;
    *ret_since_ns = since;
    return since != UINT64_MAX;
}

/* Late links are noticed here and told to the pumps: drains give what waits there to others. */
static void notice_lateness(struct link *l, uint64_t now)
{
    uint64_t since;

    if (l->late || !waits_for_answer(l, &since) || now - since <= links_late_after_ns(l->links, l, false) ||
        !links_may_be_late(l->links))
        return;
    l->late = true;
    log_line(LOG_DETAIL, "peer %s is late: nothing for %llu ms", l->record.id,
             (unsigned long long)(now - since) / 1000000);
    links_kick(l->links);
}

bool link_put_is_late(const struct link *l, const struct link_put *p)
{
    return l->late || link_now_ns(l) - p->queued_ns > links_late_after_ns(l->links, l, false);
}

bool link_read_is_late(const struct link *l, const struct link_read *r)
{
    uint64_t now = link_now_ns(l), after = links_late_after_ns(l->links, l, true);

    if (r->sent_ns)
        return now - r->sent_ns > after;
    list_for_each (it, &l->reads_sent) /* it waits behind these */
        if (now - container_of(it, struct link_read, link)->sent_ns > after)
            return true;
    return false;
}

/* ---- messages -------------------------------------------------------------------------------- */

static void say_ping(struct link *l, uint32_t late_ms)
{
    struct wire_message m = {.type = WIRE_PING};

    l->ping_deadline_ns = link_deadline(l, late_ms);
    link_say(l, &m);
}

/* It is there and answers: only now a link that failed gets fragments again, and one that was late and has nothing left
 * to answer is prompt. */
static void on_pong(struct link *l)
{
    uint64_t since;

    if (!l->proven)
        log_line(LOG_NOTICE, "peer %s answers again", l->record.id);
    l->proven = true;
    l->late &= waits_for_answer(l, &since);
    links_kick(l->links);
}

static void on_welcome(struct link *l, const struct wire_message *m)
{
    if (l->key_proven && m->session != l->session)
        return; /* not from who proved itself */
    if (m->welcome.status.code < 0) {
        link_fail(l, "it refused us: %s", m->welcome.status.message);
        return;
    }
    if (!link_key_proven(l)) {
        link_fail(l, "it has no key, and this node wants proof ([fabric] key_file)");
        return;
    }
    if (strcmp(m->welcome.peer, l->record.id) != 0) {
        link_fail(l, "peer %s answers at its address", m->welcome.peer);
        return;
    }
    l->state = LINK_UP;
    l->up_since_ns = link_now_ns(l);
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
    if (!l->proven)
        say_ping(l, links_config_of(l->links)->connect_ms);
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
    bool greeting = m.type == WIRE_WELCOME || m.type == WIRE_CHALLENGE;
    if (greeting ? l->state != LINK_CONNECTING : l->state != LINK_UP || m.session != l->session)
        return;
    l->heard_ns = link_now_ns(l);
    l->ping_deadline_ns = 0;
    if (m.type == WIRE_PONG)
        on_pong(l);
    if (m.type == WIRE_WELCOME)
        on_welcome(l, &m);
    else if (m.type == WIRE_CHALLENGE)
        link_on_challenge(l, &m);
    else if (m.type == WIRE_STREAM_OPENED)
        link_on_stream_opened(l, &m);
    else if (m.type == WIRE_STORED)
        link_on_stored(l, &m);
    else if (m.type == WIRE_SYNCED)
        link_on_synced(l, &m);
    else if (m.type == WIRE_READ_DONE)
        link_on_read_done(l, &m);
    else if (m.type == WIRE_SCRUB_DONE || m.type == WIRE_INVENTORY_ITEMS || m.type == WIRE_ENGINE_ACCEPTED)
        link_on_answer(l, &m);
    else if (m.type == WIRE_FORGOTTEN)
        links_forgotten(l->links, l->record.id, m.forget.job, m.forget.step, m.forget.incarnation);
    else if (m.type == WIRE_BYE)
        link_fail(l, "it said goodbye: %s", m.bye.reason);
}

static const struct endpoint_events events = {on_message, link_on_written};

/* ---- deadlines ------------------------------------------------------------------------------- */

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

static bool expects_answer(const struct link *l)
{
    if (l->late)
        return true;
    list_for_each (it, &l->streams)
        if (container_of(it, struct stream, link)->deadline_ns)
            return true;
    return false;
}

/* A device may be slow with an open or a sync, and has its time for it; a process that is there answers a ping at once.
 * So a hung peer costs fragment_late_ms, whatever it was asked for. */
static void ping_if_silent(struct link *l, uint64_t now)
{
    uint32_t late_ms = links_config_of(l->links)->fragment_late_ms;
    uint32_t silent_ms = expects_answer(l) ? late_ms / 4 : PING_IDLE_MS;

    if (l->state != LINK_UP || l->ping_deadline_ns || now - l->heard_ns <= (uint64_t)silent_ms * 1000000)
        return;
    say_ping(l, late_ms - late_ms / 4);
}

static void tick(struct loop_timer *t)
{
    struct link *l = t->arg;
    uint64_t now = link_now_ns(l);
    const char *late = overdue(l, now);

    if (late) {
        link_fail(l, "%s", late);
        return;
    }
    notice_lateness(l, now);
    ping_if_silent(l, now);
    if (l->failing)
        return;
    loop_timer_after(links_loop(l->links), t, TICK_MS);
}

static int greet(struct link *l, struct cairn_error *err)
{
    const struct links_config *c = links_config_of(l->links);
    struct wire_message m = {.type = WIRE_HELLO};
    int r = link_make_read_memory(l, err);

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
    r = link_hello_nonce(l, &m, err);
    if (r == 0)
        link_say(l, &m);
    return r;
}

void link_connect(struct link *l)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (l->state != LINK_DOWN || !l->registered || l->failing || avoided(l))
        return;
    l->state = LINK_CONNECTING;
    l->heard_ns = link_now_ns(l);
    l->ping_deadline_ns = 0;
    l->hello_deadline_ns = link_deadline(l, links_config_of(l->links)->connect_ms);
    l->tick = (struct loop_timer){.fire = tick, .arg = l};
    loop_timer_after(links_loop(l->links), &l->tick, TICK_MS);
    if (greet(l, &err) < 0)
        link_fail(l, "%s", err.message);
}

/* ---- the object ------------------------------------------------------------------------------ */

int link_new(struct links *links, const struct record_peer *record, struct link **ret_link, struct cairn_error *err)
{
    struct link *l = calloc(1, sizeof *l);

    if (!l)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a link");
    l->links = links;
    l->record = *record;
    l->registered = l->proven = true;
    list_init(&l->queue);
    list_init(&l->early);
    list_init(&l->streams);
    list_init(&l->reads_queued);
    list_init(&l->reads_sent);
    list_init(&l->calls);
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
        l->proven = true;
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
