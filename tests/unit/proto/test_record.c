/* SPDX-License-Identifier: Apache-2.0 */
/* Metadata records: keys sort as their numbers, values are the JSON that people read, and what anybody may have put
 * into the engine is refused or read, never trusted. */
#include "core/proto/record.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- keys ------------------------------------------------------------------------------------ */

static void test_keys(void **state)
{
    char a[RECORD_KEY_MAX], b[RECORD_KEY_MAX];

    (void)state;
    record_key_peer(a, "p1");
    assert_string_equal(a, "cairn/v1/peers/p1");
    record_prefix_peers(a);
    assert_string_equal(a, "cairn/v1/peers/");
    record_prefix_jobs(a);
    assert_string_equal(a, "cairn/v1/jobs/");
    record_key_job(a, "j", "pin");
    assert_string_equal(a, "cairn/v1/jobs/j/pin");
    record_prefix_ckpts(a, "j");
    assert_string_equal(a, "cairn/v1/jobs/j/ckpt/");
    record_key_ckpt(a, "j", 7, 2, "decision");
    assert_string_equal(a, "cairn/v1/jobs/j/ckpt/00000000000000000007.0000000002/decision");
    record_key_ckpt(b, "j", 10, 1, "decision");
    assert_true(strcmp(a, b) < 0);
}

static void test_parse_key(void **state)
{
    static const char *const bad[] = {
        "",
        "cairn/v1/jobs/",
        "cairn/v1/jobs/j/ckpt/1.1/decision",                               /* not padded */
        "cairn/v1/jobs/j/ckpt/-0000000000000000001.0000000002/decision",   /* a sign */
        "cairn/v1/jobs/j/ckpt/ 0000000000000000001.0000000002/decision",   /* a blank */
        "cairn/v1/jobs/j/ckpt/99999999999999999999.0000000002/decision",   /* beyond 64 bits */
        "cairn/v1/jobs/j/ckpt/00000000000000000007.0000000002",            /* of nothing */
        "cairn/v1/jobs/../ckpt/00000000000000000007.0000000002/decision",  /* no name */
        "cairn/v1/jobs/a b/ckpt/00000000000000000007.0000000002/decision", /* no name */
        "cairn/v2/jobs/j/ckpt/00000000000000000007.0000000002/decision",   /* another version */
        "cairn/v1/jobs/j/pin",
    };
    char key[RECORD_KEY_MAX], job[CAIRN_MAX_NAME + 1], longest[CAIRN_MAX_NAME + 2];
    uint64_t step = 0, incarnation = 0;
    const char *what = NULL;

    (void)state;
    memset(longest, 'x', sizeof longest);
    longest[CAIRN_MAX_NAME] = 0;
    record_key_ckpt(key, longest, UINT64_MAX, 4000000000, "intent");
    assert_int_equal(record_parse_ckpt(key, job, &step, &incarnation, &what, NULL), 0);
    assert_string_equal(job, longest);
    assert_true(step == UINT64_MAX);
    assert_int_equal(incarnation, 4000000000);
    assert_string_equal(what, "intent");
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++)
        if (record_parse_ckpt(bad[i], job, &step, &incarnation, &what, NULL) != CAIRN_E_CORRUPT)
            fail_msg("%s passes", bad[i]);
    longest[CAIRN_MAX_NAME] = 'x'; /* one byte too many */
    snprintf(key, sizeof key, "cairn/v1/jobs/%.129s/ckpt/00000000000000000007.0000000002/intent", longest);
    assert_int_equal(record_parse_ckpt(key, job, &step, &incarnation, &what, NULL), CAIRN_E_CORRUPT);
}

/* ---- values ---------------------------------------------------------------------------------- */

static void assert_json(struct bytes *b, const char *golden)
{
    char *text = strndup((char *)b->data, b->len);

    assert_string_equal(text, golden);
    free(text);
    bytes_free(b);
}

static const char peer_json[] =
    "{\"v\":1,\"id\":\"p1\",\"address\":\"00ff10\",\"provider\":\"tcp;ofi_rxm\",\"domain\":\"rack1\","
    "\"total_bytes\":1000,\"free_bytes\":10,\"start\":\"fedcba9876543210\"}";

