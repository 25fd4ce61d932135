/* SPDX-License-Identifier: Apache-2.0 */
/* The directory of a store: PATH/lock, PATH/version, PATH/streams/JOB/FILE. */
#include "plugins/store-file/store-file.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#define MARKER "cairn-store 1\n"
#define LOCK_TRIES                                                                                     \
    100 /* 20 ms apart: a killed process's requests may hold the lock a little longer than the process \
         */

bool name_is_safe(const char *name)
{
    size_t len = strlen(name);

    return len > 0 && len <= CAIRN_MAX_NAME && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 &&
           strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == len;
}

static const char *param(const struct cairn_param *params, const char *key)
{
    for (; params && params->key; params++)
        if (strcmp(params->key, key) == 0)
            return params->value;
    return NULL;
}

/* ---- opening --------------------------------------------------------------------------------- */

static int take_lock(struct cairn_store *s, int dir_fd, struct cairn_error *err)
{
    const struct timespec pause = {.tv_nsec = 20 * 1000000};

    s->lock_fd = openat(dir_fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0640);
    if (s->lock_fd < 0)
        return cairn_fail_errno(err, errno, "open %s/lock", s->path);
    for (int i = 0; i < LOCK_TRIES; i++) {
        if (flock(s->lock_fd, LOCK_EX | LOCK_NB) == 0)
            return 0;
        if (errno != EWOULDBLOCK && errno != EINTR)
            return cairn_fail_errno(err, errno, "lock %s/lock", s->path);
        nanosleep(&pause, NULL);
    }
    return cairn_fail(err, CAIRN_E_EXISTS, "the store %s is in use by another cairnd", s->path);
}

/* A directory with other people's files is not taken over; one of a later version is not touched. */
static int check_marker(struct cairn_store *s, int dir_fd, struct cairn_error *err)
{
    char text[64] = {0};
    _cleanup_close_ int fd = openat(dir_fd, "version", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0640);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);

    if (n < 0)
        return cairn_fail_errno(err, errno, "read %s/version", s->path);
    if (n > 0 && strcmp(text, MARKER) != 0)
        return cairn_fail(err, CAIRN_E_UNSUPPORTED, "%s/version says \"%.*s\", this cairnd knows \"cairn-store 1\"",
                          s->path, (int)strcspn(text, "\n"), text);
    if (n == 0 && (write(fd, MARKER, strlen(MARKER)) != (ssize_t)strlen(MARKER) || fsync(fd) < 0))
        return cairn_fail_errno(err, errno, "write %s/version", s->path);
    return 0;
}

/* Some file systems refuse O_DIRECT at open, some at the first write. */
static bool takes_direct(int dir_fd)
{
    _cleanup_free_ void *block = aligned_alloc(BLOCK, BLOCK);
    _cleanup_close_ int fd =
        openat(dir_fd, "probe", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW | O_DIRECT, 0640);
    bool ok;

    if (!block || fd < 0)
        return false;
    memset(block, 0, BLOCK);
    ok = pwrite(fd, block, BLOCK, 0) == BLOCK;
    unlinkat(dir_fd, "probe", 0);
    return ok;
}

