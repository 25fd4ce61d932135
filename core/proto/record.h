/* SPDX-License-Identifier: Apache-2.0 */
/* The records of the metadata engine: their keys, and their values as small JSON objects that a person can read with
 * sqlite3 or etcdctl. Readers ignore members they do not know and refuse a "v" they do not know. */
#ifndef CAIRN_CORE_PROTO_RECORD_H
#define CAIRN_CORE_PROTO_RECORD_H

#include "core/proto/root.h"
#include "core/proto/wire.h"

#define RECORD_KEY_MAX 512
#define RECORD_VALUE_MAX ((size_t)64 << 10)

/* Keys; each writes at most RECORD_KEY_MAX bytes with the end. Steps and incarnations are zero-padded to sort as
 * numbers. */
void record_key_peer(char *buf, const char *peer); /* cairn/v1/peers/<id> */
void record_prefix_peers(char *buf);
void record_key_engine(char *buf);  /* cairn/v1/engine: which metadata engine this is */
void record_prefix_jobs(char *buf); /* cairn/v1/jobs/ */
void record_key_job(char *buf, const char *job,
                    const char *what); /* cairn/v1/jobs/<job>/<what>: incarnation, coordinator, pin, settings */
void record_key_crew(char *buf, const char *job, const char *node); /* cairn/v1/jobs/<job>/nodes/<node> */
void record_prefix_ckpts(char *buf, const char *job);               /* cairn/v1/jobs/<job>/ckpt/ */
void record_key_sweeper(char *buf); /* cairn/v1/sweeper: who looks after jobs that nobody holds (lease) */
void record_key_ckpt(char *buf, const char *job, uint64_t step, uint64_t incarnation, const char *what);
/* .../ckpt/<step>.<inc>/<what>: intent, decision, tombstone, and what forbids deletion:
 *
 *     holds                 changes with every hold that comes: a tombstone compares its revision
 *     holds/pin.<label>     until it is taken away
 *     holds/read.<node>-<start>   while that start of a daemon restores from it, under its lease
 */
#define RECORD_HOLD_PIN "holds/pin."
#define RECORD_HOLD_READ "holds/read."
/* "holds/pin.<label>" of such a key's what: 0 and the name; NULL when it is no hold of that kind. */
const char *record_hold_name(const char *what, const char *kind);
/* Parses such a key; what points into key. */
int record_parse_ckpt(const char *key, char ret_job[CAIRN_MAX_NAME + 1], uint64_t *ret_step, uint64_t *ret_incarnation,
                      const char **ret_what, struct cairn_error *err);

