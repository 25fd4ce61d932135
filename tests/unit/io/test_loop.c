/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/io/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define MAX_TURNS 10000

static struct loop *new_loop(unsigned entries)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct loop *loop;

    if (loop_new(entries, &loop, &err) < 0) {
        print_message("%s\n", err.message);
        exit(77);
    }
    return loop;
}

/* Turns until *flag is at least n; a turn that waits a second for nothing fails the test. */
static void turn_until(struct loop *loop, const int *flag, int n)
{
    for (int i = 0; i < MAX_TURNS && *flag < n; i++)
        assert_int_equal(loop_turn(loop, 1000, NULL), 0);
    assert_true(*flag >= n);
}

struct result {
    struct loop_op op;
    int count;
    int res;
};

static void record(struct loop_op *op, int res)
{
    struct result *r = op->arg;

    r->count++;
    r->res = res;
}

static void prepare(struct result *r)
{
    memset(r, 0, sizeof(*r));
    r->op.done = record;
    r->op.arg = r;
}

static void writes_and_reads_more_than_the_ring_holds(void **state)
{
    enum { N = 200 };
    struct loop *loop = new_loop(8);
    struct result *r = calloc(N, sizeof(*r));
    uint32_t in[N], out[N];
    int fd = memfd_create("t", MFD_CLOEXEC);

    (void)state;
    for (int i = 0; i < N; i++) {
        out[i] = (uint32_t)i * 7919;
        prepare(&r[i]);
        loop_write(loop, &r[i].op, fd, &out[i], sizeof(out[i]), (uint64_t)i * sizeof(out[i]));
    }
    for (int i = 0; i < N; i++)
        turn_until(loop, &r[i].count, 1);
    for (int i = 0; i < N; i++) {
        assert_int_equal(r[i].res, sizeof(out[i]));
        prepare(&r[i]);
        loop_read(loop, &r[i].op, fd, &in[i], sizeof(in[i]), (uint64_t)i * sizeof(in[i]));
    }
    for (int i = 0; i < N; i++)
        turn_until(loop, &r[i].count, 1);
    assert_memory_equal(in, out, sizeof(in));
    struct result sync;
    prepare(&sync);
    loop_fdatasync(loop, &sync.op, fd);
    turn_until(loop, &sync.count, 1);
    assert_int_equal(sync.res, 0);
    loop_free(loop);
    close(fd);
    free(r);
}

/* Operations that never end must not keep the ring's entries from others, nor loop_free from ending. */
static void many_polls_in_flight_leave_room_and_are_ended_by_free(void **state)
{
    enum { N = 500 };
    struct loop *loop = new_loop(8);
    struct result *r = calloc(N, sizeof(*r));
    int fds[2];

    (void)state;
    assert_int_equal(pipe(fds), 0);
    for (int i = 0; i < N; i++) {
        prepare(&r[i]);
        loop_poll(loop, &r[i].op, fds[0], POLLIN);
    }
    for (int i = 0; i < 5; i++)
        assert_int_equal(loop_turn(loop, 0, NULL), 0);
    loop_free(loop);
    for (int i = 0; i < N; i++) {
        assert_int_equal(r[i].count, 1);
        assert_int_equal(r[i].res, -ECANCELED);
    }
    close(fds[0]);
    close(fds[1]);
    free(r);
}

