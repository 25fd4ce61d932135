/* SPDX-License-Identifier: Apache-2.0 */
/* Arenas: pages are granted once, come back exactly once, and outlive a process only as far as the bound allows. */
#include "daemon/node/arena.h"

#include "core/base/error.h"
#include "core/model/units.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

struct world {
    struct loop *loop;
    struct arenas *arenas;
    int self; /* pidfd of this process */
};

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof *w);

    assert_int_equal(loop_new(64, &w->loop, NULL), 0);
    assert_int_equal(arenas_new(w->loop, 32 * CAIRN_PART, 60, &w->arenas, NULL), 0);
    w->self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;

    arenas_free(w->arenas);
    loop_free(w->loop);
    close(w->self);
    free(w);
    return 0;
}

static struct shared_layout *layout_of(uint64_t bytes)
{
    struct shared_layout *l = calloc(1, sizeof *l);
    struct cairn_tensor t = {.size = sizeof t, .name = "t", .dtype = CAIRN_U8, .ndim = 1, .shape = &bytes};

    l->refs = 1;
    list_init(&l->link);
    cairn_layout_init(&l->layout);
    assert_int_equal(cairn_layout_add(&l->layout, &t, NULL), 0);
    assert_int_equal(cairn_layout_place(&l->layout, NULL), 0);
    return l;
}

static int try_attach(struct world *w, uint32_t rank, int pidfd, uint64_t bytes, struct arena **ret_arena,
                      struct cairn_error *err)
{
    struct arena_user u = {.job = "j",
                           .start_id = "s",
                           .rank = rank,
                           .world_size = 8,
                           .uid = getuid(),
                           .pid = getpid(),
                           .pidfd = pidfd,
                           .bytes = bytes};

    return arenas_attach(w->arenas, &u, ret_arena, err);
}

static struct arena *attach(struct world *w, uint32_t rank, int pidfd, unsigned pages)
{
    struct arena *a = NULL;

    assert_int_equal(try_attach(w, rank, pidfd, pages * CAIRN_PART, &a, NULL), 0);
    return a;
}

static void test_the_memfd_cannot_be_resized(void **state)
{
    struct world *w = *state;
    struct arena *a = attach(w, 0, w->self, 4);

    assert_int_equal(ftruncate(a->fd, 0), -1);
    assert_int_equal(ftruncate(a->fd, 1 << 30), -1);
    /* A hole punched by a client is zeros for the daemon, not a fault. */
    assert_int_equal(fallocate(a->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)(ARENA_CONTROL + a->bytes)),
                     0);
    assert_int_equal(arena_page(a, 3)[CAIRN_PART - 1], 0);
    arena_detach(a);
    arena_unref(a);
}

static void test_pages_go_round(void **state)
{
    struct world *w = *state;
    struct arena *a = attach(w, 0, w->self, 5);
    struct shared_layout *l = layout_of(4 * CAIRN_PART - 5);
    struct snapshot *one, *two = NULL;
    struct cairn_error err = CAIRN_ERROR_INIT;

    assert_int_equal(arena_grant(a, l, 1, 1, &one, &err), 0);
    assert_int_equal(a->nfree, 1);
    assert_int_equal(arena_grant(a, l, 2, 1, &two, &err), CAIRN_E_BUSY);
    snapshot_filled(one);
    snapshot_durable(one, 0, 3);
    assert_int_equal(arena_grant(a, l, 2, 1, &two, &err), 0); /* one free page and three kept ones */
    assert_int_equal(a->nfree + a->nkept, 0);
    for (unsigned p = 0; p < 4; p++) /* the page that is not durable was not taken */
        assert_int_not_equal(two->pages[p], one->pages[3]);
    assert_false(snapshot_holds(one, 0, 1));
    assert_true(snapshot_holds(one, 3, 1));
    assert_int_not_equal(one->save, two->save);
    snapshot_end(one, true);
    assert_int_equal(a->nkept, 1);
    snapshot_end(two, false);
    assert_int_equal(a->nfree + a->nkept, 5);
    shared_layout_unref(l);
    arena_detach(a);
    arena_unref(a);
}

/* What a client that tracks writes saves depends on it. Catches pages that are handed out in order of address, or a
 * page that is given to two parts. */
