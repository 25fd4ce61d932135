/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the node role share: the node itself and a session's two lives, as a conversation (session.c) and
 * as a rank that saves (session_save.c) and restores (restore.c). */
#ifndef CAIRN_DAEMON_NODE_INTERNAL_H
#define CAIRN_DAEMON_NODE_INTERNAL_H

#include "daemon/node/arena.h"
#include "daemon/node/arena_offer.h"
#include "daemon/node/fanout.h"
#include "daemon/node/jobs.h"
#include "daemon/node/node.h"

#define SESSION_MAX_LAYOUTS 64
#define SESSION_MAX_OUT 1024 /* messages that wait for a client that does not read */
#define SESSION_MAX_RESTORES 8
#define SESSION_MAX_QUERIES 4

/* What goes on without being a session: a stop tells it, and waits until it has left the list. */
struct node_work {
    struct list link;                  /* in node.work */
    void (*stop)(struct node_work *w); /* may be called more than once; may end the work at once */
};

struct restore_counts {       /* since the start */
    uint64_t reads;           /* chunks, or parts of one, that clients asked for */
    uint64_t delivered_bytes; /* into windows, wherever from */
    uint64_t hot_bytes;       /* of them from an arena */
    uint64_t in_place_bytes;  /* whose place in its own arena a client was told: it copies them itself */
};

struct node {
    struct node_deps deps;
    struct node_config config;
    char *id;
    char *socket_path;
    int lock_fd;
    int listen_fd;
    struct loop_op accept_op;
    struct loop_timer accept_again; /* after EMFILE and the like */
    struct links *links;
    struct mesh *mesh;
    struct jobs *jobs;
    struct arenas *arenas;
    struct list sessions;
    unsigned nsessions;
    struct list work;       /* struct node_work */
    struct list recoveries; /* of struct recovery: arenas whose saves wait for their job */
    uint64_t next_id;       /* of sessions and restores */
    uint64_t windows_used_bytes;
    unsigned nrestores; /* of all sessions */
    struct fanout *fanout;
    struct restore_counts restored;
    bool stopping;
    void (*stopped)(void *arg);
    void *stopped_arg;
    node_describe_fn describe;
    void *describe_arg;
};

struct out_message {
    struct list link;
    int fds[LOCAL_MAX_FDS]; /* owned; closed once sent */
    unsigned nfds;
    size_t len;
    char data[];
};

struct session {
    struct node *node;
    struct list link; /* in node */
    uint64_t id;
    int fd;
    int pidfd;
    int pid;
    uid_t uid;
    bool closed;   /* no more traffic; waits for what is pending */
    bool rejected; /* broke the protocol: ends once it was told so */
    bool opened;   /* OPEN was answered */
    bool opening;
    bool observer;
    unsigned pending; /* asynchronous work that will call back */

    struct loop_op recv_op, send_op, pid_op;
    struct msghdr recv_msg, send_msg;
    struct iovec recv_iov, send_iov;
    char *recv_buf; /* LOCAL_MAX_MESSAGE + 1, to see what is too long */
    char recv_control[256], send_control[64];
    struct list out; /* of struct out_message */
    unsigned nout;
    bool sending;

    char job[CAIRN_MAX_NAME + 1];
    uint32_t rank, world_size;
    uint64_t arena_bytes; /* asked for */
    char start_id[CAIRN_MAX_NAME + 1];
    struct member *member; /* NULL for an observer */
    struct arena *arena;
    bool arena_used;           /* attached to it */
    bool offering;             /* a HAND_BACK is being read */
    struct arena_offer *offer; /* what was handed back, until OPEN */
    bool copying;              /* its process was writing to it then */
    struct list layouts;       /* of struct shared_layout, newest first */
    unsigned nlayouts;
    struct list saves;                  /* of struct session_save */
    struct list restores;               /* of struct restore */
    char reads_job[CAIRN_MAX_NAME + 1]; /* whose checkpoint it opened last; "" */
    unsigned nrestores;
    unsigned nqueries;
};

/* ---- session.c: the conversation ------------------------------------------------------------- */
int session_new(struct node *node, int fd, struct cairn_error *err); /* takes fd, also on failure */
void session_close(struct session *s, const char *why);
/* It broke the protocol: it is told so, and ends. */
void session_reject(struct session *s, const struct cairn_error *err);
void session_pending_end(struct session *s); /* pending--, and the last one frees a closed session */
/* Queue an answer; a session that is closed drops it. fds are taken. */
void session_send(struct session *s, const void *message, size_t len, const int *fds, unsigned nfds);
void session_answer_error(struct session *s, uint32_t id, int code, const struct cairn_error *err);
void session_answer_ok(struct session *s, uint32_t id);

/* ---- session_back.c: arenas that come back --------------------------------------------------- */
void session_on_hand_back(struct session *s, const struct local_hand_back *m, int *fds); /* takes fds on success */
/* The session's arena: the one that was handed back, or a new one. */
int session_get_arena(struct session *s, struct cairn_error *err);

/* ---- recover.c: arenas from the descriptor store --------------------------------------------- */
/* Descriptors that an earlier daemon gave to the keeper. Takes them. */
void node_recover(struct node *node, const struct node_kept_fd *fds, unsigned n);
void node_recover_stop(struct node *node);

/* ---- restore.c: also for answers ------------------------------------------------------------- */
int sealed_memfd(const char *name, const void *data, size_t len, int *ret_fd, struct cairn_error *err);

/* ---- session_layout.c ------------------------------------------------------------------------ */
void session_on_layout(struct session *s, const struct local_layout *m, int fd);           /* takes fd */
struct shared_layout *session_find_layout(struct session *s, uint64_t low, uint64_t high); /* borrowed; NULL: unknown */

/* ---- session_save.c, session_fill.c, session_resume.c ---------------------------------------- */
void session_on_begin(struct session *s, const struct local_begin *m);
void session_on_filled(struct session *s, const struct local_save *m);
void session_on_parts(struct session *s, const struct local_parts *m);
void session_on_packed(struct session *s, const struct local_packed *m);
void session_on_sums(struct session *s, const struct local_sums *m, int fd); /* takes fd */
void session_on_drop(struct session *s, const struct local_drop *m);
void session_on_why(struct session *s, const struct local_save *m);
void session_on_wait(struct session *s, const struct local_save *m);
void session_on_resume(struct session *s, const struct local_resume *m);
/* Saves of an arena that came back go on: for s, or for nobody (then member is the rank's for now). */
void saves_go_on(struct session *s, struct arena *arena, struct member *member);
/* The session is over: what is filled goes on, the rest is dropped. */
void session_leave_saves(struct session *s);
/* An arena_let_go: of saves whose session is over. */
void session_save_let_go(void *owner);

/* ---- restore.c ------------------------------------------------------------------------------- */
void session_on_latest(struct session *s, const struct local_latest *m);
void session_on_restore_open(struct session *s, const struct local_restore_open *m);
void session_on_read(struct session *s, const struct local_read *m);
void session_on_places(struct session *s, const struct local_places *m);
void session_on_restore_close(struct session *s, const struct local_restore_close *m);
void session_leave_restores(struct session *s);

/* ---- query.c --------------------------------------------------------------------------------- */
void session_on_query(struct session *s, const struct local_query *m);
void session_on_command(struct session *s, const struct local_command *m);

#endif
