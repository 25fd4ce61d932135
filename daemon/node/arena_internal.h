/* SPDX-License-Identifier: Apache-2.0 */
/* What arena.c (the registry), arena_pages.c (pages and snapshots) and arena_adopt.c (arenas that come back) share. */
#ifndef CAIRN_DAEMON_NODE_ARENA_INTERNAL_H
#define CAIRN_DAEMON_NODE_ARENA_INTERNAL_H

#include "daemon/node/arena_ledger.h"
#include "daemon/node/arena_offer.h"

enum page_state { PAGE_FREE = LEDGER_FREE, PAGE_TAKEN = LEDGER_TAKEN, PAGE_KEPT = LEDGER_KEPT };

struct arenas {
    struct loop *loop;
    struct list all;
    uint64_t limit_bytes;
    uint64_t used_bytes;
    uint32_t keep_s;
    struct arena_keeper keeper;
    arena_let_go let_go; /* NULL: nothing is given up */
};

/* ---- arena.c --------------------------------------------------------------------------------- */
struct arena *arena_alloc(uint64_t bytes); /* NULL: no memory */
int arena_map_memory(struct arena *a, struct cairn_error *err);
void arena_enlist(struct arenas *as, struct arena *a);
void arena_destroy(struct arena *a);
/* The arena is this user's from now on; its new ledger says so. */
int arena_take(struct arenas *as, struct arena *a, const struct arena_user *u, struct cairn_error *err);
/* Frees orphans, oldest first, until so much more fits the limit; then arenas of processes that are gone, whose saves
 * are durable and only wait for the checkpoint's other ranks. Nothing goes for what cannot fit even then. */
bool arenas_make_room(struct arenas *as, uint64_t bytes);
int arenas_too_full(const struct arenas *as, const struct arena_user *u, uint64_t bytes, struct cairn_error *err);

/* ---- arena_pages.c --------------------------------------------------------------------------- */
struct snapshot *snapshot_new(struct shared_layout *layout); /* NULL: no memory */
/* s, part: what the page holds, unless it is FREE. */
void page_set(struct arena *a, uint32_t page, enum page_state state, const struct snapshot *s, uint32_t part);

#endif
