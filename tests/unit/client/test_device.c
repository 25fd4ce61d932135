/* SPDX-License-Identifier: Apache-2.0 */
/* Saves with tensors on devices: what comes back, in which order things happen, and what is left when they fail.
 * Against doubles of the daemon and of the CUDA runtime. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/client/support.h"

#include "tests/unit/client/device_support.h"

static struct fake *f;

static int start(void **state)
{
    (void)state;
    use_shim();
    shim_reset();
    f = fake_start();
    fake_take_back(f, 1);
    fake_wander(f, 2);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    no_complaint(f);
    fake_stop(f);
    return 0;
}

/* Both devices are open: to open one waits for it, and tests hold their streams. */
static int open_session(uint64_t arena_mib, uint32_t timeout_ms, struct cairn_session **ret_session)
{
    int r = open_rank(f, 0, 1, arena_mib, timeout_ms, ret_session);

    for (int i = 0; i < 2 && r == 0; i++)
        r = cairn_session_use_device(*ret_session, CAIRN_CUDA(i), &err);
    return r;
}

/* Parts that are one device's, two devices', a device's and the host's; over the ends of parts; of two dtypes. */
static const struct piece mixed[] = {
    {"big", CAIRN_F32, 600, 1000, CAIRN_CUDA(0), 0, false},
    {"odd", CAIRN_F32, 7, 11, CAIRN_HOST, 0, false},
    {"turned", CAIRN_F32, 100, 301, CAIRN_CUDA(0), 0, true},
    {"other", CAIRN_F32, 1, 33, CAIRN_CUDA(1), 0, false},
    {"empty", CAIRN_F32, 0, 5, CAIRN_CUDA(1), 0, false},
    {"amax", CAIRN_BF16, 33, 3, CAIRN_CUDA(0), CAIRN_TENSOR_VOLATILE, false},
    {"next", CAIRN_BF16, 700, 1001, CAIRN_CUDA(1), 0, false},
    {"host", CAIRN_BF16, 100, 100, CAIRN_HOST, 0, true},
};
#define N (sizeof(mixed) / sizeof(mixed[0]))

/* The same tensors, all of them elsewhere. */
static void elsewhere(struct piece *ret, uint32_t device, bool turned)
{
    memcpy(ret, mixed, sizeof(mixed));
    for (size_t i = 0; i < N; i++) {
        ret[i].device = device;
        ret[i].turned = turned && mixed[i].rows * mixed[i].columns < 50000; /* large ones: test_device_restore */
        ret[i].flags = 0;
    }
}

static void comes_back_to(struct cairn_session *s, uint64_t step, const struct tensors *x, uint32_t device, bool turned)
{
    struct piece pieces[N];
    struct tensors y;

    elsewhere(pieces, device, turned);
    tensors_make(&y, pieces, N);
    restore_into(s, step, &y);
    tensors_are(&y, x);
    tensors_free(&y);
}

static void comes_back(struct cairn_session *s, uint64_t step, const struct tensors *x)
{
    comes_back_to(s, step, x, CAIRN_HOST, false);
}

/* ---- what comes back ------------------------------------------------------------------------- */

