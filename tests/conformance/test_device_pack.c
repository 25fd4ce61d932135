/* SPDX-License-Identifier: Apache-2.0 */
/* Parts that are packed on the device: what lies in their pages is what codec-float makes of them, and everything else
 * of a save is as without. */
#include "tests/conformance/device_tests.h"
#include "tests/conformance/device_world.h"

#include "part.h"
#include "tests/unit/codec_float/kinds.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

static const int dtypes[9] = {[1] = CAIRN_U8, [2] = CAIRN_BF16, [4] = CAIRN_F32, [8] = CAIRN_F64};

struct packing {
    struct world w;
    uint8_t width[MAX_PARTS];
    uint32_t flags;
    uint32_t told; /* parts that progress has told of */
    unsigned packed, plain;
};

static uint8_t width_of(const struct cairn_device_slice *s)
{
    return s->dtype == CAIRN_U8 ? 1 : s->dtype == CAIRN_BF16 ? 2 : s->dtype == CAIRN_F32 ? 4 : 8;
}

/* Bytes of several kinds, also such as nothing can be made of. */
static void change(struct world *w)
{
    static const enum kind kinds[] = {ZEROS, NOISE, WEIGHTS, WEIGHTS, WEIGHTS, STEPS, RARE};

    for (uint32_t i = 0; i < w->layout.nslices; i++) {
        struct buffer *b = &w->buffers[i];
        enum kind kind = kinds[world_random(w) % (sizeof kinds / sizeof kinds[0])];
        fill(b->host, b->bytes, width_of(&w->slices[i]), kind, world_random(w) | 1);
        assert_int_equal(w->rig->cuda.copy(b->memory, b->host, b->bytes, CUDA_HOST_TO_DEVICE, w->stream), CUDA_OK);
    }
}

/* Most parts have the width of what begins in them last; some another one, or none. */
static void lay_out(struct packing *p, const struct rig *rig, uint64_t seed, unsigned kinds, unsigned n)
{
    static const uint8_t widths[] = {1, 2, 4, 8, 0};

    *p = (struct packing){.told = 0};
    world_lay_out(&p->w, rig, 0, seed, kinds, n);
    for (uint32_t i = 0; i < p->w.layout.nparts; i++)
        p->width[i] = widths[world_random(&p->w) % sizeof widths];
    for (uint32_t i = 0; i < p->w.layout.nslices; i++)
        if (world_random(&p->w) % 8)
            p->width[p->w.slices[i].image_offset / MIB] = width_of(&p->w.slices[i]);
    p->w.layout.width = p->width;
    p->w.sum_seed = seed;
    change(&p->w);
    world_pages(&p->w, 0);
}

static void make(struct packing *p, const struct rig *rig, uint64_t seed, unsigned kinds, unsigned n)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    lay_out(p, rig, seed, kinds, n);
    if (world_open(&p->w, &err) < 0)
        fail_msg("%s", err.message);
}

static struct cairn_device_copy *save(struct packing *p, uint32_t flags)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_device_copy *copy;

    p->told = p->packed = p->plain = 0;
    p->flags = flags;
    if (world_save(&p->w, flags, &copy, &err) < 0)
        fail_msg("%s", err.message);
    return copy;
}

/* A part that is in place, and how it lies there: as encode() has it, and of a page what is behind that is not needed.
 * Afterwards the page has it plain. */
static void open_part(struct packing *p, uint32_t i, uint32_t packed)
{
    static unsigned char want[MIB], plain[MIB];
    struct world *w = &p->w;
    unsigned char *page = w->page[i], *expect = w->expect + (page - w->arena);
    uint32_t len = w->part_len[i], room = (uint32_t)((uint64_t)len * 19 / 20);
    int dtype = dtypes[p->width[i]];
    bool packs = (p->flags & CAIRN_DEVICE_PACK) && w->alone[i] && p->width[i];
    int64_t n = packs ? part_encode(kernel_best(), expect, len, dtype, 0, want, room) : 0;

    if (n != packed)
        fail_msg("part %u of %u bytes: packed to %u, not to %lld", i, len, packed, (long long)n);
    if (memcmp(page, n ? want : expect, n ? (size_t)n : len) != 0)
        fail_msg("part %u of %u bytes, %u packed: is another (width %u, alone %u)", i, len, packed, p->width[i],
                 w->alone[i]);
    p->packed += n > 0;
    p->plain += n == 0;
    if (n == 0)
        return;
    memset(page + n, 0x5a, len - (size_t)n);
    assert_int_equal(part_decode(kernel_best(), page, (size_t)n, dtype, plain, len), 0);
    memcpy(page, plain, len);
}

