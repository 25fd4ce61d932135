/* SPDX-License-Identifier: Apache-2.0 */
/* Restores but for reading: opening, describing, and working out which saved bytes a request needs. */
#include "client/restore.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/units.h"

#define MAX_CATALOG ((uint64_t)64 << 30)
#define MAX_WINDOW ((uint64_t)64 << 30)
#define MAX_SLOTS 1024 /* what one restore keeps under way at most; a larger window is used in part */

/* ---- open ------------------------------------------------------------------------------------ */

int cairn_latest(struct cairn_session *session, uint64_t *ret_step, struct cairn_error *err)
{
    struct attachment *a = NULL;
    struct local_latest_is is;
    struct channel_request request = {.expect = LOCAL_LATEST_IS, .answer = &is, .room = sizeof(is)};
    int r = session_check(session, err);

    if (r < 0)
        return r;
    struct local_latest m = {.timeout_ms = session->timeout_ms};
    int64_t deadline_ns = deadline_in_ms(session->timeout_ms);
    local_header_init(&m.h, LOCAL_LATEST, sizeof(m), 0);
    r = session_attach(session, deadline_ns, deadline_ns, &a, err);
    if (r == 0)
        r = channel_call(a->channel, &m.h, -1, &request, deadline_after_daemon(deadline_ns, m.timeout_ms), err);
    session_detach(session, a);
    if (r < 0)
        return cairn_wrap(err, r, "find the step to resume from");
    *ret_step = is.step;
    return 0;
}

static int open_catalog(struct cairn_restore *r, int fd, uint64_t len, struct cairn_error *err)
{
    struct view v = {0};

    if (len > MAX_CATALOG)
        return channel_break(r->attachment->channel, err, "RESTORE_OPENED with an impossible catalog");
    int code = view_map(&v, fd, len, F_SEAL_WRITE | F_SEAL_SHRINK, "catalog", err);
    if (code < 0)
        return code;
    code = cairn_catalog_decode(&r->catalog, v.base, len, err);
    view_unmap(&v, false);
    return code < 0 ? cairn_wrap(err, code, "read the catalog") : slice_index_init(&r->index, &r->catalog, err);
}

static int check_chunks_fit(struct cairn_restore *r, struct cairn_error *err)
{
    for (uint32_t i = 0; i < r->catalog.nshards; i++)
        for (uint32_t j = 0; j < r->catalog.shards[i].nchunks; j++)
            if (r->catalog.shards[i].chunks[j].nparts > r->slot_parts)
                return channel_break(r->attachment->channel, err, "a chunk is larger than a slot of the window");
    return 0;
}

static int open_window(struct cairn_restore *r, const struct local_restore_opened *m, int fd, struct cairn_error *err)
{
    uint64_t len = (uint64_t)m->slots * m->slot_parts * CAIRN_PART;

    if (len > MAX_WINDOW)
        return channel_break(r->attachment->channel, err, "RESTORE_OPENED with an impossible window");
    r->slot_parts = m->slot_parts;
    r->nslots = m->slots < MAX_SLOTS ? m->slots : MAX_SLOTS;
    r->slots = calloc(r->nslots, sizeof(*r->slots));
    if (!r->slots)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate %u slots", r->nslots);
    int code = check_chunks_fit(r, err);
    return code < 0 ? code : view_map(&r->window, fd, len, F_SEAL_SHRINK, "window", err);
}

static int restore_connect(struct cairn_restore *r, uint64_t step, uint32_t timeout_ms, struct cairn_error *err)
{
    struct local_restore_open m = {.step = step};
    struct local_restore_opened opened;
    struct channel_request request = {.expect = LOCAL_RESTORE_OPENED, .answer = &opened, .room = sizeof(opened)};
    int64_t deadline_ns = deadline_in_ms(timeout_ms);
    int code = session_attach(r->session, deadline_ns, deadline_ns, &r->attachment, err);

    if (code < 0)
        return code;
    local_header_init(&m.h, LOCAL_RESTORE_OPEN, sizeof(m), 0);
    memcpy(m.job, r->session->open.job, sizeof(m.job));
    m.timeout_ms = deadline_left_ms(deadline_ns);
    code =
        channel_call(r->attachment->channel, &m.h, -1, &request, deadline_after_daemon(deadline_ns, timeout_ms), err);
    if (code < 0)
        return code;
    r->id = opened.restore;
    code = open_catalog(r, request.fds[0], opened.catalog_bytes, err);
    if (code == 0)
        code = open_window(r, &opened, request.fds[1], err);
    channel_request_close(&request);
    return code;
}

