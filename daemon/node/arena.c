/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/node/arena_internal.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/units.h"
#include "daemon/io/log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

struct shared_layout *shared_layout_ref(struct shared_layout *l)
{
    l->refs++;
    return l;
}

void shared_layout_unref(struct shared_layout *l)
{
    if (!l || --l->refs > 0)
        return;
    cairn_layout_free(&l->layout);
    free(l);
}

int arenas_new(struct loop *loop, uint64_t limit_bytes, uint32_t keep_s, struct arenas **ret_arenas,
               struct cairn_error *err)
{
    struct arenas *as = calloc(1, sizeof *as);

    if (!as)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the arena registry");
    as->loop = loop;
    as->limit_bytes = limit_bytes;
    as->keep_s = keep_s;
    list_init(&as->all);
    *ret_arenas = as;
    return 0;
}

void arenas_set_keeper(struct arenas *as, const struct arena_keeper *keeper)
{
    as->keeper = *keeper;
}

void arenas_set_let_go(struct arenas *as, arena_let_go let_go)
{
    as->let_go = let_go;
}

void arenas_freeze(struct arenas *as)
{
    as->keeper = (struct arena_keeper){0};
    list_for_each (it, &as->all)
        arena_ledger_freeze(container_of(it, struct arena, link));
}

void arenas_usage(const struct arenas *as, uint64_t *ret_bytes, uint64_t *ret_limit)
{
    *ret_bytes = as->used_bytes;
    *ret_limit = as->limit_bytes;
}

struct list *arenas_list(struct arenas *as)
{
    return &as->all;
}

/* ---- one arena ------------------------------------------------------------------------------- */

void arena_destroy(struct arena *a)
{
    if (a->arenas)
        arena_ledger_drop(a, &a->arenas->keeper);
    list_for_each_safe (it, &a->snapshots)
        snapshot_end(container_of(it, struct snapshot, link), false);
    if (a->arenas) {
        loop_timer_cancel(a->arenas->loop, &a->expire);
        a->arenas->used_bytes -= a->bytes;
        list_remove(&a->link);
    }
    if (a->map)
        munmap(a->map, ARENA_CONTROL + a->bytes);
    if (a->fd >= 0)
        close(a->fd);
    if (a->last_pidfd >= 0)
        close(a->last_pidfd);
    arena_ledger_close(a);
    free(a->page_state);
    free(a->last);
    free(a);
}

struct arena *arena_ref(struct arena *a)
{
    a->refs++;
    return a;
}

static void arena_expired(struct loop_timer *t)
{
    struct arena *a = t->arg;

    log_line(LOG_NOTICE, "arena of job %s rank %u freed: no process came back for it within %u s", a->job, a->rank,
             a->arenas->keep_s);
    arena_destroy(a);
}

/* The registry itself holds no reference: an arena without references is an orphan that waits for its next process. */
void arena_unref(struct arena *a)
{
    if (!a || --a->refs > 0)
        return;
    if (a->arenas->keep_s == 0 || list_empty(&a->snapshots))
        arena_destroy(a);
    else
        loop_timer_after(a->arenas->loop, &a->expire, (uint64_t)a->arenas->keep_s * 1000);
}

void arenas_free(struct arenas *as)
{
    if (!as)
        return;
    list_for_each_safe (it, &as->all)
        arena_destroy(container_of(it, struct arena, link));
    free(as);
}

int arena_map_memory(struct arena *a, struct cairn_error *err)
{
    size_t len = ARENA_CONTROL + a->bytes;
    void *map = mmap(NULL, len, PROT_READ, MAP_SHARED | MAP_NORESERVE, a->fd, 0);

    if (map == MAP_FAILED)
        return cairn_fail_errno(err, errno, "map %zu bytes", len);
    a->map = map;
    return 0;
}

int arena_make_writable(struct arena *a, struct cairn_error *err)
{
    if (a->writable)
        return 0;
    if (mprotect(a->map + ARENA_CONTROL, a->bytes, PROT_READ | PROT_WRITE) < 0)
        return cairn_fail_errno(err, errno,
                                "the arena of job %s rank %u cannot be written to by cairnd, and takes no packed parts",
                                a->job, a->rank);
    a->writable = true;
    return 0;
}

