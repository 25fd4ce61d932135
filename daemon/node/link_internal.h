/* SPDX-License-Identifier: Apache-2.0 */
/* A link's inside: link.c is the connection, link_put.c its streams and puts, link_read.c its reads. */
#ifndef CAIRN_DAEMON_NODE_LINK_INTERNAL_H
#define CAIRN_DAEMON_NODE_LINK_INTERNAL_H

#include "core/model/lateness.h"
#include "core/proto/wire.h"
#include "daemon/node/link.h"

enum stream_state { STREAM_OPENING, STREAM_OPEN, STREAM_REFUSED };

struct stream {
    struct list link; /* in the link */
    struct stream_key key;
    uint32_t number;
    enum stream_state state;
    struct cairn_error refusal;
    uint64_t generation;
    uint64_t deadline_ns; /* of the open, then of the sync under way */
    uint64_t opened_ns;   /* when it was asked for */
    struct list waiting;  /* puts, until it is open */
    uint64_t stored;      /* puts answered, counted */
    uint64_t syncing_to, synced_to, sequence;
    bool syncing, sync_wanted;
};

struct slot {
    struct link_put *put; /* NULL: free */
    uint16_t generation;
};

struct read_memory { /* that a connection's reads come to; it outlives the connection while a record is kept */
    char *map;
    struct fabric_mem *mem; /* NULL: the connection is gone */
    bool busy[LINK_READ_BUFFERS], kept[LINK_READ_BUFFERS];
    unsigned nkept;
};

struct link {
    struct links *links;
    struct record_peer record;
    bool registered;
    enum link_state state;
    uint32_t epoch;
    struct endpoint *ep;
    uint64_t to;
    bool failing; /* its tear-down is posted */
    struct loop_post tear_down;
    struct loop_timer tick;
    uint64_t hello_deadline_ns;
    struct proof proof; /* of the handshake under way */
    bool key_proven;    /* the peer proved that it holds the key, and got our proof */
    uint64_t heard_ns, ping_deadline_ns;
    /* from Welcome */
    uint64_t session, slots_key, slots_base, slot_bytes;
    uint32_t first_slot, nslots;
    struct slot slots[LINK_MAX_SLOTS];
    unsigned nfree;
    struct list early; /* puts from before the welcome */
    struct list queue; /* puts that wait for a slot */
    struct list streams;
    uint32_t next_stream;
    /* reads */
    struct list reads_queued, reads_sent;
    struct read_memory *read_memory; /* NULL: not connected */
    uint64_t next_request;
    struct list calls; /* struct link_call */
    /* failures */
    uint64_t avoided_until_ns;
    uint64_t up_since_ns;
    bool proven; /* never failed, or answered a ping since */
    bool late;   /* its oldest answer is overdue by the group's measure */
    struct cairn_latency store_latency, read_latency;
    uint32_t backoff_ms;
    char last_error[WIRE_TEXT];
    uint64_t fragments_sent, fragments_read, failures;
};

/* ---- link.c ---------------------------------------------------------------------------------- */
uint64_t link_now_ns(const struct link *l);
uint64_t link_deadline(const struct link *l, uint32_t ms);
void link_say(struct link *l, struct wire_message *m);
/* The link is given up: torn down from the top of the stack, avoided for its backoff. */
void link_fail(struct link *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* An answer came that was worth something: a late link is prompt again, one that held for as long as its last backoff
 * has its backoff forgotten. */
void link_did_well(struct link *l);
/* Sends what waits and can be sent. */
void link_pump(struct link *l);

/* ---- link_proof.c ---------------------------------------------------------------------------- */
int link_hello_nonce(struct link *l, struct wire_message *hello, struct cairn_error *err);
void link_on_challenge(struct link *l, const struct wire_message *m);
/* The peer has proved itself, or no proof is wanted. */
bool link_key_proven(const struct link *l);

/* ---- link_put.c ------------------------------------------------------------------------------ */
struct stream *link_find_stream(const struct link *l, const struct stream_key *key);
void link_on_stream_opened(struct link *l, const struct wire_message *m);
void link_on_synced(struct link *l, const struct wire_message *m);
void link_on_stored(struct link *l, const struct wire_message *m);
void link_pump_puts(struct link *l);
/* Takes every put off the link and frees its streams: the connection is gone. */
void link_take_puts(struct link *l, struct list *ret_puts);
void link_complete_puts(struct list *puts, const struct cairn_error *err);
void link_move_all(struct list *from, struct list *to);

/* ---- link_read.c ----------------------------------------------------------------------------- */
int link_make_read_memory(struct link *l, struct cairn_error *err);
void link_release_read_memory(struct link *l);
void link_on_written(void *arg, uint32_t data);
void link_on_read_done(struct link *l, const struct wire_message *m);
void link_pump_reads(struct link *l);
void link_complete_reads(struct list *reads, const struct cairn_error *err);

/* ---- link_call.c ----------------------------------------------------------------------------- */
void link_on_answer(struct link *l, const struct wire_message *m);
void link_complete_calls(struct link *l, const struct cairn_error *err);

#endif
