/* SPDX-License-Identifier: Apache-2.0 */
#include "double_transfer.h"

#include "core/base/error.h"
#include "core/checkpoint/common.h"
#include "daemon/node/survey.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct drain {
    struct list link;
    struct links *links;
    struct drain_spec spec;
    struct loop_post post;
    bool posted, cancelled, told;
};
struct blob {
    struct list link;
    struct blob_ref ref;
    void *data;
};
struct blob_call {
    struct list link;
    struct loop_post post;
    struct blob *blob;
    int code;
    blob_put_done put;
    blob_get_done get;
    void *arg;
};

void double_init(struct links *l, struct loop *loop, const char *node)
{
    *l = (struct links){.loop = loop, .node = node, .fail_rank = -1};
    list_init(&l->drains);
    list_init(&l->blobs);
    list_init(&l->calls);
}

void double_free(struct links *l)
{
    list_for_each_safe (it, &l->blobs) {
        struct blob *b = container_of(it, struct blob, link);
        free(b->data);
        free(b);
    }
}

void double_move_blobs(struct links *from, struct links *to)
{
    while (!list_empty(&from->blobs)) {
        struct list *it = from->blobs.next;
        list_remove(it);
        list_push_back(&to->blobs, it);
    }
}

unsigned links_live(const struct links *links)
{
    (void)links;
    return 3;
}

void links_end_checkpoint(struct links *links, const char *job, uint64_t step, uint64_t incarnation, bool aborted)
{
    (void)job;
    (void)step;
    (void)incarnation;
    links->ended++;
    links->ended_aborted += aborted;
}

void links_on_forgotten(struct links *links, links_forgotten_fn forgotten, void *arg)
{
    links->forgotten = forgotten;
    links->forgotten_arg = arg;
}

void links_each_peer(struct links *links, void (*each)(void *arg, const char *peer, bool registered), void *arg)
{
    char name[16];

    for (unsigned i = 0; i < links->npeers; i++) {
        snprintf(name, sizeof name, "p%u", i);
        each(arg, name, i < links->nregistered);
    }
}

/* ---- blobs ----------------------------------------------------------------------------------- */

static void blob_answer(struct loop_post *post)
{
    struct blob_call *c = post->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (c->code < 0)
        cairn_fail(&err, c->code, "the double says %s", cairn_code_name(c->code));
    if (c->put)
        c->put(c->arg, 0, NULL, &c->blob->ref);
    else
        c->get(c->arg, c->code, c->code < 0 ? &err : NULL, c->code < 0 ? NULL : c->blob->data,
               c->code < 0 ? 0 : c->blob->ref.len);
    free(c);
}

static void blob_call(struct links *links, struct blob_call call)
{
    struct blob_call *c = malloc(sizeof *c);

    *c = call;
    list_init(&c->link);
    c->post = (struct loop_post){.run = blob_answer, .arg = c};
    if (links->hold_blobs)
        list_push_back(&links->calls, &c->link);
    else
        loop_defer(links->loop, &c->post);
}

static struct blob *blob_keep(struct links *links, const void *data, size_t len)
{
    struct blob *b = calloc(1, sizeof *b);
    struct hash128 h = cairn_hash128(data, len);

    b->data = malloc(len ? len : 1);
    memcpy(b->data, data, len);
    b->ref.len = len;
    memcpy(b->ref.sha256, &h, sizeof h);
    b->ref.npeers = 1;
    strcpy(b->ref.peer[0], "p0");
    list_push_back(&links->blobs, &b->link);
    return b;
}

void blob_put(struct links *links, const struct fragment_key *key, uint64_t fence_incarnation, const void *data,
              size_t len, unsigned copies, uint32_t timeout_ms, blob_put_done done, void *arg)
{
    (void)key;
    (void)fence_incarnation;
    (void)copies;
    (void)timeout_ms;
    blob_call(links, (struct blob_call){.blob = blob_keep(links, data, len), .put = done, .arg = arg});
}

void blob_get(struct links *links, const struct fragment_key *key, const struct blob_ref *ref, uint32_t timeout_ms,
              blob_get_done done, void *arg)
{
    struct blob_call call = {.get = done, .arg = arg, .code = CAIRN_E_NOT_FOUND};

    (void)timeout_ms;
    list_for_each (it, &links->blobs) {
        struct blob *b = container_of(it, struct blob, link);
        if (memcmp(b->ref.sha256, ref->sha256, SHA256_LEN) == 0) {
            call.blob = b;
            call.code = 0;
        }
    }
    if (links->blobs_away)
        call.code = CAIRN_E_UNAVAILABLE;
    else if (key->step == links->corrupt_step)
        call.code = CAIRN_E_CORRUPT;
    blob_call(links, call);
}

/* ---- surveys --------------------------------------------------------------------------------- */

struct survey_call {
    struct loop_post post;
    struct links *links;
    struct survey *s; /* NULL: cancelled */
};

static void survey_answer(struct loop_post *post)
{
    struct survey_call *c = post->arg;
    struct survey *s = c->s;
    struct cairn_error err = CAIRN_ERROR_INIT;
    bool is_short = s && s->manifests[0].step == c->links->short_step;
    int code = is_short ? cairn_fail(&err, c->links->short_code, "the double has too few fragments") : 0;

    free(c);
    if (!s)
        return;
    s->state = NULL;
    s->done(s, code, &err);
}

