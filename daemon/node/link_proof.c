/* SPDX-License-Identifier: Apache-2.0 */
/* The node's side of the handshake that daemon/peer/greet.c describes: the peer proves first, so that this node says
 * nothing more to one that does not hold the key. The handshake's session, which only these two know, names the
 * welcome: anybody can send one. */
#include "daemon/node/link_internal.h"

#include "core/base/error.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

int link_hello_nonce(struct link *l, struct wire_message *hello, struct cairn_error *err)
{
    l->key_proven = false;
    if (!links_keyring(l->links))
        return 0;
    if (getrandom(l->proof.node_nonce, PROOF_NONCE, 0) != PROOF_NONCE)
        return cairn_fail(err, CAIRN_E_IO, "draw a random number");
    memcpy(l->proof.node, hello->hello.node, sizeof l->proof.node);
    l->proof.node_start = hello->hello.start;
    memcpy(l->proof.node_address.bytes, hello->hello.address, hello->hello.address_len);
    l->proof.node_address.len = hello->hello.address_len;
    memcpy(l->proof.peer_address.bytes, l->record.address, l->record.address_len);
    l->proof.peer_address.len = l->record.address_len;
    hello->hello.has_nonce = true;
    memcpy(hello->hello.nonce, l->proof.node_nonce, PROOF_NONCE);
    return 0;
}

static int link_check_challenge(struct link *l, const struct wire_message *m)
{
    struct bytes b = {0};

    memcpy(l->proof.peer, m->challenge.peer, sizeof l->proof.peer);
    l->proof.peer_start = m->challenge.start;
    memcpy(l->proof.peer_nonce, m->challenge.nonce, PROOF_NONCE);
    int r = proof_bytes(&l->proof, PROOF_PEER, &b);
    if (r == 0)
        r = keyring_verify(links_keyring(l->links), m->challenge.key_id, b.data, b.len, m->challenge.tag);
    bytes_free(&b);
    return r;
}

void link_on_challenge(struct link *l, const struct wire_message *m)
{
    struct wire_message out = {.type = WIRE_PROOF};
    struct bytes b = {0};

    if (!links_keyring(l->links) || l->key_proven)
        return;
    if (strcmp(m->challenge.peer, l->record.id) != 0 || m->challenge.start != l->record.start ||
        link_check_challenge(l, m) < 0) {
        link_fail(l, "it could not prove that it holds key %u of this cluster", m->challenge.key_id);
        return;
    }
    int r = proof_bytes(&l->proof, PROOF_NODE, &b);
    if (r == 0)
        r = keyring_sign(links_keyring(l->links), b.data, b.len, out.proof.tag, &out.proof.key_id);
    bytes_free(&b);
    if (r < 0) {
        link_fail(l, "our proof could not be signed: %s", cairn_code_name(r));
        return;
    }
    l->key_proven = true;
    l->session = m->session;
    link_say(l, &out);
}

bool link_key_proven(const struct link *l)
{
    return l->key_proven || !links_keyring(l->links);
}
