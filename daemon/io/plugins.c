/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/io/door_internal.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char *const kinds[] = {"no kind", "codec", "store", "meta", "device"};

static const char *kind_name(uint32_t kind)
{
    return kind < sizeof kinds / sizeof kinds[0] ? kinds[kind] : "an unknown kind";
}

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

static int check_entry(const struct cairn_plugin *e, const char *name, int kind, size_t min, struct cairn_error *err)
{
    size_t ops_size;

    if (!e)
        return cairn_fail(err, CAIRN_E_UNSUPPORTED, "its entry returned nothing");
    if (e->abi != CAIRN_PLUGIN_ABI)
        return cairn_fail(err, CAIRN_E_UNSUPPORTED, "it was built for plugin ABI %u, this cairnd has %u", e->abi,
                          CAIRN_PLUGIN_ABI);
    if (e->kind != (uint32_t)kind)
        return cairn_fail(err, CAIRN_E_UNSUPPORTED, "it is a %s plugin, a %s plugin is wanted", kind_name(e->kind),
                          kind_name((uint32_t)kind));
    if (!e->name || strcmp(e->name, name) != 0)
        return cairn_fail(err, CAIRN_E_UNSUPPORTED, "it calls itself \"%.60s\"", e->name ? e->name : "(null)");
    if (!e->ops)
        return cairn_fail(err, CAIRN_E_UNSUPPORTED, "it has no table of functions");
    memcpy(&ops_size, e->ops, sizeof ops_size); /* every table begins with its size */
    if (e->size != ops_size || ops_size < min || ops_size > 1 << 16)
        return cairn_fail(err, CAIRN_E_UNSUPPORTED, "its table has %zu bytes (announced %zu), at least %zu are wanted",
                          ops_size, e->size, min);
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
    r = entry ? check_entry(e, name, kind, min, err)
              : cairn_fail(err, CAIRN_E_UNSUPPORTED, "it does not export cairn_plugin_entry");
    if (r < 0) {
        dlclose(dso);
        return cairn_wrap(err, r, "plugin %s", path);
    }
    memset(ops, 0, size);
    memcpy(ops, e->ops, e->size < size ? e->size : size);
    *ret_dso = dso;
    return 0;
}
