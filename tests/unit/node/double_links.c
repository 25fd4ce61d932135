/* SPDX-License-Identifier: Apache-2.0 */
#include "double_links.h"

#include "core/base/error.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void double_init(struct links *s, struct loop *loop, struct workers *workers, unsigned peers, unsigned buffers)
{
    *s = (struct links){.loop = loop, .workers = workers, .npeers = peers, .nbuffers = buffers, .nfree = buffers};
    s->config = (struct links_config){.node = "n0", .domain = "", .fragment_late_ms = 200, .sync_late_ms = 2000};
    s->least = buffers;
    s->buffers = aligned_alloc(4096, buffers * FRAGMENT_MAX_RECORD);
    assert(s->buffers && buffers <= sizeof s->free / sizeof s->free[0]);
    for (unsigned i = 0; i < buffers; i++)
        s->free[i] = i;
    list_init(&s->pumps);
    for (unsigned i = 0; i < peers; i++) {
        struct link *l = &s->link[i];
        l->links = s;
        l->nslots = 4;
        snprintf(l->id, sizeof l->id, "p%u", i);
        list_init(&l->slots);
        list_init(&l->queue);
    }
}

void double_free(struct links *s)
{
    assert(s->nfree == s->nbuffers); /* every buffer came back */
    free(s->buffers);
}

/* ---- peers ----------------------------------------------------------------------------------- */

static void answer_all(struct link *l)
{
    while (!list_empty(&l->slots)) {
        struct link_put *p = list_first(&l->slots, struct link_put, link);
        list_remove(&p->link);
        l->busy--;
        p->stored_at = ++l->stored;
        p->epoch = l->epoch;
        p->done(p, 0, NULL);
    }
}

static void link_work(struct link *l)
{
    if (!l->holds && !l->dead)
        answer_all(l);
    while (l->busy < l->nslots && !list_empty(&l->queue)) {
        struct link_put *p = list_first(&l->queue, struct link_put, link);
        list_remove(&p->link);
        list_push_back(&l->slots, &p->link);
        p->sent_ns = 1;
        l->busy++;
    }
    if (!l->sync_wanted || l->holds || l->holds_syncs || l->syncing-- > 0)
        return;
    l->sync_wanted = false;
    l->synced = l->sync_to;
    links_kick(l->links);
}

void double_work(struct links *s)
{
    struct blob_ref ref = {.len = 1, .npeers = 1, .peer = {"p0"}};

    for (unsigned i = 0; i < s->npeers; i++)
        link_work(&s->link[i]);
    if (s->blob.done && !s->holds_blob) {
        blob_put_done done = s->blob.done;
        s->blob.done = NULL;
        done(s->blob.arg, 0, NULL, &ref);
    }
}

void double_fail(struct link *l)
{
    struct list *lists[] = {&l->slots, &l->queue};
    struct cairn_error err = CAIRN_ERROR_INIT;

    cairn_fail(&err, CAIRN_E_UNAVAILABLE, "peer %s is gone", l->id);
    l->epoch++;
    l->dead = true;
    l->late = l->holds = l->sync_wanted = false;
    l->stored = l->synced = l->busy = 0;
    for (unsigned i = 0; i < 2; i++)
        while (!list_empty(lists[i])) {
            struct link_put *p = list_first(lists[i], struct link_put, link);
            list_remove(&p->link);
            p->done(p, CAIRN_E_UNAVAILABLE, &err);
        }
    links_kick(l->links);
}

/* ---- link.h ---------------------------------------------------------------------------------- */

int link_put(struct link *l, struct link_put *p, struct cairn_error *err)
{
    if (l->dead)
        return cairn_fail(err, CAIRN_E_UNAVAILABLE, "peer %s is gone", l->id);
    p->sent_ns = 0;
    list_push_back(&l->queue, &p->link);
    return 0;
}

bool link_put_cancel(struct link_put *p)
{
    if (p->sent_ns)
        return false;
    list_remove(&p->link);
    return true;
}

bool link_put_is_late(const struct link *l, const struct link_put *p)
{
    (void)p;
    return l->late;
}

