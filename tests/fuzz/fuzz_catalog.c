/* SPDX-License-Identifier: Apache-2.0 */
/* Untrusted catalogs: what decodes has every part in exactly one chunk, and gives the same bytes again. */
#include "core/model/catalog.h"
#include "core/model/units.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
size_t fuzz_seed(uint8_t *buf, size_t room);

static void add(struct cairn_layout *l, const char *name, int dtype, uint64_t shape)
{
    struct cairn_tensor t = {.size = sizeof t, .name = name, .dtype = dtype, .ndim = 1, .shape = &shape};

    if (cairn_layout_add(l, &t, NULL) < 0 || cairn_layout_place(l, NULL) < 0)
        abort();
}

/* Two ranks: one of 5 parts in 3 chunks over 2 groups, one without a byte. */
size_t fuzz_seed(uint8_t *buf, size_t room)
{
    struct cairn_chunk_range chunks[] = {{0, 3}, {3, 1}, {4, 1}};
    struct cairn_catalog_shard shards[] = {{.rank = 0, .chunks = chunks, .nchunks = 3}, {.rank = 1}};
    struct cairn_catalog c = {.step = 9, .incarnation = 2, .world_size = 2, .nshards = 2, .shards = shards};
    struct bytes out = {.data = NULL};

    add(&shards[0].layout, "a.weight", CAIRN_BF16, 2 * CAIRN_PART - 7);
    add(&shards[0].layout, "b", CAIRN_F32, 3);
    add(&shards[1].layout, "none", CAIRN_I64, 0);
    if (cairn_catalog_encode(&c, &out, NULL) < 0 || out.len > room)
        abort();
    size_t n = out.len;
    memcpy(buf, out.data, n);
    bytes_free(&out);
    cairn_layout_free(&shards[0].layout);
    cairn_layout_free(&shards[1].layout);
    return n;
}

static void check_shard(const struct cairn_catalog_shard *s)
{
    for (uint32_t p = 0; p < s->layout.nparts && p < 4096; p++) {
        uint32_t i = cairn_catalog_chunk_of(s, p);

        if (i >= s->nchunks || p < s->chunks[i].first_part || p - s->chunks[i].first_part >= s->chunks[i].nparts)
            abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct cairn_catalog c;
    struct bytes out = {.data = NULL};

    cairn_catalog_init(&c);
    if (cairn_catalog_decode(&c, data, len, NULL) < 0)
        return 0;
    for (uint32_t i = 0; i < c.nshards; i++)
        check_shard(&c.shards[i]);
    if (cairn_catalog_encode(&c, &out, NULL) < 0 || out.len != len || memcmp(out.data, data, len) != 0)
        abort();
    bytes_free(&out);
    cairn_catalog_free(&c);
    return 0;
}
