/* SPDX-License-Identifier: Apache-2.0 */
/* What waits for what. Streams of the shim stand still where a test wants them to, and what runs in them looks for
 * itself whether it came too early: nothing here depends on how fast anything is. */
#include "tests/conformance/device_tests.h"
#include "tests/conformance/device_world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

static struct cairn_device_copy *save(struct world *w)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_device_copy *copy;

    if (world_save(w, 0, &copy, &err) < 0)
        fail_msg("%s", err.message);
    return copy;
}

static void finish(struct world *w, struct cairn_device_copy *copy)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_device_progress progress;

    if (world_wait(w, copy, &progress, &err) < 0)
        fail_msg("%s", err.message);
    w->rig->ops->copy_free(copy);
}

static void fence(struct world *w, cuda_stream stream)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (w->rig->ops->fence(w->device, stream, &err) < 0)
        fail_msg("%s", err.message);
}

static int is_ended(struct world *w, struct cairn_device_copy *copy)
{
    struct cairn_device_progress progress = {.size = sizeof progress};

    assert_int_equal(w->rig->ops->progress(copy, &progress, NULL), 0);
    return progress.ended;
}

/* Other bytes for slices, in the producer's stream; what w->expect is stays as it was. */
static void overwrite(struct world *w, int volatile_only)
{
    for (uint32_t i = 0; i < w->layout.nslices; i++) {
        struct buffer *b = &w->buffers[i];
        if (volatile_only && !(w->slices[i].flags & CAIRN_TENSOR_VOLATILE))
            continue;
        memset(b->host, 0x5a + (int)i, b->bytes);
        assert_int_equal(w->rig->cuda.copy(b->memory, b->host, b->bytes, CUDA_HOST_TO_DEVICE, w->stream), CUDA_OK);
    }
}

/* The tensors get their bytes only when the producer's stream is let go: copies that do not wait take the old ones. */
void test_copies_wait_for_the_producer(void **state)
{
    struct rig *rig = *state;
    struct world w;

    if (!rig->shim)
        skip();
    world_make(&w, rig, 0, 51, WORLD_ALL, 40);
    rig->drain();
    rig->hold(w.stream);
    world_change(&w);
    world_pages(&w, 0);
    struct cairn_device_copy *copy = save(&w);
    assert_false(is_ended(&w, copy));
    rig->release(w.stream);
    finish(&w, copy);
    world_check(&w);
    world_free(&w);
}

void test_volatile_may_change_at_once(void **state)
{
    struct rig *rig = *state;
    struct world w;

    if (!rig->shim)
        skip();
    for (int kernels = 0; kernels < 2; kernels++) {
        if (!kernels)
            rig->fail_call("cudaLibraryLoadData", 1, CUDA_E_NO_KERNEL_IMAGE);
        world_make(&w, rig, 0, 52, WORLD_ALL, 40);
        rig->hold_to_host(1);
        struct cairn_device_copy *copy = save(&w);
        overwrite(&w, 1);
        assert_int_equal(rig->cuda.stream_sync(w.stream), CUDA_OK); /* the producer waits for no copy to the host */
        rig->hold_to_host(0);
        finish(&w, copy);
        world_check(&w);
        world_free(&w);
    }
}

struct look {
    const struct world *w;
    int there;
};

static void look(void *arg)
{
    struct look *l = arg;

    l->there = world_is_there(l->w);
}

/* The lanes run against each other as they like: whoever waits for one alone sees the other late. */
void test_fence_holds_writers_back(void **state)
{
    struct rig *rig = *state;
    struct world w;

    if (!rig->shim)
        skip();
    for (uint64_t seed = 53; seed <= 55; seed++) {
        world_make(&w, rig, 0, seed, (WORLD_ALL & ~WORLD_TINY) | WORLD_LARGE, MAX_SLICES); /* several blocks */
        struct look l = {.w = &w};
        fence(&w, w.stream); /* with nothing under way it holds nobody back */
        assert_int_equal(rig->cuda.stream_sync(w.stream), CUDA_OK);
        rig->delay(1000000, seed);
        rig->hold_to_host(1);
        struct cairn_device_copy *copy = save(&w);
        fence(&w, w.stream);
        rig->work(w.stream, look, &l);
        overwrite(&w, 0);
        rig->hold_to_host(0);
        finish(&w, copy);
        assert_int_equal(rig->cuda.stream_sync(w.stream), CUDA_OK);
        rig->delay(0, 0);
        assert_true(l.there);
        world_check(&w);
        world_free(&w);
    }
}

