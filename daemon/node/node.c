/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/node/internal.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "daemon/io/log.h"
#include "daemon/node/care.h"
#include "daemon/node/mesh.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* ---- the socket ------------------------------------------------------------------------------ */

/* The lock, not the socket file, says whether a daemon is there: a dead one leaves its file behind. */
static int node_lock(struct node *n, struct cairn_error *err)
{
    char path[sizeof(((struct sockaddr_un *)0)->sun_path) + 8];

    snprintf(path, sizeof path, "%s.lock", n->socket_path);
    n->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (n->lock_fd < 0)
        return cairn_fail_errno(err, errno, "open %s", path);
    if (flock(n->lock_fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno == EWOULDBLOCK)
            return cairn_fail(err, CAIRN_E_EXISTS,
                              "another cairnd serves %s: stop it, or choose another [daemon] socket", n->socket_path);
        return cairn_fail_errno(err, errno, "lock %s", path);
    }
    return 0;
}

static int node_listen(struct node *n, struct cairn_error *err)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    if (strlen(n->socket_path) >= sizeof addr.sun_path)
        return cairn_fail(err, CAIRN_E_INVAL, "socket path %s is longer than %zu bytes", n->socket_path,
                          sizeof addr.sun_path - 1);
    int r = node_lock(n, err);
    if (r < 0)
        return r;
    snprintf(addr.sun_path, sizeof addr.sun_path, "%s", n->socket_path);
    n->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (n->listen_fd < 0)
        return cairn_fail_errno(err, errno, "create a socket");
    if (unlink(n->socket_path) < 0 && errno != ENOENT)
        return cairn_fail_errno(err, errno, "remove the old socket %s", n->socket_path);
    if (bind(n->listen_fd, (struct sockaddr *)&addr, sizeof addr) < 0)
        return cairn_fail_errno(err, errno, "bind %s", n->socket_path);
    if (chmod(n->socket_path, n->config.socket_mode) < 0)
        return cairn_fail_errno(err, errno, "set the mode of %s", n->socket_path);
    if (listen(n->listen_fd, 1024) < 0)
        return cairn_fail_errno(err, errno, "listen on %s", n->socket_path);
    return 0;
}

static void node_accept(struct node *n);

static void node_accept_again(struct loop_timer *t)
{
    node_accept(t->arg);
}

static void node_maybe_stopped(struct node *n);

static void node_accepted(struct loop_op *op, int res)
{
    struct node *n = op->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (n->stopping) {
        if (res >= 0)
            close(res);
        node_maybe_stopped(n);
        return;
    }
    if (res >= 0 && session_new(n, res, &err) < 0)
        log_line(LOG_WARNING, "a connection was refused: %s", err.message);
    if (res < 0 && res != -EINTR && res != -EAGAIN && res != -ECONNABORTED) {
        log_line(LOG_WARNING, "accept on %s: %s; trying again in a second", n->socket_path, strerror(-res));
        loop_timer_after(n->deps.loop, &n->accept_again, 1000);
        return;
    }
    node_accept(n);
}

static void node_accept(struct node *n)
{
    n->accept_op.done = node_accepted;
    n->accept_op.arg = n;
    loop_accept(n->deps.loop, &n->accept_op, n->listen_fd);
}

/* ---- the object ------------------------------------------------------------------------------ */

static void node_free(struct node *n)
{
    fanout_free(n->fanout);
    arenas_free(n->arenas);
    mesh_free(n->mesh);
    if (n->listen_fd >= 0) {
        close(n->listen_fd);
        unlink(n->socket_path);
    }
    if (n->lock_fd >= 0)
        close(n->lock_fd); /* the file stays: removing it would let two daemons lock two files of one name */
    free(n->id);
    free(n->socket_path);
    free(n);
}

