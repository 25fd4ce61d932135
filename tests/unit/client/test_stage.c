/* SPDX-License-Identifier: Apache-2.0 */
/* A seal in two halves: what the caller writes where it lies comes back as what was copied does, and whatever happens
 * between the halves, the save goes on or is given up. Against a double of the daemon that scatters pages and leaves
 * rubbish in them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <poll.h>
#include <unistd.h>

#include "tests/unit/client/support.h"

static struct fake *f;

static int start(void **state)
{
    (void)state;
    f = fake_start();
    fake_take_back(f, 1);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    fake_stop(f);
    return 0;
}

/* ---- a state of which some is the caller's to write ------------------------------------------ */

/* Several to a part, over the ends of parts, of several dtypes, an empty one. */
static const struct {
    const char *name;
    int dtype;
    uint64_t elements;
} kinds[] = {{"big", CAIRN_F32, 1200000},    {"odd", CAIRN_F32, 77},   {"next", CAIRN_F32, 300001},
             {"half", CAIRN_BF16, 33},       {"empty", CAIRN_BF16, 0}, {"halves", CAIRN_BF16, 900001},
             {"bytes", CAIRN_BYTES, 1000000}};
#define N (sizeof(kinds) / sizeof(kinds[0]))

struct tensors {
    char *data[N];
    uint64_t bytes[N];
};

static void tensors_make(struct tensors *x)
{
    for (size_t i = 0; i < N; i++) {
        x->bytes[i] = kinds[i].elements * cairn_dtype_size(kinds[i].dtype);
        x->data[i] = aligned_alloc(4096, x->bytes[i] / 4096 * 4096 + 4096);
        assert_non_null(x->data[i]);
        fill_random(x->data[i], x->bytes[i], i + 1);
    }
}

static void tensors_free(struct tensors *x)
{
    for (size_t i = 0; i < N; i++)
        free(x->data[i]);
}

static struct cairn_tensor tensor(size_t i, void *data)
{
    return (struct cairn_tensor){.size = sizeof(struct cairn_tensor),
                                 .name = kinds[i].name,
                                 .dtype = kinds[i].dtype,
                                 .ndim = 1,
                                 .shape = &kinds[i].elements,
                                 .data = data};
}

/* Those in mask have no data. */
static void begin_masked(struct cairn_session *s, uint64_t step, struct tensors *x, unsigned mask,
                         struct cairn_save **ret_save)
{
    OK(begin(s, step, ret_save));
    for (size_t i = 0; i < N; i++) {
        struct cairn_tensor t = tensor(i, mask >> i & 1 ? NULL : x->data[i]);
        OK(cairn_save_add(*ret_save, &t, &err));
    }
}

static void write_places(struct cairn_save *save, const struct tensors *x, unsigned mask)
{
    for (size_t i = 0; i < N; i++) {
        void *place = NULL;
        OK(cairn_save_place(save, i, &place, &err));
        assert_non_null(place);
        assert_int_equal((uintptr_t)place % 64, 0);
        if (mask >> i & 1)
            memcpy(place, x->data[i], x->bytes[i]);
        else
            assert_memory_equal(place, x->data[i], x->bytes[i]);
    }
}

static void commit(struct cairn_save *save)
{
    OK(cairn_save_seal(save, &err));
    OK(cairn_save_wait(save, CAIRN_COMMITTED, 10000, &err));
    cairn_save_free(save);
}

static void check(struct cairn_session *s, uint64_t step, const struct tensors *x)
{
    struct cairn_tensor t[N];
    struct cairn_restore *r;

    OK(cairn_restore_open(s, step, 5000, &r, &err));
    for (size_t i = 0; i < N; i++)
        t[i] = tensor(i, calloc(1, x->bytes[i] + 1));
    OK(cairn_restore_add_all(r, t, N, &err));
    OK(cairn_restore_run(r, 5000, NULL, NULL, &err));
    for (size_t i = 0; i < N; i++) {
        assert_memory_equal(t[i].data, x->data[i], x->bytes[i]);
        free(t[i].data);
    }
    cairn_restore_free(r);
}

/* Waits until the fake has received so many messages of a type that nobody answers. */
static void await_count(int type, unsigned n)
{
    for (unsigned i = 0; i < 5000 && fake_count(f, type) < n; i++)
        usleep(1000);
    assert_int_equal(fake_count(f, type), n);
}

/* ---- the ordinary way ------------------------------------------------------------------------ */

/* Several choices of who writes what. The double complains of gaps that are not zero. Catches: a copy over what the
 * caller wrote, a place in the wrong page, a slice over the end of a run that is not in one piece. */
