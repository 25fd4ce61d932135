/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/gpu_runtime.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

static void *open_library(void)
{
    static const char *const names[] = {"libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so"};
    const char *told = getenv("CAIRN_CUDART");
    void *library = NULL;

    if (told && *told)
        library = dlopen(told, RTLD_NOW | RTLD_GLOBAL);
    for (size_t i = 0; !library && !(told && *told) && i < sizeof names / sizeof names[0]; i++)
        library = dlopen(names[i], RTLD_NOW | RTLD_GLOBAL);
    if (!library)
        fprintf(stderr, "open the CUDA runtime: %s: name its libcudart.so in CAIRN_CUDART\n", dlerror());
    return library;
}

int gpu_runtime_open(struct gpu_runtime *ret_runtime)
{
    const struct {
        const char *name;
        void *to;
    } table[] = {
        {"cudaSetDevice", &ret_runtime->set_device},
        {"cudaMalloc", &ret_runtime->malloc},
        {"cudaFree", &ret_runtime->free},
        {"cudaMemsetAsync", &ret_runtime->memset_async},
        {"cudaMemcpy", &ret_runtime->copy},
        {"cudaMemcpyAsync", &ret_runtime->copy_async},
        {"cudaStreamCreateWithFlags", &ret_runtime->stream_create},
        {"cudaStreamDestroy", &ret_runtime->stream_destroy},
        {"cudaStreamSynchronize", &ret_runtime->stream_wait},
        {"cudaDeviceSynchronize", &ret_runtime->wait},
        {"cudaGetErrorString", &ret_runtime->text},
    };
    void *library = open_library();

    for (size_t i = 0; library && i < sizeof table / sizeof table[0]; i++) {
        void *symbol = dlsym(library, table[i].name);
        if (!symbol) {
            fprintf(stderr, "open the CUDA runtime: it has no %s\n", table[i].name);
            return -1;
        }
        *(void **)table[i].to = symbol;
    }
    if (!library)
        return -1;
    *(void **)&ret_runtime->library_load = dlsym(library, "cudaLibraryLoadData");
    *(void **)&ret_runtime->library_kernel = dlsym(library, "cudaLibraryGetKernel");
    *(void **)&ret_runtime->launch = dlsym(library, "cudaLaunchKernel");
    ret_runtime->double_image = dlsym(library, "cairn_shim_kernels_image");
    return 0;
}
