/* SPDX-License-Identifier: Apache-2.0 */
/* A drain of a snapshot that is still being filled, and what its parts are compared with:
 *
 *     in_place grows -> chunks below it are cut and encoded -> filled -> the rest -> nothing left to compare ->
 * manifest
 *
 * A device's sums are known when its last copy was made. Chunks that are encoded from then on are compared in the same
 * pass over their bytes; those that were encoded before are read once more from the arena, where they lie until the
 * snapshot is filled and they have been compared. */
#include "daemon/node/drain_chunk.h"

#include "core/base/error.h"
#include "daemon/io/log.h"

#include <stdio.h>
#include <stdlib.h>

#define CHECKS_AT_ONCE 8 /* of one drain: others' encodes wait behind them */

bool drain_is_settled(const struct drain *d)
{
    return !d->filling && list_empty(&d->unchecked) && d->checking == 0;
}

void drain_in_place(struct drain *d, uint32_t parts)
{
    if (!d->filling || parts <= d->in_place)
        return;
    d->in_place = parts < d->spec.layout->nparts ? parts : d->spec.layout->nparts;
    links_kick(d->links);
}

/* ---- what differs ---------------------------------------------------------------------------- */

/* The tensor that the part begins with, and whether it has others too. */
static const char *tensor_of(const struct cairn_layout *l, uint32_t part, unsigned *ret_more)
{
    uint64_t begin = (uint64_t)part * CAIRN_PART, end = begin + cairn_layout_part_len(l, part), first = UINT64_MAX;
    const char *name = "?";
    unsigned n = 0;

    for (uint32_t i = 0; i < l->nslices; i++) {
        const struct cairn_slice *s = &l->slices[i];
        if (s->bytes == 0 || s->image_offset >= end || s->image_offset + s->bytes <= begin)
            continue;
        n++;
        if (s->image_offset < first)
            name = s->name;
        first = s->image_offset < first ? s->image_offset : first;
    }
    *ret_more = n > 0 ? n - 1 : 0;
    return name;
}

static int is_not(const struct drain *d, uint32_t part, const char *what, struct cairn_error *err)
{
    char others[40] = "";
    unsigned more;
    const char *name = tensor_of(d->spec.layout, part, &more);

    if (more)
        snprintf(others, sizeof others, " and %u more", more);
    log_line(LOG_ERROR,
             "job %s step %llu rank %u part %u: what arrived in the arena is not what the device %s; the save fails; "
             "tensor \"%s\"%s",
             d->job, (unsigned long long)d->spec.step, d->spec.rank, part, what, name, others);
    return cairn_fail(err, CAIRN_E_CORRUPT,
                      "rank %u part %u: what arrived in the arena is not what the device %s, test this machine's "
                      "memory and bus; tensor \"%.64s\"%s",
                      d->spec.rank, part, what, name, others);
}

int drain_differs(const struct drain *d, uint32_t part, struct cairn_error *err)
{
    return is_not(d, part, "read", err);
}

int drain_undecoded(const struct drain *d, uint32_t part, struct cairn_error *err)
{
    return is_not(d, part, "packed", err);
}

/* ---- chunks that were encoded before --------------------------------------------------------- */

struct check {
    struct worker_job job;
    struct chunk *chunk;
    const char *plain[CAIRN_MAX_K];
    uint32_t len[CAIRN_MAX_K];
    const struct hash128 *sums;
    uint64_t seed;
    unsigned differs; /* the part, from 1 on */
};

static void check_run(struct worker_job *job)
{
    struct check *k = job->arg;

    for (unsigned i = 0; i < k->chunk->k && !k->differs; i++) {
        struct hash128 sum = cairn_hash128_seeded(k->plain[i], k->len[i], k->seed);
        if (!cairn_sum_agrees(&k->sums[i], &sum))
            k->differs = i + 1;
    }
}

static void check_done(struct worker_job *job)
{
    struct check *k = job->arg;
    struct chunk *c = k->chunk;
    struct drain *d = c->drain;
    struct cairn_error err = CAIRN_ERROR_INIT;

    c->checking = false;
    d->checking--;
    d->busy--;
    for (unsigned i = 0; i < c->k && !k->differs; i++)
        links_counts(d->links)->compared_bytes += k->len[i];
    if (k->differs && d->code == 0)
        drain_fail(d, drain_differs(d, c->first_part + k->differs - 1, &err), &err);
    free(k);
    links_kick(d->links);
}

void drain_check_more(struct drain *d)
{
    while (d->code == 0 && !list_empty(&d->unchecked) && d->checking < CHECKS_AT_ONCE) {
        struct chunk *c = list_first(&d->unchecked, struct chunk, unchecked);
        struct check *k = calloc(1, sizeof *k);
        if (!k)
            return; /* the next pump tries again */
        list_remove(&c->unchecked);
        chunk_plain(c, k->plain, k->len);
        k->chunk = c;
        k->sums = d->spec.sums + c->first_part;
        k->seed = d->spec.sums_seed;
        k->job = (struct worker_job){.run = check_run, .done = check_done, .arg = k};
        c->checking = true;
        d->checking++;
        d->busy++;
        workers_submit(links_workers(d->links), &k->job);
    }
}

void chunk_check_later(struct chunk *c)
{
    list_push_back(&c->drain->unchecked, &c->unchecked);
}

/* What is not encoded yet is compared when it is. */
void drain_sums(struct drain *d, const struct hash128 *sums, uint64_t seed)
{
    struct list *lists[] = {&d->todo, &d->encoding, &d->going, &d->safe, &d->full};

    if (d->spec.sums || d->code < 0)
        return;
    d->spec.sums = sums;
    d->spec.sums_seed = seed;
    for (unsigned i = 0; i < sizeof lists / sizeof lists[0]; i++) {
        list_for_each (it, lists[i]) {
            struct chunk *c = container_of(it, struct chunk, link);
            if (c->known && !c->released)
                chunk_check_later(c);
        }
    }
    links_kick(d->links);
}
