/* SPDX-License-Identifier: Apache-2.0 */
#include "fixture.h"

#include "core/base/error.h"

#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* ---- machines -------------------------------------------------------------------------------- */

static uint64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

void machine_start(struct fixture *f, struct machine *m, const char *node, uint64_t start, uint32_t checkpoint_ms)
{
    struct cairn_param params[] = {{"path", f->db}, {NULL, NULL}};
    struct jobs_config config = {
        .node = node, .start = start, .lease_ms = 3000, .meta_ms = 300, .checkpoint_ms = checkpoint_ms};
    struct cairn_error err = CAIRN_ERROR_INIT;

    config.retention_ms = f->retention_ms;
    config.common_fails = f->common_fails;
    config.share_unchanged = f->share_unchanged;
    assert_int_equal(retention_parse(f->rule ? f->rule : "all", &config.retention, &err), 0);
    int r = loop_new(64, &m->loop, &err);

    if (r == 0)
        r = plugins_new(NULL, &m->plugins, &err);
    if (r == 0)
        r = plugins_meta_open(m->plugins, m->loop, "sqlite", params, &m->meta, &err);
    double_init(&m->links, m->loop, node);
    m->stopped = false;
    struct fabric_config fc = {"tcp;ofi_rxm", "127.0.0.1"};
    struct mesh_config mc = {node, start, NULL};
    if (r == 0)
        r = fabric_open(m->loop, &fc, &m->fabric, &err);
    if (r == 0)
        r = mesh_new(m->fabric, &mc, &m->mesh, &err);
    struct jobs_deps deps = {m->loop, &m->links, m->meta, m->mesh};
    if (r == 0)
        r = jobs_new(&deps, &config, &m->jobs, &err);
    if (r < 0)
        fail_msg("start node %s: %s", node, err.message);
}

static void machine_stopped(void *arg)
{
    *(bool *)arg = true;
}

void machine_stop(struct machine *m)
{
    if (!m->jobs)
        return;
    jobs_stop(m->jobs, machine_stopped, &m->stopped);
    turn_until(m, &m->stopped);
    m->jobs = NULL;
    assert_int_equal(m->links.reading, 0);
    mesh_free(m->mesh);
    fabric_close(m->fabric);
    meta_close(m->meta);
    plugins_free(m->plugins);
    loop_free(m->loop);
    double_free(&m->links);
}

/* Machines beside each other are a ring, or a chain. */
static void turn(struct machine *m, unsigned ms, struct cairn_error *err)
{
    bool alone = !m->beside || !m->beside->jobs;

    assert_int_equal(loop_turn(m->loop, alone ? ms : 1, err), 0);
    for (struct machine *x = m->beside; x && x != m && x->jobs; x = x->beside)
        assert_int_equal(loop_turn(x->loop, 1, err), 0);
}

void turn_until(struct machine *m, const bool *flag)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    uint64_t end = now_ms() + 20000;

    while (!*flag && now_ms() < end)
        turn(m, 20, &err);
    assert_true(*flag);
}

void turn_for(struct machine *m, unsigned ms)
{
    struct cairn_error err = CAIRN_ERROR_INIT;
    uint64_t end = now_ms() + ms;

    while (now_ms() < end)
        turn(m, 5, &err);
}

void turn_together(struct fixture *f)
{
    f->a.beside = &f->b;
    f->b.beside = &f->a;
}

int fixture_setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    uint64_t shape[] = {16};
    struct cairn_tensor t = {
        .size = sizeof t, .name = "w", .dtype = CAIRN_F32, .ndim = 1, .shape = shape, .data = shape};
    struct cairn_error err = CAIRN_ERROR_INIT;

    strcpy(f->dir, "/tmp/cairn-test-jobs-XXXXXX");
    if (!mkdtemp(f->dir))
        return -1;
    snprintf(f->db, sizeof f->db, "%s/meta.db", f->dir);
    cairn_layout_init(&f->layout);
    if (cairn_layout_add(&f->layout, &t, &err) < 0 || cairn_layout_place(&f->layout, &err) < 0)
        return -1;
    *state = f;
    return 0;
}

int fixture_teardown(void **state)
{
    struct fixture *f = *state;
    static const char *const tails[] = {"", "-wal", "-shm"};
    char path[128];

    f->a.beside = f->b.beside = f->c.beside = NULL;
    machine_stop(&f->a);
    machine_stop(&f->b);
    machine_stop(&f->c);
    cairn_layout_free(&f->layout);
    for (unsigned i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s%s", f->db, tails[i]);
        unlink(path);
    }
    rmdir(f->dir);
    free(f);
    return 0;
}

