/* SPDX-License-Identifier: Apache-2.0 */
/* How long the device takes for a save: an event in each lane that is used, behind its wait for the producer's stream
 * (whose own work counts for nobody), and one behind its last work. They are asked once what is behind them has ended.
 * Nothing depends on it: what fails here makes the time unknown. */
#include "plugins/device-cuda/device.h"

static void record(struct cairn_device_copy *copy, cuda_event *event, unsigned lane)
{
    struct cairn_device *d = copy->variant->plan->device;

    if (copy->times.failed || !d->cuda.elapsed)
        return;
    if (events_take(d, &d->timers, event, NULL) < 0) {
        *event = NULL;
        copy->times.failed = true;
    } else if (d->cuda.event_record(*event, d->lanes[lane].stream) != CUDA_OK) {
        copy->times.failed = true;
    }
}

void times_begin(struct cairn_device_copy *copy, unsigned lane)
{
    record(copy, &copy->times.begin[lane], lane);
}

void times_end(struct cairn_device_copy *copy, unsigned lane)
{
    record(copy, &copy->times.end[lane], lane);
}

/* From the earliest to the latest: the longest of all times from a begin to an end. */
void times_read(struct cairn_device_copy *copy)
{
    struct times *t = &copy->times;
    const struct cuda *c = &copy->variant->plan->device->cuda;
    float longest = 0, ms;

    for (int i = 0; i < LANES && !t->failed; i++)
        for (int k = 0; k < LANES; k++) {
            if (!t->begin[i] || !t->end[k]) /* a save of one batch has one lane */
                continue;
            if (c->elapsed(&ms, t->begin[i], t->end[k]) != CUDA_OK)
                return;
            longest = ms > longest ? ms : longest;
        }
    t->ns = t->failed ? 0 : (uint64_t)((double)longest * 1e6);
}

void times_free(struct cairn_device_copy *copy)
{
    struct times *t = &copy->times;
    struct cairn_device *d = copy->variant->plan->device;

    for (int i = 0; i < LANES; i++) {
        if (t->begin[i])
            events_give(d, &d->timers, t->begin[i]);
        if (t->end[i])
            events_give(d, &d->timers, t->end[i]);
    }
}
