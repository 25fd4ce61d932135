/* SPDX-License-Identifier: Apache-2.0 */
/* The door to codecs. Called from workers: it changes nothing after loading. */
#include "daemon/io/door_internal.h"

#include "core/base/error.h"
#include "core/model/units.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int plugins_codec(struct plugins *p, const char *name, struct codec **ret_codec, struct cairn_error *err)
{
    char full[64];
    int r;

    list_for_each (it, &p->codecs) {
        struct codec *c = container_of(it, struct codec, link);
        if (strcmp(c->name, name) == 0) {
            *ret_codec = c;
            return 0;
        }
    }
    struct codec *c = calloc(1, sizeof *c);
    if (!c)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a codec");
    snprintf(c->name, sizeof c->name, "%s", name);
    snprintf(full, sizeof full, "codec-%s", name);
    r = door_load(p, full, CAIRN_PLUGIN_CODEC, &c->ops, sizeof c->ops, sizeof c->ops, &c->dso, err);
    if (r == 0 && (!c->ops.estimate || !c->ops.encode || !c->ops.decode))
        r = cairn_fail(err, CAIRN_E_UNSUPPORTED, "codec %s lacks a required function", name);
    if (r == 0 && plugins_codec_by_id(p, c->ops.id))
        r = cairn_fail(err, CAIRN_E_EXISTS, "codec %s has the id %u of codec %s", name, c->ops.id,
                       plugins_codec_by_id(p, c->ops.id)->name);
    if (r < 0) {
        door_unload(c->dso);
        free(c);
        return r;
    }
    list_push_back(&p->codecs, &c->link);
    *ret_codec = c;
    return 0;
}

struct codec *plugins_codec_by_id(struct plugins *p, uint16_t id)
{
    list_for_each (it, &p->codecs) {
        struct codec *c = container_of(it, struct codec, link);
        if (c->ops.id == id)
            return c;
    }
    return NULL;
}

uint16_t codec_id(const struct codec *c)
{
    return c->ops.id;
}

const char *codec_name(const struct codec *c)
{
    return c->name;
}

size_t codec_estimate(const struct codec *c, const void *src, size_t len, int dtype)
{
    size_t guess = len ? c->ops.estimate(src, len, dtype) : 0;

    return guess < len ? guess : len;
}

int64_t codec_encode(const struct codec *c, const void *src, size_t len, int dtype, void *dst, size_t room)
{
    if (len == 0 || len > CAIRN_PART || room == 0)
        return CAIRN_E_INVAL;
    int64_t n = c->ops.encode(src, len, dtype, dst, room);
    if (n > (int64_t)room)
        return CAIRN_E_CORRUPT; /* it wrote, or claims to have written, past its room */
    return n;
}

int codec_decode(const struct codec *c, const void *src, size_t len, int dtype, void *dst, size_t plain_len)
{
    if (len == 0 || len > CAIRN_PART || plain_len == 0 || plain_len > CAIRN_PART)
        return CAIRN_E_CORRUPT;
    return c->ops.decode(src, len, dtype, dst, plain_len) == 0 ? 0 : CAIRN_E_CORRUPT;
}
