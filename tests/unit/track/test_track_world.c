/* SPDX-License-Identifier: Apache-2.0 */
/* Tracking in a simulated world, through many random lives. Compiled again with CAIRN_BUG_KEEPS_HELD (a page is
 * believed after its copy was interrupted) and CAIRN_BUG_SKIPS_AN_EPOCH (a write is taken for older than it is): both
 * must fail. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/track/world.h"

#define LIVES 20000
#define LEN 512

static void test_random_lives(void **state)
{
    uint64_t x = 88172645463325252ull, skipped, all = 0;
    uint8_t bytes[LEN];

    (void)state;
    for (unsigned life = 0; life < LIVES; life++) {
        for (size_t i = 0; i < LEN; i++) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            bytes[i] = (uint8_t)(x >> 24);
        }
        if (!track_world_run(bytes, LEN, &skipped))
            fail_msg("life %u: the arena does not hold what was saved", life);
        all += skipped;
    }
    assert_true(all > LIVES); /* else nothing was put to the test */
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_random_lives)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
