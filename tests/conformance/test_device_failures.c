/* SPDX-License-Identifier: Apache-2.0 */
/* Every call of the runtime fails once: an error or a failed save, nothing left behind, nothing that hangs, and the
 * next save works. What does not go away ends everything at once, with the runtime's words. */
#include "tests/conformance/device_tests.h"
#include "tests/conformance/device_world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

/* All calls of a session; 0, or the first error. */
static int save_once(struct world *w, struct cairn_error *err)
{
    const struct cairn_device_ops *ops = w->rig->ops;
    struct cairn_device_progress progress;
    struct cairn_device_copy *copy;
    int r = world_save(w, CAIRN_DEVICE_SUMS | (w->layout.width ? CAIRN_DEVICE_PACK : 0), &copy, err), f;

    if (r < 0)
        return r;
    f = ops->fence(w->device, w->stream, err);
    r = world_wait(w, copy, &progress, err);
    ops->copy_free(copy);
    return r < 0 ? r : f;
}

static int load_once(struct world *w, struct cairn_error *err)
{
    const struct cairn_device_ops *ops = w->rig->ops;
    struct cairn_device_run run = {
        .from = w->buffers[0].host, .to = w->buffers[0].memory, .count = 1, .elem = (uint32_t)w->buffers[0].bytes};
    struct cairn_device_loader *loader;
    uint64_t ticket = 0;
    int r = ops->loader(w->device, &loader, err);

    if (r < 0)
        return r;
    r = ops->load(loader, &run, 1, &ticket, err);
    for (int i = 0; i < 100000 && r == 0; i++) {
        r = ops->loaded(loader, ticket, err);
        if (r == 0)
            nanosleep(&(struct timespec){.tv_nsec = 10000}, NULL);
    }
    ops->loader_free(loader);
    return r < 0 ? r : 0;
}

static int session(struct world *w, struct cairn_error *err)
{
    int r = world_open(w, err);

    if (r == 0)
        r = save_once(w, err);
    if (r == 0)
        r = load_once(w, err);
    world_close(w);
    return r;
}

static bool same_left(const struct shim_left *a, const struct shim_left *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}

/* What gives something back and fails leaves it there: that is no leak of ours. */
static bool gives_back(const char *function)
{
    return strstr(function, "Free") || strstr(function, "Destroy") || strstr(function, "Unregister") ||
           strstr(function, "Unload") || strstr(function, "Release");
}

static const char *const functions[] = {
    "cudaGetDeviceCount",
    "cudaDeviceGetAttribute",
    "cudaDeviceGetStreamPriorityRange",
    "cudaMalloc",
    "cudaFree",
    "cudaHostAlloc",
    "cudaFreeHost",
    "cudaHostRegister",
    "cudaHostUnregister",
    "cudaHostGetDevicePointer",
    "cudaMemcpyAsync",
    "cudaMemcpy2DAsync",
    "cudaMemcpyBatchAsync",
    "cudaStreamCreateWithPriority",
    "cudaStreamDestroy",
    "cudaStreamSynchronize",
    "cudaStreamQuery",
    "cudaStreamWaitEvent",
    "cudaStreamIsCapturing",
    "cudaThreadExchangeStreamCaptureMode",
    "cudaEventCreateWithFlags",
    "cudaEventDestroy",
    "cudaEventRecord",
    "cudaEventQuery",
    "cudaEventElapsedTime",
    "cudaLibraryLoadData",
    "cudaLibraryUnload",
    "cudaLibraryGetKernel",
    "cudaLaunchKernel",
    "cuDeviceGet",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxPushCurrent_v2",
};

/* The nth call of a session fails, and the session after it is a good one. */
static void fail_nth(struct world *w, const char *function, uint64_t nth, int code)
{
    struct rig *rig = (struct rig *)(uintptr_t)w->rig;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct shim_left before, after;

    rig->left(&before);
    rig->fail_call(function, nth, code);
    int r = session(w, &err);
    rig->fail_call(function, 0, 0);
    if (r < 0 && !err.message[0])
        fail_msg("call %llu of %s fails without a word", (unsigned long long)nth, function);
    rig->left(&after);
    if (!gives_back(function) && !same_left(&before, &after))
        fail_msg("call %llu of %s fails and something is left (%s)", (unsigned long long)nth, function, err.message);
    err = (struct cairn_error)CAIRN_ERROR_INIT;
    if (nth == 1 && session(w, &err) < 0)
        fail_msg("behind call %llu of %s: %s", (unsigned long long)nth, function, err.message);
    if (nth == 1)
        world_check(w);
}

/* Of each function so many. */
static void fail_all(struct rig *rig, const char *const *names, size_t n, const uint8_t *width, uint64_t most)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct world w;

    for (size_t i = 0; i < n; i++) {
        rig->reset();
        world_lay_out(&w, rig, 0, 101, WORLD_TINY | WORLD_STRIDED | WORLD_VOLATILE, 8);
        w.layout.width = width;
        uint64_t calls = rig->calls(names[i]);
        if (session(&w, &err) < 0)
            fail_msg("%s", err.message);
        calls = rig->calls(names[i]) - calls;
        calls = calls < most ? calls : most;
        for (uint64_t nth = 1; nth <= calls; nth++)
            fail_nth(&w, names[i], nth, CUDA_E_INVALID_VALUE);
        world_clear(&w);
    }
    rig->reset();
}

