/* SPDX-License-Identifier: Apache-2.0 */
/* The reactor. A turn goes over everything that may have something to do; only when nothing had, and no poller objects,
 * it waits in the kernel:
 *
 *     pollers, completions, posts, timers, deferred -> submit -> (wait -> the same again -> submit)
 *
 * An operation waits in a list until the turn's submission, so that one system call starts many; it waits on when the
 * ring has no entry for it, or no room for its completion. A cancel is put into the ring in the same submission that
 * follows the request, before operations asked for later: it can never hit a later use of the same struct.
 */
#include "daemon/io/loop_internal.h"

#include "core/base/error.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define MAX_TRANSFER ((size_t)1 << 30) /* the ring's lengths have 32 bits */
#define RUN_WAIT_MS 60000              /* of one turn in loop_run: any bound will do */
#define CLOSE_WAIT_MS 5000             /* for cancelled operations to end */

enum {
    OP_READ,
    OP_WRITE,
    OP_FDATASYNC,
    OP_ACCEPT,
    OP_RECVMSG,
    OP_SENDMSG,
    OP_POLL,
    OP_KIND = 0xff,
    OP_SUBMITTED = 0x100, /* the kernel has it; else it is in the waiting or the finished list */
    OP_FINISHED = 0x200,
};

static uint64_t clock_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* ---- operations ------------------------------------------------------------------------------ */

static void op_start(struct loop *loop, struct loop_op *op, int kind, int fd, void *buf, size_t len, uint64_t offset)
{
    loop_assert_here(loop);
    assert(!op->in_flight);
    op->kind = kind;
    op->fd = fd;
    op->buf = buf;
    op->len = len;
    op->offset = offset;
    op->in_flight = true;
    list_init(&op->link);
    list_push_back(&loop->waiting, &op->link);
}

void loop_read(struct loop *loop, struct loop_op *op, int fd, void *buf, size_t len, uint64_t offset)
{
    op_start(loop, op, OP_READ, fd, buf, len, offset);
}

void loop_write(struct loop *loop, struct loop_op *op, int fd, const void *buf, size_t len, uint64_t offset)
{
    op_start(loop, op, OP_WRITE, fd, (void *)(uintptr_t)buf, len, offset);
}

void loop_fdatasync(struct loop *loop, struct loop_op *op, int fd)
{
    op_start(loop, op, OP_FDATASYNC, fd, NULL, 0, 0);
}

void loop_accept(struct loop *loop, struct loop_op *op, int fd)
{
    op_start(loop, op, OP_ACCEPT, fd, NULL, 0, 0);
}

void loop_recvmsg(struct loop *loop, struct loop_op *op, int fd, struct msghdr *msg, int flags)
{
    op_start(loop, op, OP_RECVMSG, fd, msg, (unsigned)flags, 0);
}

void loop_sendmsg(struct loop *loop, struct loop_op *op, int fd, struct msghdr *msg, int flags)
{
    op_start(loop, op, OP_SENDMSG, fd, msg, (unsigned)flags, 0);
}

void loop_poll(struct loop *loop, struct loop_op *op, int fd, unsigned events)
{
    op_start(loop, op, OP_POLL, fd, NULL, events, 0);
}

void loop_finish(struct loop *loop, struct loop_op *op, int res)
{
    op->kind = OP_FINISHED;
    op->len = (unsigned)res;
    op->in_flight = true;
    list_init(&op->link);
    list_push_back(&loop->finished, &op->link);
}

void loop_cancel(struct loop *loop, struct loop_op *op)
{
    loop_assert_here(loop);
    if (!op->in_flight || op->kind == OP_FINISHED)
        return;
    list_remove(&op->link);
    if (op->kind & OP_SUBMITTED)
        list_push_back(&loop->cancels, &op->link);
    else
        loop_finish(loop, op, -ECANCELED);
}

