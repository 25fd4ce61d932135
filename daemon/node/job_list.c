/* SPDX-License-Identifier: Apache-2.0 */
/* What there is, from the metadata: the jobs, or one job's checkpoints. */
#include "daemon/node/job_internal.h"

#include "core/model/name.h"

#include <stdio.h>
#include <string.h>

static void list_finish(struct list_request *r, int code, const struct cairn_error *err, const struct listed *items,
                        size_t n)
{
    struct jobs *jobs = r->own.jobs;

    list_remove(&r->own.link);
    r->done(r, code, err, items, n);
    jobs_maybe_stopped(jobs);
}

/* Keys come in order: a job's lie side by side. */
static int list_jobs(const struct cairn_meta_result *result, struct listed *items, size_t *ret_n,
                     struct cairn_error *err)
{
    char prefix[RECORD_KEY_MAX];
    size_t n = 0;

    record_prefix_jobs(prefix);
    size_t len = strlen(prefix);
    for (size_t i = 0; i < result->nkvs; i++) {
        const char *name = result->kvs[i].key + len;
        const char *end = strncmp(result->kvs[i].key, prefix, len) == 0 ? strchr(name, '/') : NULL;
        size_t name_len = end ? (size_t)(end - name) : 0;
        if (name_len == 0 || name_len > CAIRN_MAX_NAME)
            return cairn_fail(err, CAIRN_E_CORRUPT, "key %s belongs to no job", result->kvs[i].key);
        if (n > 0 && strlen(items[n - 1].job) == name_len && memcmp(items[n - 1].job, name, name_len) == 0)
            continue;
        memcpy(items[n].job, name, name_len);
        items[n++].state = "";
    }
    *ret_n = n;
    return 0;
}

static int list_checkpoints(struct list_request *request, const struct cairn_meta_result *result, struct listed *items,
                            size_t *ret_n, struct cairn_error *err)
{
    const char *job = request->job;
    struct view v;

    int r = view_read(&v, job, result, err);
    if (r < 0)
        return cairn_wrap(err, r, "job %s", job);
    for (size_t i = 0; i < v.n; i++) {
        struct listed *l = &items[i];
        snprintf(l->job, sizeof l->job, "%s", job);
        l->step = v.known[i].step;
        l->incarnation = v.known[i].incarnation;
        l->state = known_fate_name(v.known[i].fate);
        l->decision = v.decisions[i];
        l->decision_revision = v.keeping[i].decision_revision;
        l->pins = v.keeping[i].pins;
        l->readers = v.keeping[i].readers;
        l->resume = view_is_resume(&v, i);
        l->deleted_unix_ms = v.keeping[i].tombstone ? v.keeping[i].tombstone->created_unix_ms : 0;
    }
    if (v.settings.retention[0])
        snprintf(request->ret_rule, sizeof request->ret_rule, "%s", v.settings.retention);
    else
        retention_print(&request->own.jobs->config.retention, request->ret_rule);
    *ret_n = v.n;
    view_free(&v);
    return 0;
}

static void list_done(struct meta_req *req, const struct cairn_meta_result *result)
{
    struct list_request *r = req->arg;
    struct cairn_error err = CAIRN_ERROR_INIT;
    _cleanup_free_ struct listed *items = NULL;
    size_t n = 0;
    int c = result->code < 0 ? meta_failed(result, &err, "list") : 0;

    if (c == 0) {
        items = calloc(result->nkvs + 1, sizeof *items);
        c = items ? 0 : cairn_fail(&err, CAIRN_E_NOMEM, "allocate a list of %zu records", result->nkvs);
    }
    if (c == 0 && r->job[0])
        c = list_checkpoints(r, result, items, &n, &err);
    else if (c == 0)
        c = list_jobs(result, items, &n, &err);
    list_finish(r, c, c < 0 ? &err : NULL, items, n);
}

static void list_posted(struct loop_post *post)
{
    struct list_request *r = post->arg;
    struct cairn_error err = r->own.err; /* r may be gone during done */

    list_finish(r, r->own.code, &err, NULL, 0);
}

void jobs_list(struct jobs *jobs, struct list_request *request)
{
    struct list_request *r = request;
    uint32_t timeout_ms = r->timeout_ms ? r->timeout_ms : jobs->config.meta_ms;
    char prefix[RECORD_KEY_MAX];

    r->own = (struct jobs_request){.jobs = jobs, .err = CAIRN_ERROR_INIT};
    r->own.post = (struct loop_post){.run = list_posted, .arg = r};
    r->own.req = (struct meta_req){.done = list_done, .arg = r};
    list_push_back(&jobs->lists, &r->own.link);
    if (jobs->stopping)
        r->own.code = cairn_fail(&r->own.err, CAIRN_E_ABORTED, "cairnd on node %s is stopping", jobs->node);
    else if (r->job[0])
        r->own.code = cairn_name_check("job", r->job, &r->own.err);
    if (r->own.code < 0) {
        loop_defer(jobs->deps.loop, &r->own.post);
        return;
    }
    if (r->job[0])
        record_key_job(prefix, r->job, "");
    else
        record_prefix_jobs(prefix);
    meta_list(jobs->deps.meta, prefix, timeout_ms, &r->own.req);
}
