/* SPDX-License-Identifier: Apache-2.0 */
#include "client/dirty.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "core/base/error.h"

/* ---- what older headers lack ----------------------------------------------------------------- */

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#define WANTED_FEATURES ((uint64_t)1 << 15 | (uint64_t)1 << 13) /* WP_ASYNC, WP_UNPOPULATED */

struct region {
    uint64_t start, end, categories;
};
struct scan {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define SCAN _IOWR('f', 16, struct scan)
enum { SCAN_WP_MATCHING = 1, SCAN_CHECK_WPASYNC = 2 };
enum { IS_WRITTEN = 2, IS_FILE = 4, IS_PRESENT = 8 };

#define REGIONS 512 /* it returns early beyond that */

/* ---- watching -------------------------------------------------------------------------------- */

int dirty_watch(struct dirty *d, uintptr_t begin, uintptr_t end, struct cairn_error *err)
{
    struct uffdio_register r = {.range = {begin, end - begin}, .mode = UFFDIO_REGISTER_MODE_WP};

    if (ioctl(d->uffd, UFFDIO_REGISTER, &r) < 0)
        return cairn_fail_errno(err, errno, "watch %zu bytes for writes", (size_t)(end - begin));
    return 0;
}

void dirty_forget(struct dirty *d, uintptr_t begin, uintptr_t end)
{
    struct uffdio_range r = {begin, end - begin};

    (void)ioctl(d->uffd, UFFDIO_UNREGISTER, &r); /* the memory may be gone, and the watch with it */
}

/* Calls seen() for all regions that match. */
static int walk(const struct dirty *d, const struct scan *what, void (*seen)(void *arg, uint64_t first, uint64_t n),
                void *arg, struct cairn_error *err)
{
    struct region regions[REGIONS];
    struct scan s = *what;

    s.size = sizeof(s);
    s.vec = (uintptr_t)regions;
    s.vec_len = REGIONS;
    while (s.start < s.end) {
        int n = ioctl(d->pagemap, SCAN, &s);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return cairn_fail_errno(err, errno, "ask the kernel which pages were written");
        for (int i = 0; i < n; i++)
            seen(arg, (regions[i].start - what->start) / d->page, (regions[i].end - regions[i].start) / d->page);
        if (n == 0 && s.walk_end <= s.start)
            return cairn_fail(err, CAIRN_E_IO, "the kernel's scan for written pages stands still");
        s.start = s.walk_end;
    }
    return 0;
}

int dirty_take(struct dirty *d, uintptr_t begin, uintptr_t end, void (*written)(void *arg, uint64_t first, uint64_t n),
               void *arg, struct cairn_error *err)
{
    /* Pages that are not present were swapped out, or dropped: then they are not what they were. */
    const struct scan s = {.flags = SCAN_WP_MATCHING | SCAN_CHECK_WPASYNC,
                           .start = begin,
                           .end = end,
                           .category_inverted = IS_PRESENT,
                           .category_anyof_mask = IS_WRITTEN | IS_PRESENT,
                           .return_mask = IS_WRITTEN | IS_PRESENT};

    return walk(d, &s, written, arg, err);
}

static void note(void *arg, uint64_t first, uint64_t n)
{
    (void)first;
    (void)n;
    *(bool *)arg = false;
}

int dirty_is_private(struct dirty *d, uintptr_t begin, uintptr_t end, bool *ret_private, struct cairn_error *err)
{
    const struct scan s = {.start = begin, .end = end, .category_mask = IS_FILE, .return_mask = IS_FILE};
    bool alone = true;
    int r = walk(d, &s, note, &alone, err);

    if (r == 0)
        *ret_private = alone;
    return r;
}

/* ---- open, and the check of the kernel's word ------------------------------------------------ */

enum { PROBE_PAGES = 16, BY_CPU = 3, BY_KERNEL = 7, DROPPED = 9, DROPPED_AND_READ = 12 };

static void mark(void *arg, uint64_t first, uint64_t n)
{
    bool *seen = arg;

    for (uint64_t i = first; i < first + n && i < PROBE_PAGES; i++)
        seen[i] = true;
}

/* Pages change in all the ways in which they can. */
static int change(const struct dirty *d, char *probe, struct cairn_error *err)
{
    _cleanup_close_ int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);

