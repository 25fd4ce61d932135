/* SPDX-License-Identifier: Apache-2.0 */
/* A query on its way: query.c answers it, query_checkpoint.c describes and verifies one checkpoint for it; command.c
 * starts commands, which are queries that change something. */
#ifndef CAIRN_DAEMON_NODE_QUERY_INTERNAL_H
#define CAIRN_DAEMON_NODE_QUERY_INTERNAL_H

#include "daemon/node/gather.h"
#include "daemon/node/internal.h"

#define VERIFY_AT_ONCE 16   /* fragments asked for at once */
#define VERIFY_MAX_BAD 1000 /* listed one by one; all are counted */

struct query_check {
    struct gather_check check;
    struct query *query;
    bool busy;
};

struct query {
    struct session *session;
    uint32_t id; /* of the request */
    int kind;
    char job[CAIRN_MAX_NAME + 1];
    uint64_t step;
    uint32_t timeout_ms;
    char argument[CAIRN_COMMAND_TEXT]; /* of a command */
    uint64_t started_ns;
    struct list_request list;
    struct open_request open;
    struct change_request change;
    struct checkpoint *checkpoint; /* referenced */

    /* VERIFY: the next fragment to ask for, and what came back */
    struct query_check *checks;
    unsigned nbusy;
    uint32_t shard, chunk, fragment;
    unsigned level; /* of bases below the shard's manifest */
    uint64_t fragments, ok, missing, corrupt;
    uint8_t **lost; /* [shard][chunk]: bad fragments; behind the shard's chunks its base's */
    bool repairable;
    json_t *bad;
};

void query_answer(struct query *q, json_t *object); /* takes object; ends the query */
void query_fail(struct query *q, int code, const struct cairn_error *err);
void query_set(json_t *object, const char *key, json_t *value); /* takes value; NULL becomes null */
json_t *query_describe_checkpoint(const struct checkpoint *c);
void query_verify(struct query *q);
/* ---- command_retain.c ------------------------------------------------------------------------ */
void command_pin(struct query *q);
void command_unpin(struct query *q);
void command_delete(struct query *q);
void command_retain(struct query *q);
/* Of this session; counted until it is answered. NULL: no memory. */
struct query *query_new(struct session *s, uint32_t id, int kind, const char *job, uint64_t step, uint32_t timeout_ms);

#endif
