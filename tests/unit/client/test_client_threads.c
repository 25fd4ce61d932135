/* SPDX-License-Identifier: Apache-2.0 */
/* A session used by several threads at once: who waits reads for the others. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include "tests/unit/client/support.h"

static struct fake *f;
static char data[1 << 20];
static const uint64_t data_len = sizeof(data);

static int start(void **state)
{
    (void)state;
    f = fake_start();
    return 0;
}

static int stop(void **state)
{
    (void)state;
    fake_stop(f);
    return 0;
}

struct waiter {
    pthread_t thread;
    struct cairn_save *save;
    uint32_t timeout_ms;
    int result;
    bool waiting; /* atomic: about to wait */
};

static void *wait_for_commit(void *arg)
{
    struct waiter *w = arg;

    __atomic_store_n(&w->waiting, true, __ATOMIC_RELEASE);
    w->result = cairn_save_wait(w->save, CAIRN_COMMITTED, w->timeout_ms, NULL);
    return NULL;
}

static void start_waiter(struct waiter *w, struct cairn_session *s, uint64_t step, uint32_t timeout_ms)
{
    struct cairn_tensor t = bytes_tensor("data", &data_len, data);

    *w = (struct waiter){.timeout_ms = timeout_ms};
    OK(begin(s, step, &w->save));
    OK(cairn_save_add(w->save, &t, &err));
    OK(cairn_save_seal(w->save, &err));
    assert_int_equal(pthread_create(&w->thread, NULL, wait_for_commit, w), 0);
    while (!__atomic_load_n(&w->waiting, __ATOMIC_ACQUIRE))
        usleep(100);
}

static int end_waiter(struct waiter *w)
{
    pthread_join(w->thread, NULL);
    cairn_save_free(w->save);
    return w->result;
}

/* Catches a leader that leaves with nobody reading, and an answer that wakes nobody. */
static void test_two_wait(void **state)
{
    struct cairn_session *s;
    struct waiter early, late;
    char *json;

    (void)state;
    OK(open_rank(f, 0, 1, 4, 5000, &s));
    fake_events(f, CAIRN_SNAPSHOT, 0);
    start_waiter(&early, s, 1, 100);
    start_waiter(&late, s, 2, 10000);
    for (int i = 0; i < 200; i++) {
        OK(cairn_query(s, CAIRN_QUERY_STATUS, NULL, 0, 5000, &json, &err));
        free(json);
    }
    assert_int_equal(end_waiter(&early), CAIRN_E_TIMEOUT);
    fake_event_now(f, CAIRN_COMMITTED, 0); /* of the last save */
    assert_int_equal(end_waiter(&late), 0);
    cairn_session_close(s);
    no_complaint(f);
}

static void test_all_hear_the_end(void **state)
{
    struct cairn_session *s;
    struct waiter w[3];

    (void)state;
    OK(open_rank(f, 0, 1, 4, 5000, &s));
    fake_events(f, CAIRN_SNAPSHOT, 0);
    for (uint64_t i = 0; i < 3; i++)
        start_waiter(&w[i], s, i + 1, 20000);
    fake_restart(f, 0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(end_waiter(&w[i]), CAIRN_E_UNAVAILABLE);
    cairn_session_close(s);
    no_complaint(f);
}

static void on_signal(int signal)
{
    (void)signal;
}

/* Catches a follower that sleeps through its signals: in Python that is a Ctrl-C which nobody hears. */
static void test_followers_are_interrupted(void **state)
{
    struct sigaction act = {.sa_handler = on_signal}, before;
    struct cairn_session *s;
    struct waiter w[2];

    (void)state;
    assert_int_equal(sigaction(SIGUSR1, &act, &before), 0);
    OK(open_rank(f, 0, 1, 4, 5000, &s));
    fake_events(f, CAIRN_SNAPSHOT, 0);
    for (uint64_t i = 0; i < 2; i++)
        start_waiter(&w[i], s, i + 1, 20000);
    for (int i = 0; i < 2; i++) {
        /* Again and again: the first may come before the thread has begun to wait. */
        while (pthread_tryjoin_np(w[i].thread, NULL) != 0) {
            pthread_kill(w[i].thread, SIGUSR1);
            usleep(1000);
        }
        assert_int_equal(w[i].result, CAIRN_E_INTR);
        cairn_save_free(w[i].save);
    }
    sigaction(SIGUSR1, &before, NULL);
    cairn_session_close(s);
    no_complaint(f);
}

struct asker {
    pthread_t thread;
    struct cairn_session *session;
    unsigned failed, answered;
};

static void *ask_often(void *arg)
{
    struct asker *a = arg;

    for (int i = 0; i < 100; i++) {
        char *json;
        if (cairn_query(a->session, CAIRN_QUERY_STATUS, NULL, 0, 5000, &json, NULL) == 0) {
            a->answered++;
            free(json);
        } else {
            a->failed++;
        }
    }
    return NULL;
}

/* The daemon restarts under several threads: each loses the question that was under way, nobody a later one, and they
 * do not connect once each. */
static void test_restart_under_load(void **state)
{
    enum { ASKERS = 4, RESTARTS = 5 };
    struct asker a[ASKERS];
    struct cairn_session *s;

    (void)state;
    OK(open_rank(f, 0, 1, 4, 5000, &s));
    for (int i = 0; i < ASKERS; i++) {
        a[i] = (struct asker){.session = s};
        assert_int_equal(pthread_create(&a[i].thread, NULL, ask_often, &a[i]), 0);
    }
    for (unsigned i = 1; i <= RESTARTS; i++) {
        while (fake_count(f, LOCAL_QUERY) < 20 * i)
            usleep(100);
        fake_restart(f, 0);
    }
    for (int i = 0; i < ASKERS; i++) {
        pthread_join(a[i].thread, NULL);
        assert_int_equal(a[i].answered + a[i].failed, 100);
        assert_true(a[i].failed <= RESTARTS);
    }
    assert_true(fake_count(f, LOCAL_OPEN) <= 1 + RESTARTS);
    cairn_session_close(s);
    no_complaint(f);
}

int main(void)
{
#define TEST(name_) cmocka_unit_test_setup_teardown(name_, start, stop)
    const struct CMUnitTest tests[] = {
        TEST(test_two_wait),
        TEST(test_all_hear_the_end),
        TEST(test_followers_are_interrupted),
        TEST(test_restart_under_load),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
