/* SPDX-License-Identifier: Apache-2.0 */
/* The store inside SQLite: WAL, synchronous=FULL, every change in one BEGIN IMMEDIATE transaction with one revision.
 *
 *     kv     key, value, mod_revision, lease          what there is
 *     lease  id, ttl_ms, boot_id, expires_ms          another boot, or CLOCK_BOOTTIME past it: expired
 *     log    revision, seq, key, value (NULL: gone)   the last LOG_KEEP revisions, for watches
 *     meta   name, number                             revision, schema
 */
#include "plugins/meta-sqlite/meta-sqlite.h"

#include "core/base/cleanup.h"
#include "core/base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/vfs.h>
#include <time.h>

#define SCHEMA 1
#define OPEN_TRIES 1000 /* 10 ms apart */
#define LOG_KEEP 100000 /* revisions */

struct tables {
    sqlite3 *db;
    char *path;
    char boot_id[64];
    sqlite3_stmt *statements[16]; /* prepared once, by enum sql */
};

enum sql {
    SQL_GET,
    SQL_LIST,
    SQL_PUT,
    SQL_DELETE,
    SQL_LOG_ADD,
    SQL_LOG_READ,
    SQL_LOG_PRUNE,
    SQL_LOG_FIRST,
    SQL_REVISION,
    SQL_REVISION_SET,
    SQL_LEASE_ADD,
    SQL_LEASE_KEEP,
    SQL_LEASE_DELETE,
    SQL_LEASE_EXPIRED,
    SQL_LEASE_KEYS,
    SQL_LEASE_LIVES
};

static const char *const sql_texts[] = {
    [SQL_GET] = "SELECT key, value, mod_revision FROM kv WHERE key = ?1",
    [SQL_LIST] =
        "SELECT key, value, mod_revision FROM kv WHERE key >= ?1 AND substr(key, 1, length(?1)) = ?1 ORDER BY key",
    [SQL_PUT] = ("INSERT INTO kv(key, value, mod_revision, lease) VALUES(?1, ?2, ?3, ?4) ON CONFLICT(key) DO UPDATE SET"
                 " value = ?2, mod_revision = ?3, lease = ?4"),
    [SQL_DELETE] = "DELETE FROM kv WHERE key = ?1",
    [SQL_LOG_ADD] = "INSERT INTO log(revision, key, value) VALUES(?1, ?2, ?3)",
    [SQL_LOG_READ] =
        "SELECT key, value, revision FROM log WHERE revision > ?2 AND substr(key, 1, length(?1)) = ?1 ORDER BY seq",
    [SQL_LOG_PRUNE] = "DELETE FROM log WHERE revision <= ?1",
    [SQL_LOG_FIRST] = "SELECT number FROM meta WHERE name = 'pruned'",
    [SQL_REVISION] = "SELECT number FROM meta WHERE name = 'revision'",
    [SQL_REVISION_SET] = "UPDATE meta SET number = ?1 WHERE name = 'revision'",
    [SQL_LEASE_ADD] = "INSERT INTO lease(ttl_ms, boot_id, expires_ms) VALUES(?1, ?2, ?3)",
    [SQL_LEASE_KEEP] = "UPDATE lease SET expires_ms = ttl_ms + ?2 WHERE id = ?1",
    [SQL_LEASE_DELETE] = "DELETE FROM lease WHERE id = ?1",
    [SQL_LEASE_EXPIRED] = "SELECT id FROM lease WHERE boot_id <> ?1 OR expires_ms < ?2",
    [SQL_LEASE_KEYS] = "SELECT key FROM kv WHERE lease = ?1",
    [SQL_LEASE_LIVES] = "SELECT id FROM lease WHERE id = ?1",
};

