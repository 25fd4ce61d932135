/* SPDX-License-Identifier: Apache-2.0 */
/* Seal: room, the copy, the word. */
#include <stdlib.h>
#include <string.h>

#include "client/save.h"
#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/units.h"

/* ---- seal ------------------------------------------------------------------------------------ */

/* What seal has in its hands; released on every way out. */
struct sealing {
    struct local_grant *grant; /* room for the largest */
    uint32_t *pages;           /* of each part */
};

static void sealing_free(struct sealing *g)
{
    free(g->grant);
    free(g->pages);
}

/* Fewer tensors than planned are another layout. */
static int seal_plan(struct cairn_save *s, struct cairn_error *err)
{
    int r = 0;

    if (s->plan && s->plan->layout.nslices == s->nsources)
        return 0;
    if (s->plan)
        r = save_list(s, err);
    if (r == 0)
        r = plan_make(&s->layout, &s->plan, err);
    if (r == 0)
        session_keep_plan(s->session, s->plan);
    return r;
}

static int64_t exchange_deadline(const struct cairn_save *s)
{
    return deadline_in_ms(s->session->timeout_ms);
}

static int send_layout(struct cairn_save *s, struct cairn_error *err)
{
    const struct plan *p = s->plan;
    _cleanup_close_ int fd = -1;
    struct local_layout m = {.digest_low = p->digest.low, .digest_high = p->digest.high, .len = p->encoded.len};
    struct local_ok ok;
    struct channel_request r = {.expect = LOCAL_OK, .answer = &ok, .room = sizeof(ok)};
    int code = blob_make("cairn-layout", p->encoded.data, p->encoded.len, &fd, err);

    local_header_init(&m.h, LOCAL_LAYOUT, sizeof(m), 0);
    if (code == 0)
        code = channel_call(s->attachment->channel, &m.h, fd, &r, exchange_deadline(s), err);
    if (code == 0)
        attachment_learn(s->session, s->attachment, p->digest);
    return code;
}

static size_t grant_room(void)
{
    return sizeof(struct local_grant) + LOCAL_MAX_RUNS * sizeof(struct local_run);
}

static int send_begin(struct cairn_save *s, struct sealing *g, struct cairn_error *err)
{
    struct local_begin m = {
        .step = s->step, .digest_low = s->plan->digest.low, .digest_high = s->plan->digest.high, .wait_ms = s->room_ms};
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
    if (!attachment_knows(s->session, s->attachment, s->plan->digest))
        r = send_layout(s, err);
    if (r == 0)
        r = send_begin(s, g, err);
    if (r != CAIRN_E_NOT_FOUND)
        return r;
    attachment_forget(s->session, s->attachment, s->plan->digest);
    r = send_layout(s, err);
    return r < 0 ? r : send_begin(s, g, err);
}

/* Turns the grant's runs into the page of each part. */
static int seal_pages(struct cairn_save *s, struct sealing *g, struct cairn_error *err)
{
    uint64_t in_arena = s->arena->page_bytes / CAIRN_PART;
    uint32_t n = 0;

    g->pages = malloc((s->plan->layout.nparts ? s->plan->layout.nparts : 1) * sizeof(*g->pages));
    if (!g->pages)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the pages of %u parts", s->plan->layout.nparts);
    for (uint32_t i = 0; i < g->grant->nruns; i++) {
        const struct local_run *run = &g->grant->runs[i];
        if (run->npages > s->plan->layout.nparts - n || (uint64_t)run->first_page + run->npages > in_arena)
            return channel_break(s->attachment->channel, err, "GRANT has pages outside the arena or too many");
        for (uint32_t p = 0; p < run->npages; p++)
            g->pages[n++] = run->first_page + p;
    }
    return n == s->plan->layout.nparts ? 0 : channel_break(s->attachment->channel, err, "GRANT has too few pages");
}

/* Only what changed, if the session tracks. The table of what the arena holds is the tracker's to guard. */
static void copy_tracked(struct cairn_save *s, struct image_copy *copy)
{
    struct tracked tracked;

    tracker_begin(s->session->tracker, s->plan, s->sources, &tracked);
    if (tracked.epoch && arena_keep_held(s->arena))
        copy->tracked = &tracked;
    s->copied_bytes = image_copy_run(copy, s->session->copy_threads);
    tracker_end(&tracked);
}

static void seal_copy(struct cairn_save *s, struct sealing *g)
{
    struct image_copy copy = {
        .plan = s->plan, .sources = s->sources, .arena = s->arena, .pages = g->pages, .path = copy_best()};

    if (s->session->tracker)
        copy_tracked(s, &copy);
    else
        s->copied_bytes = image_copy_run(&copy, s->session->copy_threads);
    arena_fill_word(s->arena, g->grant->filled_word, g->grant->save);
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
    int r = seal_plan(s, err);

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
    if (r < 0)
        return r;
    seal_copy(s, g);
    return seal_announce(s, err);
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
        save_abandon(s);
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
