/* SPDX-License-Identifier: Apache-2.0 */
/* Values are JSON objects with "v": 1. 64-bit numbers that may use all their bits (random starts) are hex strings,
 * because JSON's numbers are doubles in many readers. */
#include "core/proto/record.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/name.h"

#include <jansson.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VERSION 1
#define VERSION_DELTA 2 /* of a record with a base: who does not know it would delete what it needs */

CAIRN_DEFINE_CLEANUP(json_t *, json_decref, cleanup_json)
/* Some objects are only read through the reader, which borrows them. */
#define _cleanup_json_ __attribute__((unused)) CAIRN_CLEANUP(cleanup_json)

/* ---- writing --------------------------------------------------------------------------------- */

/* A value that JSON does not take (broken UTF-8, a number beyond 63 bits, no memory) must not be left out silently: the
 * record loses its version, and write_out refuses it. */
static void set(json_t *o, const char *key, json_t *v)
{
    if (json_object_set_new(o, key, v) < 0)
        json_object_del(o, "v");
}

static json_t *object_new(void)
{
    json_t *o = json_object();

    if (o)
        json_object_set_new(o, "v", json_integer(VERSION));
    return o;
}

static void set_number(json_t *o, const char *key, uint64_t v)
{
    set(o, key, v <= INT64_MAX ? json_integer((json_int_t)v) : NULL);
}

static void set_text(json_t *o, const char *key, const char *v)
{
    set(o, key, json_string(v));
}

/* An error's message may have been cut within a character: an abort must not fail over that. */
static void set_any_text(json_t *o, const char *key, const char *v)
{
    char plain[WIRE_TEXT];
    json_t *text = json_string(v);

    snprintf(plain, sizeof plain, "%s", v);
    for (char *c = plain; *c; c++)
        if ((unsigned char)*c >= 0x80)
            *c = '?';
    set(o, key, text ? text : json_string(plain));
}

static void set_hex(json_t *o, const char *key, const uint8_t *data, size_t len)
{
    char text[2 * WIRE_MAX_ADDR + 1] = "";

    for (size_t i = 0; i < len && i < WIRE_MAX_ADDR; i++)
        snprintf(text + 2 * i, 3, "%02x", data[i]);
    set_text(o, key, text);
}

static void set_id(json_t *o, const char *key, uint64_t v)
{
    char text[17];

    snprintf(text, sizeof text, "%016llx", (unsigned long long)v);
    set_text(o, key, text);
}

static int write_out(json_t *o, struct bytes *out, struct cairn_error *err)
{
    _cleanup_free_ char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;

    if (o && !json_object_get(o, "v"))
        return cairn_fail(err, CAIRN_E_INVAL, "a metadata record with a value that JSON does not take");
    if (text)
        bytes_put(out, text, strlen(text));
    return !text || out->bad ? cairn_fail(err, CAIRN_E_NOMEM, "write a metadata record") : 0;
}

/* ---- reading: the first thing that is missing or wrong is remembered ------------------------- */

struct reader {
    json_t *o;
    const char *what; /* the record */
    int code;
    struct cairn_error *err;
};

static void wrong(struct reader *r, const char *key, const char *wanted)
{
    if (r->code == 0)
        r->code = cairn_fail(r->err, CAIRN_E_CORRUPT, "a %s record: \"%s\" is no %s", r->what, key, wanted);
}

static uint64_t get_number(struct reader *r, const char *key, uint64_t max)
{
    json_t *v = json_object_get(r->o, key);

    if (!json_is_integer(v) || json_integer_value(v) < 0 || (uint64_t)json_integer_value(v) > max) {
        wrong(r, key, "number within its range");
        return 0;
    }
    return (uint64_t)json_integer_value(v);
}

static const char *get_text(struct reader *r, const char *key)
{
    const char *s = json_string_value(json_object_get(r->o, key));

    if (!s)
        wrong(r, key, "text");
    return s ? s : "";
}

