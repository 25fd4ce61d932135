/* SPDX-License-Identifier: Apache-2.0 */
/* A scrub reads stream files from their first record to their last and verifies every one:
 *
 *     names of all files -> open -> header block -> the whole record -> a worker checks -> next record -> next file
 *                                      | no header: looked for block by block, within the length of a record
 *
 * What does not verify is counted, logged and marked in the catalog, so that reads go to parity and a repair sees it as
 * missing; the file's other fragments stay. One record is in memory at a time. Passes that nodes ask for go first and
 * as fast as they can; the background pass reads scrub_mib_s. Either gives way to reads of nodes. */
#include "daemon/peer/internal.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "daemon/io/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FIRST_MS 60000          /* from the start to the background pass */
#define PAUSE_MS (3600u * 1000) /* between two background passes */
#define GIVE_WAY_MS 5
#define GIVE_WAY_MOST 20 /* times in a row: a scrub gets on, slowly, under any load */
#define MAX_DEMANDS 64   /* that wait */
#define LOST_BLOCKS (FRAGMENT_MAX_RECORD / CAIRN_BLOCK)

struct pass {
    struct list link;       /* in scrub.demands */
    struct peer_node *node; /* who asked, pending; NULL: the background pass */
    uint64_t request;
    char job[CAIRN_MAX_NAME + 1];
    bool listed;
    char **names;
    size_t nnames, next;
    uint64_t files, fragments, bytes, bad;
    struct store_stream *file; /* being read */
    struct cairn_stream_id id;
    uint64_t generation, at, end;
    uint64_t known_end; /* up to here there are records, or were */
    unsigned lost;      /* blocks in a row that are no header */
    bool lost_zero;     /* the first of them was never written, it seems */
    bool lost_old;      /* one of them is of the removed stream whose file it was */
    uint64_t lost_at;
};

struct scrub {
    struct peer *peer;
    struct list demands;
    struct pass background;
    struct pass *running; /* of which something is under way */
    char *record;         /* FRAGMENT_MAX_RECORD */
    struct fragment fragment;
    struct cairn_store_req req;
    struct worker_job check;
    int code;
    struct cairn_error err;
    struct loop_timer timer;
    uint64_t background_at_ns; /* when the background pass may go on */
    unsigned gave_way;
    bool stopping;
};

static void scrub_in(struct scrub *s, uint32_t delay_ms)
{
    if (!s->stopping)
        loop_timer_after(s->peer->deps.loop, &s->timer, delay_ms);
}

/* ---- a pass ---------------------------------------------------------------------------------- */

static void pass_close_file(struct pass *x)
{
    store_close_stream(TAKE_PTR(x->file));
}

static void pass_clear(struct pass *x)
{
    pass_close_file(x);
    for (size_t i = 0; i < x->nnames; i++)
        free(x->names[i]);
    free(TAKE_PTR(x->names));
    x->nnames = x->next = 0;
    x->listed = false;
    x->files = x->fragments = x->bytes = x->bad = 0;
}

static void pass_found_bad(struct scrub *s, struct pass *x, const char *what, const struct cairn_error *err)
{
    x->bad++;
    s->peer->status.scrubbed_bad++;
    log_line(LOG_ERROR, "scrub: %s in %s: %s", what, x->names[x->next - 1], err->message);
}

/* The answer to who asked; the background pass begins again after a pause. */
static void pass_end(struct scrub *s, struct pass *x, int code, const struct cairn_error *err)
{
    struct wire_message m = {.type = WIRE_SCRUB_DONE};
    struct peer_node *n = x->node;

    if (code == 0 && !x->job[0])
        s->peer->status.scrub_last_unix_ms = (uint64_t)time(NULL) * 1000;
    if (x->bad)
        log_line(LOG_WARNING, "scrub: %llu of %llu fragments are damaged; cairn repair makes them again from parity",
                 (unsigned long long)x->bad, (unsigned long long)x->fragments);
    m.scrub_done.request = x->request;
    m.scrub_done.files = x->files;
    m.scrub_done.fragments = x->fragments;
    m.scrub_done.bytes = x->bytes;
    m.scrub_done.bad = x->bad;
    wire_status_set(&m.scrub_done.status, code, err);
    pass_clear(x);
    if (!n)
        return;
    list_remove(&x->link);
    free(x);
    peer_answer(n, &m);
    peer_node_pending_end(n);
}

static void end_demand(struct scrub *s, struct pass *x, const char *why)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    cairn_fail(&err, CAIRN_E_ABORTED, "%s", why);
    pass_end(s, x, CAIRN_E_ABORTED, &err);
}

static void background_in(struct scrub *s, uint64_t delay_ms)
{
    s->background_at_ns = loop_now_ns(s->peer->deps.loop) + delay_ms * 1000000;
}

