/* SPDX-License-Identifier: Apache-2.0 */
/* Arenas that come back. Catches: pages of a snapshot that are given away by the next daemon, a ledger that lags behind
 * the arena, files that do not belong together, an arena that a new process gets while the old one may write to it. */
#include "daemon/node/arena.h"
#include "daemon/node/arena_ledger.h"
#include "daemon/node/arena_offer.h"

#include "core/base/error.h"
#include "core/model/units.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#define PAGES 12

struct kept {
    unsigned n;
    char name[64][64];
    unsigned dropped;
};
struct world {
    struct loop *loop;
    struct arenas *old, *next; /* of the daemon that dies, and of its successor */
    struct kept kept;
    int self;
    struct cairn_error err;
};

static void keep(void *arg, const char *name, int fd)
{
    struct kept *k = arg;

    assert_true(fcntl(fd, F_GET_SEALS) >= 0);
    snprintf(k->name[k->n++ % 64], sizeof k->name[0], "%s", name);
}

static void drop(void *arg, const char *name)
{
    (void)name;
    ((struct kept *)arg)->dropped++;
}

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof *w);

    w->err = (struct cairn_error)CAIRN_ERROR_INIT;
    assert_int_equal(loop_new(64, &w->loop, NULL), 0);
    assert_int_equal(arenas_new(w->loop, 64 * CAIRN_PART, 60, &w->old, NULL), 0);
    assert_int_equal(arenas_new(w->loop, 64 * CAIRN_PART, 60, &w->next, NULL), 0);
    arenas_set_keeper(w->next, &(struct arena_keeper){keep, drop, &w->kept});
    w->self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;

    arenas_freeze(w->next);
    arenas_free(w->old);
    arenas_free(w->next);
    loop_free(w->loop);
    close(w->self);
    free(w);
    return 0;
}

static struct arena_user user(const struct world *w)
{
    return (struct arena_user){.job = "j",
                               .start_id = "s",
                               .rank = 2,
                               .world_size = 4,
                               .uid = getuid(),
                               .pid = getpid(),
                               .pidfd = w->self,
                               .bytes = PAGES * CAIRN_PART};
}

static struct arena *attach(struct world *w)
{
    struct arena_user u = user(w);
    struct arena *a = NULL;

    assert_int_equal(arenas_attach(w->old, &u, &a, NULL), 0);
    return a;
}

static struct shared_layout *layout_of(uint64_t parts)
{
    struct shared_layout *l = calloc(1, sizeof *l);
    uint64_t bytes = parts * CAIRN_PART - 7;
    struct cairn_tensor t = {.size = sizeof t, .name = "t", .dtype = CAIRN_U8, .ndim = 1, .shape = &bytes};
    struct bytes encoded = {0};

    l->refs = 1;
    list_init(&l->link);
    cairn_layout_init(&l->layout);
    assert_int_equal(cairn_layout_add(&l->layout, &t, NULL), 0);
    assert_int_equal(cairn_layout_place(&l->layout, NULL), 0);
    assert_int_equal(cairn_layout_encode(&l->layout, &encoded, NULL), 0);
    l->digest = cairn_layout_digest(encoded.data, encoded.len);
    bytes_free(&encoded);
    return l;
}

static struct snapshot *grant(struct arena *a, uint64_t parts, uint64_t step)
{
    struct shared_layout *l = layout_of(parts);
    struct snapshot *s = NULL;

    assert_int_equal(arena_grant(a, l, step, 3, &s, NULL), 0);
    shared_layout_unref(l);
    return s;
}

static struct arena_offer *offer_of(struct world *w, const struct arena *a)
{
    struct arena_offer *o = NULL;

    if (arena_offer_read(dup(a->fd), a->ledger_fd, &o, &w->err) < 0)
        fail_msg("%s", w->err.message);
    return o;
}

