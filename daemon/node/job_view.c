/* SPDX-License-Identifier: Apache-2.0 */
/* One job's records in the metadata, read as one snapshot. They are untrusted bytes: a record that cannot be read fails
 * the whole reading with its key, for guessing a fate could lose a checkpoint. Keys that are not known are left alone.
 */
#include "daemon/node/job_internal.h"

#include "core/base/cleanup.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

uint64_t jobs_unix_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

void view_free(struct view *v)
{
    for (size_t i = 0; v->keeping && i < v->n; i++)
        free(v->keeping[i].tombstone);
    free(v->keeping);
    free(v->known);
    free(v->decisions);
    free(v->intents);
    free(v->crew);
    *v = (struct view){0};
}

ptrdiff_t view_find(const struct view *v, uint64_t step, uint64_t incarnation)
{
    for (size_t i = 0; i < v->n; i++)
        if (v->known[i].step == step && v->known[i].incarnation == incarnation)
            return (ptrdiff_t)i;
    return -1;
}

int meta_failed(const struct cairn_meta_result *result, struct cairn_error *err, const char *what)
{
    cairn_error_copy(err, result->err);
    if (!result->err || !result->err->message[0])
        return cairn_fail(err, result->code, "%s: %s", what, cairn_code_name(result->code));
    return cairn_wrap(err, result->code, "%s", what);
}

/* Records of one checkpoint lie side by side: the last entry is this one, or there is none yet. */
static ptrdiff_t view_entry(struct view *v, uint64_t step, uint64_t incarnation)
{
    if (v->n > 0 && v->known[v->n - 1].step == step && v->known[v->n - 1].incarnation == incarnation)
        return (ptrdiff_t)v->n - 1;
    v->known[v->n] = (struct known){.step = step, .incarnation = incarnation};
    return (ptrdiff_t)v->n++;
}

static bool view_has(const struct view *v, uint64_t step, uint64_t incarnation)
{
    return v->n > 0 && v->known[v->n - 1].step == step && v->known[v->n - 1].incarnation == incarnation;
}

static int view_read_decision(struct view *v, ptrdiff_t at, const struct cairn_kv *kv, struct cairn_error *err)
{
    struct record_decision d;

    int r = record_decision_decode(&d, kv->value, kv->value_len, err);
    if (r < 0)
        return r;
    v->known[at].fate = d.commit ? KNOWN_COMMITTED : KNOWN_ABORTED;
    if (d.counted)
        v->known[at].numbers = d.nonfinite ? KNOWN_NONFINITE : KNOWN_FINITE;
    v->decisions[at] = d;
    v->keeping[at].decision_revision = kv->mod_revision;
    return 0;
}

/* Keys come in order: the decision was there before. */
static int view_read_tombstone(struct view *v, ptrdiff_t at, const struct cairn_kv *kv, struct cairn_error *err)
{
    struct record_tombstone *t = calloc(1, sizeof *t);

    int r = t ? record_tombstone_decode(t, kv->value, kv->value_len, err)
              : cairn_fail(err, CAIRN_E_NOMEM, "allocate a tombstone");
    if (r < 0) {
        free(t);
        return r;
    }
    free(v->keeping[at].tombstone);
    v->keeping[at].tombstone = t;
    v->keeping[at].tombstone_revision = kv->mod_revision;
    v->known[at].fate = KNOWN_DELETED;
    return 0;
}

/* A hold's value is for people: what forbids is that the key is there. */
static void view_read_hold(struct view_keeping *k, const char *what, uint64_t revision)
{
    const char *pin = record_hold_name(what, RECORD_HOLD_PIN), *reader = record_hold_name(what, RECORD_HOLD_READ);

    if (strcmp(what, "holds") == 0) {
        k->holds_revision = revision;
        return;
    }
    k->pins += !reader; /* one that is not known holds too */
    k->readers += reader != NULL;
    if (pin)
        snprintf(k->held_by, sizeof k->held_by, "pin \"%.*s\"", CAIRN_MAX_NAME, pin);
    else if (reader)
        snprintf(k->held_by, sizeof k->held_by, "a restore or repair on node %.*s", CAIRN_MAX_NAME, reader);
    else
        snprintf(k->held_by, sizeof k->held_by, "%.*s", CAIRN_MAX_NAME, what);
}