static void test_a_part_comes_back_to_its_page(void **state)
{
    struct world *w = *state;
    struct arena *a = attach(w, 0, w->self, 9);
    struct shared_layout *l = layout_of(4 * CAIRN_PART), *other = layout_of(3 * CAIRN_PART);
    struct snapshot *one, *two, *between, *three;
    uint32_t pages[4];

    l->digest.low = 7;
    other->digest.low = 8;
    assert_int_equal(arena_grant(a, l, 1, 1, &one, NULL), 0);
    assert_int_equal(arena_grant(a, l, 2, 1, &two, NULL), 0);
    memcpy(pages, two->pages, sizeof pages);
    snapshot_end(one, false);
    snapshot_end(two, false);
    /* Pages of the first save that another layout took meanwhile are no part's any more. */
    assert_int_equal(arena_grant(a, other, 3, 1, &between, NULL), 0);
    assert_int_equal(arena_grant(a, l, 4, 1, &three, NULL), 0);
    for (unsigned p = 0; p < 3; p++)
        assert_int_equal(three->pages[p], pages[p]);
    assert_int_equal(three->pages[3], 3); /* of the first save */
    uint64_t taken = 0;
    for (unsigned p = 0; p < 7; p++) {
        uint32_t page = p < 4 ? three->pages[p] : between->pages[p - 4];
        assert_false(taken & 1ull << page);
        taken |= 1ull << page;
    }
    snapshot_end(between, false);
    snapshot_end(three, false);
    shared_layout_unref(l);
    shared_layout_unref(other);
    arena_detach(a);
    arena_unref(a);
}

static void test_too_large_is_not_busy(void **state)
{
    struct world *w = *state;
    struct arena *a = attach(w, 0, w->self, 2);
    struct shared_layout *l = layout_of(3 * CAIRN_PART);
    struct snapshot *s;
    struct cairn_error err = CAIRN_ERROR_INIT;

    assert_int_equal(arena_grant(a, l, 1, 1, &s, &err), CAIRN_E_TOO_LARGE);
    assert_non_null(strstr(err.message, "larger arena"));
    shared_layout_unref(l);
    arena_detach(a);
    arena_unref(a);
}

static void test_filled_is_the_clients_word(void **state)
{
    struct world *w = *state;
    struct arena *a = attach(w, 0, w->self, 2);
    struct shared_layout *l = layout_of(CAIRN_PART);
    struct snapshot *s;
    struct local_control *control = mmap(NULL, ARENA_CONTROL, PROT_READ | PROT_WRITE, MAP_SHARED, a->fd, 0);

    assert_int_equal(arena_grant(a, l, 1, 1, &s, NULL), 0);
    assert_false(snapshot_is_filled(s));
    control->filled[s->word] = s->save + 1;
    assert_false(snapshot_is_filled(s));
    control->filled[s->word] = s->save;
    assert_true(snapshot_is_filled(s));
    munmap(control, ARENA_CONTROL);
    snapshot_end(s, false);
    shared_layout_unref(l);
    arena_detach(a);
    arena_unref(a);
}

static void retried(struct arena_waiter *w)
{
    ++*(int *)w->arg;
}

static void test_waiters_wake_when_pages_come_back(void **state)
{
    struct world *w = *state;
    struct arena *a = attach(w, 0, w->self, 1);
    struct shared_layout *l = layout_of(CAIRN_PART);
    struct snapshot *s;
    int woken = 0;
    struct arena_waiter waiter = {.retry = retried, .arg = &woken};

    assert_int_equal(arena_grant(a, l, 1, 1, &s, NULL), 0);
    arena_wait(a, &waiter);
    snapshot_filled(s);
    snapshot_durable(s, 0, 1);
    assert_int_equal(woken, 1);
    snapshot_end(s, true);
    assert_int_equal(woken, 1); /* it is not in the list any more */
    shared_layout_unref(l);
    arena_detach(a);
    arena_unref(a);
}

/* A pidfd of a process that has ended. */
static int dead_process(void)
{
    pid_t pid = fork();

    if (pid == 0)
        _exit(0);
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    waitpid(pid, NULL, 0);
    return pidfd;
}

static void leave_kept_snapshot(struct arena *a)
{
    struct shared_layout *l = layout_of(CAIRN_PART);
    struct snapshot *s;

    assert_int_equal(arena_grant(a, l, 1, 1, &s, NULL), 0);
    snapshot_filled(s);
    snapshot_end(s, true);
    shared_layout_unref(l);
    arena_detach(a);
    arena_unref(a);
}

static void test_the_next_process_adopts(void **state)
{
    struct world *w = *state;
    int dead = dead_process();
    struct arena *a = attach(w, 3, dead, 4);
    uint64_t id = a->id;

    leave_kept_snapshot(a);
    assert_non_null(arenas_find(w->arenas, "j", 1, 1, 3));
    a = attach(w, 3, w->self, 3); /* a larger one will do: it has the snapshot */
    assert_true(a->id == id);
    assert_int_equal(a->npages, 4);
    assert_non_null(arenas_find(w->arenas, "j", 1, 1, 3));
    leave_kept_snapshot(a);
    a = attach(w, 3, w->self, 4); /* the last process lives: it may still be copying */
    assert_true(a->id != id);
    arena_detach(a);
    arena_unref(a);
    close(dead);
}

