/* SPDX-License-Identifier: Apache-2.0 */
/* The node role: serves the ranks on this machine. It owns the socket, the sessions, their arenas, the job states and
 * the links to peers. */
#ifndef CAIRN_DAEMON_NODE_NODE_H
#define CAIRN_DAEMON_NODE_NODE_H

#include "core/checkpoint/retention.h"
#include "daemon/io/fabric.h"
#include "daemon/io/plugins.h"
#include "daemon/io/workers.h"

#include <jansson.h>

struct node;
struct node_kept_fd {
    char name[64];
    int fd;
};
struct node_config {
    const char *id;
    const char *socket_path;
    unsigned socket_mode;
    uint64_t start; /* random, of this start of the daemon */
    uint64_t arena_max_bytes;
    uint32_t arena_keep_s;
    uint64_t window_bytes;      /* of one restore */
    uint64_t windows_max_bytes; /* of all restores together */
    uint64_t fanout_max_bytes;  /* for chunks that several restores read; 0: each reads for itself */
    unsigned slots;             /* asked of each peer */
    unsigned fragment_buffers;
    unsigned share_unchanged; /* checkpoints that may refer to one older for what did not change; 0: none */
    unsigned delta_chain;     /* checkpoints stored one against the other; 0: none */
    uint64_t numerics_bytes;  /* memory to look at what tensors hold while they are encoded; 0: nobody does */
    bool common_fails;        /* ranks that disagree on what they hold in common abort the checkpoint */
    unsigned margin;          /* of a committed checkpoint; 0: the default */
    const char *domain;       /* failure domain; "" */
    uint32_t fragment_late_ms, sync_late_ms, connect_ms, backoff_ms;
    uint32_t checkpoint_ms, lease_ms, meta_ms;
    const char *codecs;         /* as in links_config */
    unsigned workers;           /* of deps, how many */
    uint64_t rate, peer_rate;   /* bytes a second, to all peers and to one; 0: no bound */
    bool spread;                /* a flush takes most of the time until the next save */
    uint32_t repair_mib_s;      /* read and written by a repair */
    uint32_t repair_every_s;    /* between two looks at what there is to repair; 0: when asked */
    struct retention retention; /* of jobs without a rule */
    uint32_t retention_ms;
    /* The keeper of descriptors (systemd's store); each may be NULL. */
    void (*keep_fd)(void *arg, const char *name, int fd);
    void (*drop_fd)(void *arg, const char *name);
    void *keep_arg;
    const struct node_kept_fd *kept; /* what it had from the daemon before; taken by node_new when that succeeds */
    unsigned nkept;
};
struct node_deps {
    struct loop *loop;
    struct fabric *fabric;
    struct workers *workers;
    struct plugins *plugins;
    struct meta *meta;
    struct keyring *keyring; /* NULL: other daemons are not asked for proof */
};
int node_new(const struct node_deps *deps, const struct node_config *config, struct node **ret_node,
             struct cairn_error *err);
/* Closes sessions and what hangs on them; done on the loop, the node is gone after it. */
void node_stop(struct node *node, void (*done)(void *arg), void *arg);

/* What only the daemon as a whole knows (version, uptime, the peer role), for status queries. Called on the loop; adds
 * members to the object. */
typedef void (*node_describe_fn)(void *arg, json_t *object);
void node_set_describe(struct node *node, node_describe_fn fn, void *arg);

#endif
