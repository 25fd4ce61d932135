/* SPDX-License-Identifier: Apache-2.0 */
/* Blobs. A put keeps each copy on one peer: when that peer fails, the copy begins again on another. Of its m + 1 copies
 * margin + 1 are enough, as many as a stripe needs to survive the loss of margin peers; the others are waited for as
 * long as these took once more, and then left to repair. A get goes through the peers one after the other until one
 * gives all pieces and the whole has the SHA-256 that was asked for. */
#include "daemon/node/blob.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/hash.h"
#include "core/model/units.h"
#include "daemon/node/link.h"

#include <openssl/sha.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void sha256(const void *data, size_t len, uint8_t ret_digest[SHA256_LEN])
{
    SHA256(data, len, ret_digest);
}

#define GRACE_MS 50
uint32_t blob_attempt(const uint8_t digest[SHA256_LEN])
{
    return (uint32_t)digest[0] | (uint32_t)digest[1] << 8 | (uint32_t)digest[2] << 16 | (uint32_t)digest[3] << 24;
}

/* ---- put ------------------------------------------------------------------------------------- */

struct copy {
    struct link *link;   /* NULL: to be chosen */
    uint32_t epoch;      /* of the link, when its first piece was stored */
    uint32_t next_piece; /* to be sent */
    uint32_t stored;     /* pieces */
    unsigned sending;
    uint64_t stored_at; /* of the last piece */
    bool spoiled;       /* a piece failed: begins again when nothing is on its way */
    bool durable;       /* on its disk: what fails later takes nothing back */
};

struct blob_writer {
    struct links *links;
    struct fragment_key key;
    const char *data;
    size_t len;
    uint32_t pieces;
    struct stream_key stream;
    struct pump pump;
    struct loop_timer deadline;
    blob_put_done done;
    void *arg;
    struct blob_ref ref;
    unsigned ncopies, enough;
    uint64_t started_ns;
    struct loop_timer grace; /* for what is left when enough are durable */
    bool waiting, waited;
    bool told; /* done() was called: ends when nothing of it is on its way */
    struct copy copies[CAIRN_MAX_M + 1];
    struct link *have[CAIRN_MAX_M + 1]; /* peers that have a copy already */
    unsigned nhave;
    unsigned busy;
    int code;
    struct cairn_error err;
    char last_error[WIRE_TEXT];
};

struct piece {
    struct link_put put;
    struct fragment fragment;
    struct blob_writer *writer;
    struct copy *copy;
};

static void writer_finish(struct blob_writer *w)
{
    links_pump_remove(&w->pump);
    loop_timer_cancel(links_loop(w->links), &w->deadline);
    loop_timer_cancel(links_loop(w->links), &w->grace);
    for (unsigned i = 0; i < w->ncopies && w->code == 0; i++) {
        if (w->copies[i].durable)
            snprintf(w->ref.peer[w->ref.npeers++], CAIRN_MAX_NAME + 1, "%s", link_id(w->copies[i].link));
        else
            links_counts(w->links)->fragments_left += w->pieces;
    }
    w->told = true;
    w->busy++; /* what done() ends may be the last of it */
    w->done(w->arg, w->code, &w->err, w->code == 0 ? &w->ref : NULL);
    if (--w->busy == 0)
        free(w);
}

static void piece_end(struct piece *p, int code, const struct cairn_error *err)
{
    struct blob_writer *w = p->writer;
    struct copy *c = p->copy;
    bool last = w->told && w->busy == 1;

    c->sending--;
    w->busy--;
    if (code == 0) {
        c->stored++;
        c->stored_at = p->put.stored_at;
        c->epoch = p->put.epoch;
    } else {
        c->spoiled = true;
        snprintf(w->last_error, sizeof w->last_error, "%.*s", (int)sizeof w->last_error - 1, err->message);
    }
    links_buffer_give(w->links, p->put.record);
    links_kick(w->links);
    free(p);
    if (last)
        free(w);
}

static void piece_sent(struct link_put *put, int code, const struct cairn_error *err)
{
    piece_end(put->arg, code, err);
}

static void fill_piece(struct piece *p, uint32_t number, char *record)
{
    struct blob_writer *w = p->writer;
    struct fragment *f = &p->fragment;
    size_t at = (size_t)number * CAIRN_PART, len = w->len - at < CAIRN_PART ? w->len - at : CAIRN_PART;
    char *payload = record + FRAGMENT_HEADER;

    memcpy(payload, w->data + at, len);
    memset(payload + len, 0, round_up_u64(len, CAIRN_BLOCK) - len);
    f->key = w->key;
    f->key.first_part = number;
    f->k = 1;
    f->dtype = CAIRN_BYTES;
    f->payload_len = (uint32_t)len;
    f->payload_sum = cairn_hash64(payload, len, 0);
    f->blob_len = w->len;
    memcpy(f->blob_sha256, w->ref.sha256, SHA256_LEN);
    p->put.record = record;
    p->put.record_len = fragment_record_len((uint32_t)len);
}