struct graphs {
    int (*begin)(void *stream, unsigned mode);
    int (*end)(void *stream, void **ret_graph);
    int (*instantiate)(void **ret_exec, void *graph, unsigned long long flags);
    int (*launch)(void *exec, void *stream);
    int (*destroy)(void *graph);
    int (*exec_destroy)(void *exec);
};

static void find_graphs(const struct rig *rig, struct graphs *g)
{
    assert_true(rig_find(rig, "cudaStreamBeginCapture", &g->begin) && rig_find(rig, "cudaStreamEndCapture", &g->end) &&
                rig_find(rig, "cudaGraphInstantiate", &g->instantiate) &&
                rig_find(rig, "cudaGraphLaunch", &g->launch) && rig_find(rig, "cudaGraphDestroy", &g->destroy) &&
                rig_find(rig, "cudaGraphExecDestroy", &g->exec_destroy));
}

/* Captured once, before there is a save; each launch waits for what was saved before it. */
void test_fence_in_a_graph(void **state)
{
    struct rig *rig = *state;
    struct graphs g;
    struct world w;
    void *graph = NULL, *exec = NULL;

    if (!rig->shim)
        skip();
    find_graphs(rig, &g);
    world_make(&w, rig, 0, 54, WORLD_ALL, 30);
    struct look l = {.w = &w};
    assert_int_equal(g.begin(w.stream, 0), 0);
    fence(&w, w.stream);
    rig->work(w.stream, look, &l);
    assert_int_equal(g.end(w.stream, &graph), 0);
    assert_int_equal(g.instantiate(&exec, graph, 0), 0);
    for (int round = 0; round < 2; round++) {
        rig->hold_to_host(1);
        struct cairn_device_copy *copy = save(&w);
        l.there = 0;
        assert_int_equal(g.launch(exec, w.stream), 0);
        rig->hold_to_host(0);
        finish(&w, copy);
        assert_int_equal(rig->cuda.stream_sync(w.stream), CUDA_OK);
        assert_true(l.there);
        world_change(&w);
        world_pages(&w, 1);
    }
    world_close(&w); /* the graph lives on, and waits for nothing more */
    assert_int_equal(g.launch(exec, w.stream), 0);
    assert_int_equal(rig->cuda.stream_sync(w.stream), CUDA_OK);
    assert_int_equal(g.exec_destroy(exec), 0);
    assert_int_equal(g.destroy(graph), 0);
    world_free(&w);
}

/* The second comes while nothing of the first has reached the host: staging memory and tables are the first's still. */
void test_two_saves_under_way(void **state)
{
    struct rig *rig = *state;
    struct world w;

    for (uint64_t seed = 55; seed <= 56; seed++) {
        world_make(&w, rig, 0, seed, (WORLD_ALL & ~WORLD_TINY) | WORLD_LARGE, MAX_SLICES);
        if (rig->shim)
            rig->hold_to_host(1);
        struct cairn_device_copy *first = save(&w);
        fence(&w, w.stream);
        world_change(&w);
        world_pages(&w, 1);
        struct cairn_device_copy *second = save(&w);
        fence(&w, w.stream);
        overwrite(&w, 0);
        if (rig->shim)
            rig->hold_to_host(0);
        finish(&w, second);
        finish(&w, first);
        world_check(&w);
        world_free(&w);
    }
}

