/* SPDX-License-Identifier: Apache-2.0 */
/* A save from begin to seal: what is noted; and its end. */
#include "client/save.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"
#include "core/base/error.h"

#define SAVE_OPTIONS_FIRST offsetof(struct cairn_save_options, streams) /* the first version's */
#define SAVE_INFO_FIRST offsetof(struct cairn_save_info, device_bytes)
#define SAVE_INFO_DEVICE (offsetof(struct cairn_save_info, staged_bytes) + sizeof(uint64_t))
#define SAVE_INFO_PACKED (offsetof(struct cairn_save_info, packed_bytes) + sizeof(uint64_t))

#define TENSOR_FLAGS (CAIRN_TENSOR_DEVICE_WRITES | CAIRN_TENSOR_VOLATILE | CAIRN_TENSOR_COMMON)

/* ---- begin and add --------------------------------------------------------------------------- */

static int check_streams(const struct cairn_stream *streams, uint32_t n, struct cairn_error *err)
{
    if (n && !streams)
        return cairn_fail(err, CAIRN_E_INVAL, "nstreams is %u, and streams is NULL", n);
    if (n > DEVICES_MAX)
        return cairn_fail(err, CAIRN_E_INVAL, "nstreams is %u, at most %d are possible", n, DEVICES_MAX);
    for (uint32_t i = 0; i < n; i++) {
        if (!device_is_number(streams[i].device) || streams[i].pad)
            return cairn_fail(err, CAIRN_E_INVAL, "stream %u is of device %#x, which is none", i, streams[i].device);
        for (uint32_t j = 0; j < i; j++)
            if (streams[j].device == streams[i].device)
                return cairn_fail(err, CAIRN_E_INVAL, "streams %u and %u are of one device", j, i);
    }
    return 0;
}

static int copy_streams(struct cairn_save *s, const struct cairn_save_options *o, struct cairn_error *err)
{
    if (!o->nstreams)
        return 0;
    s->streams = malloc(o->nstreams * sizeof(*s->streams));
    if (!s->streams)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate %u streams", o->nstreams);
    memcpy(s->streams, o->streams, o->nstreams * sizeof(*s->streams));
    s->nstreams = o->nstreams;
    return 0;
}

int cairn_save_begin(struct cairn_session *session, const struct cairn_save_options *given,
                     struct cairn_save **ret_save, struct cairn_error *err)
{
    struct cairn_save_options ours, *options = &ours;
    int r = session_check(session, err);

    if (r == 0)
        r = struct_take("cairn_save_options", options, sizeof(ours), SAVE_OPTIONS_FIRST, given, given ? given->size : 0,
                        err);
    if (r < 0)
        return r;
    if (session->open.flags & CAIRN_OBSERVER)
        return cairn_fail(err, CAIRN_E_INVAL, "an observer has nothing to save");
    if (options->step >= CAIRN_LATEST_FINITE)
        return cairn_fail(err, CAIRN_E_INVAL, "CAIRN_LATEST and CAIRN_LATEST_FINITE are no steps");
    if (options->on_busy != CAIRN_BUSY_FAIL && options->on_busy != CAIRN_BUSY_WAIT)
        return cairn_fail(err, CAIRN_E_INVAL, "on_busy is %d", options->on_busy);
    r = check_streams(options->streams, options->nstreams, err);
    if (r < 0)
        return r;
    struct cairn_save *s = calloc(1, sizeof(*s));
    if (!s)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a save");
    r = copy_streams(s, options, err);
    if (r < 0) {
        free(s);
        return r;
    }
    s->session = session;
    s->step = options->step;
    if (options->on_busy == CAIRN_BUSY_WAIT)
        s->room_ms = options->timeout_ms ? options->timeout_ms : session->timeout_ms;
    s->plan = session_plan(session);
    cairn_layout_init(&s->layout);
    list_init(&s->watch.link);
    list_init(&s->said.link);
    list_init(&s->completion.link);
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

/* True when the strides are what NULL means. A dimension of one element has no neighbours to be distant from. */
static bool is_dense(const struct cairn_tensor *t, const struct cairn_box *box)
{
    uint64_t expect = cairn_dtype_size(t->dtype);

    for (uint32_t d = box->ndim; d-- > 0;) {
        if (box->length[d] > 1 && (t->stride_bytes[d] < 0 || (uint64_t)t->stride_bytes[d] != expect))
            return false;
        expect *= box->length[d];
    }
    return true;
}

static int note_stride(struct image_source *source, const struct cairn_tensor *t, const struct cairn_slice *slice,
                       struct cairn_error *err)
{
    size_t len = slice->box.ndim * sizeof(*source->stride);

