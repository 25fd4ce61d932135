/* SPDX-License-Identifier: Apache-2.0 */
/* A layout is built in two steps: add checks each slice alone, place checks them against each other and lays them out.
 *
 * Overlaps are looked for within each name only. Names are found equal by sorting. Slices of one name are swept along
 * the dimension in which the fewest of them lie side by side; what is compared is counted, and a layout that needs more
 * than COMPARE_MAX comparisons is refused: 500 times 500 tiles of one tensor pass, nothing holds the daemon up.
 */
#include "core/model/layout.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/dtype.h"
#include "core/model/name.h"
#include "core/model/units.h"

#include <inttypes.h>
#include <string.h>

#define COMPARE_MAX ((uint64_t)1 << 26) /* well below a second */
#define DTYPE_END 256                   /* dtypes are a byte in the format */
#define SHOWN_MAX 160                   /* bytes of a tensor's name in a message */

void cairn_layout_init(struct cairn_layout *l)
{
    *l = (struct cairn_layout){0};
}

void cairn_layout_free(struct cairn_layout *l)
{
    if (!l)
        return;
    for (uint32_t i = 0; i < l->nslices; i++)
        free(l->slices[i].name);
    free(l->slices);
    free(l->groups);
    cairn_layout_init(l);
}

/* How much of a checked name goes into a message: whole characters. */
static int shown(const char *name)
{
    size_t len = strnlen(name, SHOWN_MAX + 1);

    if (len <= SHOWN_MAX)
        return (int)len;
    while (((unsigned char)name[--len] & 0xc0) == 0x80)
        ;
    return (int)len;
}

/* ---- add ------------------------------------------------------------------------------------- */

static int check_dim(const struct cairn_tensor *t, const struct cairn_slice *s, uint32_t d, struct cairn_error *err)
{
    uint64_t offset = s->box.offset[d];
    uint64_t length = s->box.length[d];
    uint64_t shape = s->shape[d];

    if (offset > shape || length > shape - offset)
        return cairn_fail(err, CAIRN_E_INVAL,
                          "tensor \"%.*s\": offset %" PRIu64 " and length %" PRIu64 " leave shape %" PRIu64
                          " in dimension %u",
                          shown(t->name), t->name, offset, length, shape, d);
    if (!length && shape)
        return cairn_fail(err, CAIRN_E_INVAL, "tensor \"%.*s\": length 0 in dimension %u where shape is %" PRIu64,
                          shown(t->name), t->name, d, shape);
    return 0;
}

/* The product of all dimensions but the empty ones fits: then so does every product that is formed of them later. */
static int check_total(const struct cairn_tensor *t, const struct cairn_slice *s, struct cairn_error *err)
{
    int64_t total = (int64_t)cairn_dtype_size(t->dtype);

    for (uint32_t d = 0; d < t->ndim; d++)
        if (s->shape[d] && __builtin_mul_overflow(total, s->shape[d], &total))
            return cairn_fail(err, CAIRN_E_INVAL, "tensor \"%.*s\": its shape overflows at dimension %u",
                              shown(t->name), t->name, d);
    return 0;
}

static int slice_from(const struct cairn_tensor *t, struct cairn_slice *ret_slice, struct cairn_error *err)
{
    struct cairn_slice s = {.dtype = t->dtype, .common = (t->flags & CAIRN_TENSOR_COMMON) != 0, .box.ndim = t->ndim};
    size_t len = t->name ? strnlen(t->name, CAIRN_MAX_TENSOR_NAME + 1) : 0;
    int r = cairn_tensor_name_check(t->name, len, err);

    if (r < 0)
        return r;
    if (!cairn_dtype_size(t->dtype))
        return cairn_fail(err, CAIRN_E_INVAL, "tensor \"%.*s\": %d is no dtype", shown(t->name), t->name, t->dtype);
    if (t->ndim > CAIRN_MAX_DIMS)
        return cairn_fail(err, CAIRN_E_INVAL, "tensor \"%.*s\": %u dimensions, at most %d are possible", shown(t->name),
                          t->name, t->ndim, CAIRN_MAX_DIMS);
    if (t->ndim && !t->shape)
        return cairn_fail(err, CAIRN_E_INVAL, "tensor \"%.*s\": %u dimensions without a shape", shown(t->name), t->name,
                          t->ndim);
    s.name_len = (uint32_t)len;
    for (uint32_t d = 0; d < t->ndim; d++) {
        s.shape[d] = t->shape[d];
        s.box.offset[d] = t->offset ? t->offset[d] : 0;
        s.box.length[d] = t->length ? t->length[d] : t->shape[d];
        r = check_dim(t, &s, d, err);
        if (r < 0)
            return r;
    }
    r = check_total(t, &s, err);
    if (r < 0)
        return r;
    s.bytes = cairn_box_elements(&s.box) * cairn_dtype_size(t->dtype);
    if (s.bytes > CAIRN_MAX_IMAGE)
        return cairn_fail(err, CAIRN_E_TOO_LARGE, "tensor \"%.*s\": %" PRIu64 " bytes, a shard has at most %" PRIu64,
                          shown(t->name), t->name, s.bytes, CAIRN_MAX_IMAGE);
    *ret_slice = s;
    return 0;
}

