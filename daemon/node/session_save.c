/* SPDX-License-Identifier: Apache-2.0 */
/* A session's saves: from BEGIN to the last event.
 *
 *     BEGIN --room--> GRANTED --(PARTS ... SUMS) FILLED--> DRAINING --COMMITTED or failed--> ended
 *        \--no room: WAITING--/ \--drop, death before filled: dropped
 *
 * A client whose copies go on behind seal says with PARTS what is in place: that is encoded and stored before FILLED,
 * but counts for nothing. A save that is dropped drops what was stored with it.
 *
 * A save outlives its session once its snapshot is filled: it holds the arena and its layout until the job says that
 * nobody reads them any more. */
#include "daemon/node/internal.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/units.h"
#include "daemon/io/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct session_save {
    struct list link;             /* in session, while that lives */
    struct session *session;      /* NULL once the session is over */
    struct arena *arena;          /* referenced */
    struct shared_layout *layout; /* referenced */
    struct snapshot *snapshot;    /* NULL before the grant */
    struct rank_save *rank_save;  /* NULL once it ended */
    struct hash128 *sums;         /* of its parts at their source; owned, NULL: not known */
    uint32_t in_place;            /* parts that its client said are, before it is filled */
    uint64_t step;
    uint32_t begin_id; /* of the request that waits for room */
    bool waiting;
    bool filled;
    bool committed;
    bool failed;
    bool ended;       /* the job does not read the pages any more */
    bool client_done; /* the client does not write them any more */
    int state;        /* enum cairn_save_state that was reached last */
    struct arena_waiter waiter;
    struct loop_timer patience; /* how long it may wait for room */
};

/* ---- events of a save ------------------------------------------------------------------------ */

static void save_send_event(struct session_save *sv, int state, int code, const struct cairn_error *err)
{
    struct local_event m = {.save = sv->snapshot ? sv->snapshot->save : 0, .state = state, .code = code};

    if (!sv->session || !sv->snapshot)
        return;
    local_header_init(&m.h, LOCAL_EVENT, sizeof m, 0);
    if (code < 0)
        snprintf(m.message, sizeof m.message, "%s", err && err->message[0] ? err->message : cairn_code_name(code));
    session_send(sv->session, &m, sizeof m, NULL, 0);
}

static void save_stop_waiting(struct session_save *sv)
{
    sv->waiting = false;
    arena_wait_cancel(&sv->waiter);
    loop_timer_cancel(sv->patience.arg, &sv->patience);
}

static void save_on_state(void *arg, int state, int code, const struct cairn_error *err)
{
    struct session_save *sv = arg;

    if (code == 0 && state > sv->state)
        sv->state = state;
    if (code == 0 && state == CAIRN_DURABLE && sv->snapshot)
        snapshot_shard_durable(sv->snapshot);

    sv->committed |= code == 0 && state == CAIRN_COMMITTED;
    sv->failed |= code < 0;
    if (code < 0 && sv->waiting && sv->session) {
        struct session *s = sv->session;
        save_stop_waiting(sv);
        session_answer_error(s, sv->begin_id, code, err);
        return;
    }
    save_send_event(sv, state, code, err);
}

static void save_on_durable(void *arg, uint32_t first_part, uint32_t nparts)
{
    struct session_save *sv = arg;

    snapshot_durable(sv->snapshot, first_part, nparts);
}

/* The one place where a save ends. Pages that were granted and neither filled nor given up may still be written to by
 * the client's copy: they stay out of circulation until it says so or its process ends. */
static void save_release(struct session_save *sv)
{
    if (!sv->ended || (sv->session && sv->snapshot && !sv->filled && !sv->client_done))
        return;
    if (sv->waiting)
        save_stop_waiting(sv);
    list_remove(&sv->link);
    if (sv->snapshot) {
        sv->snapshot->owner = NULL;
        snapshot_end(sv->snapshot, sv->committed);
    }
    shared_layout_unref(sv->layout);
    arena_unref(sv->arena);
    free(sv->sums);
    free(sv);
}

/* Its process will not ask for it here; what is stored is read from the peers. Should this daemon die before the other
 * ranks are durable, the checkpoint is aborted: better than to refuse a rank for want of memory. */
