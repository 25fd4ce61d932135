/* SPDX-License-Identifier: Apache-2.0 */
/* CAIRN_COMMAND_*: what changes something, on behalf of the tool. One row a command; each is a query that ends with its
 * answer. */
#include "daemon/node/command_internal.h"

#include "core/base/error.h"

#include <stdio.h>

struct command {
    int kind; /* enum cairn_command_kind */
    bool needs_job;
    void (*run)(struct query *q);
};

static const struct command commands[] = {
    {CAIRN_COMMAND_REPAIR, true, command_repair},    {CAIRN_COMMAND_SCRUB, false, command_scrub},
    {CAIRN_COMMAND_REBUILD, false, command_rebuild}, {CAIRN_COMMAND_PIN, true, command_pin},
    {CAIRN_COMMAND_UNPIN, true, command_unpin},      {CAIRN_COMMAND_DELETE, true, command_delete},
    {CAIRN_COMMAND_RETAIN, true, command_retain},
};

static const struct command *command_find(uint32_t kind)
{
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        if (commands[i].run && (uint32_t)commands[i].kind == kind)
            return &commands[i];
    return NULL;
}

void session_on_command(struct session *s, const struct local_command *m)
{
    const struct command *c = command_find(m->kind);
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct query *q = NULL;
    int r = 0;

    if (!c)
        r = cairn_fail(&err, CAIRN_E_UNSUPPORTED, "this cairnd has no command of kind %u", m->kind);
    else if (c->needs_job && !m->job[0])
        r = cairn_fail(&err, CAIRN_E_INVAL, "this command needs a job");
    else if (s->nqueries >= SESSION_MAX_QUERIES)
        r = cairn_fail(&err, CAIRN_E_BUSY, "%u queries of this session are under way", s->nqueries);
    else if (!(q = query_new(s, m->h.id, (int)m->kind, m->job, m->step, m->timeout_ms)))
        r = cairn_fail(&err, CAIRN_E_NOMEM, "allocate a command");
    if (r < 0) {
        session_answer_error(s, m->h.id, r, &err);
        return;
    }
    snprintf(q->argument, sizeof q->argument, "%s", m->argument);
    c->run(q);
}
