/* SPDX-License-Identifier: Apache-2.0 */
/* After a commit its decision is copied onto peers, beside the manifests: what `cairn rebuild` reads when the metadata
 * engine was lost. In the background, and best effort: a repair adds what is missing. */
#ifndef CAIRN_DAEMON_NODE_DECISION_COPY_H
#define CAIRN_DAEMON_NODE_DECISION_COPY_H

#include "daemon/node/jobs.h"

/* The checkpoint that root describes was committed; root and ref are read during the call. A stop of jobs waits for it.
 */
/* True: done() comes later, exactly once, and until then the checkpoint's streams must not be ended. */
bool decision_copy(struct jobs *jobs, const struct root *root, const struct blob_ref *ref, void (*done)(void *arg),
                   void *arg);

#endif
