/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/node/arena.h"

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

enum page_state { PAGE_FREE = 0, PAGE_TAKEN, PAGE_KEPT };

struct arenas {
    struct loop *loop;
    struct list all;
    uint64_t limit_bytes;
    uint64_t used_bytes;
    uint32_t keep_s;
};

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

void arenas_usage(const struct arenas *as, uint64_t *ret_bytes, uint64_t *ret_limit)
{
    *ret_bytes = as->used_bytes;
    *ret_limit = as->limit_bytes;
}

struct list *arenas_list(struct arenas *as)
{
    return &as->all;
}

/* ---- one arena ----------------------------------------------------------------------------------------------------
 */

static void arena_destroy(struct arena *a)
{
    list_for_each_safe (it, &a->snapshots)
        snapshot_end(container_of(it, struct snapshot, link), false);
    if (a->arenas) {
        loop_timer_cancel(a->arenas->loop, &a->expire);
        a->arenas->used_bytes -= a->bytes;
        list_remove(&a->link);
    }
    if (a->map)
        munmap((void *)(uintptr_t)a->map, ARENA_CONTROL + a->bytes);
    if (a->fd >= 0)
        close(a->fd);
    if (a->last_pidfd >= 0)
        close(a->last_pidfd);
    free(a->page_state);
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
    void *map = mmap(NULL, len, PROT_READ, MAP_SHARED | MAP_NORESERVE, a->fd, 0);
    if (map == MAP_FAILED)
        return cairn_fail_errno(err, errno, "map %zu bytes", len);
    a->map = map;
    return 0;
}

static int arena_new(struct arenas *as, const char *job, uint32_t rank, uid_t uid, uint64_t bytes,
                     struct arena **ret_arena, struct cairn_error *err)
{
    struct arena *a = calloc(1, sizeof *a);
    int r;

    if (!a)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate an arena");
    a->fd = a->last_pidfd = -1;
    list_init(&a->snapshots);
    list_init(&a->waiting);
    snprintf(a->job, sizeof a->job, "%s", job);
    a->rank = rank;
    a->uid = uid;
    a->bytes = bytes;
    a->npages = a->nfree = (uint32_t)(bytes / CAIRN_PART);
    a->next_save = 1;
    a->expire = (struct loop_timer){.fire = arena_expired, .arg = a};
    a->page_state = calloc(a->npages ? a->npages : 1, 1);
    if (!a->page_state)
        r = cairn_fail(err, CAIRN_E_NOMEM, "allocate a page table of %u entries", a->npages);
    else if (getrandom(&a->id, sizeof a->id, 0) != sizeof a->id)
        r = cairn_fail_errno(err, errno, "draw an arena id");
    else
        r = arena_make_memory(a, err);
    if (r < 0) {
        arena_destroy(a);
        return cairn_wrap(err, r, "arena of %u MiB for job %s rank %u", a->npages, job, rank);
    }
    a->arenas = as;
    as->used_bytes += bytes;
    list_push_back(&as->all, &a->link);
    *ret_arena = a;
    return 0;
}

