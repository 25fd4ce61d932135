/* SPDX-License-Identifier: Apache-2.0 */
/* What plugins.c and the three doors share. */
#ifndef CAIRN_DAEMON_IO_DOOR_INTERNAL_H
#define CAIRN_DAEMON_IO_DOOR_INTERNAL_H

#include "daemon/io/plugins.h"

struct codec {
    struct list link;
    char name[64];
    struct cairn_codec_ops ops; /* copied: fields an older plugin does not have are NULL */
    void *dso;
};

struct plugins {
    char *dirs[2]; /* in the order in which files are looked for */
    unsigned ndirs;
    struct list codecs;
};

/* Loads cairn-NAME.so, checks what it exports and copies its table of size bytes into ops, zeroed first. min is the
 * size of the kind's first version. ret_dso is dlclose()d by the owner when everything made by it is gone. */
int door_load(struct plugins *p, const char *name, int kind, void *ops, size_t size, size_t min, void **ret_dso,
              struct cairn_error *err);
void door_unload(void *dso);

#endif
