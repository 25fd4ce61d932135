/* SPDX-License-Identifier: Apache-2.0 */
/* Drains over peers that the test controls: when a shard counts, what goes on behind it, and that it ends. */
#include "double_links.h"

#include "core/base/error.h"
#include "daemon/node/codecs.h"
#include "daemon/node/drain.h"

#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { PARTS = 40 };

struct fixture {
    struct loop *loop;
    struct workers *workers;
    struct links links;
    struct cairn_layout layout;
    char *arena;
    uint32_t pages[PARTS];
    struct drain *drain;
    unsigned released[PARTS];
    unsigned done, ended, left;
    int code;
    char why[512]; /* of a failure */
    struct hash128 sums[PARTS];
    uint32_t deadline_ms; /* 0: enough */
    bool shares;          /* every second chunk may be its base's */
    unsigned not_same;    /* times that one was not */
    uint32_t same_chunks; /* of the manifest */
    struct numerics_budget budget;
    uint64_t taken_memory; /* of the budget's */
    const char *packer;    /* the codec that parts in the arena are packed with; NULL: they are not */
    struct plugins *plugins;
    char *plain; /* what was packed */
    uint32_t packed[PARTS];
    bool empty; /* the image has no parts, and workers are held up until go */
    struct worker_job late[2];
    sem_t go;
};

/* ---- what the drain tells -------------------------------------------------------------------- */

/* A fragment of these parts, which may be sent from their pages. */
static bool is_on_its_way(const struct list *puts, uint32_t first_part, uint32_t nparts)
{
    list_for_each (it, puts) {
        uint32_t at = container_of(it, struct link_put, link)->fragment->key.first_part;
        if (at >= first_part && at < first_part + nparts)
            return true;
    }
    return false;
}

static void on_durable(void *arg, uint32_t first_part, uint32_t nparts)
{
    struct fixture *f = arg;

    assert_int_equal(f->ended, 0);
    for (uint32_t p = first_part; p < first_part + nparts; p++)
        f->released[p]++;
    for (unsigned i = 0; i < f->links.npeers; i++)
        assert_false(is_on_its_way(&f->links.link[i].slots, first_part, nparts) ||
                     is_on_its_way(&f->links.link[i].queue, first_part, nparts));
}

/* However often its parts were encoded: what one look at the tensor says. */
static void check_numerics(const struct fixture *f, const struct shard_ref *ref, const struct manifest *m)
{
    const struct cairn_slice *s = &f->layout.slices[0];
    if (f->taken_memory) {
        assert_false(m->numerics || ref->numerics.known);
        return;
    }
    struct cairn_nonfinite bad = {0};
    struct cairn_digest d = {0};

    cairn_numerics_add(&d, &bad, s->dtype, 0, f->arena, s->bytes);
    struct hash128 want = cairn_digest_end(&d, s->bytes, s->dtype);
    assert_non_null(m->numerics);
    assert_true(m->numerics[0].known && bad.nan > 0);
    assert_int_equal(m->numerics[0].bad.nan, bad.nan);
    assert_true(m->numerics[0].digest.low == want.low && m->numerics[0].digest.high == want.high);
    assert_true(ref->numerics.known);
    assert_int_equal(ref->numerics.bad.nan, bad.nan);
    assert_int_equal(ref->numerics.common, 0);
}

static void on_done(void *arg, int code, const struct cairn_error *err, const struct shard_ref *ref,
                    const struct manifest *manifest)
{
    struct fixture *f = arg;

    if (code < 0 && code != CAIRN_E_ABORTED && code != CAIRN_E_CORRUPT)
        print_error("%s\n", err->message);
    assert_int_equal(f->done++, 0);
    assert_int_equal(f->ended, 0);
    f->code = code;
    snprintf(f->why, sizeof f->why, "%s", code < 0 ? err->message : "");
    if (code < 0)
        return;
    assert_non_null(ref);
    uint32_t parts = 0;
    for (uint32_t i = 0; i < manifest->nchunks; i++) {
        assert_int_equal(manifest->chunks[i].first_part, parts);
        parts += manifest->chunks[i].k;
        f->same_chunks += manifest->chunks[i].same;
    }
    assert_int_equal(manifest->base.is_set, f->same_chunks > 0);
    if (f->empty) {
        assert_int_equal(manifest->nchunks, 0);
        assert_int_equal(manifest->world_size, 1);
        return;
    }
    if (f->shares) /* what is not encoded is looked at all the same */
        assert_true(manifest->numerics[0].known);
    assert_int_equal(parts, PARTS);
    check_numerics(f, ref, manifest);
}

