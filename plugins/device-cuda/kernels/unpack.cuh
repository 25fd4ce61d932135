/* SPDX-License-Identifier: Apache-2.0 */
/* cairn_unpack: what plugins/codec-float or cairn_pack has encoded, to plain bytes. What is read is checked as
 * plugins/codec-float does: whatever the bytes are, nothing is touched beyond what was given.
 *
 * A block of threads takes a part, strip after strip. The bytes of a plane are put where they belong in the elements as
 * they come; when a strip has all its planes, its elements are rotated back in place. All threads read lengths and
 * counts themselves, and so agree on what is bad. */
#include "planes.cuh"

struct unpack_part {
    const uint8_t *src; /* encoded */
    uint32_t len;
    uint8_t *dst;
    uint32_t width, plain, nblocks;
};

/* What all threads stand at; bad: they gave up. */
struct unpack_input {
    uint32_t at;
    uint32_t bad;
};

#define TAKE_BAD 0xffffffffu

/* Where so many bytes are; TAKE_BAD: there are less. */
DEVICE uint32_t take(struct unpack_input *in, const struct unpack_part *p, uint32_t n)
{
    uint32_t at = in->at;

    if (in->bad || p->len - at < n) {
        in->bad = 1;
        return TAKE_BAD;
    }
    in->at += n;
    return at;
}

/* A count of at most this. */
DEVICE uint32_t take_count(struct unpack_input *in, const struct unpack_part *p, uint32_t most)
{
    uint32_t at = take(in, p, COUNT_SIZE);

    if (at == TAKE_BAD)
        return 0;
    uint32_t n = p->src[at] | (uint32_t)p->src[at + 1] << 8;
    if (n > most)
        in->bad = 1;
    return n;
}

/* ---- front: one thread reads it -------------------------------------------------------------- */

DEVICE void take_descriptor(struct plane *pl, struct unpack_input *in, const struct unpack_part *p)
{
    uint32_t at = take(in, p, FORMAT_DESCRIPTOR);

    if (at == TAKE_BAD)
        return;
    const uint8_t *d = p->src + at;
    in->bad = d[0] == 0xff || d[1] > FORMAT_SPARSE || (!d[1] && d[2]) || d[3] > MAX_LEVELS;
    pl->keep = d[0];
    pl->sparse = d[1];
    pl->base = d[2];
    pl->nlevels = d[3];
    for (uint32_t i = 0; !in->bad && i < pl->nlevels; i++) {
        struct level *l = &pl->level[i];
        at = take(in, p, 1);
        if (at == TAKE_BAD || p->src[at] < 1 || p->src[at] > MAX_BITS) {
            in->bad = 1;
            return;
        }
        l->bits = p->src[at];
        at = take(in, p, nvalues(l));
        for (uint32_t k = 0; at != TAKE_BAD && k < nvalues(l); k++)
            l->value[k] = p->src[at + k];
    }
}

DEVICE void take_planes(struct plane *planes, struct unpack_input *in, const struct unpack_part *p)
{
    uint32_t at = take(in, p, FORMAT_HEADER), len = 0;

    if (at == TAKE_BAD)
        return;
    for (uint32_t i = 0; i < 4; i++)
        len |= (uint32_t)p->src[4 + i] << 8 * i;
    in->bad = p->src[0] != FORMAT_VERSION || p->src[1] != p->width || p->src[2] || p->src[3] || len != p->plain;
    for (uint32_t i = 8; i < FORMAT_HEADER; i++)
        in->bad |= p->src[i] != 0;
    for (uint32_t i = 0; i < p->width; i++)
        take_descriptor(&planes[i], in, p);
}

