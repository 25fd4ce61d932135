/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/conformance/device_world.h"

#include "core/base/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cmocka.h>

static void good(const struct world *w, cuda_error code)
{
    if (code)
        fail_msg("the test's own call: %s", w->rig->cuda.error_string(code));
}

/* ---- layouts ------------------------------------------------------------------------------------ */

uint64_t world_random(struct world *w)
{
    w->seed ^= w->seed << 13;
    w->seed ^= w->seed >> 7;
    return w->seed ^= w->seed << 17;
}

static uint64_t within(struct world *w, uint64_t low, uint64_t high)
{
    return low + world_random(w) % (high - low + 1);
}

static void fill(struct world *w, unsigned char *p, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        p[i] = (unsigned char)(world_random(w) >> 20);
}

static const struct {
    int dtype;
    unsigned bytes;
} dtypes[] = {{CAIRN_U8, 1}, {CAIRN_BF16, 2}, {CAIRN_F32, 4}, {CAIRN_F64, 8}};

/* Dimensions lie in memory in any order, some with room behind each element, some backwards, some with no step. */
static uint64_t make_strides(struct world *w, unsigned i, unsigned elem, uint64_t *ret_first)
{
    struct cairn_device_slice *s = &w->slices[i];
    unsigned order[4] = {0, 1, 2, 3};
    uint64_t span = elem, first = 0;

    for (unsigned k = s->ndim; k > 1; k--) {
        unsigned j = (unsigned)(world_random(w) % k), t = order[k - 1];
        order[k - 1] = order[j];
        order[j] = t;
    }
    for (unsigned k = 0; k < s->ndim; k++) {
        unsigned d = order[k];
        uint64_t step = span + (world_random(w) % 3 == 0 ? elem * within(w, 0, 5) : 0);
        unsigned how = (unsigned)(world_random(w) % 16);
        w->stride[i][d] = how == 0 ? 0 : how < 3 ? -(int64_t)step : (int64_t)step;
        if (how == 0)
            continue;
        if (how < 3)
            first += step * (w->length[i][d] - 1);
        span = step * w->length[i][d];
    }
    s->stride_bytes = w->stride[i];
    *ret_first = first;
    return span;
}

static void make_slice(struct world *w, unsigned i, unsigned kinds, uint64_t at)
{
    struct cairn_device_slice *s = &w->slices[i];
    struct buffer *b = &w->buffers[i];
    unsigned k = (unsigned)(world_random(w) % 4), pick = 0;
    uint64_t n = 1, ahead = within(w, 0, 1) ? 0 : dtypes[k].bytes * within(w, 1, 9);

    do
        pick = 1u << (world_random(w) % 3);
    while (!(pick & kinds));
    *s = (struct cairn_device_slice){.dtype = dtypes[k].dtype, .image_offset = at, .length = w->length[i]};
    s->ndim = pick == WORLD_STRIDED ? (uint32_t)within(w, 1, 4) : (uint32_t)within(w, 0, 2);
    for (uint32_t d = 0; d < s->ndim; d++) {
        uint64_t most = pick == WORLD_DENSE   ? 700
                        : pick == WORLD_TINY  ? 12
                        : s->ndim > 3         ? 14
                        : s->ndim > 2         ? 40
                        : kinds & WORLD_LARGE ? 700
                                              : 200;
        n *= w->length[i][d] = within(w, 1, most);
    }
    s->bytes = n * dtypes[k].bytes;
    b->bytes = s->bytes;
    b->first_at = 0;
    if (pick == WORLD_STRIDED)
        b->bytes = make_strides(w, i, dtypes[k].bytes, &b->first_at);
    b->first_at += ahead;
    b->bytes += ahead;
    if ((kinds & WORLD_VOLATILE) && world_random(w) % 3 == 0) {
        s->flags |= CAIRN_TENSOR_VOLATILE;
        w->volatile_bytes += s->bytes;
    }
}

static void mark(struct world *w, uint64_t at, uint64_t bytes, bool foreign)
{
    for (uint64_t end = at + bytes; at < end;) {
        uint64_t part = at / MIB, stop = (part + 1) * MIB < end ? (part + 1) * MIB : end;
        if (stop - part * MIB > w->part_len[part])
            w->part_len[part] = (uint32_t)(stop - part * MIB);
        w->alone[part] = (uint8_t)(w->alone[part] | !foreign);
        w->foreign[part] = (uint8_t)(w->foreign[part] | foreign);
        at = stop;
    }
}

