/* SPDX-License-Identifier: Apache-2.0 */
/* What every store owes, asked of each real one through the door, on a real directory and a real io_uring. */
#include "core/base/error.h"
#include "core/model/units.h"
#include "daemon/io/plugins.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

struct world {
    struct loop *loop;
    struct plugins *plugins;
    struct store *store;
    char dir[64];
    struct cairn_param params[5];
};
struct pending {
    struct cairn_store_req req;
    bool done;
    int code;
};
static const struct cairn_stream_id id = {.job = "job", .step = 7, .incarnation = 2, .node = "n1"};

static void completed(struct cairn_store_req *req, int code)
{
    struct pending *p = req->arg;

    p->done = true;
    p->code = code;
}

static int wait_for(struct world *w, struct pending *p)
{
    for (int turns = 0; !p->done && turns < 5000; turns++)
        assert_int_equal(loop_turn(w->loop, 10, NULL), 0);
    assert_true(p->done);
    return p->code;
}

static void begin(struct pending *p)
{
    *p = (struct pending){.req = {.done = completed}};
    p->req.arg = p;
}

static char *record(size_t len, int seed)
{
    char *r = aligned_alloc(CAIRN_BLOCK, len);

    for (size_t i = 0; i < len; i++)
        r[i] = (char)(i * 7 + (size_t)seed * 13 + i / 4096);
    return r;
}

static int append(struct world *w, struct store_stream *st, size_t len, int seed, uint64_t *ret_offset,
                  struct cairn_error *err)
{
    struct pending p;
    char *r = record(len, seed);

    begin(&p);
    store_append(st, r, len, &p.req);
    int code = wait_for(w, &p);
    if (ret_offset)
        *ret_offset = p.req.offset;
    cairn_error_copy(err, &p.req.err);
    free(r);
    return code;
}

static int sync_stream(struct world *w, struct store_stream *st, struct cairn_error *err)
{
    struct pending p;

    begin(&p);
    store_sync(st, &p.req);
    int code = wait_for(w, &p);
    cairn_error_copy(err, &p.req.err);
    return code;
}

static int read_back(struct world *w, struct store_stream *st, uint64_t offset, size_t len, int seed)
{
    struct pending p;
    char *want = record(len, seed), *got = aligned_alloc(CAIRN_BLOCK, len);

    begin(&p);
    store_read(st, offset, got, len, &p.req);
    int code = wait_for(w, &p);
    if (code == 0)
        assert_memory_equal(want, got, len);
    free(want);
    free(got);
    return code;
}

static struct store *open_store(struct world *w)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct store *s = NULL;

    if (plugins_store_open(w->plugins, w->loop, "file", w->params, &s, &err) < 0)
        fail_msg("%s", err.message);
    return s;
}

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof *w);

    snprintf(w->dir, sizeof w->dir, "store-XXXXXX");
    if (!mkdtemp(w->dir) || loop_new(64, &w->loop, NULL) < 0 || plugins_new(PLUGIN_DIR, &w->plugins, NULL) < 0)
        return -1;
    w->params[0] = (struct cairn_param){"path", w->dir};
    w->params[1] = (struct cairn_param){"reserve_bytes", "0"};
    w->params[2] = (struct cairn_param){"recycle_bytes", "67108864"};
    w->store = open_store(w);
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;
    char command[128];

    store_close(w->store);
    plugins_free(w->plugins);
    loop_free(w->loop);
    snprintf(command, sizeof command, "rm -rf %s", w->dir);
    int r = system(command);
    free(w);
    return r;
}

static struct store_stream *create(struct world *w, uint64_t reserve, uint64_t *ret_generation)
{
    struct store_stream *st = NULL;
    struct cairn_error err = CAIRN_ERROR_INIT;
    uint64_t generation;

    if (store_create(w->store, &id, reserve, &st, &generation, &err) < 0)
        fail_msg("%s", err.message);
    if (ret_generation)
        *ret_generation = generation;
    return st;
}