static void on_ended(void *arg, unsigned left)
{
    struct fixture *f = arg;

    assert_int_equal(f->done, 1);
    assert_int_equal(f->ended++, 0);
    f->left = left;
    f->drain = NULL;
}

/* ---- the fixture ----------------------------------------------------------------------------- */

enum { SEED = 77, FILLED = UINT32_MAX };

/* The base has every second chunk of this snapshot, but the third of them. */
static bool maybe_same(void *arg, const struct manifest_base *against, uint32_t first_part, unsigned k,
                       struct cairn_delta *ret)
{
    struct fixture *f = arg;

    assert_int_equal(against->step, 0);
    if (!f->shares || first_part / 4 % 2)
        return false;
    *ret = (struct cairn_delta){.incarnation = 1, .depth = 1};
    ret->entry = cairn_hash128(f->arena + ((size_t)first_part << 20), (size_t)k << 20);
    ret->entry.low ^= first_part == 16;
    return true;
}

static void not_same(void *arg, const struct manifest_base *against, uint32_t first_part)
{
    struct fixture *f = arg;

    (void)against;
    assert_int_equal(first_part, 16);
    f->not_same++;
}

static bool no_base(void *arg, const struct manifest_base *against, uint32_t first_part, unsigned k,
                    struct cairn_delta *ret, const char **ret_plain)
{
    (void)arg;
    (void)against;
    (void)first_part;
    (void)k;
    (void)ret;
    (void)ret_plain;
    return false;
}

/* Packs all parts of the arena but every fifth. */
static void pack(struct fixture *f)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct codec *codec;
    uint64_t r = 1;

    assert_int_equal(plugins_new(PLUGIN_DIR, &f->plugins, &err), 0);
    assert_int_equal(codecs_new(f->plugins, "raw float", 2, 0, &f->links.codecs, &err), 0);
    assert_int_equal(plugins_codec(f->plugins, f->packer, &codec, &err), 0);
    f->plain = malloc((size_t)PARTS << 20);
    assert_non_null(f->plain);
    for (size_t i = 0; i < (size_t)PARTS << 20; i++) { /* some bytes are commoner than others */
        r = r * 6364136223846793005ull + 1442695040888963407ull;
        f->plain[i] = (char)(i % 997 ? 0x30 + __builtin_ctz((unsigned)(r >> 33) | 1u << 20) : 0x7f);
    }
    memcpy(f->arena, f->plain, (size_t)PARTS << 20);
    for (uint32_t p = 0; p < PARTS; p++) {
        char *page = f->arena + ((size_t)p << 20);
        if (p % 5 == 4)
            continue;
        int64_t n =
            codec_encode(codec, f->plain + ((size_t)p << 20), CAIRN_PART, CAIRN_F8_E4M3, page, CAIRN_PART * 19 / 20);
        assert_true(n > 0);
        f->packed[p] = (uint32_t)n;
    }
}

static void wait_for_go(struct worker_job *job)
{
    (void)sem_wait(job->arg);
}

static void gone(struct worker_job *job)
{
    (void)job;
}

static void hold_workers_up(struct fixture *f)
{
    assert_int_equal(sem_init(&f->go, 0, 0), 0);
    for (int i = 0; i < 2; i++) {
        f->late[i] = (struct worker_job){.run = wait_for_go, .done = gone, .arg = &f->go};
        workers_submit(f->workers, &f->late[i]);
    }
}

