/* SPDX-License-Identifier: Apache-2.0 */
/* All kernels, for one run of the compiler: nvcc's for the image in the plugin, the host's for tests/shim/emulate. */
#include "kernels.h"

#include "gather.cuh"
#include "pack.cuh"
#include "put.cuh"
#include "scatter.cuh"
#include "sums.cuh"
#include "unpack.cuh"
