/* SPDX-License-Identifier: Apache-2.0 */
/* Files of removed streams, kept for new ones: writing over extents that exist is half again as fast here as writing
 * into those that were only reserved, whose first write is also an entry in the file system's tables.
 *
 *     streams/JOB/FILE --remove: rename, sync of JOB--> recycle/N --create--> header, records, in recycle/N
 *                                                           |
 *                 streams/JOB/FILE, durable  <--first sync: data, rename, sync of JOB and of recycle
 *
 * Why no old write arrives in a new stream: only what this process wrote itself and closed, with nothing in flight and
 * no failure, is kept. What it found at its start may still be written by its killed predecessor: it is unlinked.
 *
 * Why no live name shows another stream's bytes after a power loss: a file is handed out when the removal of its old
 * name is durable, and has its new name when its new header is. Renames that were half there when the power went (on a
 * file system without a journal) leave one file under two names: one that is found here at the start and that a
 * stream's name shows too is left alone.
 *
 * Why an old record is never taken for a new one: every record repeats its file's generation, which is random, and
 * every reader compares it with the header's. What is left of the old records ends with a blank block
 * (CAIRN_STORE_BLANK), so that whoever finds bytes that are nobody's knows them for old ones.
 *
 * What is kept counts as free space; it is never more than a quarter of that, and goes when the device gets short, or
 * when nothing wanted it for a day. */
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
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#define SHARE 4 /* of the free space, at most one part in so many is kept */

static void entry_name(char buf[32], uint64_t number)
{
    snprintf(buf, 32, "%" PRIu64, number);
}

static void forget(struct cairn_store *s, unsigned i)
{
    s->recycled_bytes -= s->recycled[i].bytes;
    s->recycled[i] = s->recycled[--s->nrecycled];
}

/* One that cannot be unlinked is found at the next start. */
void recycle_drop(struct cairn_store *s, uint64_t number)
{
    char name[32];

    entry_name(name, number);
    (void)unlinkat(s->recycle_fd, name, 0);
}

static unsigned oldest(const struct cairn_store *s)
{
    unsigned o = 0;

    for (unsigned i = 1; i < s->nrecycled; i++)
        if (s->recycled[i].number < s->recycled[o].number)
            o = i;
    return o;
}

bool recycle_give_back(struct cairn_store *s)
{
    if (s->nrecycled == 0)
        return false;
    unsigned o = oldest(s);
    recycle_drop(s, s->recycled[o].number);
    forget(s, o);
    return true;
}

void recycle_stop(struct cairn_store *s)
{
    s->recycle_max = 0;
    while (recycle_give_back(s))
        ;
}

/* ---- what a process before this one left ----------------------------------------------------- */

struct leftovers {
    struct leftover {
        char name[256];
        ino_t inode;
        bool shown; /* by a stream's name */
    } * v;
    size_t n;
};

static int each_entry(int at_fd, const char *name, int (*each)(void *arg, int dir_fd, const struct dirent *e),
                      void *arg)
{
    int fd = openat(at_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW), r = 0;
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *e;

    if (!d) {
        r = -errno;
        if (fd >= 0)
            close(fd);
        return r;
    }
    while (r == 0 && (errno = 0, e = readdir(d)))
        if (e->d_name[0] != '.')
            r = each(arg, fd, e);
    if (r == 0)
        r = -errno;
    closedir(d);
    return r;
}

static int note_leftover(void *arg, int dir_fd, const struct dirent *e)
{
    struct leftovers *l = arg;
    struct leftover *more = realloc(l->v, (l->n + 1) * sizeof *more);

    (void)dir_fd;
    if (!more)
        return -ENOMEM;
    l->v = more;
    l->v[l->n] = (struct leftover){.inode = e->d_ino};
    snprintf(l->v[l->n].name, sizeof l->v[l->n].name, "%s", e->d_name);
    l->n++;
    return 0;
}

static int note_shown(void *arg, int dir_fd, const struct dirent *e)
{
    struct leftovers *l = arg;

    (void)dir_fd;
    for (size_t i = 0; i < l->n; i++)
        l->v[i].shown |= l->v[i].inode == e->d_ino;
    return 0;
}

static int note_job(void *arg, int dir_fd, const struct dirent *e)
{
    int r = each_entry(dir_fd, e->d_name, note_shown, arg);

    return r == -ENOTDIR || r == -ELOOP ? 0 : r;
}

static int unlink_leftovers(struct cairn_store *s, struct cairn_error *err)
{
    struct leftovers l = {0};
    int r = each_entry(s->recycle_fd, ".", note_leftover, &l);

    if (r == 0 && l.n)
        r = each_entry(s->streams_fd, ".", note_job, &l);
    if (r < 0)
        cairn_fail_errno(err, -r, "look through %s/recycle and %s/streams", s->path, s->path);
    for (size_t i = 0; r == 0 && i < l.n; i++)
        if (!l.v[i].shown && unlinkat(s->recycle_fd, l.v[i].name, 0) < 0)
            r = cairn_fail_errno(err, errno, "remove %s/recycle/%s", s->path, l.v[i].name);
    free(l.v);
    return r;
}

