/* SPDX-License-Identifier: Apache-2.0 */
/* What every device plugin owes: bytes exactly where they belong, whatever shape they have and wherever pages lie. With
 * the shim of the runtime, and on a real device where there is one. */
#include "tests/conformance/device_world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void save_and_check(struct world *w)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_device_progress progress;
    struct cairn_device_copy *copy;

    if (world_save(w, 0, &copy, &err) < 0 || world_wait(w, copy, &progress, &err) < 0)
        fail_msg("%s", err.message);
    assert_int_equal(progress.parts, w->layout.nparts);
    assert_true(progress.staged_bytes >= w->volatile_bytes);
    w->rig->ops->copy_free(copy);
    world_check(w);
}

static void save_random(const struct rig *rig, uint64_t seed, unsigned kinds, unsigned n)
{
    struct world w;

    world_make(&w, rig, 0, seed, kinds, n);
    for (int round = 0; round < 3; round++) {
        save_and_check(&w);
        world_change(&w);
        world_pages(&w);
    }
    world_free(&w);
}

static void test_random_layouts(void **state)
{
    for (uint64_t seed = 1; seed <= 3; seed++) {
        save_random(*state, seed, WORLD_ALL, 40);
        save_random(*state, seed, WORLD_DENSE, 20);
        save_random(*state, seed, WORLD_TINY | WORLD_VOLATILE, 60);
        save_random(*state, seed, WORLD_STRIDED | WORLD_FOREIGN, 30);
    }
}

static void test_nothing_is_left(void **state)
{
    struct rig *rig = *state;
    struct shim_left left;

    if (!rig->shim)
        skip();
    rig->left(&left);
    assert_int_equal(left.allocations, 0);
    assert_int_equal(left.host_allocations, 0);
    assert_int_equal(left.registrations, 0);
    assert_int_equal(left.streams, 0);
    assert_int_equal(left.events, 0);
    assert_int_equal(left.libraries, 0);
    assert_int_equal(left.contexts, 0);
}

int main(int argc, char **argv)
{
    static struct rig rig;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_random_layouts, &rig),
        cmocka_unit_test_prestate(test_nothing_is_left, &rig),
    };

    if (argc < 2)
        return 2;
    rig_open(&rig, argv[1]);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rig_close(&rig);
    return failed;
}