/* Under the successor, used by this process. */
static struct arena *adopt(struct world *w, const struct arena *from)
{
    struct arena_offer *o = offer_of(w, from);
    struct arena_user u = user(w);
    struct arena *a = NULL;

    if (arenas_adopt(w->next, o, &u, false, &a, &w->err) < 0)
        fail_msg("%s", w->err.message);
    arena_offer_free(o);
    return a;
}

/* Everything that a snapshot is made of, but for where the object lies. */
static void assert_same(const struct arena *a, const struct arena *b)
{
    struct list *ib = b->snapshots.next;

    list_for_each (it, &a->snapshots) {
        const struct snapshot *x = container_of(it, struct snapshot, link);
        bool any = x->layout->layout.nparts == 0;
        for (uint32_t p = 0; p < x->layout->layout.nparts; p++)
            any |= !x->gone[p];
        if (!any)
            continue; /* nothing of it is left to come back */
        assert_ptr_not_equal(ib, &b->snapshots);
        const struct snapshot *y = container_of(ib, struct snapshot, link);
        assert_int_equal(x->save, y->save);
        assert_int_equal(x->step, y->step);
        assert_int_equal(x->incarnation, y->incarnation);
        assert_int_equal(x->state, y->state);
        assert_int_equal(x->layout->layout.nparts, y->layout->layout.nparts);
        for (uint32_t p = 0; p < x->layout->layout.nparts; p++) {
            assert_int_equal(x->gone[p], y->gone[p]);
            if (!x->gone[p])
                assert_int_equal(x->pages[p], y->pages[p]);
            if (!x->gone[p] && y->state != SNAPSHOT_KEPT)
                assert_int_equal(b->page_state[y->pages[p]], LEDGER_TAKEN);
        }
        ib = ib->next;
    }
    assert_ptr_equal(ib, &b->snapshots);
    assert_int_equal(a->next_save, b->next_save);
}

static void leave(struct arena *a)
{
    arena_detach(a);
    arena_unref(a);
}

static void test_snapshots_come_back(void **state)
{
    struct world *w = *state;
    struct arena *a = attach(w), *b;
    struct snapshot *kept = grant(a, 3, 10), *filled, *begun;

    snapshot_filled(kept);
    snapshot_end(kept, true);
    filled = grant(a, 4, 20);
    snapshot_filled(filled);
    snapshot_durable(filled, 1, 2);
    begun = grant(a, 2, 30);
    b = adopt(w, a);
    assert_int_equal(b->id, a->id);
    assert_int_equal(b->generation, a->generation + 1);
    assert_string_equal(b->job, "j");
    assert_int_equal(b->rank, 2);
    assert_same(a, b);
    assert_int_equal(b->nkept, 3);
    assert_int_equal(b->nfree, PAGES - 9);
    assert_int_equal(arena_find(b, begun->save)->word, begun->word);
    assert_true(arena_find(b, filled->save)->attempt > 0);
    /* What is granted now is nobody's page and nobody's id or word. */
    struct snapshot *more = grant(b, 3, 40);
    for (uint32_t p = 0; p < 3; p++)
        for (uint32_t q = 0; q < 4; q++)
            assert_int_not_equal(more->pages[p], filled->pages[q]);
    assert_true(more->save > begun->save);
    assert_true(more->word != begun->word && more->word != filled->word);
    leave(b);
    leave(a);
}

static struct snapshot *grant_packed(struct arena *a, uint64_t parts, uint64_t step)
{
    struct snapshot *s = grant(a, parts, step);

    snapshot_may_be_packed(s);
    return s;
}

static bool is_packed(const struct arena *a, uint64_t step)
{
    list_for_each (it, &a->snapshots) {
        const struct snapshot *s = container_of(it, struct snapshot, link);
        if (s->step == step)
            return s->packed;
    }
    fail_msg("step %llu did not come back", (unsigned long long)step);
    return false;
}

