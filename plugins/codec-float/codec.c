/* SPDX-License-Identifier: Apache-2.0 */
/* codec-float and codec-dense, as CMakeLists.txt says: CODEC_NAME, CODEC_ID, and CODEC_DENSE, whether size counts for
 * more than speed. */
#include "part.h"

#include <cairn/plugin.h>

static size_t codec_estimate(const void *src, size_t len, int dtype)
{
    return part_estimate(src, len, dtype, CODEC_DENSE);
}

static int64_t codec_encode(const void *src, size_t len, int dtype, void *dst, size_t room)
{
    return part_encode(kernel_best(), src, len, dtype, CODEC_DENSE, dst, room);
}

static int codec_decode(const void *src, size_t len, int dtype, void *dst, size_t plain_len)
{
    return part_decode(kernel_best(), src, len, dtype, dst, plain_len);
}

static const struct cairn_codec_ops ops = {
    .size = sizeof ops,
    .id = CODEC_ID,
    .estimate = codec_estimate,
    .encode = codec_encode,
    .decode = codec_decode,
};

static const struct cairn_plugin plugin = {
    .abi = CAIRN_PLUGIN_ABI,
    .kind = CAIRN_PLUGIN_CODEC,
    .size = sizeof ops,
    .name = CODEC_NAME,
    .version = "1",
    .ops = &ops,
};

CAIRN_REGISTER_PLUGIN(plugin)
