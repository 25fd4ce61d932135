/* SPDX-License-Identifier: Apache-2.0 */
/* One stream file.
 *
 *     create: new file, or a removed stream's without a name (recycle.c); room allocated, header in the page cache
 *     append: a write at the end, several at once
 *     sync:   job's directory and its parent durable (once) -> fdatasync, of the header too
 *             without a name: fdatasync -> rename -> job's directory, its parent and the recycled files' durable
 *
 * A write or a sync that failed leaves the kernel's pages in a state that nobody knows: the stream is broken from then
 * on and is never synced again. */
#include "plugins/store-file/store-file.h"

#include "core/base/bytes.h"
#include "core/base/cleanup.h"
#include "core/base/error.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

/* The header block; README.md has the same table. Little-endian, like everything on disk. */
struct stream_header {
    uint64_t magic;
    uint32_t version;
    uint32_t header_len; /* of what the checksum covers */
    uint64_t generation;
    uint64_t step;
    uint64_t incarnation;
    char job[136];
    char node[136];
    uint32_t key_id; /* reserved, 0 */
    uint32_t tenant; /* reserved, 0 */
    uint32_t tier;   /* reserved, 0 */
    uint32_t reserved;
    uint64_t checksum; /* XXH3-64 of everything before it */
};
_Static_assert(sizeof(struct stream_header) == 336, "the header's layout is on disk");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "formats are little-endian");

static uint64_t header_checksum(const struct stream_header *h)
{
    return XXH3_64bits(h, offsetof(struct stream_header, checksum));
}

/* ---- completing requests --------------------------------------------------------------------- */

static int break_stream(struct cairn_store_stream *st, int sys_errno, const char *what, struct cairn_error *err)
{
    int r = cairn_fail_errno(err, sys_errno, "%s %s/streams/%s", what, st->store->path, st->name);

    if (!st->broken) {
        st->broken = true;
        st->why = *err;
    }
    return r;
}

/* Whether the stream is fit for use; else completes the request. */
static bool usable(struct cairn_store_stream *st, struct cairn_store_req *req)
{
    if (!st->broken)
        return true;
    req->err = st->why;
    cairn_wrap(&req->err, CAIRN_E_IO, "given up after an earlier failure");
    req->done(req, CAIRN_E_IO);
    return false;
}

static struct cairn_store_stream *stream_of(struct cairn_store_req *req)
{
    return req->reserved[0];
}

/* ---- append and read ------------------------------------------------------------------------- */

/* The oldest of the files that are kept go one by one, as long as the device is full. */
static bool made_room(struct cairn_store_stream *st, int sys_errno)
{
    return (sys_errno == ENOSPC || sys_errno == EDQUOT) && recycle_give_back(st->store);
}

static void appended(struct cairn_io *io, int64_t result)
{
    struct cairn_store_req *req = io->arg;
    struct cairn_store_stream *st = stream_of(req);

    if (result < 0 && !st->broken && made_room(st, (int)-result))
        st->store->host.pwrite(st->store->host.ctx, io, st->fd, req->reserved[1], (size_t)(uintptr_t)req->reserved[2],
                               req->offset);
    else if (result < 0)
        req->done(req, break_stream(st, (int)-result, "write", &req->err));
    else
        req->done(req, 0);
}

static int allocate(struct cairn_store_stream *st, uint64_t from, uint64_t bytes)
{
    int r;

    do
        r = fallocate(st->fd, 0, (off_t)from, (off_t)bytes);
    while (r < 0 && made_room(st, errno));
    return r;
}

/* More room than was reserved is asked for in pieces of the device's own, before any byte is taken. */
static int make_room(struct cairn_store_stream *st, size_t len, struct cairn_error *err)
{
    uint64_t need = st->end + len, more;

    if (need <= st->allocated)
        return 0;
    more = need - st->allocated;
    if (more < (16u << 20))
        more = 16u << 20;
    if (allocate(st, st->allocated, more) < 0) {
        more = need - st->allocated;
        if (allocate(st, st->allocated, more) < 0)
            return cairn_fail_errno(err, errno, "allocate %" PRIu64 " more bytes for %s/streams/%s", more,
                                    st->store->path, st->name);
    }
    st->allocated += more;
    return 0;
}

