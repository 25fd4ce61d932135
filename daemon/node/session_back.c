/* SPDX-License-Identifier: Apache-2.0 */
/* An arena that its process hands back:
 *
 *     HAND_BACK -> a worker reads and checks both files -> OK, or ERROR with what does not match
 *     OPEN -> joined -> adopted, and its saves go on -> OPENED with the same arena id
 *                  \-> cannot be adopted (in use, no memory): a new arena, as if nothing had been handed back
 */
#include "daemon/node/internal.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "daemon/io/log.h"

#include <string.h>

struct back_job {
    struct worker_job job;
    struct session *session;
    struct local_hand_back message;
    int arena_fd, ledger_fd; /* owned */
    struct arena_offer *offer;
    int code;
    struct cairn_error err;
};

static int check_owner(const struct back_job *b, uid_t uid, struct cairn_error *err)
{
    const struct ledger_header *h = ledger_header_of(b->offer->ledger);
    const struct local_hand_back *m = &b->message;

    if (h->arena_id != m->arena_id)
        return cairn_fail(err, CAIRN_E_INVAL, "the ledger is that of arena %016llx, not %016llx",
                          (unsigned long long)h->arena_id, (unsigned long long)m->arena_id);
    if (strcmp(h->job, m->job) != 0 || h->rank != m->rank || strcmp(h->start_id, m->start_id) != 0)
        return cairn_fail(err, CAIRN_E_INVAL, "the arena is that of job %s rank %u, start %s", h->job, h->rank,
                          h->start_id);
    if (h->uid != uid)
        return cairn_fail(err, CAIRN_E_DENIED, "the arena belongs to user %u", h->uid);
    return 0;
}

static void back_run(struct worker_job *job)
{
    struct back_job *b = job->arg;

    b->code = arena_offer_read(b->arena_fd, b->ledger_fd, &b->offer, &b->err);
    if (b->code == 0)
        b->arena_fd = -1;
    if (b->code == 0)
        b->code = check_owner(b, b->session->uid, &b->err);
}

static void back_done(struct worker_job *job)
{
    struct back_job *b = job->arg;
    struct session *s = b->session;

    s->offering = false;
    if (b->code < 0) {
        b->code = cairn_wrap(&b->err, b->code, "an arena handed back for job %s rank %u is refused", b->message.job,
                             b->message.rank);
        if (!s->closed)
            log_line(LOG_WARNING, "pid %d: %s", s->pid, b->err.message);
        session_answer_error(s, b->message.h.id, b->code, &b->err);
    } else if (!s->closed) {
        s->offer = TAKE_PTR(b->offer);
        s->copying = b->message.copying > 0;
        session_answer_ok(s, b->message.h.id);
    }
    arena_offer_free(b->offer);
    if (b->arena_fd >= 0)
        close(b->arena_fd);
    close(b->ledger_fd);
    free(b);
    session_pending_end(s);
}

void session_on_hand_back(struct session *s, const struct local_hand_back *m, int *fds)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct back_job *b = NULL;
    int r = 0;

    if (s->opened || s->opening || s->offering || s->offer)
        r = cairn_fail(&err, CAIRN_E_PROTOCOL, "HAND_BACK comes once, before OPEN");
    else if (!(b = calloc(1, sizeof *b)))
        r = cairn_fail(&err, CAIRN_E_NOMEM, "allocate an arena's offer");
    if (r < 0) {
        session_answer_error(s, m->h.id, r, &err);
        return;
    }
    b->job = (struct worker_job){.run = back_run, .done = back_done, .arg = b};
    b->session = s;
    b->message = *m;
    b->arena_fd = TAKE_FD(fds[0]);
    b->ledger_fd = TAKE_FD(fds[1]);
    b->err.size = sizeof b->err;
    s->offering = true;
    s->pending++;
    workers_submit(s->node->deps.workers, &b->job);
}

/* ---- OPEN ------------------------------------------------------------------------------------ */

static int session_adopt(struct session *s, const struct arena_user *u, struct cairn_error *err)
{
    const struct ledger_header *h = ledger_header_of(s->offer->ledger);

    if (strcmp(h->job, s->job) != 0 || h->rank != s->rank || strcmp(h->start_id, s->start_id) != 0)
        return cairn_fail(err, CAIRN_E_INVAL, "OPEN names another rank or start than HAND_BACK");
    return arenas_adopt(s->node->arenas, s->offer, u, s->copying, &s->arena, err);
}

int session_get_arena(struct session *s, struct cairn_error *err)
{
    struct cairn_error why = CAIRN_ERROR_INIT;
    struct arena_user u = {.job = s->job,
                           .start_id = s->start_id,
                           .rank = s->rank,
                           .world_size = s->world_size,
                           .uid = s->uid,
                           .pid = s->pid,
                           .pidfd = s->pidfd,
                           .bytes = s->arena_bytes};
    int r = s->offer ? session_adopt(s, &u, &why) : CAIRN_E_NOT_FOUND;

    if (r == 0) {
        s->arena_used = true;
        log_line(LOG_NOTICE, "job %s rank %u handed its arena of %u MiB back", s->job, s->rank, s->arena->npages);
        saves_go_on(s, s->arena, s->member);
    } else {
        if (s->offer)
            log_line(LOG_WARNING, "job %s rank %u gets a new arena, its own cannot be taken back: %s", s->job, s->rank,
                     why.message);
        r = arenas_attach(s->node->arenas, &u, &s->arena, err);
        s->arena_used = r == 0;
    }
    arena_offer_free(TAKE_PTR(s->offer));
    return r;
}
