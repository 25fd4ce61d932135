/* SPDX-License-Identifier: Apache-2.0 */
#include "core/proto/proof.h"

#include <string.h>

/* With its length, so that no two lists of texts give the same bytes. */
static void put_text(struct bytes *out, const char *s)
{
    bytes_put_u32(out, (uint32_t)strlen(s));
    bytes_put(out, s, strlen(s));
}

static void put_address(struct bytes *out, const struct proof_address *a)
{
    bytes_put_u32(out, (uint32_t)a->len);
    bytes_put(out, a->bytes, a->len);
}

int proof_bytes(const struct proof *p, enum proof_role role, struct bytes *out)
{
    put_text(out, "cairn daemon proof v1");
    bytes_put_u8(out, (uint8_t)role);
    put_text(out, p->node);
    bytes_put_u64(out, p->node_start);
    put_address(out, &p->node_address);
    bytes_put(out, p->node_nonce, PROOF_NONCE);
    put_text(out, p->peer);
    bytes_put_u64(out, p->peer_start);
    put_address(out, &p->peer_address);
    bytes_put(out, p->peer_nonce, PROOF_NONCE);
    return out->bad ? CAIRN_E_NOMEM : 0;
}
