/* SPDX-License-Identifier: Apache-2.0 */
/* Taking a step's directory up: read straight into the arena, sealed, and followed until it is committed.
 *
 *     scan --> room for every file --> session (its arena large enough) --> stage --> read each file into its place
 *     --> scan again: nothing may have changed --> the document --> seal --> committed
 *
 * What changed under us gives the save up, before it was sealed: nothing torn is ever a checkpoint. */
#ifndef CAIRN_CLIENT_TOOL_WATCH_TAKE_H
#define CAIRN_CLIENT_TOOL_WATCH_TAKE_H

#include "client/tool/files.h"
#include "client/tool/watch_rules.h"

struct taker {
    /* given */
    const char *job;
    const char *socket; /* NULL: libcairn's default */
    uint32_t rank, world;
    uint64_t arena_bytes;             /* 0: sized by what is saved */
    uint32_t commit_ms;               /* how long a commit is waited for */
    bool (*stopped)(const void *arg); /* whether to end as soon as possible; asked often */
    const void *arg;
    /* its own */
    struct cairn_session *session; /* NULL: none is open */
    char start_id[CAIRN_MAX_NAME + 1];
    uint64_t session_arena;
    struct files last; /* the tree that was saved last: tensors keep their lengths */
};

struct taken { /* what it took */
    uint64_t files, bytes;
    uint64_t arena_bytes;
    int64_t read_ms, commit_ms;
};

void taker_init(struct taker *t);
void taker_close(struct taker *t); /* also the session */
/* 0: there is no session. */
uint64_t taker_incarnation(const struct taker *t);

/* Whether a session of this start is open. */
bool taker_is_open(const struct taker *t, const char *start_id);
/* Opens one for a directory of this size, so that its incarnation is known before anything is saved. */
int taker_open(struct taker *t, int root, const struct watch_step *step, const char *start_id, struct cairn_error *err);
/* Saves the directory that is open as root. start_id is the one to save under: another one than the session's opens a
 * new session. tracker: the marker's name and its text, or NULL. Errors: ABORTED when something changed while it was
 * read or the checkpoint was given up, INTR when it was stopped, INVAL names the file that cannot be kept. */
int taker_save(struct taker *t, int root, const struct watch_step *step, const char *start_id, const char *tracker,
               struct taken *ret, struct cairn_error *err);

#endif
