/* SPDX-License-Identifier: Apache-2.0 */
/* The loops, over what a kernel's file has defined before it includes this one:
 *
 *     INLINE                    how its functions are defined
 *     vec                       64 bytes
 *     vec_load, vec_store, vec_all(v, byte)
 *     vec_split(width, src, planes), vec_merge(width, planes, dst)     one block and its planes
 *     vec_pack(v, bits, base, to)        returns where the bytes end; may write 64 more than it returns
 *     vec_unpack(ret, bits, base, from, end)     returns where it ends, NULL: too short
 */

INLINE uint8_t *put_plane(const struct plane *pl, vec v, size_t block, uint8_t *to, const uint8_t *end)
{
    if (pl->mode == PLANE_RAW || pl->mode == PLANE_CODED) {
        vec_store(pl->raw + block * BLOCK, v);
        return to;
    }
    if (pl->mode == PLANE_SPARSE) {
        if (vec_all(v, pl->base))
            return to;
        pl->bitmap[block / 8] |= (uint8_t)(1u << block % 8);
    }
    if (end - to < PACKED_MOST) /* the same rule in every kernel: whether a part fits must not depend on it */
        return NULL;
    switch (pl->bits) { /* known to the compiler, so that no loop is left of it */
    case 1:
        return vec_pack(v, 1, pl->base, to);
    case 2:
        return vec_pack(v, 2, pl->base, to);
    case 3:
        return vec_pack(v, 3, pl->base, to);
    case 4:
        return vec_pack(v, 4, pl->base, to);
    case 5:
        return vec_pack(v, 5, pl->base, to);
    case 6:
        return vec_pack(v, 6, pl->base, to);
    default:
        return vec_pack(v, 7, pl->base, to);
    }
}

INLINE uint8_t *encode_width(const struct part *p, unsigned width, const uint8_t *src, uint8_t *to, const uint8_t *end)
{
    struct plane plane[MAX_WIDTH]; /* its own: what is stored through bytes could be the part's */

    memcpy(plane, p->plane, sizeof plane);
    for (size_t b = 0, n = p->nblocks; b < n; b++) {
        vec v[MAX_WIDTH];
        vec_split(width, src + b * BLOCK * width, v);
        for (unsigned i = 0; i < width; i++)
            if (!(to = put_plane(&plane[i], v[i], b, to, end)))
                return NULL;
    }
    return to;
}

static TARGET uint8_t *kernel_encode(const struct part *p, const uint8_t *src, uint8_t *stream, uint8_t *end)
{
    switch (p->width) {
    case 1:
        return encode_width(p, 1, src, stream, end);
    case 2:
        return encode_width(p, 2, src, stream, end);
    case 4:
        return encode_width(p, 4, src, stream, end);
    default:
        return encode_width(p, 8, src, stream, end);
    }
}

INLINE const uint8_t *get_plane(const struct plane *pl, vec *ret, size_t block, const uint8_t *from, const uint8_t *end)
{
    if (pl->mode == PLANE_RAW || pl->mode == PLANE_CODED) {
        *ret = vec_load(pl->raw + block * BLOCK);
        return from;
    }
    if (pl->mode == PLANE_SPARSE && !(pl->bitmap[block / 8] & 1u << block % 8)) {
        *ret = vec_fill(pl->base);
        return from;
    }
    switch (pl->bits) {
    case 1:
        return vec_unpack(ret, 1, pl->base, from, end);
    case 2:
        return vec_unpack(ret, 2, pl->base, from, end);
    case 3:
        return vec_unpack(ret, 3, pl->base, from, end);
    case 4:
        return vec_unpack(ret, 4, pl->base, from, end);
    case 5:
        return vec_unpack(ret, 5, pl->base, from, end);
    case 6:
        return vec_unpack(ret, 6, pl->base, from, end);
    default:
        return vec_unpack(ret, 7, pl->base, from, end);
    }
}

INLINE const uint8_t *decode_width(const struct part *p, unsigned width, uint8_t *dst, const uint8_t *from,
                                   const uint8_t *end)
{
    struct plane plane[MAX_WIDTH];

    memcpy(plane, p->plane, sizeof plane);
    for (size_t b = 0, n = p->nblocks; b < n; b++) {
        vec v[MAX_WIDTH];
        for (unsigned i = 0; i < width; i++)
            if (!(from = get_plane(&plane[i], &v[i], b, from, end)))
                return NULL;
        vec_merge(width, v, dst + b * BLOCK * width);
    }
    return from;
}

static TARGET const uint8_t *kernel_decode(const struct part *p, uint8_t *dst, const uint8_t *stream,
                                           const uint8_t *end)
{
    switch (p->width) {
    case 1:
        return decode_width(p, 1, dst, stream, end);
    case 2:
        return decode_width(p, 2, dst, stream, end);
    case 4:
        return decode_width(p, 4, dst, stream, end);
    default:
        return decode_width(p, 8, dst, stream, end);
    }
}

/* ---- codes ----------------------------------------------------------------------------------- */

#ifndef HAS_CODES /* no better way than one by one */
static TARGET uint64_t kernel_code_bits(const struct code_table *t, const uint8_t *src, size_t n)
{
    uint64_t bits = 0;

    for (size_t i = 0; i < n; i++)
        bits += t->length[src[i]];
    return bits;
}

INLINE uint64_t code_of(const struct code_table *t, uint8_t byte)
{
    return t->low[byte] | (uint64_t)t->high[byte] << 8;
}

static TARGET void kernel_code_quads(const struct code_table *t, const uint8_t *src, struct quads *ret)
{
    for (unsigned i = 0; i < QUADS; i++) {
        const uint8_t *s = src + 4 * i;
        unsigned l0 = t->length[s[0]], l1 = l0 + t->length[s[1]], l2 = l1 + t->length[s[2]];
        ret->bits[i] = code_of(t, s[0]) | code_of(t, s[1]) << l0 | code_of(t, s[2]) << l1 | code_of(t, s[3]) << l2;
        ret->length[i] = l2 + t->length[s[3]];
    }
}
#endif

static TARGET void kernel_split(unsigned width, const uint8_t *src, uint8_t (*planes)[BLOCK])
{
    vec v[MAX_WIDTH];

    switch (width) {
    case 1:
        vec_split(1, src, v);
        break;
    case 2:
        vec_split(2, src, v);
        break;
    case 4:
        vec_split(4, src, v);
        break;
    default:
        vec_split(8, src, v);
    }
    for (unsigned i = 0; i < width; i++)
        vec_store(planes[i], v[i]);
}
