/* SPDX-License-Identifier: Apache-2.0 */
/* Restores: runs of every shape, from pinned memory and from any other, exactly where they belong. */
#include "tests/conformance/device_tests.h"
#include "tests/conformance/device_world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <cmocka.h>

#define TARGET (8 * MIB)
#define SOURCE (24 * MIB) /* more than a loader has room for */
#define RUNS 64

struct loads {
    struct world w; /* for its device */
    char *memory;   /* of the device */
    unsigned char *expect, *source, *pinned;
    struct cairn_device_run runs[RUNS];
    uint32_t nruns;
};

static uint64_t within(struct loads *l, uint64_t low, uint64_t high)
{
    return low + world_random(&l->w) % (high - low + 1);
}

static void setup(struct loads *l, const struct rig *rig, uint64_t seed)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    void *memory = NULL;

    world_make(&l->w, rig, 0, seed, WORLD_TINY, 4);
    assert_int_equal(rig->cuda.malloc(&memory, TARGET), CUDA_OK);
    l->memory = memory;
    l->expect = malloc(TARGET);
    l->source = malloc(SOURCE);
    l->pinned = mmap(NULL, SOURCE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (uint64_t i = 0; i < SOURCE; i += 8) {
        uint64_t r = world_random(&l->w);
        memcpy(l->source + i, &r, 8);
    }
    memcpy(l->pinned, l->source, SOURCE);
    memset(l->expect, 0x77, TARGET);
    assert_int_equal(rig->cuda.copy(l->memory, l->expect, TARGET, CUDA_HOST_TO_DEVICE, l->w.stream), CUDA_OK);
    assert_int_equal(rig->cuda.stream_sync(l->w.stream), CUDA_OK);
    if (rig->ops->pin(l->w.device, l->pinned, SOURCE, &err) < 0)
        fail_msg("%s", err.message);
}

static void teardown(struct loads *l)
{
    l->w.rig->ops->unpin(l->w.device, l->pinned, SOURCE);
    assert_int_equal(l->w.rig->cuda.free(l->memory), CUDA_OK);
    free(l->expect);
    free(l->source);
    munmap(l->pinned, SOURCE);
    world_free(&l->w);
}

/* A run into [at, at + room) of the target. */
static uint64_t add_run(struct loads *l, uint64_t at, uint64_t room)
{
    static const uint32_t elems[] = {1, 2, 4, 8, 12, 100, 4096, 70000};
    struct cairn_device_run *r = &l->runs[l->nruns++];
    uint32_t elem = elems[within(l, 0, 7)];
    uint64_t step = within(l, 0, 1) ? elem : elem + within(l, 0, 3 * elem);
    uint64_t fit = room < elem ? 1 : (room - elem) / step + 1, count = within(l, 1, fit < 30000 ? fit : 30000);
    uint64_t from = within(l, 0, SOURCE - count * elem);
    int64_t stride = (int64_t)step;
    uint64_t first = at;

    if (within(l, 0, 7) == 0) { /* backwards */
        first = at + (count - 1) * step;
        stride = -stride;
    }
    *r = (struct cairn_device_run){.from = (within(l, 0, 1) ? l->pinned : l->source) + from,
                                   .to = l->memory + first,
                                   .count = count,
                                   .stride_bytes = stride,
                                   .elem = elem};
    for (uint64_t i = 0; i < count; i++)
        memcpy(l->expect + first + (int64_t)i * stride, l->source + from + i * elem, elem);
    return (count - 1) * step + elem;
}

static void check(struct loads *l)
{
    const struct cuda *c = &l->w.rig->cuda;
    unsigned char *got = malloc(TARGET);

    assert_int_equal(c->copy(got, l->memory, TARGET, CUDA_DEVICE_TO_HOST, l->w.stream), CUDA_OK);
    assert_int_equal(c->stream_sync(l->w.stream), CUDA_OK);
    for (uint64_t i = 0; i < TARGET; i++)
        if (got[i] != l->expect[i])
            fail_msg("byte %llu on the device is %02x, not %02x", (unsigned long long)i, got[i], l->expect[i]);
    free(got);
}

