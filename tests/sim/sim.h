/* SPDX-License-Identifier: Apache-2.0 */
/* The simulated world. One schedule is one struct sim: actors that own their state, one queue of events in simulated
 * time, a plan of faults. Nothing here reads a clock, a file or the network; all chance comes from the seed.
 *
 *     process (a rank) --local--> node --network--> coordinator (a node that holds the key)
 *                                  |                      |
 *                                  +--network--> peers    +--network--> metadata engine
 *
 * Production code decides: core/checkpoint (start, commit, pin, known), core/model (placement, geometry). The drivers
 * here do what daemon/node and daemon/peer do around it. */
#ifndef CAIRN_TESTS_SIM_SIM_H
#define CAIRN_TESTS_SIM_SIM_H

#include "core/checkpoint/commit.h"
#include "core/checkpoint/known.h"
#include "core/checkpoint/pin.h"
#include "core/checkpoint/retention.h"
#include "core/checkpoint/start.h"
#include "core/model/choice.h"
#include "core/model/placement.h"
#include "core/model/stripe.h"
#include "tests/sim/queue.h"
#include "tests/sim/rng.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- sizes ----------------------------------------------------------------------------------- */
#define SIM_NODES 4
#define SIM_PEERS 6
#define SIM_PROCS 24 /* living processes of ranks, those of replaced starts included */
#define SIM_WORLD 8
#define SIM_CKPTS 64
#define SIM_RUNS 8     /* checkpoints on their way at one coordinator */
#define SIM_SAVES 16   /* of one node */
#define SIM_STRIPES 64 /* being stored by one node */
#define SIM_CHUNKS 2   /* of a shard */
#define SIM_FRAGS 6    /* of a stripe: 4+2 */
#define SIM_DISK 1024  /* fragments on one disk */
#define SIM_STREAMS 256
#define SIM_MANIFESTS 512
#define SIM_ROOTS 64
#define SIM_FAULTS 12
#define SIM_VIEWS 64
#define SIM_STARTS 16 /* of a job in one schedule */
#define SIM_NOTED 3   /* shards of a rank that a node remembers as bases */

enum {
    ACTOR_NODE = 0,
    ACTOR_PEER = ACTOR_NODE + SIM_NODES,
    ACTOR_META = ACTOR_PEER + SIM_PEERS,
    ACTOR_PROC,
    ACTOR_LAUNCHER = ACTOR_PROC + SIM_PROCS,
    SIM_ACTORS
};

/* ---- times, in microseconds; milliseconds where the core wants them -------------------------- */
#define MS 1000u
#define META_MS 300 /* until a request to the metadata counts as unknown */
#define LEASE_MS 900
#define CHECKPOINT_MS 1500                 /* a checkpoint's deadline at its coordinator */
#define SAVE_MS (2 * CHECKPOINT_MS + 2500) /* a save's deadline at its node: with the answers after the former */
#define PEER_MS 250                        /* until a peer that does not answer is given up */
#define BEAT_MS 200                        /* a node repeats what it has to say */
#define SILENT_MS 700                      /* a coordinator that was not heard for so long is looked up again */
#define MEMBER_MS 1200                     /* a member that was not heard for so long does not live */
#define PAUSE_MS 40                        /* before the metadata is asked again; doubles */
#define MAX_PAUSE_MS 320
#define OPEN_MS 4000
#define JOIN_MS 4000
#define SLACK_MS 100 /* between a deadline and what must have happened by it */

#define BUFFERS 10 /* fragments that a node has in flight */
#define CREDITS 4  /* slots that a peer grants to a node */

