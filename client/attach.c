/* SPDX-License-Identifier: Apache-2.0 */
/* Attaching: the connection to the daemon that a session has now, and how it gets the next one.
 *
 * The thread that finds the attachment dead makes a new one, and the others wait for it. The arena of the connection
 * before is offered first (HAND_BACK), then OPEN says which one the session has from now on. Only an answer decides
 * between the two: a daemon that is slow costs time, never a snapshot. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/session.h"
#include "core/base/cleanup.h"
#include "core/base/error.h"

#define RETRY_MS 10 /* between two tries to reach the daemon, at first; doubles */
#define MAX_RETRY_MS 500

void attachment_free(struct attachment *a, bool forked)
{
    if (!a)
        return;
    channel_free(a->channel, forked);
    free(a);
}

/* The session's arena becomes this one; the old one's memory goes first, unless a save is still copying into it. */
static void set_arena(struct cairn_session *s, struct arena *arena)
{
    pthread_mutex_lock(&s->lock);
    struct arena *before = s->arena;
    s->arena = arena;
    if (arena)
        arena->serial = ++s->arenas;
    pthread_mutex_unlock(&s->lock);
    session_release_arena(s, before);
}

/* ---- handing back ---------------------------------------------------------------------------- */

/* Offers the arena of the connection before. ret_handed when the daemon wants it; else refusal says why, unless there
 * is nothing to offer. Without an answer nobody knows: to go on with another arena would lose what this one has. */
static int hand_back(struct cairn_session *s, struct attachment *a, int64_t deadline_ns, bool *ret_handed,
                     struct cairn_error *err)
{
    struct local_hand_back m = {.rank = s->open.rank};
    struct local_ok ok;
    struct channel_request r = {.expect = LOCAL_OK, .answer = &ok, .room = sizeof(ok)};
    struct cairn_error why = CAIRN_ERROR_INIT;
    int fds[2];

    if (!s->arena) /* only the thread that attaches changes it */
        return 0;
    fds[0] = s->arena->fd;
    fds[1] = s->arena->ledger_fd;
    m.arena_id = s->arena->id;
    pthread_mutex_lock(&s->lock);
    m.copying = s->arena->writers;
    pthread_mutex_unlock(&s->lock);
    memcpy(m.job, s->open.job, sizeof(m.job));
    memcpy(m.start_id, s->open.start_id, sizeof(m.start_id));
    local_header_init(&m.h, LOCAL_HAND_BACK, sizeof(m), 0);
    int code = channel_call_fds(a->channel, &m.h, fds, 2, &r, deadline_ns, &why);
    if (code < 0 && !r.done) {
        cairn_error_copy(err, &why);
        return code;
    }
    if (code < 0)
        (void)snprintf(a->refusal, sizeof(a->refusal), "%.250s", why.message);
    *ret_handed = code == 0;
    return 0;
}

static int map_new(struct cairn_session *s, struct attachment *a, const struct local_opened *m,
                   struct channel_request *r, struct cairn_error *err)
{
    struct arena *arena = NULL;

    if (!a->refusal[0] && s->arena)
        (void)snprintf(a->refusal, sizeof(a->refusal), "it gave a new one (see its log)");
    set_arena(s, NULL);
    int code = arena_map(r->fds[0], r->fds[1], m->control_bytes, m->arena_bytes, &arena, err);
    if (code < 0)
        return code;
    r->nfds = 0;
    arena->id = m->arena_id;
    set_arena(s, arena);
    a->arena_serial = arena->serial;
    return 0;
}

/* What OPENED says and brings. */
static int attachment_map(struct cairn_session *s, struct attachment *a, const struct local_opened *m,
                          struct channel_request *r, bool handed, struct cairn_error *err)
{
    if (session_is_observer(s))
        return 0;
    if (r->nfds != 2)
        return channel_break(a->channel, err, "OPENED came without an arena and its ledger");
    if (m->arena_bytes < s->open.arena_bytes)
        return channel_break(a->channel, err, "the arena is smaller than asked for");
    if (!handed || m->arena_id != s->arena->id)
        return map_new(s, a, m, r, err);
    if (m->arena_bytes != s->arena->page_bytes || m->control_bytes != s->arena->control_bytes)
        return channel_break(a->channel, err, "the arena that was handed back has another size now");
    /* The mapping stays; the ledger is the new daemon's. */
    close(s->arena->ledger_fd);
    s->arena->ledger_fd = r->fds[1];
    close(r->fds[0]);
    r->nfds = 0;
    a->arena_serial = s->arena->serial;
    return 0;
}

