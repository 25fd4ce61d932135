/* SPDX-License-Identifier: Apache-2.0 */
/* REPAIR: all committed checkpoints of a job (argument "all"), or one step. Peers read every fragment to find out. */
#include "daemon/node/command_internal.h"
#include "daemon/node/repair.h"

#include "core/base/error.h"

#include <stdio.h>
#include <string.h>

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

void command_repair(struct query *q)
{
    struct repair_request request = {.one = strcmp(q->argument, "all") != 0,
                                     .step = q->step,
                                     .timeout_ms = q->timeout_ms,
                                     .done = repaired,
                                     .arg = q};
    struct cairn_error err = CAIRN_ERROR_INIT;

    snprintf(request.job, sizeof request.job, "%s", q->job);
    int r = q->session->node->stopping ? cairn_fail(&err, CAIRN_E_ABORTED, "cairnd is stopping")
                                       : repair_start(q->session->node, &request, &err);
    if (r < 0)
        query_fail(q, r, &err);
}