static const char schema[] =
    "CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS kv(key TEXT PRIMARY KEY, value BLOB NOT NULL, mod_revision INTEGER NOT NULL,"
    " lease INTEGER NOT NULL) WITHOUT ROWID;"
    "CREATE INDEX IF NOT EXISTS kv_lease ON kv(lease) WHERE lease <> 0;"
    "CREATE TABLE IF NOT EXISTS lease(id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_ms INTEGER NOT NULL, boot_id TEXT NOT "
    "NULL,"
    " expires_ms INTEGER NOT NULL);"
    "CREATE TABLE IF NOT EXISTS log(seq INTEGER PRIMARY KEY AUTOINCREMENT, revision INTEGER NOT NULL, key TEXT NOT "
    "NULL,"
    " value BLOB);"
    "CREATE INDEX IF NOT EXISTS log_revision ON log(revision);"
    "INSERT OR IGNORE INTO meta VALUES('schema', 1);"
    "INSERT OR IGNORE INTO meta VALUES('revision', 0);"
    "INSERT OR IGNORE INTO meta VALUES('pruned', 0);";

/* ---- errors and statements ------------------------------------------------------------------- */

static int fail_sql(const struct tables *t, int rc, const char *what, struct cairn_error *err)
{
    int code = CAIRN_E_IO;

    if ((rc & 0xff) == SQLITE_BUSY || (rc & 0xff) == SQLITE_LOCKED)
        code = CAIRN_E_UNAVAILABLE;
    else if ((rc & 0xff) == SQLITE_CORRUPT || (rc & 0xff) == SQLITE_NOTADB)
        code = CAIRN_E_CORRUPT;
    else if ((rc & 0xff) == SQLITE_FULL)
        code = CAIRN_E_NO_SPACE;
    else if ((rc & 0xff) == SQLITE_NOMEM)
        code = CAIRN_E_NOMEM;
    return cairn_fail(err, code, "%s in %s: %s", what, t->path, t->db ? sqlite3_errmsg(t->db) : sqlite3_errstr(rc));
}

static int run_text(struct tables *t, const char *text, const char *what, struct cairn_error *err)
{
    int rc = sqlite3_exec(t->db, text, NULL, NULL, NULL);

    return rc == SQLITE_OK ? 0 : fail_sql(t, rc, what, err);
}

/* The prepared statement, ready to be bound. */
static sqlite3_stmt *statement(struct tables *t, enum sql which)
{
    sqlite3_stmt *s = t->statements[which];

    sqlite3_reset(s);
    sqlite3_clear_bindings(s);
    return s;
}

/* Steps a statement that gives no rows. */
static int step_done(struct tables *t, sqlite3_stmt *s, const char *what, struct cairn_error *err)
{
    int rc = sqlite3_step(s);

    sqlite3_reset(s);
    return rc == SQLITE_DONE || rc == SQLITE_ROW ? 0 : fail_sql(t, rc, what, err);
}

static int read_number(struct tables *t, sqlite3_stmt *s, int64_t *ret, struct cairn_error *err)
{
    int rc = sqlite3_step(s);

    if (rc == SQLITE_ROW)
        *ret = sqlite3_column_int64(s, 0);
    sqlite3_reset(s);
    return rc == SQLITE_ROW ? 0 : fail_sql(t, rc, "read a number", err);
}

/* ---- rows ------------------------------------------------------------------------------------ */

void rows_free(struct rows *r)
{
    for (size_t i = 0; i < r->n; i++)
        free((void *)(uintptr_t)r->kvs[i].key); /* the value lies behind it */
    free(r->kvs);
    *r = (struct rows){.kvs = NULL};
}