static void copy_name(struct reader *r, const char *key, const char *s, char to[CAIRN_MAX_NAME + 1])
{
    if (r->code == 0 && cairn_name_check(key, s, r->err) < 0)
        r->code = cairn_wrap(r->err, CAIRN_E_CORRUPT, "a %s record", r->what);
    snprintf(to, CAIRN_MAX_NAME + 1, "%.*s", CAIRN_MAX_NAME, s);
}

static void get_name(struct reader *r, const char *key, char to[CAIRN_MAX_NAME + 1])
{
    copy_name(r, key, get_text(r, key), to);
}

static size_t get_hex(struct reader *r, const char *key, uint8_t *to, size_t room)
{
    const char *s = get_text(r, key);
    size_t n = strlen(s) / 2;

    if (strlen(s) % 2 || n > room || strspn(s, "0123456789abcdef") != strlen(s)) {
        wrong(r, key, "hex text of a proper length");
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        unsigned v;
        if (sscanf(s + 2 * i, "%2x", &v) == 1)
            to[i] = (uint8_t)v;
    }
    return n;
}

static uint64_t get_id(struct reader *r, const char *key)
{
    uint8_t b[8] = {0};
    uint64_t v = 0;

    if (get_hex(r, key, b, sizeof b) != sizeof b)
        wrong(r, key, "id of 16 hex digits");
    for (int i = 0; i < 8; i++)
        v = v << 8 | b[i];
    return v;
}

static bool is_known(const struct reader *r, uint64_t version)
{
    return version == VERSION || (version == VERSION_DELTA && json_object_get(r->o, "base"));
}

static json_t *read_in(struct reader *r, const char *what, const void *data, size_t len, struct cairn_error *err)
{
    json_error_t why;

    *r = (struct reader){.what = what, .err = err};
    r->o = len <= RECORD_VALUE_MAX ? json_loadb(data, len, JSON_REJECT_DUPLICATES, &why) : NULL;
    if (!json_is_object(r->o))
        r->code = cairn_fail(err, CAIRN_E_CORRUPT, "a %s record of %zu bytes is no JSON object", what, len);
    else if (!is_known(r, get_number(r, "v", INT32_MAX)) && r->code == 0)
        r->code = cairn_fail(err, CAIRN_E_UNSUPPORTED, "a %s record of version %lld: this reader knows version %d",
                             what, (long long)json_integer_value(json_object_get(r->o, "v")), VERSION);
    return r->o;
}

/* ---- peer ------------------------------------------------------------------------------------ */

int record_peer_encode(const struct record_peer *r, struct bytes *out, struct cairn_error *err)
{
    _cleanup_json_ json_t *o = object_new();

    set_text(o, "id", r->id);
    set_hex(o, "address", r->address, r->address_len);
    set_text(o, "provider", r->provider);
    set_text(o, "domain", r->domain);
    set_number(o, "total_bytes", r->total_bytes);
    set_number(o, "free_bytes", r->free_bytes);
    set_id(o, "start", r->start);
    return write_out(o, out, err);
}

int record_peer_decode(struct record_peer *ret, const void *data, size_t len, struct cairn_error *err)
{
    struct reader r;
    struct record_peer rec = {.start = 0};
    _cleanup_json_ json_t *o = read_in(&r, "peer", data, len, err);

    if (r.code < 0)
        return r.code;
    get_name(&r, "id", rec.id);
    rec.address_len = get_hex(&r, "address", rec.address, sizeof rec.address);
    if (rec.address_len == 0)
        wrong(&r, "address", "address");
    snprintf(rec.provider, sizeof rec.provider, "%s", get_text(&r, "provider"));
    const char *domain = get_text(&r, "domain");
    if (domain[0])
        copy_name(&r, "domain", domain, rec.domain);
    rec.total_bytes = get_number(&r, "total_bytes", INT64_MAX);
    rec.free_bytes = get_number(&r, "free_bytes", INT64_MAX);
    rec.start = get_id(&r, "start");
    if (r.code == 0)
        *ret = rec;
    return r.code;
}

/* ---- incarnation ----------------------------------------------------------------------------- */

