/* SPDX-License-Identifier: Apache-2.0 */
/* A piece goes as a write and a word of 32 bits behind it on the same connection, which says where it is: as between
 * daemons. A word without room for it waits in front of everything that goes to the same peer. */
#include "bench/probe_wire.h"

#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int fail(const char *what, ssize_t code)
{
    fprintf(stderr, "bench-probe-durable: %s: %s\n", what, fi_strerror((int)-code));
    return -1;
}

/* ---- opening --------------------------------------------------------------------------------- */

/* As the daemon sets them (daemon/io/fabric.c). */
static void set_defaults(void)
{
    (void)setenv("FI_OFI_RXM_EAGER_LIMIT", "65536", 0);
    (void)setenv("FI_OFI_RXM_BUFFER_SIZE", "2048", 0);
    (void)setenv("FI_OFI_RXM_MSG_RX_SIZE", "256", 0);
}

static int get_info(struct wire *w, const char *provider)
{
    struct fi_info *h = fi_allocinfo();
    int r = -FI_ENOMEM;

    if (!h)
        return fail("no memory for hints", r);
    h->caps = FI_MSG | FI_RMA | FI_TAGGED;
    h->mode = FI_CONTEXT | FI_CONTEXT2;
    h->tx_attr->msg_order = h->rx_attr->msg_order = FI_ORDER_SAS | FI_ORDER_SAW; /* a word comes behind its write */
    h->addr_format = FI_SOCKADDR_IN;
    h->ep_attr->type = FI_EP_RDM;
    h->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
    h->domain_attr->threading = FI_THREAD_DOMAIN;
    h->domain_attr->resource_mgmt = FI_RM_ENABLED;
    h->fabric_attr->prov_name = strdup(provider);
    if (h->fabric_attr->prov_name)
        r = fi_getinfo(FI_VERSION(1, 17), "127.0.0.1", "0", FI_SOURCE | FI_NUMERICHOST, h, &w->info);
    fi_freeinfo(h);
    return r < 0 ? fail(provider, r) : 0;
}

static int open_endpoint(struct wire *w)
{
    struct fi_cq_attr cq = {.format = FI_CQ_FORMAT_DATA, .wait_obj = FI_WAIT_FD};
    struct fi_av_attr av = {.type = FI_AV_TABLE};
    int r = fi_fabric(w->info->fabric_attr, &w->fabric, NULL);

    if (r == 0)
        r = fi_domain(w->fabric, w->info, &w->domain, NULL);
    if (r == 0)
        r = fi_cq_open(w->domain, &cq, &w->cq, NULL);
    if (r == 0)
        r = fi_control(&w->cq->fid, FI_GETWAIT, &w->fd);
    if (r == 0)
        r = fi_av_open(w->domain, &av, &w->av, NULL);
    if (r == 0)
        r = fi_endpoint(w->domain, w->info, &w->ep, NULL);
    if (r == 0)
        r = fi_ep_bind(w->ep, &w->av->fid, 0);
    if (r == 0)
        r = fi_ep_bind(w->ep, &w->cq->fid, FI_TRANSMIT | FI_RECV);
    if (r == 0)
        r = fi_enable(w->ep);
    return r < 0 ? fail("open an endpoint", r) : 0;
}

static int post_receive(struct wire *w, struct fi_context2 *context)
{
    ssize_t r;

    do
        r = fi_recv(w->ep, w->memory, 0, fi_mr_desc(w->mr), FI_ADDR_UNSPEC, context);
    while (r == -FI_EAGAIN);
    return r < 0 ? fail("post a receive", r) : 0;
}

int wire_open(struct wire *w, const char *provider, char *memory, size_t len)
{
    const uint64_t access = FI_SEND | FI_RECV | FI_WRITE | FI_REMOTE_WRITE;

    *w = (struct wire){.memory = memory, .fd = -1};
    set_defaults();
    if (get_info(w, provider) < 0 || open_endpoint(w) < 0)
        return -1;
    int r = fi_mr_reg(w->domain, memory, len, access, 0, 1, 0, &w->mr, NULL);
    if (r < 0)
        return fail("register memory", r);
    for (unsigned i = 0; i < WIRE_RECEIVES; i++)
        if (post_receive(w, &w->receives[i]) < 0)
            return -1;
    return 0;
}

