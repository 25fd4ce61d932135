/* SPDX-License-Identifier: Apache-2.0 */
/* One checkpoint for SHOW (from its manifests) and VERIFY (every fragment read and checked by the peer that holds it).
 */
#include "daemon/node/query_internal.h"

#include "core/base/error.h"
#include "core/checkpoint/common.h"
#include "core/model/units.h"

#include <stdio.h>
#include <string.h>

/* ---- SHOW ------------------------------------------------------------------------------------ */

static json_t *describe_fragments(const struct manifest *m)
{
    json_t *o = json_object();

    for (uint32_t p = 0; p < m->npeers; p++) {
        json_int_t n = 0;
        for (uint32_t c = 0; c < m->nchunks; c++)
            for (unsigned f = 0; f < chunk_record_fragments(&m->chunks[c]); f++)
                n += m->chunks[c].peer[f] == p;
        query_set(o, m->peers[p], json_integer(n));
    }
    return o;
}

static json_t *describe_codecs(const struct manifest *m)
{
    uint64_t plain = 0, coded = 0, raw = 0, parts = 0, same = 0, same_plain = 0;
    json_t *o = json_object();

    for (uint32_t c = 0; c < m->nchunks; c++) {
        for (unsigned i = 0; i < m->chunks[c].k && m->chunks[c].same; i++) {
            same++;
            same_plain += m->chunks[c].part[i].plain_len;
        }
        if (m->chunks[c].same)
            continue;
        for (unsigned i = 0; i < m->chunks[c].k; i++) {
            plain += m->chunks[c].part[i].plain_len;
            coded += m->chunks[c].part[i].coded_len;
            raw += m->chunks[c].part[i].codec == CAIRN_CODEC_RAW;
            parts++;
        }
    }
    query_set(o, "parts", json_integer((json_int_t)parts));
    query_set(o, "raw_parts", json_integer((json_int_t)raw));
    query_set(o, "plain_bytes", json_integer((json_int_t)plain));
    query_set(o, "coded_bytes", json_integer((json_int_t)coded));
    query_set(o, "shared_parts", json_integer((json_int_t)same));
    query_set(o, "shared_bytes", json_integer((json_int_t)same_plain));
    return o;
}

/* null when every chunk is whole. */
static json_t *describe_base(const struct manifest *m)
{
    json_t *o;

    if (!m->base.is_set)
        return json_null();
    o = json_object();
    query_set(o, "step", json_integer((json_int_t)m->base.step));
    query_set(o, "incarnation", json_integer((json_int_t)m->base.incarnation));
    return o;
}

static unsigned longest_chain(const struct manifest *m)
{
    unsigned most = 0;

    for (uint32_t i = 0; i < m->nchunks; i++)
        most = m->chunks[i].delta.depth > most ? m->chunks[i].delta.depth : most;
    return most;
}

static json_t *describe_shard(const struct shard_ref *ref, const struct manifest *m)
{
    json_t *o = json_object();
    char geometry[16] = "-";

    const struct chunk_record *widest = NULL; /* a group's last chunk has fewer parts */

    for (uint32_t i = 0; i < m->nchunks; i++)
        if (!m->chunks[i].same && (!widest || m->chunks[i].k > widest->k))
            widest = &m->chunks[i];
    if (widest)
        snprintf(geometry, sizeof geometry, "%u+%u", widest->k, widest->m);
    query_set(o, "rank", json_integer(ref->rank));
    query_set(o, "node", json_string(ref->node));
    query_set(o, "plain_bytes", json_integer((json_int_t)ref->plain_bytes));
    query_set(o, "stored_bytes", json_integer((json_int_t)ref->stored_bytes));
    query_set(o, "tensors", json_integer(m->layout.nslices));
    query_set(o, "chunks", json_integer(m->nchunks));
    query_set(o, "geometry", json_string(geometry));
    query_set(o, "coding", describe_codecs(m));
    query_set(o, "base", describe_base(m));
    query_set(o, "chain", json_integer(longest_chain(m)));
    query_set(o, "peers", describe_fragments(m));
    return o;
}

