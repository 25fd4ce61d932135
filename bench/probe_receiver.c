/* SPDX-License-Identifier: Apache-2.0 */
/*     slot full -> direct write at the file's end -> slot free
 *     end, and nothing is being written -> fdatasync, of the directory too when the file is new -> durable
 *
 * No checksum, no header, no decision: what is left is what wire and disk cost. */
#include "bench/probe_receiver.h"

#include "bench/clock.h"
#include "bench/probe_disk.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SYNCED PROBE_MAX_SLOTS /* a sync's tag; a write's is its slot */
#define MAX_WORDS (2 * PROBE_MAX_SLOTS)

struct receiver {
    const struct probe_options *o;
    struct probe_shared *shared;
    struct wire wire;
    struct disk disk;
    char *slots;
    unsigned index, sender;
    int fd, directory;
    bool fresh, ending, quit;
    uint64_t end; /* of the file */
    unsigned arrived, writing, wanted, syncing;
    uint32_t words[MAX_WORDS]; /* to be told; few wait */
    unsigned nwords;
};

static int fail(const char *what)
{
    fprintf(stderr, "bench-probe-durable: %s: %s\n", what, strerror(errno));
    return -1;
}

void probe_path(const struct probe_options *o, unsigned index, bool fresh, char ret_path[4096])
{
    snprintf(ret_path, 4096, "%s/probe.%u.%s", o->directory, index, fresh ? "new" : "recycled");
}

static int tell(struct receiver *r, enum probe_word kind, uint32_t value)
{
    if (r->nwords == MAX_WORDS) {
        errno = ENOBUFS;
        return fail("too many words wait");
    }
    r->words[r->nwords++] = probe_word(kind, r->index, value);
    return 0;
}

static int tell_all(struct receiver *r)
{
    unsigned told = 0;
    int code = 0;

    while (told < r->nwords && (code = wire_tell(&r->wire, r->sender, r->words[told])) == 0)
        told++;
    r->nwords -= told;
    memmove(r->words, r->words + told, r->nwords * sizeof r->words[0]);
    return code < 0 ? -1 : 0;
}

/* ---- a save ---------------------------------------------------------------------------------- */

static int begin(struct receiver *r, bool fresh, unsigned pieces)
{
    char path[4096];

    probe_path(r->o, r->index, fresh, path);
    r->fresh = fresh;
    r->end = 0;
    r->arrived = r->writing = r->wanted = 0;
    r->ending = false;
    r->fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC | O_CREAT | (fresh ? O_EXCL : 0), 0600);
    if (r->fd < 0)
        return fail(path);
    if (fresh && fallocate(r->fd, 0, 0, (off_t)(pieces * PROBE_PIECE)) < 0)
        return fail("allocate a file");
    return 0;
}

static int piece(struct receiver *r, uint32_t slot)
{
    if (r->fd < 0 || slot >= r->o->slots) {
        errno = EPROTO;
        return fail("a piece that nobody expects");
    }
    r->arrived++;
    r->writing++;
    uint64_t at = r->end;
    r->end += PROBE_PIECE;
    return disk_write(&r->disk, r->fd, r->slots + slot * PROBE_PIECE, PROBE_PIECE, at, slot);
}

static int sync_when_written(struct receiver *r)
{
    if (!r->ending || r->writing || r->arrived < r->wanted)
        return 0;
    r->ending = false;
    r->syncing = r->fresh ? 2 : 1;
    if (r->fresh && disk_sync(&r->disk, r->directory, SYNCED) < 0)
        return -1;
    return disk_sync(&r->disk, r->fd, SYNCED);
}

static int completed(struct receiver *r, uint32_t tag)
{
    if (tag != SYNCED) {
        r->writing--;
        return tell(r, PROBE_SLOT_FREE, tag);
    }
    if (--r->syncing)
        return 0;
    close(r->fd);
    r->fd = -1;
    r->shared->cpu_s[r->index] = cpu();
    return tell(r, PROBE_DURABLE, 0);
}

static int clean(struct receiver *r)
{
    char path[4096];

    probe_path(r->o, r->index, true, path);
    if (unlink(path) < 0)
        return fail(path);
    return tell(r, PROBE_DONE, 0);
}

static int obey(struct receiver *r, uint32_t word)
{
    switch (probe_kind(word)) {
    case PROBE_GO_NEW:
    case PROBE_GO_RECYCLED:
        return begin(r, probe_kind(word) == PROBE_GO_NEW, probe_value(word));
    case PROBE_PIECE_IN:
        return piece(r, probe_value(word));
    case PROBE_END:
        r->ending = true;
        r->wanted = probe_value(word);
        return 0;
    case PROBE_GREET:
        r->shared->cpu_s[r->index] = cpu();
        return tell(r, PROBE_DONE, 0);
    case PROBE_CLEAN:
        return clean(r);
    default:
        r->quit = true;
        return 0;
    }
}

/* ---- the loop -------------------------------------------------------------------------------- */

/* Everything that can be done now: how much it was, or -1. */
static int turn(struct receiver *r)
{
    struct wire_event events[16];
    uint32_t tags[16];
    int n = wire_poll(&r->wire, events, 16), done;

    for (int i = 0; i < n; i++)
        if (!events[i].written && obey(r, events[i].word) < 0)
            return -1;
    done = n < 0 ? -1 : disk_poll(&r->disk, tags, 16);
    for (int i = 0; i < done; i++)
        if (completed(r, tags[i]) < 0)
            return -1;
    if (done < 0 || sync_when_written(r) < 0 || tell_all(r) < 0)
        return -1;
    return n + done;
}

static int serve(struct receiver *r)
{
    double worked = now();

    while (!r->quit) {
        int n = turn(r);
        if (n < 0)
            return -1;
        if (n > 0 || r->nwords) {
            worked = now();
            continue;
        }
        if (now() - worked > PROBE_IDLE_S) {
            errno = ETIMEDOUT;
            return fail("a receiver heard nothing for too long");
        }
        if (now() - worked > PROBE_SPIN_S && wire_may_sleep(&r->wire) && disk_sleep(&r->disk, r->wire.fd) < 0)
            return -1;
    }
    return 0;
}

static int open_all(struct receiver *r, int ready)
{
    size_t len = r->o->slots * PROBE_PIECE;
    char byte = 0;

    r->slots = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    r->directory = open(r->o->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (r->slots == MAP_FAILED || r->directory < 0)
        return fail("slots, or the directory");
    if (wire_open(&r->wire, r->o->provider, r->slots, len) < 0 || disk_open(&r->disk, r->slots, len) < 0 ||
        wire_address(&r->wire, &r->shared->receivers[r->index]) < 0)
        return -1;
    if (write(ready, &byte, 1) != 1 || read(ready, &byte, 1) != 1)
        return fail("the sender is gone");
    return wire_connect(&r->wire, &r->shared->sender, &r->sender);
}

int probe_receive(const struct probe_options *o, unsigned index, struct probe_shared *shared, int ready)
{
    struct receiver r = {.o = o, .shared = shared, .index = index, .fd = -1, .directory = -1};
    int code = open_all(&r, ready);

    if (code == 0)
        code = serve(&r);
    disk_close(&r.disk);
    wire_close(&r.wire);
    if (r.fd >= 0)
        close(r.fd);
    if (r.directory >= 0)
        close(r.directory);
    return code < 0;
}
