/* SPDX-License-Identifier: Apache-2.0 */
#include "core/proto/root.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/name.h"
#include "core/model/units.h"
#include "core/proto/numerics.h"

#include "manifest.pb-c.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VERSION 1
#define VERSION_DELTA 2

typedef Cairn__Manifest__V1__Root pb_root;
typedef Cairn__Manifest__V1__ShardRef pb_ref;

void root_init(struct root *r)
{
    *r = (struct root){.step = 0};
}

void root_free(struct root *r)
{
    free(r->shards);
    root_init(r);
}

/* ---- encode ---------------------------------------------------------------------------------- */

struct scratch { /* what one reference needs beside it */
    pb_ref ref;
    Cairn__Manifest__V1__Numerics numerics;
    char *peers[CAIRN_MAX_M + 1];
};

static void fill_ref(struct scratch *to, const struct shard_ref *s)
{
    pb_ref *ref = &to->ref;

    cairn__manifest__v1__shard_ref__init(ref);
    ref->rank = s->rank;
    ref->node = (char *)(uintptr_t)s->node;
    ref->manifest_len = s->manifest.len;
    ref->manifest_sha256.data = (uint8_t *)(uintptr_t)s->manifest.sha256;
    ref->manifest_sha256.len = SHA256_LEN;
    ref->plain_bytes = s->plain_bytes;
    ref->stored_bytes = s->stored_bytes;
    ref->numerics = numerics_fill(&to->numerics, &s->numerics);
    ref->peer = to->peers;
    for (; ref->n_peer < s->manifest.npeers; ref->n_peer++)
        to->peers[ref->n_peer] = (char *)(uintptr_t)s->manifest.peer[ref->n_peer];
}

int root_encode(const struct root *r, struct bytes *out, struct cairn_error *err)
{
    pb_root p = CAIRN__MANIFEST__V1__ROOT__INIT;
    _cleanup_free_ struct scratch *refs = calloc(r->world_size ? r->world_size : 1, sizeof *refs);
    _cleanup_free_ pb_ref **list = calloc(r->world_size ? r->world_size : 1, sizeof *list);

    if (!refs || !list)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a root of %u shards", r->world_size);
    p.version = r->base.is_set ? VERSION_DELTA : VERSION;
    p.base_step = r->base.is_set ? r->base.step : 0;
    p.base_incarnation = r->base.is_set ? r->base.incarnation : 0;
    p.job = (char *)(uintptr_t)r->job;
    p.node = (char *)(uintptr_t)r->node;
    p.step = r->step;
    p.incarnation = r->incarnation;
    p.world_size = r->world_size;
    p.created_unix_ms = r->created_unix_ms;
    p.shard = list;
    for (; p.n_shard < r->world_size; p.n_shard++) {
        fill_ref(&refs[p.n_shard], &r->shards[p.n_shard]);
        list[p.n_shard] = &refs[p.n_shard].ref;
    }
    size_t len = cairn__manifest__v1__root__get_packed_size(&p);
    _cleanup_free_ uint8_t *packed = malloc(len);
    if (packed) {
        cairn__manifest__v1__root__pack(&p, packed);
        bytes_put(out, packed, len);
    }
    return !packed || out->bad ? cairn_fail(err, CAIRN_E_NOMEM, "allocate %zu bytes for a root manifest", len) : 0;
}

/* ---- decode: untrusted ----------------------------------------------------------------------- */

static int corrupt(struct cairn_error *err, const char *what)
{
    return cairn_fail(err, CAIRN_E_CORRUPT, "a root manifest %s", what);
}