/* Catches a part that nobody copies, or both: a byte that does not come back; and a gap that nobody zeroes. */
static void test_mixed(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;
    struct tensors x;

    (void)state;
    OK(open_session(12, 10000, &s));
    tensors_make(&x, mixed, N);
    for (uint64_t step = 1; step <= 3; step++) {
        tensors_fill(&x, step);
        OK(seal_behind(s, step, &x, NULL, 0, &save));
        commit_and_free(save);
        fake_places(f, step % 2);
        comes_back_to(s, step, &x, CAIRN_HOST, step == 3);
        comes_back_to(s, step, &x, CAIRN_CUDA(step % 2), step == 2);
    }
    struct cairn_save_info info = {.size = sizeof(info)};
    OK(seal_behind(s, 4, &x, NULL, 0, &save));
    OK(cairn_save_wait(save, CAIRN_SNAPSHOT, 10000, &err));
    OK(cairn_save_info(save, &info));
    uint64_t on_devices = x.bytes[0] + x.bytes[2] + x.bytes[3] + x.bytes[5] + x.bytes[6];
    assert_int_equal(info.device_bytes, on_devices);
    assert_int_equal(info.copied_bytes, info.bytes - on_devices);
    assert_true(info.staged_bytes >= x.bytes[5]);
    cairn_save_free(save);
    tensors_free(&x);
    cairn_session_close(s);
    struct shim_left left;
    shim_left(&left);
    assert_int_equal(left.registrations + left.streams + left.events + left.host_allocations, 0);
    assert_int_equal(left.allocations, 0);
    assert_int_equal(shim_unpinned_copies(), 0);
}

/* Catches tensors that moved to other memory and are read where they were, and a plan of other devices or strides. */
static void test_moves(void **state)
{
    struct piece pieces[N];
    struct cairn_session *s;
    struct cairn_save *save;
    struct tensors x;

    (void)state;
    OK(open_session(12, 10000, &s));
    memcpy(pieces, mixed, sizeof(mixed));
    for (uint64_t step = 1; step <= 6; step++) {
        pieces[0].device = step < 3 ? CAIRN_CUDA(0) : step < 5 ? CAIRN_HOST : CAIRN_CUDA(1);
        pieces[6].turned = step % 2;
        pieces[5].flags = step == 4 ? 0 : CAIRN_TENSOR_VOLATILE;
        tensors_make(&x, pieces, N);
        tensors_fill(&x, step);
        OK(seal_behind(s, step, &x, NULL, 0, &save));
        commit_and_free(save);
        comes_back(s, step, &x);
        tensors_free(&x);
    }
    cairn_session_close(s);
}

static void scribble(void *arg)
{
    struct tensors *x = arg;

    for (size_t i = 0; i < x->n; i++)
        if (x->pieces[i].device == CAIRN_CUDA(0))
            memset(x->data[i], 0x77, x->bytes[i]);
}

/* Catches a place of the caller's that a device writes over, or that is taken for a device's; copies that begin at seal
 * only; and a step that is given up, so that its pages are granted again, while a device writes to them. */
static void test_staged(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;
    struct tensors x;
    void *place = NULL;

    (void)state;
    OK(open_session(12, 10000, &s));
    tensors_make(&x, mixed, N);
    tensors_fill(&x, 1);
    OK(begin(s, 1, &save));
    for (size_t i = 0; i < N; i++) {
        struct cairn_tensor t = x.tensor[i];
        if (i == 1 || i == 7)
            t.data = NULL;
        OK(cairn_save_add(save, &t, &err));
    }
    shim_hold(NULL);
    OK(cairn_save_stage(save, &err));
    OK(cairn_save_fence(s, CAIRN_CUDA(0), NULL, &err));
    shim_work(shim_legacy(0), scribble, &x);
    for (size_t i = 1; i < N; i += 6) {
        OK(cairn_save_place(save, i, &place, &err));
        memcpy(place, x.was[i], x.bytes[i]);
    }
    OK(cairn_save_seal(save, &err));
    OK(cairn_save_place(save, 0, &place, &err)); /* also while copies run */
    shim_release(NULL);
    OK(cairn_save_wait(save, CAIRN_SNAPSHOT, 10000, &err));
    assert_memory_equal(place, x.was[0], x.bytes[0]);
    commit_and_free(save);
    comes_back(s, 1, &x);
    OK(begin(s, 2, &save)); /* given up between the halves */
    OK(cairn_save_add_all(save, x.tensor, N, &err));
    shim_hold(NULL);
    OK(cairn_save_stage(save, &err));
    cairn_save_free(save);
    assert_false(fake_wait_count(f, LOCAL_DROP, 1, 50));
    shim_release(NULL);
    assert_true(fake_wait_count(f, LOCAL_DROP, 1, 10000));
    tensors_free(&x);
    cairn_session_close(s);
}