/* What progress says now. */
static int look(struct packing *p, struct cairn_device_copy *copy, struct cairn_device_progress *progress)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    *progress = (struct cairn_device_progress){.size = sizeof *progress};
    if (p->w.rig->ops->progress(copy, progress, &err) < 0)
        fail_msg("%s", err.message);
    for (; p->told < progress->parts; p->told++)
        if (p->w.alone[p->told]) /* what others have in a page is not there */
            open_part(p, p->told, progress->packed ? progress->packed[p->told] : 0);
    return progress->ended;
}

static void check_bytes(const struct packing *p, const struct cairn_device_progress *progress)
{
    const struct world *w = &p->w;
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < w->layout.nparts; i++)
        if (w->alone[i] && p->width[i])
            bytes += progress->packed && progress->packed[i] ? progress->packed[i] : w->part_len[i];
    for (uint32_t i = 0; i < w->layout.nslices; i++) {
        const struct cairn_device_slice *s = &w->slices[i];
        for (uint64_t at = s->image_offset, end = at + s->bytes, n; at < end; at += n) {
            n = MIB - at % MIB < end - at ? MIB - at % MIB : end - at;
            bytes += w->alone[at / MIB] && p->width[at / MIB] ? 0 : n;
        }
    }
    assert_int_equal(progress->copied_bytes, bytes);
}

static void check_sums(const struct packing *p, const struct cairn_device_sum *sums)
{
    for (uint32_t i = 0; i < p->w.layout.nparts; i++) {
        struct cairn_device_sum sum = p->w.alone[i] ? world_sum(&p->w, i) : (struct cairn_device_sum){0};
        assert_int_equal(sums[i].low, sum.low);
        assert_int_equal(sums[i].high, sum.high);
    }
}

/* Parts are looked at as soon as they are told of, while others are still on their way. */
static void finish(struct packing *p, struct cairn_device_copy *copy)
{
    const uint32_t flags = p->flags;
    struct cairn_device_progress progress;

    for (int i = 0; !look(p, copy, &progress); i++) {
        if (i == 1000000)
            fail_msg("the copies never ended");
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
    assert_int_equal(progress.parts, p->w.layout.nparts);
    assert_null(progress.skipped);
    if (progress.packed)
        check_bytes(p, &progress);
    if (flags & CAIRN_DEVICE_SUMS && p->w.rig->shim)
        check_sums(p, progress.sums);
    else if (!(flags & CAIRN_DEVICE_SUMS))
        assert_null(progress.sums);
    if (p->w.rig->shim && !(flags & CAIRN_DEVICE_PACK))
        assert_null(progress.packed);
    p->w.rig->ops->copy_free(copy);
    world_check(&p->w);
}

static void drop(struct packing *p)
{
    world_free(&p->w);
}

/* Catches a length that is another's, packed bytes of another part or slot, plain bytes that are cut to the room, sums
 * of what was packed, what is told too early, and bytes that are counted though they never crossed the bus. */
void test_pack(void **state)
{
    static const struct {
        unsigned kinds, n;
    } mixes[] = {
        {WORLD_ALL, 30}, {WORLD_DENSE | WORLD_VOLATILE, 20}, {WORLD_STRIDED | WORLD_FOREIGN | WORLD_LARGE, 25}};
    const struct rig *rig = *state;
    unsigned packed = 0, plain = 0;

    for (uint64_t seed = 111; seed < 115; seed++) {
        uint32_t sums = seed % 2 ? CAIRN_DEVICE_SUMS : 0;
        struct packing p;
        make(&p, rig, seed, mixes[seed % 3].kinds, mixes[seed % 3].n);
        if (rig->shim)
            rig->delay(200000, seed);
        finish(&p, save(&p, CAIRN_DEVICE_PACK | sums));
        packed += p.packed;
        plain += p.plain;
        if (seed == 111) { /* and one that does not, of the same plan */
            change(&p.w);
            world_pages(&p.w, 1);
            finish(&p, save(&p, sums));
        }
        if (rig->shim)
            rig->delay(0, 0);
        drop(&p);
    }
    if (rig->shim)
        assert_in_range(packed, 6, 1000);
    assert_in_range(plain, 2, 1000);
}

/* Catches slots that the second save packs into before the first has sent them, tables that two saves share, and the
 * producer's changes in what the first has. */
void test_pack_two_saves(void **state)
{
    const struct rig *rig = *state;
    const uint32_t flags = CAIRN_DEVICE_PACK | CAIRN_DEVICE_SUMS;
    struct cairn_device_progress progress;
    struct packing p, before;

    make(&p, rig, 121, (WORLD_ALL & ~WORLD_TINY) | WORLD_LARGE, 30);
    if (rig->shim)
        rig->delay(300000, 121);
    struct cairn_device_copy *first = save(&p, flags);
    assert_int_equal(rig->ops->fence(p.w.device, p.w.stream, NULL), 0);
    before = p;
    before.w.expect = malloc(MAX_PAGES * MIB);
    memcpy(before.w.expect, p.w.expect, MAX_PAGES * MIB);
    change(&p.w);
    world_pages(&p.w, 1);
    struct cairn_device_copy *second = save(&p, flags);
    while (!look(&before, first, &progress))
        ;
    check_sums(&before, progress.sums);
    rig->ops->copy_free(first);
    finish(&p, second); /* and both halves of the arena are as they have to be */
    if (rig->shim)
        rig->delay(0, 0);
    free(before.w.expect);
    drop(&p);
}

static void copies_plain(struct packing *p)
{
    struct cairn_device_progress progress;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_device_copy *copy = save(p, CAIRN_DEVICE_PACK);

    if (world_wait(&p->w, copy, &progress, &err) < 0)
        fail_msg("%s", err.message);
    assert_null(progress.packed);
    p->w.rig->ops->copy_free(copy);
    world_check(&p->w);
}

/* The nth allocation from now on gets nothing; a plain save has what it needs. */
static void copies_plain_without(struct packing *p, uint64_t nth)
{
    finish(p, save(p, 0));
    finish(p, save(p, CAIRN_DEVICE_SUMS));
    p->w.rig->fail_call("cudaMalloc", nth, CUDA_E_MEMORY_ALLOCATION);
    copies_plain(p);
}

/* The device has memory for slots, or for what is volatile. */
static void memory_for_one(struct rig *rig)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct packing p;

    lay_out(&p, rig, 4, WORLD_DENSE | WORLD_VOLATILE, 20);
    assert_int_equal(world_open(&p.w, &err), 0);
    assert_in_range(p.w.volatile_bytes, MIB + MIB / 2, 4 * MIB);
    rig->memory(0, 8 * MIB + MIB / 2);
    copies_plain(&p);
    rig->memory(0, 1024 * MIB);
    drop(&p);
}