/* in_place: parts of a snapshot that is not filled; FILLED: it is. */
static void start_with(struct fixture *f, unsigned peers, unsigned buffers, unsigned margin, uint64_t plan_ns,
                       uint32_t in_place)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    uint64_t n = (uint64_t)PARTS << 20;
    struct cairn_tensor t = {
        .size = sizeof t, .name = "w", .dtype = CAIRN_F8_E4M3, .ndim = 1, .shape = &n, .offset = NULL, .length = NULL};

    *f = (struct fixture){.shares = f->shares,
                          .deadline_ms = f->deadline_ms,
                          .taken_memory = f->taken_memory,
                          .packer = f->packer,
                          .empty = f->empty};
    assert_int_equal(loop_new(64, &f->loop, &err), 0);
    assert_int_equal(workers_new(f->loop, 2, &f->workers, &err), 0);
    if (f->empty)
        hold_workers_up(f);
    double_init(&f->links, f->loop, f->workers, peers, buffers);
    f->links.config.margin = margin;
    cairn_layout_init(&f->layout);
    if (!f->empty)
        assert_int_equal(cairn_layout_add(&f->layout, &t, &err), 0);
    assert_int_equal(cairn_layout_place(&f->layout, &err), 0);
    assert_int_equal(f->layout.nparts, f->empty ? 0 : PARTS);
    f->arena = malloc((size_t)n);
    assert_non_null(f->arena);
    for (size_t i = 0; i < n; i++)
        f->arena[i] = (char)(i * 2654435761u >> 13);
    for (uint32_t i = 0; i < PARTS; i++)
        f->pages[i] = i;
    f->budget = (struct numerics_budget){.used = f->taken_memory, .max = 1 << 20};
    if (f->packer)
        pack(f);
    struct drain_spec spec = {.job = "j",
                              .step = 1,
                              .incarnation = 1,
                              .world_size = 1,
                              .layout = &f->layout,
                              .arena = f->arena,
                              .pages = f->pages,
                              .packed = f->packer ? f->packed : NULL,
                              .deadline_ms = f->deadline_ms ? f->deadline_ms : 20000,
                              .numerics = &f->budget,
                              .filling = in_place != FILLED,
                              .in_place = in_place,
                              .arg = f,
                              .durable = on_durable,
                              .done = on_done,
                              .ended = on_ended,
                              .against = {.is_set = f->shares, .incarnation = 1, .node = "n"},
                              .base = no_base,
                              .maybe_same = maybe_same,
                              .not_same = not_same};
    if (plan_ns)
        spec.pace = (struct cairn_pace){.total = PARTS,
                                        .begin_ns = loop_now_ns(f->loop),
                                        .end_ns = loop_now_ns(f->loop) + plan_ns,
                                        .why = CAIRN_PACED};
    assert_int_equal(drain_start(&f->links, &spec, &f->drain, &err), 0);
}

static void start(struct fixture *f, unsigned peers, unsigned buffers, unsigned margin)
{
    start_with(f, peers, buffers, margin, 0, FILLED);
}

static void finish(struct fixture *f)
{
    assert_int_equal(f->ended, 1);
    assert_int_equal(f->budget.used, f->taken_memory);
    workers_free(f->workers);
    loop_free(f->loop);
    double_free(&f->links);
    codecs_free(f->links.codecs);
    plugins_free(f->plugins);
    cairn_layout_free(&f->layout);
    free(f->arena);
    free(f->plain);
}

static void turn(struct fixture *f)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    double_work(&f->links);
    assert_int_equal(loop_turn(f->loop, 1, &err), 0);
}

static void turn_until(struct fixture *f, const unsigned *what)
{
    for (unsigned i = 0; i < 20000 && !*what; i++)
        turn(f);
    assert_int_equal(*what, 1);
}

static void turns(struct fixture *f, unsigned n)
{
    while (n--)
        turn(f);
}

/* The peer has been sent more than it has slots, or anything at all. */
static void turn_until_holding(struct fixture *f, struct link *l, bool queued)
{
    unsigned i = 0;

    while (i++ < 20000 && (queued ? list_empty(&l->queue) || l->busy < l->nslots : l->busy == 0))
        turn(f);
    assert_true(i < 20000);
}

/* So many fragments of every chunk are on the peers' disks, by the peers' own count. */
static uint64_t synced(const struct fixture *f)
{
    uint64_t n = 0;

    for (unsigned i = 0; i < f->links.npeers; i++)
        n += f->links.link[i].synced;
    return n;
}

static uint64_t stored(const struct fixture *f)
{
    uint64_t n = 0;

    for (unsigned i = 0; i < f->links.npeers; i++)
        n += f->links.link[i].stored;
    return n;
}

static void all_released_once(const struct fixture *f)
{
    for (unsigned p = 0; p < PARTS; p++)
        assert_int_equal(f->released[p], 1);
}

/* ---- the tests ------------------------------------------------------------------------------- */

/* One is still on its way to a late peer and has been stored by a spare, another is lost with its peer, and when it is
 * made again the snapshot is another one (catches: pages that are given away while they are sent, a chunk that is made
 * again for ever). */
