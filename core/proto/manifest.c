/* SPDX-License-Identifier: Apache-2.0 */
#include "core/proto/manifest.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/name.h"
#include "core/model/units.h"

#include "manifest.pb-c.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VERSION 1
#define VERSION_DELTA 2
#define VERSION_SAME 3

typedef Cairn__Manifest__V1__Shard shard;
typedef Cairn__Manifest__V1__Tensor tensor;
typedef Cairn__Manifest__V1__Chunk chunk;
typedef Cairn__Manifest__V1__Part part;
typedef Cairn__Manifest__V1__Base base;

void manifest_init(struct manifest *m)
{
    *m = (struct manifest){.rank = 0};
    cairn_layout_init(&m->layout);
}

void manifest_free(struct manifest *m)
{
    cairn_layout_free(&m->layout);
    free(m->numerics);
    free(m->peers);
    free(m->chunks);
    for (struct manifest *next, *under = m->under; under; under = next) {
        next = under->under;
        under->under = NULL;
        manifest_free(under);
        free(under);
    }
    manifest_init(m);
}

/* ---- encode: protobuf-c wants arrays of pointers; everything is carved out of one block ------ */

struct arena {
    char *at;
    size_t left;
};

static void *carve(struct arena *a, size_t size, size_t n)
{
    size_t bytes = round_up_u64(size * n, 16);
    void *p = a->at;

    if (bytes > a->left)
        abort(); /* scratch_size and what is carved disagree: a bug, not input */
    a->at += bytes;
    a->left -= bytes;
    return p;
}

static size_t scratch_size(const struct manifest *m)
{
    size_t slack = 16 * 16;
    size_t bytes = slack + sizeof(base) + (CAIRN_MAX_M + 1) * sizeof(char *) + m->npeers * sizeof(char *) +
                   (size_t)m->layout.nslices * (sizeof(tensor) + sizeof(tensor *) + slack) +
                   (size_t)m->nchunks * (sizeof(chunk) + sizeof(chunk *) + slack);

    for (uint32_t i = 0; i < m->nchunks; i++)
        bytes += m->chunks[i].k * (sizeof(part) + sizeof(part *)) + CAIRN_MAX_FRAGS * sizeof(uint32_t);
    return bytes;
}

#define NUMERICS 1 /* the digest's version */
_Static_assert(CAIRN_DIGEST_VERSION == NUMERICS, "a new digest needs a new number in manifests");

static void fill_numerics(tensor *t, const struct cairn_numerics *n)
{
    t->numerics = NUMERICS;
    t->nan = n->bad.nan;
    t->inf = n->bad.inf;
    t->digest_low = n->digest.low;
    t->digest_high = n->digest.high;
}

static void fill_tensor(tensor *t, const struct cairn_slice *s)
{
    cairn__manifest__v1__tensor__init(t);
    t->name = s->name;
    t->dtype = (uint32_t)s->dtype;
    t->n_shape = t->n_offset = t->n_length = s->box.ndim;
    t->shape = (uint64_t *)(uintptr_t)s->shape;
    t->offset = (uint64_t *)(uintptr_t)s->box.offset;
    t->length = (uint64_t *)(uintptr_t)s->box.length;
    t->image_offset = s->image_offset;
    t->common = s->common;
}

static void fill_chunk(chunk *c, const struct chunk_record *r, struct arena *a)
{
    part *parts = carve(a, sizeof *parts, r->k);

    cairn__manifest__v1__chunk__init(c);
    c->first_part = r->first_part;
    c->attempt = r->attempt;
    c->m = r->m;
    c->entry_low = r->entry.low;
    c->entry_high = r->entry.high;
    c->depth = r->delta.depth;
    c->base_low = r->delta.entry.low;
    c->base_high = r->delta.entry.high;
    c->same = r->same;
    c->n_part = r->k;
    c->part = carve(a, sizeof *c->part, r->k);
    for (unsigned i = 0; i < r->k; i++) {
        cairn__manifest__v1__part__init(&parts[i]);
        parts[i].codec = r->part[i].codec;
        parts[i].params = r->part[i].params;
        parts[i].plain_len = r->part[i].plain_len;
        parts[i].coded_len = r->part[i].coded_len;
        c->part[i] = &parts[i];
    }
    c->n_peer = chunk_record_fragments(r);
    c->peer = carve(a, sizeof *c->peer, c->n_peer);
    for (unsigned i = 0; i < c->n_peer; i++)
        c->peer[i] = r->peer[i];
}

