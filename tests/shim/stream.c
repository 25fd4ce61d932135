/* SPDX-License-Identifier: Apache-2.0 */
/* Streams: a queue and a thread each. They are never freed, so that the use of a destroyed one is found out; threads
 * end when their stream is destroyed and empty. */
#include "tests/shim/internal.h"

#include <stdlib.h>
#include <time.h>

struct point *point_ref(struct point *p)
{
    if (p)
        p->refs++;
    return p;
}

/* Not inlined: gcc at -O2 takes the second of two in a row for a use after free. */
__attribute__((noinline)) void point_unref(struct point *p)
{
    if (p && --p->refs == 0)
        free(p);
}

/* ---- the thread --------------------------------------------------------------------------------- */

static bool is_ready(const struct stream *s)
{
    const struct op *op = s->first;

    if (!op || s->held || (shim.hold_to_host && op->to_host))
        return false;
    if (op->wait && !op->wait->done)
        return false;
    return !op->wait_stream || op->wait_stream->done >= op->wait_count;
}

static void pass_time(const struct op *op)
{
    uint64_t ns = shim.delay_ns;

    if (shim.delay_seed) {
        shim.delay_seed = shim.delay_seed * 6364136223846793005u + 1442695040888963407u;
        ns = ns ? (shim.delay_seed >> 33) % ns : 0;
    }
    if (op->bytes && shim.bytes_per_s)
        ns += (uint64_t)((double)op->bytes / (double)shim.bytes_per_s * 1e9);
    if (ns == 0 || !op->run)
        return;
    struct timespec t = {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
    pthread_mutex_unlock(&shim.lock);
    nanosleep(&t, NULL);
    pthread_mutex_lock(&shim.lock);
}

static void run_op(struct stream *s, struct op *op)
{
    pass_time(op);
    if (op->run && shim.fail_work.nth && --shim.fail_work.nth == 0)
        shim.devices[s->device].lost = shim.fail_work.code;
    if (op->run && !shim.devices[s->device].lost) {
        pthread_mutex_unlock(&shim.lock);
        op->run(op->arg);
        pthread_mutex_lock(&shim.lock);
        shim.copied += op->bytes;
    }
    if (op->record) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        op->record->ns = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
        op->record->done = true;
    }
    point_unref(op->record);
    point_unref(op->wait);
    free(op->arg);
    free(op);
    s->done++;
    pthread_cond_broadcast(&shim.changed);
}

static void *stream_thread(void *arg)
{
    struct stream *s = arg;

    pthread_mutex_lock(&shim.lock);
    while (s->alive || s->first) {
        if (!is_ready(s)) {
            pthread_cond_wait(&shim.changed, &shim.lock);
            continue;
        }
        struct op *op = s->first;
        s->first = op->next;
        if (!s->first)
            s->last = &s->first;
        run_op(s, op);
    }
    s->started = false;
    pthread_mutex_unlock(&shim.lock);
    return NULL;
}

static struct stream *stream_new(int device, bool blocking)
{
    struct stream *s = calloc(1, sizeof *s);

    if (!s)
        misuse("no memory");
    s->alive = true;
    s->held = shim.hold_new;
    s->blocking = blocking;
    s->device = device;
    s->last = &s->first;
    s->next = shim.streams;
    shim.streams = s;
    return s;
}

static struct stream *legacy_of(int device)
{
    if (!shim.devices[device].legacy)
        shim.devices[device].legacy = stream_new(device, true);
    return shim.devices[device].legacy;
}

struct stream *stream_of(void *handle)
{
    if (!handle || handle == LEGACY || handle == PER_THREAD)
        return legacy_of(current_device());
    for (struct stream *s = shim.streams; s; s = s->next)
        if (s == handle) {
            if (!s->alive)
                misuse("stream %p was destroyed", handle);
            return s;
        }
    misuse("%p is no stream", handle);
}

/* ---- putting ------------------------------------------------------------------------------------ */

static void enqueue(struct stream *s, const struct op *from)
{
    struct op *op = malloc(sizeof *op);
    pthread_t thread;

    if (!op)
        misuse("no memory");
    *op = *from;
    op->next = NULL;
    *s->last = op;
    s->last = &op->next;
    s->put++;
    if (!s->started) {
        if (pthread_create(&thread, NULL, stream_thread, s) != 0)
            misuse("no thread");
        pthread_detach(thread);
        s->started = true;
    }
    pthread_cond_broadcast(&shim.changed);
}