/* ---- the metadata's records ------------------------------------------------------------------ */
struct meta_inc {
    uint32_t revision;
    uint32_t incarnation;
    uint8_t start_id; /* 0: never started */
    uint8_t world, nseen, seen[SIM_STARTS];
};
struct meta_coordinator {
    uint32_t revision; /* 0: absent */
    uint16_t epoch;    /* the daemon's start */
    uint8_t node;
    uint32_t lease;
};
struct meta_pin {
    uint32_t revision;
    uint32_t number;
    uint32_t incarnation;
    bool none;
    uint8_t ckpt;
};
enum { FATE_NONE, FATE_COMMIT, FATE_ABORT };
struct meta_ckpt {
    bool intent, tombstone;
    uint8_t decision; /* FATE_ */
    uint8_t root;     /* of a commit */
    uint8_t world;
    uint8_t intent_base, base; /* 1 + the checkpoint that it is stored against, 0 none: the intent's and the commit's */
    uint32_t decided, holds;   /* revisions */
};
/* One snapshot of the job's records: what a list answers. */
struct view {
    uint32_t revision;
    struct meta_inc inc;
    struct meta_coordinator coordinator;
    struct meta_pin pin;
    uint8_t nckpts;
    struct meta_ckpt ckpt[SIM_CKPTS];
};

enum key { KEY_INC, KEY_COORDINATOR, KEY_PIN, KEY_INTENT, KEY_DECISION, KEY_HOLDS, KEY_TOMBSTONE };
struct compare {
    uint8_t key, ckpt;
    uint32_t revision;
};
struct txn {
    uint8_t ncompares, put, ckpt;
    bool erase; /* the key instead of putting it */
    struct compare compare[6];
    union {
        struct meta_inc inc;
        struct meta_coordinator coordinator;
        struct meta_pin pin;
        struct meta_ckpt intent;
        struct meta_ckpt decision;
    };
};

/* ---- messages and timers --------------------------------------------------------------------- */
enum msg_type {
    MSG_NONE,
    /* process and node */
    P_JOIN,
    P_OPEN,
    P_BEGIN,
    P_FILLED,
    P_LEAVE,
    P_GONE,
    N_JOINED,
    N_OPENED,
    N_TOLD,
    N_GONE,
    /* node and coordinator */
    C_JOIN,
    C_BEAT,
    C_REPORT,
    C_OPEN,
    C_LEAVE,
    C_JOINED,
    C_BEATEN,
    C_DRAIN,
    C_VERDICT,
    C_OPENED,
    /* node and peer */
    S_HELLO,
    S_PUT,
    S_SYNC,
    S_READ,
    S_END,
    S_WELCOME,
    S_STORED,
    S_REFUSED,
    S_SYNCED,
    S_SYNC_FAILED,
    S_DATA,
    S_MISSING,
    /* the metadata */
    M_LIST,
    M_TXN,
    M_GRANT,
    M_KEEP,
    M_REVOKE,
    M_ANSWER,
    /* timers */
    T_META_LATE,
    T_LEASE,
    T_RETRY,
    T_BEAT,
    T_RUN_PAUSE,
    T_RUN_LATE,
    T_RUN_UNHEARD,
    T_OPEN_PAUSE,
    T_OPEN_LATE,
    T_LINK,
    T_LINK_LATE,
    T_SAVE_LATE,
    T_FETCH_LATE,
    T_FETCH_PAUSE,
    T_DISK_WRITE,
    T_DISK_SYNC,
    T_LEASE_EXPIRES,
    T_PROC_STEP,
    T_PROC_FILL,
    T_PROC_JOIN,
    T_PROC_LATE,
    T_LAUNCH,
    T_FAULT,
    T_HEAL,
    T_REBOOT,
    MSG_TYPES
};
const char *msg_name(int type);

struct msg {
    uint8_t type, from, to;
    uint8_t ckpt, rank, chunk, attempt, index;
    uint8_t kind, state, proc, start_id;
    uint8_t world, root;
    bool flag;
    uint8_t view;        /* of M_ANSWER: 1 + index, 0 none */
    uint16_t from_epoch; /* of the sender's start */
    uint16_t to_epoch;   /* for that start of the receiver only; 0: any */
    uint16_t slot, stripe, stream;
    int16_t code;
    uint32_t token;
    uint32_t seq;
    uint32_t incarnation;
    uint64_t content;
    struct txn txn;
};