static int node_start_parts(struct node *n, struct cairn_error *err)
{
    const struct node_config *c = &n->config;
    struct links_deps ld = {n->deps.loop,    n->deps.fabric, n->deps.workers,
                            n->deps.plugins, n->deps.meta,   n->deps.keyring};
    struct links_config lc = {.node = n->id,
                              .start = c->start,
                              .slots = c->slots,
                              .fragment_buffers = c->fragment_buffers,
                              .margin = c->margin,
                              .domain = c->domain,
                              .fragment_late_ms = c->fragment_late_ms,
                              .sync_late_ms = c->sync_late_ms,
                              .connect_ms = c->connect_ms,
                              .backoff_ms = c->backoff_ms,
                              .codecs = c->codecs,
                              .workers = c->workers,
                              .rate = c->rate,
                              .peer_rate = c->peer_rate};
    struct jobs_config jc = {.node = n->id,
                             .start = c->start,
                             .lease_ms = c->lease_ms,
                             .meta_ms = c->meta_ms,
                             .checkpoint_ms = c->checkpoint_ms,
                             .spread = c->spread,
                             .delta_chain = c->delta_chain,
                             .share_unchanged = c->share_unchanged,
                             .numerics_bytes = c->numerics_bytes,
                             .common_fails = c->common_fails,
                             .retention = c->retention,
                             .retention_ms = c->retention_ms};
    int r = arenas_new(n->deps.loop, c->arena_max_bytes, c->arena_keep_s, &n->arenas, err);

    if (r == 0)
        arenas_set_keeper(n->arenas, &(struct arena_keeper){c->keep_fd, c->drop_fd, c->keep_arg});
    if (r == 0)
        arenas_set_let_go(n->arenas, session_save_let_go);
    if (r == 0)
        r = node_listen(n, err);
    if (r == 0)
        r = links_new(&ld, &lc, &n->links, err);
    if (r == 0)
        r = fanout_new(n->links, c->fanout_max_bytes, FANOUT_PATIENCE_MS, &n->fanout, err);
    if (r < 0)
        return r;
    struct mesh_config mc = {n->id, c->start, n->deps.keyring};
    r = mesh_new(n->deps.fabric, &mc, &n->mesh, err);
    if (r < 0)
        return r;
    struct jobs_deps jd = {n->deps.loop, n->links, n->deps.meta, n->mesh};
    r = jobs_new(&jd, &jc, &n->jobs, err);
    return r < 0 ? r : care_start(n, err);
}

int node_new(const struct node_deps *deps, const struct node_config *config, struct node **ret_node,
             struct cairn_error *err)
{
    struct node *n = calloc(1, sizeof *n);

    if (!n)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the node role");
    n->deps = *deps;
    n->config = *config;
    n->lock_fd = n->listen_fd = -1;
    n->next_id = 1;
    list_init(&n->sessions);
    list_init(&n->work);
    list_init(&n->recoveries);
    n->accept_again = (struct loop_timer){.fire = node_accept_again, .arg = n};
    n->id = strdup(config->id);
    n->socket_path = strdup(config->socket_path);
    int r =
        n->id && n->socket_path ? node_start_parts(n, err) : cairn_fail(err, CAIRN_E_NOMEM, "copy the configuration");
    if (r < 0) {
        node_free(n); /* links, when there are some, end with the process: a failed start exits */
        return cairn_wrap(err, r, "start node %s", config->id);
    }
    n->config.id = n->id;
    n->config.socket_path = n->socket_path;
    n->config.kept = NULL; /* the caller's array */
    node_recover(n, config->kept, config->nkept);
    node_accept(n);
    *ret_node = n;
    return 0;
}

void node_set_describe(struct node *n, node_describe_fn fn, void *arg)
{
    n->describe = fn;
    n->describe_arg = arg;
}

/* ---- the end: sessions, then jobs (with their drains), then links ---------------------------- */

static void node_links_stopped(void *arg)
{
    struct node *n = arg;
    void (*stopped)(void *) = n->stopped;
    void *stopped_arg = n->stopped_arg;

    node_free(n);
    stopped(stopped_arg);
}

/* Sessions end when the last of their worker jobs and reads does, and so do gathers that nobody waits for any more:
 * links must outlive them. */
static void node_sessions_ended(struct loop_timer *t)
{
    struct node *n = t->arg;

    if (n->nsessions > 0 || !list_empty(&n->work) || fanout_busy(n->fanout))
        loop_timer_after(n->deps.loop, t, 10);
    else
        links_stop(n->links, node_links_stopped, n);
}

static void node_jobs_stopped(void *arg)
{
    struct node *n = arg;

    n->accept_again = (struct loop_timer){.fire = node_sessions_ended, .arg = n};
    node_sessions_ended(&n->accept_again);
}

static void node_maybe_stopped(struct node *n)
{
    if (!n->accept_op.in_flight)
        jobs_stop(n->jobs, node_jobs_stopped, n);
}

void node_stop(struct node *n, void (*done)(void *arg), void *arg)
{
    n->stopping = true;
    n->stopped = done;
    n->stopped_arg = arg;
    loop_timer_cancel(n->deps.loop, &n->accept_again);
    list_for_each_safe (it, &n->work) {
        struct node_work *w = container_of(it, struct node_work, link);
        w->stop(w);
    }
    arenas_freeze(n->arenas); /* what is not durable yet stays for the next daemon */
    jobs_leave(n->jobs);
    node_recover_stop(n);
    list_for_each_safe (it, &n->sessions)
        session_close(container_of(it, struct session, link), "cairnd stops");
    if (n->accept_op.in_flight)
        loop_cancel(n->deps.loop, &n->accept_op);
    else
        node_maybe_stopped(n);
}
