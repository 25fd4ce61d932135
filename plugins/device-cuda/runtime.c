/* SPDX-License-Identifier: Apache-2.0 */
/* Finding the CUDA runtime. Whoever trains has one in the process already, and two runtimes in one process are best
 * avoided (they share contexts, but not their threads' state): so that one comes first, whatever its version. */
#include "plugins/device-cuda/runtime.h"

#include "core/base/error.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {"libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0"};
#define NNAMES (sizeof names / sizeof names[0])

/* It stays when we close it: threads that called it run code of its own when they end. */
#define HOW (RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)

struct symbol {
    const char *name;
    size_t at; /* of its pointer within struct cuda */
};
#define SYMBOL(field_, symbol_, result_, parameters_) {#symbol_, offsetof(struct cuda, field_)},
static const struct symbol required[] = {CUDA_REQUIRED(SYMBOL)};
static const struct symbol times[] = {CUDA_TIMES(SYMBOL)};
static const struct symbol optional[] = {CUDA_OPTIONAL(SYMBOL)};
static const struct symbol batch[] = {CUDA_BATCH(SYMBOL)}, batch_12[] = {CUDA_BATCH_12(SYMBOL)};
static const struct symbol driver[] = {CUDA_DRIVER(SYMBOL)};
#define COUNT(array_) (sizeof(array_) / sizeof(array_)[0])

/* Fills all of them or none; ret_missing is the first that is not there. */
static bool fill(struct cuda *cuda, void *library, const struct symbol *symbols, size_t n, const char **ret_missing)
{
    for (size_t i = 0; i < n; i++) {
        void *found = dlsym(library, symbols[i].name);
        if (!found) {
            *ret_missing = symbols[i].name;
            for (size_t k = 0; k < i; k++)
                memset((char *)cuda + symbols[k].at, 0, sizeof found);
            return false;
        }
        memcpy((char *)cuda + symbols[i].at, &found, sizeof found);
    }
    return true;
}

static void *open_any(struct cuda *cuda)
{
    for (int loaded = 1; loaded >= 0; loaded--)
        for (size_t i = 0; i < NNAMES; i++) {
            void *library = dlopen(names[i], HOW | (loaded ? RTLD_NOLOAD : 0));
            if (library) {
                snprintf(cuda->path, sizeof cuda->path, "%s", names[i]);
                return library;
            }
        }
    return NULL;
}

static int open_runtime(struct cuda *cuda, struct cairn_error *err)
{
    const char *given = getenv("CAIRN_CUDART");

    if (given && *given) {
        snprintf(cuda->path, sizeof cuda->path, "%s", given);
        cuda->runtime = dlopen(given, HOW);
        if (!cuda->runtime)
            return cairn_fail(err, CAIRN_E_UNSUPPORTED,
                              "no CUDA runtime: $CAIRN_CUDART: %s; unset it or name a libcudart.so", dlerror());
        return 0;
    }
    cuda->runtime = open_any(cuda);
    if (!cuda->runtime)
        return cairn_fail(
            err, CAIRN_E_UNSUPPORTED,
            "no CUDA runtime: tried %s, %s and %s, in this process and where the loader looks; install one "
            "(package cuda-cudart-12-8 or newer, or pip's nvidia-cuda-runtime), import torch first, or "
            "name its file in $CAIRN_CUDART",
            names[0], names[1], names[2]);
    return 0;
}

int cuda_load(struct cuda *ret_cuda, struct cairn_error *err)
{
    struct cuda cuda = {0};
    const char *missing = NULL;
    int r = open_runtime(&cuda, err);

    if (r < 0)
        return r;
    if (!fill(&cuda, cuda.runtime, required, COUNT(required), &missing)) {
        cairn_fail(err, CAIRN_E_UNSUPPORTED, "CUDA runtime %s has no %s: version 11 or newer is needed", cuda.path,
                   missing);
        cuda_unload(&cuda);
        return CAIRN_E_UNSUPPORTED;
    }
    (void)fill(&cuda, cuda.runtime, times, COUNT(times), &missing);
    (void)fill(&cuda, cuda.runtime, optional, COUNT(optional), &missing);
    int version = 0;
    if (cuda.runtime_version(&version) == CUDA_OK && version >= 12080)
        (void)fill(&cuda, cuda.runtime, version >= 13000 ? batch : batch_12, 1, &missing);
    cuda.kernels = dlsym(cuda.runtime, "cairn_shim_kernels_image");
    *ret_cuda = cuda;
    return 0;
}

/* The tests' runtime has the driver's functions itself; the real one has loaded the driver by then. */
void cuda_load_driver(struct cuda *cuda)
{
    const char *missing = NULL;

    if (cuda->driver || fill(cuda, cuda->runtime, driver, COUNT(driver), &missing))
        return;
    cuda->driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
    if (cuda->driver)
        (void)fill(cuda, cuda->driver, driver, COUNT(driver), &missing);
}

void cuda_unload(struct cuda *cuda)
{
    if (cuda->driver)
        dlclose(cuda->driver);
    if (cuda->runtime)
        dlclose(cuda->runtime);
    *cuda = (struct cuda){0};
}
