/* SPDX-License-Identifier: Apache-2.0 */
/* The loops, over what a kernel's file has defined before it includes this one:
 *
 *     TARGET, INLINE            how its functions are defined
 *     vec                       64 bytes
 *     vec_load, vec_store, vec_fill, vec_all(v, byte)
 *     vec_split(width, src, planes), vec_merge(width, planes, dst)     one block and its planes
 *     vec_word(v, bit)          this bit of each byte, in the bytes' order
 *     vec_add_bit(v, word, bit) sets it where the word has a 1
 *     vec_clear(v, mask)        clears these bits in each byte
 *     struct coder              what coding by a level wants to have ready: coder_init(bits, level)
 *     vec_code(coder, bits, v, words)        the codes' words; returns who has none
 *     vec_value(coder, bits, words)          the values; 0 where there is none
 *     vec_compress(v, which, to)             these bytes; may write 64
 *     vec_expand(v, which, from)             puts bytes there, where v is 0; may read 64
 *
 * Numbers of bits are constants where they are used in a loop, so that nothing is left of it.
 */

#define FOR_BITS(bits, call) \
    switch (bits) {          \
    case 1:                  \
        return call(1);      \
    case 2:                  \
        return call(2);      \
    case 3:                  \
        return call(3);      \
    default:                 \
        return call(4);      \
    }

/* ---- planes ---------------------------------------------------------------------------------- */

INLINE void split_width(unsigned width, const uint8_t *src, size_t nblocks, uint8_t *const *planes)
{
    uint8_t *to[MAX_WIDTH]; /* its own: what is stored through bytes could be the caller's */

    memcpy(to, planes, width * sizeof *to);
    for (size_t b = 0; b < nblocks; b++) {
        vec v[MAX_WIDTH];
        vec_split(width, src + b * BLOCK * width, v);
        for (unsigned i = 0; i < width; i++)
            vec_store(to[i] + b * BLOCK, v[i]);
    }
}

static TARGET void kernel_split(unsigned width, const uint8_t *src, size_t nblocks, uint8_t *const *planes)
{
    switch (width) {
    case 1:
        split_width(1, src, nblocks, planes);
        break;
    case 2:
        split_width(2, src, nblocks, planes);
        break;
    case 4:
        split_width(4, src, nblocks, planes);
        break;
    default:
        split_width(8, src, nblocks, planes);
    }
}

INLINE void merge_width(unsigned width, const uint8_t *const *planes, size_t nblocks, uint8_t *dst)
{
    const uint8_t *from[MAX_WIDTH];

    memcpy(from, planes, width * sizeof *from);
    for (size_t b = 0; b < nblocks; b++) {
        vec v[MAX_WIDTH];
        for (unsigned i = 0; i < width; i++)
            v[i] = vec_load(from[i] + b * BLOCK);
        vec_merge(width, v, dst + b * BLOCK * width);
    }
}

static TARGET void kernel_merge(unsigned width, const uint8_t *const *planes, size_t nblocks, uint8_t *dst)
{
    switch (width) {
    case 1:
        merge_width(1, planes, nblocks, dst);
        break;
    case 2:
        merge_width(2, planes, nblocks, dst);
        break;
    case 4:
        merge_width(4, planes, nblocks, dst);
        break;
    default:
        merge_width(8, planes, nblocks, dst);
    }
}

/* ---- bits that are kept, blocks that are not -------------------------------------------------- */

#define ALL_BUT_SIGN 0xfe /* second moments: by far the commonest mask, so its loops are unrolled */

INLINE void keep_mask(uint8_t mask, uint8_t *plane, size_t nblocks, uint8_t *words)
{
    for (size_t b = 0; b < nblocks; b++) {
        vec v = vec_load(plane + b * BLOCK);
        for (unsigned bit = 0; bit < 8; bit++) {
            if (!(mask >> bit & 1))
                continue;
            uint64_t word = vec_word(v, bit);
            memcpy(words, &word, sizeof word);
            words += sizeof word;
        }
        vec_store(plane + b * BLOCK, vec_clear(v, mask));
    }
}

static TARGET void kernel_keep(uint8_t mask, uint8_t *plane, size_t nblocks, uint8_t *words)
{
    if (mask == ALL_BUT_SIGN)
        keep_mask(ALL_BUT_SIGN, plane, nblocks, words);
    else
        keep_mask(mask, plane, nblocks, words);
}

INLINE void give_back_mask(uint8_t mask, uint8_t *plane, size_t nblocks, const uint8_t *words)
{
    for (size_t b = 0; b < nblocks; b++) {
        vec v = vec_load(plane + b * BLOCK);
        for (unsigned bit = 0; bit < 8; bit++) {
            if (!(mask >> bit & 1))
                continue;
            uint64_t word;
            memcpy(&word, words, sizeof word);
            words += sizeof word;
            v = vec_add_bit(v, word, bit);
        }
        vec_store(plane + b * BLOCK, v);
    }
}