static int rows_add(struct rows *r, sqlite3_stmt *s, struct cairn_error *err)
{
    const char *key = (const char *)sqlite3_column_text(s, 0);
    const void *value = sqlite3_column_blob(s, 1);
    bool gone = sqlite3_column_type(s, 1) == SQLITE_NULL;
    size_t key_len = (size_t)sqlite3_column_bytes(s, 0) + 1, value_len = gone ? 0 : (size_t)sqlite3_column_bytes(s, 1);

    if (r->n == r->room) {
        size_t room = r->room ? r->room * 2 : 16;
        struct cairn_kv *more = realloc(r->kvs, room * sizeof *more);
        if (!more)
            return cairn_fail(err, CAIRN_E_NOMEM, "allocate %zu rows", room);
        r->kvs = more;
        r->room = room;
    }
    char *copy = key ? malloc(key_len + value_len) : NULL;
    if (!copy)
        return cairn_fail(err, CAIRN_E_NOMEM, "allocate a row");
    memcpy(copy, key, key_len);
    if (value_len)
        memcpy(copy + key_len, value, value_len);
    r->kvs[r->n++] =
        (struct cairn_kv){copy, gone ? NULL : copy + key_len, value_len, (uint64_t)sqlite3_column_int64(s, 2)};
    return 0;
}

static int rows_read(struct tables *t, sqlite3_stmt *s, struct rows *r, struct cairn_error *err)
{
    int rc, code = 0;

    while (code == 0 && (rc = sqlite3_step(s)) == SQLITE_ROW)
        code = rows_add(r, s, err);
    if (code == 0 && rc != SQLITE_DONE)
        code = fail_sql(t, rc, "read rows", err);
    sqlite3_reset(s);
    return code;
}

/* ---- transactions and revisions -------------------------------------------------------------- */

static int64_t boottime_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_BOOTTIME, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static int begin(struct tables *t, uint32_t timeout_ms, struct cairn_error *err)
{
    sqlite3_busy_timeout(t->db, timeout_ms > INT32_MAX ? INT32_MAX : (int)timeout_ms);
    return run_text(t, "BEGIN IMMEDIATE", "begin a transaction", err);
}

/* Ends the transaction; what went wrong before keeps its message. */
static int end(struct tables *t, int r, struct cairn_error *err)
{
    if (r == 0)
        r = run_text(t, "COMMIT", "commit", err);
    if (r < 0 && !sqlite3_get_autocommit(t->db))
        sqlite3_exec(t->db, "ROLLBACK", NULL, NULL, NULL);
    return r;
}

static int revision_read(struct tables *t, uint64_t *ret, struct cairn_error *err)
{
    int64_t v = 0;
    int r = read_number(t, statement(t, SQL_REVISION), &v, err);

    if (r == 0)
        *ret = (uint64_t)v;
    return r;
}

static int revision_next(struct tables *t, uint64_t *ret, struct cairn_error *err)
{
    sqlite3_stmt *s;
    int r = revision_read(t, ret, err);

    if (r < 0)
        return r;
    s = statement(t, SQL_REVISION_SET);
    sqlite3_bind_int64(s, 1, (int64_t)++ * ret);
    r = step_done(t, s, "raise the revision", err);
    if (r == 0 && *ret % 1024 == 0 && *ret > LOG_KEEP) {
        char text[160];
        snprintf(text, sizeof text, "UPDATE meta SET number = %llu WHERE name = 'pruned'",
                 (unsigned long long)(*ret - LOG_KEEP));
        r = run_text(t, text, "note what was pruned", err);
        s = statement(t, SQL_LOG_PRUNE);
        sqlite3_bind_int64(s, 1, (int64_t)(*ret - LOG_KEEP));
        if (r == 0)
            r = step_done(t, s, "prune the log", err);
    }
    return r;
}

static int log_add(struct tables *t, uint64_t revision, const char *key, const void *value, size_t len,
                   struct cairn_error *err)
{
    sqlite3_stmt *s = statement(t, SQL_LOG_ADD);

    sqlite3_bind_int64(s, 1, (int64_t)revision);
    sqlite3_bind_text(s, 2, key, -1, SQLITE_STATIC);
    if (value)
        sqlite3_bind_blob64(s, 3, value, len, SQLITE_STATIC);
    return step_done(t, s, "write the log", err);
}

