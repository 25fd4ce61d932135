/* SPDX-License-Identifier: Apache-2.0 */
/* Events: the point in a stream that was recorded last. They are never freed, so that the use of a destroyed one is
 * found out. */
#include "tests/shim/internal.h"

#include <stdlib.h>

SHIM_API int cudaEventCreateWithFlags(void **ret, unsigned flags);
SHIM_API int cudaEventCreate(void **ret);
SHIM_API int cudaEventDestroy(void *handle);
SHIM_API int cudaEventRecord(void *handle, void *stream);
SHIM_API int cudaEventQuery(void *handle);
SHIM_API int cudaEventSynchronize(void *handle);
SHIM_API int cudaEventElapsedTime(float *ret_ms, void *start, void *end);

static struct point *point_new(void)
{
    struct point *p = calloc(1, sizeof *p);

    if (!p)
        misuse("no memory");
    p->refs = 1;
    return p;
}

struct event *event_of(void *handle)
{
    for (struct event *e = shim.events; e; e = e->next)
        if (e == handle) {
            if (!e->alive)
                misuse("event %p was destroyed", handle);
            return e;
        }
    misuse("%p is no event", handle);
}

static int make_event(void **ret, bool timed, enum fn fn)
{
    int code = call_begin(fn, CALL_CONTEXT);
    struct event *e = code ? NULL : calloc(1, sizeof *e);

    if (!e)
        return call_end(code ? code : CUDA_E_MEMORY_ALLOCATION);
    e->alive = true;
    e->timed = timed;
    e->device = current_device();
    e->next = shim.events;
    shim.events = e;
    *ret = e;
    return call_end(0);
}

int cudaEventCreateWithFlags(void **ret, unsigned flags)
{
    return make_event(ret, !(flags & CUDA_EVENT_DISABLE_TIMING), FN_cudaEventCreateWithFlags);
}

int cudaEventCreate(void **ret)
{
    return make_event(ret, true, FN_cudaEventCreate);
}

int cudaEventDestroy(void *handle)
{
    int code = call_begin(FN_cudaEventDestroy, CALL_CONTEXT);

    if (code)
        return call_end(code);
    struct event *e = event_of(handle);
    e->alive = false;
    point_unref(e->point);
    e->point = NULL;
    return call_end(0);
}

int cudaEventRecord(void *handle, void *stream)
{
    int code = call_begin(FN_cudaEventRecord, CALL_CONTEXT);

    if (code)
        return call_end(code);
    struct event *e = event_of(handle);
    struct stream *s = stream_of(stream);
    if (e->device != s->device)
        return call_end(CUDA_E_INVALID_HANDLE);
    if (s->capture) { /* forks of a capture are more than this double can do */
        capture_invalidate(s->capture);
        return call_end(CUDA_E_CAPTURE_UNSUPPORTED);
    }
    struct point *p = point_new();
    code = stream_put(s, &(struct op){.record = point_ref(p)});
    if (code) {
        point_unref(p);
        point_unref(p);
        return call_end(code);
    }
    point_unref(e->point);
    e->point = p;
    return call_end(0);
}

int cudaEventQuery(void *handle)
{
    int code = call_begin(FN_cudaEventQuery, CALL_UNSAFE);

    if (code)
        return call_end(code);
    const struct event *e = event_of(handle);
    return call_end(!e->point || e->point->done ? 0 : CUDA_E_NOT_READY);
}

int cudaEventSynchronize(void *handle)
{
    int code = call_begin(FN_cudaEventSynchronize, CALL_UNSAFE);

    if (code)
        return call_end(code);
    const struct event *e = event_of(handle);
    struct point *p = point_ref(e->point);
    while (p && !p->done)
        pthread_cond_wait(&shim.changed, &shim.lock);
    point_unref(p);
    return call_end(shim.devices[e->device].lost);
}

int cudaEventElapsedTime(float *ret_ms, void *start, void *end)
{
    int code = call_begin(FN_cudaEventElapsedTime, CALL_UNSAFE);

    if (code)
        return call_end(code);
    const struct event *a = event_of(start), *b = event_of(end);
    if (!a->point || !b->point || !a->timed || !b->timed || a->device != b->device)
        return call_end(CUDA_E_INVALID_HANDLE);
    if (!a->point->done || !b->point->done)
        return call_end(CUDA_E_NOT_READY);
    *ret_ms = (float)((double)(int64_t)(b->point->ns - a->point->ns) / 1e6);
    return call_end(0);
}
