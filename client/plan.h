/* SPDX-License-Identifier: Apache-2.0 */
/* A plan: what seal works out from the tensors' names, types and shapes alone. A training loop saves the same tensors
 * every time: the session keeps the newest plan, add compares each tensor with it, and when all are the same nothing is
 * copied, sorted, laid out or named again.
 *
 * Immutable once made, so that saves of several threads share it; counted under session.lock. */
#ifndef CAIRN_CLIENT_PLAN_H
#define CAIRN_CLIENT_PLAN_H

#include "core/model/layout.h"

/* Where a slice that has bytes lies in the image. */
struct plan_piece {
    uint64_t begin; /* bytes */
    uint64_t end;
    uint32_t slice;
};

struct plan {
    unsigned refs;
    uint64_t serial;            /* in the session, from 1: another layout has another */
    struct cairn_layout layout; /* placed */
    struct bytes encoded;       /* the same: what the daemon is told, and what tensors are compared with */
    uint32_t *at;               /* where each slice begins in it, and the last one's end */
    struct hash128 digest;
    struct plan_piece *pieces; /* by image offset */
    uint32_t npieces;
};

/* Places the layout and takes its contents, also on failure; the caller's is empty then. One reference. */
int plan_make(struct cairn_layout *l, struct plan **ret_plan, struct cairn_error *err);
void plan_free(struct plan *p); /* NULL is allowed */
/* True when this tensor, noted i-th, gives the plan's i-th slice; then it needs no check of its own. */
bool plan_has(const struct plan *p, uint32_t i, const struct cairn_tensor *t);

#endif
