/* SPDX-License-Identifier: Apache-2.0 */
/* A part to its encoded bytes and back. */
#ifndef CAIRN_CODEC_FLOAT_PART_H
#define CAIRN_CODEC_FLOAT_PART_H

#include "kernel.h"

/* Bytes of an element for the codec's purposes; 0: a dtype that it does not know. */
unsigned part_width(int dtype);
/* A guess from a sample. */
size_t part_estimate(const void *src, size_t len, int dtype, int dense);
/* Returns the encoded bytes, which do not depend on room; 0: they do not fit into it. */
int64_t part_encode(const struct kernel *k, const void *src, size_t len, int dtype, int dense, void *dst, size_t room);
/* Untrusted bytes: 0 or a negative code. */
int part_decode(const struct kernel *k, const void *src, size_t len, int dtype, void *dst, size_t plain_len);

#endif
