/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/peer/internal.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/name.h"
#include "daemon/io/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define TICK_MS 1000
#define FORGET_TICKS 60
#define STOP_SENDS_MS 200
#define MESSAGES 64 /* receive buffers of the endpoint */

/* ---- sending --------------------------------------------------------------------------------- */

struct sending {
    struct fabric_op op;
    struct peer_node *node;
};

static void sent(struct fabric_op *op, int code)
{
    struct sending *s = op->arg;
    struct peer_node *n = s->node;

    free(s);
    if (code < 0 && code != CAIRN_E_ABORTED && !n->ended) {
        log_line(LOG_DETAIL, "node %s cannot be reached, its session ends", n->id);
        peer_node_end(n, NULL);
    }
    peer_node_pending_end(n);
}

void peer_send(struct peer_node *n, const void *message, size_t len)
{
    struct sending *s = calloc(1, sizeof *s);

    if (!s)
        return; /* the node's deadline notices */
    s->node = n;
    s->op.done = sent;
    s->op.arg = s;
    n->pending++;
    endpoint_send(n->peer->ep, &s->op, n->to, message, len);
}

/* ---- receiving ------------------------------------------------------------------------------- */

static struct peer_node *find_session(struct peer *p, uint64_t session)
{
    list_for_each (it, &p->nodes) {
        struct peer_node *n = container_of(it, struct peer_node, link);
        if (!n->ended && n->session == session)
            return n;
    }
    return NULL;
}

static void on_ping(struct peer_node *n, const struct wire_message *m)
{
    struct wire_message out = {.type = WIRE_PONG};

    out.pong.request = m->ping.request;
    out.pong.free_bytes = n->peer->status.free_bytes;
    peer_answer(n, &out);
}

static void dispatch(struct peer_node *n, const struct wire_message *m)
{
    switch (m->type) {
    case WIRE_STREAM_OPEN:
        peer_on_stream_open(n, m);
        break;
    case WIRE_SYNC:
        peer_on_sync(n, m);
        break;
    case WIRE_STREAM_CLOSE:
        peer_on_stream_close(n, m);
        break;
    case WIRE_READ:
        peer_on_read(n, m);
        break;
    case WIRE_INVENTORY:
        peer_on_inventory(n, m);
        break;
    case WIRE_ACCEPT_ENGINE:
        peer_on_accept_engine(n, m);
        break;
    case WIRE_SCRUB:
        peer_on_scrub(n, m);
        break;
    case WIRE_FORGET:
        peer_on_forget(n, m);
        break;
    case WIRE_PING:
        on_ping(n, m);
        break;
    case WIRE_BYE:
        peer_node_end(n, NULL);
        break;
    default:
        log_line(LOG_WARNING, "node %s sent %s, which only a peer sends", n->id, wire_type_name(m->type));
    }
}

static void on_message(void *arg, const void *data, size_t len)
{
    struct peer *p = arg;
    struct wire_message m;
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (wire_decode(data, len, &m, &err) < 0) {
        log_line(LOG_WARNING, "a message of %zu bytes was dropped: %s", len, err.message);
        return;
    }
    if (m.type == WIRE_HELLO || m.type == WIRE_PROOF) {
        (m.type == WIRE_HELLO ? peer_on_hello : peer_on_proof)(p, &m);
        return;
    }
    struct peer_node *n = find_session(p, m.session);
    if (!n)
        return; /* of a session that ended: its node was told, or is gone */
    n->heard_ns = loop_now_ns(p->deps.loop);
    dispatch(n, &m);
}

static void on_written(void *arg, uint32_t data)
{
    peer_on_written(arg, data);
}

static const struct endpoint_events events = {on_message, on_written};

/* ---- once a second --------------------------------------------------------------------------- */

static void tick(struct loop_timer *t)
{
    struct peer *p = t->arg;
    uint64_t idle_ns = (uint64_t)p->config.node_idle_ms * 1000000;

    list_for_each_safe (it, &p->nodes) {
        struct peer_node *n = container_of(it, struct peer_node, link);
        if (!n->ended && loop_now_ns(p->deps.loop) - n->heard_ns > idle_ns) {
            log_line(LOG_NOTICE, "node %s was silent for %u ms and loses its slots", n->id, p->config.node_idle_ms);
            peer_node_end(n, "silent for too long");
        }
    }
    peer_greetings_look(p);
    if (p->ticks++ % FORGET_TICKS == 1) {
        peer_engine_look(p);
        peer_forget_some(p);
    }
    loop_timer_after(p->deps.loop, t, TICK_MS);
}

