/* SPDX-License-Identifier: Apache-2.0 */
/* The sizes that formats fix. */
#ifndef CAIRN_CORE_MODEL_UNITS_H
#define CAIRN_CORE_MODEL_UNITS_H

#define CAIRN_PART ((size_t)1 << 20) /* a part: the unit of encoding, and the arena's page */
#define CAIRN_BLOCK ((size_t)4096)   /* fragments and records are aligned to it */
#define CAIRN_TENSOR_ALIGN 64        /* a slice begins at a multiple of it within the image */
#define CAIRN_MAX_K 16               /* data fragments of a stripe */
#define CAIRN_MAX_M 8                /* parity fragments of a stripe */
#define CAIRN_MAX_FRAGS (CAIRN_MAX_K + CAIRN_MAX_M)
#define CAIRN_GROUP_MAX 16           /* peers that one node uses */
#define CAIRN_MAX_TENSORS (1u << 20) /* slices of one shard */
#define CAIRN_MAX_LAYOUT ((size_t)64 << 20)
#define CAIRN_MAX_IMAGE ((uint64_t)1 << 42) /* 4 TiB: bytes of one shard */
#define CAIRN_MAX_WORLD (1u << 20)

#endif