static int make_room(struct cairn_layout *l, struct cairn_error *err)
{
    if (l->nslices < l->room)
        return 0;
    if (l->nslices >= CAIRN_MAX_TENSORS)
        return cairn_fail(err, CAIRN_E_TOO_LARGE, "more than %u tensors in one shard", CAIRN_MAX_TENSORS);
    uint32_t room = l->room ? l->room * 2 : 16;
    struct cairn_slice *slices = realloc(l->slices, room * sizeof(*slices));
    if (!slices)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate room for %u tensors", room);
    l->slices = slices;
    l->room = room;
    return 0;
}

int cairn_layout_add(struct cairn_layout *l, const struct cairn_tensor *t, struct cairn_error *err)
{
    struct cairn_slice s;
    int r = slice_from(t, &s, err);

    if (r < 0)
        return r;
    r = make_room(l, err);
    if (r < 0)
        return r;
    s.name = strndup(t->name, s.name_len);
    if (!s.name)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a tensor's name");
    l->slices[l->nslices++] = s;
    return 0;
}

int cairn_layout_copy(struct cairn_layout *l, const struct cairn_layout *from, uint32_t n, struct cairn_error *err)
{
    for (uint32_t i = 0; i < n; i++) {
        struct cairn_slice s = from->slices[i];
        int r = make_room(l, err);

        if (r == 0) {
            s.name = strndup(s.name, s.name_len);
            r = s.name ? 0 : cairn_fail(err, CAIRN_E_NOMEM, "allocate a tensor's name");
        }
        if (r < 0) {
            cairn_layout_free(l);
            return r;
        }
        l->slices[l->nslices++] = s;
    }
    return 0;
}

/* ---- place: the slices of one name ----------------------------------------------------------- */

static int fail_slices(const struct cairn_slice *s, const char *what, uint32_t a, uint32_t b, struct cairn_error *err)
{
    return cairn_fail(err, CAIRN_E_INVAL, "tensor \"%.*s\": %s (slices %u and %u of the shard)", shown(s->name),
                      s->name, what, a < b ? a : b, a < b ? b : a);
}

static int compare_names(const void *a, const void *b, void *arg)
{
    const struct cairn_slice *slices = arg;
    uint32_t i = *(const uint32_t *)a;
    uint32_t j = *(const uint32_t *)b;

    if (slices[i].name_len != slices[j].name_len)
        return slices[i].name_len < slices[j].name_len ? -1 : 1;
    int r = memcmp(slices[i].name, slices[j].name, slices[i].name_len);
    return r ? r : (i > j) - (i < j);
}

static bool same_name(const struct cairn_slice *a, const struct cairn_slice *b)
{
    return a->name_len == b->name_len && memcmp(a->name, b->name, a->name_len) == 0;
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t i = *(const uint64_t *)a;
    uint64_t j = *(const uint64_t *)b;

    return (i > j) - (i < j);
}

struct span {       /* of one slice */
    uint64_t begin; /* in the dimension that is swept */
    uint64_t end;
    uint64_t cross_begin; /* in another one: most pairs part here, without a look at their boxes */
    uint64_t cross_end;
    uint32_t slice;
};

static int compare_spans(const void *a, const void *b)
{
    const struct span *i = a;
    const struct span *j = b;

    if (i->begin != j->begin)
        return i->begin < j->begin ? -1 : 1;
    return (i->slice > j->slice) - (i->slice < j->slice);
}

static bool crosses(const struct span *a, const struct span *b)
{
    return a->cross_begin < b->cross_end && b->cross_begin < a->cross_end;
}

/* Slices of one name, and room to work in: n spans and 2n numbers. */
struct namesakes {
    const struct cairn_slice *slices; /* of the layout */
    const uint32_t *index;            /* theirs */
    uint32_t n;
    struct span *spans;
    uint64_t *begins;
    uint64_t *ends;
};

/* Pairs whose spans in dimension d share a coordinate: those that a sweep along d compares. */
static uint64_t pairs_along(const struct namesakes *s, uint32_t d)
{
    uint64_t pairs = 0;

    for (uint32_t i = 0; i < s->n; i++) {
        const struct cairn_box *b = &s->slices[s->index[i]].box;

        s->begins[i] = b->offset[d];
        s->ends[i] = b->offset[d] + b->length[d];
    }
    qsort(s->begins, s->n, sizeof(*s->begins), compare_u64);
    qsort(s->ends, s->n, sizeof(*s->ends), compare_u64);
    for (uint32_t i = 0, ended = 0; i < s->n; i++) {
        while (ended < s->n && s->ends[ended] <= s->begins[i])
            ended++;
        pairs += i - ended;
    }
    return pairs;
}

