/* SPDX-License-Identifier: Apache-2.0 */
/* cairn watch from the inside:
 *
 *     watch_look.c    the directory: which steps there are, which have their marker
 *     watch_list.c    the daemon's list of the job: which are committed already
 *     watch_rules.c   what to do next (pure)
 *     watch_take.c    one step into the arena, to its commit
 *     watch_keep.c    directories that may go
 *     watch.c         the loop, and the log
 */
#ifndef CAIRN_CLIENT_TOOL_WATCH_INTERNAL_H
#define CAIRN_CLIENT_TOOL_WATCH_INTERNAL_H

#include "client/tool/watch.h"
#include "client/tool/watch_signals.h"
#include "client/tool/watch_take.h"

struct watch {
    const struct watch_options *o;
    struct signals signals;
    struct taker taker;
    struct watch_step *steps; /* ascending */
    size_t nsteps, steps_room;
    struct watch_record *records; /* as the daemon listed them last */
    size_t nrecords;
    uint64_t latest;               /* committed; CAIRN_LATEST: none */
    char base[CAIRN_MAX_NAME + 1]; /* of start ids */
    int directory;                 /* open; -1: it is not there */
    int inotify;                   /* -1: events cannot be had, it is looked at every few seconds */
    int64_t ask_ms;                /* the daemon is not asked before; back-off */
    unsigned ask_tries;
    int64_t keep_ms;                              /* nothing is removed before; back-off */
    int64_t leftovers_ms;                         /* what removals left is not looked at before */
    uint64_t saved;                               /* the step that was saved last; taker.last is its tree */
    int64_t look_behind_ms, look_behind_until_ms; /* when to see whether it was complete; 0: no more */
    int exit_code;                                /* of --once */
};

int64_t watch_now_ms(void);
/* One line; takes the fields, which may be NULL. */
void watch_log(const struct watch *w, const char *event, json_t *fields);
void watch_log_error(const struct watch *w, const char *event, const char *what, const struct cairn_error *err);

/* Looks at the directory: steps that came and went, markers, settling. */
void watch_look(struct watch *w, int64_t now_ms);
/* Opens a step's directory. */
int watch_open_step(const struct watch *w, const struct watch_step *s, int *ret_fd, struct cairn_error *err);
/* Events of the directory and of the steps in it that are not complete; at most timeout_ms. */
void watch_wait(struct watch *w, int64_t timeout_ms);

/* Asks the daemon, and judges every step by it. */
int watch_list(struct watch *w, struct cairn_error *err);

/* Removes directories beyond --keep that are what is stored. */
void watch_keep(struct watch *w, int64_t now_ms);

#endif
