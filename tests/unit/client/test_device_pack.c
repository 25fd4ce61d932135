/* SPDX-License-Identifier: Apache-2.0 */
/* Saves that are packed on their device (CAIRN_PACK). Against doubles of the daemon, which unpacks where the bytes lie,
 * and of the CUDA runtime, which runs the real kernels. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <unistd.h>

#include "plugins/codec-float/kernel.h"
#include "plugins/codec-float/part.h"
#include "tests/unit/client/support.h"

#include "tests/unit/client/device_support.h"

#define MIB ((uint64_t)1 << 20)

static struct fake *f;

static int unpack(const void *from, size_t len, int dtype, void *to, size_t plain_len)
{
    return part_decode(kernel_best(), from, len, dtype, to, plain_len);
}

static int start(void **state)
{
    (void)state;
    use_shim();
    shim_reset();
    f = fake_start();
    fake_take_back(f, 1);
    fake_unpacks(f, unpack);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    no_complaint(f);
    fake_stop(f);
    return 0;
}

/* Parts 0 and 1 are cuda:0's and pack well, 2 is shared with the host's, 3 is cuda:1's and does not pack. */
static const struct piece pieces[] = {
    {"weights", CAIRN_F32, 512, 1024, CAIRN_CUDA(0), 0, false},
    {"tail", CAIRN_F32, 100, 10, CAIRN_CUDA(0), 0, false},
    {"host", CAIRN_F32, 100, 10, CAIRN_HOST, 0, false},
    {"noise", CAIRN_BF16, 512, 400, CAIRN_CUDA(1), 0, false},
};
#define N (sizeof(pieces) / sizeof(pieces[0]))
#define PACKS (2 * MIB)

static void change(struct tensors *x, uint64_t step)
{
    tensors_fill(x, step);
    for (uint64_t i = 0; i < x->bytes[0]; i += 4) { /* numbers around 1: their exponents are alike */
        uint32_t word;
        memcpy(&word, x->data[0] + i, 4);
        word = (word & 0x007fffffu) | 0x3f800000u;
        memcpy(x->data[0] + i, &word, 4);
    }
    for (size_t i = 0; i < N; i++)
        read_dense(x, i, x->was[i]);
}

static void snapshot_is(struct cairn_session *s, uint64_t step, const struct tensors *x)
{
    struct tensors y;

    tensors_make(&y, pieces, N);
    restore_into(s, step, &y);
    tensors_are(&y, x);
    tensors_free(&y);
}

/* Gives how much was packed; the bytes in the snapshot are right. */
static uint64_t save_packed(struct cairn_session *s, uint64_t step, struct tensors *x)
{
    struct cairn_save_info info = {.size = sizeof(info)};
    struct cairn_save *save;

    change(x, step);
    OK(seal_behind(s, step, x, NULL, 0, &save));
    OK(cairn_save_wait(save, CAIRN_COMMITTED, 10000, &err));
    OK(cairn_save_info(save, &info));
    cairn_save_free(save);
    snapshot_is(s, step, x);
    return info.packed_bytes;
}

/* Catches bytes that are not those of the tensors, sums of what was packed instead of what it was made of, parts of
 * which the daemon does not hear how they lie, and a way that is not tried. */
static void test_packed(void **state)
{
    struct cairn_session *s;
    struct tensors x;

    (void)state;
    OK(open_flags(f, CAIRN_PACK, 8, &s));
    tensors_make(&x, pieces, N);
    for (uint64_t step = 1; step <= 4; step++) {
        assert_int_equal(save_packed(s, step, &x), step % 2 ? 0 : PACKS);
        if (step % 2 == 0)
            assert_int_equal(fake_summed(f), 3);
    }
    assert_true(fake_count(f, LOCAL_PACKED) >= 2);
    assert_int_equal(fake_count(f, LOCAL_SUMS), 2);
    tensors_free(&x);
    cairn_session_close(s);
}

/* Catches a save that is packed for a daemon that cannot unpack, or whose places its caller reads; and a tracked one.
 */
static void test_not_packed(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;
    struct tensors x;

    (void)state;
    FAILS(CAIRN_E_INVAL, open_flags(f, CAIRN_PACK | CAIRN_TRACK, 8, &s));
    fake_knows(f, LOCAL_KNOWS);
    OK(open_flags(f, CAIRN_PACK, 8, &s));
    tensors_make(&x, pieces, N);
    for (uint64_t step = 1; step <= 4; step++)
        assert_int_equal(save_packed(s, step, &x), 0);
    cairn_session_close(s);
    fake_knows(f, LOCAL_KNOWS | LOCAL_KNOWS_PACKED);
    OK(open_flags(f, CAIRN_PACK, 8, &s));
    for (uint64_t step = 5; step <= 8; step++) {
        void *place;
        change(&x, step);
        OK(begin(s, step, &save));
        OK(cairn_save_add_all(save, x.tensor, N, &err));
        OK(cairn_save_stage(save, &err));
        OK(cairn_save_place(save, 0, &place, &err));
        OK(cairn_save_seal(save, &err));
        OK(cairn_save_wait(save, CAIRN_COMMITTED, 10000, &err));
        assert_memory_equal(place, x.was[0], x.bytes[0]);
        cairn_save_free(save);
    }
    assert_int_equal(fake_count(f, LOCAL_PACKED), 0);
    tensors_free(&x);
    cairn_session_close(s);
}

