/* SPDX-License-Identifier: Apache-2.0 */
/* What a store plugin gets from the daemon: file I/O on the loop's ring that goes on until all is transferred. */
#include "daemon/io/loop_internal.h"

#include <assert.h>
#include <errno.h>

#define MAX_TRIES 1000 /* of EINTR and EAGAIN in a row, before it is an error after all */

/* Lies in cairn_io.reserved. op.buf and op.offset say where the rest begins. */
struct host_io {
    struct loop_op op;
    struct loop *loop;
    size_t len;     /* asked for */
    uint64_t moved; /* transferred so far */
    unsigned tries;
    enum loop_fault_kind kind;
};
static_assert(sizeof(struct host_io) <= sizeof(((struct cairn_io *)0)->reserved), "cairn_io.reserved is too small");

static struct cairn_io *io_of(struct host_io *h)
{
    return container_of((void *)h, struct cairn_io, reserved);
}

static void submit(struct host_io *h)
{
    struct loop_op *op = &h->op;

    if (h->kind == LOOP_FAULT_READ)
        loop_read(h->loop, op, op->fd, op->buf, h->len - h->moved, op->offset);
    else if (h->kind == LOOP_FAULT_WRITE)
        loop_write(h->loop, op, op->fd, op->buf, h->len - h->moved, op->offset);
    else
        loop_fdatasync(h->loop, op, op->fd);
}

static void complete(struct host_io *h, int64_t result)
{
    struct cairn_io *io = io_of(h);

    io->done(io, result);
}

static void on_transfer(struct loop_op *op, int res)
{
    struct host_io *h = container_of(op, struct host_io, op);

    if ((res == -EINTR || res == -EAGAIN) && ++h->tries < MAX_TRIES) {
        submit(h);
        return;
    }
    if (res < 0 || h->kind == LOOP_FAULT_FDATASYNC) {
        complete(h, res);
        return;
    }
    h->tries = 0;
    h->moved += (unsigned)res;
    op->buf = (char *)op->buf + res;
    op->offset += (unsigned)res;
    if (h->moved == h->len || (res == 0 && h->kind == LOOP_FAULT_READ))
        complete(h, (int64_t)h->moved);
    else if (res == 0)
        complete(h, -EIO); /* a write that moves nothing and names no reason would go on for ever */
    else
        submit(h);
}

/* The errno to inject into this operation, or 0. */
static int fault_strikes(struct loop *loop, enum loop_fault_kind kind)
{
    struct loop_fault_rule *rule = &loop->faults[kind];

    if (rule->nth == 0)
        return 0;
    if (rule->nth > 1) {
        rule->nth--;
        return 0;
    }
    if (!rule->for_good)
        rule->nth = 0;
    return rule->error;
}

static void start(struct loop *loop, struct cairn_io *io, enum loop_fault_kind kind, int fd, void *buf, size_t len,
                  uint64_t offset)
{
    struct host_io *h = (struct host_io *)(void *)io->reserved;

    loop_assert_here(loop);
    assert(!h->op.in_flight);
    *h = (struct host_io){.loop = loop, .len = len, .kind = kind};
    h->op.done = on_transfer;
    h->op.fd = fd;
    h->op.buf = buf;
    h->op.offset = offset;
    int fault = fault_strikes(loop, kind);
    if (fault)
        loop_finish(loop, &h->op, -fault);
    else
        submit(h);
}

static void host_pread(void *ctx, struct cairn_io *io, int fd, void *buf, size_t len, uint64_t offset)
{
    start(ctx, io, LOOP_FAULT_READ, fd, buf, len, offset);
}

static void host_pwrite(void *ctx, struct cairn_io *io, int fd, const void *buf, size_t len, uint64_t offset)
{
    start(ctx, io, LOOP_FAULT_WRITE, fd, (void *)(uintptr_t)buf, len, offset);
}

static void host_fdatasync(void *ctx, struct cairn_io *io, int fd)
{
    start(ctx, io, LOOP_FAULT_FDATASYNC, fd, NULL, 0, 0);
}

void loop_host_init(struct loop *loop)
{
    loop->host = (struct cairn_host){
        .size = sizeof(struct cairn_host),
        .ctx = loop,
        .pread = host_pread,
        .pwrite = host_pwrite,
        .fdatasync = host_fdatasync,
    };
}

const struct cairn_host *loop_host(struct loop *loop)
{
    return &loop->host;
}

void loop_fault(struct loop *loop, enum loop_fault_kind kind, unsigned nth, int error, bool for_good)
{
    loop_assert_here(loop);
    loop->faults[kind] = (struct loop_fault_rule){.nth = nth, .error = error, .for_good = for_good};
}
