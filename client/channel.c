/* SPDX-License-Identifier: Apache-2.0 */
/* Happy path: channel_send registers a request and sends it; channel_wait leads (poll, receive, dispatch) or follows
 * (futex) until it is done. Failure modes: end of file and resets kill the channel with UNAVAILABLE, broken messages
 * with PROTOCOL; a deadline only cancels the one request. Nothing here blocks longer than its deadline, and nothing
 * raises a signal.
 */
#include "client/channel.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "client/futex.h"
#include "core/base/cleanup.h"
#include "core/base/error.h"

#define LATE_MESSAGES 256 /* read after the deadline at most: a daemon that floods us must not hold us */

/* ---- the futex that followers sleep on ------------------------------------------------------- */

/* Lock held. */
static void wake_followers(struct channel *c)
{
    if (c->followers == 0)
        return;
    futex_turn(&c->turns);
}

/* Sleeps until something was handed out. Lock held on entry and return. Returns false on a signal. */
static bool follow(struct channel *c, int64_t deadline_ns)
{
    uint32_t seen = __atomic_load_n(&c->turns, __ATOMIC_RELAXED);

    c->followers++;
    pthread_mutex_unlock(&c->lock);
    bool signalled = futex_wait(&c->turns, seen, deadline_ns) == EINTR;
    pthread_mutex_lock(&c->lock);
    c->followers--;
    return !signalled;
}

/* ---- watches: lock held in all of them ------------------------------------------------------- */

static void watch_news(struct channel *c, struct channel_watch *w)
{
    uint64_t one = 1;

    if (w->unseen || !c->notifier)
        return;
    w->unseen = write(c->notifier->event_fd, &one, sizeof(one)) == (ssize_t)sizeof(one);
}

static void watch_seen(struct channel *c, struct channel_watch *w)
{
    uint64_t one;

    if (!w->unseen)
        return;
    w->unseen = read(c->notifier->event_fd, &one, sizeof(one)) != (ssize_t)sizeof(one);
}

static void watch_fail(struct channel *c, struct channel_watch *w, int code, const char *message)
{
    if (w->code < 0 || w->state == CAIRN_COMMITTED)
        return;
    w->code = code;
    memccpy(w->message, message, 0, sizeof(w->message) - 1);
    watch_news(c, w);
}

/* The channel is dead. */
static void watch_lose(struct channel *c, struct channel_watch *w)
{
    if (w->code < 0 || w->state == CAIRN_COMMITTED)
        return;
    w->lost = true;
    watch_fail(c, w, CAIRN_E_UNAVAILABLE, c->death.message);
}

static void watch_event(struct channel *c, const struct local_event *e)
{
    list_for_each (it, &c->watches) {
        struct channel_watch *w = container_of(it, struct channel_watch, link);
        if (w->save != e->save)
            continue;
        if (e->code < 0) {
            watch_fail(c, w, e->code, e->message);
        } else if (e->state > w->state) {
            w->state = e->state;
            watch_news(c, w);
        }
        return;
    }
}

/* ---- life and death -------------------------------------------------------------------------- */

static void request_fail(struct channel_request *r, const struct cairn_error *why)
{
    list_remove(&r->link);
    r->code = why->code;
    cairn_error_copy(&r->error, why);
    r->done = true;
}

