/* SPDX-License-Identifier: Apache-2.0 */
#include "huffman.h"

#include "kernel.h"

#include <string.h>

#define MAX_BITS 11
#define SYMBOLS 256
#define LOOK (1u << MAX_BITS)

/* ---- lengths --------------------------------------------------------------------------------- */

struct leaf {
    uint32_t count;
    uint16_t symbol;
};

/* By count, then by symbol: an order that does not depend on the sort. */
static void sort_leaves(struct leaf *l, unsigned n)
{
    for (unsigned gap = n / 2; gap; gap /= 2)
        for (unsigned i = gap; i < n; i++) {
            struct leaf x = l[i];
            unsigned j = i;
            for (; j >= gap &&
                   (l[j - gap].count > x.count || (l[j - gap].count == x.count && l[j - gap].symbol > x.symbol));
                 j -= gap)
                l[j] = l[j - gap];
            l[j] = x;
        }
}

/* Depths of an optimal tree over leaves in ascending order: two queues, the leaves and the nodes made of them. */
static void tree_depths(const struct leaf *leaf, unsigned n, uint8_t *depth)
{
    uint64_t weight[SYMBOLS];
    uint16_t up[2 * SYMBOLS]; /* of leaves 0 .. n-1 and nodes n .. 2n-2 */
    uint8_t below[2 * SYMBOLS];
    unsigned next_leaf = 0, next_node = 0;

    for (unsigned made = 0; made < n - 1; made++) {
        weight[made] = 0;
        for (int child = 0; child < 2; child++) {
            int take_leaf = next_leaf < n && (next_node == made || leaf[next_leaf].count <= weight[next_node]);
            unsigned c = take_leaf ? next_leaf : n + next_node;
            weight[made] += take_leaf ? leaf[next_leaf].count : weight[next_node];
            next_leaf += (unsigned)take_leaf;
            next_node += !take_leaf;
            up[c] = (uint16_t)(n + made);
        }
    }
    below[2 * n - 2] = 0;
    for (unsigned i = 2 * n - 2; i-- > 0;)
        below[i] = (uint8_t)(below[up[i]] + 1);
    memcpy(depth, below, n);
}

/* Codes longer than MAX_BITS are cut; the others grow, rarest first, until all fit again; what is left over then goes
 * to those that gain most. */
static void limit_depths(uint8_t *depth, unsigned n)
{
    uint32_t used = 0;

    for (unsigned i = 0; i < n; i++) {
        if (depth[i] > MAX_BITS)
            depth[i] = MAX_BITS;
        used += LOOK >> depth[i];
    }
    for (unsigned i = 0; used > LOOK; i = i + 1 < n ? i + 1 : 0)
        if (depth[i] < MAX_BITS) {
            depth[i]++;
            used -= LOOK >> depth[i];
        }
    for (unsigned i = n; i-- > 0;)
        while (depth[i] > 1 && used + (LOOK >> depth[i]) <= LOOK) {
            used += LOOK >> depth[i];
            depth[i]--;
        }
}

static void make_lengths(const uint32_t count[SYMBOLS], uint8_t length[SYMBOLS])
{
    struct leaf leaf[SYMBOLS];
    uint8_t depth[SYMBOLS];
    unsigned n = 0;

    memset(length, 0, SYMBOLS);
    for (unsigned s = 0; s < SYMBOLS; s++)
        if (count[s])
            leaf[n++] = (struct leaf){.count = count[s], .symbol = (uint16_t)s};
    if (n == 1) {
        length[leaf[0].symbol] = 1;
        return;
    }
    sort_leaves(leaf, n);
    tree_depths(leaf, n, depth);
    limit_depths(depth, n);
    for (unsigned i = 0; i < n; i++)
        length[leaf[i].symbol] = depth[i];
}

/* ---- codes ----------------------------------------------------------------------------------- */

struct code {
    uint16_t bits; /* the first one lowest */
    uint16_t length;
};
_Static_assert(sizeof(struct code) == 4, "one load");

static uint16_t reversed(unsigned code, unsigned length)
{
    unsigned r = 0;

    for (unsigned i = 0; i < length; i++)
        r |= (code >> i & 1) << (length - 1 - i);
    return (uint16_t)r;
}

