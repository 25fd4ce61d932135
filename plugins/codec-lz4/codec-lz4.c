/* SPDX-License-Identifier: Apache-2.0 */
/* codec-lz4: for bytes that repeat: token ids, masks, zeros, small integers. Float state does not, and the estimate
 * says so from a sample before a whole part is tried. */
#include <cairn/plugin.h>

#include <lz4.h>

#define SAMPLES 4
#define SAMPLE ((size_t)8 << 10)
#define ACCELERATION 1 /* a part of the format: the same input must give the same bytes again */

/* Four samples spread over the part, compressed one by one and scaled up. A part of a few samples is sampled whole. */
static size_t lz4_estimate(const void *src, size_t len, int dtype)
{
    char out[LZ4_COMPRESSBOUND(SAMPLE)];
    size_t each = len < SAMPLES * SAMPLE ? len / SAMPLES : SAMPLE, coded = 0;

    (void)dtype;
    if (each < 64)
        return len / 2; /* too small to sample, and cheap to try */
    for (size_t i = 0; i < SAMPLES; i++) {
        size_t at = (len - each) / (SAMPLES - 1) * i;
        int n = LZ4_compress_fast((const char *)src + at, out, (int)each, (int)sizeof out, ACCELERATION);
        if (n <= 0)
            return len;
        coded += (size_t)n;
    }
    return (size_t)((double)coded / (double)(SAMPLES * each) * (double)len);
}

static int64_t lz4_encode(const void *src, size_t len, int dtype, void *dst, size_t room)
{
    (void)dtype;
    if (len > LZ4_MAX_INPUT_SIZE)
        return CAIRN_E_TOO_LARGE;
    return LZ4_compress_fast(src, dst, (int)len, room > INT32_MAX ? INT32_MAX : (int)room,
                             ACCELERATION); /* 0: no room */
}

static int lz4_decode(const void *src, size_t len, int dtype, void *dst, size_t plain_len)
{
    (void)dtype;
    if (len > INT32_MAX || plain_len > LZ4_MAX_INPUT_SIZE)
        return CAIRN_E_CORRUPT;
    int n = LZ4_decompress_safe(src, dst, (int)len, (int)plain_len);
    return n >= 0 && (size_t)n == plain_len ? 0 : CAIRN_E_CORRUPT;
}

static const struct cairn_codec_ops ops = {
    .size = sizeof ops,
    .id = 1,
    .estimate = lz4_estimate,
    .encode = lz4_encode,
    .decode = lz4_decode,
};

static const struct cairn_plugin plugin = {
    .abi = CAIRN_PLUGIN_ABI,
    .kind = CAIRN_PLUGIN_CODEC,
    .size = sizeof ops,
    .name = "codec-lz4",
    .version = "1",
    .ops = &ops,
};

CAIRN_REGISTER_PLUGIN(plugin)
