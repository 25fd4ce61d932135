/* SPDX-License-Identifier: Apache-2.0 */
#include "client/index.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/error.h"

static uint64_t bucket_of(const struct slice_index *x, const char *name, uint32_t len)
{
    return cairn_hash64(name, len, 0) & x->mask;
}

uint64_t slice_index_count(const struct slice_index *x)
{
    return x->first[x->catalog->nshards];
}

const struct cairn_slice *slice_index_get(const struct slice_index *x, uint64_t i, uint32_t *ret_shard)
{
    uint32_t low = 0, high = x->catalog->nshards - 1;

    while (low < high) { /* the last shard that begins at i or before it and is not empty */
        uint32_t mid = low + (high - low) / 2;
        if (x->first[mid + 1] > i)
            high = mid;
        else
            low = mid + 1;
    }
    if (ret_shard)
        *ret_shard = low;
    return &x->catalog->shards[low].layout.slices[i - x->first[low]];
}

static int allocate(struct slice_index *x, struct cairn_error *err)
{
    uint64_t n = slice_index_count(x), buckets = 16;

    while (buckets < n + n / 2)
        buckets *= 2;
    x->mask = buckets - 1;
    x->bucket = malloc(buckets * sizeof(*x->bucket));
    x->next = malloc((n ? n : 1) * sizeof(*x->next));
    if (!x->bucket || !x->next)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate an index of %llu slices", (unsigned long long)n);
    for (uint64_t b = 0; b < buckets; b++)
        x->bucket[b] = INDEX_NONE;
    return 0;
}

/* From the last to the first, so that chains ascend. */
static void fill(struct slice_index *x)
{
    for (uint32_t shard = x->catalog->nshards; shard-- > 0;) {
        const struct cairn_layout *l = &x->catalog->shards[shard].layout;
        for (uint32_t s = l->nslices; s-- > 0;) {
            uint64_t i = x->first[shard] + s;
            uint64_t b = bucket_of(x, l->slices[s].name, l->slices[s].name_len);
            x->next[i] = x->bucket[b];
            x->bucket[b] = i;
        }
    }
}

int slice_index_init(struct slice_index *x, const struct cairn_catalog *c, struct cairn_error *err)
{
    *x = (struct slice_index){.catalog = c};
    x->first = malloc(((size_t)c->nshards + 1) * sizeof(*x->first));
    if (!x->first)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate an index of %u shards", c->nshards);
    x->first[0] = 0;
    for (uint32_t i = 0; i < c->nshards; i++)
        x->first[i + 1] = x->first[i] + c->shards[i].layout.nslices;
    int r = allocate(x, err);
    if (r < 0) {
        slice_index_free(x);
        return r;
    }
    fill(x);
    return 0;
}

void slice_index_free(struct slice_index *x)
{
    free(x->first);
    free(x->bucket);
    free(x->next);
    *x = (struct slice_index){0};
}

uint64_t slice_index_next(const struct slice_index *x, const char *name, uint32_t name_len, uint64_t after)
{
    uint64_t i = after == INDEX_NONE ? x->bucket[bucket_of(x, name, name_len)] : x->next[after];

    for (; i != INDEX_NONE; i = x->next[i]) {
        const struct cairn_slice *s = slice_index_get(x, i, NULL);
        if (s->name_len == name_len && memcmp(s->name, name, name_len) == 0)
            return i;
    }
    return INDEX_NONE;
}
