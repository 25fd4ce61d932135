/* SPDX-License-Identifier: Apache-2.0 */
/* An endpoint: one completion queue, one address vector, polled by the loop. Its operations are in endpoint_ops.c. */
#include "daemon/io/fabric_internal.h"

#include "core/base/error.h"

#include <assert.h>
#include <rdma/fi_cm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/poll.h>

#define POLL_BATCH 16
#define POLL_ROUNDS 4
#define SPIN_NS 20000 /* polled without sleeping for so long after the last work: a wake-up costs more */
#define MAX_DESTINATIONS 65536

struct receive {
    struct fi_context2 context; /* libfabric's */
    struct list link;           /* in endpoint.unposted, or in no list */
    void *buf;
};

/* Lives on when its endpoint is gone, until the loop gives it back. */
struct waiter {
    struct loop_op op;
    bool armed;
    bool orphan;
};

/* ---- polling --------------------------------------------------------------------------------- */

static void receive_post(struct endpoint *ep, struct receive *rx)
{
    void *desc = ep->slab_mr ? fi_mr_desc(ep->slab_mr) : NULL;

    list_remove(&rx->link);
    if (fi_recv(ep->ep, rx->buf, FABRIC_MAX_MESSAGE, desc, FI_ADDR_UNSPEC, &rx->context) < 0)
        list_push_back(&ep->unposted, &rx->link); /* whatever the reason: the next poll tries again */
}

static void post_receives(struct endpoint *ep)
{
    for (unsigned left = ep->nreceives; left && !list_empty(&ep->unposted); left--)
        receive_post(ep, list_first(&ep->unposted, struct receive, link));
}

static struct receive *receive_of(struct endpoint *ep, void *context)
{
    char *at = context, *first = (char *)ep->receives;

    return at >= first && at < first + ep->nreceives * sizeof(*ep->receives) ? context : NULL;
}

static void on_completion(struct endpoint *ep, const struct fi_cq_data_entry *e)
{
    struct receive *rx = receive_of(ep, e->op_context);

    if (rx && e->flags & FI_REMOTE_CQ_DATA)
        ep->events->written(ep->arg, (uint32_t)e->data);
    else if (rx)
        ep->events->message(ep->arg, rx->buf, e->len);
    if (rx)
        receive_post(ep, rx);
    else if (e->op_context && !(e->flags & FI_REMOTE_WRITE))
        endpoint_flight_complete(ep, e->op_context, 0);
}

static void on_error(struct endpoint *ep)
{
    struct fi_cq_err_entry e = {0};

    if (fi_cq_readerr(ep->cq, &e, 0) <= 0)
        return;
    struct receive *rx = receive_of(ep, e.op_context);
    if (rx)
        receive_post(ep, rx); /* a message was too long, or its connection broke: the sender's trouble */
    else if (e.op_context && !(e.flags & FI_REMOTE_WRITE))
        endpoint_flight_complete(ep, e.op_context, fabric_code(e.err));
}

static bool drain(struct endpoint *ep)
{
    struct fi_cq_data_entry entries[POLL_BATCH];
    bool any = false;

    for (int round = 0; round < POLL_ROUNDS; round++) {
        ssize_t n = fi_cq_read(ep->cq, entries, POLL_BATCH);

        for (ssize_t i = 0; i < n; i++)
            on_completion(ep, &entries[i]);
        if (n == -FI_EAVAIL)
            on_error(ep);
        else if (n <= 0)
            break;
        any = true;
    }
    return any;
}

static bool on_poll(struct loop_poller *poller)
{
    struct endpoint *ep = container_of(poller, struct endpoint, poller);

    ep->polling = true;
    bool completed = drain(ep);
    bool any = completed;
    any |= endpoint_run_finished(ep);
    any |= endpoint_retry(ep, completed);
    post_receives(ep);
    ep->polling = false;
    if (any)
        ep->worked_ns = loop_now_ns(ep->fabric->loop);
    return any;
}

static void on_ready(struct loop_op *op, int res)
{
    struct waiter *w = container_of(op, struct waiter, op);

    (void)res; /* every turn polls */
    w->armed = false;
    if (w->orphan)
        free(w);
}

static bool on_may_sleep(struct loop_poller *poller)
{
    struct endpoint *ep = container_of(poller, struct endpoint, poller);
    struct fid *fids[] = {&ep->cq->fid};

    if (ep->held || !list_empty(&ep->finished) || loop_now_ns(ep->fabric->loop) - ep->worked_ns < SPIN_NS)
        return false;
    if (fi_trywait(ep->fabric->fabric, fids, 1) != FI_SUCCESS)
        return false;
    if (!ep->waiter->armed) {
        ep->waiter->armed = true;
        loop_poll(ep->fabric->loop, &ep->waiter->op, ep->wait_fd, POLLIN);
    }
    return true;
}

/* ---- destinations ---------------------------------------------------------------------------- */