/* Returns how much of the space of MAX_BITS bits is used. */
static uint32_t make_codes(const uint8_t length[SYMBOLS], struct code code[SYMBOLS])
{
    uint32_t next = 0;

    for (unsigned l = 1; l <= MAX_BITS; l++)
        for (unsigned s = 0; s < SYMBOLS; s++) {
            if (length[s] != l)
                continue;
            if (next < LOOK)
                code[s] = (struct code){.bits = reversed(next >> (MAX_BITS - l), l), .length = (uint16_t)l};
            next += LOOK >> l;
        }
    return next;
}

/* ---- encode ---------------------------------------------------------------------------------- */

#define SAMPLE_ONE_OF 8 /* groups */

/* In columns, which the compiler makes vectors of; one by one each byte would wait for the one before it. */
static void byte_range(const uint8_t *src, size_t n, uint8_t *ret_least, uint8_t *ret_most)
{
    uint8_t low[GROUP], high[GROUP], least = 255, most = 0;
    size_t at = 0;

    memset(low, 255, sizeof low);
    memset(high, 0, sizeof high);
    for (; n - at >= GROUP; at += GROUP)
        for (unsigned i = 0; i < GROUP; i++) {
            uint8_t x = src[at + i];
            low[i] = x < low[i] ? x : low[i];
            high[i] = x > high[i] ? x : high[i];
        }
    for (; at < n; at++) {
        low[0] = src[at] < low[0] ? src[at] : low[0];
        high[0] = src[at] > high[0] ? src[at] : high[0];
    }
    for (unsigned i = 0; i < GROUP; i++) {
        least = low[i] < least ? low[i] : least;
        most = high[i] > most ? high[i] : most;
    }
    *ret_least = least;
    *ret_most = most;
}

/* Weights from a sample of the groups. A byte that is not in it may still occur, if it lies between the least and the
 * greatest: it gets a code, a long one. */
static void weigh(const uint8_t *src, size_t n, uint32_t weight[SYMBOLS])
{
    uint32_t count[4][SYMBOLS] = {{0}};
    uint8_t least, most;

    byte_range(src, n, &least, &most);
    for (size_t at = 0; at < n; at += SAMPLE_ONE_OF * GROUP)
        for (size_t i = at; i < n && i < at + GROUP; i++)
            count[i & 3][src[i]]++;
    for (unsigned s = 0; s < SYMBOLS; s++)
        weight[s] = s < least || s > most ? 0 : 16 * (count[0][s] + count[1][s] + count[2][s] + count[3][s]) + 1;
}

static void make_code_table(const struct code code[SYMBOLS], const uint8_t length[SYMBOLS], struct code_table *t)
{
    for (unsigned s = 0; s < SYMBOLS; s++) {
        t->low[s] = (uint8_t)code[s].bits;
        t->high[s] = (uint8_t)(code[s].bits >> 8);
        t->length[s] = length[s];
    }
}

struct writer {
    uint64_t bits;
    unsigned held; /* bits in it, less than 8 between quads */
    uint8_t *to, *end;
};

#define INLINE static inline __attribute__((always_inline))

/* At most 44 bits behind at most 7. */
INLINE void put_quad(struct writer *w, uint64_t bits, uint32_t length)
{
    w->bits |= bits << w->held;
    w->held += length;
    memcpy(w->to, &w->bits, sizeof w->bits);
    w->to += w->held / 8;
    w->bits >>= w->held & ~7u;
    w->held &= 7;
}

static void put_slowly(struct writer *w, const struct code_table *t, const uint8_t *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        w->bits |= (t->low[s[i]] | (uint64_t)t->high[s[i]] << 8) << w->held;
        w->held += t->length[s[i]];
        for (; w->held >= 8; w->held -= 8, w->bits >>= 8)
            *w->to++ = (uint8_t)w->bits;
    }
    if (w->held)
        *w->to++ = (uint8_t)w->bits;
}

/* Whether a group's stores, which are 8 bytes wide, stay within the stream. */
INLINE int can_store(const struct writer *w)
{
    return w->end - w->to >= GROUP * MAX_BITS / 8 + 8;
}

/* The streams side by side, each in variables of its own that stay in registers: within one every quad waits for the
 * one before it. */
