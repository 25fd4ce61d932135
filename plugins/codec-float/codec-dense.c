/* SPDX-License-Identifier: Apache-2.0 */
/* codec-dense: planes that have something to give are Huffman coded; for slow links. */
#include "part.h"

#include <cairn/plugin.h>

static size_t dense_estimate(const void *src, size_t len, int dtype)
{
    return part_estimate(src, len, dtype, 1);
}

static int64_t dense_encode(const void *src, size_t len, int dtype, void *dst, size_t room)
{
    return part_encode(kernel_best(), src, len, dtype, 1, dst, room);
}

static int dense_decode(const void *src, size_t len, int dtype, void *dst, size_t plain_len)
{
    return part_decode(kernel_best(), src, len, dtype, dst, plain_len);
}

static const struct cairn_codec_ops ops = {
    .size = sizeof ops,
    .id = 3,
    .estimate = dense_estimate,
    .encode = dense_encode,
    .decode = dense_decode,
};

static const struct cairn_plugin plugin = {
    .abi = CAIRN_PLUGIN_ABI,
    .kind = CAIRN_PLUGIN_CODEC,
    .size = sizeof ops,
    .name = "codec-dense",
    .version = "1",
    .ops = &ops,
};

CAIRN_REGISTER_PLUGIN(plugin)
