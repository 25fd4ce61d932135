/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/node/arena_ledger.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

/* ---- names under which the keeper has them --------------------------------------------------- */

struct name {
    char text[64];
};

static struct name arena_name(const struct arena *a)
{
    struct name n;

    snprintf(n.text, sizeof n.text, "arena-%016llx", (unsigned long long)a->id);
    return n;
}

/* With its number: the next one is kept before this one is dropped. */
static struct name ledger_name(const struct arena *a, uint64_t generation)
{
    struct name n;

    snprintf(n.text, sizeof n.text, "ledger-%016llx-%llu", (unsigned long long)a->id, (unsigned long long)generation);
    return n;
}

/* ---- the file -------------------------------------------------------------------------------- */

static int ledger_make(uint64_t len, int *ret_fd, void **ret_map, struct cairn_error *err)
{
    _cleanup_close_ int fd = memfd_create("cairn-ledger", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0)
        return cairn_fail_errno(err, errno, "create a memfd for a ledger");
    if (ftruncate(fd, (off_t)len) < 0)
        return cairn_fail_errno(err, errno, "size a ledger to %llu bytes", (unsigned long long)len);
    void *map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (map == MAP_FAILED)
        return cairn_fail_errno(err, errno, "map a ledger of %llu bytes", (unsigned long long)len);
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) < 0) {
        int r = cairn_fail_errno(err, errno, "seal a ledger");
        munmap(map, len);
        return r;
    }
    *ret_fd = TAKE_FD(fd);
    *ret_map = map;
    return 0;
}

static int describe(const struct arena *a, struct ledger_header *ret, struct cairn_error *err)
{
    struct stat st;

    if (fstat(a->fd, &st) < 0)
        return cairn_fail_errno(err, errno, "look at an arena");
    *ret = (struct ledger_header){.arena_id = a->id,
                                  .control_bytes = ARENA_CONTROL,
                                  .arena_device = st.st_dev,
                                  .arena_file = st.st_ino,
                                  .generation = a->generation + 1,
                                  .rank = a->rank,
                                  .world_size = a->world_size,
                                  .uid = a->uid,
                                  .pid = (uint32_t)a->last_pid,
                                  .pid_start = a->last_pid_start};
    memcpy(ret->job, a->job, sizeof ret->job);
    memcpy(ret->start_id, a->start_id, sizeof ret->start_id);
    return 0;
}

static int ledger_state_of(const struct snapshot *s)
{
    return s->state == SNAPSHOT_KEPT ? LEDGER_DONE : s->state == SNAPSHOT_FILLED ? LEDGER_FILLED : LEDGER_BEGUN;
}

int arena_ledger_renew(struct arena *a, const struct arena_keeper *keeper, struct cairn_error *err)
{
    struct ledger_header h;
    void *map = NULL;
    int fd = -1;
    int r = describe(a, &h, err);

    if (r == 0)
        r = ledger_make(ledger_len(a->npages), &fd, &map, err);
    if (r < 0)
        return r;
    ledger_init(map, &h, a->npages);
    struct name old = ledger_name(a, a->generation), new = ledger_name(a, h.generation), arena = arena_name(a);
    bool replaced = a->generation > 0;
    arena_ledger_close(a);
    a->ledger = map;
    a->ledger_fd = fd;
    a->generation = h.generation;
    ledger_set_next_save(map, a->next_save);
    list_for_each (it, &a->snapshots) {
        struct snapshot *s = container_of(it, struct snapshot, link);
        s->slot = -1;
        arena_ledger_put(s, ledger_state_of(s));
    }
    if (keeper->keep) {
        keeper->keep(keeper->arg, arena.text, a->fd);
        keeper->keep(keeper->arg, new.text, a->ledger_fd);
    }
    if (keeper->drop && replaced)
        keeper->drop(keeper->arg, old.text);
    return 0;
}

void arena_ledger_drop(const struct arena *a, const struct arena_keeper *keeper)
{
    struct name ledger = ledger_name(a, a->generation), arena = arena_name(a);

    if (!keeper->drop)
        return;
    keeper->drop(keeper->arg, ledger.text);
    keeper->drop(keeper->arg, arena.text);
}

void arena_ledger_freeze(struct arena *a)
{
    if (a->ledger)
        munmap(a->ledger, ledger_len(a->npages));
    a->ledger = NULL;
}

void arena_ledger_close(struct arena *a)
{
    arena_ledger_freeze(a);
    if (a->ledger_fd >= 0)
        close(a->ledger_fd);
    a->ledger_fd = -1;
}

/* ---- what it says ---------------------------------------------------------------------------- */

void arena_ledger_page(const struct arena *a, uint32_t page, int state, int slot, uint32_t part)
{
    if (a->ledger)
        ledger_set_page(a->ledger, page, state, slot, part);
}

int arena_ledger_slot(const struct arena *a)
{
    return a->ledger ? ledger_free_slot(a->ledger) : -1;
}

/* The layout is encoded again only when no save of the ledger has it. */
static bool store_layout(void *map, const struct shared_layout *l, struct ledger_save *e)
{
    CAIRN_CLEANUP(bytes_free) struct bytes encoded = {0};

    if (ledger_find_layout(map, l->digest, &e->layout_at, &e->layout_len))
        return true;
    if (cairn_layout_encode(&l->layout, &encoded, NULL) < 0)
        return false;
    struct hash128 digest = cairn_layout_digest(encoded.data, encoded.len);
    if (digest.low != l->digest.low || digest.high != l->digest.high)
        return false;
    e->layout_len = encoded.len;
    return ledger_put_layout(map, encoded.data, encoded.len, &e->layout_at);
}

/* Pages that went to other saves count as never granted: nobody may take the sum for theirs. */
static void put_pages(const struct snapshot *s)
{
    for (uint32_t p = 0; p < s->layout->layout.nparts; p++)
        if (!s->gone[p])
            arena_ledger_page(s->arena, s->pages[p], s->arena->page_state[s->pages[p]], s->slot, p);
}

void arena_ledger_put(struct snapshot *s, int state)
{
    struct arena *a = s->arena;
    bool fresh = s->slot < 0;
    struct ledger_save e = {.state = (uint32_t)state,
                            .word = s->word,
                            .save = s->save,
                            .step = s->step,
                            .incarnation = s->incarnation,
                            .digest = s->layout->digest,
                            .nparts = s->layout->layout.nparts,
                            .attempt = s->attempt,
                            .flags = s->packed ? LEDGER_PACKED : 0};

    if (!a->ledger)
        return;
    ledger_set_next_save(a->ledger, a->next_save);
    if (fresh)
        s->slot = ledger_free_slot(a->ledger);
    if (s->slot < 0)
        return;
    if (!store_layout(a->ledger, s->layout, &e)) {
        s->slot = -1; /* it is saved all the same, by this daemon */
        put_pages(s);
        return;
    }
    if (fresh)
        put_pages(s);
    ledger_put_save(a->ledger, s->slot, &e, s->pages);
}

void arena_ledger_state(struct snapshot *s, int state)
{
    if (!s->arena->ledger || s->slot < 0)
        return;
    ledger_set_state(s->arena->ledger, s->slot, state);
    if (state == LEDGER_EMPTY)
        s->slot = -1;
}
