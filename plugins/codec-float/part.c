/* SPDX-License-Identifier: Apache-2.0 */
#include "part.h"

#include "huffman.h"
#include "plan.h"

#include <cairn/plugin.h>

#include <stdlib.h>
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

/* ---- planes that are coded go through memory of their own ------------------------------------ */

static unsigned coded_planes(const struct part *p)
{
    unsigned n = 0;

    for (unsigned i = 0; i < p->width; i++)
        n += p->plane[i].mode == PLANE_CODED;
    return n;
}

/* NULL where none is needed; *ret_bad: there is no memory. */
static uint8_t *coded_room(struct part *p, int *ret_bad)
{
    unsigned n = coded_planes(p);
    uint8_t *room = n ? malloc(n * plane_bytes(p)) : NULL, *at = room;

    *ret_bad = n && !room;
    for (unsigned i = 0; room && i < p->width; i++)
        if (p->plane[i].mode == PLANE_CODED) {
            p->plane[i].raw = at;
            at += plane_bytes(p);
        }
    return room;
}

/* ---- encode ---------------------------------------------------------------------------------- */

size_t part_estimate(const void *src, size_t len, int dtype, int codes)
{
    unsigned width = part_width(dtype);
    struct part p;

    if (!width || len > PART_MOST)
        return len;
    part_init(&p, width, len);
    return plan(kernel_best(), &p, src, codes);
}

/* Everything in front of the stream: where it begins, NULL: no room. */
static uint8_t *put_front(struct part *p, const uint8_t *src, uint8_t *dst, size_t room)
{
    uint8_t *at = dst + FORMAT_HEADER + p->width * FORMAT_DESCRIPTOR;
    size_t need = (size_t)(at - dst) + part_tail(p);

    for (unsigned i = 0; i < p->width; i++)
        need += plane_fixed(p, &p->plane[i]);
    if (need > room)
        return NULL;
    memset(dst, 0, (size_t)(at - dst));
    dst[0] = FORMAT_VERSION;
    dst[1] = (uint8_t)p->width;
    put_u32(dst + 4, p->len);
    memcpy(at, src + part_packed(p), part_tail(p));
    at += part_tail(p);
    for (unsigned i = 0; i < p->width; i++) {
        struct plane *pl = &p->plane[i];
        uint8_t *descriptor = dst + FORMAT_HEADER + i * FORMAT_DESCRIPTOR;
        descriptor[0] = pl->mode;
        descriptor[1] = pl->bits;
        descriptor[2] = pl->base;
        if (pl->mode == PLANE_RAW)
            pl->raw = at;
        if (pl->mode == PLANE_SPARSE) {
            pl->bitmap = at;
            memset(at, 0, plane_fixed(p, pl));
        }
        at += plane_fixed(p, pl);
    }
    return at;
}

/* Each coded plane: its length, then its section. */
static uint8_t *put_codes(const struct kernel *k, const struct part *p, uint8_t *at, const uint8_t *end)
{
    for (unsigned i = 0; i < p->width; i++) {
        if (p->plane[i].mode != PLANE_CODED)
            continue;
        if (end - at < 4)
            return NULL;
        size_t n = huffman_encode(k, p->plane[i].raw, plane_bytes(p), at + 4, (size_t)(end - at) - 4);
        if (!n)
            return NULL;
        put_u32(at, n);
        at += 4 + n;
    }
    return at;
}

int64_t part_encode(const struct kernel *k, const void *src, size_t len, int dtype, int codes, void *dst, size_t room)
{
    unsigned width = part_width(dtype);
    uint8_t *end = (uint8_t *)dst + room, *stream, *at;
    struct part p;
    int bad;

    if (!width || len > PART_MOST || len / width < BLOCK)
        return 0;
    part_init(&p, width, len);
    plan(k, &p, src, codes);
    stream = put_front(&p, src, dst, room);
    if (!stream)
        return 0;
    uint8_t *own = coded_room(&p, &bad);
    if (bad)
        return CAIRN_E_NOMEM;
    at = k->encode(&p, src, stream, end);
    if (at) {
        put_u32((uint8_t *)dst + 8, (size_t)(at - stream));
        at = put_codes(k, &p, at, end);
    }
    free(own);
    return at ? at - (uint8_t *)dst : 0;
}