static void test_changed_while_one_is_sent(void **state)
{
    struct fixture f = {.shares = false};
    (void)state;

    start(&f, 8, 64, 1);
    f.links.link[1].holds = true;
    f.links.link[3].holds_syncs = true;
    turn_until_holding(&f, &f.links.link[1], false);
    f.links.link[1].late = true; /* spares take its fragments; what is in its slots stays there */
    turn_until(&f, &f.done);
    assert_int_equal(f.code, 0);
    assert_true(f.links.link[1].busy > 0);
    memset(f.arena, 0x77, (size_t)PARTS << 20);
    double_fail(&f.links.link[3]); /* what it had not synced is made again, where there is a peer */
    turns(&f, 100);
    assert_int_equal(f.ended, 0);
    f.links.link[1].holds = f.links.link[1].late = false;
    turn_until(&f, &f.ended);
    all_released_once(&f);
    assert_true(f.left > 0);
    finish(&f);
}

/* Catches a drain that leaves late fragments behind though nobody is late. */
static void test_nobody_is_late(void **state)
{
    struct fixture f = {.shares = false};
    (void)state;

    start(&f, 6, 24, 0);
    turn_until(&f, &f.ended);
    assert_int_equal(f.code, 0);
    assert_int_equal(f.left, 0);
    assert_int_equal(synced(&f), PARTS / 4 * 6);
    assert_true(f.links.synced_at_blob >= PARTS / 4 * 5); /* Stored is not durable */
    assert_int_equal(f.links.counts.fragments_dropped + f.links.counts.fragments_spared, 0);
    all_released_once(&f);
    finish(&f);
}

/* Catches a save that fails where only the look at its numbers does not fit. */
static void test_no_memory_for_numbers(void **state)
{
    struct fixture f = {.taken_memory = (1 << 20) - 1000};
    (void)state;

    start(&f, 6, 24, 0);
    turn_until(&f, &f.ended);
    assert_int_equal(f.code, 0);
    all_released_once(&f);
    finish(&f);
}

/* A peer holds what it has and there is no spare: five of six count, the pages go, and it ends when that peer fails
 * (catches: a commit that waits for all, an end that waits for nobody, pages that are kept for good). */
static void test_a_hung_peer_without_a_spare(void **state)
{
    struct fixture f = {.shares = false};
    (void)state;

    start(&f, 6, 24, 0);
    f.links.link[2].holds = true;
    turn_until_holding(&f, &f.links.link[2], false);
    f.links.link[2].late = true;
    turn_until(&f, &f.done);
    assert_int_equal(f.code, 0);
    assert_true(f.links.synced_at_blob >= PARTS / 4 * 5);
    turns(&f, 20);
    assert_int_equal(f.ended, 0); /* its slots' buffers may still be read, and so may the pages */
    double_fail(&f.links.link[2]);
    turn_until(&f, &f.ended);
    all_released_once(&f);
    assert_true(f.left > 0);
    assert_int_equal(f.links.counts.fragments_left, f.left);
    finish(&f);
}

/* With the margin at m nothing counts until the stripes are full, on that peer or on others (catches: a margin that is
 * not asked). */
static void test_a_full_margin_waits(void **state)
{
    struct fixture f = {.shares = false};
    (void)state;

    start(&f, 6, 24, 2);
    f.links.link[2].holds = true;
    turn_until_holding(&f, &f.links.link[2], false);
    f.links.link[2].late = true;
    turns(&f, 200);
    assert_int_equal(f.done, 0);
    double_fail(&f.links.link[2]); /* now its chunks are striped again for five */
    turn_until(&f, &f.ended);
    assert_int_equal(f.code, 0);
    assert_int_equal(f.left, 0);
    all_released_once(&f);
    finish(&f);
}

/* With spares a late peer costs nothing at all: the shard is full without it (catches: a late fragment that waits for
 * its own peer, a copy that overwrites the buffer under the late one). */
static void test_spares_take_over(void **state)
{
    struct fixture f = {.shares = false};
    (void)state;

    start(&f, 8, 36, 2);
    f.links.link[1].holds = true;
    turn_until_holding(&f, &f.links.link[1], false);
    f.links.link[1].late = true;
    turn_until(&f, &f.done);
    assert_int_equal(f.code, 0);
    assert_int_equal(synced(&f), PARTS / 4 * 6);
    assert_true(f.links.counts.fragments_spared > 0);
    double_fail(&f.links.link[1]);
    turn_until(&f, &f.ended);
    assert_int_equal(f.left, 0);
    finish(&f);
}

