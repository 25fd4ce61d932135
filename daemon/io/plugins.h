/* SPDX-License-Identifier: Apache-2.0 */
/* The door: loads plugins and is the only caller of their functions. Each call checks state, range and flags, calls,
 * then checks what came back, so that a broken plugin is an error with its name and not a crash later.
 *
 * codec_* may be called from workers. store_* are called on the loop's thread. meta_* are called on the loop's thread
 * and complete there (results are copied and posted).
 */
#ifndef CAIRN_DAEMON_IO_PLUGINS_H
#define CAIRN_DAEMON_IO_PLUGINS_H

#include "daemon/io/loop.h"
#include <cairn/plugin.h>

/* dir: where cairn-NAME.so files are. NULL: $CAIRN_PLUGIN_DIR, else each is looked for in ../lib/cairn beside the
 * program (a tree that lies anywhere), then in the installed directory. */
struct plugins;
int plugins_new(const char *dir, struct plugins **ret_plugins, struct cairn_error *err);
void plugins_free(struct plugins *p); /* everything opened through it must be closed; NULL allowed */

/* ---- codecs ---------------------------------------------------------------------------------- */
struct codec;
int plugins_codec(struct plugins *p, const char *name, struct codec **ret_codec,
                  struct cairn_error *err);                        /* loads once */
struct codec *plugins_codec_by_id(struct plugins *p, uint16_t id); /* among the loaded; NULL */
uint16_t codec_id(const struct codec *c);
const char *codec_name(const struct codec *c);
size_t codec_estimate(const struct codec *c, const void *src, size_t len, int dtype);
int64_t codec_encode(const struct codec *c, const void *src, size_t len, int dtype, void *dst, size_t room);
int codec_decode(const struct codec *c, const void *src, size_t len, int dtype, void *dst, size_t plain_len);

/* ---- stores: as in plugin.h ------------------------------------------------------------------ */
struct store;
struct store_stream;
int plugins_store_open(struct plugins *p, struct loop *loop, const char *name, const struct cairn_param *params,
                       struct store **ret_store, struct cairn_error *err);
void store_close(struct store *s);
int store_space(struct store *s, struct cairn_space *ret_space, struct cairn_error *err);
int store_create(struct store *s, const struct cairn_stream_id *id, uint64_t reserve_bytes,
                 struct store_stream **ret_stream, uint64_t *ret_generation, struct cairn_error *err);
void store_append(struct store_stream *st, const void *buf, size_t len, struct cairn_store_req *req);
void store_sync(struct store_stream *st, struct cairn_store_req *req);
int store_open_stream(struct store *s, const char *name, struct store_stream **ret_stream,
                      struct cairn_stream_id *ret_id, uint64_t *ret_generation, uint64_t *ret_end,
                      struct cairn_error *err);
const char *store_stream_name(struct store_stream *st);
void store_read(struct store_stream *st, uint64_t offset, void *buf, size_t len, struct cairn_store_req *req);
void store_close_stream(struct store_stream *st);
int store_list(struct store *s, int (*each)(void *arg, const char *name), void *arg, struct cairn_error *err);
int store_remove(struct store *s, const char *name, struct cairn_error *err);

/* ---- metadata: requests are owned by the caller until done() --------------------------------- */
struct meta;
struct meta_req {
    void (*done)(struct meta_req *req,
                 const struct cairn_meta_result *result); /* loop's thread; result lives during it */
    void *arg;
    void *reserved[4]; /* the door's */
};
int plugins_meta_open(struct plugins *p, struct loop *loop, const char *name, const struct cairn_param *params,
                      struct meta **ret_meta, struct cairn_error *err);
void meta_close(struct meta *m); /* requests in flight complete with CAIRN_E_ABORTED before it returns */
void meta_get(struct meta *m, const char *key, uint32_t timeout_ms, struct meta_req *req);
void meta_list(struct meta *m, const char *prefix, uint32_t timeout_ms, struct meta_req *req);
void meta_txn(struct meta *m, const struct cairn_txn *txn, uint32_t timeout_ms,
              struct meta_req *req); /* txn is copied by the plugin */
void meta_lease_grant(struct meta *m, uint32_t ttl_ms, uint32_t timeout_ms, struct meta_req *req);
void meta_lease_keep(struct meta *m, int64_t lease, uint32_t timeout_ms, struct meta_req *req);
void meta_lease_revoke(struct meta *m, int64_t lease, uint32_t timeout_ms, struct meta_req *req);

#endif
