/* SPDX-License-Identifier: Apache-2.0 */
/* The little of the CUDA runtime that the measurement needs beside the plugin: memory, and copies to compare with.
 * Opened at run time, the same library that the plugin will find: $CAIRN_CUDART, or the first of the versions that
 * there is. */
#ifndef CAIRN_BENCH_GPU_RUNTIME_H
#define CAIRN_BENCH_GPU_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

enum { GPU_TO_DEVICE = 1, GPU_TO_HOST = 2, GPU_WITHIN = 3 }; /* enum cudaMemcpyKind */

struct gpu_dim { /* dim3 */
    unsigned x, y, z;
};

/* Each returns a cudaError_t. */
struct gpu_runtime {
    int (*set_device)(int);
    int (*malloc)(void **, size_t);
    int (*free)(void *);
    int (*memset_async)(void *, int, size_t, void *stream);
    int (*copy)(void *, const void *, size_t, int);
    int (*copy_async)(void *, const void *, size_t, int, void *stream);
    int (*stream_create)(void **stream, unsigned flags);
    int (*stream_destroy)(void *stream);
    int (*stream_wait)(void *stream);
    int (*wait)(void);
    const char *(*text)(int);
    /* Of version 12.8 and later; NULL without. */
    int (*library_load)(void **library, const void *code, void **, void **, unsigned, void **, void **, unsigned);
    int (*library_kernel)(void **kernel, void *library, const char *name);
    int (*launch)(const void *kernel, struct gpu_dim grid, struct gpu_dim block, void **args, size_t shared,
                  void *stream);
    const void *double_image; /* the double of the runtime brings kernels of its own; NULL in the real one */
};

/* 0, or -1 with what was tried on stderr. Never closed: the runtime has threads. */
int gpu_runtime_open(struct gpu_runtime *ret_runtime);

#endif
