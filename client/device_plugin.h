/* SPDX-License-Identifier: Apache-2.0 */
/* Finds and loads a device plugin, cairn-NAME.so, into the trainer's process. libcairn has no link to it, and none to a
 * vendor's runtime: both are there only where a device is used. */
#ifndef CAIRN_CLIENT_DEVICE_PLUGIN_H
#define CAIRN_CLIENT_DEVICE_PLUGIN_H

#include <cairn/plugin.h>

/* dir: where to look; NULL: $CAIRN_PLUGIN_PATH, or where libcairn's plugins are in an installation, in a bundle and in
 * the build tree. UNSUPPORTED says where it was looked for. All functions of the table are there. */
int device_plugin_load(const char *dir, const char *name, struct cairn_device_ops *ret_ops, void **ret_dso,
                       struct cairn_error *err);
/* Nothing that it made is left. NULL is allowed. */
void device_plugin_unload(void *dso);

#endif
