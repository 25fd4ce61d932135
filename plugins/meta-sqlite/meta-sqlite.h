/* SPDX-License-Identifier: Apache-2.0 */
/* meta-sqlite in two halves: engine.c is the thread, its queue and the watches; tables.c is what happens inside one
 * SQLite transaction. */
#ifndef CAIRN_PLUGINS_META_SQLITE_H
#define CAIRN_PLUGINS_META_SQLITE_H

#include <cairn/plugin.h>

#include <sqlite3.h>
#include <stdbool.h>

/* ---- tables.c: called on the engine's thread only -------------------------------------------- */
struct tables;
int tables_open(const char *path, struct tables **ret_tables, struct cairn_error *err);
void tables_close(struct tables *t); /* NULL allowed */

/* Rows of a get, a list or the log; keys and values in one growing block. */
struct rows {
    struct cairn_kv *kvs;
    size_t n, room;
    uint64_t revision; /* of the store when they were read */
};
void rows_free(struct rows *r);

/* timeout_ms bounds the wait for other processes' locks. Expired leases are ended first, in the same transaction. */
int tables_get(struct tables *t, const char *key, uint32_t timeout_ms, struct rows *ret, struct cairn_error *err);
int tables_list(struct tables *t, const char *prefix, uint32_t timeout_ms, struct rows *ret, struct cairn_error *err);
int tables_txn(struct tables *t, const struct cairn_txn *txn, uint32_t timeout_ms, int *ret_succeeded,
               uint64_t *ret_revision, struct cairn_error *err);
int tables_lease_grant(struct tables *t, uint32_t ttl_ms, uint32_t timeout_ms, int64_t *ret_lease,
                       struct cairn_error *err);
int tables_lease_keep(struct tables *t, int64_t lease, uint32_t timeout_ms, struct cairn_error *err);
int tables_lease_revoke(struct tables *t, int64_t lease, uint32_t timeout_ms, struct cairn_error *err);
/* Changes whenever another connection committed. */
int tables_version(struct tables *t, uint64_t *ret_version, struct cairn_error *err);
/* Changes under prefix after revision since, in order; a deletion has value NULL. NOT_FOUND: the log does not reach
 * back. */
int tables_log(struct tables *t, const char *prefix, uint64_t since, struct rows *ret, struct cairn_error *err);

#endif
