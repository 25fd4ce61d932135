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

int link_make_read_memory(struct link *l, struct cairn_error *err)
{
    size_t len = LINK_READ_BUFFERS * FRAGMENT_MAX_RECORD;
    uint64_t key;
    void *map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (map == MAP_FAILED)
        return cairn_fail_errno(err, errno, "map %zu bytes", len);
    l->read_memory = map;
    if (getrandom(&key, sizeof key, 0) != sizeof key)
        return cairn_fail_errno(err, errno, "draw a key");
    return fabric_mem_register(links_fabric(l->links), map, len, FABRIC_REMOTE_WRITE, key, &l->read_mem, err);
}

void link_release_read_memory(struct link *l)
{
    fabric_mem_free(TAKE_PTR(l->read_mem));
    if (l->read_memory)
        munmap(TAKE_PTR(l->read_memory), LINK_READ_BUFFERS * FRAGMENT_MAX_RECORD);
    memset(l->read_busy, 0, sizeof l->read_busy);
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

static int free_read_buffer(const struct link *l)
{
    for (int i = 0; i < LINK_READ_BUFFERS; i++)
        if (!l->read_busy[i])
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
        l->read_busy[buffer] = true;
        /* The last read's header must not pass for this one's. */
        memset(l->read_memory + (size_t)buffer * FRAGMENT_MAX_RECORD, 0, 8);
        m.read.address = fabric_mem_remote_base(l->read_mem) + (size_t)buffer * FRAGMENT_MAX_RECORD;
        m.read.remote_key = fabric_mem_key(l->read_mem);
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
    const char *record = r->buffer >= 0 && code == 0 ? l->read_memory + (size_t)r->buffer * FRAGMENT_MAX_RECORD : NULL;
    int buffer = r->buffer;

    list_remove(&r->link);
    l->fragments_read += code == 0;
    if (code == 0) {
        cairn_latency_add(&l->read_latency, (link_now_ns(l) - r->sent_ns) / 1000);
        link_did_well(l);
    }
    r->done(r, code, err, record);
    if (buffer >= 0)
        l->read_busy[buffer] = false;
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