void session_save_let_go(void *owner)
{
    struct session_save *sv = owner;

    if (sv->session || !sv->snapshot || !sv->rank_save || !save_is_stored(sv->rank_save))
        return;
    sv->snapshot->owner = NULL;
    snapshot_end(TAKE_PTR(sv->snapshot), false);
    arena_unref(TAKE_PTR(sv->arena));
}

static void save_on_ended(void *arg)
{
    struct session_save *sv = arg;

    sv->ended = true;
    sv->rank_save = NULL;
    save_release(sv);
}

static bool save_find_base(void *arg, uint64_t step, uint64_t incarnation, uint32_t first_part, uint32_t nparts,
                           const char **ret_plain)
{
    const struct session_save *sv = arg;

    return sv->snapshot && snapshot_base(sv->snapshot, step, incarnation, first_part, nparts, ret_plain);
}

static const struct save_events save_events = {save_on_state, save_on_durable, save_on_ended, save_find_base};

/* ---- BEGIN ----------------------------------------------------------------------------------- */

static int save_answer_grant(struct session_save *sv, struct cairn_error *err)
{
    size_t room = sizeof(struct local_grant) + LOCAL_MAX_RUNS * sizeof(struct local_run);
    _cleanup_free_ struct local_grant *m = calloc(1, room);

    if (!m)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a grant");
    int n = snapshot_runs(sv->snapshot, m->runs, LOCAL_MAX_RUNS);
    if (n < 0)
        return cairn_fail(err, CAIRN_E_BUSY,
                          "the arena's free pages lie in more than %d pieces: wait for earlier saves", LOCAL_MAX_RUNS);
    m->save = sv->snapshot->save;
    m->filled_word = sv->snapshot->word;
    m->nruns = (uint32_t)n;
    size_t len = sizeof *m + (size_t)n * sizeof(struct local_run);
    local_header_init(&m->h, LOCAL_GRANT, len, sv->begin_id);
    session_send(sv->session, m, len, NULL, 0);
    return 0;
}

static int save_try_grant(struct session_save *sv, struct cairn_error *err)
{
    int r = arena_grant(sv->arena, sv->layout, sv->step, member_incarnation(sv->session->member), &sv->snapshot, err);

    if (r < 0)
        return r;
    r = save_answer_grant(sv, err);
    if (r < 0) {
        snapshot_end(TAKE_PTR(sv->snapshot), false);
        return r;
    }
    sv->snapshot->owner = sv;
    return 0;
}

static void save_give_up(struct session_save *sv, const char *why)
{
    sv->client_done = true;
    if (sv->ended)
        save_release(sv);
    else if (!sv->failed)
        save_drop(sv->rank_save, why);
}

static void save_refuse(struct session_save *sv, int code, const struct cairn_error *err)
{
    session_answer_error(sv->session, sv->begin_id, code, err);
    save_give_up(sv, err->message);
}

static void save_retry(struct arena_waiter *w)
{
    struct session_save *sv = w->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;
    int r = save_try_grant(sv, &err);

    if (r == CAIRN_E_BUSY) {
        arena_wait(sv->arena, &sv->waiter);
        return;
    }
    sv->waiting = false;
    loop_timer_cancel(sv->session->node->deps.loop, &sv->patience);
    if (r < 0)
        save_refuse(sv, r, &err);
}

static void save_patience_over(struct loop_timer *t)
{
    struct session_save *sv = container_of(t, struct session_save, patience);
    struct cairn_error err = CAIRN_ERROR_INIT;

    sv->waiting = false;
    arena_wait_cancel(&sv->waiter);
    cairn_fail(&err, CAIRN_E_BUSY,
               "step %llu found no room in the arena of rank %u within its time: %u of %u MiB are free",
               (unsigned long long)sv->step, sv->arena->rank, sv->arena->nfree + sv->arena->nkept, sv->arena->npages);
    save_refuse(sv, CAIRN_E_BUSY, &err);
}

