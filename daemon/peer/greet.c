/* SPDX-License-Identifier: Apache-2.0 */
/* Who may become a node of this peer. With a key, both sides prove that they hold it before a slot is granted:
 *
 *     Hello + nonce -> a greeting -> Challenge: our nonce, our proof -> Proof: the node's -> admitted: Welcome
 *
 * Without a key a Hello is enough, which the daemon's start allows on loopback only.
 *
 * Anybody can greet, in anybody's name, from an address where nobody answers: a connection to it would be tried for
 * ever. So whoever gets an answer before it is admitted has a greeting, and there is a fixed number of them. The oldest
 * makes room, and what is not admitted in time is cut off with all that its answer opened: a flood costs that. */
#include "daemon/peer/internal.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "daemon/io/log.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#define GREETING_MS 5000
#define REFUSALS_MS 1000 /* the log says one of them in so long */

static bool passed_ms(const struct peer *p, uint64_t since_ns, uint32_t ms)
{
    return loop_now_ns(p->deps.loop) - since_ns > (uint64_t)ms * 1000000;
}

/* ---- greetings ------------------------------------------------------------------------------- */

/* A Hello may name the address of a node that is here, or is greeting: its connection is not for a stranger to end. */
static bool is_shared(const struct peer *p, const struct greeting *g)
{
    for (unsigned i = 0; i < PEER_MAX_GREETINGS; i++)
        if (&p->greetings[i] != g && p->greetings[i].begun_ns && p->greetings[i].to == g->to)
            return true;
    list_for_each (it, &p->nodes)
        if (container_of(it, struct peer_node, link)->to == g->to)
            return true;
    return false;
}

static void greeting_end(struct peer *p, struct greeting *g)
{
    if (!is_shared(p, g))
        endpoint_forget(p->ep, g->to);
    *g = (struct greeting){.begun_ns = 0};
}

void peer_greetings_look(struct peer *p)
{
    for (unsigned i = 0; i < PEER_MAX_GREETINGS; i++)
        if (p->greetings[i].begun_ns && passed_ms(p, p->greetings[i].begun_ns, GREETING_MS))
            greeting_end(p, &p->greetings[i]);
}

/* The oldest makes room: an honest node's is over within one round trip. */
static int greeting_new(struct peer *p, const struct wire_message *hello, struct greeting **ret,
                        struct cairn_error *err)
{
    struct greeting *g = &p->greetings[0];

    for (unsigned i = 0; i < PEER_MAX_GREETINGS; i++)
        if (p->greetings[i].begun_ns < g->begun_ns)
            g = &p->greetings[i];
    if (g->begun_ns)
        greeting_end(p, g);
    int r = endpoint_resolve(p->ep, hello->hello.address, hello->hello.address_len, &g->to, err);
    if (r < 0)
        return r;
    g->begun_ns = loop_now_ns(p->deps.loop);
    g->hello = *hello;
    *ret = g;
    return 0;
}

static struct greeting *greeting_find(struct peer *p, uint64_t session)
{
    for (unsigned i = 0; i < PEER_MAX_GREETINGS; i++)
        if (session && p->greetings[i].session == session && !passed_ms(p, p->greetings[i].begun_ns, GREETING_MS))
            return &p->greetings[i];
    return NULL;
}

static void said(struct fabric_op *op, int code)
{
    (void)code; /* whoever does not get it greets again */
    free(op);
}

static void greeting_say(struct peer *p, const struct greeting *g, const struct wire_message *m)
{
    uint8_t buf[WIRE_MAX];
    int len = wire_encode(m, buf, NULL);
    struct fabric_op *op = len < 0 ? NULL : calloc(1, sizeof *op);

    if (!op)
        return;
    op->done = said;
    endpoint_send(p->ep, op, g->to, buf, (size_t)len);
}

/* ---- refusing -------------------------------------------------------------------------------- */

static void log_refusal(struct peer *p, const struct wire_message *hello, const struct cairn_error *err)
{
    if (p->refused_ns && !passed_ms(p, p->refused_ns, REFUSALS_MS)) {
        p->refusals++;
        return;
    }
    log_line(LOG_WARNING, "node %s is refused: %s", hello->hello.node, err->message);
    if (p->refusals)
        log_line(LOG_WARNING, "%u more were refused since the last one that was named", p->refusals);
    p->refused_ns = loop_now_ns(p->deps.loop);
    p->refusals = 0;
}

