/* SPDX-License-Identifier: Apache-2.0 */
/* A directory tree as a checkpoint, and the document that describes it: pure, no I/O.
 *
 *     tensor "files/PATH"            a file's bytes, BYTES, and zeros up to the tensor's length (room to grow)
 *     tensor ".cairn/files/RANK"     the document: JSON, padded with spaces
 *
 *     {"v": 1, "name": "checkpoint-500", "mode": 493, "mtime_ns": 17..., "tracker": {"name": "latest", "text": "..."},
 *      "entries": [{"path": "a", "kind": "dir", "mode": 493, "mtime_ns": 17...},
 *                  {"path": "a/b", "kind": "file", "mode": 420, "mtime_ns": 17..., "size": 12, "xxh3": 32 digits},
 *                  {"path": "c", "kind": "link", "mtime_ns": 17..., "target": "a/b"}]}
 *
 * Entries are in the order of their paths' bytes, so a directory stands before what is in it, and every directory on
 * the way to an entry is an entry. Whoever reads a document trusts nothing in it: files_decode refuses what would lie
 * outside of the tree. */
#ifndef CAIRN_CLIENT_TOOL_FILES_H
#define CAIRN_CLIENT_TOOL_FILES_H

#include "core/model/hash.h"

#include <cairn/cairn.h>
#include <stdbool.h>

#define FILES_TENSOR "files/"
#define FILES_DOCUMENT ".cairn/files/"
#define FILES_MAX_PATH (CAIRN_MAX_TENSOR_NAME - (sizeof FILES_TENSOR - 1))
#define FILES_MAX_NAME 255                       /* of one component, as the systems have it */
#define FILES_MAX_DEPTH 64                       /* directories in directories */
#define FILES_MAX_ENTRIES (1u << 19)             /* of one rank */
#define FILES_MAX_DOCUMENT ((uint64_t)256 << 20) /* bytes */

enum files_kind { FILES_FILE, FILES_DIRECTORY, FILES_LINK };

struct files_entry {
    enum files_kind kind;
    char *path;         /* relative to the tree's root */
    char *target;       /* of a link; else NULL */
    uint32_t mode;      /* permission bits; of a link 0 */
    int64_t mtime_ns;   /* since 1970 */
    uint64_t size;      /* of a file */
    struct hash128 sum; /* of a file: XXH3-128 of its bytes */
    /* Not in the document: */
    uint64_t device, inode; /* as scanned */
    int64_t ctime_ns;       /* as scanned */
    uint64_t room;          /* bytes of its tensor */
    uint32_t rank;          /* whose it is, in a tree of several ranks */
};

struct files {
    char *name;       /* of the root directory */
    uint32_t mode;    /* of the root */
    int64_t mtime_ns; /* of the root */
    char *tracker;    /* name of the file beside the root that names the newest one, or NULL */
    char *tracker_text;
    struct files_entry *entries;
    uint32_t count;
    uint32_t allocated;
    uint64_t document_room; /* bytes of the document's tensor; not in the document */
};

void files_init(struct files *f);
void files_free(struct files *f); /* leaves it as after init */

/* A name of one file or directory: UTF-8 without control characters and slashes, not "." or "..". */
int files_name_check(const char *name, struct cairn_error *err);
/* Names with single slashes between them. */
int files_path_check(const char *path, struct cairn_error *err);
/* The target of a link that lies at path: relative, first any number of "..", then names, and within the tree. A ".."
 * behind a name is refused: what it means depends on where another link leads. */
int files_target_check(const char *path, const char *target, struct cairn_error *err);

int files_set_name(struct files *f, const char *name, struct cairn_error *err);
/* Only the trackers that frameworks write, with the tree's name or a number in them. The name must be set. */
int files_set_tracker(struct files *f, const char *name, const char *text, struct cairn_error *err);
/* Checks an entry and appends a copy of it. */
int files_add(struct files *f, const struct files_entry *e, struct cairn_error *err);
/* Puts the entries in order; refuses two of one path, and one below what is no directory. */
int files_finish(struct files *f, struct cairn_error *err);
/* By path, in a finished tree; NULL: it has none. */
struct files_entry *files_find(const struct files *f, const char *path);

/* The document, without padding; free() it. Its length depends on names, sizes, modes and times, not on checksums. */
int files_encode(const struct files *f, char **ret_text, size_t *ret_len, struct cairn_error *err);
/* Untrusted bytes. On failure f is as after init. */
int files_decode(struct files *f, const char *text, size_t len, struct cairn_error *err);

/* The path of what differs between two scans of one tree (a file that was written to, came or went); NULL: nothing. */
const char *files_changed(const struct files *before, const struct files *now);
/* The path of a file of now that is new, or was written to, since before; NULL: at most some are gone. */
const char *files_added(const struct files *before, const struct files *now);
/* Whether a stored tree describes the one that was scanned: paths, kinds, sizes, times, targets. */
bool files_describe(const struct files *stored, const struct files *scanned);
/* Adds a rank's tree to another's, which stays finished. What both have must be the same, but for directories' modes
 * and times; ranks name them in the error. */
int files_merge(struct files *into, const struct files *from, uint32_t rank, struct cairn_error *err);

/* How long the tensor of so many bytes is: a little longer, so that the next step's file fits a tensor of the same
 * length, and what it was before (0: nothing) as long as that is not wasteful. Equal lengths make equal layouts, and
 * only saves of equal layouts can be stored one against the other. */
uint64_t files_room(uint64_t size, uint64_t before);
/* Room of every file and the order of their tensors: large files first, so that what small ones do moves none of them.
 * order has room for f->count; returns how many files there are. */
uint32_t files_arrange(struct files *f, const struct files *before, uint32_t *order);

#endif
