/* SPDX-License-Identifier: Apache-2.0 */
/* Waiting for a sealed save, over a restart of the daemon too. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "client/save.h"
#include "core/base/error.h"

#define RETRY_MS 10 /* between two tries to reach the daemon again, at first; doubles */
#define MAX_RETRY_MS 500
#define WHY_MS 500 /* how long a wait that timed out may ask why */

/* ---- wait ------------------------------------------------------------------------------------ */

static const char *state_name(int state)
{
    switch (state) {
    case CAIRN_SNAPSHOT:
        return "a snapshot";
    case CAIRN_DURABLE:
        return "durable";
    case CAIRN_COMMITTED:
        return "committed";
    default:
        return "nothing yet";
    }
}

struct goal {
    const struct channel_watch *watch;
    int state;
};

static bool goal_reached(const void *arg)
{
    const struct goal *g = arg;

    return g->watch->code < 0 || g->watch->state >= g->state;
}

/* ---- over a restart of the daemon ------------------------------------------------------------ */

int save_say(struct cairn_save *s, struct local_header *message, int64_t deadline_ns, struct cairn_error *err)
{
    s->said = (struct channel_request){
        .expect = LOCAL_OK, .answer = &s->said_ok, .room = sizeof(s->said_ok), .fails = &s->watch};
    list_init(&s->said.link);
    return channel_send(s->attachment->channel, &s->said, message, -1, deadline_ns, err);
}

/* The save was in an arena that is not the session's any more. */
static void lost_for_good(struct cairn_save *s, const struct attachment *now)
{
    char text[sizeof(s->watch.message)];

    (void)snprintf(text, sizeof(text), "%.200s; the snapshot is lost, the arena was not taken back: %.200s",
                   s->watch.message, now->refusal);
    channel_watch_fail(s->attachment->channel, &s->watch, CAIRN_E_UNAVAILABLE, text);
}

/* Goes over to the attachment, whose reference it takes. An OK changes nothing, events say the rest. */
static int move_to(struct cairn_save *s, struct attachment *a, int64_t deadline_ns, struct cairn_error *err)
{
    struct local_resume m = {.save = s->watch.save, .step = s->step};

    channel_cancel(s->attachment->channel, &s->said);
    channel_watch_remove(s->attachment->channel, &s->watch);
    session_detach(s->session, s->attachment);
    s->attachment = a;
    s->waited = false;
    channel_watch_add(a->channel, &s->watch);
    local_header_init(&m.h, LOCAL_RESUME, sizeof(m), 0);
    return save_say(s, &m.h, deadline_ns, err);
}

/* Tries until the deadline; a signal ends it, as it ends a wait. */
static int reconnect(struct cairn_save *s, int64_t deadline_ns, struct attachment **ret_attachment,
                     struct cairn_error *err)
{
    for (uint32_t pause_ms = RETRY_MS;; pause_ms = pause_ms < MAX_RETRY_MS / 2 ? 2 * pause_ms : MAX_RETRY_MS) {
        int r = session_attach(s->session, 0, deadline_ns, ret_attachment, err);
        uint32_t left_ms = deadline_left_ms(deadline_ns);
        if (r == 0 || !session_may_pass(r) || left_ms == 0)
            return r;
        if (usleep((left_ms < pause_ms ? left_ms : pause_ms) * 1000) < 0)
            return cairn_fail(err, CAIRN_E_INTR, "a signal came");
    }
}

/* Returns 0 when there is something to wait for again, or when the save has failed for good. A poll (no patience)
 * connects to nobody. */
static int follow(struct cairn_save *s, bool patient, int64_t deadline_ns, struct cairn_error *err)
{
    struct attachment *a = NULL;
    int r = 0;

    if (patient)
        r = reconnect(s, deadline_ns, &a, err);
    else
        a = session_attached(s->session);
    if (r < 0)
        return r;
    if (!a || channel_is_dead(a->channel)) {
        session_detach(s->session, a);
        return cairn_fail(err, CAIRN_E_UNAVAILABLE, "cairnd at %s is away", s->session->socket_path);
    }
    if (a->arena_serial == s->arena_serial)
        return move_to(s, a, deadline_ns, err);
    lost_for_good(s, a);
    session_detach(s->session, a);
    return 0;
}

int save_announce_anew(struct cairn_save *s, int64_t deadline_ns, struct cairn_error *err)
{
    struct attachment *a = session_attached(s->session);
    int r = 0;

    if (a && !channel_is_dead(a->channel)) {
        if (a->arena_serial == s->arena_serial) {
            r = move_to(s, a, deadline_ns, err);
            return r < 0 && channel_watch_is_lost(s->attachment->channel, &s->watch) ? 0 : r;
        }
        r = cairn_fail(err, CAIRN_E_UNAVAILABLE, "the connection was lost, and the arena was not taken back: %s",
                       a->refusal);
    }
    session_detach(s->session, a);
    return r;
}

/* What holds the save up, in the daemon's words; an empty text when it does not say. */
static void ask_why(struct cairn_save *s, char *ret_text, size_t room)
{
    struct local_save m = {.save = s->watch.save};
    struct local_text text;
    struct channel_request r = {.expect = LOCAL_TEXT, .answer = &text, .room = sizeof(text)};

    ret_text[0] = '\0';
    local_header_init(&m.h, LOCAL_WHY, sizeof(m), 0);
    if (channel_call(s->attachment->channel, &m.h, -1, &r, deadline_in_ms(WHY_MS), NULL) == 0)
        (void)snprintf(ret_text, room, ": %.*s", (int)room - 3, text.text);
}

