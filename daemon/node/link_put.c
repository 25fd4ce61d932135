/* SPDX-License-Identifier: Apache-2.0 */
/* A put's way: its stream is opened on the peer (once per checkpoint), it waits for a slot, is sealed with the stream
 * file's generation, written by RMA, and answered by Stored. It is durable when a sync that was sent after that has
 * been answered. */
#include "daemon/node/link_internal.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "daemon/io/log.h"
#include "daemon/node/codecs.h"
#include "daemon/node/pacer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void link_move_all(struct list *from, struct list *to)
{
    while (!list_empty(from)) {
        struct list *it = from->next;
        list_remove(it);
        list_push_back(to, it);
    }
}

void link_complete_puts(struct list *puts, const struct cairn_error *err)
{
    while (!list_empty(puts)) {
        struct link_put *p = list_first(puts, struct link_put, link);
        list_remove(&p->link);
        p->done(p, CAIRN_E_UNAVAILABLE, err);
    }
}

void link_take_puts(struct link *l, struct list *ret_puts)
{
    for (unsigned i = 0; i < l->nslots; i++)
        if (l->slots[i].put)
            list_push_back(ret_puts, &TAKE_PTR(l->slots[i].put)->link);
    link_move_all(&l->early, ret_puts);
    link_move_all(&l->queue, ret_puts);
    list_for_each_safe (it, &l->streams) {
        struct stream *st = container_of(it, struct stream, link);
        link_move_all(&st->waiting, ret_puts);
        list_remove(it);
        free(st);
    }
    l->nslots = l->nfree = 0;
}

/* ---- streams --------------------------------------------------------------------------------- */

struct stream *link_find_stream(const struct link *l, const struct stream_key *key)
{
    list_for_each (it, &l->streams) {
        struct stream *st = container_of(it, struct stream, link);
        if (st->key.step == key->step && st->key.incarnation == key->incarnation &&
            strcmp(st->key.job, key->job) == 0 && strcmp(st->key.repaired, key->repaired) == 0)
            return st;
    }
    return NULL;
}

uint64_t link_synced_to(const struct link *l, const struct stream_key *key)
{
    const struct stream *st = link_find_stream(l, key);

    return st ? st->synced_to : 0;
}

static struct stream *open_stream(struct link *l, const struct stream_key *key)
{
    struct wire_message m = {.type = WIRE_STREAM_OPEN};
    struct stream *st = calloc(1, sizeof *st);

    if (!st)
        return NULL;
    st->key = *key;
    st->number = ++l->next_stream;
    st->opened_ns = link_now_ns(l);
    st->deadline_ns = link_deadline(l, links_config_of(l->links)->sync_late_ms);
    list_init(&st->waiting);
    list_push_back(&l->streams, &st->link);
    m.stream_open.stream = st->number;
    m.stream_open.step = key->step;
    m.stream_open.incarnation = key->incarnation;
    m.stream_open.reserve_bytes = key->reserve_bytes;
    m.stream_open.fence_incarnation = key->fence_incarnation;
    snprintf(m.stream_open.job, sizeof m.stream_open.job, "%s", key->job);
    m.stream_open.repair = key->repaired[0] != 0;
    snprintf(m.stream_open.node, sizeof m.stream_open.node, "%s",
             key->repaired[0] ? key->repaired : links_config_of(l->links)->node);
    link_say(l, &m);
    return st;
}

static struct stream *stream_by_number(struct link *l, uint32_t number)
{
    list_for_each (it, &l->streams) {
        struct stream *st = container_of(it, struct stream, link);
        if (st->number == number)
            return st;
    }
    return NULL;
}

void link_on_stream_opened(struct link *l, const struct wire_message *m)
{
    struct stream *st = stream_by_number(l, m->stream_opened.stream);
    const struct wire_status *status = &m->stream_opened.status;
    struct list puts = LIST_INIT(puts);

    if (!st || st->state != STREAM_OPENING)
        return;
    st->state = status->code < 0 ? STREAM_REFUSED : STREAM_OPEN;
    st->generation = m->stream_opened.generation;
    st->deadline_ns = 0;
    link_move_all(&st->waiting, &puts);
    if (status->code < 0) {
        cairn_fail(&st->refusal, status->code, "peer %s: %s", l->record.id, status->message);
        snprintf(l->last_error, sizeof l->last_error, "%s", status->message);
        log_line(LOG_WARNING, "peer %s takes nothing of job %s step %llu: %s", l->record.id, st->key.job,
                 (unsigned long long)st->key.step, status->message);
        struct cairn_error err = st->refusal;
        while (!list_empty(&puts)) {
            struct link_put *p = list_first(&puts, struct link_put, link);
            list_remove(&p->link);
            p->done(p, err.code, &err);
        }
    }
    link_move_all(&puts, &l->queue);
    link_pump(l);
    links_kick(l->links);
}

