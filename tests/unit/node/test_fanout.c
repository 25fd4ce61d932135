/* SPDX-License-Identifier: Apache-2.0 */
/* The fan-out over gathers that the test ends: what is read once, who fails with whom, and that nothing stays behind.
 */
#include "daemon/node/fanout.h"

#include "core/base/error.h"
#include "core/model/units.h"
#include "daemon/node/link.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { CHUNKS = 6, K = 4, READERS = 8 };

/* ---- the doubles ----------------------------------------------------------------------------- */

struct links { /* a double: the fan-out asks it for the loop and the workers only */
    struct loop *loop;
    struct workers *workers;
    struct gather *gathers[16]; /* under way, in order */
    unsigned ngathers, started, cancelled;
    uint32_t last_mask;
};

struct loop *links_loop(struct links *l)
{
    return l->loop;
}

struct workers *links_workers(struct links *l)
{
    return l->workers;
}

void gather_start(struct links *l, struct gather *g)
{
    l->gathers[l->ngathers++] = g;
    l->started++;
    l->last_mask = g->part_mask;
    g->state = l;
}

void gather_cancel(struct links *l, struct gather *g)
{
    (void)g;
    l->cancelled++;
}

void gather_why(const struct gather *g, char ret[GATHER_WHY])
{
    snprintf(ret, GATHER_WHY, "%s", g ? "no answer from p7" : "peers are slow");
}

void checkpoint_unref(struct checkpoint *c)
{
    assert_true(c->refs > 0);
    c->refs--;
}

/* ---- the fixture ----------------------------------------------------------------------------- */

struct reader {
    struct fanout_read read;
    char *target;
    unsigned done;
    int code;
    char message[600];
};

struct fixture {
    struct links links;
    struct fanout *fanout;
    struct checkpoint checkpoint;
    struct manifest manifest;
    struct chunk_record chunks[CHUNKS];
    struct reader readers[READERS];
};

static char byte_of(uint32_t chunk, unsigned part)
{
    return (char)(1 + chunk * K + part);
}

static void setup_patient(struct fixture *f, uint64_t max_bytes, uint32_t patience_ms)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    memset(f, 0, sizeof *f);
    assert_int_equal(loop_new(64, &f->links.loop, &err), 0);
    assert_int_equal(workers_new(f->links.loop, 2, &f->links.workers, &err), 0);
    assert_int_equal(fanout_new(&f->links, max_bytes, patience_ms, &f->fanout, &err), 0);
    f->checkpoint.refs = 1;
    snprintf(f->manifest.job, sizeof f->manifest.job, "test");
    f->manifest.chunks = f->chunks;
    f->manifest.nchunks = CHUNKS;
    for (uint32_t i = 0; i < CHUNKS; i++) {
        f->chunks[i].first_part = i * K;
        f->chunks[i].k = K;
        for (unsigned j = 0; j < K; j++)
            f->chunks[i].part[j].plain_len = CAIRN_PART;
    }
    for (unsigned i = 0; i < READERS; i++)
        f->readers[i].target = calloc(K, CAIRN_PART);
}

static void setup_with(struct fixture *f, uint64_t max_bytes)
{
    setup_patient(f, max_bytes, 60000);
}

static void turns(struct fixture *f, unsigned n)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    while (n--)
        assert_true(loop_turn(f->links.loop, 1, &err) >= 0);
}

static void teardown(struct fixture *f)
{
    uint64_t bytes, limit;

    turns(f, 5);
    assert_false(fanout_busy(f->fanout));
    fanout_usage(f->fanout, &bytes, &limit);
    assert_true(bytes <= limit);
    fanout_free(f->fanout);
    assert_int_equal(f->checkpoint.refs, 1); /* of the fixture: nobody else has it */
    workers_free(f->links.workers);
    turns(f, 5);
    loop_free(f->links.loop);
    for (unsigned i = 0; i < READERS; i++)
        free(f->readers[i].target);
}

static void on_done(struct fanout_read *r, int code, const struct cairn_error *err)
{
    struct reader *rd = r->arg;

    rd->done++;
    rd->code = code;
    if (code < 0)
        snprintf(rd->message, sizeof rd->message, "%s", err->message);
}