int cairn_restore_open(struct cairn_session *session, uint64_t step, uint32_t timeout_ms,
                       struct cairn_restore **ret_restore, struct cairn_error *err)
{
    int code = session_check(session, err);

    if (code < 0)
        return code;
    if (!session->open.job[0])
        return cairn_fail(err, CAIRN_E_INVAL, "the session names no job to restore");
    struct cairn_restore *r = calloc(1, sizeof(*r));
    if (!r)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a restore");
    r->session = session;
    cairn_catalog_init(&r->catalog);
    code = restore_connect(r, step, timeout_ms, err);
    if (code < 0) {
        cairn_restore_free(r);
        if (step == CAIRN_LATEST)
            return cairn_wrap(err, code, "open the latest checkpoint of job %s", session->open.job);
        if (step == CAIRN_LATEST_FINITE)
            return cairn_wrap(err, code, "open the latest checkpoint of job %s without NaN", session->open.job);
        return cairn_wrap(err, code, "open step %llu of job %s", (unsigned long long)step, session->open.job);
    }
    *ret_restore = r;
    return 0;
}

/* Answers to reads that are still under way are thrown away when they come. */
static void restore_hang_up(struct cairn_restore *r)
{
    struct local_restore_close m = {.restore = r->id};
    struct channel *c = r->attachment->channel;

    for (uint32_t i = 0; i < r->nslots && r->slots; i++)
        if (r->slots[i].busy)
            channel_cancel(c, &r->slots[i].request);
    local_header_init(&m.h, LOCAL_RESTORE_CLOSE, sizeof(m), 0);
    if (r->id)
        channel_tell(c, &m.h);
    session_detach(r->session, r->attachment);
}

void cairn_restore_free(struct cairn_restore *restore)
{
    if (!restore)
        return;
    bool forked = session_forked(restore->session);

    if (!forked && restore->attachment)
        restore_hang_up(restore);
    view_unmap(&restore->window, forked);
    slice_index_free(&restore->index);
    cairn_catalog_free(&restore->catalog);
    free(restore->slots);
    free(restore->targets);
    free(restore->pieces);
    free(restore);
}

/* ---- describe -------------------------------------------------------------------------------- */

static int restore_check(const struct cairn_restore *r, struct cairn_error *err)
{
    return r ? session_check(r->session, err) : cairn_fail(err, CAIRN_E_INVAL, "there is no restore");
}

int cairn_restore_info(const struct cairn_restore *restore, struct cairn_checkpoint_info *ret_info)
{
    struct cairn_checkpoint_info info = {.size = sizeof(info)};
    int r = restore_check(restore, NULL);

    if (r < 0)
        return r;
    if (!ret_info || ret_info->size < sizeof(info))
        return CAIRN_E_INVAL;
    info.step = restore->catalog.step;
    info.incarnation = restore->catalog.incarnation;
    info.world_size = restore->catalog.world_size;
    info.slices = slice_index_count(&restore->index);
    for (uint32_t i = 0; i < restore->catalog.nshards; i++)
        for (uint32_t s = 0; s < restore->catalog.shards[i].layout.nslices; s++)
            info.bytes += restore->catalog.shards[i].layout.slices[s].bytes;
    info.size = ret_info->size;
    memcpy(ret_info, &info, sizeof(info));
    return 0;
}

int cairn_restore_slice(const struct cairn_restore *restore, uint64_t i, uint32_t *ret_rank,
                        struct cairn_tensor *ret_tensor)
{
    uint32_t shard;
    int r = restore_check(restore, NULL);

    if (r < 0)
        return r;
    if (i >= slice_index_count(&restore->index))
        return CAIRN_E_NOT_FOUND;
    const struct cairn_slice *s = slice_index_get(&restore->index, i, &shard);
    if (ret_rank)
        *ret_rank = restore->catalog.shards[shard].rank;
    if (ret_tensor)
        *ret_tensor = (struct cairn_tensor){.size = sizeof(*ret_tensor),
                                            .name = s->name,
                                            .dtype = s->dtype,
                                            .ndim = s->box.ndim,
                                            .shape = s->shape,
                                            .offset = s->box.offset,
                                            .length = s->box.length};
    return 0;
}

/* Whether this session's rank saved it. */
static bool is_own(const struct cairn_restore *r, uint32_t shard)
{
    const struct local_open *o = &r->session->open;

    return !(o->flags & CAIRN_OBSERVER) && r->catalog.shards[shard].rank == o->rank;
}