void endpoint_address(const struct endpoint *ep, uint8_t ret_addr[FABRIC_MAX_ADDR], size_t *ret_len)
{
    size_t len = FABRIC_MAX_ADDR;

    memset(ret_addr, 0, FABRIC_MAX_ADDR);
    if (fi_getname(&ep->ep->fid, ret_addr, &len) < 0)
        abort(); /* it worked when the endpoint was opened */
    *ret_len = len;
}

static struct destination *find_destination(struct endpoint *ep, const uint8_t *name, uint64_t *ret_to)
{
    for (unsigned i = 0; i < ep->ndestinations; i++) {
        struct destination *d = ep->destinations[i];

        if (d->used && memcmp(d->name, name, ep->name_len) == 0) {
            *ret_to = (uint64_t)d->generation << 32 | i;
            return d;
        }
    }
    return NULL;
}

/* An unused place in the table, or NULL. */
static struct destination *new_destination(struct endpoint *ep, uint64_t *ret_to)
{
    unsigned i = 0;

    while (i < ep->ndestinations && ep->destinations[i]->used)
        i++;
    if (i == MAX_DESTINATIONS)
        return NULL;
    if (i == ep->ndestinations) {
        struct destination **table = realloc(ep->destinations, (i + 1) * sizeof(struct destination *));
        if (!table)
            return NULL;
        ep->destinations = table;
        table[i] = calloc(1, sizeof(*table[i]));
        if (!table[i])
            return NULL;
        list_init(&table[i]->waiting);
        ep->ndestinations++;
    }
    *ret_to = (uint64_t)ep->destinations[i]->generation << 32 | i;
    return ep->destinations[i];
}

int endpoint_resolve(struct endpoint *ep, const void *addr, size_t len, uint64_t *ret_to, struct cairn_error *err)
{
    uint64_t to;

    loop_assert_here(ep->fabric->loop);
    /* The address came from elsewhere; libfabric takes its length from its family. */
    uint8_t own[FABRIC_MAX_ADDR];
    size_t own_len;
    endpoint_address(ep, own, &own_len);
    if (len != own_len || memcmp(addr, own, sizeof(sa_family_t)) != 0)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "%zu bytes are no address of fabric %s", len, ep->fabric->provider);
    if (find_destination(ep, addr, ret_to))
        return 0;
    struct destination *d = new_destination(ep, &to);
    if (!d)
        return cairn_fail(err, CAIRN_E_NOMEM, "no room for another destination beside %u", ep->ndestinations);
    int r = fi_av_insert(ep->av, addr, 1, &d->addr, 0, NULL);
    if (r != 1)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "fabric %s refuses an address", ep->fabric->provider);
    memcpy(d->name, addr, len);
    d->flights = d->sends = 0;
    d->blocked = NULL;
    d->retry_at_ns = d->retry_delay_ns = 0;
    d->used = true;
    *ret_to = to;
    return 0;
}

void endpoint_forget(struct endpoint *ep, uint64_t to)
{
    struct destination *d = endpoint_destination(ep, to);

    loop_assert_here(ep->fabric->loop);
    if (!d)
        return;
    if (fi_av_remove(ep->av, &d->addr, 1, 0) < 0)
        abort(); /* the caller believes that the connection is closed */
    d->used = false;
    d->generation++;
    d->blocked = NULL;
    endpoint_abort(ep, to, false);
}

/* ---- life ------------------------------------------------------------------------------------ */

static int open_queue(struct endpoint *ep, struct cairn_error *err)
{
    struct fi_cq_attr cq = {.format = FI_CQ_FORMAT_DATA, .wait_obj = FI_WAIT_FD};
    struct fi_av_attr av = {.type = FI_AV_TABLE};
    int r = fi_cq_open(ep->fabric->domain, &cq, &ep->cq, NULL);

    if (r < 0)
        return fabric_fail(err, r, "open a completion queue");
    r = fi_control(&ep->cq->fid, FI_GETWAIT, &ep->wait_fd);
    if (r < 0)
        return fabric_fail(err, r, "get the completion queue's descriptor");
    r = fi_av_open(ep->fabric->domain, &av, &ep->av, NULL);
    if (r < 0)
        return fabric_fail(err, r, "open an address vector");
    return 0;
}

static int open_endpoint(struct endpoint *ep, uint16_t port, struct cairn_error *err)
{
    struct fi_info *info = NULL;
    uint8_t name[FABRIC_MAX_ADDR];
    int r = fabric_info(ep->fabric, port, &info, err);

    if (r < 0)
        return r;
    r = fi_endpoint(ep->fabric->domain, info, &ep->ep, NULL);
    fi_freeinfo(info);
    if (r < 0)
        return fabric_fail(err, r, "open an endpoint");
    r = fi_ep_bind(ep->ep, &ep->av->fid, 0);
    if (r == 0)
        r = fi_ep_bind(ep->ep, &ep->cq->fid, FI_TRANSMIT | FI_RECV);
    if (r == 0)
        r = fi_enable(ep->ep);
    if (r < 0)
        return fabric_fail(err, r, "enable an endpoint");
    ep->name_len = sizeof(name);
    r = fi_getname(&ep->ep->fid, name, &ep->name_len);
    if (r < 0)
        return fabric_fail(err, r, "ask for an endpoint's address");
    return 0;
}

