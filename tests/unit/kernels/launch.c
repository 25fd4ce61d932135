/* SPDX-License-Identifier: Apache-2.0 */
#include "launch.h"

#include "tests/shim/emulate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

void launch(const char *name, uint32_t blocks, uint32_t threads, const void *arg)
{
    const uint32_t grid[3] = {blocks, 1, 1}, block[3] = {threads, 1, 1};
    const void *args[1] = {arg};

    for (const struct shim_kernel *k = shim_kernels; k->name; k++)
        if (strcmp(k->name, name) == 0) {
            k->run(grid, block, (void **)args);
            return;
        }
    fail_msg("no kernel %s", name);
}
