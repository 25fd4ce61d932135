/* SPDX-License-Identifier: Apache-2.0 */
/* A catalog's bytes, little-endian:
 *
 *     0   8  magic "CRNCATL1"
 *     8   4  version, 1
 *     12  4  world size; as many shards follow
 *     16  8  step
 *     24  8  incarnation
 *     32     shards, by rank, each:
 *               4  rank
 *               4  number of chunks
 *               8  length of the layout
 *               -  the layout (layout_codec.c)
 *               8  per chunk: first part, number of parts, 4 bytes each
 *
 * Nothing follows the last shard.
 */
#include "core/model/catalog.h"

#include "core/base/error.h"
#include "core/model/stripe.h"
#include "core/model/units.h"

#include <stdlib.h>
#include <string.h>

#define MAGIC "CRNCATL1"
#define MAGIC_LEN 8
#define VERSION 1
#define SHARD_LEN (16 + 24) /* at least: its own fields and an empty layout */
#define CHUNK_LEN 8

void cairn_catalog_init(struct cairn_catalog *c)
{
    *c = (struct cairn_catalog){0};
}

void cairn_catalog_free(struct cairn_catalog *c)
{
    if (!c)
        return;
    for (uint32_t i = 0; i < c->nshards; i++) {
        cairn_layout_free(&c->shards[i].layout);
        free(c->shards[i].chunks);
    }
    free(c->shards);
    cairn_catalog_init(c);
}

static int check_chunks(const struct cairn_catalog_shard *s, struct cairn_error *err)
{
    uint32_t next = 0;

    for (uint32_t i = 0; i < s->nchunks; i++) {
        struct cairn_chunk_range c = s->chunks[i];

        if (c.first_part != next || c.nparts < 1 || c.nparts > CAIRN_MAX_K)
            return cairn_fail(err, CAIRN_E_CORRUPT, "rank %u: chunk %u has %u parts from %u on, after part %u", s->rank,
                              i, c.nparts, c.first_part, next);
        if (cairn_chunk_parts(&s->layout, next, c.nparts) != c.nparts)
            return cairn_fail(err, CAIRN_E_CORRUPT, "rank %u: chunk %u does not lie within one group", s->rank, i);
        next += c.nparts;
    }
    if (next != s->layout.nparts)
        return cairn_fail(err, CAIRN_E_CORRUPT, "rank %u: chunks end at part %u of %u", s->rank, next,
                          s->layout.nparts);
    return 0;
}

static int check_world(uint32_t world_size, struct cairn_error *err)
{
    if (world_size < 1 || world_size > CAIRN_MAX_WORLD)
        return cairn_fail(err, CAIRN_E_CORRUPT, "a world of %u ranks", world_size);
    return 0;
}

static int check_catalog(const struct cairn_catalog *c, struct cairn_error *err)
{
    int e = check_world(c->world_size, err);

    if (e >= 0 && c->nshards != c->world_size)
        e = cairn_fail(err, CAIRN_E_CORRUPT, "%u shards of %u ranks", c->nshards, c->world_size);
    for (uint32_t i = 0; e >= 0 && i < c->nshards; i++) {
        if (c->shards[i].rank != i)
            e = cairn_fail(err, CAIRN_E_CORRUPT, "rank %u in place %u", c->shards[i].rank, i);
        else
            e = check_chunks(&c->shards[i], err);
    }
    return e;
}

/* ---- encode ---------------------------------------------------------------------------------- */

static int put_shard(const struct cairn_catalog_shard *s, struct bytes *out, struct cairn_error *err)
{
    struct bytes layout = {0};
    int e = cairn_layout_encode_plain(&s->layout, &layout, err);

    if (e >= 0) {
        bytes_put_u32(out, s->rank);
        bytes_put_u32(out, s->nchunks);
        bytes_put_u64(out, layout.len);
        bytes_put(out, layout.data, layout.len);
    }
    bytes_free(&layout);
    if (e < 0)
        return e;
    for (uint32_t i = 0; i < s->nchunks; i++) {
        bytes_put_u32(out, s->chunks[i].first_part);
        bytes_put_u32(out, s->chunks[i].nparts);
    }
    return out->bad ? cairn_fail(err, CAIRN_E_NOMEM, "allocate rank %u of a catalog", s->rank) : 0;
}