/* Catches a failure that is not told, one that the next save suffers from, pages that count as known, and pages that no
 * daemon hears are free. */
static void test_failures(void **state)
{
    static const struct {
        enum fake_fault fault;
        int code;
    } faults[] = {{FAKE_ERROR, CAIRN_E_CORRUPT}, {FAKE_CLOSE, CAIRN_E_ABORTED}};
    struct cairn_session *s;
    struct cairn_save *save;
    struct tensors x;

    (void)state;
    tensors_make(&x, pieces, N);
    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
        OK(open_flags(f, CAIRN_PACK, 8, &s));
        assert_int_equal(save_packed(s, 1, &x), 0);
        fake_fault(f, LOCAL_PACKED, faults[i].fault, CAIRN_E_CORRUPT, 1);
        change(&x, 2);
        OK(seal_behind(s, 2, &x, NULL, 0, &save));
        FAILS(faults[i].code, cairn_save_wait(save, CAIRN_COMMITTED, 10000, &err));
        cairn_save_free(save);
        (void)save_packed(s, 3, &x);
        assert_true(fake_wait_count(f, LOCAL_DROP, (unsigned)i + 1, 10000));
        assert_int_equal(save_packed(s, 4, &x), faults[i].code == CAIRN_E_ABORTED ? PACKS : 0);
        cairn_session_close(s);
    }
    tensors_free(&x);
}

/* Catches a session whose every save fails because it packs: the daemon refuses it, or finds that it cannot be
 * unpacked; and one that compares nothing any more then. */
static void test_goes_on_plain(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save = NULL;
    struct tensors x;

    (void)state;
    tensors_make(&x, pieces, N);
    for (int late = 0; late < 2; late++) {
        OK(open_flags(f, CAIRN_PACK, 8, &s));
        assert_int_equal(save_packed(s, 1, &x), 0);
        change(&x, 2);
        if (late)
            fake_events(f, CAIRN_SNAPSHOT, CAIRN_E_CORRUPT);
        else
            fake_fault(f, LOCAL_BEGIN, FAKE_ERROR, CAIRN_E_UNSUPPORTED, 1);
        int r = seal_behind(s, 2, &x, NULL, 0, &save);
        if (late)
            r = cairn_save_wait(save, CAIRN_COMMITTED, 10000, &err);
        assert_int_equal(r, late ? CAIRN_E_CORRUPT : CAIRN_E_UNSUPPORTED);
        cairn_save_free(late ? save : NULL);
        fake_events(f, CAIRN_COMMITTED, 0);
        for (uint64_t step = 3; step <= 6; step++) {
            assert_int_equal(save_packed(s, step, &x), 0);
            assert_int_equal(fake_summed(f), 3);
        }
        cairn_session_close(s);
    }
    tensors_free(&x);
}

/* Catches devices that are asked again and again to pack, and cannot: such a save is nothing that a restart of the
 * daemon is survived with. */
static void test_cannot(void **state)
{
    struct cairn_session_options o = {.size = sizeof(o),
                                      .job = "job",
                                      .world_size = 1,
                                      .arena_bytes = 8 * MIB,
                                      .start_id = "start",
                                      .socket_path = fake_path(f),
                                      .timeout_ms = 10000,
                                      .flags = CAIRN_PACK,
                                      .device_staging_bytes = MIB}; /* no room for it */
    struct cairn_session *s;
    struct tensors x;

    (void)state;
    OK(cairn_session_open(&o, &s, &err));
    tensors_make(&x, pieces, N);
    for (uint64_t step = 1; step <= 6; step++) {
        shim_speed(step % 2 ? 100 << 20 : 0); /* what is to be packed goes faster */
        assert_int_equal(save_packed(s, step, &x), 0);
    }
    assert_int_equal(fake_count(f, LOCAL_PACKED), 2);
    tensors_free(&x);
    cairn_session_close(s);
}

#define TEST(name_) cmocka_unit_test_setup_teardown(name_, start, stop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_packed), TEST(test_not_packed), TEST(test_failures), TEST(test_goes_on_plain), TEST(test_cannot),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
