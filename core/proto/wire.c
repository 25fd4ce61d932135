/* SPDX-License-Identifier: Apache-2.0 */
#include "core/proto/wire.h"

#include "core/base/error.h"
#include "core/model/name.h"
#include "core/proto/wire_internal.h"

#include <stdio.h>
#include <string.h>

typedef Cairn__Wire__V1__Envelope envelope;

const char *wire_type_name(int type)
{
    static const char *const names[] = {"HELLO",  "WELCOME",      "STREAM_OPEN", "STREAM_OPENED", "STORED", "SYNC",
                                        "SYNCED", "STREAM_CLOSE", "READ",        "READ_DONE",     "FORGET", "PING",
                                        "PONG",   "BYE"};

    if (wire_care_name(type))
        return wire_care_name(type);
    if (wire_proof_name(type))
        return wire_proof_name(type);
    if (type == WIRE_FORGOTTEN)
        return "FORGOTTEN";
    return type >= WIRE_HELLO && type <= WIRE_BYE ? names[type - WIRE_HELLO] : "UNKNOWN";
}

void wire_status_set(struct wire_status *s, int code, const struct cairn_error *err)
{
    s->code = code;
    snprintf(s->message, sizeof s->message, "%.*s", WIRE_TEXT - 1, code < 0 && err ? err->message : "");
}

/* ---- encode: a body on the stack, packed within its case ------------------------------------- */

int wire_pack(const envelope *e, uint8_t buf[WIRE_MAX], struct cairn_error *err)
{
    size_t len = cairn__wire__v1__envelope__get_packed_size(e);

    if (len > WIRE_MAX)
        return cairn_fail(err, CAIRN_E_INVAL, "a message of %zu bytes: at most %d are possible", len, WIRE_MAX);
    return (int)cairn__wire__v1__envelope__pack(e, buf);
}

#define BODY(Type_, INIT_, field_, CASE_)                          \
    Cairn__Wire__V1__##Type_ b = CAIRN__WIRE__V1__##INIT_##__INIT; \
    e->body_case = CAIRN__WIRE__V1__ENVELOPE__BODY_##CASE_;        \
    e->field_ = &b

static int encode_hello(envelope *e, const struct wire_message *m, uint8_t *buf, struct cairn_error *err)
{
    BODY(Hello, HELLO, hello, HELLO);
    b.node = wire_str(m->hello.node);
    b.start = m->hello.start;
    b.address.data = (uint8_t *)(uintptr_t)m->hello.address;
    b.address.len = m->hello.address_len;
    b.slots = m->hello.slots;
    b.nonce.data = (uint8_t *)(uintptr_t)m->hello.nonce;
    b.nonce.len = m->hello.has_nonce ? PROOF_NONCE : 0;
    return wire_pack(e, buf, err);
}

static int encode_welcome(envelope *e, const struct wire_message *m, uint8_t *buf, struct cairn_error *err)
{
    BODY(Welcome, WELCOME, welcome, WELCOME);
    b.code = m->welcome.status.code;
    b.message = wire_str(m->welcome.status.message);
    b.peer = wire_str(m->welcome.peer);
    b.start = m->welcome.start;
    b.slots = m->welcome.slots;
    b.slot_bytes = m->welcome.slot_bytes;
    b.key = m->welcome.key;
    b.slots_base = m->welcome.base;
    b.first_slot = m->welcome.first_slot;
    return wire_pack(e, buf, err);
}

static int encode_stream_open(envelope *e, const struct wire_message *m, uint8_t *buf, struct cairn_error *err)
{
    BODY(StreamOpen, STREAM_OPEN, stream_open, STREAM_OPEN);
    b.stream = m->stream_open.stream;
    b.job = wire_str(m->stream_open.job);
    b.step = m->stream_open.step;
    b.incarnation = m->stream_open.incarnation;
    b.node = wire_str(m->stream_open.node);
    b.reserve_bytes = m->stream_open.reserve_bytes;
    b.fence_incarnation = m->stream_open.fence_incarnation;
    b.repair = m->stream_open.repair;
    return wire_pack(e, buf, err);
}

static int encode_stream_opened(envelope *e, const struct wire_message *m, uint8_t *buf, struct cairn_error *err)
{
    BODY(StreamOpened, STREAM_OPENED, stream_opened, STREAM_OPENED);
    b.stream = m->stream_opened.stream;
    b.code = m->stream_opened.status.code;
    b.message = wire_str(m->stream_opened.status.message);
    b.generation = m->stream_opened.generation;
    return wire_pack(e, buf, err);
}

