/* SPDX-License-Identifier: Apache-2.0 */
/* Training never dies: whatever the daemon does, calls return a code in bounded time and the session comes back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <poll.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/unit/client/support.h"

static struct fake *f;
static char data[3 << 20];
static const uint64_t data_len = sizeof(data);

static int start(void **state)
{
    (void)state;
    f = fake_start();
    fill_random(data, sizeof(data), 1);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    fake_stop(f);
    return 0;
}

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void make_save(struct cairn_session *s, uint64_t step, struct cairn_save **ret_save)
{
    struct cairn_tensor t = bytes_tensor("data", &data_len, data);

    OK(begin(s, step, ret_save));
    OK(cairn_save_add(*ret_save, &t, &err));
}

static void save_step(struct cairn_session *s, uint64_t step)
{
    struct cairn_save *save;

    make_save(s, step, &save);
    OK(cairn_save_seal(save, &err));
    OK(cairn_save_wait(save, CAIRN_COMMITTED, 5000, &err));
    cairn_save_free(save);
}

/* Waits until the fake has received so many messages of a type that nobody answers. */
static void await_count(int type, unsigned n)
{
    int64_t until = now_ms() + 5000;

    while (fake_count(f, type) < n && now_ms() < until)
        usleep(1000);
    assert_int_equal(fake_count(f, type), n);
}

/* ---- open ------------------------------------------------------------------------------------ */

static void test_open_errors(void **state)
{
    struct cairn_session *s = NULL;
    struct cairn_session_options o = {.size = sizeof(o), .job = "j", .world_size = 1, .arena_bytes = 1};
    struct {
        struct cairn_session_options o;
        uint64_t more;
    } longer;

    (void)state;
    o.socket_path = fake_path(f);
    o.size = offsetof(struct cairn_session_options, device_staging_bytes) - 1; /* less than the first version */
    FAILS(CAIRN_E_INVAL, cairn_session_open(&o, &s, &err));
    memset(&longer, 0, sizeof(longer));
    o.size = sizeof(longer);
    longer.o = o;
    longer.more = 1; /* a field of a later version that asks for something */
    FAILS(CAIRN_E_INVAL, cairn_session_open(&longer.o, &s, &err));
    longer.more = 0;
    OK(cairn_session_open(&longer.o, &s, &err));
    cairn_session_close(s);
    o.size = sizeof(o);
    o.job = "a/b";
    FAILS(CAIRN_E_INVAL, cairn_session_open(&o, &s, &err));
    o.job = "j";
    o.rank = 1;
    FAILS(CAIRN_E_INVAL, cairn_session_open(&o, &s, &err));
    o.rank = 0;
    o.flags = 1u << 31;
    FAILS(CAIRN_E_INVAL, cairn_session_open(&o, &s, &err));
    o.flags = 0;
    o.socket_path = "/nonexistent/socket";
    FAILS(CAIRN_E_UNAVAILABLE, cairn_session_open(&o, &s, &err));
    assert_non_null(strstr(err.message, "/nonexistent/socket"));
    FAILS(CAIRN_E_INVAL, cairn_session_open(NULL, &s, &err));
    cairn_session_close(NULL);
}

/* Catches a descriptor or a size that is believed: the arena would be a SIGBUS in the trainer. */
static void test_wrong_arenas(void **state)
{
    static const enum fake_fault faults[] = {FAKE_WRONG_FD, FAKE_UNSEALED,   FAKE_BAD_VALUE,
                                             FAKE_GARBAGE,  FAKE_WRONG_TYPE, FAKE_WRONG_ID};
    struct cairn_session *s = NULL;

    (void)state;
    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
        fake_fault(f, LOCAL_OPEN, faults[i], 0, 1);
        FAILS(CAIRN_E_PROTOCOL, open_rank(f, 0, 1, 4, 2000, &s));
    }
    fake_fault(f, LOCAL_OPEN, FAKE_CLOSE, 0, 1);
    FAILS(CAIRN_E_UNAVAILABLE, open_rank(f, 0, 1, 4, 2000, &s));
    fake_fault(f, LOCAL_OPEN, FAKE_ERROR, CAIRN_E_EXISTS, 1);
    FAILS(CAIRN_E_EXISTS, open_rank(f, 0, 1, 4, 2000, &s));
    assert_non_null(strstr(err.message, "the fake says no"));
    fake_fault(f, LOCAL_OPEN, FAKE_SILENT, 0, 1);
    FAILS(CAIRN_E_TIMEOUT, open_rank(f, 0, 1, 4, 50, &s));
    OK(open_rank(f, 0, 1, 4, 2000, &s));
    cairn_session_close(s);
}