static TARGET void kernel_give_back(uint8_t mask, uint8_t *plane, size_t nblocks, const uint8_t *words)
{
    if (mask == ALL_BUT_SIGN)
        give_back_mask(ALL_BUT_SIGN, plane, nblocks, words);
    else
        give_back_mask(mask, plane, nblocks, words);
}

static TARGET size_t kernel_close_up(uint8_t base, uint8_t *plane, size_t nblocks, uint8_t *bitmap)
{
    size_t n = 0;

    for (size_t b = 0; b < nblocks; b++) {
        vec v = vec_load(plane + b * BLOCK);
        unsigned stays = !vec_all(v, base);
        bitmap[b / 8] |= (uint8_t)(stays << b % 8);
        vec_store(plane + n * BLOCK, v);
        n += stays;
    }
    return n;
}

/* ---- a level --------------------------------------------------------------------------------- */

INLINE uint8_t *pack_block(const struct coder *c, unsigned bits, const uint8_t *src, uint8_t *codes, uint8_t *others)
{
    uint64_t words[MAX_BITS];
    vec v = vec_load(src);
    uint64_t none = vec_code(c, bits, v, words);

    for (unsigned i = 0; i < bits; i++) /* one by one: a copy of all would wait for what was just stored */
        memcpy(codes + 8 * i, &words[i], 8);
    return vec_compress(v, none, others);
}

INLINE size_t pack_bits(unsigned bits, const struct level *l, uint8_t *src, size_t n, uint8_t *codes, uint8_t *others)
{
    struct coder c = coder_init(bits, l);
    uint8_t *to = others, last[8 * MAX_BITS];
    size_t more = n % BLOCK;

    for (size_t b = 0; b < n / BLOCK; b++, codes += 8 * bits)
        to = pack_block(&c, bits, src + b * BLOCK, codes, to);
    if (more) { /* filled up with what has code 0, which leaves no trace */
        memset(src + n, l->value[0], BLOCK - more);
        to = pack_block(&c, bits, src + n - more, last, to);
        for (unsigned i = 0; i < bits; i++, codes += (more + 7) / 8)
            memcpy(codes, last + 8 * i, (more + 7) / 8);
    }
    return (size_t)(to - others);
}

static TARGET size_t kernel_pack(const struct level *l, uint8_t *src, size_t n, uint8_t *codes, uint8_t *others){
#define PACK(bits) pack_bits(bits, l, src, n, codes, others)
    FOR_BITS(l->bits, PACK)}

INLINE const uint8_t *unpack_block(const struct coder *c, unsigned bits, const uint64_t *words, const uint8_t *others,
                                   uint8_t *dst)
{
    uint64_t none = words[0];

    for (unsigned i = 1; i < bits; i++)
        none &= words[i];
    vec_store(dst, vec_expand(vec_value(c, bits, words), none, others));
    return others + __builtin_popcountll(none);
}

INLINE size_t unpack_bits(unsigned bits, const struct level *l, const uint8_t *codes, size_t n, const uint8_t *others,
                          uint8_t *dst)
{
    struct coder c = decoder_init(bits, l);
    const uint8_t *from = others;
    size_t more = n % BLOCK;

    for (size_t b = 0; b < n / BLOCK; b++, codes += 8 * bits, dst += BLOCK) {
        uint64_t words[MAX_BITS];
        for (unsigned i = 0; i < bits; i++)
            memcpy(&words[i], codes + 8 * i, 8);
        from = unpack_block(&c, bits, words, from, dst);
    }
    if (more) {
        uint64_t words[MAX_BITS] = {0};
        for (unsigned i = 0; i < bits; i++, codes += (more + 7) / 8) {
            memcpy(&words[i], codes, (more + 7) / 8);
            if (words[i] >> more)
                return KERNEL_BAD;
        }
        from = unpack_block(&c, bits, words, from, dst);
    }
    return (size_t)(from - others);
}

static TARGET size_t kernel_unpack(const struct level *l, const uint8_t *codes, size_t n, const uint8_t *others,
                                   uint8_t *dst)
{
#define UNPACK(bits) unpack_bits(bits, l, codes, n, others, dst)
    FOR_BITS(l->bits, UNPACK)
}

#define KERNEL(name_)                                                                                            \
    {                                                                                                            \
        .name = name_, .split = kernel_split, .merge = kernel_merge, .keep = kernel_keep,                        \
        .give_back = kernel_give_back, .close_up = kernel_close_up, .pack = kernel_pack, .unpack = kernel_unpack \
    }