static int view_read_ckpt(struct view *v, const char *job, const struct cairn_kv *kv, struct cairn_error *err)
{
    char name[CAIRN_MAX_NAME + 1];
    uint64_t step, incarnation;
    const char *what;

    int r = record_parse_ckpt(kv->key, name, &step, &incarnation, &what, err);
    if (r < 0)
        return r;
    if (strcmp(name, job) != 0)
        return cairn_fail(err, CAIRN_E_CORRUPT, "belongs to job %s", name);
    if (strcmp(what, "intent") == 0)
        return record_intent_decode(&v->intents[view_entry(v, step, incarnation)], kv->value, kv->value_len, err);
    if (strcmp(what, "decision") == 0)
        return view_read_decision(v, view_entry(v, step, incarnation), kv, err);
    if (strcmp(what, "tombstone") == 0)
        return view_read_tombstone(v, view_entry(v, step, incarnation), kv, err);
    if (strncmp(what, "holds", 5) == 0 && view_has(v, step, incarnation))
        view_read_hold(&v->keeping[v->n - 1], what, kv->mod_revision);
    return 0;
}

static int view_read_crew(struct view *v, const struct cairn_kv *kv, struct cairn_error *err)
{
    struct record_crew *more = realloc(v->crew, (v->ncrew + 1) * sizeof *more);

    if (!more)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate %zu nodes", v->ncrew + 1);
    v->crew = more;
    int r = record_crew_decode(&v->crew[v->ncrew], kv->value, kv->value_len, err);
    v->ncrew += r == 0;
    return r;
}

static int view_read_one(struct view *v, const char *job, const char *prefix, const struct cairn_kv *kv,
                         struct cairn_error *err)
{
    size_t len = strlen(prefix);
    const char *what = kv->key + len;

    if (strncmp(kv->key, prefix, len) != 0)
        return cairn_fail(err, CAIRN_E_PROTOCOL, "lies outside of %s", prefix);
    if (strncmp(what, "ckpt/", 5) == 0)
        return view_read_ckpt(v, job, kv, err);
    if (strncmp(what, "nodes/", 6) == 0)
        return view_read_crew(v, kv, err);
    if (strcmp(what, "incarnation") == 0) {
        v->inc_revision = kv->mod_revision;
        return record_incarnation_decode(&v->inc, kv->value, kv->value_len, err);
    }
    if (strcmp(what, "coordinator") == 0) {
        v->coordinator_revision = kv->mod_revision;
        return record_coordinator_decode(&v->coordinator, kv->value, kv->value_len, err);
    }
    if (strcmp(what, "pin") == 0) {
        v->pin_revision = kv->mod_revision;
        return record_pin_decode(&v->pin, kv->value, kv->value_len, err);
    }
    if (strcmp(what, "settings") == 0) {
        v->settings_revision = kv->mod_revision;
        return record_settings_decode(&v->settings, kv->value, kv->value_len, err);
    }
    return 0;
}

int view_read(struct view *ret, const char *job, const struct cairn_meta_result *result, struct cairn_error *err)
{
    char prefix[RECORD_KEY_MAX];
    struct view v = {0};

    *ret = (struct view){0};
    if (result->code < 0)
        return meta_failed(result, err, "read the job's records");
    record_key_job(prefix, job, "");
    v.known = calloc(result->nkvs + 1, sizeof *v.known);
    v.decisions = calloc(result->nkvs + 1, sizeof *v.decisions);
    v.intents = calloc(result->nkvs + 1, sizeof *v.intents);
    v.keeping = calloc(result->nkvs + 1, sizeof *v.keeping);
    bool room = v.known && v.decisions && v.intents && v.keeping;
    int r = room ? 0 : cairn_fail(err, CAIRN_E_NOMEM, "allocate %zu records", result->nkvs);
    for (size_t i = 0; r == 0 && i < result->nkvs; i++) {
        r = view_read_one(&v, job, prefix, &result->kvs[i], err);
        if (r < 0)
            r = cairn_wrap(err, r, "record %s", result->kvs[i].key);
    }
    if (r < 0) {
        view_free(&v);
        return r;
    }
    *ret = v;
    return 0;
}

/* ---- keeping --------------------------------------------------------------------------------- */

bool view_is_resume(const struct view *v, size_t at)
{
    return v->pin_revision && !v->pin.none && v->pin.step == v->known[at].step &&
           v->pin.ckpt_incarnation == v->known[at].incarnation;
}

/* The decision of one that was decided, else its intent: both name the base. */
void view_items(const struct view *v, struct retention_item *items)
{
    for (size_t i = 0; i < v->n; i++) {
        const struct known *k = &v->known[i];
        const struct ckpt_base *b = k->fate == KNOWN_COMMITTED ? &v->decisions[i].base : &v->intents[i].base;

        items[i] = (struct retention_item){.step = k->step,
                                           .incarnation = k->incarnation,
                                           .created_unix_ms = v->decisions[i].created_unix_ms,
                                           .committed = k->fate == KNOWN_COMMITTED,
                                           .held = v->keeping[i].pins || v->keeping[i].readers || view_is_resume(v, i),
                                           .full = true,
                                           .lives = k->fate == KNOWN_COMMITTED || k->fate == KNOWN_UNDECIDED,
                                           .has_base = b->is_set,
                                           .base_step = b->step,
                                           .base_incarnation = b->incarnation};
    }
}

