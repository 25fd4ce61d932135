/* SPDX-License-Identifier: Apache-2.0 */
/* Peers are asked one after the other, those first that the reference names, until enough have every piece. */
#include "daemon/node/repair_blob.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <stdlib.h>
#include <string.h>

#define BLOB_MS 30000 /* to read, and to store */

static void ask_next(struct loop_post *post);

static void go_on(struct blob_repair *b)
{
    b->post = (struct loop_post){.run = ask_next, .arg = b};
    loop_defer(links_loop(b->links), &b->post);
}

static void end(struct blob_repair *b)
{
    free(TAKE_PTR(b->copy));
    b->done(b);
}

static void was_put(void *arg, int code, const struct cairn_error *err, const struct blob_ref *ref)
{
    struct blob_repair *b = arg;

    b->code = code;
    cairn_error_copy(&b->err, err);
    if (code == 0) {
        b->placed = *ref;
        b->added = ref->npeers;
    }
    end(b);
}

static void put_more(struct blob_repair *b, const void *data)
{
    blob_put_again(b->links, &b->key, data, b->ref->len, b->wanted - b->found, b->have, b->nhave, BLOB_MS, was_put, b);
}

static void was_got(void *arg, int code, const struct cairn_error *err, const void *data, size_t len)
{
    struct blob_repair *b = arg;

    b->copy = code == 0 ? malloc(len ? len : 1) : NULL;
    if (b->copy) {
        memcpy(b->copy, data, len);
        put_more(b, b->copy);
        return;
    }
    b->lost = code == CAIRN_E_CORRUPT || code == CAIRN_E_NOT_FOUND;
    b->code = code ? code : CAIRN_E_NOMEM;
    cairn_error_copy(&b->err, err);
    end(b);
}

static bool can_ask(const struct link *l)
{
    return link_usable(l, NULL) && link_state_of(l) == LINK_UP;
}

static void decide(struct blob_repair *b)
{
    unsigned live = 0;

    for (unsigned i = 0; i < b->nall; i++)
        live += can_ask(b->all[i]);
    if (b->wanted > live + b->away)
        b->wanted = live + b->away;
    if (b->found >= b->wanted) {
        end(b);
    } else if (b->data) {
        put_more(b, b->data);
    } else if (b->nhave > 0) {
        blob_get(b->links, &b->key, b->ref, BLOB_MS, was_got, b);
    } else {
        b->lost = b->away == 0;
        b->code = cairn_fail(&b->err, CAIRN_E_NOT_FOUND, "no peer gives a copy");
        end(b);
    }
}

static void asked(struct link_read *read, int code, const struct cairn_error *err, const char *record)
{
    struct blob_repair *b = read->arg;

    (void)err;
    (void)record;
    if (code == 0 && ++b->piece < b->pieces) {
        go_on(b);
        return;
    }
    if (code == 0) {
        b->found++;
        if (b->nhave < CAIRN_MAX_M + 1)
            b->have[b->nhave++] = b->all[b->next];
    }
    b->piece = 0;
    b->next++;
    go_on(b);
}

static void ask_next(struct loop_post *post)
{
    struct blob_repair *b = post->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;

    for (; b->next < b->nall && b->found < b->wanted; b->next++, b->piece = 0) {
        struct link *l = b->all[b->next];
        if (!can_ask(l))
            continue;
        b->read = (struct link_read){.done = asked, .arg = b, .key = b->key, .check = true, .present = b->quick};
        b->read.key.first_part = b->piece;
        if (link_read(l, &b->read, &err) == 0)
            return;
    }
    decide(b);
}

static bool is_hinted(const struct blob_repair *b, const struct link *l)
{
    for (uint32_t i = 0; i < b->ref->npeers; i++)
        if (strcmp(b->ref->peer[i], link_id(l)) == 0)
            return true;
    return false;
}

void blob_repair_start(struct blob_repair *b)
{
    struct link *all[LINKS_MAX];
    unsigned n = links_all(b->links, all, LINKS_MAX);

    for (unsigned others = 0; others < 2; others++)
        for (unsigned i = 0; i < n && b->nall < REPAIR_MAX_PEERS; i++)
            if (is_hinted(b, all[i]) == (others == 0))
                b->all[b->nall++] = all[i];
    for (uint32_t i = 0; i < b->ref->npeers; i++)
        b->away += b->is_away && b->is_away(b->is_away_arg, b->ref->peer[i]);
    b->found = b->away;
    b->wanted = cairn_geometry_for(links_live(b->links)).m + 1u;
    b->pieces = (uint32_t)((b->ref->len + CAIRN_PART - 1) / CAIRN_PART);
    b->err = (struct cairn_error)CAIRN_ERROR_INIT;
    go_on(b);
}