static void stream_send_sync(struct link *l, struct stream *st)
{
    struct wire_message m = {.type = WIRE_SYNC};

    st->sync_wanted = false;
    st->syncing = true;
    st->syncing_to = st->stored;
    st->deadline_ns = link_deadline(l, links_config_of(l->links)->sync_late_ms);
    m.sync.stream = st->number;
    m.sync.sequence = ++st->sequence;
    link_say(l, &m);
}

void link_sync(struct link *l, const struct stream_key *key)
{
    struct stream *st = link_find_stream(l, key);

    if (!st || st->state == STREAM_OPENING || st->synced_to == st->stored)
        return; /* one that takes no more is synced all the same: what it took counts */
    if (st->syncing)
        st->sync_wanted |= st->syncing_to < st->stored;
    else if (l->state == LINK_UP && !l->failing)
        stream_send_sync(l, st);
}

void link_on_synced(struct link *l, const struct wire_message *m)
{
    struct stream *st = stream_by_number(l, m->synced.stream);

    if (!st || !st->syncing || m->synced.sequence != st->sequence)
        return;
    if (m->synced.status.code < 0) { /* all that was stored in it is lost: so is this epoch */
        link_fail(l, "sync of job %s step %llu: %s", st->key.job, (unsigned long long)st->key.step,
                  m->synced.status.message);
        return;
    }
    st->syncing = false;
    st->deadline_ns = 0;
    st->synced_to = st->syncing_to;
    if (st->sync_wanted)
        stream_send_sync(l, st);
    links_kick(l->links);
}

void link_end_repair(struct link *l, const struct stream_key *key)
{
    struct stream *st = link_find_stream(l, key);
    struct wire_message close_it = {.type = WIRE_STREAM_CLOSE};
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (!st || l->failing)
        return;
    if (l->state == LINK_UP) {
        close_it.stream_close.stream = st->number;
        link_say(l, &close_it);
    }
    cairn_fail(&err, CAIRN_E_ABORTED, "its stream was ended");
    link_complete_puts(&st->waiting, &err);
    list_remove(&st->link);
    free(st);
}

void link_end_stream(struct link *l, const char *job, uint64_t step, uint64_t incarnation, bool aborted)
{
    struct stream_key key = {.step = step, .incarnation = incarnation};
    struct wire_message forget = {.type = WIRE_FORGET};

    snprintf(key.job, sizeof key.job, "%s", job);
    link_end_repair(l, &key);
    if (l->state == LINK_UP && !l->failing && aborted) {
        snprintf(forget.forget.job, sizeof forget.forget.job, "%s", job);
        forget.forget.step = step;
        forget.forget.incarnation = incarnation;
        link_say(l, &forget);
    }
}

/* ---- puts ------------------------------------------------------------------------------------ */

static void put_maybe_done(struct link *l, struct link_put *p)
{
    if (p->op_busy || !p->answered)
        return;
    for (unsigned i = 0; i < l->nslots; i++)
        if (l->slots[i].put == p) {
            l->slots[i].put = NULL;
            l->slots[i].generation++;
            l->nfree++;
        }
    p->done(p, p->code, &p->err);
    link_pump(l);
}

static void put_written(struct fabric_op *op, int code)
{
    struct link_put *p = op->arg;
    struct link *l = p->owner;

    p->op_busy = false;
    if (code == CAIRN_E_ABORTED)
        return; /* the endpoint closes: the tear-down completes it */
    if (code < 0)
        link_fail(l, "a fragment could not be written: %s", cairn_code_name(code));
    else
        put_maybe_done(l, p);
}