/* Lock held. */
static void die(struct channel *c, const struct cairn_error *why)
{
    if (c->dead)
        return;
    c->dead = true;
    cairn_error_copy(&c->death, why);
    /* The socket would stay readable for ever. */
    if (c->notifier)
        epoll_ctl(c->notifier->epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
    shutdown(c->fd, SHUT_RDWR); /* and the one who leads wakes up */
    list_for_each_safe (it, &c->requests) {
        request_fail(container_of(it, struct channel_request, link), why);
    }
    list_for_each (it, &c->watches) {
        watch_lose(c, container_of(it, struct channel_watch, link));
    }
    wake_followers(c);
}

static void die_of_errno(struct channel *c, int sys_errno)
{
    struct cairn_error why = CAIRN_ERROR_INIT;

    const char *path = c->path ? c->path : "its socket";

    if (sys_errno)
        cairn_fail_errno(&why, sys_errno, "the connection to cairnd at %s is lost", path);
    else
        cairn_fail(&why, 0, "cairnd at %s closed the connection: it stopped, or refused what was sent (see its log)",
                   path);
    why.code = CAIRN_E_UNAVAILABLE;
    die(c, &why);
}

/* Fills err with why the channel died. Lock held. */
static int dead(const struct channel *c, struct cairn_error *err)
{
    cairn_error_copy(err, &c->death);
    return c->death.code;
}

int channel_break(struct channel *c, struct cairn_error *err, const char *why)
{
    struct cairn_error death = CAIRN_ERROR_INIT;

    cairn_fail(&death, CAIRN_E_PROTOCOL, "the daemon and this libcairn do not understand each other: %s", why);
    pthread_mutex_lock(&c->lock);
    die(c, &death);
    pthread_mutex_unlock(&c->lock);
    cairn_error_copy(err, &death);
    return CAIRN_E_PROTOCOL;
}

static int new_channel(struct notifier *notifier, struct channel **ret_channel, struct cairn_error *err)
{
    _cleanup_free_ struct channel *c = calloc(1, sizeof(*c));

    if (!c)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a connection");
    c->buffer = malloc(LOCAL_MAX_MESSAGE);
    if (!c->buffer || pthread_mutex_init(&c->lock, NULL) != 0) {
        free(c->buffer);
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a connection");
    }
    c->fd = -1;
    c->notifier = notifier;
    c->death.size = sizeof(c->death);
    list_init(&c->requests);
    list_init(&c->watches);
    *ret_channel = TAKE_PTR(c);
    return 0;
}

int channel_adopt(int fd, struct notifier *notifier, struct channel **ret_channel, struct cairn_error *err)
{
    struct epoll_event readable = {.events = EPOLLIN};
    struct channel *c = NULL;
    int r = new_channel(notifier, &c, err);

    if (r < 0)
        return r;
    if (notifier && epoll_ctl(notifier->epoll_fd, EPOLL_CTL_ADD, fd, &readable) < 0) {
        r = cairn_fail_errno(err, errno, "watch the connection");
        channel_free(c, false);
        return r;
    }
    c->fd = fd;
    *ret_channel = c;
    return 0;
}

int channel_open(const char *path, struct notifier *notifier, struct channel **ret_channel, struct cairn_error *err)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    size_t len = strlen(path);

    if (len == 0 || len >= sizeof(to.sun_path))
        return cairn_fail(err, CAIRN_E_INVAL, "the socket's path has %zu bytes, 1 to %zu are possible", len,
                          sizeof(to.sun_path) - 1);
    memcpy(to.sun_path, path, len);
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return cairn_fail_errno(err, errno, "make a socket");
    if (connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0) {
        int e = errno;
        int r = cairn_fail_errno(err, e, "connect to cairnd at %s", path);
        if (e != ENOENT && e != ECONNREFUSED)
            return r;
        if (err)
            err->code = CAIRN_E_UNAVAILABLE;
        return CAIRN_E_UNAVAILABLE;
    }
    int r = channel_adopt(fd, notifier, ret_channel, err);
    if (r < 0)
        return r;
    (void)TAKE_FD(fd);
    (*ret_channel)->path = path;
    return 0;
}

