/* SPDX-License-Identifier: Apache-2.0 */
/* cairn_pack: a part as plugins/codec-float encodes it, byte for byte.
 *
 * A block of threads takes a part, strip after strip: where a strip begins follows from the one before, and with a
 * thousand parts in a save there is enough to do for all. Of a strip it takes plane after plane; a warp has
 * neighbouring blocks of 64 bytes, each of its lanes two bytes, and a word of 64 bits is two ballots. What a level has
 * no code for is closed up in two steps: the warps count, then each knows where its own begin.
 */
#include "pages.cuh"
#include "plan.cuh"

struct pack_part {
    const uint8_t *src;
    uint8_t *out;
    uint32_t width, len, nblocks, room;
};

struct pack_work {
    struct strip_work strip;
    struct plan_work plan;
};

DEVICE void put_word(uint8_t *to, uint32_t bytes, uint32_t low, uint32_t high)
{
    uint32_t lane = threadIdx.x % WARP;

    if (lane < bytes)
        to[lane] = (uint8_t)((lane < 4 ? low : high) >> 8 * (lane % 4));
}

DEVICE void put_count(uint8_t *to, uint32_t n)
{
    if (threadIdx.x < COUNT_SIZE)
        to[threadIdx.x] = (uint8_t)(n >> 8 * threadIdx.x);
}

DEVICE void copy_bytes(uint8_t *to, const uint8_t *from, uint32_t n)
{
    for (uint32_t i = threadIdx.x; i < n; i += GPU_PACK_THREADS)
        to[i] = from[i];
}

/* ---- front ----------------------------------------------------------------------------------- */

DEVICE uint32_t descriptor_bytes(const struct plane *pl)
{
    uint32_t n = FORMAT_DESCRIPTOR;

    for (uint32_t i = 0; i < pl->nlevels; i++)
        n += 1 + nvalues(&pl->level[i]);
    return n;
}

/* One thread. */
DEVICE uint8_t *put_descriptor(const struct plane *pl, uint8_t *to)
{
    *to++ = pl->keep;
    *to++ = pl->sparse ? FORMAT_SPARSE : 0;
    *to++ = pl->base;
    *to++ = pl->nlevels;
    for (uint32_t i = 0; i < pl->nlevels; i++) {
        const struct level *l = &pl->level[i];
        *to++ = l->bits;
        for (uint32_t k = 0; k < nvalues(l); k++)
            *to++ = l->value[k];
    }
    return to;
}

/* Everything in front of the strips. Returns where they begin; 0: no room. */
DEVICE uint32_t put_front(const struct plane *planes, const struct pack_part *p)
{
    uint32_t packed = p->nblocks * BLOCK_ELEMENTS * p->width, tail = p->len - packed, at = FORMAT_HEADER;

    for (uint32_t i = 0; i < p->width; i++)
        at += descriptor_bytes(&planes[i]);
    if (at + tail > p->room)
        return 0;
    if (threadIdx.x == 0) {
        uint8_t *to = p->out + FORMAT_HEADER;
        for (uint32_t i = 0; i < FORMAT_HEADER; i++)
            p->out[i] = i >= 4 && i < 8 ? (uint8_t)(p->len >> 8 * (i - 4)) : 0;
        p->out[0] = FORMAT_VERSION;
        p->out[1] = (uint8_t)p->width;
        for (uint32_t i = 0; i < p->width; i++)
            to = put_descriptor(&planes[i], to);
    }
    copy_bytes(p->out + at, p->src + packed, tail);
    return at + tail;
}

/* ---- a level --------------------------------------------------------------------------------- */

DEVICE void make_codes(struct strip_work *w, const struct level *l)
{
    w->code[threadIdx.x] = (uint8_t)nvalues(l);
    __syncthreads();
    if (threadIdx.x < nvalues(l))
        w->code[l->value[threadIdx.x]] = (uint8_t)threadIdx.x;
    __syncthreads();
}

