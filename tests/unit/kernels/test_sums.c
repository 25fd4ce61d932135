/* SPDX-License-Identifier: Apache-2.0 */
/* cairn_sums against xxHash and against what libcairn and the daemon compute. */
#include "core/model/hash.h"
#include "launch.h"
#include "plugins/device-cuda/kernels/kernels.h"
#include "tests/shim/emulate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define MIB (1u << 20)

static void check(const uint8_t *data, const struct gpu_part *parts, uint32_t n, uint64_t seed)
{
    const void *base[2] = {NULL, data};
    struct cairn_device_sum *sums = calloc(n, sizeof *sums);
    struct gpu_sums arg = {parts, base, sums, seed, n, 0};

    launch(GPU_SUMS, gpu_sums_blocks(n), GPU_SUMS_THREADS, &arg);
    for (uint32_t i = 0; i < n; i++) {
        const struct gpu_part *p = &parts[i];
        XXH128_hash_t want = XXH3_128bits_withSeed(data + p->offset, p->len, seed);
        if (sums[p->index].low != want.low64 || sums[p->index].high != want.high64)
            fail_msg("%u bytes at %u, seed %#llx", p->len, (unsigned)p->offset, (unsigned long long)seed);
        if (seed == 0) {
            struct hash128 own = cairn_hash128(data + p->offset, p->len);
            assert_true(own.low == want.low64 && own.high == want.high64);
        }
    }
    free(sums);
}

/* Catches a wrong formula of any of the lengths' classes, a stripe too many or too few at the end of a block, a secret
 * that is not made from the seed. All lengths, each at two of the alignments; the last byte is the last one there is.
 */
static void test_lengths(void **state)
{
    uint32_t most = 2100, n = 2 * (most + 1);
    size_t len = 4096;
    uint8_t *data = edge_alloc(len);
    struct gpu_part *parts = calloc(n, sizeof *parts);

    (void)state;
    fill_random(data, len, 1);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t part = i / 2;
        parts[i] = (struct gpu_part){i % 2 ? len - part : part * 5 % 16, 1, part, n - 1 - i, 0};
    }
    check(data, parts, n, 0);
    check(data, parts, n, 0x123456789abcdef1ull);
    edge_free(data, len);
    free(parts);
}

/* Catches a load that is right at some alignments only. */
static void test_alignments(void **state)
{
    static const uint32_t lens[] = {3, 8, 16, 17, 130, 240, 241, 1024, 1025, 1089, 65 * 1024, 66 * 1024 + 77};
    size_t len = 96 * 1024;
    uint8_t *data = malloc(len);
    struct gpu_part parts[16 * sizeof lens / sizeof lens[0]];
    uint32_t n = sizeof parts / sizeof parts[0];

    (void)state;
    fill_random(data, len, 2);
    for (uint32_t i = 0; i < n; i++)
        parts[i] = (struct gpu_part){i % 16, 1, lens[i / 16], i, 0};
    check(data, parts, n, 77);
    free(data);
}

/* Catches a tile that is scrambled before it is added, or added over before it is scrambled; and the ends of long
 * parts, at the edges of blocks and tiles. */
static void test_long(void **state)
{
    static const uint32_t lens[] = {MIB,        MIB - 1,        MIB - 63,      MIB - 64,      MIB - 65,
                                    MIB - 1023, MIB - 1024,     MIB - 1025,    MIB + 1,       MIB + 64,
                                    64 * 1024,  128 * 1024 + 1, 64 * 1024 - 1, 64 * 1024 + 1, 3 * MIB + 12345};
    uint32_t n = sizeof lens / sizeof lens[0];
    size_t len = 3 * MIB + 12345;
    uint8_t *data = edge_alloc(len);
    struct gpu_part parts[sizeof lens / sizeof lens[0]];

    (void)state;
    fill_random(data, len, 3);
    for (uint32_t i = 0; i < n; i++)
        parts[i] = (struct gpu_part){i % 2 ? len - lens[i] : 15 - (uintptr_t)(data + 15) % 16, 1, lens[i], i, 0};
    parts[n - 1].offset = 0;
    for (uint64_t seed = 0; seed < 3; seed++) {
        shim_kernels_shuffle(seed);
        check(data, parts, n, seed * 0x9e3779b97f4a7c15ull);
    }
    shim_kernels_shuffle(0);
    edge_free(data, len);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_alignments),
        cmocka_unit_test(test_long),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
