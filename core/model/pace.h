/* SPDX-License-Identifier: Apache-2.0 */
/* How fast a flush may go. Three things, all plain data, with time as an argument (of a monotonic clock):
 *
 *   a bucket    bounds bytes over time: never more than rate * window, a burst and the last piece
 *   a cadence   remembers when a job's saves began, and says when the next one may be expected
 *   a pace      spreads one flush over the time that it has, or lets it go at full speed and says why
 *
 * A flush that the path cannot carry as planned is never held up: what is behind its plan does not wait. */
#ifndef CAIRN_CORE_MODEL_PACE_H
#define CAIRN_CORE_MODEL_PACE_H

#include <stdbool.h>
#include <stdint.h>

#define CAIRN_CADENCE_KEPT 8        /* intervals */
#define CAIRN_CADENCE_ENOUGH 2      /* of them say something: the first one often contains a compilation */
#define CAIRN_CADENCE_GAP 4         /* times what was expected: another cadence, or none */
#define CAIRN_PACE_SHARE_PERCENT 70 /* of the expected interval: what is left is for syncs, manifests, the commit */
#define CAIRN_PACE_DEADLINE_SHARE 2 /* a plan takes one part in so many of the time that a flush may take at all */

/* ---- a bucket -------------------------------------------------------------------------------- */

struct cairn_bucket {
    uint64_t rate;       /* bytes a second; 0: no bound */
    uint64_t slack_ns;   /* the burst: as long as it takes at that rate */
    uint64_t settled_ns; /* when all that went would have gone at that rate */
};
void cairn_bucket_init(struct cairn_bucket *b, uint64_t rate, uint64_t burst);
/* 0: a piece may go now, also one larger than the burst; else after how long. reserved: bytes that may go already and
 * are not charged yet. */
uint64_t cairn_bucket_wait_ns(const struct cairn_bucket *b, uint64_t reserved, uint64_t now_ns);
/* What goes is charged in any case; what was not allowed delays what comes next. */
void cairn_bucket_charge(struct cairn_bucket *b, uint64_t bytes, uint64_t now_ns);

/* ---- a cadence ------------------------------------------------------------------------------- */

struct cairn_cadence {
    uint64_t last_ns;                         /* when the last save began; 0: none did */
    uint64_t interval_ns[CAIRN_CADENCE_KEPT]; /* the newest, in no order */
    unsigned n, next;
};
/* A save began. */
void cairn_cadence_add(struct cairn_cadence *c, uint64_t now_ns);
/* The shortest interval lately: the next save is hardly earlier. 0: not known. */
uint64_t cairn_cadence_expected_ns(const struct cairn_cadence *c);

/* ---- a pace ---------------------------------------------------------------------------------- */

/* Why a flush goes at full speed. */
enum cairn_pace_why {
    CAIRN_PACE_OFF,
    CAIRN_PACED,       /* it does not: it is spread */
    CAIRN_PACE_FIRST,  /* how long it is until the next save is not known */
    CAIRN_PACE_SHORT,  /* the time that it has is over before it began */
    CAIRN_PACE_WAITED, /* a client waits for it */
    CAIRN_PACE_ROOM,   /* a save waits for its pages */
    CAIRN_PACE_OLDER,  /* a later save of the job has begun */
    CAIRN_PACE_ENDING, /* its process has ended, or its start of the job */
};
/* "a client waits for it"; never NULL. */
const char *cairn_pace_why_text(int why);

struct cairn_pace {
    uint64_t total, taken; /* bytes: of the flush, and of pieces that began */
    uint64_t begin_ns;
    uint64_t end_ns; /* when the last piece begins at the latest, as far as the path can carry it */
    int why;         /* enum cairn_pace_why */
};
/* A plan for a flush that begins now, of a save that began at begun_ns. deadline_ms: after so long it is given up. */
void cairn_pace_plan(struct cairn_pace *p, const struct cairn_cadence *c, uint64_t total, uint64_t begun_ns,
                     uint64_t now_ns, uint32_t deadline_ms);
void cairn_pace_full(struct cairn_pace *p, uint64_t total, int why);
/* Full speed from now on. The first reason stays. True when this changed anything. */
bool cairn_pace_hurry(struct cairn_pace *p, int why);
/* 0: the next piece may begin; else after how long. */
uint64_t cairn_pace_wait_ns(const struct cairn_pace *p, uint64_t now_ns);
void cairn_pace_take(struct cairn_pace *p, uint64_t bytes);
/* How much earlier than planned it is; negative: later. 0 for one that is not paced. */
int64_t cairn_pace_ahead_ns(const struct cairn_pace *p, uint64_t now_ns);

#endif