static void write_streams(const struct kernel *k, struct writer w[HUFFMAN_STREAMS], const struct code_table *t,
                          const uint8_t *src, size_t quarter)
{
    struct writer a = w[0], b = w[1], c = w[2], d = w[3];
    struct quads q[HUFFMAN_STREAMS];
    size_t at = 0;

    for (; quarter - at >= GROUP && can_store(&a) && can_store(&b) && can_store(&c) && can_store(&d); at += GROUP) {
        for (unsigned i = 0; i < HUFFMAN_STREAMS; i++)
            k->code_quads(t, src + i * quarter + at, &q[i]);
        for (unsigned i = 0; i < QUADS; i++) {
            put_quad(&a, q[0].bits[i], q[0].length[i]);
            put_quad(&b, q[1].bits[i], q[1].length[i]);
            put_quad(&c, q[2].bits[i], q[2].length[i]);
            put_quad(&d, q[3].bits[i], q[3].length[i]);
        }
    }
    put_slowly(&a, t, src + at, quarter - at);
    put_slowly(&b, t, src + quarter + at, quarter - at);
    put_slowly(&c, t, src + 2 * quarter + at, quarter - at);
    put_slowly(&d, t, src + 3 * quarter + at, quarter - at);
}

static void put_u32(uint8_t *p, uint32_t x)
{
    memcpy(p, &x, sizeof x);
}

static uint32_t get_u32(const uint8_t *p)
{
    uint32_t x;

    memcpy(&x, p, sizeof x);
    return x;
}

size_t huffman_encode(const struct kernel *k, const uint8_t *src, size_t n, uint8_t *dst, size_t room)
{
    uint32_t weight[SYMBOLS];
    uint8_t length[SYMBOLS];
    struct code code[SYMBOLS] = {{0, 0}};
    struct code_table table;
    struct writer w[HUFFMAN_STREAMS] = {{0}};
    size_t size[HUFFMAN_STREAMS], quarter = n / HUFFMAN_STREAMS, at = HUFFMAN_FIXED;

    weigh(src, n, weight);
    make_lengths(weight, length);
    make_codes(length, code);
    make_code_table(code, length, &table);
    for (unsigned i = 0; i < HUFFMAN_STREAMS; i++)
        at += size[i] = (size_t)((k->code_bits(&table, src + i * quarter, quarter) + 7) / 8);
    if (at > room)
        return 0;
    for (unsigned s = 0; s < SYMBOLS; s += 2)
        dst[s / 2] = (uint8_t)(length[s] | length[s + 1] << 4);
    uint8_t *to = dst + HUFFMAN_FIXED;
    for (unsigned i = 0; i < HUFFMAN_STREAMS; i++) {
        if (i < HUFFMAN_STREAMS - 1)
            put_u32(dst + SYMBOLS / 2 + 4 * i, (uint32_t)size[i]);
        w[i].to = to;
        w[i].end = to += size[i];
    }
    write_streams(k, w, &table, src, quarter);
    return at;
}

/* ---- decode ---------------------------------------------------------------------------------- */

/* What the next MAX_BITS bits say: up to four symbols. */
struct entry {
    uint32_t symbols; /* the first one lowest */
    uint8_t n;
    uint8_t bits;  /* of all n */
    uint8_t first; /* bits of the first alone */
    uint8_t unused;
};

/* Entries of one symbol first; then each takes what the entries behind its bits say. A symbol that is alone stands for
 * either bit. */
static void make_table(const struct code code[SYMBOLS], unsigned used, struct entry table[LOOK])
{
    for (unsigned s = 0; s < SYMBOLS; s++)
        for (unsigned i = code[s].bits; code[s].length && i < LOOK; i += used == 1 ? 1 : 1u << code[s].length)
            table[i] = (struct entry){.symbols = s, .first = (uint8_t)code[s].length};
    for (unsigned i = 0; i < LOOK; i++) {
        struct entry e = {.first = table[i].first};
        for (unsigned rest = i; e.n < 4;) {
            unsigned bits = table[rest].first;
            if (e.bits + bits > MAX_BITS)
                break;
            e.symbols |= (table[rest].symbols & 255) << 8 * e.n++;
            e.bits = (uint8_t)(e.bits + bits);
            rest >>= bits;
        }
        table[i] = e;
    }
}

struct reader {
    const uint8_t *from, *end;
    unsigned skip; /* bits of *from that were taken */
    uint8_t *to, *to_end;
};

