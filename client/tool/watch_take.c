/* SPDX-License-Identifier: Apache-2.0 */
#include "client/tool/watch_take.h"

#include "client/tool/files_scan.h"
#include "core/base/bytes.h"
#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/units.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define READ_PIECE ((size_t)8 << 20) /* between two looks at whether to stop */
#define OPEN_MS 30000                /* for a session, while the one before us ends */
#define ROOM_MS 60000                /* for room in the arena, while the save before drains */
#define LOOK_MS 500                  /* between two looks at a save */
#define AWAY_MS 30000                /* how long a daemon that is away is waited for */

CAIRN_DEFINE_CLEANUP(struct hash_stream *, hash_stream_free, drop_hash)
#define _cleanup_hash_ CAIRN_CLEANUP(drop_hash)
#define _cleanup_files_ CAIRN_CLEANUP(files_free)

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int check_stop(const struct taker *t, struct cairn_error *err)
{
    return t->stopped(t->arg) ? cairn_fail(err, CAIRN_E_INTR, "stopped by a signal") : 0;
}

/* ---- the session ----------------------------------------------------------------------------- */

void taker_init(struct taker *t)
{
    *t = (struct taker){.world = 1};
    files_init(&t->last);
}

static void close_session(struct taker *t)
{
    cairn_session_close(t->session);
    t->session = NULL;
    t->session_arena = 0;
}

void taker_close(struct taker *t)
{
    close_session(t);
    files_free(&t->last);
}

uint64_t taker_incarnation(const struct taker *t)
{
    return t->session ? cairn_session_incarnation(t->session) : 0;
}

/* The rank may be taken for a moment by the session that has just been closed, or by a watcher that was killed. */
static int open_until(struct taker *t, uint64_t arena_bytes, struct cairn_error *err)
{
    const struct cairn_session_options o = {.size = sizeof o,
                                            .job = t->job,
                                            .rank = t->rank,
                                            .world_size = t->world,
                                            .arena_bytes = arena_bytes,
                                            .start_id = t->start_id,
                                            .socket_path = t->socket};
    int64_t end_ms = now_ms() + OPEN_MS;

    for (;;) {
        int r = check_stop(t, err);
        if (r == 0)
            r = cairn_session_open(&o, &t->session, err);
        if (r == 0)
            t->session_arena = arena_bytes;
        if ((r != CAIRN_E_EXISTS && r != CAIRN_E_BUSY) || now_ms() > end_ms)
            return r;
        poll(NULL, 0, 200);
    }
}

/* Room for this save and for the one before: parts that did not change are stored against it where the daemon does so,
 * as long as it is still in the arena. A daemon that has no room for that gives room for one. */
static int open_session(struct taker *t, uint64_t image_bytes, const char *start_id, struct cairn_error *err)
{
    if (taker_is_open(t, start_id) && t->session_arena >= image_bytes)
        return 0;
    close_session(t);
    files_free(&t->last); /* there is nothing in the new arena to be alike */
    snprintf(t->start_id, sizeof t->start_id, "%s", start_id);
    if (t->arena_bytes && t->arena_bytes < image_bytes)
        return cairn_fail(err, CAIRN_E_TOO_LARGE,
                          "the directory needs an arena of %" PRIu64 " MiB, --arena has %" PRIu64, image_bytes >> 20,
                          t->arena_bytes >> 20);
    if (t->arena_bytes)
        return open_until(t, t->arena_bytes, err);
    int r = open_until(t, 2 * image_bytes + image_bytes / 4, err);
    return r == CAIRN_E_TOO_LARGE ? open_until(t, image_bytes + image_bytes / 16, err) : r;
}

/* ---- reading --------------------------------------------------------------------------------- */

/* A file that is not what was scanned is an error; one that is cut while it is read too, and not a fault: no mapping of
 * it is read. */
static int changed(const struct files_entry *e, struct cairn_error *err)
{
    return cairn_fail(err, CAIRN_E_ABORTED, "%s changed while it was read", e->path);
}

static int read_bytes(const struct taker *t, int fd, const struct files_entry *e, char *to, struct hash_stream *sum,
                      struct cairn_error *err)
{
    for (uint64_t at = 0; at < e->size;) {
        uint64_t want = e->size - at < READ_PIECE ? e->size - at : READ_PIECE;
        int r = check_stop(t, err);
        if (r < 0)
            return r;
        ssize_t n = pread(fd, to + at, want, (off_t)at);
        if (n < 0 && errno != EINTR)
            return cairn_fail_errno(err, errno, "read %s", e->path);
        if (n == 0)
            return changed(e, err);
        if (n > 0)
            hash_stream_add(sum, to + at, (size_t)n);
        at += n > 0 ? (uint64_t)n : 0;
    }
    return 0;
}

