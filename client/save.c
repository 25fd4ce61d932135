/* SPDX-License-Identifier: Apache-2.0 */
/* A save.
 *
 *     NOTING --seal ok--> SEALED --(events: SNAPSHOT, DURABLE, COMMITTED, or failed)
 *        |  \--seal fails--> FAILED: wait repeats why
 *        \--free--> the step is given up: DROP
 *
 * seal: place, encode and name the layout; LAYOUT if the daemon does not know it; BEGIN, which grants pages; the copy;
 * the save's id into its word, behind every byte; FILLED. Any failure after begin gives the step up, so that the other
 * ranks need not wait for this one. The exceptions are EXISTS and FENCED: then the step is not this save's to give up.
 *
 * A connection that is lost once pages were granted ends nothing: the copy goes on, for the arena stays mapped, and the
 * word says to whatever daemon takes the arena back that the snapshot is complete. wait follows the session to that
 * daemon: its watch moves to the new channel, RESUME asks what became of the save, and events go on from there.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/image.h"
#include "client/session.h"
#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/units.h"

#define RETRY_MS 10 /* between two tries to reach the daemon again, at first; doubles */
#define MAX_RETRY_MS 500
#define WHY_MS 500 /* how long a wait that timed out may ask why */

enum save_phase { SAVE_NOTING, SAVE_SEALED, SAVE_FAILED };

struct cairn_save {
    struct cairn_session *session;
    enum save_phase phase;
    uint64_t step;
    uint32_t room_ms; /* how long seal waits for room */
    struct cairn_layout layout;
    struct image_source *sources; /* of each slice; room as the layout's */
    uint32_t nsources;
    uint32_t sources_room;
    struct attachment *attachment; /* from seal on */
    struct arena *arena;           /* held while seal may write to it */
    uint64_t arena_serial;         /* of the arena with its pages */
    struct channel_watch watch;    /* in the attachment's channel once granted */
    bool waited;                   /* the attachment's daemon was told that somebody waits */
    bool resuming;                 /* RESUME was sent and its answer not taken yet */
    struct channel_request resume;
    struct local_ok resume_ok;
    struct cairn_error failure; /* in FAILED */
};

/* ---- begin and add --------------------------------------------------------------------------- */

int cairn_save_begin(struct cairn_session *session, const struct cairn_save_options *options,
                     struct cairn_save **ret_save, struct cairn_error *err)
{
    int r = session_check(session, err);

    if (r == 0)
        r = struct_check("cairn_save_options", options, options ? options->size : 0, sizeof(*options), err);
    if (r < 0)
        return r;
    if (session->open.flags & CAIRN_OBSERVER)
        return cairn_fail(err, CAIRN_E_INVAL, "an observer has nothing to save");
    if (options->step == CAIRN_LATEST)
        return cairn_fail(err, CAIRN_E_INVAL, "CAIRN_LATEST is no step");
    if (options->on_busy != CAIRN_BUSY_FAIL && options->on_busy != CAIRN_BUSY_WAIT)
        return cairn_fail(err, CAIRN_E_INVAL, "on_busy is %d", options->on_busy);
    struct cairn_save *s = calloc(1, sizeof(*s));
    if (!s)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a save");
    s->session = session;
    s->step = options->step;
    if (options->on_busy == CAIRN_BUSY_WAIT)
        s->room_ms = options->timeout_ms ? options->timeout_ms : session->timeout_ms;
    cairn_layout_init(&s->layout);
    list_init(&s->watch.link);
    s->failure.size = sizeof(s->failure);
    *ret_save = s;
    return 0;
}

static int reserve_source(struct cairn_save *s, struct cairn_error *err)
{
    if (s->nsources < s->sources_room)
        return 0;
    uint32_t room = s->sources_room ? 2 * s->sources_room : 64;
    struct image_source *more = realloc(s->sources, room * sizeof(*more));
    if (!more)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate %u slices", room);
    s->sources = more;
    s->sources_room = room;
    return 0;
}