static int count_streams(void *arg, const char *name)
{
    char *last = arg;

    snprintf(last, 512, "%s", name);
    last[512]++;
    return 0;
}

static void test_append_sync_reopen(void **state)
{
    struct world *w = *state;
    uint64_t generation, again, end, at[3];
    struct store_stream *st = create(w, 1 << 20, &generation);
    struct cairn_stream_id got;
    char name[513] = {0};

    assert_int_equal(append(w, st, 8192, 1, &at[0], NULL), 0);
    assert_int_equal(append(w, st, 4096, 2, &at[1], NULL), 0);
    assert_int_equal(append(w, st, 3 << 20, 3, &at[2], NULL), 0); /* beyond the reservation */
    assert_true(at[0] == CAIRN_STORE_FIRST && at[1] == at[0] + 8192 && at[2] == at[1] + 4096);
    assert_int_equal(sync_stream(w, st, NULL), 0);
    assert_int_equal(read_back(w, st, at[1], 4096, 2), 0);
    store_close_stream(st);
    assert_int_equal(store_list(w->store, count_streams, name, NULL), 0);
    assert_int_equal(name[512], 1);
    store_close(w->store);
    w->store = open_store(w);
    assert_int_equal(store_open_stream(w->store, name, &st, &got, &again, &end, NULL), 0);
    assert_true(again == generation && got.step == 7 && got.incarnation == 2 && strcmp(got.job, "job") == 0 &&
                strcmp(got.node, "n1") == 0);
    assert_true(end == at[2] + (3 << 20)); /* what was reserved and not used is given back */
    for (int i = 0; i < 3; i++)
        assert_int_equal(read_back(w, st, at[i], i == 0 ? 8192 : i == 1 ? 4096 : 3 << 20, i + 1), 0);
    assert_int_equal(read_back(w, st, end, 4096, 0), CAIRN_E_CORRUPT); /* behind the end */
    store_close_stream(st);
    assert_int_equal(store_remove(w->store, name, NULL), 0);
    assert_true(store_remove(w->store, name, NULL) < 0);
    assert_true(store_remove(w->store, "../../etc/passwd.cairn", NULL) < 0);
}

static void test_every_create_is_another_file(void **state)
{
    struct world *w = *state;
    uint64_t a, b;
    struct store_stream *x = create(w, 0, &a), *y = create(w, 0, &b);

    assert_true(a != b);
    assert_string_not_equal(store_stream_name(x), store_stream_name(y));
    assert_int_equal(sync_stream(w, x, NULL), 0); /* waits for the header */
    assert_int_equal(sync_stream(w, y, NULL), 0);
    store_close_stream(x);
    store_close_stream(y);
}

/* A failed write or sync must never look like a success later. */
/* Catches: an operation of the stream's own that is still on its way when the stream is closed, and freed. */
static void test_closed_at_once(void **state)
{
    struct world *w = *state;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct cairn_stream_id back;
    uint64_t generation, end, same;
    struct store_stream *st = create(w, 1 << 20, &generation);
    char *name = strdup(store_stream_name(st));

    store_close_stream(st);
    for (int turns = 0; turns < 3; turns++)
        assert_int_equal(loop_turn(w->loop, 1, NULL), 0);
    assert_int_equal(store_open_stream(w->store, name, &st, &back, &same, &end, &err), 0);
    assert_true(same == generation && end == CAIRN_BLOCK);
    store_close_stream(st);
    free(name);
}

