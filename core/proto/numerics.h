/* SPDX-License-Identifier: Apache-2.0 */
/* What a shard's tensors hold together, as reports and roots say it: one message of manifest.proto. */
#ifndef CAIRN_CORE_PROTO_NUMERICS_H
#define CAIRN_CORE_PROTO_NUMERICS_H

#include "core/proto/root.h"

#include "manifest.pb-c.h"

/* to, or NULL when nothing is known. */
Cairn__Manifest__V1__Numerics *numerics_fill(Cairn__Manifest__V1__Numerics *to, const struct shard_numerics *n);
/* to is zero. NULL: nothing is known. */
void numerics_decode(struct shard_numerics *to, const Cairn__Manifest__V1__Numerics *n);

#endif
