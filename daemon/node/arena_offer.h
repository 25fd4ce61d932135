/* SPDX-License-Identifier: Apache-2.0 */
/* An arena and its ledger as they come back: by a client's HAND_BACK or from the descriptor store. Reading one checks
 * kinds, seals and sizes, and the two against each other, on a private copy of the ledger; any thread may do it. What
 * survives can be adopted (arenas_adopt). A client can forge both: then it has forged a save of its own job, which it
 * could have made without forging. */
#ifndef CAIRN_DAEMON_NODE_ARENA_OFFER_H
#define CAIRN_DAEMON_NODE_ARENA_OFFER_H

#include "core/proto/ledger.h"
#include "daemon/node/arena.h"

struct offered_save {
    int slot;
    struct shared_layout *layout;
    uint32_t *pages; /* of each part; LEDGER_NO_PAGE where it is gone */
};
struct arena_offer {
    int arena_fd; /* owned; taken by arenas_adopt when it makes an arena of it */
    void *ledger; /* the copy, checked */
    struct offered_save saves[LEDGER_SAVES];
    unsigned nsaves; /* in the order of their ids */
};

/* Takes arena_fd on success; the ledger's descriptor stays the caller's. */
int arena_offer_read(int arena_fd, int ledger_fd, struct arena_offer **ret_offer, struct cairn_error *err);
void arena_offer_free(struct arena_offer *offer); /* NULL allowed */

bool same_file(int a, int b);
/* When a process began, in clock ticks; 0 when there is none. */
uint64_t process_start(int pid);
/* The pidfd of that very process, -1 when it is gone, or PROCESS_UNKNOWN: it cannot be seen from here. */
int process_open(int pid, uint64_t start);

#endif
