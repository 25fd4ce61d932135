/* SPDX-License-Identifier: Apache-2.0 */
/* What jobs.c and job_*.c share:
 *
 *     jobs.c            a job's way: its records, the coordinator's key, this node's key
 *     job_lease.c       the one lease of this node
 *     job_view.c        what the metadata says of one job
 *     job_join.c        members come and go
 *     job_crew.c        letters between the job's nodes: greetings, reports up, verdicts down
 *     job_run.c         a checkpoint on its way, as each node with ranks of it sees it
 *     job_save.c        one rank's part of it
 *     job_pace.c        how fast it is drained
 *     job_decide.c      a checkpoint on its way, as the coordinator decides it
 *     job_common.c      whether its ranks hold the same bytes where they should
 *     job_open.c ...    reading
 */
#ifndef CAIRN_DAEMON_NODE_JOB_INTERNAL_H
#define CAIRN_DAEMON_NODE_JOB_INTERNAL_H

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/checkpoint/report.h"
#include "core/checkpoint/share.h"
#include "core/checkpoint/known.h"
#include "daemon/node/jobs.h"

#define JOBS_CACHED 3     /* checkpoints kept for readers to come */
#define JOB_MAX_RUNS 16   /* checkpoints on their way, of one job */
#define JOB_REMEMBERED 16 /* decided steps whose fate a late rank is told */
#define JOB_PAUSE_MS 100  /* first pause before the metadata is asked again; doubles */
#define JOB_MAX_PAUSE_MS 2000
#define JOB_MAX_CHILDREN 256 /* nodes that report to this one */
#define LOAD_IN_FLIGHT 16    /* manifests read at once */

struct jobs {
    struct jobs_deps deps;
    struct jobs_config config; /* node points to the next */
    char node[CAIRN_MAX_NAME + 1];
    struct list jobs;     /* struct job */
    struct list openings; /* struct opening */
    struct list loads;    /* struct load */
    struct list lists;    /* struct list_request */
    struct list cache;    /* struct checkpoint, newest use first */
    struct list holds;    /* struct hold */
    struct retainer *retainer;
    struct numerics_budget numerics;
    int64_t lease; /* 0: none */
    int lease_op;  /* enum lease_op under way */
    uint64_t lease_sent_ns;
    uint64_t lease_kept_ns; /* when what kept it last was sent */
    struct meta_req lease_req;
    struct loop_timer lease_timer;
    unsigned posts; /* of requests that only wait for their done() */
    bool leaving;   /* sessions that end now end because the daemon does: nothing is given up for them */
    bool stopping;
    void (*stopped)(void *arg);
    void *stopped_arg;
    struct loop_post stop_post;
    bool stop_posted;
};
enum lease_op { LEASE_IDLE, LEASE_GRANT, LEASE_KEEP, LEASE_REVOKE };
/* Asks for the lease; every job is ticked when it is there. */
void jobs_want_lease(struct jobs *jobs);
void jobs_lease_start(struct jobs *jobs, int op);
void jobs_lease_lost(struct jobs *jobs, const char *why);
void jobs_lease_due(struct loop_timer *timer);
/* Whether everything has ended, after jobs_stop. */
void jobs_maybe_stopped(struct jobs *jobs);

