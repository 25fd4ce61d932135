/* SPDX-License-Identifier: Apache-2.0 */
/* An endpoint's operations.
 *
 *     endpoint_send/write -> posted to libfabric -> completion -> done()
 *          |    \-> refused: the finished list -> done() in the next poll
 *          \-> no room or no connection (EAGAIN): waits in its destination's queue, in order, and is tried again
 *              when the destination's operations complete and after a growing delay
 *
 * What libfabric holds is a struct flight and never the caller's operation: when a destination is forgotten its
 * operations end at once, and what libfabric may still say about them later finds a flight without one.
 *
 * Over sockets posting a write is to send it: a window of fragments in one go is ten milliseconds in which nobody else
 * is heard. So a turn of the loop posts TURN_BYTES, and what is more waits for the next.
 *
 * Of a destination with no listener libfabric says nothing: the connection is tried for ever (each try costs a
 * connect(), hence the delay). The same when it is stopped: connections are made by its kernel, and data waits in
 * socket buffers.
 */
#include "daemon/io/fabric_internal.h"

#include <assert.h>
#include <rdma/fi_rma.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SENDS 1024        /* messages to one destination that have not left */
#define RETRY_FIRST_NS 500000 /* after EAGAIN; doubles */
#define RETRY_LAST_NS 20000000

#define TURN_BYTES ((size_t)1 << 20) /* of writes; one that begins below it may end above */

enum { OP_SEND = 1, OP_WRITE = 2 };

struct destination *endpoint_destination(struct endpoint *ep, uint64_t to)
{
    uint32_t index = (uint32_t)to;
    struct destination *d = index < ep->ndestinations ? ep->destinations[index] : NULL;

    return d && d->used && d->generation == (uint32_t)(to >> 32) ? d : NULL;
}

static void op_finish(struct fabric_op *op, int code)
{
    op->code = code;
    list_remove(&op->link);
    list_push_back(&op->ep->finished, &op->link);
}

/* Its place in the destination's counts is given back, then it is the caller's again. */
static void op_complete(struct fabric_op *op, int code)
{
    struct destination *d = endpoint_destination(op->ep, op->to);

    if (d && op->kind == OP_SEND)
        d->sends--;
    list_remove(&op->link);
    free(op->bounce);
    op->bounce = NULL;
    op->done(op, code);
}

void endpoint_flight_free(struct flight *f)
{
    list_remove(&f->link);
    if (f->bounce_mr)
        (void)fi_close(&f->bounce_mr->fid); /* of our own bytes; a leak at worst */
    free(f->bounce);
    free(f);
}

static ssize_t post_send(struct endpoint *ep, struct destination *d, struct fabric_op *op, struct flight *f)
{
    void *desc = NULL;

    if (fabric_needs_local(ep->fabric) && op->len) {
        int r = fi_mr_reg(ep->fabric->domain, op->bounce, op->len, FI_SEND, 0, ++ep->fabric->local_key, 0,
                          &f->bounce_mr, NULL);
        if (r < 0)
            return r;
        desc = fi_mr_desc(f->bounce_mr);
    }
    return fi_send(ep->ep, op->bounce, op->len, desc, d->addr, &f->context);
}

/* The write and, behind it on the same connection, a message without bytes that carries the data (FI_ORDER_SAW).
 * libfabric's own write with data is no choice: ofi_rxm crashes a receiver that closes the connection while one is
 * arriving (rxm_handle_comp_error, 1.17 and later), and closing it is how a peer ends a node's writes.
 *
 * When there is no room for the message the connection may have broken: sent on the next one it would announce bytes
 * that never came. So the write is done again, once it has completed. */
static ssize_t post_write(struct endpoint *ep, struct destination *d, struct fabric_op *op, struct flight *f)
{
    struct iovec local[] = {{(void *)op->buf, op->len}, {(void *)op->more, op->more_len}};
    void *desc[] = {fi_mr_desc(op->mem->mr), NULL};
    struct fi_rma_iov remote = {.addr = op->remote_addr, .len = op->len + op->more_len, .key = op->remote_key};
    struct fi_msg_rma msg = {.msg_iov = local,
                             .desc = desc,
                             .iov_count = op->more ? 2 : 1,
                             .addr = d->addr,
                             .rma_iov = &remote,
                             .rma_iov_count = 1,
                             .context = &f->context};
    ssize_t r = fi_writemsg(ep->ep, &msg, 0);

    if (r < 0)
        return r;
    ep->turn_bytes += op->len + op->more_len;
    if (fi_injectdata(ep->ep, op, 0, op->data, d->addr) < 0)
        d->blocked = op;
    return 0;
}