static base *fill_base(const struct manifest_base *b, struct arena *a)
{
    base *to = carve(a, sizeof *to, 1);

    cairn__manifest__v1__base__init(to);
    to->step = b->step;
    to->incarnation = b->incarnation;
    to->node = (char *)(uintptr_t)b->node;
    to->manifest_len = b->manifest.len;
    to->manifest_sha256.data = (uint8_t *)(uintptr_t)b->manifest.sha256;
    to->manifest_sha256.len = SHA256_LEN;
    to->peer = carve(a, sizeof *to->peer, CAIRN_MAX_M + 1);
    for (; to->n_peer < b->manifest.npeers; to->n_peer++)
        to->peer[to->n_peer] = (char *)(uintptr_t)b->manifest.peer[to->n_peer];
    return to;
}

static bool any_same(const struct manifest *m)
{
    for (uint32_t i = 0; i < m->nchunks; i++)
        if (m->chunks[i].same)
            return true;
    return false;
}

static void fill_shard(shard *s, const struct manifest *m, struct arena *a)
{
    cairn__manifest__v1__shard__init(s);
    s->version = any_same(m) ? VERSION_SAME : m->base.is_set ? VERSION_DELTA : VERSION;
    s->against = m->base.is_set ? fill_base(&m->base, a) : NULL;
    s->job = (char *)(uintptr_t)m->job;
    s->node = (char *)(uintptr_t)m->node;
    s->step = m->step;
    s->incarnation = m->incarnation;
    s->rank = m->rank;
    s->world_size = m->world_size;
    s->n_peer = m->npeers;
    s->peer = carve(a, sizeof *s->peer, m->npeers);
    for (uint32_t i = 0; i < m->npeers; i++)
        s->peer[i] = m->peers[i];
    s->n_tensor = m->layout.nslices;
    s->tensor = carve(a, sizeof *s->tensor, s->n_tensor);
    tensor *tensors = carve(a, sizeof *tensors, s->n_tensor);
    for (size_t i = 0; i < s->n_tensor; i++) {
        fill_tensor(&tensors[i], &m->layout.slices[i]);
        if (m->numerics && m->numerics[i].known)
            fill_numerics(&tensors[i], &m->numerics[i]);
        s->tensor[i] = &tensors[i];
    }
    s->n_chunk = m->nchunks;
    s->chunk = carve(a, sizeof *s->chunk, s->n_chunk);
    chunk *chunks = carve(a, sizeof *chunks, s->n_chunk);
    for (size_t i = 0; i < s->n_chunk; i++) {
        fill_chunk(&chunks[i], &m->chunks[i], a);
        s->chunk[i] = &chunks[i];
    }
}

/* What decode refuses is not written either; the arrays below have no more room. */
static int check_chunks(const struct manifest *m, struct cairn_error *err)
{
    if (m->base.is_set && m->base.manifest.npeers > CAIRN_MAX_M + 1)
        return cairn_fail(err, CAIRN_E_INVAL, "a manifest's base with copies on %u peers", m->base.manifest.npeers);
    for (uint32_t i = 0; i < m->nchunks; i++)
        if (m->chunks[i].k < 1 || m->chunks[i].k > CAIRN_MAX_K || m->chunks[i].m > CAIRN_MAX_M ||
            (m->chunks[i].same && m->chunks[i].m > 0))
            return cairn_fail(err, CAIRN_E_INVAL, "chunk %u of a manifest has a stripe of %u+%u", i, m->chunks[i].k,
                              m->chunks[i].m);
    return 0;
}

