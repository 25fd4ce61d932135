/* SPDX-License-Identifier: Apache-2.0 */
/* A word to sleep on. Not a condition variable: its waits hide signals, and cairn_save_wait owes the caller INTR. */
#ifndef CAIRN_CLIENT_FUTEX_H
#define CAIRN_CLIENT_FUTEX_H

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Until the word is not what was seen, somebody wakes, the deadline (CLOCK_MONOTONIC) or a signal: then EINTR. */
static inline int futex_wait(uint32_t *word, uint32_t seen, int64_t deadline_ns)
{
    struct timespec until = {.tv_sec = deadline_ns / 1000000000, .tv_nsec = deadline_ns % 1000000000};
    long r =
        syscall(SYS_futex, word, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, seen, &until, NULL, FUTEX_BITSET_MATCH_ANY);

    return r < 0 ? errno : 0;
}

/* Changes the word and wakes all. */
static inline void futex_turn(uint32_t *word)
{
    __atomic_fetch_add(word, 1, __ATOMIC_RELAXED);
    syscall(SYS_futex, word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, INT_MAX, NULL, NULL, 0);
}

#endif