static int wait_timed_out(struct cairn_save *s, const struct goal *goal, int reached, uint32_t timeout_ms,
                          struct cairn_error *err)
{
    char why[400] = "";

    if (timeout_ms && err) /* who polls does not wait for an explanation */
        ask_why(s, why, sizeof(why));
    return cairn_fail(err, CAIRN_E_TIMEOUT, "step %llu is %s, not %s, after %u ms%s", (unsigned long long)s->step,
                      state_name(reached), state_name(goal->state), timeout_ms, why);
}

/* The daemon may take its time over a save that nobody waits for. Waits for no answer. */
static void say_waiting(struct cairn_save *s, int state, uint32_t timeout_ms)
{
    struct local_save m = {.save = s->watch.save};
    int reached;

    if (s->waited || timeout_ms == 0 || state <= CAIRN_SNAPSHOT || !(s->attachment->knows & LOCAL_KNOWS_WAIT))
        return;
    if (channel_watch_look(s->attachment->channel, &s->watch, &reached, NULL) < 0 || reached >= state)
        return;
    s->waited = true;
    local_header_init(&m.h, LOCAL_WAIT, sizeof(m), 0);
    channel_tell(s->attachment->channel, &m.h);
}

/* Until the goal, the failure or the deadline; *ret_lost when only the connection is gone. */
static int wait_here(struct cairn_save *s, int state, uint32_t timeout_ms, int64_t deadline_ns, bool *ret_lost,
                     struct cairn_error *err)
{
    struct channel *c = s->attachment->channel;
    struct goal goal = {.watch = &s->watch, .state = state};
    struct cairn_error why = CAIRN_ERROR_INIT;
    int reached;

    say_waiting(s, state, timeout_ms);
    int waited = channel_wait(c, goal_reached, &goal, true, deadline_ns, err);
    *ret_lost = channel_watch_is_lost(c, &s->watch);
    int code = channel_watch_look(c, &s->watch, &reached, &why);
    if (reached >= state) {
        *ret_lost = false;
        return 0;
    }
    if (code < 0) {
        cairn_error_copy(err, &why);
        return cairn_wrap(err, code, "step %llu was %s", (unsigned long long)s->step, state_name(reached));
    }
    if (waited == CAIRN_E_TIMEOUT)
        return wait_timed_out(s, &goal, reached, timeout_ms, err);
    return waited;
}

static int wait_for(struct cairn_save *s, int state, uint32_t timeout_ms, int64_t deadline_ns, struct cairn_error *err)
{
    bool lost;

    for (unsigned n = 0;; n++) {
        int r = wait_here(s, state, timeout_ms, deadline_ns, &lost, err);
        if (!lost || (n > 0 && deadline_left_ms(deadline_ns) == 0))
            return r;
        r = follow(s, timeout_ms > 0, deadline_ns, err);
        if (r == CAIRN_E_INTR)
            return r;
        if (r < 0)
            return cairn_wrap(err, session_may_pass(r) ? CAIRN_E_UNAVAILABLE : r,
                              "step %llu is not %s, the connection was lost and is not there again after %u ms",
                              (unsigned long long)s->step, state_name(state), timeout_ms);
    }
}

/* ---- copies from devices --------------------------------------------------------------------- */

/* Until they have ended: before that the save is the completion thread's. */
static int wait_for_copies(struct cairn_save *s, uint32_t timeout_ms, int64_t deadline_ns, struct cairn_error *err)
{
    uint32_t parts = 0;
    int r = completion_wait(&s->session->completion, s, deadline_ns, err);

    if (r != CAIRN_E_TIMEOUT)
        return r;
    (void)completion_has(&s->session->completion, s, &parts);
    return cairn_fail(err, r, "step %llu is being copied from its devices after %u ms: %u of %u MiB are in the arena",
                      (unsigned long long)s->step, timeout_ms, parts, s->plan->layout.nparts);
}

int cairn_save_wait(struct cairn_save *save, int state, uint32_t timeout_ms, struct cairn_error *err)
{
    if (!save)
        return cairn_fail(err, CAIRN_E_INVAL, "there is no save");
    int r = session_check(save->session, err);
    if (r < 0)
        return r;
    if (state < CAIRN_SNAPSHOT || state > CAIRN_COMMITTED)
        return cairn_fail(err, CAIRN_E_INVAL, "%d is no state of a save", state);
    if (save->phase == SAVE_NOTING || save->phase == SAVE_STAGED)
        return cairn_fail(err, CAIRN_E_INVAL, "step %llu is not sealed yet", (unsigned long long)save->step);
    if (save->phase == SAVE_FAILED) {
        cairn_error_copy(err, &save->failure);
        return save->failure.code;
    }
    int64_t deadline_ns = deadline_in_ms(timeout_ms);
    r = wait_for_copies(save, timeout_ms, deadline_ns, err);
    return r < 0 ? r : wait_for(save, state, timeout_ms, deadline_ns, err);
}
