/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/probe_disk.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>

#define ENTRIES 512
#define WATCH ((uint64_t)1 << 63)

static int fail(const char *what, int code)
{
    fprintf(stderr, "bench-probe-durable: %s: %s\n", what, strerror(-code));
    return -1;
}

int disk_open(struct disk *d, char *memory, size_t len)
{
    struct iovec all = {memory, len};
    int r = io_uring_queue_init(ENTRIES, &d->ring, IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG);

    if (r < 0)
        return fail("open an io_uring", r);
    d->open = true;
    d->watching = false;
    d->fixed = io_uring_register_buffers(&d->ring, &all, 1) == 0;
    return 0;
}

/* An entry of the ring; the caller never has as many under way as it has entries. The tag holds the length, too: what
 * is short is an error. */
static struct io_uring_sqe *entry(struct disk *d)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&d->ring);

    if (!sqe)
        (void)fail("the io_uring is full", -ENOBUFS);
    return sqe;
}

static int submit(struct disk *d)
{
    int r = io_uring_submit(&d->ring);

    return r < 0 ? fail("submit to the io_uring", r) : 0;
}

int disk_write(struct disk *d, int fd, const char *from, size_t len, uint64_t offset, uint32_t tag)
{
    struct io_uring_sqe *sqe = entry(d);

    if (!sqe)
        return -1;
    if (d->fixed)
        io_uring_prep_write_fixed(sqe, fd, from, (unsigned)len, offset, 0);
    else
        io_uring_prep_write(sqe, fd, from, (unsigned)len, offset);
    io_uring_sqe_set_data64(sqe, (uint64_t)len << 32 | tag);
    return submit(d);
}

int disk_sync(struct disk *d, int fd, uint32_t tag)
{
    struct io_uring_sqe *sqe = entry(d);

    if (!sqe)
        return -1;
    io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
    io_uring_sqe_set_data64(sqe, tag);
    return submit(d);
}

int disk_poll(struct disk *d, uint32_t *ret_tags, unsigned most)
{
    struct io_uring_cqe *cqe;
    unsigned n = 0;

    while (n < most && io_uring_peek_cqe(&d->ring, &cqe) == 0) {
        uint64_t data = io_uring_cqe_get_data64(cqe);
        int res = cqe->res;
        io_uring_cqe_seen(&d->ring, cqe);
        if (data & WATCH) {
            d->watching = false;
            continue;
        }
        if (res < 0 || (uint64_t)res != data >> 32)
            return fail("write or sync a file", res < 0 ? res : -EIO);
        ret_tags[n++] = (uint32_t)data;
    }
    return (int)n;
}

int disk_sleep(struct disk *d, int fd)
{
    struct __kernel_timespec most = {.tv_nsec = 50000000};
    struct io_uring_cqe *cqe;

    if (!d->watching) {
        struct io_uring_sqe *sqe = entry(d);
        if (!sqe)
            return -1;
        io_uring_prep_poll_add(sqe, fd, POLLIN);
        io_uring_sqe_set_data64(sqe, WATCH);
        d->watching = true;
        if (submit(d) < 0)
            return -1;
    }
    int r = io_uring_wait_cqe_timeout(&d->ring, &cqe, &most);
    return r < 0 && r != -ETIME && r != -EINTR ? fail("wait for the io_uring", r) : 0;
}

void disk_close(struct disk *d)
{
    if (d->open)
        io_uring_queue_exit(&d->ring);
    d->open = false;
}
