/* SPDX-License-Identifier: Apache-2.0 */
/* Jobs on this node: who is a member under which incarnation, which checkpoints are on their way, and what the metadata
 * says. Decisions are core/checkpoint's; here they meet the metadata engine, drains, sessions and the job's other
 * nodes.
 *
 * A checkpoint's way:
 *     first save_begin of a step -> intent -> ranks filled -> drains -> all shards durable -> root -> decision
 *     a drop, a death before filled, a failed drain or the deadline -> abort, everybody is told why
 *
 * One node coordinates the job: it holds cairn/v1/jobs/<job>/coordinator by a lease, alone writes intents and decides.
 * Every node with members has cairn/v1/jobs/<job>/nodes/<node> under its lease, greets the coordinator, reports its
 * ranks' states to it and repeats that until it hears a verdict. When the coordinator is silent its key expires,
 * another node claims it and takes up what was left undecided.
 */
#ifndef CAIRN_DAEMON_NODE_JOBS_H
#define CAIRN_DAEMON_NODE_JOBS_H

#include "core/checkpoint/retention.h"
#include "daemon/node/blob.h"
#include "daemon/node/drain.h"

struct jobs;
struct jobs_config {
    const char *node;
    uint64_t start;             /* random, of this start of the daemon */
    uint32_t lease_ms;          /* of the coordinator key */
    uint32_t meta_ms;           /* deadline of one metadata request */
    uint32_t checkpoint_ms;     /* from the last rank's begin of a step to its decision */
    unsigned delta_chain;       /* how many checkpoints are stored one against the other; 0: none */
    unsigned share_unchanged;   /* how many checkpoints may share unchanged chunks with one; 0: none */
    uint64_t numerics_bytes;    /* memory to look at what tensors hold while they are encoded; 0: nobody does */
    bool common_fails;          /* ranks that disagree on what they hold in common abort the checkpoint */
    bool spread;                /* a flush takes most of the time until the next save */
    struct retention retention; /* of jobs that have no rule of their own */
    uint32_t retention_ms;      /* how often old checkpoints are looked for; 0: only after commits */
};
struct mesh;
struct jobs_deps {
    struct loop *loop;
    struct links *links;
    struct meta *meta;
    struct mesh *mesh;
};
int jobs_new(const struct jobs_deps *deps, const struct jobs_config *config, struct jobs **ret_jobs,
             struct cairn_error *err);
/* Cancels drains, aborts nothing in the metadata, releases leases; done on the loop. Requests that wait end with
 * CAIRN_E_ABORTED and saves fail with it before done; then jobs and members are gone. Checkpoints that are held stay.
 */
void jobs_stop(struct jobs *jobs, void (*done)(void *arg), void *arg);
/* Before sessions are closed for a stop: saves that are not filled are not given up, the next daemon may go on with
 * them. */
void jobs_leave(struct jobs *jobs);

struct jobs_request { /* what a request below embeds for jobs to use; the caller need not set it */
    struct jobs *jobs;
    struct list link;
    struct loop_timer deadline;
    struct loop_post post;
    struct meta_req req;
    int code;
    struct cairn_error err;
    uint64_t arrived_ns;
    struct member *member; /* of a join, until this node's key names it */
    bool named;            /* by the key that is being written */
};

/* ---- members: one for each rank's session ---------------------------------------------------- */
struct member;
struct join_request { /* owned by the caller until done */
    char job[CAIRN_MAX_NAME + 1];
    char start_id[CAIRN_MAX_NAME + 1];
    uint32_t rank, world_size;
    bool take_over;
    uint32_t timeout_ms;
    /* member is NULL on failure. Never from within jobs_join. Errors: EXISTS (rank taken by a living session), BUSY,
     * FENCED, INVAL. */
    void (*done)(struct join_request *r, int code, const struct cairn_error *err, struct member *member);
    void *arg;
    struct jobs_request own; /* jobs' */
};
void jobs_join(struct jobs *jobs, struct join_request *request);
/* The session ended (its process is gone or closed it). Saves that were filled go on without it; others are dropped.
 * The member's saves may still call back until each ended. */
void member_leave(struct member *member);
uint64_t member_incarnation(const struct member *member);
/* Sets *ret_code to CAIRN_E_FENCED when a newer incarnation took over; 0 otherwise. */
int member_check(const struct member *member, struct cairn_error *err);

