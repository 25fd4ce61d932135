/* SPDX-License-Identifier: Apache-2.0 */
/* A load reads a committed checkpoint: the root that its decision names, then every shard's manifest, some at a time.
 * blob_get checks the bytes' SHA-256 against the reference, so that decision, root and manifests are one chain; here
 * their identities are checked to be what was asked for. A manifest of deltas names its base's, which is read as well,
 * and so on to the end of the chain. The last few checkpoints stay for the next reader. */
#include "daemon/node/job_internal.h"

#include <stdio.h>
#include <string.h>

struct load {
    struct jobs *jobs;
    struct list link;
    struct list waiters;
    struct checkpoint *checkpoint; /* being filled */
    char job[CAIRN_MAX_NAME + 1];
    uint64_t step, incarnation;
    uint32_t timeout_ms; /* for each blob */
    uint32_t next;       /* the next shard to ask for */
    unsigned in_flight;
    bool rooted; /* the root is there */
    bool pumping;
    int code;
    struct cairn_error err;
};
struct load_get { /* one manifest */
    struct load *load;
    uint32_t rank;
    struct manifest *above; /* whose base it is; NULL: the shard's own */
    unsigned left;          /* how many bases above needs: this one and what is below it */
};

struct checkpoint *checkpoint_ref(struct checkpoint *c)
{
    c->refs++;
    return c;
}

void checkpoint_unref(struct checkpoint *checkpoint)
{
    struct checkpoint *c = checkpoint;

    if (!c || --c->refs > 0)
        return;
    for (uint32_t i = 0; c->manifests && i < c->root.world_size; i++)
        manifest_free(&c->manifests[i]);
    free(c->manifests);
    root_free(&c->root);
    free(c);
}

/* ---- the cache ------------------------------------------------------------------------------- */

struct checkpoint *load_cached(struct jobs *jobs, const struct load_key *key)
{
    list_for_each (it, &jobs->cache) {
        struct checkpoint *c = container_of(it, struct checkpoint, link);
        if (c->root.step != key->step || c->root.incarnation != key->incarnation || strcmp(c->root.job, key->job) != 0)
            continue;
        list_remove(&c->link);
        list_push_front(&jobs->cache, &c->link);
        return c;
    }
    return NULL;
}

static void cache_drop(struct checkpoint *c)
{
    list_remove(&c->link);
    checkpoint_unref(c);
}

void jobs_drop_cache(struct jobs *jobs)
{
    list_for_each_safe (it, &jobs->cache)
        cache_drop(container_of(it, struct checkpoint, link));
}

static void cache_keep(struct jobs *jobs, struct checkpoint *c)
{
    unsigned n = 0;

    list_push_front(&jobs->cache, &checkpoint_ref(c)->link);
    list_for_each_safe (it, &jobs->cache)
        if (++n > JOBS_CACHED)
            cache_drop(container_of(it, struct checkpoint, link));
}

bool jobs_loading(const struct jobs *jobs)
{
    return !list_empty(&jobs->loads);
}

/* ---- reading --------------------------------------------------------------------------------- */

static void load_finish(struct load *load)
{
    struct jobs *jobs = load->jobs;

    list_remove(&load->link);
    if (load->code == 0)
        cache_keep(jobs, load->checkpoint);
    while (!list_empty(&load->waiters)) {
        struct load_waiter *w = list_first(&load->waiters, struct load_waiter, link);
        list_remove(&w->link);
        w->done(w, load->code, load->code < 0 ? &load->err : NULL, load->code < 0 ? NULL : load->checkpoint);
    }
    checkpoint_unref(load->checkpoint);
    free(load);
    jobs_maybe_stopped(jobs);
}

static void load_fail(struct load *load, int code, const struct cairn_error *err)
{
    if (load->code < 0)
        return;
    load->code = code;
    cairn_error_copy(&load->err, err);
    cairn_wrap(&load->err, code, "read checkpoint %s/%llu.%llu", load->job, (unsigned long long)load->step,
               (unsigned long long)load->incarnation);
}

static int load_check_manifest(const struct load *load, const struct manifest *m, uint32_t rank,
                               struct cairn_error *err)
{
    const struct root *root = &load->checkpoint->root;

