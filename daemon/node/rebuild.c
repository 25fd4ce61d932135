/* SPDX-License-Identifier: Apache-2.0 */
/* One peer after the other, page by page. */
#include "daemon/node/rebuild.h"

#include "core/base/error.h"
#include "daemon/node/query_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE_MS 5000
#define MAX_ITEMS ((size_t)1 << 18) /* about 70 MiB */

bool stored_together(const struct stored *a, const struct stored *b)
{
    return a->stream.step == b->stream.step && a->stream.incarnation == b->stream.incarnation &&
           strcmp(a->stream.job, b->stream.job) == 0;
}

static int in_order(const void *a, const void *b)
{
    const struct wire_stream *x = &((const struct stored *)a)->stream, *y = &((const struct stored *)b)->stream;
    int by_job = strcmp(x->job, y->job);

    if (by_job)
        return by_job;
    if (x->step != y->step)
        return x->step < y->step ? -1 : 1;
    if (x->incarnation != y->incarnation)
        return x->incarnation < y->incarnation ? -1 : 1;
    return strcmp(x->node, y->node);
}

static void end(struct inventory *inv, int code, const struct cairn_error *err)
{
    if (inv->n > 0)
        qsort(inv->items, inv->n, sizeof *inv->items, in_order);
    inv->done(inv, code, err);
}

static void next_page(struct loop_post *post);

static void go_on(struct inventory *inv)
{
    inv->post = (struct loop_post){.run = next_page, .arg = inv};
    loop_defer(links_loop(inv->links), &inv->post);
}

static void next_peer(struct inventory *inv, const char *error)
{
    json_t *o = json_object();

    query_set(o, "peer", json_string(link_id(inv->all[inv->at])));
    query_set(o, "streams", json_integer((json_int_t)(inv->n - inv->first)));
    query_set(o, "engine", inv->of_peer[0] ? json_string(inv->of_peer) : json_null());
    query_set(o, "error", error ? json_string(error) : json_null());
    json_array_append_new(inv->peers, o);
    inv->complete &= !error;
    inv->strange |= strcmp(inv->of_peer, inv->engine) != 0;
    inv->of_peer[0] = 0;
    inv->first = inv->n;
    inv->at++;
    go_on(inv);
}

static int take_items(struct inventory *inv, const struct wire_message *m, struct cairn_error *err)
{
    for (unsigned i = 0; i < m->inventory_items.n; i++) {
        if (inv->n == inv->room) {
            size_t room = inv->room ? inv->room * 2 : 256;
            struct stored *more = room <= MAX_ITEMS ? realloc(inv->items, room * sizeof *more) : NULL;
            if (!more)
                return cairn_fail(err, CAIRN_E_TOO_LARGE, "more than %zu streams are stored: name a job", inv->n);
            inv->items = more;
            inv->room = room;
        }
        inv->items[inv->n++] = (struct stored){m->inventory_items.items[i], inv->all[inv->at]};
    }
    snprintf(inv->of_peer, sizeof inv->of_peer, "%s", m->inventory_items.engine);
    return 0;
}

static void paged(struct link_call *call, int code, const struct cairn_error *err, const struct wire_message *m)
{
    struct inventory *inv = call->arg;
    struct cairn_error own = CAIRN_ERROR_INIT;

    if (code < 0) {
        next_peer(inv, err->message);
        return;
    }
    if (m->type != WIRE_INVENTORY_ITEMS || (m->inventory_items.n == 0 && !m->inventory_items.last)) {
        next_peer(inv, "it answered something else");
        return;
    }
    code = take_items(inv, m, &own);
    if (code < 0)
        end(inv, code, &own);
    else if (m->inventory_items.last)
        next_peer(inv, NULL);
    else
        go_on(inv);
}

static void next_page(struct loop_post *post)
{
    struct inventory *inv = post->arg;
    struct wire_message m = {.type = WIRE_INVENTORY};
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (inv->stop) {
        end(inv, cairn_fail(&err, CAIRN_E_ABORTED, "cairnd is stopping"), &err);
        return;
    }
    if (inv->at == inv->nall) {
        end(inv, 0, NULL);
        return;
    }
    snprintf(m.inventory.job, sizeof m.inventory.job, "%s", inv->job);
    m.inventory.from_start = inv->n == inv->first;
    if (!m.inventory.from_start)
        m.inventory.after = inv->items[inv->n - 1].stream;
    inv->call = (struct link_call){.done = paged, .arg = inv};
    if (link_call(inv->all[inv->at], &inv->call, &m, PAGE_MS, &err) < 0)
        next_peer(inv, err.message);
}

void inventory_start(struct inventory *inv)
{
    inv->nall = links_all(inv->links, inv->all, LINKS_MAX);
    inv->complete = true;
    inv->peers = json_array();
    go_on(inv);
}

void inventory_free(struct inventory *inv)
{
    free(inv->items);
    json_decref(inv->peers);
}