#define LOOKS 5              /* 55 bits behind at most 7 */
#define MOST_OUT (4 * LOOKS) /* symbols of them */

INLINE uint64_t take_bits(const struct reader *r)
{
    uint64_t bits;

    memcpy(&bits, r->from, sizeof bits);
    return bits >> r->skip;
}

INLINE void read_many(struct reader *r, const struct entry table[LOOK])
{
    uint64_t bits = take_bits(r);
    unsigned taken = r->skip;

    for (unsigned i = 0; i < LOOKS; i++) {
        struct entry e = table[bits & (LOOK - 1)];
        memcpy(r->to, &e.symbols, sizeof e.symbols);
        r->to += e.n;
        bits >>= e.bits;
        taken += e.bits;
    }
    r->from += taken / 8;
    r->skip = taken % 8;
}

INLINE int has_room(const struct reader *r)
{
    return r->end - r->from >= 8 && r->to_end - r->to >= MOST_OUT;
}

static int read_slowly(struct reader *r, const struct entry table[LOOK])
{
    while (r->to < r->to_end) {
        uint32_t bits = 0;
        for (unsigned i = 0; i < 3 && r->from + i < r->end; i++)
            bits |= (uint32_t)r->from[i] << 8 * i;
        struct entry e = table[bits >> r->skip & (LOOK - 1)];
        unsigned taken = r->skip + e.first;
        *r->to++ = (uint8_t)e.symbols;
        if ((size_t)(r->end - r->from) * 8 < taken)
            return -1;
        r->from += taken / 8;
        r->skip = taken % 8;
    }
    return r->from + (r->skip > 0) == r->end && (r->skip == 0 || *r->from >> r->skip == 0) ? 0 : -1;
}

static int read_streams(struct reader r[HUFFMAN_STREAMS], const struct entry table[LOOK])
{
    struct reader a = r[0], b = r[1], c = r[2], d = r[3];

    while (has_room(&a) && has_room(&b) && has_room(&c) && has_room(&d)) {
        read_many(&a, table);
        read_many(&b, table);
        read_many(&c, table);
        read_many(&d, table);
    }
    struct reader rest[HUFFMAN_STREAMS] = {a, b, c, d};
    for (unsigned i = 0; i < HUFFMAN_STREAMS; i++) {
        while (has_room(&rest[i]))
            read_many(&rest[i], table);
        if (read_slowly(&rest[i], table) < 0)
            return -1;
    }
    return 0;
}

/* Every pattern of bits must be some code's, or one symbol is alone. Returns how many symbols there are. */
static int read_codes(const uint8_t *src, struct code code[SYMBOLS])
{
    uint8_t length[SYMBOLS];
    unsigned used = 0, alone = 0;

    for (unsigned s = 0; s < SYMBOLS; s++) {
        length[s] = src[s / 2] >> (s & 1 ? 4 : 0) & 15;
        if (length[s] > MAX_BITS)
            return -1;
        used += length[s] > 0;
        alone = length[s] ? s : alone;
    }
    uint32_t space = make_codes(length, code);
    return space == LOOK || (used == 1 && length[alone] == 1) ? (int)used : -1;
}

int huffman_decode(const uint8_t *src, size_t len, uint8_t *dst, size_t n)
{
    struct code code[SYMBOLS] = {{0, 0}};
    struct entry table[LOOK] = {{0, 0, 0, 0, 0}};
    struct reader r[HUFFMAN_STREAMS];
    size_t left, quarter = n / HUFFMAN_STREAMS;
    int used = len < HUFFMAN_FIXED ? -1 : read_codes(src, code);

    if (used < 0)
        return -1;
    left = len - HUFFMAN_FIXED;
    const uint8_t *from = src + HUFFMAN_FIXED;
    for (unsigned i = 0; i < HUFFMAN_STREAMS; i++) {
        size_t size = i < HUFFMAN_STREAMS - 1 ? get_u32(src + SYMBOLS / 2 + 4 * i) : left;
        if (size > left)
            return -1;
        r[i] = (struct reader){
            .from = from, .end = from + size, .to = dst + i * quarter, .to_end = dst + (i + 1) * quarter};
        from += size;
        left -= size;
    }
    make_table(code, (unsigned)used, table);
    return read_streams(r, table);
}
