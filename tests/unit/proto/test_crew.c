/* SPDX-License-Identifier: Apache-2.0 */
/* Catches: a letter that loses a field on its way, one that is believed though its counts, names or codes are
 * impossible, an envelope with half a signature. */
#include "core/proto/crew.h"

#include "core/base/bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static struct crew_letter l, back;

static void letter(int type)
{
    memset(&l, 0, sizeof l);
    l.type = type;
    l.from = (struct crew_address){.node = "n7", .start = 99, .bytes = {9, 8, 7}, .len = 3};
    strcpy(l.job, "train");
}

static int there_and_back(void)
{
    struct bytes out = {0};

    assert_int_equal(crew_encode(&l, &out, NULL), 0);
    int r = crew_decode(out.data, out.len, &back, NULL);
    bytes_free(&out);
    return r;
}

static void same(void)
{
    assert_int_equal(there_and_back(), 0);
    assert_memory_equal(&l, &back, sizeof l);
}

static void refused(void)
{
    assert_int_equal(there_and_back(), CAIRN_E_PROTOCOL);
}

static void letters_come_back(void **state)
{
    (void)state;
    letter(CREW_GREET);
    l.greet.incarnation = 3;
    l.greet.nranks = 2;
    l.greet.ranks[1] = 5;
    same();
    letter(CREW_PLACE);
    l.place.coordinates = true;
    l.place.incarnation = 4;
    same();
    l.place.parent = (struct crew_address){.node = "n1", .start = 5, .bytes = {1}, .len = 1};
    same();
    letter(CREW_REPORT);
    l.report.step = 10;
    l.report.incarnation = 3;
    l.report.coordinator = 77;
    l.report.hops = 1;
    l.report.hurry = true;
    l.report.nentries = CREW_MAX_ENTRIES;
    for (uint32_t i = 0; i < CREW_MAX_ENTRIES; i++) {
        struct crew_entry *e = &l.report.entries[i];
        *e = (struct crew_entry){.rank = i, .state = REPORT_DURABLE, .pin_number = i, .shard = {.rank = i}};
        strcpy(e->shard.node, "n7");
        e->shard.manifest.len = 100 + i;
        e->shard.manifest.npeers = 2;
        strcpy(e->shard.manifest.peer[0], "p1");
        strcpy(e->shard.manifest.peer[1], "p2");
        e->shard.plain_bytes = 1000;
        e->shard.stored_bytes = 900;
        e->shard.numerics.known = i % 2;
        e->shard.numerics.bad.nan = i % 2 ? 7 : 0;
        e->shard.numerics.common = i % 2 ? 3 : 0;
        e->shard.numerics.set.low = e->shard.numerics.sums.high = i % 2 ? UINT64_MAX : 0;
    }
    same();
    letter(CREW_VERDICT);
    l.verdict.step = 10;
    l.verdict.coordinator = 77;
    l.verdict.hurry = true;
    l.verdict.verdict = VERDICT_ABORTED;
    l.verdict.status.code = CAIRN_E_ABORTED;
    strcpy(l.verdict.status.message, "why");
    same();
}

static void impossible_letters_are_refused(void **state)
{
    (void)state;
    letter(CREW_GREET);
    l.from.len = 0;
    refused();
    letter(CREW_GREET);
    strcpy(l.job, "../etc");
    refused();
    letter(CREW_REPORT);
    refused(); /* no entry */
    l.report.nentries = 1;
    strcpy(l.report.entries[0].shard.node, "n7");
    refused(); /* no state */
    l.report.entries[0].state = REPORT_DURABLE;
    refused(); /* no manifest */
    l.report.entries[0].shard.manifest.len = 5;
    assert_int_equal(there_and_back(), 0);
    letter(CREW_VERDICT);
    l.verdict.verdict = VERDICT_COMMITTED;
    l.verdict.status.code = CAIRN_E_ABORTED;
    refused();
    l.verdict.verdict = VERDICT_ABORTED;
    l.verdict.status.code = 0;
    refused();
    letter(CREW_VERDICT);
    l.verdict.step = 9;
    l.verdict.incarnation = 2;
    l.verdict.verdict = VERDICT_INTENT;
    l.verdict.base = (struct ckpt_base){true, 8, 2};
    assert_int_equal(there_and_back(), 0);
    l.verdict.base.step = 9;
    refused(); /* not older */
    l.verdict.base = (struct ckpt_base){true, 12, 1};
    assert_int_equal(there_and_back(), 0);
    l.verdict.verdict = VERDICT_COMMITTED;
    refused(); /* of no intent */
}

static void envelopes(void **state)
{
    struct bytes in = {0}, out = {0};
    uint8_t tag[CREW_TAG] = {1, 2, 3};
    struct crew_sealed s;

    (void)state;
    bytes_put(&in, "abc", 3);
    assert_int_equal(crew_seal(&in, 5, tag, &out, NULL), 0);
    assert_int_equal(crew_open(out.data, out.len, &s, NULL), 0);
    assert_int_equal(s.key_id, 5);
    assert_memory_equal(s.tag, tag, CREW_TAG);
    assert_int_equal(s.letter.len, 3);
    bytes_free(&s.letter);
    assert_int_equal(crew_open(out.data, out.len - 1, &s, NULL), CAIRN_E_PROTOCOL);
    bytes_free(&out);
    assert_int_equal(crew_seal(&in, 0, tag, &out, NULL), 0);
    assert_int_equal(crew_open(out.data, out.len, &s, NULL), 0);
    assert_int_equal(s.key_id, 0);
    bytes_free(&s.letter);
    bytes_free(&out);
    bytes_free(&in);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(letters_come_back),
        cmocka_unit_test(impossible_letters_are_refused),
        cmocka_unit_test(envelopes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