/* Writes the codes of the n bytes at from; what has none goes to `to`. Returns how many these are. */
DEVICE uint32_t pack_level(struct strip_work *w, const struct level *l, const uint8_t *from, uint32_t n, uint8_t *out,
                           struct place place, uint8_t *to)
{
    uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, mine = 0, all, none = nvalues(l);
    uint32_t begin = first_block(place.nblocks, warp), end = first_block(place.nblocks, warp + 1);

    make_codes(w, l);
    for (uint32_t b = begin; b < end; b++) {
        uint32_t e = b * BLOCK_ELEMENTS + lane, bytes = word_bytes(n, b);
        uint32_t x = e < n ? w->code[from[e]] : 0, y = e + WARP < n ? w->code[from[e + WARP]] : 0;
        uint8_t *words = out + place_of(&place, b);
        for (uint32_t k = 0; k < l->bits; k++)
            put_word(words + k * bytes, bytes, __ballot_sync(WHOLE_WARP, (int)(x >> k & 1)),
                     __ballot_sync(WHOLE_WARP, (int)(y >> k & 1)));
        mine += (uint32_t)__popc(__ballot_sync(WHOLE_WARP, x == none)) +
                (uint32_t)__popc(__ballot_sync(WHOLE_WARP, y == none));
    }
    if (lane == 0)
        w->others[warp] = mine;
    __syncthreads();
    uint32_t at = others_before(w, &all);
    for (uint32_t b = begin; b < end; b++) {
        uint32_t e = b * BLOCK_ELEMENTS + lane;
        int x = e < n && w->code[from[e]] == none, y = e + WARP < n && w->code[from[e + WARP]] == none;
        uint32_t low = __ballot_sync(WHOLE_WARP, x), high = __ballot_sync(WHOLE_WARP, y);
        if (x)
            to[at + lanes_before(low)] = from[e];
        if (y)
            to[at + (uint32_t)__popc(low) + lanes_before(high)] = from[e + WARP];
        at += (uint32_t)__popc(low) + (uint32_t)__popc(high);
    }
    __syncthreads();
    return all;
}

/* The levels from this one on and the rest, of n bytes in bytes[which]. Returns where they end; 0: no room. */
DEVICE uint32_t put_levels(struct strip_work *w, const struct plane *pl, const struct pack_part *p, uint32_t from,
                           uint32_t which, uint32_t n, uint32_t at)
{
    for (uint32_t i = from; i < pl->nlevels && n > 0; i++) {
        uint32_t len = code_bytes(&pl->level[i], n);
        if (p->room - at < len + COUNT_SIZE)
            return 0;
        n = pack_level(w, &pl->level[i], w->bytes[which], n, p->out,
                       side_by_side(at, pl->level[i].bits * WORD_BYTES, n), w->bytes[!which]);
        put_count(p->out + at + len, n);
        at += len + COUNT_SIZE;
        which = !which;
    }
    if (p->room - at < n)
        return 0;
    copy_bytes(p->out + at, w->bytes[which], n);
    return at + n;
}

/* ---- a strip --------------------------------------------------------------------------------- */

/* What a strip's plane is made of. */
struct strip_place {
    uint32_t first;   /* block of the part */
    uint32_t nblocks; /* of the strip */
    uint32_t fixed;   /* bytes of a block, of all planes */
    uint32_t before;  /* and of those before this one */
    uint32_t at;      /* where its groups are */
};

DEVICE struct place in_groups(const struct strip_place *s, uint32_t before, uint32_t each)
{
    struct place p = {s->at, s->fixed, s->before + before, each, s->nblocks};

    return p;
}

DEVICE void put_raw(const struct pack_part *p, const struct strip_place *s, uint32_t plane)
{
    struct place place = in_groups(s, 0, BLOCK_ELEMENTS);

    for (uint32_t e = threadIdx.x; e < s->nblocks * BLOCK_ELEMENTS; e += GPU_PACK_THREADS)
        p->out[place_of(&place, e / BLOCK_ELEMENTS) + e % BLOCK_ELEMENTS] =
            (uint8_t)plane_byte(p->src, (uint64_t)s->first * BLOCK_ELEMENTS + e, p->width, plane);
}