static json_t *dims(const uint64_t *v, uint32_t n)
{
    json_t *a = json_array();

    for (uint32_t i = 0; i < n; i++)
        json_array_append_new(a, json_integer((json_int_t)v[i]));
    return a;
}

/* What others counted may be any number. */
static json_t *count_of(uint64_t n)
{
    return json_integer(n > INT64_MAX ? INT64_MAX : (json_int_t)n);
}

/* null where they are not known. */
static void describe_numerics(json_t *slice, const struct cairn_numerics *n)
{
    char hex[40];
    bool known = n && n->known;

    if (known)
        snprintf(hex, sizeof hex, "%016llx%016llx", (unsigned long long)n->digest.high,
                 (unsigned long long)n->digest.low);
    query_set(slice, "nan", known ? count_of(n->bad.nan) : json_null());
    query_set(slice, "inf", known ? count_of(n->bad.inf) : json_null());
    query_set(slice, "digest", known ? json_string(hex) : json_null());
}

/* What ranks should hold in common and do not; null: nothing that is known. */
static json_t *describe_mismatch(const struct checkpoint *c)
{
    struct common_split split = {.sets = 0};
    struct common_tensors t = {.n = 0};
    json_t *o, *ranks, *tensors;
    char text[512];

    if (common_compare(c->root.shards, c->root.world_size, &split, NULL) < 0 || split.sets == 0)
        return json_null();
    common_differ(&c->manifests[split.witness[0]], &c->manifests[split.witness[1]], &t, NULL);
    common_text(&split, &t, text, sizeof text);
    o = json_object();
    ranks = json_array();
    tensors = json_array();
    for (uint32_t i = 0; i < split.nodd && i < COMMON_NAMED; i++)
        json_array_append_new(ranks, json_integer(split.odd[i]));
    for (uint64_t i = 0; i < t.n && i < COMMON_NAMED; i++)
        json_array_append_new(tensors, json_string(t.name[i]));
    query_set(o, "text", json_string(text));
    query_set(o, "ranks", ranks);
    query_set(o, "ranks_total", json_integer(split.nodd));
    query_set(o, "majority", json_boolean(!split.undecided));
    query_set(o, "tensors", tensors);
    query_set(o, "tensors_total", json_integer((json_int_t)t.n));
    return o;
}

/* Tensors by name, with the slice that each rank saved. */
static json_t *describe_tensors(const struct checkpoint *c)
{
    json_t *by_name = json_object(), *list = json_array();
    const char *name;
    json_t *tensor;

    for (uint32_t r = 0; r < c->root.world_size; r++) {
        const struct cairn_layout *l = &c->manifests[r].layout;
        const struct cairn_numerics *numerics = c->manifests[r].numerics;
        for (uint32_t i = 0; i < l->nslices; i++) {
            const struct cairn_slice *s = &l->slices[i];
            tensor = json_object_get(by_name, s->name);
            if (!tensor) {
                tensor = json_object();
                query_set(tensor, "name", json_string(s->name));
                query_set(tensor, "dtype", json_string(cairn_dtype_name(s->dtype)));
                query_set(tensor, "shape", dims(s->shape, s->box.ndim));
                query_set(tensor, "slices", json_array());
                json_object_set_new(by_name, s->name, tensor);
            }
            json_t *slice = json_object();
            query_set(slice, "rank", json_integer(r));
            query_set(slice, "offset", dims(s->box.offset, s->box.ndim));
            query_set(slice, "length", dims(s->box.length, s->box.ndim));
            query_set(slice, "bytes", json_integer((json_int_t)s->bytes));
            query_set(slice, "common", json_boolean(s->common));
            describe_numerics(slice, numerics ? &numerics[i] : NULL);
            json_array_append_new(json_object_get(tensor, "slices"), slice);
        }
    }
    json_object_foreach(by_name, name, tensor) json_array_append(list, tensor);
    json_decref(by_name);
    return list;
}

