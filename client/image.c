/* SPDX-License-Identifier: Apache-2.0 */
#include "client/image.h"

#include <stdlib.h>
#include <string.h>

#include "client/crew.h"
#include "core/base/error.h"
#include "core/model/units.h"

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

static void copy_part(const struct image_copy *c, uint32_t part)
{
    const struct plan *plan = c->plan;
    char *dst = arena_page(c->arena, c->pages[part]);
    uint64_t base = part * (uint64_t)CAIRN_PART, at = base;
    uint64_t end = base + cairn_layout_part_len(&plan->layout, part);

    for (uint32_t n = first_behind(plan, base); n < plan->npieces && plan->pieces[n].begin < end; n++) {
        const struct plan_piece *p = &plan->pieces[n];
        uint64_t from = p->begin > base ? p->begin : base;
        uint64_t to = p->end < end ? p->end : end;
        memset(dst + (at - base), 0, from - at); /* the gap before it */
        copy_piece(c, p, dst + (from - base), from, to);
        at = to;
    }
    memset(dst + (at - base), 0, end - at);
}

/* ---- threads --------------------------------------------------------------------------------- */

struct crew {
    const struct image_copy *copy;
    uint32_t next_part; /* atomic: who takes a part adds one */
};

static void *crew_work(void *arg)
{
    struct crew *crew = arg;

    for (;;) {
        uint32_t part = __atomic_fetch_add(&crew->next_part, 1, __ATOMIC_RELAXED);
        if (part >= crew->copy->plan->layout.nparts)
            break;
        copy_part(crew->copy, part);
    }
    copy_fence(); /* the streamed stores of this thread */
    return NULL;
}

void image_copy_run(const struct image_copy *c, unsigned threads)
{
    struct crew crew = {.copy = c};
    unsigned useful = c->plan->layout.nparts / PARTS_PER_THREAD;

    crew_run(crew_work, &crew, threads < useful ? threads : useful);
}