/* ---- what the metadata says of one job: job_view.c ------------------------------------------- */
struct view_keeping { /* what is said of one checkpoint's keeping */
    uint64_t decision_revision;
    uint64_t holds_revision;
    uint64_t tombstone_revision;
    unsigned pins, readers;
    char held_by[CAIRN_MAX_NAME + 64];  /* one of them, for people */
    struct record_tombstone *tombstone; /* NULL: none */
};
struct view {
    struct record_incarnation inc;
    uint64_t inc_revision; /* 0: absent; the same below */
    struct record_coordinator coordinator;
    uint64_t coordinator_revision;
    struct record_pin pin;
    uint64_t pin_revision;
    struct known *known;               /* n */
    struct record_decision *decisions; /* n, beside known */
    struct record_intent *intents;     /* n, beside known */
    struct view_keeping *keeping;      /* n, beside known */
    struct record_settings settings;
    uint64_t settings_revision;
    size_t n;
    struct record_crew *crew; /* ncrew: nodes with living sessions */
    size_t ncrew;
};
/* Reads the records under record_key_job(job, ""); on failure ret is empty. */
int view_read(struct view *ret, const char *job, const struct cairn_meta_result *result, struct cairn_error *err);
void view_free(struct view *v);
ptrdiff_t view_find(const struct view *v, uint64_t step, uint64_t incarnation);
/* Fills n items for retention: fates, holds, resume step and bases; full and what is under way are the caller's. */
void view_items(const struct view *v, struct retention_item *items);
/* Whether the job resumes from it. */
bool view_is_resume(const struct view *v, size_t at);
/* The committed checkpoint that is meant by a step, CAIRN_LATEST or CAIRN_LATEST_FINITE; -1: none. */
ptrdiff_t view_pick(const struct view *v, uint64_t step);
/* NOT_FOUND for a step (CAIRN_LATEST: any) that is not committed, or not any more. */
int view_not_found(const struct view *v, const char *job, uint64_t step, struct cairn_error *err);
/* What may not be deleted, and why; 0: it may. */
int view_check_deletable(const struct view *v, const char *job, size_t at, struct cairn_error *err);
/* The code and message of a metadata result that failed. */
int meta_failed(const struct cairn_meta_result *result, struct cairn_error *err, const char *what);
/* Sends the decision "abort" for a checkpoint that nobody works on. */
int view_send_abort(struct jobs *jobs, const char *job, uint64_t step, uint64_t incarnation, const char *reason,
                    struct meta_req *req, struct cairn_error *err);

/* The wall clock, for people and for retention by time. */
uint64_t jobs_unix_ms(void);