/* What was under way has ended. */
static void go_on(struct scrub *s)
{
    struct pass *x = TAKE_PTR(s->running);

    if (s->stopping && x->node)
        end_demand(s, x, "the peer stops");
    scrub_in(s, 0);
}

/* ---- one record ------------------------------------------------------------------------------ */

/* What was jumped over was a record when another one follows, when something was written there, or when this peer has
 * known one behind it. Behind the last one there may be room that its writer, who was killed, did not come to: zeros,
 * or a removed stream's records. */
static void lost_end(struct scrub *s, struct pass *x, bool found_next)
{
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (x->lost && (found_next || x->lost_at < x->known_end || (!x->lost_zero && !x->lost_old))) {
        unsigned n = keep_mark_lost(s->peer->keep, x->generation, x->lost_at, x->at);
        cairn_fail(&err, CAIRN_E_CORRUPT, "the block at %llu is no fragment's header", (unsigned long long)x->lost_at);
        for (unsigned i = 0; i < (n ? n : 1); i++) {
            x->fragments++;
            s->peer->status.scrubbed_fragments++;
            pass_found_bad(s, x, "a fragment", &err);
        }
    }
    x->lost = 0;
}

static void record_done(struct scrub *s, struct pass *x, size_t len)
{
    char what[512];

    x->fragments++;
    x->bytes += len;
    s->peer->status.scrubbed_fragments++;
    if (s->code < 0) {
        fragment_describe(&s->fragment.key, what, sizeof what);
        pass_found_bad(s, x, what, &s->err);
        keep_mark_bad(s->peer->keep, x->generation, x->at);
    }
    x->at += len;
    if (!x->node)
        background_in(s, len * 1000 / ((uint64_t)s->peer->config.scrub_mib_s << 20));
    go_on(s);
}

static void check_run(struct worker_job *job)
{
    struct scrub *s = job->arg;

    s->err = (struct cairn_error)CAIRN_ERROR_INIT;
    s->code = fragment_check_payload(&s->fragment, s->record + FRAGMENT_HEADER, &s->err);
}

static void checked(struct worker_job *job)
{
    struct scrub *s = job->arg;

    record_done(s, s->running, fragment_record_len(s->fragment.payload_len));
}

static void record_read(struct cairn_store_req *req, int code)
{
    struct scrub *s = req->arg;
    size_t len = fragment_record_len(s->fragment.payload_len);

    if (code < 0) {
        s->code = code;
        s->err = req->err;
        record_done(s, s->running, len);
        return;
    }
    s->check = (struct worker_job){.run = check_run, .done = checked, .arg = s};
    workers_submit(s->peer->deps.workers, &s->check);
}

static bool is_zero(const char *block)
{
    return block[0] == 0 && memcmp(block, block + 1, CAIRN_BLOCK - 1) == 0;
}

static bool is_ours(const struct pass *x, const struct fragment *f)
{
    return f->generation == x->generation && f->key.step == x->id.step && f->key.incarnation == x->id.incarnation &&
           strcmp(f->key.job, x->id.job) == 0 && strcmp(f->key.node, x->id.node) == 0;
}

/* Only another stream's record has another generation and a checksum that fits. */
static bool is_old(const struct scrub *s, const struct pass *x)
{
    struct fragment f;

    return memcmp(s->record, CAIRN_STORE_BLANK, strlen(CAIRN_STORE_BLANK)) == 0 ||
           (fragment_parse(s->record, &f, NULL) == 0 && f.generation != x->generation);
}

static void header_read(struct cairn_store_req *req, int code)
{
    struct scrub *s = req->arg;
    struct pass *x = s->running;

    if (code == 0 && fragment_parse(s->record, &s->fragment, NULL) == 0 && is_ours(x, &s->fragment)) {
        lost_end(s, x, true);
        size_t len = fragment_record_len(s->fragment.payload_len);
        s->req = (struct cairn_store_req){.done = record_read, .arg = s};
        store_read(x->file, x->at, s->record, len, &s->req);
        return;
    }
    if (x->lost == 0)
        x->lost_old = false;
    x->lost_old |= code == 0 && is_old(s, x);
    if (x->lost++ == 0) {
        x->lost_zero = code == 0 && is_zero(s->record);
        x->lost_at = x->at;
        keep_mark_bad(s->peer->keep, x->generation, x->at);
    }
    x->at += CAIRN_BLOCK;
    if (x->lost > LOST_BLOCKS && x->at >= x->known_end)
        x->at = x->end;
    go_on(s);
}

/* ---- files ----------------------------------------------------------------------------------- */

