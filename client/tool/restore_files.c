/* SPDX-License-Identifier: Apache-2.0 */
/* A tree is written under a temporary name beside its place, synced and renamed: it is there as a whole or not at all.
 *
 *     documents of the ranks --> one tree, checked (files.c): no path leaves it
 *     TO/.cairn-restore-PID/     directories, then files in batches: mapped, restored into, compared with the checksum
 *                                that `cairn watch` took, cut to their size; then links, which nothing was written
 *                                through; modes and times last, from the leaves up
 *     rename to TO/NAME
 */
#include "client/tool/restore_files.h"

#include "client/tool/files_scan.h"
#include "client/tool/files_stored.h"
#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define BATCH_FILES 64
#define BATCH_BYTES ((uint64_t)1 << 30)

struct target { /* a file that is being written */
    const struct files_entry *entry;
    int fd;
    char *map;
    uint64_t bytes; /* of the map */
};

struct writer {
    struct tool *t;
    struct cairn_restore *restore;
    struct cairn_checkpoint_info info;
    struct files tree;
    struct files_slices slices;
    int to;             /* --to */
    int root;           /* the temporary directory */
    char temporary[64]; /* its name; "": there is none */
    struct target batch[BATCH_FILES];
    unsigned nbatch;
    uint64_t batch_bytes;
    uint64_t bytes; /* written */
};

/* ---- times and modes ------------------------------------------------------------------------- */

static struct timespec time_of(int64_t ns)
{
    struct timespec t = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};

    if (t.tv_nsec < 0) {
        t.tv_sec--;
        t.tv_nsec += 1000000000;
    }
    return t;
}

/* The last that happens to it. */
static int finish_fd(int fd, uint32_t mode, int64_t mtime_ns, const char *path, struct cairn_error *err)
{
    const struct timespec times[2] = {{.tv_nsec = UTIME_NOW}, time_of(mtime_ns)};

    if (fchmod(fd, mode & 0777) < 0 || futimens(fd, times) < 0 || fsync(fd) < 0)
        return cairn_fail_errno(err, errno, "set mode and time of %s", path);
    return 0;
}

/* ---- files ----------------------------------------------------------------------------------- */

static void target_close(struct target *f)
{
    if (f->map)
        munmap(f->map, f->bytes);
    if (f->fd >= 0)
        close(f->fd);
    *f = (struct target){.fd = -1};
}

static int target_open(struct writer *w, const struct files_entry *e, uint64_t bytes, struct target *f,
                       struct cairn_error *err)
{
    _cleanup_close_ int parent = -1;
    const char *name;
    int r = files_open_parent(w->root, e->path, &parent, &name, err);

    if (r < 0)
        return r;
    f->fd = openat(parent, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (f->fd < 0)
        return cairn_fail_errno(err, errno, "create %s", e->path);
    /* Blocks now: a full disk is an error here, and a SIGBUS at the first touch of the map. */
    if (ftruncate(f->fd, (off_t)bytes) < 0 || (errno = posix_fallocate(f->fd, 0, (off_t)bytes)) != 0)
        return cairn_fail_errno(err, errno, "make room for %llu bytes in %s", (unsigned long long)bytes, e->path);
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd, 0);
    if (map == MAP_FAILED)
        return cairn_fail_errno(err, errno, "map %s", e->path);
    f->map = map;
    f->bytes = bytes;
    f->entry = e;
    return 0;
}

/* All bytes are there. */
static int target_finish(struct target *f, struct cairn_error *err)
{
    const struct files_entry *e = f->entry;
    struct hash128 sum = cairn_hash128(f->map, e->size);

    if (sum.low != e->sum.low || sum.high != e->sum.high)
        return cairn_fail(err, CAIRN_E_CORRUPT, "%s does not have the checksum that it had when it was taken up",
                          e->path);
    munmap(f->map, f->bytes);
    f->map = NULL;
    if (ftruncate(f->fd, (off_t)e->size) < 0)
        return cairn_fail_errno(err, errno, "cut %s to its size", e->path);
    return finish_fd(f->fd, e->mode, e->mtime_ns, e->path, err);
}

static void batch_drop(struct writer *w)
{
    while (w->nbatch > 0)
        target_close(&w->batch[--w->nbatch]);
    w->batch_bytes = 0;
}

static int batch_write(struct writer *w, struct cairn_error *err)
{
    int r = w->nbatch ? cairn_restore_run(w->restore, tool_timeout(w->t, TOOL_LONG_MS), NULL, NULL, err) : 0;

    for (unsigned i = 0; i < w->nbatch && r == 0; i++) {
        r = target_finish(&w->batch[i], err);
        w->bytes += w->batch[i].entry->size;
    }
    batch_drop(w);
    return r;
}

