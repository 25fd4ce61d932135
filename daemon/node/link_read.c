/* SPDX-License-Identifier: Apache-2.0 */
/* A read: a buffer that only this peer may write to, the request, and the peer's RMA write that answers it; or, for a
 * check and for a failure, a message. */
#include "daemon/node/link_internal.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

static void memory_free(struct read_memory *m)
{
    if (m->map)
        munmap(m->map, LINK_READ_BUFFERS * FRAGMENT_MAX_RECORD);
    free(m);
}

int link_make_read_memory(struct link *l, struct cairn_error *err)
{
    size_t len = LINK_READ_BUFFERS * FRAGMENT_MAX_RECORD;
    struct read_memory *m = calloc(1, sizeof *m);
    uint64_t key;

    if (!m)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate read buffers");
    l->read_memory = m;
    void *map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return cairn_fail_errno(err, errno, "map %zu bytes", len);
    m->map = map;
    if (getrandom(&key, sizeof key, 0) != sizeof key)
        return cairn_fail_errno(err, errno, "draw a key");
    return fabric_mem_register(links_fabric(l->links), map, len, FABRIC_REMOTE_WRITE, key, &m->mem, err);
}

/* The endpoint is closed: nobody writes to it any more. */
void link_release_read_memory(struct link *l)
{
    struct read_memory *m = TAKE_PTR(l->read_memory);

    if (!m)
        return;
    fabric_mem_free(TAKE_PTR(m->mem));
    if (!m->nkept)
        memory_free(m);
}

void link_read_keep(struct link_read *r)
{
    r->memory->kept[r->buffer] = true;
    r->memory->nkept++;
}

void link_read_release(struct link *l, struct link_read *r)
{
    struct read_memory *m = TAKE_PTR(r->memory);

    m->kept[r->buffer] = m->busy[r->buffer] = false;
    if (--m->nkept == 0 && m != l->read_memory)
        memory_free(m);
    else
        link_pump(l);
}

void link_complete_reads(struct list *reads, const struct cairn_error *err)
{
    while (!list_empty(reads)) {
        struct link_read *r = list_first(reads, struct link_read, link);
        list_remove(&r->link);
        r->done(r, CAIRN_E_UNAVAILABLE, err, NULL);
    }
}

/* ---- reads ----------------------------------------------------------------------------------- */

/* A peer that many read from, or whose disk is slow, gets fewer reads at once: what waits in its line is not faster for
 * it, and would come to the deadline that says that a peer has failed. */
static int reads_at_once(const struct link *l)
{
    double late_us = links_config_of(l->links)->fragment_late_ms * 1e3;

    return l->read_latency.mean_us > late_us / 8 ? LINK_READ_BUFFERS / 4 : LINK_READ_BUFFERS;
}

static int free_read_buffer(const struct link *l)
{
    for (int i = 0; l->read_memory && i < reads_at_once(l); i++)
        if (!l->read_memory->busy[i])
            return i;
    return -1;
}

static void read_send(struct link *l, struct link_read *r, int buffer)
{
    struct wire_message m = {.type = WIRE_READ};

    r->request = ++l->next_request;
    r->buffer = buffer;
    r->sent_ns = link_now_ns(l);
    r->deadline_ns = link_deadline(l, links_config_of(l->links)->fragment_late_ms);
    list_push_back(&l->reads_sent, &r->link);
    m.read.request = r->request;
    m.read.key = r->key;
    m.read.check = r->check;
    m.read.present = r->present;
    if (buffer >= 0) {
        struct read_memory *in = r->memory = l->read_memory;
        in->busy[buffer] = true;
        /* The last read's header must not pass for this one's. */
        memset(in->map + (size_t)buffer * FRAGMENT_MAX_RECORD, 0, 8);
        m.read.address = fabric_mem_remote_base(in->mem) + (size_t)buffer * FRAGMENT_MAX_RECORD;
        m.read.remote_key = fabric_mem_key(in->mem);
        m.read.room = FRAGMENT_MAX_RECORD;
        m.read.data = (uint32_t)r->request;
    }
    link_say(l, &m);
}

void link_pump_reads(struct link *l)
{
    list_for_each_safe (it, &l->reads_queued) {
        struct link_read *r = container_of(it, struct link_read, link);
        int buffer = r->check ? -1 : free_read_buffer(l);
        if (l->failing || (!r->check && buffer < 0))
            return;
        list_remove(it);
        read_send(l, r, buffer);
    }
}

static void read_end(struct link *l, struct link_read *r, int code, const struct cairn_error *err)
{
    int buffer = r->buffer;
    struct read_memory *m = buffer >= 0 ? r->memory : NULL;
    const char *record = m && code == 0 ? m->map + (size_t)buffer * FRAGMENT_MAX_RECORD : NULL;

    list_remove(&r->link);
    l->fragments_read += code == 0;
    if (code == 0) {
        cairn_latency_add(&l->read_latency, (link_now_ns(l) - r->sent_ns) / 1000);
        link_did_well(l);
    }
    r->done(r, code, err, record); /* may free r */
    if (m && !m->kept[buffer])
        m->busy[buffer] = false;
    link_pump(l);
}

void link_on_written(void *arg, uint32_t data)
{
    struct link *l = arg;

    l->heard_ns = link_now_ns(l);
    list_for_each (it, &l->reads_sent) {
        struct link_read *r = container_of(it, struct link_read, link);
        if ((uint32_t)r->request == data && !r->check) {
            read_end(l, r, 0, NULL);
            return;
        }
    }
}

void link_on_read_done(struct link *l, const struct wire_message *m)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    const struct wire_status *status = &m->read_done.status;

    list_for_each (it, &l->reads_sent) {
        struct link_read *r = container_of(it, struct link_read, link);
        if (r->request != m->read_done.request || (status->code == 0 && !r->check))
            continue;
        if (status->code < 0)
            cairn_fail(&err, status->code, "peer %s: %s", l->record.id, status->message);
        read_end(l, r, status->code, &err);
        return;
    }
}

int link_read(struct link *l, struct link_read *r, struct cairn_error *err)
{
    list_init(&r->link);
    r->buffer = -1;
    r->memory = NULL;
    if (!link_usable(l, NULL) || l->state == LINK_DOWN)
        return cairn_fail(err, CAIRN_E_UNAVAILABLE, "peer %s: %s", l->record.id, link_last_error(l));
    list_push_back(&l->reads_queued, &r->link);
    link_pump(l);
    return 0;
}

static void cancelled_done(struct link_read *r, int code, const struct cairn_error *err, const char *record)
{
    (void)code;
    (void)err;
    (void)record;
    free(r);
}

/* One that was sent leaves a stand-in behind: its buffer is in use until the answer or the deadline. */
void link_read_cancel(struct link *l, struct link_read *r)
{
    struct link_read *stand_in;

    if (list_empty(&r->link))
        return;
    if (r->deadline_ns == 0) {
        list_remove(&r->link);
        return;
    }
    stand_in = malloc(sizeof *stand_in);
    if (!stand_in) {
        list_remove(&r->link); /* the buffer stays taken until the link ends: less room, never a wrong byte */
        return;
    }
    *stand_in = *r;
    stand_in->done = cancelled_done;
    list_push_back(&r->link, &stand_in->link);
    list_remove(&r->link);
    (void)l;
}