/* The plane's bytes to bytes[0], without those bits that are kept, which are written. */
DEVICE void put_kept(struct strip_work *w, const struct pack_part *p, const struct strip_place *s, uint32_t plane)
{
    uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, keep = w->plane[plane].keep;
    struct place place = in_groups(s, 0, kept_bytes(&w->plane[plane]));

    for (uint32_t b = first_block(s->nblocks, warp); b < first_block(s->nblocks, warp + 1); b++) {
        uint64_t e = ((uint64_t)s->first + b) * BLOCK_ELEMENTS + lane;
        uint32_t x = plane_byte(p->src, e, p->width, plane), y = plane_byte(p->src, e + WARP, p->width, plane);
        uint8_t *words = p->out + place_of(&place, b);
        for (uint32_t bit = 0; bit < 8; bit++) {
            if (!(keep >> bit & 1))
                continue;
            put_word(words, WORD_BYTES, __ballot_sync(WHOLE_WARP, (int)(x >> bit & 1)),
                     __ballot_sync(WHOLE_WARP, (int)(y >> bit & 1)));
            words += WORD_BYTES;
        }
        w->bytes[0][b * BLOCK_ELEMENTS + lane] = (uint8_t)(x & ~keep);
        w->bytes[0][b * BLOCK_ELEMENTS + WARP + lane] = (uint8_t)(y & ~keep);
    }
}

/* The blocks of bytes[0] that are not all base to bytes[1]. Returns how many these are. */
DEVICE uint32_t close_up(struct strip_work *w, uint32_t base, uint32_t nblocks)
{
    uint32_t lane = threadIdx.x % WARP;

    if (threadIdx.x < STRIP_BLOCKS / 32)
        w->stays[threadIdx.x] = 0;
    __syncthreads();
    for (uint32_t b = threadIdx.x / WARP; b < nblocks; b += PACK_WARPS) {
        const uint8_t *block = w->bytes[0] + b * BLOCK_ELEMENTS;
        if (__any_sync(WHOLE_WARP, block[lane] != base || block[lane + WARP] != base) && lane == 0)
            atomicOr(&w->stays[b / 32], 1u << b % 32);
    }
    __syncthreads();
    for (uint32_t b = threadIdx.x / WARP; b < nblocks; b += PACK_WARPS)
        if (w->stays[b / 32] >> b % 32 & 1) {
            const uint8_t *block = w->bytes[0] + b * BLOCK_ELEMENTS;
            uint8_t *to = w->bytes[1] + stays_before(w, b) * BLOCK_ELEMENTS;
            to[lane] = block[lane];
            to[lane + WARP] = block[lane + WARP];
        }
    __syncthreads();
    return all_stays(w);
}

/* What is behind the groups, from bytes[0]. Returns where it ends; 0: no room. */
DEVICE uint32_t put_behind(struct strip_work *w, const struct pack_part *p, const struct strip_place *s, uint32_t plane,
                           uint32_t at)
{
    const struct plane *pl = &w->plane[plane];
    uint32_t n = s->nblocks * BLOCK_ELEMENTS, bitmap = (s->nblocks + 7) / 8;

    if (has_codes(pl)) {
        if (p->room - at < COUNT_SIZE)
            return 0;
        struct place place = in_groups(s, kept_bytes(pl), WORD_BYTES * pl->level[0].bits);
        n = pack_level(w, &pl->level[0], w->bytes[0], n, p->out, place, w->bytes[1]);
        put_count(p->out + at, n);
        return put_levels(w, pl, p, 1, 1, n, at + COUNT_SIZE);
    }
    if (!pl->sparse)
        return put_levels(w, pl, p, 0, 0, n, at);
    if (p->room - at < bitmap)
        return 0;
    n = close_up(w, pl->base, s->nblocks) * BLOCK_ELEMENTS;
    if (threadIdx.x < bitmap)
        p->out[at + threadIdx.x] = (uint8_t)(w->stays[threadIdx.x / 4] >> 8 * (threadIdx.x % 4));
    return put_levels(w, pl, p, 0, 1, n, at + bitmap);
}

