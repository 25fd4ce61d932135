/* SPDX-License-Identifier: Apache-2.0 */
#include "kernel.h"

#include <string.h>

#if defined(__x86_64__)
static int has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
           __builtin_cpu_supports("popcnt");
}

static int has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt");
}
#endif

const struct kernel *kernel_best(void)
{
#if defined(__x86_64__)
    if (has_avx512())
        return &kernel_avx512;
    if (has_avx2())
        return &kernel_avx2;
#endif
    return &kernel_portable;
}

const struct kernel *kernel_named(const char *name)
{
#if defined(__x86_64__)
    if (strcmp(name, "avx512") == 0)
        return has_avx512() ? &kernel_avx512 : NULL;
    if (strcmp(name, "avx2") == 0)
        return has_avx2() ? &kernel_avx2 : NULL;
#endif
    return strcmp(name, "portable") == 0 ? &kernel_portable : NULL;
}