/* True when these strides are what NULL means. A dimension of one element has no neighbours to be distant from. */
static bool is_dense(const struct cairn_tensor *t, const struct cairn_box *box)
{
    uint64_t expect = cairn_dtype_size(t->dtype);

    for (uint32_t d = box->ndim; t->stride_bytes && d-- > 0;) {
        if (box->length[d] > 1 && (t->stride_bytes[d] < 0 || (uint64_t)t->stride_bytes[d] != expect))
            return false;
        expect *= box->length[d];
    }
    return true;
}

/* A slice that add refuses after the layout took it. */
static void take_back(struct cairn_layout *l)
{
    free(l->slices[--l->nslices].name);
}

static int note_source(struct cairn_save *s, const struct cairn_tensor *t, struct cairn_error *err)
{
    const struct cairn_slice *slice = &s->layout.slices[s->nsources];
    struct image_source source = {.data = t->data};

    if (!t->data && slice->bytes)
        return cairn_fail(err, CAIRN_E_INVAL, "tensor \"%s\" has no data", t->name);
    if (slice->bytes && !is_dense(t, &slice->box)) {
        size_t len = slice->box.ndim * sizeof(*source.stride);
        source.stride = malloc(len);
        if (!source.stride)
            return cairn_fail(err, CAIRN_E_NOMEM, "allocate the strides of tensor \"%s\"", t->name);
        memcpy(source.stride, t->stride_bytes, len);
    }
    s->sources[s->nsources++] = source;
    return 0;
}

static int check_add(const struct cairn_save *save, const struct cairn_tensor *tensor, struct cairn_error *err)
{
    if (!save)
        return cairn_fail(err, CAIRN_E_INVAL, "there is no save");
    int r = session_check(save->session, err);
    if (r == 0)
        r = struct_check("cairn_tensor", tensor, tensor ? tensor->size : 0, sizeof(*tensor), err);
    if (r < 0)
        return r;
    if (save->phase != SAVE_NOTING)
        return cairn_fail(err, CAIRN_E_INVAL, "step %llu is sealed already", (unsigned long long)save->step);
    return 0;
}

int cairn_save_add(struct cairn_save *save, const struct cairn_tensor *tensor, struct cairn_error *err)
{
    int r = check_add(save, tensor, err);

    if (r == 0)
        r = reserve_source(save, err);
    if (r == 0)
        r = cairn_layout_add(&save->layout, tensor, err);
    if (r < 0)
        return r;
    r = note_source(save, tensor, err);
    if (r < 0)
        take_back(&save->layout);
    return r;
}

/* ---- seal ------------------------------------------------------------------------------------ */

/* What seal has in its hands; released on every way out. */
struct sealing {
    struct bytes encoded;
    struct hash128 digest;
    struct local_grant *grant; /* room for the largest */
    uint32_t *pages;           /* of each part */
    uint32_t *order;
};

static void sealing_free(struct sealing *g)
{
    bytes_free(&g->encoded);
    free(g->grant);
    free(g->pages);
    free(g->order);
}

static int seal_layout(struct cairn_save *s, struct sealing *g, struct cairn_error *err)
{
    int r = cairn_layout_place(&s->layout, err);

    if (r == 0)
        r = cairn_layout_encode(&s->layout, &g->encoded, err);
    if (r < 0)
        return r;
    g->digest = cairn_layout_digest(g->encoded.data, g->encoded.len);
    return 0;
}

static int64_t exchange_deadline(const struct cairn_save *s)
{
    return deadline_in_ms(s->session->timeout_ms);
}

