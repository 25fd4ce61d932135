/* SPDX-License-Identifier: Apache-2.0 */
#include "core/proto/crew.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/name.h"
#include "core/model/units.h"
#include "core/proto/numerics.h"

#include "crew.pb-c.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef Cairn__Crew__V1__Letter pb_letter;
typedef Cairn__Crew__V1__Entry pb_entry;

const char *crew_type_name(int type)
{
    static const char *const names[] = {"GREET", "PLACE", "REPORT", "VERDICT"};

    return type >= CREW_GREET && type <= CREW_VERDICT ? names[type - CREW_GREET] : "UNKNOWN";
}

/* protobuf-c's strings are char *, though packing only reads them. */
static char *str(const char *s)
{
    return (char *)(uintptr_t)s;
}

static ProtobufCBinaryData data_of(const void *data, size_t len)
{
    return (ProtobufCBinaryData){.len = len, .data = (uint8_t *)(uintptr_t)data};
}

/* ---- encode: a body on the stack, packed within its case ------------------------------------- */

static int pack(const pb_letter *p, struct bytes *out, struct cairn_error *err)
{
    size_t len = cairn__crew__v1__letter__get_packed_size(p);
    uint8_t buf[CREW_MAX];

    if (len > CREW_MAX)
        return cairn_fail(err, CAIRN_E_INVAL, "a letter of %zu bytes: at most %zu are possible", len, CREW_MAX);
    bytes_put(out, buf, cairn__crew__v1__letter__pack(p, buf));
    return out->bad ? cairn_fail(err, CAIRN_E_NOMEM, "allocate a letter of %zu bytes", len) : 0;
}

static int encode_greet(pb_letter *p, const struct crew_letter *l, struct bytes *out, struct cairn_error *err)
{
    Cairn__Crew__V1__Greet b = CAIRN__CREW__V1__GREET__INIT;
    uint32_t ranks[CREW_MAX_RANKS];

    b.incarnation = l->greet.incarnation;
    b.n_ranks = l->greet.nranks < CREW_MAX_RANKS ? l->greet.nranks : CREW_MAX_RANKS;
    memcpy(ranks, l->greet.ranks, b.n_ranks * sizeof ranks[0]);
    b.ranks = ranks;
    p->body_case = CAIRN__CREW__V1__LETTER__BODY_GREET;
    p->greet = &b;
    return pack(p, out, err);
}

static int encode_place(pb_letter *p, const struct crew_letter *l, struct bytes *out, struct cairn_error *err)
{
    Cairn__Crew__V1__Place b = CAIRN__CREW__V1__PLACE__INIT;

    b.coordinates = l->place.coordinates;
    b.parent = str(l->place.parent.node);
    b.parent_start = l->place.parent.start;
    b.parent_address = data_of(l->place.parent.bytes, l->place.parent.len);
    b.incarnation = l->place.incarnation;
    p->body_case = CAIRN__CREW__V1__LETTER__BODY_PLACE;
    p->place = &b;
    return pack(p, out, err);
}

struct scratch { /* what one entry needs beside it */
    pb_entry entry;
    Cairn__Manifest__V1__Numerics numerics;
    char *peers[CAIRN_MAX_M + 1];
};

static void fill_entry(struct scratch *to, const struct crew_entry *from)
{
    const struct blob_ref *manifest = &from->shard.manifest;
    pb_entry *e = &to->entry;

    cairn__crew__v1__entry__init(e);
    e->rank = from->rank;
    e->state = (uint32_t)from->state;
    e->node = str(from->shard.node);
    e->pin_number = from->pin_number;
    e->reason = str(from->reason);
    if (from->state != REPORT_DURABLE)
        return;
    e->manifest_len = manifest->len;
    e->manifest_sha256 = data_of(manifest->sha256, SHA256_LEN);
    e->manifest_peers = to->peers;
    for (; e->n_manifest_peers < manifest->npeers; e->n_manifest_peers++)
        to->peers[e->n_manifest_peers] = str(manifest->peer[e->n_manifest_peers]);
    e->plain_bytes = from->shard.plain_bytes;
    e->stored_bytes = from->shard.stored_bytes;
    e->numerics = numerics_fill(&to->numerics, &from->shard.numerics);
}

