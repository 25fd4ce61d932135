/* SPDX-License-Identifier: Apache-2.0 */
#include "client/arena.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/device.h"
#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/units.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define POPULATE_PIECE ((size_t)64 << 20) /* faulted in by one call, so that a signal is never held up for long */
#define MAX_TEXT ((uint64_t)256 << 20)

/* ---- checks ---------------------------------------------------------------------------------- */

static int check_fd(int fd, uint64_t len, unsigned seals, const char *what, struct cairn_error *err)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return cairn_fail_errno(err, errno, "look at the %s", what);
    if (!S_ISREG(st.st_mode) || st.st_size < 0 || (uint64_t)st.st_size < len)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "the daemon's %s has %lld bytes, expected %llu", what,
                          (long long)st.st_size, (unsigned long long)len);
    int has = seals ? fcntl(fd, F_GET_SEALS) : 0;
    if (has < 0 || ((unsigned)has & seals) != seals)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "the daemon's %s is not sealed (has %x, needs %x)", what,
                          has < 0 ? 0 : (unsigned)has, seals);
    return 0;
}

/* ---- the arena ------------------------------------------------------------------------------- */

/* For kernels before 5.14. The file's blocks first: a full tmpfs is an error here and a SIGBUS at the first touch. */
static int touch_all(int fd, char *base, size_t len, struct cairn_error *err)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);

    if (fallocate(fd, 0, 0, (off_t)len) < 0)
        return cairn_fail_errno(err, errno, "allocate %zu bytes of arena", len);
    for (size_t at = 0; at < len; at += page)
        __atomic_fetch_or(base + at, 0, __ATOMIC_RELAXED); /* writes, but changes nothing */
    return 0;
}

static int populate(int fd, char *base, size_t len, struct cairn_error *err)
{
    for (size_t at = 0; at < len;) {
        size_t n = len - at < POPULATE_PIECE ? len - at : POPULATE_PIECE;
        if (madvise(base + at, n, MADV_POPULATE_WRITE) == 0) {
            at += n;
        } else if (errno == EINVAL || errno == ENOSYS) {
            return touch_all(fd, base, len, err);
        } else if (errno != EINTR && errno != EAGAIN) {
            int e = errno == EFAULT ? ENOMEM : errno; /* EFAULT: the memory behind it cannot be had */
            return cairn_fail_errno(err, e, "fault in %zu bytes of arena (memory limit of the job?)", len);
        }
    }
    return 0;
}

static int arena_map_file(struct arena *a, int fd, struct cairn_error *err)
{
    uint64_t control_bytes = a->control_bytes, page_bytes = a->page_bytes, len = control_bytes + page_bytes;

    if (control_bytes < sizeof(struct local_control) || control_bytes % CAIRN_BLOCK || page_bytes % CAIRN_PART ||
        len < page_bytes || len > INT64_MAX)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "the daemon's arena has impossible sizes (%llu control, %llu pages)",
                          (unsigned long long)control_bytes, (unsigned long long)page_bytes);
    int r = check_fd(fd, len, F_SEAL_SHRINK, "arena", err);
    if (r < 0)
        return r;
    char *base = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED)
        return cairn_fail_errno(err, errno, "map the arena");
    if (madvise(base, len, MADV_DONTFORK) < 0) {
        r = cairn_fail_errno(err, errno, "keep the arena from children");
        munmap(base, len);
        return r;
    }
    /* Wishes: without them it works. Huge pages spare page-table walks during the copy; a core dump wants no arena. */
    (void)madvise(base, len, MADV_HUGEPAGE);
    (void)madvise(base, len, MADV_DONTDUMP);
    r = populate(fd, base, len, err);
    if (r < 0) {
        munmap(base, len);
        return r;
    }
    a->base = base;
    return 0;
}

int arena_map(int fd, int ledger_fd, uint64_t control_bytes, uint64_t page_bytes, struct arena **ret_arena,
              struct cairn_error *err)
{
    _cleanup_free_ struct arena *a = calloc(1, sizeof(*a));

    if (!a)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate an arena");
    a->refs = 1;
    a->control_bytes = control_bytes;
    a->page_bytes = page_bytes;
    int r = arena_map_file(a, fd, err);
    if (r < 0)
        return r;
    a->fd = fd;
    a->ledger_fd = ledger_fd;
    *ret_arena = TAKE_PTR(a);
    return 0;
}

void arena_free(struct arena *a, bool forked)
{
    if (!a)
        return;
    if (!forked && devices_unpin_arena(a))
        munmap(a->base, a->control_bytes + a->page_bytes);
    close(a->fd);
    close(a->ledger_fd);
    free(a->held);
    free(a->sums);
    free(a);
}

