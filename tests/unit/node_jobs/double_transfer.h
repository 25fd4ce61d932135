/* SPDX-License-Identifier: Apache-2.0 */
/* A double of daemon/node's links, drains and blobs: drains end at once or when they are let go, blobs lie in memory
 * under a name that is no SHA-256 at all. */
#ifndef CAIRN_TESTS_DOUBLE_TRANSFER_H
#define CAIRN_TESTS_DOUBLE_TRANSFER_H

#include "daemon/node/jobs.h"

struct links {
    struct loop *loop;
    bool hold_drains;      /* they wait for double_let_go */
    bool hold_tails;       /* once done, they end when they are let go or cancelled */
    const char *node;      /* whose drains they are */
    int fail_rank;         /* its drain fails; -1: nobody's */
    bool watched;          /* drains say what their tensors hold: */
    uint64_t nan;          /* so many NaN */
    unsigned flipped;      /* a bit for each rank that holds other bytes than the others */
    bool hold_blobs;       /* gets wait for double_let_go */
    bool blobs_away;       /* gets are UNAVAILABLE */
    uint64_t corrupt_step; /* its blobs are CORRUPT; 0: none */
    uint64_t short_step;   /* its stripes have too few fragments; 0: none */
    int short_code;        /* what a survey of it says */
    unsigned surveys;
    unsigned started, cancelled, reading;
    uint32_t in_place; /* as a drain was told last */
    unsigned ended, ended_aborted;
    unsigned npeers, nregistered; /* p0, p1, ...; the first ones are registered */
    links_forgotten_fn forgotten;
    void *forgotten_arg;
    struct list drains;
    struct list blobs;
    struct list calls; /* of blobs, that are held */
};
void double_init(struct links *l, struct loop *loop, const char *node);
void double_let_go(struct links *l);
void double_free(struct links *l);
/* Blobs are on the peers: a node that comes back finds them. */
void double_move_blobs(struct links *from, struct links *to);

/* The peer says that nothing of the step (of job j, incarnation 1) is left there. */
void double_forgotten(struct links *l, const char *peer, uint64_t step);

#endif
