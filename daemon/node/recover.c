/* SPDX-License-Identifier: Apache-2.0 */
/* Arenas that outlived the daemon before this one in the keeper of descriptors (systemd's store): their trainers may be
 * gone, or may not have noticed yet.
 *
 *     fds by name -> pairs -> checked, adopted for nobody -> nothing filled: kept for restores
 *                                  \-> the rank joins for a moment -> its filled saves go on -> it leaves
 *
 * When the trainer comes back it hands the same arena back and gets its saves as they are. What it only began waits for
 * it in the arena. */
#include "daemon/node/internal.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "daemon/io/log.h"

#include <stdio.h>
#include <string.h>

#define RECOVER_AGAIN_MS 1000
#define RECOVER_JOIN_MS 10000

struct recovery {
    struct list link; /* in node.recoveries */
    struct node *node;
    struct arena *arena; /* referenced */
    struct join_request join;
    bool joining;
    struct loop_timer again;
};

/* ---- the saves of one arena ------------------------------------------------------------------ */

static void recovery_end(struct recovery *r)
{
    loop_timer_cancel(r->node->deps.loop, &r->again);
    list_remove(&r->link);
    arena_unref(r->arena);
    free(r);
}

static bool is_passing(int code)
{
    return code == CAIRN_E_UNAVAILABLE || code == CAIRN_E_TIMEOUT || code == CAIRN_E_BUSY;
}

static bool has_unsaved(const struct arena *a)
{
    list_for_each (it, &a->snapshots) {
        const struct snapshot *s = container_of(it, struct snapshot, link);
        if (!s->owner && (s->state == SNAPSHOT_FILLED || (s->state == SNAPSHOT_GRANTED && snapshot_is_filled(s))))
            return true;
    }
    return false;
}

static void recovery_joined(struct join_request *j, int code, const struct cairn_error *err, struct member *member)
{
    struct recovery *r = j->arg;

    r->joining = false;
    if (code == 0) {
        saves_go_on(NULL, r->arena, member);
        member_leave(member);
    } else if (is_passing(code) && !r->node->stopping && has_unsaved(r->arena)) {
        log_line(LOG_WARNING, "job %s rank %u: its snapshots wait: %s", r->arena->job, r->arena->rank, err->message);
        loop_timer_after(r->node->deps.loop, &r->again, RECOVER_AGAIN_MS);
        return;
    } else if (!r->node->stopping && code != CAIRN_E_EXISTS) { /* EXISTS: its process is here, and hands it back */
        log_line(LOG_WARNING, "job %s rank %u: what it filled before the restart cannot be saved: %s", r->arena->job,
                 r->arena->rank, err->message);
    }
    recovery_end(r);
}

static void recovery_join(struct loop_timer *t)
{
    struct recovery *r = t->arg;
    const struct arena *a = r->arena;

    r->join = (struct join_request){
        .rank = a->rank, .world_size = a->world_size, .timeout_ms = RECOVER_JOIN_MS, .done = recovery_joined, .arg = r};
    snprintf(r->join.job, sizeof r->join.job, "%s", a->job);
    snprintf(r->join.start_id, sizeof r->join.start_id, "%s", a->start_id);
    r->joining = true;
    jobs_join(r->node->jobs, &r->join);
}

/* Takes the reference. */
static void recovery_begin(struct node *n, struct arena *a)
{
    struct recovery *r = has_unsaved(a) ? calloc(1, sizeof *r) : NULL;

    log_line(LOG_NOTICE, "the arena of job %s rank %u (%u MiB) is here again%s", a->job, a->rank, a->npages,
             r ? ", with snapshots to be saved" : "");
    if (!r) {
        arena_unref(a);
        return;
    }
    r->node = n;
    r->arena = a;
    r->again = (struct loop_timer){.fire = recovery_join, .arg = r};
    list_push_back(&n->recoveries, &r->link);
    recovery_join(&r->again);
}

/* ---- descriptors ----------------------------------------------------------------------------- */

static void drop(struct node *n, const char *name)
{
    if (n->config.drop_fd)
        n->config.drop_fd(n->config.keep_arg, name);
}

/* The newest ledger of an arena: a daemon may have died between keeping the new one and dropping the old one. */
static const struct node_kept_fd *find_ledger(const struct node_kept_fd *fds, unsigned n, const char *arena)
{
    const struct node_kept_fd *newest = NULL;
    unsigned long long best = 0, number;
    char prefix[64];

    snprintf(prefix, sizeof prefix, "ledger-%.40s-", arena + strlen("arena-"));
    for (unsigned i = 0; i < n; i++) {
        if (strncmp(fds[i].name, prefix, strlen(prefix)) != 0)
            continue;
        number = strtoull(fds[i].name + strlen(prefix), NULL, 10);
        if (newest && number <= best)
            continue;
        newest = &fds[i];
        best = number;
    }
    return newest;
}

static int recover_arena(struct node *n, const struct node_kept_fd *arena, const struct node_kept_fd *ledger,
                         struct cairn_error *err)
{
    _cleanup_close_ int fd = ledger ? dup(arena->fd) : -1;
    struct arena_offer *offer = NULL;
    struct arena *a = NULL;

    if (fd < 0)
        return cairn_fail(err, CAIRN_E_NOT_FOUND, "it came without its ledger");
    int r = arena_offer_read(fd, ledger->fd, &offer, err);
    if (r < 0)
        return r;
    (void)TAKE_FD(fd);
    r = arenas_adopt(n->arenas, offer, NULL, false, &a, err);
    arena_offer_free(offer);
    if (r == 0)
        recovery_begin(n, a);
    return r;
}

/* Adopting keeps a new ledger first; then every name that came is dropped but the arenas' own. */
void node_recover(struct node *n, const struct node_kept_fd *fds, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct cairn_error err = CAIRN_ERROR_INIT;
        if (strncmp(fds[i].name, "arena-", 6) != 0)
            continue;
        if (recover_arena(n, &fds[i], find_ledger(fds, count, fds[i].name), &err) == 0)
            continue;
        log_line(LOG_WARNING, "%s from the descriptor store is given up: %s", fds[i].name, err.message);
        drop(n, fds[i].name);
    }
    for (unsigned i = 0; i < count; i++) {
        if (strncmp(fds[i].name, "arena-", 6) != 0)
            drop(n, fds[i].name);
        close(fds[i].fd);
    }
}

void node_recover_stop(struct node *n)
{
    list_for_each_safe (it, &n->recoveries) {
        struct recovery *r = container_of(it, struct recovery, link);
        if (!r->joining)
            recovery_end(r); /* else its join ends first, and it with that */
    }
}