/* The slice of a name that a reader of all of it would be given first. */
static const struct cairn_slice *find_nearest(const struct cairn_restore *r, const char *name)
{
    const struct cairn_slice *nearest = NULL;
    uint32_t len = (uint32_t)strlen(name), shard;

    for (uint64_t i = INDEX_NONE; (i = slice_index_next(&r->index, name, len, i)) != INDEX_NONE;) {
        const struct cairn_slice *s = slice_index_get(&r->index, i, &shard);
        if (is_own(r, shard))
            return s;
        nearest = nearest ? nearest : s;
    }
    return nearest;
}

int cairn_restore_find(const struct cairn_restore *restore, const char *name, struct cairn_tensor *ret_tensor,
                       struct cairn_error *err)
{
    int r = restore_check(restore, err);

    if (r < 0)
        return r;
    if (!name || strnlen(name, CAIRN_MAX_TENSOR_NAME + 1) > CAIRN_MAX_TENSOR_NAME)
        return cairn_fail(err, CAIRN_E_INVAL, "a tensor's name has up to %d bytes", CAIRN_MAX_TENSOR_NAME);
    const struct cairn_slice *s = find_nearest(restore, name);
    if (!s)
        return cairn_fail(err, CAIRN_E_NOT_FOUND, "the checkpoint has no tensor \"%.300s\"", name);
    *ret_tensor = (struct cairn_tensor){
        .size = sizeof(*ret_tensor), .name = s->name, .dtype = s->dtype, .ndim = s->box.ndim, .shape = s->shape};
    return 0;
}

/* ---- add: targets and pieces ----------------------------------------------------------------- */

static int reserve_target(struct cairn_restore *r, struct cairn_error *err)
{
    if (r->ntargets < r->targets_room)
        return 0;
    uint32_t room = r->targets_room ? 2 * r->targets_room : 64;
    struct restore_target *more = realloc(r->targets, room * sizeof(*more));
    if (!more)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate %u targets", room);
    r->targets = more;
    r->targets_room = room;
    return 0;
}

/* The target of the next pieces; it counts once ntargets is raised. stride NULL: dense. */
static int set_target(struct cairn_restore *r, const struct cairn_box *box, size_t elem_size, const int64_t *stride,
                      void *data, struct device *device, struct cairn_error *err)
{
    int code = reserve_target(r, err);

    if (code < 0)
        return code;
    struct restore_target *t = &r->targets[r->ntargets];
    int64_t dense = (int64_t)elem_size;
    *t = (struct restore_target){.data = data, .device = device};
    for (uint32_t d = box->ndim; d-- > 0;) {
        t->origin[d] = box->offset[d];
        t->stride[d] = stride ? stride[d] : dense;
        dense *= (int64_t)box->length[d];
    }
    return 0;
}

static int push_piece(struct cairn_restore *r, uint32_t shard, const struct cairn_slice *s, const struct cairn_box *box,
                      struct cairn_error *err)
{
    if (r->npieces == r->pieces_room) {
        size_t room = r->pieces_room ? 2 * r->pieces_room : 64;
        struct restore_piece *more = realloc(r->pieces, room * sizeof(*more));
        if (!more)
            return cairn_fail(err, CAIRN_E_NOMEM, "allocate %zu pieces", room);
        r->pieces = more;
        r->pieces_room = room;
    }
    r->pieces[r->npieces++] = (struct restore_piece){
        .target = r->ntargets,
        .shard = shard,
        .slice = (uint32_t)(s - r->catalog.shards[shard].layout.slices),
        .box = *box,
        .bytes = cairn_box_elements(box) * cairn_dtype_size(s->dtype),
    };
    return 0;
}

/* What of a request is not covered yet. */
struct todo {
    struct cairn_box *boxes;
    size_t n;
    size_t room;
};

static int todo_push(struct todo *t, const struct cairn_box *boxes, size_t n, struct cairn_error *err)
{
    if (t->n + n > t->room) {
        size_t room = 2 * (t->n + n);
        struct cairn_box *more = realloc(t->boxes, room * sizeof(*more));
        if (!more)
            return cairn_fail(err, CAIRN_E_NOMEM, "allocate %zu boxes", room);
        t->boxes = more;
        t->room = room;
    }
    memcpy(t->boxes + t->n, boxes, n * sizeof(*boxes));
    t->n += n;
    return 0;
}

