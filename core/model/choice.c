/* SPDX-License-Identifier: Apache-2.0 */
#include "core/model/choice.h"

#include <cairn/plugin.h>

#define ALIKE 16              /* times that differ by a sixteenth are: the smaller output is taken then */
#define KEEP 8                /* another must be better by an eighth */
#define FIRST_RATE 1000000000 /* of a path that nothing is known of: an ordinary disk's */

/* Nanoseconds until the part is stored when parts follow each other: encoding and the path work side by side. */
static uint64_t part_ns(const struct cairn_offer *o, uint32_t plain_len, const struct cairn_path *path)
{
    uint64_t speed = o->speed * (path->workers ? path->workers : 1);
    uint64_t encode = speed ? (uint64_t)plain_len * 1000000000 / speed : 0;
    uint64_t stored = (uint64_t)o->coded * (path->k + path->m) / (path->k ? path->k : 1);
    uint64_t send = stored * 1000000000 / (path->rate ? path->rate : FIRST_RATE);

    return encode > send ? encode : send;
}

unsigned cairn_choose(const struct cairn_offer *offers, unsigned n, uint32_t plain_len, const struct cairn_path *path,
                      unsigned before)
{
    uint64_t best_ns = UINT64_MAX, ns[CAIRN_CHOICES];
    unsigned best = 0;

    for (unsigned i = 0; i < n; i++) {
        ns[i] = part_ns(&offers[i], plain_len, path);
        best_ns = ns[i] < best_ns ? ns[i] : best_ns;
    }
    for (unsigned i = 0; i < n; i++) {
        bool alike = ns[i] <= best_ns + best_ns / ALIKE;
        bool best_alike = ns[best] <= best_ns + best_ns / ALIKE;
        if (alike && (!best_alike || offers[i].coded < offers[best].coded))
            best = i;
    }
    if (before < n && ns[before] <= ns[best] + ns[best] / KEEP && offers[before].coded <= plain_len)
        return before;
    return best;
}

static bool is_float(int dtype)
{
    return dtype >= CAIRN_F8_E4M3 && dtype <= CAIRN_C64;
}

/* LZ4 finds what repeats, and floats do not: its estimate alone would cost more than the exponents' packing. */
bool cairn_codec_suits(uint16_t codec, int dtype)
{
    return codec != CAIRN_CODEC_LZ4 || !is_float(dtype);
}

void cairn_rate_add(struct cairn_rate *r, uint64_t bytes, uint64_t ns)
{
    uint64_t sample = ns ? (uint64_t)((double)bytes * 1e9 / (double)ns) : 0;

    if (ns == 0 || bytes == 0)
        return;
    r->bytes_per_s = r->bytes_per_s ? r->bytes_per_s - r->bytes_per_s / 8 + sample / 8 : sample;
    if (r->bytes_per_s == 0)
        r->bytes_per_s = 1;
}
