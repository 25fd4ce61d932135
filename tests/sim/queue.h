/* SPDX-License-Identifier: Apache-2.0 */
/* The queue of events: a heap by (time, number) over a pool. Two events of one moment come in the order they were made.
 */
#ifndef CAIRN_TESTS_SIM_QUEUE_H
#define CAIRN_TESTS_SIM_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

struct event;
struct msg;

#define QUEUE_EVENTS 4096
struct queue_entry {
    uint64_t at;
    uint32_t number;
    uint32_t index; /* in the pool */
};
struct queue {
    struct msg *pool; /* QUEUE_EVENTS, the caller's */
    struct queue_entry heap[QUEUE_EVENTS];
    uint16_t free[QUEUE_EVENTS];
    unsigned n, nfree;
    uint32_t number, taken; /* of the next event; of the last one taken */
    uint32_t top;           /* pool slots ever used in this schedule */
};
void queue_reset(struct queue *q);
/* False when it is full. */
bool queue_put(struct queue *q, uint64_t at, const struct msg *m);
/* The first event's pool index, or -1; it stays valid until queue_release. */
int queue_take(struct queue *q, uint64_t *ret_at);
/* Instead of releasing it: it comes again at a later time, in its old order among the others of that time. */
void queue_put_back(struct queue *q, uint64_t at, int index);
void queue_release(struct queue *q, int index);

#endif