static void make_layout(struct world *w, unsigned kinds, unsigned n)
{
    uint64_t at = 0;

    for (unsigned i = 0; i < n && at < (MAX_PARTS - 8) * MIB; i++) {
        if ((kinds & WORLD_FOREIGN) && world_random(w) % 9 == 0) {
            uint64_t bytes = within(w, 1, world_random(w) % 8 ? 3000 : 2 * MIB);
            mark(w, at, bytes, true);
            at = (at + bytes + 63) / 64 * 64;
        }
        if (world_random(w) % 8 == 0)
            at = (at + MIB - 1) / MIB * MIB; /* another dtype: its parts begin anew */
        make_slice(w, i, kinds, at);
        mark(w, at, w->slices[i].bytes, false);
        at = (at + w->slices[i].bytes + 63) / 64 * 64;
        w->layout.nslices = i + 1;
    }
    w->layout.size = sizeof w->layout;
    w->layout.slices = w->slices;
    w->layout.nparts = (uint32_t)((at + MIB - 1) / MIB);
    w->layout.part_len = w->part_len;
    w->layout.alone = w->alone;
    for (uint32_t p = 0; p < w->layout.nparts; p++)
        w->alone[p] = w->alone[p] && !w->foreign[p];
}

void world_lay_out(struct world *w, const struct rig *rig, int ordinal, uint64_t seed, unsigned kinds, unsigned n)
{
    *w = (struct world){.rig = rig, .ordinal = ordinal, .seed = seed * 0x9e3779b97f4a7c15u + 1};
    make_layout(w, kinds, n);
    good(w, rig->cuda.set_device(ordinal));
    good(w, rig->cuda.stream_create(&w->stream, CUDA_STREAM_NON_BLOCKING, 0));
    for (uint32_t i = 0; i < w->layout.nslices; i++) {
        struct buffer *b = &w->buffers[i];
        void *memory = NULL;
        good(w, rig->cuda.malloc(&memory, b->bytes));
        b->memory = memory;
        b->host = malloc(b->bytes);
        w->data[i] = b->first = b->memory + b->first_at;
    }
    w->arena = mmap(NULL, MAX_PAGES * MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    w->expect = mmap(NULL, MAX_PAGES * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    world_change(w);
    world_pages(w, 0);
}

/* In registrations that pages run over. */
int world_pin(struct world *w, struct cairn_error *err)
{
    int r = 0;

    for (uint64_t at = 0; at < MAX_PAGES && r == 0; at += 7)
        r = w->rig->ops->pin(w->device, w->arena + at * MIB, (MAX_PAGES - at < 7 ? MAX_PAGES - at : 7) * MIB, err);
    return r;
}

/* With blocks so small that a save takes several, in both streams; and as much again for what is packed. */
int world_open(struct world *w, struct cairn_error *err)
{
    struct cairn_device_options options = {.size = sizeof options,
                                           .ordinal = (uint32_t)w->ordinal,
                                           .staging_bytes = (w->volatile_bytes + 64 * 256) / MIB * MIB +
                                                            (w->layout.width ? 18 : 9) * MIB};
    const struct cairn_device_ops *ops = w->rig->ops;
    int r = ops->open(&options, &w->device, err);

    if (r == 0)
        r = world_pin(w, err);
    return r < 0 ? r : ops->plan(w->device, &w->layout, &w->plan, err);
}

void world_close(struct world *w)
{
    if (w->plan)
        w->rig->ops->plan_free(w->plan);
    if (w->device)
        w->rig->ops->close(w->device);
    w->plan = NULL;
    w->device = NULL;
}

void world_clear(struct world *w)
{
    const struct cuda *c = &w->rig->cuda;

    good(w, c->set_device(w->ordinal));
    good(w, c->stream_sync(w->stream));
    good(w, c->stream_destroy(w->stream));
    for (uint32_t i = 0; i < w->layout.nslices; i++) {
        good(w, c->free(w->buffers[i].memory));
        free(w->buffers[i].host);
    }
    munmap(w->arena, MAX_PAGES * MIB);
    munmap(w->expect, MAX_PAGES * MIB);
}

void world_make(struct world *w, const struct rig *rig, int ordinal, uint64_t seed, unsigned kinds, unsigned n)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    world_lay_out(w, rig, ordinal, seed, kinds, n);
    if (world_open(w, &err) < 0)
        fail_msg("%s", err.message);
}

void world_free(struct world *w)
{
    world_close(w);
    world_clear(w);
}

void world_change(struct world *w)
{
    for (uint32_t i = 0; i < w->layout.nslices; i++) {
        struct buffer *b = &w->buffers[i];
        fill(w, b->host, b->bytes);
        good(w, w->rig->cuda.copy(b->memory, b->host, b->bytes, CUDA_HOST_TO_DEVICE, w->stream));
    }
}

/* ---- pages and what they have to be --------------------------------------------------------------- */

static void put(struct world *w, uint64_t at, unsigned char byte)
{
    w->expect[(unsigned char *)w->page[at / MIB] - w->arena + at % MIB] = byte;
}

/* The slice's elements in row-major order, read one by one. */
static void expect_slice(struct world *w, uint32_t i)
{
    const struct cairn_device_slice *s = &w->slices[i];
    const struct buffer *b = &w->buffers[i];
    uint64_t n = 1, elem;

    for (uint32_t d = 0; d < s->ndim; d++)
        n *= s->length[d];
    elem = s->bytes / n;
    for (uint64_t k = 0; k < n; k++) {
        int64_t from = (int64_t)b->first_at, index = (int64_t)k;
        if (!s->stride_bytes)
            from += (int64_t)(k * elem);
        for (uint32_t d = s->ndim; d > 0 && s->stride_bytes; d--) {
            from += index % (int64_t)s->length[d - 1] * s->stride_bytes[d - 1];
            index /= (int64_t)s->length[d - 1];
        }
        for (uint64_t e = 0; e < elem; e++)
            put(w, s->image_offset + k * elem + e, b->host[(uint64_t)from + e]);
    }
}

static void expect_all(struct world *w)
{
    for (uint32_t p = 0; p < w->layout.nparts; p++)
        if (w->alone[p])
            memset(w->expect + ((unsigned char *)w->page[p] - w->arena), 0, w->part_len[p]);
    for (uint32_t i = 0; i < w->layout.nslices; i++)
        expect_slice(w, i);
}

void world_pages(struct world *w, int half)
{
    unsigned char *base = w->arena + (uint64_t)half * MAX_PARTS * MIB;
    uint64_t next = 0, used, before = w->used[half];

    memset(w->page, 0, sizeof w->page);
    for (uint32_t p = 0; p < w->layout.nparts; p++) { /* runs that go on, and jumps */
        next += next + 1 < MAX_PARTS - (w->layout.nparts - p) && world_random(w) % 4 == 0;
        w->page[p] = base + next++ * MIB;
    }
    w->used[half] = next < MAX_PARTS ? next + 1 : next;
    used = before > w->used[half] ? before : w->used[half];
    uint32_t a = (uint32_t)(world_random(w) % w->layout.nparts), b = (uint32_t)(world_random(w) % w->layout.nparts);
    void *t = w->page[a]; /* and some that go back */
    w->page[a] = w->page[b];
    w->page[b] = t;
    memset(base, (int)(world_random(w) & 0xff) | 1, used * MIB);
    memcpy(w->expect + (base - w->arena), base, used * MIB);
    expect_all(w);
}

int world_save(struct world *w, uint32_t flags, struct cairn_device_copy **ret_copy, struct cairn_error *err)
{
    struct cairn_device_save save = {.size = sizeof save,
                                     .data = w->data,
                                     .page = w->page,
                                     .stream = w->stream,
                                     .flags = flags,
                                     .held = w->held,
                                     .seed = w->sum_seed};

    return w->rig->ops->save(w->plan, &save, ret_copy, err);
}

int world_wait(const struct world *w, struct cairn_device_copy *copy, struct cairn_device_progress *ret_progress,
               struct cairn_error *err)
{
    uint32_t parts = 0;
    int r = 0;

    for (int i = 0; i < 1000000; i++) {
        *ret_progress = (struct cairn_device_progress){.size = sizeof *ret_progress};
        r = w->rig->ops->progress(copy, ret_progress, err);
        if (ret_progress->parts < parts || ret_progress->parts > w->layout.nparts)
            fail_msg("progress went from %u to %u of %u parts", parts, ret_progress->parts, w->layout.nparts);
        parts = ret_progress->parts;
        if (ret_progress->ended)
            return r;
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
    fail_msg("the copies never ended");
    return r;
}

bool world_is_there(const struct world *w)
{
    bool same = true;

    for (uint64_t half = 0; half < 2 && same; half++) /* what was used of each, and a page behind it */
        same = memcmp(w->arena + half * MAX_PARTS * MIB, w->expect + half * MAX_PARTS * MIB,
                      (w->used[half] < MAX_PARTS ? w->used[half] + 1 : MAX_PARTS) * MIB) == 0;
    return same;
}

void world_check(const struct world *w)
{
    if (world_is_there(w))
        return;
    for (uint64_t i = 0; i < MAX_PAGES * MIB; i++) {
        if (w->arena[i] == w->expect[i])
            continue;
        for (uint32_t p = 0; p < w->layout.nparts; p++)
            if (w->page[p] == w->arena + i / MIB * MIB)
                fail_msg("byte %llu of the image is %02x, not %02x (seed's layout: %u slices)",
                         (unsigned long long)(p * MIB + i % MIB), w->arena[i], w->expect[i], w->layout.nslices);
        fail_msg("byte %llu of the arena, in no page of the save, was touched: %02x, not %02x", (unsigned long long)i,
                 w->arena[i], w->expect[i]);
    }
}

struct cairn_device_sum world_sum(const struct world *w, uint32_t part)
{
    const unsigned char *page = w->expect + ((unsigned char *)w->page[part] - w->arena);
    XXH128_hash_t h = XXH3_128bits_withSeed(page, w->part_len[part], w->sum_seed);

    return (struct cairn_device_sum){.low = h.low64, .high = h.high64};
}