static struct reader *ask(struct fixture *f, unsigned reader, uint32_t chunk, uint32_t mask, uint32_t timeout_ms)
{
    struct reader *rd = &f->readers[reader];

    rd->done = 0;
    memset(rd->target, 0, (size_t)K * CAIRN_PART);
    rd->read = (struct fanout_read){.checkpoint = &f->checkpoint,
                                    .manifest = &f->manifest,
                                    .chunk = chunk,
                                    .part_mask = mask,
                                    .target = rd->target,
                                    .timeout_ms = timeout_ms,
                                    .done = on_done,
                                    .arg = rd};
    fanout_start(f->fanout, &rd->read);
    assert_int_equal(rd->done, 0);
    return rd;
}

/* Ends the oldest gather: with its bytes, or with this code. */
static void end_gather(struct fixture *f, int code)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct gather *g = f->links.gathers[0];

    assert_true(f->links.ngathers > 0);
    memmove(f->links.gathers, f->links.gathers + 1, --f->links.ngathers * sizeof f->links.gathers[0]);
    for (unsigned i = 0; i < K; i++)
        if (g->part_mask & 1u << i)
            memset(g->target + i * CAIRN_PART, code < 0 ? 0x66 : byte_of(g->chunk, i), CAIRN_PART);
    if (code < 0)
        cairn_fail(&err, code, "peer p7 is to blame");
    g->done(g, code, code < 0 ? &err : NULL);
}

static void until_done(struct fixture *f, struct reader *rd)
{
    for (unsigned i = 0; i < 2000 && !rd->done; i++)
        turns(f, 1);
    assert_int_equal(rd->done, 1);
}

static void has(struct fixture *f, struct reader *rd, uint32_t mask)
{
    until_done(f, rd);
    assert_int_equal(rd->code, 0);
    for (unsigned i = 0; i < K; i++) {
        char want = mask & 1u << i ? byte_of(rd->read.chunk, i) : 0;
        assert_int_equal(rd->target[i * CAIRN_PART], want);
        assert_int_equal(rd->target[(i + 1) * CAIRN_PART - 1], want);
    }
}

/* ---- the tests ------------------------------------------------------------------------------- */

/* Catches: a gather for each, a reader that gets another one's parts, a chunk that is dropped while it may be wanted.
 */
static void one_gather_for_all(void **state)
{
    struct fixture f;

    (void)state;
    setup_with(&f, 64 << 20);
    for (unsigned i = 0; i < 3; i++)
        ask(&f, i, 2, 0xf, 5000);
    turns(&f, 2);
    assert_int_equal(f.links.started, 1);
    end_gather(&f, 0);
    for (unsigned i = 0; i < 3; i++)
        has(&f, &f.readers[i], 0xf);
    has(&f, ask(&f, 3, 2, 0x6, 5000), 0x6); /* later: it is still there */
    assert_int_equal(f.links.started, 1);
    assert_int_equal(fanout_counts(f.fanout)->shared_chunks, 3);
    assert_int_equal(fanout_counts(f.fanout)->shared_bytes, 10 * CAIRN_PART);
    teardown(&f);
}

/* Catches: parts that nobody asked for are read, or that are there already; a chunk's second gather beside its first.
 */
static void missing_parts_only(void **state)
{
    struct fixture f;

    (void)state;
    setup_with(&f, 64 << 20);
    ask(&f, 0, 1, 0x3, 5000);
    turns(&f, 2);
    assert_int_equal(f.links.last_mask, 0x3);
    ask(&f, 1, 1, 0x6, 5000);
    ask(&f, 2, 1, 0x2, 5000);
    turns(&f, 2);
    assert_int_equal(f.links.started, 1);
    end_gather(&f, 0);
    has(&f, &f.readers[0], 0x3);
    has(&f, &f.readers[2], 0x2);
    for (unsigned i = 0; i < 100 && f.links.started < 2; i++)
        turns(&f, 1);
    assert_int_equal(f.links.started, 2);
    assert_int_equal(f.links.last_mask, 0x4);
    end_gather(&f, 0);
    has(&f, &f.readers[1], 0x6);
    teardown(&f);
}