int survey_start(struct links *links, struct survey *s, struct cairn_error *err)
{
    struct survey_call *c = calloc(1, sizeof *c);

    if (!c)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate");
    *c = (struct survey_call){.links = links, .s = s};
    c->post = (struct loop_post){.run = survey_answer, .arg = c};
    s->state = c;
    links->surveys++;
    loop_defer(links->loop, &c->post);
    return 0;
}

void survey_cancel(struct survey *s)
{
    struct survey_call *c = s->state;

    if (c)
        c->s = NULL;
    s->state = NULL;
}

/* ---- drains ---------------------------------------------------------------------------------- */

static void drain_succeed(struct drain *d)
{
    struct manifest m;
    struct chunk_record chunk = {.k = 1};
    struct bytes encoded = {0};
    struct shard_ref ref = {.rank = d->spec.rank, .plain_bytes = 64, .stored_bytes = 64};
    char peer[1][CAIRN_MAX_NAME + 1] = {"p0"};
    struct cairn_error err = CAIRN_ERROR_INIT;

    manifest_init(&m);
    snprintf(m.job, sizeof m.job, "%s", d->spec.job);
    snprintf(m.node, sizeof m.node, "%s", d->links->node);
    snprintf(ref.node, sizeof ref.node, "%s", d->links->node);
    m.step = d->spec.step;
    m.incarnation = d->spec.incarnation;
    m.rank = d->spec.rank;
    m.world_size = d->spec.world_size;
    m.peers = peer;
    m.npeers = 1;
    m.layout = *d->spec.layout;
    chunk.part[0] = (struct cairn_part_code){0, 0, 64, 64};
    m.chunks = &chunk;
    m.nchunks = 1;
    struct cairn_numerics numerics = {.known = d->links->watched, .bad.nan = d->links->nan};
    numerics.digest.low = d->links->flipped >> d->spec.rank & 1;
    m.numerics = &numerics;
    int r = common_sum_up(&m.layout, m.numerics, &ref.numerics, &err);
    if (r == 0)
        r = manifest_encode(&m, &encoded, &err);
    if (r == 0)
        ref.manifest = blob_keep(d->links, encoded.data, encoded.len)->ref;
    bytes_free(&encoded);
    if (r == 0)
        d->spec.durable(d->spec.arg, 0, 1);
    d->spec.done(d->spec.arg, r, r < 0 ? &err : NULL, &ref, &m);
}

static void drain_end(struct loop_post *post)
{
    struct drain *d = post->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;

    if (d->told)
        ;
    else if (d->cancelled)
        d->spec.done(d->spec.arg, cairn_fail(&err, CAIRN_E_ABORTED, "cancelled"), &err, NULL, NULL);
    else if (d->links->fail_rank == (int)d->spec.rank)
        d->spec.done(d->spec.arg, cairn_fail(&err, CAIRN_E_NO_SPACE, "peer p0 is full"), &err, NULL, NULL);
    else
        drain_succeed(d);
    d->told = true;
    if (d->links->hold_tails && !d->cancelled) {
        d->posted = false;
        return;
    }
    list_remove(&d->link);
    d->links->reading--;
    d->spec.ended(d->spec.arg, 0);
    free(d);
}

static void drain_post(struct drain *d)
{
    if (d->posted)
        return;
    d->posted = true;
    loop_defer(d->links->loop, &d->post);
}

int drain_start(struct links *links, const struct drain_spec *spec, struct drain **ret_drain, struct cairn_error *err)
{
    struct drain *d = calloc(1, sizeof *d);

    if (!d)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate");
    d->links = links;
    d->spec = *spec;
    d->post = (struct loop_post){.run = drain_end, .arg = d};
    list_push_back(&links->drains, &d->link);
    links->started++;
    links->reading++;
    if (!links->hold_drains && !spec->filling)
        drain_post(d);
    *ret_drain = d;
    return 0;
}

void drain_cancel(struct drain *drain)
{
    drain->cancelled = true;
    drain->links->cancelled++;
    drain_post(drain);
}

void drain_in_place(struct drain *drain, uint32_t parts)
{
    drain->spec.in_place = parts;
    drain->links->in_place = parts;
}

void drain_sums(struct drain *drain, const struct hash128 *sums, uint64_t seed)
{
    drain->spec.sums = sums;
    drain->spec.sums_seed = seed;
}

void drain_filled(struct drain *drain)
{
    if (drain->spec.filling && !drain->links->hold_drains)
        drain_post(drain);
    drain->spec.filling = false;
}

void drain_hurry(struct drain *drain, int why)
{
    (void)cairn_pace_hurry(&drain->spec.pace, why);
}

void drain_status_of(const struct drain *drain, struct drain_status *ret)
{
    *ret = (struct drain_status){.parts = drain->spec.layout->nparts, .pace = drain->spec.pace};
}

void drain_why(const struct drain *drain, char *buf, size_t len)
{
    (void)drain;
    snprintf(buf, len, "0 of 1 parts durable");
}

void double_forgotten(struct links *l, const char *peer, uint64_t step)
{
    assert(l->forgotten);
    l->forgotten(l->forgotten_arg, peer, "j", step, 1);
}

void double_let_go(struct links *l)
{
    l->hold_blobs = false;
    list_for_each_safe (it, &l->calls) {
        list_remove(it);
        loop_defer(l->loop, &container_of(it, struct blob_call, link)->post);
    }
    l->hold_drains = l->hold_tails = false;
    list_for_each (it, &l->drains)
        drain_post(container_of(it, struct drain, link));
}