/* ---- what happens when ----------------------------------------------------------------------- */

static void on_signal(int number)
{
    (void)number;
}

/* So many microseconds apart; 0: no more. */
static void signals(suseconds_t apart_us)
{
    struct sigaction act = {.sa_handler = on_signal};
    struct itimerval every = {.it_interval.tv_usec = apart_us, .it_value.tv_usec = apart_us};

    assert_int_equal(sigaction(SIGALRM, &act, NULL), 0);
    assert_int_equal(setitimer(ITIMER_REAL, &every, NULL), 0);
}

/* Catches a seal that waits for the copies, a snapshot that is told too early, a wait that does not keep its deadline,
 * and one that nobody wakes. */
static void test_seal_does_not_wait(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;
    struct tensors x;
    struct cairn_save_info info = {.size = sizeof(info)};

    (void)state;
    OK(open_session(12, 10000, &s));
    tensors_make(&x, mixed, N);
    tensors_fill(&x, 1);
    shim_hold(NULL);
    OK(seal_behind(s, 1, &x, NULL, 0, &save));
    struct pollfd p = {.fd = cairn_session_fd(s), .events = POLLIN};
    FAILS(CAIRN_E_TIMEOUT, cairn_save_wait(save, CAIRN_SNAPSHOT, 0, &err));
    FAILS(CAIRN_E_TIMEOUT, cairn_save_wait(save, CAIRN_SNAPSHOT, 20, &err));
    assert_non_null(strstr(err.message, "copied from its devices"));
    OK(cairn_save_info(save, &info));
    assert_int_equal(info.device_bytes, 0);
    FAILS(CAIRN_E_INVAL, cairn_save_seal(save, &err));
    signals(10000);
    FAILS(CAIRN_E_INTR, cairn_save_wait(save, CAIRN_SNAPSHOT, 10000, &err));
    signals(0);
    assert_int_equal(fake_count(f, LOCAL_FILLED), 0);
    shim_release(NULL);
    assert_int_equal(poll(&p, 1, 10000), 1); /* who does not wait is told */
    commit_and_free(save);
    comes_back(s, 1, &x);
    tensors_free(&x);
    cairn_session_close(s);
}

static void scribble_amax(void *arg)
{
    struct tensors *x = arg;

    memset(x->data[5], 0x77, x->bytes[5]);
}

static void write_new(void *arg)
{
    struct tensors *x = arg;

    for (size_t i = 0; i < x->n; i++) {
        if (x->pieces[i].device != CAIRN_CUDA(0))
            continue;
        fill_fast(x->data[i], x->bytes[i], 4711 + i);
        read_dense(x, i, x->was[i]);
    }
}

/* Catches a copy that does not wait for the producer, a fence that does not hold the next writer back, and a volatile
 * tensor that is read where it lies. */
static void test_order(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;
    struct tensors x;
    struct cairn_stream stream = {.device = CAIRN_CUDA(0)};

    (void)state;
    OK(open_session(12, 10000, &s));
    stream.stream = stream_new(0);
    tensors_make(&x, mixed, N);
    for (uint64_t step = 1; step <= 5; step++) {
        tensors_fill(&x, step);
        shim_delay(300000, step);
        shim_work(stream.stream, write_new, &x); /* the producer is late */
        OK(seal_behind(s, step, &x, &stream, 1, &save));
        shim_work(stream.stream, scribble_amax, &x); /* no fence for it */
        OK(cairn_save_fence(s, CAIRN_CUDA(0), stream.stream, &err));
        shim_work(stream.stream, scribble, &x);
        commit_and_free(save);
        shim_delay(0, 0);
        shim_drain();
        comes_back(s, step, &x);
    }
    tensors_free(&x);
    cairn_session_close(s);
    assert_int_equal(cudaStreamDestroy(stream.stream), 0);
}

