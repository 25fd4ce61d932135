/* SPDX-License-Identifier: Apache-2.0 */
#include "client/session.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/start.h"
#include "core/base/bytes.h"
#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/name.h"
#include "core/model/units.h"

#define DEFAULT_SOCKET "/run/cairn/cairnd.sock"
#define DEFAULT_TIMEOUT_MS 30000
#define MAX_COPY_THREADS 64
#define SESSION_OPTIONS_FIRST offsetof(struct cairn_session_options, device_staging_bytes) /* the first version's */

/* ---- checks ---------------------------------------------------------------------------------- */

int struct_check(const char *what, const void *given, size_t size, size_t known, struct cairn_error *err)
{
    const unsigned char *bytes = given;

    if (!given)
        return cairn_fail(err, CAIRN_E_INVAL, "%s is missing", what);
    if (size < known)
        return cairn_fail(err, CAIRN_E_INVAL, "%s.size is %zu, at least %zu is needed: set it to sizeof", what, size,
                          known);
    for (size_t i = known; i < size; i++)
        if (bytes[i])
            return cairn_fail(err, CAIRN_E_INVAL, "%s has fields that this libcairn does not know", what);
    return 0;
}

int struct_take(const char *what, void *ret, size_t known, size_t first, const void *given, size_t size,
                struct cairn_error *err)
{
    int r = struct_check(what, given, size, size < known ? first : known, err);

    if (r < 0)
        return r;
    memset(ret, 0, known);
    memcpy(ret, given, size < known ? size : known);
    return 0;
}

/* Asked for every tensor: without a system call where that is possible. */
bool session_forked(const struct cairn_session *s)
{
    return s->ours ? !*(const volatile char *)s->ours : s->owner != getpid();
}

/* A page that holds a 1 here and a 0 in every forked child. */
static const char *page_of_ours(void)
{
    size_t len = (size_t)sysconf(_SC_PAGESIZE);
    char *page = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (page == MAP_FAILED)
        return NULL;
    if (madvise(page, len, MADV_WIPEONFORK) < 0) {
        munmap(page, len);
        return NULL;
    }
    *page = 1;
    return page;
}

int session_check(const struct cairn_session *s, struct cairn_error *err)
{
    if (!s)
        return cairn_fail(err, CAIRN_E_INVAL, "there is no session");
    if (session_forked(s))
        return cairn_fail(err, CAIRN_E_FORKED, "the session was opened by process %d: a forked child opens its own",
                          (int)s->owner);
    return 0;
}

/* ---- the arena ------------------------------------------------------------------------------- */

int session_hold_arena(struct cairn_session *s, const struct attachment *a, struct arena **ret_arena,
                       struct cairn_error *err)
{
    pthread_mutex_lock(&s->lock);
    bool gone = !s->arena || s->arena->serial != a->arena_serial;
    if (!gone) {
        s->arena->refs++;
        *ret_arena = s->arena;
    }
    pthread_mutex_unlock(&s->lock);
    return gone ? cairn_fail(err, CAIRN_E_UNAVAILABLE, "the connection to cairnd at %s was lost", s->socket_path) : 0;
}

void session_count_writer(struct cairn_session *s, struct arena *arena, int change)
{
    pthread_mutex_lock(&s->lock);
    arena->writers += (unsigned)change;
    pthread_mutex_unlock(&s->lock);
}

void session_release_arena(struct cairn_session *s, struct arena *arena)
{
    if (!arena)
        return;
    pthread_mutex_lock(&s->lock);
    bool last = --arena->refs == 0;
    pthread_mutex_unlock(&s->lock);
    if (last)
        arena_free(arena, false); /* to unpin it may take a while */
}

/* ---- the plan -------------------------------------------------------------------------------- */

struct plan *session_plan(struct cairn_session *s)
{
    pthread_mutex_lock(&s->lock);
    struct plan *p = s->plan;
    if (p)
        p->refs++;
    pthread_mutex_unlock(&s->lock);
    return p;
}

