/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/node/links.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "core/model/hash.h"
#include "core/model/lateness.h"
#include "core/model/units.h"
#include "daemon/io/log.h"
#include "daemon/node/codecs.h"
#include "daemon/node/link.h"
#include "daemon/node/pacer.h"

#include <stdio.h>
#include <string.h>

#define REFRESH_MS 1000
#define STORE_FLOOR_MS 100 /* nothing is late before it */
#define READ_FLOOR_MS 50
#define BYE_MS 50 /* time for goodbyes to leave */
#define SPARE_PAYLOADS 16

struct links {
    struct links_deps deps;
    struct links_config config;
    char *node, *domain;
    struct link *all[LINKS_MAX]; /* every peer ever seen by this daemon */
    unsigned nall;
    struct link *group[CAIRN_GROUP_MAX]; /* registered ones that this node uses */
    unsigned ngroup;
    struct buffers *buffers;
    struct fabric_mem *mem;
    void *payloads[SPARE_PAYLOADS];
    unsigned npayloads;
    struct codecs *codecs;
    struct links_counts counts;
    struct list pumps;
    struct pacer *pacer;
    struct loop_post kick;
    bool kicked;
    struct loop_timer refresh;
    struct meta_req list_req;
    bool listing;
    links_forgotten_fn forgotten;
    void *forgotten_arg;
    bool stopping;
    void (*stopped)(void *arg);
    void *stopped_arg;
};

struct loop *links_loop(struct links *s)
{
    return s->deps.loop;
}

struct workers *links_workers(struct links *s)
{
    return s->deps.workers;
}

struct plugins *links_plugins(struct links *s)
{
    return s->deps.plugins;
}

struct keyring *links_keyring(struct links *s)
{
    return s->deps.keyring;
}

struct fabric *links_fabric(struct links *s)
{
    return s->deps.fabric;
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
    return fabric_sends_anything(s->deps.fabric);
}

struct fabric_mem *links_mem(struct links *s)
{
    return s->mem;
}

struct pacer *links_pacer(struct links *s)
{
    return s->pacer;
}

/* ---- pumps and buffers ----------------------------------------------------------------------- */

void links_pump_add(struct links *s, struct pump *p)
{
    list_push_back(&s->pumps, &p->link);
    links_kick(s);
}

void links_pump_remove(struct pump *p)
{
    list_remove(&p->link);
}

/* A pump may remove itself and others: the list is walked from its head until each was run once. */
static void run_pumps(struct loop_post *post)
{
    struct links *s = post->arg;
    struct list rest = LIST_INIT(rest);

    s->kicked = false;
    while (!list_empty(&s->pumps)) {
        struct list *it = s->pumps.next;
        list_remove(it);
        list_push_back(&rest, it);
    }
    while (!list_empty(&rest)) {
        struct pump *p = list_first(&rest, struct pump, link);
        list_remove(&p->link);
        list_push_back(&s->pumps, &p->link);
        p->run(p);
    }
}

void links_kick(struct links *s)
{
    if (s->kicked || s->stopping)
        return; /* whoever had a pump has ended before the stop */
    s->kicked = true;
    s->kick = (struct loop_post){.run = run_pumps, .arg = s};
    loop_defer(s->deps.loop, &s->kick);
}

void *links_buffer_take(struct links *s)
{
    return buffers_take(s->buffers);
}

void links_buffer_give(struct links *s, void *buffer)
{
    buffers_give(s->buffers, buffer);
    links_kick(s);
}

unsigned links_buffers_available(struct links *s)
{
    return buffers_available(s->buffers);
}

void *links_payload_take(struct links *s)
{
    return s->npayloads ? s->payloads[--s->npayloads] : malloc(CAIRN_PART);
}

void links_payload_give(struct links *s, void *payload)
{
    if (payload && s->npayloads < SPARE_PAYLOADS)
        s->payloads[s->npayloads++] = payload;
    else
        free(payload);
}

/* ---- the group ------------------------------------------------------------------------------- */

static uint64_t hash_text(const char *text)
{
    return cairn_hash64(text, strlen(text), 0);
}

