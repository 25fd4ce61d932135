/* SPDX-License-Identifier: Apache-2.0 */
/* Plugins that break one rule each (chosen at build time by BAD_*): test doubles for the door, of no other use. */
#include <cairn/plugin.h>

#ifndef BAD_NOSYMBOL

static size_t estimate(const void *src, size_t len, int dtype)
{
    (void)src;
    (void)dtype;
    return len;
}

static int64_t encode(const void *src, size_t len, int dtype, void *dst, size_t room)
{
    (void)src;
    (void)len;
    (void)dtype;
    (void)dst;
    (void)room;
    return 0;
}

#ifndef BAD_MISSING
static int decode(const void *src, size_t len, int dtype, void *dst, size_t plain_len)
{
    (void)src;
    (void)len;
    (void)dtype;
    (void)dst;
    (void)plain_len;
    return CAIRN_E_CORRUPT;
}
#endif

static const struct cairn_codec_ops ops = {
    .size = sizeof ops,
    .id = 0x8001,
    .estimate = estimate,
    .encode = encode,
#ifndef BAD_MISSING
    .decode = decode,
#endif
};

static const struct cairn_plugin plugin = {
#ifdef BAD_ABI
    .abi = CAIRN_PLUGIN_ABI + 1,
#else
    .abi = CAIRN_PLUGIN_ABI,
#endif
#ifdef BAD_KIND
    .kind = CAIRN_PLUGIN_STORE,
#else
    .kind = CAIRN_PLUGIN_CODEC,
#endif
#ifdef BAD_SIZE
    .size = 4,
#else
    .size = sizeof ops,
#endif
    .name = PLUGIN_NAME,
    .version = "1",
    .ops = &ops,
};

CAIRN_REGISTER_PLUGIN(plugin)

#else
int cairn_nothing_of_interest; /* no entry at all */
#endif
