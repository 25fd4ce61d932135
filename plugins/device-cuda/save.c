/* SPDX-License-Identifier: Apache-2.0 */
/* A save: everything is put into streams and nothing is waited for.
 *
 *   producer's stream:  ... wait aside_read ─ volatile slices aside ─ [ready] ...          the loop goes on at once
 *   lane 0:             wait ready ─ aside to pages ─ [aside_read][0] ─ batch 2 ─ [2] ... ─ [tail]
 *   lane 1:             wait ready ─ batch 1 ─ [1] ─ batch 3 ─ [3] ...                    ─ [tail]
 *   fence:              the caller's stream waits for both tails
 *
 * What fails before a copy is in a lane is the save's error; what fails later, progress tells, once what is in the
 * lanes has ended: until then it still writes to the pages. */
#include "plugins/device-cuda/device.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <string.h>

#define QUERY_FAILURES 100 /* in a row: the runtime will never say that it has ended */

struct cairn_device_copy {
    struct cairn_device_plan *plan;
    cuda_event *events; /* of each batch */
    uint32_t ntaken;    /* events that were taken */
    uint32_t nput;      /* batches that are in streams, with their events */
    uint32_t ndone;
    unsigned failures; /* of asking, in a row */
    uint64_t calls;    /* of the copy engine */
    uint64_t copied_bytes;
    bool failed, ended;
    struct cairn_error why;
};

void copy_free(struct cairn_device_copy *copy)
{
    if (!copy)
        return;
    struct cairn_device *d = copy->plan->device;
    struct scope s = {0};
    bool entered = scope_enter(&s, d, NULL) == 0;
    pthread_mutex_lock(&d->lock);
    for (uint32_t i = 0; i < copy->ntaken && entered; i++)
        events_give(d, copy->events[i]);
    pthread_mutex_unlock(&d->lock);
    scope_leave(&s);
    free(copy->events);
    free(copy);
}
CAIRN_DEFINE_CLEANUP(struct cairn_device_copy *, copy_free, free_copy)

static int copy_make(struct cairn_device_plan *plan, struct cairn_device_copy **ret_copy, struct cairn_error *err)
{
    struct cairn_device_copy *copy = calloc(1, sizeof *copy);

    if (copy)
        copy->events = calloc(plan->nbatches ? plan->nbatches : 1, sizeof(cuda_event));
    if (!copy || !copy->events) {
        free(copy);
        return cairn_fail(err, CAIRN_E_NOMEM, "save: no memory");
    }
    copy->plan = plan;
    copy->why = (struct cairn_error)CAIRN_ERROR_INIT;
    *ret_copy = copy;
    return 0;
}

/* ---- putting it into streams; the device's lock is held ---------------------------------------- */

static int take_events(struct cairn_device_copy *copy, struct cairn_error *err)
{
    for (uint32_t i = 0; i < copy->plan->nbatches; i++) {
        int r = events_take(copy->plan->device, &copy->events[i], err);
        if (r < 0)
            return r;
        copy->ntaken++;
    }
    return 0;
}

/* A capture would record these calls instead of making them; asking does not disturb one. */
static int check_stream(struct cairn_device *d, cuda_stream stream, struct cairn_error *err)
{
    cuda_capture_status status = CUDA_CAPTURE_NONE;
    cuda_error e = d->cuda.stream_capturing(stream, &status);

    if (e)
        return device_fail(d, err, e, "look at the save's stream");
    if (status != CUDA_CAPTURE_NONE)
        return cairn_fail(err, CAIRN_E_INVAL,
                          "the save's stream is being captured into a graph: save before or after it");
    return 0;
}

static void zero_gaps(const struct cairn_device_plan *plan, void *const *page)
{
    for (uint32_t i = 0; i < plan->ngaps; i++)
        memset((char *)page[plan->gaps[i].at / PART] + plan->gaps[i].at % PART, 0, plan->gaps[i].bytes);
}

static int take_staging(struct cairn_device_plan *plan, struct cairn_error *err)
{
    struct cairn_device *d = plan->device;
    void *memory;

    if (plan->aside_bytes > d->staging_bytes)
        return cairn_fail(err, CAIRN_E_TOO_LARGE,
                          "volatile tensors of CUDA device %d: %llu bytes, and device_staging_bytes "
                          "is %llu; raise it, or flag fewer tensors as volatile",
                          d->ordinal, (unsigned long long)plan->aside_bytes, (unsigned long long)d->staging_bytes);
    if (plan->aside_bytes <= d->aside_bytes)
        return 0;
    if (d->aside)
        (void)d->cuda.free(d->aside); /* waits for the copies out of it */
    d->aside = NULL;
    d->aside_bytes = 0;
    cuda_error e = d->cuda.malloc(&memory, plan->aside_bytes);
    if (e)
        return device_fail(d, err, e, "take device memory for volatile tensors");
    d->aside = memory;
    d->aside_bytes = plan->aside_bytes;
    return 0;
}

