/* SPDX-License-Identifier: Apache-2.0 */
/* Every kernel, launched with nothing to do, touches nothing. Catches a kernel that looks at its first part before it
 * looks whether there is one. */
#include "launch.h"
#include "plugins/device-cuda/kernels/kernels.h"
#include "tests/shim/emulate.h"

int main(void)
{
    static const union {
        struct gpu_gather gather;
        struct gpu_scatter scatter;
        struct gpu_sums sums;
        struct gpu_put put;
        struct gpu_pack pack;
        struct gpu_unpack unpack;
    } nothing;

    for (const struct shim_kernel *k = shim_kernels; k->name; k++)
        launch(k->name, 1, 256, &nothing);
    return 0;
}