static int key_delete(struct tables *t, uint64_t revision, const char *key, struct cairn_error *err)
{
    sqlite3_stmt *s = statement(t, SQL_DELETE);

    sqlite3_bind_text(s, 1, key, -1, SQLITE_STATIC);
    int r = step_done(t, s, "delete a key", err);
    if (r == 0 && sqlite3_changes(t->db) > 0)
        r = log_add(t, revision, key, NULL, 0, err);
    return r;
}

static int key_put(struct tables *t, uint64_t revision, const struct cairn_put *put, struct cairn_error *err)
{
    sqlite3_stmt *s = statement(t, SQL_PUT);
    const void *value = put->value_len ? put->value : "";

    sqlite3_bind_text(s, 1, put->key, -1, SQLITE_STATIC);
    sqlite3_bind_blob64(s, 2, value, put->value_len, SQLITE_STATIC);
    sqlite3_bind_int64(s, 3, (int64_t)revision);
    sqlite3_bind_int64(s, 4, put->lease);
    int r = step_done(t, s, "put a key", err);
    return r == 0 ? log_add(t, revision, put->key, value, put->value_len, err) : r;
}

/* ---- leases ---------------------------------------------------------------------------------- */

static int lease_end(struct tables *t, int64_t lease, uint64_t revision, struct cairn_error *err)
{
    struct rows keys = {.kvs = NULL};
    sqlite3_stmt *s = statement(t, SQL_LEASE_KEYS);
    int r;

    sqlite3_bind_int64(s, 1, lease);
    r = rows_read(t, s, &keys, err);
    for (size_t i = 0; i < keys.n && r == 0; i++)
        r = key_delete(t, revision, keys.kvs[i].key, err);
    rows_free(&keys);
    s = statement(t, SQL_LEASE_DELETE);
    sqlite3_bind_int64(s, 1, lease);
    return r == 0 ? step_done(t, s, "end a lease", err) : r;
}

/* Every transaction of any process does this first: no key outlives its lease in anybody's eyes. */
static int expire_leases(struct tables *t, struct cairn_error *err)
{
    int64_t expired[64];
    size_t n = 0;
    uint64_t revision;
    sqlite3_stmt *s = statement(t, SQL_LEASE_EXPIRED);
    int rc, r = 0;

    sqlite3_bind_text(s, 1, t->boot_id, -1, SQLITE_STATIC);
    sqlite3_bind_int64(s, 2, boottime_ms());
    while (n < 64 && (rc = sqlite3_step(s)) == SQLITE_ROW)
        expired[n++] = sqlite3_column_int64(s, 0);
    sqlite3_reset(s);
    if (n < 64 && rc != SQLITE_DONE)
        return fail_sql(t, rc, "look for expired leases", err);
    if (n > 0)
        r = revision_next(t, &revision, err);
    for (size_t i = 0; i < n && r == 0; i++)
        r = lease_end(t, expired[i], revision, err);
    return r == 0 && n == 64 ? expire_leases(t, err) : r;
}

static int begin_current(struct tables *t, uint32_t timeout_ms, struct cairn_error *err)
{
    int r = begin(t, timeout_ms, err);

    return r == 0 ? expire_leases(t, err) : r;
}

int tables_lease_grant(struct tables *t, uint32_t ttl_ms, uint32_t timeout_ms, int64_t *ret_lease,
                       struct cairn_error *err)
{
    int r = begin_current(t, timeout_ms, err);
    int64_t lease = 0;

    if (r == 0) {
        sqlite3_stmt *s = statement(t, SQL_LEASE_ADD);
        sqlite3_bind_int64(s, 1, ttl_ms);
        sqlite3_bind_text(s, 2, t->boot_id, -1, SQLITE_STATIC);
        sqlite3_bind_int64(s, 3, boottime_ms() + ttl_ms);
        r = step_done(t, s, "grant a lease", err);
        lease = sqlite3_last_insert_rowid(t->db);
    }
    r = end(t, r, err);
    if (r == 0)
        *ret_lease = lease;
    return r;
}