static void test_peer(void **state)
{
    struct record_peer in = {.id = "p1",
                             .address = {0, 0xff, 0x10},
                             .address_len = 3,
                             .provider = "tcp;ofi_rxm",
                             .domain = "rack1",
                             .total_bytes = 1000,
                             .free_bytes = 10,
                             .start = 0xfedcba9876543210};
    struct record_peer out;
    struct bytes b = {0};

    (void)state;
    assert_int_equal(record_peer_encode(&in, &b, NULL), 0);
    assert_json(&b, peer_json);
    assert_int_equal(record_peer_decode(&out, peer_json, strlen(peer_json), NULL), 0);
    assert_string_equal(out.id, "p1");
    assert_int_equal(out.address_len, 3);
    assert_memory_equal(out.address, in.address, 3);
    assert_string_equal(out.provider, "tcp;ofi_rxm");
    assert_string_equal(out.domain, "rack1");
    assert_int_equal(out.total_bytes, 1000);
    assert_int_equal(out.free_bytes, 10);
    assert_true(out.start == in.start);
    in.domain[0] = 0; /* unknown: allowed */
    in.address_len = WIRE_MAX_ADDR;
    assert_int_equal(record_peer_encode(&in, &b, NULL), 0);
    assert_int_equal(record_peer_decode(&out, b.data, b.len, NULL), 0);
    assert_int_equal(out.address_len, WIRE_MAX_ADDR);
    bytes_free(&b);
}

static void test_incarnation(void **state)
{
    static const char json[] = "{\"v\":1,\"incarnation\":3,\"start_id\":\"c\",\"world_size\":8,\"seen\":[\"b\",\"a\"]}";
    struct record_incarnation *in = calloc(1, sizeof *in), *out = calloc(1, sizeof *out);
    struct bytes b = {0};

    (void)state;
    in->incarnation = 3;
    strcpy(in->start_id, "c");
    in->world_size = 8;
    in->nseen = 2;
    strcpy(in->seen[0], "b");
    strcpy(in->seen[1], "a");
    assert_int_equal(record_incarnation_encode(in, &b, NULL), 0);
    assert_json(&b, json);
    assert_int_equal(record_incarnation_decode(out, json, strlen(json), NULL), 0);
    assert_memory_equal(in, out, sizeof *in);
    in->nseen = RECORD_SEEN_MAX; /* the longest that fits */
    for (unsigned i = 0; i < RECORD_SEEN_MAX; i++)
        memset(in->seen[i], 'a' + (int)(i % 26), CAIRN_MAX_NAME);
    assert_int_equal(record_incarnation_encode(in, &b, NULL), 0);
    assert_true(b.len < RECORD_VALUE_MAX);
    assert_int_equal(record_incarnation_decode(out, b.data, b.len, NULL), 0);
    assert_int_equal(out->nseen, RECORD_SEEN_MAX);
    bytes_free(&b);
    free(in);
    free(out);
}