/* Catches a fence that a captured graph runs through, or that a later launch does not have. */
static void test_captured_fence(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;
    struct tensors x;
    struct cairn_stream stream = {.device = CAIRN_CUDA(0)};
    void *graph = NULL, *exec = NULL;

    (void)state;
    OK(open_session(12, 10000, &s));
    stream.stream = stream_new(0);
    tensors_make(&x, mixed, N);
    tensors_fill(&x, 1);
    assert_int_equal(cudaStreamBeginCapture(stream.stream, 1), 0);
    OK(cairn_save_fence(s, CAIRN_CUDA(0), stream.stream, &err));
    shim_work(stream.stream, scribble, &x);
    assert_int_equal(cudaStreamEndCapture(stream.stream, &graph), 0);
    assert_int_equal(cudaGraphInstantiate(&exec, graph, 0), 0);
    for (uint64_t step = 1; step <= 3; step++) {
        tensors_fill(&x, step);
        shim_delay(300000, step);
        OK(seal_behind(s, step, &x, &stream, 1, &save));
        assert_int_equal(cudaGraphLaunch(exec, stream.stream), 0);
        commit_and_free(save);
        shim_delay(0, 0);
        shim_drain();
        comes_back(s, step, &x);
    }
    assert_int_equal(cudaGraphExecDestroy(exec), 0);
    assert_int_equal(cudaGraphDestroy(graph), 0);
    tensors_free(&x);
    cairn_session_close(s);
    assert_int_equal(cudaStreamDestroy(stream.stream), 0);
}

/* Catches saves that share what each must have of its own. */
static void test_two_under_way(void **state)
{
    struct cairn_session *s;
    struct cairn_save *first, *second;
    struct tensors x, y;

    (void)state;
    OK(open_session(12, 10000, &s));
    tensors_make(&x, mixed, N);
    tensors_make(&y, mixed, N);
    tensors_fill(&x, 1);
    tensors_fill(&y, 2);
    shim_hold(NULL);
    OK(seal_behind(s, 1, &x, NULL, 0, &first));
    OK(seal_behind(s, 2, &y, NULL, 0, &second));
    shim_release(NULL);
    OK(cairn_save_wait(second, CAIRN_SNAPSHOT, 10000, &err));
    OK(cairn_save_wait(first, CAIRN_SNAPSHOT, 10000, &err));
    assert_true(fake_wait_count(f, LOCAL_FILLED, 2, 10000));
    cairn_save_free(first);
    cairn_save_free(second);
    comes_back(s, 1, &x);
    comes_back(s, 2, &y);
    tensors_free(&x);
    tensors_free(&y);
    cairn_session_close(s);
}

/* Catches a daemon that is not told of parts in time, or of parts that are not there yet. */
static void test_parts(void **state)
{
    static const struct piece large[] = {{"w", CAIRN_F32, 40960, 1024, CAIRN_CUDA(0), 0, false}}; /* 160 MiB */
    struct cairn_session *s;
    struct cairn_save *save;
    struct tensors x;

    (void)state;
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
    skip(); /* their shadows of so much memory take longer than everything else here */
#endif
    fake_wander(f, 1);
    OK(open_session(160, 10000, &s));
    tensors_make(&x, large, 1);
    memset(x.data[0], 0x5c, x.bytes[0]);
    shim_speed((uint64_t)2 << 30);
    for (uint64_t step = 1; step <= 10 && fake_count(f, LOCAL_PARTS) == 0; step++) { /* who looks may come too late */
        OK(seal_behind(s, step, &x, NULL, 0, &save));
        OK(cairn_save_wait(save, CAIRN_COMMITTED, 20000, &err));
        cairn_save_free(save);
    }
    assert_in_range(fake_count(f, LOCAL_PARTS), 1, 2);
    tensors_free(&x);
    cairn_session_close(s);
}

