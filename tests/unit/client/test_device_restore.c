/* SPDX-License-Identifier: Apache-2.0 */
/* Restores to devices: from the process's own arena and through the window, in any form, and when something fails.
 * Against doubles of the daemon and of the CUDA runtime. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

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
    return 0;
}

static int stop(void **state)
{
    (void)state;
    no_complaint(f);
    fake_stop(f);
    return 0;
}

/* Several chunks of the fake's, which have four parts each. */
static const struct piece saved[] = {
    {"wide", CAIRN_F32, 1500, 1001, CAIRN_HOST, 0, false},
    {"small", CAIRN_F32, 3, 5, CAIRN_HOST, 0, false},
    {"bytes", CAIRN_U8, 1200, 1000, CAIRN_HOST, 0, false},
};
#define N (sizeof(saved) / sizeof(saved[0]))

static struct cairn_session *open_and_save(struct tensors *x)
{
    struct cairn_session *s;
    struct cairn_save *save;

    OK(open_rank(f, 0, 1, 16, 10000, &s));
    tensors_make(x, saved, N);
    tensors_fill(x, 1);
    OK(seal_behind(s, 1, x, NULL, 0, &save));
    commit_and_free(save);
    return s;
}

static void on(struct tensors *y, uint32_t first, uint32_t others, bool turned)
{
    static struct piece pieces[N];

    memcpy(pieces, saved, sizeof(saved));
    for (size_t i = 0; i < N; i++) {
        pieces[i].device = i ? others : first;
        pieces[i].turned = turned;
    }
    tensors_make(y, pieces, N);
}

/* Catches bytes that do not come, or come while a page's checksum is not known to be right; and copies through the
 * plugin's own memory where the arena's would do. */
static void test_from_the_arena(void **state)
{
    struct tensors x, y;

    (void)state;
    struct cairn_session *s = open_and_save(&x);
    fake_places(f, 1);
    for (int k = 0; k < 2; k++) {
        on(&y, CAIRN_CUDA(0), k ? CAIRN_CUDA(1) : CAIRN_HOST, k);
        uint64_t reads = fake_count(f, LOCAL_READ);
        shim_delay(200000, 3);
        restore_into(s, 1, &y);
        shim_delay(0, 0);
        tensors_are(&y, &x);
        assert_int_equal(fake_count(f, LOCAL_READ), reads);
        tensors_free(&y);
    }
    assert_int_equal(shim_unpinned_copies(), 0);
    tensors_free(&x);
    cairn_session_close(s);
}

/* Catches a damaged page whose bytes stay on the device, or come there after the right ones. */
static void test_damaged_page(void **state)
{
    struct tensors x, y;

    (void)state;
    struct cairn_session *s = open_and_save(&x);
    fake_places(f, 1);
    for (unsigned part = 0; part < 3; part++) {
        fake_damage(f, part);
        on(&y, CAIRN_CUDA(0), CAIRN_CUDA(0), false);
        shim_delay(500000, part);
        restore_into(s, 1, &y);
        shim_delay(0, 0);
        tensors_are(&y, &x);
        tensors_free(&y);
        fake_damage(f, part); /* well again */
    }
    assert_true(fake_count(f, LOCAL_READ) >= 3);
    tensors_free(&x);
    cairn_session_close(s);
}

/* Catches a slot of the window that is read into while a device still copies from it. */
static void test_through_the_window(void **state)
{
    struct tensors x, y;
    struct cairn_session *s, *observer;
    struct cairn_session_options o = {
        .size = sizeof(o), .job = "job", .flags = CAIRN_OBSERVER, .socket_path = fake_path(f)};

    (void)state;
    s = open_and_save(&x);
    OK(cairn_session_open(&o, &observer, &err)); /* has no arena at all */
    for (int k = 0; k < 4; k++) {
        on(&y, CAIRN_CUDA(k % 2), CAIRN_CUDA(0), k / 2);
        shim_delay(200000, (uint64_t)k);
        restore_into(k % 2 ? observer : s, 1, &y);
        shim_delay(0, 0);
        tensors_are(&y, &x);
        tensors_free(&y);
    }
    tensors_free(&x);
    cairn_session_close(observer);
    cairn_session_close(s);
}

/* Catches a box whose rows are not side by side in the image, or not in the target. */
static void test_windows_of_a_tensor(void **state)
{
    struct tensors x;

    (void)state;
    struct cairn_session *s = open_and_save(&x);
    for (int hot = 0; hot < 2; hot++) {
        uint64_t offset[2] = {100, 37}, length[2] = {900, 500};
        int64_t stride[2] = {4 * 600, 4};
        char *data = memory_of(CAIRN_CUDA(1), 4 * 600 * 900);
        struct cairn_tensor t = x.tensor[0];
        struct cairn_restore *r;
        fake_places(f, hot);
        memset(data, 0x33, 4 * 600 * 900);
        t.offset = offset;
        t.length = length;
        t.stride_bytes = stride;
        t.data = data;
        t.device = CAIRN_CUDA(1);
        OK(cairn_restore_open(s, 1, 10000, &r, &err));
        OK(cairn_restore_add(r, &t, &err));
        OK(cairn_restore_run(r, 10000, NULL, NULL, &err));
        cairn_restore_free(r);
        for (uint64_t row = 0; row < 900; row++) {
            assert_memory_equal(data + row * 2400, x.was[0] + ((row + 100) * 1001 + 37) * 4, 2000);
            for (int k = 0; k < 400; k += 57)
                assert_int_equal(data[row * 2400 + 2000 + (uint64_t)k], 0x33);
        }
        memory_free(CAIRN_CUDA(1), data);
    }
    tensors_free(&x);
    cairn_session_close(s);
}