void test_each_call_fails_once(void **state)
{
    struct rig *rig = *state;

    if (!rig->shim)
        skip();
    fail_all(rig, functions, sizeof functions / sizeof functions[0], NULL, 6);
}

/* Those that a save makes, up to its last. */
void test_each_call_fails_when_packing(void **state)
{
    static const char *const names[] = {"cudaMalloc",      "cudaHostAlloc",       "cudaHostGetDevicePointer",
                                        "cudaMemcpyAsync", "cudaStreamWaitEvent", "cudaEventCreateWithFlags",
                                        "cudaEventRecord", "cudaEventQuery",      "cudaEventElapsedTime",
                                        "cudaLaunchKernel"};
    uint8_t width[MAX_PARTS];
    struct rig *rig = *state;

    if (!rig->shim)
        skip();
    memset(width, 2, sizeof width);
    fail_all(rig, names, sizeof names / sizeof names[0], width, 16);
}

/* An error that does not go away, at each of a save's calls. */
void test_lost_devices(void **state)
{
    static const char *const at[] = {"cudaEventRecord", "cudaStreamWaitEvent", "cudaMemcpyAsync", "cudaLaunchKernel",
                                     "cudaEventQuery"};
    struct rig *rig = *state;
    struct world w;

    if (!rig->shim)
        skip();
    for (size_t i = 0; i < 2 * sizeof at / sizeof at[0]; i++) {
        struct cairn_error err = CAIRN_ERROR_INIT;
        struct cairn_device_copy *copy;
        world_make(&w, rig, 0, 103, WORLD_ALL, 20);
        rig->fail_call(at[i / 2], 1 + i % 2, CUDA_E_ILLEGAL_ADDRESS);
        assert_true(save_once(&w, &err) < 0);
        assert_non_null(strstr(err.message, "illegal memory access"));
        err = (struct cairn_error)CAIRN_ERROR_INIT;
        assert_true(world_save(&w, 0, &copy, &err) < 0);
        assert_non_null(strstr(err.message, "illegal memory access"));
        world_close(&w);
        rig->reset(); /* what the runtime still has would be gone with the process */
        world_clear(&w);
    }
}

/* It fails on the device, long after the save has returned. */
void test_work_that_fails(void **state)
{
    struct rig *rig = *state;
    struct world w;

    if (!rig->shim)
        skip();
    for (uint64_t nth = 1; nth <= 4; nth++) {
        struct cairn_error err = CAIRN_ERROR_INIT;
        struct cairn_device_progress progress;
        struct cairn_device_copy *copy;
        world_make(&w, rig, 0, 104, WORLD_ALL, 20);
        rig->drain();
        rig->hold(NULL);
        assert_int_equal(world_save(&w, 0, &copy, &err), 0);
        rig->fail_work(nth, CUDA_E_ILLEGAL_ADDRESS);
        rig->release(NULL);
        assert_true(world_wait(&w, copy, &progress, &err) < 0);
        assert_true(progress.ended);
        assert_non_null(strstr(err.message, "illegal memory access"));
        rig->ops->copy_free(copy);
        world_close(&w);
        rig->reset();
        world_clear(&w);
    }
}

void test_volatile_does_not_fit(void **state)
{
    struct rig *rig = *state;
    struct cairn_device_options options = {.size = sizeof options, .staging_bytes = 4096};
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_device_copy *copy;
    struct world w;

    world_lay_out(&w, rig, 0, 105, WORLD_ALL, 30);
    assert_true(w.volatile_bytes > 4096);
    assert_int_equal(rig->ops->open(&options, &w.device, &err), 0);
    assert_int_equal(world_pin(&w, &err), 0);
    assert_int_equal(rig->ops->plan(w.device, &w.layout, &w.plan, &err), 0);
    assert_int_equal(world_save(&w, 0, &copy, &err), CAIRN_E_TOO_LARGE);
    assert_non_null(strstr(err.message, "4096"));
    world_free(&w);
}

/* No memory for blocks: it goes on without them; none for volatile slices: it says so, and works once there is. */
void test_no_device_memory(void **state)
{
    struct rig *rig = *state;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_device_copy *copy;
    struct world w;

    if (!rig->shim)
        skip();
    world_lay_out(&w, rig, 0, 106, WORLD_ALL, 30);
    rig->memory(0, 4096);
    assert_int_equal(world_open(&w, &err), 0);
    assert_int_equal(world_save(&w, 0, &copy, &err), CAIRN_E_NOMEM);
    rig->memory(0, 1024 * MIB);
    if (save_once(&w, &err) < 0)
        fail_msg("%s", err.message);
    world_check(&w);
    world_free(&w);
}