static int encode_report(pb_letter *p, const struct crew_letter *l, struct bytes *out, struct cairn_error *err)
{
    Cairn__Crew__V1__Report b = CAIRN__CREW__V1__REPORT__INIT;
    struct scratch entries[CREW_MAX_ENTRIES];
    pb_entry *list[CREW_MAX_ENTRIES];

    for (; b.n_entries < l->report.nentries && b.n_entries < CREW_MAX_ENTRIES; b.n_entries++) {
        fill_entry(&entries[b.n_entries], &l->report.entries[b.n_entries]);
        list[b.n_entries] = &entries[b.n_entries].entry;
    }
    b.step = l->report.step;
    b.incarnation = l->report.incarnation;
    b.coordinator = l->report.coordinator;
    b.hops = l->report.hops;
    b.hurry = l->report.hurry;
    b.entries = list;
    p->body_case = CAIRN__CREW__V1__LETTER__BODY_REPORT;
    p->report = &b;
    return pack(p, out, err);
}

static int encode_verdict(pb_letter *p, const struct crew_letter *l, struct bytes *out, struct cairn_error *err)
{
    Cairn__Crew__V1__Verdict b = CAIRN__CREW__V1__VERDICT__INIT;

    b.step = l->verdict.step;
    b.incarnation = l->verdict.incarnation;
    b.coordinator = l->verdict.coordinator;
    b.verdict = (uint32_t)l->verdict.verdict;
    b.hurry = l->verdict.hurry;
    b.code = l->verdict.status.code;
    b.reason = str(l->verdict.status.message);
    b.base_step = l->verdict.base.is_set ? l->verdict.base.step : 0;
    b.base_incarnation = l->verdict.base.is_set ? l->verdict.base.incarnation : 0;
    p->body_case = CAIRN__CREW__V1__LETTER__BODY_VERDICT;
    p->verdict = &b;
    return pack(p, out, err);
}

int crew_encode(const struct crew_letter *l, struct bytes *out, struct cairn_error *err)
{
    static int (*const encoders[])(pb_letter *, const struct crew_letter *, struct bytes *,
                                   struct cairn_error *) = {encode_greet, encode_place, encode_report, encode_verdict};
    pb_letter p = CAIRN__CREW__V1__LETTER__INIT;

    if (l->type < CREW_GREET || l->type > CREW_VERDICT)
        return cairn_fail(err, CAIRN_E_INVAL, "a letter of type %d", l->type);
    p.version = CREW_VERSION;
    p.node = str(l->from.node);
    p.start = l->from.start;
    p.address = data_of(l->from.bytes, l->from.len);
    p.job = str(l->job);
    return encoders[l->type - CREW_GREET](&p, l, out, err);
}

/* ---- decode: untrusted ----------------------------------------------------------------------- */

static int bad(struct cairn_error *err, const char *what)
{
    return cairn_fail(err, CAIRN_E_PROTOCOL, "a letter %s", what);
}

static int get_name(const char *what, const char *from, char to[CAIRN_MAX_NAME + 1], struct cairn_error *err)
{
    if (cairn_name_check(what, from, err) < 0)
        return cairn_wrap(err, CAIRN_E_PROTOCOL, "a letter");
    snprintf(to, CAIRN_MAX_NAME + 1, "%s", from);
    return 0;
}

static int get_address(const char *node, uint64_t start, const ProtobufCBinaryData *bytes, struct crew_address *to,
                       struct cairn_error *err)
{
    if (bytes->len == 0 || bytes->len > WIRE_MAX_ADDR)
        return bad(err, "with no address, or too long a one");
    to->start = start;
    to->len = bytes->len;
    memcpy(to->bytes, bytes->data, bytes->len);
    return get_name("node", node, to->node, err);
}

static void get_text(const char *from, char to[WIRE_TEXT])
{
    size_t len = strnlen(from, WIRE_TEXT);

    len = len < WIRE_TEXT ? len : cairn_whole_characters(from, WIRE_TEXT - 1);
    snprintf(to, WIRE_TEXT, "%.*s", (int)len, from);
}

