/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/io/door_internal.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/base/plugin.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Of a tree that was unpacked anywhere: lib/cairn, where this program is in bin. NULL when there is none. */
static const char *beside_program(char *path, size_t room)
{
    static const char below[] = "/../lib/cairn";
    ssize_t n = readlink("/proc/self/exe", path, room);

    if (n < 0 || (size_t)n + sizeof below > room)
        return NULL;
    path[n] = 0;
    char *name = strrchr(path, '/');
    if (!name)
        return NULL;
    memcpy(name, below, sizeof below);
    return access(path, F_OK) == 0 ? path : NULL;
}

int plugins_new(const char *dir, struct plugins **ret_plugins, struct cairn_error *err)
{
    char beside[4096];
    struct plugins *p = calloc(1, sizeof *p);

    if (!dir)
        dir = getenv("CAIRN_PLUGIN_DIR");
    if (!dir)
        dir = beside_program(beside, sizeof beside);
    if (!dir)
        dir = CAIRN_PLUGIN_DIR;
    if (p)
        p->dir = strdup(dir);
    if (!p || !p->dir) {
        free(p);
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the plugin table");
    }
    list_init(&p->codecs);
    *ret_plugins = p;
    return 0;
}

void plugins_free(struct plugins *p)
{
    if (!p)
        return;
    list_for_each_safe (it, &p->codecs) {
        struct codec *c = container_of(it, struct codec, link);
        door_unload(c->dso);
        free(c);
    }
    free(p->dir);
    free(p);
}

void door_unload(void *dso)
{
    if (dso)
        dlclose(dso);
}

static int check_name(const char *name, struct cairn_error *err)
{
    size_t len = strlen(name);

    if (len == 0 || len > 40 || strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != len)
        return cairn_fail(err, CAIRN_E_INVAL, "plugin name \"%.40s\": 1 to 40 of [a-z0-9-] are wanted", name);
    return 0;
}

int door_load(struct plugins *p, const char *name, int kind, void *ops, size_t size, size_t min, void **ret_dso,
              struct cairn_error *err)
{
    _cleanup_free_ char *path = NULL;
    const struct cairn_plugin *(*entry)(void);
    int r = check_name(name, err);

    if (r < 0)
        return r;
    if (asprintf(&path, "%s/cairn-%s.so", p->dir, name) < 0) {
        path = NULL;
        return cairn_fail(err, CAIRN_E_NOMEM, "name the file of plugin %s", name);
    }
    void *dso = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!dso)
        return cairn_fail(err, CAIRN_E_NOT_FOUND, "load plugin %s: %s", name, dlerror());
    *(void **)&entry = dlsym(dso, "cairn_plugin_entry");
    const struct cairn_plugin *e = entry ? entry() : NULL;
    r = entry ? cairn_plugin_take(e, name, kind, min, ops, size, err)
              : cairn_fail(err, CAIRN_E_UNSUPPORTED, "it does not export cairn_plugin_entry");
    if (r < 0) {
        dlclose(dso);
        return cairn_wrap(err, r, "plugin %s", path);
    }
    *ret_dso = dso;
    return 0;
}
