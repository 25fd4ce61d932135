/* SPDX-License-Identifier: Apache-2.0 */
#include "client/completion.h"

#include <errno.h>
#include <signal.h>

#include "client/device_copy.h"
#include "client/futex.h"
#include "client/save.h"
#include "core/base/error.h"

#define MIN_PAUSE_NS ((int64_t)50 * 1000) /* between two looks, at first; doubles while nothing moves */
#define MAX_PAUSE_NS ((int64_t)2 * 1000000)
#define STOP_MS 2000 /* how long the thread may take to end when nothing is left for it to do */

int completion_init(struct completion *c)
{
    pthread_condattr_t monotonic;
    int e = pthread_condattr_init(&monotonic);

    list_init(&c->saves);
    if (e)
        return e;
    e = pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    if (e == 0)
        e = pthread_cond_init(&c->work, &monotonic);
    pthread_condattr_destroy(&monotonic);
    if (e == 0 && (e = pthread_mutex_init(&c->lock, NULL)) != 0)
        pthread_cond_destroy(&c->work);
    return e;
}

void completion_free(struct completion *c)
{
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->work);
}

/* ---- the thread ------------------------------------------------------------------------------ */

/* Lock held on entry and return, free in between. The save is its caller's again, or gone. */
static void give_back(struct completion *c, struct cairn_save *save)
{
    list_remove(&save->completion.link);
    save->completion.handed = false;
    bool disowned = save->completion.disowned;
    futex_turn(&c->turns);
    if (!disowned)
        return;
    pthread_mutex_unlock(&c->lock);
    save_destroy(save);
    pthread_mutex_lock(&c->lock);
}

/* Lock held on entry and return, free in between. Looks at each save once; true when something has moved. Others only
 * append to the list. */
static bool look(struct completion *c)
{
    bool moved = false;

    list_for_each_safe (it, &c->saves) {
        struct cairn_save *save = container_of(it, struct cairn_save, completion.link);
        pthread_mutex_unlock(&c->lock);
        bool ended = device_copies_look(save->copies);
        uint32_t parts = device_copies_parts(save->copies);
        if (ended)
            save_complete(save);
        pthread_mutex_lock(&c->lock);
        moved |= ended || parts != save->completion.parts;
        save->completion.parts = parts;
        if (ended)
            give_back(c, save);
    }
    return moved;
}

static void sleep_for(struct completion *c, int64_t pause_ns)
{
    int64_t until = clock_now_ns() + pause_ns;
    struct timespec t = {.tv_sec = until / 1000000000, .tv_nsec = until % 1000000000};

    pthread_cond_timedwait(&c->work, &c->lock, &t);
}

static void *work(void *arg)
{
    struct completion *c = arg;
    int64_t pause_ns = MIN_PAUSE_NS;

    pthread_mutex_lock(&c->lock);
    while (!c->stop) {
        if (list_empty(&c->saves)) {
            pthread_cond_wait(&c->work, &c->lock);
            pause_ns = MIN_PAUSE_NS;
            continue;
        }
        pause_ns = look(c) ? MIN_PAUSE_NS : pause_ns < MAX_PAUSE_NS / 2 ? 2 * pause_ns : MAX_PAUSE_NS;
        if (!list_empty(&c->saves) && !c->stop)
            sleep_for(c, pause_ns);
    }
    c->running = false;
    futex_turn(&c->turns);
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

/* The trainer's signals are for the trainer's own threads. Lock held. */
static int make_thread(struct completion *c)
{
    sigset_t all, before;

    sigfillset(&all);
    int e = pthread_sigmask(SIG_SETMASK, &all, &before);
    if (e)
        return e;
    e = pthread_create(&c->thread, NULL, work, c);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return e;
}

int completion_start(struct completion *c, struct cairn_error *err)
{
    pthread_mutex_lock(&c->lock);
    int e = c->running ? 0 : make_thread(c);
    c->running = e == 0;
    pthread_mutex_unlock(&c->lock);
    return e ? cairn_fail_errno(err, e, "make a thread that waits for copies from devices") : 0;
}

/* ---- callers --------------------------------------------------------------------------------- */

void completion_hand(struct completion *c, struct cairn_save *save)
{
    pthread_mutex_lock(&c->lock);
    save->completion.handed = true;
    list_push_back(&c->saves, &save->completion.link);
    pthread_cond_signal(&c->work);
    pthread_mutex_unlock(&c->lock);
}

bool completion_has(struct completion *c, const struct cairn_save *save, uint32_t *ret_parts)
{
    pthread_mutex_lock(&c->lock);
    bool has = save->completion.handed;
    *ret_parts = save->completion.parts;
    pthread_mutex_unlock(&c->lock);
    return has;
}

int completion_wait(struct completion *c, const struct cairn_save *save, int64_t deadline_ns, struct cairn_error *err)
{
    uint32_t parts;

    for (;;) {
        uint32_t seen = __atomic_load_n(&c->turns, __ATOMIC_RELAXED); /* before looking: what ends later changes it */
        if (!completion_has(c, save, &parts))
            return 0;
        if (clock_now_ns() >= deadline_ns)
            return cairn_fail(err, CAIRN_E_TIMEOUT, "copies from a device are under way");
        if (futex_wait(&c->turns, seen, deadline_ns) == EINTR)
            return completion_has(c, save, &parts) ? cairn_fail(err, CAIRN_E_INTR, "a signal came") : 0;
    }
}

bool completion_disown(struct completion *c, struct cairn_save *save)
{
    pthread_mutex_lock(&c->lock);
    bool handed = save->completion.handed;
    save->completion.disowned = handed;
    pthread_mutex_unlock(&c->lock);
    return handed;
}

/* ---- the end --------------------------------------------------------------------------------- */

static bool wait_for_all(struct completion *c, int64_t deadline_ns)
{
    for (;;) {
        uint32_t seen = __atomic_load_n(&c->turns, __ATOMIC_RELAXED);
        pthread_mutex_lock(&c->lock);
        bool empty = list_empty(&c->saves);
        pthread_mutex_unlock(&c->lock);
        if (empty || clock_now_ns() >= deadline_ns)
            return empty;
        futex_wait(&c->turns, seen, deadline_ns);
    }
}

/* True when the thread has ended: one that hangs within the vendor's driver does not. */
static bool wait_for_end(struct completion *c, int64_t deadline_ns)
{
    for (;;) {
        uint32_t seen = __atomic_load_n(&c->turns, __ATOMIC_RELAXED);
        pthread_mutex_lock(&c->lock);
        bool running = c->running;
        pthread_mutex_unlock(&c->lock);
        if (!running || clock_now_ns() >= deadline_ns)
            return !running;
        futex_wait(&c->turns, seen, deadline_ns);
    }
}

bool completion_stop(struct completion *c, int64_t deadline_ns)
{
    bool all = wait_for_all(c, deadline_ns);

    pthread_mutex_lock(&c->lock);
    bool made = c->running;
    c->stop = true;
    pthread_cond_signal(&c->work);
    pthread_mutex_unlock(&c->lock);
    if (!made)
        return true;
    if (!wait_for_end(c, clock_now_ns() + (int64_t)STOP_MS * 1000000))
        return false;
    pthread_join(c->thread, NULL);
    return all;
}
