/* SPDX-License-Identifier: Apache-2.0 */
/* A double of daemon/node's links and blobs, for drains: peers that store, hold what they have, are late, or fail, when
 * the test says so. Buffers and slots are counted. */
#ifndef CAIRN_TESTS_DOUBLE_LINKS_H
#define CAIRN_TESTS_DOUBLE_LINKS_H

#include "core/base/list.h"
#include "daemon/node/blob.h"
#include "daemon/node/link.h"

#define PEERS_MAX 10

struct link {
    struct links *links;
    char id[16];
    bool holds; /* takes fragments into its slots and answers nothing */
    bool late;
    bool dead;
    unsigned nslots, busy;
    uint32_t epoch;
    uint64_t stored, synced, sync_to;
    bool sync_wanted;
    bool holds_syncs;         /* stores, and never says that it is on disk */
    unsigned syncing;         /* turns that it still takes */
    struct list slots, queue; /* of struct link_put */
};
struct links {
    struct loop *loop;
    struct workers *workers;
    struct links_config config;
    struct link link[PEERS_MAX];
    unsigned npeers;
    char *buffers;
    unsigned nbuffers, free[256], nfree, least;
    struct list pumps;
    struct pacer *pacer;   /* NULL: nothing is bounded */
    struct codecs *codecs; /* NULL: all is raw */
    struct loop_post kick;
    bool kicked;
    struct links_counts counts;
    struct {
        blob_put_done done;
        void *arg;
    } blob; /* the one under way */
    bool holds_blob;
    uint64_t synced_at_blob; /* fragments on all peers' disks when the manifest was put */
};
void double_init(struct links *s, struct loop *loop, struct workers *workers, unsigned peers, unsigned buffers);
void double_free(struct links *s);
/* One step of every peer and of the blob. */
void double_work(struct links *s);
void double_fail(struct link *l);

#endif
