/* SPDX-License-Identifier: Apache-2.0 */
/* Pages and snapshots: who has which page, noted in the ledger in an order that any interruption leaves readable. */
#include "daemon/node/arena_internal.h"

#include "core/base/error.h"

#include <stdlib.h>
#include <string.h>

void page_set(struct arena *a, uint32_t page, enum page_state state, const struct snapshot *s, uint32_t part)
{
    a->nfree -= a->page_state[page] == PAGE_FREE;
    a->nkept -= a->page_state[page] == PAGE_KEPT;
    a->page_state[page] = state;
    a->nfree += state == PAGE_FREE;
    a->nkept += state == PAGE_KEPT;
    arena_ledger_page(a, page, (int)state, s ? s->slot : -1, part);
}

static void snapshot_reclaim(struct snapshot *s, uint32_t need)
{
    struct arena *a = s->arena;

    for (uint32_t p = 0; p < s->layout->layout.nparts && a->nfree < need; p++) {
        if (s->gone[p] || a->page_state[s->pages[p]] != PAGE_KEPT)
            continue;
        s->gone[p] = true;
        page_set(a, s->pages[p], PAGE_FREE, NULL, 0);
    }
}

/* Takes kept pages back, oldest snapshot first, until enough are free: of committed ones first, because a save without
 * all of its pages cannot go on under another daemon. */
static void arena_reclaim(struct arena *a, uint32_t need)
{
    for (unsigned pass = 0; pass < 2; pass++) {
        list_for_each_safe (it, &a->snapshots) {
            struct snapshot *s = container_of(it, struct snapshot, link);
            if (pass == 1 || s->state == SNAPSHOT_KEPT)
                snapshot_reclaim(s, need);
        }
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

struct snapshot *snapshot_new(struct shared_layout *layout)
{
    struct snapshot *s = calloc(1, sizeof *s);
    uint32_t n = layout->layout.nparts ? layout->layout.nparts : 1;

    if (!s)
        return NULL;
    list_init(&s->link);
    s->slot = -1;
    s->layout = shared_layout_ref(layout);
    s->pages = calloc(n, sizeof *s->pages);
    s->gone = calloc(n, sizeof *s->gone);
    if (s->pages && s->gone)
        return s;
    snapshot_free(s);
    return NULL;
}

static void take_page(struct arena *a, struct snapshot *s, uint32_t page, uint32_t part)
{
    page_set(a, page, PAGE_TAKEN, s, part);
    s->pages[part] = page;
    a->last[page] = (struct page_memory){s->layout->digest.low, part};
}

static void take_in_order(struct arena *a, struct snapshot *s)
{
    for (uint32_t page = 0, part = 0; part < s->layout->layout.nparts; page++)
        if (a->page_state[page] == PAGE_FREE)
            take_page(a, s, page, part++);
}

/* Each part gets a free page that held the same part of the same layout before, where there is one; then the rest. */
static void take_as_before(struct arena *a, struct snapshot *s)
{
    uint32_t n = s->layout->layout.nparts, part = 0;

    for (uint32_t p = 0; p < n; p++)
        s->pages[p] = ARENA_NO_PAGE;
    for (uint32_t page = 0; page < a->npages; page++) {
        const struct page_memory *m = &a->last[page];
        if (a->page_state[page] == PAGE_FREE && m->layout == s->layout->digest.low && m->part < n &&
            s->pages[m->part] == ARENA_NO_PAGE)
            take_page(a, s, page, m->part);
    }
    for (uint32_t page = 0; page < a->npages && part < n; page++) {
        if (a->page_state[page] != PAGE_FREE)
            continue;
        while (part < n && s->pages[part] != ARENA_NO_PAGE)
            part++;
        if (part < n)
            take_page(a, s, page, part);
    }
}

static bool fits_in_runs(const struct snapshot *s)
{
    uint32_t runs = 0;

    for (uint32_t p = 0; p < s->layout->layout.nparts; p++)
        runs += p == 0 || s->pages[p] != s->pages[p - 1] + 1;
    return runs <= LOCAL_MAX_RUNS;
}

static void take_pages(struct arena *a, struct snapshot *s)
{
    take_as_before(a, s);
    if (fits_in_runs(s))
        return;
    for (uint32_t p = 0; p < s->layout->layout.nparts; p++)
        page_set(a, s->pages[p], PAGE_FREE, NULL, 0);
    take_in_order(a, s);
}

int arena_grant(struct arena *a, struct shared_layout *layout, uint64_t step, uint64_t incarnation,
                struct snapshot **ret_snapshot, struct cairn_error *err)
{
    uint32_t n = layout->layout.nparts;

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
    s->arena = a;
    s->save = a->next_save++;
    s->step = step;
    s->incarnation = incarnation;
    s->word = (uint32_t)word;
    s->slot = arena_ledger_slot(a);
    take_pages(a, s);
    list_push_back(&a->snapshots, &s->link);
    arena_ledger_put(s, LEDGER_BEGUN);
    *ret_snapshot = s;
    return 0;
}

void snapshot_may_be_packed(struct snapshot *s)
{
    s->packed = true;
    if (s->slot >= 0)
        arena_ledger_put(s, LEDGER_BEGUN);
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
    arena_ledger_state(s, LEDGER_FILLED);
}

void snapshot_shard_durable(struct snapshot *s)
{
    s->packed = false; /* everything was encoded, and unpacked for that */
    if (s->state == SNAPSHOT_FILLED)
        arena_ledger_state(s, LEDGER_DURABLE);
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
            page_set(s->arena, s->pages[p], PAGE_KEPT, s, p);
    arena_wake(s->arena);
}

static void snapshot_discard(struct snapshot *s)
{
    arena_ledger_state(s, LEDGER_EMPTY); /* first: free pages may name an empty save, not the other way round */
    for (uint32_t p = 0; p < s->layout->layout.nparts; p++)
        if (!s->gone[p])
            page_set(s->arena, s->pages[p], PAGE_FREE, NULL, 0);
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
    s->packed = false;
    arena_ledger_state(s, LEDGER_DONE);
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
            if (s->state != SNAPSHOT_GRANTED && !s->packed && s->step == step && s->incarnation == incarnation)
                return s;
        }
    }
    return NULL;
}

struct snapshot *arena_find(const struct arena *a, uint64_t save)
{
    list_for_each (it, &a->snapshots) {
        struct snapshot *s = container_of(it, struct snapshot, link);
        if (s->save == save)
            return s;
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

bool snapshot_base(const struct snapshot *s, uint64_t step, uint64_t incarnation, uint32_t first_part, uint32_t nparts,
                   const char **ret_plain)
{
    const struct hash128 *digest = &s->layout->digest;

    list_for_each (it, &s->arena->snapshots) {
        const struct snapshot *b = container_of(it, struct snapshot, link);
        if (b == s || b->state == SNAPSHOT_GRANTED || b->packed || b->step != step || b->incarnation != incarnation ||
            b->layout->digest.low != digest->low || b->layout->digest.high != digest->high ||
            !snapshot_holds(b, first_part, nparts))
            continue;
        for (uint32_t i = 0; i < nparts; i++)
            ret_plain[i] = arena_page(b->arena, b->pages[first_part + i]);
        return true;
    }
    return false;
}
