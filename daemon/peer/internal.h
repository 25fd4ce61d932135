/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the peer role share. */
#ifndef CAIRN_DAEMON_PEER_INTERNAL_H
#define CAIRN_DAEMON_PEER_INTERNAL_H

#include "core/proto/wire.h"
#include "daemon/io/workers.h"
#include "daemon/peer/keep.h"
#include "daemon/peer/peer.h"

#define PEER_MAX_STREAMS 256        /* that one node writes at once */
#define PEER_MAX_READS_WAITING 1024 /* of all nodes, beyond the read buffers */
#define PEER_MAX_FENCES 4096        /* jobs whose fence is remembered */
#define PEER_MAX_FORGOTTEN 1024     /* deleted checkpoints that are remembered */

#define PEER_MAX_GREETINGS 64 /* answered, and not admitted */

struct peer_node;
struct scrub;

/* One slot of a node, from the arrival of its bytes to the answer. */
struct slot {
    struct peer_node *node;
    uint32_t number;
    uint16_t generation; /* that the next write must show */
    bool busy;
    char *memory;    /* FRAGMENT_MAX_RECORD bytes */
    uint32_t stream; /* the node's number of it */
    struct fragment fragment;
    struct worker_job check; /* of the payload */
    int code;
    struct cairn_error err;
    struct keep_append append;
};

struct node_stream {
    struct list link; /* in peer_node */
    struct peer_node *node;
    uint32_t number; /* chosen by the node */
    struct kept_stream *kept;
    struct keep_sync sync;
    bool syncing;
    uint64_t sync_sequence;
    bool closing;
    bool repair; /* of a committed checkpoint: no fence holds */
};

/* A node's session. */
struct peer_node {
    struct list link; /* in peer */
    struct peer *peer;
    uint64_t session; /* random; every message of the node shows it */
    char id[CAIRN_MAX_NAME + 1];
    uint64_t start;
    uint64_t to;      /* where answers go */
    bool ended;       /* waits for pending */
    bool cut;         /* its connection is closed: nothing of it writes into its memory any more */
    unsigned pending; /* checks, appends, syncs, sends, reads */
    uint64_t heard_ns;
    struct list streams;
    char *memory; /* of all slots, mapped */
    size_t memory_len;
    struct fabric_mem *mem;
    uint32_t nslots;
    uint32_t first_slot; /* in the numbering that all nodes share */
    struct slot slots[];
};

struct peer_read {
    struct list link; /* waiting, when it has no buffer */
    struct peer_node *node;
    uint64_t request;
    bool check_only, present_only;
    uint64_t address, remote_key, room;
    uint32_t data;
    struct fragment_key key;
    void *buffer;
    struct keep_read read;
    struct worker_job check;
    uint32_t record_len;
    int code;
    struct cairn_error err;
    unsigned damaged;          /* copies that did not verify */
    struct cairn_error damage; /* the first one's */
    struct fabric_op write;
};

struct greeting {      /* of a node that was challenged or refused */
    uint64_t begun_ns; /* 0: free */
    uint64_t to;       /* the destination that its answer opened */
    uint64_t session;  /* random; its proof shows it, and it becomes the node's. 0: no proof is waited for */
    struct proof proof;
    struct wire_message hello;
};

struct fence {
    char job[CAIRN_MAX_NAME + 1];
    uint64_t incarnation;
};

struct forgotten { /* a checkpoint that was deleted or aborted: writes of it are refused */
    char job[CAIRN_MAX_NAME + 1];
    uint64_t step, incarnation;
};