    if (strcmp(m->job, root->job) != 0 || strcmp(m->node, root->shards[rank].node) != 0 || m->step != root->step ||
        m->incarnation != root->incarnation || m->rank != rank || m->world_size != root->world_size)
        return cairn_fail(err, CAIRN_E_CORRUPT, "the manifest says it is rank %u of %u of %s/%llu.%llu on node %s",
                          m->rank, m->world_size, m->job, (unsigned long long)m->step,
                          (unsigned long long)m->incarnation, m->node);
    return 0;
}

static void load_pump(struct load *load);

static int load_get_base(struct load *load, uint32_t rank, struct manifest *above, unsigned left,
                         struct cairn_error *err);

/* The longest chain of a shard's chunks. */
static unsigned load_chain(const struct manifest *m)
{
    unsigned most = 0;

    for (uint32_t i = 0; i < m->nchunks; i++)
        most = m->chunks[i].delta.depth > most ? m->chunks[i].delta.depth : most;
    return most;
}

static int load_take_manifest(struct load_get *get, const void *data, size_t len, struct cairn_error *err)
{
    struct load *load = get->load;
    struct manifest *m = &load->checkpoint->manifests[get->rank];
    int r = manifest_decode(m, data, len, err);

    if (r == 0)
        r = load_check_manifest(load, m, get->rank, err);
    unsigned chain = r == 0 ? load_chain(m) : 0;
    return chain > 0 ? load_get_base(load, get->rank, m, chain, err) : r;
}

static int load_take_base(struct load_get *get, const void *data, size_t len, struct cairn_error *err)
{
    struct manifest base;

    manifest_init(&base);
    int r = manifest_decode(&base, data, len, err);
    if (r == 0)
        r = manifest_put_under(get->above, &base, err);
    manifest_free(&base);
    if (r == 0 && get->left > 1)
        r = load_get_base(get->load, get->rank, get->above->under, get->left - 1, err);
    return r;
}

static void load_manifest_done(void *arg, int code, const struct cairn_error *err, const void *data, size_t len)
{
    struct load_get *get = arg;
    struct load *load = get->load;
    struct cairn_error e = CAIRN_ERROR_INIT;

    cairn_error_copy(&e, err);
    if (code == 0)
        code = get->above ? load_take_base(get, data, len, &e) : load_take_manifest(get, data, len, &e);
    if (code < 0 && get->above)
        cairn_wrap(&e, code, "the base, step %llu", (unsigned long long)get->above->base.step);
    if (code < 0)
        load_fail(load, cairn_wrap(&e, code, "manifest of rank %u", get->rank), &e);
    free(get);
    load->in_flight--;
    load_pump(load);
}

static int load_get_manifest(struct load *load, uint32_t rank, struct cairn_error *err)
{
    const struct shard_ref *shard = &load->checkpoint->root.shards[rank];
    struct fragment_key key = {
        .step = load->step, .incarnation = load->incarnation, .kind = FRAGMENT_MANIFEST, .rank = rank};
    struct load_get *get = malloc(sizeof *get);

    if (!get)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a request");
    *get = (struct load_get){.load = load, .rank = rank};
    memcpy(key.job, load->job, sizeof key.job);
    memcpy(key.node, shard->node, sizeof key.node);
    load->in_flight++;
    blob_get(load->jobs->deps.links, &key, &shard->manifest, load->timeout_ms, load_manifest_done, get);
    return 0;
}

/* At most CAIRN_MAX_CHAIN of them follow each other: depths were checked, and each is one less. */
static int load_get_base(struct load *load, uint32_t rank, struct manifest *above, unsigned left,
                         struct cairn_error *err)
{
    const struct manifest_base *base = &above->base;
    struct fragment_key key = {
        .step = base->step, .incarnation = base->incarnation, .kind = FRAGMENT_MANIFEST, .rank = rank};
    struct load_get *get = malloc(sizeof *get);

