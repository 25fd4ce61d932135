/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/node/codecs.h"

#include "core/base/error.h"
#include "core/model/dtype.h"
#include "daemon/io/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CLASSES 5 /* of dtypes, by the width of an element: 1, 2, 4, 8 bytes, and anything else */
#define WINDOW_NS 50000000
#define RAW_SPEED 8000000000 /* supposed until it was measured: raw parts are only read and hashed */

static const struct {
    const char *name;
    uint64_t speed; /* supposed, bytes a second */
} known[] = {{"raw", RAW_SPEED}, {"lz4", 500000000}, {"float", 3000000000}, {"dense", 800000000}};
#define KNOWN (sizeof known / sizeof known[0])

struct one {
    struct codec *codec;
    bool allowed;
    struct cairn_rate rate[CLASSES];
    struct encode_cost all;
};

struct codecs {
    struct one one[KNOWN];    /* raw first; a codec that is not there has no pointer */
    unsigned before[CLASSES]; /* index in one */
    unsigned workers;
    uint64_t rate_bound;
    struct cairn_rate path;
    uint64_t window_began_ns, window_bytes;
    unsigned window_waiting, window_events;
    uint64_t copied, hashed, parity, in_place, of_buffer;
};

/* ---- which ----------------------------------------------------------------------------------- */

static int allow(struct codecs *c, const char *allowed, struct cairn_error *err)
{
    char copy[256], *save = NULL;
    bool automatic = strcmp(allowed, "auto") == 0;

    for (unsigned i = 0; i < KNOWN; i++)
        c->one[i].allowed = automatic && c->one[i].codec;
    if (automatic)
        return 0;
    snprintf(copy, sizeof copy, "%s", allowed);
    for (char *name = strtok_r(copy, ", ", &save); name; name = strtok_r(NULL, ", ", &save)) {
        unsigned i = 0;
        while (i < KNOWN && strcmp(known[i].name, name) != 0)
            i++;
        if (i == KNOWN)
            return cairn_fail(err, CAIRN_E_INVAL, "[node] codecs: \"%s\" is none of raw, lz4, float, dense", name);
        if (!c->one[i].codec)
            return cairn_fail(err, CAIRN_E_NOT_FOUND, "[node] codecs: the plugin codec-%s is not there", name);
        c->one[i].allowed = true;
    }
    return 0;
}

/* raw must be there; without another what it encoded cannot be read, and that is said when it is. */
static int load(struct codecs *c, struct plugins *plugins, struct cairn_error *err)
{
    for (unsigned i = 0; i < KNOWN; i++) {
        struct cairn_error own = CAIRN_ERROR_INIT;
        int r = plugins_codec(plugins, known[i].name, &c->one[i].codec, &own);
        if (r < 0 && i == 0) {
            cairn_error_copy(err, &own);
            return r;
        }
        if (r < 0)
            log_line(LOG_NOTICE, "codec %s is not used: %s", known[i].name, own.message);
    }
    return 0;
}

int codecs_new(struct plugins *plugins, const char *allowed, unsigned workers, uint64_t rate_bound,
               struct codecs **ret_codecs, struct cairn_error *err)
{
    struct codecs *c = calloc(1, sizeof *c);

    if (!c)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the codecs");
    c->workers = workers;
    c->rate_bound = rate_bound;
    int r = load(c, plugins, err);
    if (r == 0)
        r = allow(c, allowed, err);
    if (r < 0) {
        codecs_free(c);
        return r;
    }
    *ret_codecs = c;
    return 0;
}

void codecs_free(struct codecs *c)
{
    free(c); /* the codecs are the plugins' */
}

/* ---- what a chunk is given ------------------------------------------------------------------- */

static unsigned class_of(int dtype)
{
    switch (cairn_dtype_size(dtype)) {
    case 1:
        return 0;
    case 2:
        return 1;
    case 4:
        return 2;
    case 8:
        return 3;
    default:
        return 4;
    }
}

