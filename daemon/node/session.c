/* SPDX-License-Identifier: Apache-2.0 */
/* A session: one client's connection.
 *
 * accept -> (HAND_BACK ->) OPEN -> jobs_join -> arena -> OPENED -> requests ... -> end of file, death of the process,
 * or a broken rule
 *
 * The process is watched by a pidfd: the end of the socket is no proof of its death (children inherit descriptors), and
 * its death ends the session though a child still holds the socket. Whatever a client sends, the worst it can do is
 * lose its own connection. */
#include "daemon/node/internal.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/name.h"
#include "core/model/units.h"
#include "daemon/io/log.h"
#include "daemon/node/codecs.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

static void session_receive(struct session *s);
static void session_flush(struct session *s);

/* ---- answers --------------------------------------------------------------------------------- */

static void out_free(struct out_message *m)
{
    for (unsigned i = 0; i < m->nfds; i++)
        close(m->fds[i]);
    free(m);
}

static void close_fds(const int *fds, unsigned nfds)
{
    for (unsigned i = 0; i < nfds; i++)
        close(fds[i]);
}

void session_send(struct session *s, const void *message, size_t len, const int *fds, unsigned nfds)
{
    struct out_message *m = NULL;

    if (!s->closed && s->nout < SESSION_MAX_OUT)
        m = malloc(sizeof *m + len);
    if (!m) {
        close_fds(fds, nfds);
        if (!s->closed)
            session_close(s, "it does not read its answers");
        return;
    }
    memcpy(m->data, message, len);
    m->len = len;
    m->nfds = nfds;
    for (unsigned i = 0; i < nfds; i++)
        m->fds[i] = fds[i];
    list_push_back(&s->out, &m->link);
    s->nout++;
    session_flush(s);
}

void session_answer_ok(struct session *s, uint32_t id)
{
    struct local_ok m = {0};

    local_header_init(&m.h, LOCAL_OK, sizeof m, id);
    session_send(s, &m, sizeof m, NULL, 0);
}

void session_answer_error(struct session *s, uint32_t id, int code, const struct cairn_error *err)
{
    struct local_error m = {.code = code, .sys_errno = err ? err->sys_errno : 0};

    local_header_init(&m.h, LOCAL_ERROR, sizeof m, id);
    snprintf(m.message, sizeof m.message, "%s", err && err->message[0] ? err->message : cairn_code_name(code));
    session_send(s, &m, sizeof m, NULL, 0);
}

static void session_sent(struct loop_op *op, int res)
{
    struct session *s = op->arg;

    s->sending = false;
    if (!list_empty(&s->out) && (res >= 0 || s->closed)) {
        struct out_message *m = list_first(&s->out, struct out_message, link);
        list_remove(&m->link);
        s->nout--;
        out_free(m);
    }
    if (res < 0 && !s->closed && res != -EINTR && res != -EAGAIN)
        session_close(s, strerror(-res));
    else if (s->rejected && list_empty(&s->out))
        session_close(s, "it broke the protocol");
    else
        session_flush(s);
    session_pending_end(s);
}