/* ---- seal ------------------------------------------------------------------------------------ */

static void seal_with(struct cairn_session *s, uint64_t step, int type, enum fake_fault fault, int code, int expect)
{
    struct cairn_save *save;

    make_save(s, step, &save);
    fake_fault(f, type, fault, code, 1);
    FAILS(expect, cairn_save_seal(save, &err));
    FAILS(expect, cairn_save_wait(save, CAIRN_SNAPSHOT, 100, &err)); /* says it again */
    cairn_save_free(save);
}

static void test_seal_errors(void **state)
{
    struct cairn_session *s;

    (void)state;
    OK(open_rank(f, 0, 1, 4, 2000, &s));
    seal_with(s, 1, LOCAL_BEGIN, FAKE_ERROR, CAIRN_E_BUSY, CAIRN_E_BUSY);
    await_count(LOCAL_DROP, 1);
    seal_with(s, 2, LOCAL_BEGIN, FAKE_ERROR, CAIRN_E_TOO_LARGE, CAIRN_E_TOO_LARGE);
    await_count(LOCAL_DROP, 2);
    /* Catches a save that gives up a step which another save of this rank has sealed. */
    seal_with(s, 3, LOCAL_BEGIN, FAKE_ERROR, CAIRN_E_EXISTS, CAIRN_E_EXISTS);
    seal_with(s, 4, LOCAL_BEGIN, FAKE_BAD_VALUE, 0, CAIRN_E_PROTOCOL);
    save_step(s, 5); /* on a new connection */
    seal_with(s, 6, LOCAL_BEGIN, FAKE_CLOSE, 0, CAIRN_E_UNAVAILABLE);
    save_step(s, 7);
    /* The snapshot is in the arena, and its word says so: whether it is lost shows when somebody has the arena. */
    struct cairn_save *save;
    make_save(s, 8, &save);
    fake_fault(f, LOCAL_FILLED, FAKE_CLOSE, 0, 1);
    OK(cairn_save_seal(save, &err));
    OK(cairn_save_wait(save, CAIRN_SNAPSHOT, 2000, &err));
    FAILS(CAIRN_E_UNAVAILABLE, cairn_save_wait(save, CAIRN_COMMITTED, 2000, &err));
    assert_non_null(strstr(err.message, "the fake wants no arena back"));
    FAILS(CAIRN_E_UNAVAILABLE, cairn_save_wait(save, CAIRN_COMMITTED, 2000, &err)); /* for good */
    cairn_save_free(save);
    save_step(s, 9);
    seal_with(s, 10, LOCAL_LAYOUT, FAKE_GARBAGE, 0, 0); /* known on this connection: not sent, the fault stays */
    assert_int_equal(fake_count(f, LOCAL_DROP), 2);
    cairn_session_close(s);
    no_complaint(f);
}

static bool readable(const struct cairn_session *s, int timeout_ms)
{
    struct pollfd p = {.fd = cairn_session_fd(s), .events = POLLIN};

    return poll(&p, 1, timeout_ms) == 1;
}

/* The word in the arena is enough for seal. What is answered to FILLED is told by wait, whoever reads it. Catches: a
 * seal that waits for the answer, an answer that nobody takes, one that comes after its save was freed. */
static void test_filled_is_answered_later(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save, *other;

    (void)state;
    OK(open_rank(f, 0, 1, 8, 1000, &s));
    fake_events(f, 0, 0);
    fake_fault(f, LOCAL_FILLED, FAKE_SILENT, 0, 2);
    make_save(s, 1, &save);
    OK(cairn_save_seal(save, &err));
    OK(cairn_save_wait(save, CAIRN_SNAPSHOT, 0, &err));
    FAILS(CAIRN_E_TIMEOUT, cairn_save_wait(save, CAIRN_COMMITTED, 20, &err));
    make_save(s, 2, &other);
    OK(cairn_save_seal(other, &err));
    await_count(LOCAL_FILLED, 2);
    cairn_save_free(save);
    fake_fault(f, LOCAL_FILLED, FAKE_ERROR, CAIRN_E_ABORTED, 1);
    make_save(s, 3, &save);
    OK(cairn_save_seal(save, &err));
    await_count(LOCAL_FILLED, 3);
    FAILS(CAIRN_E_TIMEOUT, cairn_save_wait(other, CAIRN_COMMITTED, 0, &err)); /* reads the answer */
    assert_true(readable(s, 0));                                              /* which is news of the third */
    OK(cairn_save_wait(save, CAIRN_SNAPSHOT, 0, &err));
    FAILS(CAIRN_E_ABORTED, cairn_save_wait(save, CAIRN_COMMITTED, 0, &err));
    FAILS(CAIRN_E_ABORTED, cairn_save_wait(save, CAIRN_DURABLE, 5000, &err));
    assert_non_null(strstr(err.message, "the fake says no"));
    assert_false(readable(s, 0));
    cairn_save_free(save);
    fake_fault(f, LOCAL_FILLED, FAKE_LATE, 0, 0);
    make_save(s, 4, &save);
    OK(cairn_save_seal(save, &err));
    await_count(LOCAL_FILLED, 4);
    cairn_save_free(save);
    cairn_save_free(other);
    fake_events(f, CAIRN_COMMITTED, 0);
    fake_fault(f, LOCAL_FILLED, FAKE_WELL, 0, 0);
    save_step(s, 5); /* reads the late answer on its way */
    assert_int_equal(fake_count(f, LOCAL_OPEN), 1);
    assert_int_equal(fake_count(f, LOCAL_DROP), 0);
    cairn_session_close(s);
    no_complaint(f);
}

