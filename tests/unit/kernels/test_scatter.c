/* SPDX-License-Identifier: Apache-2.0 */
/* cairn_scatter against memcpy. */
#include "launch.h"
#include "plugins/device-cuda/kernels/kernels.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MOST_RUNS 400

struct load {
    struct gpu_run run[MOST_RUNS];
    uint32_t n, ntiles;
    uint8_t *from, *to, *want;
    size_t room, from_used, to_used;
};

static void load_start(struct load *l, size_t room)
{
    *l = (struct load){.room = room};
    l->from = edge_alloc(room);
    l->to = edge_alloc(room);
    l->want = malloc(room);
    fill_random(l->from, room, 4);
    memset(l->to, 0xa5, room);
    memset(l->want, 0xa5, room);
}

/* to: where its first element goes. */
static void load_add(struct load *l, size_t from, size_t to, uint64_t count, uint32_t elem, int64_t stride)
{
    l->run[l->n++] = (struct gpu_run){l->from + from, l->to + to, count, stride, elem, l->ntiles};
    l->ntiles += gpu_run_tiles(count, elem);
    for (uint64_t i = 0; i < count; i++)
        memcpy(l->want + to + (int64_t)i * stride, l->from + from + i * elem, elem);
}

static void load_end(struct load *l)
{
    struct gpu_scatter arg = {l->run, l->n, l->ntiles};

    launch(GPU_SCATTER, gpu_scatter_blocks(l->ntiles), GPU_SCATTER_THREADS, &arg);
    assert_memory_equal(l->to, l->want, l->room);
    edge_free(l->from, l->room);
    edge_free(l->to, l->room);
    free(l->want);
}

/* Catches elements at a wrong stride, words wider than an alignment allows, ends of runs that are left out, a search
 * that takes a neighbour's tile, and writes between elements. */
static void test_random(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 5; seed++) {
        uint64_t random = seed, most = MOST_RUNS - 1;
        struct load l;
        load_start(&l, 2 << 20);
        while (l.n < most) {
            uint32_t elem = 1 + (uint32_t)(next_random(&random) % (next_random(&random) % 3 ? 16 : 700));
            elem = next_random(&random) % 2 ? 1u << (elem % 7) : elem;
            uint64_t count = 1 + next_random(&random) % (next_random(&random) % 8 ? 4 : 3000 / elem + 1);
            int64_t stride = (int64_t)(elem + next_random(&random) % 3 * (next_random(&random) % 5));
            size_t span = (count - 1) * (size_t)stride + elem;
            l.from_used += next_random(&random) % 17;
            l.to_used += next_random(&random) % 2 ? 16 - l.to_used % 16 : next_random(&random) % 5;
            if (l.to_used + span > l.room || l.from_used + count * elem > l.room)
                break;
            int back = next_random(&random) % 4 == 0;
            load_add(&l, l.from_used, l.to_used + (back ? span - elem : 0), count, elem, back ? -stride : stride);
            l.from_used += count * elem;
            l.to_used += span;
        }
        assert_in_range(l.n, most / 2, most);
        load_end(&l);
    }
}

/* Catches a dense run that is cut at its edges: the first and the last bytes that there are, from each alignment. */
static void test_dense(void **state)
{
    (void)state;
    for (unsigned shift = 0; shift < 16; shift++) {
        struct load l;
        load_start(&l, 20000);
        load_add(&l, shift, 20000 - 9000 - shift, 9000 + shift, 1, 1);
        load_add(&l, 20000 - 5000, shift * 5, 1, 5000, 0);
        load_add(&l, 9999, 6000, 50 + shift, 16, 16);
        load_end(&l);
    }
}

/* Catches runs that lie in each other's gaps: columns of one matrix. */
static void test_columns(void **state)
{
    struct load l;

    (void)state;
    load_start(&l, 1 << 18);
    for (uint32_t i = 0; i < 16; i++)
        load_add(&l, i * 3000, i * 6, 500, 6, 16 * 6);
    load_end(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_dense),
        cmocka_unit_test(test_columns),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
