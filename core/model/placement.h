/* SPDX-License-Identifier: Apache-2.0 */
/* Placement: which peers a node uses and in which order a chunk's fragments go to them, by weighted rendezvous hashing
 * (Thaler and Ravishankar 1998; weights as in Schindelhauer and Schomaker 2005: score = -w / ln(hash)). A peer that
 * comes or goes moves only what it must. */
#ifndef CAIRN_CORE_MODEL_PLACEMENT_H
#define CAIRN_CORE_MODEL_PLACEMENT_H

#include <stdint.h>

#define CAIRN_PLACE_MAX 1024 /* candidates of one placement */

enum cairn_nearness { CAIRN_ELSEWHERE, CAIRN_OWN_DOMAIN, CAIRN_OWN_PEER };

struct cairn_candidate {
    const char *id;               /* of the peer */
    const char *domain;           /* failure domain; "" when unknown: then the peer is its own */
    double weight;                /* capacity in any unit; 0: it has no room and is left out */
    enum cairn_nearness nearness; /* to the node whose fragments are placed */
};

/* Orders the candidates for a key (a node's id for its group, or a chunk's identity for its stripe) into ret_order as
 * indices, best first, and returns how many: those with a weight. n is at most CAIRN_PLACE_MAX. Deterministic in the
 * set: the input's order does not matter.
 *
 * The order goes in rounds: a domain's second peer comes after the first peer of every other domain, so that a stripe
 * has as few fragments as possible in one domain. Within a round the node's own domain comes last. A peer that is the
 * node itself comes after all others: it gets a fragment only where a stripe needs every peer that there is. */
unsigned cairn_place(const struct cairn_candidate *c, unsigned n, uint64_t key, unsigned *ret_order);

#endif