/* It was only slow: both copies are stored, and the shard is full once (catches: a fragment counted twice). */
static void test_the_late_one_answers_after_all(void **state)
{
    struct fixture f = {.shares = false};
    (void)state;

    start(&f, 8, 36, 2);
    f.links.link[1].holds = true;
    turn_until_holding(&f, &f.links.link[1], false);
    f.links.link[1].late = true;
    turns(&f, 5);
    f.links.link[1].holds = f.links.link[1].late = false;
    turn_until(&f, &f.ended);
    assert_int_equal(f.code, 0);
    assert_int_equal(f.left, 0);
    all_released_once(&f);
    finish(&f);
}

/* A pool for two chunks and a peer that takes one fragment at a time into its slots: what queues for it is dropped, the
 * others go on, and what was dropped is made again when it recovers (catches: a pool that one peer fills, a dropped
 * fragment that is forgotten). */
static void test_short_of_buffers(void **state)
{
    struct fixture f = {.shares = false};
    (void)state;

    start(&f, 6, 12, 0);
    f.links.link[4].holds = true;
    f.links.link[4].nslots = 1;
    f.links.holds_blob = true;
    turn_until_holding(&f, &f.links.link[4], true);
    f.links.link[4].late = true;
    for (unsigned i = 0; i < 20000 && !f.links.blob.done; i++)
        turn(&f);
    assert_non_null(f.links.blob.done); /* everything counts: the manifest is on its way */
    assert_true(f.links.counts.fragments_dropped > 0);
    f.links.link[4].holds = f.links.link[4].late = false;
    f.links.holds_blob = false;
    turn_until(&f, &f.ended);
    assert_int_equal(f.left, 0);
    all_released_once(&f);
    finish(&f);
}

/* What was stored and not synced when its peer failed is lost, and made again elsewhere (catches: Stored taken for
 * durable). */
static void test_a_peer_fails_before_its_sync(void **state)
{
    struct fixture f = {.shares = false};
    (void)state;

    start(&f, 7, 36, 0);
    for (unsigned i = 0; i < 2000 && f.links.link[3].stored < 4; i++)
        turn(&f);
    assert_true(f.links.link[3].stored >= 4);
    double_fail(&f.links.link[3]);
    turn_until(&f, &f.ended);
    assert_int_equal(f.code, 0);
    assert_int_equal(f.left, 0);
    assert_true(synced(&f) >= PARTS / 4 * 6);
    finish(&f);
}

/* Cancelled before and behind done(): done() once, ended() once, nothing is left in a queue (catches: a tail that
 * outlives an abort). */
static void test_cancelled(void **state)
{
    for (unsigned behind = 0; behind < 2; behind++) {
        struct fixture f = {.shares = false};
        (void)state;
        start(&f, 6, 24, 0);
        f.links.link[0].holds = true;
        turn_until_holding(&f, &f.links.link[0], false);
        f.links.link[0].late = true;
        if (behind)
            turn_until(&f, &f.done);
        else
            turns(&f, 5);
        drain_cancel(f.drain);
        turns(&f, 5);
        if (!f.ended) /* a worker, or a slot of the peer that holds */
            double_fail(&f.links.link[0]);
        turn_until(&f, &f.ended);
        assert_int_equal(f.code, behind ? 0 : CAIRN_E_ABORTED);
        finish(&f);
    }
}

/* A peer that neither answers nor fails: what is behind done() has a bound (catches: a tail without a deadline). */
/* An image of nothing is durable at once. Catches a manifest that is begun before its tables are there. */
static void test_nothing_to_store(void **state)
{
    struct fixture f = {.empty = true};

    (void)state;
    start(&f, 3, 16, 0);
    turns(&f, 50);
    assert_int_equal(f.done, 0);
    sem_post(&f.go);
    sem_post(&f.go);
    turn_until(&f, &f.ended);
    assert_int_equal(f.code, 0);
    finish(&f);
}

static void test_the_tail_has_a_deadline(void **state)
{
    struct fixture f = {.shares = false};
    (void)state;

    start(&f, 6, 24, 0);
    f.links.link[3].holds_syncs = true;
    turn_until(&f, &f.ended);
    assert_int_equal(f.code, 0);
    assert_int_equal(f.left, PARTS / 4);
    all_released_once(&f);
    finish(&f);
    start(&f, 6, 24, 0);
    f.links.link[5].nslots = 0; /* all queue for it */
    f.links.link[5].holds = true;
    turn_until_holding(&f, &f.links.link[5], true);
    f.links.link[5].late = true;
    turn_until(&f, &f.ended);
    assert_int_equal(f.code, 0);
    assert_true(f.left > 0);
    all_released_once(&f);
    finish(&f);
}