/* ---- requests -------------------------------------------------------------------------------- */

struct joined {
    struct join_request r;
    bool done;
    int code;
    struct cairn_error err;
    struct member *member;
};

static void join_done(struct join_request *r, int code, const struct cairn_error *err, struct member *member)
{
    struct joined *j = r->arg;

    j->done = true;
    j->code = code;
    j->member = member;
    cairn_error_copy(&j->err, err);
}

int join(struct fixture *f, struct machine *m, const char *job, const char *start, uint32_t rank, uint32_t world,
         bool take_over, struct member **ret)
{
    struct joined j = {.err = CAIRN_ERROR_INIT};

    snprintf(j.r.job, sizeof j.r.job, "%s", job);
    snprintf(j.r.start_id, sizeof j.r.start_id, "%s", start);
    j.r.rank = rank;
    j.r.world_size = world;
    j.r.take_over = take_over;
    j.r.timeout_ms = 5000;
    j.r.done = join_done;
    j.r.arg = &j;
    jobs_join(m->jobs, &j.r);
    assert_false(j.done);
    turn_until(m, &j.done);
    f->err = j.err;
    if (j.code == 0)
        *ret = j.member;
    else
        assert_true(!j.member && j.err.message[0]);
    return j.code;
}

struct opened {
    struct open_request r;
    struct fixture *f;
    bool done;
    int code;
    struct cairn_error err;
    struct checkpoint *c;
};

static void open_done(struct open_request *r, int code, const struct cairn_error *err, struct checkpoint *c)
{
    struct opened *o = r->arg;

    o->done = true;
    o->code = code;
    o->c = c;
    assert_true(!c == !r->ret_hold);
    if (o->f->keep_hold)
        o->f->kept_hold = r->ret_hold;
    else
        hold_release(r->ret_hold);
    cairn_error_copy(&o->err, err);
}

int open_step(struct fixture *f, struct machine *m, struct member *member, uint64_t step, uint32_t timeout_ms,
              uint64_t *ret_step, uint64_t *ret_inc, struct checkpoint **ret)
{
    struct opened o = {.f = f, .err = CAIRN_ERROR_INIT};

    strcpy(o.r.job, "j");
    o.r.step = step;
    o.r.member = member;
    o.r.resolve_only = !ret;
    o.r.timeout_ms = timeout_ms;
    o.r.done = open_done;
    o.r.arg = &o;
    jobs_open(m->jobs, &o.r);
    assert_false(o.done);
    turn_until(m, &o.done);
    f->err = o.err;
    if (o.code < 0) {
        assert_null(o.c);
        assert_true(o.err.message[0]);
        return o.code;
    }
    assert_true(ret ? o.c != NULL : o.c == NULL);
    if (ret)
        *ret = o.c;
    *ret_step = o.r.ret_step;
    if (ret_inc)
        *ret_inc = o.r.ret_incarnation;
    return 0;
}

struct changed {
    struct change_request r;
    bool done;
    int code;
    struct cairn_error err;
};

static void change_done(struct change_request *r, int code, const struct cairn_error *err)
{
    struct changed *c = r->arg;

    c->done = true;
    c->code = code;
    cairn_error_copy(&c->err, err);
}

int change(struct fixture *f, struct machine *m, int kind, uint64_t step, const char *argument)
{
    struct changed c = {.err = CAIRN_ERROR_INIT};

    strcpy(c.r.job, "j");
    c.r.kind = kind;
    c.r.step = step;
    c.r.timeout_ms = 3000;
    c.r.done = change_done;
    c.r.arg = &c;
    snprintf(c.r.argument, sizeof c.r.argument, "%s", argument);
    jobs_change(m->jobs, &c.r);
    assert_false(c.done);
    turn_until(m, &c.done);
    f->err = c.err;
    assert_true(c.code == 0 || c.err.message[0]);
    return c.code;
}

struct fated {
    struct list_request r;
    bool done;
    uint64_t step, inc;
    const char *state;
    char reason[WIRE_TEXT];
};

static void fate_done(struct list_request *r, int code, const struct cairn_error *err, const struct listed *items,
                      size_t n)
{
    struct fated *q = r->arg;

    if (code < 0)
        print_message("%s\n", err->message);
    q->done = true;
    q->state = code < 0 ? "error" : "absent";
    for (size_t i = 0; i < n; i++)
        if (items[i].step == q->step && items[i].incarnation == q->inc) {
            q->state = items[i].state;
            snprintf(q->reason, sizeof q->reason, "%s", items[i].decision.reason);
        }
}

