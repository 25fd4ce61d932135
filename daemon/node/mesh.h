/* SPDX-License-Identifier: Apache-2.0 */
/* Letters between nodes (core/proto/crew.h) over one endpoint. Best effort: a letter may be lost, and what matters is
 * said again by whoever waits for an answer. */
#ifndef CAIRN_DAEMON_NODE_MESH_H
#define CAIRN_DAEMON_NODE_MESH_H

#include "core/proto/crew.h"
#include "daemon/io/fabric.h"
#include "daemon/io/keyring.h"

struct mesh;
struct mesh_config {
    const char *node;
    uint64_t start;          /* random, of this start of the daemon */
    struct keyring *keyring; /* letters are signed, and only signed ones are read; NULL: neither */
};
int mesh_new(struct fabric *fabric, const struct mesh_config *config, struct mesh **ret_mesh, struct cairn_error *err);
/* Letters in flight are lost. Not from within its callback. NULL allowed. */
void mesh_free(struct mesh *mesh);
/* Who gets the letters that arrive. One at a time; on the loop. */
void mesh_listen(struct mesh *mesh, void (*letter)(void *arg, const struct crew_letter *l), void *arg);
/* Where this node is reached. */
const struct crew_address *mesh_address(const struct mesh *mesh);
/* letter->from is filled here. A destination that takes no more letters is cut off, to be connected anew. */
void mesh_send(struct mesh *mesh, const struct crew_address *to, struct crew_letter *letter);
struct mesh_status {
    uint64_t sent, received, refused; /* letters; refused: not decoded, or not signed as it must be */
};
void mesh_status_of(const struct mesh *mesh, struct mesh_status *ret);

#endif
