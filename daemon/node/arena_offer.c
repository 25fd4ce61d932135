/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/node/arena_offer.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/units.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#define ARENA_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
#define LEDGER_SEALS (ARENA_SEALS | F_SEAL_FUTURE_WRITE)

/* ---- files and processes --------------------------------------------------------------------- */

bool same_file(int a, int b)
{
    struct stat x, y;

    return fstat(a, &x) == 0 && fstat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

uint64_t process_start(int pid)
{
    char path[64], buf[1024];
    unsigned long long start = 0;

    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    _cleanup_close_ int fd = pid > 0 ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    ssize_t n = fd >= 0 ? read(fd, buf, sizeof buf - 1) : -1;
    if (n <= 0)
        return 0;
    buf[n] = 0;
    /* The name, in parentheses, may hold anything; the start is the 20th field behind it. */
    const char *at = strrchr(buf, ')');
    for (unsigned i = 0; at && i < 20; i++)
        at = strchr(at + 1, ' ');
    return at && sscanf(at, " %llu", &start) == 1 ? start : 0;
}

int process_open(int pid, uint64_t start)
{
    if (pid <= 0 || start == 0)
        return PROCESS_UNKNOWN;
    _cleanup_close_ int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0)
        return errno == ESRCH ? -1 : PROCESS_UNKNOWN;
    uint64_t now = process_start(pid); /* in this order: the pidfd cannot change hands */
    if (now == start)
        return TAKE_FD(fd);
    return now > 0 || process_ended(fd) ? -1 : PROCESS_UNKNOWN;
}

/* ---- reading --------------------------------------------------------------------------------- */

static int check_seals(int fd, int wanted, const char *what, struct stat *ret_stat, struct cairn_error *err)
{
    int has = fcntl(fd, F_GET_SEALS);

    if (fstat(fd, ret_stat) < 0)
        return cairn_fail_errno(err, errno, "look at the %s", what);
    if (!S_ISREG(ret_stat->st_mode) || has < 0)
        return cairn_fail(err, CAIRN_E_INVAL, "the %s is no memfd", what);
    if (has != wanted)
        return cairn_fail(err, CAIRN_E_INVAL, "the %s has seals %x, this daemon's have %x", what, (unsigned)has,
                          (unsigned)wanted);
    return 0;
}

static int read_all(int fd, void *buf, uint64_t len, struct cairn_error *err)
{
    for (uint64_t at = 0; at < len;) {
        ssize_t n = pread(fd, (char *)buf + at, len - at, (off_t)at);
        if (n > 0)
            at += (uint64_t)n;
        else if (n == 0 || errno != EINTR)
            return cairn_fail_errno(err, n == 0 ? EIO : errno, "read the ledger");
    }
    return 0;
}

static int read_ledger(struct arena_offer *o, int fd, uint64_t file_len, struct cairn_error *err)
{
    struct ledger_header h;
    uint64_t len = 0;
    int r = file_len < sizeof h
                ? cairn_fail(err, CAIRN_E_CORRUPT, "a ledger of %llu bytes", (unsigned long long)file_len)
                : read_all(fd, &h, sizeof h, err);

    if (r == 0)
        r = ledger_copy_len(&h, file_len, &len, err);
    if (r < 0)
        return r;
    o->ledger = malloc(len);
    if (!o->ledger)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate %llu bytes for a ledger", (unsigned long long)len);
    r = read_all(fd, o->ledger, len, err);
    /* A forger may have changed it since: what counts is the copy. */
    return r < 0 ? r : ledger_check(o->ledger, len, err);
}

static int check_pair(const struct arena_offer *o, const struct stat *arena, struct cairn_error *err)
{
    const struct ledger_header *h = ledger_header_of(o->ledger);
    uint64_t len = ARENA_CONTROL + (uint64_t)h->npages * CAIRN_PART;

    if (h->control_bytes != ARENA_CONTROL || (uint64_t)arena->st_size != len)
        return cairn_fail(err, CAIRN_E_INVAL, "the arena has %lld bytes, its ledger says %llu",
                          (long long)arena->st_size, (unsigned long long)len);
    if (h->arena_device != arena->st_dev || h->arena_file != arena->st_ino)
        return cairn_fail(err, CAIRN_E_INVAL, "the ledger of arena %016llx belongs to another memory file",
                          (unsigned long long)h->arena_id);
    return 0;
}

/* ---- the saves in it ------------------------------------------------------------------------- */