static void test_a_failure_poisons_the_stream(void **state)
{
    struct world *w = *state;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct store_stream *st = create(w, 1 << 20, NULL);

    assert_int_equal(append(w, st, 4096, 1, NULL, NULL), 0);
    assert_int_equal(sync_stream(w, st, NULL), 0);
    loop_fault(w->loop, LOOP_FAULT_FDATASYNC, 1, EIO, false);
    assert_int_equal(sync_stream(w, st, &err), CAIRN_E_IO);
    assert_int_equal(sync_stream(w, st, &err), CAIRN_E_IO); /* the fault was injected once; the stream remembers */
    assert_non_null(strstr(err.message, "given up"));
    assert_int_equal(append(w, st, 4096, 1, NULL, NULL), CAIRN_E_IO);
    store_close_stream(st);
    st = create(w, 1 << 20, NULL);
    assert_int_equal(sync_stream(w, st, NULL), 0);
    loop_fault(w->loop, LOOP_FAULT_WRITE, 1, ENOSPC, false);
    assert_int_equal(append(w, st, 4096, 1, NULL, &err), CAIRN_E_NO_SPACE);
    assert_int_equal(sync_stream(w, st, &err), CAIRN_E_IO);
    store_close_stream(st);
}

static void test_room_is_reserved_first(void **state)
{
    struct world *w = *state;
    struct cairn_space space;
    struct store_stream *st;
    struct cairn_error err = CAIRN_ERROR_INIT;
    uint64_t generation;

    assert_int_equal(store_space(w->store, &space, NULL), 0);
    assert_true(space.total_bytes > 0 && space.free_bytes <= space.total_bytes);
    assert_int_equal(store_create(w->store, &id, space.free_bytes + (1 << 30), &st, &generation, &err),
                     CAIRN_E_NO_SPACE);
    assert_non_null(strstr(err.message, "free"));
    char name[513] = {0};
    assert_int_equal(store_list(w->store, count_streams, name, NULL), 0);
    assert_int_equal(name[512], 0); /* and nothing is left of it */
}

static ino_t inode_of(struct world *w, const char *name)
{
    char path[700];
    struct stat sb;

    snprintf(path, sizeof path, "%s/streams/%s", w->dir, name);
    assert_int_equal(stat(path, &sb), 0);
    return sb.st_ino;
}

/* A stream of 3 MiB that was synced and removed; its file's inode. */
static ino_t removed(struct world *w, uint64_t *ret_generation)
{
    struct store_stream *st = create(w, 3 << 20, ret_generation);

    for (int i = 0; i < 3; i++)
        assert_int_equal(append(w, st, 1 << 20, i, NULL, NULL), 0);
    assert_int_equal(sync_stream(w, st, NULL), 0);
    char *name = strdup(store_stream_name(st));
    store_close_stream(st);
    ino_t inode = inode_of(w, name);
    assert_int_equal(store_remove(w->store, name, NULL), 0);
    free(name);
    return inode;
}

static unsigned kept(struct world *w)
{
    char command[128];
    unsigned n = 0;

    snprintf(command, sizeof command, "ls %s/recycle | wc -l", w->dir);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%u", &n), 1);
    pclose(f);
    return n;
}

static void reopen(struct world *w, const char *recycle_bytes, const char *recycle_idle_s)
{
    store_close(w->store);
    w->params[2] = (struct cairn_param){"recycle_bytes", recycle_bytes};
    w->params[3] = (struct cairn_param){recycle_idle_s ? "recycle_idle_s" : NULL, recycle_idle_s};
    w->store = open_store(w);
}

static bool is_named(struct world *w, const char *name)
{
    char path[700];

    snprintf(path, sizeof path, "%s/streams/%s", w->dir, name);
    return access(path, F_OK) == 0;
}

static void in_store(struct world *w, const char *command)
{
    char line[1024];

    snprintf(line, sizeof line, "cd %s && %s", w->dir, command);
    assert_int_equal(system(line), 0);
}

/* Catches: a removed stream that is listed still, an old record behind a new stream's end, an old generation, a file
 * that is taken while somebody reads it. */
