/* SPDX-License-Identifier: Apache-2.0 */
/* What of a device's tensors is not copied because the arena has it (CAIRN_TRACK), and the sums that the daemon is
 * given of them (CAIRN_SOURCE_SUMS). Against doubles of the daemon and of the CUDA runtime, which runs the real
 * kernels. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <unistd.h>

#include "tests/unit/client/support.h"

#include "tests/unit/client/device_support.h"

#define MIB ((uint64_t)1 << 20)

static struct fake *f;

static int start(void **state)
{
    (void)state;
    use_shim();
    shim_reset();
    f = fake_start();
    fake_take_back(f, 1);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    no_complaint(f);
    fake_stop(f);
    return 0;
}

/* Parts 0 to 3 are cuda:0's, 4 is shared with the host's, 5 is cuda:1's. */
static const struct piece pieces[] = {
    {"frozen", CAIRN_F32, 1024, 1024, CAIRN_CUDA(0), 0, false},
    {"tail", CAIRN_F32, 100, 10, CAIRN_CUDA(0), 0, false},
    {"host", CAIRN_F32, 100, 10, CAIRN_HOST, 0, false},
    {"other", CAIRN_BF16, 1024, 400, CAIRN_CUDA(1), 0, false},
};
#define N (sizeof(pieces) / sizeof(pieces[0]))
#define ALONE (4 * MIB + 1024 * 400 * 2) /* bytes of slices in parts that are one device's */

/* Saves and gives what was not copied; the bytes in the snapshot are right. */
static uint64_t save_unchanged(struct cairn_session *s, uint64_t step, struct tensors *x)
{
    struct cairn_save_info info = {.size = sizeof(info)};
    struct cairn_save *save;
    struct tensors y;

    for (size_t i = 0; i < N; i++)
        read_dense(x, i, x->was[i]);
    OK(seal_behind(s, step, x, NULL, 0, &save));
    OK(cairn_save_wait(save, CAIRN_COMMITTED, 10000, &err));
    OK(cairn_save_info(save, &info));
    cairn_save_free(save);
    tensors_make(&y, pieces, N);
    restore_into(s, step, &y);
    tensors_are(&y, x);
    tensors_free(&y);
    return info.unchanged_bytes;
}

/* Catches a page that is left as it is although the tensor has changed, though it held something else, or though nobody
 * knows what it holds; and copies of what is there. */
static void test_tracked(void **state)
{
    struct cairn_session *s;
    struct tensors x;

    (void)state;
    OK(open_flags(f, CAIRN_TRACK, 8, &s));
    tensors_make(&x, pieces, N);
    tensors_fill(&x, 1);
    assert_int_equal(save_unchanged(s, 1, &x), 0);
    assert_int_equal(save_unchanged(s, 2, &x), ALONE);
    x.data[0][2 * MIB + 4711] ^= 1; /* one bit */
    assert_int_equal(save_unchanged(s, 3, &x), ALONE - MIB);
    assert_int_equal(save_unchanged(s, 4, &x), ALONE);
    memset(x.data[0], 0, MIB);
    memset(x.data[0] + MIB, 0, MIB);
    assert_int_equal(save_unchanged(s, 5, &x), ALONE - 2 * MIB);
    tensors_fill(&x, 2);
    assert_int_equal(save_unchanged(s, 6, &x), 0);
    fake_restart(f, 0); /* the arena comes back as it was */
    assert_int_equal(save_unchanged(s, 7, &x), ALONE);
    fake_take_back(f, 0);
    fake_restart(f, 0); /* a new one */
    assert_int_equal(save_unchanged(s, 8, &x), 0);
    assert_int_equal(save_unchanged(s, 9, &x), ALONE);
    tensors_free(&x);
    cairn_session_close(s);
}