/* Gives the operation to libfabric: 0, or a negative libfabric code with nothing changed. */
static ssize_t op_post(struct endpoint *ep, struct destination *d, struct fabric_op *op)
{
    struct flight *f = calloc(1, sizeof(*f));

    if (!f)
        return -FI_ENOMEM;
    list_init(&f->link);
    ssize_t r = op->kind == OP_SEND ? post_send(ep, d, op, f) : post_write(ep, d, op, f);
    if (r < 0) {
        endpoint_flight_free(f);
        return r;
    }
    f->op = op;
    f->bounce = op->bounce;
    op->bounce = NULL;
    op->flight = f;
    list_push_back(&ep->flights, &f->link);
    d->flights++;
    if (!d->blocked)
        d->retry_delay_ns = 0;
    return 0;
}

static void set_retry(struct endpoint *ep, struct destination *d)
{
    uint64_t delay = d->retry_delay_ns ? 2 * d->retry_delay_ns : RETRY_FIRST_NS;

    d->retry_delay_ns = delay < RETRY_LAST_NS ? delay : RETRY_LAST_NS;
    d->retry_at_ns = loop_now_ns(ep->fabric->loop) + d->retry_delay_ns;
    if (!ep->retry.heap_index || d->retry_at_ns < ep->retry.at_ns)
        loop_timer_set(ep->fabric->loop, &ep->retry, d->retry_at_ns);
}

/* A write without its notification, to be done again. */
static void unblock(struct endpoint *ep, struct destination *d)
{
    list_push_front(&d->waiting, &d->blocked->link);
    d->blocked = NULL;
    set_retry(ep, d);
}

void endpoint_flight_complete(struct endpoint *ep, struct flight *f, int code)
{
    struct fabric_op *op = f->op;

    endpoint_flight_free(f);
    if (!op)
        return;
    struct destination *d = endpoint_destination(ep, op->to);
    d->flights--; /* it is there: forgetting it would have taken the operation from its flight */
    op->flight = NULL;
    if (d->blocked == op && code == 0) {
        unblock(ep, d);
        return;
    }
    if (d->blocked == op)
        d->blocked = NULL;
    op_complete(op, code);
}

static bool is_held(struct endpoint *ep, const struct fabric_op *op)
{
    bool held = op->kind == OP_WRITE && ep->turn_bytes >= TURN_BYTES;

    ep->held |= held;
    return held;
}

static void op_start(struct endpoint *ep, struct fabric_op *op)
{
    struct destination *d = endpoint_destination(ep, op->to);

    if (!d || ep->closing) {
        op_finish(op, ep->closing ? CAIRN_E_ABORTED : CAIRN_E_UNAVAILABLE);
        return;
    }
    if (list_empty(&d->waiting) && !d->blocked && is_held(ep, op)) {
        d->retry_at_ns = 0;
    } else if (list_empty(&d->waiting) && !d->blocked) {
        ssize_t r = op_post(ep, d, op);
        if (r == 0)
            return;
        if (r != -FI_EAGAIN) {
            op_finish(op, fabric_code((int)-r));
            return;
        }
        set_retry(ep, d);
    }
    list_push_back(&d->waiting, &op->link); /* behind what came before it */
}

static void op_init(struct endpoint *ep, struct fabric_op *op, int kind, uint64_t to, const void *buf, size_t len)
{
    loop_assert_here(ep->fabric->loop);
    op->ep = ep;
    op->kind = kind;
    op->to = to;
    op->buf = buf;
    op->len = len;
    op->bounce = NULL;
    op->flight = NULL;
    list_init(&op->link);
}

void endpoint_send(struct endpoint *ep, struct fabric_op *op, uint64_t to, const void *message, size_t len)
{
    struct destination *d = endpoint_destination(ep, to);

    op_init(ep, op, OP_SEND, to, NULL, len);
    if (d)
        d->sends++; /* op_complete takes it back on every path */
    if (len > FABRIC_MAX_MESSAGE) {
        op_finish(op, CAIRN_E_TOO_LARGE);
        return;
    }
    if (d && d->sends > MAX_SENDS) {
        op_finish(op, CAIRN_E_BUSY);
        return;
    }
    op->bounce = malloc(len ? len : 1);
    if (!op->bounce) {
        op_finish(op, CAIRN_E_NOMEM);
        return;
    }
    if (len)
        memcpy(op->bounce, message, len);
    op_start(ep, op);
}

