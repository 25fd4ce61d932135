/* SPDX-License-Identifier: Apache-2.0 */
/*
 *                         same start id            unseen, nobody alive or take-over
 *     never started ---+      +--+                      +--------------------+
 *          | unseen    |      v  |                      |                    v
 *          +--raise 1--+--> current (inc, start id) ----+---raise inc+1---> current, the old id goes to seen
 *
 *     a start id in seen was replaced: refused for good
 */
#include "core/checkpoint/start.h"

#include "core/base/error.h"

#include <string.h>

static bool start_was_replaced(const struct record_incarnation *c, const char *start_id)
{
#ifdef CAIRN_BUG_START_ID_REUSED
    return false;
#endif
    for (uint32_t i = 0; i < c->nseen; i++)
        if (strcmp(c->seen[i], start_id) == 0)
            return true;
    return false;
}

/* Newest first; the oldest of RECORD_SEEN_MAX is forgotten. */
static void start_remember(struct record_incarnation *r, const char *start_id)
{
    uint32_t keep = r->nseen < RECORD_SEEN_MAX ? r->nseen : RECORD_SEEN_MAX - 1;

    memmove(r->seen[1], r->seen[0], keep * sizeof r->seen[0]);
    memset(r->seen[0], 0, sizeof r->seen[0]);
    memcpy(r->seen[0], start_id, strnlen(start_id, CAIRN_MAX_NAME));
    r->nseen = keep + 1;
}

int start_decide(const struct record_incarnation *current, const struct start_request *request,
                 struct record_incarnation *ret_next, struct cairn_error *err)
{
    bool started = current->incarnation > 0;
    unsigned long long inc = current->incarnation;

    if (started && strcmp(current->start_id, request->start_id) == 0) {
        if (current->world_size != request->world_size)
            return cairn_fail(err, CAIRN_E_INVAL, "job %s: start %s has %u ranks, this rank says %u", request->job,
                              request->start_id, current->world_size, request->world_size);
        return START_ADOPT;
    }
    if (started && start_was_replaced(current, request->start_id))
        return cairn_fail(err, CAIRN_E_FENCED, "job %s: start %s was replaced by start %s (incarnation %llu)",
                          request->job, request->start_id, current->start_id, inc);
    if (started && request->alive && !request->take_over)
        return cairn_fail(err, CAIRN_E_BUSY,
                          "job %s: start %s (incarnation %llu) is alive; end it, or take over explicitly", request->job,
                          current->start_id, inc);
    if (current->incarnation == UINT64_MAX)
        return cairn_fail(err, CAIRN_E_TOO_LARGE, "job %s: no incarnation is left", request->job);
    struct record_incarnation next = *current;
    if (started)
        start_remember(&next, current->start_id);
#ifndef CAIRN_BUG_INCARNATION_KEPT
    next.incarnation++;
#endif
    next.world_size = request->world_size;
    memset(next.start_id, 0, sizeof next.start_id);
    memcpy(next.start_id, request->start_id, strnlen(request->start_id, CAIRN_MAX_NAME));
    *ret_next = next;
    return START_RAISE;
}
