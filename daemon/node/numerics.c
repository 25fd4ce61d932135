/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/node/numerics.h"

#include "core/base/error.h"
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
    struct numerics_budget *budget;
    uint64_t bytes;  /* of the budget */
    uint32_t *order; /* slices that are not empty, by their place in the image */
    uint32_t norder;
    uint32_t *first;               /* of each part: in order, the first slice that reaches into it */
    struct edges *edges;           /* of each part */
    struct cairn_numerics *wholes; /* of each slice that lies in one part, in this order */
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

/* Its result, for each slice, counts too: whoever asked for it holds both. */
static uint64_t bytes_of(const struct cairn_layout *l)
{
    const struct numerics *n = NULL;

    return (l->nslices + 1ull) * (sizeof *n->order + 2 * sizeof *n->wholes) +
           (l->nparts + 1ull) * (sizeof *n->first + sizeof *n->edges);
}

int numerics_new(const struct cairn_layout *l, struct numerics_budget *budget, struct numerics **ret,
                 struct cairn_error *err)
{
    uint64_t bytes = bytes_of(l);

    if (budget->used > budget->max || bytes > budget->max - budget->used)
        return cairn_fail(err, CAIRN_E_NO_SPACE, "%u tensors need %llu KiB, %llu of %llu are taken", l->nslices,
                          (unsigned long long)bytes >> 10, (unsigned long long)budget->used >> 10,
                          (unsigned long long)budget->max >> 10);
    struct numerics *n = calloc(1, sizeof *n);
    if (!n)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the numerics of %u tensors", l->nslices);
    n->layout = l;
    n->budget = budget;
    n->bytes = bytes;
    budget->used += bytes;
    n->order = malloc((l->nslices + 1u) * sizeof *n->order);
    n->first = malloc((l->nparts + 1u) * sizeof *n->first);
    n->edges = calloc(l->nparts + 1u, sizeof *n->edges);
    n->wholes = calloc(l->nslices + 1u, sizeof *n->wholes);
    if (!n->order || !n->first || !n->edges || !n->wholes) {
        numerics_free(n);
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the numerics of %u tensors", l->nslices);
    }
    *ret = n;
    return 0;
}

/* Slices lie in the image by groups of one dtype, and in a group in their order. */
static void order_slices(struct numerics *n)
{
    const struct cairn_layout *l = n->layout;
    uint32_t next[256] = {0}; /* of each dtype: how many there are, then where in order its next one goes */

    for (uint32_t i = 0; i < l->nslices; i++)
        next[l->slices[i].dtype & 255] += l->slices[i].bytes > 0;
    for (uint32_t g = 0; g < l->ngroups; g++) {
        uint32_t *first = &next[l->groups[g].dtype & 255], count = *first;
        *first = n->norder;
        n->norder += count;
    }
    for (uint32_t i = 0; i < l->nslices; i++)
        if (l->slices[i].bytes)
            n->order[next[l->slices[i].dtype & 255]++] = i;
}

void numerics_index(struct numerics *n)
{
    order_slices(n);
    for (uint32_t part = 0, at = 0; part <= n->layout->nparts; part++) {
        while (at < n->norder && slice_at(n, at)->image_offset + slice_at(n, at)->bytes <= begin_of(part))
            at++;
        n->first[part] = at;
    }
}

void numerics_free(struct numerics *n)
{
    if (!n)
        return;
    n->budget->used -= n->bytes;
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
    /* Among them may be slices that other parts have a piece of: nobody looks at those. */
    memcpy(&n->wholes[n->first[p->part]], p->wholes, (p->next - n->first[p->part]) * sizeof p->wholes[0]);
    free(p);
}

static void add_piece(struct piece *sum, const struct piece *more)
{
    cairn_digest_merge(&sum->digest, &more->digest);
    sum->bad.nan += more->bad.nan;
    sum->bad.inf += more->bad.inf;
}

static struct cairn_numerics sum_slice(const struct numerics *n, uint32_t at)
{
    const struct cairn_slice *s = slice_at(n, at);
    uint32_t first = (uint32_t)(s->image_offset / CAIRN_PART);
    uint32_t last = (uint32_t)((s->image_offset + s->bytes - 1) / CAIRN_PART);
    struct piece sum = {.bad = {0}};

    if (first == last)
        return n->wholes[at];
    for (uint32_t part = first; part <= last; part++) {
        if (!n->edges[part].taken)
            return (struct cairn_numerics){.known = false};
        add_piece(&sum, part == first ? &n->edges[part].tail : &n->edges[part].head);
    }
    return (struct cairn_numerics){true, sum.bad, cairn_digest_end(&sum.digest, s->bytes, s->dtype)};
}

struct cairn_numerics *numerics_end(const struct numerics *n)
{
    const struct cairn_layout *l = n->layout;
    struct cairn_numerics *ret = calloc(l->nslices + 1u, sizeof *ret);
    const struct cairn_digest nothing = {0};

    for (uint32_t i = 0; ret && i < l->nslices; i++) {
        ret[i].known = l->slices[i].bytes == 0;
        if (ret[i].known)
            ret[i].digest = cairn_digest_end(&nothing, 0, l->slices[i].dtype);
    }
    for (uint32_t at = 0; ret && at < n->norder; at++)
        ret[n->order[at]] = sum_slice(n, at);
    return ret;
}
