/* SPDX-License-Identifier: Apache-2.0 */
/* One stripe's repair: who has which fragment, and making again what is missing.
 *
 *     survey: each fragment's peer, then all others, are asked -> the plan
 *     mend:   k good ones are read -> a worker makes the others again -> put onto peers without one -> synced
 */
#ifndef CAIRN_DAEMON_NODE_REPAIR_STRIPE_H
#define CAIRN_DAEMON_NODE_REPAIR_STRIPE_H

#include "core/checkpoint/repair.h"
#include "core/proto/manifest.h"
#include "daemon/node/decode.h"
#include "daemon/node/link.h"

#define REPAIR_MAX_PEERS 256 /* that are asked for a fragment whose own peer does not give it */

/* Which peers a repair takes for gone though they may come back: not the ones that are away for a short time. */
typedef bool (*repair_is_away)(void *arg, const char *peer);

struct stripe_repair;
struct stripe_frag {
    struct stripe_repair *owner;
    unsigned index;
    bool asking, hint_asked;
    unsigned next;         /* of the owner's links */
    bool corrupt, away;    /* what the peer that should have it is like */
    struct link_read read; /* of the survey, then of the mending */
    bool tried;            /* for the mending: its reading was begun */
    char *payload;         /* CAIRN_PART, zero-filled; NULL */
    struct link_put put;
    struct fragment fragment;
    bool sending, stored, durable;
};

struct stripe_repair { /* owned by the caller until done() of what it started last */
    /* given */
    struct links *links;
    const struct manifest *manifest;
    uint32_t chunk;
    bool quick;             /* peers answer from their catalogs and read nothing */
    repair_is_away is_away; /* NULL: nobody is */
    void *is_away_arg;
    void (*done)(struct stripe_repair *s);
    void *arg;
    /* found by the survey */
    enum repair_verdict verdict;
    struct repair_plan plan;
    unsigned missing, corrupt, away;
    /* done by the mending */
    unsigned repaired; /* durable on their new peers */
    uint64_t bytes;    /* written, headers included */
    int code;          /* of what was not repaired */
    struct cairn_error err;
    /* its own */
    const struct chunk_record *c;
    struct fragment_key key;
    struct stream_key stream;
    struct link *all[REPAIR_MAX_PEERS];
    unsigned nall;
    struct stripe_frag frags[CAIRN_MAX_FRAGS];
    int holder[CAIRN_MAX_FRAGS]; /* index into all */
    unsigned busy;
    bool mending, decoding, decoded, putting;
    struct loop_post post;
    bool posted;
    struct loop_timer late;
    bool given_up;
    struct pump pump;
    struct worker_job job;
    struct remake remake;
};
/* done() comes later, with verdict and plan. */
void stripe_survey(struct stripe_repair *s);
/* After a survey that said POSSIBLE. */
void stripe_mend(struct stripe_repair *s);
/* What stripe_mend will read and write. */
uint64_t stripe_cost(const struct stripe_repair *s);
/* The peer that fragment i went to, when it is durable; NULL. */
const char *stripe_went_to(const struct stripe_repair *s, unsigned i);

#endif
