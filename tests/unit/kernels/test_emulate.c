/* SPDX-License-Identifier: Apache-2.0 */
/* The emulator does what a device does, and does not forgive what a device does not. */
#include "tests/shim/emulate.h"
#include "tests/unit/kernels/faulty.h"

#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define BLOCKS 9u
#define OUT (BLOCKS * FAULTY_THREADS)

static int turned_round(const uint32_t *out)
{
    for (uint32_t i = 0; i < OUT; i++)
        if (out[i] != i / FAULTY_THREADS * FAULTY_THREADS + FAULTY_THREADS - 1 - i % FAULTY_THREADS)
            return 0;
    return 1;
}

/* Catches a barrier that lets a thread through too early, in any order; and an order that hides that one is missing. */
static void test_barrier(void **state)
{
    uint32_t out[OUT];

    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        shim_kernels_shuffle(seed);
        memset(out, 0, sizeof out);
        faulty_run(TURN_ROUND, out, BLOCKS);
        assert_true(turned_round(out));
        faulty_run(TURN_ROUND_WITHOUT_BARRIER, out, BLOCKS);
        assert_false(turned_round(out));
    }
    shim_kernels_shuffle(0);
}

static void *sum_in_warps(void *arg)
{
    uint32_t *out = arg;

    for (unsigned i = 0; i < 20; i++)
        faulty_run(WARP_SUM, out, BLOCKS);
    return NULL;
}

/* Catches an exchange that gives a lane another's value of the next exchange; and state that threads of the host, each
 * with a stream's kernels, have in common. */
static void test_warps(void **state)
{
    static uint32_t out[2][OUT];
    pthread_t threads[2];

    (void)state;
    shim_kernels_shuffle(5);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, sum_in_warps, out[i]), 0);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    shim_kernels_shuffle(0);
    for (uint32_t i = 0; i < 2 * OUT; i++) {
        uint32_t first = i % FAULTY_THREADS / 32 * 32, want = 31 * 16 + 32 * first;
        for (uint32_t lane = 0; lane < 32; lane++)
            want += (first + lane) % 3 == 0 ? 1u << lane : 0;
        assert_int_equal(out[i / OUT][i % OUT], want);
    }
}

static void expect_end(enum faulty which)
{
    pid_t child = fork();
    int status;

    assert_true(child >= 0);
    if (child == 0) {
        int null = open("/dev/null", O_WRONLY);
        (void)dup2(null, STDERR_FILENO);
        (void)signal(SIGABRT, SIG_DFL);
        faulty_run(which, NULL, 1);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGABRT);
}

/* Catches an emulator that goes on, or waits for ever, where a device would do either. */
static void test_ends(void **state)
{
    (void)state;
    expect_end(NOT_ALL_COME);
    expect_end(TWO_BARRIERS);
    expect_end(LANES_APART);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_barrier),
        cmocka_unit_test(test_warps),
        cmocka_unit_test(test_ends),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
