/* SPDX-License-Identifier: Apache-2.0 */
/* Files of removed streams, kept for new ones: writing over extents that exist is half again as fast here as writing
 * into those that were only reserved, whose first write is also an entry in the file system's tables.
 *
 *     streams/JOB/FILE --remove, rename--> recycle/N --create, rename--> streams/JOB/FILE, with a header of its own
 *
 * Why an old record is never taken for a new one: every record repeats its file's generation, which is random, and
 * every reader compares it with the header's; the header names the file, and is durable before anything in it counts
 * (the first sync flushes both). After a power loss a file may have its new name and its old header: they do not fit.
 *
 * Why no old write arrives in a new stream: only what this process removed, while it had no stream open on it, is kept.
 * A killed process's writes may still be on their way; so whatever a new one finds here goes.
 *
 * What is open, and why nothing is kept unless it was asked for: a stream file that a killed process wrote may be
 * removed by its successor and is kept like any other, though late writes could still reach it; and the first sync of a
 * stream flushes its job's directory, not this one, so that without a journal a power loss may leave both names.
 *
 * What is kept counts as free space, and goes as soon as the device is short of it.
 */
#include "plugins/store-file/store-file.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void entry_name(char buf[32], uint64_t number)
{
    snprintf(buf, 32, "%" PRIu64, number);
}

static void forget(struct cairn_store *s, unsigned i)
{
    s->recycled_bytes -= s->recycled[i].bytes;
    s->recycled[i] = s->recycled[--s->nrecycled];
}

/* The device has its room again; one that cannot be unlinked is found at the next start. */
static void drop(struct cairn_store *s, unsigned i)
{
    char name[32];

    entry_name(name, s->recycled[i].number);
    (void)unlinkat(s->recycle_fd, name, 0);
    forget(s, i);
}

int recycle_open(struct cairn_store *s, int dir_fd, struct cairn_error *err)
{
    struct dirent *e;

    if (mkdirat(dir_fd, "recycle", 0750) < 0 && errno != EEXIST)
        return cairn_fail_errno(err, errno, "create the directory %s/recycle", s->path);
    s->recycle_fd = openat(dir_fd, "recycle", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    int fd = s->recycle_fd < 0 ? -1 : openat(dir_fd, "recycle", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (!d) {
        int sys_errno = errno;
        if (fd >= 0)
            close(fd);
        return cairn_fail_errno(err, sys_errno, "open the directory %s/recycle", s->path);
    }
    int r = 0;
    while (r == 0 && (errno = 0, e = readdir(d)))
        if (e->d_name[0] != '.' && unlinkat(s->recycle_fd, e->d_name, 0) < 0)
            r = cairn_fail_errno(err, errno, "remove %s/recycle/%s", s->path, e->d_name);
    closedir(d);
    return r;
}

void recycle_close(struct cairn_store *s)
{
    while (s->nrecycled)
        drop(s, s->nrecycled - 1);
    if (s->recycle_fd >= 0)
        close(TAKE_FD(s->recycle_fd));
}

static bool is_open(const struct cairn_store *s, const char *name)
{
    list_for_each (it, &s->open) {
        const struct cairn_store_stream *st = container_of(it, struct cairn_store_stream, link);
        if (st->name && strcmp(st->name, name) == 0)
            return true;
    }
    return false;
}

bool recycle_keep(struct cairn_store *s, const char *name)
{
    char to[32];
    struct stat sb;

    if (s->recycle_max == 0 || s->nrecycled == RECYCLE_FILES || is_open(s, name) ||
        fstatat(s->streams_fd, name, &sb, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(sb.st_mode) || sb.st_nlink != 1)
        return false;
    uint64_t bytes = (uint64_t)sb.st_blocks * 512;
    if (bytes < RECYCLE_SMALLEST || s->recycled_bytes + bytes > s->recycle_max)
        return false;
    entry_name(to, s->recycle_next);
    if (renameat(s->streams_fd, name, s->recycle_fd, to) < 0)
        return false;
    s->recycled[s->nrecycled++] = (struct recycled){s->recycle_next++, bytes};
    s->recycled_bytes += bytes;
    return true;
}

/* The smallest that holds so much, else the largest. */
static unsigned best_fit(const struct cairn_store *s, uint64_t bytes)
{
    unsigned best = 0;

    for (unsigned i = 1; i < s->nrecycled; i++) {
        uint64_t a = s->recycled[i].bytes, b = s->recycled[best].bytes;
        if (a >= bytes ? b < bytes || a < b : b < bytes && a > b)
            best = i;
    }
    return best;
}

bool recycle_take(struct cairn_store *s, const char *name, uint64_t bytes)
{
    char from[32];

    if (s->nrecycled == 0)
        return false;
    unsigned i = best_fit(s, bytes);
    entry_name(from, s->recycled[i].number);
    if (renameat2(s->recycle_fd, from, s->streams_fd, name, RENAME_NOREPLACE) < 0) {
        drop(s, i);
        return false;
    }
    forget(s, i);
    return true;
}

bool recycle_give_up(struct cairn_store *s)
{
    bool any = s->nrecycled > 0;

    while (s->nrecycled)
        drop(s, s->nrecycled - 1);
    return any;
}