static int encode_stored(envelope *e, const struct wire_message *m, uint8_t *buf, struct cairn_error *err)
{
    BODY(Stored, STORED, stored, STORED);
    b.slot = m->stored.slot;
    b.generation = m->stored.generation;
    b.code = m->stored.status.code;
    b.message = wire_str(m->stored.status.message);
    b.stream = m->stored.stream;
    return wire_pack(e, buf, err);
}

static int encode_sync(envelope *e, const struct wire_message *m, uint8_t *buf, struct cairn_error *err)
{
    BODY(Sync, SYNC, sync, SYNC);
    b.stream = m->sync.stream;
    b.sequence = m->sync.sequence;
    return wire_pack(e, buf, err);
}

static int encode_synced(envelope *e, const struct wire_message *m, uint8_t *buf, struct cairn_error *err)
{
    BODY(Synced, SYNCED, synced, SYNCED);
    b.stream = m->synced.stream;
    b.sequence = m->synced.sequence;
    b.code = m->synced.status.code;
    b.message = wire_str(m->synced.status.message);
    return wire_pack(e, buf, err);
}

static int encode_stream_close(envelope *e, const struct wire_message *m, uint8_t *buf, struct cairn_error *err)
{
    BODY(StreamClose, STREAM_CLOSE, stream_close, STREAM_CLOSE);
    b.stream = m->stream_close.stream;
    return wire_pack(e, buf, err);
}

static int encode_read(envelope *e, const struct wire_message *m, uint8_t *buf, struct cairn_error *err)
{
    Cairn__Wire__V1__FragmentKey key = CAIRN__WIRE__V1__FRAGMENT_KEY__INIT;
    BODY(Read, READ, read, READ);

    key.job = wire_str(m->read.key.job);
    key.node = wire_str(m->read.key.node);
    key.step = m->read.key.step;
    key.incarnation = m->read.key.incarnation;
    key.kind = (Cairn__Wire__V1__FragmentKind)m->read.key.kind;
    key.rank = m->read.key.rank;
    key.first_part = m->read.key.first_part;
    key.attempt = m->read.key.attempt;
    key.index = m->read.key.index;
    b.request = m->read.request;
    b.key = &key;
    b.check = m->read.check;
    b.address = m->read.address;
    b.remote_key = m->read.remote_key;
    b.room = m->read.room;
    b.data = m->read.data;
    b.present = m->read.present;
    return wire_pack(e, buf, err);
}

static int encode_read_done(envelope *e, const struct wire_message *m, uint8_t *buf, struct cairn_error *err)
{
    BODY(ReadDone, READ_DONE, read_done, READ_DONE);
    b.request = m->read_done.request;
    b.code = m->read_done.status.code;
    b.message = wire_str(m->read_done.status.message);
    return wire_pack(e, buf, err);
}

static int encode_forget(envelope *e, const struct wire_message *m, uint8_t *buf, struct cairn_error *err)
{
    BODY(Forget, FORGET, forget, FORGET);
    b.job = wire_str(m->forget.job);
    b.step = m->forget.step;
    b.incarnation = m->forget.incarnation;
    return wire_pack(e, buf, err);
}

static int encode_forgotten(envelope *e, const struct wire_message *m, uint8_t *buf, struct cairn_error *err)
{
    BODY(Forgotten, FORGOTTEN, forgotten, FORGOTTEN);
    b.job = wire_str(m->forget.job);
    b.step = m->forget.step;
    b.incarnation = m->forget.incarnation;
    return wire_pack(e, buf, err);
}

static int encode_ping(envelope *e, const struct wire_message *m, uint8_t *buf, struct cairn_error *err)
{
    BODY(Ping, PING, ping, PING);
    b.request = m->ping.request;
    return wire_pack(e, buf, err);
}

static int encode_pong(envelope *e, const struct wire_message *m, uint8_t *buf, struct cairn_error *err)
{
    BODY(Pong, PONG, pong, PONG);
    b.request = m->pong.request;
    b.free_bytes = m->pong.free_bytes;
    return wire_pack(e, buf, err);
}

static int encode_bye(envelope *e, const struct wire_message *m, uint8_t *buf, struct cairn_error *err)
{
    BODY(Bye, BYE, bye, BYE);
    b.reason = wire_str(m->bye.reason);
    return wire_pack(e, buf, err);
}

