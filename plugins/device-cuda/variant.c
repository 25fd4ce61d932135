/* SPDX-License-Identifier: Apache-2.0 */
/* Which bytes of a save go which way: a walk over the slices as they lie in the image.
 *
 * plain:   large dense slices straight from where they are; everything else is gathered into a block, which lies there
 *          as in the image, and the block's spans are copied.
 * summed:  the same where a part is shared with others. A part that is alone is either in place, when one dense slice
 *          is all of it, or gathered whole, so that its sum can be made.
 * packed:  as summed; a part that has a width goes from there to its page by the kernel that packs.
 *
 * Slices and spans follow each other in batches, so that parts are complete one after another. A batch ends when its
 * block is full, or when it has bytes enough to tell how far the save is. */
#include "plugins/device-cuda/device.h"

#include "core/base/bytes.h"
#include "core/base/cleanup.h"
#include "core/base/error.h"

#define BATCH ((uint64_t)64 << 20)    /* progress is told by batches */
#define BATCHES 64                    /* of a save, about */
#define FRAGMENT ((uint64_t)64 << 10) /* a smaller rest of a block is left unused */

struct builder {
    struct cairn_device_plan *plan;
    struct variant *v;
    uint64_t direct_least, step;
    uint32_t piece_room, span_room, gather_room, part_room, pack_room, batch_room, gap_room;
    struct batch open;
    uint64_t covered;  /* the image up to here has its pieces, spans and gaps */
    uint64_t reserved; /* end of the part that is being gathered whole */
};

