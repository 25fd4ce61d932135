/* SPDX-License-Identifier: Apache-2.0 */
#include "client/image.h"

#include <stdlib.h>
#include <string.h>

#include "client/crew.h"
#include "core/base/error.h"
#include "core/model/units.h"

#define COMPARE_EVERY 8    /* in one of so many parts some pages that are left out are compared with what is held */
#define PARTS_PER_THREAD 8 /* a thread must have so much to copy, or making it costs more than it saves */

/* The first whose end lies behind begin. */
static uint32_t first_behind(const struct plan *p, uint64_t begin)
{
    uint32_t low = 0, high = p->npieces;

    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (p->pieces[mid].end > begin)
            high = mid;
        else
            low = mid + 1;
    }
    return low;
}

/* ---- one part -------------------------------------------------------------------------------- */

static void copy_strided(const struct image_copy *c, uint32_t slice, char *dst, uint64_t begin, uint64_t end)
{
    const struct cairn_slice *s = &c->plan->layout.slices[slice];
    const struct image_source *source = &c->sources[slice];
    struct cairn_box_copy box = {
        .source = s->box,
        .box = s->box,
        .image_offset = s->image_offset,
        .elem_size = cairn_dtype_size(s->dtype),
        .target = (char *)source->data, /* only read by a fill */
    };

    memcpy(box.target_origin, s->box.offset, sizeof(box.target_origin));
    memcpy(box.target_stride, source->stride, s->box.ndim * sizeof(box.target_stride[0]));
    cairn_box_fill_window(&box, dst, begin, end - begin);
}

/* The bytes [begin, end) of the image, all of this piece, go to dst. */
static void copy_piece(const struct image_copy *c, const struct plan_piece *p, char *dst, uint64_t begin, uint64_t end)
{
    const struct image_source *source = &c->sources[p->slice];

    if (source->stride)
        copy_strided(c, p->slice, dst, begin, end);
    else
        copy_stream(c->path, dst, source->data + (begin - p->begin), end - begin);
}

/* The i-th part that is walked. */
static uint32_t part_at(const struct image_copy *c, uint32_t i)
{
    return c->parts ? c->parts[i] : i;
}

/* Whether the caller or a device writes to the part, so that nobody knows what its page will hold. */
static bool part_is_open(const struct image_copy *c, uint32_t part)
{
    const struct plan *plan = c->plan;
    uint64_t base = part * (uint64_t)CAIRN_PART, end = base + CAIRN_PART;

    if (!c->open)
        return false;
    for (uint32_t n = first_behind(plan, base); n < plan->npieces && plan->pieces[n].begin < end; n++)
        if (!c->sources[plan->pieces[n].slice].data)
            return true;
    return false;
}

/* All of the part, gaps and all, but for what the caller writes. */
static uint64_t copy_whole(const struct image_copy *c, char *dst, uint64_t base, uint64_t end)
{
    const struct plan *plan = c->plan;
    uint64_t at = base, copied = 0;

    for (uint32_t n = first_behind(plan, base); n < plan->npieces && plan->pieces[n].begin < end; n++) {
        const struct plan_piece *p = &plan->pieces[n];
        uint64_t from = p->begin > base ? p->begin : base;
        uint64_t to = p->end < end ? p->end : end;
        memset(dst + (at - base), 0, from - at); /* the gap before it */
        at = to;
        if (!c->sources[p->slice].data)
            continue;
        copy_piece(c, p, dst + (from - base), from, to);
        copied += to - from;
    }
    memset(dst + (at - base), 0, end - at);
    return copied;
}

/* ---- what changed ---------------------------------------------------------------------------- */

/* A piece's share of a part, in bytes of its slice, and the slice's pages. */
struct window {
    const struct plan_piece *piece;
    char *dst;         /* of byte from */
    uint64_t from, to; /* of the slice */
    const struct cairn_track *track;
    uint64_t first; /* byte of the slice at which page 0 begins */
    uint64_t page_bytes;
    uint32_t since;
};

static uint64_t copy_bytes(const struct image_copy *c, const struct window *w, uint64_t from, uint64_t to)
{
    if (from < w->from)
        from = w->from;
    if (to > w->to)
        to = w->to;
    if (from >= to)
        return 0;
    copy_piece(c, w->piece, w->dst + (from - w->from), w->piece->begin + from, w->piece->begin + to);
    return to - from;
}

/* The pages that hold bytes of the window. */
static void pages_of(const struct window *w, uint32_t *ret_first, uint32_t *ret_end)
{
    uint64_t pages_end = w->first + w->track->npages * w->page_bytes;
    uint64_t from = w->from > w->first ? w->from : w->first, to = w->to < pages_end ? w->to : pages_end;

    *ret_first = (uint32_t)((from - w->first) / w->page_bytes);
    *ret_end = from < to ? (uint32_t)((to - w->first + w->page_bytes - 1) / w->page_bytes) : *ret_first;
}

