/* SPDX-License-Identifier: Apache-2.0 */
#include "client/tool/files.h"

#include "core/base/error.h"

#include "tests/unit/core/support.h"

#include <stdio.h>

static struct files_entry file(const char *path, uint64_t size)
{
    return (struct files_entry){.kind = FILES_FILE,
                                .path = (char *)path,
                                .mode = 0644,
                                .mtime_ns = 1700000000123456789,
                                .size = size,
                                .sum = {size, 7},
                                .device = 1,
                                .inode = size + 1};
}

static void add_file(struct files *f, const char *path, uint64_t size)
{
    struct files_entry e = file(path, size);

    assert_int_equal(files_add(f, &e, NULL), 0);
}

static void add_directory(struct files *f, const char *path)
{
    struct files_entry e = {.kind = FILES_DIRECTORY, .path = (char *)path, .mode = 0750};

    assert_int_equal(files_add(f, &e, NULL), 0);
}

static void tree(struct files *f)
{
    struct files_entry link = {.kind = FILES_LINK, .path = (char *)"sub/link", .target = (char *)"../b.bin"};

    files_init(f);
    assert_int_equal(files_set_name(f, "global_step500", NULL), 0);
    assert_int_equal(files_set_tracker(f, "latest", "global_step500", NULL), 0);
    f->mtime_ns = -5;
    add_file(f, "sub/a.json", 12);
    add_directory(f, "sub");
    add_directory(f, "sub/empty");
    assert_int_equal(files_add(f, &link, NULL), 0);
    add_file(f, "b.bin", (uint64_t)3 << 30);
    add_file(f, "sub.txt", 0);
    assert_int_equal(files_finish(f, NULL), 0);
}

/* Catches a path that leaves its tree, in every spelling. */
static void test_paths(void **state)
{
    static const char *const bad[] = {"",     "/",        "/etc/passwd", "..",         "../a",   "a/../b",
                                      "a/..", ".",        "./a",         "a//b",       "a/",     "a/./b",
                                      "a\nb", "a\x1b[2J", "\xff",        "a/\xc0\xaf", "a/b\x7f"};
    static const char *const good[] = {"a",   "a/b/c",       "...", "a b", ".metadata", "\xc3\xa4/\xe2\x82\xac",
                                       "-rf", "__0_0.distcp"};
    struct cairn_error err = CAIRN_ERROR_INIT;
    char deep[4096] = "d", name[300];
    (void)state;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(files_path_check(bad[i], &err), CAIRN_E_INVAL);
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        assert_int_equal(files_path_check(good[i], NULL), 0);
    assert_int_equal(files_path_check(NULL, NULL), CAIRN_E_INVAL);
    assert_int_equal(files_name_check("a/b", NULL), CAIRN_E_INVAL);
    assert_int_equal(files_name_check("a", NULL), 0);
    for (int i = 0; i < 70; i++)
        strcat(deep, "/d");
    assert_int_equal(files_path_check(deep, NULL), CAIRN_E_INVAL);
    memset(name, 'n', sizeof name);
    name[256] = '\0';
    assert_int_equal(files_path_check(name, NULL), CAIRN_E_INVAL);
    name[255] = '\0';
    assert_int_equal(files_path_check(name, NULL), 0);
    /* What others named must not steer the terminal. */
    assert_int_equal(files_path_check("x\x1b[31m", &err), CAIRN_E_INVAL);
    assert_null(strchr(err.message, '\x1b'));
}

/* Catches a link that leads out of the tree, also through another link. */
static void test_targets(void **state)
{
    static const struct {
        const char *path, *target;
    } bad[] = {{"a", ".."},          {"a", "../b"},     {"a/b", "../.."},  {"a/b", "../../c"},
               {"a", "/etc/passwd"}, {"a/b", "c/../d"}, {"a", ""},         {"a", "b/.."},
               {"a", "./b"},         {"a", "b//c"},     {"a/b", ".././c"}, {"a/b/c", "../../../d"},
               {"a", "b\nc"},        {"a", NULL}},
      good[] = {{"a", "b"}, {"a", "b/c"}, {"a/b", ".."}, {"a/b", "../c"}, {"a/b/c", "../../d/e"}, {"a/b/c", "../.."}};
    (void)state;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(files_target_check(bad[i].path, bad[i].target, NULL), CAIRN_E_INVAL);
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        assert_int_equal(files_target_check(good[i].path, good[i].target, NULL), 0);
}

