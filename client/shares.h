/* SPDX-License-Identifier: Apache-2.0 */
/* Shares: which device brings which bytes of an image. Worked out once for a plan and kept with it in the session, for
 * as long as the tensors lie on the same devices with the same strides and flags; only their addresses may change from
 * save to save.
 *
 *     part       0        1        2        3
 *     slices   | a a a a | a a b b | b b h h | h h h |     a: cuda:0, b: cuda:1, h: the host's, or the caller's to
 * write owner      cuda:0    nobody    nobody    nobody alone     `-------- the host walks it: its own bytes, and the
 * gaps --------'
 *
 * Immutable but for what the lock guards, so that saves of several threads share it; counted under session.lock. */
#ifndef CAIRN_CLIENT_SHARES_H
#define CAIRN_CLIENT_SHARES_H

#include <pthread.h>

#include "client/device.h"
#include "client/plan.h"
#include "client/tracker.h"

/* One device's. */
struct share {
    struct device *device;
    struct cairn_device_plan *plan; /* the plugin's */
    uint32_t *slices;               /* in the layout, by image offset */
    uint32_t nslices;
    uint64_t bytes;
    const void **checked; /* where each of them lay when the device said that it is its memory; under the lock */
};

struct shares {
    unsigned refs;
    struct plan *plan;          /* outlives it */
    struct image_source *forms; /* of each slice: device, stride and is_volatile */
    struct share *shares;
    uint32_t nshares;
    uint32_t nslices;     /* of all shares */
    bool packs;           /* the plugin's plans are made for it */
    uint8_t *owner;       /* of each part: i + 1 when it has bytes of share i alone; else 0 */
    uint32_t *host_parts; /* those without an owner */
    uint32_t nhost_parts;
    pthread_mutex_t lock; /* and calls with a plan of the plugin's */
};

/* Devices are opened. One reference. Whoever makes it holds a reference to the plan until it is freed. packs: they may
 * be asked to pack. */
int shares_make(struct devices *devices, struct plan *plan, const struct image_source *sources, bool packs,
                struct shares **ret_shares, struct cairn_error *err);
/* No copy is under way with it. In a forked child nothing of the plugin's is touched. NULL is allowed. */
void shares_free(struct shares *s, bool forked);
/* Whether they are those of this plan and these sources. */
bool shares_fit(const struct shares *s, const struct plan *plan, const struct image_source *sources);
/* The addresses of a share's slices, as the plugin wants them. */
void shares_data(const struct share *h, const struct image_source *sources, const void **ret_data);
/* Asks the device about those that have not been there in the save before. Lock held. */
int shares_check(const struct shares *s, struct share *h, const void *const *data, struct cairn_error *err);

#endif