static void test_small_ones(void **state)
{
    static const char coordinator_json[] =
        "{\"v\":1,\"node\":\"n1\",\"start\":\"ffffffffffffffff\",\"address\":\"0a0b\"}";
    static const char crew_json[] =
        "{\"v\":1,\"node\":\"n2\",\"start\":\"0000000000000005\",\"incarnation\":3,\"ranks\":[2,7]}";
    static const char pin_json[] =
        "{\"v\":1,\"number\":4,\"incarnation\":3,\"none\":false,\"step\":100,\"ckpt_incarnation\":2}";
    static const char intent_json[] = "{\"v\":1,\"world_size\":8,\"nodes\":2,\"deadline_ms\":60000,\"node\":\"n1\"}";
    struct record_coordinator coordinator = {.node = "n1", .start = UINT64_MAX, .address = {10, 11}, .address_len = 2};
    struct record_crew crew = {.node = "n2", .start = 5, .incarnation = 3, .nranks = 2, .ranks = {2, 7}}, crew_back;
    struct record_pin pin = {.number = 4, .incarnation = 3, .step = 100, .ckpt_incarnation = 2};
    struct record_intent intent = {.world_size = 8, .nodes = 2, .deadline_ms = 60000, .node = "n1"};
    struct bytes b = {0};

    (void)state;
    assert_int_equal(record_coordinator_encode(&coordinator, &b, NULL), 0);
    assert_json(&b, coordinator_json);
    memset(&coordinator, 0, sizeof coordinator);
    assert_int_equal(record_coordinator_decode(&coordinator, coordinator_json, strlen(coordinator_json), NULL), 0);
    assert_true(coordinator.start == UINT64_MAX);
    assert_string_equal(coordinator.node, "n1");
    assert_int_equal(coordinator.address_len, 2);
    assert_int_equal(coordinator.address[1], 11);

    assert_int_equal(record_crew_encode(&crew, &b, NULL), 0);
    assert_json(&b, crew_json);
    assert_int_equal(record_crew_decode(&crew_back, crew_json, strlen(crew_json), NULL), 0);
    assert_memory_equal(&crew, &crew_back, sizeof crew);
    static const char beyond[] =
        "{\"v\":1,\"node\":\"n\",\"start\":\"0000000000000005\",\"incarnation\":3,\"ranks\":[-1]}";
    assert_int_equal(record_crew_decode(&crew_back, beyond, strlen(beyond), NULL), CAIRN_E_CORRUPT);

    assert_int_equal(record_pin_encode(&pin, &b, NULL), 0);
    assert_json(&b, pin_json);
    memset(&pin, 0, sizeof pin);
    assert_int_equal(record_pin_decode(&pin, pin_json, strlen(pin_json), NULL), 0);
    assert_int_equal(pin.number, 4);
    assert_int_equal(pin.incarnation, 3);
    assert_false(pin.none);
    assert_int_equal(pin.step, 100);
    assert_int_equal(pin.ckpt_incarnation, 2);

    assert_int_equal(record_intent_encode(&intent, &b, NULL), 0);
    assert_json(&b, intent_json);
    memset(&intent, 0, sizeof intent);
    assert_int_equal(record_intent_decode(&intent, intent_json, strlen(intent_json), NULL), 0);
    assert_int_equal(intent.world_size, 8);
    assert_int_equal(intent.nodes, 2);
    assert_int_equal(intent.deadline_ms, 60000);
    assert_string_equal(intent.node, "n1");
}

static void test_keeping(void **state)
{
    static const char settings_json[] = "{\"v\":1,\"owner\":\"uid-7\",\"retention\":\"last=3\"}";
    static const char hold_json[] = "{\"v\":1,\"node\":\"n1\",\"start\":\"000000000000000a\",\"created_unix_ms\":5}";
    static const char tombstone_json[] =
        "{\"v\":1,\"node\":\"n1\",\"reason\":\"the job keeps last=3\",\"created_unix_ms\":5,"
        "\"peers\":[\"p1\",\"p2\"]}";
    struct record_settings settings = {.owner = "uid-7", .retention = "last=3"};
    struct record_hold hold = {.node = "n1", .start = 10, .created_unix_ms = 5};
    struct record_tombstone *t = calloc(1, sizeof *t);
    struct bytes b = {0};

    (void)state;
    assert_int_equal(record_settings_encode(&settings, &b, NULL), 0);
    assert_json(&b, settings_json);
    memset(&settings, 0, sizeof settings);
    assert_int_equal(record_settings_decode(&settings, settings_json, strlen(settings_json), NULL), 0);
    assert_string_equal(settings.owner, "uid-7");
    assert_string_equal(settings.retention, "last=3");

    assert_int_equal(record_hold_encode(&hold, &b, NULL), 0);
    assert_json(&b, hold_json);
    assert_int_equal(record_hold_decode(&hold, hold_json, strlen(hold_json), NULL), 0);
    assert_int_equal(hold.start, 10);

    strcpy(t->node, "n1");
    strcpy(t->reason, "the job keeps last=3");
    t->created_unix_ms = 5;
    t->npeers = 2;
    strcpy(t->peers[0], "p1");
    strcpy(t->peers[1], "p2");
    assert_int_equal(record_tombstone_encode(t, &b, NULL), 0);
    assert_json(&b, tombstone_json);
    memset(t, 0, sizeof *t);
    assert_int_equal(record_tombstone_decode(t, tombstone_json, strlen(tombstone_json), NULL), 0);
    assert_int_equal(t->npeers, 2);
    assert_string_equal(t->peers[1], "p2");
    assert_string_equal(t->reason, "the job keeps last=3");
    free(t);
}

