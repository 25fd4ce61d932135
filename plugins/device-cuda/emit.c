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
        return copied(e, c->copy(to, source, *ret_done, e->kind, e->stream), *ret_done, err);
    }
    uint64_t rows = rows_at_once(e, s, row, room);
    *ret_done = rows * s->width;
    if (rows == 1)
        return copied(e, c->copy(to, source, s->width, e->kind, e->stream), s->width, err);
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
