/* SPDX-License-Identifier: Apache-2.0 */
/* What keep.c, keep_index.c and keep_list.c share. */
#ifndef CAIRN_DAEMON_PEER_KEEP_INTERNAL_H
#define CAIRN_DAEMON_PEER_KEEP_INTERNAL_H

#include "core/base/cleanup.h"
#include "daemon/peer/keep.h"

struct index_entry {
    uint64_t hash; /* of the key within its stream */
    uint32_t kind, rank, first_part, attempt, index;
    uint32_t record_len; /* 0: the bucket is empty */
    uint64_t offset;
    bool bad; /* it did not verify: as good as missing */
};

enum stream_state { STREAM_WRITING, STREAM_CLOSED /* name and id only */, STREAM_SCANNING, STREAM_INDEXED };

struct kept_stream {
    struct list link; /* in keep.streams, most recently used first */
    struct keep *keep;
    char *name; /* as the store lists it */
    struct cairn_stream_id id;
    enum stream_state state;
    struct store_stream *file; /* NULL when CLOSED */
    uint64_t generation;
    unsigned in_flight; /* appends, syncs, reads */
    bool ended;         /* the writer is gone; closed when nothing is in flight */
    bool broken;        /* its header does not read: never opened again */
    struct index_entry *index;
    size_t nbuckets, nentries;
    uint64_t *bad; /* offsets of records that did not verify, also while the file is closed */
    size_t nbad;
    uint64_t known_end; /* behind the last record that was ever in the index, also while the file is closed */
    uint64_t end;       /* of the file, while scanning */
    uint64_t scan_at;
    unsigned scan_lost;  /* blocks in a row that are no record's header */
    uint64_t scanned_at; /* on keep.clock, when its last scan ended */
    void *scan_block;
    struct cairn_store_req scan_req;
};

struct keep {
    struct loop *loop;
    struct store *store;
    struct list streams;
    struct list reads;       /* keep_read that wait for scans */
    struct loop_post rescan; /* look again at reads, from the top of the stack */
    bool rescan_posted;
    uint64_t clock; /* scans that ended */
    unsigned busy;
    char *go_round; /* where keep_each_idle left off */
};

/* ---- keep_index.c: open addressing ----------------------------------------------------------- */
bool index_put(struct kept_stream *s, const struct fragment_key *key, uint64_t offset, uint32_t record_len);
const struct index_entry *index_get(const struct kept_stream *s, const struct fragment_key *key);
void index_mark_bad(struct kept_stream *s, uint64_t offset);
/* All that begin in [from, to); returns how many there are. */
unsigned index_mark_range(struct kept_stream *s, uint64_t from, uint64_t to);

#endif
