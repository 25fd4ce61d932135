/* SPDX-License-Identifier: Apache-2.0 */
/* A read: a buffer, the record from the store, verified by a worker, then written into the reader's memory. What does
 * not verify, or is not the fragment that was asked for, never leaves this peer. */
#include "daemon/peer/internal.h"

#include "core/base/error.h"
#include "daemon/io/log.h"

#include <stdio.h>
#include <stdlib.h>

#define READ_COPIES 4 /* of one fragment on this peer that are tried */

static void read_next(struct peer *p);

static void read_answer(struct peer_read *r, int code, const struct cairn_error *err)
{
    struct wire_message m = {.type = WIRE_READ_DONE};

    m.read_done.request = r->request;
    wire_status_set(&m.read_done.status, code, err);
    peer_answer(r->node, &m);
}

/* The end of every read: gives the buffer back, which the next one waits for. */
static void read_free(struct peer_read *r)
{
    struct peer_node *n = r->node;
    struct peer *p = n->peer;

    if (r->buffer)
        buffers_give(p->read_buffers, r->buffer);
    free(r);
    peer_node_pending_end(n);
    read_next(p);
}

static void read_written(struct fabric_op *op, int code)
{
    struct peer_read *r = op->arg;

    if (code < 0 && !r->node->ended)
        log_line(LOG_DETAIL, "a fragment could not be sent to node %s: %s", r->node->id, cairn_code_name(code));
    read_free(r);
}

static void read_check_run(struct worker_job *job)
{
    struct peer_read *r = job->arg;
    struct fragment f;

    r->err = (struct cairn_error)CAIRN_ERROR_INIT;
    r->code = fragment_parse(r->buffer, &f, &r->err);
    if (r->code == 0 && !fragment_key_equal(&f.key, &r->key))
        r->code = cairn_fail(&r->err, CAIRN_E_CORRUPT, "another fragment lies in its place");
    if (r->code == 0 && f.generation != r->read.generation)
        r->code = cairn_fail(&r->err, CAIRN_E_CORRUPT, "it was written into another file");
    if (r->code == 0 && fragment_record_len(f.payload_len) != r->record_len)
        r->code = cairn_fail(&r->err, CAIRN_E_CORRUPT, "its length is %zu, the catalog says %u",
                             fragment_record_len(f.payload_len), r->record_len);
    if (r->code == 0)
        r->code = fragment_check_payload(&f, (const char *)r->buffer + FRAGMENT_HEADER, &r->err);
}

static void read_start(struct peer_read *r, void *buffer);

/* Whatever is wrong with what is stored, the reader learns that it is damaged; why is for the log. A repair may have
 * put another copy into another file of this peer: it is looked for before the reader is told. */
static void read_damaged(struct peer_read *r)
{
    struct peer *p = r->node->peer;
    char what[512];

    p->status.bad_fragments++;
    fragment_describe(&r->key, what, sizeof what);
    cairn_wrap(&r->err, CAIRN_E_CORRUPT, "%s", what);
    log_line(LOG_ERROR, "a stored fragment does not verify: %s", r->err.message);
    keep_mark_bad(p->keep, r->read.generation, r->read.offset);
    if (++r->damaged == 1)
        r->damage = r->err;
    if (r->damaged < READ_COPIES && !r->node->ended) {
        read_start(r, r->buffer);
        return;
    }
    read_answer(r, CAIRN_E_CORRUPT, &r->damage);
    read_free(r);
}

static void read_checked(struct worker_job *job)
{
    struct peer_read *r = job->arg;
    struct peer *p = r->node->peer;

    if (r->code < 0) {
        read_damaged(r);
        return;
    }
    p->status.fragments_read++;
    if (r->check_only || r->node->ended) {
        read_answer(r, r->code, &r->err);
        read_free(r);
        return;
    }
    r->write = (struct fabric_op){.done = read_written, .arg = r};
    endpoint_write(p->ep, &r->write, r->node->to, r->buffer, r->record_len, p->read_mem, r->address, r->remote_key,
                   r->data);
}

static void read_loaded(struct keep_read *kr, int code, const struct cairn_error *err, uint32_t record_len)
{
    struct peer_read *r = kr->arg;
    struct cairn_error own = CAIRN_ERROR_INIT;

    cairn_error_copy(&own, err);
    if (code == 0 && !r->check_only && record_len > r->room)
        code = cairn_fail(&own, CAIRN_E_TOO_LARGE, "it has %u bytes, the reader has room for %llu", record_len,
                          (unsigned long long)r->room);
    if (code == CAIRN_E_CORRUPT && !kr->known_bad) { /* its file ends before it does */
        r->err = own;
        read_damaged(r);
        return;
    }
    if (code < 0) {
        read_answer(r, r->damaged ? CAIRN_E_CORRUPT : code, r->damaged ? &r->damage : &own);
        read_free(r);
        return;
    }
    if (r->present_only) {
        read_answer(r, 0, NULL);
        read_free(r);
        return;
    }
    r->record_len = record_len;
    r->check = (struct worker_job){.run = read_check_run, .done = read_checked, .arg = r};
    workers_submit(r->node->peer->deps.workers, &r->check);
}

static void read_start(struct peer_read *r, void *buffer)
{
    r->buffer = buffer;
    r->read = (struct keep_read){
        .done = read_loaded, .arg = r, .key = r->key, .buffer = buffer, .present_only = r->present_only};
    keep_read(r->node->peer->keep, &r->read);
}

static void read_next(struct peer *p)
{
    while (!list_empty(&p->reads_waiting) && buffers_available(p->read_buffers) > 0) {
        struct peer_read *r = list_first(&p->reads_waiting, struct peer_read, link);
        list_remove(&r->link);
        p->nreads_waiting--;
        read_start(r, buffers_take(p->read_buffers));
    }
}

void peer_on_read(struct peer_node *n, const struct wire_message *m)
{
    struct peer *p = n->peer;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct peer_read *r = p->nreads_waiting < PEER_MAX_READS_WAITING ? calloc(1, sizeof *r) : NULL;

    if (!r) {
        struct peer_read refused = {.node = n, .request = m->read.request};
        cairn_fail(&err, CAIRN_E_BUSY, "peer %s has %u reads waiting", p->id, p->nreads_waiting);
        read_answer(&refused, CAIRN_E_BUSY, &err);
        return;
    }
    r->node = n;
    r->request = m->read.request;
    r->check_only = m->read.check;
    r->present_only = m->read.check && m->read.present;
    r->address = m->read.address;
    r->remote_key = m->read.remote_key;
    r->room = m->read.room;
    r->data = m->read.data;
    r->key = m->read.key;
    n->pending++;
    list_push_back(&p->reads_waiting, &r->link);
    p->nreads_waiting++;
    read_next(p);
}

void peer_drop_reads(struct peer_node *n)
{
    struct peer *p = n->peer;

    list_for_each_safe (it, &p->reads_waiting) {
        struct peer_read *r = container_of(it, struct peer_read, link);
        if (r->node != n)
            continue;
        list_remove(it);
        p->nreads_waiting--;
        free(r);
        n->pending--; /* its end holds one more: it cannot be the last */
    }
}