/* A memfd that can neither shrink nor grow, so that no access within it can fault the daemon. */
static int arena_make_memory(struct arena *a, struct cairn_error *err)
{
    char name[64];
    size_t len = ARENA_CONTROL + a->bytes;

    snprintf(name, sizeof name, "cairn-arena-%u", a->rank);
    a->fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (a->fd < 0)
        return cairn_fail_errno(err, errno, "create a memfd");
    if (ftruncate(a->fd, (off_t)len) < 0)
        return cairn_fail_errno(err, errno, "size a memfd to %zu bytes", len);
    if (fcntl(a->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        return cairn_fail_errno(err, errno, "seal a memfd");
    return arena_map_memory(a, err);
}

struct arena *arena_alloc(uint64_t bytes)
{
    struct arena *a = calloc(1, sizeof *a);

    if (!a)
        return NULL;
    a->fd = a->last_pidfd = a->ledger_fd = -1;
    list_init(&a->snapshots);
    list_init(&a->waiting);
    a->bytes = bytes;
    a->npages = a->nfree = (uint32_t)(bytes / CAIRN_PART);
    a->next_save = 1;
    a->expire = (struct loop_timer){.fire = arena_expired, .arg = a};
    a->page_state = calloc(a->npages ? a->npages : 1, 1);
    a->last = calloc(a->npages ? a->npages : 1, sizeof *a->last);
    if (a->page_state && a->last)
        return a;
    free(a->page_state);
    free(a->last);
    free(a);
    return NULL;
}

void arena_enlist(struct arenas *as, struct arena *a)
{
    a->arenas = as;
    as->used_bytes += a->bytes;
    list_push_back(&as->all, &a->link);
}

int arena_take(struct arenas *as, struct arena *a, const struct arena_user *u, struct cairn_error *err)
{
    snprintf(a->job, sizeof a->job, "%s", u->job);
    snprintf(a->start_id, sizeof a->start_id, "%s", u->start_id);
    a->rank = u->rank;
    a->world_size = u->world_size;
    a->uid = u->uid;
    a->unsure = false;
    if (a->last_pidfd >= 0)
        close(a->last_pidfd);
    a->last_pid = u->pid;
    a->last_pid_start = process_start(u->pid);
    a->last_pidfd = fcntl(u->pidfd, F_DUPFD_CLOEXEC, 0);
    if (a->last_pidfd < 0)
        a->last_pidfd = PROCESS_UNKNOWN;
    int r = arena_ledger_renew(a, &as->keeper, err);
    a->attached = r == 0;
    return r;
}

static int arena_new(struct arenas *as, const struct arena_user *u, uint64_t bytes, struct arena **ret_arena,
                     struct cairn_error *err)
{
    struct arena *a = arena_alloc(bytes);
    int r;

    if (!a)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate an arena of %llu MiB", (unsigned long long)(bytes >> 20));
    if (getrandom(&a->id, sizeof a->id, 0) != sizeof a->id)
        r = cairn_fail_errno(err, errno, "draw an arena id");
    else
        r = arena_make_memory(a, err);
    if (r == 0)
        r = arena_take(as, a, u, err);
    if (r < 0) {
        r = cairn_wrap(err, r, "arena of %u MiB for job %s rank %u", a->npages, u->job, u->rank);
        arena_destroy(a);
        return r;
    }
    arena_enlist(as, a);
    *ret_arena = a;
    return 0;
}

static void arena_give_up_saves(struct arena *a)
{
    arena_ref(a); /* the last save would take it with it */
    list_for_each_safe (it, &a->snapshots) {
        struct snapshot *s = container_of(it, struct snapshot, link);
        if (s->owner)
            a->arenas->let_go(s->owner);
    }
    if (a->refs == 1)
        arena_destroy(a);
    else
        arena_unref(a);
}

/* Whether so much more could fit if all went that may go. */
static bool arenas_may_fit(const struct arenas *as, uint64_t bytes)
{
    uint64_t stays = 0;

    list_for_each (it, &as->all) {
        const struct arena *a = container_of(it, struct arena, link);
        if (a->refs > 0 && (a->attached || !as->let_go))
            stays += a->bytes;
    }
    return stays + bytes <= as->limit_bytes;
}

bool arenas_make_room(struct arenas *as, uint64_t bytes)
{
    if (!arenas_may_fit(as, bytes))
        return false;
    list_for_each_safe (it, &as->all) {
        struct arena *a = container_of(it, struct arena, link);
        if (as->used_bytes + bytes <= as->limit_bytes)
            break;
        if (a->refs == 0)
            arena_destroy(a);
    }
    list_for_each_safe (it, &as->all) {
        struct arena *a = container_of(it, struct arena, link);
        if (as->used_bytes + bytes <= as->limit_bytes || !as->let_go)
            break;
        if (!a->attached)
            arena_give_up_saves(a);
    }
    return as->used_bytes + bytes <= as->limit_bytes;
}

static struct arena *arenas_left_behind(struct arenas *as, const char *job, uint32_t rank)
{
    list_for_each (it, &as->all) {
        struct arena *a = container_of(it, struct arena, link);
        if (!a->attached && a->rank == rank && strcmp(a->job, job) == 0)
            return a;
    }
    return NULL;
}

bool process_ended(int pidfd)
{
    struct pollfd p = {pidfd, POLLIN, 0};

    if (pidfd == PROCESS_UNKNOWN)
        return false;
    return pidfd < 0 || (poll(&p, 1, 0) == 1 && (p.revents & POLLIN));
}

/* What nobody saves any more, though it was granted: its process has ended. */
static void arena_drop_unowned(struct arena *a)
{
    list_for_each_safe (it, &a->snapshots) {
        struct snapshot *s = container_of(it, struct snapshot, link);
        if (s->state != SNAPSHOT_KEPT && !s->owner)
            snapshot_end(s, false);
    }
}

int arenas_too_full(const struct arenas *as, const struct arena_user *u, uint64_t bytes, struct cairn_error *err)
{
    return cairn_fail(err, CAIRN_E_TOO_LARGE,
                      "an arena of %llu MiB for job %s rank %u does not fit: %llu of %llu MiB are in use "
                      "(arena_max_mib)",
                      (unsigned long long)(bytes >> 20), u->job, u->rank, (unsigned long long)(as->used_bytes >> 20),
                      (unsigned long long)(as->limit_bytes >> 20));
}

int arenas_attach(struct arenas *as, const struct arena_user *u, struct arena **ret_arena, struct cairn_error *err)
{
    uint64_t bytes = round_up_u64(u->bytes, CAIRN_PART);
    int r;

    if (u->bytes < CAIRN_PART || u->bytes > CAIRN_MAX_IMAGE)
        return cairn_fail(err, CAIRN_E_INVAL, "an arena has 1 MiB to %llu MiB, not %llu bytes",
                          (unsigned long long)(CAIRN_MAX_IMAGE >> 20), (unsigned long long)u->bytes);
    struct arena *a = arenas_left_behind(as, u->job, u->rank);
    if (a && a->bytes >= bytes && a->uid == u->uid && process_ended(a->last_pidfd)) {
        arena_drop_unowned(a);
        r = arena_take(as, a, u, err);
        if (r == 0)
            loop_timer_cancel(as->loop, &a->expire);
    } else {
        if (!arenas_may_fit(as, bytes)) /* before anything goes */
            return arenas_too_full(as, u, bytes, err);
        if (a && a->refs == 0)
            arena_destroy(a);
        if (!arenas_make_room(as, bytes))
            return arenas_too_full(as, u, bytes, err);
        r = arena_new(as, u, bytes, &a, err);
    }
    if (r < 0)
        return r;
    *ret_arena = arena_ref(a);
    return 0;
}

void arena_detach(struct arena *a)
{
    a->attached = false;
}
