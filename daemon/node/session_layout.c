/* SPDX-License-Identifier: Apache-2.0 */
/* The tensor tables that a session's saves name: sent once, read and checked by a worker. */
#include "daemon/node/internal.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

struct layout_job {
    struct worker_job job;
    struct session *session;
    uint32_t id;
    int fd;
    uint64_t len;
    struct hash128 digest;
    struct shared_layout *layout;
    int code;
    struct cairn_error err;
};

/* Copies the table out of the client's memfd before anything looks at it: the client may go on writing to it. */
static int layout_read(int fd, uint64_t len, void *buf, struct cairn_error *err)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return cairn_fail_errno(err, errno, "look at the layout's descriptor");
    if (!S_ISREG(st.st_mode) || fcntl(fd, F_GET_SEALS) < 0)
        return cairn_fail(err, CAIRN_E_INVAL, "the layout's descriptor is no memfd");
    if ((uint64_t)st.st_size < len)
        return cairn_fail(err, CAIRN_E_INVAL, "the layout's memfd has %llu bytes, %llu were announced",
                          (unsigned long long)st.st_size, (unsigned long long)len);
    ssize_t n = pread(fd, buf, len, 0);
    if (n < 0)
        return cairn_fail_errno(err, errno, "read the layout");
    if ((uint64_t)n != len)
        return cairn_fail(err, CAIRN_E_INVAL, "the layout's memfd gave %zd of %llu bytes", n, (unsigned long long)len);
    return 0;
}

static void layout_run(struct worker_job *job)
{
    struct layout_job *lj = job->arg;
    _cleanup_free_ void *buf = malloc(lj->len);
    struct hash128 digest;

    lj->code =
        buf ? layout_read(lj->fd, lj->len, buf, &lj->err)
            : cairn_fail(&lj->err, CAIRN_E_NOMEM, "allocate %llu bytes for a layout", (unsigned long long)lj->len);
    if (lj->code < 0)
        return;
    digest = cairn_layout_digest(buf, lj->len);
    if (digest.low != lj->digest.low || digest.high != lj->digest.high)
        lj->code = cairn_fail(&lj->err, CAIRN_E_INVAL, "the layout does not have the digest it was announced with");
    else
        lj->code = cairn_layout_decode(&lj->layout->layout, buf, lj->len, &lj->err);
}

struct shared_layout *session_find_layout(struct session *s, uint64_t low, uint64_t high)
{
    list_for_each (it, &s->layouts) {
        struct shared_layout *l = container_of(it, struct shared_layout, link);
        if (l->digest.low == low && l->digest.high == high)
            return l;
    }
    return NULL;
}

static void session_forget_oldest_layout(struct session *s)
{
    struct shared_layout *l = container_of(s->layouts.prev, struct shared_layout, link);

    list_remove(&l->link);
    s->nlayouts--;
    shared_layout_unref(l);
}

static void layout_done(struct worker_job *job)
{
    struct layout_job *lj = job->arg;
    struct session *s = lj->session;

    if (lj->code == 0 && !s->closed && !session_find_layout(s, lj->digest.low, lj->digest.high)) {
        list_push_front(&s->layouts, &lj->layout->link);
        lj->layout = NULL;
        if (++s->nlayouts > SESSION_MAX_LAYOUTS)
            session_forget_oldest_layout(s);
    }
    if (lj->code < 0)
        session_answer_error(s, lj->id, cairn_wrap(&lj->err, lj->code, "layout of rank %u", s->rank), &lj->err);
    else
        session_answer_ok(s, lj->id);
    shared_layout_unref(lj->layout);
    close(lj->fd);
    free(lj);
    session_pending_end(s);
}

void session_on_layout(struct session *s, const struct local_layout *m, int fd)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct layout_job *lj = NULL;
    int r = 0;

    if (m->len == 0 || m->len > CAIRN_MAX_LAYOUT)
        r = cairn_fail(&err, CAIRN_E_TOO_LARGE, "a layout of %llu bytes: 1 to %zu are allowed",
                       (unsigned long long)m->len, CAIRN_MAX_LAYOUT);
    if (r == 0) {
        lj = calloc(1, sizeof *lj);
        struct shared_layout *l = calloc(1, sizeof *l);
        if (!lj || !l) {
            free(lj);
            free(l);
            r = cairn_fail(&err, CAIRN_E_NOMEM, "allocate a layout");
        } else {
            l->refs = 1;
            l->digest = (struct hash128){m->digest_low, m->digest_high};
            list_init(&l->link);
            cairn_layout_init(&l->layout);
            lj->layout = l;
        }
    }
    if (r < 0) {
        close(fd);
        session_answer_error(s, m->h.id, r, &err);
        return;
    }
    lj->job = (struct worker_job){.run = layout_run, .done = layout_done, .arg = lj};
    lj->session = s;
    lj->id = m->h.id;
    lj->fd = fd;
    lj->len = m->len;
    lj->digest = lj->layout->digest;
    lj->err.size = sizeof lj->err;
    s->pending++;
    workers_submit(s->node->deps.workers, &lj->job);
}