void link_sync(struct link *l, const struct stream_key *key)
{
    (void)key;
    if (l->sync_wanted || l->stored == l->synced)
        return;
    l->sync_wanted = true;
    l->sync_to = l->stored;
    l->syncing = 3;
}

uint64_t link_synced_to(const struct link *l, const struct stream_key *key)
{
    (void)key;
    return l->synced;
}

const char *link_id(const struct link *l)
{
    return l->id;
}

uint32_t link_epoch(const struct link *l)
{
    return l->epoch;
}

bool link_late(const struct link *l)
{
    return l->late;
}

/* ---- links.h --------------------------------------------------------------------------------- */

void links_pump_add(struct links *s, struct pump *p)
{
    list_push_back(&s->pumps, &p->link);
    links_kick(s);
}

void links_pump_remove(struct pump *p)
{
    list_remove(&p->link);
}

static void run_pumps(struct loop_post *post)
{
    struct links *s = post->arg;

    s->kicked = false;
    list_for_each_safe (it, &s->pumps) {
        struct pump *p = container_of(it, struct pump, link);
        p->run(p);
    }
}

void links_kick(struct links *s)
{
    if (s->kicked)
        return;
    s->kicked = true;
    s->kick = (struct loop_post){.run = run_pumps, .arg = s};
    loop_defer(s->loop, &s->kick);
}

struct loop *links_loop(struct links *s)
{
    return s->loop;
}

struct workers *links_workers(struct links *s)
{
    return s->workers;
}

const struct links_config *links_config_of(struct links *s)
{
    return &s->config;
}

struct codecs *links_codecs(struct links *s)
{
    return s->codecs;
}

bool links_sends_anything(struct links *s)
{
    (void)s;
    return true;
}

struct pacer *links_pacer(struct links *s)
{
    return s->pacer;
}

struct links_counts *links_counts(struct links *s)
{
    return &s->counts;
}

void *links_buffer_take(struct links *s)
{
    if (s->nfree == 0)
        return NULL;
    if (s->nfree - 1 < s->least)
        s->least = s->nfree - 1;
    return s->buffers + s->free[--s->nfree] * FRAGMENT_MAX_RECORD;
}

void links_buffer_give(struct links *s, void *buffer)
{
    s->free[s->nfree++] = (unsigned)((size_t)((char *)buffer - s->buffers) / FRAGMENT_MAX_RECORD);
    links_kick(s);
}

unsigned links_buffers_available(struct links *s)
{
    return s->nfree;
}

unsigned links_takers(struct links *s, uint64_t key, const struct stream_key *stream, struct link *ret[CAIRN_GROUP_MAX])
{
    unsigned n = 0;

    (void)key;
    (void)stream;
    for (unsigned i = 0; i < s->npeers; i++)
        if (!s->link[i].dead && !s->link[i].late)
            ret[n++] = &s->link[i];
    return n;
}

bool links_any_late(const struct links *s)
{
    for (unsigned i = 0; i < s->npeers; i++)
        if (s->link[i].late)
            return true;
    return false;
}

unsigned links_all(struct links *s, struct link **ret, unsigned room)
{
    unsigned n = s->npeers < room ? s->npeers : room;

    for (unsigned i = 0; i < n; i++)
        ret[i] = &s->link[i];
    return n;
}

bool links_few(const struct links *s)
{
    (void)s;
    return false;
}

unsigned links_live(const struct links *s)
{
    return s->npeers;
}

bool links_full(const struct links *s)
{
    (void)s;
    return false;
}

void links_why(struct links *s, char *buf, size_t len)
{
    (void)s;
    snprintf(buf, len, "no peer");
}

void blob_put(struct links *s, const struct fragment_key *key, uint64_t fence_incarnation, const void *data, size_t len,
              unsigned copies, uint32_t timeout_ms, blob_put_done done, void *arg)
{
    (void)key;
    (void)fence_incarnation;
    (void)data;
    (void)len;
    (void)copies;
    (void)timeout_ms;
    s->synced_at_blob = 0;
    for (unsigned i = 0; i < s->npeers; i++)
        s->synced_at_blob += s->link[i].synced;
    s->blob.done = done;
    s->blob.arg = arg;
}
