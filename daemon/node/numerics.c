/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/node/numerics.h"

#include "core/model/units.h"

#include <stdlib.h>
#include <string.h>

struct piece { /* of a slice, in one part */
    struct cairn_digest digest;
    struct cairn_nonfinite bad;
};
struct edges { /* of a part: pieces of slices that begin before it, or go on behind it */
    struct piece head, tail;
    bool taken;
};
struct numerics {
    const struct cairn_layout *layout;
    uint32_t *order; /* slices that are not empty, by their place in the image */
    uint32_t norder;
    uint32_t *first;               /* of each part: in order, the first slice that reaches into it */
    struct edges *edges;           /* of each part */
    struct cairn_numerics *wholes; /* of each slice that lies in one part */
};
struct numerics_part {
    const struct numerics *of;
    uint32_t part;
    uint32_t next; /* slice that the next bytes may belong to, in order */
    struct piece now, head, tail;
    struct cairn_numerics wholes[]; /* of the slices from the part's first on */
};

static uint64_t begin_of(uint32_t part)
{
    return (uint64_t)part * CAIRN_PART;
}

static const struct cairn_slice *slice_at(const struct numerics *n, uint32_t at)
{
    return &n->layout->slices[n->order[at]];
}

static int by_place(const void *a, const void *b, void *arg)
{
    const struct cairn_slice *slices = arg;
    uint64_t x = slices[*(const uint32_t *)a].image_offset, y = slices[*(const uint32_t *)b].image_offset;

    return (x > y) - (x < y);
}

struct numerics *numerics_new(const struct cairn_layout *l)
{
    struct numerics *n = calloc(1, sizeof *n);

    if (!n)
        return NULL;
    n->layout = l;
    n->order = malloc((l->nslices + 1u) * sizeof *n->order);
    n->first = malloc((l->nparts + 1u) * sizeof *n->first);
    n->edges = calloc(l->nparts + 1u, sizeof *n->edges);
    n->wholes = calloc(l->nslices + 1u, sizeof *n->wholes);
    if (!n->order || !n->first || !n->edges || !n->wholes) {
        numerics_free(n);
        return NULL;
    }
    for (uint32_t i = 0; i < l->nslices; i++)
        if (l->slices[i].bytes)
            n->order[n->norder++] = i;
    qsort_r(n->order, n->norder, sizeof *n->order, by_place, l->slices);
    for (uint32_t part = 0, at = 0; part <= l->nparts; part++) {
        while (at < n->norder && slice_at(n, at)->image_offset + slice_at(n, at)->bytes <= begin_of(part))
            at++;
        n->first[part] = at;
    }
    return n;
}

void numerics_free(struct numerics *n)
{
    if (!n)
        return;
    free(n->order);
    free(n->first);
    free(n->edges);
    free(n->wholes);
    free(n);
}

/* ---- a worker's part ------------------------------------------------------------------------- */

/* Slices that may reach into the part: the next part's first one may, too. */
static uint32_t slices_of(const struct numerics *n, uint32_t part)
{
    uint32_t end = n->first[part + 1] < n->norder ? n->first[part + 1] + 1 : n->norder;

    return end - n->first[part];
}

struct numerics_part *numerics_part_new(const struct numerics *n, uint32_t part)
{
    struct numerics_part *p = calloc(1, sizeof *p + slices_of(n, part) * sizeof p->wholes[0]);

    if (!p)
        return NULL;
    p->of = n;
    p->part = part;
    p->next = n->first[part];
    return p;
}

void numerics_part_free(struct numerics_part *p)
{
    free(p);
}

/* The part has no more of this slice. */
static void end_piece(struct numerics_part *p, const struct cairn_slice *s)
{
    if (s->image_offset < begin_of(p->part))
        p->head = p->now;
    else if (s->image_offset + s->bytes > begin_of(p->part + 1))
        p->tail = p->now;
    else
        p->wholes[p->next - p->of->first[p->part]] =
            (struct cairn_numerics){true, p->now.bad, cairn_digest_end(&p->now.digest, s->bytes, s->dtype)};
    p->now = (struct piece){.bad = {0}};
    p->next++;
}

void numerics_part_add(struct numerics_part *p, const char *bytes, size_t at, size_t len)
{
    uint64_t begin = begin_of(p->part) + at, end = begin + len, part_end = begin_of(p->part + 1);

    while (p->next < p->of->norder) {
        const struct cairn_slice *s = slice_at(p->of, p->next);
        uint64_t slice_end = s->image_offset + s->bytes;
        uint64_t from = s->image_offset > begin ? s->image_offset : begin, to = slice_end < end ? slice_end : end;

        if (from >= end)
            return;
        cairn_numerics_add(&p->now.digest, &p->now.bad, s->dtype, (from - s->image_offset) / CAIRN_DIGEST_STRIPE,
                           bytes + (from - begin), to - from);
        if (to < slice_end && to < part_end)
            return; /* it goes on with the next bytes */
        end_piece(p, s);
    }
}

/* ---- the drain's ----------------------------------------------------------------------------- */

void numerics_take(struct numerics *n, struct numerics_part *p)
{
    struct edges *e = &n->edges[p->part];

    e->head = p->head;
    e->tail = p->tail;
    e->taken = true;
    for (uint32_t at = n->first[p->part]; at < p->next; at++)
        if (p->wholes[at - n->first[p->part]].known)
            n->wholes[n->order[at]] = p->wholes[at - n->first[p->part]];
    free(p);
}

static void add_piece(struct piece *sum, const struct piece *more)
{
    cairn_digest_merge(&sum->digest, &more->digest);
    sum->bad.nan += more->bad.nan;
    sum->bad.inf += more->bad.inf;
}

static struct cairn_numerics sum_slice(const struct numerics *n, uint32_t i)
{
    const struct cairn_slice *s = &n->layout->slices[i];
    uint32_t first = (uint32_t)(s->image_offset / CAIRN_PART);
    uint32_t last = s->bytes ? (uint32_t)((s->image_offset + s->bytes - 1) / CAIRN_PART) : first;
    struct piece sum = {.bad = {0}};

    if (s->bytes && first == last)
        return n->wholes[i];
    for (uint32_t part = first; s->bytes && part <= last; part++) {
        if (!n->edges[part].taken)
            return (struct cairn_numerics){.known = false};
        add_piece(&sum, part == first ? &n->edges[part].tail : &n->edges[part].head);
    }
    return (struct cairn_numerics){true, sum.bad, cairn_digest_end(&sum.digest, s->bytes, s->dtype)};
}

struct cairn_numerics *numerics_end(const struct numerics *n)
{
    struct cairn_numerics *ret = calloc(n->layout->nslices + 1u, sizeof *ret);

    for (uint32_t i = 0; ret && i < n->layout->nslices; i++)
        ret[i] = sum_slice(n, i);
    return ret;
}