/* In the producer's own order: what it does next may change them. */
static int put_aside(struct cairn_device_copy *copy, const struct cairn_device_save *save, struct cairn_error *err)
{
    struct cairn_device_plan *plan = copy->plan;
    struct cairn_device *d = plan->device;
    int r = take_staging(plan, err);

    if (r < 0)
        return r;
    cuda_error e = d->cuda.stream_wait(save->stream, d->aside_read, 0);
    if (e)
        return device_fail(d, err, e, "wait for the staging memory");
    for (uint32_t i = 0; i < plan->nslices && r == 0; i++) {
        const struct slice *s = &plan->slices[i];
        struct emit to = {.device = d, .stream = save->stream, .kind = CUDA_DEVICE_TO_DEVICE, .at = s->at};
        to.to = (struct target){.flat = (char *)d->aside + s->aside_at, .flat_at = s->at};
        if (s->is_volatile)
            r = emit_range(&to, &s->shape, save->data[i], 0, s->shape.bytes, err);
    }
    if (r < 0) /* some of them may be on their way: the next save's come behind them */
        (void)d->cuda.event_record(d->aside_read, save->stream);
    return r;
}

static int start_lanes(struct cairn_device *d, cuda_stream producer, struct cairn_error *err)
{
    cuda_error e = d->cuda.event_record(d->ready, producer);

    for (int i = 0; i < LANES && !e; i++)
        e = d->cuda.stream_wait(d->lanes[i].stream, d->ready, 0);
    return e ? device_fail(d, err, e, "wait for the save's stream") : 0;
}

static int put_piece(struct cairn_device_copy *copy, const struct cairn_device_save *save, const struct piece *p,
                     cuda_stream stream, struct cairn_error *err)
{
    struct cairn_device *d = copy->plan->device;
    const struct slice *s = &copy->plan->slices[p->slice];
    struct emit e = {.device = d, .stream = stream, .kind = CUDA_DEVICE_TO_HOST, .at = s->at, .to.page = save->page};
    struct shape dense = {.bytes = s->shape.bytes, .width = s->shape.bytes};
    int r = s->is_volatile ? emit_range(&e, &dense, (char *)d->aside + s->aside_at, p->from, p->bytes, err)
                           : emit_range(&e, &s->shape, save->data[p->slice], p->from, p->bytes, err);

    copy->calls += e.calls;
    return r;
}

static int put_batch(struct cairn_device_copy *copy, const struct cairn_device_save *save, uint32_t k,
                     struct cairn_error *err)
{
    struct cairn_device_plan *plan = copy->plan;
    struct cairn_device *d = plan->device;
    struct lane *lane = &d->lanes[k % LANES];
    const struct batch *b = &plan->batches[k];
    cuda_error e = CUDA_OK;

    for (uint32_t i = b->first; i < b->first + b->npieces; i++) {
        int r = put_piece(copy, save, &plan->pieces[i], lane->stream, err);
        if (r < 0)
            return r;
    }
    if (k == 0 && plan->nvolatile > 0)
        e = d->cuda.event_record(d->aside_read, lane->stream);
    if (!e)
        e = d->cuda.event_record(copy->events[k], lane->stream);
    if (e)
        return device_fail(d, err, e, "record an event");
    copy->nput++;
    return 0;
}

static int put_copies(struct cairn_device_copy *copy, const struct cairn_device_save *save, struct cairn_error *err)
{
    struct cairn_device *d = copy->plan->device;
    int r = 0;

    for (uint32_t k = 0; k < copy->plan->nbatches && r == 0; k++)
        r = put_batch(copy, save, k, err);
    for (int i = 0; i < LANES; i++) {
        cuda_error e = d->cuda.event_record(d->lanes[i].tail, d->lanes[i].stream);
        if (e && r == 0)
            r = device_fail(d, err, e, "record an event");
    }
    return r;
}

static int put_save(struct cairn_device_copy *copy, const struct cairn_device_save *save, struct cairn_error *err)
{
    struct cairn_device_plan *plan = copy->plan;
    int r = check_stream(plan->device, save->stream, err);

    if (r == 0)
        r = take_events(copy, err);
    if (r == 0 && plan->nvolatile > 0)
        r = put_aside(copy, save, err);
    if (r == 0)
        r = start_lanes(plan->device, save->stream, err);
    if (r < 0)
        return r;
    zero_gaps(plan, save->page);
    r = put_copies(copy, save, &copy->why);
    if (r < 0 && copy->calls == 0) {
        cairn_error_copy(err, &copy->why);
        return r;
    }
    copy->failed = r < 0;
    return 0;
}

