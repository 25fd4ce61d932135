/* SPDX-License-Identifier: Apache-2.0 */
/* The index of one stream file: where each fragment lies, and which of them are known to be damaged. */
#include "daemon/peer/keep_internal.h"

#include "core/model/hash.h"

#include <stdlib.h>
#include <string.h>

#define BUCKETS 1024 /* at first */
#define MAX_BAD \
    4096 /* damaged records of one file that are remembered; the others are found again by their checksums */

/* ---- the index: open addressing -------------------------------------------------------------- */

static uint64_t entry_hash(const struct fragment_key *key)
{
    const uint32_t v[5] = {(uint32_t)key->kind, key->rank, key->first_part, key->attempt, key->index};

    return cairn_hash64(v, sizeof v, 0);
}

static bool entry_is(const struct index_entry *e, const struct fragment_key *key, uint64_t hash)
{
    return e->hash == hash && e->kind == (uint32_t)key->kind && e->rank == key->rank &&
           e->first_part == key->first_part && e->attempt == key->attempt && e->index == key->index;
}

/* The bucket of the key, or the empty one where it belongs. */
static struct index_entry *index_at(struct index_entry *index, size_t nbuckets, const struct fragment_key *key,
                                    uint64_t hash)
{
    size_t at = hash & (nbuckets - 1);

    while (index[at].record_len && !entry_is(&index[at], key, hash))
        at = (at + 1) & (nbuckets - 1);
    return &index[at];
}

static bool index_grow(struct kept_stream *s)
{
    size_t n = s->nbuckets ? s->nbuckets * 2 : BUCKETS;
    struct index_entry *bigger = calloc(n, sizeof *bigger);

    if (!bigger)
        return false;
    for (size_t i = 0; i < s->nbuckets; i++) {
        if (!s->index[i].record_len)
            continue;
        size_t at = s->index[i].hash & (n - 1);
        while (bigger[at].record_len)
            at = (at + 1) & (n - 1);
        bigger[at] = s->index[i];
    }
    free(s->index);
    s->index = bigger;
    s->nbuckets = n;
    return true;
}

static bool is_bad(const struct kept_stream *s, uint64_t offset)
{
    for (size_t i = 0; i < s->nbad; i++)
        if (s->bad[i] == offset)
            return true;
    return false;
}

bool index_put(struct kept_stream *s, const struct fragment_key *key, uint64_t offset, uint32_t record_len)
{
    uint64_t hash = entry_hash(key);

    if (s->nentries * 2 >= s->nbuckets && !index_grow(s))
        return false;
    struct index_entry *e = index_at(s->index, s->nbuckets, key, hash);
    s->nentries += !e->record_len;
    s->known_end = offset + record_len > s->known_end ? offset + record_len : s->known_end;
    *e = (struct index_entry){hash,       (uint32_t)key->kind, key->rank, key->first_part,  key->attempt,
                              key->index, record_len,          offset,    is_bad(s, offset)};
    return true;
}

const struct index_entry *index_get(const struct kept_stream *s, const struct fragment_key *key)
{
    if (!s->nbuckets)
        return NULL;
    const struct index_entry *e = index_at(s->index, s->nbuckets, key, entry_hash(key));
    return e->record_len ? e : NULL;
}

/* The offset is remembered beside the index, which goes when the file is closed. */
static void remember_bad(struct kept_stream *s, uint64_t offset)
{
    uint64_t *more = s->nbad < MAX_BAD && !is_bad(s, offset) ? realloc(s->bad, (s->nbad + 1) * sizeof *more) : NULL;

    if (more) {
        s->bad = more;
        s->bad[s->nbad++] = offset;
    }
}

void index_mark_bad(struct kept_stream *s, uint64_t offset)
{
    remember_bad(s, offset);
    for (size_t i = 0; i < s->nbuckets; i++)
        if (s->index[i].record_len && s->index[i].offset == offset)
            s->index[i].bad = true;
}

unsigned index_mark_range(struct kept_stream *s, uint64_t from, uint64_t to)
{
    unsigned n = 0;

    for (size_t i = 0; i < s->nbuckets; i++) {
        struct index_entry *e = &s->index[i];
        if (!e->record_len || e->offset < from || e->offset >= to)
            continue;
        remember_bad(s, e->offset);
        e->bad = true;
        n++;
    }
    return n;
}
