/* SPDX-License-Identifier: Apache-2.0 */
#include "core/checkpoint/common.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the common slices of a shard, in an order that does not depend on the layout's -------------- */

static int compare_slices(const struct cairn_slice *a, const struct cairn_slice *b)
{
    int r = strcmp(a->name, b->name);

    if (r == 0)
        r = (a->dtype > b->dtype) - (a->dtype < b->dtype);
    if (r == 0)
        r = (a->box.ndim > b->box.ndim) - (a->box.ndim < b->box.ndim);
    for (uint32_t d = 0; r == 0 && d < a->box.ndim; d++) {
        r = (a->shape[d] > b->shape[d]) - (a->shape[d] < b->shape[d]);
        if (r == 0)
            r = (a->box.offset[d] > b->box.offset[d]) - (a->box.offset[d] < b->box.offset[d]);
        if (r == 0)
            r = (a->box.length[d] > b->box.length[d]) - (a->box.length[d] < b->box.length[d]);
    }
    return r;
}

static int by_slice(const void *a, const void *b, void *arg)
{
    const struct cairn_slice *slices = arg;

    return compare_slices(&slices[*(const uint32_t *)a], &slices[*(const uint32_t *)b]);
}

static int common_slices(const struct cairn_layout *l, uint32_t **ret_index, uint32_t *ret_n, struct cairn_error *err)
{
    uint32_t *index = malloc((l->nslices + 1u) * sizeof *index), n = 0;

    if (!index)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the order of %u tensors", l->nslices);
    for (uint32_t i = 0; i < l->nslices; i++)
        if (l->slices[i].common)
            index[n++] = i;
    qsort_r(index, n, sizeof *index, by_slice, l->slices);
    *ret_index = index;
    *ret_n = n;
    return 0;
}

/* ---- what a shard says ----------------------------------------------------------------------- */

static void put_slice(struct bytes *out, const struct cairn_slice *s)
{
    bytes_put_u32(out, s->name_len);
    bytes_put(out, s->name, s->name_len);
    bytes_put_u32(out, (uint32_t)s->dtype);
    bytes_put_u32(out, s->box.ndim);
    for (uint32_t d = 0; d < s->box.ndim; d++) {
        bytes_put_u64(out, s->shape[d]);
        bytes_put_u64(out, s->box.offset[d]);
        bytes_put_u64(out, s->box.length[d]);
    }
}

static void add_hash(struct hash128 *sum, const struct bytes *of)
{
    struct hash128 h = cairn_hash128(of->data, of->len);

    sum->low += h.low;
    sum->high += h.high;
}

/* Sums do not depend on the order, and no two slices of a shard are the same: nothing is sorted. */
static int sum_common(const struct cairn_layout *l, const struct cairn_numerics *numerics, struct shard_numerics *to,
                      struct cairn_error *err)
{
    struct bytes slice = {0};

    for (uint32_t i = 0; i < l->nslices && !slice.bad; i++) {
        if (!l->slices[i].common)
            continue;
        to->common++;
        slice.len = 0;
        put_slice(&slice, &l->slices[i]);
        add_hash(&to->set, &slice);
        bytes_put_u64(&slice, numerics[i].digest.low);
        bytes_put_u64(&slice, numerics[i].digest.high);
        add_hash(&to->sums, &slice);
    }
    int r = slice.bad ? cairn_fail(err, CAIRN_E_NOMEM, "allocate the description of a tensor") : 0;
    bytes_free(&slice);
    return r;
}

int common_sum_up(const struct cairn_layout *l, const struct cairn_numerics *numerics, struct shard_numerics *ret,
                  struct cairn_error *err)
{
    struct shard_numerics sum = {.known = true};

    *ret = (struct shard_numerics){.known = false};
    for (uint32_t i = 0; i < l->nslices; i++) {
        if (!numerics || !numerics[i].known)
            return 0;
        sum.bad.nan += numerics[i].bad.nan;
        sum.bad.inf += numerics[i].bad.inf;
    }
    int r = sum_common(l, numerics, &sum, err);
    if (r == 0)
        *ret = sum;
    return r;
}

/* ---- which ranks disagree -------------------------------------------------------------------- */

static int compare_hashes(struct hash128 a, struct hash128 b)
{
    if (a.high != b.high)
        return a.high < b.high ? -1 : 1;
    return (a.low > b.low) - (a.low < b.low);
}

static int by_set(const void *a, const void *b, void *arg)
{
    const struct shard_ref *shards = arg;
    uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    int r = compare_hashes(shards[i].numerics.set, shards[j].numerics.set);

    if (r == 0)
        r = compare_hashes(shards[i].numerics.sums, shards[j].numerics.sums);
    return r ? r : (i > j) - (i < j);
}

/* How many of the n that follow have the first one's set; or, with sums, its digests too. */
static uint32_t run_of(const struct shard_ref *shards, const uint32_t *index, uint32_t n, bool sums)
{
    const struct shard_numerics *first = &shards[index[0]].numerics;
    uint32_t same = 1;

    for (; same < n; same++) {
        const struct shard_numerics *next = &shards[index[same]].numerics;
        if (compare_hashes(first->set, next->set) != 0 || (sums && compare_hashes(first->sums, next->sums) != 0))
            break;
    }
    return same;
}