/* A daemon that forgot the layout is told it again. */
static void test_forgotten_layout(void **state)
{
    struct cairn_session *s;

    (void)state;
    OK(open_rank(f, 0, 1, 4, 2000, &s));
    save_step(s, 1);
    fake_fault(f, LOCAL_BEGIN, FAKE_ERROR, CAIRN_E_NOT_FOUND, 1);
    save_step(s, 2);
    assert_int_equal(fake_count(f, LOCAL_LAYOUT), 2);
    cairn_session_close(s);
    no_complaint(f);
}

/* The grant that comes after its request was given up goes back; otherwise its pages are lost until the session ends.
 */
static void test_late_grant(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;

    (void)state;
    OK(open_rank(f, 0, 1, 4, 1000, &s)); /* short, but not for a sanitized fake that does its work */
    make_save(s, 1, &save);
    fake_fault(f, LOCAL_BEGIN, FAKE_LATE, 0, 0);
    FAILS(CAIRN_E_TIMEOUT, cairn_save_seal(save, &err));
    cairn_save_free(save);
    await_count(LOCAL_DROP, 1);
    fake_fault(f, LOCAL_BEGIN, FAKE_WELL, 0, 0);
    save_step(s, 2); /* reads the late answer on its way */
    await_count(LOCAL_DROP, 2);
    cairn_session_close(s);
    no_complaint(f);
}

static void test_save_misuse(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;
    struct cairn_tensor t = bytes_tensor("data", &data_len, data);
    struct cairn_save_options o = {.size = sizeof(o), .step = 1, .on_busy = 2};

    (void)state;
    OK(open_rank(f, 0, 1, 4, 2000, &s));
    FAILS(CAIRN_E_INVAL, cairn_save_begin(s, &o, &save, &err));
    FAILS(CAIRN_E_INVAL, begin(s, CAIRN_LATEST, &save));
    OK(begin(s, 1, &save));
    t.flags = 8;
    FAILS(CAIRN_E_INVAL, cairn_save_add(save, &t, &err));
    t.flags = 0;
    t.device = 1;
    FAILS(CAIRN_E_INVAL, cairn_save_add(save, &t, &err));
    t.device = CAIRN_HOST;
    FAILS(CAIRN_E_INVAL, cairn_save_wait(save, CAIRN_SNAPSHOT, 0, &err));
    OK(cairn_save_add(save, &t, &err)); /* what was refused left nothing behind */
    t.size--;
    FAILS(CAIRN_E_INVAL, cairn_save_add(save, &t, &err));
    t.size++;
    OK(cairn_save_seal(save, &err));
    FAILS(CAIRN_E_INVAL, cairn_save_seal(save, &err));
    FAILS(CAIRN_E_INVAL, cairn_save_add(save, &t, &err));
    FAILS(CAIRN_E_INVAL, cairn_save_wait(save, 4, 0, &err));
    cairn_save_free(save);
    /* The same tensor twice: the layout is refused, and the other ranks hear of it. */
    OK(begin(s, 2, &save));
    OK(cairn_save_add(save, &t, &err));
    OK(cairn_save_add(save, &t, &err));
    FAILS(CAIRN_E_INVAL, cairn_save_seal(save, &err));
    assert_non_null(strstr(err.message, "data"));
    cairn_save_free(save);
    await_count(LOCAL_DROP, 1);
    make_save(s, 3, &save);
    cairn_save_free(save); /* begun and not sealed */
    await_count(LOCAL_DROP, 2);
    cairn_save_free(NULL);
    cairn_session_close(s);
    no_complaint(f);
}

