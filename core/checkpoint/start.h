/* SPDX-License-Identifier: Apache-2.0 */
/* Starts of a job: who joins the incarnation that is there, who raises it, who is refused. start.c has the diagram. */
#ifndef CAIRN_CORE_CHECKPOINT_START_H
#define CAIRN_CORE_CHECKPOINT_START_H

#include "core/proto/record.h"

struct start_request {
    const char *job; /* for messages */
    const char *start_id;
    uint32_t world_size;
    bool take_over;
    bool alive; /* a session of the current incarnation lives */
};
enum start_verdict { START_ADOPT = 0, START_RAISE = 1 };

/* START_ADOPT, START_RAISE with the record to write, or FENCED (replaced), BUSY (another start lives), INVAL (another
 * world size under the same start id). */
int start_decide(const struct record_incarnation *current, const struct start_request *request,
                 struct record_incarnation *ret_next, struct cairn_error *err);

#endif
