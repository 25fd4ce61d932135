/* SPDX-License-Identifier: Apache-2.0 */
/* What `cairn watch` decides: which directory is which step, whether it is complete, what to do next. Pure: names,
 * texts, times and the daemon's list come in, no file is touched.
 *
 *     WRITING --its marker is there, and nothing changed for settle_ms--> READY --saved--> COMMITTED
 *        |                                                                 |  \--failed--> READY, not before its
 * back-off |                                                                 |--another start is saving it--> ELSEWHERE
 *        \-----------------------------------------------------------------\--a later step is committed--> PASSED
 */
#ifndef CAIRN_CLIENT_TOOL_WATCH_RULES_H
#define CAIRN_CLIENT_TOOL_WATCH_RULES_H

#include <cairn/cairn.h>
#include <stdbool.h>

enum watch_marker {
    WATCH_RENAME,  /* the directory gets its name when it is complete */
    WATCH_FILE,    /* a file in it is written last */
    WATCH_TRACKER, /* a file beside it names the newest complete one */
    WATCH_SETTLE,  /* nothing but that nobody writes any more */
};

struct watch_rule {
    const char *like;    /* the preset's name */
    const char *pattern; /* see watch_step_of */
    enum watch_marker marker;
    const char *file;    /* the marker's name; NULL for RENAME and SETTLE */
    const char *step_in; /* FILE: JSON, and this member is the step; NULL: any content */
    int64_t settle_ms;   /* how long nothing may have changed, behind the marker */
};

/* NULL: there is no such preset. */
const struct watch_rule *watch_preset(const char *like);
/* "hf, deepspeed, ..." */
const char *watch_presets(void);

/* Whether a name is a step's. In the pattern, a glob, the last "*" stands for the step's digits: all of them, as
 * "checkpoint-*", "epoch=*-step=*" or "*". */
bool watch_step_of(const char *pattern, const char *name, uint64_t *ret_step);
/* Whether a pattern can be one. */
int watch_pattern_check(const char *pattern, struct cairn_error *err);
/* Whether the marker's text says that this step is complete. */
bool watch_marker_says(const struct watch_rule *rule, const char *text, size_t len, const char *name, uint64_t step);

enum watch_fate { WATCH_PENDING, WATCH_COMMITTED, WATCH_ELSEWHERE, WATCH_PASSED };

struct watch_step {
    uint64_t step;
    char name[256];
    uint64_t device, inode; /* of the directory: another one is written anew */
    bool there;             /* when it was looked last */
    bool marked;            /* its marker is there; a tracker's was, and has gone on to the next step */
    uint64_t signature;     /* of what is in it; where it has to settle */
    int64_t same_since_ms;
    enum watch_fate fate;
    unsigned failures;     /* in a row, that were its own */
    unsigned tries;        /* in a row */
    int64_t not_before_ms; /* back-off */
    bool told;             /* the log has its fate */
    bool given_up;         /* --once has tried enough */
    bool stays;            /* is not what is stored under its step, or cannot be removed */
};

bool watch_is_settled(const struct watch_rule *rule, const struct watch_step *s, int64_t now_ms);
/* Is it complete? */
bool watch_is_ready(const struct watch_rule *rule, const struct watch_step *s, int64_t now_ms);

enum watch_record_state { WATCH_RECORD_COMMITTED, WATCH_RECORD_ABORTED, WATCH_RECORD_UNDECIDED };
struct watch_record { /* of the job's list */
    uint64_t step, incarnation;
    enum watch_record_state state;
};
/* What has become of a step. latest is the job's newest committed step, CAIRN_LATEST: there is none; ours our
 * incarnation, 0: we have none yet, WATCH_ANY: which one it will be is open, as other ranks of our start may have
 * begun. */
#define WATCH_ANY UINT64_MAX
enum watch_fate watch_fate_of(uint64_t step, const struct watch_record *records, size_t n, uint64_t latest,
                              uint64_t ours);
/* The start id that all ranks come to by themselves: base, and behind it the highest incarnation that has given a step
 * up, because no incarnation saves a step twice. INVAL when it gets too long. */
int watch_start_id(const char *base, const struct watch_record *records, size_t n, char ret_id[CAIRN_MAX_NAME + 1],
                   struct cairn_error *err);

#define WATCH_PATIENCE 4 /* failures of its own after which a step no longer holds later ones up */
struct watch_next {
    int take;        /* index of the step to save now; -1: none */
    int64_t wake_ms; /* when to look again, if nothing happens before; INT64_MAX: no need to */
    bool idle;       /* nothing is under way: no step settles, is refused or is saved elsewhere */
};
/* The lowest step that is ready. One that waits for its next try holds later ones up for a while, since an older step
 * is not saved behind a later one. steps are in ascending order. */
struct watch_next watch_choose(const struct watch_rule *rule, const struct watch_step *steps, size_t n, int64_t now_ms);
/* The pause before the next try. */
int64_t watch_backoff_ms(unsigned tries);
/* The oldest of the directories that are committed, and may go, when there are more than keep; -1: none. keep 0: all
 * stay. */
int watch_expired(const struct watch_step *steps, size_t n, uint64_t keep);

#endif