static void todo_free(struct todo *t)
{
    free(t->boxes);
}

/* Takes from every box what the slice has. The rests are appended: they share nothing with the slice, so the loop needs
 * not look at them again. */
static int cover_with(struct cairn_restore *r, struct todo *t, uint32_t shard, const struct cairn_slice *s,
                      struct cairn_error *err)
{
    struct cairn_box rest[2 * CAIRN_MAX_DIMS], common;
    int code = 0;

    for (size_t i = t->n; i-- > 0 && code == 0;) {
        if (!cairn_box_intersect(&t->boxes[i], &s->box, &common))
            continue;
        unsigned n = cairn_box_subtract(&t->boxes[i], &s->box, rest);
        t->boxes[i] = t->boxes[--t->n];
        code = push_piece(r, shard, s, &common, err);
        if (code == 0 && n)
            code = todo_push(t, rest, n, err);
    }
    return code;
}

static bool same_tensor(const struct cairn_slice *a, const struct cairn_slice *b)
{
    return a->dtype == b->dtype && a->box.ndim == b->box.ndim &&
           memcmp(a->shape, b->shape, a->box.ndim * sizeof(a->shape[0])) == 0;
}

static void write_extents(char *text, size_t room, const uint64_t *from, const uint64_t *extent, uint32_t ndim)
{
    size_t at = 0;

    text[0] = '\0';
    for (uint32_t d = 0; d < ndim && at < room; d++) {
        const char *comma = d ? ", " : "";
        int n = from ? snprintf(text + at, room - at, "%s%llu:%llu", comma, (unsigned long long)from[d],
                                (unsigned long long)(from[d] + extent[d]))
                     : snprintf(text + at, room - at, "%s%llu", comma, (unsigned long long)extent[d]);
        at += n > 0 ? (size_t)n : room;
    }
}

static int fail_differs(const struct cairn_slice *asked, const struct cairn_slice *saved, struct cairn_error *err)
{
    char want[128], have[128];

    write_extents(want, sizeof(want), NULL, asked->shape, asked->box.ndim);
    write_extents(have, sizeof(have), NULL, saved->shape, saved->box.ndim);
    return cairn_fail(err, CAIRN_E_INVAL, "tensor \"%.200s\" is %s [%s] in the checkpoint, asked for as %s [%s]",
                      saved->name, cairn_dtype_name(saved->dtype), have, cairn_dtype_name(asked->dtype), want);
}

static int fail_uncovered(const struct cairn_slice *asked, const struct cairn_box *missing, struct cairn_error *err)
{
    char range[200];

    write_extents(range, sizeof(range), missing->offset, missing->length, missing->ndim);
    return cairn_fail(err, CAIRN_E_NOT_FOUND, "tensor \"%.200s\": no rank saved its elements [%s]", asked->name, range);
}

/* Goes through the saved slices of the tensor, own: those of this session's rank, else: all others. A replica that this
 * rank saved itself is nearer than one of another rank. Ranks may use one name for different tensors: what has another
 * dtype or shape is not what was asked for. */
static int cover(struct cairn_restore *r, struct todo *t, const struct cairn_slice *asked, bool own,
                 struct cairn_error *err)
{
    uint64_t i = INDEX_NONE;
    int code = 0;

    while (code == 0 && t->n && (i = slice_index_next(&r->index, asked->name, asked->name_len, i)) != INDEX_NONE) {
        uint32_t shard;
        const struct cairn_slice *s = slice_index_get(&r->index, i, &shard);
        if (is_own(r, shard) == own && same_tensor(asked, s))
            code = cover_with(r, t, shard, s, err);
    }
    return code;
}

/* Is there a slice of this tensor at all? */
static int find_tensor(const struct cairn_restore *r, const struct cairn_slice *asked, struct cairn_error *err)
{
    uint64_t first = slice_index_next(&r->index, asked->name, asked->name_len, INDEX_NONE);

    for (uint64_t i = first; i != INDEX_NONE; i = slice_index_next(&r->index, asked->name, asked->name_len, i))
        if (same_tensor(asked, slice_index_get(&r->index, i, NULL)))
            return 0;
    if (first == INDEX_NONE)
        return cairn_fail(err, CAIRN_E_NOT_FOUND, "the checkpoint has no tensor \"%.300s\"", asked->name);
    return fail_differs(asked, slice_index_get(&r->index, first, NULL), err);
}

