/* SPDX-License-Identifier: Apache-2.0 */
/* What the shim's files share. One lock guards everything; work runs without it. */
#ifndef CAIRN_TESTS_SHIM_INTERNAL_H
#define CAIRN_TESTS_SHIM_INTERNAL_H

#include "plugins/device-cuda/runtime.h"
#include "tests/shim/shim.h"

#include <pthread.h>
#include <stdbool.h>

#define SHIM_API __attribute__((visibility("default")))
#define LEGACY ((void *)1)
#define PER_THREAD ((void *)2)

/* X(function): all that are counted and may be made to fail. */
#define SHIM_FUNCTIONS(X)                                                                                              \
    X(cudaRuntimeGetVersion)                                                                                           \
    X(cudaDriverGetVersion)                                                                                            \
    X(cudaGetDeviceCount)                                                                                              \
    X(cudaGetDevice)                                                                                                   \
    X(cudaSetDevice)                                                                                                   \
    X(cudaDeviceGetAttribute) X(cudaDeviceGetPCIBusId) X(cudaDeviceGetStreamPriorityRange) X(cudaDeviceSynchronize)    \
        X(cudaMalloc) X(cudaFree) X(cudaHostAlloc) X(cudaFreeHost) X(cudaHostRegister) X(cudaHostUnregister)           \
            X(cudaHostGetDevicePointer) X(cudaPointerGetAttributes) X(cudaMallocManaged) X(cudaMemGetInfo)             \
                X(cudaMemcpy) X(cudaMemcpyAsync) X(cudaMemcpy2DAsync) X(cudaMemcpyBatchAsync) X(cudaMemsetAsync)       \
                    X(cudaStreamCreateWithPriority) X(cudaStreamCreateWithFlags) X(cudaStreamCreate)                   \
                        X(cudaStreamDestroy) X(cudaStreamSynchronize) X(cudaStreamQuery) X(cudaStreamWaitEvent)        \
                            X(cudaStreamIsCapturing) X(cudaThreadExchangeStreamCaptureMode) X(cudaStreamBeginCapture)  \
                                X(cudaStreamEndCapture) X(cudaGraphInstantiate) X(cudaGraphLaunch) X(cudaGraphDestroy) \
                                    X(cudaGraphExecDestroy) X(cudaEventCreateWithFlags) X(cudaEventCreate)             \
                                        X(cudaEventDestroy) X(cudaEventRecord) X(cudaEventQuery)                       \
                                            X(cudaEventSynchronize) X(cudaEventElapsedTime) X(cudaLibraryLoadData)     \
                                                X(cudaLibraryUnload) X(cudaLibraryGetKernel) X(cudaLaunchKernel)       \
                                                    X(cuDeviceGet) X(cuDeviceGetName) X(cuDevicePrimaryCtxRetain)      \
                                                        X(cuDevicePrimaryCtxRelease_v2) X(cuCtxPushCurrent_v2)         \
                                                            X(cuCtxPopCurrent_v2)
#define FN_NAME(function_) FN_##function_,
enum fn { SHIM_FUNCTIONS(FN_NAME) FN_COUNT };

enum {
    E_CAPTURE_ISOLATION = 905,
    E_CAPTURE_WRONG_THREAD = 908,
    E_CAPTURE_UNMATCHED = 903,
    E_UNSUPPORTED_LIMIT = 801, /* cudaErrorNotSupported */
};

/* ---- state.c ---------------------------------------------------------------------------------- */
struct shim_device {
    uint64_t memory, used;
    int lost; /* the code that every call gives from now on */
    bool active;
    uint64_t retained;
    struct stream *legacy;
};
struct fail {
    uint64_t nth;
    int code;
};
struct shim {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct shim_device devices[SHIM_DEVICES];
    int ndevices;
    struct stream *streams; /* all that ever were */
    struct event *events;
    struct graph *graphs;
    struct library *libraries;
    uint64_t delay_ns, delay_seed, bytes_per_s;
    bool hold_new, hold_to_host;
    struct fail fails[FN_COUNT], fail_any, fail_work;
    uint64_t calls[FN_COUNT];
    uint64_t unpinned, copied;
};
extern struct shim shim;

enum call_kind {
    CALL_PLAIN = 0, /* needs no context */
    CALL_CONTEXT = 1,
    CALL_UNSAFE = 3, /* and is one that a capture forbids */
};
/* Begins a call: takes the lock, counts it, and gives the code that it fails with at once. */
int call_begin(enum fn fn, enum call_kind kind);
/* Ends it: gives the lock back and remembers a failure as the thread's last error. */
int call_end(int code);
void misuse(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

/* ---- context.c: of this thread ------------------------------------------------------------------ */
int current_device(void);
int thread_capture_mode(void);
void set_last_error(int code);

/* ---- memory.c --------------------------------------------------------------------------------- */
enum range_kind { RANGE_FREED = 0, RANGE_DEVICE = 1, RANGE_MANAGED = 2, RANGE_HOST = 3, RANGE_REGISTERED = 4 };
struct range {
    char *base;
    size_t bytes;
    enum range_kind kind;
    int device;
};
/* The range that p lies in, or NULL. The lock is held. */
const struct range *range_find(const void *p);
/* How n bytes at p may be used by a copy; the lock is held. */
enum side { SIDE_BAD, SIDE_DEVICE, SIDE_PINNED, SIDE_UNPINNED };
enum side range_side(const void *p, size_t n);
void memory_left(struct shim_left *left);
void memory_forget(void);

/* ---- stream.c --------------------------------------------------------------------------------- */
struct point { /* one record of an event */
    unsigned refs;
    bool done;
    uint64_t ns; /* when */
};
struct op {
    struct op *next;
    void (*run)(void *arg);
    void *arg;        /* free()d behind it */
    size_t arg_bytes; /* a graph that is launched makes copies of it */
    uint64_t bytes;   /* of a copy: how long it takes */
    bool to_host;
    struct point *record, *wait;
    struct stream *wait_stream; /* until so many of its ops are done */
    uint64_t wait_count;
};
struct stream {
    struct stream *next; /* in shim.streams */
    bool alive, blocking, held, started;
    int device;
    struct op *first, **last;
    uint64_t put, done;
    struct capture *capture;
};
struct event {
    struct event *next;
    bool alive;
    bool timed;
    bool in_graph; /* somebody's graph waits for it, and whoever made it cannot know for how long */
    int device;
    struct point *point;
};
/* Checked handles; the lock is held. Misuse ends the process. */
struct stream *stream_of(void *handle);
struct event *event_of(void *handle); /* event.c */
/* Puts an op into the stream, or into the graph that captures it. */
int stream_put(struct stream *s, const struct op *op);
struct point *point_ref(struct point *p);
void point_unref(struct point *p);
void device_drain(int device); /* -1: all; the lock is held */
void stream_wait_done(struct stream *s, uint64_t count);

/* ---- capture.c -------------------------------------------------------------------------------- */
/* May this thread make a call that captures forbid? If not, they are over. */
bool capture_allows(void);
int capture_add(struct capture *c, const struct op *op, struct event *external);
int capture_status(const struct capture *c);
void capture_invalidate(struct capture *c);
void graphs_left(struct shim_left *left);
void libraries_left(struct shim_left *left);

#endif
