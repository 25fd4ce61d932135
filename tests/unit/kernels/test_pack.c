/* SPDX-License-Identifier: Apache-2.0 */
/* cairn_pack and cairn_unpack against plugins/codec-float: the same bytes, the same verdicts. */
#include "launch.h"
#include "part.h"
#include "plugins/device-cuda/kernels/kernels.h"
#include "tests/shim/emulate.h"
#include "tests/unit/codec_float/kinds.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MOST 64
#define GUARD 32
#define ROOM 140000u /* of each part */

static const struct {
    int dtype;
    uint8_t width;
} dtypes[] = {{CAIRN_U8, 1},  {CAIRN_F8_E4M3, 1}, {CAIRN_BF16, 2}, {CAIRN_F16, 2},
              {CAIRN_F32, 4}, {CAIRN_C64, 4},     {CAIRN_F64, 8}};
#define DTYPES (sizeof dtypes / sizeof dtypes[0])

enum { SLOPE = KINDS, STAIRS, PATCHES, ALL_KINDS };

/* The least of some random bytes: more values than levels may have codes for. */
static uint8_t slope(uint64_t *random, unsigned of)
{
    uint8_t least = 255;

    for (unsigned k = 0; k < of; k++) {
        uint8_t x = (uint8_t)(next_random(random) >> 20);
        least = x < least ? x : least;
    }
    return least;
}

/* Two levels, and then bytes that no level is worth. */
static uint8_t stairs(uint64_t *random)
{
    uint64_t r = next_random(random) >> 10;

    return r % 100 < 70 ? 0 : r % 100 < 94 ? (uint8_t)(1 + r / 100 % 3) : (uint8_t)(r >> 20);
}

/* Elements whose bytes, once they are rotated to the left by a bit, are these. */
static void fill_planes(uint8_t *p, size_t len, unsigned width, int kind, uint64_t seed)
{
    unsigned of = seed % 2 ? 12 : 6;

    for (size_t at = 0; at + width <= len; at += width) {
        uint8_t plane[8];
        for (unsigned i = 0; i < width; i++)
            plane[i] = kind == SLOPE ? slope(&seed, of) : stairs(&seed);
        for (unsigned i = 0; i < width; i++)
            p[at + i] = (uint8_t)(plane[i] >> 1 | plane[(i + 1) % width] << 7);
    }
}

/* Those of codec-float's tests, and some with much in every plane; PATCHES are even in the blocks that are looked at
 * first, and nowhere else. */
static void fill_kind(uint8_t *p, size_t len, unsigned width, int kind, uint64_t seed)
{
    memset(p, 0, len);
    if (kind < KINDS)
        fill(p, len, width, kind, seed);
    else if (kind != PATCHES)
        fill_planes(p, len, width, kind, seed);
    for (size_t i = 0; kind == PATCHES && i < len; i++)
        p[i] = i / width / 64 % 4 ? 0 : (uint8_t)(next_random(&seed) >> 20);
}

/* Parts that are packed in one launch, or unpacked. */
struct batch {
    uint8_t *from, *to;
    struct gpu_part part[MOST];
    uint8_t width[MOST];
    uint64_t at[MOST];
    uint32_t room[MOST], ret[MOST]; /* room: the plain bytes when it is unpacked */
    int dtype[MOST];
    uint32_t n;
};

static struct batch *batch_new(void)
{
    struct batch *b = calloc(1, sizeof *b);

    b->from = malloc((size_t)MOST * ROOM);
    b->to = malloc((size_t)MOST * ROOM);
    memset(b->to, 0xa5, (size_t)MOST * ROOM);
    return b;
}

static void batch_free(struct batch *b)
{
    free(b->from);
    free(b->to);
    free(b);
}

/* Returns where its len bytes belong. */
static uint8_t *batch_add(struct batch *b, unsigned dtype, uint32_t len, uint32_t room)
{
    uint32_t i = b->n++;

    assert_in_range(len, 0, ROOM - 2 * GUARD);
    assert_in_range(room, 0, ROOM - 2 * GUARD);
    b->part[i] = (struct gpu_part){(uint64_t)i * ROOM + i % 3, 0, len, MOST - 1 - i, 0};
    b->dtype[MOST - 1 - i] = dtypes[dtype].dtype;
    b->width[MOST - 1 - i] = dtypes[dtype].width;
    b->at[MOST - 1 - i] = (uint64_t)i * ROOM + i % 5;
    b->room[MOST - 1 - i] = room;
    return b->from + b->part[i].offset;
}

static void batch_pack(struct batch *b, int dense)
{
    const void *base[1] = {b->from};
    struct gpu_pack arg = {b->part, base, b->width, b->at, b->room, b->to, b->ret, (uint32_t)dense, b->n, NULL, 0};

    launch(GPU_PACK, gpu_pack_blocks(b->n), GPU_PACK_THREADS, &arg);
}