/* Catches, with a sanitizer, what the threads of a restore share without a lock; and a thread that leaves before its
 * copies have ended. */
static void test_threads(void **state)
{
    static const struct piece large[] = {{"large", CAIRN_F32, 8704, 1024, CAIRN_HOST, 0, false}}; /* 34 MiB: 9 chunks */
    static const struct piece there[] = {{"large", CAIRN_F32, 8704, 1024, CAIRN_CUDA(0), 0, false}};
    struct cairn_session *s;
    struct cairn_save *save;
    struct tensors x, y;

    (void)state;
    OK(open_rank(f, 0, 1, 34, 10000, &s)); /* two threads */
    tensors_make(&x, large, 1);
    tensors_make(&y, there, 1);
    tensors_fill(&x, 1);
    OK(seal_behind(s, 1, &x, NULL, 0, &save));
    commit_and_free(save);
    fake_places(f, 1);
    shim_delay(100000, 1);
    restore_into(s, 1, &y);
    shim_delay(0, 0);
    tensors_are(&y, &x);
    assert_int_equal(fake_count(f, LOCAL_READ), 0);
    tensors_free(&y);
    tensors_free(&x);
    cairn_session_close(s);
}

static int stop_at_once(void *arg, uint64_t done, uint64_t total)
{
    (void)arg;
    (void)done;
    (void)total;
    return 1;
}

/* Catches a run that comes back while memory is still written to, that hangs, or that says that all is well. */
static void test_failures(void **state)
{
    struct tensors x, y;
    struct cairn_restore *r;

    (void)state;
    struct cairn_session *s = open_and_save(&x);
    on(&y, CAIRN_CUDA(0), CAIRN_CUDA(0), false);
    for (int hot = 0; hot < 2; hot++) {
        fake_places(f, hot);
        OK(cairn_restore_open(s, 1, 10000, &r, &err));
        OK(cairn_restore_add_all(r, y.tensor, y.n, &err));
        shim_fail("cudaMemcpyAsync", 2, 2);
        int code = cairn_restore_run(r, 10000, NULL, NULL, &err);
        assert_true(code < 0 && code != CAIRN_E_TIMEOUT);
        assert_non_null(strstr(err.message, "cuda:0"));
        shim_fail("cudaMemcpyAsync", 0, 0);
        OK(cairn_restore_run(r, 10000, NULL, NULL, &err));
        tensors_are(&y, &x);
        cairn_restore_free(r);
    }
    struct cairn_tensor t = y.tensor[1];
    OK(cairn_restore_open(s, 1, 10000, &r, &err));
    t.device = 99;
    FAILS(CAIRN_E_INVAL, cairn_restore_add(r, &t, &err));
    assert_non_null(strstr(err.message, "small"));
    t.device = CAIRN_CUDA(0);
    t.data = x.data[1];
    FAILS(CAIRN_E_INVAL, cairn_restore_add(r, &t, &err)); /* the host's memory */
    assert_non_null(strstr(err.message, "small"));
    cairn_restore_free(r);
    OK(cairn_restore_open(s, 1, 10000, &r, &err));
    OK(cairn_restore_add_all(r, y.tensor, y.n, &err));
    int code = cairn_restore_run(r, 10000, stop_at_once, NULL, &err);
    assert_true(code == 0 || code == CAIRN_E_INTR);
    cairn_restore_free(r);
    tensors_free(&y);
    tensors_free(&x);
    cairn_session_close(s);
}

/* The device is lost while copies to it are under way, which no call has told yet: only waiting for them shows it. */
static void lost_on_the_way(int hot)
{
    struct tensors x, y;
    struct cairn_restore *r;
    struct cairn_session *s = open_and_save(&x);

    on(&y, CAIRN_CUDA(0), CAIRN_CUDA(0), false);
    fake_places(f, hot);
    OK(cairn_restore_open(s, 1, 10000, &r, &err));
    OK(cairn_restore_add_all(r, y.tensor, y.n, &err));
    shim_delay(20000000, 1);
    shim_fail_work(1, 719);
    int code = cairn_restore_run(r, 10000, NULL, NULL, &err);
    assert_true(code < 0 && code != CAIRN_E_TIMEOUT);
    assert_non_null(strstr(err.message, "cuda:0"));
    cairn_restore_free(r);
    shim_delay(0, 0);
    tensors_free(&x);
    cairn_session_close(s);
    shim_reset();
    tensors_free(&y);
}

/* Catches a restore that does not wait for its last copies, and says that all is well. */
static void test_lost_from_the_arena(void **state)
{
    (void)state;
    lost_on_the_way(1);
}

static void test_lost_through_the_window(void **state)
{
    (void)state;
    lost_on_the_way(0);
}

#define TEST(name_) cmocka_unit_test_setup_teardown(name_, start, stop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_from_the_arena),
        TEST(test_damaged_page),
        TEST(test_through_the_window),
        TEST(test_windows_of_a_tensor),
        TEST(test_threads),
        TEST(test_failures),
        TEST(test_lost_from_the_arena),
        TEST(test_lost_through_the_window), /* last: a lost device stays lost */
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