int record_incarnation_encode(const struct record_incarnation *r, struct bytes *out, struct cairn_error *err)
{
    _cleanup_json_ json_t *o = object_new();
    json_t *seen = json_array();

    set_number(o, "incarnation", r->incarnation);
    set_text(o, "start_id", r->start_id);
    set_number(o, "world_size", r->world_size);
    for (uint32_t i = 0; i < r->nseen && i < RECORD_SEEN_MAX; i++)
        json_array_append_new(seen, json_string(r->seen[i]));
    set(o, "seen", seen);
    return write_out(o, out, err);
}

int record_incarnation_decode(struct record_incarnation *ret, const void *data, size_t len, struct cairn_error *err)
{
    struct reader r;
    _cleanup_json_ json_t *o = read_in(&r, "incarnation", data, len, err);
    _cleanup_free_ struct record_incarnation *rec = calloc(1, sizeof *rec);
    json_t *seen = json_object_get(r.o, "seen");

    if (r.code < 0 || !rec)
        return r.code < 0 ? r.code : cairn_fail(err, CAIRN_E_NOMEM, "read a record");
    rec->incarnation = get_number(&r, "incarnation", INT64_MAX);
    get_name(&r, "start_id", rec->start_id);
    rec->world_size = (uint32_t)get_number(&r, "world_size", CAIRN_MAX_WORLD);
    if (!json_is_array(seen) || json_array_size(seen) > RECORD_SEEN_MAX)
        wrong(&r, "seen", "list of start ids");
    for (size_t i = 0; r.code == 0 && i < json_array_size(seen); i++) {
        const char *s = json_string_value(json_array_get(seen, i));
        copy_name(&r, "seen", s ? s : "", rec->seen[rec->nseen++]);
    }
    if (r.code == 0)
        *ret = *rec;
    return r.code;
}

/* ---- coordinator, crew, engine, pin, intent -------------------------------------------------- */

int record_coordinator_encode(const struct record_coordinator *r, struct bytes *out, struct cairn_error *err)
{
    _cleanup_json_ json_t *o = object_new();

    set_text(o, "node", r->node);
    set_id(o, "start", r->start);
    set_hex(o, "address", r->address, r->address_len);
    return write_out(o, out, err);
}

int record_coordinator_decode(struct record_coordinator *ret, const void *data, size_t len, struct cairn_error *err)
{
    struct reader r;
    struct record_coordinator rec = {.start = 0};
    _cleanup_json_ json_t *o = read_in(&r, "coordinator", data, len, err);

    if (r.code < 0)
        return r.code;
    get_name(&r, "node", rec.node);
    rec.start = get_id(&r, "start");
    rec.address_len = get_hex(&r, "address", rec.address, sizeof rec.address);
    if (r.code == 0)
        *ret = rec;
    return r.code;
}

int record_crew_encode(const struct record_crew *r, struct bytes *out, struct cairn_error *err)
{
    _cleanup_json_ json_t *o = object_new();
    json_t *ranks = json_array();

    set_text(o, "node", r->node);
    set_id(o, "start", r->start);
    set_number(o, "incarnation", r->incarnation);
    for (uint32_t i = 0; i < r->nranks && i < RECORD_MAX_RANKS; i++)
        json_array_append_new(ranks, json_integer(r->ranks[i]));
    set(o, "ranks", ranks);
    return write_out(o, out, err);
}

int record_crew_decode(struct record_crew *ret, const void *data, size_t len, struct cairn_error *err)
{
    struct reader r;
    struct record_crew rec = {.start = 0};
    _cleanup_json_ json_t *o = read_in(&r, "node", data, len, err);
    json_t *ranks = json_object_get(r.o, "ranks");

    if (r.code < 0)
        return r.code;
    get_name(&r, "node", rec.node);
    rec.start = get_id(&r, "start");
    rec.incarnation = get_number(&r, "incarnation", INT64_MAX);
    if (!json_is_array(ranks) || json_array_size(ranks) > RECORD_MAX_RANKS)
        wrong(&r, "ranks", "list of ranks");
    for (size_t i = 0; r.code == 0 && i < json_array_size(ranks); i++) {
        json_t *v = json_array_get(ranks, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >= CAIRN_MAX_WORLD)
            wrong(&r, "ranks", "list of ranks");
        rec.ranks[rec.nranks++] = (uint32_t)json_integer_value(v);
    }
    if (r.code == 0)
        *ret = rec;
    return r.code;
}

