/* SPDX-License-Identifier: Apache-2.0 */
/* --keep: a directory goes only when its checkpoint is committed and its stored document describes what is there: the
 * step's number alone proves nothing. It gets another name first, so that nobody finds half of it. */
#include "client/tool/watch_internal.h"

#include "client/tool/files_scan.h"
#include "client/tool/files_stored.h"
#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define GONE ".cairn-gone-" /* in front of a name that is being removed */
#define KEPT                                                                                                 \
    ".cairn-kept-" /* of one that was not to be removed, and whose name was taken meanwhile: as long as GONE \
                    */
#define READ_MS 60000
#define PAUSE_MS 10000
#define STAYS_MS 600000 /* between two looks at a leftover that cannot go */

CAIRN_DEFINE_CLEANUP(DIR *, closedir, drop_dir)
#define _cleanup_dir_ CAIRN_CLEANUP(drop_dir)
#define _cleanup_files_ CAIRN_CLEANUP(files_free)

static int read_stored(const struct watch *w, uint64_t step, struct files *ret, struct cairn_error *err)
{
    struct cairn_restore *restore = NULL;
    struct cairn_session *session;
    int r = tool_open(&w->o->tool, w->o->job, &session, err);

    if (r < 0)
        return r;
    r = cairn_restore_open(session, step, READ_MS, &restore, err);
    if (r == 0)
        r = files_stored(restore, w->o->rank, READ_MS, ret, err);
    cairn_restore_free(restore);
    cairn_session_close(session);
    return r;
}

/* Whether what is called name is the step's directory, with what is stored in it. */
static int check_stored(const struct watch *w, const struct watch_step *s, const char *name, const struct files *stored,
                        struct cairn_error *err)
{
    _cleanup_files_ struct files there = {0};
    _cleanup_close_ int fd = -1;
    struct watch_step called = *s;

    snprintf(called.name, sizeof called.name, "%s", name);
    int r = watch_open_step(w, &called, &fd, err);
    if (r == 0)
        r = files_scan(fd, s->name, &there, err);
    if (r == 0 && !files_describe(stored, &there))
        r = cairn_fail(err, CAIRN_E_EXISTS, "it is not what is stored as this step");
    return r;
}

/* Its name is looked at again when nobody finds it any more: another directory may have got it, or somebody have
 * written to it, since it was compared. */
static int remove_step(const struct watch *w, const struct watch_step *s, struct cairn_error *err)
{
    _cleanup_files_ struct files stored = {0};
    char gone[256];

    int r = read_stored(w, s->step, &stored, err);
    if (r == 0)
        r = check_stored(w, s, s->name, &stored, err);
    if (r < 0)
        return r;
    if (snprintf(gone, sizeof gone, GONE "%s", s->name) >= (int)sizeof gone)
        return files_remove(w->directory, s->name, err);
    if (renameat(w->directory, s->name, w->directory, gone) < 0)
        return cairn_fail_errno(err, errno, "rename %s", s->name);
    r = check_stored(w, s, gone, &stored, err);
    if (r == 0)
        return files_remove(w->directory, gone, err);
    if (renameat(w->directory, gone, w->directory, s->name) <
        0) { /* no directory that has something in it is replaced */
        char kept[sizeof KEPT + sizeof s->name];
        snprintf(kept, sizeof kept, KEPT "%s", s->name);
        (void)renameat(w->directory, gone, w->directory, kept);
    }
    return r;
}

static bool may_pass(int code)
{
    return code == CAIRN_E_UNAVAILABLE || code == CAIRN_E_TIMEOUT || code == CAIRN_E_BUSY;
}

/* ---- leftovers ------------------------------------------------------------------------------- */

/* Whether a leftover has nothing but what is stored as its step. It may have less: some of it is removed already. */
static int check_leftover(const struct watch *w, const char *name, struct cairn_error *err)
{
    _cleanup_files_ struct files stored = {0}, there = {0};
    _cleanup_close_ int fd = openat(w->directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    const char *called = name + strlen(GONE), *path;
    uint64_t step;

    if (fd < 0)
        return cairn_fail_errno(err, errno, "open the directory %s", name);
    if (!watch_step_of(w->o->rule.pattern, called, &step))
        return cairn_fail(err, CAIRN_E_INVAL, "its name is no step's");
    int r = files_scan(fd, called, &there, err);
    if (r < 0 || there.count == 0)
        return r;
    r = read_stored(w, step, &stored, err);
    if (r == 0 && (path = files_added(&stored, &there)))
        r = cairn_fail(err, CAIRN_E_EXISTS, "it has %s, which is not stored as step %llu", path,
                       (unsigned long long)step);
    return r;
}

/* When it is to be looked at again; INT64_MAX: never, it is removed or has a name that nobody removes. */
static int64_t remove_leftover(const struct watch *w, const char *name, int64_t now_ms)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    char kept[sizeof KEPT + 256];

    int r = check_leftover(w, name, &err);
    bool same = r == 0;
    if (same)
        r = files_remove(w->directory, name, &err);
    if (r == 0)
        return INT64_MAX;
    snprintf(kept, sizeof kept, KEPT "%s", name + strlen(GONE));
    bool renamed = !same && !may_pass(r) && renameat(w->directory, name, w->directory, kept) == 0;
    (void)cairn_wrap(&err, r, "left of a directory whose removal did not end");
    watch_log_error(w, "kept", renamed ? kept : name, &err);
    return renamed ? INT64_MAX : now_ms + (may_pass(r) ? PAUSE_MS : STAYS_MS);
}

/* What an earlier one of us did not come to remove. What it is was true then: somebody may have written to it, or put
 * it there, since. */
static void remove_leftovers(struct watch *w, int64_t now_ms)
{
    int own = openat(w->directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    _cleanup_dir_ DIR *d = own >= 0 ? fdopendir(own) : NULL;
    const struct dirent *e;
    struct stat st;

    if (!d && own >= 0)
        close(own);
    w->leftovers_ms = d ? INT64_MAX : now_ms + PAUSE_MS;
    while (d && !signals_came(&w->signals) && (e = readdir(d))) {
        if (strncmp(e->d_name, GONE, strlen(GONE)) != 0 ||
            fstatat(w->directory, e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISDIR(st.st_mode))
            continue;
        int64_t again_ms = remove_leftover(w, e->d_name, now_ms);
        if (again_ms < w->leftovers_ms)
            w->leftovers_ms = again_ms;
    }
}

void watch_keep(struct watch *w, int64_t now_ms)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (w->o->keep == 0 || w->directory < 0 || now_ms < w->keep_ms)
        return;
    if (now_ms >= w->leftovers_ms)
        remove_leftovers(w, now_ms);
    for (int i; (i = watch_expired(w->steps, w->nsteps, w->o->keep)) >= 0 && !signals_came(&w->signals);) {
        struct watch_step *s = &w->steps[i];
        int r = remove_step(w, s, &err);
        if (r < 0) {
            watch_log_error(w, "kept", s->name, &err);
            s->stays = !may_pass(r);
            w->keep_ms = now_ms + PAUSE_MS;
            if (w->leftovers_ms > w->keep_ms)
                w->leftovers_ms = w->keep_ms; /* it may have its other name already */
            if (!s->stays)
                return;
            continue;
        }
        watch_log(w, "removed", json_pack("{s:I, s:s}", "step", (json_int_t)s->step, "directory", s->name));
        s->there = false;
    }
}
