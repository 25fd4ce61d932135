/* SPDX-License-Identifier: Apache-2.0 */
#include "client/tool/watch_internal.h"

#include "client/tool/files_scan.h"
#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#define LOOK_MS 5000          /* between two looks when no event comes: network file systems send none */
#define AWAY_LOOK_MS 1000     /* while the directory is not there */
#define LOOK_BEHIND_MS 600000 /* how long a step that was saved is looked at for what comes late */
#define COMMIT_MS 3600000     /* a commit is waited for; the daemon gives up before */
#define ONCE_TRIES 5          /* of --once, when the daemon is busy */
#define ELSEWHERE_MS 120000   /* of --once, for what another start is saving */

int64_t watch_now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ---- the log --------------------------------------------------------------------------------- */

static void print_text(const char *event, json_t *fields)
{
    const char *key;
    json_t *value;

    fputs(event, stdout);
    json_object_foreach(fields, key, value)
    {
        char *text = json_dumps(value, JSON_ENCODE_ANY);
        printf(" %s=%s", key, text ? text : "?");
        free(text);
    }
    puts("");
}

void watch_log(const struct watch *w, const char *event, json_t *fields)
{
    json_t *line = fields ? fields : json_object();

    if (w->o->tool.json) {
        json_t *o = json_pack("{s:i, s:s, s:s}", "v", 1, "event", event, "job", w->o->job);
        if (o && json_object_update(o, line) == 0 && json_dumpf(o, stdout, JSON_COMPACT) == 0)
            puts("");
        json_decref(o);
    } else {
        print_text(event, line);
    }
    fflush(stdout);
    json_decref(line);
}

void watch_log_error(const struct watch *w, const char *event, const char *what, const struct cairn_error *err)
{
    watch_log(w, event,
              json_pack("{s:s, s:s, s:s}", "what", what, "code", cairn_code_name(err->code), "because", err->message));
}

static void tell_manager(const struct watch *w, const char *what, uint64_t step)
{
    char text[200];

    (void)w;
    snprintf(text, sizeof text, "READY=1\nSTATUS=%s %" PRIu64, what, step);
    signals_notify(text);
}

/* ---- one step -------------------------------------------------------------------------------- */

/* What is not the step's own fault does not let later ones overtake it. */
static bool may_pass(int code)
{
    return code == CAIRN_E_UNAVAILABLE || code == CAIRN_E_TIMEOUT || code == CAIRN_E_BUSY || code == CAIRN_E_EXISTS ||
           code == CAIRN_E_FENCED || code == CAIRN_E_STALE_PIN;
}

static int exit_code_of(int code)
{
    if (code == CAIRN_E_UNAVAILABLE || code == CAIRN_E_TIMEOUT || code == CAIRN_E_BUSY)
        return EXIT_UNAVAILABLE;
    return EXIT_FAILED;
}

static void failed(struct watch *w, struct watch_step *s, const struct cairn_error *err)
{
    bool passes = may_pass(err->code);

    s->tries++;
    s->failures += !passes;
    bool last = w->o->once && (!passes || s->tries >= ONCE_TRIES);
    int64_t pause_ms = watch_backoff_ms(s->tries);
    s->not_before_ms = watch_now_ms() + pause_ms;
    watch_log(w, "failed",
              json_pack("{s:I, s:s, s:s, s:s, s:i, s:o}", "step", (json_int_t)s->step, "directory", s->name, "code",
                        cairn_code_name(err->code), "because", err->message, "tries", (int)s->tries, "again_ms",
                        last ? json_null() : json_integer(pause_ms)));
    tell_manager(w, "failed: step", s->step);
    if (!last)
        return;
    w->exit_code = exit_code_of(err->code);
    s->given_up = true;
}