static int view_check_base(const struct view *v, const char *job, size_t at, struct cairn_error *err)
{
    _cleanup_free_ struct retention_item *items = calloc(v->n + 1, sizeof *items);
    size_t of;

    if (!items)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate %zu checkpoints", v->n);
    view_items(v, items);
    if (!retention_is_base(items, v->n, at, &of))
        return 0;
    return cairn_fail(err, CAIRN_E_DENIED,
                      "step %llu of job %s is what step %llu was stored against: that one goes first",
                      (unsigned long long)v->known[at].step, job, (unsigned long long)v->known[of].step);
}

int view_check_deletable(const struct view *v, const char *job, size_t at, struct cairn_error *err)
{
    const struct view_keeping *k = &v->keeping[at];
    unsigned long long step = v->known[at].step;

    if (known_latest(v->known, v->n) == (ptrdiff_t)at)
        return cairn_fail(err, CAIRN_E_DENIED,
                          "step %llu is the newest committed checkpoint of job %s: it is never deleted", step, job);
    if (view_is_resume(v, at))
        return cairn_fail(err, CAIRN_E_DENIED, "job %s resumes from step %llu: it can go after the next start", job,
                          step);
    if (k->pins)
        return cairn_fail(err, CAIRN_E_DENIED, "step %llu of job %s is held by %s: cairn unpin gives it up", step, job,
                          k->held_by);
    if (k->readers)
        return cairn_fail(err, CAIRN_E_BUSY, "step %llu of job %s is held by %s: try again when it has ended", step,
                          job, k->held_by);
    return view_check_base(v, job, at, err);
}

ptrdiff_t view_pick(const struct view *v, uint64_t step)
{
    if (step == CAIRN_LATEST)
        return known_latest(v->known, v->n);
    if (step == CAIRN_LATEST_FINITE)
        return known_latest_finite(v->known, v->n);
    return known_step(v->known, v->n, step);
}

static int view_no_finite(const struct view *v, const char *job, struct cairn_error *err)
{
    unsigned committed = 0, counted = 0;

    for (size_t i = 0; i < v->n; i++) {
        committed += v->known[i].fate == KNOWN_COMMITTED;
        counted += v->known[i].fate == KNOWN_COMMITTED && v->known[i].numbers != KNOWN_UNCOUNTED;
    }
    if (!committed)
        return cairn_fail(err, CAIRN_E_NOT_FOUND, "job %s has no committed checkpoint", job);
    if (!counted)
        return cairn_fail(err, CAIRN_E_NOT_FOUND,
                          "of none of the %u committed checkpoints of job %s it is known whether they have NaN or Inf: "
                          "they were saved with [node] numerics = 0, short of memory for it, or by an older version",
                          committed, job);
    return cairn_fail(err, CAIRN_E_NOT_FOUND,
                      "each of the %u committed checkpoints of job %s whose NaN and Inf were counted has some%s",
                      counted, job, counted < committed ? "; the others were not counted" : "");
}

int view_not_found(const struct view *v, const char *job, uint64_t step, struct cairn_error *err)
{
    unsigned long long s = step;

    if (step == CAIRN_LATEST)
        return cairn_fail(err, CAIRN_E_NOT_FOUND, "job %s has no committed checkpoint", job);
    if (step == CAIRN_LATEST_FINITE)
        return view_no_finite(v, job, err);
    for (size_t i = 0; i < v->n; i++)
        if (v->known[i].step == step && v->keeping[i].tombstone)
            return cairn_fail(err, CAIRN_E_NOT_FOUND, "step %llu of job %s was deleted: %s", s, job,
                              v->keeping[i].tombstone->reason);
    return cairn_fail(err, CAIRN_E_NOT_FOUND, "job %s has not committed step %llu", job, s);
}

int view_send_abort(struct jobs *jobs, const char *job, uint64_t step, uint64_t incarnation, const char *reason,
                    struct meta_req *req, struct cairn_error *err)
{
    struct record_decision d = {.commit = false};
    struct bytes value = {0};
    char key[RECORD_KEY_MAX];

    snprintf(d.reason, sizeof d.reason, "%s", reason);
    snprintf(d.node, sizeof d.node, "%s", jobs->node);
    record_key_ckpt(key, job, step, incarnation, "decision");
    int r = record_decision_encode(&d, &value, err);
    if (r == 0) {
        struct cairn_compare absent = {key, 0};
        struct cairn_put put = {key, value.data, value.len, 0};
        struct cairn_txn txn = {.compares = &absent, .ncompares = 1, .puts = &put, .nputs = 1};
        meta_txn(jobs->deps.meta, &txn, jobs->config.meta_ms, req);
    }
    bytes_free(&value);
    return r;
}
