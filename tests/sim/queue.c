/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/sim/queue.h"

#include "tests/sim/sim.h"

void queue_reset(struct queue *q)
{
    q->n = q->nfree = 0;
    q->number = q->top = 0;
}

static bool before(const struct queue_entry *a, const struct queue_entry *b)
{
    return a->at != b->at ? a->at < b->at : a->number < b->number;
}

static void queue_insert(struct queue *q, struct queue_entry e)
{
    unsigned i = q->n++;

    while (i > 0 && before(&e, &q->heap[(i - 1) / 2])) {
        q->heap[i] = q->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    q->heap[i] = e;
}

bool queue_put(struct queue *q, uint64_t at, const struct msg *m)
{
    struct queue_entry e = {.at = at, .number = q->number++};

    if (q->n + 1 == QUEUE_EVENTS) /* one stays free for what is put back */
        return false;
    e.index = q->nfree > 0 ? q->free[--q->nfree] : q->top++;
    q->pool[e.index] = *m;
    queue_insert(q, e);
    return true;
}

void queue_put_back(struct queue *q, uint64_t at, int index)
{
    queue_insert(q, (struct queue_entry){.at = at, .number = q->taken, .index = (uint32_t)index});
}

int queue_take(struct queue *q, uint64_t *ret_at)
{
    if (q->n == 0)
        return -1;
    struct queue_entry first = q->heap[0], last = q->heap[--q->n];
    unsigned i = 0;

    for (;;) {
        unsigned child = 2 * i + 1;
        if (child >= q->n)
            break;
        if (child + 1 < q->n && before(&q->heap[child + 1], &q->heap[child]))
            child++;
        if (!before(&q->heap[child], &last))
            break;
        q->heap[i] = q->heap[child];
        i = child;
    }
    q->heap[i] = last;
    *ret_at = first.at;
    q->taken = first.number;
    return (int)first.index;
}

void queue_release(struct queue *q, int index)
{
    q->free[q->nfree++] = (uint16_t)index;
}