static int open_receives(struct endpoint *ep, unsigned messages, struct cairn_error *err)
{
    int r;

    ep->slab_len = messages * FABRIC_MAX_MESSAGE;
    ep->slab = mmap(NULL, ep->slab_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ep->receives = calloc(messages, sizeof(*ep->receives));
    if (ep->slab == MAP_FAILED || !ep->receives)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate %u receive buffers", messages);
    if (fabric_needs_local(ep->fabric)) {
        r = fi_mr_reg(ep->fabric->domain, ep->slab, ep->slab_len, FI_RECV, 0, ++ep->fabric->local_key, 0, &ep->slab_mr,
                      NULL);
        if (r < 0)
            return fabric_fail(err, r, "register receive buffers");
    }
    for (; ep->nreceives < messages; ep->nreceives++) {
        struct receive *rx = &ep->receives[ep->nreceives];

        rx->buf = (char *)ep->slab + ep->nreceives * FABRIC_MAX_MESSAGE;
        list_init(&rx->link);
        list_push_back(&ep->unposted, &rx->link);
    }
    post_receives(ep);
    return 0;
}

static int open_all(struct endpoint *ep, uint16_t port, unsigned messages, struct cairn_error *err)
{
    int r;

    ep->waiter = calloc(1, sizeof(*ep->waiter));
    if (!ep->waiter)
        return cairn_fail(err, CAIRN_E_NOMEM, "endpoint: out of memory");
    ep->waiter->op.done = on_ready;
    r = open_queue(ep, err);
    if (r < 0)
        return r;
    r = open_endpoint(ep, port, err);
    if (r < 0)
        return r;
    r = open_receives(ep, messages, err);
    if (r < 0)
        return r;
    loop_poller_add(ep->fabric->loop, &ep->poller);
    ep->polled = true;
    return 0;
}

int endpoint_open(struct fabric *fabric, uint16_t port, unsigned messages, const struct endpoint_events *events,
                  void *arg, struct endpoint **ret_endpoint, struct cairn_error *err)
{
    struct endpoint *ep = calloc(1, sizeof(*ep));

    loop_assert_here(fabric->loop);
    if (!ep)
        return cairn_fail(err, CAIRN_E_NOMEM, "endpoint: out of memory");
    ep->fabric = fabric;
    ep->events = events;
    ep->arg = arg;
    ep->slab = MAP_FAILED;
    ep->poller.poll = on_poll;
    ep->poller.may_sleep = on_may_sleep;
    ep->retry.fire = endpoint_on_retry;
    list_init(&ep->flights);
    list_init(&ep->finished);
    list_init(&ep->unposted);
    fabric->users++;
    int r = open_all(ep, port, messages, err);
    if (r < 0) {
        endpoint_free(ep);
        return cairn_wrap(err, r, "endpoint on %s port %u", fabric->bind_address, port);
    }
    *ret_endpoint = ep;
    return 0;
}

/* The promise that nothing is touched any more hangs on these. */
static void must_close(struct fid *fid)
{
    if (fi_close(fid) < 0)
        abort();
}

static void free_waiter(struct endpoint *ep)
{
    struct waiter *w = ep->waiter;

    if (!w || !w->armed) {
        free(w);
        return;
    }
    w->orphan = true;
    loop_cancel(ep->fabric->loop, &w->op);
}

static void free_all(struct endpoint *ep)
{
    while (!list_empty(&ep->flights))
        endpoint_flight_free(list_first(&ep->flights, struct flight, link));
    for (unsigned i = 0; i < ep->ndestinations; i++)
        free(ep->destinations[i]);
    free(ep->destinations);
    free(ep->receives);
    if (ep->slab_mr)
        must_close(&ep->slab_mr->fid);
    if (ep->slab != MAP_FAILED)
        munmap(ep->slab, ep->slab_len);
    ep->fabric->users--;
    free(ep);
}

void endpoint_free(struct endpoint *ep)
{
    if (!ep)
        return;
    assert(!ep->polling);
    loop_timer_cancel(ep->fabric->loop, &ep->retry);
    if (ep->polled)
        loop_poller_remove(ep->fabric->loop, &ep->poller);
    /* First, so that local memory is the callers' again when their operations complete. */
    if (ep->ep)
        must_close(&ep->ep->fid);
    ep->closing = true;
    endpoint_abort(ep, 0, true);
    while (endpoint_run_finished(ep))
        ;
    free_waiter(ep); /* before its descriptor goes */
    if (ep->cq)
        must_close(&ep->cq->fid);
    if (ep->av)
        must_close(&ep->av->fid);
    free_all(ep);
}