static void test_removed_files_are_written_over(void **state)
{
    struct world *w = *state;
    uint64_t old, young, again, end, at;
    struct cairn_stream_id got;
    char name[513] = {0};

    ino_t inode = removed(w, &old);
    assert_int_equal(store_list(w->store, count_streams, name, NULL), 0);
    assert_int_equal(name[512], 0);
    assert_int_equal(kept(w), 1);
    struct store_stream *st = create(w, 1 << 20, &young);
    snprintf(name, 512, "%s", store_stream_name(st));
    assert_int_equal(append(w, st, 8192, 9, &at, NULL), 0);
    assert_int_equal(sync_stream(w, st, NULL), 0);
    assert_true(inode_of(w, name) == inode && young != old);
    store_close_stream(st);
    assert_int_equal(store_open_stream(w->store, name, &st, &got, &again, &end, NULL), 0);
    assert_true(again == young && end == at + 8192);
    assert_int_equal(read_back(w, st, at, 8192, 9), 0);
    assert_int_equal(store_remove(w->store, name, NULL), 0); /* it is open: its file goes when it is closed */
    assert_int_equal(kept(w), 0);
    assert_int_equal(read_back(w, st, at, 8192, 9), 0);
    store_close_stream(st);
    removed(w, &old);
    assert_int_equal(kept(w), 1);
    store_close(w->store);
    assert_int_equal(kept(w), 0);
    w->store = open_store(w);
}

/* A killed predecessor's writes may still be on their way into what it wrote or had kept. Catches: its files kept when
 * they are removed, or handed out. */
static void test_a_predecessors_files_are_not_used(void **state)
{
    struct world *w = *state;
    struct store_stream *st = create(w, 3 << 20, NULL);
    char name[513] = {0};

    assert_int_equal(append(w, st, 2 << 20, 1, NULL, NULL), 0);
    assert_int_equal(sync_stream(w, st, NULL), 0);
    snprintf(name, sizeof name, "%s", store_stream_name(st));
    store_close_stream(st);
    store_close(w->store);
    in_store(w, "head -c 3000000 /dev/zero > recycle/7");
    w->store = open_store(w);
    assert_int_equal(kept(w), 0);
    assert_int_equal(store_remove(w->store, name, NULL), 0);
    assert_false(is_named(w, name));
    assert_int_equal(kept(w), 0);
}

/* Renames that were half there when the power went may leave one file two names with one link between them. Catches: an
 * unlink of the one that frees what the other shows. */
static void test_what_a_stream_shows_is_left_alone(void **state)
{
    struct world *w = *state;
    struct store_stream *st = create(w, 1 << 20, NULL);
    char command[700];

    assert_int_equal(sync_stream(w, st, NULL), 0);
    snprintf(command, sizeof command, "ln streams/%s recycle/7 && echo x > recycle/8", store_stream_name(st));
    store_close_stream(st);
    in_store(w, command);
    reopen(w, "67108864", NULL);
    assert_int_equal(kept(w), 1);
    in_store(w, "test recycle/7 -ef streams/job/*.cairn && rm streams/job/*.cairn");
    reopen(w, "67108864", NULL);
    assert_int_equal(kept(w), 0);
}

/* Catches: a name that shows the removed stream's records after a crash; a sync that completes before the name, or the
 * end of the file's old one, is durable. */
static void test_a_name_comes_with_its_header(void **state)
{
    static const char *const what[] = {"fdatasync", "sync the directory", "recycled files"};
    struct world *w = *state;
    struct cairn_error err = CAIRN_ERROR_INIT;
    char name[513] = {0};

    for (unsigned nth = 1; nth <= 3; nth++) {
        reopen(w, "67108864", NULL);
        removed(w, &(uint64_t){0});
        struct store_stream *st = create(w, 1 << 20, NULL);
        snprintf(name, sizeof name, "%s", store_stream_name(st));
        assert_int_equal(append(w, st, 4096, 1, NULL, NULL), 0);
        assert_false(is_named(w, name));
        loop_fault(w->loop, LOOP_FAULT_FDATASYNC, nth, EIO, false);
        assert_int_equal(sync_stream(w, st, &err), CAIRN_E_IO);
        assert_non_null(strstr(err.message, what[nth - 1]));
        assert_int_equal(is_named(w, name), nth > 1);
        store_close_stream(st);
        assert_int_equal(kept(w), 0);
    }
    reopen(w, "67108864", NULL);
    removed(w, &(uint64_t){0});
    struct store_stream *st = create(w, 1 << 20, NULL);
    snprintf(name, sizeof name, "%s", store_stream_name(st));
    store_close_stream(st); /* never synced: readers of this process find it all the same */
    assert_true(is_named(w, name));
}