void stream_append(struct cairn_store_stream *st, const void *buf, size_t len, struct cairn_store_req *req)
{
    int r;

    if (!usable(st, req))
        return;
    r = make_room(st, len, &req->err);
    if (r < 0) {
        req->done(req, r); /* nothing was written: the stream is as good as before */
        return;
    }
    req->offset = st->end;
    st->end += len;
    req->reserved[0] = st;
    req->reserved[1] = (void *)buf;
    req->reserved[2] = (void *)(uintptr_t)len;
    req->io.done = appended;
    req->io.arg = req;
    st->store->host.pwrite(st->store->host.ctx, &req->io, st->fd, buf, len, req->offset);
}

static void was_read(struct cairn_io *io, int64_t result)
{
    struct cairn_store_req *req = io->arg;
    struct cairn_store_stream *st = stream_of(req);
    size_t len = (size_t)(uintptr_t)req->reserved[1];
    int r = 0;

    if (result < 0)
        r = cairn_fail_errno(&req->err, (int)-result, "read %s/streams/%s at %" PRIu64, st->store->path, st->name,
                             req->offset);
    else if ((size_t)result < len)
        r = cairn_fail(&req->err, CAIRN_E_CORRUPT, "%s/streams/%s ends at %" PRIu64 ", within a record",
                       st->store->path, st->name, req->offset + (uint64_t)result);
    req->done(req, r);
}

void stream_read(struct cairn_store_stream *st, uint64_t offset, void *buf, size_t len, struct cairn_store_req *req)
{
    req->offset = offset;
    req->reserved[0] = st;
    req->reserved[1] = (void *)(uintptr_t)len;
    req->io.done = was_read;
    req->io.arg = req;
    st->store->host.pread(st->store->host.ctx, &req->io, st->fd, buf, len, offset);
}

/* ---- sync ------------------------------------------------------------------------------------ */

/* What a sync flushes, in this order. A new file's name comes before its data: a file without records is no harm. One
 * that held other records gets its name when nothing in it can be taken for them any more. */
enum sync_step { SYNC_NAMELESS, SYNC_JOB, SYNC_STREAMS, SYNC_RECYCLE, SYNC_DATA, SYNC_DONE };
static const char *const sync_what[] = {"fdatasync", "sync the directory of", "sync the parent directory of",
                                        "sync the directory of recycled files for", "fdatasync"};

static int sync_fd(const struct cairn_store_stream *st, enum sync_step step, bool data_done)
{
    const struct cairn_store *s = st->store;

    switch (step) {
    case SYNC_NAMELESS:
        return st->nameless ? st->fd : -1;
    case SYNC_JOB:
        return st->dir_fd;
    case SYNC_STREAMS:
        return st->dir_fd >= 0 && s->dirs_durable < st->dirs ? s->streams_fd : -1;
    case SYNC_RECYCLE:
        return st->dir_fd >= 0 && st->recycled ? s->recycle_fd : -1;
    case SYNC_DATA:
        return data_done ? -1 : st->fd;
    case SYNC_DONE:
        break;
    }
    return -1;
}

static void sync_from(struct cairn_store_stream *st, struct cairn_store_req *req, enum sync_step step);

static void sync_step_done(struct cairn_io *io, int64_t result)
{
    struct cairn_store_req *req = io->arg;
    struct cairn_store_stream *st = stream_of(req);
    enum sync_step step = (enum sync_step)(uintptr_t)req->reserved[1];

    if (result < 0) {
        req->done(req, break_stream(st, (int)-result, sync_what[step], &req->err));
        return;
    }
    if (step == SYNC_STREAMS && st->store->dirs_durable < st->dirs)
        st->store->dirs_durable = st->dirs;
    if (step == SYNC_NAMELESS && st->nameless) {
        if (recycle_name(st->store, st->number, st->name) < 0) {
            req->done(req, break_stream(st, errno, "rename a recycled file to", &req->err));
            return;
        }
        st->nameless = false;
    }
    sync_from(st, req, step + 1);
}

static void sync_from(struct cairn_store_stream *st, struct cairn_store_req *req, enum sync_step step)
{
    for (; step < SYNC_DONE; step++) {
        int fd = sync_fd(st, step, req->reserved[2] != NULL);
        if (step == SYNC_DATA && st->dir_fd >= 0)
            close(TAKE_FD(st->dir_fd));
        if (fd < 0)
            continue;
        if (step == SYNC_NAMELESS)
            req->reserved[2] = st; /* the data, too */
        req->reserved[1] = (void *)(uintptr_t)step;
        st->store->host.fdatasync(st->store->host.ctx, &req->io, fd);
        return;
    }
    req->done(req, 0);
}

