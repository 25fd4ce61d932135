/* SPDX-License-Identifier: Apache-2.0 */
#include "client/tool/files_scan.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DIRECTORY_FLAGS (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)

CAIRN_DEFINE_CLEANUP(DIR *, closedir, drop_dir)
#define _cleanup_dir_ CAIRN_CLEANUP(drop_dir)

static int64_t ns_of(struct timespec t)
{
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* A reader of a directory's names; the descriptor stays the caller's. */
static DIR *read_names(int fd)
{
    int own = openat(fd, ".", DIRECTORY_FLAGS);
    DIR *d = own >= 0 ? fdopendir(own) : NULL;

    if (!d && own >= 0)
        close(own);
    return d;
}

/* ---- scan ------------------------------------------------------------------------------------ */

/* Called for everything in a tree, a directory before what is in it. */
typedef int (*visit_fn)(void *arg, int dir, const char *name, const char *path, const struct stat *st,
                        struct cairn_error *err);

static int walk(int fd, const char *prefix, unsigned depth, visit_fn visit, void *arg, struct cairn_error *err);

static int walk_one(int fd, const char *prefix, const char *name, unsigned depth, visit_fn visit, void *arg,
                    struct cairn_error *err)
{
    _cleanup_free_ char *path = NULL;
    struct stat st;

    if (asprintf(&path, "%s%s%s", prefix, *prefix ? "/" : "", name) < 0) {
        path = NULL;
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a path");
    }
    int r = files_path_check(path, err);
    if (r == 0 && fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        r = cairn_fail_errno(err, errno, "look at %s", path);
    if (r == 0)
        r = visit(arg, fd, name, path, &st, err);
    if (r < 0 || !S_ISDIR(st.st_mode))
        return r;
    _cleanup_close_ int below = openat(fd, name, DIRECTORY_FLAGS);
    if (below < 0)
        return cairn_fail_errno(err, errno, "open the directory %s", path);
    return walk(below, path, depth + 1, visit, arg, err);
}

static int walk(int fd, const char *prefix, unsigned depth, visit_fn visit, void *arg, struct cairn_error *err)
{
    _cleanup_dir_ DIR *d = read_names(fd);
    int r = 0;

    if (!d)
        return cairn_fail_errno(err, errno, "read the directory %s", *prefix ? prefix : ".");
    if (depth > FILES_MAX_DEPTH)
        return cairn_fail(err, CAIRN_E_INVAL, "%s: more than %d directories deep", prefix, FILES_MAX_DEPTH);
    while (r == 0) {
        errno = 0;
        const struct dirent *e = readdir(d);
        if (!e)
            return errno ? cairn_fail_errno(err, errno, "read the directory %s", *prefix ? prefix : ".") : 0;
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            r = walk_one(fd, prefix, e->d_name, depth, visit, arg, err);
    }
    return r;
}

static int read_target(int dir, const char *name, const char *path, char target[FILES_MAX_PATH + 2],
                       struct cairn_error *err)
{
    ssize_t n = readlinkat(dir, name, target, FILES_MAX_PATH + 1);

    if (n < 0)
        return cairn_fail_errno(err, errno, "read the link %s", path);
    target[n] = '\0';
    return 0;
}

static int scan_one(void *arg, int dir, const char *name, const char *path, const struct stat *st,
                    struct cairn_error *err)
{
    char target[FILES_MAX_PATH + 2];
    struct files_entry e = {.path = (char *)path,
                            .target = target,
                            .mode = st->st_mode & 07777,
                            .mtime_ns = ns_of(st->st_mtim),
                            .ctime_ns = ns_of(st->st_ctim),
                            .device = st->st_dev,
                            .inode = st->st_ino};
    int r = 0;

    if (S_ISREG(st->st_mode)) {
        e.kind = FILES_FILE;
        e.size = (uint64_t)st->st_size;
    } else if (S_ISDIR(st->st_mode)) {
        e.kind = FILES_DIRECTORY;
    } else if (S_ISLNK(st->st_mode)) {
        e.kind = FILES_LINK;
        e.mode = 0;
        r = read_target(dir, name, path, target, err);
    } else {
        r = cairn_fail(err, CAIRN_E_INVAL,
                       "%s is a device, a pipe or a socket: only files, directories and links are kept", path);
    }
    return r < 0 ? r : files_add(arg, &e, err);
}

int files_scan(int root, const char *name, struct files *ret, struct cairn_error *err)
{
    struct stat st;

    files_init(ret);
    int r = fstat(root, &st) < 0 ? cairn_fail_errno(err, errno, "look at %s", name) : 0;
    if (r == 0)
        r = files_set_name(ret, name, err);
    if (r == 0) {
        ret->mode = st.st_mode & 07777;
        ret->mtime_ns = ns_of(st.st_mtim);
        r = walk(root, "", 0, scan_one, ret, err);
    }
    if (r == 0)
        r = files_finish(ret, err);
    if (r < 0)
        files_free(ret);
    return r;
}

/* Sums do not depend on the order that a directory is read in. */
static int sign_one(void *arg, int dir, const char *name, const char *path, const struct stat *st,
                    struct cairn_error *err)
{
    uint64_t facts[] = {st->st_dev,
                        st->st_ino,
                        st->st_mode,
                        (uint64_t)st->st_size,
                        (uint64_t)ns_of(st->st_mtim),
                        (uint64_t)ns_of(st->st_ctim)};
    uint64_t *sum = arg;

    (void)dir;
    (void)name;
    (void)err;
    *sum += cairn_hash64(facts, sizeof facts, cairn_hash64(path, strlen(path), 0));
    return 0;
}

int files_signature(int root, uint64_t *ret_signature, struct cairn_error *err)
{
    uint64_t sum = 0;
    int r = walk(root, "", 0, sign_one, &sum, err);

    if (r == 0)
        *ret_signature = sum;
    return r;
}

/* ---- open ------------------------------------------------------------------------------------ */

int files_open_parent(int root, const char *path, int *ret_fd, const char **ret_name, struct cairn_error *err)
{
    _cleanup_close_ int at = openat(root, ".", DIRECTORY_FLAGS);
    char name[FILES_MAX_NAME + 1];
    const char *slash;

    for (; at >= 0 && (slash = strchr(path, '/')); path = slash + 1) {
        if ((size_t)(slash - path) > FILES_MAX_NAME)
            return cairn_fail(err, CAIRN_E_INVAL, "a name of %s is too long", path);
        memcpy(name, path, (size_t)(slash - path));
        name[slash - path] = '\0';
        int below = openat(at, name, DIRECTORY_FLAGS);
        int e = errno;
        close(at);
        at = below;
        errno = e;
    }
    if (at < 0)
        return cairn_fail_errno(err, errno, "open the directory of %s", path);
    *ret_name = path;
    *ret_fd = TAKE_FD(at);
    return 0;
}

int files_open(int root, const char *path, int *ret_fd, struct stat *ret_st, struct cairn_error *err)
{
    _cleanup_close_ int parent = -1;
    const char *name;
    int r = files_open_parent(root, path, &parent, &name, err);

    if (r < 0)
        return r;
    _cleanup_close_ int fd = openat(parent, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || fstat(fd, ret_st) < 0)
        return cairn_fail_errno(err, errno, "open %s", path);
    if (!S_ISREG(ret_st->st_mode))
        return cairn_fail(err, CAIRN_E_ABORTED, "%s is no file any more", path);
    *ret_fd = TAKE_FD(fd);
    return 0;
}

bool files_is_scanned(const struct files_entry *e, const struct stat *st)
{
    return e->device == st->st_dev && e->inode == st->st_ino && e->size == (uint64_t)st->st_size &&
           e->mtime_ns == ns_of(st->st_mtim) && e->ctime_ns == ns_of(st->st_ctim);
}

/* ---- remove ---------------------------------------------------------------------------------- */

static int empty(int fd, const char *what, unsigned depth, struct cairn_error *err)
{
    _cleanup_dir_ DIR *d = read_names(fd);
    const struct dirent *e;
    int r = 0;

    if (!d)
        return cairn_fail_errno(err, errno, "read the directory %s", what);
    if (depth > 2 * FILES_MAX_DEPTH)
        return cairn_fail(err, CAIRN_E_INVAL, "%s: too many directories deep", what);
    while (r == 0 && (errno = 0, e = readdir(d))) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0 || unlinkat(fd, e->d_name, 0) == 0)
            continue;
        _cleanup_close_ int below = openat(fd, e->d_name, DIRECTORY_FLAGS);
        if (below < 0)
            return cairn_fail_errno(err, errno, "remove %s in %s", e->d_name, what);
        r = empty(below, e->d_name, depth + 1, err);
        if (r == 0 && unlinkat(fd, e->d_name, AT_REMOVEDIR) < 0)
            r = cairn_fail_errno(err, errno, "remove the directory %s in %s", e->d_name, what);
    }
    return r;
}

int files_remove(int dir, const char *name, struct cairn_error *err)
{
    _cleanup_close_ int fd = openat(dir, name, DIRECTORY_FLAGS);

    if (fd < 0)
        return errno == ENOENT ? 0 : cairn_fail_errno(err, errno, "open the directory %s", name);
    int r = empty(fd, name, 0, err);
    if (r == 0 && unlinkat(dir, name, AT_REMOVEDIR) < 0)
        r = cairn_fail_errno(err, errno, "remove the directory %s", name);
    return r;
}
