/* SPDX-License-Identifier: Apache-2.0 */
/* cairn_gather against core/model/box.h: what the host copies into an image. */
#include "core/model/box.h"
#include "launch.h"
#include "plugins/device-cuda/kernels/kernels.h"
#include "tests/shim/emulate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#define MOST_SLICES 600
#define MOST_DIMS 6

struct image {
    struct cairn_box_copy slice[MOST_SLICES]; /* in the order of the image */
    uint32_t nslices;
    uint64_t len;
    uint8_t *memory; /* of all slices */
    size_t memory_len;
    size_t used;
};

static void image_free(struct image *m)
{
    edge_free(m->memory, m->memory_len);
    free(m);
}

/* Of one dense slice or of one whose dimensions lie in any order, with gaps, some of them backwards. */
static void add_slice(struct image *m, uint64_t *random, size_t elem, uint64_t dense, unsigned ndim)
{
    struct cairn_box_copy *c = &m->slice[m->nslices++];
    uint64_t span = elem, back = 0;
    unsigned order[MOST_DIMS];

    *c = (struct cairn_box_copy){.elem_size = elem, .source.ndim = dense ? 1 : ndim};
    c->source.length[0] = dense;
    c->target_stride[0] = (int64_t)elem;
    span = dense ? dense * elem : elem;
    for (unsigned d = 0; d < ndim; d++)
        order[d] = d;
    for (unsigned d = 0; !dense && d < ndim; d++) {
        unsigned k = d + (unsigned)(next_random(random) % (ndim - d)), at = order[k];
        order[k] = order[d];
        uint64_t count = 1 + next_random(random) % 9, step = span + elem * (next_random(random) % 3 / 2);
        int backwards = next_random(random) % 4 == 0;
        c->source.length[at] = count;
        c->target_stride[at] = backwards ? -(int64_t)step : (int64_t)step;
        back += backwards ? (count - 1) * step : 0;
        span = (count - 1) * step + span;
    }
    c->box = c->source;
    m->used +=
        elem * (next_random(random) % 2) + next_random(random) % 8 / 7; /* an element's alignment, nearly always */
    c->target = (char *)m->memory + m->used + back;
    m->used += span;
    assert_in_range(m->used, 0, m->memory_len);
    m->len += next_random(random) % 3 == 0 ? next_random(random) % 40 : 0;
    c->image_offset = m->len;
    m->len += cairn_box_elements(&c->box) * elem;
}

static struct image *image_new(uint32_t nslices, uint64_t seed)
{
    struct image *m = calloc(1, sizeof *m);

    m->memory_len = 8 << 20;
    m->memory = edge_alloc(m->memory_len);
    fill_random(m->memory, m->memory_len, seed);
    for (uint32_t i = 0; i < nslices; i++) {
        size_t elem = (size_t)1 << next_random(&seed) % 5;
        uint64_t kind = next_random(&seed) % 8;
        if (kind < 4)
            add_slice(m, &seed, elem, 1 + next_random(&seed) % 5, 1);
        else if (kind == 4)
            add_slice(m, &seed, elem, 1 + next_random(&seed) % 2000, 1);
        else
            add_slice(m, &seed, elem, 0, (unsigned)(next_random(&seed) % (MOST_DIMS - 1)));
    }
    add_slice(m, &seed, 4, 20000, 1);
    return m;
}

/* Loops as they are, or with the dense ones in the run. */
static uint32_t make_loops(const struct cairn_box_copy *c, int merged, struct gpu_loop *loops, uint64_t *ret_run)
{
    uint32_t d = c->box.ndim;

    *ret_run = c->elem_size;
    for (; merged && d > 0 && c->target_stride[d - 1] == (int64_t)*ret_run; d--)
        *ret_run *= c->box.length[d - 1];
    for (uint32_t i = 0; i < d; i++)
        loops[i] = (struct gpu_loop){c->box.length[i], c->target_stride[i]};
    return d;
}

/* Bytes [begin, begin + len) of the image. Piece i's base is that of slice i % 3 or its own address. */
static void check_window(const struct image *m, uint64_t begin, uint64_t len, int merged)
{
    struct gpu_piece *pieces = calloc(m->nslices, sizeof *pieces);
    struct gpu_loop *loops = calloc((size_t)m->nslices * MOST_DIMS, sizeof *loops);
    const void **base = calloc(m->nslices, sizeof *base);
    uint64_t room = (len + 15) / 16 * 16;
    uint8_t *block = edge_alloc(room), *want = calloc(1, room);
    uint32_t n = 0;

    memset(block, 0xa5, room);
    memset(want + len, 0xa5, room - len);
    for (uint32_t i = 0; i < m->nslices; i++) {
        const struct cairn_box_copy *c = &m->slice[i];
        uint64_t first = c->image_offset, end = first + cairn_box_elements(&c->box) * c->elem_size;
        uint64_t from = first > begin ? first : begin, to = end < begin + len ? end : begin + len;
        if (from >= to)
            continue;
        cairn_box_fill_window(c, want, begin, len);
        struct gpu_piece *p = &pieces[n];
        *p = (struct gpu_piece){from - begin, to - from, from - first, 0, i % 3 * 8, i, n * MOST_DIMS, 0, 0};
        p->nloops = make_loops(c, merged, loops + p->loop, &p->run);
        base[i] = (char *)((uintptr_t)c->target - i % 3 * 8);
        n++;
    }
    struct gpu_gather arg = {pieces, loops, base, block, len, n, 0};
    launch(GPU_GATHER, gpu_gather_blocks(len), GPU_GATHER_THREADS, &arg);
    assert_memory_equal(block, want, room);
    edge_free(block, room);
    free(want);
    free(pieces);
    free(loops);
    free(base);
}

