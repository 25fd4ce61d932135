/* SPDX-License-Identifier: Apache-2.0 */
/* The probe's disk: direct writes and syncs through one io_uring, which also wakes its thread for the wire. */
#ifndef CAIRN_BENCH_PROBE_DISK_H
#define CAIRN_BENCH_PROBE_DISK_H

#include <liburing.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct disk {
    struct io_uring ring;
    bool open;
    bool fixed;    /* the memory is registered; not where the limit of locked memory is too low */
    bool watching; /* the wire's descriptor */
};

/* Each returns 0, or -1 after a message on stderr. What is written lies in the memory. */
int disk_open(struct disk *d, char *memory, size_t len);
int disk_write(struct disk *d, int fd, const char *from, size_t len, uint64_t offset, uint32_t tag);
int disk_sync(struct disk *d, int fd, uint32_t tag);
/* What has completed since, by its tags: how many, or -1 after a message when one failed or was short. */
int disk_poll(struct disk *d, uint32_t *ret_tags, unsigned most);
/* Until something completes or the descriptor is readable, for at most 50 ms. */
int disk_sleep(struct disk *d, int fd);
void disk_close(struct disk *d);

#endif