    if (!t->data || !t->stride_bytes || !slice->bytes || is_dense(t, &slice->box))
        return 0;
    source->stride = malloc(len);
    if (!source->stride)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the strides of tensor \"%s\"", t->name);
    memcpy(source->stride, t->stride_bytes, len);
    return 0;
}

static int note_source(struct cairn_save *s, const struct cairn_tensor *t, const struct cairn_slice *slice,
                       struct cairn_error *err)
{
    bool on_device = t->device != CAIRN_HOST && slice->bytes;
    struct image_source source = {.data = on_device ? NULL : t->data,
                                  .on_device = on_device ? t->data : NULL,
                                  .device = on_device ? t->device : CAIRN_HOST,
                                  .is_volatile = on_device && t->flags & CAIRN_TENSOR_VOLATILE,
                                  .by_device = t->flags & CAIRN_TENSOR_DEVICE_WRITES};

    if (on_device && !t->data)
        return cairn_fail(err, CAIRN_E_INVAL, "tensor \"%.300s\" lies on a device and has no data", t->name);
    int r = note_stride(&source, t, slice, err);
    if (r < 0)
        return r;
    s->nopen += !t->data && slice->bytes;
    s->ndevice += on_device;
    s->device_bytes += on_device ? slice->bytes : 0;
    s->sources[s->nsources++] = source;
    return 0;
}

int save_list(struct cairn_save *s, struct cairn_error *err)
{
    int r = cairn_layout_copy(&s->layout, &s->plan->layout, s->nsources, err);

    if (r < 0)
        return r;
    session_release_plan(s->session, TAKE_PTR(s->plan));
    return 0;
}

const struct cairn_slice *save_slice(const struct cairn_save *s, uint64_t i)
{
    return s->plan ? &s->plan->layout.slices[i] : &s->layout.slices[i];
}

static int list_slice(struct cairn_save *s, const struct cairn_tensor *t, struct cairn_error *err)
{
    int r = s->plan ? save_list(s, err) : 0;

    if (r == 0)
        r = cairn_layout_add(&s->layout, t, err);
    if (r < 0)
        return r;
    r = note_source(s, t, &s->layout.slices[s->nsources], err);
    if (r < 0) /* refused after the layout took it */
        free(s->layout.slices[--s->layout.nslices].name);
    return r;
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
        return cairn_fail(err, CAIRN_E_INVAL, "step %llu is staged or sealed already", (unsigned long long)save->step);
    if (tensor->flags & ~(uint32_t)TENSOR_FLAGS)
        return cairn_fail(err, CAIRN_E_INVAL, "a tensor has unknown flags %#x", tensor->flags);
    if (tensor->device != CAIRN_HOST && !device_is_number(tensor->device))
        return cairn_fail(err, CAIRN_E_INVAL, "tensor \"%.300s\" lies on device %#x, which is none",
                          tensor->name ? tensor->name : "", tensor->device);
    return 0;
}

int cairn_save_add(struct cairn_save *save, const struct cairn_tensor *tensor, struct cairn_error *err)
{
    int r = check_add(save, tensor, err);

    if (r == 0)
        r = reserve_source(save, err);
    if (r < 0)
        return r;
    if (save->plan && plan_has(save->plan, save->nsources, tensor))
        return note_source(save, tensor, &save->plan->layout.slices[save->nsources], err);
    return list_slice(save, tensor, err);
}

int cairn_save_add_all(struct cairn_save *save, const struct cairn_tensor *tensors, uint64_t count,
                       struct cairn_error *err)
{
    int r = tensors || count == 0 ? 0 : cairn_fail(err, CAIRN_E_INVAL, "there are no tensors");

    for (uint64_t i = 0; i < count && r == 0; i++)
        r = cairn_save_add(save, tensor_at(tensors, i), err);
    return r;
}

/* ---- info ------------------------------------------------------------------------------------ */

/* Nothing is known while the copies are under way, or when they failed. */
static void describe_devices(const struct cairn_save *save, struct cairn_save_info *ret_info)
{
    uint32_t parts;
    bool known = save->phase == SAVE_SEALED && !completion_has(&save->session->completion, save, &parts);

    ret_info->device_bytes = known && save->copied ? save->device_bytes : 0;
    ret_info->unchanged_bytes = known && save->copied ? save->unchanged_bytes : 0;
    ret_info->staged_bytes = known && save->copied ? save->staged_bytes : 0;
    if (ret_info->size >= SAVE_INFO_PACKED)
        ret_info->packed_bytes = known && save->copied ? save->packed_bytes : 0;
}