/* ---- the object ------------------------------------------------------------------------------ */

static void peer_free(struct peer *p)
{
    endpoint_free(p->ep);
    scrub_free(p->scrub);
    fabric_mem_free(p->read_mem);
    buffers_free(p->read_buffers);
    keep_free(p->keep);
    bytes_free(&p->record);
    free(p->fences);
    free(p->id);
    free(p->domain);
    free(p->provider);
    free(p->engine_path);
    free(p);
}

static int peer_start_parts(struct peer *p, struct cairn_error *err)
{
    size_t len;
    int r = cairn_name_check("peer id", p->config.id, err);

    if (r == 0 && getrandom(&p->start, sizeof p->start, 0) != sizeof p->start)
        r = cairn_fail_errno(err, errno, "draw a random number");
    if (r == 0)
        r = keep_new(p->deps.loop, p->deps.store, &p->keep, err);
    if (r == 0)
        r = buffers_new(FRAGMENT_MAX_RECORD, p->config.read_buffers, &p->read_buffers, err);
    if (r < 0)
        return r;
    void *base = buffers_base(p->read_buffers, &len);
    r = fabric_mem_register(p->deps.fabric, base, len, FABRIC_LOCAL, 0, &p->read_mem, err);
    if (r == 0)
        r = scrub_new(p, err);
    if (r == 0)
        r = endpoint_open(p->deps.fabric, p->config.port, MESSAGES, &events, p, &p->ep, err);
    if (r == 0)
        r = peer_engine_start(p, err);
    return r;
}

int peer_new(const struct peer_deps *deps, const struct peer_config *config, struct peer **ret_peer,
             struct cairn_error *err)
{
    struct peer *p = calloc(1, sizeof *p);

    if (!p)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the peer role");
    p->deps = *deps;
    p->config = *config;
    list_init(&p->nodes);
    list_init(&p->reads_waiting);
    p->id = strdup(config->id);
    p->domain = strdup(config->domain ? config->domain : "");
    p->provider = strdup(config->provider ? config->provider : "");
    p->engine_path = strdup(config->engine_path);
    int r = p->id && p->domain && p->provider && p->engine_path
                ? peer_start_parts(p, err)
                : cairn_fail(err, CAIRN_E_NOMEM, "copy the configuration");
    if (r < 0) {
        peer_free(p);
        return cairn_wrap(err, r, "start peer %s", config->id);
    }
    record_key_peer(p->record_key, p->id);
    p->tick = (struct loop_timer){.fire = tick, .arg = p};
    loop_timer_after(p->deps.loop, &p->tick, TICK_MS);
    *ret_peer = p;
    return 0;
}

static void stop_now(struct loop_timer *t)
{
    struct peer *p = t->arg;
    void (*stopped)(void *) = p->stopped;
    void *arg = p->stopped_arg;

    if (keep_busy(p->keep) || scrub_busy(p->scrub)) {
        loop_timer_after(p->deps.loop, t, 1);
        return;
    }
    loop_timer_cancel(p->deps.loop, &p->cut);
    peer_free(p);
    stopped(arg);
}

/* A node that does not read its bye must not hold up the stop: closing the endpoint ends what is on its way. */
static void cut_off(struct loop_timer *t)
{
    struct peer *p = t->arg;

    endpoint_free(p->ep);
    p->ep = NULL;
    peer_maybe_stopped(p);
}

/* Called when anything that a stop waits for has ended. */
void peer_maybe_stopped(struct peer *p)
{
    if (!p->stopping || p->registering || p->engine_looking || p->lease || p->forgetting || !list_empty(&p->nodes) ||
        p->tick.heap_index)
        return;
    p->tick = (struct loop_timer){.fire = stop_now, .arg = p};
    loop_timer_after(p->deps.loop, &p->tick, 0);
}

void peer_stop(struct peer *p, void (*done)(void *arg), void *arg)
{
    p->stopping = true;
    p->stopped = done;
    p->stopped_arg = arg;
    loop_timer_cancel(p->deps.loop, &p->tick);
    loop_timer_cancel(p->deps.loop, &p->engine_timer);
    scrub_stop(p->scrub);
    p->cut = (struct loop_timer){.fire = cut_off, .arg = p};
    loop_timer_after(p->deps.loop, &p->cut, STOP_SENDS_MS);
    list_for_each_safe (it, &p->nodes)
        peer_node_end(container_of(it, struct peer_node, link), "the peer stops");
    peer_unregister(p);
}

void peer_status(const struct peer *p, struct peer_status *ret)
{
    *ret = p->status;
    ret->streams_open = keep_open_streams(p->keep);
}
