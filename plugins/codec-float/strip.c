/* SPDX-License-Identifier: Apache-2.0 */
#include "strip.h"

#include <string.h>

#define COUNT_BYTES ((size_t)2) /* how many bytes a level has no code for */
#define LINE 64                 /* of a cache */
#define READ_AHEAD 4096         /* of plain bytes */
#define WRITE_AHEAD 3072
#define DECODE_AHEAD 16384 /* more than a strip of 16-bit elements takes: what is behind its groups is wanted first */

_Static_assert(STRIP <= UINT16_MAX, "a count has two bytes");

static size_t fixed_bytes(const struct part *p) /* of a block, of all planes */
{
    size_t n = 0;

    for (unsigned i = 0; i < p->width; i++)
        n += plane_fixed(&p->plane[i]);
    return n;
}

/* Groups are too short for the processor to see where they lead, so lines are asked for that are wanted some groups
 * later. Where that is does not matter: an address that is none is no fault. */
static void fetch(const uint8_t *from, size_t n)
{
    for (size_t i = 0; i < n; i += LINE)
        __builtin_prefetch(from + i);
}

static void fetch_to_write(uint8_t *to, size_t n)
{
    for (size_t i = 0; i < n; i += LINE)
#if defined(__x86_64__)
        __asm__ volatile("prefetchw %0" : : "m"(to[i])); /* compilers ask for a line to read, by default */
#else
        __builtin_prefetch(to + i, 1);
#endif
}

static size_t group_blocks(size_t at, size_t nblocks)
{
    return nblocks - at < GROUP_BLOCKS ? nblocks - at : GROUP_BLOCKS;
}

/* ---- encode ---------------------------------------------------------------------------------- */

struct output {
    uint8_t *at;
    const uint8_t *end;
};

/* Room for so many bytes; NULL: there is none. */
static uint8_t *give(struct output *out, size_t n)
{
    uint8_t *p = out->at;

    if ((size_t)(out->end - out->at) < n)
        return NULL;
    out->at += n;
    return p;
}

static void put_count(uint8_t *to, size_t n)
{
    to[0] = (uint8_t)n;
    to[1] = (uint8_t)(n >> 8);
}

/* The levels from this one on and the rest; what has no code stays in place of what was coded, closed up. */
static int put_levels(const struct kernel *k, const struct plane *pl, unsigned from, uint8_t *bytes, size_t n,
                      struct output *out)
{
    for (unsigned i = from; i < pl->nlevels && n > 0; i++) {
        size_t len = level_bytes(&pl->level[i], n);
        uint8_t *codes = give(out, len + COUNT_BYTES);
        if (!codes)
            return -1;
        n = k->pack(&pl->level[i], bytes, n, codes, bytes);
        put_count(codes + len, n);
    }
    uint8_t *rest = give(out, n);
    if (!rest)
        return -1;
    memcpy(rest, bytes, n);
    return 0;
}

/* What is behind the groups. left: bytes that the first level has no codes for. */
static int put_behind(const struct kernel *k, const struct plane *pl, uint8_t *plane, size_t nblocks, size_t left,
                      struct output *out)
{
    if (plane_has_codes(pl)) {
        uint8_t *count = give(out, COUNT_BYTES);
        if (!count)
            return -1;
        put_count(count, left);
        return put_levels(k, pl, 1, plane, left, out);
    }
    if (pl->sparse) {
        uint8_t *bitmap = give(out, (nblocks + 7) / 8);
        if (!bitmap)
            return -1;
        memset(bitmap, 0, (nblocks + 7) / 8);
        nblocks = k->close_up(pl->base, plane, nblocks, bitmap);
    }
    return put_levels(k, pl, 0, plane, nblocks * BLOCK, out);
}

/* One group: to has room for it. left[i]: where plane i's bytes without a code end. */
static uint8_t *put_group(struct strip *s, const struct kernel *k, const struct part *p, const uint8_t *src, size_t at,
                          size_t nblocks, uint8_t *to, size_t *left)
{
    uint8_t *planes[MAX_WIDTH], *fixed[MAX_WIDTH];

    for (unsigned i = 0; i < p->width; i++) {
        fixed[i] = to;
        planes[i] = plane_is_raw(&p->plane[i]) ? to : s->plane[i] + at * BLOCK;
        to += nblocks * plane_fixed(&p->plane[i]);
    }
    fetch(src + READ_AHEAD, nblocks * BLOCK * p->width);
    fetch_to_write(fixed[0] + WRITE_AHEAD, (size_t)(to - fixed[0]));
    k->split(p->width, src, nblocks, planes);
    for (unsigned i = 0; i < p->width; i++) {
        const struct plane *pl = &p->plane[i];
        if (pl->keep) {
            k->keep(pl->keep, planes[i], nblocks, fixed[i]);
            fixed[i] += (size_t)__builtin_popcount(pl->keep) * 8 * nblocks;
        }
        if (plane_has_codes(pl))
            left[i] += k->pack(&pl->level[0], planes[i], nblocks * BLOCK, fixed[i], s->plane[i] + left[i]);
    }
    return to;
}

uint8_t *strip_encode(struct strip *s, const struct kernel *k, const struct part *p, const uint8_t *src, size_t nblocks,
                      uint8_t *to, const uint8_t *end)
{
    struct output out = {.at = to, .end = end};
    size_t left[MAX_WIDTH] = {0};

    to = give(&out, nblocks * fixed_bytes(p));
    if (!to)
        return NULL;
    for (size_t at = 0; at < nblocks; at += GROUP_BLOCKS)
        to = put_group(s, k, p, src + at * BLOCK * p->width, at, group_blocks(at, nblocks), to, left);
    for (unsigned i = 0; i < p->width; i++)
        if (!plane_is_raw(&p->plane[i]) && put_behind(k, &p->plane[i], s->plane[i], nblocks, left[i], &out) < 0)
            return NULL;
    return out.at;
}