/* Catches calls of the runtime for each tensor: what the host thread is held for. */
static void test_many_tensors(void **state)
{
    enum { MANY = 10000 };
    static const uint64_t shape = 301;
    struct cairn_tensor *t = calloc(MANY, sizeof(*t));
    char(*names)[16] = calloc(MANY, sizeof(*names));
    struct cairn_session *s;
    struct cairn_save *save;
    char *memory = memory_of(CAIRN_CUDA(0), MANY * 512);
    uint64_t calls = 0;

    (void)state;
    assert_true(t && names);
    memset(memory, 3, MANY * 512);
    for (int i = 0; i < MANY; i++) {
        (void)snprintf(names[i], sizeof(names[i]), "t%d", i);
        t[i] = bytes_tensor(names[i], &shape, memory + 512 * i);
        t[i].device = CAIRN_CUDA(0);
    }
    OK(open_session(12, 10000, &s));
    for (uint64_t step = 1; step <= 2; step++) {
        struct cairn_save_options o = {.size = sizeof(o), .step = step};
        shim_hold(NULL); /* nobody asks for what has ended yet */
        calls = shim_calls("*");
        OK(cairn_save_all(s, &o, t, MANY, &save, &err));
        calls = shim_calls("*") - calls;
        shim_release(NULL);
        OK(cairn_save_wait(save, CAIRN_COMMITTED, 10000, &err));
        cairn_save_free(save);
    }
    assert_in_range(calls, 1, 500);
    free(t);
    free(names);
    memory_free(CAIRN_CUDA(0), memory);
    cairn_session_close(s);
}

/* ---- what fails ------------------------------------------------------------------------------ */

/* Catches a message that does not name the culprit, and input that is taken as it is. */
static void test_misuse(void **state)
{
    static const uint64_t len = 4096;
    static char on_host[4096];
    struct cairn_session *s;
    struct cairn_save *save;
    struct cairn_tensor t = bytes_tensor("culprit", &len, on_host);
    struct cairn_stream streams[2] = {{.device = CAIRN_CUDA(0)}, {.device = CAIRN_CUDA(0)}};
    struct cairn_save_options o = {.size = sizeof(o), .step = 1, .streams = streams, .nstreams = 2};

    (void)state;
    OK(open_rank(f, 0, 1, 4, 10000, &s));
    OK(cairn_save_fence(s, CAIRN_CUDA(1), NULL, &err)); /* nothing was ever saved from there */
    FAILS(CAIRN_E_INVAL, cairn_save_fence(s, 7, NULL, &err));
    FAILS(CAIRN_E_INVAL, cairn_session_use_device(s, CAIRN_HOST, &err));
    FAILS(CAIRN_E_UNSUPPORTED, cairn_session_use_device(s, CAIRN_CUDA(5), &err));
    assert_non_null(strstr(err.message, "cuda:5"));
    FAILS(CAIRN_E_INVAL, cairn_save_begin(s, &o, &save, &err));
    streams[1].device = 3;
    FAILS(CAIRN_E_INVAL, cairn_save_begin(s, &o, &save, &err));
    OK(begin(s, 1, &save));
    t.device = 77;
    FAILS(CAIRN_E_INVAL, cairn_save_add(save, &t, &err));
    assert_non_null(strstr(err.message, "culprit"));
    t.device = CAIRN_CUDA(0);
    t.data = NULL;
    FAILS(CAIRN_E_INVAL, cairn_save_add(save, &t, &err));
    assert_non_null(strstr(err.message, "culprit"));
    t.data = on_host;
    OK(cairn_save_add(save, &t, &err));
    FAILS(CAIRN_E_INVAL, cairn_save_seal(save, &err)); /* it is the host's memory */
    assert_non_null(strstr(err.message, "culprit"));
    assert_non_null(strstr(err.message, "cuda:0"));
    FAILS(CAIRN_E_INVAL, cairn_save_wait(save, CAIRN_SNAPSHOT, 0, &err));
    cairn_save_free(save);
    cairn_session_close(s);
}