int cairn_save_info(const struct cairn_save *save, struct cairn_save_info *ret_info)
{
    if (!save || !ret_info || ret_info->size < SAVE_INFO_FIRST)
        return CAIRN_E_INVAL;
    int r = session_check(save->session, NULL);
    if (r < 0)
        return r;
    struct tracker *tracker = save->session->tracker;
    if (ret_info->size >= SAVE_INFO_DEVICE)
        describe_devices(save, ret_info);
    ret_info->bytes = 0;
    for (uint32_t i = 0; save->plan && i < save->plan->npieces; i++)
        ret_info->bytes += save->plan->pieces[i].end - save->plan->pieces[i].begin;
    ret_info->copied_bytes = save->copied_bytes;
    ret_info->tracked_bytes = 0;
    if (tracker)
        tracker_describe(tracker, ret_info->tracking, &ret_info->tracked_bytes);
    else
        (void)snprintf(ret_info->tracking, sizeof(ret_info->tracking), "not asked for");
    return 0;
}

/* ---- free ------------------------------------------------------------------------------------ */

/* Without a live attachment of its own the session's is told, or the next one: a dead one is not worth connecting for.
 */
void save_abandon(struct cairn_save *s)
{
    const struct given_up g = {.arena_serial = s->arena_serial, .save = s->watch.save, .step = s->step};
    struct local_drop m = {.save = g.save, .step = g.step};

    local_header_init(&m.h, LOCAL_DROP, sizeof(m), 0);
    if (!s->attachment || channel_watch_is_lost(s->attachment->channel, &s->watch) ||
        !channel_tell(s->attachment->channel, &m.h))
        session_give_up(s->session, &g);
}

void save_stop_writing(struct cairn_save *s)
{
    if (s->writing)
        session_count_writer(s->session, s->arena, -1);
    s->writing = false;
}

/* Of a packed save, when its end is known: later ones may do better plain. */
static void note_failure(struct cairn_save *s)
{
    int state, code = s->phase == SAVE_FAILED ? s->failure.code : 0;

    if (!s->packed)
        return;
    if (code == 0)
        code = channel_watch_look(s->attachment->channel, &s->watch, &state, NULL);
    pthread_mutex_lock(&s->session->lock);
    pack_failed(&s->session->pack, code);
    pthread_mutex_unlock(&s->session->lock);
}

/* The pages are quiet before the daemon hears that they may be granted again. */
static void let_go(struct cairn_save *s)
{
    note_failure(s);
    save_unmap_view(s);
    save_stop_writing(s);
    session_release_arena(s->session, TAKE_PTR(s->arena));
    if (s->phase == SAVE_NOTING || s->phase == SAVE_STAGED)
        save_abandon(s);
    if (s->attachment) {
        channel_cancel(s->attachment->channel, &s->said);
        channel_watch_remove(s->attachment->channel, &s->watch);
    }
    session_detach(s->session, s->attachment);
}

void save_destroy(struct cairn_save *s)
{
    bool forked = session_forked(s->session);

    if (!forked)
        let_go(s);
    if (s->arena && --s->arena->refs == 0) /* a child's own copy: let_go has left none */
        arena_free(s->arena, true);
    device_copies_free(s->copies, forked);
    session_release_shares(s->session, s->shares);
    for (uint32_t i = 0; i < s->nsources; i++)
        free(s->sources[i].stride);
    free(s->sources);
    free(s->streams);
    free(s->pages);
    cairn_layout_free(&s->layout);
    session_release_plan(s->session, s->plan);
    free(s);
}

/* Nobody will seal it, and its pages are written to until the copies have ended: then the step is given up. */
static void abandon_copies(struct cairn_save *s)
{
    s->phase = SAVE_FAILED;
    cairn_fail(&s->failure, CAIRN_E_ABORTED, "it was freed before it was sealed");
    completion_hand(&s->session->completion, s);
}

void cairn_save_free(struct cairn_save *save)
{
    if (!save)
        return;
    bool forked = session_forked(save->session);
    if (!forked && save->phase == SAVE_STAGED && save->copies)
        abandon_copies(save);
    if (forked || !completion_disown(&save->session->completion, save))
        save_destroy(save);
}
