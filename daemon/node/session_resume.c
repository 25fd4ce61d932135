/* SPDX-License-Identifier: Apache-2.0 */
/* Saves of an arena that came back: what an earlier daemon, or an earlier connection, began.
 *
 *     filled                 goes on, for its session or for nobody
 *     begun                  waits for its client, which fills it
 *     packed, not durable    lost: how its parts lie in their pages was told to the daemon that is gone */
#include "daemon/node/session_save.h"

#include "core/base/error.h"
#include "daemon/io/log.h"

#include <stdlib.h>

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

static int packed_is_lost(const struct session_save *sv, struct cairn_error *err)
{
    return cairn_fail(err, CAIRN_E_ABORTED,
                      "step %llu: it was packed by its device, and the daemon that knew how has gone",
                      (unsigned long long)sv->step);
}

/* It joined its checkpoint to tell the other ranks. Its pages are kept as long as its client may be writing to them:
 * one that gave it up while no daemon was there says nothing of it any more. */
static void save_lose(struct session_save *sv, bool filled, struct cairn_error *err)
{
    packed_is_lost(sv, err);
    sv->lost = sv->failed = true;
    sv->filled = filled;
    sv->client_done = !sv->session || !sv->session->copying;
    save_drop(sv->rank_save, err->message);
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
    int r = save_resume(member, snap->step, snap->attempt, &session_save_events, sv, &sv->rank_save, err);
    if (r == 0 && snap->packed)
        save_lose(sv, filled, err);
    else if (r == 0 && filled)
        session_save_start_drain(sv);
    return r;
}

static void snapshot_go_on(struct session *s, struct snapshot *snap, struct member *member)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct session_save *sv = save_for_snapshot(s, snap);
    int r = sv ? save_go_on(sv, member, &err) : cairn_fail(&err, CAIRN_E_NOMEM, "allocate a save");

    if (r == 0 && sv->lost) {
        log_line(LOG_WARNING, "job %s rank %u: %s", snap->arena->job, snap->arena->rank, err.message);
        return;
    }
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
    session_save_ended(sv); /* one that is being copied keeps its pages until the client is told */
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
    struct session_save *sv = session_save_find(s, m->save, 0);
    struct local_event e = {.save = m->save, .state = sv ? sv->state : CAIRN_COMMITTED};
    struct cairn_error err = CAIRN_ERROR_INIT;
    int r = sv && sv->lost ? packed_is_lost(sv, &err) : sv && !sv->failed ? 0 : save_outcome(s, m, &err);

    if (r < 0) {
        session_save_end_unfilled(s, sv, m->h.id, r, &err);
        return;
    }
    session_answer_ok(s, m->h.id);
    if (sv && sv->rank_save && !sv->failed && !sv->filled && session_save_is_full(sv)) {
        session_save_start_drain(sv); /* filled after the arena came back: that sends the event */
        return;
    }
    if (e.state == 0)
        return; /* begun: it is for the client to fill it */
    local_header_init(&e.h, LOCAL_EVENT, sizeof e, 0);
    session_send(s, &e, sizeof e, NULL, 0);
}