static int read_file(const struct taker *t, int root, struct files_entry *e, char *to, struct cairn_error *err)
{
    _cleanup_hash_ struct hash_stream *sum = hash_stream_new();
    _cleanup_close_ int fd = -1;
    struct stat st;

    if (!sum)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a checksum");
    int r = files_open(root, e->path, &fd, &st, err);
    if (r == 0 && !files_is_scanned(e, &st))
        r = changed(e, err);
    if (r == 0)
        r = read_bytes(t, fd, e, to, sum, err);
    if (r == 0 && (fstat(fd, &st) < 0 || !files_is_scanned(e, &st)))
        r = changed(e, err);
    if (r < 0)
        return r;
    memset(to + e->size, 0, e->room - e->size);
    e->sum = hash_stream_end(sum);
    return 0;
}

/* ---- the save -------------------------------------------------------------------------------- */

struct taking {
    struct taker *t;
    int root;
    struct files tree;
    uint32_t *order; /* of the files' tensors */
    uint32_t nfiles;
    char *document; /* before checksums are known: the same length */
    size_t document_len;
    uint64_t document_room;
    struct cairn_save *save;
};

static void taking_free(struct taking *g)
{
    cairn_save_free(g->save);
    files_free(&g->tree);
    free(g->order);
    free(g->document);
}

static int plan(struct taking *g, const struct watch_step *step, const char *tracker, struct cairn_error *err)
{
    char number[24];
    int r = files_scan(g->root, step->name, &g->tree, err);

    if (r == 0 && tracker) {
        snprintf(number, sizeof number, "%" PRIu64, step->step);
        r = files_set_tracker(&g->tree, tracker, strcmp(tracker, "latest") == 0 ? step->name : number, err);
    }
    if (r < 0)
        return r;
    g->order = calloc(g->tree.count + 1, sizeof *g->order);
    if (!g->order)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the order of %u files", g->tree.count);
    return files_encode(&g->tree, &g->document, &g->document_len, err);
}

static uint64_t arrange(struct taking *g)
{
    uint64_t bytes = 0, before = g->t->last.document_room;

    g->nfiles = files_arrange(&g->tree, &g->t->last, g->order);
    g->document_room = files_room(g->document_len, before);
    for (uint32_t i = 0; i < g->nfiles; i++)
        bytes += round_up_u64(g->tree.entries[g->order[i]].room, CAIRN_TENSOR_ALIGN);
    return round_up_u64(bytes + g->document_room, CAIRN_PART);
}

static int add_tensor(struct cairn_save *save, const char *prefix, const char *name, uint64_t bytes,
                      struct cairn_error *err)
{
    char full[CAIRN_MAX_TENSOR_NAME + 1];
    struct cairn_tensor t = {.size = sizeof t, .name = full, .dtype = CAIRN_BYTES, .ndim = 1, .shape = &bytes};

    snprintf(full, sizeof full, "%s%s", prefix, name);
    return cairn_save_add(save, &t, err);
}

static int stage(struct taking *g, uint64_t step, struct cairn_error *err)
{
    const struct cairn_save_options o = {
        .size = sizeof o, .step = step, .on_busy = CAIRN_BUSY_WAIT, .timeout_ms = ROOM_MS};
    char rank[16];
    int r = cairn_save_begin(g->t->session, &o, &g->save, err);

    for (uint32_t i = 0; i < g->nfiles && r == 0; i++) {
        const struct files_entry *e = &g->tree.entries[g->order[i]];
        r = add_tensor(g->save, FILES_TENSOR, e->path, e->room, err);
    }
    snprintf(rank, sizeof rank, "%u", g->t->rank);
    if (r == 0)
        r = add_tensor(g->save, FILES_DOCUMENT, rank, g->document_room, err);
    return r < 0 ? r : cairn_save_stage(g->save, err);
}

static int read_files(struct taking *g, struct cairn_error *err)
{
    int r = 0;

    for (uint32_t i = 0; i < g->nfiles && r == 0; i++) {
        void *to = NULL;
        r = cairn_save_place(g->save, i, &to, err);
        if (r == 0)
            r = read_file(g->t, g->root, &g->tree.entries[g->order[i]], to, err);
    }
    return r;
}

/* Whether it is still the tree that was read: a file may have come or gone, or changed behind our reading. */
static int check_unchanged(struct taking *g, struct cairn_error *err)
{
    _cleanup_files_ struct files now;
    int r = files_scan(g->root, g->tree.name, &now, err);

    if (r < 0)
        return r;
    const char *path = files_changed(&g->tree, &now);
    return path ? cairn_fail(err, CAIRN_E_ABORTED, "%.300s changed while the directory was read", path) : 0;
}

