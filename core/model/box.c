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

struct loop {
    uint64_t count;
    uint64_t image_stride; /* bytes; more than all inner loops span */
    int64_t target_stride; /* bytes, any */
};

struct walk {
    struct loop loops[CAIRN_MAX_DIMS]; /* outer first */
    unsigned nloops;
    uint64_t run;   /* contiguous bytes on both sides; 0: nothing to copy */
    uint64_t image; /* where the first run begins in the image */
    uint64_t span;  /* bytes in the image from there to the last run's end */
    char *target;   /* of the first run */
};

/* Puts a loop around the walk built so far, merged with what is inside where that is the same. */
static void walk_wrap(struct walk *w, struct loop l)
{
    struct loop *inner = w->nloops ? &w->loops[w->nloops - 1] : NULL; /* innermost first while building */
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

static void walk_reverse(struct walk *w)
{
    for (unsigned i = 0; i < w->nloops / 2; i++) {
        struct loop l = w->loops[i];

        w->loops[i] = w->loops[w->nloops - 1 - i];
        w->loops[w->nloops - 1 - i] = l;
    }
}

/* Strides are multiplied as unsigned: coordinates before the target's origin give negative distances. */
static ptrdiff_t distance(uint64_t count, int64_t stride)
{
    return (ptrdiff_t)(count * (uint64_t)stride);
}

static struct walk walk_of(const struct cairn_box_copy *c)
{
    struct walk w = {.image = c->image_offset};
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
        walk_wrap(&w, (struct loop){c->box.length[d], stride, c->target_stride[d]});
        stride *= c->source.length[d];
    }
    w.span = elements_span + c->elem_size;
    w.target = (char *)((uintptr_t)c->target + (uintptr_t)to_target); /* a span is asked for without a target */
    walk_reverse(&w);
    return w;
}

void cairn_box_copy_span(const struct cairn_box_copy *c, uint64_t *ret_begin, uint64_t *ret_end)
{
    struct walk w = walk_of(c);

    *ret_begin = w.image;
    *ret_end = w.image + w.span;
}

/* Where the walk stands: one index per loop, and what they add up to on both sides. */
struct position {
    uint64_t index[CAIRN_MAX_DIMS];
    uint64_t image; /* bytes from the walk's first run */
    char *target;
};

/* Steps loop i forward by one, carrying outwards; inner loops must stand at 0. False past the end. */
static bool step_loop(const struct walk *w, struct position *p, unsigned i)
{
    for (;;) {
        const struct loop *l = &w->loops[i];

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
static bool seek_run(const struct walk *w, uint64_t at, struct position *p)
{
    *p = (struct position){.target = w->target};
    for (unsigned i = 0; i < w->nloops; i++) {
        const struct loop *l = &w->loops[i];
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

struct window {
    char *data;     /* the window's first byte */
    uint64_t begin; /* relative to the walk's first run */
    uint64_t end;
    bool fill; /* from the target into the window; else the other way */
};

static void move_between(const struct window *win, char *target, int64_t target_stride, uint64_t image,
                         int64_t image_stride, size_t run, uint64_t n)
{
    char *data = win->data + (image - win->begin);

    if (win->fill)
        move_runs(data, image_stride, target, target_stride, run, n);
    else
        move_runs(target, target_stride, data, image_stride, run, n);
}

/* Moves what the window holds of the run at p. */
static void move_piece(const struct walk *w, const struct window *win, const struct position *p)
{
    uint64_t begin = p->image > win->begin ? p->image : win->begin;
    uint64_t run_end = p->image + w->run;
    uint64_t end = run_end < win->end ? run_end : win->end;

    move_between(win, p->target + (begin - p->image), 0, begin, 0, end - begin, 1);
}

/* Moves the runs of the innermost loop from p on that the window holds whole, and leaves p at the last of them.
 * Returns how many: 0 when the run at p is cut by the window. */
static uint64_t move_whole(const struct walk *w, const struct window *win, struct position *p)
{
    if (!w->nloops || p->image < win->begin || win->end - p->image < w->run)
        return 0;
    unsigned i = w->nloops - 1;
    const struct loop *l = &w->loops[i];
    uint64_t n = (win->end - p->image - w->run) / l->image_stride + 1;

    if (n > l->count - p->index[i])
        n = l->count - p->index[i];
    move_between(win, p->target, l->target_stride, p->image, (int64_t)l->image_stride, w->run, n);
    p->index[i] += n - 1;
    p->image += (n - 1) * l->image_stride;
    p->target += distance(n - 1, l->target_stride);
    return n;
}

static void move_window(const struct cairn_box_copy *c, char *data, uint64_t begin, size_t len, bool fill)
{
    struct walk w = walk_of(c);
    uint64_t end = begin + len;
    struct position p;

    if (begin < w.image) { /* the window is cut to what the walk spans */
        data += w.image - begin < len ? w.image - begin : len;
        begin = w.image;
    }
    if (end > w.image + w.span)
        end = w.image + w.span;
    if (begin >= end)
        return;
    struct window win = {data, begin - w.image, end - w.image, fill};
    for (bool more = seek_run(&w, win.begin, &p); more && p.image < win.end;) {
        if (!move_whole(&w, &win, &p))
            move_piece(&w, &win, &p);
        more = w.nloops > 0 && step_loop(&w, &p, w.nloops - 1);
    }
}

void cairn_box_copy_window(const struct cairn_box_copy *c, const void *src, uint64_t begin, size_t len)
{
    move_window(c, (char *)src, begin, len, false); /* only read */
}

void cairn_box_fill_window(const struct cairn_box_copy *c, void *dst, uint64_t begin, size_t len)
{
    move_window(c, dst, begin, len, true);
}