/* A peer that says how much room it has and has none left for a fragment. */
static bool is_full(const struct record_peer *r)
{
    return r->total_bytes > 0 && r->free_bytes < FRAGMENT_MAX_RECORD;
}

/* By capacity, not by what is free now: the order of a stripe should not change while disks fill. */
static void candidates_of(const struct links *s, struct link *const *links, unsigned n, struct cairn_candidate *ret)
{
    for (unsigned i = 0; i < n; i++) {
        const struct record_peer *r = link_record(links[i]);
        bool own_domain = s->domain[0] && strcmp(r->domain, s->domain) == 0;
        ret[i] = (struct cairn_candidate){.id = r->id,
                                          .domain = r->domain,
                                          .weight = is_full(r) ? 0 : (double)(r->total_bytes >> 20) + 1,
                                          .nearness = strcmp(r->id, s->node) == 0 ? CAIRN_OWN_PEER
                                                      : own_domain                ? CAIRN_OWN_DOMAIN
                                                                                  : CAIRN_ELSEWHERE};
    }
}

/* At most 16 of the registered peers, drawn by this node's name, so that nodes spread over a large cluster's peers. */
static void choose_group(struct links *s)
{
    struct link *here[LINKS_MAX] = {NULL};
    struct cairn_candidate c[LINKS_MAX];
    unsigned order[LINKS_MAX], n = 0;

    for (unsigned i = 0; i < s->nall; i++)
        if (link_registered(s->all[i]))
            here[n++] = s->all[i];
    candidates_of(s, here, n, c);
    n = cairn_place(c, n, hash_text(s->node), order);
    s->ngroup = n < CAIRN_GROUP_MAX ? n : CAIRN_GROUP_MAX;
    for (unsigned i = 0; i < s->ngroup; i++)
        s->group[i] = here[order[i]];
}

struct link *links_find(struct links *s, const char *peer)
{
    for (unsigned i = 0; i < s->nall; i++)
        if (strcmp(link_id(s->all[i]), peer) == 0)
            return s->all[i];
    return NULL;
}

unsigned links_all(struct links *s, struct link **ret, unsigned room)
{
    unsigned n = s->nall < room ? s->nall : room;

    memcpy(ret, s->all, n * sizeof s->all[0]);
    return n;
}

unsigned links_order(struct links *s, uint64_t key, struct link *ret[CAIRN_GROUP_MAX])
{
    struct cairn_candidate c[CAIRN_GROUP_MAX];
    unsigned order[CAIRN_GROUP_MAX];

    candidates_of(s, s->group, s->ngroup, c);
    unsigned n = cairn_place(c, s->ngroup, key, order);
    for (unsigned i = 0; i < n; i++)
        ret[i] = s->group[order[i]];
    return n;
}

unsigned links_takers(struct links *s, uint64_t key, const struct stream_key *stream, struct link *ret[CAIRN_GROUP_MAX])
{
    struct link *order[CAIRN_GROUP_MAX];
    unsigned all = links_order(s, key, order), n = 0;

    for (unsigned i = 0; i < all; i++)
        if (link_prompt(order[i], stream))
            ret[n++] = order[i];
    for (unsigned i = 0, prompt = n; i < all && prompt == 0; i++)
        if (link_usable(order[i], stream))
            ret[n++] = order[i];
    return n;
}

/* ---- lateness -------------------------------------------------------------------------------- */

uint64_t links_late_after_ns(struct links *s, const struct link *l, bool read)
{
    const struct cairn_latency *group[CAIRN_GROUP_MAX];
    struct cairn_late_limits limits = {(read ? READ_FLOOR_MS : STORE_FLOOR_MS) * (uint64_t)1000,
                                       s->config.fragment_late_ms * (uint64_t)1000};

    for (unsigned i = 0; i < s->ngroup; i++)
        group[i] = link_latency(s->group[i], read);
    return cairn_late_after_us(link_latency(l, read), group, s->ngroup, &limits) * 1000;
}