/* Catches a plugin that is missing and is not told so, and a session that is not to be used any more for it. */
static void test_no_plugin(void **state)
{
    static const uint64_t len = 4096;
    static char data[4096];
    struct cairn_session_options o = {.size = sizeof(o),
                                      .job = "job",
                                      .world_size = 1,
                                      .arena_bytes = 4 << 20,
                                      .start_id = "start",
                                      .socket_path = fake_path(f),
                                      .plugin_path = "/nonexistent/plugins"};
    struct cairn_session *s;
    struct cairn_save *save;
    struct cairn_tensor t = bytes_tensor("t", &len, data);

    (void)state;
    OK(cairn_session_open(&o, &s, &err));
    FAILS(CAIRN_E_UNSUPPORTED, cairn_session_use_device(s, CAIRN_CUDA(0), &err));
    assert_non_null(strstr(err.message, "/nonexistent/plugins"));
    OK(begin(s, 1, &save));
    OK(cairn_save_add(save, &t, &err));
    OK(cairn_save_seal(save, &err));
    commit_and_free(save);
    cairn_session_close(s);
}

/* Catches a failed copy that is committed, pages that are given back while a device still writes to them, and a failure
 * that ends more than its save. */
static void test_failing_copies(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;
    struct tensors x;
    unsigned failures = 0;

    (void)state;
    OK(open_session(12, 10000, &s));
    tensors_make(&x, mixed, N);
    tensors_fill(&x, 1);
    for (uint64_t step = 1; step <= 5; step++) {
        shim_delay(100000, step);
        shim_fail("cudaMemcpyAsync", step, 2); /* no memory: it goes away */
        int r = seal_behind(s, step, &x, NULL, 0, &save);
        if (r == 0) {
            r = cairn_save_wait(save, CAIRN_COMMITTED, 10000, &err);
            cairn_save_free(save);
        }
        shim_fail("cudaMemcpyAsync", 0, 0);
        if (r < 0) {
            failures++;
            assert_non_null(strstr(err.message, "cuda:"));
            assert_true(fake_wait_count(f, LOCAL_DROP, failures, 10000));
        }
        shim_delay(0, 0);
        OK(seal_behind(s, 100 + step, &x, NULL, 0, &save));
        commit_and_free(save);
        assert_int_equal(fake_count(f, LOCAL_FILLED), 2 * step - failures);
    }
    assert_true(failures >= 2);
    comes_back(s, 105, &x);
    tensors_free(&x);
    cairn_session_close(s);
}

/* Catches a lost device that hangs a wait, a save of the host's memory that it takes with it, and a close that does not
 * come back. */
static void test_lost_device(void **state)
{
    static const uint64_t len = 4096;
    static char data[4096];
    struct cairn_session *s;
    struct cairn_save *save = NULL;
    struct cairn_tensor t = bytes_tensor("t", &len, data);
    struct tensors x;

    (void)state;
    OK(open_session(12, 10000, &s));
    tensors_make(&x, mixed, N);
    tensors_fill(&x, 1);
    shim_fail_work(3, 719);
    int r =
        seal_behind(s, 1, &x, NULL, 0, &save); /* what runs already may fail while the rest is still put behind it */
    if (r == 0)
        r = cairn_save_wait(save, CAIRN_SNAPSHOT, 10000, &err);
    assert_true(r < 0 && r != CAIRN_E_TIMEOUT);
    assert_non_null(strstr(err.message, "cuda:"));
    cairn_save_free(save);
    assert_true(fake_wait_count(f, LOCAL_DROP, 1, 10000));
    OK(begin(s, 2, &save));
    OK(cairn_save_add(save, &t, &err));
    OK(cairn_save_seal(save, &err));
    commit_and_free(save);
    cairn_session_close(s);
    shim_reset();
    tensors_free(&x);
}

