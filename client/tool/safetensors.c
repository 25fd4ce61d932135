/* SPDX-License-Identifier: Apache-2.0 */
#include "client/tool/safetensors.h"

#include "core/base/bytes.h"
#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_HEADER 100000000 /* readers refuse more */

int safetensors_new(const char *path, struct safetensors *ret, struct cairn_error *err)
{
    struct safetensors s = {.fd = -1};

    s.path = strdup(path);
    s.header = json_object();
    s.metadata = json_object();
    if (!s.path || asprintf(&s.temporary, "%s.part", path) < 0 ||
        json_object_set_new(s.header, "__metadata__", s.metadata) < 0) {
        safetensors_free(&s);
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the header of %s", path);
    }
    *ret = s;
    return 0;
}

void safetensors_note(struct safetensors *s, const char *key, const char *value)
{
    json_object_set_new(s->metadata, key, json_string(value));
}

static const char *type_name(int dtype)
{
    return dtype == CAIRN_BYTES ? "U8" : cairn_dtype_name(dtype);
}

int safetensors_add(struct safetensors *s, const char *name, int dtype, uint32_t ndim, const uint64_t *shape,
                    uint64_t bytes, uint64_t *ret_at, struct cairn_error *err)
{
    json_t *t = json_object(), *dims = json_array(), *offsets = json_array();

    if (json_object_get(s->header, name)) {
        json_decref(t);
        json_decref(dims);
        json_decref(offsets);
        return cairn_fail(err, CAIRN_E_EXISTS, "%s: two tensors are called %s", s->path, name);
    }
    for (uint32_t i = 0; i < ndim; i++)
        json_array_append_new(dims, json_integer((json_int_t)shape[i]));
    json_array_append_new(offsets, json_integer((json_int_t)s->bytes));
    json_array_append_new(offsets, json_integer((json_int_t)(s->bytes + bytes)));
    json_object_set_new(t, "dtype", json_string(type_name(dtype)));
    json_object_set_new(t, "shape", dims);
    json_object_set_new(t, "data_offsets", offsets);
    if (json_object_set_new(s->header, name, t) < 0)
        return cairn_fail(err, CAIRN_E_NOMEM, "note tensor %s", name);
    *ret_at = s->bytes;
    s->bytes += bytes;
    return 0;
}

static int map_file(struct safetensors *s, const char *header, size_t len, struct cairn_error *err)
{
    size_t padded = round_up_u64(len, 8);

    s->map_len = 8 + padded + s->bytes;
    if (ftruncate(s->fd, (off_t)s->map_len) < 0 || (errno = posix_fallocate(s->fd, 0, (off_t)s->map_len)) != 0)
        return cairn_fail_errno(err, errno, "make room for %zu bytes in %s", s->map_len, s->temporary);
    void *map = mmap(NULL, s->map_len, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, 0);
    if (map == MAP_FAILED)
        return cairn_fail_errno(err, errno, "map %s", s->temporary);
    s->map = map;
    for (int i = 0; i < 8; i++)
        s->map[i] = (char)(padded >> 8 * i);
    memcpy(s->map + 8, header, len);
    memset(s->map + 8 + len, ' ', padded - len);
    s->data = s->map + 8 + padded;
    return 0;
}

/* Nobody else writes it, and it is what has the name: one that another restore has finished behind our opening it is
 * that one's result. */
static int lock_temporary(const struct safetensors *s, int *ret_fd, struct cairn_error *err)
{
    _cleanup_close_ int fd = open(s->temporary, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644);
    struct stat opened, named;

    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0) /* locked: another restore is writing it */
        return cairn_fail_errno(err, errno, "create %s", s->temporary);
    if (fstat(fd, &opened) < 0 || lstat(s->temporary, &named) < 0 || opened.st_dev != named.st_dev ||
        opened.st_ino != named.st_ino)
        return cairn_fail(err, CAIRN_E_EXISTS, "another restore is writing %s", s->temporary);
    *ret_fd = TAKE_FD(fd);
    return 0;
}

int safetensors_map(struct safetensors *s, bool overwrite, struct cairn_error *err)
{
    _cleanup_free_ char *header = json_dumps(s->header, JSON_COMPACT);

    if (!header || strlen(header) > MAX_HEADER)
        return cairn_fail(err, CAIRN_E_TOO_LARGE, "the header of %s has too many tensors for the format", s->path);
    if (!overwrite && access(s->path, F_OK) == 0)
        return cairn_fail(err, CAIRN_E_EXISTS, "%s is there already (--force overwrites it)", s->path);
    int r = lock_temporary(s, &s->fd, err);
    if (r < 0)
        return r;
    int fd = s->fd;
    if (ftruncate(fd, 0) < 0) /* what a killed restore left */
        return cairn_fail_errno(err, errno, "truncate %s", s->temporary);
    return map_file(s, header, strlen(header), err);
}

static int sync_directory(const char *path, struct cairn_error *err)
{
    _cleanup_free_ char *copy = strdup(path);
    _cleanup_close_ int fd = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

    if (fd < 0 || fsync(fd) < 0)
        return cairn_fail_errno(err, errno, "sync the directory of %s", path);
    return 0;
}

int safetensors_finish(struct safetensors *s, struct cairn_error *err)
{
    if (msync(s->map, s->map_len, MS_SYNC) < 0 || fsync(s->fd) < 0)
        return cairn_fail_errno(err, errno, "sync %s", s->temporary);
    if (rename(s->temporary, s->path) < 0)
        return cairn_fail_errno(err, errno, "rename %s to %s", s->temporary, s->path);
    free(TAKE_PTR(s->temporary));
    return sync_directory(s->path, err);
}

void safetensors_free(struct safetensors *s)
{
    if (s->map)
        munmap(s->map, s->map_len);
    if (s->fd >= 0) {
        close(s->fd);
        if (s->temporary)
            unlink(s->temporary);
    }
    json_decref(s->header);
    free(s->temporary);
    free(s->path);
    *s = (struct safetensors){.fd = -1};
}

static int write_all(int fd, const char *path, const char *text, struct cairn_error *err)
{
    for (size_t left = strlen(text); left > 0;) {
        ssize_t n = write(fd, text, left);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return cairn_fail_errno(err, errno, "write %s", path);
        text += n;
        left -= (size_t)n;
    }
    return 0;
}

int safetensors_write_text(const char *path, const char *text, struct cairn_error *err)
{
    _cleanup_free_ char *temporary = NULL;

    if (asprintf(&temporary, "%s.part", path) < 0) {
        temporary = NULL;
        return cairn_fail(err, CAIRN_E_NOMEM, "name a file");
    }
    (void)unlink(temporary); /* what a killed restore left, or somebody's link to elsewhere */
    _cleanup_close_ int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd < 0)
        return cairn_fail_errno(err, errno, "create %s", temporary);
    int r = write_all(fd, temporary, text, err);
    if (r == 0)
        r = write_all(fd, temporary, "\n", err);
    if (r == 0 && fsync(fd) < 0)
        r = cairn_fail_errno(err, errno, "sync %s", temporary);
    if (r == 0 && rename(temporary, path) < 0)
        r = cairn_fail_errno(err, errno, "rename %s to %s", temporary, path);
    if (r == 0)
        return sync_directory(path, err);
    unlink(temporary);
    return r;
}