/* Frees orphans, oldest first, until so much more fits the limit. */
static bool arenas_make_room(struct arenas *as, uint64_t bytes)
{
    list_for_each_safe (it, &as->all) {
        struct arena *a = container_of(it, struct arena, link);
        if (as->used_bytes + bytes <= as->limit_bytes)
            break;
        if (a->refs == 0)
            arena_destroy(a);
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

/* Its end, not its socket's: a zombie is dead, a process whose children hold its socket is not. */
static bool process_ended(int pidfd)
{
    struct pollfd p = {pidfd, POLLIN, 0};

    return pidfd < 0 || (poll(&p, 1, 0) == 1 && (p.revents & POLLIN));
}

static void arena_take(struct arena *a, int pidfd)
{
    a->attached = true;
    if (a->last_pidfd >= 0)
        close(a->last_pidfd);
    a->last_pidfd = fcntl(pidfd, F_DUPFD_CLOEXEC, 0);
}

int arenas_attach(struct arenas *as, const char *job, uint32_t rank, uid_t uid, int pidfd, uint64_t bytes,
                  struct arena **ret_arena, struct cairn_error *err)
{
    struct arena *a;
    int r;

    if (bytes < CAIRN_PART || bytes > CAIRN_MAX_IMAGE)
        return cairn_fail(err, CAIRN_E_INVAL, "an arena has 1 MiB to %llu MiB, not %llu bytes",
                          (unsigned long long)(CAIRN_MAX_IMAGE >> 20), (unsigned long long)bytes);
    bytes = round_up_u64(bytes, CAIRN_PART);
    a = arenas_left_behind(as, job, rank);
    if (a && a->bytes == bytes && a->uid == uid && process_ended(a->last_pidfd)) {
        loop_timer_cancel(as->loop, &a->expire);
    } else {
        if (a && a->refs == 0)
            arena_destroy(a);
        if (!arenas_make_room(as, bytes))
            return cairn_fail(err, CAIRN_E_TOO_LARGE,
                              "an arena of %llu MiB for job %s rank %u does not fit: %llu of %llu MiB are in use "
                              "(arena_max_mib)",
                              (unsigned long long)(bytes >> 20), job, rank, (unsigned long long)(as->used_bytes >> 20),
                              (unsigned long long)(as->limit_bytes >> 20));
        r = arena_new(as, job, rank, uid, bytes, &a, err);
        if (r < 0)
            return r;
    }
    arena_take(a, pidfd);
    *ret_arena = arena_ref(a);
    return 0;
}

void arena_detach(struct arena *a)
{
    a->attached = false;
}

/* ---- pages and snapshots ------------------------------------------------------------------------------------------
 */

static void page_set(struct arena *a, uint32_t page, enum page_state state)
{
    a->nfree -= a->page_state[page] == PAGE_FREE;
    a->nkept -= a->page_state[page] == PAGE_KEPT;
    a->page_state[page] = state;
    a->nfree += state == PAGE_FREE;
    a->nkept += state == PAGE_KEPT;
}

/* Takes kept pages back from durable snapshots, oldest first, until enough are free. */
static void arena_reclaim(struct arena *a, uint32_t need)
{
    list_for_each_safe (it, &a->snapshots) {
        struct snapshot *s = container_of(it, struct snapshot, link);
        for (uint32_t p = 0; p < s->layout->layout.nparts && a->nfree < need; p++) {
            if (s->gone[p] || a->page_state[s->pages[p]] != PAGE_KEPT)
                continue;
            s->gone[p] = true;
            page_set(a, s->pages[p], PAGE_FREE);
        }
        if (a->nfree >= need)
            return;
    }
}

static int word_take(struct arena *a)
{
    for (unsigned w = 0; w < LOCAL_FILLED_WORDS; w++) {
        if (a->words_busy[w / 64] & (1ull << (w % 64)))
            continue;
        a->words_busy[w / 64] |= 1ull << (w % 64);
        return (int)w;
    }
    return -1;
}

static void snapshot_free(struct snapshot *s)
{
    shared_layout_unref(s->layout);
    free(s->pages);
    free(s->gone);
    free(s);
}

static struct snapshot *snapshot_new(struct shared_layout *layout)
{
    struct snapshot *s = calloc(1, sizeof *s);
    uint32_t n = layout->layout.nparts ? layout->layout.nparts : 1;

    if (!s)
        return NULL;
    list_init(&s->link);
    s->layout = shared_layout_ref(layout);
    s->pages = calloc(n, sizeof *s->pages);
    s->gone = calloc(n, sizeof *s->gone);
    if (s->pages && s->gone)
        return s;
    snapshot_free(s);
    return NULL;
}

int arena_grant(struct arena *a, struct shared_layout *layout, uint64_t step, uint64_t incarnation,
                struct snapshot **ret_snapshot, struct cairn_error *err)
{
    uint32_t n = layout->layout.nparts, got = 0;

    if (n > a->npages)
        return cairn_fail(err, CAIRN_E_TOO_LARGE,
                          "step %llu needs %u MiB and the arena of job %s rank %u has %u: open it with a larger arena",
                          (unsigned long long)step, n, a->job, a->rank, a->npages);
    if (a->nfree + a->nkept < n)
        return cairn_fail(err, CAIRN_E_BUSY, "step %llu needs %u MiB: %u of %u are free while earlier saves drain",
                          (unsigned long long)step, n, a->nfree + a->nkept, a->npages);
    struct snapshot *s = snapshot_new(layout);
    if (!s)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a snapshot of %u parts", n);
    int word = word_take(a);
    if (word < 0) {
        snapshot_free(s);
        return cairn_fail(err, CAIRN_E_BUSY, "%u saves are under way", LOCAL_FILLED_WORDS);
    }
    arena_reclaim(a, n);
    for (uint32_t page = 0; got < n; page++) {
        if (a->page_state[page] != PAGE_FREE)
            continue;
        page_set(a, page, PAGE_TAKEN);
        s->pages[got++] = page;
    }
    s->arena = a;
    s->save = a->next_save++;
    s->step = step;
    s->incarnation = incarnation;
    s->word = (uint32_t)word;
    list_push_back(&a->snapshots, &s->link);
    *ret_snapshot = s;
    return 0;
}

int snapshot_runs(const struct snapshot *s, struct local_run *runs, unsigned room)
{
    unsigned n = 0;

    for (uint32_t p = 0; p < s->layout->layout.nparts; p++) {
        if (n > 0 && runs[n - 1].first_page + runs[n - 1].npages == s->pages[p]) {
            runs[n - 1].npages++;
            continue;
        }
        if (n == room)
            return CAIRN_E_TOO_LARGE;
        runs[n++] = (struct local_run){s->pages[p], 1};
    }
    return (int)n;
}

bool snapshot_is_filled(const struct snapshot *s)
{
    const struct local_control *control = (const void *)s->arena->map;
    /* Acquire pairs with the client's release after its last byte. */
    return __atomic_load_n(&control->filled[s->word], __ATOMIC_ACQUIRE) == s->save;
}

void snapshot_filled(struct snapshot *s)
{
    s->state = SNAPSHOT_FILLED;
}

static void arena_wake(struct arena *a)
{
    if (list_empty(&a->waiting))
        return;
    struct arena_waiter *w = list_first(&a->waiting, struct arena_waiter, link);
    list_remove(&w->link);
    w->retry(w);
}

void snapshot_durable(struct snapshot *s, uint32_t first_part, uint32_t nparts)
{
    for (uint32_t p = first_part; p < first_part + nparts && p < s->layout->layout.nparts; p++)
        if (!s->gone[p] && s->arena->page_state[s->pages[p]] == PAGE_TAKEN)
            page_set(s->arena, s->pages[p], PAGE_KEPT);
    arena_wake(s->arena);
}

static void snapshot_discard(struct snapshot *s)
{
    for (uint32_t p = 0; p < s->layout->layout.nparts; p++)
        if (!s->gone[p])
            page_set(s->arena, s->pages[p], PAGE_FREE);
    list_remove(&s->link);
    snapshot_free(s);
}

void snapshot_end(struct snapshot *s, bool keep)
{
    struct arena *a = s->arena;

    if (s->state != SNAPSHOT_KEPT)
        a->words_busy[s->word / 64] &= ~(1ull << (s->word % 64));
    if (!keep) {
        snapshot_discard(s);
        arena_wake(a);
        return;
    }
    snapshot_durable(s, 0, s->layout->layout.nparts);
    s->state = SNAPSHOT_KEPT;
    list_for_each_safe (it, &a->snapshots) {
        struct snapshot *old = container_of(it, struct snapshot, link);
        if (old != s && old->state == SNAPSHOT_KEPT && old->save < s->save)
            snapshot_discard(old);
    }
    arena_wake(a);
}

void arena_wait(struct arena *a, struct arena_waiter *w)
{
    list_push_back(&a->waiting, &w->link);
}

void arena_wait_cancel(struct arena_waiter *w)
{
    list_remove(&w->link);
}

struct snapshot *arenas_find(struct arenas *as, const char *job, uint64_t step, uint64_t incarnation, uint32_t rank)
{
    list_for_each (it, &as->all) {
        struct arena *a = container_of(it, struct arena, link);
        if (a->rank != rank || strcmp(a->job, job) != 0)
            continue;
        list_for_each (is, &a->snapshots) {
            struct snapshot *s = container_of(is, struct snapshot, link);
            if (s->state != SNAPSHOT_GRANTED && s->step == step && s->incarnation == incarnation)
                return s;
        }
    }
    return NULL;
}

bool snapshot_holds(const struct snapshot *s, uint32_t first_part, uint32_t nparts)
{
    if (first_part + nparts > s->layout->layout.nparts)
        return false;
    for (uint32_t p = first_part; p < first_part + nparts; p++)
        if (s->gone[p])
            return false;
    return true;
}
