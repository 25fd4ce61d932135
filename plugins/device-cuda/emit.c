/* SPDX-License-Identifier: Apache-2.0 */
/* One range of a slice as calls of the copy engine: as few as pages, registrations and strides allow. */
#include "plugins/device-cuda/device.h"

#include "core/base/error.h"

char *target_at(struct emit *e, uint64_t at, uint64_t want, uint64_t *ret_room)
{
    const struct target *t = &e->to;

    if (!t->page) {
        *ret_room = want;
        return t->flat + (at - t->flat_at);
    }
    uint64_t part = at / PART, room = PART - at % PART;
    char *to = (char *)t->page[part] + at % PART;
    while (room < want && (char *)t->page[part + 1] == (char *)t->page[part] + PART) {
        room += PART;
        part++;
    }
    uint64_t pinned = pin_room(e->device, to);
    room = room < want ? room : want;
    *ret_room = room < pinned ? room : pinned;
    return to;
}

static int copied(struct emit *e, cuda_error code, uint64_t bytes, struct cairn_error *err)
{
    char what[96];

    e->calls++;
    if (code == CUDA_OK)
        return 0;
    snprintf(what, sizeof what, "copy %llu bytes", (unsigned long long)bytes);
    return device_fail(e->device, err, code, what);
}

/* ---- many copies at once ------------------------------------------------------------------------ */

bool emit_has_batches(const struct cairn_device *d)
{
    return (d->cuda.copy_batch || d->cuda.copy_batch_12) && !d->no_batches;
}

void copies_free(struct copies *copies)
{
    free(copies->to);
    free(copies->from);
    free(copies->bytes);
    *copies = (struct copies){0};
}

static int copies_add(struct copies *c, void *to, const void *from, size_t bytes, struct cairn_error *err)
{
    if (c->n == c->room) {
        uint32_t room = c->room ? 2 * c->room : 256;
        void *more_to = realloc(c->to, room * sizeof *c->to);
        c->to = more_to ? more_to : c->to;
        void *more_from = realloc(c->from, room * sizeof *c->from);
        c->from = more_from ? more_from : c->from;
        void *more_bytes = realloc(c->bytes, room * sizeof *c->bytes);
        c->bytes = more_bytes ? more_bytes : c->bytes;
        if (!more_to || !more_from || !more_bytes)
            return cairn_fail(err, CAIRN_E_NOMEM, "save: no memory");
        c->room = room;
    }
    c->to[c->n] = to;
    c->from[c->n] = from;
    c->bytes[c->n++] = bytes;
    return 0;
}

static cuda_error put_batch(const struct cuda *c, struct copies *copies, cuda_stream stream)
{
    cuda_copy_attributes how = {.source_order = CUDA_ORDER_STREAM, .flags = CUDA_OVERLAP_WITH_COMPUTE};
    size_t first = 0, failed = 0;

    if (c->copy_batch)
        return c->copy_batch(copies->to, copies->from, copies->bytes, copies->n, &how, &first, 1, stream);
    return c->copy_batch_12(copies->to, (void **)(uintptr_t)copies->from, copies->bytes, copies->n, &how, &first, 1,
                            &failed, stream);
}

int emit_copies(struct cairn_device *d, struct copies *copies, cuda_copy_kind kind, cuda_stream stream,
                struct cairn_error *err)
{
    cuda_error e = CUDA_E_NOT_SUPPORTED;

    if (copies->n > 1 && emit_has_batches(d))
        e = put_batch(&d->cuda, copies, stream);
    if (e == CUDA_E_NOT_SUPPORTED || e == CUDA_E_NEWER_DRIVER) {
        d->no_batches = d->no_batches || copies->n > 1;
        e = CUDA_OK;
        for (uint32_t i = 0; i < copies->n && !e; i++)
            e = d->cuda.copy(copies->to[i], copies->from[i], copies->bytes[i], kind, stream);
    }
    copies->n = 0;
    return e ? device_fail(d, err, e, "copy many pieces") : 0;
}

static int emit_one(struct emit *e, void *to, const void *from, uint64_t bytes, struct cairn_error *err)
{
    if (e->copies)
        return copies_add(e->copies, to, from, bytes, err);
    return copied(e, e->device->cuda.copy(to, from, bytes, e->kind, e->stream), bytes, err);
}

/* ---- a range ------------------------------------------------------------------------------------- */

/* Rows from row on that one call copies: as many as the innermost dimension has left and the target has room for. */
static uint64_t rows_at_once(const struct emit *e, const struct shape *s, uint64_t row, uint64_t room)
{
    const struct shape_dim *d = &s->dims[0];
    uint64_t left = d->count - row % d->count, fit = room / s->width;

    if (d->stride < (int64_t)s->width || (uint64_t)d->stride > e->device->max_pitch)
        return 1; /* the engine takes no such pitch */
    return left < fit ? left : fit;
}

static int emit_some(struct emit *e, const struct shape *s, const char *data, uint64_t from, uint64_t want,
                     uint64_t *ret_done, struct cairn_error *err)
{
    const struct cuda *c = &e->device->cuda;
    uint64_t room, row = from / s->width, within = from % s->width;
    char *to = target_at(e, e->at + from, want, &room);
    const char *source = data + shape_row(s, row) + within;

    if (room == 0)
        return cairn_fail(err, CAIRN_E_INVAL, "page %p of the arena is not pinned", (void *)to);
    if (s->ndims == 0 || within > 0 || room < s->width) {
        *ret_done = s->width - within < room ? s->width - within : room;
        return emit_one(e, to, source, *ret_done, err);
    }
    uint64_t rows = rows_at_once(e, s, row, room);
    *ret_done = rows * s->width;
    if (rows == 1)
        return emit_one(e, to, source, s->width, err);
    return copied(e, c->copy_2d(to, s->width, source, (size_t)s->dims[0].stride, s->width, rows, e->kind, e->stream),
                  *ret_done, err);
}

int emit_range(struct emit *e, const struct shape *shape, const char *data, uint64_t from, uint64_t bytes,
               struct cairn_error *err)
{
    for (uint64_t end = from + bytes, done = 0; from < end; from += done) {
        int r = emit_some(e, shape, data, from, end - from, &done, err);
        if (r < 0)
            return r;
    }
    return 0;
}
