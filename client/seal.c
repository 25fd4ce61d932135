/* SPDX-License-Identifier: Apache-2.0 */
/* Stage: room and the copy. Seal: the word. */
#include <stdlib.h>
#include <string.h>

#include "client/save.h"
#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/units.h"

/* ---- the plan -------------------------------------------------------------------------------- */

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

/* ---- room ------------------------------------------------------------------------------------ */

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

static int send_begin(struct cairn_save *s, struct local_grant *grant, struct cairn_error *err)
{
    struct local_begin m = {.step = s->step,
                            .digest_low = s->plan->digest.low,
                            .digest_high = s->plan->digest.high,
                            .wait_ms = s->room_ms,
                            .flags = s->packed ? LOCAL_BEGIN_PACKED : 0};
    struct channel_request r = {.expect = LOCAL_GRANT, .answer = grant, .room = grant_room(), .watch = &s->watch};
    int64_t deadline_ns = exchange_deadline(s) + (int64_t)s->room_ms * 1000000;

    local_header_init(&m.h, LOCAL_BEGIN, sizeof(m), 0);
    return channel_call(s->attachment->channel, &m.h, -1, &r, deadline_ns, err);
}

/* Asks for room. A daemon that has forgotten the layout is told it again, once. */
static int stage_begin(struct cairn_save *s, struct local_grant *grant, struct cairn_error *err)
{
    int r = 0;

    if (!attachment_knows(s->session, s->attachment, s->plan->digest))
        r = send_layout(s, err);
    if (r == 0)
        r = send_begin(s, grant, err);
    if (r != CAIRN_E_NOT_FOUND)
        return r;
    attachment_forget(s->session, s->attachment, s->plan->digest);
    r = send_layout(s, err);
    return r < 0 ? r : send_begin(s, grant, err);
}

/* Turns the grant's runs into the page of each part. */
static int stage_pages(struct cairn_save *s, const struct local_grant *grant, struct cairn_error *err)
{
    uint64_t in_arena = s->arena->page_bytes / CAIRN_PART;
    uint32_t n = 0;

    s->filled_word = grant->filled_word;
    s->pages = malloc((s->plan->layout.nparts ? s->plan->layout.nparts : 1) * sizeof(*s->pages));
    if (!s->pages)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the pages of %u parts", s->plan->layout.nparts);
    for (uint32_t i = 0; i < grant->nruns; i++) {
        const struct local_run *run = &grant->runs[i];
        if (run->npages > s->plan->layout.nparts - n || (uint64_t)run->first_page + run->npages > in_arena)
            return channel_break(s->attachment->channel, err, "GRANT has pages outside the arena or too many");
        for (uint32_t p = 0; p < run->npages; p++)
            s->pages[n++] = run->first_page + p;
    }
    return n == s->plan->layout.nparts ? 0 : channel_break(s->attachment->channel, err, "GRANT has too few pages");
}

/* ---- the copy -------------------------------------------------------------------------------- */

/* Of pages that a device writes to. */
static void drop_held(struct cairn_save *s)
{
    for (uint32_t part = 0; s->shares && s->arena->held && part < s->plan->layout.nparts; part++)
        if (s->shares->owner[part])
            cairn_held_drop(&s->arena->held[s->pages[part]]);
}

/* Only what changed, if the session tracks. The table of what the arena holds is the tracker's to guard. */
static void copy_tracked(struct cairn_save *s, struct image_copy *copy)
{
    struct tracked tracked;

    tracker_begin(s->session->tracker, s->plan, s->sources, &tracked);
    drop_held(s);
    if (tracked.epoch && arena_keep_held(s->arena))
        copy->tracked = &tracked;
    s->copied_bytes = image_copy_run(copy, s->session->copy_threads);
    tracker_end(&tracked);
}

static void stage_copy(struct cairn_save *s)
{
    struct image_copy copy = {.plan = s->plan,
                              .sources = s->sources,
                              .arena = s->arena,
                              .pages = s->pages,
                              .parts = s->shares ? s->shares->host_parts : NULL,
                              .nparts = s->shares ? s->shares->nhost_parts : s->plan->layout.nparts,
                              .path = copy_best(),
                              .open = s->nopen || s->ndevice};

    if (s->session->tracker)
        copy_tracked(s, &copy);
    else
        s->copied_bytes = image_copy_run(&copy, s->session->copy_threads);
}

