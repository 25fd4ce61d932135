/* SPDX-License-Identifier: Apache-2.0 */
/* The peers a node knows and its connections to them.
 *
 * Peers come from the metadata (cairn/v1/peers/, listed again every second; a record that is gone means its lease
 * expired). The node uses a group of at most 16 of them. A link is one connection: an endpoint of its own (closing it
 * ends everything that a hung peer still holds), slots granted by the peer, streams opened on it, requests with
 * deadlines. A link that misses a deadline fails as a whole: all its requests complete with an error, its endpoint is
 * closed and it is avoided for a growing backoff.
 *
 *     DOWN --hello--> CONNECTING --welcome--> UP --deadline, error, bye--> DOWN (avoided until ...)
 *
 * Long before that a link may be late: its oldest answer is overdue by what is usual in the group. A late link keeps
 * what it has but gets nothing new while others can take it; an answer makes it prompt again. A link that failed proves
 * itself after its backoff (it is welcomed and answers a ping) before it gets anything.
 */
#ifndef CAIRN_DAEMON_NODE_LINKS_H
#define CAIRN_DAEMON_NODE_LINKS_H

#include "core/model/placement.h"
#include "core/proto/record.h"
#include "daemon/io/buffers.h"
#include "daemon/io/fabric.h"
#include "daemon/io/keyring.h"
#include "daemon/io/plugins.h"
#include "daemon/io/workers.h"

struct links;
struct link;
struct codecs;

struct links_config {
    const char *node;          /* this node's id */
    uint64_t start;            /* random, of this start of the daemon */
    unsigned slots;            /* asked of each peer */
    unsigned fragment_buffers; /* FRAGMENT_MAX_RECORD each, for encoding and for reads: the bound on memory */
    unsigned margin;           /* parity fragments that a stripe counts with; 0: the default (cairn_margin_for) */
    const char *domain;        /* failure domain of this node, "" when it has none */
    uint32_t fragment_late_ms; /* a fragment not stored, or not read, by then fails its link; so does silence */
    uint32_t sync_late_ms;     /* the same for a sync */
    uint32_t connect_ms;       /* hello to welcome */
    uint32_t backoff_ms;       /* first; doubles to 30 s */
    const char *codecs;        /* that may be used: "auto", or names */
    unsigned workers;          /* that encode */
    uint64_t rate, peer_rate;  /* bytes a second, to all peers and to one; 0: no bound */
};
struct links_deps {
    struct loop *loop;
    struct fabric *fabric;
    struct workers *workers;
    struct plugins *plugins; /* for codecs */
    struct meta *meta;
    struct keyring *keyring; /* NULL: peers are not asked for proof */
};
int links_new(const struct links_deps *deps, const struct links_config *config, struct links **ret_links,
              struct cairn_error *err);
/* Says bye, closes everything; drains, gathers and blobs must have ended. Calls done on the loop. */
void links_stop(struct links *links, void (*done)(void *arg), void *arg);

/* Peers of the group that are registered and not avoided now. */
unsigned links_live(const struct links *links);
/* Less than half of the group's registered peers with room are live. */
bool links_few(const struct links *links);

struct link_status { /* for status queries */
    char peer[CAIRN_MAX_NAME + 1];
    const char *state; /* "up", "connecting", "down", "avoided" */
    uint64_t total_bytes, free_bytes;
    uint64_t fragments_sent, fragments_read, failures;
    uint32_t avoided_ms; /* for how long still */
    bool late;
    uint32_t store_late_ms, read_late_ms; /* when an answer of it would be late now */
    char last_error[WIRE_TEXT];
};
/* Fills up to room entries, returns how many there are. */
unsigned links_status(const struct links *links, struct link_status *ret, unsigned room);

struct links_counts {            /* since the start */
    uint64_t fragments_spared;   /* late ones that were given to another peer too */
    uint64_t fragments_left;     /* that a committed checkpoint went without: left to repair */
    uint64_t fragments_dropped;  /* from their buffers, to be encoded again or left */
    uint64_t reads_hedged;       /* fragments read because others were late */
    unsigned hedging;            /* of them, now */
    uint64_t read_bytes;         /* of fragments' records that gathers read, whole and verified */
    uint64_t decoded_bytes;      /* plain bytes that gathers made of them */
    uint64_t parts_rebuilt;      /* of these, parts that came from parity */
    uint64_t early_bytes;        /* plain bytes that were encoded before their snapshot was filled */
    uint64_t shared_bytes;       /* that were found in an older checkpoint, and not encoded */
    uint64_t compared_bytes;     /* with the sums of where they came from */
    uint64_t packed_bytes;       /* that parts came in which their devices had packed */
    uint64_t packed_plain_bytes; /* of these parts */
};
/* Counted by drains, blobs and gathers. */
struct links_counts *links_counts(struct links *links);
/* The codecs that drains encode with; see codecs.h. */
struct codecs *links_codecs(struct links *links);

/* The checkpoint is decided: its streams end. gone: it was aborted or deleted, peers are told to look that up and to
 * delete. */
void links_end_checkpoint(struct links *links, const char *job, uint64_t step, uint64_t incarnation, bool gone);
/* Called whenever a peer says that it has no file of a deleted checkpoint any more. NULL: not any more. */
typedef void (*links_forgotten_fn)(void *arg, const char *peer, const char *job, uint64_t step, uint64_t incarnation);
void links_on_forgotten(struct links *links, links_forgotten_fn forgotten, void *arg);
/* Calls each() for every peer that this daemon ever knew; registered: its record is there now. */
void links_each_peer(struct links *links, void (*each)(void *arg, const char *peer, bool registered), void *arg);

#endif