static void sockets_accept_send_and_receive(void **state)
{
    struct loop *loop = new_loop(16);
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct result acc, snd, rcv;
    char text[16] = {0};
    struct iovec out = {(void *)(uintptr_t) "hello", 5}, in = {text, sizeof(text)};
    struct msghdr mout = {.msg_iov = &out, .msg_iovlen = 1}, min = {.msg_iov = &in, .msg_iovlen = 1};

    (void)state;
    snprintf(addr.sun_path + 1, sizeof(addr.sun_path) - 1, "cairn-test-loop-%d", getpid());
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int client = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&addr, sizeof(addr)), 0);
    assert_int_equal(listen(listener, 1), 0);
    prepare(&acc);
    loop_accept(loop, &acc.op, listener);
    assert_int_equal(loop_turn(loop, 0, NULL), 0);
    assert_int_equal(acc.count, 0);
    assert_int_equal(connect(client, (struct sockaddr *)&addr, sizeof(addr)), 0);
    turn_until(loop, &acc.count, 1);
    assert_true(acc.res >= 0);
    assert_true(fcntl(acc.res, F_GETFL) & O_NONBLOCK);
    assert_true(fcntl(acc.res, F_GETFD) & FD_CLOEXEC);
    /* A receive on a non-blocking socket waits in the ring: no EAGAIN. */
    prepare(&rcv);
    loop_recvmsg(loop, &rcv.op, acc.res, &min, 0);
    assert_int_equal(loop_turn(loop, 0, NULL), 0);
    assert_int_equal(loop_turn(loop, 0, NULL), 0);
    assert_int_equal(rcv.count, 0);
    prepare(&snd);
    loop_sendmsg(loop, &snd.op, client, &mout, MSG_NOSIGNAL);
    turn_until(loop, &rcv.count, 1);
    turn_until(loop, &snd.count, 1);
    assert_int_equal(snd.res, 5);
    assert_int_equal(rcv.res, 5);
    assert_string_equal(text, "hello");
    close(acc.res);
    close(client);
    close(listener);
    loop_free(loop);
}