static void committed(struct watch *w, struct watch_step *s, const struct taken *taken)
{
    w->saved = s->step;
    w->look_behind_ms = watch_now_ms() + LOOK_MS;
    w->look_behind_until_ms = w->look_behind_ms + LOOK_BEHIND_MS;
    s->fate = WATCH_COMMITTED;
    s->told = true;
    s->tries = s->failures = 0;
    watch_log(w, "committed",
              json_pack("{s:I, s:s, s:I, s:I, s:I, s:I, s:I, s:I}", "step", (json_int_t)s->step, "directory", s->name,
                        "incarnation", (json_int_t)taker_incarnation(&w->taker), "files", (json_int_t)taken->files,
                        "bytes", (json_int_t)taken->bytes, "read_ms", (json_int_t)taken->read_ms, "commit_ms",
                        (json_int_t)taken->commit_ms, "arena_bytes", (json_int_t)taken->arena_bytes));
    tell_manager(w, "committed step", s->step);
}

static int save(struct watch *w, const struct watch_step *s, int fd, const char *start_id, struct taken *ret,
                struct cairn_error *err)
{
    const struct watch_rule *rule = &w->o->rule;

    watch_log(w, "saving", json_pack("{s:I, s:s}", "step", (json_int_t)s->step, "directory", s->name));
    return taker_save(&w->taker, fd, s, start_id, rule->marker == WATCH_TRACKER ? rule->file : NULL, ret, err);
}

/* With other ranks the session comes first, and then the list is looked at again: only now it is known whether what is
 * undecided there is theirs, of our start, or another start's. */
static void take(struct watch *w, struct watch_step *s)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    char start_id[CAIRN_MAX_NAME + 1];
    struct taken taken = {0};
    _cleanup_close_ int fd = -1;

    int r = watch_open_step(w, s, &fd, &err);
    if (r == 0)
        r = watch_start_id(w->base, w->records, w->nrecords, start_id, &err);
    bool saves = w->o->world == 1 || taker_is_open(&w->taker, start_id);
    if (r == 0)
        r = saves ? save(w, s, fd, start_id, &taken, &err) : taker_open(&w->taker, fd, s, start_id, &err);
    if (r == 0 && saves)
        committed(w, s, &taken);
    else if (r < 0 && r != CAIRN_E_INTR)
        failed(w, s, &err);
}

/* A rank that nobody waited for may write its file behind the marker. What is committed stays as it is: whoever runs
 * this is told, and gives a longer --settle. */
static void look_behind(struct watch *w, int64_t now_ms)
{
    struct files now;

    /* A session that was opened since has nothing before it: there is no tree to compare with. */
    if (!w->taker.last.name || now_ms < w->look_behind_ms || now_ms > w->look_behind_until_ms)
        return;
    w->look_behind_ms = now_ms + LOOK_MS;
    for (size_t i = 0; i < w->nsteps; i++) {
        const struct watch_step *s = &w->steps[i];
        _cleanup_close_ int fd = -1;
        if (s->step != w->saved || strcmp(s->name, w->taker.last.name) != 0 || watch_open_step(w, s, &fd, NULL) < 0 ||
            files_scan(fd, s->name, &now, NULL) < 0)
            continue;
        const char *path = files_added(&w->taker.last, &now);
        if (path) {
            watch_log(w, "late",
                      json_pack("{s:I, s:s, s:s, s:s}", "step", (json_int_t)s->step, "directory", s->name, "file", path,
                                "because", "it was written behind the commit, which lacks it: --settle is too short"));
            w->look_behind_until_ms = 0;
        }
        files_free(&now);
    }
}

/* ---- the loop -------------------------------------------------------------------------------- */

static bool wants_list(const struct watch *w, int64_t now_ms)
{
    for (size_t i = 0; i < w->nsteps; i++) {
        const struct watch_step *s = &w->steps[i];
        if (watch_is_ready(&w->o->rule, s, now_ms) && (s->fate == WATCH_PENDING || s->fate == WATCH_ELSEWHERE) &&
            now_ms >= s->not_before_ms && !s->given_up)
            return now_ms >= w->ask_ms;
    }
    return false;
}

