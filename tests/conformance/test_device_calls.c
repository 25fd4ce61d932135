/* SPDX-License-Identifier: Apache-2.0 */
/* The host has 2 ms for a save of any size: so many calls of the runtime, and not one for each tensor. Nothing is
 * copied here: the device is lost before its work begins, and memory is an address only. */
#include "tests/conformance/device_tests.h"
#include "tests/conformance/device_world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <cmocka.h>

#define MOST_CALLS 500
#define MOST_CALLS_SKIPPING 1000

struct big {
    const struct rig *rig;
    struct cairn_device_slice *slices;
    const void **data;
    void **page;
    uint32_t *part_len;
    uint8_t *alone, *width;
    uint64_t *length;
    struct cairn_device_layout layout;
    char *memory, *arena;
    uint64_t memory_bytes, arena_bytes;
    cuda_stream stream;
};

/* n slices of so many bytes; every third has another's bytes behind it, when they are mixed; pages lie in stretches of
 * so many. */
static void make(struct big *b, const struct rig *rig, uint32_t n, uint64_t bytes, bool mixed, uint32_t stretch)
{
    uint64_t step = (bytes + 63) / 64 * 64, nparts = (n * (step + (mixed ? 64 : 0)) + MIB - 1) / MIB + 1, at = 0;
    void *memory = NULL;

    *b = (struct big){.rig = rig, .memory_bytes = n * step, .arena_bytes = 2 * nparts * MIB};
    b->slices = calloc(n, sizeof *b->slices);
    b->data = calloc(n, sizeof *b->data);
    b->length = calloc(n, sizeof *b->length);
    b->page = calloc(nparts, sizeof *b->page);
    b->part_len = calloc(nparts, sizeof *b->part_len);
    b->alone = calloc(nparts, 1);
    b->width = malloc(nparts);
    memset(b->width, 2, nparts);
    rig->memory(0, b->memory_bytes + 1024 * MIB);
    assert_int_equal(rig->cuda.malloc(&memory, b->memory_bytes), CUDA_OK);
    b->memory = memory;
    b->arena = mmap(NULL, b->arena_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    for (uint32_t i = 0; i < n; i++) {
        b->length[i] = bytes;
        b->data[i] = b->memory + i * step;
        b->slices[i] = (struct cairn_device_slice){
            .dtype = CAIRN_U8, .ndim = 1, .length = &b->length[i], .image_offset = at, .bytes = bytes};
        at += step + (mixed && i % 3 == 0 ? 64 : 0);
    }
    for (uint64_t p = 0; p < nparts; p++) {
        b->part_len[p] = (uint32_t)(at >= (p + 1) * MIB ? MIB : at > p * MIB ? at - p * MIB : 0);
        b->alone[p] = !mixed;
        b->page[p] = b->arena + (p + p / stretch) * MIB;
    }
    b->layout = (struct cairn_device_layout){.size = sizeof b->layout,
                                             .slices = b->slices,
                                             .nslices = n,
                                             .nparts = (uint32_t)nparts,
                                             .part_len = b->part_len,
                                             .alone = b->alone,
                                             .width = b->width};
    assert_int_equal(rig->cuda.stream_create(&b->stream, CUDA_STREAM_NON_BLOCKING, 0), CUDA_OK);
}

static void drop(struct big *b)
{
    munmap(b->arena, b->arena_bytes);
    assert_int_equal(b->rig->cuda.free(b->memory), CUDA_OK);
    assert_int_equal(b->rig->cuda.stream_destroy(b->stream), CUDA_OK);
    free(b->slices);
    free(b->data);
    free(b->length);
    free(b->page);
    free(b->part_len);
    free(b->alone);
    free(b->width);
}

static void count(struct big *b, const char *what, uint32_t flags)
{
    const struct cairn_device_ops *ops = b->rig->ops;
    struct cairn_device_options options = {.size = sizeof options, .staging_bytes = 256 * MIB};
    struct cairn_device_sum *held = calloc(b->layout.nparts, sizeof *held);
    struct cairn_device_save save = {
        .size = sizeof save, .data = b->data, .page = b->page, .stream = b->stream, .flags = flags, .held = held};
    struct cairn_device_progress progress = {.size = sizeof progress};
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_device *device = NULL;
    struct cairn_device_plan *plan = NULL;
    struct cairn_device_copy *copy = NULL;
    struct timespec t0, t1;

    if (ops->open(&options, &device, &err) < 0 || ops->pin(device, b->arena, b->arena_bytes, &err) < 0 ||
        ops->plan(device, &b->layout, &plan, &err) < 0)
        fail_msg("%s", err.message);
    b->rig->drain();
    b->rig->hold(NULL);
    uint64_t calls = b->rig->calls("*");
    clock_gettime(CLOCK_MONOTONIC, &t0);
    if (ops->save(plan, &save, &copy, &err) < 0)
        fail_msg("%s", err.message);
    clock_gettime(CLOCK_MONOTONIC, &t1);
    calls = b->rig->calls("*") - calls;
    printf("%s: %llu calls, %.2f ms with the shim's\n", what, (unsigned long long)calls,
           (double)(t1.tv_sec - t0.tv_sec) * 1e3 + (double)(t1.tv_nsec - t0.tv_nsec) / 1e6);
    b->rig->fail_work(1, CUDA_E_ILLEGAL_ADDRESS);
    b->rig->release(NULL);
    while (!progress.ended)
        (void)ops->progress(copy, &progress, &err);
    b->rig->drain();
    b->rig->reset();
    ops->copy_free(copy);
    ops->plan_free(plan);
    ops->close(device);
    free(held);
    if (calls > (flags & (CAIRN_DEVICE_SKIP | CAIRN_DEVICE_PACK) ? MOST_CALLS_SKIPPING : MOST_CALLS))
        fail_msg("%s: %llu calls of the runtime", what, (unsigned long long)calls);
}

void test_few_calls(void **state)
{
    const struct rig *rig = *state;
    static const struct {
        const char *what;
        uint32_t n;
        uint64_t bytes;
        bool mixed;
        uint32_t stretch;
        uint32_t flags;
    } cases[] = {
        {"10,000 of 3.2 MiB", 10000, 3355443, false, UINT32_MAX, 0},
        {"10,000 of 3.2 MiB, pages in stretches of 4", 10000, 3355443, true, 4, 0},
        {"10,000 of 200 KiB, between others", 10000, 200 << 10, true, 4, 0},
        {"10,000 of 1,000 bytes, between others", 10000, 1000, true, 4, 0},
        {"100 of 320 MiB, skipped where held", 100, 320 * MIB, false, 4, CAIRN_DEVICE_SKIP},
        {"10,000 of 3.2 MiB, skipped where held", 10000, 3355443, false, 4, CAIRN_DEVICE_SKIP},
        {"100 of 320 MiB, packed and summed", 100, 320 * MIB, false, 4, CAIRN_DEVICE_PACK | CAIRN_DEVICE_SUMS},
        {"10,000 of 3.2 MiB, packed and summed", 10000, 3355443, false, 4, CAIRN_DEVICE_PACK | CAIRN_DEVICE_SUMS},
    };

    if (!rig->shim)
        skip();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct big b;
        make(&b, rig, cases[i].n, cases[i].bytes, cases[i].mixed, cases[i].stretch);
        count(&b, cases[i].what, cases[i].flags);
        drop(&b);
    }
}
