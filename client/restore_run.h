/* SPDX-License-Identifier: Apache-2.0 */
/* What restore_run.c (the plan, and chunks that come through the window) and restore_hot.c (chunks that lie in our own
 * arena) share. */
#ifndef CAIRN_CLIENT_RESTORE_RUN_H
#define CAIRN_CLIENT_RESTORE_RUN_H

#include "client/device_loads.h"
#include "client/restore.h"

/* A piece needs bytes of a chunk. */
struct touch {
    uint32_t shard;
    uint32_t chunk;
    uint32_t mask; /* of the chunk's parts */
    size_t piece;
};

/* One chunk to read; its touches are neighbours. */
struct job {
    size_t first; /* touch */
    size_t n;
    uint32_t mask;
    bool done; /* copied from our own arena */
};

struct run {
    struct cairn_restore *restore;
    struct touch *touches;
    size_t ntouches, touches_room;
    struct job *jobs;
    uint64_t njobs;
    uint64_t next_job; /* to be asked for */
    uint32_t nbusy;
    uint64_t done_bytes, total_bytes;
    int64_t deadline_ns; /* that the daemon is told */
    int64_t latest_ns;   /* that we wait for its word about it */
    int64_t next_report_ns;
    cairn_progress_fn progress;
    void *progress_arg;
    struct device_loads loads; /* of what comes through the window */
    bool stopped;              /* atomic: by the progress function, which is not called again */
};

/* Calls the progress function if it is time, with so many bytes beyond those that are counted. */
void run_report(struct run *run, uint64_t more_bytes, bool at_end);
/* Where a piece goes; NULL: to the host's memory. */
static inline struct device *piece_device(const struct cairn_restore *r, const struct restore_piece *p)
{
    return r->targets[p->target].device;
}

/* Copies what it can from this process's own arena and marks those jobs done. Whatever it cannot is left to the
 * daemon: it fails only when a device does. */
int run_hot(struct run *run, struct cairn_error *err);

#endif