/* Half a rule would keep less, half a list of peers would leave files behind, a largest one must fit. */
static void test_refused_keeping(void **state)
{
    struct record_tombstone *t = calloc(1, sizeof *t), *back = calloc(1, sizeof *back);
    struct record_settings s;
    struct bytes b = {0};
    char text[400];

    (void)state;
    snprintf(text, sizeof text, "{\"v\":1,\"owner\":\"\",\"retention\":\"%0128d\"}", 1);
    assert_int_equal(record_settings_decode(&s, text, strlen(text), NULL), CAIRN_E_CORRUPT);
    strcpy(t->node, "n1");
    t->npeers = RECORD_TOMBSTONE_PEERS + 1;
    assert_int_equal(record_tombstone_encode(t, &b, NULL), CAIRN_E_INVAL);
    bytes_free(&b);
    t->npeers = RECORD_TOMBSTONE_PEERS;
    for (uint32_t i = 0; i < t->npeers; i++)
        memset(t->peers[i], 'x', CAIRN_MAX_NAME);
    assert_int_equal(record_tombstone_encode(t, &b, NULL), 0);
    assert_true(b.len <= RECORD_VALUE_MAX);
    assert_int_equal(record_tombstone_decode(back, b.data, b.len, NULL), 0);
    assert_memory_equal(t, back, sizeof *t);
    bytes_free(&b);
    free(t);
    free(back);
}

static void test_hold_names(void **state)
{
    (void)state;
    assert_string_equal(record_hold_name("holds/pin.paper", RECORD_HOLD_PIN), "paper");
    assert_null(record_hold_name("holds/read.n1-0", RECORD_HOLD_PIN));
    assert_null(record_hold_name("holds", RECORD_HOLD_READ));
}

static const char commit_json[] =
    "{\"v\":1,\"decision\":\"commit\",\"node\":\"n0\",\"root\":{\"len\":500,\"sha256\":"
    "\"abababababababababababababababababababababababababababababababab\",\"peers\":[\"p1\",\"p2\"]},"
    "\"world_size\":8,\"plain_bytes\":9000,\"stored_bytes\":12000,\"created_unix_ms\":1700000000000}";
static const char abort_json[] = "{\"v\":1,\"decision\":\"abort\",\"node\":\"n0\",\"reason\":\"rank 3 died\","
                                 "\"world_size\":8,\"plain_bytes\":0,\"stored_bytes\":0,\"created_unix_ms\":5}";

static void test_decision(void **state)
{
    struct record_decision commit = {.commit = true,
                                     .node = "n0",
                                     .world_size = 8,
                                     .plain_bytes = 9000,
                                     .stored_bytes = 12000,
                                     .created_unix_ms = 1700000000000},
                           aborted = {.reason = "rank 3 died", .node = "n0", .world_size = 8, .created_unix_ms = 5},
                           out;
    struct bytes b = {0};

    (void)state;
    commit.root.len = 500;
    memset(commit.root.sha256, 0xab, SHA256_LEN);
    commit.root.npeers = 2;
    strcpy(commit.root.peer[0], "p1");
    strcpy(commit.root.peer[1], "p2");
    assert_int_equal(record_decision_encode(&commit, &b, NULL), 0);
    assert_json(&b, commit_json);
    assert_int_equal(record_decision_decode(&out, commit_json, strlen(commit_json), NULL), 0);
    assert_true(out.commit);
    assert_int_equal(out.root.len, 500);
    assert_memory_equal(out.root.sha256, commit.root.sha256, SHA256_LEN);
    assert_int_equal(out.root.npeers, 2);
    assert_string_equal(out.root.peer[1], "p2");
    assert_int_equal(out.created_unix_ms, 1700000000000);
    assert_false(out.counted);
    commit.counted = true; /* 0 is known to be 0 */
    b.len = 0;
    assert_int_equal(record_decision_encode(&commit, &b, NULL), 0);
    assert_int_equal(record_decision_decode(&out, b.data, b.len, NULL), 0);
    assert_true(out.counted);
    assert_int_equal(out.nonfinite, 0);
    commit.nonfinite = 12;
    b.len = 0;
    assert_int_equal(record_decision_encode(&commit, &b, NULL), 0);
    assert_int_equal(record_decision_decode(&out, b.data, b.len, NULL), 0);
    assert_int_equal(out.nonfinite, 12);
    b.len = 0;
    assert_int_equal(record_decision_encode(&aborted, &b, NULL), 0);
    assert_json(&b, abort_json);
    assert_int_equal(record_decision_decode(&out, abort_json, strlen(abort_json), NULL), 0);
    assert_false(out.commit);
    assert_string_equal(out.reason, "rank 3 died");
}