static void session_flush(struct session *s)
{
    if (s->sending || s->closed || list_empty(&s->out))
        return;
    struct out_message *m = list_first(&s->out, struct out_message, link);
    s->send_iov = (struct iovec){m->data, m->len};
    s->send_msg = (struct msghdr){.msg_iov = &s->send_iov, .msg_iovlen = 1};
    if (m->nfds) {
        s->send_msg.msg_control = s->send_control;
        s->send_msg.msg_controllen = CMSG_SPACE(m->nfds * sizeof(int));
        memset(s->send_control, 0, sizeof s->send_control);
        struct cmsghdr *c = CMSG_FIRSTHDR(&s->send_msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(m->nfds * sizeof(int));
        memcpy(CMSG_DATA(c), m->fds, m->nfds * sizeof(int));
    }
    s->sending = true;
    s->pending++;
    s->send_op.done = session_sent;
    s->send_op.arg = s;
    loop_sendmsg(s->node->deps.loop, &s->send_op, s->fd, &s->send_msg, MSG_NOSIGNAL);
}

/* ---- the end --------------------------------------------------------------------------------- */

static void session_free(struct session *s)
{
    struct node *node = s->node;

    list_for_each_safe (it, &s->out)
        out_free(container_of(it, struct out_message, link));
    list_for_each_safe (il, &s->layouts) {
        list_remove(il);
        shared_layout_unref(container_of(il, struct shared_layout, link));
    }
    arena_unref(s->arena);
    arena_offer_free(s->offer);
    if (s->fd >= 0)
        close(s->fd);
    if (s->pidfd >= 0)
        close(s->pidfd);
    free(s->recv_buf);
    list_remove(&s->link);
    node->nsessions--;
    free(s);
}

void session_pending_end(struct session *s)
{
    if (--s->pending == 0 && s->closed)
        session_free(s);
}

void session_close(struct session *s, const char *why)
{
    if (s->closed)
        return;
    s->closed = true;
    s->pending++; /* until this function ends */
    log_line(LOG_DETAIL, "session %llu of pid %d (job %s rank %u) ends: %s", (unsigned long long)s->id, s->pid, s->job,
             s->rank, why);
    session_leave_restores(s);
    session_leave_saves(s);
    if (s->arena_used)
        arena_detach(s->arena); /* now, not when the last answer is gone: the process may be handing it back already */
    s->arena_used = false;
    if (s->member) {
        member_leave(s->member);
        s->member = NULL;
    }
    shutdown(s->fd, SHUT_RDWR);
    if (s->recv_op.in_flight)
        loop_cancel(s->node->deps.loop, &s->recv_op);
    if (s->send_op.in_flight)
        loop_cancel(s->node->deps.loop, &s->send_op);
    if (s->pid_op.in_flight)
        loop_cancel(s->node->deps.loop, &s->pid_op);
    session_pending_end(s);
}

void session_reject(struct session *s, const struct cairn_error *err)
{
    log_line(LOG_WARNING, "pid %d (job %s rank %u) broke the protocol, its connection is dropped: %s", s->pid, s->job,
             s->rank, err->message);
    s->rejected = true;
    session_answer_error(s, 0, CAIRN_E_PROTOCOL, err);
}

/* ---- OPEN ------------------------------------------------------------------------------------ */

struct opening {
    struct join_request join;
    struct session *session;
    uint32_t id; /* of the request */
};

static void session_answer_opened(struct session *s, uint32_t id)
{
    uint64_t packed = codecs_packer(links_codecs(s->node->links)) ? LOCAL_KNOWS_PACKED : 0;
    struct local_opened m = {.session = (s->id & LOCAL_SESSION_MAX) | LOCAL_KNOWS | packed};
    int fds[2] = {-1, -1};

    local_header_init(&m.h, LOCAL_OPENED, sizeof m, id);
    snprintf(m.node, sizeof m.node, "%s", s->node->id);
    if (s->arena) {
        fds[0] = fcntl(s->arena->fd, F_DUPFD_CLOEXEC, 0);
        fds[1] = fds[0] < 0 ? -1 : fcntl(s->arena->ledger_fd, F_DUPFD_CLOEXEC, 0);
        if (fds[1] < 0) {
            struct cairn_error err = CAIRN_ERROR_INIT;
            int r = cairn_fail_errno(&err, errno, "duplicate the arena's descriptors");
            close_fds(fds, fds[0] >= 0);
            session_answer_error(s, id, r, &err);
            return;
        }
        m.incarnation = member_incarnation(s->member);
        m.arena_id = s->arena->id;
        m.arena_bytes = s->arena->bytes;
        m.control_bytes = ARENA_CONTROL;
    }
    s->opened = true;
    session_send(s, &m, sizeof m, fds, fds[1] >= 0 ? 2 : 0);
}

static void session_joined(struct join_request *r, int code, const struct cairn_error *join_err, struct member *member)
{
    struct opening *o = r->arg;
    struct session *s = o->session;
    struct cairn_error err = CAIRN_ERROR_INIT;

    s->opening = false;
    cairn_error_copy(&err, join_err);
    if (code == 0 && s->closed) {
        member_leave(member);
    } else if (code == 0) {
        s->member = member;
        code = session_get_arena(s, &err);
        if (code == 0) {
            session_answer_opened(s, o->id);
        } else {
            member_leave(member);
            s->member = NULL;
        }
    }
    if (code < 0)
        session_answer_error(s, o->id, code, &err);
    free(o);
    session_pending_end(s);
}

static int session_start_join(struct session *s, const struct local_open *m, struct cairn_error *err)
{
    int r = cairn_name_check("job", m->job, err);

    if (r == 0)
        r = cairn_name_check("start id", m->start_id, err);
    if (r < 0)
        return r;
    if (m->world_size < 1 || m->world_size > CAIRN_MAX_WORLD || m->rank >= m->world_size)
        return cairn_fail(err, CAIRN_E_INVAL, "rank %u is outside a world of %u", m->rank, m->world_size);
    if (m->arena_bytes < CAIRN_PART || m->arena_bytes > CAIRN_MAX_IMAGE)
        return cairn_fail(err, CAIRN_E_INVAL, "an arena of %llu bytes: it has at least 1 MiB",
                          (unsigned long long)m->arena_bytes);
    struct opening *o = calloc(1, sizeof *o);
    if (!o)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a join request");
    s->rank = m->rank;
    s->world_size = m->world_size;
    s->arena_bytes = m->arena_bytes;
    *o = (struct opening){.session = s, .id = m->h.id};
    snprintf(o->join.job, sizeof o->join.job, "%s", m->job);
    snprintf(o->join.start_id, sizeof o->join.start_id, "%s", m->start_id);
    snprintf(s->start_id, sizeof s->start_id, "%s", m->start_id);
    o->join.rank = m->rank;
    o->join.world_size = m->world_size;
    o->join.take_over = m->flags & CAIRN_TAKE_OVER;
    o->join.timeout_ms = m->timeout_ms;
    o->join.done = session_joined;
    o->join.arg = o;
    s->opening = true;
    s->pending++;
    jobs_join(s->node->jobs, &o->join);
    return 0;
}

static void session_on_open(struct session *s, const struct local_open *m)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    int r = 0;

    if (s->opened || s->opening)
        r = cairn_fail(&err, CAIRN_E_PROTOCOL, "the session is open already");
    else if (s->offering)
        r = cairn_fail(&err, CAIRN_E_PROTOCOL, "OPEN came before HAND_BACK was answered");
    else if (m->flags & ~(uint32_t)(CAIRN_OBSERVER | CAIRN_TAKE_OVER))
        r = cairn_fail(&err, CAIRN_E_UNSUPPORTED, "open with flags 0x%x: this cairnd knows 0x%x", m->flags,
                       CAIRN_OBSERVER | CAIRN_TAKE_OVER);
    if (r < 0) {
        session_answer_error(s, m->h.id, r, &err);
        return;
    }
    snprintf(s->job, sizeof s->job, "%s", m->job);
    if (m->flags & CAIRN_OBSERVER) {
        s->observer = true;
        session_answer_opened(s, m->h.id);
        return;
    }
    r = session_start_join(s, m, &err);
    if (r < 0)
        session_answer_error(s, m->h.id, r, &err);
}