static void hurry_saves(struct session *s, int why)
{
    list_for_each (it, &s->saves) {
        struct session_save *sv = container_of(it, struct session_save, link);
        if (sv->rank_save && sv->filled)
            save_hurry(sv->rank_save, why);
    }
}

static void save_wait_for_room(struct session_save *sv, uint32_t wait_ms)
{
    struct loop *loop = sv->session->node->deps.loop;

    hurry_saves(sv->session, CAIRN_PACE_ROOM);
    sv->waiting = true;
    sv->waiter = (struct arena_waiter){.retry = save_retry, .arg = sv};
    list_init(&sv->waiter.link);
    arena_wait(sv->arena, &sv->waiter);
    sv->patience = (struct loop_timer){.fire = save_patience_over, .arg = loop};
    loop_timer_after(loop, &sv->patience, wait_ms);
}

static struct session_save *session_save_new(struct session *s, const struct local_begin *m, struct shared_layout *l)
{
    struct session_save *sv = calloc(1, sizeof *sv);

    if (!sv)
        return NULL;
    sv->session = s;
    sv->arena = arena_ref(s->arena);
    sv->layout = shared_layout_ref(l);
    sv->step = m->step;
    sv->begin_id = m->h.id;
    list_push_back(&s->saves, &sv->link);
    return sv;
}

void session_on_begin(struct session *s, const struct local_begin *m)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct shared_layout *l = session_find_layout(s, m->digest_low, m->digest_high);
    struct session_save *sv = NULL;
    int r = 0;

    if (!l)
        r = cairn_fail(&err, CAIRN_E_NOT_FOUND, "step %llu names a layout that was not sent",
                       (unsigned long long)m->step);
    else if (m->step >= CAIRN_LATEST_FINITE)
        r = cairn_fail(&err, CAIRN_E_INVAL, "step %llu is reserved", (unsigned long long)m->step);
    else if (!(sv = session_save_new(s, m, l)))
        r = cairn_fail(&err, CAIRN_E_NOMEM, "allocate a save");
    if (r == 0) {
        r = save_begin(s->member, m->step, &save_events, sv, &sv->rank_save, &err);
        if (r < 0)
            save_on_ended(sv);
    }
    if (r < 0) {
        session_answer_error(s, m->h.id, r, &err);
        return;
    }
    r = save_try_grant(sv, &err);
    if (r == CAIRN_E_BUSY && m->wait_ms > 0)
        save_wait_for_room(sv, m->wait_ms);
    else if (r < 0)
        save_refuse(sv, r, &err);
}

/* ---- FILLED ---------------------------------------------------------------------------------- */

static struct session_save *session_find_save(struct session *s, uint64_t save, uint64_t step)
{
    list_for_each (it, &s->saves) {
        struct session_save *sv = container_of(it, struct session_save, link);
        if (save ? sv->snapshot && sv->snapshot->save == save : sv->step == step)
            return sv;
    }
    return NULL;
}

static struct save_image save_image(const struct session_save *sv)
{
    return (struct save_image){&sv->layout->layout, arena_page(sv->arena, 0), sv->snapshot->pages, sv->layout->digest};
}

static void save_start_drain(struct session_save *sv)
{
    struct save_image image = save_image(sv);

    sv->filled = true;
    sv->state = CAIRN_SNAPSHOT;
    snapshot_filled(sv->snapshot);
    save_send_event(sv, CAIRN_SNAPSHOT, 0, NULL);
    save_filled(sv->rank_save, &image);
}

void session_on_filled(struct session *s, const struct local_save *m)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct session_save *sv = session_find_save(s, m->save, 0);
    int r = 0;

    if (!sv)
        r = cairn_fail(&err, CAIRN_E_ABORTED, "save %llu is not under way any more", (unsigned long long)m->save);
    else if (sv->filled)
        r = cairn_fail(&err, CAIRN_E_EXISTS, "step %llu was announced as filled before", (unsigned long long)sv->step);
    else if (sv->failed)
        r = cairn_fail(&err, CAIRN_E_ABORTED, "step %llu was aborted before it was filled",
                       (unsigned long long)sv->step);
    else if (!snapshot_is_filled(sv->snapshot))
        r = cairn_fail(&err, CAIRN_E_PROTOCOL,
                       "step %llu is announced as filled, its word in the arena does not say so",
                       (unsigned long long)sv->step);
    if (r < 0) {
        session_answer_error(s, m->h.id, r, &err);
        if (sv && !sv->filled) {
            sv->client_done = true;
            save_release(sv);
        }
        return;
    }
    session_answer_ok(s, m->h.id);
    save_start_drain(sv);
}

