/* SPDX-License-Identifier: Apache-2.0 */
/* Messages that look after what is stored: scrub, inventory, and which metadata engine is the right one. */
#include "core/proto/wire_internal.h"

#include "core/base/error.h"

#include <stdio.h>

typedef Cairn__Wire__V1__Envelope envelope;
typedef Cairn__Wire__V1__StoredStream stored_stream;

const char *wire_care_name(int type)
{
    switch (type) {
    case WIRE_SCRUB:
        return "SCRUB";
    case WIRE_SCRUB_DONE:
        return "SCRUB_DONE";
    case WIRE_INVENTORY:
        return "INVENTORY";
    case WIRE_INVENTORY_ITEMS:
        return "INVENTORY_ITEMS";
    case WIRE_ACCEPT_ENGINE:
        return "ACCEPT_ENGINE";
    case WIRE_ENGINE_ACCEPTED:
        return "ENGINE_ACCEPTED";
    default:
        return NULL;
    }
}

/* ---- encode ---------------------------------------------------------------------------------- */

static int encode_scrub_done(envelope *e, const struct wire_message *m, uint8_t *buf, struct cairn_error *err)
{
    Cairn__Wire__V1__ScrubDone b = CAIRN__WIRE__V1__SCRUB_DONE__INIT;

    e->body_case = CAIRN__WIRE__V1__ENVELOPE__BODY_SCRUB_DONE;
    e->scrub_done = &b;
    b.request = m->scrub_done.request;
    b.code = m->scrub_done.status.code;
    b.message = wire_str(m->scrub_done.status.message);
    b.files = m->scrub_done.files;
    b.fragments = m->scrub_done.fragments;
    b.bytes = m->scrub_done.bytes;
    b.bad = m->scrub_done.bad;
    return wire_pack(e, buf, err);
}

static int encode_scrub(envelope *e, const struct wire_message *m, uint8_t *buf, struct cairn_error *err)
{
    Cairn__Wire__V1__Scrub b = CAIRN__WIRE__V1__SCRUB__INIT;

    e->body_case = CAIRN__WIRE__V1__ENVELOPE__BODY_SCRUB;
    e->scrub = &b;
    b.request = m->scrub.request;
    b.job = wire_str(m->scrub.job);
    return wire_pack(e, buf, err);
}

static void fill_stream(stored_stream *to, const struct wire_stream *from)
{
    const stored_stream init = CAIRN__WIRE__V1__STORED_STREAM__INIT;

    *to = init;
    to->job = wire_str(from->job);
    to->step = from->step;
    to->incarnation = from->incarnation;
    to->node = wire_str(from->node);
}

static int encode_inventory(envelope *e, const struct wire_message *m, uint8_t *buf, struct cairn_error *err)
{
    Cairn__Wire__V1__Inventory b = CAIRN__WIRE__V1__INVENTORY__INIT;
    stored_stream after;

    e->body_case = CAIRN__WIRE__V1__ENVELOPE__BODY_INVENTORY;
    e->inventory = &b;
    b.request = m->inventory.request;
    b.job = wire_str(m->inventory.job);
    if (!m->inventory.from_start) {
        fill_stream(&after, &m->inventory.after);
        b.after = &after;
    }
    return wire_pack(e, buf, err);
}

static int encode_inventory_items(envelope *e, const struct wire_message *m, uint8_t *buf, struct cairn_error *err)
{
    Cairn__Wire__V1__InventoryItems b = CAIRN__WIRE__V1__INVENTORY_ITEMS__INIT;
    stored_stream items[WIRE_ITEMS], *list[WIRE_ITEMS];

    if (m->inventory_items.n > WIRE_ITEMS)
        return cairn_fail(err, CAIRN_E_INVAL, "%u items of an inventory: at most %d", m->inventory_items.n, WIRE_ITEMS);
    e->body_case = CAIRN__WIRE__V1__ENVELOPE__BODY_INVENTORY_ITEMS;
    e->inventory_items = &b;
    for (unsigned i = 0; i < m->inventory_items.n; i++) {
        fill_stream(&items[i], &m->inventory_items.items[i]);
        list[i] = &items[i];
    }
    b.request = m->inventory_items.request;
    b.n_item = m->inventory_items.n;
    b.item = list;
    b.last = m->inventory_items.last;
    b.engine = wire_str(m->inventory_items.engine);
    return wire_pack(e, buf, err);
}

static int encode_accept_engine(envelope *e, const struct wire_message *m, uint8_t *buf, struct cairn_error *err)
{
    Cairn__Wire__V1__AcceptEngine b = CAIRN__WIRE__V1__ACCEPT_ENGINE__INIT;

    e->body_case = CAIRN__WIRE__V1__ENVELOPE__BODY_ACCEPT_ENGINE;
    e->accept_engine = &b;
    b.request = m->accept_engine.request;
    b.engine = wire_str(m->accept_engine.engine);
    return wire_pack(e, buf, err);
}

