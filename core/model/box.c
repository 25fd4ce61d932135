/* SPDX-License-Identifier: Apache-2.0 */
/* Set operations on boxes are per dimension. Copying is more work, because it runs at memory speed:
 *
 * 1. A copy becomes a walk: nested loops of (count, stride in the image, stride in the target) around a run of
 *    contiguous bytes. Inner dimensions that are dense on both sides are merged into the run, neighbouring loops that
 *    step alike are merged into one; a whole dense tensor becomes a single run.
 * 2. Runs come in the order of the image. The first that touches a window is found by division, and the walk stops at
 *    the window's end, so a window costs what it holds.
 */
#include "core/model/box.h"

#include <string.h>

uint64_t cairn_box_elements(const struct cairn_box *b)
{
    uint64_t n = 1;

    for (uint32_t d = 0; d < b->ndim; d++)
        n *= b->length[d];
    return n;
}

bool cairn_box_intersect(const struct cairn_box *a, const struct cairn_box *b, struct cairn_box *ret_common)
{
    struct cairn_box common = {.ndim = a->ndim};

    for (uint32_t d = 0; d < a->ndim; d++) {
        uint64_t begin = a->offset[d] > b->offset[d] ? a->offset[d] : b->offset[d];
        uint64_t a_end = a->offset[d] + a->length[d];
        uint64_t b_end = b->offset[d] + b->length[d];
        uint64_t end = a_end < b_end ? a_end : b_end;

        if (begin >= end)
            return false;
        common.offset[d] = begin;
        common.length[d] = end - begin;
    }
    *ret_common = common;
    return true;
}

unsigned cairn_box_subtract(const struct cairn_box *a, const struct cairn_box *b, struct cairn_box *ret_rest)
{
    struct cairn_box left = *a; /* what is not given out yet */
    struct cairn_box common;
    unsigned n = 0;

    if (!cairn_box_intersect(a, b, &common)) {
        if (!cairn_box_elements(a))
            return 0;
        ret_rest[0] = left;
        return 1;
    }
    for (uint32_t d = 0; d < left.ndim; d++) {
        uint64_t before = common.offset[d] - left.offset[d];
        uint64_t after = left.length[d] - before - common.length[d];

        if (before) {
            ret_rest[n] = left;
            ret_rest[n++].length[d] = before;
        }
        if (after) {
            ret_rest[n] = left;
            ret_rest[n].offset[d] = common.offset[d] + common.length[d];
            ret_rest[n++].length[d] = after;
        }
        left.offset[d] = common.offset[d];
        left.length[d] = common.length[d];
    }
    return n;
}

/* ---- copying --------------------------------------------------------------------------------- */

/* Puts a loop around the walk built so far, merged with what is inside where that is the same. */
static void walk_wrap(struct cairn_box_walk *w, struct cairn_box_loop l)
{
    struct cairn_box_loop *inner = w->nloops ? &w->loops[w->nloops - 1] : NULL; /* innermost first while building */
    int64_t step;

    if (l.count == 1)
        return;
    if (!inner && l.image_stride == w->run && l.target_stride == (int64_t)w->run) {
        w->run *= l.count;
        return;
    }
    if (inner && l.image_stride == inner->image_stride * inner->count &&
        !__builtin_mul_overflow(inner->target_stride, (int64_t)inner->count, &step) && l.target_stride == step) {
        inner->count *= l.count;
        return;
    }
    w->loops[w->nloops++] = l;
}

static void walk_reverse(struct cairn_box_walk *w)
{
    for (unsigned i = 0; i < w->nloops / 2; i++) {
        struct cairn_box_loop l = w->loops[i];

        w->loops[i] = w->loops[w->nloops - 1 - i];
        w->loops[w->nloops - 1 - i] = l;
    }
}

/* Strides are multiplied as unsigned: coordinates before the target's origin give negative distances. */
static ptrdiff_t distance(uint64_t count, int64_t stride)
{
    return (ptrdiff_t)(count * (uint64_t)stride);
}

static struct cairn_box_walk walk_of(const struct cairn_box_copy *c)
{
    struct cairn_box_walk w = {.image = c->image_offset};
    uint64_t stride = c->elem_size;
    uint64_t elements_span = 0;
    ptrdiff_t to_target = 0;

    if (!cairn_box_elements(&c->box))
        return w;
    w.run = c->elem_size;
    for (uint32_t d = c->box.ndim; d-- > 0;) {
        w.image += (c->box.offset[d] - c->source.offset[d]) * stride;
        to_target += distance(c->box.offset[d] - c->target_origin[d], c->target_stride[d]);
        elements_span += (c->box.length[d] - 1) * stride;
        walk_wrap(&w, (struct cairn_box_loop){c->box.length[d], stride, c->target_stride[d]});
        stride *= c->source.length[d];
    }
    w.span = elements_span + c->elem_size;
    w.target = (char *)((uintptr_t)c->target + (uintptr_t)to_target); /* a span is asked for without a target */
    walk_reverse(&w);
    return w;
}

void cairn_box_copy_span(const struct cairn_box_copy *c, uint64_t *ret_begin, uint64_t *ret_end)
{
    struct cairn_box_walk w = walk_of(c);

    *ret_begin = w.image;
    *ret_end = w.image + w.span;
}

/* Steps loop i forward by one, carrying outwards; inner loops must stand at 0. False past the end. */
static bool step_loop(const struct cairn_box_walk *w, struct cairn_box_position *p, unsigned i)
{
    for (;;) {
        const struct cairn_box_loop *l = &w->loops[i];

        if (++p->index[i] < l->count) {
            p->image += l->image_stride;
            p->target += l->target_stride;
            return true;
        }
        p->image -= (l->count - 1) * l->image_stride;
        p->target -= distance(l->count - 1, l->target_stride);
        p->index[i] = 0;
        if (i-- == 0)
            return false;
    }
}