/* A base is read whole whatever is asked for. */
static void deltas_whole(void **state)
{
    struct fixture f;

    (void)state;
    setup_with(&f, 64 << 20);
    f.chunks[0].delta.depth = 1;
    ask(&f, 0, 0, 0x1, 5000);
    turns(&f, 2);
    assert_int_equal(f.links.last_mask, 0xf);
    end_gather(&f, 0);
    has(&f, &f.readers[0], 0x1);
    teardown(&f);
}

/* Catches: a waiter that is not told, a message without the culprit, and bad bytes that stay for the next one. */
static void failure_is_everybodys(void **state)
{
    struct fixture f;

    (void)state;
    setup_with(&f, 64 << 20);
    for (unsigned i = 0; i < 3; i++)
        ask(&f, i, 0, 0xf, 5000);
    turns(&f, 2);
    end_gather(&f, CAIRN_E_CORRUPT);
    for (unsigned i = 0; i < 3; i++) {
        until_done(&f, &f.readers[i]);
        assert_int_equal(f.readers[i].code, CAIRN_E_CORRUPT);
        assert_non_null(strstr(f.readers[i].message, "p7"));
    }
    ask(&f, 0, 0, 0xf, 5000);
    turns(&f, 3);
    assert_int_equal(f.links.started, 2);
    end_gather(&f, 0);
    has(&f, &f.readers[0], 0xf);
    teardown(&f);
}

/* Catches: who began the gather takes it along. */
static void leaving_disturbs_nobody(void **state)
{
    struct fixture f;

    (void)state;
    setup_with(&f, 64 << 20);
    for (unsigned i = 0; i < 3; i++)
        ask(&f, i, 0, 0xf, 5000);
    turns(&f, 2);
    fanout_cancel(&f.readers[0].read);
    until_done(&f, &f.readers[0]);
    assert_int_equal(f.readers[0].code, CAIRN_E_ABORTED);
    assert_int_equal(f.links.cancelled, 0);
    end_gather(&f, 0);
    turns(&f, 1); /* copies may be under way */
    fanout_cancel(&f.readers[1].read);
    until_done(&f, &f.readers[1]);
    has(&f, &f.readers[2], 0xf);
    teardown(&f);
}

/* Catches: a gather for nobody, and one that was given up and then wanted again. */
static void last_one_ends_the_gather(void **state)
{
    struct fixture f;

    (void)state;
    setup_with(&f, 64 << 20);
    ask(&f, 0, 0, 0xf, 5000);
    turns(&f, 2);
    fanout_cancel(&f.readers[0].read);
    turns(&f, 2);
    assert_int_equal(f.links.cancelled, 1);
    ask(&f, 1, 0, 0xf, 5000);
    turns(&f, 2);
    end_gather(&f, CAIRN_E_ABORTED);
    turns(&f, 3);
    assert_int_equal(f.readers[1].done, 0);
    assert_int_equal(f.links.started, 2);
    end_gather(&f, 0);
    has(&f, &f.readers[1], 0xf);
    teardown(&f);
}

/* Catches: a wait without end, and the short deadline of one that ends the others'. */
static void deadlines_are_each_ones(void **state)
{
    struct fixture f;

    (void)state;
    setup_with(&f, 64 << 20);
    turns(&f, 1); /* the loop reads its clock once a turn */
    ask(&f, 0, 0, 0xf, 500);
    ask(&f, 1, 0, 0xf, 20000);
    turns(&f, 2);
    assert_int_equal(f.links.started, 1);
    bool waits = !f.readers[0].done; /* on a very busy machine its time was over before the gather began */
    until_done(&f, &f.readers[0]);
    assert_int_equal(f.readers[0].code, CAIRN_E_TIMEOUT);
    assert_true(!waits || strstr(f.readers[0].message, "p7"));
    assert_int_equal(f.readers[1].done, 0);
    end_gather(&f, CAIRN_E_TIMEOUT); /* its own deadline was not the other's */
    turns(&f, 3);
    assert_int_equal(f.readers[1].done, 0);
    assert_int_equal(f.links.started, 2);
    end_gather(&f, 0);
    has(&f, &f.readers[1], 0xf);
    teardown(&f);
}

/* Catches: memory without a bound, a reader in line that is forgotten or waits for good, a chunk in use that is
 * dropped. */