static void plan_unref(struct plan *p)
{
    if (p && --p->refs == 0)
        plan_free(p);
}

void session_keep_plan(struct cairn_session *s, struct plan *plan)
{
    pthread_mutex_lock(&s->lock);
    plan_unref(s->plan);
    plan->refs++;
    plan->serial = ++s->plans;
    s->plan = plan;
    pthread_mutex_unlock(&s->lock);
}

void session_release_plan(struct cairn_session *s, struct plan *plan)
{
    bool forked = session_forked(s); /* a child may have inherited the lock held, and shares its copy with nobody */

    if (!forked)
        pthread_mutex_lock(&s->lock);
    plan_unref(plan);
    if (!forked)
        pthread_mutex_unlock(&s->lock);
}

/* ---- the shares of devices ------------------------------------------------------------------- */

void session_release_shares(struct cairn_session *s, struct shares *shares)
{
    bool forked = session_forked(s);

    if (!shares)
        return;
    if (!forked)
        pthread_mutex_lock(&s->lock);
    bool last = --shares->refs == 0;
    if (!forked)
        pthread_mutex_unlock(&s->lock);
    if (!last)
        return;
    struct plan *plan = shares->plan;
    shares_free(shares, forked);
    session_release_plan(s, plan);
}

/* Another reference to the newest; NULL: there is none yet. */
static struct shares *newest_shares(struct cairn_session *s)
{
    pthread_mutex_lock(&s->lock);
    struct shares *shares = s->shares;
    if (shares)
        shares->refs++;
    pthread_mutex_unlock(&s->lock);
    return shares;
}

static void keep_shares(struct cairn_session *s, struct shares *shares)
{
    pthread_mutex_lock(&s->lock);
    struct shares *before = s->shares;
    shares->refs++;
    s->shares = shares;
    pthread_mutex_unlock(&s->lock);
    session_release_shares(s, before);
}

int session_shares(struct cairn_session *s, struct plan *plan, const struct image_source *sources,
                   struct shares **ret_shares, struct cairn_error *err)
{
    *ret_shares = newest_shares(s);
    if (*ret_shares && shares_fit(*ret_shares, plan, sources))
        return 0;
    session_release_shares(s, *ret_shares);
    *ret_shares = NULL;
    pthread_mutex_lock(&s->lock);
    plan->refs++;
    pthread_mutex_unlock(&s->lock);
    int r = shares_make(&s->devices, plan, sources, s->flags & CAIRN_PACK, ret_shares, err);
    if (r == 0)
        keep_shares(s, *ret_shares);
    else
        session_release_plan(s, plan);
    return r;
}

/* ---- open ------------------------------------------------------------------------------------ */

static int check_rank(const struct cairn_session_options *o, struct cairn_error *err)
{
    if (o->world_size == 0 || o->world_size > CAIRN_MAX_WORLD || o->rank >= o->world_size)
        return cairn_fail(err, CAIRN_E_INVAL, "rank %u of a world of %u", o->rank, o->world_size);
    if (o->arena_bytes == 0 || o->arena_bytes > CAIRN_MAX_IMAGE)
        return cairn_fail(err, CAIRN_E_INVAL, "arena_bytes is %llu, 1 to %llu are possible",
                          (unsigned long long)o->arena_bytes, (unsigned long long)CAIRN_MAX_IMAGE);
    return 0;
}