/* The legacy default stream and those that are not "non-blocking" wait for each other. */
static void order_with_legacy(struct stream *s)
{
    struct stream *legacy = shim.devices[s->device].legacy;

    if (s == legacy) {
        for (struct stream *o = shim.streams; o; o = o->next)
            if (o != s && o->alive && o->blocking && o->device == s->device && o->put > o->done)
                enqueue(s, &(struct op){.wait_stream = o, .wait_count = o->put});
    } else if (s->blocking && legacy && legacy->put > legacy->done) {
        enqueue(s, &(struct op){.wait_stream = legacy, .wait_count = legacy->put});
    }
}

/* A stream that is captured makes the default stream unusable, when they would have to wait for each other. */
static bool legacy_is_barred(const struct stream *s)
{
    if (s != shim.devices[s->device].legacy)
        return false;
    for (const struct stream *o = shim.streams; o; o = o->next)
        if (o->alive && o->blocking && o->device == s->device && o->capture)
            return true;
    return false;
}

int stream_put(struct stream *s, const struct op *op)
{
    if (s->capture)
        return capture_add(s->capture, op, NULL);
    if (legacy_is_barred(s)) {
        for (struct stream *o = shim.streams; o; o = o->next)
            if (o->capture && o->blocking)
                capture_invalidate(o->capture);
        return CUDA_E_CAPTURE_IMPLICIT;
    }
    order_with_legacy(s);
    enqueue(s, op);
    return 0;
}

void stream_wait_done(struct stream *s, uint64_t count)
{
    while (s->done < count)
        pthread_cond_wait(&shim.changed, &shim.lock);
}

void device_drain(int device)
{
    for (struct stream *s = shim.streams; s; s = s->next)
        if (device < 0 || s->device == device)
            stream_wait_done(s, s->put);
}

/* ---- the runtime's: streams ---------------------------------------------------------------------- */

SHIM_API int cudaStreamCreateWithPriority(void **ret, unsigned flags, int priority);
SHIM_API int cudaStreamCreateWithFlags(void **ret, unsigned flags);
SHIM_API int cudaStreamCreate(void **ret);
SHIM_API int cudaStreamDestroy(void *handle);
SHIM_API int cudaStreamSynchronize(void *handle);
SHIM_API int cudaStreamQuery(void *handle);
SHIM_API int cudaStreamWaitEvent(void *handle, void *event, unsigned flags);
SHIM_API int cudaStreamIsCapturing(void *handle, unsigned *status);
SHIM_API int cudaDeviceSynchronize(void);

static int make_stream(void **ret, unsigned flags, enum fn fn)
{
    int code = call_begin(fn, CALL_CONTEXT);

    if (!code && flags > CUDA_STREAM_NON_BLOCKING)
        code = CUDA_E_INVALID_VALUE;
    if (!code)
        *ret = stream_new(current_device(), !(flags & CUDA_STREAM_NON_BLOCKING));
    return call_end(code);
}

int cudaStreamCreateWithPriority(void **ret, unsigned flags, int priority)
{
    (void)priority;
    return make_stream(ret, flags, FN_cudaStreamCreateWithPriority);
}

int cudaStreamCreateWithFlags(void **ret, unsigned flags)
{
    return make_stream(ret, flags, FN_cudaStreamCreateWithFlags);
}

int cudaStreamCreate(void **ret)
{
    return make_stream(ret, 0, FN_cudaStreamCreate);
}

int cudaStreamDestroy(void *handle)
{
    int code = call_begin(FN_cudaStreamDestroy, CALL_CONTEXT);

    if (code)
        return call_end(code);
    stream_of(handle)->alive = false; /* its thread goes on to the end of what is in it */
    pthread_cond_broadcast(&shim.changed);
    return call_end(0);
}

int cudaStreamSynchronize(void *handle)
{
    int code = call_begin(FN_cudaStreamSynchronize, CALL_UNSAFE);

    if (code)
        return call_end(code);
    struct stream *s = stream_of(handle);
    stream_wait_done(s, s->put);
    return call_end(shim.devices[s->device].lost);
}

