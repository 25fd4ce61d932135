/* SPDX-License-Identifier: Apache-2.0 */
#include "client/device_copy.h"

#include <stdlib.h>
#include <string.h>

#include "client/save.h"
#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/units.h"

#define TELL_PARTS 64 /* the daemon hears of so many at a time */

/* One device's. */
struct one_copy {
    struct share *share;
    struct cairn_device_copy *handle;
    const void **data; /* of each slice of the share */
    struct cairn_device_progress at;
    bool ended;
};

struct device_copies {
    struct cairn_save *save;
    struct one_copy *copies;
    uint32_t ncopies;              /* that are under way or have ended */
    void **pages;                  /* of each part */
    struct cairn_device_sum *held; /* by each part's page; NULL: nobody asks */
    uint32_t told;                 /* parts that the daemon has heard of */
    struct local_packed *packed;   /* the message that says it of a packed save; NULL: it is not */
    struct device_outcome outcome;
};

/* ---- what the pages hold --------------------------------------------------------------------- */

/* The table, if it can be had. Lock held. */
static struct hash128 *sums_of(struct arena *a)
{
    if (!a->sums)
        a->sums = calloc(a->page_bytes / CAIRN_PART, sizeof(*a->sums));
    return a->sums;
}

void device_forget_sums(struct cairn_save *s)
{
    pthread_mutex_lock(&s->session->lock);
    for (uint32_t part = 0; s->arena->sums && part < s->plan->layout.nparts; part++)
        if (!s->shares || !s->shares->owner[part])
            s->arena->sums[s->pages[part]] = (struct hash128){0};
    pthread_mutex_unlock(&s->session->lock);
}

/* Takes what is known of the pages out of the table: from now on they are written to. */
static void take_held(struct cairn_save *s, struct cairn_device_sum *ret_held)
{
    const struct shares *shares = s->shares;

    pthread_mutex_lock(&s->session->lock);
    for (uint32_t part = 0; s->arena->sums && part < s->plan->layout.nparts; part++) {
        struct hash128 *sum = &s->arena->sums[s->pages[part]];
        if (shares->owner[part] && ret_held)
            ret_held[part] = (struct cairn_device_sum){sum->low, sum->high};
        *sum = (struct hash128){0};
    }
    pthread_mutex_unlock(&s->session->lock);
}

void device_copies_note_sums(struct cairn_save *s, const struct device_outcome *outcome)
{
    if (!outcome->sums)
        return;
    pthread_mutex_lock(&s->session->lock);
    struct hash128 *sums = sums_of(s->arena);
    for (uint32_t part = 0; sums && part < s->plan->layout.nparts; part++)
        if (s->shares->owner[part])
            sums[s->pages[part]] = outcome->sums[part];
    pthread_mutex_unlock(&s->session->lock);
}

/* ---- start ----------------------------------------------------------------------------------- */

static uint32_t save_flags(const struct cairn_save *s)
{
    uint32_t flags = 0;

    if (s->session->flags & CAIRN_TRACK)
        flags |= CAIRN_DEVICE_SUMS | CAIRN_DEVICE_SKIP;
    if (s->compared && s->attachment->knows & LOCAL_KNOWS_SUMS)
        flags |= CAIRN_DEVICE_SUMS;
    if (s->packed)
        flags |= CAIRN_DEVICE_PACK;
    return flags;
}

static void *stream_of(const struct cairn_save *s, uint32_t device)
{
    for (uint32_t i = 0; i < s->nstreams; i++)
        if (s->streams[i].device == device)
            return s->streams[i].stream;
    return NULL;
}

static unsigned long long share_mib(const struct share *h)
{
    return (h->bytes + CAIRN_PART - 1) / CAIRN_PART;
}

static int start_one(struct device_copies *c, uint32_t flags, struct cairn_error *err)
{
    struct cairn_save *s = c->save;
    struct one_copy *one = &c->copies[c->ncopies];
    struct cairn_device_save save = {.size = sizeof(save),
                                     .data = one->data,
                                     .page = c->pages,
                                     .stream = stream_of(s, one->share->device->number),
                                     .flags = flags,
                                     .seed = s->session->seed,
                                     .held = c->held};

    pthread_mutex_lock(&s->shares->lock);
    int r = shares_check(s->shares, one->share, one->data, err);
    if (r == 0)
        r = device_save(one->share->device, one->share->plan, &save, &one->handle, err);
    pthread_mutex_unlock(&s->shares->lock);
    if (r < 0)
        return cairn_wrap(err, r, "copy %llu MiB", share_mib(one->share));
    c->ncopies++;
    return 0;
}