/* A reader that does not know bases would delete them: the version says so. */
static void test_bases(void **state)
{
    static const char *const wrong[] = {
        "{\"v\":2,\"world_size\":1,\"nodes\":1,\"deadline_ms\":1,\"node\":\"n\"}",
        "{\"v\":1,\"world_size\":1,\"nodes\":1,\"deadline_ms\":1,\"node\":\"n\",\"base\":7}",
        "{\"v\":2,\"world_size\":1,\"nodes\":1,\"deadline_ms\":1,\"node\":\"n\",\"base\":{\"step\":1}}",
        "{\"v\":2,\"world_size\":1,\"nodes\":1,\"deadline_ms\":1,\"node\":\"n\",\"base\":{\"step\":-1}}",
    };
    struct record_intent intent = {.world_size = 8, .nodes = 2, .deadline_ms = 1, .node = "n0", .base = {true, 90, 2}};
    struct record_decision d = {
        .commit = true, .node = "n0", .root = {.len = 5}, .world_size = 8, .base = {true, INT64_MAX, 0}};
    struct bytes b = {0};

    (void)state;
    assert_int_equal(record_intent_encode(&intent, &b, NULL), 0);
    bytes_put(&b, "", 1);
    assert_non_null(strstr((char *)b.data, "\"v\":2"));
    b.len--;
    memset(&intent, 0, sizeof intent);
    assert_int_equal(record_intent_decode(&intent, b.data, b.len, NULL), 0);
    assert_true(intent.base.is_set);
    assert_int_equal(intent.base.step, 90);
    assert_int_equal(intent.base.incarnation, 2);
    bytes_free(&b);
    assert_int_equal(record_decision_encode(&d, &b, NULL), 0);
    memset(&d, 0, sizeof d);
    assert_int_equal(record_decision_decode(&d, b.data, b.len, NULL), 0);
    assert_true(d.base.is_set);
    assert_true(d.base.step == INT64_MAX);
    bytes_free(&b);
    d.base.step++;
    assert_int_equal(record_decision_encode(&d, &b, NULL), CAIRN_E_INVAL);
    bytes_free(&b);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        assert_true(record_intent_decode(&intent, wrong[i], strlen(wrong[i]), NULL) < 0);
}

/* A reason that was cut within a character must not stop an abort from being recorded. */
static void test_broken_reason(void **state)
{
    struct record_decision in = {.node = "n0", .world_size = 1}, out;
    struct bytes b = {0};

    (void)state;
    strcpy(in.reason, "tensor \"gr\xc3\xb6\xc3");
    assert_int_equal(record_decision_encode(&in, &b, NULL), 0);
    assert_int_equal(record_decision_decode(&out, b.data, b.len, NULL), 0);
    assert_string_equal(out.reason, "tensor \"gr???");
    bytes_free(&b);
    strcpy(in.reason, "tensor \"gr\xc3\xb6\xc3\x9f\"\n");
    assert_int_equal(record_decision_encode(&in, &b, NULL), 0);
    assert_int_equal(record_decision_decode(&out, b.data, b.len, NULL), 0);
    assert_string_equal(out.reason, in.reason);
    bytes_free(&b);
}

