/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels that there are, by name. */
#include "plugins/device-cuda/kernels/kernels.h"
#include "tests/shim/emulate.h"
#include "tests/shim/emulate/emulate.h"

#define KERNEL(name_, arg_)                                                               \
    extern "C" void name_(const struct arg_ arg);                                         \
    static void call_##name_(void **args)                                                 \
    {                                                                                     \
        name_(*(const struct arg_ *)args[0]);                                             \
    }                                                                                     \
    static void run_##name_(const uint32_t grid[3], const uint32_t block[3], void **args) \
    {                                                                                     \
        emulate_grid(#name_, call_##name_, grid, block, args);                            \
    }

KERNEL(cairn_gather, gpu_gather)
KERNEL(cairn_scatter, gpu_scatter)
KERNEL(cairn_sums, gpu_sums)
KERNEL(cairn_put, gpu_put)
KERNEL(cairn_pack, gpu_pack)
KERNEL(cairn_unpack, gpu_unpack)

extern "C" const struct shim_kernel shim_kernels[] = {
    {GPU_GATHER, run_cairn_gather},
    {GPU_SCATTER, run_cairn_scatter},
    {GPU_SUMS, run_cairn_sums},
    {GPU_PUT, run_cairn_put},
    {GPU_PACK, run_cairn_pack},
    {GPU_UNPACK, run_cairn_unpack},
    {nullptr, nullptr},
};