/* The lowest stay. */
static void note_odd(struct common_split *s, uint32_t rank)
{
    uint32_t kept = s->nodd < COMMON_NAMED ? s->nodd : COMMON_NAMED, at = kept;

    while (at > 0 && s->odd[at - 1] > rank)
        at--;
    if (at < COMMON_NAMED) {
        memmove(&s->odd[at + 1], &s->odd[at], (kept - at - (kept == COMMON_NAMED)) * sizeof s->odd[0]);
        s->odd[at] = rank;
    }
    s->nodd++;
}

/* The ranks of one set, of which some differ. */
static void split_set(const struct shard_ref *shards, const uint32_t *index, uint32_t n, struct common_split *s)
{
    uint32_t best = 0, best_at = 0, second = 0;

    for (uint32_t at = 0, same; at < n; at += same) {
        same = run_of(shards, index + at, n - at, true);
        if (same > best) {
            second = best;
            best = same;
            best_at = at;
        } else if (same > second) {
            second = same;
        }
    }
    bool majority = best > second;
    if (s->sets++ == 0) {
        s->witness[0] = index[best_at == 0 ? best : 0];
        s->witness[1] = index[best_at];
    }
    s->ranks += n;
    s->undecided |= !majority;
    for (uint32_t i = 0; i < n; i++)
        if (!majority || i < best_at || i >= best_at + best)
            note_odd(s, index[i]);
}

int common_compare(const struct shard_ref *shards, uint32_t n, struct common_split *ret, struct cairn_error *err)
{
    _cleanup_free_ uint32_t *index = malloc((n + 1u) * sizeof *index);
    struct common_split s = {0};
    uint32_t held = 0;

    if (!index)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the order of %u shards", n);
    for (uint32_t i = 0; i < n; i++)
        if (shards[i].numerics.known && shards[i].numerics.common)
            index[held++] = i;
    qsort_r(index, held, sizeof *index, by_set, (void *)(uintptr_t)shards);
    for (uint32_t at = 0, of; at < held; at += of) {
        of = run_of(shards, index + at, held - at, false);
        if (run_of(shards, index + at, of, true) < of)
            split_set(shards, index + at, of, &s);
    }
    *ret = s;
    return 0;
}

/* ---- in which tensors ------------------------------------------------------------------------ */

static bool same_digest(const struct manifest *a, uint32_t i, const struct manifest *b, uint32_t j)
{
    return !a->numerics[i].known || !b->numerics[j].known ||
           compare_hashes(a->numerics[i].digest, b->numerics[j].digest) == 0;
}

int common_differ(const struct manifest *a, const struct manifest *b, struct common_tensors *ret,
                  struct cairn_error *err)
{
    _cleanup_free_ uint32_t *x = NULL, *y = NULL;
    struct common_tensors t = {.n = 0};
    uint32_t nx = 0, ny = 0;
    int r = common_slices(&a->layout, &x, &nx, err);

    if (r == 0)
        r = common_slices(&b->layout, &y, &ny, err);
    if (r < 0)
        return r;
    for (uint32_t i = 0, j = 0; a->numerics && b->numerics && i < nx && j < ny;) {
        const struct cairn_slice *s = &a->layout.slices[x[i]];
        int order = compare_slices(s, &b->layout.slices[y[j]]);
        if (order == 0 && !same_digest(a, x[i], b, y[j])) {
            if (t.n < COMMON_NAMED)
                t.name[t.n] = s->name;
            t.n++;
        }
        i += order <= 0;
        j += order >= 0;
    }
    *ret = t;
    return 0;
}

/* ---- in words -------------------------------------------------------------------------------- */

__attribute__((format(printf, 4, 5))) static void add(char *buf, size_t len, size_t *at, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    if (*at < len) {
        int n = vsnprintf(buf + *at, len - *at, format, args);
        *at += n > 0 ? (size_t)n : 0;
    }
    va_end(args);
}

#define NAME_SHOWN 40 /* bytes of a tensor's name */

static int shown(const char *name)
{
    size_t len = strnlen(name, NAME_SHOWN + 1);

    return (int)(len > NAME_SHOWN ? cairn_whole_characters(name, NAME_SHOWN) : len);
}

static void add_tensors(const struct common_tensors *t, char *buf, size_t len, size_t *at)
{
    uint64_t named = t->n < COMMON_NAMED ? t->n : COMMON_NAMED;

    for (uint64_t i = 0; i < named; i++)
        add(buf, len, at, "%s\"%.*s\"", i ? ", " : ": ", shown(t->name[i]), t->name[i]);
    if (t->n > named)
        add(buf, len, at, " and %llu more", (unsigned long long)(t->n - named));
}

void common_text(const struct common_split *s, const struct common_tensors *t, char *buf, size_t len)
{
    uint32_t named = s->nodd < COMMON_NAMED ? s->nodd : COMMON_NAMED;
    size_t at = 0;

    add(buf, len, &at, s->nodd == 1 ? "rank" : "ranks");
    for (uint32_t i = 0; i < named; i++)
        add(buf, len, &at, "%s %u", i ? "," : "", s->odd[i]);
    if (s->nodd > named)
        add(buf, len, &at, " and %u more", s->nodd - named);
    if (s->undecided)
        add(buf, len, &at, " do not hold the same bytes of tensors that they have in common");
    else
        add(buf, len, &at, " %s other bytes than %u other ranks of tensors that they have in common",
            s->nodd == 1 ? "holds" : "hold", s->ranks - s->nodd);
    if (t)
        add_tensors(t, buf, len, &at);
    if (at >= len) /* it was cut */
        buf[cairn_whole_characters(buf, len - 1)] = '\0';
}