/* What JSON cannot say is an error, not a record that lacks it. */
static void test_not_written(void **state)
{
    struct record_peer peer = {.id = "p1", .address_len = 1, .provider = "\xff"};
    struct record_pin pin = {.step = UINT64_MAX};
    struct record_decision commit = {.commit = true, .node = "n0"};
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct bytes b = {0};

    (void)state;
    assert_int_equal(record_peer_encode(&peer, &b, &err), CAIRN_E_INVAL);
    assert_int_equal(record_pin_encode(&pin, &b, &err), CAIRN_E_INVAL);
    commit.root.len = UINT64_MAX;
    assert_int_equal(record_decision_encode(&commit, &b, &err), CAIRN_E_INVAL);
    commit.root.len = 1;
    commit.root.npeers = 1;
    strcpy(commit.root.peer[0], "\xff");
    assert_int_equal(record_decision_encode(&commit, &b, &err), CAIRN_E_INVAL);
    assert_int_equal(b.len, 0);
}

/* ---- what anybody may have put there --------------------------------------------------------- */

static int decode_peer(const char *json)
{
    struct record_peer r;
    struct cairn_error err = CAIRN_ERROR_INIT;
    int code = record_peer_decode(&r, json, strlen(json), &err);

    assert_int_equal(err.code, code);
    return code;
}

/* The golden record with one member's text replaced. */
static int decode_changed(int (*decode)(void *, const void *, size_t, struct cairn_error *), void *ret,
                          const char *json, const char *from, const char *to)
{
    char text[2048];
    const char *at = strstr(json, from);
    struct cairn_error err = CAIRN_ERROR_INIT;

    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - json), json, to, at + strlen(from));
    int r = decode(ret, text, strlen(text), &err);
    assert_int_equal(err.code, r);
    assert_true(r == 0 || err.message[0]);
    return r;
}

static int any_peer(void *ret, const void *data, size_t len, struct cairn_error *err)
{
    return record_peer_decode(ret, data, len, err);
}

static int any_decision(void *ret, const void *data, size_t len, struct cairn_error *err)
{
    return record_decision_decode(ret, data, len, err);
}

static void test_refused_peers(void **state)
{
    static const char *const bad[][2] = {
        {"\"p1\"", "\"\""},
        {"\"p1\"", "\"a/b\""},
        {"\"p1\"", "7"},
        {"\"00ff10\"", "\"\""},
        {"\"00ff10\"", "\"00ff1\""},
        {"\"00ff10\"", "\"00FF10\""},
        {"\"00ff10\"", "null"},
        {"\"rack1\"", "\"a b\""},
        {"1000", "-1"},
        {"1000", "1e3"},
        {"1000", "9223372036854775808"},
        {"\"fedcba9876543210\"", "\"fedcba987654321\""},
        {"\"fedcba9876543210\"", "\"fedcba9876543210aa\""},
        {"\"start\"", "\"stort\""},
        {"{\"v\":1", "{\"v\":1,\"v\":1"},
        {"\"v\":1,", ""},
    };
    struct record_peer r = {.start = 99};
    char longest[4 * WIRE_MAX_ADDR];

    (void)state;
    assert_int_equal(decode_changed(any_peer, &r, peer_json, "1000", "1001"), 0);
    r.start = 99;
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++)
        if (decode_changed(any_peer, &r, peer_json, bad[i][0], bad[i][1]) != CAIRN_E_CORRUPT)
            fail_msg("%s instead of %s passes", bad[i][1], bad[i][0]);
    assert_int_equal(r.start, 99); /* untouched on failure */
    memset(longest, 'a', sizeof longest);
    longest[0] = longest[2 * WIRE_MAX_ADDR + 3] = '"';
    longest[2 * WIRE_MAX_ADDR + 4] = 0;
    assert_int_equal(decode_changed(any_peer, &r, peer_json, "\"00ff10\"", longest), CAIRN_E_CORRUPT);
    assert_int_equal(decode_changed(any_peer, &r, peer_json, "\"v\":1", "\"v\":2"), CAIRN_E_UNSUPPORTED);
    assert_int_equal(decode_changed(any_peer, &r, peer_json, "{", "{\"later\":[1,{}],"), 0);
    assert_int_equal(decode_peer("[]"), CAIRN_E_CORRUPT);
    assert_int_equal(decode_peer(""), CAIRN_E_CORRUPT);
    assert_int_equal(decode_peer("{\"v\":1}"), CAIRN_E_CORRUPT);
}