/* ---- devices --------------------------------------------------------------------------------- */

/* What can fail before anything is asked of the daemon: the devices, their plans, the thread. */
static int stage_devices(struct cairn_save *s, struct cairn_error *err)
{
    int r = session_shares(s->session, s->plan, s->sources, &s->shares, err);

    return r < 0 ? r : completion_start(&s->session->completion, err);
}

static int pin_arena(struct cairn_save *s, struct cairn_error *err)
{
    int r = 0;

    for (uint32_t i = 0; i < s->shares->nshares && r == 0; i++)
        r = device_pin_arena(s->shares->shares[i].device, s->arena, err);
    return r;
}

/* Whether this save's devices pack: the daemon can unpack, and it was faster lately. Where packing has failed once,
 * what is not packed any more is still compared: the bus may have been why. */
static void choose_way(struct cairn_save *s, bool may_pack)
{
    may_pack = may_pack && s->shares && s->session->flags & CAIRN_PACK && s->attachment->knows & LOCAL_KNOWS_PACKED;
    pthread_mutex_lock(&s->session->lock);
    s->packed = may_pack && pack_next(&s->session->pack);
    s->compared = s->session->flags & CAIRN_SOURCE_SUMS || s->packed || s->session->pack.off;
    pthread_mutex_unlock(&s->session->lock);
}

/* ---- stage ----------------------------------------------------------------------------------- */

/* Room for it: nothing of the arena is written to yet. */
static int stage_room(struct cairn_save *s, bool may_pack, struct cairn_error *err)
{
    _cleanup_free_ struct local_grant *grant = malloc(grant_room());
    int r = grant ? seal_plan(s, err) : cairn_fail(err, CAIRN_E_NOMEM, "allocate a grant");

    if (r == 0 && s->ndevice)
        r = stage_devices(s, err);
    if (r == 0)
        r = session_attach(s->session, deadline_in_ms(s->room_ms), SESSION_NO_LIMIT, &s->attachment, err);
    if (r == 0)
        r = session_hold_arena(s->session, s->attachment, &s->arena, err);
    if (r == 0 && s->shares)
        r = pin_arena(s, err);
    if (r < 0)
        return r;
    s->arena_serial = s->arena->serial;
    session_count_writer(s->session, s->arena, 1);
    s->writing = true;
    choose_way(s, may_pack);
    r = stage_begin(s, grant, err);
    return r < 0 ? r : stage_pages(s, grant, err);
}

/* with_devices: their copies begin now, beside the host's; else the caller gets places, where it may read plain bytes
 * too. */
static int stage(struct cairn_save *s, bool with_devices, struct cairn_error *err)
{
    int r = stage_room(s, with_devices, err);

    if (r == 0)
        device_forget_sums(s);
    if (r == 0 && s->shares && with_devices)
        r = device_copies_start(s, &s->copies, err);
    if (r == 0)
        stage_copy(s);
    return r;
}

/* ---- seal ------------------------------------------------------------------------------------ */

/* Nobody waits for the answer, for the word has said it already. */
static int seal_announce(struct cairn_save *s, struct cairn_error *err)
{
    struct local_save m = {.save = s->watch.save};

    local_header_init(&m.h, LOCAL_FILLED, sizeof(m), 0);
    int r = save_say(s, &m.h, exchange_deadline(s), err);
    if (r < 0 && channel_watch_is_lost(s->attachment->channel, &s->watch))
        r = save_announce_anew(s, exchange_deadline(s), err);
    if (r == 0) /* who seals knows it by seal's return */
        channel_watch_reach(s->attachment->channel, &s->watch, CAIRN_SNAPSHOT, s->shares);
    return r;
}

static int seal(struct cairn_save *s, struct cairn_error *err)
{
    int r = channel_watch_ended(s->attachment->channel, &s->watch, err);

    if (r < 0)
        return r;
    copy_fence(); /* what the caller wrote itself */
    arena_fill_word(s->arena, s->filled_word, s->watch.save);
    save_stop_writing(s);
    return seal_announce(s, err);
}