static void wait_for(const struct loads *l, struct cairn_device_loader *loader, uint64_t ticket)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    int r = 0;

    for (int i = 0; i < 1000000 && r == 0; i++) {
        r = l->w.rig->ops->loaded(loader, ticket, &err);
        if (r == 0)
            nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
    if (r <= 0)
        fail_msg("ticket %llu: %s", (unsigned long long)ticket, r < 0 ? err.message : "never ended");
}

/* As a restore does: when it is busy, it waits for what is under way. */
static uint64_t load(const struct loads *l, struct cairn_device_loader *loader, uint64_t last)
{
    const struct cairn_device_ops *ops = l->w.rig->ops;
    struct cairn_error err = CAIRN_ERROR_INIT;
    uint64_t ticket = 0;
    int r = ops->load(loader, l->runs, l->nruns, &ticket, &err);

    if (r == CAIRN_E_BUSY) {
        wait_for(l, loader, last);
        r = ops->load(loader, l->runs, l->nruns, &ticket, &err);
    }
    if (r < 0)
        fail_msg("%s", err.message);
    assert_true(ticket > last);
    for (uint32_t i = 0; i < l->nruns; i++) /* what is not pinned has been read */
        if ((const unsigned char *)l->runs[i].from >= l->source &&
            (const unsigned char *)l->runs[i].from < l->source + SOURCE)
            memset((void *)(uintptr_t)l->runs[i].from, 0x11, l->runs[i].count * l->runs[i].elem);
    memcpy(l->source, l->pinned, SOURCE);
    return ticket;
}

static void load_all(struct loads *l)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_device_loader *loader;
    uint64_t ticket = 0;

    if (l->w.rig->ops->loader(l->w.device, &loader, &err) < 0)
        fail_msg("%s", err.message);
    for (uint64_t at = 0; at + 70000 < TARGET;) {
        uint64_t n = within(l, 1, RUNS);
        for (l->nruns = 0; l->nruns < n && at + 70000 < TARGET;)
            at += add_run(l, at, within(l, 1, TARGET - at)) + within(l, 0, 100);
        ticket = load(l, loader, ticket);
    }
    wait_for(l, loader, ticket);
    l->w.rig->ops->loader_free(loader);
    check(l);
}

void test_loads(void **state)
{
    struct rig *rig = *state;
    struct loads *l = calloc(1, sizeof *l);

    for (int kernels = 0; kernels < 2; kernels++) {
        if (rig->shim && !kernels)
            rig->fail_call("cudaLibraryLoadData", 1, CUDA_E_NO_KERNEL_IMAGE);
        setup(l, rig, 71 + (uint64_t)kernels);
        load_all(l);
        teardown(l);
    }
    free(l);
}

/* Nothing ends: it says so, and goes on when something has. */
void test_loads_when_busy(void **state)
{
    struct rig *rig = *state;
    struct loads *l = calloc(1, sizeof *l);
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_device_loader *loader;
    uint64_t ticket = 0;
    int r = 0;

    if (!rig->shim) {
        free(l);
        skip();
    }
    setup(l, rig, 73);
    if (rig->ops->loader(l->w.device, &loader, &err) < 0)
        fail_msg("%s", err.message);
    rig->hold(NULL);
    for (unsigned i = 0; i < 10000 && r == 0; i++) {
        l->runs[0] = (struct cairn_device_run){
            .from = l->source + i * 4096, .to = l->memory + i * 4096, .count = 1, .elem = 3 * 65536};
        r = rig->ops->load(loader, l->runs, 1, &ticket, &err);
        if (r == 0)
            memcpy(l->expect + i * 4096, l->source + i * 4096, 3 * 65536);
    }
    assert_int_equal(r, CAIRN_E_BUSY);
    assert_true(ticket > 1);
    assert_int_equal(rig->ops->loaded(loader, 1, &err), 0);
    rig->release(NULL);
    wait_for(l, loader, ticket);
    rig->ops->loader_free(loader);
    check(l);
    teardown(l);
    free(l);
}
