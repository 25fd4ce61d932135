/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/io/door_internal.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/base/plugin.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Of a tree that was unpacked anywhere: lib/cairn, where this program is in bin. */
static char *beside_program(void)
{
    char path[4096], *beside = NULL;
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);

    if (n < 0)
        return NULL;
    path[n] = 0;
    char *name = strrchr(path, '/');
    if (!name || asprintf(&beside, "%.*s/../lib/cairn", (int)(name - path), path) < 0)
        return NULL;
    return beside;
}

int plugins_new(const char *dir, struct plugins **ret_plugins, struct cairn_error *err)
{
    struct plugins *p = calloc(1, sizeof *p);
    char *beside = NULL;

    if (!dir)
        dir = getenv("CAIRN_PLUGIN_DIR");
    if (!dir)
        beside = beside_program();
    if (p && beside)
        p->dirs[p->ndirs++] = beside;
    if (p)
        p->dirs[p->ndirs] = strdup(dir ? dir : CAIRN_PLUGIN_DIR);
    if (!p || !p->dirs[p->ndirs++]) {
        free(beside);
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
    for (unsigned i = 0; i < p->ndirs; i++)
        free(p->dirs[i]);
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

/* The first directory that has its file; a directory without it hides none. */
static int find_file(const struct plugins *p, const char *name, char **ret_path, struct cairn_error *err)
{
    for (unsigned i = 0; i < p->ndirs; i++) {
        char *path;
        if (asprintf(&path, "%s/cairn-%s.so", p->dirs[i], name) < 0)
            return cairn_fail(err, CAIRN_E_NOMEM, "name the file of plugin %s", name);
        if (access(path, F_OK) == 0) {
            *ret_path = path;
            return 0;
        }
        free(path);
    }
    return cairn_fail(err, CAIRN_E_NOT_FOUND,
                      "load plugin %s: there is no cairn-%s.so in %s%s%s; install it, or name its directory: [daemon] "
                      "plugins",
                      name, name, p->dirs[0], p->ndirs > 1 ? " or " : "", p->ndirs > 1 ? p->dirs[1] : "");
}

int door_load(struct plugins *p, const char *name, int kind, void *ops, size_t size, size_t min, void **ret_dso,
              struct cairn_error *err)
{
    _cleanup_free_ char *path = NULL;
    const struct cairn_plugin *(*entry)(void);
    int r = check_name(name, err);

    if (r == 0)
        r = find_file(p, name, &path, err);
    if (r < 0)
        return r;
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