void stream_sync(struct cairn_store_stream *st, struct cairn_store_req *req)
{
    req->reserved[0] = st;
    req->reserved[2] = NULL;
    req->io.arg = req;
    req->io.done = sync_step_done;
    if (usable(st, req))
        sync_from(st, req, SYNC_NAMELESS);
}

/* ---- create, open, close --------------------------------------------------------------------- */

static struct cairn_store_stream *stream_new(struct cairn_store *store)
{
    struct cairn_store_stream *st = calloc(1, sizeof *st);

    if (!st)
        return NULL;
    st->store = store;
    list_init(&st->link);
    list_push_back(&store->open, &st->link);
    st->fd = st->dir_fd = -1;
    st->why.size = sizeof st->why;
    return st;
}

/* Readers find it by its name, also when nobody synced it. */
static void end_writing(struct cairn_store_stream *st)
{
    struct cairn_store *s = st->store;

    /* What was reserved and not used goes back; a broken file stays as it is, for whoever looks into it. */
    if (!st->broken && ftruncate(st->fd, (off_t)st->end) < 0)
        st->broken = true;                              /* the room is lost until the file goes; its records are not */
    if (st->broken && st->why.code != CAIRN_E_NO_SPACE) /* a device that failed once: nothing is used again */
        recycle_stop(s);
    if (st->nameless && (st->broken || recycle_name(s, st->number, st->name) < 0))
        recycle_drop(s, st->number); /* none of it was ever durable */
    if (!st->broken)
        recycle_wrote(s, st->generation);
}

void stream_close(struct cairn_store_stream *st)
{
    if (!st)
        return;
    if (st->writing && st->fd >= 0)
        end_writing(st);
    if (st->fd >= 0)
        close(st->fd);
    if (st->dir_fd >= 0)
        close(st->dir_fd);
    list_remove(&st->link);
    free(st->name);
    free(st);
}

const char *stream_name(struct cairn_store_stream *st)
{
    return st->name;
}

static void make_header(const struct cairn_store_stream *st, const struct cairn_stream_id *id, void *block)
{
    struct stream_header h = {.magic = STREAM_MAGIC,
                              .version = STREAM_VERSION,
                              .header_len = offsetof(struct stream_header, checksum),
                              .generation = st->generation,
                              .step = id->step,
                              .incarnation = id->incarnation};

    snprintf(h.job, sizeof h.job, "%s", id->job);
    snprintf(h.node, sizeof h.node, "%s", id->node);
    h.checksum = header_checksum(&h);
    memset(block, 0, BLOCK);
    memcpy(block, &h, sizeof h);
}

static int write_block(struct cairn_store_stream *st, const void *block, uint64_t at, struct cairn_error *err)
{
    ssize_t n = pwrite(st->fd, block, BLOCK, (off_t)at);

    return n == BLOCK ? 0
                      : cairn_fail_errno(err, n < 0 ? errno : EIO, "write at %" PRIu64 " of %s/streams/%s", at,
                                         st->store->path, st->name);
}

/* The header, and the block that ends what is left of a removed stream. Through the page cache, so that they are there
 * at once and nothing is on its way that a close would have to wait for. The first sync makes them durable. */
static int write_header(struct cairn_store_stream *st, const struct cairn_stream_id *id, uint64_t old_end,
                        struct cairn_error *err)
{
    char block[BLOCK], blank[BLOCK] = CAIRN_STORE_BLANK;
    int flags = fcntl(st->fd, F_GETFL);

    make_header(st, id, block);
    if (flags < 0 || fcntl(st->fd, F_SETFL, flags & ~O_DIRECT) < 0)
        return cairn_fail_errno(err, errno, "set the flags of %s/streams/%s", st->store->path, st->name);
    int r = write_block(st, block, 0, err);
    if (r == 0 && old_end)
        r = write_block(st, blank, old_end, err);
    if (r == 0 && fcntl(st->fd, F_SETFL, flags) < 0)
        r = cairn_fail_errno(err, errno, "set the flags of %s/streams/%s", st->store->path, st->name);
    return r;
}