/* ---- PARTS, SUMS ----------------------------------------------------------------------------- */

/* Whether the client may still say something of the save before it is filled; else why not. */
static int save_check_filling(const struct session_save *sv, uint64_t save, struct cairn_error *err)
{
    if (!sv)
        return cairn_fail(err, CAIRN_E_ABORTED, "save %llu is not under way any more", (unsigned long long)save);
    if (sv->filled)
        return cairn_fail(err, CAIRN_E_EXISTS, "step %llu is filled already", (unsigned long long)sv->step);
    if (sv->failed || !sv->rank_save)
        return cairn_fail(err, CAIRN_E_ABORTED, "step %llu was aborted before it was filled",
                          (unsigned long long)sv->step);
    return 0;
}

void session_on_parts(struct session *s, const struct local_parts *m)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct session_save *sv = session_find_save(s, m->save, 0);
    int r = save_check_filling(sv, m->save, &err);

    if (r < 0) {
        session_answer_error(s, m->h.id, r, &err);
        return;
    }
    uint32_t nparts = sv->layout->layout.nparts;
    if (m->parts > nparts || m->parts < sv->in_place) {
        cairn_fail(&err, CAIRN_E_PROTOCOL, "PARTS: %u parts of step %llu are in place, after %u of %u", m->parts,
                   (unsigned long long)sv->step, sv->in_place, nparts);
        session_reject(s, &err);
        return;
    }
    struct save_image image = save_image(sv);
    sv->in_place = m->parts;
    session_answer_ok(s, m->h.id);
    save_in_place(sv->rank_save, &image, m->parts);
}

/* At most 16 bytes a MiB, of memory: it is read at once. Copied first, whatever its client does to it then; a file that
 * could be changed or cut meanwhile is none that a client of ours sends. */
static int sums_read(int fd, uint32_t nparts, struct hash128 **ret_sums, struct cairn_error *err)
{
    size_t len = nparts * sizeof(struct local_sum);
    int seals = fcntl(fd, F_GET_SEALS), need = F_SEAL_SHRINK | F_SEAL_WRITE;
    _cleanup_free_ struct hash128 *sums = NULL;
    struct stat st;

    _Static_assert(sizeof(struct local_sum) == sizeof(struct hash128), "sums are taken as they come");
    if (fstat(fd, &st) < 0)
        return cairn_fail_errno(err, errno, "look at the descriptor of SUMS");
    if (seals < 0 || (seals & need) != need)
        return cairn_fail(err, CAIRN_E_PROTOCOL,
                          "SUMS: its descriptor is no memfd sealed against writing and shrinking");
    if ((uint64_t)st.st_size != len)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "SUMS: %lld bytes for %u parts, %zu are expected",
                          (long long)st.st_size, nparts, len);
    sums = malloc(len ? len : 1);
    if (!sums)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the sums of %u parts", nparts);
    ssize_t n = pread(fd, sums, len, 0);
    if (n < 0)
        return cairn_fail_errno(err, errno, "read the sums of %u parts", nparts);
    if ((size_t)n != len)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "SUMS: its memfd gave %zd of %zu bytes", n, len);
    *ret_sums = TAKE_PTR(sums);
    return 0;
}

void session_on_sums(struct session *s, const struct local_sums *m, int fd)
{
    _cleanup_close_ int sums_fd = fd;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct session_save *sv = session_find_save(s, m->save, 0);
    int r = save_check_filling(sv, m->save, &err);

    if (r == 0 && sv->sums)
        r = cairn_fail(&err, CAIRN_E_PROTOCOL, "SUMS of step %llu come a second time", (unsigned long long)sv->step);
    if (r == 0)
        r = sums_read(sums_fd, sv->layout->layout.nparts, &sv->sums, &err);
    if (r == CAIRN_E_PROTOCOL) {
        session_reject(s, &err);
    } else if (r < 0) {
        session_answer_error(s, m->h.id, r, &err);
    } else {
        session_answer_ok(s, m->h.id);
        save_sums(sv->rank_save, sv->sums, m->seed);
    }
}