/* The dimension with the fewest pairs, and the one after it; with one dimension it is both. */
static void best_dims(const struct namesakes *s, uint32_t *ret_first, uint32_t *ret_second)
{
    uint64_t fewest[2] = {UINT64_MAX, UINT64_MAX};
    uint32_t best[2] = {0, 0};

    for (uint32_t d = 0; d < s->slices[s->index[0]].box.ndim; d++) {
        uint64_t pairs = pairs_along(s, d);
        bool first = pairs < fewest[0];

        if (first) {
            fewest[1] = fewest[0];
            best[1] = best[0];
        }
        if (first || pairs < fewest[1]) {
            fewest[!first] = pairs;
            best[!first] = d;
        }
    }
    *ret_first = best[0];
    *ret_second = fewest[1] == UINT64_MAX ? best[0] : best[1];
}

static void spans_along(const struct namesakes *s)
{
    uint32_t d, e;

    best_dims(s, &d, &e);
    for (uint32_t i = 0; i < s->n; i++) {
        const struct cairn_box *b = &s->slices[s->index[i]].box;

        s->spans[i] = (struct span){.begin = b->offset[d],
                                    .end = b->offset[d] + b->length[d],
                                    .cross_begin = b->offset[e],
                                    .cross_end = b->offset[e] + b->length[e],
                                    .slice = s->index[i]};
    }
    qsort(s->spans, s->n, sizeof(*s->spans), compare_spans);
}

/* Spans in order; those that still reach the current one are kept at the array's front. */
static int sweep(const struct namesakes *s, uint64_t *left, struct cairn_error *err)
{
    const struct cairn_slice *first = &s->slices[s->index[0]];
    uint32_t nactive = 0;

    spans_along(s);
    for (uint32_t i = 0; i < s->n; i++) {
        struct span current = s->spans[i];
        uint32_t kept = 0;

        if (nactive > *left)
            return cairn_fail(err, CAIRN_E_TOO_LARGE, "tensor \"%.*s\": %u slices in one shard are too many to compare",
                              shown(first->name), first->name, s->n);
        *left -= nactive;
        for (uint32_t j = 0; j < nactive; j++) {
            struct span other = s->spans[j];
            struct cairn_box common;

            if (other.end <= current.begin)
                continue;
            if (crosses(&current, &other) &&
                cairn_box_intersect(&s->slices[current.slice].box, &s->slices[other.slice].box, &common))
                return fail_slices(first, "its slices overlap", current.slice, other.slice, err);
            s->spans[kept++] = other;
        }
        s->spans[kept++] = current; /* kept <= i: never over a span that is still to come */
        nactive = kept;
    }
    return 0;
}

static int check_overlap(struct namesakes *s, uint64_t *left, struct cairn_error *err)
{
    if (!s->slices[s->index[0]].bytes || !s->slices[s->index[0]].box.ndim)
        return fail_slices(&s->slices[s->index[0]], "it was added twice", s->index[0], s->index[1], err);
    _cleanup_free_ struct span *spans = calloc(s->n, sizeof(*spans));
    _cleanup_free_ uint64_t *numbers = calloc(s->n, 2 * sizeof(*numbers));
    if (!spans || !numbers)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate room to compare %u slices", s->n);
    s->spans = spans;
    s->begins = numbers;
    s->ends = numbers + s->n;
    return sweep(s, left, err);
}

static int check_agree(const struct namesakes *s, struct cairn_error *err)
{
    const struct cairn_slice *a = &s->slices[s->index[0]];

    for (uint32_t i = 1; i < s->n; i++) {
        const struct cairn_slice *b = &s->slices[s->index[i]];

        if (a->dtype != b->dtype)
            return fail_slices(a, "its slices differ in dtype", s->index[0], s->index[i], err);
        /* Unused dimensions are zero on both sides. */
        if (a->box.ndim != b->box.ndim || memcmp(a->shape, b->shape, sizeof(a->shape)) != 0)
            return fail_slices(a, "its slices differ in shape", s->index[0], s->index[i], err);
    }
    return 0;
}

