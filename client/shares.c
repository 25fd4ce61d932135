/* SPDX-License-Identifier: Apache-2.0 */
#include "client/shares.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/dtype.h"
#include "core/model/units.h"

#define OWNER_MIXED 0xff /* more than one, or the host; DEVICES_MAX is less */

/* ---- which tensors --------------------------------------------------------------------------- */

static int copy_forms(struct shares *s, const struct image_source *sources, struct cairn_error *err)
{
    const struct cairn_layout *l = &s->plan->layout;

    s->forms = calloc(l->nslices ? l->nslices : 1, sizeof(*s->forms));
    if (!s->forms)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the places of %u slices", l->nslices);
    for (uint32_t i = 0; i < l->nslices; i++) {
        size_t len = l->slices[i].box.ndim * sizeof(*sources[i].stride);
        s->forms[i] = (struct image_source){.device = sources[i].device, .is_volatile = sources[i].is_volatile};
        if (!sources[i].stride || !sources[i].on_device)
            continue;
        s->forms[i].stride = malloc(len);
        if (!s->forms[i].stride)
            return cairn_fail(err, CAIRN_E_NOMEM, "allocate the strides of %u slices", l->nslices);
        memcpy(s->forms[i].stride, sources[i].stride, len);
    }
    return 0;
}

static bool same_stride(const int64_t *a, const int64_t *b, uint32_t ndim)
{
    return a && b ? memcmp(a, b, ndim * sizeof(*a)) == 0 : a == b;
}

bool shares_fit(const struct shares *s, const struct plan *plan, const struct image_source *sources)
{
    if (s->plan != plan)
        return false;
    for (uint32_t i = 0; i < plan->layout.nslices; i++) {
        const struct image_source *is = &sources[i], *was = &s->forms[i];
        if (is->device != was->device)
            return false;
        if (is->device && (is->is_volatile != was->is_volatile ||
                           !same_stride(is->stride, was->stride, plan->layout.slices[i].box.ndim)))
            return false;
    }
    return true;
}

/* ---- which device ---------------------------------------------------------------------------- */

static struct share *find_share(struct shares *s, uint32_t number)
{
    for (uint32_t i = 0; i < s->nshares; i++)
        if (s->shares[i].device->number == number)
            return &s->shares[i];
    return NULL;
}

static int add_share(struct shares *s, struct devices *devices, uint32_t number, struct cairn_error *err)
{
    struct device *d = NULL;
    int r = devices_use(devices, number, &d, err);

    if (r < 0)
        return r;
    struct share *more = realloc(s->shares, (s->nshares + 1) * sizeof(*more));
    if (!more)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a device's share");
    s->shares = more;
    s->shares[s->nshares] = (struct share){.device = d};
    s->nshares++;
    return 0;
}

/* Counts first, so that each list is allocated once. */
static int count_slices(struct shares *s, struct devices *devices, struct cairn_error *err)
{
    int r = 0;

    for (uint32_t n = 0; n < s->plan->npieces && r == 0; n++) {
        const struct plan_piece *p = &s->plan->pieces[n];
        uint32_t number = s->forms[p->slice].device;
        if (!number)
            continue;
        if (!find_share(s, number))
            r = add_share(s, devices, number, err);
        if (r < 0)
            return cairn_wrap(err, r, "tensor \"%.200s\"", s->plan->layout.slices[p->slice].name);
        find_share(s, number)->nslices++;
        s->nslices++;
    }
    return r;
}

static int list_slices(struct shares *s, struct cairn_error *err)
{
    for (uint32_t i = 0; i < s->nshares; i++) {
        struct share *h = &s->shares[i];
        h->slices = malloc(h->nslices * sizeof(*h->slices));
        h->checked = calloc(h->nslices, sizeof(*h->checked));
        if (!h->slices || !h->checked)
            return cairn_fail(err, CAIRN_E_NOMEM, "allocate a list of %u slices", h->nslices);
        h->nslices = 0;
    }
    for (uint32_t n = 0; n < s->plan->npieces; n++) {
        const struct plan_piece *p = &s->plan->pieces[n];
        struct share *h = find_share(s, s->forms[p->slice].device);
        if (!h)
            continue;
        h->slices[h->nslices++] = p->slice;
        h->bytes += p->end - p->begin;
    }
    return 0;
}

/* ---- which parts ----------------------------------------------------------------------------- */

static void own_parts(struct shares *s, const struct plan_piece *p, uint8_t owner)
{
    uint64_t last = (p->end - 1) / CAIRN_PART;

    for (uint64_t part = p->begin / CAIRN_PART; part <= last; part++)
        s->owner[part] = s->owner[part] == 0 || s->owner[part] == owner ? owner : OWNER_MIXED;
}

static int find_owners(struct shares *s, struct cairn_error *err)
{
    uint32_t nparts = s->plan->layout.nparts;

    s->owner = calloc(nparts ? nparts : 1, 1);
    s->host_parts = malloc((nparts ? nparts : 1) * sizeof(*s->host_parts));
    if (!s->owner || !s->host_parts)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the owners of %u parts", nparts);
    for (uint32_t n = 0; n < s->plan->npieces; n++) {
        const struct plan_piece *p = &s->plan->pieces[n];
        const struct share *h = find_share(s, s->forms[p->slice].device);
        own_parts(s, p, h ? (uint8_t)(h - s->shares + 1) : OWNER_MIXED);
    }
    for (uint32_t part = 0; part < nparts; part++) {
        if (s->owner[part] == OWNER_MIXED)
            s->owner[part] = 0;
        if (!s->owner[part])
            s->host_parts[s->nhost_parts++] = part;
    }
    return 0;
}

