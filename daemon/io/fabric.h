/* SPDX-License-Identifier: Apache-2.0 */
/* libfabric, as Cairn uses it: reliable datagram endpoints with messages and RMA writes that carry 32 bits of
 * completion data. Only fabric.c and endpoint.c include rdma headers.
 *
 * A fabric is one provider's domain: memory is registered with it once. An endpoint has its own completion queue and
 * address vector, so that closing it ends everything on it: after endpoint_free returned no operation of it touches
 * memory any more. A node opens one endpoint per peer (a hung peer is cut off by closing), a peer one for all nodes.
 *
 * Loop's thread only. libfabric knows no deadlines: callers have timers. A destination that is stopped, cut off or dead
 * is silent: operations to it wait for a connection or for room for as long as it takes. Only a connection that breaks
 * ends the operations on it (UNAVAILABLE); a write with a wrong key breaks it, for all operations on it.
 */
#ifndef CAIRN_DAEMON_IO_FABRIC_H
#define CAIRN_DAEMON_IO_FABRIC_H

#include "daemon/io/loop.h"

#define FABRIC_MAX_ADDR 128
#define FABRIC_MAX_MESSAGE ((size_t)64 << 10)

struct fabric;
struct fabric_config {
    const char *provider;     /* "tcp;ofi_rxm" */
    const char *bind_address; /* "127.0.0.1": a numeric address of this machine */
};
int fabric_open(struct loop *loop, const struct fabric_config *config, struct fabric **ret_fabric,
                struct cairn_error *err);
void fabric_close(struct fabric *fabric); /* endpoints and memory must be gone; NULL allowed */

/* ---- memory ---------------------------------------------------------------------------------- */
struct fabric_mem;
enum { FABRIC_LOCAL = 0, FABRIC_REMOTE_WRITE = 1 };
/* key: what the remote side must show; unpredictable and never used before by this process. Ignored for FABRIC_LOCAL
 * and by providers that choose keys themselves. */
int fabric_mem_register(struct fabric *fabric, void *base, size_t len, int access, uint64_t key,
                        struct fabric_mem **ret_mem, struct cairn_error *err);
/* From here on writes that begin are refused. One that is half-way in goes on: the key is looked at when it begins.
 * Before the memory is used for anything else its writer must be cut off, by endpoint_forget or endpoint_free. NULL
 * allowed. */
void fabric_mem_free(struct fabric_mem *mem);
uint64_t fabric_mem_key(const struct fabric_mem *mem);
/* What the remote side must use as the address of base[0]: base, or 0 with offset addressing. */
uint64_t fabric_mem_remote_base(const struct fabric_mem *mem);

/* ---- endpoints ------------------------------------------------------------------------------- */
struct endpoint;
struct endpoint_events {
    /* A message came in. from is the transport's, unauthenticated and unknown: senders name themselves in the message.
     */
    void (*message)(void *arg, const void *data, size_t len);
    /* A write with this completion data has arrived as a whole in registered memory. Unauthenticated like a message,
     * which it is: whoever reaches the endpoint can say so, and what lies in the memory must be checked. */
    void (*written)(void *arg, uint32_t data);
};
/* port 0: any. messages: receive buffers posted (FABRIC_MAX_MESSAGE each). */
int endpoint_open(struct fabric *fabric, uint16_t port, unsigned messages, const struct endpoint_events *events,
                  void *arg, struct endpoint **ret_endpoint, struct cairn_error *err);
/* Operations in flight complete with CAIRN_E_ABORTED before it returns. Not from within one of its own callbacks: use
 * loop_defer. NULL allowed. */
void endpoint_free(struct endpoint *ep);
/* This endpoint's address, to be published. */
void endpoint_address(const struct endpoint *ep, uint8_t ret_addr[FABRIC_MAX_ADDR], size_t *ret_len);
/* Makes a published address usable as a destination; the same address gives the same one until it is forgotten. */
int endpoint_resolve(struct endpoint *ep, const void *addr, size_t len, uint64_t *ret_to, struct cairn_error *err);
/* Cuts a destination off: the connection with it is closed in both directions, operations to it complete with
 * CAIRN_E_ABORTED before this returns, and later ones with CAIRN_E_UNAVAILABLE. A write of its own that is arriving
 * ends half-way. It may connect again: revoke its key as well (first this, then fabric_mem_free). */
void endpoint_forget(struct endpoint *ep, uint64_t to);

struct fabric_op { /* owned by the caller until done() */
    /* 0, CAIRN_E_UNAVAILABLE (peer gone), CAIRN_E_IO, CAIRN_E_ABORTED; a message also CAIRN_E_BUSY (too many to this
     * destination have not left yet), CAIRN_E_TOO_LARGE, CAIRN_E_NOMEM. Never called from within endpoint_send/write.
     */
    void (*done)(struct fabric_op *op, int code);
    void *arg;
    struct list link; /* the endpoint's, with what follows */
    struct endpoint *ep;
    struct flight *flight;
    int kind;
    int code;
    uint64_t to;
    const void *buf;
    size_t len;
    struct fabric_mem *mem;
    const void *more; /* of a write: what follows buf; NULL: nothing */
    size_t more_len;
    uint64_t remote_addr;
    uint64_t remote_key;
    uint32_t data;
    void *bounce; /* message bytes, copied */
};
/* Copies the message (at most FABRIC_MAX_MESSAGE) at once: the caller's buffer is free when this returns. */
void endpoint_send(struct endpoint *ep, struct fabric_op *op, uint64_t to, const void *message, size_t len);
/* Writes local bytes into the remote's registered memory; the remote sees written(data). The bytes must not change
 * until done(). done() with 0 says that they left, not that they arrived: the remote's message does. */
void endpoint_write(struct endpoint *ep, struct fabric_op *op, uint64_t to, const void *buf, size_t len,
                    struct fabric_mem *mem, uint64_t remote_addr, uint64_t remote_key, uint32_t data);
/* The same with more bytes behind the first, from memory that is not registered: only where fabric_sends_anything(). */
struct fabric_more {
    const void *buf;
    size_t len;
};
void endpoint_write_more(struct endpoint *ep, struct fabric_op *op, uint64_t to, const void *buf, size_t len,
                         struct fabric_mem *mem, const struct fabric_more *more, uint64_t remote_addr,
                         uint64_t remote_key, uint32_t data);
/* Whether local memory can be sent without having been registered. */
bool fabric_sends_anything(const struct fabric *fabric);

#endif
