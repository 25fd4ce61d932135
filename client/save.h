/* SPDX-License-Identifier: Apache-2.0 */
/* A save.
 *
 *     NOTING --stage ok--> STAGED --seal ok--> SEALED --(events: DURABLE, COMMITTED, or failed)
 *        |  \--fails-------/  |  \--fails--> FAILED: wait repeats why
 *        \--free--------------/--> the step is given up: DROP
 *
 * add: the tensor is the next one of the session's plan, as in every save of a training loop; at the first that is not,
 * this save lists its tensors itself (save_list). stage: a plan if they are not as planned; LAYOUT if the daemon does
 * not know it; BEGIN, which grants pages; the copy. seal: the same if it was not done yet; the save's id into its word,
 * behind every byte; FILLED, whose answer nobody waits for: the word has said it. Any failure after begin gives the
 * step up, so that the other ranks need not wait for this one. The exceptions are EXISTS and FENCED before a grant:
 * then the step is not this save's to give up.
 *
 * A connection that is lost once pages were granted ends nothing: the copy goes on, for the arena stays mapped, and the
 * word says to whatever daemon takes the arena back that the snapshot is complete. wait follows the session to that
 * daemon: its watch moves to the new channel, RESUME asks what became of the save, and events go on from there. A seal
 * that finds such a daemon does the same: the arena may have been taken back before its word was written.
 *
 * With tensors on devices seal, or stage, puts their copies into streams and returns; word and FILLED come when the
 * copies have ended, from the session's completion thread (completion.h), which a save that is freed between stage and
 * seal is handed to as well:
 *
 *     caller's ----seal: hand----> thread's --copies ended: save_complete--> caller's --free--> (gone)
 *                                     \--free: disown--> thread's alone --the same-----------> (gone)
 *
 * While it is the thread's, everything of the save is, but for session, phase, step, plan, pages, placed, shares,
 * sources and the failure of a seal, which do not change any more, and view, which is always the caller's. A failure
 * that the thread finds is the watch's; the step is given up when no device touches its pages any more.
 */
#ifndef CAIRN_CLIENT_SAVE_H
#define CAIRN_CLIENT_SAVE_H

#include "client/device_copy.h"
#include "client/image.h"
#include "client/session.h"

enum save_phase { SAVE_NOTING, SAVE_STAGED, SAVE_SEALED, SAVE_FAILED };

struct cairn_save {
    struct cairn_session *session;
    enum save_phase phase;
    uint64_t step;
    uint32_t room_ms;             /* how long stage waits for room */
    struct plan *plan;            /* that all tensors so far agree with, or stage has made; NULL: there is none */
    struct cairn_layout layout;   /* the tensors, while there is no plan */
    struct image_source *sources; /* of each slice */
    uint32_t nsources;
    uint32_t sources_room;
    uint32_t nopen;               /* slices that have bytes and no data: the caller writes them */
    uint32_t ndevice;             /* slices that have bytes and lie on devices */
    struct cairn_stream *streams; /* what wrote them; of each device at most one */
    uint32_t nstreams;
    uint64_t copied_bytes; /* by stage, from the host's memory */
    uint64_t device_bytes; /* of slices on devices */
    bool copied;           /* all of them are in place; then it is known: */
    uint64_t unchanged_bytes;
    uint64_t staged_bytes;
    uint64_t packed_bytes;
    bool packed;                  /* its devices may pack, and the daemon is told how each part lies in its page */
    bool compared;                /* the daemon is told what its devices have read */
    struct shares *shares;        /* of devices; from stage on */
    struct device_copies *copies; /* under way, or ended and not forgotten yet */
    struct completion_share completion;
    bool placed;                   /* the caller may know places in it: the arena is held until it is freed */
    struct attachment *attachment; /* from stage on */
    struct arena *arena;           /* held while its pages may be written to, and while places may be known */
    bool writing;                  /* counted among the arena's writers */
    uint64_t arena_serial;         /* of the arena with its pages */
    uint32_t *pages;               /* of each part, once granted */
    uint32_t filled_word;          /* of the control area, once granted */
    char *view;                    /* the image in one piece; NULL: nobody needed it yet */
    struct channel_watch watch;    /* in the attachment's channel once granted */
    bool waited;                   /* the attachment's daemon was told that somebody waits */
    struct channel_request said;   /* FILLED or RESUME; an ERROR to it is the watch's end */
    struct local_ok said_ok;
    struct cairn_error failure; /* in FAILED */
};

/* The save's own list of the tensors so far, instead of the plan. */
int save_list(struct cairn_save *s, struct cairn_error *err);
/* Of the plan or of the list, below nsources. */
const struct cairn_slice *save_slice(const struct cairn_save *s, uint64_t i);
/* Nothing writes to the arena any more. */
void save_stop_writing(struct cairn_save *s);
/* The other ranks hear at once that this one does not take part. Waits for nothing. */
void save_abandon(struct cairn_save *s);
/* What the completion thread does when the copies have ended: the word and FILLED, or the step is given up. */
void save_complete(struct cairn_save *s);
/* It is nobody else's. */
void save_destroy(struct cairn_save *s);

/* Sends FILLED or RESUME and does not wait for the answer. */
int save_say(struct cairn_save *s, struct local_header *message, int64_t deadline_ns, struct cairn_error *err);
/* The connection is lost and the snapshot is complete: a daemon that has the arena by now may have looked at its word
 * too early, so it is told. UNAVAILABLE when the session has another arena; nothing is wrong when there is no daemon.
 */
int save_announce_anew(struct cairn_save *s, int64_t deadline_ns, struct cairn_error *err);

/* Forgets the image in one piece. */
void save_unmap_view(struct cairn_save *s);

#endif
