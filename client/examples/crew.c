/* SPDX-License-Identifier: Apache-2.0 */
#include "crew.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct crew *crew_new(uint32_t ranks, size_t shared_bytes)
{
    struct crew *crew =
        mmap(NULL, sizeof *crew + shared_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (crew == MAP_FAILED)
        return NULL;
    crew->ranks = ranks;
    crew->shared_bytes = shared_bytes;
    return crew;
}

/* ---- the barrier ----------------------------------------------------------------------------- */

static void wake_all(struct crew *crew)
{
    syscall(SYS_futex, &crew->round, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

int crew_barrier(struct crew *crew, unsigned timeout_ms)
{
    uint32_t round = __atomic_load_n(&crew->round, __ATOMIC_ACQUIRE);
    struct timespec end, slice = {.tv_nsec = 100 * 1000000}; /* lost is looked at again this often */

    if (__atomic_add_fetch(&crew->arrived, 1, __ATOMIC_ACQ_REL) == crew->ranks) {
        __atomic_store_n(&crew->arrived, 0, __ATOMIC_RELAXED);
        __atomic_add_fetch(&crew->round, 1,
                           __ATOMIC_RELEASE); /* after arrived is back at 0: the next round may begin */
        wake_all(crew);
        return 0;
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += timeout_ms / 1000;
    while (__atomic_load_n(&crew->round, __ATOMIC_ACQUIRE) == round) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (__atomic_load_n(&crew->lost, __ATOMIC_ACQUIRE) || now.tv_sec > end.tv_sec)
            return -1;
        syscall(SYS_futex, &crew->round, FUTEX_WAIT, round, &slice, NULL, 0);
    }
    return 0;
}

/* ---- the processes --------------------------------------------------------------------------- */

static void rank_main(struct crew *crew, uint32_t rank, crew_fn fn, void *arg, const sigset_t *signals, pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) /* it died before the line above */
        _exit(1);
    sigprocmask(SIG_UNBLOCK, signals, NULL);
    int r = fn(crew, rank, arg);
    fflush(NULL);
    _exit(r == 0 ? 0 : 1);
}

static void end_all(struct crew *crew, const pid_t *pids, int sig)
{
    for (uint32_t i = 0; i < crew->ranks; i++)
        if (pids[i] > 0)
            kill(pids[i], sig);
}

static void report_end(uint32_t rank, int status)
{
    if (WIFSIGNALED(status))
        fprintf(stderr, "train: rank %u was killed by signal %d\n", rank, WTERMSIG(status));
    else if (WEXITSTATUS(status) != 0)
        fprintf(stderr, "train: rank %u failed\n", rank);
}

/* Takes in the ranks that have ended; true when one did not end well. */
static bool reap(struct crew *crew, pid_t *pids, uint32_t *left)
{
    bool bad = false;
    int status;

    for (uint32_t i = 0; i < crew->ranks; i++) {
        if (pids[i] <= 0 || waitpid(pids[i], &status, WNOHANG) != pids[i])
            continue;
        pids[i] = 0;
        --*left;
        report_end(i, status);
        bad |= status != 0;
    }
    return bad;
}

/* A rank that is lost takes the others with it: first they may end by themselves, then they are killed. */
static int watch(struct crew *crew, pid_t *pids, const sigset_t *signals)
{
    struct timespec second = {.tv_sec = 1};
    uint32_t left = 0;
    int r = 0, patience = 3;

    for (uint32_t i = 0; i < crew->ranks; i++)
        left += pids[i] > 0;
    if (left < crew->ranks)
        r = 1;
    while (left > 0) {
        int sig = r ? sigtimedwait(signals, NULL, &second) : sigwaitinfo(signals, NULL);
        if (sig == SIGTERM || sig == SIGINT)
            r = 1;
        if (reap(crew, pids, &left))
            r = 1;
        if (r == 0)
            continue;
        __atomic_store_n(&crew->lost, 1, __ATOMIC_RELEASE);
        wake_all(crew);
        if (sig < 0 && patience-- == 0)
            end_all(crew, pids, SIGKILL);
        else
            end_all(crew, pids, SIGTERM);
    }
    return r;
}

int crew_run(struct crew *crew, crew_fn fn, void *arg)
{
    pid_t pids[CREW_MAX] = {0}, parent = getpid();
    sigset_t signals;

    sigemptyset(&signals);
    sigaddset(&signals, SIGCHLD);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    fflush(NULL);
    for (uint32_t i = 0; i < crew->ranks; i++) {
        pids[i] = fork();
        if (pids[i] == 0)
            rank_main(crew, i, fn, arg, &signals, parent);
        if (pids[i] < 0) {
            perror("train: fork");
            break;
        }
    }
    return watch(crew, pids, &signals);
}