/* Catches packed pages that another daemon takes for plain ones, also behind a third ledger, and plain ones that it
 * throws away. */
static void test_packed_snapshots(void **state)
{
    struct world *w = *state;
    struct arena *a = attach(w), *b;
    struct snapshot *done = grant_packed(a, 2, 10), *s;

    snapshot_filled(done);
    snapshot_shard_durable(done);
    snapshot_end(done, true);
    grant_packed(a, 2, 20);
    s = grant_packed(a, 2, 30);
    snapshot_filled(s);
    assert_null(arenas_find(w->old, "j", 30, 3, 2)); /* nobody reads it here either */
    s = grant_packed(a, 2, 40);
    snapshot_filled(s);
    snapshot_shard_durable(s);
    assert_ptr_equal(arenas_find(w->old, "j", 40, 3, 2), s);
    snapshot_filled(grant(a, 2, 50));
    assert_int_equal(arena_ledger_renew(a, &(struct arena_keeper){NULL, NULL, NULL}, &w->err), 0);
    b = adopt(w, a);
    assert_same(a, b);
    struct arena_offer *third = offer_of(w, b);
    for (unsigned i = 0; i < third->nsaves; i++) {
        const struct ledger_save *e = ledger_save_at(third->ledger, third->saves[i].slot);
        bool packed = e->step == 20 || e->step == 30;
        assert_int_equal(e->flags, packed ? LEDGER_PACKED : 0);
        assert_int_equal(is_packed(b, e->step), packed);
    }
    assert_int_equal(third->nsaves, 5);
    assert_ptr_equal(arenas_find(w->next, "j", 10, 3, 2), arena_find(b, 1));
    assert_null(arenas_find(w->next, "j", 30, 3, 2));
    arena_offer_free(third);
    leave(b);
    leave(a);
}

/* Catches a daemon that dies of a page that it cannot write to. */
static void test_pages_that_can_be_written_to(void **state)
{
    struct world *w = *state;
    struct arena *a = attach(w), *b = NULL;
    struct arena_user u = user(w);
    struct arena_offer *o = offer_of(w, a);
    char path[40];

    assert_int_equal(arena_make_writable(a, &w->err), 0);
    assert_int_equal(arena_make_writable(a, &w->err), 0);
    a->map[ARENA_CONTROL + a->bytes - 1] = 'x';
    snprintf(path, sizeof path, "/proc/self/fd/%d", a->fd);
    close(o->arena_fd);
    o->arena_fd = open(path, O_RDONLY | O_CLOEXEC); /* as a client may hand it back */
    assert_true(o->arena_fd >= 0);
    assert_int_equal(arenas_adopt(w->next, o, &u, false, &b, &w->err), 0);
    arena_offer_free(o);
    assert_int_equal(b->map[ARENA_CONTROL + b->bytes - 1], 'x');
    assert_true(arena_make_writable(b, &w->err) < 0);
    assert_non_null(strstr(w->err.message, "takes no packed parts"));
    leave(b);
    leave(a);
}

/* The ledger keeps up with every move, and a third daemon reads what the second one wrote. */
static void test_after_any_history(void **state)
{
    struct world *w = *state;
    struct arena *a = attach(w);
    struct snapshot *under_way[16];
    unsigned n = 0;

    srand(7);
    for (unsigned i = 0; i < 400; i++) {
        unsigned what = (unsigned)rand() % 5, at = n ? (unsigned)rand() % n : 0;
        struct shared_layout *l = layout_of(1 + (unsigned)rand() % 4);
        if (what == 0 && n < 16 && arena_grant(a, l, i, 3, &under_way[n], NULL) == 0)
            n++;
        else if (what == 1 && n && under_way[at]->state == SNAPSHOT_GRANTED)
            snapshot_filled(under_way[at]);
        else if (what == 2 && n && under_way[at]->state == SNAPSHOT_FILLED)
            snapshot_durable(under_way[at], (unsigned)rand() % 4, 2);
        else if (what >= 3 && n) {
            bool commit = what == 3 && under_way[at]->state == SNAPSHOT_FILLED;
            snapshot_end(under_way[at], commit);
            under_way[at] = under_way[--n];
        }
        shared_layout_unref(l);
        struct arena *b = adopt(w, a);
        assert_same(a, b);
        leave(b);
        arenas_freeze(w->next); /* a third one */
        arenas_free(w->next);
        assert_int_equal(arenas_new(w->loop, 64 * CAIRN_PART, 60, &w->next, NULL), 0);
    }
    leave(a);
}