static int open_directories(struct cairn_store *s, struct cairn_error *err)
{
    if (mkdir(s->path, 0750) < 0 && errno != EEXIST)
        return cairn_fail_errno(err, errno, "create the directory %s", s->path);
    _cleanup_close_ int dir_fd = open(s->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir_fd < 0)
        return cairn_fail_errno(err, errno, "open the directory %s", s->path);
    int r = take_lock(s, dir_fd, err);
    if (r == 0)
        r = check_marker(s, dir_fd, err);
    if (r < 0)
        return r;
    if (mkdirat(dir_fd, "streams", 0750) < 0 && errno != EEXIST)
        return cairn_fail_errno(err, errno, "create the directory %s/streams", s->path);
    s->streams_fd = openat(dir_fd, "streams", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (s->streams_fd < 0)
        return cairn_fail_errno(err, errno, "open the directory %s/streams", s->path);
    r = recycle_open(s, dir_fd, err);
    if (r < 0)
        return r;
    s->direct = takes_direct(dir_fd);
    if (fsync(dir_fd) < 0)
        return cairn_fail_errno(err, errno, "sync the directory %s", s->path);
    return 0;
}

static void file_close(struct cairn_store *s)
{
    recycle_close(s);
    if (s->streams_fd >= 0)
        close(s->streams_fd);
    if (s->lock_fd >= 0)
        close(s->lock_fd);
    free(s->path);
    free(s);
}

static int number_param(const struct cairn_param *params, const char *key, uint64_t missing, uint64_t *ret,
                        struct cairn_error *err)
{
    const char *text = param(params, key);
    char *end = NULL;

    *ret = text ? strtoull(text, &end, 10) : missing;
    return text && (end == text || *end) ? cairn_fail(err, CAIRN_E_INVAL, "%s = %s is no number", key, text) : 0;
}

static int file_open(const struct cairn_host *host, const struct cairn_param *params, struct cairn_store **ret_store,
                     struct cairn_error *err)
{
    const char *path = param(params, "path");
    struct cairn_store *s;

    if (!path || !path[0])
        return cairn_fail(err, CAIRN_E_INVAL, "store-file needs a directory ([peer] path)");
    s = calloc(1, sizeof *s);
    if (!s)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a store");
    s->host = *host;
    s->lock_fd = s->streams_fd = s->recycle_fd = -1;
    list_init(&s->open);
    s->dirs_made = 1;
    s->path = strdup(path);
    int r = number_param(params, "reserve_bytes", (uint64_t)64 << 20, &s->reserve_bytes, err);
    if (r == 0)
        r = number_param(params, "recycle_bytes", 0, &s->recycle_max, err);
    if (r == 0)
        r = number_param(params, "recycle_idle_s", 24 * 3600, &s->recycle_idle_s, err);
    if (r == 0)
        r = s->path ? open_directories(s, err) : cairn_fail(err, CAIRN_E_NOMEM, "copy a path");
    if (r < 0) {
        file_close(s);
        return r;
    }
    *ret_store = s;
    return 0;
}

/* ---- space, list, remove --------------------------------------------------------------------- */

/* What is promised to streams is allocated: the file system has subtracted it already. What is kept of removed ones is
 * given up when it is needed. */
int store_space_of(struct cairn_store *s, struct cairn_space *ret_space, struct cairn_error *err)
{
    struct statvfs v;

    if (fstatvfs(s->streams_fd, &v) < 0)
        return cairn_fail_errno(err, errno, "ask for the free space of %s", s->path);
    uint64_t device_free = (uint64_t)v.f_bavail * v.f_frsize;
    uint64_t free_bytes = device_free + s->recycled_bytes;
    recycle_trim(s, device_free); /* asked for often enough to be the clock of this */
    ret_space->total_bytes = (uint64_t)v.f_blocks * v.f_frsize;
    ret_space->free_bytes = free_bytes > s->reserve_bytes ? free_bytes - s->reserve_bytes : 0;
    return 0;
}

static bool is_stream_file(const char *name)
{
    size_t len = strlen(name);

    return len > 6 && strcmp(name + len - 6, ".cairn") == 0 && len < 400;
}

static int list_job(struct cairn_store *s, const char *job, int (*each)(void *arg, const char *name), void *arg,
                    struct cairn_error *err)
{
    int fd = openat(s->streams_fd, job, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW), r = 0;
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *e;

    if (!d) {
        int sys_errno = errno;
        if (fd >= 0)
            close(fd);
        return sys_errno == ENOTDIR || sys_errno == ELOOP
                   ? 0
                   : cairn_fail_errno(err, sys_errno, "list %s/streams/%s", s->path, job);
    }
    while (r == 0 && (errno = 0, e = readdir(d))) {
        char name[CAIRN_MAX_NAME + 512];
        if (!is_stream_file(e->d_name))
            continue;
        snprintf(name, sizeof name, "%s/%s", job, e->d_name);
        r = each(arg, name);
    }
    if (r == 0 && errno)
        r = cairn_fail_errno(err, errno, "list %s/streams/%s", s->path, job);
    closedir(d);
    return r;
}

static int file_list(struct cairn_store *s, int (*each)(void *arg, const char *name), void *arg,
                     struct cairn_error *err)
{
    int fd = openat(s->streams_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), r = 0;
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *e;

    if (!d) {
        r = cairn_fail_errno(err, errno, "list %s/streams", s->path);
        if (fd >= 0)
            close(fd);
        return r;
    }
    while (r == 0 && (errno = 0, e = readdir(d)))
        if (name_is_safe(e->d_name))
            r = list_job(s, e->d_name, each, arg, err);
    if (r == 0 && errno)
        r = cairn_fail_errno(err, errno, "list %s/streams", s->path);
    closedir(d);
    return r < 0 ? r : 0;
}

static int file_remove(struct cairn_store *s, const char *name, struct cairn_error *err)
{
    char job[CAIRN_MAX_NAME + 1];
    const char *slash = strchr(name, '/');
    size_t len = slash ? (size_t)(slash - name) : 0;

    if (len == 0 || len > CAIRN_MAX_NAME || strchr(slash + 1, '/') || !is_stream_file(slash + 1))
        return cairn_fail(err, CAIRN_E_INVAL, "\"%.200s\" is no stream file's name", name);
    memcpy(job, name, len);
    job[len] = 0;
    if (!name_is_safe(job))
        return cairn_fail(err, CAIRN_E_INVAL, "\"%.200s\" is no stream file's name", name);
    struct recycled file;
    bool kept = recycle_take_away(s, name, &file);
    if (!kept && unlinkat(s->streams_fd, name, 0) < 0)
        return cairn_fail_errno(err, errno, "remove %s/streams/%s", s->path, name);
    _cleanup_close_ int dir_fd = openat(s->streams_fd, job, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (dir_fd < 0 || fsync(dir_fd) < 0) {
        int sys_errno = errno;
        if (kept)
            recycle_drop(s, file.number);
        return cairn_fail_errno(err, sys_errno, "sync the directory %s/streams/%s", s->path, job);
    }
    if (kept)
        recycle_add(s, &file);
    return 0;
}

static const struct cairn_store_ops ops = {
    .size = sizeof ops,
    .open = file_open,
    .close = file_close,
    .space = store_space_of,
    .create = stream_create,
    .append = stream_append,
    .sync = stream_sync,
    .open_stream = stream_open,
    .name = stream_name,
    .read = stream_read,
    .close_stream = stream_close,
    .list = file_list,
    .remove = file_remove,
};

static const struct cairn_plugin plugin = {
    .abi = CAIRN_PLUGIN_ABI,
    .kind = CAIRN_PLUGIN_STORE,
    .size = sizeof ops,
    .name = "store-file",
    .version = "1",
    .ops = &ops,
};

CAIRN_REGISTER_PLUGIN(plugin)