json_t *query_describe_checkpoint(const struct checkpoint *c)
{
    json_t *o = json_object(), *shards = json_array();
    uint64_t nonfinite = 0;
    bool counted = root_nonfinite(&c->root, &nonfinite);

    query_set(o, "v", json_integer(1));
    query_set(o, "job", json_string(c->root.job));
    query_set(o, "step", json_integer((json_int_t)c->root.step));
    query_set(o, "incarnation", json_integer((json_int_t)c->root.incarnation));
    query_set(o, "world_size", json_integer(c->root.world_size));
    query_set(o, "created_unix_ms", json_integer((json_int_t)c->root.created_unix_ms));
    query_set(o, "plain_bytes", json_integer((json_int_t)c->decision.plain_bytes));
    query_set(o, "stored_bytes", json_integer((json_int_t)c->decision.stored_bytes));
    query_set(o, "nonfinite", counted ? json_integer((json_int_t)nonfinite) : json_null());
    query_set(o, "common_mismatch", describe_mismatch(c));
    for (uint32_t r = 0; r < c->root.world_size; r++)
        json_array_append_new(shards, describe_shard(&c->root.shards[r], &c->manifests[r]));
    query_set(o, "shards", shards);
    query_set(o, "tensors", describe_tensors(c));
    return o;
}

/* ---- VERIFY ---------------------------------------------------------------------------------- */

static void verify_more(struct query *q);

static void verify_free_tables(struct query *q)
{
    for (uint32_t r = 0; q->lost && r < q->checkpoint->root.world_size; r++)
        free(q->lost[r]);
    free(q->lost);
    q->lost = NULL;
}

static void verify_end(struct query *q)
{
    json_t *o = json_object();
    const struct root *root = &q->checkpoint->root;

    query_set(o, "v", json_integer(1));
    query_set(o, "job", json_string(root->job));
    query_set(o, "step", json_integer((json_int_t)root->step));
    query_set(o, "incarnation", json_integer((json_int_t)root->incarnation));
    query_set(o, "fragments", json_integer((json_int_t)q->fragments));
    query_set(o, "ok", json_integer((json_int_t)q->ok));
    query_set(o, "missing", json_integer((json_int_t)q->missing));
    query_set(o, "corrupt", json_integer((json_int_t)q->corrupt));
    query_set(o, "repairable", json_boolean(q->repairable));
    query_set(o, "bad", json_incref(q->bad));
    verify_free_tables(q);
    query_answer(q, o);
}

/* Of this chunk: a shard's table counts the chunks of its own manifest, then of its base's, and so on. */
static uint8_t *verify_lost(struct query *q, const struct gather_check *g)
{
    const struct manifest *m = &q->checkpoint->manifests[g->manifest->rank];
    uint8_t *lost = q->lost[g->manifest->rank];

    for (; m != g->manifest; m = m->under)
        lost += m->nchunks;
    return lost + g->chunk;
}

static void verify_note_bad(struct query *q, const struct gather_check *g, int code, const struct cairn_error *err)
{
    const struct chunk_record *c = &g->manifest->chunks[g->chunk];

    if (code == CAIRN_E_CORRUPT)
        q->corrupt++;
    else
        q->missing++;
    if (++*verify_lost(q, g) > c->m)
        q->repairable = false;
    if (json_array_size(q->bad) >= VERIFY_MAX_BAD)
        return;
    json_t *o = json_object();
    query_set(o, "rank", json_integer(g->manifest->rank));
    if (g->manifest->step != q->checkpoint->root.step) /* a base's */
        query_set(o, "step", json_integer((json_int_t)g->manifest->step));
    query_set(o, "first_part", json_integer(c->first_part));
    query_set(o, "fragment", json_integer(g->fragment));
    query_set(o, "peer", json_string(g->manifest->peers[c->peer[g->fragment]]));
    query_set(o, "error", json_string(err && err->message[0] ? err->message : cairn_code_name(code)));
    json_array_append_new(q->bad, o);
}