int manifest_encode(const struct manifest *m, struct bytes *out, struct cairn_error *err)
{
    int r = check_chunks(m, err);
    size_t size = r == 0 ? scratch_size(m) : 0;
    _cleanup_free_ char *block = malloc(size ? size : 1);
    struct arena a = {block, size};
    shard s;

    if (r < 0)
        return r;
    if (!block)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate %zu bytes to encode a manifest", size);
    fill_shard(&s, m, &a);
    size_t len = cairn__manifest__v1__shard__get_packed_size(&s);
    _cleanup_free_ uint8_t *packed = malloc(len ? len : 1);
    if (!packed)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate %zu bytes for a manifest", len);
    cairn__manifest__v1__shard__pack(&s, packed);
    bytes_put(out, packed, len);
    return out->bad ? cairn_fail(err, CAIRN_E_NOMEM, "allocate %zu bytes for a manifest", len) : 0;
}

/* ---- decode: untrusted ----------------------------------------------------------------------- */

static int corrupt(struct cairn_error *err, const char *what)
{
    return cairn_fail(err, CAIRN_E_CORRUPT, "a manifest %s", what);
}

static int decode_tensor(struct manifest *m, const tensor *t, struct cairn_error *err)
{
    struct cairn_tensor add = {.size = sizeof add,
                               .name = t->name,
                               .dtype = (int)t->dtype,
                               .ndim = (uint32_t)t->n_shape,
                               .shape = t->shape,
                               .offset = t->offset,
                               .length = t->length,
                               .flags = t->common ? CAIRN_TENSOR_COMMON : 0};

    if (t->n_shape > CAIRN_MAX_DIMS || t->n_offset != t->n_shape || t->n_length != t->n_shape)
        return corrupt(err, "with a tensor whose dimensions do not match");
    return cairn_layout_add(&m->layout, &add, err);
}

/* A version of the digest that is not known is as good as none. */
static int decode_numerics(struct manifest *m, const shard *s, struct cairn_error *err)
{
    for (size_t i = 0; i < s->n_tensor; i++) {
        const tensor *t = s->tensor[i];
        uint64_t most = m->layout.slices[i].bytes;

        if (t->numerics != NUMERICS)
            continue;
        if (t->nan > most || t->inf > most - t->nan)
            return corrupt(err, "with more NaN and Inf than numbers");
        if (!m->numerics)
            m->numerics = calloc(s->n_tensor, sizeof *m->numerics);
        if (!m->numerics)
            return cairn_fail(err, CAIRN_E_NOMEM, "allocate the numerics of %zu tensors", s->n_tensor);
        m->numerics[i] = (struct cairn_numerics){true, {t->nan, t->inf}, {t->digest_low, t->digest_high}};
    }
    return 0;
}

static int decode_layout(struct manifest *m, const shard *s, struct cairn_error *err)
{
    int r = 0;

    if (s->n_tensor > CAIRN_MAX_TENSORS)
        return corrupt(err, "with too many tensors");
    for (size_t i = 0; i < s->n_tensor && r == 0; i++)
        r = decode_tensor(m, s->tensor[i], err);
    if (r == 0)
        r = cairn_layout_place(&m->layout, err);
    if (r < 0)
        return cairn_wrap(err, CAIRN_E_CORRUPT, "a manifest");
    for (size_t i = 0; i < s->n_tensor; i++)
        if (s->tensor[i]->image_offset != m->layout.slices[i].image_offset)
            return corrupt(err, "whose tensors were placed by other rules");
    return decode_numerics(m, s, err);
}

