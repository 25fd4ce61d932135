/* SPDX-License-Identifier: Apache-2.0 */
/* Copies. Host memory that is not pinned is taken at once, or waited for, as the real runtime does. */
#include "tests/shim/internal.h"

#include <stdlib.h>
#include <string.h>

struct copy {
    char *to;
    const char *from;
    size_t to_pitch, from_pitch, width, height;
    bool keep; /* from is a copy of unpinned memory that lies behind the struct */
};

static size_t extent(size_t pitch, size_t width, size_t height)
{
    return height ? (height - 1) * pitch + width : 0;
}

/* What was put into the stream is still what it was when its turn comes? */
static void check_again(const struct copy *c)
{
    pthread_mutex_lock(&shim.lock);
    enum side to = range_side(c->to, extent(c->to_pitch, c->width, c->height));
    enum side from = c->keep ? SIDE_PINNED : range_side(c->from, extent(c->from_pitch, c->width, c->height));
    if (to == SIDE_BAD || from == SIDE_BAD || (to == SIDE_UNPINNED && from == SIDE_UNPINNED))
        misuse("memory of a copy from %p to %p was freed or unregistered before its turn", (const void *)c->from,
               (void *)c->to);
    pthread_mutex_unlock(&shim.lock);
}

static void run_copy(void *arg)
{
    const struct copy *c = arg;
    const char *from = c->keep ? (const char *)(c + 1) : c->from;

    check_again(c);
    for (size_t i = 0; i < c->height; i++)
        memmove(c->to + i * c->to_pitch, from + i * c->from_pitch, c->width);
}

/* Do the two sides fit what the caller says they are? */
static int check_kind(enum side to, enum side from, unsigned kind)
{
    bool to_host = to == SIDE_PINNED || to == SIDE_UNPINNED, from_host = from == SIDE_PINNED || from == SIDE_UNPINNED;

    if (to == SIDE_BAD || from == SIDE_BAD)
        return CUDA_E_INVALID_VALUE;
    if (kind > 4)
        return 21; /* cudaErrorInvalidMemcpyDirection */
    if (kind == 4)
        return 0;
    bool fits = to_host == (kind == 0 || kind == CUDA_DEVICE_TO_HOST) &&
                from_host == (kind == 0 || kind == CUDA_HOST_TO_DEVICE);
    return fits ? 0 : CUDA_E_INVALID_VALUE;
}

static int put_copy(struct stream *s, struct copy c, unsigned kind)
{
    size_t from_bytes = extent(c.from_pitch, c.width, c.height);
    enum side to = range_side(c.to, extent(c.to_pitch, c.width, c.height)), from = range_side(c.from, from_bytes);
    int code = check_kind(to, from, kind);

    if (code || c.width == 0 || c.height == 0)
        return code;
    c.keep = from == SIDE_UNPINNED && !s->capture;
    size_t bytes = sizeof c + (c.keep ? from_bytes : 0);
    struct copy *own = malloc(bytes);
    if (!own)
        misuse("no memory");
    *own = c;
    if (c.keep)
        memcpy(own + 1, c.from, from_bytes);
    struct op op = {.run = run_copy, .arg = own, .arg_bytes = bytes, .bytes = c.width * c.height};
    op.to_host = to == SIDE_PINNED || to == SIDE_UNPINNED;
    code = stream_put(s, &op);
    if (code) {
        free(own);
        return code;
    }
    shim.unpinned += to == SIDE_UNPINNED || from == SIDE_UNPINNED;
    if (to == SIDE_UNPINNED && !s->capture)
        stream_wait_done(s, s->put);
    return 0;
}

SHIM_API int cudaMemcpyAsync(void *to, const void *from, size_t bytes, unsigned kind, void *stream);
SHIM_API int cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                               size_t height, unsigned kind, void *stream);
SHIM_API int cudaMemcpyBatchAsync(void *const *to, const void *const *from, const size_t *bytes, size_t n,
                                  cuda_copy_attributes *how, size_t *first, size_t nhow, void *stream);
SHIM_API int cudaMemcpy(void *to, const void *from, size_t bytes, unsigned kind);
SHIM_API int cudaMemsetAsync(void *to, int value, size_t bytes, void *stream);

int cudaMemcpyAsync(void *to, const void *from, size_t bytes, unsigned kind, void *stream)
{
    int code = call_begin(FN_cudaMemcpyAsync, CALL_CONTEXT);
    struct copy c = {.to = to, .from = from, .to_pitch = bytes, .from_pitch = bytes, .width = bytes, .height = 1};

    return call_end(code ? code : put_copy(stream_of(stream), c, kind));
}

int cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                      unsigned kind, void *stream)
{
    int code = call_begin(FN_cudaMemcpy2DAsync, CALL_CONTEXT);
    struct copy c = {
        .to = to, .from = from, .to_pitch = to_pitch, .from_pitch = from_pitch, .width = width, .height = height};

    if (!code && (to_pitch < width || from_pitch < width || to_pitch > 1 << 20 || from_pitch > 1 << 20))
        code = 12; /* cudaErrorInvalidPitchValue */
    return call_end(code ? code : put_copy(stream_of(stream), c, kind));
}

/* The last first: nobody may count on an order. */
int cudaMemcpyBatchAsync(void *const *to, const void *const *from, const size_t *bytes, size_t n,
                         cuda_copy_attributes *how, size_t *first, size_t nhow, void *stream)
{
    int code = call_begin(FN_cudaMemcpyBatchAsync, CALL_CONTEXT);

    if (!code && (n == 0 || nhow != 1 || first[0] != 0 || how->source_order != CUDA_ORDER_STREAM || !stream))
        code = CUDA_E_INVALID_VALUE;
    for (size_t i = n; i > 0 && !code; i--) {
        size_t len = bytes[i - 1];
        struct copy c = {
            .to = to[i - 1], .from = from[i - 1], .to_pitch = len, .from_pitch = len, .width = len, .height = 1};
        code = put_copy(stream_of(stream), c, 4);
    }
    return call_end(code);
}

int cudaMemcpy(void *to, const void *from, size_t bytes, unsigned kind)
{
    int code = call_begin(FN_cudaMemcpy, CALL_UNSAFE);
    struct copy c = {.to = to, .from = from, .to_pitch = bytes, .from_pitch = bytes, .width = bytes, .height = 1};

    if (code)
        return call_end(code);
    struct stream *s = stream_of(NULL);
    code = put_copy(s, c, kind);
    if (!code)
        stream_wait_done(s, s->put);
    return call_end(code);
}

struct fill {
    void *to;
    int value;
    size_t bytes;
};

static void run_fill(void *arg)
{
    const struct fill *f = arg;

    memset(f->to, f->value, f->bytes);
}

int cudaMemsetAsync(void *to, int value, size_t bytes, void *stream)
{
    int code = call_begin(FN_cudaMemsetAsync, CALL_CONTEXT);
    struct fill *f = code ? NULL : malloc(sizeof *f);

    if (code || !f)
        return call_end(code ? code : CUDA_E_MEMORY_ALLOCATION);
    *f = (struct fill){.to = to, .value = value, .bytes = bytes};
    if (range_side(to, bytes) != SIDE_DEVICE)
        code = CUDA_E_INVALID_VALUE;
    if (!code)
        code = stream_put(stream_of(stream), &(struct op){.run = run_fill, .arg = f, .arg_bytes = sizeof *f});
    if (code)
        free(f);
    return call_end(code);
}
