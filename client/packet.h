/* SPDX-License-Identifier: Apache-2.0 */
/* One message of core/proto/local.h over a SOCK_SEQPACKET socket, with descriptors; and the clock that deadlines are
 * on. */
#ifndef CAIRN_CLIENT_PACKET_H
#define CAIRN_CLIENT_PACKET_H

#include <stdbool.h>

#include "core/proto/local.h"

/* CLOCK_MONOTONIC, ns. */
int64_t clock_now_ns(void);
int64_t deadline_in_ms(uint32_t ms);
/* A deadline that the daemon was told: it gets the first word, because it knows who was late. 0 ms stays 0. */
int64_t deadline_after_daemon(int64_t deadline_ns, uint32_t timeout_ms);
/* What is left of a deadline in ms, rounded up; 0 when it has passed. */
uint32_t deadline_left_ms(int64_t deadline_ns);

/* Sends without waiting, and with it up to LOCAL_MAX_FDS descriptors. Returns 0 or an errno; raises no signal. */
int packet_send(int socket_fd, const struct local_header *message, const int *fds, unsigned nfds);
/* The same, waiting for room; ETIMEDOUT at the deadline. */
int packet_send_until(int socket_fd, const struct local_header *message, const int *fds, unsigned nfds,
                      int64_t deadline_ns);

struct packet {
    size_t len;
    int fds[LOCAL_MAX_FDS];
    unsigned nfds;
    bool cut; /* the message or its descriptors did not fit */
};
#define PACKET_END (-1)
/* Receives into a buffer of LOCAL_MAX_MESSAGE without waiting. Returns 0, PACKET_END, or an errno: EAGAIN when nothing
 * came. */
int packet_receive(int socket_fd, void *buffer, struct packet *ret_packet);
void packet_close_fds(int *fds, unsigned n);

#endif
