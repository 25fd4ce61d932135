/* SPDX-License-Identifier: Apache-2.0 */
/* What every device plugin owes: bytes exactly where they belong, whatever shape they have and wherever pages lie. With
 * the shim of the runtime, and on a real device where there is one. */
#include "tests/conformance/device_tests.h"
#include "tests/conformance/device_world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct cairn_device_copy *save_and_check(struct world *w, uint32_t flags, struct cairn_device_progress *progress)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_device_copy *copy;

    if (world_save(w, flags, &copy, &err) < 0 || world_wait(w, copy, progress, &err) < 0)
        fail_msg("%s", err.message);
    assert_int_equal(progress->parts, w->layout.nparts);
    assert_true(progress->staged_bytes >= w->volatile_bytes);
    world_check(w);
    return copy;
}

static void save_random(struct world *w)
{
    struct cairn_device_progress progress;

    for (int round = 0; round < 2; round++) {
        w->rig->ops->copy_free(save_and_check(w, 0, &progress));
        world_change(w);
        world_pages(w, round);
    }
}

static void random_worlds(const struct rig *rig, uint64_t seeds)
{
    static const struct {
        unsigned kinds, n;
    } mixes[] = {
        {WORLD_ALL, 40}, {WORLD_DENSE, 12}, {WORLD_TINY | WORLD_VOLATILE, 60}, {WORLD_STRIDED | WORLD_FOREIGN, 30}};

    for (uint64_t seed = 1; seed <= seeds; seed++)
        for (size_t i = 0; i < sizeof mixes / sizeof mixes[0]; i++) {
            struct world w;
            world_make(&w, rig, 0, seed, mixes[i].kinds, mixes[i].n);
            save_random(&w);
            world_free(&w);
        }
}

void test_random_layouts(void **state)
{
    random_worlds(*state, 2);
}

void test_without_kernels(void **state)
{
    struct rig *rig = *state;
    char text[512];
    struct world w;

    if (!rig->shim)
        skip();
    uint64_t batches = rig->calls("cudaMemcpyBatchAsync");
    for (uint64_t seed = 11; seed <= 12; seed++) {
        rig->fail_call("cudaLibraryLoadData", 1, CUDA_E_NO_KERNEL_IMAGE);
        world_make(&w, rig, 0, seed, seed == 11 ? WORLD_TINY | WORLD_DENSE : WORLD_ALL, seed == 11 ? MAX_SLICES : 40);
        save_random(&w);
        rig->ops->describe(w.device, text, sizeof text);
        assert_non_null(strstr(text, "load the kernels"));
        world_free(&w);
    }
    assert_true(rig->calls("cudaMemcpyBatchAsync") > batches); /* many small ones go together */
}

/* Batches name pages by their addresses on the host, which not every device knows. */
void test_pages_by_other_addresses(void **state)
{
    struct rig *rig = *state;
    struct world w;

    if (!rig->shim)
        skip();
    rig->fail_call("cudaLibraryLoadData", 1, CUDA_E_NO_KERNEL_IMAGE);
    rig->fail_call("cudaHostGetDevicePointer", 1, CUDA_E_INVALID_VALUE);
    uint64_t batches = rig->calls("cudaMemcpyBatchAsync");
    world_make(&w, rig, 0, 11, WORLD_TINY | WORLD_DENSE, MAX_SLICES); /* without kernels they go together, else */
    save_random(&w);
    assert_int_equal(rig->calls("cudaMemcpyBatchAsync"), batches);
    world_free(&w);
}

/* Blocks as small as they get: slices are cut in their midst. */
void test_little_staging(void **state)
{
    struct rig *rig = *state;
    struct cairn_device_options options = {.size = sizeof options, .staging_bytes = 8 * MIB + MIB / 2};
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct world w;

    world_lay_out(&w, rig, 0, 21, WORLD_TINY | WORLD_STRIDED | WORLD_FOREIGN, 60);
    for (uint32_t i = 0; i < w.layout.nslices; i++) /* one that is larger than a block */
        assert_true(w.slices[i].bytes > 0);
    if (rig->ops->open(&options, &w.device, &err) < 0 || world_pin(&w, &err) < 0 ||
        rig->ops->plan(w.device, &w.layout, &w.plan, &err) < 0)
        fail_msg("%s", err.message);
    save_random(&w);
    world_free(&w);
}

static void check_sums(const struct world *w, const struct cairn_device_sum *sums)
{
    for (uint32_t p = 0; p < w->layout.nparts; p++) {
        struct cairn_device_sum sum = w->alone[p] ? world_sum(w, p) : (struct cairn_device_sum){0};
        assert_int_equal(sums[p].low, sum.low);
        assert_int_equal(sums[p].high, sum.high);
    }
}