/* ---- saves: one rank's part of a checkpoint -------------------------------------------------- */
struct rank_save;
struct save_events {
    /* CAIRN_DURABLE or CAIRN_COMMITTED reached, or code < 0: failed for good with err. Last one: COMMITTED or a
     * failure. */
    void (*state)(void *arg, int state, int code, const struct cairn_error *err);
    /* The parts' bytes are durable with all fragments (for the arena's bookkeeping). */
    void (*durable)(void *arg, uint32_t first_part, uint32_t nparts);
    /* The pages and the layout are not read any more. After the last state event, exactly once: the save is gone then.
     */
    void (*ended)(void *arg);
    /* Where the same parts of this rank's snapshot of another checkpoint lie, with the same layout; false: they are not
     * there. The bytes may change at any time. NULL: never. */
    bool (*base)(void *arg, uint64_t step, uint64_t incarnation, uint32_t first_part, uint32_t nparts,
                 const char **ret_plain);
};
/* Joins the step's checkpoint or begins it. FENCED, STALE_PIN, EXISTS (saved before, or this step is decided), ABORTED
 * (others gave it up), BUSY (too many checkpoints are on their way), UNAVAILABLE (the coordinator's lease is being
 * renewed). On success ended() will come exactly once. */
int save_begin(struct member *member, uint64_t step, const struct save_events *events, void *arg,
               struct rank_save **ret_save, struct cairn_error *err);
/* For a snapshot that was granted under another daemon: joins the step's checkpoint, whose coordinator may be waiting
 * for it. Returns 0 as save_begin does, 1 when the step is committed already (then there is no save), or an error:
 * ABORTED with why the step was given up, FENCED, STALE_PIN. attempt: the first that its fragments may carry. */
int save_resume(struct member *member, uint64_t step, uint32_t attempt, const struct save_events *events, void *arg,
                struct rank_save **ret_save, struct cairn_error *err);
/* What became of a step that is not under way: 1 committed, ABORTED with why, or NOT_FOUND. */
int save_fate(const struct member *member, uint64_t step, struct cairn_error *err);
/* Where a snapshot lies in its arena: borrowed until ended(). */
struct save_image {
    const struct cairn_layout *layout;
    char *arena;
    const uint32_t *pages;
    struct hash128 digest; /* of the layout */
    uint32_t *packed;      /* as a drain's; NULL: no part is */
};
/* Its first parts are complete and immutable, the others not yet: they may be stored already. Nobody is told before
 * save_filled. parts only grows. */
void save_in_place(struct rank_save *save, const struct save_image *image, uint32_t parts);
/* Sums of the parts where they came from, for drain_sums; borrowed until ended(). Once, before save_filled. */
void save_sums(struct rank_save *save, const struct hash128 *sums, uint64_t seed);
/* The snapshot is complete and immutable. */
void save_filled(struct rank_save *save, const struct save_image *image);
/* The rank gives up before filled. */
void save_drop(struct rank_save *save, const char *why);
/* Somebody waits for the checkpoint, or for the pages of its saves: what this node drains of it goes at full speed
 * (enum cairn_pace_why). */
void save_hurry(struct rank_save *save, int why);
/* What it waits for, naming ranks and peers. */
void save_why(const struct rank_save *save, char *buf, size_t len);
/* Its shard is durable and nothing reads its pages any more: only the decision is missing. */
bool save_is_stored(const struct rank_save *save);

/* ---- reading --------------------------------------------------------------------------------- */
/* A committed checkpoint with all its manifests, verified; shared and counted. */
struct checkpoint {
    unsigned refs;
    struct record_decision decision;
    struct root root;
    struct manifest *manifests; /* root.world_size, by rank */
    struct list link;
};
struct open_request { /* owned by the caller until done */
    char job[CAIRN_MAX_NAME + 1];
    uint64_t step;         /* CAIRN_LATEST: newest committed, or the pin when member is given; CAIRN_LATEST_FINITE */
    struct member *member; /* NULL for observers */
    bool resolve_only;     /* only fill step and incarnation: checkpoint stays NULL */
    uint32_t timeout_ms;
    /* checkpoint is referenced for the caller (checkpoint_unref). Never from within jobs_open. */
    void (*done)(struct open_request *r, int code, const struct cairn_error *err, struct checkpoint *checkpoint);
    void *arg;
    uint64_t ret_step, ret_incarnation;
    struct hold *ret_hold;   /* with checkpoint: forbids its deletion; the caller's, for hold_release */
    struct jobs_request own; /* jobs' */
};
/* For a member asking LATEST the first time in an incarnation: waits for filled saves of older incarnations to be
 * decided, aborts their other intents, checks that the newest committed checkpoint's manifests can be read (else the
 * next older), and pins it. */