static void memory_is_bounded(void **state)
{
    struct fixture f;
    uint64_t bytes, limit;

    (void)state;
    setup_with(&f, (uint64_t)2 * K * CAIRN_PART);
    assert_true(fanout_has_room(f.fanout, 2 * K));
    assert_false(fanout_has_room(f.fanout, 2 * K + 1));
    for (unsigned i = 0; i < 5; i++)
        ask(&f, i, i, 0xf, 20000);
    ask(&f, 5, 5, 0xf, 20);
    turns(&f, 3);
    assert_int_equal(f.links.started, 2);
    until_done(&f, &f.readers[5]); /* in line until its deadline */
    assert_int_equal(f.readers[5].code, CAIRN_E_TIMEOUT);
    assert_non_null(strstr(f.readers[5].message, "fanout_mib"));
    fanout_cancel(&f.readers[3].read); /* in line, and gone */
    for (unsigned i = 0; i < 5; i++) {
        if (i == 3)
            continue;
        for (unsigned n = 0; n < 1000 && !f.links.ngathers; n++)
            turns(&f, 1);
        fanout_usage(f.fanout, &bytes, &limit);
        assert_true(bytes <= limit);
        end_gather(&f, 0);
        has(&f, &f.readers[i], 0xf);
    }
    assert_int_equal(f.readers[3].code, CAIRN_E_ABORTED);
    assert_true(fanout_knows(f.fanout, &f.manifest, 4));
    assert_false(fanout_knows(f.fanout, &f.manifest, 0)); /* the least recently used went first */
    teardown(&f);
}

/* Catches: one job's hung peers that keep another one's reads in line until their deadlines. */
static void patience_ends(void **state)
{
    struct fixture f;

    (void)state;
    setup_patient(&f, (uint64_t)K * CAIRN_PART, 20);
    ask(&f, 0, 0, 0xf, 20000);
    turns(&f, 2);
    ask(&f, 1, 1, 0x3, 20000); /* in line, then alone */
    ask(&f, 2, 2, 0xf, 20000); /* the same, and leaves */
    for (unsigned i = 0; i < 2000 && f.links.started < 3; i++)
        turns(&f, 1);
    assert_int_equal(f.links.started, 3);
    fanout_cancel(&f.readers[2].read);
    assert_int_equal(f.links.cancelled, 1);
    end_gather(&f, 0);
    has(&f, &f.readers[0], 0xf);
    end_gather(&f, 0);
    has(&f, &f.readers[1], 0x3);
    end_gather(&f, CAIRN_E_ABORTED);
    until_done(&f, &f.readers[2]);
    assert_int_equal(f.readers[2].code, CAIRN_E_ABORTED);
    assert_false(fanout_knows(f.fanout, &f.manifest, 1));
    teardown(&f);
}

/* Catches: another checkpoint's bytes for the same place. */
static void checkpoints_are_apart(void **state)
{
    struct fixture f;
    struct manifest other;

    (void)state;
    setup_with(&f, 64 << 20);
    other = f.manifest;
    other.step = 7;
    ask(&f, 0, 0, 0xf, 5000);
    turns(&f, 2);
    end_gather(&f, 0);
    has(&f, &f.readers[0], 0xf);
    assert_true(fanout_knows(f.fanout, &f.manifest, 0));
    assert_false(fanout_knows(f.fanout, &other, 0));
    other.step = 0;
    other.rank = 1;
    assert_false(fanout_knows(f.fanout, &other, 0));
    other.rank = 0;
    snprintf(other.job, sizeof other.job, "other");
    assert_false(fanout_knows(f.fanout, &other, 0));
    teardown(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_gather_for_all),
        cmocka_unit_test(missing_parts_only),
        cmocka_unit_test(deltas_whole),
        cmocka_unit_test(failure_is_everybodys),
        cmocka_unit_test(leaving_disturbs_nobody),
        cmocka_unit_test(last_one_ends_the_gather),
        cmocka_unit_test(deadlines_are_each_ones),
        cmocka_unit_test(memory_is_bounded),
        cmocka_unit_test(patience_ends),
        cmocka_unit_test(checkpoints_are_apart),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
