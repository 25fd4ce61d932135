/* SPDX-License-Identifier: Apache-2.0 */
/* What two daemons sign to prove to each other that they hold the cluster's key: challenge and response as in ISO
 * 9798-4 with a keyed hash, both nonces and both names under the tag, and the role first, so that neither side's proof
 * is good for the other's, for another connection or for another start. Both addresses are under it as well: whoever
 * passes a handshake on, with itself where an answer goes, has a proof of something else. Signing is
 * daemon/io/keyring's. */
#ifndef CAIRN_CORE_PROTO_PROOF_H
#define CAIRN_CORE_PROTO_PROOF_H

#include <cairn/cairn.h>
#include <stdint.h>

#include "core/base/bytes.h"

#define PROOF_NONCE 16
#define PROOF_TAG 32 /* HMAC-SHA256 */
#define PROOF_MAX_ADDR 128

struct proof_address {
    uint8_t bytes[PROOF_MAX_ADDR];
    size_t len;
};
struct proof {
    char node[CAIRN_MAX_NAME + 1];
    uint64_t node_start;
    struct proof_address node_address; /* where the peer's answers go */
    uint8_t node_nonce[PROOF_NONCE];
    char peer[CAIRN_MAX_NAME + 1];
    uint64_t peer_start;
    struct proof_address peer_address; /* that the node greeted; the peer's own */
    uint8_t peer_nonce[PROOF_NONCE];
};
enum proof_role { PROOF_PEER = 1, PROOF_NODE = 2 }; /* whose proof it is */
/* The bytes to sign, appended to out. 0, or CAIRN_E_NOMEM. */
int proof_bytes(const struct proof *p, enum proof_role role, struct bytes *out);

#endif