/* False: the daemon is away, and nothing can be decided. */
static bool ask(struct watch *w, int64_t now_ms)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (!wants_list(w, now_ms))
        return now_ms >= w->ask_ms;
    int r = watch_list(w, &err);
    if (r == 0) {
        w->ask_tries = 0;
        return true;
    }
    w->ask_ms = watch_now_ms() + watch_backoff_ms(++w->ask_tries);
    watch_log_error(w, "unreachable", "the list of the job", &err);
    w->exit_code = exit_code_of(err.code);
    return false;
}

/* How long to wait, -1: --once is done; 0: look again at once. */
static int64_t turn(struct watch *w, int64_t begun_ms)
{
    int64_t now = watch_now_ms();

    watch_look(w, now);
    look_behind(w, now);
    bool known = ask(w, now);
    if (!known && w->o->once)
        return -1;
    struct watch_next next = watch_choose(&w->o->rule, w->steps, w->nsteps, now);
    if (known && next.take >= 0) {
        take(w, &w->steps[next.take]);
        return 0;
    }
    watch_keep(w, now);
    if (w->o->once && (next.idle || now - begun_ms > ELSEWHERE_MS))
        return -1;
    int64_t most = w->directory < 0 ? AWAY_LOOK_MS : LOOK_MS;
    int64_t wait = next.wake_ms == INT64_MAX || !known ? most : next.wake_ms - now;
    return wait < 0 ? 1 : wait < most ? wait : most;
}

static void loop(struct watch *w)
{
    int64_t begun_ms = watch_now_ms();

    while (!signals_came(&w->signals)) {
        int64_t wait_ms = turn(w, begun_ms);
        if (wait_ms < 0)
            return;
        if (wait_ms > 0)
            watch_wait(w, wait_ms);
    }
}

static int begin(struct watch *w, struct cairn_error *err)
{
    const struct watch_options *o = w->o;
    uint64_t number;

    if (o->start)
        snprintf(w->base, sizeof w->base, "%s", o->start);
    else if (getrandom(&number, sizeof number, 0) == sizeof number)
        snprintf(w->base, sizeof w->base, "watch-%016" PRIx64, number);
    else
        return cairn_fail_errno(err, errno, "get a random number");
    w->inotify = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (w->inotify < 0)
        watch_log(w, "no-events", json_pack("{s:s}", "because", strerror(errno)));
    w->directory = open(o->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (w->directory < 0 && o->once)
        return cairn_fail_errno(err, errno, "open the directory %s", o->directory);
    watch_log(w, "watching",
              json_pack("{s:s, s:s, s:s, s:b}", "job", o->job, "directory", o->directory, "pattern", o->rule.pattern,
                        "there", w->directory >= 0));
    signals_notify("READY=1\nSTATUS=watching");
    return 0;
}

static bool stopped(const void *arg)
{
    return signals_came(arg);
}

static void end(struct watch *w)
{
    signals_notify("STOPPING=1");
    taker_close(&w->taker);
    if (w->directory >= 0)
        close(w->directory);
    if (w->inotify >= 0)
        close(w->inotify);
    free(w->steps);
    free(w->records);
    signals_stop(&w->signals);
}

int watch_run(const struct watch_options *o)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct watch w = {.o = o, .latest = CAIRN_LATEST, .directory = -1, .inotify = -1};

    taker_init(&w.taker);
    w.taker.job = o->job;
    w.taker.socket = o->tool.socket;
    w.taker.rank = o->rank;
    w.taker.world = o->world;
    w.taker.arena_bytes = o->arena_bytes;
    w.taker.commit_ms = tool_timeout(&o->tool, COMMIT_MS);
    w.taker.stopped = stopped;
    w.taker.arg = &w.signals;
    int r = signals_start(&w.signals, &err);
    if (r == 0)
        r = begin(&w, &err);
    if (r == 0)
        loop(&w);
    if (r == 0 && signals_came(&w.signals))
        watch_log(&w, "stopped", NULL);
    end(&w);
    return r < 0 ? tool_fail(&o->tool, "watch", &err) : o->once ? w.exit_code : EXIT_OK;
}