static int check_options(const struct cairn_session_options *o, struct cairn_error *err)
{
    int r;

    if (o->flags & ~(uint32_t)(CAIRN_OBSERVER | CAIRN_TAKE_OVER | CAIRN_TRACK | CAIRN_SOURCE_SUMS | CAIRN_PACK))
        return cairn_fail(err, CAIRN_E_INVAL, "unknown flags %#x", o->flags);
    if (o->flags & CAIRN_PACK && o->flags & CAIRN_TRACK)
        return cairn_fail(err, CAIRN_E_INVAL, "CAIRN_PACK and CAIRN_TRACK do not go together: choose one");
    if (o->copy_threads > MAX_COPY_THREADS)
        return cairn_fail(err, CAIRN_E_INVAL, "copy_threads is %u, at most %d are possible", o->copy_threads,
                          MAX_COPY_THREADS);
    bool observer = o->flags & CAIRN_OBSERVER;
    if (!o->job && !observer)
        return cairn_fail(err, CAIRN_E_INVAL, "the job has no name");
    if (o->job && (r = cairn_name_check("job", o->job, err)) < 0)
        return r;
    return observer ? 0 : check_rank(o, err);
}

static int fill_open(struct cairn_session *s, const struct cairn_session_options *o, struct cairn_error *err)
{
    struct local_open *m = &s->open;

    local_header_init(&m->h, LOCAL_OPEN, sizeof(*m), 0);
    m->flags = o->flags & ~(uint32_t)(CAIRN_TRACK | CAIRN_SOURCE_SUMS | CAIRN_PACK); /* the daemon need not know */
    m->timeout_ms = s->timeout_ms;
    if (o->job)
        (void)snprintf(m->job, sizeof(m->job), "%s", o->job); /* checked: it fits */
    if (session_is_observer(s))
        return 0;
    m->rank = o->rank;
    m->world_size = o->world_size;
    m->arena_bytes = round_up_u64(o->arena_bytes, CAIRN_PART);
    return start_id_find(o->start_id, o->world_size, m->start_id, err);
}

static int fill_notifier(struct cairn_session *s, struct cairn_error *err)
{
    struct epoll_event readable = {.events = EPOLLIN};

    s->notifier.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE);
    s->notifier.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (s->notifier.event_fd < 0 || s->notifier.epoll_fd < 0 ||
        epoll_ctl(s->notifier.epoll_fd, EPOLL_CTL_ADD, s->notifier.event_fd, &readable) < 0)
        return cairn_fail_errno(err, errno, "make the session's descriptor");
    return 0;
}

static int fill_session(struct cairn_session *s, const struct cairn_session_options *o, struct cairn_error *err)
{
    const char *path = o->socket_path ? o->socket_path : getenv("CAIRN_SOCKET");

    s->socket_path = strdup(path && *path ? path : DEFAULT_SOCKET);
    if (!s->socket_path)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a session");
    s->flags = o->flags;
    s->timeout_ms = o->timeout_ms ? o->timeout_ms : DEFAULT_TIMEOUT_MS;
    s->copy_threads = o->copy_threads ? o->copy_threads : 1;
    if (getrandom(&s->seed, sizeof(s->seed), 0) != (ssize_t)sizeof(s->seed))
        return cairn_fail_errno(err, errno, "draw a seed");
    int r = fill_open(s, o, err);
    if (r == 0)
        r = fill_notifier(s, err);
    if (r == 0 && o->flags & CAIRN_TRACK && !session_is_observer(s))
        r = tracker_new(&s->tracker, err);
    return r;
}

static void session_free(struct cairn_session *s, bool forked)
{
    tracker_free(s->tracker, forked);
    if (s->notifier.event_fd >= 0)
        close(s->notifier.event_fd);
    if (s->notifier.epoll_fd >= 0)
        close(s->notifier.epoll_fd);
    if (s->ours)
        munmap((void *)s->ours, (size_t)sysconf(_SC_PAGESIZE));
    free(s->socket_path);
    free(s->untold);
    free(s);
}