/* The first run that ends after byte at of the walk's span; false when there is none. */
static bool seek_run(const struct cairn_box_walk *w, uint64_t at, struct cairn_box_position *p)
{
    *p = (struct cairn_box_position){.target = w->target};
    for (unsigned i = 0; i < w->nloops; i++) {
        const struct cairn_box_loop *l = &w->loops[i];
        uint64_t index = (at - p->image) / l->image_stride;

        if (index >= l->count) /* in the gap after this loop's last run */
            return i > 0 && step_loop(w, p, i - 1);
        p->index[i] = index;
        p->image += index * l->image_stride;
        p->target += distance(index, l->target_stride);
    }
    if (at - p->image < w->run)
        return true;
    return w->nloops > 0 && step_loop(w, p, w->nloops - 1);
}

/* ---- runs ------------------------------------------------------------------------------------ */

void cairn_box_runs_begin(struct cairn_box_runs *r, const struct cairn_box_copy *c, uint64_t begin, size_t len)
{
    uint64_t end = begin + len;

    r->walk = walk_of(c);
    if (begin < r->walk.image) /* the window is cut to what the walk spans */
        begin = r->walk.image;
    if (end > r->walk.image + r->walk.span)
        end = r->walk.image + r->walk.span;
    r->more = begin < end;
    if (!r->more)
        return;
    r->begin = begin - r->walk.image;
    r->end = end - r->walk.image;
    r->more = seek_run(&r->walk, r->begin, &r->at);
}

/* What the window holds of the run at which the walk stands. */
static void take_piece(const struct cairn_box_runs *r, struct cairn_box_run *ret_run)
{
    const struct cairn_box_position *p = &r->at;
    uint64_t begin = p->image > r->begin ? p->image : r->begin;
    uint64_t run_end = p->image + r->walk.run;
    uint64_t bytes = (run_end < r->end ? run_end : r->end) - begin;

    *ret_run = (struct cairn_box_run){.image = r->walk.image + begin,
                                      .target = p->target + (begin - p->image),
                                      .bytes = bytes,
                                      .count = 1,
                                      .image_stride = bytes,
                                      .target_stride = (int64_t)bytes};
}

/* The runs of the innermost loop from the walk's place on that the window holds whole; leaves it at the last of them.
 * False when the run there is cut by the window, or there is no loop. */
static bool take_whole(struct cairn_box_runs *r, struct cairn_box_run *ret_run)
{
    const struct cairn_box_walk *w = &r->walk;
    struct cairn_box_position *p = &r->at;

    if (!w->nloops || p->image < r->begin || r->end - p->image < w->run)
        return false;
    unsigned i = w->nloops - 1;
    const struct cairn_box_loop *l = &w->loops[i];
    uint64_t n = (r->end - p->image - w->run) / l->image_stride + 1;

    if (n > l->count - p->index[i])
        n = l->count - p->index[i];
    *ret_run = (struct cairn_box_run){.image = w->image + p->image,
                                      .target = p->target,
                                      .bytes = w->run,
                                      .count = n,
                                      .image_stride = n > 1 ? l->image_stride : w->run,
                                      .target_stride = n > 1 ? l->target_stride : (int64_t)w->run};
    p->index[i] += n - 1;
    p->image += (n - 1) * l->image_stride;
    p->target += distance(n - 1, l->target_stride);
    return true;
}

bool cairn_box_runs_next(struct cairn_box_runs *r, struct cairn_box_run *ret_run)
{
    if (!r->more || r->at.image >= r->end)
        return false;
    if (!take_whole(r, ret_run))
        take_piece(r, ret_run);
    r->more = r->walk.nloops > 0 && step_loop(&r->walk, &r->at, r->walk.nloops - 1);
    return true;
}

/* ---- copies ---------------------------------------------------------------------------------- */

/* Copies n runs of a size known to the compiler. */
#define MOVE_RUNS(size_)                                                   \
    for (uint64_t i = 0; i < n; i++, to += to_stride, from += from_stride) \
    memcpy(to, from, (size_))

static void move_runs(char *to, int64_t to_stride, const char *from, int64_t from_stride, size_t run, uint64_t n)
{
    switch (run) {
    case 1:
        MOVE_RUNS(1);
        break;
    case 2:
        MOVE_RUNS(2);
        break;
    case 4:
        MOVE_RUNS(4);
        break;
    case 8:
        MOVE_RUNS(8);
        break;
    default:
        MOVE_RUNS(run);
    }
}

void cairn_box_copy_window(const struct cairn_box_copy *c, const void *src, uint64_t begin, size_t len)
{
    struct cairn_box_runs runs;
    struct cairn_box_run r;

    cairn_box_runs_begin(&runs, c, begin, len);
    while (cairn_box_runs_next(&runs, &r))
        move_runs(r.target, r.target_stride, (const char *)src + (r.image - begin), (int64_t)r.image_stride, r.bytes,
                  r.count);
}

void cairn_box_fill_window(const struct cairn_box_copy *c, void *dst, uint64_t begin, size_t len)
{
    struct cairn_box_runs runs;
    struct cairn_box_run r;

    cairn_box_runs_begin(&runs, c, begin, len);
    while (cairn_box_runs_next(&runs, &r))
        move_runs((char *)dst + (r.image - begin), (int64_t)r.image_stride, r.target, r.target_stride, r.bytes,
                  r.count);
}