/* ---- a failure ------------------------------------------------------------------------------- */

/* A step that is not this save's to give up: another save of this rank has it, or another incarnation. */
static bool is_others_step(const struct cairn_save *s, int code)
{
    return s->watch.save == 0 && (code == CAIRN_E_EXISTS || code == CAIRN_E_FENCED);
}

/* The pages are quiet before the daemon hears that they may be granted again. */
static void give_up(struct cairn_save *s, int code)
{
    save_stop_writing(s);
    if (!is_others_step(s, code))
        save_abandon(s);
    if (s->attachment) {
        channel_cancel(s->attachment->channel, &s->said);
        channel_watch_remove(s->attachment->channel, &s->watch); /* nobody wants its news */
    }
}

static int failed(struct cairn_save *s, int code, struct cairn_error *why, struct cairn_error *err)
{
    cairn_wrap(why, code, "save step %llu", (unsigned long long)s->step);
    s->phase = SAVE_FAILED;
    cairn_error_copy(&s->failure, why);
    cairn_error_copy(err, why);
    if (s->copies) { /* of the devices before the one that failed: they still write to the pages */
        completion_hand(&s->session->completion, s);
        return code;
    }
    s->placed = false;
    save_unmap_view(s);
    give_up(s, code);
    session_release_arena(s->session, TAKE_PTR(s->arena));
    return code;
}

/* ---- the completion thread's half ------------------------------------------------------------ */

/* The sums of what the devices have read, for the daemon to compare with what it finds. */
static int send_sums(struct cairn_save *s, const struct device_outcome *outcome, struct cairn_error *err)
{
    _cleanup_close_ int fd = -1;
    struct local_sums m = {.save = s->watch.save, .seed = s->session->seed};
    struct local_ok ok;
    struct channel_request r = {.expect = LOCAL_OK, .answer = &ok, .room = sizeof(ok)};

    if (!outcome->sums || !s->compared || !(s->attachment->knows & LOCAL_KNOWS_SUMS))
        return 0;
    _Static_assert(sizeof(struct local_sum) == sizeof(struct hash128), "sums go as they are");
    int code = blob_make("cairn-sums", outcome->sums, s->plan->layout.nparts * sizeof(struct local_sum), &fd, err);
    local_header_init(&m.h, LOCAL_SUMS, sizeof(m), 0);
    if (code == 0)
        code = channel_call(s->attachment->channel, &m.h, fd, &r, exchange_deadline(s), err);
    return code < 0 && channel_watch_is_lost(s->attachment->channel, &s->watch) ? 0 : code;
}

/* What the watch tells of it; an end that the daemon has told before stays. */
static void fail_watch(struct cairn_save *s, int code, const struct cairn_error *why)
{
    channel_watch_fail(s->attachment->channel, &s->watch, code, why->message);
}

static void failed_late(struct cairn_save *s, int code, const struct cairn_error *why)
{
    bool lost = channel_watch_is_lost(s->attachment->channel, &s->watch);

    save_stop_writing(s);
    if (!lost) /* before the daemon's answer to what follows */
        fail_watch(s, code, why);
    save_abandon(s);
    if (lost)
        fail_watch(s, code, why);
}

static void note_pace(struct cairn_save *s, const struct device_outcome *outcome)
{
    uint64_t ns = s->packed && !outcome->packs ? PACK_USELESS : outcome->device_ns;

    pthread_mutex_lock(&s->session->lock);
    pack_note(&s->session->pack, s->packed, s->device_bytes, ns);
    pthread_mutex_unlock(&s->session->lock);
}

