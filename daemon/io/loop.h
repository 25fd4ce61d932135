/* SPDX-License-Identifier: Apache-2.0 */
/* The reactor: one thread, one io_uring, timers, and a way for other threads to hand it work.
 *
 * An operation is a struct loop_op owned by the caller; it may be reused or freed from the moment done() is called, and
 * not before. Everything here but loop_post is called on the loop's thread only (asserted). Nothing blocks it.
 */
#ifndef CAIRN_DAEMON_IO_LOOP_H
#define CAIRN_DAEMON_IO_LOOP_H

#include "core/base/list.h"
#include <cairn/cairn.h>
#include <cairn/plugin.h>
#include <sys/socket.h>

struct loop;

int loop_new(unsigned entries, struct loop **ret_loop, struct cairn_error *err);
void loop_free(struct loop *loop); /* nothing may be in flight; NULL is allowed */
/* Runs until loop_stop. Returns 0, or a negative code when the ring itself fails. */
int loop_run(struct loop *loop, struct cairn_error *err);
/* One turn: completions, timers, posts, pollers; waits at most max_wait_ms for something to do. For tests and loop_run.
 */
int loop_turn(struct loop *loop, unsigned max_wait_ms, struct cairn_error *err);
void loop_stop(struct loop *loop);
/* CLOCK_MONOTONIC, read once a turn. */
uint64_t loop_now_ns(const struct loop *loop);
void loop_assert_here(const struct loop *loop);

/* ---- operations ------------------------------------------------------------------------------ */
struct loop_op {
    void (*done)(struct loop_op *op, int res); /* res: as the system call's, negative errno on failure */
    void *arg;
    struct list link; /* the loop's: waiting for a free entry of the ring */
    int kind;         /* the loop's, with what follows */
    int fd;
    void *buf;
    size_t len;
    uint64_t offset;
    bool in_flight;
};
/* Transfers at most len bytes, once: short results are the caller's (loop_host resubmits for stores). */
void loop_read(struct loop *loop, struct loop_op *op, int fd, void *buf, size_t len, uint64_t offset);
void loop_write(struct loop *loop, struct loop_op *op, int fd, const void *buf, size_t len, uint64_t offset);
void loop_fdatasync(struct loop *loop, struct loop_op *op, int fd);
void loop_accept(struct loop *loop, struct loop_op *op, int fd); /* res: the new descriptor, CLOEXEC, non-blocking */
void loop_recvmsg(struct loop *loop, struct loop_op *op, int fd, struct msghdr *msg, int flags);
void loop_sendmsg(struct loop *loop, struct loop_op *op, int fd, struct msghdr *msg, int flags);
void loop_poll(struct loop *loop, struct loop_op *op, int fd, unsigned events); /* one shot; res: revents */
/* Asks for an early end; done() still comes, with -ECANCELED or what had happened already. */
void loop_cancel(struct loop *loop, struct loop_op *op);

/* ---- timers: a binary heap; a timer may be set again or cancelled at any time, also from its own call  */
struct loop_timer {
    void (*fire)(struct loop_timer *timer);
    void *arg;
    uint64_t at_ns;
    size_t heap_index; /* the loop's; 0: not set */
};
void loop_timer_set(struct loop *loop, struct loop_timer *timer, uint64_t at_ns);
void loop_timer_after(struct loop *loop, struct loop_timer *timer, uint64_t delay_ms);
void loop_timer_cancel(struct loop *loop, struct loop_timer *timer);

/* ---- posts: work from another thread; run in order on the loop's thread ---------------------- */
struct loop_post {
    void (*run)(struct loop_post *post);
    void *arg;
    struct loop_post *next; /* the loop's */
};
void loop_post(struct loop *loop, struct loop_post *post); /* thread-safe; wakes the loop */

/* ---- deferred: run later in this turn, from the top of the stack ----------------------------- */
void loop_defer(struct loop *loop, struct loop_post *post);

/* ---- pollers: whatever has to be polled by hand (a fabric's progress) ------------------------ */
struct loop_poller {
    struct list link;
    bool (*poll)(struct loop_poller *poller);      /* every turn; true when it did something */
    bool (*may_sleep)(struct loop_poller *poller); /* before a wait: false when it must be polled again at once */
    void *arg;
};
void loop_poller_add(struct loop *loop, struct loop_poller *poller);
void loop_poller_remove(struct loop *loop, struct loop_poller *poller);

/* The host services for store plugins on this loop: resubmits short transfers, EINTR and EAGAIN; injects the faults
 * that loop_faults asks for. The struct lives as long as the loop. */
const struct cairn_host *loop_host(struct loop *loop);

/* Faults for tests, in the host services only: the nth next operation of a kind fails, once or for good. */
enum loop_fault_kind { LOOP_FAULT_READ, LOOP_FAULT_WRITE, LOOP_FAULT_FDATASYNC };
void loop_fault(struct loop *loop, enum loop_fault_kind kind, unsigned nth, int error, bool for_good);

#endif