/* ---- what is stored -------------------------------------------------------------------------- */
enum { KIND_DATA, KIND_MANIFEST, KIND_ROOT };
/* Where a stripe lies. A manifest or a root is a stripe of 1 + m copies. */
struct place {
    uint8_t kind, ckpt, rank, chunk, attempt, k, m;
    uint8_t codec;
    bool delta; /* against the same chunk of the shard's base */
    bool full;  /* every fragment was said to be durable */
    uint8_t peer[SIM_FRAGS];
    uint16_t slot[SIM_FRAGS]; /* on that peer's disk; NO_SLOT: not durable yet */
    uint64_t content;         /* as it is stored */
};
#define NO_SLOT 0xffffu
struct shard {
    uint8_t ckpt, rank, nchunks;
    uint8_t depth; /* of the chain of bases below it */
    uint16_t base; /* in manifests, when depth > 0 */
    struct place chunk[SIM_CHUNKS];
    struct place self;
};
struct root_image {
    uint8_t ckpt, world;
    uint16_t shard[SIM_WORLD]; /* in manifests */
    struct place self;
};

enum { FRAG_FREE, FRAG_WRITTEN, FRAG_SYNCED, FRAG_LOST, FRAG_TORN, FRAG_ROTTEN };
struct frag {
    uint8_t kind, ckpt, rank, chunk, attempt, index;
    uint8_t state; /* FRAG_ */
    bool hidden;   /* by a later one of the same name */
    bool damaged;  /* by a fault that no daemon can prevent: rot, a destroyed disk */
    uint16_t stream;
    uint32_t seq; /* in the stream */
    uint64_t content;
};
struct stream {
    uint8_t ckpt, node;
    uint16_t node_epoch, peer_epoch;
    bool given_up;
    uint32_t appended, syncing;
};

struct actor {
    bool up;
    uint16_t epoch;      /* starts at 1; each start is another */
    uint64_t hung_until; /* 0: runs */
    int64_t wall_offset; /* of its wall clock */
    uint64_t disturbed;  /* when it last started, or went on after it had hung */
};

struct peer {
    uint32_t fence;              /* no writes of older incarnations */
    uint32_t token;              /* of a reading of the records, 0: none */
    uint32_t session[SIM_NODES]; /* the greeting that each node's slots were granted for */
    uint64_t ended;              /* checkpoints of which a node said that they ended; bits */
    uint64_t dead;               /* checkpoints that were aborted: late writes are refused; bits */
    uint8_t fail_syncs, fail_writes;
    uint64_t full_until;                     /* no space */
    uint16_t nfrags, nstreams, first_stream; /* first_stream: of this start */
    struct stream stream[SIM_STREAMS];
    struct frag frag[SIM_DISK];
};

