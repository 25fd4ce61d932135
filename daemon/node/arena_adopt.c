/* SPDX-License-Identifier: Apache-2.0 */
/* An arena that comes back is one of three:
 *
 *     unknown here    another daemon made it: a new object for the old memory, its snapshots as the ledger has them
 *     known, unused   the keeper gave it back before its process did, or only the connection was lost: it goes on
 *     known, in use   refused
 */
#include "daemon/node/arena_internal.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/units.h"

#include <stdio.h>
#include <string.h>

static struct arena *arenas_by_id(struct arenas *as, uint64_t id)
{
    list_for_each (it, &as->all) {
        struct arena *a = container_of(it, struct arena, link);
        if (a->id == id)
            return a;
    }
    return NULL;
}

/* A save's pages are TAKEN again: what was durable is only known to the daemon that is gone. */
static int arena_adopt_save(struct arena *a, const struct arena_offer *o, const struct offered_save *from,
                            struct cairn_error *err)
{
    const struct ledger_save *e = ledger_save_at(o->ledger, from->slot);
    struct snapshot *s = snapshot_new(from->layout);

    if (!s)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a snapshot of %u parts", e->nparts);
    s->arena = a;
    s->slot = -1;
    s->save = e->save;
    s->step = e->step;
    s->incarnation = e->incarnation;
    s->word = e->word;
    s->attempt = e->attempt + ARENA_ATTEMPTS;
    s->state = e->state == LEDGER_DONE ? SNAPSHOT_KEPT : e->state == LEDGER_BEGUN ? SNAPSHOT_GRANTED : SNAPSHOT_FILLED;
    s->packed = (e->flags & LEDGER_PACKED) && (e->state == LEDGER_BEGUN || e->state == LEDGER_FILLED);
    if (s->state != SNAPSHOT_KEPT)
        a->words_busy[s->word / 64] |= 1ull << (s->word % 64);
    for (uint32_t p = 0; p < e->nparts; p++) {
        s->gone[p] = from->pages[p] == LEDGER_NO_PAGE;
        s->pages[p] = s->gone[p] ? 0 : from->pages[p];
        if (!s->gone[p])
            page_set(a, s->pages[p], s->state == SNAPSHOT_KEPT ? PAGE_KEPT : PAGE_TAKEN, s, p);
    }
    list_push_back(&a->snapshots, &s->link);
    return 0;
}

static int arena_restore(struct arena *a, struct arena_offer *o, struct cairn_error *err)
{
    const struct ledger_header *h = ledger_header_of(o->ledger);
    int r = 0;

    a->id = h->arena_id;
    a->generation = h->generation;
    a->next_save = h->next_save;
    a->uid = h->uid;
    a->rank = h->rank;
    a->world_size = h->world_size;
    snprintf(a->job, sizeof a->job, "%s", h->job);
    snprintf(a->start_id, sizeof a->start_id, "%s", h->start_id);
    a->last_pid = (int)h->pid;
    a->last_pid_start = h->pid_start;
    a->last_pidfd = process_open(a->last_pid, a->last_pid_start);
    a->fd = TAKE_FD(o->arena_fd);
    for (unsigned i = 0; i < o->nsaves && r == 0; i++)
        r = arena_adopt_save(a, o, &o->saves[i], err);
    return r < 0 ? r : arena_map_memory(a, err);
}

static int arena_from_offer(struct arenas *as, struct arena_offer *o, const struct arena_user *u,
                            struct arena **ret_arena, struct cairn_error *err)
{
    uint64_t bytes = (uint64_t)ledger_header_of(o->ledger)->npages * CAIRN_PART;
    struct arena_user nobody = {.job = ledger_header_of(o->ledger)->job, .rank = ledger_header_of(o->ledger)->rank};

    if (!arenas_make_room(as, bytes))
        return arenas_too_full(as, u ? u : &nobody, bytes, err);
    struct arena *a = arena_alloc(bytes);
    if (!a)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate an arena of %llu MiB", (unsigned long long)(bytes >> 20));
    int r = arena_restore(a, o, err);
    if (r == 0)
        r = u ? arena_take(as, a, u, err) : arena_ledger_renew(a, &as->keeper, err);
    if (r < 0) {
        arena_destroy(a);
        return r;
    }
    arena_enlist(as, a);
    *ret_arena = a;
    return 0;
}

/* The keeper's arena, or one whose connection alone was lost: only its own memory file proves that. */
static int arena_again(struct arenas *as, struct arena *a, const struct arena_offer *o, const struct arena_user *u,
                       bool copying, struct cairn_error *err)
{
    if (!same_file(a->fd, o->arena_fd))
        return cairn_fail(err, CAIRN_E_INVAL, "arena %016llx is another one here", (unsigned long long)a->id);
    if (a->attached)
        return cairn_fail(err, CAIRN_E_EXISTS, "arena %016llx is in use", (unsigned long long)a->id);
    if (!u)
        return 0;
    if (a->unsure && copying)
        return cairn_fail(err, CAIRN_E_ABORTED,
                          "a save of arena %016llx was dropped while it was being copied: its pages are not known to "
                          "be quiet",
                          (unsigned long long)a->id);
    int r = arena_take(as, a, u, err);
    if (r == 0)
        loop_timer_cancel(as->loop, &a->expire);
    return r;
}

int arenas_adopt(struct arenas *as, struct arena_offer *o, const struct arena_user *u, bool copying,
                 struct arena **ret_arena, struct cairn_error *err)
{
    struct arena *a = arenas_by_id(as, ledger_header_of(o->ledger)->arena_id);
    int r = u && (uint64_t)ledger_header_of(o->ledger)->npages * CAIRN_PART < u->bytes
                ? cairn_fail(err, CAIRN_E_INVAL, "the arena is smaller than the %llu bytes that are asked for",
                             (unsigned long long)u->bytes)
                : 0;

    if (r == 0)
        r = a ? arena_again(as, a, o, u, copying, err) : arena_from_offer(as, o, u, &a, err);
    if (r < 0)
        return r;
    *ret_arena = arena_ref(a);
    return 0;
}