/* Catches what fails, or writes to memory that it does not have, where nothing can be packed. */
void test_pack_cannot(void **state)
{
    struct rig *rig = *state;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct packing p;

    if (!rig->shim)
        skip();
    make(&p, rig, 131, WORLD_ALL, 20); /* no memory for slots, while there is some for tables; then there is */
    rig->memory(0, 2 * MIB);
    copies_plain(&p);
    rig->memory(0, 1024 * MIB);
    for (int i = 0; i < 64; i++)
        copies_plain(&p);
    finish(&p, save(&p, CAIRN_DEVICE_PACK));
    assert_true(p.packed > 0);
    drop(&p);
    make(&p, rig, 134, WORLD_ALL, 20); /* memory for slots, and none for the tables that go with them */
    copies_plain_without(&p, 3);
    finish(&p, save(&p, CAIRN_DEVICE_PACK));
    assert_true(p.packed > 0);
    drop(&p);
    memory_for_one(rig);
    lay_out(&p, rig, 132, WORLD_ALL, 20); /* no budget for them */
    p.w.layout.width = NULL;
    assert_int_equal(world_open(&p.w, &err), 0);
    copies_plain(&p); /* and no widths */
    rig->ops->plan_free(p.w.plan);
    p.w.layout.width = p.width;
    assert_int_equal(rig->ops->plan(p.w.device, &p.w.layout, &p.w.plan, &err), 0);
    copies_plain(&p);
    drop(&p);
    rig->fail_call("cudaLibraryLoadData", 1, CUDA_E_NO_KERNEL_IMAGE);
    make(&p, rig, 133, WORLD_ALL, 20);
    copies_plain(&p);
    drop(&p);
    rig->fail_call("cudaHostGetDevicePointer", 1, CUDA_E_INVALID_VALUE); /* pages that kernels do not reach */
    make(&p, rig, 134, WORLD_DENSE, 12);
    copies_plain(&p);
    drop(&p);
}

static uint64_t memory_taken(const struct rig *rig)
{
    int (*info)(size_t * ret_free, size_t * ret_total);
    size_t left = 0, total = 0;

    assert_true(rig_find(rig, "cudaMemGetInfo", &info));
    assert_int_equal(info(&left, &total), 0);
    return total - left;
}

/* Another plan of the device, with so many bytes of volatile slices, and the first one again. before: what was taken
 * before the device was opened. */
