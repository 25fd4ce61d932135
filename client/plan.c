/* SPDX-License-Identifier: Apache-2.0 */
#include "client/plan.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"
#include "core/base/error.h"

static int by_offset(const void *a, const void *b, void *arg)
{
    const struct cairn_slice *slices = arg;
    uint64_t x = slices[*(const uint32_t *)a].image_offset, y = slices[*(const uint32_t *)b].image_offset;

    return x < y ? -1 : x > y;
}

static int put_in_order(struct plan *p, struct cairn_error *err)
{
    const struct cairn_layout *l = &p->layout;

    p->order = malloc((l->nslices ? l->nslices : 1) * sizeof(*p->order));
    if (!p->order)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the order of %u slices", l->nslices);
    for (uint32_t i = 0; i < l->nslices; i++)
        if (l->slices[i].bytes)
            p->order[p->norder++] = i;
    qsort_r(p->order, p->norder, sizeof(*p->order), by_offset, l->slices);
    return 0;
}

static int name_layout(struct plan *p, struct cairn_error *err)
{
    CAIRN_CLEANUP(bytes_free) struct bytes encoded = {0};
    int r = cairn_layout_encode(&p->layout, &encoded, err);

    if (r == 0)
        p->digest = cairn_layout_digest(encoded.data, encoded.len);
    return r;
}

int plan_make(struct cairn_layout *l, struct plan **ret_plan, struct cairn_error *err)
{
    struct plan *p = calloc(1, sizeof(*p));

    if (!p)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a plan");
    p->layout = *l;
    cairn_layout_init(l);
    int r = cairn_layout_place(&p->layout, err);
    if (r == 0)
        r = name_layout(p, err);
    if (r == 0)
        r = put_in_order(p, err);
    if (r < 0) {
        plan_free(p);
        return r;
    }
    p->refs = 1;
    *ret_plan = p;
    return 0;
}

void plan_free(struct plan *p)
{
    if (!p)
        return;
    cairn_layout_free(&p->layout);
    free(p->order);
    free(p);
}

bool plan_has(const struct plan *p, uint32_t i, const struct cairn_tensor *t)
{
    if (i >= p->layout.nslices)
        return false;
    const struct cairn_slice *s = &p->layout.slices[i];
    if (!t->name || t->dtype != s->dtype || t->ndim != s->box.ndim || (t->ndim && !t->shape))
        return false;
    for (uint32_t d = 0; d < t->ndim; d++)
        if (t->shape[d] != s->shape[d] || (t->offset ? t->offset[d] : 0) != s->box.offset[d] ||
            (t->length ? t->length[d] : t->shape[d]) != s->box.length[d])
            return false;
    return strcmp(t->name, s->name) == 0;
}
