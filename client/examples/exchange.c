/* SPDX-License-Identifier: Apache-2.0 */
#include "client/examples/exchange.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct exchange_shared {
    _Atomic uint32_t arrived; /* ranks that are in the barrier */
    _Atomic uint32_t sense;   /* flips when the last one arrives; the futex */
};

static size_t round_up(size_t bytes)
{
    return (bytes + 4095) & ~(size_t)4095;
}

int exchange_make(unsigned ranks, size_t n, struct exchange *ret_exchange)
{
    size_t vector = round_up(n * sizeof(float)), head = round_up(sizeof(struct exchange_shared));
    size_t values = round_up(ranks * sizeof(double)), bytes = head + 2 * values + round_up(ranks * n * 4) + vector;
    char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (at == MAP_FAILED)
        return -errno;
    *ret_exchange = (struct exchange){.shared = (struct exchange_shared *)at,
                                      .values = (double *)(at + head),
                                      .words = (uint64_t *)(at + head + values),
                                      .sum = (float *)(at + head + 2 * values),
                                      .gradients = (float *)(at + head + 2 * values + vector),
                                      .n = n,
                                      .mapped_bytes = bytes,
                                      .ranks = ranks};
    return 0;
}

void exchange_free(struct exchange *exchange)
{
    if (exchange->shared)
        munmap(exchange->shared, exchange->mapped_bytes);
    *exchange = (struct exchange){0};
}

float *exchange_gradient(struct exchange *exchange, unsigned rank)
{
    return exchange->gradients + rank * exchange->n;
}

/* FUTEX_WAIT_BITSET because it takes a point in time, not a duration: waking up early needs no arithmetic. */
static int wait_for_flip(_Atomic uint32_t *sense, uint32_t before, unsigned timeout_ms)
{
    struct timespec end;

    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += timeout_ms / 1000;
    end.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (end.tv_nsec >= 1000000000) {
        end.tv_sec++;
        end.tv_nsec -= 1000000000;
    }
    while (atomic_load(sense) == before) {
        long rc = syscall(SYS_futex, (uint32_t *)sense, FUTEX_WAIT_BITSET, before, &end, NULL, FUTEX_BITSET_MATCH_ANY);
        if (rc < 0 && errno != EAGAIN && errno != EINTR)
            return -errno;
    }
    return 0;
}

int exchange_barrier(struct exchange *exchange, unsigned timeout_ms)
{
    struct exchange_shared *s = exchange->shared;
    uint32_t before = atomic_load(&s->sense);

    if (atomic_fetch_add(&s->arrived, 1) + 1 < exchange->ranks)
        return wait_for_flip(&s->sense, before, timeout_ms);
    atomic_store(&s->arrived, 0);
    atomic_store(&s->sense, !before);
    if (syscall(SYS_futex, (uint32_t *)&s->sense, FUTEX_WAKE, INT_MAX, NULL, NULL, 0) < 0)
        return -errno;
    return 0;
}

int exchange_sum(struct exchange *exchange, unsigned rank, double value, double *ret_value)
{
    size_t begin = exchange->n * rank / exchange->ranks, end = exchange->n * (rank + 1) / exchange->ranks;
    float *restrict sum = exchange->sum;
    double total = 0;
    int rc;

    exchange->values[rank] = value;
    if ((rc = exchange_barrier(exchange, EXCHANGE_TIMEOUT_MS)) < 0)
        return rc;
    for (size_t i = begin; i < end; i++)
        sum[i] = exchange->gradients[i];
    for (unsigned r = 1; r < exchange->ranks; r++) {
        const float *restrict g = exchange_gradient(exchange, r);
        for (size_t i = begin; i < end; i++)
            sum[i] += g[i];
    }
    for (unsigned r = 0; r < exchange->ranks; r++)
        total += exchange->values[r];
    if ((rc = exchange_barrier(exchange, EXCHANGE_TIMEOUT_MS)) < 0)
        return rc;
    *ret_value = total;
    return 0;
}

int exchange_agree(struct exchange *exchange, unsigned rank, uint64_t word)
{
    bool equal = true;
    int rc;

    exchange->words[rank] = word;
    if ((rc = exchange_barrier(exchange, EXCHANGE_TIMEOUT_MS)) < 0)
        return rc;
    for (unsigned r = 0; r < exchange->ranks; r++)
        equal &= exchange->words[r] == word;
    if ((rc = exchange_barrier(exchange, EXCHANGE_TIMEOUT_MS)) < 0)
        return rc;
    return equal ? 0 : -EPROTO;
}