static int decode_greet(const Cairn__Crew__V1__Greet *b, struct crew_letter *l, struct cairn_error *err)
{
    if (b->n_ranks > CREW_MAX_RANKS)
        return bad(err, "of a node with too many ranks");
    l->greet.incarnation = b->incarnation;
    for (; l->greet.nranks < b->n_ranks; l->greet.nranks++) {
        l->greet.ranks[l->greet.nranks] = b->ranks[l->greet.nranks];
        if (b->ranks[l->greet.nranks] >= CAIRN_MAX_WORLD)
            return bad(err, "of a rank beyond any world");
    }
    return 0;
}

static int decode_place(const Cairn__Crew__V1__Place *b, struct crew_letter *l, struct cairn_error *err)
{
    l->place.coordinates = b->coordinates;
    l->place.incarnation = b->incarnation;
    if (!b->parent[0])
        return 0;
    return get_address(b->parent, b->parent_start, &b->parent_address, &l->place.parent, err);
}

static int decode_shard(const pb_entry *e, struct shard_ref *to, struct cairn_error *err)
{
    struct blob_ref *manifest = &to->manifest;

    if (e->manifest_sha256.len != SHA256_LEN || e->manifest_len == 0 || e->manifest_len > MANIFEST_MAX)
        return bad(err, "of a durable shard without a manifest");
    if (e->n_manifest_peers > CAIRN_MAX_M + 1)
        return bad(err, "of a manifest in too many places");
    manifest->len = e->manifest_len;
    memcpy(manifest->sha256, e->manifest_sha256.data, SHA256_LEN);
    to->plain_bytes = e->plain_bytes;
    to->stored_bytes = e->stored_bytes;
    numerics_decode(&to->numerics, e->numerics);
    int r = 0;
    for (; r == 0 && manifest->npeers < e->n_manifest_peers; manifest->npeers++)
        r = get_name("peer", e->manifest_peers[manifest->npeers], manifest->peer[manifest->npeers], err);
    return r;
}

static int decode_entry(const pb_entry *e, struct crew_entry *to, struct cairn_error *err)
{
    if (e->state < REPORT_BEGUN || e->state >= REPORT_STATES)
        return bad(err, "of a rank in a state that does not exist");
    if (e->rank >= CAIRN_MAX_WORLD)
        return bad(err, "of a rank beyond any world");
    to->rank = to->shard.rank = e->rank;
    to->state = (int)e->state;
    to->pin_number = e->pin_number;
    get_text(e->reason, to->reason);
    int r = get_name("node", e->node, to->shard.node, err);
    return r == 0 && to->state == REPORT_DURABLE ? decode_shard(e, &to->shard, err) : r;
}

static int decode_report(const Cairn__Crew__V1__Report *b, struct crew_letter *l, struct cairn_error *err)
{
    int r = 0;

    if (b->n_entries == 0 || b->n_entries > CREW_MAX_ENTRIES)
        return bad(err, "with no report, or too many");
    l->report.step = b->step;
    l->report.incarnation = b->incarnation;
    l->report.coordinator = b->coordinator;
    l->report.hops = b->hops;
    l->report.hurry = b->hurry;
    for (; r == 0 && l->report.nentries < b->n_entries; l->report.nentries++)
        r = decode_entry(b->entries[l->report.nentries], &l->report.entries[l->report.nentries], err);
    return r;
}

static int decode_verdict(const Cairn__Crew__V1__Verdict *b, struct crew_letter *l, struct cairn_error *err)
{
    if (b->verdict <= VERDICT_NONE || b->verdict >= VERDICTS)
        return bad(err, "with a verdict that does not exist");
    if (b->code > 0 || b->code < -1000 || (b->code == 0) != (b->verdict < VERDICT_ABORTED))
        return bad(err, "with a verdict whose code does not fit it");
    if (b->base_incarnation && (b->verdict != VERDICT_INTENT ||
                                !ckpt_base_is_older(b->base_step, b->base_incarnation, b->step, b->incarnation)))
        return bad(err, "with a base that is not older, or of no intent");
    l->verdict.base.is_set = b->base_incarnation > 0;
    l->verdict.base.step = b->base_step;
    l->verdict.base.incarnation = b->base_incarnation;
    l->verdict.step = b->step;
    l->verdict.incarnation = b->incarnation;
    l->verdict.coordinator = b->coordinator;
    l->verdict.verdict = (int)b->verdict;
    l->verdict.hurry = b->hurry;
    l->verdict.status.code = b->code;
    get_text(b->reason, l->verdict.status.message);
    return 0;
}