int recycle_open(struct cairn_store *s, int dir_fd, struct cairn_error *err)
{
    if (mkdirat(dir_fd, "recycle", 0750) < 0 && errno != EEXIST)
        return cairn_fail_errno(err, errno, "create the directory %s/recycle", s->path);
    s->recycle_fd = openat(dir_fd, "recycle", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (s->recycle_fd < 0)
        return cairn_fail_errno(err, errno, "open the directory %s/recycle", s->path);
    return unlink_leftovers(s, err);
}

void recycle_close(struct cairn_store *s)
{
    recycle_stop(s);
    if (s->recycle_fd >= 0)
        close(TAKE_FD(s->recycle_fd));
}

/* ---- what this process wrote ----------------------------------------------------------------- */

void recycle_wrote(struct cairn_store *s, uint64_t generation)
{
    s->wrote[s->nwrote++ % RECYCLE_WROTE] = generation;
}

/* The generation is the end of the name: JOB/STEP.INC.NODE.GENERATION.cairn */
static bool is_ours(const struct cairn_store *s, const char *name)
{
    size_t len = strlen(name), n = s->nwrote < RECYCLE_WROTE ? s->nwrote : RECYCLE_WROTE;
    uint64_t generation = 0;

    if (len < 23 || sscanf(name + len - 22, "%16" SCNx64 ".cairn", &generation) != 1)
        return false;
    for (size_t i = 0; i < n; i++)
        if (s->wrote[i] == generation)
            return true;
    return false;
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

/* ---- keeping --------------------------------------------------------------------------------- */

static uint64_t now_s(void)
{
    struct timespec t = {0};

    clock_gettime(CLOCK_BOOTTIME, &t);
    return (uint64_t)t.tv_sec;
}

/* The bound with so much free on the device, what is kept included. */
static uint64_t bound(const struct cairn_store *s, uint64_t free_bytes)
{
    return s->recycle_max < free_bytes / SHARE ? s->recycle_max : free_bytes / SHARE;
}

void recycle_trim(struct cairn_store *s, uint64_t device_free)
{
    uint64_t most = bound(s, device_free + s->recycled_bytes), now = now_s();

    while (s->nrecycled && (s->recycled_bytes > most || now - s->recycled[oldest(s)].since_s >= s->recycle_idle_s))
        recycle_give_back(s);
}

bool recycle_take_away(struct cairn_store *s, const char *name, struct recycled *ret_file)
{
    char to[32];
    struct stat sb;
    struct statvfs v;

    if (s->recycle_max == 0 || !is_ours(s, name) || is_open(s, name) ||
        fstatat(s->streams_fd, name, &sb, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(sb.st_mode) || sb.st_nlink != 1 ||
        fstatvfs(s->streams_fd, &v) < 0)
        return false;
    struct recycled f = {.number = s->recycle_next++, .bytes = (uint64_t)sb.st_blocks * 512, .since_s = now_s()};
    uint64_t most = bound(s, (uint64_t)v.f_bavail * v.f_frsize + s->recycled_bytes + f.bytes);
    if (f.bytes < RECYCLE_SMALLEST || f.bytes > most)
        return false;
    while (s->nrecycled == RECYCLE_FILES || s->recycled_bytes + f.bytes > most)
        recycle_give_back(s); /* the new one is more likely to be wanted */
    entry_name(to, f.number);
    if (renameat2(s->streams_fd, name, s->recycle_fd, to, RENAME_NOREPLACE) < 0)
        return false;
    *ret_file = f;
    return true;
}

void recycle_add(struct cairn_store *s, const struct recycled *file)
{
    s->recycled[s->nrecycled++] = *file;
    s->recycled_bytes += file->bytes;
}

/* ---- handing out ----------------------------------------------------------------------------- */

/* Too large a one would be cut, too small a one is no gain. */
static bool fits(uint64_t has, uint64_t bytes)
{
    return has <= bytes + (bytes > RECYCLE_SLACK ? bytes : RECYCLE_SLACK) && has >= bytes / 4;
}

/* The smallest that holds so much, else the largest; -1: there is none that fits. */
static int best_fit(const struct cairn_store *s, uint64_t bytes)
{
    int best = -1;

    for (unsigned i = 0; i < s->nrecycled; i++) {
        uint64_t a = s->recycled[i].bytes, b = best < 0 ? 0 : s->recycled[best].bytes;
        if (fits(a, bytes) && (best < 0 || (a >= bytes ? b < bytes || a < b : b < bytes && a > b)))
            best = (int)i;
    }
    return best;
}

int recycle_hand_out(struct cairn_store *s, uint64_t bytes, int flags, uint64_t *ret_number)
{
    char name[32];
    int i = best_fit(s, bytes), fd;

    if (i < 0)
        return -1;
    entry_name(name, s->recycled[i].number);
    fd = openat(s->recycle_fd, name, flags);
    if (fd < 0)
        recycle_drop(s, s->recycled[i].number);
    else
        *ret_number = s->recycled[i].number;
    forget(s, (unsigned)i);
    return fd;
}

int recycle_name(struct cairn_store *s, uint64_t number, const char *name)
{
    char from[32];

    entry_name(from, number);
    return renameat(s->recycle_fd, from, s->streams_fd, name);
}