static int encode_engine_accepted(envelope *e, const struct wire_message *m, uint8_t *buf, struct cairn_error *err)
{
    Cairn__Wire__V1__EngineAccepted b = CAIRN__WIRE__V1__ENGINE_ACCEPTED__INIT;

    e->body_case = CAIRN__WIRE__V1__ENVELOPE__BODY_ENGINE_ACCEPTED;
    e->engine_accepted = &b;
    b.request = m->engine_accepted.request;
    b.code = m->engine_accepted.status.code;
    b.message = wire_str(m->engine_accepted.status.message);
    return wire_pack(e, buf, err);
}

int wire_care_encode(envelope *e, const struct wire_message *m, uint8_t buf[WIRE_MAX], struct cairn_error *err)
{
    switch (m->type) {
    case WIRE_SCRUB:
        return encode_scrub(e, m, buf, err);
    case WIRE_SCRUB_DONE:
        return encode_scrub_done(e, m, buf, err);
    case WIRE_INVENTORY:
        return encode_inventory(e, m, buf, err);
    case WIRE_INVENTORY_ITEMS:
        return encode_inventory_items(e, m, buf, err);
    case WIRE_ACCEPT_ENGINE:
        return encode_accept_engine(e, m, buf, err);
    default:
        return encode_engine_accepted(e, m, buf, err);
    }
}

/* ---- decode ---------------------------------------------------------------------------------- */

/* A name, or nothing. */
static int get_name_or_none(const char *what, const char *from, char to[CAIRN_MAX_NAME + 1], struct cairn_error *err)
{
    to[0] = 0;
    return from[0] ? wire_get_name(what, from, to, err) : 0;
}

static int get_stream(const stored_stream *from, struct wire_stream *to, struct cairn_error *err)
{
    to->step = from->step;
    to->incarnation = from->incarnation;
    int r = wire_get_name("job", from->job, to->job, err);
    return r < 0 ? r : wire_get_name("node", from->node, to->node, err);
}

static int decode_scrub_done(const Cairn__Wire__V1__ScrubDone *b, struct wire_message *m, struct cairn_error *err)
{
    m->scrub_done.request = b->request;
    m->scrub_done.files = b->files;
    m->scrub_done.fragments = b->fragments;
    m->scrub_done.bytes = b->bytes;
    m->scrub_done.bad = b->bad;
    return wire_get_status(b->code, b->message, &m->scrub_done.status, err);
}

static int decode_inventory(const Cairn__Wire__V1__Inventory *b, struct wire_message *m, struct cairn_error *err)
{
    m->inventory.request = b->request;
    m->inventory.from_start = !b->after;
    int r = get_name_or_none("job", b->job, m->inventory.job, err);
    return r < 0 || !b->after ? r : get_stream(b->after, &m->inventory.after, err);
}

static int decode_inventory_items(const Cairn__Wire__V1__InventoryItems *b, struct wire_message *m,
                                  struct cairn_error *err)
{
    int r = get_name_or_none("engine", b->engine, m->inventory_items.engine, err);

    if (r == 0 && b->n_item > WIRE_ITEMS)
        r = cairn_fail(err, CAIRN_E_PROTOCOL, "INVENTORY_ITEMS with %zu streams", b->n_item);
    if (r < 0)
        return r;
    m->inventory_items.request = b->request;
    m->inventory_items.last = b->last;
    m->inventory_items.n = (unsigned)b->n_item;
    for (size_t i = 0; i < b->n_item && r == 0; i++)
        r = get_stream(b->item[i], &m->inventory_items.items[i], err);
    return r;
}

int wire_care_decode(const envelope *e, struct wire_message *m, struct cairn_error *err)
{
    switch (m->type) {
    case WIRE_SCRUB:
        m->scrub.request = e->scrub->request;
        return get_name_or_none("job", e->scrub->job, m->scrub.job, err);
    case WIRE_SCRUB_DONE:
        return decode_scrub_done(e->scrub_done, m, err);
    case WIRE_INVENTORY:
        return decode_inventory(e->inventory, m, err);
    case WIRE_INVENTORY_ITEMS:
        return decode_inventory_items(e->inventory_items, m, err);
    case WIRE_ACCEPT_ENGINE:
        m->accept_engine.request = e->accept_engine->request;
        return wire_get_name("engine", e->accept_engine->engine, m->accept_engine.engine, err);
    default:
        m->engine_accepted.request = e->engine_accepted->request;
        return wire_get_status(e->engine_accepted->code, e->engine_accepted->message, &m->engine_accepted.status, err);
    }
}