/* ---- the plugin's plans ---------------------------------------------------------------------- */

static struct cairn_device_slice describe(const struct shares *s, uint32_t slice)
{
    const struct cairn_slice *is = &s->plan->layout.slices[slice];
    const struct image_source *form = &s->forms[slice];

    return (struct cairn_device_slice){.dtype = is->dtype,
                                       .ndim = is->box.ndim,
                                       .length = is->box.length,
                                       .stride_bytes = form->stride,
                                       .image_offset = is->image_offset,
                                       .bytes = is->bytes,
                                       .flags = form->is_volatile ? CAIRN_TENSOR_VOLATILE : 0};
}

static int plan_share(struct shares *s, uint32_t i, const uint32_t *part_len, struct cairn_error *err)
{
    struct share *h = &s->shares[i];
    uint32_t nparts = s->plan->layout.nparts;
    _cleanup_free_ struct cairn_device_slice *slices = malloc(h->nslices * sizeof(*slices));
    _cleanup_free_ uint8_t *alone = malloc(nparts);
    _cleanup_free_ uint8_t *width = malloc(nparts);

    if (!slices || !alone || !width)
        return cairn_fail(err, CAIRN_E_NOMEM, "describe %u slices", h->nslices);
    for (uint32_t n = 0; n < h->nslices; n++)
        slices[n] = describe(s, h->slices[n]);
    for (uint32_t part = 0; part < nparts; part++) {
        alone[part] = s->owner[part] == i + 1;
        width[part] = (uint8_t)cairn_dtype_width(cairn_layout_part_dtype(&s->plan->layout, part));
    }
    struct cairn_device_layout layout = {.size = sizeof(layout),
                                         .slices = slices,
                                         .nslices = h->nslices,
                                         .nparts = nparts,
                                         .part_len = part_len,
                                         .alone = alone,
                                         .width = s->packs ? width : NULL};
    int r = device_plan(h->device, &layout, &h->plan, err);
    return r < 0 ? cairn_wrap(err, r, "plan the copies of %u tensors", h->nslices) : 0;
}

static int plan_all(struct shares *s, struct cairn_error *err)
{
    const struct cairn_layout *l = &s->plan->layout;
    _cleanup_free_ uint32_t *part_len = malloc(l->nparts * sizeof(*part_len));
    int r = part_len ? 0 : cairn_fail(err, CAIRN_E_NOMEM, "allocate the lengths of %u parts", l->nparts);

    for (uint32_t part = 0; part < l->nparts && part_len; part++)
        part_len[part] = (uint32_t)cairn_layout_part_len(l, part);
    for (uint32_t i = 0; i < s->nshares && r == 0; i++)
        r = plan_share(s, i, part_len, err);
    return r;
}

int shares_make(struct devices *devices, struct plan *plan, const struct image_source *sources, bool packs,
                struct shares **ret_shares, struct cairn_error *err)
{
    struct shares *s = calloc(1, sizeof(*s));

    if (!s || pthread_mutex_init(&s->lock, NULL) != 0) {
        free(s);
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the devices' shares");
    }
    s->refs = 1;
    s->plan = plan;
    s->packs = packs;
    int r = copy_forms(s, sources, err);
    if (r == 0)
        r = count_slices(s, devices, err);
    if (r == 0)
        r = list_slices(s, err);
    if (r == 0)
        r = find_owners(s, err);
    if (r == 0)
        r = plan_all(s, err);
    if (r < 0) {
        shares_free(s, false);
        return r;
    }
    *ret_shares = s;
    return 0;
}

void shares_free(struct shares *s, bool forked)
{
    if (!s)
        return;
    for (uint32_t i = 0; i < s->nshares; i++) {
        if (!forked)
            device_plan_free(s->shares[i].device, s->shares[i].plan);
        free(s->shares[i].slices);
        free(s->shares[i].checked);
    }
    for (uint32_t i = 0; s->forms && i < s->plan->layout.nslices; i++)
        free(s->forms[i].stride);
    free(s->forms);
    free(s->shares);
    free(s->owner);
    free(s->host_parts);
    if (!forked)
        pthread_mutex_destroy(&s->lock);
    free(s);
}

/* ---- a save ---------------------------------------------------------------------------------- */

void shares_data(const struct share *h, const struct image_source *sources, const void **ret_data)
{
    for (uint32_t i = 0; i < h->nslices; i++)
        ret_data[i] = sources[h->slices[i]].on_device;
}

int shares_check(const struct shares *s, struct share *h, const void *const *data, struct cairn_error *err)
{
    int r = 0;

    if (memcmp(h->checked, data, h->nslices * sizeof(*data)) == 0)
        return 0;
    for (uint32_t i = 0; i < h->nslices && r == 0; i++) {
        uint32_t slice = h->slices[i];
        if (h->checked[i] == data[i])
            continue;
        r = device_check_slice(h->device, &s->plan->layout.slices[slice], s->forms[slice].stride, data[i], err);
        if (r == 0)
            h->checked[i] = data[i];
    }
    return r;
}
