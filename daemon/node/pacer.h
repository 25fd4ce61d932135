/* SPDX-License-Identifier: Apache-2.0 */
/* The rates of a node: how much may leave it for all peers, and for one of them. What is over its rate is not encoded
 * yet: it holds neither a buffer nor a slot while it waits, and so is late for nobody. Everything that is sent is
 * charged, also what never waits (manifests, repairs). A NULL pacer bounds nothing. */
#ifndef CAIRN_DAEMON_NODE_PACER_H
#define CAIRN_DAEMON_NODE_PACER_H

#include "core/base/error.h"
#include "daemon/io/loop.h"

struct pacer;
struct pacer_config {
    uint64_t rate, peer_rate; /* bytes a second; 0: no bound */
};
/* kick is called from the loop when something that was refused may go. */
int pacer_new(struct loop *loop, const struct pacer_config *config, void (*kick)(void *arg), void *arg,
              struct pacer **ret_pacer, struct cairn_error *err);
void pacer_free(struct pacer *pacer); /* NULL allowed */

/* The rate for all peers, or for one where that alone is bounded; 0: neither is. */
uint64_t pacer_rate(const struct pacer *pacer);

struct link;
/* Whether more may be encoded that goes to these peers. If not, kick comes in time. */
bool pacer_may(struct pacer *pacer, struct link *const *to, unsigned n);
/* Bytes that will be sent soon; charged when they are. */
void pacer_reserve(struct pacer *pacer, uint64_t bytes);
void pacer_release(struct pacer *pacer, uint64_t bytes);
void pacer_charge(struct pacer *pacer, const struct link *to, uint64_t bytes);
/* kick comes after so long, or earlier. */
void pacer_wake(struct pacer *pacer, uint64_t after_ns);

#endif
