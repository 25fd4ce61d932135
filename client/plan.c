/* SPDX-License-Identifier: Apache-2.0 */
#include "client/plan.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"
#include "core/base/error.h"

static int by_begin(const void *a, const void *b)
{
    uint64_t x = ((const struct plan_piece *)a)->begin, y = ((const struct plan_piece *)b)->begin;

    return x < y ? -1 : x > y;
}

static int put_in_order(struct plan *p, struct cairn_error *err)
{
    const struct cairn_layout *l = &p->layout;

    p->pieces = malloc((l->nslices ? l->nslices : 1) * sizeof(*p->pieces));
    if (!p->pieces)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the order of %u slices", l->nslices);
    for (uint32_t i = 0; i < l->nslices; i++) {
        const struct cairn_slice *s = &l->slices[i];
        if (s->bytes)
            p->pieces[p->npieces++] = (struct plan_piece){s->image_offset, s->image_offset + s->bytes, i};
    }
    qsort(p->pieces, p->npieces, sizeof(*p->pieces), by_begin);
    return 0;
}

static int name_layout(struct plan *p, struct cairn_error *err)
{
    int r = cairn_layout_encode(&p->layout, &p->encoded, err);

    if (r < 0)
        return r;
    p->digest = cairn_layout_digest(p->encoded.data, p->encoded.len);
    p->at = malloc((p->layout.nslices + 1) * sizeof(*p->at));
    if (!p->at)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the places of %u slices", p->layout.nslices);
    p->at[0] = CAIRN_LAYOUT_HEADER_LEN; /* CAIRN_MAX_LAYOUT is far below 4 GiB */
    for (uint32_t i = 0; i < p->layout.nslices; i++)
        p->at[i + 1] = p->at[i] + (uint32_t)cairn_layout_slice_len(&p->layout.slices[i]);
    return 0;
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
    bytes_free(&p->encoded);
    free(p->at);
    free(p->pieces);
    free(p);
}

bool plan_has(const struct plan *p, uint32_t i, const struct cairn_tensor *t)
{
    if (i >= p->layout.nslices || !t->name || (t->ndim && !t->shape))
        return false;
    return cairn_layout_slice_is(p->encoded.data + p->at[i], p->at[i + 1] - p->at[i], t);
}
