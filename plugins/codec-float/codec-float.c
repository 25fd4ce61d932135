/* SPDX-License-Identifier: Apache-2.0 */
/* codec-float: the exponents of float state packed to a few bits each. */
#include "part.h"

#include <cairn/plugin.h>

static size_t float_estimate(const void *src, size_t len, int dtype)
{
    return part_estimate(src, len, dtype, 0);
}

static int64_t float_encode(const void *src, size_t len, int dtype, void *dst, size_t room)
{
    return part_encode(kernel_best(), src, len, dtype, 0, dst, room);
}

static int float_decode(const void *src, size_t len, int dtype, void *dst, size_t plain_len)
{
    return part_decode(kernel_best(), src, len, dtype, dst, plain_len);
}

static const struct cairn_codec_ops ops = {
    .size = sizeof ops,
    .id = 2,
    .estimate = float_estimate,
    .encode = float_encode,
    .decode = float_decode,
};

static const struct cairn_plugin plugin = {
    .abi = CAIRN_PLUGIN_ABI,
    .kind = CAIRN_PLUGIN_CODEC,
    .size = sizeof ops,
    .name = "codec-float",
    .version = "1",
    .ops = &ops,
};

CAIRN_REGISTER_PLUGIN(plugin)
