/* SPDX-License-Identifier: Apache-2.0 */
/* One connection to one peer, and what drains, gathers and blobs ask of it. Internal to the transfer files.
 *
 * Every request belongs to its caller and completes exactly once, never from within the call that started it. A request
 * that misses its deadline fails the whole link: the endpoint is closed first, so that nothing of it touches memory any
 * more, then everything completes with the reason. Each failure raises the link's epoch: what was stored under an older
 * one is not counted on. */
#ifndef CAIRN_DAEMON_NODE_LINK_H
#define CAIRN_DAEMON_NODE_LINK_H

#include "daemon/node/links.h"

#define LINKS_MAX CAIRN_PLACE_MAX /* peers that a daemon can know */
#define LINK_MAX_SLOTS 64
#define LINK_READ_BUFFERS 16 /* fragments read from a peer at once; with 8 a restore is a fifth slower */

enum link_state { LINK_DOWN, LINK_CONNECTING, LINK_UP };

/* Which stream file of the peer: this node's of one checkpoint, or one that takes what is repaired of some node's. */
struct stream_key {
    char job[CAIRN_MAX_NAME + 1];
    uint64_t step;
    uint64_t incarnation;
    uint64_t fence_incarnation;
    uint64_t reserve_bytes;            /* asked for when the stream is opened first */
    char repaired[CAIRN_MAX_NAME + 1]; /* whose fragments are repaired; "": this node saves its own */
};

/* A fragment to be stored. */
struct link_put {
    struct list link; /* the link's */
    void (*done)(struct link_put *p, int code, const struct cairn_error *err);
    void *arg;
    struct stream_key stream;
    struct fragment *fragment; /* sealed with the stream's generation when it is sent */
    char *record;              /* header block and payload, in a fragment buffer */
    const char *payload;       /* NULL: behind the header. Else it is sent from here, whole blocks of the disk */
    size_t record_len;         /* of both */
    uint64_t stored_at;        /* filled: compare with link_synced_to */
    uint32_t epoch;            /* filled: of the link when it was stored */
    uint32_t slot;
    struct link *owner; /* that it was sent on */
    struct fabric_op op;
    bool op_busy, answered;
    int code;
    struct cairn_error err;
    uint64_t queued_ns, sent_ns; /* since when; sent_ns 0: it waits for a slot and its buffer is not in use */
    uint64_t deadline_ns;
};

/* A fragment to be read, or checked where it lies. */
struct link_read {
    struct list link;
    /* record lives during the call; NULL for a check. */
    void (*done)(struct link_read *r, int code, const struct cairn_error *err, const char *record);
    void *arg;
    struct fragment_key key;
    bool check;
    bool present; /* of a check: whether the peer knows of a good one; nothing is read */
    uint64_t request;
    int buffer;                    /* of the link's read buffers; -1 */
    struct read_memory *memory;    /* that has it */
    uint64_t sent_ns, deadline_ns; /* set when it is sent */
};

/* Errors are returned at once when the link cannot take the request: UNAVAILABLE, NO_SPACE, FENCED. */
int link_put(struct link *l, struct link_put *p, struct cairn_error *err);
/* Takes back a put that still waits; its done() will not be called. False when it is on its way. */
bool link_put_cancel(struct link_put *p);
/* Whether it waits or is under way for longer than answers of its link take. */
bool link_put_is_late(const struct link *l, const struct link_put *p);
bool link_read_is_late(const struct link *l, const struct link_read *r);
int link_read(struct link *l, struct link_read *r, struct cairn_error *err);
/* Called in done(): the record stays as it is until link_read_release, also when the link fails meanwhile. The link has
 * LINK_READ_BUFFERS of them: who keeps one waits for nothing but a worker. */
void link_read_keep(struct link_read *r);
void link_read_release(struct link *l, struct link_read *r);
/* The request's done() will not be called. The peer's answer, should it come, finds nobody. */
void link_read_cancel(struct link *l, struct link_read *r);
/* Asks for a sync of the stream; merged with one that waits. The pumps run when it is done. */
void link_sync(struct link *l, const struct stream_key *key);
/* Puts of this stream with stored_at up to it are durable. */
uint64_t link_synced_to(const struct link *l, const struct stream_key *key);

/* Nothing more of a repair goes to this peer. */
void link_end_repair(struct link *l, const struct stream_key *key);

