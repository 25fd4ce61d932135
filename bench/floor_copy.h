/* SPDX-License-Identifier: Apache-2.0 */
/* What this machine's memory can do: a streaming copy, glibc's memcpy and a loop that only reads. Made apart from the
 * client's copy on purpose: it is the limit that one is compared with, and knows nothing of arenas. */
#ifndef CAIRN_BENCH_FLOOR_COPY_H
#define CAIRN_BENCH_FLOOR_COPY_H

#include <stddef.h>

#define FLOOR_MAX_THREADS 64

enum floor_kind { FLOOR_STREAM, FLOOR_MEMCPY, FLOOR_READ };

struct floor_piece {
    char *to; /* at 64 bytes; unused by FLOOR_READ */
    const char *from;
    size_t len;
};

/* Copies (or reads) all pieces with so many threads. Returns the seconds it took, or a negative number when a thread
 * could not be made. */
double floor_run(enum floor_kind kind, const struct floor_piece *pieces, size_t n, unsigned threads);

#endif
