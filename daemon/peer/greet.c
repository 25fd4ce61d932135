/* SPDX-License-Identifier: Apache-2.0 */
/* Who may become a node of this peer. With a key, both sides prove that they hold it before a slot is granted:
 *
 *     Hello + nonce -> a handshake -> Challenge: our nonce, our proof -> Proof: the node's -> admitted: Welcome
 *
 * Without a key a Hello is enough, which the daemon's start allows on loopback only. Handshakes are bounded in number
 * and in time, and hold nothing else: a flood of greetings costs that. */
#include "daemon/peer/internal.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "daemon/io/log.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#define HANDSHAKE_MS 5000

static uint64_t greet_now_ns(const struct peer *p)
{
    return loop_now_ns(p->deps.loop);
}

/* The oldest makes room: an honest node's is over within one round trip. */
static struct handshake *handshake_new(struct peer *p)
{
    struct handshake *oldest = &p->handshakes[0];

    for (unsigned i = 0; i < PEER_MAX_HANDSHAKES; i++)
        if (p->handshakes[i].begun_ns < oldest->begun_ns)
            oldest = &p->handshakes[i];
    return oldest;
}

static struct handshake *handshake_find(struct peer *p, uint64_t session)
{
    for (unsigned i = 0; i < PEER_MAX_HANDSHAKES; i++)
        if (p->handshakes[i].begun_ns && p->handshakes[i].session == session)
            return &p->handshakes[i];
    return NULL;
}

static int sign(struct peer *p, const struct proof *proof, uint8_t tag[PROOF_TAG], uint32_t *ret_key_id)
{
    struct bytes b = {0};
    int r = proof_bytes(proof, PROOF_PEER, &b);

    if (r == 0)
        r = keyring_sign(p->deps.keyring, b.data, b.len, tag, ret_key_id);
    bytes_free(&b);
    return r;
}

static int verify(struct peer *p, const struct proof *proof, uint32_t key_id, const uint8_t tag[PROOF_TAG])
{
    struct bytes b = {0};
    int r = proof_bytes(proof, PROOF_NODE, &b);

    if (r == 0)
        r = keyring_verify(p->deps.keyring, key_id, b.data, b.len, tag);
    bytes_free(&b);
    return r;
}

static int challenge(struct peer *p, const struct wire_message *hello, struct cairn_error *err)
{
    struct handshake *h = handshake_new(p);
    struct wire_message m = {.type = WIRE_CHALLENGE};

    *h = (struct handshake){.begun_ns = greet_now_ns(p), .hello = *hello};
    snprintf(h->proof.node, sizeof h->proof.node, "%s", hello->hello.node);
    snprintf(h->proof.peer, sizeof h->proof.peer, "%s", p->id);
    h->proof.node_start = hello->hello.start;
    h->proof.peer_start = p->start;
    memcpy(h->proof.node_nonce, hello->hello.nonce, PROOF_NONCE);
    if (getrandom(&h->session, sizeof h->session, 0) != sizeof h->session ||
        getrandom(h->proof.peer_nonce, PROOF_NONCE, 0) != PROOF_NONCE)
        return cairn_fail(err, CAIRN_E_IO, "draw a random number");
    snprintf(m.challenge.peer, sizeof m.challenge.peer, "%s", p->id);
    m.challenge.start = p->start;
    memcpy(m.challenge.nonce, h->proof.peer_nonce, PROOF_NONCE);
    m.session = h->session;
    int r = sign(p, &h->proof, m.challenge.tag, &m.challenge.key_id);
    if (r < 0)
        return cairn_fail(err, r, "sign a challenge");
    peer_say_to(p, hello, &m);
    return 0;
}

void peer_on_hello(struct peer *p, const struct wire_message *m)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    int r = 0;

    if (p->stopping)
        return;
    if (!p->deps.keyring && m->hello.has_nonce)
        r = cairn_fail(&err, CAIRN_E_DENIED, "peer %s has no key, and node %s wants proof ([fabric] key_file)", p->id,
                       m->hello.node);
    else if (p->deps.keyring && !m->hello.has_nonce)
        r = cairn_fail(&err, CAIRN_E_DENIED, "node %s has no key, and peer %s wants proof ([fabric] key_file)",
                       m->hello.node, p->id);
    else if (p->deps.keyring)
        r = challenge(p, m, &err);
    else
        peer_admit(p, m);
    if (r == 0)
        return;
    log_line(LOG_WARNING, "node %s is refused: %s", m->hello.node, err.message);
    peer_refuse(p, m, &err);
}

void peer_on_proof(struct peer *p, const struct wire_message *m)
{
    struct handshake *h = handshake_find(p, m->session);
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (!h || !p->deps.keyring || p->stopping)
        return; /* too late, or never begun */
    struct wire_message hello = h->hello;
    bool late = greet_now_ns(p) - h->begun_ns > (uint64_t)HANDSHAKE_MS * 1000000;
    int r = late ? CAIRN_E_TIMEOUT : verify(p, &h->proof, m->proof.key_id, m->proof.tag);
    *h = (struct handshake){.begun_ns = 0}; /* one proof a challenge */
    if (r == 0) {
        peer_admit(p, &hello);
        return;
    }
    cairn_fail(&err, CAIRN_E_DENIED, "node %s could not prove that it holds key %u of this cluster", hello.hello.node,
               m->proof.key_id);
    log_line(LOG_WARNING, "%s", err.message);
    peer_refuse(p, &hello, &err);
}
