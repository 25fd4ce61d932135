/* SPDX-License-Identifier: Apache-2.0 */
#include "core/base/plugin.h"

#include <string.h>

#include "core/base/error.h"

static const char *const kinds[] = {"no kind", "codec", "store", "meta", "device"};

static const char *kind_name(uint32_t kind)
{
    return kind < sizeof kinds / sizeof kinds[0] ? kinds[kind] : "an unknown kind";
}

static int check_entry(const struct cairn_plugin *e, const char *name, int kind, size_t min, struct cairn_error *err)
{
    size_t ops_size;

    if (!e)
        return cairn_fail(err, CAIRN_E_UNSUPPORTED, "its entry returned nothing");
    if (e->abi != CAIRN_PLUGIN_ABI)
        return cairn_fail(err, CAIRN_E_UNSUPPORTED, "it was built for plugin ABI %u, %u is wanted", e->abi,
                          CAIRN_PLUGIN_ABI);
    if (e->kind != (uint32_t)kind)
        return cairn_fail(err, CAIRN_E_UNSUPPORTED, "it is a %s plugin, a %s plugin is wanted", kind_name(e->kind),
                          kind_name((uint32_t)kind));
    if (!e->name || strcmp(e->name, name) != 0)
        return cairn_fail(err, CAIRN_E_UNSUPPORTED, "it calls itself \"%.60s\"", e->name ? e->name : "(null)");
    if (!e->ops)
        return cairn_fail(err, CAIRN_E_UNSUPPORTED, "it has no table of functions");
    memcpy(&ops_size, e->ops, sizeof ops_size); /* every table begins with its size */
    if (e->size != ops_size || ops_size < min || ops_size > 1 << 16)
        return cairn_fail(err, CAIRN_E_UNSUPPORTED, "its table has %zu bytes (announced %zu), at least %zu are wanted",
                          ops_size, e->size, min);
    return 0;
}

int cairn_plugin_take(const struct cairn_plugin *e, const char *name, int kind, size_t min, void *ops, size_t size,
                      struct cairn_error *err)
{
    int r = check_entry(e, name, kind, min, err);

    if (r < 0)
        return r;
    memset(ops, 0, size);
    memcpy(ops, e->ops, e->size < size ? e->size : size);
    return 0;
}