/* ---- wait ------------------------------------------------------------------------------------ */

static void test_wait(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;

    (void)state;
    OK(open_rank(f, 0, 1, 4, 2000, &s));
    fake_events(f, CAIRN_DURABLE, 0);
    make_save(s, 1, &save);
    OK(cairn_save_seal(save, &err));
    OK(cairn_save_wait(save, CAIRN_SNAPSHOT, 5000, &err)); /* reached when seal returns */
    FAILS(CAIRN_E_TIMEOUT, cairn_save_wait(save, CAIRN_COMMITTED, 0, &err));
    assert_int_equal(fake_count(f, LOCAL_WHY), 0);
    assert_int_equal(fake_count(f, LOCAL_WAIT), 0); /* who polls does not wait */
    OK(cairn_save_wait(save, CAIRN_DURABLE, 5000, &err));
    FAILS(CAIRN_E_TIMEOUT, cairn_save_wait(save, CAIRN_COMMITTED, 20, &err));
    FAILS(CAIRN_E_TIMEOUT, cairn_save_wait(save, CAIRN_COMMITTED, 20, &err));
    assert_int_equal(fake_count(f, LOCAL_WAIT), 1);
    assert_non_null(strstr(err.message, "waiting for peer p3"));
    fake_event_now(f, 0, CAIRN_E_ABORTED);
    FAILS(CAIRN_E_ABORTED, cairn_save_wait(save, CAIRN_COMMITTED, 5000, &err));
    assert_non_null(strstr(err.message, "rank 7 did not come"));
    OK(cairn_save_wait(save, CAIRN_DURABLE, 0, &err)); /* that much it did reach */
    cairn_save_free(save);
    cairn_session_close(s);
    no_complaint(f);
}

/* A daemon from before these requests would hang up on them (catches: one that is said to it). */
static void test_an_older_daemon(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;

    (void)state;
    fake_knows(f, 0);
    OK(open_rank(f, 0, 1, 4, 2000, &s));
    make_save(s, 1, &save);
    OK(cairn_save_seal(save, &err));
    OK(cairn_save_wait(save, CAIRN_COMMITTED, 5000, &err));
    assert_int_equal(fake_count(f, LOCAL_WAIT), 0);
    cairn_save_free(save);
    cairn_session_close(s);
    no_complaint(f);
}

/* Catches news that only another save's wait has read from the socket, and a descriptor that stays readable. */
static void test_session_fd(void **state)
{
    struct cairn_session *s;
    struct cairn_save *first, *second;

    (void)state;
    OK(open_rank(f, 0, 1, 8, 2000, &s));
    fake_events(f, 0, 0);
    assert_false(readable(s, 0));
    make_save(s, 1, &first);
    OK(cairn_save_seal(first, &err));
    make_save(s, 2, &second);
    OK(cairn_save_seal(second, &err));
    await_count(LOCAL_FILLED, 2);
    FAILS(CAIRN_E_TIMEOUT, cairn_save_wait(first, CAIRN_DURABLE, 0, &err)); /* reads the answers to FILLED */
    assert_false(readable(s, 0));
    fake_event_now(f, CAIRN_DURABLE, 0); /* of the second */
    assert_true(readable(s, 5000));
    FAILS(CAIRN_E_TIMEOUT, cairn_save_wait(first, CAIRN_DURABLE, 0, &err)); /* reads it, for the other */
    assert_true(readable(s, 0));
    OK(cairn_save_wait(second, CAIRN_DURABLE, 0, &err));
    assert_false(readable(s, 0));
    fake_restart(f, 0); /* the end of the connection is news, too */
    assert_true(readable(s, 5000));
    FAILS(CAIRN_E_UNAVAILABLE, cairn_save_wait(first, CAIRN_DURABLE, 0, &err));
    FAILS(CAIRN_E_UNAVAILABLE, cairn_save_wait(second, CAIRN_COMMITTED, 0, &err));
    assert_false(readable(s, 0));
    cairn_save_free(first);
    cairn_save_free(second);
    cairn_session_close(s);
    no_complaint(f);
}

static void on_alarm(int signal)
{
    (void)signal;
}