static void pass_open_next(struct scrub *s, struct pass *x)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    int r =
        store_open_stream(s->peer->deps.store, x->names[x->next++], &x->file, &x->id, &x->generation, &x->end, &err);

    x->at = CAIRN_STORE_FIRST;
    x->lost = 0;
    x->known_end = r == 0 ? keep_known_end(s->peer->keep, x->generation) : 0;
    if (r == 0)
        x->files++;
    else if (r != CAIRN_E_NOT_FOUND) /* it was deleted meanwhile */
        pass_found_bad(s, x, "every fragment", &err);
}

static bool give_way(struct scrub *s)
{
    const struct peer *p = s->peer;

    if (buffers_available(p->read_buffers) == p->config.read_buffers || s->gave_way >= GIVE_WAY_MOST) {
        s->gave_way = 0;
        return false;
    }
    s->gave_way++;
    return true;
}

/* Does the pass's next thing. False when it is through. */
static bool pass_step(struct scrub *s, struct pass *x)
{
    while (x->file || x->next < x->nnames) {
        if (!x->file) {
            pass_open_next(s, x);
            continue;
        }
        if (x->at + FRAGMENT_HEADER > x->end) {
            lost_end(s, x, false);
            pass_close_file(x);
            continue;
        }
        s->running = x;
        s->req = (struct cairn_store_req){.done = header_read, .arg = s};
        store_read(x->file, x->at, s->record, FRAGMENT_HEADER, &s->req);
        return true;
    }
    return false;
}

static struct pass *next_pass(struct scrub *s)
{
    while (!list_empty(&s->demands)) {
        struct pass *x = list_first(&s->demands, struct pass, link);
        if (!x->node->ended)
            return x;
        end_demand(s, x, "its node is gone");
    }
    return s->peer->config.scrub_mib_s ? &s->background : NULL;
}

static void step(struct loop_timer *t)
{
    struct scrub *s = t->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct pass *x = s->running ? NULL : next_pass(s);

    if (!x)
        return;
    if (!x->node && loop_now_ns(s->peer->deps.loop) < s->background_at_ns) {
        loop_timer_set(s->peer->deps.loop, t, s->background_at_ns);
        return;
    }
    if (give_way(s)) {
        scrub_in(s, GIVE_WAY_MS);
        return;
    }
    int r = x->listed ? 0 : keep_names(s->peer->keep, x->job, &x->names, &x->nnames, &err);
    x->listed = true;
    if (r == 0 && pass_step(s, x))
        return;
    if (!x->node)
        background_in(s, PAUSE_MS);
    pass_end(s, x, r, &err);
    scrub_in(s, 0);
}

/* ---- the interface --------------------------------------------------------------------------- */

void peer_on_scrub(struct peer_node *n, const struct wire_message *m)
{
    struct scrub *s = n->peer->scrub;
    struct wire_message out = {.type = WIRE_SCRUB_DONE};
    struct cairn_error err = CAIRN_ERROR_INIT;
    unsigned waiting = 0;

    list_for_each (it, &s->demands)
        waiting++;
    struct pass *x = waiting < MAX_DEMANDS && !s->stopping ? calloc(1, sizeof *x) : NULL;
    if (!x) {
        int r = cairn_fail(&err, CAIRN_E_BUSY, "peer %s cannot scrub now: %u scrubs wait", n->peer->id, waiting);
        out.scrub_done.request = m->scrub.request;
        wire_status_set(&out.scrub_done.status, r, &err);
        peer_answer(n, &out);
        return;
    }
    x->node = n;
    x->request = m->scrub.request;
    snprintf(x->job, sizeof x->job, "%s", m->scrub.job);
    n->pending++;
    list_push_back(&s->demands, &x->link);
    scrub_in(s, 0);
}

int scrub_new(struct peer *p, struct cairn_error *err)
{
    struct scrub *s = calloc(1, sizeof *s);

    if (!s)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a scrub");
    s->peer = p;
    list_init(&s->demands);
    list_init(&s->background.link);
    s->timer = (struct loop_timer){.fire = step, .arg = s};
    s->record = aligned_alloc(CAIRN_BLOCK, FRAGMENT_MAX_RECORD);
    if (!s->record) {
        free(s);
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a scrub's buffer");
    }
    p->scrub = s;
    background_in(s, FIRST_MS);
    scrub_in(s, 0);
    return 0;
}

bool scrub_busy(const struct scrub *s)
{
    return s->running != NULL;
}

/* What is being read ends with go_on. */
void scrub_stop(struct scrub *s)
{
    s->stopping = true;
    loop_timer_cancel(s->peer->deps.loop, &s->timer);
    list_for_each_safe (it, &s->demands) {
        struct pass *x = container_of(it, struct pass, link);
        if (x != s->running)
            end_demand(s, x, "the peer stops");
    }
}

void scrub_free(struct scrub *s)
{
    if (!s)
        return;
    loop_timer_cancel(s->peer->deps.loop, &s->timer);
    pass_clear(&s->background);
    free(s->record);
    free(s);
}