static int attachment_open(struct cairn_session *s, struct attachment *a, int64_t limit_ns, struct cairn_error *err)
{
    struct local_open m = s->open; /* a copy: sending writes the id */
    struct local_opened opened = {0};
    struct channel_request r = {.expect = LOCAL_OPENED, .answer = &opened, .room = sizeof(opened)};
    uint32_t left_ms = deadline_left_ms(limit_ns);
    int code = channel_open(s->socket_path, &s->notifier, &a->channel, err);
    bool handed = false;

    m.timeout_ms = left_ms < s->timeout_ms ? (left_ms ? left_ms : 1) : s->timeout_ms;
    int64_t deadline_ns = deadline_after_daemon(deadline_in_ms(m.timeout_ms), m.timeout_ms);
    if (deadline_ns > limit_ns)
        deadline_ns = limit_ns;
    if (code == 0)
        code = hand_back(s, a, deadline_ns, &handed, err);
    if (code == 0)
        code = channel_call(a->channel, &m.h, -1, &r, deadline_ns, err);
    if (code == 0)
        code = attachment_map(s, a, &opened, &r, handed, err);
    channel_request_close(&r);
    a->incarnation = opened.incarnation;
    a->knows = opened.session & ~LOCAL_SESSION_MAX;
    return code;
}

static int attachment_new(struct cairn_session *s, int64_t limit_ns, struct attachment **ret_attachment,
                          struct cairn_error *err)
{
    struct attachment *a = calloc(1, sizeof(*a));

    if (!a)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a connection");
    int r = attachment_open(s, a, limit_ns, err);
    if (r < 0) {
        attachment_free(a, false);
        return r;
    }
    a->refs = 1;
    *ret_attachment = a;
    return 0;
}

bool session_may_pass(int code)
{
    return code == CAIRN_E_UNAVAILABLE || code == CAIRN_E_EXISTS || code == CAIRN_E_BUSY;
}

static int attach_until(struct cairn_session *s, int64_t retry_ns, int64_t limit_ns, struct attachment **ret_attachment,
                        struct cairn_error *err)
{
    for (uint32_t pause_ms = RETRY_MS;; pause_ms = pause_ms < MAX_RETRY_MS / 2 ? 2 * pause_ms : MAX_RETRY_MS) {
        int r = attachment_new(s, limit_ns, ret_attachment, err);
        uint32_t left_ms = deadline_left_ms(retry_ns);
        if (r == 0 || !session_may_pass(r) || left_ms == 0)
            return r;
        usleep((left_ms < pause_ms ? left_ms : pause_ms) * 1000); /* the last try is at the deadline */
    }
}

static bool unref(struct attachment *a)
{
    return --a->refs == 0;
}

void session_detach(struct cairn_session *s, struct attachment *a)
{
    if (!a)
        return;
    pthread_mutex_lock(&s->lock);
    bool last = unref(a);
    pthread_mutex_unlock(&s->lock);
    if (last)
        attachment_free(a, false);
}

/* Lock held. The session lets go of its dead attachment. */
static void retire(struct cairn_session *s)
{
    struct attachment *a = TAKE_PTR(s->attachment);

    if (unref(a))
        attachment_free(a, false);
}

static void deadline_to_timespec(int64_t deadline_ns, struct timespec *ret_time)
{
    ret_time->tv_sec = deadline_ns / 1000000000;
    ret_time->tv_nsec = deadline_ns % 1000000000;
}

/* Lock held. Waits for the thread that attaches. */
static int wait_for_attacher(struct cairn_session *s, int64_t deadline_ns, struct cairn_error *err)
{
    struct timespec until;

    deadline_to_timespec(deadline_ns, &until);
    while (s->attaching)
        if (pthread_cond_timedwait(&s->attached, &s->lock, &until) == ETIMEDOUT && s->attaching)
            return cairn_fail(err, CAIRN_E_TIMEOUT, "another thread is still connecting to the daemon");
    return 0;
}

/* ---- saves that are given up ----------------------------------------------------------------- */

/* Lock held. Whether it went out. Of another arena the daemon knows the step alone. */
static bool tell_given_up(struct attachment *a, const struct given_up *g)
{
    struct local_drop m = {.save = a->arena_serial == g->arena_serial ? g->save : 0, .step = g->step};

    local_header_init(&m.h, LOCAL_DROP, sizeof(m), 0);
    return channel_tell(a->channel, &m.h);
}