static void cancel_ends_operations_once_queued_or_in_flight(void **state)
{
    struct loop *loop = new_loop(16);
    struct result queued, flying;
    char c;
    int fds[2];

    (void)state;
    assert_int_equal(pipe(fds), 0);
    prepare(&queued);
    loop_read(loop, &queued.op, fds[0], &c, 1, 0);
    loop_cancel(loop, &queued.op);
    loop_cancel(loop, &queued.op);
    assert_int_equal(queued.count, 0); /* never from within the call */
    turn_until(loop, &queued.count, 1);
    assert_int_equal(queued.res, -ECANCELED);
    prepare(&flying);
    loop_read(loop, &flying.op, fds[0], &c, 1, 0);
    assert_int_equal(loop_turn(loop, 0, NULL), 0);
    loop_cancel(loop, &flying.op);
    turn_until(loop, &flying.count, 1);
    assert_int_equal(flying.res, -ECANCELED);
    /* A cancel that comes too late does not hit the next use of the struct. */
    prepare(&flying);
    assert_int_equal(write(fds[1], "x", 1), 1);
    loop_read(loop, &flying.op, fds[0], &c, 1, 0);
    turn_until(loop, &flying.count, 1);
    loop_cancel(loop, &flying.op);
    loop_read(loop, &flying.op, fds[0], &c, 1, 0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(loop_turn(loop, 0, NULL), 0);
    assert_int_equal(flying.count, 1);
    assert_int_equal(write(fds[1], "y", 1), 1);
    turn_until(loop, &flying.count, 2);
    assert_int_equal(flying.res, 1);
    close(fds[0]);
    close(fds[1]);
    loop_free(loop);
}

struct timers {
    struct loop *loop;
    struct loop_timer t[500];
    uint64_t last;
    int fired;
};

static void fire_in_order(struct loop_timer *timer)
{
    struct timers *t = timer->arg;

    assert_true(timer->at_ns >= t->last);
    assert_int_equal(timer->heap_index, 0);
    t->last = timer->at_ns;
    t->fired++;
}

static void timers_fire_in_order_and_can_be_moved_and_cancelled(void **state)
{
    struct timers *t = calloc(1, sizeof(*t));
    unsigned seed = 1;

    (void)state;
    t->loop = new_loop(8);
    uint64_t now = loop_now_ns(t->loop);
    for (int i = 0; i < 500; i++) {
        t->t[i].fire = fire_in_order;
        t->t[i].arg = t;
        loop_timer_set(t->loop, &t->t[i], now + (uint64_t)(rand_r(&seed) % 1000000));
    }
    for (int i = 0; i < 500; i += 2)
        loop_timer_set(t->loop, &t->t[i], now + (uint64_t)(rand_r(&seed) % 1000000));
    for (int i = 0; i < 500; i += 5)
        loop_timer_cancel(t->loop, &t->t[i]);
    loop_timer_cancel(t->loop, &t->t[0]);
    turn_until(t->loop, &t->fired, 400);
    assert_int_equal(loop_turn(t->loop, 0, NULL), 0);
    assert_int_equal(t->fired, 400);
    loop_free(t->loop);
    free(t);
}

static void set_again(struct loop_timer *timer)
{
    struct timers *t = timer->arg;

    t->fired++;
    loop_timer_set(t->loop, timer, 0);
}

/* A timer that is always due must not keep the turn from ending. */
static void timer_that_sets_itself_does_not_hang_the_turn(void **state)
{
    struct timers t = {.loop = new_loop(8)};

    (void)state;
    t.t[0].fire = set_again;
    t.t[0].arg = &t;
    loop_timer_set(t.loop, &t.t[0], 0);
    assert_int_equal(loop_turn(t.loop, 1000, NULL), 0);
    assert_int_equal(t.fired, 1);
    loop_timer_cancel(t.loop, &t.t[0]);
    loop_free(t.loop);
}

/* The wait ends at the timer and not at max_wait, nor before it. */
static void a_turn_waits_for_the_next_timer(void **state)
{
    struct timers t = {.loop = new_loop(8)};
    struct timespec before, after;

    (void)state;
    t.t[0].fire = fire_in_order;
    t.t[0].arg = &t;
    clock_gettime(CLOCK_MONOTONIC, &before);
    loop_timer_after(t.loop, &t.t[0], 30);
    turn_until(t.loop, &t.fired, 1);
    clock_gettime(CLOCK_MONOTONIC, &after);
    int64_t ms = (after.tv_sec - before.tv_sec) * 1000 + (after.tv_nsec - before.tv_nsec) / 1000000;
    assert_in_range(ms, 29, 900);
    loop_free(t.loop);
}

struct polled {
    struct loop_poller poller;
    struct loop *loop;
    struct loop_poller *victim;
    int polls;
};

static bool poll_and_remove(struct loop_poller *poller)
{
    struct polled *p = poller->arg;

    p->polls++;
    if (p->victim)
        loop_poller_remove(p->loop, p->victim);
    p->victim = NULL;
    return false;
}

static bool yes(struct loop_poller *poller)
{
    (void)poller;
    return true;
}

static bool no(struct loop_poller *poller)
{
    (void)poller;
    return false;
}

/* A poller may take another one, the next in the walk, out of the list; its memory is gone then. */
static void pollers_can_be_removed_by_others(void **state)
{
    struct loop *loop = new_loop(8);
    struct polled a = {.loop = loop}, c = {.loop = loop}, *b = calloc(1, sizeof(*b));

    (void)state;
    b->loop = loop;
    struct polled *all[] = {&a, b, &c};
    for (int i = 0; i < 3; i++) {
        all[i]->poller = (struct loop_poller){.poll = poll_and_remove, .may_sleep = yes, .arg = all[i]};
        loop_poller_add(loop, &all[i]->poller);
    }
    a.victim = &b->poller;
    assert_int_equal(loop_turn(loop, 0, NULL), 0);
    assert_int_equal(b->polls, 0);
    free(b);
    assert_int_equal(loop_turn(loop, 0, NULL), 0);
    assert_true(a.polls >= 2);
    assert_int_equal(c.polls, a.polls);
    /* One that objects keeps the loop from waiting. */
    c.poller.may_sleep = no;
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    assert_int_equal(loop_turn(loop, 5000, NULL), 0);
    clock_gettime(CLOCK_MONOTONIC, &after);
    assert_true(after.tv_sec - before.tv_sec < 3);
    loop_poller_remove(loop, &a.poller);
    loop_poller_remove(loop, &c.poller);
    loop_free(loop);
}

struct deferred {
    struct loop_post post;
    struct loop *loop;
    int runs;
};

static void defer_again(struct loop_post *post)
{
    struct deferred *d = post->arg;

    if (++d->runs < 3)
        loop_defer(d->loop, post);
    else
        loop_stop(d->loop);
}

static void deferred_work_runs_without_waiting_and_stop_ends_the_run(void **state)
{
    struct deferred d = {.loop = new_loop(8)};

    (void)state;
    d.post = (struct loop_post){.run = defer_again, .arg = &d};
    loop_defer(d.loop, &d.post);
    assert_int_equal(d.runs, 0);
    assert_int_equal(loop_run(d.loop, NULL), 0);
    assert_int_equal(d.runs, 3);
    loop_free(d.loop);
}

/* ---- the stores' host ------------------------------------------------------------------------ */

struct host_result {
    struct cairn_io io;
    int count;
    int64_t result;
};

static void record_io(struct cairn_io *io, int64_t result)
{
    struct host_result *r = io->arg;

    r->count++;
    r->result = result;
}

static void host_goes_on_after_short_transfers(void **state)
{
    struct loop *loop = new_loop(8);
    const struct cairn_host *host = loop_host(loop);
    struct host_result r = {.io = {.done = record_io, .arg = &r}};
    char buf[3000];
    int fds[2];

    (void)state;
    /* A pipe gives what is there: the host must ask for the rest. */
    assert_int_equal(pipe(fds), 0);
    host->pread(host->ctx, &r.io, fds[0], buf, sizeof(buf), 0);
    for (int i = 0; i < 3; i++) {
        char part[1000];
        memset(part, 'a' + i, sizeof(part));
        assert_int_equal(r.count, 0);
        assert_int_equal(write(fds[1], part, sizeof(part)), sizeof(part));
        for (int k = 0; k < 10 && !r.count; k++)
            assert_int_equal(loop_turn(loop, 10, NULL), 0);
    }
    assert_int_equal(r.count, 1);
    assert_int_equal(r.result, sizeof(buf));
    assert_int_equal(buf[0], 'a');
    assert_int_equal(buf[1999], 'b');
    assert_int_equal(buf[2999], 'c');
    /* The end of the file is not an error. */
    assert_int_equal(write(fds[1], "xy", 2), 2);
    close(fds[1]);
    host->pread(host->ctx, &r.io, fds[0], buf, sizeof(buf), 0);
    turn_until(loop, &r.count, 2);
    assert_int_equal(r.result, 2);
    close(fds[0]);
    loop_free(loop);
}

static int64_t one_write(struct loop *loop, int fd)
{
    const struct cairn_host *host = loop_host(loop);
    struct host_result r = {.io = {.done = record_io, .arg = &r}};

    host->pwrite(host->ctx, &r.io, fd, "data", 4, 0);
    assert_int_equal(r.count, 0);
    turn_until(loop, &r.count, 1);
    return r.result;
}

static void host_injects_faults(void **state)
{
    struct loop *loop = new_loop(8);
    const struct cairn_host *host = loop_host(loop);
    int fd = memfd_create("t", MFD_CLOEXEC);

    (void)state;
    loop_fault(loop, LOOP_FAULT_WRITE, 2, ENOSPC, false);
    assert_int_equal(one_write(loop, fd), 4);
    assert_int_equal(one_write(loop, fd), -ENOSPC);
    assert_int_equal(one_write(loop, fd), 4);
    loop_fault(loop, LOOP_FAULT_WRITE, 1, EIO, true);
    assert_int_equal(one_write(loop, fd), -EIO);
    assert_int_equal(one_write(loop, fd), -EIO);
    loop_fault(loop, LOOP_FAULT_WRITE, 1, EINTR, false); /* tried again */
    assert_int_equal(one_write(loop, fd), 4);
    loop_fault(loop, LOOP_FAULT_FDATASYNC, 1, EIO, false);
    struct host_result r = {.io = {.done = record_io, .arg = &r}};
    host->fdatasync(host->ctx, &r.io, fd);
    turn_until(loop, &r.count, 1);
    assert_int_equal(r.result, -EIO);
    host->fdatasync(host->ctx, &r.io, fd);
    turn_until(loop, &r.count, 2);
    assert_int_equal(r.result, 0);
    close(fd);
    loop_free(loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writes_and_reads_more_than_the_ring_holds),
        cmocka_unit_test(many_polls_in_flight_leave_room_and_are_ended_by_free),
        cmocka_unit_test(sockets_accept_send_and_receive),
        cmocka_unit_test(cancel_ends_operations_once_queued_or_in_flight),
        cmocka_unit_test(timers_fire_in_order_and_can_be_moved_and_cancelled),
        cmocka_unit_test(timer_that_sets_itself_does_not_hang_the_turn),
        cmocka_unit_test(a_turn_waits_for_the_next_timer),
        cmocka_unit_test(pollers_can_be_removed_by_others),
        cmocka_unit_test(deferred_work_runs_without_waiting_and_stop_ends_the_run),
        cmocka_unit_test(host_goes_on_after_short_transfers),
        cmocka_unit_test(host_injects_faults),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