struct peer {
    struct peer_deps deps;
    struct peer_config config;
    char *id, *domain, *provider;
    uint64_t start;
    struct endpoint *ep;
    struct keep *keep;
    struct list nodes;
    unsigned nnodes;
    struct buffers *read_buffers;
    struct fabric_mem *read_mem;
    struct scrub *scrub;
    struct list reads_waiting;
    unsigned nreads_waiting;
    struct greeting greetings[PEER_MAX_GREETINGS];
    uint64_t refused_ns; /* when the log said so last */
    unsigned refusals;   /* not said since */
    struct fence *fences;
    unsigned nfences;
    struct forgotten forgotten[PEER_MAX_FORGOTTEN];
    unsigned nforgotten; /* since the start; the last PEER_MAX_FORGOTTEN are kept */
    struct peer_status status;
    struct loop_timer tick; /* idle nodes, the record, forgotten checkpoints */
    unsigned ticks;
    struct loop_timer cut; /* ends sends that hang, when the peer stops */
    /* the metadata engine */
    char *engine_path;                    /* the file that remembers its id */
    char engine[CAIRN_MAX_NAME + 1];      /* that this peer belongs to; "": to none yet */
    char engine_seen[CAIRN_MAX_NAME + 1]; /* that is there */
    char engine_job[CAIRN_MAX_NAME + 1];  /* whose incarnation is being compared; "": none yet */
    uint64_t engine_highest;              /* of that job, stored here */
    char engine_behind[CAIRN_MAX_NAME +
                       1]; /* a job that the metadata knows a lower incarnation of than is stored here; "" */
    bool engine_looking, engine_looked; /* a request is under way; one was answered */
    struct meta_req engine_req;
    struct loop_timer engine_timer;
    /* registration */
    int64_t lease;
    bool registering; /* a request is under way */
    bool complained;  /* that it is not registered */
    struct meta_req meta_req;
    struct loop_timer refresh;
    struct bytes record;
    char record_key[RECORD_KEY_MAX];
    unsigned forgetting; /* records being looked up */
    bool stopping;
    void (*stopped)(void *arg);
    void *stopped_arg;
};

/* ---- slots.c: sessions of nodes, and what arrives in their slots ----------------------------- */
/* The node that this Hello is from gets its slots, what it had is gone. session: of the handshake; 0: there was none.
 */
int peer_admit(struct peer *p, const struct wire_message *hello, uint64_t session, struct cairn_error *err);
void peer_on_written(struct peer *p, uint32_t data);
void peer_on_stream_open(struct peer_node *n, const struct wire_message *m);
/* Whether it may be was found out: opens it, or with code < 0 says why not. */
void peer_stream_open(struct peer_node *n, const struct wire_message *m, int code, struct cairn_error *err);
void peer_on_sync(struct peer_node *n, const struct wire_message *m);
void peer_on_stream_close(struct peer_node *n, const struct wire_message *m);
/* Cuts the node off and revokes its memory at once; its struct goes when nothing of it is pending. A peer that stops
 * says bye with the reason first. */
void peer_node_end(struct peer_node *n, const char *reason);
void peer_node_pending_end(struct peer_node *n);
void peer_send(struct peer_node *n, const void *message, size_t len); /* best effort: a dead node ends its session */
void peer_answer(struct peer_node *n, const struct wire_message *m);

/* ---- greet.c: who may be a node -------------------------------------------------------------- */
void peer_on_hello(struct peer *p, const struct wire_message *m);
void peer_on_proof(struct peer *p, const struct wire_message *m);
void peer_greetings_look(struct peer *p); /* ends those that are late, with what they opened */

/* ---- reads.c --------------------------------------------------------------------------------- */
void peer_on_read(struct peer_node *n, const struct wire_message *m);
void peer_drop_reads(struct peer_node *n); /* those that wait for a buffer */

/* ---- engine.c: which metadata engine is the right one; what there is, for a rebuild ---------- */
int peer_engine_start(struct peer *p, struct cairn_error *err); /* registers the peer when it has looked */
void peer_engine_look(struct peer *p);
int peer_check_engine(const struct peer *p, struct cairn_error *err); /* UNAVAILABLE: nothing is stored or deleted */
void peer_on_accept_engine(struct peer_node *n, const struct wire_message *m);
void peer_on_inventory(struct peer_node *n, const struct wire_message *m);

/* ---- repair_open.c: a stream for a repair; the decision is looked up first ------------------- */
void peer_open_for_repair(struct peer_node *n, const struct wire_message *m);

/* ---- scrub.c: reads all that is stored, slowly by itself and at once when it is told to ------ */
int scrub_new(struct peer *p, struct cairn_error *err); /* sets p->scrub */
void scrub_free(struct scrub *s);                       /* nothing may be under way; NULL allowed */
void scrub_stop(struct scrub *s);                       /* drops what waits; what is under way ends soon */
bool scrub_busy(const struct scrub *s);
void peer_on_scrub(struct peer_node *n, const struct wire_message *m);

/* ---- register.c: the record under a lease, and checkpoints that were aborted or deleted ------ */
void peer_register(struct peer *p);
void peer_unregister(struct peer *p);
/* Looks the checkpoint's records up; deletes and answers FORGOTTEN when they allow it and nothing is left. */
void peer_on_forget(struct peer_node *n, const struct wire_message *m);
bool peer_has_forgotten(const struct peer *p, const char *job, uint64_t step, uint64_t incarnation);
void peer_forget_some(struct peer *p);
void peer_maybe_stopped(struct peer *p);

#endif
