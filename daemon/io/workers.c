/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/io/workers.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

struct workers {
    struct loop *loop;
    pthread_mutex_t lock; /* of head, tail and quit */
    pthread_cond_t more;
    struct worker_job *head;
    struct worker_job **tail;
    bool quit;
    unsigned backlog; /* the loop's, like what follows */
    bool freed;       /* by its owner: the last completion releases it */
    unsigned nthreads;
    pthread_t threads[];
};

static struct worker_job *take_job(struct workers *w)
{
    pthread_mutex_lock(&w->lock);
    while (!w->head && !w->quit)
        pthread_cond_wait(&w->more, &w->lock);
    struct worker_job *job = w->head;
    if (job) {
        w->head = job->next;
        if (!w->head)
            w->tail = &w->head;
    }
    pthread_mutex_unlock(&w->lock);
    return job;
}

static void *work(void *arg)
{
    struct workers *w = arg;
    struct worker_job *job;

    while ((job = take_job(w))) {
        job->run(job);
        loop_post(w->loop, &job->post);
    }
    return NULL;
}

static void release(struct workers *w)
{
    pthread_cond_destroy(&w->more);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

static void job_done(struct loop_post *post)
{
    struct worker_job *job = container_of(post, struct worker_job, post);
    struct workers *w = post->arg;

    if (--w->backlog == 0 && w->freed)
        release(w);
    job->done(job);
}

void workers_submit(struct workers *w, struct worker_job *job)
{
    loop_assert_here(w->loop);
    job->next = NULL;
    job->post = (struct loop_post){.run = job_done, .arg = w};
    w->backlog++;
    pthread_mutex_lock(&w->lock);
    *w->tail = job;
    w->tail = &job->next;
    pthread_cond_signal(&w->more);
    pthread_mutex_unlock(&w->lock);
}

unsigned workers_backlog(const struct workers *w)
{
    return w->backlog;
}

static void join_all(struct workers *w)
{
    pthread_mutex_lock(&w->lock);
    w->quit = true;
    pthread_cond_broadcast(&w->more);
    pthread_mutex_unlock(&w->lock);
    for (unsigned i = 0; i < w->nthreads; i++)
        pthread_join(w->threads[i], NULL);
}

/* Workers take no signals: they are the loop's. */
static int start_threads(struct workers *w, unsigned threads, struct cairn_error *err)
{
    sigset_t all, before;
    int r = 0;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; w->nthreads < threads && r == 0; w->nthreads += r == 0)
        r = pthread_create(&w->threads[w->nthreads], NULL, work, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return r ? cairn_fail_errno(err, r, "start worker %u of %u", w->nthreads + 1, threads) : 0;
}

int workers_new(struct loop *loop, unsigned threads, struct workers **ret_workers, struct cairn_error *err)
{
    struct workers *w = calloc(1, sizeof(*w) + threads * sizeof(w->threads[0]));

    if (!w)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate %u workers", threads);
    w->loop = loop;
    w->tail = &w->head;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->more, NULL);
    int r = start_threads(w, threads, err);
    if (r < 0) {
        workers_free(w);
        return r;
    }
    *ret_workers = w;
    return 0;
}

void workers_free(struct workers *w)
{
    if (!w)
        return;
    join_all(w);
    if (w->backlog)
        w->freed = true; /* completions are still posted to the loop */
    else
        release(w);
}
