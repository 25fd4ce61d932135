/* SPDX-License-Identifier: Apache-2.0 */
/* The machine of one checkpoint on its coordinator: from the first rank's begin to the one decision. commit.c has the
 * diagram. step(state, event) -> state, effects: nothing here waits, allocates or calls. */
#ifndef CAIRN_CORE_CHECKPOINT_COMMIT_H
#define CAIRN_CORE_CHECKPOINT_COMMIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define COMMIT_REASON 256 /* as long as a decision's */

enum commit_state {
    COMMIT_INTENDING, /* the intent is being written; ranks may begin and fill meanwhile */
    COMMIT_FILLING,
    COMMIT_DRAINING, /* every rank has filled */
    COMMIT_ROOTING,  /* every shard is durable */
    COMMIT_DECIDING, /* the commit was asked for: from here only the metadata knows */
    COMMIT_ABORTING,
    COMMIT_COMMITTED,
    COMMIT_ABORTED,
    COMMIT_UNDECIDED, /* the deadline passed and the metadata did not say whether the commit happened */
    COMMIT_STATES
};
enum commit_rank { COMMIT_ABSENT, COMMIT_BEGUN, COMMIT_FILLED, COMMIT_DURABLE };

enum commit_event_type {
    COMMIT_ON_BEGUN, /* of rank */
    COMMIT_ON_FILLED,
    COMMIT_ON_DROPPED, /* + reason; ignored once the rank has filled */
    COMMIT_ON_DURABLE,
    COMMIT_ON_FAILED, /* the shard cannot be made durable; + reason */
    COMMIT_ON_GONE,   /* whoever held the rank's snapshot is dead; ignored once it is durable; + reason */
    COMMIT_ON_INTENT_WRITTEN,
    COMMIT_ON_INTENT_UNKNOWN,
    COMMIT_ON_INTENT_REFUSED, /* + code, reason */
    COMMIT_ON_ROOT_STORED,
    COMMIT_ON_ROOT_FAILED, /* + reason */
    COMMIT_ON_REJECTED,    /* instead of storing its root: what the shards hold is not to be committed; + reason */
    COMMIT_ON_APPLIED,     /* the decision that was asked for is there */
    COMMIT_ON_REFUSED,     /* its compares did not hold */
    COMMIT_ON_UNKNOWN,     /* no answer: it may be there or not */
    COMMIT_ON_READ_COMMIT, /* also an answer to the intent: it was refused because there is a decision */
    COMMIT_ON_READ_ABORT,  /* likewise; + reason */
    COMMIT_ON_READ_ABSENT,
    COMMIT_ON_READ_FENCED, /* absent, and a newer incarnation has pinned */
    COMMIT_ON_READ_FAILED,
    COMMIT_ON_DEADLINE, /* + reason: what the driver knows of who is late; may be NULL */
    COMMIT_ON_FENCED,   /* a newer incarnation: + reason; a checkpoint that is filled goes on */
};
struct commit_event {
    int type;           /* enum commit_event_type */
    uint32_t rank;      /* of a rank's event */
    int code;           /* negative, where said above */
    const char *reason; /* where said above */
};

enum commit_effect {
    COMMIT_WRITE_INTENT = 1,
    COMMIT_START_DRAINS, /* of every rank that has filled and has none yet */
    COMMIT_STOP_DRAINS,
    COMMIT_STORE_ROOT,
    COMMIT_PUT_COMMIT,
    COMMIT_PUT_ABORT, /* with commit.reason */
    COMMIT_READ,      /* the decision */
    COMMIT_TELL,      /* every rank: commit.code and commit.reason; at most once */
    COMMIT_END,       /* the last effect of all */
};
#define COMMIT_MAX_EFFECTS 4
struct commit_effects {
    unsigned n;
    int what[COMMIT_MAX_EFFECTS]; /* enum commit_effect, in order */
    bool again;                   /* what goes to the metadata was tried before: after a pause */
};

struct commit {
    int state; /* enum commit_state */
    uint64_t step;
    uint32_t world_size;
    uint32_t deadline_ms; /* for messages */
    uint8_t *rank;        /* the caller's: world_size of enum commit_rank */
    uint32_t nbegun;      /* begun or further */
    uint32_t nfilled;     /* filled or further */
    uint32_t ndurable;
    int asked;         /* the one effect without an answer yet that the machine waits for, or 0 */
    bool intent;       /* written */
    bool intent_maybe; /* an intent without an answer was sent */
    bool root;         /* stored */
    bool commit_put;   /* the commit was sent: it may exist */
    bool late;         /* the deadline passed */
    unsigned grace;    /* answers it still waits for after the deadline */
    bool told;         /* the ranks know */
    int code;          /* what they were told: 0 committed */
    char reason[COMMIT_REASON];
};

/* rank: world_size zeroed bytes that live as long as the machine. The first effect is to write the intent. */
void commit_init(struct commit *c, uint64_t step, uint32_t world_size, uint32_t deadline_ms, uint8_t *rank,
                 struct commit_effects *ret_effects);
/* The machine of an intent that another coordinator left undecided: nothing is known of the ranks yet, and no effect is
 * due. Only after the coordinator's key was claimed and the decision was read to be absent, in this order: commits
 * compare that key, so that a late one of the old coordinator is refused from then on. */
void commit_adopt(struct commit *c, uint64_t step, uint32_t world_size, uint32_t deadline_ms, uint8_t *rank);
/* Events that do not fit the state change nothing: late answers and repeats are harmless. */
void commit_step(struct commit *c, const struct commit_event *event, struct commit_effects *ret_effects);
bool commit_ended(const struct commit *c);
/* Still taking ranks: no outcome is known or chosen. */
bool commit_open(const struct commit *c);
/* "FILLING", ...; never NULL. */
const char *commit_state_name(int state);
/* Who it waits for: "rank 1 did not fill" or "ranks 1, 2 and 6 more did not fill". */
void commit_missing(const struct commit *c, char *buf, size_t len);
/* The first rank that commit_missing would name; world_size when none. */
uint32_t commit_first_missing(const struct commit *c);
/* What holds in every state; commit_step asserts it after every event. */
bool commit_invariant(const struct commit *c);

#endif
