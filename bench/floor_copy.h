/* SPDX-License-Identifier: Apache-2.0 */
/* What this machine's memory can do: streaming copies, glibc's memcpy and a loop that only reads. Made apart from the
 * client's copy on purpose: they are the limit that one is compared with, and know nothing of arenas. */
#ifndef CAIRN_BENCH_FLOOR_COPY_H
#define CAIRN_BENCH_FLOOR_COPY_H

#include <stddef.h>

#define FLOOR_MAX_THREADS 64

/* Four pages side by side; one line after the other; glibc's. Which of them is the fastest is the machine's. */
enum floor_kind { FLOOR_PAGES, FLOOR_LINES, FLOOR_MEMCPY, FLOOR_READ };
#define FLOOR_COPIES 3 /* the kinds that copy come first */

struct floor_piece {
    char *to; /* at 64 bytes; unused by FLOOR_READ */
    const char *from;
    size_t len;
};

/* Copies (or reads) all pieces with so many threads. Returns the seconds it took, or a negative number when a thread
 * could not be made. */
double floor_run(enum floor_kind kind, const struct floor_piece *pieces, size_t n, unsigned threads);
/* The kind that copies these pieces fastest with so many threads: the best of some rounds of each, in turns. */
enum floor_kind floor_best(const struct floor_piece *pieces, size_t n, unsigned threads);
const char *floor_name(enum floor_kind kind);

#endif
