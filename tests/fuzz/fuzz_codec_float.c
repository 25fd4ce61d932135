/* SPDX-License-Identifier: Apache-2.0 */
/* codec-float and codec-dense both ways: bytes that claim to be an encoded part, by every kernel; and the input itself
 * as a part, which must come back, by every kernel the same. */
#include "part.h"

#include <cairn/plugin.h>

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
size_t fuzz_seed_nth(unsigned i, uint8_t *buf, size_t room);

#define PLAIN ((size_t)9001) /* bytes that a seed decodes to, two strips of single bytes: the target asks for as many \
                              */

static const char *const names[] = {"portable", "avx2", "avx512"};
static const int dtypes[] = {CAIRN_U8, CAIRN_BF16, CAIRN_F32, CAIRN_F64};

static void must(int holds)
{
    if (!holds)
        abort();
}

/* The first byte of an input is the dtype; the encoded part follows. */
size_t fuzz_seed_nth(unsigned i, uint8_t *buf, size_t room)
{
    uint8_t plain[PLAIN];
    uint64_t s = i + 1;

    for (size_t at = 0; at < PLAIN; at++) { /* in turns: few values, bits worth keeping, long runs of zeros */
        s = s * 6364136223846793005ull + 1442695040888963407ull;
        uint64_t few = (s >> 60) * (at % 4 == 3 || s >> 40 & 1), noisy = s >> 56 & 0xfe, rare = s >> 57 ? 0 : s >> 48;
        plain[at] = (uint8_t)(i / 8 % 3 == 0 ? few : i / 8 % 3 == 1 ? noisy : rare);
    }
    buf[0] = (uint8_t)(i % 4);
    int64_t n = part_encode(kernel_named("portable"), plain, PLAIN, dtypes[i % 4], i / 4 % 2, buf + 1, room - 1);
    must(n > 0);
    return (size_t)n + 1;
}

static void decode_all(const uint8_t *data, size_t len, int dtype)
{
    uint8_t out[2][PLAIN];
    int first = 0;

    for (unsigned k = 0; k < 3; k++) {
        if (!kernel_named(names[k]))
            continue;
        memset(out[k > 0], 0, PLAIN);
        int r = part_decode(kernel_named(names[k]), data, len, dtype, out[k > 0], PLAIN);
        must(k == 0 || r == first);
        must(k == 0 || r < 0 || memcmp(out[0], out[1], PLAIN) == 0);
        first = r;
    }
}

static void encode_all(const uint8_t *data, size_t len, int dtype, int codes)
{
    uint8_t *first = malloc(len), *coded = malloc(len), *back = malloc(len);
    int64_t n0 = 0;

    must(first && coded && back);
    for (unsigned k = 0; k < 3; k++) {
        if (!kernel_named(names[k]))
            continue;
        int64_t n = part_encode(kernel_named(names[k]), data, len, dtype, codes, k ? coded : first, len);
        n0 = k ? n0 : n;
        must(n == n0 && (k == 0 || memcmp(first, coded, (size_t)n) == 0));
        if (n > 0) {
            must(part_decode(kernel_named(names[k]), first, (size_t)n, dtype, back, len) == 0);
            must(memcmp(back, data, len) == 0);
        }
    }
    free(first);
    free(coded);
    free(back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    if (len < 2)
        return 0;
    int dtype = dtypes[data[0] % 4];
    decode_all(data + 1, len - 1, dtype);
    if (data[1] % 32 == 0) /* it is what costs time */
        encode_all(data + 1, len - 1, dtype, data[0] & 4);
    return 0;
}