static int send_layout(struct cairn_save *s, const struct sealing *g, struct cairn_error *err)
{
    struct local_layout m = {.digest_low = g->digest.low, .digest_high = g->digest.high, .len = g->encoded.len};
    struct local_ok ok;
    struct channel_request r = {.expect = LOCAL_OK, .answer = &ok, .room = sizeof(ok)};
    _cleanup_close_ int fd = -1;
    int code = blob_make("cairn-layout", g->encoded.data, g->encoded.len, &fd, err);

    local_header_init(&m.h, LOCAL_LAYOUT, sizeof(m), 0);
    if (code == 0)
        code = channel_call(s->attachment->channel, &m.h, fd, &r, exchange_deadline(s), err);
    if (code == 0)
        attachment_learn(s->session, s->attachment, g->digest);
    return code;
}

static size_t grant_room(void)
{
    return sizeof(struct local_grant) + LOCAL_MAX_RUNS * sizeof(struct local_run);
}

static int send_begin(struct cairn_save *s, struct sealing *g, struct cairn_error *err)
{
    struct local_begin m = {
        .step = s->step, .digest_low = g->digest.low, .digest_high = g->digest.high, .wait_ms = s->room_ms};
    struct channel_request r = {.expect = LOCAL_GRANT, .answer = g->grant, .room = grant_room(), .watch = &s->watch};
    int64_t deadline_ns = exchange_deadline(s) + (int64_t)s->room_ms * 1000000;

    local_header_init(&m.h, LOCAL_BEGIN, sizeof(m), 0);
    return channel_call(s->attachment->channel, &m.h, -1, &r, deadline_ns, err);
}

/* Asks for room. A daemon that has forgotten the layout is told it again, once. */
static int seal_begin(struct cairn_save *s, struct sealing *g, struct cairn_error *err)
{
    int r = 0;

    g->grant = malloc(grant_room());
    if (!g->grant)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a grant");
    if (!attachment_knows(s->session, s->attachment, g->digest))
        r = send_layout(s, g, err);
    if (r == 0)
        r = send_begin(s, g, err);
    if (r != CAIRN_E_NOT_FOUND)
        return r;
    attachment_forget(s->session, s->attachment, g->digest);
    r = send_layout(s, g, err);
    return r < 0 ? r : send_begin(s, g, err);
}

/* Turns the grant's runs into the page of each part. */
static int seal_pages(struct cairn_save *s, struct sealing *g, struct cairn_error *err)
{
    uint64_t in_arena = s->arena->page_bytes / CAIRN_PART;
    uint32_t n = 0;

    g->pages = malloc((s->layout.nparts ? s->layout.nparts : 1) * sizeof(*g->pages));
    if (!g->pages)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the pages of %u parts", s->layout.nparts);
    for (uint32_t i = 0; i < g->grant->nruns; i++) {
        const struct local_run *run = &g->grant->runs[i];
        if (run->npages > s->layout.nparts - n || (uint64_t)run->first_page + run->npages > in_arena)
            return channel_break(s->attachment->channel, err, "GRANT has pages outside the arena or too many");
        for (uint32_t p = 0; p < run->npages; p++)
            g->pages[n++] = run->first_page + p;
    }
    return n == s->layout.nparts ? 0 : channel_break(s->attachment->channel, err, "GRANT has too few pages");
}

static int seal_copy(struct cairn_save *s, struct sealing *g, struct cairn_error *err)
{
    struct image_copy copy = {
        .layout = &s->layout, .sources = s->sources, .arena = s->arena, .pages = g->pages, .path = copy_best()};
    int r = image_order(&s->layout, &g->order, &copy.norder, err);

    copy.order = g->order;
    if (r < 0)
        return r;
    image_copy_run(&copy, s->session->copy_threads);
    arena_fill_word(s->arena, g->grant->filled_word, g->grant->save);
    return 0;
}

