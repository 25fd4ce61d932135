/* SPDX-License-Identifier: Apache-2.0 */
/* All slices of a catalog by number (ranks in order, as saved within a rank) and by tensor name. */
#ifndef CAIRN_CLIENT_INDEX_H
#define CAIRN_CLIENT_INDEX_H

#include "core/model/catalog.h"

#define INDEX_NONE UINT64_MAX

struct slice_index {
    const struct cairn_catalog *catalog;
    uint64_t *first;  /* of each shard, and the number of all at the end */
    uint64_t *bucket; /* hash table: the first slice, or INDEX_NONE */
    uint64_t *next;   /* of the same bucket, ascending */
    uint64_t mask;    /* buckets - 1 */
};

/* The catalog must outlive the index. */
int slice_index_init(struct slice_index *x, const struct cairn_catalog *c, struct cairn_error *err);
void slice_index_free(struct slice_index *x);
uint64_t slice_index_count(const struct slice_index *x);
/* The slice with a number below count. */
const struct cairn_slice *slice_index_get(const struct slice_index *x, uint64_t i, uint32_t *ret_shard);
/* The slices of a name in ascending order: start with INDEX_NONE, ends with INDEX_NONE. */
uint64_t slice_index_next(const struct slice_index *x, const char *name, uint32_t name_len, uint64_t after);

#endif