/* ---- decode ---------------------------------------------------------------------------------- */

static int get_count(struct input *in, size_t most, size_t *ret)
{
    const uint8_t *count = take(in, COUNT_BYTES);

    if (!count || (count[0] | (size_t)count[1] << 8) > most)
        return -1;
    *ret = count[0] | (size_t)count[1] << 8;
    return 0;
}

/* The levels from this one on, for n bytes: from the last to the first, as what has no code in one is what the next
 * has. */
static int get_levels(struct strip *s, const struct kernel *k, const struct plane *pl, unsigned from, struct input *in,
                      size_t n, uint8_t *bytes)
{
    const uint8_t *codes[MAX_LEVELS];
    size_t count[MAX_LEVELS + 1];
    unsigned last = from;

    for (count[last] = n; last < pl->nlevels && count[last] > 0; last++) {
        codes[last] = take(in, level_bytes(&pl->level[last], count[last]));
        if (!codes[last] || get_count(in, count[last], &count[last + 1]) < 0)
            return -1;
    }
    const uint8_t *rest = take(in, count[last]);
    if (!rest)
        return -1;
    memcpy(last == from ? bytes : s->rest[last % 2], rest, count[last]);
    for (unsigned i = last; i-- > from;)
        if (k->unpack(&pl->level[i], codes[i], count[i], s->rest[(i + 1) % 2], i > from ? s->rest[i % 2] : bytes) !=
            count[i + 1])
            return -1;
    return 0;
}

static size_t count_bits(const uint8_t *bitmap, size_t n)
{
    size_t count = 0;

    for (size_t b = 0; b < n; b++)
        count += bitmap[b / 8] >> b % 8 & 1;
    return count;
}

/* The blocks at the front move to where they belong: from the last, so that none lies on one that is still to move. */
static void spread(uint8_t base, uint8_t *plane, size_t nblocks, const uint8_t *bitmap, size_t left)
{
    for (size_t b = nblocks; b-- > 0;)
        if (!(bitmap[b / 8] >> b % 8 & 1))
            memset(plane + b * BLOCK, base, BLOCK);
        else if (--left != b)
            memcpy(plane + b * BLOCK, plane + left * BLOCK, BLOCK);
}

/* *ret_left: bytes that the first level has no codes for, if it has codes in the groups. */
static int get_behind(struct strip *s, const struct kernel *k, const struct plane *pl, uint8_t *plane, size_t nblocks,
                      struct input *in, size_t *ret_left)
{
    if (plane_has_codes(pl)) {
        if (get_count(in, nblocks * BLOCK, ret_left) < 0)
            return -1;
        return get_levels(s, k, pl, 1, in, *ret_left, plane);
    }
    if (!pl->sparse)
        return get_levels(s, k, pl, 0, in, nblocks * BLOCK, plane);
    const uint8_t *bitmap = take(in, (nblocks + 7) / 8);
    if (!bitmap || (nblocks % 8 && bitmap[nblocks / 8] >> nblocks % 8))
        return -1;
    size_t left = count_bits(bitmap, nblocks);
    if (get_levels(s, k, pl, 0, in, left * BLOCK, plane) < 0)
        return -1;
    spread(pl->base, plane, nblocks, bitmap, left);
    return 0;
}

/* One group, all of which is there. taken[i]: how many of plane i's bytes without a code are. */
static const uint8_t *get_group(struct strip *s, const struct kernel *k, const struct part *p, const uint8_t *from,
                                size_t at, size_t nblocks, uint8_t *dst, size_t *taken)
{
    const uint8_t *planes[MAX_WIDTH];

    for (unsigned i = 0; i < p->width; i++) {
        const struct plane *pl = &p->plane[i];
        fetch(from + DECODE_AHEAD, nblocks * plane_fixed(pl));
        size_t kept = (size_t)__builtin_popcount(pl->keep) * 8 * nblocks;
        uint8_t *plane = plane_has_codes(pl) ? s->group[i] : s->plane[i] + at * BLOCK;
        planes[i] = plane_is_raw(pl) ? from : plane;
        if (plane_has_codes(pl))
            taken[i] += k->unpack(&pl->level[0], from + kept, nblocks * BLOCK, s->plane[i] + taken[i], plane);
        if (pl->keep)
            k->give_back(pl->keep, plane, nblocks, from);
        from += nblocks * plane_fixed(pl);
    }
    k->merge(p->width, planes, nblocks, dst);
    return from;
}

int strip_decode(struct strip *s, const struct kernel *k, const struct part *p, struct input *in, size_t nblocks,
                 uint8_t *dst)
{
    size_t fixed = fixed_bytes(p) * nblocks, left[MAX_WIDTH] = {0}, taken[MAX_WIDTH] = {0};
    const uint8_t *from = take(in, fixed);

    if (!from)
        return -1;
    for (unsigned i = 0; i < p->width; i++)
        if (!plane_is_raw(&p->plane[i]) && get_behind(s, k, &p->plane[i], s->plane[i], nblocks, in, &left[i]) < 0)
            return -1;
    for (size_t at = 0; at < nblocks; at += GROUP_BLOCKS)
        from = get_group(s, k, p, from, at, group_blocks(at, nblocks), dst + at * BLOCK * p->width, taken);
    for (unsigned i = 0; i < p->width; i++)
        if (taken[i] != left[i])
            return -1;
    return 0;
}