static uint64_t file_size(struct world *w, const char *name)
{
    char path[700];
    struct stat sb;

    snprintf(path, sizeof path, "%s/streams/%s", w->dir, name);
    assert_int_equal(stat(path, &sb), 0);
    return (uint64_t)sb.st_size;
}

/* Catches: an old tail behind what was reserved, or one whose end nobody can tell; a large file cut for a small
 * stream. */
static void test_no_more_than_needed(void **state)
{
    struct world *w = *state;
    struct store_stream *st;
    char block[CAIRN_BLOCK], path[700];

    removed(w, &(uint64_t){0});                  /* 3 MiB and a header */
    for (uint64_t mib = 1; mib <= 5; mib += 4) { /* cut; then grown */
        st = create(w, mib << 20, NULL);
        assert_int_equal(sync_stream(w, st, NULL), 0);
        uint64_t reserved = (mib << 20) + CAIRN_BLOCK, old = mib == 1 ? reserved : (3 << 20) + CAIRN_BLOCK;
        assert_true(file_size(w, store_stream_name(st)) == reserved + CAIRN_BLOCK);
        snprintf(path, sizeof path, "%s/streams/%s", w->dir, store_stream_name(st));
        int fd = open(path, O_RDONLY);
        assert_true(fd >= 0 && pread(fd, block, sizeof block, (off_t)old) == sizeof block);
        assert_memory_equal(block, CAIRN_STORE_BLANK, strlen(CAIRN_STORE_BLANK));
        close(fd);
        store_close_stream(st);
        removed(w, &(uint64_t){0});
    }
    reopen(w, "67108864", NULL);
    st = create(w, 12 << 20, NULL);
    for (int i = 0; i < 12; i++)
        assert_int_equal(append(w, st, 1 << 20, i, NULL, NULL), 0);
    char *name = strdup(store_stream_name(st));
    store_close_stream(st);
    assert_int_equal(store_remove(w->store, name, NULL), 0);
    free(name);
    assert_int_equal(kept(w), 1);
    st = create(w, 1 << 20, NULL);
    assert_true(is_named(w, store_stream_name(st))); /* a new file */
    assert_int_equal(kept(w), 1);
    store_close_stream(st);
}

/* Catches: more kept than was asked for, what nobody wants kept for good. */
static void test_the_bounds_of_what_is_kept(void **state)
{
    struct world *w = *state;
    struct cairn_space space;
    struct store_stream *st[3];

    reopen(w, "8388608", NULL);
    for (int i = 0; i < 3; i++) {
        st[i] = create(w, 3 << 20, NULL);
        for (int n = 0; n < 3; n++)
            assert_int_equal(append(w, st[i], 1 << 20, n, NULL, NULL), 0);
    }
    for (int i = 0; i < 3; i++) {
        char *name = strdup(store_stream_name(st[i]));
        store_close_stream(st[i]);
        assert_int_equal(store_remove(w->store, name, NULL), 0);
        free(name);
    }
    assert_int_equal(kept(w), 2);
    in_store(w, "test ! -e recycle/0"); /* the oldest gave way */
    reopen(w, "0", NULL);
    removed(w, &(uint64_t){0});
    assert_int_equal(kept(w), 0);
    reopen(w, "8388608", "0");
    removed(w, &(uint64_t){0});
    assert_int_equal(kept(w), 1);
    assert_int_equal(store_space(w->store, &space, NULL), 0);
    assert_int_equal(kept(w), 0);
}

