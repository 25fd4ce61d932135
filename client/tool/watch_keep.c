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
#define KEPT ".cairn-kept-" /* of one that was not to be removed, and whose name was taken meanwhile: as long as GONE \
                             */
#define READ_MS 60000
#define PAUSE_MS 10000

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

/* What an earlier one of us did not come to remove. */
static void remove_leftovers(const struct watch *w)
{
    int own = openat(w->directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = own >= 0 ? fdopendir(own) : NULL;
    const struct dirent *e;

    if (!d && own >= 0)
        close(own);
    while (d && (e = readdir(d)))
        if (strncmp(e->d_name, GONE, strlen(GONE)) == 0)
            (void)files_remove(w->directory, e->d_name, NULL);
    if (d)
        closedir(d);
}

static bool may_pass(int code)
{
    return code == CAIRN_E_UNAVAILABLE || code == CAIRN_E_TIMEOUT || code == CAIRN_E_BUSY;
}

void watch_keep(struct watch *w, int64_t now_ms)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (w->o->keep == 0 || w->directory < 0 || now_ms < w->keep_ms)
        return;
    remove_leftovers(w);
    for (int i; (i = watch_expired(w->steps, w->nsteps, w->o->keep)) >= 0 && !signals_came(&w->signals);) {
        struct watch_step *s = &w->steps[i];
        int r = remove_step(w, s, &err);
        if (r < 0) {
            watch_log_error(w, "kept", s->name, &err);
            s->stays = !may_pass(r);
            w->keep_ms = now_ms + PAUSE_MS;
            if (!s->stays)
                return;
            continue;
        }
        watch_log(w, "removed", json_pack("{s:I, s:s}", "step", (json_int_t)s->step, "directory", s->name));
        s->there = false;
    }
}