int wire_address(const struct wire *w, struct wire_address *ret_address)
{
    size_t len = sizeof ret_address->name;
    int r = fi_getname(&w->ep->fid, ret_address->name, &len);

    ret_address->base = w->info->domain_attr->mr_mode & FI_MR_VIRT_ADDR ? (uint64_t)(uintptr_t)w->memory : 0;
    ret_address->key = fi_mr_key(w->mr);
    return r < 0 ? fail("ask for an endpoint's address", r) : 0;
}

int wire_connect(struct wire *w, const struct wire_address *to, unsigned *ret_peer)
{
    if (w->npeers == WIRE_PEERS || fi_av_insert(w->av, to->name, 1, &w->peers[w->npeers].addr, 0, NULL) != 1)
        return fail("take an address", -FI_EINVAL);
    w->peers[w->npeers].base = to->base;
    w->peers[w->npeers].key = to->key;
    *ret_peer = w->npeers++;
    return 0;
}

void wire_close(struct wire *w)
{
    struct fid *fids[] = {w->ep ? &w->ep->fid : NULL,         w->mr ? &w->mr->fid : NULL,
                          w->cq ? &w->cq->fid : NULL,         w->av ? &w->av->fid : NULL,
                          w->domain ? &w->domain->fid : NULL, w->fabric ? &w->fabric->fid : NULL};

    for (unsigned i = 0; i < sizeof fids / sizeof fids[0]; i++)
        if (fids[i])
            (void)fi_close(fids[i]); /* the process ends anyway */
    fi_freeinfo(w->info);
    *w = (struct wire){.fd = -1};
}

/* ---- moving ---------------------------------------------------------------------------------- */

static int pay(struct wire *w, unsigned peer)
{
    ssize_t r = fi_injectdata(w->ep, w->memory, 0, w->peers[peer].word, w->peers[peer].addr);

    if (r == -FI_EAGAIN)
        return 1;
    w->peers[peer].owed = false;
    return r < 0 ? fail("send a word", r) : 0;
}

int wire_tell(struct wire *w, unsigned peer, uint32_t word)
{
    if (w->peers[peer].owed)
        return 1;
    w->peers[peer].word = word;
    return pay(w, peer);
}

int wire_write(struct wire *w, unsigned peer, const char *from, size_t len, uint64_t offset, uint32_t word,
               struct fi_context2 *context)
{
    if (w->peers[peer].owed)
        return 1;
    ssize_t r = fi_write(w->ep, from, len, fi_mr_desc(w->mr), w->peers[peer].addr, w->peers[peer].base + offset,
                         w->peers[peer].key, context);
    if (r == -FI_EAGAIN)
        return 1;
    if (r < 0)
        return fail("write to a peer", r);
    w->peers[peer].word = word;
    w->peers[peer].owed = true;
    return pay(w, peer) < 0 ? -1 : 0; /* no room for the word: the next poll sends it */
}

static int failed(struct wire *w)
{
    struct fi_cq_err_entry e = {0};

    if (fi_cq_readerr(w->cq, &e, 0) <= 0)
        return fail("read an error", -FI_EIO);
    return fail("the wire", -(ssize_t)e.err);
}

int wire_poll(struct wire *w, struct wire_event *ret_events, unsigned most)
{
    struct fi_cq_data_entry e[16];
    unsigned n = 0;

    for (unsigned i = 0; i < w->npeers; i++)
        if (w->peers[i].owed && pay(w, i) < 0)
            return -1;
    ssize_t got = fi_cq_read(w->cq, e, most < 16 ? most : 16);
    if (got == -FI_EAVAIL)
        return failed(w);
    if (got < 0)
        return got == -FI_EAGAIN ? 0 : fail("poll", got);
    for (ssize_t i = 0; i < got; i++) {
        struct fi_context2 *c = e[i].op_context;
        bool word = c >= w->receives && c < w->receives + WIRE_RECEIVES;
        if (word && post_receive(w, c) < 0)
            return -1;
        if (c && (word || !(e[i].flags & FI_REMOTE_WRITE)))
            ret_events[n++] = (struct wire_event){word ? NULL : c, word ? (uint32_t)e[i].data : 0};
    }
    return (int)n;
}

bool wire_may_sleep(struct wire *w)
{
    struct fid *fids[] = {&w->cq->fid};

    for (unsigned i = 0; i < w->npeers; i++)
        if (w->peers[i].owed)
            return false;
    return fi_trywait(w->fabric, fids, 1) == FI_SUCCESS;
}
