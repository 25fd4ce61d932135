/* SPDX-License-Identifier: Apache-2.0 */
/* A call: one message to the peer and the one that answers it, told apart by their request number. */
#include "daemon/node/link_internal.h"

#include "core/base/error.h"

static void call_end(struct link_call *c, int code, const struct cairn_error *err, const struct wire_message *answer)
{
    list_remove(&c->link);
    loop_timer_cancel(links_loop(c->owner->links), &c->deadline);
    c->done(c, code, err, answer);
}

static void call_late(struct loop_timer *t)
{
    struct link_call *c = t->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;

    cairn_fail(&err, CAIRN_E_TIMEOUT, "peer %s did not answer in time", link_id(c->owner));
    call_end(c, CAIRN_E_TIMEOUT, &err, NULL);
}

int link_call(struct link *l, struct link_call *c, struct wire_message *m, uint32_t timeout_ms, struct cairn_error *err)
{
    list_init(&c->link);
    if (!link_usable(l, NULL) || l->state != LINK_UP)
        return cairn_fail(err, CAIRN_E_UNAVAILABLE, "peer %s: %s", l->record.id, link_last_error(l));
    c->owner = l;
    c->request = ++l->next_request;
    c->deadline = (struct loop_timer){.fire = call_late, .arg = c};
    loop_timer_after(links_loop(l->links), &c->deadline, timeout_ms);
    list_push_back(&l->calls, &c->link);
    m->scrub.request = c->request; /* every call, and every answer, begins with it */
    link_say(l, m);
    return 0;
}

void link_call_cancel(struct link_call *c)
{
    if (list_empty(&c->link))
        return;
    list_remove(&c->link);
    loop_timer_cancel(links_loop(c->owner->links), &c->deadline);
}

void link_on_answer(struct link *l, const struct wire_message *m)
{
    list_for_each (it, &l->calls) {
        struct link_call *c = container_of(it, struct link_call, link);
        if (c->request != m->scrub_done.request)
            continue;
        call_end(c, 0, NULL, m);
        return;
    }
}

void link_complete_calls(struct link *l, const struct cairn_error *err)
{
    while (!list_empty(&l->calls))
        call_end(list_first(&l->calls, struct link_call, link), CAIRN_E_UNAVAILABLE, err, NULL);
}