/* Catches a field that does not come back, and a document that is longer once the checksums are known. */
static void test_document(void **state)
{
    struct files f, g;
    char *text, *again;
    size_t len, len_again;
    (void)state;

    tree(&f);
    assert_int_equal(files_encode(&f, &text, &len, NULL), 0);
    char *padded = malloc(len + 100);
    memcpy(padded, text, len);
    memset(padded + len, ' ', 100);
    assert_int_equal(files_decode(&g, padded, len + 100, NULL), 0);
    assert_true(files_describe(&g, &f));
    assert_string_equal(g.tracker_text, "global_step500");
    assert_int_equal(g.mtime_ns, -5);
    assert_int_equal(files_find(&g, "b.bin")->sum.low, (uint64_t)3 << 30);
    assert_int_equal(files_find(&g, "b.bin")->sum.high, 7);
    assert_string_equal(files_find(&g, "sub/link")->target, "../b.bin");
    assert_int_equal(files_find(&g, "sub")->mode, 0750);
    assert_null(files_find(&g, "sub/b"));
    for (uint32_t i = 0; i < g.count; i++)
        g.entries[i].sum = (struct hash128){UINT64_MAX, UINT64_MAX};
    assert_int_equal(files_encode(&g, &again, &len_again, NULL), 0);
    assert_int_equal(len, len_again);
    free(text);
    free(again);
    free(padded);
    files_free(&f);
    files_free(&g);
}

#define HEAD "{\"v\":1,\"name\":\"n\",\"mode\":493,\"mtime_ns\":0,\"entries\":["
#define FILE_OF(path) \
    "{\"path\":\"" path "\",\"kind\":\"file\",\"mode\":420,\"mtime_ns\":0,\"size\":1,\"xxh3\":\"" SUM "\"}"
#define DIR_OF(path) "{\"path\":\"" path "\",\"kind\":\"dir\",\"mode\":493,\"mtime_ns\":0}"
#define LINK_OF(path, to) "{\"path\":\"" path "\",\"kind\":\"link\",\"mtime_ns\":0,\"target\":\"" to "\"}"
#define SUM "00000000000000000000000000000000"

/* Catches a hostile document that a restore would follow out of its directory, or trip over. */
static void test_hostile(void **state)
{
    static const char *const bad[] = {
        "",
        "[]",
        "null",
        "{}",
        "{\"v\":1}",
        HEAD,
        HEAD "]} x",
        "{\"v\":2,\"name\":\"n\",\"mode\":0,\"mtime_ns\":0,\"entries\":[]}",
        "{\"v\":1,\"name\":\"..\",\"mode\":0,\"mtime_ns\":0,\"entries\":[]}",
        "{\"v\":1,\"name\":\"a/b\",\"mode\":0,\"mtime_ns\":0,\"entries\":[]}",
        "{\"v\":1,\"name\":\"n\",\"name\":\"m\",\"mode\":0,\"mtime_ns\":0,\"entries\":[]}",
        "{\"v\":1,\"name\":\"n\",\"mode\":2541,\"mtime_ns\":0,\"entries\":[]}", /* set-user-ID */
        "{\"v\":1,\"name\":\"n\",\"mode\":0,\"mtime_ns\":0,\"entries\":[],\"tracker\":{\"name\":\".profile\",\"text\":"
        "\"n\"}}",
        "{\"v\":1,\"name\":\"n\",\"mode\":0,\"mtime_ns\":0,\"entries\":[],\"tracker\":{\"name\":\"latest\",\"text\":"
        "\"rm\"}}",
        HEAD FILE_OF("../x") "]}",
        HEAD FILE_OF("/etc/x") "]}",
        HEAD FILE_OF("a\\u0000b") "]}",
        HEAD FILE_OF("a\\nb") "]}",
        HEAD FILE_OF("a") "," FILE_OF("a") "]}",        /* twice */
        HEAD FILE_OF("a/b") "]}",                       /* its directory is not there */
        HEAD FILE_OF("a") "," FILE_OF("a/b") "]}",      /* below a file */
        HEAD LINK_OF("a", "b") "," FILE_OF("a/c") "]}", /* below a link */
        HEAD LINK_OF("a", "/etc") "]}",
        HEAD LINK_OF("a", "..") "]}",
        HEAD LINK_OF("a", "") "]}",
        HEAD "{\"path\":\"a\",\"kind\":\"fifo\",\"mode\":420,\"mtime_ns\":0}]}",
        HEAD "{\"path\":\"a\",\"kind\":\"file\",\"mode\":420,\"mtime_ns\":0,\"size\":-1,\"xxh3\":\"" SUM "\"}]}",
        HEAD "{\"path\":\"a\",\"kind\":\"file\",\"mode\":4095,\"mtime_ns\":0,\"size\":1,\"xxh3\":\"" SUM "\"}]}",
        HEAD "{\"path\":\"a\",\"kind\":\"file\",\"mode\":420,\"mtime_ns\":0,\"size\":1,\"xxh3\":\"0\"}]}",
        HEAD "{\"path\":\"a\",\"kind\":\"file\",\"mode\":420,\"mtime_ns\":0,\"size\":1.5,\"xxh3\":\"" SUM "\"}]}",
        HEAD "7]}",
    };
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct files f;
    (void)state;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_true(files_decode(&f, bad[i], strlen(bad[i]), &err) < 0);
        assert_int_equal(f.count, 0);
        assert_null(f.entries);
    }
    static const char good[] = HEAD DIR_OF("a") "," LINK_OF("l", "a") "," FILE_OF("a/b") "]}";
    assert_int_equal(files_decode(&f, good, strlen(good), &err), 0);
    files_free(&f);
}

