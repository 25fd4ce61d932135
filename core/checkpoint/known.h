/* SPDX-License-Identifier: Apache-2.0 */
/* What is known of a job's checkpoints, and which of them is the latest. */
#ifndef CAIRN_CORE_CHECKPOINT_KNOWN_H
#define CAIRN_CORE_CHECKPOINT_KNOWN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum known_fate {
    KNOWN_UNDECIDED,
    KNOWN_COMMITTED,
    KNOWN_ABORTED,
    KNOWN_DELETED /* was committed and has a tombstone: is there no more, though files of it may be */
};
enum known_numbers { KNOWN_UNCOUNTED, KNOWN_FINITE, KNOWN_NONFINITE /* some tensor has NaN or Inf */ };
struct known {
    uint64_t step;
    uint64_t incarnation;
    int fate;        /* enum known_fate */
    int numbers;     /* enum known_numbers, of a committed one */
    bool under_way;  /* undecided: a daemon that lives works on it */
    bool unreadable; /* committed: reading it was tried and failed */
};
/* "committed", "aborted", "deleted", "undecided" */
const char *known_fate_name(int fate);
/* By (incarnation, step): < 0, 0 or > 0. */
int known_compare(const struct known *a, const struct known *b);
/* The highest (incarnation, step) among committed and readable ones, or -1. */
ptrdiff_t known_latest(const struct known *k, size_t n);
/* The same among those whose numbers are all finite. */
ptrdiff_t known_latest_finite(const struct known *k, size_t n);
/* The newest incarnation that committed the step, or -1. */
ptrdiff_t known_step(const struct known *k, size_t n, uint64_t step);
/* The highest step of an incarnation that is decided. False when there is none. */
bool known_last_decided(const struct known *k, size_t n, uint64_t incarnation, uint64_t *ret_step);

#endif
