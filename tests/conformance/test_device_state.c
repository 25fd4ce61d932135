/* SPDX-License-Identifier: Apache-2.0 */
/* The plugin is a guest in somebody's process: captures, contexts, errors and threads of others stay as they are. */
#include "tests/conformance/device_tests.h"
#include "tests/conformance/device_world.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Everything that a session does, with one save and one load. */
static void whole_life(struct world *w)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_device_progress progress;
    struct cairn_device_copy *copy = NULL;
    const struct cairn_device_ops *ops = w->rig->ops;

    if (world_open(w, &err) < 0 || world_save(w, 0, &copy, &err) < 0 || ops->fence(w->device, w->stream, &err) < 0 ||
        world_wait(w, copy, &progress, &err) < 0)
        fail_msg("%s", err.message);
    ops->copy_free(copy);
    world_close(w);
    world_check(w);
}

struct captures {
    int (*begin)(void *stream, unsigned mode);
    int (*end)(void *stream, void **ret_graph);
    int (*destroy)(void *graph);
};

static void find_captures(const struct rig *rig, struct captures *c)
{
    assert_true(rig_find(rig, "cudaStreamBeginCapture", &c->begin) && rig_find(rig, "cudaStreamEndCapture", &c->end) &&
                rig_find(rig, "cudaGraphDestroy", &c->destroy));
}

static void *live_elsewhere(void *arg)
{
    whole_life(arg);
    return NULL;
}

/* In the strictest mode, in this thread and from another one. */
void test_captures_go_on(void **state)
{
    struct rig *rig = *state;
    struct captures c;
    struct world w;
    cuda_stream stream;
    pthread_t thread;
    void *graph = NULL;

    find_captures(rig, &c);
    world_lay_out(&w, rig, 0, 81, WORLD_ALL, 20);
    assert_int_equal(rig->cuda.stream_sync(w.stream), CUDA_OK);
    assert_int_equal(rig->cuda.stream_create(&stream, CUDA_STREAM_NON_BLOCKING, 0), CUDA_OK);
    assert_int_equal(c.begin(stream, 0), 0);
    whole_life(&w);
    assert_int_equal(pthread_create(&thread, NULL, live_elsewhere, &w), 0);
    pthread_join(thread, NULL);
    assert_int_equal(c.end(stream, &graph), 0);
    assert_int_equal(c.destroy(graph), 0);
    assert_int_equal(rig->cuda.stream_destroy(stream), CUDA_OK);
    world_clear(&w);
}

void test_captured_stream_is_refused(void **state)
{
    struct rig *rig = *state;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_device_copy *copy = NULL;
    struct captures c;
    struct world w;
    void *graph = NULL;

    find_captures(rig, &c);
    world_make(&w, rig, 0, 82, WORLD_ALL, 10);
    assert_int_equal(rig->cuda.stream_sync(w.stream), CUDA_OK);
    assert_int_equal(c.begin(w.stream, 0), 0);
    assert_int_equal(world_save(&w, 0, &copy, &err), CAIRN_E_INVAL);
    assert_non_null(strstr(err.message, "captured"));
    assert_int_equal(c.end(w.stream, &graph), 0); /* and it goes on */
    assert_int_equal(c.destroy(graph), 0);
    world_free(&w);
}

static void *fence_and_ask(void *arg)
{
    struct world *w = arg;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_device_progress progress;
    struct cairn_device_copy *copy = NULL;

    if (world_save(w, 0, &copy, &err) < 0 || world_wait(w, copy, &progress, &err) < 0)
        fail_msg("%s", err.message);
    w->rig->ops->copy_free(copy);
    return NULL;
}

static void *use_second(void *arg)
{
    struct world *w = arg;
    pthread_t thread;

    world_make(w, w->rig, 1, 83, WORLD_ALL, 10);
    pthread_create(&thread, NULL, fence_and_ask, w); /* a thread that never named a device */
    pthread_join(thread, NULL);
    world_free(w);
    return NULL;
}

/* A process that uses its second device alone has no context on the first: hundreds of MiB there. */
void test_contexts_of_others(void **state)
{
    struct rig *rig = *state;
    struct world w = {.rig = rig};
    pthread_t thread;

    if (!rig->shim)
        skip();
    rig->reset();
    assert_int_equal(pthread_create(&thread, NULL, use_second, &w), 0);
    pthread_join(thread, NULL);
    assert_true(rig->context_active(1));
    assert_false(rig->context_active(0));
}