/* ---- DROP, WHY, WAIT ------------------------------------------------------------------------- */

/* A rank that gives a step up before it began tells the others through an empty save of that step. */
static void session_drop_unbegun(struct session *s, const struct local_drop *m)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct local_begin begin = {.h = m->h, .step = m->step};
    struct shared_layout *none = calloc(1, sizeof *none);

    if (!none)
        return;
    none->refs = 1;
    list_init(&none->link);
    cairn_layout_init(&none->layout);
    struct session_save *sv = session_save_new(s, &begin, none);
    shared_layout_unref(none);
    if (!sv)
        return;
    if (save_begin(s->member, m->step, &save_events, sv, &sv->rank_save, &err) < 0)
        save_on_ended(sv); /* decided already, or fenced: nobody waits for this rank */
    else
        save_drop(sv->rank_save, "the rank gave the step up");
}

void session_on_drop(struct session *s, const struct local_drop *m)
{
    struct session_save *sv = session_find_save(s, m->save, m->step);

    if (!sv && m->save == 0)
        session_drop_unbegun(s, m);
    else if (sv && !sv->filled)
        save_give_up(sv, "the rank gave the step up");
    session_answer_ok(s, m->h.id);
}

void session_on_why(struct session *s, const struct local_save *m)
{
    struct local_text t = {0};
    struct session_save *sv = session_find_save(s, m->save, 0);

    local_header_init(&t.h, LOCAL_TEXT, sizeof t, m->h.id);
    if (sv && sv->rank_save)
        save_why(sv->rank_save, t.text, sizeof t.text);
    else
        snprintf(t.text, sizeof t.text, "this daemon does not know the save any more");
    session_send(s, &t, sizeof t, NULL, 0);
}

/* Of a save that is decided there is nothing to hurry. */
void session_on_wait(struct session *s, const struct local_save *m)
{
    struct session_save *sv = session_find_save(s, m->save, 0);

    if (sv && sv->rank_save)
        save_hurry(sv->rank_save, CAIRN_PACE_WAITED);
    session_answer_ok(s, m->h.id);
}

/* Pages that a living process may still be writing to are not known to be quiet. */
static void save_left_unfilled(struct session_save *sv, bool alive)
{
    if (sv->snapshot && alive)
        sv->arena->unsure = true;
    save_give_up(sv, "its process ended before the snapshot was filled");
}

void session_leave_saves(struct session *s)
{
    bool alive = !process_ended(s->pidfd);

    hurry_saves(s, CAIRN_PACE_ENDING);
    list_for_each_safe (it, &s->saves) {
        struct session_save *sv = container_of(it, struct session_save, link);
        if (sv->waiting)
            save_stop_waiting(sv);
        list_remove(&sv->link);
        sv->session = NULL;
        if (!sv->filled && !sv->failed && sv->snapshot && snapshot_is_filled(sv->snapshot))
            save_start_drain(sv);                                  /* it died between its last byte and telling us */
        else if (!sv->filled && (sv->ended || !s->node->stopping)) /* what is begun, the next daemon may go on with */
            save_left_unfilled(sv, alive);
    }
}

/* ---- saves of an arena that came back -------------------------------------------------------- */

static struct session_save *save_for_snapshot(struct session *s, struct snapshot *snap)
{
    struct session_save *sv = calloc(1, sizeof *sv);

    if (!sv)
        return NULL;
    sv->session = s;
    sv->arena = arena_ref(snap->arena);
    sv->layout = shared_layout_ref(snap->layout);
    sv->step = snap->step;
    sv->snapshot = snap;
    sv->snapshot->owner = sv;
    list_init(&sv->link);
    if (s)
        list_push_back(&s->saves, &sv->link);
    return sv;
}