const char *fate(struct fixture *f, struct machine *m, const char *job, uint64_t step, uint64_t inc)
{
    struct fated q = {.step = step, .inc = inc};

    snprintf(q.r.job, sizeof q.r.job, "%s", job);
    q.r.timeout_ms = 1000;
    q.r.done = fate_done;
    q.r.arg = &q;
    jobs_list(m->jobs, &q.r);
    turn_until(m, &q.done);
    snprintf(f->err.message, sizeof f->err.message, "%s", q.reason);
    return q.state;
}

/* ---- saves ----------------------------------------------------------------------------------- */

static void save_state(void *arg, int state, int code, const struct cairn_error *err)
{
    struct save *s = arg;

    assert_false(s->outcome || s->ended);
    if (code == 0 && state == CAIRN_DURABLE) {
        assert_false(s->durable);
        s->durable = true;
        return;
    }
    assert_true(code < 0 || state == CAIRN_COMMITTED);
    s->outcome = true;
    s->code = code;
    if (code < 0)
        snprintf(s->message, sizeof s->message, "%s", err->message);
}

static void save_durable(void *arg, uint32_t first_part, uint32_t nparts)
{
    struct save *s = arg;

    assert_int_equal(first_part, 0);
    assert_int_equal(nparts, 1);
    s->parts = true;
}

static void save_ended(void *arg)
{
    struct save *s = arg;

    assert_true(s->outcome && !s->ended);
    s->ended = true;
    s->save = NULL;
}

static const struct save_events events = {save_state, save_durable, save_ended, NULL};

int resume(struct fixture *f, struct member *member, uint64_t step, struct save *s)
{
    *s = (struct save){0};
    f->err = (struct cairn_error)CAIRN_ERROR_INIT;
    return save_resume(member, step, 256, &events, s, &s->save, &f->err);
}

int begin(struct fixture *f, struct machine *m, struct member *member, uint64_t step, struct save *s)
{
    (void)m;
    *s = (struct save){0};
    f->err = (struct cairn_error)CAIRN_ERROR_INIT;
    return save_begin(member, step, &events, s, &s->save, &f->err);
}

static struct save_image image(const struct fixture *f)
{
    static char arena[64];
    static const uint32_t pages[] = {0};

    return (struct save_image){.layout = &f->layout, .arena = arena, .pages = pages};
}

void fill(struct fixture *f, struct save *s)
{
    struct save_image i = image(f);

    save_filled(s->save, &i);
}

void put_in_place(struct fixture *f, struct save *s, uint32_t parts)
{
    struct save_image i = image(f);

    save_in_place(s->save, &i, parts);
}

void commit_step_of(struct fixture *f, struct machine *m, struct member **members, unsigned n, uint64_t step)
{
    struct save s[8];

    for (unsigned i = 0; i < n; i++) {
        assert_int_equal(begin(f, m, members[i], step, &s[i]), 0);
        fill(f, &s[i]);
    }
    for (unsigned i = 0; i < n; i++) {
        turn_until(m, &s[i].ended);
        if (s[i].code < 0)
            fail_msg("step %llu: %s", (unsigned long long)step, s[i].message);
        assert_true(s[i].durable && s[i].parts);
    }
}

/* ---- the database ---------------------------------------------------------------------------- */

struct sqlite3 *lock_database(struct fixture *f)
{
    sqlite3 *db;

    assert_int_equal(sqlite3_open(f->db, &db), SQLITE_OK);
    sqlite3_busy_timeout(db, 5000);
    assert_int_equal(sqlite3_exec(db, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
    return db;
}

void unlock_database(struct sqlite3 *db)
{
    sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
    sqlite3_close(db);
}

void change_database(struct fixture *f, const char *sql)
{
    struct sqlite3 *db = lock_database(f);

    assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "COMMIT", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
}

uint64_t database_revision(struct fixture *f)
{
    struct sqlite3 *db = lock_database(f);
    sqlite3_stmt *s;

    assert_int_equal(sqlite3_prepare_v2(db, "SELECT number FROM meta WHERE name = 'revision'", -1, &s, NULL), 0);
    assert_int_equal(sqlite3_step(s), SQLITE_ROW);
    uint64_t revision = (uint64_t)sqlite3_column_int64(s, 0);
    sqlite3_finalize(s);
    unlock_database(db);
    return revision;
}

void expire_leases(struct fixture *f)
{
    change_database(f, "UPDATE lease SET expires_ms = 0");
}