void endpoint_write(struct endpoint *ep, struct fabric_op *op, uint64_t to, const void *buf, size_t len,
                    struct fabric_mem *mem, uint64_t remote_addr, uint64_t remote_key, uint32_t data)
{
    struct fabric_more none = {NULL, 0};

    endpoint_write_more(ep, op, to, buf, len, mem, &none, remote_addr, remote_key, data);
}

void endpoint_write_more(struct endpoint *ep, struct fabric_op *op, uint64_t to, const void *buf, size_t len,
                         struct fabric_mem *mem, const struct fabric_more *more, uint64_t remote_addr,
                         uint64_t remote_key, uint32_t data)
{
    op_init(ep, op, OP_WRITE, to, buf, len);
    op->mem = mem;
    op->more = more->buf;
    op->more_len = more->len;
    op->remote_addr = remote_addr;
    op->remote_key = remote_key;
    op->data = data;
    if (op->more && !fabric_gathers(ep->fabric)) { /* who asks fabric_sends_anything copies instead */
        op_finish(op, CAIRN_E_UNSUPPORTED);
        return;
    }
    op_start(ep, op);
}

/* Tries a destination's waiting operations until one has to wait on, or the turn has posted enough. */
static bool retry_destination(struct endpoint *ep, struct destination *d)
{
    bool any = false;

    while (!list_empty(&d->waiting) && !d->blocked) {
        struct fabric_op *op = list_first(&d->waiting, struct fabric_op, link);

        if (is_held(ep, op))
            break;
        list_remove(&op->link);
        ssize_t r = op_post(ep, d, op);

        if (r == -FI_EAGAIN) {
            list_push_front(&d->waiting, &op->link);
            set_retry(ep, d);
            break;
        }
        if (r < 0)
            op_finish(op, fabric_code((int)-r));
        any = true;
    }
    return any;
}

bool endpoint_retry(struct endpoint *ep, bool completed)
{
    uint64_t now = loop_now_ns(ep->fabric->loop);
    bool any = false;

    ep->turn_bytes = 0;
    ep->held = false;
    for (unsigned n = 0, first = ep->first_retry; n < ep->ndestinations && !ep->held; n++) {
        unsigned i = (first + n) % ep->ndestinations;
        struct destination *d = ep->destinations[i];

        if (list_empty(&d->waiting) || (now < d->retry_at_ns && !(completed && d->flights)))
            continue;
        bool posted = retry_destination(ep, d);
        ep->first_retry = posted ? i + 1 : i;
        any |= posted;
    }
    return any;
}

/* The timer only ends the loop's wait; the poll that follows tries again. It fires for the earliest destination. */
void endpoint_on_retry(struct loop_timer *timer)
{
    struct endpoint *ep = container_of(timer, struct endpoint, retry);
    uint64_t next = UINT64_MAX;

    for (unsigned i = 0; i < ep->ndestinations; i++) {
        struct destination *d = ep->destinations[i];

        if (!list_empty(&d->waiting) && d->retry_at_ns > timer->at_ns && d->retry_at_ns < next)
            next = d->retry_at_ns;
    }
    if (next != UINT64_MAX)
        loop_timer_set(ep->fabric->loop, timer, next);
}

bool endpoint_run_finished(struct endpoint *ep)
{
    struct list now;
    bool any = !list_empty(&ep->finished);

    list_init(&now);
    while (!list_empty(&ep->finished)) {
        struct list *link = ep->finished.next;

        list_remove(link);
        list_push_back(&now, link);
    }
    while (!list_empty(&now)) {
        struct fabric_op *op = list_first(&now, struct fabric_op, link);

        op_complete(op, op->code);
    }
    return any;
}

void endpoint_abort(struct endpoint *ep, uint64_t to, bool all)
{
    struct list ended;

    list_init(&ended);
    list_for_each (it, &ep->flights) {
        struct flight *f = container_of(it, struct flight, link);
        struct fabric_op *op = f->op;

        if (!op || (!all && op->to != to))
            continue;
        f->op = NULL;
        op->flight = NULL;
        list_push_back(&ended, &op->link);
    }
    for (unsigned i = 0; i < ep->ndestinations; i++) {
        struct destination *d = ep->destinations[i];

        if (!all && i != (uint32_t)to)
            continue;
        while (!list_empty(&d->waiting)) {
            struct list *link = d->waiting.next;

            list_remove(link);
            list_push_back(&ended, link);
        }
    }
    while (!list_empty(&ended))
        op_complete(list_first(&ended, struct fabric_op, link), CAIRN_E_ABORTED);
}
