/* SPDX-License-Identifier: Apache-2.0 */
/* Blobs: manifests and roots, stored whole (in pieces of a part) as copies on several peers and named by their SHA-256.
 */
#ifndef CAIRN_DAEMON_NODE_BLOB_H
#define CAIRN_DAEMON_NODE_BLOB_H

#include "core/proto/root.h"
#include "daemon/node/links.h"

void sha256(const void *data, size_t len, uint8_t ret_digest[SHA256_LEN]);

/* The attempt in a blob's key: from its digest, because a save that goes on under another daemon may store another blob
 * of the same name, and a peer may hold both. A decision is one: its copies have attempt 0, for a rebuild to find. */
uint32_t blob_attempt(const uint8_t digest[SHA256_LEN]);

/* Stores and syncs `copies` copies (or as many as peers live, at least 1); margin + 1 of them are enough when the
 * others are late. key: job, step, incarnation, node, kind and rank; its attempt is filled in. data is borrowed until
 * done, which is called exactly once and never from within the call; ref lives during it.
 */
typedef void (*blob_put_done)(void *arg, int code, const struct cairn_error *err, const struct blob_ref *ref);
void blob_put(struct links *links, const struct fragment_key *key, uint64_t fence_incarnation, const void *data,
              size_t len, unsigned copies, uint32_t timeout_ms, blob_put_done done, void *arg);

/* More copies of what was stored by key.node, on other peers than those that have one. */
void blob_put_again(struct links *links, const struct fragment_key *key, const void *data, size_t len, unsigned copies,
                    struct link *const *have, unsigned nhave, uint32_t timeout_ms, blob_put_done done, void *arg);

/* Reads and verifies: the hinted peers first, then all. data lives during done. */
typedef void (*blob_get_done)(void *arg, int code, const struct cairn_error *err, const void *data, size_t len);
void blob_get(struct links *links, const struct fragment_key *key, const struct blob_ref *ref, uint32_t timeout_ms,
              blob_get_done done, void *arg);

#endif