static void test_the_bound_holds(void **state)
{
    struct world *w = *state;
    struct arena *a = attach(w, 0, w->self, 20), *b = NULL;
    struct cairn_error err = CAIRN_ERROR_INIT;
    uint64_t used, limit;

    assert_int_equal(try_attach(w, 1, w->self, 20 * CAIRN_PART, &b, &err), CAIRN_E_TOO_LARGE);
    assert_non_null(strstr(err.message, "arena_max_mib"));
    leave_kept_snapshot(a); /* an orphan makes room for the living */
    b = attach(w, 1, w->self, 20);
    arenas_usage(w->arenas, &used, &limit);
    assert_true(used == 20 * CAIRN_PART && limit == 32 * CAIRN_PART);
    arena_detach(b);
    arena_unref(b);
    assert_int_equal(try_attach(w, 1, w->self, 0, &b, &err), CAIRN_E_INVAL);
    assert_int_equal(try_attach(w, 1, w->self, UINT64_MAX, &b, &err), CAIRN_E_INVAL);
}

struct held {
    struct arena *arena;
    struct snapshot *snapshot;
    bool stored;
};

static void let_go(void *owner)
{
    struct held *h = owner;

    if (!h->stored)
        return;
    snapshot_end(h->snapshot, false);
    arena_unref(h->arena);
}

/* Ranks that come one after another, and are gone before the checkpoint is decided. Catches: a rank that is refused for
 * want of memory that only a decision holds, and one whose snapshot is taken before it is stored. */
static void test_what_is_stored_makes_room(void **state)
{
    struct world *w = *state;
    struct shared_layout *l = layout_of(CAIRN_PART);
    struct held h = {.arena = attach(w, 0, w->self, 20)};
    struct arena *b = NULL;
    struct cairn_error err = CAIRN_ERROR_INIT;
    uint64_t used, limit;

    arenas_set_let_go(w->arenas, let_go);
    assert_int_equal(arena_grant(h.arena, l, 1, 1, &h.snapshot, &err), 0);
    h.snapshot->owner = &h;
    snapshot_filled(h.snapshot);
    h.stored = true; /* but its process lives */
    assert_int_equal(try_attach(w, 1, w->self, 20 * CAIRN_PART, &b, &err), CAIRN_E_TOO_LARGE);
    h.stored = false;
    arena_detach(h.arena);
    assert_int_equal(try_attach(w, 1, w->self, 20 * CAIRN_PART, &b, &err), CAIRN_E_TOO_LARGE);
    h.stored = true;
    assert_int_equal(try_attach(w, 1, w->self, 20 * CAIRN_PART, &b, &err), 0);
    arenas_usage(w->arenas, &used, &limit);
    assert_int_equal(used, 20 * CAIRN_PART);
    arena_detach(b);
    arena_unref(b);
    shared_layout_unref(l);
}

/* Catches a request that no freeing could serve, and that frees all the same: what others left behind for their next
 * process, the asker's own arena, and what is stored. */
static void test_what_cannot_fit_costs_nothing(void **state)
{
    struct world *w = *state;
    struct shared_layout *l = layout_of(CAIRN_PART);
    struct held h = {.arena = attach(w, 0, w->self, 10), .stored = true};
    struct arena *orphan = attach(w, 1, w->self, 10), *none = NULL, *live = attach(w, 2, w->self, 5);
    struct snapshot *kept;
    struct cairn_error err = CAIRN_ERROR_INIT;
    uint64_t used, limit;

    arenas_set_let_go(w->arenas, let_go);
    assert_int_equal(arena_grant(h.arena, l, 1, 1, &h.snapshot, &err), 0);
    h.snapshot->owner = &h;
    snapshot_filled(h.snapshot);
    arena_detach(h.arena);
    assert_int_equal(arena_grant(orphan, l, 1, 1, &kept, &err), 0);
    snapshot_filled(kept);
    snapshot_end(kept, true);
    arena_detach(orphan);
    arena_unref(orphan);
    for (uint32_t rank = 0; rank < 4; rank++)
        assert_int_equal(try_attach(w, rank, w->self, 28 * CAIRN_PART, &none, &err), CAIRN_E_TOO_LARGE);
    arenas_usage(w->arenas, &used, &limit);
    assert_int_equal(used, 25 * CAIRN_PART);
    snapshot_end(h.snapshot, false);
    arena_unref(h.arena);
    arena_detach(live);
    arena_unref(live);
    shared_layout_unref(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_the_memfd_cannot_be_resized, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pages_go_round, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_part_comes_back_to_its_page, setup, teardown),
        cmocka_unit_test_setup_teardown(test_too_large_is_not_busy, setup, teardown),
        cmocka_unit_test_setup_teardown(test_filled_is_the_clients_word, setup, teardown),
        cmocka_unit_test_setup_teardown(test_waiters_wake_when_pages_come_back, setup, teardown),
        cmocka_unit_test_setup_teardown(test_the_next_process_adopts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_the_bound_holds, setup, teardown),
        cmocka_unit_test_setup_teardown(test_what_is_stored_makes_room, setup, teardown),
        cmocka_unit_test_setup_teardown(test_what_cannot_fit_costs_nothing, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
