/* SPDX-License-Identifier: Apache-2.0 */
/* A save.
 *
 *     NOTING --seal ok--> SEALED --(events: SNAPSHOT, DURABLE, COMMITTED, or failed)
 *        |  \--seal fails--> FAILED: wait repeats why
 *        \--free--> the step is given up: DROP
 *
 * add: the tensor is the next one of the session's plan, as in every save of a training loop; at the first that is not,
 * this save lists its tensors itself (save_list). seal: a plan if they are not as planned; LAYOUT if the daemon does
 * not know it; BEGIN, which grants pages; the copy; the save's id into its word, behind every byte; FILLED. Any failure
 * after begin gives the step up, so that the other ranks need not wait for this one. The exceptions are EXISTS and
 * FENCED: then the step is not this save's to give up.
 *
 * A connection that is lost once pages were granted ends nothing: the copy goes on, for the arena stays mapped, and the
 * word says to whatever daemon takes the arena back that the snapshot is complete. wait follows the session to that
 * daemon: its watch moves to the new channel, RESUME asks what became of the save, and events go on from there.
 */
#ifndef CAIRN_CLIENT_SAVE_H
#define CAIRN_CLIENT_SAVE_H

#include "client/image.h"
#include "client/session.h"

enum save_phase { SAVE_NOTING, SAVE_SEALED, SAVE_FAILED };

struct cairn_save {
    struct cairn_session *session;
    enum save_phase phase;
    uint64_t step;
    uint32_t room_ms;             /* how long seal waits for room */
    struct plan *plan;            /* that all tensors so far agree with, or seal has made; NULL: there is none */
    struct cairn_layout layout;   /* the tensors, while there is no plan */
    struct image_source *sources; /* of each slice */
    uint32_t nsources;
    uint32_t sources_room;
    uint64_t copied_bytes;         /* by seal */
    struct attachment *attachment; /* from seal on */
    struct arena *arena;           /* held while seal may write to it */
    uint64_t arena_serial;         /* of the arena with its pages */
    struct channel_watch watch;    /* in the attachment's channel once granted */
    bool waited;                   /* the attachment's daemon was told that somebody waits */
    bool resuming;                 /* RESUME was sent and its answer not taken yet */
    struct channel_request resume;
    struct local_ok resume_ok;
    struct cairn_error failure; /* in FAILED */
};

/* The save's own list of the tensors so far, instead of the plan. */
int save_list(struct cairn_save *s, struct cairn_error *err);
/* The other ranks hear at once that this one does not take part. Waits for nothing. */
void save_abandon(struct cairn_save *s);

#endif