static void test_a_stop_leaves_the_ledger(void **state)
{
    struct world *w = *state;
    struct arena *a = attach(w), *b;
    struct snapshot *s = grant(a, 4, 10);

    snapshot_filled(s);
    arenas_freeze(w->old);
    snapshot_end(s, false);
    b = adopt(w, a);
    assert_int_equal(container_of(b->snapshots.next, struct snapshot, link)->state, SNAPSHOT_FILLED);
    assert_int_equal(b->nfree, PAGES - 4);
    leave(b);
    leave(a);
}

static void test_files_that_do_not_belong_together(void **state)
{
    struct world *w = *state;
    struct arena_user u = user(w);
    struct arena *a = attach(w), *other = NULL;
    struct arena_offer *o = NULL;
    int plain = memfd_create("plain", MFD_ALLOW_SEALING);

    u.rank = 3;
    assert_int_equal(arenas_attach(w->old, &u, &other, NULL), 0);
    assert_int_equal(arena_offer_read(other->fd, a->ledger_fd, &o, &w->err), CAIRN_E_INVAL);
    assert_non_null(strstr(w->err.message, "another memory file"));
    assert_int_equal(arena_offer_read(a->fd, plain, &o, &w->err), CAIRN_E_INVAL);
    assert_int_equal(arena_offer_read(plain, a->ledger_fd, &o, &w->err), CAIRN_E_INVAL);
    assert_int_equal(arena_offer_read(a->ledger_fd, a->fd, &o, &w->err), CAIRN_E_INVAL);
    assert_int_equal(arena_offer_read(0, a->ledger_fd, &o, &w->err), CAIRN_E_INVAL);
    assert_null(o);
    /* Nobody but the daemon that made it can write to a ledger. */
    assert_ptr_equal(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, a->ledger_fd, 0), MAP_FAILED);
    assert_int_equal(pwrite(a->ledger_fd, "x", 1, 0), -1);
    close(plain);
    leave(other);
    leave(a);
}

static void test_too_small_or_too_large(void **state)
{
    struct world *w = *state;
    struct arena *a = attach(w), *b = NULL;
    struct arena_user u = user(w);
    struct arena_offer *o = offer_of(w, a);

    u.bytes = (PAGES + 1) * CAIRN_PART;
    assert_int_equal(arenas_adopt(w->next, o, &u, false, &b, &w->err), CAIRN_E_INVAL);
    arenas_free(w->next);
    assert_int_equal(arenas_new(w->loop, (PAGES - 1) * CAIRN_PART, 60, &w->next, NULL), 0);
    u.bytes = PAGES * CAIRN_PART;
    assert_int_equal(arenas_adopt(w->next, o, &u, false, &b, &w->err), CAIRN_E_TOO_LARGE);
    assert_null(b);
    arena_offer_free(o);
    leave(a);
}