static void test_interrupted(void **state)
{
    struct sigaction act = {.sa_handler = on_alarm}, before;
    struct itimerval soon = {.it_value = {.tv_usec = 50000}};
    struct cairn_session *s;
    struct cairn_save *save;

    (void)state;
    OK(open_rank(f, 0, 1, 4, 2000, &s));
    fake_events(f, CAIRN_SNAPSHOT, 0);
    make_save(s, 1, &save);
    OK(cairn_save_seal(save, &err));
    assert_int_equal(sigaction(SIGALRM, &act, &before), 0);
    assert_int_equal(setitimer(ITIMER_REAL, &soon, NULL), 0);
    FAILS(CAIRN_E_INTR, cairn_save_wait(save, CAIRN_COMMITTED, 10000, &err));
    /* Elsewhere a signal is no reason to come back. */
    fake_fault(f, LOCAL_QUERY, FAKE_SILENT, 0, 1);
    assert_int_equal(setitimer(ITIMER_REAL, &soon, NULL), 0);
    char *json;
    FAILS(CAIRN_E_TIMEOUT, cairn_query(s, CAIRN_QUERY_STATUS, NULL, 0, 200, &json, &err));
    /* While the daemon is away it is a wait, too. */
    fake_restart(f, 1);
    assert_int_equal(setitimer(ITIMER_REAL, &soon, NULL), 0);
    FAILS(CAIRN_E_INTR, cairn_save_wait(save, CAIRN_COMMITTED, 10000, &err));
    fake_restart(f, 0);
    sigaction(SIGALRM, &before, NULL);
    cairn_save_free(save);
    cairn_session_close(s);
    no_complaint(f);
}

/* ---- the daemon goes away -------------------------------------------------------------------- */

static void test_daemon_restarts(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;

    (void)state;
    OK(open_rank(f, 0, 1, 4, 2000, &s));
    fake_events(f, CAIRN_SNAPSHOT, 0);
    make_save(s, 1, &save);
    OK(cairn_save_seal(save, &err));
    fake_restart(f, 1);
    int64_t began = now_ms();
    /* It may come back: the wait has its time, and says where it looked. */
    FAILS(CAIRN_E_UNAVAILABLE, cairn_save_wait(save, CAIRN_COMMITTED, 300, &err));
    assert_non_null(strstr(err.message, fake_path(f)));
    cairn_save_free(save);
    /* Nobody listens: a save that does not wait for room does not wait for a daemon either. */
    make_save(s, 2, &save);
    FAILS(CAIRN_E_UNAVAILABLE, cairn_save_seal(save, &err));
    cairn_save_free(save);
    assert_true(now_ms() - began < 1500);
    fake_restart(f, 0);
    fake_events(f, CAIRN_COMMITTED, 0);
    save_step(s, 3);
    assert_int_equal(fake_count(f, LOCAL_OPEN), 2);
    cairn_session_close(s);
    no_complaint(f);
}

/* Catches a handle that dies with its connection, a poll that connects, an arena that is mapped anew. */
static void test_save_goes_on_after_a_restart(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;

    (void)state;
    OK(open_rank(f, 0, 1, 4, 2000, &s));
    fake_take_back(f, 1);
    fake_events(f, CAIRN_SNAPSHOT, 0);
    make_save(s, 1, &save);
    OK(cairn_save_seal(save, &err));
    fake_restart(f, 0);
    FAILS(CAIRN_E_UNAVAILABLE, cairn_save_wait(save, CAIRN_COMMITTED, 0, &err));
    FAILS(CAIRN_E_UNAVAILABLE, cairn_save_wait(save, CAIRN_COMMITTED, 0, &err));
    assert_int_equal(fake_count(f, LOCAL_OPEN), 1);
    FAILS(CAIRN_E_TIMEOUT, cairn_save_wait(save, CAIRN_COMMITTED, 1000, &err)); /* back, and not committed yet */
    assert_int_equal(fake_count(f, LOCAL_HAND_BACK), 1);
    assert_int_equal(fake_count(f, LOCAL_RESUME), 1);
    fake_events(f, CAIRN_COMMITTED, 0);
    fake_restart(f, 0);
    OK(cairn_save_wait(save, CAIRN_COMMITTED, 5000, &err));
    assert_int_equal(fake_count(f, LOCAL_RESUME), 2);
    cairn_save_free(save);
    save_step(s, 2);
    cairn_session_close(s);
    no_complaint(f);
}

/* Catches a poll that never finds the connection that another call has made. */
static void test_poll_follows_a_connection_that_is_there(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;
    char *json;

    (void)state;
    OK(open_rank(f, 0, 1, 4, 2000, &s));
    fake_take_back(f, 1);
    fake_events(f, CAIRN_SNAPSHOT, 0);
    make_save(s, 1, &save);
    OK(cairn_save_seal(save, &err));
    fake_events(f, CAIRN_COMMITTED, 0);
    fake_restart(f, 0);
    FAILS(CAIRN_E_UNAVAILABLE, cairn_save_wait(save, CAIRN_COMMITTED, 0, &err));
    OK(cairn_query(s, CAIRN_QUERY_STATUS, NULL, 0, 2000, &json, &err));
    free(json);
    int64_t began = now_ms();
    while (cairn_save_wait(save, CAIRN_COMMITTED, 0, &err) == CAIRN_E_TIMEOUT)
        assert_true(now_ms() - began < 10000);
    OK(cairn_save_wait(save, CAIRN_COMMITTED, 0, &err));
    cairn_save_free(save);
    cairn_session_close(s);
    no_complaint(f);
}