/* Header, descriptors and tail. */
DEVICE struct unpack_input take_front(struct strip_work *w, const struct unpack_part *p)
{
    uint32_t packed = p->nblocks * BLOCK_ELEMENTS * p->width, tail = p->plain - packed;
    struct unpack_input in = {0, 0};

    if (threadIdx.x == 0) {
        take_planes(w->plane, &in, p);
        w->stays[0] = in.at;
        w->bad = in.bad;
    }
    __syncthreads();
    in.at = w->stays[0];
    in.bad = w->bad;
    __syncthreads();
    uint32_t at = take(&in, p, tail);
    for (uint32_t i = threadIdx.x; at != TAKE_BAD && i < tail; i += GPU_UNPACK_THREADS)
        p->dst[packed + i] = p->src[at + i];
    return in;
}

/* ---- a level --------------------------------------------------------------------------------- */

/* This lane's bit of a word of so many bytes; of each half one. */
DEVICE uint32_t word_bit(const uint8_t *word, uint32_t bytes, uint32_t bit)
{
    return bit / 8 < bytes ? word[bit / 8] >> bit % 8 & 1u : 0;
}

DEVICE uint32_t take_code(const uint8_t *words, uint32_t bits, uint32_t bytes, uint32_t bit)
{
    uint32_t code = 0;

    for (uint32_t k = 0; k < bits; k++)
        code |= word_bit(words + k * bytes, bytes, bit) << k;
    return code;
}

/* n bytes from their codes, to `to`, and from others, where there is none. Bad: these are not nothers. */
DEVICE void unpack_level(struct strip_work *w, struct unpack_input *in, const struct level *l, const uint8_t *src,
                         struct place place, uint32_t n, const uint8_t *others, uint32_t nothers, uint8_t *to)
{
    uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, mine = 0, all, none = nvalues(l);
    uint32_t begin = first_block(place.nblocks, warp), end = first_block(place.nblocks, warp + 1);
    int behind = 0;

    if (threadIdx.x == 0)
        w->bad = 0;
    for (uint32_t b = begin; b < end; b++) {
        uint32_t e = b * BLOCK_ELEMENTS + lane, bytes = word_bytes(n, b);
        const uint8_t *words = src + place_of(&place, b);
        uint32_t x = take_code(words, l->bits, bytes, lane), y = take_code(words, l->bits, bytes, lane + WARP);
        behind |= (e >= n && x) || (e + WARP >= n && y);
        mine += (uint32_t)__popc(__ballot_sync(WHOLE_WARP, x == none && e < n)) +
                (uint32_t)__popc(__ballot_sync(WHOLE_WARP, y == none && e + WARP < n));
    }
    if (lane == 0)
        w->others[warp] = mine;
    __syncthreads();
    if (behind)
        w->bad = 1;
    uint32_t at = others_before(w, &all);
    for (uint32_t b = begin; b < end; b++) {
        uint32_t e = b * BLOCK_ELEMENTS + lane, bytes = word_bytes(n, b);
        const uint8_t *words = src + place_of(&place, b);
        uint32_t x = take_code(words, l->bits, bytes, lane), y = take_code(words, l->bits, bytes, lane + WARP);
        uint32_t low = __ballot_sync(WHOLE_WARP, x == none && e < n);
        uint32_t high = __ballot_sync(WHOLE_WARP, y == none && e + WARP < n);
        if (e < n)
            to[e] = x == none ? others[at + lanes_before(low)] : l->value[x];
        if (e + WARP < n)
            to[e + WARP] = y == none ? others[at + (uint32_t)__popc(low) + lanes_before(high)] : l->value[y];
        at += (uint32_t)__popc(low) + (uint32_t)__popc(high);
    }
    __syncthreads();
    in->bad |= w->bad | (all != nothers);
    __syncthreads(); /* all have read bad and the counts */
}

/* The levels from this one on, for n bytes: from the last to the first, as what has no code in one is what the next
 * has. Returns which of bytes[] they are in. */
