/* SPDX-License-Identifier: Apache-2.0 */
/* Kernels: by name, to the functions of the emulator (emulate.h), which stand in for any image that is loaded. */
#include "plugins/device-cuda/kernels/kernels.h"
#include "tests/shim/emulate.h"
#include "tests/shim/internal.h"

#include <stdlib.h>
#include <string.h>

struct library {
    struct library *next; /* in shim.libraries */
    bool alive;
};

/* For a plugin that was built without nvcc: there is something to load all the same. */
SHIM_API extern const char cairn_shim_kernels_image[];
const char cairn_shim_kernels_image[] = "kernels of the shim";

void libraries_left(struct shim_left *left)
{
    for (const struct library *l = shim.libraries; l; l = l->next)
        left->libraries += l->alive;
}

SHIM_API int cudaLibraryLoadData(void **ret, const void *code, unsigned *jit, void **jit_values, unsigned njit,
                                 unsigned *options, void **values, unsigned noptions);
SHIM_API int cudaLibraryUnload(void *handle);
SHIM_API int cudaLibraryGetKernel(void **ret, void *handle, const char *name);
SHIM_API int cudaLaunchKernel(const void *kernel, cuda_dim3 grid, cuda_dim3 block, void **args, size_t shared,
                              void *stream);

int cudaLibraryLoadData(void **ret, const void *image, unsigned *jit, void **jit_values, unsigned njit,
                        unsigned *options, void **values, unsigned noptions)
{
    int code = call_begin(FN_cudaLibraryLoadData, CALL_CONTEXT);

    (void)jit, (void)jit_values, (void)njit, (void)options, (void)values, (void)noptions;
    if (!code && !image)
        code = CUDA_E_INVALID_VALUE;
    struct library *l = code ? NULL : calloc(1, sizeof *l);
    if (!l)
        return call_end(code ? code : CUDA_E_MEMORY_ALLOCATION);
    l->alive = true;
    l->next = shim.libraries;
    shim.libraries = l;
    *ret = l;
    return call_end(0);
}

int cudaLibraryUnload(void *handle)
{
    int code = call_begin(FN_cudaLibraryUnload, CALL_CONTEXT);
    struct library *l = handle;

    if (code)
        return call_end(code);
    if (!l->alive)
        misuse("library %p was unloaded before", handle);
    l->alive = false;
    return call_end(0);
}

int cudaLibraryGetKernel(void **ret, void *handle, const char *name)
{
    int code = call_begin(FN_cudaLibraryGetKernel, CALL_CONTEXT);
    const struct library *l = handle;

    if (code)
        return call_end(code);
    if (!l->alive)
        misuse("library %p was unloaded", handle);
    for (const struct shim_kernel *k = shim_kernels; k->name; k++)
        if (strcmp(k->name, name) == 0) {
            memcpy(ret, &k, sizeof k);
            return call_end(0);
        }
    return call_end(CUDA_E_SYMBOL_NOT_FOUND);
}

struct launch {
    const struct shim_kernel *kernel;
    uint32_t grid[3], block[3];
};

static void run_kernel(void *arg)
{
    struct launch *l = arg;
    void *args[1] = {l + 1};

    l->kernel->run(l->grid, l->block, args);
}

/* Every kernel takes one struct by value; how large it is the real runtime knows from the kernel's code. */
static size_t args_bytes(const char *name)
{
    static const struct {
        const char *name;
        size_t bytes;
    } known[] = {{GPU_GATHER, sizeof(struct gpu_gather)}, {GPU_SCATTER, sizeof(struct gpu_scatter)},
                 {GPU_SUMS, sizeof(struct gpu_sums)},     {GPU_PUT, sizeof(struct gpu_put)},
                 {GPU_PACK, sizeof(struct gpu_pack)},     {GPU_UNPACK, sizeof(struct gpu_unpack)}};

    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strcmp(known[i].name, name) == 0)
            return known[i].bytes;
    misuse("the shim does not know what kernel %s takes", name);
}

static bool is_grid(cuda_dim3 grid, cuda_dim3 block)
{
    return grid.x && grid.y && grid.z && block.x && block.y && block.z && block.x * block.y * block.z <= 1024;
}

int cudaLaunchKernel(const void *kernel, cuda_dim3 grid, cuda_dim3 block, void **args, size_t shared, void *stream)
{
    int code = call_begin(FN_cudaLaunchKernel, CALL_CONTEXT);
    const struct shim_kernel *k = kernel;

    (void)shared;
    if (!code && !is_grid(grid, block))
        code = 9; /* cudaErrorInvalidConfiguration */
    if (code)
        return call_end(code);
    size_t n = args_bytes(k->name);
    struct launch *l = malloc(sizeof *l + n);
    if (!l)
        misuse("no memory");
    *l = (struct launch){.kernel = k, .grid = {grid.x, grid.y, grid.z}, .block = {block.x, block.y, block.z}};
    memcpy(l + 1, args[0], n);
    code = stream_put(stream_of(stream), &(struct op){.run = run_kernel, .arg = l, .arg_bytes = sizeof *l + n});
    if (code)
        free(l);
    return call_end(code);
}