    if (!get)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a request");
    *get = (struct load_get){.load = load, .rank = rank, .above = above, .left = left};
    memcpy(key.job, load->job, sizeof key.job);
    memcpy(key.node, base->node, sizeof key.node);
    load->in_flight++;
    blob_get(load->jobs->deps.links, &key, &base->manifest, load->timeout_ms, load_manifest_done, get);
    return 0;
}

static void load_pump(struct load *load)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    int r = 0;

    if (load->pumping)
        return;
    load->pumping = true;
    while (load->rooted && load->code == 0 && load->in_flight < LOAD_IN_FLIGHT &&
           load->next < load->checkpoint->root.world_size) {
        r = load->jobs->stopping ? cairn_fail(&err, CAIRN_E_ABORTED, "cairnd is stopping")
                                 : load_get_manifest(load, load->next++, &err);
        if (r < 0)
            load_fail(load, r, &err);
    }
    load->pumping = false;
    if (load->in_flight == 0)
        load_finish(load);
}

static int load_take_root(struct load *load, const void *data, size_t len, struct cairn_error *err)
{
    struct checkpoint *c = load->checkpoint;

    int r = root_decode(&c->root, data, len, err);
    if (r < 0)
        return r;
    if (strcmp(c->root.job, load->job) != 0 || c->root.step != load->step || c->root.incarnation != load->incarnation ||
        c->root.world_size != c->decision.world_size)
        return cairn_fail(err, CAIRN_E_CORRUPT, "the root says it is %s/%llu.%llu of %u ranks", c->root.job,
                          (unsigned long long)c->root.step, (unsigned long long)c->root.incarnation,
                          c->root.world_size);
    c->manifests = calloc(c->root.world_size, sizeof *c->manifests);
    if (!c->manifests)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate %u manifests", c->root.world_size);
    for (uint32_t i = 0; i < c->root.world_size; i++)
        manifest_init(&c->manifests[i]);
    return 0;
}

static void load_root_done(void *arg, int code, const struct cairn_error *err, const void *data, size_t len)
{
    struct load *load = arg;
    struct cairn_error e = CAIRN_ERROR_INIT;

    cairn_error_copy(&e, err);
    if (code == 0)
        code = load_take_root(load, data, len, &e);
    if (code < 0)
        load_fail(load, cairn_wrap(&e, code, "root"), &e);
    load->rooted = code == 0;
    load->in_flight--;
    load_pump(load);
}

/* ---- the object ------------------------------------------------------------------------------ */

static struct load *load_find(struct jobs *jobs, const struct load_key *key)
{
    list_for_each (it, &jobs->loads) {
        struct load *load = container_of(it, struct load, link);
        if (load->step == key->step && load->incarnation == key->incarnation && strcmp(load->job, key->job) == 0)
            return load;
    }
    return NULL;
}

int load_start(struct jobs *jobs, const struct load_key *key, const struct record_decision *decision,
               uint32_t timeout_ms, struct load_waiter *w, struct cairn_error *err)
{
    struct fragment_key root = {.step = key->step, .incarnation = key->incarnation, .kind = FRAGMENT_ROOT};
    struct load *load = load_find(jobs, key);

    list_init(&w->link);
    if (load) {
        list_push_back(&load->waiters, &w->link);
        return 0;
    }
    load = calloc(1, sizeof *load);
    struct checkpoint *c = calloc(1, sizeof *c);
    if (!load || !c) {
        free(load);
        free(c);
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a checkpoint");
    }
    c->refs = 1;
    c->decision = *decision;
    root_init(&c->root);
    list_init(&c->link);
    *load = (struct load){.jobs = jobs,
                          .checkpoint = c,
                          .step = key->step,
                          .incarnation = key->incarnation,
                          .timeout_ms = timeout_ms,
                          .in_flight = 1,
                          .err = CAIRN_ERROR_INIT};
    snprintf(load->job, sizeof load->job, "%s", key->job);
    list_init(&load->waiters);
    list_push_back(&load->waiters, &w->link);
    list_push_back(&jobs->loads, &load->link);
    memcpy(root.job, load->job, sizeof root.job);
    memcpy(root.node, decision->node, sizeof root.node);
    blob_get(jobs->deps.links, &root, &c->decision.root, timeout_ms, load_root_done, load);
    return 0;
}