static int write_document(struct taking *g, struct cairn_error *err)
{
    _cleanup_free_ char *text = NULL;
    void *to = NULL;
    size_t len = 0;
    int r = files_encode(&g->tree, &text, &len, err);

    if (r == 0)
        r = cairn_save_place(g->save, g->nfiles, &to, err);
    if (r == 0 && len > g->document_room)
        r = cairn_fail(err, CAIRN_E_TOO_LARGE, "the document grew from %zu to %zu bytes", g->document_len, len);
    if (r < 0)
        return r;
    memcpy(to, text, len);
    memset((char *)to + len, ' ', g->document_room - len);
    return 0;
}

/* ---- the commit ------------------------------------------------------------------------------ */

/* To look does not make the daemon hurry, and connects to nobody: that is done when the daemon is away. */
static int look(struct cairn_save *save, struct cairn_error *err)
{
    int r = cairn_save_wait(save, CAIRN_COMMITTED, 0, err);

    return r == CAIRN_E_UNAVAILABLE ? cairn_save_wait(save, CAIRN_COMMITTED, LOOK_MS, err) : r;
}

/* A daemon that comes back goes on with the save; one that stays away leaves it to the next look at the job's list. */
static int wait_committed(struct taker *t, struct cairn_save *save, struct cairn_error *err)
{
    struct pollfd fd = {.fd = cairn_session_fd(t->session), .events = POLLIN};
    int64_t end_ms = now_ms() + t->commit_ms, away_ms = 0;

    for (;;) {
        int r = check_stop(t, err);
        if (r < 0)
            return r;
        r = look(save, err);
        if (r != CAIRN_E_UNAVAILABLE)
            away_ms = 0;
        else if (away_ms == 0)
            away_ms = now_ms() + AWAY_MS;
        bool goes_on = r == CAIRN_E_TIMEOUT || r == CAIRN_E_INTR || (r == CAIRN_E_UNAVAILABLE && now_ms() < away_ms);
        if (!goes_on || now_ms() > end_ms)
            return r;
        (void)poll(&fd, 1, LOOK_MS);
    }
}

static void remember(struct taking *g)
{
    files_free(&g->t->last);
    g->t->last = g->tree;
    g->t->last.document_room = g->document_room;
    files_init(&g->tree);
}

static int take(struct taking *g, const struct watch_step *step, const char *start_id, const char *tracker,
                struct taken *ret, struct cairn_error *err)
{
    int64_t begun_ms = now_ms();
    int r = plan(g, step, tracker, err);

    if (r == 0)
        r = open_session(g->t, arrange(g), start_id, err);
    if (r < 0)
        return r;
    arrange(g); /* again: a new session has nothing before it */
    r = stage(g, step->step, err);
    if (r == 0)
        r = read_files(g, err);
    if (r == 0)
        r = check_unchanged(g, err);
    if (r == 0)
        r = write_document(g, err);
    if (r == 0)
        r = cairn_save_seal(g->save, err);
    if (r < 0)
        return r;
    ret->read_ms = now_ms() - begun_ms;
    r = wait_committed(g->t, g->save, err);
    ret->commit_ms = now_ms() - begun_ms - ret->read_ms;
    return r;
}

bool taker_is_open(const struct taker *t, const char *start_id)
{
    return t->session && strcmp(t->start_id, start_id) == 0;
}

int taker_open(struct taker *t, int root, const struct watch_step *step, const char *start_id, struct cairn_error *err)
{
    CAIRN_CLEANUP(taking_free) struct taking g = {.t = t, .root = root};

    files_init(&g.tree);
    int r = plan(&g, step, NULL, err);
    return r < 0 ? r : open_session(t, arrange(&g), start_id, err);
}

int taker_save(struct taker *t, int root, const struct watch_step *step, const char *start_id, const char *tracker,
               struct taken *ret, struct cairn_error *err)
{
    CAIRN_CLEANUP(taking_free) struct taking g = {.t = t, .root = root};
    struct taken taken = {0};

    files_init(&g.tree);
    int r = take(&g, step, start_id, tracker, &taken, err);
    if (r == CAIRN_E_FENCED || r == CAIRN_E_STALE_PIN) { /* the save before the session */
        cairn_save_free(TAKE_PTR(g.save));
        close_session(t);
    }
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < g.nfiles; i++)
        taken.bytes += g.tree.entries[g.order[i]].size;
    taken.files = g.nfiles;
    taken.arena_bytes = t->session_arena;
    remember(&g);
    *ret = taken;
    return 0;
}
