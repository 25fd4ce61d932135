/* SPDX-License-Identifier: Apache-2.0 */
/* launch(), on a real device: for one that reads and writes all memory of the process (heterogeneous memory
 * management), so that tests are the same. Without such a device they skip. */
#include "core/base/error.h"
#include "launch.h"
#include "plugins/device-cuda/kernels/image.h"
#include "plugins/device-cuda/runtime.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define SKIPPED 77
#define ATTRIBUTE_ALL_MEMORY 88 /* cudaDevAttrPageableMemoryAccess */

static void skip_all(const char *why)
{
    printf("skipped: %s\n", why);
    fflush(stdout);
    _Exit(SKIPPED);
}

static void must(const struct cuda *cuda, cuda_error e, const char *what, const char *name)
{
    if (e != CUDA_OK)
        fail_msg("%s %s: %s", what, name, cuda->error_string(e));
}

/* The first launch opens the device. */
static const struct cuda *device(cuda_library *ret_library)
{
    static struct cuda cuda;
    static cuda_library library;
    struct cairn_error err = CAIRN_ERROR_INIT;
    int n = 0, all_memory = 0;

    if (!library) {
        if (cuda_load(&cuda, &err) < 0)
            skip_all(err.message);
        const void *image = cuda.kernels ? cuda.kernels : cairn_kernels_image;
        if (cuda.device_count(&n) != CUDA_OK || n == 0)
            skip_all("no CUDA device");
        if (!cuda.library_load || (!cuda.kernels && cairn_kernels_image_len == 0))
            skip_all("no kernels: a runtime before 12.8, or a build without nvcc");
        (void)cuda.attribute(&all_memory, ATTRIBUTE_ALL_MEMORY, 0);
        if (!all_memory && !cuda.kernels)
            skip_all("the device does not reach all memory of the process");
        must(&cuda, cuda.set_device(0), "use", "device 0");
        must(&cuda, cuda.library_load(&library, image, NULL, NULL, 0, NULL, NULL, 0), "load", "the kernels");
    }
    *ret_library = library;
    return &cuda;
}

void launch(const char *name, uint32_t blocks, uint32_t threads, const void *arg)
{
    cuda_library library;
    const struct cuda *cuda = device(&library);
    cuda_dim3 grid = {blocks, 1, 1}, block = {threads, 1, 1};
    const void *args[1] = {arg};
    cuda_kernel kernel = NULL;

    must(cuda, cuda->library_kernel(&kernel, library, name), "find", name);
    must(cuda, cuda->launch(kernel, grid, block, (void **)args, 0, NULL), "launch", name);
    must(cuda, cuda->stream_sync(NULL), "run", name);
}