static int decode_delta(const struct manifest *m, const chunk *c, struct chunk_record *r, struct cairn_error *err)
{
    const char *wrong;

    if (c->depth > CAIRN_MAX_CHAIN || (c->depth && !m->base.is_set))
        return corrupt(err, "with a chunk behind more bases than there can be");
    r->delta.depth = (uint8_t)c->depth;
    r->same = c->same;
    if (c->depth) {
        r->delta.step = m->base.step;
        r->delta.incarnation = m->base.incarnation;
    }
    wrong = r->same ? cairn_same_wrong(&r->delta, &r->entry, r->part, r->k, m->step, m->incarnation)
                    : cairn_delta_wrong(&r->delta, r->part, r->k, m->step, m->incarnation);
    return wrong ? cairn_fail(err, CAIRN_E_CORRUPT, "a manifest that has a chunk with %s", wrong) : 0;
}

static int decode_chunk(const struct manifest *m, const chunk *c, struct chunk_record *r, struct cairn_error *err)
{
    if (c->n_part < 1 || c->n_part > CAIRN_MAX_K || c->m > CAIRN_MAX_M ||
        (c->same ? c->m + c->n_peer != 0 : c->n_peer != c->n_part + c->m))
        return corrupt(err, "with a chunk of an impossible geometry");
    if (c->reserved_key)
        return cairn_fail(err, CAIRN_E_UNSUPPORTED, "a manifest with an encrypted chunk, which version %d has not",
                          VERSION);
    *r = (struct chunk_record){.first_part = c->first_part,
                               .attempt = c->attempt,
                               .k = (uint8_t)c->n_part,
                               .m = (uint8_t)c->m,
                               .entry = {c->entry_low, c->entry_high},
                               .delta = {.entry = {c->base_low, c->base_high}}};
    for (size_t i = 0; i < c->n_part; i++) {
        const part *p = c->part[i];
        if (p->codec > UINT16_MAX || p->params > UINT16_MAX || p->coded_len < 1 || p->coded_len > p->plain_len)
            return corrupt(err, "with a part that no codec writes");
        if (p->plain_len != cairn_layout_part_len(&m->layout, c->first_part + (uint32_t)i))
            return corrupt(err, "with a part of a wrong length");
        r->part[i] = (struct cairn_part_code){(uint16_t)p->codec, (uint16_t)p->params, p->plain_len, p->coded_len};
    }
    for (size_t i = 0; i < c->n_peer; i++) {
        if (c->peer[i] >= m->npeers)
            return corrupt(err, "with a fragment on a peer that it does not list");
        r->peer[i] = (uint8_t)c->peer[i];
    }
    return decode_delta(m, c, r, err);
}

static bool any_delta(const struct manifest *m)
{
    for (uint32_t i = 0; i < m->nchunks; i++)
        if (m->chunks[i].delta.depth)
            return true;
    return false;
}

static int decode_chunks(struct manifest *m, const shard *s, struct cairn_error *err)
{
    uint32_t next = 0;

    if (s->n_chunk > m->layout.nparts)
        return corrupt(err, "with more chunks than parts");
    m->chunks = calloc(s->n_chunk ? s->n_chunk : 1, sizeof *m->chunks);
    if (!m->chunks)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate %zu chunks", s->n_chunk);
    for (; m->nchunks < s->n_chunk; m->nchunks++) {
        struct chunk_record *r = &m->chunks[m->nchunks];
        if (s->chunk[m->nchunks]->first_part != next)
            return corrupt(err, "whose chunks leave a gap or overlap");
        int code = decode_chunk(m, s->chunk[m->nchunks], r, err);
        if (code < 0)
            return code;
        if (cairn_layout_part_dtype(&m->layout, next) != cairn_layout_part_dtype(&m->layout, next + r->k - 1))
            return corrupt(err, "with a chunk of two dtypes");
        next += r->k;
    }
    if (next == m->layout.nparts && m->base.is_set && !any_delta(m))
        return corrupt(err, "with a base that no chunk needs");
    if ((s->version == VERSION_SAME) != any_same(m))
        return corrupt(err, "whose version does not say whether it has chunks of its base");
    return next == m->layout.nparts ? 0 : corrupt(err, "whose chunks do not cover its tensors");
}

