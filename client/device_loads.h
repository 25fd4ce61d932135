/* SPDX-License-Identifier: Apache-2.0 */
/* What one thread of a restore has under way to devices: a loader of each device that it meets, and the newest ticket.
 *
 *     put: image bytes -> runs -> loader          from pinned memory (our arena): read until finish says that all is
 *     finish: every ticket has ended              there; from anything else (the window): read when put returns
 */
#ifndef CAIRN_CLIENT_DEVICE_LOADS_H
#define CAIRN_CLIENT_DEVICE_LOADS_H

#include "client/device.h"
#include "core/model/box.h"

struct device_loads {
    int64_t deadline_ns; /* of every wait */
    struct one_load {
        struct device *device;
        struct cairn_device_loader *loader;
        uint64_t ticket;
    } loads[DEVICES_MAX];
    unsigned nloads;
};

void device_loads_init(struct device_loads *l, int64_t deadline_ns);
/* Begins to bring what the image's window [begin, begin + len), whose bytes are at src, has of the copy to its target,
 * which is memory of the device. Waits while too much is under way. */
int device_loads_put(struct device_loads *l, struct device *d, const struct cairn_box_copy *copy, const char *src,
                     uint64_t begin, size_t len, struct cairn_error *err);
/* Everything is on its device. */
int device_loads_finish(struct device_loads *l, struct cairn_error *err);
/* Waits for what is under way, also after a failure, but not for ever. */
void device_loads_free(struct device_loads *l);

#endif