/* Catches a change that is not seen. */
static void test_changed(void **state)
{
    struct files a, b;
    (void)state;

    tree(&a);
    tree(&b);
    assert_null(files_changed(&a, &b));
    files_find(&b, "sub/a.json")->mtime_ns++;
    assert_string_equal(files_changed(&a, &b), "sub/a.json");
    assert_false(files_describe(&a, &b));
    files_find(&b, "sub/a.json")->mtime_ns--;
    files_find(&b, "b.bin")->size++;
    assert_string_equal(files_changed(&a, &b), "b.bin");
    files_find(&b, "b.bin")->size--;
    files_find(&b, "b.bin")->inode++;
    assert_string_equal(files_changed(&a, &b), "b.bin");
    assert_true(files_describe(&a, &b)); /* a copy of it is what is stored, too */
    files_find(&b, "b.bin")->inode--;
    add_file(&b, "new", 1);
    assert_int_equal(files_finish(&b, NULL), 0);
    assert_string_equal(files_changed(&a, &b), "new");
    assert_string_equal(files_changed(&b, &a), "new");
    assert_false(files_describe(&a, &b));
    assert_string_equal(files_added(&a, &b), "new");
    assert_null(files_added(&b, &a)); /* what is gone is not late */
    files_find(&a, "b.bin")->mtime_ns++;
    assert_string_equal(files_added(&b, &a), "b.bin");
    files_free(&a);
    files_free(&b);
}

/* Catches a rank's file that another one's hides. */
static void test_merge(void **state)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct files a, b;
    (void)state;

    tree(&a);
    tree(&b);
    add_file(&b, "rank1.pt", 5);
    assert_int_equal(files_finish(&b, NULL), 0);
    assert_int_equal(files_merge(&a, &b, 1, NULL), 0);
    assert_int_equal(a.count, b.count);
    assert_non_null(files_find(&a, "rank1.pt"));
    files_find(&b, "b.bin")->sum.low++;
    assert_int_equal(files_merge(&a, &b, 1, &err), CAIRN_E_EXISTS);
    assert_non_null(strstr(err.message, "b.bin"));
    assert_int_equal(files_set_name(&b, "other", NULL), 0);
    assert_int_equal(files_merge(&a, &b, 1, NULL), CAIRN_E_EXISTS);
    files_free(&a);
    files_free(&b);
}

/* Catches a layout that a growing trainer_state.json changes at every step, and a tensor shorter than its file. */
static void test_room(void **state)
{
    uint32_t order[8];
    struct files a, b;
    uint64_t room = 0, changes = 0;
    (void)state;

    for (uint64_t size = 0; size < 100000; size += 100) { /* a log that grows */
        uint64_t next = files_room(size, room);
        assert_true(next >= size && next > 0);
        changes += next != room;
        room = next;
    }
    assert_in_range(changes, 1, 25);
    assert_int_equal(files_room(100, 1 << 20), 4096); /* what is wasteful is given up */
    for (uint64_t size = 1; size < (uint64_t)1 << 40; size = size * 3 + 1)
        assert_true(files_room(size, 0) >= size && files_room(size, 0) <= size + size / 3 + 4096);
    tree(&a);
    tree(&b);
    assert_int_equal(files_arrange(&a, NULL, order), 3);
    assert_string_equal(a.entries[order[0]].path, "b.bin"); /* the large one first */
    assert_string_equal(a.entries[order[1]].path, "sub.txt");
    files_find(&a, "sub.txt")->room = 8192;
    files_arrange(&b, &a, order);
    assert_int_equal(files_find(&b, "sub.txt")->room, 8192);
    files_free(&a);
    files_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_paths),   cmocka_unit_test(test_targets), cmocka_unit_test(test_document),
        cmocka_unit_test(test_hostile), cmocka_unit_test(test_changed), cmocka_unit_test(test_merge),
        cmocka_unit_test(test_room),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