/* The daemon knows what became of the save: its word is final. */
static void test_resume_is_refused(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;

    (void)state;
    OK(open_rank(f, 0, 1, 4, 2000, &s));
    fake_take_back(f, 1);
    fake_events(f, CAIRN_SNAPSHOT, 0);
    make_save(s, 1, &save);
    OK(cairn_save_seal(save, &err));
    fake_fault(f, LOCAL_RESUME, FAKE_ERROR, CAIRN_E_ABORTED, 1);
    fake_restart(f, 0);
    FAILS(CAIRN_E_ABORTED, cairn_save_wait(save, CAIRN_COMMITTED, 5000, &err));
    FAILS(CAIRN_E_ABORTED, cairn_save_wait(save, CAIRN_COMMITTED, 5000, &err));
    cairn_save_free(save);
    fake_events(f, CAIRN_COMMITTED, 0);
    save_step(s, 2);
    cairn_session_close(s);
    no_complaint(f);
}

/* A daemon that takes the connection and says nothing: the caller's deadline counts, not the session's. */
static void test_a_silent_daemon_after_a_restart(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save;

    (void)state;
    OK(open_rank(f, 0, 1, 4, 30000, &s));
    fake_take_back(f, 1);
    fake_events(f, CAIRN_SNAPSHOT, 0);
    make_save(s, 1, &save);
    OK(cairn_save_seal(save, &err));
    fake_fault(f, LOCAL_HAND_BACK, FAKE_SILENT, 0, 1);
    fake_restart(f, 0);
    int64_t began = now_ms();
    assert_true(cairn_save_wait(save, CAIRN_COMMITTED, 300, &err) < 0);
    assert_non_null(strstr(err.message, fake_path(f)));
    assert_true(now_ms() - began < 15000); /* half of the session's */
    fake_events(f, CAIRN_COMMITTED, 0);
    OK(cairn_save_wait(save, CAIRN_COMMITTED, 10000, &err));
    cairn_save_free(save);
    cairn_session_close(s);
    no_complaint(f);
}

/* Catches a reconnect that gives up at the first refusal although there is time. */
static void test_reconnect_waits(void **state)
{
    struct cairn_session *s;
    uint64_t step;

    (void)state;
    OK(open_rank(f, 0, 1, 4, 3000, &s));
    save_step(s, 1);
    fake_fault(f, LOCAL_OPEN, FAKE_ERROR, CAIRN_E_EXISTS, 2); /* the old connection is still known there */
    fake_restart(f, 0);
    OK(cairn_latest(s, &step, &err));
    assert_int_equal(fake_count(f, LOCAL_OPEN), 4);
    cairn_session_close(s);
    no_complaint(f);
}

/* ---- restore --------------------------------------------------------------------------------- */

static void add_data(struct cairn_restore *r, char *back)
{
    struct cairn_tensor t = bytes_tensor("data", &data_len, back);

    OK(cairn_restore_add(r, &t, &err));
}

static void test_restore_faults(void **state)
{
    static char back[sizeof(data)];
    struct cairn_session *s;
    struct cairn_restore *r;

    (void)state;
    OK(open_rank(f, 0, 1, 4, 2000, &s));
    save_step(s, 1);
    fake_fault(f, LOCAL_RESTORE_OPEN, FAKE_UNSEALED, 0, 1);
    FAILS(CAIRN_E_PROTOCOL, cairn_restore_open(s, 1, 2000, &r, &err));
    fake_fault(f, LOCAL_RESTORE_OPEN, FAKE_BAD_VALUE, 0, 1);
    FAILS(CAIRN_E_CORRUPT, cairn_restore_open(s, 1, 2000, &r, &err));
    FAILS(CAIRN_E_INVAL, cairn_restore_open(NULL, 1, 2000, &r, &err));
    OK(cairn_restore_open(s, 1, 2000, &r, &err));
    add_data(r, back);
    fake_fault(f, LOCAL_READ, FAKE_ERROR, CAIRN_E_CORRUPT, 1);
    FAILS(CAIRN_E_CORRUPT, cairn_restore_run(r, 2000, NULL, NULL, &err));
    assert_non_null(strstr(err.message, "\"data\""));
    assert_non_null(strstr(err.message, "the fake says no"));
    OK(cairn_restore_run(r, 2000, NULL, NULL, &err)); /* asks again for what is still missing */
    assert_memory_equal(back, data, sizeof(data));
    cairn_restore_free(r);
    cairn_session_close(s);
    no_complaint(f);
}

