/* SPDX-License-Identifier: Apache-2.0 */
/* What a loaded plugin must have said of itself before one of its functions is called: for the daemon's door
 * (daemon/io/plugins.c) and for libcairn's (client/device_plugin.c). */
#ifndef CAIRN_CORE_BASE_PLUGIN_H
#define CAIRN_CORE_BASE_PLUGIN_H

#include <cairn/plugin.h>

/* Checks what cairn_plugin_entry returned (NULL too) and copies its table into ops, size bytes, zeroed first: fields
 * that an older plugin does not have are NULL. min: the size of the kind's first version. */
int cairn_plugin_take(const struct cairn_plugin *e, const char *name, int kind, size_t min, void *ops, size_t size,
                      struct cairn_error *err);

#endif