/* Lock held. Without memory the pages come back with the session's end. */
static void note_untold(struct cairn_session *s, const struct given_up *g)
{
    struct given_up *more = realloc(s->untold, (s->nuntold + 1) * sizeof(*more));

    if (!more)
        return;
    s->untold = more;
    s->untold[s->nuntold++] = *g;
}

void session_give_up(struct cairn_session *s, const struct given_up *g)
{
    pthread_mutex_lock(&s->lock);
    if (!(s->attachment && tell_given_up(s->attachment, g)) && g->save)
        note_untold(s, g);
    pthread_mutex_unlock(&s->lock);
}

/* Lock held. Before anybody else says something on it. What was in an arena that is gone is gone. */
static void tell_untold(struct cairn_session *s)
{
    size_t n = 0;

    for (size_t i = 0; i < s->nuntold; i++)
        if (s->untold[i].arena_serial == s->attachment->arena_serial && !tell_given_up(s->attachment, &s->untold[i]))
            s->untold[n++] = s->untold[i];
    s->nuntold = n;
}

/* ---- attaching ------------------------------------------------------------------------------- */

/* Lock held on entry and return, free in between. */
static int attach_anew(struct cairn_session *s, int64_t retry_ns, int64_t limit_ns, struct cairn_error *err)
{
    struct attachment *a = NULL;

    s->attaching = true;
    pthread_mutex_unlock(&s->lock);
    int r = attach_until(s, retry_ns, limit_ns, &a, err);
    pthread_mutex_lock(&s->lock);
    s->attaching = false;
    pthread_cond_broadcast(&s->attached);
    if (r < 0)
        return r;
    s->attachment = a;
    __atomic_store_n(&s->incarnation, a->incarnation, __ATOMIC_RELAXED);
    tell_untold(s);
    return 0;
}

int session_attach(struct cairn_session *s, int64_t retry_ns, int64_t limit_ns, struct attachment **ret_attachment,
                   struct cairn_error *err)
{
    int64_t latest = deadline_in_ms(s->timeout_ms);

    if (retry_ns > latest)
        latest = retry_ns;
    pthread_mutex_lock(&s->lock);
    int r = wait_for_attacher(s, limit_ns < latest ? limit_ns : latest, err);
    if (r == 0 && s->attachment && channel_is_dead(s->attachment->channel))
        retire(s);
    if (r == 0 && !s->attachment)
        r = attach_anew(s, retry_ns, limit_ns, err);
    if (r == 0) {
        s->attachment->refs++;
        *ret_attachment = s->attachment;
    }
    pthread_mutex_unlock(&s->lock);
    return r;
}

struct attachment *session_attached(struct cairn_session *s)
{
    pthread_mutex_lock(&s->lock);
    struct attachment *a = s->attachment;
    if (a)
        a->refs++;
    pthread_mutex_unlock(&s->lock);
    return a;
}

/* Lock held. */
static struct hash128 *find_known(struct attachment *a, struct hash128 digest)
{
    unsigned n = a->nknown < SESSION_KNOWN_LAYOUTS ? a->nknown : SESSION_KNOWN_LAYOUTS;

    for (unsigned i = 0; i < n; i++)
        if (a->known[i].low == digest.low && a->known[i].high == digest.high)
            return &a->known[i];
    return NULL;
}

bool attachment_knows(struct cairn_session *s, struct attachment *a, struct hash128 digest)
{
    pthread_mutex_lock(&s->lock);
    bool known = find_known(a, digest) != NULL;
    pthread_mutex_unlock(&s->lock);
    return known;
}

void attachment_learn(struct cairn_session *s, struct attachment *a, struct hash128 digest)
{
    pthread_mutex_lock(&s->lock);
    if (!find_known(a, digest))
        a->known[a->nknown++ % SESSION_KNOWN_LAYOUTS] = digest;
    pthread_mutex_unlock(&s->lock);
}

void attachment_forget(struct cairn_session *s, struct attachment *a, struct hash128 digest)
{
    pthread_mutex_lock(&s->lock);
    struct hash128 *known = find_known(a, digest);
    if (known)
        *known = (struct hash128){0}; /* no layout's digest but by a chance of 2^-128 */
    pthread_mutex_unlock(&s->lock);
}
