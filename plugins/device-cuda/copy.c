/* SPDX-License-Identifier: Apache-2.0 */
/* How far a save's copies are. */
#include "plugins/device-cuda/device.h"

#include "core/base/error.h"

#include <stdlib.h>

#define QUERY_FAILURES 100 /* in a row: the runtime will never say that it has ended */

void copy_free(struct cairn_device_copy *copy)
{
    if (!copy)
        return;
    struct variant *v = copy->variant;
    struct cairn_device *d = v->plan->device;
    struct scope s = {0};

    (void)scope_enter(&s, d, NULL);
    pthread_mutex_lock(&d->lock);
    for (uint32_t i = 0; i < copy->ntaken; i++)
        events_give(d, &d->events, copy->events[i]);
    times_free(copy);
    if (copy->aside && !copy->ended)
        table_spoil(v, copy->table);
    else
        table_give(v, copy->table);
    pthread_mutex_unlock(&d->lock);
    scope_leave(&s);
    copies_free(&copy->copies);
    free(copy->events);
    free(copy);
}

static void failed(struct cairn_device_copy *copy, cuda_error e, const char *what)
{
    struct cairn_error said = CAIRN_ERROR_INIT;

    device_fail(copy->variant->plan->device, &said, e, what);
    if (!copy->failed)
        copy->why = said;
    copy->failed = true;
    if (cuda_is_final(e) || ++copy->failures >= QUERY_FAILURES)
        copy->ended = true; /* a lost context writes nothing any more */
}

static void count_skipped(struct cairn_device_copy *copy)
{
    const struct variant *v = copy->variant;
    const struct table_places at = table_places(v);

    for (uint32_t i = 0; i < v->plan->nparts && copy->skip; i++)
        if (copy->table->host[at.ret_skipped + i])
            copy->skipped_bytes += v->plan->part_len[i];
    copy->copied_bytes -= copy->skipped_bytes < copy->copied_bytes ? copy->skipped_bytes : copy->copied_bytes;
}

/* That cross the bus. */
static uint64_t batch_bytes(const struct cairn_device_copy *copy, const struct batch *b)
{
    const struct variant *v = copy->variant;
    uint64_t bytes = b->bytes;

    if (!copy->pack)
        return bytes;
    const uint32_t *packed = (const void *)(copy->table->host + table_places(v).ret_packed);
    bytes -= b->pack_bytes;
    for (uint32_t i = b->pack; i < b->pack + b->npacks; i++)
        bytes += packed[v->packs[i].index] ? packed[v->packs[i].index] : v->packs[i].len;
    return bytes;
}

static void ask_batches(struct cairn_device_copy *copy)
{
    const struct variant *v = copy->variant;
    const struct cuda *c = &v->plan->device->cuda;

    while (copy->ndone < copy->nput) {
        cuda_error e = c->event_query(copy->events[copy->ndone]);
        if (e == CUDA_E_NOT_READY)
            return;
        if (e) {
            failed(copy, e, "ask for a copy");
            return;
        }
        copy->copied_bytes += batch_bytes(copy, &v->batches[copy->ndone++]);
        copy->failures = 0;
    }
    copy->ended = true;
    times_read(copy);
    count_skipped(copy);
}

/* Some of a failed save's copies have no event behind them: the streams themselves tell. */
static void ask_lanes(struct cairn_device_copy *copy)
{
    const struct cairn_device *d = copy->variant->plan->device;

    for (int i = 0; i < LANES; i++) {
        cuda_error e = d->cuda.stream_query(d->lanes[i].stream);
        if (e == CUDA_E_NOT_READY)
            return;
        if (e) {
            failed(copy, e, "ask for a copy");
            return;
        }
    }
    copy->ended = true;
}

static void ask(struct cairn_device_copy *copy)
{
    struct cairn_device *d = copy->variant->plan->device;
    struct scope s = {0};
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (device_usable(d, &err) < 0) {
        if (!copy->failed)
            copy->why = err;
        copy->failed = copy->ended = true;
        return;
    }
    if (scope_enter(&s, d, &err) < 0)
        return; /* nothing is known; the next call may say more */
    if (!copy->failed)
        ask_batches(copy);
    if (copy->failed && !copy->ended)
        ask_lanes(copy);
    scope_leave(&s);
}

/* What an older caller's structure does not have is not written. */
static void tell_newer(const struct cairn_device_copy *copy, struct cairn_device_progress *ret_progress)
{
    if (ret_progress->size < offsetof(struct cairn_device_progress, device_ns) + sizeof ret_progress->device_ns)
        return;
    ret_progress->packed =
        copy->pack ? (const void *)(copy->table->host + table_places(copy->variant).ret_packed) : NULL;
    ret_progress->device_ns = copy->times.ns;
}

int copy_progress(struct cairn_device_copy *copy, struct cairn_device_progress *ret_progress, struct cairn_error *err)
{
    const struct variant *v = copy->variant;
    const struct table_places at = table_places(v);

    if (!copy->ended)
        ask(copy);
    ret_progress->ended = copy->ended;
    ret_progress->parts = copy->ndone ? v->batches[copy->ndone - 1].done : 0;
    bool whole = copy->ended && !copy->failed;
    ret_progress->sums = whole && copy->sums ? (const void *)(copy->table->host + at.ret_sums) : NULL;
    ret_progress->skipped = whole && copy->skip ? (const void *)(copy->table->host + at.ret_skipped) : NULL;
    ret_progress->copied_bytes = copy->copied_bytes;
    ret_progress->skipped_bytes = copy->skipped_bytes;
    ret_progress->staged_bytes = v->staged_bytes;
    tell_newer(copy, ret_progress);
    if (!copy->failed)
        return 0;
    cairn_error_copy(err, &copy->why);
    return copy->why.code;
}
