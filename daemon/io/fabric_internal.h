/* SPDX-License-Identifier: Apache-2.0 */
/* What fabric.c and endpoint.c share; nobody else includes it. */
#ifndef CAIRN_DAEMON_IO_FABRIC_INTERNAL_H
#define CAIRN_DAEMON_IO_FABRIC_INTERNAL_H

#include "daemon/io/fabric.h"

#include <rdma/fabric.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>

struct fabric {
    struct loop *loop;
    char *provider;
    char *bind_address;
    struct fi_info *info; /* without a port */
    struct fid_fabric *fabric;
    struct fid_domain *domain;
    uint64_t local_key; /* of the last registration for local use */
    unsigned users;     /* endpoints and memory */
};

struct fabric_mem {
    struct fabric *fabric;
    struct fid_mr *mr;
    void *base;
};

/* The provider's settings for an endpoint bound to port; the caller frees it with fi_freeinfo. */
int fabric_info(const struct fabric *fabric, uint16_t port, struct fi_info **ret_info, struct cairn_error *err);
/* cairn_fail for a negative libfabric code: chooses the code and appends its text. */
int fabric_fail(struct cairn_error *err, int64_t fi_code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* The enum cairn_code with which an operation ends for a positive libfabric error. */
int fabric_code(int fi_errno);
static inline bool fabric_needs_local(const struct fabric *fabric)
{
    return (fabric->info->domain_attr->mr_mode & FI_MR_LOCAL) != 0;
}
/* Whether a write may come from two places. */
static inline bool fabric_gathers(const struct fabric *fabric)
{
    return fabric->info->tx_attr->iov_limit >= 2;
}

/* ---- an endpoint: endpoint.c and endpoint_ops.c ---------------------------------------------- */

struct flight {
    struct fi_context2 context; /* libfabric's */
    struct list link;           /* in endpoint.flights */
    struct fabric_op *op;       /* NULL: its destination was forgotten */
    void *bounce;
    struct fid_mr *bounce_mr; /* where the provider wants local memory registered */
};

struct destination {
    fi_addr_t addr;
    uint32_t generation; /* of this place in the table: a forgotten destination is not taken for its successor */
    bool used;
    uint8_t name[FABRIC_MAX_ADDR];
    struct list waiting;       /* fabric_op, in order */
    struct fabric_op *blocked; /* a write whose notification found no room: done again before anything else */
    unsigned flights;          /* posted and not complete */
    unsigned sends;            /* messages not complete, waiting ones included */
    uint64_t retry_at_ns;
    uint64_t retry_delay_ns;
};

struct endpoint {
    struct fabric *fabric;
    struct fid_ep *ep;
    struct fid_cq *cq;
    struct fid_av *av;
    int wait_fd;
    size_t name_len; /* of every address of this provider */
    const struct endpoint_events *events;
    void *arg;
    struct loop_poller poller;
    bool polled;  /* poller is in the loop's list */
    bool polling; /* within poll() */
    bool closing;
    bool held;            /* a write waits for the next turn, because this one has posted enough */
    size_t turn_bytes;    /* of writes posted since endpoint_retry began, which is once a turn */
    unsigned first_retry; /* the destination that it tries first: they take turns */
    uint64_t worked_ns;
    struct waiter *waiter;
    struct loop_timer retry;
    struct list flights;
    struct list finished; /* fabric_op whose code is known */
    struct list unposted; /* receives that libfabric had no room for */
    struct destination **destinations;
    unsigned ndestinations;
    unsigned nreceives;
    struct receive *receives;
    void *slab; /* the receives' buffers */
    size_t slab_len;
    struct fid_mr *slab_mr;
};

/* endpoint_ops.c. The destination that to names, NULL when it was forgotten. */
struct destination *endpoint_destination(struct endpoint *ep, uint64_t to);
/* libfabric is done with it. */
void endpoint_flight_complete(struct endpoint *ep, struct flight *f, int code);
void endpoint_flight_free(struct flight *f);
/* Tries what waits again. completed: something did in this poll, so that there may be room where operations are in
 * flight. */
bool endpoint_retry(struct endpoint *ep, bool completed);
void endpoint_on_retry(struct loop_timer *timer);
/* Completes what ended without libfabric; false when nothing had. */
bool endpoint_run_finished(struct endpoint *ep);
/* Takes everything that goes to a destination, or to all, away from libfabric and completes it. */
void endpoint_abort(struct endpoint *ep, uint64_t to, bool all);

#endif