/* False when there is no buffer now. */
static bool send_piece(struct blob_writer *w, struct copy *c)
{
    char *record = links_buffer_take(w->links);
    struct piece *p = record ? calloc(1, sizeof *p) : NULL;
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (!p) {
        if (record)
            links_buffer_give(w->links, record);
        return false;
    }
    p->writer = w;
    p->copy = c;
    fill_piece(p, c->next_piece++, record);
    p->put.done = piece_sent;
    p->put.arg = p;
    p->put.stream = w->stream;
    p->put.fragment = &p->fragment;
    c->sending++;
    w->busy++;
    int r = link_put(c->link, &p->put, &err);
    if (r < 0)
        piece_end(p, r, &err);
    return true;
}

static bool link_taken(const struct blob_writer *w, const struct link *l)
{
    for (unsigned i = 0; i < w->ncopies; i++)
        if (w->copies[i].link == l)
            return true;
    for (unsigned i = 0; i < w->nhave; i++)
        if (w->have[i] == l)
            return true;
    return false;
}

static struct link *next_link(struct blob_writer *w)
{
    struct link *takers[CAIRN_GROUP_MAX];
    unsigned n = links_takers(w->links, cairn_hash64(w->ref.sha256, SHA256_LEN, w->key.rank), &w->stream, takers);

    for (unsigned i = 0; i < n; i++)
        if (!link_taken(w, takers[i]))
            return takers[i];
    return NULL;
}

static void copy_restart(struct copy *c)
{
    *c = (struct copy){.link = NULL};
}

/* One copy's step. True when it is durable. */
static bool copy_step(struct blob_writer *w, struct copy *c)
{
    if (c->durable)
        return true;
    if (c->link && c->stored > 0 && link_epoch(c->link) != c->epoch)
        c->spoiled = true;
    if (c->spoiled && c->sending == 0)
        copy_restart(c);
    if (c->spoiled)
        return false;
    if (!c->link)
        c->link = next_link(w);
    while (c->link && !c->spoiled && c->next_piece < w->pieces && send_piece(w, c))
        ;
    if (!c->link || c->stored < w->pieces)
        return false;
    c->durable = link_synced_to(c->link, &w->stream) >= c->stored_at;
    if (c->durable)
        return true;
    link_sync(c->link, &w->stream);
    return false;
}

/* Fewer peers than copies: as many copies as there are peers, at least one. */
static void drop_homeless(struct blob_writer *w)
{
    unsigned kept = 0;

    if (next_link(w))
        return;
    for (unsigned i = 0; i < w->ncopies; i++)
        kept += w->copies[i].link != NULL;
    if (kept == 0 || w->busy > 0)
        return;
    for (unsigned i = 0; i < w->ncopies;) {
        if (w->copies[i].link)
            i++;
        else
            w->copies[i] = w->copies[--w->ncopies];
    }
}

static void waited(struct loop_timer *t)
{
    struct blob_writer *w = t->arg;

    w->waited = true;
    links_kick(w->links);
}

/* Whether it may end: all copies, or enough and the rest have had their time. */
static bool is_enough(struct blob_writer *w, unsigned durable)
{
    uint64_t took_ms = (loop_now_ns(links_loop(w->links)) - w->started_ns) / 1000000;

    if (durable == w->ncopies)
        return w->busy == 0;
    if (durable < w->enough)
        return false;
    if (!w->waiting)
        loop_timer_after(links_loop(w->links), &w->grace, (uint32_t)took_ms + GRACE_MS);
    w->waiting = true;
    return w->waited;
}

static void writer_pump(struct pump *p)
{
    struct blob_writer *w = p->arg;
    unsigned durable = 0;

    for (unsigned i = 0; i < w->ncopies && w->code == 0; i++)
        durable += copy_step(w, &w->copies[i]);
    if (w->code == 0)
        drop_homeless(w);
    if (w->code < 0 ? w->busy == 0 : is_enough(w, durable))
        writer_finish(w);
}

static void writer_too_late(struct loop_timer *t)
{
    struct blob_writer *w = t->arg;
    char why[300];

    links_why(w->links, why, sizeof why);
    w->code = cairn_fail(&w->err, CAIRN_E_TIMEOUT, "%zu bytes of a manifest were not durable in time: %s%s%s", w->len,
                         w->last_error, why[0] ? "; " : "", why);
    links_kick(w->links);
}