DEVICE uint32_t take_levels(struct strip_work *w, struct unpack_input *in, const struct plane *pl,
                            const struct unpack_part *p, uint32_t from, uint32_t n)
{
    uint32_t codes[MAX_LEVELS], count[MAX_LEVELS + 1], last = from;

    for (count[last] = n; last < pl->nlevels && count[last] > 0 && !in->bad; last++) {
        codes[last] = take(in, p, code_bytes(&pl->level[last], count[last]));
        count[last + 1] = take_count(in, p, count[last]);
    }
    uint32_t rest = take(in, p, count[last]);
    if (in->bad)
        return 0;
    for (uint32_t i = threadIdx.x; i < count[last]; i += GPU_UNPACK_THREADS)
        w->bytes[last % 2][i] = p->src[rest + i];
    __syncthreads();
    for (uint32_t i = last; i-- > from;)
        unpack_level(w, in, &pl->level[i], p->src, side_by_side(codes[i], pl->level[i].bits * WORD_BYTES, count[i]),
                     count[i], w->bytes[(i + 1) % 2], count[i + 1], w->bytes[i % 2]);
    return from % 2;
}

/* ---- a strip --------------------------------------------------------------------------------- */

struct unpack_strip {
    uint32_t first, nblocks, fixed, before, at; /* as struct strip_place */
};

DEVICE struct place in_groups(const struct unpack_strip *s, uint32_t before, uint32_t each)
{
    struct place p = {s->at, s->fixed, s->before + before, each, s->nblocks};

    return p;
}

/* Byte `plane` of the rotated element e of the strip. */
DEVICE uint8_t *rotated_byte(const struct unpack_part *p, const struct unpack_strip *s, uint32_t e, uint32_t plane)
{
    return p->dst + ((uint64_t)s->first * BLOCK_ELEMENTS + e) * p->width + plane;
}

/* A plane's bytes to where they belong, with the bits that were kept. bitmap: of the blocks that are there, if not all
 * are. from: NULL when the plane is raw. */
DEVICE void place_plane(struct strip_work *w, const struct unpack_part *p, const struct unpack_strip *s, uint32_t plane,
                        const uint8_t *from)
{
    const struct plane *pl = &w->plane[plane];
    struct place place = in_groups(s, 0, from ? kept_bytes(pl) : BLOCK_ELEMENTS);

    for (uint32_t e = threadIdx.x; e < s->nblocks * BLOCK_ELEMENTS; e += GPU_UNPACK_THREADS) {
        uint32_t b = e / BLOCK_ELEMENTS, bit = e % BLOCK_ELEMENTS, x;
        const uint8_t *words = p->src + place_of(&place, b);
        if (!from)
            x = words[bit];
        else if (!pl->sparse)
            x = from[e];
        else
            x = w->stays[b / 32] >> b % 32 & 1 ? from[stays_before(w, b) * BLOCK_ELEMENTS + bit] : pl->base;
        for (uint32_t k = 0; from && k < 8; k++)
            if (pl->keep >> k & 1) {
                x |= word_bit(words, WORD_BYTES, bit) << k;
                words += WORD_BYTES;
            }
        *rotated_byte(p, s, e, plane) = (uint8_t)x;
    }
}

/* The bitmap of a sparse plane: how many bytes there are. */
DEVICE uint32_t take_bitmap(struct strip_work *w, struct unpack_input *in, const struct unpack_part *p,
                            uint32_t nblocks)
{
    uint32_t bytes = (nblocks + 7) / 8, at = take(in, p, bytes);

    if (at == TAKE_BAD)
        return 0;
    if (nblocks % 8 && p->src[at + nblocks / 8] >> nblocks % 8)
        in->bad = 1;
    if (threadIdx.x < STRIP_BLOCKS / 32) {
        uint32_t bits = 0;
        for (uint32_t i = 0; i < 4 && threadIdx.x * 4 + i < bytes; i++)
            bits |= (uint32_t)p->src[at + threadIdx.x * 4 + i] << 8 * i;
        w->stays[threadIdx.x] = bits;
    }
    __syncthreads();
    return all_stays(w) * BLOCK_ELEMENTS;
}