void channel_free(struct channel *c, bool forked)
{
    if (!c)
        return;
    /* A forked child shares the epoll set and the connection with its parent: it only lets go of its own descriptor. */
    if (!forked && c->fd >= 0 && !c->dead && c->notifier)
        epoll_ctl(c->notifier->epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
    if (!forked && c->fd >= 0)
        shutdown(c->fd, SHUT_RDWR); /* children that inherited the socket must not keep the session alive */
    if (c->fd >= 0)
        close(c->fd);
    if (!forked)
        pthread_mutex_destroy(&c->lock);
    free(c->buffer);
    free(c);
}

/* ---- sending --------------------------------------------------------------------------------- */

/* Lock held. */
static uint32_t next_id(struct channel *c)
{
    if (++c->next_id == 0)
        c->next_id = 1; /* 0 is for events */
    return c->next_id;
}

int channel_send_fds(struct channel *c, struct channel_request *r, struct local_header *message, const int *fds,
                     unsigned nfds, int64_t deadline_ns, struct cairn_error *err)
{
    pthread_mutex_lock(&c->lock);
    if (c->dead) {
        int code = dead(c, err);
        pthread_mutex_unlock(&c->lock);
        return code;
    }
    r->id = message->id = next_id(c);
    r->done = false;
    r->code = 0;
    r->nfds = 0;
    r->error.size = sizeof(r->error);
    list_push_back(&c->requests, &r->link);
    pthread_mutex_unlock(&c->lock);

    int e = packet_send_until(c->fd, message, fds, nfds, deadline_ns);
    if (e == 0)
        return 0;
    channel_cancel(c, r);
    if (e == ETIMEDOUT)
        return cairn_fail(err, CAIRN_E_TIMEOUT, "cairnd at %s does not read: %s was not sent in time",
                          c->path ? c->path : "its socket", local_type_name(message->type));
    pthread_mutex_lock(&c->lock);
    die_of_errno(c, e);
    int code = dead(c, err);
    pthread_mutex_unlock(&c->lock);
    return code;
}

/* Lock held. The answer carries an id that was given out and waits for nobody: it is thrown away. */
static bool tell(struct channel *c, struct local_header *message)
{
    if (c->dead)
        return false;
    message->id = next_id(c);
    int e = packet_send(c->fd, message, NULL, 0);
    if (e && e != EAGAIN && e != EINTR)
        die_of_errno(c, e);
    return e == 0;
}

bool channel_tell(struct channel *c, struct local_header *message)
{
    pthread_mutex_lock(&c->lock);
    bool sent = tell(c, message);
    pthread_mutex_unlock(&c->lock);
    return sent;
}

/* ---- receiving: what the leader does --------------------------------------------------------- */

static struct channel_request *find_request(struct channel *c, uint32_t id)
{
    list_for_each (it, &c->requests) {
        struct channel_request *r = container_of(it, struct channel_request, link);
        if (r->id == id)
            return r;
    }
    return NULL;
}

/* An answer that nobody waits for any more: what it granted goes back. */
static void undo(struct channel *c, const void *message)
{
    const struct local_header *h = message;

    if (h->type == LOCAL_GRANT) {
        struct local_drop drop = {.save = ((const struct local_grant *)message)->save};
        local_header_init(&drop.h, LOCAL_DROP, sizeof(drop), 0);
        tell(c, &drop.h);
    }
    if (h->type == LOCAL_RESTORE_OPENED) {
        struct local_restore_close close_it = {.restore = ((const struct local_restore_opened *)message)->restore};
        local_header_init(&close_it.h, LOCAL_RESTORE_CLOSE, sizeof(close_it), 0);
        tell(c, &close_it.h);
    }
}

static void complete(struct channel *c, struct channel_request *r, const void *message, struct packet *got)
{
    const struct local_header *h = message;

    list_remove(&r->link);
    if (h->type == LOCAL_ERROR) {
        const struct local_error *e = message;
        r->code = cairn_fail(&r->error, e->code, "%s", e->message);
        r->error.sys_errno = e->sys_errno;
        if (r->fails)
            watch_fail(c, r->fails, r->code, e->message);
    } else {
        memcpy(r->answer, message, got->len);
        memcpy(r->fds, got->fds, sizeof(r->fds));
        r->nfds = got->nfds;
        got->nfds = 0;
    }
    /* In this turn: an event of the save may be the next message. */
    if (h->type == LOCAL_GRANT && r->watch) {
        r->watch->save = ((const struct local_grant *)message)->save;
        list_push_back(&c->watches, &r->watch->link);
    }
    r->done = true;
}

static int dispatch(struct channel *c, struct packet *got, struct cairn_error *err)
{
    const struct local_header *h = c->buffer;

    if (got->cut)
        return cairn_fail(err, CAIRN_E_PROTOCOL,
                          "a message or its descriptors did not fit (open files at their limit?)");
    int type = local_check(c->buffer, got->len, got->nfds, err);
    if (type < 0)
        return type;
    if (type < LOCAL_ERROR)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "%s is not for a client", local_type_name(type));
    if (type == LOCAL_EVENT) {
        watch_event(c, c->buffer);
        return 0;
    }
    if (h->id == 0)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "it refused what was sent: %s",
                          ((const struct local_error *)c->buffer)->message);
    struct channel_request *r = find_request(c, h->id);
    if (!r && h->id > c->next_id)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "%s answers request %u that was never made", local_type_name(type),
                          h->id);
    if (!r) {
        undo(c, c->buffer);
        return 0;
    }
    if (type != LOCAL_ERROR && (type != r->expect || got->len > r->room))
        return cairn_fail(err, CAIRN_E_PROTOCOL, "%s of %zu bytes came instead of %s", local_type_name(type), got->len,
                          local_type_name(r->expect));
    complete(c, r, c->buffer, got);
    return 0;
}

