/* SPDX-License-Identifier: Apache-2.0 */
/* The plugin's kernels, from the same source, run by the host: what a test double of the runtime launches. */
#ifndef CAIRN_TESTS_SHIM_EMULATE_H
#define CAIRN_TESTS_SHIM_EMULATE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* args as for cudaLaunchKernel: a pointer to each argument. Returns when the whole grid has run; several host threads
 * may run kernels at once. What no device would survive (a barrier that some threads do not reach, lanes that do not
 * come together) ends the process and says which kernel it was, and where. */
struct shim_kernel {
    const char *name;
    void (*run)(const uint32_t grid[3], const uint32_t block[3], void **args);
};
extern const struct shim_kernel shim_kernels[]; /* the last one has no name */

/* From now on blocks, and the threads of a block between two barriers, run in an order that comes from the seed: what a
 * missing barrier breaks then differs from seed to seed. 0, as at the beginning: one after the other. */
void shim_kernels_shuffle(uint64_t seed);

#ifdef __cplusplus
}
#endif

#endif
