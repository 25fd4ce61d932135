/* SPDX-License-Identifier: Apache-2.0 */
/* The peer role: stores fragments that nodes write into its slots and gives them back.
 *
 *     slots (RMA) -> header and payload checked -> store appends -> Stored -> Sync -> fdatasync -> Synced
 *
 * Each node that says hello gets memory of its own, registered under a key of its own, revoked when the session ends; a
 * second hello of the same node replaces the first. Memory is bounded: slots_total buffers for all nodes, read_buffers
 * for reads.
 */
#ifndef CAIRN_DAEMON_PEER_PEER_H
#define CAIRN_DAEMON_PEER_PEER_H

#include "core/proto/record.h"
#include "daemon/io/fabric.h"
#include "daemon/io/plugins.h"

struct peer;
struct peer_config {
    const char *id;
    const char *domain;
    const char *provider;    /* for the record */
    const char *engine_path; /* the file that remembers the metadata engine's id */
    uint16_t port;           /* of the fabric endpoint; 0: any */
    unsigned slots_per_node; /* FRAGMENT_MAX_RECORD bytes each */
    unsigned max_nodes;
    unsigned read_buffers;
    uint32_t node_idle_ms; /* a node silent for so long loses its slots */
    uint32_t lease_ms;     /* of the record in the metadata */
    uint32_t scrub_mib_s;  /* read to verify what is stored, all the time; 0: only when it is asked for */
};
struct peer_deps {
    struct loop *loop;
    struct fabric *fabric;
    struct workers *workers;
    struct store *store;
    struct meta *meta;
};
/* Starts and begins to register under cairn/v1/peers/<id>. */
int peer_new(const struct peer_deps *deps, const struct peer_config *config, struct peer **ret_peer,
             struct cairn_error *err);
/* Ends sessions, revokes the registration, then calls done on the loop; the peer is gone after it. */
void peer_stop(struct peer *peer, void (*done)(void *arg), void *arg);

struct peer_status {
    bool registered;
    bool engine_accepted; /* the metadata engine is the one that this peer belongs to */
    unsigned nodes;
    unsigned streams_open;
    uint64_t fragments_stored;
    uint64_t bytes_stored;
    uint64_t fragments_read;
    uint64_t bad_fragments; /* that arrived or were read with a wrong checksum */
    uint64_t free_bytes;
    uint64_t total_bytes;
    uint64_t scrub_last_unix_ms; /* when the last scrub of everything ended; 0: none since the start */
    uint64_t scrubbed_fragments; /* read by all scrubs since the start */
    uint64_t scrubbed_bad;       /* of them: damaged */
};
void peer_status(const struct peer *peer, struct peer_status *ret);

#endif