/* Catches: a full device that refuses a write while files are kept. */
static void test_a_full_device_gets_its_room_back(void **state)
{
    struct world *w = *state;
    struct cairn_error err = CAIRN_ERROR_INIT;
    uint64_t at;
    struct store_stream *st = create(w, 1 << 20, NULL);

    removed(w, &(uint64_t){0});
    assert_int_equal(kept(w), 1);
    loop_fault(w->loop, LOOP_FAULT_WRITE, 1, ENOSPC, false);
    assert_int_equal(append(w, st, 65536, 4, &at, NULL), 0);
    assert_int_equal(kept(w), 0);
    assert_int_equal(read_back(w, st, at, 65536, 4), 0);
    loop_fault(w->loop, LOOP_FAULT_WRITE, 1, ENOSPC, false);
    assert_int_equal(append(w, st, 4096, 4, NULL, &err), CAIRN_E_NO_SPACE);
    store_close_stream(st);
    removed(w, &(uint64_t){0}); /* a full device is not a failed one */
    assert_int_equal(kept(w), 1);
}

/* The child writes over a removed stream's file, syncs part of it or nothing, and waits for its end. */
static void write_over_and_wait(struct world *w, int ready_fd, bool synced)
{
    struct store_stream *st;
    uint64_t generation;

    if (loop_new(64, &w->loop, NULL) < 0)
        _exit(1);
    w->store = open_store(w);
    removed(w, &generation);
    if (store_create(w->store, &id, 3 << 20, &st, &generation, NULL) < 0 || append(w, st, 65536, 5, NULL, NULL) < 0 ||
        (synced && sync_stream(w, st, NULL) < 0) || append(w, st, 4096, 6, NULL, NULL) < 0 ||
        write(ready_fd, "x", 1) != 1)
        _exit(1);
    for (;;)
        pause();
}

static void killed_on_a_recycled_file(struct world *w, bool synced)
{
    int ready[2];
    char name[513] = {0}, byte;
    struct store_stream *st;
    struct cairn_stream_id got;
    uint64_t generation, end;

    store_close(w->store);
    w->store = NULL;
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct world child = *w;
        write_over_and_wait(&child, ready[1], synced);
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    close(ready[0]);
    w->store = open_store(w);
    assert_int_equal(kept(w), 0);
    assert_int_equal(store_list(w->store, count_streams, name, NULL), 0);
    assert_int_equal(name[512], synced);
    if (!synced)
        return;
    assert_int_equal(store_open_stream(w->store, name, &st, &got, &generation, &end, NULL), 0);
    assert_int_equal(read_back(w, st, CAIRN_STORE_FIRST, 65536, 5), 0);
    assert_true(end > 3 << 20); /* what was reserved is there still */
    store_close_stream(st);
    assert_int_equal(store_remove(w->store, name, NULL), 0);
    assert_int_equal(kept(w), 0);
}

/* Catches: a stream that was never synced and is listed with another one's records; a synced one that is lost. */
static void test_killed_on_a_recycled_file(void **state)
{
    killed_on_a_recycled_file(*state, false);
    killed_on_a_recycled_file(*state, true);
}

static void test_a_failed_device_is_not_used_again(void **state)
{
    struct world *w = *state;
    uint64_t generation;

    removed(w, &generation);
    assert_int_equal(kept(w), 1);
    struct store_stream *st = create(w, 8 << 20, NULL);
    loop_fault(w->loop, LOOP_FAULT_FDATASYNC, 1, EIO, false);
    assert_int_equal(append(w, st, 4096, 1, NULL, NULL), 0);
    assert_int_equal(sync_stream(w, st, NULL), CAIRN_E_IO);
    store_close_stream(st);
    removed(w, &generation);
    assert_int_equal(kept(w), 0);
}