static uint64_t copy_changed(const struct image_copy *c, const struct window *w)
{
    uint32_t at, end, n;

    if (!w->track)
        return copy_bytes(c, w, w->from, w->to);
    uint64_t copied = copy_bytes(c, w, 0, w->first); /* what is before its first whole page, and behind the last */
    for (pages_of(w, &at, &end); cairn_track_next(w->track, at, end, w->since, &at, &n); at += n) {
        uint64_t begin = w->first + at * w->page_bytes;
        copied += copy_bytes(c, w, begin, begin + n * w->page_bytes);
    }
    return copied + copy_bytes(c, w, w->first + w->track->npages * w->page_bytes, UINT64_MAX);
}

/* Whether a page of the window that is left out is what the arena holds. Which one changes from save to save. */
static bool is_as_held(const struct image_copy *c, const struct window *w)
{
    uint32_t first, end, at, n;

    if (!w->track)
        return true;
    pages_of(w, &first, &end);
    if (first == end)
        return true;
    uint32_t page = first + (c->tracked->epoch * 2654435761u >> 8) % (end - first);
    uint64_t from = w->first + page * w->page_bytes, to = from + w->page_bytes;
    if (from < w->from || to > w->to || cairn_track_next(w->track, page, page + 1, w->since, &at, &n))
        return true;
    return memcmp(w->dst + (from - w->from), c->sources[w->piece->slice].data + from, w->page_bytes) == 0;
}

struct crew {
    const struct image_copy *copy;
    uint32_t next;   /* atomic: of the parts that are walked; who takes one adds one */
    uint64_t copied; /* atomic */
    uint32_t wrong;  /* atomic: a slice that was written unseen, plus one */
};

/* The part is there as of an earlier epoch: only what was written since. */
static uint64_t copy_part_changed(struct crew *crew, uint32_t part, char *dst, uint64_t end, uint32_t since)
{
    const struct image_copy *c = crew->copy;
    const struct plan *plan = c->plan;
    uint64_t base = part * (uint64_t)CAIRN_PART, copied = 0;
    uint32_t every = plan->layout.nparts < COMPARE_EVERY ? plan->layout.nparts : COMPARE_EVERY;
    bool compare = part % every == c->tracked->epoch % every;

    for (uint32_t n = first_behind(plan, base); n < plan->npieces && plan->pieces[n].begin < end; n++) {
        const struct plan_piece *p = &plan->pieces[n];
        uint64_t from = p->begin > base ? p->begin : base;
        struct window w = {.piece = p,
                           .dst = dst + (from - base),
                           .from = from - p->begin,
                           .to = (p->end < end ? p->end : end) - p->begin,
                           .page_bytes = tracked_page_bytes(c->tracked),
                           .since = since};
        w.track = tracked_pages(c->tracked, p->slice, &w.first);
        copied += copy_changed(c, &w);
        if (compare && !is_as_held(c, &w))
            __atomic_store_n(&crew->wrong, p->slice + 1, __ATOMIC_RELAXED);
    }
    return copied;
}

static uint64_t copy_part(struct crew *crew, uint32_t part)
{
    const struct image_copy *c = crew->copy;
    char *dst = arena_page(c->arena, c->pages[part]);
    uint64_t base = part * (uint64_t)CAIRN_PART, end = base + cairn_layout_part_len(&c->plan->layout, part);

    if (!c->tracked)
        return copy_whole(c, dst, base, end);
    struct cairn_held *held = &c->arena->held[c->pages[part]];
    uint32_t since = part_is_open(c, part) ? 0 : cairn_held_since(held, c->plan->serial, part);
    cairn_held_drop(held);
    return since ? copy_part_changed(crew, part, dst, end, since) : copy_whole(c, dst, base, end);
}

/* ---- threads --------------------------------------------------------------------------------- */

static void *crew_work(void *arg)
{
    struct crew *crew = arg;
    uint64_t copied = 0;

    for (;;) {
        uint32_t i = __atomic_fetch_add(&crew->next, 1, __ATOMIC_RELAXED);
        if (i >= crew->copy->nparts)
            break;
        copied += copy_part(crew, part_at(crew->copy, i));
    }
    __atomic_fetch_add(&crew->copied, copied, __ATOMIC_RELAXED);
    copy_fence(); /* the streamed stores of this thread */
    return NULL;
}

static uint64_t run(const struct image_copy *c, unsigned threads, uint32_t *ret_wrong)
{
    struct crew crew = {.copy = c};
    unsigned useful = c->nparts / PARTS_PER_THREAD;

    crew_run(crew_work, &crew, threads < useful ? threads : useful);
    *ret_wrong = crew.wrong;
    return crew.copied;
}

uint64_t image_copy_run(const struct image_copy *c, unsigned threads)
{
    struct image_copy all = *c;
    uint32_t wrong;
    uint64_t copied = run(c, threads, &wrong);

    if (wrong) {
        tracked_is_wrong(c->tracked, c->plan->layout.slices[wrong - 1].name);
        all.tracked = NULL;
        return copied + run(&all, threads, &wrong);
    }
    for (uint32_t i = 0; c->tracked && i < c->nparts; i++) {
        uint32_t p = part_at(c, i);
        if (!part_is_open(c, p))
            cairn_held_set(&c->arena->held[c->pages[p]], c->plan->serial, p, c->tracked->epoch);
    }
    return copied;
}