/* ---- a node ---------------------------------------------------------------------------------- */
enum { PIECE_TODO, PIECE_SENT, PIECE_STORED, PIECE_DURABLE, PIECE_GIVEN_UP };
struct piece {
    uint8_t state, peer;
    uint16_t slot, stream;
    uint32_t seq;
};
struct stripe {                 /* being stored */
    bool used, prepared, stuck; /* stuck: cut again when a peer comes */
    uint8_t kind, ckpt, rank, chunk, attempt, k, m, norder;
    uint8_t order[SIM_PEERS]; /* peers, best first */
    uint8_t next;             /* the next spare in order */
    uint8_t owner;            /* of data and manifests the save, of roots the run */
    uint8_t codec;            /* of this attempt: chosen once, so that all fragments are of one encoding */
    bool delta;
    uint64_t content;    /* as it is stored, but for the codec */
    struct place *place; /* known once the manifest is written: later fragments are noted there */
    struct piece piece[SIM_FRAGS];
};
enum { LINK_DOWN, LINK_GREETING, LINK_UP };
struct link {
    uint8_t state, credits; /* credits in use */
    uint16_t peer_epoch;
    uint32_t token;   /* of the greeting or the backoff */
    uint32_t session; /* the greeting that was answered */
    uint32_t syncing; /* token of the sync in flight, 0: none */
    bool watched;     /* a timer looks after what is outstanding */
    uint16_t sync_stream;
    uint32_t backoff_ms;
    uint64_t busy_since; /* the last answer, or when the first thing became outstanding */
};
enum { SAVE_BEGUN = 1, SAVE_FILLED, SAVE_DURABLE, SAVE_FAILED, SAVE_DROPPED };
struct save {
    bool used, drain, told, draining;
    uint8_t ckpt, rank, proc, state;
    uint16_t proc_epoch;
    uint16_t manifest; /* of SAVE_DURABLE */
    uint8_t nstripes;  /* not full yet */
    uint8_t named;     /* 1 + the base that the intent names, 0 none */
    uint8_t depth;     /* of its base; 0: none */
    uint16_t base;     /* in manifests */
    uint32_t token;    /* of its deadline */
    uint64_t content;
};
struct noted { /* a rank's shard that was durable here: what a later one may be stored against */
    bool used;
    uint8_t ckpt, depth;
    uint16_t manifest;
    uint64_t content;
};
struct member { /* of a process on this node */
    bool used, joined, fenced, opening;
    uint8_t rank, world, start_id;
    bool take_over;
    uint16_t proc_epoch;
    uint32_t incarnation;
    uint32_t pin_number;
    uint32_t join_token, open_token; /* of the deadline */
};
/* Reads one stripe after the other: a load reads root and manifests, a restore also one shard's chunks. */
struct fetch {
    bool used, load; /* a load, of opening proc; else a restore, of process proc */
    bool wrong;      /* what was read is not what was given */
    uint8_t ckpt, rank, world, proc;
    uint8_t shard, piece; /* being read: piece 0 the manifest, from 1 its chunks; before the first the root */
    uint8_t level;        /* how many bases below the shard */
    uint64_t plain;       /* of the chunk being read, once its last base was added */
    bool rooted;
    uint16_t root;
    uint8_t good, bad; /* answers of the stripe being read; bits */
    uint32_t token;    /* of this reading's answers */
    uint64_t until;
};
enum { OPEN_IDLE, OPEN_READING, OPEN_PAUSED, OPEN_LOADING, OPEN_ABORTING, OPEN_PINNING };
struct opening {             /* at the coordinator, of a process */
    uint8_t phase, node, at; /* at: checkpoint being loaded, aborted, pinned */
    bool used, none, pinning;
    uint16_t node_epoch, proc_epoch;
    uint32_t incarnation;
    uint32_t token; /* of its pause */
    uint64_t until;
    uint64_t bad; /* checkpoints that could not be read; bits */
    uint8_t root; /* of what is loaded */
    uint32_t inc_revision;
    struct meta_pin seen; /* when it was read */
    struct meta_pin pin;  /* being written */
};
struct run { /* a checkpoint on its way, at the coordinator */
    bool used, over, refused, paused, rooting, known;
    bool unheard;             /* adopted: its ranks' nodes are awaited */
    uint8_t ckpt, sent, what; /* enum commit_effect: in flight; waiting for the pause to end */
    uint8_t base;             /* 1 + the checkpoint that its intent names; 0 none */
    bool no_base;             /* an intent was refused: it goes without one */
    uint32_t incarnation, token, late_token, grace_token, pause_ms;
    uint64_t started;
    uint16_t root;
    struct commit machine;
    uint8_t ranks[SIM_WORLD];
    uint16_t shard[SIM_WORLD];
};
struct known_member { /* as the coordinator knows it, by process */
    bool used;
    uint8_t rank, node;
    uint16_t proc_epoch, node_epoch;
    uint32_t incarnation;
    uint64_t heard;
};
enum { JOB_IDLE, JOB_READING, JOB_LEASING, JOB_CLAIMING, JOB_SWEEPING, JOB_RAISING, JOB_RELEASING };
/* Slots of requests to the metadata: at most one in flight in each. */
enum { ASK_JOB, ASK_LEASE, ASK_RETAIN, ASK_RUN, ASK_OPEN = ASK_RUN + SIM_RUNS, ASKS = ASK_OPEN + SIM_PROCS };
enum { RETAIN_IDLE, RETAIN_READING, RETAIN_BURYING };
struct node {
    struct link link[SIM_PEERS];
    struct stripe stripe[SIM_STRIPES];
    struct save save[SIM_SAVES];
    struct member member[SIM_PROCS];
    struct fetch fetch[SIM_PROCS]; /* restores, by process */
    uint8_t buffers;               /* in use */
    uint8_t nstripes;              /* used ones lie below */
    /* the job, as daemon/node/jobs.c keeps it */
    uint8_t phase, coordinator; /* coordinator: 1 + node, 0 nobody */
    bool valid, held, retrying, beating;
    uint32_t ask[ASKS]; /* tokens, 0: idle */
    uint32_t lease, lease_kept_ms, lease_sent_ms, retry_token;
    uint32_t coordinator_revision;
    uint64_t heard; /* the coordinator */
    struct meta_inc inc, next;
    struct meta_pin pin;
    uint64_t leftovers;          /* undecided checkpoints that nobody works on; bits */
    uint64_t committed, aborted; /* fates that are known; bits */
    uint8_t sweeping;
    struct run run[SIM_RUNS];
    struct opening opening[SIM_PROCS];
    struct fetch load[SIM_PROCS]; /* by opening */
    struct known_member known[SIM_PROCS];
    /* retention and bases: retain.c */
    struct noted noted[SIM_WORLD][SIM_NOTED];
    uint8_t retain, burying; /* RETAIN_; the checkpoint that is being buried */
    uint64_t chosen;         /* to be buried; bits */
    struct view kept;        /* what they were chosen from */
    struct view bases;       /* what bases are chosen from: as it was last read */
};

