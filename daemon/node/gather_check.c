/* SPDX-License-Identifier: Apache-2.0 */
/* A check of one fragment where it lies: the peer that should have it is asked first, then the others. */
#include "daemon/node/gather.h"

#include "core/base/error.h"
#include "daemon/node/link.h"

#include <stdlib.h>

struct check_run {
    struct links *links;
    struct gather_check *c;
    struct link_read read;
    struct link *all[LINKS_MAX];
    unsigned nall, next;
    bool hint_tried;
    int code;
    struct cairn_error err; /* the hinted peer's: it is the one that should have it */
    struct loop_post step;
};

static void check_step(struct loop_post *post);

static void check_soon(struct check_run *r)
{
    r->step = (struct loop_post){.run = check_step, .arg = r};
    loop_defer(links_loop(r->links), &r->step);
}

static void check_finish(struct check_run *r, int code)
{
    struct gather_check *c = r->c;
    struct cairn_error err = r->err;

    free(r);
    c->done(c, code, &err);
}

static void checked(struct link_read *read, int code, const struct cairn_error *err, const char *record)
{
    struct check_run *r = read->arg;

    (void)record;
    if (code == 0) {
        check_finish(r, 0);
        return;
    }
    if (r->code == 0 || r->code == CAIRN_E_NOT_FOUND) {
        r->code = code;
        cairn_error_copy(&r->err, err);
    }
    check_soon(r);
}

static void check_step(struct loop_post *post)
{
    struct check_run *r = post->arg;
    const struct manifest *m = r->c->manifest;
    const struct chunk_record *c = &m->chunks[r->c->chunk];
    struct link *hinted = links_find(r->links, m->peers[c->peer[r->c->fragment]]), *l = NULL;
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (!r->hint_tried)
        l = hinted;
    r->hint_tried = true;
    while (!l && r->next < r->nall) {
        l = r->all[r->next++];
        if (l == hinted || !link_usable(l, NULL))
            l = NULL;
    }
    if (!l) {
        if (r->code == 0)
            r->code = cairn_fail(&r->err, CAIRN_E_NOT_FOUND, "no peer has it");
        check_finish(r, r->code);
        return;
    }
    r->read = (struct link_read){.done = checked, .arg = r, .check = true};
    gather_key(m, c, &r->read.key);
    r->read.key.index = r->c->fragment;
    if (link_read(l, &r->read, &err) < 0)
        checked(&r->read, err.code, &err, NULL);
}

void gather_check_start(struct links *links, struct gather_check *c)
{
    struct check_run *r = calloc(1, sizeof *r);

    if (!r)
        abort(); /* a check that can neither succeed nor fail */
    r->links = links;
    r->c = c;
    r->err = (struct cairn_error)CAIRN_ERROR_INIT;
    r->nall = links_all(links, r->all, LINKS_MAX);
    check_soon(r);
}