static int decode_front(struct manifest *m, const shard *s, struct cairn_error *err)
{
    int r;

    if (s->version < VERSION || s->version > VERSION_SAME)
        return cairn_fail(err, CAIRN_E_UNSUPPORTED, "a manifest of version %u: this reader knows versions %d to %d",
                          s->version, VERSION, VERSION_SAME);
    r = cairn_name_check("job", s->job, err);
    if (r == 0)
        r = cairn_name_check("node", s->node, err);
    if (r < 0 || s->n_peer > MANIFEST_MAX_PEERS || s->world_size < 1 || s->world_size > CAIRN_MAX_WORLD ||
        s->rank >= s->world_size)
        return corrupt(err, "with a name, a rank or a number of peers that cannot be");
    snprintf(m->job, sizeof m->job, "%s", s->job);
    snprintf(m->node, sizeof m->node, "%s", s->node);
    m->step = s->step;
    m->incarnation = s->incarnation;
    m->rank = s->rank;
    m->world_size = s->world_size;
    m->peers = calloc(s->n_peer ? s->n_peer : 1, sizeof *m->peers);
    if (!m->peers)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate %zu peers", s->n_peer);
    for (; m->npeers < s->n_peer; m->npeers++) {
        if (cairn_name_check("peer", s->peer[m->npeers], err) < 0)
            return cairn_wrap(err, CAIRN_E_CORRUPT, "a manifest");
        snprintf(m->peers[m->npeers], sizeof m->peers[0], "%s", s->peer[m->npeers]);
    }
    return 0;
}

static int decode_base(struct manifest *m, const shard *s, struct cairn_error *err)
{
    struct manifest_base *to = &m->base;
    const base *b = s->against;

    if (!b != (s->version == VERSION))
        return corrupt(err, "whose version does not say whether it has a base");
    if (!b)
        return 0;
    if (!ckpt_base_is_older(b->step, b->incarnation, m->step, m->incarnation))
        return corrupt(err, "with a base that is not older");
    if (b->manifest_sha256.len != SHA256_LEN || b->manifest_len == 0 || b->manifest_len > MANIFEST_MAX ||
        b->n_peer > CAIRN_MAX_M + 1 || cairn_name_check("node", b->node, err) < 0)
        return corrupt(err, "with a base that names no manifest");
    to->is_set = true;
    to->step = b->step;
    to->incarnation = b->incarnation;
    snprintf(to->node, sizeof to->node, "%s", b->node);
    to->manifest.len = b->manifest_len;
    memcpy(to->manifest.sha256, b->manifest_sha256.data, SHA256_LEN);
    for (; to->manifest.npeers < b->n_peer; to->manifest.npeers++) {
        if (cairn_name_check("peer", b->peer[to->manifest.npeers], err) < 0)
            return corrupt(err, "with a base in impossible places");
        snprintf(to->manifest.peer[to->manifest.npeers], CAIRN_MAX_NAME + 1, "%s", b->peer[to->manifest.npeers]);
    }
    return 0;
}

int manifest_decode(struct manifest *m, const void *data, size_t len, struct cairn_error *err)
{
    shard *s = len <= MANIFEST_MAX ? cairn__manifest__v1__shard__unpack(NULL, len, data) : NULL;
    int r;

    if (!s)
        return cairn_fail(err, CAIRN_E_CORRUPT, "%zu bytes that are no manifest", len);
    r = decode_front(m, s, err);
    if (r == 0)
        r = decode_base(m, s, err);
    if (r == 0)
        r = decode_layout(m, s, err);
    if (r == 0)
        r = decode_chunks(m, s, err);
    cairn__manifest__v1__shard__free_unpacked(s, NULL);
    if (r < 0)
        manifest_free(m);
    return r;
}