static void test_written_in_place(void **state)
{
    struct cairn_session *s;
    struct tensors x;

    (void)state;
    tensors_make(&x);
    OK(open_rank(f, 0, 1, 64, 5000, &s));
    for (unsigned mask = 0; mask < 1u << N; mask += 11) {
        struct cairn_save *save;
        begin_masked(s, mask + 1, &x, mask, &save);
        OK(cairn_save_stage(save, &err));
        assert_int_equal(fake_count(f, LOCAL_FILLED), fake_count(f, LOCAL_BEGIN) - 1);
        write_places(save, &x, mask);
        commit(save);
        check(s, mask + 1, &x);
    }
    assert_int_equal(fake_count(f, LOCAL_LAYOUT), 1); /* one plan, whoever writes */
    assert_int_equal(fake_count(f, LOCAL_DROP), 0);
    cairn_session_close(s);
    tensors_free(&x);
    no_complaint(f);
}

/* What was given once and written by the caller then, or the other way round, is neither left out nor left over.
 * Catches: an arena's page that is believed to hold what a tracked save copied there, though a caller wrote to it. */
static void test_tracked(void **state)
{
    struct cairn_session_options o = {.size = sizeof(o),
                                      .job = "job",
                                      .world_size = 1,
                                      .arena_bytes = 16 << 20,
                                      .start_id = "start",
                                      .socket_path = fake_path(f),
                                      .flags = CAIRN_TRACK};
    static const unsigned masks[] = {0, 0, 0x21, 0, 0x7f, 0x40, 0x01, 0x01, 0, 0, 0};
    struct cairn_save_info info = {.size = sizeof(info)};
    struct cairn_session *s;
    struct tensors x, other;

    (void)state;
    tensors_make(&x);
    tensors_make(&other);
    for (size_t i = 0; i < N; i++)
        fill_random(other.data[i], other.bytes[i], 100 + i);
    OK(cairn_session_open(&o, &s, &err));
    for (uint64_t step = 1; step <= sizeof(masks) / sizeof(masks[0]); step++) {
        unsigned mask = masks[step - 1];
        struct tensors want = x;
        struct cairn_save *save;
        for (size_t i = 0; i < N; i++)
            want.data[i] = mask >> i & 1 ? other.data[i] : x.data[i];
        begin_masked(s, step, &x, mask, &save);
        OK(cairn_save_stage(save, &err));
        write_places(save, &want, mask);
        OK(cairn_save_info(save, &info));
        if (step > 9 && strcmp(info.tracking, "on") == 0) /* and what is not doubted is still left out */
            assert_true(info.copied_bytes < info.bytes / 4);
        commit(save);
        check(s, step, &want);
    }
    cairn_session_close(s);
    tensors_free(&x);
    tensors_free(&other);
    no_complaint(f);
}

static void test_misuse(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;
    struct tensors x;
    struct cairn_tensor t;
    void *place;

    (void)state;
    tensors_make(&x);
    OK(open_rank(f, 0, 1, 16, 5000, &s));
    begin_masked(s, 1, &x, 0x4, &save);
    FAILS(CAIRN_E_INVAL, cairn_save_place(save, 0, &place, &err));
    FAILS(CAIRN_E_INVAL, cairn_save_seal(save, &err)); /* nobody has written it */
    assert_non_null(strstr(err.message, "\"next\""));
    OK(cairn_save_stage(save, &err)); /* which was no end */
    FAILS(CAIRN_E_INVAL, cairn_save_stage(save, &err));
    t = tensor(0, x.data[0]);
    FAILS(CAIRN_E_INVAL, cairn_save_add(save, &t, &err));
    FAILS(CAIRN_E_INVAL, cairn_save_wait(save, CAIRN_SNAPSHOT, 0, &err));
    FAILS(CAIRN_E_NOT_FOUND, cairn_save_place(save, N, &place, &err));
    write_places(save, &x, 0x4);
    commit(save);
    check(s, 1, &x);
    begin_masked(s, 2, &x, 0, &save);
    fake_fault(f, LOCAL_BEGIN, FAKE_ERROR, CAIRN_E_BUSY, 1);
    FAILS(CAIRN_E_BUSY, cairn_save_stage(save, &err));
    FAILS(CAIRN_E_INVAL, cairn_save_seal(save, &err));
    FAILS(CAIRN_E_BUSY, cairn_save_wait(save, CAIRN_SNAPSHOT, 0, &err)); /* says it again */
    FAILS(CAIRN_E_INVAL, cairn_save_place(save, 0, &place, &err));
    cairn_save_free(save);
    await_count(LOCAL_DROP, 1);
    FAILS(CAIRN_E_INVAL, cairn_save_stage(NULL, &err));
    FAILS(CAIRN_E_INVAL, cairn_save_place(NULL, 0, &place, &err));
    cairn_session_close(s);
    tensors_free(&x);
    no_complaint(f);
}

/* ---- between the halves ---------------------------------------------------------------------- */

