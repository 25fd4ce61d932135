/* SPDX-License-Identifier: Apache-2.0 */
/* Messages of the handshake: CHALLENGE and PROOF. */
#include "core/proto/wire_internal.h"

#include "core/base/error.h"

#include <string.h>

typedef Cairn__Wire__V1__Envelope envelope;

static ProtobufCBinaryData data_of(const uint8_t *data, size_t len)
{
    return (ProtobufCBinaryData){.len = len, .data = (uint8_t *)(uintptr_t)data};
}

const char *wire_proof_name(int type)
{
    return type == WIRE_CHALLENGE ? "CHALLENGE" : type == WIRE_PROOF ? "PROOF" : NULL;
}

int wire_proof_encode(envelope *e, const struct wire_message *m, uint8_t buf[WIRE_MAX], struct cairn_error *err)
{
    Cairn__Wire__V1__Challenge challenge = CAIRN__WIRE__V1__CHALLENGE__INIT;
    Cairn__Wire__V1__Proof proof = CAIRN__WIRE__V1__PROOF__INIT;

    if (m->type == WIRE_CHALLENGE) {
        e->body_case = CAIRN__WIRE__V1__ENVELOPE__BODY_CHALLENGE;
        e->challenge = &challenge;
        challenge.peer = wire_str(m->challenge.peer);
        challenge.start = m->challenge.start;
        challenge.nonce = data_of(m->challenge.nonce, PROOF_NONCE);
        challenge.key_id = m->challenge.key_id;
        challenge.tag = data_of(m->challenge.tag, PROOF_TAG);
    } else {
        e->body_case = CAIRN__WIRE__V1__ENVELOPE__BODY_PROOF;
        e->proof = &proof;
        proof.key_id = m->proof.key_id;
        proof.tag = data_of(m->proof.tag, PROOF_TAG);
    }
    return wire_pack(e, buf, err);
}

static int get_data(const ProtobufCBinaryData *from, uint8_t *to, size_t len, struct cairn_error *err)
{
    if (from->len != len)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "a handshake with %zu bytes where %zu are wanted", from->len, len);
    memcpy(to, from->data, len);
    return 0;
}

int wire_proof_decode(const envelope *e, struct wire_message *m, struct cairn_error *err)
{
    if (m->type == WIRE_PROOF) {
        m->proof.key_id = e->proof->key_id;
        return get_data(&e->proof->tag, m->proof.tag, PROOF_TAG, err);
    }
    m->challenge.start = e->challenge->start;
    m->challenge.key_id = e->challenge->key_id;
    int r = wire_get_name("peer", e->challenge->peer, m->challenge.peer, err);
    if (r == 0)
        r = get_data(&e->challenge->nonce, m->challenge.nonce, PROOF_NONCE, err);
    return r == 0 ? get_data(&e->challenge->tag, m->challenge.tag, PROOF_TAG, err) : r;
}