/* Only what is volatile changes, so nobody needs a fence; the second save's must not go over the first's. */
void test_volatile_of_two_saves(void **state)
{
    struct rig *rig = *state;
    struct world w;

    if (!rig->shim)
        skip();
    for (int kernels = 0; kernels < 2; kernels++) {
        if (!kernels)
            rig->fail_call("cudaLibraryLoadData", 1, CUDA_E_NO_KERNEL_IMAGE);
        world_make(&w, rig, 0, 58, WORLD_ALL, 40);
        rig->hold_to_host(1);
        struct cairn_device_copy *first = save(&w);
        overwrite(&w, 1);
        world_pages(&w, 1);
        struct cairn_device_copy *second = save(&w);
        rig->hold_to_host(0);
        finish(&w, first);
        finish(&w, second);
        world_check(&w);
        world_free(&w);
    }
}

/* Without a fence only volatile slices may change, and the streams run against each other as they like. */
void test_random_order(void **state)
{
    struct rig *rig = *state;
    struct world w;

    if (!rig->shim)
        skip();
    for (uint64_t seed = 61; seed <= 63; seed++) {
        rig->delay(200000, seed);
        world_make(&w, rig, 0, seed, WORLD_ALL, 30);
        for (int round = 0; round < 2; round++) {
            struct cairn_device_copy *copy = save(&w);
            overwrite(&w, 1);
            fence(&w, w.stream);
            world_change(&w);
            finish(&w, copy);
            world_check(&w);
            world_pages(&w, round);
        }
        rig->delay(0, 0);
        world_free(&w);
    }
}

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* From the producer's being let go on, and not longer than it took to see the end. */
static uint64_t time_of_save(struct world *w, uint64_t *ret_most)
{
    struct rig *rig = (struct rig *)(uintptr_t)w->rig;
    struct cairn_device_progress progress;
    struct cairn_error err = CAIRN_ERROR_INIT;

    rig->drain();
    rig->hold(w->stream);
    world_change(w);
    world_pages(w, 0);
    struct cairn_device_copy *copy = save(w);
    nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL); /* the lanes are at their waits */
    uint64_t begin = now_ns();
    rig->release(w->stream);
    if (world_wait(w, copy, &progress, &err) < 0)
        fail_msg("%s", err.message);
    *ret_most = now_ns() - begin;
    rig->ops->copy_free(copy);
    return progress.device_ns;
}

/* Catches a time that has the producer's own work in it, one that is kept from the save before, and a save that fails
 * because its time cannot be had. */
void test_time_on_device(void **state)
{
    static const char *const calls[] = {"cudaEventElapsedTime", "cudaEventRecord"};
    struct rig *rig = *state;
    struct world w;
    uint64_t most;

    if (!rig->shim)
        skip();
    for (unsigned n = 1; n <= 30; n += 29) { /* one batch, and many */
        world_make(&w, rig, 0, 58, WORLD_ALL, n);
        for (int round = 0; round < 2; round++) {
            uint64_t ns = time_of_save(&w, &most);
            assert_in_range(ns, 1, most);
        }
        for (int i = 0; i < 2; i++) {
            rig->fail_call(calls[i], i ? 3 : 1, CUDA_E_INVALID_VALUE); /* behind those of tables and producer */
            assert_int_equal(time_of_save(&w, &most), 0);
            world_check(&w);
        }
        world_free(&w);
    }
}

/* Catches what is written behind an older caller's structure. */
void test_older_callers(void **state)
{
    struct rig *rig = *state;
    struct cairn_device_progress progress;
    struct world w;

    world_make(&w, rig, 0, 59, WORLD_ALL, 10);
    struct cairn_device_copy *copy = save(&w);
    memset(&progress, 0xa5, sizeof progress);
    progress.size = offsetof(struct cairn_device_progress, packed);
    progress.ended = 0;
    while (!progress.ended)
        assert_int_equal(rig->ops->progress(copy, &progress, NULL), 0);
    assert_int_equal(progress.device_ns, 0xa5a5a5a5a5a5a5a5u);
    assert_int_equal((uintptr_t)progress.packed, 0xa5a5a5a5a5a5a5a5u);
    rig->ops->copy_free(copy);
    world_free(&w);
}
