/* SPDX-License-Identifier: Apache-2.0 */
/* The codecs of a node: which are there, which may be used, how fast they and the path to the peers were lately.
 * Decides nothing itself: what it knows goes with each chunk to a worker, which chooses by core/model/choice.h. */
#ifndef CAIRN_DAEMON_NODE_CODECS_H
#define CAIRN_DAEMON_NODE_CODECS_H

#include "daemon/io/plugins.h"
#include "daemon/node/encode.h"

struct codecs;

/* allowed: "auto", or names ("raw lz4 float"): parts are encoded with no others. All that there are can be decoded.
 * rate_bound: bytes a second that may be sent; 0: no bound. */
int codecs_new(struct plugins *plugins, const char *allowed, unsigned workers, uint64_t rate_bound,
               struct codecs **ret_codecs, struct cairn_error *err);
void codecs_free(struct codecs *c); /* NULL allowed */

/* Fills what the choice is by. k, m and dtype are set. In this and what follows c may be NULL: then all is raw. */
void codecs_offer(const struct codecs *c, struct encode *e);
/* What devices pack as: NULL where that codec is not there, or may not be used. */
const struct codec *codecs_packer(const struct codecs *c);
/* Learns from a chunk that was encoded. */
void codecs_encoded(struct codecs *c, const struct encode *e);
/* So many bytes were stored by a peer. waiting: others waited for the same peer, so that the path is what bounds. */
void codecs_stored(struct codecs *c, uint64_t bytes, uint64_t now_ns, bool waiting);

struct codec_status {
    const char *name;
    bool allowed;
    uint64_t plain, coded, ns; /* of all parts so far: bytes in, bytes out, time of workers */
};
struct codecs_status {
    struct codec_status codec[CAIRN_CHOICES];
    unsigned n;
    uint64_t path_rate;                     /* bytes a second; 0: not known */
    uint64_t copied, hashed, parity;        /* bytes copied to be sent or encoded, hashed at entry, of parity made */
    uint64_t sent_in_place, sent_of_buffer; /* bytes of data payloads, from the arena and from a buffer */
};
void codecs_status(const struct codecs *c, struct codecs_status *ret);

#endif