/* ---- decode ---------------------------------------------------------------------------------- */

struct input {
    const uint8_t *at, *end;
};

/* So many bytes from the input; NULL: it has less. */
static const uint8_t *take(struct input *in, size_t n)
{
    const uint8_t *p = in->at;

    if ((size_t)(in->end - in->at) < n)
        return NULL;
    in->at += n;
    return p;
}

static int plane_is_good(const uint8_t *descriptor)
{
    uint8_t mode = descriptor[0], bits = descriptor[1];

    if (mode == PLANE_PACKED || mode == PLANE_SPARSE)
        return bits >= 1 && bits <= MAX_PACK && descriptor[3] == 0;
    return (mode == PLANE_RAW || mode == PLANE_CODED) && bits == 0 && descriptor[2] == 0 && descriptor[3] == 0;
}

/* Header, descriptors, tail and fixed regions. The planes' pointers lead into the input, which is only read. */
static int get_front(struct part *p, struct input *in, uint8_t *dst, uint32_t *ret_stream)
{
    const uint8_t *head = take(in, FORMAT_HEADER + p->width * FORMAT_DESCRIPTOR), *tail;

    if (!head || head[0] != FORMAT_VERSION || head[1] != p->width || head[2] || head[3] ||
        get_u32(head + 4) != p->len || get_u32(head + 12))
        return CAIRN_E_CORRUPT;
    *ret_stream = get_u32(head + 8);
    tail = take(in, part_tail(p));
    if (!tail)
        return CAIRN_E_CORRUPT;
    memcpy(dst + part_packed(p), tail, part_tail(p));
    for (unsigned i = 0; i < p->width; i++) {
        const uint8_t *d = head + FORMAT_HEADER + i * FORMAT_DESCRIPTOR;
        struct plane *pl = &p->plane[i];
        if (!plane_is_good(d))
            return CAIRN_E_CORRUPT;
        *pl = (struct plane){.mode = d[0], .bits = d[1], .base = d[2]};
        const uint8_t *fixed = take(in, plane_fixed(p, pl));
        if (!fixed)
            return CAIRN_E_CORRUPT;
        pl->raw = (uint8_t *)fixed;
        pl->bitmap = (uint8_t *)fixed;
    }
    return 0;
}

static int get_codes(struct part *p, struct input *in)
{
    for (unsigned i = 0; i < p->width; i++) {
        if (p->plane[i].mode != PLANE_CODED)
            continue;
        const uint8_t *len = take(in, 4), *section = len ? take(in, get_u32(len)) : NULL;
        if (!section || huffman_decode(section, get_u32(len), p->plane[i].raw, plane_bytes(p)) < 0)
            return CAIRN_E_CORRUPT;
    }
    return in->at == in->end ? 0 : CAIRN_E_CORRUPT;
}

int part_decode(const struct kernel *k, const void *src, size_t len, int dtype, void *dst, size_t plain_len)
{
    struct input in = {.at = src, .end = (const uint8_t *)src + len};
    unsigned width = part_width(dtype);
    uint32_t stream_len = 0;
    struct part p;
    int bad = 0;

    if (!width || plain_len > PART_MOST)
        return CAIRN_E_CORRUPT;
    part_init(&p, width, plain_len);
    int r = get_front(&p, &in, dst, &stream_len);
    const uint8_t *stream = r == 0 ? take(&in, stream_len) : NULL;
    if (!stream)
        return CAIRN_E_CORRUPT;
    uint8_t *own = coded_room(&p, &bad);
    r = bad ? CAIRN_E_NOMEM : get_codes(&p, &in);
    if (r == 0 && k->decode(&p, dst, stream, stream + stream_len) != stream + stream_len)
        r = CAIRN_E_CORRUPT;
    free(own);
    return r;
}
