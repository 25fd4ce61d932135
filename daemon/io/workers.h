/* SPDX-License-Identifier: Apache-2.0 */
/* A pool of threads for what needs a processor: encode, decode, checksum, parity, arena copies. A job is a struct owned
 * by the caller; run() is called on a worker and sees nothing but the job; done() is called on the loop's thread. */
#ifndef CAIRN_DAEMON_IO_WORKERS_H
#define CAIRN_DAEMON_IO_WORKERS_H

#include "daemon/io/loop.h"

struct workers;
struct worker_job {
    void (*run)(struct worker_job *job);
    void (*done)(struct worker_job *job);
    void *arg;
    struct worker_job *next; /* the pool's */
    struct loop_post post;   /* the pool's */
};
int workers_new(struct loop *loop, unsigned threads, struct workers **ret_workers, struct cairn_error *err);
/* Waits for jobs that run; queued ones are still run. Their done() calls come in later turns of the loop. NULL allowed.
 */
void workers_free(struct workers *workers);
void workers_submit(struct workers *workers, struct worker_job *job); /* loop's thread; first come, first served */
unsigned workers_backlog(const struct workers *workers);              /* submitted and not yet done */

#endif