static void batch_unpack(struct batch *b)
{
    const void *base[1] = {b->from};
    struct gpu_unpack arg = {b->part, base, b->width, b->at, b->room, b->to, b->ret, b->n, 0};

    launch(GPU_UNPACK, gpu_unpack_blocks(b->n), GPU_UNPACK_THREADS, &arg);
}

static void check_guard(const struct batch *b, uint32_t i)
{
    for (uint32_t k = 0; k < GUARD; k++)
        assert_int_equal(b->to[b->at[i] + b->room[i] + k], 0xa5);
}

/* What was packed is what the CPU packs; then it is unpacked. */
static void check_batch(struct batch *b, int dense)
{
    struct batch *back = batch_new();
    uint8_t *want = malloc(ROOM);

    batch_pack(b, dense);
    for (uint32_t i = 0; i < b->n; i++) {
        uint32_t k = b->part[i].index, len = b->part[i].len;
        const uint8_t *plain = b->from + b->part[i].offset;
        int64_t n = part_encode(kernel_best(), plain, len, b->dtype[k], dense, want, b->room[k]);
        if (n != b->ret[k])
            fail_msg("part %u: %u bytes of width %u: %u instead of %lld", i, len, b->width[k], b->ret[k], (long long)n);
        assert_memory_equal(b->to + b->at[k], want, (size_t)n);
        check_guard(b, k);
        unsigned d = 0;
        while (dtypes[d].dtype != b->dtype[k])
            d++;
        if (n > 0)
            memcpy(batch_add(back, d, (uint32_t)n, len), want, (size_t)n);
    }
    if (back->n)
        batch_unpack(back);
    for (uint32_t i = 0, j = 0; i < b->n; i++) {
        if (!b->ret[b->part[i].index])
            continue;
        uint32_t k = back->part[j++].index;
        assert_int_equal(back->ret[k], 0);
        assert_memory_equal(back->to + back->at[k], b->from + b->part[i].offset, b->part[i].len);
        check_guard(back, k);
    }
    free(want);
    batch_free(back);
}

static uint32_t some_length(unsigned i, unsigned width)
{
    static const uint32_t elements[] = {63, 64, 65, 64 * 8, 64 * 9 + 5, 64 * 128, 64 * 131 + 1, 15000};

    return elements[i % (sizeof elements / sizeof elements[0])] * width + i % width;
}

/* Catches a plan that differs in anything, codes or words in a wrong place, bytes that are closed up in another order,
 * a strip, group or block that is not whole; and what is not put back. */
static void test_kinds(void **state)
{
    (void)state;
    for (int dense = 0; dense < 2; dense++)
        for (unsigned d = 0; d < DTYPES; d++) {
            struct batch *b = batch_new();
            for (int kind = 0; kind < ALL_KINDS; kind++)
                for (unsigned i = 0; i < (kind == POSITIVES || kind == SLOPE ? 3 : 1); i++) { /* masks are tried */
                    uint32_t len = some_length((unsigned)kind + d + i * 3, dtypes[d].width);
                    fill_kind(batch_add(b, d, len, len), len, dtypes[d].width, kind, len + i);
                }
            shim_kernels_shuffle((uint64_t)d);
            check_batch(b, dense);
            batch_free(b);
        }
    shim_kernels_shuffle(0);
}

/* Catches a limit that is read wrongly: what just fits, what just does not, and what is not coded at all. */
static void test_room(void **state)
{
    struct batch *b = batch_new();
    uint32_t len = 64 * 200 * 2 + 1;
    uint8_t *plain = malloc(len), *coded = malloc(len);

    (void)state;
    fill(plain, len, 2, WEIGHTS, 3);
    uint32_t n = (uint32_t)part_encode(kernel_best(), plain, len, CAIRN_BF16, 0, coded, len);
    assert_in_range(n, len / 2, len - 100);
    const uint32_t rooms[] = {0, 15, 16, 40, 60, n / 4, n / 2, n / 2 + 100, n - 3000, n - 1000, n - 1, n, n + 1};
    for (unsigned i = 0; i < sizeof rooms / sizeof rooms[0]; i++)
        memcpy(batch_add(b, 2, len, rooms[i]), plain, len);
    for (uint32_t i = 0; i < 3; i++)
        memcpy(batch_add(b, 2, 126 + i, len), plain, 126 + i);
    check_batch(b, 0);
    batch_add(b, 0, 1000, 1000);
    b->width[b->part[b->n - 1].index] = 0;
    batch_pack(b, 0);
    assert_int_equal(b->ret[b->part[b->n - 1].index], 0);
    batch_free(b);
    free(plain);
    free(coded);
}

/* Catches a slot that is packed into again before it was sent, a room that is not the daemon's, plain bytes that are
 * not sent or cut short, and bytes behind either. */
