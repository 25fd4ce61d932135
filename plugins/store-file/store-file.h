/* SPDX-License-Identifier: Apache-2.0 */
/* store-file: store.c is the directory, stream.c one file in it, recycle.c what is left of removed ones. README.md
 * describes both formats. */
#ifndef CAIRN_PLUGINS_STORE_FILE_H
#define CAIRN_PLUGINS_STORE_FILE_H

#include "core/base/list.h"

#include <cairn/plugin.h>
#include <stdbool.h>

#define BLOCK 4096
#define STREAM_MAGIC 0x314d5254534e5243ull /* "CRNSTRM1" */
#define STREAM_VERSION 1

#define RECYCLE_FILES 1024
#define RECYCLE_SMALLEST ((uint64_t)1 << 20) /* less is not worth a name */
struct recycled {
    uint64_t number; /* its name */
    uint64_t bytes;  /* that it holds on the device */
};

struct cairn_store {
    struct cairn_host host;
    char *path;
    int lock_fd;
    int streams_fd;         /* the directory of all jobs */
    bool direct;            /* the file system takes O_DIRECT */
    uint64_t reserve_bytes; /* of the device, never given out */
    struct list open;       /* streams */
    int recycle_fd;         /* the directory of removed files */
    uint64_t recycle_max, recycled_bytes, recycle_next;
    struct recycled recycled[RECYCLE_FILES];
    unsigned nrecycled;
};

struct cairn_store_stream {
    struct list link; /* in store.open */
    struct cairn_store *store;
    char *name; /* JOB/STEP.INC.NODE.GENERATION.cairn */
    int fd;
    int dir_fd; /* of the job; -1 once it is durable, or for reading */
    bool writing;
    uint64_t generation;
    uint64_t end;       /* where the next record goes */
    uint64_t allocated; /* bytes the device holds for it */
    bool broken;
    struct cairn_error why; /* when broken */
};

/* ---- stream.c -------------------------------------------------------------------------------- */
int stream_create(struct cairn_store *store, const struct cairn_stream_id *id, uint64_t reserve_bytes,
                  struct cairn_store_stream **ret_stream, uint64_t *ret_generation, struct cairn_error *err);
int stream_open(struct cairn_store *store, const char *name, struct cairn_store_stream **ret_stream,
                struct cairn_stream_id *ret_id, uint64_t *ret_generation, uint64_t *ret_end, struct cairn_error *err);
void stream_close(struct cairn_store_stream *st);
const char *stream_name(struct cairn_store_stream *st);
void stream_append(struct cairn_store_stream *st, const void *buf, size_t len, struct cairn_store_req *req);
void stream_sync(struct cairn_store_stream *st, struct cairn_store_req *req);
void stream_read(struct cairn_store_stream *st, uint64_t offset, void *buf, size_t len, struct cairn_store_req *req);

/* ---- store.c --------------------------------------------------------------------------------- */
bool name_is_safe(const char *name); /* [A-Za-z0-9._-]+, no "." and ".." */
/* ---- recycle.c ------------------------------------------------------------------------------- */
/* Opens the directory and removes what another process left in it. */
int recycle_open(struct cairn_store *s, int dir_fd, struct cairn_error *err);
void recycle_close(struct cairn_store *s);
/* Takes the stream's file away for later; false: it is there still, and is to be removed. */
bool recycle_keep(struct cairn_store *s, const char *name);
/* A file that held a removed stream has this name now; false: none has. */
bool recycle_take(struct cairn_store *s, const char *name, uint64_t bytes);
/* Gives all their room back; false: there were none. */
bool recycle_give_up(struct cairn_store *s);

int store_space_of(struct cairn_store *store, struct cairn_space *ret_space, struct cairn_error *err);

#endif