static int decode_body(const pb_letter *p, struct crew_letter *l, struct cairn_error *err)
{
    switch (l->type) {
    case CREW_GREET:
        return decode_greet(p->greet, l, err);
    case CREW_PLACE:
        return decode_place(p->place, l, err);
    case CREW_REPORT:
        return decode_report(p->report, l, err);
    case CREW_VERDICT:
        return decode_verdict(p->verdict, l, err);
    default:
        return bad(err, "without a body, or of a type that this daemon does not know");
    }
}

int crew_decode(const void *data, size_t len, struct crew_letter *ret, struct cairn_error *err)
{
    pb_letter *p = len <= CREW_MAX ? cairn__crew__v1__letter__unpack(NULL, len, data) : NULL;
    int r;

    if (!p)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "%zu bytes that are no letter", len);
    *ret = (struct crew_letter){.type = (int)p->body_case};
    if (p->version != CREW_VERSION || p->required_features != 0)
        r = cairn_fail(err, CAIRN_E_PROTOCOL,
                       "a letter of version %u with required features 0x%llx: this daemon speaks version %d",
                       p->version, (unsigned long long)p->required_features, CREW_VERSION);
    else
        r = get_address(p->node, p->start, &p->address, &ret->from, err);
    if (r == 0)
        r = get_name("job", p->job, ret->job, err);
    if (r == 0)
        r = decode_body(p, ret, err);
    cairn__crew__v1__letter__free_unpacked(p, NULL);
    return r;
}

/* ---- the envelope ---------------------------------------------------------------------------- */

int crew_seal(const struct bytes *letter, uint32_t key_id, const uint8_t tag[CREW_TAG], struct bytes *out,
              struct cairn_error *err)
{
    Cairn__Crew__V1__Signed p = CAIRN__CREW__V1__SIGNED__INIT;
    uint8_t buf[CREW_MAX + 64];

    p.letter = data_of(letter->data, letter->len);
    p.key_id = key_id;
    p.tag = data_of(tag, key_id ? CREW_TAG : 0);
    if (cairn__crew__v1__signed__get_packed_size(&p) > sizeof buf)
        return cairn_fail(err, CAIRN_E_INVAL, "a letter of %zu bytes", letter->len);
    bytes_put(out, buf, cairn__crew__v1__signed__pack(&p, buf));
    return out->bad ? cairn_fail(err, CAIRN_E_NOMEM, "allocate an envelope") : 0;
}

int crew_open(const void *data, size_t len, struct crew_sealed *ret, struct cairn_error *err)
{
    Cairn__Crew__V1__Signed *p = len <= CREW_MAX + 64 ? cairn__crew__v1__signed__unpack(NULL, len, data) : NULL;
    struct crew_sealed s = {.key_id = 0};
    int r = 0;

    if (!p)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "%zu bytes that are no envelope", len);
    if (p->letter.len == 0 || p->tag.len != (p->key_id ? CREW_TAG : 0))
        r = bad(err, "without content, or with half a signature");
    if (r == 0) {
        s.key_id = p->key_id;
        memcpy(s.tag, p->tag.data ? p->tag.data : (const uint8_t *)"", p->tag.len);
        bytes_put(&s.letter, p->letter.data, p->letter.len);
        if (s.letter.bad)
            r = cairn_fail(err, CAIRN_E_NOMEM, "allocate a letter");
    }
    cairn__crew__v1__signed__free_unpacked(p, NULL);
    if (r == 0)
        *ret = s;
    return r;
}