static struct blob_writer *writer_new(struct links *links, const struct fragment_key *key, const void *data, size_t len,
                                      unsigned copies, uint32_t timeout_ms)
{
    struct blob_writer *w = calloc(1, sizeof *w);

    if (!w)
        abort(); /* a put that can neither succeed nor fail */
    w->links = links;
    w->key = *key;
    w->data = data;
    w->len = len;
    w->pieces = (uint32_t)((len + CAIRN_PART - 1) / CAIRN_PART);
    w->err = (struct cairn_error)CAIRN_ERROR_INIT;
    w->ncopies = copies < 1 ? 1 : copies > CAIRN_MAX_M + 1 ? CAIRN_MAX_M + 1 : copies;
    w->enough = 1 + cairn_margin_for(w->ncopies - 1, links_config_of(links)->margin);
    w->started_ns = loop_now_ns(links_loop(links));
    w->grace = (struct loop_timer){.fire = waited, .arg = w};
    w->ref.len = len;
    sha256(data, len, w->ref.sha256);
    w->key.attempt = key->kind == FRAGMENT_DECISION ? 0 : blob_attempt(w->ref.sha256);
    snprintf(w->stream.job, sizeof w->stream.job, "%s", key->job);
    w->stream.step = key->step;
    w->stream.incarnation = key->incarnation;
    w->stream.reserve_bytes = fragment_record_len(CAIRN_PART) * w->pieces;
    w->deadline = (struct loop_timer){.fire = writer_too_late, .arg = w};
    loop_timer_after(links_loop(links), &w->deadline, timeout_ms);
    w->pump = (struct pump){.run = writer_pump, .arg = w};
    links_pump_add(links, &w->pump);
    return w;
}

void blob_put(struct links *links, const struct fragment_key *key, uint64_t fence_incarnation, const void *data,
              size_t len, unsigned copies, uint32_t timeout_ms, blob_put_done done, void *arg)
{
    struct blob_writer *w = writer_new(links, key, data, len, copies, timeout_ms);

    w->stream.fence_incarnation = fence_incarnation;
    w->done = done;
    w->arg = arg;
}

void blob_put_again(struct links *links, const struct fragment_key *key, const void *data, size_t len, unsigned copies,
                    struct link *const *have, unsigned nhave, uint32_t timeout_ms, blob_put_done done, void *arg)
{
    struct blob_writer *w = writer_new(links, key, data, len, copies, timeout_ms);

    snprintf(w->stream.repaired, sizeof w->stream.repaired, "%s", key->node);
    for (; w->nhave < nhave && w->nhave < CAIRN_MAX_M + 1; w->nhave++)
        w->have[w->nhave] = have[w->nhave];
    w->done = done;
    w->arg = arg;
}

/* ---- get ------------------------------------------------------------------------------------- */

struct blob_reader {
    struct links *links;
    struct fragment_key key;
    struct blob_ref ref;
    char *data;
    uint32_t pieces, piece;
    struct link *order[LINKS_MAX];
    unsigned norder, next; /* peers to ask, and the next one */
    struct link *from;     /* who is being read; NULL */
    struct link_read read;
    struct loop_timer deadline;
    struct loop_post step;
    bool stepping;
    blob_get_done done;
    void *arg;
    struct cairn_error err;  /* the last peer's */
    struct loop_timer again; /* after a round without success, while peers may still come up */
};

static void reader_step_soon(struct blob_reader *b);

static void reader_finish(struct blob_reader *b, int code)
{
    if (b->from)
        link_read_cancel(b->from, &b->read);
    loop_timer_cancel(links_loop(b->links), &b->deadline);
    loop_timer_cancel(links_loop(b->links), &b->again);
    b->done(b->arg, code, &b->err, code == 0 ? b->data : NULL, code == 0 ? b->ref.len : 0);
    free(b->data);
    free(b);
}

static bool whole_is_right(const struct blob_reader *b)
{
    uint8_t digest[SHA256_LEN];

    sha256(b->data, b->ref.len, digest);
    return memcmp(digest, b->ref.sha256, SHA256_LEN) == 0;
}

static int take_piece(struct blob_reader *b, const char *record, struct cairn_error *err)
{
    struct fragment f;
    size_t at = (size_t)b->piece * CAIRN_PART, want = b->ref.len - at < CAIRN_PART ? b->ref.len - at : CAIRN_PART;
    int r = fragment_parse(record, &f, err);

    if (r == 0 && (!fragment_key_equal(&f.key, &b->read.key) || f.payload_len != want))
        r = cairn_fail(err, CAIRN_E_CORRUPT, "another fragment came than was asked for");
    if (r == 0)
        r = fragment_check_payload(&f, record + FRAGMENT_HEADER, err);
    if (r == 0)
        memcpy(b->data + at, record + FRAGMENT_HEADER, want);
    return r;
}

