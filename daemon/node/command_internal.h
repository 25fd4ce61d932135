/* SPDX-License-Identifier: Apache-2.0 */
/* The commands: each is a query that ends with query_answer or query_fail. */
#ifndef CAIRN_DAEMON_NODE_COMMAND_INTERNAL_H
#define CAIRN_DAEMON_NODE_COMMAND_INTERNAL_H

#include "daemon/node/query_internal.h"

void command_repair(struct query *q);
void command_scrub(struct query *q);
void command_rebuild(struct query *q);

#endif
