/* SPDX-License-Identifier: Apache-2.0 */
/* codec-raw: bytes as they are. The smallest codec there can be; a template for others. */
#include <cairn/plugin.h>

#include <string.h>

static size_t raw_estimate(const void *src, size_t len, int dtype)
{
    (void)src;
    (void)dtype;
    return len;
}

static int64_t raw_encode(const void *src, size_t len, int dtype, void *dst, size_t room)
{
    (void)dtype;
    if (len > room)
        return 0;
    memcpy(dst, src, len);
    return (int64_t)len;
}

static int raw_decode(const void *src, size_t len, int dtype, void *dst, size_t plain_len)
{
    (void)dtype;
    if (len != plain_len)
        return CAIRN_E_CORRUPT;
    memcpy(dst, src, len);
    return 0;
}

static const struct cairn_codec_ops ops = {
    .size = sizeof ops,
    .id = 0,
    .estimate = raw_estimate,
    .encode = raw_encode,
    .decode = raw_decode,
};

static const struct cairn_plugin plugin = {
    .abi = CAIRN_PLUGIN_ABI,
    .kind = CAIRN_PLUGIN_CODEC,
    .size = sizeof ops,
    .name = "codec-raw",
    .version = "1",
    .ops = &ops,
};

CAIRN_REGISTER_PLUGIN(plugin)