struct link_call { /* a message that is answered by one: SCRUB, INVENTORY, ACCEPT_ENGINE; owned by the caller until done
                    */
    void (*done)(struct link_call *c, int code, const struct cairn_error *err, const struct wire_message *answer);
    void *arg;
    struct list link; /* the link's, with what follows */
    struct link *owner;
    uint64_t request;
    struct loop_timer deadline;
};
/* A call that is not answered in time fails alone: it may be long. Errors at once as for link_put. */
int link_call(struct link *l, struct link_call *c, struct wire_message *m, uint32_t timeout_ms,
              struct cairn_error *err);
/* done() will not be called. */
void link_call_cancel(struct link_call *c);

const char *link_id(const struct link *l);
uint32_t link_epoch(const struct link *l);
enum link_state link_state_of(const struct link *l);
const char *link_last_error(const struct link *l);
/* Registered, and neither failed recently nor refusing this stream. One that failed has proven itself since. */
bool link_usable(const struct link *l, const struct stream_key *key);
/* Usable, and not late: who gets new fragments. */
bool link_prompt(const struct link *l, const struct stream_key *key);

/* ---- what links.c gives to the transfer files ------------------------------------------------ */
struct pump { /* run after anything changed that may let its owner go on: buffers, links, syncs */
    struct list link;
    void (*run)(struct pump *p);
    void *arg;
};
void links_pump_add(struct links *links, struct pump *p);
void links_pump_remove(struct pump *p);
void links_kick(struct links *links); /* runs all pumps soon, once */

struct loop *links_loop(struct links *links);
struct workers *links_workers(struct links *links);
struct plugins *links_plugins(struct links *links);
struct keyring *links_keyring(struct links *links); /* NULL: no proof is wanted */
struct fabric *links_fabric(struct links *links);
const struct links_config *links_config_of(struct links *links);
/* Whether a put's payload may lie in memory that was not registered. */
bool links_sends_anything(struct links *links);
struct fabric_mem *links_mem(struct links *links);
struct pacer;
struct pacer *links_pacer(struct links *links); /* NULL: nothing is bounded */

void *links_buffer_take(struct links *links);
void links_buffer_give(struct links *links, void *buffer);
unsigned links_buffers_available(struct links *links);
/* CAIRN_PART bytes for what a gather decodes from, not cleared; a few that were given back are kept: fresh pages are
 * slow. NULL: no memory; and may be given. */
void *links_payload_take(struct links *links);
void links_payload_give(struct links *links, void *payload);

/* The links that a key's fragments go to, best first; returns how many (at most CAIRN_GROUP_MAX). */
unsigned links_order(struct links *links, uint64_t key, struct link *ret[CAIRN_GROUP_MAX]);
/* Those of them that take new fragments now (of this stream): the prompt ones; only where there is none, late ones. */
unsigned links_takers(struct links *links, uint64_t key, const struct stream_key *stream,
                      struct link *ret[CAIRN_GROUP_MAX]);
/* After how long an answer of this link is late, a store's or a read's. */
uint64_t links_late_after_ns(struct links *links, const struct link *l, bool read);
/* Whether one more link of the group may be held late. */
bool links_may_be_late(const struct links *links);
bool links_any_late(const struct links *links);
struct link *links_find(struct links *links, const char *peer); /* NULL */
unsigned links_all(struct links *links, struct link **ret, unsigned room);
/* Every registered peer says that it has no space left. */
bool links_full(const struct links *links);
void links_forgotten(struct links *links, const char *peer, const char *job, uint64_t step, uint64_t incarnation);
/* The last errors of peers that cannot be used, for messages. */
void links_why(struct links *links, char *buf, size_t len);

/* ---- link.c, for links.c --------------------------------------------------------------------- */
int link_new(struct links *links, const struct record_peer *record, struct link **ret_link, struct cairn_error *err);
bool link_failing(const struct link *l);                            /* its tear-down is posted: it must not be freed */
void link_free(struct link *l);                                     /* everything of it completes with ABORTED */
void link_update(struct link *l, const struct record_peer *record); /* NULL: its record is gone */
void link_connect(struct link *l);
bool link_registered(const struct link *l);
bool link_late(const struct link *l);
const struct cairn_latency *link_latency(const struct link *l, bool read);
const struct record_peer *link_record(const struct link *l);
void link_status_of(const struct link *l, struct link_status *ret);
void link_end_stream(struct link *l, const char *job, uint64_t step, uint64_t incarnation, bool aborted);
void link_say_bye(struct link *l);

#endif