static void test_one_owner(void **state)
{
    struct world *w = *state;
    struct store *s;
    struct cairn_error err = CAIRN_ERROR_INIT;

    assert_int_equal(plugins_store_open(w->plugins, w->loop, "file", w->params, &s, &err), CAIRN_E_EXISTS);
    assert_non_null(strstr(err.message, "in use"));
}

static void flip_byte(const char *dir, const char *name, off_t at)
{
    char path[700], byte = 0;

    snprintf(path, sizeof path, "%s/streams/%s", dir, name);
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0 && pread(fd, &byte, 1, at) == 1);
    byte ^= 4;
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

static void test_a_damaged_header_is_named(void **state)
{
    struct world *w = *state;
    struct store_stream *st = create(w, 0, NULL);
    struct cairn_stream_id got;
    struct cairn_error err = CAIRN_ERROR_INIT;
    uint64_t generation, end;
    char name[513] = {0};

    assert_int_equal(sync_stream(w, st, NULL), 0);
    store_close_stream(st);
    assert_int_equal(store_list(w->store, count_streams, name, NULL), 0);
    flip_byte(w->dir, name, 8);
    assert_int_equal(store_open_stream(w->store, name, &st, &got, &generation, &end, &err), CAIRN_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "version"));
    flip_byte(w->dir, name, 8);
    flip_byte(w->dir, name, 50);
    assert_int_equal(store_open_stream(w->store, name, &st, &got, &generation, &end, &err), CAIRN_E_CORRUPT);
    assert_non_null(strstr(err.message, name));
}

/* A process that is killed while it writes: what was synced is there for the next one. */
static void test_synced_data_outlives_a_kill(void **state)
{
    struct world *w = *state;
    int ready[2];
    char name[513] = {0}, byte;

    store_close(w->store);
    w->store = NULL;
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct world child = *w;
        struct store_stream *st;
        uint64_t generation;
        if (loop_new(64, &child.loop, NULL) < 0)
            _exit(1);
        child.store = open_store(&child);
        if (store_create(child.store, &id, 1 << 20, &st, &generation, NULL) < 0 ||
            append(&child, st, 65536, 5, NULL, NULL) < 0 || sync_stream(&child, st, NULL) < 0 ||
            write(ready[1], "x", 1) != 1)
            _exit(1);
        for (;;)
            append(&child, st, 65536, 6, NULL, NULL);
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    w->store = open_store(w); /* the lock went with the process */
    assert_int_equal(store_list(w->store, count_streams, name, NULL), 0);
    struct store_stream *st;
    struct cairn_stream_id got;
    uint64_t generation, end;
    assert_int_equal(store_open_stream(w->store, name, &st, &got, &generation, &end, NULL), 0);
    assert_int_equal(read_back(w, st, CAIRN_STORE_FIRST, 65536, 5), 0);
    store_close_stream(st);
    close(ready[0]);
    close(ready[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_append_sync_reopen, setup, teardown),
        cmocka_unit_test_setup_teardown(test_every_create_is_another_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_closed_at_once, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_failure_poisons_the_stream, setup, teardown),
        cmocka_unit_test_setup_teardown(test_room_is_reserved_first, setup, teardown),
        cmocka_unit_test_setup_teardown(test_removed_files_are_written_over, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_predecessors_files_are_not_used, setup, teardown),
        cmocka_unit_test_setup_teardown(test_what_a_stream_shows_is_left_alone, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_name_comes_with_its_header, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_more_than_needed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_the_bounds_of_what_is_kept, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_full_device_gets_its_room_back, setup, teardown),
        cmocka_unit_test_setup_teardown(test_killed_on_a_recycled_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_failed_device_is_not_used_again, setup, teardown),
        cmocka_unit_test_setup_teardown(test_one_owner, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_damaged_header_is_named, setup, teardown),
        cmocka_unit_test_setup_teardown(test_synced_data_outlives_a_kill, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