/* Returns where the strip ends; 0: no room. */
DEVICE uint32_t put_strip(struct strip_work *w, const struct pack_part *p, uint32_t first, uint32_t fixed, uint32_t at)
{
    uint32_t left = p->nblocks - first, nblocks = left < STRIP_BLOCKS ? left : (uint32_t)STRIP_BLOCKS;
    struct strip_place s = {first, nblocks, fixed, 0, at};

    if (p->room - at < nblocks * fixed)
        return 0;
    at += nblocks * fixed;
    for (uint32_t i = 0; i < p->width && at; i++) {
        if (is_raw(&w->plane[i])) {
            put_raw(p, &s, i);
        } else {
            put_kept(w, p, &s, i);
            __syncthreads();
            at = put_behind(w, p, &s, i, at);
            __syncthreads(); /* before the next plane's bytes come */
        }
        s.before += fixed_bytes(&w->plane[i]);
    }
    return at;
}

static __device__ uint32_t pack_part(struct pack_work *w, const struct pack_part *p, uint32_t dense)
{
    uint32_t fixed = 0, at;

    make_plan(&w->plan, w->strip.plane, w->strip.bytes[0], p->src, p->nblocks, p->width, dense);
    at = put_front(w->strip.plane, p);
    for (uint32_t i = 0; i < p->width; i++)
        fixed += fixed_bytes(&w->strip.plane[i]);
    for (uint32_t b = 0; at && b < p->nblocks; b += STRIP_BLOCKS)
        at = put_strip(&w->strip, p, b, fixed, at);
    return at;
}

/* The whole block. Returns the encoded bytes; 0: it stays plain. */
DEVICE uint32_t pack_one(struct pack_work *work, const struct gpu_pack &g, uint32_t i)
{
    struct gpu_part part = g.parts[i];
    uint32_t width = g.width[part.index];

    if (!width || part.len > PART_MOST || part.len / width < BLOCK)
        return 0;
    struct pack_part p = {(const uint8_t *)g.base[part.source] + part.offset,
                          (uint8_t *)g.out + (g.page ? blockIdx.x * g.slot : g.to[part.index]),
                          width,
                          part.len,
                          part.len / width / BLOCK_ELEMENTS,
                          g.page ? GPU_PACK_ROOM(part.len) : g.room[part.index]};
    return pack_part(work, &p, g.dense);
}

/* Not inlined, and from addresses that are looked up again: packing needs the registers. */
DEVICE void send_packed(const void *slot, void *page, uint32_t len)
{
    to_page<struct own_unit>((const uint8_t *)slot, (uint8_t *)page, len, threadIdx.x, GPU_PACK_THREADS);
}

DEVICE void send_plain(const struct gpu_part *part, const void *base, void *page)
{
    const uint8_t *from = (const uint8_t *)base + part->offset;

    BY_ALIGNMENT(from, to_page, from, (uint8_t *)page, part->len, threadIdx.x, GPU_PACK_THREADS);
}

extern "C" __global__ void __launch_bounds__(GPU_PACK_THREADS, 3) cairn_pack(const struct gpu_pack arg)
{
    __shared__ struct pack_work work;

#pragma unroll 1
    for (uint32_t i = blockIdx.x; i < arg.nparts; i += gridDim.x) {
        uint32_t len = pack_one(&work, arg, i);
        __syncthreads(); /* all of it is there, for all, and everybody is done with work */
        const struct gpu_part *part = &arg.parts[i];
        if (threadIdx.x == 0)
            arg.ret_len[part->index] = len;
        if (!arg.page)
            continue;
        if (len)
            send_packed((const uint8_t *)arg.out + blockIdx.x * arg.slot, arg.page[part->index], len);
        else
            send_plain(part, arg.base[part->source], arg.page[part->index]);
        __syncthreads(); /* before the next part comes to the same slot */
    }
}