static void prepare(struct io_uring_sqe *sqe, const struct loop_op *op)
{
    unsigned len = (unsigned)(op->len < MAX_TRANSFER ? op->len : MAX_TRANSFER);

    switch (op->kind) {
    case OP_READ:
        io_uring_prep_read(sqe, op->fd, op->buf, len, op->offset);
        break;
    case OP_WRITE:
        io_uring_prep_write(sqe, op->fd, op->buf, len, op->offset);
        break;
    case OP_FDATASYNC:
        io_uring_prep_fsync(sqe, op->fd, IORING_FSYNC_DATASYNC);
        break;
    case OP_ACCEPT:
        io_uring_prep_accept(sqe, op->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        break;
    case OP_RECVMSG:
        io_uring_prep_recvmsg(sqe, op->fd, op->buf, (unsigned)op->len);
        break;
    case OP_SENDMSG:
        io_uring_prep_sendmsg(sqe, op->fd, op->buf, (unsigned)op->len);
        break;
    case OP_POLL:
        io_uring_prep_poll_add(sqe, op->fd, (unsigned)op->len);
        break;
    default:
        assert(false);
    }
}

/* An entry of the ring, or NULL when it, or its completion queue, has no room. */
static struct io_uring_sqe *entry(struct loop *loop)
{
    struct io_uring_sqe *sqe = loop->in_flight < loop->ring_room ? io_uring_get_sqe(&loop->ring) : NULL;

    if (sqe)
        loop->in_flight++;
    return sqe;
}

static void fill_ring(struct loop *loop)
{
    struct io_uring_sqe *sqe;

    while (!list_empty(&loop->cancels) && (sqe = entry(loop))) {
        struct loop_op *op = list_first(&loop->cancels, struct loop_op, link);

        list_remove(&op->link);
        io_uring_prep_cancel(sqe, op, 0);
        io_uring_sqe_set_data(sqe, NULL);
    }
    while (!list_empty(&loop->waiting) && (sqe = entry(loop))) {
        struct loop_op *op = list_first(&loop->waiting, struct loop_op, link);

        list_remove(&op->link);
        prepare(sqe, op);
        io_uring_sqe_set_data(sqe, op);
        op->kind |= OP_SUBMITTED;
    }
}

/* The kernel is out of memory or wants completions reaped first: what is in the ring stays there for the next turn. */
static bool is_passing(int r)
{
    return r == -EAGAIN || r == -EBUSY || r == -EINTR || r == -ETIME;
}

static int submit(struct loop *loop, struct cairn_error *err)
{
    fill_ring(loop);
    if (!io_uring_sq_ready(&loop->ring))
        return 0;
    int r = io_uring_submit(&loop->ring);
    return r < 0 && !is_passing(r) ? cairn_fail_errno(err, -r, "submit to io_uring") : 0;
}

static bool run_finished(struct loop *loop)
{
    struct list now;
    bool any = !list_empty(&loop->finished);

    /* Only those that are there: their done() may start and end more. */
    list_init(&now);
    while (!list_empty(&loop->finished)) {
        struct list *link = loop->finished.next;

        list_remove(link);
        list_push_back(&now, link);
    }
    while (!list_empty(&now)) {
        struct loop_op *op = list_first(&now, struct loop_op, link);

        list_remove(&op->link);
        op->in_flight = false;
        op->done(op, (int)(unsigned)op->len);
    }
    return any;
}

static bool run_completions(struct loop *loop)
{
    struct io_uring_cqe *cqe;
    bool any = run_finished(loop);

    for (unsigned left = loop->ring_room; left && io_uring_peek_cqe(&loop->ring, &cqe) == 0; left--) {
        struct loop_op *op = io_uring_cqe_get_data(cqe);
        int res = cqe->res;

        io_uring_cqe_seen(&loop->ring, cqe);
        loop->in_flight--;
        any = true;
        if (!op) /* a cancel's own */
            continue;
        list_remove(&op->link); /* it may be about to be cancelled */
        op->in_flight = false;
        op->done(op, res);
    }
    return any;
}

/* ---- posts and deferred work ----------------------------------------------------------------- */

void loop_post(struct loop *loop, struct loop_post *post)
{
    struct loop_post *head = atomic_load_explicit(&loop->posted, memory_order_relaxed);
    uint64_t one = 1;

    do
        post->next = head;
    while (
        !atomic_compare_exchange_weak_explicit(&loop->posted, &head, post, memory_order_release, memory_order_relaxed));
    /* Only the first since the loop last took them: it takes all. The post is not ours any more. */
    if (!head && write(loop->wake_fd, &one, sizeof(one)) < 0)
        abort(); /* an eventfd far from its limit does not fail; a lost wake-up would hang the daemon */
}

static void on_wake(struct loop_op *op, int res)
{
    struct loop *loop = op->arg;

    (void)res; /* the posts themselves say what there is to do */
    if (!loop->closing)
        loop_read(loop, op, loop->wake_fd, &loop->wake_count, sizeof(loop->wake_count), 0);
}

static bool run_posts(struct loop *loop)
{
    struct loop_post *newest = NULL, *oldest = NULL;

    if (!atomic_load_explicit(&loop->posted, memory_order_relaxed))
        return false;
    newest = atomic_exchange_explicit(&loop->posted, NULL, memory_order_acquire);
    while (newest) {
        struct loop_post *next = newest->next;

        newest->next = oldest;
        oldest = newest;
        newest = next;
    }
    while (oldest) {
        struct loop_post *next = oldest->next;

        oldest->run(oldest);
        oldest = next;
    }
    return true;
}

void loop_defer(struct loop *loop, struct loop_post *post)
{
    loop_assert_here(loop);
    post->next = NULL;
    *loop->deferred.tail = post;
    loop->deferred.tail = &post->next;
}

static bool run_deferred(struct loop *loop)
{
    struct loop_post *post = loop->deferred.head;
    bool any = post != NULL;

    /* What these defer in turn runs in the next turn, which does not wait then. */
    loop->deferred.head = NULL;
    loop->deferred.tail = &loop->deferred.head;
    while (post) {
        struct loop_post *next = post->next;

        post->run(post);
        post = next;
    }
    return any;
}

/* ---- pollers --------------------------------------------------------------------------------- */

void loop_poller_add(struct loop *loop, struct loop_poller *poller)
{
    loop_assert_here(loop);
    list_init(&poller->link);
    list_push_back(&loop->pollers, &poller->link);
}

void loop_poller_remove(struct loop *loop, struct loop_poller *poller)
{
    loop_assert_here(loop);
    if (loop->poller_next == &poller->link)
        loop->poller_next = poller->link.next;
    list_remove(&poller->link);
}

static struct loop_poller *next_poller(struct loop *loop)
{
    struct list *link = loop->poller_next;

    if (link == &loop->pollers)
        return NULL;
    loop->poller_next = link->next;
    return container_of(link, struct loop_poller, link);
}

static bool run_pollers(struct loop *loop)
{
    struct loop_poller *poller;
    bool any = false;

    loop->poller_next = loop->pollers.next;
    while ((poller = next_poller(loop)))
        any |= poller->poll(poller);
    return any;
}

static bool pollers_may_sleep(struct loop *loop)
{
    struct loop_poller *poller;

    loop->poller_next = loop->pollers.next;
    while ((poller = next_poller(loop)))
        if (!poller->may_sleep(poller))
            return false;
    return true;
}

/* ---- turns ----------------------------------------------------------------------------------- */

/* One walk over everything that may have something to do; false when nothing had. */
static bool work(struct loop *loop)
{
    bool any = false;

    loop->now_ns = clock_ns();
    any |= run_pollers(loop);
    any |= run_completions(loop);
    any |= run_posts(loop);
    any |= loop_timers_fire(loop);
    any |= run_deferred(loop);
    return any;
}

static bool may_sleep(struct loop *loop)
{
    if (loop->stop || loop->deferred.head || !list_empty(&loop->finished))
        return false;
    if (!pollers_may_sleep(loop))
        return false;
    return !loop->deferred.head && !atomic_load_explicit(&loop->posted, memory_order_relaxed);
}

static uint64_t wait_ns(const struct loop *loop, unsigned max_wait_ms)
{
    uint64_t next = loop_timers_next_ns(loop), now = clock_ns();
    uint64_t until_timer = next > now ? next - now : 0;
    uint64_t most = (uint64_t)max_wait_ms * 1000000;

    return until_timer < most ? until_timer : most;
}

/* Submits and waits for one completion; a post is one too, through the eventfd. */
static int wait_for_one(struct loop *loop, uint64_t ns, struct cairn_error *err)
{
    struct __kernel_timespec ts = {.tv_sec = (long long)(ns / 1000000000), .tv_nsec = (long long)(ns % 1000000000)};
    struct io_uring_cqe *cqe;

    fill_ring(loop); /* pollers may have asked for operations when they agreed */
    int r = io_uring_submit_and_wait_timeout(&loop->ring, &cqe, 1, &ts, NULL);
    return r < 0 && !is_passing(r) ? cairn_fail_errno(err, -r, "wait for io_uring") : 0;
}

int loop_turn(struct loop *loop, unsigned max_wait_ms, struct cairn_error *err)
{
    int r;

    if (!loop->bound) {
        loop->thread = pthread_self();
        loop->bound = true;
    }
    loop_assert_here(loop);
    bool worked = work(loop);
    r = submit(loop, err);
    if (r < 0 || worked || !may_sleep(loop))
        return r;
    uint64_t ns = wait_ns(loop, max_wait_ms);
    if (!ns && !max_wait_ms) /* nothing to wait for, but pollers may have armed something */
        return submit(loop, err);
    r = wait_for_one(loop, ns, err);
    if (r < 0)
        return r;
    (void)work(loop);
    return submit(loop, err);
}

int loop_run(struct loop *loop, struct cairn_error *err)
{
    int r = 0;

    while (!loop->stop && r == 0)
        r = loop_turn(loop, RUN_WAIT_MS, err);
    loop->stop = false;
    loop->bound = false; /* whoever cleans up may be another thread */
    return r;
}

void loop_stop(struct loop *loop)
{
    loop_assert_here(loop);
    loop->stop = true;
}

uint64_t loop_now_ns(const struct loop *loop)
{
    return loop->now_ns;
}

void loop_assert_here(const struct loop *loop)
{
    (void)loop;
    assert(!loop->bound || pthread_equal(loop->thread, pthread_self()));
}

/* ---- life ------------------------------------------------------------------------------------ */

static int ring_init(struct loop *loop, unsigned entries, struct cairn_error *err)
{
    /* No interrupts of this thread for completions: it asks for them every turn. */
    struct io_uring_params params = {.flags =
                                         IORING_SETUP_CLAMP | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG};
    int r = io_uring_queue_init_params(entries, &loop->ring, &params);

    if (r < 0)
        return cairn_fail_errno(err, -r, "open an io_uring of %u entries", entries);
    if (!(params.features & IORING_FEAT_EXT_ARG)) {
        io_uring_queue_exit(&loop->ring);
        return cairn_fail(err, CAIRN_E_UNSUPPORTED, "io_uring: this kernel is older than 6.1");
    }
    loop->ring_room = params.cq_entries;
    return 0;
}

int loop_new(unsigned entries, struct loop **ret_loop, struct cairn_error *err)
{
    struct loop *loop = calloc(1, sizeof(*loop));
    int r;

    if (!loop)
        return cairn_fail(err, CAIRN_E_NOMEM, "loop: out of memory");
    list_init(&loop->waiting);
    list_init(&loop->cancels);
    list_init(&loop->finished);
    list_init(&loop->pollers);
    loop->deferred.tail = &loop->deferred.head;
    loop->poller_next = &loop->pollers;
    loop->now_ns = clock_ns();
    loop_host_init(loop);
    loop->wake_fd = eventfd(0, EFD_CLOEXEC); /* blocking: the ring answers EAGAIN on a non-blocking one */
    if (loop->wake_fd < 0) {
        r = cairn_fail_errno(err, errno, "eventfd");
        goto err_after_alloc;
    }
    r = ring_init(loop, entries, err);
    if (r < 0)
        goto err_after_eventfd;
    loop->wake_op = (struct loop_op){.done = on_wake, .arg = loop};
    on_wake(&loop->wake_op, 0);
    *ret_loop = loop;
    return 0;

err_after_eventfd:
    close(loop->wake_fd);
err_after_alloc:
    free(loop);
    return r;
}

/* Asks the kernel to end everything that it still has. */
static void cancel_all(struct loop *loop)
{
    while (!list_empty(&loop->waiting))
        loop_cancel(loop, list_first(&loop->waiting, struct loop_op, link));
    if (!loop->in_flight)
        return;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&loop->ring);
    if (!sqe)
        return;
    loop->in_flight++;
    io_uring_prep_cancel(sqe, NULL, IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL);
    io_uring_sqe_set_data(sqe, NULL);
}

void loop_free(struct loop *loop)
{
    if (!loop)
        return;
    loop->bound = false;
    loop->closing = true;
    /* Posts of a pool of workers, and operations that free themselves, may be left; their calls come here. */
    uint64_t give_up = clock_ns() + (uint64_t)CLOSE_WAIT_MS * 1000000;
    while (clock_ns() < give_up) {
        bool any = run_posts(loop);
        any |= run_deferred(loop);
        cancel_all(loop);
        any |= run_finished(loop);
        if (!any && !loop->in_flight)
            break;
        if (loop->in_flight)
            (void)wait_for_one(loop, 10000000, NULL);
        (void)run_completions(loop);
    }
    assert(list_empty(&loop->pollers));
    io_uring_queue_exit(&loop->ring);
    close(loop->wake_fd);
    free(loop->timers.slots);
    free(loop);
}
