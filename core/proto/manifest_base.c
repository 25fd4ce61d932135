/* SPDX-License-Identifier: Apache-2.0 */
/* A manifest and the one that its deltas are against. */
#include "core/base/error.h"
#include "core/proto/manifest.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

bool ckpt_base_is_older(uint64_t step, uint64_t incarnation, uint64_t than_step, uint64_t than_incarnation)
{
    return incarnation < than_incarnation || (incarnation == than_incarnation && step < than_step);
}

/* By first part, in which chunks are ordered; NULL: none begins there. */
static const struct chunk_record *find_chunk(const struct manifest *m, uint32_t first_part)
{
    uint32_t low = 0, high = m->nchunks;

    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (m->chunks[mid].first_part == first_part)
            return &m->chunks[mid];
        if (m->chunks[mid].first_part < first_part)
            low = mid + 1;
        else
            high = mid;
    }
    return NULL;
}

static bool is_base_of(const struct chunk_record *c, const struct chunk_record *b)
{
    if (!b || b->k != c->k || b->entry.low != c->delta.entry.low || b->entry.high != c->delta.entry.high ||
        b->delta.depth + 1 != c->delta.depth)
        return false;
    for (unsigned i = 0; i < c->k; i++)
        if (b->part[i].plain_len != c->part[i].plain_len)
            return false;
    return true;
}

static int same_layout(const struct cairn_layout *a, const struct cairn_layout *b, struct cairn_error *err)
{
    struct bytes x = {0}, y = {0};
    int r = cairn_layout_encode(a, &x, err);

    if (r == 0)
        r = cairn_layout_encode(b, &y, err);
    if (r == 0 && (x.len != y.len || memcmp(x.data, y.data, x.len) != 0))
        r = cairn_fail(err, CAIRN_E_CORRUPT, "a manifest whose base has another layout");
    bytes_free(&x);
    bytes_free(&y);
    return r;
}

int manifest_put_under(struct manifest *m, struct manifest *base, struct cairn_error *err)
{
    const struct manifest_base *want = &m->base;

    if (!want->is_set || m->under)
        return cairn_fail(err, CAIRN_E_INVAL, "a manifest is given a base that it does not want");
    if (base->step != want->step || base->incarnation != want->incarnation || base->rank != m->rank ||
        strcmp(base->job, m->job) != 0 || strcmp(base->node, want->node) != 0)
        return cairn_fail(err, CAIRN_E_CORRUPT,
                          "the manifest of rank %u of %s/%" PRIu64 ".%" PRIu64 " is not the base that was named",
                          base->rank, base->job, base->step, base->incarnation);
    int r = same_layout(&m->layout, &base->layout, err);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < m->nchunks; i++)
        if (m->chunks[i].delta.depth && !is_base_of(&m->chunks[i], find_chunk(base, m->chunks[i].first_part)))
            return cairn_fail(err, CAIRN_E_CORRUPT, "the base of the chunk at part %u is another one than was named",
                              m->chunks[i].first_part);
    struct manifest *under = malloc(sizeof *under);
    if (!under)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the manifest of a base");
    *under = *base;
    manifest_init(base);
    m->under = under;
    return 0;
}

bool manifest_needs(const struct manifest *m, unsigned level, const struct chunk_record *c)
{
    const struct chunk_record *top = level > 0 ? find_chunk(m, c->first_part) : c;

    return top && top->delta.depth >= level;
}

const struct chunk_record *manifest_base_chunk(const struct manifest *m, const struct chunk_record *c)
{
    return c->delta.depth && m->under ? find_chunk(m->under, c->first_part) : NULL;
}

const struct chunk_record *manifest_chunk_of(const struct manifest **m, const struct chunk_record *c)
{
    while (c && c->same) {
        c = manifest_base_chunk(*m, c);
        *m = (*m)->under;
    }
    return c;
}