static struct device_copies *copies_new(struct cairn_save *s, bool with_held)
{
    struct device_copies *c = calloc(1, sizeof(*c));
    uint32_t nparts = s->plan->layout.nparts;
    bool good = c;

    if (!c)
        return NULL;
    c->save = s;
    c->outcome.error.size = sizeof(c->outcome.error);
    c->copies = calloc(s->shares->nshares, sizeof(*c->copies));
    c->pages = malloc(nparts * sizeof(*c->pages));
    c->held = with_held ? calloc(nparts, sizeof(*c->held)) : NULL;
    c->packed = s->packed ? calloc(1, sizeof(*c->packed) + LOCAL_MAX_PACKED * sizeof(c->packed->len[0])) : NULL;
    good = c->copies && c->pages && (c->held || !with_held) && (c->packed || !s->packed);
    for (uint32_t i = 0; i < s->shares->nshares && good; i++) {
        struct share *h = &s->shares->shares[i];
        c->copies[i].share = h;
        c->copies[i].data = malloc(h->nslices * sizeof(*c->copies[i].data));
        good = c->copies[i].data;
        if (good)
            shares_data(h, s->sources, c->copies[i].data);
    }
    if (good)
        return c;
    device_copies_free(c, false);
    return NULL;
}

int device_copies_start(struct cairn_save *s, struct device_copies **ret_copies, struct cairn_error *err)
{
    uint32_t flags = save_flags(s);
    struct device_copies *c = copies_new(s, flags & CAIRN_DEVICE_SKIP);
    int r = 0;

    if (!c)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the copies from %u devices", s->shares->nshares);
    for (uint32_t part = 0; part < s->plan->layout.nparts; part++)
        c->pages[part] = arena_page(s->arena, s->pages[part]);
    take_held(s, c->held);
    for (uint32_t i = 0; i < s->shares->nshares && r == 0; i++) /* ncopies grows with i */
        r = start_one(c, flags, err);
    c->outcome.code = r;
    if (c->ncopies)
        *ret_copies = c;
    else
        device_copies_free(c, false);
    return r;
}

void device_copies_free(struct device_copies *c, bool forked)
{
    if (!c)
        return;
    for (uint32_t i = 0; c->copies && i < c->save->shares->nshares; i++) {
        if (!forked)
            device_copy_free(c->save->shares->shares[i].device, c->copies[i].handle);
        free(c->copies[i].data);
    }
    free(c->copies);
    free(c->pages);
    free(c->held);
    free(c->packed);
    free(c->outcome.sums);
    free(c);
}

/* ---- looking after them ---------------------------------------------------------------------- */

/* Notes the first failure; the others' copies go on until they end. */
static void note_failure(struct device_copies *c, const struct one_copy *one, int code, struct cairn_error *why)
{
    if (c->outcome.code < 0)
        return;
    c->outcome.code = cairn_wrap(why, code, "copy %llu MiB", share_mib(one->share));
    cairn_error_copy(&c->outcome.error, why);
}

/* The sums of the parts that are this device's alone. */
static void gather_sums(struct device_copies *c, const struct one_copy *one)
{
    const struct shares *shares = c->save->shares;
    uint32_t nparts = c->save->plan->layout.nparts;

    if (!one->at.sums)
        return;
    if (!c->outcome.sums)
        c->outcome.sums = calloc(nparts, sizeof(*c->outcome.sums));
    for (uint32_t part = 0; part < nparts && c->outcome.sums; part++)
        if (shares->owner[part] == one->share - shares->shares + 1)
            c->outcome.sums[part] = (struct hash128){one->at.sums[part].low, one->at.sums[part].high};
}

