/* SPDX-License-Identifier: Apache-2.0 */
/* The ranks of one training run as processes of one machine: memory that they share, a barrier with a deadline, and a
 * parent that ends the others when one is lost. No rank waits for a dead one longer than it takes the parent to see it.
 */
#ifndef CAIRN_EXAMPLES_CREW_H
#define CAIRN_EXAMPLES_CREW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CREW_MAX 16

struct crew {
    uint32_t ranks;
    uint32_t arrived; /* at the barrier */
    uint32_t round;   /* of the barrier; a futex */
    uint32_t lost;    /* a rank ended: the barrier fails from now on */
    float loss[CREW_MAX];
    size_t shared_bytes;
    _Alignas(64) char shared[]; /* the caller's */
};

/* NULL when there is no memory. */
struct crew *crew_new(uint32_t ranks, size_t shared_bytes);

typedef int (*crew_fn)(struct crew *crew, uint32_t rank, void *arg);
/* Forks the ranks, runs fn in each, waits for all. Returns 0 when every one returned 0, else 1. SIGTERM and SIGINT end
 * the ranks; they also die with this process. */
int crew_run(struct crew *crew, crew_fn fn, void *arg);

/* 0 once all ranks are here; -1 when one is lost or timeout_ms passed. */
int crew_barrier(struct crew *crew, unsigned timeout_ms);

#endif