/* ---- ends ------------------------------------------------------------------------------------ */

/* Catches a save that ends with its handle, and one that is left behind by a close that could wait for it. */
static void test_free_and_close(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;
    struct tensors x;

    (void)state;
    OK(open_session(12, 10000, &s));
    tensors_make(&x, mixed, N);
    tensors_fill(&x, 1);
    shim_hold(NULL);
    OK(seal_behind(s, 1, &x, NULL, 0, &save));
    cairn_save_free(save);
    assert_int_equal(fake_count(f, LOCAL_FILLED), 0);
    shim_release(NULL);
    assert_true(fake_wait_count(f, LOCAL_FILLED, 1, 10000));
    comes_back(s, 1, &x);
    tensors_fill(&x, 2);
    shim_delay(2000000, 0);
    OK(seal_behind(s, 2, &x, NULL, 0, &save));
    cairn_save_free(save);
    cairn_session_close(s);
    shim_delay(0, 0);
    assert_true(fake_wait_count(f, LOCAL_FILLED, 2, 10000));
    OK(open_session(12, 10000, &s));
    comes_back(s, 2, &x);
    tensors_free(&x);
    cairn_session_close(s);
}

/* Catches a close that hangs, or pulls memory from under a device that writes to it. What is left behind is left behind
 * on purpose. */
static void test_close_without_end(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;
    struct tensors x;

    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    skip(); /* it finds what is left behind */
#endif
    OK(open_session(12, 1000, &s));
    tensors_make(&x, mixed, N);
    tensors_fill(&x, 1);
    shim_hold(NULL);
    OK(seal_behind(s, 1, &x, NULL, 0, &save));
    cairn_save_free(save);
    cairn_session_close(s);
    assert_int_equal(fake_count(f, LOCAL_FILLED), 0);
    shim_release(NULL);
    shim_drain();
    shim_reset();
    tensors_free(&x);
}

/* Catches a save that the daemon's end ends, and a snapshot that no daemon hears of. */
static void test_daemon_dies(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;
    struct tensors x;

    (void)state;
    OK(open_session(12, 10000, &s));
    tensors_make(&x, mixed, N);
    tensors_fill(&x, 1);
    shim_hold(NULL);
    OK(seal_behind(s, 1, &x, NULL, 0, &save));
    fake_restart(f, 0);
    shim_release(NULL);
    OK(cairn_save_wait(save, CAIRN_COMMITTED, 10000, &err));
    cairn_save_free(save);
    assert_int_equal(fake_count(f, LOCAL_RESUME), 1);
    fake_take_back(f, 0);
    shim_hold(NULL);
    OK(seal_behind(s, 2, &x, NULL, 0, &save));
    fake_restart(f, 0);
    shim_release(NULL);
    FAILS(CAIRN_E_UNAVAILABLE, cairn_save_wait(save, CAIRN_COMMITTED, 10000, &err));
    cairn_save_free(save);
    OK(seal_behind(s, 3, &x, NULL, 0, &save)); /* in a new arena, which is pinned, too */
    commit_and_free(save);
    comes_back(s, 3, &x);
    tensors_free(&x);
    cairn_session_close(s);
    assert_int_equal(shim_unpinned_copies(), 0);
}

/* Catches a rank's abort that is not told, and pages that are given back too early. */
static void test_aborted_meanwhile(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;
    struct tensors x;

    (void)state;
    OK(open_session(12, 10000, &s));
    tensors_make(&x, mixed, N);
    tensors_fill(&x, 1);
    shim_hold(NULL);
    OK(seal_behind(s, 1, &x, NULL, 0, &save));
    fake_event_now(f, 0, CAIRN_E_ABORTED);
    assert_int_equal(fake_count(f, LOCAL_DROP), 0);
    shim_release(NULL);
    FAILS(CAIRN_E_ABORTED, cairn_save_wait(save, CAIRN_COMMITTED, 10000, &err));
    cairn_save_free(save);
    tensors_free(&x);
    cairn_session_close(s);
}