/* The training loop reads its own errors, and none of ours. */
void test_pending_errors_stay(void **state)
{
    struct rig *rig = *state;
    const struct cuda *c = &rig->cuda;
    struct cairn_device_progress progress = {.size = sizeof progress};
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_device_copy *copy = NULL;
    struct world w;

    world_make(&w, rig, 0, 84, WORLD_ALL, 10);
    (void)c->take_error();
    assert_int_not_equal(c->set_device(99), CUDA_OK);
    if (rig->shim)
        rig->hold_to_host(1);
    assert_int_equal(world_save(&w, 0, &copy, &err), 0);
    assert_int_equal(rig->ops->progress(copy, &progress, &err), 0);
    assert_int_not_equal(c->take_error(), CUDA_OK);
    assert_int_equal(rig->ops->progress(copy, &progress, &err), 0);
    assert_int_not_equal(rig->ops->check(w.device, &w, 1, &err), 0);
    assert_int_equal(c->peek_error(), CUDA_OK);
    if (rig->shim)
        rig->hold_to_host(0);
    assert_int_equal(world_wait(&w, copy, &progress, &err), 0);
    rig->ops->copy_free(copy);
    int device = -1;
    assert_int_equal(c->get_device(&device), CUDA_OK);
    assert_int_equal(device, 0);
    world_free(&w);
}

void test_memory_that_is_refused(void **state)
{
    struct rig *rig = *state;
    const struct cairn_device_ops *ops = rig->ops;
    cuda_error (*managed)(void **ret, size_t bytes, unsigned flags);
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct world w;
    void *memory = NULL, *other = NULL;
    int n = 0;

    world_make(&w, rig, 0, 85, WORLD_ALL, 10);
    assert_int_equal(ops->check(w.device, w.buffers[0].memory, w.buffers[0].bytes, &err), 0);
    assert_int_equal(ops->check(w.device, w.buffers[0].host, 1, &err), CAIRN_E_INVAL);
    assert_int_equal(ops->check(w.device, w.arena, MIB, &err), CAIRN_E_INVAL);
    assert_non_null(strstr(err.message, "pinned"));
    assert_true(rig_find(rig, "cudaMallocManaged", &managed));
    assert_int_equal(managed(&memory, 100, 1), CUDA_OK);
    assert_int_equal(ops->check(w.device, memory, 100, &err), CAIRN_E_INVAL);
    assert_non_null(strstr(err.message, "managed"));
    assert_int_equal(rig->cuda.free(memory), CUDA_OK);
    if (rig->cuda.device_count(&n) == CUDA_OK && n > 1) {
        assert_int_equal(rig->cuda.set_device(1), CUDA_OK);
        assert_int_equal(rig->cuda.malloc(&other, 100), CUDA_OK);
        assert_int_equal(ops->check(w.device, other, 100, &err), CAIRN_E_INVAL);
        assert_non_null(strstr(err.message, "device 1"));
        assert_int_equal(rig->cuda.free(other), CUDA_OK);
        assert_int_equal(rig->cuda.set_device(0), CUDA_OK);
    }
    world_free(&w);
}

struct saver {
    struct world w;
    const char *said; /* what went wrong */
    pthread_t thread;
};

static void *save_often(void *arg)
{
    struct saver *s = arg;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_device_progress progress;
    struct cairn_device_copy *copy = NULL;

    for (int round = 0; round < 4; round++) {
        if (world_save(&s->w, 0, &copy, &err) < 0 || world_wait(&s->w, copy, &progress, &err) < 0)
            s->said = "a save failed";
        if (s->said)
            return NULL;
        s->w.rig->ops->copy_free(copy);
        if (!world_is_there(&s->w))
            s->said = "wrong bytes";
        world_change(&s->w);
        world_pages(&s->w, round % 2);
    }
    return NULL;
}

/* Two plans of one device and one of another, each by a thread of its own. */
void test_threads(void **state)
{
    struct rig *rig = *state;
    struct saver *s = calloc(3, sizeof *s);
    int n = 0;

    assert_int_equal(rig->cuda.device_count(&n), CUDA_OK);
    for (int i = 0; i < 3; i++) {
        struct cairn_error err = CAIRN_ERROR_INIT;
        world_lay_out(&s[i].w, rig, i == 2 && n > 1 ? 1 : 0, 91 + (uint64_t)i, WORLD_ALL, 30);
        if (i != 1 && world_open(&s[i].w, &err) < 0)
            fail_msg("%s", err.message);
    }
    struct cairn_error err = CAIRN_ERROR_INIT;
    s[1].w.device = s[0].w.device;
    if (world_pin(&s[1].w, &err) < 0 || rig->ops->plan(s[1].w.device, &s[1].w.layout, &s[1].w.plan, &err) < 0)
        fail_msg("%s", err.message);
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&s[i].thread, NULL, save_often, &s[i]), 0);
    for (int i = 0; i < 3; i++) {
        pthread_join(s[i].thread, NULL);
        if (s[i].said)
            fail_msg("thread %d: %s", i, s[i].said);
    }
    rig->ops->plan_free(s[1].w.plan);
    s[1].w.plan = NULL;
    s[1].w.device = NULL;
    for (int i = 0; i < 3; i++)
        world_free(&s[i].w);
    free(s);
}