/* What was recorded is made again, also by a codec that may not be chosen any more. */
void codecs_offer(const struct codecs *c, struct encode *e)
{
    unsigned class = class_of(e->dtype);

    e->ncodecs = 1;
    e->codec[0] = (struct encode_codec){.speed = RAW_SPEED};
    e->before = CAIRN_CHOICES;
    if (!c)
        return;
    e->ncodecs = 0;
    for (unsigned i = 0; i < KNOWN; i++) {
        const struct one *o = &c->one[i];
        if (i > 0 && (!o->codec || (!o->allowed && !e->as_recorded)))
            continue;
        if (i == c->before[class])
            e->before = e->ncodecs;
        e->codec[e->ncodecs++] = (struct encode_codec){
            .codec = i ? o->codec : NULL,
            .speed = o->rate[class].bytes_per_s ? o->rate[class].bytes_per_s : known[i].speed,
        };
    }
    if (!c->one[0].allowed) /* only for what does not shrink: anything else is sooner */
        e->codec[0].speed = 1;
    uint64_t rate = c->path.bytes_per_s;
    if (c->rate_bound && (rate == 0 || rate > c->rate_bound))
        rate = c->rate_bound;
    e->path = (struct cairn_path){.rate = rate, .workers = c->workers, .k = e->k, .m = e->m};
}

const struct codec *codecs_packer(const struct codecs *c)
{
    for (unsigned i = 0; c && i < KNOWN; i++)
        if (c->one[i].allowed && c->one[i].codec && codec_id(c->one[i].codec) == CAIRN_CODEC_FLOAT)
            return c->one[i].codec;
    return NULL;
}

/* ---- what is learned ------------------------------------------------------------------------- */

static unsigned index_of(const struct codecs *c, const struct codec *codec)
{
    for (unsigned i = 1; i < KNOWN; i++)
        if (codec && c->one[i].codec == codec)
            return i;
    return 0;
}

void codecs_encoded(struct codecs *c, const struct encode *e)
{
    unsigned class = class_of(e->dtype);

    if (!c)
        return;
    for (unsigned j = 0; j < e->ncodecs; j++) {
        struct one *o = &c->one[index_of(c, e->codec[j].codec)];
        cairn_rate_add(&o->rate[class], e->cost[j].plain, e->cost[j].ns);
        o->all.plain += e->cost[j].plain;
        o->all.coded += e->cost[j].coded;
        o->all.ns += e->cost[j].ns;
        c->hashed += e->cost[j].plain;
    }
    if (!e->as_recorded && e->before < e->ncodecs)
        c->before[class] = index_of(c, e->codec[e->before].codec);
    c->copied += e->copied;
    c->hashed += e->kept;
    for (unsigned i = 0; i < e->k; i++)
        *(e->in_place[i] ? &c->in_place : &c->of_buffer) += e->payload_len[i];
    for (unsigned i = e->k; i < e->k + e->m; i++)
        c->parity += e->payload_len[i];
}

/* In a window in which fragments mostly waited for their peers the path was the bound: that is its rate. In another it
 * carried what came and could carry more: how much is found by supposing more, bit by bit, but never more than twice
 * what it did carry. A flush that is paced, or bound by its encoding, says nothing about a faster path. */
static void window_end(struct codecs *c, uint64_t ns)
{
    uint64_t rate = (uint64_t)((double)c->window_bytes * 1e9 / (double)ns);

    if (c->window_waiting * 2 > c->window_events)
        cairn_rate_add(&c->path, c->window_bytes, ns);
    else if (c->path.bytes_per_s / 2 < rate)
        c->path.bytes_per_s += c->path.bytes_per_s / 16;
    if (c->path.bytes_per_s && c->path.bytes_per_s < rate)
        c->path.bytes_per_s = rate;
}

void codecs_stored(struct codecs *c, uint64_t bytes, uint64_t now_ns, bool waiting)
{
    if (!c)
        return;
    uint64_t ns = now_ns - c->window_began_ns;

    if (c->window_began_ns == 0 || ns > 20ull * WINDOW_NS) { /* there was nothing to send meanwhile */
        c->window_began_ns = now_ns;
        c->window_bytes = c->window_waiting = c->window_events = 0;
        return;
    }
    c->window_bytes += bytes;
    c->window_events++;
    c->window_waiting += waiting;
    if (ns < WINDOW_NS)
        return;
    window_end(c, ns);
    c->window_began_ns = now_ns;
    c->window_bytes = c->window_waiting = c->window_events = 0;
}

void codecs_status(const struct codecs *c, struct codecs_status *ret)
{
    *ret = (struct codecs_status){.path_rate = c->path.bytes_per_s,
                                  .copied = c->copied,
                                  .hashed = c->hashed,
                                  .parity = c->parity,
                                  .sent_in_place = c->in_place,
                                  .sent_of_buffer = c->of_buffer};
    for (unsigned i = 0; i < KNOWN; i++) {
        const struct one *o = &c->one[i];
        if (o->codec)
            ret->codec[ret->n++] =
                (struct codec_status){known[i].name, o->allowed, o->all.plain, o->all.coded, o->all.ns};
    }
}
