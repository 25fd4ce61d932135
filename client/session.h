/* SPDX-License-Identifier: Apache-2.0 */
/* A session, and its attachment: one connection with the arena and the layouts that the daemon knows over it. When the
 * connection dies the attachment is retired and the next call that needs the daemon makes a new one.
 *
 *     (none) --attach: connect, HAND_BACK, OPEN, map--> attached --connection lost--> retired --last reference--> freed
 *
 * The arena is the session's: it outlives its connection, so that a daemon that was restarted can take it back with the
 * snapshots in it. A daemon that does not take it back gives a new one, and saves in the old one have failed.
 *
 * Locks, in the order in which they are taken:
 *   0. tracker.lock     held by one seal from its scan to the end of its copy (tracker.h)
 *      shares.lock      held by one seal while it puts a device's copies into streams (shares.h)
 *      devices.lock     held while a device is opened or memory pinned (device.h)
 *   1. completion.lock  which saves are the completion thread's (completion.h); nothing is taken under it
 *      session.lock     session.attachment, session.attaching, session.arena, session.plan and session.shares with
 *                       their refs, of each attachment refs and known, and arena.sums
 *   2. channel.lock     requests and watches (channel.h)
 * None from 1 on is held while a system call waits. attaching is a flag, not a lock, so that those who wait for the
 * thread that attaches keep their deadlines; they sleep on session.attached. Everything else in a session does not
 * change after open; a save or a restore belongs to one thread at a time, and a save while its copies from devices are
 * under way to the completion thread (save.h).
 */
#ifndef CAIRN_CLIENT_SESSION_H
#define CAIRN_CLIENT_SESSION_H

#include <sys/types.h>

#include "client/arena.h"
#include "client/channel.h"
#include "client/completion.h"
#include "client/device.h"
#include "client/pack.h"
#include "client/plan.h"
#include "client/shares.h"
#include "client/tracker.h"
#include "core/model/hash.h"

#define SESSION_KNOWN_LAYOUTS 64

struct attachment {
    unsigned refs;
    struct channel *channel;
    uint64_t arena_serial; /* which arena it is for; 0: none */
    char refusal[256];     /* why the arena before was not taken back; empty: it was, or there was none */
    uint64_t incarnation;
    uint64_t knows;                              /* LOCAL_KNOWS_...: requests that this daemon understands */
    struct hash128 known[SESSION_KNOWN_LAYOUTS]; /* digests that the daemon has, a ring */
    unsigned nknown;                             /* ever added */
};

struct given_up { /* a save that was granted pages of an arena, and will not be filled */
    uint64_t arena_serial, save, step;
};

struct cairn_session {
    pid_t owner;            /* the process that opened it */
    const char *ours;       /* a page that a forked child finds wiped; NULL: the kernel cannot, ask it who we are */
    struct local_open open; /* as sent, again at every attach */
    char *socket_path;
    uint32_t timeout_ms;
    uint32_t copy_threads;
    struct notifier notifier;
    pthread_mutex_t lock;
    pthread_cond_t attached; /* CLOCK_MONOTONIC */
    bool attaching;
    struct tracker *tracker;       /* NULL: not asked for */
    uint32_t flags;                /* enum cairn_session_flags */
    uint64_t seed;                 /* of devices' sums; random */
    struct pack pack;              /* whether saves are packed on their devices; with CAIRN_PACK */
    struct devices devices;        /* that are open */
    struct completion completion;  /* saves with copies from devices under way */
    struct shares *shares;         /* of the newest save that had devices; NULL before */
    struct plan *plan;             /* of the newest save that had one of its own; NULL before */
    uint64_t plans;                /* ever made */
    struct arena *arena;           /* of the newest attachment that had one; NULL before, and for an observer */
    uint64_t arenas;               /* ever mapped */
    struct attachment *attachment; /* NULL when the connection was lost and not replaced yet */
    struct given_up *untold;       /* while no daemon was there: the next one is told */
    size_t nuntold;
    uint64_t incarnation; /* of the newest attachment; atomic */
};

/* FORKED in a child, INVAL without a session. The first thing every public function does. */
int session_check(const struct cairn_session *s, struct cairn_error *err);
bool session_forked(const struct cairn_session *s);
static inline bool session_is_observer(const struct cairn_session *s)
{
    return s->open.flags & CAIRN_OBSERVER;
}

#define SESSION_NO_LIMIT INT64_MAX
/* A reference to the live attachment; attaches anew when it was lost, trying again until retry_ns (at least once).
 * Nothing of it takes longer than limit_ns, and one try no longer than the session's timeout. */
int session_attach(struct cairn_session *s, int64_t retry_ns, int64_t limit_ns, struct attachment **ret_attachment,
                   struct cairn_error *err);
/* A failure to attach that may pass: the daemon starts, or has not seen yet that our old connection is gone. */
bool session_may_pass(int code);
/* A reference to the attachment if there is one; NULL otherwise. Connects to nobody. */
struct attachment *session_attached(struct cairn_session *s);
void session_detach(struct cairn_session *s, struct attachment *a); /* NULL is allowed */
/* At the session's end, when nobody has a reference any more; NULL is allowed. */
void attachment_free(struct attachment *a, bool forked);

/* Tells the daemon, without waiting. Where none is there, the next one that takes the arena back is told: else it would
 * keep the pages for a save that nobody fills. save 0: the step, whatever was granted for it. */
void session_give_up(struct cairn_session *s, const struct given_up *g);

/* While an arena is held it stays mapped, whatever happens to the connection. UNAVAILABLE when the attachment's is gone
 * already. */
int session_hold_arena(struct cairn_session *s, const struct attachment *a, struct arena **ret_arena,
                       struct cairn_error *err);
/* What is said of it when it is handed back: somebody writes to pages that an earlier connection granted. */
void session_count_writer(struct cairn_session *s, struct arena *arena, int change);
void session_release_arena(struct cairn_session *s, struct arena *arena); /* NULL is allowed */

/* A reference to the newest plan; NULL: there is none yet. */
struct plan *session_plan(struct cairn_session *s);
/* It becomes the session's newest, with a reference and a serial of its own. */
void session_keep_plan(struct cairn_session *s, struct plan *plan);
void session_release_plan(struct cairn_session *s, struct plan *plan); /* NULL is allowed */

/* Of these sources of the plan: the session's if they fit, else new ones, which become the session's. A reference. */
int session_shares(struct cairn_session *s, struct plan *plan, const struct image_source *sources,
                   struct shares **ret_shares, struct cairn_error *err);
void session_release_shares(struct cairn_session *s, struct shares *shares); /* NULL is allowed */

bool attachment_knows(struct cairn_session *s, struct attachment *a, struct hash128 digest);
void attachment_learn(struct cairn_session *s, struct attachment *a, struct hash128 digest);
void attachment_forget(struct cairn_session *s, struct attachment *a, struct hash128 digest);

/* A public struct of size bytes, given by the caller: refuses one that is shorter than the first version's and one
 * whose tail, which we do not know, is not zero. */
int struct_check(const char *what, const void *given, size_t size, size_t known, struct cairn_error *err);

/* The same for one that has grown since its first version of first bytes: the caller's, and zeros behind it. */
int struct_take(const char *what, void *ret, size_t known, size_t first, const void *given, size_t size,
                struct cairn_error *err);

/* The i-th of a caller's array, whose version of the struct may be longer than ours. */
static inline const struct cairn_tensor *tensor_at(const struct cairn_tensor *tensors, uint64_t i)
{
    return (const struct cairn_tensor *)(const void *)((const char *)tensors + i * tensors->size);
}

#endif
