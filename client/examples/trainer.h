/* SPDX-License-Identifier: Apache-2.0 */
/* What one rank trains with: the state that a checkpoint holds, and where the ranks' shares of it lie.
 *
 * The weights, Adam's two moments and a bfloat16 copy of the weights lie in memory that all ranks share; every rank
 * reads all weights, but updates and saves only its own rows of each tensor. What is small and the same on all ranks is
 * `progress`. */
#ifndef CAIRN_EXAMPLES_TRAINER_H
#define CAIRN_EXAMPLES_TRAINER_H

#include "crew.h"
#include "model.h"

#include <cairn/cairn.h>
#include <stdio.h>

#define TRAINER_HISTORY 1024 /* losses kept in a checkpoint: the newest */

struct train_options {
    const char *job, *socket, *start_id, *loss_log, *checksum, *text;
    uint32_t ranks, steps, save_every, arena_mib;
    int on_busy; /* enum cairn_on_busy */
    bool no_save;
};

struct progress {
    int64_t step; /* of the last update; 0: none */
    uint64_t rng[4];
    float history[TRAINER_HISTORY]; /* the loss of step s at (s - 1) % TRAINER_HISTORY */
};

struct trainer {
    const struct train_options *options;
    struct crew *crew;
    uint32_t rank;
    struct model model;
    float *weights, *mean, *variance; /* Adam's moments; model.n floats each */
    uint16_t *half;                   /* the weights as bfloat16 */
    float *gradients[CREW_MAX];       /* one for each rank */
    struct progress progress;
    uint64_t state_bytes; /* of all ranks */
};

/* Lays the trainer's arrays over the crew's memory, which has at least trainer_shared_bytes(). */
size_t trainer_shared_bytes(const struct model *m, uint32_t ranks);
void trainer_place(struct trainer *t, struct crew *crew);
/* This rank's rows of a parameter: [*ret_first, *ret_first + returned). */
size_t trainer_rows(const struct trainer *t, const struct model_param *p, size_t *ret_first);
/* Adam on this rank's rows. */
void trainer_update(struct trainer *t);

double seconds_now(void);

#endif
