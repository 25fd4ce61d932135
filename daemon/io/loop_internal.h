/* SPDX-License-Identifier: Apache-2.0 */
/* What loop.c, loop_timer.c and loop_host.c share; nobody else includes it. */
#ifndef CAIRN_DAEMON_IO_LOOP_INTERNAL_H
#define CAIRN_DAEMON_IO_LOOP_INTERNAL_H

#include "daemon/io/loop.h"

#include <liburing.h>
#include <pthread.h>
#include <stdatomic.h>

struct loop_heap {
    struct loop_timer **slots; /* slots[1] is the next to fire; slots[0] is unused */
    size_t count;
    size_t room; /* timers that fit */
};

struct loop_posts {
    struct loop_post *head;
    struct loop_post **tail;
};

struct loop_fault_rule {
    unsigned nth; /* operations until it strikes; 0: off */
    int error;    /* positive errno */
    bool for_good;
};

struct loop {
    struct io_uring ring;
    unsigned ring_room;       /* completions that fit: more are never in flight, so none overflow */
    unsigned in_flight;       /* entries of the ring whose completion was not seen yet, cancels included */
    struct list waiting;      /* loop_op: for an entry of the ring */
    struct list cancels;      /* loop_op in flight: for an entry that cancels them */
    struct list finished;     /* loop_op that ended without the kernel; len holds the result */
    struct list pollers;      /* loop_poller */
    struct list *poller_next; /* where the walk over pollers goes on, should that one be removed */
    struct loop_heap timers;
    struct loop_posts deferred;
    _Atomic(struct loop_post *) posted; /* newest first; whoever makes it non-empty wakes the loop */
    int wake_fd;                        /* an eventfd */
    uint64_t wake_count;                /* read from it */
    struct loop_op wake_op;
    uint64_t now_ns;
    pthread_t thread; /* who turns the loop, when bound */
    bool bound;
    bool stop;
    bool closing; /* within loop_free */
    struct cairn_host host;
    struct loop_fault_rule faults[LOOP_FAULT_FDATASYNC + 1];
};

/* Ends an operation that the kernel never saw: done(op, res) is called in the next turn. */
void loop_finish(struct loop *loop, struct loop_op *op, int res);
/* loop_timer.c: fires what is due; false when nothing was. */
bool loop_timers_fire(struct loop *loop);
/* When the next timer is due, UINT64_MAX without one. */
uint64_t loop_timers_next_ns(const struct loop *loop);
/* loop_host.c */
void loop_host_init(struct loop *loop);

#endif