static int save_go_on(struct session_save *sv, struct member *member, struct cairn_error *err)
{
    struct snapshot *snap = sv->snapshot;
    bool filled = snap->state == SNAPSHOT_FILLED || snapshot_is_filled(snap);

    if (snap->incarnation != member_incarnation(member))
        return cairn_fail(err, CAIRN_E_FENCED, "incarnation %llu has taken over from %llu",
                          (unsigned long long)member_incarnation(member), (unsigned long long)snap->incarnation);
    if (!snapshot_holds(snap, 0, snap->layout->layout.nparts))
        return cairn_fail(err, CAIRN_E_ABORTED, "pages of step %llu were given to a later save already",
                          (unsigned long long)snap->step);
    int r = save_resume(member, snap->step, snap->attempt, &save_events, sv, &sv->rank_save, err);
    if (r == 0 && filled)
        save_start_drain(sv);
    return r;
}

static void snapshot_go_on(struct session *s, struct snapshot *snap, struct member *member)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct session_save *sv = save_for_snapshot(s, snap);
    int r = sv ? save_go_on(sv, member, &err) : cairn_fail(&err, CAIRN_E_NOMEM, "allocate a save");

    if (r == 0) {
        log_line(LOG_NOTICE, "job %s rank %u: the save of step %llu goes on", snap->arena->job, snap->arena->rank,
                 (unsigned long long)snap->step);
        return;
    }
    if (r < 0)
        log_line(LOG_WARNING, "job %s rank %u: the save of step %llu cannot go on: %s", snap->arena->job,
                 snap->arena->rank, (unsigned long long)snap->step, err.message);
    if (!sv)
        return;
    sv->committed = r == 1;
    sv->failed = r < 0;
    sv->filled |= snap->state == SNAPSHOT_FILLED;
    sv->client_done |= r == 1;
    save_on_ended(sv); /* one that is being copied keeps its pages until the client is told */
}

void saves_go_on(struct session *s, struct arena *arena, struct member *member)
{
    list_for_each_safe (it, &arena->snapshots) {
        struct snapshot *snap = container_of(it, struct snapshot, link);
        struct session_save *sv = snap->owner;
        bool filled = snap->state != SNAPSHOT_GRANTED || snapshot_is_filled(snap);
        if (snap->state == SNAPSHOT_KEPT)
            continue;
        if (!sv && (s || filled)) {
            snapshot_go_on(s, snap, member);
        } else if (sv && s && !sv->session) {
            sv->session = s;
            list_push_back(&s->saves, &sv->link);
        }
    }
}

/* What became of a save that nobody works on any more. */
static int save_outcome(struct session *s, const struct local_resume *m, struct cairn_error *err)
{
    const struct snapshot *kept = arena_find(s->arena, m->save);

    if (kept && kept->state == SNAPSHOT_KEPT)
        return 1;
    int r = save_fate(s->member, m->step, err);
    if (r == CAIRN_E_NOT_FOUND)
        r = cairn_fail(err, CAIRN_E_ABORTED, "step %llu could not go on after the restart of cairnd (see its log)",
                       (unsigned long long)m->step);
    return r;
}

void session_on_resume(struct session *s, const struct local_resume *m)
{
    struct session_save *sv = session_find_save(s, m->save, 0);
    struct local_event e = {.save = m->save, .state = sv ? sv->state : CAIRN_COMMITTED};
    struct cairn_error err = CAIRN_ERROR_INIT;
    int r = sv && !sv->failed ? 0 : save_outcome(s, m, &err);

    if (r < 0) {
        session_answer_error(s, m->h.id, r, &err);
        if (sv && !sv->filled) {
            sv->client_done = true;
            save_release(sv);
        }
        return;
    }
    session_answer_ok(s, m->h.id);
    if (sv && sv->rank_save && !sv->failed && !sv->filled && snapshot_is_filled(sv->snapshot)) {
        save_start_drain(sv); /* filled after the arena came back: that sends the event */
        return;
    }
    if (e.state == 0)
        return; /* begun: it is for the client to fill it */
    local_header_init(&e.h, LOCAL_EVENT, sizeof e, 0);
    session_send(s, &e, sizeof e, NULL, 0);
}
