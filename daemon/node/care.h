/* SPDX-License-Identifier: Apache-2.0 */
/* What a node does by itself for the jobs that it coordinates: every repair_every_s it looks for what their committed
 * checkpoints lack, and has it repaired. Peers answer from their catalogs and read nothing: damage is what scrubs find.
 * A peer that is away is waited for until the next look; then what it has counts as missing. A checkpoint that was
 * whole is left alone for hours while no peer comes or goes. */
#ifndef CAIRN_DAEMON_NODE_CARE_H
#define CAIRN_DAEMON_NODE_CARE_H

#include "daemon/node/internal.h"

/* Ends with the node. Nothing is begun when repair_every_s is 0. */
int care_start(struct node *node, struct cairn_error *err);

#endif
