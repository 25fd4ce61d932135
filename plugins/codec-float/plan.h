/* SPDX-License-Identifier: Apache-2.0 */
/* What to do with each plane of a part, from a sample of it. Integers only: the same input gives the same plan with any
 * compiler, so that a fragment can be encoded again byte for byte. */
#ifndef CAIRN_CODEC_FLOAT_PLAN_H
#define CAIRN_CODEC_FLOAT_PLAN_H

#include "kernel.h"

/* Fills width, len and nblocks. */
void part_init(struct part *p, unsigned width, size_t len);
/* Chooses what is done with each plane. dense: with more levels. Returns a guess of the encoded bytes, header and all.
 */
size_t plan(const struct kernel *k, struct part *p, const uint8_t *src, int dense);

#endif