/* ---- one job --------------------------------------------------------------------------------- */
enum job_phase { JOB_IDLE, JOB_READING, JOB_LEASING, JOB_CLAIMING, JOB_RAISING, JOB_ENLISTING, JOB_RELEASING };
struct remembered {
    uint64_t step, incarnation;
    bool committed;
    int code; /* of one that is not */
    char reason[COMMIT_REASON];
};
struct crew_node { /* on the coordinator: a node that greeted */
    struct list link;
    struct crew_address address;
    uint32_t slot; /* in the reporting tree */
    uint64_t heard_ns;
    uint64_t incarnation;
    uint32_t nranks;
    uint32_t ranks[CREW_MAX_RANKS];
};
struct child { /* a node whose reports this one passes on */
    struct list link;
    struct crew_address address;
    uint64_t heard_ns;
};
struct job {
    struct jobs *jobs;
    struct list link;
    char name[CAIRN_MAX_NAME + 1];
    int phase;  /* enum job_phase */
    bool held;  /* the coordinator's key is ours */
    bool valid; /* what follows was read since the key was taken, or is about to be */
    uint64_t read_ns;
    uint64_t coordinator_revision;
    struct record_incarnation inc;
    uint64_t inc_revision;
    struct record_pin pin;
    uint64_t pin_revision;          /* 0: not pinned */
    struct record_incarnation next; /* being raised to */
    struct record_crew *others;     /* nothers: other nodes with living sessions, as read */
    size_t nothers;
    bool decided; /* last_decided is one, of the current incarnation */
    uint64_t last_decided;
    struct remembered remembered[JOB_REMEMBERED];
    unsigned nremembered; /* since the start; the last JOB_REMEMBERED are kept */
    struct list members;
    struct list joins;     /* struct join_request, by own.link */
    struct list enlisting; /* those whose member is there, until this node's key says so */
    bool roster_changed;   /* this node's key does not say who its members are */
    bool enlisted;         /* the key is there */
    struct list runs;
    struct list noted;        /* job_delta.c */
    struct ckpt_base newest;  /* committed by this coordinator */
    uint64_t newest_revision; /* of its decision */
    unsigned newest_chain;    /* checkpoints that it needs, one for the other */
    struct ckpt_base last;    /* of those that this coordinator committed; not reset by what is learnt of it */
    struct share share;       /* what the next ones may share unchanged chunks with */
    unsigned nruns;
    uint64_t committed, aborted;
    uint64_t mismatches;          /* checkpoints that this coordinator found ranks to disagree on */
    struct cairn_cadence cadence; /* of its saves on this node */
    bool measured;                /* what its first save took was logged */
    bool any_committed;
    uint64_t last_committed;
    struct meta_req req;
    struct loop_timer retry; /* reading again after the metadata was away */
    bool retrying;
    bool waiting; /* until the retry, whoever asks: another start's sessions on other nodes may end */
    struct loop_post post;
    bool posted;
    /* job_crew.c */
    struct loop_timer greet;
    struct crew_address coordinator; /* another node's; node is empty when there is none, or when it is this one */
    struct crew_address parent;      /* in the reporting tree; node is empty: the coordinator */
    uint64_t answered_ns;            /* when the coordinator last was heard of */
    struct list children;
    unsigned nchildren;
    struct list crew; /* struct crew_node; on the coordinator */
    unsigned ncrew;
    /* job_decide.c; on the coordinator */
    struct list deciders;
    unsigned ndeciders;
};
/* Does the next thing the job needs; from the top of the stack only. May free the job. */
void job_tick(struct job *job);
/* Ticks later in this turn. */
void job_post(struct job *job);
/* What is known is old: read before anything else. */
void job_stale(struct job *job);
struct job *jobs_find(struct jobs *jobs, const char *name);
struct job *jobs_find_or_add(struct jobs *jobs, const char *name); /* NULL: no memory */
/* Takes over what was read: incarnation and pin; fences members of older incarnations. */
void job_learn(struct job *job, const struct view *v);
void job_set_pin(struct job *job, const struct record_pin *pin, uint64_t revision);
/* Members of older incarnations are fenced, and their saves that are not filled dropped. */
void job_fence(struct job *job);
void job_remember(struct job *job, uint64_t step, uint64_t incarnation, int code, const char *reason);
const struct remembered *job_recall(const struct job *job, uint64_t step, uint64_t incarnation);
void job_not_applied(struct job *job, const struct cairn_meta_result *result);
void job_free(struct job *job);
/* job_join.c: the first of the joins. */
void job_join_next(struct job *job);
void job_raise_done(struct meta_req *req, const struct cairn_meta_result *result);
void job_fail_joins(struct job *job, int code, const struct cairn_error *err);
/* Writes this node's key; those who wait for it are members then. */
void job_enlist(struct job *job);

struct member {
    struct job *job;
    struct list link;
    struct list saves; /* struct rank_save */
    uint64_t incarnation;
    char start_id[CAIRN_MAX_NAME + 1];
    uint32_t rank;
    bool fenced;
    char fenced_by[CAIRN_MAX_NAME + 64];
    uint64_t pin_number; /* the last it loaded; 0: none */
};

/* ---- the job's nodes: job_crew.c ------------------------------------------------------------- */
void jobs_hear(void *arg, const struct crew_letter *l);
/* What the timer does next, after what was read or heard. */
void job_crew_start(struct job *job);
void job_crew_stop(struct job *job);
/* Of this node's ranks, to whoever coordinates; again: straight to it. */
void job_report(struct job *job, const struct crew_letter *report, bool again);
/* On the coordinator: to this node's run and down the tree. */
void job_announce(struct job *job, uint64_t step, uint64_t incarnation, int verdict, int code, const char *reason);
/* The same, to one node. */
void job_answer(struct job *job, const char *node, uint64_t step, uint64_t incarnation, int verdict, int code,
                const char *reason);
/* Nodes are told that this one coordinates no more. */
void job_crew_dismiss(struct job *job);