static void *grow(void *array, uint32_t n, uint32_t *room, size_t each)
{
    if (n < *room)
        return array;
    uint32_t more = *room ? 2 * *room : 64;
    void *grown = realloc(array, more * each);
    if (grown)
        *room = more;
    return grown;
}
/* Makes room for one more; leaves the function when there is none. */
#define GROW(b_, field_, room_)                                                                          \
    ({                                                                                                   \
        void *grown_ = grow((b_)->v->field_, (b_)->v->n##field_, &(b_)->room_, sizeof *(b_)->v->field_); \
        if (!grown_)                                                                                     \
            return CAIRN_E_NOMEM;                                                                        \
        (b_)->v->field_ = grown_;                                                                        \
        &(b_)->v->field_[(b_)->v->n##field_++];                                                          \
    })

/* ---- gaps and batches -------------------------------------------------------------------------- */

static int add_gaps(struct builder *b, uint64_t end)
{
    const struct cairn_device_plan *p = b->plan;

    while (b->covered < end) {
        uint64_t at = b->covered, part = at / PART, stop = (part + 1) * PART < end ? (part + 1) * PART : end;
        uint64_t used = part * PART + p->part_len[part], upto = stop < used ? stop : used;
        if (p->alone[part] && at < upto)
            *GROW(b, gaps, gap_room) = (struct gap){.at = at, .bytes = (uint32_t)(upto - at)};
        b->covered = stop;
    }
    return 0;
}

static int cover(struct builder *b, uint64_t at, uint64_t bytes)
{
    int r = add_gaps(b, at);

    b->covered = at + bytes;
    return r;
}

static void open_batch(struct builder *b)
{
    const struct variant *v = b->v;

    b->open = (struct batch){
        .piece = v->npieces, .span = v->nspans, .gather = v->ngathers, .part = v->nparts, .pack = v->npacks};
}

/* The next byte that a batch has is at `next` of the image. */
static int close_batch(struct builder *b, uint64_t next)
{
    struct variant *v = b->v;

    b->open.npieces = v->npieces - b->open.piece;
    b->open.nspans = v->nspans - b->open.span;
    b->open.ngathers = v->ngathers - b->open.gather;
    b->open.nparts = v->nparts - b->open.part;
    b->open.npacks = v->npacks - b->open.pack;
    b->open.done = (uint32_t)(next / PART);
    *GROW(b, batches, batch_room) = b->open;
    open_batch(b);
    return 0;
}

static uint32_t open_lane(const struct builder *b)
{
    return b->v->nbatches % LANES;
}

static int close_if_full(struct builder *b, uint64_t next)
{
    return b->open.bytes >= b->step && next >= b->reserved ? close_batch(b, next) : 0;
}

static bool is_packed(const struct builder *b, uint64_t part)
{
    return b->v->way == WAY_PACKED && b->plan->width[part];
}

static int add_part(struct builder *b, uint64_t part, uint32_t source, uint64_t offset)
{
    struct gpu_part p = {.offset = offset, .source = source, .len = b->plan->part_len[part], .index = (uint32_t)part};

    *GROW(b, parts, part_room) = p;
    if (is_packed(b, part))
        *GROW(b, packs, pack_room) = p;
    return 0;
}

/* ---- straight from where it is ------------------------------------------------------------------ */

static bool goes_direct(const struct builder *b, const struct slice *s)
{
    return b->plan->block_bytes == 0 || (slice_is_dense(s) && s->shape.bytes >= b->direct_least);
}

static int add_piece(struct builder *b, struct piece piece, uint64_t at)
{
    struct piece *last = b->v->npieces > b->open.piece ? &b->v->pieces[b->v->npieces - 1] : NULL;

    b->open.bytes += piece.bytes;
    b->open.pack_bytes += piece.packed ? piece.bytes : 0;
    if (last && last->slice == piece.slice && last->summed == piece.summed && last->packed == piece.packed &&
        last->from + last->bytes == piece.from)
        last->bytes += piece.bytes;
    else
        *GROW(b, pieces, piece_room) = piece;
    return cover(b, at, piece.bytes);
}

/* It is cut where its batch is full, at the end of a part. */
static int put_direct(struct builder *b, uint32_t i, uint64_t from, uint64_t bytes, bool summed)
{
    const struct slice *s = &b->plan->slices[i];
    int r = 0;

    for (uint64_t end = from + bytes, n; from < end && r == 0; from += n) {
        uint64_t at = s->at + from;
        r = close_if_full(b, at);
        uint64_t fit = b->step > b->open.bytes ? b->step - b->open.bytes : 1;
        uint64_t cut = round_up_u64(at + fit, PART) - at;
        n = cut < end - from ? cut : end - from;
        if (r == 0)
            r = add_piece(b,
                          (struct piece){.slice = i,
                                         .from = from,
                                         .bytes = n,
                                         .summed = summed,
                                         .packed = summed && is_packed(b, at / PART)},
                          at);
        if (r == 0 && summed)
            r = add_part(b, at / PART, s->is_volatile ? SOURCE_ASIDE(b->plan) : i,
                         from + (s->is_volatile ? s->aside_at : 0));
    }
    return r;
}

/* ---- through a block ---------------------------------------------------------------------------- */

static int add_gather(struct builder *b, uint32_t i, uint64_t from, uint64_t bytes, uint64_t to)
{
    const struct slice *s = &b->plan->slices[i];
    struct gpu_piece g = {.to = to, .len = bytes, .first = from, .source = i};

    if (s->is_volatile) {
        g.source = SOURCE_ASIDE(b->plan);
        g.offset = s->aside_at;
        g.run = s->shape.bytes;
    } else {
        g.run = s->shape.width;
        g.loop = s->loop;
        g.nloops = s->shape.ndims;
    }
    *GROW(b, gathers, gather_room) = g;
    b->v->staged_bytes += s->is_volatile ? 0 : bytes;
    b->open.bytes += bytes;
    return 0;
}

/* A stretch of the image in the block, where it is aligned as it is in its pages. whole: it is a part that is alone. */
static int add_span(struct builder *b, uint64_t at, uint64_t bytes, bool whole)
{
    uint64_t block_at = round_up_u64(b->open.block_used, STAGE_ALIGN) + at % STAGE_ALIGN;

    *GROW(b, spans, span_room) = (struct span){
        .at = at, .bytes = bytes, .block_at = block_at, .summed = whole, .packed = whole && is_packed(b, at / PART)};
    b->open.block_used = block_at + bytes;
    return cover(b, at, bytes);
}

static struct span *last_span(const struct builder *b)
{
    return b->v->nspans > b->open.span ? &b->v->spans[b->v->nspans - 1] : NULL;
}

static uint64_t block_room(const struct builder *b)
{
    uint64_t used = b->open.block_used + 2 * STAGE_ALIGN;

    return b->plan->block_bytes > used ? b->plan->block_bytes - used : 0;
}

/* What the slice has of a part that is gathered whole, whose span its first slice makes. */
static int put_in_part(struct builder *b, uint32_t i, uint64_t from, uint64_t bytes)
{
    uint64_t at = b->plan->slices[i].at + from, part = at / PART;
    int r = 0;

    if (at >= b->reserved) {
        if (b->open.bytes >= b->step || block_room(b) < PART)
            r = close_batch(b, at);
        if (r == 0)
            r = add_span(b, part * PART, b->plan->part_len[part], true);
        if (r == 0)
            r = add_part(b, part, SOURCE_LANE(b->plan, open_lane(b)), last_span(b)->block_at);
        b->reserved = (part + 1) * PART;
    }
    if (r < 0)
        return r;
    const struct span *span = last_span(b);
    b->open.pack_bytes += span->packed ? bytes : 0;
    return add_gather(b, i, from, bytes, span->block_at + (at - span->at));
}

/* Goes on with the last span where nobody else's bytes are in between. */
static int extend_span(struct builder *b, uint64_t at, uint64_t bytes)
{
    struct span *span = last_span(b);
    uint64_t end = span ? span->at + span->bytes : 0;
    bool ours = span && !span->summed && b->covered == end &&
                (end == at || (end / PART == at / PART && b->plan->alone[at / PART]));

    if (!ours)
        return add_span(b, at, bytes, false);
    span->bytes = at + bytes - span->at;
    b->open.block_used = span->block_at + span->bytes;
    b->covered = at + bytes;
    return 0;
}

static int put_gathered(struct builder *b, uint32_t i, uint64_t from, uint64_t bytes)
{
    const struct slice *s = &b->plan->slices[i];
    int r = 0;

    for (uint64_t end = from + bytes, n; from < end && r == 0; from += n) {
        uint64_t at = s->at + from, want = end - from, gap = at - b->covered < PART ? at - b->covered : 0;
        r = close_if_full(b, at);
        if (r == 0 && block_room(b) < gap + (want < FRAGMENT ? want : FRAGMENT))
            r = close_batch(b, at);
        n = block_room(b) - gap < want ? block_room(b) - gap : want;
        if (r == 0)
            r = extend_span(b, at, n);
        if (r == 0)
            r = add_gather(b, i, from, n, b->open.block_used - n);
    }
    return r;
}

/* ---- the walk ------------------------------------------------------------------------------------ */

static int walk_plain(struct builder *b, uint32_t i)
{
    const struct slice *s = &b->plan->slices[i];

    return goes_direct(b, s) ? put_direct(b, i, 0, s->shape.bytes, false) : put_gathered(b, i, 0, s->shape.bytes);
}

static int walk_summed(struct builder *b, uint32_t i)
{
    const struct cairn_device_plan *p = b->plan;
    const struct slice *s = &p->slices[i];
    uint64_t end = s->at + s->shape.bytes;
    int r = 0;

    for (uint64_t from = 0, n; from < s->shape.bytes && r == 0; from += n) {
        uint64_t at = s->at + from, part = at / PART, rest = s->shape.bytes - from;
        bool in_place = slice_is_dense(s) && s->at <= part * PART && end >= part * PART + p->part_len[part];
        n = PART - at % PART < rest ? PART - at % PART : rest;
        if (!p->alone[part])
            r = goes_direct(b, s) ? put_direct(b, i, from, n, false) : put_gathered(b, i, from, n);
        else if (in_place)
            r = put_direct(b, i, from, n, true);
        else
            r = put_in_part(b, i, from, n);
    }
    return r;
}

/* ---- all of it ------------------------------------------------------------------------------------ */

/* Volatile slices are gathered first of all, to the memory for them. */
static int gather_aside(struct builder *b)
{
    for (uint32_t i = 0; i < b->plan->nslices; i++) {
        const struct slice *s = &b->plan->slices[i];
        struct gpu_piece g = {.to = s->aside_at,
                              .len = s->shape.bytes,
                              .run = s->shape.width,
                              .source = i,
                              .loop = s->loop,
                              .nloops = s->shape.ndims};
        if (!s->is_volatile)
            continue;
        b->v->staged_bytes += s->shape.bytes;
        if (b->plan->block_bytes)
            *GROW(b, gathers, gather_room) = g;
    }
    return 0;
}

static int build(struct builder *b)
{
    const struct cairn_device_plan *p = b->plan;
    int r = gather_aside(b);

    open_batch(b);
    for (uint32_t i = 0; i < p->nslices && r == 0; i++)
        r = b->v->way != WAY_PLAIN ? walk_summed(b, i) : walk_plain(b, i);
    if (r == 0)
        r = add_gaps(b, (uint64_t)p->nparts * PART);
    if (r == 0)
        r = close_batch(b, (uint64_t)p->nparts * PART);
    return r < 0 ? r : variant_scatter(b->v);
}

void variant_free(struct variant *v)
{
    if (!v)
        return;
    tables_free(v);
    free(v->pieces);
    free(v->spans);
    free(v->gathers);
    free(v->parts);
    free(v->packs);
    free(v->batches);
    free(v->gaps);
    free(v);
}

int variant_make(struct cairn_device_plan *plan, enum way way, struct variant **ret_variant, struct cairn_error *err)
{
    struct variant *v = calloc(1, sizeof *v);
    uint64_t step = plan->bytes / BATCHES;
    struct builder b = {
        .plan = plan, .v = v, .step = step > BATCH ? step : BATCH, .direct_least = variant_direct_least(plan)};
    int r = CAIRN_E_NOMEM;

    if (v) {
        v->plan = plan;
        v->way = way;
        r = build(&b);
    }
    if (r < 0) {
        variant_free(v);
        return cairn_fail(err, r, "plan %u slices: no memory", plan->nslices);
    }
    *ret_variant = v;
    return 0;
}