static void piece_read(struct link_read *read, int code, const struct cairn_error *err, const char *record)
{
    struct blob_reader *b = read->arg;
    struct cairn_error own = CAIRN_ERROR_INIT;

    cairn_error_copy(&own, err);
    if (code == 0)
        code = take_piece(b, record, &own);
    if (code < 0) {
        cairn_error_copy(&b->err, &own);
        b->from = NULL; /* the next peer gives it from its first piece on */
    } else {
        b->piece++;
    }
    reader_step_soon(b);
}

static void read_piece(struct blob_reader *b)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    b->read = (struct link_read){.done = piece_read, .arg = b, .key = b->key};
    b->read.key.first_part = b->piece;
    if (link_read(b->from, &b->read, &err) < 0) {
        cairn_error_copy(&b->err, &err);
        b->from = NULL;
        reader_step_soon(b);
    }
}

/* The hinted peers, then all others. */
static void order_peers(struct blob_reader *b)
{
    struct link *all[LINKS_MAX];
    unsigned n = links_all(b->links, all, LINKS_MAX);

    b->norder = b->next = 0;
    for (unsigned hinted = 0; hinted < 2; hinted++)
        for (unsigned i = 0; i < n; i++) {
            bool is_hint = false;
            for (uint32_t h = 0; h < b->ref.npeers; h++)
                is_hint |= strcmp(b->ref.peer[h], link_id(all[i])) == 0;
            if (is_hint == (hinted == 0))
                b->order[b->norder++] = all[i];
        }
}

static void try_again(struct loop_timer *t)
{
    struct blob_reader *b = t->arg;

    order_peers(b);
    reader_step_soon(b);
}

static void reader_step(struct loop_post *post)
{
    struct blob_reader *b = post->arg;

    b->stepping = false;
    if (b->from && b->piece == b->pieces) {
        if (whole_is_right(b)) {
            reader_finish(b, 0);
            return;
        }
        cairn_fail(&b->err, CAIRN_E_CORRUPT, "the manifest on peer %s does not have its SHA-256", link_id(b->from));
        b->from = NULL;
    }
    while (!b->from && b->next < b->norder) {
        struct link *l = b->order[b->next++];
        if (link_usable(l, NULL) && link_state_of(l) == LINK_UP)
            b->from = l;
        b->piece = 0;
    }
    if (b->from) {
        read_piece(b);
        return;
    }
    b->again = (struct loop_timer){.fire = try_again, .arg = b}; /* until the deadline: peers may be on their way up */
    loop_timer_after(links_loop(b->links), &b->again, 100);
}

static void reader_step_soon(struct blob_reader *b)
{
    if (b->stepping)
        return;
    b->stepping = true;
    b->step = (struct loop_post){.run = reader_step, .arg = b};
    loop_defer(links_loop(b->links), &b->step);
}

static void reader_too_late(struct loop_timer *t)
{
    struct blob_reader *b = t->arg;
    char why[300], what[400];

    if (b->stepping) { /* a step is posted and would find nothing */
        loop_timer_after(links_loop(b->links), t, 1);
        return;
    }
    links_why(b->links, why, sizeof why);
    fragment_describe(&b->key, what, sizeof what);
    cairn_fail(&b->err, b->err.code == CAIRN_E_CORRUPT ? CAIRN_E_CORRUPT : CAIRN_E_UNAVAILABLE,
               "%s cannot be read: %s%s%s", what, b->err.message[0] ? b->err.message : "no peer answers",
               why[0] ? "; " : "", why);
    reader_finish(b, b->err.code);
}

void blob_get(struct links *links, const struct fragment_key *key, const struct blob_ref *ref, uint32_t timeout_ms,
              blob_get_done done, void *arg)
{
    struct blob_reader *b = calloc(1, sizeof *b);

    if (!b)
        abort(); /* a get that can neither succeed nor fail */
    b->links = links;
    b->key = *key;
    b->key.attempt = key->kind == FRAGMENT_DECISION ? 0 : blob_attempt(ref->sha256);
    b->ref = *ref;
    b->pieces = (uint32_t)((ref->len + CAIRN_PART - 1) / CAIRN_PART);
    b->done = done;
    b->arg = arg;
    b->err = (struct cairn_error)CAIRN_ERROR_INIT;
    b->data = malloc(ref->len ? ref->len : 1);
    if (!b->data)
        abort();
    b->deadline = (struct loop_timer){.fire = reader_too_late, .arg = b};
    loop_timer_after(links_loop(links), &b->deadline, timeout_ms);
    order_peers(b);
    reader_step_soon(b);
}