/* The connection was lost, the daemon is the same: its own arena goes on, but not with pages that may be written to. */
static void test_back_to_the_same_daemon(void **state)
{
    struct world *w = *state;
    struct arena *a = attach(w), *b = NULL;
    struct arena_user u = user(w);
    struct snapshot *s = grant(a, 2, 10);

    snapshot_filled(s);
    s->owner = w;
    struct arena_offer *o = offer_of(w, a);
    assert_int_equal(arenas_adopt(w->old, o, &u, false, &b, &w->err), CAIRN_E_EXISTS); /* in use */
    leave(a);
    a->unsure = true;
    assert_int_equal(arenas_adopt(w->old, o, &u, true, &b, &w->err), CAIRN_E_ABORTED);
    assert_int_equal(arenas_adopt(w->old, o, &u, false, &b, &w->err), 0);
    assert_ptr_equal(a, b);
    assert_ptr_equal(arena_find(b, s->save), s);
    arena_offer_free(o);
    leave(b);
}

/* From the keeper, while its process lives: a new process of the rank must not get it. */
static void test_the_keepers_arena_waits_for_its_process(void **state)
{
    struct world *w = *state;
    struct arena *a = attach(w), *b = NULL, *c = NULL;
    struct arena_user u = user(w);

    snapshot_filled(grant(a, 2, 10));
    struct arena_offer *o = offer_of(w, a);
    assert_int_equal(arenas_adopt(w->next, o, NULL, false, &b, &w->err), 0);
    arena_offer_free(o);
    assert_int_equal(w->kept.n, 2);
    assert_int_equal(strncmp(w->kept.name[0], "arena-", 6), 0);
    assert_int_equal(strncmp(w->kept.name[1], "ledger-", 7), 0);
    assert_int_equal(w->kept.dropped, 1); /* the ledger of the daemon before */
    assert_true(b->last_pidfd >= 0);
    assert_int_equal(arenas_attach(w->next, &u, &c, NULL), 0);
    assert_ptr_not_equal(b, c);
    leave(c);
    arena_unref(b);
    leave(a);
}

/* The same where nobody can say whether it lives: another PID namespace, a /proc that hides it (catches: pages that a
 * process which lives, or its device, may still be writing to). */
static void test_who_cannot_be_found_may_live(void **state)
{
    struct world *w = *state;
    struct arena *a = attach(w), *b = NULL, *c = NULL;
    struct arena_user u = user(w);

    snapshot_filled(grant(a, 2, 10));
    struct arena_offer *o = offer_of(w, a);
    ((struct ledger_header *)(uintptr_t)ledger_header_of(o->ledger))->pid = 0;
    assert_int_equal(arenas_adopt(w->next, o, NULL, false, &b, &w->err), 0);
    arena_offer_free(o);
    assert_int_equal(arenas_attach(w->next, &u, &c, NULL), 0);
    assert_ptr_not_equal(b, c);
    leave(c);
    arena_unref(b);
    leave(a);
}

static void test_processes_are_told_apart(void **state)
{
    uint64_t start = process_start(getpid());
    int fd = process_open(getpid(), start);

    (void)state;
    assert_true(start > 0);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(process_open(getpid(), start + 1), -1);
    assert_int_equal(process_open(0, start), PROCESS_UNKNOWN);
    assert_int_equal(process_open(getpid(), 0), PROCESS_UNKNOWN);
    assert_int_equal(process_start(-1), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_snapshots_come_back, setup, teardown),
        cmocka_unit_test_setup_teardown(test_packed_snapshots, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pages_that_can_be_written_to, setup, teardown),
        cmocka_unit_test_setup_teardown(test_after_any_history, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_stop_leaves_the_ledger, setup, teardown),
        cmocka_unit_test_setup_teardown(test_files_that_do_not_belong_together, setup, teardown),
        cmocka_unit_test_setup_teardown(test_too_small_or_too_large, setup, teardown),
        cmocka_unit_test_setup_teardown(test_back_to_the_same_daemon, setup, teardown),
        cmocka_unit_test_setup_teardown(test_the_keepers_arena_waits_for_its_process, setup, teardown),
        cmocka_unit_test_setup_teardown(test_who_cannot_be_found_may_live, setup, teardown),
        cmocka_unit_test(test_processes_are_told_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