/* ---- requests -------------------------------------------------------------------------------- */

/* Requests of ranks only; an observer that sends one breaks the rules. */
static bool session_is_rank(struct session *s, uint32_t id)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (s->opened && s->member)
        return true;
    cairn_fail(&err, CAIRN_E_PROTOCOL, "this session is not a rank's: open it without the observer flag first");
    session_answer_error(s, id, CAIRN_E_PROTOCOL, &err);
    return false;
}

static void session_dispatch_rank(struct session *s, int type, const void *m, int *fds)
{
    switch (type) {
    case LOCAL_LAYOUT:
        session_on_layout(s, m, TAKE_FD(fds[0]));
        break;
    case LOCAL_BEGIN:
        session_on_begin(s, m);
        break;
    case LOCAL_FILLED:
        session_on_filled(s, m);
        break;
    case LOCAL_PARTS:
        session_on_parts(s, m);
        break;
    case LOCAL_PACKED:
        session_on_packed(s, m);
        break;
    case LOCAL_SUMS:
        session_on_sums(s, m, TAKE_FD(fds[0]));
        break;
    case LOCAL_DROP:
        session_on_drop(s, m);
        break;
    case LOCAL_WHY:
        session_on_why(s, m);
        break;
    case LOCAL_WAIT:
        session_on_wait(s, m);
        break;
    case LOCAL_RESUME:
        session_on_resume(s, m);
        break;
    }
}

static void session_dispatch(struct session *s, int type, const void *m, int *fds)
{
    if (type != LOCAL_OPEN && type != LOCAL_HAND_BACK && !s->opened) {
        session_close(s, "it sent a request before OPEN");
        return;
    }
    switch (type) {
    case LOCAL_OPEN:
        session_on_open(s, m);
        break;
    case LOCAL_HAND_BACK:
        session_on_hand_back(s, m, fds);
        break;
    case LOCAL_LAYOUT:
    case LOCAL_BEGIN:
    case LOCAL_FILLED:
    case LOCAL_PARTS:
    case LOCAL_PACKED:
    case LOCAL_SUMS:
    case LOCAL_DROP:
    case LOCAL_WHY:
    case LOCAL_WAIT:
    case LOCAL_RESUME:
        if (session_is_rank(s, ((const struct local_header *)m)->id))
            session_dispatch_rank(s, type, m, fds);
        break;
    case LOCAL_LATEST:
        session_on_latest(s, m);
        break;
    case LOCAL_RESTORE_OPEN:
        session_on_restore_open(s, m);
        break;
    case LOCAL_PLACES:
        session_on_places(s, m);
        break;
    case LOCAL_READ:
        session_on_read(s, m);
        break;
    case LOCAL_RESTORE_CLOSE:
        session_on_restore_close(s, m);
        break;
    case LOCAL_QUERY:
        session_on_query(s, m);
        break;
    case LOCAL_COMMAND:
        session_on_command(s, m);
        break;
    default:
        session_close(s, "it sent a message that only a daemon sends");
    }
}

