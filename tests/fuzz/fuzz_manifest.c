/* SPDX-License-Identifier: Apache-2.0 */
/* Untrusted manifests, also of deltas: what is taken encodes to what is taken again, and is put over a base only when
 * it is one of its own. */
#include "core/proto/manifest.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
size_t fuzz_seed_nth(unsigned i, uint8_t *buf, size_t room);

#define DEPTHS 4 /* of the seeds: whole, and chains of 1 to 3; the same again with chunks that are their bases' */

static void fill_layout(struct cairn_layout *l)
{
    uint64_t shape[] = {3, CAIRN_PART / 4}, zero[] = {0, 0};
    struct cairn_tensor t = {
        .name = "w", .dtype = CAIRN_F32, .ndim = 2, .shape = shape, .offset = zero, .length = shape, .data = shape};
    t.flags = CAIRN_TENSOR_COMMON;

    cairn_layout_init(l);
    if (cairn_layout_add(l, &t, NULL) < 0 || cairn_layout_place(l, NULL) < 0)
        abort();
}

static void fill_chunk(struct chunk_record *c, uint32_t first_part, unsigned k, unsigned depth)
{
    *c = (struct chunk_record){.first_part = first_part, .attempt = depth, .k = (uint8_t)k, .m = 1};
    c->entry = (struct hash128){first_part, depth};
    for (unsigned i = 0; i < k; i++)
        c->part[i] = (struct cairn_part_code){.codec = depth ? 2 : 0,
                                              .params = depth ? CAIRN_PART_DELTA : 0,
                                              .plain_len = CAIRN_PART,
                                              .coded_len = depth ? CAIRN_PART / 4 : CAIRN_PART};
    for (unsigned i = 0; i <= k; i++)
        c->peer[i] = (uint8_t)i;
    if (depth)
        c->delta = (struct cairn_delta){
            .step = depth, .incarnation = 1, .entry = {first_part, depth - 1}, .depth = (uint8_t)depth};
}

/* That of step depth + 1, whose first chunk has a chain of so many bases; the second one is whole. */
static void fill(struct manifest *m, unsigned depth)
{
    static const char peers[][CAIRN_MAX_NAME + 1] = {"p1", "p2", "p3"};

    manifest_init(m);
    snprintf(m->job, sizeof m->job, "job");
    snprintf(m->node, sizeof m->node, "n1");
    m->step = depth + 1;
    m->incarnation = m->world_size = 1;
    m->peers = malloc(sizeof peers);
    m->chunks = calloc(2, sizeof *m->chunks);
    if (!m->peers || !m->chunks)
        abort();
    memcpy(m->peers, peers, sizeof peers);
    m->npeers = 3;
    m->nchunks = 2;
    fill_layout(&m->layout);
    m->numerics = depth % 2 ? calloc(1, sizeof *m->numerics) : NULL;
    if (m->numerics)
        m->numerics[0] = (struct cairn_numerics){.known = true, .bad = {depth, 2}, .digest = {3, 4}};
    fill_chunk(&m->chunks[0], 0, 2, depth);
    fill_chunk(&m->chunks[1], 2, 1, 0);
    if (!depth)
        return;
    m->base = (struct manifest_base){.is_set = true, .step = depth, .incarnation = 1, .node = "n1"};
    m->base.manifest = (struct blob_ref){.len = 500, .npeers = 2, .peer = {"p1", "p3"}};
}

static void make_same(struct chunk_record *c)
{
    c->same = true;
    c->m = 0;
    c->entry = c->delta.entry;
    for (unsigned i = 0; i < c->k; i++)
        c->part[i] = (struct cairn_part_code){.plain_len = CAIRN_PART, .coded_len = CAIRN_PART};
}

size_t fuzz_seed_nth(unsigned i, uint8_t *buf, size_t room)
{
    struct bytes out = {.data = NULL};
    struct manifest m;

    fill(&m, i % DEPTHS);
    if (i / DEPTHS % 2 && i % DEPTHS)
        make_same(&m.chunks[0]);
    if (manifest_encode(&m, &out, NULL) < 0 || out.len > room)
        abort();
    memcpy(buf, out.data, out.len);
    size_t len = out.len;
    bytes_free(&out);
    manifest_free(&m);
    return len;
}

/* Encoded and decoded again it is the same. */
static void again(const struct manifest *m)
{
    struct bytes first = {.data = NULL}, second = {.data = NULL};
    struct manifest copy;

    manifest_init(&copy);
    if (manifest_encode(m, &first, NULL) < 0 || manifest_decode(&copy, first.data, first.len, NULL) < 0 ||
        manifest_encode(&copy, &second, NULL) < 0 || first.len != second.len ||
        memcmp(first.data, second.data, first.len) != 0)
        abort();
    bytes_free(&first);
    bytes_free(&second);
    manifest_free(&copy);
}

/* Every chunk that says it has a base has one, of the same lengths. */
static void over_base(struct manifest *m)
{
    struct manifest base;

    fill(&base, (unsigned)(m->base.step - 1));
    if (manifest_put_under(m, &base, NULL) == 0) {
        for (uint32_t i = 0; i < m->nchunks; i++) {
            const struct chunk_record *b = manifest_base_chunk(m, &m->chunks[i]);
            if ((b != NULL) != (m->chunks[i].delta.depth > 0) || (b && b->k != m->chunks[i].k) ||
                (b && !manifest_needs(m, 1, b)))
                abort();
            const struct manifest *of = m;
            const struct chunk_record *c = manifest_chunk_of(&of, &m->chunks[i]); /* NULL: two bases down */
            if (c && (c->same || c->k != m->chunks[i].k || c->entry.low != m->chunks[i].entry.low))
                abort();
        }
    }
    manifest_free(&base);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct manifest m;

    manifest_init(&m);
    if (manifest_decode(&m, data, len, NULL) == 0) {
        again(&m);
        if (m.base.is_set && m.base.step >= 1 && m.base.step <= DEPTHS)
            over_base(&m);
    }
    manifest_free(&m);
    return 0;
}