int cairn_catalog_encode(const struct cairn_catalog *c, struct bytes *out, struct cairn_error *err)
{
    size_t before = out->len;
    int e = check_catalog(c, err);

    if (e < 0)
        return cairn_wrap(err, CAIRN_E_INVAL, "write a catalog");
    bytes_put(out, MAGIC, MAGIC_LEN);
    bytes_put_u32(out, VERSION);
    bytes_put_u32(out, c->world_size);
    bytes_put_u64(out, c->step);
    bytes_put_u64(out, c->incarnation);
    for (uint32_t i = 0; e >= 0 && i < c->nshards; i++)
        e = put_shard(&c->shards[i], out, err);
    if (e < 0)
        out->len = before;
    return e;
}

/* ---- decode ---------------------------------------------------------------------------------- */

/* Fills a zeroed shard; what it holds after a failure is freed with the catalog. */
static int get_shard(struct cairn_catalog_shard *s, struct bytes_reader *r, struct cairn_error *err)
{
    s->rank = bytes_get_u32(r);
    uint32_t nchunks = bytes_get_u32(r);
    uint64_t layout_len = bytes_get_u64(r);
    const void *layout = layout_len <= CAIRN_MAX_LAYOUT ? bytes_get(r, layout_len) : NULL;

    if (!layout || nchunks > (r->len - r->at) / CHUNK_LEN)
        return cairn_fail(err, CAIRN_E_CORRUPT, "cut short");
    int e = cairn_layout_decode(&s->layout, layout, layout_len, err);
    if (e < 0)
        return e;
    if (!nchunks)
        return 0;
    s->chunks = calloc(nchunks, sizeof(*s->chunks));
    if (!s->chunks)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate %u chunks", nchunks);
    s->nchunks = nchunks;
    for (uint32_t i = 0; i < nchunks; i++) {
        s->chunks[i].first_part = bytes_get_u32(r);
        s->chunks[i].nparts = bytes_get_u32(r);
    }
    return 0;
}

static int get_shards(struct cairn_catalog *c, struct bytes_reader *r, struct cairn_error *err)
{
    if (c->world_size > (r->len - r->at) / SHARD_LEN)
        return cairn_fail(err, CAIRN_E_CORRUPT, "%u ranks in %zu bytes", c->world_size, r->len);
    c->shards = calloc(c->world_size, sizeof(*c->shards));
    if (!c->shards)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate %u shards", c->world_size);
    c->nshards = c->world_size;
    for (uint32_t i = 0; i < c->nshards; i++) {
        int e = get_shard(&c->shards[i], r, err);

        if (e < 0)
            return cairn_wrap(err, e, "rank %u", i);
    }
    if (r->at != r->len)
        return cairn_fail(err, CAIRN_E_CORRUPT, "%zu bytes after the last shard", r->len - r->at);
    return 0;
}

static int decode(struct cairn_catalog *c, struct bytes_reader *r, struct cairn_error *err)
{
    const void *magic = bytes_get(r, MAGIC_LEN);
    uint32_t version = bytes_get_u32(r);

    c->world_size = bytes_get_u32(r);
    c->step = bytes_get_u64(r);
    c->incarnation = bytes_get_u64(r);
    if (r->bad || memcmp(magic, MAGIC, MAGIC_LEN) != 0)
        return cairn_fail(err, CAIRN_E_CORRUPT, "no catalog's magic");
    if (version != VERSION)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "version %u, this reader knows %d", version, VERSION);
    int e = check_world(c->world_size, err);
    if (e >= 0)
        e = get_shards(c, r, err);
    return e < 0 ? e : check_catalog(c, err);
}

int cairn_catalog_decode(struct cairn_catalog *c, const void *data, size_t len, struct cairn_error *err)
{
    struct bytes_reader r = {.data = data, .len = len};
    int e = decode(c, &r, err);

    if (e >= 0)
        return 0;
    cairn_catalog_free(c);
    return cairn_wrap(err, e, "read a catalog");
}

uint32_t cairn_catalog_chunk_of(const struct cairn_catalog_shard *s, uint32_t part)
{
    uint32_t low = 0;
    uint32_t high = s->nchunks;

    while (low < high) { /* the first chunk that ends after the part */
        uint32_t mid = low + (high - low) / 2;

        if (part - s->chunks[mid].first_part < s->chunks[mid].nparts)
            return mid;
        if (s->chunks[mid].first_part > part)
            high = mid;
        else
            low = mid + 1;
    }
    return s->nchunks;
}
