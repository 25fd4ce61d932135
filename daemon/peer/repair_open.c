/* SPDX-License-Identifier: Apache-2.0 */
/* A repair writes what a checkpoint lacks, long after it was decided: the fence of the job does not hold for it, but
 * the peer sees for itself that the checkpoint was committed and is not being deleted. */
#include "daemon/peer/internal.h"

#include "core/base/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define META_MS 5000

struct repair_open {
    struct meta_req req;
    struct peer_node *node; /* pending */
    struct wire_message m;
};

static bool ends_with(const char *key, const char *what)
{
    size_t len = strlen(key), n = strlen(what);

    return len >= n && strcmp(key + len - n, what) == 0;
}

/* What forbids it; 0 when nothing does. An unknown decision forbids it as well. */
static int judge(const struct cairn_meta_result *r, struct cairn_error *err)
{
    struct record_decision d = {.commit = false};
    bool decided = false;

    if (r->code < 0)
        return cairn_fail(err, CAIRN_E_UNAVAILABLE, "the decision cannot be looked up: %s",
                          r->err ? r->err->message : cairn_code_name(r->code));
    for (size_t i = 0; i < r->nkvs; i++) {
        if (ends_with(r->kvs[i].key, "/tombstone"))
            return cairn_fail(err, CAIRN_E_ABORTED, "the checkpoint is being deleted");
        if (!ends_with(r->kvs[i].key, "/decision"))
            continue;
        int code = record_decision_decode(&d, r->kvs[i].value, r->kvs[i].value_len, err);
        if (code < 0)
            return code;
        decided = true;
    }
    if (!decided || !d.commit)
        return cairn_fail(err, CAIRN_E_ABORTED, "the checkpoint %s: nothing of it is repaired",
                          decided ? "was aborted" : "is not decided");
    return 0;
}

static void decision_read(struct meta_req *req, const struct cairn_meta_result *r)
{
    struct repair_open *o = req->arg;
    struct peer_node *n = o->node;
    struct cairn_error err = CAIRN_ERROR_INIT;
    int code = judge(r, &err);

    if (!n->ended)
        peer_stream_open(n, &o->m, code, &err);
    free(o);
    peer_node_pending_end(n);
}

void peer_open_for_repair(struct peer_node *n, const struct wire_message *m)
{
    struct repair_open *o = calloc(1, sizeof *o);
    struct cairn_error err = CAIRN_ERROR_INIT;
    char prefix[RECORD_KEY_MAX];

    if (!o) {
        peer_stream_open(n, m, cairn_fail(&err, CAIRN_E_NOMEM, "allocate a stream"), &err);
        return;
    }
    o->node = n;
    o->m = *m;
    o->req = (struct meta_req){.done = decision_read, .arg = o};
    n->pending++;
    record_key_ckpt(prefix, m->stream_open.job, m->stream_open.step, m->stream_open.incarnation, "");
    meta_list(n->peer->deps.meta, prefix, META_MS, &o->req);
}