/* Decisions most of all: a record that is not plainly an abort deletes nothing, one that is not plainly a commit
 * restores nothing. */
static void test_refused_decisions(void **state)
{
    static const char *const bad[][2] = {
        {"\"commit\"", "\"maybe\""},
        {"\"commit\"", "\"\""},
        {"\"commit\"", "true"},
        {"\"commit\"", "\"abort\""}, /* without a reason */
        {"\"len\":500", "\"len\":9999999999"},
        {"\"len\":500", "\"len\":-5"},
        {"\"abab", "\"ab"},
        {"[\"p1\",\"p2\"]", "{}"},
        {"[\"p1\",\"p2\"]", "[7]"},
        {"[\"p1\",\"p2\"]", "[\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\",\"h\",\"i\",\"j\"]"},
        {"\"root\"", "\"toor\""},
        {"\"world_size\":8", "\"world_size\":8000000"},
        {"\"n0\"", "\"..\""},
    };
    struct record_decision d = {.world_size = 77};

    (void)state;
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++)
        if (decode_changed(any_decision, &d, commit_json, bad[i][0], bad[i][1]) != CAIRN_E_CORRUPT)
            fail_msg("%s instead of %s passes", bad[i][1], bad[i][0]);
    assert_int_equal(decode_changed(any_decision, &d, abort_json, "\"abort\"", "\"commit\""), CAIRN_E_CORRUPT);
    assert_int_equal(decode_changed(any_decision, &d, abort_json, "\"v\":1", "\"v\":2"), CAIRN_E_UNSUPPORTED);
    assert_int_equal(d.world_size, 77);
}

/* Cut, damaged and huge values of every kind: an answer, no crash. */
static void test_damaged(void **state)
{
    static const char *const all[] = {peer_json, commit_json, abort_json};
    struct record_peer peer;
    struct record_decision decision;
    struct record_incarnation *incarnation = calloc(1, sizeof *incarnation);

    (void)state;
    for (unsigned i = 0; i < 3; i++) {
        size_t len = strlen(all[i]);
        char *text = strdup(all[i]);
        for (size_t at = 0; at < len; at++)
            for (unsigned v = 1; v < 256; v += 3) {
                text[at] ^= (char)v;
                (void)record_peer_decode(&peer, text, len, NULL);
                if (record_decision_decode(&decision, text, len, NULL) == 0)
                    assert_true(decision.root.npeers <= CAIRN_MAX_M + 1);
                assert_true(record_incarnation_decode(incarnation, text, len, NULL) < 0);
                text[at] ^= (char)v;
            }
        for (size_t cut = 0; cut < len; cut++)
            assert_true(record_decision_decode(&decision, text, cut, NULL) < 0);
        free(text);
    }
    char *big = malloc(RECORD_VALUE_MAX + 1);
    memset(big, ' ', RECORD_VALUE_MAX + 1);
    memcpy(big, abort_json, strlen(abort_json));
    assert_int_equal(record_decision_decode(&decision, big, RECORD_VALUE_MAX, NULL), 0);
    assert_int_equal(record_decision_decode(&decision, big, RECORD_VALUE_MAX + 1, NULL), CAIRN_E_CORRUPT);
    memset(big, '[', RECORD_VALUE_MAX); /* deep */
    assert_int_equal(record_decision_decode(&decision, big, RECORD_VALUE_MAX, NULL), CAIRN_E_CORRUPT);
    free(big);
    free(incarnation);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_parse_key),
        cmocka_unit_test(test_peer),
        cmocka_unit_test(test_incarnation),
        cmocka_unit_test(test_small_ones),
        cmocka_unit_test(test_decision),
        cmocka_unit_test(test_broken_reason),
        cmocka_unit_test(test_bases),
        cmocka_unit_test(test_not_written),
        cmocka_unit_test(test_refused_peers),
        cmocka_unit_test(test_refused_decisions),
        cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_keeping),
        cmocka_unit_test(test_refused_keeping),
        cmocka_unit_test(test_hold_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