static void test_pages(void **state)
{
    const uint64_t slot = (GPU_PACK_ROOM(ROOM) + 63) / 64 * 64;
    const uint32_t blocks = 3;
    uint8_t *slots = aligned_alloc(64, blocks * slot), *want = malloc(ROOM), *page[MOST];
    struct batch *b = batch_new();
    const void *base[1] = {b->from};
    unsigned packed = 0;

    (void)state;
    for (unsigned i = 0; i < 24; i++) {
        unsigned d = i % DTYPES;
        uint32_t len = some_length(i, dtypes[d].width);
        fill_kind(batch_add(b, d, len, len), len, dtypes[d].width, (int)i % ALL_KINDS, i);
    }
    b->width[b->part[5].index] = 0;
    for (uint32_t i = 0; i < b->n; i++) {
        page[b->part[i].index] = aligned_alloc(16, ROOM / 16 * 16);
        memset(page[b->part[i].index], 0xa5, ROOM / 16 * 16);
    }
    struct gpu_pack arg = {b->part, base, b->width, NULL, NULL, slots, b->ret, 0, b->n, (void *const *)(void *)page,
                           slot};
    shim_kernels_shuffle(7);
    launch(GPU_PACK, blocks, GPU_PACK_THREADS, &arg);
    shim_kernels_shuffle(0);
    for (uint32_t i = 0; i < b->n; i++) {
        uint32_t k = b->part[i].index, len = b->part[i].len;
        const uint8_t *plain = b->from + b->part[i].offset;
        int64_t n = b->width[k] ? part_encode(kernel_best(), plain, len, b->dtype[k], 0, want, len * 19ull / 20) : 0;
        assert_int_equal(n, b->ret[k]);
        assert_memory_equal(page[k], n ? want : plain, n ? (size_t)n : len);
        for (uint32_t at = n ? (uint32_t)n : len; at < ROOM / 16 * 16; at++)
            if (page[k][at] != 0xa5)
                fail_msg("part %u: byte %u behind its %u", i, at, n ? (uint32_t)n : len);
        packed += n > 0;
        free(page[k]);
    }
    assert_in_range(packed, 4, b->n - 4);
    batch_free(b);
    free(slots);
    free(want);
}

static void damage(uint8_t *p, uint32_t *len, uint64_t *random)
{
    uint32_t at = (uint32_t)(next_random(random) % *len);

    if (next_random(random) % 2)
        at %= 120; /* header and descriptors, where most can be broken */
    else if (next_random(random) % 2)
        at = *len - 1 - at % 150;   /* counts and bitmaps */
    at = at < *len ? at : *len - 1; /* also before the first */
    switch (next_random(random) % 6) {
    case 0:
        p[at] ^= (uint8_t)(1u << next_random(random) % 8);
        break;
    case 1:
        p[at] = (uint8_t)next_random(random);
        break;
    case 2:
        *len = at;
        break;
    case 3:
        *len += 1;
        break;
    case 4:
        memset(p + at, 255, *len - at < 2 ? *len - at : 2);
        break;
    default:
        memset(p + at, (int)next_random(random), *len - at < 9 ? *len - at : 9);
    }
}

/* Catches a check that is missing: damaged bytes are refused exactly when the CPU refuses them, and nothing else is
 * read or written, whatever they say. */
static void test_damage(void **state)
{
    uint8_t *plain = malloc(ROOM), *back = malloc(ROOM + 64);
    uint64_t random = 77;
    unsigned refused = 0;

    (void)state;
    for (unsigned round = 0; round < 4; round++) {
        struct batch *b = batch_new();
        while (b->n < MOST) {
            unsigned d = (unsigned)(next_random(&random) % DTYPES);
            uint32_t len = some_length((unsigned)(next_random(&random) % 7), dtypes[d].width), n = 0;
            fill_kind(plain, len, dtypes[d].width, (int)(next_random(&random) % ALL_KINDS), next_random(&random));
            uint8_t *coded = batch_add(b, d, ROOM - 2 * GUARD, len);
            n = (uint32_t)part_encode(kernel_best(), plain, len, dtypes[d].dtype, 1, coded, len);
            if (n == 0) {
                b->n--;
                continue;
            }
            damage(coded, &n, &random);
            b->part[b->n - 1].len = n;
        }
        batch_unpack(b);
        for (uint32_t i = 0; i < b->n; i++) {
            uint32_t k = b->part[i].index;
            int want = part_decode(&kernel_portable, b->from + b->part[i].offset, b->part[i].len, b->dtype[k], back,
                                   b->room[k]);
            assert_int_equal(b->ret[k], want < 0);
            if (want == 0)
                assert_memory_equal(b->to + b->at[k], back, b->room[k]);
            refused += want < 0;
            check_guard(b, k);
        }
        batch_free(b);
    }
    assert_in_range(refused, MOST, 4 * MOST - 4);
    free(plain);
    free(back);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_room),
        cmocka_unit_test(test_pages),
        cmocka_unit_test(test_damage),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
