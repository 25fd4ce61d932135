/* SPDX-License-Identifier: Apache-2.0 */
/* What jobs.c and job_*.c share. */
#ifndef CAIRN_DAEMON_NODE_JOB_INTERNAL_H
#define CAIRN_DAEMON_NODE_JOB_INTERNAL_H

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/checkpoint/commit.h"
#include "core/checkpoint/known.h"
#include "daemon/node/jobs.h"

#define JOBS_CACHED 3     /* checkpoints kept for readers to come */
#define JOB_MAX_RUNS 16   /* checkpoints on their way, of one job */
#define JOB_REMEMBERED 16 /* decided steps whose fate a late rank is told */
#define JOB_PAUSE_MS 100  /* first pause before the metadata is asked again; doubles */
#define JOB_MAX_PAUSE_MS 2000
#define JOB_GRACE_LEASES 2 /* so long the ranks of a dead daemon may take to hand their snapshots back */
#define LOAD_IN_FLIGHT 16  /* manifests read at once */

struct jobs {
    struct jobs_deps deps;
    struct jobs_config config; /* node points to the next */
    char node[CAIRN_MAX_NAME + 1];
    struct list jobs;     /* struct job */
    struct list openings; /* struct opening */
    struct list loads;    /* struct load */
    struct list lists;    /* struct list_request */
    struct list cache;    /* struct checkpoint, newest use first */
    int64_t lease;        /* 0: none */
    int lease_op;         /* enum lease_op under way */
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
struct view {
    struct record_incarnation inc;
    uint64_t inc_revision; /* 0: absent; the same below */
    struct record_coordinator coordinator;
    uint64_t coordinator_revision;
    struct record_pin pin;
    uint64_t pin_revision;
    struct known *known;               /* n */
    struct record_decision *decisions; /* n, beside known */
    size_t n;
};
/* Reads the records under record_key_job(job, ""); on failure ret is empty. */
int view_read(struct view *ret, const char *job, const struct cairn_meta_result *result, struct cairn_error *err);
void view_free(struct view *v);
ptrdiff_t view_find(const struct view *v, uint64_t step, uint64_t incarnation);
/* The code and message of a metadata result that failed. */
int meta_failed(const struct cairn_meta_result *result, struct cairn_error *err, const char *what);
/* Sends the decision "abort" for a checkpoint that nobody works on. */
int view_send_abort(struct jobs *jobs, const char *job, uint64_t step, uint64_t incarnation, const char *reason,
                    struct meta_req *req, struct cairn_error *err);

/* ---- one job --------------------------------------------------------------------------------- */
enum job_phase { JOB_IDLE, JOB_READING, JOB_LEASING, JOB_CLAIMING, JOB_SWEEPING, JOB_RAISING, JOB_RELEASING };
struct remembered {
    uint64_t step, incarnation;
    bool committed;
    char reason[COMMIT_REASON];
};
struct job {
    struct jobs *jobs;
    struct list link;
    char name[CAIRN_MAX_NAME + 1];
    int phase;  /* enum job_phase */
    bool held;  /* the coordinator's key is ours */
    bool valid; /* what follows was read since the key was taken, or is about to be */
    uint64_t coordinator_revision;
    struct record_incarnation inc;
    uint64_t inc_revision;
    struct record_pin pin;
    uint64_t pin_revision;          /* 0: not pinned */
    struct record_incarnation next; /* being raised to */
    struct known *leftovers;        /* undecided checkpoints that nobody works on */
    size_t nleftovers;
    struct known sweeping; /* the one that is being aborted */
    struct loop_timer grace_timer;
    uint64_t grace_ns; /* until then ranks may come back for leftovers; 0: not begun */
    bool decided;      /* last_decided is one, of the current incarnation */
    uint64_t last_decided;
    struct remembered remembered[JOB_REMEMBERED];
    unsigned nremembered; /* since the start; the last JOB_REMEMBERED are kept */
    struct list members;
    struct list joins; /* struct join_request, by own.link */
    struct list runs;
    unsigned nruns;
    uint64_t committed, aborted;
    bool any_committed;
    uint64_t last_committed;
    struct meta_req req;
    struct loop_timer retry; /* reading again after the metadata was away */
    bool retrying;
    struct loop_post post;
    bool posted;
};
/* Does the next thing the job needs; from the top of the stack only. May free the job. */
void job_tick(struct job *job);
/* Ticks later in this turn. */
void job_post(struct job *job);
struct job *jobs_find(struct jobs *jobs, const char *name);
struct job *jobs_find_or_add(struct jobs *jobs, const char *name); /* NULL: no memory */
/* Takes over what was read: incarnation and pin; fences members of older incarnations. */
void job_learn(struct job *job, const struct view *v);
void job_set_pin(struct job *job, const struct record_pin *pin, uint64_t revision);
/* Members of older incarnations are fenced, and their saves that are not filled dropped. */
void job_fence(struct job *job);
/* Another node coordinates it: members are told, open checkpoints aborted. */
void job_lost(struct job *job, const char *by_node);
void job_remember(struct job *job, uint64_t step, uint64_t incarnation, bool committed, const char *reason);
const struct remembered *job_recall(const struct job *job, uint64_t step, uint64_t incarnation);
/* The next leftover to be swept, or -1: those of a dead daemon have a grace. */
ptrdiff_t job_next_leftover(struct job *job);
/* Forgets that it was left over. False when it was not. */
bool job_take_leftover(struct job *job, uint64_t step, uint64_t incarnation);
void job_not_applied(struct job *job, const struct cairn_meta_result *result);
void job_free(struct job *job);
/* job_join.c: the first of the joins. */
void job_join_next(struct job *job);
void job_raise_done(struct meta_req *req, const struct cairn_meta_result *result);
void job_fail_joins(struct job *job, int code, const struct cairn_error *err);

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

/* ---- one checkpoint on its way: job_checkpoint.c, job_save.c --------------------------------- */
struct run {
    struct job *job;
    struct list link;
    uint64_t step;
    uint64_t incarnation;
    struct commit machine;
    uint8_t *ranks;
    struct rank_save **saves; /* world_size of them */
    unsigned nsaves;
    unsigned ndrains; /* that read pages */
    struct root root;
    struct bytes root_bytes;
    struct blob_ref root_ref;
    struct meta_req req;
    int sent;     /* enum commit_effect: the request in flight, or 0 */
    int paused;   /* the same: to be sent when the pause is over */
    bool refused; /* in flight: the reading after a refused intent */
    bool rooting; /* blob_put is under way */
    struct loop_timer pause;
    uint32_t pause_ms;
    struct loop_timer deadline;
    bool told;
    int code;
    struct cairn_error err;
    bool known; /* the last event said what the metadata holds */
    bool over;  /* the machine ended, or the daemon stops */
    bool links_ended;
    bool adopted; /* another daemon wrote its intent; its ranks have a grace to show themselves */
};
struct rank_save {
    struct run *run;
    struct member *member; /* NULL once it left */
    struct list link;      /* in member */
    uint32_t rank;
    struct save_events events;
    void *arg;
    const struct cairn_layout *layout;
    const char *arena;
    const uint32_t *pages;
    uint32_t attempt; /* the first of its fragments */
    bool filled;
    bool durable, durable_told, told;
    struct drain *drain;
    bool draining; /* drain_start succeeded and its done has not come */
    bool cancelled;
    struct loop_post post;
    bool posted;
};
/* Whether this daemon still works on it. */
bool job_works_on(const struct job *job, uint64_t step, uint64_t incarnation);
struct run *job_find_run(const struct job *job, uint64_t step, uint64_t incarnation);
int run_new(struct job *job, uint64_t step, struct run **ret_run, struct cairn_error *err);
/* For a checkpoint of the current incarnation whose intent was found undecided. */
int run_adopt(struct job *job, uint64_t step, struct run **ret_run, struct cairn_error *err);
void run_feed(struct run *run, const struct commit_event *event);
/* Frees it when nothing is left. */
void run_maybe_free(struct run *run);
void run_stop(struct run *run);
void run_start_drains(struct run *run);
void run_stop_drains(struct run *run);
void run_tell(struct run *run, int code, const char *reason);
void rank_save_dropped(struct rank_save *save, const char *why);

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
void jobs_drop_cache(struct jobs *jobs);
bool jobs_loading(const struct jobs *jobs);

#endif