static unsigned late_ones(const struct links *s)
{
    unsigned n = 0;

    for (unsigned i = 0; i < s->ngroup; i++)
        n += link_late(s->group[i]);
    return n;
}

bool links_any_late(const struct links *s)
{
    return late_ones(s) > 0;
}

bool links_may_be_late(const struct links *s)
{
    return late_ones(s) < cairn_late_most(s->ngroup);
}

struct links_counts *links_counts(struct links *s)
{
    return &s->counts;
}

unsigned links_live(const struct links *s)
{
    unsigned n = 0;

    for (unsigned i = 0; i < s->ngroup; i++)
        n += link_usable(s->group[i], NULL);
    return n;
}

bool links_few(const struct links *s)
{
    unsigned registered = 0;

    for (unsigned i = 0; i < s->ngroup; i++)
        registered += link_registered(s->group[i]) && !is_full(link_record(s->group[i]));
    return links_live(s) * 2 < registered;
}

void links_why(struct links *s, char *buf, size_t len)
{
    size_t at = 0;

    if (len)
        buf[0] = 0;
    if (s->nall == 0)
        snprintf(buf, len, "no storage peer is registered");
    for (unsigned i = 0; i < s->nall && at < len; i++) {
        bool full = is_full(link_record(s->all[i]));
        if (link_usable(s->all[i], NULL) && !full)
            continue;
        int n = snprintf(buf + at, len - at, "%speer %s: %s", at ? "; " : "", link_id(s->all[i]),
                         !link_registered(s->all[i]) ? "not registered"
                         : full                      ? "no space left"
                                                     : link_last_error(s->all[i]));
        at += n > 0 ? (size_t)n : 0;
    }
}

bool links_full(const struct links *s)
{
    unsigned registered = 0, full = 0;

    for (unsigned i = 0; i < s->nall; i++) {
        registered += link_registered(s->all[i]);
        full += link_registered(s->all[i]) && is_full(link_record(s->all[i]));
    }
    return registered > 0 && full == registered;
}

/* ---- the peers' records ---------------------------------------------------------------------- */

static void take_record(struct links *s, const struct cairn_kv *kv, bool *seen)
{
    struct record_peer rec;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct link *l = NULL;

    if (record_peer_decode(&rec, kv->value, kv->value_len, &err) < 0) {
        log_line(LOG_WARNING, "the record %s is ignored: %s", kv->key, err.message);
        return;
    }
    for (unsigned i = 0; i < s->nall; i++)
        if (strcmp(link_id(s->all[i]), rec.id) == 0) {
            seen[i] = true;
            link_update(s->all[i], &rec);
            return;
        }
    if (s->nall == LINKS_MAX || link_new(s, &rec, &l, &err) < 0)
        return; /* the next listing tries again */
    seen[s->nall] = true;
    s->all[s->nall++] = l;
}

static void peers_listed(struct meta_req *req, const struct cairn_meta_result *r)
{
    struct links *s = req->arg;
    bool seen[LINKS_MAX] = {false};

    s->listing = false;
    if (s->stopping)
        return;
    loop_timer_after(s->deps.loop, &s->refresh, REFRESH_MS);
    if (r->code < 0)
        return; /* while the engine is away, the peers that are known stay known */
    for (size_t i = 0; i < r->nkvs; i++)
        take_record(s, &r->kvs[i], seen);
    for (unsigned i = 0; i < s->nall; i++)
        if (!seen[i])
            link_update(s->all[i], NULL);
    choose_group(s);
    for (unsigned i = 0; i < s->nall; i++)
        link_connect(s->all[i]);
    links_kick(s);
}

static void list_peers(struct loop_timer *t)
{
    struct links *s = t->arg;
    char prefix[RECORD_KEY_MAX];

    if (s->listing)
        return;
    s->listing = true;
    s->list_req = (struct meta_req){.done = peers_listed, .arg = s};
    record_prefix_peers(prefix);
    meta_list(s->deps.meta, prefix, 5000, &s->list_req);
}

/* ---- the object ------------------------------------------------------------------------------ */

