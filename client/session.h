/* SPDX-License-Identifier: Apache-2.0 */
/* A session, and its attachment: one connection with the arena and the layouts that the daemon knows over it. When the
 * connection dies the attachment is retired and the next call that needs the daemon makes a new one.
 *
 *     (none) --attach: connect, OPEN, map--> attached --connection lost--> retired --last reference--> freed
 *
 * Locks, in the order in which they are taken:
 *   1. session.lock   session.attachment, session.attaching, and of each attachment refs, copying, retired, known
 *   2. channel.lock   requests and watches (channel.h)
 * Neither is held while a system call waits. attaching is a flag, not a lock, so that those who wait for the thread
 * that attaches keep their deadlines; they sleep on session.attached. Everything else in a session does not change
 * after open; a save or a restore belongs to one thread at a time.
 */
#ifndef CAIRN_CLIENT_SESSION_H
#define CAIRN_CLIENT_SESSION_H

#include <sys/types.h>

#include "client/arena.h"
#include "client/channel.h"
#include "core/model/hash.h"

#define SESSION_KNOWN_LAYOUTS 64

struct attachment {
    unsigned refs;
    unsigned copying; /* saves that write to the arena now */
    bool retired;     /* the arena goes when copying is 0 */
    struct channel *channel;
    struct arena arena;
    uint64_t incarnation;
    struct hash128 known[SESSION_KNOWN_LAYOUTS]; /* digests that the daemon has, a ring */
    unsigned nknown;                             /* ever added */
};

struct cairn_session {
    pid_t owner;            /* the process that opened it */
    struct local_open open; /* as sent, again at every attach */
    char *socket_path;
    uint32_t timeout_ms;
    uint32_t copy_threads;
    struct notifier notifier;
    pthread_mutex_t lock;
    pthread_cond_t attached; /* CLOCK_MONOTONIC */
    bool attaching;
    struct attachment *attachment; /* NULL when the connection was lost and not replaced yet */
    uint64_t incarnation;          /* of the newest attachment; atomic */
};

/* FORKED in a child, INVAL without a session. The first thing every public function does. */
int session_check(const struct cairn_session *s, struct cairn_error *err);
bool session_forked(const struct cairn_session *s);

/* A reference to the live attachment; attaches anew when it was lost, trying again until retry_ns (at least once). */
int session_attach(struct cairn_session *s, int64_t retry_ns, struct attachment **ret_attachment,
                   struct cairn_error *err);
/* A reference to the attachment if there is one; NULL otherwise. Connects to nobody. */
struct attachment *session_attached(struct cairn_session *s);
void session_detach(struct cairn_session *s, struct attachment *a); /* NULL is allowed */

/* While the arena is held it stays mapped. ABORTED when it is gone already. */
int attachment_hold_arena(struct cairn_session *s, struct attachment *a, struct cairn_error *err);
void attachment_release_arena(struct cairn_session *s, struct attachment *a);

bool attachment_knows(struct cairn_session *s, struct attachment *a, struct hash128 digest);
void attachment_learn(struct cairn_session *s, struct attachment *a, struct hash128 digest);
void attachment_forget(struct cairn_session *s, struct attachment *a, struct hash128 digest);

/* A public struct of size bytes, given by the caller: refuses one that is shorter than the first version's and one
 * whose tail, which we do not know, is not zero. */
int struct_check(const char *what, const void *given, size_t size, size_t known, struct cairn_error *err);

#endif
