/* SPDX-License-Identifier: Apache-2.0 */
/* A session's saves: from BEGIN to the last event.
 *
 *     BEGIN --room--> GRANTED --(PARTS ... SUMS) FILLED--> DRAINING --COMMITTED or failed--> ended
 *        \--no room: WAITING--/ \--drop, death before filled: dropped
 *
 * A client whose copies go on behind seal says with PARTS what is in place: that is encoded and stored before FILLED,
 * but counts for nothing. A save that is dropped drops what was stored with it. One whose device may pack says PACKED
 * instead, of all its parts: without that nobody knows what lies in its pages, so it is not filled before, and another
 * daemon does not go on with it.
 *
 * A save outlives its session once its snapshot is filled: it holds the arena and its layout until the job says that
 * nobody reads them any more. */
#include "daemon/node/session_save.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "daemon/node/codecs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/* Pages that were granted and neither filled nor given up may still be written to by
 * the client's copy: they stay out of circulation until it says so or its process ends. */
void session_save_release(struct session_save *sv)
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
    free(sv->packed);
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

void session_save_ended(void *arg)
{
    struct session_save *sv = arg;

    sv->ended = true;
    sv->rank_save = NULL;
    session_save_release(sv);
}

static bool save_find_base(void *arg, uint64_t step, uint64_t incarnation, uint32_t first_part, uint32_t nparts,
                           const char **ret_plain)
{
    const struct session_save *sv = arg;

    return sv->snapshot && snapshot_base(sv->snapshot, step, incarnation, first_part, nparts, ret_plain);
}

const struct save_events session_save_events = {save_on_state, save_on_durable, session_save_ended, save_find_base};

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
    if (sv->packed)
        snapshot_may_be_packed(sv->snapshot);
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
        session_save_release(sv);
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

/* Before it begins. */
static int save_allow_packed(struct session_save *sv, struct cairn_error *err)
{
    struct node *node = sv->session->node;
    uint32_t n = sv->layout->layout.nparts;

    if (!codecs_packer(links_codecs(node->links)))
        return cairn_fail(err, CAIRN_E_UNSUPPORTED,
                          "cairnd on node %s takes no packed parts: its codec \"float\" is not there, or not among "
                          "[node] codecs",
                          node->id);
    sv->packed = calloc(n ? n : 1, sizeof *sv->packed);
    if (!sv->packed)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the lengths of %u parts", n);
    return arena_make_writable(sv->arena, err);
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
    if (r == 0 && (m->flags & LOCAL_BEGIN_PACKED)) {
        r = save_allow_packed(sv, &err);
        if (r < 0)
            session_save_ended(sv);
    }
    if (r == 0) {
        r = save_begin(s->member, m->step, &session_save_events, sv, &sv->rank_save, &err);
        if (r < 0)
            session_save_ended(sv);
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

struct session_save *session_save_find(struct session *s, uint64_t save, uint64_t step)
{
    list_for_each (it, &s->saves) {
        struct session_save *sv = container_of(it, struct session_save, link);
        if (save ? sv->snapshot && sv->snapshot->save == save : sv->step == step)
            return sv;
    }
    return NULL;
}

struct save_image session_save_image(const struct session_save *sv)
{
    return (struct save_image){.layout = &sv->layout->layout,
                               .arena = sv->arena->map + ARENA_CONTROL,
                               .pages = sv->snapshot->pages,
                               .digest = sv->layout->digest,
                               .packed = sv->packed};
}

bool session_save_is_known(const struct session_save *sv)
{
    return !sv->packed || sv->in_place == sv->layout->layout.nparts;
}

bool session_save_is_full(const struct session_save *sv)
{
    return snapshot_is_filled(sv->snapshot) && session_save_is_known(sv);
}

void session_save_start_drain(struct session_save *sv)
{
    struct save_image image = session_save_image(sv);

    sv->filled = true;
    sv->state = CAIRN_SNAPSHOT;
    snapshot_filled(sv->snapshot);
    save_send_event(sv, CAIRN_SNAPSHOT, 0, NULL);
    save_filled(sv->rank_save, &image);
}

void session_save_end_unfilled(struct session *s, struct session_save *sv, uint32_t id, int code,
                               const struct cairn_error *err)
{
    session_answer_error(s, id, code, err);
    if (!sv || sv->filled)
        return;
    sv->client_done = true;
    session_save_release(sv);
}

void session_on_filled(struct session *s, const struct local_save *m)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct session_save *sv = session_save_find(s, m->save, 0);
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
    else if (!session_save_is_known(sv)) {
        cairn_fail(&err, CAIRN_E_PROTOCOL, "FILLED: PACKED has said of %u of the %u parts of step %llu how they lie",
                   sv->in_place, sv->layout->layout.nparts, (unsigned long long)sv->step);
        session_reject(s, &err);
        return;
    }
    if (r < 0) {
        session_save_end_unfilled(s, sv, m->h.id, r, &err);
        return;
    }
    session_answer_ok(s, m->h.id);
    session_save_start_drain(sv);
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
    if (save_begin(s->member, m->step, &session_save_events, sv, &sv->rank_save, &err) < 0)
        session_save_ended(sv); /* decided already, or fenced: nobody waits for this rank */
    else
        save_drop(sv->rank_save, "the rank gave the step up");
}

void session_on_drop(struct session *s, const struct local_drop *m)
{
    struct session_save *sv = session_save_find(s, m->save, m->step);

    if (!sv && m->save == 0)
        session_drop_unbegun(s, m);
    else if (sv && !sv->filled)
        save_give_up(sv, "the rank gave the step up");
    session_answer_ok(s, m->h.id);
}

void session_on_why(struct session *s, const struct local_save *m)
{
    struct local_text t = {0};
    struct session_save *sv = session_save_find(s, m->save, 0);

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
    struct session_save *sv = session_save_find(s, m->save, 0);

    if (sv && sv->rank_save)
        save_hurry(sv->rank_save, CAIRN_PACE_WAITED);
    session_answer_ok(s, m->h.id);
}

/* Pages that a living process may still be writing to are not known to be quiet. */
static void save_left_unfilled(struct session_save *sv, bool alive)
{
    bool word = sv->snapshot && snapshot_is_filled(sv->snapshot);

    if (sv->snapshot && alive && !word)
        sv->arena->unsure = true;
    save_give_up(sv, word ? "its process ended before it had said how all parts were packed"
                          : "its process ended before the snapshot was filled");
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
        if (!sv->filled && !sv->failed && sv->snapshot && session_save_is_full(sv))
            session_save_start_drain(sv);                          /* it died between its last byte and telling us */
        else if (!sv->filled && (sv->ended || !s->node->stopping)) /* what is begun, the next daemon may go on with */
            save_left_unfilled(sv, alive);
    }
}