int record_engine_encode(const struct record_engine *r, struct bytes *out, struct cairn_error *err)
{
    _cleanup_json_ json_t *o = object_new();

    set_text(o, "id", r->id);
    return write_out(o, out, err);
}

int record_engine_decode(struct record_engine *ret, const void *data, size_t len, struct cairn_error *err)
{
    struct reader r;
    struct record_engine rec;
    _cleanup_json_ json_t *o = read_in(&r, "engine", data, len, err);

    if (r.code < 0)
        return r.code;
    get_name(&r, "id", rec.id);
    if (r.code == 0)
        *ret = rec;
    return r.code;
}

int record_pin_encode(const struct record_pin *r, struct bytes *out, struct cairn_error *err)
{
    _cleanup_json_ json_t *o = object_new();

    set_number(o, "number", r->number);
    set_number(o, "incarnation", r->incarnation);
    set(o, "none", json_boolean(r->none));
    set_number(o, "step", r->step);
    set_number(o, "ckpt_incarnation", r->ckpt_incarnation);
    return write_out(o, out, err);
}

int record_pin_decode(struct record_pin *ret, const void *data, size_t len, struct cairn_error *err)
{
    struct reader r;
    struct record_pin rec;
    _cleanup_json_ json_t *o = read_in(&r, "pin", data, len, err);

    if (r.code < 0)
        return r.code;
    rec.number = get_number(&r, "number", INT64_MAX);
    rec.incarnation = get_number(&r, "incarnation", INT64_MAX);
    rec.step = get_number(&r, "step", INT64_MAX);
    rec.ckpt_incarnation = get_number(&r, "ckpt_incarnation", INT64_MAX);
    if (!json_is_boolean(json_object_get(r.o, "none")))
        wrong(&r, "none", "true or false");
    rec.none = json_is_true(json_object_get(r.o, "none"));
    if (r.code == 0)
        *ret = rec;
    return r.code;
}

static void set_base(json_t *o, const struct ckpt_base *b)
{
    json_t *base;

    if (!b->is_set)
        return;
    base = json_object();
    set(base, "step", b->step <= INT64_MAX ? json_integer((json_int_t)b->step) : NULL);
    set(base, "incarnation", b->incarnation <= INT64_MAX ? json_integer((json_int_t)b->incarnation) : NULL);
    bool whole = json_object_size(base) == 2;
    set(o, "base", base);
    if (whole)
        set(o, "v", json_integer(VERSION_DELTA));
    else
        json_object_del(o, "v");
}

static void get_base(struct reader *r, struct ckpt_base *b)
{
    struct reader in = *r;

    in.o = json_object_get(r->o, "base");
    if (!in.o)
        return;
    b->is_set = true;
    b->step = get_number(&in, "step", INT64_MAX);
    b->incarnation = get_number(&in, "incarnation", INT64_MAX);
    r->code = in.code;
}

int record_intent_encode(const struct record_intent *r, struct bytes *out, struct cairn_error *err)
{
    _cleanup_json_ json_t *o = object_new();

    set_number(o, "world_size", r->world_size);
    set_number(o, "nodes", r->nodes);
    set_number(o, "deadline_ms", r->deadline_ms);
    set_text(o, "node", r->node);
    set_base(o, &r->base);
    return write_out(o, out, err);
}

int record_intent_decode(struct record_intent *ret, const void *data, size_t len, struct cairn_error *err)
{
    struct reader r;
    struct record_intent rec = {.world_size = 0};
    _cleanup_json_ json_t *o = read_in(&r, "intent", data, len, err);

    if (r.code < 0)
        return r.code;
    rec.world_size = (uint32_t)get_number(&r, "world_size", CAIRN_MAX_WORLD);
    rec.nodes = (uint32_t)get_number(&r, "nodes", CAIRN_MAX_WORLD);
    rec.deadline_ms = (uint32_t)get_number(&r, "deadline_ms", UINT32_MAX);
    get_name(&r, "node", rec.node);
    get_base(&r, &rec.base);
    if (r.code == 0)
        *ret = rec;
    return r.code;
}

