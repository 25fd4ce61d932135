/* SPDX-License-Identifier: Apache-2.0 */
/* Mappings of what the daemon sends by descriptor: the arena that snapshots are copied into, and blobs and windows that
 * are only read. A descriptor is believed after its kind, size and seals were checked: nobody can shrink it under us.
 */
#ifndef CAIRN_CLIENT_ARENA_H
#define CAIRN_CLIENT_ARENA_H

#include <stdbool.h>

#include "core/model/hash.h"
#include "core/model/track.h"
#include "core/proto/local.h"

/* Its descriptors are kept: a daemon that was restarted gets them back. */
struct arena {
    unsigned refs;           /* the session's, and one for each save that has places in it; under session.lock */
    unsigned writers;        /* saves that write to their pages now; under session.lock */
    uint64_t serial;         /* in the session: an id is the daemon's word */
    uint64_t id;             /* the daemon's */
    int fd;                  /* owned */
    int ledger_fd;           /* owned; only the daemon reads and writes it */
    char *base;              /* of the mapping */
    uint64_t control_bytes;  /* before the first page */
    uint64_t page_bytes;     /* of all pages */
    struct cairn_held *held; /* what each page holds, of saves that tracked; NULL: none did. Under the tracker's lock */
    struct hash128 *sums;    /* of what a device copied to each page, 0: not known; NULL: of none. Under session.lock */
    struct devices *devices; /* for whom it is pinned */
    uint64_t pinned;         /* a bit for each of them, under their lock; once no reference is left, the last one's */
};

/* Maps and faults in the whole arena, with one reference. Takes both descriptors on success. */
int arena_map(int fd, int ledger_fd, uint64_t control_bytes, uint64_t page_bytes, struct arena **ret_arena,
              struct cairn_error *err);
/* Nobody refers to it any more. A forked child has no mapping: it only forgets. NULL is allowed. */
void arena_free(struct arena *a, bool forked);
/* Makes the table of what its pages hold, if it is not there; false: no memory. */
bool arena_keep_held(struct arena *a);
/* So many pages one behind the other, in a mapping of its own that shares their memory. IO when the process has no
 * more mappings (vm.max_map_count). */
int arena_view(const struct arena *a, const uint32_t *pages, uint32_t n, char **ret_view, struct cairn_error *err);
void arena_view_unmap(char *view, uint32_t n);
/* The page's first byte. */
char *arena_page(const struct arena *a, uint32_t page);
/* Tells the daemon, which reads it with acquire, that every byte of the save is in place. */
void arena_fill_word(const struct arena *a, uint32_t word, uint64_t save);

/* A read-only mapping; at least len bytes of the file are mapped. */
struct view {
    const char *base;
    uint64_t len;
};
/* seals: those that the descriptor must have. what names it in messages. */
int view_map(struct view *v, int fd, uint64_t len, unsigned seals, const char *what, struct cairn_error *err);
void view_unmap(struct view *v, bool forked);

/* A sealed memfd with these bytes. */
int blob_make(const char *name, const void *data, size_t len, int *ret_fd, struct cairn_error *err);
/* The first len bytes of fd as a terminated string; free() it. */
int blob_text(int fd, uint64_t len, char **ret_text, struct cairn_error *err);

#endif