/* A plane that is not raw. */
DEVICE void take_plane(struct strip_work *w, struct unpack_input *in, const struct unpack_part *p,
                       const struct unpack_strip *s, uint32_t plane)
{
    const struct plane *pl = &w->plane[plane];
    uint32_t n = s->nblocks * BLOCK_ELEMENTS, which;

    if (has_codes(pl)) {
        uint32_t left = take_count(in, p, n);
        which = in->bad ? 0 : take_levels(w, in, pl, p, 1, left);
        if (in->bad)
            return;
        unpack_level(w, in, &pl->level[0], p->src, in_groups(s, kept_bytes(pl), WORD_BYTES * pl->level[0].bits), n,
                     w->bytes[which], left, w->bytes[!which]);
        which = !which;
    } else {
        if (pl->sparse)
            n = take_bitmap(w, in, p, s->nblocks);
        which = in->bad ? 0 : take_levels(w, in, pl, p, 0, n);
    }
    if (!in->bad)
        place_plane(w, p, s, plane, w->bytes[which]);
}

DEVICE void rotate_back(const struct unpack_part *p, const struct unpack_strip *s)
{
    for (uint32_t e = threadIdx.x; e < s->nblocks * BLOCK_ELEMENTS; e += GPU_UNPACK_THREADS) {
        uint8_t *x = rotated_byte(p, s, e, 0);
        uint32_t lowest = x[0] & 1u;
        for (uint32_t i = 0; i < p->width; i++)
            x[i] = (uint8_t)(x[i] >> 1 | (i + 1 < p->width ? x[i + 1] & 1u : lowest) << 7);
    }
}

DEVICE void take_strip(struct strip_work *w, struct unpack_input *in, const struct unpack_part *p, uint32_t first,
                       uint32_t fixed)
{
    uint32_t left = p->nblocks - first, nblocks = left < STRIP_BLOCKS ? left : (uint32_t)STRIP_BLOCKS;
    struct unpack_strip s = {first, nblocks, fixed, 0, take(in, p, nblocks * fixed)};

    for (uint32_t i = 0; i < p->width && !in->bad; i++) {
        if (is_raw(&w->plane[i]))
            place_plane(w, p, &s, i, NULL);
        else
            take_plane(w, in, p, &s, i);
        s.before += fixed_bytes(&w->plane[i]);
        __syncthreads(); /* before the next plane's bytes come, or all are there */
    }
    if (!in->bad)
        rotate_back(p, &s);
}

static __device__ uint32_t unpack_part(struct strip_work *w, const struct unpack_part *p)
{
    struct unpack_input in = take_front(w, p);
    uint32_t fixed = 0;

    for (uint32_t i = 0; !in.bad && i < p->width; i++)
        fixed += fixed_bytes(&w->plane[i]);
    for (uint32_t b = 0; !in.bad && b < p->nblocks; b += STRIP_BLOCKS)
        take_strip(w, &in, p, b, fixed);
    return in.bad || in.at != p->len;
}

extern "C" __global__ void __launch_bounds__(GPU_UNPACK_THREADS) cairn_unpack(const struct gpu_unpack arg)
{
    __shared__ struct strip_work work;

    if (blockIdx.x >= arg.nparts)
        return;
    struct gpu_part part = arg.parts[blockIdx.x];
    uint32_t width = arg.width[part.index], plain = arg.plain[part.index], bad = 1;

    if (width && plain <= PART_MOST) {
        struct unpack_part p = {(const uint8_t *)arg.base[part.source] + part.offset,
                                part.len,
                                (uint8_t *)arg.out + arg.to[part.index],
                                width,
                                plain,
                                plain / width / BLOCK_ELEMENTS};
        bad = unpack_part(&work, &p);
    }
    if (threadIdx.x == 0)
        arg.ret_bad[part.index] = bad;
}
