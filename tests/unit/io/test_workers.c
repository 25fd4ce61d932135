/* SPDX-License-Identifier: Apache-2.0 */
/* What crosses threads: posts, and jobs on workers. Run under ThreadSanitizer. */
#include "daemon/io/buffers.h"
#include "daemon/io/workers.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MAX_TURNS 100000

static struct loop *new_loop(void)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct loop *loop;

    if (loop_new(64, &loop, &err) < 0) {
        print_message("%s\n", err.message);
        exit(77);
    }
    return loop;
}

static void turn_until(struct loop *loop, const unsigned *flag, unsigned n)
{
    for (int i = 0; i < MAX_TURNS && *flag < n; i++)
        assert_int_equal(loop_turn(loop, 1000, NULL), 0);
    assert_int_equal(*flag, n);
}

/* ---- posts ----------------------------------------------------------------------------------- */

#define POSTERS 3
#define POSTS 20000

struct poster {
    struct loop *loop;
    pthread_t thread;
    unsigned next; /* whose turn it is: posts of one thread run in their order */
    unsigned *total;
    struct numbered {
        struct loop_post post;
        struct poster *poster;
        unsigned number;
    } posts[POSTS];
};

static void on_post(struct loop_post *post)
{
    struct numbered *n = post->arg;

    assert_int_equal(n->number, n->poster->next);
    n->poster->next++;
    ++*n->poster->total;
}

static void *post_all(void *arg)
{
    struct poster *p = arg;

    for (unsigned i = 0; i < POSTS; i++) {
        p->posts[i] = (struct numbered){.post = {.run = on_post, .arg = &p->posts[i]}, .poster = p, .number = i};
        loop_post(p->loop, &p->posts[i].post);
    }
    return NULL;
}

/* Catches lost wake-ups (a turn would wait for a second and fail the count in time) and posts out of order. */
static void posts_from_threads_all_run_in_order(void **state)
{
    struct loop *loop = new_loop();
    struct poster *posters = calloc(POSTERS, sizeof(*posters));
    unsigned total = 0;

    (void)state;
    for (int i = 0; i < POSTERS; i++) {
        posters[i].loop = loop;
        posters[i].total = &total;
        assert_int_equal(pthread_create(&posters[i].thread, NULL, post_all, &posters[i]), 0);
    }
    turn_until(loop, &total, POSTERS * POSTS);
    for (int i = 0; i < POSTERS; i++)
        pthread_join(posters[i].thread, NULL);
    loop_free(loop);
    free(posters);
}

struct wake {
    struct loop *loop;
    struct loop_post post;
    unsigned seen;
};

static void on_wake(struct loop_post *post)
{
    struct wake *w = post->arg;

    w->seen++;
}

static void *post_one(void *arg)
{
    struct wake *w = arg;

    loop_post(w->loop, &w->post);
    return NULL;
}

/* One turn that may wait for a minute ends with the post, again and again. */
static void a_post_ends_the_wait(void **state)
{
    struct wake w = {.loop = new_loop()};
    pthread_t thread;

    (void)state;
    w.post = (struct loop_post){.run = on_wake, .arg = &w};
    for (unsigned i = 1; i <= 100; i++) {
        assert_int_equal(pthread_create(&thread, NULL, post_one, &w), 0);
        while (w.seen < i)
            assert_int_equal(loop_turn(w.loop, 60000, NULL), 0);
        pthread_join(thread, NULL);
    }
    loop_free(w.loop);
}

/* ---- workers --------------------------------------------------------------------------------- */

struct job {
    struct worker_job job;
    uint64_t in, out;
    unsigned *ended;
    pthread_t loop_thread;
};

static void run(struct worker_job *job)
{
    struct job *j = job->arg;

    j->out = 1;
    for (int i = 0; i < 1000; i++)
        j->out = j->out * 6364136223846793005u + j->in;
}

static void done(struct worker_job *job)
{
    struct job *j = job->arg;
    struct job again = *j;

    assert_true(pthread_equal(j->loop_thread, pthread_self()));
    run(&again.job);
    ++*j->ended;
    free(j); /* the job is the caller's from here on */
}

static void submit(struct workers *w, unsigned n, unsigned *ended)
{
    for (unsigned i = 0; i < n; i++) {
        struct job *j = calloc(1, sizeof(*j));

        *j = (struct job){.in = i, .ended = ended, .loop_thread = pthread_self()};
        j->job = (struct worker_job){.run = run, .done = done, .arg = j};
        workers_submit(w, &j->job);
    }
}

static void jobs_run_on_workers_and_end_on_the_loop(void **state)
{
    struct loop *loop = new_loop();
    struct workers *w;
    unsigned ended = 0;

    (void)state;
    assert_int_equal(workers_new(loop, 3, &w, NULL), 0);
    submit(w, 5000, &ended);
    assert_int_equal(workers_backlog(w), 5000);
    turn_until(loop, &ended, 5000);
    assert_int_equal(workers_backlog(w), 0);
    workers_free(w);
    loop_free(loop);
}

/* Queued jobs are still run; their done() calls come after the pool is gone. Catches a use of the pool by them. */
static void free_runs_what_is_queued(void **state)
{
    struct loop *loop = new_loop();
    struct workers *w;
    unsigned ended = 0;

    (void)state;
    assert_int_equal(workers_new(loop, 2, &w, NULL), 0);
    submit(w, 1000, &ended);
    workers_free(w);
    assert_int_equal(ended, 0);
    turn_until(loop, &ended, 1000);
    /* Also when no turn follows any more. */
    ended = 0;
    assert_int_equal(workers_new(loop, 2, &w, NULL), 0);
    submit(w, 10, &ended);
    workers_free(w);
    loop_free(loop);
    assert_int_equal(ended, 10);
}

/* ---- buffers --------------------------------------------------------------------------------- */

static void buffers_are_bounded_aligned_and_apart(void **state)
{
    struct buffers *b;
    char *taken[5];
    size_t len;

    (void)state;
    assert_int_equal(buffers_new(5000, 5, &b, NULL), 0);
    assert_true(buffers_len(b) >= 5000);
    char *base = buffers_base(b, &len);
    for (int i = 0; i < 5; i++) {
        taken[i] = buffers_take(b);
        assert_non_null(taken[i]);
        assert_int_equal((uintptr_t)taken[i] % 4096, 0);
        assert_true(taken[i] >= base && taken[i] + 5000 <= base + len);
        memset(taken[i], i + 1, 5000);
    }
    assert_null(buffers_take(b));
    assert_int_equal(buffers_available(b), 0);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(taken[i][0], i + 1);
        assert_int_equal(taken[i][4999], i + 1);
        buffers_give(b, taken[i]);
    }
    assert_int_equal(buffers_available(b), 5);
    buffers_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(posts_from_threads_all_run_in_order),     cmocka_unit_test(a_post_ends_the_wait),
        cmocka_unit_test(jobs_run_on_workers_and_end_on_the_loop), cmocka_unit_test(free_runs_what_is_queued),
        cmocka_unit_test(buffers_are_bounded_aligned_and_apart),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
