/* SPDX-License-Identifier: Apache-2.0 */
/* The plugin and the runtime beneath it, by their files. */
#include "tests/conformance/device_world.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void leave(const char *why)
{
    fprintf(stderr, "skipped: %s\n", why);
    exit(77);
}

static bool find(void *library, const char *name, void *ret)
{
    void *p = dlsym(library, name);

    memcpy(ret, &p, sizeof p);
    return p != NULL;
}

void rig_open(struct rig *rig, const char *plugin)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    const struct cairn_plugin *(*entry)(void);
    void *library = dlopen(plugin, RTLD_NOW | RTLD_LOCAL);
    int n = 0;

    *rig = (struct rig){0};
    if (!library || !find(library, "cairn_plugin_entry", &entry)) {
        fprintf(stderr, "%s is no plugin: %s\n", plugin, dlerror());
        exit(1);
    }
    rig->ops = entry()->ops;
    if (cuda_load(&rig->cuda, &err) < 0)
        leave(err.message);
    if (rig->cuda.device_count(&n) != CUDA_OK || n == 0)
        leave("no CUDA device");
    void *r = rig->cuda.runtime;
    rig->shim = find(r, "shim_hold", &rig->hold) && find(r, "shim_release", &rig->release) &&
                find(r, "shim_hold_to_host", &rig->hold_to_host) && find(r, "shim_delay", &rig->delay) &&
                find(r, "shim_work", &rig->work) && find(r, "shim_drain", &rig->drain) &&
                find(r, "shim_fail", &rig->fail_call) && find(r, "shim_fail_work", &rig->fail_work) &&
                find(r, "shim_reset", &rig->reset) && find(r, "shim_calls", &rig->calls) &&
                find(r, "shim_left", &rig->left) && find(r, "shim_unpinned_copies", &rig->unpinned_copies) &&
                find(r, "shim_context_active", &rig->context_active) && find(r, "shim_memory", &rig->memory);
}

bool rig_find(const struct rig *rig, const char *name, void *ret)
{
    return find(rig->cuda.runtime, name, ret);
}

void rig_close(struct rig *rig)
{
    cuda_unload(&rig->cuda);
}