int tables_lease_keep(struct tables *t, int64_t lease, uint32_t timeout_ms, struct cairn_error *err)
{
    int r = begin_current(t, timeout_ms, err);

    if (r == 0) {
        sqlite3_stmt *s = statement(t, SQL_LEASE_KEEP);
        sqlite3_bind_int64(s, 1, lease);
        sqlite3_bind_int64(s, 2, boottime_ms());
        r = step_done(t, s, "keep a lease", err);
        if (r == 0 && sqlite3_changes(t->db) == 0)
            r = cairn_fail(err, CAIRN_E_NOT_FOUND, "lease %lld has expired", (long long)lease);
    }
    return end(t, r, err);
}

int tables_lease_revoke(struct tables *t, int64_t lease, uint32_t timeout_ms, struct cairn_error *err)
{
    uint64_t revision;
    int r = begin_current(t, timeout_ms, err);

    if (r == 0)
        r = revision_next(t, &revision, err);
    if (r == 0)
        r = lease_end(t, lease, revision, err);
    return end(t, r, err);
}

/* ---- reads and transactions ------------------------------------------------------------------ */

static int read_kvs(struct tables *t, enum sql which, const char *text, uint32_t timeout_ms, struct rows *ret,
                    struct cairn_error *err)
{
    struct rows rows = {.kvs = NULL};
    int r = begin_current(t, timeout_ms, err);

    if (r == 0) {
        sqlite3_stmt *s = statement(t, which);
        sqlite3_bind_text(s, 1, text, -1, SQLITE_STATIC);
        r = rows_read(t, s, &rows, err);
    }
    if (r == 0)
        r = revision_read(t, &rows.revision, err);
    r = end(t, r, err);
    if (r < 0)
        rows_free(&rows);
    else
        *ret = rows;
    return r;
}

int tables_get(struct tables *t, const char *key, uint32_t timeout_ms, struct rows *ret, struct cairn_error *err)
{
    return read_kvs(t, SQL_GET, key, timeout_ms, ret, err);
}

int tables_list(struct tables *t, const char *prefix, uint32_t timeout_ms, struct rows *ret, struct cairn_error *err)
{
    return read_kvs(t, SQL_LIST, prefix, timeout_ms, ret, err);
}

static int compare_holds(struct tables *t, const struct cairn_compare *c, bool *ret_holds, struct cairn_error *err)
{
    sqlite3_stmt *s = statement(t, SQL_GET);
    uint64_t revision = 0;
    int rc;

    sqlite3_bind_text(s, 1, c->key, -1, SQLITE_STATIC);
    rc = sqlite3_step(s);
    if (rc == SQLITE_ROW)
        revision = (uint64_t)sqlite3_column_int64(s, 2);
    sqlite3_reset(s);
    *ret_holds = revision == c->mod_revision;
    return rc == SQLITE_ROW || rc == SQLITE_DONE ? 0 : fail_sql(t, rc, "compare a key", err);
}

static int lease_lives(struct tables *t, int64_t lease, struct cairn_error *err)
{
    sqlite3_stmt *s = statement(t, SQL_LEASE_LIVES);

    sqlite3_bind_int64(s, 1, lease);
    int rc = sqlite3_step(s);
    sqlite3_reset(s);
    if (rc == SQLITE_ROW)
        return 0;
    return rc == SQLITE_DONE ? cairn_fail(err, CAIRN_E_NOT_FOUND, "lease %lld has expired", (long long)lease)
                             : fail_sql(t, rc, "look for a lease", err);
}

static int apply(struct tables *t, const struct cairn_txn *txn, uint64_t *ret_revision, struct cairn_error *err)
{
    int r = revision_next(t, ret_revision, err);

    for (size_t i = 0; i < txn->ndeletes && r == 0; i++)
        r = key_delete(t, *ret_revision, txn->deletes[i], err);
    for (size_t i = 0; i < txn->nputs && r == 0; i++) {
        if (txn->puts[i].lease)
            r = lease_lives(t, txn->puts[i].lease, err);
        if (r == 0)
            r = key_put(t, *ret_revision, &txn->puts[i], err);
    }
    return r;
}

