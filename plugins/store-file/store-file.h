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
#define RECYCLE_WROTE 4096                   /* streams that are remembered as this process's own */
#define RECYCLE_SMALLEST ((uint64_t)1 << 20) /* less is not worth a name */
#define RECYCLE_SLACK ((uint64_t)4 << 20)    /* or twice the size: a file that is larger by more is not cut down */
struct recycled {
    uint64_t number;  /* its name; grows */
    uint64_t bytes;   /* that it holds on the device */
    uint64_t since_s; /* on the clock of boot time */
};

struct cairn_store {
    struct cairn_host host;
    char *path;
    int lock_fd;
    int streams_fd;         /* the directory of all jobs */
    bool direct;            /* the file system takes O_DIRECT */
    uint64_t reserve_bytes; /* of the device, never given out */
    struct list open;       /* streams */
    uint64_t dirs_made;     /* jobs' directories; those that were found count as one that was made */
    uint64_t dirs_durable;  /* so many of them */
    int recycle_fd;         /* the directory of removed files */
    uint64_t recycle_max, recycle_idle_s, recycled_bytes, recycle_next;
    struct recycled recycled[RECYCLE_FILES]; /* whose old names are durably gone */
    unsigned nrecycled;
    uint64_t wrote[RECYCLE_WROTE]; /* generations of streams that this process wrote and closed: a ring */
    size_t nwrote;
};

struct cairn_store_stream {
    struct list link; /* in store.open */
    struct cairn_store *store;
    char *name; /* JOB/STEP.INC.NODE.GENERATION.cairn */
    int fd;
    int dir_fd;    /* of the job; -1 once the name is durable, or for reading */
    uint64_t dirs; /* store.dirs_made when it was created */
    bool writing;
    bool recycled; /* over a removed stream's file */
    bool nameless; /* that file is still in recycle/, as: */
    uint64_t number;
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
int store_space_of(struct cairn_store *store, struct cairn_space *ret_space, struct cairn_error *err);

/* ---- recycle.c ------------------------------------------------------------------------------- */
/* Opens the directory and removes what another process left in it; streams_fd is open. */
int recycle_open(struct cairn_store *s, int dir_fd, struct cairn_error *err);
void recycle_close(struct cairn_store *s);
/* The stream was written by this process and is closed: its file may be kept when it is removed. */
void recycle_wrote(struct cairn_store *s, uint64_t generation);
/* Takes the stream's file away from its name; false: it is there still, and is to be removed. Once that is durable the
 * file is added, or dropped when it could not be made so. */
bool recycle_take_away(struct cairn_store *s, const char *name, struct recycled *ret_file);
void recycle_add(struct cairn_store *s, const struct recycled *file);
void recycle_drop(struct cairn_store *s, uint64_t number);
/* A file that held a removed stream, opened with these flags; -1: none fits. It is named once its header is durable. */
int recycle_hand_out(struct cairn_store *s, uint64_t bytes, int flags, uint64_t *ret_number);
int recycle_name(struct cairn_store *s, uint64_t number, const char *name); /* -1 and errno */
/* The bound, with so much free on the device, and the idle ones. */
void recycle_trim(struct cairn_store *s, uint64_t device_free);
/* Gives the room of the oldest back; false: there is none. */
bool recycle_give_back(struct cairn_store *s);
void recycle_stop(struct cairn_store *s); /* gives all back and keeps none from now on */

#endif