static struct shared_layout *known_layout(const struct arena_offer *o, struct hash128 digest)
{
    for (unsigned i = 0; i < o->nsaves; i++)
        if (o->saves[i].layout->digest.low == digest.low && o->saves[i].layout->digest.high == digest.high)
            return shared_layout_ref(o->saves[i].layout);
    return NULL;
}

static int read_layout(const struct arena_offer *o, const struct ledger_save *e, struct shared_layout **ret,
                       struct cairn_error *err)
{
    struct shared_layout *l = known_layout(o, e->digest);
    int r = 0;

    if (!l) {
        l = calloc(1, sizeof *l);
        if (!l)
            return cairn_fail(err, CAIRN_E_NOMEM, "allocate a layout");
        l->refs = 1;
        l->digest = e->digest;
        list_init(&l->link);
        cairn_layout_init(&l->layout);
        r = cairn_layout_decode(&l->layout, ledger_layout_of(o->ledger, e), e->layout_len, err);
    }
    if (r == 0 && l->layout.nparts != e->nparts)
        r = cairn_fail(err, CAIRN_E_CORRUPT, "the ledger says that step %llu has %u parts, its layout has %u",
                       (unsigned long long)e->step, e->nparts, l->layout.nparts);
    if (r < 0)
        shared_layout_unref(l);
    else
        *ret = l;
    return r;
}

static int read_save(struct arena_offer *o, int slot, struct cairn_error *err)
{
    const struct ledger_save *e = ledger_save_at(o->ledger, slot);
    struct offered_save *s = &o->saves[o->nsaves];
    uint32_t gone = 0;

    s->slot = slot;
    int r = read_layout(o, e, &s->layout, err);
    if (r < 0)
        return r;
    s->pages = malloc((e->nparts ? e->nparts : 1) * sizeof *s->pages);
    r = s->pages ? ledger_pages_of(o->ledger, slot, s->pages, NULL, &gone, err)
                 : cairn_fail(err, CAIRN_E_NOMEM, "allocate the pages of %u parts", e->nparts);
    if (r == 0 && gone > 0 && e->state == LEDGER_BEGUN)
        r = cairn_fail(err, CAIRN_E_CORRUPT, "step %llu was begun and lacks %u pages", (unsigned long long)e->step,
                       gone);
    if (r == 0 && (gone == 0 || gone < e->nparts)) {
        o->nsaves++;
        return 0;
    }
    shared_layout_unref(s->layout);
    free(s->pages);
    return r;
}

/* By id: an arena's snapshots are in the order in which they were granted. */
static int compare_saves(const void *a, const void *b, void *ledger)
{
    uint64_t x = ledger_save_at(ledger, ((const struct offered_save *)a)->slot)->save;
    uint64_t y = ledger_save_at(ledger, ((const struct offered_save *)b)->slot)->save;

    return (x > y) - (x < y);
}

static int read_saves(struct arena_offer *o, struct cairn_error *err)
{
    for (int i = 0; i < LEDGER_SAVES; i++) {
        int r = ledger_save_at(o->ledger, i) ? read_save(o, i, err) : 0;
        if (r < 0)
            return r;
    }
    qsort_r(o->saves, o->nsaves, sizeof o->saves[0], compare_saves, o->ledger);
    return 0;
}

/* ---- the object ------------------------------------------------------------------------------ */

int arena_offer_read(int arena_fd, int ledger_fd, struct arena_offer **ret_offer, struct cairn_error *err)
{
    struct stat arena, ledger;
    struct arena_offer *o = calloc(1, sizeof *o);

    if (!o)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate an arena's offer");
    o->arena_fd = -1;
    int r = check_seals(arena_fd, ARENA_SEALS, "arena", &arena, err);
    if (r == 0)
        r = check_seals(ledger_fd, LEDGER_SEALS, "ledger", &ledger, err);
    if (r == 0)
        r = read_ledger(o, ledger_fd, (uint64_t)ledger.st_size, err);
    if (r == 0)
        r = check_pair(o, &arena, err);
    if (r == 0)
        r = read_saves(o, err);
    if (r < 0) {
        arena_offer_free(o);
        return r;
    }
    o->arena_fd = arena_fd;
    *ret_offer = o;
    return 0;
}

void arena_offer_free(struct arena_offer *o)
{
    if (!o)
        return;
    for (unsigned i = 0; i < o->nsaves; i++) {
        shared_layout_unref(o->saves[i].layout);
        free(o->saves[i].pages);
    }
    if (o->arena_fd >= 0)
        close(o->arena_fd);
    free(o->ledger);
    free(o);
}
