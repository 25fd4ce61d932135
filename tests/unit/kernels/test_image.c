/* SPDX-License-Identifier: Apache-2.0 */
/* The image in the plugin is the compiler's file, and has every kernel that kernels.h names. */
#include "plugins/device-cuda/kernels/image.h"
#include "plugins/device-cuda/kernels/kernels.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define SKIPPED 77
#define FATBIN_MAGIC 0xba55ed50u

static int has(const char *name)
{
    for (size_t i = 0; i + strlen(name) < cairn_kernels_image_len; i++)
        if (memcmp(cairn_kernels_image + i, name, strlen(name) + 1) == 0)
            return 1;
    fprintf(stderr, "the image has no %s\n", name);
    return 0;
}

int main(void)
{
    static const char *const names[] = {GPU_GATHER, GPU_SCATTER, GPU_SUMS, GPU_PUT, GPU_PACK, GPU_UNPACK};
    uint32_t magic;
    int failed = 0;

    if (cairn_kernels_image_len == 0) {
        puts("skipped: built without nvcc");
        return SKIPPED;
    }
    memcpy(&magic, cairn_kernels_image, sizeof magic);
    if (magic != FATBIN_MAGIC) {
        fprintf(stderr, "no fat binary: it begins with %#x\n", magic);
        failed = 1;
    }
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        failed |= !has(names[i]);
    return failed;
}