/* ---- a checkpoint on its way, on a node with ranks of it: job_run.c, job_save.c -------------- */
struct run {
    struct job *job;
    struct list link;
    uint64_t step;
    uint64_t incarnation;
    uint32_t world_size;
    struct list saves; /* struct rank_save, by of_run */
    unsigned nsaves;
    unsigned ndrains; /* that read pages */
    uint64_t begun_ns;
    int hurry;             /* enum cairn_pace_why of what its drains do not wait for; 0: nothing */
    bool waited;           /* by a process of this node: the coordinator is told, and tells the others */
    bool intent;           /* it is known to be written: drains may start */
    struct ckpt_base base; /* that another node's coordinator said the intent names */
    bool given_up;         /* a rank of this node cannot be part of it: what to say, until there is a verdict */
    struct crew_entry given_up_by;
    struct loop_timer repeat;   /* of the reports */
    struct loop_timer deadline; /* of the coordinator's verdict */
    bool told;
    int code;
    struct cairn_error err;
    bool over;    /* a verdict came, or the daemon stops */
    bool aborted; /* by a verdict */
    bool links_ended;
    struct loop_post reap;
    bool reaping;
};
struct rank_save {
    struct run *run;
    struct member *member; /* NULL once it left */
    struct list link;      /* in member */
    struct list of_run;    /* in run */
    uint32_t rank;
    uint64_t pin_number;
    struct save_events events;
    void *arg;
    struct save_image image; /* set once parts are in place */
    uint32_t in_place;       /* parts, while it is not filled */
    const struct hash128 *sums;
    uint64_t sums_seed;
    uint32_t attempt; /* the first of its fragments */
    uint64_t begun_ns, filled_ns;
    int state;       /* enum report_state */
    bool unreported; /* the coordinator was not told of the state */
    struct shard_ref ref;
    bool durable_told, told;
    struct drain *drain;
    bool draining; /* drain_start succeeded and its done has not come */
    bool cancelled;
    struct loop_post post;
    bool posted;
};
/* ---- job_delta.c ----------------------------------------------------------------------------- */
/* The save's shard is durable: a later one may be stored against it. */
void delta_note(struct rank_save *save, const struct shard_ref *ref, const struct manifest *manifest);
/* What this save's chunks may be stored against; not set: nothing. */
void delta_choose(struct rank_save *save, struct manifest_base *ret);
/* The same of one chunk, and where the base's plain parts lie. False: it goes full. */
bool delta_base(struct rank_save *save, const struct manifest_base *base, uint32_t first_part, unsigned k,
                struct cairn_delta *ret, const char **ret_plain);
/* Of a chunk whose bytes may be those of its base, wherever that lies. False: they cannot be. */
bool delta_maybe_same(struct rank_save *save, const struct manifest_base *base, uint32_t first_part, unsigned k,
                      struct cairn_delta *ret);
/* They are not: what changed once is not compared with the same base again. */
void delta_not_same(struct rank_save *save, const struct manifest_base *base, uint32_t first_part);
void delta_forget(struct job *job);
/* What the start of the job's pin left behind is no base any more. */
void delta_pinned(struct job *job);
/* This coordinator goes on, or begins again: others may have committed in between. */
void delta_adopted(struct job *job, const struct view *v);
void delta_committed(struct job *job, uint64_t step, uint64_t incarnation);