static void beside(struct packing *p, uint64_t seed, uint64_t before, uint64_t least, uint64_t most, bool packs)
{
    const struct rig *rig = p->w.rig;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct packing q;

    before -= memory_taken(rig);
    lay_out(&q, rig, seed, WORLD_DENSE | WORLD_VOLATILE, 20);
    q.w.device = p->w.device;
    before += memory_taken(rig);
    assert_in_range(q.w.volatile_bytes, least, most);
    assert_int_equal(world_pin(&q.w, &err), 0);
    assert_int_equal(rig->ops->plan(q.w.device, &q.w.layout, &q.w.plan, &err), 0);
    for (int round = 0; round < 2; round++) {
        if (packs)
            finish(&q, save(&q, CAIRN_DEVICE_PACK)); /* with less slots than before */
        else if (round == 0)
            finish(&q, save(&q, 0));
        else
            copies_plain(&q);
        assert_in_range(memory_taken(rig) - before, 8 * MIB, 18 * MIB + 100000); /* tables are besides */
        world_pages(&q.w, 1);
        world_pages(&p->w, 1);
        if (packs)
            finish(p, save(p, CAIRN_DEVICE_PACK));
        else
            copies_plain(p);
        assert_int_equal(p->packed > 0, packs);
    }
    rig->ops->plan_free(q.w.plan);
    q.w.plan = NULL;
    q.w.device = NULL;
    drop(&q);
}

/* Volatile slices come first. Catches slots that stay where there is no room for both, a launch with those that are
 * gone, and more memory than was allowed. */
void test_pack_beside_volatile(void **state)
{
    struct rig *rig = *state;
    struct packing p;

    if (!rig->shim)
        skip();
    lay_out(&p, rig, 141, WORLD_DENSE, 12);
    uint64_t before = memory_taken(rig);
    world_open(&p.w, NULL);
    finish(&p, save(&p, CAIRN_DEVICE_PACK));
    assert_true(p.packed > 0);
    beside(&p, 4, before, MIB, 2 * MIB, true);
    beside(&p, 13, before, 3 * MIB, 9 * MIB, false);
    drop(&p);
}

/* Catches kernels that do not wait for their tables (which are another save's then), or for the producer, and parts
 * that are told of before they are there. */
void test_pack_waits(void **state)
{
    const struct rig *rig = *state;
    struct packing p;

    if (!rig->shim)
        skip();
    make(&p, rig, 161, WORLD_DENSE, 4);
    for (uint64_t round = 1; round <= 12; round++) {
        rig->delay(2000000, round);
        change(&p.w);
        world_pages(&p.w, (round + 1) % 2);
        if (round > 4) /* only tables are on their way */
            assert_int_equal(rig->cuda.stream_sync(p.w.stream), CUDA_OK);
        finish(&p, save(&p, CAIRN_DEVICE_PACK | (round > 4 ? 0 : CAIRN_DEVICE_SUMS)));
        rig->delay(0, 0);
    }
    drop(&p);
    make(&p, rig, 162, (WORLD_ALL & ~WORLD_TINY) | WORLD_LARGE, MAX_SLICES);
    rig->ops->plan_free(p.w.plan);
    for (uint32_t i = 0; i < p.w.layout.nparts; i++) /* several batches; packing takes the emulator's time */
        p.width[i] = i % 4 == 3 ? p.width[i] : 0;
    assert_int_equal(rig->ops->plan(p.w.device, &p.w.layout, &p.w.plan, NULL), 0);
    rig->delay(1000000, 162);
    finish(&p, save(&p, CAIRN_DEVICE_PACK));
    rig->delay(0, 0);
    drop(&p);
}

void test_pack_is_refused(void **state)
{
    const struct rig *rig = *state;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_device_copy *copy = NULL;
    struct cairn_device_plan *plan = NULL;
    struct packing p;

    make(&p, rig, 151, WORLD_ALL, 10);
    assert_int_equal(world_save(&p.w, CAIRN_DEVICE_PACK | CAIRN_DEVICE_SKIP, &copy, &err), CAIRN_E_INVAL);
    p.width[0] = 3;
    assert_int_equal(rig->ops->plan(p.w.device, &p.w.layout, &plan, &err), CAIRN_E_INVAL);
    p.w.layout.width = (const void *)(uintptr_t)1; /* an older caller's structure ends before it */
    p.w.layout.size = offsetof(struct cairn_device_layout, width);
    assert_int_equal(rig->ops->plan(p.w.device, &p.w.layout, &plan, &err), 0);
    rig->ops->plan_free(plan);
    drop(&p);
}
