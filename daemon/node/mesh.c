/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/node/mesh.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"
#include "daemon/io/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MESSAGES 64 /* receive buffers of the endpoint */

#define MAX_CLOGGED 64

struct mesh {
    struct endpoint *ep;
    struct keyring *keyring;
    struct crew_address self;
    void (*letter)(void *arg, const struct crew_letter *l);
    void *arg;
    struct mesh_status status;
    uint64_t clogged[MAX_CLOGGED];
    unsigned nclogged;
    struct crew_letter in; /* the one that is being read: too large for a stack */
};

/* ---- sending --------------------------------------------------------------------------------- */

struct sending {
    struct fabric_op op;
    struct mesh *mesh;
    uint64_t to;
};

static void sent(struct fabric_op *op, int code)
{
    struct sending *s = op->arg;
    struct mesh *mesh = s->mesh;

    if (code == CAIRN_E_BUSY && mesh->nclogged < MAX_CLOGGED) /* letters pile up: it is hung, or its connection is */
        mesh->clogged[mesh->nclogged++] = s->to;
    free(s);
}

/* Not from within the endpoint's own completions. */
static void cut_off_clogged(struct mesh *mesh)
{
    while (mesh->nclogged > 0)
        endpoint_forget(mesh->ep, mesh->clogged[--mesh->nclogged]);
}

static int mesh_pack(struct mesh *mesh, struct crew_letter *letter, struct bytes *out, struct cairn_error *err)
{
    uint8_t tag[CREW_TAG] = {0};
    struct bytes plain = {0};
    uint32_t key_id = 0;

    letter->from = mesh->self;
    int r = crew_encode(letter, &plain, err);
    if (r == 0 && mesh->keyring)
        r = keyring_sign(mesh->keyring, plain.data, plain.len, tag, &key_id);
    if (r == 0)
        r = crew_seal(&plain, key_id, tag, out, err);
    bytes_free(&plain);
    return r;
}

void mesh_send(struct mesh *mesh, const struct crew_address *to, struct crew_letter *letter)
{
    struct sending *s = calloc(1, sizeof *s);
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct bytes out = {0};

    cut_off_clogged(mesh);
    int r = s ? mesh_pack(mesh, letter, &out, &err) : cairn_fail(&err, CAIRN_E_NOMEM, "allocate a letter");
    if (r == 0)
        r = endpoint_resolve(mesh->ep, to->bytes, to->len, &s->to, &err);
    if (r == 0) {
        s->mesh = mesh;
        s->op = (struct fabric_op){.done = sent, .arg = s};
        mesh->status.sent++;
        endpoint_send(mesh->ep, &s->op, s->to, out.data, out.len);
    } else {
        log_line(LOG_WARNING, "a %s to node %s is not sent: %s", crew_type_name(letter->type), to->node, err.message);
        free(s);
    }
    bytes_free(&out);
}

/* ---- receiving ------------------------------------------------------------------------------- */

static int mesh_check(struct mesh *mesh, const struct crew_sealed *s, struct cairn_error *err)
{
    if (!mesh->keyring && s->key_id)
        return cairn_fail(err, CAIRN_E_DENIED, "it is signed, and this node has no key ([fabric] key_file)");
    if (!mesh->keyring)
        return 0;
    if (!s->key_id)
        return cairn_fail(err, CAIRN_E_DENIED, "it is not signed: its sender has no key ([fabric] key_file)");
    int r = keyring_verify(mesh->keyring, s->key_id, s->letter.data, s->letter.len, s->tag);
    return r < 0 ? cairn_fail(err, r, "it is not signed with key %u of this cluster", s->key_id) : 0;
}

static void on_message(void *arg, const void *data, size_t len)
{
    struct mesh *mesh = arg;
    struct cairn_error err = CAIRN_ERROR_INIT;
    struct crew_sealed sealed = {.key_id = 0};

    int r = crew_open(data, len, &sealed, &err);
    if (r == 0)
        r = mesh_check(mesh, &sealed, &err);
    if (r == 0)
        r = crew_decode(sealed.letter.data, sealed.letter.len, &mesh->in, &err);
    bytes_free(&sealed.letter);
    if (r < 0) {
        mesh->status.refused++;
        log_line(LOG_WARNING, "a message of %zu bytes to this node is ignored: %s", len, err.message);
        return;
    }
    mesh->status.received++;
    if (mesh->letter)
        mesh->letter(mesh->arg, &mesh->in);
}

static void on_written(void *arg, uint32_t data)
{
    (void)arg; /* nothing here is registered: nobody can have written */
    (void)data;
}

static const struct endpoint_events events = {on_message, on_written};

/* ---- the object ------------------------------------------------------------------------------ */

int mesh_new(struct fabric *fabric, const struct mesh_config *config, struct mesh **ret_mesh, struct cairn_error *err)
{
    struct mesh *mesh = calloc(1, sizeof *mesh);

    if (!mesh)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate the endpoint of a node");
    snprintf(mesh->self.node, sizeof mesh->self.node, "%s", config->node);
    mesh->self.start = config->start;
    mesh->keyring = config->keyring;
    int r = endpoint_open(fabric, 0, MESSAGES, &events, mesh, &mesh->ep, err);
    if (r < 0) {
        free(mesh);
        return cairn_wrap(err, r, "open the endpoint for other nodes");
    }
    endpoint_address(mesh->ep, mesh->self.bytes, &mesh->self.len);
    *ret_mesh = mesh;
    return 0;
}

void mesh_free(struct mesh *mesh)
{
    if (!mesh)
        return;
    endpoint_free(mesh->ep);
    free(mesh);
}

void mesh_listen(struct mesh *mesh, void (*letter)(void *arg, const struct crew_letter *l), void *arg)
{
    mesh->letter = letter;
    mesh->arg = arg;
}

const struct crew_address *mesh_address(const struct mesh *mesh)
{
    return &mesh->self;
}

void mesh_status_of(const struct mesh *mesh, struct mesh_status *ret)
{
    *ret = mesh->status;
}