static void put_start(struct link *l, struct link_put *p, uint32_t slot)
{
    struct stream *st = link_find_stream(l, &p->stream);
    uint32_t data = (l->first_slot + slot) << 16 | l->slots[slot].generation;

    p->slot = slot;
    p->sent_ns = link_now_ns(l);
    p->op_busy = true;
    p->answered = false;
    p->deadline_ns = link_deadline(l, links_config_of(l->links)->fragment_late_ms);
    l->slots[slot].put = p;
    l->nfree--;
    p->fragment->generation = st->generation;
    fragment_seal(p->fragment, p->record);
    p->op = (struct fabric_op){.done = put_written, .arg = p};
    p->owner = l;
    struct fabric_more more = {p->payload, p->payload ? p->record_len - FRAGMENT_HEADER : 0};
    endpoint_write_more(l->ep, &p->op, l->to, p->record, p->record_len - more.len, links_mem(l->links), &more,
                        l->slots_base + slot * l->slot_bytes, l->slots_key, data);
}

static int free_slot(const struct link *l)
{
    for (unsigned i = 0; i < l->nslots; i++)
        if (!l->slots[i].put)
            return (int)i;
    return -1;
}

void link_on_stored(struct link *l, const struct wire_message *m)
{
    uint32_t slot = m->stored.slot - l->first_slot;
    struct link_put *p = slot < l->nslots ? l->slots[slot].put : NULL;
    const struct wire_status *status = &m->stored.status;

    if (!p || p->answered || (uint16_t)m->stored.generation != l->slots[slot].generation)
        return;
    p->answered = true;
    p->code = status->code;
    if (status->code == 0)
        codecs_stored(links_codecs(l->links), p->record_len, link_now_ns(l), !list_empty(&l->queue));
    p->epoch = l->epoch;
    struct stream *st = link_find_stream(l, &p->stream);
    if (status->code == 0 && st) {
        p->stored_at = ++st->stored;
        l->fragments_sent++;
        cairn_latency_add(&l->store_latency, (link_now_ns(l) - p->sent_ns) / 1000);
        link_did_well(l);
    } else if (status->code == 0) {
        p->code = cairn_fail(&p->err, CAIRN_E_ABORTED, "peer %s: its stream was closed", l->record.id);
    } else {
        cairn_fail(&p->err, status->code, "peer %s: %s", l->record.id, status->message);
        if (st &&
            status->code != CAIRN_E_CORRUPT) { /* full, or its file is given up: no more of this checkpoint here */
            st->state = STREAM_REFUSED;
            st->refusal = p->err;
        }
    }
    put_maybe_done(l, p);
    links_kick(l->links);
}

void link_pump_puts(struct link *l)
{
    while (l->nfree > 0 && !list_empty(&l->queue) && !l->failing) {
        struct link_put *p = list_first(&l->queue, struct link_put, link);
        struct stream *st = link_find_stream(l, &p->stream);
        int slot = free_slot(l);
        list_remove(&p->link);
        if (st && st->state == STREAM_OPEN && slot >= 0) {
            put_start(l, p, (uint32_t)slot);
            continue;
        }
        struct cairn_error err = CAIRN_ERROR_INIT;
        cairn_fail(&err, CAIRN_E_UNAVAILABLE, "peer %s takes no more of this checkpoint: %s", l->record.id,
                   st ? st->refusal.message : "its stream was closed");
        p->done(p, err.code, &err);
    }
}

bool link_put_cancel(struct link_put *p)
{
    if (p->sent_ns || list_empty(&p->link))
        return false;
    list_remove(&p->link);
    return true;
}

int link_put(struct link *l, struct link_put *p, struct cairn_error *err)
{
    struct stream *st = link_find_stream(l, &p->stream);

    list_init(&p->link);
    p->queued_ns = link_now_ns(l);
    p->sent_ns = 0;
    p->err = (struct cairn_error)CAIRN_ERROR_INIT;
    if (!link_usable(l, NULL) || l->state == LINK_DOWN)
        return cairn_fail(err, CAIRN_E_UNAVAILABLE, "peer %s: %s", l->record.id, link_last_error(l));
    if (!st && l->state == LINK_UP && !(st = open_stream(l, &p->stream)))
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a stream");
    if (st && st->state == STREAM_REFUSED) {
        cairn_error_copy(err, &st->refusal);
        return st->refusal.code;
    }
    if (!st || st->state == STREAM_OPENING)
        list_push_back(st ? &st->waiting : &l->early, &p->link);
    else
        list_push_back(&l->queue, &p->link);
    pacer_charge(links_pacer(l->links), l, p->record_len);
    link_pump(l);
    return 0;
}