/* Catches buffers and slots that a flush holds while it takes its time, a plan that nothing follows, and a hurry that
 * changes nothing. */
static void test_paced(void **state)
{
    struct fixture f = {.shares = false};
    struct drain_status st;
    char why[200];
    (void)state;

    start_with(&f, 6, 24, 0, (uint64_t)3600 * 1000000000, FILLED);
    for (unsigned i = 0; i < 20000 && stored(&f) < 6; i++)
        turn(&f);
    turns(&f, 200);
    assert_int_equal(stored(&f), 6); /* its first chunk */
    assert_int_equal(f.links.nfree, f.links.nbuffers);
    drain_status_of(f.drain, &st);
    assert_int_equal(st.taken_parts, 4);
    assert_int_equal(st.pace.why, CAIRN_PACED);
    drain_why(f.drain, why, sizeof why);
    assert_non_null(strstr(why, "paced: 0% of 3600.0 s"));
    drain_hurry(f.drain, CAIRN_PACE_WAITED);
    turn_until(&f, &f.ended);
    assert_int_equal(f.code, 0);
    assert_int_equal(f.left, 0);
    all_released_once(&f);
    finish(&f);
}

static unsigned released(const struct fixture *f)
{
    unsigned n = 0;

    for (unsigned p = 0; p < PARTS; p++)
        n += f->released[p];
    return n;
}

static void turn_until_stored(struct fixture *f, uint64_t n)
{
    for (unsigned i = 0; i < 20000 && stored(f) < n; i++)
        turn(f);
    turns(f, 50);
    assert_int_equal(stored(f), n);
}

/* A snapshot that is filled in steps: nothing above the mark is read, nothing is given back or told before it is filled
 * (catches: a chunk across the mark, a manifest or a page that goes too early, one that never goes). */
static void test_filled_in_steps(void **state)
{
    struct fixture f = {.shares = false};
    struct drain_status st;
    char why[200];
    (void)state;

    start_with(&f, 6, 24, 2, 0, 6);
    memset(f.arena + ((size_t)6 << 20), 0, (size_t)(PARTS - 6) << 20); /* not there yet */
    turn_until_stored(&f, 6);                                          /* the chunk of the first four */
    drain_in_place(f.drain, 8);
    turn_until_stored(&f, 12);
    drain_why(f.drain, why, sizeof why);
    assert_non_null(strstr(why, "of 40 parts durable, 8 in place so far"));
    for (size_t i = 8; i < PARTS; i++)
        memset(f.arena + (i << 20), (int)i, (size_t)1 << 20);
    drain_in_place(f.drain, 7); /* it does not shrink */
    drain_in_place(f.drain, PARTS);
    turn_until_stored(&f, PARTS / 4 * 6);
    for (unsigned i = 0; i < 2000 && synced(&f) < PARTS / 4 * 6; i++)
        turn(&f);
    assert_int_equal(synced(&f), PARTS / 4 * 6);
    turns(&f, 50);
    assert_int_equal(f.done + released(&f), 0);
    assert_false(f.links.blob.done);
    drain_status_of(f.drain, &st);
    assert_int_equal(st.durable_parts, PARTS);
    assert_int_equal(st.early_parts, PARTS);
    drain_filled(f.drain);
    turn_until(&f, &f.ended);
    assert_int_equal(f.code, 0);
    assert_int_equal(f.left, 0);
    all_released_once(&f);
    finish(&f);
}

/* Catches early fragments that keep a cancelled drain, and peers that are away while there is time taken for a failure.
 */
static void test_never_filled(void **state)
{
    struct fixture f = {.shares = false};
    (void)state;

    start_with(&f, 6, 24, 0, 0, 8);
    for (unsigned i = 0; i < f.links.npeers; i++)
        double_fail(&f.links.link[i]);
    f.links.config.sync_late_ms = 1;
    turns(&f, 50);
    assert_int_equal(f.done, 0);
    drain_cancel(f.drain);
    turn_until(&f, &f.ended);
    assert_int_equal(f.code, CAIRN_E_ABORTED);
    assert_int_equal(released(&f), 0);
    finish(&f);
}