static void links_free(struct links *s)
{
    pacer_free(s->pacer);
    codecs_free(s->codecs);
    for (unsigned i = 0; i < s->nall; i++)
        link_free(s->all[i]);
    fabric_mem_free(s->mem);
    buffers_free(s->buffers);
    while (s->npayloads)
        free(s->payloads[--s->npayloads]);
    free(s->node);
    free(s->domain);
    free(s);
}

static void kick_paced(void *arg)
{
    links_kick(arg);
}

static int links_setup(struct links *s, struct cairn_error *err)
{
    size_t len;
    struct pacer_config pc = {s->config.rate, s->config.peer_rate};
    int r = buffers_new(FRAGMENT_MAX_RECORD, s->config.fragment_buffers, &s->buffers, err);

    if (r == 0)
        r = pacer_new(s->deps.loop, &pc, kick_paced, s, &s->pacer, err);
    if (r < 0)
        return r;
    void *base = buffers_base(s->buffers, &len);
    r = fabric_mem_register(s->deps.fabric, base, len, FABRIC_LOCAL, 0, &s->mem, err);
    if (r == 0)
        r = codecs_new(s->deps.plugins, s->config.codecs, s->config.workers, s->config.rate, &s->codecs, err);
    return r;
}

int links_new(const struct links_deps *deps, const struct links_config *config, struct links **ret_links,
              struct cairn_error *err)
{
    struct links *s = calloc(1, sizeof *s);

    if (!s)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the links to peers");
    s->deps = *deps;
    s->config = *config;
    list_init(&s->pumps);
    s->node = strdup(config->node);
    s->domain = strdup(config->domain ? config->domain : "");
    int r = s->node && s->domain ? links_setup(s, err) : cairn_fail(err, CAIRN_E_NOMEM, "copy a name");
    if (r < 0) {
        links_free(s);
        return r;
    }
    s->config.node = s->node;
    s->config.domain = s->domain;
    s->refresh = (struct loop_timer){.fire = list_peers, .arg = s};
    list_peers(&s->refresh);
    *ret_links = s;
    return 0;
}

static void links_stopped(struct loop_timer *t)
{
    struct links *s = t->arg;
    void (*stopped)(void *) = s->stopped;
    void *arg = s->stopped_arg;

    bool busy = s->listing || s->kicked;

    for (unsigned i = 0; i < s->nall; i++)
        busy |= link_failing(s->all[i]);
    if (busy) {
        loop_timer_after(s->deps.loop, t, 5);
        return;
    }
    links_free(s);
    stopped(arg);
}

void links_stop(struct links *s, void (*done)(void *arg), void *arg)
{
    s->stopping = true;
    s->stopped = done;
    s->stopped_arg = arg;
    loop_timer_cancel(s->deps.loop, &s->refresh);
    for (unsigned i = 0; i < s->nall; i++)
        link_say_bye(s->all[i]);
    s->refresh = (struct loop_timer){.fire = links_stopped, .arg = s};
    loop_timer_after(s->deps.loop, &s->refresh, BYE_MS);
}

unsigned links_status(const struct links *s, struct link_status *ret, unsigned room)
{
    for (unsigned i = 0; i < s->nall && i < room; i++)
        link_status_of(s->all[i], &ret[i]);
    return s->nall;
}

void links_end_checkpoint(struct links *s, const char *job, uint64_t step, uint64_t incarnation, bool gone)
{
    for (unsigned i = 0; i < s->nall; i++)
        link_end_stream(s->all[i], job, step, incarnation, gone);
}

void links_on_forgotten(struct links *s, links_forgotten_fn forgotten, void *arg)
{
    s->forgotten = forgotten;
    s->forgotten_arg = arg;
}

void links_forgotten(struct links *s, const char *peer, const char *job, uint64_t step, uint64_t incarnation)
{
    if (s->forgotten)
        s->forgotten(s->forgotten_arg, peer, job, step, incarnation);
}

void links_each_peer(struct links *s, void (*each)(void *arg, const char *peer, bool registered), void *arg)
{
    for (unsigned i = 0; i < s->nall; i++)
        each(arg, link_id(s->all[i]), link_registered(s->all[i]));
}