static int write_file(struct writer *w, const struct files_entry *e, struct cairn_error *err)
{
    const struct files_slice *slice;
    int r = files_slice_of(&w->slices, e, &slice, err);

    if (r == 0 && (w->nbatch == BATCH_FILES || w->batch_bytes > BATCH_BYTES))
        r = batch_write(w, err);
    if (r < 0)
        return r;
    struct target *f = &w->batch[w->nbatch++];
    *f = (struct target){.fd = -1};
    r = target_open(w, e, slice->bytes ? slice->bytes : 1, f, err);
    if (r == 0 && slice->bytes)
        r = cairn_restore_add_slice(w->restore, slice->index, f->map, err);
    w->batch_bytes += slice->bytes;
    return r;
}

/* ---- the tree -------------------------------------------------------------------------------- */

static int make_one(struct writer *w, const struct files_entry *e, struct cairn_error *err)
{
    const struct timespec times[2] = {{.tv_nsec = UTIME_NOW}, time_of(e->mtime_ns)};
    _cleanup_close_ int parent = -1;
    const char *name;
    int r = files_open_parent(w->root, e->path, &parent, &name, err);

    if (r < 0)
        return r;
    if (e->kind == FILES_DIRECTORY && mkdirat(parent, name, 0700) < 0)
        return cairn_fail_errno(err, errno, "make the directory %s", e->path);
    if (e->kind == FILES_LINK &&
        (symlinkat(e->target, parent, name) < 0 || utimensat(parent, name, times, AT_SYMLINK_NOFOLLOW) < 0))
        return cairn_fail_errno(err, errno, "make the link %s", e->path);
    return 0;
}

static int make_all(struct writer *w, enum files_kind kind, struct cairn_error *err)
{
    int r = 0;

    for (uint32_t i = 0; i < w->tree.count && r == 0; i++)
        if (w->tree.entries[i].kind == kind)
            r = kind == FILES_FILE ? write_file(w, &w->tree.entries[i], err) : make_one(w, &w->tree.entries[i], err);
    return r;
}

/* What is in a directory stands behind it: from the last to the first. */
static int finish_directories(struct writer *w, struct cairn_error *err)
{
    for (uint32_t i = w->tree.count; i-- > 0;) {
        const struct files_entry *e = &w->tree.entries[i];
        _cleanup_close_ int parent = -1, fd = -1;
        const char *name;
        if (e->kind != FILES_DIRECTORY)
            continue;
        int r = files_open_parent(w->root, e->path, &parent, &name, err);
        if (r < 0)
            return r;
        fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
            return cairn_fail_errno(err, errno, "open the directory %s", e->path);
        r = finish_fd(fd, e->mode, e->mtime_ns, e->path, err);
        if (r < 0)
            return r;
    }
    return finish_fd(w->root, w->tree.mode, w->tree.mtime_ns, w->tree.name, err);
}

static int write_tree(struct writer *w, struct cairn_error *err)
{
    int r = make_all(w, FILES_DIRECTORY, err);

    if (r == 0)
        r = make_all(w, FILES_FILE, err);
    if (r == 0)
        r = batch_write(w, err);
    if (r == 0)
        r = make_all(w, FILES_LINK, err);
    return r < 0 ? r : finish_directories(w, err);
}

/* ---- its place ------------------------------------------------------------------------------- */

static bool is_there(const struct writer *w)
{
    struct stat st;

    return fstatat(w->to, w->tree.name, &st, AT_SYMLINK_NOFOLLOW) == 0;
}