int wire_encode(const struct wire_message *m, uint8_t buf[WIRE_MAX], struct cairn_error *err)
{
    static int (*const encoders[])(envelope *, const struct wire_message *, uint8_t *, struct cairn_error *) = {
        encode_hello,  encode_welcome,      encode_stream_open, encode_stream_opened, encode_stored, encode_sync,
        encode_synced, encode_stream_close, encode_read,        encode_read_done,     encode_forget, encode_ping,
        encode_pong,   encode_bye};
    envelope e = CAIRN__WIRE__V1__ENVELOPE__INIT;

    e.version = WIRE_VERSION;
    e.session = m->session;
    if (wire_care_name(m->type))
        return wire_care_encode(&e, m, buf, err);
    if (wire_proof_name(m->type))
        return wire_proof_encode(&e, m, buf, err);
    if (m->type == WIRE_FORGOTTEN)
        return encode_forgotten(&e, m, buf, err);
    if (m->type < WIRE_HELLO || m->type > WIRE_BYE)
        return cairn_fail(err, CAIRN_E_INVAL, "a message of type %d", m->type);
    return encoders[m->type - WIRE_HELLO](&e, m, buf, err);
}

/* ---- decode ---------------------------------------------------------------------------------- */

static int bad(struct cairn_error *err, const char *what)
{
    return cairn_fail(err, CAIRN_E_PROTOCOL, "%s", what);
}

int wire_get_name(const char *what, const char *from, char to[CAIRN_MAX_NAME + 1], struct cairn_error *err)
{
    if (cairn_name_check(what, from, err) < 0)
        return cairn_wrap(err, CAIRN_E_PROTOCOL, "a message");
    snprintf(to, CAIRN_MAX_NAME + 1, "%s", from);
    return 0;
}

int wire_get_status(int32_t code, const char *message, struct wire_status *to, struct cairn_error *err)
{
    if (code > 0 || code < -1000)
        return bad(err, "a status that is no code");
    to->code = code;
    snprintf(to->message, sizeof to->message, "%.*s", WIRE_TEXT - 1, message);
    return 0;
}

static int decode_hello(const Cairn__Wire__V1__Hello *b, struct wire_message *m, struct cairn_error *err)
{
    if (b->address.len == 0 || b->address.len > WIRE_MAX_ADDR)
        return bad(err, "a HELLO with no address, or too long a one");
    if (b->slots > 1 << 16)
        return bad(err, "a HELLO that wants too many slots");
    m->hello.start = b->start;
    memcpy(m->hello.address, b->address.data, b->address.len);
    m->hello.address_len = b->address.len;
    m->hello.slots = b->slots;
    if (b->nonce.len != 0 && b->nonce.len != PROOF_NONCE)
        return bad(err, "a HELLO with a nonce of another length");
    m->hello.has_nonce = b->nonce.len > 0;
    if (m->hello.has_nonce)
        memcpy(m->hello.nonce, b->nonce.data, PROOF_NONCE);
    return wire_get_name("node", b->node, m->hello.node, err);
}

static int decode_welcome(const Cairn__Wire__V1__Welcome *b, struct wire_message *m, struct cairn_error *err)
{
    if (b->slots > 1 << 16 || b->first_slot > 1 << 16 || b->slots + b->first_slot > 1 << 16)
        return bad(err, "a WELCOME with slots beyond the completion data's range");
    if (b->code == 0 && (b->slots == 0 || b->slot_bytes < FRAGMENT_MAX_RECORD || b->slot_bytes > (uint64_t)1 << 30))
        return bad(err, "a WELCOME with slots that hold no fragment");
    m->welcome.start = b->start;
    m->welcome.slots = b->slots;
    m->welcome.first_slot = b->first_slot;
    m->welcome.slot_bytes = b->slot_bytes;
    m->welcome.key = b->key;
    m->welcome.base = b->slots_base;
    int r = wire_get_status(b->code, b->message, &m->welcome.status, err);
    return r < 0 ? r : wire_get_name("peer", b->peer, m->welcome.peer, err);
}

static int decode_stream_open(const Cairn__Wire__V1__StreamOpen *b, struct wire_message *m, struct cairn_error *err)
{
    if (b->reserve_bytes > (uint64_t)1 << 50)
        return bad(err, "a STREAM_OPEN that reserves too much");
    m->stream_open.stream = b->stream;
    m->stream_open.step = b->step;
    m->stream_open.incarnation = b->incarnation;
    m->stream_open.reserve_bytes = b->reserve_bytes;
    m->stream_open.fence_incarnation = b->fence_incarnation;
    m->stream_open.repair = b->repair;
    int r = wire_get_name("job", b->job, m->stream_open.job, err);
    return r < 0 ? r : wire_get_name("node", b->node, m->stream_open.node, err);
}

