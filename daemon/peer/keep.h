/* SPDX-License-Identifier: Apache-2.0 */
/* What a peer keeps: stream files and an index of the fragments in them.
 *
 * A stream that a node writes is open for append; all others are opened when a read asks for their checkpoint, their
 * records scanned header by header, and closed again when newer ones need the room. An index entry is made when a
 * fragment's append completed, so that what can be read is what was stored. */
#ifndef CAIRN_DAEMON_PEER_KEEP_H
#define CAIRN_DAEMON_PEER_KEEP_H

#include "core/proto/fragment.h"
#include "daemon/io/buffers.h"
#include "daemon/io/plugins.h"

struct keep;
struct kept_stream; /* one file */

int keep_new(struct loop *loop, struct store *store, struct keep **ret_keep, struct cairn_error *err);
/* No request may be in flight: see keep_busy. NULL allowed. */
void keep_free(struct keep *k);
bool keep_busy(const struct keep *k);

/* ---- writing --------------------------------------------------------------------------------- */
int keep_create(struct keep *k, const struct cairn_stream_id *id, uint64_t reserve_bytes,
                struct kept_stream **ret_stream, struct cairn_error *err);
uint64_t kept_generation(const struct kept_stream *s);
const struct cairn_stream_id *kept_id(const struct kept_stream *s);

struct keep_append { /* owned by the caller until done */
    void (*done)(struct keep_append *a, int code, const struct cairn_error *err);
    void *arg;
    struct kept_stream *stream;
    struct fragment_key key;
    uint32_t record_len;
    struct cairn_store_req req;
};
/* The record's header was checked against the stream, its payload against the header. */
void keep_append(struct kept_stream *s, const void *record, struct keep_append *a);

struct keep_sync {
    void (*done)(struct keep_sync *s, int code, const struct cairn_error *err);
    void *arg;
    struct kept_stream *stream;
    struct cairn_store_req req;
};
void keep_sync(struct kept_stream *s, struct keep_sync *sync);
/* The writer is gone or done: what is stored stays readable. The handle is dead after it. */
void keep_end_writing(struct kept_stream *s);

/* ---- reading --------------------------------------------------------------------------------- */
struct keep_read { /* owned by the caller until done */
    void (*done)(struct keep_read *r, int code, const struct cairn_error *err, uint32_t record_len);
    void *arg;
    struct fragment_key key;
    void *buffer;      /* FRAGMENT_MAX_RECORD, aligned */
    bool present_only; /* asks for no more than whether there is one that is not known to be damaged */
    bool known_bad;    /* filled: CORRUPT because of keep_mark_bad */
    uint64_t offset;   /* filled: in its file */
    struct list link;  /* keep's */
    struct kept_stream *stream;
    uint64_t generation; /* of the file that it lies in: the record must repeat it */
    uint64_t since;      /* keep's */
    uint32_t record_len;
    struct cairn_store_req req;
};
/* Reads the record; NOT_FOUND when this peer has none of that key. Its contents are not verified. */
void keep_read(struct keep *k, struct keep_read *r);

/* A record that was read did not verify: reads go to another copy, or are told CORRUPT, from now on. */
void keep_mark_bad(struct keep *k, uint64_t generation, uint64_t offset);
/* The same for all records known in this part of the file; returns how many. */
unsigned keep_mark_lost(struct keep *k, uint64_t generation, uint64_t from, uint64_t to);
/* Where the last record ends that this peer has known in the file since it started; 0: it knows none. */
uint64_t keep_known_end(const struct keep *k, uint64_t generation);

/* ---- listing --------------------------------------------------------------------------------- */
/* The names of all files that nobody writes, of one job or (job "") of all; the caller frees them and the list. */
int keep_names(struct keep *k, const char *job, char ***ret_names, size_t *ret_n, struct cairn_error *err);
/* The next ids behind `after` (NULL: from the first), in the order of job, step, incarnation, node; each once, those of
 * files that are written included. Returns how many, fewer than max when there are no more. */
unsigned keep_ids(const struct keep *k, const char *job, const struct cairn_stream_id *after, unsigned max,
                  struct cairn_stream_id *ret_ids);

/* The next job behind `after` ("": the first) of which something is stored, and the highest incarnation of it. */
bool keep_next_job(const struct keep *k, const char *after, char ret_job[CAIRN_MAX_NAME + 1], uint64_t *ret_highest);

/* ---- deleting -------------------------------------------------------------------------------- */
/* Calls each() with the id of every stream file that nobody writes, at most max of them, going round from call to call.
 */
int keep_each_idle(struct keep *k, unsigned max, void (*each)(void *arg, const struct cairn_stream_id *id), void *arg,
                   struct cairn_error *err);
/* Removes the files of a checkpoint, but for those that are written or read just now. Returns how many went. */
int keep_forget(struct keep *k, const char *job, uint64_t step, uint64_t incarnation, struct cairn_error *err);
/* Whether a file of the checkpoint is left, also one that is written or read. */
bool keep_has(const struct keep *k, const char *job, uint64_t step, uint64_t incarnation);
unsigned keep_open_streams(const struct keep *k);

#endif
