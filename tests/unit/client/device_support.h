/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors in the host's memory and on devices of the shim (tests/shim), whose memory is the host's: tests fill and read
 * it as they like while no stream does. Include after support.h. */
#ifndef CAIRN_TESTS_UNIT_CLIENT_DEVICE_SUPPORT_H
#define CAIRN_TESTS_UNIT_CLIENT_DEVICE_SUPPORT_H

#include "tests/shim/shim.h"

int cudaSetDevice(int device);
int cudaMalloc(void **ret, size_t bytes);
int cudaFree(void *p);
int cudaStreamCreateWithFlags(void **ret, unsigned flags);
int cudaStreamDestroy(void *stream);
int cudaStreamSynchronize(void *stream);
int cudaStreamBeginCapture(void *stream, unsigned mode);
int cudaStreamEndCapture(void *stream, void **ret_graph);
int cudaGraphInstantiate(void **ret_exec, void *graph, unsigned long long flags);
int cudaGraphLaunch(void *exec, void *stream);
int cudaGraphDestroy(void *graph);
int cudaGraphExecDestroy(void *exec);

/* Before the first device is opened in the process. */
static inline void use_shim(void)
{
    assert_int_equal(setenv("CAIRN_CUDART", SHIM_FILE, 1), 0);
    assert_int_equal(setenv("CAIRN_PLUGIN_PATH", PLUGIN_DIR, 1), 0);
}

static inline int open_flags(struct fake *fake, uint32_t flags, uint64_t arena_mib, struct cairn_session **ret_session)
{
    struct cairn_session_options o = {.size = sizeof(o),
                                      .job = "job",
                                      .world_size = 1,
                                      .arena_bytes = arena_mib << 20,
                                      .start_id = "start",
                                      .socket_path = fake_path(fake),
                                      .timeout_ms = 10000,
                                      .flags = flags};

    return cairn_session_open(&o, ret_session, &err);
}

static inline void *stream_new(int device)
{
    void *stream = NULL;

    assert_int_equal(cudaSetDevice(device), 0);
    assert_int_equal(cudaStreamCreateWithFlags(&stream, 1), 0); /* waits for no default stream */
    return stream;
}

/* ---- a state --------------------------------------------------------------------------------- */

#define STATE_MAX 16
struct piece {
    const char *name;
    int dtype;
    uint64_t rows, columns;
    uint32_t device;
    uint32_t flags;
    bool turned; /* column-major in memory */
};
struct tensors {
    const struct piece *pieces;
    size_t n;
    uint64_t shape[STATE_MAX][2];
    int64_t stride[STATE_MAX][2];
    uint64_t bytes[STATE_MAX];
    char *data[STATE_MAX];
    char *was[STATE_MAX]; /* the bytes that are to come back, dense */
    struct cairn_tensor tensor[STATE_MAX];
};

static inline char *memory_of(uint32_t device, uint64_t bytes)
{
    void *p = NULL;

    if (device == CAIRN_HOST) {
        p = calloc(1, bytes + 1);
        assert_non_null(p);
        return p;
    }
    assert_int_equal(cudaSetDevice((int)(device - CAIRN_CUDA(0))), 0);
    assert_int_equal(cudaMalloc(&p, bytes + 1), 0);
    return p;
}

static inline void memory_free(uint32_t device, char *p)
{
    if (device == CAIRN_HOST)
        free(p);
    else
        assert_int_equal(cudaFree(p), 0);
}

/* Uninitialised memory for pieces; turned: as they say, or all dense. */
static inline void tensors_make(struct tensors *x, const struct piece *pieces, size_t n)
{
    *x = (struct tensors){.pieces = pieces, .n = n};
    for (size_t i = 0; i < n; i++) {
        const struct piece *p = &pieces[i];
        int64_t size = (int64_t)cairn_dtype_size(p->dtype);
        x->shape[i][0] = p->rows;
        x->shape[i][1] = p->columns;
        x->bytes[i] = p->rows * p->columns * (uint64_t)size;
        x->stride[i][0] = p->turned ? size : size * (int64_t)p->columns;
        x->stride[i][1] = p->turned ? size * (int64_t)p->rows : size;
        x->data[i] = memory_of(p->device, x->bytes[i]);
        x->was[i] = calloc(1, x->bytes[i] + 1);
        assert_non_null(x->was[i]);
        x->tensor[i] = (struct cairn_tensor){.size = sizeof(struct cairn_tensor),
                                             .name = p->name,
                                             .dtype = p->dtype,
                                             .ndim = 2,
                                             .shape = x->shape[i],
                                             .stride_bytes = x->stride[i],
                                             .data = x->data[i],
                                             .flags = p->flags,
                                             .device = p->device};
    }
}