static int seal_announce(struct cairn_save *s, struct cairn_error *err)
{
    struct local_save m = {.save = s->watch.save};
    struct local_ok ok;
    struct channel_request r = {.expect = LOCAL_OK, .answer = &ok, .room = sizeof(ok)};

    local_header_init(&m.h, LOCAL_FILLED, sizeof(m), 0);
    int code = channel_call(s->attachment->channel, &m.h, -1, &r, exchange_deadline(s), err);
    if (code == 0)
        channel_watch_reach(s->attachment->channel, &s->watch, CAIRN_SNAPSHOT);
    else if (channel_watch_is_lost(s->attachment->channel, &s->watch))
        code = 0; /* the word has said it; wait asks the daemon that comes */
    return code;
}

static int seal(struct cairn_save *s, struct sealing *g, struct cairn_error *err)
{
    int r = seal_layout(s, g, err);

    if (r == 0)
        r = session_attach(s->session, deadline_in_ms(s->room_ms), SESSION_NO_LIMIT, &s->attachment, err);
    if (r == 0)
        r = session_hold_arena(s->session, s->attachment, &s->arena, err);
    if (r == 0)
        s->arena_serial = s->arena->serial;
    if (r == 0)
        r = seal_begin(s, g, err);
    if (r == 0)
        r = seal_pages(s, g, err);
    if (r == 0)
        r = seal_copy(s, g, err);
    return r < 0 ? r : seal_announce(s, err);
}

/* The other ranks hear at once that this one does not take part. Waits for nothing. */
static void give_up_step(struct cairn_save *s, struct attachment *a)
{
    struct local_drop m = {.save = s->watch.save, .step = s->step};

    local_header_init(&m.h, LOCAL_DROP, sizeof(m), 0);
    channel_tell(a->channel, &m.h);
}

/* Without an attachment of its own the session's live one is told; a dead one is not worth a new connection. */
static void abandon(struct cairn_save *s)
{
    struct attachment *a = s->attachment ? NULL : session_attached(s->session);

    if (s->attachment || a)
        give_up_step(s, a ? a : s->attachment);
    session_detach(s->session, a);
}

/* A step that is not this save's to give up: another save of this rank has it, or another incarnation. */
static bool is_others_step(int code)
{
    return code == CAIRN_E_EXISTS || code == CAIRN_E_FENCED;
}

static void seal_failed(struct cairn_save *s, const struct cairn_error *why)
{
    s->phase = SAVE_FAILED;
    cairn_error_copy(&s->failure, why);
    if (!is_others_step(why->code))
        abandon(s);
    if (s->resuming)
        channel_cancel(s->attachment->channel, &s->resume);
    if (s->attachment)
        channel_watch_remove(s->attachment->channel, &s->watch); /* nobody wants its news */
}

int cairn_save_seal(struct cairn_save *save, struct cairn_error *err)
{
    CAIRN_CLEANUP(sealing_free) struct sealing g = {0};
    struct cairn_error why = CAIRN_ERROR_INIT;

    if (!save)
        return cairn_fail(err, CAIRN_E_INVAL, "there is no save");
    int r = session_check(save->session, err);
    if (r < 0)
        return r;
    if (save->phase != SAVE_NOTING)
        return cairn_fail(err, CAIRN_E_INVAL, "step %llu is sealed already", (unsigned long long)save->step);
    r = seal(save, &g, &why);
    session_release_arena(save->session, TAKE_PTR(save->arena));
    if (r == 0) {
        save->phase = SAVE_SEALED;
        return 0;
    }
    cairn_wrap(&why, r, "save step %llu", (unsigned long long)save->step);
    seal_failed(save, &why);
    cairn_error_copy(err, &why);
    return r;
}

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
    const struct channel_request *resume; /* whose answer is waited for too; NULL: none */
};

static bool goal_reached(const void *arg)
{
    const struct goal *g = arg;

    return g->watch->code < 0 || g->watch->state >= g->state || (g->resume && g->resume->done);
}

/* ---- over a restart of the daemon ------------------------------------------------------------ */

