/* SPDX-License-Identifier: Apache-2.0 */
/* A channel: one connection to the daemon, shared by the threads of a session.
 *
 * No thread of its own: of the threads that wait, one leads. It polls the socket, reads one message at a time and hands
 * it to the request with that id or to the watch of that save; the others sleep on a futex until something was handed
 * out. A leader whose own wait is over steps down and wakes the rest.
 *
 *                  wait                          its answer came, deadline, signal
 *     (follows) ---------> leads: poll, read, dispatch ---------> (returns, wakes the followers)
 *         ^                     | end of file, garbage
 *         +---------------------+--> dead: every request and watch fails at once, for good
 *
 * A request is a struct of its caller that carries the answer; it may be freed once it is done or cancelled. Answers to
 * cancelled requests are thrown away when they come, and what they granted is given back.
 */
#ifndef CAIRN_CLIENT_CHANNEL_H
#define CAIRN_CLIENT_CHANNEL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "client/packet.h"
#include "core/base/list.h"
#include "core/proto/local.h"

/* What cairn_session_fd returns: an epoll descriptor over the live socket and a counter of watches with unseen news. */
struct notifier {
    int epoll_fd;
    int event_fd; /* EFD_SEMAPHORE: its value is the number of unseen watches */
};

/* One save as the daemon reports it. Protected by the channel's lock. */
struct channel_watch {
    struct list link; /* in channel.watches once granted */
    uint64_t save;    /* 0 before the grant */
    int state;        /* enum cairn_save_state reached; 0 before SNAPSHOT */
    int code;         /* negative: failed for good, unless lost */
    bool lost;        /* only the connection is: the save may go on over the next one */
    bool unseen;      /* counted in the notifier */
    char message[496];
};

struct channel_request {
    struct list link; /* in channel.requests until done */
    uint32_t id;
    int expect; /* enum local_type of the answer; ERROR always may come */
    bool done;
    int code;               /* negative when ERROR came or the channel died */
    void *answer;           /* the answer's bytes go here */
    size_t room;            /* at answer */
    int fds[LOCAL_MAX_FDS]; /* that came with the answer; the caller's once done */
    unsigned nfds;
    struct channel_watch *watch; /* linked when a GRANT comes; else NULL */
    struct channel_watch *fails; /* whose save has failed for good when ERROR comes; else NULL */
    struct cairn_error error;    /* when code is negative */
};

struct channel {
    pthread_mutex_t lock; /* everything below but fd and buffer; held for no system call that waits */
    int fd;               /* closed by channel_free only */
    uint32_t turns;       /* futex word: changes whenever followers should look again */
    uint32_t next_id;
    uint32_t followers; /* threads in the futex */
    bool led;           /* a thread is reading */
    bool dead;
    struct cairn_error death; /* why, when dead */
    struct list requests;     /* sent and not answered */
    struct list watches;
    struct notifier *notifier; /* the session's; outlives the channel */
    const char *path;          /* of the socket, for messages; the session's, outlives the channel; may be NULL */
    void *buffer;              /* of the thread that leads */
};

/* Connects. Errors: UNAVAILABLE when nobody listens, BUSY when the daemon's backlog is full; both may pass. */
int channel_open(const char *path, struct notifier *notifier, struct channel **ret_channel, struct cairn_error *err);
/* Takes over a connected socket. */
int channel_adopt(int fd, struct notifier *notifier, struct channel **ret_channel, struct cairn_error *err);
/* Nobody may wait on it any more. NULL is allowed. In a forked child the socket stays the parent's. */
void channel_free(struct channel *c, bool forked);

/* Registers the request, writes its id into the message and sends it. On failure the request is not registered. */
int channel_send_fds(struct channel *c, struct channel_request *r, struct local_header *message, const int *fds,
                     unsigned nfds, int64_t deadline_ns, struct cairn_error *err);
/* With one descriptor, or -1. */
static inline int channel_send(struct channel *c, struct channel_request *r, struct local_header *message, int fd,
                               int64_t deadline_ns, struct cairn_error *err)
{
    return channel_send_fds(c, r, message, &fd, fd >= 0, deadline_ns, err);
}
/* Sends without waiting for room or for the answer; best effort: whether it went out. */
bool channel_tell(struct channel *c, struct local_header *message);
/* Waits for the request; cancels it when the deadline passes. Returns its code; fills err from its error. */
int channel_finish(struct channel *c, struct channel_request *r, int64_t deadline_ns, struct cairn_error *err);
/* Send and finish. answer is untouched on failure. */
int channel_call_fds(struct channel *c, struct local_header *message, const int *fds, unsigned nfds,
                     struct channel_request *r, int64_t deadline_ns, struct cairn_error *err);
static inline int channel_call(struct channel *c, struct local_header *message, int fd, struct channel_request *r,
                               int64_t deadline_ns, struct cairn_error *err)
{
    return channel_call_fds(c, message, &fd, fd >= 0, r, deadline_ns, err);
}
bool channel_is_done(struct channel *c, const struct channel_request *r);
void channel_cancel(struct channel *c, struct channel_request *r);
/* Closes the descriptors that came with the answer and were not taken. */
void channel_request_close(struct channel_request *r);

/* Called with the lock held. */
typedef bool (*channel_ready_fn)(const void *arg);
/* Leads or follows until ready(arg), the death of the channel, the deadline (TIMEOUT) or, when asked for, a signal
 * (INTR). A deadline that has passed still reads what has arrived. err is filled on failure. */
int channel_wait(struct channel *c, channel_ready_fn ready, const void *arg, bool interruptible, int64_t deadline_ns,
                 struct cairn_error *err);

/* Takes what a watch knows and marks it seen. Returns its code and its message, or 0 and its state. */
int channel_watch_look(struct channel *c, struct channel_watch *w, int *ret_state, struct cairn_error *err);
/* Reads what has come. The failure for good of this watch's save, which stays unseen; 0: none is known. */
int channel_watch_ended(struct channel *c, struct channel_watch *w, struct cairn_error *err);
/* Notes a state that no event has told; as news the session's descriptor tells it. */
void channel_watch_reach(struct channel *c, struct channel_watch *w, int state, bool is_news);
void channel_watch_remove(struct channel *c, struct channel_watch *w);
/* A removed watch whose connection was lost, over another channel; it keeps its save and the state it has reached. */
void channel_watch_add(struct channel *c, struct channel_watch *w);
/* What no event has told: the save failed for good. */
void channel_watch_fail(struct channel *c, struct channel_watch *w, int code, const char *message);
/* Whether only the connection is lost. */
bool channel_watch_is_lost(struct channel *c, const struct channel_watch *w);

/* True once the connection is lost; looks at the socket, but does not wait. */
bool channel_is_dead(struct channel *c);
/* The other side broke the protocol in a way that only the caller can see. */
int channel_break(struct channel *c, struct cairn_error *err, const char *why);

#endif