/* Catches a trainer's time taken for the peers', and a drain that waits for a peer without an end. */
static void test_the_deadline_is_from_filled(void **state)
{
    struct fixture f = {.deadline_ms = 40};
    (void)state;

    start_with(&f, 6, 24, 2, 0, 8);
    f.links.link[3].holds_syncs = true;
    for (uint64_t begun = loop_now_ns(f.loop); loop_now_ns(f.loop) - begun < 80 * 1000000ull;)
        turn(&f);
    assert_int_equal(f.done, 0);
    drain_filled(f.drain);
    turn_until(&f, &f.ended);
    assert_int_equal(f.code, CAIRN_E_TIMEOUT);
    finish(&f);
}

/* Sums that come when some chunks are stored already: all parts are compared with them, those too (catches: early
 * chunks that are not compared, one part of a chunk that is not, a manifest that does not wait for the last
 * comparison). */
static void test_sums(void **state)
{
    (void)state;
    for (unsigned wrong = 13; wrong <= PARTS + 25; wrong += 26) { /* 13: stored before; 39: after */
        struct fixture f = {.shares = false};
        start_with(&f, 6, 24, 0, 0, 16);
        turn_until_stored(&f, 4 * 6);
        for (uint32_t i = 0; i < PARTS; i++)
            f.sums[i] = cairn_hash128_seeded(f.arena + ((size_t)i << 20), (size_t)1 << 20, SEED);
        f.sums[(wrong + 1) % PARTS] = (struct hash128){0, 0}; /* not known */
        if (wrong < PARTS)
            f.sums[wrong].high ^= 1;
        drain_sums(f.drain, f.sums, SEED);
        drain_in_place(f.drain, 30);
        drain_filled(f.drain);
        turn_until(&f, &f.ended);
        assert_int_equal(f.code, wrong < PARTS ? CAIRN_E_CORRUPT : 0);
        if (wrong < PARTS) {
            char what[80];
            snprintf(what, sizeof what, "rank 0 part %u: what arrived in the arena is not", wrong);
            assert_non_null(strstr(f.why, what));
            assert_non_null(strstr(f.why, "tensor \"w\""));
        } else {
            all_released_once(&f);
        }
        finish(&f);
    }
}

/* Sums that come while a chunk is being encoded without them (catches: one that is never compared). */
static void test_sums_meanwhile(void **state)
{
    struct fixture f = {.shares = false};
    (void)state;

    start_with(&f, 6, 24, 0, 0, 4);
    turns(&f, 1);
    for (uint32_t i = 0; i < PARTS; i++)
        f.sums[i] = cairn_hash128_seeded(f.arena + ((size_t)i << 20), (size_t)1 << 20, SEED);
    f.sums[2].low ^= 1;
    drain_sums(f.drain, f.sums, SEED);
    drain_in_place(f.drain, PARTS);
    drain_filled(f.drain);
    turn_until(&f, &f.ended);
    assert_int_equal(f.code, CAIRN_E_CORRUPT);
    finish(&f);
}

/* Everything is stored, only the comparison is not made (catches: a manifest, or a page, that does not wait for it). */
static void test_the_last_comparison(void **state)
{
    struct fixture f = {.shares = false};
    (void)state;

    start_with(&f, 6, 24, 0, 0, PARTS);
    turn_until_stored(&f, PARTS / 4 * 6);
    for (unsigned i = 0; i < 2000 && synced(&f) < PARTS / 4 * 6; i++)
        turn(&f);
    for (uint32_t i = 0; i < PARTS; i++)
        f.sums[i] = cairn_hash128_seeded(f.arena + ((size_t)i << 20), (size_t)1 << 20, SEED);
    f.sums[PARTS - 1].low ^= 1;
    drain_sums(f.drain, f.sums, SEED);
    drain_filled(f.drain);
    turn_until(&f, &f.ended);
    assert_int_equal(f.code, CAIRN_E_CORRUPT);
    assert_int_equal(released(&f), 0);
    finish(&f);
}

/* Packed parts, before all are in place and after, and a peer that takes what it stored along (catches: parts whose
 * length is not known yet, pages that stay packed, fragments made again that are others). */
