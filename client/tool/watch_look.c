/* SPDX-License-Identifier: Apache-2.0 */
#include "client/tool/watch_internal.h"

#include "client/tool/files_scan.h"
#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#define MAX_MARKER ((size_t)64 << 20) /* bytes of a marker that is read */
#define MAX_STEPS 100000
#define CALM_MS 100 /* between two looks, however many events there are */
#define EVENTS (IN_CREATE | IN_MOVED_TO | IN_CLOSE_WRITE | IN_ONLYDIR)

CAIRN_DEFINE_CLEANUP(DIR *, closedir, drop_dir)
#define _cleanup_dir_ CAIRN_CLEANUP(drop_dir)

struct marker { /* a tracker's text, the same for all steps of a look */
    char *text;
    size_t len;
};

/* ---- markers --------------------------------------------------------------------------------- */

static int read_marker(int dir, const char *name, struct marker *ret)
{
    _cleanup_close_ int fd = -1;
    struct stat st;
    size_t len = 0;

    if (files_open(dir, name, &fd, &st, NULL) < 0 || (uint64_t)st.st_size > MAX_MARKER)
        return -1;
    _cleanup_free_ char *text = malloc((size_t)st.st_size + 1);
    while (text && len < (size_t)st.st_size) {
        ssize_t n = pread(fd, text + len, (size_t)st.st_size - len, (off_t)len);
        if (n <= 0)
            return -1;
        len += (size_t)n;
    }
    if (!text)
        return -1;
    *ret = (struct marker){TAKE_PTR(text), len};
    return 0;
}

static bool is_marked(const struct watch_rule *rule, int fd, const struct watch_step *s, const struct marker *tracker)
{
    struct marker own = {0};
    struct stat st;

    if (rule->marker == WATCH_RENAME || rule->marker == WATCH_SETTLE)
        return true;
    if (rule->marker == WATCH_TRACKER)
        return tracker->text && watch_marker_says(rule, tracker->text, tracker->len, s->name, s->step);
    if (!rule->step_in)
        return fstatat(fd, rule->file, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode);
    bool says = read_marker(fd, rule->file, &own) == 0 && watch_marker_says(rule, own.text, own.len, s->name, s->step);
    free(own.text);
    return says;
}

/* ---- steps ----------------------------------------------------------------------------------- */

static int compare(const struct watch_step *s, uint64_t step, const char *name)
{
    return s->step != step ? (s->step < step ? -1 : 1) : strcmp(s->name, name);
}