/* Catches coordinates that are wrong in any dimension, bytes of a piece's edge that are its neighbour's, gaps that keep
 * what was there, a search that misses a piece, and reads and writes beyond. */
static void test_boxes(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 6; seed++) {
        struct image *m = image_new((uint32_t)(seed * 95), seed);
        uint64_t random = seed;
        for (int i = 0; i < 6; i++) {
            uint64_t begin = next_random(&random) % m->len, len = 1 + next_random(&random) % (m->len - begin);
            check_window(m, begin, len, i % 2);
        }
        check_window(m, 0, m->len, 0);
        check_window(m, 0, m->len, 1);
        image_free(m);
    }
}

/* Catches a dense copy that is only right for aligned sources, or whole tiles. */
static void test_dense(void **state)
{
    size_t len = 3 * GPU_GATHER_TILE + 96;
    uint8_t *data = edge_alloc(len), *block = edge_alloc(len + 16);
    const void *base[1] = {data};

    (void)state;
    assert_int_equal((uintptr_t)block % 16, 0);
    fill_random(data, len, 9);
    for (unsigned shift = 0; shift < 17; shift++) {
        struct gpu_piece piece = {shift, len - 2 * shift, shift, len, 0, 0, 0, 0, 0};
        struct gpu_gather arg = {&piece, NULL, base, block, len - shift / 2, 1, 0};
        memset(block, 0xa5, len + 16);
        launch(GPU_GATHER, gpu_gather_blocks(arg.len), GPU_GATHER_THREADS, &arg);
        for (size_t i = 0; i < len + 16; i++) {
            uint8_t want = i >= arg.len ? 0xa5 : i < shift || i >= len - shift ? 0 : data[i];
            if (block[i] != want)
                fail_msg("byte %zu, shift %u", i, shift);
        }
        piece.to = 0; /* the same bytes from another alignment */
        launch(GPU_GATHER, gpu_gather_blocks(piece.len), GPU_GATHER_THREADS, &arg);
        assert_memory_equal(block, data + shift, piece.len);
        piece =
            (struct gpu_piece){0, 5000 + shift, 0, len, 0, 0, 0, 0, 0}; /* it ends within a tile, its box does not */
        launch(GPU_GATHER, gpu_gather_blocks(arg.len), GPU_GATHER_THREADS, &arg);
        for (size_t i = 0; i < arg.len; i++)
            assert_int_equal(block[i], i < piece.len ? data[i] : 0);
    }
    edge_free(data, len);
    edge_free(block, len + 16);
}

/* Catches arithmetic of 32 bits: what is wanted lies, and is counted, behind 4 GiB. The memory is mapped and not there,
 * but for two pages. */
static void test_far(void **state)
{
    uint64_t far = (6ull << 30) + 4096 + 6, len = far + 4096;
    uint8_t *data = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    _Alignas(16) uint8_t block[4096];
    const void *base[1] = {data};
    struct gpu_loop loops[] = {{3, 3ll << 30}, {1ull << 30, 2}}; /* rows of pairs, and rows lie further apart */

    (void)state;
    if (data == MAP_FAILED)
        skip(); /* where memory is never overcommitted */
    fill_random(data + far - 600, 1600, 3);
    struct gpu_piece pieces[] = {{0, 1000, far, len, 0, 0, 0, 0, 0},
                                 {1040, 500, far - 2 * (3ull << 30) + 2 * (2ull << 30), 2, 0, 0, 0, 2, 0}};
    struct gpu_gather arg = {pieces, loops, base, block, sizeof block, 2, 0};
    launch(GPU_GATHER, gpu_gather_blocks(sizeof block), GPU_GATHER_THREADS, &arg);
    assert_memory_equal(block, data + far, 1000);
    assert_memory_equal(block + 1040, data + far, 500);
    assert_int_equal(munmap(data, len), 0);
}

/* Catches a block without pieces that is left as it was. */
static void test_nothing(void **state)
{
    _Alignas(16) uint8_t block[100], zero[100] = {0};
    struct gpu_gather arg = {NULL, NULL, NULL, block, sizeof block, 0, 0};

    (void)state;
    memset(block, 1, sizeof block);
    launch(GPU_GATHER, gpu_gather_blocks(sizeof block), GPU_GATHER_THREADS, &arg);
    assert_memory_equal(block, zero, sizeof block);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_boxes),
        cmocka_unit_test(test_dense),
        cmocka_unit_test(test_far),
        cmocka_unit_test(test_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