static void test_restore_daemon_goes(void **state)
{
    static char back[sizeof(data)];
    struct cairn_session *s;
    struct cairn_restore *r;

    (void)state;
    OK(open_rank(f, 0, 1, 4, 2000, &s));
    save_step(s, 1);
    OK(cairn_restore_open(s, 1, 2000, &r, &err));
    add_data(r, back);
    fake_fault(f, LOCAL_READ, FAKE_CLOSE, 0, 1);
    FAILS(CAIRN_E_UNAVAILABLE, cairn_restore_run(r, 2000, NULL, NULL, &err));
    FAILS(CAIRN_E_UNAVAILABLE, cairn_restore_run(r, 2000, NULL, NULL, &err));
    cairn_restore_free(r);
    OK(cairn_restore_open(s, 1, 2000, &r, &err));
    add_data(r, back);
    fake_fault(f, LOCAL_READ, FAKE_SILENT, 0, 1);
    FAILS(CAIRN_E_TIMEOUT, cairn_restore_run(r, 50, NULL, NULL, &err));
    assert_non_null(strstr(err.message, "\"data\""));
    /* Catches a slot that is used again while its last answer is outstanding. */
    FAILS(CAIRN_E_TIMEOUT, cairn_restore_run(r, 50, NULL, NULL, &err));
    cairn_restore_free(r);
    OK(cairn_restore_open(s, 1, 2000, &r, &err));
    add_data(r, back);
    OK(cairn_restore_run(r, 2000, NULL, NULL, &err));
    assert_memory_equal(back, data, sizeof(data));
    cairn_restore_free(r);
    cairn_session_close(s);
    no_complaint(f);
}

static int stop_at_once(void *arg, uint64_t done, uint64_t total)
{
    (void)arg;
    return done < total ? 1 : 0;
}

static void test_restore_stops(void **state)
{
    static char back[sizeof(data)];
    struct cairn_session *s;
    struct cairn_restore *r;

    (void)state;
    OK(open_rank(f, 0, 1, 4, 2000, &s));
    save_step(s, 1);
    OK(cairn_restore_open(s, 1, 2000, &r, &err));
    add_data(r, back);
    fake_fault(f, LOCAL_READ, FAKE_SILENT, 0, 1);
    FAILS(CAIRN_E_INTR, cairn_restore_run(r, 60000, stop_at_once, NULL, &err)); /* a minute before its deadline */
    cairn_restore_free(r);
    cairn_session_close(s);
    no_complaint(f);
}

/* ---- queries, observers, children ------------------------------------------------------------ */

static void test_query(void **state)
{
    struct cairn_session_options o = {
        .size = sizeof(o), .socket_path = fake_path(f), .timeout_ms = 2000, .flags = CAIRN_OBSERVER};
    struct cairn_session *s;
    struct cairn_restore *r;
    struct cairn_save *save;
    char *json = NULL;

    (void)state;
    OK(cairn_session_open(&o, &s, &err));
    assert_int_equal(cairn_session_incarnation(s), 0);
    OK(cairn_query(s, CAIRN_QUERY_STATUS, NULL, 0, 2000, &json, &err));
    assert_string_equal(json, "{\"fake\": true}");
    free(json);
    FAILS(CAIRN_E_INVAL, cairn_query(s, CAIRN_QUERY_SHOW, NULL, 0, 2000, &json, &err));
    FAILS(CAIRN_E_INVAL, cairn_query(s, 0, NULL, 0, 2000, &json, &err));
    FAILS(CAIRN_E_INVAL, cairn_query(s, CAIRN_QUERY_LIST, "../x", 0, 2000, &json, &err));
    FAILS(CAIRN_E_INVAL, begin(s, 1, &save));
    FAILS(CAIRN_E_INVAL, cairn_restore_open(s, 1, 2000, &r, &err)); /* of which job? */
    fake_fault(f, LOCAL_QUERY, FAKE_BAD_VALUE, 0, 1);
    FAILS(CAIRN_E_PROTOCOL, cairn_query(s, CAIRN_QUERY_STATUS, NULL, 0, 2000, &json, &err));
    /* Catches a late answer that is taken for the next one's. */
    fake_fault(f, LOCAL_QUERY, FAKE_SILENT, 0, 1);
    FAILS(CAIRN_E_TIMEOUT, cairn_query(s, CAIRN_QUERY_STATUS, NULL, 0, 20, &json, &err));
    OK(cairn_query(s, CAIRN_QUERY_STATUS, NULL, 0, 2000, &json, &err));
    free(json);
    cairn_session_close(s);
    no_complaint(f);
}