static void handle(struct channel *c, int status, struct packet *got)
{
    struct cairn_error why = CAIRN_ERROR_INIT;

    if (status == EAGAIN || status == EINTR)
        return;
    if (status != 0) {
        die_of_errno(c, status > 0 ? status : 0);
        return;
    }
    int r = c->dead ? 0 : dispatch(c, got, &why);
    packet_close_fds(got->fds, got->nfds); /* those that nobody took */
    if (r < 0) {
        cairn_wrap(&why, CAIRN_E_PROTOCOL, "the daemon and this libcairn do not understand each other");
        die(c, &why);
    }
    wake_followers(c);
}

enum turn { TURN_READ, TURN_NOTHING, TURN_SIGNAL };

/* One poll and at most one message. Lock held on entry and return. */
static enum turn lead(struct channel *c, uint32_t timeout_ms)
{
    struct pollfd p = {.fd = c->fd, .events = POLLIN};
    struct packet got = {0};
    int status = EAGAIN;

    c->led = true;
    pthread_mutex_unlock(&c->lock);
    int n = poll(&p, 1, (int)timeout_ms);
    bool signalled = n < 0 && errno == EINTR;
    if (n > 0)
        status = packet_receive(c->fd, c->buffer, &got);
    pthread_mutex_lock(&c->lock);
    c->led = false;
    handle(c, status, &got);
    return signalled ? TURN_SIGNAL : n > 0 ? TURN_READ : TURN_NOTHING;
}

/* ---- waiting --------------------------------------------------------------------------------- */

/* Lock held. */
static int wait_locked(struct channel *c, channel_ready_fn ready, const void *arg, bool interruptible,
                       int64_t deadline_ns, struct cairn_error *err)
{
    unsigned late = 0;

    for (;;) {
        enum turn turn = TURN_NOTHING;
        if (ready(arg))
            return 0;
        if (c->dead)
            return dead(c, err);
        uint32_t left = deadline_left_ms(deadline_ns);
        if (!c->led)
            turn = lead(c, left);
        else if (left && !follow(c, deadline_ns))
            turn = TURN_SIGNAL;
        if (turn == TURN_SIGNAL && interruptible)
            return ready(arg) ? 0 : cairn_fail(err, CAIRN_E_INTR, "a signal came");
        if (left == 0 && (turn == TURN_NOTHING || ++late > LATE_MESSAGES))
            return ready(arg) ? 0
                              : cairn_fail(err, CAIRN_E_TIMEOUT, "cairnd at %s has not answered in time",
                                           c->path ? c->path : "its socket");
    }
}

int channel_wait(struct channel *c, channel_ready_fn ready, const void *arg, bool interruptible, int64_t deadline_ns,
                 struct cairn_error *err)
{
    pthread_mutex_lock(&c->lock);
    int r = wait_locked(c, ready, arg, interruptible, deadline_ns, err);
    wake_followers(c); /* one of them leads now */
    pthread_mutex_unlock(&c->lock);
    return r;
}

static bool request_done(const void *arg)
{
    return ((const struct channel_request *)arg)->done;
}