static int complete(struct cairn_save *s, struct cairn_error *err)
{
    const struct device_outcome *outcome = device_copies_outcome(s->copies);

    if (outcome->code < 0) {
        cairn_error_copy(err, &outcome->error);
        return outcome->code;
    }
    s->copied = true;
    s->unchanged_bytes = outcome->skipped_bytes;
    s->staged_bytes = outcome->staged_bytes;
    note_pace(s, outcome);
    if (!s->packed) /* else its pages hold something else until the daemon has unpacked them */
        device_copies_note_sums(s, outcome);
    int r = device_copies_tell_rest(s->copies, exchange_deadline(s), err);
    s->packed_bytes = outcome->packed_bytes;
    if (r == 0)
        r = send_sums(s, outcome, err);
    return r < 0 ? r : seal(s, err);
}

void save_complete(struct cairn_save *s)
{
    struct cairn_error why = CAIRN_ERROR_INIT;

    if (s->phase == SAVE_FAILED) {
        give_up(s, s->failure.code);
    } else {
        int r = complete(s, &why);
        if (r < 0)
            failed_late(s, r, &why);
    }
    device_copies_free(TAKE_PTR(s->copies), false);
    if (!s->placed) /* nobody knows a place in it */
        session_release_arena(s->session, TAKE_PTR(s->arena));
}

/* ---- in the open ----------------------------------------------------------------------------- */

static int check(const struct cairn_save *s, struct cairn_error *err)
{
    return s ? session_check(s->session, err) : cairn_fail(err, CAIRN_E_INVAL, "there is no save");
}

int cairn_save_stage(struct cairn_save *save, struct cairn_error *err)
{
    struct cairn_error why = CAIRN_ERROR_INIT;
    int r = check(save, err);

    if (r < 0)
        return r;
    if (save->phase != SAVE_NOTING)
        return cairn_fail(err, CAIRN_E_INVAL, "step %llu is staged or sealed already", (unsigned long long)save->step);
    r = stage(save, false, &why);
    if (r == 0 && save->shares)
        r = device_copies_start(save, &save->copies, &why);
    if (r < 0)
        return failed(save, r, &why, err);
    save->placed = true;
    save->phase = SAVE_STAGED;
    return 0;
}

static int fail_no_data(const struct cairn_save *s, struct cairn_error *err)
{
    uint32_t i = 0;

    while (s->sources[i].data || s->sources[i].device || !save_slice(s, i)->bytes) /* nopen: there is one */
        i++;
    return cairn_fail(err, CAIRN_E_INVAL,
                      "step %llu: tensor \"%.300s\" has no data: stage the save and write it where it lies, or give it",
                      (unsigned long long)s->step, save_slice(s, i)->name);
}

/* With copies under way the word comes later: what has ended the save by now is told at once all the same. */
static int seal_staged(struct cairn_save *s, struct cairn_error *err)
{
    return s->copies ? channel_watch_ended(s->attachment->channel, &s->watch, err) : 0;
}

int cairn_save_seal(struct cairn_save *save, struct cairn_error *err)
{
    struct cairn_error why = CAIRN_ERROR_INIT;
    int r = check(save, err);

    if (r < 0)
        return r;
    bool staged = save->phase == SAVE_STAGED;
    if (!staged && save->phase != SAVE_NOTING)
        return cairn_fail(err, CAIRN_E_INVAL, "step %llu is sealed already", (unsigned long long)save->step);
    if (!staged && save->nopen)
        return fail_no_data(save, err);
    r = staged ? seal_staged(save, &why) : stage(save, true, &why);
    if (r == 0 && !save->copies)
        r = seal(save, &why);
    if (r < 0)
        return failed(save, r, &why, err);
    save->phase = SAVE_SEALED;
    if (save->copies)
        completion_hand(&save->session->completion, save);
    else if (!staged) /* nobody knows a place in it */
        session_release_arena(save->session, TAKE_PTR(save->arena));
    return 0;
}

int cairn_save_all(struct cairn_session *session, const struct cairn_save_options *options,
                   const struct cairn_tensor *tensors, uint64_t count, struct cairn_save **ret_save,
                   struct cairn_error *err)
{
    struct cairn_save *save = NULL;
    int r = cairn_save_begin(session, options, &save, err);

    if (r == 0)
        r = cairn_save_add_all(save, tensors, count, err);
    if (r == 0)
        r = cairn_save_seal(save, err);
    if (r < 0) {
        cairn_save_free(save);
        return r;
    }
    *ret_save = save;
    return 0;
}
