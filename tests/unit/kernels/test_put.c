/* SPDX-License-Identifier: Apache-2.0 */
/* cairn_put: what is copied, what is not, and what is told. */
#include "launch.h"
#include "plugins/device-cuda/kernels/kernels.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define PARTS 24
#define PAGE_BYTES 70000

struct put {
    uint8_t *data, *page[PARTS];
    const void *base[1];
    struct gpu_part part[PARTS];
    struct cairn_device_sum sum[PARTS], held[PARTS], told[PARTS];
    uint8_t skipped[PARTS];
};

static void put_start(struct put *p)
{
    *p = (struct put){.data = edge_alloc(PAGE_BYTES + PARTS)};
    fill_random(p->data, PAGE_BYTES + PARTS, 5);
    fill_random(p->sum, sizeof p->sum, 6);
    p->base[0] = p->data;
    for (uint32_t i = 0; i < PARTS; i++) {
        uint32_t len = i < 8 ? i * 5 : i < 16 ? PAGE_BYTES - 20 + i : 16384 * (i % 4) + i;
        p->part[i] = (struct gpu_part){i % 2 ? PAGE_BYTES + PARTS - len : i, 0, len, PARTS - 1 - i, 0};
        p->page[i] = edge_alloc(PAGE_BYTES / 16 * 16);
        memset(p->page[i], 0xa5, PAGE_BYTES / 16 * 16);
        p->held[i] = p->sum[i];
    }
    memset(p->skipped, 7, sizeof p->skipped);
}

static void put_end(struct put *p)
{
    edge_free(p->data, PAGE_BYTES + PARTS);
    for (uint32_t i = 0; i < PARTS; i++)
        edge_free(p->page[i], PAGE_BYTES / 16 * 16);
}

static void put(struct put *p, const struct cairn_device_sum *sums, const struct cairn_device_sum *held, int tell)
{
    struct gpu_put arg = {
        p->part,   p->base, (void *const *)p->page, sums, held, tell ? p->told : NULL, tell ? p->skipped : NULL,
        PARTS - 1, 0}; /* the last one is not in the launch */

    launch(GPU_PUT, gpu_put_blocks(PARTS - 1), GPU_PUT_THREADS, &arg);
}

static void check_page(const struct put *p, uint32_t i, int copied)
{
    const struct gpu_part *part = &p->part[i];
    const uint8_t *page = p->page[part->index];
    uint32_t len = copied ? part->len : 0;

    assert_memory_equal(page, p->data + part->offset, len);
    for (uint32_t k = len; k < PAGE_BYTES / 16 * 16; k++)
        if (page[k] != 0xa5)
            fail_msg("part %u, byte %u", i, k);
}

/* Catches a part that is copied though it is held, one that is not though it differs in one half of its sum only or
 * nobody knows what is held, and bytes that go beyond a part. */
static void test_held(void **state)
{
    struct put p;

    (void)state;
    put_start(&p);
    p.held[2].low++;
    p.held[5].high ^= 1ull << 63;
    p.held[7] = p.sum[7] = (struct cairn_device_sum){0, 0};
    p.held[20] = (struct cairn_device_sum){0, 0};
    put(&p, p.sum, p.held, 1);
    for (uint32_t i = 0; i < PARTS; i++) {
        uint32_t k = p.part[i].index;
        int copied = k == 2 || k == 5 || k == 7 || k == 20;
        if (i == PARTS - 1) {
            assert_int_equal(p.skipped[k], 7);
            check_page(&p, i, 0);
            continue;
        }
        assert_int_equal(p.skipped[k], !copied);
        assert_memory_equal(&p.told[k], &p.sum[k], sizeof p.sum[k]);
        check_page(&p, i, copied);
    }
    put_end(&p);
}

/* Catches a copy that depends on what may be left out, and lengths or alignments that are copied wrongly. */
static void test_all(void **state)
{
    for (int i = 0; i < 3; i++) {
        struct put p;

        (void)state;
        put_start(&p);
        put(&p, i == 0 ? NULL : p.sum, i == 1 ? NULL : p.held, i == 1);
        for (uint32_t k = 0; k < PARTS - 1; k++)
            check_page(&p, k, i < 2);
        for (uint32_t k = 0; k < PARTS; k++)
            assert_int_equal(p.skipped[k], i == 1 && k > 0 ? 0 : 7);
        put_end(&p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_held),
        cmocka_unit_test(test_all),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
