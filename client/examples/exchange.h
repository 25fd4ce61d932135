/* SPDX-License-Identifier: Apache-2.0 */
/* exchange.h: what the rank processes of one machine share: a barrier, and the sum of their gradients. Made before the
 * ranks are forked. Sums run in the order of the ranks, so that every run gets the same bits. */
#ifndef CLIENT_EXAMPLES_EXCHANGE_H
#define CLIENT_EXAMPLES_EXCHANGE_H

#include <stddef.h>
#include <stdint.h>

#define EXCHANGE_TIMEOUT_MS 60000

struct exchange_shared;

struct exchange {
    struct exchange_shared *shared; /* mapped by all ranks */
    float *gradients;               /* ranks * n, also shared */
    float *sum;                     /* n, also shared */
    double *values;                 /* one per rank, also shared */
    uint64_t *words;                /* one per rank, also shared */
    size_t n, mapped_bytes;
    unsigned ranks;
};

/* All of these return 0 or a negative errno; -ETIMEDOUT where another rank did not come in time. */
int exchange_make(unsigned ranks, size_t n, struct exchange *ret_exchange);
void exchange_free(struct exchange *exchange);
int exchange_barrier(struct exchange *exchange, unsigned timeout_ms);
/* The gradient that this rank fills before it asks for the sum. */
float *exchange_gradient(struct exchange *exchange, unsigned rank);
/* Sums all gradients into exchange->sum and the ranks' values into *ret_value. The sum may be read, and the own
 * gradient overwritten, until the next call. */
int exchange_sum(struct exchange *exchange, unsigned rank, double value, double *ret_value);
/* 0 when all ranks called with the same word, -EPROTO when not. */
int exchange_agree(struct exchange *exchange, unsigned rank, uint64_t word);

#endif