static int check_namesakes(const struct cairn_layout *l, struct cairn_error *err)
{
    _cleanup_free_ uint32_t *index = calloc(l->nslices, sizeof(*index));
    uint64_t left = COMPARE_MAX;

    if (!index)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate room to sort %u tensors", l->nslices);
    for (uint32_t i = 0; i < l->nslices; i++)
        index[i] = i;
    qsort_r(index, l->nslices, sizeof(*index), compare_names, l->slices);
    for (uint32_t i = 0, n; i < l->nslices; i += n) {
        for (n = 1; i + n < l->nslices && same_name(&l->slices[index[i]], &l->slices[index[i + n]]);)
            n++;
        if (n == 1)
            continue;
        struct namesakes s = {.slices = l->slices, .index = index + i, .n = n};
        int r = check_agree(&s, err);
        if (r >= 0)
            r = check_overlap(&s, &left, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* ---- place: the image ------------------------------------------------------------------------ */

struct packing {
    uint64_t bytes[DTYPE_END]; /* per dtype, so far */
    int order[DTYPE_END];      /* dtypes as they first appear */
    uint32_t ngroups;
};

static uint64_t pack(struct packing *p, const struct cairn_slice *s)
{
    uint64_t at = round_up_u64(p->bytes[s->dtype], CAIRN_TENSOR_ALIGN);

    if (!s->bytes)
        return 0;
    if (!p->bytes[s->dtype])
        p->order[p->ngroups++] = s->dtype;
    p->bytes[s->dtype] = at + s->bytes;
    return at;
}

static uint64_t group_parts(uint64_t bytes)
{
    return round_up_u64(bytes, CAIRN_PART) / CAIRN_PART;
}

static int measure(const struct cairn_layout *l, struct packing *p, uint64_t *ret_parts, struct cairn_error *err)
{
    uint64_t parts = 0;

    for (uint32_t i = 0; i < l->nslices; i++) {
        pack(p, &l->slices[i]);
        if (p->bytes[l->slices[i].dtype] > CAIRN_MAX_IMAGE) /* each slice is below it: no overflow on the way here */
            return cairn_fail(err, CAIRN_E_TOO_LARGE, "the shard is larger than %" PRIu64 " bytes", CAIRN_MAX_IMAGE);
    }
    for (uint32_t g = 0; g < p->ngroups; g++)
        parts += group_parts(p->bytes[p->order[g]]);
    if (parts > CAIRN_MAX_IMAGE / CAIRN_PART)
        return cairn_fail(err, CAIRN_E_TOO_LARGE, "the shard is larger than %" PRIu64 " bytes", CAIRN_MAX_IMAGE);
    *ret_parts = parts;
    return 0;
}

static void assign(struct cairn_layout *l, const struct packing *p)
{
    uint64_t base[DTYPE_END] = {0}; /* of each dtype's group in the image */
    struct packing again = {0};
    uint32_t part = 0;

    for (uint32_t g = 0; g < p->ngroups; g++) {
        int dtype = p->order[g];
        uint64_t bytes = p->bytes[dtype];

        base[dtype] = part * (uint64_t)CAIRN_PART;
        l->groups[g] = (struct cairn_group){dtype, part, (uint32_t)group_parts(bytes), bytes};
        part += l->groups[g].nparts;
    }
    for (uint32_t i = 0; i < l->nslices; i++) {
        struct cairn_slice *s = &l->slices[i];
        uint64_t at = pack(&again, s);

        s->image_offset = s->bytes ? base[s->dtype] + at : 0; /* an empty slice lies nowhere */
    }
}

int cairn_layout_place(struct cairn_layout *l, struct cairn_error *err)
{
    struct packing p = {0};
    uint64_t parts = 0;
    int r = l->nslices ? check_namesakes(l, err) : 0;

    if (r < 0)
        return r;
    r = measure(l, &p, &parts, err);
    if (r < 0)
        return r;
    struct cairn_group *groups = p.ngroups ? calloc(p.ngroups, sizeof(*groups)) : NULL;
    if (p.ngroups && !groups)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate %u groups", p.ngroups);
    free(l->groups);
    l->groups = groups;
    l->ngroups = p.ngroups;
    l->nparts = (uint32_t)parts;
    assign(l, &p);
    return 0;
}

/* ---- parts ----------------------------------------------------------------------------------- */

static const struct cairn_group *group_of(const struct cairn_layout *l, uint32_t part)
{
    for (uint32_t i = 0; i < l->ngroups; i++)
        if (part >= l->groups[i].first_part && part - l->groups[i].first_part < l->groups[i].nparts)
            return &l->groups[i];
    return NULL;
}

size_t cairn_layout_part_len(const struct cairn_layout *l, uint32_t part)
{
    const struct cairn_group *g = group_of(l, part);

    if (!g)
        return 0;
    uint64_t left = g->bytes - (uint64_t)(part - g->first_part) * CAIRN_PART;
    return left < CAIRN_PART ? left : CAIRN_PART;
}

int cairn_layout_part_dtype(const struct cairn_layout *l, uint32_t part)
{
    const struct cairn_group *g = group_of(l, part);

    return g ? g->dtype : 0;
}
