/* SPDX-License-Identifier: Apache-2.0 */
#include "client/packet.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_MS 1000000
#define GRACE_MS 250

int64_t clock_now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t); /* cannot fail for this clock */
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t deadline_in_ms(uint32_t ms)
{
    return clock_now_ns() + (int64_t)ms * NS_PER_MS;
}

int64_t deadline_after_daemon(int64_t deadline_ns, uint32_t timeout_ms)
{
    return deadline_ns + (timeout_ms ? (int64_t)GRACE_MS * NS_PER_MS : 0);
}

uint32_t deadline_left_ms(int64_t deadline_ns)
{
    int64_t left = deadline_ns - clock_now_ns();

    if (left <= 0)
        return 0;
    left = (left + NS_PER_MS - 1) / NS_PER_MS;
    return left > INT_MAX ? INT_MAX : (uint32_t)left; /* INT_MAX: what poll takes */
}

int packet_send(int socket_fd, const struct local_header *message, const int *fds, unsigned nfds)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(LOCAL_MAX_FDS * sizeof(int))];
    } control = {0};
    struct iovec iov = {.iov_base = (void *)message, .iov_len = message->len};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};

    if (nfds > 0) {
        m.msg_control = control.bytes;
        m.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
        struct cmsghdr *h = CMSG_FIRSTHDR(&m);
        h->cmsg_level = SOL_SOCKET;
        h->cmsg_type = SCM_RIGHTS;
        h->cmsg_len = CMSG_LEN(nfds * sizeof(int));
        memcpy(CMSG_DATA(h), fds, nfds * sizeof(int));
    }
    return sendmsg(socket_fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? errno : 0;
}

int packet_send_until(int socket_fd, const struct local_header *message, const int *fds, unsigned nfds,
                      int64_t deadline_ns)
{
    for (;;) {
        int e = packet_send(socket_fd, message, fds, nfds);
        if (e != EAGAIN && e != EINTR)
            return e;
        uint32_t left = deadline_left_ms(deadline_ns);
        if (left == 0)
            return ETIMEDOUT;
        struct pollfd p = {.fd = socket_fd, .events = POLLOUT};
        if (poll(&p, 1, (int)left) < 0 && errno != EINTR)
            return errno;
    }
}

void packet_close_fds(int *fds, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

static void take_fds(struct msghdr *m, struct packet *got)
{
    for (struct cmsghdr *h = CMSG_FIRSTHDR(m); h; h = CMSG_NXTHDR(m, h)) {
        if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(h) + i * sizeof(int), sizeof(fd));
            if (got->nfds < LOCAL_MAX_FDS)
                got->fds[got->nfds++] = fd;
            else
                close(fd);
        }
    }
}

int packet_receive(int socket_fd, void *buffer, struct packet *ret_packet)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(LOCAL_MAX_FDS * sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = buffer, .iov_len = LOCAL_MAX_MESSAGE};
    struct msghdr m = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};

    ssize_t n = recvmsg(socket_fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0)
        return errno;
    *ret_packet = (struct packet){.len = (size_t)n, .cut = m.msg_flags & (MSG_TRUNC | MSG_CTRUNC)};
    take_fds(&m, ret_packet);
    return n == 0 && ret_packet->nfds == 0 ? PACKET_END : 0;
}