static int open_directory(struct cairn_store_stream *st, const struct cairn_stream_id *id, struct cairn_error *err)
{
    struct cairn_store *s = st->store;

    if (mkdirat(s->streams_fd, id->job, 0750) == 0)
        s->dirs_made++;
    else if (errno != EEXIST)
        return cairn_fail_errno(err, errno, "create the directory %s/streams/%s", s->path, id->job);
    st->dirs = s->dirs_made;
    st->dir_fd = openat(s->streams_fd, id->job, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    return st->dir_fd < 0 ? cairn_fail_errno(err, errno, "open the directory %s/streams/%s", s->path, id->job) : 0;
}

static int open_new_file(struct cairn_store_stream *st, const struct cairn_stream_id *id, uint64_t bytes,
                         struct cairn_error *err)
{
    struct cairn_store *s = st->store;
    int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | (s->direct ? O_DIRECT : 0);

    if (asprintf(&st->name, "%s/%" PRIu64 ".%" PRIu64 ".%s.%016" PRIx64 ".cairn", id->job, id->step, id->incarnation,
                 id->node, st->generation) < 0) {
        st->name = NULL;
        return cairn_fail(err, CAIRN_E_NOMEM, "name a stream");
    }
    int r = open_directory(st, id, err);
    if (r < 0)
        return r;
    st->fd = recycle_hand_out(s, bytes, flags, &st->number);
    st->recycled = st->nameless = st->fd >= 0;
    if (st->fd < 0)
        st->fd = openat(s->streams_fd, st->name, flags | O_CREAT | O_EXCL, 0640);
    if (st->fd < 0)
        return cairn_fail_errno(err, errno, "create %s/streams/%s", s->path, st->name);
    st->writing = true;
    st->end = BLOCK;
    return 0;
}

/* Of a removed stream's file no more is kept than this one asks for. ret_old_end: where what is left of it ends; 0: it
 * is a new file. */
static int reserve(struct cairn_store_stream *st, uint64_t reserve_bytes, uint64_t *ret_old_end,
                   struct cairn_error *err)
{
    struct cairn_space space;
    uint64_t bytes = round_up_u64(reserve_bytes, BLOCK) + BLOCK, held, old_end;
    struct stat sb;
    int r = store_space_of(st->store, &space, err);

    if (r < 0)
        return r;
    if (fstat(st->fd, &sb) < 0)
        return cairn_fail_errno(err, errno, "look at %s/streams/%s", st->store->path, st->name);
    held = (uint64_t)sb.st_blocks * 512;
    if (bytes > space.free_bytes + held)
        return cairn_fail(err, CAIRN_E_NO_SPACE,
                          "reserve %" PRIu64 " MiB in %s: %" PRIu64 " MiB are free beyond the reserve", bytes >> 20,
                          st->store->path, space.free_bytes >> 20);
    old_end = (uint64_t)sb.st_size < bytes ? (uint64_t)sb.st_size : bytes;
    if ((uint64_t)sb.st_size > bytes && ftruncate(st->fd, (off_t)bytes) < 0)
        return cairn_fail_errno(err, errno, "cut %s/streams/%s", st->store->path, st->name);
    if (allocate(st, 0, bytes + (old_end ? BLOCK : 0)) < 0)
        return cairn_fail_errno(err, errno, "reserve %" PRIu64 " MiB for %s/streams/%s", bytes >> 20, st->store->path,
                                st->name);
    st->allocated = bytes;
    *ret_old_end = old_end;
    return 0;
}

/* A stream that was not made leaves nothing. */
static void discard(struct cairn_store_stream *st)
{
    if (st->nameless)
        recycle_drop(st->store, st->number);
    else if (st->fd >= 0)
        unlinkat(st->store->streams_fd, st->name, 0);
    st->writing = false;
    stream_close(st);
}

int stream_create(struct cairn_store *store, const struct cairn_stream_id *id, uint64_t reserve_bytes,
                  struct cairn_store_stream **ret_stream, uint64_t *ret_generation, struct cairn_error *err)
{
    struct cairn_store_stream *st;
    uint64_t old_end = 0;
    int r = 0;

    if (!name_is_safe(id->job) || !name_is_safe(id->node) || reserve_bytes > (uint64_t)1 << 50)
        return cairn_fail(err, CAIRN_E_INVAL,
                          "a stream of job \"%.128s\" and node \"%.128s\": a name is not allowed, or %" PRIu64
                          " bytes are too many",
                          id->job, id->node, reserve_bytes);
    st = stream_new(store);
    if (!st)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a stream");
    if (getrandom(&st->generation, sizeof st->generation, 0) != sizeof st->generation)
        r = cairn_fail_errno(err, errno, "draw a generation");
    if (r == 0)
        r = open_new_file(st, id, reserve_bytes + BLOCK, err);
    if (r == 0)
        r = reserve(st, reserve_bytes, &old_end, err);
    if (r == 0)
        r = write_header(st, id, old_end, err);
    if (r < 0) {
        discard(st);
        return r;
    }
    *ret_stream = st;
    *ret_generation = st->generation;
    return 0;
}

static int check_header(const struct stream_header *h, const char *name, struct cairn_error *err)
{
    char want[512];

    if (h->magic != STREAM_MAGIC)
        return cairn_fail(err, CAIRN_E_CORRUPT, "it is no stream file (magic %016" PRIx64 ")", h->magic);
    if (h->version != STREAM_VERSION)
        return cairn_fail(err, CAIRN_E_UNSUPPORTED, "it has version %u, this reader knows %d", h->version,
                          STREAM_VERSION);
    if (h->checksum != header_checksum(h))
        return cairn_fail(err, CAIRN_E_CORRUPT, "its header's checksum does not match");
    if (!memchr(h->job, 0, CAIRN_MAX_NAME + 1) || !memchr(h->node, 0, CAIRN_MAX_NAME + 1) || !name_is_safe(h->job) ||
        !name_is_safe(h->node))
        return cairn_fail(err, CAIRN_E_CORRUPT, "its header has a name that is not allowed");
    snprintf(want, sizeof want, "%s/%" PRIu64 ".%" PRIu64 ".%s.%016" PRIx64 ".cairn", h->job, h->step, h->incarnation,
             h->node, h->generation);
    if (strcmp(want, name) != 0)
        return cairn_fail(err, CAIRN_E_CORRUPT, "its header says that it is %s", want);
    return 0;
}

static int read_header(struct cairn_store_stream *st, struct stream_header *ret, struct cairn_error *err)
{
    _cleanup_free_ void *block = aligned_alloc(BLOCK, BLOCK);
    ssize_t n = block ? pread(st->fd, block, BLOCK, 0) : -1;

    if (!block)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a header block");
    if (n < 0)
        return cairn_fail_errno(err, errno, "read its header");
    if (n < BLOCK)
        return cairn_fail(err, CAIRN_E_CORRUPT, "it has %zd bytes and no header", n);
    memcpy(ret, block, sizeof *ret);
    return check_header(ret, st->name, err);
}

static int open_old_file(struct cairn_store_stream *st, const char *name, struct stream_header *h,
                         struct cairn_error *err)
{
    struct stat sb;

    st->name = strdup(name);
    if (!st->name)
        return cairn_fail(err, CAIRN_E_NOMEM, "copy a name");
    st->fd =
        openat(st->store->streams_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | (st->store->direct ? O_DIRECT : 0));
    if (st->fd < 0)
        return cairn_fail_errno(err, errno, "open it");
    if (fstat(st->fd, &sb) < 0)
        return cairn_fail_errno(err, errno, "look at it");
    st->end = (uint64_t)sb.st_size;
    return read_header(st, h, err);
}

int stream_open(struct cairn_store *store, const char *name, struct cairn_store_stream **ret_stream,
                struct cairn_stream_id *ret_id, uint64_t *ret_generation, uint64_t *ret_end, struct cairn_error *err)
{
    struct cairn_store_stream *st = stream_new(store);
    struct stream_header h;
    int r = st ? open_old_file(st, name, &h, err) : cairn_fail(err, CAIRN_E_NOMEM, "allocate a stream");

    if (r < 0) {
        stream_close(st);
        return cairn_wrap(err, r, "stream file %s/streams/%s", store->path, name);
    }
    *ret_id = (struct cairn_stream_id){.step = h.step, .incarnation = h.incarnation};
    memcpy(ret_id->job, h.job, CAIRN_MAX_NAME + 1); /* terminated: check_header saw to it */
    memcpy(ret_id->node, h.node, CAIRN_MAX_NAME + 1);
    st->generation = *ret_generation = h.generation;
    *ret_end = st->end;
    *ret_stream = st;
    return 0;
}
