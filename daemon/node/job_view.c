/* SPDX-License-Identifier: Apache-2.0 */
/* One job's records in the metadata, read as one snapshot. They are untrusted bytes: a record that cannot be read fails
 * the whole reading with its key, for guessing a fate could lose a checkpoint. Keys that are not known are left alone.
 */
#include "daemon/node/job_internal.h"

#include <stdio.h>
#include <string.h>

void view_free(struct view *v)
{
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

static int view_read_ckpt(struct view *v, const char *job, const struct cairn_kv *kv, struct cairn_error *err)
{
    char name[CAIRN_MAX_NAME + 1];
    uint64_t step, incarnation;
    const char *what;
    struct record_decision d;

    int r = record_parse_ckpt(kv->key, name, &step, &incarnation, &what, err);
    if (r < 0)
        return r;
    if (strcmp(name, job) != 0)
        return cairn_fail(err, CAIRN_E_CORRUPT, "belongs to job %s", name);
    if (strcmp(what, "intent") == 0)
        return record_intent_decode(&v->intents[view_entry(v, step, incarnation)], kv->value, kv->value_len, err);
    if (strcmp(what, "decision") != 0)
        return 0;
    r = record_decision_decode(&d, kv->value, kv->value_len, err);
    if (r < 0)
        return r;
    ptrdiff_t at = view_entry(v, step, incarnation);
    v->known[at].fate = d.commit ? KNOWN_COMMITTED : KNOWN_ABORTED;
    v->decisions[at] = d;
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
    int r = v.known && v.decisions && v.intents ? 0 : cairn_fail(err, CAIRN_E_NOMEM, "allocate %zu records", result->nkvs);
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