/* ---- decision -------------------------------------------------------------------------------- */

static void set_blob(json_t *o, const struct blob_ref *b)
{
    json_t *root = json_object(), *peers = json_array();

    set_number(root, "len", b->len);
    set_hex(root, "sha256", b->sha256, SHA256_LEN);
    for (uint32_t i = 0; i < b->npeers && i <= CAIRN_MAX_M; i++)
        json_array_append_new(peers, json_string(b->peer[i]));
    set(root, "peers", peers);
    if (!json_object_get(root, "len") || json_array_size(peers) != b->npeers)
        json_object_del(o, "v");
    set(o, "root", root);
}

static void get_blob(struct reader *r, struct blob_ref *b)
{
    struct reader in = *r;
    json_t *peers;

    in.o = json_object_get(r->o, "root");
    b->len = get_number(&in, "len", MANIFEST_MAX);
    if (get_hex(&in, "sha256", b->sha256, SHA256_LEN) != SHA256_LEN)
        wrong(&in, "sha256", "SHA-256");
    peers = json_object_get(in.o, "peers");
    if (!json_is_array(peers) || json_array_size(peers) > CAIRN_MAX_M + 1)
        wrong(&in, "peers", "list of peers");
    for (size_t i = 0; in.code == 0 && i < json_array_size(peers); i++) {
        const char *s = json_string_value(json_array_get(peers, i));
        copy_name(&in, "peers", s ? s : "", b->peer[b->npeers++]);
    }
    r->code = in.code;
}

int record_decision_encode(const struct record_decision *r, struct bytes *out, struct cairn_error *err)
{
    _cleanup_json_ json_t *o = object_new();

    set_text(o, "decision", r->commit ? "commit" : "abort");
    set_text(o, "node", r->node);
    if (!r->commit)
        set_any_text(o, "reason", r->reason);
    if (r->commit)
        set_blob(o, &r->root);
    set_number(o, "world_size", r->world_size);
    set_number(o, "plain_bytes", r->plain_bytes);
    set_number(o, "stored_bytes", r->stored_bytes);
    set_number(o, "created_unix_ms", r->created_unix_ms);
    if (r->commit && r->counted)
        set_number(o, "nonfinite", r->nonfinite > INT64_MAX ? INT64_MAX : r->nonfinite);
    if (r->commit)
        set_base(o, &r->base);
    return write_out(o, out, err);
}

int record_decision_decode(struct record_decision *ret, const void *data, size_t len, struct cairn_error *err)
{
    struct reader r;
    struct record_decision rec = {.commit = false};
    _cleanup_json_ json_t *o = read_in(&r, "decision", data, len, err);
    const char *decision;

    if (r.code < 0)
        return r.code;
    decision = get_text(&r, "decision");
    rec.commit = strcmp(decision, "commit") == 0;
    if (!rec.commit && strcmp(decision, "abort") != 0)
        wrong(&r, "decision", "commit or abort");
    get_name(&r, "node", rec.node);
    if (!rec.commit)
        snprintf(rec.reason, sizeof rec.reason, "%.*s", (int)sizeof rec.reason - 1, get_text(&r, "reason"));
    if (rec.commit)
        get_blob(&r, &rec.root);
    rec.world_size = (uint32_t)get_number(&r, "world_size", CAIRN_MAX_WORLD);
    rec.plain_bytes = get_number(&r, "plain_bytes", INT64_MAX);
    rec.stored_bytes = get_number(&r, "stored_bytes", INT64_MAX);
    rec.created_unix_ms = get_number(&r, "created_unix_ms", INT64_MAX);
    rec.counted = rec.commit && json_object_get(o, "nonfinite");
    if (rec.counted)
        rec.nonfinite = get_number(&r, "nonfinite", INT64_MAX);
    if (rec.commit)
        get_base(&r, &rec.base);
    if (r.code == 0)
        *ret = rec;
    return r.code;
}

