/* SPDX-License-Identifier: Apache-2.0 */
/* Tracking with this kernel: whatever happens to the tensors between two saves, what comes back is what they held; and
 * what did not change is not copied. Where the kernel lacks it everything is copied, which is put to the test then. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/tracker.h"
#include "tests/unit/client/support.h"

#define PAGE ((size_t)4096)

static bool tracks; /* this kernel, for us */

struct tensor {
    const char *name;
    char *memory; /* of the mapping, or of malloc */
    size_t mapped;
    char *data;
    uint64_t bytes;
    int64_t *stride;
    uint32_t flags;
};

static void open_tracking(struct fake *f, unsigned threads, struct cairn_session **ret_session)
{
    struct cairn_session_options o = {.size = sizeof(o),
                                      .job = "job",
                                      .world_size = 1,
                                      .arena_bytes = 64 << 20,
                                      .start_id = "start",
                                      .socket_path = fake_path(f),
                                      .timeout_ms = 5000,
                                      .copy_threads = threads,
                                      .flags = CAIRN_TRACK};

    OK(cairn_session_open(&o, ret_session, &err));
}

static void map_tensor(struct tensor *t, const char *name, uint64_t bytes, size_t offset, int flags)
{
    *t = (struct tensor){.name = name, .bytes = bytes, .mapped = (offset + bytes + PAGE - 1) / PAGE * PAGE};
    t->memory = mmap(NULL, t->mapped, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(t->memory, MAP_FAILED);
    (void)madvise(t->memory, t->mapped, MADV_HUGEPAGE);
    t->data = t->memory + offset;
    fill_random(t->data, bytes, bytes);
}

static struct cairn_tensor describe(const struct tensor *t)
{
    return (struct cairn_tensor){.size = sizeof(struct cairn_tensor),
                                 .name = t->name,
                                 .dtype = CAIRN_BYTES,
                                 .ndim = 1,
                                 .shape = &t->bytes,
                                 .stride_bytes = t->stride,
                                 .data = t->data,
                                 .flags = t->flags};
}

static void save(struct cairn_session *s, uint64_t step, const struct tensor *t, size_t n,
                 struct cairn_save_info *ret_info)
{
    struct cairn_save *save;

    OK(begin(s, step, &save));
    for (size_t i = 0; i < n; i++) {
        struct cairn_tensor d = describe(&t[i]);
        OK(cairn_save_add(save, &d, &err));
    }
    OK(cairn_save_seal(save, &err));
    OK(cairn_save_wait(save, CAIRN_COMMITTED, 5000, &err));
    *ret_info = (struct cairn_save_info){.size = sizeof(*ret_info)};
    assert_int_equal(cairn_save_info(save, ret_info), 0);
    cairn_save_free(save);
}

static bool is_equal(const char *back, const struct tensor *t)
{
    for (uint64_t b = 0; t->stride && b < t->bytes; b++)
        if (back[b] != t->data[(int64_t)b * *t->stride])
            return false;
    return t->stride || memcmp(back, t->data, t->bytes) == 0;
}

static void check(struct cairn_session *s, uint64_t step, const struct tensor *t, size_t n)
{
    struct cairn_restore *r;
    char *back[16];

    OK(cairn_restore_open(s, step, 5000, &r, &err));
    for (size_t i = 0; i < n; i++) {
        struct cairn_tensor d = describe(&t[i]);
        back[i] = calloc(1, t[i].bytes);
        d.data = back[i];
        d.stride_bytes = NULL;
        OK(cairn_restore_add(r, &d, &err));
    }
    OK(cairn_restore_run(r, 5000, NULL, NULL, &err));
    cairn_restore_free(r);
    for (size_t i = 0; i < n; i++) {
        if (!is_equal(back[i], &t[i]))
            fail_msg("step %d: tensor %s is not what it was", (int)step, t[i].name);
        free(back[i]);
    }
}

static void end(struct fake *f, struct cairn_session *s, const struct tensor *t, size_t n)
{
    cairn_session_close(s);
    assert_null(fake_complaint(f));
    fake_stop(f);
    for (size_t i = 0; i < n; i++)
        munmap(t[i].memory, t[i].mapped);
}

/* ---- how much is copied ---------------------------------------------------------------------- */

/* Two places in turn: a page of the arena is two saves old. Catches: everything is copied; a change is forgotten when
 * the save after it went elsewhere. */
static void test_only_what_changed(void **state)
{
    struct fake *f = fake_start();
    struct cairn_session *s;
    struct cairn_save_info info;
    struct tensor t[2];
    uint64_t step = 0;

    (void)state;
    fake_wander(f, 2);
    map_tensor(&t[0], "large", 5 * ((uint64_t)1 << 20), 0, MAP_PRIVATE);
    map_tensor(&t[1], "odd", 300001, 77, MAP_PRIVATE);
    open_tracking(f, 2, &s);
    static const struct {
        size_t page; /* of the large one that is written before; 0: none */
        uint64_t pages;
    } saves[] = {{0, 0}, {0, 0}, {3, 1}, {0, 1}, {0, 0}, {700, 1}, {701, 2}, {0, 1}, {0, 0}};
    for (size_t i = 0; i < sizeof(saves) / sizeof(saves[0]); i++) {
        if (saves[i].page)
            t[0].data[saves[i].page * PAGE + 5]++;
        save(s, ++step, t, 2, &info);
        check(s, step, t, 2);
        assert_int_equal(info.bytes, t[0].bytes + t[1].bytes);
        uint64_t edges = (PAGE - 77) + (300001 + 77) % PAGE; /* of the odd one: pages that others may share */
        if (!tracks || i < 2)
            assert_int_equal(info.copied_bytes, info.bytes);
        else
            assert_int_equal(info.copied_bytes, saves[i].pages * PAGE + edges);
    }
    assert_int_equal(info.tracked_bytes,
                     tracks ? t[0].bytes + 300001 / PAGE * PAGE - PAGE * (300001 % PAGE < 4020) : 0);
    end(f, s, t, 2);
}

/* Above a quarter a tensor is left alone for a while, and others are not. */
static void test_what_changes_much_is_not_tracked(void **state)
{
    struct fake *f = fake_start();
    struct cairn_session *s;
    struct cairn_save_info info;
    struct tensor t[2];
    uint64_t step = 0;

    (void)state;
    map_tensor(&t[0], "busy", 200 * PAGE, 0, MAP_PRIVATE);
    map_tensor(&t[1], "idle", 100 * PAGE, 0, MAP_PRIVATE);
    open_tracking(f, 1, &s);
    for (unsigned i = 0; i < 24; i++) {
        if (i == 2 || i == 3) {
            for (unsigned p = 0; p < 51; p++) /* of 200 */
                t[0].data[p * PAGE]++;
        }
        save(s, ++step, t, 2, &info);
        check(s, step, t, 2);
        if (i == 1 && tracks)
            assert_int_equal(info.tracked_bytes, 300 * PAGE);
        if (i >= 2 && i < 18 && tracks) {
            assert_int_equal(info.tracked_bytes, 100 * PAGE);
            assert_int_equal(info.copied_bytes, 200 * PAGE);
        }
    }
    if (tracks) {
        assert_int_equal(info.tracked_bytes, 300 * PAGE); /* it was tried again */
        assert_int_equal(info.copied_bytes, 0);
    }
    end(f, s, t, 2);
}

/* Memory of its own somewhere else, with the same bytes. */
static void carry(struct tensor *t)
{
    char *to = mmap(NULL, t->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    assert_ptr_not_equal(to, MAP_FAILED);
    memcpy(to, t->memory, t->mapped);
    munmap(t->memory, t->mapped);
    t->data = to + (t->data - t->memory);
    t->memory = to;
}

/* A tensor that is somewhere else in every save costs more to watch than to copy: after four moves it is left alone for
 * good. Three are forgiven, and so are more if there are enough saves in between. */
static void test_what_moves_too_often_is_not_tracked(void **state)
{
    enum { RESTLESS, MOVED, NOW_AND_THEN, N };
    struct fake *f = fake_start();
    struct cairn_session *s;
    struct cairn_save_info info;
    struct tensor t[N];

    (void)state;
    map_tensor(&t[RESTLESS], "restless", 50 * PAGE, 0, MAP_PRIVATE);
    map_tensor(&t[MOVED], "moved", 60 * PAGE, 0, MAP_PRIVATE);
    map_tensor(&t[NOW_AND_THEN], "now and then", 70 * PAGE, 0, MAP_PRIVATE);
    open_tracking(f, 1, &s);
    for (uint64_t step = 1; step <= 60; step++) {
        if (step >= 2 && step < 6)
            carry(&t[RESTLESS]);
        if (step >= 2 && step < 5)
            carry(&t[MOVED]);
        if (step % 10 == 0)
            carry(&t[NOW_AND_THEN]);
        save(s, step, t, N, &info);
        check(s, step, t, N);
        if (step == 5 && tracks)
            assert_int_equal(info.tracked_bytes, (60 + 70) * PAGE);
    }
    if (tracks)
        assert_int_equal(info.tracked_bytes, (60 + 70) * PAGE);
    end(f, s, t, N);
}

/* Every watched tensor may split a mapping, of which a process has a bounded number: there is an end to it, and what is
 * beyond is copied. Nothing is copied here, only watched: the tensors are 512 MiB that were never touched. */
static void test_not_more_than_8192(void **state)
{
    enum { ALL = 8200, WATCHED = 8192, PAGES = 16 };
    static struct image_source sources[ALL];
    const uint64_t bytes = PAGES * PAGE;
    struct cairn_layout layout;
    struct plan *plan = NULL;
    struct tracker *tracker = NULL;
    struct tracked tracked;
    char why[TRACKER_TEXT], name[16];
    uint64_t watched, first;

    (void)state;
    char *memory = mmap(NULL, ALL * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_ptr_not_equal(memory, MAP_FAILED);
    cairn_layout_init(&layout);
    for (size_t i = 0; i < ALL; i++) {
        (void)snprintf(name, sizeof(name), "t%zu", i);
        struct cairn_tensor d = bytes_tensor(name, &bytes, NULL);
        OK(cairn_layout_add(&layout, &d, &err));
        sources[i].data = memory + i * bytes;
    }
    OK(plan_make(&layout, &plan, &err));
    plan->serial = 1;
    OK(tracker_new(&tracker, &err));
    tracker_begin(tracker, plan, sources, &tracked);
    assert_int_equal(tracked_pages(&tracked, WATCHED - 1, &first) != NULL, tracks);
    assert_null(tracked_pages(&tracked, WATCHED, &first));
    tracker_end(&tracked);
    tracker_describe(tracker, why, &watched);
    assert_int_equal(watched, tracks ? WATCHED * bytes : 0);
    tracker_free(tracker, false);
    plan_free(plan);
    munmap(memory, ALL * bytes);
}

/* ---- who else writes ------------------------------------------------------------------------- */

/* Memory that others can write to is always copied. */
static void test_shared_memory(void **state)
{
    struct fake *f = fake_start();
    struct cairn_session *s;
    struct cairn_save_info info;
    struct tensor t;

    (void)state;
    map_tensor(&t, "shared", 100 * PAGE, 0, MAP_SHARED);
    open_tracking(f, 1, &s);
    for (uint64_t step = 1; step < 6; step++) {
        pid_t child = fork();
        if (child == 0) {
            t.data[step * 3 * PAGE]++; /* through other page tables */
            _exit(0);
        }
        assert_int_equal(waitpid(child, NULL, 0), child);
        save(s, step, &t, 1, &info);
        check(s, step, &t, 1);
        assert_int_equal(info.copied_bytes, t.bytes);
    }
    end(f, s, &t, 1);
}

/* Memory that the kernel pinned for a device, as io_uring's registered buffers are: writes go past the page tables. */
static int read_pinned(struct io_uring *ring, const struct tensor *t)
{
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
    struct io_uring_cqe *cqe;

    assert_true(fd >= 0 && sqe);
    io_uring_prep_read_fixed(sqe, fd, t->data, (unsigned)t->bytes, 0, 0);
    assert_int_equal(io_uring_submit_and_wait(ring, 1), 1);
    assert_int_equal(io_uring_peek_cqe(ring, &cqe), 0);
    int n = cqe->res;
    io_uring_cqe_seen(ring, cqe);
    close(fd);
    return n;
}

static void pinned(uint32_t flags)
{
    struct fake *f = fake_start();
    struct cairn_session *s;
    struct cairn_save_info info;
    struct io_uring ring;
    struct tensor t[2];

    map_tensor(&t[0], "pinned", 64 * PAGE, 0, MAP_PRIVATE);
    map_tensor(&t[1], "ordinary", 64 * PAGE, 0, MAP_PRIVATE);
    t[0].flags = flags;
    struct iovec pin = {t[0].data, t[0].bytes};
    if (io_uring_queue_init(4, &ring, 0) < 0 || io_uring_register_buffers(&ring, &pin, 1) < 0) {
        print_message("no registered buffers here\n");
        skip();
    }
    open_tracking(f, 1, &s);
    for (uint64_t step = 1; step < 6; step++) {
        if (step > 2)
            assert_int_equal(read_pinned(&ring, &t[0]), t[0].bytes);
        save(s, step, t, 2, &info);
        check(s, step, t, 2);
        if (tracks && flags && step > 1)
            assert_int_equal(info.copied_bytes, t[0].bytes);
    }
    if (tracks && !flags) /* one page in each save is compared */
        assert_non_null(strstr(info.tracking, "tensor \"pinned\" was written behind the kernel's back"));
    if (tracks && flags)
        assert_string_equal(info.tracking, "on");
    io_uring_queue_exit(&ring);
    end(f, s, t, 2);
}

static void test_device_that_is_named(void **state)
{
    (void)state;
    pinned(CAIRN_TENSOR_DEVICE_WRITES);
}

static void test_device_that_is_not_named(void **state)
{
    (void)state;
    pinned(0);
}

static void test_unknown_flag(void **state)
{
    struct fake *f = fake_start();
    struct cairn_session *s;
    struct cairn_save *save;
    struct tensor t;

    (void)state;
    map_tensor(&t, "t", PAGE, 0, MAP_PRIVATE);
    t.flags = 1u << 7;
    open_tracking(f, 1, &s);
    OK(begin(s, 1, &save));
    struct cairn_tensor d = describe(&t);
    FAILS(CAIRN_E_INVAL, cairn_save_add(save, &d, &err));
    cairn_save_free(save);
    end(f, s, &t, 1);
}

/* ---- anything, at random --------------------------------------------------------------------- */

#ifdef __SANITIZE_THREAD__
#define STEPS 20 /* each takes twenty times as long */
#else
#define STEPS 80
#endif

enum { MAPPED, ODD, HEAP, TIED, STRIDED, SMALL, NTENSORS };

static uint64_t random_state = 1;
static uint64_t draw(uint64_t below)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % below;
}

static void write_some(struct tensor *t)
{
    for (uint64_t n = 1 + draw(5); n > 0; n--)
        t->data[draw(t->bytes)] = (char)draw(256);
}

static void read_into(struct tensor *t)
{
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    size_t at = draw(t->bytes), len = draw(t->bytes - at < 9000 ? t->bytes - at : 9000);

    assert_true(fd >= 0);
    assert_int_equal(read(fd, t->data + at, len), len);
    close(fd);
}

static void drop_pages(struct tensor *t)
{
    size_t n = t->mapped / PAGE, first = draw(n);

    assert_int_equal(madvise(t->memory + first * PAGE, (1 + draw(n - first)) * PAGE, MADV_DONTNEED), 0);
    if (draw(2))
        (void)*(volatile char *)(t->memory + first * PAGE);
}

/* The same address, another mapping. */
static void map_anew(struct tensor *t)
{
    void *p = mmap(t->memory, t->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

    assert_ptr_equal(p, t->memory);
    if (draw(2))
        fill_random(t->data, t->bytes, draw(1000));
}

/* A mapping whose middle is watched is several for the kernel, which mremap does not take: then by hand. */
static void move(struct tensor *t)
{
    size_t offset = (size_t)(t->data - t->memory);
    char *to = mremap(t->memory, t->mapped, t->mapped, MREMAP_MAYMOVE | MREMAP_DONTUNMAP);

    if (to == MAP_FAILED) {
        to = mmap(NULL, t->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_ptr_not_equal(to, MAP_FAILED);
        memcpy(to, t->memory, t->mapped);
    }
    munmap(t->memory, t->mapped);
    t->memory = to;
    t->data = to + offset;
}

static void allocate_anew(struct tensor *t)
{
    char *p = malloc(t->bytes);

    assert_non_null(p);
    memcpy(p, t->data, t->bytes);
    p[draw(t->bytes)]++;
    free(t->data);
    t->memory = t->data = p;
}

/* The child's writes are its own; ours go to fresh copies of the pages meanwhile. */
static void fork_and_write(struct tensor *t)
{
    int gate[2];
    char byte;

    assert_int_equal(pipe(gate), 0);
    pid_t child = fork();
    if (child == 0) {
        close(gate[1]);
        t->data[0] = 99;
        (void)!read(gate[0], &byte, 1);
        _exit(0);
    }
    write_some(t);
    close(gate[0]);
    close(gate[1]);
    assert_int_equal(waitpid(child, NULL, 0), child);
}

static void disturb(struct tensor *t)
{
    struct tensor *any = &t[draw(NTENSORS)];

    switch (draw(12)) {
    case 0:
        fill_random(any->data, any->bytes, draw(1000));
        break;
    case 1:
        drop_pages(&t[draw(2)]);
        break;
    case 2:
        map_anew(&t[draw(2)]);
        break;
    case 3:
        move(&t[ODD]);
        break;
    case 4:
        allocate_anew(&t[HEAP]);
        break;
    case 5:
        fork_and_write(any);
        break;
    case 6:
    case 7:
        read_into(any);
        break;
    default:
        write_some(any);
    }
    t[TIED].data = t[MAPPED].data;
}

static void test_random(void **state)
{
    struct fake *f = fake_start();
    struct cairn_session *s;
    struct cairn_save_info info;
    struct tensor t[NTENSORS];
    static int64_t every_third = 3;
    uint64_t left_out = 0;

    (void)state;
    if (getenv("CAIRN_TEST_SEED"))
        random_state = strtoull(getenv("CAIRN_TEST_SEED"), NULL, 10);
    map_tensor(&t[MAPPED], "mapped", 1500 * 1000, 0, MAP_PRIVATE);
    map_tensor(&t[ODD], "odd", 300 * 1000, 100, MAP_PRIVATE);
    t[HEAP] = (struct tensor){.name = "heap", .data = random_bytes(900 * 1000, 4), .bytes = 900 * 1000};
    t[TIED] = (struct tensor){.name = "tied", .data = t[MAPPED].data, .bytes = 1000 * 1000};
    t[STRIDED] = (struct tensor){
        .name = "strided", .data = random_bytes(60 * 1000, 5), .bytes = 20 * 1000, .stride = &every_third};
    t[SMALL] = (struct tensor){.name = "small", .data = random_bytes(2000, 6), .bytes = 2000};
    open_tracking(f, 2, &s);
    for (uint64_t step = 1; step <= STEPS; step++) {
        fake_wander(f, 1 + (unsigned)draw(3));
        if (draw(4)) /* else nothing changes */
            for (uint64_t n = 1 + draw(2); n > 0; n--)
                disturb(t);
        save(s, step, t, NTENSORS, &info);
        check(s, step, t, NTENSORS);
        left_out += info.bytes - info.copied_bytes;
    }
    assert_string_equal(tracks ? "on" : info.tracking, info.tracking);
    if (tracks)
        assert_true(left_out > STEPS / 27 * info.bytes);
    end(f, s, t, HEAP); /* MAPPED and ODD */
    free(t[HEAP].data);
    free(t[STRIDED].data);
    free(t[SMALL].data);
}

/* ---- threads --------------------------------------------------------------------------------- */

struct saver {
    struct cairn_session *session;
    struct tensor t;
    uint64_t first_step;
};

static void *save_often(void *arg)
{
    struct saver *v = arg;

    for (uint64_t i = 0; i < 20; i++) {
        struct cairn_save_options o = {.size = sizeof(o), .step = v->first_step + 2 * i};
        struct cairn_tensor d = describe(&v->t);
        struct cairn_save *save;
        v->t.data[i * PAGE] = (char)i;
        if (cairn_save_begin(v->session, &o, &save, NULL) < 0 || cairn_save_add(save, &d, NULL) < 0 ||
            cairn_save_seal(save, NULL) < 0)
            return (void *)"failed";
        cairn_save_free(save);
    }
    return NULL;
}

/* Two threads with one session, whose plans push each other out. The fake gives both the same pages: what is saved is
 * not looked at, only that nothing races. */
static void test_two_threads(void **state)
{
    struct fake *f = fake_start();
    struct saver v[2];
    pthread_t thread[2];
    struct cairn_session *s;

    (void)state;
    open_tracking(f, 1, &s);
    for (unsigned i = 0; i < 2; i++) {
        v[i] = (struct saver){.session = s, .first_step = i + 1};
        map_tensor(&v[i].t, i ? "a" : "b", 100 * PAGE, 0, MAP_PRIVATE);
    }
    fake_wander(f, 4);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, save_often, &v[i]), 0);
    for (unsigned i = 0; i < 2; i++) {
        void *failed = NULL;
        assert_int_equal(pthread_join(thread[i], &failed), 0);
        assert_null(failed);
    }
    cairn_session_close(s);
    fake_stop(f);
    munmap(v[0].t.memory, v[0].t.mapped);
    munmap(v[1].t.memory, v[1].t.mapped);
}

/* Whether this kernel tracks, in the session's words. */
static int find_out(void **state)
{
    struct fake *f = fake_start();
    struct cairn_session *s;
    struct cairn_save_info info;
    struct tensor t;

    (void)state;
    map_tensor(&t, "t", PAGE, 0, MAP_PRIVATE);
    open_tracking(f, 1, &s);
    save(s, 1, &t, 1, &info);
    tracks = strcmp(info.tracking, "on") == 0;
    if (!tracks) /* it says what and why */
        assert_non_null(strstr(info.tracking, "writes to memory cannot be watched here"));
    if (!tracks)
        print_message("everything is copied here: %s\n", info.tracking);
    end(f, s, &t, 1);
    return 0;
}

/* As in a container: this process may not have a userfaultfd. */
static void deny(void)
{
    struct sock_filter f[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
                              BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
                              BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
                              BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog p = {sizeof(f) / sizeof(f[0]), f};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p) < 0)
        exit(77);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "denied") == 0)
        deny();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_only_what_changed),
        cmocka_unit_test(test_what_changes_much_is_not_tracked),
        cmocka_unit_test(test_what_moves_too_often_is_not_tracked),
        cmocka_unit_test(test_not_more_than_8192),
        cmocka_unit_test(test_shared_memory),
        cmocka_unit_test(test_device_that_is_named),
        cmocka_unit_test(test_device_that_is_not_named),
        cmocka_unit_test(test_unknown_flag),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_two_threads),
    };

    return cmocka_run_group_tests(tests, find_out, NULL);
}