static int open_place(struct writer *w, struct cairn_error *err)
{
    const char *to = w->t->to;

    if (mkdir(to, 0755) < 0 && errno != EEXIST)
        return cairn_fail_errno(err, errno, "create the directory %s", to);
    w->to = open(to, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (w->to < 0)
        return cairn_fail_errno(err, errno, "open the directory %s", to);
    if (!w->t->force && is_there(w))
        return cairn_fail(err, CAIRN_E_EXISTS, "%s/%s is there already (--force replaces it)", to, w->tree.name);
    for (unsigned n = 0; n < 100 && w->root < 0; n++) {
        snprintf(w->temporary, sizeof w->temporary, ".cairn-restore-%ld-%u", (long)getpid(), n);
        if (mkdirat(w->to, w->temporary, 0700) == 0)
            w->root = openat(w->to, w->temporary, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        else if (errno != EEXIST)
            break;
    }
    if (w->root >= 0)
        return 0;
    w->temporary[0] = '\0';
    return cairn_fail_errno(err, errno, "make a temporary directory in %s", to);
}

/* The old one goes only when the new one has its name. */
static int replace_old(struct writer *w, struct cairn_error *err)
{
    if (renameat2(w->to, w->temporary, w->to, w->tree.name, RENAME_EXCHANGE) == 0) {
        if (unlinkat(w->to, w->temporary, 0) == 0 || files_remove(w->to, w->temporary, err) == 0)
            w->temporary[0] = '\0';
        else
            return CAIRN_E_IO; /* the message is there */
        return 0;
    }
    if (errno != EINVAL && errno != ENOSYS)
        return cairn_fail_errno(err, errno, "rename to %s/%s", w->t->to, w->tree.name);
    int r = unlinkat(w->to, w->tree.name, 0) == 0 ? 0 : files_remove(w->to, w->tree.name, err);
    if (r == 0 && renameat(w->to, w->temporary, w->to, w->tree.name) < 0)
        r = cairn_fail_errno(err, errno, "rename to %s/%s", w->t->to, w->tree.name);
    if (r == 0)
        w->temporary[0] = '\0';
    return r;
}

static int put_in_place(struct writer *w, struct cairn_error *err)
{
    int r = 0;

    if (w->t->force && is_there(w)) {
        r = replace_old(w, err);
    } else {
        int e = renameat2(w->to, w->temporary, w->to, w->tree.name, RENAME_NOREPLACE) == 0 ? 0 : errno;
        if ((e == EINVAL || e == ENOSYS) && !is_there(w)) /* a file system that does not know the flag */
            e = renameat(w->to, w->temporary, w->to, w->tree.name) == 0 ? 0 : errno;
        if (e)
            r = cairn_fail_errno(err, e, "rename to %s/%s", w->t->to, w->tree.name);
        else
            w->temporary[0] = '\0';
    }
    if (r == 0 && fsync(w->to) < 0)
        r = cairn_fail_errno(err, errno, "sync the directory %s", w->t->to);
    return r;
}

/* The file beside it by which the framework finds its newest checkpoint; one that is there is left alone. */
static int put_tracker(struct writer *w, struct cairn_error *err)
{
    const char *name = w->tree.tracker, *text = w->tree.tracker_text;

    if (!name)
        return 0;
    _cleanup_close_ int fd = openat(w->to, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd < 0 && errno == EEXIST) {
        fprintf(stderr, "cairn: %s/%s is there and was left alone; it was \"%s\"\n", w->t->to, name, text);
        return 0;
    }
    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text) || fsync(fd) < 0)
        return cairn_fail_errno(err, errno ? errno : EIO, "write %s/%s", w->t->to, name);
    return 0;
}

/* ---- the command ----------------------------------------------------------------------------- */

static int read_trees(struct writer *w, struct cairn_error *err)
{
    uint32_t first = w->t->rank < 0 ? 0 : (uint32_t)w->t->rank, end = w->t->rank < 0 ? w->info.world_size : first + 1;
    int r = 0;

    if (first >= w->info.world_size)
        return cairn_fail(err, CAIRN_E_NOT_FOUND, "there is no rank %u: %u ranks saved it", first, w->info.world_size);
    for (uint32_t rank = first; rank < end && r == 0; rank++) {
        struct files one;
        r = files_stored(w->restore, rank, tool_timeout(w->t, TOOL_LONG_MS), &one, err);
        if (r < 0)
            return r;
        if (rank == first) {
            w->tree = one;
            continue;
        }
        r = files_merge(&w->tree, &one, rank, err);
        files_free(&one);
    }
    return r < 0 ? r : files_slices(w->restore, &w->slices, err);
}

static int write_all(struct writer *w, struct cairn_error *err)
{
    int r = read_trees(w, err);

    if (r == 0)
        r = open_place(w, err);
    if (r == 0)
        r = write_tree(w, err);
    if (r == 0)
        r = put_in_place(w, err);
    return r < 0 ? r : put_tracker(w, err);
}

static void writer_free(struct writer *w)
{
    batch_drop(w);
    if (w->root >= 0)
        close(w->root);
    if (w->to >= 0 && w->temporary[0])
        (void)files_remove(w->to, w->temporary, NULL);
    if (w->to >= 0)
        close(w->to);
    files_slices_free(&w->slices);
    files_free(&w->tree);
}

static void print_result(const struct writer *w, const char *job)
{
    if (!w->t->json) {
        printf("%s/%s\n", w->t->to, w->tree.name);
        return;
    }
    json_t *o = json_pack("{s:i, s:s, s:I, s:I, s:[{s:o, s:I}]}", "v", 1, "job", job, "step", (json_int_t)w->info.step,
                          "incarnation", (json_int_t)w->info.incarnation, "files", "path",
                          json_sprintf("%s/%s", w->t->to, w->tree.name), "bytes", (json_int_t)w->bytes);
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    puts(text ? text : "{}");
    free(text);
    json_decref(o);
}

int restore_files(struct tool *t, uint64_t step)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct writer w = {.t = t, .info = {.size = sizeof w.info}, .to = -1, .root = -1};
    struct cairn_session *session;

    files_init(&w.tree);
    if (tool_open(t, t->argv[1], &session, &err) < 0)
        return tool_fail_open(t, &err);
    int r = cairn_restore_open(session, step, tool_timeout(t, TOOL_LONG_MS), &w.restore, &err);
    if (r == 0) {
        cairn_restore_info(w.restore, &w.info);
        r = write_all(&w, &err);
        if (r == 0)
            print_result(&w, t->argv[1]);
        writer_free(&w);
        cairn_restore_free(w.restore);
    }
    cairn_session_close(session);
    return r < 0 ? tool_fail(t, "restore", &err) : EXIT_OK;
}