/* The save was in an arena that is not the session's any more. */
static void lost_for_good(struct cairn_save *s, const struct attachment *now)
{
    char text[sizeof(s->watch.message)];

    (void)snprintf(text, sizeof(text), "%.200s; the snapshot is lost, the arena was not taken back: %.200s",
                   s->watch.message, now->refusal);
    channel_watch_fail(s->attachment->channel, &s->watch, CAIRN_E_UNAVAILABLE, text);
}

/* Goes over to the attachment, whose reference it takes. */
static int move_to(struct cairn_save *s, struct attachment *a, int64_t deadline_ns, struct cairn_error *err)
{
    struct local_resume m = {.save = s->watch.save, .step = s->step};

    if (s->resuming)
        channel_cancel(s->attachment->channel, &s->resume);
    channel_watch_remove(s->attachment->channel, &s->watch);
    session_detach(s->session, s->attachment);
    s->attachment = a;
    s->waited = false;
    channel_watch_add(a->channel, &s->watch);
    s->resume = (struct channel_request){.expect = LOCAL_OK, .answer = &s->resume_ok, .room = sizeof(s->resume_ok)};
    local_header_init(&m.h, LOCAL_RESUME, sizeof(m), 0);
    int r = channel_send(a->channel, &s->resume, &m.h, -1, deadline_ns, err);
    s->resuming = r == 0;
    return r;
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

/* The answer to RESUME: OK changes nothing, events say the rest. */
static void take_resume_answer(struct cairn_save *s)
{
    struct channel *c = s->attachment->channel;

    if (!s->resuming || !channel_is_done(c, &s->resume))
        return;
    s->resuming = false;
    if (s->resume.code < 0 && !channel_watch_is_lost(c, &s->watch))
        channel_watch_fail(c, &s->watch, s->resume.code, s->resume.error.message);
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
    int waited, reached, code;

    say_waiting(s, state, timeout_ms);
    do {
        goal.resume = s->resuming ? &s->resume : NULL;
        waited = channel_wait(c, goal_reached, &goal, true, deadline_ns, err);
        take_resume_answer(s);
        *ret_lost = channel_watch_is_lost(c, &s->watch);
        code = channel_watch_look(c, &s->watch, &reached, &why);
    } while (waited == 0 && code == 0 && reached < state);
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

static int wait_for(struct cairn_save *s, int state, uint32_t timeout_ms, struct cairn_error *err)
{
    int64_t deadline_ns = deadline_in_ms(timeout_ms);
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

int cairn_save_wait(struct cairn_save *save, int state, uint32_t timeout_ms, struct cairn_error *err)
{
    if (!save)
        return cairn_fail(err, CAIRN_E_INVAL, "there is no save");
    int r = session_check(save->session, err);
    if (r < 0)
        return r;
    if (state < CAIRN_SNAPSHOT || state > CAIRN_COMMITTED)
        return cairn_fail(err, CAIRN_E_INVAL, "%d is no state of a save", state);
    if (save->phase == SAVE_NOTING)
        return cairn_fail(err, CAIRN_E_INVAL, "step %llu is not sealed yet", (unsigned long long)save->step);
    if (save->phase == SAVE_FAILED) {
        cairn_error_copy(err, &save->failure);
        return save->failure.code;
    }
    return wait_for(save, state, timeout_ms, err);
}

/* ---- free ------------------------------------------------------------------------------------ */

static void let_go(struct cairn_save *s)
{
    if (s->phase == SAVE_NOTING)
        abandon(s);
    if (s->resuming)
        channel_cancel(s->attachment->channel, &s->resume);
    if (s->attachment)
        channel_watch_remove(s->attachment->channel, &s->watch);
    session_detach(s->session, s->attachment);
}

void cairn_save_free(struct cairn_save *save)
{
    if (!save)
        return;
    if (!session_forked(save->session))
        let_go(save);
    for (uint32_t i = 0; i < save->nsources; i++)
        free(save->sources[i].stride);
    free(save->sources);
    cairn_layout_free(&save->layout);
    free(save);
}