static int init_attached(struct cairn_session *s)
{
    pthread_condattr_t monotonic;
    int e = pthread_condattr_init(&monotonic);

    if (e)
        return e;
    e = pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    if (e == 0)
        e = pthread_cond_init(&s->attached, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return e;
}

static int init_locks(struct cairn_session *s, const struct cairn_session_options *o)
{
    int e = pthread_mutex_init(&s->lock, NULL);

    if (e)
        return e;
    e = init_attached(s);
    if (e)
        goto err_after_lock;
    e = completion_init(&s->completion);
    if (e)
        goto err_after_attached;
    e = devices_init(&s->devices, o->plugin_path, o->device_staging_bytes);
    if (e == 0)
        return 0;
    completion_free(&s->completion);
err_after_attached:
    pthread_cond_destroy(&s->attached);
err_after_lock:
    pthread_mutex_destroy(&s->lock);
    return e;
}

static int session_new(const struct cairn_session_options *o, struct cairn_session **ret_session,
                       struct cairn_error *err)
{
    struct cairn_session *s = calloc(1, sizeof(*s));

    if (!s)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a session");
    s->owner = getpid();
    s->ours = page_of_ours();
    s->notifier = (struct notifier){.epoll_fd = -1, .event_fd = -1};
    int r = fill_session(s, o, err);
    if (r == 0) {
        int e = init_locks(s, o);
        r = e ? cairn_fail_errno(err, e, "make a session's locks") : 0;
    }
    if (r < 0) {
        session_free(s, false);
        return r;
    }
    *ret_session = s;
    return 0;
}

int cairn_session_open(const struct cairn_session_options *options, struct cairn_session **ret_session,
                       struct cairn_error *err)
{
    struct cairn_session *s = NULL;
    struct attachment *a = NULL;
    struct cairn_session_options ours;
    int r = struct_take("cairn_session_options", &ours, sizeof(ours), SESSION_OPTIONS_FIRST, options,
                        options ? options->size : 0, err);

    if (r == 0)
        r = check_options(&ours, err);
    if (r == 0)
        r = session_new(&ours, &s, err);
    if (r < 0)
        return r;
    /* One try: who opens a session wants to hear at once that no daemon runs. */
    r = session_attach(s, 0, SESSION_NO_LIMIT, &a, err);
    session_detach(s, a);
    if (r < 0) {
        cairn_session_close(s);
        return cairn_wrap(err, r, "open a session");
    }
    *ret_session = s;
    return 0;
}

/* Copies did not end: a device may go on to write to the arena, and what is pinned must stay so. So the mapping, the
 * plugin and all that saves have of them are left behind on purpose; the daemon sees the connection's end, and that its
 * client may still be writing. */
static void leave_behind(struct cairn_session *s)
{
    s->devices.kept = true;
    if (s->attachment)
        shutdown(s->attachment->channel->fd, SHUT_RDWR);
}

void cairn_session_close(struct cairn_session *session)
{
    if (!session)
        return;
    bool forked = session_forked(session);

    if (!forked && !completion_stop(&session->completion, deadline_in_ms(session->timeout_ms))) {
        leave_behind(session);
        return;
    }
    attachment_free(session->attachment, forked);
    session_release_shares(session, session->shares);
    session_release_plan(session, session->plan);
    if (session->arena && --session->arena->refs == 0)
        arena_free(session->arena, forked);
    devices_free(&session->devices, forked);
    if (!forked) { /* a child may have inherited them in use */
        completion_free(&session->completion);
        pthread_cond_destroy(&session->attached);
        pthread_mutex_destroy(&session->lock);
    }
    session_free(session, forked);
}

int cairn_session_fd(const struct cairn_session *session)
{
    int r = session_check(session, NULL);

    return r < 0 ? r : session->notifier.epoll_fd;
}

uint64_t cairn_session_incarnation(const struct cairn_session *session)
{
    return session_check(session, NULL) < 0 ? 0 : __atomic_load_n(&session->incarnation, __ATOMIC_RELAXED);
}

uint64_t cairn_session_arena_bytes(struct cairn_session *session)
{
    if (session_check(session, NULL) < 0)
        return 0;
    pthread_mutex_lock(&session->lock);
    uint64_t bytes = session->arena ? session->arena->page_bytes : 0;
    pthread_mutex_unlock(&session->lock);
    return bytes;
}