static inline void tensors_free(struct tensors *x)
{
    for (size_t i = 0; i < x->n; i++) {
        memory_free(x->pieces[i].device, x->data[i]);
        free(x->was[i]);
    }
}

/* What lies in memory, in row-major order. */
static inline void read_dense(const struct tensors *x, size_t i, char *ret)
{
    size_t size = cairn_dtype_size(x->pieces[i].dtype);

    if (!x->pieces[i].turned) {
        memcpy(ret, x->data[i], x->bytes[i]);
        return;
    }
    for (uint64_t r = 0; r < x->pieces[i].rows; r++)
        for (uint64_t c = 0; c < x->pieces[i].columns; c++, ret += size)
            memcpy(ret, x->data[i] + (int64_t)r * x->stride[i][0] + (int64_t)c * x->stride[i][1], size);
}

/* A word at a time: these tests fill and compare much, unoptimised. */
static inline void fill_fast(char *data, uint64_t bytes, uint64_t seed)
{
    uint64_t x = seed * 0x9e3779b97f4a7c15u + 1, at = 0;

    for (; at < bytes; at += sizeof(x)) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        memcpy(data + at, &x, bytes - at < sizeof(x) ? bytes - at : sizeof(x));
    }
}

/* Other bytes in all of them, which are those to come back. */
static inline void tensors_fill(struct tensors *x, uint64_t seed)
{
    for (size_t i = 0; i < x->n; i++) {
        fill_fast(x->data[i], x->bytes[i], seed * 100 + i);
        read_dense(x, i, x->was[i]);
    }
}

static inline void tensors_wipe(struct tensors *x)
{
    for (size_t i = 0; i < x->n; i++)
        memset(x->data[i], 0xd1, x->bytes[i]);
}

/* They hold what x was filled with. */
static inline void tensors_are(const struct tensors *y, const struct tensors *x)
{
    for (size_t i = 0; i < y->n; i++) {
        char *is = malloc(y->bytes[i] + 1);
        assert_non_null(is);
        read_dense(y, i, is);
        for (uint64_t b = 0; memcmp(is, x->was[i], y->bytes[i]) != 0 && b < y->bytes[i]; b++)
            if (is[b] != x->was[i][b])
                fail_msg("byte %llu of %s is %02x, not %02x", (unsigned long long)b, y->pieces[i].name,
                         (unsigned char)is[b], (unsigned char)x->was[i][b]);
        free(is);
    }
}

static inline void restore_into(struct cairn_session *s, uint64_t step, struct tensors *y)
{
    struct cairn_restore *r = NULL;

    tensors_wipe(y);
    OK(cairn_restore_open(s, step, 10000, &r, &err));
    OK(cairn_restore_add_all(r, y->tensor, y->n, &err));
    OK(cairn_restore_run(r, 10000, NULL, NULL, &err));
    cairn_restore_free(r);
}

/* Behind the work of these streams, one a device. */
static inline int seal_behind(struct cairn_session *s, uint64_t step, const struct tensors *x,
                              const struct cairn_stream *streams, uint32_t n, struct cairn_save **ret_save)
{
    struct cairn_save_options o = {.size = sizeof(o), .step = step, .streams = streams, .nstreams = n};

    return cairn_save_all(s, &o, x->tensor, x->n, ret_save, &err);
}

static inline void commit_and_free(struct cairn_save *save)
{
    OK(cairn_save_wait(save, CAIRN_COMMITTED, 10000, &err));
    cairn_save_free(save);
}

#endif
