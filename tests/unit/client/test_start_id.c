/* SPDX-License-Identifier: Apache-2.0 */
/* Which start id a session shows, from which environment. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client/start.h"
#include "core/model/name.h"

static int clean(void **state)
{
    (void)state;
    unsetenv("TORCHELASTIC_RUN_ID");
    unsetenv("TORCHELASTIC_RESTART_COUNT");
    unsetenv("SLURM_JOB_ID");
    unsetenv("SLURM_RESTART_COUNT");
    return 0;
}

static void test_given(void **state)
{
    char id[CAIRN_MAX_NAME + 1] = "before";

    (void)state;
    setenv("SLURM_JOB_ID", "77", 1);
    assert_int_equal(start_id_find("mine", 4, id, NULL), 0);
    assert_string_equal(id, "mine");
    assert_int_equal(start_id_find("not/mine", 4, id, NULL), CAIRN_E_INVAL);
    assert_string_equal(id, "mine");
}

static void test_launchers(void **state)
{
    char id[CAIRN_MAX_NAME + 1], again[CAIRN_MAX_NAME + 1];

    (void)state;
    setenv("SLURM_JOB_ID", "77", 1);
    assert_int_equal(start_id_find(NULL, 4, id, NULL), 0);
    assert_string_equal(id, "slurm-77-0");
    setenv("SLURM_RESTART_COUNT", "2", 1);
    assert_int_equal(start_id_find(NULL, 4, id, NULL), 0);
    assert_string_equal(id, "slurm-77-2");
    setenv("TORCHELASTIC_RUN_ID", "run", 1);
    setenv("TORCHELASTIC_RESTART_COUNT", "3", 1);
    assert_int_equal(start_id_find(NULL, 4, id, NULL), 0);
    assert_string_equal(id, "torchrun-run-3");
    /* Catches two ids that meet after their odd characters were replaced. */
    setenv("TORCHELASTIC_RUN_ID", "a/b c", 1);
    assert_int_equal(start_id_find(NULL, 4, id, NULL), 0);
    assert_int_equal(cairn_name_check("start id", id, NULL), 0);
    setenv("TORCHELASTIC_RUN_ID", "a_b/c", 1);
    assert_int_equal(start_id_find(NULL, 4, again, NULL), 0);
    assert_string_not_equal(id, again);
}

/* Catches a new start of a job that is taken for the old one: torchrun calls every run without an id "none". */
static void test_nothing(void **state)
{
    char id[CAIRN_MAX_NAME + 1], again[CAIRN_MAX_NAME + 1];

    (void)state;
    assert_int_equal(start_id_find(NULL, 2, id, NULL), CAIRN_E_INVAL);
    setenv("TORCHELASTIC_RUN_ID", "none", 1);
    assert_int_equal(start_id_find(NULL, 2, id, NULL), CAIRN_E_INVAL);
    assert_int_equal(start_id_find(NULL, 1, id, NULL), 0);
    assert_int_equal(start_id_find(NULL, 1, again, NULL), 0);
    assert_string_not_equal(id, again);
    assert_int_equal(cairn_name_check("start id", id, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_given, clean),
        cmocka_unit_test_setup(test_launchers, clean),
        cmocka_unit_test_setup(test_nothing, clean),
    };

    return cmocka_run_group_tests(tests, NULL, clean);
}