/* Catches a child that waits for a thread that it does not have, or calls a runtime that is its parent's. */
static void test_fork(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;
    struct tensors x;
    int status = 0;

    (void)state;
    OK(open_session(12, 10000, &s));
    tensors_make(&x, mixed, N);
    tensors_fill(&x, 1);
    shim_hold(NULL);
    OK(seal_behind(s, 1, &x, NULL, 0, &save));
    pid_t child = fork();
    if (child == 0) {
        bool good = cairn_save_wait(save, CAIRN_SNAPSHOT, 0, NULL) == CAIRN_E_FORKED &&
                    cairn_save_fence(s, CAIRN_CUDA(0), NULL, NULL) == CAIRN_E_FORKED;
        cairn_save_free(save);
        cairn_session_close(s);
        _exit(good ? 0 : 1);
    }
    assert_true(child > 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    shim_release(NULL);
    commit_and_free(save);
    comes_back(s, 1, &x);
    tensors_free(&x);
    cairn_session_close(s);
}

/* ---- threads --------------------------------------------------------------------------------- */

struct trainer {
    struct cairn_session *s;
    struct tensors x;
    uint64_t first;
    int code;
};

static void *train(void *arg)
{
    struct trainer *t = arg;

    for (uint64_t step = t->first; step < t->first + 5 && t->code == 0; step++) {
        struct cairn_save_options o = {.size = sizeof(o), .step = step};
        struct cairn_error why = CAIRN_ERROR_INIT;
        struct cairn_save_info info = {.size = sizeof(info)};
        struct cairn_save *save = NULL;
        t->code = cairn_save_all(t->s, &o, t->x.tensor, t->x.n, &save, &why);
        if (t->code == 0)
            t->code = cairn_save_fence(t->s, CAIRN_CUDA(0), NULL, &why);
        if (t->code == 0)
            t->code = cairn_save_info(save, &info);
        if (t->code == 0 && step % 2)
            t->code = cairn_save_wait(save, CAIRN_SNAPSHOT, 10000, &why);
        cairn_save_free(save);
    }
    return NULL;
}

/* Catches, with a sanitizer, what threads share without a lock. */
static void test_threads(void **state)
{
    struct trainer t[3];
    pthread_t threads[3];
    struct cairn_session *s;

    (void)state;
    fake_wander(f, 4);
    OK(open_session(24, 10000, &s));
    shim_delay(50000, 1);
    for (int i = 0; i < 3; i++) {
        t[i] = (struct trainer){.s = s, .first = 1 + 10 * (uint64_t)i};
        tensors_make(&t[i].x, mixed, N);
        tensors_fill(&t[i].x, (uint64_t)i);
        assert_int_equal(pthread_create(&threads[i], NULL, train, &t[i]), 0);
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(t[i].code, 0);
    }
    assert_true(fake_wait_count(f, LOCAL_FILLED, 15, 10000));
    cairn_session_close(s);
    shim_delay(0, 0);
    for (int i = 0; i < 3; i++)
        tensors_free(&t[i].x);
}

#define TEST(name_) cmocka_unit_test_setup_teardown(name_, start, stop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_mixed),          TEST(test_moves),
        TEST(test_staged),         TEST(test_seal_does_not_wait),
        TEST(test_order),          TEST(test_captured_fence),
        TEST(test_two_under_way),  TEST(test_parts),
        TEST(test_many_tensors),   TEST(test_misuse),
        TEST(test_no_plugin),      TEST(test_failing_copies),
        TEST(test_free_and_close), TEST(test_close_without_end),
        TEST(test_daemon_dies),    TEST(test_aborted_meanwhile),
        TEST(test_fork),           TEST(test_threads),
        TEST(test_lost_device), /* the last: what was pinned stays so until the process ends */
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