void jobs_open(struct jobs *jobs, struct open_request *request);
void checkpoint_unref(struct checkpoint *checkpoint);
/* The reading is over; also after jobs_stop. NULL allowed. */
void hold_release(struct hold *hold);

/* ---- keeping and deleting -------------------------------------------------------------------- */
enum change_kind { CHANGE_PIN, CHANGE_UNPIN, CHANGE_DELETE, CHANGE_RETAIN };
struct change_request { /* owned by the caller until done */
    int kind;           /* enum change_kind */
    char job[CAIRN_MAX_NAME + 1];
    uint64_t step;                     /* or CAIRN_LATEST, CAIRN_LATEST_FINITE */
    char argument[CAIRN_COMMAND_TEXT]; /* a pin's label; a rule, or "default" */
    char owner[CAIRN_MAX_NAME + 1];    /* who asks, for the job's settings */
    uint32_t timeout_ms;
    /* DELETE is done when the checkpoint has its tombstone; its files go later. Never from within jobs_change. Errors:
     * NOT_FOUND, DENIED (the newest, the resume step, a pinned one), BUSY (a restore reads it), INVAL. */
    void (*done)(struct change_request *r, int code, const struct cairn_error *err);
    void *arg;
    uint64_t ret_step, ret_incarnation;
    char ret_rule[RETENTION_TEXT];
    struct jobs_request own; /* jobs' */
};
void jobs_change(struct jobs *jobs, struct change_request *request);

/* ---- queries: what there is, from the metadata ----------------------------------------------- */
struct listed { /* one job (step fields 0), or one checkpoint of a job */
    char job[CAIRN_MAX_NAME + 1];
    uint64_t step, incarnation;
    const char *state; /* "committed", "aborted", "undecided", "deleted": files of it may still be there */
    struct record_decision decision;
    uint64_t decision_revision;
    unsigned pins, readers; /* that hold it */
    bool resume;            /* the job resumes from it */
    uint64_t deleted_unix_ms;
};
struct list_request {
    char job[CAIRN_MAX_NAME + 1]; /* empty: the jobs */
    uint32_t timeout_ms;
    /* Never from within jobs_list. */
    void (*done)(struct list_request *r, int code, const struct cairn_error *err, const struct listed *items, size_t n);
    void *arg;
    char ret_rule[RETENTION_TEXT]; /* the job's */
    struct jobs_request own;       /* jobs' */
};
void jobs_list(struct jobs *jobs, struct list_request *request);

/* The checkpoint was found to lack what cannot be made again: nothing more is stored against it, whoever coordinates
 * the job. */
void jobs_distrust(struct jobs *jobs, const char *job, uint64_t step, uint64_t incarnation);

struct job_status {
    char job[CAIRN_MAX_NAME + 1];
    uint64_t incarnation;
    char coordinator[CAIRN_MAX_NAME + 1]; /* node; empty: not known */
    uint32_t nodes;                       /* that greeted this one, when it coordinates */
    uint32_t world_size, members;
    uint32_t checkpoints_open;
    uint64_t committed, aborted; /* since this daemon started */
    uint64_t common_mismatches;  /* the same, of those that it coordinated */
    uint64_t last_committed_step;
};
unsigned jobs_status(const struct jobs *jobs, struct job_status *ret, unsigned room);

struct flush_status { /* of one rank's snapshot on its way to the peers */
    char job[CAIRN_MAX_NAME + 1];
    uint64_t step;
    uint32_t rank;
    bool durable; /* what is late goes on behind that */
    struct drain_status drain;
};
unsigned jobs_flushes(const struct jobs *jobs, struct flush_status *ret, unsigned room);

#endif