/* ---- processes and their launcher ------------------------------------------------------------ */
enum { PROC_NONE, PROC_JOINING, PROC_OPENING, PROC_TRAINING, PROC_SAVING, PROC_DONE };
struct proc {
    uint8_t state, node, rank, world, start_id;
    bool take_over, resumed, rejoin;
    uint8_t left; /* saves to do */
    uint32_t incarnation;
    uint32_t step;
    uint32_t token; /* of the deadline of what it waits for */
    uint64_t since;
};
struct launcher {
    uint8_t start_id; /* of the last start */
    uint8_t starts, left;
    bool running, final, finished, failed, take_over;
    uint8_t world, alive;
    uint8_t commits; /* told to the last start */
    uint32_t token;
};

/* ---- faults ---------------------------------------------------------------------------------- */
enum fault_type {
    FAULT_CRASH,
    FAULT_CRASH_ON,
    FAULT_KILL_RANK,
    FAULT_HANG,
    FAULT_CUT,
    FAULT_ISOLATE,
    FAULT_LEASE,
    FAULT_SYNC,
    FAULT_WRITE,
    FAULT_FULL,
    FAULT_ROT,
    FAULT_DESTROY,
    FAULT_CLOCK,
    FAULT_RESTART,
    FAULT_ZOMBIE,
    FAULT_OLD_START,
    FAULT_ANSWERS,
    FAULTS
};
struct fault {
    uint8_t type, a, b; /* actors, or what the type says */
    bool skip;          /* while a trace is shortened */
    uint32_t at_ms, for_ms;
};
struct config {
    uint8_t nodes, per_node, peers, chunks, saves, nfaults;
    uint16_t loss, dup, straggle; /* per mille of messages */
    uint16_t deadline_ms;         /* of a checkpoint; CHECKPOINT_MS once all is well */
    uint8_t chain;                /* of bases at most; 0: none */
    uint8_t last;                 /* checkpoints that are kept; 0: all */
    struct fault fault[SIM_FAULTS];
};

