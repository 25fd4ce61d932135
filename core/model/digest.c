/* SPDX-License-Identifier: Apache-2.0 */
#include "core/model/digest.h"

#include "core/model/digest_internal.h"

#include <cairn/cairn.h>
#include <string.h>

/* The first sixteen numbers of SplitMix64 with seed 0. They are part of the digest's version. */
static const struct digest_keys first_keys = {
    .a = {0xe220a8397b1dcdaf, 0x6e789e6aa1b965f4, 0x06c45d188009454f, 0xf88bb8a8724c81ec, 0x1b39896a51a8749b,
          0x53cb9f0c747ea2ea, 0x2c829abe1f4532e1, 0xc584133ac916ab3c},
    .b = {0x3ee5789041c98ac3, 0xf3b8488c368cb0a6, 0x657eecdd3cb13d09, 0xc2d326e0055bdef6, 0x8621a03fe0bbdb7b,
          0x8e1f7555983aa92f, 0xb54e0f1600cc4d19, 0x84bb3f97971d80ab},
};

static const struct digest_ops *ops(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        return &digest_avx512;
    if (__builtin_cpu_supports("avx2"))
        return &digest_avx2;
#endif
    return &digest_base;
}

/* ---- the digest ------------------------------------------------------------------------------ */

static struct digest_keys keys_of(uint64_t stripe)
{
    struct digest_keys k = first_keys;

    for (unsigned j = 0; j < DIGEST_LANES; j++) {
        k.a[j] += stripe * DIGEST_STEP_A;
        k.b[j] += stripe * DIGEST_STEP_B;
    }
    return k;
}

static uint64_t add_and_look(struct cairn_digest *d, uint64_t stripe, const void *data, size_t len,
                             const struct digest_look *look)
{
    size_t whole = len / CAIRN_DIGEST_STRIPE, rest = len % CAIRN_DIGEST_STRIPE;
    struct digest_keys k = keys_of(stripe);
    uint64_t seen = whole ? ops()->stripes(d, &k, data, whole, look) : 0;

    if (rest) {
        char last[CAIRN_DIGEST_STRIPE] = {0};

        memcpy(last, (const char *)data + whole * CAIRN_DIGEST_STRIPE, rest);
        k = keys_of(stripe + whole);
        seen |= ops()->stripes(d, &k, last, 1, look);
    }
    return seen;
}

void cairn_digest_merge(struct cairn_digest *d, const struct cairn_digest *piece)
{
    for (unsigned i = 0; i < CAIRN_DIGEST_SUMS; i++)
        d->sum[i] += piece->sum[i];
}

struct hash128 cairn_digest_end(const struct cairn_digest *d, uint64_t bytes, int dtype)
{
    uint64_t words[CAIRN_DIGEST_SUMS + 3];

    memcpy(words, d->sum, sizeof d->sum);
    words[CAIRN_DIGEST_SUMS] = bytes;
    words[CAIRN_DIGEST_SUMS + 1] = (uint64_t)dtype;
    words[CAIRN_DIGEST_SUMS + 2] = CAIRN_DIGEST_VERSION;
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    for (unsigned i = 0; i < CAIRN_DIGEST_SUMS + 3; i++)
        words[i] = __builtin_bswap64(words[i]);
#endif
    return cairn_hash128(words, sizeof words);
}

/* ---- counting -------------------------------------------------------------------------------- */

/* An exponent of ones is not finite; a mantissa of zeros with it is Inf. The 8-bit types differ: E4M3 has one NaN for
 * each sign and no Inf, E8M0 one NaN and no sign, the FNUZ forms keep their one NaN where minus zero would be. */
static const struct nonfinite_bits bits[] = {
    [CAIRN_F8_E4M3] = {1, false, 0x7f, 0x7f, 0, 0x01},
    [CAIRN_F8_E5M2] = {1, true, 0x7c, 0x7c, 0x7f, 0x04},
    [CAIRN_F8_E8M0] = {1, false, 0xff, 0xff, 0, 0},
    [CAIRN_F8_E4M3FNUZ] = {1, false, 0xff, 0x80, 0, 0},
    [CAIRN_F8_E5M2FNUZ] = {1, false, 0xff, 0x80, 0, 0},
    [CAIRN_F16] = {2, true, 0x7c00, 0x7c00, 0x7fff, 0x0400},
    [CAIRN_BF16] = {2, true, 0x7f80, 0x7f80, 0x7fff, 0x0080},
    [CAIRN_F32] = {4, true, 0x7f800000, 0x7f800000, 0x7fffffff, 0x00800000},
    [CAIRN_F64] = {8, true, 0x7ff0000000000000, 0x7ff0000000000000, 0x7fffffffffffffff, 0x0010000000000000},
    [CAIRN_C64] = {4, true, 0x7f800000, 0x7f800000, 0x7fffffff, 0x00800000},
};

bool cairn_has_nonfinite(int dtype)
{
    return dtype > 0 && dtype < (int)(sizeof bits / sizeof bits[0]) && bits[dtype].size;
}

void cairn_count_nonfinite(int dtype, const void *data, size_t len, struct cairn_nonfinite *add)
{
    if (!cairn_has_nonfinite(dtype))
        return;
    const struct nonfinite_bits *b = &bits[dtype];
    uint64_t found = ops()->matches(b->size, b->mask, b->value, data, len);
    /* Bytes are gone through again only where there is something to tell apart. */
    uint64_t inf = found && b->has_inf ? ops()->matches(b->size, b->inf_mask, b->value, data, len) : 0;

    add->nan += found - inf;
    add->inf += inf;
}

/* A word of size bytes in each of the 64 bits. */
static uint64_t spread(uint64_t word, unsigned size)
{
    return size == 8 ? word : word * (UINT64_MAX / ((1ull << size * 8) - 1));
}

void cairn_numerics_add(struct cairn_digest *d, struct cairn_nonfinite *n, int dtype, uint64_t stripe, const void *data,
                        size_t len)
{
    const struct nonfinite_bits *b = cairn_has_nonfinite(dtype) ? &bits[dtype] : NULL;
    struct digest_look look = {0};
    uint64_t top = 0;

    if (b && b->unit) {
        look = (struct digest_look){spread(b->mask, b->size), spread(b->unit, b->size)};
        top = spread(1ull << (b->size * 8 - 1), b->size);
    }
    uint64_t seen = add_and_look(d, stripe, data, len, &look);
    if (b && (!b->unit || (seen & top)))
        cairn_count_nonfinite(dtype, data, len, n);
}
