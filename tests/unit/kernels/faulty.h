/* SPDX-License-Identifier: Apache-2.0 */
#ifndef CAIRN_TESTS_UNIT_KERNELS_FAULTY_H
#define CAIRN_TESTS_UNIT_KERNELS_FAULTY_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FAULTY_THREADS 96u

enum faulty { TURN_ROUND, TURN_ROUND_WITHOUT_BARRIER, WARP_SUM, NOT_ALL_COME, TWO_BARRIERS, LANES_APART };

/* out: of each thread of each block. */
void faulty_run(enum faulty which, uint32_t *out, uint32_t nblocks);

#ifdef __cplusplus
}
#endif

#endif