int device_save(struct cairn_device_plan *plan, const struct cairn_device_save *save,
                struct cairn_device_copy **ret_copy, struct cairn_error *err)
{
    CAIRN_CLEANUP(free_copy) struct cairn_device_copy *copy = NULL;
    struct cairn_device *d = plan->device;
    struct scope s = {0};
    int r = device_usable(d, err);

    if (r == 0)
        r = copy_make(plan, &copy, err);
    if (r == 0)
        r = scope_enter(&s, d, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&d->lock);
    r = put_save(copy, save, err);
    pthread_mutex_unlock(&d->lock);
    scope_leave(&s);
    if (r < 0)
        return cairn_wrap(err, r, "save");
    *ret_copy = TAKE_PTR(copy);
    return 0;
}

/* A tail that was never recorded holds nobody back. In a captured stream each launch waits for what is recorded then.
 */
int device_fence(struct cairn_device *d, void *stream, struct cairn_error *err)
{
    cuda_capture_status status = CUDA_CAPTURE_NONE;
    _cleanup_scope_ struct scope s = {0};
    int r = device_usable(d, err);

    if (r == 0)
        r = scope_enter(&s, d, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&d->lock);
    cuda_error e = d->cuda.stream_capturing(stream, &status);
    unsigned flags = status == CUDA_CAPTURE_NONE ? 0 : CUDA_EVENT_WAIT_EXTERNAL;
    for (int i = 0; i < LANES && !e; i++)
        e = d->cuda.stream_wait(stream, d->lanes[i].tail, flags);
    pthread_mutex_unlock(&d->lock);
    return e ? device_fail(d, err, e, "make a stream wait for a save") : 0;
}

/* ---- how far it is ----------------------------------------------------------------------------- */

static void failed(struct cairn_device_copy *copy, cuda_error e, const char *what)
{
    struct cairn_error said = CAIRN_ERROR_INIT;

    device_fail(copy->plan->device, &said, e, what);
    if (!copy->failed)
        copy->why = said;
    copy->failed = true;
    if (cuda_is_final(e) || ++copy->failures >= QUERY_FAILURES)
        copy->ended = true; /* a lost context writes nothing any more */
}

static void ask_batches(struct cairn_device_copy *copy)
{
    const struct cuda *c = &copy->plan->device->cuda;

    while (copy->ndone < copy->nput) {
        cuda_error e = c->event_query(copy->events[copy->ndone]);
        if (e == CUDA_E_NOT_READY)
            return;
        if (e) {
            failed(copy, e, "ask for a copy");
            return;
        }
        copy->copied_bytes += copy->plan->batches[copy->ndone++].bytes;
        copy->failures = 0;
    }
    copy->ended = copy->ended || !copy->failed;
}

/* Some of a failed save's copies have no event behind them: the streams themselves tell. */
static void ask_lanes(struct cairn_device_copy *copy)
{
    const struct cairn_device *d = copy->plan->device;

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
    struct cairn_device *d = copy->plan->device;
    struct scope s = {0};
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (device_usable(d, &err) < 0 || scope_enter(&s, d, &err) < 0) {
        if (!copy->failed)
            copy->why = err;
        copy->failed = copy->ended = true;
        return;
    }
    if (!copy->failed)
        ask_batches(copy);
    if (copy->failed && !copy->ended)
        ask_lanes(copy);
    scope_leave(&s);
}

int copy_progress(struct cairn_device_copy *copy, struct cairn_device_progress *ret_progress, struct cairn_error *err)
{
    const struct cairn_device_plan *plan = copy->plan;

    if (!copy->ended)
        ask(copy);
    ret_progress->ended = copy->ended;
    ret_progress->parts = copy->ndone ? plan->batches[copy->ndone - 1].parts : 0;
    ret_progress->sums = NULL;
    ret_progress->skipped = NULL;
    ret_progress->copied_bytes = copy->copied_bytes;
    ret_progress->skipped_bytes = 0;
    ret_progress->staged_bytes = 0;
    for (uint32_t i = 0; i < plan->nslices && plan->nvolatile; i++)
        ret_progress->staged_bytes += plan->slices[i].is_volatile ? plan->slices[i].shape.bytes : 0;
    if (!copy->failed)
        return 0;
    cairn_error_copy(err, &copy->why);
    return copy->why.code;
}