static int decode_read(const Cairn__Wire__V1__Read *b, struct wire_message *m, struct cairn_error *err)
{
    const Cairn__Wire__V1__FragmentKey *key = b->key;
    struct fragment_key *to = &m->read.key;

    if (!key)
        return bad(err, "a READ without a key");
    if ((int)key->kind < FRAGMENT_DATA || (int)key->kind > FRAGMENT_DECISION)
        return bad(err, "a READ of a kind that does not exist");
    if (key->index >= CAIRN_MAX_FRAGS)
        return bad(err, "a READ of a fragment beyond any stripe");
    to->kind = (int)key->kind;
    to->step = key->step;
    to->incarnation = key->incarnation;
    to->rank = key->rank;
    to->first_part = key->first_part;
    to->attempt = key->attempt;
    to->index = key->index;
    m->read.request = b->request;
    m->read.check = b->check;
    m->read.address = b->address;
    m->read.remote_key = b->remote_key;
    m->read.room = b->room;
    m->read.data = b->data;
    m->read.present = b->present;
    int r = wire_get_name("job", key->job, to->job, err);
    return r < 0 ? r : wire_get_name("node", key->node, to->node, err);
}

static int decode_body(const envelope *e, struct wire_message *m, struct cairn_error *err)
{
    if (wire_proof_name(m->type))
        return wire_proof_decode(e, m, err);
    switch (m->type) {
    case WIRE_HELLO:
        return decode_hello(e->hello, m, err);
    case WIRE_WELCOME:
        return decode_welcome(e->welcome, m, err);
    case WIRE_STREAM_OPEN:
        return decode_stream_open(e->stream_open, m, err);
    case WIRE_STREAM_OPENED:
        m->stream_opened.stream = e->stream_opened->stream;
        m->stream_opened.generation = e->stream_opened->generation;
        return wire_get_status(e->stream_opened->code, e->stream_opened->message, &m->stream_opened.status, err);
    case WIRE_STORED:
        if (e->stored->slot > UINT16_MAX || e->stored->generation > UINT16_MAX)
            return bad(err, "a STORED beyond the completion data's range");
        m->stored.slot = e->stored->slot;
        m->stored.generation = e->stored->generation;
        m->stored.stream = e->stored->stream;
        return wire_get_status(e->stored->code, e->stored->message, &m->stored.status, err);
    case WIRE_SYNC:
        m->sync.stream = e->sync->stream;
        m->sync.sequence = e->sync->sequence;
        return 0;
    case WIRE_SYNCED:
        m->synced.stream = e->synced->stream;
        m->synced.sequence = e->synced->sequence;
        return wire_get_status(e->synced->code, e->synced->message, &m->synced.status, err);
    case WIRE_STREAM_CLOSE:
        m->stream_close.stream = e->stream_close->stream;
        return 0;
    case WIRE_READ:
        return decode_read(e->read, m, err);
    case WIRE_READ_DONE:
        m->read_done.request = e->read_done->request;
        return wire_get_status(e->read_done->code, e->read_done->message, &m->read_done.status, err);
    case WIRE_FORGET:
        m->forget.step = e->forget->step;
        m->forget.incarnation = e->forget->incarnation;
        return wire_get_name("job", e->forget->job, m->forget.job, err);
    case WIRE_FORGOTTEN:
        m->forget.step = e->forgotten->step;
        m->forget.incarnation = e->forgotten->incarnation;
        return wire_get_name("job", e->forgotten->job, m->forget.job, err);
    case WIRE_PING:
        m->ping.request = e->ping->request;
        return 0;
    case WIRE_PONG:
        m->pong.request = e->pong->request;
        m->pong.free_bytes = e->pong->free_bytes;
        return 0;
    case WIRE_BYE:
        snprintf(m->bye.reason, sizeof m->bye.reason, "%.*s", WIRE_TEXT - 1, e->bye->reason);
        return 0;
    default:
        if (wire_care_name(m->type))
            return wire_care_decode(e, m, err);
        return bad(err, "a message without a body, or of a type that this daemon does not know");
    }
}

int wire_decode(const void *data, size_t len, struct wire_message *ret, struct cairn_error *err)
{
    envelope *e = len <= WIRE_MAX ? cairn__wire__v1__envelope__unpack(NULL, len, data) : NULL;
    struct wire_message m = {.type = 0};
    int r;

    if (!e)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "%zu bytes that are no message", len);
    m.type = (int)e->body_case;
    m.session = e->session;
    if (e->version != WIRE_VERSION || e->required_features != 0)
        r = cairn_fail(err, CAIRN_E_PROTOCOL,
                       "a message of version %u with required features 0x%llx: this daemon speaks version %d",
                       e->version, (unsigned long long)e->required_features, WIRE_VERSION);
    else
        r = decode_body(e, &m, err);
    cairn__wire__v1__envelope__free_unpacked(e, NULL);
    if (r == 0)
        *ret = m;
    return r;
}
