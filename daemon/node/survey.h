/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a checkpoint can be read now: k fragments of every stripe are with peers that are there, of its bases'
 * stripes as well. Peers are asked for what they know to have; nothing is read. */
#ifndef CAIRN_DAEMON_NODE_SURVEY_H
#define CAIRN_DAEMON_NODE_SURVEY_H

#include "core/proto/manifest.h"
#include "daemon/node/links.h"

struct survey {                       /* a request, owned by the caller until done or cancelled */
    const struct manifest *manifests; /* borrowed, with what lies under them */
    uint32_t nmanifests;
    uint32_t timeout_ms; /* then it ends without a verdict, as if all were there */
    /* UNAVAILABLE: peers that are away may have what is missing; CORRUPT: it is lost. Never from within survey_start.
     */
    void (*done)(struct survey *s, int code, const struct cairn_error *err);
    void *arg;
    void *state; /* survey's; NULL: none is under way */
};
int survey_start(struct links *links, struct survey *s, struct cairn_error *err);
/* done() is not called. Nothing when none is under way. */
void survey_cancel(struct survey *s);

#endif