static int decode_ref(struct shard_ref *to, const pb_ref *from, uint32_t rank, struct cairn_error *err)
{
    if (from->rank != rank)
        return corrupt(err, "whose shards are not its ranks in order");
    if (from->manifest_sha256.len != SHA256_LEN || from->manifest_len == 0 || from->manifest_len > MANIFEST_MAX)
        return corrupt(err, "with a shard that names no manifest");
    if (from->n_peer > CAIRN_MAX_M + 1 || cairn_name_check("node", from->node, err) < 0)
        return corrupt(err, "with a shard in impossible places");
    to->rank = rank;
    snprintf(to->node, sizeof to->node, "%s", from->node);
    to->plain_bytes = from->plain_bytes;
    to->stored_bytes = from->stored_bytes;
    numerics_decode(&to->numerics, from->numerics);
    to->manifest.len = from->manifest_len;
    memcpy(to->manifest.sha256, from->manifest_sha256.data, SHA256_LEN);
    for (; to->manifest.npeers < from->n_peer; to->manifest.npeers++) {
        if (cairn_name_check("peer", from->peer[to->manifest.npeers], err) < 0)
            return corrupt(err, "with a shard in impossible places");
        snprintf(to->manifest.peer[to->manifest.npeers], CAIRN_MAX_NAME + 1, "%s", from->peer[to->manifest.npeers]);
    }
    return 0;
}

static int decode_root(struct root *r, const pb_root *p, struct cairn_error *err)
{
    int code = 0;

    if (p->version != VERSION && p->version != VERSION_DELTA)
        return cairn_fail(err, CAIRN_E_UNSUPPORTED,
                          "a root manifest of version %u: this reader knows versions %d and %d", p->version, VERSION,
                          VERSION_DELTA);
    if (p->version == VERSION_DELTA && !ckpt_base_is_older(p->base_step, p->base_incarnation, p->step, p->incarnation))
        return corrupt(err, "with a base that is not older");
    if (p->world_size < 1 || p->world_size > CAIRN_MAX_WORLD || p->n_shard != p->world_size)
        return corrupt(err, "that does not list every rank of its world");
    if (cairn_name_check("job", p->job, err) < 0 || cairn_name_check("node", p->node, err) < 0)
        return corrupt(err, "with a name that is not allowed");
    snprintf(r->job, sizeof r->job, "%s", p->job);
    snprintf(r->node, sizeof r->node, "%s", p->node);
    r->step = p->step;
    r->incarnation = p->incarnation;
    r->world_size = p->world_size;
    r->created_unix_ms = p->created_unix_ms;
    if (p->version == VERSION_DELTA)
        r->base = (struct ckpt_base){.is_set = true, .step = p->base_step, .incarnation = p->base_incarnation};
    r->shards = calloc(p->n_shard, sizeof *r->shards);
    if (!r->shards)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a root of %zu shards", p->n_shard);
    for (uint32_t i = 0; i < p->n_shard && code == 0; i++)
        code = decode_ref(&r->shards[i], p->shard[i], i, err);
    return code;
}

int root_decode(struct root *r, const void *data, size_t len, struct cairn_error *err)
{
    pb_root *p = len <= MANIFEST_MAX ? cairn__manifest__v1__root__unpack(NULL, len, data) : NULL;
    int code =
        p ? decode_root(r, p, err) : cairn_fail(err, CAIRN_E_CORRUPT, "%zu bytes that are no root manifest", len);

    if (p)
        cairn__manifest__v1__root__free_unpacked(p, NULL);
    if (code < 0)
        root_free(r);
    return code;
}

bool root_nonfinite(const struct root *r, uint64_t *ret_count)
{
    uint64_t count = 0;

    for (uint32_t i = 0; i < r->world_size; i++) {
        const struct shard_numerics *n = &r->shards[i].numerics;
        uint64_t more;

        if (!n->known)
            return false;
        if (__builtin_add_overflow(n->bad.nan, n->bad.inf, &more) || __builtin_add_overflow(count, more, &count))
            count = UINT64_MAX; /* nobody counted that */
    }
    if (count > INT64_MAX) /* a record has no larger number */
        count = INT64_MAX;
    *ret_count = count;
    return true;
}
