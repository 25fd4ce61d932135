/* SPDX-License-Identifier: Apache-2.0 */
/* The configuration: defaults, later files win, and every mistake is named with its file and line. */
#include "daemon/config.h"
#include "daemon/cpus.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[] = "/tmp/cairn-config-XXXXXX";

static void put(const char *name, const char *text, char *ret_path)
{
    sprintf(ret_path, "%s/%s", dir, name);
    FILE *f = fopen(ret_path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static int load(const char *text, struct config *c, struct cairn_error *err)
{
    char path[256];

    put("c.conf", text, path);
    return config_load(c, path, err);
}

static void test_defaults_are_a_laptop(void **state)
{
    struct config c;
    struct cairn_error err = CAIRN_ERROR_INIT;

    (void)state;
    assert_int_equal(config_load(&c, NULL, &err), 0);
    assert_true(c.is_node && c.is_peer);
    assert_string_equal(c.provider, "tcp;ofi_rxm");
    assert_string_equal(c.bind, "127.0.0.1");
    assert_int_equal(c.socket_mode, 0660);
    assert_string_equal(c.meta_path, "/var/lib/cairn/meta.db");
    assert_true(c.node[0] != 0);
    assert_string_equal(c.peer_id, c.node);
}

static void test_values_are_read(void **state)
{
    struct config c;
    struct cairn_error err = CAIRN_ERROR_INIT;

    (void)state;
    assert_int_equal(
        load("[daemon]\nroles = peer\nnode = n7\n# a comment\n[fabric]\nprovider = tcp;ofi_rxm\nport=7000\n", &c, &err),
        0);
    assert_true(!c.is_node && c.is_peer);
    assert_string_equal(c.node, "n7");
    assert_string_equal(c.provider, "tcp;ofi_rxm"); /* a ; inside a value is no comment */
    assert_int_equal(c.port, 7000);
}

static void test_later_files_win(void **state)
{
    struct config c;
    struct cairn_error err = CAIRN_ERROR_INIT;
    char path[256], drop[300];

    (void)state;
    put("d.conf", "[fabric]\nport = 1\n", path);
    snprintf(drop, sizeof drop, "%s.d", path);
    assert_int_equal(mkdir(drop, 0700), 0);
    char a[256], b[256];
    put("d.conf.d/10.conf", "[fabric]\nport = 2\n", a);
    put("d.conf.d/20.conf", "[fabric]\nport = 3\n", b);
    assert_int_equal(config_load(&c, path, &err), 0);
    assert_int_equal(c.port, 3);
    unlink(a);
    unlink(b);
    rmdir(drop);
}

static void test_mistakes_are_named(void **state)
{
    char long_line[240];
    snprintf(long_line, sizeof long_line, "[daemon]\nnode = %0198d\n", 1); /* inih would cut it in two */
    const struct {
        const char *text, *says;
    } bad[] = {
        {"[daemon]\nnode = a\nrolse = node\n", ":3: [daemon] rolse: no such option"},
        {"[deamon]\nnode = a\n", ":2: [deamon] node: no such option"},
        {"[fabric]\nport = 70000\n", ":2: [fabric] port = 70000: a number from 0 to 65535"},
        {"[fabric]\nport = 12x\n", ":2: [fabric] port = 12x: a number"},
        {"[fabric]\nport = -1\n", ":2: [fabric] port = -1: a number"},
        {"[daemon]\nwhat\n", ":2: "},
        {"[daemon]\nroles = node,pear\n", "\"pear\" is neither node nor peer"},
        {"[daemon]\nroles = ,\n", "names no role"},
        {"[daemon]\nnode = ../x\n", "[daemon] node"},
        {long_line, ":2: a line of more than 198 bytes"},
    };
    struct config c;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct cairn_error err = CAIRN_ERROR_INIT;
        assert_int_equal(load(bad[i].text, &c, &err), CAIRN_E_INVAL);
        if (!strstr(err.message, bad[i].says))
            fail_msg("\"%s\" does not say \"%s\"", err.message, bad[i].says);
    }
}

static void test_missing_file(void **state)
{
    struct config c;
    struct cairn_error err = CAIRN_ERROR_INIT;

    (void)state;
    assert_true(config_load(&c, "/nonexistent/cairnd.conf", &err) < 0);
    assert_non_null(strstr(err.message, "/nonexistent/cairnd.conf"));
}

static int setup(void **state)
{
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    char path[256];

    (void)state;
    snprintf(path, sizeof path, "%s/c.conf", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/d.conf", dir);
    unlink(path);
    return rmdir(dir);
}

/* Catches ranges that lose an end, lists that lose their last number, and anything that is let through. */
static void test_lists_of_processors(void **state)
{
    static const char *const bad[] = {
        ",",  "0,",  ",0", "-1",  "1-",   "3-1",    "0--1",       "0-1-2", "a",   "0,b",  " 1",
        "1 ", "0 1", "+1", "0x1", "1024", "0-1024", "4294967296", "1,,2",  "1;2", "0-,1", "18446744073709551616"};
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct config c;
    cpu_set_t set;

    (void)state;
    assert_int_equal(cpus_parse("0-3,8,1023,5-5", &set, &err), 0);
    assert_int_equal(CPU_COUNT(&set), 7);
    for (unsigned i = 0; i < CPU_SETSIZE; i++)
        assert_int_equal(CPU_ISSET(i, &set) != 0, i <= 3 || i == 5 || i == 8 || i == 1023);
    assert_int_equal(cpus_parse("", &set, &err), 0);
    assert_int_equal(CPU_COUNT(&set), 0);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(cpus_parse(bad[i], &set, &err), CAIRN_E_INVAL);
    assert_int_equal(load("[daemon]\ncpus = 0-\n", &c, &err), CAIRN_E_INVAL);
    assert_non_null(strstr(err.message, "[daemon] cpus"));
    assert_int_equal(load("[daemon]\ncpus = 0\nnice = 20\n", &c, &err), CAIRN_E_INVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults_are_a_laptop), cmocka_unit_test(test_values_are_read),
        cmocka_unit_test(test_later_files_win),       cmocka_unit_test(test_mistakes_are_named),
        cmocka_unit_test(test_missing_file),          cmocka_unit_test(test_lists_of_processors),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