int tables_txn(struct tables *t, const struct cairn_txn *txn, uint32_t timeout_ms, int *ret_succeeded,
               uint64_t *ret_revision, struct cairn_error *err)
{
    bool holds = true;
    uint64_t revision = 0;
    int r = begin_current(t, timeout_ms, err);

    for (size_t i = 0; i < txn->ncompares && r == 0 && holds; i++)
        r = compare_holds(t, &txn->compares[i], &holds, err);
    if (r == 0)
        r = holds ? apply(t, txn, &revision, err) : revision_read(t, &revision, err);
    r = end(t, r, err);
    if (r < 0)
        return r;
    *ret_succeeded = holds;
    *ret_revision = revision;
    return 0;
}

/* ---- watching -------------------------------------------------------------------------------- */

int tables_version(struct tables *t, uint64_t *ret_version, struct cairn_error *err)
{
    sqlite3_stmt *s = NULL;
    int rc = sqlite3_prepare_v2(t->db, "PRAGMA data_version", -1, &s, NULL);

    if (rc == SQLITE_OK && (rc = sqlite3_step(s)) == SQLITE_ROW)
        *ret_version = (uint64_t)sqlite3_column_int64(s, 0);
    sqlite3_finalize(s);
    return rc == SQLITE_ROW ? 0 : fail_sql(t, rc, "read the data version", err);
}

int tables_log(struct tables *t, const char *prefix, uint64_t since, struct rows *ret, struct cairn_error *err)
{
    struct rows rows = {.kvs = NULL};
    int64_t pruned = 0;
    int r = begin_current(t, 1000, err);

    if (r == 0)
        r = read_number(t, statement(t, SQL_LOG_FIRST), &pruned, err);
    if (r == 0 && since < (uint64_t)pruned)
        r = cairn_fail(err, CAIRN_E_NOT_FOUND, "changes up to revision %lld are not kept: list again",
                       (long long)pruned);
    if (r == 0) {
        sqlite3_stmt *s = statement(t, SQL_LOG_READ);
        sqlite3_bind_text(s, 1, prefix, -1, SQLITE_STATIC);
        sqlite3_bind_int64(s, 2, (int64_t)since);
        r = rows_read(t, s, &rows, err);
    }
    if (r == 0)
        r = revision_read(t, &rows.revision, err);
    r = end(t, r, err);
    if (r < 0)
        rows_free(&rows);
    else
        *ret = rows;
    return r;
}

/* ---- opening --------------------------------------------------------------------------------- */

/* WAL needs shared memory between all who open the file: one machine. */
static int refuse_network(const char *path, struct cairn_error *err)
{
    static const struct {
        unsigned long magic;
        const char *name;
    } remote[] = {{0x6969, "NFS"},      {0xff534d42, "CIFS"},   {0xfe534d42, "SMB2"},   {0x517b, "SMB"},
                  {0x65735546, "FUSE"}, {0x0bd00bd0, "Lustre"}, {0x00c36400, "Ceph"},   {0x01021997, "9p"},
                  {0x47504653, "GPFS"}, {0x5346414f, "AFS"},    {0x19830326, "BeeGFS"}, {0x7461636f, "OCFS2"},
                  {0x01161970, "GFS2"}};
    _cleanup_free_ char *dir = strdup(path);
    struct statfs fs;

    if (!dir)
        return cairn_fail(err, CAIRN_E_NOMEM, "copy a path");
    char *slash = strrchr(dir, '/');
    if (slash)
        slash[slash == dir] = 0;
    if (statfs(slash ? dir : ".", &fs) < 0)
        return cairn_fail_errno(err, errno, "look at the directory of %s", path);
    for (size_t i = 0; i < sizeof remote / sizeof remote[0]; i++)
        if ((unsigned long)fs.f_type == remote[i].magic)
            return cairn_fail(err, CAIRN_E_UNSUPPORTED,
                              "%s lies on %s: meta-sqlite serves one machine and needs a local disk; a "
                              "cluster uses etcd",
                              path, remote[i].name);
    return 0;
}