    __atomic_store_n(probe + BY_CPU * d->page, 2, __ATOMIC_RELAXED);
    if (zero < 0 || read(zero, probe + BY_KERNEL * d->page, 1) != 1)
        return cairn_fail_errno(err, errno, "read /dev/zero");
    if (madvise(probe + DROPPED * d->page, d->page, MADV_DONTNEED) < 0 ||
        madvise(probe + DROPPED_AND_READ * d->page, d->page, MADV_DONTNEED) < 0)
        return cairn_fail_errno(err, errno, "drop a page");
    if (__atomic_load_n(probe + DROPPED_AND_READ * d->page, __ATOMIC_RELAXED) != 0)
        return cairn_fail(err, CAIRN_E_UNSUPPORTED, "a dropped page kept its bytes");
    return 0;
}

static int check_seen(const bool *seen, struct cairn_error *err)
{
    for (int i = 0; i < PROBE_PAGES; i++) {
        bool changed = i == BY_CPU || i == BY_KERNEL || i == DROPPED || i == DROPPED_AND_READ;
        if (changed && !seen[i])
            return cairn_fail(err, CAIRN_E_UNSUPPORTED, "the kernel did not tell of a page that was changed (probe %d)",
                              i);
        if (!changed && seen[i])
            return cairn_fail(err, CAIRN_E_UNSUPPORTED, "the kernel told of a page that was not changed (probe %d)", i);
    }
    return 0;
}

static int try_probe(struct dirty *d, char *probe, struct cairn_error *err)
{
    uintptr_t begin = (uintptr_t)probe, end = begin + PROBE_PAGES * d->page;
    bool before[PROBE_PAGES] = {0}, seen[PROBE_PAGES] = {0}, after[PROBE_PAGES] = {0};

    memset(probe, 1, PROBE_PAGES * d->page);
    int r = dirty_watch(d, begin, end, err);
    if (r == 0)
        r = dirty_take(d, begin, end, mark, before, err);
    if (r == 0)
        r = change(d, probe, err);
    if (r == 0)
        r = dirty_take(d, begin, end, mark, seen, err);
    if (r == 0)
        r = check_seen(seen, err);
    if (r == 0)
        r = dirty_take(d, begin, end, mark, after, err);
    if (r == 0 && (after[BY_CPU] || after[BY_KERNEL]))
        r = cairn_fail(err, CAIRN_E_UNSUPPORTED, "the kernel told twice of a page that was changed once");
    dirty_forget(d, begin, end);
    return r;
}

static int probe(struct dirty *d, struct cairn_error *err)
{
    size_t len = PROBE_PAGES * d->page;
    char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED)
        return cairn_fail_errno(err, errno, "map %zu bytes to try it", len);
    (void)madvise(p, len, MADV_NOHUGEPAGE); /* single pages are to be told apart */
    int r = try_probe(d, p, err);
    munmap(p, len);
    return r;
}

static int open_both(struct dirty *d, struct cairn_error *err)
{
    struct uffdio_api api = {.api = UFFD_API, .features = WANTED_FEATURES};

    d->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    if (d->uffd < 0)
        return cairn_fail_errno(err, errno, "make a userfaultfd");
    if (ioctl(d->uffd, UFFDIO_API, &api) < 0)
        return cairn_fail_errno(err, errno, "ask for asynchronous write protection (Linux 6.7)");
    d->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (d->pagemap < 0)
        return cairn_fail_errno(err, errno, "open /proc/self/pagemap");
    return probe(d, err);
}

int dirty_open(struct dirty *d, struct cairn_error *err)
{
    *d = (struct dirty){.uffd = -1, .pagemap = -1, .page = (size_t)sysconf(_SC_PAGESIZE)};
    int r = open_both(d, err);
    if (r == 0)
        return 0;
    dirty_close(d);
    return cairn_wrap(err, CAIRN_E_UNSUPPORTED, "writes to memory cannot be watched here");
}

void dirty_close(struct dirty *d)
{
    if (d->uffd >= 0)
        close(d->uffd); /* ends all watches */
    if (d->pagemap >= 0)
        close(d->pagemap);
    d->uffd = d->pagemap = -1;
}