/* Returns the number of the first thing that went wrong in the child. */
static int in_child(struct cairn_session *s, struct cairn_save *save, struct cairn_save *staged,
                    struct cairn_restore *r)
{
    struct cairn_save_options o = {.size = sizeof(o), .step = 4};
    struct cairn_save *other;
    void *place;
    struct cairn_tensor t = bytes_tensor("data", &data_len, data);
    uint64_t step;
    char *json;

    if (begin(s, 2, &other) != CAIRN_E_FORKED || cairn_save_add(save, &t, NULL) != CAIRN_E_FORKED)
        return 1;
    if (cairn_save_seal(save, NULL) != CAIRN_E_FORKED || cairn_save_wait(save, 1, 0, NULL) != CAIRN_E_FORKED)
        return 2;
    if (cairn_latest(s, &step, NULL) != CAIRN_E_FORKED || cairn_session_fd(s) != CAIRN_E_FORKED)
        return 3;
    if (cairn_restore_run(r, 100, NULL, NULL, NULL) != CAIRN_E_FORKED ||
        cairn_restore_add(r, &t, NULL) != CAIRN_E_FORKED)
        return 4;
    if (cairn_query(s, CAIRN_QUERY_STATUS, NULL, 0, 100, &json, NULL) != CAIRN_E_FORKED)
        return 5;
    if (cairn_save_stage(save, NULL) != CAIRN_E_FORKED || cairn_save_place(staged, 0, &place, NULL) != CAIRN_E_FORKED ||
        cairn_save_all(s, &o, &t, 1, &other, NULL) != CAIRN_E_FORKED ||
        cairn_save_add_all(save, &t, 1, NULL) != CAIRN_E_FORKED)
        return 6;
    if (cairn_restore_find(r, "data", &t, NULL) != CAIRN_E_FORKED ||
        cairn_restore_add_all(r, &t, 1, NULL) != CAIRN_E_FORKED)
        return 7;
    cairn_save_free(staged);
    cairn_save_free(save);
    cairn_restore_free(r);
    cairn_session_close(s);
    return 0;
}

/* Catches a child that ends its parent's connection, or touches an arena that it does not have. */
static void test_fork(void **state)
{
    struct cairn_session *s;
    struct cairn_save *save, *staged;
    struct cairn_restore *r;
    void *place;
    int status;

    (void)state;
    OK(open_rank(f, 0, 1, 4, 2000, &s));
    save_step(s, 1);
    OK(cairn_restore_open(s, 1, 2000, &r, &err));
    make_save(s, 2, &save);
    make_save(s, 3, &staged);
    OK(cairn_save_stage(staged, &err));
    OK(cairn_save_place(staged, 0, &place, &err));
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(in_child(s, save, staged, r));
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_memory_equal(place, data, sizeof(data)); /* still there */
    OK(cairn_save_seal(staged, &err));
    OK(cairn_save_wait(staged, CAIRN_COMMITTED, 2000, &err));
    OK(cairn_save_seal(save, &err));
    OK(cairn_save_wait(save, CAIRN_COMMITTED, 2000, &err));
    assert_int_equal(fake_count(f, LOCAL_OPEN), 1); /* still the first connection */
    cairn_save_free(save);
    cairn_save_free(staged);
    cairn_restore_free(r);
    cairn_session_close(s);
    no_complaint(f);
}

int main(void)
{
#define TEST(name_) cmocka_unit_test_setup_teardown(name_, start, stop)
    const struct CMUnitTest tests[] = {
        TEST(test_open_errors),
        TEST(test_wrong_arenas),
        TEST(test_seal_errors),
        TEST(test_filled_is_answered_later),
        TEST(test_forgotten_layout),
        TEST(test_late_grant),
        TEST(test_save_misuse),
        TEST(test_wait),
        TEST(test_an_older_daemon),
        TEST(test_session_fd),
        TEST(test_interrupted),
        TEST(test_daemon_restarts),
        TEST(test_save_goes_on_after_a_restart),
        TEST(test_poll_follows_a_connection_that_is_there),
        TEST(test_resume_is_refused),
        TEST(test_a_silent_daemon_after_a_restart),
        TEST(test_reconnect_waits),
        TEST(test_restore_faults),
        TEST(test_restore_daemon_goes),
        TEST(test_restore_stops),
        TEST(test_query),
        TEST(test_fork),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
