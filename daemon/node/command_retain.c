/* SPDX-License-Identifier: Apache-2.0 */
/* PIN, UNPIN, DELETE, RETAIN: what is kept. */
#include "daemon/node/query_internal.h"

#include "core/base/error.h"

#include <stdio.h>

static void command_changed(struct change_request *r, int code, const struct cairn_error *err)
{
    struct query *q = r->arg;
    json_t *o;

    if (code < 0) {
        query_fail(q, code, err);
        return;
    }
    o = json_object();
    query_set(o, "v", json_integer(1));
    query_set(o, "job", json_string(q->job));
    if (r->kind == CHANGE_RETAIN) {
        query_set(o, "retention", json_string(r->ret_rule));
    } else {
        query_set(o, "step", json_integer((json_int_t)r->ret_step));
        query_set(o, "incarnation", json_integer((json_int_t)r->ret_incarnation));
    }
    if (r->kind == CHANGE_PIN || r->kind == CHANGE_UNPIN)
        query_set(o, "label", json_string(r->argument));
    query_answer(q, o);
}

static void command_change(struct query *q, int kind)
{
    struct change_request *r = &q->change;

    r->kind = kind;
    snprintf(r->job, sizeof r->job, "%s", q->job);
    r->step = q->step;
    snprintf(r->argument, sizeof r->argument, "%s", q->argument);
    snprintf(r->owner, sizeof r->owner, "uid-%u", (unsigned)q->session->uid);
    r->timeout_ms = q->timeout_ms;
    r->done = command_changed;
    r->arg = q;
    jobs_change(q->session->node->jobs, r);
}

void command_pin(struct query *q)
{
    if (!q->argument[0])
        snprintf(q->argument, sizeof q->argument, "pin");
    command_change(q, CHANGE_PIN);
}

void command_unpin(struct query *q)
{
    if (!q->argument[0])
        snprintf(q->argument, sizeof q->argument, "pin");
    command_change(q, CHANGE_UNPIN);
}

void command_delete(struct query *q)
{
    command_change(q, CHANGE_DELETE);
}

void command_retain(struct query *q)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (!q->argument[0]) /* "keep all" by an oversight would be found out late */
        query_fail(q, cairn_fail(&err, CAIRN_E_INVAL, "a retention rule is wanted: \"last=3\", \"all\", \"default\""),
                   &err);
    else
        command_change(q, CHANGE_RETAIN);
}