/* Catches: a staged save that keeps its step and its room when it is freed. */
static void test_given_up(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;
    struct tensors x;

    (void)state;
    tensors_make(&x);
    OK(open_rank(f, 0, 1, 16, 5000, &s));
    begin_masked(s, 1, &x, 1, &save);
    OK(cairn_save_stage(save, &err));
    cairn_save_free(save);
    await_count(LOCAL_DROP, 1);
    assert_int_equal(fake_count(f, LOCAL_FILLED), 0);
    begin_masked(s, 2, &x, 0, &save);
    commit(save);
    check(s, 2, &x);
    cairn_session_close(s);
    tensors_free(&x);
    no_complaint(f);
}

/* What has come by then is told by seal, and the step is given up (catches: a snapshot that nobody wants). */
static void test_aborted_between(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;
    struct tensors x;

    (void)state;
    tensors_make(&x);
    OK(open_rank(f, 0, 1, 16, 5000, &s));
    begin_masked(s, 1, &x, 0, &save);
    OK(cairn_save_stage(save, &err));
    fake_event_now(f, 0, CAIRN_E_FENCED);
    struct pollfd p = {.fd = cairn_session_fd(s), .events = POLLIN};
    assert_int_equal(poll(&p, 1, 5000), 1);
    FAILS(CAIRN_E_FENCED, cairn_save_seal(save, &err));
    assert_non_null(strstr(err.message, "rank 7 did not come"));
    await_count(LOCAL_DROP, 1); /* of the room, which is ours */
    cairn_save_free(save);
    assert_int_equal(fake_count(f, LOCAL_DROP), 1);
    cairn_session_close(s);
    tensors_free(&x);
    no_complaint(f);
}

/* The daemon goes and comes back; ask: another call finds it before seal does. Catches: a writer that is not told when
 * the arena is handed back, or is told still when it has ended; a seal that nobody hears of, for the new daemon has
 * looked at the word before. */
static void restart_between(bool ask)
{
    struct cairn_session *s;
    struct cairn_save *save;
    struct tensors x;
    char *json;

    tensors_make(&x);
    OK(open_rank(f, 0, 1, 16, 5000, &s));
    begin_masked(s, 1, &x, 0x21, &save);
    OK(cairn_save_stage(save, &err));
    fake_restart(f, 0);
    if (ask) {
        OK(cairn_query(s, CAIRN_QUERY_STATUS, NULL, 0, 5000, &json, &err));
        free(json);
        assert_int_equal(fake_copying(f), 1);
    }
    write_places(save, &x, 0x21);
    OK(cairn_save_seal(save, &err));
    if (ask)
        await_count(LOCAL_RESUME, 1); /* by seal itself: nobody need wait */
    OK(cairn_save_wait(save, CAIRN_COMMITTED, 10000, &err));
    assert_int_equal(fake_count(f, LOCAL_RESUME), 1);
    assert_int_equal(fake_count(f, LOCAL_OPEN), 2);
    assert_int_equal(fake_copying(f), ask);
    write_places(save, &x, 0); /* its memory is still there */
    cairn_save_free(save);
    fake_restart(f, 0);
    OK(cairn_query(s, CAIRN_QUERY_STATUS, NULL, 0, 5000, &json, &err));
    free(json);
    assert_int_equal(fake_copying(f), 0);
    cairn_session_close(s);
    tensors_free(&x);
    no_complaint(f);
}

static void test_restart_between(void **state)
{
    (void)state;
    restart_between(false);
}

static void test_restart_between_and_asked(void **state)
{
    (void)state;
    restart_between(true);
}

/* Another arena: what was staged is lost, its places are still memory, and the new daemon hears of the step. */
static void test_arena_is_not_taken_back(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;
    struct tensors x;
    char *json;

    (void)state;
    tensors_make(&x);
    fake_take_back(f, 0);
    OK(open_rank(f, 0, 1, 16, 5000, &s));
    begin_masked(s, 1, &x, 0x21, &save);
    OK(cairn_save_stage(save, &err));
    fake_restart(f, 0);
    OK(cairn_query(s, CAIRN_QUERY_STATUS, NULL, 0, 5000, &json, &err));
    free(json);
    write_places(save, &x, 0x21);
    FAILS(CAIRN_E_UNAVAILABLE, cairn_save_seal(save, &err));
    assert_non_null(strstr(err.message, "the fake wants no arena back"));
    await_count(LOCAL_DROP, 1);
    cairn_save_free(save);
    begin_masked(s, 2, &x, 0, &save);
    commit(save);
    check(s, 2, &x);
    cairn_session_close(s);
    tensors_free(&x);
    no_complaint(f);
}

int main(void)
{
#define TEST(name_) cmocka_unit_test_setup_teardown(name_, start, stop)
    const struct CMUnitTest tests[] = {
        TEST(test_written_in_place),
        TEST(test_tracked),
        TEST(test_misuse),
        TEST(test_given_up),
        TEST(test_aborted_between),
        TEST(test_restart_between),
        TEST(test_restart_between_and_asked),
        TEST(test_arena_is_not_taken_back),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