struct record_peer {
    char id[CAIRN_MAX_NAME + 1];
    uint8_t address[WIRE_MAX_ADDR]; /* hex in JSON */
    size_t address_len;
    char provider[64];
    char domain[CAIRN_MAX_NAME + 1]; /* failure domain; may be empty */
    uint64_t total_bytes;
    uint64_t free_bytes;
    uint64_t start; /* random, of the daemon's start */
};
#define RECORD_SEEN_MAX 64
struct record_incarnation {
    uint64_t incarnation;              /* the current one; 0: never started */
    char start_id[CAIRN_MAX_NAME + 1]; /* that raised it */
    uint32_t world_size;
    uint32_t nseen; /* older start ids, newest first; they are refused */
    char seen[RECORD_SEEN_MAX][CAIRN_MAX_NAME + 1];
};
struct record_coordinator {
    char node[CAIRN_MAX_NAME + 1];
    uint64_t start;
    uint8_t address[WIRE_MAX_ADDR]; /* where the job's other nodes greet it; hex in JSON */
    size_t address_len;
};
#define RECORD_MAX_RANKS 256 /* of a job, on one node */
struct record_crew {         /* a node with living sessions of a job: .../nodes/<node> */
    char node[CAIRN_MAX_NAME + 1];
    uint64_t start;
    uint64_t incarnation;
    uint32_t nranks;
    uint32_t ranks[RECORD_MAX_RANKS];
};
struct record_pin {
    uint64_t number;      /* raised by each move of the pin */
    uint64_t incarnation; /* of the run that resumes */
    bool none;            /* there was nothing to resume from */
    uint64_t step;        /* of the checkpoint */
    uint64_t ckpt_incarnation;
};
struct record_engine {
    char id[CAIRN_MAX_NAME + 1]; /* random, put when it is absent */
};
struct record_intent {
    uint32_t world_size;
    uint32_t nodes;
    uint32_t deadline_ms; /* a duration, counted by whoever coordinates */
    char node[CAIRN_MAX_NAME + 1];
    struct ckpt_base base; /* that its shards may have deltas against: it is kept for as long as this record is there */
};
struct record_decision {
    bool commit;
    char reason[WIRE_TEXT];        /* of an abort */
    char node[CAIRN_MAX_NAME + 1]; /* whose stream holds the root */
    struct blob_ref root;          /* of a commit */
    uint32_t world_size;
    uint64_t plain_bytes;
    uint64_t stored_bytes;
    uint64_t created_unix_ms;
    bool counted;          /* of a commit: all its NaN and Inf were */
    uint64_t nonfinite;    /* then how many there are */
    struct ckpt_base base; /* of a commit: as in the intent */
};
struct record_settings {            /* cairn/v1/jobs/<job>/settings */
    char owner[CAIRN_MAX_NAME + 1]; /* who set it first; may be empty */
    char retention[128];            /* a rule as core/checkpoint/retention.h reads it; empty: the daemon's default */
};
struct record_hold { /* of a pin and of a restore; "holds" itself says who changed it last */
    char node[CAIRN_MAX_NAME + 1];
    uint64_t start;
    uint64_t created_unix_ms;
};
#define RECORD_TOMBSTONE_PEERS 256
struct record_tombstone {          /* the checkpoint is being deleted: it is committed no more, for good */
    char node[CAIRN_MAX_NAME + 1]; /* that put it */
    char reason[WIRE_TEXT];
    uint64_t created_unix_ms;
    uint32_t npeers; /* that may have files of it: each is asked before the records go */
    char peers[RECORD_TOMBSTONE_PEERS][CAIRN_MAX_NAME + 1];
};
/* For each: encode appends JSON to out; decode reads untrusted bytes. */
int record_peer_encode(const struct record_peer *r, struct bytes *out, struct cairn_error *err);
int record_peer_decode(struct record_peer *r, const void *data, size_t len, struct cairn_error *err);
int record_incarnation_encode(const struct record_incarnation *r, struct bytes *out, struct cairn_error *err);
int record_incarnation_decode(struct record_incarnation *r, const void *data, size_t len, struct cairn_error *err);
int record_coordinator_encode(const struct record_coordinator *r, struct bytes *out, struct cairn_error *err);
int record_coordinator_decode(struct record_coordinator *r, const void *data, size_t len, struct cairn_error *err);
int record_crew_encode(const struct record_crew *r, struct bytes *out, struct cairn_error *err);
int record_crew_decode(struct record_crew *r, const void *data, size_t len, struct cairn_error *err);
int record_pin_encode(const struct record_pin *r, struct bytes *out, struct cairn_error *err);
int record_pin_decode(struct record_pin *r, const void *data, size_t len, struct cairn_error *err);
int record_engine_encode(const struct record_engine *r, struct bytes *out, struct cairn_error *err);
int record_engine_decode(struct record_engine *r, const void *data, size_t len, struct cairn_error *err);
int record_intent_encode(const struct record_intent *r, struct bytes *out, struct cairn_error *err);
int record_intent_decode(struct record_intent *r, const void *data, size_t len, struct cairn_error *err);
int record_decision_encode(const struct record_decision *r, struct bytes *out, struct cairn_error *err);
int record_decision_decode(struct record_decision *r, const void *data, size_t len, struct cairn_error *err);
int record_settings_encode(const struct record_settings *r, struct bytes *out, struct cairn_error *err);
int record_settings_decode(struct record_settings *r, const void *data, size_t len, struct cairn_error *err);
int record_hold_encode(const struct record_hold *r, struct bytes *out, struct cairn_error *err);
int record_hold_decode(struct record_hold *r, const void *data, size_t len, struct cairn_error *err);
int record_tombstone_encode(const struct record_tombstone *r, struct bytes *out, struct cairn_error *err);
int record_tombstone_decode(struct record_tombstone *r, const void *data, size_t len, struct cairn_error *err);

#endif