/* Collects the descriptors of a message; more than a message may have, or none of ours, are closed. */
static unsigned take_fds(struct msghdr *msg, int fds[LOCAL_MAX_FDS])
{
    unsigned n = 0;

    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof fd);
            if (n < LOCAL_MAX_FDS)
                fds[n] = fd;
            else
                close(fd);
            n++;
        }
    }
    return n;
}

/* A newer client's: it goes without. */
static void session_refuse_unknown(struct session *s, const struct local_header *h)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    cairn_fail(&err, CAIRN_E_UNSUPPORTED, "cairnd on node %s does not know requests of type %u", s->node->id, h->type);
    session_answer_error(s, h->id, CAIRN_E_UNSUPPORTED, &err);
}

static void session_handle(struct session *s, size_t len)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    int fds[LOCAL_MAX_FDS] = {-1, -1};
    unsigned nfds = take_fds(&s->recv_msg, fds);
    int type;

    bool cut = s->recv_msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC);
    if (cut)
        type = cairn_fail(&err, CAIRN_E_PROTOCOL, "a message longer than %zu bytes", LOCAL_MAX_MESSAGE);
    else
        type = local_check(s->recv_buf, len, nfds, &err);
    if (type < 0 && !cut && s->opened && local_is_unknown_request(s->recv_buf, len)) {
        session_refuse_unknown(s, (const void *)s->recv_buf);
    } else if (type < 0) {
        session_reject(s, &err);
    } else {
        session_dispatch(s, type, s->recv_buf, fds);
    }
    for (unsigned i = 0; i < LOCAL_MAX_FDS; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

static void session_received(struct loop_op *op, int res)
{
    struct session *s = op->arg;

    if (s->closed) {
        ; /* nothing more to read */
    } else if (res > 0) {
        session_handle(s, (size_t)res);
    } else if (res != -EINTR && res != -EAGAIN) {
        session_close(s, res == 0 ? "the client closed it" : strerror(-res));
    }
    if (!s->closed && !s->rejected)
        session_receive(s);
    session_pending_end(s);
}

static void session_receive(struct session *s)
{
    s->recv_iov = (struct iovec){s->recv_buf, LOCAL_MAX_MESSAGE};
    s->recv_msg = (struct msghdr){.msg_iov = &s->recv_iov,
                                  .msg_iovlen = 1,
                                  .msg_control = s->recv_control,
                                  .msg_controllen = sizeof s->recv_control};
    s->recv_op.done = session_received;
    s->recv_op.arg = s;
    s->pending++;
    loop_recvmsg(s->node->deps.loop, &s->recv_op, s->fd, &s->recv_msg, MSG_CMSG_CLOEXEC);
}

static void session_process_died(struct loop_op *op, int res)
{
    struct session *s = op->arg;

    if (res >= 0 || res != -ECANCELED)
        session_close(s, "its process ended");
    session_pending_end(s);
}

/* ---- the beginning --------------------------------------------------------------------------- */

/* Who is at the other end, as the kernel says. The pidfd of the socket itself cannot name a reused pid. */
static int session_identify(struct session *s, struct cairn_error *err)
{
    struct ucred cred;
    socklen_t len = sizeof cred;

    if (getsockopt(s->fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
        return cairn_fail_errno(err, errno, "read a client's credentials");
    s->pid = cred.pid;
    s->uid = cred.uid;
    len = sizeof s->pidfd;
    if (getsockopt(s->fd, SOL_SOCKET, SO_PEERPIDFD, &s->pidfd, &len) < 0)
        s->pidfd = (int)syscall(SYS_pidfd_open, cred.pid, 0);
    if (s->pidfd < 0)
        return cairn_fail_errno(err, errno, "watch the client with pid %d", cred.pid);
    return 0;
}

int session_new(struct node *node, int fd, struct cairn_error *err)
{
    struct session *s = calloc(1, sizeof *s);

    if (!s) {
        close(fd);
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a session");
    }
    s->node = node;
    s->fd = fd;
    s->pidfd = -1;
    s->id = node->next_id++;
    list_init(&s->out);
    list_init(&s->layouts);
    list_init(&s->saves);
    list_init(&s->restores);
    list_push_back(&node->sessions, &s->link);
    node->nsessions++;
    s->recv_buf = malloc(LOCAL_MAX_MESSAGE);
    int r = s->recv_buf ? session_identify(s, err) : cairn_fail(err, CAIRN_E_NOMEM, "allocate a session's buffer");
    if (r < 0) {
        session_free(s);
        return r;
    }
    session_receive(s);
    s->pid_op.done = session_process_died;
    s->pid_op.arg = s;
    s->pending++;
    loop_poll(node->deps.loop, &s->pid_op, s->pidfd, POLLIN);
    return 0;
}