int cudaStreamQuery(void *handle)
{
    int code = call_begin(FN_cudaStreamQuery, CALL_UNSAFE);

    if (code)
        return call_end(code);
    const struct stream *s = stream_of(handle);
    return call_end(s->capture ? CUDA_E_CAPTURE_UNSUPPORTED : s->done == s->put ? 0 : CUDA_E_NOT_READY);
}

int cudaDeviceSynchronize(void)
{
    int code = call_begin(FN_cudaDeviceSynchronize, CALL_UNSAFE);

    if (!code)
        device_drain(current_device());
    return call_end(code ? code : shim.devices[current_device()].lost);
}

int cudaStreamWaitEvent(void *handle, void *event, unsigned flags)
{
    int code = call_begin(FN_cudaStreamWaitEvent, CALL_CONTEXT);

    if (code)
        return call_end(code);
    struct stream *s = stream_of(handle);
    struct event *e = event_of(event);
    if (s->capture && flags == CUDA_EVENT_WAIT_EXTERNAL)
        return call_end(capture_add(s->capture, &(struct op){0}, e));
    if (s->capture) { /* it would make what was not captured a part of the graph */
        capture_invalidate(s->capture);
        return call_end(E_CAPTURE_ISOLATION);
    }
    if (flags)
        return call_end(CUDA_E_INVALID_VALUE);
    if (!e->point || e->point->done)
        return call_end(0);
    return call_end(stream_put(s, &(struct op){.wait = point_ref(e->point)}));
}

int cudaStreamIsCapturing(void *handle, unsigned *status)
{
    int code = call_begin(FN_cudaStreamIsCapturing, CALL_CONTEXT);

    if (code)
        return call_end(code);
    const struct stream *s = stream_of(handle);
    if (legacy_is_barred(s))
        return call_end(CUDA_E_CAPTURE_IMPLICIT);
    *status = (unsigned)capture_status(s->capture);
    return call_end(0);
}

/* ---- the tests' ----------------------------------------------------------------------------------- */

SHIM_API void *shim_legacy(int device)
{
    pthread_mutex_lock(&shim.lock);
    struct stream *s = legacy_of(device);
    pthread_mutex_unlock(&shim.lock);
    return s;
}

static void set_held(void *stream, bool held)
{
    pthread_mutex_lock(&shim.lock);
    if (!stream)
        shim.hold_new = held;
    for (struct stream *s = shim.streams; s; s = s->next)
        if (!stream || s == stream)
            s->held = held;
    pthread_cond_broadcast(&shim.changed);
    pthread_mutex_unlock(&shim.lock);
}

SHIM_API void shim_hold_to_host(int hold)
{
    pthread_mutex_lock(&shim.lock);
    shim.hold_to_host = hold;
    pthread_cond_broadcast(&shim.changed);
    pthread_mutex_unlock(&shim.lock);
}

SHIM_API void shim_hold(void *stream)
{
    set_held(stream, true);
}

SHIM_API void shim_release(void *stream)
{
    set_held(stream, false);
}

SHIM_API void shim_delay(uint64_t ns, uint64_t seed)
{
    pthread_mutex_lock(&shim.lock);
    shim.delay_ns = ns;
    shim.delay_seed = seed;
    pthread_mutex_unlock(&shim.lock);
}

SHIM_API void shim_speed(uint64_t bytes_per_s)
{
    pthread_mutex_lock(&shim.lock);
    shim.bytes_per_s = bytes_per_s;
    pthread_mutex_unlock(&shim.lock);
}

struct work {
    void (*run)(void *arg);
    void *arg;
};

static void run_work(void *arg)
{
    struct work *w = arg;

    w->run(w->arg);
}

SHIM_API void shim_work(void *stream, void (*run)(void *arg), void *arg)
{
    struct work *w = malloc(sizeof *w);

    if (!w)
        misuse("no memory");
    *w = (struct work){.run = run, .arg = arg};
    pthread_mutex_lock(&shim.lock);
    if (stream_put(stream_of(stream), &(struct op){.run = run_work, .arg = w, .arg_bytes = sizeof *w}))
        misuse("work in a stream that takes none now");
    pthread_mutex_unlock(&shim.lock);
}

SHIM_API void shim_drain(void)
{
    pthread_mutex_lock(&shim.lock);
    device_drain(-1);
    pthread_mutex_unlock(&shim.lock);
}
