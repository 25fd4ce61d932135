/* SPDX-License-Identifier: Apache-2.0 */
/* The completion thread of a session: it does for saves with copies from devices, when these have ended, what seal does
 * at once for others. Made at the first such save; it takes no signals, sleeps while nothing is under way, and in short
 * growing steps while something is.
 *
 *     caller's --hand--> thread's: polled until its copies have ended, completed --> caller's again
 *                           \--disown (the caller frees it meanwhile)----------> completed, then freed here
 *
 * While a save is the thread's, nobody else touches it, but for what does not change any more (save.h). */
#ifndef CAIRN_CLIENT_COMPLETION_H
#define CAIRN_CLIENT_COMPLETION_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include <cairn/cairn.h>

#include "core/base/list.h"

struct completion {
    pthread_mutex_t lock;
    pthread_cond_t work; /* CLOCK_MONOTONIC: a save was handed over, or stop */
    uint32_t turns;      /* futex word: changes when a save is its caller's again */
    struct list saves;   /* that are the thread's */
    bool running;
    bool stop;
    pthread_t thread;
};

/* Of a save; under completion.lock. */
struct completion_share {
    struct list link; /* in completion.saves */
    bool handed;      /* it is the thread's */
    bool disowned;
    uint32_t parts; /* that are in place, as far as the thread has seen */
};

/* Returns 0 or an errno. */
int completion_init(struct completion *c);
/* It is stopped. */
void completion_free(struct completion *c);
/* Makes the thread, if it is not there. */
int completion_start(struct completion *c, struct cairn_error *err);
/* From now on the save is the thread's. It was started. */
void completion_hand(struct completion *c, struct cairn_save *save);
/* Whether it still is; then how far it is. */
bool completion_has(struct completion *c, const struct cairn_save *save, uint32_t *ret_parts);
/* Until it is the caller's again: TIMEOUT, INTR. */
int completion_wait(struct completion *c, const struct cairn_save *save, int64_t deadline_ns, struct cairn_error *err);
/* True when the thread will free it: it is not the caller's any more. */
bool completion_disown(struct completion *c, struct cairn_save *save);
/* Waits for all saves until the deadline and ends the thread. False when copies have not ended: nothing of theirs may
 * be freed. */
bool completion_stop(struct completion *c, int64_t deadline_ns);

#endif