static void verify_checked(struct gather_check *g, int code, const struct cairn_error *err)
{
    struct query_check *qc = g->arg;
    struct query *q = qc->query;

    qc->busy = false;
    q->nbusy--;
    q->fragments++;
    if (code == 0)
        q->ok++;
    else
        verify_note_bad(q, g, code, err);
    verify_more(q);
}

/* The next fragment of the checkpoint; false when all were asked for. */
static bool verify_next(struct query *q, struct gather_check *g)
{
    while (q->shard < q->checkpoint->root.world_size) {
        const struct manifest *top = &q->checkpoint->manifests[q->shard], *m = top;
        for (unsigned i = 0; i < q->level; i++)
            m = m->under;
        if (q->chunk >= m->nchunks) {
            q->level = m->under ? q->level + 1 : 0;
            q->shard += !m->under;
            q->chunk = q->fragment = 0;
            continue;
        }
        if (!manifest_needs(top, q->level, &m->chunks[q->chunk])) {
            q->chunk++;
            continue;
        }
        if (q->fragment >= chunk_record_fragments(&m->chunks[q->chunk])) {
            q->chunk++;
            q->fragment = 0;
            continue;
        }
        g->manifest = m;
        g->chunk = q->chunk;
        g->fragment = q->fragment++;
        return true;
    }
    return false;
}

static void verify_more(struct query *q)
{
    struct node *node = q->session->node;
    struct cairn_error err = CAIRN_ERROR_INIT;
    uint64_t spent_ms = (loop_now_ns(node->deps.loop) - q->started_ns) / 1000000;
    bool stop = q->session->closed || spent_ms > q->timeout_ms;

    for (unsigned i = 0; i < VERIFY_AT_ONCE && !stop; i++) {
        struct query_check *qc = &q->checks[i];
        if (qc->busy)
            continue;
        qc->check =
            (struct gather_check){.timeout_ms = node->config.fragment_late_ms * 4, .done = verify_checked, .arg = qc};
        if (!verify_next(q, &qc->check))
            break;
        qc->busy = true;
        q->nbusy++;
        gather_check_start(node->links, &qc->check);
    }
    if (q->nbusy > 0)
        return;
    if (!stop) {
        verify_end(q);
        return;
    }
    verify_free_tables(q);
    cairn_fail(&err, CAIRN_E_TIMEOUT, "verify %s step %llu: %llu fragments checked in %u ms, not all", q->job,
               (unsigned long long)q->checkpoint->root.step, (unsigned long long)q->fragments, q->timeout_ms);
    query_fail(q, CAIRN_E_TIMEOUT, &err);
}

static bool verify_make_tables(struct query *q)
{
    uint32_t world = q->checkpoint->root.world_size;

    q->checks = calloc(VERIFY_AT_ONCE, sizeof *q->checks);
    q->bad = json_array();
    q->lost = calloc(world, sizeof *q->lost);
    if (!q->checks || !q->bad || !q->lost)
        return false;
    for (unsigned i = 0; i < VERIFY_AT_ONCE; i++)
        q->checks[i].query = q;
    for (uint32_t r = 0; r < world; r++) {
        size_t n = 1;
        for (const struct manifest *m = &q->checkpoint->manifests[r]; m; m = m->under)
            n += m->nchunks;
        q->lost[r] = calloc(n, 1);
        if (!q->lost[r])
            return false;
    }
    return true;
}

void query_verify(struct query *q)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    q->repairable = true;
    if (!verify_make_tables(q)) {
        verify_free_tables(q);
        query_fail(q, cairn_fail(&err, CAIRN_E_NOMEM, "allocate the tables of a verification"), &err);
        return;
    }
    verify_more(q);
}