static void look_at(struct device_copies *c, struct one_copy *one)
{
    struct cairn_error why = CAIRN_ERROR_INIT;
    int r = device_progress(one->share->device, one->handle, c->save->plan->layout.nparts, &one->at, &why);

    one->ended = one->at.ended;
    if (r < 0)
        note_failure(c, one, r, &why);
    if (r < 0 || !one->ended)
        return;
    gather_sums(c, one);
    c->outcome.packs |= one->at.packed != NULL;
    if (one->at.device_ns > c->outcome.device_ns)
        c->outcome.device_ns = one->at.device_ns;
    c->outcome.skipped_bytes += one->at.skipped_bytes;
    c->outcome.staged_bytes += one->at.staged_bytes;
}

uint32_t device_copies_parts(const struct device_copies *c)
{
    uint32_t parts = c->save->plan->layout.nparts;

    for (uint32_t i = 0; i < c->ncopies; i++)
        if (c->copies[i].at.parts < parts)
            parts = c->copies[i].at.parts;
    return parts;
}

/* Bytes that a device has packed into the part's page; 0: the part lies there as it is. */
static uint32_t packed_len(const struct device_copies *c, uint32_t part)
{
    uint8_t owner = c->save->shares->owner[part];

    for (uint32_t i = 0; owner && i < c->ncopies; i++)
        if (c->copies[i].share == &c->save->shares->shares[owner - 1])
            return c->copies[i].at.packed ? c->copies[i].at.packed[part] : 0;
    return 0;
}

/* The message that says how the next parts lie, up to this one. Returns how many of them it has room for. */
static uint32_t fill_packed(struct device_copies *c, uint32_t parts)
{
    struct local_packed *m = c->packed;
    uint32_t n = parts - c->told < LOCAL_MAX_PACKED ? parts - c->told : LOCAL_MAX_PACKED;

    local_header_init(&m->h, LOCAL_PACKED, sizeof(*m) + n * sizeof(m->len[0]), 0);
    m->save = c->save->watch.save;
    m->first = c->told;
    m->n = n;
    for (uint32_t i = 0; i < n; i++)
        m->len[i] = packed_len(c, c->told + i);
    return n;
}

static void note_told(struct device_copies *c, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (c->packed->len[i])
            c->outcome.packed_bytes += cairn_layout_part_len(&c->save->plan->layout, c->told + i);
    c->told += n;
}

static void tell_packed(struct device_copies *c, uint32_t parts)
{
    uint32_t n = fill_packed(c, parts);

    if (channel_tell(c->save->attachment->channel, &c->packed->h))
        note_told(c, n);
}

int device_copies_tell_rest(struct device_copies *c, int64_t deadline_ns, struct cairn_error *err)
{
    uint32_t nparts = c->save->plan->layout.nparts;
    int r = 0;

    while (c->packed && c->told < nparts && r == 0) {
        struct local_ok ok;
        struct channel_request q = {.expect = LOCAL_OK, .answer = &ok, .room = sizeof(ok)};
        uint32_t n = fill_packed(c, nparts);
        r = channel_call(c->save->attachment->channel, &c->packed->h, -1, &q, deadline_ns, err);
        if (r == 0)
            note_told(c, n);
    }
    if (r < 0 && channel_watch_is_lost(c->save->attachment->channel, &c->save->watch))
        r = cairn_wrap(err, CAIRN_E_ABORTED, "its tensors are packed, and cairnd went before it knew how they lie");
    return r;
}

/* What the host copies was there before; so the first parts of all devices are all that is missing. A connection that
 * is lost says nothing. */
static void tell_parts(struct device_copies *c)
{
    struct cairn_save *s = c->save;
    struct local_parts m = {.save = s->watch.save, .parts = device_copies_parts(c)};

    if (c->outcome.code < 0 || m.parts < c->told + TELL_PARTS || m.parts == s->plan->layout.nparts ||
        !(s->attachment->knows & LOCAL_KNOWS_PARTS))
        return;
    if (c->packed) {
        tell_packed(c, m.parts);
        return;
    }
    c->told = m.parts;
    local_header_init(&m.h, LOCAL_PARTS, sizeof(m), 0);
    channel_tell(s->attachment->channel, &m.h);
}

bool device_copies_look(struct device_copies *c)
{
    bool all = true;

    for (uint32_t i = 0; i < c->ncopies; i++) {
        if (!c->copies[i].ended)
            look_at(c, &c->copies[i]);
        all &= c->copies[i].ended;
    }
    if (!all)
        tell_parts(c);
    return all;
}

const struct device_outcome *device_copies_outcome(const struct device_copies *c)
{
    return &c->outcome;
}
