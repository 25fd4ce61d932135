/* SPDX-License-Identifier: Apache-2.0 */
#include "client/device_plugin.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/base/plugin.h"

#define MAX_PATH 4096
#define MAX_LOOKED 1024 /* bytes of what a message says of the places that were looked at; the rest is cut */

/* ---- where ----------------------------------------------------------------------------------- */

/* Behind the directory of libcairn itself. */
static const char *const beside[] = {"/cairn", "/../plugins", ""};

/* Without the last name and its slash; false when there is none. */
static bool own_directory(char *ret_dir, size_t room)
{
    Dl_info own;

    if (!dladdr((const void *)beside, &own) || !own.dli_fname)
        return false;
    const char *slash = strrchr(own.dli_fname, '/');
    if (!slash || (size_t)(slash - own.dli_fname) >= room)
        return false;
    memcpy(ret_dir, own.dli_fname, (size_t)(slash - own.dli_fname));
    ret_dir[slash - own.dli_fname] = '\0';
    return true;
}

struct found {
    char path[MAX_PATH];
    char looked[MAX_LOOKED]; /* at these directories, for the message */
};

/* True when the file is there. */
static bool look(struct found *f, const char *dir, const char *tail, const char *name)
{
    size_t used = strlen(f->looked);

    (void)snprintf(f->looked + used, sizeof(f->looked) - used, "%s%s%s", used ? ", " : "", dir, tail);
    int n = snprintf(f->path, sizeof(f->path), "%s%s/cairn-%s.so", dir, tail, name);
    return n > 0 && (size_t)n < sizeof(f->path) && access(f->path, F_OK) == 0;
}

static bool find(struct found *f, const char *given, const char *name)
{
    const char *dir = given ? given : getenv("CAIRN_PLUGIN_PATH");
    char own[MAX_PATH];

    if (dir && *dir)
        return look(f, dir, "", name);
    if (!own_directory(own, sizeof(own)))
        return false;
    for (size_t i = 0; i < sizeof(beside) / sizeof(beside[0]); i++)
        if (look(f, own, beside[i], name))
            return true;
    return false;
}

/* ---- what it is ------------------------------------------------------------------------------ */

static bool is_complete(const struct cairn_device_ops *o)
{
    return o->open && o->close && o->describe && o->check && o->pin && o->unpin && o->plan && o->plan_free && o->save &&
           o->fence && o->progress && o->copy_free && o->loader && o->loader_free && o->load && o->loaded;
}

static int take_table(void *dso, const char *name, struct cairn_device_ops *ret_ops, struct cairn_error *err)
{
    const struct cairn_plugin *(*entry)(void);
    struct cairn_device_ops ops;

    *(void **)&entry = dlsym(dso, "cairn_plugin_entry");
    if (!entry)
        return cairn_fail(err, CAIRN_E_UNSUPPORTED, "it does not export cairn_plugin_entry");
    int r = cairn_plugin_take(entry(), name, CAIRN_PLUGIN_DEVICE, sizeof(ops), &ops, sizeof(ops), err);
    if (r == 0 && !is_complete(&ops))
        r = cairn_fail(err, CAIRN_E_UNSUPPORTED, "its table lacks a function");
    if (r == 0)
        *ret_ops = ops;
    return r;
}

int device_plugin_load(const char *dir, const char *name, struct cairn_device_ops *ret_ops, void **ret_dso,
                       struct cairn_error *err)
{
    _cleanup_free_ struct found *f = calloc(1, sizeof(*f));

    if (!f)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a plugin's path");
    if (!find(f, dir, name))
        return cairn_fail(err, CAIRN_E_UNSUPPORTED,
                          "there is no cairn-%s.so (looked in %.300s): install the plugin, or set CAIRN_PLUGIN_PATH",
                          name, f->looked[0] ? f->looked : "no directory");
    void *dso = dlopen(f->path, RTLD_NOW | RTLD_LOCAL);
    if (!dso)
        return cairn_fail(err, CAIRN_E_UNSUPPORTED, "load the plugin: %.400s", dlerror());
    int r = take_table(dso, name, ret_ops, err);
    if (r < 0) {
        dlclose(dso);
        return cairn_wrap(err, r, "plugin %.200s", f->path);
    }
    *ret_dso = dso;
    return 0;
}

void device_plugin_unload(void *dso)
{
    if (dso)
        dlclose(dso);
}