/* Whether this daemon still works on it. */
bool job_works_on(const struct job *job, uint64_t step, uint64_t incarnation);
struct run *job_find_run(const struct job *job, uint64_t step, uint64_t incarnation);
int run_new(struct job *job, uint64_t step, struct run **ret_run, struct cairn_error *err);
/* Frees it when nothing is left. */
void run_maybe_free(struct run *run);
void run_stop(struct run *run);
void run_start_drains(struct run *run);
void run_stop_drains(struct run *run);
void run_tell(struct run *run, int code, const char *reason);
/* job_pace.c: a save of a new step began; and the plan of a drain that begins. */
void run_begun(struct run *run);
void run_hurry(struct run *run, int why);
/* The first of the job that is durable here: what saves of it take is logged, once. */
void save_measured(const struct rank_save *save);
struct cairn_pace run_pace(const struct run *run, uint32_t nparts);
/* What a rank of this node is waiting for; empty when it drains nothing. */
void run_why(const struct run *run, uint32_t rank, char *buf, size_t len);
/* Reports what is not reported yet; all: everything again. */
void run_report(struct run *run, bool all);
/* What the coordinator says. */
void run_verdict(struct run *run, int verdict, int code, const char *reason);
/* The rank's part will never be durable, the checkpoint cannot be: the others here are told code. */
void run_give_up(struct run *run, uint32_t rank, int state, int code, const char *why);
/* A newer incarnation: what is not filled here never will be. */
void run_fence(struct run *run, const char *why);
void rank_save_dropped(struct rank_save *save, const char *why);

/* ---- a checkpoint on its way, on the coordinator: job_decide.c ------------------------------- */
struct decider {
    struct job *job;
    struct list link;
    uint64_t step;
    uint64_t incarnation;
    struct commit machine;
    uint8_t *ranks;
    uint64_t *heard_ns; /* of each rank's last report: whoever has its snapshot repeats it */
    struct root root;
    struct bytes root_bytes;
    struct blob_ref root_ref;
    struct meta_req req;
    int sent;       /* enum commit_effect: the request in flight, or 0 */
    int paused;     /* the same: to be sent when the pause is over */
    bool refused;   /* in flight: the reading after a refused intent */
    bool rooting;   /* blob_put is under way */
    bool copying;   /* the decision is being copied beside the manifests */
    bool comparing; /* manifests of ranks that disagree are being read */
    struct loop_timer pause;
    uint32_t pause_ms;
    struct loop_timer deadline;
    struct loop_timer grace; /* of an adopted one: who is not heard of by then is lost */
    bool announced;          /* the intent */
    bool known;              /* the last event said what the metadata holds */
    bool over;               /* the machine ended, or this node coordinates no more */
    bool feeding;            /* a report is being taken in: it must not go now */
    bool hurry;              /* somebody waits for it: every node is told */
    uint64_t base_revision;  /* of the decision of root.base */
    unsigned chain;          /* checkpoints that this one needs, one for the other */
    bool no_base;            /* it was refused once with one */
};
struct decider *job_find_decider(const struct job *job, uint64_t step, uint64_t incarnation);
/* One rank's state, from this node or another. */
void job_decide(struct job *job, uint64_t step, uint64_t incarnation, const struct crew_entry *e);
/* Somebody waits for it, on some node. */
void job_decide_hurry(struct job *job, uint64_t step, uint64_t incarnation);
/* Takes up what another coordinator left undecided. */
void job_adopt(struct job *job, const struct view *v);
/* The newest decisions: late reports, and ranks that come back, are answered by them. */
void job_remember_decisions(struct job *job, const struct view *v);
/* Of all its ranks' states what is not durable is lost. */
void job_crew_lost(struct job *job, const struct crew_node *node);
/* Ranks that nobody has spoken for in a while, though they had begun, are lost: their daemon was restarted. */
void job_expire_ranks(struct job *job);
/* A newer incarnation: what is not filled of older ones is aborted. */
void job_decide_fence(struct job *job, const char *why);
/* This node coordinates no more: nothing is told, whoever does finds the intents. */
void job_drop_deciders(struct job *job);
/* job_decide_put.c: what is put, by the decider's own request, which its caller has filled in. */
int decider_put_intent(struct decider *d, struct cairn_error *err);
int decider_put_commit(struct decider *d, struct cairn_error *err);
/* It is committed since that revision: what the next ones may be stored against. */
void decider_applied(const struct decider *d, uint64_t revision);
/* job_common.c: compares what ranks hold in common, then calls the next, at once or later. */
void decider_compare(struct decider *d);
/* mismatch: who disagrees, and on what; NULL: nobody. */
void decider_compared(struct decider *d, const char *mismatch);
/* Once it is over and nothing of it is under way. */
void decider_maybe_free(struct decider *d);
void decider_why(const struct decider *d, char *buf, size_t len);

