/* SPDX-License-Identifier: Apache-2.0 */
/* A fixed pool of equal, 4 KiB-aligned buffers in one mapping (huge pages where the kernel gives them), allocated and
 * faulted in once: this is what bounds the daemon's memory. Loop's thread only. */
#ifndef CAIRN_DAEMON_IO_BUFFERS_H
#define CAIRN_DAEMON_IO_BUFFERS_H

#include <cairn/cairn.h>

struct buffers;
int buffers_new(size_t buffer_len, unsigned count, struct buffers **ret_buffers, struct cairn_error *err);
void buffers_free(struct buffers *b);  /* all must be back; NULL allowed */
void *buffers_take(struct buffers *b); /* NULL when none is free */
void buffers_give(struct buffers *b, void *buffer);
unsigned buffers_available(const struct buffers *b);
size_t buffers_len(const struct buffers *b); /* of one buffer */
/* The whole mapping, to register it once with a fabric. */
void *buffers_base(const struct buffers *b, size_t *ret_len);

#endif
