/* SPDX-License-Identifier: Apache-2.0 */
/* Timers in a binary heap that begins at index 1, so that heap_index 0 means "not set". */
#include "daemon/io/loop_internal.h"

#include <stdlib.h>

static void put(struct loop_heap *h, size_t at, struct loop_timer *timer)
{
    h->slots[at] = timer;
    timer->heap_index = at;
}

static void sift_up(struct loop_heap *h, size_t at)
{
    struct loop_timer *timer = h->slots[at];

    for (; at > 1 && timer->at_ns < h->slots[at / 2]->at_ns; at /= 2)
        put(h, at, h->slots[at / 2]);
    put(h, at, timer);
}

static void sift_down(struct loop_heap *h, size_t at)
{
    struct loop_timer *timer = h->slots[at];

    for (size_t child = 2 * at; child <= h->count; child = 2 * at) {
        if (child < h->count && h->slots[child + 1]->at_ns < h->slots[child]->at_ns)
            child++;
        if (timer->at_ns <= h->slots[child]->at_ns)
            break;
        put(h, at, h->slots[child]);
        at = child;
    }
    put(h, at, timer);
}

static void grow(struct loop_heap *h)
{
    size_t room = h->room ? 2 * h->room : 64;
    struct loop_timer **slots = realloc(h->slots, (room + 1) * sizeof(struct loop_timer *));

    /* A deadline that is silently not kept would be worse than a daemon that starts again. */
    if (!slots)
        abort();
    h->slots = slots;
    h->room = room;
}

void loop_timer_set(struct loop *loop, struct loop_timer *timer, uint64_t at_ns)
{
    struct loop_heap *h = &loop->timers;

    loop_assert_here(loop);
    loop_timer_cancel(loop, timer);
    if (h->count == h->room)
        grow(h);
    timer->at_ns = at_ns;
    put(h, ++h->count, timer);
    sift_up(h, h->count);
}

void loop_timer_after(struct loop *loop, struct loop_timer *timer, uint64_t delay_ms)
{
    uint64_t most_ms = (UINT64_MAX - loop->now_ns) / 1000000;

    loop_timer_set(loop, timer, loop->now_ns + (delay_ms < most_ms ? delay_ms : most_ms) * 1000000);
}

void loop_timer_cancel(struct loop *loop, struct loop_timer *timer)
{
    struct loop_heap *h = &loop->timers;
    size_t at = timer->heap_index;

    loop_assert_here(loop);
    if (!at)
        return;
    struct loop_timer *last = h->slots[h->count--];
    timer->heap_index = 0;
    if (last == timer)
        return;
    put(h, at, last);
    sift_up(h, at);
    sift_down(h, last->heap_index);
}

bool loop_timers_fire(struct loop *loop)
{
    struct loop_heap *h = &loop->timers;
    bool fired = false;

    /* Bounded: a timer that sets itself to a time in the past must not keep the turn from ending. */
    for (size_t left = h->count; left && h->count && h->slots[1]->at_ns <= loop->now_ns; left--) {
        struct loop_timer *timer = h->slots[1];

        loop_timer_cancel(loop, timer);
        timer->fire(timer);
        fired = true;
    }
    return fired;
}

uint64_t loop_timers_next_ns(const struct loop *loop)
{
    return loop->timers.count ? loop->timers.slots[1]->at_ns : UINT64_MAX;
}