void test_sums(void **state)
{
    struct cairn_device_progress progress;
    struct world w;

    for (uint64_t seed = 31; seed <= 34; seed++) {
        world_make(&w, *state, 0, seed, seed % 2 ? WORLD_ALL : WORLD_DENSE | WORLD_VOLATILE, 30);
        w.sum_seed = seed * 0x123456789abcdefu;
        struct cairn_device_copy *copy = save_and_check(&w, CAIRN_DEVICE_SUMS, &progress);
        assert_null(progress.skipped);
        if (progress.sums) /* without kernels there are none */
            check_sums(&w, progress.sums);
        else
            assert_false(w.rig->shim);
        w.rig->ops->copy_free(copy);
        world_free(&w);
    }
}

/* Junk in all pages: what is skipped keeps it. */
static void expect_junk(struct world *w, const struct cairn_device_sum *held)
{
    for (uint32_t p = 0; p < w->layout.nparts; p++) {
        struct cairn_device_sum sum = world_sum(w, p);
        if (!w->alone[p] || sum.low != held[p].low || sum.high != held[p].high)
            continue;
        memcpy(w->expect + ((unsigned char *)w->page[p] - w->arena), w->page[p], MIB);
    }
}

static void change_some(struct world *w)
{
    for (uint32_t i = 0; i < w->layout.nslices; i += 3) {
        struct buffer *b = &w->buffers[i];
        b->host[b->first_at] ^= 1;
        assert_int_equal(w->rig->cuda.copy(b->memory, b->host, b->bytes, CUDA_HOST_TO_DEVICE, w->stream), CUDA_OK);
    }
}

static uint64_t skip_rounds(struct world *w, struct cairn_device_sum *held)
{
    struct cairn_device_progress progress;
    uint64_t skipped = 0;

    for (int round = 0; round < 4; round++) {
        w->held = held;
        if (round > 1)
            change_some(w);
        world_pages(w, round % 2);
        expect_junk(w, held);
        struct cairn_device_copy *copy = save_and_check(w, CAIRN_DEVICE_SKIP, &progress);
        if (progress.sums)
            memcpy(held, progress.sums, w->layout.nparts * sizeof *held);
        skipped += progress.skipped_bytes;
        uint64_t bytes = 0;
        for (uint32_t p = 0; p < w->layout.nparts && progress.skipped; p++)
            bytes += progress.skipped[p] ? w->part_len[p] : 0;
        assert_int_equal(progress.skipped_bytes, bytes);
        w->rig->ops->copy_free(copy);
    }
    return skipped;
}

void test_skip(void **state)
{
    const struct rig *rig = *state;
    uint64_t skipped = 0;
    struct world w;

    for (uint64_t seed = 41; seed <= 43; seed++) {
        struct cairn_device_sum held[MAX_PARTS] = {{0, 0}};
        world_make(&w, *state, 0, seed, seed % 2 ? WORLD_ALL : WORLD_DENSE, 30);
        w.sum_seed = seed;
        skipped += skip_rounds(&w, held);
        world_free(&w);
    }
    assert_true(skipped > 0 || !rig->shim);
}

void test_nothing_is_left(void **state)
{
    struct rig *rig = *state;
    struct shim_left left;

    if (!rig->shim)
        skip();
    rig->left(&left);
    assert_int_equal(left.allocations, 0);
    assert_int_equal(left.host_allocations, 0);
    assert_int_equal(left.registrations, 0);
    assert_int_equal(left.streams, 0);
    assert_int_equal(left.events, 0);
    assert_int_equal(left.graphs, 0);
    assert_int_equal(left.libraries, 0);
    assert_int_equal(left.contexts, 0);
}

#define TEST(function_) cmocka_unit_test_prestate(function_, &rig)
int main(int argc, char **argv)
{
    static struct rig rig;
    const struct CMUnitTest tests[] = {
        TEST(test_random_layouts),
        TEST(test_without_kernels),
        TEST(test_pages_by_other_addresses),
        TEST(test_little_staging),
        TEST(test_sums),
        TEST(test_skip),
        TEST(test_copies_wait_for_the_producer),
        TEST(test_volatile_may_change_at_once),
        TEST(test_fence_holds_writers_back),
        TEST(test_fence_in_a_graph),
        TEST(test_two_saves_under_way),
        TEST(test_volatile_of_two_saves),
        TEST(test_random_order),
        TEST(test_time_on_device),
        TEST(test_older_callers),
        TEST(test_pack),
        TEST(test_pack_two_saves),
        TEST(test_pack_waits),
        TEST(test_pack_cannot),
        TEST(test_pack_beside_volatile),
        TEST(test_pack_is_refused),
        TEST(test_few_calls),
        TEST(test_loads),
        TEST(test_loads_when_busy),
        TEST(test_captures_go_on),
        TEST(test_captured_stream_is_refused),
        TEST(test_contexts_of_others),
        TEST(test_pending_errors_stay),
        TEST(test_memory_that_is_refused),
        TEST(test_threads),
        TEST(test_nothing_is_left), /* calls that give back may fail from here on */
        TEST(test_each_call_fails_once),
        TEST(test_each_call_fails_when_packing),
        TEST(test_lost_devices),
        TEST(test_work_that_fails),
        TEST(test_volatile_does_not_fit),
        TEST(test_no_device_memory),
    };

    if (argc < 2)
        return 2;
    rig_open(&rig, argv[1]);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rig_close(&rig);
    return failed;
}