static int map_runs(const struct arena *a, const uint32_t *pages, uint32_t n, char *view)
{
    for (uint32_t first = 0, len; first < n; first += len) {
        for (len = 1; first + len < n && pages[first + len] == pages[first] + len;)
            len++;
        off_t at = (off_t)(a->control_bytes + pages[first] * CAIRN_PART);
        if (mmap(view + first * CAIRN_PART, len * CAIRN_PART, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, a->fd,
                 at) == MAP_FAILED)
            return errno;
    }
    return madvise(view, n * CAIRN_PART, MADV_DONTFORK) < 0 ? errno : 0;
}

int arena_view(const struct arena *a, const uint32_t *pages, uint32_t n, char **ret_view, struct cairn_error *err)
{
    char *view = mmap(NULL, n * CAIRN_PART, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (view == MAP_FAILED)
        return cairn_fail_errno(err, errno, "find addresses for %u MiB of arena", n);
    int e = map_runs(a, pages, n, view);
    if (e) {
        arena_view_unmap(view, n);
        return cairn_fail_errno(err, e, "map %u MiB of arena in one piece (vm.max_map_count?)", n);
    }
    (void)madvise(view, n * CAIRN_PART, MADV_DONTDUMP);
    *ret_view = view;
    return 0;
}

void arena_view_unmap(char *view, uint32_t n)
{
    munmap(view, n * CAIRN_PART);
}

bool arena_keep_held(struct arena *a)
{
    if (!a->held)
        a->held = calloc(a->page_bytes / CAIRN_PART, sizeof(*a->held));
    return a->held;
}

char *arena_page(const struct arena *a, uint32_t page)
{
    return a->base + a->control_bytes + page * CAIRN_PART;
}

void arena_fill_word(const struct arena *a, uint32_t word, uint64_t save)
{
    struct local_control *control = (struct local_control *)(void *)a->base;

    __atomic_store_n(&control->filled[word], save, __ATOMIC_RELEASE);
}

/* ---- views and blobs ------------------------------------------------------------------------- */

int view_map(struct view *v, int fd, uint64_t len, unsigned seals, const char *what, struct cairn_error *err)
{
    int r = check_fd(fd, len, seals, what, err);

    if (r < 0)
        return r;
    /* Older kernels map what is sealed against writing only privately. */
    int sharing = seals & F_SEAL_WRITE ? MAP_PRIVATE : MAP_SHARED;
    void *base = mmap(NULL, len, PROT_READ, sharing, fd, 0);
    if (base == MAP_FAILED)
        return cairn_fail_errno(err, errno, "map the %s", what);
    if (madvise(base, len, MADV_DONTFORK) < 0) {
        r = cairn_fail_errno(err, errno, "keep the %s from children", what);
        munmap(base, len);
        return r;
    }
    *v = (struct view){.base = base, .len = len};
    return 0;
}

void view_unmap(struct view *v, bool forked)
{
    if (v->base && !forked)
        munmap((void *)v->base, v->len);
    *v = (struct view){0};
}

static int write_all(int fd, const char *data, size_t len)
{
    for (size_t at = 0; at < len;) {
        ssize_t n = pwrite(fd, data + at, len - at, (off_t)at);
        if (n > 0)
            at += (size_t)n;
        else if (n == 0 || errno != EINTR)
            return n == 0 ? EIO : errno;
    }
    return 0;
}

int blob_make(const char *name, const void *data, size_t len, int *ret_fd, struct cairn_error *err)
{
    _cleanup_close_ int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0)
        return cairn_fail_errno(err, errno, "make a memfd");
    int e = write_all(fd, data, len);
    if (e)
        return cairn_fail_errno(err, e, "write %zu bytes to a memfd", len);
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) < 0)
        return cairn_fail_errno(err, errno, "seal a memfd");
    *ret_fd = TAKE_FD(fd);
    return 0;
}

int blob_text(int fd, uint64_t len, char **ret_text, struct cairn_error *err)
{
    int r = check_fd(fd, len, 0, "answer", err);

    if (r < 0)
        return r;
    if (len > MAX_TEXT)
        return cairn_fail(err, CAIRN_E_TOO_LARGE, "the daemon's answer has %llu bytes", (unsigned long long)len);
    _cleanup_free_ char *text = malloc(len + 1);
    if (!text)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate %llu bytes for an answer", (unsigned long long)len);
    for (size_t at = 0; at < len;) {
        ssize_t n = pread(fd, text + at, len - at, (off_t)at);
        if (n > 0)
            at += (size_t)n;
        else if (n == 0 || errno != EINTR)
            return cairn_fail_errno(err, n == 0 ? EIO : errno, "read the daemon's answer");
    }
    text[len] = '\0';
    *ret_text = TAKE_PTR(text);
    return 0;
}