static int read_boot_id(char *buf, size_t len, struct cairn_error *err)
{
    _cleanup_close_ int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, buf, len - 1);

    if (n <= 0)
        return cairn_fail_errno(err, errno, "read this boot's id");
    buf[n] = 0;
    buf[strcspn(buf, "\n")] = 0;
    return 0;
}

static int check_schema(struct tables *t, struct cairn_error *err)
{
    sqlite3_stmt *s = NULL;
    int64_t version = 0;
    int rc = sqlite3_prepare_v2(t->db, "SELECT number FROM meta WHERE name = 'schema'", -1, &s, NULL);
    int r = rc == SQLITE_OK ? read_number(t, s, &version, err) : fail_sql(t, rc, "read the schema's version", err);

    sqlite3_finalize(s);
    if (r == 0 && version != SCHEMA)
        r = cairn_fail(err, CAIRN_E_UNSUPPORTED, "%s has schema version %lld, this cairnd knows %d", t->path,
                       (long long)version, SCHEMA);
    return r;
}

static int prepare_all(struct tables *t, struct cairn_error *err)
{
    for (size_t i = 0; i < sizeof sql_texts / sizeof sql_texts[0]; i++) {
        int rc = sqlite3_prepare_v3(t->db, sql_texts[i], -1, SQLITE_PREPARE_PERSISTENT, &t->statements[i], NULL);
        if (rc != SQLITE_OK)
            return fail_sql(t, rc, "prepare a statement", err);
    }
    return 0;
}

/* SQLite does not wait for locks when it changes the journal's mode: several daemons that start on a new file at once
 * meet here. */
static int switch_to_wal(struct tables *t, struct cairn_error *err)
{
    const struct timespec pause = {.tv_nsec = 10 * 1000000};
    int r = CAIRN_E_UNAVAILABLE;

    for (int tries = 0; r == CAIRN_E_UNAVAILABLE && tries < OPEN_TRIES; tries++) {
        if (tries)
            nanosleep(&pause, NULL);
        r = run_text(t, "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;", "switch to a write-ahead log", err);
    }
    return r;
}

static int tables_setup(struct tables *t, struct cairn_error *err)
{
    int r = refuse_network(t->path, err);

    if (r == 0)
        r = read_boot_id(t->boot_id, sizeof t->boot_id, err);
    if (r < 0)
        return r;
    int rc = sqlite3_open_v2(t->path, &t->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, NULL);
    if (rc != SQLITE_OK)
        return fail_sql(t, rc, "open the database", err);
    sqlite3_extended_result_codes(t->db, 1);
    sqlite3_busy_timeout(t->db, 10000);
    r = switch_to_wal(t, err);
    if (r == 0)
        r = begin(t, 10000, err);
    if (r == 0)
        r = end(t, run_text(t, schema, "make the tables", err), err);
    if (r == 0)
        r = check_schema(t, err);
    return r == 0 ? prepare_all(t, err) : r;
}

int tables_open(const char *path, struct tables **ret_tables, struct cairn_error *err)
{
    struct tables *t = calloc(1, sizeof *t);

    if (t)
        t->path = strdup(path);
    int r = t && t->path ? tables_setup(t, err) : cairn_fail(err, CAIRN_E_NOMEM, "allocate the tables");
    if (r < 0) {
        tables_close(t);
        return r;
    }
    *ret_tables = t;
    return 0;
}

void tables_close(struct tables *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < sizeof t->statements / sizeof t->statements[0]; i++)
        sqlite3_finalize(t->statements[i]);
    sqlite3_close(t->db);
    free(t->path);
    free(t);
}
