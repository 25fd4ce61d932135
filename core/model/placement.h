/* SPDX-License-Identifier: Apache-2.0 */
/* Placement: which peers a node uses and in which order a chunk's fragments go to them, by weighted rendezvous hashing
 * (Thaler and Ravishankar 1998; weights as in Schindelhauer and Schomaker 2005: score = -w / ln(hash)). A peer that comes or
 * goes moves only what it must. */
#ifndef CAIRN_CORE_MODEL_PLACEMENT_H
#define CAIRN_CORE_MODEL_PLACEMENT_H

#include <stdint.h>

struct cairn_candidate {
    const char *id;     /* of the peer */
    const char *domain; /* failure domain; "" when unknown: then the peer is its own */
    double weight;      /* > 0; capacity in any unit */
};

/* Orders the candidates for a key (a node's id for its group, or a chunk's identity for its stripe) into
 * ret_order[n] as indices, best first. Peers of domains not used yet come before a domain's second peer. Deterministic in
 * the set: the input's order does not matter. */
void cairn_place(const struct cairn_candidate *c, unsigned n, uint64_t key, unsigned *ret_order);

#endif