/* ---- settings, holds, tombstones ------------------------------------------------------------- */

int record_settings_encode(const struct record_settings *r, struct bytes *out, struct cairn_error *err)
{
    _cleanup_json_ json_t *o = object_new();

    set_text(o, "owner", r->owner);
    set_text(o, "retention", r->retention);
    return write_out(o, out, err);
}

int record_settings_decode(struct record_settings *ret, const void *data, size_t len, struct cairn_error *err)
{
    struct reader r;
    struct record_settings rec = {.owner = ""};
    _cleanup_json_ json_t *o = read_in(&r, "settings", data, len, err);

    if (r.code < 0)
        return r.code;
    const char *owner = get_text(&r, "owner"), *retention = get_text(&r, "retention");
    if (owner[0])
        copy_name(&r, "owner", owner, rec.owner);
    if (strlen(retention) >= sizeof rec.retention) /* half a rule would keep less */
        wrong(&r, "retention", "rule of a proper length");
    snprintf(rec.retention, sizeof rec.retention, "%.*s", (int)sizeof rec.retention - 1, retention);
    if (r.code == 0)
        *ret = rec;
    return r.code;
}

int record_hold_encode(const struct record_hold *r, struct bytes *out, struct cairn_error *err)
{
    _cleanup_json_ json_t *o = object_new();

    set_text(o, "node", r->node);
    set_id(o, "start", r->start);
    set_number(o, "created_unix_ms", r->created_unix_ms);
    return write_out(o, out, err);
}

int record_hold_decode(struct record_hold *ret, const void *data, size_t len, struct cairn_error *err)
{
    struct reader r;
    struct record_hold rec;
    _cleanup_json_ json_t *o = read_in(&r, "hold", data, len, err);

    if (r.code < 0)
        return r.code;
    get_name(&r, "node", rec.node);
    rec.start = get_id(&r, "start");
    rec.created_unix_ms = get_number(&r, "created_unix_ms", INT64_MAX);
    if (r.code == 0)
        *ret = rec;
    return r.code;
}

int record_tombstone_encode(const struct record_tombstone *r, struct bytes *out, struct cairn_error *err)
{
    _cleanup_json_ json_t *o = object_new();
    json_t *peers = json_array();

    set_text(o, "node", r->node);
    set_any_text(o, "reason", r->reason);
    set_number(o, "created_unix_ms", r->created_unix_ms);
    for (uint32_t i = 0; i < r->npeers && i < RECORD_TOMBSTONE_PEERS; i++)
        json_array_append_new(peers, json_string(r->peers[i]));
    if (json_array_size(peers) != r->npeers) /* a peer that is left out would keep its files for good */
        json_object_del(o, "v");
    set(o, "peers", peers);
    return write_out(o, out, err);
}

int record_tombstone_decode(struct record_tombstone *ret, const void *data, size_t len, struct cairn_error *err)
{
    struct reader r;
    _cleanup_json_ json_t *o = read_in(&r, "tombstone", data, len, err);
    _cleanup_free_ struct record_tombstone *rec = calloc(1, sizeof *rec);
    json_t *peers = json_object_get(r.o, "peers");

    if (r.code < 0 || !rec)
        return r.code < 0 ? r.code : cairn_fail(err, CAIRN_E_NOMEM, "read a record");
    get_name(&r, "node", rec->node);
    snprintf(rec->reason, sizeof rec->reason, "%.*s", (int)sizeof rec->reason - 1, get_text(&r, "reason"));
    rec->created_unix_ms = get_number(&r, "created_unix_ms", INT64_MAX);
    if (!json_is_array(peers) || json_array_size(peers) > RECORD_TOMBSTONE_PEERS)
        wrong(&r, "peers", "list of peers");
    for (size_t i = 0; r.code == 0 && i < json_array_size(peers); i++) {
        const char *s = json_string_value(json_array_get(peers, i));
        copy_name(&r, "peers", s ? s : "", rec->peers[rec->npeers++]);
    }
    if (r.code == 0)
        *ret = *rec;
    return r.code;
}
