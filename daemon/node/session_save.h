/* SPDX-License-Identifier: Apache-2.0 */
/* A save of a session: what session_save.c (from BEGIN to its end), session_fill.c (what its client says while it is
 * filled) and session_resume.c (saves of an arena that came back) share. */
#ifndef CAIRN_DAEMON_NODE_SESSION_SAVE_H
#define CAIRN_DAEMON_NODE_SESSION_SAVE_H

#include "daemon/node/internal.h"

struct session_save {
    struct list link;             /* in session, while that lives */
    struct session *session;      /* NULL once the session is over */
    struct arena *arena;          /* referenced */
    struct shared_layout *layout; /* referenced */
    struct snapshot *snapshot;    /* NULL before the grant */
    struct rank_save *rank_save;  /* NULL once it ended */
    struct hash128 *sums;         /* of its parts at their source; owned, NULL: not known */
    uint32_t in_place;            /* parts that its client said are, before it is filled */
    uint32_t *packed;             /* of its parts in place, as save_image; owned, NULL: none is packed */
    uint64_t step;
    uint32_t begin_id; /* of the request that waits for room */
    bool waiting;
    bool filled;
    bool committed;
    bool failed;
    bool lost;        /* what its pages hold was known to an earlier daemon only */
    bool ended;       /* the job does not read the pages any more */
    bool client_done; /* the client does not write them any more */
    int state;        /* enum cairn_save_state that was reached last */
    struct arena_waiter waiter;
    struct loop_timer patience; /* how long it may wait for room */
};

extern const struct save_events session_save_events;

/* By its id, or, when that is 0, by its step. */
struct session_save *session_save_find(struct session *s, uint64_t save, uint64_t step);
struct save_image session_save_image(const struct session_save *sv);
/* How every part lies in its page. */
bool session_save_is_known(const struct session_save *sv);
/* The word says that it is filled, and what lies in its pages is known. */
bool session_save_is_full(const struct session_save *sv);
void session_save_start_drain(struct session_save *sv);
/* Answers that the save has failed: its client, which has said that it writes no more, has nothing to fill. NULL: there
 * is none. */
void session_save_end_unfilled(struct session *s, struct session_save *sv, uint32_t id, int code,
                               const struct cairn_error *err);
/* The job does not read its pages any more. */
void session_save_ended(void *arg);
/* The one place where a save ends: frees it when nothing is left to be waited for. */
void session_save_release(struct session_save *sv);

#endif
