/* SPDX-License-Identifier: Apache-2.0 */
/* Messages from a peer or a node: what decodes can be encoded again. */
#include "core/proto/wire.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
size_t fuzz_seed_nth(unsigned i, uint8_t *buf, size_t room);

static struct wire_message sample(unsigned i)
{
    struct wire_message m = {.session = 77};
    struct fragment_key key = {
        .job = "job", .node = "n1", .step = 9, .incarnation = 2, .kind = FRAGMENT_DATA, .rank = 3};

    switch (i % 4) {
    case 0:
        m.type = WIRE_READ;
        m.read.key = key;
        m.read.request = 5;
        break;
    case 1:
        m.type = WIRE_HELLO;
        strcpy(m.hello.node, "n1");
        m.hello.address_len = 16;
        m.hello.slots = 8;
        m.hello.has_nonce = true;
        memset(m.hello.nonce, 3, sizeof m.hello.nonce);
        break;
    case 2:
        m.type = WIRE_CHALLENGE;
        strcpy(m.challenge.peer, "p1");
        m.challenge.key_id = 2;
        memset(m.challenge.nonce, 4, sizeof m.challenge.nonce);
        memset(m.challenge.tag, 5, sizeof m.challenge.tag);
        break;
    default:
        m.type = WIRE_PROOF;
        m.proof.key_id = 2;
        memset(m.proof.tag, 6, sizeof m.proof.tag);
    }
    return m;
}

size_t fuzz_seed_nth(unsigned i, uint8_t *buf, size_t room)
{
    struct wire_message m = sample(i);
    uint8_t out[WIRE_MAX];
    int n = wire_encode(&m, out, NULL);
    if (n < 0 || (size_t)n > room)
        abort();
    memcpy(buf, out, (size_t)n);
    return (size_t)n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct wire_message m;
    uint8_t out[WIRE_MAX];

    if (wire_decode(data, len, &m, NULL) == 0 && wire_encode(&m, out, NULL) < 0)
        abort();
    return 0;
}
