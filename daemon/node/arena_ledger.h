/* SPDX-License-Identifier: Apache-2.0 */
/* An arena's ledger as a file: a memfd that this daemon maps and writes (core/proto/ledger.h). Once it is mapped it is
 * sealed against further writable mappings, so a daemon that takes an arena over, and a new process of the rank, get a
 * new ledger; nothing in an old one is ever changed again. */
#ifndef CAIRN_DAEMON_NODE_ARENA_LEDGER_H
#define CAIRN_DAEMON_NODE_ARENA_LEDGER_H

#include "core/proto/ledger.h"
#include "daemon/node/arena.h"

/* Attempts (core/proto/fragment.h) that one daemon may use up for one save. */
#define ARENA_ATTEMPTS 256

/* A new ledger that says what the arena is now; the keeper gets it, and the arena with it. */
int arena_ledger_renew(struct arena *a, const struct arena_keeper *keeper, struct cairn_error *err);
/* The arena is given up: the keeper forgets both. */
void arena_ledger_drop(const struct arena *a, const struct arena_keeper *keeper);
/* From now on nothing is noted. */
void arena_ledger_freeze(struct arena *a);
void arena_ledger_close(struct arena *a);

/* Below, an arena without a ledger and a snapshot without a slot change nothing. */
void arena_ledger_page(const struct arena *a, uint32_t page, int state, int slot, uint32_t part);
/* For a snapshot to come, or -1. */
int arena_ledger_slot(const struct arena *a);
/* Notes the snapshot, and its pages once more when it had no slot before. When it cannot be noted it loses its slot. */
void arena_ledger_put(struct snapshot *s, int state);
void arena_ledger_state(struct snapshot *s, int state);

#endif