/* ---- the world ------------------------------------------------------------------------------- */
struct meta {
    struct view now;
    struct {
        uint32_t id;
        uint64_t until;
    } lease[8];
    uint32_t nleases;
    uint32_t decision_revision[SIM_CKPTS], intent_revision[SIM_CKPTS];
};
struct ckpt { /* names: a checkpoint is an index everywhere here */
    uint32_t step, incarnation;
    uint64_t content[SIM_WORLD]; /* that each rank gave; what the world knows and no actor does */
    uint64_t abort_told;         /* somebody was told of an abort */
};
#define DIRTY_DISK 1u
#define DIRTY_META 2u
struct sim {
    uint64_t seed, now;
    struct rng rng;
    struct config config;
    struct queue queue;
    struct actor actor[SIM_ACTORS];
    struct meta meta;
    struct node node[SIM_NODES];
    struct peer peer[SIM_PEERS];
    struct proc proc[SIM_PROCS];
    struct launcher launcher;
    struct ckpt ckpt[SIM_CKPTS];
    struct shard shard[SIM_MANIFESTS];
    struct root_image root[SIM_ROOTS];
    struct view view[SIM_VIEWS];
    uint64_t views_used;
    unsigned nckpts, nshards, nroots;
    uint64_t cut[SIM_ACTORS]; /* that an actor cannot reach; bits */
    uint64_t lose_answers_until;
    uint32_t tokens;
    uint16_t armed[SIM_ACTORS]; /* crash on the next message of this type: type * 2 + after */
    uint32_t armed_ms[SIM_ACTORS];
    bool healed, full_up; /* full_up: a table of the simulator is full; the schedule ends without a verdict */
    unsigned dirty;
    /* what the invariants remember between events: check.c */
    struct {
        uint64_t committed, aborted;
        uint32_t incarnation, pin_number, pin_incarnation;
        uint32_t start_incarnation[SIM_STARTS];
    } seen;
    unsigned long events;
    const char *violation; /* the invariant's name */
    char detail[256];
    bool trace;
};

static inline struct node *sim_node(struct sim *s, unsigned actor)
{
    return &s->node[actor - ACTOR_NODE];
}
static inline struct peer *sim_peer(struct sim *s, unsigned actor)
{
    return &s->peer[actor - ACTOR_PEER];
}