static int add_pieces(struct cairn_restore *r, const struct cairn_slice *asked, struct cairn_error *err)
{
    CAIRN_CLEANUP(todo_free) struct todo t = {0};
    int code = find_tensor(r, asked, err);

    if (code < 0 || asked->bytes == 0)
        return code;
    code = todo_push(&t, &asked->box, 1, err);
    if (code == 0)
        code = cover(r, &t, asked, true, err);
    if (code == 0)
        code = cover(r, &t, asked, false, err);
    if (code == 0 && t.n)
        code = fail_uncovered(asked, &t.boxes[0], err);
    return code;
}

/* The device that the memory must be of; NULL: the host. */
static int find_device(struct cairn_restore *r, const struct cairn_slice *asked, const struct cairn_tensor *tensor,
                       struct device **ret_device, struct cairn_error *err)
{
    if (tensor->device == CAIRN_HOST || asked->bytes == 0)
        return 0;
    int code = devices_use(&r->session->devices, tensor->device, ret_device, err);
    if (code < 0)
        return cairn_wrap(err, code, "tensor \"%.200s\"", asked->name);
    return device_check_slice(*ret_device, asked, tensor->stride_bytes, tensor->data, err);
}

static int add_slice(struct cairn_restore *r, const struct cairn_slice *asked, const struct cairn_tensor *tensor,
                     struct cairn_error *err)
{
    size_t before = r->npieces;

    if (asked->bytes && !tensor->data)
        return cairn_fail(err, CAIRN_E_INVAL, "tensor \"%.300s\" has no memory to restore to", asked->name);
    struct device *device = NULL;
    int code = find_device(r, asked, tensor, &device, err);
    if (code == 0)
        code =
            set_target(r, &asked->box, cairn_dtype_size(asked->dtype), tensor->stride_bytes, tensor->data, device, err);
    if (code == 0)
        code = add_pieces(r, asked, err);
    if (code < 0)
        r->npieces = before;
    else
        r->ntargets++;
    return code;
}

static int add_tensor(struct cairn_restore *r, const struct cairn_tensor *tensor, struct cairn_error *err)
{
    CAIRN_CLEANUP(cairn_layout_free) struct cairn_layout asked;
    int code = struct_check("cairn_tensor", tensor, tensor ? tensor->size : 0, sizeof(*tensor), err);

    cairn_layout_init(&asked);
    if (code == 0)
        code = cairn_layout_add(&asked, tensor, err); /* checks what save checks */
    return code < 0 ? code : add_slice(r, &asked.slices[0], tensor, err);
}

int cairn_restore_add(struct cairn_restore *restore, const struct cairn_tensor *tensor, struct cairn_error *err)
{
    int r = restore_check(restore, err);

    return r < 0 ? r : add_tensor(restore, tensor, err);
}

int cairn_restore_add_all(struct cairn_restore *restore, const struct cairn_tensor *tensors, uint64_t count,
                          struct cairn_error *err)
{
    int r = restore_check(restore, err);

    if (r == 0 && !tensors && count)
        r = cairn_fail(err, CAIRN_E_INVAL, "there are no tensors");
    if (r < 0)
        return r;
    size_t npieces = restore->npieces;
    uint32_t ntargets = restore->ntargets;
    for (uint64_t i = 0; i < count && r == 0; i++)
        r = add_tensor(restore, tensor_at(tensors, i), err);
    if (r < 0) { /* all or none */
        restore->npieces = npieces;
        restore->ntargets = ntargets;
    }
    return r;
}

int cairn_restore_add_slice(struct cairn_restore *restore, uint64_t i, void *data, struct cairn_error *err)
{
    uint32_t shard;
    int r = restore_check(restore, err);

    if (r < 0)
        return r;
    if (i >= slice_index_count(&restore->index))
        return cairn_fail(err, CAIRN_E_NOT_FOUND, "slice %llu of %llu", (unsigned long long)i,
                          (unsigned long long)slice_index_count(&restore->index));
    const struct cairn_slice *s = slice_index_get(&restore->index, i, &shard);
    if (s->bytes == 0)
        return 0;
    if (!data)
        return cairn_fail(err, CAIRN_E_INVAL, "slice %llu has no memory to restore to", (unsigned long long)i);
    r = set_target(restore, &s->box, cairn_dtype_size(s->dtype), NULL, data, NULL, err);
    if (r == 0)
        r = push_piece(restore, shard, s, &s->box, err);
    if (r == 0)
        restore->ntargets++;
    return r;
}
