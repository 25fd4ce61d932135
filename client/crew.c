/* SPDX-License-Identifier: Apache-2.0 */
#include "client/crew.h"

#include <pthread.h>
#include <signal.h>

/* The trainer's signals are for the trainer's own threads. */
static unsigned start(void *(*work)(void *arg), void *arg, pthread_t *threads, unsigned wanted)
{
    sigset_t all, before;
    unsigned n = 0;

    sigfillset(&all);
    if (pthread_sigmask(SIG_SETMASK, &all, &before) != 0)
        return 0;
    while (n < wanted && pthread_create(&threads[n], NULL, work, arg) == 0)
        n++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return n;
}

void crew_run(void *(*work)(void *arg), void *arg, unsigned threads)
{
    pthread_t others[CREW_MAX];
    unsigned wanted = threads > CREW_MAX ? CREW_MAX : threads;
    unsigned n = wanted > 1 ? start(work, arg, others, wanted - 1) : 0;

    work(arg);
    for (unsigned i = 0; i < n; i++)
        pthread_join(others[i], NULL);
}