/* ---- reading: job_open.c, job_load.c --------------------------------------------------------- */
/* Openings that wait for this job's older saves look again. */
void jobs_wake_openings(struct jobs *jobs, const char *job);
void jobs_member_left(struct jobs *jobs, const struct member *member);
void jobs_stop_openings(struct jobs *jobs);

struct load_waiter {
    struct list link;
    void (*done)(struct load_waiter *w, int code, const struct cairn_error *err, struct checkpoint *c);
};
struct load_key {
    const char *job;
    uint64_t step, incarnation;
};
/* Borrowed; NULL when it has to be read. */
struct checkpoint *load_cached(struct jobs *jobs, const struct load_key *key);
/* Reads a committed checkpoint's root and manifests, once for all who wait for it. done comes later, unless the waiter
 * is removed from its list. c lives during it: checkpoint_ref keeps it. */
int load_start(struct jobs *jobs, const struct load_key *key, const struct record_decision *decision,
               uint32_t timeout_ms, struct load_waiter *w, struct cairn_error *err);
struct checkpoint *checkpoint_ref(struct checkpoint *c);

/* ---- keeping: job_hold.c, job_bury.c, job_retain.c ------------------------------------------- */
struct hold_waiter {
    struct list link;
    void (*done)(struct hold_waiter *w, int code, const struct cairn_error *err); /* NOT_FOUND: it was deleted */
};
/* Forbids the deletion of a checkpoint until hold_release. 1: it does already; 0: done comes later, unless the waiter
 * is removed from its list. */
int hold_take(struct jobs *jobs, const struct load_key *key, uint64_t decision_revision, struct hold_waiter *w,
              struct hold **ret_hold, struct cairn_error *err);
void holds_lease_lost(struct jobs *jobs);
void holds_lease_granted(struct jobs *jobs, bool granted);
void holds_stop(struct jobs *jobs);        /* those who wait are told ABORTED */
bool holds_quiet(const struct jobs *jobs); /* no request is in flight */
void holds_leave(struct jobs *jobs);       /* those that are still held outlive the jobs */
/* The value of a hold of this daemon. */
int jobs_hold_record(struct jobs *jobs, struct bytes *out, struct cairn_error *err);

struct burial { /* owned by the caller until done; the caller sets the first two */
    void (*done)(struct burial *b, int code, const struct cairn_error *err); /* BUSY: something changed meanwhile */
    void *arg;
    struct jobs *jobs;
    char job[CAIRN_MAX_NAME + 1];
    uint64_t step, incarnation;
    struct record_decision decision;
    uint64_t decision_revision, holds_revision, pin_revision;
    struct record_tombstone *tombstone;
    struct load_waiter waiter;
    struct meta_req req;
};
/* Puts the tombstone of a committed checkpoint that nobody holds, as the view shows it. done never from within. */
int burial_start(struct jobs *jobs, struct burial *b, const char *job, const struct view *v, size_t at,
                 const char *reason, struct cairn_error *err);

int retainer_new(struct jobs *jobs, struct cairn_error *err);
/* The job has a new checkpoint, which is full, or a new rule: look at it soon. */
void retainer_want(struct jobs *jobs, const char *job);
/* Whether it, or the next newer one, still has something under way on this node: that one may not be full yet. */
bool retainer_needs(const struct jobs *jobs, const char *job, const struct view *v, size_t at);
/* b put its tombstone under this revision: peers are told, and the records go when they have answered. */
void retainer_buried(struct jobs *jobs, const struct burial *b, uint64_t revision);
void retainer_stop(struct jobs *jobs);
bool retainer_quiet(const struct jobs *jobs);
void retainer_free(struct jobs *jobs);
void jobs_drop_cache(struct jobs *jobs);
bool jobs_loading(const struct jobs *jobs);

#endif
