/* SPDX-License-Identifier: Apache-2.0 */
/* REPAIR: all committed checkpoints of a job (argument "all"), or one step. Peers read every fragment to find out. A
 * repair that is under way is waited for. */
#include "daemon/node/command_internal.h"
#include "daemon/node/repair.h"

#include "core/base/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define AGAIN_MS 100

struct repair_command {
    struct query *q;
    struct loop_timer again;
};

static void repaired(void *arg, int code, const struct cairn_error *err, json_t *report)
{
    struct query *q = arg;

    if (code == 0) {
        query_answer(q, report);
        return;
    }
    json_decref(report);
    query_fail(q, code, err);
}

static void try_start(struct loop_timer *t)
{
    struct repair_command *c = t->arg;
    struct query *q = c->q;
    struct node *node = q->session->node;
    uint64_t spent_ms = (loop_now_ns(node->deps.loop) - q->started_ns) / 1000000;
    struct repair_request request = {.one = strcmp(q->argument, "all") != 0,
                                     .step = q->step,
                                     .timeout_ms = spent_ms < q->timeout_ms ? q->timeout_ms - (uint32_t)spent_ms : 1,
                                     .done = repaired,
                                     .arg = q};
    struct cairn_error err = CAIRN_ERROR_INIT;

    snprintf(request.job, sizeof request.job, "%s", q->job);
    int r =
        node->stopping ? cairn_fail(&err, CAIRN_E_ABORTED, "cairnd is stopping") : repair_start(node, &request, &err);
    if (r == CAIRN_E_BUSY && spent_ms < q->timeout_ms) {
        loop_timer_after(node->deps.loop, t, AGAIN_MS);
        return;
    }
    free(c);
    if (r < 0)
        query_fail(q, r, &err);
}

void command_repair(struct query *q)
{
    struct repair_command *c = calloc(1, sizeof *c);
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (!c) {
        query_fail(q, cairn_fail(&err, CAIRN_E_NOMEM, "allocate a repair"), &err);
        return;
    }
    c->q = q;
    c->again = (struct loop_timer){.fire = try_start, .arg = c};
    try_start(&c->again);
}
