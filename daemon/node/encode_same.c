/* SPDX-License-Identifier: Apache-2.0 */
/* A chunk that may be the same as its base's is hashed before anything is made of it: what is equal is not encoded,
 * what is not has cost one reading of it. Equal means an equal XXH3-128 over equal lengths: for bytes that differ that
 * happens once in 2^128 chunks. */
#include "daemon/node/encode.h"

#include "core/model/hash.h"

#include <string.h>

#define BLOCK_BYTES ((size_t)16 << 10) /* read once from the arena, then from L1 */

struct sums {
    struct hash_stream *entry;  /* of all parts */
    struct hash_stream *source; /* of one, as its source is summed; NULL: nobody asks */
};

static void add_part(const struct sums *s, struct numerics_part *found, const char *from, size_t len)
{
    char block[BLOCK_BYTES]; /* which its client cannot write to */

    for (size_t at = 0, n; at < len; at += n) {
        n = len - at < BLOCK_BYTES ? len - at : BLOCK_BYTES;
        memcpy(block, from + at, n);
        hash_stream_add(s->entry, block, n);
        if (s->source)
            hash_stream_add(s->source, block, n);
        if (found)
            numerics_part_add(found, block, at, n);
    }
}

/* What differs from its source is told by whoever encodes it, if it is not the base's. */
static int add_all(struct encode *e, const struct sums *s, unsigned *ret_differs)
{
    unsigned differs = 0;

    for (unsigned i = 0; i < e->k; i++) {
        e->found[i] = e->numerics ? numerics_part_new(e->numerics, e->first_part + i) : NULL;
        if (e->numerics && !e->found[i])
            return CAIRN_E_NOMEM;
        if (s->source)
            hash_stream_reset_seeded(s->source, e->sums_seed);
        add_part(s, e->found[i], e->from[i], e->plain_len[i]);
        struct hash128 sum = s->source ? hash_stream_end(s->source) : (struct hash128){0, 0};
        if (s->source && !differs && !cairn_sum_agrees(&e->sums[i], &sum))
            differs = i + 1;
    }
    *ret_differs = differs;
    return 0;
}

/* Encoding finds it again. */
static void forget_found(struct encode *e)
{
    for (unsigned i = 0; i < e->k; i++) {
        numerics_part_free(e->found[i]);
        e->found[i] = NULL;
    }
}

static int take_same(struct encode *e, unsigned differs)
{
    e->differs = differs;
    if (differs)
        return CAIRN_E_CORRUPT;
    e->same = true;
    e->entry = e->maybe.entry;
    e->delta = e->maybe;
    for (unsigned i = 0; i < e->k; i++)
        e->part[i] = (struct cairn_part_code){.plain_len = e->plain_len[i], .coded_len = e->plain_len[i]};
    return 1;
}

int encode_same(struct encode *e)
{
    struct sums s = {hash_stream_new(), e->sums ? hash_stream_new() : NULL};
    int r = s.entry && (s.source || !e->sums) ? 0 : CAIRN_E_NOMEM;
    unsigned differs = 0;

    if (r == 0)
        r = add_all(e, &s, &differs);
    if (r == 0) {
        struct hash128 sum = hash_stream_end(s.entry);
        if (sum.low == e->maybe.entry.low && sum.high == e->maybe.entry.high)
            r = take_same(e, differs);
    }
    if (r == 0)
        forget_found(e);
    hash_stream_free(s.entry);
    hash_stream_free(s.source);
    return r;
}