/* Catches a page that others have written to meanwhile: tensors of the host's, another layout, a save that failed. */
static void test_pages_of_others(void **state)
{
    static const uint64_t len = 6 * MIB;
    struct cairn_session *s;
    struct cairn_save *save;
    struct tensors x;
    char *host = calloc(1, len);
    struct cairn_tensor t = bytes_tensor("host's", &len, host);

    (void)state;
    OK(open_flags(f, CAIRN_TRACK, 8, &s));
    tensors_make(&x, pieces, N);
    tensors_fill(&x, 1);
    (void)save_unchanged(s, 1, &x);
    assert_int_equal(save_unchanged(s, 2, &x), ALONE);
    OK(begin(s, 3, &save));
    OK(cairn_save_add(save, &t, &err));
    OK(cairn_save_seal(save, &err));
    commit_and_free(save);
    assert_int_equal(save_unchanged(s, 4, &x), 0);
    OK(begin(s, 5, &save)); /* the same tensors, from the host's memory, and not sealed */
    for (size_t i = 0; i < N; i++) {
        struct cairn_tensor other = x.tensor[i];
        other.data = host;
        other.device = CAIRN_HOST;
        OK(cairn_save_add(save, &other, &err));
    }
    OK(cairn_save_stage(save, &err));
    cairn_save_free(save);
    assert_int_equal(save_unchanged(s, 6, &x), 0);
    assert_int_equal(save_unchanged(s, 7, &x), ALONE);
    shim_fail("cudaMemcpyAsync", 1, 2);
    shim_fail("cudaLaunchKernel", 2, 2);
    int code = seal_behind(s, 8, &x, NULL, 0, &save);
    if (code == 0) {
        code = cairn_save_wait(save, CAIRN_SNAPSHOT, 10000, &err);
        cairn_save_free(save);
    }
    assert_true(code < 0 && code != CAIRN_E_TIMEOUT);
    shim_fail("cudaMemcpyAsync", 0, 0);
    shim_fail("cudaLaunchKernel", 0, 0);
    assert_int_equal(save_unchanged(s, 9, &x), 0);
    free(host);
    tensors_free(&x);
    cairn_session_close(s);
}

/* Catches sums that are not of what was read, parts that have none, and a daemon that is told what it does not know. */
static void test_source_sums(void **state)
{
    struct cairn_session *s;
    struct tensors x;

    (void)state;
    tensors_make(&x, pieces, N);
    for (int tracked = 0; tracked < 2; tracked++) {
        OK(open_flags(f, CAIRN_SOURCE_SUMS | (tracked ? CAIRN_TRACK : 0), 8, &s));
        for (uint64_t step = 1; step <= 3; step++) {
            tensors_fill(&x, step / 2);
            uint64_t unchanged = save_unchanged(s, step, &x);
            assert_int_equal(unchanged, tracked && step == 3 ? ALONE : 0);
            assert_int_equal(fake_summed(f), 5); /* all but the one that is shared with the host */
        }
        cairn_session_close(s);
    }
    unsigned told = fake_count(f, LOCAL_SUMS);
    fake_knows(f, LOCAL_KNOWS & ~LOCAL_KNOWS_SUMS);
    OK(open_flags(f, CAIRN_SOURCE_SUMS, 8, &s));
    (void)save_unchanged(s, 1, &x);
    assert_int_equal(fake_count(f, LOCAL_SUMS), told);
    tensors_free(&x);
    cairn_session_close(s);
}

/* Catches a refusal of the sums that is not the save's failure. */
static void test_sums_are_refused(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;
    struct tensors x;

    (void)state;
    OK(open_flags(f, CAIRN_SOURCE_SUMS, 8, &s));
    tensors_make(&x, pieces, N);
    tensors_fill(&x, 1);
    fake_fault(f, LOCAL_SUMS, FAKE_ERROR, CAIRN_E_CORRUPT, 1);
    OK(seal_behind(s, 1, &x, NULL, 0, &save));
    FAILS(CAIRN_E_CORRUPT, cairn_save_wait(save, CAIRN_COMMITTED, 10000, &err));
    cairn_save_free(save);
    assert_true(fake_wait_count(f, LOCAL_DROP, 1, 10000));
    (void)save_unchanged(s, 2, &x);
    tensors_free(&x);
    cairn_session_close(s);
}

#define TEST(name_) cmocka_unit_test_setup_teardown(name_, start, stop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_tracked),
        TEST(test_pages_of_others),
        TEST(test_source_sums),
        TEST(test_sums_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