/* Two directories may have one number: the one that is complete first is the step, and then the other is known. */
static struct watch_step *find_step(struct watch *w, uint64_t step, const char *name, size_t *ret_at)
{
    size_t low = 0, high = w->nsteps;

    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (compare(&w->steps[mid], step, name) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    *ret_at = low;
    return low < w->nsteps && compare(&w->steps[low], step, name) == 0 ? &w->steps[low] : NULL;
}

static struct watch_step *new_step(struct watch *w, size_t at)
{
    if (w->nsteps >= MAX_STEPS)
        return NULL;
    if (w->nsteps == w->steps_room) {
        size_t room = w->steps_room ? 2 * w->steps_room : 16;
        struct watch_step *more = realloc(w->steps, room * sizeof *more);
        if (!more)
            return NULL;
        w->steps = more;
        w->steps_room = room;
    }
    memmove(&w->steps[at + 1], &w->steps[at], (w->nsteps - at) * sizeof *w->steps);
    w->nsteps++;
    w->steps[at] = (struct watch_step){0};
    return &w->steps[at];
}

static struct watch_step *note_step(struct watch *w, const char *name, uint64_t step, const struct stat *st,
                                    int64_t now_ms)
{
    size_t at;
    struct watch_step *s = find_step(w, step, name, &at);

    if (s && s->device == st->st_dev && s->inode == st->st_ino)
        return s;
    if (!s)
        s = new_step(w, at);
    if (!s)
        return NULL;
    *s = (struct watch_step){
        .step = step, .device = st->st_dev, .inode = st->st_ino, .same_since_ms = now_ms, .fate = WATCH_PENDING};
    memcpy(s->name, name, strnlen(name, sizeof s->name - 1)); /* the rest is zero */
    return s;
}

static void look_at_step(struct watch *w, struct watch_step *s, const struct marker *tracker, int64_t now_ms)
{
    const struct watch_rule *rule = &w->o->rule;
    _cleanup_close_ int fd = -1;
    uint64_t signature = 0;

    if (s->fate == WATCH_COMMITTED || s->fate == WATCH_PASSED || watch_open_step(w, s, &fd, NULL) < 0)
        return;
    if (!s->marked || rule->marker == WATCH_FILE) /* that goes when the step is written anew in its place */
        s->marked = is_marked(rule, fd, s, tracker);
    if (rule->settle_ms > 0 && (files_signature(fd, &signature, NULL) < 0 || signature != s->signature)) {
        s->signature = signature;
        s->same_since_ms = now_ms;
    }
    if (w->inotify >= 0 && !s->marked) { /* its marker will be an event */
        char path[64];
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        (void)inotify_add_watch(w->inotify, path, EVENTS);
    }
}

static void look_at(struct watch *w, DIR *d, const struct marker *tracker, int64_t now_ms)
{
    const struct dirent *e;

    while ((e = readdir(d))) {
        uint64_t step;
        struct stat st;
        if (!watch_step_of(w->o->rule.pattern, e->d_name, &step) ||
            fstatat(w->directory, e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISDIR(st.st_mode))
            continue;
        struct watch_step *s = note_step(w, e->d_name, step, &st, now_ms);
        if (!s)
            continue;
        s->there = true;
        look_at_step(w, s, tracker, now_ms);
    }
}

static void drop_gone(struct watch *w)
{
    size_t n = 0;

    for (size_t i = 0; i < w->nsteps; i++)
        if (w->steps[i].there)
            w->steps[n++] = w->steps[i];
    w->nsteps = n;
}

/* Opened anew for every look: it may have been moved away and made again. */
static bool open_directory(struct watch *w)
{
    bool was_there = w->directory >= 0;

    if (was_there)
        close(w->directory);
    w->directory = open(w->o->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (w->directory < 0 && was_there)
        watch_log(w, "away", json_pack("{s:s, s:s}", "directory", w->o->directory, "because", strerror(errno)));
    if (w->directory >= 0 && w->inotify >= 0)
        (void)inotify_add_watch(w->inotify, w->o->directory, EVENTS);
    return w->directory >= 0;
}

void watch_look(struct watch *w, int64_t now_ms)
{
    const struct watch_rule *rule = &w->o->rule;
    struct marker tracker = {0};

    for (size_t i = 0; i < w->nsteps; i++)
        w->steps[i].there = false;
    if (open_directory(w)) {
        int own = openat(w->directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        _cleanup_dir_ DIR *d = own >= 0 ? fdopendir(own) : NULL;
        if (!d && own >= 0)
            close(own);
        if (rule->marker == WATCH_TRACKER)
            (void)read_marker(w->directory, rule->file, &tracker); /* none yet: nothing is complete */
        if (d)
            look_at(w, d, &tracker, now_ms);
        free(tracker.text);
    }
    drop_gone(w);
}

int watch_open_step(const struct watch *w, const struct watch_step *s, int *ret_fd, struct cairn_error *err)
{
    _cleanup_close_ int fd = openat(w->directory, s->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0)
        return cairn_fail_errno(err, errno, "open the directory %s", s->name);
    if (st.st_dev != s->device || st.st_ino != s->inode)
        return cairn_fail(err, CAIRN_E_ABORTED, "%s is another directory now", s->name);
    *ret_fd = TAKE_FD(fd);
    return 0;
}

/* ---- events ---------------------------------------------------------------------------------- */

/* What they say is not read: whatever happened, the directory is looked at. So none that is lost matters but for the
 * time until the next look. */
static void drain(int inotify)
{
    char buf[16384];

    while (read(inotify, buf, sizeof buf) > 0)
        ;
}

void watch_wait(struct watch *w, int64_t timeout_ms)
{
    struct pollfd fds[2] = {{.fd = w->signals.wake[0], .events = POLLIN}, {.fd = w->inotify, .events = POLLIN}};

    if (timeout_ms < CALM_MS)
        timeout_ms = CALM_MS;
    if (poll(fds, 2, (int)timeout_ms) <= 0 || w->inotify < 0 || !fds[1].revents)
        return;
    (void)poll(fds, 1, CALM_MS);
    drain(w->inotify);
}
