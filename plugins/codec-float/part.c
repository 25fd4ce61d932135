/* SPDX-License-Identifier: Apache-2.0 */
#include "part.h"

#include "plan.h"
#include "strip.h"

#include <cairn/plugin.h>

#include <string.h>

unsigned part_width(int dtype)
{
    switch (dtype) {
    case CAIRN_BYTES:
    case CAIRN_BOOL:
    case CAIRN_U8:
    case CAIRN_I8:
    case CAIRN_F8_E4M3:
    case CAIRN_F8_E5M2:
    case CAIRN_F8_E8M0:
    case CAIRN_F8_E4M3FNUZ:
    case CAIRN_F8_E5M2FNUZ:
        return 1;
    case CAIRN_U16:
    case CAIRN_I16:
    case CAIRN_F16:
    case CAIRN_BF16:
        return 2;
    case CAIRN_U32:
    case CAIRN_I32:
    case CAIRN_F32:
    case CAIRN_C64: /* two of four bytes */
        return 4;
    case CAIRN_U64:
    case CAIRN_I64:
    case CAIRN_F64:
        return 8;
    default:
        return 0;
    }
}

static void put_u32(uint8_t *p, size_t x)
{
    uint32_t v = (uint32_t)x;

    memcpy(p, &v, sizeof v);
}

static uint32_t get_u32(const uint8_t *p)
{
    uint32_t v;

    memcpy(&v, p, sizeof v);
    return v;
}

static size_t strip_blocks(const struct part *p, size_t from)
{
    return p->nblocks - from < STRIP_BLOCKS ? p->nblocks - from : STRIP_BLOCKS;
}

/* ---- encode ---------------------------------------------------------------------------------- */

size_t part_estimate(const void *src, size_t len, int dtype, int dense)
{
    unsigned width = part_width(dtype);
    struct part p;

    if (!width || len > PART_MOST)
        return len;
    part_init(&p, width, len);
    return plan(kernel_best(), &p, src, dense);
}

static size_t descriptor_bytes(const struct plane *pl)
{
    size_t n = FORMAT_DESCRIPTOR;

    for (unsigned i = 0; i < pl->nlevels; i++)
        n += 1 + level_values(&pl->level[i]);
    return n;
}

static uint8_t *put_descriptor(const struct plane *pl, uint8_t *to)
{
    *to++ = pl->keep;
    *to++ = pl->sparse ? FORMAT_SPARSE : 0;
    *to++ = pl->base;
    *to++ = pl->nlevels;
    for (unsigned i = 0; i < pl->nlevels; i++) {
        const struct level *l = &pl->level[i];
        *to++ = l->bits;
        memcpy(to, l->value, level_values(l));
        to += level_values(l);
    }
    return to;
}

/* Everything in front of the strips: where they begin, NULL: no room. */
static uint8_t *put_front(const struct part *p, const uint8_t *src, uint8_t *dst, size_t room)
{
    size_t need = FORMAT_HEADER + part_tail(p);
    uint8_t *to = dst + FORMAT_HEADER;

    for (unsigned i = 0; i < p->width; i++)
        need += descriptor_bytes(&p->plane[i]);
    if (need > room)
        return NULL;
    memset(dst, 0, FORMAT_HEADER);
    dst[0] = FORMAT_VERSION;
    dst[1] = (uint8_t)p->width;
    put_u32(dst + 4, p->len);
    for (unsigned i = 0; i < p->width; i++)
        to = put_descriptor(&p->plane[i], to);
    memcpy(to, src + part_packed(p), part_tail(p));
    return to + part_tail(p);
}

int64_t part_encode(const struct kernel *k, const void *src, size_t len, int dtype, int dense, void *dst, size_t room)
{
    unsigned width = part_width(dtype);
    struct strip s;
    struct part p;

    if (!width || len > PART_MOST || len / width < BLOCK)
        return 0;
    part_init(&p, width, len);
    plan(k, &p, src, dense);
    uint8_t *to = put_front(&p, src, dst, room);
    for (size_t b = 0; to && b < p.nblocks; b += STRIP_BLOCKS)
        to = strip_encode(&s, k, &p, (const uint8_t *)src + b * BLOCK * width, strip_blocks(&p, b), to,
                          (uint8_t *)dst + room);
    return to ? to - (uint8_t *)dst : 0;
}

/* ---- decode ---------------------------------------------------------------------------------- */

static int get_level(struct level *l, struct input *in)
{
    const uint8_t *bits = take(in, 1);

    if (!bits || *bits < 1 || *bits > MAX_BITS)
        return -1;
    l->bits = *bits;
    const uint8_t *value = take(in, level_values(l));
    if (!value)
        return -1;
    memcpy(l->value, value, level_values(l));
    return 0;
}

static int get_descriptor(struct plane *pl, struct input *in)
{
    const uint8_t *d = take(in, FORMAT_DESCRIPTOR);

    if (!d || d[0] == 0xff || d[1] > FORMAT_SPARSE || (!d[1] && d[2]) || d[3] > MAX_LEVELS)
        return -1;
    *pl = (struct plane){.keep = d[0], .sparse = d[1], .base = d[2], .nlevels = d[3]};
    for (unsigned i = 0; i < pl->nlevels; i++)
        if (get_level(&pl->level[i], in) < 0)
            return -1;
    return 0;
}

/* Header, descriptors and tail. */
static int get_front(struct part *p, struct input *in, uint8_t *dst)
{
    const uint8_t *head = take(in, FORMAT_HEADER);

    if (!head || head[0] != FORMAT_VERSION || head[1] != p->width || head[2] || head[3] || get_u32(head + 4) != p->len)
        return -1;
    for (unsigned i = 8; i < FORMAT_HEADER; i++)
        if (head[i])
            return -1;
    for (unsigned i = 0; i < p->width; i++)
        if (get_descriptor(&p->plane[i], in) < 0)
            return -1;
    const uint8_t *tail = take(in, part_tail(p));
    if (!tail)
        return -1;
    memcpy(dst + part_packed(p), tail, part_tail(p));
    return 0;
}

int part_decode(const struct kernel *k, const void *src, size_t len, int dtype, void *dst, size_t plain_len)
{
    struct input in = {.at = src, .end = (const uint8_t *)src + len};
    unsigned width = part_width(dtype);
    struct strip s;
    struct part p;

    if (!width || plain_len > PART_MOST)
        return CAIRN_E_CORRUPT;
    part_init(&p, width, plain_len);
    int r = get_front(&p, &in, dst);
    for (size_t b = 0; r == 0 && b < p.nblocks; b += STRIP_BLOCKS)
        r = strip_decode(&s, k, &p, &in, strip_blocks(&p, b), (uint8_t *)dst + b * BLOCK * width);
    return r == 0 && in.at == in.end ? 0 : CAIRN_E_CORRUPT;
}