int channel_finish(struct channel *c, struct channel_request *r, int64_t deadline_ns, struct cairn_error *err)
{
    int code = channel_wait(c, request_done, r, false, deadline_ns, err);

    if (code < 0)
        channel_cancel(c, r);
    if (!r->done)
        return code; /* off the list: nobody writes to it any more */
    if (r->code < 0)
        cairn_error_copy(err, &r->error);
    return r->code;
}

int channel_call_fds(struct channel *c, struct local_header *message, const int *fds, unsigned nfds,
                     struct channel_request *r, int64_t deadline_ns, struct cairn_error *err)
{
    int code = channel_send_fds(c, r, message, fds, nfds, deadline_ns, err);

    if (code == 0) {
        code = channel_finish(c, r, deadline_ns, err);
        if (code == 0 || r->done) /* what the daemon says, or that it went, stands for itself */
            return code;
    }
    return cairn_wrap(err, code, "%s", local_type_name(message->type));
}

bool channel_is_done(struct channel *c, const struct channel_request *r)
{
    pthread_mutex_lock(&c->lock);
    bool done = r->done;
    pthread_mutex_unlock(&c->lock);
    return done;
}

void channel_cancel(struct channel *c, struct channel_request *r)
{
    pthread_mutex_lock(&c->lock);
    if (!r->done)
        list_remove(&r->link);
    pthread_mutex_unlock(&c->lock);
}

void channel_request_close(struct channel_request *r)
{
    packet_close_fds(r->fds, r->nfds);
    r->nfds = 0;
}

int channel_watch_look(struct channel *c, struct channel_watch *w, int *ret_state, struct cairn_error *err)
{
    pthread_mutex_lock(&c->lock);
    watch_seen(c, w);
    int code = w->code;
    *ret_state = w->state;
    if (code < 0)
        cairn_fail(err, code, "%s", w->message);
    pthread_mutex_unlock(&c->lock);
    return code;
}

int channel_watch_ended(struct channel *c, struct channel_watch *w, struct cairn_error *err)
{
    (void)channel_is_dead(c);
    pthread_mutex_lock(&c->lock);
    int code = w->lost ? 0 : w->code;
    if (code < 0)
        cairn_fail(err, code, "%s", w->message);
    pthread_mutex_unlock(&c->lock);
    return code;
}

void channel_watch_reach(struct channel *c, struct channel_watch *w, int state, bool is_news)
{
    pthread_mutex_lock(&c->lock);
    if (state > w->state) {
        w->state = state;
        if (is_news)
            watch_news(c, w);
    }
    pthread_mutex_unlock(&c->lock);
}

void channel_watch_remove(struct channel *c, struct channel_watch *w)
{
    pthread_mutex_lock(&c->lock);
    watch_seen(c, w);
    list_remove(&w->link);
    pthread_mutex_unlock(&c->lock);
}

void channel_watch_add(struct channel *c, struct channel_watch *w)
{
    pthread_mutex_lock(&c->lock);
    w->code = 0;
    w->lost = false;
    list_push_back(&c->watches, &w->link);
    if (c->dead)
        watch_lose(c, w);
    pthread_mutex_unlock(&c->lock);
}

void channel_watch_fail(struct channel *c, struct channel_watch *w, int code, const char *message)
{
    pthread_mutex_lock(&c->lock);
    if (w->lost)
        w->code = 0;
    w->lost = false;
    watch_fail(c, w, code, message);
    pthread_mutex_unlock(&c->lock);
}

bool channel_watch_is_lost(struct channel *c, const struct channel_watch *w)
{
    pthread_mutex_lock(&c->lock);
    bool lost = w->lost;
    pthread_mutex_unlock(&c->lock);
    return lost;
}

static bool never(const void *arg)
{
    (void)arg;
    return false;
}

bool channel_is_dead(struct channel *c)
{
    pthread_mutex_lock(&c->lock);
    wait_locked(c, never, NULL, false, 0, NULL); /* reads what has come, the end of the connection above all */
    bool is_dead = c->dead;
    wake_followers(c);
    pthread_mutex_unlock(&c->lock);
    return is_dead;
}