/* world.c */
void sim_run(struct sim *s, uint64_t seed, const struct config *config, bool trace);
void sim_start_actor(struct sim *s, unsigned actor);
void sim_crash_actor(struct sim *s, unsigned actor);
void sim_violate(struct sim *s, const char *invariant, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void sim_say(struct sim *s, unsigned actor, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
#define SAY(s_, ...)                  \
    do {                              \
        if ((s_)->trace)              \
            sim_say(s_, __VA_ARGS__); \
    } while (0)
void sim_actor_name(unsigned actor, char buf[16]);
unsigned sim_ckpt(struct sim *s, uint32_t step, uint32_t incarnation); /* finds or names it */

/* net.c */
void net_send(struct sim *s, const struct msg *m);                                     /* may be lost, late, twice */
void net_local(struct sim *s, const struct msg *m);                                    /* within a machine: neither */
void net_timer(struct sim *s, unsigned actor, const struct msg *m, uint64_t delay_us); /* of this start of the actor */
uint32_t net_timer_ms(struct sim *s, unsigned actor, int type, unsigned index, uint32_t ms); /* its token */

/* meta.c */
void meta_handle(struct sim *s, const struct msg *m);
void meta_expire(struct sim *s, unsigned lease_index);
void view_release(struct sim *s, unsigned view); /* 1 + index, as in a message */

/* peer.c */
void peer_start(struct sim *s, unsigned actor);
void peer_crash(struct sim *s, unsigned actor);
void peer_handle(struct sim *s, const struct msg *m);

/* node.c, node_store.c, node_fetch.c */
void node_start(struct sim *s, unsigned actor);
void node_crash(struct sim *s, unsigned actor);
void node_handle(struct sim *s, const struct msg *m);
bool node_quiet(const struct node *n);
void node_ask(struct sim *s, unsigned actor, unsigned slot, struct msg *m);
void node_to_coordinator(struct sim *s, unsigned actor, struct msg *m);
void save_changed(struct sim *s, unsigned actor, unsigned save);
void links_start(struct sim *s, unsigned actor);
void store_handle(struct sim *s, const struct msg *m);
void store_pump(struct sim *s, unsigned actor);
struct stripe *store_add(struct sim *s, unsigned actor, const struct stripe *like);
#define STORE_ROOT 255u /* for a rank: the root of the checkpoint */
void store_drop(struct sim *s, unsigned actor, unsigned ckpt, unsigned rank);
void store_settle(struct sim *s, unsigned actor, struct stripe *st);
void store_end_ckpt(struct sim *s, unsigned actor, unsigned ckpt);
void drain_start(struct sim *s, unsigned actor, unsigned save);
void drain_prepared(struct sim *s, unsigned actor, struct stripe *st);
unsigned links_up(const struct node *n);
void fetch_start(struct sim *s, unsigned actor, struct fetch *f);
void fetch_handle(struct sim *s, const struct msg *m);
void fetch_done(struct sim *s, unsigned actor, struct fetch *f, bool good);

/* job.c: coordination; run.c: one checkpoint; opening.c: the pin */
void job_tick(struct sim *s, unsigned actor);
bool job_ready(const struct node *n);
void job_answer(struct sim *s, unsigned actor, unsigned slot, const struct msg *m);
void job_handle(struct sim *s, const struct msg *m);
void job_learn(struct sim *s, unsigned actor, const struct view *v);
void job_abort_txn(struct msg *m, unsigned ckpt);
void run_report(struct sim *s, const struct msg *m);
void run_answer(struct sim *s, unsigned actor, unsigned run, const struct msg *m);
void run_handle_timer(struct sim *s, const struct msg *m);
void run_feed(struct sim *s, unsigned actor, struct run *r, const struct commit_event *e);
void run_root_done(struct sim *s, unsigned actor, unsigned run, bool good);
void run_drop(struct sim *s, unsigned actor, struct run *r);
bool run_adopt(struct sim *s, unsigned actor, unsigned ckpt);
bool run_works_on(const struct node *n, unsigned ckpt);
void opening_request(struct sim *s, const struct msg *m);
void opening_answer(struct sim *s, unsigned actor, unsigned opening, const struct msg *m);
void opening_loaded(struct sim *s, unsigned actor, unsigned opening, bool good);
void opening_handle_timer(struct sim *s, const struct msg *m);

/* retain.c: what is deleted, what new checkpoints are stored against, how they are encoded */
void retain_tick(struct sim *s, unsigned actor);
void retain_answer(struct sim *s, unsigned actor, const struct msg *m);
unsigned base_choose(const struct sim *s, unsigned actor, unsigned ckpt); /* 1 + the checkpoint, or 0 */
void base_note(struct sim *s, unsigned actor, unsigned rank, const struct noted *n);
/* What this node has of the base that a save's intent names; NULL: it is stored whole. */
const struct noted *base_of(struct sim *s, unsigned actor, const struct save *v);
unsigned codec_choose(const struct sim *s, unsigned actor, const struct stripe *st);
uint64_t codec_mark(unsigned codec); /* XORed into what is stored */

/* proc.c */
void proc_handle(struct sim *s, const struct msg *m);
void launcher_handle(struct sim *s, const struct msg *m);
void launcher_begin(struct sim *s);
void launcher_restart(struct sim *s, bool kill);
void launcher_old_start(struct sim *s);
void proc_kill(struct sim *s, unsigned proc);
void launcher_heal(struct sim *s);

/* plan.c */
void plan_make(struct config *c, uint64_t seed);
void plan_print(const struct config *c);
void fault_happen(struct sim *s, unsigned index);
void fault_end(struct sim *s, const struct msg *m);
void fault_heal(struct sim *s);

/* check.c */
void check_event(struct sim *s);
bool check_one_is_lost(const struct sim *s);
void check_end(struct sim *s);
void check_decision(struct sim *s, unsigned ckpt, int fate); /* is being put */
void check_intent(struct sim *s, unsigned ckpt, unsigned node, unsigned epoch);
void check_told(struct sim *s, unsigned ckpt, int code);
void check_read(struct sim *s, const struct fetch *f);
void check_pin(struct sim *s, const struct meta_pin *pin, uint64_t bad); /* bad: could not be read; bits */
void check_durable(struct sim *s, const struct stripe *st, unsigned index);
void check_tombstone(struct sim *s, unsigned ckpt);           /* is being put */
void check_base(struct sim *s, unsigned ckpt, unsigned base); /* an intent that names it is being put */
bool ckpt_lives(const struct view *v, unsigned ckpt);         /* committed and not deleted, or not decided */
unsigned ckpt_base_of(const struct view *v, unsigned ckpt);   /* 1 + the checkpoint, or 0 */
uint64_t sim_chunk_content(uint64_t content, unsigned chunk);

#endif