static void test_packed(void **state)
{
    struct fixture f = {.packer = "float"};
    (void)state;

    start_with(&f, 7, 36, 2, 0, 8);
    f.links.link[3].holds_syncs = true;
    uint32_t lens[PARTS];
    memcpy(lens, f.packed, sizeof lens);
    memset(f.packed + 8, 0, (PARTS - 8) * sizeof f.packed[0]); /* not said yet */
    turn_until_stored(&f, 12);
    for (uint32_t p = 0; p < 8; p++)
        assert_int_equal(f.packed[p], 0);
    assert_memory_equal(f.arena, f.plain, (size_t)8 << 20);
    memcpy(f.packed + 8, lens + 8, (PARTS - 8) * sizeof f.packed[0]);
    drain_in_place(f.drain, PARTS);
    for (uint32_t i = 0; i < PARTS; i++)
        f.sums[i] = cairn_hash128_seeded(f.plain + ((size_t)i << 20), (size_t)1 << 20, SEED);
    drain_sums(f.drain, f.sums, SEED);
    double_fail(&f.links.link[3]);
    drain_filled(f.drain);
    turn_until(&f, &f.ended);
    assert_int_equal(f.code, 0);
    assert_int_equal(f.left, 0);
    all_released_once(&f);
    assert_memory_equal(f.arena, f.plain, (size_t)PARTS << 20);
    assert_int_equal(f.links.counts.packed_plain_bytes, (PARTS - PARTS / 5) * CAIRN_PART);
    uint64_t packed = 0;
    for (uint32_t p = 0; p < PARTS; p++)
        packed += lens[p];
    assert_int_equal(f.links.counts.packed_bytes, packed);
    finish(&f);
}

/* Catches a save that counts without a part that cannot be unpacked, and fragments of one chunk that do not go
 * together: of a device that packs as another codec does. */
static void test_packed_wrongly(void **state)
{
    (void)state;
    for (unsigned dense = 0; dense < 2; dense++) {
        struct fixture f = {.packer = dense ? "dense" : "float"};
        start_with(&f, 7, 36, 2, 0, dense ? 8 : PARTS);
        f.links.link[3].holds_syncs = true;
        if (!dense) {
            f.arena[(size_t)13 << 20 | 5] ^= 1;
            drain_filled(f.drain);
        } else {
            turn_until_stored(&f, 12);
            double_fail(&f.links.link[3]);
        }
        turn_until(&f, &f.ended);
        assert_int_equal(f.code, CAIRN_E_CORRUPT);
        assert_non_null(strstr(f.why, dense
                                          ? "was packed on its device as the codec \"float\" does not"
                                          : "rank 0 part 13: what arrived in the arena is not what the device packed"));
        assert_int_equal(released(&f), 0);
        finish(&f);
    }
}

/* Chunks that the base has are not sent, count, and give their pages back (catches: parity of what is not there, a
 * chunk that waits for fragments it never had). */
static void test_shared(void **state)
{
    struct fixture f = {.shares = true};
    struct drain_status st;
    (void)state;

    start_with(&f, 6, 24, 2, 0, 24);
    turn_until_stored(&f, 4 * 6); /* of six chunks, two are the base's */
    drain_status_of(f.drain, &st);
    assert_int_equal(st.shared_parts, 8);
    assert_int_equal(released(&f), 0);
    drain_filled(f.drain);
    turn_until(&f, &f.ended);
    assert_int_equal(f.code, 0);
    assert_int_equal(f.left, 0);
    assert_int_equal(f.same_chunks, 4);
    assert_int_equal(f.not_same, 1);
    assert_int_equal(synced(&f), 6 * 6);
    all_released_once(&f);
    finish(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nobody_is_late),
        cmocka_unit_test(test_no_memory_for_numbers),
        cmocka_unit_test(test_changed_while_one_is_sent),
        cmocka_unit_test(test_a_hung_peer_without_a_spare),
        cmocka_unit_test(test_a_full_margin_waits),
        cmocka_unit_test(test_spares_take_over),
        cmocka_unit_test(test_the_late_one_answers_after_all),
        cmocka_unit_test(test_short_of_buffers),
        cmocka_unit_test(test_a_peer_fails_before_its_sync),
        cmocka_unit_test(test_cancelled),
        cmocka_unit_test(test_paced),
        cmocka_unit_test(test_filled_in_steps),
        cmocka_unit_test(test_never_filled),
        cmocka_unit_test(test_the_deadline_is_from_filled),
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_sums_meanwhile),
        cmocka_unit_test(test_the_last_comparison),
        cmocka_unit_test(test_packed),
        cmocka_unit_test(test_packed_wrongly),
        cmocka_unit_test(test_shared),
        cmocka_unit_test(test_nothing_to_store),
        cmocka_unit_test(test_the_tail_has_a_deadline),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