/* The greeting stays until the answer has had its time to leave. */
static void refuse(struct peer *p, struct greeting *g, uint64_t session, const struct cairn_error *err)
{
    struct wire_message m = {.type = WIRE_WELCOME, .session = session};

    log_refusal(p, &g->hello, err);
    snprintf(m.welcome.peer, sizeof m.welcome.peer, "%s", p->id);
    wire_status_set(&m.welcome.status, err->code, err);
    greeting_say(p, g, &m);
}

/* ---- the handshake --------------------------------------------------------------------------- */

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

static void proof_begin(struct peer *p, const struct wire_message *hello, struct proof *ret)
{
    snprintf(ret->node, sizeof ret->node, "%s", hello->hello.node);
    snprintf(ret->peer, sizeof ret->peer, "%s", p->id);
    ret->node_start = hello->hello.start;
    ret->peer_start = p->start;
    memcpy(ret->node_nonce, hello->hello.nonce, PROOF_NONCE);
    memcpy(ret->node_address.bytes, hello->hello.address, hello->hello.address_len);
    ret->node_address.len = hello->hello.address_len;
    endpoint_address(p->ep, ret->peer_address.bytes, &ret->peer_address.len);
}

static int challenge(struct peer *p, struct greeting *g, struct cairn_error *err)
{
    struct wire_message m = {.type = WIRE_CHALLENGE};

    proof_begin(p, &g->hello, &g->proof);
    if (getrandom(g->proof.peer_nonce, PROOF_NONCE, 0) != PROOF_NONCE ||
        getrandom(&g->session, sizeof g->session, 0) != sizeof g->session)
        return cairn_fail(err, CAIRN_E_IO, "draw a random number");
    snprintf(m.challenge.peer, sizeof m.challenge.peer, "%s", p->id);
    m.challenge.start = p->start;
    memcpy(m.challenge.nonce, g->proof.peer_nonce, PROOF_NONCE);
    m.session = g->session;
    int r = sign(p, &g->proof, m.challenge.tag, &m.challenge.key_id);
    if (r < 0)
        return cairn_fail(err, r, "sign a challenge");
    greeting_say(p, g, &m);
    return 0;
}

static int check_keys(const struct peer *p, const struct wire_message *m, struct cairn_error *err)
{
    if (!p->deps.keyring && m->hello.has_nonce)
        return cairn_fail(err, CAIRN_E_DENIED, "peer %s has no key, and node %s wants proof ([fabric] key_file)", p->id,
                          m->hello.node);
    if (p->deps.keyring && !m->hello.has_nonce)
        return cairn_fail(err, CAIRN_E_DENIED, "node %s has no key, and peer %s wants proof ([fabric] key_file)",
                          m->hello.node, p->id);
    return 0;
}

void peer_on_hello(struct peer *p, const struct wire_message *m)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct greeting *g = NULL;

    if (p->stopping)
        return;
    int r = check_keys(p, m, &err);
    if (r == 0 && !p->deps.keyring)
        r = peer_admit(p, m, 0, &err);
    if (r == 0 && !p->deps.keyring)
        return;
    if (greeting_new(p, m, &g, r == 0 ? &err : NULL) < 0) {
        log_refusal(p, m, &err); /* there is nowhere to answer */
        return;
    }
    if (r == 0)
        r = challenge(p, g, &err);
    if (r < 0)
        refuse(p, g, 0, &err);
}

void peer_on_proof(struct peer *p, const struct wire_message *m)
{
    struct greeting *g = greeting_find(p, m->session);
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (!g || !p->deps.keyring || p->stopping)
        return; /* too late, or never begun */
    uint64_t session = g->session;
    g->session = 0; /* one proof a challenge */
    int r = verify(p, &g->proof, m->proof.key_id, m->proof.tag);
    if (r < 0)
        cairn_fail(&err, CAIRN_E_DENIED, "node %s could not prove that it holds key %u of this cluster",
                   g->hello.hello.node, m->proof.key_id);
    else
        r = peer_admit(p, &g->hello, session, &err);
    if (r < 0)
        refuse(p, g, session, &err);
    else
        *g = (struct greeting){.begun_ns = 0}; /* its destination is the node's now */
}
