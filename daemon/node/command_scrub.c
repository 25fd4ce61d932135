/* SPDX-License-Identifier: Apache-2.0 */
/* SCRUB: every peer that this node reaches verifies what it stores, now; the answer says what each one found. */
#include "daemon/node/command_internal.h"

#include "core/base/error.h"
#include "daemon/node/link.h"

#include <stdio.h>
#include <stdlib.h>

struct scrub_call {
    struct link_call call;
    struct scrub_command *command;
};
struct scrub_command {
    struct node_work work;
    struct query *q;
    unsigned waiting, ncalls;
    uint64_t fragments, bad, bytes;
    bool all; /* every peer answered */
    json_t *peers;
    struct scrub_call calls[];
};

static void scrub_end(struct scrub_command *s)
{
    json_t *o = json_object();

    query_set(o, "v", json_integer(1));
    query_set(o, "job", s->q->job[0] ? json_string(s->q->job) : json_null());
    query_set(o, "fragments", json_integer((json_int_t)s->fragments));
    query_set(o, "bad", json_integer((json_int_t)s->bad));
    query_set(o, "bytes", json_integer((json_int_t)s->bytes));
    query_set(o, "complete", json_boolean(s->all));
    query_set(o, "peers", s->peers);
    list_remove(&s->work.link);
    query_answer(s->q, o);
    free(s);
}

static void add_peer(struct scrub_command *s, const char *peer, const struct wire_message *m, const char *error)
{
    json_t *o = json_object();

    query_set(o, "peer", json_string(peer));
    query_set(o, "files", json_integer(m ? (json_int_t)m->scrub_done.files : 0));
    query_set(o, "fragments", json_integer(m ? (json_int_t)m->scrub_done.fragments : 0));
    query_set(o, "bytes", json_integer(m ? (json_int_t)m->scrub_done.bytes : 0));
    query_set(o, "bad", json_integer(m ? (json_int_t)m->scrub_done.bad : 0));
    query_set(o, "error", error ? json_string(error) : json_null());
    json_array_append_new(s->peers, o);
    s->all &= error == NULL;
    if (m) {
        s->fragments += m->scrub_done.fragments;
        s->bytes += m->scrub_done.bytes;
        s->bad += m->scrub_done.bad;
    }
}

static void peer_scrubbed(struct link_call *call, int code, const struct cairn_error *err,
                          const struct wire_message *answer)
{
    struct scrub_call *c = call->arg;
    struct scrub_command *s = c->command;
    bool strange = answer && answer->type != WIRE_SCRUB_DONE;
    const char *error = code < 0 ? err->message : strange ? "it answered something else" : NULL;

    if (!error && answer->scrub_done.status.code < 0)
        error = answer->scrub_done.status.message;
    add_peer(s, link_id(call->owner), strange ? NULL : answer, error);
    if (--s->waiting == 0)
        scrub_end(s);
}

static void scrub_stop(struct node_work *w)
{
    struct scrub_command *s = container_of(w, struct scrub_command, work);

    for (unsigned i = 0; i < s->ncalls; i++)
        link_call_cancel(&s->calls[i].call);
    s->all = false;
    scrub_end(s);
}

void command_scrub(struct query *q)
{
    struct node *node = q->session->node;
    struct link *all[LINKS_MAX];
    struct cairn_error err = CAIRN_ERROR_INIT;
    unsigned n = links_all(node->links, all, LINKS_MAX);
    struct scrub_command *s = calloc(1, sizeof *s + n * sizeof s->calls[0]);

    if (!s) {
        query_fail(q, cairn_fail(&err, CAIRN_E_NOMEM, "allocate a scrub of %u peers", n), &err);
        return;
    }
    s->q = q;
    s->ncalls = n;
    s->work.stop = scrub_stop;
    list_push_back(&node->work, &s->work.link);
    s->all = true;
    s->peers = json_array();
    s->waiting = 1;
    for (unsigned i = 0; i < n; i++) {
        struct wire_message m = {.type = WIRE_SCRUB};
        snprintf(m.scrub.job, sizeof m.scrub.job, "%s", q->job);
        s->calls[i].command = s;
        s->calls[i].call = (struct link_call){.done = peer_scrubbed, .arg = &s->calls[i]};
        list_init(&s->calls[i].call.link);
        if (link_call(all[i], &s->calls[i].call, &m, q->timeout_ms, &err) == 0)
            s->waiting++;
        else
            add_peer(s, link_id(all[i]), NULL, err.message);
    }
    if (--s->waiting == 0)
        scrub_end(s);
}
